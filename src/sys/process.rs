//! Other processes: whether one exists, whether it holds a file open, a handle that cannot be
//! fooled by a pid that is used again.

use std::fs::Metadata;
use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::check;
use super::signal::Signal;

/// The answer to signal zero: kill(2) with no signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Something answers to this number: a process, or a thread, a zombie, a stranger.
    Exists,
    /// Nothing does.
    Dead,
    /// Something does, and it belongs to another user.
    NotOurs,
}

/// Asks with signal zero. The answer is a hint: the number may have been given to another process.
pub fn probe(pid: i32) -> Probe {
    if pid <= 0 {
        return Probe::Dead;
    }
    // SAFETY: kill touches no memory; signal 0 is delivered to nobody.
    match check(unsafe { libc::kill(pid, 0) }) {
        Ok(_) => Probe::Exists,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Probe::NotOurs,
        Err(_) => Probe::Dead,
    }
}

/// A process, held so that a signal can never reach a later process of the same number.
///
/// On Linux this is a pidfd (pidfd_open(2), Linux 5.3). Elsewhere it is the number alone, and the
/// check that precedes a signal is the protection.
pub struct Process {
    pid: i32,
    #[cfg(target_os = "linux")]
    handle: OwnedFd,
}

impl Process {
    /// Takes hold of the process that has this number now; `None` if there is none.
    ///
    /// Refuses the numbers that kill(2) takes for groups, this process and its parent: never is any
    /// of them a daemon to be stopped.
    pub fn open(pid: i32) -> io::Result<Option<Process>> {
        // SAFETY: getppid takes nothing and cannot fail.
        let parent = unsafe { libc::getppid() };
        if pid <= 1 || pid == parent || u32::try_from(pid) == Ok(std::process::id()) {
            return Ok(None);
        }
        #[cfg(target_os = "linux")]
        {
            // SAFETY: the call takes two integers.
            let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
            match check(libc::c_int::try_from(result).unwrap_or(-1)) {
                Ok(raw) => {
                    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
                    let handle = unsafe { OwnedFd::from_raw_fd(raw) };
                    Ok(Some(Process { pid, handle }))
                }
                Err(error) => match error.raw_os_error() {
                    // EINVAL is the answer for a thread's number.
                    Some(libc::ESRCH | libc::EINVAL | libc::ENOENT) => Ok(None),
                    _ => Err(error),
                },
            }
        }
        #[cfg(not(target_os = "linux"))]
        {
            Ok((probe(pid) == Probe::Exists).then_some(Process { pid }))
        }
    }

    /// The number it was opened by.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether this very process has `file` open: proof that it is the one that keeps a lock on it,
    /// and not a stranger that was given the number of a dead owner or counts pids in another
    /// namespace.
    ///
    /// Linux: its descriptors are looked through. macOS: it began before the file was last written.
    pub fn holds(&self, file: &Metadata) -> bool {
        #[cfg(target_os = "linux")]
        {
            let descriptors = match std::fs::read_dir(format!("/proc/{}/fd", self.pid)) {
                Ok(descriptors) => descriptors,
                // Another group of the same user may not look there (ptrace(2)).
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return self.is_ours_and_began_before(file) && self.running();
                }
                Err(_) => return false,
            };
            descriptors.filter_map(Result::ok).any(|entry| {
                // Followed: the metadata of what the descriptor is open on.
                std::fs::metadata(entry.path())
                    .is_ok_and(|open| open.dev() == file.dev() && open.ino() == file.ino())
            }) && self.running()
        }
        #[cfg(target_os = "macos")]
        {
            self.running() && began(self.pid).is_some_and(|seconds| seconds <= file.mtime())
        }
        #[cfg(not(any(target_os = "linux", target_os = "macos")))]
        {
            file.uid() == super::effective_user() && self.running()
        }
    }

    /// Sends a signal to this very process. `Ok(false)`: it has ended already.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        self.send(signal.number())
    }

    /// Ends it at once: SIGKILL.
    pub fn kill(&self) -> io::Result<bool> {
        self.send(libc::SIGKILL)
    }

    fn send(&self, number: libc::c_int) -> io::Result<bool> {
        #[cfg(target_os = "linux")]
        let result = {
            let none = std::ptr::null::<libc::siginfo_t>();
            // SAFETY: the descriptor is a live pidfd; no siginfo is passed.
            let result = unsafe {
                libc::syscall(libc::SYS_pidfd_send_signal, self.handle.as_raw_fd(), number, none, 0)
            };
            check(libc::c_int::try_from(result).unwrap_or(-1))
        };
        #[cfg(not(target_os = "linux"))]
        // SAFETY: the number is positive and was verified by the caller.
        let result = check(unsafe { libc::kill(self.pid, number) });
        match result {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until the process has ended; `Ok(false)` means that `timeout` is over first.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        #[cfg(target_os = "linux")]
        {
            let [ended] = super::wait_readable([self.handle.as_fd()], Some(timeout))?;
            Ok(ended)
        }
        #[cfg(not(target_os = "linux"))]
        {
            super::watch::wait_for_exit(self.pid, timeout)
        }
    }

    /// Whether it is this user's, and older than the file's last change: a process that was given
    /// the number of a dead owner is younger. proc(5)
    #[cfg(target_os = "linux")]
    fn is_ours_and_began_before(&self, file: &Metadata) -> bool {
        let place = format!("/proc/{}", self.pid);
        let ours = std::fs::metadata(&place).is_ok_and(|found| found.uid() == file.uid());
        let began = std::fs::read_to_string(format!("{place}/stat")).ok().and_then(|text| {
            // Behind the name, which may hold anything, the 20th field: clock ticks since the boot.
            let (_, fields) = text.rsplit_once(") ")?;
            fields.split(' ').nth(19)?.parse::<i64>().ok()
        });
        // SAFETY: sysconf takes a constant and touches no memory.
        let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        let up = i64::try_from(super::boot_clock().as_secs()).unwrap_or(i64::MAX);
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let began = began
            .and_then(|began| began.checked_div(ticks))
            .map(|began| i64::try_from(now).unwrap_or(0).saturating_sub(up).saturating_add(began));
        ours && began.is_some_and(|began| began <= file.mtime())
    }

    fn running(&self) -> bool {
        self.wait(Duration::ZERO).is_ok_and(|ended| !ended)
    }
}

/// Bytes of memory that macOS counts for this process. proc_pidinfo(3).
#[cfg(target_os = "macos")]
pub fn resident_bytes() -> Option<u64> {
    let pid = i32::try_from(std::process::id()).ok()?;
    // SAFETY: proc_taskinfo is a struct of integers, for which all zeroes is a valid value.
    let mut task: libc::proc_taskinfo = unsafe { std::mem::zeroed() };
    let size = libc::c_int::try_from(size_of_val(&task)).ok()?;
    // SAFETY: `task` is writable for `size` bytes.
    let got =
        unsafe { libc::proc_pidinfo(pid, libc::PROC_PIDTASKINFO, 0, (&raw mut task).cast(), size) };
    (got == size).then_some(task.pti_resident_size)
}

/// Calls this process `opta` in lists of processes, and gives it the system's own priorities,
/// whatever its starter had: nice value and OOM score are 0, where that is allowed. prctl(2),
/// setpriority(2), proc(5).
pub fn become_ordinary() {
    // After the exec of a link to it, it would be called as the link.
    #[cfg(target_os = "linux")]
    // SAFETY: the name ends with NUL.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"opta".as_ptr())
    };
    // SAFETY: integers only.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
    #[cfg(target_os = "linux")]
    if let Ok(mut score) = std::fs::File::options().write(true).open("/proc/self/oom_score_adj") {
        drop(io::Write::write_all(&mut score, b"0"));
    }
}

/// When a process began, in Unix seconds. proc_pidinfo(3).
#[cfg(target_os = "macos")]
fn began(pid: i32) -> Option<i64> {
    // SAFETY: proc_bsdinfo is a struct of integers, for which all zeroes is a valid value.
    let mut process: libc::proc_bsdinfo = unsafe { std::mem::zeroed() };
    let size = libc::c_int::try_from(size_of_val(&process)).ok()?;
    // SAFETY: `process` is writable for `size` bytes.
    let got = unsafe {
        libc::proc_pidinfo(pid, libc::PROC_PIDTBSDINFO, 0, (&raw mut process).cast(), size)
    };
    if got != size {
        return None;
    }
    i64::try_from(process.pbi_start_tvsec).ok()
}
