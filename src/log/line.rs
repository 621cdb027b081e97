//! The lines of the log, as people read them: parsed, selected and formatted.
//!
//! A line is what is stored before a line feed. Empty lines are neither shown nor counted. A line
//! that the daemon has not written as a log line, such as the text of a panic, is foreign: it
//! counts as an error of unknown time. No more of a line than the limit is kept.
//!
//! What is shown cannot control a terminal.

use std::borrow::Cow;
use std::io::Write;

use super::{Level, LineFormat, Query};
use crate::error::Error;
use crate::json::{self, Member, Raw};
use crate::limits::LOG_LINE_BYTES_MAX;
use crate::lines::READ_BYTES;
use crate::sys::WallClock;
use crate::text::{Style, escaped_json, push_escaped, quoted, sanitized};
use crate::{clock, sys};

/// A line that the daemon wrote: a JSON object with `ts`, `level` and `msg`, in any order.
pub struct Line<'a> {
    /// Milliseconds since 1970.
    pub ts: i64,
    pub level: Level,
    message: Cow<'a, str>,
    /// In their stored order.
    fields: Vec<Member<'a>>,
    stored: &'a str,
}

impl<'a> Line<'a> {
    /// Parses a line without its end; `None` if it is foreign.
    pub fn parse(stored: &'a [u8]) -> Option<Line<'a>> {
        let stored = std::str::from_utf8(stored).ok()?;
        let mut fields = json::members(stored)?;
        let mut take = |name: &str| {
            let values = fields.extract_if(.., |member| member.name == name);
            values.last()?.string()
        };
        Some(Line {
            ts: clock::parse_rfc3339(&take("ts")?)?,
            level: Level::parse(&take("level")?)?,
            message: take("msg")?,
            fields,
            stored,
        })
    }

    /// Appends `[10:00:02] INFO  session created id=sess_abc123`, without an end of line: local
    /// time, with its date if that is not `today`, and fields in their stored order.
    pub fn format(&self, style: Style, today: Date, out: &mut String) {
        let time = sys::local_time(self.ts.div_euclid(1000));
        out.push('[');
        if date_of(&time) != today {
            let (year, month, day) = date_of(&time);
            out.push_str(&format!("{year:04}-{month:02}-{day:02} "));
        }
        for (number, end) in [(time.hour, ":"), (time.minute, ":"), (time.second, "] ")] {
            out.extend([number / 10, number % 10].map(|digit| char::from(b'0' + digit)));
            out.push_str(end);
        }
        let level = self.level.padded();
        match self.level {
            Level::Debug => style.paint_on(out, "2", |out| out.push_str(level)),
            Level::Info => out.push_str(level),
            Level::Warn => style.paint_on(out, "33", |out| out.push_str(level)),
            Level::Error => style.paint_on(out, "31", |out| out.push_str(level)),
        }
        out.push(' ');
        push_escaped(&self.message, out);
        style.paint_on(out, "2", |out| {
            self.fields.iter().for_each(|field| format_field(field, out));
        });
    }

    /// Returns the line as [`Line::format`] appends it at the time `now`, in Unix milliseconds.
    pub fn formatted(&self, style: Style, now: i64) -> String {
        let mut out = String::new();
        self.format(style, date(now), &mut out);
        out
    }
}

/// Appends ` name=value`, with the value in quotes where it could be taken for more or less than
/// one value.
fn format_field(field: &Member<'_>, out: &mut String) {
    let is_bare = |text: &str| {
        !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c == '"' || c == '=')
    };
    out.push(' ');
    push_escaped(&field.name, out);
    out.push('=');
    match field.string() {
        Some(text) if is_bare(&text) => push_escaped(&text, out),
        Some(text) => out.push_str(&quoted(&text)),
        None if field.value.starts_with(['{', '[']) => {
            // Without white space between its tokens.
            let raw = Raw::parse(field.value).ok();
            push_escaped(raw.as_ref().map_or(field.value, Raw::as_str), out);
        }
        None => push_escaped(field.value, out),
    }
}

/// A year, a month and a day.
pub type Date = (i32, u8, u8);

fn date_of(time: &WallClock) -> Date {
    (time.year, time.month, time.day)
}

/// Returns the date of a time in Unix milliseconds.
pub fn date(millis: i64) -> Date {
    date_of(&sys::local_time(millis.div_euclid(1000)))
}

/// What a query does with a line.
pub(super) enum Selection {
    Shown,
    Skipped,
    /// Skipped, as are all lines before it.
    TooOld,
}

impl Query {
    /// Tells what to do with a line without its end. Of a line beyond the limit, one byte more than
    /// the limit is enough.
    pub(super) fn select(&self, stored: &[u8]) -> Selection {
        let (text, is_whole) = within_limit(stored);
        if text.is_empty() {
            return Selection::Skipped;
        }
        if self.least == Level::Debug && self.since.is_none() {
            return Selection::Shown;
        }
        match is_whole.then(|| Line::parse(text)).flatten() {
            Some(line) if self.since.is_some_and(|since| line.ts < since) => Selection::TooOld,
            Some(line) if line.level < self.least => Selection::Skipped,
            _ => Selection::Shown,
        }
    }

    /// Appends a line in the format of this query, without its end.
    fn format(&self, stored: &[u8], today: Date, out: &mut String) {
        let (text, is_whole) = within_limit(stored);
        let line = is_whole.then(|| Line::parse(text)).flatten();
        let foreign = || {
            let text = String::from_utf8_lossy(text);
            if is_whole { text.into_owned() } else { format!("{text}…") }
        };
        match (self.format, line) {
            (LineFormat::Text(style), Some(line)) => line.format(style, today, out),
            (LineFormat::Text(_), None) => out.push_str(&sanitized(&foreign())),
            (LineFormat::Json, Some(line)) => out.push_str(&escaped_json(line.stored)),
            (LineFormat::Json, None) => {
                let mut object = r#"{"level":"ERROR","msg":"#.to_owned();
                json::quote(&foreign(), &mut object);
                out.push_str(&escaped_json(&object));
                out.push('}');
            }
        }
    }
}

/// Returns a line without a carriage return at its end, or as much of it as is shown, and whether
/// that is all.
fn within_limit(stored: &[u8]) -> (&[u8], bool) {
    match stored.get(..LOG_LINE_BYTES_MAX) {
        Some(beginning) if stored.len() > LOG_LINE_BYTES_MAX => (beginning, false),
        _ => (stored.strip_suffix(b"\r").unwrap_or(stored), true),
    }
}

/// A printer of the lines that a query shows.
pub(super) struct Printer<'a, W: Write + ?Sized> {
    pub query: Query,
    pub out: &'a mut W,
    /// Formatted, but not written yet.
    formatted: String,
    /// The date when the first line of it was formatted.
    today: Date,
}

impl<'a, W: Write + ?Sized> Printer<'a, W> {
    pub fn new(query: Query, out: &'a mut W) -> Printer<'a, W> {
        Printer { query, out, formatted: String::new(), today: (0, 0, 0) }
    }

    /// Prints a line without its end, if the query shows it.
    pub fn print(&mut self, stored: &[u8]) -> Result<(), Error> {
        if let Selection::Shown = self.query.select(stored) {
            if self.formatted.is_empty() {
                self.today = date(clock::now_millis());
            }
            self.query.format(stored, self.today, &mut self.formatted);
            self.formatted.push('\n');
        }
        if self.formatted.len() > READ_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes what was formatted.
    pub fn flush(&mut self) -> Result<(), Error> {
        let written = self.out.write_all(self.formatted.as_bytes());
        self.formatted.clear();
        written.and_then(|()| self.out.flush()).map_err(Error::output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Formats a line with these members, and returns what follows the time.
    fn formatted(rest: &str) -> String {
        let stored = format!("{{\"ts\":\"2026-03-01T10:00:05.999Z\",{rest}}}");
        let out =
            Line::parse(stored.as_bytes()).unwrap().formatted(Style::Plain, 1_772_359_205_000);
        let time = sys::local_time(1_772_359_205);
        let (hour, minute, second) = (time.hour, time.minute, time.second);
        let time = format!("[{hour:02}:{minute:02}:{second:02}] ");
        out.strip_prefix(&time).unwrap().to_owned()
    }

    #[test]
    fn lines_look_as_in_the_manual() {
        for (stored, wanted) in [
            (
                r#""level":"INFO","msg":"daemon started on 127.0.0.1:9999""#,
                "INFO  daemon started on 127.0.0.1:9999",
            ),
            (
                r#""level":"INFO","msg":"session created","id":"sess_abc123""#,
                "INFO  session created id=sess_abc123",
            ),
            (
                r#""level":"INFO","msg":"turn started","session":"sess_abc123","turn":1"#,
                "INFO  turn started session=sess_abc123 turn=1",
            ),
            (
                r#""level":"ERROR","msg":"tool.start","tool":"file_read","path":"/src/index.ts""#,
                "ERROR tool.start tool=file_read path=/src/index.ts",
            ),
        ] {
            assert_eq!(formatted(stored), wanted);
        }
    }

    #[test]
    fn a_line_of_another_day_has_its_date() {
        let stored = br#"{"ts":"2026-03-01T10:00:05.999Z","level":"INFO","msg":"m"}"#;
        let line = Line::parse(stored).unwrap();
        for days in [-400, -31, -1, 0, 1, 365] {
            let text = line.formatted(Style::Plain, line.ts + days * 86_400_000);
            let has_date = text.starts_with("[2026-03-01 ") || text.starts_with("[2026-02-28 ");
            assert_eq!(has_date, days != 0, "{days} days: {text}");
        }
    }

    #[test]
    fn ambiguous_values_are_quoted() {
        for (stored, wanted) in [
            (r#""""#, r#"k="""#),
            (r#""a b""#, r#"k="a b""#),
            (r#""a=b""#, r#"k="a=b""#),
            (r#""a\"b""#, r#"k="a\"b""#),
            (r#""a\\b""#, r#"k=a\b"#),
            (r#""a\\ b""#, r#"k="a\\ b""#),
            (r#""a\nb""#, r#"k="a\nb""#),
            (r#""\u00e9\ud83d\ude00""#, "k=é😀"),
            ("null", "k=null"),
            ("-1.5e3", "k=-1.5e3"),
            (r#"{"a":["}",1]}"#, r#"k={"a":["}",1]}"#),
        ] {
            let stored = format!(r#""level":"INFO","msg":"m","k":{stored}"#);
            assert_eq!(formatted(&stored), format!("INFO  m {wanted}"));
        }
    }

    #[test]
    fn names_and_nested_values_are_escaped() {
        let stored = "\"level\":\"WARN\",\"msg\":\"\\u001b\",\"k\\u001b\":{\"\u{202e}\":1}";
        assert_eq!(formatted(stored), "WARN  \\u{1b} k\\u{1b}={\"\\u{202e}\":1}");
    }

    #[test]
    fn members_may_be_in_any_order_with_blanks() {
        let stored = br#" { "k" : 1 , "msg" : "m" , "level":"warn","ts":"2026-03-01T10:00:00Z" } "#;
        let line = Line::parse(stored).unwrap();
        assert_eq!((line.ts, line.level), (1_772_359_200_000, Level::Warn));
    }

    #[test]
    fn anything_else_is_foreign() {
        let ours =
            r#"{"ts":"2026-03-01T10:00:00.000Z","level":"INFO","msg":"m","k":[{"a":"b\\"}]}"#;
        assert!(Line::parse(ours.as_bytes()).is_some());
        for cut in 0..ours.len() {
            assert!(Line::parse(&ours.as_bytes()[..cut]).is_none(), "{cut}");
        }
        for stored in [
            "thread 'main' panicked",
            "{}",
            "[]",
            "null",
            r#"{"ts":"yesterday","level":"INFO","msg":"m"}"#,
            r#"{"ts":1772359200,"level":"INFO","msg":"m"}"#,
            r#"{"ts":"2026-03-01T10:00:00.000Z","level":"LOUD","msg":"m"}"#,
            r#"{"ts":"2026-03-01T10:00:00.000Z","level":"INFO","msg":1}"#,
            r#"{"ts":"2026-03-01T10:00:00.000Z","level":"INFO"}"#,
            r#"{"ts":"2026-03-01T10:00:00.000Z","level":"INFO","msg":"m"}}"#,
            r#"{"ts":"2026-03-01T10:00:00.000Z","level":"INFO","msg":"m",}"#,
        ] {
            assert!(Line::parse(stored.as_bytes()).is_none(), "{stored}");
        }
        assert!(Line::parse(b"{\"ts\":\"\xff\"}").is_none());
    }

    #[test]
    fn no_text_makes_the_parser_panic() {
        let mut random = fastrand::Rng::with_seed(9);
        let pieces =
            ["{", "}", "[", "]", "\"", "\\", "\\u", "d83d", ":", ",", "é", "1", " ", "\"ts\""];
        for _ in 0..20_000 {
            let count = random.usize(..20);
            let text: String = (0..count).map(|_| pieces[random.usize(..pieces.len())]).collect();
            let stored =
                format!("{{\"ts\":\"2026-03-01T10:00:00Z\",\"level\":\"INFO\",\"msg\":\"{text}");
            for stored in [&text, &stored] {
                if let Some(line) = Line::parse(stored.as_bytes()) {
                    line.formatted(Style::Color, 0);
                }
            }
        }
    }

    #[test]
    fn colors_mark_the_level_and_dim_the_fields() {
        let mut all = String::new();
        for level in ["DEBUG", "INFO", "WARN", "ERROR"] {
            let time = r#""ts":"2026-03-01T10:00:00Z""#;
            let stored = format!(r#"{{{time},"level":"{level}","msg":"m","k":1}}"#);
            let line = Line::parse(stored.as_bytes()).unwrap().formatted(Style::Color, 0);
            all.push_str(line.split_once("] ").unwrap().1);
            all.push('\n');
        }
        assert_eq!(
            all,
            "\x1b[2mDEBUG\x1b[0m m\x1b[2m k=1\x1b[0m\nINFO  m\x1b[2m k=1\x1b[0m\n\
             \x1b[33mWARN \x1b[0m m\x1b[2m k=1\x1b[0m\n\x1b[31mERROR\x1b[0m m\x1b[2m k=1\x1b[0m\n"
        );
    }

    fn printed(format: LineFormat, stored: &[u8]) -> String {
        let mut out = Vec::new();
        let query = Query { lines: 1, least: Level::Debug, since: None, format };
        let mut printer = Printer::new(query, &mut out);
        printer.print(stored.strip_suffix(b"\n").unwrap()).unwrap();
        printer.flush().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn no_line_of_either_form_controls_a_terminal() {
        let hostile = "\u{1b}[2J\u{7f}\u{9b}\u{200b}\u{202e}\u{2028}\u{e0041}";
        let escaped = "\\u{1b}[2J\\u{7f}\\u{9b}\\u{200b}\\u{202e}\\u{2028}\\u{e0041}";
        let in_json = "\\u001b[2J\\u007f\\u009b\\u200b\\u202e\\u2028\\udb40\\udc41";
        let foreign = format!("\tat {hostile}\n");
        let text = LineFormat::Text(Style::Plain);
        assert_eq!(printed(text, foreign.as_bytes()), format!("\tat {escaped}\n"));
        assert_eq!(printed(text, b"\tat main.rs\xff\n"), "\tat main.rs\u{fffd}\n");
        assert_eq!(
            printed(LineFormat::Json, foreign.as_bytes()),
            format!("{{\"level\":\"ERROR\",\"msg\":\"\\tat {in_json}\"}}\n")
        );
        // As the daemon stores it, which escapes what ends a line or controls a terminal.
        let ours = |value: &str| {
            let time = "2026-03-01T10:00:00.000Z";
            format!("{{\"ts\":\"{time}\",\"level\":\"INFO\",\"msg\":\"m\",\"k\":{value}}}\n")
        };
        let mut stored = String::new();
        json::quote(hostile, &mut stored);
        let line = printed(text, ours(&stored).as_bytes());
        assert!(line.ends_with(&format!(" INFO  m k=\"{escaped}\"\n")), "{line}");
        assert_eq!(
            printed(LineFormat::Json, ours(&stored).as_bytes()),
            ours(&format!("\"{in_json}\""))
        );
    }
}
