//! The service as a job of the user's launchd: its text, and the calls of `launchctl`.
//!
//! With `KeepAlive`, launchd restarts the job after every exit, whatever its status. To stop it is
//! to unload it, until the next login.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::manager_command::{self, ManagerReply};
use super::unit::{LoadState, MARK_LINE, ServiceState, UnitFields};
use crate::error::{Doing, Error};
use crate::{limits, paths, sys};

/// The job's name.
pub const LABEL: &str = "com.opta.daemon";

/// Returns the job's text. launchd.plist(5)
pub fn text(fields: &UnitFields) -> String {
    let (program, path) = (escape(&fields.program), escape(&fields.search_path));
    let home = home_entry(&fields.root);
    let below = |name| escape(&Path::new(&fields.root).join(name).to_string_lossy());
    let (out, err) = (below(paths::LAUNCHD_OUTPUT), below(paths::LAUNCHD_ERRORS));
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN"
  "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<!-- {MARK_LINE} -->
<plist version="1.0">
<dict>
  <key>Label</key>
  <string>{LABEL}</string>
  <key>ProgramArguments</key>
  <array>
    <string>{program}</string>
    <string>daemon</string>
    <string>start</string>
    <string>--foreground</string>
  </array>
  <key>RunAtLoad</key>
  <true/>
  <key>KeepAlive</key>
  <true/>
  <key>ProcessType</key>
  <string>Interactive</string>
  <key>StandardOutPath</key>
  <string>{out}</string>
  <key>StandardErrorPath</key>
  <string>{err}</string>
  <key>EnvironmentVariables</key>
  <dict>
    <key>PATH</key>
    <string>{path}</string>
    {home}
  </dict>
</dict>
</plist>
"#
    )
}

/// Returns the entry that makes a job serve the home at `root`.
pub fn home_entry(root: &str) -> String {
    format!("<key>OPTA_HOME</key>\n    <string>{}</string>", escape(root))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Parses the fields of a job that [`text`] wrote; `None` unless it has all of them.
pub fn fields(text: &str) -> Option<UnitFields> {
    let value = |key: &str| {
        let (_, rest) = text.split_once(&format!("<key>{key}</key>"))?;
        let (_, rest) = rest.split_once("<string>")?;
        let (value, _) = rest.split_once("</string>")?;
        Some(value.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    };
    let (program, search_path) = (value("ProgramArguments")?, value("PATH")?);
    Some(UnitFields { program, search_path, root: value("OPTA_HOME")? })
}

/// The exit statuses of `launchctl print` if the domain does not exist: over ssh without a desktop.
const NO_DOMAIN: [i32; 2] = [112, 125];
/// The exit status of `launchctl bootstrap` until launchd has unloaded the previous job.
const STILL_LOADED: i32 = 5;

/// Returns the state of the job.
///
/// # Errors
/// `Kind::ServiceManager`: this user has no session in which jobs could run.
pub fn state() -> Result<ServiceState, Error> {
    match run(&["print", &target()], limits::MANAGER_MAX)? {
        ManagerReply::Failure { status, .. } if !status.is_some_and(|s| NO_DOMAIN.contains(&s)) => {
            Ok(ServiceState::Inactive)
        }
        reply => Ok(ServiceState::Active { pid: pid_in(&reply.output()?) }),
    }
}

/// Returns whether launchd has loaded the job. A loaded job is also started at every login.
///
/// # Errors
/// As [`state`].
pub fn load_state() -> Result<LoadState, Error> {
    Ok(match state()? {
        ServiceState::Inactive => LoadState::NotLoaded,
        state => LoadState::Loaded { state, enabled: true },
    })
}

/// Finds the pid in the output of `launchctl print`. No format is promised; this line has been in
/// it since launchctl 2.
fn pid_in(text: &str) -> Option<i32> {
    text.lines().find_map(|line| line.trim().strip_prefix("pid = ")?.parse().ok())
}

/// Makes launchd run the job, now and at every login.
pub fn register(file: &Path) -> Result<(), Error> {
    // A job that was once disabled by hand would be refused without a reason.
    launchctl(&["enable", &target()])?;
    let mut pause = limits::LAUNCHD_PAUSE;
    for _ in 1..limits::LAUNCHD_TRIES {
        match bootstrap(file)? {
            ManagerReply::Failure { status: Some(STILL_LOADED), .. } => {}
            reply => return reply.output().map(drop),
        }
        let [] = sys::wait_readable([], Some(pause)).doing("wait for launchd")?;
        pause *= 2;
    }
    bootstrap(file)?.output().map(drop)
}

fn bootstrap(file: &Path) -> Result<ManagerReply, Error> {
    run(&["bootstrap", &domain(), &file.to_string_lossy()], limits::MANAGER_MAX)
}

/// Starts it, and returns immediately.
pub fn start(file: &Path) -> Result<(), Error> {
    if let ServiceState::Inactive = state()? {
        register(file)?;
    }
    launchctl(&["kickstart", &target()])
}

/// Unloads it, which ends it and prevents a restart before the next login; returns false if it is
/// still loaded after `limit`.
pub fn unregister(limit: Duration) -> Result<bool, Error> {
    let deadline = Instant::now() + limit;
    // The exit status is ignored: a job that exits slowly or was not loaded is a failure, too.
    if let ManagerReply::TimedOut(_) = run(&["bootout", &target()], limit)? {
        return Ok(false);
    }
    let mut pause = limits::LAUNCHD_PAUSE;
    while let ServiceState::Active { .. } = state()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let [] = sys::wait_readable([], Some(pause.min(left))).doing("wait for launchd")?;
        pause *= 2;
    }
    Ok(true)
}

/// Returns the domain of the user's desktop session.
fn domain() -> String {
    format!("gui/{}", sys::effective_user())
}

fn target() -> String {
    format!("{}/{LABEL}", domain())
}

fn launchctl(arguments: &[&str]) -> Result<(), Error> {
    run(arguments, limits::MANAGER_MAX)?.output().map(drop)
}

fn run(arguments: &[&str], limit: Duration) -> Result<ManagerReply, Error> {
    let mut command = Command::new("launchctl");
    command.args(arguments);
    manager_command::run(command, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_in_the_manual() {
        let text = text(&UnitFields::example("/usr/local/bin/opta"));
        let begins = r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN"
  "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
"#;
        assert!(text.starts_with(begins), "{text}");
        let seed = r"<plist version=&1.0&>
<dict>
  <key>Label</key>
  <string>com.opta.daemon</string>
  <key>ProgramArguments</key>
  <array>
    <string>/usr/local/bin/opta</string>
    <string>daemon</string>
    <string>start</string>
    <string>--foreground</string>
  </array>
  <key>RunAtLoad</key>
  <true/>
  <key>KeepAlive</key>
  <true/>
";
        assert!(text.contains(&seed.replace('&', "\"")), "{text}");
    }

    #[test]
    fn xml_special_characters_are_escaped() {
        let text = text(&UnitFields::example("/Users/a & b/<opta>"));
        assert!(text.contains("<string>/Users/a &amp; b/&lt;opta&gt;</string>"), "{text}");
    }

    #[test]
    fn the_fields_of_a_text_are_parsed() {
        let mut written = UnitFields::example("/Users/a & b/<opta>&amp;lt;");
        written.search_path = "/usr/bin:/a&b".to_owned();
        let parsed = fields(&text(&written)).unwrap();
        assert_eq!(
            (&parsed.program, &parsed.search_path),
            (&written.program, &written.search_path)
        );
        assert_eq!(parsed.root, written.root);
    }

    #[test]
    fn the_pid_is_found_in_the_output_of_print() {
        let text = "gui/501/com.opta.daemon = {\n\tstate = running\n\n\tpid = 4711\n\tx = {}\n}\n";
        assert_eq!(pid_in(text), Some(4711));
        assert_eq!(pid_in("\tstate = waiting\n\tlast exit code = 0\n"), None);
    }
}
