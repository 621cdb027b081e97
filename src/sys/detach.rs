//! Leaving the terminal: the double fork, and what a daemon must not take with it.

#[cfg(target_os = "macos")]
use std::ffi::CStr;
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
    Background(NoReturn),
}

/// What the process in the background holds until it ends, for it must not go back to where it was
/// forked: the values there own descriptors that are the foreground's business, and that
/// [`close_inherited`] closes, so that dropping them would close whatever has the numbers by then.
///
/// Whoever drops it, as a panic does, ends the process.
pub struct NoReturn(());

impl Drop for NoReturn {
    fn drop(&mut self) {
        std::process::abort();
    }
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
        Ok(0) => Ok(Side::Background(NoReturn(()))),
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

/// Writes `title`, each of its words ended by NUL, over the arguments that this process was started
/// with, and NUL over the rest: they are shown to every user, and `std` must not be asked for them
/// any more. If it does not fit, as many of its words are taken as do. proc(5), ps(1).
///
/// Refused in a process with more than one thread: another could be reading them.
pub fn retitle(title: &[&str]) -> io::Result<()> {
    if super::process::own_threads().is_some_and(|threads| threads != 1) {
        return Err(io::Error::other("the process has more than one thread"));
    }
    let (begin, length) = arguments()?;
    // SAFETY: `arguments` names bytes of this process that are writable as long as it lives, and
    // which no Rust value borrows: `std` copies them when it is asked. There is no other thread.
    // The C library's `program_invocation_name` points there as well, and keeps finding a string.
    let bytes = unsafe { std::slice::from_raw_parts_mut(begin, length) };
    // The last byte stays NUL: whoever reads an argument finds an end.
    bytes.fill(0);
    let mut rest = bytes;
    for word in title {
        let Some((place, behind)) = rest.split_at_mut_checked(word.len() + 1) else { break };
        place.iter_mut().zip(word.bytes()).for_each(|(to, from)| *to = from);
        rest = behind;
    }
    Ok(())
}

/// Where the arguments of this process lie, one after the other, and how many bytes they are.
#[cfg(target_os = "linux")]
fn arguments() -> io::Result<(*mut u8, usize)> {
    let text = std::fs::read("/proc/self/stat")?;
    // The kernel cuts the name after so many bytes, be it within a character.
    let text = String::from_utf8_lossy(&text);
    // Behind the name, which may hold anything, the 48th and the 49th field; 0 is "not for you".
    let fields = text.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let mut places = fields.split(' ').skip(45).map_while(|field| field.trim().parse().ok());
    match (places.next(), places.next()) {
        (Some(begin), Some(end)) if 0 < begin && begin < end => {
            Ok((std::ptr::with_exposed_provenance_mut(begin), end - begin))
        }
        _ => Err(io::Error::other("the system does not tell where they are")),
    }
}

/// As above. crt_externs(3).
#[cfg(target_os = "macos")]
fn arguments() -> io::Result<(*mut u8, usize)> {
    // SAFETY: takes nothing, and cannot fail.
    let count = unsafe { libc::_NSGetArgc() };
    // SAFETY: as above.
    let list = unsafe { libc::_NSGetArgv() };
    // SAFETY: it can be read as long as the process lives.
    let count = unsafe { *count };
    // SAFETY: as above.
    let list = unsafe { *list };
    let count = usize::try_from(count).unwrap_or(0);
    if count == 0 || list.is_null() {
        return Err(io::Error::other("there are none"));
    }
    // SAFETY: the list has `count` elements, and nobody changes it.
    let list = unsafe { std::slice::from_raw_parts(list, count) };
    let begin = list.first().copied().unwrap_or(std::ptr::null_mut()).cast::<u8>();
    let mut end = begin;
    for argument in list.iter().map(|argument| argument.cast::<u8>()) {
        // Only what the kernel has put there, in one piece.
        if argument.is_null() || argument != end {
            break;
        }
        // SAFETY: an argument is a string that ends with NUL.
        let length = unsafe { CStr::from_ptr(argument.cast()) }.to_bytes_with_nul().len();
        end = argument.wrapping_add(length);
    }
    match end.addr() - begin.addr() {
        0 => Err(io::Error::other("there are none")),
        length => Ok((begin, length)),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn arguments() -> io::Result<(*mut u8, usize)> {
    Err(io::Error::other("it is not known where they are"))
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
/// Only for the moment after a fork. What the caller goes on to use is in `kept`; other values that
/// own a descriptor lie behind the fork, where the [`NoReturn`] lets nobody go.
pub fn close_inherited(kept: &[RawFd], _no_return: &NoReturn) {
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
        // SAFETY: integers only; what is closed is used by nobody any more, as the caller promises.
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
