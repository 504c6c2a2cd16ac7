//! The guard of a thread's end. Its destructor is in `switch/thread_exit.rs`, because it ends
//! greenlets.

#![forbid(unsafe_code)]

/// Releases what the thread state owns when it is dropped.
pub(crate) struct ExitGuard;

thread_local! {
    static EXIT_GUARD: ExitGuard = const { ExitGuard };
}

/// Arranges that the [`ExitGuard`] is dropped when the calling thread ends. Returns `false` if that
/// has happened.
pub(super) fn install() -> bool {
    EXIT_GUARD.try_with(|_| ()).is_ok()
}
