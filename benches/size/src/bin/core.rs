//! One greenlet of the core.

use greenlet_core::Greenlet;

fn main() -> anyhow::Result<()> {
    let greenlet = Greenlet::new(|word: &'static str| Ok(word));
    println!("{}", greenlet.switch::<&str>("hello")?);
    Ok(())
}
