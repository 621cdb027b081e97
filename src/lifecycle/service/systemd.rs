//! The service as a unit of the user's systemd: its text, and what is asked of `systemctl --user`.
//!
//! The text is pure. No sandboxing: in a user manager most of it does nothing, and the rest would
//! be inherited by every command that a session runs.

use std::path::Path;
use std::time::Duration;

use super::drift::{LoadState, UnitFields};
use super::manager_command::{self, ManagerReply};
use super::{Plan, ServiceFailure, ServiceState};
use crate::error::{Error, Kind};
use crate::paths::Manager;
use crate::{disk, limits};

/// The unit's name.
pub const UNIT: &str = "opta-daemon.service";

/// The unit's text. systemd.service(5), systemd.unit(5)
///
/// # Errors
/// [`Kind::UnservablePath`]: systemd cannot run a program with such a path, however it is quoted.
pub fn text(plan: &Plan) -> Result<String, Error> {
    if plan.program.contains(['"', '\'', '\\']) {
        let because = "systemd runs no program with a quote or a backslash in its path";
        return Err(super::unservable(Path::new(&plan.program), because));
    }
    // In a program's path, unlike in arguments, `$` stands for itself.
    let program = plan.program.replace('%', "%%");
    let (mark, path, home) =
        (plan.mark(), variable("PATH", &plan.search_path), home_line(&plan.root));
    Ok(format!(
        "\
# {mark}
# Changes of your own outlive an upgrade here: systemctl --user edit opta-daemon
{READY}
ExecStart=\"{program}\" daemon start --foreground
{LIFE}
{path}
{home}

[Install]
WantedBy=default.target
"
    ))
}

/// Ready is what the daemon itself says it is. The limits of a crash loop belong to the unit.
const READY: &str = "
[Unit]
Description=Opta daemon
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main";

/// 75: another daemon holds the lock; 78: the settings are bad. Neither gets better by trying
/// again. `mixed`: the daemon ends its tools itself, what is left is killed. OOMPolicy: a tool that
/// takes too much memory is not to take the daemon along.
const LIFE: &str = "\
Restart=on-failure
RestartSec=2
RestartPreventExitStatus=75 78
TimeoutStartSec=30
TimeoutStopSec=20
KillMode=mixed
OOMPolicy=continue";

/// EX_CONFIG of sysexits.h.
const BAD_SETTINGS: i32 = 78;

/// The line by which a unit serves this home and no other.
pub fn home_line(root: &str) -> String {
    variable("OPTA_HOME", root)
}

fn variable(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    format!("Environment=\"{name}={value}\"")
}

fn value_of(variable: &str) -> String {
    variable.replace("%%", "%").replace("\\\"", "\"").replace("\\\\", "\\")
}

/// What a text of [`text`]'s names, if it has all of it.
pub fn named(text: &str) -> Option<UnitFields> {
    let between = |before: &str, after: &str| {
        text.lines().find_map(|line| line.strip_prefix(before)?.strip_suffix(after))
    };
    let variable = |name: &str| between(&format!("Environment=\"{name}="), "\"").map(value_of);
    let program = between("ExecStart=\"", "\" daemon start --foreground")?.replace("%%", "%");
    Some(UnitFields { program, search_path: variable("PATH")?, root: variable("OPTA_HOME")? })
}

/// What systemd knows of the unit.
#[derive(Default)]
struct Unit {
    load: String,
    active: String,
    result: String,
    fragment: String,
    main_pid: i32,
    restarts: u32,
    exit_status: i32,
    /// The file has changed since systemd read it.
    changed: bool,
    enabled: bool,
}

impl Unit {
    /// From the answer of `systemctl show`, whose lines come in any order.
    fn parse(answer: &str) -> Unit {
        let mut unit = Unit::default();
        for (key, value) in answer.lines().filter_map(|line| line.split_once('=')) {
            match key {
                "LoadState" => value.clone_into(&mut unit.load),
                "NeedDaemonReload" => unit.changed = value == "yes",
                "UnitFileState" => unit.enabled = value.starts_with("enabled"),
                "ActiveState" => value.clone_into(&mut unit.active),
                "Result" => value.clone_into(&mut unit.result),
                "FragmentPath" => value.clone_into(&mut unit.fragment),
                "MainPID" => unit.main_pid = value.parse().unwrap_or(0),
                "NRestarts" => unit.restarts = value.parse().unwrap_or(0),
                "ExecMainStatus" => unit.exit_status = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        unit
    }

    /// Systemd has not read the file, or not as it is now.
    fn unread(&self) -> bool {
        self.changed || self.load == "not-found"
    }

    fn is_read_from(&self, file: &Path) -> bool {
        let read = std::fs::canonicalize(&self.fragment).ok();
        read.is_some() && read == std::fs::canonicalize(file).ok()
    }

    fn state(&self) -> ServiceState {
        match self.active.as_str() {
            "failed" => ServiceState::Failed(self.failure()),
            "" | "inactive" => ServiceState::Inactive,
            _ => ServiceState::Active { pid: Some(self.main_pid).filter(|pid| *pid > 0) },
        }
    }

    fn failure(&self) -> ServiceFailure {
        let restarts = self.restarts;
        let (result, status) = (&self.result, self.exit_status);
        if status == BAD_SETTINGS {
            // Better ones are reason enough to try again.
            let message =
                format!("the service has stopped: its settings were bad (status {status})");
            let details = "opta doctor";
            return ServiceFailure { message, details, gave_up: false, transient: false };
        }
        let message = match status {
            _ if restarts > 0 => {
                let s = if restarts == 1 { "" } else { "s" };
                let gave_up = "systemd has given up on the service after";
                format!("{gave_up} {restarts} restart{s} ({result})")
            }
            _ => format!("the service has failed ({result}, status {status})"),
        };
        // That another daemon was running is no failure of this one.
        let transient = restarts == 0 && status == 75;
        ServiceFailure { message, details: "opta daemon logs", gave_up: restarts > 0, transient }
    }
}

/// # Errors
/// [`Kind::ServiceManager`]: no user manager can be reached.
pub fn state() -> Result<ServiceState, Error> {
    unit().map(|unit| unit.state())
}

/// # Errors
/// As [`state`].
pub fn taken(file: &Path) -> Result<LoadState, Error> {
    let unit = unit()?;
    Ok(match unit.load.as_str() {
        "loaded" if !unit.unread() && unit.is_read_from(file) => {
            LoadState::In { state: unit.state(), enabled: unit.enabled }
        }
        "loaded" | "not-found" | "" => LoadState::Not,
        // Such as bad-setting; whether to read it again means nothing then.
        _ => LoadState::Refused(unit.load),
    })
}

fn unit() -> Result<Unit, Error> {
    systemctl(&["show", UNIT]).map(|answer| Unit::parse(&answer))
}

/// Makes systemd read the unit's file, and makes sure that it did.
pub fn register(file: &Path) -> Result<(), Error> {
    systemctl(&["daemon-reload"])?;
    if unit()?.is_read_from(file) {
        return Ok(());
    }
    let because = "systemd looks for it elsewhere: it has another XDG_CONFIG_HOME or HOME";
    Err(super::unservable(file, because))
}

/// Has it started at every login.
pub fn enable() -> Result<(), Error> {
    systemctl(&["enable", UNIT]).map(drop)
}

/// Makes sure that systemd could start it: that it has read the unit, and can use it.
///
/// # Errors
/// [`Kind::ServiceRefused`]; otherwise as [`state`].
pub fn check() -> Result<(), Error> {
    let mut unit = unit()?;
    if unit.unread() {
        systemctl(&["daemon-reload"])?;
        unit = self::unit()?;
    }
    match unit.load.as_str() {
        // What start says of a unit that is not there, says enough.
        "loaded" | "not-found" | "" => Ok(()),
        load => {
            let reason = format!("{} cannot use its service ({load})", Manager::Systemd.name());
            Err(Error::cannot(Kind::ServiceRefused, "start the daemon", reason)
                .with_next_step("to see what is wrong: opta doctor"))
        }
    }
}

/// Starts it, and returns when the daemon has said that it serves.
pub fn start() -> Result<(), Error> {
    check()?;
    reset_failed();
    systemctl(&["start", UNIT]).map(drop)
}

/// Stops it, also when it is waiting to be restarted; false if that has not come to an end within
/// `limit`. From inside the service it is only asked for: the end of the service is the caller's
/// too.
pub fn stop(limit: Duration) -> Result<bool, Error> {
    let mut arguments = vec!["--user", "stop", UNIT];
    if is_inside() {
        arguments.push("--no-block");
    }
    match manager_command::ask("systemctl", &arguments, limit)? {
        ManagerReply::Done(_) => Ok(true),
        ManagerReply::Late => Ok(false),
        ManagerReply::Refused { words, .. } => {
            Err(manager_command::failure("systemctl", &arguments, words))
        }
    }
}

/// Requests a restart without waiting for it: the caller, inside the service, ends with it.
pub fn restart_from_inside() -> Result<(), Error> {
    reset_failed();
    systemctl(&["restart", "--no-block", UNIT]).map(drop)
}

/// Forgets that it has failed, and how often it was started of late.
pub fn reset_failed() {
    // systemd refuses it for a unit that it has forgotten already, which is as good.
    drop(systemctl(&["reset-failed", UNIT]));
}

/// Stops it and has it started no more at login.
pub fn unregister() -> Result<(), Error> {
    systemctl(&["disable", "--now", UNIT]).map(drop)
}

/// Makes systemd forget a file that has gone.
pub fn forget() -> Result<(), Error> {
    systemctl(&["daemon-reload"])?;
    reset_failed();
    Ok(())
}

/// Removes the link by which the unit is enabled, for when there is no systemd to ask.
pub fn unlink(file: &Path) -> Result<(), Error> {
    let Some(directory) = file.parent().map(|parent| parent.join("default.target.wants")) else {
        return Ok(());
    };
    if disk::remove(&directory.join(UNIT))? {
        // It stays if other units are enabled in it.
        drop(std::fs::remove_dir(&directory));
    }
    Ok(())
}

/// Returns whether this process runs inside the service, as everything does that the daemon starts:
/// it ends when systemd stops the service.
pub fn is_inside() -> bool {
    names_unit(&cgroup())
}

/// Returns the text of /proc/self/cgroup (cgroups(7)), empty where there is none.
pub fn cgroup() -> String {
    std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// Returns whether `cgroup` names the unit: `0::/user.slice/…/opta-daemon.service`.
pub fn names_unit(cgroup: &str) -> bool {
    cgroup.lines().any(|line| line.rsplit('/').next() == Some(UNIT))
}

fn systemctl(arguments: &[&str]) -> Result<String, Error> {
    let arguments = [&["--user"], arguments].concat();
    manager_command::demand("systemctl", &arguments, limits::MANAGER_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_as_the_manual_shows_it() {
        let plan = Plan::example("/usr/local/bin/opta");
        let expected = format!(
            "# Written by opta {}: opta daemon install
# Changes of your own outlive an upgrade here: systemctl --user edit opta-daemon

[Unit]
Description=Opta daemon
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
ExecStart=\"/usr/local/bin/opta\" daemon start --foreground
Restart=on-failure
RestartSec=2
RestartPreventExitStatus=75 78
TimeoutStartSec=30
TimeoutStopSec=20
KillMode=mixed
OOMPolicy=continue
Environment=\"PATH=/home/u/.local/bin:/usr/bin\"
Environment=\"OPTA_HOME=/home/u/.config/opta\"

[Install]
WantedBy=default.target
",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(text(&plan).unwrap(), expected);
    }

    #[test]
    fn what_systemd_would_expand_is_doubled() {
        let mut plan = Plan::example("/opt/50% off/$HOME/öpta");
        plan.search_path = "/a\"b:/c\\d:/%h/$HOME".to_owned();
        let text = text(&plan).unwrap();
        assert!(text.contains("ExecStart=\"/opt/50%% off/$HOME/öpta\" daemon"), "{text}");
        assert!(text.contains(r#"Environment="PATH=/a\"b:/c\\d:/%%h/$HOME""#), "{text}");
    }

    #[test]
    fn what_a_unit_names_is_read_back() {
        let mut plan = Plan::example("/opt/50% off/$HOME/öpta%%");
        plan.search_path = "/a\\\"b:/c\\\\d:/%h/$HOME:/e\\%\"".to_owned();
        let named = named(&text(&plan).unwrap()).unwrap();
        assert_eq!((&named.program, &named.search_path), (&plan.program, &plan.search_path));
        assert_eq!(named.root, plan.root);
    }

    #[test]
    fn a_program_that_systemd_cannot_run_is_refused() {
        for path in ["/opt/o'pta", "/opt/o\"pta", "/opt/o\\pta"] {
            let error = text(&Plan::example(path)).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains("a quote or a backslash"), "{error}");
        }
    }

    #[test]
    fn lines_of_show_are_read_in_any_order() {
        let show = "NRestarts=5\nMainPID=0\nExecMainStatus=9\nLoadState=loaded\nResult=signal\n\
                    ActiveState=failed\nFragmentPath=/u/x=y\nNeedDaemonReload=no\n";
        let unit = Unit::parse(show);
        assert_eq!((unit.fragment.as_str(), unit.unread()), ("/u/x=y", false));
        let ServiceState::Failed(failure) = unit.state() else { panic!("not failed") };
        assert_eq!(
            failure.message,
            "systemd has given up on the service after 5 restarts (signal)"
        );
        assert!(failure.gave_up && !failure.transient);
        assert!(Unit::parse("LoadState=not-found").unread());
        assert!(Unit::parse("NeedDaemonReload=yes\nLoadState=loaded").unread());
        assert!(Unit::parse("UnitFileState=enabled").enabled);
        assert!(!Unit::parse("UnitFileState=disabled").enabled);
        assert!(matches!(Unit::parse("ActiveState=inactive").state(), ServiceState::Inactive));
        let active = Unit::parse("MainPID=7\nActiveState=active").state();
        assert!(matches!(active, ServiceState::Active { pid: Some(7) }));
        let waiting = Unit::parse("MainPID=0\nActiveState=activating").state();
        assert!(matches!(waiting, ServiceState::Active { pid: None }));
    }

    #[test]
    fn bad_settings_are_named_and_nothing_is_given_up_for_them() {
        for restarts in [0, 1] {
            let show =
                format!("NRestarts={restarts}\nExecMainStatus=78\nActiveState=failed\nResult=x");
            let ServiceState::Failed(failure) = Unit::parse(&show).state() else {
                panic!("not failed")
            };
            let words = "the service has stopped: its settings were bad (status 78)";
            assert_eq!((failure.message.as_str(), failure.details), (words, "opta doctor"));
            assert!(!failure.gave_up && !failure.transient);
        }
        let show = "NRestarts=1\nExecMainStatus=9\nActiveState=failed\nResult=signal";
        let ServiceState::Failed(failure) = Unit::parse(show).state() else { panic!("not failed") };
        assert_eq!(failure.message, "systemd has given up on the service after 1 restart (signal)");
    }

    #[test]
    fn that_another_daemon_was_running_is_no_failure() {
        let show = "NRestarts=0\nExecMainStatus=75\nActiveState=failed\nResult=exit-code";
        let ServiceState::Failed(failure) = Unit::parse(show).state() else { panic!("not failed") };
        assert!(failure.transient && !failure.gave_up);
    }
}
