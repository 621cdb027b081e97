//! The client against scripted servers: what goes over the wire, and what becomes of it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::*;
use crate::protocol::Key;

mod patience;

/// What a scripted server does with one connection.
enum Step {
    /// Sends, byte for byte.
    Send(&'static str),
    /// Waits until the test says so.
    Await(mpsc::Receiver<()>),
    /// Says that it has come so far.
    Tell(mpsc::Sender<()>),
    /// Waits until the client has gone, and says so.
    SeeOff(mpsc::Sender<Instant>),
}

/// A server that treats each connection as its script says, and then closes it.
struct Scripted {
    endpoint: Endpoint,
    serving: JoinHandle<Vec<String>>,
}

const SSE: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n\
    data: {\"choices\":[{\"delta\":{\"content\":\"hello\"}}]}\n\ndata: [DONE]\n\n";
const LIST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 41\r\n\r\n\
    {\"data\":[{\"id\":\"bge-m3\"},{\"id\":\"qwen\"}] }";
/// Far less than any wait that could be meant, far more than a busy machine needs.
const AT_ONCE: Duration = Duration::from_secs(5);
const QUICK: Patience = Patience {
    first: Duration::from_millis(1500),
    idle: Duration::from_millis(100),
    tail: Duration::from_millis(50),
    ..OF_A_TURN
};

impl Scripted {
    fn new(script: Vec<Vec<Step>>) -> Scripted {
        // What is remembered of a server must not be found by another one at the same port.
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let url = format!("http://{}/{number}", listener.local_addr().unwrap());
        let serve = move || script.into_iter().map(|steps| play(&listener, steps)).collect();
        Scripted {
            endpoint: Endpoint {
                url,
                source: "OPTA_MODEL_URL".to_owned(),
                key: Some(Key("s3cret".to_owned())),
                model: Some("m".to_owned()),
                tool_choice: None,
            },
            serving: Builder::new().spawn(serve).unwrap(),
        }
    }

    /// One connection for each text.
    fn sending(texts: &[&'static str]) -> Scripted {
        Scripted::new(texts.iter().map(|text| vec![Step::Send(text)]).collect())
    }

    /// What it was asked.
    fn requests(self) -> Vec<String> {
        self.serving.join().unwrap()
    }

    fn ask(&self, patience: Patience) -> (String, Result<Answer, Fault>) {
        ask_at(&self.endpoint, patience, &Cancel::new().unwrap())
    }
}

fn play(listener: &TcpListener, steps: Vec<Step>) -> String {
    let (mut socket, _) = listener.accept().unwrap();
    let asked = request(&mut socket);
    for step in steps {
        match step {
            // A client that has enough may have gone.
            Step::Send(text) => drop(socket.write_all(text.as_bytes())),
            Step::Await(word) => word.recv().unwrap(),
            Step::Tell(arrived) => arrived.send(()).unwrap(),
            Step::SeeOff(gone) => {
                let mut rest = Vec::new();
                drop(socket.read_to_end(&mut rest));
                gone.send(Instant::now()).unwrap();
            }
        }
    }
    asked
}

/// A request with its body.
fn request(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes.clone()).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    socket.read_exact(&mut body).unwrap();
    head + std::str::from_utf8(&body).unwrap()
}

fn ask_at(
    endpoint: &Endpoint,
    patience: Patience,
    cancel: &Cancel,
) -> (String, Result<Answer, Fault>) {
    let mut heard = String::new();
    let answer = ask_hearing(endpoint, patience, cancel, &mut |text| heard.push_str(text));
    (heard, answer)
}

fn ask_hearing(
    endpoint: &Endpoint,
    patience: Patience,
    cancel: &Cancel,
    hear: &mut dyn FnMut(&str),
) -> Result<Answer, Fault> {
    let ask = Ask {
        endpoint,
        messages: "[{\"role\":\"user\",\"content\":\"hi\"}]",
        tools: "[{\"type\":\"function\"}]",
        tool_choice: "auto",
        max_tokens: Some(9),
    };
    ask_patiently(&ask, patience, cancel, &mut |piece| {
        if let Piece::Text(text) = piece {
            hear(text);
        }
        Ok(())
    })
}

/// The fault of an answer that must be none. Whatever it says, it does not say the key.
fn fault(answer: Result<Answer, Fault>) -> Fault {
    let fault = answer.err().expect("a fault");
    assert!(!fault.message.contains("s3cret"), "{}", fault.message);
    fault
}

#[test]
fn a_question_is_one_request_and_its_answer_arrives_as_it_is_sent() {
    let (go_on, word) = mpsc::channel();
    let server = Scripted::new(vec![vec![
        Step::Send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        Step::Send(
            "36\r\ndata: {\"choices\":[{\"delta\":{\"content\":\" \\t\u{fc}\"}}]}\n\ndat\r\n",
        ),
        Step::Await(word),
        Step::Send("30\r\na: {\"choices\":[{\"delta\":{\"content\":\"\\n \"}}]}\n\nda\r\n"),
        Step::Send("f\r\nta: [DONE]\n\nxxx\r\n"),
    ]]);
    let mut heard = Vec::new();
    let cancel = Cancel::new().unwrap();
    let answer = ask_hearing(&server.endpoint, OF_A_TURN, &cancel, &mut |text| {
        if heard.is_empty() {
            // The rest is sent only now that this has arrived.
            go_on.send(()).unwrap();
        }
        heard.push(text.to_owned());
    });
    assert_eq!(answer.unwrap().text, " \t\u{fc}\n ");
    assert_eq!(heard, [" \t\u{fc}", "\n "]);
    let path = server.endpoint.url.rsplit('/').next().unwrap().to_owned();
    let requests = server.requests();
    let asked = requests.first().unwrap();
    assert!(asked.starts_with(&format!("POST /{path}/chat/completions HTTP/1.1\r\n")), "{asked}");
    assert!(asked.contains("\r\nAuthorization: Bearer s3cret\r\n"), "{asked}");
    assert!(asked.contains("\r\nConnection: close\r\n"), "{asked}");
    assert!(asked.ends_with(
        "\r\n\r\n{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\
         \"tools\":[{\"type\":\"function\"}],\"tool_choice\":\"auto\",\"max_tokens\":9,\
         \"temperature\":0.2,\"stream\":true,\"stream_options\":{\"include_usage\":true}}"
    ));
}

#[test]
fn nobody_waits_for_a_server_that_holds_the_line_after_the_end() {
    let (gone, seen) = mpsc::channel();
    let finished = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    let server = Scripted::new(vec![
        vec![Step::Send(HELLO), Step::SeeOff(gone.clone())],
        vec![Step::Send(SSE), Step::Send(finished), Step::SeeOff(gone)],
    ]);
    let begun = Instant::now();
    assert_eq!(server.ask(OF_A_TURN).1.unwrap().text, "hello");
    seen.recv().unwrap();
    assert_eq!(server.ask(OF_A_TURN).1.unwrap().finish, Finish::Stop);
    seen.recv().unwrap();
    assert!(begun.elapsed() < limits::MODEL_TAIL_MAX * 2 + AT_ONCE);
    server.requests();
}

#[test]
fn a_server_that_goes_away_in_the_middle_leaves_what_it_said() {
    let begun = "data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\n";
    let call = "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"a\",\
        \"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]}}]}\n\n";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n37\r\ndata: {\"choices\"";
    let server = Scripted::new(vec![
        vec![Step::Send(SSE), Step::Send(begun), Step::Send(call)],
        vec![Step::Send(chunked)],
    ]);
    let (heard, answer) = server.ask(OF_A_TURN);
    let fault_of_half = fault(answer);
    assert_eq!((heard.as_str(), fault_of_half.code), ("half", "model-disconnected"));
    assert!(fault_of_half.message.contains(&server.endpoint.url), "{}", fault_of_half.message);
    assert!(fault_of_half.message.contains("(from OPTA_MODEL_URL)"));
    assert_eq!(fault(server.ask(OF_A_TURN).1).code, "model-disconnected");
    server.requests();
}

#[test]
fn an_error_within_a_stream_is_one() {
    let server = Scripted::sending(&["HTTP/1.1 200 OK\r\n\r\n\
        data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n\n\
        data: {\"error\":{\"code\":500,\"message\":\"s3cret\\u001b[31m\\nis no format\",\"type\":\"server_error\"}}\n\n"]);
    let fault = fault(server.ask(OF_A_TURN).1);
    assert_eq!(fault.code, "model-error");
    assert!(
        fault.message.ends_with("says: …\\u{1b}[31m is no format (server_error)"),
        "{}",
        fault.message
    );
    server.requests();
}

#[test]
fn a_model_whose_words_its_own_server_cannot_read_is_told_apart() {
    for answer in [
        "HTTP/1.1 200 OK\r\n\r\ndata: {\"error\":{\"code\":500,\"message\":\"The model produced \
         output that does not match the expected peg-native format\",\"type\":\"server_error\"}}\n\n",
        "HTTP/1.1 500 Oops\r\n\r\n{\"error\":{\"message\":\"error parsing tool call: raw='{'\"}}",
    ] {
        let server = Scripted::sending(&[answer]);
        assert_eq!(fault(server.ask(OF_A_TURN).1).code, "model-malformed", "{answer}");
        server.requests();
    }
}

#[test]
fn a_context_that_is_too_short_is_told_in_whatever_way_the_server_says_so() {
    const OK: &str = "HTTP/1.1 200 OK\r\n\r\n";
    const WORD: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\n";
    const ERROR: &str = "data: {\"error\":{\"message\":\"its context length is only 4096\"}}\n\n";
    for (answer, code) in [
        (&["HTTP/1.1 500 Oops\r\n\r\nthe context size is exceeded"][..], "context-too-long"),
        (&[OK, ERROR], "context-too-long"),
        // What has been heard must not be asked for again.
        (&[OK, WORD, ERROR], "model-error"),
        // A word of the question that comes back says nothing.
        (&["HTTP/1.1 400 Bad\r\n\r\n{\"error\":\"no 'in this context'\"}"], "model-error"),
    ] {
        let server = Scripted::new(vec![answer.iter().map(|text| Step::Send(text)).collect()]);
        assert_eq!(fault(server.ask(OF_A_TURN).1).code, code, "{answer:?}");
        server.requests();
    }
}

#[test]
fn refusals_are_told_apart() {
    let cases = [
        (
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 49\r\n\r\n\
             {\"error\":{\"message\":\"Incorrect API key: s3cret\"}}",
            "model-unauthorized",
            "refuses the key that is set: Incorrect API key: …",
        ),
        (
            "HTTP/1.1 422 Bad\r\n\r\n{\"detail\":[{\"msg\":\"x\"}]}",
            "model-error",
            "422: [{\"msg\":\"x\"}]",
        ),
        (
            "HTTP/1.1 404 No\r\n\r\n<h1>No\n such\tpage</h1>",
            "model-error",
            "404: <h1>No such page</h1>",
        ),
        ("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "model-error", "answered 500"),
        ("HTTP/1.1 301 Moved\r\nLocation: http://x/\r\n\r\n", "model-config", "to http://x/"),
        (
            "HTTP/1.1 200 OK\r\n\r\n<!DOCTYPE html><p>Hi",
            "model-error",
            "does: <!DOCTYPE html><p>Hi",
        ),
        (
            "HTTP/1.1 200 OK\r\n\r\n{\"error\":\"Unexpected endpoint\"}",
            "model-error",
            "Unexpected endpoint",
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n", "model-error", "does not speak HTTP"),
    ];
    for (answer, code, said) in cases {
        let server = Scripted::sending(&[answer]);
        let fault = fault(server.ask(OF_A_TURN).1);
        assert_eq!(fault.code, code, "{answer}");
        assert!(fault.message.contains(said), "{}", fault.message);
        server.requests();
    }
    let mut server = Scripted::sending(&["HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"]);
    server.endpoint.key = None;
    let fault = fault(server.ask(OF_A_TURN).1);
    assert!(fault.message.contains("wants a key, and none is set (OPTA_API_KEY)"));
    assert!(!server.requests().concat().contains("Authorization"));
}

#[test]
fn a_whole_completion_is_an_answer_too() {
    let server = Scripted::sending(&["HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
        Content-Length: 84\r\n\r\n\
        {\"choices\":[{\"message\":{\"content\":\"hello\",\"tool_calls\":[]},\"finish_reason\":\"stop\"}]}"]);
    let (heard, answer) = server.ask(OF_A_TURN);
    assert_eq!((heard.as_str(), answer.unwrap().text.as_str()), ("hello", "hello"));
    server.requests();
}

#[test]
fn a_fault_of_the_listener_ends_the_answer() {
    let server = Scripted::sending(&[HELLO]);
    let ask = Ask {
        endpoint: &server.endpoint,
        messages: "[]",
        tools: "[]",
        tool_choice: "auto",
        max_tokens: None,
    };
    let full = Fault { code: "storage", message: "the disk is full".to_owned() };
    let answer = super::ask(&ask, &Cancel::new().unwrap(), &mut |_| Err(full.clone()));
    assert_eq!(fault(answer), full);
    server.requests();
}

#[test]
fn a_field_that_a_server_refuses_is_left_out_and_stays_so() {
    const NO_OPTIONS: &str =
        "HTTP/1.1 400 Bad\r\n\r\n{\"error\":\"Unknown field: stream_options\"}";
    const NO_CHOICE: &str = "HTTP/1.1 400 Bad\r\n\r\n{\"error\":{\"message\":\"no tool_choice\"}}";
    let server = Scripted::sending(&[NO_OPTIONS, NO_CHOICE, HELLO, HELLO]);
    assert_eq!(server.ask(OF_A_TURN).1.unwrap().text, "hello");
    assert_eq!(server.ask(OF_A_TURN).1.unwrap().text, "hello");
    let sent = server.requests();
    let has = |text: &str| sent.iter().map(|sent| sent.contains(text)).collect::<Vec<_>>();
    assert_eq!(has("stream_options"), [true, false, false, false]);
    assert_eq!(has("tool_choice"), [true, true, false, false]);
    assert_eq!(has("temperature"), [true; 4]);
    // The same complaint again is the end of it, and nothing is learned from a failure.
    let server = Scripted::sending(&[NO_OPTIONS, NO_OPTIONS, HELLO]);
    assert_eq!(fault(server.ask(OF_A_TURN).1).code, "model-error");
    assert_eq!(server.ask(OF_A_TURN).1.unwrap().text, "hello");
    assert!(server.requests().last().unwrap().contains("stream_options"));
}

#[test]
fn a_limit_that_leaves_no_room_for_the_question_is_left_out_for_this_one() {
    const NO_ROOM: &str = "HTTP/1.1 400 Bad\r\n\r\n{\"error\":{\"message\":\"maximum context \
        length is 4096, you requested 4100 (4 in the messages, 4096 in the completion)\"}}";
    const TOO_LONG: &str = "HTTP/1.1 400 Bad\r\n\r\n{\"error\":{\"message\":\"too long\",\
        \"type\":\"exceed_context_size_error\"}}";
    let server = Scripted::sending(&[NO_ROOM, HELLO, HELLO]);
    assert_eq!(server.ask(OF_A_TURN).1.unwrap().text, "hello");
    assert_eq!(server.ask(OF_A_TURN).1.unwrap().text, "hello");
    let sent = server.requests();
    let limited: Vec<bool> = sent.iter().map(|sent| sent.contains("max_tokens")).collect();
    assert_eq!(limited, [true, false, true]);
    // If there is still no room, it is the question that is too long.
    let server = Scripted::sending(&[NO_ROOM, NO_ROOM]);
    assert_eq!(fault(server.ask(OF_A_TURN).1).code, "context-too-long");
    server.requests();
    // Some say so at once.
    let server = Scripted::sending(&[TOO_LONG]);
    let too_long = fault(server.ask(OF_A_TURN).1);
    assert_eq!(too_long.code, "context-too-long");
    let said = "answered 400: too long (exceed_context_size_error)";
    assert!(too_long.message.contains(said), "{}", too_long.message);
    server.requests();
}

#[test]
fn without_a_name_the_first_model_that_chats_is_asked_and_remembered() {
    let mut server = Scripted::sending(&[LIST, HELLO, HELLO]);
    server.endpoint.model = None;
    assert!(server.ask(OF_A_TURN).1.is_ok());
    assert!(server.ask(OF_A_TURN).1.is_ok());
    let sent = server.requests();
    assert!(sent.first().unwrap().contains("/models HTTP/1.1"), "{sent:?}");
    assert!(sent.iter().skip(1).all(|sent| sent.contains("{\"model\":\"qwen\",")), "{sent:?}");
    // A server that does not tell its models is left to choose.
    let mut server = Scripted::sending(&["HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", HELLO]);
    server.endpoint.model = None;
    assert!(server.ask(OF_A_TURN).1.is_ok());
    assert!(!server.requests().concat().contains("\"model\""));
    let mut server =
        Scripted::sending(&["HTTP/1.1 200 OK\r\n\r\n{\"data\":[{\"id\":\"bge-m3\"}]}"]);
    server.endpoint.model = None;
    let none = fault(server.ask(OF_A_TURN).1);
    assert!(none.message.contains("has no model that chats"), "{}", none.message);
    server.requests();
}

#[test]
fn a_server_tells_its_models_in_time_or_not_at_all() {
    let limit = Duration::from_millis(200);
    let server = Scripted::sending(&[LIST]);
    let names = models(&server.endpoint, AT_ONCE).unwrap();
    assert_eq!(names.unwrap(), ["bge-m3", "qwen"]);
    server.requests();
    let (gone, seen) = mpsc::channel();
    let server = Scripted::new(vec![vec![Step::SeeOff(gone)]]);
    let asked = Instant::now();
    let late = models(&server.endpoint, limit).unwrap_err();
    assert_eq!(late.code, "model-timeout");
    assert!(asked.elapsed() < AT_ONCE);
    seen.recv().unwrap();
    server.requests();
}

#[test]
fn what_cannot_be_reached_or_used_is_named_with_its_setting() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut endpoint = Endpoint {
        url: format!("http://localhost:{port}"),
        source: "OPENAI_BASE_URL".to_owned(),
        key: Some(Key("s3cret\r\nX: y".to_owned())),
        model: None,
        tool_choice: None,
    };
    let cancel = Cancel::new().unwrap();
    let unreachable = fault(ask_at(&endpoint, OF_A_TURN, &cancel).1);
    assert_eq!(unreachable.code, "model-unreachable");
    assert_eq!(
        unreachable.message,
        format!(
            "cannot reach the model server at http://localhost:{port}/v1 (from OPENAI_BASE_URL): \
             Connection refused"
        )
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    endpoint.url = format!("http://{}", listener.local_addr().unwrap());
    let odd = fault(ask_at(&endpoint, OF_A_TURN, &cancel).1);
    assert_eq!(odd.code, "model-config");
    assert!(odd.message.contains("characters that no header can hold"), "{}", odd.message);
    endpoint.url = "https://api.example.com/v1?key=s3cret".to_owned();
    let tls = fault(ask_at(&endpoint, OF_A_TURN, &cancel).1);
    assert_eq!(tls.code, "model-config");
    assert!(tls.message.starts_with("cannot use OPENAI_BASE_URL: https://"), "{}", tls.message);
}
