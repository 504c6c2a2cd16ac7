//! Errors propagate to the parents, which can be changed, and skip dead greenlets.

use anyhow::{Result, anyhow};
use greenlet::{Greenlet, ParentError, getcurrent};

/// Runs the child. An error of the child propagates to its parent, so it arrives here.
fn supervisor((name, child): (&'static str, Greenlet)) -> Result<String> {
    child.set_parent(&getcurrent())?;
    match child.switch::<String>(name) {
        Ok(present) => println!("{name}: child returned {present}"),
        Err(error) => println!("{name}: caught {error}"),
    }
    Ok(format!("{name} is done"))
}

fn good(name: &'static str) -> Result<String> {
    Ok(format!("a present for {name}"))
}

fn bad(name: &'static str) -> Result<String> {
    Err(anyhow!("trouble for {name}"))
}

fn title(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

fn main() -> Result<()> {
    let first: String = Greenlet::new(supervisor).switch(("first", Greenlet::new(good)))?;
    println!("{first}");
    let second: String = Greenlet::new(supervisor).switch(("second", Greenlet::new(bad)))?;
    println!("{second}");

    // An unhandled error propagates to the next parent.
    let careless = Greenlet::new(|child: Greenlet| {
        child.set_parent(&getcurrent())?;
        child.switch::<String>("nobody")
    });
    if let Err(error) = careless.switch::<String>(Greenlet::new(bad)) {
        println!("main: caught {error}");
    }

    // A value that is sent to a dead greenlet goes to its parent.
    let dead = Greenlet::new(good);
    println!("{}", dead.switch::<String>("main")?);
    println!("{}", dead.switch::<&str>("comes right back")?);

    // A cycle of parents is refused.
    let (upper, lower) = (Greenlet::new(good), Greenlet::new(good));
    lower.set_parent(&upper)?;
    if upper
        .set_parent(&lower)
        .is_err_and(|error: ParentError| error.is_cycle())
    {
        println!("no rings");
    }
    let is_upper = lower.parent() == Some(upper.clone());
    println!(
        "{} {}",
        title(is_upper),
        title(upper.parent() == Some(getcurrent()))
    );
    Ok(())
}
