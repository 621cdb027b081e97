//! A reply, and its bytes on the wire.
//!
//! `tiny_http::Response` prints it. This file adds what that crate cannot print (`Connection:
//! close`) and drops what it should not (line breaks in the value of a header).

use std::fmt::Display;
use std::io;

use nanoserde::SerJson;
use tiny_http::{HTTPVersion, Header, Response, StatusCode};

use crate::{json, protocol};

/// A whole reply.
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    closing: bool,
    bodiless: bool,
    /// All bytes, instead of the rest.
    verbatim: Option<Vec<u8>>,
    sequel: Option<Box<dyn Send>>,
}

impl Reply {
    /// Makes a reply whose body is `body` as JSON.
    pub fn json(status: u16, body: &impl SerJson) -> Reply {
        Reply::json_text(status, json::text(body))
    }

    /// Makes a reply whose body is this JSON text.
    pub fn json_text(status: u16, body: String) -> Reply {
        let mut reply = Reply::empty(status).with("Content-Type", "application/json");
        reply.body = body.into_bytes();
        reply
    }

    /// Makes a reply with these bytes as its body.
    pub fn bytes(media_type: &str, body: &[u8]) -> Reply {
        let reply = Reply::empty(200).with("Content-Type", media_type);
        Reply { body: body.to_vec(), ..reply }
    }

    /// Makes a reply without a body.
    pub fn empty(status: u16) -> Reply {
        let (headers, body) = (Vec::new(), Vec::new());
        let (closing, bodiless, verbatim, sequel) = (false, false, None, None);
        Reply { status, headers, body, closing, bodiless, verbatim, sequel }
    }

    /// Makes a reply `{"error":{"code":…,"message":…}}`.
    pub fn error(status: u16, code: &str, message: impl Display) -> Reply {
        Reply::json_text(status, protocol::error_body(code, &message.to_string()))
    }

    /// Makes the reply to a request that is wrong in itself.
    pub fn invalid(message: impl Display) -> Reply {
        Reply::error(400, "INVALID_REQUEST", message)
    }

    /// Makes the last reply of a connection, which is no longer HTTP after the head in `bytes`.
    pub fn switching(bytes: Vec<u8>) -> Reply {
        Reply { verbatim: Some(bytes), ..Reply::empty(101).closing() }
    }

    /// Returns whether it is the last reply of its connection, whatever the request says.
    pub fn is_last(&self) -> bool {
        self.closing
    }

    /// Adds a header.
    pub fn with(mut self, name: &'static str, value: &str) -> Reply {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// Adds an ETag, without the quotes. If the client has the same already, which its
    /// `If-None-Match` tells, sends only the head. RFC 9110, 13.1.2.
    pub fn with_tag(self, tag: &str, known: Option<&str>) -> Reply {
        let tag = format!("\"{tag}\"");
        let is_same = |known: &str| known == "*" || known.trim_start_matches("W/") == tag;
        let reply = match known {
            Some(known) if known.split(',').map(str::trim).any(is_same) => {
                Reply { status: 304, ..self }.bodiless()
            }
            _ => self,
        };
        reply.with("ETag", &tag)
    }

    /// Announces that it is the last reply of its connection.
    pub fn closing(mut self) -> Reply {
        self.closing = true;
        self
    }

    /// Drops the body and keeps all headers.
    pub fn bodiless(mut self) -> Reply {
        self.bodiless = true;
        self
    }

    /// Adds what has to be dropped after the reply is written.
    pub fn with_sequel(mut self, sequel: Option<impl Send + 'static>) -> Reply {
        self.sequel = sequel.map(|sequel| Box::new(sequel) as Box<dyn Send>);
        self
    }

    /// Returns what has to be dropped after the reply is written.
    pub fn take_sequel(&mut self) -> Option<Box<dyn Send>> {
        self.sequel.take()
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// Appends the reply to `out` as it goes over the wire. A header whose value has a control
    /// character is dropped.
    pub fn print(self, out: &mut Vec<u8>) -> io::Result<()> {
        if let Some(bytes) = self.verbatim {
            out.extend(bytes);
            return Ok(());
        }
        let begin = out.len();
        let common = [
            ("Server", "opta"),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ];
        let own = self.headers.iter().map(|(name, value)| (*name, value.as_str()));
        let is_set = |name: &str| self.headers.iter().any(|(own, _)| *own == name);
        let common = common.into_iter().filter(|(name, _)| !is_set(name));
        let headers = common.chain(own).filter_map(|(name, value)| {
            let plain = !value.bytes().any(|byte| byte.is_ascii_control());
            Header::from_bytes(name, value).ok().filter(|_| plain)
        });
        let (status, headers, length) =
            (StatusCode(self.status), headers.collect(), self.body.len());
        // Never in chunks, because the length is known. The version is the server's own (RFC 9110,
        // 6.2), so nothing depends on the headers of the request.
        Response::new(status, headers, self.body.as_slice(), Some(length), None)
            .with_chunked_threshold(usize::MAX)
            .raw_print(&mut *out, HTTPVersion(1, 1), &[], self.bodiless, None)?;
        if self.closing {
            let status_line = out.iter().skip(begin).position(|byte| *byte == b'\n');
            let at = status_line.map_or(out.len(), |length| begin + length + 1);
            out.splice(at..at, *b"Connection: close\r\n");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(reply: Reply) -> String {
        let mut out = Vec::new();
        reply.print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_error_is_json_with_a_code_and_a_message() {
        let text = printed(Reply::error(404, "NOT_FOUND", "no \"such\" thing"));
        assert!(text.starts_with("HTTP/1.1 404 Not Found\r\n"), "{text}");
        assert!(
            text.ends_with(
                "\r\n\r\n{\"error\":{\"code\":\"NOT_FOUND\",\"message\":\"no \\\"such\\\" thing\"}}"
            ),
            "{text}"
        );
        assert!(text.contains("\r\nServer: opta\r\n"), "{text}");
        assert!(text.contains("\r\nCache-Control: no-store\r\n"), "{text}");
        assert!(text.contains("\r\nX-Content-Type-Options: nosniff\r\n"), "{text}");
        assert!(!text.contains("Connection"), "{text}");
    }

    #[test]
    fn the_last_reply_announces_it_after_its_status_line() {
        let text = printed(Reply::empty(204).closing());
        assert!(text.starts_with("HTTP/1.1 204 No Content\r\nConnection: close\r\n"), "{text}");
    }

    #[test]
    fn a_reply_to_head_has_the_length_and_not_the_body() {
        let text = printed(Reply::invalid("x").bodiless());
        assert!(text.ends_with("\r\n\r\n"), "{text}");
        assert!(!text.contains("Content-Length: 0\r\n"), "{text}");
    }

    #[test]
    fn a_long_body_has_a_length_and_no_chunks() {
        let text = printed(Reply::invalid("x".repeat(100_000)));
        assert!(text.contains("Content-Length: 100"), "{text}");
        assert!(!text.contains("chunked"), "{text}");
    }

    #[test]
    fn a_header_with_a_line_break_is_dropped() {
        for value in ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b", "ä"] {
            let text = printed(Reply::empty(204).with("X-Value", value));
            assert!(!text.contains("X-Value"), "{text}");
        }
    }
}
