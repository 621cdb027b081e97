//! The user's settings: `config.json` and the variables that override it. With `paths.rs`, the only
//! reader of the environment.
//!
//! A damaged file is refused with its line, never repaired and never replaced by defaults.

use std::env;
use std::fs::File;
use std::io;
use std::path::Path;

use nanoserde::DeJson;

use crate::error::{At, Error};
use crate::log::{Level, Rotation};
use crate::{disk, json, limits};

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
    /// Reads `path`, then the variables, which win. A missing file is an empty one; keys that are not
    /// known here belong to others.
    pub fn load(path: &Path) -> Result<Config, Error> {
        let file = read(path)?;
        let at = |key: &str| format!("{}: {key}", path.display());
        let mut config = Config {
            port: Port::Default,
            level: Level::Info,
            rotation: Rotation {
                bytes: limits::LOG_BYTES_DEFAULT,
                files: limits::LOG_FILES_DEFAULT,
            },
            autostart: variable("OPTA_NO_AUTOSTART").is_none(),
        };
        if let Some(number) = file.daemon.and_then(|daemon| daemon.port) {
            let port = u16::try_from(number).ok();
            let port = port.ok_or_else(|| port_refused(at("daemon.port"), &number.to_string()))?;
            config.port = Port::Exactly { port, by: "daemon.port in config.json" };
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
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ConfigFile::default()),
        Err(cause) => return Err(cause).at("read", path),
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
    #[expect(clippy::disallowed_methods, reason = "this room and paths.rs read the environment")]
    let value = env::var_os(name)?;
    Some(value.to_string_lossy().into_owned()).filter(|value| !value.is_empty())
}
