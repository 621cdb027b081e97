//! The command line's requests to a running daemon: one request, one deadline; and the events of a
//! session.
//!
//! The token is sent only to the port that a state file names, in the network namespace that it
//! names, and callers hold a state file only while the lock says that its daemon lives.

use std::io;
use std::time::Duration;

use crate::error::{Error, Kind, reason};
use crate::http::{EventStream, Request, Response, StreamResponse};
use crate::protocol::{
    CancelTurns, CreateSession, ErrorBody, Health, ResolvePermission, SessionId, Shutdown,
    SubmitTurn, TurnAccepted,
};
use crate::session::store::no_session;
use crate::state::{DaemonInfo, Untrusted};
use crate::{http, json, limits};

/// The reason why a daemon that holds its lock does not report its health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoHealth {
    /// The state file, which names its port, is missing, damaged or not its own. It writes the file
    /// again if it is signaled.
    StateLost,
    /// Nothing listens on its port, or the connection was closed: it is starting or stopping.
    Unreachable,
    /// The system refused to connect.
    Refused(String),
    /// It was not asked.
    Untrusted(Untrusted),
    TimedOut,
    /// It answered that it cannot answer now.
    Busy(String),
    /// What answers is not the daemon of the state file.
    NotOurDaemon,
}

impl NoHealth {
    /// Describes the reason: what follows "it is alive," or stands in the line of a status.
    pub fn reason(&self, port: Option<u16>, waited: Duration) -> String {
        let on = port.map_or("its port".to_owned(), |port| format!("127.0.0.1:{port}"));
        match self {
            NoHealth::StateLost => "its state.json is lost".to_owned(),
            NoHealth::Unreachable => format!("nothing listens on {on}"),
            NoHealth::Refused(cause) => format!("cannot connect to {on}: {cause}"),
            NoHealth::Untrusted(untrusted) => match untrusted {
                Untrusted::OtherMachine => "it runs on another machine".to_owned(),
                Untrusted::OtherNetwork => "it listens in another network namespace".to_owned(),
                Untrusted::OtherUser(uid) => format!("{on} is a socket of another user, {uid}"),
                Untrusted::Unknown => format!("the system does not tell whose socket {on} is"),
            },
            NoHealth::TimedOut => format!("no answer in {}s", waited.as_secs()),
            NoHealth::Busy(message) => format!("it answered: {message}"),
            NoHealth::NotOurDaemon => format!("what answers on {on} is not this daemon"),
        }
    }

    /// Returns the obvious next step.
    pub fn next_step(&self) -> &'static str {
        match self {
            NoHealth::StateLost | NoHealth::NotOurDaemon => {
                "to have it written again: opta daemon start"
            }
            NoHealth::Untrusted(_) => {
                "run opta where it runs, or give this place a home of its own: OPTA_HOME"
            }
            NoHealth::Refused(_) => "look at the loopback interface and at packet filters",
            NoHealth::Busy(_) => "try again; if it stays busy: opta daemon restart",
            NoHealth::Unreachable | NoHealth::TimedOut => {
                "to end it and start afresh: opta daemon restart --force"
            }
        }
    }
}

/// The reason why a request failed.
pub enum Failure {
    /// The daemon died, is stopping or was replaced: the request may be sent to the next one.
    Lost(Error),
    Final(Error),
}

/// Asks a daemon for its health, within `limit`.
pub fn health(info: &DaemonInfo, limit: Duration) -> Result<Health, NoHealth> {
    info.check_network().map_err(NoHealth::Untrusted)?;
    let request = request(info, "GET", "/v3/health", "");
    let response = http::call(info.port, &request, limit, limits::REPLY_BYTES_MAX);
    let response = response.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => NoHealth::TimedOut,
        io::ErrorKind::InvalidData => NoHealth::NotOurDaemon,
        _ if is_ending(&error) => NoHealth::Unreachable,
        _ => NoHealth::Refused(reason(&error)),
    })?;
    if response.status == 503
        && let Ok(body) = json::parse::<ErrorBody>(&response.body)
    {
        return Err(NoHealth::Busy(body.error.message));
    }
    let health = json::parse(&response.body).ok().filter(|health: &Health| {
        response.status == 200 && health.daemon_id.as_ref() == Some(&info.daemon_id)
    });
    health.ok_or(NoHealth::NotOurDaemon)
}

/// Returns whether a daemon that is starting or stopping causes this error.
fn is_ending(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, NotConnected,
        UnexpectedEof,
    };
    matches!(
        error.kind(),
        ConnectionRefused
            | ConnectionReset
            | ConnectionAborted
            | BrokenPipe
            | NotConnected
            | UnexpectedEof
    )
}

/// Asks a daemon to stop, whatever it does.
pub fn shutdown(info: &DaemonInfo) -> Result<(), Error> {
    request_shutdown(info, false)
}

/// Asks a daemon to stop if it is idle. It decides and acts in one step.
///
/// # Errors
/// [`Kind::Busy`] if it is not idle; nothing is changed then.
pub fn shutdown_if_idle(info: &DaemonInfo) -> Result<(), Error> {
    request_shutdown(info, true)
}

fn request_shutdown(info: &DaemonInfo, if_idle: bool) -> Result<(), Error> {
    const ACTION: &str = "ask the daemon to stop";
    let body = json::text(&Shutdown { if_idle: if_idle.then_some(true) });
    let request = request(info, "POST", "/v3/shutdown", &body);
    match call(info, ACTION, &request, &[202, 409]) {
        Ok(response) if response.status == 409 => {
            Err(Error::cannot(Kind::Busy, "stop the daemon", "a turn is in progress"))
        }
        Ok(_) => Ok(()),
        Err(Failure::Lost(error) | Failure::Final(error)) => Err(error),
    }
}

/// Deletes a session permanently. Returns `false` if there is none.
///
/// # Errors
/// [`Kind::Busy`] while a turn of it is in progress.
pub fn delete_session(info: &DaemonInfo, id: &SessionId) -> Result<bool, Failure> {
    let target = format!("/v3/sessions/{}", id.as_str());
    let request = request(info, "DELETE", &target, "");
    let status = call(info, "delete the session", &request, &[204, 404, 409])?.status;
    if status == 409 {
        let action = format!("delete the session {}", id.as_str());
        let error = Error::cannot(Kind::Busy, action, "a turn of it is in progress");
        return Err(Failure::Final(error));
    }
    Ok(status == 204)
}

/// Creates a session. One that has its id already is not changed.
pub fn create_session(info: &DaemonInfo, session: &CreateSession) -> Result<(), Failure> {
    let body = json::text(session);
    let request = request(info, "POST", "/v3/sessions", &body);
    call(info, "create a session", &request, &[201]).map(drop)
}

/// Submits a turn. Submitting it again has no effect.
///
/// # Errors
/// [`Kind::SessionNotFound`].
pub fn submit_turn(
    info: &DaemonInfo,
    id: &SessionId,
    turn: &SubmitTurn,
) -> Result<TurnAccepted, Failure> {
    const ACTION: &str = "submit the turn";
    let (target, body) = (format!("/v3/sessions/{}/turns", id.as_str()), json::text(turn));
    let response = call(info, ACTION, &request(info, "POST", &target, &body), &[202, 404])?;
    if response.status == 404 {
        return Err(Failure::Final(no_session(id.as_str())));
    }
    let accepted = json::parse(&response.body);
    accepted.map_err(|problem| Failure::Final(bad_reply(ACTION, problem.to_string())))
}

/// Cancels a turn unless it has ended.
pub fn cancel_turn(info: &DaemonInfo, id: &SessionId, turn_id: &str) -> Result<(), Failure> {
    let target = format!("/v3/sessions/{}/cancel", id.as_str());
    let body = json::text(&CancelTurns { turn_id: Some(turn_id.to_owned()), writer_id: None });
    let request = request(info, "POST", &target, &body);
    call(info, "cancel the turn", &request, &[200]).map(drop)
}

/// Resolves a permission that a turn waits for. Returns `false` if it was resolved before, or if no
/// turn waits for it.
pub fn resolve_permission(
    info: &DaemonInfo,
    id: &SessionId,
    request_id: &str,
    decision: &ResolvePermission,
) -> Result<bool, Failure> {
    const ACTION: &str = "answer for the tool";
    if SessionId::parse(request_id).is_none() {
        let error = bad_reply(ACTION, "the id of the request cannot be part of a URL");
        return Err(Failure::Final(error));
    }
    let target = format!("/v3/sessions/{}/permissions/{request_id}", id.as_str());
    let body = json::text(decision);
    let request = request(info, "POST", &target, &body);
    Ok(call(info, ACTION, &request, &[200, 404, 409])?.status == 200)
}

/// Follows the events of a session after number `after`. `answers` says whether this process can
/// answer permission requests.
pub fn follow(
    info: &DaemonInfo,
    id: &SessionId,
    after: u64,
    answers: bool,
) -> Result<EventStream, Failure> {
    const ACTION: &str = "follow the session";
    let (id_text, answers) = (id.as_str(), u8::from(answers));
    let target = format!("/v3/sse/events?sessionId={id_text}&afterSeq={after}&answers={answers}");
    let request = Request { accept: "text/event-stream", ..request(info, "GET", &target, "") };
    check_network(info)?;
    match http::open_stream(info.port, &request, limits::CALL_MAX, limits::EVENT_BYTES_MAX) {
        Ok(StreamResponse::Stream(stream)) => Ok(stream),
        Ok(StreamResponse::Refused(response)) => Err(match response.status {
            401 => Failure::Lost(refusal(ACTION, &response)),
            404 => Failure::Final(no_session(id_text)),
            _ => Failure::Final(refusal(ACTION, &response)),
        }),
        Err(error) => Err(failure(info, ACTION, &error)),
    }
}

/// Sends a request, within one deadline. A response of another status than these is a failure.
fn call(
    info: &DaemonInfo,
    action: &str,
    request: &Request<'_>,
    expected: &[u16],
) -> Result<Response, Failure> {
    check_network(info)?;
    match http::call(info.port, request, limits::CALL_MAX, limits::REPLY_BYTES_MAX) {
        Ok(response) if expected.contains(&response.status) => Ok(response),
        Ok(response) => Err(match response.status {
            // It is another daemon, or it is stopping.
            401 | 503 => Failure::Lost(refusal(action, &response)),
            _ => Failure::Final(refusal(action, &response)),
        }),
        Err(error) => Err(failure(info, action, &error)),
    }
}

/// Refuses to send a request where the daemon is not known to listen.
fn check_network(info: &DaemonInfo) -> Result<(), Failure> {
    let (pid, port) = (Some(info.pid), Some(info.port));
    info.check_network().map_err(|untrusted| {
        Failure::Final(unreachable(pid, port, &NoHealth::Untrusted(untrusted), limits::CALL_MAX))
    })
}

fn failure(info: &DaemonInfo, action: &str, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::TimedOut => {
            let (pid, port) = (Some(info.pid), Some(info.port));
            Failure::Final(unreachable(pid, port, &NoHealth::TimedOut, limits::CALL_MAX))
        }
        io::ErrorKind::InvalidData => Failure::Final(bad_reply(action, reason(error))),
        // Refused, reset, cut short: it is starting or stopping.
        _ => Failure::Lost(bad_reply(action, reason(error))),
    }
}

/// Returns the refusal with the daemon's own message, if it has one.
fn refusal(action: &str, response: &Response) -> Error {
    let message = json::parse::<ErrorBody>(&response.body).map(|body| body.error.message);
    bad_reply(action, message.unwrap_or_else(|_| format!("it answered {}", response.status)))
}

/// Returns the failure of a request that the daemon answered differently than this version expects.
pub fn bad_reply(action: &str, reason: impl Into<String>) -> Error {
    Error::cannot(Kind::BadReply, action, reason)
}

/// Returns the failure to reach a daemon that holds the lock.
pub fn unreachable(pid: Option<i32>, port: Option<u16>, why: &NoHealth, waited: Duration) -> Error {
    let pid = pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
    let reason = why.reason(port, waited);
    let (kind, reason) = match why {
        NoHealth::StateLost => (Kind::Unresponsive, format!("it runs, and {reason}")),
        NoHealth::Unreachable | NoHealth::TimedOut => {
            (Kind::Unresponsive, format!("it is alive, {reason}"))
        }
        NoHealth::Untrusted(Untrusted::OtherMachine | Untrusted::OtherNetwork) => {
            (Kind::HeldElsewhere, reason)
        }
        _ => (Kind::Unresponsive, reason),
    };
    Error::cannot(kind, format!("reach the daemon{pid}"), reason).with_next_step(why.next_step())
}

fn request<'a>(
    info: &'a DaemonInfo,
    method: &'static str,
    target: &'a str,
    body: &'a str,
) -> Request<'a> {
    Request {
        method,
        authority: format!("127.0.0.1:{}", info.port),
        target,
        bearer: Some(info.token.secret()),
        accept: "application/json",
        body: [body, "", ""],
    }
}
