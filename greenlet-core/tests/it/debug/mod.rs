//! Inspection of greenlets from outside.

mod backtrace;
mod linked;
