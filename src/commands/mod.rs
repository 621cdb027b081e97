//! What the user asks for: ask the rooms below, print, choose the exit status. A file for each
//! noun.

pub mod daemon;
pub mod service;

use std::io::{self, IsTerminal, Write};

use crate::cli::Form;
use crate::config;
use crate::error::Error;
use crate::log::Style;

/// Where a command's results and words go.
///
/// Results go to standard output and nothing else does; a reader that has gone is no error here but
/// in `main`, where it ends the command quietly. Words go to standard error, where failures are
/// ignored: there is nobody left to tell.
pub struct Output {
    pub form: Form,
}

impl Output {
    /// A line of the result.
    pub fn line(&self, text: &str) -> Result<(), Error> {
        writeln!(io::stdout(), "{text}").map_err(Error::Output)
    }

    /// A line of the result for people; nothing with `--json`.
    pub fn text(&self, text: &str) -> Result<(), Error> {
        if self.form == Form::Text { self.line(text) } else { Ok(()) }
    }

    /// A line that is no result: what happened on the way.
    pub fn say(&self, text: &str) {
        drop(writeln!(io::stderr(), "opta: {text}"));
    }

    /// How the log looks on standard output.
    pub fn style(&self) -> Style {
        if self.coloured() { Style::Colour } else { Style::Plain }
    }

    /// Whether standard output may be coloured.
    pub fn coloured(&self) -> bool {
        io::stdout().is_terminal() && config::colour_allowed()
    }
}
