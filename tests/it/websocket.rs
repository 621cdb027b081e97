//! The WebSocket: events, messages, and how it ends, byte by byte with a scripted client.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::api::{Api, Delivery, Event};
use crate::crash::Strace;
use crate::model::Model;
use crate::socket::{Frame, Socket, UPDATED, frame, handshake};
use crate::support::{
    ANYTHING, Home, RESTARTED, START_THREAD, TOO_MANY_FILES, eventually, need, proc_number,
};

/// Starts a daemon without a model: each turn fails at once.
fn started() -> (Home, Api) {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    (home, api)
}

/// Runs this number of turns, t0 and so on, with a long message.
fn run_turns(api: &Api, count: usize, long: &str) {
    for number in 0..count {
        let body = format!(r#"{{"turnId":"t{number}","content":"{long}"}}"#);
        api.post("/v3/sessions/s/turns", &body).expect(202);
        api.wait_for("s", "turn.error", &format!("t{number}"));
    }
}

fn seqs(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.seq).collect()
}

#[test]
fn past_and_new_events_arrive_once_and_in_order() {
    let (_home, api) = started();
    api.create("s");
    api.submit("s", "t1").expect(202);
    api.wait_for("s", "turn.error", "t1");
    let mut all = Socket::open(&api, "sessionId=s");
    let mut later = Socket::open(&api, "sessionId=s&afterSeq=3");
    let stream = api.follow("s", 0, "").unwrap();
    assert_eq!(later.event().seq, 4);
    api.submit("s", "t2").expect(202);
    let events = all.events_to("turn.error", "t2");
    assert_eq!(seqs(&events), (1..=events.len() as u64).collect::<Vec<_>>());
    let streamed: Vec<Event> = events.iter().map(|_| stream.event()).collect();
    assert_eq!(events, streamed);
    let rest = later.events_to("turn.error", "t2");
    assert_eq!(rest, events[4..]);
    assert!(all.text().contains(UPDATED));
    assert!(all.is_silent_for(Duration::from_millis(200)));
}

#[test]
fn a_failed_turn_has_the_code_that_older_clients_know_and_its_own() {
    let (_home, api) = started();
    api.create("s");
    api.submit("s", "t").expect(202);
    let mut socket = Socket::open(&api, "sessionId=s");
    let mut text = socket.text();
    while !text.contains("\"turn.error\"") {
        text = socket.text();
    }
    let (payload, data) = text.split_once(",\"data\":").unwrap();
    assert!(payload.contains(r#""code":"lmx-connection-refused","message":"cannot"#), "{text}");
    assert!(data.contains(r#""code":"model-unreachable","message":"cannot"#), "{text}");
}

#[test]
fn a_long_history_arrives_whole_at_every_reader() {
    let (_home, api) = started();
    api.create("s");
    let long = "é".repeat(200_000);
    run_turns(&api, 5, &long);
    let mut sockets: Vec<Socket> = (0..5).map(|_| Socket::open(&api, "sessionId=s")).collect();
    let events = api.events("s", 0);
    for socket in &mut sockets {
        assert_eq!(socket.events_to("turn.error", "t4"), events);
    }
}

#[test]
fn a_message_is_answered_before_a_long_history_is_sent() {
    let (_home, api) = started();
    api.create("s");
    let long = "x".repeat(250_000);
    run_turns(&api, 10, &long);
    let mut socket = Socket::open(&api, "sessionId=s");
    // It arrives before the client reads, and the history is longer than what the system holds.
    socket.send(r#"{"type":"ping"}"#);
    let is_last = |text: &str| text.contains("\"turn.error\"") && text.contains("\"t9\"");
    let mut texts = std::iter::repeat_with(|| socket.text()).take_while(|text| !is_last(text));
    assert!(texts.any(|text| text.contains("\"pong\"")));
}

#[test]
fn many_small_events_arrive_without_a_pause() {
    let (_home, api) = started();
    // Each time, its followers are told.
    (0..400).for_each(|_| drop(api.create("s")));
    api.submit("s", "t").expect(202);
    api.wait_for("s", "turn.error", "t");
    let events = api.events("s", 0);
    assert!(events.iter().map(|event| event.text.len()).sum::<usize>() > 128 * 1024);
    let opened = Instant::now();
    for query in ["sessionId=s", "afterSeq=0"] {
        assert_eq!(Socket::open(&api, query).events_to("turn.error", "t"), events);
    }
    // After a pause, a WebSocket with nothing to send would send a ping.
    let elapsed = opened.elapsed();
    assert!(elapsed < Duration::from_secs(10), "{elapsed:?}");
}

#[test]
fn one_websocket_follows_all_sessions() {
    let (_home, api) = started();
    for id in ["a", "b"] {
        api.create(id);
        api.submit(id, "t1").expect(202);
        api.wait_for(id, "turn.error", "t1");
    }
    let mut live = Socket::open(&api, "");
    let mut all = Socket::open(&api, "afterSeq=0");
    eventually("both follow", || api.get("/v3/metrics").number("subscriberCount") == 2);
    api.create("c");
    for id in ["a", "c"] {
        api.submit(id, "t2").expect(202);
        api.wait_for(id, "turn.error", "t2");
    }
    let read = |socket: &mut Socket, id: &str, after: u64| -> Vec<Event> {
        let expected = api.events(id, after);
        let count = expected.len();
        let mut found = Vec::new();
        while found.len() < count {
            found.push(socket.event());
        }
        assert_eq!(found, expected, "{id}");
        found
    };
    let mut all_events: Vec<Event> = Vec::new();
    let mut live_events: Vec<Event> = Vec::new();
    let total: usize = ["a", "b", "c"].iter().map(|id| api.events(id, 0).len()).sum();
    while all_events.len() < total {
        all_events.push(all.event());
    }
    let before_t2 = api.events("b", 0).len();
    let new = total - 2 * before_t2;
    while live_events.len() < new {
        live_events.push(live.event());
    }
    for (id, after) in [("a", before_t2 as u64), ("b", before_t2 as u64), ("c", 0)] {
        let of = |events: &[Event]| -> Vec<Event> {
            let key = format!("\"sessionId\":\"{id}\",\"seq\"");
            events.iter().filter(|event| event.text.contains(&key)).cloned().collect()
        };
        assert_eq!(of(&all_events), api.events(id, 0), "all of {id}");
        assert_eq!(of(&live_events), api.events(id, after), "new ones of {id}");
    }
    // The next ones, too, and no more than these.
    api.submit("b", "t2").expect(202);
    api.wait_for("b", "turn.error", "t2");
    read(&mut live, "b", before_t2 as u64);
    read(&mut all, "b", before_t2 as u64);
    assert!(live.text().contains(UPDATED));
    assert!(live.is_silent_for(Duration::from_millis(200)));
}

#[test]
fn a_follower_of_all_sessions_is_told_when_descriptors_run_out() {
    need!("/proc", "prlimit");
    let model = Model::new();
    let home = Home::new();
    home.start_with(&model);
    let pid = home.daemon_info().pid();
    let api = Api::of(&home);
    api.create("s");
    let mut socket = Socket::open(&api, "");
    api.submit("s", "t").expect(202);
    let mut question = model.question();
    socket.events_to("turn.start", "t");
    let limit = |count: usize| {
        let mut prlimit = std::process::Command::new("prlimit");
        prlimit.args(["--pid", &pid.to_string(), &format!("--nofile={count}:4096")]);
        assert!(prlimit.status().unwrap().success());
    };
    let is_open = |number: &usize| Path::new(&format!("/proc/{pid}/fd/{number}")).exists();
    let mut said = 0;
    // Each word arrives until the journal, which the turn has open, cannot be opened once more.
    eventually("no descriptor is left", || {
        limit((0..).find(|number| !is_open(number)).unwrap());
        said += 1;
        question.say(&format!("word{said}"));
        match socket.frame() {
            Frame::Text(text) => {
                assert!(text.contains(&format!("word{said}")), "{text}");
                false
            }
            Frame::Close(code, reason) => {
                assert_eq!((code, reason.as_str()), (1011, TOO_MANY_FILES));
                true
            }
            other => panic!("{other:?}"),
        }
    });
    limit(1024);
    question.end();
    api.wait_for("s", "turn.done", "t");
}

#[test]
fn a_session_that_does_not_exist_is_followed_from_its_creation() {
    let (_home, api) = started();
    let mut socket = Socket::open(&api, "sessionId=later&afterSeq=0");
    assert!(socket.is_silent_for(Duration::from_millis(200)));
    api.create("other");
    api.create("later");
    let event = socket.event();
    assert_eq!((event.name.as_str(), event.seq), ("session.snapshot", 1));
    assert!(event.text.contains("\"sessionId\":\"later\""));
    api.submit("later", "t").expect(202);
    let events = socket.events_to("turn.error", "t");
    assert_eq!(seqs(&events), (2..=events.len() as u64 + 1).collect::<Vec<_>>());
}

#[test]
fn each_message_has_its_answer() {
    let (_home, api) = started();
    api.create("s");
    let mut socket = Socket::open(&api, "sessionId=s&afterSeq=1");
    let pong = socket.ask_for(r#"{"type":"ping"}"#);
    assert!(pong.starts_with(r#"{"type":"pong","event":"heartbeat","ts":1"#), "{pong}");
    socket.send(r#"{"type":"hello","clientId":"c","sessionId":"s","afterSeq":0}"#);
    for (message, answer) in [
        (
            r#"{"type":"turn.cancel","sessionId":"s","writerId":"nobody"}"#,
            r#"{"type":"ack","action":"turn.cancel","cancelled":{"cancelledQueued":0,"cancelledActive":false}}"#,
        ),
        (
            r#"{"type":"turn.cancel","sessionId":"none"}"#,
            r#"{"type":"ack","action":"turn.cancel","cancelled":{"cancelledQueued":0,"cancelledActive":false}}"#,
        ),
        (
            r#"{"type":"permission.resolve","sessionId":"s","requestId":"p","decision":"deny","decidedBy":"c"}"#,
            r#"{"type":"ack","action":"permission.resolve","result":{"ok":false,"conflict":false,"message":"nothing waits for this decision"}}"#,
        ),
    ] {
        assert_eq!(socket.ask_for(message), answer);
    }
    for (message, error) in [
        ("{", "Invalid JSON payload: line 1, column 2"),
        ("[]", "Invalid JSON payload: line 1, column 1"),
        ("{}", "Invalid WS payload: type is missing"),
        (r#"{"type":"turn.stop"}"#, "Invalid WS payload: type is hello, ping, turn.submit"),
        (r#"{"type":"turn.submit","content":""}"#, "content is empty"),
        (r#"{"type":"turn.submit","sessionId":"s"}"#, "Invalid JSON payload: "),
        (r#"{"type":"turn.submit","sessionId":"s","content":"x","mode":"x"}"#, "mode is chat"),
        (r#"{"type":"turn.submit","sessionId":"none","content":"x"}"#, "No session with id 'none'"),
        (r#"{"type":"turn.submit","sessionId":"..","content":"x"}"#, "a session's id is 1 to 64"),
        (r#"{"type":"permission.resolve","requestId":"p","decision":"maybe"}"#, "decision is"),
    ] {
        let answer = socket.ask_for(message);
        assert!(answer.starts_with(&format!("{{\"error\":\"{error}")), "{message}: {answer}");
        assert!(answer.contains("\"code\":\""), "{answer}");
    }
    let ack = socket.ask_for(
        r#"{"type":"turn.submit","clientId":"c","writerId":"w","sessionId":"s","content":"hi"}"#,
    );
    let turn = crate::api::field(&ack, "turnId").unwrap();
    assert_eq!(
        ack,
        format!(r#"{{"type":"ack","action":"turn.submit","turnId":"{turn}","queued":0}}"#)
    );
    let events = socket.events_to("turn.error", turn);
    assert!(events[0].text.contains(r#""writerId":"w","clientId":"c""#), "{}", events[0].text);
    let mut everything = Socket::open(&api, "");
    let answer = everything.ask_for(r#"{"type":"turn.submit","content":"x"}"#);
    assert!(answer.starts_with(r#"{"error":"sessionId is missing""#), "{answer}");
}

#[test]
fn a_permission_is_granted_over_the_websocket() {
    let model = Model::new();
    let home = Home::new();
    home.start_with(&model);
    let api = Api::of(&home);
    let workspace = home.beside("workspace");
    std::fs::create_dir(&workspace).unwrap();
    let metadata = format!(r#""metadata":{{"workspace":"{}"}}"#, workspace.display());
    api.post("/v3/sessions", &format!(r#"{{"sessionId":"s",{metadata}}}"#)).expect(201);
    let mut socket = Socket::open(&api, "sessionId=s");
    api.submit("s", "t").expect(202);
    model.question().call("run_command", r#"{\"command\":\"echo it-ran > ran\"}"#);
    let request = socket.events_to("permission.request", "t").pop().unwrap();
    let id = crate::api::field(&request.text, "requestId").unwrap();
    let resolve = format!(
        r#"{{"type":"permission.resolve","sessionId":"s","requestId":"{id}","decision":"allow","decidedBy":"me"}}"#
    );
    socket.send(&resolve);
    let ack = loop {
        let text = socket.text();
        if text.contains("\"ack\"") {
            break text;
        }
    };
    assert!(ack.ends_with(r#""result":{"ok":true,"conflict":false}}"#), "{ack}");
    model.question().answer("done");
    socket.events_to("turn.done", "t");
    assert!(workspace.join("ran").exists());
}

#[test]
fn a_client_without_the_token_is_told_and_let_go() {
    let (home, api) = started();
    api.create("s");
    let wrong = "0".repeat(api.token.len());
    for (query, headers) in [
        ("sessionId=s", String::new()),
        ("sessionId=s&token=", String::new()),
        (&*format!("sessionId=s&token={wrong}"), String::new()),
        ("sessionId=s", format!("Authorization: Bearer {wrong}\r\n")),
        (&*format!("sessionId=s&token={}", api.token), "Authorization: Bearer x\r\n".to_owned()),
    ] {
        let mut socket = Socket::raw(api.port, query, &headers);
        assert_eq!(socket.text(), r#"{"error":"Unauthorized"}"#);
        assert!(socket.assert_closed(4001).contains("unauthor"));
    }
    let bearer = format!("Authorization: Bearer {}\r\n", api.token);
    let mut socket = Socket::raw(api.port, "sessionId=s", &bearer);
    assert_eq!(socket.event().seq, 1);
    // An upgrade is not covered by CORS.
    let status = |lines: &str| {
        let request = handshake(api.port, &format!("token={}", api.token)) + lines + "\r\n";
        let (head, _) = Socket::ask(api.port, request.as_bytes());
        head.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(status("Origin: http://localhost:5173\r\n"), "101");
    assert_eq!(status("Origin: http://evil.example\r\n"), "403");
    assert_eq!(status("Origin: null\r\n"), "403");
    let foreign = handshake(api.port, "").replace("Host: 127.0.0.1", "Host: evil.example");
    assert!(Socket::ask(api.port, (foreign + "\r\n").as_bytes()).0.contains(" 421 "));
    let plain = |token: &str| api.ask("GET", &format!("/v3/ws{token}"), "").status;
    assert_eq!(plain(""), 426);
    drop(home);
}

#[test]
fn clients_go_on_where_they_were_after_a_restart() {
    let (home, api) = started();
    api.create("s");
    api.submit("s", "t1").expect(202);
    let mut socket = Socket::open(&api, "sessionId=s");
    let last = socket.events_to("turn.error", "t1").len() as u64;
    home.opta("daemon restart").stdout(RESTARTED).run();
    let new = Api::of(&home);
    let old = Api { token: api.token, ..new.clone() };
    let mut refused = Socket::open(&old, "sessionId=s");
    assert_eq!(refused.text(), r#"{"error":"Unauthorized"}"#);
    refused.assert_closed(4001);
    assert_eq!(old.get("/v3/sessions").status, 401);
    let mut socket = Socket::open(&new, &format!("sessionId=s&afterSeq={last}"));
    new.submit("s", "t2").expect(202);
    let events = socket.events_to("turn.error", "t2");
    assert_eq!(events, new.events("s", last));
}

#[test]
fn the_end_of_a_fast_turn_is_held_on_the_websocket_alone() {
    let (_home, api) = started();
    api.create("s");
    let mut socket = Socket::open(&api, "sessionId=s&afterSeq=1");
    let stream = api.follow("s", 1, "").unwrap();
    let held = Duration::from_millis(150);
    // The machine may be busy with something else: one of these is not.
    let (mut streamed, mut resumed) = (Duration::MAX, Duration::MAX);
    for turn in ["t1", "t2", "t3", "t4", "t5"] {
        let begun = Instant::now();
        api.submit("s", turn).expect(202);
        while !matches!(stream.next(), Delivery::Event(event) if event.name == "turn.error") {}
        streamed = streamed.min(begun.elapsed());
        socket.events_to("turn.error", turn);
        assert!(begun.elapsed() >= held, "{:?}", begun.elapsed());
        // What was before is not held.
        let opened = Instant::now();
        Socket::open(&api, "sessionId=s").events_to("turn.error", turn);
        resumed = resumed.min(opened.elapsed());
    }
    assert!(streamed < held && resumed < held, "{streamed:?}, {resumed:?}");
}

#[test]
fn the_end_of_a_turn_is_followed_by_the_session_as_it_is_then() {
    let (_home, api) = started();
    api.create("s");
    let mut sockets = ["sessionId=s&afterSeq=1", ""].map(|query| Socket::open(&api, query));
    let stream = api.follow("s", 1, "").unwrap();
    for (turn, count) in [("t1", 1), ("t2", 2)] {
        api.submit("s", turn).expect(202);
        for socket in &mut sockets {
            let end = socket.events_to("turn.error", turn).pop().unwrap();
            let text = socket.text();
            assert!(text.contains(UPDATED) && text.contains(r#""v":"3""#), "{text}");
            assert_eq!(crate::api::field(&text, "seq").unwrap(), end.seq.to_string());
            let (_, snapshot) =
                text.split_once(r#""payload":{"snapshot":{"sessionId":"s","#).unwrap();
            let (snapshot, data) = snapshot.split_once(r#"}},"data":{"snapshot":{"#).unwrap();
            assert!(snapshot.contains(r#""status":"idle""#) && !snapshot.contains("activeTurnId"));
            assert!(snapshot.contains(&format!(r#""turns":{count},"#)), "{snapshot}");
            assert!(data.ends_with(r#"},"sessionId":"s"}}"#), "{data}");
        }
        while !matches!(stream.next(), Delivery::Event(event) if event.name == "turn.error") {}
    }
    // It is no event of the journal, and none of earlier turns is sent.
    assert!(api.events("s", 0).iter().all(|event| event.name != "session.updated"));
    let mut later = Socket::open(&api, "sessionId=s");
    later.events_to("turn.error", "t2");
    assert!(later.is_silent_for(Duration::from_millis(200)));
}

#[test]
fn a_breach_of_the_protocol_is_closed_with_its_code() {
    let (_home, api) = started();
    api.create("s");
    for (what, bytes, code) in [
        ("not masked", vec![0x81, 0x01, b'x'], 1002),
        ("a reserved bit", frame(0xc1, b"x"), 1002),
        ("an unknown opcode", frame(0x83, b"x"), 1002),
        ("a fragment of nothing", frame(0x80, b"x"), 1002),
        ("a long ping", frame(0x89, &[0; 126]), 1002),
        ("binary", frame(0x82, b"{}"), 1003),
        ("not UTF-8", frame(0x81, b"\xff"), 1007),
        ("too long", frame(0x81, &vec![b' '; (1 << 20) + 1]), 1009),
    ] {
        let mut socket = Socket::open(&api, "sessionId=s&afterSeq=1");
        drop(socket.stream.write_all(&bytes));
        let Frame::Close(found, reason) = socket.frame() else { panic!("{what}") };
        assert_eq!(found, code, "{what}: {reason}");
    }
    let mut socket = Socket::open(&api, "sessionId=s&afterSeq=1");
    // The longest message is not too long.
    let longest = format!("{{\"type\":\"ping\"{}}}", " ".repeat((1 << 20) - 15));
    assert_eq!(longest.len(), 1 << 20);
    assert!(socket.ask_for(&longest).contains("pong"));
    // Fragments, byte by byte, with a ping between them.
    let parts = [
        frame(0x01, br#"{"type":"#),
        frame(0x89, b"now"),
        frame(0x00, br#""pi"#),
        frame(0x80, br#"ng"}"#),
    ];
    for byte in parts.concat() {
        socket.send_bytes(&[byte]);
    }
    assert_eq!(socket.frame(), Frame::Pong(b"now".to_vec()));
    assert!(socket.text().contains("pong"));
    socket.send_bytes(&frame(0x88, &[0x0b, 0xb8, b'b', b'y', b'e']));
    assert_eq!(socket.frame(), Frame::Close(3000, String::new()));
    assert_eq!(socket.frame(), Frame::End);
}

#[test]
fn what_cannot_be_followed_is_explained() {
    let (_home, api) = started();
    for (query, error) in [
        ("sessionId=..", "a session's id is 1 to 64 letters"),
        ("sessionId=", "a session's id is 1 to 64 letters"),
        ("sessionId=%zz", "sessionId is not well encoded"),
        ("sessionId=s&afterSeq=x", "afterSeq is a whole number from 0"),
        ("sessionId=s&answers=2", "answers is a whole number from 0 to 1"),
    ] {
        let mut socket = Socket::open(&api, query);
        let text = socket.text();
        assert!(text.starts_with(&format!("{{\"error\":\"{error}")), "{text}");
        assert!(socket.assert_closed(4000).starts_with(error));
    }
}

#[test]
fn bytes_before_the_handshake_is_done_are_its_first_frames() {
    let (_home, api) = started();
    api.create("s");
    let query = format!("sessionId=s&afterSeq=1&token={}", api.token);
    let mut request = (handshake(api.port, &query) + "\r\n").into_bytes();
    request.extend(frame(0x81, br#"{"type":"ping"}"#));
    let (head, mut socket) = Socket::ask(api.port, &request);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(socket.text().contains("pong"));
}

#[test]
fn a_deleted_session_ends_its_websockets() {
    let (_home, api) = started();
    api.create("s");
    let mut socket = Socket::open(&api, "sessionId=s&afterSeq=1");
    eventually("it follows", || api.get("/v3/metrics").number("subscriberCount") == 1);
    api.ask("DELETE", "/v3/sessions/s", "").expect(204);
    assert_eq!(socket.text(), r#"{"event":"stream.end","reason":"deleted"}"#);
    assert_eq!(socket.assert_closed(1000), "the session was deleted");
}

#[test]
fn followers_of_all_sessions_learn_that_one_was_deleted() {
    let (_home, api) = started();
    let mut socket = Socket::open(&api, "");
    for _ in 0..2 {
        api.create("s");
        assert!(socket.text().contains(r#""event":"session.snapshot""#));
        api.ask("DELETE", "/v3/sessions/s", "").expect(204);
        assert_eq!(socket.text(), r#"{"event":"session.deleted","sessionId":"s"}"#);
    }
    api.ask("DELETE", "/v3/sessions/s", "").expect(404);
    // Nothing more.
    api.create("t");
    assert!(socket.text().contains(r#""sessionId":"t""#));
}

#[test]
fn a_stopping_daemon_closes_its_websockets_in_time() {
    let (home, api) = started();
    api.create("s");
    let queries = ["sessionId=s&afterSeq=1", "", "sessionId=none"];
    let mut sockets = queries.map(|query| Socket::open(&api, query));
    // One that never answers.
    let _silent = Socket::open(&api, "sessionId=s");
    eventually("all follow", || api.get("/v3/metrics").number("subscriberCount") == 4);
    let begun = Instant::now();
    home.opta("daemon stop").stdout(ANYTHING).run();
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    for socket in &mut sockets {
        assert_eq!(socket.text(), r#"{"event":"stream.end","reason":"stopping"}"#);
        assert_eq!(socket.assert_closed(1001), "the daemon is stopping");
    }
}

#[test]
fn slow_clients_and_half_messages_are_let_go() {
    let (_home, api) = started();
    api.create("s");
    let long = "x".repeat(1_000_000);
    for number in 0..4 {
        let body = format!(r#"{{"turnId":"t{number}","content":"{long}"}}"#);
        api.post("/v3/sessions/s/turns", &body).expect(202);
    }
    api.wait_for("s", "turn.error", "t3");
    let begun = Instant::now();
    let mut slow = Socket::open(&api, "sessionId=s");
    let mut half = Socket::open(&api, "sessionId=s&afterSeq=1000");
    half.send_bytes(&[0x81, 0x85, 0]);
    let mut unfinished = Socket::open(&api, "sessionId=s&afterSeq=1000");
    unfinished.send_bytes(&frame(0x01, b"{"));
    // The others are served meanwhile.
    let mut fast = Socket::open(&api, "sessionId=s");
    fast.events_to("turn.error", "t3");
    assert_eq!(api.get("/v3/metrics").number("subscriberCount"), 4);
    for socket in [&mut half, &mut unfinished] {
        assert_eq!(socket.assert_closed(1008), "a message took too long");
    }
    eventually("only the fast one is left", || {
        api.get("/v3/metrics").number("subscriberCount") == 1
    });
    assert!(begun.elapsed() >= Duration::from_secs(10), "{:?}", begun.elapsed());
    // What it did not take ends with the reason.
    let close = loop {
        match slow.read_any() {
            (0x88, payload) => break payload,
            (0x81 | 0x01 | 0x00 | 0x80, _) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(close[..2], 1013_u16.to_be_bytes());
    assert!(fast.ask_for(r#"{"type":"ping"}"#).contains("pong"));
}

#[test]
fn a_session_that_is_created_again_is_shown_again_and_unchanged() {
    let (home, api) = started();
    let body = r#"{"sessionId":"s","title":"first","systemPrompt":"p","messages":[{"role":"user","content":"before"}]}"#;
    api.post("/v3/sessions", body).expect(201);
    let mut socket = Socket::open(&api, "sessionId=s&afterSeq=1");
    let again = r#"{"sessionId":"s","title":"second"}"#;
    let reply = api.post("/v3/sessions", again).expect(201);
    assert_eq!((reply.field("title"), reply.number("seq")), ("first", 2));
    let event = socket.event();
    assert_eq!((event.name.as_str(), event.seq), ("session.snapshot", 2));
    assert_eq!(crate::api::field(&event.text, "title"), Some("first"));
    let shown = api.get("/v3/sessions/s").expect(200);
    let messages = r#""messages":[{"role":"user","content":"before"}]"#;
    assert!(shown.body.contains(messages), "{}", shown.body);
    // The next daemon reads the same from the journal.
    home.opta("daemon restart").stdout(RESTARTED).run();
    let after = Api::of(&home).get("/v3/sessions/s").expect(200);
    assert_eq!(after.body, shown.body);
}

#[test]
fn events_have_the_names_that_clients_expect() {
    let model = Model::new();
    let home = Home::new();
    home.start_with(&model);
    let api = Api::of(&home);
    api.create("s");
    let mut socket = Socket::open(&api, "sessionId=s");
    let first = socket.text();
    let (_, payload) = first.split_once(",\"payload\":").unwrap();
    let (payload, data) = payload.split_once(",\"data\":").unwrap();
    assert_eq!(data, format!("{payload}}}"));
    api.submit("s", "t").expect(202);
    model.question().answer("hi");
    let token = loop {
        let text = socket.text();
        if text.contains("turn.token") {
            break text;
        }
    };
    let payload = r#"{"turnId":"t","text":"hi","token":"hi"}"#;
    let data = r#"{"turnId":"t","text":"hi","token":"hi","sessionId":"s"}"#;
    let end = format!(",\"payload\":{payload},\"data\":{data}}}");
    assert!(token.ends_with(&end), "{token}");
}

#[test]
fn what_older_clients_ask_for_is_answered() {
    let (_home, api) = started();
    let reply = crate::support::http(api.port, "GET", "/health", None);
    assert_eq!(reply, (200, r#"{"status":"ok","version":"3.0.0","daemon":true}"#.to_owned()));
    let metrics = api.get("/v3/metrics").expect(200);
    let ts = metrics.field("ts");
    assert!(ts.ends_with('Z') && ts.len() == "2026-03-01T10:00:00.000Z".len(), "{ts}");
    for path in ["/v3/metrics", "/v3/sse/events?sessionId=s"] {
        api.create("s");
        let mut stream = api.send("GET", path, "Origin: http://localhost:5173\r\n", b"").unwrap();
        let mut head = [0; 512];
        let count = stream.read(&mut head).unwrap();
        let head = String::from_utf8_lossy(&head[..count]);
        assert!(head.contains("\r\nAccess-Control-Expose-Headers: ETag\r\n"), "{head}");
    }
}

/// Returns the anonymous memory of a process, in KiB, and how often its threads have been woken.
fn usage(pid: i32) -> (u64, u64) {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let woken = tasks.filter_map(|task| {
        let file = format!("task/{}/status", task.unwrap().file_name().display());
        // A thread may have ended.
        proc_number(pid, &file, "voluntary_ctxt_switches:")
    });
    let woken = woken.sum();
    (proc_number(pid, "status", "RssAnon:").unwrap(), woken)
}

#[test]
fn many_websockets_take_little_memory_and_no_time() {
    need!("/proc");
    const COUNT: u64 = 250;
    let (home, api) = started();
    let pid = home.daemon_info().pid();
    api.create("s");
    drop(Socket::open(&api, "sessionId=s"));
    let (before, _) = usage(pid);
    let open = || Socket::open(&api, "sessionId=s");
    let mut sockets: Vec<Socket> = (0..COUNT).map(|_| open()).collect();
    sockets.iter_mut().for_each(|socket| assert_eq!(socket.event().seq, 1));
    let (after, _) = usage(pid);
    let each = after.saturating_sub(before) as f64 / COUNT as f64;
    // The frames of a debug build are larger.
    let limit = if cfg!(debug_assertions) { 56.0 } else { 24.0 };
    assert!(each <= limit, "{each} KiB each");
    // A thread that has sent something goes to sleep only then.
    eventually("no idle WebSocket is woken", || {
        let (_, woken) = usage(pid);
        assert!(sockets[0].is_silent_for(Duration::from_secs(2)));
        usage(pid).1 == woken
    });
    let sent = Instant::now();
    api.submit("s", "t").expect(202);
    let acknowledged = sent.elapsed();
    for socket in &mut sockets {
        assert_eq!(socket.event().name, "turn.queued");
    }
    let all = sent.elapsed();
    println!("{each:.1} KiB each; acknowledged after {acknowledged:?}, at all after {all:?}");
    for socket in &mut sockets {
        socket.events_to("turn.error", "t");
    }
}

#[test]
fn new_events_do_not_wake_the_thread_of_each_follower() {
    need!("/proc");
    const FOLLOWERS: usize = 20;
    const WORDS: usize = 50;
    let (home, model) = (Home::new(), Model::new());
    home.start_with(&model);
    let (pid, api) = (home.daemon_info().pid(), Api::of(&home));
    api.create("s");
    let open = || Socket::open(&api, "sessionId=s");
    let mut sockets: Vec<Socket> = (0..FOLLOWERS).map(|_| open()).collect();
    api.submit("s", "t").expect(202);
    let mut question = model.question();
    question.say("first");
    for socket in &mut sockets {
        while socket.event().name != "turn.token" {}
    }
    let (_, before) = usage(pid);
    for word in 0..WORDS {
        question.say(&format!("{word} "));
        for socket in &mut sockets {
            assert_eq!(socket.event().name, "turn.token");
        }
    }
    let woken = usage(pid).1 - before;
    assert!(woken < (FOLLOWERS * WORDS / 2) as u64, "{woken} times");
    question.end();
    for socket in &mut sockets {
        socket.events_to("turn.done", "t");
    }
}

#[test]
fn events_arrive_although_no_thread_can_be_started_for_them() {
    events_arrive_without_threads(":error=EAGAIN");
}

#[test]
fn events_arrive_although_only_one_thread_can_be_started_for_them() {
    events_arrive_without_threads(":error=EAGAIN:when=2+");
}

fn events_arrive_without_threads(fault: &str) {
    need!("/proc", "strace");
    let (home, api) = started();
    api.create("s");
    let mut stream = TcpStream::connect(("127.0.0.1", api.port)).unwrap();
    let head = format!("Host: 127.0.0.1\r\nAuthorization: Bearer {}\r\n", api.token);
    // The connection has its thread.
    write!(stream, "GET /v3/health HTTP/1.1\r\n{head}\r\n").unwrap();
    assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
    let trace = format!("trace={START_THREAD}");
    let inject = format!("inject={START_THREAD}{fault}");
    let strace = Strace::attach(&home, &["-e", &trace, "-e", &inject], None);
    let query = format!("sessionId=s&token={}", api.token);
    let request = format!("{}\r\n", handshake(api.port, &query));
    let (head, mut socket) = Socket::over(stream, request.as_bytes());
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(socket.event().seq, 1);
    drop(strace);
    api.submit("s", "t").expect(202);
    let events = socket.events_to("turn.error", "t");
    assert_eq!(seqs(&events), (2..2 + events.len() as u64).collect::<Vec<_>>());
}
