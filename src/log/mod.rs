//! The daemon's structured log: one JSON object per line, kept small by rotation.
//!
//! Logging never fails its caller: a line that cannot be written is counted, and the next one that
//! can be written says how many are missing. This module does not know what is logged; callers must
//! not log tokens or prompts.
//!
//! The readers ([`Tail`]) rely on this: a line is appended with one write. A rotation only renames
//! files, `daemon.log` to `daemon.log.1` and so on. Once a newer file has a line, no older file
//! gets another.

mod follow;
mod line;
#[cfg(test)]
mod scratch;
mod tail;
mod writer;

pub use tail::Tail;

use std::fmt::Display;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::Error;
use crate::limits::{LOG_FIELD_BYTES_MAX, LOG_LINE_BYTES_MAX};
use crate::text::Style;
use crate::{clock, json, mutex};
use writer::Writer;

/// How important a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    const ALL: [Level; 4] = [Level::Debug, Level::Info, Level::Warn, Level::Error];

    /// Parses a level as users and stored lines write it, in upper or lower case.
    pub fn parse(text: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name().eq_ignore_ascii_case(text))
    }

    /// Returns the name as stored lines have it.
    pub fn name(self) -> &'static str {
        self.padded().trim_end()
    }

    /// Returns the name, padded to the width of the longest one.
    pub fn padded(self) -> &'static str {
        match self {
            Level::Debug => "DEBUG",
            Level::Info => "INFO ",
            Level::Warn => "WARN ",
            Level::Error => "ERROR",
        }
    }
}

/// How the log is kept small: `bytes` per file, and `files` old ones.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    pub bytes: u64,
    pub files: u32,
}

/// What a line has besides its message. A value that is a plain integer is stored as a number,
/// any other value as a string.
pub type Fields<'a> = &'a [(&'a str, &'a dyn Display)];

/// The open log. Clones share one file.
#[derive(Clone)]
pub struct Log {
    level: Level,
    writer: Arc<Mutex<Writer>>,
}

impl Log {
    /// Opens `daemon.log` in `directory` for appending. It is private to the user whatever the
    /// umask is.
    ///
    /// # Errors
    /// The file cannot be opened, or must not be trusted: it is another user's, a link or not a
    /// regular file.
    pub fn open(directory: &Path, rotation: Rotation, level: Level) -> Result<Log, Error> {
        let writer = Writer::open(directory, rotation)?;
        Ok(Log { level, writer: Arc::new(Mutex::new(writer)) })
    }

    /// Returns whether lines of this level are written.
    pub fn enabled(&self, level: Level) -> bool {
        level >= self.level
    }

    /// Writes one line, if its level is enabled. What is too long is truncated and marked with `…`.
    pub fn write(&self, level: Level, message: &str, fields: Fields<'_>) {
        if self.enabled(level) {
            // Before the lock is taken: the `Display` of a value may take time, or log itself.
            let body = body(level, message, fields);
            self.writer().write(&body);
        }
    }

    /// Writes a line at DEBUG.
    pub fn debug(&self, message: &str, fields: Fields<'_>) {
        self.write(Level::Debug, message, fields);
    }

    /// Writes a line at INFO.
    pub fn info(&self, message: &str, fields: Fields<'_>) {
        self.write(Level::Info, message, fields);
    }

    /// Writes a line at WARN.
    pub fn warn(&self, message: &str, fields: Fields<'_>) {
        self.write(Level::Warn, message, fields);
    }

    /// Writes a line at ERROR.
    pub fn error(&self, message: &str, fields: Fields<'_>) {
        self.write(Level::Error, message, fields);
    }

    /// Opens the log again by name, for users who move it away themselves. On failure it stays open
    /// where it is.
    pub fn reopen(&self) -> Result<(), Error> {
        self.writer().reopen()
    }

    /// Writes standard output and error of the process to the log from now on, through every
    /// rotation, so that the text of a panic is not lost. For the background; ends [`Log::mirror`].
    pub fn capture_stdio(&self) -> Result<(), Error> {
        self.writer().capture_stdio()
    }

    /// Shows every line on standard error, too, from now on, formatted for people. For the
    /// foreground.
    pub fn mirror(&self, style: Style) {
        self.writer().mirror(style);
    }

    /// Duplicates the descriptor of the file that is being written, for another process.
    pub fn file(&self) -> Result<File, Error> {
        self.writer().file()
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // A thread that panics while it logs leaves at most half a line, which is repaired.
        mutex::lock(&self.writer)
    }
}

/// A selection of the lines to show, and how to show them.
#[derive(Clone, Copy)]
pub struct Query {
    /// The last lines that fit the rest of the query: at most this many.
    pub lines: usize,
    /// Lines of this level or a more important one.
    pub least: Level,
    /// Lines from this time on, in Unix milliseconds.
    pub since: Option<i64>,
    pub format: LineFormat,
}

/// How lines are shown.
#[derive(Clone, Copy)]
pub enum LineFormat {
    Text(Style),
    /// As they are stored. A foreign line becomes a string in an object, so every line is an
    /// object.
    Json,
}

/// Returns the path of the file that was rotated `age` times: 0 is the one being written.
fn path_of(directory: &Path, age: u32) -> PathBuf {
    match age {
        0 => directory.join("daemon.log"),
        _ => directory.join(format!("daemon.log.{age}")),
    }
}

/// Returns a line without its beginning, the time.
fn body(level: Level, message: &str, fields: Fields<'_>) -> String {
    let mut body = format!("\"level\":\"{}\",\"msg\":", level.name());
    json::quote(&field_text(&message), &mut body);
    for (key, value) in fields {
        let before = body.len();
        body.push(',');
        json::quote(key, &mut body);
        body.push(':');
        let value = field_text(*value);
        if is_plain_integer(&value) {
            body.push_str(&value);
        } else {
            json::quote(&value, &mut body);
        }
        // Room for the rest of a line within the limit: its beginning, its end and this mark.
        if body.len() > LOG_LINE_BYTES_MAX - 64 {
            body.truncate(before);
            body.push_str(",\"cut\":\"…\"");
            break;
        }
    }
    body
}

/// Returns the whole line, with the current time.
fn with_time(body: &str) -> String {
    format!("{{\"ts\":\"{}\",{body}}}\n", clock::rfc3339(clock::now_millis()))
}

/// Returns whether `text` can be a number in JSON that no reader rounds: an integer of up to 15
/// digits.
fn is_plain_integer(text: &str) -> bool {
    let number = text.parse::<i64>().ok().filter(|number| number.to_string() == text);
    number.is_some_and(|number| number.unsigned_abs() < 1_000_000_000_000_000)
}

/// Returns as much of a value's text as one field may have.
fn field_text(value: &dyn Display) -> String {
    let mut text = value.to_string();
    if text.len() > LOG_FIELD_BYTES_MAX {
        let end = (0..=LOG_FIELD_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_parsed_in_either_case_and_padded() {
        assert_eq!(Level::parse("debug"), Some(Level::Debug));
        assert_eq!(Level::parse("WARN"), Some(Level::Warn));
        assert_eq!(Level::parse("warning"), None);
        assert_eq!(Level::parse(""), None);
        for level in Level::ALL {
            assert_eq!(level.padded().len(), 5);
            assert_eq!(Level::parse(level.name()), Some(level));
        }
    }

    #[test]
    fn plain_integers_are_stored_as_numbers_and_other_values_as_strings() {
        let fields: Fields<'_> = &[
            ("turn", &1),
            ("below", &-40),
            ("zero", &0),
            ("big", &999_999_999_999_999_u64),
            ("bigger", &1_000_000_000_000_000_u64),
            ("octal", &"007"),
            ("minus", &"-"),
            ("minus_zero", &"-0"),
            ("float", &1.5),
            ("empty", &""),
            ("path", &"/a\"b"),
        ];
        assert_eq!(
            body(Level::Info, "turn\nstarted", fields),
            "\"level\":\"INFO\",\"msg\":\"turn\\nstarted\",\"turn\":1,\"below\":-40,\"zero\":0,\
             \"big\":999999999999999,\"bigger\":\"1000000000000000\",\"octal\":\"007\",\
             \"minus\":\"-\",\"minus_zero\":\"-0\",\"float\":\"1.5\",\"empty\":\"\",\
             \"path\":\"/a\\\"b\""
        );
        let line = with_time(&body(Level::Info, "turn\nstarted", fields));
        assert_eq!(json::check(line.trim_end()), Ok(()));
        assert!(line.ends_with("}\n"));
        assert!(line::Line::parse(line.trim_end().as_bytes()).is_some());
    }

    #[test]
    fn a_field_is_truncated_beyond_the_limit_and_between_characters() {
        let fits = "x".repeat(LOG_FIELD_BYTES_MAX);
        assert_eq!(field_text(&fits), fits);
        assert_eq!(field_text(&format!("{fits}y")), format!("{fits}…"));
        let split = format!("{}éé", "x".repeat(LOG_FIELD_BYTES_MAX - 1));
        assert_eq!(field_text(&split), format!("{}…", "x".repeat(LOG_FIELD_BYTES_MAX - 1)));
    }

    #[test]
    fn no_line_exceeds_the_limit_of_what_is_shown() {
        let worst = "\u{1}".repeat(LOG_FIELD_BYTES_MAX + 1);
        let fields: Fields<'_> = &[("a", &worst), ("b", &worst), ("c", &worst), ("d", &1)];
        let line = with_time(&body(Level::Error, &worst, fields));
        assert!(line.len() <= LOG_LINE_BYTES_MAX, "{}", line.len());
        assert_eq!(json::check(line.trim_end()), Ok(()));
        assert!(line.ends_with(",\"cut\":\"…\"}\n"));
    }
}
