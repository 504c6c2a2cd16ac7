//! The end of scopes and of their greenlets.

mod scope;
mod scope_soundness;
mod scope_unwinding;
