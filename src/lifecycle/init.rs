//! The daemon as the first command of a container.
//!
//! The first process of a pid namespace has to reap orphans, cannot be killed from inside, and
//! takes everything with it when it ends. So it serves nothing itself: it starts the daemon as its
//! child, passes signals on to it, and ends when no daemon is left. Inside, the daemon is an
//! ordinary process that can be stopped, restarted and killed.

use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use crate::error::{Doing, Error};
use crate::limits;
use crate::lock::{self, Owner, StartLock};
use crate::paths::Paths;
use crate::sys::init::{self, Wakeup};
use crate::sys::signal::Signal;

pub use crate::sys::init::is_first_process;

/// Runs this command again as a child, and returns its exit status when it has ended and no other
/// daemon has taken its place.
pub fn supervise(paths: &Paths) -> Result<ExitCode, Error> {
    init::block().doing("block signals")?;
    let child = init::start_again().doing("start the daemon's process")?;
    let (sender, ended) = channel();
    let reaped_for = paths.clone();
    let reap = move || reap(child, &reaped_for, &sender);
    drop(thread::Builder::new().name("reaper".into()).spawn(reap).doing("start a thread")?);
    // The sender lives as long as its thread.
    let status = ended.recv().unwrap_or(1);
    while is_replaced(paths) {
        lock::wait_until_free(paths)?;
    }
    Ok(ExitCode::from(status))
}

/// Returns whether a daemon has the lock, after the commands that are stopping, restarting or
/// starting one have ended: their output must not be lost with this process.
fn is_replaced(paths: &Paths) -> bool {
    let _start_lock = StartLock::acquire(paths, limits::START_LOCK_MAX);
    lock::look(paths).is_ok_and(|(held, _)| held)
}

/// Reaps every process that has ended, reports the end of the child, and passes signals on. Ends
/// with the process.
fn reap(child: u32, paths: &Paths, ended: &Sender<u8>) {
    let mut is_running = true;
    while let Ok(event) = init::wait() {
        match event {
            // Its group has got the signal as well.
            Wakeup::Terminal => {}
            Wakeup::Signal(signal) if is_running => drop(init::forward(child, signal)),
            Wakeup::Signal(signal) => forward_to_owner(paths, signal),
            Wakeup::Child => {
                while let Some((pid, status)) = init::reap() {
                    if pid == child {
                        is_running = false;
                        // The receiver takes one.
                        ended.send(status).unwrap_or(());
                    }
                }
            }
        }
    }
}

/// Signals the daemon that has taken the place of the child.
fn forward_to_owner(paths: &Paths, signal: Signal) {
    if let Ok(Owner::Process(process)) = lock::owner(paths) {
        drop(process.signal(signal));
    }
}
