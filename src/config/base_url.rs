//! The URLs of a model server and of a proxy, as users write them. Pure: no name is resolved.

use std::net::{IpAddr, Ipv6Addr};

const HTTPS_PORT: u16 = 443;

/// The URL that the paths of the API are relative to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    /// Whether it begins with `https://`.
    pub is_secure: bool,
    /// A name or an address; an IPv6 address is in brackets.
    pub host: String,
    pub port: u16,
    /// `/v1` unless the user says otherwise; without a trailing slash.
    pub path: String,
}

impl BaseUrl {
    /// Parses `http://host:port` or `https://host`. The scheme (by default `http`), the port, a
    /// path and a trailing slash are optional.
    ///
    /// The error is a clause that does not quote the text, which may contain a secret.
    pub fn parse(text: &str) -> Result<BaseUrl, &'static str> {
        check_characters(text)?;
        let (is_secure, rest) = match text.split_once("://") {
            None => (false, text),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some(_) => return Err("it begins with neither http:// nor https://"),
        };
        if rest.contains(['?', '#']) {
            return Err("it has a query or a fragment, which a base URL cannot have");
        }
        let (authority, path) = split_path(rest);
        if authority.contains('@') {
            return Err("it has a user name or a password; a key belongs in OPTA_API_KEY");
        }
        let (host, port) = host_and_port(authority)?;
        let port = port.unwrap_or(if is_secure { HTTPS_PORT } else { 80 });
        let path = path.trim_end_matches('/');
        let path = path.strip_suffix("/chat/completions").unwrap_or(path);
        let path = if path.is_empty() { "/v1" } else { path };
        Ok(BaseUrl { is_secure, host: host.to_owned(), port, path: path.to_owned() })
    }

    /// Parses the forms of `OLLAMA_HOST`: `host`, `host:port`, `:port` or a URL. An address for
    /// listening on all interfaces becomes the loopback address.
    pub fn parse_ollama(text: &str) -> Result<BaseUrl, &'static str> {
        let mut base = if text.contains("://") {
            BaseUrl::parse(text)?
        } else if text.parse::<Ipv6Addr>().is_ok() {
            BaseUrl::parse(&format!("[{text}]:11434"))?
        } else {
            let (authority, path) = split_path(text);
            let (host, port) = split_port(authority);
            let host = if host.is_empty() { "127.0.0.1" } else { host };
            BaseUrl::parse(&format!("{host}:{}{path}", port.unwrap_or("11434")))?
        };
        match base.host.as_str() {
            "0.0.0.0" => base.host = "127.0.0.1".to_owned(),
            "[::]" => base.host = "[::1]".to_owned(),
            _ => {}
        }
        Ok(base)
    }

    /// Returns host and port, as in a URL.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Returns the whole path of `part`, a path of the API that begins with a slash.
    pub fn target(&self, part: &str) -> String {
        format!("{}{part}", self.path)
    }

    /// Returns the whole URL, which [`BaseUrl::parse`] parses.
    pub fn url(&self) -> String {
        match self {
            BaseUrl { is_secure: true, host, port: HTTPS_PORT, path } => {
                format!("https://{host}{path}")
            }
            BaseUrl { is_secure: true, path, .. } => format!("https://{}{path}", self.authority()),
            BaseUrl { path, .. } => format!("http://{}{path}", self.authority()),
        }
    }

    /// Returns whether the host is this machine, by its name or address.
    pub fn is_loopback(&self) -> bool {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let address = host.parse::<IpAddr>();
        host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|found| found.is_loopback())
    }
}

/// Fails unless curl(1) could take a text as a proxy: a URL, or a host and perhaps a port. The
/// error does not quote the text.
pub fn check_proxy(text: &str) -> Result<(), &'static str> {
    check_characters(text)?;
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let known = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"];
    if !known.iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err("it begins with none of http://, https://, socks4:// and socks5://");
    }
    let (authority, _) = split_path(rest);
    host_and_port(authority.rsplit('@').next().unwrap_or_default()).map(drop)
}

fn check_characters(text: &str) -> Result<(), &'static str> {
    match text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(()),
        false => Err("it has characters that a URL cannot have"),
    }
}

fn host_and_port(authority: &str) -> Result<(&str, Option<u16>), &'static str> {
    let (host, port) = split_port(authority);
    if !is_host(host) {
        return Err("it names no host");
    }
    let number = |port| number(port).ok_or("its port is not a number from 1 to 65535");
    Ok((host, port.map(number).transpose()?))
}

/// Splits before the first slash.
fn split_path(text: &str) -> (&str, &str) {
    text.split_at(text.find('/').unwrap_or(text.len()))
}

/// Splits at the last colon, unless that belongs to an address in brackets.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

fn number(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

fn is_host(host: &str) -> bool {
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if let Some(address) = bracketed {
        return matches!(address.parse(), Ok(IpAddr::V6(_)));
    }
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !host.is_empty() && host.bytes().all(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_may_have_all_forms_that_people_write() {
        for (text, url) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/v1"),
            ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"),
            ("HTTP://localhost:1234/v1/", "http://localhost:1234/v1"),
            ("http://box.lan/openai/v2//", "http://box.lan:80/openai/v2"),
            ("http://[::1]:1234/v1/chat/completions", "http://[::1]:1234/v1"),
            ("http://[::1]", "http://[::1]:80/v1"),
            ("gpu_box:9000", "http://gpu_box:9000/v1"),
            ("https://api.example.com/v1", "https://api.example.com/v1"),
            ("HTTPS://api.example.com:443/", "https://api.example.com/v1"),
            ("https://[::1]:8443/openai", "https://[::1]:8443/openai"),
        ] {
            let base = BaseUrl::parse(text).unwrap();
            assert_eq!(base.url(), url, "{text}");
            assert_eq!(BaseUrl::parse(url), Ok(base), "{text}");
        }
        for (text, url) in [
            ("0.0.0.0", "http://127.0.0.1:11434/v1"),
            ("0.0.0.0:5000", "http://127.0.0.1:5000/v1"),
            (":5000", "http://127.0.0.1:5000/v1"),
            ("box", "http://box:11434/v1"),
            ("[::]", "http://[::1]:11434/v1"),
            ("::1", "http://[::1]:11434/v1"),
            ("http://box", "http://box:80/v1"),
            ("https://box", "https://box/v1"),
            ("http://box:11434/", "http://box:11434/v1"),
        ] {
            assert_eq!(BaseUrl::parse_ollama(text).unwrap().url(), url, "{text}");
        }
    }

    #[test]
    fn a_proxy_is_what_curl_takes() {
        for text in [
            "proxy.example",
            "proxy.example:3128",
            "http://me:s3c@ret@proxy.example:3128/",
            "HTTPS://proxy",
            "socks5h://[::1]:1080",
            "socks4a://localhost",
        ] {
            assert_eq!(check_proxy(text), Ok(()), "{text}");
        }
        for (text, because) in [
            ("ftp://proxy", "begins with none of"),
            ("http://", "no host"),
            ("me:s3cret@", "no host"),
            ("http://me:s3cret@pro,xy", "no host"),
            ("proxy:0", "port"),
            ("proxy:65536", "port"),
            ("proxy\n", "characters"),
        ] {
            let error = check_proxy(text).unwrap_err();
            assert!(error.contains(because) && !error.contains("s3cret"), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_invalid_base_url_is_refused_without_quoting_it() {
        for (text, because) in [
            ("https://me:s3cret@x/v1", "OPTA_API_KEY"),
            ("https://", "no host"),
            ("ftp://x", "begins with neither http:// nor https://"),
            ("http://me:s3cret@x/v1", "OPTA_API_KEY"),
            ("http://x/v1?key=s3cret", "query"),
            ("http://x/#s3cret", "fragment"),
            ("http://x:0/", "port"),
            ("http://x:65536/", "port"),
            ("http://x:+80/", "port"),
            ("http://x:/", "port"),
            ("http://", "no host"),
            ("http:///v1", "no host"),
            ("http://a,b/", "no host"),
            ("http://[::1/", "no host"),
            ("http://[1.2.3.4]/", "no host"),
            ("http://x/\r\nX: y", "characters"),
            ("http://\u{fc}/", "characters"),
        ] {
            let error = BaseUrl::parse(text).unwrap_err();
            assert!(error.contains(because) && !error.contains("s3cret"), "{text:?}: {error}");
            assert!(BaseUrl::parse_ollama(text).is_err(), "{text:?}");
        }
    }
}
