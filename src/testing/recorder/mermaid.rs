//! A recording as a Mermaid sequence diagram.

#![forbid(unsafe_code)]

use std::fmt::Write;

use super::{EventKind, Recording};

impl Recording {
    /// The recording as a [Mermaid](https://mermaid.js.org) sequence diagram, which GitHub and many
    /// editors draw.
    ///
    /// A switch is an arrow, a throw a dashed one with a cross at its end; an arrow says the source line where its origin switched. The bar
    /// on a greenlet's line is the time from its start to its end.
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
            // A bar begins at the target of a start, and ends at the origin of an end that it began.
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
        // A bar that nothing ends would not be drawn.
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

    /// Says whether the start of the greenlet is in the recording.
    fn has_start_of(&self, name: &str) -> bool {
        self.events()
            .iter()
            .any(|event| event.kind() == EventKind::Start && event.target() == name)
    }
}

fn line(diagram: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(diagram, "    {text}").expect("a String takes all that is written");
}

pub(super) fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// The text with what Mermaid would read as its own syntax written as entities.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '#' | ';' | '<' | '>' | '"' | '%' | '{' | '}' => {
                write!(escaped, "#{};", u32::from(character)).expect("a String takes all that is written");
            }
            '\n' | '\r' => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}
