//! The requests about sessions: checked, then passed to the runtime.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use nanoserde::DeJson;

use crate::error::Error;
use crate::json::{self, Lenient, Members, Raw};
use crate::limits;
use crate::protocol::event::SessionConfig;
use crate::protocol::overrides::Overrides;
use crate::protocol::{
    ChatMessage, CreateSession, ErrorDetail, Grant, Metadata, PermissionReply, ResolvePermission,
    SessionId, SessionSummary, SubmitTurn, TurnAccepted, TurnOptions,
};
use crate::session::feed::{Feed, SessionFeed, WideFeed};
use crate::session::runtime::Runtime;
use crate::session::runtime::turns::TurnStart;
use crate::session::session::{Decision, Session, SessionError};

use super::auth;
use super::reply::Reply;
use super::request::RequestHead;
use super::stream::{Follower, Poll, Stream, StreamSlot};

/// Returns the status of the reply that reports an error, and the code of the error.
pub fn error_code(error: &SessionError) -> (u16, &'static str) {
    match error {
        SessionError::NotFound(_) => (404, "SESSION_NOT_FOUND"),
        SessionError::Invalid(_) => (400, "INVALID_REQUEST"),
        SessionError::Conflict(_) => (409, "CONFLICT"),
        SessionError::Busy(_) => (409, "BUSY"),
        SessionError::Stopping => (503, "BUSY"),
        SessionError::Storage(_) => (507, "STORAGE_FULL"),
        SessionError::Disk(_) => (500, "STORAGE_ERROR"),
        SessionError::Failed(_) => (500, "INTERNAL_ERROR"),
    }
}

impl From<SessionError> for Reply {
    fn from(error: SessionError) -> Reply {
        let (status, code) = error_code(&error);
        Reply::error(status, code, error)
    }
}

impl From<Error> for Reply {
    fn from(error: Error) -> Reply {
        SessionError::from(error).into()
    }
}

/// Returns the session of this id.
pub fn find(runtime: &Runtime, id: &str) -> Result<Arc<Session>, SessionError> {
    runtime.session(&parse_id(id)?)
}

fn parse_id(id: &str) -> Result<SessionId, SessionError> {
    let message = "a session's id is 1 to 64 letters, digits, '-' and '_'";
    SessionId::parse(id).ok_or_else(|| invalid(message))
}

fn invalid(message: impl Display) -> SessionError {
    SessionError::Invalid(message.to_string())
}

/// Decodes a body that may be empty.
pub fn parse<T: DeJson + Default>(body: &[u8]) -> Result<T, Reply> {
    match body {
        [] => Ok(T::default()),
        body => json::parse(body).map_err(Reply::invalid),
    }
}

/// Refuses a text that is longer than `bytes_max`.
fn check_length(name: &str, text: Option<&str>, bytes_max: usize) -> Result<(), SessionError> {
    match text {
        Some(text) if text.len() > bytes_max => {
            Err(invalid(format_args!("{name} is longer than {bytes_max} bytes")))
        }
        _ => Ok(()),
    }
}

/// Refuses an unknown mode. A mode restricts what tools may do: a misspelled one must not restrict
/// nothing.
fn check_mode(mode: Option<&str>) -> Result<(), SessionError> {
    match mode {
        None | Some("chat" | "do" | "plan" | "review" | "research") => Ok(()),
        Some(_) => Err(invalid("mode is chat, do, plan, review or research")),
    }
}

pub fn create(runtime: &Runtime, body: &[u8]) -> Result<Reply, Reply> {
    let request: CreateSession = parse(body)?;
    check_length("title", request.title.as_deref(), limits::TITLE_BYTES_MAX)?;
    check_length("model", request.model.as_deref(), limits::NAME_BYTES_MAX)?;
    check_mode(request.mode.as_deref())?;
    let id = request.session_id.as_deref().map(parse_id).transpose()?;
    let metadata = request.metadata.as_ref().and_then(decoded::<Metadata>);
    let workspace = metadata.and_then(|metadata| metadata.workspace);
    check_length("workspace", workspace.as_deref(), limits::PATH_BYTES_MAX)?;
    let is_message = |message: &Raw| decoded::<ChatMessage>(message).is_some();
    let messages = request.messages.map(|all| all.into_iter().filter(is_message).collect());
    let config = SessionConfig {
        title: request.title,
        model: request.model,
        mode: request.mode,
        system_prompt: request.system_prompt,
        workspace,
        directory: None,
        metadata: request.metadata,
        messages,
    };
    Ok(Reply::json(201, &runtime.create(id, &config)?.summary()))
}

fn decoded<T: DeJson>(raw: &Raw) -> Option<T> {
    json::parse(raw.as_str().as_bytes()).ok()
}

pub fn list(runtime: &Runtime, query: &str) -> Result<Reply, Reply> {
    let count = count(query, limits::SESSIONS_PAGE_MAX)?.unwrap_or(limits::SESSIONS_PAGE_DEFAULT);
    let before = number(query, "before", 0..=u64::MAX)?;
    Ok(Reply::json(200, &runtime.summaries(before, count)?))
}

pub fn show(session: &Session) -> Result<Reply, Reply> {
    let messages = Some(session.conversation()?.messages.iter().map(Raw::of).collect());
    Ok(Reply::json(200, &SessionSummary { messages, ..session.summary() }))
}

pub fn delete(runtime: &Runtime, id: &str) -> Result<Reply, Reply> {
    runtime.delete(&parse_id(id)?)?;
    Ok(Reply::empty(204))
}

pub fn submit(runtime: &Arc<Runtime>, session: &Arc<Session>, body: &[u8]) -> Result<Reply, Reply> {
    let turn: SubmitTurn = json::parse(body).map_err(Reply::invalid)?;
    let (accepted, start) = submit_turn(runtime, session, &turn)?;
    Ok(Reply::json(202, &accepted).with_sequel(start))
}

/// Checks a turn, then submits it. The caller starts it.
pub fn submit_turn(
    runtime: &Arc<Runtime>,
    session: &Arc<Session>,
    turn: &SubmitTurn,
) -> Result<(TurnAccepted, Option<TurnStart>), SessionError> {
    if turn.content.is_empty() {
        return Err(invalid("content is empty"));
    }
    if turn.turn_id.as_deref().is_some_and(|id| SessionId::parse(id).is_none()) {
        return Err(invalid("a turn's id is 1 to 64 letters, digits, '-' and '_'"));
    }
    check_mode(turn.mode.as_deref())?;
    for (what, name) in [("clientId", &turn.client_id), ("writerId", &turn.writer_id)] {
        let length = name.as_ref().map_or(1, String::len);
        if !(1..=limits::NAME_BYTES_MAX).contains(&length) {
            let message = format_args!("{what} is 1 to {} bytes long", limits::NAME_BYTES_MAX);
            return Err(invalid(message));
        }
    }
    if turn.options.as_ref().is_some_and(|options| options.grant().is_none()) {
        return Err(invalid("grant is \"reads\", \"settings\", \"edits\" or \"all\""));
    }
    if turn.options.as_ref().is_some_and(|options| options.umask().is_none()) {
        return Err(invalid("umask is an octal number of at most 777, as text"));
    }
    match &turn.overrides {
        None => runtime.accept(session, turn),
        Some(given) => {
            let options = overridden(turn.options.clone().unwrap_or_default(), &overrides(given)?)?;
            runtime.accept(session, &SubmitTurn { options: Some(options), ..turn.clone() })
        }
    }
}

/// Decodes the overrides of a turn. Refuses unknown ones: one may be meant to restrict the turn.
fn overrides(given: &Raw) -> Result<Overrides, SessionError> {
    let given = given.as_str().as_bytes();
    let refused = |error: json::DecodeError| invalid(format_args!("overrides: {}", error.what));
    let overrides: Overrides = json::parse(given).map_err(refused)?;
    let Members(given) = json::parse(given).map_err(refused)?;
    // Those that were decoded.
    let Members(known) = json::parse(json::text(&overrides).as_bytes()).map_err(refused)?;
    let is_known = |name: &str| known.iter().any(|(known, _)| known == name);
    let is_null = |value: &Lenient| matches!(value, Lenient::Other(raw) if raw.as_str() == "null");
    match given.iter().find(|(name, value)| !is_known(name) && !is_null(value)) {
        None => Ok(overrides),
        Some((name, _)) => Err(invalid(format_args!("overrides.{name} is unknown"))),
    }
}

/// Returns the options with what older clients override. What cannot be done is refused.
fn overridden(
    mut options: TurnOptions,
    overrides: &Overrides,
) -> Result<TurnOptions, SessionError> {
    let refuse = |name: &str, value: &str, why: &str| {
        Err(invalid(format_args!("overrides.{name} cannot be {value}: {why}")))
    };
    check_length("overrides.model", overrides.model.as_deref(), limits::NAME_BYTES_MAX)?;
    if let Some(model) = overrides.model.as_ref().filter(|model| !model.is_empty()) {
        options.model = Some(model.clone());
        if let Some(endpoint) = &mut options.endpoint {
            endpoint.model = Some(model.clone());
        }
    }
    let grant = match (overrides.dangerous, overrides.auto, overrides.autonomy_level) {
        (_, _, Some(level)) if !(1..=5).contains(&level) => {
            return refuse("autonomyLevel", &level.to_string(), "it is a number from 1 to 5");
        }
        (Some(true), _, _) => Some(Grant::All),
        (_, Some(true), _) => Some(Grant::Edits),
        (_, _, Some(1 | 2)) => Some(Grant::Reads),
        _ => None,
    };
    if let Some(grant) = grant {
        options.grant = Some(grant.name().to_owned());
    }
    match overrides.provider.as_deref() {
        None | Some("" | "lmx") => {}
        Some(other) => return refuse("provider", other, "lmx is the server of the settings"),
    }
    match overrides.format.as_deref() {
        None | Some("markdown") => {}
        Some(other) => return refuse("format", other, "answers are as the model writes them"),
    }
    match overrides.autonomy_mode.as_deref() {
        None | Some("execution") => {}
        Some(other) => return refuse("autonomyMode", other, "there is only execution"),
    }
    Ok(options)
}

pub fn cancel(runtime: &Runtime, session: &Session, body: &[u8]) -> Result<Reply, Reply> {
    Ok(Reply::json(200, &runtime.cancel(session, &parse(body)?)?))
}

/// Returns whether the client can answer permission requests: it can unless it says otherwise.
fn answers(query: &str) -> Result<bool, SessionError> {
    Ok(number(query, "answers", 0..=1)? != Some(0))
}

pub fn poll(session: &Arc<Session>, query: &str) -> Result<Poll, Reply> {
    let after = number(query, "afterSeq", 0..=u64::MAX)?.unwrap_or(0);
    let events_max = count(query, limits::EVENTS_MAX)?.unwrap_or(limits::EVENTS_MAX);
    let timeout_ms = number(query, "timeout", 0..=u64::MAX)?.unwrap_or(0);
    let limit = Duration::from_millis(timeout_ms).min(limits::POLL_MAX);
    let follower = Follower::new(SessionFeed::new(session, after, answers(query)?)?);
    Ok(Poll { follower, events_max, limit })
}

pub fn stream(
    runtime: &Runtime,
    streams: &Arc<AtomicUsize>,
    head: &RequestHead<'_>,
) -> Result<Stream, Reply> {
    let id = value(head.query, "sessionId")?;
    let id = id.ok_or_else(|| Reply::invalid("sessionId is missing in the query"))?;
    let session = find(runtime, &id)?;
    // A browser that reconnects names the last event in a header; its URL is still the old one.
    let last_event = head.last_event_id.and_then(|id| id.trim().parse().ok());
    let after = match last_event {
        Some(after) => after,
        None => number(head.query, "afterSeq", 0..=u64::MAX)?.unwrap_or(0),
    };
    let full =
        || Reply::error(503, "BUSY", "too many event streams are open").with("Retry-After", "1");
    let slot = StreamSlot::take(streams).ok_or_else(full)?;
    let feed = SessionFeed::new(&session, after, answers(head.query)?)?;
    let follower = Follower::new(feed);
    let headers = auth::cors_headers(head);
    Ok(Stream { follower, _slot: slot, headers })
}

/// Returns the session that the query of a WebSocket names, and its events; without one, those of
/// all sessions.
pub fn feed(
    runtime: &Arc<Runtime>,
    query: &str,
) -> Result<(Option<SessionId>, Feed), SessionError> {
    let after = number(query, "afterSeq", 0..=u64::MAX)?;
    let answers = answers(query)?;
    match value(query, "sessionId")? {
        Some(id) => {
            let id = parse_id(&id)?;
            let feed = Feed::of_id(runtime, &id, after.unwrap_or(0), answers)?;
            Ok((Some(id), feed))
        }
        None => Ok((None, Feed::Wide(Box::new(WideFeed::of_all(runtime, after, answers)?)))),
    }
}

pub fn decide(session: &Session, in_path: Option<&str>, body: &[u8]) -> Result<Reply, Reply> {
    let decision = decide_permission(session, in_path, &parse(body)?)?;
    let error = decision_error(decision);
    let reply = PermissionReply {
        ok: error.is_none(),
        conflict: decision == Decision::TooLate,
        resolved: error.is_none(),
        message: error.map(|(_, message)| message.to_owned()),
        error: error.map(|(code, message)| ErrorDetail::new(code, message)),
    };
    let status = match decision {
        Decision::Won => 200,
        Decision::TooLate => 409,
        Decision::Unknown => 404,
    };
    Ok(Reply::json(status, &reply))
}

/// Checks a decision about a permission, then makes it. `in_path`: the id of the permission request
/// if it is not only in `request`.
pub fn decide_permission(
    session: &Session,
    in_path: Option<&str>,
    request: &ResolvePermission,
) -> Result<Decision, SessionError> {
    let request_id = match (in_path, request.request_id.as_deref()) {
        (Some(path), Some(body)) if path != body => {
            return Err(invalid("the requestId in the body is not the one in the path"));
        }
        (path, body) => path.or(body).ok_or_else(|| invalid("requestId is missing"))?,
    };
    let allow = match (request.decision.as_deref(), request.approved) {
        (Some("allow"), None | Some(true)) | (None, Some(true)) => true,
        (Some("deny"), None | Some(false)) | (None, Some(false)) => false,
        _ => return Err(invalid("decision is \"allow\" or \"deny\"")),
    };
    check_length("decidedBy", request.decided_by.as_deref(), limits::NAME_BYTES_MAX)?;
    let by = request.decided_by.as_deref().unwrap_or("anonymous");
    session.decide(request_id, allow, by)
}

/// Returns why a decision has no effect: a code and a message.
pub fn decision_error(decision: Decision) -> Option<(&'static str, &'static str)> {
    match decision {
        Decision::Won => None,
        Decision::TooLate => Some(("CONFLICT", "it has been decided already")),
        Decision::Unknown => Some(("NOT_FOUND", "nothing waits for this decision")),
    }
}

/// Returns how many items the query asks for.
fn count(query: &str, max: usize) -> Result<Option<usize>, Reply> {
    let count = number(query, "limit", 1..=max as u64)?;
    Ok(count.and_then(|count| usize::try_from(count).ok()))
}

/// Returns a number in the query, if it is there.
fn number(
    query: &str,
    name: &str,
    range: RangeInclusive<u64>,
) -> Result<Option<u64>, SessionError> {
    let Some(text) = value(query, name)? else {
        return Ok(None);
    };
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|number| is_plain && range.contains(number));
    number.map(Some).ok_or_else(|| {
        let (min, max) = range.into_inner();
        let to = if max == u64::MAX { String::new() } else { format!(" to {max}") };
        invalid(format_args!("{name} is a whole number from {min}{to}"))
    })
}

/// Returns a value in the query, decoded once, if it is there. RFC 3986, 2.1.
fn value(query: &str, name: &str) -> Result<Option<String>, SessionError> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let Some((_, value)) = pairs.into_iter().find(|(key, _)| *key == name) else {
        return Ok(None);
    };
    let decoded = decode(value);
    decoded.map(Some).ok_or_else(|| invalid(format_args!("{name} is not well encoded")))
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}
