//! Watches of directories: inotify(7) on Linux, kqueue(2) on other systems.
//!
//! A watch only reports that something may have changed. The caller then checks what did, so that a
//! lost detail, an overflow or a spurious event does no harm.

#[cfg(target_os = "linux")]
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
#[cfg(target_os = "linux")]
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use super::check;

/// A watch of one directory: of files that are created, removed, renamed or written.
#[cfg(target_os = "linux")]
pub struct Watch {
    queue: OwnedFd,
}

#[cfg(target_os = "linux")]
impl Watch {
    /// Watches `directory`, which must exist, from now on.
    pub fn on(directory: &Path) -> io::Result<Watch> {
        // SAFETY: the call takes one integer.
        let raw = check(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })?;
        // SAFETY: the descriptor is new, so nothing else owns it.
        let queue = unsafe { OwnedFd::from_raw_fd(raw) };
        let path = CString::new(directory.as_os_str().as_bytes()).map_err(io::Error::other)?;
        let mask = libc::IN_MODIFY
            | libc::IN_CLOSE_WRITE
            | libc::IN_CREATE
            | libc::IN_DELETE
            | libc::IN_MOVE
            | libc::IN_DELETE_SELF
            | libc::IN_MOVE_SELF;
        // SAFETY: `path` is a NUL-terminated string that lives through the call.
        check(unsafe { libc::inotify_add_watch(queue.as_raw_fd(), path.as_ptr(), mask) })?;
        Ok(Watch { queue })
    }

    /// Watches `file` for writes, too. On Linux the watch of the directory does so already.
    pub fn add_file(&mut self, _file: &std::fs::File) -> io::Result<()> {
        Ok(())
    }

    /// Waits for a change; returns false after `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let [changed] = super::wait_readable([self.queue.as_fd()], timeout)?;
        self.discard();
        Ok(changed)
    }

    /// Discards the pending events.
    fn discard(&self) {
        let mut buffer = [0_u8; 4096];
        loop {
            // SAFETY: the buffer is writable for the length passed; the descriptor does not block.
            let got = unsafe {
                libc::read(self.queue.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len())
            };
            if got <= 0 {
                return;
            }
        }
    }
}

#[cfg(target_os = "linux")]
impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

/// A watch of one directory, and of files that were added.
#[cfg(not(target_os = "linux"))]
pub struct Watch {
    queue: OwnedFd,
    _directory: std::fs::File,
    files: Vec<std::fs::File>,
}

#[cfg(not(target_os = "linux"))]
impl Watch {
    /// Watches `directory`, which must exist, from now on.
    pub fn on(directory: &Path) -> io::Result<Watch> {
        let queue = kqueue()?;
        let opened = std::fs::File::open(directory)?;
        let changes = libc::NOTE_WRITE | libc::NOTE_DELETE | libc::NOTE_RENAME | libc::NOTE_EXTEND;
        register(&queue, vnode_event(opened.as_raw_fd(), changes))?;
        Ok(Watch { queue, _directory: opened, files: Vec::new() })
    }

    /// Watches `file` for writes, too.
    pub fn add_file(&mut self, file: &std::fs::File) -> io::Result<()> {
        let file = file.try_clone()?;
        let changes = libc::NOTE_WRITE | libc::NOTE_EXTEND | libc::NOTE_DELETE | libc::NOTE_RENAME;
        register(&self.queue, vnode_event(file.as_raw_fd(), changes))?;
        self.files.push(file);
        Ok(())
    }

    /// Waits for a change; returns false after `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        next(&self.queue, timeout)
    }
}

#[cfg(not(target_os = "linux"))]
impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

/// Waits until the process has ended; returns false after `timeout`.
#[cfg(not(target_os = "linux"))]
pub fn wait_for_exit(pid: i32, timeout: Duration) -> io::Result<bool> {
    let queue = kqueue()?;
    let mut event = vnode_event(pid, libc::NOTE_EXIT);
    event.filter = libc::EVFILT_PROC;
    match register(&queue, event) {
        Ok(()) => next(&queue, Some(timeout)),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(not(target_os = "linux"))]
fn kqueue() -> io::Result<OwnedFd> {
    // SAFETY: kqueue takes nothing.
    let raw = check(unsafe { libc::kqueue() })?;
    // SAFETY: the descriptor is new, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[cfg(not(target_os = "linux"))]
fn vnode_event(number: i32, changes: u32) -> libc::kevent {
    libc::kevent {
        ident: libc::uintptr_t::try_from(number).unwrap_or(libc::uintptr_t::MAX),
        filter: libc::EVFILT_VNODE,
        flags: libc::EV_ADD | libc::EV_CLEAR,
        fflags: changes,
        data: 0,
        udata: std::ptr::null_mut(),
    }
}

#[cfg(not(target_os = "linux"))]
fn register(queue: &OwnedFd, event: libc::kevent) -> io::Result<()> {
    // SAFETY: one event in, room for none out, no timeout.
    check(unsafe {
        libc::kevent(
            queue.as_raw_fd(),
            &raw const event,
            1,
            std::ptr::null_mut(),
            0,
            std::ptr::null(),
        )
    })
    .map(drop)
}

#[cfg(not(target_os = "linux"))]
fn next(queue: &OwnedFd, timeout: Option<Duration>) -> io::Result<bool> {
    let [ready] = super::wait_readable([queue.as_fd()], timeout)?;
    if ready {
        let mut event = vnode_event(0, 0);
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: room for one event out; the timeout is a live timespec.
        check(unsafe {
            libc::kevent(queue.as_raw_fd(), std::ptr::null(), 0, &raw mut event, 1, &raw const now)
        })?;
    }
    Ok(ready)
}
