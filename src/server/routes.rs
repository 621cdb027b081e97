//! The routes, and the replies of those that are not about sessions.
//!
//! A request comes here twice: with its head, to be authorized ([`App::authorize`]), and with its
//! body, to be answered ([`App::answer`]). Only the body of an authorized request is read.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tiny_http::Method;

use crate::limits;
use crate::log::Log;
use crate::protocol;
use crate::session::runtime::Runtime;
use crate::sys;
use crate::token::Token;
use crate::{clock, json};

use super::auth;
use super::page;
use super::reply::Reply;
use super::request::RequestHead;
use super::session_handlers;
use super::stream::{HealthStream, Poll, Stream, StreamSlot};
use super::websocket::{self, WebSocket};

/// What the server answers from.
pub struct App {
    pub token: Token,
    pub daemon_id: String,
    /// The port of the listener, which clients name in `Host`.
    pub port: u16,
    /// The [`sys::boot_clock`] at the start of the daemon.
    pub started: Duration,
    pub log: Log,
    pub deadlines: Deadlines,
    pub sessions: Arc<Runtime>,
    pub operations: Box<dyn Operations>,
    /// The number of open event streams.
    pub streams: Arc<AtomicUsize>,
    /// Called for each accepted shutdown request, before the reply is written.
    pub on_shutdown: Box<dyn Fn() + Send + Sync>,
    /// Called for each authorized request; must be fast.
    pub on_activity: Box<dyn Fn() + Send + Sync>,
}

/// What clients may ask the daemon for by name.
pub trait Operations: Send + Sync {
    /// Returns the list of all operations, as JSON.
    fn list(&self) -> String;

    /// Performs the operation of this id, for the body of a request. It may end early once the
    /// reply is no longer awaited. Returns the status of the reply and its body.
    fn perform(
        &self,
        sessions: &Arc<Runtime>,
        id: &str,
        body: &[u8],
        is_awaited: &dyn Fn() -> bool,
    ) -> (u16, String);

    /// Returns one of the views of the model server, as JSON, or why there is none.
    fn model_server(&self, view: ModelServerView) -> Result<String, String>;
}

/// What the desktop app asks about the model server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelServerView {
    Status,
    Models,
    /// Models that are not loaded.
    Available,
    Memory,
    /// Where it is.
    Discovery,
}

/// How long a client may take; see [`limits`].
pub struct Deadlines {
    pub idle: Duration,
    pub head: Duration,
    pub body: Duration,
    pub write: Duration,
    pub drain: Duration,
    pub health: Duration,
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        Deadlines {
            idle: limits::IDLE_MAX,
            head: limits::HEAD_MAX,
            body: limits::BODY_MAX,
            write: limits::WRITE_MAX,
            drain: limits::DRAIN_MAX,
            health: limits::HEALTH_EVERY,
        }
    }
}

/// The list of background jobs, of which there are none.
const NO_JOBS: &str = r#"{"processes":[]}"#;

/// An authorized request.
pub struct Authorized<'h> {
    route: Route<'h>,
    pub has_token: bool,
}

/// An answer, or something that answers later.
pub enum Answer {
    Now(Reply),
    Poll(Poll),
    Stream(Box<Stream>),
    HealthStream(HealthStream),
    WebSocket(Box<WebSocket>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route<'h> {
    Health,
    /// `/` and `/page/:name`
    Page(&'static page::PageFile),
    /// `/health`
    Liveness,
    Metrics,
    Shutdown,
    Operations,
    /// `/v3/operations/:id`
    Operation(&'h str),
    /// `/v3/sessions`
    Sessions,
    /// `/v3/sessions/:id`
    Session(&'h str),
    Turns(&'h str),
    Events(&'h str),
    Cancel(&'h str),
    /// With the id of the permission request, if it is in the path.
    Permission(&'h str, Option<&'h str>),
    /// `/v3/sse/events`
    Sse,
    /// `/v3/health/stream`
    HealthStream,
    /// `/v3/lmx/…`
    ModelServer(ModelServerView),
    /// `/v3/background`
    Jobs,
    /// `/v3/background/start`
    StartJob,
    WebSocket,
}

impl Route<'_> {
    fn find(path: &str) -> Option<Route<'_>> {
        // The only one that strangers may ask for, as often as they like.
        if path == "/v3/health" {
            return Some(Route::Health);
        }
        if path == "/health" {
            return Some(Route::Liveness);
        }
        if let Some(file) = page::find(path) {
            return Some(Route::Page(file));
        }
        let segments: Vec<&str> = path.strip_prefix("/v3/")?.split('/').collect();
        Some(match *segments.as_slice() {
            ["metrics"] => Route::Metrics,
            ["shutdown"] => Route::Shutdown,
            ["operations"] => Route::Operations,
            ["operations", id] => Route::Operation(id),
            ["sessions"] => Route::Sessions,
            ["sessions", id] => Route::Session(id),
            ["sessions", id, "turns"] => Route::Turns(id),
            ["sessions", id, "events"] => Route::Events(id),
            ["sessions", id, "cancel"] => Route::Cancel(id),
            ["sessions", id, "permissions"] => Route::Permission(id, None),
            ["sessions", id, "permissions", request] => Route::Permission(id, Some(request)),
            ["sse", "events"] => Route::Sse,
            ["health", "stream"] => Route::HealthStream,
            ["lmx", "status"] => Route::ModelServer(ModelServerView::Status),
            ["lmx", "models"] => Route::ModelServer(ModelServerView::Models),
            ["lmx", "models", "available"] => Route::ModelServer(ModelServerView::Available),
            ["lmx", "memory"] => Route::ModelServer(ModelServerView::Memory),
            ["lmx", "discovery"] => Route::ModelServer(ModelServerView::Discovery),
            ["background"] => Route::Jobs,
            ["background", "start"] => Route::StartJob,
            ["ws"] => Route::WebSocket,
            _ => return None,
        })
    }

    /// Returns the methods that it accepts, for the `Allow` header.
    fn methods(&self) -> &'static str {
        match self {
            Route::Health
            | Route::Page(_)
            | Route::Liveness
            | Route::Metrics
            | Route::Operations
            | Route::ModelServer(_)
            | Route::Jobs => "GET, HEAD",
            Route::Sessions => "GET, HEAD, POST",
            Route::Session(_) => "GET, HEAD, DELETE",
            Route::Events(_) | Route::Sse | Route::HealthStream | Route::WebSocket => "GET",
            Route::Shutdown
            | Route::Operation(_)
            | Route::StartJob
            | Route::Turns(_)
            | Route::Cancel(_)
            | Route::Permission(..) => "POST",
        }
    }
}

impl App {
    /// Decides from its head whether a request is answered; `Err` is the refusal.
    ///
    /// Without the token, a route that does not exist looks like one that does.
    pub fn authorize<'h>(&self, head: &RequestHead<'h>) -> Result<Authorized<'h>, Reply> {
        auth::check_origin(head, self.port)?;
        let route = Route::find(head.path);
        let presented = auth::bearer(head).or_else(|| {
            // Accepted on these routes alone, because histories and logs keep URLs.
            let in_query = matches!(
                route,
                Some(Route::Health | Route::HealthStream | Route::Sse | Route::WebSocket)
            );
            in_query.then(|| auth::token_in_query(head)).flatten()
        });
        let has_token = match presented {
            Some(token) if self.token.matches(token.as_bytes()) => true,
            _ if matches!(route, Some(Route::Liveness | Route::Page(_))) => false,
            None if route == Some(Route::Health) => false,
            _ if route == Some(Route::WebSocket) && head.upgrade.is_requested => {
                return Err(websocket::unauthorized(head));
            }
            _ => return Err(auth::unauthorized()),
        };
        let Some(route) = route else {
            let message = "there is nothing at this path";
            return Err(Reply::error(404, "NOT_FOUND", message));
        };
        let methods = route.methods();
        if !methods.split(", ").any(|method| method == head.method.as_str()) {
            let message = format_args!("this path takes {methods}");
            return Err(Reply::error(405, "METHOD_NOT_ALLOWED", message).with("Allow", methods));
        }
        auth::check_body_type(head)?;
        Ok(Authorized { route, has_token })
    }

    /// Answers an authorized request. `is_awaited` returns whether the client waits for the reply.
    pub fn answer(
        &self,
        authorized: &Authorized<'_>,
        head: &RequestHead<'_>,
        body: &[u8],
        is_awaited: &dyn Fn() -> bool,
    ) -> Answer {
        (self.on_activity)();
        self.dispatch(authorized, head, body, is_awaited).unwrap_or_else(Answer::Now)
    }

    fn dispatch(
        &self,
        authorized: &Authorized<'_>,
        head: &RequestHead<'_>,
        body: &[u8],
        is_awaited: &dyn Fn() -> bool,
    ) -> Result<Answer, Reply> {
        let (runtime, query) = (&self.sessions, head.query);
        let session = |id| session_handlers::find(runtime, id);
        let is_about_sessions = !matches!(
            authorized.route,
            Route::Health
                | Route::HealthStream
                | Route::Liveness
                | Route::Page(_)
                | Route::Metrics
                | Route::Shutdown
        );
        if is_about_sessions {
            runtime.sweep();
        }
        let reply = match (authorized.route, &head.method) {
            (Route::Health, _) => self.health(authorized.has_token),
            (Route::Page(file), _) => file.reply(head.if_none_match),
            (Route::Liveness, _) => Reply::json(200, &liveness()),
            (Route::Metrics, _) => self.metrics(),
            (Route::Shutdown, _) => self.shutdown(body)?,
            (Route::Operations, _) => Reply::json_text(200, self.operations.list()),
            (Route::Operation(id), _) => {
                let (status, body) = self.operations.perform(runtime, id, body, is_awaited);
                Reply::json_text(status, body)
            }
            (Route::Sessions, Method::Post) => session_handlers::create(runtime, body)?,
            (Route::Sessions, _) => session_handlers::list(runtime, query)?,
            (Route::Session(id), Method::Delete) => session_handlers::delete(runtime, id)?,
            (Route::Session(id), _) => session_handlers::show(&*session(id)?)?,
            (Route::Turns(id), _) => session_handlers::submit(runtime, &session(id)?, body)?,
            (Route::Cancel(id), _) => session_handlers::cancel(runtime, &*session(id)?, body)?,
            (Route::Permission(id, request), _) => {
                session_handlers::decide(&*session(id)?, request, body)?
            }
            (Route::Events(id), _) => {
                return session_handlers::poll(&session(id)?, query).map(Answer::Poll);
            }
            (Route::ModelServer(view), _) => self.model_server(view, head.if_none_match)?,
            (Route::Jobs, _) => Reply::json_text(200, NO_JOBS.to_owned()),
            (Route::StartJob, _) => {
                let message = "opta has no background jobs";
                return Err(Reply::error(501, "NOT_IMPLEMENTED", message));
            }
            (Route::HealthStream, _) => {
                let headers = auth::cors_headers(head);
                return Ok(Answer::HealthStream(HealthStream { headers }));
            }
            (Route::Sse, _) => {
                let stream = session_handlers::stream(runtime, &self.streams, head)?;
                return Ok(Answer::Stream(Box::new(stream)));
            }
            (Route::WebSocket, _) => {
                let slot = StreamSlot::take(&self.streams);
                let open = || session_handlers::feed(runtime, query);
                let socket = WebSocket::accept(head, runtime, slot, open)?;
                return Ok(Answer::WebSocket(Box::new(socket)));
            }
        };
        Ok(Answer::Now(reply))
    }

    /// Shows the model server, unless the client has the same already. RFC 9110, 13.1.2.
    fn model_server(&self, view: ModelServerView, known: Option<&str>) -> Result<Reply, Reply> {
        let shown = self.operations.model_server(view);
        let body = shown.map_err(|reason| Reply::error(502, "LMX_UNREACHABLE", reason))?;
        let tag = websocket::digest(body.as_bytes());
        Ok(Reply::json_text(200, body).with_tag(&tag, known))
    }

    fn health(&self, has_token: bool) -> Reply {
        Reply::json(200, &self.health_now(has_token))
    }

    /// Returns the health that a stream shows, with the time.
    pub fn streamed_health(&self) -> String {
        json::text(&protocol::Health { ts: Some(clock::now_millis()), ..self.health_now(true) })
    }

    fn health_now(&self, has_token: bool) -> protocol::Health {
        let contract = || protocol::Contract { name: "opta-daemon-v3".to_owned(), version: 1 };
        protocol::Health {
            status: "ok".to_owned(),
            version: protocol::PROTOCOL_VERSION.to_owned(),
            uptime: sys::boot_clock().saturating_sub(self.started).as_secs(),
            daemon_id: has_token.then(|| self.daemon_id.clone()),
            contract: has_token.then(contract),
            build: has_token.then(|| env!("CARGO_PKG_VERSION").to_owned()),
            runtime: has_token.then(|| self.sessions.counts()),
            ts: None,
        }
    }

    fn metrics(&self) -> Reply {
        let tenths = sys::resident_bytes() * 10 / (1 << 20);
        let (counts, turns) = (self.sessions.counts(), self.sessions.submitted());
        let metrics = protocol::Metrics {
            daemon_id: self.daemon_id.clone(),
            ts: clock::rfc3339(clock::now_millis()),
            active_sessions: counts.session_count,
            runtime: protocol::RuntimeCounts {
                ingress_seq: Some(turns),
                tool_workers: Some(protocol::ToolWorkers::default()),
                latency: Some(protocol::Latency::default()),
                ..counts
            },
            total_turns: turns,
            memory_mb: tenths as f64 / 10.0,
            tool_workers: protocol::ToolSlots::default(),
        };
        Reply::json(200, &metrics)
    }

    /// Stops the daemon. With `ifIdle`, checks that in the same step, so that no turn can begin in
    /// between.
    fn shutdown(&self, body: &[u8]) -> Result<Reply, Reply> {
        let asked: protocol::Shutdown = session_handlers::parse(body)?;
        if asked.if_idle == Some(true) {
            self.sessions.stop_if_idle()?;
        }
        (self.on_shutdown)();
        Ok(Reply::json(202, &protocol::ShutdownAccepted { ok: true }))
    }
}

fn liveness() -> protocol::Liveness {
    let version = protocol::PROTOCOL_VERSION.to_owned();
    protocol::Liveness { status: "ok".to_owned(), version, daemon: true }
}

impl Authorized<'_> {
    /// Returns whether it is answered without a body, and without waiting for the disk.
    pub fn is_immediate(&self) -> bool {
        self.is_health() || matches!(self.route, Route::Liveness | Route::Page(_))
    }

    /// Returns whether it asks for the health of the daemon.
    pub fn is_health(&self) -> bool {
        self.route == Route::Health
    }

    /// Returns the size limit of the body.
    pub fn body_bytes_max(&self) -> usize {
        match self.route {
            Route::Turns(_) => limits::TURN_BODY_BYTES_MAX,
            _ => limits::BODY_BYTES_MAX,
        }
    }
}
