//! Backtraces continue into the parents of the running greenlet.

use std::backtrace::Backtrace;
use std::hint::black_box;

use greenlet::Greenlet;

#[inline(never)]
fn in_the_grandchild() -> String { black_box(Backtrace::force_capture().to_string()) }
#[inline(never)]
fn in_the_child() -> anyhow::Result<String> {
    let grandchild = Greenlet::new(|(): ()| Ok(in_the_grandchild()));
    black_box(grandchild.switch::<String>(()))
}
#[inline(never)]
fn in_main() -> String {
    let child = Greenlet::new(|(): ()| in_the_child());
    black_box(child.switch::<String>(()).unwrap())
}
fn order(bt: &str, names: &[&str]) {
    let mut at = 0;
    for n in names {
        at += bt[at..].find(n).unwrap_or_else(|| panic!("no {n} in order in\n{bt}"));
    }
}
#[test]
fn through_all_parents() {
    let bt = in_main();
    if std::env::var_os("SHOW").is_some() { println!("{bt}"); }
    order(&bt, &["in_the_grandchild", "in_the_child", "in_main", "through_all_parents"]);
}
