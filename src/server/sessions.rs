//! The routes of sessions: from a request's parts to a call of the runtime, and back.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use nanoserde::DeJson;

use crate::error::Error;
use crate::json::{self, Raw};
use crate::limits;
use crate::protocol::SessionId;
use crate::protocol::event::SessionConfig;
use crate::protocol::{
    CancelTurns, ChatMessage, CreateSession, ErrorDetail, Metadata, PermissionReply,
    ResolvePermission, SessionPage, SessionSummary, SubmitTurn,
};
use crate::session::runtime::Runtime;
use crate::session::session::{Decision, Session, SessionError};

use super::auth;
use super::reply::Reply;
use super::request::RequestHead;
use super::stream::{Follower, Poll, Stream, StreamSlot};

/// What can be done with sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v3/sessions`
    All,
    /// `/v3/sessions/:id`
    One(String),
    Turns(String),
    Events(String),
    Cancel(String),
    /// With the request's id, if it stands in the path.
    Permission(String, Option<String>),
    /// `/v3/sse/events`
    Sse,
}

impl Route {
    /// The route that the segments behind `/v3/` name.
    pub fn find(segments: &[&str]) -> Option<Route> {
        let own = |id: &&str| (*id).to_owned();
        Some(match segments {
            ["sessions"] => Route::All,
            ["sessions", id] => Route::One(own(id)),
            ["sessions", id, "turns"] => Route::Turns(own(id)),
            ["sessions", id, "events"] => Route::Events(own(id)),
            ["sessions", id, "cancel"] => Route::Cancel(own(id)),
            ["sessions", id, "permissions"] => Route::Permission(own(id), None),
            ["sessions", id, "permissions", request] => {
                Route::Permission(own(id), Some(own(request)))
            }
            ["sse", "events"] => Route::Sse,
            _ => return None,
        })
    }

    /// Returns the methods that it accepts, for the `Allow` header.
    pub fn methods(&self) -> &'static str {
        match self {
            Route::All => "GET, HEAD, POST",
            Route::One(_) => "GET, HEAD, DELETE",
            Route::Events(_) | Route::Sse => "GET",
            Route::Turns(_) | Route::Cancel(_) | Route::Permission(..) => "POST",
        }
    }

    /// Returns the size limit of its body.
    pub fn body_bytes_max(&self) -> usize {
        match self {
            Route::Turns(_) => limits::TURN_BODY_BYTES_MAX,
            _ => limits::BODY_BYTES_MAX,
        }
    }
}

/// An answer, or something that answers in time.
pub enum Answer {
    Now(Reply),
    Poll(Poll),
    Stream(Box<Stream>),
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Answer {
        Answer::Now(reply)
    }
}

/// Answers a request about sessions.
pub fn answer(
    runtime: &Arc<Runtime>,
    streams: &Arc<AtomicUsize>,
    route: &Route,
    head: &RequestHead,
    body: &[u8],
) -> Result<Answer, Reply> {
    runtime.sweep();
    match (route, head.method.as_str()) {
        (Route::All, "POST") => create(runtime, body).map(Answer::Now),
        (Route::All, _) => list(runtime, &head.query).map(Answer::Now),
        (Route::One(id), "DELETE") => {
            runtime.delete(&parse_id(id)?).map_err(refuse)?;
            Ok(Reply::empty(204).into())
        }
        (Route::One(id), _) => show(&find(runtime, id)?).map(Answer::Now),
        (Route::Turns(id), _) => submit(runtime, &find(runtime, id)?, body).map(Answer::Now),
        (Route::Events(id), _) => poll(find(runtime, id)?, &head.query).map(Answer::Poll),
        (Route::Cancel(id), _) => cancel(runtime, &find(runtime, id)?, body).map(Answer::Now),
        (Route::Permission(id, request), _) => {
            decide(&find(runtime, id)?, request.as_deref(), body).map(Answer::Now)
        }
        (Route::Sse, _) => stream(runtime, streams, head),
    }
}

fn find(runtime: &Runtime, id: &str) -> Result<Arc<Session>, Reply> {
    runtime.session(&parse_id(id)?).map_err(refuse)
}

fn parse_id(id: &str) -> Result<SessionId, Reply> {
    let why = "a session's id is 1 to 64 letters, digits, '-' and '_'";
    SessionId::parse(id).ok_or_else(|| Reply::invalid(why))
}

/// Refuses a text that is longer than `bytes_max`.
fn at_most(name: &str, text: Option<&str>, bytes_max: usize) -> Result<(), Reply> {
    if text.is_none_or(|text| text.len() <= bytes_max) {
        return Ok(());
    }
    Err(Reply::invalid(format_args!("{name} is longer than {bytes_max} bytes")))
}

/// The reply that tells a client why not.
fn refuse(problem: SessionError) -> Reply {
    let (status, code) = match &problem {
        SessionError::NotFound(_) => (404, "SESSION_NOT_FOUND"),
        SessionError::Invalid(_) => (400, "INVALID_REQUEST"),
        SessionError::Conflict(_) => (409, "CONFLICT"),
        SessionError::Busy(_) => (409, "BUSY"),
        SessionError::Stopping => (503, "BUSY"),
        SessionError::Storage(_) => (507, "STORAGE_FULL"),
        SessionError::Failed(_) => (500, "INTERNAL_ERROR"),
    };
    Reply::problem(status, code, problem)
}

fn parse<T: DeJson + Default>(body: &[u8]) -> Result<T, Reply> {
    if body.is_empty() {
        return Ok(T::default());
    }
    json::parse(body).map_err(Reply::invalid)
}

/// A mode restricts what tools may do: one that is misspelt must not be one that restricts nothing.
fn known_mode(mode: Option<&str>) -> Result<(), Reply> {
    match mode {
        None | Some("chat" | "do" | "plan" | "review" | "research") => Ok(()),
        Some(_) => Err(Reply::invalid("mode is chat, do, plan, review or research")),
    }
}

fn create(runtime: &Runtime, body: &[u8]) -> Result<Reply, Reply> {
    let asked: CreateSession = parse(body)?;
    at_most("title", asked.title.as_deref(), limits::TITLE_BYTES_MAX)?;
    at_most("model", asked.model.as_deref(), limits::NAME_BYTES_MAX)?;
    known_mode(asked.mode.as_deref())?;
    let id = asked.session_id.as_deref().map(parse_id).transpose()?;
    let metadata = asked.metadata.as_ref().and_then(decoded::<Metadata>);
    let workspace = metadata.and_then(|metadata| metadata.workspace);
    at_most("workspace", workspace.as_deref(), limits::PATH_BYTES_MAX)?;
    let is_message = |message: &Raw| decoded::<ChatMessage>(message).is_some();
    let messages = asked.messages.map(|all| all.into_iter().filter(is_message).collect());
    let config = SessionConfig {
        title: asked.title,
        model: asked.model,
        mode: asked.mode,
        system_prompt: asked.system_prompt,
        workspace,
        metadata: asked.metadata,
        messages,
    };
    let session = runtime.create(id, &config).map_err(refuse)?;
    Ok(Reply::json(201, &session.summary()))
}

fn decoded<T: DeJson>(raw: &Raw) -> Option<T> {
    json::parse(raw.as_str().as_bytes()).ok()
}

fn list(runtime: &Runtime, query: &str) -> Result<Reply, Reply> {
    let count = number(query, "limit", 1, limits::SESSIONS_PAGE_MAX as u64)?;
    let count = count.and_then(|count| usize::try_from(count).ok());
    let before = number(query, "before", 0, u64::MAX)?;
    let page = runtime
        .store()
        .page(before, count.unwrap_or(limits::SESSIONS_PAGE_DEFAULT))
        .map_err(|error| refuse(error.into()))?;
    // One that cannot be read, or has just been deleted, must not hide the others.
    let sessions = page.ids.iter().filter_map(|id| runtime.summary(id).ok()).collect();
    let next = page.next.map(|next| next.to_string());
    Ok(Reply::json(200, &SessionPage { sessions, next }))
}

fn show(session: &Arc<Session>) -> Result<Reply, Reply> {
    let conversation = session.conversation().map_err(|error| refuse(error.into()))?;
    let messages = Some(conversation.messages().iter().map(Raw::of).collect());
    Ok(Reply::json(200, &SessionSummary { messages, ..session.summary() }))
}

fn submit(runtime: &Arc<Runtime>, session: &Arc<Session>, body: &[u8]) -> Result<Reply, Reply> {
    let turn: SubmitTurn = json::parse(body).map_err(Reply::invalid)?;
    if turn.content.is_empty() {
        return Err(Reply::invalid("content is empty"));
    }
    if turn.turn_id.as_deref().is_some_and(|id| SessionId::parse(id).is_none()) {
        return Err(Reply::invalid("a turn's id is 1 to 64 letters, digits, '-' and '_'"));
    }
    known_mode(turn.mode.as_deref())?;
    for (what, name) in [("clientId", &turn.client_id), ("writerId", &turn.writer_id)] {
        let length = name.as_ref().map_or(1, String::len);
        if !(1..=limits::NAME_BYTES_MAX).contains(&length) {
            let message = format_args!("{what} is 1 to {} bytes long", limits::NAME_BYTES_MAX);
            return Err(Reply::invalid(message));
        }
    }
    if turn.options.as_ref().is_some_and(|options| options.grant().is_none()) {
        return Err(Reply::invalid("grant is \"settings\", \"edits\" or \"all\""));
    }
    let accepted = runtime.submit(session, &turn).map_err(refuse)?;
    Ok(Reply::json(202, &accepted))
}

/// Whether a client can answer the questions of turns, unless it says that it cannot.
fn answers(query: &str) -> Result<bool, Reply> {
    Ok(number(query, "answers", 0, 1)? != Some(0))
}

fn poll(session: Arc<Session>, query: &str) -> Result<Poll, Reply> {
    let after = number(query, "afterSeq", 0, u64::MAX)?.unwrap_or(0);
    let most = number(query, "limit", 1, limits::EVENTS_MAX as u64)?;
    let limit = number(query, "timeout", 0, u64::MAX)?.unwrap_or(0);
    let follower = Follower::new(session, after, answers(query)?);
    let follower = follower.map_err(|error| refuse(error.into()))?;
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(limits::EVENTS_MAX);
    let limit = Duration::from_millis(limit).min(limits::POLL_MAX);
    Ok(Poll { follower, events_max: most, limit })
}

fn stream(
    runtime: &Runtime,
    streams: &Arc<AtomicUsize>,
    head: &RequestHead,
) -> Result<Answer, Reply> {
    let id = value(&head.query, "sessionId")?;
    let id = id.ok_or_else(|| Reply::invalid("sessionId is missing in the query"))?;
    let session = find(runtime, &id)?;
    // A browser that reconnects names the last event in a header; its URL is still the old one.
    let resumed = head.last_event_id.as_deref().and_then(|id| id.trim().parse().ok());
    let after = match resumed {
        Some(after) => after,
        None => number(&head.query, "afterSeq", 0, u64::MAX)?.unwrap_or(0),
    };
    let full =
        || Reply::problem(503, "BUSY", "too many event streams are open").with("Retry-After", "1");
    let slot = StreamSlot::take(streams).ok_or_else(full)?;
    let follower = Follower::new(session, after, answers(&head.query)?);
    let follower = follower.map_err(|error: Error| refuse(error.into()))?;
    Ok(Answer::Stream(Box::new(Stream {
        follower,
        _slot: slot,
        headers: auth::cors_headers(head),
    })))
}

fn cancel(runtime: &Runtime, session: &Arc<Session>, body: &[u8]) -> Result<Reply, Reply> {
    let turns: CancelTurns = parse(body)?;
    Ok(Reply::json(200, &runtime.cancel(session, &turns).map_err(refuse)?))
}

fn decide(session: &Arc<Session>, in_path: Option<&str>, body: &[u8]) -> Result<Reply, Reply> {
    let asked: ResolvePermission = parse(body)?;
    let request_id = match (in_path, asked.request_id.as_deref()) {
        (Some(path), Some(body)) if path != body => {
            return Err(Reply::invalid("the requestId in the body is not the one in the path"));
        }
        (path, body) => path.or(body).ok_or_else(|| Reply::invalid("requestId is missing"))?,
    };
    let approved = match (asked.decision.as_deref(), asked.approved) {
        (Some("allow"), None | Some(true)) | (None, Some(true)) => true,
        (Some("deny"), None | Some(false)) | (None, Some(false)) => false,
        _ => return Err(Reply::invalid("decision is \"allow\" or \"deny\"")),
    };
    at_most("decidedBy", asked.decided_by.as_deref(), limits::NAME_BYTES_MAX)?;
    let by = asked.decided_by.as_deref().unwrap_or("anonymous");
    let (status, conflict, message) =
        match session.decide(request_id, approved, by).map_err(refuse)? {
            Decision::Won => (200, false, None),
            Decision::TooLate => (409, true, Some("it has been decided already")),
            Decision::Unknown => (404, false, Some("nothing waits for this decision")),
        };
    let code = if conflict { "CONFLICT" } else { "NOT_FOUND" };
    Ok(Reply::json(
        status,
        &PermissionReply {
            ok: message.is_none(),
            conflict,
            resolved: message.is_none(),
            message: message.map(str::to_owned),
            error: message.map(|message| ErrorDetail::new(code, message)),
        },
    ))
}

/// A number in the query; `None` if it is not there.
fn number(query: &str, name: &str, min: u64, max: u64) -> Result<Option<u64>, Reply> {
    let Some(text) = value(query, name)? else {
        return Ok(None);
    };
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|number| plain && (min..=max).contains(number));
    let refused = || {
        let most = if max == u64::MAX { String::new() } else { format!(" to {max}") };
        Reply::invalid(format_args!("{name} is a whole number from {min}{most}"))
    };
    number.map(Some).ok_or_else(refused)
}

/// A value in the query, decoded once; `None` if it is not there. RFC 3986, 2.1.
fn value(query: &str, name: &str) -> Result<Option<String>, Reply> {
    let found = query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    });
    let Some(found) = found else {
        return Ok(None);
    };
    let decoded = decode(found);
    decoded.map(Some).ok_or_else(|| Reply::invalid(format_args!("{name} is not well encoded")))
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let hex = digits.iter().all(u8::is_ascii_hexdigit);
                hex.then(|| u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok())??
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}
