//! Draws a recording as a Mermaid sequence diagram.

#![forbid(unsafe_code)]

use std::fmt::Write;

use super::{EventKind, Recording};

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
        let number = |name: &str| names.iter().position(|other| *other == name).unwrap_or(0);
        let mut diagram = String::from("sequenceDiagram\n");
        for (number, name) in names.iter().enumerate() {
            line(
                &mut diagram,
                format_args!("participant p{number} as {}", escaped(name)),
            );
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
                EventKind::End if self.has_start_of(event.origin()) => {
                    line(&mut diagram, format_args!("deactivate p{origin}"));
                }
                _ => {}
            }
        }
        // Mermaid does not draw a bar without an end.
        let has_ended = |name: &str| {
            self.events()
                .iter()
                .any(|event| event.kind() == EventKind::End && event.origin() == name)
        };
        for (number, name) in names.iter().enumerate() {
            if self.has_start_of(name) && !has_ended(name) {
                line(&mut diagram, format_args!("deactivate p{number}"));
            }
        }
        diagram
    }

    /// Returns `true` if the recording has the start of the greenlet.
    fn has_start_of(&self, name: &str) -> bool {
        self.events()
            .iter()
            .any(|event| event.kind() == EventKind::Start && event.target() == name)
    }
}

fn line(diagram: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(diagram, "    {text}").expect("writing to a String cannot fail");
}

pub(super) fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// Replaces the characters of Mermaid's syntax by entities.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '#' | ';' | '<' | '>' | '"' | '%' | '{' | '}' => {
                write!(escaped, "#{};", u32::from(character)).expect("writing to a String cannot fail");
            }
            '\n' | '\r' => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}
