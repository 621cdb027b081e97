//! The user's settings: `config.json` and the variables that override it. With `paths.rs`, the only
//! reader of the environment.
//!
//! A damaged file is refused with its line, never repaired and never replaced by defaults.

use std::env;
use std::ffi::OsString;
use std::path::Path;

use nanoserde::DeJson;

use crate::error::{Doing, Error};
use crate::log::{Level, Rotation};
use crate::{disk, json, limits, sys};

/// Which port the daemon is to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// 9999, else the first free one of the fallback ports.
    Default,
    /// This one if it is free, else as [`Port::Default`].
    Preferred(u16),
    /// This one or none; `by` says who asked. 0: any free one.
    Exactly { port: u16, by: &'static str },
}

/// Who asks for a port in `config.json`.
const BY_FILE: &str = "daemon.port in config.json";

impl Port {
    /// Whether a service would choose the same port: it reads `config.json`, but neither this
    /// command's options nor its environment.
    pub fn reaches_service(self) -> bool {
        match self {
            Port::Default | Port::Preferred(_) => true,
            Port::Exactly { by, .. } => by == BY_FILE,
        }
    }
}

/// What the daemon needs to know before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    pub port: Port,
    pub level: Level,
    pub rotation: Rotation,
    /// Whether commands may start the daemon on their own account.
    pub autostart: bool,
}

impl Config {
    /// What holds where neither file nor variable says otherwise.
    pub const DEFAULT: Config = Config {
        port: Port::Default,
        level: Level::Info,
        rotation: Rotation { bytes: limits::LOG_BYTES_DEFAULT, files: limits::LOG_FILES_DEFAULT },
        autostart: true,
    };

    /// Reads `path`, then the variables, which win. A missing file is an empty one; keys that are
    /// not known here belong to others.
    pub fn load(path: &Path) -> Result<Config, Error> {
        let file = read(path)?;
        let at = |key: &str| format!("{}: {key}", path.display());
        let autostart = variable("OPTA_NO_AUTOSTART").is_none();
        let mut config = Config { autostart, ..Config::DEFAULT };
        if let Some(number) = file.daemon.and_then(|daemon| daemon.port) {
            let port = u16::try_from(number).ok();
            let port = port.ok_or_else(|| port_refused(at("daemon.port"), &number.to_string()))?;
            config.port = Port::Exactly { port, by: BY_FILE };
        }
        if let Some(log) = file.log {
            log.apply(&mut config, at)?;
        }
        if let Some(text) = variable("OPTA_DAEMON_PORT") {
            let refused = || port_refused("OPTA_DAEMON_PORT".into(), &text);
            let port = text.parse().ok().ok_or_else(refused)?;
            config.port = Port::Exactly { port, by: "OPTA_DAEMON_PORT" };
        }
        if let Some(text) = variable("OPTA_LOG") {
            config.level = level("OPTA_LOG".into(), &text)?;
        }
        Ok(config)
    }
}

/// Whether output may be coloured when it goes to a terminal. <https://no-color.org>
pub fn colour_allowed() -> bool {
    variable("NO_COLOR").is_none() && variable("TERM").is_none_or(|term| term != "dumb")
}

/// What a service manager hands to a process that it starts.
pub struct Handed {
    /// The process that systemd has started as the service (`SYSTEMD_EXEC_PID`, systemd.exec(5)).
    pub service_pid: Option<String>,
    /// Where systemd wants to hear that the service is ready (sd_notify(3)).
    pub notify_socket: Option<OsString>,
    /// The job that launchd has started (`XPC_SERVICE_NAME`).
    pub label: Option<String>,
}

/// The variables that are meant for one process and no other.
const HANDED: &[&str] = &[
    "NOTIFY_SOCKET",
    "INVOCATION_ID",
    "SYSTEMD_EXEC_PID",
    "JOURNAL_STREAM",
    "MANAGERPID",
    "MANAGERPIDFDID",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "XPC_SERVICE_NAME",
];

/// Takes what a manager has handed over out of the environment: whatever this process starts would
/// otherwise take itself for the service.
///
/// # Errors
/// The process has more than one thread already.
pub fn take_handed() -> Result<Handed, Error> {
    let handed = Handed {
        service_pid: variable("SYSTEMD_EXEC_PID"),
        notify_socket: raw_variable("NOTIFY_SOCKET"),
        label: variable("XPC_SERVICE_NAME"),
    };
    sys::forget_variables(HANDED).doing("clean the environment")?;
    Ok(handed)
}

/// Where the user's shell finds programs.
pub fn search_path() -> OsString {
    raw_variable("PATH").unwrap_or_default()
}

#[derive(DeJson, Default)]
struct ConfigFile {
    daemon: Option<DaemonKeys>,
    log: Option<LogKeys>,
}

#[derive(DeJson)]
struct DaemonKeys {
    port: Option<i64>,
}

#[derive(DeJson)]
struct LogKeys {
    level: Option<String>,
    #[nserde(rename = "maxBytes")]
    bytes_max: Option<i64>,
    files: Option<i64>,
}

impl LogKeys {
    fn apply(self, config: &mut Config, at: impl Fn(&str) -> String) -> Result<(), Error> {
        if let Some(text) = self.level {
            config.level = level(at("log.level"), &text)?;
        }
        if let Some(number) = self.bytes_max {
            let bytes = u64::try_from(number).ok().filter(|bytes| *bytes >= limits::LOG_BYTES_MIN);
            config.rotation.bytes = bytes.ok_or_else(|| Error::Config {
                at: at("log.maxBytes"),
                because: format!(
                    "at least {} bytes are needed, not {number}",
                    limits::LOG_BYTES_MIN
                ),
            })?;
        }
        if let Some(number) = self.files {
            let files = u32::try_from(number).ok().filter(|files| *files <= limits::LOG_FILES_MAX);
            config.rotation.files = files.ok_or_else(|| Error::Config {
                at: at("log.files"),
                because: format!(
                    "a number from 0 to {} is needed, not {number}",
                    limits::LOG_FILES_MAX
                ),
            })?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<ConfigFile, Error> {
    // Unlike the daemon's own files it may be a link: people keep their settings in other places.
    let Some(mut file) = disk::read_plain(path)? else {
        return Ok(ConfigFile::default());
    };
    let bytes = disk::contents(&mut file, path, limits::CONFIG_BYTES_MAX)?;
    let bytes = bytes.ok_or_else(|| Error::Config {
        at: path.display().to_string(),
        because: format!("it is larger than {} bytes", limits::CONFIG_BYTES_MAX),
    })?;
    json::parse(&bytes).map_err(|problem| Error::Config {
        at: format!("{}:{}:{}", path.display(), problem.line, problem.column),
        because: problem.what,
    })
}

fn level(at: String, text: &str) -> Result<Level, Error> {
    Level::parse(text).ok_or_else(|| Error::Config {
        at,
        because: format!("a level is debug, info, warn or error, not '{}'", text.escape_debug()),
    })
}

fn port_refused(at: String, text: &str) -> Error {
    let because = format!("a port is a number from 0 to 65535, not '{}'", text.escape_debug());
    Error::Config { at, because }
}

/// The value of a variable; an empty one counts as unset.
fn variable(name: &str) -> Option<String> {
    raw_variable(name).map(|value| value.to_string_lossy().into_owned())
}

fn raw_variable(name: &str) -> Option<OsString> {
    #[expect(clippy::disallowed_methods, reason = "this room and paths.rs read the environment")]
    env::var_os(name).filter(|value| !value.is_empty())
}
