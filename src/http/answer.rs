//! An HTTP answer, understood as it arrives: head, framing, body. Pure. RFC 9112.
//!
//! A body may have a length, come in chunks, or end with the connection. One that ends before its
//! end is an error. Nothing is allocated by a length that was only announced.

use std::io;

use crate::limits;

use super::invalid;

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: u16,
    /// The end of the body can be told from the end of the connection.
    pub tells_length: bool,
    fields: Vec<(String, String)>,
}

impl Head {
    /// The first field of this name, which is compared without regard to case.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields_named(name).next()
    }

    fn fields_named(&self, name: &str) -> impl Iterator<Item = &str> {
        let named = self.fields.iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str())
    }
}

/// What is awaited next.
#[derive(Clone, Copy)]
enum Awaited {
    Head,
    /// So many bytes, and then the end.
    Bytes(u64),
    ChunkSize,
    /// So many bytes, and then the end of the line.
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// Bytes until the connection ends.
    Close,
    Nothing,
}

/// An answer that is arriving.
pub struct Incoming {
    awaited: Awaited,
    head: Option<Head>,
    /// What has arrived and is not understood yet.
    raw: Vec<u8>,
    body: Vec<u8>,
    heard: bool,
    trailer_bytes: usize,
}

impl Incoming {
    /// Nothing has arrived.
    pub fn new() -> Incoming {
        Incoming {
            awaited: Awaited::Head,
            head: None,
            raw: Vec::new(),
            body: Vec::new(),
            heard: false,
            trailer_bytes: 0,
        }
    }

    /// Takes in what has arrived. Bytes behind the end of the answer are ignored.
    ///
    /// # Errors
    /// `InvalidData` for what is no HTTP answer.
    pub fn feed(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.heard |= !bytes.is_empty();
        self.raw.extend_from_slice(bytes);
        let mut at = 0;
        while self.step(&mut at)? {}
        self.raw.drain(..at.min(self.raw.len()));
        Ok(())
    }

    /// The connection has ended.
    ///
    /// # Errors
    /// `UnexpectedEof` unless the answer may end here.
    pub fn end(&mut self) -> io::Result<()> {
        match self.awaited {
            Awaited::Close | Awaited::Nothing => {
                self.awaited = Awaited::Nothing;
                Ok(())
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The head, once it is whole.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Whether the answer is complete.
    pub fn is_whole(&self) -> bool {
        matches!(self.awaited, Awaited::Nothing)
    }

    /// Whether a byte of it has arrived.
    pub fn is_begun(&self) -> bool {
        self.heard
    }

    /// What of the body has arrived since this was last asked.
    pub fn take_body(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.body)
    }

    /// Understands the next part of `raw` behind `at`; `false` if it has not arrived yet.
    fn step(&mut self, at: &mut usize) -> io::Result<bool> {
        let rest = self.raw.get(*at..).unwrap_or_default();
        match self.awaited {
            Awaited::Head => {
                let Some(length) = head_length(rest)? else { return Ok(false) };
                let (head, awaited) = parse_head(rest.get(..length).unwrap_or_default())?;
                *at += length;
                // An interim answer is followed by the one that counts.
                if !(100..200).contains(&head.status) {
                    self.head = Some(head);
                    self.awaited = awaited;
                }
                Ok(true)
            }
            Awaited::Bytes(left) => {
                let taken = self.take_bytes(at, left);
                self.awaited = match left - taken {
                    0 => Awaited::Nothing,
                    left => Awaited::Bytes(left),
                };
                Ok(taken == left)
            }
            Awaited::ChunkSize => {
                let Some(line) = line(rest)? else { return Ok(false) };
                let size = chunk_size(line)?;
                *at += line.len() + 2;
                self.awaited = if size == 0 { Awaited::Trailers } else { Awaited::Chunk(size) };
                Ok(true)
            }
            Awaited::Chunk(left) => {
                let taken = self.take_bytes(at, left);
                self.awaited = match left - taken {
                    0 => Awaited::ChunkEnd,
                    left => Awaited::Chunk(left),
                };
                Ok(taken == left)
            }
            Awaited::ChunkEnd => match rest {
                [b'\r', b'\n', ..] => {
                    *at += 2;
                    self.awaited = Awaited::ChunkSize;
                    Ok(true)
                }
                [] | [b'\r'] => Ok(false),
                _ => Err(invalid("a chunk is longer than it says")),
            },
            Awaited::Trailers => {
                let Some(line) = line(rest)? else { return Ok(false) };
                let length = line.len() + 2;
                *at += length;
                self.trailer_bytes += length;
                if self.trailer_bytes > limits::HEAD_BYTES_MAX {
                    return Err(invalid("the trailers of the answer are too long"));
                }
                if length == 2 {
                    self.awaited = Awaited::Nothing;
                }
                Ok(true)
            }
            Awaited::Close => {
                self.take_bytes(at, u64::MAX);
                Ok(false)
            }
            Awaited::Nothing => {
                *at = self.raw.len();
                Ok(false)
            }
        }
    }

    /// Moves at most `most` bytes to the body; says how many.
    fn take_bytes(&mut self, at: &mut usize, most: u64) -> u64 {
        let rest = self.raw.get(*at..).unwrap_or_default();
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(rest.len());
        self.body.extend_from_slice(rest.get(..count).unwrap_or_default());
        *at += count;
        count as u64
    }
}

/// The length of a whole head, with the empty line.
fn head_length(bytes: &[u8]) -> io::Result<Option<usize>> {
    let near = bytes.get(..limits::HEAD_BYTES_MAX).unwrap_or(bytes);
    let length = near.windows(4).position(|window| window == b"\r\n\r\n").map(|start| start + 4);
    if length.is_none() && bytes.len() >= limits::HEAD_BYTES_MAX {
        return Err(invalid("the head of the answer is too long"));
    }
    // What is no HTTP is refused at once: it may have no empty line, ever.
    let begin = b"HTTP/1.";
    if !bytes.iter().zip(begin).all(|(found, expected)| found == expected) {
        return Err(invalid("it does not begin with a status line"));
    }
    Ok(length)
}

/// A line of the framing, without its end.
fn line(bytes: &[u8]) -> io::Result<Option<&[u8]>> {
    let near = bytes.get(..limits::HEAD_BYTES_MAX).unwrap_or(bytes);
    match near.windows(2).position(|window| window == b"\r\n") {
        Some(end) => Ok(near.get(..end)),
        None if bytes.len() >= limits::HEAD_BYTES_MAX => Err(invalid("a line is too long")),
        None => Ok(None),
    }
}

fn chunk_size(line: &[u8]) -> io::Result<u64> {
    let size = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let digits = std::str::from_utf8(size).ok().filter(|digits| {
        (1..=16).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    let size = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    size.ok_or_else(|| invalid("a chunk does not tell its size"))
}

fn parse_head(bytes: &[u8]) -> io::Result<(Head, Awaited)> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| {
        let (version, rest) = line.split_once(' ')?;
        matches!(version, "HTTP/1.1" | "HTTP/1.0").then_some(())?;
        let code = rest.split(' ').next()?;
        (code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit())).then_some(())?;
        code.parse().ok()
    });
    let status: u16 = status.ok_or_else(|| invalid("it does not begin with a status line"))?;
    if status == 101 {
        return Err(invalid("it wants to speak another protocol"));
    }
    let fields = lines.filter_map(|line| line.split_once(':'));
    let fields = fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
    let mut head = Head { status, tells_length: true, fields };
    let awaited = framing(&head)?;
    head.tells_length = !matches!(awaited, Awaited::Close);
    Ok((head, awaited))
}

/// How the end of the body is told. RFC 9112, 6.3.
fn framing(head: &Head) -> io::Result<Awaited> {
    if matches!(head.status, 100..200 | 204 | 304) {
        return Ok(Awaited::Nothing);
    }
    let codings: Vec<&str> = head.fields_named("transfer-encoding").collect();
    match codings.as_slice() {
        [] => {}
        [coding] if coding.eq_ignore_ascii_case("chunked") => return Ok(Awaited::ChunkSize),
        _ => return Err(invalid("it is encoded in a way that was not asked for")),
    }
    let mut lengths = head.fields_named("content-length");
    let Some(length) = lengths.next() else { return Ok(Awaited::Close) };
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let parsed = length.parse().ok().filter(|_| digits && lengths.all(|other| other == length));
    match parsed {
        Some(0) => Ok(Awaited::Nothing),
        Some(length) => Ok(Awaited::Bytes(length)),
        None => Err(invalid("it does not tell its length")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Status and body of an answer that arrives in pieces of `size`, and then ends.
    fn read(text: &str, size: usize) -> io::Result<(u16, String)> {
        let mut incoming = Incoming::new();
        let mut body = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            incoming.feed(piece)?;
            body.extend(incoming.take_body());
        }
        if !incoming.is_whole() {
            incoming.end()?;
        }
        Ok((incoming.head().unwrap().status, String::from_utf8(body).unwrap()))
    }

    #[test]
    fn an_answer_is_taken_whole_or_not_at_all() {
        let whole = [
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
        for (text, status, body) in whole {
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
    fn what_frames_an_answer_has_limits() {
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
