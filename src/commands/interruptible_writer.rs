//! Standard output or standard error, written so that a signal is noticed while nobody reads: a
//! full pipe and a stopped terminal keep a plain write waiting, and the signal with it.
//!
//! What cannot be written at once is kept, and goes out before whatever comes later. The descriptor
//! may be shared with other processes and is left as it is. A signal is only seen here; whoever
//! waits for it takes it.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::sys::signal::Interrupts;
use crate::sys::{self, Interest};

/// How much longer somebody who does not read is waited for, all in all; without a limit until
/// there is a signal.
pub type Patience = Rc<Cell<Option<Duration>>>;

/// A place to write to, until that would mean to wait in spite of a signal.
pub struct InterruptibleWriter {
    file: File,
    /// As much as can be written without waiting when something can.
    piece: usize,
    interrupts: Rc<Interrupts>,
    patience: Patience,
    /// What is still to be written.
    pending: Vec<u8>,
    /// It was given up.
    stuck: bool,
}

impl InterruptibleWriter {
    /// One for `file`, which is a duplicate of a standard descriptor.
    pub fn new(
        file: OwnedFd,
        interrupts: &Rc<Interrupts>,
        patience: &Patience,
    ) -> InterruptibleWriter {
        let (interrupts, patience) = (Rc::clone(interrupts), Rc::clone(patience));
        let file = File::from(file);
        let (file, piece) = match sys::opened_anew(&file) {
            Some(own) => (own, usize::MAX),
            None if file.is_terminal() => (file, 1),
            None => (file, sys::PIPE_BYTES),
        };
        InterruptibleWriter { file, piece, interrupts, patience, pending: Vec::new(), stuck: false }
    }

    /// Writes `text`; what is left of it when there is a signal is kept. Once it was given up,
    /// nothing more is written.
    pub fn write(&mut self, text: &str) -> io::Result<()> {
        if !self.stuck {
            self.pending.extend_from_slice(text.as_bytes());
        }
        self.flush()
    }

    /// Writes what was kept, as far as that goes.
    pub fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        let result = self.write_pending(&mut written);
        if self.stuck || result.is_err() {
            self.pending.clear();
        } else {
            drop(self.pending.drain(..written));
        }
        result
    }

    fn write_pending(&mut self, written: &mut usize) -> io::Result<()> {
        while let Some(left) = self.pending.get(*written..).filter(|left| !left.is_empty()) {
            if !self.takes_more()? {
                self.stuck = self.patience.get().is_some();
                break;
            }
            match self.file.write(left.get(..self.piece).unwrap_or(left)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => *written += count,
                // Somebody else who writes there was faster.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until something can be written; `false` if there is a signal, or no patience left.
    fn takes_more(&self) -> io::Result<bool> {
        let (file, signal) = (self.file.as_fd(), self.interrupts.as_fd());
        let ready = match self.patience.get() {
            None => sys::wait_any(&[(file, Interest::Write), (signal, Interest::Read)], None)?,
            Some(limit) => {
                let begun = Instant::now();
                let ready = sys::wait_any(&[(file, Interest::Write)], Some(limit))?;
                self.patience.set(Some(limit.saturating_sub(begun.elapsed())));
                ready
            }
        };
        Ok(ready.first() == Some(&true))
    }

    /// Begins anew, even if it was given up.
    pub fn begin(&mut self) {
        self.stuck = false;
    }

    /// Whether something is still to be written.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether something was not written and will not be.
    pub fn is_stuck(&self) -> bool {
        self.stuck
    }
}
