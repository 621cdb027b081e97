//! What operations work with, and how they fail.

use std::sync::Arc;

use crate::error::{Error, Kind};
use crate::paths::Paths;
use crate::session::runtime::Runtime;
use crate::session::session::SessionError;

/// What operations work with.
pub struct Host<'d> {
    pub paths: &'d Paths,
    pub sessions: &'d Arc<Runtime>,
    /// Whether the client still waits for the result.
    pub is_awaited: &'d dyn Fn() -> bool,
}

/// Why an operation was not performed.
pub struct Refusal {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
}

impl Refusal {
    /// Returns a refusal with this status and code.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { status, code, message: message.into() }
    }

    /// Returns the refusal of an input that does not fit.
    pub fn invalid(message: impl Into<String>) -> Refusal {
        Refusal::new(400, "validation_error", message)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let (status, code) = match error.kind() {
            Kind::SessionNotFound => (404, "not_found"),
            Kind::AmbiguousId | Kind::InvalidConfig | Kind::Usage => (400, "validation_error"),
            Kind::Busy => (409, "busy"),
            _ => (500, "execution_failed"),
        };
        Refusal::new(status, code, error.to_string())
    }
}

impl From<SessionError> for Refusal {
    fn from(error: SessionError) -> Refusal {
        let (status, code) = match &error {
            SessionError::NotFound(_) => (404, "not_found"),
            SessionError::Invalid(_) => (400, "validation_error"),
            SessionError::Busy(_) | SessionError::Conflict(_) => (409, "busy"),
            _ => (500, "execution_failed"),
        };
        Refusal::new(status, code, error.to_string())
    }
}
