//! A client of one model server: requests with timeouts and retries, and the message for each
//! failure.
//!
//! A key is sent in one header and nowhere else; it is removed from every message.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::config;
use crate::config::BaseUrl;
use crate::error::reason;
use crate::http::curl::{self, Tls};
use crate::http::{self, ClientConnection, Request, ResponseHead};
use crate::protocol::Endpoint;
use crate::session::turn::{self, Fault};
use crate::session::wake::Cancel;
use crate::{clock, limits, sys, text};

use super::completion::body_error;
use super::fault::{self, RequestFailure, Retry};
use super::server_facts::{self, ListedModel};
use super::trust;

/// The way to use a server that belongs to someone else.
const USE_IT: &str = "to use it nevertheless, set OPTA_MODEL_URL";

/// Follows the name of a server that cannot be used without curl.
const NO_CURL: &str = "cannot be used: https:// needs curl, and there is none in PATH; install it with \
    the package manager of the system";
/// What may help against a certificate that is not accepted.
const OWN_CA: &str = "; if it was issued by a CA of your own, name that CA's certificate in \
    connection.caFile";

/// The limits of each step, and how often it is tried.
#[derive(Clone, Copy)]
pub struct Timeouts {
    /// Until the first chunk.
    pub first: Duration,
    /// Between two chunks.
    pub idle: Duration,
    /// After the last, for what may still follow.
    pub tail: Duration,
    /// The pause before the first retry, if the server asks for none; it doubles each time.
    pub pause: Duration,
    /// All pauses together.
    pub retrying: Duration,
    /// The deadline for everything.
    pub deadline: Option<Instant>,
}

impl Timeouts {
    /// Those of a turn.
    pub const TURN: Timeouts = Timeouts {
        first: limits::MODEL_FIRST_MAX,
        idle: limits::MODEL_IDLE_MAX,
        tail: limits::MODEL_TAIL_MAX,
        pause: limits::MODEL_RETRY_PAUSE,
        retrying: limits::MODEL_RETRYING_MAX,
        deadline: None,
    };

    /// Returns these with the settings of an endpoint.
    pub fn set_by(self, endpoint: &Endpoint) -> Timeouts {
        let seconds = |set: Option<u64>, default| set.map_or(default, Duration::from_secs);
        Timeouts {
            first: seconds(endpoint.first_word_seconds, self.first),
            idle: seconds(endpoint.silence_seconds, self.idle),
            ..self
        }
    }
}

/// A model server, as seen by its client.
pub struct ModelServer<'a> {
    pub timeouts: Timeouts,
    pub endpoint: &'a Endpoint,
    base: BaseUrl,
    cancel: Option<&'a Cancel>,
}

impl<'a> ModelServer<'a> {
    /// Makes a client for an endpoint. Fails with `model-config` if its URL cannot be used.
    pub fn new(
        endpoint: &'a Endpoint,
        cancel: Option<&'a Cancel>,
        timeouts: Timeouts,
    ) -> Result<ModelServer<'a>, Fault> {
        let base = BaseUrl::parse(&endpoint.url);
        let base = base.map_err(|because| invalid_setting(&endpoint.source, because))?;
        Ok(ModelServer { timeouts, base, endpoint, cancel })
    }

    /// Sends a request for a path of the API, and waits for the head of the response within
    /// `head_limit`. Without a body it is a GET; the response to a body may be a stream.
    ///
    /// A connection that ends before the first byte of the response is tried once more.
    pub fn send(
        &self,
        path: &str,
        body: [&str; 3],
        head_limit: Duration,
    ) -> Result<(ClientConnection<'a>, ResponseHead), RequestFailure> {
        self.send_to(&self.base.target(path), body, head_limit)
    }

    fn send_to(
        &self,
        target: &str,
        body: [&str; 3],
        head_limit: Duration,
    ) -> Result<(ClientConnection<'a>, ResponseHead), RequestFailure> {
        let (method, accept) = match body {
            ["", ..] => ("GET", "application/json"),
            _ => ("POST", "text/event-stream, application/json"),
        };
        let request = Request {
            method,
            authority: self.base.authority(),
            target,
            bearer: self.endpoint.key.as_ref().map(|key| key.0.as_str()),
            accept,
            body,
        };
        let mut reconnected = false;
        loop {
            let mut connection = self.connect()?;
            let sent = connection.send(&request, self.within(limits::MODEL_SEND_MAX));
            match sent.and_then(|()| connection.head(self.within(head_limit))) {
                Ok(head) => return Ok((connection, head)),
                Err(error)
                    if !reconnected && !connection.is_responding() && is_disconnect(&error) =>
                {
                    reconnected = true;
                }
                Err(error) => return Err(self.lost(&error, "did not answer")),
            }
        }
    }

    /// Returns its models; `None` if it has no such list. The response must begin within `limit`.
    pub fn models(&self, limit: Duration) -> Result<Option<Vec<ListedModel>>, RequestFailure> {
        let Some(body) = self.get(&self.base.target("/models"), limit)? else { return Ok(None) };
        let models = server_facts::listed_models(&body).map(Some);
        models.ok_or_else(|| self.unexpected(&body).into())
    }

    /// Returns the body at `target`; `None` if there is none.
    fn get(&self, target: &str, limit: Duration) -> Result<Option<Vec<u8>>, RequestFailure> {
        let (mut connection, head) = self.send_to(target, [""; 3], limit)?;
        match head.status {
            200 => {}
            404 | 405 | 501 => return Ok(None),
            _ => {
                let error = self.read_error(&mut connection);
                return Err(self.status_failure(&head, &error));
            }
        }
        let mut body = Vec::new();
        let read = connection
            .read_body(&mut body, limits::MODEL_LIST_BYTES_MAX, || self.within(self.timeouts.idle));
        read.map_err(|error| self.lost(&error, "stopped in the middle of its list of models"))?;
        Ok(Some(body))
    }

    /// Returns the size of the context of `model` in tokens, if the server tells it.
    pub fn context(&self, model: Option<&str>) -> Option<u64> {
        let get = |target: &str| self.get(target, limits::MODEL_CONTEXT_MAX).ok().flatten();
        let listed = get(&self.base.target("/models"));
        let listed = listed.and_then(|body| server_facts::listed_context(&body, model));
        // llama.cpp, beside its API.
        listed.or_else(|| server_facts::context_of_props(&get("/props")?))
    }

    /// Reads the error in the body of a response that is not 200; empty if there is none.
    pub fn read_error(&self, connection: &mut ClientConnection<'_>) -> String {
        let deadline = Instant::now() + self.within(limits::MODEL_ERROR_MAX);
        let left = || deadline.saturating_duration_since(Instant::now());
        let mut body = Vec::new();
        // A part of the body is enough.
        drop(connection.read_body(&mut body, limits::MODEL_ERROR_BYTES_MAX, left));
        body_error(&body).unwrap_or_else(|| self.opening(&body))
    }

    /// Returns the failure of a response that is not 200, with the error from its body.
    pub fn status_failure(&self, head: &ResponseHead, error: &str) -> RequestFailure {
        let has_code = fault::code_of(error) != fault::ERROR || fault::is_about_tools(error);
        let asked = retry_after(head.field("retry-after"), clock::now_millis());
        let is_busy = match head.status {
            // Whatever it says: "Too many tokens", for example, may be too many in a minute.
            429 | 529 => true,
            503 => !has_code,
            _ => false,
        };
        if is_busy {
            let fault = self.busy(error, head.status, asked.unwrap_or_default());
            return RequestFailure { fault, retry: Retry::Busy(asked) };
        }
        let retry = match head.status {
            _ if has_code => Retry::No,
            408 | 502 | 504 => Retry::Busy(asked),
            500 => Retry::Failed,
            _ => Retry::No,
        };
        RequestFailure { fault: self.status_fault(head, error), retry }
    }

    fn status_fault(&self, head: &ResponseHead, error: &str) -> Fault {
        let quoted = match self.quote(error) {
            quoted if quoted.is_empty() => quoted,
            quoted => format!(": {quoted}"),
        };
        let status = head.status;
        match status {
            401 | 403 => {
                let what = match self.endpoint.key {
                    Some(_) => "rejects the key that is set",
                    None => "requires a key, and none is set (OPTA_API_KEY)",
                };
                self.fault(fault::UNAUTHORIZED, format_args!("{what}{quoted}"))
            }
            300..=399 => {
                let location = self.quote(head.field("location").unwrap_or("another place"));
                let what = format_args!("redirects to {location}: set that URL instead");
                self.fault(fault::CONFIG, what)
            }
            _ => {
                let code = match (status, fault::code_of(error)) {
                    (413, _) => fault::TOO_LONG,
                    (400 | 422, fault::ERROR) => fault::REFUSED,
                    (_, code) => code,
                };
                self.fault(code, format_args!("answered {status}{quoted}"))
            }
        }
    }

    /// Returns the failure of a connection before anything of an answer was passed on; `what` the
    /// server did if the connection is lost.
    pub fn lost(&self, error: &io::Error, what: &str) -> RequestFailure {
        let fault = self.connection_fault(error, what);
        let retry = if fault.code == fault::DISCONNECTED { Retry::Failed } else { Retry::No };
        RequestFailure { fault, retry }
    }

    /// Returns the fault for a body that no model server sends.
    pub fn unexpected(&self, body: &[u8]) -> Fault {
        let what = match self.opening(body) {
            opening if opening.is_empty() => "sent an empty response".to_owned(),
            opening => format!("does not answer like a model server: {opening}"),
        };
        self.fault(fault::ERROR, what)
    }

    /// Quotes the server's own words, shortened.
    pub fn quote(&self, text: &str) -> String {
        summary(&self.redact(text), limits::MODEL_QUOTE_CHARS_MAX)
    }

    /// Quotes the beginning of a body that cannot be parsed.
    fn opening(&self, body: &[u8]) -> String {
        let text = String::from_utf8_lossy(body);
        summary(&self.redact(&text), limits::MODEL_OPENING_CHARS_MAX)
    }

    /// Returns the fault for a failed connection; `what` the server did if the connection is lost.
    pub fn connection_fault(&self, error: &io::Error, what: &str) -> Fault {
        match error.kind() {
            _ if self.is_cancelled() => turn::cancelled(),
            io::ErrorKind::TimedOut => self.fault(fault::TIMEOUT, "has been silent for too long"),
            io::ErrorKind::InvalidData => {
                self.fault(fault::ERROR, format_args!("does not speak HTTP: {}", reason(error)))
            }
            // The address was checked before.
            io::ErrorKind::InvalidInput => self.fault(
                fault::CONFIG,
                "cannot be given the key that is set: it has characters that no header can hold",
            ),
            // What curl says: see `http::curl`.
            io::ErrorKind::HostUnreachable => self.unreachable(error),
            io::ErrorKind::PermissionDenied => self.insecure(error),
            io::ErrorKind::Unsupported => {
                self.fault(fault::ERROR, format_args!("cannot be used: {}", reason(error)))
            }
            io::ErrorKind::UnexpectedEof => {
                self.fault(fault::DISCONNECTED, format_args!("{what}: the connection has ended"))
            }
            _ => self.fault(fault::DISCONNECTED, format_args!("{what}: {}", reason(error))),
        }
    }

    /// Returns a fault that says `what` about the server.
    pub fn fault(&self, code: &'static str, what: impl Display) -> Fault {
        let message = format!("the model server at {} {what}", self.name());
        Fault { code, message: text::escaped(&self.redact(&message)) }
    }

    /// Returns `limit`, or the time until the deadline if that is shorter.
    pub fn within(&self, limit: Duration) -> Duration {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        self.timeouts.deadline.map_or(limit, |deadline| limit.min(left(deadline)))
    }

    fn connect(&self) -> Result<ClientConnection<'a>, Fault> {
        let BaseUrl { host, port, is_secure, .. } = &self.base;
        if *is_secure {
            return self.connect_by_curl();
        }
        let limit = self.within(limits::RESOLVE_MAX);
        let addresses = http::addresses(host, *port, limit, self.wake());
        let connection = addresses.and_then(|addresses| {
            ClientConnection::connect(
                &addresses,
                self.within(limits::MODEL_CONNECT_MAX),
                self.wake(),
            )
        });
        let connection = connection.map_err(|error| {
            if self.is_cancelled() {
                return turn::cancelled();
            }
            self.unreachable(&error)
        })?;
        // The port may have changed hands since the server was found.
        if self.endpoint.was_found()
            && let Err(error) = trust::owner_of(&connection)
        {
            if self.is_cancelled() {
                return Err(turn::cancelled());
            }
            let because = format!("cannot be used: {}; {USE_IT}", reason(&error));
            return Err(self.fault(fault::CONFIG, because));
        }
        Ok(connection)
    }

    fn connect_by_curl(&self) -> Result<ClientConnection<'a>, Fault> {
        let Some(program) = curl::find(&config::search_path()) else {
            return Err(self.fault(fault::CONFIG, NO_CURL));
        };
        let Endpoint { proxy, no_proxy, ca_file, .. } = self.endpoint;
        let tls = Tls {
            proxy: proxy.as_ref().map(|proxy| proxy.0.as_str()),
            no_proxy: no_proxy.as_deref(),
            ca_file: ca_file.as_deref(),
        };
        ClientConnection::by_curl(&program, tls, self.wake()).map_err(|error| {
            let because = format!("cannot be used: curl cannot be started: {}", reason(&error));
            self.fault(fault::ERROR, because)
        })
    }

    fn unreachable(&self, error: &io::Error) -> Fault {
        let (name, reason) = (self.name(), reason(error));
        let message = format!("cannot reach the model server at {name}: {reason}");
        Fault { code: fault::UNREACHABLE, message: text::escaped(&self.redact(&message)) }
    }

    /// Returns the fault for a server to which there is no secure connection.
    fn insecure(&self, error: &io::Error) -> Fault {
        let (name, reason) = (self.name(), reason(error));
        // OpenSSL: "unable to get local issuer certificate", "self-signed certificate".
        let by_unknown = ["issuer", "self", "chain"].iter().any(|word| reason.contains(word));
        let hint = if by_unknown { OWN_CA } else { "" };
        let message = format!("no secure connection to the model server at {name}: {reason}{hint}");
        Fault { code: fault::CONFIG, message: text::escaped(&self.redact(&message)) }
    }

    fn busy(&self, error: &str, status: u16, pause: Duration) -> Fault {
        let asked = match pause > self.timeouts.retrying {
            true => format!(" for {}s", pause.as_secs()),
            false => String::new(),
        };
        let what = format!("is busy{asked} ({status}): {}", self.quote(error));
        self.fault(fault::BUSY, what.trim_end_matches([':', ' ']))
    }

    /// Waits, unless the turn is cancelled.
    pub fn pause(&self, pause: Duration) -> Result<(), Fault> {
        let wake = self.wake().map(|wake| (wake, sys::Interest::Read));
        match sys::wait_any(wake.as_slice(), Some(self.within(pause))) {
            Ok(_) if self.is_cancelled() => Err(turn::cancelled()),
            Ok(_) => Ok(()),
            Err(error) => Err(self.connection_fault(&error, "could not be waited for")),
        }
    }

    /// Returns whether the turn was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_some_and(Cancel::is_cancelled)
    }

    /// Returns whether the deadline has passed.
    pub fn is_late(&self) -> bool {
        self.timeouts.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn wake(&self) -> Option<BorrowedFd<'a>> {
        self.cancel.map(AsFd::as_fd)
    }

    /// Returns the URL and where it comes from.
    fn name(&self) -> String {
        let url = self.base.url();
        match self.endpoint.source.as_str() {
            "" => url,
            // No setting: opta found the server itself.
            found if self.endpoint.was_found() => format!("{url} ({found})"),
            setting => format!("{url} (from {setting})"),
        }
    }

    fn redact(&self, text: &str) -> String {
        let Endpoint { key, proxy, .. } = self.endpoint;
        let key = key.as_ref().map(|key| key.0.as_str());
        let proxy = proxy.as_ref().and_then(|proxy| {
            let (user, _host) = proxy.0.rsplit_once('@')?;
            Some(user.split_once("://").map_or(user, |(_scheme, user)| user))
        });
        let secrets = [key, proxy].into_iter().flatten().filter(|secret| !secret.is_empty());
        secrets.fold(text.to_owned(), |text, secret| text.replace(secret, "…"))
    }
}

/// Returns the fault for a setting that names no usable server. Its value is not quoted.
pub fn invalid_setting(source: &str, because: &str) -> Fault {
    Fault { code: fault::CONFIG, message: format!("cannot use {source}: {because}") }
}

/// Returns the words of `text`, on one line and truncated.
fn summary(text: &str, chars_max: usize) -> String {
    text::truncated(&text::words(text, chars_max), chars_max).into_owned()
}

/// Parses a `Retry-After`: seconds, or a date. RFC 9110, 10.2.3
fn retry_after(field: Option<&str>, now_millis: i64) -> Option<Duration> {
    let text = field?;
    let seconds = text.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds.or_else(|| {
        let left = http_date(text)?.saturating_sub(now_millis);
        Some(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
    })
}

/// Parses a date of HTTP, `Sun, 06 Nov 1994 08:49:37 GMT`, to milliseconds of Unix time.
fn http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [_weekday, day, month, year, time, "GMT"] = *words.as_slice() else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    clock::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z"))
}

/// Returns whether an error means that the other end closed the connection.
fn is_disconnect(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_a_number_of_seconds_or_a_date() {
        // 1994-11-06T08:49:37Z
        let parsed = |text: &str| retry_after(Some(text), 784_111_777_000);
        for (text, millis) in [
            ("7", 7_000),
            ("0", 0),
            ("0.25", 250),
            ("Sun, 06 Nov 1994 08:49:57 GMT", 20_000),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
            ("Sat, 05 Nov 1994 08:49:37 GMT", 0),
        ] {
            assert_eq!(parsed(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "soon", "-1", "nan", "inf", "06 Nov 1994", "Sun, 06 Nix 1994 08:49:37 GMT"]
        {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}
