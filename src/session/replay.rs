//! The state and the conversation of a session, computed from its events. Pure: no clock, no disk.
//!
//! The journal is authoritative; everything here can be computed from it again. The state is small,
//! however long the session: the text of the conversation stays on disk.

use std::collections::{HashMap, HashSet, VecDeque};

use nanoserde::{SerJson, SerJsonState};

use crate::json::Quoted;
use crate::protocol::event::{
    Event, EventKind, SessionConfig, TurnDone, TurnError, TurnHead, TurnQueued,
};
use crate::protocol::{ChatMessage, SessionId, SessionSummary};
use crate::{json, limits, text};

use super::record::Record;

/// The state of a session after its events up to `seq`.
#[derive(Clone, Debug, Default)]
pub struct JournalState {
    /// The number of the last event; 0 before the first.
    pub seq: u64,
    pub created_at: String,
    pub updated_at: String,
    pub title: Option<String>,
    pub model: Option<String>,
    /// The model that answered last.
    pub last_model: Option<String>,
    pub mode: Option<String>,
    pub workspace: Option<String>,
    pub directory: Option<String>,
    /// The number of submitted turns.
    pub turns: u64,
    pub tool_calls: u64,
    /// In the order in which they will run.
    pub queue: VecDeque<TurnHead>,
    pub active: Option<TurnHead>,
    /// The ids of the latest turns with the numbers of their `turn.queued` events, to recognize
    /// turns that are submitted again.
    submitted: VecDeque<(String, u64)>,
}

impl JournalState {
    /// Returns the state of a session that is created with `config`.
    pub fn created(config: &SessionConfig, ts: &str) -> JournalState {
        let mut state =
            JournalState { seq: 1, updated_at: ts.to_owned(), ..JournalState::default() };
        state.create(config, ts);
        state
    }

    /// Applies the event in a record. An event that this version does not know changes `seq` only.
    pub fn apply_record(&mut self, record: &Record<'_>) {
        self.seq = record.seq;
        // Most bytes are text that changes nothing here: it is not worth decoding.
        let is_text = matches!(
            record.kind,
            Some(EventKind::TurnToken | EventKind::TurnThinking | EventKind::ToolEnd)
        );
        if !is_text && let Some(event) = record.event() {
            self.apply(&event, record.seq, record.ts);
        }
    }

    /// Applies the next event.
    pub fn apply(&mut self, event: &Event, seq: u64, ts: &str) {
        self.seq = seq;
        match event {
            Event::SessionSnapshot(snapshot) => match &snapshot.config {
                Some(config) => self.create(config, ts),
                // Created again, or renamed.
                None => {
                    self.title.clone_from(&snapshot.snapshot.title);
                    return;
                }
            },
            Event::TurnQueued(queued) => self.enqueue(queued, seq),
            Event::TurnStart(TurnHead { turn_id, .. }) => {
                if let Some(turn) = self.dequeue(turn_id) {
                    self.active = Some(turn);
                }
            }
            Event::TurnDone(TurnDone { turn_id, stats, .. }) => {
                self.end_turn(turn_id);
                if stats.model.is_some() {
                    self.last_model.clone_from(&stats.model);
                }
            }
            Event::TurnError(TurnError { turn_id, .. }) => self.end_turn(turn_id),
            Event::ToolStart(_) => self.tool_calls += 1,
            _ => return,
        }
        ts.clone_into(&mut self.updated_at);
    }

    /// Removes a turn from the queue and from being active.
    pub fn end_turn(&mut self, turn_id: &str) {
        if self.active.as_ref().is_some_and(|turn| turn.turn_id == turn_id) {
            self.active = None;
        } else {
            self.dequeue(turn_id);
        }
    }

    /// Returns the number of a turn's `turn.queued` event. `None` if it was never submitted, or too
    /// long ago to be remembered.
    pub fn queued_at(&self, turn_id: &str) -> Option<u64> {
        self.submitted.iter().rev().find(|(id, _)| id == turn_id).map(|(_, seq)| *seq)
    }

    /// Returns the turns that have not ended, the active one first.
    pub fn unfinished(&self) -> impl Iterator<Item = &TurnHead> {
        self.active.iter().chain(&self.queue)
    }

    /// Returns what a list shows of the session.
    pub fn summary(&self, id: &SessionId) -> SessionSummary {
        let writers: HashSet<&str> =
            self.unfinished().map(|turn| turn.writer_id.as_str()).collect();
        let status = match (&self.active, self.queue.is_empty()) {
            (Some(_), _) => "running",
            (None, false) => "queued",
            (None, true) => "idle",
        };
        SessionSummary {
            session_id: id.as_str().to_owned(),
            model: self.model.clone().unwrap_or_default(),
            last_model: self.last_model.clone(),
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
            directory: self.directory.clone(),
            seq: self.seq,
            messages: None,
        }
    }

    fn create(&mut self, config: &SessionConfig, ts: &str) {
        ts.clone_into(&mut self.created_at);
        self.title.clone_from(&config.title);
        self.model.clone_from(&config.model);
        self.mode.clone_from(&config.mode);
        self.workspace.clone_from(&config.workspace);
        self.directory.clone_from(&config.directory);
    }

    fn enqueue(&mut self, queued: &TurnQueued, seq: u64) {
        self.turns += 1;
        if self.title.is_none() {
            self.title = Some(title_of(&queued.content));
        }
        if self.submitted.len() >= limits::TURN_IDS_MAX {
            self.submitted.pop_front();
        }
        self.submitted.push_back((queued.turn_id.clone(), seq));
        let mode = queued.mode.as_ref().or(self.mode.as_ref());
        self.queue.push_back(TurnHead {
            turn_id: queued.turn_id.clone(),
            writer_id: queued.writer_id.clone(),
            client_id: queued.client_id.clone(),
            mode: mode.map_or("chat", String::as_str).to_owned(),
        });
    }

    fn dequeue(&mut self, turn_id: &str) -> Option<TurnHead> {
        let position = self.queue.iter().position(|turn| turn.turn_id == turn_id)?;
        self.queue.remove(position)
    }
}

/// Makes a title of the first input: one line, cut at a limit.
pub fn title_of(content: &str) -> String {
    let line = text::words(content, limits::TITLE_CHARS_MAX);
    text::prefix(&line, limits::TITLE_CHARS_MAX).to_owned()
}

/// The tag that closes thinking, at the end of a line.
pub const THINK_END_LINE: &str = "</think>\n";

/// A message of the conversation, in the form of OpenAI's chat messages.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// One that the session was created with, as the client sent it.
    Given(String),
    User(String),
    Assistant {
        /// As the model sent it: see [`answer_of`].
        text: String,
        calls: Vec<ToolCall>,
        /// Members for the model server alone, each after a comma: what it wants back in the same
        /// turn. Not in the journal.
        extra: String,
    },
    Tool {
        call_id: String,
        result: Quoted,
    },
}

/// A tool call that the model made.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
    /// As [`Message::Assistant::extra`].
    pub extra: String,
}

/// Returns the answer in a model's text. Thinking may come before it, without the tag that opens
/// it: with some models that is the end of the prompt, which servers do not repeat. The tag that
/// closes it ends a line, and is not in a block of code.
pub fn answer_of(text: &str) -> &str {
    // Searched for forwards, which is fast, as few texts have it.
    if !text.contains(THINK_END_LINE) {
        return text;
    }
    let (thinking, answer) = text.rsplit_once(THINK_END_LINE).unwrap_or_default();
    let is_in_code = thinking.matches("```").count() % 2 == 1;
    if is_in_code || thinking.contains("<think>") { text } else { answer.trim_start() }
}

/// The conversation of a session.
#[derive(Default)]
pub struct Conversation {
    /// The session's own.
    pub system_prompt: Option<String>,
    pub messages: Vec<Message>,
    /// Whether there were more messages before these, which are not here.
    pub omitted: bool,
    /// The inputs of queued turns by their ids: each becomes a message when its turn starts.
    queued: HashMap<String, String>,
}

impl Conversation {
    /// Applies the event in a record.
    pub fn apply_record(&mut self, record: &Record<'_>) {
        match record.kind {
            Some(EventKind::SessionSnapshot) => {
                if let Some(Event::SessionSnapshot(snapshot)) = record.event()
                    && let Some(config) = snapshot.config
                {
                    self.create(config);
                }
            }
            Some(EventKind::TurnQueued) => {
                if let Some([turn_id, content]) = record.texts(["turnId", "content"]) {
                    self.queued.insert(turn_id, content);
                }
            }
            Some(EventKind::TurnStart) => {
                if let Some([turn_id]) = record.texts(["turnId"]) {
                    let input = self.take_queued(&turn_id);
                    self.start(input);
                }
            }
            Some(EventKind::TurnToken) => {
                if let Some(token) = plain_text(record.payload) {
                    self.say(token);
                } else if let Some([token]) = record.texts(["text"]) {
                    self.say(&token);
                }
            }
            Some(EventKind::ToolStart) => {
                if let Some([id, name, arguments]) = record.texts(["id", "name", "args"]) {
                    let call = ToolCall { id, name, arguments, extra: String::new() };
                    self.assistant(|_, calls| calls.push(call));
                }
            }
            Some(EventKind::ToolEnd) => {
                if let Some((call_id, result)) = result_of(record.payload) {
                    self.messages.push(Message::Tool { call_id, result });
                } else if let Some([call_id, result]) = record.texts(["id", "result"]) {
                    self.messages.push(Message::result(call_id, &result));
                }
            }
            // These are no part of the conversation; of thinking there is much.
            _ => {}
        }
    }

    /// Begins the conversation of a session that is created with `config`.
    pub fn create(&mut self, config: SessionConfig) {
        let SessionConfig { messages, system_prompt, .. } = config;
        let given = messages.unwrap_or_default();
        let given = given.iter().map(|raw| Message::Given(raw.as_str().to_owned()));
        self.messages.extend(given);
        self.system_prompt = system_prompt;
    }

    /// Adds text of the model.
    pub fn say(&mut self, said: &str) {
        self.assistant(|text, _| text.push_str(said));
    }

    /// Starts a turn whose input was queued before the first event that was applied.
    pub fn start(&mut self, input: Option<String>) {
        self.messages.extend(input.map(Message::User));
    }

    /// Removes the input of a queued turn: of one that ended without starting.
    pub fn take_queued(&mut self, turn_id: &str) -> Option<String> {
        self.queued.remove(turn_id)
    }

    /// Changes the last message if it is the assistant's, or a new one.
    fn assistant(&mut self, change: impl FnOnce(&mut String, &mut Vec<ToolCall>)) {
        if !matches!(self.messages.last(), Some(Message::Assistant { .. })) {
            self.messages.push(Message::answer(String::new()));
        }
        if let Some(Message::Assistant { text, calls, .. }) = self.messages.last_mut() {
            change(text, calls);
        }
    }
}

/// Returns the text in a payload of `turn.token` that has nothing else and no escapes. Most bytes
/// of a journal are in such records, and most of the time would go to decoding them.
fn plain_text(payload: &str) -> Option<&str> {
    let (id, text) = payload.strip_prefix("{\"turnId\":\"")?.split_once("\",\"text\":\"")?;
    let text = text.strip_suffix("\"}")?;
    let is_plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
    (id.bytes().all(is_plain) && text.bytes().all(is_plain)).then_some(text)
}

/// Returns the id of a call and its result, from a payload of `tool.end`. Results are long, and can
/// be sent with the escapes that they have in the journal: only the members around it are decoded.
fn result_of(payload: &str) -> Option<(String, Quoted)> {
    const RESULT: &str = ",\"result\":";
    let (before, rest) = payload.split_once(RESULT)?;
    let (result, after) = Quoted::read(rest.strip_prefix('"')?)?;
    // In its place, to see that it is a member of the object itself, and the only one of this name.
    let others = format!("{before}{RESULT}0{after}");
    let members = json::members(&others)?;
    let mut results = members.iter().filter(|member| member.name == "result");
    let is_only = results.next()?.value == "0" && results.next().is_none();
    let id = members.iter().rev().find(|member| member.name == "id")?.string()?;
    is_only.then(|| (id.into_owned(), result))
}

impl Message {
    /// Returns an answer without calls.
    pub fn answer(text: String) -> Message {
        Message::Assistant { text, calls: Vec::new(), extra: String::new() }
    }

    /// Returns the result of a call.
    pub fn result(call_id: String, result: &str) -> Message {
        Message::Tool { call_id, result: Quoted::new(result) }
    }

    /// Returns the length of what it says: not of the names and the syntax around it.
    pub fn len(&self) -> usize {
        match self {
            Message::Given(text) | Message::User(text) => text.len(),
            Message::Assistant { text, calls, extra } => {
                let size = |call: &ToolCall| call.arguments.len() + call.extra.len();
                text.len() + extra.len() + calls.iter().map(size).sum::<usize>()
            }
            Message::Tool { result, .. } => result.len(),
        }
    }

    /// Returns whether it was given by the client that created the session, with this role.
    pub fn is_given_as(&self, role: &str) -> bool {
        let Message::Given(text) = self else { return false };
        json::parse::<ChatMessage>(text.as_bytes()).is_ok_and(|given| given.role == role)
    }

    /// Returns whether it begins a turn.
    pub fn is_user(&self) -> bool {
        matches!(self, Message::User(_)) || self.is_given_as("user")
    }

    /// Appends the message as JSON.
    pub fn json(&self, out: &mut String) {
        match self {
            Message::Given(text) => out.push_str(text),
            Message::User(text) => {
                quote_after("{\"role\":\"user\",\"content\":", text, out);
                out.push('}');
            }
            Message::Assistant { text, calls, extra } => {
                answer_json(answer_of(text), calls, extra, out);
            }
            Message::Tool { call_id, result } => result_json(call_id, result, out),
        }
    }
}

/// Appends an answer as [`Message::json`] does.
pub fn answer_json(answer: &str, calls: &[ToolCall], extra: &str, out: &mut String) {
    quote_after("{\"role\":\"assistant\",\"content\":", answer, out);
    out.push_str(extra);
    let mut before = ",\"tool_calls\":[{\"id\":";
    for call in calls {
        quote_after(before, &call.id, out);
        quote_after(",\"type\":\"function\",\"function\":{\"name\":", &call.name, out);
        quote_after(",\"arguments\":", &call.arguments, out);
        out.push('}');
        out.push_str(&call.extra);
        out.push('}');
        before = ",{\"id\":";
    }
    out.push_str(if calls.is_empty() { "}" } else { "]}" });
}

/// Appends the result of a call as [`Message::json`] does.
pub fn result_json(call_id: &str, result: &Quoted, out: &mut String) {
    quote_after("{\"role\":\"tool\",\"tool_call_id\":", call_id, out);
    out.push_str(",\"content\":");
    out.push_str(result.as_json());
    out.push('}');
}

impl SerJson for Message {
    fn ser_json(&self, _depth: usize, state: &mut SerJsonState) {
        self.json(&mut state.out);
    }
}

fn quote_after(before: &str, text: &str, out: &mut String) {
    out.push_str(before);
    json::quote(text, out);
}
