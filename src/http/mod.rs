//! A small HTTP/1.1 client: one connection, one request, one response. RFC 9112.
//!
//! It asks no proxy, follows no redirect and keeps no connection. Every wait has a deadline. What
//! the responses mean is up to the caller. `https://` is left to curl(1), with the same limits.

mod connection;
pub mod curl;
mod message;
mod owner;
mod resolve;
mod wait;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::lines::Lines;

pub use connection::ClientConnection;
use message::invalid;
pub use message::{Request, ResponseHead};
pub use owner::peer_owner;
pub use resolve::addresses;

/// A whole response.
pub struct Response {
    pub status: u16,
    pub body: Vec<u8>,
}

/// The response to a request for a stream of events.
pub enum StreamResponse {
    Stream(EventStream),
    Refused(Response),
}

/// Returns whether a server listens on 127.0.0.1:`port`. Sends nothing.
pub fn is_listening(port: u16, limit: Duration) -> bool {
    ClientConnection::connect(&[loopback(port)], limit, None).is_ok()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Connects to 127.0.0.1:`port`, before `deadline`. A port that refuses does so immediately.
pub fn connect(
    port: u16,
    deadline: Instant,
    wake: Option<BorrowedFd<'_>>,
) -> io::Result<ClientConnection<'_>> {
    let left = deadline.saturating_duration_since(Instant::now());
    ClientConnection::connect(&[loopback(port)], left, wake)
}

/// Sends `request` to 127.0.0.1:`port` and reads the head of the response, before `deadline`.
fn send(
    port: u16,
    request: &Request<'_>,
    deadline: Instant,
) -> io::Result<(ClientConnection<'static>, ResponseHead)> {
    let left = || deadline.saturating_duration_since(Instant::now());
    let mut connection = connect(port, deadline, None)?;
    connection.send(request, left())?;
    let head = connection.head(left())?;
    Ok((connection, head))
}

/// Sends `request` to 127.0.0.1:`port` and reads the whole response, within `limit` in all.
///
/// # Errors
/// `TimedOut` after `limit`; `InvalidData` for what is not an HTTP response, or has no length, or
/// more than `bytes_max` bytes; `UnexpectedEof` for a response that is cut off; and the errors of
/// the system, such as `ConnectionRefused`.
pub fn call(
    port: u16,
    request: &Request<'_>,
    limit: Duration,
    bytes_max: usize,
) -> io::Result<Response> {
    let deadline = Instant::now() + limit;
    let (connection, head) = send(port, request, deadline)?;
    finish(connection, &head, deadline, bytes_max)
}

/// Sends `request` to 127.0.0.1:`port` and reads the head of the response, within `limit` in all.
/// An event, or the body of a refusal, has at most `bytes_max` bytes.
///
/// # Errors
/// As [`call`].
pub fn open_stream(
    port: u16,
    request: &Request<'_>,
    limit: Duration,
    bytes_max: usize,
) -> io::Result<StreamResponse> {
    let deadline = Instant::now() + limit;
    let (mut connection, head) = send(port, request, deadline)?;
    if head.status == 200 {
        // Events may have arrived with the head.
        let mut lines = Lines::default();
        lines.push(&connection.receive_body()?.unwrap_or_default());
        let stream = EventStream { connection, lines, bytes_max };
        return Ok(StreamResponse::Stream(stream));
    }
    finish(connection, &head, deadline, bytes_max).map(StreamResponse::Refused)
}

fn finish(
    mut connection: ClientConnection<'_>,
    head: &ResponseHead,
    deadline: Instant,
    bytes_max: usize,
) -> io::Result<Response> {
    if !head.has_length {
        return Err(invalid("the response has no length"));
    }
    let mut body = Vec::new();
    let left = || deadline.saturating_duration_since(Instant::now());
    connection.read_body(&mut body, bytes_max, left)?;
    Ok(Response { status: head.status, body })
}

/// Events as they arrive. Its descriptor is readable when there may be more.
///
/// <https://html.spec.whatwg.org/multipage/server-sent-events.html>, as far as our own daemon uses
/// it: one line of data per event.
pub struct EventStream {
    connection: ClientConnection<'static>,
    lines: Lines,
    bytes_max: usize,
}

const DATA: &[u8] = b"data: ";

impl EventStream {
    /// Returns the data of the next complete event; `None` if there is none yet.
    pub fn next(&mut self) -> io::Result<Option<&str>> {
        // The data has the number as well; heartbeats and empty lines say nothing.
        let line = self.lines.next_that(|line| line.starts_with(DATA));
        let text = line.map(|line| std::str::from_utf8(line.get(DATA.len()..).unwrap_or_default()));
        text.transpose().map_err(|_bad| invalid("an event is not text"))
    }

    /// Reads what has arrived. Does not wait.
    ///
    /// # Errors
    /// `UnexpectedEof` at its end, and as [`call`].
    pub fn read(&mut self) -> io::Result<()> {
        if self.lines.pending().len() > self.bytes_max {
            return Err(invalid("an event is too long"));
        }
        let bytes = self.connection.receive_body()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.lines.push(&bytes);
        Ok(())
    }
}

impl AsFd for EventStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    const LONG: Duration = Duration::from_secs(10);

    /// Sends a request to a server that responds in one piece, then closes the connection.
    fn ask<T>(response: &str, send: impl FnOnce(u16, &Request<'_>) -> T) -> T {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let response = response.to_owned();
        let serving = thread::Builder::new().spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            // The client may have closed the connection after the head.
            drop(socket.write_all(response.as_bytes()));
        });
        let (method, authority, accept) = ("GET", "h".to_owned(), "text/plain");
        let request =
            Request { method, authority, target: "/", bearer: None, accept, body: [""; 3] };
        let result = send(port, &request);
        serving.unwrap().join().unwrap();
        result
    }

    fn called(response: &str, bytes_max: usize) -> io::Result<Response> {
        ask(response, |port, request| call(port, request, LONG, bytes_max))
    }

    fn opened(response: &str, bytes_max: usize) -> io::Result<StreamResponse> {
        ask(response, |port, request| open_stream(port, request, LONG, bytes_max))
    }

    /// Returns the error after the last event.
    fn end(stream: &mut EventStream) -> io::ErrorKind {
        loop {
            let readable = sys::wait_readable([stream.as_fd()], Some(LONG)).unwrap();
            assert_eq!(readable, [true]);
            if let Err(error) = stream.read() {
                return error.kind();
            }
        }
    }

    #[test]
    fn a_call_returns_only_a_complete_response_of_at_most_its_limit() {
        let with = |length: usize, body: &str| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            called(&(head + body), 100)
        };
        assert_eq!(with(100, &"x".repeat(100)).unwrap().body.len(), 100);
        let kind = |response: io::Result<Response>| response.err().map(|error| error.kind());
        let invalid = Some(io::ErrorKind::InvalidData);
        assert_eq!(kind(with(101, &"x".repeat(101))), invalid);
        assert_eq!(kind(with(3, "ok")), Some(io::ErrorKind::UnexpectedEof));
        assert_eq!(kind(called("HTTP/1.1 200 OK\r\n\r\nok", 100)), invalid);
        assert_eq!(called("HTTP/1.1 204 No\r\n\r\n", 0).unwrap().status, 204);
    }

    #[test]
    fn events_that_arrive_with_the_head_are_returned_first() {
        let response = "HTTP/1.1 200 OK\r\n\r\n: connected\n\nid: 1\ndata: a\n\ndata: b\n\ndata: c";
        let Ok(StreamResponse::Stream(mut stream)) = opened(response, 100) else { panic!() };
        assert_eq!(stream.next().unwrap(), Some("a"));
        assert_eq!(stream.next().unwrap(), Some("b"));
        assert_eq!(stream.next().unwrap(), None);
        assert_eq!(end(&mut stream), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_event_has_a_size_limit() {
        let read = |bytes_max| {
            let response = "HTTP/1.1 200 OK\r\n\r\ndata: abc";
            let Ok(StreamResponse::Stream(mut stream)) = opened(response, bytes_max) else {
                panic!()
            };
            end(&mut stream)
        };
        assert_eq!(read(9), io::ErrorKind::UnexpectedEof);
        assert_eq!(read(8), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_refusal_is_read_whole() {
        let response = "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno";
        let Ok(StreamResponse::Refused(refusal)) = opened(response, 2) else { panic!() };
        assert_eq!((refusal.status, refusal.body.as_slice()), (404, b"no".as_slice()));
        assert!(opened(response, 1).is_err());
    }
}
