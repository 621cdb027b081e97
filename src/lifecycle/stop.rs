//! Ending the daemon: asked in peace, waited for until it has really gone, forced only if the user
//! says so, and only the process that the lock proves to be it.

use std::time::{Duration, Instant};

use crate::error::{Doing, Error};
use crate::lifecycle::claim::{held_elsewhere, remove_stale};
use crate::lifecycle::status;
use crate::lock::{self, Lock, Owner};
use crate::paths::Paths;
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

/// Stops the daemon, if there is one, and gives its pid. `announce` is called with the pid before
/// the daemon is asked to leave.
///
/// Returns when the process has ended, its lock and its port are free, and its card is gone; also
/// the card of one that had crashed.
///
/// # Errors
/// [`Error::StillRunning`] after `limit`; [`Error::HeldElsewhere`] if the daemon is out of reach.
pub fn stop(
    paths: &Paths,
    limit: Duration,
    patience: Patience,
    mut announce: impl FnMut(i32) -> Result<(), Error>,
) -> Result<Option<i32>, Error> {
    let deadline = Instant::now() + limit;
    let mut stopped = None;
    let mut last = None;
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
