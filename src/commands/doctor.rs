//! `opta doctor`: checks everything and changes nothing.

use std::fmt::Display;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use nanoserde::SerJson;

use crate::agent;
use crate::agent::endpoint::{self, EndpointError, ModelChoice};
use crate::agent::model::{self, fault};
use crate::cli::OutputMode;
use crate::client::NoHealth;
use crate::commands::Output;
use crate::commands::daemon::is_program_replaced;
use crate::commands::sessions::as_argument;
use crate::config::{Config, ModelSettings, Port, ToolSettings};
use crate::error::{Error, Kind, reason};
use crate::lifecycle::service::Service;
use crate::lifecycle::service::drift::{self, Drift};
use crate::lifecycle::status::{self, Status};
use crate::lifecycle::{claim, crashes, guardian};
use crate::paths::{Manager, Paths};
use crate::session::reader;
use crate::session::store::Store;
use crate::session::turn::Fault;
use crate::text::escaped;
use crate::{http, json, limits, protocol, sys};

const INSTALL: &str = "opta daemon install";
const START: &str = "opta daemon start";
const RESTART: &str = "opta daemon restart";
const FORCE_RESTART: &str = "opta daemon restart --force";
const LIST: &str = "opta sessions list";

const PASS: &str = "pass";
const WARN: &str = "warn";
const FAIL: &str = "fail";

/// The result of a check, as a line of `--json`.
#[derive(SerJson)]
struct Finding {
    check: &'static str,
    status: &'static str,
    message: String,
    /// A command that fixes the problem, or shows more about it.
    fix: Option<String>,
}

impl Finding {
    fn with_fix(self, fix: impl Into<String>) -> Finding {
        Finding { fix: Some(fix.into()), ..self }
    }
}

/// The finding of a check; an error is one that ended the check early.
type Check = Result<Finding, Finding>;

fn pass(message: impl Into<String>) -> Finding {
    Finding { check: "", status: PASS, message: message.into(), fix: None }
}

/// Returns a finding that needs no immediate action.
fn warn(message: impl Into<String>) -> Finding {
    Finding { status: WARN, ..pass(message) }
}

fn fail(message: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { status: FAIL, ..pass(message) }.with_fix(fix)
}

/// Returns a failure with the next step that the error names, or else with `fix`.
fn failed(error: &Error, fix: impl Display) -> Finding {
    fail(error.to_string(), error.next_step().map_or_else(|| fix.to_string(), str::to_owned))
}

/// Runs `opta doctor`: exits with 1 if a check fails.
pub fn run(paths: &Paths, output: &Output) -> Result<ExitCode, Error> {
    let looked = status::look(paths).map(|status| status::with_service(paths, status));
    let (status, failure) = looked.map_or_else(|e| (Err(e), None), |(s, f)| (Ok(s), f));
    let files = files(paths);
    let daemon = match &status {
        // The error is about what the check of the files reports.
        Err(error) if files.is_err() => warn(format!("not checked: {error}")),
        _ => daemon(&status, guardian::has_given_up(paths, failure.as_ref())),
    };
    let checks = [
        ("settings", settings(paths)),
        ("files", files),
        ("daemon", Ok(daemon)),
        ("port", Ok(port_of(paths, &status))),
        ("version", Ok(version(&status))),
        ("service", service(paths)),
        ("disk", Ok(disk(paths))),
        ("log", Ok(log(paths, &status))),
        ("model", model(paths)),
        ("sessions", sessions(paths)),
    ];
    let mut worst = ExitCode::SUCCESS;
    for (check, Ok(finding) | Err(finding)) in checks {
        if finding.status == FAIL {
            worst = ExitCode::FAILURE;
        }
        print(&Finding { check, ..finding }, output)?;
    }
    Ok(worst)
}

fn print(finding: &Finding, output: &Output) -> Result<(), Error> {
    if output.mode == OutputMode::Json {
        return output.line(&json::text(finding));
    }
    let Finding { check, status, message, fix } = finding;
    let color = match *status {
        PASS => "32",
        WARN => "33",
        _ => "31",
    };
    let status = output.style().paint(color, status);
    let fix = fix.as_ref().map_or(String::new(), |fix| format!("; fix: {}", escaped(fix)));
    output.line(&format!("{status}  {check:<8}  {}{fix}", escaped(message)))
}

fn settings(paths: &Paths) -> Check {
    let path = paths.config();
    let shown = paths.display(&path);
    let invalid = |error: Error| match error.reason().split_once(": ") {
        Some((name, _)) if error.kind() == Kind::InvalidConfig && is_variable(name) => {
            fail(error.to_string(), format!("unset {name}"))
        }
        _ => failed(&error, edit(&path)),
    };
    Config::load(&path).map_err(invalid)?;
    ModelSettings::load(&path).map_err(invalid)?;
    let tools = ToolSettings::load(&path).map_err(invalid)?;
    let unknown = tools.permissions.names().filter(|name| !agent::has_tool(name));
    let mut unknown: Vec<&str> = unknown.map(String::as_str).collect();
    if !unknown.is_empty() {
        // A misspelled name restricts nothing.
        unknown.sort_unstable();
        let message = format!("permissions has unknown tool names: {}", unknown.join(", "));
        return Ok(warn(message).with_fix(edit(&path)));
    }
    if path.is_symlink() && !path.exists() {
        let message = format!("{shown} is a link to a file that does not exist");
        return Ok(warn(message).with_fix(format!("ls -l {}", quoted(&path))));
    }
    Ok(pass(if path.exists() { shown } else { format!("no {shown} (optional)") }))
}

/// Returns whether the source of a setting is a variable, and not a place in a file.
fn is_variable(source: &str) -> bool {
    source.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

fn edit(config: &Path) -> String {
    format!("${{EDITOR:-vi}} {}", quoted(config))
}

/// Checks that files that may hold secrets belong to this user and that no other user can access
/// them.
fn files(paths: &Paths) -> Check {
    // The home itself may be a link.
    let root = paths.root().canonicalize().unwrap_or_else(|_| paths.root().to_owned());
    let directories = [(root, 0o755), (paths.daemon(), 0o700), (paths.sessions(), 0o700)];
    let files = [paths.state(), paths.pid(), paths.start_lock(), paths.crashes(), paths.log()];
    let files = files.map(|file| (file, 0o600));
    let mut any = false;
    for (path, mode) in directories.into_iter().chain(files) {
        any |= path.symlink_metadata().is_ok();
        check_private(paths, &path, mode)?;
    }
    Ok(pass(if any { "private to this user" } else { "no files yet" }))
}

/// Checks who may use a file or, judging by `mode`, a directory. One that does not exist passes.
fn check_private(paths: &Paths, path: &Path, mode: u32) -> Result<(), Finding> {
    let (shown, word) = (paths.display(path), quoted(path));
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(fail(format!("{shown}: {}", reason(&error)), format!("ls -ld {word}")));
        }
    };
    let directory = mode & 0o100 != 0;
    if found.is_dir() != directory || found.is_file() == directory {
        let kind = if directory { "directory" } else { "regular file" };
        return Err(fail(format!("{shown} is not a {kind}"), format!("mv {word} {word}.old")));
    }
    if found.uid() != sys::effective_user() {
        let message = format!("{shown} belongs to another user");
        return Err(fail(message, take_ownership(paths, path, found.uid())));
    }
    if !directory && found.nlink() > 1 {
        // Only the user can tell which of its names to remove.
        let fix = format!("find {} -xdev -samefile {word}", quoted(paths.root()));
        return Err(fail(format!("{shown} has a second hard link"), fix));
    }
    if found.mode() & 0o777 & !mode != 0 {
        let message = format!("{shown} has mode {:04o}, not {mode:04o}", found.mode() & 0o7777);
        return Err(fail(message, format!("chmod {mode:o} {word}")));
    }
    Ok(())
}

/// Returns the command that gives `path` of another user to this one.
fn take_ownership(paths: &Paths, path: &Path, owner: u32) -> String {
    let of_root = |path: &Path| path.metadata().is_ok_and(|found| found.uid() == 0);
    let roots_own = of_root(paths.root()) || paths.root().parent().is_some_and(of_root);
    match sys::effective_user() {
        // Root would take it from its owner.
        0 if !roots_own => format!("sudo -u '#{owner}' opta doctor"),
        0 => format!("chown -R 0 {}", quoted(path)),
        _ => format!("sudo chown -R \"$(id -u)\" {}", quoted(path)),
    }
}

/// Checks that the lock, the state file and the daemon's answer agree. `by_hand`: only the user
/// starts the daemon again.
fn daemon(status: &Result<Status, Error>, by_hand: bool) -> Finding {
    let with_pid = |pid: Option<i32>| pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
    match status {
        Ok(Status::Running { info, .. }) => pass(format!("running (pid {})", info.pid)),
        Ok(Status::Stopped) if by_hand => warn(format!("not running; only {START} starts it")),
        Ok(Status::Stopped) => pass("not running; commands that need it start it"),
        Ok(Status::Crashed { info }) => {
            let pid = with_pid(info.as_ref().map(|info| info.pid));
            warn(match by_hand {
                true => format!("crashed{pid}; only {START} restarts it"),
                false => format!("crashed{pid}; commands that need it restart it"),
            })
        }
        Ok(Status::Unresponsive { pid, port, why }) => {
            let holds = format!("holds its lock{}", with_pid(*pid));
            match why {
                // The daemon writes it again when it is started.
                NoHealth::StateLost | NoHealth::NotOurDaemon => {
                    fail(format!("{holds}, but its state.json is lost or not its own"), START)
                }
                NoHealth::TimedOut | NoHealth::Unreachable => {
                    fail(format!("{holds}, but does not answer"), FORCE_RESTART)
                }
                _ => {
                    let reason = why.reason(*port, limits::HEALTH_MAX);
                    fail(format!("{holds}, but {reason}"), why.next_step())
                }
            }
        }
        Err(error) => failed(error, FORCE_RESTART),
    }
}

fn port_of(paths: &Paths, status: &Result<Status, Error>) -> Finding {
    match status {
        Ok(Status::Running { info, .. }) => {
            return pass(format!("the daemon answers on 127.0.0.1:{}", info.port));
        }
        Ok(Status::Stopped | Status::Crashed { .. }) => {}
        // The daemon itself may be what uses the port.
        Ok(Status::Unresponsive { .. }) | Err(_) => {
            return warn("not checked until the daemon is in order");
        }
    }
    // The check of the settings reports what is wrong with them.
    let wanted = Config::load(&paths.config()).map_or(Port::Default, |config| config.port);
    let (port, required_by) = match wanted {
        Port::Exactly { port: 0, .. } => return pass("any free port"),
        Port::Exactly { port, by } => (port, Some(by)),
        Port::Preferred(port) => (port, None),
        Port::Default => (limits::PORT_DEFAULT, None),
    };
    if !http::is_listening(port, limits::HEALTH_MAX) {
        return pass(format!("{port} is free"));
    }
    let owner = claim::port_user(port).map_or(String::new(), |owner| format!(" ({owner})"));
    let in_use = format!("another program{owner} uses {port}");
    match required_by {
        None => warn(format!("{in_use}; the daemon will use another port")),
        Some(by) => fail(format!("{in_use}, which {by} requires"), format!("{START} --port 0")),
    }
}

fn version(status: &Result<Status, Error>) -> Finding {
    let (ours, protocol) = (env!("CARGO_PKG_VERSION"), protocol::PROTOCOL_VERSION);
    let Ok(Status::Running { info, health }) = status else {
        return pass(format!("opta {ours}"));
    };
    if health.version != protocol {
        let theirs = &health.version;
        return fail(format!("the daemon speaks protocol {theirs}, this opta {protocol}"), RESTART);
    }
    if info.version != ours {
        let message = format!("the daemon is opta {}, this is opta {ours}", info.version);
        return warn(message).with_fix(RESTART);
    }
    if is_program_replaced(info) == Some(true) {
        return warn("the program was replaced after the daemon started").with_fix(RESTART);
    }
    pass(format!("opta {ours}, and so is the daemon"))
}

/// Checks that the service's file is what `install` would write, and that its manager loaded it.
fn service(paths: &Paths) -> Check {
    let service = Service::of(paths).map_err(|error| Finding {
        fix: error.next_step().map(str::to_owned),
        ..warn(error.to_string())
    })?;
    let drift = drift::detect(&service, paths)
        .map_err(|error| failed(&error, format_args!("ls -ld {}", quoted(&service.file))))?;
    let (file, manager) = (paths.display(&service.file), service.manager.name());
    Ok(match drift {
        Drift::NotInstalled => pass("the daemon is not installed as a service"),
        Drift::Foreign => {
            warn(format!("opta did not write {file}")).with_fix(format!("{INSTALL} --force"))
        }
        // Installing it here would remove it there.
        Drift::OtherHome(home) => {
            warn(format!("{file} serves another home, {}", paths.display(&home)))
        }
        Drift::Broken { program, because } => {
            fail(format!("{file} runs {}, which {because}", paths.display(&program)), INSTALL)
        }
        Drift::Different { version } => {
            let written = format!("{file} was written by opta {version}");
            warn(format!("{written} and differs from what opta would write")).with_fix(INSTALL)
        }
        Drift::Unreachable(error) => {
            warn(format!("{file} is current; whether it is loaded is unknown: {error}"))
        }
        Drift::NotLoaded => match service.manager {
            Manager::Systemd => {
                warn(format!("systemd has not loaded the current {file}")).with_fix(INSTALL)
            }
            // A stopped service is not loaded until the next login; a start loads it.
            Manager::Launchd => warn(format!("launchd has not loaded {file}")).with_fix(START),
        },
        Drift::Rejected(word) => fail(
            format!("{manager} cannot use {file} with its drop-in files ({word})"),
            "systemctl --user cat opta-daemon",
        ),
        Drift::Failed(failure) => fail(format!("{} ({file})", failure.message), START),
        Drift::None { program, enabled } => {
            let runs = format!("{manager} has loaded it, and runs {}", paths.display(&program));
            let enable = format!("systemctl --user enable {}", service.name());
            pass(match enabled {
                true => format!("{runs} at every login"),
                false => format!("{runs}; to run it at every login: {enable}"),
            })
        }
    })
}

fn disk(paths: &Paths) -> Finding {
    let sessions = paths.sessions();
    let Some(nearest) = sessions.ancestors().find(|path| path.exists()) else {
        return warn("cannot determine the free space");
    };
    let shown = paths.display(nearest);
    match sys::free_bytes(nearest) {
        Ok(free) if free < limits::DISK_FREE_MIN => {
            fail(format!("only {} MiB free in {shown}, where sessions are kept", free >> 20), LIST)
        }
        Ok(free) => pass(format!("{} MiB free", free >> 20)),
        Err(error) => warn(format!("{shown}: {}", reason(&error))),
    }
}

fn log(paths: &Paths, status: &Result<Status, Error>) -> Finding {
    let path = paths.log();
    let crashes = crashes::recent(paths).unwrap_or(0);
    if crashes >= limits::CRASHES_MAX {
        let message = format!("the daemon crashed {crashes} times within a minute");
        let look = "opta daemon logs --level warn";
        return match status {
            Ok(Status::Running { .. }) => warn(message).with_fix(look),
            // Commands that need it no longer start it.
            _ => fail(message, format!("{look}; {START}")),
        };
    }
    // To open something else, which the check of the files reports, could block.
    let regular = path.symlink_metadata().map(|found| found.is_file().then_some(found.len()));
    let open = || std::fs::File::options().append(true).open(&path);
    let shown = paths.display(&path);
    match regular.and_then(|bytes| bytes.map(|bytes| open().map(|_| bytes)).transpose()) {
        Ok(None) => warn("not checked: it is not a regular file"),
        Ok(Some(bytes)) => pass(format!("{shown}, {} KiB", bytes.div_ceil(1024))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => pass("no log yet"),
        Err(error) => {
            fail(format!("{shown}: {}", reason(&error)), format!("chmod 600 {}", quoted(&path)))
        }
    }
}

/// Checks that there is a model, and that its server answers.
fn model(paths: &Paths) -> Check {
    let config = paths.config();
    let settings = ModelSettings::load(&config)
        .map_err(|_invalid| warn("not checked: the settings are invalid"))?;
    let change = |source: &str| match is_variable(source) {
        true => format!("unset {source}"),
        false => edit(&config),
    };
    let endpoint = endpoint::resolve(&ModelChoice::default(), &settings).map_err(|error| {
        let fix = match &error {
            EndpointError::InvalidSetting { source, .. } => change(source),
            EndpointError::NotFound { lacks_model: true, .. } => "ollama pull qwen3".to_owned(),
            EndpointError::NotFound { .. } => "ollama serve".to_owned(),
        };
        fail(Fault::from(error).message, fix)
    })?;
    let (server, source) = (format!("{} ({})", endpoint.url, endpoint.source), &endpoint.source);
    let names = model::models(&endpoint, limits::DOCTOR_MODEL_MAX).map_err(|fault| {
        match fault.code {
            // Neither shown nor kept in the shell's history.
            fault::UNAUTHORIZED => {
                fail(fault.message, "read -rs OPTA_API_KEY; export OPTA_API_KEY")
            }
            fault::UNREACHABLE => {
                let message = format!("{}; start it, or remove the setting", fault.message);
                fail(message, change(source))
            }
            _ => fail(fault.message, change(source)),
        }
    })?;
    let names = names.ok_or_else(|| warn(format!("{server} does not list its models")))?;
    let model = endpoint.model.as_ref().or_else(|| model::first_chat_model(&names));
    let model = model.ok_or_else(|| {
        let message = format!("{server} has no model that chats: load one, or remove the setting");
        fail(message, change(source))
    })?;
    let is_it = |name: &String| name == model || name.strip_suffix(":latest") == Some(model);
    Ok(match names.iter().any(is_it) {
        true => pass(format!("{model} at {server}")),
        false => warn(format!("{server} does not list the model {model}")),
    })
}

/// Checks that the newest sessions are intact.
fn sessions(paths: &Paths) -> Check {
    let store = Store::new(paths.sessions());
    let page = store.page(None, limits::DOCTOR_SESSIONS_MAX).map_err(|e| failed(&e, LIST))?;
    let mut damaged = Vec::new();
    for id in &page.ids {
        let directory = store.directory(id);
        check_private(paths, &directory, 0o700)?;
        check_private(paths, &directory.join(reader::FILE_NAME), 0o600)?;
        match store.scan(id, |_| {}) {
            Ok(found) if found.is_damaged() => damaged.push((id, found.records)),
            // An incomplete record at the end is set aside when the session is next used.
            Ok(_) => {}
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => {}
            Err(error) => {
                let verify = format_args!("opta sessions verify {}", as_argument(id));
                return Err(failed(&error, verify));
            }
        }
    }
    store.check_index().map_err(|error| match error.kind() {
        Kind::SessionsUnlisted => warn(error.to_string()),
        _ => failed(&error, LIST),
    })?;
    Ok(match (damaged.as_slice(), page.ids.len()) {
        ([], 0) => pass("no sessions yet"),
        ([], count) => pass(format!("the newest are intact ({count} read)")),
        ([(first, records), ..], count) => {
            let are = if damaged.len() == 1 { "is" } else { "are" };
            let message = format!("{} of the newest {count} {are} damaged", damaged.len());
            let (id, name) = (as_argument(first), first.as_str());
            // The copy keeps what an export leaves out.
            let copy = format!("cp -Rp {} ./{name}.damaged", quoted(&store.directory(first)));
            let export = match records {
                0 => String::new(),
                _ => format!(" && opta sessions export {id} >{name}.json"),
            };
            fail(message, format!("{copy}{export} && opta sessions rm {id}"))
        }
    })
}

/// Quotes a path as one word for the shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}
