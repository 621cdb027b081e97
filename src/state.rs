//! `state.json`, the daemon's visiting state file: where it listens, and the token that opens it.
//!
//! Written when the daemon serves, removed when it leaves. It describes a living process and proves
//! nothing: whether that process lives is for `lock.rs` to say. A state file that cannot be read is
//! no state file.

use nanoserde::{DeJson, SerJson};

use crate::error::Error;
use crate::paths::{Manager, Paths};
use crate::token::Token;
use crate::{disk, json, limits};

/// The state file as other programs read it. Fields that are not known here are ignored.
#[derive(Clone, DeJson, SerJson)]
struct Fields {
    pid: i32,
    port: u16,
    token: String,
    #[nserde(rename = "startedAt")]
    started_at: String,
    host: String,
    #[nserde(rename = "daemonId")]
    daemon_id: String,
    version: Option<String>,
    #[nserde(rename = "logsPath")]
    logs_path: String,
    hostname: Option<String>,
    executable: Option<String>,
    #[nserde(rename = "executableId")]
    executable_id: Option<String>,
    #[nserde(rename = "managedBy")]
    managed_by: Option<String>,
}

/// What the daemon tells of itself.
#[derive(Clone, Debug)]
pub struct DaemonInfo {
    pub pid: i32,
    pub port: u16,
    pub token: Token,
    /// RFC 3339, UTC, milliseconds.
    pub started_at: String,
    pub daemon_id: String,
    /// The package's version.
    pub version: String,
    /// Absolute.
    pub logs_path: String,
    /// The machine that it runs on.
    pub hostname: Option<String>,
    /// The program that it runs, and what tells that file from a later one of the same name.
    pub executable: Option<(String, String)>,
    /// The service manager that has started it and watches over it.
    pub managed_by: Option<Manager>,
}

/// What is found in the state file's place.
pub enum Found {
    Info(Box<DaemonInfo>),
    /// Something that is no state file.
    Damaged,
    Nothing,
}

/// Reads the state file. Damage is not an error: the daemon writes a new one when it is asked to.
pub fn read(paths: &Paths) -> Result<Found, Error> {
    let path = paths.state();
    let Some(mut file) = disk::open_if_exists(&path)? else {
        return Ok(Found::Nothing);
    };
    let bytes = disk::read_up_to(&mut file, &path, limits::STATE_BYTES_MAX)?;
    let info = bytes.and_then(|bytes| DaemonInfo::parse(&bytes));
    Ok(info.map_or(Found::Damaged, |info| Found::Info(Box::new(info))))
}

/// Puts the state file in its place, in one step.
pub fn publish(paths: &Paths, info: &DaemonInfo) -> Result<(), Error> {
    disk::replace(&paths.state(), info.line().as_bytes())
}

/// Removes the state file if it is this daemon's: another one's is not to be touched.
pub fn withdraw(paths: &Paths, daemon_id: &str) -> Result<(), Error> {
    if matches!(read(paths), Ok(Found::Info(info)) if info.daemon_id == daemon_id) {
        disk::remove(&paths.state())?;
    }
    Ok(())
}

/// Whether the state file in place is this one, unchanged.
pub fn shows(paths: &Paths, ours: &DaemonInfo) -> bool {
    let same = |info: &DaemonInfo| {
        let names = |info: &DaemonInfo| (info.pid, info.port, info.daemon_id.clone());
        names(info) == names(ours) && info.token.matches(ours.token.secret().as_bytes())
    };
    matches!(read(paths), Ok(Found::Info(info)) if same(&info))
}

impl DaemonInfo {
    /// Reads the contents of a state file.
    pub fn parse(bytes: &[u8]) -> Option<DaemonInfo> {
        let fields: Fields = json::parse(bytes).ok()?;
        if fields.pid <= 0 || fields.port == 0 {
            return None;
        }
        Some(DaemonInfo {
            pid: fields.pid,
            port: fields.port,
            token: Token::parse(fields.token)?,
            started_at: fields.started_at,
            daemon_id: fields.daemon_id,
            version: fields.version.unwrap_or_default(),
            logs_path: fields.logs_path,
            hostname: fields.hostname,
            executable: fields.executable.zip(fields.executable_id),
            managed_by: fields.managed_by.and_then(|name| Manager::parse(&name)),
        })
    }

    /// The contents of the state file: one line of JSON.
    pub fn line(&self) -> String {
        let (executable, executable_id) = self.executable.clone().unzip();
        let fields = Fields {
            pid: self.pid,
            port: self.port,
            token: self.token.secret().to_owned(),
            started_at: self.started_at.clone(),
            host: "127.0.0.1".to_owned(),
            daemon_id: self.daemon_id.clone(),
            version: Some(self.version.clone()),
            logs_path: self.logs_path.clone(),
            hostname: self.hostname.clone(),
            executable,
            executable_id,
            managed_by: self.managed_by.map(|manager| manager.name().to_owned()),
        };
        json::text(&fields) + "\n"
    }
}
