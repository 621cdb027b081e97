//! A model server: one request to it with all patience that is due, and the words for what fails.
//!
//! A key goes into one header and nowhere else; it is taken out of every message.

use std::borrow::Cow;
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nanoserde::DeJson;

use crate::agent::address::Base;
use crate::error::reason;
use crate::http::{self, Asking, Head, Link};
use crate::json::{self, Lenient, Raw};
use crate::protocol::Endpoint;
use crate::session::turn::{self, Fault};
use crate::session::wake::Cancel;
use crate::{clock, limits, sys, text};

use super::chunk::error_text;
use super::code;
use super::complaint::{code_of, is_loading};
use super::list;

/// How long is waited for what.
#[derive(Clone, Copy)]
pub struct Patience {
    /// For the first word.
    pub first: Duration,
    /// Between two words.
    pub idle: Duration,
    /// Behind the last.
    pub tail: Duration,
    /// A busy server is asked again so often.
    pub retries: u32,
    /// After so long, if it does not say.
    pub pause: Duration,
    /// One that loads its model is waited for so long, all pauses together.
    pub loading: Duration,
    /// All of it has to be over then.
    pub until: Option<Instant>,
}

/// What a turn has.
pub const OF_A_TURN: Patience = Patience {
    first: limits::MODEL_FIRST_MAX,
    idle: limits::MODEL_IDLE_MAX,
    tail: limits::MODEL_TAIL_MAX,
    retries: limits::MODEL_RETRIES_MAX,
    pause: limits::MODEL_RETRY_WAIT,
    loading: limits::MODEL_RETRY_WAIT_MAX,
    until: None,
};

/// A server that is asked something.
pub struct Server<'a> {
    pub base: Base,
    endpoint: &'a Endpoint,
    cancel: Option<&'a Cancel>,
    pub patience: Patience,
}

impl<'a> Server<'a> {
    /// The server at an endpoint. Fails with `model-config` if there can be none.
    pub fn at(
        endpoint: &'a Endpoint,
        cancel: Option<&'a Cancel>,
        patience: Patience,
    ) -> Result<Server<'a>, Fault> {
        let base = Base::parse(&endpoint.url);
        let base = base.map_err(|because| unusable(&endpoint.source, because))?;
        Ok(Server { base, endpoint, cancel, patience })
    }

    /// Asks, and waits for the head of the answer.
    ///
    /// A connection that ends before the first byte of an answer is tried once more, a busy server
    /// as often as patience says, one that loads its model as long. Any answer but "busy" is an
    /// answer.
    pub fn exchange(&self, asking: &Asking<'_>) -> Result<(Link<'a>, Head), Fault> {
        let mut lost = false;
        let Patience { mut retries, mut loading, .. } = self.patience;
        loop {
            let mut link = self.connect()?;
            let sent = link.send(asking, self.limit(limits::MODEL_SEND_MAX));
            match sent.and_then(|()| link.head(self.limit(self.patience.first))) {
                Ok(head) if matches!(head.status, 429 | 503) => {
                    let said = self.refusal(&mut link);
                    drop(link);
                    let asked = pause_asked_for(head.field("retry-after"), clock::now_millis());
                    let mut pause = asked.unwrap_or(self.patience.pause);
                    let again = if is_loading(&said) {
                        pause = pause.max(self.patience.pause);
                        let left = loading.checked_sub(pause);
                        loading = left.unwrap_or(loading);
                        left.is_some()
                    } else {
                        let left = retries.checked_sub(1);
                        retries = left.unwrap_or(retries);
                        left.is_some() && pause <= limits::MODEL_RETRY_WAIT_MAX
                    };
                    if !again {
                        return Err(self.busy(&said, head.status, pause));
                    }
                    self.pause(pause)?;
                }
                Ok(head) => return Ok((link, head)),
                Err(error) if !lost && !link.is_answering() && is_lost(&error) => lost = true,
                Err(error) => return Err(self.broken(&error, "did not answer")),
            }
        }
    }

    /// The request for a part of the API.
    pub fn asking<'b>(
        &'b self,
        place: &'b Place,
        accept: &'static str,
        body: &'b str,
    ) -> Asking<'b> {
        let bearer = self.endpoint.key.as_ref().map(|key| key.0.as_str());
        let method = if body.is_empty() { "GET" } else { "POST" };
        let Place { authority, target } = place;
        Asking { method, authority, target, bearer, accept, body }
    }

    /// Where a part of the API is.
    pub fn place(&self, part: &str) -> Place {
        Place { authority: self.base.authority(), target: self.base.target(part) }
    }

    /// The names of its models; `None` if it does not tell.
    pub fn models(&self) -> Result<Option<Vec<String>>, Fault> {
        let place = self.place("/models");
        let (mut link, head) = self.exchange(&self.asking(&place, "application/json", ""))?;
        if matches!(head.status, 404 | 405 | 501) {
            return Ok(None);
        }
        if head.status != 200 {
            let said = self.refusal(&mut link);
            return Err(self.refused(&head, &said));
        }
        let mut body = Vec::new();
        let read = read(&mut link, &mut body, limits::MODEL_LIST_BYTES_MAX, || {
            self.limit(self.patience.idle)
        });
        read.map_err(|error| self.broken(&error, "went away"))?;
        match list::names(&body) {
            Some(names) => Ok(Some(names)),
            None => Err(self.foreign(&body)),
        }
    }

    /// What a server says that refuses; empty if it says nothing.
    pub fn refusal(&self, link: &mut Link<'_>) -> String {
        #[derive(DeJson)]
        struct Refusal {
            error: Option<Raw>,
            message: Option<Lenient>,
            detail: Option<Lenient>,
        }
        let deadline = Instant::now() + self.limit(limits::MODEL_REFUSAL_MAX);
        let left = || deadline.saturating_duration_since(Instant::now());
        let mut body = Vec::new();
        // What has arrived is all there is to say.
        drop(read(link, &mut body, limits::MODEL_REFUSAL_BYTES_MAX, left));
        let refusal = json::parse::<Refusal>(&body).ok();
        let said = refusal.and_then(|refusal| match refusal.error {
            Some(error) => Some(error_text(error.as_str())),
            None => refusal.message.or(refusal.detail).map(Lenient::into_text),
        });
        let opening = || self.opening(&body);
        said.unwrap_or_else(opening)
    }

    /// The words for an answer that is not 200.
    pub fn refused(&self, head: &Head, said: &str) -> Fault {
        let code = code_of(said);
        let said = match self.quoted(said) {
            said if said.is_empty() => said,
            said => format!(": {said}"),
        };
        let status = head.status;
        match status {
            401 | 403 => {
                let what = match self.endpoint.key {
                    Some(_) => "refuses the key that is set",
                    None => "wants a key, and none is set (OPTA_API_KEY)",
                };
                self.fault(code::UNAUTHORIZED, format_args!("{what}{said}"))
            }
            300..=399 => {
                let to = head.field("location").unwrap_or("another place");
                let to = self.quoted(to);
                self.fault(code::CONFIG, format_args!("sends its callers to {to}: name that"))
            }
            _ => self.fault(code, format_args!("answered {status}{said}")),
        }
    }

    /// The words for an answer that is no model's.
    pub fn foreign(&self, body: &[u8]) -> Fault {
        let what = match self.opening(body) {
            opening if opening.is_empty() => "answers with nothing".to_owned(),
            opening => format!("does not answer as a model server does: {opening}"),
        };
        self.fault(code::ERROR, what)
    }

    /// A server's own words, as far as an error repeats them.
    pub fn quoted(&self, said: &str) -> String {
        summary(&self.without_key(said), limits::MODEL_QUOTE_CHARS_MAX)
    }

    /// How a body that cannot be understood begins.
    fn opening(&self, body: &[u8]) -> String {
        let text = String::from_utf8_lossy(body);
        summary(&self.without_key(&text), limits::MODEL_OPENING_CHARS_MAX)
    }

    /// The words for a connection that did not do what it should; `what` if it has ended.
    pub fn broken(&self, error: &io::Error, what: &str) -> Fault {
        match error.kind() {
            _ if self.cancel.is_some_and(Cancel::is_cancelled) => turn::cancelled(),
            io::ErrorKind::TimedOut => self.fault(code::TIMEOUT, "has been silent for too long"),
            io::ErrorKind::InvalidData => {
                self.fault(code::ERROR, format_args!("does not speak HTTP: {}", reason(error)))
            }
            // The address was checked before.
            io::ErrorKind::InvalidInput => self.fault(
                code::CONFIG,
                "cannot be given the key that is set: it has characters that no header can hold",
            ),
            io::ErrorKind::UnexpectedEof => {
                self.fault(code::DISCONNECTED, format_args!("{what}: the connection has ended"))
            }
            _ => self.fault(code::DISCONNECTED, format_args!("{what}: {}", reason(error))),
        }
    }

    /// `what` about the server, which is named with where it comes from.
    pub fn fault(&self, code: &'static str, what: impl Display) -> Fault {
        let message = format!("the model server at {} {what}", self.named());
        Fault { code, message: text::escaped(&self.without_key(&message)) }
    }

    /// What is left for a wait of `wanted`.
    pub fn limit(&self, wanted: Duration) -> Duration {
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        self.patience.until.map_or(wanted, |until| wanted.min(left(until)))
    }

    fn connect(&self) -> Result<Link<'a>, Fault> {
        let Base { host, port, .. } = &self.base;
        let limit = self.limit(limits::RESOLVE_MAX);
        let addresses = http::addresses(host, *port, limit, self.wake());
        let link = addresses.and_then(|addresses| {
            Link::connect(&addresses, self.limit(limits::MODEL_CONNECT_MAX), self.wake())
        });
        link.map_err(|error| {
            if self.cancel.is_some_and(Cancel::is_cancelled) {
                return turn::cancelled();
            }
            let message =
                format!("cannot reach the model server at {}: {}", self.named(), reason(&error));
            Fault { code: code::UNREACHABLE, message: text::escaped(&self.without_key(&message)) }
        })
    }

    fn busy(&self, said: &str, status: u16, pause: Duration) -> Fault {
        let said = self.quoted(said);
        let what = if pause > limits::MODEL_RETRY_WAIT_MAX {
            format!("is busy for {}s ({status}): {said}", pause.as_secs())
        } else {
            format!("is busy ({status}): {said}")
        };
        self.fault(code::BUSY, what.trim_end_matches([':', ' ']))
    }

    fn pause(&self, pause: Duration) -> Result<(), Fault> {
        let pause = Some(self.limit(pause));
        let waited = match self.wake() {
            Some(wake) => sys::wait_readable([wake], pause).map(drop),
            None => sys::wait_readable([], pause).map(drop),
        };
        match waited {
            Ok(()) if self.cancel.is_some_and(Cancel::is_cancelled) => Err(turn::cancelled()),
            Ok(()) => Ok(()),
            Err(error) => Err(self.broken(&error, "could not be waited for")),
        }
    }

    fn wake(&self) -> Option<BorrowedFd<'a>> {
        self.cancel.map(AsFd::as_fd)
    }

    fn named(&self) -> String {
        let url = self.base.url();
        match self.endpoint.source.as_str() {
            "" => url,
            // Found by ourselves.
            found if found.starts_with("found") => format!("{url} ({found})"),
            set => format!("{url} (from {set})"),
        }
    }

    fn without_key<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match &self.endpoint.key {
            Some(key) if !key.0.is_empty() && text.contains(&key.0) => {
                text.replace(&key.0, "…").into()
            }
            _ => text.into(),
        }
    }
}

/// Where a part of the API is.
pub struct Place {
    authority: String,
    target: String,
}

/// A setting that names no server that can be asked. Its value is not quoted.
pub fn unusable(source: &str, because: &str) -> Fault {
    Fault { code: code::CONFIG, message: format!("cannot use {source}: {because}") }
}

/// Returns the words of `text`, on one line and truncated.
fn summary(text: &str, chars_max: usize) -> String {
    text::truncated(&text::words(text, chars_max), chars_max).into_owned()
}

/// Reads a body to its end.
fn read(
    link: &mut Link<'_>,
    body: &mut Vec<u8>,
    bytes_max: usize,
    limit: impl Fn() -> Duration,
) -> io::Result<()> {
    while let Some(bytes) = link.body(limit())? {
        body.extend_from_slice(&bytes);
        if body.len() > bytes_max {
            body.truncate(bytes_max);
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
        }
    }
    Ok(())
}

/// How long a busy server wants to be left alone: seconds, or until a date. RFC 9110, 10.2.3
fn pause_asked_for(retry_after: Option<&str>, now_millis: i64) -> Option<Duration> {
    let text = retry_after?;
    let seconds = text.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds.or_else(|| {
        let left = date(text)?.saturating_sub(now_millis);
        Some(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
    })
}

/// The moment that a date of HTTP means: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [_weekday, day, month, year, time, "GMT"] = *words.as_slice() else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    clock::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z"))
}

/// Whether the other end has gone.
fn is_lost(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof,
    };
    let kinds = [BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof];
    kinds.contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_asked_for_in_seconds_or_until_a_date() {
        // 1994-11-06T08:49:37Z
        let asked = |text: &str| pause_asked_for(Some(text), 784_111_777_000);
        for (text, millis) in [
            ("7", 7_000),
            ("0", 0),
            ("0.25", 250),
            ("Sun, 06 Nov 1994 08:49:57 GMT", 20_000),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
            ("Sat, 05 Nov 1994 08:49:37 GMT", 0),
        ] {
            assert_eq!(asked(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for odd in ["", "soon", "-1", "nan", "inf", "06 Nov 1994", "Sun, 06 Nix 1994 08:49:37 GMT"]
        {
            assert_eq!(asked(odd), None, "{odd}");
        }
    }
}
