//! The crash guardian: whatever state a daemon was left in, one is running afterward.
//!
//! It first detects the state: it reads the state file, probes the pid with signal zero, and
//! confirms by the lock. Then it cleans up: with the lock, it removes a stale state file. Then it
//! starts a new daemon, with a new token and a new state file. Last, [`reach`] retries the request
//! that the user made.

use crate::client::{self, Failure};
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
use crate::log::{Level, LineFormat, Query, Tail};
use crate::paths::Paths;
use crate::server::Operations;
use crate::state::{self, DaemonInfo, Found};
use crate::text::Style;
use crate::{limits, protocol};

/// A running daemon.
pub struct Ensured {
    pub info: Box<DaemonInfo>,
    /// `None` if it was already running.
    pub start: Option<Start>,
}

/// The circumstances in which a daemon was started.
pub struct Start {
    /// The previous daemon crashed.
    pub crashed: Option<Crashed>,
    /// There were [`limits::CRASHES_MAX`] crashes within [`limits::CRASHES_WINDOW`].
    pub crash_loop: bool,
}

/// The party that a daemon is started for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// The user, who asked for it: the daemon is started, whatever happened before.
    User,
    /// A command that needs it: a daemon that keeps crashing is not started again.
    Command,
}

/// Makes sure that a daemon is running, and returns when it serves.
///
/// However many processes call this at the same time, and whatever the files contain, there is one
/// daemon afterward, and all of them return it.
///
/// # Errors
/// For [`Caller::Command`], [`Kind::CrashLoop`], and [`Kind::NotRunning`] if the settings forbid
/// starting a daemon; otherwise the reason why it cannot be started.
pub fn ensure_running(paths: &Paths, config: &Config, caller: Caller) -> Result<Ensured, Error> {
    if let Status::Running { info, .. } = status::look_once(paths)? {
        return Ok(Ensured { info, start: None });
    }
    if caller == Caller::Command && !config.autostart {
        return Ok(Ensured { info: status::running(paths)?, start: None });
    }
    paths.prepare()?;
    let start_lock = StartLock::acquire(paths, limits::START_LOCK_MAX)?;
    refuse_crash_loop(paths, caller)?;
    start(start_lock, paths, config, config.port, caller)
}

/// Does the same for a caller that holds the start lock and may prefer another port.
///
/// An installed service is started through its manager, if the manager can be reached: any other
/// daemon would keep the service from running.
pub fn start(
    start_lock: StartLock,
    paths: &Paths,
    config: &Config,
    wanted: Port,
    caller: Caller,
) -> Result<Ensured, Error> {
    if config.port.reaches_service()
        && let Some((service, state)) = service::of_home(paths)?
    {
        // The service acquires it.
        drop(start_lock);
        return start_service(paths, &service, state, caller);
    }
    let (claim, crashed) = match claim::claim(paths, config, wanted, &start_lock)? {
        Claimed::Ours(claim, crashed) => (claim, crashed),
        Claimed::Taken(info) => return Ok(Ensured { info, start: None }),
    };
    let start = Some(circumstances(paths, crashed, caller)?);
    if let Some(crashed) = crashed {
        crashed.log(&claim.log);
    }
    let info = handover::start(claim, paths)?;
    drop(start_lock);
    // A failure to look does not matter: the daemon has reported that it serves.
    if let Ok(Found::Nothing) = state::read(paths) {
        let reason = "it started, and another command stopped it";
        return Err(Error::cannot(Kind::StoppedMeanwhile, "start the daemon", reason));
    }
    Ok(Ensured { info, start })
}

/// Returns the circumstances of a start. One by the user begins the count of crashes anew.
fn circumstances(paths: &Paths, crashed: Option<Crashed>, caller: Caller) -> Result<Start, Error> {
    let crash_loop = is_crash_loop(paths)?;
    if caller == Caller::User {
        crashes::clear(paths)?;
    }
    Ok(Start { crashed, crash_loop })
}

fn start_service(
    paths: &Paths,
    service: &Service,
    state: ServiceState,
    caller: Caller,
) -> Result<Ensured, Error> {
    let crashed = match status::look_once(paths)? {
        Status::Running { info, .. } => return Ok(Ensured { info, start: None }),
        Status::Crashed { info } => Some(Crashed { pid: info.map(|info| info.pid) }),
        Status::Stopped | Status::Unresponsive { .. } => None,
    };
    if let ServiceState::Failed(failure) = state
        && failure.gave_up
        && caller == Caller::Command
    {
        return Err(crash_loop(failure.message));
    }
    let started = service.start();
    let status = match started {
        Ok(()) => status::wait_until_running(paths, limits::START_MAX)?,
        Err(_) => status::look(paths)?,
    };
    let start = Some(circumstances(paths, crashed, caller)?);
    match (started, status) {
        (Ok(()), Status::Running { info, .. }) => Ok(Ensured { info, start }),
        // It was started by hand in the meantime.
        (Err(_), Status::Running { info, .. }) => Ok(Ensured { info, start: None }),
        (_, Status::Unresponsive { pid, port, why }) => {
            Err(client::unreachable(pid, port, &why, limits::UNRESPONSIVE_MAX))
        }
        (Err(error), _) => Err(error),
        (Ok(()), _) => Err(handover::start_timed_out(paths)),
    }
}

/// Calls the daemon, and starts it first if necessary. If it exits or is replaced at that moment,
/// calls the next one, once. The call must be safe to repeat, since a reply may be lost.
///
/// `notify` gets each daemon before it is called.
///
/// # Errors
/// As [`ensure_running`]; [`Kind::VersionSkew`] if the daemon speaks another protocol; whatever the
/// call returns.
pub fn reach<T>(
    paths: &Paths,
    config: &Config,
    mut notify: impl FnMut(&Ensured),
    mut call: impl FnMut(&DaemonInfo) -> Result<T, Failure>,
) -> Result<T, Error> {
    let mut call = |daemon: &Ensured| {
        check_protocol(&daemon.info).map_err(Failure::Final)?;
        notify(daemon);
        call(&daemon.info)
    };
    let first = ensure_running(paths, config, Caller::Command)?;
    match call(&first) {
        Ok(reply) => return Ok(reply),
        Err(Failure::Final(error)) => return Err(error),
        Err(Failure::Lost(_)) => {}
    }
    let second = match first.start {
        None => ensure_running(paths, config, Caller::Command)?,
        // One start per command is enough: the next daemon might be lost as well.
        Some(_) => Ensured { info: status::running(paths)?, start: None },
    };
    call(&second).map_err(|failure| match failure {
        Failure::Lost(error) | Failure::Final(error) => error,
    })
}

/// Accepts a daemon of another version if it speaks the same protocol.
fn check_protocol(info: &DaemonInfo) -> Result<(), Error> {
    let (theirs, ours) = (&info.version, env!("CARGO_PKG_VERSION"));
    if theirs == ours {
        return Ok(());
    }
    match client::health(info, limits::HEALTH_MAX) {
        Ok(health) if health.version != protocol::PROTOCOL_VERSION => {
            let (their_protocol, our_protocol) = (health.version, protocol::PROTOCOL_VERSION);
            let reason = format!(
                "it is opta {theirs} (protocol {their_protocol}), \
                 this is opta {ours} (protocol {our_protocol})"
            );
            Err(Error::cannot(Kind::VersionSkew, "talk to the daemon", reason)
                .with_next_step("to replace it: opta daemon restart"))
        }
        // If it does not answer, the call reports why.
        _ => Ok(()),
    }
}

/// How the daemon serves in the foreground.
pub struct Foreground {
    pub hangup: Hangup,
    /// The style of the log on the terminal; there is one if `hangup` is [`Hangup::Exit`].
    pub style: Style,
    pub supervision: Supervision,
}

/// Serves in this process until it is asked to exit: `opta daemon start --foreground`. Returns the
/// other daemon if one is already serving.
pub fn serve_in_foreground(
    paths: &Paths,
    config: &Config,
    foreground: &Foreground,
    operations: Box<dyn Operations>,
) -> Result<Option<Box<DaemonInfo>>, Error> {
    paths.prepare()?;
    let start_lock = StartLock::acquire(paths, limits::START_LOCK_MAX)?;
    let (claim, crashed) = match claim::claim(paths, config, config.port, &start_lock)? {
        Claimed::Taken(info) => return Ok(Some(info)),
        Claimed::Ours(claim, crashed) => (claim, crashed),
    };
    if foreground.hangup == Hangup::Exit {
        claim.log.mirror(foreground.style);
    }
    if let Some(crashed) = crashed {
        crashed.log(&claim.log);
    }
    let ready = Ready::StartLock(start_lock);
    run::serve(claim, ready, paths, foreground.hangup, &foreground.supervision, operations)
        .map(|()| None)
}

/// Returns whether commands no longer start the daemon: it keeps crashing, or the service manager
/// gave up.
pub fn has_given_up(paths: &Paths, failure: Option<&ServiceFailure>) -> bool {
    is_crash_loop(paths).is_ok_and(|is_loop| is_loop)
        || failure.is_some_and(|failure| failure.gave_up)
}

fn is_crash_loop(paths: &Paths) -> Result<bool, Error> {
    Ok(crashes::recent(paths)? >= limits::CRASHES_MAX)
}

fn refuse_crash_loop(paths: &Paths, caller: Caller) -> Result<(), Error> {
    if caller == Caller::User || !is_crash_loop(paths)? {
        return Ok(());
    }
    let crashes = limits::CRASHES_MAX;
    let cause = last_error(paths).map_or(String::new(), |cause| format!(": {cause}"));
    Err(crash_loop(format!("it has crashed {crashes} times within a minute{cause}")))
}

fn crash_loop(reason: String) -> Error {
    Error::cannot(Kind::CrashLoop, "start the daemon", reason)
        .with_next_step("see why: opta daemon logs --level warn; then: opta daemon start")
}

/// Returns the last error in the log, if the log can be read.
fn last_error(paths: &Paths) -> Option<String> {
    let format = LineFormat::Text(Style::Plain);
    let query = Query { lines: 1, least: Level::Error, since: None, format };
    let mut text = Vec::new();
    Tail::open(&paths.daemon()).ok()?.print(&query, &mut text).ok()?;
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    (!text.is_empty()).then_some(text)
}
