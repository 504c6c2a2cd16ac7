//! A backtrace that is captured in a greenlet continues in its parents, up to the thread's function.

use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use anyhow::Result;
use greenlet::{Generator, Greenlet, State, end_suspended, getcurrent, getmain, getparent, raw};

/// `false` if a backtrace ends at the first frame of a greenlet.
const IS_LINKED: bool = cfg!(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(feature = "fcontext"),
    not(feature = "valgrind")
));

#[inline(never)]
fn captures() -> String {
    black_box(Backtrace::force_capture().to_string())
}

/// Returns which of the functions appear in a backtrace, in its order. Closures in them do not count.
fn found_in(text: &str, names: &[&'static str]) -> Vec<&'static str> {
    let named = |line: &str| {
        let function = line.rsplit([':', ' ']).next()?;
        names.iter().copied().find(|name| function == *name)
    };
    let mut found: Vec<_> = text.lines().filter_map(named).collect();
    found.dedup();
    found
}

/// Checks that a backtrace has the `own` functions of the greenlet, and then those of its `callers`.
#[track_caller]
fn assert_shows(text: &str, own: &[&'static str], callers: &[&'static str]) {
    let names = [own, callers].concat();
    let expected = if IS_LINKED { &names } else { own };
    assert_eq!(found_in(text, &names), *expected, "{text}");
}

fn pause() -> Result<()> {
    getparent().unwrap().switch(())
}

#[test]
fn a_backtrace_goes_from_a_grandchild_to_the_function_of_the_thread() {
    #[inline(never)]
    fn in_child() -> Result<String> {
        black_box(Greenlet::new(|(): ()| Ok(black_box(captures()))).switch(()))
    }
    #[inline(never)]
    fn in_main() -> Result<String> {
        black_box(Greenlet::new(|(): ()| black_box(in_child())).switch(()))
    }
    // The test itself may be inlined.
    #[inline(never)]
    fn in_test() -> Result<String> {
        black_box(in_main())
    }
    let text = in_test().unwrap();
    assert_shows(&text, &["captures"], &["in_child", "in_main", "in_test"]);
    if IS_LINKED {
        assert!(text.contains("__rust_begin_short_backtrace"), "{text}");
    }
}

#[test]
fn a_boxed_function_is_linked_like_one_in_the_node() {
    #[inline(never)]
    fn starts(child: &Greenlet) -> String {
        black_box(child.switch([7_u8; 100]).unwrap())
    }
    let large = [1_u8; 4000];
    let child = Greenlet::new(move |first: [u8; 100]| {
        assert_eq!(large.len() + first.len(), 4100);
        Ok(black_box(captures()))
    });
    assert_shows(&starts(&child), &["captures"], &["starts"]);
}

#[test]
fn dead_and_pending_parents_are_skipped() {
    #[inline(never)]
    fn asks(child: &Greenlet) -> String {
        black_box(child.switch(()).unwrap())
    }
    let dead = Greenlet::new(|(): ()| Ok(()));
    dead.switch::<()>(()).unwrap();
    let also_dead = Greenlet::builder().parent(&dead).build(|(): ()| Ok(()));
    also_dead.switch::<()>(()).unwrap();
    let pending = Greenlet::builder()
        .parent(&also_dead)
        .build(|text: String| Ok(text));
    let child = Greenlet::builder()
        .parent(&pending)
        .build(|(): ()| Ok(black_box(captures())));
    assert_shows(&asks(&child), &["captures"], &["asks"]);
}

#[test]
fn a_parent_that_ends_in_between_is_skipped() {
    #[inline(never)]
    fn in_parent(child: &Rc<RefCell<Option<Greenlet>>>) -> Result<()> {
        let child = child.clone();
        let inner = Greenlet::new(|(): ()| {
            getmain().switch::<()>(())?;
            Ok(black_box(captures()))
        });
        *child.borrow_mut() = Some(inner.clone());
        inner.switch(())
    }
    #[inline(never)]
    fn resumes(child: &Greenlet) -> String {
        black_box(child.switch(()).unwrap())
    }
    let place = Rc::new(RefCell::new(None));
    let parent = Greenlet::new({
        let place = place.clone();
        move |(): ()| in_parent(&place)
    });
    parent.switch::<()>(()).unwrap();
    let child = place.borrow_mut().take().unwrap();
    parent.kill().unwrap();
    assert_eq!(parent.state(), State::Dead);
    drop(parent);
    // Its stack is used by others.
    for _ in 0..3 {
        Greenlet::new(|(): ()| Ok(())).switch::<()>(()).unwrap();
    }
    let text = resumes(&child);
    assert_shows(&text, &["captures"], &["resumes"]);
    assert!(!text.contains("in_parent\n"), "{text}");
}

#[test]
fn the_greenlet_that_switched_is_not_shown_if_it_is_no_ancestor() {
    #[inline(never)]
    fn in_other(target: &Greenlet) -> Result<()> {
        black_box(target.switch(()))
    }
    #[inline(never)]
    fn in_main(other: &Greenlet) -> String {
        black_box(other.switch(()).unwrap())
    }
    let target = Greenlet::new(|(): ()| Ok(black_box(captures())));
    let other = Greenlet::new(move |(): ()| in_other(&target));
    let text = in_main(&other);
    assert_shows(&text, &["captures"], &["in_main"]);
    assert!(!text.contains("in_other\n"), "{text}");
}

#[test]
fn a_new_parent_is_followed() {
    #[inline(never)]
    fn in_first_parent(child: &Greenlet) -> Result<()> {
        black_box(child.switch(()))
    }
    #[inline(never)]
    fn in_new_parent() -> Result<String> {
        black_box(getmain().switch(()))
    }
    #[inline(never)]
    fn in_main(child: &Greenlet) -> String {
        black_box(child.switch(()).unwrap())
    }
    let child = Greenlet::new(|(): ()| {
        getmain().switch::<()>(())?;
        let text = captures();
        getmain().switch::<()>(text)
    });
    let first = Greenlet::new({
        let child = child.clone();
        move |(): ()| in_first_parent(&child)
    });
    child.set_parent(&first).unwrap();
    first.switch::<()>(()).unwrap();
    let new = Greenlet::new(|(): ()| in_new_parent());
    new.switch::<()>(()).unwrap();
    child.set_parent(&new).unwrap();
    let text = in_main(&child);
    assert_shows(&text, &["captures"], &["in_new_parent", "in_main"]);
    assert!(!text.contains("in_first_parent\n"), "{text}");
    end_suspended().unwrap();
}

#[test]
fn a_chain_of_many_parents_is_followed() {
    const DEPTH: usize = 300;
    #[inline(never)]
    fn nest(depth: usize) -> Result<String> {
        match depth {
            0 => Ok(captures()),
            _ => black_box(Greenlet::new(nest).switch(depth - 1)),
        }
    }
    let text = nest(DEPTH).unwrap();
    let levels = text
        .lines()
        .filter(|line| line.rsplit([':', ' ']).next() == Some("nest"));
    assert_eq!(levels.count(), if IS_LINKED { DEPTH + 1 } else { 1 }, "{text}");
}

#[test]
fn a_backtrace_goes_from_a_generator_through_its_consumers() {
    #[inline(never)]
    fn in_inner_body() -> Result<String> {
        black_box(Greenlet::new(|(): ()| Ok(black_box(captures()))).switch(()))
    }
    #[inline(never)]
    fn in_outer_body() -> Result<String> {
        let mut inner = Generator::new(|out| out.yield_(black_box(in_inner_body())?));
        black_box(inner.next().unwrap())
    }
    #[inline(never)]
    fn consumes() -> Result<String> {
        let mut outer = Generator::new(|out| out.yield_(black_box(in_outer_body())?));
        black_box(outer.next().unwrap())
    }
    #[inline(never)]
    fn in_main() -> String {
        black_box(Greenlet::new(|(): ()| black_box(consumes())).switch(()).unwrap())
    }
    let callers = ["in_inner_body", "in_outer_body", "consumes", "in_main"];
    assert_shows(&in_main(), &["captures"], &callers);
}

#[test]
fn a_backtrace_of_a_greenlet_has_its_own_frames_alone() {
    #[inline(never)]
    fn asks_for_itself() -> String {
        black_box(getcurrent().backtrace().unwrap().to_string())
    }
    #[inline(never)]
    fn waits() -> Result<()> {
        black_box(pause())
    }
    #[inline(never)]
    fn in_main() -> (String, String, Greenlet) {
        let asks = Greenlet::new(|(): ()| Ok((asks_for_itself(), captures())));
        let (own, linked) = asks.switch::<(String, String)>(()).unwrap();
        let suspended = Greenlet::new(|(): ()| {
            waits()?;
            Ok(black_box(captures()))
        });
        suspended.switch::<()>(()).unwrap();
        black_box((own, linked, suspended))
    }
    let (own, linked, suspended) = in_main();
    assert!(
        own.contains("asks_for_itself") && !own.contains("in_main\n"),
        "{own}"
    );
    // The link is there again.
    assert_shows(&linked, &["captures"], &["in_main"]);

    // The test itself may be inlined.
    #[inline(never)]
    fn asks_for(suspended: &Greenlet) -> String {
        black_box(suspended.backtrace().unwrap().to_string())
    }
    #[inline(never)]
    fn resumes(suspended: &Greenlet) -> String {
        black_box(suspended.switch(()).unwrap())
    }
    let own = asks_for(&suspended);
    assert_eq!(
        found_in(&own, &["waits", "in_main", "asks_for"]),
        ["waits"],
        "{own}"
    );
    assert_shows(&resumes(&suspended), &["captures"], &["resumes"]);
}

#[test]
fn a_greenlet_below_one_that_awaits_has_its_own_backtrace() {
    #[inline(never)]
    fn waits((): ()) -> Result<()> {
        black_box(getmain().switch(()))
    }
    // The resume point of the parent is hidden.
    let child = Rc::new(RefCell::new(None));
    let parent = Greenlet::new({
        let child = child.clone();
        move |(): ()| {
            let inner = Greenlet::new(waits);
            *child.borrow_mut() = Some(inner.clone());
            inner.switch::<()>(())
        }
    });
    parent.switch::<()>(()).unwrap();
    assert!(raw::lock_for_await(&parent));
    let child = child.borrow_mut().take().unwrap();
    assert!(child.backtrace().unwrap().to_string().contains("waits"));
    raw::unlock(&parent);
    child.switch::<()>(()).unwrap();
    assert!(child.is_dead());
}

#[test]
fn clean_up_shows_the_greenlet_that_ends_it() {
    struct Captures(Rc<RefCell<String>>);
    impl Drop for Captures {
        #[inline(never)]
        fn drop(&mut self) {
            *self.0.borrow_mut() = captures();
        }
    }
    #[inline(never)]
    fn ends(greenlet: Greenlet) {
        drop(black_box(greenlet));
    }
    let text = Rc::new(RefCell::new(String::new()));
    let new = |stops: bool| {
        let captures = Captures(text.clone());
        Greenlet::new(move |(): ()| {
            let _captures = captures;
            let exit = pause();
            if stops { pause() } else { exit }
        })
    };
    // By the exit; by force; of one that has not begun, which has no stack.
    for stops in [false, true] {
        let greenlet = new(stops);
        greenlet.switch::<()>(()).unwrap();
        ends(greenlet);
        assert_shows(&text.take(), &["captures"], &["ends"]);
    }
    let thrown_at = new(false);
    #[inline(never)]
    fn throws(greenlet: &Greenlet) {
        black_box(greenlet.kill().unwrap());
    }
    throws(&thrown_at);
    assert_shows(&text.take(), &["captures"], &["throws"]);
}

#[test]
fn an_unwinding_stops_at_the_first_frame_and_runs_no_destructor_of_the_parent_twice() {
    struct Counts(Rc<RefCell<Vec<&'static str>>>, &'static str);
    impl Drop for Counts {
        fn drop(&mut self) {
            // The parent is current while its frames are unwound.
            let place = if getcurrent().is_main() { "main" } else { "child" };
            self.0.borrow_mut().extend([self.1, place]);
        }
    }
    let log = Rc::new(RefCell::new(Vec::new()));
    let new = |name| Counts(log.clone(), name);
    let child = Greenlet::new({
        let inside = new("inside");
        move |(): ()| -> Result<()> {
            let _inside = inside;
            resume_unwind(Box::new("payload"))
        }
    });
    let outside = new("outside");
    let payload = catch_unwind(AssertUnwindSafe(|| {
        let _outside = outside;
        child.switch::<()>(())
    }))
    .unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"payload"));
    assert_eq!(*log.borrow(), ["inside", "child", "outside", "main"]);
}
