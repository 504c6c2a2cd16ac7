//! Tracing every transfer of control.

use anyhow::{Result, anyhow};
use greenlet::{Greenlet, TraceKind, Tracer, getmain, getparent, gettrace, settrace};

fn named(name: &str, function: impl FnOnce(()) -> Result<()> + 'static) -> Greenlet {
    Greenlet::builder().name(name).build(function)
}

fn upper(_: ()) -> Result<()> {
    let lower = named("lower", |()| {
        getparent().expect("it has one").switch_owned::<()>(())
    });
    lower.switch::<()>(())?;
    lower.switch::<()>(())?;
    let outcome = lower
        .switch::<()>(())
        .and_then(|()| getmain().switch_owned::<()>(()));
    if let Err(error) = outcome {
        println!("upper got {error}");
    }
    Err(anyhow!("the end"))
}

fn main() -> Result<()> {
    let tracer = Tracer::new(|event| {
        let kind = match event.kind {
            TraceKind::Switch => "switch",
            _ => "throw",
        };
        let name = |greenlet: &Greenlet| greenlet.name().unwrap_or("?").to_owned();
        let dead = if event.origin.is_dead() {
            " (origin is dead)"
        } else {
            ""
        };
        println!("{kind}: {} -> {}{dead}", name(&event.origin), name(&event.target));
        Ok(())
    });

    let first = named("upper", upper);
    let before = settrace(Some(tracer.clone()));
    first.switch::<()>(())?;
    if let Err(error) = first.throw::<()>(anyhow!("thrown")) {
        println!("main got {error}");
    }
    getmain().switch::<()>(())?;
    let is_ours = settrace(before.clone()) == Some(tracer);
    let title = if is_ours { "True" } else { "False" };
    println!("{title} {before:?} {:?}", gettrace());
    named("unseen", |()| Ok(())).switch::<()>(())?;
    Ok(())
}
