//! The command line: one table, from which the parser, the help and the completions are made, and
//! with which a test compares the manual. Pure: arguments in, [`Command`] out.

mod args;
mod parse;
mod table;

use std::time::Duration;

use crate::log::Level;
use crate::protocol::Grant;

pub use args::{OptionSpec, OptionValue, Subcommand};
pub use parse::{nearest, parse, requested_mode};
pub use table::{SUBCOMMANDS, next_words};

/// The form in which a command prints its results and its errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputMode {
    /// For people.
    Text,
    /// For programs: JSON objects on standard output, one per line, also on failure.
    Json,
}

/// A command with its arguments.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Print this text.
    Print(String),
    Version,
    Start(StartArgs),
    Status(StatusArgs),
    Stop(StopArgs),
    Restart(RestartArgs),
    Token,
    Install(InstallArgs),
    Uninstall(UninstallArgs),
    Logs(LogsArgs),
    Sessions(SessionsCommand),
    Do(DoArgs),
    Chat(ChatArgs),
    Models {
        url: Option<String>,
    },
    /// Open the local page, or only `print` its URL.
    Web {
        print: bool,
    },
    Config(ConfigCommand),
    Doctor,
    Completions(Shell),
}

/// A shell for which there are completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The arguments of `opta daemon start`.
#[derive(Debug, PartialEq)]
pub struct StartArgs {
    pub foreground: bool,
    pub port: Option<u16>,
}

/// The arguments of `opta daemon status`.
#[derive(Debug, PartialEq)]
pub struct StatusArgs {
    /// The time to wait for a running daemon.
    pub wait: Option<Duration>,
    pub quiet: bool,
}

/// The arguments of `opta daemon stop`.
#[derive(Debug, PartialEq)]
pub struct StopArgs {
    pub timeout: Duration,
    pub force: bool,
}

/// The arguments of `opta daemon restart`.
#[derive(Debug, PartialEq)]
pub struct RestartArgs {
    pub stop: StopArgs,
    pub if_idle: bool,
}

/// The arguments of `opta daemon install`.
#[derive(Debug, PartialEq)]
pub struct InstallArgs {
    /// Also start the service.
    pub now: bool,
    /// Replace a file that opta did not write.
    pub force: bool,
}

/// The arguments of `opta daemon uninstall`.
#[derive(Debug, PartialEq)]
pub struct UninstallArgs {
    /// Remove a file that opta did not write.
    pub force: bool,
}

/// The arguments of `opta daemon logs`.
#[derive(Debug, PartialEq)]
pub struct LogsArgs {
    pub lines: usize,
    pub follow: bool,
    pub level: Level,
    /// Unix milliseconds.
    pub since: Option<i64>,
}

/// The arguments of `opta do`.
#[derive(Debug, PartialEq)]
pub struct DoArgs {
    /// `-` reads it from standard input.
    pub task: String,
    pub grant: Grant,
    pub output: TaskOutput,
    pub model: ModelArgs,
    pub session: SessionChoice,
}

/// The output of `opta do`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskOutput {
    /// The answer, and a line per tool call.
    Full,
    /// The answer alone.
    Quiet,
    /// One object at the end.
    Json,
    /// The events, as they arrive.
    Events,
}

/// The model and its server, where the user names them.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelArgs {
    pub name: Option<String>,
    pub url: Option<String>,
    /// The limit of an answer.
    pub max_tokens: Option<u64>,
}

/// The arguments of `opta chat`.
#[derive(Debug, PartialEq)]
pub struct ChatArgs {
    pub session: SessionChoice,
    pub model: ModelArgs,
    /// The only message; there is no conversation.
    pub once: Option<String>,
    /// Not to print what a turn took.
    pub quiet: bool,
}

/// The session that a task or a chat uses.
#[derive(Debug, PartialEq)]
pub enum SessionChoice {
    New,
    Resume(String),
    /// The most recently used one of those that work in the current directory.
    Latest,
    /// The most recently used one.
    LatestAnywhere,
}

/// A command of `opta sessions`. An id is as it was typed: any unique beginning is enough.
#[derive(Debug, PartialEq)]
pub enum SessionsCommand {
    /// The newest ones.
    List { limit: usize },
    /// For people.
    Show { id: String },
    /// For other programs.
    Export { id: String, format: ExportFormat },
    /// `list` prints the ids of the sessions only.
    Grep { pattern: String, ignore_case: bool, list: bool },
    /// Without an id, all sessions.
    Verify { id: Option<String> },
    /// With `force`, without asking for confirmation.
    Remove { id: String, force: bool },
}

/// A command of `opta config`. A key has the name of its object, and a dot, before it.
#[derive(Debug, PartialEq)]
pub enum ConfigCommand {
    List,
    Get { key: String },
    Set { key: String, value: String },
    Reset { key: String },
    Path,
    Edit,
}

/// The format of an exported session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    Json,
    Markdown,
}

#[cfg(test)]
mod tests;
