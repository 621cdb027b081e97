//! The question whether a tool may do what the model wants, to somebody at a terminal.

use std::collections::VecDeque;

use crate::agent;
use crate::commands::console::Console;
use crate::limits;
use crate::protocol::event::{PermissionRequest, PermissionResolved};
use crate::text::{escaped, quoted};

/// What a turn waits for.
pub struct Question {
    pub request_id: String,
    pub tool: String,
    /// It is about a turn of ours.
    pub own: bool,
    text: String,
    /// What the call would change, a line each, as far as it is not on the screen.
    change: Vec<String>,
    begun: bool,
}

/// What was typed.
pub enum Reply {
    Yes,
    No,
    /// Yes, and the same for all that this tool does from now on.
    Always,
    /// All of the change.
    Show,
    Unclear,
}

impl Question {
    /// The question that an event asks: nobody is to allow what was not shown.
    pub fn new(request: PermissionRequest, own: bool) -> Question {
        let PermissionRequest { request_id, tool_name: tool, args, .. } = request;
        let (what, change) = match agent::shown(&tool, args.as_str()) {
            Some(shown) => (quoted(&shown.subject), shown.change),
            // A tool that this program does not know.
            None => (args.as_str().to_owned(), Vec::new()),
        };
        let text = escaped(&format!("Allow {tool} {what}?"));
        let change = change.iter().map(|line| escaped(line)).collect();
        Question { request_id, tool, own, text, change, begun: false }
    }

    /// How it is put; the first time, below what the call would change.
    pub fn put(&mut self) -> String {
        let mut text = String::new();
        if !std::mem::replace(&mut self.begun, true) {
            text = self.list(limits::CHANGE_LINES_MAX);
            if !self.change.is_empty() {
                text += &format!("… and {} lines more\n", self.change.len());
            }
        }
        let show = if self.change.is_empty() { "" } else { " / [s]how all" };
        text + &format!("{} [y]es / [n]o / [a]lways{show} ", self.text)
    }

    /// What of the change is not on the screen yet.
    pub fn show(&mut self) -> String {
        self.list(usize::MAX)
    }

    fn list(&mut self, count: usize) -> String {
        let lines = self.change.drain(..count.min(self.change.len()));
        lines.map(|line| line + "\n").collect()
    }

    /// What a line says to it; none is a no.
    pub fn reply(&self, line: Option<&str>) -> Reply {
        match line.map(|line| line.trim().to_lowercase()).as_deref() {
            None | Some("n" | "no") => Reply::No,
            Some("y" | "yes") => Reply::Yes,
            Some("a" | "always") => Reply::Always,
            Some("s" | "show") if !self.change.is_empty() => Reply::Show,
            Some(_) => Reply::Unclear,
        }
    }
}

/// Puts the first question on the screen, if there is one and somebody to be asked.
pub fn put(questions: &mut VecDeque<Question>, console: &mut Console) {
    let (Some(question), Some(keyboard)) = (questions.front_mut(), &mut console.keyboard) else {
        return;
    };
    // What was typed before the question is no answer to it.
    keyboard.forget();
    console.screen.make_room();
    console.screen.hush();
    let text = question.put();
    console.screen.tell(&text);
}

/// Somebody has decided, perhaps another one than who is asked here.
pub fn settled(
    questions: &mut VecDeque<Question>,
    resolved: &PermissionResolved,
    cancelled: bool,
    console: &mut Console,
) {
    let PermissionResolved { request_id, decision, .. } = resolved;
    let Some(at) = questions.iter().position(|one| one.request_id == *request_id) else {
        return;
    };
    drop(questions.remove(at));
    if at == 0 && console.keyboard.is_some() {
        console.screen.tell("\n");
        // A turn that is cancelled answers for itself.
        if !cancelled {
            console.screen.say(&format!("decided elsewhere: {decision}"));
        }
        console.screen.await_more();
        put(questions, console);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn what_is_quoted_can_be_told_from_what_is_around_it() {
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
