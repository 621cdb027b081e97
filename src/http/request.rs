//! A request, and its bytes on the wire.

use std::io;

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
    /// JSON; empty for none.
    pub body: &'a str,
}

impl Request<'_> {
    /// Returns the request as it is sent.
    ///
    /// # Errors
    /// `InvalidInput` if a part of the head would end its line or begin another one.
    pub fn text(&self) -> io::Result<String> {
        let Request { method, authority, target, bearer, accept, body } = self;
        for part in [authority.as_str(), *target, bearer.unwrap_or("-")] {
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
            body: "",
        }
    }

    #[test]
    fn a_request_is_one_head_and_its_body() {
        let post = Request { method: "POST", bearer: Some("s3"), body: "{\"a\":1}", ..request() };
        let text = post.text().unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "{\"a\":1}");
        let lines: Vec<&str> = head.split("\r\n").collect();
        assert_eq!(lines[..2], ["POST / HTTP/1.1", "Host: h:1"]);
        for line in ["Connection: close", "Authorization: Bearer s3", "Content-Length: 7"] {
            assert!(lines.contains(&line), "{head}");
        }
        let text = request().text().unwrap();
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
                let error = request.text().unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
                assert!(odd.is_empty() || !error.to_string().contains(odd), "{error}");
            }
        }
    }
}
