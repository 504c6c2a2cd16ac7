//! Greenlet-local variables: each greenlet has its own values; inheritance is chosen.

use anyhow::Result;
use greenlet::{Greenlet, Locals, getparent, greenlet_local};

greenlet_local! {
    static USER: String = "nobody".to_owned();
    static DEPTH: u32 = 0;
}

fn handler(name: &'static str) -> Result<String> {
    let main = getparent().expect("it has one");
    let before = USER.get();
    if !name.is_empty() {
        USER.set(name.to_owned());
    }
    main.switch::<()>(format!("{before} -> {}", USER.get()))?;
    nested(3)?;
    Ok(place())
}

fn nested(levels: u32) -> Result<()> {
    if levels == 0 {
        return Ok(());
    }
    // The value is restored on every way out.
    DEPTH.with_value(DEPTH.get() + 1, || {
        getparent().expect("it has one").switch::<()>(place())?;
        nested(levels - 1)
    })
}

fn place() -> String {
    format!("{} at depth {}", USER.get(), DEPTH.get())
}

fn main() -> Result<()> {
    USER.set("admin".to_owned());
    let alone = Greenlet::new(handler);
    let inherited = Locals::current().copy();
    let heir = Greenlet::builder().locals(inherited.clone()).build(handler);
    let partner = Greenlet::new(handler);
    partner.set_locals(inherited);

    let next = |greenlet: &Greenlet| greenlet.switch::<String>(());
    println!("{}", alone.switch::<String>("ann")?);
    println!("{}", heir.switch::<String>("")?);
    println!("{}", partner.switch::<String>("bob")?);
    for _ in 0..3 {
        println!("{} / {}", next(&alone)?, next(&heir)?);
    }
    println!("{}", next(&alone)?);
    println!("{}", next(&heir)?);
    println!("{}", USER.get());
    let user = heir
        .locals()
        .and_then(|locals| locals.get(&USER))
        .expect("it was set");
    let title = if partner.locals() == heir.locals() {
        "True"
    } else {
        "False"
    };
    println!("{user} {title}");
    Ok(())
}
