//! A WebSocket: events to the client, messages from it. RFC 6455.
//!
//! One thread serves it. It waits for the client, for events and for the next deadline in one call,
//! so an idle WebSocket takes no time but for a ping after a long silence. Nothing is queued for a
//! slow client: it reads the journal later.

mod codec;
mod events;
mod handshake;
mod messages;
mod socket;

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use tiny_http::Method;

use crate::protocol::SessionId;
use crate::session::feed::Feed;
use crate::session::runtime::Runtime;
use crate::session::session::SessionError;

use super::auth;
use super::reply::Reply;
use super::request::RequestHead;
use super::stream::StreamSlot;
pub use handshake::digest;

use codec::{CLOSE_INTERNAL, CLOSE_NOT_TEXT, CLOSE_TRY_LATER, Incoming};
use events::Events;
use socket::{End, Ending, Socket};

/// A WebSocket whose handshake was accepted.
pub struct WebSocket {
    /// The head of the reply.
    head: String,
    opened: Result<Opened, Ending>,
}

/// What an authorized client follows.
struct Opened {
    runtime: Arc<Runtime>,
    own: Option<SessionId>,
    feed: Feed,
    _slot: StreamSlot,
}

/// The status code of a query that cannot be followed.
const CLOSE_INVALID: u16 = 4000;
/// The status code of a missing or wrong token.
const CLOSE_UNAUTHORIZED: u16 = 4001;

impl WebSocket {
    /// Accepts a handshake. `open` returns what the client follows, and its session. Failures are
    /// told on the WebSocket: see [`unauthorized`].
    pub fn accept(
        head: &RequestHead<'_>,
        runtime: &Arc<Runtime>,
        slot: Option<StreamSlot>,
        open: impl FnOnce() -> Result<(Option<SessionId>, Feed), SessionError>,
    ) -> Result<WebSocket, Reply> {
        let head = handshake::accept(head)?;
        let Some(slot) = slot else {
            let full = SessionError::Busy("too many event streams are open".to_owned());
            return Ok(WebSocket { head, opened: Err(refusal(&full)) });
        };
        let opened = open().map_err(|error| refusal(&error));
        let runtime = Arc::clone(runtime);
        let opened = opened.map(|(own, feed)| Opened { runtime, own, feed, _slot: slot });
        Ok(WebSocket { head, opened })
    }

    /// Serves the client until one side closes. `early` arrived with the handshake; `on_message` is
    /// called for each message.
    pub fn run(self, client: &TcpStream, early: &[u8], on_message: &dyn Fn()) -> io::Result<()> {
        let mut socket = Socket::new(client, &self.head, early)?;
        let end = match self.opened {
            Ok(mut opened) => {
                let events = Events::new(&mut opened.feed);
                let own = opened.own.as_ref();
                serve(&mut socket, events, |text| {
                    on_message();
                    messages::answer(&opened.runtime, own, text)
                })
            }
            Err(ending) => End::Ours(ending),
        };
        socket.finish(end)
    }
}

/// Returns the reply to a client without the token: it is told on a WebSocket that ends at once,
/// because browsers hide the status of a refused handshake from pages.
pub fn unauthorized(head: &RequestHead<'_>) -> Reply {
    if head.method != Method::Get {
        return auth::unauthorized();
    }
    match handshake::accept(head) {
        Err(refused) => refused,
        Ok(accepted) => {
            let mut bytes = accepted.into_bytes();
            codec::write_text(r#"{"error":"Unauthorized"}"#, &mut bytes);
            codec::write_close(Some(CLOSE_UNAUTHORIZED), "unauthorized", &mut bytes);
            Reply::switching(bytes)
        }
    }
}

/// Serves a client. Returns why it is no longer served.
fn serve(
    socket: &mut Socket<'_>,
    mut events: Events<'_>,
    answer: impl Fn(&str) -> Option<String>,
) -> End {
    let mut serve = || loop {
        let mut has_more = true;
        while has_more && socket.has_room() {
            has_more = match socket.next()? {
                Some(incoming) => {
                    react(socket, incoming, &answer)?;
                    true
                }
                None => false,
            };
        }
        events.send(socket)?;
        socket.flush()?;
        if !(has_more && socket.has_room()) {
            events.wait(socket)?;
        }
    };
    let end: Result<std::convert::Infallible, End> = serve();
    match end {
        Err(end) => end,
    }
}

fn react(
    socket: &mut Socket<'_>,
    incoming: Incoming,
    answer: impl Fn(&str) -> Option<String>,
) -> Result<(), End> {
    match incoming {
        Incoming::Text(text) => {
            if let Some(answer) = answer(&text) {
                socket.send_text(&answer);
            }
        }
        Incoming::Ping(payload) => socket.send_pong(&payload),
        Incoming::Pong => {}
        Incoming::Binary => {
            return Err(End::Ours(Ending::new(CLOSE_NOT_TEXT, "messages are texts")));
        }
        Incoming::Close(code) => return Err(End::Theirs(code)),
    }
    Ok(())
}

/// Returns how a WebSocket ends on which nothing can be followed.
fn refusal(error: &SessionError) -> Ending {
    let code = match error {
        SessionError::Invalid(_) => CLOSE_INVALID,
        SessionError::Stopping => codec::CLOSE_GOING_AWAY,
        SessionError::Busy(_) => CLOSE_TRY_LATER,
        _ => CLOSE_INTERNAL,
    };
    Ending { message: Some(messages::error(error)), code, reason: error.to_string() }
}
