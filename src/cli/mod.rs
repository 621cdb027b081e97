//! What the user can type: one table, from which come the parser, the help, the completions, and
//! the test that holds the manual to it. Pure: arguments in, [`Command`] out.

mod help;
mod mistake;
mod parse;
mod table;

use std::time::Duration;

use crate::log::Level;

pub use parse::{form_wanted, parse};
pub use table::{Flag, VERBS, Value, Verb, following};

/// How a command answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// One JSON object a line, on standard output, in every outcome.
    Json,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Print this text.
    Print(String),
    Version,
    Start(Start),
    Status(Status),
    Stop(Stop),
    Restart(Restart),
    Token,
    Install(Install),
    Uninstall(Uninstall),
    Logs(Logs),
    Sessions(Sessions),
    Do(Do),
    Chat(Chat),
    Doctor,
    Completions(Shell),
}

/// A shell that opta knows completions for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// `opta daemon start`
#[derive(Debug, PartialEq)]
pub struct Start {
    pub foreground: bool,
    pub port: Option<u16>,
}

/// `opta daemon status`
#[derive(Debug, PartialEq)]
pub struct Status {
    /// How long to wait for a daemon that runs.
    pub wait: Option<Duration>,
    pub quiet: bool,
}

/// `opta daemon stop`
#[derive(Debug, PartialEq)]
pub struct Stop {
    pub timeout: Duration,
    pub force: bool,
}

/// `opta daemon restart`
#[derive(Debug, PartialEq)]
pub struct Restart {
    pub stop: Stop,
    pub if_idle: bool,
}

/// `opta daemon install`
#[derive(Debug, PartialEq)]
pub struct Install {
    /// Start the service as well.
    pub now: bool,
    /// Replace a file that opta has not written.
    pub force: bool,
}

/// `opta daemon uninstall`
#[derive(Debug, PartialEq)]
pub struct Uninstall {
    /// Remove a file that opta has not written.
    pub force: bool,
}

/// `opta daemon logs`
#[derive(Debug, PartialEq)]
pub struct Logs {
    pub lines: usize,
    pub follow: bool,
    pub level: Level,
    /// Unix milliseconds.
    pub since: Option<i64>,
}

/// `opta do`
#[derive(Debug, PartialEq)]
pub struct Do {
    /// `-` stands for standard input.
    pub task: String,
    pub grant: Grant,
    pub show: Show,
    pub model: Model,
    /// A session to go on with.
    pub resume: Option<String>,
}

/// What a task may do without being asked about, beyond the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    Settings,
    /// Write and edit files.
    Edits,
    All,
}

/// What is shown of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// The answer, and a line for each call of a tool.
    Work,
    /// The answer alone.
    Answer,
    /// One object in the end.
    Object,
    /// The events, as they come.
    Events,
}

/// What the user says of the model.
#[derive(Debug, PartialEq)]
pub struct Model {
    pub name: Option<String>,
    pub url: Option<String>,
}

/// `opta chat`
#[derive(Debug, PartialEq)]
pub struct Chat {
    pub begin: Begin,
    pub model: Model,
    /// The one thing to be said, and no conversation.
    pub once: Option<String>,
}

/// Which session a chat is in.
#[derive(Debug, PartialEq)]
pub enum Begin {
    New,
    Resume(String),
    /// The one that was used last.
    Latest,
}

/// `opta sessions …`. An id is as it was typed: the beginning of one is enough.
#[derive(Debug, PartialEq)]
pub enum Sessions {
    List {
        limit: usize,
    },
    Show {
        id: String,
    },
    Export {
        id: String,
        format: Format,
    },
    /// All of them without an id.
    Verify {
        id: Option<String>,
    },
    Remove {
        id: String,
        /// Without asking.
        force: bool,
    },
}

/// What an exported session is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Markdown,
}

#[cfg(test)]
mod tests;
