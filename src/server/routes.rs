//! What can be asked, and the answers.
//!
//! A request comes here twice: with its head, to be let in ([`App::admit`]), and with its body, to
//! be answered ([`App::answer`]). Between the two the body is read, for those only who were let in.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use crate::clock;
use crate::json;
use crate::limits;
use crate::log::Log;
use crate::protocol;
use crate::session::runtime::Runtime;
use crate::sys;
use crate::token::Token;

use super::auth;
use super::reply::Reply;
use super::request::Head;
use super::sessions::{self, Answer, Asked};

/// What the server answers from.
pub struct App {
    pub token: Token,
    pub daemon_id: String,
    /// The port that the listener has, as clients must name it in `Host`.
    pub port: u16,
    /// [`sys::boot_clock`] when the daemon began.
    pub started: Duration,
    pub log: Log,
    pub sessions: Arc<Runtime>,
    /// Open event streams.
    pub streams: Arc<AtomicUsize>,
    /// Called for each shutdown that is granted, before its answer is written.
    pub on_shutdown: Box<dyn Fn() + Send + Sync>,
    /// Called for each request that is let in; must be quick.
    pub on_activity: Box<dyn Fn() + Send + Sync>,
}

/// A request that was let in.
pub struct Admitted {
    route: Route,
    caller: Caller,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Route {
    Health,
    Metrics,
    Shutdown,
    Sessions(sessions::Route),
}

#[derive(PartialEq, Eq)]
enum Caller {
    Stranger,
    /// Has shown the token.
    Owner,
}

impl Route {
    fn find(path: &str) -> Option<Route> {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        match segments.as_slice() {
            ["v3", "health"] => Some(Route::Health),
            ["v3", "metrics"] => Some(Route::Metrics),
            ["v3", "shutdown"] => Some(Route::Shutdown),
            ["v3", rest @ ..] => sessions::Route::find(rest).map(Route::Sessions),
            _ => None,
        }
    }

    /// The methods that it takes, as the `Allow` header lists them.
    fn methods(&self) -> &'static str {
        match self {
            Route::Health | Route::Metrics => "GET, HEAD",
            Route::Shutdown => "POST",
            Route::Sessions(route) => route.methods(),
        }
    }

    /// Whether it has something to say to those who show no token.
    fn is_open(&self) -> bool {
        *self == Route::Health
    }

    /// Whether the token may stand in the URL, where histories and logs keep it.
    fn takes_token_in_query(&self) -> bool {
        matches!(self, Route::Health | Route::Sessions(sessions::Route::Sse))
    }
}

impl App {
    /// Whether the request with this head is served; `Err` is the answer that it gets instead.
    ///
    /// Without the token, a route that does not exist looks like one that does.
    pub fn admit(&self, head: &Head) -> Result<Admitted, Reply> {
        auth::check_sender(head, self.port)?;
        let route = Route::find(&head.path);
        let presented = auth::bearer(head).or_else(|| {
            let in_query = route.as_ref().is_some_and(Route::takes_token_in_query);
            in_query.then(|| auth::token_in_query(head)).flatten()
        });
        let caller = match presented {
            Some(token) if self.token.matches(token.as_bytes()) => Caller::Owner,
            None if route.as_ref().is_some_and(Route::is_open) => Caller::Stranger,
            _ => return Err(auth::unauthorized()),
        };
        let Some(route) = route else {
            let message = "there is nothing at this path";
            return Err(Reply::problem(404, "NOT_FOUND", message));
        };
        let methods = route.methods();
        if !methods.split(", ").any(|method| method == head.method.as_str()) {
            let message = format_args!("this path takes {methods}");
            return Err(Reply::problem(405, "METHOD_NOT_ALLOWED", message).with("Allow", methods));
        }
        auth::check_body_type(head)?;
        Ok(Admitted { route, caller })
    }

    /// The answer to a request that was let in, or something that will answer it.
    pub fn answer(&self, admitted: &Admitted, head: &Head, body: &[u8]) -> Answer {
        (self.on_activity)();
        match &admitted.route {
            Route::Health => self.health(&admitted.caller).into(),
            Route::Metrics => self.metrics().into(),
            Route::Shutdown => self.shutdown(body).into(),
            Route::Sessions(route) => {
                let asked = Asked {
                    method: head.method.as_str(),
                    query: &head.query,
                    last_event_id: head.last_event_id.as_deref(),
                    body,
                    headers: auth::shared_headers(head),
                };
                let answer = sessions::answer(&self.sessions, &self.streams, route, asked);
                answer.unwrap_or_else(Answer::Now)
            }
        }
    }

    fn health(&self, caller: &Caller) -> Reply {
        let mut health = protocol::Health {
            status: "ok".to_owned(),
            version: protocol::PROTOCOL_VERSION.to_owned(),
            uptime: sys::boot_clock().saturating_sub(self.started).as_secs(),
            daemon_id: None,
            contract: None,
            build: None,
            runtime: None,
        };
        if *caller == Caller::Owner {
            health.daemon_id = Some(self.daemon_id.clone());
            health.contract =
                Some(protocol::Contract { name: "opta-daemon-v3".to_owned(), version: 1 });
            health.build = Some(env!("CARGO_PKG_VERSION").to_owned());
            health.runtime = Some(self.sessions.counts());
        }
        Reply::json(200, &health)
    }

    fn metrics(&self) -> Reply {
        let tenths = sys::resident_bytes() * 10 / (1 << 20);
        let (counts, turns) = (self.sessions.counts(), self.sessions.submitted());
        let metrics = protocol::Metrics {
            daemon_id: self.daemon_id.clone(),
            ts: clock::now_millis(),
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

    /// Decided in one step: once this has said yes to `ifIdle`, no turn can begin.
    fn shutdown(&self, body: &[u8]) -> Reply {
        let asked = match body {
            [] => protocol::Shutdown::default(),
            body => match json::parse::<protocol::Shutdown>(body) {
                Ok(asked) => asked,
                Err(problem) => return Reply::invalid(problem),
            },
        };
        if asked.if_idle == Some(true)
            && let Err(problem) = self.sessions.leave_if_idle()
        {
            return Reply::problem(409, "BUSY", problem);
        }
        (self.on_shutdown)();
        Reply::json(202, &protocol::ShutdownAccepted { ok: true })
    }
}

impl Admitted {
    /// The longest body that this request may have.
    pub fn body_max(&self) -> usize {
        match &self.route {
            Route::Sessions(route) => route.body_max(),
            _ => limits::BODY_BYTES_MAX,
        }
    }
}
