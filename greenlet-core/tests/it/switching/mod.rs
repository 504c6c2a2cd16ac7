//! Transfers of control and values between greenlets, and refused switches.

mod creation;
mod current;
mod errors_of_misuse;
mod locals;
mod messages;
mod parents;
mod propagation;
mod python_regressions;
mod refusals_change_nothing;
mod sizes_and_auto_traits;
mod smoke;
mod stack_isolation;
mod states;
mod switch;
mod throwing;
mod tracing;
mod values;
