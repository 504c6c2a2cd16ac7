//! Inspection of greenlets from outside: the recorder, and the views of a thread.

mod dumps;
mod linked;
mod panics;
mod recorder;
mod tree;
