//! AddressSanitizer finds bugs inside greenlets and names their places. Each bug ends a process, so
//! it runs in a child. The rest of the suite, run with the sanitizer, shows that there are no false
//! reports.

use std::cell::Cell;
use std::hint::black_box;
use std::io::Write;
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicPtr, Ordering};

use anyhow::Result;

use crate::backend::asan;
use crate::tests::this_binary;
use crate::{Greenlet, getparent};

const CHILD: &str = "GREENLET_TEST_ASAN_CHILD";

/// Runs `bug` in a child, and returns the output of the sanitizer. Returns `None` in a build
/// without it.
fn report_of(test: &str, bug: impl FnOnce()) -> Option<String> {
    if !asan::is_present() {
        // Not `eprintln!`: the harness hides its output when a test passes.
        writeln!(
            std::io::stderr(),
            "left out: {test}: not built with AddressSanitizer"
        )
        .unwrap();
        return None;
    }
    if std::env::var_os(CHILD).is_some() {
        bug();
        panic!("nobody has noticed");
    }
    let output = this_binary()
        .args(["--exact", &format!("tests::asan::{test}"), "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(!output.status.success());
    Some(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn up(number: usize) -> Result<usize> {
    getparent().unwrap().switch(number)
}

#[inline(never)]
fn writes_behind_an_array(index: usize) {
    let mut array = black_box([0_u8; 24]);
    let address = (&raw mut array).cast::<u8>().wrapping_add(black_box(index));
    // SAFETY: none: 24 is outside the array, and the sanitizer must report it.
    unsafe { address.write_volatile(1) };
    black_box(&array);
}

#[test]
fn an_overrun_on_the_stack_of_a_greenlet_is_reported() {
    let report = report_of("an_overrun_on_the_stack_of_a_greenlet_is_reported", || {
        let child = Greenlet::new(|mut index: usize| -> Result<()> {
            loop {
                writes_behind_an_array(index);
                index = up(index)?;
            }
        });
        for index in [0_usize, 23, 24] {
            child.switch::<usize>(index).unwrap();
        }
    });
    let Some(report) = report else { return };
    assert!(
        report.contains("AddressSanitizer: stack-buffer-overflow"),
        "{report}"
    );
    assert!(report.contains("writes_behind_an_array"), "{report}");
    // The report names the variable, and the calls down to the first frame of the greenlet.
    assert!(report.contains("'array'"), "{report}");
    assert!(report.contains("first_frame::run"), "{report}");
}

#[test]
fn a_use_after_free_in_a_greenlet_is_reported() {
    let report = report_of("a_use_after_free_in_a_greenlet_is_reported", || {
        let child = Greenlet::new(|number: usize| {
            let value = Box::into_raw(Box::new(number));
            let number = up(number)?;
            // SAFETY: it comes from a box.
            drop(unsafe { Box::from_raw(value) });
            // SAFETY: none: this reads freed memory, and the sanitizer must report it.
            Ok(unsafe { black_box(value).read_volatile() } + number)
        });
        for number in [1_usize, 2] {
            child.switch::<usize>(number).unwrap();
        }
    });
    let Some(report) = report else { return };
    assert!(
        report.contains("AddressSanitizer: heap-use-after-free"),
        "{report}"
    );
    assert!(
        report.contains("a_use_after_free_in_a_greenlet_is_reported"),
        "{report}"
    );
}

/// (Not `black_box`: it is inline assembly, and a function with inline assembly stays on the real
/// stack.)
#[inline(never)]
fn leaves_a_local() -> *const u8 {
    static PLACE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
    let mut local = 7;
    PLACE.store(&raw mut local, Ordering::Relaxed);
    PLACE.load(Ordering::Relaxed)
}

// Each greenlet has a fake stack of its own, which is restored when the greenlet is resumed.
#[test]
fn a_use_after_return_in_a_greenlet_is_reported() {
    let report = report_of("a_use_after_return_in_a_greenlet_is_reported", || {
        let child = Greenlet::new(|number: usize| {
            let local = leaves_a_local();
            let number = up(number)?;
            // SAFETY: none: the frame is gone. The sanitizer must stop the read.
            Ok(number + usize::from(unsafe { local.read_volatile() }))
        });
        for number in [1_usize, 2] {
            child.switch::<usize>(number).unwrap();
        }
    });
    let Some(report) = report else { return };
    assert!(
        report.contains("AddressSanitizer: stack-use-after-return"),
        "{report}"
    );
    assert!(report.contains("leaves_a_local"), "{report}");
}

// Frames that a panic skips, or that a greenlet leaves at its end, do not affect the next greenlet
// on the stack.
#[test]
fn abandoned_frames_do_not_affect_later_greenlets() {
    #[inline(never)]
    fn panics_deep(depth: usize) -> usize {
        let frame = black_box([depth; 64]);
        if depth == 0 {
            std::panic::resume_unwind(Box::new("a panic"));
        }
        panics_deep(depth - 1) + black_box(&frame)[0]
    }
    #[inline(never)]
    fn writes_all(size: usize) {
        // One frame covers all of them. It has redzones only at its ends.
        let mut frame = black_box([0_u8; 30_000]);
        frame[..size].fill(1);
        black_box(&frame);
    }
    let seen = Rc::new(Cell::new(0));
    for _ in 0..20 {
        let child = Greenlet::new(|depth: usize| Ok(panics_deep(depth)));
        let caught =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| child.switch::<usize>(30_usize)));
        assert!(caught.is_err() && child.is_dead());
        let count = Rc::clone(&seen);
        let child = Greenlet::new(move |size: usize| {
            writes_all(size);
            count.set(count.get() + 1);
            Ok(size)
        });
        assert_eq!(child.switch::<usize>(30_000_usize).unwrap(), 30_000);
    }
    assert_eq!(seen.get(), 20);
}

// A local variable may be on the sanitizer's fake stack. The usage is that of the real stack.
#[test]
fn the_usage_of_the_running_greenlet_is_that_of_its_stack() {
    let child = Greenlet::new(|(): ()| Ok(crate::getcurrent().stack_usage().unwrap()));
    let usage = child.switch::<crate::StackUsage>(()).unwrap();
    assert!(usage.used > 0 && usage.used < usage.size, "{usage:?}");
}
