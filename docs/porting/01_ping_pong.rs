//! Two functions pass a number to and fro.

use std::cell::OnceCell;
use std::rc::Rc;

use greenlet::{Greenlet, WeakGreenlet};

/// Each greenlet has a weak handle of the other one. Strong handles on both stacks would keep both
/// alive for ever.
type Other = Rc<OnceCell<WeakGreenlet>>;

fn player(name: &'static str, other: Other) -> Greenlet {
    Greenlet::new(move |mut n: i32| {
        while n < 6 {
            println!("{name}: {n}");
            let other = other.get().and_then(WeakGreenlet::upgrade).expect("it is there");
            n = other.switch_owned(n + 1)?;
        }
        Ok(format!("{name} stops at {n}"))
    })
}

fn main() -> anyhow::Result<()> {
    let (of_ping, of_pong) = (Other::default(), Other::default());
    let ping = player("ping", of_ping.clone());
    let pong = player("pong", of_pong.clone());
    let _ = (of_ping.set(pong.downgrade()), of_pong.set(ping.downgrade()));
    println!("{}", ping.switch::<String>(1)?);
    let state = |g: &Greenlet| if g.is_dead() { "dead" } else { "suspended" };
    println!("ping is {}, pong is {}", state(&ping), state(&pong));
    Ok(())
}
