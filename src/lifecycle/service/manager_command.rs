//! One call of a manager's program: a deadline, and its own words where it fails.

use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Doing, Error, Kind, reason};
use crate::sys::process::Process;
use crate::{limits, sys, text};

/// What came of a call.
pub enum ManagerReply {
    /// It ended with 0, and said this.
    Done(String),
    /// It ended otherwise, and said this, in one line.
    Refused { status: Option<i32>, words: String },
    /// It had not ended by the deadline, and has been killed.
    Late,
}

/// Runs `program`, found by PATH, without input; its output and errors are one text.
///
/// # Errors
/// [`Kind::ServiceManager`] if it cannot be run at all.
pub fn ask(
    program: &'static str,
    arguments: &[&str],
    limit: Duration,
) -> Result<ManagerReply, Error> {
    const WHAT: &str = "listen to a program";
    let deadline = Instant::now() + limit;
    let (reader, writer) = io::pipe().doing(WHAT)?;
    let errors = writer.try_clone().doing(WHAT)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(writer).stderr(errors);
    let spawned = command.spawn();
    // It has the other end of the pipe, which would never seem to be closed.
    drop(command);
    let mut child = spawned.map_err(|cause| failure(program, arguments, reason(&cause)))?;
    let text = listen(reader, deadline).doing(WHAT)?;
    let pid = i32::try_from(child.id()).unwrap_or(0);
    let left = deadline.saturating_duration_since(Instant::now());
    let ended = match Process::open(pid).doing(WHAT)? {
        Some(process) => process.wait(left).doing(WHAT)?,
        None => true,
    };
    if !ended {
        child.kill().doing(WHAT)?;
    }
    let status = child.wait().doing(WHAT)?;
    Ok(match status.code() {
        _ if !ended => ManagerReply::Late,
        Some(0) => ManagerReply::Done(text),
        status => ManagerReply::Refused { status, words: words(&text, status) },
    })
}

/// The same where anything but 0 is a failure.
///
/// # Errors
/// [`Kind::ServiceManager`] with the program's own words.
pub fn demand(program: &'static str, arguments: &[&str], limit: Duration) -> Result<String, Error> {
    let said = match ask(program, arguments, limit)? {
        ManagerReply::Done(text) => return Ok(text),
        ManagerReply::Refused { words, .. } => words,
        ManagerReply::Late => format!("no answer in {}s", limit.as_secs()),
    };
    Err(failure(program, arguments, said))
}

/// The failure of a call, as a sentence.
pub fn failure(program: &str, arguments: &[&str], said: String) -> Error {
    Error::cannot(Kind::ServiceManager, format!("run {program} {}", arguments.join(" ")), said)
}

/// Everything that is said until the other end is closed, or the deadline over.
fn listen(mut reader: PipeReader, deadline: Instant) -> io::Result<String> {
    let mut text = Vec::new();
    let mut chunk = [0_u8; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let [readable] = sys::wait_readable([reader.as_fd()], Some(left))?;
        let count = if readable { reader.read(&mut chunk)? } else { 0 };
        if count == 0 {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
        let room = limits::MANAGER_WORDS_BYTES_MAX - text.len();
        text.extend_from_slice(chunk.get(..count.min(room)).unwrap_or_default());
    }
}

fn words(text: &str, status: Option<i32>) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match status {
        _ if !lines.is_empty() => text::escaped(&lines.join(" ")),
        Some(status) => format!("it ended with status {status}, without a word"),
        None => "it was killed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn refusal(script: &str, limit: Duration) -> String {
        demand("sh", &["-c", script], limit).unwrap_err().to_string()
    }

    #[test]
    fn a_failure_has_its_own_words_on_one_line() {
        assert_eq!(demand("sh", &["-c", "echo a; echo b >&2"], SOON).unwrap(), "a\nb\n");
        let said = refusal("echo Failed to connect.; echo See the log. >&2; exit 1", SOON);
        assert!(said.ends_with(": Failed to connect. See the log."), "{said}");
        assert!(refusal("exit 7", SOON).ends_with("it ended with status 7, without a word"));
        let said = demand("no-such-program", &["x"], SOON).unwrap_err().to_string();
        assert_eq!(said, "cannot run no-such-program x: No such file or directory");
    }

    #[test]
    fn a_call_that_does_not_end_is_ended() {
        let limit = Duration::from_millis(50);
        for script in [
            "exec cat /dev/zero >/dev/null",
            "exec cat /dev/zero >/dev/null 2>&1",
            "while :; do :; done",
        ] {
            let asked = ask("sh", &["-c", script], limit).unwrap();
            assert!(matches!(asked, ManagerReply::Late), "{script}");
        }
    }

    #[test]
    fn a_flood_is_read_and_not_kept() {
        let text = demand("sh", &["-c", "head -c 200000 /dev/zero | tr '\\0' x"], SOON).unwrap();
        assert_eq!(text.len(), limits::MANAGER_WORDS_BYTES_MAX);
    }
}
