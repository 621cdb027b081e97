//! What is seen of a turn: the answer on standard output as it comes, a line for each call of a
//! tool on standard error, and on a terminal a word while nothing has come yet.
//!
//! The answer goes out byte for byte, but to a terminal: no control character of a model reaches
//! one.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use nanoserde::SerJson;

use crate::cli::Show;
use crate::error::Error;
use crate::session::transcript::{one_line_cut, visible};
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
    show: Show,
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
    /// Since when nothing has come, if that is so.
    quiet_since: Option<Instant>,
    /// How wide the word is that says so.
    drawn: usize,
    thinking: bool,
}

impl Screen {
    /// A screen with nothing on it.
    pub fn new(show: Show) -> Screen {
        let (guarded, errors) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let coloured = errors && config::colour_allowed();
        Screen {
            show,
            terminal: guarded && errors,
            guarded,
            dim: if coloured { ("\x1b[2m", "\x1b[0m") } else { ("", "") },
            answer: String::new(),
            calls: Vec::new(),
            within_a_line: false,
            quiet_since: None,
            drawn: 0,
            thinking: false,
        }
    }

    /// A turn begins: from now on something is being waited for.
    pub fn begin(&mut self) {
        self.answer.clear();
        self.calls.clear();
        self.await_more();
    }

    /// An event, as it came.
    pub fn event(&mut self, envelope: &str) -> Result<(), Error> {
        if self.show == Show::Events { write(&format!("{envelope}\n")) } else { Ok(()) }
    }

    /// More of the answer.
    pub fn text(&mut self, text: &str) -> Result<(), Error> {
        self.erase();
        self.quiet_since = None;
        self.answer.push_str(text);
        self.within_a_line = !self.answer.is_empty() && !self.answer.ends_with('\n');
        match self.show {
            Show::Object | Show::Events => Ok(()),
            Show::Work | Show::Answer if self.guarded => write(&visible(text)),
            Show::Work | Show::Answer => write(text),
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
        if self.show == Show::Work {
            let shown = agent::shown(&call.name, &call.args);
            let what = shown.map_or_else(|| call.args.clone(), |shown| shown.subject);
            let line = one_line_cut(&format!("{} {what}", call.name));
            let (dim, plain) = self.dim;
            drop(writeln!(io::stderr(), "{dim}> {line}{plain}"));
        }
        self.calls.push(call);
        self.await_more();
        Ok(())
    }

    /// A tool has ended.
    pub fn called(&mut self, id: &str, duration_ms: Option<u64>, success: Option<bool>) {
        if let Some(call) = self.calls.iter_mut().rev().find(|call| call.id == id) {
            call.duration_ms = duration_ms;
            call.success = success;
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
            drop(writeln!(io::stderr()));
        }
    }

    /// Says what is being waited for, if it is time to; how long until it is time to say so again.
    pub fn tick(&mut self) -> Option<Duration> {
        let waited = self.quiet_since?.elapsed();
        if !self.terminal || self.show != Show::Work {
            return None;
        }
        let Some(late) = waited.checked_sub(limits::PROGRESS_AFTER) else {
            return Some(limits::PROGRESS_AFTER.saturating_sub(waited));
        };
        let what = if self.thinking { "thinking" } else { "waiting" };
        let word = format!("… {what} {}s", waited.as_secs());
        let (dim, plain) = self.dim;
        let blanks = " ".repeat(self.drawn.saturating_sub(word.chars().count()));
        drop(write!(io::stderr(), "\r{dim}{word}{plain}{blanks}"));
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
        if self.shows_text() { write("\n") } else { Ok(()) }
    }

    fn shows_text(&self) -> bool {
        matches!(self.show, Show::Work | Show::Answer)
    }

    fn erase(&mut self) {
        let width = std::mem::take(&mut self.drawn);
        if width > 0 {
            drop(write!(io::stderr(), "\r{}\r", " ".repeat(width)));
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.erase();
    }
}

fn write(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::Output)
}
