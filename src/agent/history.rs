//! What a model is told of the conversation: what was said and done, no longer than a bound.
//!
//! Nothing is lost by it: the session keeps all, and each turn begins with all of it again.

use crate::protocol::ChatMessage;
use crate::session::rules::{Conversation, Message};
use crate::{json, limits};

use super::clip::clip;
use super::model;

/// Stands in the place of a result that there is no room for any more.
const LEFT_OUT: &str = "[this result is left out: the conversation has become too long]";
/// Stands before what is left of the conversation.
const TURNS_LEFT_OUT: &str =
    "[the older part of this conversation is left out here: it has become too long]\n\n";
/// Stands behind what the user has said in this turn.
const CALLS_LEFT_OUT: &str = "\n\n[what you have done first in this turn is left out here, calls \
    and results: it has become too long; do not do it again]";

/// How a conversation becomes shorter: the first of these that still leaves something out.
///
/// What takes many steps is done by halves, so that there are few even in a long conversation.
const STEPS: [fn(&mut History) -> bool; 6] = [
    History::leave_out_older_results,
    |history| history.clip_last_results(limits::RESULT_CLIPPED_BYTES),
    |history| history.clip_last_results(limits::RESULT_CLIPPED_BYTES_MIN),
    History::leave_out_turns,
    History::leave_out_calls,
    |history| history.clip_last_results(0),
];

/// The conversation as a model gets it.
pub struct History {
    system: Option<String>,
    said: Vec<Said>,
    turns_left_out: bool,
    calls_left_out: bool,
}

/// A message, and the room for it if it is a result.
struct Said {
    message: Message,
    bytes_max: usize,
}

impl History {
    /// `prompt` is for a session that has no system prompt of its own.
    pub fn new(conversation: Conversation, prompt: &str) -> History {
        let own = conversation.system_prompt().map(str::to_owned);
        let messages = conversation.messages();
        let brought = messages.first().is_some_and(|first| is_given_as(first, "system"));
        let system = if brought { own } else { own.or_else(|| Some(prompt.to_owned())) };
        History::of(system, messages)
    }

    fn of(system: Option<String>, messages: Vec<Message>) -> History {
        let said = messages.into_iter().map(Said::new).collect();
        let mut history = History { system, said, turns_left_out: false, calls_left_out: false };
        history.fit();
        history
    }

    /// Adds what has just been said or done.
    pub fn push(&mut self, message: Message) {
        self.said.push(Said::new(message));
        self.fit();
    }

    /// Makes it shorter by one step; `false` if nothing can be left out any more. The system prompt
    /// and what the user has said in this turn always stay.
    pub fn shorten(&mut self) -> bool {
        STEPS.iter().any(|step| step(self))
    }

    /// The messages as a JSON list.
    pub fn json(&self) -> String {
        let mut messages: Vec<Message> = self.said.iter().map(Said::shown).collect();
        if self.calls_left_out
            && let Some(Message::User(task)) = messages.iter_mut().rfind(|one| is_users(one))
        {
            task.push_str(CALLS_LEFT_OUT);
        }
        if self.turns_left_out {
            let first = messages.iter().take_while(|one| is_given_as(one, "system")).count();
            match messages.get_mut(first) {
                // Some models want the user and the assistant to speak in turns.
                Some(Message::User(text)) => text.insert_str(0, TURNS_LEFT_OUT),
                _ => messages.insert(first, Message::User(TURNS_LEFT_OUT.trim_end().to_owned())),
            }
        }
        model::messages(self.system.as_deref(), &messages)
    }

    /// The older half of the results that are still there, but for those of the last calls.
    fn leave_out_older_results(&mut self) -> bool {
        let last = self.last_calls();
        let older = self.said.iter_mut().take(last).filter(|said| said.has_result_beyond(0));
        let older: Vec<&mut Said> = older.collect();
        let count = older.len().div_ceil(2);
        older.into_iter().take(count).for_each(|said| said.bytes_max = 0);
        count > 0
    }

    /// Of each result of the last calls so much stays, its beginning and its end.
    fn clip_last_results(&mut self, bytes_max: usize) -> bool {
        let last = self.last_calls();
        let results = self.said.iter_mut().skip(last);
        let long: Vec<&mut Said> =
            results.filter(|said| said.has_result_beyond(bytes_max)).collect();
        let some = !long.is_empty();
        long.into_iter().for_each(|said| said.bytes_max = bytes_max);
        some
    }

    /// The older half of the turns before this one.
    fn leave_out_turns(&mut self) -> bool {
        let begins = self.places(0, is_users);
        let count = begins.len().saturating_sub(1).div_ceil(2);
        let Some(end) = begins.get(count) else { return false };
        let before: Vec<Said> = self.said.drain(..end).collect();
        let all = before.len();
        let stays: Vec<Said> =
            before.into_iter().filter(|said| is_given_as(&said.message, "system")).collect();
        let some = stays.len() < all;
        self.said.splice(..0, stays);
        self.turns_left_out |= some;
        some
    }

    /// The older half of the calls of this turn with their results, but for the last ones.
    fn leave_out_calls(&mut self) -> bool {
        let Some(task) = self.task() else { return false };
        let answers = self.places(task, |one| matches!(one, Message::Assistant { .. }));
        let count = answers.len().saturating_sub(1).div_ceil(2);
        let Some(end) = answers.get(count).filter(|_| count > 0) else { return false };
        self.said.drain(task + 1..*end);
        self.calls_left_out = true;
        true
    }

    /// Where the messages from `start` on are that `is_it` is true of.
    fn places(&self, start: usize, is_it: fn(&Message) -> bool) -> Vec<usize> {
        let all = self.said.iter().enumerate().skip(start);
        all.filter(|(_, said)| is_it(&said.message)).map(|(place, _)| place).collect()
    }

    /// Where the last calls are; their results stand behind them.
    fn last_calls(&self) -> usize {
        let calls = |said: &Said| match &said.message {
            Message::Assistant { calls, .. } => !calls.is_empty(),
            _ => false,
        };
        self.said.iter().rposition(calls).unwrap_or(self.said.len())
    }

    /// Where this turn begins.
    fn task(&self) -> Option<usize> {
        self.said.iter().rposition(|said| is_users(&said.message))
    }

    fn fit(&mut self) {
        while self.bytes() > limits::HISTORY_BYTES_MAX && self.shorten() {}
    }

    /// Of what may be left out: however long the task is, there is as much room for the rest.
    fn bytes(&self) -> usize {
        let task = self.task();
        let all = self.said.iter().enumerate();
        all.filter(|(place, _)| Some(*place) != task).map(|(_, said)| said.bytes()).sum()
    }
}

impl Said {
    fn new(message: Message) -> Said {
        Said { message, bytes_max: usize::MAX }
    }

    fn bytes(&self) -> usize {
        match &self.message {
            Message::Given(text) | Message::User(text) => text.len(),
            Message::Assistant { text, calls } => {
                text.len() + calls.iter().map(|call| call.arguments.len()).sum::<usize>()
            }
            Message::Tool { result, .. } => result.len().min(self.bytes_max),
        }
    }

    /// Whether it is a result of which more is told than that. One that is shorter than the note
    /// in its place is left alone.
    fn has_result_beyond(&self, bytes_max: usize) -> bool {
        let is_result = matches!(self.message, Message::Tool { .. });
        is_result && self.bytes() > bytes_max.max(LEFT_OUT.len())
    }

    fn shown(&self) -> Message {
        match &self.message {
            Message::Tool { call_id, result } => {
                let result = match self.bytes_max {
                    0 => LEFT_OUT.to_owned(),
                    bytes_max => clip(result.clone(), bytes_max),
                };
                Message::Tool { call_id: call_id.clone(), result }
            }
            other => other.clone(),
        }
    }
}

/// Whether it begins a turn.
fn is_users(message: &Message) -> bool {
    matches!(message, Message::User(_)) || is_given_as(message, "user")
}

fn is_given_as(message: &Message, wanted: &str) -> bool {
    let Message::Given(text) = message else { return false };
    json::parse::<ChatMessage>(text.as_bytes()).is_ok_and(|given| given.role == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::SessionSummary;
    use crate::protocol::event::{Event, SessionSnapshot};
    use crate::session::rules::ToolCall;

    fn call(id: &str, arguments: &str) -> ToolCall {
        ToolCall { id: id.into(), name: "t".into(), arguments: arguments.into() }
    }

    fn tool(id: &str, result: &str) -> Message {
        Message::Tool { call_id: id.into(), result: result.into() }
    }

    fn history(messages: Vec<Message>) -> History {
        History::of(None, messages)
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

    fn turn(name: &str) -> [Message; 2] {
        let (text, calls) = (format!("answer {name}"), Vec::new());
        [Message::User(format!("question {name}")), Message::Assistant { text, calls }]
    }

    fn called(id: &str, result: &str) -> [Message; 2] {
        let calls = vec![call(id, "{}")];
        [Message::Assistant { text: String::new(), calls }, tool(id, result)]
    }

    /// Every form that a conversation takes on its way, the whole one first.
    fn forms(mut history: History) -> Vec<String> {
        let mut forms = vec![history.json()];
        while history.shorten() {
            forms.push(history.json());
            assert!(forms.len() < 100, "no end");
        }
        for form in &forms {
            json::check(form).unwrap();
            assert_eq!(form.matches("tool_calls").count(), form.matches("tool_call_id").count());
        }
        forms
    }

    #[test]
    fn a_conversation_becomes_shorter_step_by_step_until_only_the_task_is_left() {
        let long = format!("begin{}end", "x".repeat(limits::RESULT_BYTES_MAX));
        let mut messages = Vec::new();
        for name in ["a", "b", "c", "d"] {
            messages.extend(turn(name));
        }
        messages.push(Message::User("the task".into()));
        for id in ["1", "2", "3"] {
            messages.extend(called(id, &long));
        }
        let forms = forms(history(messages));
        // The system prompt and the task are in all of them, and so is the last call.
        assert!(forms.iter().all(|form| form.contains("the task") && form.contains("\"3\"")));
        let has = |text: &str| -> Vec<usize> {
            forms.iter().map(|form| form.matches(text).count()).collect()
        };
        assert_eq!(has(LEFT_OUT), [0, 1, 2, 2, 2, 2, 2, 2, 1, 0, 1]);
        assert_eq!(has("begin"), [3, 2, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
        assert_eq!(has("bytes are left out here"), [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0]);
        assert_eq!(has("question"), [4, 4, 4, 4, 4, 2, 1, 0, 0, 0, 0]);
        assert_eq!(has("answer"), has("question"));
        assert_eq!(has("the older part"), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
        assert_eq!(has("tool_calls"), [3, 3, 3, 3, 3, 3, 3, 3, 2, 1, 1]);
        assert_eq!(has("do not do it again"), [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]);
        let sizes: Vec<usize> = forms.iter().map(String::len).collect();
        assert!(sizes[3] < limits::RESULT_CLIPPED_BYTES + 2_000, "{sizes:?}");
        assert!(sizes[4] < limits::RESULT_CLIPPED_BYTES_MIN + 2_000, "{sizes:?}");
        // The notes change what the user has said as little as possible.
        let last = forms.last().unwrap();
        let note = json::text(&format!("{TURNS_LEFT_OUT}the task{CALLS_LEFT_OUT}"));
        let note = note.trim_matches('"').to_owned();
        assert!(
            last.starts_with(&format!("[{{\"role\":\"user\",\"content\":\"{note}\"")),
            "{last}"
        );
    }

    #[test]
    fn results_of_calls_side_by_side_share_the_room() {
        let calls = vec![call("1", "{}"), call("2", "{}")];
        let long = "x".repeat(limits::RESULT_CLIPPED_BYTES + 1);
        let short = "y".repeat(limits::RESULT_CLIPPED_BYTES);
        let mut shorter = history(vec![
            Message::User("the task".into()),
            Message::Assistant { text: String::new(), calls },
            tool("1", &long),
            tool("2", &short),
        ]);
        assert!(shorter.shorten());
        let text = shorter.json();
        assert_eq!(text.matches("left out").count(), 1, "1 byte of the first, none of the second");
        assert!(text.contains("[… 1 bytes") && text.contains(&short));
    }

    #[test]
    fn what_was_brought_along_is_left_out_by_turns_but_for_its_system_prompt() {
        let given = |role: &str, text: &str| {
            Message::Given(format!("{{\"role\":\"{role}\",\"content\":\"{text}\"}}"))
        };
        let mut messages = vec![given("system", "be brief"), given("assistant", "greeting")];
        for text in ["one", "two"] {
            messages.extend([given("user", text), given("assistant", "well")]);
        }
        messages.push(Message::User("the task".into()));
        let forms = forms(history(messages));
        assert!(forms.iter().all(|form| form.starts_with("[{\"role\":\"system\"")));
        assert_eq!(forms.len(), 3);
        let note = TURNS_LEFT_OUT.trim_end();
        assert!(forms[1].contains(note) && forms[1].contains("two") && !forms[1].contains("one"));
        assert!(forms[2].contains(note) && !forms[2].contains("well"), "{}", forms[2]);
    }

    #[test]
    fn old_turns_make_room_at_the_bound_and_a_long_task_does_not() {
        let filler = "z".repeat(limits::HISTORY_BYTES_MAX / 4);
        let mut messages = Vec::new();
        for name in ["a", "b", "c", "d"] {
            messages.extend(turn(&format!("{name} {filler}")));
        }
        messages.push(Message::User("the task".into()));
        let text = history(messages).json();
        assert!(text.len() <= limits::HISTORY_BYTES_MAX, "{}", text.len());
        assert!(text.contains("question d") && text.contains("the older part"));
        let mut messages = turn("a").to_vec();
        messages.push(Message::User("w".repeat(limits::HISTORY_BYTES_MAX + 1)));
        messages.extend(called("1", &"x".repeat(limits::RESULT_BYTES_MAX)));
        assert!(!history(messages).json().contains("left out"));
    }

    #[test]
    fn the_sessions_own_prompt_counts_before_ours() {
        let told = |config: &str| {
            let config = json::parse(config.as_bytes()).unwrap();
            let first = SessionSnapshot::new(SessionSummary::default(), config);
            let mut conversation = Conversation::default();
            conversation.apply(Event::SessionSnapshot(first.into()));
            History::new(conversation, "ours").json()
        };
        assert_eq!(told("{}"), r#"[{"role":"system","content":"ours"}]"#);
        assert_eq!(told(r#"{"systemPrompt":"own"}"#), r#"[{"role":"system","content":"own"}]"#);
        let brought = r#"{"messages":[{"role":"system","content":"brought"}]}"#;
        assert_eq!(told(brought), r#"[{"role":"system","content":"brought"}]"#);
    }
}
