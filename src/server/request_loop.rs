//! The loop that serves one connection that has shown the token, on its own thread: reads a
//! request, authorizes it, answers it.
//!
//! All deadlines are absolute. The socket's timeouts enforce them; they are changed only when a
//! request arrives in pieces, so that one that arrives whole costs one read and one write.

use std::fmt::Display;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{Shutdown, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use tiny_http::Method;

use crate::error::reason;
use crate::limits;
use crate::log::Level;

use super::auth;
use super::connections::ConnectionGuard;
use super::reply::Reply;
use super::request::{self, RequestHead};
use super::routes::{Answer, App, Authorized};
use super::stream::is_gone;

/// Serves a connection until it ends. The client has sent `unread`, and has not taken `output` yet.
pub fn serve(guard: &ConnectionGuard, app: &App, unread: Vec<u8>, output: Vec<u8>) {
    if let Ok(mut requests) = RequestLoop::new(guard, app, unread, output) {
        requests.run();
    }
}

/// The most that one read takes; most requests are smaller.
pub const CHUNK_BYTES: usize = 4096;

struct RequestLoop<'a> {
    guard: &'a ConnectionGuard,
    stream: &'a TcpStream,
    app: &'a App,
    /// Bytes that arrived and are not parsed yet.
    unread: Vec<u8>,
    /// Whether a request had the token.
    has_token: bool,
    /// The reply that is being written; kept for its memory.
    output: Vec<u8>,
    /// The timeouts that are set on the socket.
    read_timeout: Duration,
    write_timeout: Duration,
}

/// Why a connection ends.
enum End {
    /// The client disconnected, or nothing follows the last reply.
    Close,
    /// The two sides do not agree on where the next request begins. This reply is the last.
    Refuse(Reply),
}

impl From<Reply> for End {
    fn from(reply: Reply) -> End {
        End::Refuse(reply)
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Close
    }
}

impl<'a> RequestLoop<'a> {
    fn new(
        guard: &'a ConnectionGuard,
        app: &'a App,
        unread: Vec<u8>,
        output: Vec<u8>,
    ) -> io::Result<RequestLoop<'a>> {
        let (stream, deadlines) = (&guard.connection.stream, &app.deadlines);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(deadlines.idle))?;
        stream.set_write_timeout(Some(deadlines.write))?;
        Ok(RequestLoop {
            guard,
            stream,
            app,
            unread,
            has_token: false,
            output,
            read_timeout: deadlines.idle,
            write_timeout: deadlines.write,
        })
    }

    fn run(&mut self) {
        if self.flush().is_err() {
            return;
        }
        loop {
            match self.exchange() {
                Ok(()) => {}
                Err(End::Close) => return,
                Err(End::Refuse(reply)) => {
                    let status = reply.status();
                    self.app.log.debug("request refused", &[("status", &status)]);
                    if self.send(reply.closing()).is_ok() {
                        self.drain();
                    }
                    return;
                }
            }
        }
    }

    /// Handles one request.
    fn exchange(&mut self) -> Result<(), End> {
        let bytes = self.read_head()?;
        let head = request::parse(&bytes)?;
        let reply = match self.reply(&head) {
            Ok(reply) => complete(reply, &head),
            Err(End::Refuse(reply)) => return Err(End::Refuse(complete(reply, &head))),
            Err(End::Close) => return Err(End::Close),
        };
        log_request(self.app, &head, &reply);
        // A connection without the token is held by the event loop, or ends.
        if head.last || !self.has_token || self.guard.is_closing() {
            self.send(reply.closing())?;
            return Err(End::Close);
        }
        self.send(reply)?;
        // Under load, the next request has often arrived when this thread runs again. Then it need
        // not sleep and be woken, which costs more than the request.
        thread::yield_now();
        Ok(())
    }

    fn reply(&mut self, head: &RequestHead<'_>) -> Result<Reply, End> {
        let authorized = match self.app.authorize(head) {
            Ok(authorized) => authorized,
            // The body lies between this request and the next.
            Err(reply) if head.content_length > 0 || reply.is_last() => {
                return Err(End::Refuse(reply));
            }
            Err(reply) => return Ok(reply),
        };
        self.has_token |= authorized.has_token;
        let body = self.read_body(head, authorized.body_bytes_max())?;
        let is_awaited = || !self.guard.is_closing() && !is_gone(self.stream);
        match answer(self.app, head, &authorized, &body, &is_awaited) {
            Answer::Now(reply) => Ok(reply),
            Answer::Poll(poll) => match poll.run(self.stream) {
                Ok(reply) => reply.ok_or(End::Close),
                Err(error) => Ok(Reply::error(500, "INTERNAL_ERROR", reason(&error))),
            },
            Answer::Stream(stream) => {
                // Nothing follows a stream, whether it failed or not.
                drop(stream.run(self.stream));
                Err(End::Close)
            }
            Answer::HealthStream(stream) => {
                let interval = self.app.deadlines.health;
                drop(stream.run(self.guard, interval, || self.app.streamed_health()));
                Err(End::Close)
            }
            Answer::WebSocket(socket) => {
                let early = mem::take(&mut self.unread);
                drop(socket.run(&self.guard.connection, &early, &*self.app.on_activity));
                Err(End::Close)
            }
        }
    }

    /// Reads the bytes of a whole head.
    fn read_head(&mut self) -> Result<Vec<u8>, End> {
        let mut scanned = 0;
        let mut begun = (!self.unread.is_empty()).then(Instant::now);
        loop {
            if let Some(end) = request::head_end(&self.unread, scanned)? {
                return Ok(self.unread.drain(..end).collect());
            }
            scanned = self.unread.len();
            let mut unread = mem::take(&mut self.unread);
            match begun {
                Some(begun) => {
                    let deadline = begun + self.app.deadlines.head;
                    let what = "the head of the request";
                    self.read_before(deadline, CHUNK_BYTES, what, &mut unread)?;
                }
                None => self.read_first(&mut unread)?,
            }
            begun.get_or_insert_with(Instant::now);
            self.unread = unread;
        }
    }

    /// Waits for the first bytes of a request. A client may be silent, or disconnect, between two
    /// requests.
    fn read_first(&mut self, bytes: &mut Vec<u8>) -> Result<(), End> {
        let connection = &self.guard.connection;
        connection.set_idle();
        // Checked after `set_idle`: a server that is closing skips the connections that are busy.
        if self.guard.is_closing() {
            connection.close_if_idle();
        }
        match self.read(self.app.deadlines.idle, CHUNK_BYTES, bytes)? {
            0 => Err(End::Close),
            _ => {
                connection.set_busy();
                Ok(())
            }
        }
    }

    fn read_body(&mut self, head: &RequestHead<'_>, bytes_max: usize) -> Result<Vec<u8>, End> {
        let length = usize::try_from(head.content_length).unwrap_or(usize::MAX);
        if length > bytes_max {
            let message = format_args!("the body is longer than {bytes_max} bytes");
            return Err(Reply::error(413, "PAYLOAD_TOO_LARGE", message).into());
        }
        let here = length.min(self.unread.len());
        let mut body: Vec<u8> = self.unread.drain(..here).collect();
        if body.len() == length {
            return Ok(body);
        }
        let deadline = Instant::now() + self.app.deadlines.body;
        if head.expects_continue && body.is_empty() {
            self.output.clear();
            self.output.extend(b"HTTP/1.1 100 Continue\r\n\r\n");
            self.flush()?;
        }
        while body.len() < length {
            let most = length - body.len();
            self.read_before(deadline, most, "the body of the request", &mut body)?;
        }
        Ok(body)
    }

    /// Appends at least one byte of `what` to `bytes`, and at most `most`.
    fn read_before(
        &mut self,
        deadline: Instant,
        most: usize,
        what: &str,
        bytes: &mut Vec<u8>,
    ) -> Result<(), End> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.read(left, most, bytes) {
            Ok(0) => Err(Reply::invalid(format_args!("{what} is cut off")).into()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                let message = format_args!("{what} took too long");
                Err(Reply::error(408, "INVALID_REQUEST", message).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Appends at most `most` bytes to `bytes`; fails with `TimedOut` after `timeout`.
    fn read(&mut self, timeout: Duration, most: usize, bytes: &mut Vec<u8>) -> io::Result<usize> {
        if timeout.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        if timeout != self.read_timeout {
            self.stream.set_read_timeout(Some(timeout))?;
            self.read_timeout = timeout;
        }
        // Not a part of `self`: a connection that waits keeps no memory for it.
        let mut chunk = [0; CHUNK_BYTES];
        let room = chunk.get_mut(..most.min(CHUNK_BYTES)).unwrap_or_default();
        loop {
            match self.stream.read(room) {
                Ok(count) => {
                    bytes.extend(room.iter().take(count));
                    return Ok(count);
                }
                // No signal has a handler, so this does not extend a deadline.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, mut reply: Reply) -> io::Result<()> {
        let _after_the_reply = reply.take_sequel();
        self.output.clear();
        reply.print(&mut self.output)?;
        self.flush()
    }

    /// Writes the output before its deadline, or fails.
    fn flush(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + self.app.deadlines.write;
        let mut rest = self.output.as_slice();
        let mut left = self.app.deadlines.write;
        while !rest.is_empty() {
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            if left != self.write_timeout {
                self.stream.set_write_timeout(Some(left))?;
                self.write_timeout = left;
            }
            match self.stream.write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            left = deadline.saturating_duration_since(Instant::now());
        }
        Ok(())
    }

    /// Discards what the client still sends. Closing with unread bytes would reset the connection,
    /// and the reset can overtake the reply.
    fn drain(&mut self) {
        if self.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + self.app.deadlines.drain;
        let mut drained = 0;
        while drained < limits::DRAIN_BYTES_MAX {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut discarded = Vec::new();
            match self.read(left, CHUNK_BYTES, &mut discarded) {
                Ok(0) | Err(_) => return,
                Ok(count) => drained += count,
            }
        }
    }
}

/// Completes a reply with what depends on the request and not on its route.
pub fn complete(reply: Reply, head: &RequestHead<'_>) -> Reply {
    let reply = auth::with_cors_headers(reply, head);
    if head.method == Method::Head { reply.bodiless() } else { reply }
}

/// Logs a request and the status of its reply, at the level for debugging.
pub fn log_request(app: &App, head: &RequestHead<'_>, reply: &Reply) {
    // Checked first, so that a line that is not written costs nothing.
    if app.log.enabled(Level::Debug) {
        let fields: [(&str, &dyn Display); 3] =
            [("method", &head.method), ("path", &head.path), ("status", &reply.status())];
        app.log.debug("request", &fields);
    }
}

/// Answers a request. A panic is an error of this request and of no other.
pub fn answer(
    app: &App,
    head: &RequestHead<'_>,
    authorized: &Authorized<'_>,
    body: &[u8],
    is_awaited: &dyn Fn() -> bool,
) -> Answer {
    let answer = || app.answer(authorized, head, body, is_awaited);
    let answered = catch_unwind(AssertUnwindSafe(answer));
    answered.unwrap_or_else(|panic| {
        let cause = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        let fields: [(&str, &dyn Display); 3] =
            [("method", &head.method), ("path", &head.path), ("cause", &cause)];
        app.log.error("a request panicked", &fields);
        let message = "the daemon has failed at this request; its log says more";
        Answer::Now(Reply::error(500, "INTERNAL_ERROR", message))
    })
}
