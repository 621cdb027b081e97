//! Every limit, at the limit and just beyond it.

use std::sync::{Condvar, Mutex};

use crate::limits::{BODY_BYTES_MAX, CONNECTIONS_MAX, HEAD_BYTES_MAX, HEADERS_MAX};

use super::*;

/// Short enough to wait for, long enough for a busy machine.
const SHORT: Duration = Duration::from_millis(300);

fn short() -> Deadlines {
    Deadlines { idle: SHORT, head: SHORT, body: SHORT, write: SHORT, drain: SHORT, health: SHORT }
}

#[test]
fn a_head_of_16_kib_is_accepted_and_one_byte_more_is_not() {
    let daemon = Daemon::start();
    for (bytes, status) in [(HEAD_BYTES_MAX, 200), (HEAD_BYTES_MAX + 1, 431)] {
        let padding = "a".repeat(bytes - HEALTH.len() - 5);
        let request = HEALTH.replace("\r\n\r\n", &format!("\r\nA: {padding}\r\n\r\n"));
        assert_eq!(request.len(), bytes);
        let reply = daemon.ask(&request);
        assert_eq!((reply.status, reply.closes()), (status, status != 200));
    }
}

#[test]
fn the_64th_header_is_accepted_and_the_65th_is_not() {
    let daemon = Daemon::start();
    for (headers, status) in [(HEADERS_MAX, 200), (HEADERS_MAX + 1, 431)] {
        let more = "\r\nA: b".repeat(headers - 1);
        let request = HEALTH.replace("\r\n\r\n", &(more + "\r\n\r\n"));
        assert_eq!(daemon.ask(&request).status, status);
    }
}

#[test]
fn a_body_of_1_mib_is_accepted_and_one_byte_more_is_not() {
    let daemon = Daemon::start();
    for (bytes, status) in [(BODY_BYTES_MAX, 202), (BODY_BYTES_MAX + 1, 413)] {
        let body = "{}".to_owned() + &" ".repeat(bytes - 2);
        let reply = daemon.ask(&daemon.request("POST", "/v3/shutdown", &body));
        assert_eq!((reply.status, reply.closes()), (status, status != 202));
    }
}

#[test]
fn a_declared_length_is_not_trusted() {
    let daemon = Daemon::start();
    for length in ["1000000000000000", "18446744073709551615", "99999999999999999999999"] {
        let request = daemon.request("POST", "/v3/shutdown", "{}");
        let request = request.replace("Content-Length: 2", &format!("Content-Length: {length}"));
        let reply = daemon.ask(&request);
        assert_eq!(reply.status, 413, "{length}");
        assert!(reply.body.contains(r#""code":"PAYLOAD_TOO_LARGE""#));
    }
    let mut client = daemon.connect();
    let request = daemon.request("POST", "/v3/shutdown", "{}");
    client.send(&request.replace("Content-Length: 2", "Content-Length: 1048576"));
    client.finish_sending();
    assert_eq!(client.reply().status, 400);
    assert!(daemon.shutdowns.try_recv().is_err());
}

#[test]
fn an_idle_connection_is_closed_silently() {
    let daemon = Daemon::start_with(short(), || {});
    let mut fresh = daemon.connect();
    let mut used = daemon.connect();
    used.send(HEALTH);
    assert_eq!(used.reply().status, 200);
    assert!(fresh.is_ended());
    assert!(used.is_ended());
}

/// Sends `text` byte by byte, again and again; returns the reply, and the time until it came.
fn dribble(client: &mut Client, text: &[u8]) -> (TestReply, Duration) {
    let begun = Instant::now();
    for byte in text.iter().cycle() {
        assert!(begun.elapsed() < TIMEOUT, "no reply");
        if client.stream.write_all(&[*byte]).is_err() || !client.is_silent_briefly() {
            break;
        }
    }
    (client.reply(), begun.elapsed())
}

impl Client {
    /// Like [`Client::is_silent_for`], but a reply stays unread.
    fn is_silent_briefly(&mut self) -> bool {
        let time = Some(Duration::from_millis(20));
        self.stream.set_read_timeout(time).unwrap();
        let outcome = self.stream.peek(&mut [0; 1]);
        self.stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        outcome.is_err()
    }
}

#[test]
fn a_slow_client_does_not_extend_the_deadline_of_a_head() {
    let daemon = Daemon::start_with(short(), || {});
    let mut client = daemon.connect();
    client.send("GET /");
    let (reply, after) = dribble(&mut client, b"a");
    assert_eq!((reply.status, reply.closes()), (408, true));
    assert!(after >= SHORT / 2 && after < TIMEOUT / 2, "{after:?}");
}

#[test]
fn a_slow_client_does_not_extend_the_deadline_of_a_body() {
    let daemon = Daemon::start_with(short(), || {});
    let mut client = daemon.connect();
    let request = daemon.request("POST", "/v3/shutdown", "{}");
    client.send(&request.replace("Content-Length: 2", "Content-Length: 5000"));
    let (reply, after) = dribble(&mut client, b" ");
    assert_eq!((reply.status, reply.closes()), (408, true));
    assert!(after < TIMEOUT / 2, "{after:?}");
    assert!(daemon.shutdowns.try_recv().is_err());
}

#[test]
fn a_slow_request_does_not_shorten_the_idle_timeout_after_it() {
    let deadlines = Deadlines { idle: TIMEOUT, ..short() };
    let daemon = Daemon::start_with(deadlines, || {});
    let mut client = daemon.connect();
    client.send("GET /v3/hea");
    assert!(client.is_silent_briefly());
    client.send("lth HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.reply().status, 200);
    assert!(client.is_silent_for(SHORT * 2));
    client.send(HEALTH);
    assert_eq!(client.reply().status, 200);
}

#[test]
fn a_client_that_does_not_read_replies_is_disconnected() {
    let deadlines = Deadlines { write: SHORT, ..Deadlines::default() };
    let mut daemon = Daemon::start_with(deadlines, || {});
    let client = daemon.connect();
    client.stream.set_write_timeout(Some(SHORT)).unwrap();
    // Until the buffers of both directions are full.
    let (many, begun) = (HEALTH.repeat(1000), Instant::now());
    while (&client.stream).write_all(many.as_bytes()).is_ok() {
        assert!(begun.elapsed() < TIMEOUT, "the buffers never fill");
    }
    let (_stopping, all_ended) = daemon.stop();
    all_ended.recv_timeout(TIMEOUT).unwrap();
}

/// Handlers wait here until the test opens it.
#[derive(Default)]
struct Barrier {
    waiting: Mutex<usize>,
    changed: Condvar,
}

impl Barrier {
    const OPEN: usize = usize::MAX;

    fn wait(&self) {
        let mut waiting = self.waiting.lock().unwrap();
        if *waiting != Barrier::OPEN {
            *waiting += 1;
            self.changed.notify_all();
            let is_closed = |waiting: &mut usize| *waiting != Barrier::OPEN;
            drop(self.changed.wait_timeout_while(waiting, TIMEOUT, is_closed));
        }
    }

    fn wait_for(&self, count: usize) {
        let waiting = self.waiting.lock().unwrap();
        let missing = |waiting: &mut usize| *waiting < count;
        let waited = self.changed.wait_timeout_while(waiting, TIMEOUT, missing);
        assert!(*waited.unwrap().0 >= count);
    }

    fn open(&self) {
        *self.waiting.lock().unwrap() = Barrier::OPEN;
        self.changed.notify_all();
    }
}

/// Descriptors of the tests with as many connections as there can be, which have both ends.
const DESCRIPTORS: u32 = 4096;

#[test]
fn one_more_connection_replaces_the_longest_waiting_stranger() {
    let name = "limits::one_more_connection_replaces_the_longest_waiting_stranger";
    if !is_alone(name, DESCRIPTORS) {
        return;
    }
    let daemon = Daemon::start();
    let mut clients: Vec<Client> = (0..CONNECTIONS_MAX).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        client.send(HEALTH);
        assert_eq!(client.reply().status, 200);
    }
    // One has shown the token; one has begun a request, and one has just had a reply.
    clients[0].send(&daemon.request("GET", "/v3/metrics", ""));
    assert_eq!(clients[0].reply().status, 200);
    clients[1].send("GET /v3/hea");
    clients[2].send(HEALTH);
    assert_eq!(clients[2].reply().status, 200);
    assert!(daemon.is_healthy());
    assert!(clients[1].is_ended());
    for (index, client) in clients.iter_mut().enumerate().filter(|(index, _)| *index != 1) {
        client.send(HEALTH);
        assert_eq!(client.reply().status, 200, "{index}");
    }
}

#[test]
fn one_more_connection_is_refused_while_all_with_the_token_are_busy() {
    let name = "limits::one_more_connection_is_refused_while_all_with_the_token_are_busy";
    if !is_alone(name, DESCRIPTORS) {
        return;
    }
    let barrier = Arc::new(Barrier::default());
    let handlers = Arc::clone(&barrier);
    let daemon = Daemon::start_with(Deadlines::default(), move || handlers.wait());
    let before = Resources::count();
    let mut clients: Vec<Client> = (0..CONNECTIONS_MAX).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        client.send(&daemon.request("GET", "/v3/metrics", ""));
    }
    barrier.wait_for(CONNECTIONS_MAX);
    for _ in 0..3 {
        let mut late = daemon.connect();
        let reply = late.reply();
        assert_eq!((reply.status, reply.closes()), (503, true));
        assert_eq!(reply.header("Retry-After"), Some("1"));
    }
    barrier.open();
    for client in &mut clients {
        assert_eq!(client.reply().status, 200);
    }
    drop(clients);
    before.wait_until_released();
    assert!(daemon.is_healthy());
}

#[test]
fn an_idle_connection_with_the_token_is_closed_if_there_is_no_stranger() {
    let name = "limits::an_idle_connection_with_the_token_is_closed_if_there_is_no_stranger";
    if !is_alone(name, DESCRIPTORS) {
        return;
    }
    let daemon = Daemon::start();
    let mut clients: Vec<Client> = (0..CONNECTIONS_MAX).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        client.send(&daemon.request("GET", "/v3/metrics", ""));
        assert_eq!(client.reply().status, 200);
    }
    assert!(daemon.is_healthy());
    assert!(clients[0].is_ended());
}

#[test]
fn without_descriptors_a_connection_replaces_the_longest_idle_one() {
    if !is_alone("limits::without_descriptors_a_connection_replaces_the_longest_idle_one", 64) {
        return;
    }
    let daemon = Daemon::start();
    let mut idle = daemon.connect();
    idle.send(HEALTH);
    assert_eq!(idle.reply().status, 200);
    let mut files = exhaust_descriptors();
    drop(files.pop());
    // The client takes the last descriptor; none is left for the server.
    assert!(daemon.is_healthy());
    assert!(idle.is_ended());
}

#[test]
fn without_descriptors_a_connection_waits_until_one_is_free() {
    if !is_alone("limits::without_descriptors_a_connection_waits_until_one_is_free", 65) {
        return;
    }
    let daemon = Daemon::start();
    let mut files = exhaust_descriptors();
    drop(files.pop());
    let mut client = daemon.connect();
    client.send(HEALTH);
    assert!(client.is_silent_for(SHORT));
    drop(files);
    assert_eq!(client.reply().status, 200);
    let log = std::fs::read_to_string(daemon.directory.join("daemon.log")).unwrap();
    assert!(log.matches("cannot accept").count() <= 1, "{log}");
}

fn exhaust_descriptors() -> Vec<std::fs::File> {
    std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect()
}
