//! Leaving the terminal, and the one word that the daemon sends back: ready, or why not.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};
use std::path::Path;
use std::time::Instant;

use crate::error::{At, Doing, Error, Kind};
use crate::lifecycle::claim::Claim;
use crate::lifecycle::crashes;
use crate::lock::StartLock;
use crate::paths::Paths;
use crate::sys::detach::{NoReturn, Side, close_inherited, fork_twice, redirect_input, retitle};
use crate::{limits, sys, text};

/// Which process this is now.
pub enum Detached {
    /// The one that the user started: the daemon serves.
    Parent,
    /// The daemon, with nothing of its starter left but what it was given.
    Daemon { claim: Box<Claim>, ready: Ready, no_return: NoReturn },
}

/// Where the daemon says, once, that it serves or why it cannot.
pub enum Ready {
    /// To the process that waits at the other end of a pipe.
    Pipe(PipeWriter),
    /// To the starters that queue: the start lock opens.
    StartLock(#[expect(dead_code, reason = "held until it is dropped")] StartLock),
}

impl Ready {
    /// The daemon serves: its state file is in place.
    pub fn serving(self) {
        drop(self.send("ready\n"));
    }

    /// The daemon cannot serve. The starter waits for the end of this process as well: when it
    /// reports the failure, nothing of it is left.
    pub fn failed(self, error: &Error) {
        if let Some(pipe) = self.send(&format!("failed {}\n", text::escaped(&error.to_string()))) {
            // Left to the kernel, which closes it at the very end.
            let _left_open = pipe.into_raw_fd();
        }
    }

    fn send(self, line: &str) -> Option<PipeWriter> {
        let Ready::Pipe(mut pipe) = self else { return None };
        // A starter that has been killed in the meantime does not want to know any more.
        drop(pipe.write_all(line.as_bytes()));
        Some(pipe)
    }
}

/// Turns into two processes: the daemon goes on in the background, the parent waits for its word.
///
/// # Errors
/// In the parent only: [`Kind::StartFailed`], with the daemon's own reason or as soon as it ends
/// without one, and [`Kind::StartTimedOut`].
pub fn detach(claim: Box<Claim>, start_lock: StartLock, paths: &Paths) -> Result<Detached, Error> {
    let (reader, writer) = io::pipe().doing("make a pipe")?;
    let null = File::open("/dev/null").at("open", Path::new("/dev/null"))?;
    match fork_twice().doing("start a background process")? {
        Side::Foreground => {
            // The daemon alone holds the lock and the port from here on: they go with it if it
            // dies.
            drop(claim);
            drop(writer);
            let word = wait_for_word(reader, paths);
            if word.is_err() {
                // Counted under the start lock. The reason why the start failed is worth more than
                // one why it cannot be counted.
                drop(crashes::add(paths));
            }
            drop(start_lock);
            word.map(|()| Detached::Parent)
        }
        Side::Background(no_return) => {
            drop(start_lock);
            drop(reader);
            let ready = Ready::Pipe(writer);
            match settle(&claim, &ready, null, &no_return) {
                Ok(()) => Ok(Detached::Daemon { claim, ready, no_return }),
                Err(error) => {
                    ready.failed(&error);
                    claim.lock.release();
                    super::run::end(1)
                }
            }
        }
    }
}

/// Makes the new process independent of where it came from.
fn settle(claim: &Claim, ready: &Ready, null: File, no_return: &NoReturn) -> Result<(), Error> {
    let log = claim.log.descriptor();
    redirect_input(&null).doing("redirect the daemon's input")?;
    claim.log.capture_stdio()?;
    drop(null);
    let mut kept = vec![claim.lock.descriptor(), claim.listener.as_raw_fd(), log];
    if let Ready::Pipe(pipe) = ready {
        kept.push(pipe.as_raw_fd());
    }
    close_inherited(&kept, no_return);
    // Words that are somebody's task must not stay in the list of processes.
    if let Err(error) = retitle(&["opta", "daemon"]) {
        claim.log.warn("what the daemon was started with stays visible", &[("cause", &error)]);
    }
    std::env::set_current_dir("/").at("change to", Path::new("/"))
}

fn wait_for_word(mut pipe: PipeReader, paths: &Paths) -> Result<(), Error> {
    let deadline = Instant::now() + limits::START_MAX;
    let mut word = Vec::new();
    let mut chunk = [0_u8; 512];
    // A failure is complete with the end of the process that tells it.
    while word != b"ready\n" && word.len() < limits::REPORT_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        let [readable] =
            sys::wait_readable([pipe.as_fd()], Some(left)).doing("wait for the daemon")?;
        if !readable {
            return Err(start_timed_out(paths));
        }
        match pipe.read(&mut chunk).doing("hear from the daemon")? {
            0 => break,
            count => word.extend_from_slice(chunk.get(..count).unwrap_or_default()),
        }
    }
    let word = String::from_utf8_lossy(&word);
    match word.trim_end().split_once(' ') {
        None if word.trim_end() == "ready" => Ok(()),
        Some(("failed", message)) => Err(start_failed(Kind::StartFailed, message, paths)),
        _ => {
            let reason = "it ended while starting, without a word";
            Err(start_failed(Kind::StartFailed, reason, paths))
        }
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
