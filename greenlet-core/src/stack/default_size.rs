//! The size of a stack where none was asked for: of the build, of the environment, or of the
//! program.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU8, Ordering};

use super::error::StackError;
use super::{Class, MAX_SIZE, MIN_SIZE, Stack};

/// The size of a stack in this build if you ask for none, in bytes: 2 MiB with debug assertions,
/// and 512 KiB without. 256 KiB where addresses are 32 bits wide.
///
/// A stack cannot grow, so the default is generous. It runs what a thread with its 2 MiB runs: in
/// debug builds the frames of the same code are 3 to 20 times as large as in release builds. It
/// costs address space, not memory. [`default_size`] returns the size that is in force.
pub const DEFAULT_SIZE: usize = if cfg!(target_pointer_width = "32") {
    256 << 10
} else if cfg!(debug_assertions) {
    2 << 20
} else {
    512 << 10
};

/// A size that nobody has asked for. No [`Class`] holds it.
pub(crate) const UNSPECIFIED: usize = usize::MAX - 1;

/// Returns a size that somebody asks for, as it is stored beside [`UNSPECIFIED`].
pub(crate) fn explicit(bytes: usize) -> usize {
    match bytes {
        UNSPECIFIED => usize::MAX, // too large in any case
        bytes => bytes,
    }
}

/// The class of the default, or [`UNREAD`].
static IN_FORCE: AtomicU8 = AtomicU8::new(UNREAD);

/// Says that the environment was not read yet. No class has this number.
const UNREAD: u8 = u8::MAX;

/// Returns `true` if a stack has the default size. No stack has it before the environment was read.
#[inline]
pub(crate) fn is_default(stack: &Stack) -> bool {
    stack.class().0 == IN_FORCE.load(Ordering::Relaxed)
}

/// Returns the size that was asked for, or the default.
pub(crate) fn or_default(asked: usize) -> usize {
    match asked {
        UNSPECIFIED => default_size(),
        asked => asked,
    }
}

/// Returns the size of a stack if you ask for none, in bytes.
///
/// It is the size of [`set_default_size`]. Otherwise it is the value of the environment variable
/// `GREENLET_MIN_STACK`, in bytes, as `RUST_MIN_STACK` is for threads. The variable is read once. A
/// number out of range counts as the nearest one in range, and anything else is ignored. Otherwise
/// it is [`DEFAULT_SIZE`].
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::stack;
/// println!("{} KiB", stack::default_size() >> 10);
/// ```
pub fn default_size() -> usize {
    match IN_FORCE.load(Ordering::Relaxed) {
        UNREAD => read_environment(),
        class => Class(class).size(),
    }
}

#[cold]
fn read_environment() -> usize {
    let variable = std::env::var("GREENLET_MIN_STACK").ok();
    // 64 bits also where addresses have 32: the nearest size is taken.
    let wanted = variable.and_then(|bytes| bytes.parse::<u64>().ok());
    let nearest =
        |bytes: u64| usize::try_from(bytes).map_or(MAX_SIZE, |bytes| bytes.clamp(MIN_SIZE, MAX_SIZE));
    let size = wanted.map_or(DEFAULT_SIZE, nearest);
    let class = Class::holding(size).expect("the size is in range");
    // Another thread may have set a size meanwhile.
    let stored = IN_FORCE.compare_exchange(UNREAD, class.0, Ordering::Relaxed, Ordering::Relaxed);
    stored.map_or_else(|earlier| Class(earlier).size(), |_| class.size())
}

/// Sets the size of a stack if you ask for none, for the whole process, in bytes. It is rounded up
/// to a power of two.
///
/// Call it at the start of `main`: greenlets and generators that have their stack already keep it.
///
/// # Errors
///
/// Returns an error if the size is below [`MIN_SIZE`] or above [`MAX_SIZE`].
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, getcurrent, stack};
/// stack::set_default_size(4 << 20)?;
/// let size = Greenlet::new(|(): ()| Ok(getcurrent().stack_usage().unwrap().size));
/// assert_eq!(size.switch::<usize>(())?, 4 << 20);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn set_default_size(bytes: usize) -> Result<(), StackError> {
    let class = Class::holding(bytes)?;
    IN_FORCE.store(class.0, Ordering::Relaxed);
    Ok(())
}
