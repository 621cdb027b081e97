//! The replies to operations.

use nanoserde::SerJson;

use crate::json::Raw;

use super::ErrorDetail;

/// The reply to `POST /v3/operations/:id`.
#[derive(SerJson)]
pub struct OperationResult {
    pub ok: bool,
    pub id: String,
    pub safety: Option<String>,
    pub result: Raw,
}

/// The reply to an operation that was not performed.
#[derive(SerJson)]
pub struct OperationFailure {
    pub ok: bool,
    pub id: String,
    /// Missing if there is no such operation.
    pub safety: Option<String>,
    pub error: ErrorDetail,
}
