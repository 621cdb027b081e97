//! A stream of events from a daemon: one request, and an answer without an end.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::{Asking, Incoming, Reply, Request, invalid};

/// Whether anything listens on 127.0.0.1:`port`. Nothing is sent.
pub fn answers(port: u16, limit: Duration) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, limit).is_ok()
}

/// What a request for a stream of events has brought.
pub enum Opened {
    Stream(EventStream),
    /// An answer that says why not.
    Reply(Reply),
}

/// Sends `request` to 127.0.0.1:`port` and reads the head of what should be a stream of events,
/// within `limit` in all. An event, or an answer that is none, has `bytes_max` bytes at most.
///
/// # Errors
/// As [`call`](super::call).
pub fn open(
    port: u16,
    request: &Request<'_>,
    limit: Duration,
    bytes_max: usize,
) -> io::Result<Opened> {
    let deadline = Instant::now() + limit;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    let asking = Asking {
        method: request.method,
        authority: &format!("127.0.0.1:{port}"),
        target: request.target,
        bearer: Some(request.token),
        accept: "text/event-stream",
        body: request.body,
    };
    stream.write_all(asking.text()?.as_bytes()).map_err(as_timeout)?;
    let mut bytes = Vec::with_capacity(4096);
    let mut incoming = Incoming::new();
    let mut fed = 0;
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        read_more(&mut stream, &mut bytes)?;
        if bytes.len() > bytes_max {
            return Err(invalid("the answer is too long"));
        }
        if let Some(end) = end_of_stream_head(&bytes) {
            bytes.drain(..end);
            // From here on the caller waits with poll(2); a read gives what is there.
            stream.set_read_timeout(Some(limit))?;
            return Ok(Opened::Stream(EventStream {
                stream,
                bytes,
                begin: 0,
                looked: 0,
                bytes_max,
            }));
        }
        incoming.feed(bytes.get(fed..).unwrap_or_default())?;
        fed = bytes.len();
        if let Some(status) = incoming.head().map(|head| head.status)
            && status != 200
            && incoming.is_whole()
        {
            return Ok(Opened::Reply(Reply { status, body: incoming.take_body() }));
        }
    }
}

/// Where the head of an answer that is a stream ends, if this is one and its head is whole.
fn end_of_stream_head(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    bytes.starts_with(b"HTTP/1.1 200 ").then_some(end)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A socket's timeout is reported as either of two kinds, depending on the system.
fn as_timeout(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

/// Events as they come; its descriptor can be read when there may be more.
///
/// <https://html.spec.whatwg.org/multipage/server-sent-events.html>, as far as our own daemon makes
/// use of it: one line of data an event.
pub struct EventStream {
    stream: TcpStream,
    bytes: Vec<u8>,
    /// Where the part of `bytes` begins that has not been given out.
    begin: usize,
    /// Up to here there is no end of a line.
    looked: usize,
    bytes_max: usize,
}

impl EventStream {
    /// The data of the next event that has arrived whole; `None` if there is none yet.
    pub fn next(&mut self) -> io::Result<Option<&str>> {
        loop {
            let rest = self.bytes.get(self.looked..).unwrap_or_default();
            let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
                self.bytes.drain(..self.begin);
                self.looked = self.bytes.len();
                self.begin = 0;
                return Ok(None);
            };
            let (begin, end) = (self.begin, self.looked + length);
            self.begin = end + 1;
            self.looked = self.begin;
            // Numbers stand in the data as well; heartbeats and empty lines say nothing.
            let line = self.bytes.get(begin..end).unwrap_or_default();
            if line.starts_with(b"data: ") {
                let data = self.bytes.get(begin + b"data: ".len()..end).unwrap_or_default();
                let text = std::str::from_utf8(data);
                return text.map(Some).map_err(|_bad| invalid("an event is not text"));
            }
        }
    }

    /// Reads what has arrived.
    ///
    /// # Errors
    /// `UnexpectedEof` at its end, and as [`call`](super::call).
    pub fn read(&mut self) -> io::Result<()> {
        if self.bytes.len() - self.begin > self.bytes_max {
            return Err(invalid("an event is too long"));
        }
        read_more(&mut self.stream, &mut self.bytes)
    }
}

impl AsFd for EventStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn read_more(stream: &mut impl Read, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0_u8; 16 * 1024];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(as_timeout(error)),
        }
    }
}
