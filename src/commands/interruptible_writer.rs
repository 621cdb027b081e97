//! Standard output or standard error, written so that a signal is noticed while no one reads. A
//! plain write to a full pipe or a stopped terminal blocks, and defers the signal.
//!
//! Output that cannot be written immediately is kept, and written before anything later. The
//! descriptor may be shared with other processes, so its flags stay as they are. A signal is only
//! noticed here; the caller takes it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::sys::signal::Interrupts;
use crate::sys::{self, Interest};

/// The remaining time that writes may wait for a reader; without a limit before a signal.
pub type WriteDeadline = Rc<Cell<Option<Duration>>>;

/// A descriptor whose writes return when a signal is pending.
pub struct InterruptibleWriter {
    file: File,
    /// The number of bytes that can be written without blocking when the file is writable.
    chunk: usize,
    interrupts: Rc<Interrupts>,
    deadline: WriteDeadline,
    pending: VecDeque<u8>,
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
        let (file, chunk) = match sys::reopen_for_writing(&file) {
            Some(own) => (own, usize::MAX),
            None if file.is_terminal() => (file, 1),
            None => (file, sys::PIPE_BYTES),
        };
        let (pending, gave_up) = (VecDeque::new(), false);
        InterruptibleWriter { file, chunk, interrupts, deadline, pending, gave_up }
    }

    /// Writes `text`. When a signal is pending, keeps the rest for later.
    pub fn write(&mut self, text: &str) -> io::Result<()> {
        if !self.gave_up {
            self.pending.extend(text.as_bytes());
        }
        self.flush()
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
            if !self.wait_writable()? {
                self.gave_up = self.deadline.get().is_some();
                break;
            }
            let (front, _) = self.pending.as_slices();
            match self.file.write(front.get(..self.chunk).unwrap_or(front)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.pending.drain(..count)),
                // Another process that writes to the same pipe was faster.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
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
