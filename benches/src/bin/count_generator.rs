//! As many values of a generator as the first argument says, and nothing else: for
//! `.ci/instructions`.

use std::hint::black_box;

use greenlet::Generator;

fn main() {
    let values: u64 = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    let mut generator = Generator::new(|out| (0..u64::MAX).try_for_each(|n| out.yield_(n)));
    for _ in 0..values {
        black_box(generator.next().expect("it does not end").expect("a value"));
    }
    assert_eq!(
        generator.next().expect("it does not end").expect("a value"),
        values
    );
}
