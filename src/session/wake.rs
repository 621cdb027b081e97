//! A bell: tells a thread that waits on a socket that something else has happened as well.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rung by writers, waited for by one reader, with poll(2) on its descriptor.
///
/// Ringing costs a system call only if the reader has said that it is about to wait: a reader that
/// is busy looks again by itself.
pub struct Bell {
    ringer: UnixStream,
    listener: UnixStream,
    awaited: AtomicBool,
}

impl Bell {
    /// A silent bell.
    pub fn new() -> io::Result<Bell> {
        let (ringer, listener) = UnixStream::pair()?;
        ringer.set_nonblocking(true)?;
        listener.set_nonblocking(true)?;
        Ok(Bell { ringer, listener, awaited: AtomicBool::new(false) })
    }

    /// Wakes the reader if it waits. Always `true`, for use in a filter.
    pub fn ring(&self) -> bool {
        if self.awaited.swap(false, Ordering::SeqCst) {
            // A bell that is full of rings is rung already.
            drop((&self.ringer).write(&[1]));
        }
        true
    }

    /// The reader is about to wait, and must look once more after this and before it does.
    pub fn await_next(&self) {
        self.awaited.store(true, Ordering::SeqCst);
    }

    /// The reader has been woken.
    pub fn silence(&self) {
        let mut rings = [0_u8; 64];
        while matches!((&self.listener).read(&mut rings), Ok(count) if count > 0) {}
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
