//! Becoming the daemon: the lock first, then the listener, both in the process that the user
//! started, so that whatever fails for the user's reasons fails on the user's terminal.

use std::net::TcpListener;
use std::time::Instant;

use crate::config::{Config, Port};
use crate::error::{At, Error, Kind};
use crate::lifecycle::status::{self, Status};
use crate::lifecycle::{crashes, port};
use crate::lock::{self, Lock, Owner, StartLock};
use crate::log::Log;
use crate::paths::Paths;
use crate::state::{self, DaemonInfo, Found};
use crate::sys::signal::Signal;
use crate::{client, disk, limits};

/// The right and the means to be the daemon: made only by taking the lock and binding the port.
pub struct Claim {
    pub lock: Lock,
    pub listener: TcpListener,
    pub log: Log,
    /// What was left behind by a daemon that crashed, and has been removed.
    pub crashed: Option<Crashed>,
}

impl Claim {
    /// Logs that the daemon before this one has crashed, if it has.
    pub fn log_crash(&self) {
        if let Some(crashed) = self.crashed {
            let pid = crashed.pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
            self.log.warn("the daemon before this one had crashed", &[("pid", &pid)]);
        }
    }
}

/// A daemon that ended without taking leave.
#[derive(Clone, Copy)]
pub struct Crashed {
    /// As its state file told it; `None` if the state file could not be read.
    pub pid: Option<i32>,
}

/// What came of trying.
pub enum Claimed {
    Ours(Box<Claim>),
    /// Another daemon serves, and that is as good.
    Taken(Box<DaemonInfo>),
}

/// Takes the lock, clears away what a crashed daemon has left, binds the port, opens the log.
/// `_door` shows that no other starter is at it.
///
/// # Errors
/// [`Kind::Unresponsive`], [`Kind::HeldElsewhere`]: somebody has the lock and does not answer.
/// [`Kind::PortInUse`]: no port can be had. The lock is free again then.
pub fn claim(
    paths: &Paths,
    config: &Config,
    wanted: Port,
    _start_lock: &StartLock,
) -> Result<Claimed, Error> {
    let lock = match Lock::take(paths)? {
        Some(lock) => lock,
        None => match wait_for_owner(paths)? {
            Waited::Ready(info) => return Ok(Claimed::Taken(info)),
            Waited::Gone(lock) => lock,
        },
    };
    match prepare(paths, config, wanted) {
        Ok((listener, log, crashed)) => {
            Ok(Claimed::Ours(Box::new(Claim { lock, listener, log, crashed })))
        }
        Err(error) => {
            lock.release();
            Err(error)
        }
    }
}

fn prepare(
    paths: &Paths,
    config: &Config,
    wanted: Port,
) -> Result<(TcpListener, Log, Option<Crashed>), Error> {
    let crashed = remove_stale(paths)?;
    // Of a starter that was killed; it is in nobody's way, but it need not stay.
    disk::remove(&disk::unfinished(&paths.crashes()))?;
    let listener = port::listen(wanted)?;
    let log = Log::open(&paths.daemon(), config.rotation, config.level)?;
    Ok((listener, log, crashed))
}

/// Removes the state file of a daemon that is dead, as the lock in the caller's hand proves, and
/// keeps count.
pub fn remove_stale(paths: &Paths) -> Result<Option<Crashed>, Error> {
    let pid = match state::read(paths)? {
        Found::Nothing => return Ok(None),
        Found::Damaged => None,
        Found::Info(info) => Some(info.pid),
    };
    disk::remove(&paths.state())?;
    crashes::add(paths)?;
    Ok(Some(Crashed { pid }))
}

enum Waited {
    Ready(Box<DaemonInfo>),
    /// The owner has ended and the lock is ours.
    Gone(Lock),
}

/// Somebody has the lock. No starter is at it, so it is a daemon that serves, one that is leaving,
/// one that has lost its state file, one that hangs; or a command that has only looked.
fn wait_for_owner(paths: &Paths) -> Result<Waited, Error> {
    let deadline = Instant::now() + limits::UNRESPONSIVE_MAX;
    let mut holder = None;
    let mut elsewhere = false;
    let mut asked = false;
    let waited = status::watched(paths, deadline, lock::LOOK_AGAIN, || {
        let state_lost = match status::look_once(paths)? {
            Status::Running { info, .. } => return Ok(Some(Waited::Ready(info))),
            Status::Unresponsive { pid, state_lost, .. } => {
                holder = pid;
                state_lost
            }
            Status::Stopped | Status::Crashed { .. } => false,
        };
        if let Some(lock) = Lock::take(paths)? {
            return Ok(Some(Waited::Gone(lock)));
        }
        let owner = lock::owner(paths)?;
        elsewhere = matches!(owner, Owner::Elsewhere);
        if let Owner::Is(process) = owner
            && state_lost
            && !asked
        {
            process.signal(Signal::Hangup).at("signal the owner of", &paths.pid())?;
            asked = true;
        }
        Ok(None)
    })?;
    waited.ok_or_else(|| {
        if elsewhere {
            held_elsewhere(paths)
        } else {
            client::unresponsive(holder, limits::UNRESPONSIVE_MAX)
        }
    })
}

/// The lock's owner cannot be seen from here; its state file, if there is one, tells its machine.
pub fn held_elsewhere(paths: &Paths) -> Error {
    let hostname = match state::read(paths) {
        Ok(Found::Info(info)) => info.hostname,
        _ => None,
    };
    let on = hostname.map_or(String::new(), |name| format!(" on {name}"));
    let unseen = format!("a process{on} that cannot be seen from here");
    let reason = format!("{unseen} has locked {}", paths.pid().display());
    Error::cannot(Kind::HeldElsewhere, "reach the daemon", reason)
        .with_next_step("stop it where it runs, or give this machine a place of its own: OPTA_HOME")
}
