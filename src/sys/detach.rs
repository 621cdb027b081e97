//! Leaving the terminal: the double fork, and what a daemon must not take with it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::check;

/// Which side of the fork this is.
pub enum Side {
    /// The process that the user started.
    Foreground,
    /// The process that goes on in the background: in a session of its own, not its leader, so that
    /// it can never get a terminal.
    Background,
}

/// Looks at the list of threads before it is believed that there is more than one.
const LOOKS_MAX: u32 = 10_000;

/// Forks twice with setsid(2) in between; returns once in each surviving process.
///
/// Refused in a process with more than one thread: the others would be missing after the fork, with
/// whatever they had locked.
pub fn fork_twice() -> io::Result<Side> {
    let alone = || super::process::own_threads().is_none_or(|threads| threads == 1);
    // A thread that was joined a moment ago may still be listed.
    let alone = (0..LOOKS_MAX).any(|_| {
        let alone = alone();
        if !alone {
            std::thread::yield_now();
        }
        alone
    });
    if !alone {
        return Err(io::Error::other("the process has more than one thread"));
    }
    // A caller may have left SIGCHLD ignored, and then a child leaves nothing to wait for.
    // SAFETY: a standard disposition runs none of our code.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // SAFETY: this process has one thread, so the child is a whole copy of it.
    let first = check(unsafe { libc::fork() })?;
    if first > 0 {
        wait_for(first)?;
        return Ok(Side::Foreground);
    }
    // From here to the second fork the process is the intermediate one; it must never return.
    // SAFETY: setsid takes nothing. It cannot fail in a child that leads no process group.
    let session = check(unsafe { libc::setsid() });
    // SAFETY: still one thread.
    let second = session.and_then(|_| check(unsafe { libc::fork() }));
    match second {
        Ok(0) => Ok(Side::Background),
        // SAFETY: _exit runs nothing of ours, so the buffers of the parent are not written twice.
        Ok(_) => unsafe { libc::_exit(0) },
        // SAFETY: as above. The reason travels in the exit status.
        Err(error) => unsafe { libc::_exit(error.raw_os_error().unwrap_or(libc::EAGAIN) & 0xff) },
    }
}

/// Reaps the intermediate process; its exit status is the errno of the second fork.
fn wait_for(child: libc::pid_t) -> io::Result<()> {
    let mut status = 0;
    // SAFETY: `status` is a live int.
    while let Err(error) = check(unsafe { libc::waitpid(child, &raw mut status, 0) }) {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
        Ok(())
    } else if libc::WIFEXITED(status) {
        Err(io::Error::from_raw_os_error(libc::WEXITSTATUS(status)))
    } else {
        Err(io::Error::other("the intermediate process was killed"))
    }
}

/// Makes standard input what is given. dup2(2).
pub fn redirect_input(input: &File) -> io::Result<()> {
    replace(input, libc::STDIN_FILENO)
}

/// Makes standard output and error what is given. dup2(2).
pub fn redirect_output(output: &File) -> io::Result<()> {
    replace(output, libc::STDOUT_FILENO)?;
    replace(output, libc::STDERR_FILENO)
}

fn replace(file: &File, standard: RawFd) -> io::Result<()> {
    // SAFETY: both are descriptors; standard streams are not owned by any Rust value.
    check(unsafe { libc::dup2(file.as_raw_fd(), standard) }).map(drop)
}

/// Closes every descriptor from 3 up but those in `kept`: whatever the caller's shell, ssh or CI
/// had open would otherwise stay open as long as the daemon lives. close_range(2) where there is
/// one.
///
/// Only for the moment after a fork: no Rust value may own a descriptor that is not in `kept`.
pub fn close_inherited(kept: &[RawFd]) {
    let mut kept: Vec<RawFd> = kept.iter().copied().filter(|raw| *raw > 2).collect();
    kept.sort_unstable();
    let mut from = 3;
    for raw in kept {
        if from < raw {
            close_between(from, raw - 1);
        }
        from = raw + 1;
    }
    close_between(from, RawFd::MAX);
}

fn close_between(first: RawFd, last: RawFd) {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: integers only; what is closed is owned by nobody, as the caller promises.
        let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if result == 0 {
            return;
        }
    }
    for raw in first..=last.min(highest_descriptor()) {
        // SAFETY: as above; closing what is not open is harmless.
        unsafe { libc::close(raw) };
    }
}

/// The highest descriptor that may be open, as the directory of them tells, or the limit on them.
fn highest_descriptor() -> RawFd {
    let listed = std::fs::read_dir("/dev/fd").ok().and_then(|entries| {
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok()).max()
    });
    listed.unwrap_or_else(|| {
        // SAFETY: sysconf takes a constant.
        let limit = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
        RawFd::try_from(limit).unwrap_or(1024).clamp(256, 1 << 20)
    })
}
