//! `opta doctor`: looks at everything and touches nothing.

mod files;

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nanoserde::SerJson;

use crate::agent;
use crate::agent::find::{self, Unresolved, Wanted};
use crate::agent::model::{self, list};
use crate::cli::OutputMode;
use crate::commands::Output;
use crate::commands::sessions::as_argument;
use crate::config::{Config, ModelSettings, Port, ToolSettings};
use crate::error::{Error, Kind, reason};
use crate::lifecycle::service::Service;
use crate::lifecycle::service::drift::{self, Drift};
use crate::lifecycle::status::{self, Status};
use crate::lifecycle::{crashes, guardian, port, run};
use crate::paths::{Manager, Paths};
use crate::session::journal;
use crate::session::store::Store;
use crate::session::turn::Fault;
use crate::text::escaped;
use crate::{http, json, limits, protocol, sys};

/// What came of a check.
enum Finding {
    Pass(String),
    /// Worth knowing, and no reason to do anything at once; with what can be done, if anything.
    Warn(String, Option<String>),
    /// With the command that mends it.
    Fail(String, String),
}

use Finding::{Fail, Pass, Warn};

/// A line of `--json`.
#[derive(SerJson)]
struct Line {
    check: String,
    status: String,
    message: String,
    fix: Option<String>,
}

/// `opta doctor`: 1 if a check fails.
pub fn run(paths: &Paths, output: &Output) -> Result<ExitCode, Error> {
    let looked = status::look(paths).map(|status| status::with_service(paths, status));
    let (status, trouble) = match looked {
        Ok((status, trouble)) => (Ok(status), trouble),
        Err(error) => (Err(error), None),
    };
    let files = files::check(paths);
    let daemon = match (&files, &status) {
        (Fail(..), Err(error)) => Warn(format!("cannot be told before: {error}"), None),
        // Why, is said of the log or of the service.
        _ => daemon(&status, guardian::is_left_to_the_user(paths, trouble.as_ref())),
    };
    let checks: [(&str, Finding); 10] = [
        ("settings", settings(paths)),
        ("files", files),
        ("daemon", daemon),
        ("port", port_of(paths, &status)),
        ("version", version(&status)),
        ("service", service(paths)),
        ("disk", disk(paths)),
        ("log", log(paths, &status)),
        ("model", model(paths)),
        ("sessions", sessions(paths)),
    ];
    let mut worst = ExitCode::SUCCESS;
    for (check, finding) in checks {
        if matches!(finding, Fail(..)) {
            worst = ExitCode::FAILURE;
        }
        tell(check, finding, output)?;
    }
    Ok(worst)
}

fn tell(check: &str, finding: Finding, output: &Output) -> Result<(), Error> {
    let (status, colour, message, fix) = match finding {
        Pass(message) => ("pass", "32", message, None),
        Warn(message, fix) => ("warn", "33", message, fix),
        Fail(message, fix) => ("fail", "31", message, Some(fix)),
    };
    if output.mode == OutputMode::Json {
        let (check, status) = (check.to_owned(), status.to_owned());
        return output.line(&json::text(&Line { check, status, message, fix }));
    }
    let shown = match output.is_colored() {
        true => format!("\x1b[{colour}m{status}\x1b[0m"),
        false => status.to_owned(),
    };
    let fix = fix.map_or(String::new(), |fix| format!("; to mend it: {}", escaped(&fix)));
    output.line(&format!("{shown}  {check:<8}  {}{fix}", escaped(&message)))
}

/// A failure that names its own next step, or else this one.
fn failed(error: &Error, fix: impl Display) -> Finding {
    Fail(error.to_string(), error.next_step().map_or_else(|| fix.to_string(), str::to_owned))
}

fn settings(paths: &Paths) -> Finding {
    let path = paths.config();
    let models = || ModelSettings::load(&path).map(drop);
    let tools = || ToolSettings::load(&path);
    let read = Config::load(&path).and_then(|_| models()).and_then(|()| tools());
    match read.map(|tools| strangers(&tools)) {
        // A misspelt one restricts nothing.
        Ok(Some(names)) => {
            let message = format!("permissions has what is no tool's name: {names}");
            Warn(message, Some(edit(&path)))
        }
        Ok(None) if path.exists() => Pass(paths.display(&path)),
        Ok(None) if path.is_symlink() => {
            let message = format!("{} is a link to what is not there", paths.display(&path));
            Warn(message, Some(format!("ls -l {}", quoted(&path))))
        }
        Ok(None) => Pass(format!("{} is not there, and need not be", paths.display(&path))),
        Err(error) => match error.reason().split_once(": ") {
            Some((name, _)) if error.kind() == Kind::InvalidConfig && is_variable(name) => {
                Fail(error.to_string(), format!("unset {name}"))
            }
            _ => failed(&error, edit(&path)),
        },
    }
}

/// The names in `permissions` that no tool has.
fn strangers(tools: &ToolSettings) -> Option<String> {
    let names = tools.permissions.keys().filter(|name| !agent::has_tool(name));
    let mut names: Vec<&str> = names.map(String::as_str).collect();
    names.sort_unstable();
    (!names.is_empty()).then(|| names.join(", "))
}

/// What a setting is named by: a variable, or a place in a file.
fn is_variable(source: &str) -> bool {
    source.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

fn edit(config: &Path) -> String {
    format!("${{EDITOR:-vi}} {}", quoted(config))
}

/// Lock, state file and what answers agree. `left`: nothing but the user starts it.
fn daemon(status: &Result<Status, Error>, left: bool) -> Finding {
    match status {
        Ok(Status::Running { info, .. }) => Pass(format!("runs (pid {})", info.pid)),
        Ok(Status::Stopped) if left => {
            Warn("does not run; only opta daemon start starts it again".to_owned(), None)
        }
        Ok(Status::Stopped) => Pass("does not run; a command that needs it starts it".to_owned()),
        Ok(Status::Crashed { info }) => {
            let pid = info.as_ref().map_or(String::new(), |info| format!(" (pid {})", info.pid));
            let who = if left { "only opta daemon start" } else { "a command that needs it" };
            Warn(format!("has crashed{pid}; {who} starts it again"), None)
        }
        Ok(Status::Unresponsive { pid, state_lost, .. }) => {
            let pid = pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
            // One that is well writes its state file again when it is wanted.
            let (what, fix) = match state_lost {
                true => ("its state.json is lost or not its own", "opta daemon start"),
                false => ("does not answer", "opta daemon restart --force"),
            };
            Fail(format!("holds its lock{pid}, and {what}"), fix.to_owned())
        }
        Err(error) => failed(error, "opta daemon restart --force"),
    }
}

fn port_of(paths: &Paths, status: &Result<Status, Error>) -> Finding {
    match status {
        Ok(Status::Running { info, .. }) => {
            return Pass(format!("the daemon answers on 127.0.0.1:{}", info.port));
        }
        Ok(Status::Stopped | Status::Crashed { .. }) => {}
        // Whoever has the port may well be the daemon.
        Ok(Status::Unresponsive { .. }) | Err(_) => {
            return Warn("not looked at before the daemon is in order".to_owned(), None);
        }
    }
    // What is wrong with the settings was said before.
    let wanted = Config::load(&paths.config()).map_or(Port::Default, |config| config.port);
    let (port, exactly) = match wanted {
        Port::Exactly { port: 0, .. } => return Pass("any free one will do".to_owned()),
        Port::Exactly { port, by } => (port, Some(by)),
        Port::Preferred(port) => (port, None),
        Port::Default => (limits::PORT_DEFAULT, None),
    };
    if !http::answers(port, limits::HEALTH_MAX) {
        return Pass(format!("{port} is free"));
    }
    let owner = port::owner_of(port).map_or(String::new(), |owner| format!(" ({owner})"));
    let taken = format!("another program{owner} has {port}");
    match exactly {
        None => Warn(format!("{taken}; the daemon takes another one"), None),
        Some(by) => {
            Fail(format!("{taken}, which {by} asks for"), "opta daemon start --port 0".to_owned())
        }
    }
}

fn version(status: &Result<Status, Error>) -> Finding {
    let ours = env!("CARGO_PKG_VERSION");
    let Ok(Status::Running { info, health }) = status else {
        return Pass(format!("this is opta {ours}"));
    };
    let restart = || "opta daemon restart".to_owned();
    if health.version != protocol::PROTOCOL_VERSION {
        let (theirs, wanted) = (&health.version, protocol::PROTOCOL_VERSION);
        return Fail(format!("the daemon speaks protocol {theirs}, this is {wanted}"), restart());
    }
    if info.version != ours {
        let theirs = &info.version;
        return Warn(format!("the daemon is opta {theirs}, this is {ours}"), Some(restart()));
    }
    let replaced = info
        .executable
        .as_ref()
        .is_some_and(|(path, id)| run::file_id(path.as_ref()).as_ref() != Some(id));
    match replaced {
        true => Warn("the program was replaced since the daemon began".into(), Some(restart())),
        false => Pass(format!("the daemon and this are opta {ours}")),
    }
}

/// The service's file is what `install` would write, and its manager has it.
fn service(paths: &Paths) -> Finding {
    let service = match Service::of(paths) {
        Ok(service) => service,
        Err(error) => return Warn(error.to_string(), error.next_step().map(str::to_owned)),
    };
    let (file, manager) = (paths.display(&service.file), service.manager.name());
    let drift = match drift::detect(&service, paths) {
        Ok(drift) => drift,
        Err(error) => return failed(&error, format_args!("ls -ld {}", quoted(&service.file))),
    };
    let install = || "opta daemon install".to_owned();
    let start = || "opta daemon start".to_owned();
    let warn = |message, fix| Warn(message, Some(fix));
    match drift {
        Drift::NotInstalled => Pass("the daemon is not installed as a service".to_owned()),
        Drift::Foreign => {
            warn(format!("opta has not written {file}"), format!("{} --force", install()))
        }
        // To install it here would take it from there.
        Drift::OtherHome(home) => {
            Warn(format!("{file} serves another home, {}", paths.display(&home)), None)
        }
        Drift::Broken { program, because } => {
            Fail(format!("{file} runs {}, which {because}", paths.display(&program)), install())
        }
        Drift::Edited => {
            warn(format!("{file} was edited, and is not what opta would write"), install())
        }
        Drift::Outdated { version: by } => {
            warn(format!("{file} is of opta {by}, and out of date"), install())
        }
        Drift::Unreachable(error) => {
            Warn(format!("{file} is current; whether it is loaded is unknown: {error}"), None)
        }
        // launchd forgets what is stopped until the next login, and a start loads it again.
        Drift::NotLoaded => match service.manager {
            Manager::Systemd => {
                warn(format!("systemd has not read {file} as it is now"), install())
            }
            Manager::Launchd => warn(format!("launchd has not loaded {file}"), start()),
        },
        Drift::Rejected(word) => Fail(
            format!("{manager} cannot use {file} and what adds to it ({word})"),
            "systemctl --user cat opta-daemon".to_owned(),
        ),
        Drift::Failed(trouble) => Fail(format!("{} ({file})", trouble.message), start()),
        Drift::None { program, enabled } => {
            let program = paths.display(&program);
            let name = service.name();
            Pass(match enabled {
                true => format!("{manager} has it, runs {program}, and starts it at every login"),
                false => format!(
                    "{manager} has it and runs {program}, but not at every login: \
                     systemctl --user enable {name}"
                ),
            })
        }
    }
}

fn disk(paths: &Paths) -> Finding {
    let directory = paths.sessions();
    let nearest = directory.ancestors().find(|path| path.exists());
    let Some(nearest) = nearest else {
        return Warn("it cannot be told how much room there is".to_owned(), None);
    };
    match sys::free_bytes(nearest) {
        Ok(free) if free < limits::DISK_FREE_MIN => {
            let (free, place) = (free >> 20, paths.display(nearest));
            let message = format!("{free} MiB are free in {place}, where sessions are kept");
            Fail(message, "opta sessions list".to_owned())
        }
        Ok(free) => Pass(format!("{} MiB are free", free >> 20)),
        Err(error) => Warn(format!("{}: {}", paths.display(nearest), reason(&error)), None),
    }
}

fn log(paths: &Paths, status: &Result<Status, Error>) -> Finding {
    let path = paths.log();
    if let Ok(crashes) = crashes::recent(paths)
        && crashes >= limits::CRASHES_MAX
    {
        let message = format!("the daemon has crashed {crashes} times within a minute");
        let look = "opta daemon logs --level warn";
        return match status {
            Ok(Status::Running { .. }) => Warn(message, Some(look.to_owned())),
            // Commands that need it start it no more.
            _ => Fail(message, format!("{look}; opta daemon start")),
        };
    }
    // What is no file was found before, and might keep whoever opens it waiting.
    let regular = path.symlink_metadata().map(|found| found.is_file().then_some(found.len()));
    let open = || std::fs::File::options().append(true).open(&path);
    match regular.and_then(|bytes| bytes.map(|bytes| open().map(|_| bytes)).transpose()) {
        Ok(None) => Warn("not looked at: it is no regular file".to_owned(), None),
        Ok(Some(bytes)) => Pass(format!("{}, {} KiB", paths.display(&path), bytes.div_ceil(1024))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Pass("there is none yet".to_owned())
        }
        Err(error) => {
            let message = format!("{}: {}", paths.display(&path), reason(&error));
            Fail(message, format!("chmod 600 {}", quoted(&path)))
        }
    }
}

/// There is a model that answers.
fn model(paths: &Paths) -> Finding {
    let config = paths.config();
    let Ok(settings) = ModelSettings::load(&config) else {
        return Warn("not asked: the settings cannot be read".to_owned(), None);
    };
    let instead = |source: &str| match is_variable(source) {
        true => format!("unset {source}"),
        false => edit(&config),
    };
    let wanted = Wanted { model_url: None, model: None, settings: &settings };
    let endpoint = match find::resolve(&wanted) {
        Ok(endpoint) => endpoint,
        Err(unresolved) => {
            let fix = match &unresolved {
                Unresolved::Setting { source, .. } => instead(source),
                Unresolved::Nowhere { lacks_model: true, .. } => "ollama pull qwen3".to_owned(),
                Unresolved::Nowhere { .. } => "ollama serve".to_owned(),
            };
            return Fail(Fault::from(unresolved).message, fix);
        }
    };
    let (url, source) = (&endpoint.url, &endpoint.source);
    let names = match model::models(&endpoint, limits::DOCTOR_MODEL_MAX) {
        Ok(Some(names)) => names,
        Ok(None) => return Warn(format!("{url} ({source}) does not tell its models"), None),
        Err(fault) if fault.code == model::code::UNAUTHORIZED => {
            // Neither shown nor kept in the shell's history.
            return Fail(fault.message, "read -rs OPTA_API_KEY; export OPTA_API_KEY".to_owned());
        }
        Err(fault) if fault.code == model::code::UNREACHABLE => {
            let message = format!("{}; start it, or do without it", fault.message);
            return Fail(message, instead(source));
        }
        Err(fault) => return Fail(fault.message, instead(source)),
    };
    let offers = |model: &String| {
        let latest = |name: &String| name.strip_suffix(":latest") == Some(model);
        names.iter().any(|name| name == model || latest(name))
    };
    match &endpoint.model {
        Some(model) if offers(model) => Pass(format!("{model} at {url} ({source})")),
        Some(model) => {
            Warn(format!("{url} ({source}) does not name {model} among its models"), None)
        }
        None => match list::first_that_chats(&names) {
            Some(model) => Pass(format!("{model} at {url} ({source})")),
            None => Fail(
                format!("{url} ({source}) has no model that chats: load one, or do without it"),
                instead(source),
            ),
        },
    }
}

/// The newest sessions are whole.
fn sessions(paths: &Paths) -> Finding {
    let store = Store::new(paths.sessions());
    let page = match store.page(None, limits::DOCTOR_SESSIONS_MAX) {
        Ok(page) => page,
        Err(error) => return failed(&error, "opta sessions list"),
    };
    let mut damaged = Vec::new();
    for id in &page.ids {
        let directory = store.directory(id);
        let journal = directory.join(journal::FILE_NAME);
        for (path, mode) in [(&directory, 0o700), (&journal, 0o600)] {
            if let Some(finding) = files::not_private(paths, path, mode) {
                return finding;
            }
        }
        match store.examine(id, |_| {}) {
            Ok(found) if found.is_damage() => damaged.push((id, found.records)),
            // What a crash has cut off is set aside when the session is used next.
            Ok(_) => {}
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => {}
            Err(error) => {
                return failed(&error, format_args!("opta sessions verify {}", as_argument(id)));
            }
        }
    }
    if let Err(error) = store.names().and_then(|ids| store.all_listed(&ids)) {
        let fix = match error.kind() {
            Kind::SessionsUnlisted => format!("rm {}", quoted(&store.index())),
            _ => "opta sessions list".to_owned(),
        };
        return failed(&error, fix);
    }
    match (damaged.as_slice(), page.ids.len()) {
        ([], 0) => Pass("there are none yet".to_owned()),
        ([], count) => Pass(format!("the newest are whole ({count} read)")),
        ([(first, records), ..], count) => {
            let are = if damaged.len() == 1 { "is" } else { "are" };
            let message = format!("{} of the newest {count} {are} damaged", damaged.len());
            let (id, name) = (as_argument(first), first.as_str());
            // What is not whole is in no export, and perhaps worth more than the session's end.
            let copy = format!("cp -Rp {} ./{name}.damaged", quoted(&store.directory(first)));
            let export = match records {
                0 => String::new(),
                _ => format!(" && opta sessions export {id} >{name}.json"),
            };
            Fail(message, format!("{copy}{export} && opta sessions rm {id}"))
        }
    }
}

/// A path as one word of the shell.
fn quoted(path: &Path) -> String {
    let path = PathBuf::from(path).display().to_string();
    format!("'{}'", path.replace('\'', "'\\''"))
}
