//! Where everything lives. With `config.rs`, the only reader of the environment.
//!
//! Every path is absolute from here on: the daemon's working directory is `/`.

use std::env;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{At, Error, Kind};
use crate::text::escaped;
use crate::{disk, sys};

/// The file below the root to which launchd writes the daemon's standard output. Usually empty: the
/// daemon writes its own log.
pub const LAUNCHD_OUTPUT: &str = "daemon/daemon.out.log";
/// The same for standard error: why the daemon could not start.
pub const LAUNCHD_ERRORS: &str = "daemon/daemon.err.log";

/// A service manager: the program of the system that starts, watches and ends services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    Systemd,
    Launchd,
}

impl Manager {
    /// The one of this system. `OPTA_SERVICE_MANAGER` chooses another, for tests.
    pub fn of_this_system() -> Manager {
        let usual = if cfg!(target_os = "macos") { Manager::Launchd } else { Manager::Systemd };
        let asked = variable("OPTA_SERVICE_MANAGER");
        asked.and_then(|name| Manager::parse(name.to_str()?)).unwrap_or(usual)
    }

    pub fn parse(name: &str) -> Option<Manager> {
        [Manager::Systemd, Manager::Launchd].into_iter().find(|manager| manager.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Manager::Systemd => "systemd",
            Manager::Launchd => "launchd",
        }
    }
}

/// The places of one user's daemon.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
    home: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`
    config_home: Option<PathBuf>,
}

impl Paths {
    /// `$OPTA_HOME`, else on Linux `$XDG_CONFIG_HOME/opta`, else `~/.config/opta`.
    ///
    /// An empty variable counts as unset. A relative `OPTA_HOME` or `HOME` is refused: it would
    /// mean another place in every directory. A relative `XDG_CONFIG_HOME` is ignored, as the XDG
    /// Base Directory Specification demands. Without `HOME`, the user database is asked.
    pub fn from_environment() -> Result<Paths, Error> {
        let home = variable("HOME").map(PathBuf::from).or_else(sys::home_of_user);
        let config_home = variable("XDG_CONFIG_HOME").map(PathBuf::from);
        let config_home = config_home.filter(|path| path.is_absolute());
        let root = match variable("OPTA_HOME").map(PathBuf::from) {
            Some(root) if root.is_relative() => {
                let because = format!("OPTA_HOME is not an absolute path: '{}'", root.display());
                return Err(no_home(because));
            }
            Some(root) => root,
            None => match config_home.as_ref().filter(|_| cfg!(target_os = "linux")) {
                Some(config_home) => config_home.join("opta"),
                None => absolute(home.as_deref())?.join(".config/opta"),
            },
        };
        Ok(Paths { root, home, config_home })
    }

    /// The directory of everything: settings, sessions, and the daemon's own.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the user's service is described: systemd.unit(5), launchd.plist(5).
    pub fn service(&self, manager: Manager) -> Result<PathBuf, Error> {
        let home = || absolute(self.home.as_deref());
        Ok(match (manager, &self.config_home) {
            (Manager::Systemd, Some(config)) => config.join("systemd/user/opta-daemon.service"),
            (Manager::Systemd, None) => home()?.join(".config/systemd/user/opta-daemon.service"),
            (Manager::Launchd, _) => home()?.join("Library/LaunchAgents/com.opta.daemon.plist"),
        })
    }

    /// The daemon's directory.
    pub fn daemon(&self) -> PathBuf {
        self.root.join("daemon")
    }

    /// The visiting state file of a daemon that serves.
    pub fn state(&self) -> PathBuf {
        self.root.join("daemon/state.json")
    }

    /// The lock that says whether its owner lives.
    pub fn pid(&self) -> PathBuf {
        self.root.join("daemon/daemon.pid")
    }

    /// The start lock at which starters queue.
    pub fn start_lock(&self) -> PathBuf {
        self.root.join("daemon/start.lock")
    }

    /// When the daemon crashed of late.
    pub fn crashes(&self) -> PathBuf {
        self.root.join("daemon/crashes.json")
    }

    /// The daemon's log.
    pub fn log(&self) -> PathBuf {
        self.root.join("daemon/daemon.log")
    }

    /// The sessions.
    pub fn sessions(&self) -> PathBuf {
        self.root.join("sessions")
    }

    /// The user's settings.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.json")
    }

    /// Makes the daemon's directory, private, or says why it cannot be used.
    ///
    /// Root in another user's home is refused: the files it would leave there would be in that
    /// user's way for ever.
    pub fn prepare(&self) -> Result<(), Error> {
        if sys::effective_user() == 0 {
            self.refuse_root_in_a_users_home()?;
        }
        // Whatever mask the caller has: one that takes the user's own rights would lock the user
        // out.
        sys::private_umask();
        disk::ensure_owned_directory(&self.root)?;
        disk::ensure_private_directory(&self.daemon())
    }

    fn refuse_root_in_a_users_home(&self) -> Result<(), Error> {
        let Some(nearest) = self.root.ancestors().find(|path| path.exists()) else {
            return Ok(());
        };
        let owner = nearest.metadata().at("inspect", nearest)?.uid();
        if owner == 0 {
            return Ok(());
        }
        let reason = "it belongs to another user, and this is root";
        let next_step = format!("run opta as that user (uid {owner}), without sudo");
        Err(disk::untrusted(nearest, reason, next_step))
    }

    /// `path` as people write it: `~` for the home directory, control characters escaped.
    pub fn display(&self, path: &Path) -> String {
        let inside = self.home.as_ref().and_then(|home| path.strip_prefix(home).ok());
        let text = match inside {
            Some(inside) => format!("~/{}", inside.display()),
            None => path.display().to_string(),
        };
        escaped(&text)
    }
}

fn absolute(home: Option<&Path>) -> Result<&Path, Error> {
    match home {
        Some(home) if home.is_absolute() => Ok(home),
        Some(home) => {
            let because = format!("HOME is not an absolute path: '{}'", home.display());
            Err(no_home(because))
        }
        None => Err(no_home("HOME is not set and the user database has none either")),
    }
}

fn no_home(reason: impl Into<String>) -> Error {
    Error::cannot(Kind::NoHome, "find your home directory", reason)
        .with_next_step("set HOME or OPTA_HOME to the absolute path of a directory of yours")
}

/// The value of a variable; an empty one counts as unset.
fn variable(name: &str) -> Option<OsString> {
    #[expect(clippy::disallowed_methods, reason = "this room and config.rs read the environment")]
    env::var_os(name).filter(|value| !value.is_empty())
}
