//! The line editor of the prompt: `rustyline` with the history of the user's messages, completion,
//! and messages of several lines.

use std::any::Any;
use std::cell::RefCell;
use std::io::{self, IsTerminal};

use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Behavior, CompletionType, Config, Context, Editor, Helper};

use crate::commands::complete::{Candidate, Candidates};
use crate::commands::input_history::InputHistory;
use crate::config;
use crate::error::{Doing, Error};
use crate::limits;
use crate::paths::Paths;

/// The end of an edited message.
pub enum Edited {
    Message(String),
    /// Ctrl-C, or a signal.
    Interrupted,
    /// Ctrl-D.
    End,
    /// Why it cannot be sent.
    Invalid(String),
}

/// The editor with its history.
pub struct LineEditor {
    editor: Editor<Assistance, MemHistory>,
    history: InputHistory,
    /// With it, the editor waits for keys and signals at the same time; without it, a signal that
    /// arrives just before the wait is lost.
    _printer: Box<dyn Any>,
}

impl LineEditor {
    /// Returns the editor and a note about its history; `None` if there is no terminal to draw on,
    /// or it has no cursor that can be moved.
    pub fn new(
        paths: &Paths,
        candidates: Candidates,
    ) -> Result<Option<(LineEditor, Option<String>)>, Error> {
        // It draws on standard output, or else on the process's terminal.
        let behavior = match io::stdout().is_terminal() {
            true => Behavior::Stdio,
            false => Behavior::PreferTerm,
        };
        let has_terminal = || std::fs::File::open("/dev/tty").is_ok();
        if !config::cursor_can_move() || behavior == Behavior::PreferTerm && !has_terminal() {
            return Ok(None);
        }
        let mut history = MemHistory::with_config(&configuration(behavior)?);
        let (file, messages, note) = InputHistory::load(paths);
        for message in messages {
            rustyline::history::History::add_owned(&mut history, message)
                .map_err(failure)
                .doing(EDIT)?;
        }
        let editor = Editor::with_history(configuration(behavior)?, history);
        let mut editor = editor.map_err(failure).doing(EDIT)?;
        editor.set_helper(Some(Assistance { candidates, continued: RefCell::default() }));
        let printer = Box::new(editor.create_external_printer().map_err(failure).doing(EDIT)?);
        Ok(Some((LineEditor { editor, history: file, _printer: printer }, note)))
    }

    /// Reads a message, which begins as `initial`. Returns it, and a note if it could not be kept
    /// in the history.
    pub fn read(&mut self, initial: &str) -> Result<(Edited, Option<String>), Error> {
        if let Some(helper) = self.editor.helper() {
            helper.continued.borrow_mut().clear();
        }
        let edited = match self.editor.readline_with_initial(PROMPT, (initial, "")) {
            Ok(text) => text,
            Err(ReadlineError::Interrupted) => return Ok((Edited::Interrupted, None)),
            Err(ReadlineError::Eof) => return Ok((Edited::End, None)),
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return Ok((Edited::Invalid("it is not UTF-8".to_owned()), None));
            }
            Err(error) => return Err(failure(error)).doing(EDIT),
        };
        let continued = self.editor.helper().map(|helper| helper.continued.take());
        let message = finished(edited, &continued.unwrap_or_default());
        if u64::try_from(message.len()).is_ok_and(|length| length > limits::TASK_BYTES_MAX) {
            let reason = format!("it is longer than {} bytes", limits::TASK_BYTES_MAX);
            return Ok((Edited::Invalid(reason), None));
        }
        let note = self.remember(&message);
        Ok((Edited::Message(message), note))
    }

    fn remember(&mut self, message: &str) -> Option<String> {
        let is_short = message.len() <= limits::INPUT_HISTORY_MESSAGE_BYTES_MAX;
        let added = is_short && self.editor.add_history_entry(message).unwrap_or(false);
        if added { self.history.add(message) } else { None }
    }
}

const EDIT: &str = "edit a line";

/// What the user sees before the cursor.
pub const PROMPT: &str = "> ";

fn configuration(behavior: Behavior) -> Result<Config, Error> {
    let builder = Config::builder().behavior(behavior).completion_type(CompletionType::List);
    let builder =
        builder.max_history_size(limits::INPUT_HISTORY_MAX).map_err(failure).doing(EDIT)?;
    let builder = builder.history_ignore_dups(true).map_err(failure).doing(EDIT)?;
    Ok(builder.history_ignore_space(true).build())
}

fn failure(error: ReadlineError) -> io::Error {
    match error {
        ReadlineError::Io(error) => error,
        ReadlineError::Errno(error) => error.into(),
        other => io::Error::other(other.to_string()),
    }
}

/// What helps the user while a message is edited.
struct Assistance {
    candidates: Candidates,
    /// The texts, up to a backslash at their end, that the user continued on another line.
    continued: RefCell<Vec<String>>,
}

impl Helper for Assistance {}
impl Hinter for Assistance {
    type Hint = String;
}
impl Highlighter for Assistance {}

impl Validator for Assistance {
    /// A line that ends with a backslash is continued, and so is a block that is still open.
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let text = context.input();
        let is_continued = is_continued(text);
        if is_continued {
            self.continued.borrow_mut().push(text.to_owned());
        }
        Ok(match is_continued || is_open(text) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Completer for Assistance {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, found) = self.candidates.of(line.get(..position).unwrap_or(line));
        let pair = |Candidate { display, replacement }| Pair { display, replacement };
        Ok((start, found.into_iter().map(pair).collect()))
    }
}

/// The line that begins and ends a block of several lines.
const BLOCK: &str = "\"\"\"";

fn is_continued(text: &str) -> bool {
    // Two are one that was meant.
    text.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

/// Returns whether `text` begins a block and does not end it.
fn is_open(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim_end);
    lines.next() == Some(BLOCK) && lines.all(|line| line != BLOCK)
}

/// Returns the message: without what continued its lines, the lines that enclose it, and control
/// characters.
fn finished(mut text: String, continued: &[String]) -> String {
    // From the longest one on, so that the places of the others remain.
    for before in continued.iter().rev() {
        let is_here = text.strip_prefix(before.as_str()).is_some_and(|rest| rest.starts_with('\n'));
        if is_here && before.ends_with('\\') {
            text.remove(before.len() - 1);
        }
    }
    let lines: Vec<&str> = text.lines().collect();
    if let [first, inner @ .., last] = lines.as_slice()
        && first.trim_end() == BLOCK
        && last.trim_end() == BLOCK
    {
        text = inner.join("\n");
    }
    text.retain(|c| !c.is_control() || matches!(c, '\n' | '\t'));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_continue_after_a_backslash_and_within_a_block() {
        for (text, continues) in [
            ("one", false),
            ("one\\", true),
            ("one\\\\", false),
            ("one\\\ntwo", false),
            ("\"\"\"", true),
            ("\"\"\"\none\n", true),
            ("\"\"\"\none\n\"\"\"", false),
            // A program that begins with a comment.
            ("\"\"\"\none\n\"\"\"\nimport os", false),
            ("say \"\"\"", false),
        ] {
            assert_eq!(is_continued(text) || is_open(text), continues, "{text:?}");
        }
    }

    #[test]
    fn a_message_has_no_marks_of_several_lines_and_no_control_characters() {
        let continued = ["a\\".to_owned(), "a\\\nb\\".to_owned()];
        assert_eq!(finished("a\\\nb\\\nc".into(), &continued), "a\nb\nc");
        // Pasted, not typed.
        assert_eq!(finished("a\\\nb".into(), &[]), "a\\\nb");
        assert_eq!(finished("\"\"\"\na\nb\n\"\"\"".into(), &[]), "a\nb");
        assert_eq!(finished("\"\"\"\na\n\"\"\"\nb".into(), &[]), "\"\"\"\na\n\"\"\"\nb");
        assert_eq!(finished("a\x1b[31m\u{9b}b\tc\n".into(), &[]), "a[31mb\tc\n");
    }
}
