//! Ending the daemon: asked in peace, waited for until it has really gone, forced only if the user says
//! so, and only the process that the lock proves to be it.

use std::time::{Duration, Instant};

use crate::error::{Doing, Error};
use crate::lifecycle::claim::{held_elsewhere, remove_stale};
use crate::lifecycle::service::{self, Standing};
use crate::lifecycle::status;
use crate::limits;
use crate::lock::{self, Lock, Owner};
use crate::paths::{Manager, Paths};
use crate::sys::process::Process;
use crate::sys::signal::Signal;

/// What to do when the daemon has not left in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Report it: [`Error::StillRunning`].
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
/// otherwise. `announce` is called with the pid before the daemon is asked to leave.
///
/// Returns when the process has ended, its lock and its port are free, and its card is gone; also the
/// card of one that had crashed.
///
/// # Errors
/// [`Error::StillRunning`] after `limit`; [`Error::HeldElsewhere`] if the daemon is out of reach.
pub fn stop(
    paths: &Paths,
    limit: Duration,
    patience: Patience,
    mut announce: impl FnMut(i32) -> Result<(), Error>,
) -> Result<Ended, Error> {
    let deadline = Instant::now() + limit;
    let mut stopped = None;
    let mut last = None;
    let service = match service::of_home(paths)? {
        Some((service, Standing::Active { .. })) => Some(service),
        Some((service, Standing::Failed(_))) => {
            service.forgive();
            None
        }
        Some((_, Standing::Idle)) | None => None,
    };
    if let Some(service) = &service {
        if let Owner::Is(process) = lock::owner(paths)? {
            announce(process.pid())?;
            stopped = Some(process.pid());
        }
        // What it has not ended in time is left to what follows.
        service.stop(limit)?;
    }
    let done = status::watched(paths, deadline, lock::LOOK_AGAIN, || {
        // Several processes may pass through the lock while a daemon is being born: all must go.
        let process = match lock::owner(paths)? {
            Owner::Nobody => return Ok(Some(())),
            Owner::Elsewhere => return Err(held_elsewhere(paths)),
            Owner::Changing => return Ok(None),
            Owner::Is(process) => process,
        };
        if stopped.is_none() {
            announce(process.pid())?;
        }
        stopped = Some(process.pid());
        let gone = ask(&process, deadline)?;
        last = (!gone).then_some(process);
        Ok(None)
    })?;
    if done.is_none() {
        match last {
            Some(process) if patience == Patience::Kill => {
                process.kill().doing("kill the daemon")?;
                process.wait(limit).doing("wait for the daemon's end")?;
                if let Some(service) = &service {
                    service.stop(limits::MANAGER_MAX)?;
                    service.forgive();
                }
            }
            last => {
                let pid = last.map_or(stopped, |process| Some(process.pid()));
                return Err(pid.map_or(Error::Unresponsive { pid, waited: limit }, |pid| {
                    Error::StillRunning { pid, waited: limit }
                }));
            }
        }
    }
    clear(paths)?;
    Ok(Ended { pid: stopped, through: service.map(|service| service.manager) })
}

/// Ends the daemon of this moment by signal, and gives its pid. For a service that its manager starts
/// again by itself.
pub fn end_this_one(
    paths: &Paths,
    limit: Duration,
    patience: Patience,
    announce: impl FnOnce(i32) -> Result<(), Error>,
) -> Result<Option<i32>, Error> {
    let process = match lock::owner(paths)? {
        Owner::Nobody | Owner::Changing => return Ok(None),
        Owner::Elsewhere => return Err(held_elsewhere(paths)),
        Owner::Is(process) => process,
    };
    let pid = process.pid();
    announce(pid)?;
    if !ask(&process, Instant::now() + limit)? {
        if patience == Patience::Report {
            return Err(Error::StillRunning { pid, waited: limit });
        }
        process.kill().doing("kill the daemon")?;
        process.wait(limit).doing("wait for the daemon's end")?;
    }
    Ok(Some(pid))
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
    gone.ok_or(Error::StillRunning { pid, waited: limit })
}

/// SIGTERM, then blocked until it has ended; false if it has not by the deadline.
fn ask(process: &Process, deadline: Instant) -> Result<bool, Error> {
    if !process.signal(Signal::Terminate).doing("signal the daemon")? {
        return Ok(true);
    }
    let left = deadline.saturating_duration_since(Instant::now());
    process.wait(left).doing("wait for the daemon's end")
}

/// Removes the card of a daemon that has not done it itself. If somebody has the lock by now, it is
/// theirs.
fn clear(paths: &Paths) -> Result<(), Error> {
    if !paths.state().exists() {
        return Ok(());
    }
    if let Some(lock) = Lock::take(paths)? {
        let cleared = remove_stale(paths);
        lock.release();
        cleared?;
    }
    Ok(())
}
