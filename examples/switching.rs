//! The first program with greenlets: two functions take turns.

use anyhow::Result;
use greenlet::{Greenlet, switch_to_parent};

fn foo(greeting: &'static str) -> Result<&'static str> {
    println!("foo: {greeting}");
    let number: i32 = switch_to_parent(1)?;
    println!("foo: {number}");
    let () = switch_to_parent("bar")?;
    Ok("done")
}

fn main() -> Result<()> {
    let child = Greenlet::new(foo);
    let number: i32 = child.switch("starting")?;
    println!("main: {number}");
    let text: &str = child.switch(2)?;
    println!("main: {text}");
    let text: &str = child.switch(())?;
    println!("main: {text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use greenlet::record;

    /// What the README shows: this file without its first comment and its tests.
    fn shown() -> &'static str {
        let file = include_str!("switching.rs");
        let (_, program) = file.split_once("\n\n").unwrap();
        program.split_once("\n#[cfg(test)]").unwrap().0
    }

    #[test]
    fn the_readme_shows_this_program() {
        let page = include_str!("../README.md");
        assert!(page.contains(&format!("```rust\n{}```\n", shown())));
    }

    #[test]
    fn the_picture_in_the_readme_is_what_the_recorder_draws() {
        let (outcome, recording) = record(super::main);
        outcome.unwrap();
        let drawn = format!("```mermaid\n{}```\n", recording.to_mermaid());
        let page = include_str!("../README.md");
        assert!(page.contains(&drawn), "{drawn}");
    }
}
