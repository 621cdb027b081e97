//! What a turn is shown on, and what reaches it from outside: keys and signals.

use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::cli::TaskOutput;
use crate::commands::keyboard::Keyboard;
use crate::commands::screen::Screen;
use crate::error::{Doing, Error};
use crate::limits;
use crate::protocol::ErrorDetail;
use crate::protocol::event::TurnStats;
use crate::sys::signal::{Interrupts, Signal};

/// How a turn has ended, as far as this process knows.
pub enum End {
    Done(TurnStats),
    Failed(ErrorDetail),
    /// Its end was not waited for.
    Left,
}

impl End {
    /// What a turn comes to that somebody has told to end.
    pub fn cancelled(message: &str) -> End {
        End::Failed(ErrorDetail::new("cancelled", message))
    }

    /// Why the turn did not get done, in a sentence; nothing if it did, or may have.
    pub fn reason(&self) -> Option<String> {
        let End::Failed(fault) = self else { return None };
        // What was wished for is no failure.
        if fault.code == "cancelled" {
            return Some(fault.message.clone());
        }
        Some(format!("cannot finish the turn: {} ({})", fault.message, fault.code))
    }
}

/// Where somebody sits, or nobody.
pub struct Console {
    pub screen: Screen,
    interrupts: Rc<Interrupts>,
    /// Somebody who can be asked.
    pub keyboard: Option<Keyboard>,
    /// Somebody has pressed Ctrl-C in the course of this turn.
    pub interrupted: bool,
    /// What ends the command, and until when it may wait for the end of its turn.
    leaving: Option<(Signal, Instant)>,
}

impl Console {
    /// One on which `show` is shown. From now on signals do not end this process.
    pub fn new(show: TaskOutput) -> Result<Console, Error> {
        let interrupts = Rc::new(Interrupts::take().doing("wait for signals")?);
        let screen = Screen::new(show, &interrupts)?;
        let keyboard = Keyboard::of_terminal()?;
        Ok(Console { screen, interrupts, keyboard, interrupted: false, leaving: None })
    }

    /// A turn begins.
    pub fn begin(&mut self) {
        self.interrupted = false;
        self.screen.begin();
    }

    /// Until [`Console::hold`], a signal ends the process as if this were not here.
    pub fn let_through(&self) -> Result<(), Error> {
        self.interrupts.let_through().doing("wait for signals")
    }

    /// From now on signals are to be waited for again.
    pub fn hold(&self) -> Result<(), Error> {
        self.interrupts.hold().doing("wait for signals")
    }

    /// Can be read when there is a signal to be taken.
    pub fn signals(&self) -> BorrowedFd<'_> {
        self.interrupts.as_fd()
    }

    /// Takes the next signal, if there is one. All but Ctrl-C end the command soon.
    pub fn signal(&mut self) -> Result<Option<Signal>, Error> {
        let seen = self.interrupts.seen().doing("wait for signals")?;
        if let Some(signal) = seen {
            self.screen.hurry();
            match signal {
                Signal::Interrupt => self.interrupted = true,
                _ => self.leaving = Some((signal, Instant::now() + limits::PARTING_MAX)),
            }
        }
        Ok(seen)
    }

    /// How long the end of a turn may still be waited for; `None` without a limit.
    pub fn left(&self) -> Option<Duration> {
        self.leaving.map(|(_, until)| until.saturating_duration_since(Instant::now()))
    }

    /// The exit status of a command that a signal other than Ctrl-C has told to end.
    pub fn leaves(&self) -> Option<u8> {
        self.leaving.map(|(signal, _)| signal.status())
    }

    /// Has all that was shown written, or given up. A signal that comes meanwhile is taken.
    pub fn finish(&mut self) -> Result<(), Error> {
        loop {
            self.screen.flush()?;
            if !self.screen.is_pending() {
                return Ok(());
            }
            self.signal()?;
        }
    }

    /// Takes all signals that are left: nothing follows that they could end.
    pub fn settle(&mut self) {
        while let Ok(Some(_)) = self.signal() {}
    }

    /// The exit status that this end of a turn makes.
    pub fn status(&self, end: &End) -> u8 {
        let given_up = self.screen.is_stuck();
        match (self.leaves(), end) {
            (Some(status), _) => status,
            (None, End::Done(_)) if !given_up => 0,
            (None, End::Failed(fault)) if fault.code != "cancelled" && !given_up => 1,
            _ => Signal::Interrupt.status(),
        }
    }
}
