//! Creates, runs and ends as many greenlets as the first argument says, and does nothing else: for
//! `.ci/instructions`.

use std::hint::black_box;

use greenlet_core::Greenlet;

fn main() {
    let greenlets: u64 = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    for n in 0..greenlets {
        let greenlet = Greenlet::new(move |x: u64| Ok(x + n));
        black_box(greenlet.switch::<u64>(n).expect("a sum"));
    }
}
