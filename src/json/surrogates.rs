//! Texts of peers that cut strings in the middle of a character.
//!
//! JSON writes a character beyond U+FFFF as one or as two escapes, and who sends a text in pieces
//! may put the second into the next one. Each half is no character, and [`parse`](super::parse)
//! refuses it, as it refuses bytes that are not UTF-8. [`repair`] makes such a text one that can be
//! read, and [`Joiner`] puts the halves together. For what we are asked, the strict way stays.

use std::borrow::Cow;

use super::scan;

/// What stands for the halves until they are joined: the last 2048 characters for private use.
const STAND_INS: u32 = 0x10_F800;

/// A text that [`parse`](super::parse) can be given, and whether there are halves of characters in
/// it, for [`Joiner`]. What else is no character has become U+FFFD.
pub fn repair(bytes: &[u8]) -> (Cow<'_, str>, bool) {
    let text = String::from_utf8_lossy(bytes);
    let halves = halves(&text);
    if halves.is_empty() {
        return (text, false);
    }
    let ambiguous = has_stand_ins(&text);
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    for (at, half) in halves {
        out.push_str(text.get(copied..at).unwrap_or_default());
        out.push(if ambiguous { '\u{fffd}' } else { stand_in(half) });
        copied = at + 6;
    }
    out.push_str(text.get(copied..).unwrap_or_default());
    (out.into(), !ambiguous)
}

/// The halves that stand alone in a text, each with its place.
fn halves(text: &str) -> Vec<(usize, u16)> {
    let mut halves = Vec::new();
    let mut at = 0;
    while let Some(next) = text.get(at..).and_then(|rest| rest.find('\\')) {
        at += next;
        at += match (scan::unit(text, at), scan::unit(text, at + 6)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
            (Some(half @ 0xD800..=0xDFFF), _) => {
                halves.push((at, half));
                6
            }
            // Whatever is escaped, it is not the beginning of an escape.
            _ => 2,
        };
    }
    halves
}

/// Whether a text has the characters themselves, which then cannot stand for others.
fn has_stand_ins(text: &str) -> bool {
    let escaped = text.to_ascii_lowercase();
    text.chars().any(|c| half(c).is_some())
        || ["\\udbfe\\u", "\\udbff\\u"].iter().any(|first| escaped.contains(first))
}

fn stand_in(half: u16) -> char {
    char::from_u32(STAND_INS + u32::from(half) - 0xD800).unwrap_or('\u{fffd}')
}

fn half(stand_in: char) -> Option<u16> {
    let number = u32::from(stand_in).checked_sub(STAND_INS)?;
    u16::try_from(number + 0xD800).ok()
}

/// Where the pieces of one text are joined.
#[derive(Default)]
pub struct Joiner {
    /// The first half of a character.
    held: Option<u16>,
}

impl Joiner {
    /// A piece as it follows on those before. A first half at its end is held back for the next.
    /// `has_halves` is what [`repair`] says of the text that the piece comes from.
    pub fn join(&mut self, piece: String, has_halves: bool) -> String {
        if piece.is_empty() || (self.held.is_none() && !has_halves) {
            return piece;
        }
        let mut units = Vec::from_iter(self.held.take());
        for character in piece.chars() {
            match half(character) {
                Some(half) if has_halves => units.push(half),
                _ => units.extend_from_slice(character.encode_utf16(&mut [0; 2])),
            }
        }
        self.held = units.pop_if(|last| (0xD800..=0xDBFF).contains(last));
        String::from_utf16_lossy(&units)
    }

    /// What is left behind the last piece: U+FFFD for a half that has remained alone.
    pub fn end(&mut self) -> &'static str {
        if self.held.take().is_some() { "\u{fffd}" } else { "" }
    }

    /// A text that is one piece.
    pub fn whole(text: String, has_halves: bool) -> String {
        let mut seam = Joiner::default();
        let text = seam.join(text, has_halves);
        text + seam.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn what_is_whole_is_left_as_it_is() {
        for text in [r#"{"a":"\ud83d\ude00 \\ud83d \u00e4\\\\"}"#, "\"\u{10f83d}\"", "\\", "\\u12"]
        {
            let (mended, has_halves) = repair(text.as_bytes());
            assert!(matches!(mended, Cow::Borrowed(same) if same == text));
            assert!(!has_halves);
        }
        assert_eq!(repair(b"\"a\xffb\""), ("\"a\u{fffd}b\"".into(), false));
    }

    #[test]
    fn every_half_can_be_read_and_is_replaced_if_it_stays_alone() {
        for half in 0xD800..=0xDFFF_u32 {
            let text = format!("[\"a\\\\\\u{half:04x}b\",\"\\u{half:04X}\"]");
            assert!(json::check(&text).is_err());
            let (mended, has_halves) = repair(text.as_bytes());
            let parts: Vec<String> = json::parse(mended.as_bytes()).unwrap();
            let parts: Vec<String> =
                parts.into_iter().map(|part| Joiner::whole(part, has_halves)).collect();
            assert_eq!(parts, ["a\\\u{fffd}b", "\u{fffd}"], "{half:x}");
        }
    }

    #[test]
    fn halves_meet_across_pieces_without_a_word() {
        let mut seam = Joiner::default();
        let mut said = String::new();
        for piece in ["a\\ud83d", "", "\\ude00b", "\\udbff", "\\udfff", "\\ud83d"] {
            let text = format!("\"{piece}\"");
            let (mended, has_halves) = repair(text.as_bytes());
            said += &seam.join(json::parse(mended.as_bytes()).unwrap(), has_halves);
        }
        assert_eq!(said, "a\u{1f600}b\u{10ffff}");
        assert_eq!((seam.end(), seam.end()), ("\u{fffd}", ""));
    }
}
