//! What the user asks for: ask the rooms below, print, choose the exit status. A file for each
//! noun; `talk` and what it uses are what `opta do` and `opta chat` have in common.

pub mod chat;
mod console;
pub mod daemon;
pub mod doctor;
mod interruptible_writer;
mod keyboard;
mod question;
mod screen;
pub mod service;
pub mod sessions;
mod talk;
pub mod task;

use std::cell::{OnceCell, RefCell};
use std::io::{self, IsTerminal, Write};

use crate::cli::OutputMode;
use crate::error::{Doing, Error};
use crate::lifecycle::guardian::{Ensured, How};
use crate::log::Style;
use crate::text::{escaped, escaped_json};
use crate::{config, protocol};

/// Where a command's results and words go.
///
/// Results go to standard output and nothing else does; a reader that has gone is no error here but
/// in `main`, where it ends the command quietly. Words go to standard error, where failures are
/// ignored: there is nobody left to tell.
pub struct Output {
    pub mode: OutputMode,
    /// Why words about what was going on could not be written.
    lost: OnceCell<Error>,
    /// It goes nowhere for now.
    kept: Option<RefCell<Kept>>,
}

/// What a command had to say, for somebody else to show.
#[derive(Default)]
pub struct Kept {
    pub results: String,
    pub words: String,
}

impl Output {
    /// Output in this mode.
    pub fn new(mode: OutputMode) -> Output {
        Output { mode, lost: OnceCell::new(), kept: None }
    }

    /// Output that is kept, for people; [`Output::kept`] has it.
    pub fn to_keep() -> Output {
        Output { kept: Some(RefCell::default()), ..Output::new(OutputMode::Text) }
    }

    /// What was kept.
    pub fn kept(self) -> Kept {
        self.kept.map(RefCell::into_inner).unwrap_or_default()
    }

    /// A line of the result, before the command has done all it was asked to. That it cannot be
    /// written is no reason to stop half-way: [`Output::finish`] reports it.
    pub fn step(&self, text: &str) {
        if let Err(error) = self.line(text) {
            // The first reason is the one to report.
            drop(self.lost.set(error));
        }
    }

    /// [`Output::step`] for people; nothing with `--json`.
    pub fn progress(&self, text: &str) {
        if self.mode == OutputMode::Text {
            self.step(text);
        }
    }

    /// Fails if something could not be written on the way.
    pub fn finish(self) -> Result<(), Error> {
        io::stdout().flush().map_err(Error::output)?;
        self.lost.into_inner().map_or(Ok(()), Err)
    }

    /// A line of the result.
    pub fn line(&self, text: &str) -> Result<(), Error> {
        let text = match self.mode {
            OutputMode::Json => escaped_json(text),
            OutputMode::Text => text.into(),
        };
        match &self.kept {
            Some(kept) => {
                kept.borrow_mut().results += &format!("{text}\n");
                Ok(())
            }
            None => writeln!(io::stdout(), "{text}").map_err(Error::output),
        }
    }

    /// A line of the result for people; nothing with `--json`.
    pub fn text(&self, text: &str) -> Result<(), Error> {
        if self.mode == OutputMode::Text { self.line(text) } else { Ok(()) }
    }

    /// A line that is no result: what happened on the way.
    pub fn say(&self, text: &str) {
        let text = escaped(text);
        match &self.kept {
            Some(kept) => kept.borrow_mut().words += &format!("opta: {text}\n"),
            None => drop(writeln!(io::stderr(), "opta: {text}")),
        }
    }

    /// Whether the user says yes, on a terminal.
    pub fn ask(&self, question: &str) -> Result<bool, Error> {
        drop(write!(io::stderr(), "{question}"));
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).doing("read the answer")?;
        Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }

    /// A failure that is not the end of the command.
    pub fn complain(&self, error: &Error) -> Result<(), Error> {
        let message = escaped(&error.to_string());
        match self.mode {
            OutputMode::Text => self.say(&message),
            OutputMode::Json => self.line(&protocol::error_body(error.code(), &message))?,
        }
        Ok(())
    }

    /// What a user should know of a daemon that a command makes use of.
    pub fn introduce(&self, daemon: &Ensured) {
        if let How::Started(past) = &daemon.how
            && let Some(crashed) = past.crashed
        {
            let pid = crashed.pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
            self.say(&format!("daemon had crashed{pid}, restarted (pid {})", daemon.info.pid));
        }
        let (theirs, ours) = (&daemon.info.version, env!("CARGO_PKG_VERSION"));
        if theirs != ours {
            self.say(&format!(
                "the daemon is opta {}, this is opta {ours}; to move it: opta daemon restart",
                theirs
            ));
        }
    }

    /// How the log looks on standard output.
    pub fn style(&self) -> Style {
        if self.coloured() { Style::Colour } else { Style::Plain }
    }

    /// Whether standard output may be coloured.
    pub fn coloured(&self) -> bool {
        io::stdout().is_terminal() && config::color_allowed()
    }
}
