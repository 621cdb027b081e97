//! Answers that take time: a stream of events (SSE), and a poll that waits for events.
//!
//! Both read the session's journal and wait on two descriptors, the client's socket and the
//! session's waker: a disconnect is noticed immediately, and the only timer is the heartbeat. No
//! queue can overflow: a slow client reads the journal later, and one that reads nothing for
//! [`limits::WRITE_MAX`] is disconnected and can resume where it was.
//!
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>

use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::session::feed::SessionFeed;
use crate::session::reader::Envelopes;
use crate::{limits, sys};

use super::connections::ConnectionGuard;
use super::reply::Reply;

/// One of the [`limits::STREAMS_MAX`] streams. Dropping it makes room for another.
pub struct StreamSlot(Arc<AtomicUsize>);

impl StreamSlot {
    /// Takes a slot; `None` if there is none.
    pub fn take(open: &Arc<AtomicUsize>) -> Option<StreamSlot> {
        let increment = |open| (open < limits::STREAMS_MAX).then_some(open + 1);
        let taken = open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, increment);
        taken.is_ok().then(|| StreamSlot(Arc::clone(open)))
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A feed whose client is watched for its disconnect.
pub struct Follower {
    feed: SessionFeed,
    /// The client sent its next request, which is read later: its socket stays readable, so a
    /// disconnect cannot be noticed.
    has_next_request: bool,
}

/// How a wait ended.
enum Waited {
    /// There may be more events.
    Woken,
    TimedOut,
    /// The client disconnected.
    Disconnected,
}

impl Follower {
    /// Follows a feed.
    pub fn new(feed: SessionFeed) -> Follower {
        Follower { feed, has_next_request: false }
    }

    fn next(&mut self, events_max: usize) -> io::Result<Envelopes> {
        self.feed.next(events_max, limits::EVENTS_BYTES_MAX)
    }

    fn wait(&mut self, client: &TcpStream, limit: Duration) -> io::Result<Waited> {
        if self.feed.arm() {
            return Ok(Waited::Woken);
        }
        let waker = self.feed.waker();
        let watched = if self.has_next_request { waker.as_fd() } else { client.as_fd() };
        let [readable, woken] = sys::wait_readable([watched, waker.as_fd()], Some(limit))?;
        if woken {
            waker.drain();
            return Ok(Waited::Woken);
        }
        if !readable {
            return Ok(Waited::TimedOut);
        }
        self.has_next_request = has_sent_more(client);
        Ok(if self.has_next_request { Waited::Woken } else { Waited::Disconnected })
    }
}

/// Returns whether a client whose socket is readable has sent something, and not disconnected.
fn has_sent_more(client: &TcpStream) -> bool {
    client.peek(&mut [0]).is_ok_and(|count| count > 0)
}

/// Returns whether a client has disconnected. That cannot be seen after it has sent its next
/// request.
pub fn is_gone(client: &TcpStream) -> bool {
    let readable = sys::wait_readable([client.as_fd()], Some(Duration::ZERO));
    readable.is_ok_and(|readable| readable == [true]) && !has_sent_more(client)
}

/// A stream of events.
pub struct Stream {
    pub follower: Follower,
    pub _slot: StreamSlot,
    /// Further headers, each with its line end.
    pub headers: String,
}

impl Stream {
    /// Streams until the client disconnects, the session ends or the daemon stops.
    pub fn run(mut self, mut client: &TcpStream) -> io::Result<()> {
        client.set_write_timeout(Some(limits::WRITE_MAX))?;
        let mut out = head(&self.headers) + ": connected\n\n";
        loop {
            let is_closed = self.follower.feed.close_reason().is_some();
            for event in self.follower.next(limits::EVENTS_MAX)? {
                out.push_str(&format!("id: {}\ndata: {}\n\n", event.seq, event.text));
            }
            if out.is_empty() && is_closed {
                client.write_all(LAST_EVENT.as_bytes())?;
                return client.shutdown(Shutdown::Write);
            }
            if !out.is_empty() {
                client.write_all(out.as_bytes())?;
                out.clear();
                continue;
            }
            match self.follower.wait(client, limits::HEARTBEAT_EVERY)? {
                Waited::Woken => {}
                Waited::TimedOut => out.push_str(": ping\n\n"),
                Waited::Disconnected => return Ok(()),
            }
        }
    }
}

/// Returns the head of the response that is a stream, with further headers.
fn head(headers: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nServer: opta\r\nContent-Type: text/event-stream\r\n\
         X-Content-Type-Options: nosniff\r\n\
         Cache-Control: no-store, no-transform\r\nX-Accel-Buffering: no\r\n\
         Connection: close\r\n{headers}\r\n"
    )
}

/// A stream of the daemon's health.
///
/// Between two events its connection counts as idle: it may be closed to make room, and takes no
/// [`StreamSlot`]. A browser connects again.
pub struct HealthStream {
    /// Further headers, each with its line end.
    pub headers: String,
}

impl HealthStream {
    /// Sends what `health` returns, now and after each `interval`, until one side closes the
    /// connection.
    pub fn run(
        self,
        guard: &ConnectionGuard,
        interval: Duration,
        health: impl Fn() -> String,
    ) -> io::Result<()> {
        let connection = &guard.connection;
        let mut client = &connection.stream;
        client.set_write_timeout(Some(limits::WRITE_MAX))?;
        let mut out = head(&self.headers);
        loop {
            out.push_str(&format!("data: {}\n\n", health()));
            client.write_all(out.as_bytes())?;
            out.clear();
            connection.set_idle();
            // Checked after `set_idle`: a server that is closing skips the connections that are
            // busy.
            if guard.is_closing() {
                return Ok(());
            }
            let [readable] = sys::wait_readable([client.as_fd()], Some(interval))?;
            if readable {
                return Ok(());
            }
            connection.set_busy();
        }
    }
}

/// An event that does not belong to the session: it has no number, so a client that reconnects does
/// not miss it.
const LAST_EVENT: &str =
    "event: stream.end\ndata: {\"event\":\"stream.end\",\"reason\":\"closed\"}\n\n";

/// A request for events that waits for the first.
pub struct Poll {
    pub follower: Follower,
    pub events_max: usize,
    pub limit: Duration,
}

impl Poll {
    /// Waits for an event or the deadline. Returns `None` if the client disconnected.
    pub fn run(mut self, client: &TcpStream) -> io::Result<Option<Reply>> {
        let deadline = Instant::now() + self.limit;
        loop {
            let is_closed = self.follower.feed.close_reason().is_some();
            let envelopes = self.follower.next(self.events_max)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if !envelopes.is_empty() || left.is_zero() || is_closed {
                return Ok(Some(events(&envelopes, self.follower.feed.last_seq())));
            }
            match self.follower.wait(client, left) {
                Ok(Waited::Disconnected) => return Ok(None),
                Ok(Waited::Woken | Waited::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Returns `{"events":[…],"lastSeq":N}`: the last number of the session, not of these events.
fn events(envelopes: &Envelopes, last_seq: u64) -> Reply {
    let events: Vec<&str> = envelopes.iter().map(|event| event.text.as_str()).collect();
    let events = events.join(",");
    Reply::json_text(200, format!("{{\"events\":[{events}],\"lastSeq\":{last_seq}}}"))
}
