//! The first program with greenlets: two functions take turns.

use greenlet::{Greenlet, getcurrent};

fn main() -> anyhow::Result<()> {
    let main = getcurrent();
    let foo = Greenlet::new(move |greeting: &str| {
        println!("foo: {greeting}");
        let number: i32 = main.switch(1)?;
        println!("foo: {number}");
        let () = main.switch("bar")?;
        Ok("done")
    });

    let number: i32 = foo.switch("starting")?;
    println!("main: {number}");
    let text: &str = foo.switch(2)?;
    println!("main: {text}");
    let text: &str = foo.switch(())?;
    println!("main: {text}");
    Ok(())
}
