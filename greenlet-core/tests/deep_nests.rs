//! Deep nests of greenlets. A binary of its own: it measures time, and uses many stacks.

extern crate greenlet_core as greenlet;

use greenlet::{Greenlet, getmain};

/// Starts `depth` greenlets that each start the next one, and ends them. Returns how long that took.
fn nest(depth: u32) -> std::time::Duration {
    fn deeper(depth: u32) -> anyhow::Result<()> {
        if depth == 0 {
            return getmain().switch::<()>(());
        }
        let next = Greenlet::builder().stack_size(32 << 10);
        next.build(move |(): ()| deeper(depth - 1)).switch(())
    }
    let start = std::time::Instant::now();
    Greenlet::new(move |(): ()| deeper(depth))
        .switch::<()>(())
        .unwrap();
    greenlet::end_suspended().unwrap();
    start.elapsed()
}

// DE-24: nested starts and ends take time in proportion to their number.
#[test]
fn deep_nests_take_linear_time() {
    let thread = std::thread::spawn(|| {
        let least = |depth| (0..3).map(|_| nest(depth)).min().unwrap();
        let (few, many) = (least(1500), least(12_000));
        // Eight times as many. In quadratic time they took seconds. Page faults and other load make it
        // up to forty times as long.
        let is_short = many < few * 64 || many < std::time::Duration::from_millis(300);
        assert!(is_short, "{few:?} for 1500, {many:?} for 12,000");
    });
    thread.join().unwrap();
}
