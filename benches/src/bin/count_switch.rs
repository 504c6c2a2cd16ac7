//! As many round trips between main and a greenlet as the first argument says, and nothing else:
//! for `.ci/instructions`, which counts what one switch executes.

use std::hint::black_box;

use greenlet_core::{Greenlet, getparent};

fn main() {
    let round_trips: u64 = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    let greenlet = Greenlet::new(|mut n: u64| {
        let main = getparent().expect("it is not main");
        loop {
            n = main.switch::<u64>(n + 1)?;
        }
        #[allow(unreachable_code)]
        Ok(n)
    });
    let mut n = 0;
    for _ in 0..round_trips {
        n = greenlet.switch::<u64>(n).expect("an echo");
    }
    assert_eq!(black_box(n), round_trips);
}
