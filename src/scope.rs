//! Scopes: greenlets that borrow from the stack of their creator.
//!
//! ```text
//!   stack of the greenlet that calls `scope`          stacks of the scope's greenlets
//!   ├──────────────────────────────┤
//!   │ borrowed data ('env)         │◄───────────────── captures of a function ('scope)
//!   │ scope: catch_unwind          │                   and a token, dropped after them
//!   │   the closure                │
//!   │ before it returns: ends them │ ── end ─────────► both stages, until no token is left
//!   ├──────────────────────────────┤
//! ```
//!
//! # Invariants
//!
//! - **[no-token-left]** `scope` neither returns nor unwinds while one of its tokens exists. While
//!   its greenlet is suspended inside, its frame and the data of its callers stay in place, even
//!   for ever.
//! - **[token-last]** A token is dropped after the function that it guards: after the captures, and
//!   after the frame that ran the function. So without tokens, no code can use the borrowed data.
//! - **[static-values]** The function takes and returns `'static` values. Only its captures borrow.
//!
//! A dead greenlet alone proves nothing. A greenlet that is ended before it started is dead while
//! its captures are dropped, and one of their destructors may switch away. A handle is no proof
//! either, since it can be forgotten. So the scope has its own list, and counts tokens.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::io::{self, Write};
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::mem;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use anyhow::Result;

use greenlet_core::{Builder, Generator, Greenlet, WeakGreenlet, Yielder, is_end, raw};

/// Calls `function` with a scope, whose greenlets can borrow data that lives outside of it.
///
/// Before this returns or unwinds, it ends all greenlets of the scope, the newest first, even if
/// there are other handles of them. It ends them as [`Greenlet::end`] does, in both stages.
/// Otherwise they are ordinary greenlets. Their handles may leave the scope, and are handles of
/// dead greenlets then.
///
/// The values that a greenlet is sent and returns are `'static` as always. Only the captures of its
/// function may borrow. There is no other way to borrow: a greenlet without a scope, and the future
/// of `greenlet_spawn`, could be leaked with `mem::forget`. A thread that it started could then use
/// the borrowed data after its end.
///
/// The greenlet that calls `scope` may switch away inside, and may be ended there. It ends the
/// scope's greenlets while it unwinds. If it is never resumed, the borrowed data stays in place.
/// (Greenlets of the scope have it as their parent by default, and so keep it alive.)
///
/// # Panics
///
/// Propagates the panic of `function` after the greenlets have ended. Their own errors and panics
/// during that end are discarded or reported, as by [`Greenlet::end`]. What unwinds the end itself
/// propagates after it, for example the panic of a destructor of a value that a greenlet sends
/// instead of ending. Of several, the first one propagates, but an end of the running greenlet takes
/// precedence.
///
/// # Aborts
///
/// Aborts the process, with a message, if a greenlet of the scope cannot be ended, since it would
/// keep dangling references:
///
/// - It catches even the unwinding of the second stage. With `panic = "abort"`, it ignores the
///   first stage.
/// - Another greenlet has switched away while it drops the captures.
/// - The scope was ended during the poll of a future that one of its greenlets awaits.
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
/// })?; // the greenlet is ended here, in its second iteration
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
/// The borrowed data cannot be used before the end of the scope, and another thread cannot use the
/// scope:
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
    let guard = AbortGuard; // [no-token-left]
    // Caught because no greenlet can be ended while a panic unwinds the thread. The panic resumes
    // below.
    let mut unwound = None;
    let result = keep_unwinding(&mut unwound, || function(&scope));
    scope.end_all(&mut unwound);
    mem::forget(guard);
    match (unwound, result) {
        (None, Some(result)) => result,
        (None, None) => unreachable!("without a result there was an unwinding"),
        (Some(payload), result) => {
            // CAUTION: runs arbitrary user code.
            let end = raw::discard(result).err();
            resume_unwind(end.unwrap_or(payload))
        }
    }
}

/// Runs `code`, and returns its result unless it unwinds. Keeps the first payload, except that an
/// end takes precedence over a panic. Nothing unwinds out of it.
fn keep_unwinding<T>(kept: &mut Option<Payload>, code: impl FnOnce() -> T) -> Option<T> {
    // CAUTION: runs arbitrary user code.
    let payload = match catch_unwind(AssertUnwindSafe(code)) {
        Ok(result) => return Some(result),
        Err(payload) => payload,
    };
    let keeps_first = |first: &Payload| is_end(&**first) || !is_end(&*payload);
    let surplus = if kept.as_ref().is_some_and(keeps_first) {
        Some(payload)
    } else {
        kept.replace(payload)
    };
    if let Err(end) = raw::discard(surplus) {
        mem::forget(kept.replace(end)); // its destructor could panic
    }
    None
}

type Payload = Box<dyn Any + Send>;

/// Aborts the process when it is dropped: nothing may unwind past the greenlets of a scope.
struct AbortGuard;

impl Drop for AbortGuard {
    fn drop(&mut self) {
        refuse("its end was interrupted by an unwinding");
    }
}

/// Creates greenlets that borrow: see [`scope`].
pub struct Scope<'scope, 'env: 'scope> {
    /// Everything that may not have ended yet, in order of creation.
    members: RefCell<Vec<Member>>,
    /// Has one clone for each greenlet whose function may still use its borrows [token-last].
    token: Rc<()>,
    // Invariant in both lifetimes, as `std::thread::Scope`: neither may be stretched or shrunk.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl<'scope> Scope<'scope, '_> {
    /// Creates a greenlet that will run `function`, which may borrow data that outlives the scope.
    /// Its parent is the running greenlet.
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

    /// Creates a greenlet with options: a name, a stack size or another parent.
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

    /// Creates a generator whose function may borrow data that outlives the scope.
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

    /// Erases the lifetime of a function, and couples it with a token.
    fn guard<A, R, F>(&'scope self, function: F) -> Guarded<A, R>
    where
        A: 'static,
        R: 'static,
        F: FnOnce(A) -> Result<R> + 'scope,
    {
        let function: Function<'scope, A, R> = Box::new(function);
        Guarded {
            // SAFETY: only the lifetime changes. The function is called or dropped before the token
            // is dropped [token-last]. `scope`, whose call outlives `'scope` by the bound on its
            // closure, does not return before that [no-token-left].
            function: unsafe {
                std::mem::transmute::<Function<'scope, A, R>, Function<'static, A, R>>(function)
            },
            token: Rc::clone(&self.token),
        }
    }

    fn enter(&self, member: Member) {
        let mut dead = Vec::new();
        let mut members = self.members.borrow_mut();
        if members.len() == members.capacity() {
            // Forget the dead before the list grows: a scope that creates many greenlets in turn
            // stays small.
            let all = mem::take(&mut *members);
            (*members, dead) = all.into_iter().partition(Member::is_alive);
        }
        members.push(member);
        drop(members);
        // CAUTION: runs arbitrary user code, so the list is no longer borrowed.
        drop(dead);
    }

    /// Ends all greenlets. Keeps what unwinds meanwhile: see [`keep_unwinding`].
    fn end_all(&self, unwound: &mut Option<Payload>) {
        loop {
            // Clean-up may create more of them.
            let last = self.members.borrow_mut().pop();
            let Some(last) = last else { break };
            // CAUTION: runs arbitrary user code. If it unwinds, the others must be ended all the
            // same.
            keep_unwinding(unwound, || last.end());
        }
        if Rc::strong_count(&self.token) > 1 {
            refuse(
                "one of them has not ended, or its captures are being dropped by a greenlet that has switched away",
            );
        } // [no-token-left]: and no code can create another one
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
    /// Runs no user code: it makes no handle.
    fn is_alive(&self) -> bool {
        match self {
            Member::Greenlet(weak) => !weak.is_dead(),
            Member::Generator(generator) => !generator.is_finished(),
        }
    }

    fn end(self) {
        match self {
            Member::Greenlet(weak) => {
                let Some(greenlet) = weak.upgrade() else { return };
                greenlet.end();
                // It may wait for the end of the greenlet that holds the scope, which cannot be over
                // before the scope is.
                raw::interrupt(&greenlet);
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
        // CAUTION: runs arbitrary user code.
        self.generator.end();
    }
}

impl<Y, R> fmt::Debug for ScopedGenerator<'_, Y, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.generator.fmt(f)
    }
}

/// Aborts the process, because the scope cannot return.
fn refuse(why: &str) -> ! {
    // `eprintln!` panics if standard error cannot be written to.
    let _ = writeln!(
        io::stderr(),
        "greenlet: a scope cannot return while its greenlets borrow from it: {why}; aborting"
    );
    std::process::abort()
}

type Function<'a, A, R> = Box<dyn FnOnce(A) -> Result<R> + 'a>;

/// A function that borrows, and its token.
struct Guarded<A: 'static, R: 'static> {
    // Before the token: fields are dropped in order of declaration [token-last].
    function: Function<'static, A, R>,
    token: Rc<()>,
}

impl<A, R> Guarded<A, R> {
    fn call(self, first: A) -> Result<R> {
        let Guarded { function, token } = self;
        // The call consumes the function and its captures, also if it unwinds. `token` is dropped
        // later [token-last].
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
