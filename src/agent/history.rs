//! What a model is told of the conversation: what was said and done, no longer than a bound.

use nanoserde::DeJson;

use crate::session::rules::{Conversation, Message};
use crate::{json, limits};

use super::model;

/// Stands in the place of a result that there is no room for any more.
const LEFT_OUT: &str = "[this result is left out: the conversation has become too long]";

/// The conversation as a model gets it.
pub struct History {
    system: Option<String>,
    messages: Vec<Message>,
}

#[derive(DeJson)]
struct Role {
    role: Option<String>,
}

impl History {
    /// `prompt` is for a session that has no system prompt of its own.
    pub fn new(conversation: Conversation, prompt: &str) -> History {
        let own = conversation.system_prompt().map(str::to_owned);
        let messages = conversation.messages();
        let brought = messages.first().is_some_and(|first| match first {
            Message::Given(text) => json::parse::<Role>(text.as_bytes())
                .is_ok_and(|role| role.role.is_some_and(|role| role == "system")),
            _ => false,
        });
        let system = if brought { own } else { own.or_else(|| Some(prompt.to_owned())) };
        let mut history = History { system, messages };
        history.fit();
        history
    }

    /// Adds what has just been said or done.
    pub fn push(&mut self, message: Message) {
        self.messages.push(message);
        self.fit();
    }

    /// Leaves out the older half of the tool results that are still there, but for the last.
    /// `false` if there are none.
    pub fn shorten(&mut self) -> bool {
        let mut results: Vec<&mut String> = self
            .messages
            .iter_mut()
            .filter_map(|message| match message {
                Message::Tool { result, .. } if result != LEFT_OUT => Some(result),
                _ => None,
            })
            .collect();
        results.pop();
        let count = results.len().div_ceil(2);
        results.into_iter().take(count).for_each(|result| *result = LEFT_OUT.to_owned());
        count > 0
    }

    /// The messages as a JSON list.
    pub fn json(&self) -> String {
        model::messages(self.system.as_deref(), &self.messages)
    }

    fn fit(&mut self) {
        while self.messages.iter().map(bytes).sum::<usize>() > limits::HISTORY_BYTES_MAX
            && self.shorten()
        {}
    }
}

fn bytes(message: &Message) -> usize {
    match message {
        Message::Given(text) | Message::User(text) => text.len(),
        Message::Assistant { text, calls } => {
            text.len() + calls.iter().map(|call| call.arguments.len()).sum::<usize>()
        }
        Message::Tool { result, .. } => result.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::event::Record;
    use crate::session::rules::ToolCall;

    fn call(id: &str, arguments: &str) -> ToolCall {
        ToolCall { id: id.into(), name: "t".into(), arguments: arguments.into() }
    }

    fn tool(id: &str, result: &str) -> Message {
        Message::Tool { call_id: id.into(), result: result.into() }
    }

    fn history(messages: Vec<Message>) -> History {
        let mut history = History { system: None, messages };
        history.fit();
        history
    }

    #[test]
    fn what_is_too_long_loses_its_oldest_results_first() {
        let part = limits::HISTORY_BYTES_MAX / 4;
        let mut messages = Vec::new();
        for id in ["a", "b", "c", "d", "e"] {
            messages.push(Message::Assistant { text: String::new(), calls: vec![call(id, "{}")] });
            messages.push(tool(id, &id.repeat(part)));
        }
        let text = history(messages).json();
        assert!(!text.contains("aaaa") && !text.contains("bbbb"));
        assert!(text.contains("cccc") && text.contains("dddd") && text.contains("eeee"));
        assert_eq!(text.matches(LEFT_OUT).count(), 2);
        json::check(&text).unwrap();
    }

    #[test]
    fn the_sessions_own_prompt_counts_before_ours() {
        let told = |payload: &str| {
            let line = format!("{{\"founding\":{payload}}}");
            let draft = crate::session::event::Draft { event: "session.snapshot", payload: &line };
            let record = crate::session::event::record(&draft, "d", 1, "t");
            let mut conversation = Conversation::default();
            conversation.apply(&Record::read(record.strip_suffix(b"\n").unwrap()).unwrap());
            History::new(conversation, "ours").json()
        };
        assert_eq!(told("{}"), r#"[{"role":"system","content":"ours"}]"#);
        assert_eq!(told(r#"{"systemPrompt":"own"}"#), r#"[{"role":"system","content":"own"}]"#);
        let brought = r#"{"messages":[{"role":"system","content":"brought"}]}"#;
        assert_eq!(told(brought), r#"[{"role":"system","content":"brought"}]"#);
    }
}
