//! The endpoint of a model: the configured one, else the first model server that answers on this
//! machine.
//!
//! A setting that cannot be used is an error, because the next one is not what the user meant. A
//! key is sent to a configured server, never to one that was found; the key for OpenAI is not even
//! sent to one that is configured for Ollama.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use crate::config::{BaseUrl, ModelSettings};
use crate::error::reason;
use crate::http::{self, ClientConnection, Request};
use crate::limits;
use crate::protocol::{Endpoint, Key};
use crate::session::turn::Fault;
use crate::session::wake::Cancel;

use super::model::{fault, first_chat_model, invalid_setting, model_names, owner_of};

/// Names the program of a port.
pub const OLLAMA_PROGRAM: &str = "Ollama";
/// Names the program of a port.
pub const LM_STUDIO: &str = "LM Studio";

/// The default ports of model servers, in the order of preference.
const PORTS: [(u16, &str); 4] = [
    (limits::MODEL_PORT_DEFAULT, LM_STUDIO),
    (11_434, OLLAMA_PROGRAM),
    (8080, "llama.cpp"),
    (8000, "vLLM"),
];

/// Names a server that is set for another program, and implies no key.
const OLLAMA: &str = "OLLAMA_HOST";

/// The choice of a command or a session, which overrides the settings.
#[derive(Default)]
pub struct ModelChoice<'a> {
    /// `--model-url`
    pub url: Option<&'a str>,
    /// `--model`
    pub model: Option<&'a str>,
    /// `--max-tokens`
    pub max_tokens: Option<u64>,
}

/// The reason why there is no endpoint.
#[derive(Debug)]
pub enum EndpointError {
    /// A setting names no usable server.
    InvalidSetting { source: String, because: &'static str },
    /// No server is set, and none was found.
    NotFound {
        tried: Vec<TriedPort>,
        /// A key is set nevertheless.
        has_key: bool,
    },
}

/// A port at which no model server was found that may be used.
#[derive(Debug)]
pub struct TriedPort {
    port: u16,
    /// The program whose default port it is.
    pub program: &'static str,
    pub found: FoundThere,
}

/// What was found at a port.
#[derive(Debug)]
pub enum FoundThere {
    /// A server that has no model loaded.
    NoModel,
    Failure(io::Error),
}

impl Display for TriedPort {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { port, program, found } = self;
        let found = match found {
            FoundThere::NoModel => "a model server that has no model loaded".to_owned(),
            FoundThere::Failure(error) => match error.kind() {
                io::ErrorKind::TimedOut => "no answer".to_owned(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    "no model server".to_owned()
                }
                _ => reason(error),
            },
        };
        write!(f, "127.0.0.1:{port} ({program}): {found}")
    }
}

impl From<EndpointError> for Fault {
    fn from(error: EndpointError) -> Fault {
        let (mut tried, has_key) = match error {
            EndpointError::InvalidSetting { source, because } => {
                return invalid_setting(&source, because);
            }
            EndpointError::NotFound { tried, has_key } => {
                let tried: Vec<String> = tried.iter().map(TriedPort::to_string).collect();
                (tried.join(", "), has_key)
            }
        };
        if has_key {
            tried.push_str("; a key is set, but not the server that it is for");
        }
        let message = format!(
            "no model server is set, and none was found: {tried}; start one, for example with \
             'ollama serve' or 'llama-server --jinja -m FILE.gguf', or name one with \
             OPTA_MODEL_URL=http://HOST:PORT/v1"
        );
        Fault { code: fault::UNREACHABLE, message }
    }
}

/// Returns the endpoint: the first one that is set, else the first of the default ports on this
/// machine where a model server answers. Sends no request to a server that is set.
pub fn resolve(
    choice: &ModelChoice<'_>,
    settings: &ModelSettings,
) -> Result<Endpoint, EndpointError> {
    resolve_among(choice, settings, &PORTS, limits::MODEL_PROBE_MAX)
}

fn resolve_among(
    choice: &ModelChoice<'_>,
    settings: &ModelSettings,
    ports: &[(u16, &'static str)],
    limit: Duration,
) -> Result<Endpoint, EndpointError> {
    let model = choice.model.or(settings.model.as_deref()).map(str::to_owned);
    let set = Endpoint {
        model,
        tool_choice: settings.tool_choice.clone(),
        max_tokens: choice.max_tokens.or(settings.max_tokens),
        first_word_seconds: settings.first_word_seconds,
        silence_seconds: settings.silence_seconds,
        ..Endpoint::default()
    };
    if let Some((url, source)) = url_set(choice, settings) {
        let parse = if source == OLLAMA { BaseUrl::parse_ollama } else { BaseUrl::parse };
        // `OLLAMA_HOST` implies nothing about OpenAI: people set both, each for a program of its
        // own, and the key would be sent in clear text.
        let openai_key = settings.openai_key.as_ref().filter(|_| source != OLLAMA);
        let key = settings.key.as_ref().or(openai_key).cloned().map(Key);
        let (base, source) = (parse(url), source.to_owned());
        return match base {
            Ok(base) => {
                Ok(Endpoint { url: base.url(), source, key, ..with_tls(set, &base, settings) })
            }
            Err(because) => Err(EndpointError::InvalidSetting { source, because }),
        };
    }
    let Found { port, model: first, owner } = find(ports, limit).map_err(|tried| {
        let has_key = settings.key.is_some() || settings.openai_key.is_some();
        EndpointError::NotFound { tried, has_key }
    })?;
    Ok(Endpoint {
        url: format!("http://127.0.0.1:{port}/v1"),
        source: format!("found on port {port}, run by {owner}"),
        model: set.model.or(Some(first)),
        ..set
    })
}

/// Returns the host and the port of an endpoint.
pub fn address(endpoint: &Endpoint) -> Option<(String, u16)> {
    BaseUrl::parse(&endpoint.url).ok().map(|base| (base.host, base.port))
}

/// Returns the endpoint with what a connection with TLS needs.
fn with_tls(endpoint: Endpoint, base: &BaseUrl, settings: &ModelSettings) -> Endpoint {
    if !base.is_secure {
        return endpoint;
    }
    let by_variable = settings.proxy_variable.as_ref().filter(|_| !base.is_loopback());
    Endpoint {
        proxy: settings.proxy.as_ref().or(by_variable).cloned().map(Key),
        no_proxy: settings.no_proxy.clone(),
        ca_file: settings.ca_file.clone(),
        ..endpoint
    }
}

/// Returns the first base URL that is set, as the user wrote it, and what sets it.
fn url_set<'a>(
    choice: &ModelChoice<'a>,
    settings: &'a ModelSettings,
) -> Option<(&'a str, &'a str)> {
    let config = settings.url_config.as_ref().map(|set| (set.url.as_str(), set.by.as_str()));
    let candidates = [
        choice.url.map(|url| (url, "--model-url")),
        settings.url_variable.as_deref().map(|url| (url, "OPTA_MODEL_URL")),
        config,
        settings.openai_url.as_deref().map(|url| (url, "OPENAI_BASE_URL")),
        settings.ollama_host.as_deref().map(|host| (host, OLLAMA)),
    ];
    candidates.into_iter().flatten().next()
}

/// A model server on this machine that may be used.
#[derive(Debug, PartialEq)]
struct Found {
    port: u16,
    /// Its first model that chats.
    model: String,
    /// The name of the user.
    owner: String,
}

/// Probes all ports in parallel. Returns the first one that may be used and has a model that chats;
/// else what was found at each port.
fn find(ports: &[(u16, &'static str)], limit: Duration) -> Result<Found, Vec<TriedPort>> {
    // Ends the other probes when the first one is found.
    let end = Cancel::new().ok();
    let wake = end.as_ref().map(AsFd::as_fd);
    let deadline = Instant::now() + limit;
    thread::scope(|scope| {
        let probe = |(port, _): &(u16, _)| {
            let port = *port;
            // Most ports refuse, and need no thread.
            let connection = http::connect(port, deadline, wake)?;
            let thread = thread::Builder::new().name("probe".to_owned());
            thread.spawn_scoped(scope, move || models_at(connection, port, deadline))
        };
        let probes: Vec<_> = ports.iter().map(probe).collect();
        let mut tried = Vec::new();
        for (probe, &(port, program)) in probes.into_iter().zip(ports) {
            let panicked = |_| Err(io::Error::other("the probe panicked"));
            let found = match probe.and_then(|probe| probe.join().unwrap_or_else(panicked)) {
                Ok((owner, names)) => match first_chat_model(&names) {
                    Some(model) => {
                        end.iter().for_each(Cancel::cancel);
                        return Ok(Found { port, model: model.clone(), owner });
                    }
                    None => FoundThere::NoModel,
                },
                Err(error) => FoundThere::Failure(error),
            };
            tried.push(TriedPort { port, program, found });
        }
        Err(tried)
    })
}

/// Returns the owner and the names of the models of the server to which `connection` leads, at a
/// port of this machine. A server that may not be used is asked nothing.
fn models_at(
    mut connection: ClientConnection<'_>,
    port: u16,
    deadline: Instant,
) -> io::Result<(String, Vec<String>)> {
    let owner = owner_of(&connection)?;
    let request = Request {
        method: "GET",
        authority: format!("127.0.0.1:{port}"),
        target: "/v1/models",
        bearer: None,
        accept: "application/json",
        body: [""; 3],
    };
    let left = || deadline.saturating_duration_since(Instant::now());
    connection.send(&request, left())?;
    let head = connection.head(left())?;
    let mut body = Vec::new();
    connection.read_body(&mut body, limits::MODEL_LIST_BYTES_MAX, left)?;
    let names = if head.status == 200 { model_names(&body) } else { None };
    let none = || io::Error::other(format!("no model server (it answered {})", head.status));
    Ok((owner, names.ok_or_else(none)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UrlConfig;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    const LIMIT: Duration = Duration::from_secs(1);

    fn set(change: impl FnOnce(&mut ModelSettings)) -> ModelSettings {
        let mut settings = ModelSettings::default();
        change(&mut settings);
        settings
    }

    fn resolve_by(
        settings: &ModelSettings,
        ports: &[(u16, &'static str)],
    ) -> Result<Endpoint, EndpointError> {
        resolve_among(&ModelChoice::default(), settings, ports, LIMIT)
    }

    /// Starts a server that answers one request. Gives its port, and a thread that returns the
    /// request.
    fn server(answer: String) -> (u16, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = String::new();
            while !request.ends_with("\r\n\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte).unwrap();
                request.push(byte[0].into());
            }
            socket.write_all(answer.as_bytes()).unwrap();
            request
        };
        (port, thread::Builder::new().spawn(serve).unwrap())
    }

    fn listing(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn the_first_endpoint_that_is_set_is_used_and_named() {
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
            ..ModelSettings::default()
        };
        let found = |settings: &ModelSettings| resolve_by(settings, &[]);
        let choice = ModelChoice { url: Some("flag:9"), model: Some("n"), max_tokens: Some(7) };
        let endpoint = resolve_among(&choice, &settings, &[], LIMIT).unwrap();
        assert_eq!(
            (endpoint.url.as_str(), endpoint.source.as_str()),
            ("http://flag:9/v1", "--model-url")
        );
        assert_eq!((endpoint.model.as_deref(), endpoint.max_tokens), (Some("n"), Some(7)));
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
    fn a_setting_that_cannot_be_used_is_an_error() {
        let settings = set(|settings| {
            settings.url_variable = Some("https://me:s3cret@api.example.com/v1".into());
            settings.openai_url = Some("http://127.0.0.1:1".into());
        });
        let fault = Fault::from(resolve_by(&settings, &[]).err().unwrap());
        assert_eq!(fault.code, "model-config");
        let begin = "cannot use OPTA_MODEL_URL: it has a user name";
        assert!(fault.message.starts_with(begin), "{}", fault.message);
        assert!(!fault.message.contains("s3cret"));
    }

    #[test]
    fn only_a_secure_server_has_a_proxy_and_one_on_this_machine_none_of_a_variable() {
        let proxies = |url: &str, config: Option<&str>| {
            let settings = set(|settings| {
                settings.url_variable = Some(url.to_owned());
                settings.proxy_variable = Some("http://variable:1".to_owned());
                settings.proxy = config.map(str::to_owned);
                settings.ca_file = Some("/ca".to_owned());
            });
            let endpoint = resolve_by(&settings, &[]).unwrap();
            assert_eq!(endpoint.ca_file.is_some(), url.starts_with("https:"));
            endpoint.proxy.map(|proxy| proxy.0)
        };
        let (variable, file) = (Some("http://variable:1".to_owned()), Some("http://file:2"));
        assert_eq!(proxies("https://api.example.com", None), variable);
        assert_eq!(proxies("https://api.example.com", file).as_deref(), file);
        for url in ["https://localhost", "https://127.0.0.2:8443", "https://[::1]"] {
            assert_eq!(proxies(url, None), None, "{url}");
            assert_eq!(proxies(url, file).as_deref(), file, "{url}");
        }
        assert_eq!(proxies("http://api.example.com", file), None);
    }

    #[test]
    fn the_first_model_server_is_found_and_gets_no_key() {
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
        let owner = crate::sys::name_of_user(crate::sys::effective_user()).unwrap();
        assert_eq!(endpoint.source, format!("found on port {good}, run by {owner}"));
        assert_eq!(endpoint.model.as_deref(), Some("qwen"));
        assert!(endpoint.key.is_none());
        for thread in [web_thread, empty_thread, good_thread] {
            let request = thread.join().unwrap();
            assert!(request.starts_with("GET /v1/models HTTP/1.1\r\n"), "{request}");
            assert!(!request.contains("s3cret"), "{request}");
        }
    }

    #[test]
    fn a_silent_port_after_the_first_model_server_delays_nothing() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let (good, good_thread) = server(listing(r#"{"data":[{"id":"qwen"}]}"#));
        let ports = [(good, "good"), (silent.local_addr().unwrap().port(), "silent")];
        let begun = Instant::now();
        let found = find(&ports, LIMIT * 60).unwrap();
        assert_eq!((found.port, found.model.as_str()), (good, "qwen"));
        assert!(begun.elapsed() < LIMIT * 30);
        good_thread.join().unwrap();
    }

    #[test]
    fn the_error_names_each_port_that_was_tried() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent_port = silent.local_addr().unwrap().port();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (lost, lost_thread) =
            server("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into());
        let ports = [(silent_port, "a"), (closed, "b"), (lost, "c")];
        // So long that the last one answers on a busy machine, too.
        let limit = LIMIT * 5;
        let begun = Instant::now();
        let settings = ModelSettings::default();
        let error = resolve_among(&ModelChoice::default(), &settings, &ports, limit).err();
        assert!(begun.elapsed() >= limit);
        lost_thread.join().unwrap();
        let error = error.unwrap();
        let fault = Fault::from(error);
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
    fn the_error_reports_a_server_without_a_model_and_a_key_without_a_server() {
        let (empty, empty_thread) = server(listing(r#"{"object":"list","data":[]}"#));
        let settings = set(|settings| settings.openai_key = Some("s3cret".into()));
        let error = resolve_by(&settings, &[(empty, "empty")]).err();
        empty_thread.join().unwrap();
        let error = error.unwrap();
        let message = Fault::from(error).message;
        assert!(message.contains("no model loaded; a key is set, but not the server"), "{message}");
        assert!(message.contains("; start one") && !message.contains("s3cret"), "{message}");
    }
}
