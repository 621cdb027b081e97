//! Turns: how they are submitted, what answers them, and what their events say. Pure but for the
//! trait's implementations.

use nanoserde::SerJson;

use crate::clock;
use crate::json::{self, Raw};

use super::desk::Turn;
use super::rules::{Founding, SessionId, State, TurnHead};
use super::store::Summary;

/// What answers turns.
pub trait Agent: Send + Sync {
    /// Runs one turn to its end. What it does on the way it tells through `turn`.
    fn run(&self, turn: &Turn<'_>) -> Result<Stats, Fault>;
}

/// How a turn went.
#[derive(Clone, Debug, Default, SerJson)]
pub struct Stats {
    pub tokens: u64,
    #[nserde(rename = "promptTokens")]
    pub prompt_tokens: u64,
    #[nserde(rename = "completionTokens")]
    pub completion_tokens: u64,
    #[nserde(rename = "toolCalls")]
    pub tool_calls: u64,
    /// Milliseconds.
    pub elapsed: u64,
    /// Completion tokens a second.
    pub speed: f64,
    #[nserde(rename = "firstTokenLatencyMs")]
    pub first_token_latency_ms: Option<u64>,
    /// Why the answer ended, in the words of OpenAI's API, if it was not the model that ended it:
    /// `length`, `content_filter`.
    #[nserde(rename = "finishReason")]
    pub finish_reason: Option<String>,
}

/// Why a turn did not get done: `code` for programs, `message` for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub code: &'static str,
    pub message: String,
}

/// What a turn takes from its caller and from nobody else. It is held in memory only: never written
/// to the journal or the log, and gone when the daemon ends, like the turn.
#[derive(Clone, Default)]
pub struct Options {
    pub endpoint: Option<Endpoint>,
    /// For the commands that the turn runs: the caller's, not the daemon's.
    pub environment: Vec<(String, String)>,
    pub grant: Grant,
    /// Whether somebody is at the caller's side to be asked for a permission. A caller that does
    /// not say can be asked if it listens.
    pub attended: Option<bool>,
}

/// Where a model is asked.
#[derive(Clone)]
pub struct Endpoint {
    /// `http://host:port`, with or without a path.
    pub url: String,
    /// Where that setting came from, for messages: `OPTA_MODEL_URL`, `found on port 1234`.
    pub source: String,
    pub key: Option<Key>,
    /// `None`: the server's first that is no embedder.
    pub model: Option<String>,
    /// `auto`, `required` or `required-first`.
    pub tool_choice: Option<String>,
}

/// A model server's secret. It does not show itself.
#[derive(Clone)]
pub struct Key(pub String);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key(…)")
    }
}

/// What a turn may do without being asked about, beyond the user's settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grant {
    /// What the settings allow.
    #[default]
    Settings,
    /// Also to write and edit files.
    Edits,
    /// Everything.
    All,
}

/// A turn as a client submits it.
pub struct Submission {
    /// The same id is the same turn, however often it is sent.
    pub turn_id: Option<String>,
    pub client_id: String,
    pub writer_id: String,
    pub content: String,
    pub mode: Option<String>,
    /// Refused if the session has gone on since.
    pub last_seen_seq: Option<u64>,
    pub metadata: Option<Raw>,
    pub options: Options,
}

/// The promise that a turn is on the disk.
pub struct Accepted {
    pub turn_id: String,
    /// Turns before it that have not begun.
    pub queued: u64,
    /// Of its `turn.queued`.
    pub seq: u64,
}

/// Which turns to cancel; with neither, the active one.
#[derive(Default)]
pub struct Selector {
    pub turn_id: Option<String>,
    pub writer_id: Option<String>,
}

/// What was cancelled.
pub struct Cancelled {
    pub queued: u64,
    pub active: bool,
}

/// The payload of `session.cancelled`.
#[derive(SerJson)]
pub struct SessionCancelled {
    pub cancelled: u64,
    #[nserde(rename = "turnId")]
    pub turn_id: Option<String>,
    #[nserde(rename = "writerId")]
    pub writer_id: Option<String>,
}

/// How a cancelled turn ends.
pub fn cancelled() -> Fault {
    Fault { code: "cancelled", message: "the turn was cancelled".to_owned() }
}

/// The payload of `permission.request`.
#[derive(SerJson)]
pub struct PermissionRequest {
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    #[nserde(rename = "requestId")]
    pub request_id: String,
    #[nserde(rename = "toolName")]
    pub tool_name: String,
    pub args: Raw,
    pub input: Raw,
    #[nserde(rename = "expiresAt")]
    pub expires_at: String,
}

/// The payload of `permission.resolved`.
#[derive(SerJson)]
pub struct PermissionResolved {
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    #[nserde(rename = "requestId")]
    pub request_id: String,
    pub decision: String,
    pub approved: bool,
    #[nserde(rename = "decidedBy")]
    pub decided_by: String,
}

#[derive(SerJson)]
struct FirstEvent {
    snapshot: Summary,
    messages: Vec<Raw>,
    #[nserde(rename = "sessionId")]
    session_id: String,
    mode: String,
    model: String,
    status: String,
    turns: u64,
    founding: Founding,
}

/// The payload of `session.snapshot`, the first event of a session.
pub fn founding_payload(id: &SessionId, founding: &Founding) -> String {
    let now = clock::rfc3339(clock::now_millis());
    let state = State::founded(founding.clone(), &now);
    let snapshot = Summary::of(id, &state);
    json::text(&FirstEvent {
        messages: founding.messages.clone().unwrap_or_default(),
        session_id: snapshot.session_id.clone(),
        mode: snapshot.mode.clone(),
        model: snapshot.model.clone(),
        status: snapshot.status.clone(),
        turns: 0,
        snapshot,
        founding: founding.clone(),
    })
}

#[derive(SerJson)]
struct TurnQueued {
    #[nserde(rename = "turnId")]
    turn_id: String,
    #[nserde(rename = "writerId")]
    writer_id: String,
    #[nserde(rename = "clientId")]
    client_id: String,
    mode: Option<String>,
    #[nserde(rename = "queueSize")]
    queue_size: u64,
    position: u64,
    metadata: Option<Raw>,
    content: String,
}

/// The payload of `turn.queued`; `before` turns are waiting already.
pub fn queued_payload(turn_id: &str, submission: &Submission, before: u64) -> String {
    json::text(&TurnQueued {
        turn_id: turn_id.to_owned(),
        writer_id: submission.writer_id.clone(),
        client_id: submission.client_id.clone(),
        mode: submission.mode.clone(),
        queue_size: before + 1,
        position: before,
        metadata: submission.metadata.clone(),
        content: submission.content.clone(),
    })
}

#[derive(SerJson)]
struct TurnDone {
    #[nserde(rename = "turnId")]
    turn_id: String,
    #[nserde(rename = "writerId")]
    writer_id: String,
    #[nserde(rename = "clientId")]
    client_id: String,
    stats: Stats,
}

/// The payload of `turn.done`.
pub fn done_payload(head: &TurnHead, stats: &Stats) -> String {
    json::text(&TurnDone {
        turn_id: head.turn_id.clone(),
        writer_id: head.writer_id.clone(),
        client_id: head.client_id.clone(),
        stats: stats.clone(),
    })
}

#[derive(SerJson)]
struct TurnError {
    #[nserde(rename = "turnId")]
    turn_id: String,
    #[nserde(rename = "writerId")]
    writer_id: String,
    #[nserde(rename = "clientId")]
    client_id: String,
    code: String,
    message: String,
}

/// The payload of `turn.error`.
pub fn error_payload(head: &TurnHead, fault: &Fault) -> String {
    json::text(&TurnError {
        turn_id: head.turn_id.clone(),
        writer_id: head.writer_id.clone(),
        client_id: head.client_id.clone(),
        code: fault.code.to_owned(),
        message: fault.message.clone(),
    })
}
