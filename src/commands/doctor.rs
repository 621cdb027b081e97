//! `opta doctor`: checks everything and changes nothing.

mod files;
pub mod finding;
mod model;
mod settings;

use std::io;
use std::process::ExitCode;

use files::{Problems, files};
use finding::{Check, Finding, fail, failed, pass, quoted, warn};
use model::model;
use settings::settings;

use crate::client::NoHealth;
use crate::commands::Output;
use crate::commands::daemon::is_program_replaced;
use crate::commands::sessions::as_argument;
use crate::config::{Config, Port};
use crate::error::{Error, Kind, reason};
use crate::lifecycle::service::Service;
use crate::lifecycle::service::drift::{self, Drift};
use crate::lifecycle::status::{self, Status};
use crate::lifecycle::{cgroup, claim, crashes, guardian};
use crate::paths::{Manager, Paths};
use crate::session::reader;
use crate::session::store::Store;
use crate::state::DaemonInfo;
use crate::{http, limits, protocol, sys};

const INSTALL: &str = "opta daemon install";
const START: &str = "opta daemon start";
const RESTART: &str = "opta daemon restart";
const FORCE_RESTART: &str = "opta daemon restart --force";
const LIST: &str = "opta sessions list";

/// Runs `opta doctor`: exits with 1 if a check fails.
pub fn run(paths: &Paths, output: &Output) -> Result<ExitCode, Error> {
    let mut worst = ExitCode::SUCCESS;
    for finding in findings(paths) {
        if finding.is_failure() {
            worst = ExitCode::FAILURE;
        }
        finding.print(output)?;
    }
    Ok(worst)
}

/// Makes all checks.
pub fn findings(paths: &Paths) -> Vec<Finding> {
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
    checks.map(|(check, Ok(finding) | Err(finding))| finding.of(check)).into()
}

/// Checks that the lock, the state file and the daemon's answer agree. `by_hand`: only the user
/// starts the daemon again.
fn daemon(status: &Result<Status, Error>, by_hand: bool) -> Finding {
    let with_pid = |pid: Option<i32>| pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
    match status {
        Ok(Status::Running { info, .. }) => running(info),
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

/// Reports the group with which a running daemon ends. A service that is not its own is a problem:
/// a program started the daemon as a side effect.
fn running(info: &DaemonInfo) -> Finding {
    let running = format!("running (pid {})", info.pid);
    let ours = i32::try_from(std::process::id()).ok().and_then(cgroup::of_process);
    match cgroup::of_process(info.pid).filter(|_| info.has_pid_of_here()) {
        None => pass(running),
        Some(group)
            if cgroup::is_service(&group)
                && info.managed_by.is_none()
                && ours.as_ref() != Some(&group) =>
        {
            warn(format!("{running}, but it ends when {group} does")).with_fix(RESTART)
        }
        Some(group) => pass(format!("{running} in {group}")),
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
    let service = Service::of(paths).map_err(|error| {
        warn(error.to_string()).with_fix_if_any(error.next_step().map(str::to_owned))
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

/// Checks that the newest sessions are intact.
fn sessions(paths: &Paths) -> Check {
    let store = Store::new(paths.sessions());
    let page = store.page(None, limits::DOCTOR_SESSIONS_MAX).map_err(|e| failed(&e, LIST))?;
    let mut problems = Problems::default();
    for id in &page.ids {
        let directory = store.directory(id);
        problems.check(paths, &directory, 0o700);
        problems.check(paths, &directory.join(reader::FILE_NAME), 0o600);
    }
    problems.result()?;
    let mut damaged = Vec::new();
    for id in &page.ids {
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
