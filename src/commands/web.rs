//! `opta web`: the page that the daemon serves, in the user's browser.
//!
//! The token is in no argument: the browser gets a private file that leads on to the page.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use crate::client::Failure;
use crate::commands::{Output, daemon_notes};
use crate::config::{self, Config};
use crate::error::{Error, Kind};
use crate::lifecycle::guardian;
use crate::limits;
use crate::lock::StartLock;
use crate::paths::Paths;
use crate::state::{self, DaemonInfo};
use crate::sys::child;
use crate::sys::process::Process;

/// The file that leads on to the page.
const LEAD: &str = r#"<!doctype html>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url=@url@">
<title>opta</title>
<p><a href="@url@">Open opta</a>
"#;

/// Opens the page in a browser, or prints its URL: if the user asks for it, or no browser can be
/// opened here.
pub fn run(paths: &Paths, print: bool, output: &Output) -> Result<ExitCode, Error> {
    let config = Config::load(&paths.config())?;
    let openers = if print { Ok(Vec::new()) } else { config::browsers() };
    let writes = matches!(&openers, Ok(openers) if !openers.is_empty());
    let notify = |daemon: &guardian::Ensured| {
        daemon_notes(daemon).iter().for_each(|note| output.note(note));
    };
    let (port, url) = guardian::reach(paths, &config, notify, |info| {
        let url = format!("http://127.0.0.1:{}/#token={}", info.port, info.token.secret());
        if writes {
            write_lead(paths, info, &url)?;
        }
        Ok((info.port, url))
    })?;
    let why = match openers {
        Ok(openers) if openers.is_empty() => None,
        Ok(openers) => match openers.iter().find(|opener| open(opener, &paths.open_page())) {
            Some(opener) => {
                output.line(&format!("Opened http://127.0.0.1:{port}/ with {opener}"))?;
                output.note("if the browser cannot read the file: opta web --print");
                return Ok(ExitCode::SUCCESS);
            }
            None => Some(format!("no browser could be opened with {}", openers.join(" or "))),
        },
        Err(why) => Some(why.to_owned()),
    };
    if let Some(why) = why {
        output.note(&format!("{why}; to see the page, open this URL in a browser"));
        output.note(&format!(
            "from another machine, first run there: ssh -L {port}:127.0.0.1:{port} HOST"
        ));
    }
    output.line(&url)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the file that leads on to the page.
fn write_lead(paths: &Paths, info: &DaemonInfo, url: &str) -> Result<(), Failure> {
    let one_writer = StartLock::acquire(paths, limits::START_LOCK_MAX).map_err(Failure::Final)?;
    let page = LEAD.replace("@url@", url);
    let is_published = state::publish_page(paths, info, &page).map_err(Failure::Final)?;
    drop(one_writer);
    if is_published {
        return Ok(());
    }
    let reason = "the daemon has stopped meanwhile";
    Err(Failure::Lost(Error::cannot(Kind::StoppedMeanwhile, "open the page", reason)))
}

/// Has a command of the shell open the file in a browser. Returns false if it fails at once; a
/// browser may run as long as the user likes.
fn open(opener: &str, path: &Path) -> bool {
    let mut shell = Command::new("sh");
    shell.args(["-c", &with_url(opener, &file_url(path))]);
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    child::unblock_signals(&mut shell);
    let Ok(mut child) = shell.spawn() else { return false };
    let exited = match i32::try_from(child.id()).map(Process::open) {
        Ok(Ok(Some(process))) => {
            process.wait(limits::BROWSER_MAX, limits::EXIT_POLL_INTERVAL).unwrap_or(false)
        }
        Ok(Ok(None)) => true,
        // Whether it runs is unknown, and waiting would have no limit.
        _ => false,
    };
    !exited || child.wait().is_ok_and(|status| status.success())
}

/// Returns a command with a URL in place of each `%s`, or at its end, and a percent sign in place
/// of each `%%`. The URL has no characters with a meaning for the shell, whatever the quotes.
fn with_url(opener: &str, url: &str) -> String {
    let parts: Vec<&str> = opener.split("%%").collect();
    let replaced: Vec<String> = parts.iter().map(|part| part.replace("%s", url)).collect();
    let command = replaced.join("%");
    if parts.iter().any(|part| part.contains("%s")) { command } else { format!("{command} {url}") }
}

/// Returns the URL of a file. RFC 8089.
fn file_url(path: &Path) -> String {
    let mut url = "file://".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                url.push(char::from(*byte));
            }
            // Writing to a string does not fail.
            _ => drop(write!(url, "%{byte:02X}")),
        }
    }
    url
}
