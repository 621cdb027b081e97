//! Calls of a daemon on this machine: for a whole response, and for a stream of events.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::lines::Lines;

use super::connection::ClientConnection;
use super::request::Request;
use super::response::{ResponseHead, invalid};

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

/// Whether a server listens on 127.0.0.1:`port`. Sends nothing.
pub fn is_listening(port: u16, limit: Duration) -> bool {
    connect(port, limit).is_ok()
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
    let (connection, head) = begin(port, request, deadline)?;
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
    let (mut connection, head) = begin(port, request, deadline)?;
    if head.status == 200 {
        // Events may have arrived with the head.
        let mut lines = Lines::default();
        lines.push(&connection.receive_body()?.unwrap_or_default());
        let stream = EventStream { connection, lines, bytes_max };
        return Ok(StreamResponse::Stream(stream));
    }
    finish(connection, &head, deadline, bytes_max).map(StreamResponse::Refused)
}

fn connect(port: u16, limit: Duration) -> io::Result<ClientConnection<'static>> {
    ClientConnection::connect(&[SocketAddr::from((Ipv4Addr::LOCALHOST, port))], limit, None)
}

fn begin(
    port: u16,
    request: &Request<'_>,
    deadline: Instant,
) -> io::Result<(ClientConnection<'static>, ResponseHead)> {
    let left = || deadline.saturating_duration_since(Instant::now());
    let mut connection = connect(port, left())?;
    connection.send(request, left())?;
    let head = connection.head(left())?;
    Ok((connection, head))
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
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    const LONG: Duration = Duration::from_secs(10);

    /// Calls `open_stream` on a server that sends `response` in one piece, then closes the
    /// connection.
    fn open(response: &'static str, bytes_max: usize) -> io::Result<StreamResponse> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = thread::Builder::new().spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            socket.write_all(response.as_bytes()).unwrap();
        });
        let (method, authority, accept) = ("GET", "h".to_owned(), "text/event-stream");
        let request = Request { method, authority, target: "/", bearer: None, accept, body: "" };
        let opened = open_stream(port, &request, LONG, bytes_max);
        serving.unwrap().join().unwrap();
        opened
    }

    #[test]
    fn events_that_arrive_with_the_head_are_returned_first() {
        let response = "HTTP/1.1 200 OK\r\n\r\n: connected\n\nid: 1\ndata: a\n\ndata: b\n\ndata: c";
        let Ok(StreamResponse::Stream(mut stream)) = open(response, 100) else { panic!() };
        assert_eq!(stream.next().unwrap(), Some("a"));
        assert_eq!(stream.next().unwrap(), Some("b"));
        assert_eq!(stream.next().unwrap(), None);
        assert_eq!(stream.read().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_event_has_a_size_limit() {
        let read = |bytes_max| {
            let response = "HTTP/1.1 200 OK\r\n\r\ndata: abc";
            let Ok(StreamResponse::Stream(mut stream)) = open(response, bytes_max) else {
                panic!()
            };
            stream.read().unwrap_err().kind()
        };
        assert_eq!(read(9), io::ErrorKind::UnexpectedEof);
        assert_eq!(read(8), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_refusal_is_read_whole() {
        let response = "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno";
        let Ok(StreamResponse::Refused(refusal)) = open(response, 2) else { panic!() };
        assert_eq!((refusal.status, refusal.body.as_slice()), (404, b"no".as_slice()));
        assert!(open(response, 1).is_err());
    }
}
