//! The messages of the WebSocket, besides the envelopes of events.

use nanoserde::{DeJson, SerJson};

use super::SessionSummary;

/// The fields that every message of a client may have. The others are those of the same request
/// over HTTP.
#[derive(DeJson)]
pub struct SocketMessage {
    /// `hello`, `ping`, `turn.submit`, `turn.cancel` or `permission.resolve`.
    #[nserde(rename = "type")]
    pub kind: Option<String>,
    /// May be left out if the WebSocket is about one session.
    #[nserde(rename = "sessionId")]
    pub session_id: Option<String>,
}

/// The answer to `ping`. Clients that list events ignore `heartbeat`.
#[derive(SerJson)]
pub struct SocketPong {
    #[nserde(rename = "type")]
    pub kind: String,
    pub event: String,
    /// Unix time in milliseconds.
    pub ts: i64,
}

/// The answer to `turn.submit`: the turn is on the disk.
#[derive(SerJson)]
pub struct SubmitAck {
    #[nserde(rename = "type")]
    pub kind: String,
    pub action: String,
    #[nserde(rename = "turnId")]
    pub turn_id: String,
    /// The number of turns before it that have not started.
    pub queued: u64,
}

/// The answer to `permission.resolve`, also if nothing waits for the decision.
#[derive(SerJson)]
pub struct PermissionAck {
    #[nserde(rename = "type")]
    pub kind: String,
    pub action: String,
    pub result: PermissionResult,
}

/// The effect of a decision.
#[derive(SerJson)]
pub struct PermissionResult {
    pub ok: bool,
    pub conflict: bool,
    pub message: Option<String>,
}

/// The answer to `turn.cancel`.
#[derive(SerJson)]
pub struct CancelAck {
    #[nserde(rename = "type")]
    pub kind: String,
    pub action: String,
    pub cancelled: CancelledTurns,
}

/// The turns that were cancelled.
#[derive(Default, SerJson)]
pub struct CancelledTurns {
    #[nserde(rename = "cancelledQueued")]
    pub cancelled_queued: u64,
    #[nserde(rename = "cancelledActive")]
    pub cancelled_active: bool,
}

/// The answer to a message that has no effect. Clients expect `error` to be a string.
#[derive(SerJson)]
pub struct SocketError {
    pub error: String,
    pub code: String,
    /// The same, under the name that it has over HTTP.
    pub message: String,
}

/// The payload of `session.updated`, which follows the end of a turn.
#[derive(SerJson)]
pub struct SessionUpdated {
    pub snapshot: SessionSummary,
}

/// The message that a session was deleted, for clients that follow all of them. It has no number.
#[derive(SerJson)]
pub struct SessionDeleted {
    pub event: String,
    #[nserde(rename = "sessionId")]
    pub session_id: String,
}

/// The last message about a session. It has no number: it is not an event of the session.
#[derive(SerJson)]
pub struct StreamEnd {
    pub event: String,
    /// `deleted` or `stopping`.
    pub reason: String,
}
