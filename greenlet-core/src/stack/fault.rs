//! Tells a touched guard page from every other fault.
//!
//! The first stack of the process installs a handler for `SIGSEGV` and `SIGBUS`. If the address is
//! in a guard page, the handler calls the observer, which reports an overflow and ends the process.
//! Every other fault goes to the action that was installed before.
//!
//! ```text
//!   fault ──► on_fault (on the signal stack) ── address in a guard? ──yes──► observer: overflow?
//!                                                     │no                        │no      │yes
//!                                                     ▼                          │        ▼
//!                                            the previous action ◄───────────────┘  report, abort
//! ```
//!
//! # Invariants
//!
//! - **[signal-safe]** The handler interrupts a thread between any two instructions. So it
//!   allocates nothing, takes no lock, and calls only async-signal-safe functions. Of slabs it only
//!   reads the list [slab-list].
//! - **[guard-first]** It uses thread-locals only after it has found the address in a guard page. A
//!   fault in a thread without greenlets then costs that thread nothing.
//! - **[signal-stack]** It runs on a signal stack, because an overflowed stack has no room. std
//!   gives its threads one, and [`SignalStack`] gives one to all others.
//! - **[passed-on]** Any other fault reaches the previous action, with the same arguments and
//!   signal mask. A default action is restored instead, and the instruction runs again.
//! - **[previous-first]** The previous action is stored before the handler is installed.

use std::cell::RefCell;
use std::mem;
use std::ptr;
use std::sync::OnceLock;

use libc::{c_int, siginfo_t};

use super::{Region, page_size, slab};

/// The touched guard page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GuardHit {
    /// The base of the stack above the guard.
    pub(crate) base: *mut u8,
    /// The lowest usable address of that stack.
    pub(super) limit: usize,
    /// The usable size of that stack.
    pub(crate) size: usize,
    /// `true` if the thread's stack pointer was in the stack or its guard. Where the stack pointer
    /// is unknown: `true` if the touched address is right below the limit.
    pub(crate) is_on_its_stack: bool,
}

/// Receives every touched guard page, in the signal handler [signal-safe]. It ends the process if
/// the thread was running on that stack, and returns for a stray pointer.
pub(crate) type Observer = fn(&GuardHit);

static OBSERVER: OnceLock<Observer> = OnceLock::new();

/// The signals that a touched guard page can raise.
const SIGNALS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// The actions before our handler [previous-first].
static PREVIOUS: [OnceLock<libc::sigaction>; 2] = [const { OnceLock::new() }; 2];

/// Actions that another thread installed between our look at the previous ones and our own.
static REPLACED: [OnceLock<libc::sigaction>; 2] = [const { OnceLock::new() }; 2];

/// Installs the handler, once for the process.
pub(crate) fn install(observer: Observer) {
    OBSERVER.get_or_init(|| {
        (0..SIGNALS.len()).for_each(install_for);
        observer
    });
}

fn install_for(index: usize) {
    // SAFETY: no new action is given.
    let Some(previous) = (unsafe { change_action(SIGNALS[index], None) }) else {
        return; // not a signal of this system
    };
    let _ = PREVIOUS[index].set(previous);
    let mut action = default_action();
    action.sa_sigaction = on_fault as *const () as usize;
    action.sa_mask = previous.sa_mask; // [passed-on]
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | (previous.sa_flags & libc::SA_NODEFER);
    // SAFETY: `on_fault` has the arguments that SA_SIGINFO promises, and it obeys [signal-safe].
    let replaced = unsafe { change_action(SIGNALS[index], Some(&action)) };
    if let Some(replaced) = replaced.filter(|it| it.sa_sigaction != previous.sa_sigaction) {
        let _ = REPLACED[index].set(replaced);
    }
}

/// Sets the action of a signal if a new one is given. Returns the old one, or `None` if the system
/// refused.
///
/// # Safety
///
/// - A handler in `new` has the arguments that its flags say, and calls only async-signal-safe
///   functions.
unsafe fn change_action(signal: c_int, new: Option<&libc::sigaction>) -> Option<libc::sigaction> {
    let new = new.map_or(ptr::null(), ptr::from_ref);
    let mut old = default_action();
    // SAFETY: both pointers are valid or null. The caller vouches for the handler.
    let status = unsafe { libc::sigaction(signal, new, &raw mut old) };
    (status == 0).then_some(old)
}

fn default_action() -> libc::sigaction {
    const { assert!(libc::SIG_DFL == 0) };
    // SAFETY: zeroes are a valid `sigaction`: no flags, an empty mask, and the default action.
    unsafe { mem::zeroed() }
}

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "arm")
))]
mod context {
    pub(super) type Context = libc::ucontext_t;

    /// Returns the stack pointer at the fault.
    pub(super) fn stack_pointer(context: &Context) -> Option<usize> {
        let registers = &context.uc_mcontext;
        #[cfg(target_arch = "x86_64")]
        let pointer = registers.gregs[libc::REG_RSP as usize];
        #[cfg(target_arch = "aarch64")]
        let pointer = registers.sp;
        #[cfg(target_arch = "arm")]
        let pointer = registers.arm_sp;
        Some(pointer as usize)
    }
}
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "arm")
)))]
mod context {
    pub(super) type Context = libc::c_void;

    /// Returns nothing, because the layout of the context is not known here.
    pub(super) fn stack_pointer(_context: &Context) -> Option<usize> {
        None
    }
}
use context::{Context, stack_pointer};

/// The handler. The kernel calls it with valid arguments, because it is installed with SA_SIGINFO.
extern "C" fn on_fault(signal: c_int, info: &mut siginfo_t, context: &mut Context) {
    /// How much a switch pushes at most, in bytes.
    const PUSHED_BY_SWITCH: usize = 128;

    // SAFETY: the kernel fills in an address for both signals.
    let address = unsafe { info.si_addr() }.addr();
    // Without a positive code, a process sent the signal, and there is no address.
    let guard = slab::guard_at(address).filter(|_| info.si_code > 0);
    if let (Some(mut hit), Some(observer)) = (guard, OBSERVER.get()) {
        hit.is_on_its_stack = match stack_pointer(context) {
            Some(pointer) => (hit.limit - page_size()..=hit.base.addr()).contains(&pointer),
            None => hit.limit - address <= PUSHED_BY_SWITCH,
        };
        observer(&hit);
    }
    pass_on(signal, info, context);
}

/// Does what the previous action would have done [passed-on].
fn pass_on(signal: c_int, info: &mut siginfo_t, context: &mut Context) {
    let index = usize::from(signal != SIGNALS[0]);
    let previous = REPLACED[index].get().or(PREVIOUS[index].get());
    let (handler, flags) = previous.map_or((libc::SIG_DFL, 0), |it| (it.sa_sigaction, it.sa_flags));
    let was_sent = info.si_code <= 0; // and not caused by an instruction
    match handler {
        // The kernel never ignores a real fault: it is as fatal as by default.
        libc::SIG_IGN if was_sent => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the default action has no handler.
            unsafe { change_action(signal, Some(&default_action())) };
            if was_sent {
                // SAFETY: `raise` is async-signal-safe. No instruction will raise the signal again.
                unsafe { libc::raise(signal) };
            }
        }
        handler if flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(c_int, &mut siginfo_t, &mut Context);
            // SAFETY: it was installed as a handler with these arguments.
            let handler = unsafe { mem::transmute::<libc::sighandler_t, Handler>(handler) };
            handler(signal, info, context); // CAUTION: runs arbitrary user code
        }
        handler => {
            // SAFETY: it was installed as a handler with this argument.
            let handler = unsafe { mem::transmute::<libc::sighandler_t, extern "C" fn(c_int)>(handler) };
            handler(signal); // CAUTION: runs arbitrary user code
        }
    }
}

/// The signal stack of a thread that had none [signal-stack].
#[derive(Debug)]
pub(crate) struct SignalStack {
    /// The whole mapping, with its guard. `None` if the thread has a signal stack from elsewhere.
    mapping: RefCell<Option<Region>>,
}

impl SignalStack {
    /// Enough for our report, and for a previous handler that prints a backtrace.
    const SIZE: usize = 64 << 10;

    pub(crate) const fn none() -> SignalStack {
        SignalStack {
            mapping: RefCell::new(None),
        }
    }

    /// Gives the calling thread a signal stack if it has none.
    ///
    /// If the system refuses the memory, an overflow kills the process without a report.
    pub(crate) fn provide(&self) {
        let mut mapping = self.mapping.borrow_mut();
        if mapping.is_some() || current_signal_stack().is_some_and(|it| it.ss_flags & libc::SS_DISABLE == 0) {
            return;
        }
        let Ok(region) = Region::map(page_size() + SignalStack::SIZE) else {
            return;
        };
        let _ = region.protect_page(0); // without a guard it is still better than none
        // SAFETY: the region is new, and `withdraw` disables the signal stack before it unmaps it.
        unsafe { change_signal_stack(Some(SignalStack::above_guard(&region, 0))) };
        *mapping = Some(region);
    }

    /// Takes the signal stack from the calling thread, which ends.
    pub(crate) fn withdraw(&self) {
        let Some(region) = self.mapping.borrow_mut().take() else {
            return;
        };
        // The size must be right even here: macOS checks it.
        let disabled = SignalStack::above_guard(&region, libc::SS_DISABLE);
        // User code may have set another one.
        let is_ours = current_signal_stack().is_some_and(|it| it.ss_sp == disabled.ss_sp);
        // SAFETY: no new signal stack is set.
        if is_ours && unsafe { change_signal_stack(Some(disabled)) }.is_none() {
            return; // a handler is running on it, so it has to stay
        }
        region.unmap();
    }

    fn above_guard(region: &Region, flags: c_int) -> libc::stack_t {
        libc::stack_t {
            ss_sp: region.start().pointer().as_ptr().wrapping_add(page_size()).cast(),
            ss_flags: flags,
            ss_size: SignalStack::SIZE,
        }
    }
}

fn current_signal_stack() -> Option<libc::stack_t> {
    // SAFETY: no new signal stack is set.
    unsafe { change_signal_stack(None) }
}

/// Sets the signal stack of the calling thread if a new one is given. Returns the old one, or
/// `None` if the system refused.
///
/// # Safety
///
/// - Nothing else uses the memory of `new` until another call replaces it.
unsafe fn change_signal_stack(new: Option<libc::stack_t>) -> Option<libc::stack_t> {
    let new = new.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: zeroes are a valid `stack_t`.
    let mut old: libc::stack_t = unsafe { mem::zeroed() };
    // SAFETY: both pointers are valid or null. The caller vouches for the memory.
    let status = unsafe { libc::sigaltstack(new, &raw mut old) };
    (status == 0).then_some(old)
}
