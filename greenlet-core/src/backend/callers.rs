//! Calls a function whose backtraces end at the call.
//!
//! `anyhow::Error` captures a backtrace when it is created. An error that is created in advance, and
//! reused, must not show the calls that led to its creation.

use std::arch::asm;

/// Calls `f`, with backtraces that end at this call. If `f` panics, the process aborts.
#[inline(never)]
pub(crate) fn without_callers<T, F: FnOnce() -> T>(f: F) -> T {
    struct Call<F, T> {
        f: Option<F>,
        result: Option<T>,
    }

    /// # Safety
    ///
    /// - `call` points to a value that nobody uses meanwhile.
    unsafe extern "C" fn run<T, F: FnOnce() -> T>(call: *mut Call<F, T>) {
        // SAFETY: the caller passes such a pointer.
        let call = unsafe { &mut *call };
        call.result = call.f.take().map(|f| f());
    }

    let mut call = Call {
        f: Some(f),
        result: None,
    };
    // SAFETY: the assembly calls `run` with the pointer, as a C function would. `call` lives, and is
    // not used meanwhile.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            concat!("call ", symbol!("without_callers")),
            in("rdi") &raw mut call,
            in("rsi") run::<T, F> as unsafe extern "C" fn(_),
            clobber_abi("sysv64"),
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            concat!("bl ", symbol!("without_callers")),
            in("x0") &raw mut call,
            in("x1") run::<T, F> as unsafe extern "C" fn(_),
            clobber_abi("C"),
        );
    }
    call.result.expect("the function was called")
}

/// Defines the function that the assembly above calls. It calls its second argument with the first.
macro_rules! define {
    ($return_address:literal, $($instruction:literal),+) => {
        std::arch::global_asm!(
            ".text",
            ".balign 16",
            concat!(".globl ", symbol!("without_callers")),
            concat!(".hidden ", symbol!("without_callers")),
            concat!(".type ", symbol!("without_callers"), ", @function"),
            concat!(symbol!("without_callers"), ":"),
            ".cfi_startproc",
            concat!(".cfi_undefined ", $return_address), // a backtrace ends here
            $($instruction,)+
            ".cfi_endproc",
            concat!(".size ", symbol!("without_callers"), ", . - ", symbol!("without_callers")),
        );
    };
}

#[cfg(target_arch = "x86_64")]
define!("rip", "push rbp", "call rsi", "pop rbp", "ret"); // `push` aligns the stack
#[cfg(target_arch = "aarch64")]
define!(
    "x30",
    "stp x29, x30, [sp, #-16]!",
    "blr x1",
    "ldp x29, x30, [sp], #16",
    "ret"
);
