//! From the command that starts a daemon to the daemon: the same program, executed again in the
//! background, which takes over the lock and the listener, and reports on a pipe whether it serves.
//!
//! The report is three lines at most: the version of the program, then `ready` and what the state
//! file says, or `failed` and why.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, IntoRawFd};
use std::os::unix::fs::FileTypeExt;
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
use crate::sys::spawn::{self, Descriptors, HandedOver, Program, Step};
use crate::sys::{process, socket};
use crate::text::escaped;
use crate::{limits, sys};

/// The arguments of the daemon in the background: what its starter was called with stays out of the
/// list of processes. Without the descriptors, they are an incomplete command like any other.
pub const ARGUMENTS: [&str; 1] = ["daemon"];

/// The first line of a report.
const VERSION: &str = concat!("opta ", env!("CARGO_PKG_VERSION"), "\n");

/// Where a daemon reports, once, that it serves or why it cannot.
pub enum Ready {
    /// To its starter.
    Pipe(File),
    /// To the starters that wait for the start lock, by releasing it.
    StartLock(#[expect(dead_code, reason = "held until it is dropped")] StartLock),
}

impl Ready {
    /// The daemon serves: its state file is in place.
    pub fn serving(self, info: &DaemonInfo) {
        drop(self.send(&format!("ready {}", info.line())));
    }

    /// The daemon cannot serve. The starter waits for the end of this process as well: when it
    /// reports the failure, nothing of it is left.
    pub fn failed(self, error: &Error) {
        if let Some(pipe) = self.send(&format!("failed {}\n", escaped(&error.to_string()))) {
            // Left to the kernel, which closes it at the very end.
            let _left_open = pipe.into_raw_fd();
        }
    }

    fn send(self, line: &str) -> Option<File> {
        let Ready::Pipe(mut pipe) = self else { return None };
        // A starter that was killed in the meantime has no use for it.
        drop(pipe.write_all(line.as_bytes()));
        Some(pipe)
    }
}

/// Takes over what [`start`] has handed over to this process; `None` if it was not started by that.
/// To be called before anything is opened.
pub fn take_over() -> Option<HandedOver> {
    let mut handed_over = spawn::take_over().ok()?;
    let HandedOver { listener, pipe, .. } = &mut handed_over;
    let is_pipe = pipe.metadata().is_ok_and(|found| found.file_type().is_fifo());
    if !is_pipe || !socket::is_listening(listener) {
        return None;
    }
    process::become_ordinary();
    // A starter that was killed in the meantime has no use for it.
    drop(pipe.write_all(VERSION.as_bytes()));
    Some(handed_over)
}

/// Makes a claim of what was handed over, and this process independent of its starter.
///
/// # Errors
/// Whatever it is, the starter is told.
pub fn claim(handed_over: HandedOver) -> Result<(Paths, Claim, Ready), Error> {
    let HandedOver { lock, listener, pipe } = handed_over;
    let ready = Ready::Pipe(pipe);
    match prepare(lock, &listener) {
        Ok((paths, lock, log)) => Ok((paths, Claim { lock, listener, log, crashed: None }, ready)),
        Err(error) => {
            ready.failed(&error);
            Err(error)
        }
    }
}

fn prepare(lock: File, listener: &TcpListener) -> Result<(Paths, Lock, Log), Error> {
    let address = listener.local_addr().doing("tell the daemon's port")?;
    if !address.ip().is_loopback() {
        return Err(io::Error::other("it is not of this machine alone")).doing("use the listener");
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

/// Starts the daemon in the background, and returns when it serves.
///
/// # Errors
/// What kept it from being executed; [`Kind::StartFailed`] with the daemon's own reason, or as soon
/// as it ends without one; [`Kind::StartTimedOut`]. Nothing of it is left then.
pub fn start(claim: Claim, paths: &Paths) -> Result<Box<DaemonInfo>, Error> {
    let deadline = Instant::now() + limits::START_MAX;
    let Claim { lock, listener, log, .. } = claim;
    let (report, pipe) = io::pipe().doing("make a pipe")?;
    let input = File::open("/dev/null").at("open", Path::new("/dev/null"))?;
    let output = log.file()?;
    let arguments: Vec<&str> = ["opta"].into_iter().chain(ARGUMENTS).collect();
    let program =
        Program::own(&arguments, config::daemon_environment()).doing("find the program of opta")?;
    let given = Descriptors {
        input: input.as_fd(),
        output: output.as_fd(),
        lock: lock.file(),
        listener: listener.as_fd(),
        pipe: pipe.as_fd(),
    };
    let background = spawn::in_background(&program, &given).doing("start a background process")?;
    // They go with the daemon if it dies.
    drop((pipe, listener, output, log));
    let heard = hear(&report, lock, deadline, paths);
    if let Err(error) = &heard {
        background.kill();
        wait_for_end(&report);
        drop(stop::discard_state(paths));
        // What was never executed has not crashed. The reason of the failure is worth more than why
        // it cannot be counted.
        if error.kind() != Kind::System {
            drop(crashes::add(paths));
        }
    }
    heard
}

/// Reads the report. The starter keeps the lock until the program runs, which has signed it by
/// then: whoever looks for the owner finds one of the two.
fn hear(
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
        match verdict(&report) {
            Some(Verdict::Ready(info)) => return Ok(info),
            Some(Verdict::Replaced(by)) => {
                let this = VERSION.trim_end();
                let message =
                    format!("its program was replaced: this is {this}, that is {by}; try again");
                return Err(start_failed(Kind::StartFailed, message, paths));
            }
            // A failure is complete with the end of the process that reports it.
            None => {}
        }
    }
    check_executed(&report, paths)?;
    let report = String::from_utf8_lossy(&report);
    let told = report.lines().find_map(|line| line.strip_prefix("failed "));
    let reason = told.unwrap_or("it ended while starting, without a word");
    Err(start_failed(Kind::StartFailed, reason, paths))
}

/// What a report says before its end.
enum Verdict {
    Ready(Box<DaemonInfo>),
    /// The program that was executed is another one than this.
    Replaced(String),
}

fn verdict(report: &[u8]) -> Option<Verdict> {
    let report = std::str::from_utf8(report).ok()?;
    let Some(rest) = report.strip_prefix(VERSION) else {
        let (version, _) = report.split_once('\n')?;
        return Some(Verdict::Replaced(version.to_owned()));
    };
    let state = rest.strip_prefix("ready ")?.strip_suffix('\n')?;
    Some(Verdict::Ready(Box::new(DaemonInfo::parse(state.as_bytes())?)))
}

/// Fails if the program was never executed.
fn check_executed(report: &[u8], paths: &Paths) -> Result<(), Error> {
    let Some((step, cause)) = spawn::failure(report) else { return Ok(()) };
    match step {
        Step::Detach => Err(cause).doing("start a background process"),
        Step::Sign => Err(cause).at("write", &paths.pid()),
        Step::HandOver => Err(cause).doing("hand descriptors over to the daemon"),
        Step::Execute => Err(cause).doing("execute the program of opta"),
    }
}

/// The failure of a start that was not ready in time.
pub fn start_timed_out(paths: &Paths) -> Error {
    let reason = format!("it was not ready after {}s", limits::START_MAX.as_secs());
    start_failed(Kind::StartTimedOut, reason, paths)
}

fn start_failed(kind: Kind, reason: impl Into<String>, paths: &Paths) -> Error {
    let next_step = format!("see the log: {}", paths.log().display());
    Error::cannot(kind, "start the daemon", reason).with_next_step(next_step)
}

/// Waits until nobody has the other end of the pipe: a process closes it when it ends.
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

    #[test]
    fn a_report_is_complete_at_the_end_of_the_line_that_says_ready() {
        let state = concat!(
            r#"{"pid":7,"port":8,"token":"opta_dk_0","startedAt":"","host":"127.0.0.1","#,
            r#""daemonId":"daemon_1","logsPath":"/ü"}"#
        );
        let report = format!("{VERSION}ready {state}\n");
        for end in 0..report.len() {
            assert!(verdict(&report.as_bytes()[..end]).is_none(), "{end}");
        }
        let Some(Verdict::Ready(info)) = verdict(report.as_bytes()) else { panic!("{report}") };
        assert_eq!((info.pid, info.port), (7, 8));
    }

    #[test]
    fn another_version_is_not_taken_for_this_one() {
        for version in ["opta 0.0.1", "opta", ""] {
            let report = format!("{version}\nready {{}}\n");
            let Some(Verdict::Replaced(by)) = verdict(report.as_bytes()) else { panic!() };
            assert_eq!(by, version);
        }
    }
}
