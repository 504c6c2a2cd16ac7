//! The library beside its peers. What the arguments are: see `src/lib.rs`.

mod generators;
mod lifecycle;
mod many;
mod rings;
mod switch;
mod threads;

fn main() {
    let groups = [
        switch::groups(),
        rings::groups(),
        lifecycle::groups(),
        generators::groups(),
        many::groups(),
        threads::groups(),
    ];
    greenlet_benches::main(groups.into_iter().flatten().collect());
}
