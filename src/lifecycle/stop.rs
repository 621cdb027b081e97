//! Ending the daemon: asked in peace, waited for until it has really gone, forced only if the user
//! says so, and only the process that the lock proves to be it.

use std::time::{Duration, Instant};

use crate::error::{Doing, Error};
use crate::lifecycle::claim::{held_elsewhere, remove_stale};
use crate::lifecycle::status;
use crate::lock::{self, Door, Lock, Owner};
use crate::paths::Paths;
use crate::sys::process::Process;
use crate::sys::signal::Signal;
use crate::{disk, limits};

/// What to do when the daemon has not left in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Report it: [`Error::StillRunning`].
    Report,
    /// SIGKILL. Safe: nothing that was acknowledged is lost.
    Kill,
}

/// Stops the daemon, if there is one, and gives its pid. `door` is the caller's, if it is at the
/// door already. `announce` is called with the pid before the daemon is asked to leave.
///
/// Returns when the process has ended, its lock and its port are free, and its card is gone; also
/// the card of one that had crashed.
///
/// # Errors
/// [`Error::StillRunning`] after `limit`; [`Error::HeldElsewhere`] if the daemon is out of reach.
pub fn stop(
    door: Option<&Door>,
    paths: &Paths,
    limit: Duration,
    patience: Patience,
    mut announce: impl FnMut(i32),
) -> Result<Option<i32>, Error> {
    if matches!(lock::owner(paths)?, Owner::Nobody) && !paths.state().exists() {
        return Ok(None);
    }
    let began = Instant::now();
    let deadline = began + limit;
    // Behind the door no starter is met half-way, and no daemon that comes later is taken for this
    // one. It may stay shut, if a starter hangs or nothing can be written here: then it has to go
    // without.
    let _door = if door.is_none() { Door::enter(paths, limit).ok() } else { None };
    let mut stopped = None;
    let mut last = None;
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
                process.kill().doing("kill the daemon")?;
                let waited = limits::STOP_WAIT_FORCED;
                if !process.wait(waited).doing("wait for the daemon's end")? {
                    return Err(Error::StillRunning { pid: process.pid(), waited });
                }
                // It was the user's wish, so it does not count as a crash.
                clear(paths, |paths| disk::remove(&paths.state()).map(drop))?;
                return Ok(stopped);
            }
            _ if elsewhere => return Err(held_elsewhere(paths)),
            last => {
                let pid = last.map_or(stopped, |process| Some(process.pid()));
                return Err(pid.map_or(Error::Unresponsive { pid, waited: limit }, |pid| {
                    Error::StillRunning { pid, waited: limit }
                }));
            }
        }
    }
    clear(paths, |paths| remove_stale(paths).map(drop))?;
    Ok(stopped)
}

/// Waits for the end of a daemon that has already been asked to leave.
pub fn wait_for_end(paths: &Paths, limit: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + limit;
    let mut pid = None;
    let gone = status::watched(paths, deadline, lock::LOOK_AGAIN, || match lock::owner(paths)? {
        Owner::Nobody => Ok(Some(())),
        Owner::Is(process) => {
            pid = Some(process.pid());
            let left = deadline.saturating_duration_since(Instant::now());
            process.wait(left).doing("wait for the daemon's end")?;
            Ok(None)
        }
        Owner::Changing | Owner::Elsewhere => Ok(None),
    })?;
    let still = pid.map_or(Error::Unresponsive { pid, waited: limit }, |pid| Error::StillRunning {
        pid,
        waited: limit,
    });
    gone.ok_or(still)
}

/// SIGTERM, then blocked until it has ended; false if it has not by the deadline.
fn ask(process: &Process, deadline: Instant) -> Result<bool, Error> {
    if !process.signal(Signal::Terminate).doing("signal the daemon")? {
        return Ok(true);
    }
    let left = deadline.saturating_duration_since(Instant::now());
    process.wait(left).doing("wait for the daemon's end")
}

/// Removes the card of a daemon that has not done it itself. If another daemon has the lock by now,
/// it is theirs; whoever only looks has it for a moment and is waited for.
fn clear(paths: &Paths, remove: impl Fn(&Paths) -> Result<(), Error>) -> Result<(), Error> {
    let deadline = Instant::now() + limits::OWNER_WAIT_MAX;
    status::watched(paths, deadline, lock::LOOK_AGAIN, || {
        if !paths.state().exists() {
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
