//! Programs that are run for somebody: what they start with, and signals to all that they have
//! started.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::check;
use super::signal::{Signal, begin_with};

/// What a group of processes is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Termination {
    /// SIGTERM: please.
    Ask,
    /// SIGKILL.
    Force,
}

/// Makes `command` begin in `directory`, wherever that has been moved, with the usual umask,
/// no signal blocked or ignored, nothing of ours open, and a life no longer than that of the thread
/// that starts it.
///
/// Linux: it gets SIGKILL when that thread ends, PR_SET_PDEATHSIG in prctl(2). Elsewhere whoever
/// starts it sees to that.
pub fn settle(command: &mut Command, directory: File) {
    let parent = std::process::id();
    let prepare = move || {
        // SAFETY: umask cannot fail and touches no memory.
        unsafe { libc::umask(0o022) };
        // What the thread that starts it blocks would be blocked in all that it starts.
        begin_with(libc::SIG_DFL)?;
        // SAFETY: the closure owns the descriptor.
        check(unsafe { libc::fchdir(directory.as_raw_fd()) })?;
        part_from(parent)
    };
    // SAFETY: between fork and exec it makes system calls on values of its own, and no allocation.
    unsafe { command.pre_exec(prepare) };
}

/// Makes `command` begin deaf: of all signals only SIGKILL ends it, and only SIGSTOP halts it.
pub fn deafen(command: &mut Command) {
    // SAFETY: between fork and exec it makes system calls, and no allocation.
    unsafe { command.pre_exec(|| begin_with(libc::SIG_IGN)) };
}

#[cfg(target_os = "linux")]
fn part_from(parent: u32) -> io::Result<()> {
    // SAFETY: integers only. Descriptors of ours are closed on exec anyway; this is for those that
    // a library might have forgotten. An old kernel does not know the call.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    // SAFETY: integers only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    // SAFETY: getppid takes nothing and cannot fail.
    let now = unsafe { libc::getppid() };
    // It may have died before it could be watched.
    if u32::try_from(now) == Ok(parent) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

#[cfg(not(target_os = "linux"))]
fn part_from(_parent: u32) -> io::Result<()> {
    Ok(())
}

/// Sends a signal to all processes of a group. The caller has not yet waited for the group's
/// leader, so that the number is still that group's. killpg(3).
pub fn signal_group(leader: u32, end: Termination) {
    let number = match end {
        Termination::Ask => Signal::Terminate.number(),
        Termination::Force => libc::SIGKILL,
    };
    // 0 and 1 would mean other processes than those.
    if let Some(group) = libc::pid_t::try_from(leader).ok().filter(|group| *group > 1) {
        // SAFETY: kill touches no memory. That all have ended already is no error.
        unsafe { libc::kill(-group, number) };
    }
}
