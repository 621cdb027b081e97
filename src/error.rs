//! The error of every module: its kind, its message and the next step.
//!
//! Each module builds its errors in functions named after the failure. A new error is one such
//! function. It needs a new [`Kind`] only if callers or scripts must distinguish it.

use std::fmt;
use std::io;
use std::path::Path;

/// An error with the message `cannot do this to that: reason`.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    /// `do this to that`; `None` if the reason is the whole message.
    action: Option<String>,
    reason: String,
    next_step: Option<String>,
    /// Replaces the exit status of the kind.
    status: Option<u8>,
    /// The kind of the failure of a system call.
    io_kind: Option<io::ErrorKind>,
}

/// Declares the kinds of errors, with the code in `--json` and the exit status of each. The manual
/// pages list both.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident => ($code:literal, $status:literal),)+) => {
        /// The kind of an error, which callers and scripts distinguish.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $($(#[$doc])* $kind,)+
        }

        impl Kind {
            /// Returns the code and the exit status.
            fn row(self) -> (&'static str, u8) {
                match self {
                    $(Kind::$kind => ($code, $status),)+
                }
            }
        }
    };
}

kinds! {
    AlreadyRunning => ("ALREADY_RUNNING", 1),
    AmbiguousId => ("AMBIGUOUS_ID", 1),
    BadReply => ("BAD_REPLY", 1),
    Busy => ("BUSY", 1),
    CrashLoop => ("CRASH_LOOP", 1),
    ForeignFile => ("FOREIGN_FILE", 1),
    HeldElsewhere => ("HELD_ELSEWHERE", 4),
    InvalidConfig => ("INVALID_CONFIG", 1),
    ModelServer => ("MODEL_SERVER", 1),
    NoHome => ("NO_HOME", 1),
    NoLoopback => ("NO_LOOPBACK", 1),
    NotRunning => ("NOT_RUNNING", 3),
    /// The result could not be written to standard output.
    Output => ("SYSTEM", 1),
    PortInUse => ("PORT_IN_USE", 1),
    SessionDamaged => ("SESSION_DAMAGED", 1),
    SessionNotFound => ("SESSION_NOT_FOUND", 1),
    SessionsUnlisted => ("SESSIONS_UNLISTED", 1),
    ServiceManager => ("SERVICE_MANAGER", 1),
    /// The service manager read the unit or job and cannot use it.
    ServiceRefused => ("SERVICE_MANAGER", 1),
    StartFailed => ("START_FAILED", 1),
    /// Other starters held the start lock for too long.
    StartLocked => ("TIMEOUT", 1),
    StartTimedOut => ("TIMEOUT", 1),
    StillRunning => ("STILL_RUNNING", 1),
    StoppedMeanwhile => ("STOPPED_MEANWHILE", 1),
    /// A system call failed.
    System => ("SYSTEM", 1),
    Unresponsive => ("UNRESPONSIVE", 4),
    UnservablePath => ("UNSERVABLE_PATH", 1),
    UntrustedPath => ("UNTRUSTED_PATH", 1),
    Usage => ("USAGE", 2),
    VersionSkew => ("VERSION_SKEW", 1),
}

impl Error {
    /// Returns the error "cannot `action`: `reason`".
    pub fn cannot(kind: Kind, action: impl Into<String>, reason: impl Into<String>) -> Error {
        let (action, reason) = (Some(action.into()), reason.into());
        Error { kind, action, reason, next_step: None, status: None, io_kind: None }
    }

    /// Returns a usage error, with the line that shows how to call the command.
    pub fn usage(message: impl Into<String>, usage: impl Into<String>) -> Error {
        Error { action: None, ..Error::cannot(Kind::Usage, "", message) }.with_next_step(usage)
    }

    /// Returns the error of a write to standard output.
    #[expect(clippy::needless_pass_by_value, reason = "for map_err")]
    pub fn output(cause: io::Error) -> Error {
        Error::system(Kind::Output, "write to standard output", &cause)
    }

    fn system(kind: Kind, action: impl Into<String>, cause: &io::Error) -> Error {
        Error { io_kind: Some(cause.kind()), ..Error::cannot(kind, action, reason(cause)) }
    }

    /// Adds the obvious next step, which is printed on its own line.
    #[must_use]
    pub fn with_next_step(self, next_step: impl Into<String>) -> Error {
        Error { next_step: Some(next_step.into()), ..self }
    }

    /// Replaces the exit status.
    #[must_use]
    pub fn with_status(self, status: u8) -> Error {
        Error { status: Some(status), ..self }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the code in `--json`.
    pub fn code(&self) -> &'static str {
        self.kind.row().0
    }

    /// Returns the exit status of the command.
    pub fn status(&self) -> u8 {
        self.status.unwrap_or(self.kind.row().1)
    }

    /// Returns the message without the action.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    pub fn next_step(&self) -> Option<&str> {
        self.next_step.as_deref()
    }

    /// Returns the kind of the failure of a system call.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        self.io_kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            Some(action) => write!(f, "cannot {action}: {}", self.reason),
            None => write!(f, "{}", self.reason),
        }
    }
}

/// Returns the message of the system, without the number that `io::Error` appends.
pub fn reason(cause: &io::Error) -> String {
    let text = cause.to_string();
    match text.find(" (os error ") {
        Some(end) => text.get(..end).unwrap_or(&text).to_owned(),
        None => text,
    }
}

/// An extension that adds to an I/O error the action and the file that it was about.
pub trait At<T> {
    /// Turns `fs::read(&path).at("read", &path)?` into "cannot read PATH: reason".
    fn at(self, doing: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T, Error> {
        let action = || format!("{doing} {}", path.display());
        self.map_err(|cause| Error::system(Kind::System, action(), &cause))
    }
}

/// An extension that adds the action to an I/O error that is not about a file.
pub trait Doing<T> {
    /// Turns `sys::random(&mut bytes).doing("make a token")?` into "cannot make a token: reason".
    fn doing(self, doing: &'static str) -> Result<T, Error>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: &'static str) -> Result<T, Error> {
        self.map_err(|cause| Error::system(Kind::System, doing, &cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_error_becomes_a_message_without_a_number() {
        let failed: io::Result<()> = Err(io::Error::from_raw_os_error(13));
        let error = failed.at("read", Path::new("/x/state.json")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /x/state.json: Permission denied");
        assert_eq!(error.status(), 1);
    }
}
