//! Texts as JSON strings: escaping a text, and keeping one with its escapes.

use super::members::unquoted;
use super::special::find_special;

/// Appends `text` as a JSON string.
///
/// Control characters, C1 included, and U+2028 and U+2029 are escaped, so every reader takes the
/// result as one line.
pub fn quote(text: &str, out: &mut String) {
    out.push('"');
    // The bytes between are copied in runs.
    let mut copied = 0;
    find_special(text.as_bytes(), |at| {
        let c = char_at(text, at)?;
        let numbered;
        let escape = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            c if has_number(c) => {
                numbered = number_of(c);
                &numbered
            }
            _ => return None,
        };
        out.push_str(text.get(copied..at)?);
        out.push_str(escape);
        copied = at + c.len_utf8();
        None::<()>
    });
    out.push_str(text.get(copied..).unwrap_or_default());
    out.push('"');
}

/// Returns the character that begins at `at`, if [`quote`] may escape it.
fn char_at(text: &str, at: usize) -> Option<char> {
    match *text.as_bytes().get(at)? {
        byte @ ..0x80 => Some(char::from(byte)),
        // C1 begins with C2, and U+2028 with E2.
        0xc2 | 0xe2 => text.get(at..)?.chars().next(),
        _ => None,
    }
}

/// Returns whether [`quote`] escapes a character with its number, if it has no shorter escape.
fn has_number(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Returns that escape.
fn number_of(c: char) -> String {
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
        // Where the next character begins, and how much longer the escapes before it are than what
        // they stand for.
        let (mut next, mut longer) = (0, 0);
        let bytes = text.as_bytes();
        let end = find_special(bytes, |at| match *bytes.get(at).filter(|_| at >= next)? {
            b'\\' => {
                let Some((length, of_text)) = escape_at(text, at) else { return Some(at) };
                (next, longer) = (at + length, longer + length - of_text);
                None
            }
            b'"' => Some(at),
            _ => char_at(text, at).is_some_and(has_number).then_some(at),
        });
        let at = end?;
        let (inner, rest) = text.split_at_checked(at)?;
        let rest = rest.strip_prefix('"')?;
        let mut json = String::with_capacity(at + 2);
        json.push('"');
        json.push_str(inner);
        json.push('"');
        Some((Quoted { json, len: at - longer }, rest))
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

/// Returns the length of an escape of [`quote`] at `at`, and of the character that it stands for.
#[inline(always)]
fn escape_at(text: &str, at: usize) -> Option<(usize, usize)> {
    match text.as_bytes().get(at + 1)? {
        b'"' | b'\\' | b'n' | b'r' | b't' => Some((2, 1)),
        _ => numbered_at(text, at),
    }
}

/// Returns the same for an escape with a number.
fn numbered_at(text: &str, at: usize) -> Option<(usize, usize)> {
    let escape = text.get(at..at + 6)?;
    let number = u32::from_str_radix(escape.strip_prefix("\\u")?, 16).ok()?;
    let c = char::from_u32(number).filter(|c| !matches!(c, '\n' | '\r' | '\t'))?;
    (has_number(c) && number_of(c) == escape).then(|| (6, c.len_utf8()))
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
