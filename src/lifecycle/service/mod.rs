//! The daemon as a service of the user: installed as a file, run by systemd or launchd.
//!
//! The texts of both kinds of file are pure and the same on every platform. A manager that cannot
//! be reached is common (containers, ssh without a session) and not a failure: the daemon then runs
//! without one.
//!
//! A file serves one home, that of the command that installed it. Files that opta did not write are
//! left alone.

pub mod drift;
mod launchd;
mod manager_command;
pub mod supervision;
mod systemd;
mod unit;

use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::error::{At, Error, Kind};
use crate::paths::{Manager, Paths};
use crate::state::{self, Found};
use crate::{disk, limits};

pub use systemd::{is_inside, restart_from_inside};
use unit::{LoadState, ServiceFile, UnitFields};
pub use unit::{ServiceFailure, ServiceState};

/// This user's service on this system, installed or not.
pub struct Service {
    pub manager: Manager,
    /// The unit or the property list.
    pub file: PathBuf,
}

/// What `install` did.
pub struct Installed {
    /// The file did not exist before.
    pub new: bool,
    /// The manager started the service, as launchd does whenever it loads a job.
    pub started: bool,
    /// What the service runs.
    pub program: PathBuf,
    /// Why the manager has not loaded it yet.
    pub unreachable: Option<Error>,
}

impl Service {
    pub fn of(paths: &Paths) -> Result<Service, Error> {
        let manager = Manager::of_this_system();
        Ok(Service { manager, file: paths.service(manager)? })
    }

    /// Returns the service if it is installed and serves this home; `None`, too, if its file cannot
    /// be read.
    pub fn installed(paths: &Paths) -> Option<Service> {
        let service = Service::of(paths).ok()?;
        let root = paths.root().to_str()?;
        let entry = match service.manager {
            Manager::Systemd => systemd::home_line(root),
            Manager::Launchd => launchd::home_entry(root),
        };
        match ServiceFile::read(&service.file) {
            Ok(ServiceFile::Ours(text)) if text.contains(&entry) => Some(service),
            _ => None,
        }
    }

    /// Returns its name in the manager: `opta-daemon`, `com.opta.daemon`.
    pub fn name(&self) -> &'static str {
        match self.manager {
            Manager::Systemd => systemd::UNIT.trim_end_matches(".service"),
            Manager::Launchd => launchd::LABEL,
        }
    }

    /// Returns `systemd user service` or `launchd service`.
    pub fn kind(&self) -> &'static str {
        match self.manager {
            Manager::Systemd => "systemd user service",
            Manager::Launchd => "launchd service",
        }
    }

    /// Asks the manager for its state.
    ///
    /// # Errors
    /// [`Kind::ServiceManager`]: the manager cannot be reached.
    pub fn state(&self) -> Result<ServiceState, Error> {
        match self.manager {
            Manager::Systemd => systemd::state(),
            Manager::Launchd => launchd::state(),
        }
    }

    fn load_state(&self) -> Result<LoadState, Error> {
        match self.manager {
            Manager::Systemd => systemd::load_state(&self.file),
            Manager::Launchd => launchd::load_state(),
        }
    }

    fn text(&self, fields: &UnitFields) -> Result<String, Error> {
        match self.manager {
            Manager::Systemd => systemd::text(fields),
            Manager::Launchd => Ok(launchd::text(fields)),
        }
    }

    fn fields(&self, text: &str) -> Option<UnitFields> {
        match self.manager {
            Manager::Systemd => systemd::fields(text),
            Manager::Launchd => launchd::fields(text),
        }
    }

    /// Writes the file and makes the manager load it; launchd then runs the service. If the manager
    /// refuses, restores the previous file.
    ///
    /// # Errors
    /// [`Kind::ForeignFile`] for a file that opta did not write, unless `force`;
    /// [`Kind::UnservablePath`] for paths that the manager cannot express.
    pub fn install(&self, paths: &Paths, force: bool) -> Result<Installed, Error> {
        paths.prepare()?;
        let fields = UnitFields::of_this_program(paths)?;
        let text = self.text(&fields)?;
        let present = self.writable_file(force)?;
        let before = disk::if_exists(fs::read(&self.file)).at("read", &self.file)?;
        let changed = !matches!(&present, ServiceFile::Ours(old) if *old == text);
        if changed {
            disk::replace_public(&self.file, text.as_bytes())?;
        }
        let (started, unreachable) = match self.state() {
            Err(error) => (false, Some(error)),
            Ok(state) => match self.register(&state, changed) {
                Ok(started) => (started, None),
                Err(error) => {
                    self.restore(before.as_deref())?;
                    return Err(error);
                }
            },
        };
        let program = PathBuf::from(fields.program);
        Ok(Installed { new: before.is_none(), started, program, unreachable })
    }

    /// Makes the manager load the file; returns whether that started the service.
    fn register(&self, state: &ServiceState, changed: bool) -> Result<bool, Error> {
        if self.manager == Manager::Systemd {
            return systemd::register(&self.file).map(|()| false);
        }
        if let ServiceState::Active { .. } = state {
            if !changed {
                return Ok(false);
            }
            // launchd reads the file of a job only once.
            launchd::unregister(limits::MANAGER_MAX)?;
        }
        launchd::register(&self.file).map(|()| true)
    }

    fn restore(&self, before: Option<&[u8]>) -> Result<(), Error> {
        match before {
            Some(bytes) => disk::replace_public(&self.file, bytes)?,
            None => drop(disk::remove(&self.file)?),
        }
        if self.manager == Manager::Systemd {
            // The caller reports the failure of the installation, not one of this.
            drop(systemd::unload());
        }
        Ok(())
    }

    /// Makes the manager start it at every login; launchd does so with every job that it loads.
    pub fn enable(&self) -> Result<(), Error> {
        match self.manager {
            Manager::Systemd => systemd::enable(),
            Manager::Launchd => Ok(()),
        }
    }

    /// Stops the service, makes the manager unload it and removes its file; returns false if there
    /// was nothing to remove. The file is removed last: a failure before must not leave a service
    /// that runs, and is restarted, without one.
    ///
    /// # Errors
    /// [`Kind::ForeignFile`] for a file that opta did not write, unless `force`.
    pub fn uninstall(&self, force: bool) -> Result<bool, Error> {
        let missing = matches!(self.writable_file(force)?, ServiceFile::Missing);
        // A manager that cannot be reached runs nothing of this user's.
        let state = self.state().ok();
        if missing && matches!(state, None | Some(ServiceState::Inactive)) {
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
                systemd::unload()?;
            }
        }
        Ok(true)
    }

    /// Makes the manager start it. systemd returns once the daemon serves, launchd
    /// immediately.
    pub fn start(&self) -> Result<(), Error> {
        match self.manager {
            Manager::Systemd => systemd::start(),
            Manager::Launchd => launchd::start(&self.file),
        }
    }

    /// Makes the manager stop it and not restart it; returns false if that takes longer than
    /// `limit`.
    pub fn stop(&self, limit: Duration) -> Result<bool, Error> {
        match self.manager {
            Manager::Systemd => systemd::stop(limit),
            Manager::Launchd => launchd::unregister(limit),
        }
    }

    /// Resets the failed state in systemd; launchd has none.
    pub fn reset_failed(&self) {
        if self.manager == Manager::Systemd {
            systemd::reset_failed();
        }
    }

    fn writable_file(&self, force: bool) -> Result<ServiceFile, Error> {
        match ServiceFile::read(&self.file)? {
            ServiceFile::Foreign if !force => {
                let action = format!("change {}", self.file.display());
                let next_step = "to replace or remove it anyway: the same command with --force";
                let error = Error::cannot(Kind::ForeignFile, action, "opta did not write it");
                Err(error.with_next_step(next_step))
            }
            file => Ok(file),
        }
    }
}

/// Returns whether files in the program's directory are removed sooner or later.
pub fn is_temporary(program: &Path) -> bool {
    let temporary = ["/tmp", "/var/tmp", "/private/tmp", "/private/var", "/dev/shm"];
    temporary.iter().any(|directory| program.starts_with(directory))
        || program.components().any(|part| part == Component::Normal(OsStr::new("target")))
}

/// Returns the service of this home and its state: if it is active, only its manager can stop the
/// daemon without starting it again. `None` if there is none, or its manager cannot be reached.
pub fn of_home(paths: &Paths) -> Result<Option<(Service, ServiceState)>, Error> {
    let info = match state::read(paths)? {
        Found::Info(info) => info.managed_by.is_some().then_some(info.pid),
        Found::Damaged | Found::Nothing => None,
    };
    // The state file also knows a service whose file another version wrote, or names this home by
    // another path.
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

/// Returns why the manager no longer runs the installed service, if it failed.
pub fn failure(paths: &Paths) -> Option<ServiceFailure> {
    match Service::installed(paths)?.state() {
        Ok(ServiceState::Failed(failure)) if !failure.transient => Some(failure),
        // An unreachable manager says nothing about the daemon.
        _ => None,
    }
}

/// Checks that the manager could start the installed service, before a daemon is stopped to make
/// way for it.
///
/// # Errors
/// [`Kind::ServiceRefused`].
pub fn check(paths: &Paths) -> Result<(), Error> {
    if !matches!(Service::installed(paths), Some(Service { manager: Manager::Systemd, .. })) {
        return Ok(());
    }
    match systemd::check() {
        // The daemon starts without a manager that cannot be reached.
        Err(error) if error.kind() == Kind::ServiceRefused => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_for_temporary_files_are_recognized() {
        for path in ["/tmp/opta", "/home/u/opta/target/release/opta", "/private/var/folders/x/opta"]
        {
            assert!(is_temporary(Path::new(path)), "{path}");
        }
        for path in ["/usr/local/bin/opta", "/home/u/targets/opta", "/home/tmp/opta"] {
            assert!(!is_temporary(Path::new(path)), "{path}");
        }
    }
}
