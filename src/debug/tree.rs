//! Prints the tree of a thread's greenlets as text.

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::panic::Location;
use std::time::Duration;

use greenlet_core::{Greenlet, StackUsage, State, greenlets};

use crate::text::one_line;

/// Captures all greenlets of this thread as a tree. Each is below its parent, with its name, its
/// state, the line where it is suspended, the stack that it uses, and the line where it was created.
///
/// Ages are shown if they are tracked ([`track_ages`](crate::track_ages)). Dead greenlets are left
/// out, except those that have living children. Capturing changes no greenlet, and works
/// everywhere, also in a destructor or a panic hook.
///
/// # Examples
///
/// ```
/// use greenlet::{Greenlet, getparent, tree};
///
/// let worker = Greenlet::builder()
///     .name("worker")
///     .build(|(): ()| getparent().unwrap().switch::<()>(()));
/// worker.switch::<()>(())?;
/// println!("{}", tree());
/// // main       current
/// // └─ worker  suspended at src/main.rs:5  stack 1.1 of 512 KiB, created at src/main.rs:5
/// assert_eq!(tree().to_string().lines().count(), 2);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn tree() -> Tree {
    Tree::of(&greenlets())
}

/// The tree of the greenlets of a thread: see [`tree`]. It keeps no greenlet alive, and is `Send`.
///
/// # Examples
///
/// ```
/// use greenlet::{Greenlet, Tree, tree};
///
/// let _child = Greenlet::builder().name("child").build(|(): ()| Ok(()));
/// let picture: Tree = tree();
/// assert_eq!(picture.len(), 2);
/// let text = std::thread::spawn(move || picture.to_string()).join().unwrap();
/// assert!(text.contains("child"));
/// ```
#[derive(Clone, Debug)]
pub struct Tree {
    /// In depth-first order: parents before their children.
    pub(super) rows: Vec<Row>,
    /// The number of dead greenlets that are not shown.
    dead: usize,
}

/// A greenlet in a [`Tree`].
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) id: u64,
    pub(super) parent: Option<u64>,
    pub(super) name: String,
    pub(super) status: Status,
    pub(super) suspended_at: Option<&'static Location<'static>>,
    stack: Option<StackUsage>,
    age: Option<Duration>,
    created_at: Option<&'static Location<'static>>,
    /// The number of its ancestors.
    depth: usize,
    /// Set if it is the last child of its parent.
    is_last: bool,
}

/// The state of a greenlet, in more detail than [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Pending,
    Current,
    Suspended,
    Awaiting,
    Dead,
}

impl Status {
    fn of(greenlet: &Greenlet) -> Status {
        match greenlet.state() {
            State::Pending => Status::Pending,
            State::Dead => Status::Dead,
            State::Active if greenlet.is_current() => Status::Current,
            State::Active if greenlet.is_awaiting() => Status::Awaiting,
            State::Active => Status::Suspended,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Current => "current",
            Status::Suspended => "suspended",
            Status::Awaiting => "awaiting",
            Status::Dead => "dead",
        }
    }
}

/// Returns the name of a greenlet for a line of text, or its number if it has none.
pub(super) fn name_of(greenlet: &Greenlet) -> String {
    match greenlet.name() {
        Some(name) => one_line(name).into_owned(),
        None => format!("#{}", greenlet.id()),
    }
}

impl Tree {
    pub(super) fn of(greenlets: &[Greenlet]) -> Tree {
        // The tree has the living greenlets and all their ancestors.
        let mut shown = HashSet::new();
        for greenlet in greenlets.iter().filter(|greenlet| !greenlet.is_dead()) {
            let mut next = Some(greenlet.clone());
            while let Some(greenlet) = next {
                if !shown.insert(greenlet.id()) {
                    break;
                }
                next = greenlet.parent();
            }
        }
        let dead = greenlets.len().saturating_sub(shown.len());
        let mut children: HashMap<Option<u64>, Vec<&Greenlet>> = HashMap::new();
        for greenlet in greenlets.iter().filter(|greenlet| shown.contains(&greenlet.id())) {
            let parent = greenlet.parent().map(|parent| parent.id());
            children.entry(parent).or_default().push(greenlet);
        }

        // Not recursive: a chain of parents can be too long for the stack.
        let mut rows = Vec::with_capacity(shown.len());
        let roots = children.remove(&None).unwrap_or_default();
        let mut waiting: Vec<(&Greenlet, usize, bool)> =
            roots.into_iter().rev().map(|root| (root, 0, true)).collect();
        while let Some((greenlet, depth, is_last)) = waiting.pop() {
            rows.push(Row::of(greenlet, depth, is_last));
            let below = children.remove(&Some(greenlet.id())).unwrap_or_default();
            let last = below.len().saturating_sub(1);
            for (index, child) in below.into_iter().enumerate().rev() {
                waiting.push((child, depth + 1, index == last));
            }
        }
        Tree { rows, dead }
    }

    /// Returns the number of greenlets in the tree, main included.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns `true` if the thread has not used greenlets.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl Row {
    fn of(greenlet: &Greenlet, depth: usize, is_last: bool) -> Row {
        Row {
            id: greenlet.id(),
            parent: greenlet.parent().map(|parent| parent.id()),
            name: name_of(greenlet),
            status: Status::of(greenlet),
            suspended_at: greenlet.suspended_at(),
            stack: greenlet.stack_usage(),
            age: greenlet.age(),
            created_at: Some(greenlet.created_at()).filter(|_| !greenlet.is_main()),
            depth,
            is_last,
        }
    }

    /// Returns the second column: the status, and the place.
    fn doing(&self) -> String {
        match self.suspended_at {
            Some(place) => format!("{} at {}:{}", self.status.as_str(), place.file(), place.line()),
            None => self.status.as_str().to_owned(),
        }
    }

    /// Returns the third column: stack, age and place of creation.
    pub(super) fn details(&self) -> String {
        let stack = self.stack.map(|StackUsage { used, size, .. }| {
            format!("stack {:.1} of {} KiB", used as f64 / 1024.0, size / 1024)
        });
        let age = self.age.map(|age| format!("{age:.1?} old"));
        let made = self
            .created_at
            .map(|place| format!("created at {}:{}", place.file(), place.line()));
        let details: Vec<String> = [stack, age, made].into_iter().flatten().collect();
        details.join(", ")
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Rows below this depth are not indented further. They show their depth as a number.
        const DEEPEST: usize = 32;
        // For each depth: `true` if the branch has more children below this row.
        let mut has_more: Vec<bool> = Vec::new();
        let mut rows = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            let mut label = String::new();
            has_more.truncate(row.depth.saturating_sub(1));
            for &line in has_more.iter().take(DEEPEST) {
                label.push_str(if line { "│  " } else { "   " });
            }
            if row.depth > 0 {
                if row.depth > DEEPEST {
                    label.push_str(&format!("({}) ", row.depth));
                } else {
                    label.push_str(if row.is_last { "└─ " } else { "├─ " });
                }
                has_more.push(!row.is_last);
            }
            label.push_str(&row.name);
            rows.push((label, row.doing(), row.details()));
        }
        let width = |column: fn(&(String, String, String)) -> &str| {
            rows.iter()
                .map(|row| column(row).chars().count())
                .max()
                .unwrap_or(0)
        };
        let (labels, does) = (width(|row| &row.0), width(|row| &row.1));
        for (label, doing, details) in &rows {
            let row = format!("{label:labels$}  {doing:does$}  {details}");
            writeln!(f, "{}", row.trim_end())?;
        }
        if self.dead > 0 {
            writeln!(f, "and {} dead greenlets that still have handles", self.dead)?;
        }
        Ok(())
    }
}
