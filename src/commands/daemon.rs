//! `opta daemon …`

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use nanoserde::SerJson;

use crate::cli::{Form, Logs, Restart, Start, Stop};
use crate::commands::Output;
use crate::config::{Config, Port};
use crate::error::Error;
use crate::lifecycle::guardian::{self, Caller, Ensured, Here, How, Past};
use crate::lifecycle::run::{self, Hangup};
use crate::lifecycle::status::{self, Status};
use crate::lifecycle::stop::{self, Patience};
use crate::lock::Door;
use crate::log::{self, Query, Style, Tail};
use crate::paths::Paths;
use crate::state::Card;
use crate::{cli, client, clock, config, json, limits};

/// `opta daemon start`
pub fn start(paths: &Paths, asked: &Start, output: &Output) -> Result<ExitCode, Error> {
    let mut config = Config::load(&paths.config())?;
    if let Some(port) = asked.port {
        config.port = Port::Exactly { port, by: "--port N" };
    }
    if asked.foreground {
        let terminal = io::stderr().is_terminal();
        let hangup = if terminal { Hangup::Leave } else { Hangup::Refresh };
        let colour = terminal && config::colour_allowed();
        let style = if colour { Style::Colour } else { Style::Plain };
        if let Here::Taken(card) = guardian::serve_here(paths, &config, hangup, style)? {
            started(&card, &How::AlreadyRunning, paths, output)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Ensured { card, how } = guardian::ensure_running(paths, &config, Caller::User)?;
    if let How::Started(past) = &how {
        tell_past(past, output);
    }
    started(&card, &how, paths, output)?;
    if let (How::AlreadyRunning, Some(port)) = (&how, asked.port.filter(|port| *port != 0))
        && port != card.port
    {
        output
            .say(&format!("it keeps port {}; to move it: opta daemon stop, then start", card.port));
    }
    Ok(ExitCode::SUCCESS)
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

fn started(card: &Card, how: &How, paths: &Paths, output: &Output) -> Result<(), Error> {
    let already = matches!(how, How::AlreadyRunning);
    if output.form == Form::Json {
        return output.line(&json::text(&Started {
            started: !already,
            already_running: already,
            pid: card.pid,
            port: card.port,
            daemon_id: card.daemon_id.clone(),
            started_at: card.started_at.clone(),
            version: card.version.clone(),
            state_path: paths.state().to_string_lossy().into_owned(),
            logs_path: card.logs_path.clone(),
        }));
    }
    if already {
        let (pid, port) = (card.pid, card.port);
        return output.line(&format!("Daemon already running (pid {pid}, port {port})"));
    }
    output.line(&format!("Daemon started (pid {}, port {})", card.pid, card.port))?;
    output.line(&format!("Token written to {}", paths.shown(&paths.state())))
}

fn tell_past(past: &Past, output: &Output) {
    match past.crashed.map(|crashed| crashed.pid) {
        Some(Some(pid)) => output.say(&format!("the daemon had crashed (pid {pid})")),
        Some(None) => output.say("the daemon had crashed"),
        None => {}
    }
    if past.crash_loop {
        output.say("it has crashed several times within a minute; see: opta daemon logs");
    }
}

/// `opta daemon status`: 0 running, 3 stopped, 1 crashed, 4 unresponsive.
pub fn status(paths: &Paths, asked: &cli::Status, output: &Output) -> Result<ExitCode, Error> {
    let status = match asked.wait {
        Some(limit) => status::wait_until_running(paths, limit)?,
        None => status::look(paths)?,
    };
    if !asked.quiet {
        match output.form {
            Form::Text => output.line(&one_line_of(&status, output))?,
            Form::Json => output.line(&json::text(&report(&status)))?,
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
        Status::Running { card, health } => {
            let uptime = clock::age(Duration::from_secs(health.uptime));
            let (pid, port, sessions) = (card.pid, card.port, health.runtime.sessions);
            let text =
                format!("running  pid={pid}  port={port}  uptime={uptime}  sessions={sessions}");
            ("32", "●", text)
        }
        Status::Stopped | Status::Crashed { .. } => {
            ("2", "○", "stopped  (no daemon process found)".to_owned())
        }
        Status::Unresponsive { pid, port, .. } => {
            let pid = pid.map_or(String::new(), |pid| format!("  pid={pid}"));
            let port = port.map_or(String::new(), |port| format!("  port={port}"));
            ("33", "◐", format!("unresponsive{pid}{port}  (no answer in 1s)"))
        }
    };
    if output.coloured() {
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
}

fn report(status: &Status) -> Report {
    let (state, card, health) = match status {
        Status::Running { card, health } => ("running", Some(card), Some(health)),
        Status::Crashed { card } => ("crashed", card.as_ref(), None),
        Status::Stopped => ("stopped", None, None),
        Status::Unresponsive { .. } => ("unresponsive", None, None),
    };
    let (pid, port) = match status {
        Status::Unresponsive { pid, port, .. } => (*pid, *port),
        _ => (card.map(|card| card.pid), card.map(|card| card.port)),
    };
    let stale = |card: &Card| {
        let (path, id) = card.executable.as_ref()?;
        Some(run::file_id(path.as_ref()).as_ref() != Some(id))
    };
    Report {
        state: state.to_owned(),
        running: health.is_some(),
        pid,
        port,
        uptime: health.map(|health| health.uptime),
        sessions: health.map(|health| health.runtime.sessions),
        version: card.map(|card| card.version.clone()),
        started_at: card.map(|card| card.started_at.clone()),
        logs_path: card.map(|card| card.logs_path.clone()),
        managed_by: None,
        stale_binary: health.and(card).and_then(|card| stale(card)),
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
pub fn stop(paths: &Paths, asked: &Stop, output: &Output) -> Result<ExitCode, Error> {
    let stopped = end(None, paths, asked, output)?;
    if stopped.is_none() {
        output.text("Daemon is not running.")?;
    }
    if output.form == Form::Json {
        let was_running = stopped.is_some();
        output.line(&json::text(&Stopped { stopped: true, was_running, pid: stopped }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Stops a daemon that runs, with the words of the manual.
fn end(
    door: Option<&Door>,
    paths: &Paths,
    asked: &Stop,
    output: &Output,
) -> Result<Option<i32>, Error> {
    let patience = if asked.force { Patience::Kill } else { Patience::Report };
    let announce = |pid| output.text(&format!("Stopping daemon (pid {pid})..."));
    let stopped = stop::stop(door, paths, asked.timeout, patience, announce)?;
    if stopped.is_some() {
        output.text("Daemon stopped.")?;
    }
    Ok(stopped)
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
pub fn restart(paths: &Paths, asked: &Restart, output: &Output) -> Result<ExitCode, Error> {
    // Everything that can go wrong before the old daemon is stopped should.
    let config = Config::load(&paths.config())?;
    paths.prepare()?;
    let door = Door::enter(paths, limits::QUEUE_WAIT_MAX)?;
    let mut wanted = config.port;
    let mut previous = None;
    let status = status::look_once(paths)?;
    if let (Some(port), Port::Default | Port::Exactly { port: 0, .. }) = (port_of(&status), wanted)
    {
        wanted = Port::Preferred(port);
    }
    if let Status::Running { card, .. } = status
        && asked.if_idle
    {
        client::shutdown_if_idle(&card)?;
        output.text(&format!("Stopping daemon (pid {})...", card.pid))?;
        stop::wait_for_end(paths, asked.stop.timeout)?;
        output.text("Daemon stopped.")?;
        previous = Some(card.pid);
    }
    previous = previous.or(end(Some(&door), paths, &asked.stop, output)?);
    let Ensured { card, how } = guardian::start_behind(door, paths, &config, wanted)?;
    if let How::Started(past) = &how {
        tell_past(past, output);
    }
    if output.form == Form::Json {
        let (pid, port) = (card.pid, card.port);
        let report = Restarted { restarted: true, pid, port, previous_pid: previous };
        output.line(&json::text(&report))?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(&format!("Daemon started (pid {}, port {})", card.pid, card.port))?;
    output.line("Token rotated.")?;
    Ok(ExitCode::SUCCESS)
}

/// The port that the daemon has, or had when it was last heard of.
fn port_of(status: &Status) -> Option<u16> {
    match status {
        Status::Running { card, .. } | Status::Crashed { card: Some(card) } => Some(card.port),
        Status::Unresponsive { port, .. } => *port,
        Status::Stopped | Status::Crashed { card: None } => None,
    }
}

#[derive(SerJson)]
struct TokenReport {
    token: String,
}

/// `opta daemon token`
pub fn token(paths: &Paths, output: &Output) -> Result<ExitCode, Error> {
    let card = status::running(paths)?;
    let token = card.token.secret();
    match output.form {
        Form::Text => output.line(token)?,
        Form::Json => output.line(&json::text(&TokenReport { token: token.to_owned() }))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `opta daemon logs`
pub fn logs(paths: &Paths, asked: &Logs, output: &Output) -> Result<ExitCode, Error> {
    let form = match output.form {
        Form::Text => log::Form::Text(output.style()),
        Form::Json => log::Form::Json,
    };
    let (lines, least, since) = (asked.lines, asked.level, asked.since);
    let query = Query { lines, least, since, form };
    let tail = Tail::open(&paths.daemon())?;
    if tail.is_empty() {
        output.say(&format!("there is no log yet at {}", paths.shown(&paths.log())));
    }
    if asked.follow {
        tail.follow(&query, &mut io::stdout())?;
    } else {
        tail.show(&query, &mut io::stdout().lock())?;
    }
    Ok(ExitCode::SUCCESS)
}
