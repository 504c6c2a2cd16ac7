//! Looking at greenlets from outside.

mod backtrace;
