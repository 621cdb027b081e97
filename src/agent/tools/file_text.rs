//! The text of a file: its encoding, its line ends, and edits that keep both. Pure.

use std::ops::Range;

use crate::limits;
use crate::text::{prefix, truncated};

/// A file with a NUL in its first bytes is binary, as for grep and git.
const PROBE_BYTES: usize = 8 * 1024;
const MARK: char = '\u{feff}';
/// An edit that occurs more often is not counted further.
const OCCURRENCES_MAX: usize = 1_000;

/// Returns what a file is that begins with these bytes, if it is no UTF-8 text.
pub fn describe_other(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        Some("UTF-16 text")
    } else if is_binary(bytes) {
        Some("a binary file")
    } else if std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_some()) {
        Some("text in another encoding than UTF-8, such as Latin-1")
    } else {
        None
    }
}

/// Returns whether a file that begins with these bytes is binary.
pub fn is_binary(beginning: &[u8]) -> bool {
    beginning.get(..PROBE_BYTES).unwrap_or(beginning).contains(&0)
}

/// Returns a line, or as much of a long one as is shown, with the match in it.
pub fn excerpt(line: &[u8], found: Range<usize>) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let text = String::from_utf8_lossy(line);
    let before = String::from_utf8_lossy(line.get(..found.start).unwrap_or(line)).chars().count();
    let skipped = if prefix(&text, limits::MATCH_CHARS_MAX).len() == text.len() {
        0
    } else {
        before.saturating_sub(limits::MATCH_CHARS_MAX / 4)
    };
    let start = text.char_indices().nth(skipped).map_or(text.len(), |(start, _)| start);
    let rest = text.get(start..).unwrap_or_default();
    let more = if skipped > 0 { "…" } else { "" };
    format!("{more}{}", truncated(rest, limits::MATCH_CHARS_MAX))
}

/// Returns `new` with the line ends and the byte order mark of the text that it replaces.
pub fn rewrite(old: &str, new: &str) -> String {
    let old_lines = Lines::of(old);
    let all = old_lines.text.matches('\n').count();
    let text = match old_lines.returns.len() {
        _ if all == 0 => new.to_owned(),
        returns => with_ends(new, returns * 2 > all),
    };
    let mark = if old.starts_with(MARK) && !new.starts_with(MARK) { "\u{feff}" } else { "" };
    format!("{mark}{text}")
}

/// Replaces the only occurrence of `old` in a text, whether their line ends are the same or not.
/// Returns the new text and the number of the line, or else how often `old` occurs.
pub fn edit(text: &str, old: &str, new: &str) -> Result<(String, usize), usize> {
    let lines = Lines::of(text);
    let old = Lines::of(old).text;
    let places: Vec<usize> = occurrences(&lines.text, &old).take(OCCURRENCES_MAX).collect();
    let [start] = *places.as_slice() else { return Err(places.len()) };
    let end = start + old.len();
    let new = match lines.has_return_at(start) {
        Some(has_return) => with_ends(new, has_return),
        None => new.to_owned(),
    };
    let before = text.get(..lines.original(start)).unwrap_or_default();
    let after = text.get(lines.original(end)..).unwrap_or_default();
    let line = lines.text.get(..start).unwrap_or_default().matches('\n').count() + 1;
    Ok((format!("{before}{new}{after}"), line))
}

/// Returns whether an edit would change nothing.
pub fn is_same(old: &str, new: &str) -> bool {
    Lines::of(old).text == Lines::of(new).text
}

/// A text whose lines end with LF.
struct Lines {
    text: String,
    /// The positions of the line ends that were CRLF.
    returns: Vec<usize>,
}

impl Lines {
    fn of(text: &str) -> Lines {
        let mut lines = Lines { text: String::with_capacity(text.len()), returns: Vec::new() };
        for line in text.split_inclusive('\n') {
            match line.strip_suffix("\r\n") {
                Some(line) => {
                    lines.text.push_str(line);
                    lines.returns.push(lines.text.len());
                    lines.text.push('\n');
                }
                None => lines.text.push_str(line),
            }
        }
        lines
    }

    /// Returns the position in the original text. That of a line end is before its CR.
    fn original(&self, at: usize) -> usize {
        at + self.returns.partition_point(|place| *place < at)
    }

    /// Returns whether the next line end is CRLF, or else the one before; `None` if there is none.
    fn has_return_at(&self, at: usize) -> Option<bool> {
        let (before, after) = self.text.split_at_checked(at)?;
        let next = after.find('\n').map(|place| at + place);
        let place = next.or_else(|| before.rfind('\n'))?;
        Some(self.returns.binary_search(&place).is_ok())
    }
}

/// Returns a text whose lines all end with CRLF, or all with LF.
fn with_ends(text: &str, returns: bool) -> String {
    let text = Lines::of(text).text;
    if returns { text.replace('\n', "\r\n") } else { text }
}

/// Returns where `part` occurs in `text`. Occurrences that overlap count, since it is not clear
/// which one is meant.
fn occurrences<'t>(text: &'t str, part: &'t str) -> impl Iterator<Item = usize> + 't {
    let step = part.chars().next().map_or(1, char::len_utf8);
    let next = move |from: usize| Some(from + text.get(from..)?.find(part)?);
    std::iter::successors(next(0), move |at| next(at + step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_keeps_the_line_ends_of_its_place() {
        let edited = |text, old, new| edit(text, old, new).unwrap().0;
        let crlf = "one\r\ntwo\r\nthree\r\n";
        assert_eq!(edited(crlf, "one\ntwo", "1\n2\n2b"), "1\r\n2\r\n2b\r\nthree\r\n");
        assert_eq!(edited(crlf, "two", "2\n2b"), "one\r\n2\r\n2b\r\nthree\r\n");
        assert_eq!(edited(crlf, "three\n", ""), "one\r\ntwo\r\n");
        assert_eq!(edited(crlf, "\nthree", ""), "one\r\ntwo\r\n");
        assert_eq!(edited(crlf, "two\r\nthree\r\n", "2\r\n"), "one\r\n2\r\n");
        assert_eq!(edited("a\nb\n", "a\r\nb", "1\r\n2"), "1\n2\n");
        assert_eq!(edited("a\r\nb", "b", "1\n2"), "a\r\n1\r\n2");
        assert_eq!(edited("a", "a", "1\r\n2"), "1\r\n2");
        // Mixed before, and not more mixed than that.
        assert_eq!(edited("a\nb\r\nc\n", "b", "1\n2"), "a\n1\r\n2\r\nc\n");
        assert_eq!(edit(crlf, "e\r\n", ""), Err(2));
        assert_eq!(edit(crlf, "four", ""), Err(0));
        assert_eq!(edit(crlf, "three", "x").unwrap().1, 3);
        assert!(is_same("a\r\n", "a\n") && !is_same("a", "b"));
    }

    #[test]
    fn a_text_that_replaces_another_has_its_line_ends_and_its_mark() {
        assert_eq!(rewrite("a\r\nb\r\n", "1\n2\n3"), "1\r\n2\r\n3");
        assert_eq!(rewrite("a\r\nb\r\n", "1\r\n2\n"), "1\r\n2\r\n");
        assert_eq!(rewrite("a\nb\n", "1\r\n2\r\n"), "1\n2\n");
        assert_eq!(rewrite("a\r\nb\r\nc\n", "1\n"), "1\r\n");
        assert_eq!(rewrite("a", "1\r\n"), "1\r\n");
        assert_eq!(rewrite("\u{feff}a\n", "b\n"), "\u{feff}b\n");
        assert_eq!(rewrite("\u{feff}a\n", "\u{feff}b\n"), "\u{feff}b\n");
    }

    #[test]
    fn other_encodings_are_named() {
        assert_eq!(describe_other("grüße".as_bytes()), None);
        // Cut within a character.
        assert_eq!(describe_other(b"gr\xc3"), None);
        assert!(describe_other(b"gr\xfc\xdfe").unwrap().contains("Latin-1"));
        assert_eq!(describe_other(b"\xff\xfeg\0r\0"), Some("UTF-16 text"));
        assert_eq!(describe_other(b"PNG\0"), Some("a binary file"));
    }
}
