//! Greenlets.
pub use greenlet_core::*;
