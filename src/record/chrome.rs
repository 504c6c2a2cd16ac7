//! A recording as Chrome trace JSON, which Perfetto and `chrome://tracing` draw.

#![forbid(unsafe_code)]

use std::fmt::Write;
use std::time::Duration;

use super::{Event, EventKind, Recording};

impl Recording {
    /// The recording in Chrome's trace format: open it in [Perfetto](https://ui.perfetto.dev) or in
    /// `chrome://tracing`.
    ///
    /// Each greenlet has a row; a block in it is the time from a switch to the greenlet until the next
    /// one away, and arrows join each block to the next. Times are in microseconds since the recording
    /// began. A block says how the greenlet got control, from whom, and the source line where that one switched.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::{Greenlet, record::record};
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
        let number = |name: &str| names.iter().position(|other| *other == name).unwrap_or(0) + 1;
        let mut trace = Trace::new();
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
        let transfers = self
            .events()
            .iter()
            .filter(|event| event.kind() != EventKind::Note);
        for (flow, event) in transfers.enumerate() {
            trace.block(number(running), since, event.time(), cause);
            let (from, to) = (number(event.origin()), number(event.target()));
            // An arrow begins inside the block that it leaves: at its end, there would be no block.
            let leaves = event.time().saturating_sub(Duration::from_nanos(1)).max(since);
            let common = format!(r#""name":"switch","cat":"switch","id":{flow},"pid":1"#);
            trace.add(format_args!(
                r#""ph":"s","tid":{from},"ts":{},{common}"#,
                micros(leaves)
            ));
            trace.add(format_args!(
                r#""ph":"f","bp":"e","tid":{to},"ts":{},{common}"#,
                micros(event.time())
            ));
            (running, since, cause) = (event.target(), event.time(), Some(event));
        }
        trace.block(number(running), since, self.length(), cause);
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
        write!(self.json, "{comma}\n{{{fields}}}").expect("a String takes all that is written");
    }

    /// The time in which one greenlet ran.
    fn block(&mut self, tid: usize, from: Duration, to: Duration, cause: Option<&Event>) {
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
    }

    fn finish(mut self) -> String {
        self.json.push_str("\n]}\n");
        self.json
    }
}

/// Microseconds, with what is below them after the point.
fn micros(time: Duration) -> String {
    format!("{}.{:03}", time.as_micros(), time.subsec_nanos() % 1000)
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => {
                write!(quoted, "\\u{:04x}", u32::from(control)).expect("a String takes all that is written");
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
