//! Answers that take their time: a stream of events (SSE), and a poll that waits for one.
//!
//! Both read the session's journal and wait on two things at once, the client's socket and the
//! session's waker: a client that leaves is seen at once, and nothing ticks in between but the
//! heartbeat. There is no queue that could overflow: a client that is slow is further behind in the
//! journal, and one that takes nothing for [`limits::WRITE_MAX`] is let go, to come back where it
//! was.
//!
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>

use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::session::desk::{Session, Subscription};
use crate::session::journal::{Batch, Reader};
use crate::{limits, sys};

use super::reply::Reply;

/// A place among the streams, given back when it is dropped.
pub struct Ticket(Arc<AtomicUsize>);

impl Ticket {
    /// A place, if one of [`limits::STREAMS_MAX`] is free.
    pub fn take(taken: &Arc<AtomicUsize>) -> Option<Ticket> {
        let more = |taken| (taken < limits::STREAMS_MAX).then_some(taken + 1);
        let took = taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
        took.is_ok().then(|| Ticket(Arc::clone(taken)))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A session's events after a place, as a client follows them.
pub struct Follower {
    session: Arc<Session>,
    reader: Reader,
    waker: Subscription,
    after: u64,
    /// The client has sent what is not ours to read now: its leaving cannot be seen any more.
    deaf: bool,
}

/// What came of waiting.
enum Waited {
    /// There may be more.
    Look,
    /// Nothing happened in time.
    Silence,
    /// The client has left.
    Gone,
}

impl Follower {
    /// Follows `session` from behind event number `after`, for somebody who may be one who
    /// `answers` questions.
    pub fn new(
        session: Arc<Session>,
        after: u64,
        answers: bool,
    ) -> Result<Follower, crate::error::Error> {
        // The waker first: what is appended from now on rings it.
        let waker = session.subscribe(answers)?;
        let reader = session.reader();
        Ok(Follower { session, reader, waker, after, deaf: false })
    }

    /// The next events. That there are some and none can be read is an error, or the reader would
    /// look for them for ever.
    fn next(&mut self, events_max: usize) -> io::Result<Batch> {
        let last = self.reader.last_seq();
        let batch = self.reader.after(self.after, events_max)?;
        if batch.events.is_empty() && last > self.after {
            let message = format!("events after number {} cannot be read", self.after);
            return Err(io::Error::new(ErrorKind::InvalidData, message));
        }
        Ok(batch)
    }

    fn wait(&mut self, client: &TcpStream, limit: Duration) -> io::Result<Waited> {
        self.waker.arm();
        if self.reader.last_seq() > self.after || self.session.is_closed() {
            return Ok(Waited::Look);
        }
        let (waker, client_fd) = (self.waker.as_fd(), client.as_fd());
        let watched = if self.deaf { waker } else { client_fd };
        let [spoke, rang] = sys::wait_readable([watched, waker], Some(limit))?;
        if rang {
            self.waker.drain();
            return Ok(Waited::Look);
        }
        if !spoke {
            return Ok(Waited::Silence);
        }
        match client.peek(&mut [0]) {
            // The next request, before this one is answered.
            Ok(count) if count > 0 => {
                self.deaf = true;
                Ok(Waited::Look)
            }
            _ => Ok(Waited::Gone),
        }
    }
}

/// A stream of events.
pub struct Stream {
    pub follower: Follower,
    pub _ticket: Ticket,
    /// Headers that the gate wants added, each with its line end.
    pub headers: String,
}

impl Stream {
    /// Streams until the client leaves, the session ends or the daemon stops.
    pub fn run(mut self, mut client: &TcpStream) -> io::Result<()> {
        client.set_write_timeout(Some(limits::WRITE_MAX))?;
        let mut out = format!(
            "HTTP/1.1 200 OK\r\nServer: opta\r\nContent-Type: text/event-stream\r\n\
             Cache-Control: no-store, no-transform\r\nX-Accel-Buffering: no\r\n\
             Connection: close\r\n{}\r\n: connected\n\n",
            self.headers
        );
        loop {
            let batch = self.follower.next(limits::EVENTS_MAX)?;
            for (seq, envelope) in batch.iter() {
                out.push_str(&format!("id: {seq}\ndata: {envelope}\n\n"));
                self.follower.after = seq;
            }
            if out.is_empty() && self.follower.session.is_closed() {
                client.write_all(last_event().as_bytes())?;
                return client.shutdown(Shutdown::Write);
            }
            if !out.is_empty() {
                client.write_all(out.as_bytes())?;
                out.clear();
                continue;
            }
            match self.follower.wait(client, limits::HEARTBEAT_EVERY)? {
                Waited::Look => {}
                Waited::Silence => out.push_str(": ping\n\n"),
                Waited::Gone => return Ok(()),
            }
        }
    }
}

/// Not an event of the session: it has no number, and a client that comes back does not miss it.
fn last_event() -> &'static str {
    "event: stream.end\ndata: {\"event\":\"stream.end\",\"reason\":\"closed\"}\n\n"
}

/// A poll for events.
pub struct Poll {
    pub follower: Follower,
    pub events_max: usize,
    pub limit: Duration,
}

impl Poll {
    /// Waits for an event, or until the time is over. `None`: the client has left.
    pub fn run(mut self, client: &TcpStream) -> io::Result<Option<Reply>> {
        let deadline = Instant::now() + self.limit;
        loop {
            let batch = self.follower.next(self.events_max)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if !batch.events.is_empty() || left.is_zero() || self.follower.session.is_closed() {
                return Ok(Some(events(&batch, &self.follower.reader)));
            }
            match self.follower.wait(client, left) {
                Ok(Waited::Gone) => return Ok(None),
                Ok(Waited::Look | Waited::Silence) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// `{"events":[…],"lastSeq":N}`: the last number that there is, not the last that is given.
fn events(batch: &Batch, reader: &Reader) -> Reply {
    let mut body = String::with_capacity(batch.text.len() + batch.events.len() + 64);
    body.push_str("{\"events\":[");
    for (index, (_, envelope)) in batch.iter().enumerate() {
        body.push_str(if index == 0 { "" } else { "," });
        body.push_str(envelope);
    }
    body.push_str(&format!("],\"lastSeq\":{}}}", reader.last_seq()));
    Reply::json_text(200, body)
}
