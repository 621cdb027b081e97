//! Ending the daemon: asked in peace, waited for until it has really gone, forced only if the user
//! says so, and only the process that the lock proves to be it.

use std::time::{Duration, Instant};

use crate::error::{Doing, Error, Kind};
use crate::lifecycle::claim::{held_elsewhere, remove_stale};
use crate::lifecycle::service::{self, Service, ServiceState};
use crate::lifecycle::status;
use crate::lock::{self, Lock, Owner, StartLock};
use crate::paths::{Manager, Paths};
use crate::sys::process::Process;
use crate::sys::signal::Signal;
use crate::{client, disk, limits};

/// What to do when the daemon has not left in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Report it: [`Kind::StillRunning`].
    Report,
    /// SIGKILL. Safe: nothing that was acknowledged is lost.
    Kill,
}

/// What came of stopping.
pub struct Ended {
    /// The daemon that was there.
    pub pid: Option<i32>,
    /// The manager that was asked to end it.
    pub through: Option<Manager>,
}

/// Stops the daemon, if there is one: a service through its manager, which would start it again
/// otherwise. `start lock` is the caller's, if it is at the start lock already. `announce` is
/// called with the pid before the daemon is asked to leave.
///
/// Returns when the process has ended, its lock and its port are free, and its state file is gone;
/// also the state file of one that had crashed.
///
/// # Errors
/// [`Kind::StillRunning`] after `limit`; [`Kind::HeldElsewhere`] if the daemon is out of reach.
pub fn stop(
    start_lock: Option<&StartLock>,
    paths: &Paths,
    limit: Duration,
    patience: Patience,
    mut announce: impl FnMut(i32),
) -> Result<Ended, Error> {
    let service = active_service(paths)?;
    let through = service.as_ref().map(|service| service.manager);
    let nobody = matches!(lock::owner(paths)?, Owner::Nobody) && !paths.state().exists();
    if nobody && service.is_none() {
        return Ok(Ended { pid: None, through });
    }
    let began = Instant::now();
    let deadline = began + limit;
    // Behind the start lock no starter is met half-way, and no daemon that comes later is taken for
    // this one. It may stay shut, if a starter hangs or nothing can be written here: then it has to
    // go without.
    let _start_lock =
        if start_lock.is_none() { StartLock::acquire(paths, limit).ok() } else { None };
    let mut stopped = None;
    let mut last = None;
    if let Some(service) = &service {
        if let Owner::Is(process) = lock::owner(paths)? {
            announce(process.pid());
            stopped = Some(process.pid());
        }
        // What it does not get done in time is left to what follows.
        service.stop(limit)?;
    }
    let mut elsewhere = false;
    let done = status::watched(paths, deadline, lock::LOOK_AGAIN, || {
        // Several processes may pass through the lock while a daemon is being born: all must go.
        let process = match lock::owner(paths)? {
            Owner::Nobody => return Ok(Some(())),
            // A daemon that is being born has the lock for a moment under the name of its starter.
            Owner::Elsewhere if began.elapsed() < limits::HEALTH_MAX => {
                elsewhere = true;
                return Ok(None);
            }
            Owner::Elsewhere => return Err(held_elsewhere(paths)),
            Owner::Changing => return Ok(None),
            Owner::Is(process) => process,
        };
        elsewhere = false;
        if stopped.is_none() {
            announce(process.pid());
        }
        stopped = Some(process.pid());
        let gone = ask(&process, deadline)?;
        last = (!gone).then_some(process);
        Ok(None)
    })?;
    if done.is_none() {
        match last {
            Some(process) if patience == Patience::Kill => {
                kill(&process, paths)?;
                if let Some(service) = &service {
                    // The manager still waits for what has just been killed, and takes it for a
                    // failure.
                    service.stop(limits::MANAGER_MAX)?;
                    service.reset_failed();
                }
                return Ok(Ended { pid: stopped, through });
            }
            _ if elsewhere => return Err(held_elsewhere(paths)),
            last => {
                let pid = last.map_or(stopped, |process| Some(process.pid()));
                return Err(match pid {
                    Some(pid) => still_running(pid, limit),
                    None => client::unresponsive(None, limit),
                });
            }
        }
    }
    clear(paths, |paths| remove_stale(paths).map(drop))?;
    Ok(Ended { pid: stopped, through })
}

/// The service that its manager runs, or is about to.
fn active_service(paths: &Paths) -> Result<Option<Service>, Error> {
    Ok(match service::of_home(paths)? {
        Some((service, ServiceState::Active { .. })) => Some(service),
        Some((service, ServiceState::Failed(_))) => {
            // To stop it is to have taken note.
            service.reset_failed();
            None
        }
        Some((_, ServiceState::Inactive)) | None => None,
    })
}

/// Ends the daemon of this moment by signal, and gives its pid: for a service that its manager
/// starts again by itself. Otherwise as [`stop`].
pub fn end_this_one(
    paths: &Paths,
    limit: Duration,
    patience: Patience,
    announce: impl FnOnce(i32),
) -> Result<Option<i32>, Error> {
    let process = match lock::owner(paths)? {
        Owner::Nobody | Owner::Changing => return Ok(None),
        Owner::Elsewhere => return Err(held_elsewhere(paths)),
        Owner::Is(process) => process,
    };
    let pid = process.pid();
    announce(pid);
    if !ask(&process, Instant::now() + limit)? {
        if patience == Patience::Report {
            return Err(still_running(pid, limit));
        }
        kill(&process, paths)?;
    }
    Ok(Some(pid))
}

/// Ends it at once. It is the user's wish, so it does not count as a crash.
fn kill(process: &Process, paths: &Paths) -> Result<(), Error> {
    process.kill().doing("kill the daemon")?;
    let waited = limits::STOP_WAIT_FORCED;
    if !process.wait(waited).doing("wait for the daemon's end")? {
        return Err(still_running(process.pid(), waited));
    }
    discard_state(paths)
}

/// Removes the state file of a daemon that was killed on purpose: that is no crash.
pub fn discard_state(paths: &Paths) -> Result<(), Error> {
    clear(paths, |paths| {
        disk::remove(&disk::unfinished(&paths.state()))?;
        disk::remove(&paths.state()).map(drop)
    })
}

/// Waits for the end of a daemon that has already been asked to leave. Another may have come since.
pub fn wait_for_end(paths: &Paths, pid: i32, limit: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + limit;
    let gone = status::watched(paths, deadline, lock::LOOK_AGAIN, || match lock::owner(paths)? {
        Owner::Is(process) if process.pid() == pid => {
            let left = deadline.saturating_duration_since(Instant::now());
            process.wait(left).doing("wait for the daemon's end")?;
            Ok(None)
        }
        Owner::Nobody | Owner::Is(_) => Ok(Some(())),
        Owner::Changing | Owner::Elsewhere => Ok(None),
    })?;
    gone.ok_or_else(|| still_running(pid, limit))
}

fn still_running(pid: i32, waited: Duration) -> Error {
    let reason = format!("still running after {}s", waited.as_secs());
    Error::cannot(Kind::StillRunning, format!("stop the daemon (pid {pid})"), reason)
        .with_next_step("to end it by force: opta daemon stop --force")
}

/// SIGTERM, then blocked until it has ended; false if it has not by the deadline.
fn ask(process: &Process, deadline: Instant) -> Result<bool, Error> {
    if !process.signal(Signal::Terminate).doing("signal the daemon")? {
        return Ok(true);
    }
    let left = deadline.saturating_duration_since(Instant::now());
    process.wait(left).doing("wait for the daemon's end")
}

/// Removes the state file of a daemon that has not done it itself. If another daemon has the lock
/// by now, it is theirs; whoever only looks has it for a moment and is waited for.
fn clear(paths: &Paths, remove: impl Fn(&Paths) -> Result<(), Error>) -> Result<(), Error> {
    let deadline = Instant::now() + limits::UNRESPONSIVE_MAX;
    status::watched(paths, deadline, lock::LOOK_AGAIN, || {
        let state = paths.state();
        if !state.exists() && !disk::unfinished(&state).exists() {
            return Ok(Some(()));
        }
        if let Some(lock) = Lock::take(paths)? {
            let cleared = remove(paths);
            lock.release();
            return cleared.map(Some);
        }
        Ok(matches!(lock::owner(paths)?, Owner::Is(_)).then_some(()))
    })
    .map(drop)
}
