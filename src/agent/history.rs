//! What a model is told of the conversation: valid whatever a crash, a cancel or a model has left in
//! it, and no longer than a bound.

use std::collections::HashMap;

use nanoserde::DeJson;

use crate::session::rules::{Conversation, Message};
use crate::{json, limits};

use super::calls;

/// Stands in the place of a result that there is none of.
const MISSING: &str = "error: this call did not come to its end";
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

    /// Leaves out the older half of the tool results that are still there, but for the last. `false`
    /// if there are none.
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

    /// The messages as a JSON list. Each call has one result, behind it and in order; arguments are
    /// an object, since servers refuse others.
    pub fn json(&self) -> String {
        let mut out = String::from("[");
        if let Some(system) = &self.system {
            out.push_str("{\"role\":\"system\",\"content\":");
            json::quote(system, &mut out);
            out.push('}');
        }
        let mut rest = self.messages.as_slice();
        while let Some((message, after)) = rest.split_first() {
            rest = after;
            match message {
                // Belongs to no call.
                Message::Tool { .. } => {}
                Message::Assistant { text, calls } if !calls.is_empty() => {
                    let count = rest.iter().take_while(|next| matches!(next, Message::Tool { .. }));
                    let (results, after) = rest.split_at(count.count());
                    rest = after;
                    let mut heard = calls.clone();
                    for call in &mut heard {
                        if calls::object(&call.arguments).is_none() {
                            call.arguments = "{}".to_owned();
                        }
                    }
                    let results: HashMap<&str, &str> = results.iter().filter_map(result).collect();
                    add(&Message::Assistant { text: text.clone(), calls: heard }, &mut out);
                    for id in calls.iter().map(|call| call.id.clone()) {
                        let result = results.get(id.as_str()).unwrap_or(&MISSING);
                        let result = (*result).to_owned();
                        add(&Message::Tool { call_id: id, result }, &mut out);
                    }
                }
                message => add(message, &mut out),
            }
        }
        out.push(']');
        out
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

fn result(message: &Message) -> Option<(&str, &str)> {
    match message {
        Message::Tool { call_id, result } => Some((call_id, result)),
        _ => None,
    }
}

fn add(message: &Message, out: &mut String) {
    if !out.ends_with('[') {
        out.push(',');
    }
    message.json(out);
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
    fn every_call_has_exactly_one_result_in_order() {
        let calls = vec![call("a", "{}"), call("b", "{\"cut"), call("c", "[]")];
        let history = history(vec![
            tool("stray", "x"),
            Message::User("hi".into()),
            Message::Assistant { text: String::new(), calls },
            tool("c", "3"),
            tool("a", "1"),
            Message::User("go on".into()),
        ]);
        let text = history.json();
        json::check(&text).unwrap();
        let ids: Vec<&str> =
            text.split("\"tool_call_id\":\"").skip(1).map(|rest| &rest[..1]).collect();
        assert_eq!(ids, ["a", "b", "c"]);
        assert!(text.contains(MISSING) && !text.contains("stray") && !text.contains("cut"));
        assert_eq!(text.matches("\"arguments\":\"{}\"").count(), 3);
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
            let origin = crate::session::event::Origin { daemon_id: "d", session_id: "s" };
            let draft = crate::session::event::Draft { event: "session.snapshot", payload: &line };
            let record = crate::session::event::record(&draft, &origin, 1, "t");
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
