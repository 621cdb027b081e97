//! The v3 API: one type for each request, reply and event. The server, the journals, the client
//! and the commands use the same ones.
//!
//! Field names and their order are part of the protocol, and the journals keep both. A field that
//! is `None` is left out. Nothing here makes decisions.

pub mod event;
pub mod operation;
pub mod overrides;
pub mod socket;

use nanoserde::{DeJson, SerJson};

use crate::json::{self, Lenient, Raw};
use crate::limits;

/// The version of the protocol. A client and a daemon understand each other if it is equal.
pub const PROTOCOL_VERSION: &str = "3.0.0";

/// The reply to `GET /v3/health`. Without a token it has only the first three fields.
#[derive(SerJson, DeJson)]
pub struct Health {
    pub status: String,
    /// [`PROTOCOL_VERSION`] of the daemon.
    pub version: String,
    /// Seconds since the daemon started, including time that the machine was suspended.
    pub uptime: u64,
    #[nserde(rename = "daemonId")]
    pub daemon_id: Option<String>,
    pub contract: Option<Contract>,
    /// The package version of the daemon.
    pub build: Option<String>,
    pub runtime: Option<RuntimeCounts>,
    /// Unix time in milliseconds; only in the stream.
    pub ts: Option<i64>,
}

impl Health {
    /// Returns the number of sessions in memory.
    pub fn sessions(&self) -> u64 {
        self.runtime.as_ref().map_or(0, |runtime| runtime.session_count)
    }
}

/// The reply to `GET /health`, by which older clients recognize a daemon.
#[derive(SerJson)]
pub struct Liveness {
    pub status: String,
    /// [`PROTOCOL_VERSION`] of the daemon.
    pub version: String,
    pub daemon: bool,
}

/// The contract that older clients check before they use a daemon.
#[derive(SerJson, DeJson)]
pub struct Contract {
    pub name: String,
    pub version: u32,
}

/// The current work of the daemon. The last three fields are in the metrics only.
#[derive(Clone, SerJson, DeJson, Default)]
#[nserde(default)]
pub struct RuntimeCounts {
    /// Sessions in memory: those used since the daemon started and within the last half hour.
    #[nserde(rename = "sessionCount")]
    pub session_count: u64,
    #[nserde(rename = "activeTurnCount")]
    pub active_turn_count: u64,
    #[nserde(rename = "queuedTurnCount")]
    pub queued_turn_count: u64,
    #[nserde(rename = "subscriberCount")]
    pub subscriber_count: u64,
    /// Turns submitted since the daemon started.
    #[nserde(rename = "ingressSeq")]
    pub ingress_seq: Option<u64>,
    #[nserde(rename = "toolWorkers")]
    pub tool_workers: Option<ToolWorkers>,
    pub latency: Option<Latency>,
}

/// The reply to `GET /v3/metrics`: the two forms that clients know, in one object.
#[derive(SerJson)]
pub struct Metrics {
    #[nserde(rename = "daemonId")]
    pub daemon_id: String,
    pub runtime: RuntimeCounts,
    /// When it was made: RFC 3339.
    pub ts: String,
    #[nserde(rename = "activeSessions")]
    pub active_sessions: u64,
    #[nserde(rename = "totalTurns")]
    pub total_turns: u64,
    #[nserde(rename = "memoryMB")]
    pub memory_mb: f64,
    #[nserde(rename = "toolWorkers")]
    pub tool_workers: ToolSlots,
}

/// Tool workers as the first form names them.
#[derive(Clone, SerJson, DeJson, Default)]
pub struct ToolWorkers {
    pub workers: u64,
    pub busy: u64,
    pub queued: u64,
}

/// Tool workers as the second form names them.
#[derive(SerJson, Default)]
pub struct ToolSlots {
    pub active: u64,
    pub max: u64,
    pub queued: u64,
}

/// How long turns take.
#[derive(Clone, SerJson, DeJson, Default)]
pub struct Latency {
    #[nserde(rename = "p50Ms")]
    pub p50_ms: u64,
    #[nserde(rename = "p99Ms")]
    pub p99_ms: u64,
    /// The number of turns measured. If it is 0, the other two mean nothing.
    pub samples: u64,
}

/// The body of `POST /v3/shutdown`.
#[derive(SerJson, DeJson, Default)]
pub struct Shutdown {
    /// Refuse if a turn is in progress.
    #[nserde(rename = "ifIdle")]
    pub if_idle: Option<bool>,
}

/// The reply to `POST /v3/shutdown`.
#[derive(SerJson)]
pub struct ShutdownAccepted {
    pub ok: bool,
}

/// The id of a session: `[A-Za-z0-9_-]{1,64}`, so that it can be part of a path and of a URL
/// unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(String);

impl SessionId {
    /// Returns the id in `text` if it is one.
    pub fn parse(text: &str) -> Option<SessionId> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let is_id = (1..=limits::ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed);
        is_id.then(|| SessionId(text.to_owned()))
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The body of `POST /v3/sessions`.
#[derive(Default, DeJson, SerJson)]
pub struct CreateSession {
    /// Creating a session again with the same id returns the session that exists.
    #[nserde(rename = "sessionId")]
    pub session_id: Option<String>,
    pub title: Option<String>,
    pub model: Option<String>,
    pub mode: Option<String>,
    #[nserde(rename = "systemPrompt")]
    pub system_prompt: Option<String>,
    /// See [`Metadata`].
    pub metadata: Option<Raw>,
    /// A conversation that began elsewhere: [`ChatMessage`]s.
    pub messages: Option<Vec<Raw>>,
}

/// The part of a session's metadata that the daemon reads.
#[derive(DeJson, SerJson)]
pub struct Metadata {
    pub workspace: Option<String>,
}

/// The part that the daemon reads of a message in the form of OpenAI's chat messages.
#[derive(DeJson)]
pub struct ChatMessage {
    pub role: String,
    pub content: Option<Lenient>,
}

/// The summary of a session; the reply to `POST /v3/sessions` and to `GET /v3/sessions/:id`.
#[derive(Clone, Debug, Default, DeJson, SerJson)]
#[nserde(default)]
pub struct SessionSummary {
    #[nserde(rename = "sessionId")]
    pub session_id: String,
    /// If empty, the first model that the server offers.
    pub model: String,
    /// The model that answered last.
    #[nserde(rename = "lastModel")]
    pub last_model: Option<String>,
    pub title: Option<String>,
    #[nserde(rename = "createdAt")]
    pub created_at: String,
    #[nserde(rename = "updatedAt")]
    pub updated_at: String,
    #[nserde(rename = "lastActivityAt")]
    pub last_activity_at: String,
    #[nserde(rename = "activeTurnId")]
    pub active_turn_id: Option<String>,
    #[nserde(rename = "queuedTurns")]
    pub queued_turns: u64,
    #[nserde(rename = "toolCallCount")]
    pub tool_call_count: u64,
    #[nserde(rename = "writerCount")]
    pub writer_count: u64,
    pub mode: String,
    /// `idle`, `running` or `queued`.
    pub status: String,
    pub turns: u64,
    /// An absolute path, or a label.
    pub workspace: Option<String>,
    /// The directory of the label.
    pub directory: Option<String>,
    /// The number of its last event.
    pub seq: u64,
    /// Only in the reply to `GET /v3/sessions/:id`.
    pub messages: Option<Vec<Raw>>,
}

impl SessionSummary {
    /// Returns the directory that tools work in.
    pub fn working_directory(&self) -> Option<&str> {
        self.directory.as_deref().or(self.workspace.as_deref())
    }
}

/// The reply to `GET /v3/sessions`.
#[derive(SerJson)]
pub struct SessionPage {
    pub sessions: Vec<SessionSummary>,
    /// Where the next page begins; `null` if this one is the last.
    #[nserde(serialize_none_as_null)]
    pub next: Option<String>,
}

/// The body of `POST /v3/sessions/:id/turns`.
#[derive(Clone, Default, DeJson, SerJson)]
pub struct SubmitTurn {
    /// Submitting a turn again with the same id has no effect.
    #[nserde(rename = "turnId")]
    pub turn_id: Option<String>,
    #[nserde(rename = "clientId")]
    pub client_id: Option<String>,
    #[nserde(rename = "writerId")]
    pub writer_id: Option<String>,
    pub content: String,
    pub mode: Option<String>,
    /// The turn is refused if the session has later events than this one.
    #[nserde(rename = "lastSeenSeq")]
    pub last_seen_seq: Option<u64>,
    pub metadata: Option<Raw>,
    pub options: Option<TurnOptions>,
    /// See [`overrides::Overrides`].
    pub overrides: Option<Raw>,
}

/// The mask of a caller that sends none.
const UMASK_DEFAULT: u32 = 0o022;

/// Settings of one turn. They are held in memory only: they are never written to the journal or the
/// log.
#[derive(Clone, Default, DeJson, SerJson)]
pub struct TurnOptions {
    pub endpoint: Option<Endpoint>,
    /// Another model of the server than the session's.
    pub model: Option<String>,
    /// For the commands that the turn runs: the caller's, not the daemon's.
    pub environment: Option<Vec<Variable>>,
    /// The name of a [`Grant`].
    pub grant: Option<String>,
    /// Whether the caller can answer permission requests. A caller that does not say can if it
    /// follows the session.
    pub attended: Option<bool>,
    /// The caller's file mode creation mask in octal, for what the turn creates.
    pub umask: Option<String>,
}

impl TurnOptions {
    /// Returns the grant, or `None` if there is none of this name.
    pub fn grant(&self) -> Option<Grant> {
        self.grant.as_deref().map_or(Some(Grant::default()), Grant::named)
    }

    /// Returns the mask, or `None` if the text is not one.
    pub fn umask(&self) -> Option<u32> {
        let Some(text) = &self.umask else { return Some(UMASK_DEFAULT) };
        let is_octal = !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        u32::from_str_radix(text, 8).ok().filter(|mask| is_octal && *mask <= 0o777)
    }
}

/// The model server to ask.
#[derive(Clone, Default, DeJson, SerJson)]
pub struct Endpoint {
    /// `http://host:port` or `https://host`, with or without a path.
    pub url: String,
    /// Where the setting came from, for messages: `OPTA_MODEL_URL`, `found on port 1234`.
    pub source: String,
    pub key: Option<Key>,
    /// If `None`, the server's first model that is not an embedder.
    pub model: Option<String>,
    /// `auto`, `required` or `required-first`.
    #[nserde(rename = "toolChoice")]
    pub tool_choice: Option<String>,
    /// The limit of an answer. If `None`, the server's.
    #[nserde(rename = "maxTokens")]
    pub max_tokens: Option<u64>,
    /// The time until the first word of an answer.
    #[nserde(rename = "firstWordSeconds")]
    pub first_word_seconds: Option<u64>,
    /// The time between two parts of an answer.
    #[nserde(rename = "silenceSeconds")]
    pub silence_seconds: Option<u64>,
    /// The proxy for an `https://` server, which may contain a password.
    pub proxy: Option<Key>,
    /// The hosts that are reached without it, separated by commas.
    #[nserde(rename = "noProxy")]
    pub no_proxy: Option<String>,
    /// The certificates that an `https://` server may have, instead of the system's.
    #[nserde(rename = "caFile")]
    pub ca_file: Option<String>,
}

impl Endpoint {
    /// Returns whether no setting names the server: opta found it itself.
    pub fn was_found(&self) -> bool {
        self.source.starts_with("found")
    }
}

/// A model server's API key, or another secret. `Debug` does not show it.
#[derive(Clone, DeJson, SerJson)]
#[nserde(transparent)]
pub struct Key(pub String);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key(…)")
    }
}

/// An environment variable of the caller.
#[derive(Clone, DeJson, SerJson)]
pub struct Variable {
    pub name: String,
    pub value: String,
}

/// What a turn may do without a permission request, beyond the user's settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grant {
    /// Less than nothing: what the settings allow needs a permission request, unless it only reads.
    Reads,
    /// Nothing.
    #[default]
    Settings,
    /// Write and edit files.
    Edits,
    /// Everything.
    All,
}

impl Grant {
    /// Returns the grant of this name.
    pub fn named(name: &str) -> Option<Grant> {
        [Grant::Reads, Grant::Settings, Grant::Edits, Grant::All]
            .into_iter()
            .find(|grant| grant.name() == name)
    }

    /// Returns its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Grant::Reads => "reads",
            Grant::Settings => "settings",
            Grant::Edits => "edits",
            Grant::All => "all",
        }
    }
}

/// The reply to a submitted turn, which is on the disk.
#[derive(SerJson, DeJson)]
pub struct TurnAccepted {
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    pub status: String,
    /// The number of turns before it that have not started.
    pub queued: u64,
    /// The number of its `turn.queued` event.
    pub seq: u64,
    /// Damaged records of the session, which are omitted from its conversation.
    #[nserde(rename = "damagedRecords")]
    pub damaged_records: Option<u64>,
    /// Bytes that are missing at the end of its journal.
    #[nserde(rename = "missingBytes")]
    pub missing_bytes: Option<u64>,
}

/// The body of `POST /v3/sessions/:id/cancel`. Without a turn or a writer, the active turn is
/// meant.
#[derive(DeJson, SerJson, Default)]
pub struct CancelTurns {
    #[nserde(rename = "turnId")]
    pub turn_id: Option<String>,
    #[nserde(rename = "writerId")]
    pub writer_id: Option<String>,
}

/// The reply to `POST /v3/sessions/:id/cancel`. `cancelled` is a number: older clients ignore a
/// boolean there.
#[derive(SerJson)]
pub struct TurnsCancelled {
    pub ok: bool,
    pub cancelled: u64,
    #[nserde(rename = "cancelledQueued")]
    pub cancelled_queued: u64,
    #[nserde(rename = "cancelledActive")]
    pub cancelled_active: bool,
}

impl TurnsCancelled {
    /// Returns the reply for `queued` turns that had not started and, if `active`, the one that
    /// had.
    pub fn new(queued: u64, active: bool) -> TurnsCancelled {
        TurnsCancelled {
            ok: true,
            cancelled: queued + u64::from(active),
            cancelled_queued: queued,
            cancelled_active: active,
        }
    }
}

/// The body of `POST /v3/sessions/:id/permissions/:requestId`.
#[derive(DeJson, SerJson, Default)]
pub struct ResolvePermission {
    /// Needed if it is not in the path.
    #[nserde(rename = "requestId")]
    pub request_id: Option<String>,
    /// `allow` or `deny`.
    pub decision: Option<String>,
    /// The same as a boolean.
    pub approved: Option<bool>,
    #[nserde(rename = "decidedBy")]
    pub decided_by: Option<String>,
}

/// The reply to a decision about a permission.
#[derive(SerJson)]
pub struct PermissionReply {
    pub ok: bool,
    pub conflict: bool,
    pub resolved: bool,
    pub message: Option<String>,
    pub error: Option<ErrorDetail>,
}

/// The body of every reply that reports an error.
#[derive(SerJson, DeJson)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

/// An error: `code` for programs, `message` for people.
#[derive(Clone, SerJson, DeJson)]
pub struct ErrorDetail {
    pub code: String,
    pub message: String,
}

impl ErrorDetail {
    /// Returns an error with this code and message.
    pub fn new(code: &str, message: &str) -> ErrorDetail {
        ErrorDetail { code: code.to_owned(), message: message.to_owned() }
    }
}

/// Returns the body of a reply that reports an error.
pub fn error_body(code: &str, message: &str) -> String {
    json::text(&ErrorBody { error: ErrorDetail::new(code, message) })
}
#[cfg(test)]
mod tests;
