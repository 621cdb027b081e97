//! The user of a turn: the screen, standard input, and the signals that cancel a turn or end the
//! command.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::cli::TaskOutput;
use crate::commands::screen::Screen;
use crate::commands::stdin::{InvalidLine, StdinLines};
use crate::error::{Doing, Error};
use crate::protocol::ErrorDetail;
use crate::protocol::event::TurnStats;
use crate::sys::signal::{Interrupts, Signal};
use crate::{limits, protocol, sys};

/// The code of a turn that was cancelled.
pub const CANCELLED: &str = "cancelled";

/// How a turn ended.
pub enum TurnEnd {
    Done(TurnStats),
    /// It was cancelled, or failed.
    Failed(ErrorDetail),
}

impl TurnEnd {
    /// Returns why the turn is not done.
    pub fn failure(&self) -> Option<String> {
        match self {
            TurnEnd::Done(_) => None,
            TurnEnd::Failed(error) if error.code == CANCELLED => Some(error.message.clone()),
            TurnEnd::Failed(ErrorDetail { code, message }) => {
                Some(format!("cannot finish the turn: {message} ({code})"))
            }
        }
    }
}

/// The next input of the user.
pub enum UserInput {
    Line(String),
    Invalid(InvalidLine),
    Signal(Signal),
    End,
}

/// The screen, standard input and signals.
pub struct Console {
    pub screen: Screen,
    pub stdin: StdinLines,
    /// Whether there is a user who sees questions and can answer them.
    pub interactive: bool,
    interrupts: Rc<Interrupts>,
    /// Whether Ctrl-C was pressed during this turn.
    pub interrupted: bool,
    /// The signal that ends the command, and until when it may wait for the end of its turn.
    exit: Option<(Signal, Instant)>,
}

impl Console {
    /// Blocks the signals: from now on they do not end this process.
    pub fn new(output: TaskOutput) -> Result<Console, Error> {
        let interrupts = Rc::new(Interrupts::take().doing("wait for signals")?);
        Ok(Console {
            screen: Screen::new(output, &interrupts)?,
            stdin: StdinLines::new()?,
            interactive: io::stdin().is_terminal() && io::stderr().is_terminal(),
            interrupts,
            interrupted: false,
            exit: None,
        })
    }

    /// Starts a turn.
    pub fn begin_turn(&mut self) {
        self.interrupted = false;
        self.screen.begin_turn();
    }

    /// Waits for a line, a signal, or the end of the input.
    pub fn next_input(&mut self) -> Result<UserInput, Error> {
        loop {
            if let Some(line) = self.stdin.next() {
                return Ok(line.map_or_else(UserInput::Invalid, UserInput::Line));
            }
            if self.stdin.is_finished() {
                return Ok(UserInput::End);
            }
            let files = [self.stdin.as_fd(), self.interrupts.as_fd()];
            let [typed, signalled] = sys::wait_readable(files, None).doing("wait for a line")?;
            if signalled && let Some(signal) = self.take_signal()? {
                return Ok(UserInput::Signal(signal));
            }
            if typed {
                self.stdin.read()?;
            }
        }
    }

    /// Lets signals end this process, until [`Console::block_signals`].
    pub fn unblock_signals(&self) -> Result<(), Error> {
        self.interrupts.unblock().doing("wait for signals")
    }

    /// Keeps signals pending until they are taken.
    pub fn block_signals(&self) -> Result<(), Error> {
        self.interrupts.block().doing("wait for signals")
    }

    /// Returns a descriptor that is readable while a signal is pending.
    pub fn signals(&self) -> BorrowedFd<'_> {
        self.interrupts.as_fd()
    }

    /// Takes a pending signal. All but SIGINT end the command soon.
    pub fn take_signal(&mut self) -> Result<Option<Signal>, Error> {
        let signal = self.interrupts.pending().doing("wait for signals")?;
        if let Some(signal) = signal {
            self.screen.limit_writes();
            match signal {
                Signal::Interrupt => self.interrupted = true,
                _ => self.exit = Some((signal, Instant::now() + limits::AFTER_SIGNAL_MAX)),
            }
        }
        Ok(signal)
    }

    /// Returns how long to wait for the end of a turn at most; `None` without a limit.
    pub fn time_left(&self) -> Option<Duration> {
        self.exit.map(|(_, until)| until.saturating_duration_since(Instant::now()))
    }

    /// Returns the exit status if a signal ends the command, as all but the first SIGINT of a turn
    /// do.
    pub fn exit_status(&self) -> Option<u8> {
        self.exit.map(|(signal, _)| signal.status())
    }

    /// Writes all pending output, or gives up after a signal.
    pub fn flush(&mut self) -> Result<(), Error> {
        loop {
            self.screen.flush()?;
            if !self.screen.is_pending() {
                return Ok(());
            }
            self.take_signal()?;
        }
    }

    /// Ends the command: writes all pending output and returns the exit status. A pending signal
    /// replaces `result`, because when a terminal is closed, reads and writes fail, too.
    pub fn finish(mut self, result: Result<u8, Error>) -> Result<ExitCode, Error> {
        let result = self.flush().and(result);
        while let Ok(Some(_)) = self.take_signal() {}
        self.exit_status().map_or(result, Ok).map(ExitCode::from)
    }

    /// Ends a turn that was cancelled without waiting for its end. The command ends, too.
    pub fn abandon_turn(&mut self) -> Result<TurnEnd, Error> {
        self.exit.get_or_insert((Signal::Interrupt, Instant::now()));
        self.fail_turn(CANCELLED, "the turn was cancelled; its end was not awaited")
    }

    /// Ends a turn for a reason that no event reports.
    pub fn fail_turn(&mut self, code: &str, message: &str) -> Result<TurnEnd, Error> {
        self.screen.end_turn()?;
        self.screen.event(&protocol::error_body(code, message))?;
        Ok(TurnEnd::Failed(ErrorDetail::new(code, message)))
    }

    /// Returns the exit status of a command whose last turn ended like this.
    pub fn status_of(&self, end: &TurnEnd) -> u8 {
        let written = !self.screen.gave_up();
        match (self.exit_status(), end) {
            (Some(status), _) => status,
            (None, TurnEnd::Done(_)) if written => 0,
            (None, TurnEnd::Failed(error)) if error.code != CANCELLED && written => 1,
            _ => Signal::Interrupt.status(),
        }
    }
}
