//! What a session is, as its events tell it, and which changes are legal. Pure: no clock, no disk.
//!
//! The journal is the truth; everything here can be made again from it. What is kept is small,
//! however long the session: the text of the conversation stays on disk.

use std::collections::{HashMap, VecDeque};

use nanoserde::{DeJson, SerJson};

use crate::json::{self, Raw};
use crate::{limits, text};

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

/// What the creator of a session says of it; kept in its first event.
#[derive(Clone, Debug, Default, DeJson, SerJson)]
pub struct Founding {
    pub title: Option<String>,
    pub model: Option<String>,
    pub mode: Option<String>,
    #[nserde(rename = "systemPrompt")]
    pub system_prompt: Option<String>,
    /// The directory that the session works in.
    pub workspace: Option<String>,
    /// The rest of what the creator wanted kept.
    pub metadata: Option<Raw>,
    /// A conversation that began elsewhere, in the form of OpenAI's chat messages.
    pub messages: Option<Vec<Raw>>,
}

/// The names on a turn: enough to cancel it, not what it says.
#[derive(Clone, Debug, PartialEq, Eq, DeJson, SerJson)]
pub struct TurnHead {
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    #[nserde(rename = "writerId")]
    pub writer_id: String,
    #[nserde(rename = "clientId")]
    pub client_id: String,
    pub mode: String,
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

/// `session.snapshot`, the first event.
#[derive(DeJson)]
struct Created {
    founding: Founding,
}

/// `turn.queued`
#[derive(DeJson)]
struct Queued {
    #[nserde(rename = "turnId")]
    turn_id: String,
    #[nserde(rename = "writerId")]
    writer_id: String,
    #[nserde(rename = "clientId")]
    client_id: String,
    mode: Option<String>,
    content: String,
}

/// Any event of a turn.
#[derive(DeJson)]
struct OfTurn {
    #[nserde(rename = "turnId")]
    turn_id: String,
}

impl State {
    /// Takes in the next event. Events that this version does not know change nothing but `seq`.
    pub fn apply(&mut self, record: &Record<'_>) {
        self.seq = record.seq;
        let payload = record.payload.as_bytes();
        match record.event {
            "session.snapshot" => {
                if let Ok(created) = json::parse::<Created>(payload) {
                    self.found(created.founding, record.ts);
                }
            }
            "turn.queued" => {
                if let Ok(queued) = json::parse::<Queued>(payload) {
                    self.enqueue(queued, record.seq);
                }
            }
            "turn.start" => {
                if let Some(turn) = turn_of(payload).and_then(|turn_id| self.unqueue(&turn_id)) {
                    self.active = Some(turn);
                }
            }
            "turn.done" | "turn.error" => {
                if let Some(turn_id) = turn_of(payload) {
                    self.end(&turn_id);
                }
            }
            "tool.start" => self.tool_calls += 1,
            // Most events of a session; they are not worth a parse.
            _ => return,
        }
        record.ts.clone_into(&mut self.updated_at);
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

    /// A session that has just been created.
    pub fn founded(founding: Founding, ts: &str) -> State {
        let mut state = State { seq: 1, updated_at: ts.to_owned(), ..State::default() };
        state.found(founding, ts);
        state
    }

    /// Takes a turn out whose end could not be written. The journal will say so when it is opened
    /// next.
    pub fn forget(&mut self, turn_id: &str) {
        self.end(turn_id);
    }

    fn found(&mut self, founding: Founding, ts: &str) {
        ts.clone_into(&mut self.created_at);
        self.title = founding.title;
        self.model = founding.model;
        self.mode = founding.mode;
        self.workspace = founding.workspace;
    }

    fn enqueue(&mut self, queued: Queued, seq: u64) {
        self.turns += 1;
        if self.title.is_none() {
            self.title = Some(title_of(&queued.content));
        }
        self.submitted.add(&queued.turn_id, seq);
        self.queue.push_back(TurnHead {
            turn_id: queued.turn_id,
            writer_id: queued.writer_id,
            client_id: queued.client_id,
            mode: queued.mode.or_else(|| self.mode.clone()).unwrap_or_else(|| "chat".to_owned()),
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

fn turn_of(payload: &[u8]) -> Option<String> {
    json::parse::<OfTurn>(payload).ok().map(|of| of.turn_id)
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

#[derive(DeJson)]
struct TurnText {
    text: String,
}

#[derive(DeJson)]
struct ToolStart {
    name: String,
    id: String,
    args: String,
}

#[derive(DeJson)]
struct ToolEnd {
    id: String,
    result: String,
}

impl Conversation {
    /// Takes in the next event.
    pub fn apply(&mut self, record: &Record<'_>) {
        let payload = record.payload.as_bytes();
        match record.event {
            "session.snapshot" => {
                if let Ok(Created { founding }) = json::parse::<Created>(payload) {
                    let given = founding.messages.unwrap_or_default();
                    let given = given.iter().map(|raw| Message::Given(raw.as_str().to_owned()));
                    self.messages.extend(given);
                    self.system_prompt = founding.system_prompt;
                }
            }
            "turn.queued" => {
                if let Ok(queued) = json::parse::<Queued>(payload) {
                    self.waiting.insert(queued.turn_id, queued.content);
                }
            }
            "turn.start" => {
                let content = turn_of(payload).and_then(|turn_id| self.waiting.remove(&turn_id));
                self.messages.extend(content.map(Message::User));
            }
            "turn.token" => {
                if let Ok(token) = json::parse::<TurnText>(payload) {
                    self.assistant(|text, _| text.push_str(&token.text));
                }
            }
            "tool.start" => {
                if let Ok(start) = json::parse::<ToolStart>(payload) {
                    let call = ToolCall { id: start.id, name: start.name, arguments: start.args };
                    self.assistant(|_, calls| calls.push(call));
                }
            }
            "tool.end" => {
                if let Ok(end) = json::parse::<ToolEnd>(payload) {
                    self.messages.push(Message::Tool { call_id: end.id, result: end.result });
                }
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
