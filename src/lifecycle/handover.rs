//! Starting the daemon: the starter executes its own program again in the background and hands the
//! lock and the listener over to it. The new process reports on a pipe that it serves, or why it
//! cannot.
//!
//! The report has two lines: the version of the program, and then `ready` with the contents of the
//! state file, or `failed` with the reason.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, IntoRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::time::Instant;

use crate::config::{self, Config};
use crate::error::{At, Doing, Error, Kind};
use crate::lifecycle::claim::Claim;
use crate::lifecycle::{crashes, stop};
use crate::lock::{Lock, StartLock};
use crate::log::Log;
use crate::paths::Paths;
use crate::state::DaemonInfo;
use crate::sys::spawn::{self, Descriptors, HandedOver, Step};
use crate::sys::{process, socket};
use crate::text::escaped;
use crate::{limits, sys};

/// The arguments of the daemon in the background; those of its starter may be private. Without the
/// descriptors, it is an incomplete command like any other.
pub const ARGUMENTS: [&str; 1] = ["daemon"];

/// The first line of the report.
const VERSION: &str = concat!("opta ", env!("CARGO_PKG_VERSION"), "\n");

/// Where a daemon reports that it serves, or why it cannot.
pub enum Ready {
    /// The starter reads it.
    Pipe(File),
    /// Other starters wait for the lock.
    StartLock(#[expect(dead_code, reason = "held until it is dropped")] StartLock),
}

impl Ready {
    /// Reports that the daemon serves. Its state file is in place.
    pub fn serving(self, info: &DaemonInfo) {
        drop(self.send(&format!("ready {}", info.line())));
    }

    /// Reports why the daemon cannot serve. The starter also waits for the end of this process, so
    /// that nothing of it is left when the failure is printed.
    pub fn failed(self, error: &Error) {
        if let Some(pipe) = self.send(&format!("failed {}\n", escaped(&error.to_string()))) {
            // The kernel closes it at the very end.
            let _still_open = pipe.into_raw_fd();
        }
    }

    fn send(self, line: &str) -> Option<File> {
        let Ready::Pipe(mut pipe) = self else { return None };
        // This fails if the starter was killed in the meantime.
        drop(pipe.write_all(line.as_bytes()));
        Some(pipe)
    }
}

/// Takes the descriptors that [`start`] has handed over; `None` if it did not start this process.
/// Must be called before any descriptor is opened.
pub fn take_over() -> Option<HandedOver> {
    let mut handed_over = spawn::take_over().ok()?;
    let HandedOver { lock, listener, pipe } = &mut handed_over;
    let is_pipe = pipe.metadata().is_ok_and(|found| found.file_type().is_fifo());
    // A shell may have left others of the same kind open.
    if !is_pipe || !socket::is_listening(listener) || !has_own_pid(lock) {
        return None;
    }
    process::reset_inherited();
    // This fails if the starter was killed in the meantime.
    drop(pipe.write_all(VERSION.as_bytes()));
    Some(handed_over)
}

/// Returns whether a file contains the pid of this process, which the starter wrote.
fn has_own_pid(file: &File) -> bool {
    let own = format!("{}\n", std::process::id());
    let mut bytes = [0; 16];
    file.metadata().is_ok_and(|found| found.is_file())
        && file.read_at(&mut bytes, 0).is_ok_and(|count| bytes.get(..count) == Some(own.as_bytes()))
}

/// Turns what was handed over into a claim, and detaches this process from its starter.
///
/// # Errors
/// The error was reported to the starter.
pub fn claim(handed_over: HandedOver) -> Result<(Paths, Claim, Ready), Error> {
    let HandedOver { lock, listener, pipe } = handed_over;
    let ready = Ready::Pipe(pipe);
    match prepare(lock, &listener) {
        Ok((paths, lock, log)) => Ok((paths, Claim { lock, listener, log }, ready)),
        Err(error) => {
            ready.failed(&error);
            Err(error)
        }
    }
}

fn prepare(lock: File, listener: &TcpListener) -> Result<(Paths, Lock, Log), Error> {
    let address = listener.local_addr().doing("tell the daemon's port")?;
    if !address.ip().is_loopback() {
        return Err(io::Error::other("it is not bound to this machine")).doing("use the listener");
    }
    let root = Path::new("/");
    std::env::set_current_dir(root).at("change to", root)?;
    let paths = Paths::from_environment()?;
    paths.prepare()?;
    let lock = Lock::handed_over(lock, &paths)?;
    let config = Config::load(&paths.config())?;
    let log = Log::open(&paths.daemon(), config.rotation, config.level)?;
    log.capture_stdio()?;
    Ok((paths, lock, log))
}

/// Starts the daemon in the background, and returns when it serves. The caller holds the start
/// lock.
///
/// # Errors
/// The failure of a step before the exec; [`Kind::StartFailed`] with the daemon's own reason, or as
/// soon as it ends without one; [`Kind::StartTimedOut`]. No process of the daemon is left then.
pub fn start(claim: Claim, paths: &Paths) -> Result<Box<DaemonInfo>, Error> {
    let deadline = Instant::now() + limits::START_MAX;
    let Claim { lock, listener, log } = claim;
    let (report, pipe) = io::pipe().doing("make a pipe")?;
    let input = File::open("/dev/null").at("open", Path::new("/dev/null"))?;
    let output = log.file()?;
    let descriptors = Descriptors {
        input: input.as_fd(),
        output: output.as_fd(),
        lock: lock.file(),
        listener: listener.as_fd(),
        pipe: pipe.as_fd(),
    };
    let arguments: Vec<&str> = ["opta"].into_iter().chain(ARGUMENTS).collect();
    let background = spawn::in_background(&arguments, config::daemon_environment(), &descriptors)
        .doing("start a background process")?;
    // From here on only the daemon has them, so they close when it dies.
    drop((pipe, listener, output, log));
    let outcome = read_report(&report, lock, deadline, paths);
    if let Err(error) = &outcome {
        background.kill();
        wait_for_end(&report);
        // The caller needs to know why the start failed, not what failed after that.
        drop(stop::discard_state(paths));
        // A program that was never executed has not crashed.
        if error.kind() != Kind::System {
            drop(crashes::add(paths));
        }
    }
    outcome
}

/// Reads the report to the line that says `ready`, or to its end.
///
/// The daemon writes its pid to the lock file before the exec. The starter keeps the lock until
/// then, so that the file always names a process that has the lock.
fn read_report(
    mut pipe: &PipeReader,
    lock: Lock,
    deadline: Instant,
    paths: &Paths,
) -> Result<Box<DaemonInfo>, Error> {
    let mut lock = Some(lock);
    let mut report = Vec::new();
    let mut chunk = [0_u8; 2048];
    while report.len() < limits::REPORT_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        let [readable] =
            sys::wait_readable([pipe.as_fd()], Some(left)).doing("wait for the daemon")?;
        if !readable {
            return Err(start_timed_out(paths));
        }
        match pipe.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => report.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).doing("hear from the daemon"),
        }
        drop(lock.take());
        if let Some(info) = parse_ready(&report, paths)? {
            return Ok(info);
        }
    }
    check_executed(&report, paths)?;
    let report = String::from_utf8_lossy(&report);
    let reported = report.lines().find_map(|line| line.strip_prefix("failed "));
    Err(start_failed(reported.unwrap_or("it ended while starting, without a word"), paths))
}

/// Parses a report; `None` if it is not complete, or not one of success.
///
/// # Errors
/// It is the report of another version: another program had the name of this one.
fn parse_ready(report: &[u8], paths: &Paths) -> Result<Option<Box<DaemonInfo>>, Error> {
    let Ok(report) = std::str::from_utf8(report) else { return Ok(None) };
    if let Some(rest) = report.strip_prefix(VERSION) {
        let state = rest.strip_prefix("ready ").and_then(|state| state.strip_suffix('\n'));
        return Ok(state.and_then(|state| DaemonInfo::parse(state.as_bytes())).map(Box::new));
    }
    match report.split_once('\n') {
        None => Ok(None),
        Some((other, _)) => {
            let this = VERSION.trim_end();
            let reason =
                format!("its program was replaced: this is {this}, that is {other}; try again");
            Err(start_failed(&reason, paths))
        }
    }
}

/// Fails if the report is that of a failure before the exec.
fn check_executed(report: &[u8], paths: &Paths) -> Result<(), Error> {
    let Some((step, cause)) = spawn::failure(report) else { return Ok(()) };
    match step {
        Step::Detach => Err(cause).doing("start a background process"),
        Step::WritePid => Err(cause).at("write", &paths.pid()),
        Step::HandOver => Err(cause).doing("hand descriptors over to the daemon"),
        Step::Execute => Err(cause).doing("execute the program of opta"),
    }
}

/// Returns the error for a daemon that was not ready in time.
pub fn start_timed_out(paths: &Paths) -> Error {
    let reason = format!("it was not ready after {}s", limits::START_MAX.as_secs());
    Error::cannot(Kind::StartTimedOut, "start the daemon", reason).with_next_step(see_log(paths))
}

fn start_failed(reason: &str, paths: &Paths) -> Error {
    Error::cannot(Kind::StartFailed, "start the daemon", reason).with_next_step(see_log(paths))
}

fn see_log(paths: &Paths) -> String {
    format!("see the log: {}", paths.log().display())
}

/// Waits until no process has the other end of the pipe, which a process closes when it ends.
fn wait_for_end(mut pipe: &PipeReader) {
    let deadline = Instant::now() + limits::STOP_WAIT_FORCED;
    let mut rest = [0_u8; 512];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match sys::wait_readable([pipe.as_fd()], Some(left)) {
            Ok([true]) if !matches!(pipe.read(&mut rest), Ok(0)) => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = concat!(
        r#"{"pid":7,"port":8,"token":"opta_dk_0","startedAt":"","host":"127.0.0.1","#,
        r#""daemonId":"daemon_1","logsPath":"/ü"}"#
    );

    fn parse(report: &[u8]) -> Result<Option<Box<DaemonInfo>>, Error> {
        parse_ready(report, &Paths::from_environment().unwrap())
    }

    #[test]
    fn a_report_is_complete_with_the_line_that_says_ready() {
        let report = format!("{VERSION}ready {STATE}\n");
        for end in 0..report.len() {
            assert!(parse(&report.as_bytes()[..end]).unwrap().is_none(), "{end}");
        }
        let info = parse(report.as_bytes()).unwrap().unwrap();
        assert_eq!((info.pid, info.port), (7, 8));
        let failed = format!("{VERSION}failed cannot do it\n");
        assert!(parse(failed.as_bytes()).unwrap().is_none());
    }

    #[test]
    fn the_report_of_another_version_is_an_error() {
        for version in ["opta 0.0.1", "opta", ""] {
            let error = parse(format!("{version}\nready {STATE}\n").as_bytes()).unwrap_err();
            assert!(error.to_string().contains(&format!("that is {version};")), "{error}");
        }
    }
}
