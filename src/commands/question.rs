//! The questions whether a tool call is allowed, and the user's answers.

use std::collections::VecDeque;

use crate::agent;
use crate::commands::console::Console;
use crate::commands::diff;
use crate::error::Error;
use crate::protocol::event::{PermissionRequest, PermissionResolved};
use crate::text::{escaped, prefix, quoted, truncated, wrapped};
use crate::{config, limits};

/// The unanswered questions, the first of them on the screen.
#[derive(Default)]
pub struct Questions {
    waiting: VecDeque<Question>,
    /// What the user always allows.
    always: Vec<Scope>,
    /// Whether the user knows how to allow calls without a question.
    explained: bool,
}

/// The calls that an answer allows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    Tool(String),
    /// The commands that begin with these words.
    Commands(Vec<String>),
    /// This command.
    Command(String),
}

impl Scope {
    /// Returns what "always" allows for a call.
    fn of(tool: &str, args: &str) -> Scope {
        match agent::command(tool, args) {
            None => Scope::Tool(tool.to_owned()),
            Some(command) => {
                config::first_words(&command).map_or(Scope::Command(command), Scope::Commands)
            }
        }
    }

    fn allows(&self, tool: &str, args: &str) -> bool {
        match (self, agent::command(tool, args)) {
            (Scope::Tool(allowed), None) => allowed == tool,
            (Scope::Commands(words), Some(command)) => config::begins_with(&command, words),
            (Scope::Command(allowed), Some(command)) => *allowed == command,
            _ => false,
        }
    }

    fn describe(&self) -> String {
        match self {
            Scope::Tool(tool) => format!("every {}", escaped(tool)),
            Scope::Commands(words) => {
                format!("every {}", quoted(&format!("{} …", words.join(" "))))
            }
            Scope::Command(_) => "this command".to_owned(),
        }
    }
}

struct Question {
    request_id: String,
    tool: String,
    args: String,
    /// Whether it is about a turn of this process.
    own: bool,
    text: String,
    /// The lines that the call would change.
    change: Vec<String>,
    scope: Scope,
    asked: bool,
    /// Whether something of it was not shown yet.
    hidden: bool,
}

impl Questions {
    /// Removes the questions of the last turn.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Returns whether no answer is awaited.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns whether the user already allowed every such call, in the turns of this process.
    pub fn is_allowed(&self, request: &PermissionRequest) -> bool {
        let (tool, args) = (&request.tool_name, request.args.as_str());
        self.always.iter().any(|scope| scope.allows(tool, args))
    }

    /// Asks the question of an event, after those before it. The paths of the call are relative to
    /// `workspace`.
    pub fn add(
        &mut self,
        request: PermissionRequest,
        own: bool,
        workspace: Option<&str>,
        console: &mut Console,
    ) {
        self.waiting.push_back(Question::new(request, own, workspace));
        if self.waiting.len() == 1 {
            self.ask(console);
        }
    }

    /// Removes a question that was decided, by this process or another.
    pub fn resolve(
        &mut self,
        resolved: &PermissionResolved,
        cancelled: bool,
        console: &mut Console,
    ) {
        let PermissionResolved { request_id, decision, .. } = resolved;
        let Some(at) = self.waiting.iter().position(|one| one.request_id == *request_id) else {
            return;
        };
        drop(self.waiting.remove(at));
        if at == 0 && console.interactive {
            console.screen.print_error("\n");
            // The end of a cancelled turn says why.
            if !cancelled {
                console.screen.note(&format!("answered elsewhere: {decision}"));
            }
            console.screen.start_progress();
            self.ask(console);
        }
    }

    /// Reads the answer to the question on the screen, and calls `decide` for each request that it
    /// decides.
    pub fn read_answer(
        &mut self,
        console: &mut Console,
        decide: impl Fn(&str, bool),
    ) -> Result<(), Error> {
        console.stdin.read()?;
        let Some(question) = self.waiting.front_mut() else {
            return Ok(());
        };
        let line = match console.stdin.next() {
            Some(line) => line.unwrap_or_default().trim().to_lowercase(),
            None if console.stdin.take_end() => "no".to_owned(),
            // The rest of the line is still to come.
            None => return Ok(()),
        };
        match line.as_str() {
            "s" | "show" => console.screen.print_error(&question.show_all()),
            "y" | "yes" | "a" | "always" if question.hidden => {
                console.screen.note("not all of it was shown: press s first");
            }
            "y" | "yes" | "n" | "no" | "a" | "always" => {
                decide(&question.request_id, !line.starts_with('n'));
                if line.starts_with('a') {
                    self.always.push(question.scope.clone());
                }
                if line.starts_with('n') && !std::mem::replace(&mut self.explained, true) {
                    console
                        .screen
                        .note("to be asked less: 'permissions' in config.json, or opta do --auto");
                }
                self.waiting.pop_front();
                self.waiting.retain(|question| {
                    let (tool, args) = (&question.tool, &question.args);
                    let always =
                        question.own && self.always.iter().any(|scope| scope.allows(tool, args));
                    if always {
                        decide(&question.request_id, true);
                    }
                    !always
                });
                console.screen.start_progress();
            }
            _ => {}
        }
        self.ask(console);
        Ok(())
    }

    /// Prints the first question, if there is one and a user to answer it.
    fn ask(&mut self, console: &mut Console) {
        if let Some(question) = self.waiting.front_mut()
            && console.interactive
        {
            // A line typed before the question is not an answer to it.
            console.await_answer();
            console.screen.start_line();
            console.screen.stop_progress();
            show(question, console);
        } else {
            console.hide_typing();
        }
    }

    /// Asks the question on the screen again.
    pub fn repeat(&mut self, console: &mut Console) {
        if let Some(question) = self.waiting.front_mut() {
            show(question, console);
        }
    }
}

fn show(question: &mut Question, console: &mut Console) {
    let (room, columns) = (console.screen.question_room(), console.screen.columns());
    console.screen.print_error(&question.prompt(room, columns));
}

impl Question {
    /// Makes the question of a request. It shows everything that the user would allow.
    fn new(request: PermissionRequest, own: bool, workspace: Option<&str>) -> Question {
        let PermissionRequest { request_id, tool_name: tool, args, .. } = request;
        let args = args.as_str().to_owned();
        let (subject, change) = match agent::preview(&tool, &args) {
            Some((subject, change)) => (quoted(&subject), change),
            // A tool that this program does not know.
            None => (args.clone(), Vec::new()),
        };
        let text = with_counted_blanks(&escaped(&format!("Allow {tool} {subject}?")));
        let proposal = workspace.and_then(|path| agent::proposal(path, &tool, &args));
        let change = proposal.map_or(change, |(old, new)| match diff::lines(&old, &new) {
            lines if lines.is_empty() => vec!["(nothing changes)".to_owned()],
            lines => lines,
        });
        let change = change.iter().map(|line| escaped(line)).collect();
        let scope = Scope::of(&tool, &args);
        Question { request_id, tool, args, own, text, change, scope, asked: false, hidden: false }
    }

    /// Returns the prompt; the first time, after the lines that the call would change. It fits on a
    /// terminal with room for so many characters, in so many columns.
    fn prompt(&mut self, room: usize, columns: usize) -> String {
        let mut text = String::new();
        if !std::mem::replace(&mut self.asked, true) {
            let shown = self.change.iter().take(limits::CHANGE_LINES_MAX);
            let shown: Vec<_> = shown.map(|line| truncated(line, room)).collect();
            let more = self.change.len() - shown.len();
            self.hidden = more > 0 || shown.iter().any(|line| line.ends_with('…'));
            text = shown.iter().map(|line| format!("{line}\n")).collect();
            if more > 0 {
                text += &format!("… and {more} more lines\n");
            }
            self.hidden |= shortened(&self.text, room) != self.text;
        }
        text += &shortened(&self.text, room);
        let show = if self.hidden { " / [s]how all" } else { "" };
        let always = self.scope.describe();
        let choices = format!("[y]es / [n]o / [a]lways {always} until opta exits{show} ");
        // The last column is for the cursor.
        format!("{text}\n{}", wrapped("", choices.split(' '), columns.saturating_sub(1), 0))
    }

    /// Returns all of it.
    fn show_all(&mut self) -> String {
        self.hidden = false;
        let change: String = self.change.iter().map(|line| format!("{line}\n")).collect();
        format!("{change}{}\n", self.text)
    }
}

/// Returns the beginning and the end of a text, and how much is between them.
fn shortened(text: &str, chars_max: usize) -> String {
    let count = text.chars().count();
    if count <= chars_max {
        return text.to_owned();
    }
    let (head, tail) = (chars_max * 2 / 3, chars_max / 3);
    let begin = prefix(text, head);
    let end: String = text.chars().skip(count - tail).collect();
    format!("{begin} … {} more characters … {end}", count - head - tail)
}

/// Returns the text with the number of blanks where there are so many that they could push the rest
/// off the screen.
fn with_counted_blanks(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(' ') {
        let (before, blanks) = rest.split_at(at);
        let after = blanks.trim_start_matches(' ');
        out += before;
        match blanks.len() - after.len() {
            count if count > limits::BLANKS_SHOWN_MAX => out += &format!("␣×{count}"),
            count => out += &" ".repeat(count),
        }
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn the_subject_of_a_question_cannot_imitate_its_rest() {
        let text = |args: &str| {
            let args = json::Raw::parse(args).unwrap();
            let request = PermissionRequest {
                turn_id: String::new(),
                request_id: String::new(),
                tool_name: "run_command".to_owned(),
                input: args.clone(),
                args,
                expires_at: String::new(),
            };
            Question::new(request, true, None).text
        };
        let ends = text(r#"{"command":"echo a\"? [y]es"}"#);
        assert_eq!(ends, r#"Allow run_command "echo a\"? [y]es"?"#);
        // A line end, and what looks like one.
        assert_eq!(text(r#"{"command":"a\nb"}"#), r#"Allow run_command "a\nb"?"#);
        assert_eq!(text(r#"{"command":"a\\nb"}"#), r#"Allow run_command "a\\nb"?"#);
    }

    #[test]
    fn always_allows_what_it_says_and_no_more() {
        let run = |command: &str| format!(r#"{{"command":"{command}"}}"#);
        let scope = |command: &str| Scope::of("run_command", &run(command));
        let test = scope("cargo test --all");
        assert_eq!(test.describe(), r#"every "cargo test …""#);
        assert!(test.allows("run_command", &run("cargo test -q")));
        for other in ["cargo run", "cargo test; ls", "cargo test && ls", "cargo tests", "cargo"] {
            assert!(!test.allows("run_command", &run(other)), "{other}");
        }
        let piped = scope("ls | wc");
        assert_eq!(piped.describe(), "this command");
        assert!(piped.allows("run_command", &run("ls | wc")));
        assert!(!piped.allows("run_command", &run("ls | wc -l")));
        let edit = r#"{"path":"a","old_text":"b","new_text":"c"}"#;
        let edits = Scope::of("edit_file", edit);
        assert_eq!(edits.describe(), "every edit_file");
        assert!(edits.allows("edit_file", edit));
        assert!(!edits.allows("run_command", &run("ls")) && !edits.allows("write_file", "{}"));
    }

    #[test]
    fn a_long_question_is_shortened_and_blanks_are_counted() {
        let long = format!("{}{}", "a".repeat(500), "z".repeat(500));
        let short = shortened(&long, 600);
        assert!(short.contains(" … 400 more characters … z"), "{short}");
        assert_eq!(shortened("abc", 3), "abc");
        let hidden = format!("ls{}; rm x", " ".repeat(4_000));
        assert_eq!(with_counted_blanks(&hidden), "ls␣×4000; rm x");
        assert_eq!(with_counted_blanks("a  b"), "a  b");
    }
}
