//! What can be said of the daemon from outside. Asking changes nothing.

use std::time::{Duration, Instant};

use crate::client::{self, NoHealth};
use crate::error::{At, Error, Kind};
use crate::lifecycle::service::{self, ServiceFailure};
use crate::paths::Paths;
use crate::protocol::Health;
use crate::state::{self, DaemonInfo, Found};
use crate::sys::process::{self, Probe};
use crate::sys::watch::Watch;
use crate::{limits, lock, sys};

/// The daemon, seen from outside.
pub enum Status {
    /// It holds the lock and answers.
    Running { info: Box<DaemonInfo>, health: Box<Health> },
    /// There is no daemon, and nothing of one.
    Stopped,
    /// There is no daemon, but the state file of one: it ended without taking leave.
    Crashed { info: Option<Box<DaemonInfo>> },
    /// Somebody holds the lock and has not answered in time.
    Unresponsive {
        pid: Option<i32>,
        port: Option<u16>,
        /// The state file is missing, damaged or another daemon's: its owner would write it again
        /// if asked.
        state_lost: bool,
    },
}

/// Looks at the daemon; takes at most [`limits::HEALTH_MAX`], and as a rule well under a
/// millisecond.
///
/// A daemon that is just coming or going is watched until it has arrived or gone.
pub fn look(paths: &Paths) -> Result<Status, Error> {
    let deadline = Instant::now() + limits::HEALTH_MAX;
    let settled = watched(paths, deadline, lock::LOOK_AGAIN, || {
        Ok(match glance(paths, deadline)? {
            Glance::Settled(status) => Some(status),
            Glance::Changing(_) => None,
        })
    })?;
    settled.map_or_else(|| look_once(paths), Ok)
}

/// Looks at the daemon as it is at this moment, be it coming or going.
pub fn look_once(paths: &Paths) -> Result<Status, Error> {
    match glance(paths, Instant::now() + limits::HEALTH_MAX)? {
        Glance::Settled(status) | Glance::Changing(status) => Ok(status),
    }
}

/// What the manager of the service adds to a look: why it does not run the daemon. One that it has
/// failed to keep has crashed, even if it died before it left a state file.
pub fn with_service(paths: &Paths, status: Status) -> (Status, Option<ServiceFailure>) {
    let trouble = match status {
        Status::Stopped | Status::Crashed { .. } => service::failure(paths),
        Status::Running { .. } | Status::Unresponsive { .. } => None,
    };
    match status {
        Status::Stopped if trouble.is_some() => (Status::Crashed { info: None }, trouble),
        status => (status, trouble),
    }
}

/// The state file of the daemon that runs.
///
/// # Errors
/// [`Kind::NotRunning`], [`Kind::Unresponsive`].
pub fn running(paths: &Paths) -> Result<Box<DaemonInfo>, Error> {
    match look(paths)? {
        Status::Running { info, .. } => Ok(info),
        Status::Stopped | Status::Crashed { .. } => Err(not_running()),
        Status::Unresponsive { pid, state_lost, .. } => Err(unresponsive(pid, state_lost)),
    }
}

fn not_running() -> Error {
    Error::cannot(Kind::NotRunning, "reach the daemon", "it is not running")
        .with_next_step("start it: opta daemon start")
}

/// Why a daemon that holds its lock cannot be asked.
pub fn unresponsive(pid: Option<i32>, state_lost: bool) -> Error {
    match state_lost {
        true => client::state_lost(pid),
        false => client::unresponsive(pid, limits::HEALTH_MAX),
    }
}

/// Waits until the daemon runs, or `limit` is over; then says what it is.
pub fn wait_until_running(paths: &Paths, limit: Duration) -> Result<Status, Error> {
    let deadline = Instant::now() + limit;
    let running = watched(paths, deadline, limits::HEALTH_MAX, || {
        let status = look_once(paths)?;
        Ok(matches!(status, Status::Running { .. }).then_some(status))
    })?;
    running.map_or_else(|| look(paths), Ok)
}

/// Calls `seen` until it gives something, or `deadline` is over: at once, then whenever something
/// changes in the daemon's directory, or where that will be, and after each `interval` for what no
/// directory shows.
pub fn watched<T>(
    paths: &Paths,
    deadline: Instant,
    interval: Duration,
    mut seen: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<Option<T>, Error> {
    // As a rule the first look is enough, and a watch would cost more than it.
    if let Some(result) = seen()? {
        return Ok(Some(result));
    }
    let directory = paths.daemon();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let nearest = directory.ancestors().find(|path| path.is_dir()).unwrap_or(&directory);
        // Watched before the look: a change between the two must not be missed.
        let watch = Watch::on(nearest);
        if let Some(result) = seen()? {
            return Ok(Some(result));
        }
        let limit = Some(left.min(interval));
        match watch {
            Ok(watch) => watch.wait(limit).at("watch", nearest).map(drop)?,
            // The system has no more of them, or the place has just gone.
            Err(_) => sys::wait_readable([], limit).at("watch", nearest).map(drop)?,
        }
    }
}

enum Glance {
    Settled(Status),
    Changing(Status),
}

fn glance(paths: &Paths, deadline: Instant) -> Result<Glance, Error> {
    let found = state::read(paths)?;
    // The first question: signal zero. It is never the last word, since the number may have been
    // given to another process, or name a thread or a zombie.
    let answers = match &found {
        Found::Info(info) => process::probe(info.pid) == Probe::Exists,
        Found::Damaged | Found::Nothing => false,
    };
    // The last word.
    let (held, owner) = lock::look(paths)?;
    let info = match (held, found) {
        (false, Found::Nothing) => return Ok(Glance::Settled(Status::Stopped)),
        (false, found) => return crashed(paths, found),
        (true, Found::Info(info)) if answers && owner == Some(info.pid) => info,
        (true, found) => {
            let port = match found {
                Found::Info(info) => Some(info.port),
                Found::Damaged | Found::Nothing => None,
            };
            let status = Status::Unresponsive { pid: owner, port, state_lost: true };
            return Ok(Glance::Changing(status));
        }
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let unresponsive = |state_lost| Status::Unresponsive {
        pid: Some(info.pid),
        port: Some(info.port),
        state_lost,
    };
    Ok(match client::health(&info, left.max(Duration::from_millis(1))) {
        Ok(health) => Glance::Settled(Status::Running { info, health: Box::new(health) }),
        Err(NoHealth::TimedOut) => Glance::Settled(unresponsive(false)),
        Err(NoHealth::Unreachable) => Glance::Changing(unresponsive(false)),
        Err(NoHealth::NotOurDaemon) => Glance::Changing(unresponsive(true)),
    })
}

/// A state file without a lock. The daemon may have left, or another come, between the two looks.
fn crashed(paths: &Paths, found: Found) -> Result<Glance, Error> {
    let before = match found {
        Found::Info(info) => Some(info),
        Found::Damaged | Found::Nothing => None,
    };
    let status = match (state::read(paths)?, &before) {
        (Found::Nothing, _) => return Ok(Glance::Settled(Status::Stopped)),
        (Found::Damaged, None) => Status::Crashed { info: None },
        (Found::Info(now), Some(then)) if now.daemon_id == then.daemon_id => {
            Status::Crashed { info: before }
        }
        _ => return Ok(Glance::Changing(Status::Crashed { info: before })),
    };
    Ok(Glance::Settled(status))
}
