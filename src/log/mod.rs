//! The daemon's structured log: one JSON object a line, kept small by rotation.
//!
//! Logging never fails its caller: a line that cannot be written is counted, and the next one that
//! can be says how many are missing. It knows nothing of what is logged; that tokens and prompts
//! are not is the callers' promise.
//!
//! What the readers ([`Tail`]) build on: a line is added with one write to the end of the file. Old
//! files only move up, from `daemon.log` to `daemon.log.1` and so on, one place a rotation. Once
//! something is in a newer file nothing is added to an older one.

mod follow;
mod line;
mod part;
mod print;
mod tail;
mod writer;

pub use line::Style;
pub use tail::Tail;

use std::fmt::{self, Display, Write};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::Error;
use crate::limits::{LOG_FIELD_BYTES_MAX, LOG_LINE_BYTES_MAX};
use crate::{clock, json, mutex};
use writer::Writer;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    const ALL: [Level; 4] = [Level::Debug, Level::Info, Level::Warn, Level::Error];

    /// As users and stored lines write it, in either case.
    pub fn parse(text: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name().eq_ignore_ascii_case(text))
    }

    /// As stored lines write it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Debug => "DEBUG",
            Level::Info => "INFO",
            Level::Warn => "WARN",
            Level::Error => "ERROR",
        }
    }
}

/// Padded to the width of the longest.
impl Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<5}", self.name())
    }
}

/// How the log is kept small: `bytes` a file, `files` old ones.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    pub bytes: u64,
    pub files: u32,
}

/// What a line says beyond its message. A value that is a plain integer is stored as a number,
/// every other one as a string.
pub type Fields<'a> = &'a [(&'a str, &'a dyn Display)];

/// The open log. Clones share one file.
#[derive(Clone)]
pub struct Log {
    level: Level,
    writer: Arc<Mutex<Writer>>,
}

impl Log {
    /// Opens `daemon.log` in `directory` for appending, private to the user whatever the umask is.
    ///
    /// Fails if it cannot be had or must not be trusted: another user's, a link, no regular file.
    pub fn open(directory: &Path, rotation: Rotation, level: Level) -> Result<Log, Error> {
        let writer = Writer::open(directory, rotation)?;
        Ok(Log { level, writer: Arc::new(Mutex::new(writer)) })
    }

    /// Whether a line of this level is written.
    pub fn enabled(&self, level: Level) -> bool {
        level >= self.level
    }

    /// Writes one line, if its level is enabled. What is too long is cut and marked with `…`.
    pub fn write(&self, level: Level, message: &str, fields: Fields<'_>) {
        if self.enabled(level) {
            // Made before the lock is taken: a value's `Display` may take its time, or log itself.
            let said = said(level, message, fields);
            self.writer().write(&said);
        }
    }

    /// A line at DEBUG.
    pub fn debug(&self, message: &str, fields: Fields<'_>) {
        self.write(Level::Debug, message, fields);
    }

    /// A line at INFO.
    pub fn info(&self, message: &str, fields: Fields<'_>) {
        self.write(Level::Info, message, fields);
    }

    /// A line at WARN.
    pub fn warn(&self, message: &str, fields: Fields<'_>) {
        self.write(Level::Warn, message, fields);
    }

    /// A line at ERROR.
    pub fn error(&self, message: &str, fields: Fields<'_>) {
        self.write(Level::Error, message, fields);
    }

    /// Goes on in the file that has the log's name now, for those who move it away themselves. If
    /// that fails, the log stays where it is.
    pub fn reopen(&self) -> Result<(), Error> {
        self.writer().reopen()
    }

    /// From now on standard output and error of the process are the log, wherever it moves, so that
    /// a panic's text is not lost. For the background; ends [`Log::mirror`].
    pub fn capture_stdio(&self) -> Result<(), Error> {
        self.writer().capture_stdio()
    }

    /// From now on every line is also shown on standard error, as people read it. For the
    /// foreground.
    pub fn mirror(&self, style: Style) {
        self.writer().mirror(style);
    }

    /// The file that is written to now, for another process.
    pub fn file(&self) -> Result<File, Error> {
        self.writer().file()
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // A thread that panicked while it logged has at worst left half a line, and that is
        // repaired.
        mutex::lock(&self.writer)
    }
}

/// What is wanted of the log.
#[derive(Clone, Copy)]
pub struct Query {
    /// The last so many of the lines that fit the rest.
    pub lines: usize,
    /// Lines that matter as much as this, or more.
    pub least: Level,
    /// Lines from this moment on, in Unix milliseconds.
    pub since: Option<i64>,
    pub form: Form,
}

/// How lines are shown.
#[derive(Clone, Copy)]
pub enum Form {
    Text(Style),
    /// As they are stored. Foreign ones are put into an object, so that every line is one.
    Json,
}

/// The file of age 0 is being written, that of age 1 was before it, and so on.
fn name(directory: &Path, age: u32) -> PathBuf {
    match age {
        0 => directory.join("daemon.log"),
        _ => directory.join(format!("daemon.log.{age}")),
    }
}

/// A line without its beginning, the time.
fn said(level: Level, message: &str, fields: Fields<'_>) -> String {
    let mut said = format!("\"level\":\"{}\",\"msg\":", level.name());
    json::quote(&Cut::of(&message), &mut said);
    for (key, value) in fields {
        let before = said.len();
        said.push(',');
        json::quote(key, &mut said);
        said.push(':');
        let value = Cut::of(*value);
        if is_plain_integer(&value) {
            said.push_str(&value);
        } else {
            json::quote(&value, &mut said);
        }
        // The rest of a line that is shown whole: its beginning, its end and this mark.
        if said.len() > LOG_LINE_BYTES_MAX - 64 {
            said.truncate(before);
            said.push_str(",\"cut\":\"…\"");
            break;
        }
    }
    said
}

/// The whole line, as of now.
fn stamped(said: &str) -> String {
    format!("{{\"ts\":\"{}\",{said}}}\n", clock::rfc3339(clock::now_millis()))
}

/// Whether JSON can have it as a number that no reader rounds.
fn is_plain_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let leading_zero = digits.starts_with('0') && text != "0";
    !leading_zero && (1..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
}

/// As much of a value's text as one field may have.
struct Cut {
    text: String,
    whole: bool,
}

impl Cut {
    fn of(value: &dyn Display) -> String {
        let mut cut = Cut { text: String::new(), whole: true };
        // The error is our own, and says that enough has been seen.
        write!(cut, "{value}").unwrap_or_default();
        cut.text
    }
}

impl Write for Cut {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        if !self.whole {
            return Err(fmt::Error);
        }
        let room = LOG_FIELD_BYTES_MAX.saturating_sub(self.text.len());
        if more.len() <= room {
            self.text.push_str(more);
            return Ok(());
        }
        let fits = (0..=room).rev().find_map(|end| more.get(..end)).unwrap_or_default();
        self.text.push_str(fits);
        self.text.push('…');
        self.whole = false;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod scratch {
    use std::fs::{self, File, Permissions};
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    /// A directory that is removed with everything in it.
    pub struct Scratch(PathBuf);

    impl Scratch {
        pub fn new() -> Scratch {
            let (pid, number) = (std::process::id(), fastrand::u64(..));
            let path = std::env::temp_dir().join(format!("opta log {pid} {number:x}"));
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
            Scratch(path)
        }

        pub fn path(&self) -> &Path {
            &self.0
        }

        pub fn append(&self, name: &str, bytes: &[u8]) {
            let mut options = File::options();
            let file = options.append(true).create(true).open(self.0.join(name));
            file.unwrap().write_all(bytes).unwrap();
        }

        pub fn rename(&self, from: &str, to: &str) {
            fs::rename(self.0.join(from), self.0.join(to)).unwrap();
        }

        pub fn read(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap()
        }

        /// The names of the files, sorted.
        pub fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_in_either_case_and_shown_in_one_width() {
        assert_eq!(Level::parse("debug"), Some(Level::Debug));
        assert_eq!(Level::parse("WARN"), Some(Level::Warn));
        assert_eq!(Level::parse("warning"), None);
        assert_eq!(Level::parse(""), None);
        for level in Level::ALL {
            assert_eq!(level.to_string().len(), 5);
            assert_eq!(Level::parse(level.name()), Some(level));
        }
    }

    #[test]
    fn plain_integers_are_numbers_and_all_else_is_a_string() {
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
            said(Level::Info, "turn\nstarted", fields),
            "\"level\":\"INFO\",\"msg\":\"turn\\nstarted\",\"turn\":1,\"below\":-40,\"zero\":0,\
             \"big\":999999999999999,\"bigger\":\"1000000000000000\",\"octal\":\"007\",\
             \"minus\":\"-\",\"minus_zero\":\"-0\",\"float\":\"1.5\",\"empty\":\"\",\
             \"path\":\"/a\\\"b\""
        );
        let line = stamped(&said(Level::Info, "turn\nstarted", fields));
        assert_eq!(json::check(line.trim_end()), Ok(()));
        assert!(line.ends_with("}\n"));
        assert!(line::Line::parse(line.trim_end().as_bytes()).is_some());
    }

    #[test]
    fn a_field_is_cut_one_past_the_limit_and_never_inside_a_character() {
        let fits = "x".repeat(LOG_FIELD_BYTES_MAX);
        assert_eq!(Cut::of(&fits), fits);
        assert_eq!(Cut::of(&format!("{fits}y")), format!("{fits}…"));
        let split = format!("{}éé", "x".repeat(LOG_FIELD_BYTES_MAX - 1));
        assert_eq!(Cut::of(&split), format!("{}…", "x".repeat(LOG_FIELD_BYTES_MAX - 1)));
        let in_pieces = format_args!("{fits}{}{}", "", "z").to_string();
        assert_eq!(Cut::of(&in_pieces), format!("{fits}…"));
    }

    #[test]
    fn a_line_is_never_longer_than_what_is_shown_whole() {
        let worst = "\u{1}".repeat(LOG_FIELD_BYTES_MAX + 1);
        let fields: Fields<'_> = &[("a", &worst), ("b", &worst), ("c", &worst), ("d", &1)];
        let line = stamped(&said(Level::Error, &worst, fields));
        assert!(line.len() <= LOG_LINE_BYTES_MAX, "{}", line.len());
        assert_eq!(json::check(line.trim_end()), Ok(()));
        assert!(line.ends_with(",\"cut\":\"…\"}\n"));
    }
}
