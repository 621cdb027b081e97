//! The client against scripted servers: what it sends, and what it makes of the responses.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::*;
use crate::protocol::Key;

mod timeouts;

/// What a scripted server does with one connection.
enum Step {
    /// Sends these bytes.
    Send(&'static str),
    /// Waits for a message of the test.
    Await(mpsc::Receiver<()>),
    /// Reports that the script has come this far.
    Report(mpsc::Sender<()>),
    /// Waits until the client has closed the connection, and reports when.
    AwaitClose(mpsc::Sender<Instant>),
}

/// A server that handles each connection by its script, and then closes it.
struct Scripted {
    endpoint: Endpoint,
    memory: ServerMemory,
    serving: JoinHandle<Vec<String>>,
}

const SSE: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n\
    data: {\"choices\":[{\"delta\":{\"content\":\"hello\"}}]}\n\ndata: [DONE]\n\n";
const LIST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 41\r\n\r\n\
    {\"data\":[{\"id\":\"bge-m3\"},{\"id\":\"qwen\"}] }";
/// Far less than any timeout that a test would wait for, far more than a busy machine needs.
const AT_ONCE: Duration = Duration::from_secs(5);
/// Without retries after failures.
const NO_RETRIES: Timeouts = Timeouts { retrying: Duration::ZERO, ..Timeouts::TURN };
const SHORT: Timeouts = Timeouts {
    first: Duration::from_millis(1500),
    idle: Duration::from_millis(100),
    tail: Duration::from_millis(50),
    ..Timeouts::TURN
};

impl Scripted {
    fn new(script: Vec<Vec<Step>>) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/path", listener.local_addr().unwrap());
        let serve = move || script.into_iter().map(|steps| play(&listener, steps)).collect();
        Scripted {
            endpoint: Endpoint {
                url,
                source: "OPTA_MODEL_URL".to_owned(),
                key: Some(Key("s3cret".to_owned())),
                model: Some("m".to_owned()),
                ..Endpoint::default()
            },
            memory: ServerMemory::default(),
            serving: Builder::new().spawn(serve).unwrap(),
        }
    }

    /// Sends each text on a connection of its own.
    fn sending(texts: &[&'static str]) -> Scripted {
        Scripted::new(texts.iter().map(|text| vec![Step::Send(text)]).collect())
    }

    /// As `sending`, for a model with a limit of its answers.
    fn limited(texts: &[&'static str]) -> Scripted {
        let mut server = Scripted::sending(texts);
        server.endpoint.max_tokens = Some(4096);
        server
    }

    /// Returns the requests that it received.
    fn requests(self) -> Vec<String> {
        self.serving.join().unwrap()
    }

    fn ask(&self, timeouts: Timeouts) -> (String, Result<Completion, Fault>) {
        let mut text = String::new();
        let cancel = Cancel::new().unwrap();
        let completion = self.ask_with(timeouts, &cancel, &mut |delta| text.push_str(delta));
        (text, completion)
    }

    /// Asks, and gives each delta of the text to `on_text`.
    fn ask_with(
        &self,
        timeouts: Timeouts,
        cancel: &Cancel,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Completion, Fault> {
        ask(&self.endpoint, &self.memory, timeouts, cancel, on_text)
    }
}

fn play(listener: &TcpListener, steps: Vec<Step>) -> String {
    let (mut socket, _) = listener.accept().unwrap();
    let request_text = request(&mut socket);
    for step in steps {
        match step {
            // A client that needs no more may have closed the connection.
            Step::Send(text) => drop(socket.write_all(text.as_bytes())),
            Step::Await(message) => message.recv().unwrap(),
            Step::Report(reached) => reached.send(()).unwrap(),
            Step::AwaitClose(closed) => {
                let mut rest = Vec::new();
                drop(socket.read_to_end(&mut rest));
                closed.send(Instant::now()).unwrap();
            }
        }
    }
    request_text
}

/// Reads a request with its body.
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

fn ask(
    endpoint: &Endpoint,
    memory: &ServerMemory,
    timeouts: Timeouts,
    cancel: &Cancel,
    on_text: &mut dyn FnMut(&str),
) -> Result<Completion, Fault> {
    complete(endpoint, memory, timeouts, cancel, &mut |delta| {
        if delta.kind == DeltaKind::Text {
            on_text(&delta.text);
        }
        Ok(())
    })
}

fn complete(
    endpoint: &Endpoint,
    memory: &ServerMemory,
    timeouts: Timeouts,
    cancel: &Cancel,
    on_delta: &mut OnDelta<'_>,
) -> Result<Completion, Fault> {
    let request = ChatRequest {
        endpoint,
        messages: "[{\"role\":\"user\",\"content\":\"hi\"}]",
        tools: "[{\"type\":\"function\"}]",
        tool_choice: "auto",
        deadline: None,
    };
    ServedModel(timeouts).complete(&request, memory, cancel, on_delta)
}

/// Asks a server of which nothing is known.
fn ask_at(endpoint: &Endpoint) -> Result<Completion, Fault> {
    let (memory, cancel) = (ServerMemory::default(), Cancel::new().unwrap());
    ask(endpoint, &memory, Timeouts::TURN, &cancel, &mut |_| {})
}

/// Returns the fault of a request that must fail. Whatever it says, it does not contain the key.
fn fault(result: Result<Completion, Fault>) -> Fault {
    let fault = result.err().expect("a fault");
    assert!(!fault.message.contains("s3cret"), "{}", fault.message);
    fault
}

#[test]
fn a_completion_is_one_request_and_arrives_as_it_is_sent() {
    let (go_on, message) = mpsc::channel();
    let server = Scripted::new(vec![vec![
        Step::Send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        Step::Send(
            "36\r\ndata: {\"choices\":[{\"delta\":{\"content\":\" \\t\u{fc}\"}}]}\n\ndat\r\n",
        ),
        Step::Await(message),
        Step::Send("30\r\na: {\"choices\":[{\"delta\":{\"content\":\"\\n \"}}]}\n\nda\r\n"),
        Step::Send("f\r\nta: [DONE]\n\nxxx\r\n"),
    ]]);
    let mut received = Vec::new();
    let cancel = Cancel::new().unwrap();
    let completion = server.ask_with(Timeouts::TURN, &cancel, &mut |text| {
        if received.is_empty() {
            // The server sends the rest only after this has arrived.
            go_on.send(()).unwrap();
        }
        received.push(text.to_owned());
    });
    assert_eq!(completion.unwrap().text, " \t\u{fc}\n ");
    assert_eq!(received, [" \t\u{fc}", "\n "]);
    let requests = server.requests();
    let request_text = requests.first().unwrap();
    assert!(request_text.starts_with("POST /path/chat/completions HTTP/1.1\r\n"), "{request_text}");
    assert!(request_text.contains("\r\nAuthorization: Bearer s3cret\r\n"), "{request_text}");
    assert!(request_text.contains("\r\nConnection: close\r\n"), "{request_text}");
    assert!(request_text.ends_with(
        "\r\n\r\n{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\
         \"tools\":[{\"type\":\"function\"}],\"tool_choice\":\"auto\",\
         \"temperature\":0.2,\"stream\":true,\"stream_options\":{\"include_usage\":true}}"
    ));
}

#[test]
fn a_connection_that_stays_open_after_the_end_is_not_waited_for() {
    let (closed, seen) = mpsc::channel();
    let finished = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    let server = Scripted::new(vec![
        vec![Step::Send(HELLO), Step::AwaitClose(closed.clone())],
        vec![Step::Send(SSE), Step::Send(finished), Step::AwaitClose(closed)],
    ]);
    let begun = Instant::now();
    assert_eq!(server.ask(Timeouts::TURN).1.unwrap().text, "hello");
    seen.recv().unwrap();
    assert_eq!(server.ask(Timeouts::TURN).1.unwrap().finish, FinishReason::Stop);
    seen.recv().unwrap();
    assert!(begun.elapsed() < limits::MODEL_TAIL_MAX * 2 + AT_ONCE);
    server.requests();
}

#[test]
fn text_before_a_lost_connection_is_kept() {
    let begun = "data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\n";
    let call = "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"a\",\
        \"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]}}]}\n\n";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n37\r\ndata: {\"choices\"";
    let server = Scripted::new(vec![
        vec![Step::Send(SSE), Step::Send(begun), Step::Send(call)],
        vec![Step::Send(chunked)],
    ]);
    let (text, answer) = server.ask(NO_RETRIES);
    let fault_of_half = fault(answer);
    assert_eq!((text.as_str(), fault_of_half.code), ("half", "model-disconnected"));
    assert!(fault_of_half.message.contains(&server.endpoint.url), "{}", fault_of_half.message);
    assert!(fault_of_half.message.contains("(from OPTA_MODEL_URL)"));
    assert_eq!(fault(server.ask(NO_RETRIES).1).code, "model-disconnected");
    server.requests();
}

#[test]
fn an_error_within_a_stream_is_a_fault() {
    let server = Scripted::sending(&["HTTP/1.1 200 OK\r\n\r\n\
        data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n\n\
        data: {\"error\":{\"code\":500,\"message\":\"s3cret\\u001b[31m\\nis no format\",\"type\":\"server_error\"}}\n\n"]);
    let fault = fault(server.ask(NO_RETRIES).1);
    assert_eq!(fault.code, "model-error");
    assert!(
        fault.message.ends_with("says: …\\u{1b}[31m is no format (server_error)"),
        "{}",
        fault.message
    );
    server.requests();
}

#[test]
fn output_that_its_own_server_cannot_parse_has_a_code_of_its_own() {
    for answer in [
        "HTTP/1.1 200 OK\r\n\r\ndata: {\"error\":{\"code\":500,\"message\":\"The model produced \
         output that does not match the expected peg-native format\",\"type\":\"server_error\"}}\n\n",
        "HTTP/1.1 500 Oops\r\n\r\n{\"error\":{\"message\":\"error parsing tool call: raw='{'\"}}",
    ] {
        let server = Scripted::sending(&[answer]);
        assert_eq!(fault(server.ask(Timeouts::TURN).1).code, "model-malformed", "{answer}");
        server.requests();
    }
}

#[test]
fn a_request_that_is_too_long_is_recognized_in_every_form_of_the_error() {
    const OK: &str = "HTTP/1.1 200 OK\r\n\r\n";
    const WORD: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\n";
    const ERROR: &str = "data: {\"error\":{\"message\":\"its context length is only 4096\"}}\n\n";
    for (answer, code) in [
        (&["HTTP/1.1 500 Oops\r\n\r\nthe context size is exceeded"][..], "context-too-long"),
        (&[OK, ERROR], "context-too-long"),
        // Text that was passed on must not be requested again.
        (&[OK, WORD, ERROR], "model-error"),
        // A word of the request that is repeated means nothing.
        (&["HTTP/1.1 400 Bad\r\n\r\n{\"error\":\"no 'in this context'\"}"], "refused"),
        // A proxy in front of the server may use no words at all.
        (&["HTTP/1.1 413 Too Large\r\n\r\n<html>"], "context-too-long"),
    ] {
        let server = Scripted::new(vec![answer.iter().map(|text| Step::Send(text)).collect()]);
        assert_eq!(fault(server.ask(NO_RETRIES).1).code, code, "{answer:?}");
        server.requests();
    }
}

#[test]
fn each_failure_has_its_code_and_its_words() {
    let cases = [
        (
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 49\r\n\r\n\
             {\"error\":{\"message\":\"Incorrect API key: s3cret\"}}",
            "model-unauthorized",
            "rejects the key that is set: Incorrect API key: …",
        ),
        (
            "HTTP/1.1 422 Bad\r\n\r\n{\"detail\":[{\"msg\":\"x\"}]}",
            "refused",
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
            "server: <!DOCTYPE html><p>Hi",
        ),
        (
            "HTTP/1.1 200 OK\r\n\r\n{\"error\":\"Unexpected endpoint\"}",
            "model-error",
            "Unexpected endpoint",
        ),
        (
            "HTTP/1.1 429 Slow\r\n\r\n{\"message\":\"Too many tokens, please wait before trying again.\"}",
            "model-busy",
            "is busy (429): Too many tokens",
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n", "model-error", "does not speak HTTP"),
    ];
    for (answer, code, words) in cases {
        let server = Scripted::sending(&[answer]);
        let fault = fault(server.ask(NO_RETRIES).1);
        assert_eq!(fault.code, code, "{answer}");
        assert!(fault.message.contains(words), "{}", fault.message);
        server.requests();
    }
    let mut server = Scripted::sending(&["HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"]);
    server.endpoint.key = None;
    let fault = fault(server.ask(NO_RETRIES).1);
    assert!(fault.message.contains("requires a key, and none is set (OPTA_API_KEY)"));
    assert!(!server.requests().concat().contains("Authorization"));
}

#[test]
fn a_whole_completion_is_accepted() {
    let server = Scripted::sending(&["HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
        Content-Length: 84\r\n\r\n\
        {\"choices\":[{\"message\":{\"content\":\"hello\",\"tool_calls\":[]},\"finish_reason\":\"stop\"}]}"]);
    let (text, answer) = server.ask(Timeouts::TURN);
    assert_eq!((text.as_str(), answer.unwrap().text.as_str()), ("hello", "hello"));
    server.requests();
}

#[test]
fn a_fault_of_the_receiver_ends_the_completion() {
    let server = Scripted::sending(&[HELLO]);
    let request = ChatRequest {
        endpoint: &server.endpoint,
        messages: "[]",
        tools: "[]",
        tool_choice: "auto",
        deadline: None,
    };
    let full = Fault { code: "storage", message: "the disk is full".to_owned() };
    let cancel = Cancel::new().unwrap();
    let answer =
        ServedModel(Timeouts::TURN)
            .complete(&request, &server.memory, &cancel, &mut |_| Err(full.clone()));
    assert_eq!(fault(answer), full);
    server.requests();
}

#[test]
fn a_field_that_a_server_rejects_is_omitted_from_then_on() {
    const NO_OPTIONS: &str =
        "HTTP/1.1 400 Bad\r\n\r\n{\"error\":\"Unknown field: stream_options\"}";
    const NO_CHOICE: &str = "HTTP/1.1 400 Bad\r\n\r\n{\"error\":{\"message\":\"no tool_choice\"}}";
    let server = Scripted::sending(&[NO_OPTIONS, NO_CHOICE, HELLO, HELLO]);
    assert_eq!(server.ask(Timeouts::TURN).1.unwrap().text, "hello");
    assert_eq!(server.ask(Timeouts::TURN).1.unwrap().text, "hello");
    let sent = server.requests();
    let has = |text: &str| sent.iter().map(|sent| sent.contains(text)).collect::<Vec<_>>();
    assert_eq!(has("stream_options"), [true, false, false, false]);
    assert_eq!(has("tool_choice"), [true, true, false, false]);
    assert_eq!(has("temperature"), [true; 4]);
    // The same error again is final, and nothing is learned from a failure.
    let server = Scripted::sending(&[NO_OPTIONS, NO_OPTIONS, HELLO]);
    assert_eq!(fault(server.ask(Timeouts::TURN).1).code, "refused");
    assert_eq!(server.ask(Timeouts::TURN).1.unwrap().text, "hello");
    assert!(server.requests().last().unwrap().contains("stream_options"));
}

#[test]
fn a_model_without_tool_calls_answers_without_them() {
    for error in [
        "HTTP/1.1 400 Bad\r\n\r\n{\"error\":{\"message\":\"m does not support tools\"}}",
        "HTTP/1.1 500 Oops\r\n\r\n{\"error\":\"tools param requires --jinja flag\"}",
        "HTTP/1.1 404 No\r\n\r\n{\"error\":{\"message\":\"No endpoints found that support tool use\"}}",
        "HTTP/1.1 400 Bad\r\n\r\n{\"message\":\"\\\"auto\\\" tool choice requires \
         --enable-auto-tool-choice and --tool-call-parser to be set\"}",
    ] {
        let server = Scripted::sending(&[error, HELLO, HELLO]);
        let cancel = Cancel::new().unwrap();
        for _ in 0..2 {
            let mut notices = Vec::new();
            let completion =
                complete(&server.endpoint, &server.memory, NO_RETRIES, &cancel, &mut |delta| {
                    if delta.kind == DeltaKind::Notice(None) {
                        notices.push(delta.text.clone());
                    }
                    Ok(())
                });
            assert_eq!(completion.unwrap().text, "hello", "{error}");
            assert_eq!(notices, ["the model has no tool calls: it answers without them"]);
        }
        let has_tools: Vec<bool> =
            server.requests().iter().map(|sent| sent.contains("\"tool")).collect();
        assert_eq!(has_tools, [true, false, false]);
    }
}

#[test]
fn the_size_of_the_context_is_asked_for_once_where_servers_tell_it() {
    const NONE: &str = "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n";
    let answers: [(&[&'static str], _); 3] = [
        (&["HTTP/1.1 200 OK\r\n\r\n{\"data\":[{\"id\":\"m\",\"max_model_len\":512}]}"], Some(512)),
        (&[LIST, "HTTP/1.1 200 OK\r\n\r\n{\"n_ctx\":256}"], Some(256)),
        (&[NONE, NONE], None),
    ];
    for (texts, size) in answers {
        let server = Scripted::sending(texts);
        let cancel = Cancel::new().unwrap();
        for _ in 0..2 {
            let model = ServedModel(NO_RETRIES);
            model.learn_context(&server.endpoint, &server.memory, &cancel);
            let known = server.memory.context(&server.endpoint, Instant::now());
            assert_eq!(known, Some(size), "{texts:?}");
        }
        let sent = server.requests();
        assert!(sent[0].starts_with("GET /path/models HTTP/1.1\r\n"), "{sent:?}");
        assert!(sent.get(1).is_none_or(|sent| sent.starts_with("GET /props HTTP/1.1\r\n")));
    }
}

#[test]
fn the_question_for_the_context_has_a_time_limit() {
    const ENDLESS: &str = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{";
    let (closed, seen) = mpsc::channel();
    let server = Scripted::new(vec![vec![Step::Send(ENDLESS), Step::AwaitClose(closed)]]);
    let begun = Instant::now();
    let cancel = Cancel::new().unwrap();
    ServedModel(NO_RETRIES).learn_context(&server.endpoint, &server.memory, &cancel);
    assert!(begun.elapsed() < limits::MODEL_CONTEXT_MAX * 2 + AT_ONCE);
    seen.recv().unwrap();
    // It is not asked again with the next request.
    assert_eq!(server.memory.context(&server.endpoint, Instant::now()), Some(None));
    server.requests();
}

#[test]
fn nothing_is_learned_of_the_context_from_a_question_that_is_cancelled() {
    let server = Scripted::new(Vec::new());
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    ServedModel(NO_RETRIES).learn_context(&server.endpoint, &server.memory, &cancel);
    assert_eq!(server.memory.context(&server.endpoint, Instant::now()), None);
    server.requests();
}

#[test]
fn thinking_that_a_server_refuses_to_get_back_is_omitted_for_a_while() {
    const REFUSED: &str = "HTTP/1.1 400 Bad\r\n\r\n\
        {\"error\":{\"message\":\"messages.1.reasoning_content: not permitted\"}}";
    let server = Scripted::sending(&[REFUSED, HELLO, HELLO]);
    let call = r#"[{"role":"assistant","content":"","reasoning_content":"a \"b\""}]"#;
    let answered = [(); 2].map(|()| {
        let request = ChatRequest {
            endpoint: &server.endpoint,
            messages: call,
            tools: "[]",
            tool_choice: "none",
            deadline: None,
        };
        let cancel = Cancel::new().unwrap();
        let model = ServedModel(NO_RETRIES);
        model.complete(&request, &server.memory, &cancel, &mut |_| Ok(())).unwrap();
        Instant::now()
    });
    // But not forever: the second request did not find out whether it is still refused.
    let end = answered[0] + limits::SERVER_FACTS_KEPT;
    assert!(server.memory.rejected(&server.endpoint, end).is_empty());
    let requests = server.requests();
    let has: Vec<bool> = requests.iter().map(|text| text.contains("reasoning")).collect();
    assert_eq!(has, [true, false, false]);
    assert!(requests.last().unwrap().contains(r#""messages":[{"role":"assistant","content":""}]"#));
}

#[test]
fn a_limit_that_leaves_no_room_for_the_messages_is_omitted_this_once() {
    const NO_ROOM: &str = "HTTP/1.1 400 Bad\r\n\r\n{\"error\":{\"message\":\"maximum context \
        length is 4096, you requested 4100 (4 in the messages, 4096 in the completion)\"}}";
    const TOO_LONG: &str = "HTTP/1.1 400 Bad\r\n\r\n{\"error\":{\"message\":\"too long\",\
        \"type\":\"exceed_context_size_error\"}}";
    let server = Scripted::limited(&[NO_ROOM, HELLO, HELLO]);
    assert_eq!(server.ask(Timeouts::TURN).1.unwrap().text, "hello");
    assert_eq!(server.ask(Timeouts::TURN).1.unwrap().text, "hello");
    let sent = server.requests();
    let limited: Vec<bool> = sent.iter().map(|sent| sent.contains("max_tokens")).collect();
    assert_eq!(limited, [true, false, true]);
    // If there is still no room, the messages are too long.
    let server = Scripted::limited(&[NO_ROOM, NO_ROOM]);
    assert_eq!(fault(server.ask(Timeouts::TURN).1).code, "context-too-long");
    server.requests();
    // Some servers say so at once.
    let server = Scripted::sending(&[TOO_LONG]);
    let too_long = fault(server.ask(Timeouts::TURN).1);
    assert_eq!(too_long.code, "context-too-long");
    let words = "answered 400: too long (exceed_context_size_error)";
    assert!(too_long.message.contains(words), "{}", too_long.message);
    server.requests();
}

#[test]
fn without_a_name_the_first_model_that_chats_is_used_and_remembered() {
    let mut server = Scripted::sending(&[LIST, HELLO, HELLO]);
    server.endpoint.model = None;
    assert!(server.ask(Timeouts::TURN).1.is_ok());
    assert!(server.ask(Timeouts::TURN).1.is_ok());
    let sent = server.requests();
    assert!(sent.first().unwrap().contains("/models HTTP/1.1"), "{sent:?}");
    assert!(sent.iter().skip(1).all(|sent| sent.contains("{\"model\":\"qwen\",")), "{sent:?}");
    // A server without a list of models chooses.
    let mut server = Scripted::sending(&["HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", HELLO]);
    server.endpoint.model = None;
    assert!(server.ask(Timeouts::TURN).1.is_ok());
    assert!(!server.requests().concat().contains("\"model\""));
    let mut server =
        Scripted::sending(&["HTTP/1.1 200 OK\r\n\r\n{\"data\":[{\"id\":\"bge-m3\"}]}"]);
    server.endpoint.model = None;
    let none = fault(server.ask(Timeouts::TURN).1);
    assert!(none.message.contains("has no model that chats"), "{}", none.message);
    server.requests();
}

#[test]
fn the_list_of_models_has_a_time_limit() {
    let limit = Duration::from_millis(200);
    let server = Scripted::sending(&[LIST]);
    let names = models(&server.endpoint, AT_ONCE).unwrap();
    assert_eq!(names.unwrap(), ["bge-m3", "qwen"]);
    server.requests();
    let (closed, seen) = mpsc::channel();
    let server = Scripted::new(vec![vec![Step::AwaitClose(closed)]]);
    let begun = Instant::now();
    let late = models(&server.endpoint, limit).unwrap_err();
    assert_eq!(late.code, "model-timeout");
    assert!(begun.elapsed() < AT_ONCE);
    seen.recv().unwrap();
    server.requests();
}

#[test]
fn an_endpoint_that_cannot_be_used_is_named_with_its_setting() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut endpoint = Endpoint {
        url: format!("http://localhost:{port}"),
        source: "OPENAI_BASE_URL".to_owned(),
        key: Some(Key("s3cret\r\nX: y".to_owned())),
        model: None,
        ..Endpoint::default()
    };
    let unreachable = fault(ask_at(&endpoint));
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
    let odd = fault(ask_at(&endpoint));
    assert_eq!(odd.code, "model-config");
    assert!(odd.message.contains("characters that no header can hold"), "{}", odd.message);
    endpoint.url = "https://api.example.com/v1?key=s3cret".to_owned();
    let query = fault(ask_at(&endpoint));
    assert_eq!(query.code, "model-config");
    let begin = "cannot use OPENAI_BASE_URL: it has a query";
    assert!(query.message.starts_with(begin), "{}", query.message);
}
