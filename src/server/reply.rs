//! An answer, and how it becomes bytes.
//!
//! `tiny_http::Response` prints it. What that crate cannot say (`Connection: close`) or lets through
//! (line breaks in a header's value) is put right here.

use std::fmt::Display;
use std::io::{self, Cursor};

use nanoserde::SerJson;
use tiny_http::{HTTPVersion, Header, Response};

use crate::api::{Fault, Problem};
use crate::json;

/// A whole answer, not yet written.
pub struct Reply {
    response: Response<Cursor<Vec<u8>>>,
    closing: bool,
    bodiless: bool,
}

impl Reply {
    /// `body` as JSON.
    pub fn json(status: u16, body: &impl SerJson) -> Reply {
        Reply::json_text(status, json::text(body))
    }

    /// A body that is JSON already.
    pub fn json_text(status: u16, body: String) -> Reply {
        Reply::new(status, body.into_bytes()).with("Content-Type", "application/json")
    }

    /// No body at all.
    pub fn empty(status: u16) -> Reply {
        Reply::new(status, Vec::new())
    }

    /// `{"error":{"code":…,"message":…}}`.
    pub fn problem(status: u16, code: &str, message: impl Display) -> Reply {
        let error = Fault { code: code.to_owned(), message: message.to_string() };
        Reply::json(status, &Problem { error })
    }

    /// The request itself is wrong.
    pub fn invalid(message: impl Display) -> Reply {
        Reply::problem(400, "INVALID_REQUEST", message)
    }

    fn new(status: u16, body: Vec<u8>) -> Reply {
        Reply {
            // A known length is never sent in chunks.
            response: Response::from_data(body)
                .with_status_code(status)
                .with_chunked_threshold(usize::MAX),
            closing: false,
            bodiless: false,
        }
        .with("Server", "opta")
        .with("Cache-Control", "no-store")
    }

    /// The same answer with one more header, unless the value could be read as more than one line.
    pub fn with(mut self, name: &'static str, value: &str) -> Reply {
        let plain = !value.bytes().any(|byte| byte.is_ascii_control());
        if let (true, Ok(header)) = (plain, Header::from_bytes(name, value)) {
            self.response.add_header(header);
        }
        self
    }

    /// The same answer, announcing that it is the connection's last.
    pub fn closing(mut self) -> Reply {
        self.closing = true;
        self
    }

    /// The same answer to a HEAD: all headers, no body.
    pub fn bodiless(mut self) -> Reply {
        self.bodiless = true;
        self
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.response.status_code().0
    }

    /// Appends the answer to `out` as it goes over the wire.
    pub fn print(self, out: &mut Vec<u8>) -> io::Result<()> {
        let begin = out.len();
        // The version is the server's own (RFC 9110, 6.2), the length known: nothing depends on the
        // request's headers.
        let version = HTTPVersion(1, 1);
        self.response.raw_print(&mut *out, version, &[], self.bodiless, None)?;
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
    fn a_problem_is_json_with_a_code_and_a_message() {
        let text = printed(Reply::problem(404, "NOT_FOUND", "no \"such\" thing"));
        assert!(text.starts_with("HTTP/1.1 404 Not Found\r\n"), "{text}");
        assert!(
            text.ends_with(
                "\r\n\r\n{\"error\":{\"code\":\"NOT_FOUND\",\"message\":\"no \\\"such\\\" thing\"}}"
            ),
            "{text}"
        );
        assert!(text.contains("\r\nServer: opta\r\n"), "{text}");
        assert!(text.contains("\r\nCache-Control: no-store\r\n"), "{text}");
        assert!(!text.contains("Connection"), "{text}");
    }

    #[test]
    fn the_last_answer_says_so_behind_its_status_line() {
        let text = printed(Reply::empty(204).closing());
        assert!(text.starts_with("HTTP/1.1 204 No Content\r\nConnection: close\r\n"), "{text}");
    }

    #[test]
    fn an_answer_to_head_has_the_length_and_not_the_body() {
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
    fn a_value_with_a_line_break_never_becomes_a_header() {
        for value in ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b", "ä"] {
            let text = printed(Reply::empty(204).with("X-Value", value));
            assert!(!text.contains("X-Value"), "{text}");
        }
    }
}
