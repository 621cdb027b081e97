//! Waiting for many files again and again. poll(2).

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::{Interest, interest, poll, polled};

/// Files to wait for, in the order in which they were added. It keeps its memory when it is
/// cleared.
#[derive(Default)]
pub struct PollSet {
    polled: Vec<libc::pollfd>,
}

impl PollSet {
    /// Removes all files.
    pub fn clear(&mut self) {
        self.polled.clear();
    }

    /// Adds a file, which must stay open until the wait is over.
    pub fn add(&mut self, file: BorrowedFd<'_>, event: Interest) {
        self.polled.push(polled(file, interest(event)));
    }

    /// Waits until one of the files is ready, closed at the other end or in error, or until
    /// `timeout`.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        poll(&mut self.polled, timeout)
    }

    /// Returns whether the last wait found this file ready.
    pub fn is_ready(&self, index: usize) -> bool {
        self.polled.get(index).is_some_and(|one| one.revents != 0)
    }
}
