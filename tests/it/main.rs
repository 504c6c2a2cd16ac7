//! The black-box tests of the bridge and of what else this crate adds to the core: one binary, one folder for
//! each subject. The core's own are in `greenlet-core/tests`.

#[allow(
    dead_code,
    reason = "a link to the core's file, of which not everything is needed here"
)]
mod support;

mod bridge;
mod debug;
mod lifetime;
mod switching;
