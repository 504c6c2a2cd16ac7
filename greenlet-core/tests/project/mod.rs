//! Projects that tests generate, build and run with Cargo: for what a test's own binary cannot be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

/// A generated project. Its target folder is shared by all of them.
pub(crate) struct Project {
    folder: PathBuf,
}

impl Project {
    /// Creates a project. `parts` is added to its manifest.
    pub(crate) fn new(name: &str, parts: &str, main: &str) -> Project {
        // Tests of one program run at once.
        static WRITING: Mutex<()> = Mutex::new(());
        let _writing = WRITING.lock();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let manifest = format!(
            "[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n{parts}"
        );
        let project = Project { folder };
        project.write("Cargo.toml", &manifest);
        project.write("src/main.rs", main);
        // The versions that the workspace uses have been downloaded.
        let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let locks = ["Cargo.lock", "../Cargo.lock"].map(|path| crate_folder.join(path));
        if let Some(lock) = locks.iter().find_map(|path| fs::read_to_string(path).ok()) {
            project.write("Cargo.lock", &lock);
        }
        project
    }

    /// Writes a file of the project, if it has changed: another test's Cargo may read it.
    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.folder.join(path);
        if fs::read_to_string(&path).is_ok_and(|written| written == text) {
            return;
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Runs `cargo run` with arguments for the program. Nothing is downloaded.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("target");
        Command::new(env!("CARGO"))
            .args(["run", "--quiet", "--offline", "--manifest-path"])
            .arg(self.folder.join("Cargo.toml"))
            .args(["--target-dir".as_ref(), target.as_os_str()])
            .arg("--")
            .args(arguments)
            .env("RUST_BACKTRACE", "0")
            .env_remove("RUSTFLAGS") // denied warnings are not for generated manifests
            .output()
            .expect("Cargo runs")
    }
}

/// The text that a process wrote to its standard error.
pub(crate) fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
