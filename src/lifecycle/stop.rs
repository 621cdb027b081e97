//! Stopping the daemon: a signal to the process that is the daemon according to the lock, a wait
//! until it has exited, and SIGKILL only if the user requests it.

use std::io;
use std::time::{Duration, Instant};

use crate::client::{self, NoHealth};
use crate::error::{Doing, Error, Kind};
use crate::lifecycle::claim::{held_elsewhere, remove_stale};
use crate::lifecycle::service::{self, Service, ServiceState};
use crate::lifecycle::status::{self, Status};
use crate::lock::{self, Lock, Owner, StartLock};
use crate::paths::{Manager, Paths};
use crate::sys::process::Process;
use crate::sys::signal::Signal;
use crate::{disk, limits, state};

/// What to do if the daemon has not exited in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTimeout {
    /// Fail with [`Kind::StillRunning`].
    Report,
    /// Send SIGKILL, which loses nothing that was acknowledged.
    Kill,
}

/// The result of [`stop`].
pub struct StopOutcome {
    /// The daemon that was running.
    pub pid: Option<i32>,
    /// The manager that was asked to stop it.
    pub through: Option<Manager>,
}

/// Stops the daemon, if there is one. A service is stopped through its manager, which would
/// otherwise start it again. `start_lock` is for a caller that holds it already. `announce` gets
/// the pid before the daemon is asked to exit.
///
/// Returns when the process has exited, its lock and its port are free, and its state file is
/// removed. The state file of a crashed daemon is removed as well.
///
/// # Errors
/// [`Kind::StillRunning`] after `limit`; [`Kind::HeldElsewhere`].
pub fn stop(
    start_lock: Option<&StartLock>,
    paths: &Paths,
    limit: Duration,
    on_timeout: OnTimeout,
    mut announce: impl FnMut(i32),
) -> Result<StopOutcome, Error> {
    let service = active_service(paths)?;
    let through = service.as_ref().map(|service| service.manager);
    let is_free = matches!(lock::owner(paths)?, Owner::None);
    if is_free && !paths.state().exists() && service.is_none() {
        return Ok(StopOutcome { pid: None, through });
    }
    let deadline = Instant::now() + limit;
    // It excludes other starters: a daemon that one of them starts is not the one to be stopped. If
    // it cannot be acquired, because a starter hangs or the disk is full, the stop continues, and
    // half of the time is left for the daemon to exit.
    if start_lock.is_none()
        && let Ok(start_lock) = StartLock::acquire(paths, limit / 2)
    {
        start_lock.hold_until_exit();
    }
    let mut stopped = None;
    let mut found = |pid| {
        if stopped.replace(pid).is_none() {
            announce(pid);
        }
    };
    if let Some(service) = &service {
        if let Owner::Process(process) = lock::owner(paths)? {
            found(process.pid());
        }
        // A process that is still running after the limit is signaled.
        service.stop(limit)?;
    }
    match terminate(paths, deadline, &mut found)? {
        None => clear(paths, |paths| remove_stale(paths).map(drop))?,
        Some(Some(process)) if on_timeout == OnTimeout::Kill => {
            kill(&process, paths)?;
            if let Some(service) = &service {
                // The manager still waits for the process, and counts its end as a failure.
                service.stop(limits::MANAGER_MAX)?;
                service.reset_failed();
            }
        }
        Some(remaining) => {
            let pid = remaining.map_or(stopped, |process| Some(process.pid()));
            return Err(pid.map_or_else(
                || client::unreachable(None, None, &NoHealth::TimedOut, limit),
                |pid| still_running(pid, limit),
            ));
        }
    }
    Ok(StopOutcome { pid: stopped, through })
}

/// Asks the owner of the lock to exit, and its successors while a daemon is being started. Returns
/// `None` when the lock is free; at the deadline, the process that has not exited, or `Some(None)`
/// if the owner is not known.
fn terminate(
    paths: &Paths,
    deadline: Instant,
    mut found: impl FnMut(i32),
) -> Result<Option<Option<Process>>, Error> {
    let begun = Instant::now();
    let mut elsewhere = false;
    let mut requested = false;
    let mut remaining = None;
    let free = status::watched(paths, deadline, limits::LOCK_POLL_INTERVAL, || {
        match lock::owner(paths)? {
            Owner::None => return Ok(Some(())),
            Owner::Elsewhere if requested => {}
            Owner::Elsewhere if let Some(pid) = request(paths)? => {
                requested = true;
                found(pid);
            }
            // A daemon that is being started has the lock under the pid of its starter for a
            // moment.
            Owner::Elsewhere if begun.elapsed() < limits::HEALTH_MAX => elsewhere = true,
            Owner::Elsewhere => return Err(held_elsewhere(paths)),
            Owner::Changing => {}
            Owner::Process(process) => {
                elsewhere = false;
                found(process.pid());
                let has_exited = ask(&process, deadline, paths)?;
                remaining = (!has_exited).then_some(process);
            }
        }
        Ok(None)
    })?;
    match (free, remaining) {
        (Some(()), _) => Ok(None),
        (None, None) if elsewhere && !requested => Err(held_elsewhere(paths)),
        (None, remaining) => Ok(Some(remaining)),
    }
}

/// Returns the service if its manager runs it or is about to. A failure of the service is reset: by
/// stopping the service, the user acknowledges the failure.
fn active_service(paths: &Paths) -> Result<Option<Service>, Error> {
    Ok(match service::of_home(paths)? {
        Some((service, ServiceState::Active { .. })) => Some(service),
        Some((service, ServiceState::Failed(_))) => {
            service.reset_failed();
            None
        }
        Some((_, ServiceState::Inactive)) | None => None,
    })
}

/// Stops the daemon's process without the manager, which starts the next one immediately. Returns
/// its pid. Otherwise as [`stop`].
pub fn stop_process(
    paths: &Paths,
    limit: Duration,
    on_timeout: OnTimeout,
    announce: impl FnOnce(i32),
) -> Result<Option<i32>, Error> {
    let process = match lock::owner(paths)? {
        Owner::None | Owner::Changing => return Ok(None),
        Owner::Elsewhere => return Err(held_elsewhere(paths)),
        Owner::Process(process) => process,
    };
    let pid = process.pid();
    announce(pid);
    if !ask(&process, Instant::now() + limit, paths)? {
        if on_timeout == OnTimeout::Report {
            return Err(still_running(pid, limit));
        }
        kill(&process, paths)?;
    }
    Ok(Some(pid))
}

/// Sends SIGTERM, or if that is forbidden a request, and waits; returns false if the process has
/// not exited by the deadline.
fn ask(process: &Process, deadline: Instant, paths: &Paths) -> Result<bool, Error> {
    match process.signal(Signal::Terminate) {
        Ok(false) => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            if request(paths)?.is_none() {
                return Err(error).doing("signal the daemon");
            }
        }
        sent => drop(sent.doing("signal the daemon")?),
    }
    let left = deadline.saturating_duration_since(Instant::now());
    process.wait(left, limits::EXIT_POLL_INTERVAL).doing("wait for the daemon's end")
}

/// Requests a daemon to exit that cannot be signaled from here. Returns its pid, as it is counted
/// where it runs; `None` if no daemon answers.
fn request(paths: &Paths) -> Result<Option<i32>, Error> {
    match status::look_once(paths)? {
        Status::Running { info, .. } => {
            client::shutdown(&info)?;
            Ok(Some(info.pid))
        }
        Status::Unresponsive { pid, port, why: why @ NoHealth::Untrusted(_) } => {
            Err(status::unresponsive(pid, port, &why))
        }
        _ => Ok(None),
    }
}

/// Kills the daemon. The user requested that, so it does not count as a crash.
fn kill(process: &Process, paths: &Paths) -> Result<(), Error> {
    process.kill().doing("kill the daemon")?;
    let waited = limits::STOP_WAIT_FORCED;
    if !process.wait(waited, limits::EXIT_POLL_INTERVAL).doing("wait for the daemon's end")? {
        return Err(still_running(process.pid(), waited));
    }
    discard_state(paths)
}

/// Removes the state file of a daemon that was killed on purpose, whether it is complete or not.
pub fn discard_state(paths: &Paths) -> Result<(), Error> {
    clear(paths, |paths| {
        disk::remove(&disk::unfinished(&paths.state()))?;
        state::remove(paths)
    })
}

/// Removes the state file that a daemon did not remove itself. If another daemon now has the lock,
/// the file is that daemon's. A command that tests the lock holds it only for a moment.
fn clear(paths: &Paths, remove: impl Fn(&Paths) -> Result<(), Error>) -> Result<(), Error> {
    let deadline = Instant::now() + limits::UNRESPONSIVE_MAX;
    status::watched(paths, deadline, limits::LOCK_POLL_INTERVAL, || {
        let state = paths.state();
        if !state.exists() && !disk::unfinished(&state).exists() {
            return Ok(Some(()));
        }
        if let Some(lock) = Lock::take(paths)? {
            let removed = remove(paths);
            lock.release();
            return removed.map(Some);
        }
        Ok(matches!(lock::owner(paths)?, Owner::Process(_)).then_some(()))
    })
    .map(drop)
}

/// Waits for the end of a daemon that was asked to exit by other means. Another one may have been
/// started since.
pub fn wait_for_end(paths: &Paths, pid: i32, limit: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + limit;
    let ended =
        status::watched(paths, deadline, limits::LOCK_POLL_INTERVAL, || {
            match lock::owner(paths)? {
                Owner::Process(process) if process.pid() == pid => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    process
                        .wait(left, limits::EXIT_POLL_INTERVAL)
                        .doing("wait for the daemon's end")?;
                    Ok(None)
                }
                Owner::None | Owner::Process(_) => Ok(Some(())),
                Owner::Changing | Owner::Elsewhere => Ok(None),
            }
        })?;
    ended.ok_or_else(|| still_running(pid, limit))
}

fn still_running(pid: i32, waited: Duration) -> Error {
    let reason = format!("still running after {}s", waited.as_secs());
    Error::cannot(Kind::StillRunning, format!("stop the daemon (pid {pid})"), reason)
        .with_next_step("to end it by force: opta daemon stop --force")
}
