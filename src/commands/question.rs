//! The questions whether a tool call is allowed, and the user's answers.

use std::collections::VecDeque;

use crate::agent;
use crate::commands::console::Console;
use crate::error::Error;
use crate::limits;
use crate::protocol::event::{PermissionRequest, PermissionResolved};
use crate::text::{escaped, quoted};

/// The unanswered questions, the first of them on the screen.
#[derive(Default)]
pub struct Questions {
    waiting: VecDeque<Question>,
    /// The tools that the user always allows.
    always: Vec<String>,
}

struct Question {
    request_id: String,
    tool: String,
    /// Whether it is about a turn of this process.
    own: bool,
    text: String,
    /// The lines that the call would change and that are not on the screen.
    change: Vec<String>,
    asked: bool,
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

    /// Returns whether the user already allowed every call of this tool, in the turns of this
    /// process.
    pub fn is_allowed(&self, request: &PermissionRequest) -> bool {
        self.always.contains(&request.tool_name)
    }

    /// Asks the question of an event, after those before it.
    pub fn add(&mut self, request: PermissionRequest, own: bool, console: &mut Console) {
        self.waiting.push_back(Question::new(request, own));
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
            "s" | "show" => console.screen.print_error(&question.take_change(usize::MAX)),
            "y" | "yes" | "n" | "no" | "a" | "always" => {
                decide(&question.request_id, !line.starts_with('n'));
                if line.starts_with('a') {
                    self.always.push(question.tool.clone());
                }
                self.waiting.pop_front();
                self.waiting.retain(|question| {
                    let always = question.own && self.always.contains(&question.tool);
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
            console.screen.print_error(&question.prompt());
        } else {
            console.hide_typing();
        }
    }

    /// Asks the question on the screen again.
    pub fn repeat(&mut self, console: &mut Console) {
        if let Some(question) = self.waiting.front_mut() {
            console.screen.print_error(&question.prompt());
        }
    }
}

impl Question {
    /// Makes the question of a request. It shows everything that the user would allow.
    fn new(request: PermissionRequest, own: bool) -> Question {
        let PermissionRequest { request_id, tool_name: tool, args, .. } = request;
        let (subject, change) = match agent::preview(&tool, args.as_str()) {
            Some((subject, change)) => (quoted(&subject), change),
            // A tool that this program does not know.
            None => (args.as_str().to_owned(), Vec::new()),
        };
        let text = escaped(&format!("Allow {tool} {subject}?"));
        let change = change.iter().map(|line| escaped(line)).collect();
        Question { request_id, tool, own, text, change, asked: false }
    }

    /// Returns the prompt; the first time, after the lines that the call would change.
    fn prompt(&mut self) -> String {
        let mut text = String::new();
        if !std::mem::replace(&mut self.asked, true) {
            text = self.take_change(limits::CHANGE_LINES_MAX);
            if !self.change.is_empty() {
                text += &format!("… and {} more lines\n", self.change.len());
            }
        }
        let show = if self.change.is_empty() { "" } else { " / [s]how all" };
        text + &format!("{} [y]es / [n]o / [a]lways{show} ", self.text)
    }

    /// Takes the next lines of the change, `count` at most.
    fn take_change(&mut self, count: usize) -> String {
        let lines = self.change.drain(..count.min(self.change.len()));
        lines.map(|line| line + "\n").collect()
    }
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
            Question::new(request, true).text
        };
        let ends = text(r#"{"command":"echo a\"? [y]es"}"#);
        assert_eq!(ends, r#"Allow run_command "echo a\"? [y]es"?"#);
        // A line end, and what looks like one.
        assert_eq!(text(r#"{"command":"a\nb"}"#), r#"Allow run_command "a\nb"?"#);
        assert_eq!(text(r#"{"command":"a\\nb"}"#), r#"Allow run_command "a\\nb"?"#);
    }
}
