//! The tree of a thread's greenlets, for Graphviz.

#![forbid(unsafe_code)]

use std::fmt::Write;

use super::tree::{Condition, Tree};

impl Tree {
    /// The tree in the language of [Graphviz](https://graphviz.org): `dot -Tsvg` draws it.
    ///
    /// An arrow goes from each greenlet to its parent: it is where the greenlet's outcome will go.
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
        for leaf in &self.leaves {
            let mut label = format!("{}\n{}", leaf.name, leaf.condition.as_str());
            if let Some(place) = leaf.parked_at {
                write!(label, " at {}:{}", place.file(), place.line())
                    .expect("a String takes all that is written");
            }
            for detail in leaf.details().split(", ").filter(|detail| !detail.is_empty()) {
                label.push('\n');
                label.push_str(detail);
            }
            let color = match leaf.condition {
                Condition::Pending => "#eeeeee",
                Condition::Current => "#c8f0c8",
                Condition::Suspended => "#dce8fa",
                Condition::Awaiting => "#fdf0c8",
                Condition::Dead => "#f5d5d5",
            };
            line(
                &mut dot,
                format_args!(
                    "g{} [label=\"{}\", fillcolor=\"{color}\"];",
                    leaf.id,
                    escaped(&label)
                ),
            );
        }
        for leaf in &self.leaves {
            if let Some(parent) = leaf.parent {
                line(&mut dot, format_args!("g{} -> g{parent};", leaf.id));
            }
        }
        dot.push_str("}\n");
        dot
    }
}

fn line(dot: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(dot, "    {text}").expect("a String takes all that is written");
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
