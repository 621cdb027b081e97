//! A stored line of the log: what it says, and how people are shown it.
//!
//! It reads what the writer writes, and tolerates more: any flat JSON object with `ts`, `level` and
//! `msg` somewhere in it. Nothing is copied to find out. Whether the rest of the object is JSON by
//! the letter is not its business.
//!
//! What it shows cannot drive a terminal: control characters and those that reorder text come out
//! escaped, wherever they stand.

use std::str::Chars;

use super::Level;
use crate::text::{escaped, quoted};
use crate::{clock, sys};

/// Whether what is shown may have colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Colour,
}

/// A line that the daemon has written.
pub struct Line<'a> {
    /// Milliseconds since 1970.
    pub ts: i64,
    pub level: Level,
    /// With its quotes and escapes.
    message: &'a str,
    object: &'a str,
}

impl<'a> Line<'a> {
    /// Looks into a line as it is stored, without its end; `None` if the daemon has not written it
    /// so.
    pub fn parse(stored: &'a [u8]) -> Option<Line<'a>> {
        let object = std::str::from_utf8(stored).ok()?;
        let mut members = Members::of(object)?;
        let (mut ts, mut level, mut message) = (None, None, None);
        for (key, value) in members.by_ref() {
            match key {
                "ts" => ts = unquoted(value).and_then(clock::parse_rfc3339),
                "level" => level = unquoted(value).and_then(Level::parse),
                "msg" => message = unquoted(value).map(|_| value),
                _ => {}
            }
        }
        members.ended().then_some(())?;
        Some(Line { ts: ts?, level: level?, message: message?, object })
    }

    /// As it is stored.
    pub fn stored(&self) -> &'a str {
        self.object
    }

    /// Appends `[10:00:02] INFO  session created id=sess_abc123`, without an end of line: local
    /// time, fields in their stored order.
    pub fn show(&self, style: Style, out: &mut String) {
        let time = sys::local_time(self.ts.div_euclid(1000));
        let (hour, minute, second) = (time.hour, time.minute, time.second);
        out.push_str(&format!("[{hour:02}:{minute:02}:{second:02}] "));
        let level = match self.level {
            Level::Debug => DIM,
            Level::Info => "",
            Level::Warn => YELLOW,
            Level::Error => RED,
        };
        style.paint(level, out, |out| out.push_str(&self.level.to_string()));
        out.push(' ');
        out.push_str(&escaped(&unescaped(self.message).collect::<String>()));
        style.paint(DIM, out, |out| self.show_fields(out));
    }

    fn show_fields(&self, out: &mut String) {
        for (key, value) in Members::of(self.object).into_iter().flatten() {
            if !matches!(key, "ts" | "level" | "msg") {
                out.push(' ');
                out.push_str(&escaped(&unescaped(key).collect::<String>()));
                out.push('=');
                push_value(value, out);
            }
        }
    }
}

const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const RESET: &str = "\x1b[0m";

impl Style {
    /// Lets `show` append something, in colour where there is one; nothing stays nothing.
    fn paint(self, colour: &str, out: &mut String, show: impl FnOnce(&mut String)) {
        let colour = if self == Style::Colour { colour } else { "" };
        out.push_str(colour);
        let before = out.len();
        show(out);
        if out.len() == before {
            out.truncate(before - colour.len());
        } else if !colour.is_empty() {
            out.push_str(RESET);
        }
    }
}

/// Appends a field's value, in quotes where it could be taken for more or less than one value.
fn push_value(value: &str, out: &mut String) {
    if unquoted(value).is_none() {
        // A number, or something nested: as it is stored.
        return out.push_str(&escaped(value));
    }
    let text: String = unescaped(value).collect();
    let is_bare = |c: char| !c.is_whitespace() && c != '"' && c != '=';
    if !text.is_empty() && text.chars().all(is_bare) {
        out.push_str(&escaped(&text));
    } else {
        out.push_str(&quoted(&text));
    }
}

/// The members of one JSON object, as they are stored: keys without their quotes, escapes
/// unresolved.
#[derive(Clone)]
struct Members<'a> {
    text: &'a str,
    at: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Behind `{` or `,`.
    Open,
    /// Behind the last `}`.
    Ended,
    /// Where no member can be read.
    Broken,
}

impl<'a> Members<'a> {
    fn of(text: &'a str) -> Option<Members<'a>> {
        let mut members = Members { text, at: 0, state: State::Open };
        members.skip_blanks();
        members.eat(b'{')?;
        Some(members)
    }

    /// Whether every member was read and nothing comes behind the object.
    fn ended(&mut self) -> bool {
        self.skip_blanks();
        self.state == State::Ended && self.peek().is_none()
    }

    fn member(&mut self) -> Option<(&'a str, &'a str)> {
        self.skip_blanks();
        let key = unquoted(self.string()?)?;
        self.skip_blanks();
        self.eat(b':')?;
        self.skip_blanks();
        let value = self.value()?;
        self.skip_blanks();
        if self.eat(b',').is_none() {
            self.eat(b'}')?;
            self.state = State::Ended;
        }
        Some((key, value))
    }

    /// One value of any kind; a nested one is skipped by counting, so that no depth can hurt.
    fn value(&mut self) -> Option<&'a str> {
        let start = self.at;
        let mut depth = 0_u32;
        loop {
            match self.peek()? {
                b'"' => drop(self.string()?),
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                b',' | b'}' | b']' if depth == 0 => return None,
                _ if depth == 0 => self.skip_while(|byte| !b",}] \t\r\n".contains(&byte)),
                _ => self.at += 1,
            }
            if depth == 0 {
                return self.text.get(start..self.at);
            }
        }
    }

    /// One string, with its quotes.
    fn string(&mut self) -> Option<&'a str> {
        let start = self.at;
        self.eat(b'"')?;
        loop {
            self.skip_while(|byte| byte != b'"' && byte != b'\\');
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return self.text.get(start..self.at);
                }
                // Whatever is escaped, its first byte is not the end.
                _ => self.at += 2,
            }
        }
    }

    fn skip_blanks(&mut self) {
        self.skip_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
    }

    fn skip_while(&mut self, wanted: impl Fn(u8) -> bool) {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        self.at += rest.iter().position(|byte| !wanted(*byte)).unwrap_or(rest.len());
    }

    fn eat(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        if self.state != State::Open {
            return None;
        }
        let member = self.member();
        if member.is_none() {
            self.state = State::Broken;
        }
        member
    }
}

/// What is between the quotes of a JSON string; `None` if it is another kind of value.
fn unquoted(value: &str) -> Option<&str> {
    value.strip_prefix('"')?.strip_suffix('"')
}

/// The characters that a JSON string stands for.
fn unescaped(text: &str) -> Unescaped<'_> {
    Unescaped { rest: unquoted(text).unwrap_or(text).chars() }
}

#[derive(Clone)]
struct Unescaped<'a> {
    rest: Chars<'a>,
}

impl Unescaped<'_> {
    /// The four digits behind `\u`.
    fn unit(&mut self) -> Option<u32> {
        let digits = self.rest.as_str().get(..4)?;
        let unit = u32::from_str_radix(digits, 16).ok()?;
        self.rest = self.rest.as_str().get(4..)?.chars();
        Some(unit)
    }

    /// The character that one or, for a surrogate pair, two units stand for.
    fn character(&mut self) -> Option<char> {
        let unit = self.unit()?;
        if !(0xd800..0xdc00).contains(&unit) {
            return char::from_u32(unit);
        }
        let mut after = Unescaped { rest: self.rest.as_str().strip_prefix("\\u")?.chars() };
        let low = after.unit().filter(|low| (0xdc00..0xe000).contains(low))?;
        self.rest = after.rest;
        char::from_u32(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00))
    }
}

impl Iterator for Unescaped<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        let character = self.rest.next()?;
        if character != '\\' {
            return Some(character);
        }
        Some(match self.rest.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => self.character().unwrap_or(char::REPLACEMENT_CHARACTER),
            itself => itself,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown behind the time, of a line with this behind its own.
    fn shown(rest: &str) -> String {
        let stored = format!("{{\"ts\":\"2026-03-01T10:00:05.999Z\",{rest}}}");
        let line = Line::parse(stored.as_bytes()).unwrap();
        let mut out = String::new();
        line.show(Style::Plain, &mut out);
        let time = sys::local_time(1_772_359_205);
        let (hour, minute, second) = (time.hour, time.minute, time.second);
        let time = format!("[{hour:02}:{minute:02}:{second:02}] ");
        out.strip_prefix(&time).unwrap().to_owned()
    }

    #[test]
    fn lines_are_shown_as_the_manual_has_them() {
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
            assert_eq!(shown(stored), wanted);
        }
    }

    #[test]
    fn values_are_quoted_where_they_need_it() {
        for (stored, wanted) in [
            (r#""""#, r#"k="""#),
            (r#""a b""#, r#"k="a b""#),
            (r#""a=b""#, r#"k="a=b""#),
            (r#""a\"b""#, r#"k="a\"b""#),
            (r#""a\\b""#, r#"k=a\b"#),
            (r#""a\\ b""#, r#"k="a\\ b""#),
            (r#""a\nb""#, r#"k="a\nb""#),
            (r#""\u00e9\ud83d\ude00""#, "k=é😀"),
            (r#""\ud83d!""#, "k=\u{fffd}!"),
            (r#""\ud83d\u0041""#, "k=\u{fffd}A"),
            ("null", "k=null"),
            ("-1.5e3", "k=-1.5e3"),
            (r#"{"a":["}",1]}"#, r#"k={"a":["}",1]}"#),
        ] {
            let stored = format!(r#""level":"INFO","msg":"m","k":{stored}"#);
            assert_eq!(shown(&stored), format!("INFO  m {wanted}"));
        }
    }

    #[test]
    fn nothing_that_is_shown_drives_a_terminal() {
        let hostile = "\u{1b}[31m\u{7f}\u{9b}2J\u{202e}\u{2066}\r\0\u{2028}";
        let harmless = "\\u{1b}[31m\\u{7f}\\u{9b}2J\\u{202e}\\u{2066}\\r\\u{0}\\u{2028}";
        let mut quoted = String::new();
        crate::json::quote(hostile, &mut quoted);
        let stored = format!(r#""level":"WARN","msg":{quoted},"k":1"#);
        assert_eq!(shown(&stored), format!("WARN  {harmless} k=1"));
        let stored = "\"level\":\"WARN\",\"msg\":\"m\",\"k\u{1b}\":{\"\u{202e}\":1}";
        assert_eq!(shown(stored), "WARN  m k\\u{1b}={\"\\u{202e}\":1}");
    }

    #[test]
    fn members_may_stand_in_any_order_and_apart() {
        let stored = br#" { "k" : 1 , "msg" : "m" , "level":"warn","ts":"2026-03-01T10:00:00Z" } "#;
        let line = Line::parse(stored).unwrap();
        assert_eq!((line.ts, line.level), (1_772_359_200_000, Level::Warn));
    }

    #[test]
    fn whatever_else_is_foreign() {
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
    fn no_text_makes_the_reader_stumble() {
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
                    line.show(Style::Colour, &mut String::new());
                }
            }
        }
    }

    #[test]
    fn colours_mark_the_level_and_dim_the_fields() {
        let mut all = String::new();
        for level in ["DEBUG", "INFO", "WARN", "ERROR"] {
            let moment = r#""ts":"2026-03-01T10:00:00Z""#;
            let stored = format!(r#"{{{moment},"level":"{level}","msg":"m","k":1}}"#);
            let mut out = String::new();
            Line::parse(stored.as_bytes()).unwrap().show(Style::Colour, &mut out);
            all.push_str(out.split_once("] ").unwrap().1);
            all.push('\n');
        }
        assert_eq!(
            all,
            "\x1b[2mDEBUG\x1b[0m m\x1b[2m k=1\x1b[0m\nINFO  m\x1b[2m k=1\x1b[0m\n\
             \x1b[33mWARN \x1b[0m m\x1b[2m k=1\x1b[0m\n\x1b[31mERROR\x1b[0m m\x1b[2m k=1\x1b[0m\n"
        );
    }
}
