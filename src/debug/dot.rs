//! Draws the tree of a thread's greenlets with Graphviz.

#![forbid(unsafe_code)]

use std::fmt::Write;

use super::tree::{Status, Tree};

impl Tree {
    /// Returns the tree in the language of [Graphviz](https://graphviz.org): `dot -Tsvg` draws it.
    ///
    /// An arrow leads from each greenlet to its parent, which gets the greenlet's outcome.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::{getcurrent, tree};
    ///
    /// let _main = getcurrent();
    /// assert!(tree().to_dot().starts_with("digraph greenlets {"));
    /// ```
    pub fn to_dot(&self) -> String {
        let mut dot = String::from(concat!(
            "digraph greenlets {\n",
            "    rankdir=BT;\n",
            "    node [shape=box, style=\"rounded,filled\", fontname=\"Helvetica\", fontsize=11];\n",
        ));
        for row in &self.rows {
            let mut label = format!("{}\n{}", row.name, row.status.as_str());
            if let Some(place) = row.suspended_at {
                write!(label, " at {}:{}", place.file(), place.line())
                    .expect("writing to a String cannot fail");
            }
            for detail in row.details().split(", ").filter(|detail| !detail.is_empty()) {
                label.push('\n');
                label.push_str(detail);
            }
            let color = match row.status {
                Status::Pending => "#eeeeee",
                Status::Current => "#c8f0c8",
                Status::Suspended => "#dce8fa",
                Status::Awaiting => "#fdf0c8",
                Status::Dead => "#f5d5d5",
            };
            line(
                &mut dot,
                format_args!(
                    "g{} [label=\"{}\", fillcolor=\"{color}\"];",
                    row.id,
                    escaped(&label)
                ),
            );
        }
        for row in &self.rows {
            if let Some(parent) = row.parent {
                line(&mut dot, format_args!("g{} -> g{parent};", row.id));
            }
        }
        dot.push_str("}\n");
        dot
    }
}

fn line(dot: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(dot, "    {text}").expect("writing to a String cannot fail");
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '"' | '\\' => escaped.extend(['\\', character]),
            '\n' => escaped.push_str("\\n"),
            other => escaped.push(other),
        }
    }
    escaped
}
