//! Sessions over HTTP: what clients can do with them and rely on.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use crate::api::{Api, Delivery, Event, answer};
use crate::support::{ANYTHING, DEADLINE, Home, eventually, need};

fn started() -> (Home, Api) {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    (home, api)
}

/// Crashes the daemon and starts the next one.
fn crashed(home: &Home) -> Api {
    home.crash();
    home.opta("daemon start").stdout(ANYTHING).stderr(ANYTHING).run();
    Api::of(home)
}

#[track_caller]
fn assert_gapless(events: &[Event]) {
    for (event, seq) in events.iter().zip(events[0].seq..) {
        assert_eq!(event.seq, seq, "{events:?}");
    }
}

fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.name.as_str()).collect()
}

#[test]
fn a_turn_is_recorded_from_its_request_to_its_end() {
    let (home, api) = started();
    let created = api.post(
        "/v3/sessions",
        r#"{"title":"A title","model":"m","mode":"do","metadata":{"workspace":"/usr", "k": [1,
            2]}}"#,
    );
    let created = created.expect(201);
    let id = created.field("sessionId").to_owned();
    assert!(id.starts_with("sess_"), "{id}");
    for (name, value) in [
        ("title", "A title"),
        ("model", "m"),
        ("mode", "do"),
        ("workspace", "/usr"),
        ("status", "idle"),
        ("seq", "1"),
    ] {
        assert_eq!(created.field(name), value);
    }
    let turns = format!("/v3/sessions/{id}/turns");
    let said = concat!(
        r#"{"content":"  blanks,\ttabs \u0000 ü \ud83d\ude00 \"\\ ","#,
        r#""turnId":"t1","clientId":"c","writerId":"w"}"#
    );
    let accepted = api.post(&turns, said).expect(202);
    assert_eq!(accepted.body, r#"{"turnId":"t1","status":"queued","queued":0,"seq":2}"#);
    let events = api.wait_for(&id, "turn.error", "t1");
    assert_gapless(&events);
    assert_eq!(names(&events), ["session.snapshot", "turn.queued", "turn.start", "turn.error"]);
    assert!(events[3].text.contains(r#""code":"model-unreachable""#), "{}", events[3].text);
    for event in &events {
        assert!(event.text.contains(&format!(r#""sessionId":"{id}""#)));
    }
    for field in [r#""writerId":"w""#, r#""clientId":"c""#] {
        assert!(events[1..].iter().all(|event| event.text.contains(field)), "{events:?}");
    }
    // The same id is the same turn.
    let again = api.post(&turns, said).expect(202);
    assert_eq!((again.number("seq"), again.field("turnId")), (2, "t1"));
    let shown = api.get(&format!("/v3/sessions/{id}")).expect(200);
    assert_eq!((shown.number("turns"), shown.number("seq")), (1, 4));
    let said = r#""messages":[{"role":"user","content":"  blanks,\ttabs \u0000 ü 😀 \"\\ "}]"#;
    assert!(shown.body.contains(said), "{}", shown.body);
    // Without ids, the daemon makes them.
    let other = api.post(&turns, r#"{"content":"x"}"#).expect(202);
    assert!(other.field("turnId").starts_with("turn_"));
    api.wait_for(&id, "turn.error", other.field("turnId"));
    // An id that exists returns the session that exists.
    let same = format!(r#"{{"sessionId":"{id}","title":"Another"}}"#);
    assert_eq!(api.post("/v3/sessions", &same).expect(201).field("title"), "A title");
    eventually("it is idle", || api.get("/v3/metrics").number("activeTurnCount") == 0);
    assert_eq!(api.get("/v3/metrics").number("totalTurns"), 2);
    let running = "● running  pid={pid}  port={port}  uptime={age}  sessions=1\n";
    home.opta("daemon status").stdout(running).run();
    // After it is opened again, it is the same.
    let before = (api.get(&format!("/v3/sessions/{id}")).body, api.events(&id, 0));
    home.opta("daemon restart").stdout(ANYTHING).run();
    let api = Api::of(&home);
    assert_eq!((api.get(&format!("/v3/sessions/{id}")).body, api.events(&id, 0)), before);
    assert_eq!(api.submit(&id, "t1").expect(202).number("seq"), 2);
}

#[test]
fn the_list_is_newest_first_and_in_pages() {
    let (_home, api) = started();
    assert_eq!(api.get("/v3/sessions").expect(200).body, r#"{"sessions":[],"next":null}"#);
    for number in 0..60 {
        api.create(&format!("s{number}"));
    }
    let ids = |body: &str| -> Vec<String> {
        let ids = body.split("\"sessionId\":\"").skip(1);
        ids.map(|rest| rest.split_once('"').unwrap().0.to_owned()).collect()
    };
    let newest_first: Vec<String> = (0..60).rev().map(|number| format!("s{number}")).collect();
    let mut listed = Vec::new();
    let mut path = "/v3/sessions?limit=7".to_owned();
    loop {
        let page = api.get(&path).expect(200);
        listed.extend(ids(&page.body));
        match page.field("next") {
            "null" => break,
            next => path = format!("/v3/sessions?limit=7&before={next}"),
        }
    }
    assert_eq!(listed, newest_first);
    assert_eq!(ids(&api.get("/v3/sessions").body), newest_first[..50]);
    assert_eq!(ids(&api.get("/v3/sessions?limit=250").body), newest_first);
    for bad in ["limit=0", "limit=251", "limit=x", "limit=-1", "limit=1.5", "before=x", "limit="] {
        let reply = api.get(&format!("/v3/sessions?{bad}")).expect(400);
        assert_eq!(reply.field("code"), "INVALID_REQUEST");
    }
}

/// A request, and the status and code of its refusal.
const REFUSED: &[(&str, &str, &str, u16, &str)] = &[
    ("GET", "/v3/sessions/none", "", 404, "SESSION_NOT_FOUND"),
    ("DELETE", "/v3/sessions/none", "", 404, "SESSION_NOT_FOUND"),
    ("POST", "/v3/sessions/none/turns", r#"{"content":"x"}"#, 404, "SESSION_NOT_FOUND"),
    ("POST", "/v3/sessions/none/cancel", "", 404, "SESSION_NOT_FOUND"),
    ("GET", "/v3/sessions/none/events", "", 404, "SESSION_NOT_FOUND"),
    ("GET", "/v3/sse/events?sessionId=none", "", 404, "SESSION_NOT_FOUND"),
    ("GET", "/v3/sse/events", "", 400, "INVALID_REQUEST"),
    ("GET", "/v3/sse/events?sessionId=%2e%2e", "", 400, "INVALID_REQUEST"),
    ("GET", "/v3/sse/events?sessionId=s&afterSeq=x", "", 400, "INVALID_REQUEST"),
    ("GET", "/v3/sessions/..", "", 400, "INVALID_REQUEST"),
    ("GET", "/v3/sessions/a%2fb", "", 400, "INVALID_REQUEST"),
    ("GET", "/v3/sessions/%00", "", 400, "INVALID_REQUEST"),
    ("GET", "/v3/sessions/%73", "", 400, "INVALID_REQUEST"),
    ("DELETE", "/v3/sessions/..", "", 400, "INVALID_REQUEST"),
    ("POST", "/v3/sessions/../turns", r#"{"content":"x"}"#, 400, "INVALID_REQUEST"),
    ("POST", "/v3/sessions", r#"{"sessionId":"../x"}"#, 400, "INVALID_REQUEST"),
    ("POST", "/v3/sessions", r#"{"sessionId":""}"#, 400, "INVALID_REQUEST"),
    ("POST", "/v3/sessions", r#"{"sessionId":7}"#, 400, "INVALID_REQUEST"),
    ("POST", "/v3/sessions", r#"{"mode":"Plan"}"#, 400, "INVALID_REQUEST"),
    ("POST", "/v3/sessions", r#"{"sessionId":"#, 400, "INVALID_REQUEST"),
    ("POST", "/v3/sessions/s/turns", "", 400, "INVALID_REQUEST"),
    ("POST", "/v3/sessions/s/turns", "{}", 400, "INVALID_REQUEST"),
    ("POST", "/v3/sessions/s/turns", r#"{"content":""}"#, 400, "INVALID_REQUEST"),
    ("POST", "/v3/sessions/s/turns", r#"{"content":"x","mode":"plam"}"#, 400, "INVALID_REQUEST"),
    ("POST", "/v3/sessions/s/turns", r#"{"content":"x","turnId":"a b"}"#, 400, "INVALID_REQUEST"),
    ("POST", "/v3/sessions/s/turns", r#"{"content":"x","writerId":""}"#, 400, "INVALID_REQUEST"),
    ("POST", "/v3/sessions/s/turns", r#"{"content":"x","lastSeenSeq":0}"#, 409, "CONFLICT"),
    ("GET", "/v3/sessions/s/events?afterSeq=-1", "", 400, "INVALID_REQUEST"),
    ("GET", "/v3/sessions/s/events?afterSeq=1.5", "", 400, "INVALID_REQUEST"),
    ("GET", "/v3/sessions/s/events?afterSeq=99999999999999999999", "", 400, "INVALID_REQUEST"),
    ("GET", "/v3/sessions/s/events?limit=0", "", 400, "INVALID_REQUEST"),
    ("GET", "/v3/sessions/s/events?limit=1001", "", 400, "INVALID_REQUEST"),
    ("GET", "/v3/sessions/s/events?timeout=soon", "", 400, "INVALID_REQUEST"),
    ("POST", "/v3/sessions/s/permissions/p", "{}", 400, "INVALID_REQUEST"),
    ("POST", "/v3/sessions/s/permissions", r#"{"approved":true}"#, 400, "INVALID_REQUEST"),
    (
        "POST",
        "/v3/sessions/s/permissions/p",
        r#"{"requestId":"q","approved":true}"#,
        400,
        "INVALID_REQUEST",
    ),
    ("POST", "/v3/sessions/s/permissions/p", r#"{"approved":true}"#, 404, "NOT_FOUND"),
    (
        "POST",
        "/v3/sessions/s/permissions/p",
        r#"{"decision":"allow","approved":false}"#,
        400,
        "INVALID_REQUEST",
    ),
    ("GET", "/v3/sessions/s/nothing", "", 404, "NOT_FOUND"),
    ("PUT", "/v3/sessions/s", "", 405, "METHOD_NOT_ALLOWED"),
    ("DELETE", "/v3/sessions", "", 405, "METHOD_NOT_ALLOWED"),
    ("GET", "/v3/sessions/s/turns", "", 405, "METHOD_NOT_ALLOWED"),
    ("GET", "/v3/sessions/s/cancel", "", 405, "METHOD_NOT_ALLOWED"),
    ("POST", "/v3/sessions/s/events", "", 405, "METHOD_NOT_ALLOWED"),
    ("POST", "/v3/sse/events?sessionId=s", "", 405, "METHOD_NOT_ALLOWED"),
];

#[test]
fn invalid_requests_are_refused_with_their_codes() {
    let (_home, api) = started();
    api.create("s");
    let too_long = format!("/v3/sessions/{}", "x".repeat(65));
    let too_long = ("GET", too_long.as_str(), "", 400, "INVALID_REQUEST");
    for &(method, path, body, status, code) in REFUSED.iter().chain([&too_long]) {
        let reply = api.ask(method, path, body);
        assert_eq!(reply.status, status, "{method} {path} {body}: {}", reply.body);
        assert_eq!(reply.field("code"), code, "{method} {path} {body}: {}", reply.body);
        if status == 405 {
            assert!(reply.head.contains("\r\nAllow: "), "{}", reply.head);
        }
    }
    let typed = api.send("POST", "/v3/sessions/s/turns", "Content-Type: text/plain\r\n", b"{}");
    answer(typed.unwrap()).unwrap().expect(415);
    let nothing = r#"{"ok":true,"cancelled":0,"cancelledQueued":0,"cancelledActive":false}"#;
    let cancelled = api.post("/v3/sessions/s/cancel", "").expect(200).body;
    let number = nothing.replace("false", "0");
    assert!([nothing, &number].contains(&cancelled.as_str()), "{cancelled}");
    // None of these requests changed anything.
    assert_eq!(api.events("s", 0).len(), 1);
    assert_eq!(api.get("/v3/metrics").number("sessionCount"), 1);
}

#[test]
fn a_turn_of_four_mebibytes_is_accepted_and_one_byte_more_is_not() {
    const LIMIT: usize = 4 << 20;
    let (home, api) = started();
    api.create("s");
    let body = |length: usize| {
        let frame = r#"{"turnId":"t","content":""}"#;
        frame.replace(r#""""#, &format!("\"{}\"", "ü".repeat((length - frame.len()) / 2)))
    };
    let exact = body(LIMIT - 1) + " ";
    assert_eq!(exact.len(), LIMIT);
    let refused = api.ask("POST", "/v3/sessions/s/turns", &(exact.clone() + " ")).expect(413);
    assert_eq!(refused.field("code"), "PAYLOAD_TOO_LARGE");
    assert_eq!(api.events("s", 0).len(), 1);
    api.ask("POST", "/v3/sessions/s/turns", &exact).expect(202);
    let events = api.wait_for("s", "turn.error", "t");
    assert!(events[1].text.len() > LIMIT);
    assert_eq!(crashed(&home).events("s", 0), events);
}

#[test]
fn a_poll_waits_for_the_next_event_up_to_its_timeout() {
    let (_home, api) = started();
    api.create("s");
    let all = api.get("/v3/sessions/s/events").expect(200);
    assert_eq!((all.events().len(), all.number("lastSeq")), (1, 1));
    // Without a timeout, the response is immediate.
    let none = api.get("/v3/sessions/s/events?afterSeq=1").expect(200);
    assert_eq!(none.body, r#"{"events":[],"lastSeq":1}"#);
    let begun = Instant::now();
    let none = api.get("/v3/sessions/s/events?afterSeq=1&timeout=300").expect(200);
    assert_eq!(none.body, r#"{"events":[],"lastSeq":1}"#);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let waiting = api.send("GET", "/v3/sessions/s/events?afterSeq=1&timeout=60000", "", b"");
    eventually("the poll waits", || api.get("/v3/metrics").number("subscriberCount") == 1);
    api.submit("s", "t").expect(202);
    let reply = answer(waiting.unwrap()).unwrap().expect(200);
    assert_eq!(reply.events()[0].name, "turn.queued");
    let events = api.wait_for("s", "turn.error", "t");
    for after in 0..4 {
        for limit in 1..4 {
            let path = format!("/v3/sessions/s/events?afterSeq={after}&limit={limit}");
            let some = api.get(&path).expect(200);
            let expected: Vec<Event> = events.iter().skip(after).take(limit).cloned().collect();
            let seqs = |events: &[Event]| events.iter().map(|event| event.seq).collect::<Vec<_>>();
            assert_eq!(seqs(&some.events()), seqs(&expected));
            assert_eq!(some.number("lastSeq"), 4);
        }
    }
}

#[test]
fn a_client_that_disconnects_is_noticed_at_once() {
    let (_home, api) = started();
    api.create("s");
    let stream = api.follow("s", 0, "").unwrap();
    let poll = api.send("GET", "/v3/sessions/s/events?afterSeq=9&timeout=60000", "", b"").unwrap();
    let subscribers = || api.get("/v3/metrics").number("subscriberCount");
    eventually("both follow", || subscribers() == 2);
    // Long before the heartbeat after 15 s.
    let begun = Instant::now();
    stream.socket.shutdown(Shutdown::Both).unwrap();
    eventually("the stream has ended", || subscribers() == 1);
    drop(poll);
    eventually("the poll has ended", || subscribers() == 0);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_stream_delivers_past_and_new_events_from_where_it_is_told() {
    let (_home, api) = started();
    api.create("s");
    api.submit("s", "t1").expect(202);
    let before = api.wait_for("s", "turn.error", "t1");
    let stream = api.follow("s", 0, "Origin: http://localhost:3000\r\n").unwrap();
    for line in [
        "HTTP/1.1 200 OK\r\n",
        "\r\nContent-Type: text/event-stream\r\n",
        "\r\nCache-Control: no-store, no-transform\r\n",
        "\r\nAccess-Control-Allow-Origin: http://localhost:3000\r\n",
    ] {
        assert!(stream.head.contains(line), "{}", stream.head);
    }
    let shown: Vec<Event> = (0..4).map(|_| stream.event()).collect();
    assert_eq!(names(&shown), names(&before));
    api.submit("s", "t2").expect(202);
    let live: Vec<Event> = (0..3).map(|_| stream.event()).collect();
    assert_eq!(names(&live), ["turn.queued", "turn.start", "turn.error"]);
    assert_gapless(&[shown, live].concat());
    // The header of a browser that reconnects takes precedence over its URL, if it is valid.
    assert_eq!(api.follow("s", 0, "Last-Event-ID: 5\r\n").unwrap().event().seq, 6);
    assert_eq!(api.follow("s", 2, "Last-Event-ID: x\r\n").unwrap().event().seq, 3);
    assert_eq!(api.follow("s", 6, "").unwrap().event().seq, 7);
    // With the token in the URL, where a browser must put it.
    let url = format!("/v3/sse/events?sessionId=s&token={}", api.token);
    let bare = Api { token: String::new(), ..api.clone() };
    bare.ask("GET", "/v3/sessions/s", "").expect(401);
    let mut browser = bare.send("GET", &url, "", b"").unwrap();
    let mut head = [0; 12];
    browser.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 401", "an empty bearer token is not replaced by the query");
}

#[test]
fn a_stream_that_is_not_read_is_closed_and_can_be_resumed() {
    let (_home, api) = started();
    api.create("s");
    let filler = "x".repeat(1 << 20);
    let stalled = api.send("GET", "/v3/sse/events?sessionId=s", "", b"").unwrap();
    let quick = api.follow("s", 0, "").unwrap();
    assert_eq!(quick.event().seq, 1);
    for turn in 0..12 {
        let body = format!(r#"{{"turnId":"t{turn}","content":"{filler}"}}"#);
        api.post("/v3/sessions/s/turns", &body).expect(202);
        while quick.event().name != "turn.error" {}
    }
    eventually("the stalled one is closed", || {
        api.get("/v3/metrics").number("subscriberCount") == 1
    });
    // It received the first events, and can request the rest.
    let mut bytes = Vec::new();
    drop((&stalled).take(64 << 20).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    let received = text.split("\n\n").filter(|part| part.starts_with("id: ")).count();
    let whole = if text.ends_with("\n\n") { received } else { received.saturating_sub(1) };
    let rest = api.events("s", whole as u64);
    assert_eq!((rest[0].seq, rest.last().unwrap().seq), (whole as u64 + 1, 37));
    assert_gapless(&rest);
}

#[test]
fn deleting_a_session_ends_its_streams_and_removes_its_files() {
    let (home, api) = started();
    api.create("s");
    let stream = api.follow("s", 1, "").unwrap();
    let poll = api.send("GET", "/v3/sessions/s/events?afterSeq=1&timeout=60000", "", b"").unwrap();
    eventually("both follow", || api.get("/v3/metrics").number("subscriberCount") == 2);
    let deleted = api.ask("DELETE", "/v3/sessions/s", "");
    assert_eq!((deleted.status, deleted.body.as_str()), (204, ""));
    assert_eq!((stream.next(), stream.next()), (Delivery::StreamEnd, Delivery::Closed));
    assert_eq!(answer(poll).unwrap().expect(200).events(), []);
    api.get("/v3/sessions/s").expect(404);
    assert_eq!(api.get("/v3/sessions").body, r#"{"sessions":[],"next":null}"#);
    let sessions = home.file("../sessions");
    assert!(!sessions.join("s").exists());
    assert!(std::fs::read_dir(sessions.join(".deleted")).unwrap().next().is_none());
    // Its id can be used again, for another session.
    api.create("s");
    assert_eq!(api.events("s", 0).len(), 1);
}

#[test]
fn a_stop_ends_streams_and_answers_polls() {
    for command in ["daemon stop", "daemon restart"] {
        let (home, api) = started();
        api.create("s");
        let streams: Vec<_> = (0..5).map(|_| api.follow("s", 0, "").unwrap()).collect();
        let poll = "/v3/sessions/s/events?afterSeq=1&timeout=60000";
        let polls: Vec<_> = (0..5).map(|_| api.send("GET", poll, "", b"").unwrap()).collect();
        eventually("all follow", || api.get("/v3/metrics").number("subscriberCount") == 10);
        let begun = Instant::now();
        home.opta(command).stdout(ANYTHING).run();
        let took = begun.elapsed();
        for stream in streams {
            assert_eq!(stream.event().seq, 1);
            assert_eq!((stream.next(), stream.next()), (Delivery::StreamEnd, Delivery::Closed));
        }
        for poll in polls {
            assert_eq!(answer(poll).unwrap().expect(200).body, r#"{"events":[],"lastSeq":1}"#);
        }
        // Nothing was in flight, so the grace period is not used.
        assert!(took < Duration::from_secs(10), "{took:?}");
        let log = std::fs::read_to_string(home.file("daemon.log")).unwrap();
        assert!(!log.contains("what was in flight was cut"), "{log}");
    }
}

#[test]
fn a_stop_does_not_wait_for_a_stream_that_is_not_read() {
    let (home, api) = started();
    api.create("s");
    let stalled = api.send("GET", "/v3/sse/events?sessionId=s", "", b"").unwrap();
    let filler = "x".repeat(1 << 20);
    for turn in 0..8 {
        let body = format!(r#"{{"turnId":"t{turn}","content":"{filler}"}}"#);
        api.post("/v3/sessions/s/turns", &body).expect(202);
    }
    api.wait_for("s", "turn.error", "t7");
    let begun = Instant::now();
    home.opta("daemon stop").stdout(ANYTHING).run();
    // Well before the daemon would give up writing to it.
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    drop(stalled);
}

#[test]
fn a_follower_receives_every_event_once_in_order_across_restarts_and_crashes() {
    let (home, api) = started();
    api.create("s");
    let (mut api, mut after, mut seen) = (api, 0, Vec::new());
    for round in 0..8 {
        let stream = api.follow("s", after, "").unwrap();
        let writer = api.clone();
        let submitter = thread::Builder::new().name("submit".into());
        let submitting = move || {
            for number in 0..200 {
                let body = format!(r#"{{"turnId":"r{round}_{number}","content":"x"}}"#);
                if writer.try_ask("POST", "/v3/sessions/s/turns", &body).is_none() {
                    return;
                }
            }
        };
        let submitter = submitter.spawn(submitting).unwrap();
        for _ in 0..fastrand::u64(5..60) {
            let event = stream.event();
            after = event.seq;
            seen.push(event);
        }
        // The daemon crashes or restarts, or the client disconnects.
        match round % 3 {
            0 => drop(crashed(&home)),
            1 => drop(home.opta("daemon restart").stdout(ANYTHING).stderr(ANYTHING).run()),
            _ => stream.socket.shutdown(Shutdown::Both).unwrap(),
        }
        submitter.join().unwrap();
        api = Api::of(&home);
    }
    let stream = api.follow("s", after, "").unwrap();
    api.submit("s", "the-last-one").expect(202);
    loop {
        let event = stream.event();
        let last = event.name == "turn.error" && event.turn_id == "the-last-one";
        seen.push(event);
        if last {
            break;
        }
    }
    assert_gapless(&seen);
    assert_eq!(seen[0].seq, 1);
    assert_eq!(api.events("s", 0), seen);
}

#[test]
fn a_shutdown_if_idle_never_loses_a_turn() {
    let (home, api) = started();
    api.create("s");
    let mut known = 1;
    for round in 0..6 {
        let api = Api::of(&home);
        let writer = api.clone();
        let submitting = move || {
            let submit = |n| format!(r#"{{"turnId":"r{round}_{n}","content":"x"}}"#);
            (0..50)
                .map_while(|n| writer.try_ask("POST", "/v3/sessions/s/turns", &submit(n)))
                .take_while(|reply| reply.status == 202)
                .count() as u64
        };
        let thread = thread::Builder::new().name("submit".into()).spawn(submitting).unwrap();
        let mut refused = 0;
        while api.post("/v3/shutdown", r#"{"ifIdle":true}"#).status == 409 {
            refused += 1;
            assert!(refused < 100_000);
        }
        let accepted = thread.join().unwrap();
        home.wait_for_end();
        home.start();
        let api = Api::of(&home);
        let events = api.events("s", 0);
        assert_gapless(&events);
        let interrupted = events.iter().filter(|event| event.text.contains("\"interrupted\""));
        assert_eq!(interrupted.count(), 0, "it was idle");
        known += accepted * 3;
        assert_eq!(events.len() as u64, known, "round {round}: {accepted} turns");
    }
}

#[test]
fn idle_sessions_use_no_descriptors() {
    let (home, _) = started();
    let pid = home.daemon_info().pid();
    let api = Api::of(&home);
    let count = || std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let before = count();
    for number in 0..100 {
        api.create(&format!("s{number}"));
        if number % 4 == 0 {
            api.submit(&format!("s{number}"), "t").expect(202);
        }
    }
    eventually("all are idle", || count() <= before + 3);
    assert_eq!(api.get("/v3/metrics").number("sessionCount"), 100);
}

#[test]
fn polls_on_all_connections_are_answered() {
    let (_home, api) = started();
    api.create("s");
    let poll = "/v3/sessions/s/events?afterSeq=1&timeout=60000";
    let polls: Vec<_> = (0..250).map(|_| api.send("GET", poll, "", b"").unwrap()).collect();
    eventually("all follow", || api.get("/v3/metrics").number("subscriberCount") == 250);
    api.submit("s", "t").expect(202);
    for poll in polls {
        assert_eq!(answer(poll).unwrap().expect(200).events()[0].name, "turn.queued");
    }
    api.wait_for("s", "turn.error", "t");
}

#[test]
fn a_session_survives_a_lack_of_descriptors() {
    need!("/proc", "prlimit");
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    api.create("s");
    api.submit("s", "before").expect(202);
    api.wait_for("s", "turn.error", "before");
    let pid = home.daemon_info().pid();
    let limit = |count: &str| {
        let mut prlimit = std::process::Command::new("prlimit");
        prlimit.args(["--pid", &pid.to_string(), &format!("--nofile={count}:4096")]);
        assert!(prlimit.status().unwrap().success());
    };
    let open = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    eventually("a turn is refused for lack of a descriptor", || {
        // One more than are open, for the connection of the request.
        limit(&(open() + 1).to_string());
        let reply = api.try_ask("POST", "/v3/sessions/s/turns", r#"{"content":"x"}"#);
        limit("1024");
        reply.is_some_and(|reply| reply.status == 500 && reply.field("code") == "STORAGE_ERROR")
    });
    api.submit("s", "after").expect(202);
    let events = api.wait_for("s", "turn.error", "after");
    assert_gapless(&events);
}

#[test]
fn a_request_sent_during_a_poll_is_answered_after_it() {
    let (_home, api) = started();
    api.create("s");
    let (port, token) = (api.port, &api.token);
    let head = format!("Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n");
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    // A poll, and the next request before the first is answered.
    let poll = format!("GET /v3/sessions/s/events?afterSeq=1&timeout=60000 HTTP/1.1\r\n{head}\r\n");
    let next = format!("GET /v3/health HTTP/1.1\r\n{head}Connection: close\r\n\r\n");
    socket.write_all((poll + &next).as_bytes()).unwrap();
    eventually("the poll waits", || api.get("/v3/metrics").number("subscriberCount") == 1);
    api.submit("s", "t").expect(202);
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
    assert!(text.contains("turn.queued") && text.contains("uptime"), "{text}");
}
