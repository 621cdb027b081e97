//! The events of a session: one type for each kind of payload, with its name, writer and reader.

use nanoserde::{DeJson, SerJson};

use crate::json::{self, Raw};

use super::SessionSummary;

/// Declares the kinds of events: the name of each, and the type of its payload.
macro_rules! events {
    ($($name:literal => $kind:ident($payload:ty),)+) => {
        /// An event: its kind and its payload.
        #[derive(Clone, Debug)]
        pub enum Event {
            $($kind($payload),)+
        }

        /// The kind of an event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum EventKind {
            $($kind,)+
        }

        impl Event {
            /// Returns its kind.
            pub fn kind(&self) -> EventKind {
                match self {
                    $(Event::$kind(_) => EventKind::$kind,)+
                }
            }

            /// Returns its payload, a JSON object.
            pub fn payload(&self) -> String {
                match self {
                    $(Event::$kind(payload) => json::text(payload),)+
                }
            }

            /// Decodes a payload; `None` if it lacks what an event of this kind has.
            pub fn decode(kind: EventKind, payload: &str) -> Option<Event> {
                let payload = payload.as_bytes();
                Some(match kind {
                    $(EventKind::$kind => Event::$kind(json::parse(payload).ok()?),)+
                })
            }
        }

        impl EventKind {
            /// Returns its name on the wire.
            pub fn name(self) -> &'static str {
                match self {
                    $(EventKind::$kind => $name,)+
                }
            }

            /// Returns the kind of this name; `None` if this version does not know it.
            pub fn named(name: &str) -> Option<EventKind> {
                match name {
                    $($name => Some(EventKind::$kind),)+
                    _ => None,
                }
            }
        }
    };
}

events! {
    "session.snapshot" => SessionSnapshot(Box<SessionSnapshot>),
    "turn.queued" => TurnQueued(TurnQueued),
    "turn.start" => TurnStart(TurnHead),
    "turn.token" => TurnToken(TurnText),
    "turn.thinking" => TurnThinking(TurnText),
    "turn.notice" => TurnNotice(TurnNotice),
    "tool.start" => ToolStart(ToolStart),
    "tool.end" => ToolEnd(ToolEnd),
    "permission.request" => PermissionRequest(PermissionRequest),
    "permission.resolved" => PermissionResolved(PermissionResolved),
    "turn.done" => TurnDone(TurnDone),
    "turn.error" => TurnError(TurnError),
    "session.cancelled" => SessionCancelled(SessionCancelled),
}

impl Event {
    /// Returns the id of the turn that it is about.
    pub fn turn_id(&self) -> Option<&str> {
        match self {
            Event::SessionSnapshot(_) => None,
            Event::SessionCancelled(cancelled) => cancelled.turn_id.as_deref(),
            Event::TurnQueued(TurnQueued { turn_id, .. })
            | Event::TurnStart(TurnHead { turn_id, .. })
            | Event::TurnToken(TurnText { turn_id, .. })
            | Event::TurnThinking(TurnText { turn_id, .. })
            | Event::TurnNotice(TurnNotice { turn_id, .. })
            | Event::ToolStart(ToolStart { turn_id, .. })
            | Event::ToolEnd(ToolEnd { turn_id, .. })
            | Event::PermissionRequest(PermissionRequest { turn_id, .. })
            | Event::PermissionResolved(PermissionResolved { turn_id, .. })
            | Event::TurnDone(TurnDone { turn_id, .. })
            | Event::TurnError(TurnError { turn_id, .. }) => Some(turn_id),
        }
    }
}

/// An event as clients receive it, with its number.
pub struct Envelope {
    pub seq: u64,
    /// `None`: this version does not know the event.
    pub event: Option<Event>,
}

impl Envelope {
    /// Reads an envelope; `None` if `text` is something else.
    pub fn read(text: &str) -> Option<Envelope> {
        #[derive(DeJson)]
        struct Fields {
            event: String,
            seq: u64,
            payload: Raw,
        }
        let Fields { event, seq, payload } = json::parse(text.as_bytes()).ok()?;
        let kind = EventKind::named(&event);
        let event = kind.and_then(|kind| Event::decode(kind, payload.as_str()));
        Some(Envelope { seq, event })
    }
}

/// The first event of a session. Also the event that it was created again, without `config`.
#[derive(Clone, Debug, DeJson, SerJson)]
pub struct SessionSnapshot {
    pub snapshot: SessionSummary,
    pub messages: Vec<Raw>,
    #[nserde(rename = "sessionId")]
    pub session_id: String,
    pub mode: String,
    pub model: String,
    pub status: String,
    pub turns: u64,
    /// The part that the daemon needs; the rest is for other clients.
    #[nserde(rename = "founding")]
    pub config: Option<SessionConfig>,
}

impl SessionSnapshot {
    /// Returns the first event of the session that `snapshot` shows; `None`: one that exists.
    pub fn new(snapshot: SessionSummary, config: Option<SessionConfig>) -> SessionSnapshot {
        let messages = config.as_ref().and_then(|config| config.messages.clone());
        SessionSnapshot {
            messages: messages.unwrap_or_default(),
            session_id: snapshot.session_id.clone(),
            mode: snapshot.mode.clone(),
            model: snapshot.model.clone(),
            status: snapshot.status.clone(),
            turns: snapshot.turns,
            snapshot,
            config,
        }
    }
}

/// What a session was created with.
#[derive(Clone, Debug, Default, DeJson, SerJson)]
pub struct SessionConfig {
    pub title: Option<String>,
    pub model: Option<String>,
    pub mode: Option<String>,
    #[nserde(rename = "systemPrompt")]
    pub system_prompt: Option<String>,
    /// The directory that tools work in, or a label.
    pub workspace: Option<String>,
    /// The directory of the label.
    pub directory: Option<String>,
    /// As the client sent it.
    pub metadata: Option<Raw>,
    /// A conversation that began elsewhere, in the form of OpenAI's chat messages.
    pub messages: Option<Vec<Raw>>,
}

/// A turn was submitted.
#[derive(Clone, Debug, DeJson, SerJson)]
pub struct TurnQueued {
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    #[nserde(rename = "writerId")]
    pub writer_id: String,
    #[nserde(rename = "clientId")]
    pub client_id: String,
    pub mode: Option<String>,
    /// The number of turns in the queue, this one included.
    #[nserde(rename = "queueSize")]
    pub queue_size: u64,
    /// The number of turns before it in the queue.
    pub position: u64,
    pub metadata: Option<Raw>,
    pub content: String,
}

/// A turn was started; also what is remembered of each turn that has not ended: enough to cancel
/// it.
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

/// The model wrote some text, as part of its answer or while thinking.
#[derive(Clone, Debug, DeJson, SerJson)]
pub struct TurnText {
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    pub text: String,
}

/// Something about the turn that the user should know, such as a pause before a retry.
#[derive(Clone, Debug, DeJson, SerJson)]
pub struct TurnNotice {
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    pub text: String,
    /// How long the turn waits now.
    #[nserde(rename = "waitMs")]
    pub wait_ms: Option<u64>,
}

/// A tool call was started. Clients differ in the names that they expect, so some fields are there
/// twice.
#[derive(Clone, Debug, DeJson, SerJson)]
pub struct ToolStart {
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    pub name: String,
    pub id: String,
    /// JSON, as the model wrote it.
    pub args: String,
    #[nserde(rename = "toolName")]
    pub tool_name: String,
    #[nserde(rename = "callId")]
    pub call_id: String,
    #[nserde(rename = "toolCallId")]
    pub tool_call_id: String,
    /// The arguments as an object.
    pub input: Raw,
}

impl ToolStart {
    /// Returns the start of the call `id` of the tool `name`.
    pub fn new(turn_id: &str, id: &str, name: &str, args: &str, input: Raw) -> ToolStart {
        let (id, name) = (id.to_owned(), name.to_owned());
        ToolStart {
            turn_id: turn_id.to_owned(),
            name: name.clone(),
            id: id.clone(),
            args: args.to_owned(),
            tool_name: name,
            call_id: id.clone(),
            tool_call_id: id,
            input,
        }
    }
}

/// A tool call ended.
#[derive(Clone, Debug, DeJson, SerJson)]
pub struct ToolEnd {
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    pub name: String,
    pub id: String,
    pub result: String,
    #[nserde(rename = "toolName")]
    pub tool_name: String,
    #[nserde(rename = "callId")]
    pub call_id: String,
    #[nserde(rename = "toolCallId")]
    pub tool_call_id: String,
    #[nserde(rename = "durationMs")]
    pub duration_ms: u64,
    /// The same, for other clients.
    pub elapsed: u64,
    pub success: bool,
}

impl ToolEnd {
    /// Returns the end of the call `id` of the tool `name`.
    pub fn new(
        turn_id: &str,
        id: &str,
        name: &str,
        result: &str,
        duration_ms: u64,
        success: bool,
    ) -> ToolEnd {
        let (id, name) = (id.to_owned(), name.to_owned());
        ToolEnd {
            turn_id: turn_id.to_owned(),
            name: name.clone(),
            id: id.clone(),
            result: result.to_owned(),
            tool_name: name,
            call_id: id.clone(),
            tool_call_id: id,
            duration_ms,
            elapsed: duration_ms,
            success,
        }
    }
}

/// A turn waits for permission to call a tool.
#[derive(Clone, Debug, DeJson, SerJson)]
pub struct PermissionRequest {
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    #[nserde(rename = "requestId")]
    pub request_id: String,
    #[nserde(rename = "toolName")]
    pub tool_name: String,
    pub args: Raw,
    /// The same, for other clients.
    pub input: Raw,
    #[nserde(rename = "expiresAt")]
    pub expires_at: String,
}

/// A permission was granted or denied.
#[derive(Clone, Debug, DeJson, SerJson)]
pub struct PermissionResolved {
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    #[nserde(rename = "requestId")]
    pub request_id: String,
    /// `allow` or `deny`.
    pub decision: String,
    pub approved: bool,
    #[nserde(rename = "decidedBy")]
    pub decided_by: String,
}

/// A turn ended with an answer.
#[derive(Clone, Debug, DeJson, SerJson)]
pub struct TurnDone {
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    #[nserde(rename = "writerId")]
    pub writer_id: String,
    #[nserde(rename = "clientId")]
    pub client_id: String,
    pub stats: TurnStats,
}

/// What a turn took.
#[derive(Clone, Debug, Default, DeJson, SerJson)]
#[nserde(default)]
pub struct TurnStats {
    pub tokens: u64,
    #[nserde(rename = "promptTokens")]
    pub prompt_tokens: u64,
    #[nserde(rename = "completionTokens")]
    pub completion_tokens: u64,
    #[nserde(rename = "toolCalls")]
    pub tool_calls: u64,
    /// In milliseconds.
    pub elapsed: u64,
    /// Completion tokens per second.
    pub speed: f64,
    #[nserde(rename = "firstTokenLatencyMs")]
    pub first_token_latency_ms: Option<u64>,
    /// Why the answer ended, if the model did not end it. In the words of OpenAI's API: `length`,
    /// `content_filter`.
    #[nserde(rename = "finishReason")]
    pub finish_reason: Option<String>,
    /// The tokens of the last request and its answer, if the server counts them.
    #[nserde(rename = "contextTokens")]
    pub context_tokens: Option<u64>,
    /// The size of the model's context in tokens, if the server told it.
    #[nserde(rename = "contextSize")]
    pub context_size: Option<u64>,
    /// The model that answered.
    pub model: Option<String>,
}

impl TurnStats {
    /// Adds what one request to the model took. The sums stay in the range that can be decoded,
    /// whatever the model server says.
    pub fn add_tokens(&mut self, prompt: u64, completion: u64) {
        let sum = |a: u64, b: u64| a.saturating_add(b).min(i64::MAX.unsigned_abs());
        self.prompt_tokens = sum(self.prompt_tokens, prompt);
        self.completion_tokens = sum(self.completion_tokens, completion);
        self.context_tokens = (prompt > 0).then(|| sum(prompt, completion));
    }
}

/// A turn ended without an answer.
#[derive(Clone, Debug, DeJson, SerJson)]
pub struct TurnError {
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    #[nserde(rename = "writerId")]
    pub writer_id: String,
    #[nserde(rename = "clientId")]
    pub client_id: String,
    pub code: String,
    pub message: String,
}

/// A client cancelled turns.
#[derive(Clone, Debug, DeJson, SerJson)]
pub struct SessionCancelled {
    pub cancelled: u64,
    #[nserde(rename = "turnId")]
    pub turn_id: Option<String>,
    #[nserde(rename = "writerId")]
    pub writer_id: Option<String>,
}
