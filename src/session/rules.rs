//! What a session is, as its events tell it, and which changes are legal. Pure: no clock, no disk.
//!
//! The journal is the truth; everything here can be made again from it. What is kept is small,
//! however long the session: the text of the conversation stays on disk.

use std::collections::{HashMap, HashSet, VecDeque};

use nanoserde::{SerJson, SerJsonState};

use crate::protocol::SessionSummary;
use crate::protocol::event::{
    Event, EventKind, SessionConfig, ToolEnd, ToolStart, TurnDone, TurnError, TurnHead, TurnQueued,
};
use crate::{json, limits, text};

use super::event::Record;

/// The name of a session: `[A-Za-z0-9_-]{1,64}`, so that it can stand in a path and in a URL
/// unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(String);

impl SessionId {
    /// The id in `text`, if it is one.
    pub fn parse(text: &str) -> Option<SessionId> {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let plain = (1..=limits::ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(letter);
        plain.then(|| SessionId(text.to_owned()))
    }

    /// The id as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where a turn stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Queued,
    Active,
    Ended,
}

/// A session as its events up to `seq` tell it.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Of the last event; 0 before the first.
    pub seq: u64,
    pub created_at: String,
    pub updated_at: String,
    pub title: Option<String>,
    pub model: Option<String>,
    pub mode: Option<String>,
    pub workspace: Option<String>,
    /// Turns that were submitted.
    pub turns: u64,
    pub tool_calls: u64,
    /// In the order in which they will run.
    pub queue: VecDeque<TurnHead>,
    pub active: Option<TurnHead>,
    submitted: Submitted,
}

/// The ids of the latest turns with the number of the event that queued each: the same id is the
/// same turn, however often it is sent.
#[derive(Clone, Debug, Default)]
struct Submitted {
    seqs: HashMap<String, u64>,
    order: VecDeque<String>,
}

impl Submitted {
    fn add(&mut self, turn_id: &str, seq: u64) {
        if self.order.len() >= limits::TURN_IDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.seqs.remove(&oldest);
        }
        self.seqs.insert(turn_id.to_owned(), seq);
        self.order.push_back(turn_id.to_owned());
    }
}

impl State {
    /// Applies the event in a record. An event that this version does not know changes nothing but
    /// `seq`.
    pub fn apply_record(&mut self, record: &Record<'_>) {
        self.seq = record.seq;
        // Most events are tokens: they are not worth decoding.
        let changes = matches!(
            record.kind,
            Some(
                EventKind::SessionSnapshot
                    | EventKind::TurnQueued
                    | EventKind::TurnStart
                    | EventKind::TurnDone
                    | EventKind::TurnError
                    | EventKind::ToolStart
            )
        );
        if changes && let Some(event) = record.event() {
            self.apply(&event, record.seq, record.ts);
        }
    }

    /// Applies the next event.
    pub fn apply(&mut self, event: &Event, seq: u64, ts: &str) {
        self.seq = seq;
        match event {
            Event::SessionSnapshot(first) => self.found(&first.config, ts),
            Event::TurnQueued(queued) => self.enqueue(queued, seq),
            Event::TurnStart(TurnHead { turn_id, .. }) => {
                if let Some(turn) = self.unqueue(turn_id) {
                    self.active = Some(turn);
                }
            }
            Event::TurnDone(TurnDone { turn_id, .. })
            | Event::TurnError(TurnError { turn_id, .. }) => self.end(turn_id),
            Event::ToolStart(_) => self.tool_calls += 1,
            _ => return,
        }
        ts.clone_into(&mut self.updated_at);
    }

    /// Where a turn stands; `None` if it was never submitted, or too long ago to be remembered.
    pub fn stage(&self, turn_id: &str) -> Option<(Stage, u64)> {
        let seq = *self.submitted.seqs.get(turn_id)?;
        let is_it = |turn: &TurnHead| turn.turn_id == turn_id;
        Some(if self.active.as_ref().is_some_and(is_it) {
            (Stage::Active, seq)
        } else if self.queue.iter().any(is_it) {
            (Stage::Queued, seq)
        } else {
            (Stage::Ended, seq)
        })
    }

    /// The turns that have no end yet, the active one first.
    pub fn unfinished(&self) -> Vec<TurnHead> {
        self.active.iter().chain(&self.queue).cloned().collect()
    }

    /// Returns the state of a session that is created with `config`.
    pub fn created(config: &SessionConfig, ts: &str) -> State {
        let mut state = State { seq: 1, updated_at: ts.to_owned(), ..State::default() };
        state.found(config, ts);
        state
    }

    /// Returns what a list shows of the session.
    pub fn summary(&self, id: &SessionId) -> SessionSummary {
        let unfinished = self.active.iter().chain(&self.queue);
        let writers: HashSet<&str> = unfinished.map(|turn| turn.writer_id.as_str()).collect();
        let status = match (&self.active, self.queue.is_empty()) {
            (Some(_), _) => "running",
            (None, false) => "queued",
            (None, true) => "idle",
        };
        SessionSummary {
            session_id: id.as_str().to_owned(),
            model: self.model.clone().unwrap_or_default(),
            title: self.title.clone(),
            created_at: self.created_at.clone(),
            updated_at: self.updated_at.clone(),
            last_activity_at: self.updated_at.clone(),
            active_turn_id: self.active.as_ref().map(|turn| turn.turn_id.clone()),
            queued_turns: self.queue.len() as u64,
            tool_call_count: self.tool_calls,
            writer_count: writers.len() as u64,
            mode: self.mode.clone().unwrap_or_else(|| "chat".to_owned()),
            status: status.to_owned(),
            turns: self.turns,
            workspace: self.workspace.clone(),
            seq: self.seq,
            messages: None,
        }
    }

    /// Takes a turn out whose end could not be written. The journal will say so when it is opened
    /// next.
    pub fn forget(&mut self, turn_id: &str) {
        self.end(turn_id);
    }

    fn found(&mut self, config: &SessionConfig, ts: &str) {
        ts.clone_into(&mut self.created_at);
        self.title.clone_from(&config.title);
        self.model.clone_from(&config.model);
        self.mode.clone_from(&config.mode);
        self.workspace.clone_from(&config.workspace);
    }

    fn enqueue(&mut self, queued: &TurnQueued, seq: u64) {
        self.turns += 1;
        if self.title.is_none() {
            self.title = Some(title_of(&queued.content));
        }
        self.submitted.add(&queued.turn_id, seq);
        let mode = queued.mode.as_ref().or(self.mode.as_ref());
        self.queue.push_back(TurnHead {
            turn_id: queued.turn_id.clone(),
            writer_id: queued.writer_id.clone(),
            client_id: queued.client_id.clone(),
            mode: mode.map_or("chat", String::as_str).to_owned(),
        });
    }

    fn unqueue(&mut self, turn_id: &str) -> Option<TurnHead> {
        let position = self.queue.iter().position(|turn| turn.turn_id == turn_id)?;
        self.queue.remove(position)
    }

    fn end(&mut self, turn_id: &str) {
        if self.active.as_ref().is_some_and(|turn| turn.turn_id == turn_id) {
            self.active = None;
        } else {
            self.unqueue(turn_id);
        }
    }
}

/// A title made of what was said first: one line, cut at a bound.
fn title_of(content: &str) -> String {
    let line = text::words(content, limits::TITLE_CHARS_MAX);
    text::prefix(&line, limits::TITLE_CHARS_MAX).to_owned()
}

/// One message of the conversation, in the form of OpenAI's chat messages.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// One that was brought along when the session was created, as it was given.
    Given(String),
    User(String),
    Assistant {
        text: String,
        calls: Vec<ToolCall>,
    },
    Tool {
        call_id: String,
        result: String,
    },
}

/// A tool call that the model asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

/// The conversation, put together from events in order.
#[derive(Default)]
pub struct Conversation {
    system_prompt: Option<String>,
    messages: Vec<Message>,
    /// What was queued and has not begun: it becomes part of the conversation when it does.
    waiting: HashMap<String, String>,
}

impl Conversation {
    /// Applies the event in a record.
    pub fn apply_record(&mut self, record: &Record<'_>) {
        // No part of the conversation, and there is much of it.
        if record.kind != Some(EventKind::TurnThinking)
            && let Some(event) = record.event()
        {
            self.apply(event);
        }
    }

    /// Applies the next event.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::SessionSnapshot(first) => {
                let SessionConfig { messages, system_prompt, .. } = first.config;
                let given = messages.unwrap_or_default();
                let given = given.iter().map(|raw| Message::Given(raw.as_str().to_owned()));
                self.messages.extend(given);
                self.system_prompt = system_prompt;
            }
            Event::TurnQueued(queued) => {
                self.waiting.insert(queued.turn_id, queued.content);
            }
            Event::TurnStart(head) => {
                let content = self.waiting.remove(&head.turn_id);
                self.messages.extend(content.map(Message::User));
            }
            Event::TurnToken(token) => {
                self.assistant(|text, _| text.push_str(&token.text));
            }
            Event::ToolStart(ToolStart { id, name, args, .. }) => {
                let call = ToolCall { id, name, arguments: args };
                self.assistant(|_, calls| calls.push(call));
            }
            Event::ToolEnd(ToolEnd { id, result, .. }) => {
                self.messages.push(Message::Tool { call_id: id, result });
            }
            _ => {}
        }
    }

    /// What the creator of the session wants the model to be told before everything else.
    pub fn system_prompt(&self) -> Option<&str> {
        self.system_prompt.as_deref()
    }

    /// What has been said so far.
    pub fn messages(self) -> Vec<Message> {
        self.messages
    }

    /// Takes out what has been said so far.
    pub fn drain(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.messages)
    }

    /// What was queued for a turn that has ended without beginning.
    pub fn take_unsaid(&mut self, turn_id: &str) -> Option<String> {
        self.waiting.remove(turn_id)
    }

    /// Changes the assistant's last message, or begins one.
    fn assistant(&mut self, change: impl FnOnce(&mut String, &mut Vec<ToolCall>)) {
        if !matches!(self.messages.last(), Some(Message::Assistant { .. })) {
            self.messages.push(Message::Assistant { text: String::new(), calls: Vec::new() });
        }
        if let Some(Message::Assistant { text, calls }) = self.messages.last_mut() {
            change(text, calls);
        }
    }
}

impl Message {
    /// Appends the message as JSON.
    pub fn json(&self, out: &mut String) {
        match self {
            Message::Given(text) => out.push_str(text),
            Message::User(text) => {
                out.push_str("{\"role\":\"user\",\"content\":");
                json::quote(text, out);
                out.push('}');
            }
            Message::Assistant { text, calls } => {
                out.push_str("{\"role\":\"assistant\",\"content\":");
                json::quote(text, out);
                if !calls.is_empty() {
                    out.push_str(",\"tool_calls\":[");
                    for (index, call) in calls.iter().enumerate() {
                        out.push_str(if index == 0 { "" } else { "," });
                        call.json(out);
                    }
                    out.push(']');
                }
                out.push('}');
            }
            Message::Tool { call_id, result } => {
                out.push_str("{\"role\":\"tool\",\"tool_call_id\":");
                json::quote(call_id, out);
                out.push_str(",\"content\":");
                json::quote(result, out);
                out.push('}');
            }
        }
    }
}

impl SerJson for Message {
    fn ser_json(&self, _depth: usize, state: &mut SerJsonState) {
        self.json(&mut state.out);
    }
}

impl ToolCall {
    fn json(&self, out: &mut String) {
        out.push_str("{\"id\":");
        json::quote(&self.id, out);
        out.push_str(",\"type\":\"function\",\"function\":{\"name\":");
        json::quote(&self.name, out);
        out.push_str(",\"arguments\":");
        json::quote(&self.arguments, out);
        out.push_str("}}");
    }
}
