//! `opta doctor`: looks at everything and touches nothing.

use std::fmt::Display;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nanoserde::SerJson;

use crate::agent::find::{self, Wanted};
use crate::agent::model;
use crate::cli::Form;
use crate::commands::Output;
use crate::config::{Config, ModelSettings, Port};
use crate::error::{Error, one_line, reason};
use crate::lifecycle::service::{Condition, Service};
use crate::lifecycle::status::{self, Status};
use crate::lifecycle::{crashes, run};
use crate::paths::{Manager, Paths};
use crate::session::store::Store;
use crate::{api, http, json, limits, sys};

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
    let status = status::look(paths);
    let checks: [(&str, Finding); 10] = [
        ("settings", settings(paths)),
        ("files", files(paths)),
        ("daemon", daemon(&status)),
        ("port", port(paths, &status)),
        ("version", version(&status)),
        ("service", service(paths)),
        ("disk", disk(paths)),
        ("log", log(paths)),
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
    if output.form == Form::Json {
        let (check, status) = (check.to_owned(), status.to_owned());
        return output.line(&json::text(&Line { check, status, message, fix }));
    }
    let shown = match output.coloured() {
        true => format!("\x1b[{colour}m{status}\x1b[0m"),
        false => status.to_owned(),
    };
    let fix = fix.map_or(String::new(), |fix| format!("; to mend it: {}", one_line(&fix)));
    output.line(&format!("{shown}  {check:<8}  {}{fix}", one_line(&message)))
}

/// A failure that names its own next step, or else this one.
fn failed(error: &Error, fix: impl Display) -> Finding {
    Fail(error.to_string(), error.remedy().unwrap_or_else(|| fix.to_string()))
}

fn settings(paths: &Paths) -> Finding {
    let path = paths.config();
    let read = Config::load(&path).and_then(|_| ModelSettings::load(&path));
    match read {
        Ok(_) if path.exists() => Pass(paths.shown(&path)),
        Ok(_) => Pass(format!("{} is not there, and need not be", paths.shown(&path))),
        Err(error) => failed(&error, format_args!("${{EDITOR:-vi}} {}", quoted(&path))),
    }
}

/// What holds secrets belongs to this user, and nobody else reads it.
fn files(paths: &Paths) -> Finding {
    let secret: [(PathBuf, u32); 5] = [
        (paths.daemon(), 0o700),
        (paths.sessions(), 0o700),
        (paths.state(), 0o600),
        (paths.pid(), 0o600),
        (paths.log(), 0o600),
    ];
    let mut looked = 0;
    for (path, mode) in &secret {
        let found = match path.symlink_metadata() {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let message = format!("{}: {}", paths.shown(path), reason(&error));
                return Fail(message, format!("ls -ld {}", quoted(path)));
            }
        };
        looked += 1;
        let fits = if *mode == 0o700 { found.is_dir() } else { found.is_file() };
        let shown = paths.shown(path);
        if !fits {
            let what = if *mode == 0o700 { "directory" } else { "file" };
            return Fail(format!("{shown} is no {what}"), format!("mv {0} {0}.old", quoted(path)));
        }
        if found.uid() != sys::effective_user() {
            let fix = format!("sudo chown -R \"$(id -u)\" {}", quoted(path));
            return Fail(format!("{shown} belongs to another user"), fix);
        }
        let others = found.mode() & 0o777 & !mode;
        if others != 0 {
            let message = format!("{shown} has mode {:04o}, not {mode:04o}", found.mode() & 0o7777);
            return Fail(message, format!("chmod {mode:o} {}", quoted(path)));
        }
    }
    match looked {
        0 => Pass("nothing is there yet".to_owned()),
        _ => Pass("private, and this user's own".to_owned()),
    }
}

/// Lock, card and what answers agree.
fn daemon(status: &Result<Status, Error>) -> Finding {
    match status {
        Ok(Status::Running { card, .. }) => Pass(format!("runs (pid {})", card.pid)),
        Ok(Status::Stopped) => Pass("does not run; a command that needs it starts it".to_owned()),
        Ok(Status::Crashed { card }) => {
            let pid = card.as_ref().map_or(String::new(), |card| format!(" (pid {})", card.pid));
            Warn(format!("has crashed{pid}; a command that needs it starts it again"), None)
        }
        Ok(Status::Unresponsive { pid, card_lost, .. }) => {
            let pid = pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
            let what = if *card_lost { "its state.json is not its own" } else { "does not answer" };
            Fail(format!("holds its lock{pid}, and {what}"), "opta daemon restart --force".into())
        }
        Err(error) => failed(error, "opta daemon restart --force"),
    }
}

fn port(paths: &Paths, status: &Result<Status, Error>) -> Finding {
    if let Ok(Status::Running { card, .. }) = status {
        return Pass(format!("the daemon answers on 127.0.0.1:{}", card.port));
    }
    // What is wrong with the settings was said before.
    let wanted = Config::load(&paths.config()).map_or(Port::Default, |config| config.port);
    let (port, exactly) = match wanted {
        Port::Exactly { port: 0, .. } => return Pass("any free one will do".to_owned()),
        Port::Exactly { port, by } => (port, Some(by)),
        Port::Preferred(port) => (port, None),
        Port::Default => (limits::PORT_DEFAULT, None),
    };
    let taken = http::answers(port, limits::HEALTH_MAX);
    match (taken, exactly) {
        (false, _) => Pass(format!("{port} is free")),
        (true, None) => {
            Warn(format!("another program has {port}; the daemon takes another one"), None)
        }
        (true, Some(by)) => {
            let message = format!("another program has {port}, which {by} asks for");
            Fail(message, "opta daemon start --port 0".to_owned())
        }
    }
}

fn version(status: &Result<Status, Error>) -> Finding {
    let ours = env!("CARGO_PKG_VERSION");
    let Ok(Status::Running { card, health }) = status else {
        return Pass(format!("this is opta {ours}"));
    };
    let restart = || "opta daemon restart".to_owned();
    if health.version != api::PROTOCOL_VERSION {
        let (theirs, wanted) = (&health.version, api::PROTOCOL_VERSION);
        return Fail(format!("the daemon speaks protocol {theirs}, this is {wanted}"), restart());
    }
    if card.version != ours {
        let theirs = &card.version;
        return Warn(format!("the daemon is opta {theirs}, this is {ours}"), Some(restart()));
    }
    let replaced = card
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
        Err(error) => return Warn(error.to_string(), error.remedy()),
    };
    let (file, manager) = (paths.shown(&service.file), service.manager.name());
    let condition = match service.condition(paths) {
        Ok(condition) => condition,
        Err(error) => return failed(&error, format_args!("ls -ld {}", quoted(&service.file))),
    };
    let install = || "opta daemon install".to_owned();
    let start = || "opta daemon start".to_owned();
    let warn = |message, fix| Warn(message, Some(fix));
    match condition {
        Condition::NotInstalled => Pass("the daemon is not installed as a service".to_owned()),
        Condition::Foreign => {
            warn(format!("opta has not written {file}"), format!("{} --force", install()))
        }
        Condition::OfAnotherHome(home) => {
            warn(format!("{file} serves another home, {}", paths.shown(&home)), install())
        }
        Condition::Broken { program, because } => {
            Fail(format!("{file} runs {}, which {because}", paths.shown(&program)), install())
        }
        Condition::Edited => {
            warn(format!("{file} was edited, and is not what opta would write"), install())
        }
        Condition::Outdated { by } => {
            warn(format!("{file} is of opta {by}, and out of date"), install())
        }
        Condition::Unreachable(error) => {
            Warn(format!("{file} is current; whether it is loaded is unknown: {error}"), None)
        }
        // launchd forgets what is stopped until the next login, and a start loads it again.
        Condition::NotLoaded => match service.manager {
            Manager::Systemd => {
                warn(format!("systemd has not read {file} as it is now"), install())
            }
            Manager::Launchd => warn(format!("launchd has not loaded {file}"), start()),
        },
        Condition::Refused(word) => Fail(
            format!("{manager} cannot use {file} and what adds to it ({word})"),
            "systemctl --user edit opta-daemon".to_owned(),
        ),
        Condition::Failed(trouble) => Fail(format!("{} ({file})", trouble.words), start()),
        Condition::Sound { program, enabled } => {
            let program = paths.shown(&program);
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
            let message = format!("{} MiB are free in {}", free >> 20, paths.shown(nearest));
            Fail(message, "opta sessions list, then opta sessions rm ID".to_owned())
        }
        Ok(free) => Pass(format!("{} MiB are free", free >> 20)),
        Err(error) => Warn(format!("{}: {}", paths.shown(nearest), reason(&error)), None),
    }
}

fn log(paths: &Paths) -> Finding {
    let path = paths.log();
    if let Ok(crashes) = crashes::recent(paths)
        && crashes >= limits::CRASHES_MAX
    {
        let message = format!("the daemon has crashed {crashes} times within a minute");
        return Fail(message, "opta daemon logs --level error, then opta daemon start".to_owned());
    }
    match std::fs::File::options().append(true).open(&path) {
        Ok(file) => {
            let bytes = file.metadata().map_or(0, |found| found.len());
            Pass(format!("{}, {} KiB", paths.shown(&path), bytes.div_ceil(1024)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Pass("there is none yet".to_owned())
        }
        Err(error) => {
            let message = format!("{}: {}", paths.shown(&path), reason(&error));
            Fail(message, format!("chmod 600 {}", quoted(&path)))
        }
    }
}

fn model(paths: &Paths) -> Finding {
    let fix = || "set OPTA_MODEL_URL to a server that runs, or start one: ollama serve".to_owned();
    let Ok(settings) = ModelSettings::load(&paths.config()) else {
        return Warn("not asked: the settings cannot be read".to_owned(), None);
    };
    let wanted = Wanted { model_url: None, model: None, settings: &settings };
    let endpoint = match find::resolve(&wanted) {
        Ok(endpoint) => endpoint,
        Err(fault) => return Fail(fault.message, fix()),
    };
    let (url, source) = (&endpoint.url, &endpoint.source);
    match model::models(url, endpoint.key.as_ref(), limits::DOCTOR_MODEL_MAX) {
        Err(fault) => Fail(fault.message, fix()),
        Ok(models) if models.is_empty() => Warn(format!("{url} ({source}) offers no model"), None),
        Ok(models) => Pass(format!("{url} ({source}), {} models", models.len())),
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
        match store.examine(id, |_| {}) {
            Ok(found) if found.damaged > 0 => damaged.push(id.as_str()),
            // What a crash has cut off is set aside when the session is used next.
            Ok(_) => {}
            Err(Error::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return failed(&error, format_args!("opta sessions verify {}", id.as_str()));
            }
        }
    }
    match (damaged.as_slice(), page.ids.len()) {
        ([], 0) => Pass("there are none yet".to_owned()),
        ([], count) => Pass(format!("the newest are whole ({count} read)")),
        ([first, ..], count) => {
            let message = format!("{} of the newest {count} are damaged", damaged.len());
            let fix = format!(
                "opta sessions export {first} >{first}.json, then opta sessions rm {first}"
            );
            Fail(message, fix)
        }
    }
}

/// A path as one word of the shell.
fn quoted(path: &Path) -> String {
    let path = PathBuf::from(path).display().to_string();
    format!("'{}'", path.replace('\'', "'\\''"))
}
