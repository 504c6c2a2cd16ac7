//! The contract of a backend, without greenlets: a switch carries two words there and two words
//! back, and changes nothing else.

use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::ptr;

use crate::backend::asan;
use crate::backend::{self, SavedContext, Word};
use crate::stack::{self, Stack, StackCache};
use crate::thread::ThreadState;

/// A minimal coroutine: a stack, and the resume points of the stack and of its caller. It is boxed
/// so that it does not move.
struct Coroutine {
    stack: Cell<Option<Stack>>,
    inside: SavedContext,
    outside: SavedContext,
    body: RefCell<Option<Body>>,
    is_done: Cell<bool>,
}

type Body = Box<dyn FnOnce(&Coroutine)>;

/// The entry function: passes the words of the first switch to the body.
///
/// # Safety
///
/// - As for any [`backend::Entry`]. The first word points to the coroutine that is resumed.
unsafe extern "C" fn enter_coroutine(word: *const (), data: Word, own: *const SavedContext) -> ! {
    asan::enter(&ThreadState::current().fibers);
    assert_eq!(word.addr(), 1);
    // SAFETY: `resume` initialises the word.
    let coroutine = unsafe { data.assume_init() }.cast_const().cast::<Coroutine>();
    // SAFETY: `resume` passes the coroutine, which outlives its run.
    let coroutine = unsafe { &*coroutine };
    assert!(ptr::eq(own, &coroutine.inside));
    let body = coroutine.body.borrow_mut().take().unwrap();
    body(coroutine);
    coroutine.is_done.set(true);
    asan::leave_for_good(&ThreadState::current().fibers, || {
        stack::bounds_at(coroutine.outside.sp.get())
    });
    // SAFETY: `resume` stored the resume point, and is suspended there [resume-point].
    unsafe { backend::switch_and_exit(&coroutine.outside, ptr::without_provenance(3), Word::uninit()) }
}

impl Coroutine {
    fn new(cache: &mut StackCache, size: usize, body: impl FnOnce(&Coroutine) + 'static) -> Box<Coroutine> {
        let stack = cache.fetch(size).unwrap();
        let inside = SavedContext::new();
        // SAFETY: the stack is new, and the coroutine owns it.
        unsafe { backend::init(stack.base(), enter_coroutine, &inside) };
        Box::new(Coroutine {
            stack: Cell::new(Some(stack)),
            inside,
            outside: SavedContext::new(),
            body: RefCell::new(Some(Box::new(body))),
            is_done: Cell::new(false),
        })
    }

    /// Runs until the next `pause`, or until the end. Returns the word that `pause` passes.
    fn resume(&self) -> usize {
        let word = ptr::without_provenance(1);
        let data = Word::new((&raw const *self).cast_mut().cast());
        let left = asan::leave(&ThreadState::current().fibers, || {
            stack::bounds_at(self.inside.sp.get())
        });
        // SAFETY: `new` or the last `pause` stored the resume point [resume-point]. Only `pause`
        // and the end resume this stack [stack-waits].
        let (own, word, _) =
            unsafe { backend::switch(&self.outside, Location::caller(), &self.inside, word, data) };
        asan::arrive(left);
        assert!(ptr::eq(own, &self.outside));
        word.addr()
    }

    /// Switches back to `resume`, with a word. Called inside the coroutine.
    fn pause(&self, word: usize) {
        // SAFETY: as in `resume`.
        let (own, word, data) = unsafe {
            let word = ptr::without_provenance(word);
            let left = asan::leave(&ThreadState::current().fibers, || {
                stack::bounds_at(self.outside.sp.get())
            });
            let back = backend::switch(
                &self.inside,
                Location::caller(),
                &self.outside,
                word,
                Word::uninit(),
            );
            asan::arrive(left);
            back
        };
        assert!(ptr::eq(own, &self.inside));
        assert_eq!(word.addr(), 1);
        // SAFETY: `resume` passes the coroutine each time.
        let data = unsafe { data.assume_init() };
        assert!(ptr::eq(data.cast_const().cast(), self));
    }

    /// Runs to the end, and gives the stack back.
    fn finish(&self, cache: &mut StackCache) {
        while !self.is_done.get() {
            self.resume();
        }
        cache.give(self.stack.take().unwrap());
    }
}

#[test]
fn a_switch_carries_words_both_ways() {
    let mut cache = StackCache::new();
    let coroutine = Coroutine::new(&mut cache, 64 << 10, |it| {
        it.pause(7);
        it.pause(8);
    });
    assert_eq!(coroutine.resume(), 7);
    assert_eq!(coroutine.resume(), 8);
    assert_eq!(coroutine.resume(), 3); // the end
    assert!(coroutine.is_done.get());
    coroutine.finish(&mut cache);
    cache.release();
}

#[test]
fn the_stack_is_aligned_at_entry() {
    #[repr(align(128))]
    struct Aligned([u8; 128]);
    let mut cache = StackCache::new();
    let coroutine = Coroutine::new(&mut cache, 64 << 10, |_| {
        let aligned = black_box(Aligned([1; 128]));
        assert_eq!((&raw const aligned).addr() % 128, 0);
        assert_eq!(aligned.0.iter().map(|&byte| u32::from(byte)).sum::<u32>(), 128);
        // Vector code of the standard library, which needs the alignment that the ABI promises.
        assert_eq!(
            format!("{:.3} {:e}", black_box(1.5_f64), black_box(2e9_f64)),
            "1.500 2e9"
        );
    });
    coroutine.finish(&mut cache);
    cache.release();
}

/// Keeps more values alive over its pauses than there are registers.
fn survive(seed: u64, pause: impl Fn()) {
    let whole: [u64; 20] = std::array::from_fn(|index| black_box(seed + index as u64));
    let float: [f64; 20] = std::array::from_fn(|index| black_box(seed as f64 + index as f64 / 4.0));
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t] = whole;
    let [
        fa,
        fb,
        fc,
        fd,
        fe,
        ff,
        fg,
        fh,
        fi,
        fj,
        fk,
        fl,
        fm,
        fn_,
        fo,
        fp,
        fq,
        fr,
        fs,
        ft,
    ] = float;
    for _ in 0..10 {
        pause();
    }
    assert_eq!(
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t],
        whole
    );
    let after = [
        fa, fb, fc, fd, fe, ff, fg, fh, fi, fj, fk, fl, fm, fn_, fo, fp, fq, fr, fs, ft,
    ];
    assert_eq!(after, float);
    let sum: f64 = after.iter().sum();
    assert_eq!(sum, 20.0 * seed as f64 + 190.0 / 4.0);
}

#[test]
fn integers_and_floats_survive_on_both_sides() {
    let mut cache = StackCache::new();
    let coroutine = Coroutine::new(&mut cache, 64 << 10, |it| survive(1000, || it.pause(0)));
    survive(5, || {
        coroutine.resume();
    });
    coroutine.finish(&mut cache);
    cache.release();
}

#[test]
fn a_stack_grows_over_all_its_pages() {
    fn deep(levels: usize) -> usize {
        let frame = black_box([levels; 128]);
        let below = if levels == 0 { 0 } else { deep(levels - 1) };
        below + usize::from(black_box(frame)[127] == levels)
    }
    let mut cache = StackCache::new();
    let coroutine = Coroutine::new(&mut cache, 16 << 20, |it| {
        assert_eq!(deep(1000), 1001);
        it.pause(0);
        assert_eq!(deep(2000), 2001);
    });
    coroutine.finish(&mut cache);
    cache.release();
}

#[test]
fn a_panic_is_caught_on_its_stack() {
    let mut cache = StackCache::new();
    let coroutine = Coroutine::new(&mut cache, 256 << 10, |it| {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            it.pause(0);
            std::panic::resume_unwind(Box::new(5_u8));
        }));
        assert_eq!(*caught.unwrap_err().downcast::<u8>().unwrap(), 5);
        it.pause(1);
    });
    assert_eq!(coroutine.resume(), 0);
    assert_eq!(coroutine.resume(), 1);
    coroutine.finish(&mut cache);
    cache.release();
}

#[inline(never)]
fn backtrace_in_here() -> String {
    Backtrace::force_capture().to_string()
}

#[test]
fn a_backtrace_ends_at_the_base() {
    let mut cache = StackCache::new();
    let coroutine = Coroutine::new(&mut cache, 512 << 10, |it| {
        for _ in 0..2 {
            let trace = backtrace_in_here();
            assert!(trace.contains("backtrace_in_here"), "{trace}");
            assert!(trace.contains("enter_coroutine"), "{trace}");
            // The backtrace does not continue into the resuming function.
            assert!(!trace.contains("who_resumes"), "{trace}");
            it.pause(0);
        }
    });
    #[inline(never)]
    fn who_resumes(coroutine: &Coroutine) {
        coroutine.resume();
        black_box(coroutine);
    }
    who_resumes(&coroutine);
    who_resumes(&coroutine);
    coroutine.finish(&mut cache);
    cache.release();
}

#[test]
fn switching_works_towards_higher_and_lower_stacks() {
    let mut cache = StackCache::new();
    let stacks: Vec<Box<Coroutine>> = (0..4)
        .map(|number| {
            Coroutine::new(&mut cache, 64 << 10, move |it| {
                survive(number, || it.pause(number as usize));
            })
        })
        .collect();
    let orders = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]];
    for order in orders {
        for number in order {
            assert_eq!(stacks[number].resume(), number);
        }
    }
    for coroutine in stacks {
        coroutine.finish(&mut cache);
    }
    cache.release();
}
