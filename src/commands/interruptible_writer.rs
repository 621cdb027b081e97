//! Standard output or standard error, written so that a signal is noticed while no one reads. A
//! plain write to a full pipe or a stopped terminal blocks, and defers the signal.
//!
//! Output that cannot be written immediately is kept, and written before anything later. The
//! descriptor may be shared with other processes, so its flags stay as they are. A signal is only
//! noticed here; the caller takes it.
//!
//! Several processes that write to one pipe do not mix within a line: each holds a lock on the pipe
//! from the beginning of a line to its end.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::{File, TryLockError};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::sys::Interest;
use crate::sys::signal::Interrupts;
use crate::{limits, sys};

/// The remaining time that writes may wait for a reader; without a limit before a signal.
pub type WriteDeadline = Rc<Cell<Option<Duration>>>;

/// The lock on a pipe, shared by the writers of this process. flock(2)
struct PipeLock {
    file: File,
    /// Whether this process holds it.
    is_held: Cell<bool>,
}

/// A descriptor whose writes return when a signal is pending.
pub struct InterruptibleWriter {
    file: File,
    /// The number of bytes that can be written without blocking when the file is writable.
    chunk: usize,
    interrupts: Rc<Interrupts>,
    deadline: WriteDeadline,
    pending: VecDeque<u8>,
    /// `None` if it is no pipe, or cannot be locked.
    lock: Option<Rc<PipeLock>>,
    /// Whether this writer took the lock: it is within a line.
    holds_lock: bool,
    /// Whether something was dropped instead of written. If so, nothing more is written.
    pub gave_up: bool,
}

impl InterruptibleWriter {
    /// Returns a writer to `file`, which is a duplicate of a standard descriptor.
    pub fn new(
        file: OwnedFd,
        interrupts: &Rc<Interrupts>,
        deadline: &WriteDeadline,
    ) -> InterruptibleWriter {
        let (interrupts, deadline) = (Rc::clone(interrupts), Rc::clone(deadline));
        let file = File::from(file);
        let is_pipe = file.metadata().is_ok_and(|found| found.file_type().is_fifo());
        let (file, chunk) = match sys::reopen_for_writing(&file) {
            Some(own) => (own, usize::MAX),
            None if file.is_terminal() => (file, 1),
            None => (file, sys::PIPE_BYTES),
        };
        // A lock belongs to all who share the descriptor, so it must not be shared.
        let own = (is_pipe && chunk == usize::MAX).then(|| file.try_clone().ok()).flatten();
        let lock = own.map(|file| Rc::new(PipeLock { file, is_held: Cell::new(false) }));
        InterruptibleWriter {
            file,
            chunk,
            interrupts,
            deadline,
            pending: VecDeque::new(),
            lock,
            holds_lock: false,
            gave_up: false,
        }
    }

    /// Uses the lock of `other` if both write to the same pipe.
    pub fn share_lock(&mut self, other: &InterruptibleWriter) {
        let id = |file: &File| file.metadata().ok().map(|found| (found.dev(), found.ino()));
        if other.lock.is_some() && id(&self.file) == id(&other.file) {
            self.lock.clone_from(&other.lock);
        }
    }

    /// Writes `text`. When a signal is pending, or another process is within a line, keeps the rest
    /// for later.
    pub fn write(&mut self, text: &str) -> io::Result<()> {
        if !self.gave_up {
            self.pending.extend(text.as_bytes());
        }
        self.flush_unblocked().map(drop)
    }

    /// Writes what is pending, until a signal is pending; `false` if it waits for the end of
    /// another process's line.
    pub fn flush_unblocked(&mut self) -> io::Result<bool> {
        if !self.pending.is_empty() && !self.take_lock() {
            return Ok(false);
        }
        self.flush().map(|()| true)
    }

    /// Takes the lock if it is free; `false` if another process has it.
    fn take_lock(&mut self) -> bool {
        let Some(lock) = self.lock.as_ref().filter(|lock| !lock.is_held.get()) else {
            return true;
        };
        if let Err(TryLockError::WouldBlock) = lock.file.try_lock() {
            return false;
        }
        lock.is_held.set(true);
        self.holds_lock = true;
        true
    }

    /// Releases the lock at the end of a line.
    fn release_lock(&mut self) {
        if let Some(lock) = self.lock.as_ref()
            && std::mem::take(&mut self.holds_lock)
        {
            lock.is_held.set(false);
            drop(lock.file.unlock());
        }
    }

    /// Writes what is pending, until a signal is pending.
    pub fn flush(&mut self) -> io::Result<()> {
        let result = self.write_pending();
        if self.gave_up || result.is_err() {
            self.pending.clear();
        }
        result
    }

    fn write_pending(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            if !(self.wait_for_lock()? && self.wait_writable()?) {
                self.gave_up = self.deadline.get().is_some();
                break;
            }
            let (front, _) = self.pending.as_slices();
            match self.file.write(front.get(..self.chunk).unwrap_or(front)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    let ends_line = self.pending.drain(..count).next_back() == Some(b'\n');
                    if ends_line && self.pending.is_empty() {
                        self.release_lock();
                    }
                }
                // Another process that writes to the same pipe was faster.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until no other process is within a line; `false` if a signal is pending or the time is
    /// over.
    fn wait_for_lock(&mut self) -> io::Result<bool> {
        while !self.take_lock() {
            match self.deadline.get() {
                Some(Duration::ZERO) => return Ok(false),
                Some(left) => {
                    let start = Instant::now();
                    sys::wait_readable([], Some(left.min(limits::PIPE_LOCK_EVERY)))?;
                    self.deadline.set(Some(left.saturating_sub(start.elapsed())));
                }
                None => {
                    let signals = [self.interrupts.as_fd()];
                    if sys::wait_readable(signals, Some(limits::PIPE_LOCK_EVERY))? == [true] {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Waits until the file is writable; `false` if a signal is pending or the time is over.
    fn wait_writable(&self) -> io::Result<bool> {
        let (file, signal) = (self.file.as_fd(), self.interrupts.as_fd());
        let ready = match self.deadline.get() {
            None => sys::wait_any(&[(file, Interest::Write), (signal, Interest::Read)], None)?,
            Some(limit) => {
                let start = Instant::now();
                let ready = sys::wait_any(&[(file, Interest::Write)], Some(limit))?;
                self.deadline.set(Some(limit.saturating_sub(start.elapsed())));
                ready
            }
        };
        Ok(ready.first() == Some(&true))
    }

    /// Returns whether something is still to be written.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }
}
