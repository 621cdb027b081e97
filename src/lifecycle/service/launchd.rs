//! The service as a job of the user's launchd: its text, and what is asked of `launchctl`.
//!
//! `KeepAlive` is true, so launchd starts the job again after any exit, whatever its status. To
//! stop it is to unload it, until the next login.

use std::path::Path;
use std::time::{Duration, Instant};

use super::drift::{LoadState, UnitFields};
use super::manager_command::{self, ManagerReply};
use super::{Plan, ServiceState};
use crate::error::{Doing, Error};
use crate::{limits, sys};

/// The job's name.
pub const LABEL: &str = "com.opta.daemon";

/// The job's text. launchd.plist(5)
pub fn text(plan: &Plan) -> String {
    let (mark, program) = (plan.mark(), escaped(&plan.program));
    let (path, home) = (escaped(&plan.search_path), home_entry(&plan.root));
    let (out, err) = (escaped(&plan.output), escaped(&plan.errors));
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN"
  "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<!-- {mark} -->
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

/// The entry by which a job serves this home and no other.
pub fn home_entry(root: &str) -> String {
    format!("<key>OPTA_HOME</key>\n    <string>{}</string>", escaped(root))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// What a text of [`text`]'s names, if it has all of it.
pub fn named(text: &str) -> Option<UnitFields> {
    let after = |key: &str| {
        let (_, rest) = text.split_once(&format!("<key>{key}</key>"))?;
        let (_, rest) = rest.split_once("<string>")?;
        let (value, _) = rest.split_once("</string>")?;
        Some(value.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    };
    let (program, search_path) = (after("ProgramArguments")?, after("PATH")?);
    Some(UnitFields { program, search_path, root: after("OPTA_HOME")? })
}

/// What `launchctl print` ends with when there is no such domain, as over ssh without a desktop.
const NO_DOMAIN: [i32; 2] = [112, 125];
/// What `launchctl bootstrap` ends with while launchd has not yet forgotten the job of before.
const NOT_YET: i32 = 5;

/// # Errors
/// `Kind::ServiceManager`: this user has no session in which jobs could run.
pub fn state() -> Result<ServiceState, Error> {
    let (target, limit) = (target(), limits::MANAGER_MAX);
    let arguments = ["print", &target];
    match manager_command::ask("launchctl", &arguments, limit)? {
        ManagerReply::Done(text) => Ok(ServiceState::Active { pid: pid_in(&text) }),
        ManagerReply::Refused { status: Some(status), words } if NO_DOMAIN.contains(&status) => {
            Err(manager_command::failure("launchctl", &arguments, words))
        }
        ManagerReply::Refused { .. } => Ok(ServiceState::Inactive),
        ManagerReply::Late => {
            let said = format!("no answer in {}s", limit.as_secs());
            Err(manager_command::failure("launchctl", &arguments, said))
        }
    }
}

/// What is loaded is started at every login, too.
///
/// # Errors
/// As [`state`].
pub fn taken() -> Result<LoadState, Error> {
    Ok(match state()? {
        ServiceState::Inactive => LoadState::Not,
        state => LoadState::In { state, enabled: true },
    })
}

/// `launchctl print` promises no form; this line has been in it since launchctl 2.
fn pid_in(text: &str) -> Option<i32> {
    text.lines().find_map(|line| line.trim().strip_prefix("pid = ")?.parse().ok())
}

/// Has launchd run the job, now and at every login.
pub fn register(file: &Path) -> Result<(), Error> {
    // One that was disabled, once, by hand would be refused without a reason.
    launchctl(&["enable", &target()])?;
    let (domain, file) = (domain(), file.to_string_lossy());
    let arguments = ["bootstrap", &domain, &file];
    let mut tries = 1;
    let mut pause = limits::LAUNCHD_PAUSE;
    loop {
        match manager_command::ask("launchctl", &arguments, limits::MANAGER_MAX)? {
            ManagerReply::Done(_) => return Ok(()),
            ManagerReply::Refused { status: Some(NOT_YET), .. }
                if tries < limits::LAUNCHD_TRIES => {}
            ManagerReply::Refused { words, .. } => {
                return Err(manager_command::failure("launchctl", &arguments, words));
            }
            ManagerReply::Late => {
                let said = format!("no answer in {}s", limits::MANAGER_MAX.as_secs());
                return Err(manager_command::failure("launchctl", &arguments, said));
            }
        }
        let [] = sys::wait_readable([], Some(pause)).doing("wait for launchd")?;
        tries += 1;
        pause *= 2;
    }
}

/// Starts it, and returns at once.
pub fn start(file: &Path) -> Result<(), Error> {
    if let ServiceState::Inactive = state()? {
        register(file)?;
    }
    launchctl(&["kickstart", &target()]).map(drop)
}

/// Unloads it, which ends it and keeps it from being started again before the next login; false if
/// it has not gone within `limit`.
pub fn unregister(limit: Duration) -> Result<bool, Error> {
    let deadline = Instant::now() + limit;
    // What it ends with is no news: a job that is slow to end, or has gone already, makes it fail
    // too.
    if let ManagerReply::Late = manager_command::ask("launchctl", &["bootout", &target()], limit)? {
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

/// The domain of the user's desktop session.
fn domain() -> String {
    format!("gui/{}", sys::effective_user())
}

fn target() -> String {
    format!("{}/{LABEL}", domain())
}

fn launchctl(arguments: &[&str]) -> Result<String, Error> {
    manager_command::demand("launchctl", arguments, limits::MANAGER_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_is_as_the_manual_shows_it() {
        let text = text(&Plan::example("/usr/local/bin/opta"));
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
    fn what_xml_would_take_for_its_own_is_escaped() {
        let text = text(&Plan::example("/Users/a & b/<opta>"));
        assert!(text.contains("<string>/Users/a &amp; b/&lt;opta&gt;</string>"), "{text}");
    }

    #[test]
    fn what_a_job_names_is_read_back() {
        let mut plan = Plan::example("/Users/a & b/<opta>&amp;lt;");
        plan.search_path = "/usr/bin:/a&b".to_owned();
        let named = named(&text(&plan)).unwrap();
        assert_eq!((&named.program, &named.search_path), (&plan.program, &plan.search_path));
        assert_eq!(named.root, plan.root);
    }

    #[test]
    fn the_pid_is_found_in_what_print_says() {
        let text = "gui/501/com.opta.daemon = {\n\tstate = running\n\n\tpid = 4711\n\tx = {}\n}\n";
        assert_eq!(pid_in(text), Some(4711));
        assert_eq!(pid_in("\tstate = waiting\n\tlast exit code = 0\n"), None);
    }
}
