//! The black-box tests that need no bridge, against the core alone: so they also run where only the core
//! is built, on other architectures and with the oldest supported compiler.

extern crate greenlet_core as greenlet;

#[path = "../../tests/it/support.rs"]
mod support;

mod api;

#[path = "../../tests/it/creation.rs"]
mod creation;
#[path = "../../tests/it/cycles.rs"]
mod cycles;
#[path = "../../tests/it/exits.rs"]
mod exits;
#[path = "../../tests/it/finishing.rs"]
mod finishing;
#[path = "../../tests/it/generator.rs"]
mod generator;
#[path = "../../tests/it/last_handle.rs"]
mod last_handle;
#[path = "../../tests/it/locals.rs"]
mod locals;
#[path = "../../tests/it/misuse.rs"]
mod misuse;
#[path = "../../tests/it/parents.rs"]
mod parents;
#[path = "../../tests/it/propagation.rs"]
mod propagation;
#[path = "../../tests/it/refusals.rs"]
mod refusals;
#[path = "../../tests/it/smoke.rs"]
mod smoke;
#[path = "../../tests/it/states.rs"]
mod states;
#[path = "../../tests/it/switching.rs"]
mod switching;
#[path = "../../tests/it/throwing.rs"]
mod throwing;
#[path = "../../tests/it/values.rs"]
mod values;
