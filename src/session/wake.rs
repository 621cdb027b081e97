//! What wakes threads: a waker for those who follow a session, a flag for a turn that is to end.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rung by writers, waited for by one reader, with poll(2) on its descriptor.
///
/// Ringing costs a system call only if the reader has said that it is about to wait: a reader that
/// is busy looks again by itself.
pub struct Waker {
    ringer: UnixStream,
    listener: UnixStream,
    awaited: AtomicBool,
}

impl Waker {
    /// A silent waker.
    pub fn new() -> io::Result<Waker> {
        let (ringer, listener) = UnixStream::pair()?;
        ringer.set_nonblocking(true)?;
        listener.set_nonblocking(true)?;
        Ok(Waker { ringer, listener, awaited: AtomicBool::new(false) })
    }

    /// Wakes the reader if it waits.
    pub fn wake(&self) {
        if self.awaited.swap(false, Ordering::SeqCst) {
            // A waker that is full of rings is rung already.
            drop((&self.ringer).write(&[1]));
        }
    }

    /// The reader is about to wait, and must look once more after this and before it does.
    pub fn arm(&self) {
        self.awaited.store(true, Ordering::SeqCst);
    }

    /// The reader has been woken. A ring that is left wakes it once more.
    pub fn drain(&self) {
        drop((&self.listener).read(&mut [0; 64]));
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// The wish that a turn ends. Whoever waits for something on its behalf can wait for this as well.
pub struct Cancel {
    wished: AtomicBool,
    teller: UnixStream,
    listener: UnixStream,
}

impl Cancel {
    /// Not wished yet.
    pub fn new() -> io::Result<Cancel> {
        let (teller, listener) = UnixStream::pair()?;
        Ok(Cancel { wished: AtomicBool::new(false), teller, listener })
    }

    /// From now on it is wished, for ever, and the descriptor can be read.
    pub fn cancel(&self) {
        self.wished.store(true, Ordering::SeqCst);
        // An error means that it was shut down before.
        drop(self.teller.shutdown(Shutdown::Both));
    }

    /// Whether it is wished.
    pub fn is_cancelled(&self) -> bool {
        self.wished.load(Ordering::SeqCst)
    }
}

impl AsFd for Cancel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
