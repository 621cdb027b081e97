//! Starting this program again in the background: fork, setsid, fork, exec. Three descriptors are
//! handed over to it, each under a fixed number.
//!
//! The starter may have more than one thread, for example from a preloaded library. So between fork
//! and exec only async-signal-safe calls are made (signal-safety(7)), and whatever they need is
//! prepared before the fork.

use std::convert::Infallible;
use std::ffi::{CString, OsString, c_char};
use std::fs::File;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{check, signal};

/// The number of the lock in the new process.
const LOCK: RawFd = 3;
/// The number of the listener.
const LISTENER: RawFd = 4;
/// The number of the pipe's writing end.
const PIPE: RawFd = 5;
/// The exec closes the descriptors from this number on.
const FIRST_CLOSED: RawFd = 6;

/// Returns the paths of the program. The link in /proc leads to the file that this process runs,
/// even if another file now has its name. Without /proc, only the name is known. proc(5),
/// getauxval(3).
#[cfg(target_os = "linux")]
fn own_paths() -> io::Result<Vec<CString>> {
    use std::ffi::{CStr, OsStr};
    use std::os::unix::ffi::OsStrExt;
    if let Some(path) = program_of_loader() {
        return Ok(vec![CString::new(path.into_os_string().into_vec())?]);
    }
    let mut paths = vec![CString::from(c"/proc/self/exe")];
    // SAFETY: the call takes a constant.
    let address = unsafe { libc::getauxval(libc::AT_EXECFN) };
    let name: *const c_char =
        std::ptr::with_exposed_provenance(usize::try_from(address).unwrap_or(0));
    if !name.is_null() {
        // SAFETY: the kernel has put a NUL-terminated string there, and nothing changes it.
        let name = unsafe { CStr::from_ptr(name) };
        // It may be relative to a directory that was since removed.
        if let Ok(path) = std::path::absolute(OsStr::from_bytes(name.to_bytes())) {
            paths.push(CString::new(path.into_os_string().into_vec())?);
        }
    }
    Ok(paths)
}

/// Returns the path of the program. _NSGetExecutablePath(3).
#[cfg(not(target_os = "linux"))]
fn own_paths() -> io::Result<Vec<CString>> {
    Ok(vec![CString::new(std::env::current_exe()?.into_os_string().into_vec())?])
}

/// Returns the path of the program, also if it is run by `ld.so opta`.
pub fn program() -> io::Result<PathBuf> {
    program_of_loader().map_or_else(std::env::current_exe, Ok)
}

/// Returns the path of the program if the process executed the dynamic loader, which loaded it:
/// what the system calls the program is the loader then. ld.so(8), proc(5).
#[cfg(all(target_os = "linux", not(target_feature = "crt-static")))]
fn program_of_loader() -> Option<PathBuf> {
    // SAFETY: the call takes a constant.
    if unsafe { libc::getauxval(libc::AT_BASE) } != 0 {
        // The system loaded the loader for the program.
        return None;
    }
    let own = u64::try_from(program_of_loader as *const () as usize).ok()?;
    let mappings = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = mappings.lines().find_map(|line| {
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        let (range, rest) = line.split_once(' ')?;
        let (begin, end) = range.split_once('-')?;
        let is_own = (number(begin)?..number(end)?).contains(&own);
        is_own.then(|| rest.get(rest.find('/')?..)).flatten()
    })?;
    Some(PathBuf::from(path))
}

/// Returns `None`: no loader is executed.
#[cfg(not(all(target_os = "linux", not(target_feature = "crt-static"))))]
fn program_of_loader() -> Option<PathBuf> {
    None
}

/// The descriptors that the new process gets from its starter.
pub struct Descriptors<'a> {
    pub input: BorrowedFd<'a>,
    /// Standard output and error.
    pub output: BorrowedFd<'a>,
    /// The pid of the new process is written to this file.
    pub lock: &'a File,
    pub listener: BorrowedFd<'a>,
    /// A failure before the exec is reported here.
    pub pipe: BorrowedFd<'a>,
}

/// A step between the fork and the first instruction of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// setsid(2) and the second fork.
    Detach,
    /// Signals are blocked, and the pid is written to the lock's file.
    WritePid,
    /// The descriptors get their numbers.
    HandOver,
    Execute,
}

const STEPS: [Step; 4] = [Step::Detach, Step::WritePid, Step::HandOver, Step::Execute];

/// A step that failed, and why.
type Failure = (Step, io::Error);

/// Parses the report of a failure before the exec; `None` if it is anything else. The program must
/// begin its own report with a printable character.
pub fn failure(report: &[u8]) -> Option<Failure> {
    let (step, number) = report.split_first()?;
    let step = STEPS.get(usize::from(*step))?;
    Some((*step, io::Error::from_raw_os_error(i32::from_ne_bytes(number.try_into().ok()?))))
}

fn report((step, error): &Failure) -> [u8; 5] {
    let [a, b, c, d] = error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes();
    [*step as u8, a, b, c, d]
}

/// A program that was started in the background.
///
/// The process between the two forks is not reaped before this is dropped. Until then the kernel
/// does not reuse its pid, neither for a process nor for a process group. The group with that
/// number contains the new process and none that it did not start.
pub struct Background {
    between: libc::pid_t,
}

impl Background {
    /// Kills the new process, wherever it hangs, or prevents the second fork.
    pub fn kill(&self) {
        self.kill_between();
        // SAFETY: integers only. There is no such group if that process was killed before
        // setsid(2).
        unsafe { libc::kill(-self.between, libc::SIGKILL) };
    }

    fn kill_between(&self) {
        // SAFETY: integers only; the number is still that of our child.
        unsafe { libc::kill(self.between, libc::SIGKILL) };
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may hang, too. After the second fork it has nothing more to do.
        self.kill_between();
        // SAFETY: no status is asked for.
        let reap = || check(unsafe { libc::waitpid(self.between, std::ptr::null_mut(), 0) });
        while reap().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {}
    }
}

/// Starts this program in a new session that it does not lead, so that it can never get a terminal,
/// and with no other descriptors than these. SIGTERM, SIGINT and SIGHUP are blocked in it, so that
/// it can read those that are sent before it is ready.
///
/// Returns before the exec. A failure from then on is reported on the pipe: see [`failure`].
pub fn in_background(
    arguments: &[&str],
    environment: Vec<(OsString, OsString)>,
    given: &Descriptors<'_>,
) -> io::Result<Background> {
    let paths = own_paths()?;
    let arguments = arguments.iter().map(|argument| CString::new(*argument));
    let arguments: Vec<CString> = arguments.collect::<Result<_, _>>()?;
    let variable = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        CString::new(name.into_vec())
    };
    let environment: Vec<CString> =
        environment.into_iter().map(variable).collect::<Result<_, _>>()?;
    let [input, output, lock, listener, pipe] = [
        duplicate(given.input)?,
        duplicate(given.output)?,
        duplicate(given.lock.as_fd())?,
        duplicate(given.listener)?,
        duplicate(given.pipe)?,
    ];
    let child = Child {
        lock: given.lock,
        numbers: [
            (&input, libc::STDIN_FILENO),
            (&output, libc::STDOUT_FILENO),
            (&output, libc::STDERR_FILENO),
            (&lock, LOCK),
            (&listener, LISTENER),
            (&pipe, PIPE),
        ],
        paths: &paths,
        arguments: pointers(&arguments),
        environment: pointers(&environment),
    };
    // If a process ignores SIGCHLD, its children cannot be reaped.
    // SAFETY: a standard disposition runs none of our code.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // SAFETY: the child makes async-signal-safe calls only.
    let between = check(unsafe { libc::fork() })?;
    if between > 0 {
        return Ok(Background { between });
    }
    let Err(failure) = child.detach();
    let report = report(&failure);
    // SAFETY: `report` can be read for its length.
    unsafe { libc::write(pipe.as_raw_fd(), report.as_ptr().cast(), report.len()) };
    // SAFETY: nothing of the parent's is run, such as the flushing of its buffers.
    unsafe { libc::_exit(1) }
}

/// Duplicates a descriptor, to a number that the new process does not use. fcntl(2).
fn duplicate(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    let raw = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FIRST_CLOSED) })?;
    // SAFETY: the descriptor is new, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Returns the array that execve(2) takes. The strings must outlive it.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let null = std::iter::once(std::ptr::null());
    strings.iter().map(|string| string.as_ptr()).chain(null).collect()
}

/// The child between fork and exec. Its functions allocate nothing and take no lock.
struct Child<'a> {
    lock: &'a File,
    numbers: [(&'a OwnedFd, RawFd); 6],
    /// Tried in this order.
    paths: &'a [CString],
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
}

impl Child<'_> {
    /// Forks again, ends the process in between, and executes the program in the new one. Returns
    /// only a failure.
    fn detach(&self) -> Result<Infallible, Failure> {
        let detach = |error| (Step::Detach, error);
        // SAFETY: setsid takes nothing.
        check(unsafe { libc::setsid() }).map_err(detach)?;
        // SAFETY: as for the first fork.
        if check(unsafe { libc::fork() }).map_err(detach)? > 0 {
            // SAFETY: as in `in_background`.
            unsafe { libc::_exit(0) };
        }
        self.write_pid().map_err(|error| (Step::WritePid, error))?;
        self.hand_over().map_err(|error| (Step::HandOver, error))?;
        Err((Step::Execute, self.execute()))
    }

    /// Writes the pid to the lock file. From now on other commands may signal this process.
    fn write_pid(&self) -> io::Result<()> {
        signal::block_for_exec()?;
        let mut line = [0_u8; 16];
        let mut rest = line.as_mut_slice();
        writeln!(rest, "{}", std::process::id())?;
        let unused = rest.len();
        let length = line.len() - unused;
        self.lock.set_len(0)?;
        self.lock.write_all_at(line.get(..length).unwrap_or_default(), 0)
    }

    fn hand_over(&self) -> io::Result<()> {
        for (file, number) in &self.numbers {
            // SAFETY: integers only; this process no longer uses what has the number.
            check(unsafe { libc::dup2(file.as_raw_fd(), *number) })?;
        }
        close_on_exec();
        Ok(())
    }

    fn execute(&self) -> io::Error {
        let (arguments, environment) = (self.arguments.as_ptr(), self.environment.as_ptr());
        for path in self.paths {
            // SAFETY: strings that end with NUL, and arrays of such that end with a null pointer.
            unsafe { libc::execve(path.as_ptr(), arguments, environment) };
        }
        io::Error::last_os_error()
    }
}

/// Marks all other descriptors close-on-exec: what the caller's shell, ssh or CI left open would
/// stay open as long as the program runs. close_range(2) where it exists.
fn close_on_exec() {
    #[cfg(target_os = "linux")]
    {
        let (first, last) = (FIRST_CLOSED, libc::c_uint::MAX);
        // SAFETY: integers only.
        let result =
            unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
        if result == 0 {
            return;
        }
    }
    // SAFETY: sysconf takes a constant.
    let limit = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
    for raw in FIRST_CLOSED..RawFd::try_from(limit).unwrap_or(1 << 20).clamp(256, 1 << 20) {
        // SAFETY: integers only; that it is not open is no error.
        unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// The descriptors that a program got from [`in_background`].
pub struct HandedOver {
    pub lock: File,
    pub listener: TcpListener,
    pub pipe: File,
}

/// Takes the descriptors that were handed over, if they are open. The caller checks what they are.
/// Must be called once, before any descriptor is opened.
pub fn take_over() -> io::Result<HandedOver> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(io::Error::other("already taken"));
    }
    let owned = |raw| {
        // SAFETY: integers only.
        check(unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) })?;
        // SAFETY: it is open, and was before the program began; nothing else owns it, as the caller
        // promises.
        Ok::<_, io::Error>(unsafe { OwnedFd::from_raw_fd(raw) })
    };
    Ok(HandedOver {
        lock: owned(LOCK)?.into(),
        listener: owned(LISTENER)?.into(),
        pipe: owned(PIPE)?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_a_failure_is_read_as_it_was_written() {
        for step in STEPS {
            let error = io::Error::from_raw_os_error(libc::ENOENT);
            let (found, cause) = failure(&report(&(step, error))).unwrap();
            assert_eq!((found, cause.raw_os_error()), (step, Some(libc::ENOENT)));
        }
        assert!(failure(b"opta ").is_none());
        assert!(failure(b"").is_none());
        assert!(failure(&[0; 4]).is_none());
    }
}
