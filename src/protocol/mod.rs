//! The wire: what requests and replies of the v3 API hold. Both ends use it.
//!
//! Field names are the protocol's; a field that is `None` is left out. Nothing here decides
//! anything.

use nanoserde::{DeJson, SerJson};

use crate::json;

/// The version of the protocol, not of the package: the two ends understand each other if it is
/// equal.
pub const PROTOCOL_VERSION: &str = "3.0.0";

/// `GET /v3/health`. Without a token, the first three fields and nothing else.
#[derive(SerJson, DeJson)]
pub struct Health {
    pub status: String,
    pub version: String,
    /// Whole seconds, those included in which the machine slept.
    pub uptime: u64,
    #[nserde(rename = "daemonId")]
    pub daemon_id: Option<String>,
    pub contract: Option<Contract>,
    /// The package version of the daemon.
    pub build: Option<String>,
    pub runtime: Option<Runtime>,
}

/// What older clients compare before they trust a daemon.
#[derive(SerJson, DeJson)]
pub struct Contract {
    pub name: String,
    pub version: u32,
}

/// What the daemon is busy with.
#[derive(SerJson, DeJson, Default)]
pub struct Runtime {
    #[nserde(rename = "sessionCount")]
    pub session_count: u64,
    #[nserde(rename = "activeTurnCount")]
    pub active_turn_count: u64,
    #[nserde(rename = "queuedTurnCount")]
    pub queued_turn_count: u64,
    #[nserde(rename = "subscriberCount")]
    pub subscriber_count: u64,
}

/// `GET /v3/metrics`: the two forms that clients know, in one object.
#[derive(SerJson)]
pub struct Metrics {
    #[nserde(rename = "daemonId")]
    pub daemon_id: String,
    pub runtime: RuntimeMetrics,
    /// Unix time in milliseconds.
    pub ts: i64,
    #[nserde(rename = "activeSessions")]
    pub active_sessions: u64,
    #[nserde(rename = "totalTurns")]
    pub total_turns: u64,
    #[nserde(rename = "memoryMB")]
    pub memory_mb: f64,
    #[nserde(rename = "toolWorkers")]
    pub tool_workers: ToolSlots,
}

/// [`Runtime`] and more, as the metrics show it.
#[derive(SerJson, Default)]
pub struct RuntimeMetrics {
    #[nserde(rename = "sessionCount")]
    pub session_count: u64,
    #[nserde(rename = "activeTurnCount")]
    pub active_turn_count: u64,
    #[nserde(rename = "queuedTurnCount")]
    pub queued_turn_count: u64,
    #[nserde(rename = "subscriberCount")]
    pub subscriber_count: u64,
    #[nserde(rename = "ingressSeq")]
    pub ingress_seq: u64,
    #[nserde(rename = "toolWorkers")]
    pub tool_workers: ToolWorkers,
    pub latency: Latency,
}

/// Tool workers in the words of the first form.
#[derive(SerJson, Default)]
pub struct ToolWorkers {
    pub workers: u64,
    pub busy: u64,
    pub queued: u64,
}

/// Tool workers in the words of the second form.
#[derive(SerJson, Default)]
pub struct ToolSlots {
    pub active: u64,
    pub max: u64,
    pub queued: u64,
}

/// How long turns take.
#[derive(SerJson, Default)]
pub struct Latency {
    #[nserde(rename = "p50Ms")]
    pub p50_ms: u64,
    #[nserde(rename = "p99Ms")]
    pub p99_ms: u64,
    /// How many turns the two figures rest on; with none they say nothing.
    pub samples: u64,
}

/// The body of `POST /v3/shutdown`.
#[derive(DeJson, Default)]
pub struct Shutdown {
    #[nserde(rename = "ifIdle")]
    pub if_idle: Option<bool>,
}

/// The body of `POST /v3/sessions`, as the command line makes it.
#[derive(SerJson)]
pub struct NewSession {
    /// The same id is the same session, however often it is sent.
    #[nserde(rename = "sessionId")]
    pub session_id: String,
    pub model: Option<String>,
    pub metadata: Workplace,
}

/// Where a session works.
#[derive(SerJson)]
pub struct Workplace {
    pub workspace: String,
}

/// The body of `POST /v3/sessions/:id/turns`, as the command line makes it.
#[derive(SerJson)]
pub struct NewTurn {
    /// The same id is the same turn, however often it is sent.
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    #[nserde(rename = "clientId")]
    pub client_id: String,
    #[nserde(rename = "writerId")]
    pub writer_id: String,
    pub content: String,
    pub options: TurnOptions,
}

/// The body of `POST /v3/sessions/:id/cancel`, as the command line makes it.
#[derive(SerJson)]
pub struct CancelTurn {
    #[nserde(rename = "turnId")]
    pub turn_id: String,
}

/// The body of `POST /v3/sessions/:id/permissions/:requestId`, as the command line makes it.
#[derive(SerJson)]
pub struct Decide {
    /// `allow` or `deny`.
    pub decision: String,
    #[nserde(rename = "decidedBy")]
    pub decided_by: String,
}

/// An event as every channel carries it.
#[derive(DeJson)]
pub struct Envelope {
    pub event: String,
    pub seq: u64,
    pub payload: json::Raw,
}

/// `options` of a submitted turn: what holds for this turn alone and is never written down.
#[derive(Clone, DeJson, SerJson, Default)]
pub struct TurnOptions {
    pub endpoint: Option<Endpoint>,
    pub environment: Option<Vec<Variable>>,
    /// `settings`, `edits` or `all`.
    pub grant: Option<String>,
    pub attended: Option<bool>,
}

/// Where a turn's model is asked.
#[derive(Clone, DeJson, SerJson)]
pub struct Endpoint {
    pub url: String,
    pub source: String,
    pub key: Option<String>,
    pub model: Option<String>,
    #[nserde(rename = "toolChoice")]
    pub tool_choice: Option<String>,
}

/// A variable of the caller's environment.
#[derive(Clone, DeJson, SerJson)]
pub struct Variable {
    pub name: String,
    pub value: String,
}

/// A turn that is on the disk.
#[derive(SerJson, DeJson)]
pub struct Accepted {
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    pub status: String,
    /// Turns before it that have not begun.
    pub queued: u64,
    /// The number of its `turn.queued`.
    pub seq: u64,
}

/// What was cancelled. `cancelled` is a number: older clients take a boolean for none.
#[derive(SerJson)]
pub struct Cancelled {
    pub ok: bool,
    pub cancelled: u64,
    #[nserde(rename = "cancelledQueued")]
    pub cancelled_queued: u64,
    #[nserde(rename = "cancelledActive")]
    pub cancelled_active: bool,
}

/// What came of a decision.
#[derive(SerJson)]
pub struct Decided {
    pub ok: bool,
    pub conflict: bool,
    pub resolved: bool,
    pub message: Option<String>,
    pub error: Option<Fault>,
}

/// An answer that only says yes.
#[derive(SerJson)]
pub struct Done {
    pub ok: bool,
}

/// The body of every answer that says no.
#[derive(SerJson, DeJson)]
pub struct Problem {
    pub error: Fault,
}

/// What is wrong: `code` for programs, `message` for people.
#[derive(SerJson, DeJson)]
pub struct Fault {
    pub code: String,
    pub message: String,
}

/// The body of an answer that says no.
pub fn problem(code: &str, message: &str) -> String {
    json::text(&Problem { error: Fault { code: code.to_owned(), message: message.to_owned() } })
}
