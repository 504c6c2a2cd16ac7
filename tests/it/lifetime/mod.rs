//! Greenlets of a scope end with it.

mod scope;
mod scope_soundness;
