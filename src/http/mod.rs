//! A small HTTP/1.1 client: one request, one answer, one connection for the two.
//!
//! No proxy is asked, no redirect is followed, no connection is kept. Every wait has an end. What
//! the answers mean is the caller's business. RFC 9112.

mod answer;
mod events;
mod link;

pub use answer::{Head, Incoming};
pub use events::{EventStream, Opened, answers, open};
pub use link::{Link, addresses};

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// What is asked of a daemon.
pub struct Request<'a> {
    pub method: &'static str,
    /// Begins with `/`; visible ASCII.
    pub target: &'a str,
    pub token: &'a str,
    /// JSON; empty for none.
    pub body: &'a str,
}

/// What is asked of any server.
pub struct Asking<'a> {
    pub method: &'static str,
    /// Host and port, as they stand in a URL.
    pub authority: &'a str,
    /// Begins with `/`; visible ASCII.
    pub target: &'a str,
    /// A secret.
    pub bearer: Option<&'a str>,
    /// The media type of the answer.
    pub accept: &'static str,
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
/// `TimedOut` when the time is over, `InvalidData` for what is no HTTP answer or does not tell its
/// length, `UnexpectedEof` for one that is cut short, and whatever the system says,
/// `ConnectionRefused` above all.
pub fn call(
    port: u16,
    request: &Request<'_>,
    limit: Duration,
    bytes_max: usize,
) -> io::Result<Reply> {
    let deadline = Instant::now() + limit;
    let left = || deadline.saturating_duration_since(Instant::now());
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut link = Link::connect(&[address], limit, None)?;
    let asking = Asking {
        method: request.method,
        authority: &format!("127.0.0.1:{port}"),
        target: request.target,
        bearer: Some(request.token),
        accept: "application/json",
        body: request.body,
    };
    link.send(&asking, left())?;
    let head = link.head(left())?;
    if !head.tells_length {
        return Err(invalid("it does not tell its length"));
    }
    let mut body = Vec::new();
    while let Some(bytes) = link.body(left())? {
        body.extend_from_slice(&bytes);
        if body.len() > bytes_max {
            return Err(invalid("the answer is too long"));
        }
    }
    Ok(Reply { status: head.status, body })
}

impl Asking<'_> {
    /// The request as it is sent.
    ///
    /// # Errors
    /// `InvalidInput` if a part of the head would end its line, or begin another one.
    pub fn text(&self) -> io::Result<String> {
        let Asking { method, authority, target, bearer, accept, body } = self;
        for part in [*authority, *target, bearer.unwrap_or("-")] {
            if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_graphic()) {
                let because = "a part of the request is not visible ASCII";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, because));
            }
        }
        let version = env!("CARGO_PKG_VERSION");
        let mut text = format!(
            "{method} {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: opta/{version}\r\n\
             Accept: {accept}\r\nConnection: close\r\n"
        );
        if let Some(secret) = bearer {
            text.push_str(&format!("Authorization: Bearer {secret}\r\n"));
        }
        if !body.is_empty() {
            let length = body.len();
            text.push_str("Content-Type: application/json\r\n");
            text.push_str(&format!("Content-Length: {length}\r\n"));
        }
        text.push_str("\r\n");
        text.push_str(body);
        Ok(text)
    }
}

fn invalid(because: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, because)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Asking<'_> = Asking {
        method: "GET",
        authority: "h:1",
        target: "/",
        bearer: None,
        accept: "text/plain",
        body: "",
    };

    #[test]
    fn a_request_is_one_head_and_its_body() {
        let asking = Asking { method: "POST", bearer: Some("s3"), body: "{\"a\":1}", ..PLAIN };
        let text = asking.text().unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "{\"a\":1}");
        let lines: Vec<&str> = head.split("\r\n").collect();
        assert_eq!(lines[..2], ["POST / HTTP/1.1", "Host: h:1"]);
        for line in ["Connection: close", "Authorization: Bearer s3", "Content-Length: 7"] {
            assert!(lines.contains(&line), "{head}");
        }
        let text = PLAIN.text().unwrap();
        assert!(!text.contains("Authorization") && !text.contains("Content-Length"), "{text}");
    }

    #[test]
    fn no_part_of_a_head_can_hold_a_line() {
        for odd in ["/a\r\nX: y", "/a\nb", "/a b", "/\u{e4}", "/\0", ""] {
            for asking in [
                Asking { target: odd, ..PLAIN },
                Asking { authority: odd, ..PLAIN },
                Asking { bearer: Some(odd), ..PLAIN },
            ] {
                let error = asking.text().unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
                assert!(odd.is_empty() || !error.to_string().contains(odd), "{error}");
            }
        }
    }
}
