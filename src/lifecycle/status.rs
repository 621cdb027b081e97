//! The state of the daemon, as a command sees it. Looking changes nothing.

use std::time::{Duration, Instant};

use crate::client::{self, NoHealth};
use crate::error::{At, Error, Kind};
use crate::lifecycle::service::{self, ServiceFailure};
use crate::paths::Paths;
use crate::protocol::Health;
use crate::state::{self, DaemonInfo, Found};
use crate::sys::process;
use crate::sys::watch::Watch;
use crate::{limits, lock, sys};

/// The state of the daemon.
pub enum Status {
    /// It holds the lock and answers.
    Running { info: Box<DaemonInfo>, health: Box<Health> },
    /// There is neither a daemon nor a state file, or only that of a daemon that ended with its
    /// machine or its container.
    Stopped,
    /// There is no daemon, but a state file: the daemon ended without removing it.
    Crashed { info: Option<Box<DaemonInfo>> },
    /// The lock is held, and its owner did not answer in time.
    Unresponsive { pid: Option<i32>, port: Option<u16>, why: NoHealth },
}

/// Returns the status. Takes at most [`limits::HEALTH_MAX`], and usually well under a millisecond.
///
/// If the daemon is starting or exiting, waits until it is ready or has exited.
pub fn look(paths: &Paths) -> Result<Status, Error> {
    let deadline = Instant::now() + limits::HEALTH_MAX;
    let mut observer = Observer::new(paths);
    let settled = watched(paths, deadline, limits::LOCK_POLL_INTERVAL, || {
        let Look { status, is_settled } = observer.look_until(deadline)?;
        Ok(is_settled.then_some(status))
    })?;
    settled.map_or_else(|| observer.look(), Ok)
}

/// Returns the status at this moment, even if the daemon is starting or exiting.
pub fn look_once(paths: &Paths) -> Result<Status, Error> {
    Observer::new(paths).look()
}

/// Adds the reason why the service manager does not run the daemon. A failed service counts as
/// crashed, even if it ended before it wrote a state file.
pub fn with_service(paths: &Paths, status: Status) -> (Status, Option<ServiceFailure>) {
    let failure = match status {
        Status::Stopped | Status::Crashed { .. } => service::failure(paths),
        Status::Running { .. } | Status::Unresponsive { .. } => None,
    };
    match status {
        Status::Stopped if failure.is_some() => (Status::Crashed { info: None }, failure),
        status => (status, failure),
    }
}

/// Returns the running daemon.
///
/// # Errors
/// [`Kind::NotRunning`], [`Kind::Unresponsive`].
pub fn running(paths: &Paths) -> Result<Box<DaemonInfo>, Error> {
    match look(paths)? {
        Status::Running { info, .. } => Ok(info),
        Status::Stopped | Status::Crashed { .. } => Err(not_running()),
        Status::Unresponsive { pid, port, why } => Err(unresponsive(pid, port, &why)),
    }
}

fn not_running() -> Error {
    Error::cannot(Kind::NotRunning, "reach the daemon", "it is not running")
        .with_next_step("start it: opta daemon start")
}

/// Returns the error for a daemon that holds its lock and does not answer.
pub fn unresponsive(pid: Option<i32>, port: Option<u16>, why: &NoHealth) -> Error {
    client::unreachable(pid, port, why, limits::HEALTH_MAX)
}

/// Waits until the daemon is running, at most for `limit`, and returns its status.
pub fn wait_until_running(paths: &Paths, limit: Duration) -> Result<Status, Error> {
    let deadline = Instant::now() + limit;
    let mut observer = Observer::new(paths);
    let running = watched(paths, deadline, limits::HEALTH_MAX, || {
        let status = observer.look()?;
        Ok(matches!(status, Status::Running { .. }).then_some(status))
    })?;
    running.map_or_else(|| look(paths), Ok)
}

/// Calls `look` until it returns a value or the deadline passes: immediately, then at every change
/// in the daemon's directory (or its nearest ancestor that exists), and after each `interval`,
/// since not every change of the status changes a directory.
pub fn watched<T>(
    paths: &Paths,
    deadline: Instant,
    interval: Duration,
    mut look: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<Option<T>, Error> {
    // The first look is usually enough, and a watch would cost more.
    if let Some(result) = look()? {
        return Ok(Some(result));
    }
    let directory = paths.daemon();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let nearest = directory.ancestors().find(|path| path.is_dir()).unwrap_or(&directory);
        // Created before the look, so that no change is missed between the two.
        let watch = Watch::on(nearest);
        if let Some(result) = look()? {
            return Ok(Some(result));
        }
        let limit = Some(left.min(interval));
        match watch {
            Ok(watch) => watch.wait(limit).at("watch", nearest).map(drop)?,
            // There are too many watches, or the directory was just removed.
            Err(_) => sys::wait_readable([], limit).at("watch", nearest).map(drop)?,
        }
    }
}

struct Look {
    status: Status,
    /// The daemon is neither starting nor exiting.
    is_settled: bool,
}

impl Look {
    fn settled(status: Status) -> Result<Look, Error> {
        Ok(Look { status, is_settled: true })
    }

    fn changing(status: Status) -> Result<Look, Error> {
        Ok(Look { status, is_settled: false })
    }
}

/// A command that looks at the status, perhaps several times.
pub struct Observer<'p> {
    paths: &'p Paths,
    /// The contents of a state file that led to another program. Nothing more is sent there.
    misled_by: Option<String>,
}

impl Observer<'_> {
    pub fn new(paths: &Paths) -> Observer<'_> {
        Observer { paths, misled_by: None }
    }

    /// Returns the status at this moment, even if the daemon is starting or exiting.
    pub fn look(&mut self) -> Result<Status, Error> {
        self.look_until(Instant::now() + limits::HEALTH_MAX).map(|look| look.status)
    }

    fn look_until(&mut self, deadline: Instant) -> Result<Look, Error> {
        let found = state::read(self.paths)?;
        // Signal zero comes first, but does not decide: the pid may now be that of another process,
        // of a thread or of a zombie. In another pid namespace it says nothing.
        let is_dead = match &found {
            Found::Info(info) => !process::probe(info.pid) && info.has_pid_of_here(),
            Found::Damaged | Found::Nothing => true,
        };
        let (held, owner) = lock::look(self.paths)?;
        let info = match (held, found) {
            (false, Found::Nothing) => return Look::settled(Status::Stopped),
            (false, found) => return look_without_lock(self.paths, found),
            (true, Found::Info(info)) if !is_dead && owner == Some(info.pid) => info,
            (true, found) => {
                let port = match found {
                    Found::Info(info) => Some(info.port),
                    Found::Damaged | Found::Nothing => None,
                };
                let why = NoHealth::StateLost;
                return Look::changing(Status::Unresponsive { pid: owner, port, why });
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let (pid, port) = (Some(info.pid), Some(info.port));
        match self.health(&info, left.max(Duration::from_millis(1))) {
            Ok(health) => Look::settled(Status::Running { info, health: Box::new(health) }),
            Err(why) => {
                let is_settled = !matches!(
                    why,
                    NoHealth::Unreachable | NoHealth::Busy(_) | NoHealth::NotOurDaemon
                );
                Ok(Look { status: Status::Unresponsive { pid, port, why }, is_settled })
            }
        }
    }

    /// Asks the daemon for its health, unless its state file has led to another program before.
    fn health(&mut self, info: &DaemonInfo, limit: Duration) -> Result<Health, NoHealth> {
        if self.misled_by.as_ref().is_some_and(|line| *line == info.line()) {
            return Err(NoHealth::NotOurDaemon);
        }
        let health = client::health(info, limit);
        if matches!(health, Err(NoHealth::NotOurDaemon)) {
            self.misled_by = Some(info.line());
        }
        health
    }
}

/// Distinguishes a crash from a daemon that exited, or was started, between the look at the state
/// file and the look at the lock.
fn look_without_lock(paths: &Paths, found: Found) -> Result<Look, Error> {
    match (state::read(paths)?, found) {
        (Found::Nothing, _) => Look::settled(Status::Stopped),
        (Found::Damaged, Found::Damaged | Found::Nothing) => {
            Look::settled(Status::Crashed { info: None })
        }
        (Found::Info(now), Found::Info(before)) if now.daemon_id == before.daemon_id => {
            if before.ended_with_its_machine() {
                return Look::settled(Status::Stopped);
            }
            Look::settled(Status::Crashed { info: Some(before) })
        }
        (_, Found::Info(before)) => Look::changing(Status::Crashed { info: Some(before) }),
        (_, _) => Look::changing(Status::Crashed { info: None }),
    }
}
