//! A WebSocket: events to the client, messages from it. RFC 6455.
//!
//! Its thread waits for the client, for events and for the next deadline in one call, so an idle
//! WebSocket takes no time but for a ping after a long silence. New events are sent by the
//! dispatcher, if that takes no wait. Nothing is queued for a slow client: it reads the journal
//! later.

mod codec;
mod events;
mod handshake;
mod messages;
mod socket;

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, Weak};

use tiny_http::Method;

use crate::mutex::{lock, try_lock};
use crate::protocol::SessionId;
use crate::session::dispatch::{Left, Target};
use crate::session::feed::Feed;
use crate::session::runtime::Runtime;
use crate::session::session::SessionError;
use crate::session::wake::Waker;
use crate::sys::Interest;
use crate::sys::poll::PollSet;

use super::auth;
use super::connections::Connection;
use super::reply::Reply;
use super::request::RequestHead;
use super::stream::StreamSlot;
pub use handshake::digest;

use codec::{CLOSE_INTERNAL, CLOSE_NOT_TEXT, CLOSE_TRY_LATER, Incoming};
use events::{Events, Sender};
use socket::{End, Ending, Socket, Wait};

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
    pub fn run(
        self,
        connection: &Arc<Connection>,
        early: &[u8],
        on_message: &dyn Fn(),
    ) -> io::Result<()> {
        let socket = Socket::new(Arc::clone(connection), &self.head, early)?;
        match self.opened {
            Ok(Opened { runtime, own, feed, _slot }) => {
                let follower = Follower::new(&runtime, socket, feed);
                let end = follower.serve(connection, |text| {
                    on_message();
                    messages::answer(&runtime, own.as_ref(), text)
                });
                // The dispatcher may keep the rest for a moment.
                let served = lock(&follower.served).take();
                served.map_or(Ok(()), |served| served.socket.finish(end))
            }
            Err(ending) => socket.finish(End::Ours(ending)),
        }
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

/// A client that follows events.
struct Follower {
    waker: Arc<Waker>,
    /// Its thread has the lock except while it waits. `None` after the end.
    served: Mutex<Option<Served>>,
}

struct Served {
    socket: Socket,
    events: Events,
    /// Why it ends, if the dispatcher found that out.
    end: Option<End>,
}

impl Target for Follower {
    fn dispatch(&self) -> Left {
        let Some(mut served) = try_lock(&self.served) else { return Left::ForThread };
        let Some(served) = served.as_mut() else { return Left::Nothing };
        served.dispatch().unwrap_or_else(|end| {
            served.end = Some(end);
            Left::ForThread
        })
    }

    fn wake_thread(&self) {
        self.waker.wake_thread();
    }
}

impl Follower {
    fn new(runtime: &Runtime, socket: Socket, feed: Feed) -> Arc<Follower> {
        let waker = Arc::clone(feed.waker());
        let served = Served { socket, events: Events::new(feed), end: None };
        let served = Mutex::new(Some(served));
        let follower = Arc::new(Follower { waker, served });
        let target = Arc::downgrade(&follower);
        // Without the dispatcher, its thread does everything.
        drop(follower.waker.dispatch_by(runtime.dispatcher(), target as Weak<dyn Target>));
        follower
    }

    /// Serves the client. Returns why it is no longer served.
    fn serve(&self, connection: &Connection, answer: impl Fn(&str) -> Option<String>) -> End {
        let mut files = PollSet::default();
        let mut serve = || loop {
            let wait = self.with_served(|served| served.proceed(&answer))?;
            files.clear();
            files.add(connection.stream.as_fd(), wait.interest);
            if wait.for_events {
                files.add(self.waker.as_fd(), Interest::Read);
            }
            files.wait(Some(wait.limit))?;
            if files.is_ready(1) {
                self.waker.drain();
            }
            if files.is_ready(0) {
                self.with_served(|served| served.socket.read())?;
            }
        };
        let end: Result<std::convert::Infallible, End> = serve();
        match end {
            Err(end) => end,
        }
    }

    fn with_served<T>(&self, act: impl FnOnce(&mut Served) -> Result<T, End>) -> Result<T, End> {
        lock(&self.served).as_mut().map_or(Err(End::Gone), act)
    }
}

impl Served {
    /// Does all that can be done. Returns what is to be waited for.
    fn proceed(&mut self, answer: impl Fn(&str) -> Option<String>) -> Result<Wait, End> {
        if let Some(end) = self.end.take() {
            return Err(end);
        }
        let Served { socket, events, .. } = self;
        loop {
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
            events.send(socket, Sender::Thread)?;
            socket.flush()?;
            if !(has_more && socket.has_room()) {
                return events.wait(socket);
            }
        }
    }

    /// Sends the new events. Returns what is left to be done.
    fn dispatch(&mut self) -> Result<Left, End> {
        let Served { socket, events, end } = self;
        if end.is_some() || !events.are_quick() {
            return Ok(Left::ForThread);
        }
        events.send(socket, Sender::Dispatcher)?;
        socket.flush()?;
        Ok(if socket.is_flushed() { events.arm() } else { Left::ForThread })
    }
}

fn react(
    socket: &mut Socket,
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
