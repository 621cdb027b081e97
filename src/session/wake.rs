//! Events that threads wait for with poll(2): a waker for the followers of a session, and a flag
//! that cancels a turn.

use std::io::{self, Read, Write};
use std::iter;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use super::dispatch::{Dispatcher, Target};

/// A wakeup that writers send and one reader waits for.
///
/// Waking costs a system call only if the reader has armed the waker: a reader that is busy looks
/// again anyway.
pub struct Waker {
    sender: UnixStream,
    receiver: UnixStream,
    armed: AtomicBool,
    /// What serves the reader in place of its own thread.
    dispatch: OnceLock<(Arc<Dispatcher>, Weak<dyn Target>)>,
}

impl Waker {
    /// Returns a waker that is not armed.
    pub fn new() -> io::Result<Waker> {
        let (sender, receiver) = UnixStream::pair()?;
        sender.set_nonblocking(true)?;
        receiver.set_nonblocking(true)?;
        let (armed, dispatch) = (AtomicBool::new(false), OnceLock::new());
        Ok(Waker { sender, receiver, armed, dispatch })
    }

    /// Has `dispatcher` serve the reader, which is `target`, each time that the waker is woken.
    /// Without this, or if it fails, its own thread is woken.
    pub fn dispatch_by(
        &self,
        dispatcher: &Arc<Dispatcher>,
        target: Weak<dyn Target>,
    ) -> io::Result<()> {
        dispatcher.start()?;
        self.dispatch.get_or_init(|| (Arc::clone(dispatcher), target));
        Ok(())
    }

    /// Has the reader served, or wakes its thread, if the waker is armed.
    pub fn wake(&self) {
        Waker::wake_all(iter::once(self));
    }

    /// Wakes several wakers, whose readers are served by the same dispatcher.
    pub fn wake_all<'a>(wakers: impl Iterator<Item = &'a Waker>) {
        let (mut dispatcher, mut targets) = (None, Vec::new());
        for waker in wakers.filter(|waker| waker.armed.swap(false, Ordering::SeqCst)) {
            match waker.dispatch.get() {
                Some((own, target)) => {
                    dispatcher = Some(own);
                    targets.push(Weak::clone(target));
                }
                None => waker.wake_thread(),
            }
        }
        if let Some(dispatcher) = dispatcher {
            dispatcher.push(targets);
        }
    }

    /// Makes the descriptor readable.
    pub fn wake_thread(&self) {
        // If the socket is full, the descriptor is readable already.
        drop((&self.sender).write(&[1]));
    }

    /// Arms the waker. After this, the reader checks once more before it waits.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    /// Makes the descriptor unreadable again. What is left over wakes the reader once more.
    pub fn drain(&self) {
        drop((&self.receiver).read(&mut [0; 64]));
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

/// The request that a turn end. Whatever waits for the turn's sake can also wait for this.
pub struct Cancel {
    cancelled: AtomicBool,
    sender: UnixStream,
    receiver: UnixStream,
}

impl Cancel {
    /// Returns a request that was not made yet.
    pub fn new() -> io::Result<Cancel> {
        let (sender, receiver) = UnixStream::pair()?;
        Ok(Cancel { cancelled: AtomicBool::new(false), sender, receiver })
    }

    /// Makes the request, and the descriptor readable. It cannot be withdrawn.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        // An error means that it was shut down before.
        drop(self.sender.shutdown(Shutdown::Both));
    }

    /// Returns whether the request was made.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

impl AsFd for Cancel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}
