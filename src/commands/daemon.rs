//! `opta daemon …`

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use crate::cli::{LogsArgs, OutputMode, RestartArgs, StartArgs, StopArgs};
use crate::client::{self, NoHealth};
use crate::commands::Output;
use crate::config::{Config, Port};
use crate::error::{Error, Kind};
use crate::json::{Field, Object};
use crate::lifecycle::guardian::{self, Caller, Ensured, Foreground, Start};
use crate::lifecycle::run::{self, Hangup};
use crate::lifecycle::service::supervision::Supervision;
use crate::lifecycle::service::{self, Service, ServiceFailure, ServiceState};
use crate::lifecycle::status::{self, Status};
use crate::lifecycle::stop::{self, OnTimeout, StopOutcome};
use crate::lifecycle::{handover, init};
use crate::lock::{self, StartLock};
use crate::log::{self, Level, Log, Query, Tail};
use crate::paths::{Manager, Paths};
use crate::server::Operations;
use crate::state::DaemonInfo;
use crate::sys::spawn::HandedOver;
use crate::text::Style;
use crate::{cli, clock, config, limits};

/// Returns the operations of a daemon with these files.
pub type OperationsOf = fn(&Paths) -> Box<dyn Operations>;

/// Runs `opta daemon start`.
pub fn start(
    paths: &Paths,
    asked: &StartArgs,
    operations: OperationsOf,
    output: &Output,
) -> Result<ExitCode, Error> {
    if asked.foreground {
        return foreground(paths, asked, operations, output);
    }
    let config = settings(paths, asked)?;
    let Ensured { info, start } = guardian::ensure_running(paths, &config, Caller::User)?;
    if let Some(start) = &start {
        note_crashes(start, output);
    }
    print_started(&info, start.is_none(), paths, output)?;
    if let (None, Some(port)) = (&start, asked.port.filter(|port| *port != 0))
        && port != info.port
    {
        let next = "to change it: opta daemon stop, then start";
        output.note(&format!("still on port {}; {next}", info.port));
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

/// Runs `opta daemon start --foreground`: by hand, and what a service runs. The exit status tells
/// systemd whether to try again; launchd always does.
fn foreground(
    paths: &Paths,
    asked: &StartArgs,
    operations: OperationsOf,
    output: &Output,
) -> Result<ExitCode, Error> {
    if init::is_first_process() {
        return init::supervise(paths);
    }
    let supervision = Supervision::detect()?;
    let manager = supervision.manager;
    let has_terminal = io::stderr().is_terminal();
    let hangup = if has_terminal { Hangup::Exit } else { Hangup::Refresh };
    let style = Style::new(has_terminal && config::color_allowed());
    let foreground = Foreground { hangup, style, supervision };
    let served = settings(paths, asked)
        .and_then(|config| serve(paths, &config, &foreground, operations, output));
    match (served, manager) {
        (Ok(()), _) => Ok(ExitCode::SUCCESS),
        (Err(error), Some(Manager::Systemd)) => Err(for_systemd(error)),
        (Err(error), Some(Manager::Launchd)) if is_permanent(&error) => {
            // Logged, since the log is rotated; launchd's own files grow with every try.
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
        _ if is_permanent(&error) => error.with_status(78),
        _ if is_lock_held(&error) => error.with_status(75),
        _ => error,
    }
}

/// Returns whether only the user can change what the error is about.
fn is_permanent(error: &Error) -> bool {
    matches!(error.kind(), Kind::InvalidConfig | Kind::UntrustedPath)
}

/// Returns whether another daemon, or a process that is about to become one, holds the lock.
fn is_lock_held(error: &Error) -> bool {
    matches!(
        error.kind(),
        Kind::AlreadyRunning | Kind::HeldElsewhere | Kind::StartLocked | Kind::Unresponsive
    )
}

/// Runs `opta daemon`, as [`start`] executes it in the background. A failure is reported to the
/// starter.
pub fn serve_in_background(handed_over: HandedOver, operations: OperationsOf) -> ExitCode {
    let served = handover::claim(handed_over).and_then(|(paths, claim, ready)| {
        let operations = operations(&paths);
        run::serve(claim, ready, &paths, Hangup::Refresh, &Supervision::NONE, operations)
    });
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Serves in the foreground. If another daemon is already serving, reports it; under launchd, waits
/// until it has exited.
fn serve(
    paths: &Paths,
    config: &Config,
    foreground: &Foreground,
    operations: OperationsOf,
    output: &Output,
) -> Result<(), Error> {
    let manager = foreground.supervision.manager;
    loop {
        let operations = operations(paths);
        let held = match guardian::serve_in_foreground(paths, config, foreground, operations) {
            Ok(None) => return Ok(()),
            Ok(Some(info)) if manager.is_none() => {
                return print_started(&info, true, paths, output);
            }
            Ok(Some(info)) => {
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
        output.note(&format!("{held}; waiting until it exits"));
        lock::wait_until_free(paths)?;
    }
}

/// Prints that a daemon was started or was already running.
pub fn print_started(
    info: &DaemonInfo,
    already: bool,
    paths: &Paths,
    output: &Output,
) -> Result<(), Error> {
    let (pid, port) = (info.pid, info.port);
    output.json(&Object(&[
        ("started", &!already),
        ("alreadyRunning", &already),
        ("pid", &pid),
        ("port", &port),
        ("daemonId", &info.daemon_id),
        ("startedAt", &info.started_at),
        ("version", &info.version),
        ("statePath", &paths.state().to_string_lossy().into_owned()),
        ("logsPath", &info.logs_path),
    ]))?;
    if !already {
        output.text(&format!("Daemon started (pid {pid}, port {port})"))?;
        return output.text(&format!("Token written to {}", paths.display(&paths.state())));
    }
    output.text(&format!("Daemon already running (pid {pid}, port {port})"))?;
    if let Some(manager) = &info.managed_by
        && output.mode == OutputMode::Text
    {
        output.note(&format!("it is a service, managed by {manager}"));
    }
    Ok(())
}

fn note_crashes(start: &Start, output: &Output) {
    match start.crashed.map(|crashed| crashed.pid) {
        Some(Some(pid)) => output.note(&format!("the daemon had crashed (pid {pid})")),
        Some(None) => output.note("the daemon had crashed"),
        None => {}
    }
    if start.crash_loop {
        output.note("it crashed several times within a minute; see: opta daemon logs");
    }
}

/// Runs `opta daemon status`: 0 running, 3 stopped, 1 crashed, 4 unresponsive.
pub fn status(paths: &Paths, asked: &cli::StatusArgs, output: &Output) -> Result<ExitCode, Error> {
    let status = match asked.wait {
        Some(limit) => status::wait_until_running(paths, limit)?,
        None => status::look(paths)?,
    };
    let (status, failure) = status::with_service(paths, status);
    match (asked.quiet, output.mode) {
        (true, _) => {}
        (false, OutputMode::Json) => print_json(&status, failure.as_ref(), paths, output)?,
        (false, OutputMode::Text) => {
            output.line(&status_line(&status, output))?;
            match failure {
                Some(ServiceFailure { message, details, .. }) => {
                    output.note(&format!("{message}; see: {details}"));
                }
                None => note_condition(&status, paths, output),
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

/// Reports what the line of the status does not say: that the daemon crashed, or that its program
/// was replaced.
fn note_condition(status: &Status, paths: &Paths, output: &Output) {
    match status {
        Status::Crashed { info } => {
            let pid = info.as_ref().map_or(String::new(), |info| format!(" (pid {})", info.pid));
            let written = std::fs::metadata(paths.log()).and_then(|log| log.modified()).ok();
            let age =
                written.and_then(|written| written.elapsed().ok()).map(clock::format_duration);
            let last =
                age.map_or(String::new(), |age| format!(" its last log entry is {age} old;"));
            output.note(&format!("the daemon crashed{pid};{last} to start it: opta daemon start"));
        }
        Status::Running { info, .. } if is_program_replaced(info) == Some(true) => {
            let next = "to run the new one: opta daemon restart";
            output.note(&format!("the program was replaced after the daemon started; {next}"));
        }
        _ => {}
    }
}

fn status_line(status: &Status, output: &Output) -> String {
    let (color, symbol, text) = match status {
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
        Status::Unresponsive { pid, port, why } => {
            let reason = why.reason(*port, limits::HEALTH_MAX);
            let next = match why {
                NoHealth::StateLost => format!("; {}", why.next_step()),
                _ => String::new(),
            };
            let pid = pid.map_or(String::new(), |pid| format!("  pid={pid}"));
            let port = port.map_or(String::new(), |port| format!("  port={port}"));
            ("33", "◐", format!("unresponsive{pid}{port}  ({reason}{next})"))
        }
    };
    format!("{} {text}", output.style().paint(color, symbol))
}

/// Returns whether the daemon's program was replaced after it started, if it is known.
pub fn is_program_replaced(info: &DaemonInfo) -> Option<bool> {
    let id = run::file_id(info.executable.as_ref()?.as_ref());
    Some(id.as_ref() != Some(info.executable_id.as_ref()?))
}

/// Prints the status with `--json`: the same keys in every state, `null` for what is unknown.
fn print_json(
    status: &Status,
    failure: Option<&ServiceFailure>,
    paths: &Paths,
    output: &Output,
) -> Result<(), Error> {
    let (state, info, health) = match status {
        Status::Running { info, health } => ("running", Some(info), Some(health)),
        Status::Crashed { info } => ("crashed", info.as_ref(), None),
        Status::Stopped => ("stopped", None, None),
        Status::Unresponsive { .. } => ("unresponsive", None, None),
    };
    let (pid, port) = pid_and_port(status);
    let log = || paths.log().to_string_lossy().into_owned();
    let logs_path = info.map_or_else(log, |info| info.logs_path.clone());
    let serving = health.and(info);
    output.json(&Object(&[
        ("state", &state.to_owned()),
        ("running", &health.is_some()),
        ("pid", &pid),
        ("port", &port),
        ("uptime", &health.map(|health| health.uptime)),
        ("sessions", &health.map(|health| health.sessions())),
        ("version", &info.map(|info| info.version.clone())),
        ("startedAt", &info.map(|info| info.started_at.clone())),
        ("logsPath", &logs_path),
        ("managedBy", &serving.and_then(|info| info.managed_by.clone())),
        ("staleBinary", &serving.and_then(|info| is_program_replaced(info))),
        // The reason why the service manager does not start it again.
        ("trouble", &failure.map(|failure| failure.message.clone())),
    ]))
}

/// Runs `opta daemon stop`.
pub fn stop(paths: &Paths, asked: &StopArgs, output: &Output) -> Result<ExitCode, Error> {
    let announce = |pid| announce_stop(pid, output);
    let StopOutcome { pid, through } =
        stop::stop(None, paths, asked.timeout, on_timeout(asked), announce)?;
    output.progress(if pid.is_some() { "Daemon stopped." } else { "Daemon is not running." });
    if through == Some(Manager::Launchd) {
        output.note("it starts again at the next login; to prevent that: opta daemon uninstall");
    }
    let was_running = pid.is_some();
    let mut fields: Vec<Field<'_>> = vec![("stopped", &true), ("wasRunning", &was_running)];
    fields.extend(pid.as_ref().map(|pid| -> Field<'_> { ("pid", pid) }));
    output.json(&Object(&fields))?;
    Ok(ExitCode::SUCCESS)
}

fn announce_stop(pid: i32, output: &Output) {
    output.progress(&format!("Stopping daemon (pid {pid})..."));
}

fn on_timeout(asked: &StopArgs) -> OnTimeout {
    if asked.force { OnTimeout::Kill } else { OnTimeout::Report }
}

/// Runs `opta daemon restart`.
pub fn restart(paths: &Paths, asked: &RestartArgs, output: &Output) -> Result<ExitCode, Error> {
    // Anything that can fail must fail before the daemon is stopped.
    let config = Config::load(&paths.config())?;
    paths.prepare()?;
    if config.port.reaches_service() {
        service::check(paths)?;
    }
    let start_lock = StartLock::acquire(paths, limits::START_LOCK_MAX)?;
    let mut wanted = config.port;
    let status = status::look_once(paths)?;
    if let (Some(port), Port::Default | Port::Exactly { port: 0, .. }) =
        (pid_and_port(&status).1, wanted)
    {
        wanted = Port::Preferred(port);
    }
    let previous_pid = stop_previous(&start_lock, paths, asked, &status, output)?;
    let Ensured { info, start } =
        guardian::start(start_lock, paths, &config, wanted, Caller::User)?;
    if let Some(start) = &start {
        note_crashes(start, output);
    }
    let (pid, port) = (info.pid, info.port);
    output.text(&format!("Daemon started (pid {pid}, port {port})"))?;
    let mut fields: Vec<Field<'_>> = vec![("restarted", &true), ("pid", &pid), ("port", &port)];
    fields.extend(previous_pid.as_ref().map(|pid| -> Field<'_> { ("previousPid", pid) }));
    output.json(&Object(&fields))?;
    output.text("Token rotated.")?;
    note_lost_manager(&status, &info, paths, output);
    Ok(ExitCode::SUCCESS)
}

/// Reports that the daemon was a service and no longer is, because its manager cannot be reached.
fn note_lost_manager(before: &Status, info: &DaemonInfo, paths: &Paths, output: &Output) {
    let was_service = matches!(before, Status::Running { info, .. } if info.managed_by.is_some());
    if !was_service || info.managed_by.is_some() {
        return;
    }
    if let Some(Err(error)) = Service::installed(paths).map(|service| service.state()) {
        let next = "to make it one again, from a login session: opta daemon restart";
        output.note(&format!("the daemon is no longer a service: {error}; {next}"));
    }
}

/// Stops the daemon that is to be replaced, and returns its pid.
fn stop_previous(
    start_lock: &StartLock,
    paths: &Paths,
    asked: &RestartArgs,
    status: &Status,
    output: &Output,
) -> Result<Option<i32>, Error> {
    let (limit, on_timeout) = (asked.stop.timeout, on_timeout(&asked.stop));
    let announce = |pid| announce_stop(pid, output);
    let active = match service::of_home(paths)? {
        Some((service, ServiceState::Active { .. })) => Some(service.manager),
        _ => None,
    };
    let pid = match (status, active) {
        (Status::Running { info, .. }, _) if asked.if_idle => {
            client::shutdown_if_idle(info)?;
            announce(info.pid);
            stop::wait_for_end(paths, info.pid, limit)?;
            Some(info.pid)
        }
        // It cannot report whether it is idle.
        (Status::Unresponsive { pid, port, why }, _) if asked.if_idle => {
            return Err(status::unresponsive(*pid, *port, why));
        }
        // Not `kickstart -k`, which kills: launchd starts the next one as soon as this one exits.
        (_, Some(Manager::Launchd)) => stop::stop_process(paths, limit, on_timeout, announce)?,
        (Status::Running { info, .. }, Some(Manager::Systemd)) if service::is_inside() => {
            announce(info.pid);
            service::restart_from_inside()?;
            stop::wait_for_end(paths, info.pid, limit)?;
            Some(info.pid)
        }
        // The start removes the state file and reports the crash.
        (Status::Crashed { .. }, None) => None,
        _ => stop::stop(Some(start_lock), paths, limit, on_timeout, announce)?.pid,
    };
    if pid.is_some() {
        output.progress("Daemon stopped.");
    }
    Ok(pid)
}

/// Returns the pid and the port that the daemon has, or had before it crashed.
fn pid_and_port(status: &Status) -> (Option<i32>, Option<u16>) {
    match status {
        Status::Running { info, .. } | Status::Crashed { info: Some(info) } => {
            (Some(info.pid), Some(info.port))
        }
        Status::Unresponsive { pid, port, .. } => (*pid, *port),
        Status::Stopped | Status::Crashed { info: None } => (None, None),
    }
}

/// Runs `opta daemon token`.
pub fn token(paths: &Paths, output: &Output) -> Result<ExitCode, Error> {
    let info = status::running(paths)?;
    let token = info.token.secret();
    output.result(token, &Object(&[("token", &token.to_owned())]))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `opta daemon logs`.
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
