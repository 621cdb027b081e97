//! The service as a unit of the user's systemd: its text, and the calls of `systemctl --user`.
//!
//! The unit sandboxes nothing: a user manager ignores most of those settings, and every command
//! that a session runs would inherit the others.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::manager_command::{self, ManagerReply};
use super::unit::{self, LoadState, MARK_LINE, ServiceFailure, ServiceState, UnitFields};
use crate::error::{Error, Kind};
use crate::{disk, limits, paths};

/// The unit's name.
pub const UNIT: &str = "opta-daemon.service";

/// Returns the unit's text. systemd.service(5), systemd.unit(5)
///
/// # Errors
/// [`Kind::UnservablePath`]: systemd cannot run a program with such a path, however it is quoted.
pub fn text(fields: &UnitFields) -> Result<String, Error> {
    if fields.program.contains(['"', '\'', '\\']) {
        let reason = "systemd runs no program with a quote or a backslash in its path";
        return Err(unit::unservable(Path::new(&fields.program), reason));
    }
    // Unlike in arguments, `$` is not special in the program's path.
    let program = fields.program.replace('%', "%%");
    let (path, home) = (assignment("PATH", &fields.search_path), home_line(&fields.root));
    Ok(format!(
        "\
# {MARK_LINE}
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

/// The daemon itself notifies that it is ready. The limits of a crash loop belong to the unit.
const READY: &str = "
[Unit]
Description=Opta daemon
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main";

/// 75: another daemon holds the lock; 78: the settings are invalid. A restart would change neither.
/// `mixed`: the daemon ends its tools itself, systemd kills the rest. OOMPolicy: a tool that takes
/// too much memory does not end the daemon.
const LIFE: &str = "\
Restart=on-failure
RestartSec=2
RestartPreventExitStatus=75 78
TimeoutStartSec=30
TimeoutStopSec=20
KillMode=mixed
OOMPolicy=continue";

/// EX_TEMPFAIL of sysexits.h.
const LOCK_HELD: i32 = 75;
/// EX_CONFIG of sysexits.h.
const INVALID_SETTINGS: i32 = 78;

/// Returns the line that makes a unit serve the home at `root`.
pub fn home_line(root: &str) -> String {
    assignment("OPTA_HOME", root)
}

fn assignment(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    format!("Environment=\"{name}={value}\"")
}

fn unescape(value: &str) -> String {
    value.replace("%%", "%").replace("\\\"", "\"").replace("\\\\", "\\")
}

/// Parses the fields of a unit that [`text`] wrote; `None` unless it has all of them.
pub fn fields(text: &str) -> Option<UnitFields> {
    let between = |before: &str, after: &str| {
        text.lines().find_map(|line| line.strip_prefix(before)?.strip_suffix(after))
    };
    let value = |name: &str| between(&format!("Environment=\"{name}="), "\"").map(unescape);
    let program = between("ExecStart=\"", "\" daemon start --foreground")?.replace("%%", "%");
    Some(UnitFields { program, search_path: value("PATH")?, root: value("OPTA_HOME")? })
}

/// The unit's properties, as `systemctl show` prints them.
struct Properties(HashMap<String, String>);

impl Properties {
    fn query() -> Result<Properties, Error> {
        systemctl(&["show", UNIT]).map(|output| Properties::parse(&output))
    }

    fn parse(output: &str) -> Properties {
        let pairs = output.lines().filter_map(|line| line.split_once('='));
        Properties(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> i32 {
        self.get(name).parse().unwrap_or(0)
    }

    /// Returns whether systemd has not read the file, or not since it changed.
    fn needs_reload(&self) -> bool {
        self.get("NeedDaemonReload") == "yes" || self.get("LoadState") == "not-found"
    }

    fn is_read_from(&self, file: &Path) -> bool {
        let fragment = std::fs::canonicalize(self.get("FragmentPath")).ok();
        fragment.is_some() && fragment == std::fs::canonicalize(file).ok()
    }

    /// Returns systemd's word for why it cannot use the unit, such as bad-setting.
    fn rejected(&self) -> Option<&str> {
        Some(self.get("LoadState")).filter(|word| !matches!(*word, "loaded" | "not-found" | ""))
    }

    fn load_state(&self, file: &Path) -> LoadState {
        if let Some(word) = self.rejected() {
            return LoadState::Rejected(word.to_owned());
        }
        let current = self.get("LoadState") == "loaded" && !self.needs_reload();
        if !(current && self.is_read_from(file)) {
            return LoadState::NotLoaded;
        }
        let enabled = self.get("UnitFileState").starts_with("enabled");
        LoadState::Loaded { state: self.state(), enabled }
    }

    fn state(&self) -> ServiceState {
        match self.get("ActiveState") {
            "failed" => ServiceState::Failed(self.failure()),
            "" | "inactive" => ServiceState::Inactive,
            _ => ServiceState::Active { pid: Some(self.number("MainPID")).filter(|pid| *pid > 0) },
        }
    }

    fn failure(&self) -> ServiceFailure {
        let (restarts, status) = (self.number("NRestarts"), self.number("ExecMainStatus"));
        let (result, invalid) = (self.get("Result"), status == INVALID_SETTINGS);
        let message = match restarts {
            _ if invalid => {
                format!("the service stopped: its settings are invalid (status {status})")
            }
            0 => format!("the service failed ({result}, status {status})"),
            1 => format!("systemd gave up on the service after 1 restart ({result})"),
            _ => format!("systemd gave up on the service after {restarts} restarts ({result})"),
        };
        ServiceFailure {
            message,
            details: if invalid { "opta doctor" } else { "opta daemon logs" },
            // With corrected settings, another start may succeed.
            gave_up: restarts > 0 && !invalid,
            transient: restarts == 0 && status == LOCK_HELD,
        }
    }
}

/// Returns the state of the unit.
///
/// # Errors
/// [`Kind::ServiceManager`]: no user manager can be reached.
pub fn state() -> Result<ServiceState, Error> {
    Properties::query().map(|unit| unit.state())
}

/// Returns whether systemd has loaded the unit's file.
///
/// # Errors
/// As [`state`].
pub fn load_state(file: &Path) -> Result<LoadState, Error> {
    Properties::query().map(|unit| unit.load_state(file))
}

/// Makes systemd read the unit's file, and checks that it did.
pub fn register(file: &Path) -> Result<(), Error> {
    systemctl(&["daemon-reload"])?;
    if Properties::query()?.is_read_from(file) {
        return Ok(());
    }
    let reason = "systemd looks for it elsewhere: it has another XDG_CONFIG_HOME or HOME";
    Err(unit::unservable(file, reason))
}

/// Makes systemd start it at every login.
pub fn enable() -> Result<(), Error> {
    systemctl(&["enable", UNIT]).map(drop)
}

/// Checks that systemd has read the unit and can use it; a missing unit passes, since the start
/// reports it.
///
/// # Errors
/// [`Kind::ServiceRefused`]; otherwise as [`state`].
pub fn check() -> Result<(), Error> {
    let mut unit = Properties::query()?;
    if unit.needs_reload() {
        systemctl(&["daemon-reload"])?;
        unit = Properties::query()?;
    }
    unit.rejected().map_or(Ok(()), |word| {
        let reason = format!("systemd cannot use its service ({word})");
        Err(Error::cannot(Kind::ServiceRefused, "start the daemon", reason)
            .with_next_step("to see what is wrong: opta doctor"))
    })
}

/// Starts it, and returns once the daemon has notified that it is ready.
pub fn start() -> Result<(), Error> {
    check()?;
    reset_failed();
    systemctl(&["start", UNIT]).map(drop)
}

/// Stops it, even if it waits to be restarted; returns false if that takes longer than `limit`.
///
/// From inside the service it only requests the stop, which ends the caller too.
pub fn stop(limit: Duration) -> Result<bool, Error> {
    let no_block: &[&str] = if is_inside() { &["--no-block"] } else { &[] };
    match run(&[&["stop", UNIT], no_block].concat(), limit)? {
        ManagerReply::TimedOut(_) => Ok(false),
        reply => reply.output().map(|_| true),
    }
}

/// Requests a restart without waiting for it: the caller, inside the service, ends with it.
pub fn restart_from_inside() -> Result<(), Error> {
    reset_failed();
    systemctl(&["restart", "--no-block", UNIT]).map(drop)
}

/// Resets the failed state and the counter of starts.
pub fn reset_failed() {
    // systemd refuses it for a unit that it has unloaded, which is just as good.
    drop(systemctl(&["reset-failed", UNIT]));
}

/// Stops it, and no longer starts it at login.
pub fn unregister() -> Result<(), Error> {
    systemctl(&["disable", "--now", UNIT]).map(drop)
}

/// Makes systemd unload a unit whose file was removed.
pub fn unload() -> Result<(), Error> {
    systemctl(&["daemon-reload"])?;
    reset_failed();
    Ok(())
}

/// Removes the symbolic link that enables the unit, for when systemd cannot be reached.
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
    run(arguments, limits::MANAGER_MAX)?.output()
}

fn run(arguments: &[&str], limit: Duration) -> Result<ManagerReply, Error> {
    let mut command = Command::new("systemctl");
    command.arg("--user").args(arguments);
    if let Some(directory) = paths::unnamed_runtime_directory() {
        command.env("XDG_RUNTIME_DIR", directory).env_remove("DBUS_SESSION_BUS_ADDRESS");
    }
    manager_command::run(command, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_in_the_manual() {
        let fields = UnitFields::example("/usr/local/bin/opta");
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
        assert_eq!(text(&fields).unwrap(), expected);
    }

    #[test]
    fn percent_signs_quotes_and_backslashes_are_escaped() {
        let mut fields = UnitFields::example("/opt/50% off/$HOME/öpta");
        fields.search_path = "/a\"b:/c\\d:/%h/$HOME".to_owned();
        let text = text(&fields).unwrap();
        assert!(text.contains("ExecStart=\"/opt/50%% off/$HOME/öpta\" daemon"), "{text}");
        assert!(text.contains(r#"Environment="PATH=/a\"b:/c\\d:/%%h/$HOME""#), "{text}");
    }

    #[test]
    fn the_fields_of_a_text_are_parsed() {
        let mut written = UnitFields::example("/opt/50% off/$HOME/öpta%%");
        written.search_path = "/a\\\"b:/c\\\\d:/%h/$HOME:/e\\%\"".to_owned();
        let parsed = fields(&text(&written).unwrap()).unwrap();
        assert_eq!(
            (&parsed.program, &parsed.search_path),
            (&written.program, &written.search_path)
        );
        assert_eq!(parsed.root, written.root);
    }

    #[test]
    fn a_program_that_systemd_cannot_run_is_refused() {
        for path in ["/opt/o'pta", "/opt/o\"pta", "/opt/o\\pta"] {
            let error = text(&UnitFields::example(path)).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains("a quote or a backslash"), "{error}");
        }
    }

    #[test]
    fn properties_are_parsed_in_any_order() {
        let show = "NRestarts=5\nMainPID=0\nExecMainStatus=9\nLoadState=loaded\nResult=signal\n\
                    ActiveState=failed\nFragmentPath=/u/x=y\nNeedDaemonReload=no\n";
        let unit = Properties::parse(show);
        assert_eq!((unit.get("FragmentPath"), unit.needs_reload()), ("/u/x=y", false));
        let ServiceState::Failed(failure) = unit.state() else { panic!("not failed") };
        assert_eq!(failure.message, "systemd gave up on the service after 5 restarts (signal)");
        assert!(failure.gave_up && !failure.transient);
        assert!(Properties::parse("LoadState=not-found").needs_reload());
        assert!(Properties::parse("NeedDaemonReload=yes\nLoadState=loaded").needs_reload());
        assert!(matches!(
            Properties::parse("ActiveState=inactive").state(),
            ServiceState::Inactive
        ));
        let active = Properties::parse("MainPID=7\nActiveState=active").state();
        assert!(matches!(active, ServiceState::Active { pid: Some(7) }));
        let waiting = Properties::parse("MainPID=0\nActiveState=activating").state();
        assert!(matches!(waiting, ServiceState::Active { pid: None }));
    }

    #[test]
    fn a_unit_is_loaded_if_systemd_has_read_this_file_and_can_use_it() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"));
        let load_state = |more: &str| {
            let shown = format!("LoadState=loaded\nFragmentPath={}\n{more}", file.display());
            Properties::parse(&shown).load_state(file)
        };
        for (shown, expected) in [("enabled", true), ("enabled-runtime", true), ("disabled", false)]
        {
            let LoadState::Loaded { enabled, .. } = load_state(&format!("UnitFileState={shown}"))
            else {
                panic!("not loaded")
            };
            assert_eq!(enabled, expected, "{shown}");
        }
        for other in ["NeedDaemonReload=yes", "FragmentPath=/", "FragmentPath=", "LoadState="] {
            assert!(matches!(load_state(other), LoadState::NotLoaded), "{other}");
        }
        let rejected = load_state("LoadState=bad-setting");
        assert!(matches!(rejected, LoadState::Rejected(word) if word == "bad-setting"));
    }

    #[test]
    fn invalid_settings_are_not_a_reason_to_give_up() {
        for restarts in [0, 1] {
            let show =
                format!("NRestarts={restarts}\nExecMainStatus=78\nActiveState=failed\nResult=x");
            let ServiceState::Failed(failure) = Properties::parse(&show).state() else {
                panic!("not failed")
            };
            let message = "the service stopped: its settings are invalid (status 78)";
            assert_eq!((failure.message.as_str(), failure.details), (message, "opta doctor"));
            assert!(!failure.gave_up && !failure.transient);
        }
        let show = "NRestarts=1\nExecMainStatus=9\nActiveState=failed\nResult=signal";
        let ServiceState::Failed(failure) = Properties::parse(show).state() else {
            panic!("not failed")
        };
        assert_eq!(failure.message, "systemd gave up on the service after 1 restart (signal)");
    }

    #[test]
    fn that_another_daemon_was_running_is_no_failure() {
        let show = "NRestarts=0\nExecMainStatus=75\nActiveState=failed\nResult=exit-code";
        let ServiceState::Failed(failure) = Properties::parse(show).state() else {
            panic!("not failed")
        };
        assert!(failure.transient && !failure.gave_up);
    }
}
