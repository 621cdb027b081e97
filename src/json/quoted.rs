//! Texts as JSON strings: escaping a text, and keeping one with its escapes.

use super::members::unquoted;
use super::special::find_special;

/// Appends `text` as a JSON string.
///
/// Control characters, C1 included, and U+2028 and U+2029 are escaped, so every reader takes the
/// result as one line.
pub fn quote(text: &str, out: &mut String) {
    out.push('"');
    let mut rest = text;
    // Most bytes are copied in runs.
    while let Some(at) = find_special(rest.as_bytes(), may_be_escaped) {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let mut after = after.chars();
        match after.next() {
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            Some(c) if has_number(c) => out.push_str(&numbered(c)),
            Some(c) => out.push(c),
            None => {}
        }
        rest = after.as_str();
    }
    out.push_str(rest);
    out.push('"');
}

/// Returns whether a character that [`quote`] escapes may begin with this byte.
fn may_be_escaped(byte: u8) -> bool {
    // C1 begins with C2, and U+2028 with E2.
    matches!(byte, ..b' ' | b'"' | b'\\' | 0x7f | 0xc2 | 0xe2)
}

/// Returns whether [`quote`] escapes a character with its number, if it has no shorter escape.
fn has_number(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

fn numbered(c: char) -> String {
    format!("\\u{:04x}", u32::from(c))
}

/// A text that is kept as [`quote`] escapes it, and can be sent again as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Quoted {
    json: String,
    /// The bytes of the text itself.
    len: usize,
}

impl Quoted {
    /// Escapes a text.
    pub fn new(text: &str) -> Quoted {
        let mut json = String::with_capacity(text.len() + text.len() / 8 + 2);
        quote(text, &mut json);
        Quoted { json, len: text.len() }
    }

    /// Reads a string after its opening quote. Returns what follows it, too; `None` if it is
    /// escaped in another way.
    pub fn read(text: &str) -> Option<(Quoted, &str)> {
        let bytes = text.as_bytes();
        let (mut at, mut escapes) = (0, 0);
        loop {
            at += find_special(bytes.get(at..)?, may_be_escaped)?;
            let (length, of_text) = match (bytes.get(at)?, bytes.get(at + 1)) {
                (b'"', _) => break,
                (b'\\', Some(b'"' | b'\\' | b'n' | b'r' | b't')) => (2, 1),
                (b'\\', _) => {
                    let escape = text.get(at..at + 6)?;
                    let number = u32::from_str_radix(escape.strip_prefix("\\u")?, 16).ok()?;
                    let c = char::from_u32(number).filter(|c| {
                        !matches!(c, '\n' | '\r' | '\t') && has_number(*c) && numbered(*c) == escape
                    })?;
                    (6, c.len_utf8())
                }
                _ => {
                    let c = text.get(at..)?.chars().next().filter(|c| !has_number(*c))?;
                    (c.len_utf8(), c.len_utf8())
                }
            };
            at += length;
            escapes += length - of_text;
        }
        let (inner, rest) = text.split_at_checked(at)?;
        let mut json = String::with_capacity(at + 2);
        json.push('"');
        json.push_str(inner);
        json.push('"');
        Some((Quoted { json, len: at - escapes }, rest.get(1..)?))
    }

    /// Returns the bytes of the text itself.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns the text itself.
    pub fn text(&self) -> String {
        unquoted(&self.json).unwrap_or_default().into_owned()
    }

    /// Returns the text as a JSON string.
    pub fn as_json(&self) -> &str {
        &self.json
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn quoting_is_undone_by_parsing_and_stays_on_one_line() {
        let all: String = ('\0'..'\u{3000}').chain(['\u{fffd}', '😀']).collect();
        let mut quoted = String::new();
        quote(&all, &mut quoted);
        assert_eq!(json::parse::<String>(quoted.as_bytes()), Ok(all.clone()));
        assert!(!quoted.contains(|c: char| c.is_control() || c == '\u{2028}' || c == '\u{2029}'));
        assert_eq!(json::parse::<String>(json::text(&all).as_bytes()), Ok(all));
    }

    #[test]
    fn a_quoted_text_is_read_as_it_was_written() {
        let all: String = ('\0'..'\u{3000}').chain(['\u{fffd}', '😀']).collect();
        for text in ["", "a", "\\", "\"", "a\nb\"c\\d\u{1}\u{2028}\u{85}ü", &all] {
            let quoted = Quoted::new(text);
            assert_eq!((quoted.len(), quoted.text().as_str()), (text.len(), text));
            let rest = format!("{},\"a\":\"\"", quoted.as_json());
            let read = Quoted::read(rest.strip_prefix('"').unwrap());
            assert_eq!(read, Some((quoted, ",\"a\":\"\"")));
        }
    }

    #[test]
    fn other_escapes_are_not_read() {
        for text in [
            "no end",
            "\\",
            "\\\"",
            "\n\"",
            "\u{85}\"",
            "\u{2028}\"",
            "\\u0041\"",
            "\\u000a\"",
            "\\b\"",
            "\\/\"",
            "\\u001B\"",
            "\\u+01b\"",
            "\\ud83d\\ude00\"",
            "\\u00\"",
            "\\x\"",
        ] {
            assert_eq!(Quoted::read(text), None, "{text}");
        }
    }
}
