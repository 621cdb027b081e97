//! Texts of peers that cut strings in the middle of a surrogate pair.
//!
//! JSON writes a character beyond U+FFFF as one or as two escapes, and a peer that sends a text in
//! pieces may put the second escape into the next piece. A lone surrogate is no character, and
//! [`parse`](super::parse) rejects it, as it rejects bytes that are not UTF-8. [`repair`] makes
//! such a text one that can be parsed, and [`Joiner`] puts the pairs together. Requests to us are
//! still parsed strictly.

use std::borrow::Cow;

use super::grammar::code_unit;

/// Placeholders for the surrogates until they are joined: the last 2048 characters for private use.
const PLACEHOLDERS: u32 = 0x10_F800;

/// Returns a text that [`parse`](super::parse) accepts if only its characters were wrong, and
/// whether it has lone surrogates, for [`Joiner`]. What is no character otherwise becomes U+FFFD.
pub fn repair(bytes: &[u8]) -> (Cow<'_, str>, bool) {
    let text = String::from_utf8_lossy(bytes);
    let surrogates = lone_surrogates(&text);
    if surrogates.is_empty() {
        return (text, false);
    }
    let ambiguous = has_placeholders(&text);
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    for (at, surrogate) in surrogates {
        out.push_str(text.get(copied..at).unwrap_or_default());
        out.push(if ambiguous { '\u{fffd}' } else { placeholder(surrogate) });
        copied = at + 6;
    }
    out.push_str(text.get(copied..).unwrap_or_default());
    (out.into(), !ambiguous)
}

/// Returns the escapes that are lone surrogates, each with its place.
fn lone_surrogates(text: &str) -> Vec<(usize, u16)> {
    let mut surrogates = Vec::new();
    let mut at = 0;
    while let Some(next) = text.get(at..).and_then(|rest| rest.find('\\')) {
        at += next;
        at += match (code_unit(text, at), code_unit(text, at + 6)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
            (Some(surrogate @ 0xD800..=0xDFFF), _) => {
                surrogates.push((at, surrogate));
                6
            }
            // Whatever is escaped, it does not begin another escape.
            _ => 2,
        };
    }
    surrogates
}

/// Returns whether a text has the placeholders' characters itself, which then cannot be
/// placeholders.
fn has_placeholders(text: &str) -> bool {
    let lowercase = text.to_ascii_lowercase();
    text.chars().any(|c| surrogate(c).is_some())
        || ["\\udbfe\\u", "\\udbff\\u"].iter().any(|first| lowercase.contains(first))
}

fn placeholder(surrogate: u16) -> char {
    char::from_u32(PLACEHOLDERS + u32::from(surrogate) - 0xD800).unwrap_or('\u{fffd}')
}

fn surrogate(placeholder: char) -> Option<u16> {
    let index = u32::from(placeholder).checked_sub(PLACEHOLDERS)?;
    u16::try_from(index + 0xD800).ok()
}

/// A joiner of the pieces of one text.
#[derive(Default)]
pub struct Joiner {
    /// A first surrogate at the end of the last piece.
    held: Option<u16>,
}

impl Joiner {
    /// Returns a piece as it continues those before. A first surrogate at its end is held back for
    /// the next piece. `has_surrogates` is what [`repair`] returned for the text that has the
    /// piece.
    pub fn join(&mut self, piece: String, has_surrogates: bool) -> String {
        if piece.is_empty() || (self.held.is_none() && !has_surrogates) {
            return piece;
        }
        let mut units = Vec::from_iter(self.held.take());
        for character in piece.chars() {
            match surrogate(character) {
                Some(surrogate) if has_surrogates => units.push(surrogate),
                _ => units.extend_from_slice(character.encode_utf16(&mut [0; 2])),
            }
        }
        self.held = units.pop_if(|last| (0xD800..=0xDBFF).contains(last));
        String::from_utf16_lossy(&units)
    }

    /// Returns what follows the last piece: U+FFFD for a surrogate that is still held back.
    pub fn end(&mut self) -> &'static str {
        if self.held.take().is_some() { "\u{fffd}" } else { "" }
    }

    /// Returns a text that is one piece.
    pub fn whole(text: String, has_surrogates: bool) -> String {
        let mut joiner = Joiner::default();
        let text = joiner.join(text, has_surrogates);
        text + joiner.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn pairs_and_other_escapes_are_left_unchanged() {
        for text in [r#"{"a":"\ud83d\ude00 \\ud83d \u00e4\\\\"}"#, "\"\u{10f83d}\"", "\\", "\\u12"]
        {
            let (repaired, has_surrogates) = repair(text.as_bytes());
            assert!(matches!(repaired, Cow::Borrowed(same) if same == text));
            assert!(!has_surrogates);
        }
        assert_eq!(repair(b"\"a\xffb\""), ("\"a\u{fffd}b\"".into(), false));
    }

    #[test]
    fn every_lone_surrogate_can_be_parsed_and_is_replaced() {
        for surrogate in 0xD800..=0xDFFF_u32 {
            let text = format!("[\"a\\\\\\u{surrogate:04x}b\",\"\\u{surrogate:04X}\"]");
            assert!(json::check(&text).is_err());
            let (repaired, has_surrogates) = repair(text.as_bytes());
            let parts: Vec<String> = json::parse(repaired.as_bytes()).unwrap();
            let parts: Vec<String> =
                parts.into_iter().map(|part| Joiner::whole(part, has_surrogates)).collect();
            assert_eq!(parts, ["a\\\u{fffd}b", "\u{fffd}"], "{surrogate:x}");
        }
    }

    #[test]
    fn a_pair_is_joined_across_pieces() {
        let mut joiner = Joiner::default();
        let mut joined = String::new();
        for piece in ["a\\ud83d", "", "\\ude00b", "\\udbff", "\\udfff", "\\ud83d"] {
            let text = format!("\"{piece}\"");
            let (repaired, has_surrogates) = repair(text.as_bytes());
            joined += &joiner.join(json::parse(repaired.as_bytes()).unwrap(), has_surrogates);
        }
        assert_eq!(joined, "a\u{1f600}b\u{10ffff}");
        assert_eq!((joiner.end(), joiner.end()), ("\u{fffd}", ""));
    }
}
