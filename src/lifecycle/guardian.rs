//! The crash guardian: whatever state the daemon was left in, afterwards one runs.
//!
//! First it detects: it reads the state file, asks its pid with signal zero, and confirms by the
//! lock. Then it cleans up, under the lock: a stale state file goes. Then it restarts: a new daemon
//! with a new token and a new state file. To try again what the user wanted is up to `reach`.

use crate::config::{Config, Port};
use crate::error::{Error, Kind};
use crate::lifecycle::claim::{self, Claimed, Crashed};
use crate::lifecycle::crashes;
use crate::lifecycle::handover::{self, Ready};
use crate::lifecycle::run::{self, Hangup};
use crate::lifecycle::service::supervision::Supervision;
use crate::lifecycle::service::{self, Service, ServiceFailure, ServiceState};
use crate::lifecycle::status::{self, Status};
use crate::lock::StartLock;
use crate::log::{Level, LineFormat, Query, Style, Tail};
use crate::paths::Paths;
use crate::state::{self, DaemonInfo, Found};
use crate::{client, limits};

/// A daemon that runs, and how it came to.
pub struct Ensured {
    pub info: Box<DaemonInfo>,
    pub how: How,
}

/// How it came to run.
pub enum How {
    /// It did before.
    AlreadyRunning,
    /// It was started now.
    Started(Past),
}

/// What the daemon before this one has left.
pub struct Past {
    /// It had crashed.
    pub crashed: Option<Crashed>,
    /// So often within a minute that it is no accident.
    pub crash_loop: bool,
}

impl Past {
    pub const NOTHING: Past = Past { crashed: None, crash_loop: false };
}

/// Who wants the daemon to run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// The user, in so many words: it is tried whatever has happened before.
    User,
    /// A command on its own account: it gives up on a daemon that crashes again and again.
    Command,
}

/// Makes sure that a daemon runs, and returns when it serves.
///
/// However many processes call this at once, and whatever the files look like, one daemon comes of
/// it and all of them return it.
///
/// # Errors
/// For [`Caller::Command`], [`Kind::CrashLoop`], and [`Kind::NotRunning`] if
/// the settings forbid it to start a daemon; else what kept the daemon from starting.
pub fn ensure_running(paths: &Paths, config: &Config, caller: Caller) -> Result<Ensured, Error> {
    if let Status::Running { info, .. } = status::look_once(paths)? {
        return Ok(Ensured { info, how: How::AlreadyRunning });
    }
    if caller == Caller::Command && !config.autostart {
        return Ok(Ensured { info: status::running(paths)?, how: How::AlreadyRunning });
    }
    paths.prepare()?;
    let start_lock = StartLock::acquire(paths, limits::START_LOCK_MAX)?;
    refuse_crash_loop(paths, caller)?;
    start_behind(start_lock, paths, config, config.port, caller)
}

/// The same for a caller who has the start lock already, and prefers a port.
///
/// An installed service is started through its manager, if that can be reached: a daemon beside it
/// would be in its way.
pub fn start_behind(
    start_lock: StartLock,
    paths: &Paths,
    config: &Config,
    wanted: Port,
    caller: Caller,
) -> Result<Ensured, Error> {
    if config.port.reaches_service()
        && let Some((service, standing)) = service::of_home(paths)?
    {
        // The service will come through it.
        drop(start_lock);
        return start_service(paths, &service, standing, caller);
    }
    let claim = match claim::claim(paths, config, wanted, &start_lock)? {
        Claimed::Ours(claim) => claim,
        Claimed::Taken(info) => return Ok(Ensured { info, how: How::AlreadyRunning }),
    };
    let crash_loop = crashes::recent(paths)? >= limits::CRASHES_MAX;
    let past = Past { crashed: claim.crashed, crash_loop };
    claim.log_crash();
    let info = handover::start(*claim, paths)?;
    drop(start_lock);
    // Why it cannot be looked for is of no interest: it has said that it serves.
    if let Ok(Found::Nothing) = state::read(paths) {
        let reason = "it did start, and was stopped by somebody else";
        return Err(Error::cannot(Kind::StoppedMeanwhile, "start the daemon", reason));
    }
    Ok(Ensured { info, how: How::Started(past) })
}

fn start_service(
    paths: &Paths,
    service: &Service,
    standing: ServiceState,
    caller: Caller,
) -> Result<Ensured, Error> {
    let crashed = match status::look_once(paths)? {
        Status::Running { info, .. } => return Ok(Ensured { info, how: How::AlreadyRunning }),
        Status::Crashed { info } => Some(Crashed { pid: info.map(|info| info.pid) }),
        Status::Stopped | Status::Unresponsive { .. } => None,
    };
    if let ServiceState::Failed(trouble) = standing
        && trouble.gave_up
        && caller == Caller::Command
    {
        return Err(crash_loop(trouble.message));
    }
    let started = service.start();
    let status = match started {
        Ok(()) => status::wait_until_running(paths, limits::START_MAX)?,
        Err(_) => status::look(paths)?,
    };
    let crash_loop = crashes::recent(paths)? >= limits::CRASHES_MAX;
    match (started, status) {
        (Ok(()), Status::Running { info, .. }) => {
            Ok(Ensured { info, how: How::Started(Past { crashed, crash_loop }) })
        }
        // It had been started by hand in the meantime.
        (Err(_), Status::Running { info, .. }) => Ok(Ensured { info, how: How::AlreadyRunning }),
        (_, Status::Unresponsive { pid, .. }) => {
            Err(client::unresponsive(pid, limits::UNRESPONSIVE_MAX))
        }
        (Err(error), _) => Err(error),
        (Ok(()), _) => Err(handover::start_timed_out(paths)),
    }
}

/// What came of serving in this process.
pub enum Here {
    /// It has served, and has been told to leave.
    Served,
    /// Another daemon serves.
    Taken(Box<DaemonInfo>),
}

/// How a daemon in the foreground is connected to whoever has started it.
pub struct Foreground {
    pub hangup: Hangup,
    /// How its log looks on the terminal, where [`Hangup::Leave`] says that there is one.
    pub style: Style,
    pub supervision: Supervision,
}

/// Serves in this process until it is told to leave: `opta daemon start --foreground`.
pub fn serve_here(paths: &Paths, config: &Config, here: &Foreground) -> Result<Here, Error> {
    paths.prepare()?;
    let start_lock = StartLock::acquire(paths, limits::START_LOCK_MAX)?;
    match claim::claim(paths, config, config.port, &start_lock)? {
        Claimed::Taken(info) => Ok(Here::Taken(info)),
        Claimed::Ours(claim) => {
            if here.hangup == Hangup::Leave {
                claim.log.mirror(here.style);
            }
            claim.log_crash();
            let served = run::serve(
                *claim,
                Ready::StartLock(start_lock),
                paths,
                here.hangup,
                &here.supervision,
            );
            served.map(|()| Here::Served)
        }
    }
}

/// Whether commands start it no more: it crashes again and again, or the service's manager, in
/// `trouble`, has given up.
pub fn is_left_to_the_user(paths: &Paths, trouble: Option<&ServiceFailure>) -> bool {
    crashes::recent(paths).is_ok_and(|crashes| crashes >= limits::CRASHES_MAX)
        || trouble.is_some_and(|trouble| trouble.gave_up)
}

fn refuse_crash_loop(paths: &Paths, caller: Caller) -> Result<(), Error> {
    let crashes = crashes::recent(paths)?;
    if caller == Caller::User || crashes < limits::CRASHES_MAX {
        return Ok(());
    }
    let cause = last_error(paths).map_or(String::new(), |cause| format!(": {cause}"));
    Err(crash_loop(format!("it has crashed {crashes} times within a minute{cause}")))
}

fn crash_loop(reason: String) -> Error {
    Error::cannot(Kind::CrashLoop, "start the daemon", reason)
        .with_next_step("see why: opta daemon logs --level warn; then: opta daemon start")
}

/// The last thing that the log complains about, if it can be read.
fn last_error(paths: &Paths) -> Option<String> {
    let format = LineFormat::Text(Style::Plain);
    let query = Query { lines: 1, least: Level::Error, since: None, format };
    let mut text = Vec::new();
    Tail::open(&paths.daemon()).ok()?.print(&query, &mut text).ok()?;
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    (!text.is_empty()).then_some(text)
}
