//! The commands: each calls modules in lower layers, prints, and chooses the exit status. There is
//! a file for each noun; `opta do` and `opta chat` share `client_session` and what it uses.

pub mod chat;
mod client_session;
mod complete;
pub mod config_file;
mod console;
pub mod daemon;
mod diff;
pub mod doctor;
mod draft;
mod input_history;
mod interruptible_writer;
mod keyboard;
mod line_editor;
mod markdown;
pub mod models;
pub mod operations;
mod question;
mod screen;
pub mod service;
pub mod sessions;
mod slash;
pub mod task;
mod task_input;
mod tool_report;
pub mod web;

use std::cell::{OnceCell, RefCell};
use std::io::{self, IsTerminal, Write};

use nanoserde::SerJson;

use crate::cli::OutputMode;
use crate::error::{Doing, Error};
use crate::lifecycle::guardian::Ensured;
use crate::text::{Style, escaped, escaped_json};
use crate::{config, json, protocol};

/// The printer of results to standard output and of notes to standard error.
///
/// If standard output is closed, `main` ends the command quietly. Failures to write to standard
/// error are ignored: there is no other place to report them.
pub struct Output {
    pub mode: OutputMode,
    /// Why a [`Output::step`] could not be written.
    step_error: OnceCell<Error>,
    captured: Option<RefCell<Captured>>,
}

/// The output of a command.
#[derive(Default)]
pub struct Captured {
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Returns the output in this mode.
    pub fn new(mode: OutputMode) -> Output {
        Output { mode, step_error: OnceCell::new(), captured: None }
    }

    /// Returns output in this mode that is captured instead of printed.
    pub fn capturing(mode: OutputMode) -> Output {
        Output { captured: Some(RefCell::default()), ..Output::new(mode) }
    }

    /// Returns what was captured.
    pub fn into_captured(self) -> Captured {
        self.captured.map(RefCell::into_inner).unwrap_or_default()
    }

    /// Prints a line of the result before the command is done. A failure to write does not end the
    /// command early: [`Output::finish`] reports it.
    pub fn step(&self, text: &str) {
        if let Err(error) = self.line(text) {
            // The first failure is reported.
            drop(self.step_error.set(error));
        }
    }

    /// Prints a step for people; nothing with `--json`.
    pub fn progress(&self, text: &str) {
        if self.mode == OutputMode::Text {
            self.step(text);
        }
    }

    /// Fails if a step could not be written.
    pub fn finish(self) -> Result<(), Error> {
        io::stdout().flush().map_err(Error::output)?;
        self.step_error.into_inner().map_or(Ok(()), Err)
    }

    /// Prints a line of the result.
    pub fn line(&self, text: &str) -> Result<(), Error> {
        let text = match self.mode {
            OutputMode::Json => escaped_json(text),
            OutputMode::Text => text.into(),
        };
        match &self.captured {
            Some(captured) => {
                captured.borrow_mut().stdout += &format!("{text}\n");
                Ok(())
            }
            None => writeln!(io::stdout(), "{text}").map_err(Error::output),
        }
    }

    /// Prints a line of the result for people; nothing with `--json`.
    pub fn text(&self, text: &str) -> Result<(), Error> {
        if self.mode == OutputMode::Text { self.line(text) } else { Ok(()) }
    }

    /// Prints an object of the result with `--json`; nothing for people.
    pub fn json(&self, object: &impl SerJson) -> Result<(), Error> {
        if self.mode == OutputMode::Json { self.line(&json::text(object)) } else { Ok(()) }
    }

    /// Prints a line of the result: `text` for people, `object` with `--json`.
    pub fn result(&self, text: &str, object: &impl SerJson) -> Result<(), Error> {
        self.text(text)?;
        self.json(object)
    }

    /// Prints a line that is not a result.
    pub fn note(&self, text: &str) {
        let text = escaped(text);
        match &self.captured {
            Some(captured) => captured.borrow_mut().stderr += &format!("opta: {text}\n"),
            None => drop(writeln!(io::stderr(), "opta: {text}")),
        }
    }

    /// Asks a question on the terminal. Returns whether the answer is yes.
    pub fn confirm(&self, question: &str) -> Result<bool, Error> {
        drop(write!(io::stderr(), "{question}"));
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).doing("read the answer")?;
        Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }

    /// Prints an error that does not end the command.
    pub fn error(&self, error: &Error) -> Result<(), Error> {
        let message = escaped(&error.to_string());
        match self.mode {
            OutputMode::Text => self.note(&message),
            OutputMode::Json => self.line(&protocol::error_body(error.code(), &message))?,
        }
        Ok(())
    }

    /// Returns the style of standard output.
    pub fn style(&self) -> Style {
        Style::new(io::stdout().is_terminal() && config::color_allowed())
    }
}

/// Returns notes about a daemon that a command uses: a crash before it, another version.
pub fn daemon_notes(daemon: &Ensured) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(start) = &daemon.start
        && let Some(crashed) = start.crashed
    {
        let pid = crashed.pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
        notes.push(format!("daemon had crashed{pid}, restarted (pid {})", daemon.info.pid));
    }
    let (theirs, ours) = (&daemon.info.version, env!("CARGO_PKG_VERSION"));
    if theirs != ours {
        let next = "to replace it: opta daemon restart";
        notes.push(format!("the daemon is opta {theirs}, this is opta {ours}; {next}"));
    }
    notes
}
