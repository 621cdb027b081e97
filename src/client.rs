//! The command line's view of a running daemon: one request, one deadline; and a session's events.
//!
//! The token goes only to the port that a state file names, and callers hold a state file only
//! while the lock says that its daemon lives.

use std::io;
use std::time::Duration;

use crate::error::{Error, Kind, reason};
use crate::http::{EventStream, Response, StreamResponse};
use crate::protocol::SessionId;
use crate::protocol::{
    CancelTurns, CreateSession, ErrorBody, Health, ResolvePermission, Shutdown, SubmitTurn,
    TurnAccepted,
};
use crate::session::store::no_session;
use crate::state::DaemonInfo;
use crate::{http, json, limits};

/// How a daemon may fail to answer.
pub enum Silence {
    /// Nothing listens at its port.
    Refused,
    /// It has not answered in time.
    Late,
    /// What answers is not the daemon of this state file.
    Stranger,
}

/// Why a call has come to nothing.
pub enum Failure {
    /// The daemon has died, or its place was taken by another: that one may be asked.
    Lost(Error),
    Final(Error),
}

/// Asks a daemon for its health, within `limit`.
pub fn health(info: &DaemonInfo, limit: Duration) -> Result<Health, Silence> {
    let request = request("GET", "/v3/health", info, "");
    match http::call(info.port, &request, limit, limits::REPLY_BYTES_MAX) {
        Ok(reply) if reply.status == 200 => match json::parse::<Health>(&reply.body) {
            Ok(health) if health.daemon_id.as_ref() == Some(&info.daemon_id) => Ok(health),
            _ => Err(Silence::Stranger),
        },
        Ok(_) => Err(Silence::Stranger),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::TimedOut => Silence::Late,
            io::ErrorKind::InvalidData => Silence::Stranger,
            // Refused, reset, cut short: it is coming or going.
            _ => Silence::Refused,
        }),
    }
}

/// Asks a daemon to leave if it is idle. It decides and acts in one step.
///
/// # Errors
/// [`Kind::Busy`] if it is not idle; then nothing has changed.
pub fn shutdown_if_idle(info: &DaemonInfo) -> Result<(), Error> {
    const WHAT: &str = "ask the daemon to stop";
    let body = json::text(&Shutdown { if_idle: Some(true) });
    let request = request("POST", "/v3/shutdown", info, &body);
    let reply = http::call(info.port, &request, limits::CALL_MAX, limits::REPLY_BYTES_MAX);
    match reply {
        Ok(reply) if reply.status == 202 => Ok(()),
        Ok(reply) if reply.status == 409 => {
            let reason = "a turn is in progress";
            Err(Error::cannot(Kind::Busy, "stop the daemon", reason))
        }
        Ok(reply) => Err(bad_reply(WHAT, format!("it answered {}", reply.status))),
        Err(cause) => Err(bad_reply(WHAT, reason(&cause))),
    }
}

/// Deletes a session for ever; `false` if there was none.
///
/// # Errors
/// [`Kind::Busy`] while a turn of it is in progress.
pub fn delete_session(info: &DaemonInfo, id: &SessionId) -> Result<bool, Failure> {
    let target = format!("/v3/sessions/{}", id.as_str());
    let reply = call(info, &request("DELETE", &target, info, ""), "delete the session")?;
    match reply.status {
        204 => Ok(true),
        404 => Ok(false),
        409 => {
            let action = format!("delete the session {}", id.as_str());
            Err(Failure::Final(Error::cannot(Kind::Busy, action, "a turn of it is in progress")))
        }
        _ => Err(Failure::Final(refusal("delete the session", &reply))),
    }
}

/// Makes a session; one that has this id already stays as it is.
pub fn create_session(info: &DaemonInfo, session: &CreateSession) -> Result<(), Failure> {
    const WHAT: &str = "make a session";
    let body = json::text(session);
    let reply = call(info, &request("POST", "/v3/sessions", info, &body), WHAT)?;
    expect(201, &reply, WHAT)
}

/// Submits a turn; the same turn however often it is submitted.
///
/// # Errors
/// [`Kind::SessionNotFound`].
pub fn submit_turn(
    info: &DaemonInfo,
    id: &SessionId,
    turn: &SubmitTurn,
) -> Result<TurnAccepted, Failure> {
    const WHAT: &str = "submit the turn";
    let (target, body) = (format!("/v3/sessions/{}/turns", id.as_str()), json::text(turn));
    let reply = call(info, &request("POST", &target, info, &body), WHAT)?;
    if reply.status == 404 {
        return Err(Failure::Final(no_session(id.as_str())));
    }
    expect(202, &reply, WHAT)?;
    let accepted = json::parse(&reply.body);
    accepted.map_err(|problem| Failure::Final(bad_reply(WHAT, problem.to_string())))
}

/// Cancels a turn, if it has not ended.
pub fn cancel_turn(info: &DaemonInfo, id: &SessionId, turn_id: &str) -> Result<(), Failure> {
    const WHAT: &str = "cancel the turn";
    let target = format!("/v3/sessions/{}/cancel", id.as_str());
    let body = json::text(&CancelTurns { turn_id: Some(turn_id.to_owned()), writer_id: None });
    expect(200, &call(info, &request("POST", &target, info, &body), WHAT)?, WHAT)
}

/// Decides what a turn waits for; `false` if somebody else has, or nothing waits any more.
pub fn decide(
    info: &DaemonInfo,
    id: &SessionId,
    request_id: &str,
    decision: &ResolvePermission,
) -> Result<bool, Failure> {
    const WHAT: &str = "answer for the tool";
    if SessionId::parse(request_id).is_none() {
        let because = "its name cannot stand in a path".to_owned();
        return Err(Failure::Final(bad_reply(WHAT, because)));
    }
    let target = format!("/v3/sessions/{}/permissions/{request_id}", id.as_str());
    let body = json::text(decision);
    let reply = call(info, &request("POST", &target, info, &body), WHAT)?;
    if matches!(reply.status, 404 | 409) {
        return Ok(false);
    }
    expect(200, &reply, WHAT).map(|()| true)
}

/// The events of a session behind number `after`, those to come included.
pub fn follow(
    info: &DaemonInfo,
    id: &SessionId,
    after: u64,
    answers: bool,
) -> Result<EventStream, Failure> {
    const WHAT: &str = "follow the session";
    let (id_text, answers) = (id.as_str(), u8::from(answers));
    let target = format!("/v3/sse/events?sessionId={id_text}&afterSeq={after}&answers={answers}");
    let asked = http::Request { accept: "text/event-stream", ..request("GET", &target, info, "") };
    match http::open_stream(info.port, &asked, limits::CALL_MAX, limits::EVENT_BYTES_MAX) {
        Ok(StreamResponse::Stream(stream)) => Ok(stream),
        Ok(StreamResponse::Refused(reply)) if reply.status == 404 => {
            Err(Failure::Final(no_session(id.as_str())))
        }
        Ok(StreamResponse::Refused(reply)) if reply.status == 401 => {
            Err(Failure::Lost(refusal(WHAT, &reply)))
        }
        Ok(StreamResponse::Refused(reply)) => Err(Failure::Final(refusal(WHAT, &reply))),
        Err(error) => Err(failure(info, WHAT, &error)),
    }
}

fn expect(status: u16, reply: &Response, what: &'static str) -> Result<(), Failure> {
    match reply.status {
        found if found == status => Ok(()),
        // It is leaving; the one after it may be asked.
        503 => Err(Failure::Lost(refusal(what, reply))),
        _ => Err(Failure::Final(refusal(what, reply))),
    }
}

/// One request within one deadline.
fn call(
    info: &DaemonInfo,
    asked: &http::Request<'_>,
    what: &'static str,
) -> Result<Response, Failure> {
    match http::call(info.port, asked, limits::CALL_MAX, limits::REPLY_BYTES_MAX) {
        Ok(reply) if reply.status == 401 => Err(Failure::Lost(refusal(what, &reply))),
        Ok(reply) => Ok(reply),
        Err(error) => Err(failure(info, what, &error)),
    }
}

fn failure(info: &DaemonInfo, what: &'static str, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::TimedOut => Failure::Final(unresponsive(Some(info.pid), limits::CALL_MAX)),
        io::ErrorKind::InvalidData => Failure::Final(bad_reply(what, reason(error))),
        // Refused, reset, cut short: it is coming or going.
        _ => Failure::Lost(bad_reply(what, reason(error))),
    }
}

/// A refusal in the daemon's own words, if it has any.
fn refusal(what: &'static str, reply: &Response) -> Error {
    let message = json::parse::<ErrorBody>(&reply.body).map(|body| body.error.message);
    let because = message.unwrap_or_else(|_none| format!("it answered {}", reply.status));
    bad_reply(what, because)
}

/// The failure of a request that the daemon answered with something else than this version expects.
pub fn bad_reply(action: &str, reason: impl Into<String>) -> Error {
    Error::cannot(Kind::BadReply, action, reason)
}

/// The failure to reach a daemon that holds the lock and does not answer.
pub fn unresponsive(pid: Option<i32>, waited: Duration) -> Error {
    let reason = format!("it is alive, no answer in {}s", waited.as_secs());
    unreachable(pid, reason)
        .with_next_step("to end it and start afresh: opta daemon restart --force")
}

/// The failure to reach a daemon that runs and whose state file, without which it cannot be asked,
/// is lost.
pub fn state_lost(pid: Option<i32>) -> Error {
    unreachable(pid, "it runs, and its state.json is lost")
        .with_next_step("to have it written again: opta daemon start")
}

fn unreachable(pid: Option<i32>, reason: impl Into<String>) -> Error {
    let pid = pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
    Error::cannot(Kind::Unresponsive, format!("reach the daemon{pid}"), reason)
}

fn request<'a>(
    method: &'static str,
    target: &'a str,
    info: &'a DaemonInfo,
    body: &'a str,
) -> http::Request<'a> {
    http::Request {
        method,
        authority: format!("127.0.0.1:{}", info.port),
        target,
        bearer: Some(info.token.secret()),
        accept: "application/json",
        body,
    }
}
