//! One connection: request after request, each read, admitted and answered by the connection's own
//! thread.
//!
//! All deadlines are absolute. The socket's timeout is what enforces them; it is only changed when
//! a request comes in pieces, so that a request that comes whole costs one read and one write.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::reason;
use crate::limits::DRAIN_BYTES_MAX;
use crate::log::Level;

use super::Deadlines;
use super::auth;
use super::connections::ConnectionGuard;
use super::reply::Reply;
use super::request::{self, Head};
use super::routes::{Admitted, App};
use super::sessions::Answer;

/// Serves the connection in `guard` until it ends.
pub fn serve(guard: &ConnectionGuard, app: &App, deadlines: Deadlines) {
    if let Ok(mut talk) = ConnectionLoop::open(guard, app, deadlines) {
        talk.run();
    }
}

/// One read takes up to this much; most requests are smaller.
const CHUNK_BYTES: usize = 4096;

struct ConnectionLoop<'a> {
    guard: &'a ConnectionGuard,
    stream: &'a TcpStream,
    app: &'a App,
    deadlines: Deadlines,
    /// What has arrived and was not understood yet.
    inbox: Vec<u8>,
    /// The answer being written; kept for its memory.
    outbox: Vec<u8>,
    chunk: [u8; CHUNK_BYTES],
    /// What the socket's timeouts are set to.
    read_timeout: Duration,
    write_timeout: Duration,
}

/// Why a connection ends.
enum End {
    /// There is nobody to say anything to, or nothing to say.
    Silent,
    /// After this answer the two sides no longer agree where the next request begins.
    Refusal(Reply),
}

impl From<Reply> for End {
    fn from(refusal: Reply) -> End {
        End::Refusal(refusal)
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Silent
    }
}

impl<'a> ConnectionLoop<'a> {
    fn open(
        guard: &'a ConnectionGuard,
        app: &'a App,
        deadlines: Deadlines,
    ) -> io::Result<ConnectionLoop<'a>> {
        let stream = &guard.connection.stream;
        // BSDs let it inherit the listener's mode.
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(deadlines.idle))?;
        stream.set_write_timeout(Some(deadlines.write))?;
        Ok(ConnectionLoop {
            guard,
            stream,
            app,
            deadlines,
            inbox: Vec::new(),
            outbox: Vec::new(),
            chunk: [0; CHUNK_BYTES],
            read_timeout: deadlines.idle,
            write_timeout: deadlines.write,
        })
    }

    fn run(&mut self) {
        loop {
            match self.exchange() {
                Ok(()) => {}
                Err(End::Silent) => return,
                Err(End::Refusal(reply)) => {
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

    /// One request and its answer.
    fn exchange(&mut self) -> Result<(), End> {
        let head = self.read_head()?;
        let outcome = self.answer(&head).and_then(|answer| self.settle(answer));
        let finish = |reply| finish(reply, &head);
        let reply = outcome.map(finish).map_err(|end| match end {
            End::Refusal(reply) => End::Refusal(finish(reply)),
            End::Silent => End::Silent,
        })?;
        self.note(&head, &reply);
        if head.last || self.guard.is_closing() {
            self.send(reply.closing())?;
            return Err(End::Silent);
        }
        self.send(reply)?;
        // When many are served, the next request is often there when this thread's turn comes
        // again: then it need not be put to sleep and woken, which costs more than the request.
        thread::yield_now();
        Ok(())
    }

    /// Waits for an answer that takes its time. After a stream there is nothing more to say.
    fn settle(&mut self, answer: Answer) -> Result<Reply, End> {
        match answer {
            Answer::Now(reply) => Ok(reply),
            Answer::Poll(poll) => poll.run(self.stream).map_or_else(
                |error| Ok(Reply::problem(500, "INTERNAL_ERROR", reason(&error))),
                |reply| reply.ok_or(End::Silent),
            ),
            Answer::Stream(stream) => {
                stream.run(self.stream)?;
                Err(End::Silent)
            }
        }
    }

    fn answer(&mut self, head: &Head) -> Result<Answer, End> {
        match self.app.admit(head) {
            Ok(admitted) => {
                let body = self.read_body(head, admitted.body_max())?;
                Ok(self.answer_safely(head, &admitted, &body))
            }
            // The body stands between this request and the next.
            Err(reply) if head.content_length > 0 => Err(End::Refusal(reply)),
            Err(reply) => Ok(Answer::Now(reply)),
        }
    }

    /// A fault in one answer is that request's misfortune and nobody else's.
    fn answer_safely(&self, head: &Head, admitted: &Admitted, body: &[u8]) -> Answer {
        let answered = catch_unwind(AssertUnwindSafe(|| self.app.answer(admitted, head, body)));
        answered.unwrap_or_else(|panic| {
            let cause = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown");
            let fields: [(&str, &dyn std::fmt::Display); 3] =
                [("method", &head.method), ("path", &head.path), ("cause", &cause)];
            self.app.log.error("a request panicked", &fields);
            let message = "the daemon has failed at this request; its log says more";
            Answer::Now(Reply::problem(500, "INTERNAL_ERROR", message))
        })
    }

    fn note(&self, head: &Head, reply: &Reply) {
        // Asked first: nothing is to be paid for lines that are not written.
        if self.app.log.enabled(Level::Debug) {
            let fields: [(&str, &dyn std::fmt::Display); 3] =
                [("method", &head.method), ("path", &head.path), ("status", &reply.status())];
            self.app.log.debug("request", &fields);
        }
    }

    fn read_head(&mut self) -> Result<Head, End> {
        let mut scanned = 0;
        let mut begun = (!self.inbox.is_empty()).then(Instant::now);
        loop {
            if let Some(end) = request::head_end(&self.inbox, scanned)? {
                let head = request::parse(self.inbox.get(..end).unwrap_or_default())?;
                self.inbox.drain(..end);
                return Ok(head);
            }
            scanned = self.inbox.len();
            match begun {
                Some(begun) => {
                    let deadline = begun + self.deadlines.head;
                    let count =
                        self.read_before(deadline, CHUNK_BYTES, "the head of the request")?;
                    self.inbox.extend(self.chunk.iter().take(count));
                }
                None => {
                    let count = self.read_first()?;
                    begun = Some(Instant::now());
                    self.inbox.extend(self.chunk.iter().take(count));
                }
            }
        }
    }

    /// Waits for the first bytes of a request. Silence, and an end between two requests, are
    /// nobody's fault.
    fn read_first(&mut self) -> Result<usize, End> {
        self.guard.connection.rest();
        // Asked after `rest`: a table closed before that has passed this connection by as busy.
        if self.guard.is_closing() {
            self.guard.connection.evict();
        }
        let idle = self.deadlines.idle;
        match self.read(idle, CHUNK_BYTES)? {
            0 => Err(End::Silent),
            count => {
                self.guard.connection.wake();
                Ok(count)
            }
        }
    }

    fn read_body(&mut self, head: &Head, bytes_max: usize) -> Result<Vec<u8>, End> {
        let length = usize::try_from(head.content_length).unwrap_or(usize::MAX);
        if length > bytes_max {
            let message = format_args!("the body is longer than {bytes_max} bytes");
            return Err(Reply::problem(413, "PAYLOAD_TOO_LARGE", message).into());
        }
        let here = length.min(self.inbox.len());
        let mut body: Vec<u8> = self.inbox.drain(..here).collect();
        if body.len() == length {
            return Ok(body);
        }
        let deadline = Instant::now() + self.deadlines.body;
        if head.expects_continue && body.is_empty() {
            self.outbox.clear();
            self.outbox.extend(b"HTTP/1.1 100 Continue\r\n\r\n");
            self.flush()?;
        }
        while body.len() < length {
            let count =
                self.read_before(deadline, length - body.len(), "the body of the request")?;
            body.extend(self.chunk.iter().take(count));
        }
        Ok(body)
    }

    /// At least one byte of `what`, at most `most`.
    fn read_before(&mut self, deadline: Instant, most: usize, what: &str) -> Result<usize, End> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.read(left, most) {
            Ok(0) => Err(Reply::invalid(format_args!("{what} is cut off")).into()),
            Ok(count) => Ok(count),
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                let message = format_args!("{what} took too long");
                Err(Reply::problem(408, "INVALID_REQUEST", message).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads into the chunk, at most `most` bytes; [`ErrorKind::TimedOut`] after `timeout`.
    fn read(&mut self, timeout: Duration, most: usize) -> io::Result<usize> {
        if timeout.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        if timeout != self.read_timeout {
            self.stream.set_read_timeout(Some(timeout))?;
            self.read_timeout = timeout;
        }
        let room = self.chunk.len().min(most);
        let room = self.chunk.get_mut(..room).unwrap_or_default();
        loop {
            match self.stream.read(room) {
                // No signal has a handler here, so this does not stretch a deadline.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(ErrorKind::TimedOut.into());
                }
                outcome => return outcome,
            }
        }
    }

    fn send(&mut self, reply: Reply) -> io::Result<()> {
        self.outbox.clear();
        reply.print(&mut self.outbox)?;
        self.flush()
    }

    /// Writes the outbox before its deadline, or fails.
    fn flush(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + self.deadlines.write;
        let mut rest = self.outbox.as_slice();
        let mut left = self.deadlines.write;
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

    /// Reads away what the peer still sends: closing on unread bytes would reset the connection,
    /// and the reset can overtake the answer.
    fn drain(&mut self) {
        if self.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + self.deadlines.drain;
        let mut drained = 0;
        while drained < DRAIN_BYTES_MAX {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.read(left, CHUNK_BYTES) {
                Ok(0) | Err(_) => return,
                Ok(count) => drained += count,
            }
        }
    }
}

/// What an answer owes to its request and not to its route.
fn finish(reply: Reply, head: &Head) -> Reply {
    let reply = auth::share(reply, head);
    if head.method == tiny_http::Method::Head { reply.bodiless() } else { reply }
}
