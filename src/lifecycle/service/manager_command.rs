//! Runs a service manager's program, with a deadline; its own output becomes the error message.

use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Doing, Error, Kind, reason};
use crate::sys::process::Process;
use crate::{limits, sys, text};

/// The result of a manager's program.
pub enum ManagerReply {
    /// It exited with 0; its output.
    Success(String),
    /// It exited with another status, or was killed by a signal.
    Failure { status: Option<i32>, error: Error },
    /// It did not exit before the deadline and was killed.
    TimedOut(Error),
}

impl ManagerReply {
    /// Returns the output of a program that exited with 0.
    ///
    /// # Errors
    /// [`Kind::ServiceManager`] if it did not.
    pub fn output(self) -> Result<String, Error> {
        match self {
            ManagerReply::Success(output) => Ok(output),
            ManagerReply::Failure { error, .. } | ManagerReply::TimedOut(error) => Err(error),
        }
    }
}

/// Runs a program without input. Its output includes what it prints to standard error.
///
/// # Errors
/// [`Kind::ServiceManager`] if it cannot be run.
pub fn run(mut command: Command, limit: Duration) -> Result<ManagerReply, Error> {
    const DOING: &str = "read the output of a program";
    let deadline = Instant::now() + limit;
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let action = format!("run {}", words.join(" "));
    let error = |reason| Error::cannot(Kind::ServiceManager, action.as_str(), reason);
    let (reader, writer) = io::pipe().doing(DOING)?;
    let errors = writer.try_clone().doing(DOING)?;
    command.stdin(Stdio::null()).stdout(writer).stderr(errors);
    let spawned = command.spawn();
    // It holds the pipe's write end, without whose close the reader meets no end of file.
    drop(command);
    let mut child = spawned.map_err(|cause| error(reason(&cause)))?;
    let output = read_until(reader, deadline).doing(DOING)?;
    let pid = i32::try_from(child.id()).unwrap_or(0);
    let left = deadline.saturating_duration_since(Instant::now());
    let exited = match Process::open(pid).doing(DOING)? {
        Some(process) => process.wait(left, limits::EXIT_POLL_INTERVAL).doing(DOING)?,
        None => true,
    };
    if !exited {
        child.kill().doing(DOING)?;
    }
    let status = child.wait().doing(DOING)?.code();
    Ok(match status {
        _ if !exited => ManagerReply::TimedOut(error(format!("no answer in {}s", limit.as_secs()))),
        Some(0) => ManagerReply::Success(output),
        _ => ManagerReply::Failure { status, error: error(complaint(&output, status)) },
    })
}

/// Reads until the other end is closed or `deadline` has passed.
fn read_until(mut reader: PipeReader, deadline: Instant) -> io::Result<String> {
    let mut text = Vec::new();
    let mut chunk = [0_u8; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let [readable] = sys::wait_readable([reader.as_fd()], Some(left))?;
        let count = if readable { reader.read(&mut chunk)? } else { 0 };
        if count == 0 {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
        let room = limits::MANAGER_OUTPUT_BYTES_MAX - text.len();
        text.extend_from_slice(chunk.get(..count.min(room)).unwrap_or_default());
    }
}

/// Returns what a program said before it failed, on one line.
fn complaint(output: &str, status: Option<i32>) -> String {
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match status {
        _ if !lines.is_empty() => text::escaped(&lines.join(" ")),
        Some(status) => format!("it exited with status {status} and no message"),
        None => "it was killed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn sh(script: &str) -> Result<String, Error> {
        run(shell(script), SOON).unwrap().output()
    }

    #[test]
    fn the_error_has_the_programs_own_message_on_one_line() {
        assert_eq!(sh("echo a; echo b >&2").unwrap(), "a\nb\n");
        let failure = |script| sh(script).unwrap_err().to_string();
        let said = failure("echo Failed to connect.; echo See the log. >&2; exit 1");
        assert!(said.ends_with(": Failed to connect. See the log."), "{said}");
        assert!(failure("exit 7").ends_with("it exited with status 7 and no message"));
        assert!(failure("kill -9 $$").ends_with("it was killed"));
        let error = run(Command::new("no-such-program"), SOON).err().unwrap().to_string();
        assert_eq!(error, "cannot run no-such-program: No such file or directory");
    }

    #[test]
    fn a_program_that_does_not_exit_is_killed() {
        let limit = Duration::from_millis(50);
        for script in [
            "exec cat /dev/zero >/dev/null",
            "exec cat /dev/zero >/dev/null 2>&1",
            "while :; do :; done",
        ] {
            let reply = run(shell(script), limit).unwrap();
            assert!(matches!(reply, ManagerReply::TimedOut(_)), "{script}");
        }
    }

    #[test]
    fn output_beyond_the_limit_is_read_and_dropped() {
        let output = sh("head -c 200000 /dev/zero | tr '\\0' x").unwrap();
        assert_eq!(output.len(), limits::MANAGER_OUTPUT_BYTES_MAX);
    }
}
