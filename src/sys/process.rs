//! Processes: whether one exists or has a file open, and a handle that never means a
//! process that reuses the pid.

use std::fs::Metadata;
use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
#[cfg(target_os = "linux")]
use std::time::Instant;

use super::check;
use super::signal::Signal;

/// Sends signal zero: returns whether a process has this pid, or a thread or a zombie. It may be
/// any program, since pids are reused. kill(2).
pub fn probe(pid: i32) -> bool {
    // SAFETY: kill touches no memory; signal 0 is not delivered.
    let result = check(unsafe { libc::kill(pid, 0) });
    // The kernel may refuse the signal, but not to a process that does not exist.
    pid > 0 && result.map_or_else(|error| error.raw_os_error() != Some(libc::ESRCH), |_| true)
}

/// Returns whether the system tells what other processes have open. proc(5).
pub fn can_be_inspected() -> bool {
    cfg!(not(target_os = "linux")) || std::path::Path::new("/proc/self/fd").exists()
}

/// A handle of a process. A signal cannot reach a later process with the same pid.
///
/// On Linux this is a pidfd (pidfd_open(2), Linux 5.3). Where there is none, it is only the pid,
/// and the caller checks that the process holds the lock just before it sends a signal.
pub struct Process {
    pid: i32,
    #[cfg(target_os = "linux")]
    handle: Option<OwnedFd>,
}

impl Process {
    /// Opens the process that has this pid now; `None` if there is none.
    ///
    /// Refuses the numbers that mean process groups to kill(2), and this process: it is no daemon
    /// to be stopped.
    pub fn open(pid: i32) -> io::Result<Option<Process>> {
        if pid <= 0 || u32::try_from(pid) == Ok(std::process::id()) {
            return Ok(None);
        }
        #[cfg(target_os = "linux")]
        {
            // SAFETY: the call takes two integers.
            let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
            match check(libc::c_int::try_from(result).unwrap_or(-1)) {
                Ok(raw) => {
                    // SAFETY: the descriptor is new, so nothing else owns it.
                    let handle = Some(unsafe { OwnedFd::from_raw_fd(raw) });
                    Ok(Some(Process { pid, handle }))
                }
                Err(error) => match error.raw_os_error() {
                    // EINVAL: it is the number of a thread.
                    Some(libc::ESRCH | libc::EINVAL | libc::ENOENT) => Ok(None),
                    // An older kernel, or a filter of system calls: seccomp(2).
                    Some(libc::ENOSYS | libc::EPERM) => {
                        Ok(probe(pid).then_some(Process { pid, handle: None }))
                    }
                    _ => Err(error),
                },
            }
        }
        #[cfg(not(target_os = "linux"))]
        {
            Ok(probe(pid).then_some(Process { pid }))
        }
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Returns whether the process has `file` open. If so, it is the owner of the lock on it, and
    /// not a process that reuses the owner's pid or counts pids in another namespace.
    ///
    /// Linux: looks through its descriptors. macOS: checks that it started before the file was last
    /// written.
    pub fn holds(&self, file: &Metadata) -> bool {
        #[cfg(target_os = "linux")]
        {
            let descriptors = match std::fs::read_dir(format!("/proc/{}/fd", self.pid)) {
                Ok(descriptors) => descriptors,
                // A process with another group may not look there: ptrace(2).
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return self.is_ours_and_older_than(file) && self.running();
                }
                Err(_) => return false,
            };
            descriptors.filter_map(Result::ok).any(|entry| {
                // This follows the link to the open file.
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

    /// Sends a signal; returns false if the process has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        self.send(signal.number())
    }

    /// Sends SIGKILL; returns false if the process has ended.
    pub fn kill(&self) -> io::Result<bool> {
        self.send(libc::SIGKILL)
    }

    fn send(&self, number: libc::c_int) -> io::Result<bool> {
        match self.send_by_handle(number).unwrap_or_else(|| self.send_by_pid(number)) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns `None` if there is no handle, or if the system forbids its use.
    #[cfg(target_os = "linux")]
    fn send_by_handle(&self, number: libc::c_int) -> Option<io::Result<()>> {
        let raw = self.handle.as_ref()?.as_raw_fd();
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is a live pidfd; no siginfo is passed.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, raw, number, none, 0) };
        match check(libc::c_int::try_from(result).unwrap_or(-1)) {
            // The pid is still its own, since the handle shows that it runs.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
                    && self.running() =>
            {
                None
            }
            result => Some(result.map(drop)),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn send_by_handle(&self, _number: libc::c_int) -> Option<io::Result<()>> {
        None
    }

    fn send_by_pid(&self, number: libc::c_int) -> io::Result<()> {
        // SAFETY: the number is positive and was verified by the caller.
        check(unsafe { libc::kill(self.pid, number) }).map(drop)
    }

    /// Waits until the process has ended; returns false after `timeout`. Where the system has no
    /// notification, looks again after each `interval`.
    #[cfg_attr(not(target_os = "linux"), expect(unused_variables, reason = "kqueue notifies"))]
    pub fn wait(&self, timeout: Duration, interval: Duration) -> io::Result<bool> {
        #[cfg(target_os = "linux")]
        {
            let Some(handle) = &self.handle else {
                return self.wait_without_handle(timeout, interval);
            };
            let [ended] = super::wait_readable([handle.as_fd()], Some(timeout))?;
            Ok(ended)
        }
        #[cfg(not(target_os = "linux"))]
        {
            super::watch::wait_for_exit(self.pid, timeout)
        }
    }

    #[cfg(target_os = "linux")]
    fn wait_without_handle(&self, timeout: Duration, interval: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            if !probe(self.pid) || self.is_zombie() {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            super::wait_readable([], Some(left.min(interval)))?;
        }
    }

    /// Returns whether the process has ended and was not reaped. proc(5).
    #[cfg(target_os = "linux")]
    fn is_zombie(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid));
        // The name, field 2, may contain anything.
        let state = stat.ok().and_then(|text| text.rsplit_once(") ")?.1.chars().next());
        matches!(state, Some('Z' | 'X'))
    }

    /// Returns whether the process is this user's and started before the file was last written: one
    /// that reuses the pid of a dead owner started later. proc(5).
    #[cfg(target_os = "linux")]
    fn is_ours_and_older_than(&self, file: &Metadata) -> bool {
        let directory = format!("/proc/{}", self.pid);
        let ours = std::fs::metadata(&directory).is_ok_and(|found| found.uid() == file.uid());
        let began = std::fs::read_to_string(format!("{directory}/stat")).ok().and_then(|text| {
            // Field 22, in clock ticks since boot. The name, field 2, may contain anything.
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
        self.wait(Duration::ZERO, Duration::ZERO).is_ok_and(|ended| !ended)
    }
}

/// Returns the resident set size. proc_pidinfo(3).
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

/// Removes what a process inherits from its starter by exec: a name that is that of a link, and how
/// much of the machine one command is to get: the scheduling policy, the nice value, the I/O
/// priority, the CPUs and the OOM score, as far as that is permitted. Resource limits stay: they
/// bound whatever the user runs. prctl(2), setpriority(2), proc(5).
pub fn reset_inherited() {
    #[cfg(target_os = "linux")]
    // SAFETY: the name ends with NUL.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"opta".as_ptr())
    };
    #[cfg(target_os = "linux")]
    reset_scheduling();
    // SAFETY: integers only.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
    #[cfg(target_os = "linux")]
    if let Ok(mut score) = std::fs::File::options().write(true).open("/proc/self/oom_score_adj") {
        drop(io::Write::write_all(&mut score, b"0"));
    }
}

/// sched_setscheduler(2), which musl does not have, sched_setaffinity(2), ioprio_set(2).
#[cfg(target_os = "linux")]
fn reset_scheduling() {
    /// IOPRIO_WHO_PROCESS of linux/ioprio.h. A priority of 0 follows the nice value.
    const PROCESS: i32 = 1;
    let (this, priority, every_cpu) = (0, 0_i32, [0xff_u8; 128]);
    let policy = (libc::SYS_sched_setscheduler, libc::SCHED_OTHER);
    // SAFETY: sched_setscheduler reads a struct of one integer.
    unsafe { libc::syscall(policy.0, this, policy.1, &raw const priority) };
    let affinity = libc::SYS_sched_setaffinity;
    // SAFETY: sched_setaffinity reads a set of as many bytes.
    unsafe { libc::syscall(affinity, this, every_cpu.len(), every_cpu.as_ptr()) };
    // SAFETY: integers only.
    unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, this, 0) };
}

/// Returns when a process started, in Unix seconds. proc_pidinfo(3).
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
