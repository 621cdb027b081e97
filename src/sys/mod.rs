//! Functions of the operating system that `std` does not have. The only unsafe code of the project.
//!
//! Every function here is safe to call, does one thing, and turns -1 into an [`io::Error`] by
//! [`check`]. The differences between Linux and macOS are hidden here. No function decides
//! anything: there are no paths, no policy and no output.

#![expect(unsafe_code, reason = "the one module that talks to the C library")]

pub mod child;
pub mod crc32c;
pub mod descriptor;
pub mod init;
pub mod memory;
pub mod namespace;
pub mod openat;
pub mod owner;
pub mod poll;
pub mod process;
pub mod signal;
pub mod socket;
pub mod spawn;
pub mod terminal;
pub mod watch;

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
#[cfg(target_os = "linux")]
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

// The unwinder is linked statically: finding and mapping `libgcc_s.so.1` would take a sixth of the
// time of `opta daemon status`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[link(name = "gcc_eh", kind = "static")]
// SAFETY: no item is declared; the block only names a library.
unsafe extern "C" {}

/// Turns the result -1, which means that errno is set, into an error.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Whether programs can show windows although no variable names a display.
pub const HAS_WINDOW_SERVER: bool = cfg!(target_os = "macos");

/// Waits until one of `files` is readable, closed at the other end or in error, and returns which.
/// After `timeout`, none is. A signal that interrupts the wait has no effect. poll(2).
pub fn wait_readable<const N: usize>(
    files: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polled = files.map(|file| polled(file, libc::POLLIN));
    poll(&mut polled, timeout)?;
    Ok(polled.map(|one| one.revents != 0))
}

/// Returns whether the other end of a pipe, a socket or a terminal is closed. poll(2).
pub fn is_hung_up(file: BorrowedFd<'_>) -> bool {
    let mut polled = [polled(file, 0)];
    // Some systems cannot wait for devices, and report POLLNVAL.
    let is_closed = |one: &libc::pollfd| one.revents & (libc::POLLHUP | libc::POLLERR) != 0;
    poll(&mut polled, Some(Duration::ZERO)).is_ok() && polled.iter().any(is_closed)
}

/// The number of bytes that can be written to a pipe in one call, without blocking, when
/// [`wait_any`] reports it as writable. pipe(7).
pub const PIPE_BYTES: usize = libc::PIPE_BUF;

/// Opens a terminal or a pipe again for writing, so that a write fails with
/// [`io::ErrorKind::WouldBlock`] rather than block: a terminal that is writable may still accept
/// less than is written, and the flag would affect all processes that share the descriptor. `None`
/// if that is not possible, and for files, which do not block. proc(5).
#[cfg(target_os = "linux")]
pub fn reopen_for_writing(file: &File) -> Option<File> {
    // Opening /dev/ptmx creates a new terminal each time.
    const MULTIPLEXER: u64 = libc::makedev(5, 2);
    let found = file.metadata().ok()?;
    let may_block = found.file_type().is_fifo() || io::IsTerminal::is_terminal(file);
    if !may_block || found.rdev() == MULTIPLEXER {
        return None;
    }
    let mut options = File::options();
    options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options.open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

/// Returns `None`: on other systems, a descriptor that is opened again shares the flags.
#[cfg(not(target_os = "linux"))]
pub fn reopen_for_writing(_file: &File) -> Option<File> {
    None
}

/// The event to wait for.
#[derive(Clone, Copy)]
pub enum Interest {
    Read,
    Write,
    Either,
}

/// Does the same as [`wait_readable`] for any number of files, each with its own interest.
pub fn wait_any(
    files: &[(BorrowedFd<'_>, Interest)],
    timeout: Option<Duration>,
) -> io::Result<Vec<bool>> {
    let polled = files.iter().map(|(file, event)| polled(*file, interest(*event)));
    let mut polled: Vec<libc::pollfd> = polled.collect();
    poll(&mut polled, timeout)?;
    Ok(polled.iter().map(|one| one.revents != 0).collect())
}

/// The reason why [`wait_while_read`] returned.
pub enum Woken {
    /// There may be something to read.
    Readable,
    /// The other end of the output is closed.
    Hangup,
}

/// Waits until `input` is readable, the other end of `output`, if it is a pipe or a socket, is
/// closed, or the time is up. poll(2).
pub fn wait_while_read(
    input: Option<BorrowedFd<'_>>,
    output: BorrowedFd<'_>,
    timeout: Option<Duration>,
) -> io::Result<Woken> {
    // Linux reports it in any case, macOS only if POLLHUP is requested.
    #[cfg(target_os = "linux")]
    const CLOSED: libc::c_short = 0;
    #[cfg(not(target_os = "linux"))]
    const CLOSED: libc::c_short = libc::POLLHUP;
    let kind = File::from(output.try_clone_to_owned()?).metadata()?.file_type();
    let mut output = polled(output, CLOSED);
    if !kind.is_fifo() && !kind.is_socket() {
        // poll(2) ignores negative descriptors.
        output.fd = -1;
    }
    let ignored = libc::pollfd { fd: -1, events: 0, revents: 0 };
    let input = input.map_or(ignored, |input| polled(input, libc::POLLIN));
    let mut polled = [input, output];
    poll(&mut polled, timeout)?;
    let [_, output] = polled;
    Ok(if output.revents != 0 { Woken::Hangup } else { Woken::Readable })
}

fn interest(event: Interest) -> libc::c_short {
    match event {
        Interest::Read => libc::POLLIN,
        Interest::Write => libc::POLLOUT,
        Interest::Either => libc::POLLIN | libc::POLLOUT,
    }
}

fn polled(file: BorrowedFd<'_>, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: file.as_raw_fd(), events, revents: 0 }
}

fn poll(polled: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let count = libc::nfds_t::try_from(polled.len()).map_err(io::Error::other)?;
    loop {
        let millis = deadline.map_or(-1, |deadline| {
            // Rounded up, since the caller of a wait that ends early would loop.
            let left = deadline.saturating_duration_since(Instant::now());
            i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
        });
        // SAFETY: `polled` is a live slice of pollfd, and `count` its length.
        let result = unsafe { libc::poll(polled.as_mut_ptr(), count, millis) };
        match check(result) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Fills `bytes` from the kernel's random source; there is no weaker fallback. getrandom(2),
/// getentropy(3).
pub fn random(bytes: &mut [u8; 32]) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            // SAFETY: `rest` is writable for the length passed.
            let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
            match usize::try_from(got) {
                Ok(count) => filled += count,
                Err(_negative) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
    #[cfg(not(target_os = "linux"))]
    {
        // SAFETY: 32 bytes are writable, below getentropy's limit of 256.
        check(unsafe { libc::getentropy(bytes.as_mut_ptr().cast(), bytes.len()) }).map(drop)
    }
}

/// Returns the effective user.
pub fn effective_user() -> u32 {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Returns the effective user's home directory in the user database. getpwuid_r(3).
pub fn home_of_user() -> Option<PathBuf> {
    user_entry(effective_user(), |entry| entry.pw_dir).map(PathBuf::from)
}

/// Returns the name of a user in the user database.
pub fn name_of_user(user: u32) -> Option<String> {
    user_entry(user, |entry| entry.pw_name)?.into_string().ok()
}

/// Returns a field of a user's entry. getpwuid_r(3).
fn user_entry(user: u32, field: fn(&libc::passwd) -> *mut libc::c_char) -> Option<OsString> {
    let mut buffer = vec![0_u8; 16 * 1024];
    // SAFETY: passwd is a C struct of integers and pointers, for which all zeroes is a valid value.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: every pointer is to live memory of the length passed.
    let result = unsafe {
        libc::getpwuid_r(
            user,
            &raw mut entry,
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            &raw mut found,
        )
    };
    let value = field(&entry);
    if result != 0 || found.is_null() || value.is_null() {
        return None;
    }
    // SAFETY: on success the fields that are texts point to NUL-terminated strings inside `buffer`,
    // which lives.
    let text = unsafe { CStr::from_ptr(value) };
    Some(OsStr::from_bytes(text.to_bytes()).to_owned())
}

/// Returns the host name. gethostname(2).
pub fn hostname() -> String {
    let mut buffer = [0_u8; 256];
    // SAFETY: the buffer is writable for one byte more than the length passed, so it stays
    // terminated.
    let result = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len() - 1) };
    if result != 0 {
        return String::new();
    }
    let name: Vec<u8> = buffer.into_iter().take_while(|byte| *byte != 0).collect();
    OsString::from_vec(name).to_string_lossy().into_owned()
}

/// Returns the time since boot, which includes suspend and does not depend on the wall clock.
/// clock_gettime(2).
pub fn boot_clock() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: libc::clockid_t = libc::CLOCK_BOOTTIME;
    // On macOS the monotonic clock includes sleep.
    #[cfg(not(target_os = "linux"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a writable timespec; with a clock that exists the call cannot fail.
    unsafe { libc::clock_gettime(CLOCK, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}

/// A date and time in the user's time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    pub year: i32,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

/// Converts a Unix time to the user's time zone. localtime_r(3).
pub fn local_time(unix_seconds: i64) -> WallClock {
    // SAFETY: tm is a C struct of integers and a pointer, for which all zeroes is a valid value.
    let mut fields: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the right type.
    unsafe { libc::localtime_r(&raw const unix_seconds, &raw mut fields) };
    let small = |value: libc::c_int| u8::try_from(value).unwrap_or(0);
    WallClock {
        year: fields.tm_year.saturating_add(1900),
        month: small(fields.tm_mon).saturating_add(1),
        day: small(fields.tm_mday),
        hour: small(fields.tm_hour),
        minute: small(fields.tm_min),
        second: small(fields.tm_sec),
    }
}

/// Converts a date and time to a Unix time; `None` if it is out of range. Of an hour that occurs
/// twice, at the end of daylight saving time, the first one counts. mktime(3).
pub fn unix_time(clock: &WallClock) -> Option<i64> {
    // SAFETY: tm is a C struct of integers and a pointer, for which all zeroes is a valid value.
    let mut fields: libc::tm = unsafe { std::mem::zeroed() };
    fields.tm_year = clock.year.checked_sub(1900)?;
    fields.tm_mon = i32::from(clock.month) - 1;
    fields.tm_mday = i32::from(clock.day);
    fields.tm_hour = i32::from(clock.hour);
    fields.tm_min = i32::from(clock.minute);
    fields.tm_sec = i32::from(clock.second);
    fields.tm_isdst = -1;
    // It returns -1 on failure, but also for the last second of 1969. Only success sets this.
    fields.tm_wday = -1;
    // SAFETY: `fields` is a live, initialized tm.
    let seconds = unsafe { libc::mktime(&raw mut fields) };
    if seconds == -1 && fields.tm_wday == -1 {
        return None;
    }
    // Clocks are set back by multiples of a quarter of an hour.
    let shown = local_time(seconds);
    let earlier = (1..=12_i64).rev().filter_map(|quarters| seconds.checked_sub(quarters * 900));
    Some(earlier.into_iter().find(|before| local_time(*before) == shown).unwrap_or(seconds))
}

/// Returns the address of an abstract socket. Linux only: unix(7).
pub fn abstract_address(name: &[u8]) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt;
        SocketAddr::from_abstract_name(name)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let name = String::from_utf8_lossy(name);
        Err(io::Error::other(format!("there are no abstract sockets here: {name}")))
    }
}

/// Redirects standard output and standard error. dup2(2).
pub fn redirect_output(output: &File) -> io::Result<()> {
    for standard in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: both are descriptors; standard streams are not owned by any Rust value.
        check(unsafe { libc::dup2(output.as_raw_fd(), standard) })?;
    }
    Ok(())
}

/// Makes the files that this process creates from now on private. umask(2).
pub fn private_umask() {
    // SAFETY: umask cannot fail and touches no memory.
    unsafe { libc::umask(0o077) };
}

/// Returns the file mode creation mask. umask(2) can only be read by setting it; for that moment it
/// is the strictest one.
pub fn umask() -> u32 {
    // SAFETY: umask cannot fail and touches no memory.
    let mask = unsafe { libc::umask(0o777) };
    // SAFETY: as above.
    unsafe { libc::umask(mask) };
    #[cfg_attr(target_os = "linux", expect(clippy::useless_conversion, reason = "macOS has u16"))]
    u32::from(mask)
}

/// Raises the limit on descriptors to `wanted`, or as far as that is permitted. setrlimit(2).
pub fn allow_descriptors(wanted: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes to the struct that it is given, which lives for the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    if limit.rlim_cur >= wanted {
        return Ok(());
    }
    limit.rlim_cur = wanted.min(limit.rlim_max);
    // SAFETY: setrlimit reads the struct that it is given, which lives for the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).map(drop)
}

/// Forbids core files: they would contain the token and the conversations. A program that this
/// process starts may allow them again. setrlimit(2).
pub fn forbid_core_files() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes to the struct that it is given, which lives for the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) })?;
    limit.rlim_cur = 0;
    // SAFETY: setrlimit reads the struct that it is given, which lives for the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) }).map(drop)
}

/// Returns the resident set size; 0 if it is unknown.
pub fn resident_bytes() -> u64 {
    #[cfg(target_os = "linux")]
    {
        let pages = std::fs::read_to_string("/proc/self/statm")
            .ok()
            .and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok())
            .unwrap_or(0);
        // SAFETY: sysconf takes a constant and touches no memory.
        let page_size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        pages.saturating_mul(u64::try_from(page_size).unwrap_or(0))
    }
    #[cfg(target_os = "macos")]
    {
        process::resident_bytes().unwrap_or(0)
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    {
        0
    }
}

/// Discards input that was typed on a terminal and is not read yet. tcflush(3).
pub fn discard_input(input: BorrowedFd<'_>) {
    // SAFETY: the call takes a descriptor that lives, and a constant.
    unsafe { libc::tcflush(input.as_raw_fd(), libc::TCIFLUSH) };
}

/// Returns the number of bytes that are free for this user on the file system. statvfs(3).
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: statvfs is a C struct of integers, for which all zeroes is a valid value.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is a NUL-terminated string and `found` a live statvfs.
    check(unsafe { libc::statvfs(path.as_ptr(), &raw mut found) })?;
    #[cfg_attr(target_os = "linux", expect(clippy::useless_conversion, reason = "macOS has u32"))]
    Ok(u64::from(found.f_bavail).saturating_mul(found.f_frsize))
}
