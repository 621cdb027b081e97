//! Parses the head of a request, strictly: what two parsers could read differently is rejected,
//! because request smuggling exploits leniency. Pure. RFC 9112.
//!
//! It authorizes nothing. Header fields that this server does not use are checked for their syntax
//! and dropped.

use tiny_http::Method;

use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX};

use super::reply::Reply;

/// The request line, and the header fields that this server uses. It has no `Debug`: it may hold
/// the token.
pub struct RequestHead<'b> {
    pub method: Method,
    /// As it was sent, not percent-decoded.
    pub path: &'b str,
    /// What follows the first `?`; empty without one.
    pub query: &'b str,
    pub host: &'b str,
    pub origin: Option<&'b str>,
    pub authorization: Option<&'b str>,
    pub content_type: Option<&'b str>,
    /// The last event before a stream broke off (Server-Sent Events).
    pub last_event_id: Option<&'b str>,
    /// The entity tags of what the client has. RFC 9110, 13.1.2.
    pub if_none_match: Option<&'b str>,
    /// The length of the body; 0 if none was announced. May exceed every limit.
    pub content_length: u64,
    pub upgrade: Upgrade<'b>,
    /// The client waits for an interim response before it sends the body.
    pub expects_continue: bool,
    /// This is the last request on its connection.
    pub last: bool,
}

/// The fields that ask for another protocol. RFC 9110, 7.8; RFC 6455, 4.2.1.
#[derive(Default)]
pub struct Upgrade<'b> {
    /// Whether `Connection` has the option `upgrade`, which HTTP/1.0 does not know.
    pub is_requested: bool,
    /// `Upgrade`
    pub protocol: Option<&'b str>,
    /// `Sec-WebSocket-Key`
    pub key: Option<&'b str>,
    /// `Sec-WebSocket-Version`
    pub version: Option<&'b str>,
}

/// Returns the end of the head at the start of `bytes`; `None` if it is incomplete. An earlier call
/// scanned the first `scanned` bytes.
///
/// Fails at the first byte that a head cannot contain: a control character, a line break that is
/// not CR LF, or one beyond the size limit.
pub fn head_end(bytes: &[u8], scanned: usize) -> Result<Option<usize>, Reply> {
    let mut before = scanned.checked_sub(1).and_then(|last| bytes.get(last)).copied();
    for (index, byte) in bytes.iter().copied().enumerate().skip(scanned) {
        let after_return = before == Some(b'\r');
        match byte {
            b'\n' if !after_return => return Err(Reply::invalid("a line does not end in CR LF")),
            b'\n' => {
                let head = bytes.get(..=index).unwrap_or_default();
                if head.ends_with(b"\r\n\r\n") {
                    return within_limit(head.len()).map(Some);
                }
                if head == b"\r\n" {
                    return Err(Reply::invalid("there is no request line"));
                }
            }
            _ if after_return => return Err(Reply::invalid("a line does not end in CR LF")),
            b'\r' | b'\t' => {}
            0..0x20 | 0x7f => return Err(Reply::invalid("there is a control character")),
            _ => {}
        }
        before = Some(byte);
    }
    // The head has at least one more byte.
    within_limit(bytes.len() + 1).map(|_| None)
}

fn within_limit(head_bytes: usize) -> Result<usize, Reply> {
    if head_bytes <= HEAD_BYTES_MAX {
        return Ok(head_bytes);
    }
    Err(too_large(format_args!("request line and headers are longer than {HEAD_BYTES_MAX} bytes")))
}

fn too_large(message: std::fmt::Arguments<'_>) -> Reply {
    Reply::error(431, "INVALID_REQUEST", message)
}

/// Parses a head whose end [`head_end`] found.
pub fn parse(head: &[u8]) -> Result<RequestHead<'_>, Reply> {
    let mut lines = head
        .strip_suffix(b"\r\n\r\n")
        .unwrap_or(head)
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let request_line = lines.next().unwrap_or_default();
    let (method, target, is_1_1) = parse_request_line(request_line)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let fields = Fields::read(lines)?;
    if fields.transfer_encoding {
        let message = "a body needs a Content-Length; Transfer-Encoding is not taken";
        return Err(Reply::error(411, "INVALID_REQUEST", message));
    }
    Ok(RequestHead {
        method,
        path,
        query,
        host: fields.host.ok_or_else(|| Reply::invalid("there is no Host"))?,
        origin: fields.origin,
        authorization: fields.authorization,
        content_type: fields.content_type,
        last_event_id: fields.last_event_id,
        if_none_match: fields.if_none_match,
        content_length: fields.content_length.unwrap_or(0),
        upgrade: Upgrade { is_requested: fields.upgrade.is_requested && is_1_1, ..fields.upgrade },
        // A client of HTTP/1.0 takes the interim response for the final one (RFC 9110, 10.1.1).
        expects_continue: fields.expects_continue && is_1_1,
        last: fields.close || !is_1_1,
    })
}

/// Returns method, target, and whether the version is 1.1 and not 1.0.
fn parse_request_line(line: &[u8]) -> Result<(Method, &str, bool), Reply> {
    let malformed = || Reply::invalid("the request line is not METHOD /PATH HTTP/1.1");
    let line = std::str::from_utf8(line).map_err(|_bad| malformed())?;
    let mut words = line.split(' ');
    let words = (words.next(), words.next(), words.next(), words.next());
    let (Some(method), Some(target), Some(version), None) = words else { return Err(malformed()) };
    let is_1_1 = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        other if other.starts_with("HTTP/") => {
            let message = "only HTTP/1.1 and HTTP/1.0 are spoken here";
            return Err(Reply::error(505, "INVALID_REQUEST", message));
        }
        _ => return Err(malformed()),
    };
    let visible = target.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_token(method.as_bytes()) || !target.starts_with('/') || !visible {
        return Err(malformed());
    }
    let method = method.parse().map_err(|()| malformed())?;
    Ok((method, target, is_1_1))
}

/// Returns whether a word can be a method or the name of a header field (RFC 9110, 5.6.2).
fn is_token(word: &[u8]) -> bool {
    !word.is_empty()
        && word.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

#[derive(Default)]
struct Fields<'b> {
    host: Option<&'b str>,
    origin: Option<&'b str>,
    authorization: Option<&'b str>,
    content_type: Option<&'b str>,
    last_event_id: Option<&'b str>,
    if_none_match: Option<&'b str>,
    content_length: Option<u64>,
    upgrade: Upgrade<'b>,
    transfer_encoding: bool,
    expects_continue: bool,
    close: bool,
}

impl<'b> Fields<'b> {
    fn read(lines: impl Iterator<Item = &'b [u8]>) -> Result<Fields<'b>, Reply> {
        let mut fields = Fields::default();
        for (index, line) in lines.enumerate() {
            if index == HEADERS_MAX {
                let message = format_args!("there are more than {HEADERS_MAX} headers");
                return Err(too_large(message));
            }
            // A folded line, a space before the colon and an empty name are not tokens.
            let colon = line.iter().position(|byte| *byte == b':');
            let (name, value) = colon
                .and_then(|at| line.split_at_checked(at))
                .filter(|(name, _)| is_token(name))
                .ok_or_else(|| Reply::invalid("a header is not NAME: VALUE"))?;
            fields.add(name, value.get(1..).unwrap_or_default())?;
        }
        Ok(fields)
    }

    fn add(&mut self, name: &[u8], value: &'b [u8]) -> Result<(), Reply> {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let texts = [
            ("Host", &mut self.host),
            ("Origin", &mut self.origin),
            ("Authorization", &mut self.authorization),
            ("Content-Type", &mut self.content_type),
            ("Last-Event-ID", &mut self.last_event_id),
            ("If-None-Match", &mut self.if_none_match),
            ("Upgrade", &mut self.upgrade.protocol),
            ("Sec-WebSocket-Key", &mut self.upgrade.key),
            ("Sec-WebSocket-Version", &mut self.upgrade.version),
        ];
        if let Some((name, field)) = texts.into_iter().find(|(known, _)| is(known)) {
            return set_once(field, name, text(name, value)?);
        }
        if is("Content-Length") {
            let length = parse_length(text("Content-Length", value)?)?;
            return set_once(&mut self.content_length, "Content-Length", length);
        }
        if is("Transfer-Encoding") {
            self.transfer_encoding = true;
        } else if is("Connection") {
            for option in text("Connection", value)?.split(',').map(str::trim) {
                self.close |= option.eq_ignore_ascii_case("close");
                self.upgrade.is_requested |= option.eq_ignore_ascii_case("upgrade");
            }
        } else if is("Expect") {
            self.expects_continue = true;
            if !text("Expect", value)?.eq_ignore_ascii_case("100-continue") {
                let message = "the only expectation that can be met is 100-continue";
                return Err(Reply::error(417, "INVALID_REQUEST", message));
            }
        }
        Ok(())
    }
}

/// Sets a field. One that occurs twice has two values, and two readers might use different ones.
fn set_once<T>(field: &mut Option<T>, name: &str, value: T) -> Result<(), Reply> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(Reply::invalid(format_args!("there are two {name} headers"))),
    }
}

/// Returns the value of a field without the whitespace around it. It must be ASCII.
fn text<'a>(name: &str, value: &'a [u8]) -> Result<&'a str, Reply> {
    let value = std::str::from_utf8(value).ok().filter(|value| value.is_ascii());
    value
        .map(|value| value.trim_matches([' ', '\t']))
        .ok_or_else(|| Reply::invalid(format_args!("{name} is not plain ASCII")))
}

/// Accepts digits only. A number too large for the type exceeds every limit.
fn parse_length(digits: &str) -> Result<u64, Reply> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Reply::invalid("Content-Length is not a number"));
    }
    Ok(digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Option<RequestHead<'_>>, u16> {
        match head_end(bytes, 0) {
            Ok(Some(end)) => parse(&bytes[..end]).map(Some).map_err(|reply| reply.status()),
            Ok(None) => Ok(None),
            Err(reply) => Err(reply.status()),
        }
    }

    #[test]
    fn an_ordinary_request_is_parsed() {
        let head = read(
            b"POST /v3/a%2Fb?x=1?y HTTP/1.1\r\nhOST: localhost:1\r\nOrigin:\tnull \r\n\
              Authorization: Bearer t\r\nContent-Length: 007\r\nContent-Type:application/json\r\n\
              Expect: 100-Continue\r\nX-Other: \xc3\xa4\r\nConnection: x , CLOSE\r\n\r\nrest",
        );
        let head = head.ok().unwrap().unwrap();
        assert_eq!(head.method, Method::Post);
        assert_eq!((head.path, head.query), ("/v3/a%2Fb", "x=1?y"));
        assert_eq!(head.host, "localhost:1");
        assert_eq!(head.origin, Some("null"));
        assert_eq!(head.authorization, Some("Bearer t"));
        assert_eq!(head.content_length, 7);
        assert_eq!(head.content_type, Some("application/json"));
        assert!(head.expects_continue && head.last);
    }

    #[test]
    fn http_1_0_gets_one_request_per_connection_and_no_interim_response() {
        let head = read(b"GET / HTTP/1.0\r\nHost: x\r\nExpect: 100-continue\r\n\r\n");
        let head = head.ok().unwrap().unwrap();
        assert!(head.last && !head.expects_continue);
    }

    const REJECTED: [(&str, u16); 47] = [
        ("\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: x\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\n\r\n", 400),
        ("GET / HTTP/1.1\rHost: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nA: \x1b[31m\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nA: \x7f\r\n\r\n", 400),
        ("\x16\x03\x01\x02", 400),
        ("GET /\r\n\r\n", 400),
        ("GET\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/1.1 x\r\nHost: x\r\n\r\n", 400),
        ("GET\t/\tHTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (" GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("G<>T / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET v3/health HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET /\u{e4} HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET / http/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET / ICY/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        ("GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505),
        ("GET / HTTP/1.10\r\nHost: x\r\n\r\n", 505),
        ("GET / HTTP/01.1\r\nHost: x\r\n\r\n", 505),
        ("GET / HTTP/0.9\r\nHost: x\r\n\r\n", 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nnothing\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        ("GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: x\r\nContent-Length: 5\r\n\r\n", 411),
        ("GET / HTTP/1.1\r\nHost: x\r\nOrigin: a\r\nOrigin: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nExpect: 200-ok\r\n\r\n", 417),
    ];

    #[test]
    fn ambiguous_requests_are_rejected() {
        for (request, status) in REJECTED {
            assert_eq!(read(request.as_bytes()).err(), Some(status), "{request:?}");
        }
    }

    #[test]
    fn a_length_too_large_for_its_type_is_the_largest_length() {
        let head =
            read(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n");
        assert_eq!(head.ok().unwrap().unwrap().content_length, u64::MAX);
    }

    fn padded(bytes: usize) -> Vec<u8> {
        let mut head = b"GET / HTTP/1.1\r\nHost: x\r\nA: ".to_vec();
        head.resize(bytes - 4, b'a');
        head.extend(b"\r\n\r\n");
        head
    }

    #[test]
    fn a_head_of_16_kib_is_accepted_and_one_byte_more_is_not() {
        assert!(read(&padded(HEAD_BYTES_MAX)).is_ok_and(|head| head.is_some()));
        assert_eq!(read(&padded(HEAD_BYTES_MAX + 1)).err(), Some(431));
        // Rejected at the limit, before its end arrives.
        let endless = padded(HEAD_BYTES_MAX * 2);
        assert_eq!(read(&endless[..HEAD_BYTES_MAX]).err(), Some(431));
        assert!(read(&endless[..HEAD_BYTES_MAX - 1]).is_ok_and(|head| head.is_none()));
    }

    #[test]
    fn the_64th_header_is_accepted_and_the_65th_is_not() {
        let with =
            |more: usize| format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(more));
        assert!(read(with(HEADERS_MAX - 1).as_bytes()).is_ok());
        assert_eq!(read(with(HEADERS_MAX).as_bytes()).err(), Some(431));
    }

    #[test]
    fn the_end_of_the_head_is_found_however_the_bytes_arrive() {
        let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET";
        for first in 0..request.len() {
            let early = head_end(&request[..first], 0).ok().unwrap();
            assert_eq!(early, (first >= 27).then_some(27));
            if early.is_none() {
                assert_eq!(head_end(request, first).ok().unwrap(), Some(27), "{first}");
            }
        }
    }
}
