//! Draws a recording as a Mermaid sequence diagram.

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use super::{Event, EventKind, Recording};
use crate::text::one_line;

impl Recording {
    /// Returns the recording as a [Mermaid](https://mermaid.js.org) sequence diagram. GitHub and
    /// many editors draw it.
    ///
    /// A switch is an arrow, and a throw a dashed arrow with a cross. Each arrow has the source
    /// line where its origin switched. The bar on a greenlet's line spans the time from its start
    /// to its end.
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
    /// let diagram = recording.to_mermaid();
    /// assert!(diagram.starts_with("sequenceDiagram\n"));
    /// ```
    pub fn to_mermaid(&self) -> String {
        let names = self.names();
        let numbers: HashMap<&str, usize> = (0..).zip(&names).map(|(number, name)| (*name, number)).collect();
        let number = |name: &str| numbers.get(name).copied().unwrap_or(0);
        let of_kind = |kind: EventKind| self.events().iter().filter(move |event| event.kind() == kind);
        let started: HashSet<&str> = of_kind(EventKind::Start).map(Event::target).collect();
        let ended: HashSet<&str> = of_kind(EventKind::End).map(Event::origin).collect();
        let mut diagram = String::from("sequenceDiagram\n");
        for (number, name) in names.iter().enumerate() {
            let name = if name.is_empty() {
                "#34;#34;"
            } else {
                &escaped(name)
            };
            line(&mut diagram, format_args!("participant p{number} as {name}"));
        }
        for event in self.events() {
            let (origin, target) = (number(event.origin()), number(event.target()));
            let place = match event.place() {
                Some(place) => format!(" {}:{}", file_name(place.file()), place.line()),
                None => String::new(),
            };
            let arrow = if event.is_throw() { "--x" } else { "->>" };
            // A bar begins at the target of a start, and ends at the origin of that greenlet's end.
            match event.kind() {
                EventKind::Note => {
                    let text = escaped(event.text().unwrap_or_default());
                    line(&mut diagram, format_args!("Note over p{origin}: {text}"));
                    continue;
                }
                kind => line(
                    &mut diagram,
                    format_args!("p{origin}{arrow}p{target}: {}{}", kind.as_str(), escaped(&place)),
                ),
            }
            match event.kind() {
                EventKind::Start => line(&mut diagram, format_args!("activate p{target}")),
                EventKind::End if started.contains(event.origin()) => {
                    line(&mut diagram, format_args!("deactivate p{origin}"));
                }
                _ => {}
            }
        }
        // Mermaid does not draw a bar without an end.
        for (number, name) in names.iter().enumerate() {
            if started.contains(name) && !ended.contains(name) {
                line(&mut diagram, format_args!("deactivate p{number}"));
            }
        }
        diagram
    }
}

fn line(diagram: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(diagram, "    {text}").expect("writing to a String cannot fail");
}

pub(super) fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// Returns the text for a line of Mermaid. Characters of its syntax, and those that do not print,
/// become entities or escapes.
fn escaped(text: &str) -> String {
    if text == "end" {
        return "#101;nd".into(); // a keyword
    }
    let mut escaped = String::new();
    for character in one_line(text).chars() {
        match character {
            '#' | ';' | '<' | '>' | '"' | '%' | '{' | '}' => {
                write!(escaped, "#{};", u32::from(character)).expect("writing to a String cannot fail");
            }
            other => escaped.push(other),
        }
    }
    escaped
}
