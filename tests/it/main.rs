//! The black-box tests of the bridge and of the other additions of this crate to the core: one
//! binary, with one folder for each subject. The tests of the core are in `greenlet-core/tests`.

#[allow(
    dead_code,
    reason = "a link to the core's file, of which not everything is needed here"
)]
mod support;

mod bridge;
mod debug;
mod lifetime;
mod switching;
mod testing;
