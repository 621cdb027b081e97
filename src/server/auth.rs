//! Who is let in, decided from the head alone, before any body is read.
//!
//! A web page must not reach the daemon through its user's browser, neither under a foreign name
//! (DNS rebinding: `Host`) nor from a foreign site (`Origin`); and nobody is served without the
//! token. Pure: which routes are open is the caller's business.

use tiny_http::Method;

use super::reply::Reply;
use super::request::Head;

const METHODS: &str = "GET, HEAD, POST, DELETE";
const HEADERS: &str = "Authorization, Content-Type, If-None-Match";

/// Whether the request comes from this machine and from a page that may talk to it; `Err` is the
/// answer to give instead. That is a refusal, or what a browser wants to know before it sends the
/// request.
pub fn check_sender(head: &Head, port: u16) -> Result<(), Reply> {
    if !is_our_host(&head.host, port) {
        let message = "the Host is not this daemon's address";
        return Err(Reply::problem(421, "FORBIDDEN", message));
    }
    match &head.origin {
        Some(origin) if !is_local_origin(origin) => {
            let message = "pages of this origin may not talk to the daemon";
            Err(Reply::problem(403, "FORBIDDEN", message))
        }
        Some(_) if head.method == Method::Options => Err(Reply::empty(204)
            .with("Access-Control-Allow-Methods", METHODS)
            .with("Access-Control-Allow-Headers", HEADERS)),
        _ => Ok(()),
    }
}

/// The same answer, readable for the page that asked if it is one that may.
pub fn share(reply: Reply, head: &Head) -> Reply {
    match head.origin.as_deref().filter(|origin| is_local_origin(origin)) {
        Some(origin) => reply.with("Access-Control-Allow-Origin", origin).with("Vary", "Origin"),
        None => reply,
    }
}

/// The same for an answer that is written by hand: each header with its line end.
pub fn shared_headers(head: &Head) -> String {
    let origin = head.origin.as_deref().filter(|origin| is_local_origin(origin));
    origin.map_or_else(String::new, |origin| {
        format!("Access-Control-Allow-Origin: {origin}\r\nVary: Origin\r\n")
    })
}

/// The token in the `Authorization` header. Credentials of another scheme are an empty token, which
/// is no daemon's.
pub fn bearer(head: &Head) -> Option<&str> {
    let credentials = head.authorization.as_deref()?;
    let token = credentials
        .split_once(' ')
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer"))
        .map(|(_, token)| token.trim());
    Some(token.unwrap_or_default())
}

/// The token in the query. Only for routes that a browser must open without being able to set
/// headers.
pub fn token_in_query(head: &Head) -> Option<&str> {
    head.query.split('&').find_map(|pair| pair.strip_prefix("token="))
}

/// The answer to a token that is missing or not ours.
pub fn unauthorized() -> Reply {
    Reply::problem(401, "UNAUTHORIZED", "the token is missing or wrong")
        .with("WWW-Authenticate", "Bearer")
}

/// Whether the body, if there is one, is said to be JSON. A page can send any other type to anybody
/// without asking first.
pub fn check_body_type(head: &Head) -> Result<(), Reply> {
    let media_type = head.content_type.as_deref().unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if head.content_length == 0 || media_type.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "the Content-Type of the body is not application/json";
    Err(Reply::problem(415, "INVALID_REQUEST", message))
}

fn is_our_host(host: &str, port: u16) -> bool {
    ["127.0.0.1", "localhost", "[::1]"].iter().any(|name| {
        let named = host.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
        named
            && match host.get(name.len()..) {
                Some("") => true,
                Some(rest) => rest.strip_prefix(':').and_then(parse_port) == Some(port),
                None => false,
            }
    })
}

/// Compared as browsers write it: in small letters, without a path.
fn is_local_origin(origin: &str) -> bool {
    if matches!(origin, "tauri://localhost" | "http://tauri.localhost" | "https://tauri.localhost")
    {
        return true;
    }
    let address = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let rest = address.and_then(|address| {
        ["127.0.0.1", "localhost", "[::1]"].iter().find_map(|name| address.strip_prefix(name))
    });
    rest.is_some_and(|rest| {
        rest.is_empty() || rest.strip_prefix(':').and_then(parse_port).is_some()
    })
}

/// A port as it is usually written: no sign, no leading zero.
fn parse_port(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    digits.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            method: Method::Get,
            path: "/".into(),
            query: String::new(),
            host: "127.0.0.1:9999".into(),
            origin: None,
            authorization: None,
            content_type: None,
            last_event_id: None,
            content_length: 0,
            expects_continue: false,
            last: false,
        }
    }

    #[test]
    fn only_names_of_the_loopback_with_our_port_or_none_are_our_host() {
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
    fn only_pages_of_this_machine_and_the_desktop_app_are_local() {
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
    fn host_comes_before_origin_and_origin_before_the_preflight() {
        let status = |head: &Head| check_sender(head, 9999).err().map(|reply| reply.status());
        let mut asked = head();
        assert_eq!(status(&asked), None);
        asked.method = Method::Options;
        assert_eq!(status(&asked), None);
        asked.origin = Some("http://localhost:5173".into());
        assert_eq!(status(&asked), Some(204));
        asked.origin = Some("null".into());
        assert_eq!(status(&asked), Some(403));
        asked.host = "evil.com".into();
        assert_eq!(status(&asked), Some(421));
    }

    #[test]
    fn a_local_page_may_read_every_answer_and_a_foreign_one_none() {
        let text = |origin: Option<&str>| {
            let mut asked = head();
            asked.origin = origin.map(str::to_owned);
            let mut out = Vec::new();
            share(unauthorized(), &asked).print(&mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let local = text(Some("http://localhost:5173"));
        assert!(local.contains("\r\nAccess-Control-Allow-Origin: http://localhost:5173\r\n"));
        assert!(local.contains("\r\nVary: Origin\r\n"));
        assert!(!text(Some("http://evil.com")).contains("Access-Control"));
        assert!(!text(None).contains("Access-Control"));
    }

    #[test]
    fn a_token_comes_as_a_bearer_or_in_the_query() {
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
            let mut asked = head();
            asked.authorization = Some(authorization.into());
            assert_eq!(bearer(&asked), Some(token), "{authorization:?}");
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
            let mut asked = head();
            asked.query = query.into();
            assert_eq!(token_in_query(&asked), token, "{query:?}");
        }
    }

    #[test]
    fn a_body_has_to_be_json() {
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
            let mut asked = head();
            asked.content_length = length;
            asked.content_type = content_type.map(str::to_owned);
            assert_eq!(check_body_type(&asked).is_ok(), fits, "{content_type:?}");
        }
    }
}
