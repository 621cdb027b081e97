//! `opta daemon install`, `opta daemon uninstall`

use std::process::ExitCode;

use crate::cli::{InstallArgs, OutputMode, UninstallArgs};
use crate::commands::{Output, daemon};
use crate::config::Config;
use crate::error::Error;
use crate::json::{self, Object};
use crate::lifecycle::guardian::{self, Caller, Ensured};
use crate::lifecycle::service::{Installed, Service, is_temporary};
use crate::lifecycle::stop::{self, OnTimeout};
use crate::limits;
use crate::lock::{self, Owner};
use crate::paths::{Manager, Paths};

/// Runs `opta daemon install`.
pub fn install(paths: &Paths, asked: &InstallArgs, output: &Output) -> Result<ExitCode, Error> {
    let service = Service::of(paths)?;
    let installed = service.install(paths, asked.force)?;
    let (manager, name) = (service.manager, service.name());
    match output.mode {
        OutputMode::Text => output.step(&format!("Installed {}: {name}", service.kind())),
        OutputMode::Json => output.step(&json::text(&Object(&[
            ("installed", &true),
            ("manager", &manager.name().to_owned()),
            ("service", &name.to_owned()),
            ("path", &service.file.to_string_lossy().into_owned()),
            ("program", &installed.program.to_string_lossy().into_owned()),
            // Otherwise the manager loads it at the next login.
            ("registered", &installed.unreachable.is_none()),
        ]))),
    }
    match manager {
        Manager::Systemd if !asked.now => {
            output.progress(&format!("Run: systemctl --user enable --now {name}"));
        }
        _ => output.progress("Daemon will start automatically on login."),
    }
    if is_temporary(&installed.program) {
        let program = installed.program.display();
        output.note(&format!("the service runs {program}, which may be removed soon"));
    }
    if let Some(error) = &installed.unreachable {
        output.note(&error.to_string());
        output
            .note("the service will be loaded at the next login; opta daemon start works already");
    }
    if installed.new && manager == Manager::Systemd {
        output.note("it runs while you are logged in; to keep it running: loginctl enable-linger");
    }
    if asked.now {
        start(paths, &service, installed, output)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn start(
    paths: &Paths,
    service: &Service,
    installed: Installed,
    output: &Output,
) -> Result<(), Error> {
    if let Some(error) = installed.unreachable {
        return Err(error);
    }
    service.enable()?;
    let config = Config::load(&paths.config())?;
    let Ensured { info, start } = guardian::ensure_running(paths, &config, Caller::User)?;
    let by_hand = start.is_none() && info.managed_by.is_none();
    // launchd starts it on installation: it may be running already.
    let already = by_hand || (start.is_none() && !installed.started);
    daemon::print_started(&info, already, paths, output)?;
    if by_hand {
        output.note("it was started by hand; to run it as a service: opta daemon restart");
    }
    Ok(())
}

/// Runs `opta daemon uninstall`.
pub fn uninstall(paths: &Paths, asked: &UninstallArgs, output: &Output) -> Result<ExitCode, Error> {
    let service = Service::of(paths)?;
    let ran = matches!(lock::owner(paths)?, Owner::Process(_));
    let uninstalled = service.uninstall(asked.force)?;
    if uninstalled {
        output.progress(&format!("Removed {}: {}", service.kind(), service.name()));
    } else {
        output.progress(&format!("No {} is installed.", service.kind()));
    }
    // A daemon that was started by hand.
    let quietly = |_pid| ();
    let ended = stop::stop(None, paths, limits::STOP_WAIT_DEFAULT, OnTimeout::Report, quietly)?;
    let stopped = ran || ended.pid.is_some();
    if stopped {
        output.text("Daemon stopped.")?;
    }
    output.json(&Object(&[
        ("uninstalled", &uninstalled),
        ("manager", &service.manager.name().to_owned()),
        ("path", &service.file.to_string_lossy().into_owned()),
        ("stopped", &stopped),
    ]))?;
    if uninstalled {
        let root = paths.display(paths.root());
        output.note(&format!("sessions, settings and logs are kept in {root}"));
    }
    Ok(ExitCode::SUCCESS)
}
