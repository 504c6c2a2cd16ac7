//! Two copies of the crate in one program are refused: by Cargo, or by the linker.

#[path = "project/mod.rs"]
mod project;

use project::{Project, errors};

const MAIN: &str = "fn main() { first::getcurrent(); second::getcurrent(); println!(\"runs\"); }";

/// Returns the manifest of another package with the source of this crate.
fn copy(name: &str, version: &str, links: &str) -> String {
    let source = env!("CARGO_MANIFEST_DIR");
    let (backend, context) = match cfg!(feature = "fcontext") {
        true => (
            "[features]\ndefault = [\"fcontext\"]\nfcontext = []\n",
            "context = \"3.0\"\n",
        ),
        false => ("", ""),
    };
    format!(
        "[package]\nname = \"{name}\"\nversion = \"{version}\"\nedition = \"2024\"\n{links}\
         [lib]\npath = \"{source}/src/lib.rs\"\n{backend}\
         [dependencies]\nanyhow = \"1\"\nparking_lot = \"0.12\"\ncrossbeam-utils = \"0.8\"\nlibc = \"0.2\"\n{context}"
    )
}

/// A program with two copies, both used.
fn program(name: &str, versions: [&str; 2], links: &str) -> Project {
    let parts = "[dependencies]\nfirst = { path = \"first\" }\nsecond = { path = \"second\" }\n";
    let project = Project::new(name, parts, MAIN);
    let build = format!("build = \"{}/build.rs\"\n", env!("CARGO_MANIFEST_DIR"));
    let links = links.replace("BUILD", &build);
    project.write("first/Cargo.toml", &copy("first", versions[0], &links));
    project.write("second/Cargo.toml", &copy("second", versions[1], &links));
    project
}

#[test]
fn cargo_refuses_a_second_package_with_the_key_links() {
    let manifest = include_str!("../Cargo.toml");
    let links = manifest.lines().find(|line| line.starts_with("links = "));
    let links = format!("{}\nBUILD", links.expect("the manifest has the key"));
    for versions in [["1.0.0", "1.0.0"], ["1.0.0", "2.0.0"]] {
        let output = program("two-with-links", versions, &links).run(&[]);
        let text = errors(&output);
        assert!(!output.status.success(), "{text}");
        // Cargo has two texts: the second one if there is a lock file.
        let texts = [
            "links to the native library `greenlet-core`",
            "links=greenlet-core",
        ];
        assert!(texts.iter().any(|said| text.contains(said)), "{text}");
    }
}

#[test]
fn the_linker_refuses_copies_that_cargo_does_not_know() {
    for versions in [["1.0.0", "1.0.0"], ["1.0.0", "9.0.0"]] {
        let output = program("two-without-links", versions, "").run(&[]);
        let text = errors(&output);
        assert!(!output.status.success(), "{text}");
        assert!(text.contains("greenlet_core_is_in_this_program_twice"), "{text}");
    }
    // One copy is no problem.
    let project = program("two-without-links", ["1.0.0", "1.0.0"], "");
    project.write("src/main.rs", &MAIN.replace("second", "first"));
    let output = project.run(&[]);
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(output.stdout, b"runs\n");
}
