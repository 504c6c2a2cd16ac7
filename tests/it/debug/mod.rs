//! Looking at greenlets from outside: the recorder, the views of a thread.

mod recorder;
mod tree;
