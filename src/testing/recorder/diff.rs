//! Compares the recorded events with the expected ones, by their longest common subsequence, as
//! `diff` does.

#![forbid(unsafe_code)]

use std::fmt;

use super::{Event, Recording};

impl Recording {
    /// Compares the recording with the texts of the expected events.
    ///
    /// An expected text may end with a place, as in `"switch a -> main at scheduler.rs:12"`. The
    /// event's place (`path:line`) must then end with it. Otherwise the place does not matter.
    ///
    /// # Errors
    ///
    /// Returns the difference. It marks missing events with `-`, and unexpected events with `+`.
    pub fn compare(&self, expected: &[impl AsRef<str>]) -> Result<(), Difference> {
        compare(self.events(), expected)
    }

    /// Asserts that the recording has exactly the expected events: see
    /// [`compare`](Recording::compare).
    ///
    /// # Panics
    ///
    /// Panics with the difference if there is one.
    #[track_caller]
    pub fn assert_eq(&self, expected: &[impl AsRef<str>]) {
        if let Err(difference) = self.compare(expected) {
            panic!("{difference}");
        }
    }
}

/// The difference between a recording and the expected events. It prints one marked line for each
/// event.
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

/// The mark of a line of a [`Difference`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// Expected and recorded.
    Both,
    /// Expected and not recorded.
    Expected,
    /// Recorded and not expected.
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

/// Above this number of comparisons only the common start and end are matched.
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

    // lengths[i][j]: the length of the common subsequence of expected[before + i..e_end] and
    // happened[before + j..h_end].
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

/// An expected event: its text, and the end of its place if the text names one.
struct Expected<'a> {
    whole: &'a str,
    text: &'a str,
    place: Option<&'a str>,
}

impl Expected<'_> {
    fn of(whole: &str) -> Expected<'_> {
        // Only a suffix of the form `file:line` is a place: names and notes may contain " at ".
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
        // The text of a note may end like a place.
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
