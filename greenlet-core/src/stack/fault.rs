//! Faults: tells the touch of a guard page from every other fault.
//!
//! The first stack of the process installs a handler for `SIGSEGV` and `SIGBUS`. It looks whether the
//! address lies in a guard page of ours; if so, and if the stack is one that the faulting thread runs on, the process
//! is told why it dies. Everything else is none of our business, and goes to the handler that was there before.
//!
//! ```text
//!   fault ──► on_fault (on the signal stack) ── address in a guard? ──yes──► the observer: its stack?
//!                                                     │no                        │no      │yes
//!                                                     ▼                          │        ▼
//!                                                 pass_on ◄──────────────────────┘     report, abort
//!                                             the handler before us
//! ```
//!
//! # Invariants
//!
//! - **G1** The handler runs anywhere, between any two instructions of the thread. It allocates nothing,
//!   takes no lock, and calls only what is async-signal-safe. What it reads of slabs is a list that is only ever
//!   prepended to (M4).
//! - **G2** It touches thread-locals only after the address was found to be in a guard page of ours, so
//!   that a fault in a thread that has nothing to do with greenlets costs that thread nothing.
//! - **G3** It runs on a signal stack, because there is no room on the stack that has overflowed. Threads that
//!   std made have one; others get one with their first greenlet stack, until they end ([`SignalStack`]).
//! - **G4** A fault that is not ours reaches the previous action as if we were not there: with the same
//!   arguments, and with the signal mask that it asked for. Where that was the default action, it is
//!   restored, and the faulting instruction runs again and dies of it.
//! - **G5** `PREVIOUS` is written before our handler is installed, and what it points to is never freed.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_int, c_void, siginfo_t};

use super::slab;

/// The guard page that was touched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GuardHit {
    /// The base of the stack that the guard belongs to.
    pub(crate) base: *mut u8,
    /// The usable size of that stack.
    pub(crate) size: usize,
    /// Whether the thread's stack pointer was in the stack, or in the guard. Where it cannot be had: whether the address is
    /// right below the limit.
    pub(crate) is_on_its_stack: bool,
}

/// Is told of every touch of a guard page, in the signal handler (G1). Reports and does not return if
/// the thread runs on that stack; returns if it was a stray pointer.
pub(crate) type Observer = fn(&GuardHit);

const SIGNALS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// G5. In the order of `SIGNALS`.
static PREVIOUS: [AtomicPtr<libc::sigaction>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];

static OBSERVER: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Installs the handler, once for the process.
pub(crate) fn install(observer: Observer) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        OBSERVER.store(observer as *mut (), Ordering::Release);
        for (signal, previous) in SIGNALS.into_iter().zip(&PREVIOUS) {
            // SAFETY: `on_fault` keeps the rules of signal handlers (G1).
            unsafe { install_for(signal, previous) };
        }
    });
}

/// # Safety
///
/// - Called once for each signal.
unsafe fn install_for(signal: c_int, previous: &AtomicPtr<libc::sigaction>) {
    // SAFETY: zeroes are a valid `sigaction`; the calls read and write the two structs that they are given.
    unsafe {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        if libc::sigaction(signal, ptr::null(), &raw mut before) != 0 {
            return; // not a signal of this system
        }
        previous.store(Box::into_raw(Box::new(before)), Ordering::Release); // G5
        let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_mask = before.sa_mask; // G4
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | (before.sa_flags & libc::SA_NODEFER);
        let mut replaced = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        if libc::sigaction(signal, &raw const action, &raw mut replaced) != 0 {
            return;
        }
        if replaced.sa_sigaction != before.sa_sigaction {
            // Another thread installed a handler between the two calls. Ours has to pass on to that.
            previous.store(Box::into_raw(Box::new(replaced)), Ordering::Release);
        }
    }
}

extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a handler that was installed with SA_SIGINFO a valid `info`.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr()) };
    // A positive code is the kernel's: the address is one. (`kill` has none.)
    if code > 0 {
        if let Some(mut hit) = slab::guard_at(address.addr()) {
            let limit = (address.addr() | (super::page_size() - 1)) + 1;
            // SAFETY: the kernel hands a handler that was installed with SA_SIGINFO a valid context.
            hit.is_on_its_stack = match unsafe { stack_pointer(context) } {
                Some(pointer) => (limit - super::page_size()..=hit.base.addr()).contains(&pointer),
                None => limit - address.addr() <= OF_A_SWITCH,
            };
            let observer = OBSERVER.load(Ordering::Acquire);
            // SAFETY: `install` stored an `Observer` there, before the handler could be called.
            let observer = unsafe { std::mem::transmute::<*mut (), Observer>(observer) };
            observer(&hit);
        }
    }
    // SAFETY: the arguments are those that the kernel gave us.
    unsafe { pass_on(signal, info, context) }
}

/// What the bare switch pushes has room in this, in bytes.
const OF_A_SWITCH: usize = 128;

/// Where the stack pointer was at a fault, where that is known how to find.
///
/// # Safety
///
/// - `context` is that of a signal handler.
unsafe fn stack_pointer(context: *const c_void) -> Option<usize> {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    // SAFETY: the contract.
    return Some(unsafe {
        (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RSP as usize] as usize
    });
    #[cfg(all(target_os = "linux", target_arch = "aarch64"))]
    // SAFETY: the contract.
    return Some(unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.sp as usize });
    #[cfg(all(target_os = "linux", target_arch = "arm"))]
    // SAFETY: the contract.
    return Some(unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.arm_sp as usize });
    #[cfg(not(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "arm")
    )))]
    {
        let _ = context;
        None
    }
}

/// Does what would have been done without us (G4).
///
/// # Safety
///
/// - Called by a signal handler, with its own arguments.
unsafe fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let index = if signal == SIGNALS[0] { 0 } else { 1 };
    // SAFETY: G5: stored before the handler was installed.
    let previous = unsafe { *PREVIOUS[index].load(Ordering::Acquire) };
    // SAFETY: as for the kernel, by the contract of this function.
    let code = unsafe { (*info).si_code };
    match previous.sa_sigaction {
        // The kernel does not let a real fault be ignored: it dies of it as by default.
        libc::SIG_IGN if code <= 0 => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: restores the default action of the signal. Both calls are async-signal-safe.
            unsafe {
                let default = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                libc::sigaction(signal, &raw const default, ptr::null_mut());
                if code <= 0 {
                    // Nothing will run into it again: it was sent.
                    libc::raise(signal);
                }
            }
        }
        function if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed as a handler of this kind.
            unsafe {
                let function = std::mem::transmute::<
                    libc::sighandler_t,
                    extern "C" fn(c_int, *mut siginfo_t, *mut c_void),
                >(function);
                function(signal, info, context); // CAUTION: runs foreign code
            }
        }
        function => {
            // SAFETY: it was installed as a handler of this kind.
            unsafe {
                let function = std::mem::transmute::<libc::sighandler_t, extern "C" fn(c_int)>(function);
                function(signal); // CAUTION: runs foreign code
            }
        }
    }
}

/// The stack that a thread's signal handlers run on (G3), where nobody else gave it one.
#[derive(Debug, Default)]
pub(crate) struct SignalStack {
    /// The whole mapping, from its guard page. `None` if the thread has a signal stack of its own.
    mapping: Cell<Option<ptr::NonNull<u8>>>,
}

impl SignalStack {
    /// Room for our report, and for the handlers before ours, which may print backtraces.
    const SIZE: usize = 64 << 10;

    pub(crate) const fn none() -> SignalStack {
        SignalStack {
            mapping: Cell::new(None),
        }
    }

    /// Gives the calling thread a signal stack if it has none. Without memory for one it stays as it
    /// is: an overflow then kills the process without a word.
    pub(crate) fn provide(&self) {
        if self.mapping.get().is_some() || has_signal_stack() {
            return;
        }
        let guard = super::page_size();
        let Ok(mapping) = slab::map(guard + SignalStack::SIZE) else {
            return;
        };
        // SAFETY: the mapping is new, and large enough; it is unmapped after it was taken off (`withdraw`).
        unsafe {
            libc::mprotect(mapping.as_ptr().cast(), guard, libc::PROT_NONE);
            let stack = libc::stack_t {
                ss_sp: mapping.as_ptr().add(guard).cast(),
                ss_flags: 0,
                ss_size: SignalStack::SIZE,
            };
            libc::sigaltstack(&raw const stack, ptr::null_mut());
        }
        self.mapping.set(Some(mapping));
    }

    /// Takes the signal stack off the calling thread, which ends.
    pub(crate) fn withdraw(&self) {
        let Some(mapping) = self.mapping.take() else {
            return;
        };
        let guard = super::page_size();
        let current = signal_stack();
        // Somebody may have put another in its place.
        let is_ours = current.is_ok_and(|stack| stack.ss_sp == mapping.as_ptr().wrapping_add(guard).cast());
        // SAFETY: the mapping is ours alone, and after the first call no signal handler uses it. If the
        // first call fails, a handler is running on it, and it is left.
        unsafe {
            if is_ours {
                let mut none = MaybeUninit::<libc::stack_t>::zeroed().assume_init();
                none.ss_flags = libc::SS_DISABLE;
                none.ss_size = SignalStack::SIZE; // macOS looks at it even here
                if libc::sigaltstack(&raw const none, ptr::null_mut()) != 0 {
                    return;
                }
            }
            libc::munmap(mapping.as_ptr().cast(), guard + SignalStack::SIZE);
        }
    }
}

fn signal_stack() -> io::Result<libc::stack_t> {
    // SAFETY: zeroes are a valid `stack_t`; the call fills it in.
    unsafe {
        let mut stack = MaybeUninit::<libc::stack_t>::zeroed().assume_init();
        match libc::sigaltstack(ptr::null(), &raw mut stack) {
            0 => Ok(stack),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn has_signal_stack() -> bool {
    signal_stack().is_ok_and(|stack| stack.ss_flags & libc::SS_DISABLE == 0)
}
