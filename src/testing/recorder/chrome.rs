//! Converts a recording into Chrome trace JSON, for Perfetto and `chrome://tracing`.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use super::{Event, EventKind, Recording};

impl Recording {
    /// Returns the recording in Chrome's trace format. Open it in
    /// [Perfetto](https://ui.perfetto.dev) or in `chrome://tracing`.
    ///
    /// Each greenlet has a row. A block spans the time from a switch to the greenlet until the next
    /// switch away. Arrows lead from each block to the next. Times are in microseconds since the
    /// recording began. A block has the kind of the event that resumed the greenlet, its origin,
    /// and the source line where the origin switched.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::{Greenlet, record};
    ///
    /// let (_, recording) = record(|| {
    ///     let child = Greenlet::builder().name("child").build(|(): ()| Ok(()));
    ///     child.switch::<()>(()).unwrap();
    /// });
    /// let json = recording.to_chrome_trace();
    /// assert!(json.contains("\"child\""));
    /// ```
    pub fn to_chrome_trace(&self) -> String {
        let names = self.names();
        let numbers: HashMap<&str, usize> = (1..).zip(&names).map(|(number, name)| (*name, number)).collect();
        let number = |name: &str| numbers.get(name).copied().unwrap_or(1);
        let mut trace = Trace::new();
        trace.add(format_args!(
            r#""ph":"M","name":"process_name","pid":1,"args":{{"name":"greenlets"}}"#
        ));
        for (index, name) in names.iter().enumerate() {
            let (tid, name) = (index + 1, quoted(name));
            trace.add(format_args!(
                r#""ph":"M","name":"thread_name","pid":1,"tid":{tid},"args":{{"name":{name}}}"#
            ));
            trace.add(format_args!(
                r#""ph":"M","name":"thread_sort_index","pid":1,"tid":{tid},"args":{{"sort_index":{tid}}}"#
            ));
        }
        let mut running = self.first();
        let mut since = Duration::ZERO;
        let mut cause: Option<&Event> = None;
        let mut arrows = 0;
        let mut has_note = false;
        for event in self.events() {
            if event.kind() == EventKind::Note {
                has_note = true;
                continue;
            }
            let tid = number(running);
            // Blocks of one row must not touch: rounding could make them overlap.
            let is_same_row = event.target() == running;
            let end = event
                .time()
                .saturating_sub(Duration::from_nanos(is_same_row.into()));
            trace.block(tid, since, end, arrows, cause);
            // The arrow to the next block. After a note it begins at the start of the block:
            // otherwise Perfetto draws it from the note.
            let leaves = if has_note {
                since
            } else {
                end.saturating_sub(MARGIN).max(since)
            };
            arrows += 1;
            trace.add(format_args!(
                r#""ph":"s","tid":{tid},"ts":{},{}"#,
                micros(leaves),
                Trace::flow(arrows)
            ));
            (running, since, cause, has_note) = (event.target(), event.time(), Some(event), false);
        }
        trace.block(number(running), since, self.length(), arrows, cause);
        for event in self.events() {
            if let Some(text) = event.text() {
                let (tid, at, text) = (number(event.origin()), micros(event.time()), quoted(text));
                trace.add(format_args!(
                    r#""ph":"i","s":"t","name":{text},"pid":1,"tid":{tid},"ts":{at}"#
                ));
            }
        }
        trace.finish()
    }
}

/// How long before the end of a block its arrow begins. At the end itself the viewers find no
/// block, and they round times to nanoseconds.
const MARGIN: Duration = Duration::from_nanos(10);

struct Trace {
    json: String,
}

impl Trace {
    fn new() -> Trace {
        Trace {
            json: String::from("{\"displayTimeUnit\":\"ns\",\"traceEvents\":["),
        }
    }

    fn add(&mut self, fields: std::fmt::Arguments<'_>) {
        let comma = if self.json.ends_with('[') { "" } else { "," };
        write!(self.json, "{comma}\n{{{fields}}}").expect("writing to a String cannot fail");
    }

    /// Returns the common fields of the two ends of an arrow.
    fn flow(number: usize) -> String {
        format!(r#""name":"switch","cat":"switch","id":{number},"pid":1"#)
    }

    /// Adds the block of one run of a greenlet, and the end of the arrow that leads to it.
    fn block(&mut self, tid: usize, from: Duration, to: Duration, flow: usize, cause: Option<&Event>) {
        let (ts, duration) = (micros(from), micros(to.saturating_sub(from)));
        let args = match cause {
            None => String::new(),
            Some(cause) => {
                let place = match cause.place() {
                    Some(place) => format!("{}:{}", place.file(), place.line()),
                    None => String::new(),
                };
                let (by, from, at) = (quoted(&cause.to_string()), quoted(cause.origin()), quoted(&place));
                format!(r#","args":{{"by":{by},"from":{from},"at":{at}}}"#)
            }
        };
        let name = cause.map_or("run", |cause| match cause.kind() {
            EventKind::Start => "started",
            EventKind::End => "child ended",
            _ if cause.is_throw() => "thrown at",
            _ => "switched to",
        });
        self.add(format_args!(
            r#""ph":"X","cat":"run","name":"{name}","pid":1,"tid":{tid},"ts":{ts},"dur":{duration}{args}"#
        ));
        // After its block: viewers order entries of the same time by their position in the file.
        if cause.is_some() {
            let flow = Trace::flow(flow);
            self.add(format_args!(r#""ph":"f","bp":"e","tid":{tid},"ts":{ts},{flow}"#));
        }
    }

    fn finish(mut self) -> String {
        self.json.push_str("\n]}\n");
        self.json
    }
}

/// Formats a time in microseconds, with three decimals.
fn micros(time: Duration) -> String {
    format!("{}.{:03}", time.as_micros(), time.subsec_nanos() % 1000)
}

/// Returns a JSON string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => {
                write!(quoted, "\\u{:04x}", u32::from(control)).expect("writing to a String cannot fail");
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
