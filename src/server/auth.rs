//! Authorization, decided from the head of a request alone, before its body is read.
//!
//! A web page must not reach the daemon through its user's browser, neither under another host name
//! (DNS rebinding: `Host`) nor from another site (`Origin`); and every client needs the token.
//! Pure: which routes need no token is up to the caller.

use tiny_http::Method;

use super::reply::Reply;
use super::request::RequestHead;

const METHODS: &str = "GET, HEAD, POST, DELETE";
/// The headers of a request that a page may send.
const HEADERS: &str = "Authorization, Content-Type, If-None-Match";
/// The header of a reply that a page may read besides those that it always may.
const EXPOSED: &str = "ETag";

/// Checks that the request names this daemon as its host and comes from no page, or from one of
/// this machine. `Err` is the reply: a refusal, or the reply to a preflight request of CORS.
pub fn check_origin(head: &RequestHead<'_>, port: u16) -> Result<(), Reply> {
    if !is_our_host(head.host, port) {
        let message = "the Host is not this daemon's address";
        return Err(Reply::error(421, "FORBIDDEN", message));
    }
    match head.origin {
        Some(origin) if !is_local_origin(origin) => {
            let message = "pages of this origin may not talk to the daemon";
            Err(Reply::error(403, "FORBIDDEN", message))
        }
        Some(_) if head.method == Method::Options => Err(Reply::empty(204)
            .with("Access-Control-Allow-Methods", METHODS)
            .with("Access-Control-Allow-Headers", HEADERS)),
        _ => Ok(()),
    }
}

/// Adds the headers that let a page of this machine read the reply.
pub fn with_cors_headers(reply: Reply, head: &RequestHead<'_>) -> Reply {
    match local_origin(head) {
        Some(origin) => reply
            .with("Access-Control-Allow-Origin", origin)
            .with("Access-Control-Expose-Headers", EXPOSED)
            .with("Vary", "Origin"),
        None => reply,
    }
}

/// Returns the same headers as text, each with its line end.
pub fn cors_headers(head: &RequestHead<'_>) -> String {
    local_origin(head).map_or_else(String::new, |origin| {
        format!(
            "Access-Control-Allow-Origin: {origin}\r\n\
             Access-Control-Expose-Headers: {EXPOSED}\r\nVary: Origin\r\n"
        )
    })
}

fn local_origin<'b>(head: &RequestHead<'b>) -> Option<&'b str> {
    head.origin.filter(|origin| is_local_origin(origin))
}

/// Returns the token in the `Authorization` header. Credentials of another scheme count as an empty
/// token, which no daemon has.
pub fn bearer<'b>(head: &RequestHead<'b>) -> Option<&'b str> {
    let credentials = head.authorization?;
    let token = credentials
        .split_once(' ')
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer"))
        .map(|(_, token)| token.trim());
    Some(token.unwrap_or_default())
}

/// Returns the token in the query: for routes that a browser opens without setting headers.
pub fn token_in_query<'b>(head: &RequestHead<'b>) -> Option<&'b str> {
    head.query.split('&').find_map(|pair| pair.strip_prefix("token="))
}

/// Returns the reply to a request whose token is missing or wrong.
pub fn unauthorized() -> Reply {
    Reply::error(401, "UNAUTHORIZED", "the token is missing or wrong")
        .with("WWW-Authenticate", "Bearer")
}

/// Checks that the body, if any, is labeled as JSON. A page can send other types to any server
/// without a preflight request.
pub fn check_body_type(head: &RequestHead<'_>) -> Result<(), Reply> {
    let media_type = head.content_type.unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if head.content_length == 0 || media_type.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "the Content-Type of the body is not application/json";
    Err(Reply::error(415, "INVALID_REQUEST", message))
}

fn is_our_host(host: &str, port: u16) -> bool {
    after_local_name(host).is_some_and(|rest| rest.is_empty() || parse_port(rest) == Some(port))
}

/// Compares it as browsers write it: in lowercase, without a path.
fn is_local_origin(origin: &str) -> bool {
    if matches!(origin, "tauri://localhost" | "http://tauri.localhost" | "https://tauri.localhost")
    {
        return true;
    }
    let address = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let rest = address.filter(|address| !address.bytes().any(|byte| byte.is_ascii_uppercase()));
    rest.and_then(after_local_name)
        .is_some_and(|rest| rest.is_empty() || parse_port(rest).is_some())
}

/// Returns what follows a name of this machine, in any case, at the start of `address`.
fn after_local_name(address: &str) -> Option<&str> {
    ["127.0.0.1", "localhost", "[::1]"].iter().find_map(|name| {
        let (first, rest) = address.split_at_checked(name.len())?;
        first.eq_ignore_ascii_case(name).then_some(rest)
    })
}

/// Parses a colon and a port without a sign or leading zeros.
fn parse_port(text: &str) -> Option<u16> {
    let digits = text.strip_prefix(':')?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    digits.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::request::Upgrade;

    fn head() -> RequestHead<'static> {
        RequestHead {
            method: Method::Get,
            path: "/",
            query: "",
            host: "127.0.0.1:9999",
            origin: None,
            authorization: None,
            content_type: None,
            last_event_id: None,
            if_none_match: None,
            content_length: 0,
            upgrade: Upgrade::default(),
            expects_continue: false,
            last: false,
        }
    }

    #[test]
    fn only_loopback_names_with_our_port_or_none_are_our_host() {
        for ours in
            ["127.0.0.1:9999", "127.0.0.1", "localhost:9999", "LocalHost", "[::1]:9999", "[::1]"]
        {
            assert!(is_our_host(ours, 9999), "{ours}");
        }
        for foreign in [
            "",
            ":9999",
            "127.0.0.1:1",
            "127.0.0.1:",
            "127.0.0.1:09999",
            "127.0.0.1:+9999",
            "127.0.0.1:99990",
            "127.0.0.1:9999:9999",
            "127.0.0.1.evil.com",
            "127.0.0.1:9999.evil.com",
            "127.0.0.11",
            "127.0.0.2:9999",
            "localhost.evil.com",
            "localhost.evil.com:9999",
            "localhost.",
            "evil.com",
            "evil.com:9999",
            "evil-localhost",
            "user@localhost",
            "localhost@evil.com",
            "localhost/",
            "http://localhost",
            "::1",
            "[::1",
            "[::1]9999",
            "[::]:9999",
            "0.0.0.0:9999",
            "2130706433",
            "0x7f000001",
            "127.1",
            "localhost:9999, evil.com",
            "localhost evil.com",
        ] {
            assert!(!is_our_host(foreign, 9999), "{foreign}");
        }
    }

    #[test]
    fn only_pages_of_this_machine_and_of_the_desktop_app_are_local() {
        for local in [
            "http://localhost",
            "https://localhost:5173",
            "http://127.0.0.1:80",
            "https://127.0.0.1",
            "http://[::1]:3000",
            "tauri://localhost",
            "http://tauri.localhost",
            "https://tauri.localhost",
        ] {
            assert!(is_local_origin(local), "{local}");
        }
        for foreign in [
            "",
            "null",
            "http://localhost.evil.com",
            "http://localhostevil.com",
            "http://localhost:5173.evil.com",
            "http://localhost:",
            "http://localhost:0",
            "http://localhost:65536",
            "http://localhost/",
            "http://evil.com",
            "http://evil.com#http://localhost",
            "http://user@localhost",
            "http://localhost@evil.com",
            "HTTP://LOCALHOST",
            "ftp://localhost",
            "file://",
            "localhost",
            "//localhost",
            "http://127.0.0.1.evil.com",
            "http://127.0.0.2",
            "http://[::2]",
            "tauri://localhost:1",
            "tauri://evil",
            "http://tauri.localhost:1",
            "http://x.tauri.localhost",
            "http://localhost http://evil.com",
        ] {
            assert!(!is_local_origin(foreign), "{foreign}");
        }
    }

    #[test]
    fn the_host_is_checked_before_the_origin_and_the_origin_before_a_preflight() {
        let status =
            |head: &RequestHead<'_>| check_origin(head, 9999).err().map(|reply| reply.status());
        let mut request = head();
        assert_eq!(status(&request), None);
        request.method = Method::Options;
        assert_eq!(status(&request), None);
        request.origin = Some("http://localhost:5173");
        assert_eq!(status(&request), Some(204));
        request.origin = Some("null");
        assert_eq!(status(&request), Some(403));
        request.host = "evil.com";
        assert_eq!(status(&request), Some(421));
    }

    #[test]
    fn only_a_local_page_may_read_replies() {
        let text = |origin: Option<&'static str>| {
            let mut request = head();
            request.origin = origin;
            let mut out = Vec::new();
            with_cors_headers(unauthorized(), &request).print(&mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let local = text(Some("http://localhost:5173"));
        assert!(local.contains("\r\nAccess-Control-Allow-Origin: http://localhost:5173\r\n"));
        assert!(local.contains("\r\nVary: Origin\r\n"));
        assert!(local.contains("\r\nAccess-Control-Expose-Headers: ETag\r\n"));
        assert!(!text(Some("http://evil.com")).contains("Access-Control"));
        assert!(!text(None).contains("Access-Control"));
    }

    #[test]
    fn a_token_is_a_bearer_token_or_in_the_query() {
        for (authorization, token) in [
            ("Bearer abc", "abc"),
            ("bEARER  abc ", "abc"),
            ("Bearer", ""),
            ("Bearer ", ""),
            ("Basic abc", ""),
            ("abc", ""),
            ("", ""),
            ("Bearer a b", "a b"),
            ("Bearerabc", ""),
        ] {
            let mut request = head();
            request.authorization = Some(authorization);
            assert_eq!(bearer(&request), Some(token), "{authorization:?}");
        }
        assert_eq!(bearer(&head()), None);
        for (query, token) in [
            ("", None),
            ("token", None),
            ("token=", Some("")),
            ("token=abc", Some("abc")),
            ("a=b&token=abc&token=x", Some("abc")),
            ("xtoken=abc", None),
        ] {
            let mut request = head();
            request.query = query;
            assert_eq!(token_in_query(&request), token, "{query:?}");
        }
    }

    #[test]
    fn a_body_must_be_labeled_as_json() {
        for (length, content_type, fits) in [
            (0, None, true),
            (0, Some("text/plain"), true),
            (1, None, false),
            (1, Some("text/plain"), false),
            (1, Some("application/json"), true),
            (1, Some("Application/JSON ; charset=utf-8"), true),
            (1, Some("application/jsonx"), false),
            (1, Some("text/plain; application/json"), false),
            (1, Some("application/x-www-form-urlencoded"), false),
        ] {
            let mut request = head();
            request.content_length = length;
            request.content_type = content_type;
            assert_eq!(check_body_type(&request).is_ok(), fits, "{content_type:?}");
        }
    }
}
