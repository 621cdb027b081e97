//! `opta daemon …`

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use nanoserde::SerJson;

use crate::cli::{LogsArgs, OutputMode, RestartArgs, StartArgs, StopArgs};
use crate::commands::Output;
use crate::config::{Config, Port};
use crate::error::{Error, Kind};
use crate::lifecycle::guardian::{self, Caller, Ensured, Foreground, Here, How, Past};
use crate::lifecycle::handover;
use crate::lifecycle::run::{self, Hangup};
use crate::lifecycle::service::supervision::Supervision;
use crate::lifecycle::service::{self, ServiceFailure, ServiceState};
use crate::lifecycle::status::{self, Status};
use crate::lifecycle::stop::{self, Ended, Patience};
use crate::lock::{self, StartLock};
use crate::log::{self, Level, Log, Query, Style, Tail};
use crate::paths::{Manager, Paths};
use crate::state::DaemonInfo;
use crate::sys::spawn::HandedOver;
use crate::{cli, client, clock, config, json, limits};

/// `opta daemon start`
pub fn start(paths: &Paths, asked: &StartArgs, output: &Output) -> Result<ExitCode, Error> {
    if asked.foreground {
        return foreground(paths, asked, output);
    }
    let config = settings(paths, asked)?;
    let Ensured { info, how } = guardian::ensure_running(paths, &config, Caller::User)?;
    if let How::Started(past) = &how {
        tell_past(past, output);
    }
    started(&info, &how, paths, output)?;
    if let (How::AlreadyRunning, Some(port)) = (&how, asked.port.filter(|port| *port != 0))
        && port != info.port
    {
        output.note(&format!(
            "it keeps port {}; to move it: opta daemon stop, then start",
            info.port
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn settings(paths: &Paths, asked: &StartArgs) -> Result<Config, Error> {
    let mut config = Config::load(&paths.config())?;
    if let Some(port) = asked.port {
        config.port = Port::Exactly { port, by: "--port N" };
    }
    Ok(config)
}

/// `opta daemon start --foreground`: by hand, and what a service runs. A manager reads the exit
/// status: systemd is told when another try is no use, launchd would try again whatever it is.
fn foreground(paths: &Paths, asked: &StartArgs, output: &Output) -> Result<ExitCode, Error> {
    let supervision = Supervision::detect()?;
    let manager = supervision.manager;
    let terminal = io::stderr().is_terminal();
    let hangup = if terminal { Hangup::Leave } else { Hangup::Refresh };
    let colour = terminal && config::color_allowed();
    let style = if colour { Style::Color } else { Style::Plain };
    let here = Foreground { hangup, style, supervision };
    let served = settings(paths, asked).and_then(|config| serve(paths, &config, &here, output));
    match (served, manager) {
        (Ok(()), _) => Ok(ExitCode::SUCCESS),
        (Err(error), Some(Manager::Systemd)) => Err(for_systemd(error)),
        (Err(error), Some(Manager::Launchd)) if error.kind() == Kind::InvalidConfig => {
            // Into the log, which is kept small: what launchd writes elsewhere grows at every try.
            paths.prepare()?;
            let log = Log::open(&paths.daemon(), Config::DEFAULT.rotation, Level::Error)?;
            log.error("daemon cannot start", &[("cause", &error)]);
            Ok(ExitCode::SUCCESS)
        }
        (Err(error), _) => Err(error),
    }
}

/// Sets the exit statuses after which the unit forbids a restart: EX_CONFIG and EX_TEMPFAIL of
/// sysexits.h.
fn for_systemd(error: Error) -> Error {
    match error.kind() {
        Kind::InvalidConfig => error.with_status(78),
        _ if is_lock_held(&error) => error.with_status(75),
        _ => error,
    }
}

/// Whether another daemon, or a process that is about to become one, is in the way.
fn is_lock_held(error: &Error) -> bool {
    matches!(
        error.kind(),
        Kind::AlreadyRunning | Kind::HeldElsewhere | Kind::StartLocked | Kind::Unresponsive
    )
}

/// What [`start`] executes in the background. Its starter is told why it fails.
pub fn serve_in_background(handed_over: HandedOver) -> ExitCode {
    let served = handover::claim(handed_over).and_then(|(paths, claim, ready)| {
        run::serve(claim, ready, &paths, Hangup::Refresh, &Supervision::NONE)
    });
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Serves; where another daemon does already, says so, and under launchd waits for its turn.
fn serve(paths: &Paths, config: &Config, here: &Foreground, output: &Output) -> Result<(), Error> {
    let manager = here.supervision.manager;
    loop {
        let held = match guardian::serve_here(paths, config, here) {
            Ok(Here::Served) => return Ok(()),
            Ok(Here::Taken(info)) if manager.is_none() => {
                return started(&info, &How::AlreadyRunning, paths, output);
            }
            Ok(Here::Taken(info)) => {
                let reason =
                    format!("one is running already (pid {}, port {})", info.pid, info.port);
                Error::cannot(Kind::AlreadyRunning, "start the daemon", reason)
            }
            Err(error) if is_lock_held(&error) => error,
            Err(error) => return Err(error),
        };
        if manager != Some(Manager::Launchd) {
            return Err(held);
        }
        output.note(&format!("{held}; standing by until it ends"));
        lock::wait_until_free(paths)?;
    }
}

#[derive(SerJson)]
struct Started {
    started: bool,
    #[nserde(rename = "alreadyRunning")]
    already_running: bool,
    pid: i32,
    port: u16,
    #[nserde(rename = "daemonId")]
    daemon_id: String,
    #[nserde(rename = "startedAt")]
    started_at: String,
    version: String,
    #[nserde(rename = "statePath")]
    state_path: String,
    #[nserde(rename = "logsPath")]
    logs_path: String,
}

/// Says that a daemon runs, with the words of the manual.
pub fn started(info: &DaemonInfo, how: &How, paths: &Paths, output: &Output) -> Result<(), Error> {
    let already = matches!(how, How::AlreadyRunning);
    if output.mode == OutputMode::Json {
        return output.line(&json::text(&Started {
            started: !already,
            already_running: already,
            pid: info.pid,
            port: info.port,
            daemon_id: info.daemon_id.clone(),
            started_at: info.started_at.clone(),
            version: info.version.clone(),
            state_path: paths.state().to_string_lossy().into_owned(),
            logs_path: info.logs_path.clone(),
        }));
    }
    if already {
        let (pid, port) = (info.pid, info.port);
        output.line(&format!("Daemon already running (pid {pid}, port {port})"))?;
        if let Some(manager) = info.managed_by {
            output.note(&format!("it is a service, managed by {}", manager.name()));
        }
        return Ok(());
    }
    output.line(&format!("Daemon started (pid {}, port {})", info.pid, info.port))?;
    output.line(&format!("Token written to {}", paths.display(&paths.state())))
}

fn tell_past(past: &Past, output: &Output) {
    match past.crashed.map(|crashed| crashed.pid) {
        Some(Some(pid)) => output.note(&format!("the daemon had crashed (pid {pid})")),
        Some(None) => output.note("the daemon had crashed"),
        None => {}
    }
    if past.crash_loop {
        output.note("it has crashed several times within a minute; see: opta daemon logs");
    }
}

/// `opta daemon status`: 0 running, 3 stopped, 1 crashed, 4 unresponsive.
pub fn status(paths: &Paths, asked: &cli::StatusArgs, output: &Output) -> Result<ExitCode, Error> {
    let status = match asked.wait {
        Some(limit) => status::wait_until_running(paths, limit)?,
        None => status::look(paths)?,
    };
    let (status, trouble) = status::with_service(paths, status);
    if !asked.quiet {
        match (output.mode, &trouble) {
            (OutputMode::Json, trouble) => {
                let words = trouble.as_ref().map(|trouble| trouble.message.clone());
                output.line(&json::text(&report(&status, words)))?;
            }
            (OutputMode::Text, None) => output.line(&one_line_of(&status, output))?,
            (OutputMode::Text, Some(ServiceFailure { message, details, .. })) => {
                output.line(&one_line_of(&status, output))?;
                output.note(&format!("{message}; see: {details}"));
            }
        }
    }
    Ok(ExitCode::from(match status {
        Status::Running { .. } => 0,
        Status::Crashed { .. } => 1,
        Status::Stopped => 3,
        Status::Unresponsive { .. } => 4,
    }))
}

fn one_line_of(status: &Status, output: &Output) -> String {
    let (colour, symbol, text) = match status {
        Status::Running { info, health } => {
            let uptime = clock::format_duration(Duration::from_secs(health.uptime));
            let (pid, port, sessions) = (info.pid, info.port, health.sessions());
            let text =
                format!("running  pid={pid}  port={port}  uptime={uptime}  sessions={sessions}");
            ("32", "●", text)
        }
        Status::Stopped | Status::Crashed { .. } => {
            ("2", "○", "stopped  (no daemon process found)".to_owned())
        }
        Status::Unresponsive { pid, port, state_lost } => {
            let pid = pid.map_or(String::new(), |pid| format!("  pid={pid}"));
            let port = port.map_or(String::new(), |port| format!("  port={port}"));
            let why = match state_lost {
                true => "its state.json is lost; to have it written again: opta daemon start",
                false => "no answer in 1s",
            };
            ("33", "◐", format!("unresponsive{pid}{port}  ({why})"))
        }
    };
    if output.is_colored() {
        format!("\x1b[{colour}m{symbol}\x1b[0m {text}")
    } else {
        format!("{symbol} {text}")
    }
}

/// What `status --json` says: the same keys in every state, `null` for what is not known.
#[derive(SerJson)]
#[nserde(serialize_none_as_null)]
struct Report {
    state: String,
    running: bool,
    pid: Option<i32>,
    port: Option<u16>,
    uptime: Option<u64>,
    sessions: Option<u64>,
    version: Option<String>,
    #[nserde(rename = "startedAt")]
    started_at: Option<String>,
    #[nserde(rename = "logsPath")]
    logs_path: Option<String>,
    #[nserde(rename = "managedBy")]
    managed_by: Option<String>,
    #[nserde(rename = "staleBinary")]
    stale_binary: Option<bool>,
    /// Why the manager of the service does not start it again.
    trouble: Option<String>,
}

fn report(status: &Status, trouble: Option<String>) -> Report {
    let (state, info, health) = match status {
        Status::Running { info, health } => ("running", Some(info), Some(health)),
        Status::Crashed { info } => ("crashed", info.as_ref(), None),
        Status::Stopped => ("stopped", None, None),
        Status::Unresponsive { .. } => ("unresponsive", None, None),
    };
    let (pid, port) = match status {
        Status::Unresponsive { pid, port, .. } => (*pid, *port),
        _ => (info.map(|info| info.pid), info.map(|info| info.port)),
    };
    let stale = |info: &DaemonInfo| {
        let (path, id) = info.executable.as_ref()?;
        Some(run::file_id(path.as_ref()).as_ref() != Some(id))
    };
    Report {
        state: state.to_owned(),
        running: health.is_some(),
        pid,
        port,
        uptime: health.map(|health| health.uptime),
        sessions: health.map(|health| health.sessions()),
        version: info.map(|info| info.version.clone()),
        started_at: info.map(|info| info.started_at.clone()),
        logs_path: info.map(|info| info.logs_path.clone()),
        managed_by: health.and(info).and_then(|info| Some(info.managed_by?.name().to_owned())),
        stale_binary: health.and(info).and_then(|info| stale(info)),
        trouble,
    }
}

#[derive(SerJson)]
#[nserde(serialize_none_as_null)]
struct Stopped {
    stopped: bool,
    #[nserde(rename = "wasRunning")]
    was_running: bool,
    pid: Option<i32>,
}

/// `opta daemon stop`
pub fn stop(paths: &Paths, asked: &StopArgs, output: &Output) -> Result<ExitCode, Error> {
    let stopped = end(None, paths, asked, output)?;
    if stopped.is_none() {
        output.text("Daemon is not running.")?;
    }
    if output.mode == OutputMode::Json {
        let was_running = stopped.is_some();
        output.line(&json::text(&Stopped { stopped: true, was_running, pid: stopped }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Stops a daemon that runs, with the words of the manual.
fn end(
    start_lock: Option<&StartLock>,
    paths: &Paths,
    asked: &StopArgs,
    output: &Output,
) -> Result<Option<i32>, Error> {
    let patience = patience(asked);
    let announce = |pid| output.progress(&format!("Stopping daemon (pid {pid})..."));
    let Ended { pid, through } = stop::stop(start_lock, paths, asked.timeout, patience, announce)?;
    if pid.is_some() {
        output.progress("Daemon stopped.");
    }
    if through == Some(Manager::Launchd) {
        output.note("it comes back at the next login, unless you run: opta daemon uninstall");
    }
    Ok(pid)
}

fn patience(asked: &StopArgs) -> Patience {
    if asked.force { Patience::Kill } else { Patience::Report }
}

#[derive(SerJson)]
#[nserde(serialize_none_as_null)]
struct Restarted {
    restarted: bool,
    pid: i32,
    port: u16,
    #[nserde(rename = "previousPid")]
    previous_pid: Option<i32>,
}

/// `opta daemon restart`
pub fn restart(paths: &Paths, asked: &RestartArgs, output: &Output) -> Result<ExitCode, Error> {
    // Everything that can go wrong before the old daemon is stopped should.
    let config = Config::load(&paths.config())?;
    paths.prepare()?;
    if config.port.reaches_service() {
        service::check(paths)?;
    }
    let start_lock = StartLock::acquire(paths, limits::START_LOCK_MAX)?;
    let mut wanted = config.port;
    let status = status::look_once(paths)?;
    if let (Some(port), Port::Default | Port::Exactly { port: 0, .. }) = (port_of(&status), wanted)
    {
        wanted = Port::Preferred(port);
    }
    let previous = make_way(&start_lock, paths, asked, &status, output)?;
    let Ensured { info, how } =
        guardian::start_behind(start_lock, paths, &config, wanted, Caller::User)?;
    if let How::Started(past) = &how {
        tell_past(past, output);
    }
    if output.mode == OutputMode::Json {
        let (pid, port) = (info.pid, info.port);
        let report = Restarted { restarted: true, pid, port, previous_pid: previous };
        output.line(&json::text(&report))?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(&format!("Daemon started (pid {}, port {})", info.pid, info.port))?;
    output.line("Token rotated.")?;
    Ok(ExitCode::SUCCESS)
}

/// Ends the daemon that is to be replaced, and gives its pid.
fn make_way(
    start_lock: &StartLock,
    paths: &Paths,
    asked: &RestartArgs,
    status: &Status,
    output: &Output,
) -> Result<Option<i32>, Error> {
    let limit = asked.stop.timeout;
    let announce = |pid| output.progress(&format!("Stopping daemon (pid {pid})..."));
    let active = match service::of_home(paths)? {
        Some((service, ServiceState::Active { .. })) => Some(service.manager),
        _ => None,
    };
    let ended = match (status, active) {
        (Status::Running { info, .. }, _) if asked.if_idle => {
            client::shutdown_if_idle(info)?;
            announce(info.pid);
            stop::wait_for_end(paths, info.pid, limit)?;
            Some(info.pid)
        }
        // One that does not answer cannot be asked.
        (Status::Unresponsive { pid, state_lost, .. }, _) if asked.if_idle => {
            return Err(status::unresponsive(*pid, *state_lost));
        }
        // Not `kickstart -k`, which kills: launchd starts the next one as soon as this one has
        // left.
        (_, Some(Manager::Launchd)) => {
            stop::end_this_one(paths, limit, patience(&asked.stop), announce)?
        }
        (Status::Running { info, .. }, Some(Manager::Systemd)) if service::is_inside() => {
            announce(info.pid);
            service::restart_from_inside()?;
            stop::wait_for_end(paths, info.pid, limit)?;
            Some(info.pid)
        }
        // Whoever starts the next one clears away what is left of it, and tells.
        (Status::Crashed { .. }, None) => None,
        _ => return end(Some(start_lock), paths, &asked.stop, output),
    };
    if ended.is_some() {
        output.progress("Daemon stopped.");
    }
    Ok(ended)
}

/// The port that the daemon has, or had when it was last heard of.
fn port_of(status: &Status) -> Option<u16> {
    match status {
        Status::Running { info, .. } | Status::Crashed { info: Some(info) } => Some(info.port),
        Status::Unresponsive { port, .. } => *port,
        Status::Stopped | Status::Crashed { info: None } => None,
    }
}

#[derive(SerJson)]
struct TokenReport {
    token: String,
}

/// `opta daemon token`
pub fn token(paths: &Paths, output: &Output) -> Result<ExitCode, Error> {
    let info = status::running(paths)?;
    let token = info.token.secret();
    match output.mode {
        OutputMode::Text => output.line(token)?,
        OutputMode::Json => output.line(&json::text(&TokenReport { token: token.to_owned() }))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `opta daemon logs`
pub fn logs(paths: &Paths, asked: &LogsArgs, output: &Output) -> Result<ExitCode, Error> {
    let format = match output.mode {
        OutputMode::Text => log::LineFormat::Text(output.style()),
        OutputMode::Json => log::LineFormat::Json,
    };
    let (lines, least, since) = (asked.lines, asked.level, asked.since);
    let query = Query { lines, least, since, format };
    let tail = Tail::open(&paths.daemon())?;
    if tail.is_empty() {
        output.note(&format!("there is no log yet at {}", paths.display(&paths.log())));
    }
    if asked.follow {
        tail.follow(&query, &mut io::stdout())?;
    } else {
        tail.print(&query, &mut io::stdout().lock())?;
    }
    Ok(ExitCode::SUCCESS)
}
