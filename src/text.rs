//! Text from elsewhere, made safe and short for people.
//!
//! Models, tools, files and users can put any character into the output. Everything that is printed
//! to a terminal passes through this module, so there is one set of characters that are escaped and
//! one spelling of the escapes. Escaping a text twice is the same as escaping it once.

use std::borrow::Cow;

/// The style of text: with or without colors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Color,
}

impl Style {
    /// Returns the style for text that may have colors if `allowed`.
    pub fn new(allowed: bool) -> Style {
        if allowed { Style::Color } else { Style::Plain }
    }

    /// Returns `text` with a color, an SGR parameter of ECMA-48, such as `31` for red.
    pub fn paint(self, color: &str, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        self.paint_on(&mut out, color, |out| out.push_str(text));
        out
    }

    /// Gives what `write` appends to `out` a color.
    pub fn paint_on(self, out: &mut String, color: &str, write: impl FnOnce(&mut String)) {
        let start = out.len();
        if self == Style::Plain {
            return write(out);
        }
        for part in ["\x1b[", color, "m"] {
            out.push_str(part);
        }
        let painted = out.len();
        write(out);
        if out.len() == painted {
            out.truncate(start);
        } else {
            out.push_str("\x1b[0m");
        }
    }
}

/// Returns `text` on one line. Characters that could end the line, control a terminal, change the
/// order in which the text is read or remain invisible are escaped: `\n`, `\u{1b}`.
pub fn escaped(text: &str) -> String {
    escaped_except(text, |_| false)
}

/// Appends `text` as [`escaped`] returns it.
pub fn push_escaped(text: &str, out: &mut String) {
    push_escaped_except(text, |_| false, out);
}

/// Returns `text` as [`escaped`] does, but with its line feeds and tabs.
pub fn sanitized(text: &str) -> String {
    escaped_except(text, |c| matches!(c, '\n' | '\t'))
}

/// Returns `text` as [`escaped`] does, in double quotes that no character of it can close.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(&text.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// Returns equal JSON that is safe to show: the characters that [`escaped`] would escape are
/// written as `\u001b`. In valid JSON, such characters are in strings or are blanks.
pub fn escaped_json(json: &str) -> Cow<'_, str> {
    let is_kept = |c: char| matches!(c, '\n' | '\t') || !needs_escape(c);
    if json.chars().all(is_kept) {
        return json.into();
    }
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            _ if is_kept(c) => out.push(c),
            '\r' => out.push(' '),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.into()
}

/// Returns the first `chars_max` characters of `text`.
pub fn prefix(text: &str, chars_max: usize) -> &str {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => text.get(..end).unwrap_or_default(),
        None => text,
    }
}

/// Returns `text`, or its first `chars_max` characters and a `…` if it has more.
pub fn truncated(text: &str, chars_max: usize) -> Cow<'_, str> {
    match prefix(text, chars_max) {
        whole if whole.len() == text.len() => whole.into(),
        cut => format!("{cut}…").into(),
    }
}

/// Returns the beginning of `text` that fits in so many columns of a terminal.
pub fn fitting(text: &str, columns: usize) -> &str {
    let mut width = 0;
    let end = text.char_indices().find(|(_, c)| {
        width += columns_of(*c);
        width > columns
    });
    end.map_or(text, |(at, _)| text.get(..at).unwrap_or_default())
}

/// Returns the columns that a terminal needs for a character, about.
fn columns_of(c: char) -> usize {
    // Most characters beyond these take two columns.
    if c < '\u{1100}' { 1 } else { 2 }
}

/// Returns the first words of `text`, separated by single spaces: at least `chars_max` characters,
/// if it has as many.
pub fn words(text: &str, chars_max: usize) -> String {
    // A word has at least one character.
    let words: Vec<&str> = text.split_whitespace().take(chars_max).collect();
    words.join(" ")
}

/// Returns `start` and the parts after it, separated by spaces, in lines of at most `columns`
/// characters if the parts fit. The lines after the first are indented.
pub fn wrapped<'t>(
    start: &str,
    parts: impl Iterator<Item = &'t str>,
    columns: usize,
    indent: usize,
) -> String {
    let mut text = start.to_owned();
    let mut column = start.chars().count();
    for (index, part) in parts.enumerate() {
        let width = part.chars().count();
        if index > 0 && column + 1 + width > columns {
            text.push('\n');
            text.push_str(&" ".repeat(indent));
            column = indent;
        } else if index > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(part);
        column += width;
    }
    text
}

fn escaped_except(text: &str, is_kept: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    push_escaped_except(text, is_kept, &mut out);
    out
}

fn push_escaped_except(text: &str, is_kept: impl Fn(char) -> bool, out: &mut String) {
    // Most texts are of printable ASCII.
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return out.push_str(text);
    }
    for c in text.chars() {
        if needs_escape(c) && !is_kept(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
}

/// Returns whether a character is escaped: control characters, line separators, direction marks and
/// invisible characters, which are Unicode's `Default_Ignorable_Code_Point`, interlinear
/// annotations and the blank Braille pattern. What joins letters and emoji (U+200C, U+200D, U+FE00
/// to U+FE0F) is invisible too, but some languages cannot be written without it. See Unicode
/// Technical Report 36, section 2.10.
fn needs_escape(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}'
            | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}' | '\u{200e}'
            | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}'
            | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First and last characters of each range that is escaped, by what they could do.
    const ESCAPED: &[(char, char)] = &[
        // Control a terminal: C0, DELETE and C1.
        ('\0', '\u{1f}'),
        ('\u{7f}', '\u{9f}'),
        // End a line.
        ('\u{2028}', '\u{2029}'),
        // Change the order: marks, embeddings, overrides and isolates.
        ('\u{61c}', '\u{61c}'),
        ('\u{200e}', '\u{200f}'),
        ('\u{202a}', '\u{202e}'),
        ('\u{2066}', '\u{2069}'),
        // Be invisible: no width, fillers, selectors, deprecated formats, annotations, tags.
        ('\u{ad}', '\u{ad}'),
        ('\u{34f}', '\u{34f}'),
        ('\u{115f}', '\u{1160}'),
        ('\u{17b4}', '\u{17b5}'),
        ('\u{180b}', '\u{180f}'),
        ('\u{200b}', '\u{200b}'),
        ('\u{2060}', '\u{206f}'),
        ('\u{2800}', '\u{2800}'),
        ('\u{3164}', '\u{3164}'),
        ('\u{feff}', '\u{feff}'),
        ('\u{ffa0}', '\u{ffa0}'),
        ('\u{fff0}', '\u{fffb}'),
        ('\u{1bca0}', '\u{1bca3}'),
        ('\u{1d173}', '\u{1d17a}'),
        ('\u{e0000}', '\u{e0fff}'),
    ];

    #[test]
    fn exactly_the_characters_of_the_table_are_escaped() {
        for c in '\0'..=char::MAX {
            let listed = ESCAPED.iter().any(|(first, last)| (*first..=*last).contains(&c));
            assert_eq!(escaped(&c.to_string()) != c.to_string(), listed, "{c:?}");
            assert_eq!(
                sanitized(&c.to_string()) != c.to_string(),
                listed && c != '\n' && c != '\t'
            );
            let json = format!("\"{c}\"");
            let changed = listed && c != '\n' && c != '\t';
            assert_eq!(escaped_json(&json) != json, changed, "{c:?}");
        }
    }

    #[test]
    fn escapes_are_spelled_as_in_rust_and_in_json_as_in_json() {
        let hostile = "a\nb\t\r\u{1b}[2J\u{9b}\u{202e}c\u{200b}\u{e0041}\\";
        let line = "a\\nb\\t\\r\\u{1b}[2J\\u{9b}\\u{202e}c\\u{200b}\\u{e0041}\\";
        assert_eq!(escaped(hostile), line);
        assert_eq!(escaped(line), line);
        assert_eq!(sanitized(hostile), "a\nb\t\\r\\u{1b}[2J\\u{9b}\\u{202e}c\\u{200b}\\u{e0041}\\");
        assert_eq!(
            escaped_json("{\"a\":\r\n\t\"\u{7f}\u{202e}\u{e0041}ä\\n\"}"),
            "{\"a\": \n\t\"\\u007f\\u202e\\udb40\\udc41ä\\n\"}"
        );
    }

    #[test]
    fn what_joins_letters_and_emoji_is_kept() {
        let innocent =
            "naïve \u{1f469}\u{200d}\u{1f4bb} \u{645}\u{6cc}\u{200c}\u{62e} \u{2764}\u{fe0f}";
        assert_eq!(escaped(innocent), innocent);
        assert!(matches!(escaped_json(innocent), Cow::Borrowed(same) if same == innocent));
    }

    #[test]
    fn quotes_can_be_told_from_what_they_enclose() {
        assert_eq!(quoted("a\"? [y]es"), r#""a\"? [y]es""#);
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        assert_eq!(quoted("a\\nb\\"), r#""a\\nb\\""#);
    }

    #[test]
    fn text_is_cut_at_a_number_of_columns() {
        assert_eq!((fitting("a\u{4f60}b", 3), fitting("a\u{4f60}b", 2)), ("a\u{4f60}", "a"));
        assert_eq!((fitting("ab", 2), fitting("ab", 0)), ("ab", ""));
    }

    #[test]
    fn text_is_cut_one_past_the_limit_and_between_characters() {
        assert_eq!(truncated("äöü", 3), "äöü");
        assert_eq!(truncated("äöüß", 3), "äöü…");
        assert_eq!((prefix("äöü", 2), prefix("äöü", 0), prefix("äöü", 4)), ("äö", "", "äöü"));
        assert_eq!(truncated("x", 0), "…");
        assert_eq!(words(" a  b\n\tc d", 3), "a b c");
    }
}
