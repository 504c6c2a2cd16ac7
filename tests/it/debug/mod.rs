//! Inspection of greenlets from outside: the recorder, and the views of a thread.

mod recorder;
mod tree;
