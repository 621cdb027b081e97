//! The connections that the event loop holds, and the replies that it gives itself.
//!
//! A connection is held until it asks with the token for something that takes time; then it gets a
//! thread. So a stranger costs a descriptor and at most one head. Nothing here blocks, and a
//! request without a token for the health of the daemon allocates nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tiny_http::Method;

use crate::limits::DRAIN_BYTES_MAX;
use crate::log::Level;
use crate::sys::socket::is_temporary;
use crate::sys::{self, Interest};

use super::reply::Reply;
use super::request::{self, RequestHead};
use super::request_loop::{CHUNK_BYTES, answer, complete, log_request};
use super::routes::{Answer, App};

/// A connection without a thread.
pub struct HeldConnection {
    stream: TcpStream,
    /// The beginning of a head.
    unread: Vec<u8>,
    /// The rest of the replies that the client has not taken yet.
    output: Vec<u8>,
    state: State,
    /// When the state ends.
    pub deadline: Instant,
    /// The end of its last reply, or when it was accepted.
    waiting_since: Instant,
    has_token: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// No byte of a request has arrived.
    Idle,
    /// A head has begun.
    Head,
    /// The output is being written.
    Reply(Then),
    /// The last reply is written. Closing with unread bytes would reset the connection, and the
    /// reset can overtake the reply: this many are discarded first.
    Drain(usize),
}

/// What follows a reply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Read,
    Close,
    Drain,
    HandOver,
}

/// What the event loop has to do with a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Hold,
    Close,
    /// It needs a thread.
    HandOver,
}

impl HeldConnection {
    /// Holds a new connection. Fails if the client has left.
    pub fn new(stream: TcpStream, idle: Duration) -> io::Result<HeldConnection> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let now = Instant::now();
        Ok(HeldConnection {
            stream,
            unread: Vec::new(),
            output: Vec::new(),
            state: State::Idle,
            deadline: now + idle,
            waiting_since: now,
            has_token: false,
        })
    }

    /// Returns what to wait for.
    pub fn interest(&self) -> (BorrowedFd<'_>, Interest) {
        let writes = matches!(self.state, State::Reply(_));
        (self.stream.as_fd(), if writes { Interest::Write } else { Interest::Read })
    }

    /// Returns the order in which connections are closed to make room; `None` if this one is not.
    pub fn expendable(&self) -> Option<(bool, Instant)> {
        let may_close = !self.has_token || self.state == State::Idle;
        may_close.then_some((self.has_token, self.waiting_since))
    }

    /// Returns the socket, what was read and not parsed, and what is still to be written.
    pub fn into_parts(self) -> (TcpStream, Vec<u8>, Vec<u8>) {
        (self.stream, self.unread, self.output)
    }

    fn enter(&mut self, state: State, limit: Duration) {
        self.state = state;
        self.deadline = Instant::now() + limit;
    }
}

/// The part of the event loop that answers.
pub struct Responder {
    pub app: Arc<App>,
    /// Whether each reply is the last of its connection.
    pub stopping: bool,
    /// The replies to what has been read; kept for its memory.
    output: Vec<u8>,
    health: HealthReply,
}

/// The printed reply to a health request without a token, which changes once a second.
#[derive(Default)]
struct HealthReply {
    printed_at: (u64, u64),
    text: Vec<u8>,
}

impl Responder {
    pub fn new(app: Arc<App>) -> Responder {
        Responder { app, stopping: false, output: Vec::new(), health: HealthReply::default() }
    }

    /// Does what a connection is ready for.
    pub fn advance(&mut self, held: &mut HeldConnection) -> Next {
        match held.state {
            State::Idle | State::Head => self.read(held),
            State::Reply(then) => {
                let output = mem::take(&mut held.output);
                let next = self.write(held, &output, then);
                // A connection that has become idle ends with the server.
                if self.stopping && held.state == State::Idle { self.read(held) } else { next }
            }
            State::Drain(left) => discard(held, left),
        }
    }

    /// Ends the state of a connection whose deadline has passed.
    pub fn expire(&mut self, held: &mut HeldConnection) -> Next {
        if held.state != State::Head {
            return Next::Close;
        }
        let message = "the head of the request took too long";
        self.refuse(held, Reply::error(408, "INVALID_REQUEST", message))
    }

    fn read(&mut self, held: &mut HeldConnection) -> Next {
        let mut chunk = [0; CHUNK_BYTES];
        let count = match (&held.stream).read(&mut chunk) {
            Ok(0) if held.state == State::Idle => return Next::Close,
            Ok(0) => {
                return self.refuse(held, Reply::invalid("the head of the request is cut off"));
            }
            Ok(count) => count,
            Err(error) if is_temporary(&error) => {
                let unused = self.stopping && held.state == State::Idle;
                return if unused { Next::Close } else { Next::Hold };
            }
            Err(_) => return Next::Close,
        };
        let chunk = chunk.get(..count).unwrap_or_default();
        self.output.clear();
        if held.unread.is_empty() {
            // The usual case: whole requests, which are answered where they were read.
            let (used, then) = self.answer_all(held, chunk, 0);
            held.unread.extend(chunk.get(used..).unwrap_or_default());
            return self.finish(held, used, then);
        }
        let mut bytes = mem::take(&mut held.unread);
        let scanned = bytes.len();
        bytes.extend(chunk);
        let (used, then) = self.answer_all(held, &bytes, scanned);
        bytes.drain(..used);
        held.unread = bytes;
        self.finish(held, used, then)
    }

    /// Writes the output, after `used` bytes were parsed.
    fn finish(&mut self, held: &mut HeldConnection, used: usize, then: Then) -> Next {
        if used == 0 && then == Then::Read {
            if held.state == State::Idle {
                held.enter(State::Head, self.app.deadlines.head);
            }
            return Next::Hold;
        }
        let output = mem::take(&mut self.output);
        let next = self.write(held, &output, then);
        self.output = output;
        next
    }

    /// Answers the whole requests in `bytes`; an earlier call scanned the first `scanned`. Returns
    /// how many bytes they have.
    fn answer_all(
        &mut self,
        held: &mut HeldConnection,
        bytes: &[u8],
        scanned: usize,
    ) -> (usize, Then) {
        let mut used = 0;
        loop {
            let rest = bytes.get(used..).unwrap_or_default();
            let head = match request::head_end(rest, if used == 0 { scanned } else { 0 }) {
                Ok(None) => return (used, Then::Read),
                Ok(Some(end)) => rest.get(..end).unwrap_or_default(),
                Err(reply) => return (bytes.len(), self.print_refusal(reply)),
            };
            let then = match request::parse(head) {
                Ok(parsed) => self.answer(held, &parsed),
                Err(reply) => return (bytes.len(), self.print_refusal(reply)),
            };
            if then != Then::HandOver {
                used += head.len();
            }
            if then != Then::Read {
                return (used, then);
            }
        }
    }

    /// Answers one request, if that needs no thread.
    fn answer(&mut self, held: &mut HeldConnection, head: &RequestHead<'_>) -> Then {
        let authorized = self.app.authorize(head);
        let reply = match authorized {
            Ok(authorized) => {
                held.has_token |= authorized.has_token;
                if !authorized.is_immediate() {
                    return Then::HandOver;
                }
                if authorized.is_health() && !authorized.has_token && self.carries_nothing(head) {
                    let now = seconds();
                    if self.health.printed_at != now {
                        let Answer::Now(reply) =
                            answer(&self.app, head, &authorized, &[], &|| true)
                        else {
                            return Then::HandOver;
                        };
                        if reply.status() != 200 {
                            return self.print(reply, Then::Read);
                        }
                        self.health = HealthReply { printed_at: now, text: Vec::new() };
                        // Writing to memory does not fail.
                        drop(reply.print(&mut self.health.text));
                    }
                    self.output.extend_from_slice(&self.health.text);
                    return Then::Read;
                }
                match answer(&self.app, head, &authorized, &[], &|| true) {
                    Answer::Now(reply) => reply,
                    _ => return Then::HandOver,
                }
            }
            Err(reply) => reply,
        };
        let reply = complete(reply, head);
        log_request(&self.app, head, &reply);
        let then = if head.content_length > 0 || reply.is_last() {
            // A body lies between this request and the next. It is not read.
            Then::Drain
        } else if head.last || self.stopping {
            Then::Close
        } else {
            Then::Read
        };
        self.print(reply, then)
    }

    /// Returns whether the reply depends on nothing but the route.
    fn carries_nothing(&self, head: &RequestHead<'_>) -> bool {
        head.method == Method::Get
            && head.origin.is_none()
            && head.content_length == 0
            && !head.last
            && !self.stopping
            && !self.app.log.enabled(Level::Debug)
    }

    fn print(&mut self, reply: Reply, then: Then) -> Then {
        let reply = if then == Then::Read { reply } else { reply.closing() };
        match reply.print(&mut self.output) {
            Ok(()) => then,
            Err(_) => Then::Close,
        }
    }

    fn print_refusal(&mut self, reply: Reply) -> Then {
        self.app.log.debug("request refused", &[("status", &reply.status())]);
        self.print(reply, Then::Drain)
    }

    fn refuse(&mut self, held: &mut HeldConnection, reply: Reply) -> Next {
        self.output.clear();
        let then = self.print_refusal(reply);
        self.finish(held, 0, then)
    }

    /// Writes `output`, as far as the client takes it now.
    fn write(&mut self, held: &mut HeldConnection, output: &[u8], then: Then) -> Next {
        let mut rest = output;
        while !rest.is_empty() {
            match (&held.stream).write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Its thread writes the rest.
                Err(_) if then == Then::HandOver => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // The time for a reply is that from its first byte to its last.
                    if !matches!(held.state, State::Reply(_)) {
                        held.enter(State::Reply(then), self.app.deadlines.write);
                    }
                    held.output = rest.to_vec();
                    return Next::Hold;
                }
                Err(_) => return Next::Close,
            }
        }
        let deadlines = &self.app.deadlines;
        match then {
            Then::Close => Next::Close,
            Then::HandOver => {
                held.output = rest.to_vec();
                Next::HandOver
            }
            Then::Drain if held.stream.shutdown(Shutdown::Write).is_err() => Next::Close,
            Then::Drain => {
                held.enter(State::Drain(DRAIN_BYTES_MAX), deadlines.drain);
                Next::Hold
            }
            Then::Read => {
                held.waiting_since = Instant::now();
                let (state, limit) = match held.unread.is_empty() {
                    true => (State::Idle, deadlines.idle),
                    false => (State::Head, deadlines.head),
                };
                held.enter(state, limit);
                Next::Hold
            }
        }
    }
}

/// Discards what a client still sends after its last reply.
fn discard(held: &mut HeldConnection, left: usize) -> Next {
    match (&held.stream).read(&mut [0; CHUNK_BYTES]) {
        Ok(0) => Next::Close,
        Ok(count) => match left.checked_sub(count) {
            Some(left) => {
                held.state = State::Drain(left);
                Next::Hold
            }
            None => Next::Close,
        },
        Err(error) if is_temporary(&error) => Next::Hold,
        Err(_) => Next::Close,
    }
}

/// Returns the seconds of the two clocks that a reply shows.
fn seconds() -> (u64, u64) {
    let date = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (sys::boot_clock().as_secs(), date.as_secs())
}
