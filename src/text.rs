//! Text that people read in one line.

#![forbid(unsafe_code)]

use std::borrow::Cow;

/// Escapes the characters that end a line, do not print, or change the direction of the text.
/// Greenlets may have any name.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::new();
    for character in text.chars() {
        match is_escaped(character) {
            true => escaped.extend(character.escape_default()),
            false => escaped.push(character),
        }
    }
    Cow::Owned(escaped)
}

fn is_escaped(character: char) -> bool {
    let is_separator = matches!(character, '\u{2028}' | '\u{2029}');
    let changes_direction = matches!(
        character,
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    character.is_control() || is_separator || changes_direction
}
