//! Tells AddressSanitizer of every switch: on which stack the thread goes on, and where that stack's fake
//! stack is.
//!
//! What it does not know, it gets wrong: it takes a stack switch for a frame of gigabytes, so a panic leaves
//! marks of dead frames behind, and sound code is reported. (It keeps address-taken locals on a *fake stack*,
//! one for each stack, to find uses after return.)
//!
//! ```text
//!   leaves                                   arrives
//!     leave: start_switch_fiber ── switch ──►  the first time: enter ─┐
//!            (its fake stack is kept in        else:          arrive ─┴► finish_switch_fiber
//!             its frame)                                                 (its own fake stack is back)
//!
//!   leaves for good
//!     leave_for_good: keeps its fake stack, since what it sends may stand there (P1);
//!     bury: frees it when the next one ends, as the stack itself (`ThreadState::retire`)
//! ```
//!
//! The sanitizer's functions are looked up as weak symbols, so a program that has the feature and is not
//! built with the sanitizer links, and runs as without it.

#[cfg(all(
    feature = "asan",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod imp {
    use std::arch::asm;
    use std::cell::Cell;
    use std::ffi::c_void;
    use std::ptr;

    use crate::backend::{self, SavedContext};
    use crate::stack::Around;
    use crate::thread::ThreadState;

    type StartSwitch = unsafe extern "C" fn(save: *mut *mut c_void, bottom: *const c_void, size: usize);
    type FinishSwitch =
        unsafe extern "C" fn(fake: *mut c_void, bottom_before: *mut *const c_void, size_before: *mut usize);
    type HandleNoReturn = unsafe extern "C" fn();
    type CurrentFakeStack = unsafe extern "C" fn() -> *mut c_void;
    type AddressInFakeStack = unsafe extern "C" fn(
        fake: *mut c_void,
        address: *mut c_void,
        start: *mut *mut c_void,
        end: *mut *mut c_void,
    ) -> *mut c_void;

    /// A function of the sanitizer; `None` if the program is built without it.
    macro_rules! function {
        ($name:literal as $kind:ty) => {{
            let address: *const ();
            // SAFETY: it reads a word that the linker wrote. The function of that name has that type.
            unsafe {
                #[cfg(target_arch = "x86_64")]
                asm!(
                    concat!(".weak ", $name),
                    concat!("mov {}, qword ptr [rip + ", $name, "@GOTPCREL]"),
                    out(reg) address,
                    options(pure, readonly, nostack, preserves_flags)
                );
                #[cfg(target_arch = "aarch64")]
                asm!(
                    concat!(".weak ", $name),
                    concat!("adrp {0}, :got:", $name),
                    concat!("ldr {0}, [{0}, :got_lo12:", $name, "]"),
                    out(reg) address,
                    options(pure, readonly, nostack, preserves_flags)
                );
                std::mem::transmute::<*const (), Option<$kind>>(address)
            }
        }};
    }

    fn start_switch() -> Option<StartSwitch> {
        function!("__sanitizer_start_switch_fiber" as StartSwitch)
    }

    fn finish_switch() -> Option<FinishSwitch> {
        function!("__sanitizer_finish_switch_fiber" as FinishSwitch)
    }

    /// Whether the program is built with the sanitizer.
    #[cfg(test)]
    pub(crate) fn is_present() -> bool {
        start_switch().is_some()
    }

    /// The lowest address of a stack, and its length.
    type Bounds = (*const c_void, usize);

    /// What is known of a thread.
    pub(crate) struct Fibers {
        /// The thread's own stack, known when it is left for the first time.
        own: Cell<Bounds>,
        /// The fake stack of the greenlet that finished last; null if there is none.
        finished: Cell<*mut c_void>,
    }

    impl Fibers {
        pub(crate) const fn new() -> Fibers {
            Fibers {
                own: Cell::new((ptr::null(), 0)),
                finished: Cell::new(ptr::null_mut()),
            }
        }

        /// Frees the fake stack of the greenlet that finished last.
        pub(crate) fn bury(&self) {
            let finished = self.finished.replace(ptr::null_mut());
            let (Some(start), Some(finish), false) = (start_switch(), finish_switch(), finished.is_null())
            else {
                return;
            };
            let mut fake = ptr::null_mut();
            let (mut bottom, mut size) = (ptr::null(), 0);
            // Only the current one can be freed. So it is made the current one, by two switches to where we are.
            // SAFETY: each start has its finish, nothing runs in between, and it ends as it began. Nobody
            // else has the finished one's.
            unsafe {
                start(&raw mut fake, ptr::null(), 0);
                finish(finished, &raw mut bottom, &raw mut size);
                start(ptr::null_mut(), bottom, size);
                finish(fake, ptr::null_mut(), ptr::null_mut());
            }
        }
    }

    /// The bounds of the stack that a resume point is on.
    fn bounds(to: *const u8) -> Bounds {
        match Around::of(to).map(Around::pages) {
            Some((start, len)) => (start.cast_const().cast(), len),
            None => ThreadState::current().fibers.own.get(),
        }
    }

    /// What a stack that was left needs when it is come back to.
    pub(crate) struct Left(*mut c_void);

    /// Says that the stack whose context is `own` is left for another, or that control stays there.
    #[inline]
    pub(crate) fn leave_seat(own: *const SavedContext, to: *const SavedContext) -> Left {
        if ptr::eq(own, to) {
            return leave(backend::stack_pointer());
        }
        // SAFETY: both sides of a switch have their seats.
        leave(unsafe { (*to).sp.get() })
    }

    /// Says that this stack is left for the one that a resume point is on.
    pub(crate) fn leave(to: *const u8) -> Left {
        let mut fake = ptr::null_mut();
        if let Some(start) = start_switch() {
            let (bottom, size) = bounds(to);
            // SAFETY: the switch follows, and `arrive` or `enter` is the first thing on the other side.
            unsafe { start(&raw mut fake, bottom, size) };
        }
        Left(fake)
    }

    /// Says that a stack has been come back to.
    #[inline]
    pub(crate) fn arrive(left: Left) {
        if let Some(finish) = finish_switch() {
            // SAFETY: the other side has started it; the fake stack is that of this stack.
            unsafe { finish(left.0, ptr::null_mut(), ptr::null_mut()) };
        }
    }

    /// Says that a fresh stack has been entered.
    pub(crate) fn enter() {
        let Some(finish) = finish_switch() else { return };
        let (mut bottom, mut size) = (ptr::null(), 0);
        // SAFETY: the other side has started it; a fresh stack has no fake stack yet.
        unsafe { finish(ptr::null_mut(), &raw mut bottom, &raw mut size) };
        let own = &ThreadState::current().fibers.own;
        if own.get().1 == 0 {
            own.set((bottom, size)); // the first switch of a thread leaves its own stack for a fresh one
        }
    }

    /// Says that this stack is left for good for the one that a resume point is on.
    pub(crate) fn leave_for_good(to: *const u8) {
        let (Some(start), Some(handle_no_return)) = (
            start_switch(),
            function!("__asan_handle_no_return" as HandleNoReturn),
        ) else {
            return;
        };
        let (bottom, size) = bounds(to);
        let fibers = &ThreadState::current().fibers;
        fibers.bury();
        // SAFETY: the frames that stand on this stack are never returned to: its next user is to find no
        // marks of them. Then as in `leave_for`.
        unsafe {
            handle_no_return();
            start(fibers.finished.as_ptr(), bottom, size);
        }
    }

    /// Where on the stack the frame stands that has a local at `address`, which may be on the fake stack.
    pub(crate) fn on_stack(address: *const u8) -> *const u8 {
        let (Some(current), Some(find)) = (
            function!("__asan_get_current_fake_stack" as CurrentFakeStack),
            function!("__asan_addr_is_in_fake_stack" as AddressInFakeStack),
        ) else {
            return address;
        };
        // SAFETY: both only look; null asks for nothing more.
        let found = unsafe {
            let fake = current();
            if fake.is_null() {
                return address;
            }
            find(fake, address.cast_mut().cast(), ptr::null_mut(), ptr::null_mut())
        };
        if found.is_null() { address } else { found.cast() }
    }
}

/// Does nothing: the feature is off, or the sanitizer is not looked for here. Not even calls are left.
#[cfg(not(all(
    feature = "asan",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
mod imp {
    #![forbid(unsafe_code)]

    pub(crate) struct Fibers;

    impl Fibers {
        pub(crate) const fn new() -> Fibers {
            Fibers
        }

        #[inline(always)]
        pub(crate) fn bury(&self) {}
    }

    pub(crate) struct Left;

    #[inline(always)]
    pub(crate) fn leave_seat(
        _own: *const crate::backend::SavedContext,
        _to: *const crate::backend::SavedContext,
    ) -> Left {
        Left
    }

    #[inline(always)]
    pub(crate) fn leave(_to: *const u8) -> Left {
        Left
    }

    #[inline(always)]
    pub(crate) fn arrive(_left: Left) {}

    #[inline(always)]
    pub(crate) fn enter() {}

    #[inline(always)]
    pub(crate) fn leave_for_good(_to: *const u8) {}

    #[inline(always)]
    pub(crate) fn on_stack(address: *const u8) -> *const u8 {
        address
    }
}

#[cfg(all(
    test,
    feature = "asan",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
pub(crate) use imp::is_present;
pub(crate) use imp::{Fibers, arrive, enter, leave, leave_for_good, leave_seat, on_stack};
