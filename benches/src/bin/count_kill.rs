//! Creates, starts and kills as many greenlets as the first argument says, by a thrown exit and by
//! the drop of the last handle: for `.ci/instructions`.

use greenlet_core::{Greenlet, GreenletExit, getparent};

fn main() {
    let greenlets: u64 = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    for n in 0..greenlets {
        let greenlet = Greenlet::new(|(): ()| getparent().expect("a parent").switch::<()>(()));
        greenlet.switch::<()>(()).expect("it waits");
        if n % 2 == 0 {
            greenlet
                .throw::<GreenletExit>(GreenletExit::new())
                .expect("the exit");
        }
    }
}
