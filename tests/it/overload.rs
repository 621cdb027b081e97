//! Many clients, slow clients, and memory that runs out: they cost their own connections, and the
//! owner's commands are answered.

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::api::{Api, field};
use crate::crash::Strace;
use crate::model::Model;
use crate::socket::{Socket, handshake};
use crate::support::{
    ANYTHING, DEADLINE, Daemon, Home, RUNNING, STARTED, eventually, http, need, proc_number,
};

/// Allows this process to open many sockets.
pub fn allow_descriptors() {
    let pid = std::process::id().to_string();
    let allowed = Command::new("prlimit").args(["--pid", &pid, "--nofile=4096:"]).status();
    assert!(allowed.unwrap().success());
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn resident_kib(pid: i32) -> u64 {
    proc_number(pid, "status", "VmRSS:").unwrap()
}

/// Opens 10,000 connections one after another, and sends the same beginning of a request on each.
/// After each 200, `ask` must take little time, and after each 2,000, `act` is called. The daemon
/// must take little memory.
fn ten_thousand_send(
    daemon: Daemon,
    beginning: &str,
    mut ask: impl FnMut(),
    mut act: impl FnMut(usize),
) {
    let mut took = Vec::new();
    // The last ones; the daemon has closed those before them.
    let mut open = VecDeque::new();
    for count in 1..=10_000 {
        let mut stream = connect(daemon.port);
        drop(stream.write_all(beginning.as_bytes()));
        open.push_back(stream);
        if open.len() > 1_100 {
            open.pop_front();
        }
        if count % 200 == 0 {
            let begun = Instant::now();
            ask();
            took.push(begun.elapsed());
        }
        if count % 2_000 == 0 {
            act(count);
        }
    }
    took.sort();
    let median = took[took.len() / 2];
    assert!(median < Duration::from_millis(100), "{median:?}");
    let resident = resident_kib(daemon.pid);
    assert!(resident < 50 * 1024, "{resident} KiB");
}

#[test]
fn ten_thousand_slow_strangers_do_not_keep_the_owner_out() {
    need!("/proc", "prlimit");
    allow_descriptors();
    let home = Home::new();
    let daemon = home.start();
    let api = Api::of(&home);
    let ask = || drop(api.get("/v3/sessions").expect(200));
    ten_thousand_send(daemon, "GET /v3/health HT", ask, |_| {
        home.opta("daemon status").stdout(RUNNING).of(daemon).run();
    });
}

#[test]
fn ten_thousand_connections_that_never_upgrade_do_not_end_a_websocket() {
    need!("/proc", "prlimit");
    allow_descriptors();
    let home = Home::new();
    let daemon = home.start();
    let api = Api::of(&home);
    api.create("s");
    let mut first = Socket::open(&api, "sessionId=s");
    assert_eq!(first.event().name, "session.snapshot");
    // Only the end of the head would show whether it is one.
    let handshake = handshake(daemon.port, &format!("sessionId=s&token={}", api.token));
    let ask = || assert_eq!(Socket::open(&api, "sessionId=s").event().name, "session.snapshot");
    ten_thousand_send(daemon, &handshake, ask, |count| {
        api.submit("s", &format!("t{count}")).expect(202);
        first.events_to("turn.error", &format!("t{count}"));
    });
}

#[test]
fn a_websocket_for_each_of_250_listed_sessions_is_served_among_1_000() {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    (0..1_000).for_each(|number| drop(api.create(&format!("s{number}"))));
    let listed = api.get("/v3/sessions?limit=250").expect(200);
    let ids: Vec<&str> = listed.body.split(r#""sessionId":""#).skip(1).collect();
    let ids: Vec<&str> = ids.iter().map(|rest| rest.split('"').next().unwrap()).collect();
    assert_eq!(ids.len(), 250);
    // A page that is loaded opens all of them at the same time.
    let open = |id: &&str| Socket::open(&api, &format!("sessionId={id}&afterSeq=0"));
    let mut sockets: Vec<Socket> = thread::scope(|scope| {
        let opening: Vec<_> = ids.iter().map(|id| scope.spawn(move || open(id))).collect();
        opening.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for (id, socket) in ids.iter().zip(&mut sockets) {
        let first = socket.text();
        assert!(first.contains(&format!(r#""sessionId":"{id}""#)), "{id}: {first}");
    }
    let metrics = api.get("/v3/metrics").expect(200);
    assert_eq!((metrics.number("subscriberCount"), metrics.number("sessionCount")), (250, 1_000));
    // One that is followed by none, and each tenth of the others.
    api.submit("s0", "t").expect(202);
    for (id, socket) in ids.iter().zip(&mut sockets).step_by(10) {
        api.submit(id, "t").expect(202);
        assert_eq!(socket.event().name, "turn.queued");
    }
    for socket in sockets.iter_mut().step_by(10) {
        assert_eq!(socket.events_to("turn.error", "t").len(), 2);
    }
    assert!(sockets[1].is_silent_for(Duration::from_millis(50)));
}

#[test]
fn a_connection_that_has_shown_the_token_is_not_closed_for_strangers() {
    need!("prlimit");
    allow_descriptors();
    let home = Home::new();
    let daemon = home.start();
    let api = Api::of(&home);
    api.create("one");
    let stream = api.follow("one", 0, "").unwrap();
    stream.event();
    let mut owner = connect(daemon.port);
    let request = format!(
        "GET /v3/metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
        api.token
    );
    let mut ask = || {
        owner.write_all(request.as_bytes()).unwrap();
        let mut reply = [0; 4096];
        let count = owner.read(&mut reply).unwrap();
        assert!(reply[..count].starts_with(b"HTTP/1.1 200 "));
    };
    ask();
    let strangers: Vec<TcpStream> = (0..1_500).map(|_| connect(daemon.port)).collect();
    assert_eq!(http(daemon.port, "GET", "/v3/health", None).0, 200);
    ask();
    drop(strangers);
    api.submit("one", "t1");
    assert_eq!(stream.event().name, "turn.queued");
}

#[test]
fn each_of_512_streams_takes_at_most_24_kib() {
    need!("/proc", "prlimit");
    allow_descriptors();
    let home = Home::new();
    let daemon = home.start();
    let api = Api::of(&home);
    api.create("one");
    let open = || {
        let path = "/v3/sse/events?sessionId=one";
        let mut stream = api.send("GET", path, "", b"").unwrap();
        let mut begun = Vec::new();
        while !begun.ends_with(b"}\n\n") {
            let mut byte = [0];
            assert_eq!(stream.read(&mut byte).unwrap(), 1);
            begun.extend(byte);
        }
        assert!(begun.starts_with(b"HTTP/1.1 200 "));
        stream
    };
    let mut streams = vec![open()];
    let before = resident_kib(daemon.pid);
    streams.extend((1..512).map(|_| open()));
    let each = (resident_kib(daemon.pid) - before) / 511;
    // The frames of a debug build are larger.
    let limit = if cfg!(debug_assertions) { 40 } else { 24 };
    assert!(each <= limit, "{each} KiB");
    let late = api.get("/v3/sse/events?sessionId=one").expect(503);
    assert_eq!(field(&late.body, "code"), Some("BUSY"));
}

#[test]
fn in_256_mib_of_address_space_260_connections_are_answered() {
    let home = Home::new();
    let limited = ["sh", "-c", "ulimit -v 262144 && exec \"$0\" \"$@\""];
    let seen = home.opta("daemon start").within(limited).stdout(STARTED).run();
    let daemon = Daemon { pid: seen.pid(), port: seen.port() };
    let api = Api::of(&home);
    let line = format!("Authorization: Bearer {}\r\n", api.token);
    for (path, header) in [("health", ""), ("health", line.as_str()), ("metrics", line.as_str())] {
        let mut clients: Vec<TcpStream> = (0..260).map(|_| connect(daemon.port)).collect();
        for client in &mut clients {
            write!(client, "GET /v3/{path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n").unwrap();
        }
        for client in &mut clients {
            let mut reply = [0; 16];
            client.read_exact(&mut reply).unwrap();
            assert!(reply.starts_with(b"HTTP/1.1 200 "), "{path}");
        }
    }
    home.opta("daemon status").stdout(RUNNING).of(daemon).run();
}

/// Calls `act` while the `number`th call of each thread of the daemon that maps memory fails, for
/// each number from 2 to `last`. The daemon must survive.
///
/// The first call may be for the list of destructors that `std` makes for a new thread. It asks the
/// system's allocator itself and ends the process if that fails, whatever the program keeps free.
fn survives_failed_mappings(home: &Home, last: usize, act: impl Fn()) {
    let daemon = home.start();
    for call in ["mmap", "mprotect"] {
        for number in 2..=last {
            let inject = format!("inject={call}:error=ENOMEM:when={number}");
            let strace = Strace::attach(home, &["-e", "trace=mmap,mprotect", "-e", &inject], None);
            act();
            drop(strace);
            Api::of(home).get("/v3/metrics").expect(200);
            assert_eq!(home.owner(), Some(daemon.pid), "{inject}");
        }
    }
}

#[test]
fn a_failed_mapping_costs_at_most_a_connection() {
    need!("/proc", "strace");
    let home = Home::new();
    survives_failed_mappings(&home, 5, || {
        let api = Api::of(&home);
        for path in ["/v3/metrics", "/v3/metrics", "/v3/sessions"] {
            assert!([200, 503].contains(&api.get(path).status));
        }
    });
}

#[test]
fn a_failed_mapping_costs_at_most_a_turn() {
    need!("/proc", "strace");
    let (home, model) = (Home::new(), Model::new());
    let url = model.url();
    model.answer_all("run_command", r#"{\"command\":\"true\"}"#);
    survives_failed_mappings(&home, 8, || {
        let stranded = || {
            let log = fs::read_to_string(home.file("daemon.log")).unwrap();
            log.matches("turns cannot run").count()
        };
        let before = stranded();
        let run = home.opta("do --yolo x").env("OPTA_MODEL_URL", &url);
        let mut running = run.stdout(ANYTHING).stderr(ANYTHING).status_in(&[0, 1]).spawn();
        // Without a thread, the turn waits for the next one of its session.
        eventually("it ends", || running.has_ended() || stranded() > before);
        if running.has_ended() {
            running.finish();
        }
    });
}
