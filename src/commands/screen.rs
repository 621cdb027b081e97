//! What is seen of a turn: the answer on standard output as it comes, a line for each call of a
//! tool on standard error, and on a terminal a word while nothing has come yet.
//!
//! The answer goes out byte for byte, but to a terminal: no control character of a model reaches
//! one.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nanoserde::SerJson;

use crate::cli::TaskOutput;
use crate::commands::interruptible_writer::{InterruptibleWriter, Patience};
use crate::error::{Doing, Error};
use crate::sys::signal::Interrupts;
use crate::text::{escaped, escaped_json, sanitized, truncated};
use crate::{agent, config, limits};

/// A call of a tool, as `opta do --json` reports it.
#[derive(Clone, SerJson)]
pub struct Call {
    pub id: String,
    pub name: String,
    /// JSON, as the model wrote it.
    pub args: String,
    #[nserde(rename = "durationMs")]
    pub duration_ms: Option<u64>,
    pub success: Option<bool>,
}

/// Where a turn is shown, and what was shown of it.
pub struct Screen {
    show: TaskOutput,
    out: InterruptibleWriter,
    errors: InterruptibleWriter,
    patience: Patience,
    /// People read both standard output and standard error.
    terminal: bool,
    /// Standard output is a terminal.
    guarded: bool,
    dim: (&'static str, &'static str),
    /// All of the answer so far.
    pub answer: String,
    pub calls: Vec<Call>,
    /// The answer has not come to the end of a line.
    within_a_line: bool,
    /// It has come to a carriage return, which a terminal is not shown before what follows is
    /// known.
    returned: bool,
    /// Since when nothing has come, if that is so.
    quiet_since: Option<Instant>,
    /// How wide the word is that says so.
    drawn: usize,
    thinking: bool,
    /// Calls that have not ended.
    running: usize,
}

impl Screen {
    /// A screen with nothing on it.
    pub fn new(show: TaskOutput, interrupts: &Rc<Interrupts>) -> Result<Screen, Error> {
        let (guarded, readable) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let coloured = readable && config::color_allowed();
        let out = io::stdout().as_fd().try_clone_to_owned().doing("use standard output")?;
        let errors = io::stderr().as_fd().try_clone_to_owned().doing("use standard error")?;
        let patience = Patience::default();
        Ok(Screen {
            show,
            out: InterruptibleWriter::new(out, interrupts, &patience),
            errors: InterruptibleWriter::new(errors, interrupts, &patience),
            patience,
            terminal: guarded && readable,
            guarded,
            dim: if coloured { ("\x1b[2m", "\x1b[0m") } else { ("", "") },
            answer: String::new(),
            calls: Vec::new(),
            within_a_line: false,
            returned: false,
            quiet_since: None,
            drawn: 0,
            thinking: false,
            running: 0,
        })
    }

    /// A turn begins: from now on something is being waited for.
    pub fn begin(&mut self) {
        self.answer.clear();
        self.calls.clear();
        self.running = 0;
        self.renew();
        self.await_more();
    }

    /// From now on there is all the patience again with whoever does not read.
    pub fn renew(&mut self) {
        self.patience.set(None);
        self.out.begin();
        self.errors.begin();
    }

    /// An event, as it came.
    pub fn event(&mut self, envelope: &str) -> Result<(), Error> {
        if self.show == TaskOutput::Events { self.line(envelope) } else { Ok(()) }
    }

    /// More of the answer.
    pub fn text(&mut self, text: &str) -> Result<(), Error> {
        self.erase();
        self.quiet_since = None;
        self.answer.push_str(text);
        self.within_a_line = !self.answer.is_empty() && !self.answer.ends_with('\n');
        match self.show {
            TaskOutput::Json | TaskOutput::Events => Ok(()),
            TaskOutput::Full | TaskOutput::Quiet if self.guarded => {
                let shown = self.shown(text);
                self.write(&shown)
            }
            TaskOutput::Full | TaskOutput::Quiet => self.write(text),
        }
    }

    /// The model thinks.
    pub fn thinking(&mut self) {
        self.thinking = true;
    }

    /// A tool is called.
    pub fn call(&mut self, call: Call) -> Result<(), Error> {
        // What is said next is another paragraph.
        if self.within_a_line {
            self.answer.push('\n');
        }
        self.end_line()?;
        if self.show == TaskOutput::Full {
            let shown = agent::shown(&call.name, &call.args);
            let what = shown.map_or_else(|| call.args.clone(), |shown| shown.subject);
            let line = escaped(&format!("{} {what}", call.name));
            let line = truncated(&line, limits::CALL_CHARS_MAX);
            let (dim, plain) = self.dim;
            self.tell(&format!("{dim}> {line}{plain}\n"));
        }
        self.calls.push(call);
        self.running += 1;
        self.await_more();
        Ok(())
    }

    /// A tool has ended.
    pub fn called(&mut self, id: &str, duration_ms: Option<u64>, success: Option<bool>) {
        if let Some(call) = self.calls.iter_mut().rev().find(|call| call.id == id) {
            call.duration_ms = duration_ms;
            call.success = success;
        }
        self.running = self.running.saturating_sub(1);
        // Now the model has its turn, unless somebody is being asked.
        if self.running == 0 && self.quiet_since.is_some() {
            self.await_more();
        }
    }

    /// The turn has ended: whatever comes next begins on a line of its own.
    pub fn end(&mut self) -> Result<(), Error> {
        self.quiet_since = None;
        self.end_line()
    }

    /// Makes room for a line on standard error.
    pub fn make_room(&mut self) {
        self.erase();
        if self.terminal && self.within_a_line && self.shows_text() {
            self.tell("\n");
        }
    }

    /// Says what is being waited for, if it is time to; how long until it is time to say so again.
    pub fn tick(&mut self) -> Option<Duration> {
        let waited = self.quiet_since?.elapsed();
        if !self.terminal || self.show != TaskOutput::Full {
            return None;
        }
        let Some(late) = waited.checked_sub(limits::PROGRESS_AFTER) else {
            return Some(limits::PROGRESS_AFTER.saturating_sub(waited));
        };
        let what = match (self.running, self.thinking) {
            (0, false) => "waiting",
            (0, true) => "thinking",
            _ => "running",
        };
        let word = format!("… {what} {}s", waited.as_secs());
        let (dim, plain) = self.dim;
        let blanks = " ".repeat(self.drawn.saturating_sub(word.chars().count()));
        self.tell(&format!("\r{dim}{word}{plain}{blanks}"));
        self.drawn = self.drawn.max(word.chars().count());
        let next = Duration::from_secs(late.as_secs() + 1) + limits::PROGRESS_AFTER;
        Some(next.saturating_sub(waited))
    }

    /// Nobody is to be told that something is being waited for: somebody is being asked.
    pub fn hush(&mut self) {
        self.erase();
        self.quiet_since = None;
    }

    /// From now on something is being waited for.
    pub fn await_more(&mut self) {
        self.quiet_since = Some(Instant::now());
        self.thinking = false;
    }

    fn end_line(&mut self) -> Result<(), Error> {
        self.erase();
        if !self.within_a_line {
            return Ok(());
        }
        self.within_a_line = false;
        if !self.shows_text() {
            return Ok(());
        }
        let end = if std::mem::take(&mut self.returned) { sanitized("\r") } else { String::new() };
        self.write(&format!("{end}\n"))
    }

    /// More of the answer, as a terminal shows it: line ends as line ends, the rest visible.
    fn shown(&mut self, text: &str) -> String {
        let before = if std::mem::take(&mut self.returned) { "\r" } else { "" };
        let text = format!("{before}{text}");
        let whole = text.strip_suffix('\r');
        self.returned = whole.is_some();
        sanitized(&whole.unwrap_or(&text).replace("\r\n", "\n"))
    }

    fn shows_text(&self) -> bool {
        matches!(self.show, TaskOutput::Full | TaskOutput::Quiet)
    }

    fn erase(&mut self) {
        let width = std::mem::take(&mut self.drawn);
        if width > 0 {
            self.tell(&format!("\r{}\r", " ".repeat(width)));
        }
    }

    /// A line of the result: JSON.
    pub fn line(&mut self, json: &str) -> Result<(), Error> {
        self.write(&format!("{}\n", escaped_json(json)))
    }

    /// A line about what has happened on the way.
    pub fn say(&mut self, text: &str) {
        self.tell(&format!("opta: {}\n", escaped(text)));
    }

    /// There was a signal: nobody is waited for much longer.
    pub fn hurry(&mut self) {
        self.patience.set(Some(limits::PARTING_MAX));
    }

    /// Shows what could not be shown before, unless there is a signal to be taken first.
    pub fn flush(&mut self) -> Result<(), Error> {
        // Nobody is left to tell if this fails.
        drop(self.errors.flush());
        self.out.flush().map_err(Error::output)
    }

    /// Whether something is still to be shown.
    pub fn is_pending(&self) -> bool {
        self.out.is_pending() || self.errors.is_pending()
    }

    /// Whether something was not shown, since nobody read it and there was a signal.
    pub fn is_stuck(&self) -> bool {
        self.out.is_stuck() || self.errors.is_stuck()
    }

    /// A piece of the result, as it is.
    pub fn write(&mut self, text: &str) -> Result<(), Error> {
        self.out.write(text).map_err(Error::output)
    }

    /// Words on standard error. Nobody is left to tell if this fails.
    pub fn tell(&mut self, text: &str) {
        drop(self.errors.write(text));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.erase();
    }
}
