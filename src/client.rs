//! The command line's view of a running daemon: one request, one deadline.
//!
//! The token goes only to the port that a card names, and callers hold a card only while the lock
//! says that its daemon lives.

use std::io;
use std::time::Duration;

use nanoserde::DeJson;

use crate::error::{Error, reason};
use crate::state::Card;
use crate::{http, json, limits};

/// What a daemon says of itself when it is asked for its health.
#[derive(DeJson)]
pub struct Health {
    /// Seconds since it began to serve.
    pub uptime: u64,
    #[nserde(rename = "daemonId")]
    pub daemon_id: String,
    pub runtime: Runtime,
}

/// What it is busy with.
#[derive(DeJson)]
pub struct Runtime {
    #[nserde(rename = "sessionCount")]
    pub sessions: u64,
}

/// How a daemon may fail to answer.
pub enum Silence {
    /// Nothing listens at its port.
    Refused,
    /// It has not answered in time.
    Late,
    /// What answers is not the daemon of this card.
    Stranger,
}

/// Asks a daemon for its health, within `limit`.
pub fn health(card: &Card, limit: Duration) -> Result<Health, Silence> {
    let request = request("GET", "/v3/health", card, "");
    match http::call(card.port, &request, limit, limits::REPLY_BYTES_MAX) {
        Ok(reply) if reply.status == 200 => match json::parse::<Health>(&reply.body) {
            Ok(health) if health.daemon_id == card.daemon_id => Ok(health),
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
/// [`Error::Busy`] if it is not idle; then nothing has changed.
pub fn shutdown_if_idle(card: &Card) -> Result<(), Error> {
    const WHAT: &str = "ask the daemon to stop";
    let request = request("POST", "/v3/shutdown", card, r#"{"ifIdle":true}"#);
    let reply = http::call(card.port, &request, limits::CALL_MAX, limits::REPLY_BYTES_MAX);
    match reply {
        Ok(reply) if reply.status == 202 => Ok(()),
        Ok(reply) if reply.status == 409 => Err(Error::Busy),
        Ok(reply) => {
            Err(Error::Reply { what: WHAT, because: format!("it answered {}", reply.status) })
        }
        Err(cause) => Err(Error::Reply { what: WHAT, because: reason(&cause) }),
    }
}

fn request<'a>(
    method: &'static str,
    target: &'a str,
    card: &'a Card,
    body: &'a str,
) -> http::Request<'a> {
    http::Request { method, target, token: card.token.secret(), body }
}
