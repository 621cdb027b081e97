//! Requests over `https://`, by curl(1): it knows TLS, the certificates of the system and proxies.
//!
//! One child for each request. What it is to do, with the URL and all secrets, is written to its
//! standard input, so that its arguments and its environment say nothing; the body has a pipe of
//! its own. Its output is the response as the server sent it, byte for byte.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::limits;
use crate::sys::{self, Interest, child};

use super::message::Request;
use super::resolve::{output_of, read_answer};
use super::wait::wait;

/// The only arguments: no settings of the user, but those on standard input.
const ARGUMENTS: [&str; 3] = ["-q", "--config", "-"];

/// What is the same for all requests. The body arrives with its framing and each piece at once;
/// the head arrives too, but not that of a proxy. Nothing is redirected to another protocol.
const OPTIONS: &str = "silent\nshow-error\nno-buffer\nhttp1.1\nraw\ninclude\n\
    suppress-connect-headers\ngloboff\npath-as-is\nproto = \"=https\"\nheader = \"Expect:\"\n";

/// Searched if the user has no search path.
const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";

/// How connections to `https://` servers are made.
#[derive(Clone, Copy, Default)]
pub struct Tls<'a> {
    /// The proxy, as curl takes it. May contain a password.
    pub proxy: Option<&'a str>,
    /// The hosts that are reached without it, separated by commas.
    pub no_proxy: Option<&'a str>,
    /// The certificates to trust instead of the system's.
    pub ca_file: Option<&'a str>,
}

/// Returns the first curl in the absolute directories of a search path.
pub fn find(search_path: &OsStr) -> Option<PathBuf> {
    let path = if search_path.is_empty() { OsStr::new(PATH_DEFAULT) } else { search_path };
    let directories = path.as_bytes().split(|byte| *byte == b':');
    let candidates = directories.map(|directory| Path::new(OsStr::from_bytes(directory)));
    let mut candidates = candidates.filter(|path| path.is_absolute()).map(|path| path.join("curl"));
    candidates.find(|path| {
        path.metadata().is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0)
    })
}

/// Returns the version and the path of the curl that [`find`] finds.
pub fn description(search_path: &OsStr) -> Option<String> {
    let program = find(search_path)?;
    let mut command = Command::new(&program);
    command.args(["-q", "--version"]).env_clear();
    let output = output_of(command, limits::CURL_VERSION_MAX, None).unwrap_or_default();
    let version = output.strip_prefix("curl ").and_then(|rest| rest.split_whitespace().next());
    Some(format!("curl {}, {}", version.unwrap_or("of unknown version"), program.display()))
}

/// A curl that runs. Dropping it kills it.
pub struct Curl<'w> {
    tls: Tls<'w>,
    child: Child,
    /// `None` once the request was sent.
    request: Option<(ChildStdin, PipeWriter)>,
    /// The number of the other end of the second pipe, in the child.
    body: i32,
    output: ChildStdout,
    errors: ChildStderr,
}

impl<'w> Curl<'w> {
    /// Starts `program`, which waits for a request.
    pub fn start(program: &Path, tls: Tls<'w>) -> io::Result<Curl<'w>> {
        let (end, writer) = io::pipe()?;
        let body = end.as_raw_fd();
        let mut command = Command::new(program);
        command.args(ARGUMENTS).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        child::prepare_child(&mut command, File::open("/")?);
        child::hand_down(&mut command, end.into());
        let mut child = command.spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        match (input, output, child.stderr.take()) {
            (Some(input), Some(output), Some(errors)) => {
                Ok(Curl { tls, child, request: Some((input, writer)), body, output, errors })
            }
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Sends the request. `limit` is for each wait until curl reads more of it. If it has ended
    /// instead, the next read says why.
    ///
    /// # Errors
    /// `InvalidInput` if a part of the request cannot be sent, `PermissionDenied` if a setting
    /// cannot; and those of waiting.
    pub fn send(
        &mut self,
        request: &Request<'_>,
        limit: Duration,
        wake: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let config = config(request, &self.tls, self.body)?;
        let Some((input, body)) = self.request.take() else { return Ok(()) };
        let written = write(input, &[&config], limit, wake)
            .and_then(|()| write(body, &request.body, limit, wake));
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }

    /// Waits for the end of curl, after that of its output, at most [`limits::CURL_END_MAX`]. Fails
    /// if it did.
    fn end(&mut self) -> io::Result<()> {
        let errors = read_answer(&mut self.errors, limits::CURL_END_MAX, None)?;
        // It has closed everything: it is ending, and its status is its own.
        drop(self.child.kill());
        let status = self.child.wait()?;
        match status.code() {
            Some(0) => Ok(()),
            code => Err(failure(code, &errors)),
        }
    }
}

impl Read for Curl<'_> {
    /// Reads a part of the response, and waits for it.
    ///
    /// # Errors
    /// At the end, what kept curl from a complete response, in its own words: `HostUnreachable` for
    /// a connection that cannot be made; `PermissionDenied` for one that is not secure, or that a
    /// proxy refuses; `ConnectionReset` for one that was lost; `InvalidData` for what is not HTTP;
    /// and `Unsupported`.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.output.read(bytes)?;
        if count == 0 {
            self.end()?;
        }
        Ok(count)
    }
}

impl Drop for Curl<'_> {
    fn drop(&mut self) {
        // Both fail only if it is gone.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl AsFd for Curl<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }
}

/// Writes all parts to a pipe and closes it.
fn write(
    pipe: impl Into<OwnedFd>,
    parts: &[&str],
    limit: Duration,
    wake: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut pipe = File::from(pipe.into());
    for piece in parts.iter().flat_map(|part| part.as_bytes().chunks(sys::PIPE_BYTES)) {
        wait(&pipe, Interest::Write, limit, wake)?;
        pipe.write_all(piece)?;
    }
    Ok(())
}

/// Returns the settings for curl; the body is read from the descriptor with the number `body`.
fn config(request: &Request<'_>, tls: &Tls<'_>, body: i32) -> io::Result<String> {
    request.check()?;
    let Request { method, authority, target, bearer, accept, .. } = request;
    let mut config = OPTIONS.to_owned();
    let mut set = |name: &str, value: &str| {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"");
        config.push_str(&format!("{name} = \"{value}\"\n"));
    };
    set("url", &format!("https://{authority}{target}"));
    set("request", method);
    set("user-agent", &format!("opta/{}", env!("CARGO_PKG_VERSION")));
    set("header", &format!("Accept: {accept}"));
    set("connect-timeout", &limits::CURL_CONNECT_MAX.as_secs().to_string());
    // Where the system does not end it with the daemon.
    set("max-time", &limits::TURN_MAX.as_secs().to_string());
    if let Some(secret) = bearer {
        set("header", &format!("Authorization: Bearer {secret}"));
    }
    if request.body_length() > 0 {
        set("header", "Content-Type: application/json");
        set("data-binary", &format!("@/dev/fd/{body}"));
    }
    for (name, value) in [("proxy", tls.proxy), ("noproxy", tls.no_proxy), ("cacert", tls.ca_file)]
    {
        let Some(value) = value else { continue };
        if value.contains(char::is_control) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("the setting for curl's {name} has control characters"),
            ));
        }
        set(name, value);
    }
    Ok(config)
}

/// Returns the error for an exit status; `errors` begins with a sentence: `curl: (60) SSL …`.
fn failure(code: Option<i32>, errors: &str) -> io::Error {
    let line = errors.lines().next().unwrap_or_default();
    let sentence = line.strip_prefix("curl: ").unwrap_or(line);
    let sentence = match sentence.strip_prefix('(').and_then(|rest| rest.split_once(") ")) {
        Some((_number, sentence)) => sentence,
        None => sentence,
    };
    // EXIT CODES in curl(1).
    let kind = match code {
        // A proxy that refuses is reported as a failure to receive.
        Some(56) if sentence.contains("CONNECT") => io::ErrorKind::PermissionDenied,
        // Names, addresses, the time to connect.
        Some(5..=7 | 28) => io::ErrorKind::HostUnreachable,
        // TLS, certificates, the proxy.
        Some(35 | 51 | 53 | 54 | 58..=60 | 64 | 66 | 77 | 80 | 82 | 83 | 90 | 91 | 97 | 98) => {
            io::ErrorKind::PermissionDenied
        }
        Some(18 | 52 | 55 | 56) | None => io::ErrorKind::ConnectionReset,
        // Not HTTP.
        Some(1 | 8) => io::ErrorKind::InvalidData,
        Some(_) => io::ErrorKind::Unsupported,
    };
    let sentence = match (sentence.trim(), code) {
        ("", Some(code)) => format!("curl ended with status {code}"),
        ("", None) => "curl was killed".to_owned(),
        (sentence, _) => sentence.to_owned(),
    };
    io::Error::new(kind, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request<'static> {
        Request {
            method: "POST",
            authority: "[::1]:443".to_owned(),
            target: "/v1/\"\\",
            bearer: Some("s3\"cret"),
            accept: "text/plain",
            body: ["{}", "", ""],
        }
    }

    #[test]
    fn no_part_of_a_request_or_a_setting_is_another_option() {
        let tls = Tls { proxy: Some("http://a\"b\\c"), ..Tls::default() };
        let text = config(&request(), &tls, 9).unwrap();
        for line in [
            r#"url = "https://[::1]:443/v1/\"\\""#,
            r#"header = "Authorization: Bearer s3\"cret""#,
            r#"data-binary = "@/dev/fd/9""#,
            r#"proxy = "http://a\"b\\c""#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("cacert") && !text.contains("noproxy"), "{text}");
        let get = Request { body: [""; 3], ..request() };
        assert!(!config(&get, &tls, 9).unwrap().contains("data-binary"));
        for bad in [
            Request { bearer: Some("a\nurl = x"), ..request() },
            Request { target: "/\n", ..request() },
        ] {
            let kind = config(&bad, &tls, 9).map_err(|error| error.kind());
            assert_eq!(kind, Err(io::ErrorKind::InvalidInput));
        }
        let bad = Tls { ca_file: Some("/a\nb"), ..Tls::default() };
        assert!(config(&request(), &bad, 9).is_err());
    }

    #[test]
    fn a_failure_is_what_curl_says_on_its_first_line() {
        let refused = "curl: (56) CONNECT tunnel failed, response 407\n";
        for (code, errors, kind, sentence) in [
            (Some(7), "curl: (7) no (way)\nmore\n", io::ErrorKind::HostUnreachable, "no (way)"),
            (
                Some(56),
                refused,
                io::ErrorKind::PermissionDenied,
                "CONNECT tunnel failed, response 407",
            ),
            (Some(56), "curl: (56) reset", io::ErrorKind::ConnectionReset, "reset"),
            (Some(77), "curl: (77) x: y", io::ErrorKind::PermissionDenied, "x: y"),
            (Some(2), "", io::ErrorKind::Unsupported, "curl ended with status 2"),
            (None, "", io::ErrorKind::ConnectionReset, "curl was killed"),
        ] {
            let error = failure(code, errors);
            assert_eq!((error.kind(), error.to_string().as_str()), (kind, sentence));
        }
    }

    #[test]
    fn curl_is_found_in_the_absolute_directories_of_the_search_path_only() {
        assert_eq!(find(OsStr::new("relative::/nonexistent")), None);
        // From any directory, the way to one with a curl.
        let relative = format!("{}usr/bin", "../".repeat(64));
        assert_eq!(find(OsStr::new(&relative)), None);
    }
}
