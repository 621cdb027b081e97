//! Which lines of the log are wanted, and how they come out.
//!
//! A line is what is stored up to a line feed. Empty ones are neither shown nor counted. Foreign
//! ones, which the daemon has not written as it writes lines (a panic's text), count as errors of
//! no known time. No line is kept longer than the limit, whatever is in the file.

use std::io::Write;

use super::line::Line;
use super::{Form, Level, Query};
use crate::error::Error;
use crate::json;
use crate::limits::LOG_LINE_BYTES_MAX;
use crate::lines::{Lines, READ_BYTES};
use crate::text::{escaped_json, sanitized};

pub(super) enum Verdict {
    Wanted,
    Passed,
    /// Neither this one nor any before it.
    TooOld,
}

impl Query {
    /// Looks at a line as it is stored, without its end; one byte more than is shown of a line will
    /// do.
    pub(super) fn verdict(&self, stored: &[u8]) -> Verdict {
        let (text, whole) = text_of(stored);
        if text.is_empty() {
            return Verdict::Passed;
        }
        if self.least == Level::Debug && self.since.is_none() {
            return Verdict::Wanted;
        }
        match whole.then(|| Line::parse(text)).flatten() {
            Some(line) if self.since.is_some_and(|since| line.ts < since) => Verdict::TooOld,
            Some(line) if line.level < self.least => Verdict::Passed,
            _ => Verdict::Wanted,
        }
    }
}

/// The text of a line without a carriage return at its end, or as much of it as is shown, and
/// whether that is all.
fn text_of(stored: &[u8]) -> (&[u8], bool) {
    match stored.get(..LOG_LINE_BYTES_MAX) {
        Some(shown) if stored.len() > LOG_LINE_BYTES_MAX => (shown, false),
        _ => (stored.strip_suffix(b"\r").unwrap_or(stored), true),
    }
}

/// Turns stored bytes into shown lines.
pub(super) struct Printer<'a, W: Write + ?Sized> {
    query: Query,
    pub out: &'a mut W,
    /// Shown, and not yet written out.
    shown: String,
    lines: Lines,
}

impl<'a, W: Write + ?Sized> Printer<'a, W> {
    pub fn new(query: Query, out: &'a mut W) -> Printer<'a, W> {
        Printer { query, out, shown: String::new(), lines: Lines::new(LOG_LINE_BYTES_MAX) }
    }

    /// From now on lines are shown whatever time they bear: they are new.
    pub fn forget_since(&mut self) {
        self.query.since = None;
    }

    /// Takes in what is stored next, and shows the lines that it ends.
    pub fn add(&mut self, stored: &[u8]) -> Result<(), Error> {
        self.lines.push(stored);
        while let Some(line) = self.lines.next() {
            show(&self.query, line, &mut self.shown);
        }
        if self.shown.len() > READ_BYTES { self.flush() } else { Ok(()) }
    }

    /// Shows what there is of a line that will not grow any more.
    pub fn end_line(&mut self) {
        if let Some(line) = self.lines.take_pending() {
            show(&self.query, line, &mut self.shown);
        }
    }

    /// Writes out what is shown so far.
    pub fn flush(&mut self) -> Result<(), Error> {
        let written = self.out.write_all(self.shown.as_bytes()).and_then(|()| self.out.flush());
        self.shown.clear();
        written.map_err(Error::output)
    }
}

/// Appends a line as `query` wants it, if it is wanted.
fn show(query: &Query, stored: &[u8], out: &mut String) {
    if !matches!(query.verdict(stored), Verdict::Wanted) {
        return;
    }
    let (text, whole) = text_of(stored);
    let line = whole.then(|| Line::parse(text)).flatten();
    match (query.form, line) {
        (Form::Text(style), Some(line)) => line.show(style, out),
        (Form::Text(_), None) => {
            out.push_str(&sanitized(&String::from_utf8_lossy(text)));
            out.push_str(if whole { "" } else { "…" });
        }
        (Form::Json, Some(line)) if json::check(line.stored()).is_ok() => {
            out.push_str(&escaped_json(line.stored()));
        }
        (Form::Json, _) => {
            let mut text = String::from_utf8_lossy(text);
            if !whole {
                text.to_mut().push('…');
            }
            out.push_str("{\"level\":\"ERROR\",\"msg\":");
            let mut quoted = String::new();
            json::quote(&text, &mut quoted);
            out.push_str(&escaped_json(&quoted));
            out.push('}');
        }
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::super::Style;
    use super::*;

    fn shown(form: Form, stored: &[u8]) -> String {
        let mut out = Vec::new();
        let query = Query { lines: 1, least: Level::Debug, since: None, form };
        let mut printer = Printer::new(query, &mut out);
        printer.add(stored).unwrap();
        printer.flush().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn no_line_of_either_form_controls_a_terminal() {
        let hostile = "\u{1b}[2J\u{7f}\u{9b}\u{200b}\u{202e}\u{2028}\u{e0041}";
        let escaped = "\\u{1b}[2J\\u{7f}\\u{9b}\\u{200b}\\u{202e}\\u{2028}\\u{e0041}";
        let in_json = "\\u001b[2J\\u007f\\u009b\\u200b\\u202e\\u2028\\udb40\\udc41";
        let foreign = format!("\tat {hostile}\n");
        let text = Form::Text(Style::Plain);
        assert_eq!(shown(text, foreign.as_bytes()), format!("\tat {escaped}\n"));
        assert_eq!(shown(text, b"\tat main.rs\xff\n"), "\tat main.rs\u{fffd}\n");
        assert_eq!(
            shown(Form::Json, foreign.as_bytes()),
            format!("{{\"level\":\"ERROR\",\"msg\":\"\\tat {in_json}\"}}\n")
        );
        // As the daemon stores it, which escapes what ends a line or controls a terminal.
        let ours = |value: &str| {
            let time = "2026-03-01T10:00:00.000Z";
            format!("{{\"ts\":\"{time}\",\"level\":\"INFO\",\"msg\":\"m\",\"k\":{value}}}\n")
        };
        let mut stored = String::new();
        json::quote(hostile, &mut stored);
        let line = shown(text, ours(&stored).as_bytes());
        assert!(line.ends_with(&format!(" INFO  m k=\"{escaped}\"\n")), "{line}");
        assert_eq!(shown(Form::Json, ours(&stored).as_bytes()), ours(&format!("\"{in_json}\"")));
    }
}
