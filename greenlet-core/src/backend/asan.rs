//! Tells AddressSanitizer about every switch: which stack the thread runs on next, and its fake
//! stack. (The sanitizer keeps locals whose address is taken on a *fake stack*, one for each stack,
//! to find uses after a return.)
//!
//! ```text
//!   the side that switches away                 the side that is resumed
//!     leave: start_switch_fiber ─── switch ───►   on a new stack: enter  ─┐
//!            (its fake stack is kept in           otherwise:      arrive ─┴► finish_switch_fiber
//!             its frame)                                                    (restores its own fake stack)
//!
//!   a greenlet that finishes
//!     leave_for_good: keeps its fake stack in `Fibers`, because the value it sends may be there;
//!     release_finished: frees it when the next greenlet finishes
//! ```
//!
//! The sanitizer's functions are weak symbols. A program that enables the feature but is not built
//! with the sanitizer links, and behaves as without the feature.

/// The lowest address and the length of a stack; `None` for the thread's own stack.
pub(crate) type Bounds = Option<(*const u8, usize)>;

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

    use super::Bounds;

    type StartSwitch = unsafe extern "C" fn(save: *mut *mut c_void, bottom: *const c_void, size: usize);
    type FinishSwitch =
        unsafe extern "C" fn(fake: *mut c_void, bottom_before: *mut *const c_void, size_before: *mut usize);
    // These two have no precondition.
    type HandleNoReturn = extern "C" fn();
    type CurrentFakeStack = extern "C" fn() -> *mut c_void;
    type AddressInFakeStack = unsafe extern "C" fn(
        fake: *mut c_void,
        address: *mut c_void,
        start: *mut *mut c_void,
        end: *mut *mut c_void,
    ) -> *mut c_void;

    /// Looks up a function of the sanitizer. `None` if the program is built without it.
    macro_rules! function {
        ($name:literal as $kind:ty) => {{
            let address: *const ();
            // SAFETY: the instructions read one word, which the linker or the loader has written.
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
            }
            // SAFETY: the word is null or the address of the sanitizer's function of that name,
            // which has this type.
            unsafe { std::mem::transmute::<*const (), Option<$kind>>(address) }
        }};
    }

    fn start_switch() -> Option<StartSwitch> {
        function!("__sanitizer_start_switch_fiber" as StartSwitch)
    }

    fn finish_switch() -> Option<FinishSwitch> {
        function!("__sanitizer_finish_switch_fiber" as FinishSwitch)
    }

    /// Returns `true` if the program is built with the sanitizer.
    #[cfg(test)]
    pub(crate) fn is_present() -> bool {
        start_switch().is_some()
    }

    /// What the sanitizer's functions need to know about a thread.
    pub(crate) struct Fibers {
        /// The lowest address and the length of the thread's own stack. The length is 0 until the
        /// thread has left that stack for the first time.
        own: Cell<(*const c_void, usize)>,
        /// The fake stack of the greenlet that finished last, or null.
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
        pub(crate) fn release_finished(&self) {
            let finished = self.finished.replace(ptr::null_mut());
            let (Some(start), Some(finish), false) = (start_switch(), finish_switch(), finished.is_null())
            else {
                return;
            };
            let mut own = ptr::null_mut();
            let (mut bottom, mut size) = (ptr::null(), 0);
            // The sanitizer frees only a fake stack that is current. So the finished one becomes
            // current, by two pretended switches that stay on this stack. All four calls are in
            // this frame: the frame of a helper would be on the fake stack that is freed.
            // SAFETY: `finish` follows, and nothing runs in between. The pointer is that of a
            // local.
            unsafe { start(&raw mut own, ptr::null(), 0) };
            // SAFETY: `start` was called. Only `self` had `finished`. The pointers are of locals.
            unsafe { finish(finished, &raw mut bottom, &raw mut size) };
            // SAFETY: `finish` follows, and nothing runs in between. Null frees the fake stack.
            unsafe { start(ptr::null_mut(), bottom, size) };
            // SAFETY: `start` was called, and `own` is the fake stack of this stack.
            unsafe { finish(own, ptr::null_mut(), ptr::null_mut()) };
        }

        fn resolve(&self, stack: Bounds) -> (*const c_void, usize) {
            stack.map_or(self.own.get(), |(start, len)| (start.cast(), len))
        }
    }

    /// The fake stack of a suspended stack.
    pub(crate) struct Left(*mut c_void);

    /// Announces a switch to another stack.
    #[inline]
    pub(crate) fn leave(fibers: &Fibers, to: impl FnOnce() -> Bounds) -> Left {
        let mut fake = ptr::null_mut();
        if let Some(start) = start_switch() {
            let (bottom, size) = fibers.resolve(to());
            // SAFETY: the switch follows, and the other side first calls `arrive` or `enter`.
            unsafe { start(&raw mut fake, bottom, size) };
        }
        Left(fake)
    }

    /// Announces that a suspended stack has been resumed.
    #[inline]
    pub(crate) fn arrive(left: Left) {
        if let Some(finish) = finish_switch() {
            // SAFETY: the other side called `leave`, and the fake stack is this stack's own.
            unsafe { finish(left.0, ptr::null_mut(), ptr::null_mut()) };
        }
    }

    /// Announces that the thread runs on a new stack.
    pub(crate) fn enter(fibers: &Fibers) {
        let Some(finish) = finish_switch() else { return };
        let (mut bottom, mut size) = (ptr::null(), 0);
        // SAFETY: the other side called `leave`. A new stack has no fake stack yet.
        unsafe { finish(ptr::null_mut(), &raw mut bottom, &raw mut size) };
        if fibers.own.get().1 == 0 {
            // The first switch of a thread leaves its own stack for a new one.
            fibers.own.set((bottom, size));
        }
    }

    /// Announces a switch to another stack. This one is given up.
    ///
    /// The functions that switch after it are always inlined. A frame of their own would leave
    /// marks on this stack, where its next user would find them.
    pub(crate) fn leave_for_good(fibers: &Fibers, to: impl FnOnce() -> Bounds) {
        let (Some(start), Some(handle_no_return)) = (
            start_switch(),
            function!("__asan_handle_no_return" as HandleNoReturn),
        ) else {
            return;
        };
        let (bottom, size) = fibers.resolve(to());
        fibers.release_finished();
        // It removes the marks of this stack's frames.
        handle_no_return();
        // SAFETY: the switch follows, and the other side first calls `arrive` or `enter`.
        unsafe { start(fibers.finished.as_ptr(), bottom, size) };
    }

    /// Returns the address of the frame whose local is at `address`, perhaps on the fake stack.
    pub(crate) fn on_stack(address: *const u8) -> *const u8 {
        let (Some(current), Some(find)) = (
            function!("__asan_get_current_fake_stack" as CurrentFakeStack),
            function!("__asan_addr_is_in_fake_stack" as AddressInFakeStack),
        ) else {
            return address;
        };
        let fake = current();
        if fake.is_null() {
            return address;
        }
        // SAFETY: `fake` is a fake stack. The function only reads; the null pointers ask for
        // nothing more.
        let frame = unsafe { find(fake, address.cast_mut().cast(), ptr::null_mut(), ptr::null_mut()) };
        if frame.is_null() { address } else { frame.cast() }
    }
}

/// Does nothing, and does not call `to`: the feature is off, or this system does not support it.
#[cfg(not(all(
    feature = "asan",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
mod imp {
    #![forbid(unsafe_code)]

    use super::Bounds;

    pub(crate) struct Fibers;

    impl Fibers {
        pub(crate) const fn new() -> Fibers {
            Fibers
        }

        #[inline]
        pub(crate) fn release_finished(&self) {}
    }

    pub(crate) struct Left;

    #[inline]
    pub(crate) fn leave(_fibers: &Fibers, _to: impl FnOnce() -> Bounds) -> Left {
        Left
    }

    #[inline]
    pub(crate) fn arrive(_left: Left) {}

    #[inline]
    pub(crate) fn enter(_fibers: &Fibers) {}

    #[inline]
    pub(crate) fn leave_for_good(_fibers: &Fibers, _to: impl FnOnce() -> Bounds) {}

    #[inline]
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
pub(crate) use imp::{Fibers, arrive, enter, leave, leave_for_good, on_stack};
