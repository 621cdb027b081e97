//! Every way to fail: facts in, one sentence and one exit status out.
//!
//! `Display` is the whole sentence that the user reads behind `opta: `; [`Error::remedy`] is the
//! second line where there is an obvious next step; [`Error::status`] the exit status;
//! [`Error::code`] the name in `--json`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::limits;

/// What went wrong, for the whole process.
#[derive(Debug)]
pub enum Error {
    /// The command line cannot be understood; `usage` is the line that shows how.
    Usage { message: String, usage: String },
    /// A system call on a file or directory failed.
    Io { doing: &'static str, path: PathBuf, cause: io::Error },
    /// A system call on no file failed.
    System { doing: &'static str, cause: io::Error },
    /// The result could not be written to standard output.
    Output(io::Error),
    /// A file or directory exists that must not be trusted with secrets.
    Untrusted { path: PathBuf, because: &'static str, remedy: String },
    /// The home directory cannot be told.
    Home { because: String },
    /// The user's settings cannot be used: `at` names file and line, or the variable.
    Config { at: String, because: String },
    /// The port that was asked for cannot be had; `owner` is who has it, where that can be known.
    Port { port: u16, cause: io::Error, owner: Option<String>, asked_by: &'static str },
    /// Neither 9999 nor any of the fallback ports can be had.
    Ports { cause: io::Error },
    /// The daemon that was being started said why it cannot serve.
    StartFailed { message: String, log: PathBuf },
    /// The daemon that was being started ended without a word.
    DiedStarting { log: PathBuf },
    /// The daemon that was being started has said nothing in time.
    StartTimedOut { waited: Duration, log: PathBuf },
    /// A daemon holds the lock and does not answer.
    Unresponsive { pid: Option<i32>, waited: Duration },
    /// A daemon holds the lock, and its state file, without which nobody can ask it, is lost.
    StateLost { pid: Option<i32> },
    /// The lock is held by a process that cannot be seen from here: another host or container.
    HeldElsewhere { lock: PathBuf, hostname: Option<String> },
    /// Other starters have kept the door closed for too long.
    Queue { lock: PathBuf, waited: Duration },
    /// There is no daemon and the command needs one.
    NotRunning,
    /// The daemon is still there although it was asked to stop.
    StillRunning { pid: i32, waited: Duration },
    /// The daemon has work in flight and was asked to leave only if idle.
    Busy,
    /// The daemon has crashed too often for another automatic restart.
    CrashLoop { crashes: usize, cause: Option<String> },
    /// The service has failed so often that its manager restarts it no more.
    GaveUp { words: String },
    /// The daemon was started, and somebody has stopped it since.
    StoppedMeanwhile,
    /// Another daemon serves, and this process was to be the only one.
    Taken { pid: i32, port: u16 },
    /// What kept the service from starting, for systemd: the exit status tells it whether to try
    /// again.
    Supervised { cause: Box<Error> },
    /// The manager has read the service's file, and what adds to it, and cannot use them: in its
    /// own word, why.
    ServiceRefused { manager: &'static str, word: String },
    /// A service manager's program has failed; `said` is its own words.
    Manager { call: String, said: String },
    /// The service's file was not written by opta.
    Foreign { path: PathBuf },
    /// The manager could not use this path in a service.
    Unservable { path: PathBuf, because: &'static str },
    /// The daemon answered something that this version does not understand.
    Reply { what: &'static str, because: String },
    /// There is no session to go on with.
    NoSessions,
    /// No session's id begins so.
    NoSession { typed: String },
    /// The ids of several sessions begin so: some of them, and how many there are.
    AmbiguousSession { typed: String, some: Vec<String>, count: usize },
    /// Nothing of the session can be read.
    SessionDamaged { id: String, because: &'static str },
    /// There are sessions that the list of all sessions does not have.
    Unlisted { count: usize, index: PathBuf },
    /// The session has work in flight and was to be deleted.
    SessionBusy { id: String },
    /// The daemon is of another version and speaks another protocol.
    Protocol { version: String, protocol: String, ours: &'static str },
}

impl Error {
    /// The exit status, as every manual page lists them.
    pub fn status(&self) -> u8 {
        match self {
            Error::Usage { .. } => 2,
            Error::NotRunning => 3,
            Error::Unresponsive { .. } | Error::StateLost { .. } | Error::HeldElsewhere { .. } => 4,
            // EX_TEMPFAIL and EX_CONFIG of sysexits.h: the unit lists them as not worth a restart.
            Error::Supervised { cause } if cause.lock_is_held() => 75,
            Error::Supervised { cause } if matches!(**cause, Error::Config { .. }) => 78,
            Error::Supervised { cause } => cause.status(),
            _ => 1,
        }
    }

    /// Whether another daemon, or somebody who is about to be one, is in the way.
    pub fn lock_is_held(&self) -> bool {
        matches!(
            self,
            Error::Taken { .. }
                | Error::Unresponsive { .. }
                | Error::StateLost { .. }
                | Error::HeldElsewhere { .. }
                | Error::Queue { .. }
        )
    }

    /// The name of this failure in `--json`.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Usage { .. } => "USAGE",
            Error::Io { .. } | Error::System { .. } | Error::Output(_) => "SYSTEM",
            Error::Untrusted { .. } => "UNTRUSTED_PATH",
            Error::Home { .. } => "NO_HOME",
            Error::Config { .. } => "INVALID_CONFIG",
            Error::Port { .. } | Error::Ports { .. } => "PORT_IN_USE",
            Error::StartFailed { .. } | Error::DiedStarting { .. } => "START_FAILED",
            Error::StartTimedOut { .. } | Error::Queue { .. } => "TIMEOUT",
            Error::Unresponsive { .. } | Error::StateLost { .. } => "UNRESPONSIVE",
            Error::HeldElsewhere { .. } => "HELD_ELSEWHERE",
            Error::NotRunning => "NOT_RUNNING",
            Error::StillRunning { .. } => "STILL_RUNNING",
            Error::Busy | Error::SessionBusy { .. } => "BUSY",
            Error::CrashLoop { .. } | Error::GaveUp { .. } => "CRASH_LOOP",
            Error::StoppedMeanwhile => "STOPPED_MEANWHILE",
            Error::Reply { .. } => "BAD_REPLY",
            Error::Taken { .. } => "ALREADY_RUNNING",
            Error::Supervised { cause } => cause.code(),
            Error::Manager { .. } | Error::ServiceRefused { .. } => "SERVICE_MANAGER",
            Error::Foreign { .. } => "FOREIGN_FILE",
            Error::Unservable { .. } => "UNSERVABLE_PATH",
            Error::NoSessions | Error::NoSession { .. } => "SESSION_NOT_FOUND",
            Error::AmbiguousSession { .. } => "AMBIGUOUS_ID",
            Error::SessionDamaged { .. } => "SESSION_DAMAGED",
            Error::Unlisted { .. } => "SESSIONS_UNLISTED",
            Error::Protocol { .. } => "VERSION_SKEW",
        }
    }

    /// The obvious next step, where there is one.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Error::Usage { usage, .. } => Some(usage.clone()),
            Error::Untrusted { remedy, .. } => Some(remedy.clone()),
            Error::Home { .. } => {
                Some("set HOME or OPTA_HOME to the absolute path of a directory of yours".into())
            }
            Error::Port { asked_by, .. } => Some(format!(
                "choose another port ({asked_by}), or leave it out to try 9999 and others"
            )),
            Error::Ports { .. } => Some("choose a free port: opta daemon start --port N".into()),
            Error::StartFailed { log, .. }
            | Error::DiedStarting { log }
            | Error::StartTimedOut { log, .. } => Some(format!("see the log: {}", log.display())),
            Error::GaveUp { .. } | Error::CrashLoop { .. } => {
                Some("see why: opta daemon logs --level warn; then: opta daemon start".into())
            }
            Error::Unresponsive { .. } => {
                Some("to end it and start afresh: opta daemon restart --force".into())
            }
            Error::StateLost { .. } => Some("to have it written again: opta daemon start".into()),
            Error::HeldElsewhere { .. } => Some(
                "stop it where it runs, or give this machine a place of its own: OPTA_HOME".into(),
            ),
            Error::ServiceRefused { .. } => Some("to see what is wrong: opta doctor".into()),
            Error::NotRunning => Some("start it: opta daemon start".into()),
            Error::StillRunning { .. } => {
                Some("to end it by force: opta daemon stop --force".into())
            }
            Error::Supervised { cause } => cause.remedy(),
            Error::Foreign { .. } => {
                Some("to replace or remove it all the same: the same command with --force".into())
            }
            Error::NoSession { .. } => Some("to see which there are: opta sessions list".into()),
            Error::SessionDamaged { id, .. } => {
                Some(format!("to see what is wrong: opta sessions verify {id}"))
            }
            Error::NoSessions => Some("to begin one: opta chat".into()),
            Error::Protocol { .. } => {
                Some("to move it to this version: opta daemon restart".into())
            }
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage { message, .. } => write!(f, "{message}"),
            Error::Io { doing, path, cause } => {
                write!(f, "cannot {doing} {}: {}", path.display(), reason(cause))
            }
            Error::System { doing, cause } => write!(f, "cannot {doing}: {}", reason(cause)),
            Error::Output(cause) => {
                write!(f, "cannot write to standard output: {}", reason(cause))
            }
            Error::Untrusted { path, because, .. } => {
                write!(f, "cannot use {}: {because}", path.display())
            }
            Error::Home { because } => write!(f, "cannot find your home directory: {because}"),
            Error::Config { at, because } => write!(f, "cannot use the settings: {at}: {because}"),
            Error::Reply { what, because } => write!(f, "cannot {what}: {because}"),
            Error::NotRunning
            | Error::Unresponsive { .. }
            | Error::StateLost { .. }
            | Error::HeldElsewhere { .. } => {
                write!(f, "cannot reach the daemon{}", self.reach_failure())
            }
            Error::NoSessions => write!(f, "cannot go on: there are no sessions yet"),
            Error::NoSession { typed } => {
                write!(f, "cannot find the session: no id begins with '{typed}'")
            }
            Error::AmbiguousSession { typed, some, count } => {
                write!(f, "cannot tell which session '{typed}' is: {}", some.join(", "))?;
                match count.saturating_sub(some.len()) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more begin so"),
                }
            }
            Error::SessionDamaged { id, because } => {
                write!(f, "cannot read the session {id}: {because}")
            }
            Error::Unlisted { count, index } => {
                let (index, hint) = (index.display(), "removed, it is made again");
                write!(f, "cannot list all sessions: {index} lacks {count}; {hint}")
            }
            Error::SessionBusy { id } => {
                write!(f, "cannot delete the session {id}: a turn of it is in progress")
            }
            Error::Protocol { version, protocol, ours } => {
                let this = env!("CARGO_PKG_VERSION");
                write!(f, "cannot talk to the daemon: it is opta {version} ")?;
                write!(f, "(protocol {protocol}), this is opta {this} (protocol {ours})")
            }
            Error::Busy => write!(f, "cannot stop the daemon: a turn is in progress"),
            Error::StillRunning { pid, waited } => {
                let seconds = waited.as_secs();
                write!(f, "cannot stop the daemon (pid {pid}): still running after {seconds}s")
            }
            Error::Supervised { cause } => write!(f, "{cause}"),
            Error::Manager { .. } | Error::Foreign { .. } | Error::Unservable { .. } => {
                write!(f, "cannot {}", self.service_failure())
            }
            Error::Port { .. }
            | Error::Taken { .. }
            | Error::Ports { .. }
            | Error::Queue { .. }
            | Error::StartFailed { .. }
            | Error::DiedStarting { .. }
            | Error::StartTimedOut { .. }
            | Error::StoppedMeanwhile
            | Error::ServiceRefused { .. }
            | Error::GaveUp { .. }
            | Error::CrashLoop { .. } => {
                write!(f, "cannot start the daemon: {}", self.start_failure())
            }
        }
    }
}

impl Error {
    /// What could not be done about a service, and why.
    fn service_failure(&self) -> String {
        match self {
            Error::Manager { call, said } => format!("run {call}: {said}"),
            Error::Unservable { path, because } => {
                format!("make a service of {}: {because}", path.display())
            }
            Error::Foreign { path } => {
                format!("change {}: opta has not written it", path.display())
            }
            _ => String::new(),
        }
    }

    /// Why the daemon cannot be reached, and its pid before that.
    fn reach_failure(&self) -> String {
        let of = |pid: &Option<i32>| pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
        match self {
            Error::Unresponsive { pid, waited } => {
                format!("{}: it is alive, no answer in {}s", of(pid), waited.as_secs())
            }
            Error::StateLost { pid } => format!("{}: it runs, and its state.json is lost", of(pid)),
            Error::HeldElsewhere { lock, hostname } => {
                let on = hostname.as_ref().map_or(String::new(), |name| format!(" on {name}"));
                let unseen = format!("a process{on} that cannot be seen from here");
                format!(": {unseen} has locked {}", lock.display())
            }
            _ => ": it is not running".to_owned(),
        }
    }

    /// Why no daemon came of a start.
    fn start_failure(&self) -> String {
        match self {
            Error::Port { port, cause, owner, .. } => {
                let owner = owner.as_ref().map_or(String::new(), |owner| format!(" ({owner})"));
                format!("cannot listen on 127.0.0.1:{port}: {}{owner}", reason(cause))
            }
            Error::Ports { cause } => {
                let (port, others) = (limits::PORT_DEFAULT, limits::PORTS_FALLBACK);
                let (first, last) = (others.start(), others.end());
                let reason = reason(cause);
                format!("cannot listen on 127.0.0.1:{port}, nor on {first} to {last}: {reason}")
            }
            Error::Queue { lock, waited } => {
                let seconds = waited.as_secs();
                format!("another start has held {} for {seconds}s", lock.display())
            }
            Error::GaveUp { words } => words.clone(),
            Error::ServiceRefused { manager, word } => {
                format!("{manager} cannot use its service ({word})")
            }
            Error::Taken { pid, port } => {
                format!("one is running already (pid {pid}, port {port})")
            }
            Error::StartFailed { message, .. } => message.clone(),
            Error::StartTimedOut { waited, .. } => {
                format!("it was not ready after {}s", waited.as_secs())
            }
            Error::StoppedMeanwhile => "it did start, and was stopped by somebody else".to_owned(),
            Error::CrashLoop { crashes, cause, .. } => {
                let cause = cause.as_ref().map_or(String::new(), |cause| format!(": {cause}"));
                format!("it has crashed {crashes} times within a minute{cause}")
            }
            _ => "it ended while starting, without a word".to_owned(),
        }
    }
}

/// The system's own words, without the number that `io::Error` appends.
pub fn reason(cause: &io::Error) -> String {
    let text = cause.to_string();
    match text.find(" (os error ") {
        Some(end) => text.get(..end).unwrap_or(&text).to_owned(),
        None => text,
    }
}

/// `text` on one line: characters that could end the line, drive a terminal, change the order in
/// which it is read or not be seen are escaped.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_deceptive(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// Marks of direction, separators of lines, and what has no width. What joins letters and emoji,
/// and has none either, is needed to write some languages. Unicode Technical Report 36, 2.10.
fn is_deceptive(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}'
        | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}'
        | '\u{180b}'..='\u{180d}' | '\u{2800}' | '\u{e0000}'..='\u{e0fff}')
}

/// Names what was being done to which file when a system call failed.
pub trait At<T> {
    /// `fs::read(&path).at("read", &path)?` becomes "cannot read PATH: reason".
    fn at(self, doing: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|cause| Error::Io { doing, path: path.to_owned(), cause })
    }
}

/// Names what was being done when a system call on no file failed.
pub trait Doing<T> {
    /// `sys::random(&mut bytes).doing("make a token")?` becomes "cannot make a token: reason".
    fn doing(self, doing: &'static str) -> Result<T, Error>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: &'static str) -> Result<T, Error> {
        self.map_err(|cause| Error::System { doing, cause })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_one_line_reads_as_it_is_written() {
        assert_eq!(
            one_line("a\nb\u{1b}[2J\u{202e}c\u{200b}"),
            "a\\nb\\u{1b}[2J\\u{202e}c\\u{200b}"
        );
        let innocent = "naïve \u{1f469}\u{200d}\u{1f4bb} \u{645}\u{6cc}\u{200c}\u{62e}";
        assert_eq!(one_line(innocent), innocent);
    }

    #[test]
    fn an_io_error_reads_as_a_sentence_without_a_number() {
        let failed: io::Result<()> = Err(io::Error::from_raw_os_error(13));
        let error = failed.at("read", Path::new("/x/state.json")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /x/state.json: Permission denied");
        assert_eq!(error.status(), 1);
    }
}
