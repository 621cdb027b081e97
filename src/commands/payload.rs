//! What the events of a turn carry, as far as a command shows it.

use nanoserde::DeJson;

use crate::json::Raw;

/// Which turn an event belongs to.
#[derive(DeJson)]
pub struct Of {
    #[nserde(rename = "turnId")]
    pub turn_id: Option<String>,
}

/// `turn.token`
#[derive(DeJson)]
pub struct Text {
    pub text: String,
}

/// `tool.start`
#[derive(DeJson)]
pub struct ToolStart {
    pub id: String,
    pub name: String,
    pub args: String,
}

/// `tool.end`
#[derive(DeJson)]
pub struct ToolEnd {
    pub id: String,
    #[nserde(rename = "durationMs")]
    pub duration_ms: Option<u64>,
    pub success: Option<bool>,
}

/// `permission.request`
#[derive(DeJson)]
pub struct Request {
    #[nserde(rename = "requestId")]
    pub request_id: String,
    #[nserde(rename = "toolName")]
    pub tool: String,
    pub args: Option<Raw>,
}

/// `permission.resolved`
#[derive(DeJson)]
pub struct Resolved {
    #[nserde(rename = "requestId")]
    pub request_id: String,
    pub decision: String,
}

/// `turn.done`
#[derive(DeJson)]
pub struct Stats {
    pub stats: Raw,
}

/// The figures of `turn.done`, as far as they say that something is wrong.
#[derive(DeJson)]
pub struct Figures {
    #[nserde(rename = "finishReason")]
    pub finish_reason: Option<String>,
}
