//! A small blocking HTTP/1.1 client over `TcpStream`: one request, one answer, one deadline; or a
//! stream of events, which has none.
//!
//! Connects to 127.0.0.1 and nowhere else: no names are resolved, no proxy is asked, no redirect is
//! followed. The connection is not kept.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// What is asked.
pub struct Request<'a> {
    pub method: &'static str,
    /// Begins with `/`; visible ASCII.
    pub target: &'a str,
    pub token: &'a str,
    /// JSON; empty for none.
    pub body: &'a str,
}

/// What came back.
pub struct Reply {
    pub status: u16,
    pub body: Vec<u8>,
}

/// Sends `request` to 127.0.0.1:`port` and reads the whole answer, within `limit` in all.
///
/// # Errors
/// `TimedOut` when the time is over, `InvalidData` for what is no HTTP answer, `UnexpectedEof` for
/// one that is cut short, and whatever the system says, `ConnectionRefused` above all.
pub fn call(
    port: u16,
    request: &Request<'_>,
    limit: Duration,
    bytes_max: usize,
) -> io::Result<Reply> {
    let deadline = Instant::now() + limit;
    let mut stream = send(port, request, deadline)?;
    read_reply(&mut stream, bytes_max, |stream| stream.set_read_timeout(Some(left(deadline)?)))
}

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
/// within `limit` in all. A line of the stream, or an answer that is none, has `bytes_max` bytes at
/// most.
///
/// # Errors
/// As [`call`].
pub fn open(
    port: u16,
    request: &Request<'_>,
    limit: Duration,
    bytes_max: usize,
) -> io::Result<Opened> {
    let deadline = Instant::now() + limit;
    let mut stream = send(port, request, deadline)?;
    let mut bytes = Vec::with_capacity(4096);
    let end = loop {
        if let Some(end) = end_of_head(&bytes) {
            break end;
        }
        if bytes.len() > bytes_max {
            return Err(invalid("the head of the answer is too long"));
        }
        stream.set_read_timeout(Some(left(deadline)?))?;
        read_more(&mut stream, &mut bytes)?;
    };
    let head = bytes.get(..end).unwrap_or_default();
    if head.starts_with(b"HTTP/1.1 200 ") {
        bytes.drain(..end);
        // From here on the caller waits with poll(2); a read gives what is there.
        stream.set_read_timeout(Some(limit))?;
        return Ok(Opened::Stream(EventStream { stream, bytes, begin: 0, looked: 0, bytes_max }));
    }
    let mut whole = io::Cursor::new(bytes).chain(&stream);
    read_reply(&mut whole, bytes_max, |_| stream.set_read_timeout(Some(left(deadline)?)))
        .map(Opened::Reply)
}

fn send(port: u16, request: &Request<'_>, deadline: Instant) -> io::Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, left(deadline)?)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(head_and_body(port, request).as_bytes()).map_err(as_timeout)?;
    Ok(stream)
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
    /// `UnexpectedEof` at its end, and as [`call`].
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

fn head_and_body(port: u16, request: &Request<'_>) -> String {
    let Request { method, target, token, body } = request;
    let mut text = format!(
        "{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n\
         Connection: close\r\n"
    );
    if !body.is_empty() {
        let length = body.len();
        text.push_str("Content-Type: application/json\r\n");
        text.push_str(&format!("Content-Length: {length}\r\n"));
    }
    text.push_str("\r\n");
    text.push_str(body);
    text
}

/// Reads head and body. `before_read` is called before each read: it sets what is left of the
/// deadline.
fn read_reply<S: Read>(
    stream: &mut S,
    bytes_max: usize,
    before_read: impl Fn(&S) -> io::Result<()>,
) -> io::Result<Reply> {
    let mut bytes = Vec::with_capacity(1024);
    let mut expected: Option<(usize, u16)> = None;
    loop {
        if expected.is_none()
            && let Some(end) = end_of_head(&bytes)
        {
            let (status, length) = parse_head(bytes.get(..end).unwrap_or_default())?;
            if length > bytes_max {
                return Err(invalid("the answer is too long"));
            }
            expected = Some((end + length, status));
        }
        if let Some((total, status)) = expected
            && bytes.len() >= total
        {
            let start = end_of_head(&bytes).unwrap_or(0);
            return Ok(Reply {
                status,
                body: bytes.get(start..total).unwrap_or_default().to_vec(),
            });
        }
        if expected.is_none() && bytes.len() > bytes_max {
            return Err(invalid("the head of the answer is too long"));
        }
        before_read(stream)?;
        read_more(stream, &mut bytes)?;
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|start| start + 4)
}

/// The status and the length of the body. RFC 9112.
fn parse_head(head: &[u8]) -> io::Result<(u16, usize)> {
    let text = std::str::from_utf8(head).map_err(|_not_text| invalid("the head is not text"))?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| {
        let (version, rest) = line.split_once(' ')?;
        matches!(version, "HTTP/1.1" | "HTTP/1.0").then_some(())?;
        rest.get(..3)?.parse().ok()
    });
    let status = status.ok_or_else(|| invalid("it does not begin with a status line"))?;
    if status == 204 {
        return Ok((status, 0));
    }
    let length = lines.filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())
    });
    match length {
        Some(Some(length)) => Ok((status, length)),
        _ => Err(invalid("it does not tell its length")),
    }
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

fn invalid(because: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, because)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> io::Result<Reply> {
        read_reply(&mut text.as_bytes(), 100, |_| Ok(()))
    }

    #[test]
    fn an_answer_is_taken_whole_or_not_at_all() {
        let reply = read("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        assert_eq!((reply.status, reply.body.as_slice()), (200, b"ok".as_slice()));
        assert_eq!(read("HTTP/1.1 204 No Content\r\n\r\n").unwrap().status, 204);
        for (text, kind) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", io::ErrorKind::UnexpectedEof),
            ("HTTP/1.1 200 OK\r\nContent-Le", io::ErrorKind::UnexpectedEof),
            ("", io::ErrorKind::UnexpectedEof),
            ("HTTP/1.1 200 OK\r\n\r\nok", io::ErrorKind::InvalidData),
            ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", io::ErrorKind::InvalidData),
            ("HTTP/2 200\r\nContent-Length: 0\r\n\r\n", io::ErrorKind::InvalidData),
            ("SSH-2.0-OpenSSH_9.2\r\n\r\n", io::ErrorKind::InvalidData),
        ] {
            let error = read(text).err().map(|error| error.kind());
            assert_eq!(error, Some(kind), "{text:?}");
        }
    }

    #[test]
    fn an_answer_may_be_as_long_as_the_limit_and_no_longer() {
        let with = |length: usize| {
            read(&format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{}",
                "x".repeat(length)
            ))
        };
        assert_eq!(with(100).unwrap().body.len(), 100);
        assert!(with(101).is_err());
        assert!(read(&format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(200))).is_err());
    }
}
