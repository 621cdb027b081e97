//! The user of a turn: the screen, standard input, and the signals that cancel a turn or end the
//! command.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::cli::TaskOutput;
use crate::commands::keyboard::Keyboard;
use crate::commands::line_editor::{Edited, LineEditor};
use crate::commands::screen::Screen;
use crate::error::{Doing, Error};
use crate::lines::{Lines, READ_BYTES};
use crate::protocol::ErrorDetail;
use crate::protocol::event::TurnStats;
use crate::sys::signal::{Asked, Interrupts, Signal};
use crate::sys::terminal;
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
    /// The terminal, if lines are edited on it.
    keyboard: Option<Keyboard>,
    /// Whether what is typed is hidden.
    hides_typing: bool,
    interrupts: Rc<Interrupts>,
    /// Whether the process was stopped by Ctrl-Z and continued since this was last `false`.
    pub was_stopped: bool,
    /// Whether Ctrl-C was pressed during this turn.
    pub interrupted: bool,
    /// The signal that ends the command, and the deadline for the end of its turn.
    exit: Option<(Signal, Instant)>,
}

impl Console {
    /// Blocks the signals: from now on they do not end this process. With `edits_lines`, the user
    /// of an interactive terminal edits lines.
    pub fn new(output: TaskOutput, edits_lines: bool) -> Result<Console, Error> {
        let interactive = io::stdin().is_terminal() && io::stderr().is_terminal();
        let keyboard = match edits_lines && interactive {
            true => Some(Keyboard::new().doing("use the terminal")?),
            false => None,
        };
        let interrupts = Interrupts::take(keyboard.is_some()).doing("wait for signals")?;
        let interrupts = Rc::new(interrupts);
        Ok(Console {
            screen: Screen::new(output, &interrupts)?,
            stdin: StdinLines::new()?,
            interactive,
            keyboard,
            hides_typing: false,
            interrupts,
            was_stopped: false,
            interrupted: false,
            exit: None,
        })
    }

    /// Asks questions on the controlling terminal, if there is one and the user sees standard
    /// error: standard input has other data.
    pub fn ask_on_terminal(&mut self) {
        if io::stderr().is_terminal()
            && let Some(terminal) = terminal::controlling()
        {
            self.stdin = StdinLines::of(terminal);
            self.interactive = true;
        }
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
            let [typed, signaled] = sys::wait_readable(files, None).doing("wait for a line")?;
            if signaled && let Some(signal) = self.take_signal()? {
                return Ok(UserInput::Signal(signal));
            }
            if typed {
                self.stdin.read()?;
            }
        }
    }

    /// Lets the user edit a message, which begins with what was typed since the last one, or with
    /// `draft`.
    pub fn edit(&mut self, editor: &mut LineEditor, draft: &str) -> Result<UserInput, Error> {
        self.keyboard.iter_mut().for_each(Keyboard::finish_paste);
        self.show_typing();
        if let Some(signal) = self.take_signal()? {
            return Ok(UserInput::Signal(signal));
        }
        let Some(keyboard) = &mut self.keyboard else { return Ok(UserInput::End) };
        let initial = draft.to_owned() + &keyboard.take_text();
        let give_up = keyboard.restorer().doing("use the terminal")?;
        let limit = limits::AFTER_SIGNAL_MAX;
        let edited = self.interrupts.while_reading(limit, give_up, || editor.read(&initial));
        let (edited, note) = match edited.doing("wait for a line")? {
            Ok(edited) => edited,
            // When a terminal is closed, reads fail, too.
            Err(error) => match self.take_signal()? {
                Some(signal) => return Ok(UserInput::Signal(signal)),
                None => return Err(error),
            },
        };
        note.into_iter().for_each(|note| self.screen.note(&note));
        Ok(match edited {
            Edited::Message(text) => UserInput::Line(text),
            Edited::Interrupted => {
                UserInput::Signal(self.take_signal()?.unwrap_or(Signal::Interrupt))
            }
            Edited::End => self.take_signal()?.map_or(UserInput::End, UserInput::Signal),
            Edited::Invalid(reason) => {
                // What follows in a paste would become messages of its own.
                self.keyboard.iter_mut().for_each(Keyboard::discard);
                UserInput::Invalid(InvalidLine { number: 0, reason })
            }
        })
    }

    /// Lets signals end this process, until [`Console::block_signals`].
    pub fn unblock_signals(&mut self) -> Result<(), Error> {
        self.show_typing();
        self.interrupts.unblock().doing("wait for signals")
    }

    /// Keeps signals pending until they are taken, and what is typed hidden until it is needed.
    pub fn block_signals(&mut self) -> Result<(), Error> {
        self.interrupts.block().doing("wait for signals")?;
        self.hide_typing();
        Ok(())
    }

    /// Hides what is typed, if lines are edited: it is for the next prompt.
    pub fn hide_typing(&mut self) {
        if let Some(keyboard) = &self.keyboard
            && !self.hides_typing
        {
            keyboard.hide();
            // A paste is one message, also if it arrives now.
            self.screen.print_error("\x1b[?2004h");
            self.hides_typing = true;
        }
    }

    /// Shows what is typed.
    pub fn show_typing(&mut self) {
        if let Some(keyboard) = &self.keyboard
            && self.hides_typing
        {
            keyboard.restore();
            self.screen.print_error("\x1b[?2004l");
            self.hides_typing = false;
        }
    }

    /// Keeps so much of what is typed that Ctrl-C has an effect. Returns the time until the next
    /// call.
    pub fn make_room(&mut self) -> Option<Duration> {
        let keyboard = self.keyboard.as_mut().filter(|_| self.hides_typing)?;
        keyboard.make_room();
        Some(limits::TYPED_EVERY)
    }

    /// Prepares for the answer to a question: what was typed before it is none.
    pub fn await_answer(&mut self) {
        self.stdin.clear();
        match &mut self.keyboard {
            Some(keyboard) if self.hides_typing => {
                keyboard.set_aside();
                keyboard.finish_paste();
            }
            _ => self.stdin.discard(),
        }
        self.show_typing();
    }

    /// Runs `call`, during which another process uses the terminal and gets its signals.
    pub fn lend<T>(&mut self, call: impl FnOnce() -> T) -> Result<T, Error> {
        self.show_typing();
        let result = self.interrupts.while_lent(call).doing("lend the terminal");
        // Ctrl-C was for the other process.
        while let Ok(Some(Signal::Interrupt)) = self.take_signal() {}
        self.interrupted = false;
        if self.exit.is_none() {
            self.screen.reset_deadline();
        }
        result
    }

    /// Returns a descriptor that is readable while a signal is pending.
    pub fn signals(&self) -> BorrowedFd<'_> {
        self.interrupts.as_fd()
    }

    /// Takes a pending signal. All but SIGINT end the command soon.
    pub fn take_signal(&mut self) -> Result<Option<Signal>, Error> {
        match self.interrupts.pending().doing("wait for signals")? {
            None => Ok(None),
            Some(Asked::Stop) => self.stop().map(|()| None),
            Some(Asked::End(signal)) => {
                self.screen.limit_writes();
                match signal {
                    Signal::Interrupt => self.interrupted = true,
                    _ => self.exit = Some((signal, Instant::now() + limits::AFTER_SIGNAL_MAX)),
                }
                Ok(Some(signal))
            }
        }
    }

    /// Stops this process until it is continued; meanwhile the terminal is as it was found.
    fn stop(&mut self) -> Result<(), Error> {
        let hides_typing = self.hides_typing;
        self.screen.start_line();
        self.show_typing();
        sys::signal::stop().doing("stop")?;
        self.was_stopped = true;
        if hides_typing {
            self.hide_typing();
        }
        Ok(())
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
        self.show_typing();
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

/// The lines of standard input: a terminal, a pipe or a file. It is read without blocking when
/// poll(2) reports it readable.
pub struct StdinLines {
    input: File,
    lines: Lines,
    /// Lines that were returned.
    count: u64,
    ended: bool,
}

/// A line that cannot be sent.
#[derive(Debug, PartialEq)]
pub struct InvalidLine {
    /// Counted from 1.
    pub number: u64,
    pub reason: String,
}

impl StdinLines {
    /// Duplicates the descriptor of standard input.
    pub fn new() -> Result<StdinLines, Error> {
        let input = io::stdin().as_fd().try_clone_to_owned().doing("read standard input")?;
        Ok(StdinLines::of(File::from(input)))
    }

    fn of(input: File) -> StdinLines {
        // With the carriage return that a line may end with.
        let bytes_max = usize::try_from(limits::TASK_BYTES_MAX + 1).unwrap_or(usize::MAX);
        StdinLines { input, lines: Lines::new(bytes_max), count: 0, ended: false }
    }

    /// Returns the next line without its end, if it was read; at the end of the input, the rest.
    pub fn next(&mut self) -> Option<Result<String, InvalidLine>> {
        let text = match self.lines.next() {
            Some(line) => text_of(line.strip_suffix(b"\r").unwrap_or(line)),
            None if self.ended => text_of(self.lines.take_pending()?),
            None => return None,
        };
        self.count += 1;
        Some(text.map_err(|reason| InvalidLine { number: self.count, reason }))
    }

    /// Reads what is available.
    pub fn read(&mut self) -> Result<(), Error> {
        match self.lines.fill(READ_BYTES, |room| self.input.read(room)) {
            Ok(count) => self.ended |= count == 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).doing("read standard input"),
        }
        Ok(())
    }

    /// Returns whether the input ended, and forgets it: a terminal can be read again after Ctrl-D.
    pub fn take_end(&mut self) -> bool {
        std::mem::take(&mut self.ended)
    }

    /// Returns whether the input ended and every line was returned.
    pub fn is_finished(&self) -> bool {
        self.ended && self.lines.pending().is_empty()
    }

    /// Forgets what was read but not yet returned.
    pub fn clear(&mut self) {
        self.lines.clear();
    }

    /// Discards what was typed but not yet read.
    pub fn discard(&mut self) {
        sys::discard_input(self.input.as_fd());
    }
}

impl AsFd for StdinLines {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }
}

/// Returns the text of a line without its end.
fn text_of(line: &[u8]) -> Result<String, String> {
    if u64::try_from(line.len()).is_ok_and(|length| length > limits::TASK_BYTES_MAX) {
        return Err(format!("it is longer than {} bytes", limits::TASK_BYTES_MAX));
    }
    String::from_utf8(line.to_vec()).map_err(|_bad| "it is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the lines of `text`, read in chunks of this size.
    fn lines(text: &[u8], size: usize) -> Vec<Result<String, InvalidLine>> {
        let mut stdin = StdinLines::of(File::open("/dev/null").unwrap());
        let mut taken = Vec::new();
        for chunk in text.chunks(size) {
            stdin.lines.push(chunk);
            taken.extend(std::iter::from_fn(|| stdin.next()));
        }
        stdin.read().unwrap();
        taken.extend(std::iter::from_fn(|| stdin.next()));
        assert!(stdin.is_finished());
        taken
    }

    #[test]
    fn lf_and_crlf_end_a_line() {
        for size in 1..8 {
            let found = lines("one\ntwo\r\n\n\r\nü\r\r\nlast\r".as_bytes(), size);
            let found: Vec<String> = found.into_iter().map(Result::unwrap).collect();
            assert_eq!(found, ["one", "two", "", "", "ü\r", "last\r"]);
        }
    }

    #[test]
    fn a_line_longer_than_a_task_is_refused_and_the_next_one_is_read() {
        let most = usize::try_from(limits::TASK_BYTES_MAX).unwrap();
        let refused =
            |number| InvalidLine { number, reason: "it is longer than 3145728 bytes".into() };
        for (length, end, fits) in [
            (most, "\n", true),
            (most, "\r\n", true),
            (most, "", true),
            (most + 1, "\n", false),
            (most + 1, "\r\n", false),
            (most + 1, "", false),
            (3 * most, "\n", false),
        ] {
            let mut text = b"first\n".to_vec();
            text.resize(text.len() + length, b'x');
            text.extend_from_slice(end.as_bytes());
            if !end.is_empty() {
                text.extend_from_slice(b"\xff\nlast");
            }
            let found = lines(&text, 16 * 1024);
            assert_eq!(found.first().unwrap().as_deref(), Ok("first"));
            let line = found.get(1).unwrap();
            if fits {
                assert_eq!(line.as_ref().map(String::len), Ok(length), "{end:?}");
            } else {
                assert_eq!(line.as_ref(), Err(&refused(2)), "{length} {end:?}");
            }
            if !end.is_empty() {
                let bad = InvalidLine { number: 3, reason: "it is not UTF-8".to_owned() };
                assert_eq!(found.get(2), Some(&Err(bad)));
                assert_eq!(found.get(3).unwrap().as_deref(), Ok("last"));
            }
            assert_eq!(found.len(), if end.is_empty() { 2 } else { 4 });
        }
    }
}
