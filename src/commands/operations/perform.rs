//! What operations do: each calls what the command of the same name calls.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Instant;

use nanoserde::DeJson;

use crate::cli::{InstallArgs, OutputMode, StatusArgs};
use crate::commands::doctor::{self, finding};
use crate::commands::{Output, daemon, service, sessions};
use crate::config;
use crate::disk;
use crate::error::{At, Doing, Error};
use crate::json::{self, Object, Raw};
use crate::lifecycle::status;
use crate::limits;
use crate::log::{Level, LineFormat, Query, Tail};
use crate::pattern;
use crate::protocol::{self, SessionId};
use crate::session::search::search;
use crate::session::store::Store;
use crate::session::transcript::Transcript;
use crate::state::{self, Found};
use crate::sys::spawn;
use crate::text::Style;

use super::host::{Host, Refusal};
use super::input::Input;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub fn sessions_list(host: &Host<'_>, input: &Input) -> Result<Raw, Refusal> {
    let limit = input.number("limit").unwrap_or(limits::SESSIONS_PAGE_DEFAULT);
    let sessions = host.sessions.summaries(None, limit)?.sessions;
    Ok(Raw::of(&Object(&[("sessions", &sessions)])))
}

/// Lists the sessions in which `opta sessions grep` finds the query, or whose title contains it.
pub fn sessions_search(host: &Host<'_>, input: &Input) -> Result<Raw, Refusal> {
    let limit = input.number("limit").unwrap_or(limits::SESSIONS_PAGE_DEFAULT);
    let words = regex::escape(input.text("query").unwrap_or_default());
    let regex = pattern::compile(&words, true).map_err(Refusal::invalid)?;
    let deadline = Instant::now() + limits::SESSIONS_SEARCH_MAX;
    let goes_on = || Instant::now() < deadline && (host.is_awaited)();
    let (mut sessions, mut total, mut complete) = (Vec::new(), 0_usize, true);
    let store = Store::new(host.paths.sessions());
    for id in store.page(None, usize::MAX)?.ids {
        complete &= goes_on();
        if !complete {
            break;
        }
        // One that has just been deleted has none.
        let Ok(summary) = host.sessions.summary(&id) else { continue };
        let title = summary.title.as_deref().unwrap_or_default();
        let mut is_found = regex.is_match(title.as_bytes());
        if !is_found {
            let searched = search(&store, &id, &regex, &goes_on, &mut |_line| {
                is_found = true;
                ControlFlow::Break(())
            });
            // One that cannot be read is not found.
            complete &= is_found || !matches!(searched, Ok(None));
        }
        if is_found {
            total += 1;
            sessions.push(summary);
            sessions.truncate(limit);
        }
    }
    Ok(Raw::of(&Object(&[("sessions", &sessions), ("total", &total), ("complete", &complete)])))
}

pub fn sessions_get(host: &Host<'_>, input: &Input) -> Result<Raw, Refusal> {
    let id = session_of(host, input)?;
    let session = host.sessions.session(&id)?;
    let messages = session.conversation()?.messages.len();
    let (id, tags) = (id.as_str().to_owned(), Vec::<String>::new());
    let more: [json::Field<'_>; 3] = [("id", &id), ("tags", &tags), ("messageCount", &messages)];
    Ok(Raw::of(&session.summary()).with(&more))
}

/// Writes a session to a file, as `opta sessions export` and `opta sessions show` print it.
pub fn sessions_export(host: &Host<'_>, input: &Input) -> Result<Raw, Refusal> {
    let id = session_of(host, input)?;
    let transcript = Transcript::read(&Store::new(host.paths.sessions()), &id)?;
    let (text, extension) = match input.text("format") {
        Some("markdown") => (transcript.markdown(), "md"),
        Some("text") => (transcript.text(Style::Plain), "txt"),
        _ => (transcript.json() + "\n", "json"),
    };
    let path = match input.text("outputPath").map(Path::new) {
        Some(path) if path.is_absolute() => {
            create(path, text.as_bytes())?;
            path.to_owned()
        }
        Some(path) => {
            let message = format!("outputPath is not absolute: {}", path.display());
            return Err(Refusal::invalid(message));
        }
        None => {
            let directory = host.paths.exports();
            disk::ensure_private_directory(&directory)?;
            let path = directory.join(format!("{}.{extension}", id.as_str()));
            disk::replace(&path, text.as_bytes())?;
            path
        }
    };
    let (path, bytes) = (path.to_string_lossy().into_owned(), text.len());
    Ok(Raw::of(&Object(&[("path", &path), ("sizeBytes", &bytes)])))
}

/// Creates a private file. One that exists is the user's, and stays.
fn create(path: &Path, bytes: &[u8]) -> Result<(), Refusal> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    match file {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            Err(Refusal::invalid(format!("outputPath exists: {}", path.display())))
        }
        file => Ok(file.and_then(|mut file| file.write_all(bytes)).at("write", path)?),
    }
}

pub fn sessions_rename(host: &Host<'_>, input: &Input) -> Result<Raw, Refusal> {
    let title = input.text("title").unwrap_or_default().trim();
    if title.is_empty() || title.len() > limits::TITLE_BYTES_MAX {
        let max = limits::TITLE_BYTES_MAX;
        return Err(Refusal::invalid(format!("a title has 1 to {max} bytes, blanks aside")));
    }
    let session = host.sessions.session(&session_of(host, input)?)?;
    session.announce(Some(title))?;
    Ok(Raw::of(&session.summary()))
}

pub fn sessions_delete(host: &Host<'_>, input: &Input) -> Result<Raw, Refusal> {
    // Not a prefix: no one is asked whether that is the session.
    let typed = input.text("sessionId").unwrap_or_default();
    let id = SessionId::parse(typed).ok_or_else(|| {
        Refusal::invalid("a session's id is 1 to 64 letters, digits, '-' and '_'")
    })?;
    host.sessions.delete(&id)?;
    let session_id = id.as_str().to_owned();
    Ok(Raw::of(&Object(&[("deleted", &true), ("sessionId", &session_id)])))
}

fn session_of(host: &Host<'_>, input: &Input) -> Result<SessionId, Error> {
    let store = Store::new(host.paths.sessions());
    sessions::find(&store, input.text("sessionId").unwrap_or_default())
}

pub fn run_doctor(host: &Host<'_>, _input: &Input) -> Result<Raw, Refusal> {
    let findings = doctor::findings(host.paths);
    let count = |status| findings.iter().filter(|finding| finding.status == status).count();
    let (passed, warnings, failures) =
        (count(finding::PASS), count(finding::WARN), count(finding::FAIL));
    let checks: Vec<Raw> = findings
        .iter()
        .map(|finding| Raw::of(finding).with(&[("name", &finding.check.to_owned())]))
        .collect();
    let summary: [json::Field<'_>; 3] =
        [("passed", &passed), ("warnings", &warnings), ("failures", &failures)];
    Ok(Raw::of(&Object(&[
        ("checks", &checks),
        ("summary", &Object(&summary)),
        ("version", &VERSION.to_owned()),
    ])))
}

pub fn version_check(_host: &Host<'_>, _input: &Input) -> Result<Raw, Refusal> {
    let (version, protocol) = (VERSION.to_owned(), protocol::PROTOCOL_VERSION.to_owned());
    // opta does not look for releases.
    let latest = None::<String>;
    Ok(Raw::of(&Object(&[
        ("current", &version),
        ("version", &version),
        ("protocol", &protocol),
        ("latest", &latest),
    ])))
}

pub fn daemon_status(host: &Host<'_>, _input: &Input) -> Result<Raw, Refusal> {
    let asked = StatusArgs { wait: None, quiet: false };
    let status = captured(|output| daemon::status(host.paths, &asked, output))?;
    let managed_by = match state::read(host.paths)? {
        Found::Info(info) => info.managed_by,
        Found::Damaged | Found::Nothing => None,
    };
    let installed_as = managed_by.unwrap_or_else(|| "manual".to_owned());
    let log = host.paths.log().to_string_lossy().into_owned();
    Ok(status.with(&[("logPath", &log), ("installedAs", &installed_as)]))
}

/// A line of the log as it is stored.
#[derive(DeJson)]
struct LogLine {
    ts: Option<String>,
    level: Option<String>,
    msg: Option<String>,
}

pub fn daemon_logs(host: &Host<'_>, input: &Input) -> Result<Raw, Refusal> {
    let lines = input.number("lines").unwrap_or(limits::LOG_LINES_OPERATION_DEFAULT);
    let query = Query { lines, least: Level::Debug, since: None, format: LineFormat::Json };
    let mut text = Vec::new();
    Tail::open(&host.paths.daemon())?.print(&query, &mut text)?;
    let text = String::from_utf8_lossy(&text);
    let entries = text.lines().filter_map(|raw| {
        let line: LogLine = json::parse(raw.as_bytes()).ok()?;
        Some(Raw::of(&Object(&[
            ("timestamp", &line.ts),
            ("level", &line.level.unwrap_or_default().to_lowercase()),
            ("message", &line.msg),
            ("raw", &raw.to_owned()),
        ])))
    });
    Ok(Raw::of(&Object(&[("logs", &entries.collect::<Vec<_>>())])))
}

pub fn daemon_start(host: &Host<'_>, _input: &Input) -> Result<Raw, Refusal> {
    let info = status::running(host.paths)?;
    captured(|output| {
        daemon::print_started(&info, true, host.paths, output)?;
        Ok(ExitCode::SUCCESS)
    })
}

pub fn daemon_install(host: &Host<'_>, _input: &Input) -> Result<Raw, Refusal> {
    let asked = InstallArgs { now: false, force: false };
    captured(|output| service::install(host.paths, &asked, output))
}

/// Returns the object that a command prints with `--json`.
fn captured(command: impl FnOnce(&Output) -> Result<ExitCode, Error>) -> Result<Raw, Refusal> {
    let output = Output::capturing(OutputMode::Json);
    command(&output)?;
    let printed = output.into_captured().stdout;
    Raw::object(printed.trim_end())
        .ok_or_else(|| Refusal::new(500, "execution_failed", "the command printed no object"))
}

pub fn daemon_stop(host: &Host<'_>, _input: &Input) -> Result<Raw, Refusal> {
    run_command(host, &["daemon", "stop"])
}

pub fn daemon_restart(host: &Host<'_>, _input: &Input) -> Result<Raw, Refusal> {
    run_command(host, &["daemon", "restart"])
}

pub fn daemon_uninstall(host: &Host<'_>, _input: &Input) -> Result<Raw, Refusal> {
    run_command(host, &["daemon", "uninstall"])
}

/// Starts a command that ends this daemon, and that outlives it. The daemon completes this request
/// before it exits. A failure of the command is in the log.
fn run_command(host: &Host<'_>, words: &'static [&'static str]) -> Result<Raw, Refusal> {
    let text = format!("opta {}", words.join(" "));
    let program = match state::read(host.paths)? {
        Found::Info(info) => info.executable.map(PathBuf::from),
        Found::Damaged | Found::Nothing => None,
    };
    let program = program.map_or_else(spawn::program, Ok).doing("find the program")?;
    let mut command = Command::new(&program);
    command
        .args(words)
        .env_clear()
        .envs(config::daemon_environment())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    let mut child = command.spawn().at("run", &program)?;
    let reap = move || drop(child.wait());
    // Without the thread, the process stays a zombie until this one exits.
    drop(thread::Builder::new().name("reap".into()).spawn(reap));
    Ok(Raw::of(&Object(&[("started", &text), ("pid", &std::process::id())])))
}
