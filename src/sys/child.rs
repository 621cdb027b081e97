//! Child processes: what they inherit, and signals to their groups.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::check;
use super::signal::{Signal, reset_for_exec, unblock_all};

/// How a process group is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Termination {
    /// SIGTERM.
    Ask,
    /// SIGKILL.
    Force,
}

/// Makes `command` start in `directory`, even if that is renamed, with the usual umask, no signal
/// blocked or ignored, and none of our descriptors. It does not outlive the thread that starts it.
///
/// On Linux it gets SIGKILL when that thread ends: PR_SET_PDEATHSIG, prctl(2). On other systems the
/// caller has to end it.
pub fn prepare_child(command: &mut Command, directory: File) {
    let parent = std::process::id();
    let prepare = move || {
        // SAFETY: umask cannot fail and touches no memory.
        unsafe { libc::umask(0o022) };
        // A child inherits the signal mask of the thread that starts it.
        reset_for_exec(libc::SIG_DFL)?;
        // SAFETY: the closure owns the descriptor.
        check(unsafe { libc::fchdir(directory.as_raw_fd()) })?;
        die_with(parent)
    };
    // SAFETY: between fork and exec it makes system calls on values of its own, and no allocation.
    unsafe { command.pre_exec(prepare) };
}

/// Makes `command` start with this descriptor open, under the number that it has here. To be called
/// after [`prepare_child`], which closes all others.
pub fn hand_down(command: &mut Command, file: OwnedFd) {
    let keep = move || {
        // SAFETY: integers only; the closure owns the descriptor.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) }).map(drop)
    };
    // SAFETY: between fork and exec it makes one system call, and no allocation.
    unsafe { command.pre_exec(keep) };
}

/// Makes `command` start with this umask and without a controlling terminal, so that no process of
/// it can wait for a person. umask(2), tty(4).
pub fn detach_from_terminal(command: &mut Command, umask: u32) {
    let umask = libc::mode_t::try_from(umask & 0o777).unwrap_or(0o077);
    let detach = move || {
        // SAFETY: umask cannot fail and touches no memory.
        unsafe { libc::umask(umask) };
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: the name is NUL-terminated. Without a terminal it fails.
        let terminal = unsafe { libc::open(c"/dev/tty".as_ptr(), flags) };
        if terminal >= 0 {
            // SAFETY: the descriptor is open. This process leads no session, so that no other
            // process loses the terminal.
            unsafe { libc::ioctl(terminal, libc::TIOCNOTTY) };
            // SAFETY: nothing else owns the descriptor.
            unsafe { libc::close(terminal) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls on values of its own, and no allocation.
    unsafe { command.pre_exec(detach) };
}

/// Makes `command` start with no signal blocked: a child inherits the mask of the thread that
/// starts it. Where `Interrupts` ignores the signals that it reads, none is ignored.
pub fn unblock_signals(command: &mut Command) {
    let unblock = || match cfg!(target_os = "linux") {
        true => unblock_all(),
        false => reset_for_exec(libc::SIG_DFL),
    };
    // SAFETY: between fork and exec it makes system calls, and no allocation.
    unsafe { command.pre_exec(unblock) };
}

/// Makes `command` start with all signals ignored, so that only SIGKILL ends it and only SIGSTOP
/// stops it.
pub fn ignore_signals(command: &mut Command) {
    // SAFETY: between fork and exec it makes system calls, and no allocation.
    unsafe { command.pre_exec(|| reset_for_exec(libc::SIG_IGN)) };
}

#[cfg(target_os = "linux")]
fn die_with(parent: u32) -> io::Result<()> {
    // SAFETY: integers only. Our descriptors are close-on-exec anyway, but those of a library may
    // not be. Old kernels do not have the call.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    // SAFETY: integers only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    // SAFETY: getppid takes nothing and cannot fail.
    let now = unsafe { libc::getppid() };
    // It may have died before the call.
    if u32::try_from(now) == Ok(parent) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with(_parent: u32) -> io::Result<()> {
    Ok(())
}

/// Sends a signal to a process group. The caller has not reaped the group's leader yet, so the
/// number is not reused. killpg(3).
pub fn signal_group(leader: u32, end: Termination) {
    let number = match end {
        Termination::Ask => Signal::Terminate.number(),
        Termination::Force => libc::SIGKILL,
    };
    // 0 and 1 mean other processes.
    if let Some(group) = libc::pid_t::try_from(leader).ok().filter(|group| *group > 1) {
        // SAFETY: kill touches no memory. It is no error if all processes have ended.
        unsafe { libc::kill(-group, number) };
    }
}
