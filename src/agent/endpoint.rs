//! Where the model is: what the user has set, else what answers on this machine.
//!
//! A setting that fails is not passed over for the next one: the user has said what is meant. A
//! key goes to a server that was set, never to one that was only found; that of OpenAI not even to
//! one that was set for Ollama.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::config::ModelSettings;
use crate::error::reason;
use crate::http::{Request, ResponseParser};
use crate::limits;
use crate::protocol::{Endpoint, Key};
use crate::session::turn::Fault;
use crate::sys::{self, Interest};

use super::base_url::BaseUrl;
use super::model::{fault, first_chat_model, invalid_setting, model_names};

/// Where model servers listen unless they are told otherwise, in the order in which they count.
const PORTS: [(u16, &str); 4] = [
    (limits::MODEL_PORT_DEFAULT, "LM Studio"),
    (11_434, "Ollama"),
    (8080, "llama.cpp"),
    (8000, "vLLM"),
];

/// Names a server that was set for another program, and speaks of no key.
const OLLAMA: &str = "OLLAMA_HOST";

/// What a command or a session says about the model; it overrides the settings.
#[derive(Default)]
pub struct ModelChoice<'a> {
    /// `--model-url`
    pub url: Option<&'a str>,
    /// `--model`
    pub model: Option<&'a str>,
}

/// Why there is no endpoint.
#[derive(Debug)]
pub enum EndpointError {
    /// A setting names no usable server.
    InvalidSetting { source: String, because: &'static str },
    /// No server is set, and none was found.
    NotFound {
        /// What was found at each port, in words.
        tried: Vec<String>,
        /// A server was found that has no model loaded.
        lacks_model: bool,
        /// A key is set nevertheless.
        has_key: bool,
    },
}

impl From<EndpointError> for Fault {
    fn from(error: EndpointError) -> Fault {
        let (tried, has_key) = match error {
            EndpointError::InvalidSetting { source, because } => {
                return invalid_setting(&source, because);
            }
            EndpointError::NotFound { tried, has_key, .. } => (tried, has_key),
        };
        let but = if has_key { "; a key is set, but not the server that it is for" } else { "" };
        let message = format!(
            "no model server is set, and none was found: {}{but}; start one, for example with \
             'ollama serve' or 'llama-server --jinja -m FILE.gguf', or name one with \
             OPTA_MODEL_URL=http://HOST:PORT/v1",
            tried.join(", ")
        );
        Fault { code: fault::UNREACHABLE, message }
    }
}

/// The endpoint that is meant: the first that is set, else the first of the usual ports of this
/// machine where a model server answers, all asked at once. A server that is set is not asked here.
pub fn resolve(
    choice: &ModelChoice<'_>,
    settings: &ModelSettings,
) -> Result<Endpoint, EndpointError> {
    resolve_among(choice, settings, &PORTS, limits::MODEL_PROBE_MAX)
}

fn resolve_among(
    choice: &ModelChoice<'_>,
    settings: &ModelSettings,
    ports: &[(u16, &str)],
    limit: Duration,
) -> Result<Endpoint, EndpointError> {
    let model = choice.model.or(settings.model.as_deref()).map(str::to_owned);
    let tool_choice = settings.tool_choice.clone();
    if let Some((base, source)) = base_set(choice, settings) {
        let invalid =
            |because| EndpointError::InvalidSetting { source: source.to_owned(), because };
        let base = base.map_err(invalid)?;
        let key = key_for(source, settings).map(Key);
        let (url, source) = (base.url(), source.to_owned());
        return Ok(Endpoint { url, source, key, model, tool_choice });
    }
    let (mut tried, mut lacks_model) = (Vec::new(), false);
    for (answer, (port, name)) in probe(ports, limit).into_iter().zip(ports) {
        let failure = match answer {
            Ok(names) => match first_chat_model(&names) {
                Some(first) => {
                    return Ok(Endpoint {
                        url: format!("http://127.0.0.1:{port}/v1"),
                        source: format!("found on port {port}"),
                        key: None,
                        model: model.or_else(|| Some(first.clone())),
                        tool_choice,
                    });
                }
                None => {
                    lacks_model = true;
                    "a model server that has no model loaded".to_owned()
                }
            },
            Err(failure) => failure,
        };
        tried.push(format!("127.0.0.1:{port} ({name}): {failure}"));
    }
    let has_key = settings.key.is_some() || settings.openai_key.is_some();
    Err(EndpointError::NotFound { tried, lacks_model, has_key })
}

/// The first base that is set, and by what.
fn base_set<'a>(
    choice: &ModelChoice<'a>,
    settings: &'a ModelSettings,
) -> Option<(Result<BaseUrl, &'static str>, &'a str)> {
    let url = |text: Option<&'a str>, source| Some((BaseUrl::parse(text?), source));
    url(choice.url, "--model-url")
        .or_else(|| url(settings.url_variable.as_deref(), "OPTA_MODEL_URL"))
        .or_else(|| {
            let set = settings.url_config.as_ref()?;
            Some((BaseUrl::parse(&set.url), set.by.as_str()))
        })
        .or_else(|| url(settings.openai_url.as_deref(), "OPENAI_BASE_URL"))
        .or_else(|| {
            let host = settings.ollama_host.as_deref()?;
            Some((BaseUrl::parse_ollama(host), OLLAMA))
        })
}

/// The key for a base that this has set. `OLLAMA_HOST` says nothing of OpenAI: people have both,
/// each for a program of its own, and the key would cross the network in clear.
fn key_for(source: &str, settings: &ModelSettings) -> Option<String> {
    let openai = settings.openai_key.as_ref().filter(|_| source != OLLAMA);
    settings.key.as_ref().or(openai).cloned()
}

/// One port that is asked for its models.
enum Probe {
    Connecting(TcpStream),
    Reading(TcpStream, Box<ResponseParser>, Vec<u8>),
    Ended(Result<Vec<String>, String>),
}

/// The models that each port offers, or why there are none. One thread for all: a command that has
/// still to fork must have no other.
fn probe(ports: &[(u16, &str)], limit: Duration) -> Vec<Result<Vec<String>, String>> {
    let deadline = Instant::now() + limit;
    let begin = |(port, _): &(u16, &str)| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
        sys::socket::connect(&address).map_or_else(|error| failed(&error), Probe::Connecting)
    };
    let mut probes: Vec<Probe> = ports.iter().map(begin).collect();
    while !is_settled(&probes) {
        let left = deadline.saturating_duration_since(Instant::now());
        let open: Vec<usize> = probes.iter().enumerate().filter_map(open_at).collect();
        let awaited: Vec<_> = probes.iter().filter_map(awaited).collect();
        let ready = sys::wait_any(&awaited, Some(left)).unwrap_or_default();
        drop(awaited);
        if !ready.contains(&true) {
            break;
        }
        let ready = open.into_iter().zip(ready).filter_map(|(at, ready)| ready.then_some(at));
        for at in ready.collect::<Vec<usize>>() {
            if let (Some(probe), Some((port, _))) = (probes.get_mut(at), ports.get(at)) {
                let before = std::mem::replace(probe, Probe::Ended(Err(String::new())));
                *probe = before.step(*port).unwrap_or_else(|error| failed(&error));
            }
        }
    }
    let late = || Err("no answer".to_owned());
    let answer = |probe| if let Probe::Ended(answer) = probe { answer } else { late() };
    probes.into_iter().map(answer).collect()
}

fn failed(error: &io::Error) -> Probe {
    Probe::Ended(Err(match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => "no model server".to_owned(),
        _ => reason(error),
    }))
}

fn open_at((at, probe): (usize, &Probe)) -> Option<usize> {
    (!matches!(probe, Probe::Ended(_))).then_some(at)
}

fn awaited(probe: &Probe) -> Option<(std::os::fd::BorrowedFd<'_>, Interest)> {
    match probe {
        Probe::Connecting(socket) => Some((socket.as_fd(), Interest::Write)),
        Probe::Reading(socket, ..) => Some((socket.as_fd(), Interest::Read)),
        Probe::Ended(_) => None,
    }
}

/// Whether it is known which one is the first: all before it have ended.
fn is_settled(probes: &[Probe]) -> bool {
    for probe in probes {
        match probe {
            Probe::Ended(Ok(names)) if first_chat_model(names).is_some() => return true,
            Probe::Ended(_) => {}
            Probe::Connecting(_) | Probe::Reading(..) => return false,
        }
    }
    true
}

impl Probe {
    /// Goes on with what the socket is ready for.
    fn step(self, port: u16) -> io::Result<Probe> {
        match self {
            Probe::Connecting(mut socket) => {
                if let Some(error) = socket.take_error()? {
                    return Err(error);
                }
                let request = Request {
                    method: "GET",
                    authority: format!("127.0.0.1:{port}"),
                    target: "/v1/models",
                    bearer: None,
                    accept: "application/json",
                    body: "",
                };
                // A few hundred bytes always fit the buffer of a new connection.
                socket.write_all(request.text()?.as_bytes())?;
                Ok(Probe::Reading(socket, Box::new(ResponseParser::new()), Vec::new()))
            }
            Probe::Reading(mut socket, mut incoming, mut body) => {
                let mut bytes = [0_u8; 16 * 1024];
                match socket.read(&mut bytes) {
                    Ok(0) => incoming.end()?,
                    Ok(count) => incoming.feed(bytes.get(..count).unwrap_or_default())?,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
                body.append(&mut incoming.take_body());
                if body.len() > limits::MODEL_LIST_BYTES_MAX {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                if !incoming.is_complete() {
                    return Ok(Probe::Reading(socket, incoming, body));
                }
                let status = incoming.head().map_or(0, |head| head.status);
                let names = if status == 200 { model_names(&body) } else { None };
                let refusal = || format!("no model server (it answered {status})");
                Ok(Probe::Ended(names.ok_or_else(refusal)))
            }
            Probe::Ended(answer) => Ok(Probe::Ended(answer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UrlConfig;
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};

    const LIMIT: Duration = Duration::from_secs(1);

    fn set(change: impl FnOnce(&mut ModelSettings)) -> ModelSettings {
        let mut settings = ModelSettings::default();
        change(&mut settings);
        settings
    }

    fn resolve_by(
        settings: &ModelSettings,
        ports: &[(u16, &str)],
    ) -> Result<Endpoint, EndpointError> {
        resolve_among(&ModelChoice::default(), settings, ports, LIMIT)
    }

    /// A server that answers one request with `answer`, and what it was asked.
    fn server(answer: String) -> (u16, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut asked = String::new();
            while !asked.ends_with("\r\n\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte).unwrap();
                asked.push(byte[0].into());
            }
            socket.write_all(answer.as_bytes()).unwrap();
            asked
        };
        (port, thread::Builder::new().spawn(serve).unwrap())
    }

    fn listing(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn the_first_that_is_set_wins_and_is_named() {
        let mut settings = ModelSettings {
            url_variable: Some("http://variable:1".into()),
            url_config: Some(UrlConfig {
                url: "http://file:2".into(),
                by: "connection.url".into(),
            }),
            openai_url: Some("http://openai:3/v1/".into()),
            ollama_host: Some("0.0.0.0".into()),
            key: None,
            openai_key: Some("s3cret".into()),
            model: Some("m".into()),
            tool_choice: Some("required".into()),
        };
        let found = |settings: &ModelSettings| resolve_by(settings, &[]);
        let choice = ModelChoice { url: Some("flag:9"), model: Some("n") };
        let endpoint = resolve_among(&choice, &settings, &[], LIMIT).unwrap();
        assert_eq!(
            (endpoint.url.as_str(), endpoint.source.as_str()),
            ("http://flag:9/v1", "--model-url")
        );
        assert_eq!(endpoint.model.as_deref(), Some("n"));
        let endpoint = found(&settings).unwrap();
        assert_eq!(endpoint.source, "OPTA_MODEL_URL");
        assert_eq!(endpoint.key.unwrap().0, "s3cret");
        assert_eq!(endpoint.model.as_deref(), Some("m"));
        assert_eq!(endpoint.tool_choice.as_deref(), Some("required"));
        settings.key = Some("ours".into());
        assert_eq!(found(&settings).unwrap().key.unwrap().0, "ours");
        settings.key = None;
        settings.url_variable = None;
        let endpoint = found(&settings).unwrap();
        assert_eq!((endpoint.source.as_str(), endpoint.key.is_some()), ("connection.url", true));
        settings.url_config = None;
        let endpoint = found(&settings).unwrap();
        assert_eq!((endpoint.source.as_str(), endpoint.key.is_some()), ("OPENAI_BASE_URL", true));
        settings.openai_url = None;
        let endpoint = found(&settings).unwrap();
        assert_eq!(endpoint.source, "OLLAMA_HOST");
        assert_eq!(endpoint.url, "http://127.0.0.1:11434/v1");
        assert!(endpoint.key.is_none(), "the key of another program was sent to it");
        settings.key = Some("ours".into());
        assert_eq!(found(&settings).unwrap().key.unwrap().0, "ours");
    }

    #[test]
    fn a_setting_that_cannot_be_used_is_not_passed_over() {
        let settings = set(|settings| {
            settings.url_variable = Some("https://me:s3cret@api.example.com/v1".into());
            settings.openai_url = Some("http://127.0.0.1:1".into());
        });
        let fault = Fault::from(resolve_by(&settings, &[]).err().unwrap());
        assert_eq!(fault.code, "model-config");
        assert!(
            fault.message.starts_with("cannot use OPTA_MODEL_URL: https://"),
            "{}",
            fault.message
        );
        assert!(!fault.message.contains("s3cret"));
    }

    #[test]
    fn the_first_port_that_answers_properly_is_found_and_gets_no_key() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let (web, web_thread) = server("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>".into());
        let (empty, empty_thread) = server(listing(r#"{"object":"list","data":[]}"#));
        let (good, good_thread) =
            server(listing(r#"{"data":[{"id":"nomic-embed-text"},{"id":"qwen"}]}"#));
        let settings = set(|settings| {
            settings.key = Some("s3cret".into());
            settings.openai_key = Some("s3cret".into());
        });
        let ports = [
            (silent.local_addr().unwrap().port(), "silent"),
            (web, "web"),
            (empty, "empty"),
            (good, "good"),
        ];
        let endpoint = resolve_by(&settings, &ports).unwrap();
        assert_eq!(endpoint.url, format!("http://127.0.0.1:{good}/v1"));
        assert_eq!(endpoint.source, format!("found on port {good}"));
        assert_eq!(endpoint.model.as_deref(), Some("qwen"));
        assert!(endpoint.key.is_none());
        for thread in [web_thread, empty_thread, good_thread] {
            let asked = thread.join().unwrap();
            assert!(asked.starts_with("GET /v1/models HTTP/1.1\r\n"), "{asked}");
            assert!(!asked.contains("s3cret"), "{asked}");
        }
    }

    #[test]
    fn what_was_tried_in_vain_is_named() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent_port = silent.local_addr().unwrap().port();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (lost, lost_thread) =
            server("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into());
        let ports = [(silent_port, "a"), (closed, "b"), (lost, "c")];
        let begun = Instant::now();
        let unresolved = resolve_by(&ModelSettings::default(), &ports).err();
        assert!(begun.elapsed() >= LIMIT);
        lost_thread.join().unwrap();
        let unresolved = unresolved.unwrap();
        assert!(matches!(unresolved, EndpointError::NotFound { lacks_model: false, .. }));
        let fault = Fault::from(unresolved);
        assert_eq!(fault.code, "model-unreachable");
        for part in [
            format!("127.0.0.1:{silent_port} (a): no answer"),
            format!("127.0.0.1:{closed} (b): Connection refused"),
            format!("127.0.0.1:{lost} (c): no model server (it answered 404)"),
            "OPTA_MODEL_URL".to_owned(),
        ] {
            assert!(fault.message.contains(&part), "{}", fault.message);
        }
    }

    #[test]
    fn a_server_without_a_model_and_a_key_without_a_server_are_told_apart() {
        let (empty, empty_thread) = server(listing(r#"{"object":"list","data":[]}"#));
        let settings = set(|settings| settings.openai_key = Some("s3cret".into()));
        let unresolved = resolve_by(&settings, &[(empty, "empty")]).err();
        empty_thread.join().unwrap();
        let unresolved = unresolved.unwrap();
        let EndpointError::NotFound { lacks_model: true, has_key: true, .. } = &unresolved else {
            panic!("{unresolved:?}")
        };
        let message = Fault::from(unresolved).message;
        assert!(message.contains("no model loaded; a key is set, but not the server"), "{message}");
        assert!(message.contains("; start one") && !message.contains("s3cret"), "{message}");
    }
}
