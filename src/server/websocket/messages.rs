//! The messages of a WebSocket's client, and their answers.

use std::sync::Arc;

use nanoserde::{DeJson, SerJson};

use crate::protocol::socket::{
    CancelAck, CancelledTurns, PermissionAck, PermissionResult, SocketError, SocketMessage,
    SocketPong, SubmitAck,
};
use crate::protocol::{CancelTurns, ResolvePermission, SessionId, SubmitTurn};
use crate::server::session_handlers::{self, error_code};
use crate::session::runtime::Runtime;
use crate::session::session::{Decision, Session, SessionError};
use crate::{clock, json};

/// Acts on a message. Returns the answer, if it has one. `own`: the session of the WebSocket.
pub fn answer(runtime: &Arc<Runtime>, own: Option<&SessionId>, text: &str) -> Option<String> {
    match act(runtime, own, text) {
        Ok(answer) => answer,
        Err(refused) => Some(error(&refused)),
    }
}

/// Returns a message that reports an error.
pub fn error(cause: &SessionError) -> String {
    let (_, code) = error_code(cause);
    let message = cause.to_string();
    json::text(&SocketError { error: message.clone(), code: code.to_owned(), message })
}

fn act(
    runtime: &Arc<Runtime>,
    own: Option<&SessionId>,
    text: &str,
) -> Result<Option<String>, SessionError> {
    let SocketMessage { kind, session_id } = parse(text)?;
    let session = || {
        let id = session_id.as_deref().or(own.map(SessionId::as_str));
        let id = id.ok_or_else(|| SessionError::Invalid("sessionId is missing".to_owned()))?;
        session_handlers::find(runtime, id)
    };
    let answer = match kind.as_deref() {
        Some("hello") => return Ok(None),
        Some("ping") => ack(&SocketPong {
            kind: "pong".to_owned(),
            event: "heartbeat".to_owned(),
            ts: clock::now_millis(),
        }),
        Some("turn.submit") => {
            let turn: SubmitTurn = parse(text)?;
            let (accepted, _start) = session_handlers::submit_turn(runtime, &session()?, &turn)?;
            ack(&SubmitAck {
                kind: "ack".to_owned(),
                action: "turn.submit".to_owned(),
                turn_id: accepted.turn_id,
                queued: accepted.queued,
            })
        }
        Some("turn.cancel") => cancel(runtime, session(), &parse(text)?)?,
        Some("permission.resolve") => resolve(session(), &parse(text)?)?,
        Some(_) => {
            let message = "Invalid WS payload: type is hello, ping, turn.submit, turn.cancel or \
                           permission.resolve";
            return Err(SessionError::Invalid(message.to_owned()));
        }
        None => {
            return Err(SessionError::Invalid("Invalid WS payload: type is missing".to_owned()));
        }
    };
    Ok(Some(answer))
}

fn parse<T: DeJson>(text: &str) -> Result<T, SessionError> {
    let parsed = json::parse(text.as_bytes());
    parsed.map_err(|error| SessionError::Invalid(format!("Invalid JSON payload: {error}")))
}

fn ack(answer: &impl SerJson) -> String {
    json::text(answer)
}

/// Cancels turns. In a session that does not exist there are none.
fn cancel(
    runtime: &Runtime,
    session: Result<Arc<Session>, SessionError>,
    selector: &CancelTurns,
) -> Result<String, SessionError> {
    let cancelled = match session {
        Ok(session) => {
            let cancelled = runtime.cancel(&session, selector)?;
            CancelledTurns {
                cancelled_queued: cancelled.cancelled_queued,
                cancelled_active: cancelled.cancelled_active,
            }
        }
        Err(SessionError::NotFound(_)) => CancelledTurns::default(),
        Err(error) => return Err(error),
    };
    let (kind, action) = ("ack".to_owned(), "turn.cancel".to_owned());
    Ok(ack(&CancelAck { kind, action, cancelled }))
}

/// Resolves a permission. In a session that does not exist, nothing waits for it.
fn resolve(
    session: Result<Arc<Session>, SessionError>,
    request: &ResolvePermission,
) -> Result<String, SessionError> {
    let decision = match session {
        Ok(session) => session_handlers::decide_permission(&session, None, request)?,
        Err(SessionError::NotFound(_)) => Decision::Unknown,
        Err(error) => return Err(error),
    };
    let result = PermissionResult {
        ok: decision == Decision::Won,
        conflict: decision == Decision::TooLate,
        message: session_handlers::decision_error(decision).map(|(_, text)| text.to_owned()),
    };
    let (kind, action) = ("ack".to_owned(), "permission.resolve".to_owned());
    Ok(ack(&PermissionAck { kind, action, result }))
}
