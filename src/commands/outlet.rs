//! Standard output or standard error, written so that a signal is noticed while nobody reads: a
//! full pipe and a stopped terminal keep a plain write waiting, and the signal with it.
//!
//! The descriptor may be shared with other processes and is left as it is. A signal is only seen
//! here; whoever waits for it takes it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use crate::sys::signal::Interrupts;
use crate::sys::{self, Wish};

/// A place to write to, until that would mean to wait in spite of a signal.
pub struct Outlet {
    file: File,
    interrupts: Rc<Interrupts>,
    /// How long somebody who does not read is waited for; without a limit until there is a signal.
    patience: Option<Duration>,
    /// It was given up.
    stuck: bool,
}

impl Outlet {
    /// One for `file`, which is a duplicate of a standard descriptor.
    pub fn new(file: OwnedFd, interrupts: &Rc<Interrupts>) -> Outlet {
        let interrupts = Rc::clone(interrupts);
        Outlet { file: File::from(file), interrupts, patience: None, stuck: false }
    }

    /// Writes all of `text`, unless it has to be given up; then nothing more is written.
    pub fn write(&mut self, text: &str) -> io::Result<()> {
        let mut left = text.as_bytes();
        while !left.is_empty() && !self.stuck {
            if !self.takes_more()? {
                self.stuck = true;
                break;
            }
            // So much never waits once something can be written.
            let piece = left.get(..sys::PIPE_BYTES).unwrap_or(left);
            match self.file.write(piece) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => left = left.get(count..).unwrap_or_default(),
                // Somebody who shares it has made it so.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until something can be written; `false` if it is to be given up.
    fn takes_more(&self) -> io::Result<bool> {
        let (file, signal) = (self.file.as_fd(), self.interrupts.as_fd());
        let ready = match self.patience {
            None => sys::wait_any(&[(file, Wish::Write), (signal, Wish::Read)], None)?,
            limit => sys::wait_any(&[(file, Wish::Write)], limit)?,
        };
        Ok(ready.first() == Some(&true))
    }

    /// From now on nobody is waited for longer than this.
    pub fn hurry(&mut self, limit: Duration) {
        self.patience = Some(limit);
    }

    /// Begins anew, with all the patience there is.
    pub fn begin(&mut self) {
        self.patience = None;
        self.stuck = false;
    }

    /// Whether something was not written.
    pub fn is_stuck(&self) -> bool {
        self.stuck
    }
}
