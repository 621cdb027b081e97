//! The daemon as a service of the user's own: installed as a file, run by systemd or launchd.
//!
//! What the file says is pure and the same on every platform ([`systemd::text`],
//! [`launchd::text`]); what is asked of a manager goes through one small start lock ([`call`]). A
//! manager that cannot be reached is nothing unusual (containers, ssh without a session) and no
//! reason to fail: the daemon runs without.
//!
//! A file serves one home, the one that its installer saw. Files that opta has not written are left
//! alone.

mod drift;
mod launchd;
mod manager_command;
mod program;
pub mod supervision;
mod systemd;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config;
use crate::error::{At, Error, Kind};
use crate::paths::{Manager, Paths};
use crate::state::{self, Found};
use crate::{disk, limits};

pub use drift::Drift;
pub use systemd::{is_inside, restart_from_inside};

/// The service of this user on this system, installed or not.
pub struct Service {
    pub manager: Manager,
    /// Where it is described.
    pub file: PathBuf,
}

/// How a manager sees the service.
pub enum ServiceState {
    /// Not running; at systemd perhaps not even known.
    Inactive,
    /// Running, coming, going, or waiting to be restarted; at launchd: loaded.
    Active { pid: Option<i32> },
    /// Ended in a way that the manager does not mend.
    Failed(ServiceFailure),
}

/// Why the manager does not run the service.
pub struct ServiceFailure {
    pub message: String,
    /// The command that shows details.
    pub details: &'static str,
    /// It was restarted, again and again.
    pub gave_up: bool,
    /// The reason lay elsewhere, and may have gone.
    pub transient: bool,
}

/// What `install` has done.
pub struct Installed {
    /// The file was not there before.
    pub new: bool,
    /// The manager has been told to run it: what installing means to launchd.
    pub started: bool,
    /// What the service runs.
    pub program: PathBuf,
    /// The program lies where files do not last.
    pub temporary: bool,
    /// Why the manager does not know of it yet.
    pub unreachable: Option<Error>,
}

/// What is in the place of the service's file.
enum Present {
    Nothing,
    /// Written by opta.
    Ours(String),
    Foreign,
}

impl Service {
    pub fn of(paths: &Paths) -> Result<Service, Error> {
        let manager = Manager::of_this_system();
        Ok(Service { manager, file: paths.service(manager)? })
    }

    /// The service if it is installed and serves this home. A file that cannot be found or read
    /// serves nobody.
    pub fn installed(paths: &Paths) -> Option<Service> {
        let service = Service::of(paths).ok()?;
        let root = paths.root().to_str()?;
        let entry = match service.manager {
            Manager::Systemd => systemd::home_line(root),
            Manager::Launchd => launchd::home_entry(root),
        };
        match present(&service.file) {
            Ok(Present::Ours(text)) if text.contains(&entry) => Some(service),
            _ => None,
        }
    }

    /// As its manager knows it: `opta-daemon`, `com.opta.daemon`.
    pub fn name(&self) -> &'static str {
        match self.manager {
            Manager::Systemd => systemd::UNIT.trim_end_matches(".service"),
            Manager::Launchd => launchd::LABEL,
        }
    }

    /// What kind of thing it is: `systemd user service`, `launchd service`.
    pub fn kind(&self) -> &'static str {
        match self.manager {
            Manager::Systemd => "systemd user service",
            Manager::Launchd => "launchd service",
        }
    }

    /// How the manager sees it.
    ///
    /// # Errors
    /// [`Kind::ServiceManager`]: the manager cannot be reached.
    pub fn state(&self) -> Result<ServiceState, Error> {
        match self.manager {
            Manager::Systemd => systemd::state(),
            Manager::Launchd => launchd::state(),
        }
    }

    /// Writes the file and makes the manager read it; launchd then runs the service. If the manager
    /// refuses, the file is as it was before.
    ///
    /// # Errors
    /// [`Kind::ForeignFile`] for a file that opta has not written, unless `force` is
    /// [`Force::Replace`]; [`Kind::UnservablePath`] for paths that the manager cannot express.
    pub fn install(&self, paths: &Paths, force: Force) -> Result<Installed, Error> {
        paths.prepare()?;
        let plan = Plan::make(paths)?;
        let text = self.text(&plan)?;
        let present = self.touchable(force)?;
        let before = match fs::read(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some(read.at("read", &self.file)?),
        };
        let changed = !matches!(&present, Present::Ours(old) if *old == text);
        if changed {
            disk::replace_public(&self.file, text.as_bytes())?;
        }
        let (started, unreachable) = match self.state() {
            Err(error) => (false, Some(error)),
            Ok(state) => match self.register(&state, changed) {
                Ok(started) => (started, None),
                Err(error) => {
                    self.put_back(before.as_deref())?;
                    return Err(error);
                }
            },
        };
        let program = PathBuf::from(plan.program);
        let temporary = program::temporary(&program);
        Ok(Installed { new: before.is_none(), started, program, temporary, unreachable })
    }

    fn text(&self, plan: &Plan) -> Result<String, Error> {
        match self.manager {
            Manager::Systemd => systemd::text(plan),
            Manager::Launchd => Ok(launchd::text(plan)),
        }
    }

    /// Makes the manager read the file; true if that has started the service.
    fn register(&self, state: &ServiceState, changed: bool) -> Result<bool, Error> {
        match (self.manager, state) {
            (Manager::Systemd, _) => return systemd::register(&self.file).map(|()| false),
            (Manager::Launchd, ServiceState::Active { .. }) if !changed => return Ok(false),
            (Manager::Launchd, ServiceState::Active { .. }) => {
                // launchd reads a file only once.
                launchd::unregister(limits::MANAGER_MAX)?;
            }
            (Manager::Launchd, _) => {}
        }
        launchd::register(&self.file).map(|()| true)
    }

    fn put_back(&self, before: Option<&[u8]>) -> Result<(), Error> {
        match before {
            Some(bytes) => disk::replace_public(&self.file, bytes)?,
            None => drop(disk::remove(&self.file)?),
        }
        if self.manager == Manager::Systemd {
            // The failure that led here is the one to report.
            drop(systemd::forget());
        }
        Ok(())
    }

    /// Has it started at every login; for launchd that is what installing means.
    pub fn enable(&self) -> Result<(), Error> {
        match self.manager {
            Manager::Systemd => systemd::enable(),
            Manager::Launchd => Ok(()),
        }
    }

    /// Ends the service, makes the manager forget it and removes its file; false if there was
    /// nothing to remove. In this order: a file that goes first would leave a service that runs and
    /// is restarted.
    ///
    /// # Errors
    /// [`Kind::ForeignFile`] for a file that opta has not written, unless `force` is
    /// [`Force::Replace`].
    pub fn uninstall(&self, force: Force) -> Result<bool, Error> {
        let there = !matches!(self.touchable(force)?, Present::Nothing);
        // A manager that cannot be reached runs nothing of this user's.
        let state = self.state().ok();
        let known = matches!(state, Some(ServiceState::Active { .. } | ServiceState::Failed(_)));
        if !there && !known {
            return Ok(false);
        }
        match (self.manager, &state) {
            (Manager::Systemd, Some(_)) => systemd::unregister()?,
            (Manager::Launchd, Some(ServiceState::Active { .. })) => {
                launchd::unregister(limits::MANAGER_MAX)?;
            }
            _ => {}
        }
        disk::remove(&self.file)?;
        if self.manager == Manager::Systemd {
            systemd::unlink(&self.file)?;
            if state.is_some() {
                systemd::forget()?;
            }
        }
        Ok(true)
    }

    /// Has the manager start it. systemd returns when the daemon serves, launchd at once.
    pub fn start(&self) -> Result<(), Error> {
        match self.manager {
            Manager::Systemd => systemd::start(),
            Manager::Launchd => launchd::start(&self.file),
        }
    }

    /// Has the manager end it, and not start it again; false if it has not ended within `limit`.
    pub fn stop(&self, limit: Duration) -> Result<bool, Error> {
        match self.manager {
            Manager::Systemd => systemd::stop(limit),
            Manager::Launchd => launchd::unregister(limit),
        }
    }

    /// Forgets that it has failed.
    pub fn reset_failed(&self) {
        if self.manager == Manager::Systemd {
            systemd::reset_failed();
        }
    }

    fn touchable(&self, force: Force) -> Result<Present, Error> {
        match present(&self.file)? {
            Present::Foreign if force == Force::Respect => {
                let action = format!("change {}", self.file.display());
                let next_step =
                    "to replace or remove it all the same: the same command with --force";
                Err(Error::cannot(Kind::ForeignFile, action, "opta has not written it")
                    .with_next_step(next_step))
            }
            present => Ok(present),
        }
    }
}

/// What to do with a file that opta has not written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// Leave it alone.
    Respect,
    /// Replace or remove it.
    Replace,
}

/// The service of this home, and how its manager sees it: while it is active, the daemon is to be
/// ended through the manager.
///
/// `None` if there is none, or its manager cannot be reached.
pub fn of_home(paths: &Paths) -> Result<Option<(Service, ServiceState)>, Error> {
    let info = match state::read(paths)? {
        Found::Info(info) => info.managed_by.map(|_| info.pid),
        Found::Damaged | Found::Nothing => None,
    };
    // Installed by another version, or for the home by another name: then the state file knows.
    let (service, installed) = match (Service::installed(paths), info) {
        (Some(service), _) => (service, true),
        (None, Some(_)) => (Service::of(paths)?, false),
        (None, None) => return Ok(None),
    };
    Ok(match service.state() {
        Ok(ServiceState::Active { pid }) if pid == info => {
            Some((service, ServiceState::Active { pid }))
        }
        Ok(state) if installed => Some((service, state)),
        _ => None,
    })
}

/// Why the manager has given up on the installed service, if it has.
pub fn failure(paths: &Paths) -> Option<ServiceFailure> {
    match Service::installed(paths)?.state() {
        Ok(ServiceState::Failed(failure)) if !failure.transient => Some(failure),
        // That the manager cannot be asked is no news of the daemon.
        _ => None,
    }
}

/// Makes sure that the manager could start the installed service, before anything is stopped for
/// it.
///
/// # Errors
/// [`Kind::ServiceRefused`].
pub fn check(paths: &Paths) -> Result<(), Error> {
    match Service::installed(paths).map(|service| service.manager) {
        Some(Manager::Systemd) => match systemd::check() {
            // A manager that cannot be asked starts nothing: the daemon runs without it.
            Err(error) if error.kind() == Kind::ServiceRefused => Err(error),
            _ => Ok(()),
        },
        Some(Manager::Launchd) | None => Ok(()),
    }
}

/// What the service is to run, and with what: checked text, so that both kinds of file can hold it.
struct Plan {
    program: String,
    search_path: String,
    root: String,
    output: String,
    errors: String,
}

/// In every file of ours, and in no other.
const MARK: &str = "Written by opta ";

impl Plan {
    fn make(paths: &Paths) -> Result<Plan, Error> {
        Plan::with(paths, plain(&program::path()?)?, search_path(&config::search_path()))
    }

    fn with(paths: &Paths, program: String, search_path: String) -> Result<Plan, Error> {
        Ok(Plan {
            program,
            search_path,
            root: plain(paths.root())?,
            output: plain(&paths.output())?,
            errors: plain(&paths.errors())?,
        })
    }

    fn mark(&self) -> String {
        format!("{MARK}{}: opta daemon install", env!("CARGO_PKG_VERSION"))
    }
}

fn plain(path: &Path) -> Result<String, Error> {
    let because = "a service's file cannot express control characters or what is not UTF-8";
    let text = path.to_str().filter(|text| !text.contains(char::is_control));
    text.map(str::to_owned).ok_or_else(|| unservable(path, because))
}

/// The directories in which the service is to find programs: those of the installing shell, without
/// those that mean another place elsewhere and those that the file cannot express.
fn search_path(path: &std::ffi::OsStr) -> String {
    let places = std::env::split_paths(path).filter(|place| place.is_absolute());
    let places: Vec<String> = places.filter_map(|place| plain(&place).ok()).collect();
    places.join(":")
}

fn present(file: &Path) -> Result<Present, Error> {
    let found = match file.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Present::Nothing),
        found => found.at("inspect", file)?,
    };
    // A link leads to where somebody else keeps it.
    if !found.is_file() {
        return Ok(Present::Foreign);
    }
    let text = String::from_utf8(fs::read(file).at("read", file)?).ok();
    let ours = text.filter(|text| text.lines().take(4).any(|line| line.contains(MARK)));
    Ok(ours.map_or(Present::Foreign, Present::Ours))
}

/// The refusal of a path that the manager could not use in a service.
fn unservable(path: &Path, reason: &str) -> Error {
    Error::cannot(Kind::UnservablePath, format!("make a service of {}", path.display()), reason)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    impl Plan {
        pub fn example(program: &str) -> Plan {
            Plan {
                program: program.to_owned(),
                search_path: "/home/u/.local/bin:/usr/bin".to_owned(),
                root: "/home/u/.config/opta".to_owned(),
                output: "/home/u/.config/opta/daemon/daemon.out.log".to_owned(),
                errors: "/home/u/.config/opta/daemon/daemon.err.log".to_owned(),
            }
        }
    }

    #[test]
    fn only_places_that_mean_the_same_everywhere_are_searched() {
        assert_eq!(search_path(OsStr::new("/a b:.::bin:/c\nd:/usr/bin")), "/a b:/usr/bin");
    }

    #[test]
    fn paths_that_a_file_cannot_hold_are_refused() {
        assert!(plain(Path::new("/opt/a\tb")).is_err());
        assert_eq!(plain(Path::new("/opt/ö & %")).unwrap(), "/opt/ö & %");
    }
}
