//! The variables that are read. An empty one counts as unset.

use std::env;
use std::ffi::OsString;

use crate::sys;

/// Returns whether output to a terminal may be colored. <https://no-color.org>
pub fn color_allowed() -> bool {
    variable("NO_COLOR").is_none() && variable("TERM").is_none_or(|term| term != "dumb")
}

/// Returns whether the terminal says what it is, and has a cursor that can be moved. terminfo(5)
pub fn cursor_can_move() -> bool {
    variable("TERM").is_some_and(|term| !["dumb", "cons25", "emacs"].contains(&term.as_str()))
}

/// Returns the user's editor, a command for the shell: `VISUAL`, or `EDITOR`. environ(7)
pub fn editor() -> Option<String> {
    variable("VISUAL").or_else(|| variable("EDITOR"))
}

/// Returns the shell commands that open a browser on the user's screen, the preferred one first:
/// those in `BROWSER`, between colons, or those that desktops have. The error says why none would.
pub fn browsers() -> Result<Vec<String>, &'static str> {
    let named = variable("BROWSER").unwrap_or_default();
    let named = named.split(':').filter(|command| !command.trim().is_empty()).map(str::to_owned);
    let named: Vec<String> = named.collect();
    if !named.is_empty() {
        return Ok(named);
    }
    if variable("SSH_CONNECTION").is_some() {
        return Err("this is an ssh session");
    }
    let has_display = variable("DISPLAY").or_else(|| variable("WAYLAND_DISPLAY")).is_some();
    if !has_display && !sys::HAS_WINDOW_SERVER {
        return Err("there is no display");
    }
    Ok(vec!["xdg-open".to_owned(), "open".to_owned()])
}

/// The variables that a service manager sets for a process that it starts.
pub struct ManagerVariables {
    /// The process that systemd started as the service (`SYSTEMD_EXEC_PID`, systemd.exec(5)).
    pub service_pid: Option<String>,
    /// Where systemd expects notifications (`NOTIFY_SOCKET`, sd_notify(3)).
    pub notify_socket: Option<OsString>,
    /// The job that launchd started (`XPC_SERVICE_NAME`).
    pub label: Option<String>,
}

/// Returns the values of the manager's variables.
pub fn manager_variables() -> ManagerVariables {
    ManagerVariables {
        service_pid: variable("SYSTEMD_EXEC_PID"),
        notify_socket: raw_variable("NOTIFY_SOCKET"),
        label: variable("XPC_SERVICE_NAME"),
    }
}

/// Returns the directories in which the user's shell searches programs.
pub fn search_path() -> OsString {
    raw_variable("PATH").unwrap_or_default()
}

/// Returns the names and values of the variables whose names are wanted.
pub fn variables(
    is_inherited: impl Fn(&str) -> bool,
) -> impl Iterator<Item = (OsString, OsString)> {
    #[expect(clippy::disallowed_methods, reason = "this module and paths.rs read the environment")]
    let variables = env::vars_os();
    variables.filter(move |(name, _)| name.to_str().is_some_and(&is_inherited))
}

/// Returns the name and the value of a variable that is set.
pub fn in_variable(name: &str) -> Option<(String, String)> {
    variable(name).map(|value| (name.to_owned(), value))
}

/// Returns the value of a variable that has a lower-case name, too, which comes first.
pub fn proxy_variable(name: &str) -> Option<String> {
    variable(&name.to_ascii_lowercase()).or_else(|| variable(name))
}

/// Returns the value of a variable.
pub fn variable(name: &str) -> Option<String> {
    raw_variable(name).map(|value| value.to_string_lossy().into_owned())
}

fn raw_variable(name: &str) -> Option<OsString> {
    #[expect(clippy::disallowed_methods, reason = "this module and paths.rs read the environment")]
    env::var_os(name).filter(|value| !value.is_empty())
}
