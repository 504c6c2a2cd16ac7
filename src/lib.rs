//! Greenlets.
pub mod bridge;
pub use bridge::*;
pub use greenlet_core::*;
