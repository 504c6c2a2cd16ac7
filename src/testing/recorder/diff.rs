//! The difference between what happened and what was expected: the longest common subsequence, as
//! `diff` finds it.

#![forbid(unsafe_code)]

use std::fmt;

use super::{Event, Recording};

impl Recording {
    /// Compares with the expected events, given as their texts; returns a readable difference if there is one.
    ///
    /// An expected text may end in a place, as in `"switch a -> main at scheduler.rs:12"`: then the event's own
    /// place (`path:line`) must end in that. Without one, the place does not matter.
    ///
    /// # Errors
    ///
    /// The difference: what was expected and did not happen is marked `-`, what happened and was not
    /// expected `+`.
    pub fn compare(&self, expected: &[impl AsRef<str>]) -> Result<(), Difference> {
        compare(self.events(), expected)
    }

    /// Asserts that exactly the expected events happened: see [`compare`](Recording::compare).
    ///
    /// # Panics
    ///
    /// Panics with the difference if it is not so.
    #[track_caller]
    pub fn assert_eq(&self, expected: &[impl AsRef<str>]) {
        if let Err(difference) = self.compare(expected) {
            panic!("{difference}");
        }
    }
}

/// How a recording differs from what was expected. Its text has one line for each event, with its mark.
///
/// # Examples
///
/// ```
/// use greenlet::testing::recorder::{note, record};
///
/// let (_, recording) = record(|| note("got 2"));
/// let difference = recording.compare(&["note main: got 1"]).unwrap_err().to_string();
/// assert!(difference.contains("- note main: got 1") && difference.contains("+ note main: got 2"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    lines: Vec<(Mark, String)>,
}

/// What a line of a [`Difference`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// Expected, and happened.
    Both,
    /// Expected, and did not happen.
    Expected,
    /// Happened, and was not expected.
    Happened,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "the greenlets did not switch as expected (- expected, + happened):"
        )?;
        for (mark, line) in &self.lines {
            let mark = match mark {
                Mark::Both => ' ',
                Mark::Expected => '-',
                Mark::Happened => '+',
            };
            write!(f, "\n  {mark} {line}")?;
        }
        f.write_str("\n")
    }
}

impl std::error::Error for Difference {}

/// Above this many comparisons only the first difference is looked for exactly.
const MAX_CELLS: usize = 4_000_000;

fn compare(happened: &[Event], expected: &[impl AsRef<str>]) -> Result<(), Difference> {
    let expected: Vec<Expected<'_>> = expected.iter().map(|text| Expected::of(text.as_ref())).collect();
    let texts: Vec<String> = happened.iter().map(Event::to_string).collect();
    let is_same = |e: usize, h: usize| expected[e].fits(&happened[h], &texts[h]);

    let shorter = happened.len().min(expected.len());
    let before = (0..shorter).take_while(|&i| is_same(i, i)).count();
    if before == happened.len() && before == expected.len() {
        return Ok(());
    }
    let after = (0..shorter - before)
        .take_while(|&i| is_same(expected.len() - 1 - i, happened.len() - 1 - i))
        .count();
    let (e_end, h_end) = (expected.len() - after, happened.len() - after);

    // lengths[i][j]: how much expected[before + i..e_end] and happened[before + j..h_end] have in common.
    let (rows, columns) = (e_end - before + 1, h_end - before + 1);
    let is_small = rows.saturating_mul(columns) <= MAX_CELLS;
    let mut lengths = vec![0_u32; if is_small { rows * columns } else { 0 }];
    if is_small {
        for i in (0..rows - 1).rev() {
            for j in (0..columns - 1).rev() {
                lengths[i * columns + j] = if is_same(before + i, before + j) {
                    lengths[(i + 1) * columns + j + 1] + 1
                } else {
                    lengths[(i + 1) * columns + j].max(lengths[i * columns + j + 1])
                };
            }
        }
    }

    let line_of = |h: usize| match happened[h].place() {
        Some(place) => format!("{} at {}:{}", texts[h], place.file(), place.line()),
        None => texts[h].clone(),
    };
    let both = |range: std::ops::Range<usize>| range.map(|h| (Mark::Both, line_of(h)));
    let mut lines: Vec<(Mark, String)> = both(0..before).collect();
    let (mut e, mut h) = (before, before);
    while e < e_end || h < h_end {
        let length = |e: usize, h: usize| lengths.get((e - before) * columns + h - before).copied();
        if e < e_end && h < h_end && is_small && is_same(e, h) {
            lines.push((Mark::Both, line_of(h)));
            (e, h) = (e + 1, h + 1);
        } else if e < e_end && (h == h_end || length(e + 1, h) >= length(e, h + 1)) {
            lines.push((Mark::Expected, expected[e].whole.to_owned()));
            e += 1;
        } else {
            lines.push((Mark::Happened, line_of(h)));
            h += 1;
        }
    }
    lines.extend(both(h_end..happened.len()));
    Err(Difference { lines })
}

/// An expected event: its text, and the end of its place if that matters.
struct Expected<'a> {
    whole: &'a str,
    text: &'a str,
    place: Option<&'a str>,
}

impl Expected<'_> {
    fn of(whole: &str) -> Expected<'_> {
        // Only what looks like a place is one: names and notes may have the word.
        let parts = whole.rsplit_once(" at ").filter(|(_, place)| {
            place
                .rsplit_once(':')
                .is_some_and(|(file, line)| !file.contains(' ') && line.parse::<u32>().is_ok())
        });
        match parts {
            Some((text, place)) => Expected {
                whole,
                text,
                place: Some(place),
            },
            None => Expected {
                whole,
                text: whole,
                place: None,
            },
        }
    }

    fn fits(&self, event: &Event, text: &str) -> bool {
        // A note may end in something that looks like a place.
        if self.whole == text {
            return true;
        }
        let Some(expected) = self.place else { return false };
        self.text == text
            && event.place().is_some_and(|place| {
                let place = format!("{}:{}", place.file(), place.line());
                let rest = place.strip_suffix(expected);
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with(['/', '\\']))
            })
    }
}
