//! The result of a check, and how it is shown.

use std::fmt::Display;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nanoserde::SerJson;

use crate::cli::OutputMode;
use crate::commands::Output;
use crate::error::Error;
use crate::sys::terminal;
use crate::text::{escaped, wrapped};
use crate::{config, json, limits};

pub const PASS: &str = "pass";
pub const WARN: &str = "warn";
pub const FAIL: &str = "fail";

/// The result of a check, as a line of `--json`.
#[derive(SerJson)]
pub struct Finding {
    pub check: &'static str,
    pub status: &'static str,
    pub message: String,
    /// A command that fixes the problem, or shows more about it.
    pub fix: Option<String>,
}

/// The finding of a check; an error is one that ended the check early.
pub type Check = Result<Finding, Finding>;

/// Returns a finding that needs no action.
pub fn pass(message: impl Into<String>) -> Finding {
    Finding { check: "", status: PASS, message: message.into(), fix: None }
}

/// Returns a finding that needs no immediate action.
pub fn warn(message: impl Into<String>) -> Finding {
    Finding { status: WARN, ..pass(message) }
}

/// Returns a finding of a problem and the command to run.
pub fn fail(message: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { status: FAIL, ..pass(message) }.with_fix(fix)
}

/// Returns a failure with the next step that the error names, or else with `fix`.
pub fn failed(error: &Error, fix: impl Display) -> Finding {
    fail(error.to_string(), error.next_step().map_or_else(|| fix.to_string(), str::to_owned))
}

impl Finding {
    /// Adds the command to run.
    pub fn with_fix(self, fix: impl Into<String>) -> Finding {
        self.with_fix_if_any(Some(fix.into()))
    }

    /// Adds the command to run, if there is one.
    pub fn with_fix_if_any(self, fix: Option<String>) -> Finding {
        Finding { fix, ..self }
    }

    /// Returns the finding of the check of this name.
    pub fn of(self, check: &'static str) -> Finding {
        Finding { check, ..self }
    }

    /// Returns whether the check failed.
    pub fn is_failure(&self) -> bool {
        self.status == FAIL
    }

    /// Prints the finding: one line, but on a terminal as many as fit its width.
    pub fn print(&self, output: &Output) -> Result<(), Error> {
        if output.mode == OutputMode::Json {
            return output.line(&json::text(self));
        }
        let color = match self.status {
            PASS => "32",
            WARN => "33",
            _ => "31",
        };
        let columns = terminal::columns(io::stdout().as_fd()).unwrap_or(usize::MAX);
        let lines = self.lines(columns);
        let rest = lines.strip_prefix(self.status).unwrap_or_default();
        output.line(&format!("{}{rest}", output.style().paint(color, self.status)))
    }

    /// Returns the text for a width. A command is not wrapped, so that it can be copied.
    fn lines(&self, columns: usize) -> String {
        let Finding { check, status, message, fix } = self;
        let start = format!("{status}  {check:<8}  ");
        let message = escaped(message);
        let fix = fix.as_ref().map(|fix| format!("fix: {}", escaped(fix)));
        let line = match &fix {
            Some(fix) => format!("{start}{message}; {fix}"),
            None => format!("{start}{message}"),
        };
        let indent = start.chars().count();
        if line.chars().count() <= columns || columns < indent + limits::WRAPPED_COLUMNS_MIN {
            return line;
        }
        let message = wrapped(&start, message.split(' '), columns, indent);
        let fix = fix.map_or(String::new(), |fix| format!("\n{}{fix}", " ".repeat(indent)));
        message + &fix
    }
}

/// Returns whether a program of this name is where the user's shell searches programs.
pub fn is_installed(program: &str) -> bool {
    std::env::split_paths(&config::search_path()).any(|directory| {
        let found = directory.join(program).metadata();
        found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    })
}

/// Returns the first of these programs that is installed.
pub fn first_installed<'p>(programs: &[&'p str]) -> Option<&'p str> {
    programs.iter().copied().find(|program| is_installed(program))
}

/// Quotes a path as one word for the shell.
pub fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_too_long_is_wrapped_but_its_command_is_not() {
        let finding = fail("one two three four five six seven", "a command of many words").of("x");
        let whole =
            "fail  x         one two three four five six seven; fix: a command of many words";
        assert_eq!(finding.lines(79), whole);
        let wrapped = "fail  x         one two three four five six\n                seven\n                \
                       fix: a command of many words";
        assert_eq!(finding.lines(45), wrapped);
        // Too narrow for anything.
        assert_eq!(finding.lines(16 + limits::WRAPPED_COLUMNS_MIN - 1), whole);
        assert!(finding.lines(16 + limits::WRAPPED_COLUMNS_MIN).contains('\n'));
    }
}
