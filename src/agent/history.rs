//! The conversation as a model gets it, shortened to fit.
//!
//! Nothing is lost: the session keeps everything, and each turn starts with its end again.

use std::borrow::Cow;

use crate::limits;
use crate::session::replay::{Conversation, Message};

use super::clip::clip;
use super::model;

/// Replaces a result that does not fit.
const RESULT_OMITTED: &str = "[this result is left out: the conversation has become too long]";
/// Precedes the rest of the conversation.
const TURNS_OMITTED: &str =
    "[the older part of this conversation is left out here: it has become too long]\n\n";
/// Follows the user's message of this turn.
const CALLS_OMITTED: &str = "\n\n[what you have done first in this turn is left out here, calls \
    and results: it has become too long; do not do it again]";

/// The ways to shorten a conversation. The first one that still has an effect is used.
///
/// Those that take several steps omit half of the rest, so that even a long conversation needs
/// few steps.
const STEPS: [fn(&mut History) -> bool; 6] = [
    History::omit_older_results,
    |history| history.clip_last_results(limits::RESULT_CLIPPED_BYTES),
    |history| history.clip_last_results(limits::RESULT_CLIPPED_BYTES_MIN),
    History::omit_turns,
    History::omit_calls,
    |history| history.clip_last_results(0),
];

/// A conversation for a model.
pub struct History {
    system: Option<String>,
    entries: Vec<Entry>,
    turns_omitted: bool,
    calls_omitted: bool,
    /// Follow the user's message of this turn.
    notes: Vec<&'static str>,
}

/// A message, and how much of it is sent if it is a result.
struct Entry {
    message: Message,
    bytes_max: usize,
}

impl History {
    /// Creates the history of a conversation. `prompt` is for a session without its own system
    /// prompt.
    pub fn new(conversation: Conversation, prompt: &str) -> History {
        let Conversation { system_prompt: own, messages, omitted, .. } = conversation;
        let has_system = messages.first().is_some_and(|first| first.is_given_as("system"));
        let system = if has_system { own } else { own.or_else(|| Some(prompt.to_owned())) };
        History::of(system, messages, omitted)
    }

    fn of(system: Option<String>, messages: Vec<Message>, turns_omitted: bool) -> History {
        let entries = messages.into_iter().map(Entry::new).collect();
        let (calls_omitted, notes) = (false, Vec::new());
        let mut history = History { system, entries, turns_omitted, calls_omitted, notes };
        history.fit();
        history
    }

    /// Adds a message.
    pub fn push(&mut self, message: Message) {
        self.entries.push(Entry::new(message));
        self.fit();
    }

    /// Tells the model something with the user's message of this turn.
    pub fn note(&mut self, note: &'static str) {
        self.notes.push(note);
    }

    /// Returns the ids of all calls.
    pub fn call_ids(&self) -> impl Iterator<Item = &str> {
        let calls = self.entries.iter().map(|entry| match &entry.message {
            Message::Assistant { calls, .. } => calls.as_slice(),
            _ => &[],
        });
        calls.flatten().map(|call| call.id.as_str())
    }

    /// Shortens it by one step; `false` if nothing more can be omitted. The system prompt and the
    /// user's message of this turn always stay.
    pub fn shorten(&mut self) -> bool {
        STEPS.iter().any(|step| step(self))
    }

    /// Returns the messages as a JSON array.
    pub fn json(&self) -> String {
        let mut messages: Vec<Cow<'_, Message>> = self.entries.iter().map(Entry::clipped).collect();
        let has_notes = self.calls_omitted || !self.notes.is_empty();
        if let Some(task) = messages.iter_mut().rfind(|one| has_notes && one.is_user())
            && let Message::User(task) = task.to_mut()
        {
            if self.calls_omitted {
                task.push_str(CALLS_OMITTED);
            }
            for note in &self.notes {
                task.push_str("\n\n");
                task.push_str(note);
            }
        }
        if self.turns_omitted {
            let first = messages.iter().take_while(|one| one.is_given_as("system")).count();
            match messages.get_mut(first).map(Cow::to_mut) {
                // Some models expect the user and the assistant to alternate.
                Some(Message::User(text)) => text.insert_str(0, TURNS_OMITTED),
                _ => {
                    let note = Message::User(TURNS_OMITTED.trim_end().to_owned());
                    messages.insert(first, Cow::Owned(note));
                }
            }
        }
        model::messages(self.system.as_deref(), &messages)
    }

    /// Omits the older half of the results that are left, except for those of the last calls.
    fn omit_older_results(&mut self) -> bool {
        let last = self.last_calls();
        let older = self.entries.iter_mut().take(last).filter(|entry| entry.has_result_over(0));
        let older: Vec<&mut Entry> = older.collect();
        let count = older.len().div_ceil(2);
        older.into_iter().take(count).for_each(|entry| entry.bytes_max = 0);
        count > 0
    }

    /// Clips each result of the last calls.
    fn clip_last_results(&mut self, bytes_max: usize) -> bool {
        let last = self.last_calls();
        let results = self.entries.iter_mut().skip(last);
        results.filter(|entry| entry.has_result_over(bytes_max)).fold(false, |_, entry| {
            entry.bytes_max = bytes_max;
            true
        })
    }

    /// Omits the older half of the turns before this one.
    fn omit_turns(&mut self) -> bool {
        let begins = self.positions(0, Message::is_user);
        let count = begins.len().saturating_sub(1).div_ceil(2);
        let Some(end) = begins.get(count) else { return false };
        let all = self.entries.len();
        let mut position = 0;
        self.entries.retain(|entry| {
            position += 1;
            position > *end || entry.message.is_given_as("system")
        });
        let omitted = self.entries.len() < all;
        self.turns_omitted |= omitted;
        omitted
    }

    /// Omits the older half of this turn's calls with their results, except for the last ones.
    fn omit_calls(&mut self) -> bool {
        let Some(task) = self.task() else { return false };
        let answers = self.positions(task, |one| matches!(one, Message::Assistant { .. }));
        let count = answers.len().saturating_sub(1).div_ceil(2);
        let Some(end) = answers.get(count).filter(|_| count > 0) else { return false };
        self.entries.drain(task + 1..*end);
        self.calls_omitted = true;
        true
    }

    /// Returns the positions from `start` on of the messages for which `is_it` is true.
    fn positions(&self, start: usize, is_it: fn(&Message) -> bool) -> Vec<usize> {
        let all = self.entries.iter().enumerate().skip(start);
        all.filter(|(_, entry)| is_it(&entry.message)).map(|(position, _)| position).collect()
    }

    /// Returns the position of the last calls, which their results follow.
    fn last_calls(&self) -> usize {
        let has_calls = |entry: &Entry| {
            let Message::Assistant { calls, .. } = &entry.message else { return false };
            !calls.is_empty()
        };
        self.entries.iter().rposition(has_calls).unwrap_or(self.entries.len())
    }

    /// Returns the position of the user's message of this turn.
    fn task(&self) -> Option<usize> {
        self.entries.iter().rposition(|entry| entry.message.is_user())
    }

    fn fit(&mut self) {
        while self.bytes() > limits::HISTORY_BYTES_MAX && self.shorten() {}
    }

    /// Returns the bytes of what may be omitted. The task does not count, however long it is.
    fn bytes(&self) -> usize {
        let task = self.task();
        let all = self.entries.iter().enumerate();
        all.filter(|(position, _)| Some(*position) != task).map(|(_, entry)| entry.bytes()).sum()
    }
}

impl Entry {
    fn new(message: Message) -> Entry {
        Entry { message, bytes_max: usize::MAX }
    }

    fn bytes(&self) -> usize {
        let is_result = matches!(self.message, Message::Tool { .. });
        if is_result { self.message.len().min(self.bytes_max) } else { self.message.len() }
    }

    /// Returns whether it is a result of which more than `bytes_max` bytes are sent. A result that
    /// is shorter than the note in its place is left alone.
    fn has_result_over(&self, bytes_max: usize) -> bool {
        let is_result = matches!(self.message, Message::Tool { .. });
        is_result && self.bytes() > bytes_max.max(RESULT_OMITTED.len())
    }

    fn clipped(&self) -> Cow<'_, Message> {
        match &self.message {
            Message::Tool { call_id, result } if result.len() > self.bytes_max => {
                let clipped = match self.bytes_max {
                    0 => RESULT_OMITTED.to_owned(),
                    bytes_max => clip(result.text(), bytes_max),
                };
                Cow::Owned(Message::result(call_id.clone(), &clipped))
            }
            message => Cow::Borrowed(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use crate::session::replay::ToolCall;

    fn call(id: &str, arguments: &str) -> ToolCall {
        ToolCall {
            id: id.into(),
            name: "t".into(),
            arguments: arguments.into(),
            extra: String::new(),
        }
    }

    fn answer(calls: Vec<ToolCall>) -> Message {
        Message::Assistant { text: String::new(), calls, extra: String::new() }
    }

    fn tool(id: &str, result: &str) -> Message {
        Message::result(id.into(), result)
    }

    fn history(messages: Vec<Message>) -> History {
        History::of(None, messages, false)
    }

    #[test]
    fn the_oldest_results_are_omitted_first() {
        let part = limits::HISTORY_BYTES_MAX / 4;
        let mut messages = Vec::new();
        for id in ["a", "b", "c", "d", "e"] {
            messages.push(answer(vec![call(id, "{}")]));
            messages.push(tool(id, &id.repeat(part)));
        }
        let text = history(messages).json();
        assert!(!text.contains("aaaa") && !text.contains("bbbb"));
        assert!(text.contains("cccc") && text.contains("dddd") && text.contains("eeee"));
        assert_eq!(text.matches(RESULT_OMITTED).count(), 2);
        json::check(&text).unwrap();
    }

    fn turn(name: &str) -> [Message; 2] {
        [Message::User(format!("question {name}")), Message::answer(format!("answer {name}"))]
    }

    fn called(id: &str, result: &str) -> [Message; 2] {
        [answer(vec![call(id, "{}")]), tool(id, result)]
    }

    /// Shortens a conversation step by step. Gives all of its forms, the whole one first.
    fn forms(mut history: History) -> Vec<String> {
        let mut forms = vec![history.json()];
        while history.shorten() {
            forms.push(history.json());
            assert!(forms.len() < 100, "there is no end");
        }
        for form in &forms {
            json::check(form).unwrap();
            assert_eq!(form.matches("tool_calls").count(), form.matches("tool_call_id").count());
        }
        forms
    }

    #[test]
    fn a_conversation_is_shortened_step_by_step_until_only_the_task_is_left() {
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
        assert_eq!(has(RESULT_OMITTED), [0, 1, 2, 2, 2, 2, 2, 2, 1, 0, 1]);
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
        // The notes are part of the user's message.
        let last = forms.last().unwrap();
        let note = json::text(&format!("{TURNS_OMITTED}the task{CALLS_OMITTED}"));
        let note = note.trim_matches('"').to_owned();
        assert!(
            last.starts_with(&format!("[{{\"role\":\"user\",\"content\":\"{note}\"")),
            "{last}"
        );
    }

    #[test]
    fn each_result_of_parallel_calls_is_clipped() {
        let calls = vec![call("1", "{}"), call("2", "{}")];
        let long = "x".repeat(limits::RESULT_CLIPPED_BYTES + 1);
        let short = "y".repeat(limits::RESULT_CLIPPED_BYTES);
        let mut shorter = history(vec![
            Message::User("the task".into()),
            answer(calls),
            tool("1", &long),
            tool("2", &short),
        ]);
        assert!(shorter.shorten());
        let text = shorter.json();
        assert_eq!(
            text.matches("left out").count(),
            1,
            "1 byte of the first result, none of the second"
        );
        assert!(text.contains("[… 1 bytes") && text.contains(&short));
    }

    #[test]
    fn given_messages_are_omitted_by_turns_except_for_a_system_prompt() {
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
        let note = TURNS_OMITTED.trim_end();
        assert!(forms[1].contains(note) && forms[1].contains("two") && !forms[1].contains("one"));
        assert!(forms[2].contains(note) && !forms[2].contains("well"), "{}", forms[2]);
    }

    #[test]
    fn old_turns_are_omitted_at_the_limit_but_not_for_a_long_task() {
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
    fn the_system_prompt_of_a_session_replaces_ours() {
        let sent = |config: &str| {
            let config = json::parse(config.as_bytes()).unwrap();
            let mut conversation = Conversation::default();
            conversation.create(config);
            History::new(conversation, "ours").json()
        };
        assert_eq!(sent("{}"), r#"[{"role":"system","content":"ours"}]"#);
        assert_eq!(sent(r#"{"systemPrompt":"own"}"#), r#"[{"role":"system","content":"own"}]"#);
        let given = r#"{"messages":[{"role":"system","content":"brought"}]}"#;
        assert_eq!(sent(given), r#"[{"role":"system","content":"brought"}]"#);
    }
}
