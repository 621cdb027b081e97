//! `state.json`: where the daemon listens, and the token that authorizes requests to it.
//!
//! The daemon writes it when it serves and removes it when it exits. The file proves nothing: only
//! the lock shows whether the daemon that it describes is still running.

use nanoserde::{DeJson, SerJson};

use crate::error::Error;
use crate::paths::{Manager, Paths};
use crate::sys::{namespace, socket};
use crate::token::Token;
use crate::{disk, json, limits, sys};

/// A daemon, as its state file describes it. Unknown fields of the file are ignored.
#[derive(Clone, Debug, DeJson, SerJson)]
pub struct DaemonInfo {
    pub pid: i32,
    pub port: u16,
    pub token: Token,
    /// RFC 3339, in UTC, with milliseconds.
    #[nserde(rename = "startedAt")]
    pub started_at: String,
    /// Always 127.0.0.1.
    pub host: String,
    #[nserde(rename = "daemonId")]
    pub daemon_id: String,
    /// The version of the package.
    #[nserde(default)]
    pub version: String,
    /// Absolute.
    #[nserde(rename = "logsPath")]
    pub logs_path: String,
    /// The machine on which it runs.
    pub hostname: Option<String>,
    /// The program that it runs.
    pub executable: Option<String>,
    /// Distinguishes that program from another one in the same file.
    #[nserde(rename = "executableId")]
    pub executable_id: Option<String>,
    /// The service manager that started it.
    #[nserde(rename = "managedBy")]
    pub managed_by: Option<String>,
    /// The boot of the machine on which it runs.
    #[nserde(rename = "bootId")]
    pub boot_id: Option<String>,
    /// The network namespace in which it listens.
    #[nserde(rename = "netNamespace")]
    pub net_namespace: Option<u64>,
    /// The same, as sockets tell it.
    #[nserde(rename = "netCookie")]
    pub net_cookie: Option<u64>,
    /// The namespace in which its pid is counted.
    #[nserde(rename = "pidNamespace")]
    pub pid_namespace: Option<u64>,
    /// When process 1 of that namespace started, in clock ticks.
    #[nserde(rename = "pidNamespaceBegan")]
    pub pid_namespace_began: Option<u64>,
}

/// The reason why a request must not be sent to 127.0.0.1: whoever listens there, it is not known
/// to be the daemon, and the request would show the daemon's token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Untrusted {
    /// The daemon listens on another machine, or before this boot.
    OtherMachine,
    /// The daemon listens in another network namespace.
    OtherNetwork,
    /// The listener is a socket of this user.
    OtherUser(u32),
    /// The system does not tell whose socket it is.
    Unknown,
}

impl DaemonInfo {
    /// Parses the contents of a state file.
    pub fn parse(bytes: &[u8]) -> Option<DaemonInfo> {
        let mut info: DaemonInfo = json::parse(bytes).ok()?;
        info.managed_by = info.managed_by.filter(|name| Manager::parse(name).is_some());
        (info.pid > 0 && info.port != 0).then_some(info)
    }

    /// Checks, without sending anything, that 127.0.0.1 is where the daemon listens: in the same
    /// network namespace, nobody else can have its port while it lives. Where that cannot be
    /// compared, the listener must be a socket of this user. The caller knows that the lock is
    /// held.
    pub fn check_network(&self) -> Result<(), Untrusted> {
        if self.is_of_another_boot() {
            return Err(Untrusted::OtherMachine);
        }
        let same = is_same(self.net_namespace, namespace::network)
            .or_else(|| is_same(self.net_cookie, namespace::network_cookie));
        match same {
            Some(true) => Ok(()),
            Some(false) => Err(Untrusted::OtherNetwork),
            None => self.check_listener(),
        }
    }

    fn check_listener(&self) -> Result<(), Untrusted> {
        match socket::listening_on(self.port) {
            Ok(Some(found)) if found.uid != sys::effective_user() => {
                Err(Untrusted::OtherUser(found.uid))
            }
            // The daemon listens on 127.0.0.1 alone; if nothing does, the connection is refused.
            Ok(Some(found)) if found.on_all_addresses => Err(Untrusted::Unknown),
            Ok(_) => Ok(()),
            Err(_) => Err(Untrusted::Unknown),
        }
    }

    /// Returns whether its pid is counted as here, as far as that can be told.
    pub fn has_pid_of_here(&self) -> bool {
        is_same(self.pid_namespace, namespace::processes) != Some(false)
            && !self.is_of_another_boot()
    }

    /// Returns whether it ended with its machine or its container: everything there did.
    pub fn ended_with_its_machine(&self) -> bool {
        !self.has_pid_of_here()
            || is_same(self.pid_namespace_began, namespace::processes_began) == Some(false)
    }

    fn is_of_another_boot(&self) -> bool {
        is_same(self.boot_id.as_deref(), namespace::boot_id) == Some(false)
    }

    /// Returns the contents of the state file: one line.
    pub fn line(&self) -> String {
        json::text(self) + "\n"
    }
}

/// Compares an identity with that of this process; `None` if either is unknown.
fn is_same<T, U: PartialEq<T>>(theirs: Option<T>, ours: impl Fn() -> Option<U>) -> Option<bool> {
    let theirs = theirs?;
    Some(ours()? == theirs)
}

/// The result of [`read`].
pub enum Found {
    Info(Box<DaemonInfo>),
    /// The file is not a state file.
    Damaged,
    Nothing,
}

/// Reads the state file. A damaged one is not an error, since the daemon can write it again.
pub fn read(paths: &Paths) -> Result<Found, Error> {
    let path = paths.state();
    let Some(mut file) = disk::open_if_exists(&path)? else {
        return Ok(Found::Nothing);
    };
    let bytes = disk::read_up_to(&mut file, &path, limits::STATE_BYTES_MAX)?;
    let info = bytes.and_then(|bytes| DaemonInfo::parse(&bytes));
    Ok(info.map_or(Found::Damaged, |info| Found::Info(Box::new(info))))
}

/// Writes the state file, atomically.
pub fn publish(paths: &Paths, info: &DaemonInfo) -> Result<(), Error> {
    disk::replace(&paths.token(), info.token.secret().as_bytes())?;
    disk::replace(&paths.state(), info.line().as_bytes())
}

/// Removes the state file and the files with the token.
pub fn remove(paths: &Paths) -> Result<(), Error> {
    disk::remove(&paths.token())?;
    disk::remove(&paths.state())?;
    // Last: `publish_page` looks for the state file after it wrote this one.
    disk::remove(&paths.open_page()).map(drop)
}

/// Writes the file that leads a browser to the local page. The caller holds the start lock, so it
/// is the only writer. Returns false, without a file, if the daemon no longer serves.
pub fn publish_page(paths: &Paths, info: &DaemonInfo, page: &str) -> Result<bool, Error> {
    disk::replace(&paths.open_page(), page.as_bytes())?;
    if is_published(paths, info) {
        return Ok(true);
    }
    disk::remove(&paths.open_page())?;
    Ok(false)
}

/// Removes the state file unless it is another daemon's, and the files with the token.
pub fn withdraw(paths: &Paths, daemon_id: &str) -> Result<(), Error> {
    match read(paths)? {
        Found::Info(info) if info.daemon_id != daemon_id => Ok(()),
        _ => remove(paths),
    }
}

/// Returns whether the state file still describes this daemon.
pub fn is_published(paths: &Paths, info: &DaemonInfo) -> bool {
    matches!(read(paths), Ok(Found::Info(found)) if
        (found.pid, found.port, &found.daemon_id) == (info.pid, info.port, &info.daemon_id)
            && found.token.matches(info.token.secret().as_bytes()))
}
