//! Scopes: greenlets that borrow from the stack of who makes them.
//!
//! ```text
//!   stack of the greenlet that calls `scope`          stacks of the scope's greenlets
//!   ├──────────────────────────────┤
//!   │ what is borrowed ('env)      │◄───────────────── captures of a function ('scope)
//!   │ scope: catch_unwind          │                   and a token, dropped after them
//!   │   the closure                │
//!   │ on its way out: ends them    │ ── end ─────────► both stages, until no token is left
//!   ├──────────────────────────────┤
//! ```
//!
//! # Invariants
//!
//! - **C1** `scope` neither returns nor unwinds while a token of it exists. While its greenlet is
//!   suspended inside, its frame, and what its callers own, stay where they are, also if that is for ever.
//! - **C2** A token is dropped after the function it guards: after its captures, and after the frame
//!   that ran it. So with the tokens gone, nobody can use what was borrowed.
//! - **C3** What the function takes and returns is `'static`; only its captures borrow.
//!
//! A greenlet that is dead is not enough: one that is ended before it started is dead while its captures
//! are dropped, and a destructor among them may switch away. And a handle is not enough, since it can be
//! forgotten; the scope has its own list, and counts tokens.

use std::cell::RefCell;
use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use anyhow::Result;

use greenlet_core::{Builder, Greenlet, WeakGreenlet};

use crate::generator::{Generator, Yielder};

/// Calls `function` with a scope, in which greenlets can be made that borrow what lives outside of it.
///
/// All greenlets of the scope are ended before this returns or unwinds, whoever has handles of them, the
/// one made last first: as [`Greenlet::end`] does it, in both stages. Apart from that they are ordinary
/// greenlets, and their handles may leave the scope; they are dead then.
///
/// What a greenlet is sent, and what it returns, is `'static` as always; it is the function's captures that
/// may borrow. This is the one way to borrow: what `greenlet_spawn` runs, and a greenlet outside of
/// a scope, could be forgotten, and what it borrowed would be gone while a thread that it started
/// still looks at it.
///
/// The greenlet that calls `scope` may switch away inside, and be ended there; the scope's greenlets are
/// ended on its way out. If it never goes on, what they borrow stays in place for as long. (Those of them
/// whose parent it is have a handle of it, as every child has of its parent.)
///
/// # Panics
///
/// Goes on with the panic of `function`, after the greenlets have ended. What they leave when they are ended
/// is discarded or reported, as by [`Greenlet::end`].
///
/// # Aborts
///
/// Aborts the process, with a message, where a greenlet of the scope cannot be ended: because it catches even
/// the unwinding of the second stage (or the program is built with `panic = "abort"` and it ignores the
/// first); because its captures are being dropped by a greenlet that has switched away in the middle; or
/// because the scope was ended from within the poll of a future that one of its greenlets waits for. To return would
/// leave it with references to what is gone.
///
/// # Examples
///
/// ```
/// use greenlet::{getparent, scope};
///
/// let mut words = vec!["one", "two", "three"];
/// let mut total = 0;
/// scope(|s| {
///     let longest = s.greenlet(|(): ()| {
///         let main = getparent().unwrap();
///         for word in &words {
///             total += word.len();
///             main.switch::<()>(*word)?;
///         }
///         Ok("")
///     });
///     assert_eq!(longest.switch::<&str>(())?, "one");
///     assert_eq!(longest.switch::<&str>(())?, "two");
///     anyhow::Ok(())
/// })?; // ended here, in its second round
/// words.push("four");
/// assert_eq!(total, 6);
/// # Ok::<(), anyhow::Error>(())
/// ```
///
/// A greenlet cannot borrow what lives inside the scope:
///
/// ```compile_fail,E0373
/// greenlet::scope(|s| {
///     let inside = String::from("dropped too early");
///     s.greenlet(|(): ()| Ok(inside.len()));
/// });
/// ```
///
/// ```compile_fail,E0597
/// greenlet::scope(|s| {
///     let inside = String::from("dropped too early");
///     let borrowed = &inside;
///     s.greenlet(move |(): ()| Ok(borrowed.len()));
/// });
/// ```
///
/// Nor can what it borrows be used before the scope is over, or the scope by another thread:
///
/// ```compile_fail,E0506
/// let mut count = 0;
/// greenlet::scope(|s| {
///     s.greenlet(|(): ()| { count += 1; Ok(()) });
///     count = 5;
/// });
/// ```
///
/// ```compile_fail,E0277
/// greenlet::scope(|s| {
///     std::thread::scope(|threads| {
///         threads.spawn(move || s.greenlet(|(): ()| Ok(())));
///     });
/// });
/// ```
///
/// ```compile_fail,E0597
/// let text = String::from("borrowed");
/// let leaked = greenlet::scope(|s| {
///     let child = s.greenlet(|(): ()| Ok(text.as_str()));
///     child.switch::<&'static str>(()).unwrap()
/// });
/// ```
pub fn scope<'env, F, T>(function: F) -> T
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T,
{
    let scope = Scope {
        members: RefCell::new(Vec::new()),
        token: Rc::new(()),
        scope: PhantomData,
        env: PhantomData,
    };
    // Unwind safety: the unwinding goes on below.
    // It has to be caught: nothing can be ended while a panic unwinds the thread.
    let outcome = catch_unwind(AssertUnwindSafe(|| function(&scope)));
    let ended = scope.end_all();
    match outcome {
        Err(payload) => resume_unwind(payload),
        Ok(result) => {
            if let Err(payload) = ended {
                // The second stage of the end of the greenlet that runs this, as a rule.
                drop(result);
                resume_unwind(payload);
            }
            result
        }
    }
}

/// Where greenlets can be made that borrow: see [`scope`].
pub struct Scope<'scope, 'env: 'scope> {
    /// All that may not have ended yet, in the order in which they were made.
    members: RefCell<Vec<Member>>,
    /// Counted once for each greenlet whose function may still use what it borrowed (C2).
    token: Rc<()>,
    // Invariant in both lifetimes, as `std::thread::Scope`: neither may be stretched or shrunk.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl<'scope> Scope<'scope, '_> {
    /// Makes a greenlet that will run `function`, which may borrow what outlives the scope. Its parent is
    /// the running greenlet.
    ///
    /// As with [`Greenlet::new`], nothing runs yet, and dropping its last handle ends it.
    #[track_caller]
    pub fn greenlet<A, R, F>(&'scope self, function: F) -> Greenlet
    where
        A: 'static,
        R: 'static,
        F: FnOnce(A) -> Result<R> + 'scope,
    {
        self.greenlet_with(Greenlet::builder(), function)
    }

    /// Makes a greenlet with a name, a stack size or a parent of its own.
    #[track_caller]
    pub fn greenlet_with<A, R, F>(&'scope self, builder: Builder, function: F) -> Greenlet
    where
        A: 'static,
        R: 'static,
        F: FnOnce(A) -> Result<R> + 'scope,
    {
        let guarded = self.guard(function);
        let greenlet = builder.build(move |first: A| guarded.call(first));
        self.enter(Member::Greenlet(greenlet.downgrade()));
        greenlet
    }

    /// Makes a generator whose function may borrow what outlives the scope.
    ///
    /// # Examples
    ///
    /// ```
    /// let text = String::from("a b c");
    /// let letters = greenlet::scope(|s| {
    ///     let generator = s.generator(|out| text.chars().try_for_each(|letter| out.yield_(letter)));
    ///     generator.filter(|letter| !matches!(letter, Ok(' '))).collect::<anyhow::Result<String>>()
    /// })?;
    /// assert_eq!(letters, "abc");
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    pub fn generator<Y, R, F>(&'scope self, function: F) -> ScopedGenerator<'scope, Y, R>
    where
        Y: 'static,
        R: 'static,
        F: FnOnce(Yielder<Y>) -> Result<R> + 'scope,
    {
        let guarded = self.guard(function);
        let generator = Rc::new(Generator::new(move |out| guarded.call(out)));
        self.enter(Member::Generator(generator.clone()));
        ScopedGenerator {
            generator,
            scope: PhantomData,
        }
    }

    /// Puts a function, whose lifetime is forgotten, together with a token.
    fn guard<A, R, F>(&'scope self, function: F) -> Guarded<A, R>
    where
        A: 'static,
        R: 'static,
        F: FnOnce(A) -> Result<R> + 'scope,
    {
        let function: Function<'scope, A, R> = Box::new(function);
        Guarded {
            // SAFETY: only the lifetime changes. The function is called or dropped together with the
            // token (C2), and `scope`, whose call outlives `'scope` by the bound on its closure, does
            // not end before the token is gone (C1).
            function: unsafe {
                std::mem::transmute::<Function<'scope, A, R>, Function<'static, A, R>>(function)
            },
            token: Rc::clone(&self.token),
        }
    }

    fn enter(&self, member: Member) {
        let mut members = self.members.borrow_mut();
        if members.len() == members.capacity() {
            // Before it grows; so a scope that makes many, one after the other, stays small.
            members.retain(Member::is_alive);
        }
        members.push(member);
    }

    /// Ends all greenlets, and returns the first unwinding that came out of that, if any did.
    fn end_all(&self) -> std::thread::Result<()> {
        let mut outcome = Ok(());
        loop {
            // Clean-up may make more of them.
            let last = self.members.borrow_mut().pop();
            let Some(last) = last else { break };
            // CAUTION: runs foreign code. Whatever unwinds out of it, the others have to be ended too.
            let ended = catch_unwind(AssertUnwindSafe(|| last.end()));
            outcome = outcome.and(ended);
        }
        if Rc::strong_count(&self.token) > 1 {
            refuse(
                "one of them has not ended, or its captures are being dropped by a greenlet that has switched away",
            );
        }
        outcome // C1: no token is left, and nobody can make one any more
    }
}

/// What a scope has to end.
enum Member {
    Greenlet(WeakGreenlet),
    Generator(Rc<dyn End>),
}

/// A generator, whatever its types.
trait End {
    fn is_finished(&self) -> bool;

    /// Ends the function. It may be left as it is, if it is in the middle of a switch: the greenlet that steps it is ended later then, and
    /// the function with it.
    fn end(&self);
}

impl<Y: 'static, R: 'static> End for Generator<Y, (), R> {
    fn is_finished(&self) -> bool {
        self.is_finished()
    }

    fn end(&self) {
        self.end();
    }
}

impl Member {
    fn is_alive(&self) -> bool {
        match self {
            Member::Greenlet(weak) => weak.upgrade().is_some_and(|greenlet| !greenlet.is_dead()),
            Member::Generator(generator) => !generator.is_finished(),
        }
    }

    fn end(self) {
        match self {
            Member::Greenlet(weak) => {
                let Some(greenlet) = weak.upgrade() else { return };
                greenlet.end();
                if greenlet.is_active() {
                    refuse(&format!("{greenlet:?} could not be ended"));
                }
            }
            Member::Generator(generator) => generator.end(),
        }
    }
}

/// A generator of a [`Scope`], whose function may borrow what outlives the scope.
///
/// It is used as the [`Generator`] that it stands for, and is ended with the scope, if it is not dropped before.
pub struct ScopedGenerator<'scope, Y: 'static, R: 'static = ()> {
    generator: Rc<Generator<Y, (), R>>,
    scope: PhantomData<&'scope ()>,
}

impl<Y, R> Iterator for ScopedGenerator<'_, Y, R> {
    type Item = Result<Y>;

    fn next(&mut self) -> Option<Result<Y>> {
        self.generator.resume(())
    }
}

impl<Y, R> FusedIterator for ScopedGenerator<'_, Y, R> {}

impl<Y, R> Deref for ScopedGenerator<'_, Y, R> {
    type Target = Generator<Y, (), R>;

    fn deref(&self) -> &Generator<Y, (), R> {
        &self.generator
    }
}

impl<Y, R> Drop for ScopedGenerator<'_, Y, R> {
    fn drop(&mut self) {
        // CAUTION: runs foreign code.
        self.generator.end();
    }
}

impl<Y, R> fmt::Debug for ScopedGenerator<'_, Y, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.generator.fmt(f)
    }
}

/// Stops the process: the scope cannot return, and nothing else can be done.
fn refuse(why: &str) -> ! {
    eprintln!(
        "greenlet: a scope cannot return, for its greenlets borrow from it: {why}; the process is aborted"
    );
    std::process::abort()
}

type Function<'a, A, R> = Box<dyn FnOnce(A) -> Result<R> + 'a>;

/// A function that borrows, and the token that says so.
struct Guarded<A: 'static, R: 'static> {
    // Before the token: fields are dropped in this order (C2).
    function: Function<'static, A, R>,
    token: Rc<()>,
}

impl<A, R> Guarded<A, R> {
    fn call(self, first: A) -> Result<R> {
        let Guarded { function, token } = self;
        // Calling it uses it up, captures and all, also when it unwinds: `token` goes after that (C2).
        let result = function(first);
        drop(token);
        result
    }
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("members", &self.members.borrow().len())
            .finish_non_exhaustive()
    }
}
