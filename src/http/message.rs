//! The messages of HTTP: a request as bytes, and a response parsed as it arrives. Pure. RFC 9112.
//!
//! The body of a response has a length, comes in chunks, or ends with the connection. One that is
//! cut off is an error. No memory is allocated for a length that was only announced.

use std::io;

use crate::limits;

/// A request.
pub struct Request<'a> {
    pub method: &'static str,
    /// Host and port, as in a URL.
    pub authority: String,
    /// Begins with `/`; visible ASCII.
    pub target: &'a str,
    /// A secret.
    pub bearer: Option<&'a str>,
    /// The media types that are accepted.
    pub accept: &'static str,
    /// JSON in parts, which are sent one after another; empty for none.
    pub body: [&'a str; 3],
}

impl Request<'_> {
    /// Checks that no part of the head would end its line or begin another one; `InvalidInput` if
    /// one would.
    pub fn check(&self) -> io::Result<()> {
        for part in [self.authority.as_str(), self.target, self.bearer.unwrap_or("-")] {
            if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_graphic()) {
                let because = "a part of the request is not visible ASCII";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, because));
            }
        }
        Ok(())
    }

    /// Returns the length of the body.
    pub fn body_length(&self) -> usize {
        self.body.iter().map(|part| part.len()).sum()
    }

    /// Returns the head of the request as it is sent.
    ///
    /// # Errors
    /// As [`Request::check`].
    pub fn head(&self) -> io::Result<String> {
        self.check()?;
        let Request { method, authority, target, bearer, accept, .. } = self;
        let version = env!("CARGO_PKG_VERSION");
        let mut text = format!(
            "{method} {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: opta/{version}\r\n\
             Accept: {accept}\r\nConnection: close\r\n"
        );
        if let Some(secret) = bearer {
            text.push_str(&format!("Authorization: Bearer {secret}\r\n"));
        }
        let length = self.body_length();
        if length > 0 {
            text.push_str("Content-Type: application/json\r\n");
            text.push_str(&format!("Content-Length: {length}\r\n"));
        }
        text.push_str("\r\n");
        Ok(text)
    }
}

/// The head of a response.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub status: u16,
    /// The head or the chunks give the length of the body, not the end of the connection.
    pub has_length: bool,
    fields: Vec<(String, String)>,
}

impl ResponseHead {
    /// Returns the value of the first field with this name, in any case.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields_named(name).next()
    }

    fn fields_named(&self, name: &str) -> impl Iterator<Item = &str> {
        let named = self.fields.iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str())
    }
}

/// What the parser expects next.
#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    Head,
    /// This many bytes of the body, or of a chunk of it.
    Body {
        left: u64,
        chunked: bool,
    },
    ChunkSize,
    ChunkEnd,
    Trailers,
    /// Bytes of the body until the connection ends.
    UntilClose,
    Complete,
}

/// The parser of one response.
#[derive(Default)]
pub struct ResponseParser {
    state: State,
    head: Option<ResponseHead>,
    /// Bytes that arrived and are not parsed yet.
    raw: Vec<u8>,
    body: Vec<u8>,
    begun: bool,
    trailer_bytes: usize,
}

impl ResponseParser {
    /// Parses the next bytes of the connection. Bytes after the end of the response are ignored.
    ///
    /// # Errors
    /// `InvalidData` for what is not an HTTP response.
    pub fn feed(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.begun |= !bytes.is_empty();
        self.raw.extend_from_slice(bytes);
        let mut at = 0;
        while self.step(&mut at)? {}
        self.raw.drain(..at.min(self.raw.len()));
        Ok(())
    }

    /// Accepts the end of the connection.
    ///
    /// # Errors
    /// `UnexpectedEof` unless the response may end here.
    pub fn end(&mut self) -> io::Result<()> {
        if !matches!(self.state, State::UntilClose | State::Complete) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.state = State::Complete;
        Ok(())
    }

    /// Returns the head once it is complete.
    pub fn head(&self) -> Option<&ResponseHead> {
        self.head.as_ref()
    }

    /// Returns whether a byte has arrived, of an interim response too.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    pub fn is_complete(&self) -> bool {
        matches!(self.state, State::Complete)
    }

    /// Takes the part of the body that has arrived since the last call.
    pub fn take_body(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.body)
    }

    /// Parses the next part of `raw` from `at`; returns `false` if it has not arrived yet.
    fn step(&mut self, at: &mut usize) -> io::Result<bool> {
        let rest = self.raw.get(*at..).unwrap_or_default();
        match self.state {
            State::Head => {
                let Some(length) = head_length(rest)? else { return Ok(false) };
                let (head, state) = parse_head(rest.get(..length).unwrap_or_default())?;
                *at += length;
                // The final response follows an interim one.
                if !(100..200).contains(&head.status) {
                    self.head = Some(head);
                    self.state = state;
                }
            }
            State::Body { left, chunked } => {
                let taken = self.take_bytes(at, left);
                self.state = match left - taken {
                    0 if chunked => State::ChunkEnd,
                    0 => State::Complete,
                    left => State::Body { left, chunked },
                };
                return Ok(taken == left);
            }
            State::ChunkSize => {
                let Some(line) = line(rest)? else { return Ok(false) };
                *at += line.len() + 2;
                self.state = match chunk_size(line)? {
                    0 => State::Trailers,
                    left => State::Body { left, chunked: true },
                };
            }
            State::ChunkEnd => match rest {
                [b'\r', b'\n', ..] => {
                    *at += 2;
                    self.state = State::ChunkSize;
                }
                [] | [b'\r'] => return Ok(false),
                _ => return Err(invalid("a chunk is longer than it says")),
            },
            State::Trailers => {
                let Some(line) = line(rest)? else { return Ok(false) };
                let length = line.len() + 2;
                *at += length;
                self.trailer_bytes += length;
                if self.trailer_bytes > limits::HEAD_BYTES_MAX {
                    return Err(invalid("the trailers of the response are too long"));
                }
                if line.is_empty() {
                    self.state = State::Complete;
                }
            }
            State::UntilClose => {
                self.take_bytes(at, u64::MAX);
                return Ok(false);
            }
            State::Complete => {
                *at = self.raw.len();
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Moves at most `most` bytes to the body; returns how many.
    fn take_bytes(&mut self, at: &mut usize, most: u64) -> u64 {
        let rest = self.raw.get(*at..).unwrap_or_default();
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(rest.len());
        self.body.extend_from_slice(rest.get(..count).unwrap_or_default());
        *at += count;
        count as u64
    }
}

/// Returns the length of the head, with the empty line, once it is complete.
fn head_length(bytes: &[u8]) -> io::Result<Option<usize>> {
    let end = find(bytes, b"\r\n\r\n", "the head of the response is too long")?;
    // Rejected immediately: text that is not HTTP may never contain an empty line.
    let begin = b"HTTP/1.";
    if !bytes.iter().zip(begin).all(|(found, expected)| found == expected) {
        return Err(invalid("the response does not begin with a status line"));
    }
    Ok(end.map(|end| end + 4))
}

/// Returns the next line of the framing, without its end, once it is complete.
fn line(bytes: &[u8]) -> io::Result<Option<&[u8]>> {
    let end = find(bytes, b"\r\n", "the size of a chunk is too long")?;
    Ok(end.and_then(|end| bytes.get(..end)))
}

/// Returns where `mark` begins, once it has arrived. It is within the size limit of a head.
fn find(bytes: &[u8], mark: &[u8], too_long: &'static str) -> io::Result<Option<usize>> {
    let near = bytes.get(..limits::HEAD_BYTES_MAX).unwrap_or(bytes);
    match near.windows(mark.len()).position(|window| window == mark) {
        None if bytes.len() >= limits::HEAD_BYTES_MAX => Err(invalid(too_long)),
        found => Ok(found),
    }
}

fn chunk_size(line: &[u8]) -> io::Result<u64> {
    let size = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let digits = std::str::from_utf8(size).ok().filter(|digits| {
        (1..=16).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    let size = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    size.ok_or_else(|| invalid("a chunk has no valid size"))
}

fn parse_head(bytes: &[u8]) -> io::Result<(ResponseHead, State)> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| {
        let (version, rest) = line.split_once(' ')?;
        matches!(version, "HTTP/1.1" | "HTTP/1.0").then_some(())?;
        let code = rest.split(' ').next()?;
        (code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit())).then_some(())?;
        code.parse().ok()
    });
    let status: u16 =
        status.ok_or_else(|| invalid("the response does not begin with a status line"))?;
    if status == 101 {
        return Err(invalid("the server wants to switch protocols"));
    }
    let fields = lines.filter_map(|line| line.split_once(':'));
    let fields = fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
    let mut head = ResponseHead { status, has_length: true, fields };
    let state = framing(&head)?;
    head.has_length = !matches!(state, State::UntilClose);
    Ok((head, state))
}

/// Returns the state after the head: how the length of the body is determined. RFC 9112, 6.3.
fn framing(head: &ResponseHead) -> io::Result<State> {
    if matches!(head.status, 100..200 | 204 | 304) {
        return Ok(State::Complete);
    }
    let codings: Vec<&str> = head.fields_named("transfer-encoding").collect();
    match codings.as_slice() {
        [] => {}
        [coding] if coding.eq_ignore_ascii_case("chunked") => return Ok(State::ChunkSize),
        _ => return Err(invalid("the response has an unsupported transfer coding")),
    }
    let mut lengths = head.fields_named("content-length");
    let Some(length) = lengths.next() else { return Ok(State::UntilClose) };
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let parsed = length.parse().ok().filter(|_| digits && lengths.all(|other| other == length));
    match parsed {
        Some(0) => Ok(State::Complete),
        Some(left) => Ok(State::Body { left, chunked: false }),
        None => Err(invalid("the response has no valid length")),
    }
}

pub(super) fn invalid(because: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, because)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request<'static> {
        Request {
            method: "GET",
            authority: "h:1".to_owned(),
            target: "/",
            bearer: None,
            accept: "text/plain",
            body: [""; 3],
        }
    }

    #[test]
    fn a_head_has_the_length_of_the_whole_body() {
        let body = ["{\"a\":", "", "1}"];
        let post = Request { method: "POST", bearer: Some("s3"), body, ..request() };
        let text = post.head().unwrap();
        let head = text.strip_suffix("\r\n\r\n").unwrap();
        let lines: Vec<&str> = head.split("\r\n").collect();
        assert_eq!(lines[..2], ["POST / HTTP/1.1", "Host: h:1"]);
        for line in ["Connection: close", "Authorization: Bearer s3", "Content-Length: 7"] {
            assert!(lines.contains(&line), "{head}");
        }
        let text = request().head().unwrap();
        assert!(!text.contains("Authorization") && !text.contains("Content-Length"), "{text}");
    }

    #[test]
    fn no_part_of_a_request_can_inject_a_header() {
        for odd in ["/a\r\nX: y", "/a\nb", "/a b", "/\u{e4}", "/\0", ""] {
            for request in [
                Request { target: odd, ..request() },
                Request { authority: odd.to_owned(), ..request() },
                Request { bearer: Some(odd), ..request() },
            ] {
                let error = request.head().unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
                assert!(odd.is_empty() || !error.to_string().contains(odd), "{error}");
            }
        }
    }

    /// Parses a response that arrives in pieces of `size` bytes before the connection ends; returns
    /// its status and body.
    fn read(text: &str, size: usize) -> io::Result<(u16, String)> {
        let mut response = ResponseParser::default();
        let mut body = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            response.feed(piece)?;
            body.extend(response.take_body());
        }
        if !response.is_complete() {
            response.end()?;
        }
        Ok((response.head().unwrap().status, String::from_utf8(body).unwrap()))
    }

    #[test]
    fn a_response_is_parsed_however_its_bytes_arrive_or_rejected() {
        let complete = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "ok"),
            ("HTTP/1.0 200\r\ncontent-length:0\r\n\r\n", 200, ""),
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
            ("HTTP/1.1 200 OK\r\n\r\nto the end", 200, "to the end"),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
                200,
                "x",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 9\r\n\r\n\
                 3;a=b\r\nabc\r\nA \r\n0123\r\n6789\r\n0\r\nX: y\r\nZ: w\r\n\r\nmore",
                200,
                "abc0123\r\n6789",
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nokmore", 200, "ok"),
        ];
        for (text, status, body) in complete {
            for size in [1, 2, 3, 7, 1000] {
                assert_eq!(read(text, size).unwrap(), (status, body.to_owned()), "{size} {text:?}");
            }
        }
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let invalid = [
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 101 Switching\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 +20 OK\r\n\r\n",
            "HTTP/2 200\r\nContent-Length: 0\r\n\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n",
            &format!("{chunked}-1\r\n"),
            &format!("{chunked}\r\n"),
            &format!("{chunked}11111111111111111\r\n"),
            &format!("{chunked}2\r\nabc\r\n"),
        ];
        let cut = [
            "",
            "HTTP/1.1 200 OK\r\nContent-Le",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
            chunked,
            &format!("{chunked}3\r\nab"),
            &format!("{chunked}3\r\nabc\r\n"),
            &format!("{chunked}3\r\nabc\r\n0\r\n"),
        ];
        let of_kind = |texts: &[&str], kind| {
            for text in texts {
                let error = read(text, 3).err().map(|error| error.kind());
                assert_eq!(error, Some(kind), "{text:?}");
            }
        };
        of_kind(&invalid, io::ErrorKind::InvalidData);
        of_kind(&cut, io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn heads_trailers_and_chunk_lines_have_a_size_limit() {
        let max = limits::HEAD_BYTES_MAX;
        let begin = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ";
        let with_head = |length: usize| {
            let padding = "y".repeat(length - begin.len() - 4);
            read(&format!("{begin}{padding}\r\n\r\n"), 1000)
        };
        assert!(with_head(max).is_ok());
        assert!(with_head(max + 1).is_err());
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(
            read(&format!("{chunked}0\r\n{}\r\n", "X: y\r\n".repeat(max / 6 + 1)), 1000).is_err()
        );
        assert!(read(&format!("{chunked}0\r\n{}\r\n", "X: y\r\n".repeat(max / 6)), 1000).is_ok());
        assert!(read(&format!("{chunked}1;{}", "x".repeat(max)), 1000).is_err());
    }
}
