//! The end of a greenlet: by itself, with its last handle, or with its thread.

mod cycles;
mod drop_counts;
mod exits;
mod finishing;
mod last_handle;
mod lifecycle_matrix;
mod meeting_ends;
mod reentrancy;
mod telling_ends;
#[cfg(target_os = "linux")] // the order in which thread-locals are destroyed
mod thread_end;
mod threads;
mod two_stage_exit;
