//! A model server whose answers the test gives one by one: as much of OpenAI's chat completions as
//! a turn needs.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::{DEADLINE, Daemon, Home, STARTED};

const ONE_MODEL: &str = r#"[{"id":"scripted","object":"model"}]"#;

/// The server. It ends with the test.
pub struct Model {
    address: SocketAddr,
    questions: Receiver<Question>,
}

impl Home {
    /// Starts a daemon with a model.
    pub fn start_with(&self, model: &Model) -> Daemon {
        let start = self.opta("daemon start").env("OPTA_MODEL_URL", model.url());
        let seen = start.stdout(STARTED).run();
        Daemon { pid: seen.pid(), port: seen.port() }
    }
}

/// A request to the model that is not answered yet.
pub struct Question {
    /// The head of the request, with the empty line.
    pub head: String,
    /// The body of the request.
    pub body: String,
    stream: TcpStream,
}

impl Model {
    pub fn new() -> Model {
        Model::at(Ipv4Addr::LOCALHOST.into())
    }

    /// Creates a server that listens at this address.
    pub fn at(address: IpAddr) -> Model {
        Model::with(address, &[], ONE_MODEL)
    }

    /// Creates a server that lists these models: a JSON array.
    pub fn listing(models: &'static str) -> Model {
        Model::with(Ipv4Addr::LOCALHOST.into(), &[], models)
    }

    /// Creates a server that answers the first requests with these responses.
    pub fn refusing(responses: &[&str]) -> Model {
        Model::with(Ipv4Addr::LOCALHOST.into(), responses, ONE_MODEL)
    }

    fn with(address: IpAddr, responses: &[&str], models: &'static str) -> Model {
        let responses: VecDeque<String> = responses.iter().copied().map(String::from).collect();
        let responses = Arc::new(Mutex::new(responses));
        let listener = TcpListener::bind((address, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, questions) = channel();
        let accepting = move || {
            for stream in listener.incoming() {
                let (sender, responses) = (sender.clone(), Arc::clone(&responses));
                let serving = move || serve(stream.unwrap(), models, &responses, &sender);
                drop(thread::Builder::new().name("model".into()).spawn(serving).unwrap());
            }
        };
        drop(thread::Builder::new().name("model server".into()).spawn(accepting).unwrap());
        Model { address, questions }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits for the next request.
    #[track_caller]
    pub fn question(&self) -> Question {
        self.questions.recv_timeout(DEADLINE).expect("the model gets no request")
    }

    /// Waits for the next request, whose last message must be this one, in the form of a JSON
    /// string.
    #[track_caller]
    pub fn gets(&self, message: &str) -> Question {
        let question = self.question();
        let sent = format!(r#""role":"user","content":"{message}"}}"#);
        assert!(question.body.contains(&sent), "not {sent}: {}", question.body);
        question
    }

    /// Answers each request from now on: with this tool call, and with text after its result.
    pub fn answer_all(self, name: &'static str, arguments: &'static str) {
        let answering = move || {
            for question in self.questions {
                if question.body.contains(r#""role":"tool""#) {
                    question.answer("done");
                } else {
                    question.call(name, arguments);
                }
            }
        };
        drop(thread::Builder::new().name("model answers".into()).spawn(answering).unwrap());
    }

    /// Asserts that there is no further request.
    #[track_caller]
    pub fn assert_not_asked(&self) {
        let next = self.questions.try_recv();
        assert!(matches!(next, Err(TryRecvError::Empty)), "the model got another request or ended");
    }
}

fn serve(
    mut stream: TcpStream,
    models: &str,
    responses: &Mutex<VecDeque<String>>,
    questions: &Sender<Question>,
) {
    let Some((head, body)) = request(&mut stream) else { return };
    let json = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
    if head.starts_with("GET ") {
        let models = format!(r#"{{"object":"list","data":{models}}}"#);
        let length = models.len();
        drop(write!(stream, "{json}Content-Length: {length}\r\n\r\n{models}"));
        return;
    }
    if let Some(response) = responses.lock().unwrap().pop_front() {
        stream.write_all(response.as_bytes()).unwrap();
        return;
    }
    let events = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
    stream.write_all(events.as_bytes()).unwrap();
    // The test may have ended.
    drop(questions.send(Question { head, body, stream }));
}

fn request(stream: &mut TcpStream) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 64 * 1024];
    let mut end = None;
    loop {
        if end.is_none()
            && let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n")
        {
            let head = String::from_utf8_lossy(&bytes[..at + 4]).into_owned();
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            let length = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length: usize = length.map_or(0, |(_, length)| length.parse().unwrap());
            end = Some((head, at + 4, length));
        }
        if let Some((head, start, length)) = &end
            && bytes.len() >= start + length
        {
            let body = String::from_utf8_lossy(&bytes[*start..]).into_owned();
            return Some((head.clone(), body));
        }
        match stream.read(&mut chunk) {
            Ok(count) if count > 0 => bytes.extend(&chunk[..count]),
            _ => return None,
        }
    }
}

impl Question {
    /// Sends a piece of the answer, escaped as in a JSON string.
    pub fn say(&mut self, text: &str) {
        self.send(&format!(r#"{{"delta":{{"content":"{text}"}}}}"#));
    }

    /// Answers with a tool call. The arguments are JSON, escaped as in a JSON string.
    pub fn call(mut self, name: &str, arguments: &str) {
        let function = format!(r#"{{"name":"{name}","arguments":"{arguments}"}}"#);
        let call =
            format!(r#"{{"index":0,"id":"call_1","type":"function","function":{function}}}"#);
        self.send(&format!(r#"{{"delta":{{"tool_calls":[{call}]}}}}"#));
        self.finish("tool_calls");
    }

    /// Ends the answer.
    pub fn end(mut self) {
        self.finish("stop");
    }

    /// Ends the answer with the numbers of tokens of the request and the answer.
    pub fn end_with_usage(mut self, prompt: u64, completion: u64) {
        self.send(r#"{"delta":{},"finish_reason":"stop"}"#);
        let usage = format!(r#"{{"prompt_tokens":{prompt},"completion_tokens":{completion}}}"#);
        let chunk = format!(r#"{{"id":"c","choices":[],"usage":{usage}}}"#);
        self.stream.write_all(format!("data: {chunk}\n\ndata: [DONE]\n\n").as_bytes()).unwrap();
    }

    /// Ends the answer with another finish reason.
    pub fn end_because(mut self, reason: &str) {
        self.finish(reason);
    }

    /// Sends the whole answer.
    pub fn answer(mut self, text: &str) {
        self.say(text);
        self.end();
    }

    /// Waits until the client closes the connection.
    #[track_caller]
    pub fn assert_dropped(mut self) {
        self.stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let read = self.stream.read(&mut [0]);
        assert!(
            matches!(read, Ok(0))
                || read.is_err_and(|error| { error.kind() == std::io::ErrorKind::ConnectionReset })
        );
    }

    fn finish(&mut self, reason: &str) {
        self.send(&format!(r#"{{"delta":{{}},"finish_reason":"{reason}"}}"#));
        self.stream.write_all(b"data: [DONE]\n\n").unwrap();
    }

    /// Sends a choice of a chunk.
    pub fn send(&mut self, choice: &str) {
        let chunk = format!(
            r#"{{"id":"c","object":"chat.completion.chunk","model":"scripted","choices":[{choice}]}}"#
        );
        self.stream.write_all(format!("data: {chunk}\n\n").as_bytes()).unwrap();
    }
}
