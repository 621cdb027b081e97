//! Where every file is. With `config.rs`, the only reader of the environment.
//!
//! Every path is absolute: the daemon's working directory is `/`.

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
/// The same for standard error, which has the reason if the daemon could not start.
pub const LAUNCHD_ERRORS: &str = "daemon/daemon.err.log";

/// The directory of workspaces below the user's data.
const WORKSPACES: &str = "opta/workspaces";

/// A service manager: the program that starts, supervises and stops services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    Systemd,
    Launchd,
}

impl Manager {
    /// Returns the manager of this system. Tests choose another with `OPTA_SERVICE_MANAGER`.
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

/// The files of one user's daemon.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
    home: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`
    config_home: Option<PathBuf>,
    /// `$XDG_DATA_HOME`
    data_home: Option<PathBuf>,
}

impl Paths {
    /// Finds the root: `$OPTA_HOME`, or on Linux `$XDG_CONFIG_HOME/opta`, or `~/.config/opta`.
    ///
    /// An empty variable counts as unset. A relative `OPTA_HOME` or `HOME` is an error: in every
    /// directory it would name another one. Relative values of XDG variables are ignored, as the
    /// XDG Base Directory Specification demands. Without `HOME`, the user database is read.
    pub fn from_environment() -> Result<Paths, Error> {
        let home = variable("HOME").map(PathBuf::from).or_else(sys::home_of_user);
        let absolute_path =
            |value: OsString| Some(PathBuf::from(value)).filter(|path| path.is_absolute());
        let config_home = variable("XDG_CONFIG_HOME").and_then(absolute_path);
        let data_home = variable("XDG_DATA_HOME").and_then(absolute_path);
        let root = match variable("OPTA_HOME").map(PathBuf::from) {
            Some(root) => {
                disk::refuse_links_of_others(absolute("OPTA_HOME", &root)?)?;
                root
            }
            None => match config_home.as_ref().filter(|_| cfg!(target_os = "linux")) {
                Some(config_home) => config_home.join("opta"),
                None => home_directory(home.as_deref())?.join(".config/opta"),
            },
        };
        Ok(Paths { root, home, config_home, data_home })
    }

    /// Returns the root: the path of the directory that contains everything else.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the paths of all files of opta that the environment names: those of this root, and
    /// of those that commands with other variables use. The settings file may be a link to another
    /// directory.
    pub fn of_all_homes(&self) -> Vec<PathBuf> {
        let usual = self.home.as_ref().map(|home| home.join(".config/opta"));
        let config = self.config_home.as_ref().map(|config| config.join("opta"));
        let roots = [Some(self.root.clone()), usual, config].into_iter().flatten();
        roots.flat_map(|root| [root.join("config.json"), root]).collect()
    }

    /// Returns the path of the user's service file: systemd.unit(5), launchd.plist(5).
    pub fn service(&self, manager: Manager) -> Result<PathBuf, Error> {
        let home = || home_directory(self.home.as_deref());
        Ok(match (manager, &self.config_home) {
            (Manager::Systemd, Some(config)) => config.join("systemd/user/opta-daemon.service"),
            (Manager::Systemd, None) => home()?.join(".config/systemd/user/opta-daemon.service"),
            (Manager::Launchd, _) => home()?.join("Library/LaunchAgents/com.opta.daemon.plist"),
        })
    }

    /// Returns the path of the directory with the workspaces of sessions that name theirs by a
    /// label. It is the user's, not one of opta's own.
    pub fn workspaces(&self) -> Result<PathBuf, Error> {
        Ok(match &self.data_home {
            Some(data_home) => data_home.join(WORKSPACES),
            None => home_directory(self.home.as_deref())?.join(".local/share").join(WORKSPACES),
        })
    }

    /// Returns whether `path` is that of the directory for `label` below [`Paths::workspaces`],
    /// whatever the environment was when it was chosen.
    pub fn is_workspace_of(label: &str, path: &Path) -> bool {
        // An absolute path would replace the rest.
        !label.contains('/') && path.ends_with(Path::new(WORKSPACES).join(label))
    }

    /// Returns the path of the daemon's directory.
    pub fn daemon(&self) -> PathBuf {
        self.root.join("daemon")
    }

    /// Returns the path of the state file, `state::DaemonInfo`, of a running daemon.
    pub fn state(&self) -> PathBuf {
        self.root.join("daemon/state.json")
    }

    /// Returns the path of the file that has nothing but the token of a running daemon.
    pub fn token(&self) -> PathBuf {
        self.root.join("daemon/token")
    }

    /// Returns the path of the file that leads a browser to the local page, with the token.
    pub fn open_page(&self) -> PathBuf {
        self.root.join("daemon/open.html")
    }

    /// Returns the path of the lock that a daemon holds while it lives.
    pub fn pid(&self) -> PathBuf {
        self.root.join("daemon/daemon.pid")
    }

    /// Returns the path of the lock that serializes starts.
    pub fn start_lock(&self) -> PathBuf {
        self.root.join("daemon/start.lock")
    }

    /// Returns the path of the file with the times of recent crashes.
    pub fn crashes(&self) -> PathBuf {
        self.root.join("daemon/crashes.json")
    }

    /// Returns the path of the daemon's log.
    pub fn log(&self) -> PathBuf {
        self.root.join("daemon/daemon.log")
    }

    /// Returns the path of the directory of the sessions.
    pub fn sessions(&self) -> PathBuf {
        self.root.join("sessions")
    }

    /// Returns the path of the directory of the sessions that clients exported.
    pub fn exports(&self) -> PathBuf {
        self.root.join("exports")
    }

    /// Returns the path of the file with the messages that were typed at the prompt of a chat.
    pub fn history(&self) -> PathBuf {
        self.root.join("chat_history")
    }

    /// Returns the path of the file with the user's settings.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.json")
    }

    /// Creates the daemon's directory, private, or reports why it cannot be used.
    ///
    /// Fails for root in another user's home: that user could not change the files that root would
    /// create there.
    pub fn prepare(&self) -> Result<(), Error> {
        if sys::effective_user() == 0 {
            self.refuse_root_in_a_users_home()?;
        }
        // The caller's mask may remove even the user's own permissions.
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

    /// Returns `path` as users write it: `~` for the home directory, control characters escaped.
    pub fn display(&self, path: &Path) -> String {
        let inside = self.home.as_ref().and_then(|home| path.strip_prefix(home).ok());
        let text = match inside {
            Some(inside) if inside == Path::new("") => "~".to_owned(),
            Some(inside) => format!("~/{}", inside.display()),
            None => path.display().to_string(),
        };
        escaped(&text)
    }
}

fn home_directory(home: Option<&Path>) -> Result<&Path, Error> {
    let missing = || no_home("HOME is not set and the user database has none either");
    absolute("HOME", home.ok_or_else(missing)?)
}

fn absolute<'p>(variable: &str, path: &'p Path) -> Result<&'p Path, Error> {
    match path.is_absolute() {
        true => Ok(path),
        false => Err(no_home(format!("{variable} is not an absolute path: '{}'", path.display()))),
    }
}

fn no_home(reason: impl Into<String>) -> Error {
    Error::cannot(Kind::NoHome, "find your home directory", reason)
        .with_next_step("set HOME or OPTA_HOME to the absolute path of a directory of yours")
}

/// Returns the directory in which the user's service manager listens, if the environment does not
/// name it, as under cron(8), or names that of another user, as under su(1).
pub fn unnamed_runtime_directory() -> Option<PathBuf> {
    let user = sys::effective_user();
    let is_own = |directory: &Path| {
        directory.metadata().is_ok_and(|found| found.is_dir() && found.uid() == user)
    };
    let named = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
    let usual = PathBuf::from(format!("/run/user/{user}"));
    (!named.is_some_and(|named| is_own(&named)) && is_own(&usual)).then_some(usual)
}

/// Returns the value of a variable; an empty one counts as unset.
fn variable(name: &str) -> Option<OsString> {
    #[expect(clippy::disallowed_methods, reason = "this module and config.rs read the environment")]
    env::var_os(name).filter(|value| !value.is_empty())
}
