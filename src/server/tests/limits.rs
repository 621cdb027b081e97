//! Every limit, at the limit and one past it.

use std::sync::{Condvar, Mutex};

use crate::limits::{BODY_BYTES_MAX, CONNECTIONS_MAX, HEAD_BYTES_MAX, HEADERS_MAX};

use super::*;

/// Short enough to wait for, long enough for a noisy machine not to trip over.
const SHORT: Duration = Duration::from_millis(300);

fn short() -> Deadlines {
    Deadlines { idle: SHORT, head: SHORT, body: SHORT, write: SHORT, drain: SHORT }
}

#[test]
fn a_head_of_16_kib_is_served_and_one_byte_more_is_not() {
    let daemon = Daemon::start();
    for (bytes, status) in [(HEAD_BYTES_MAX, 200), (HEAD_BYTES_MAX + 1, 431)] {
        let padding = "a".repeat(bytes - HEALTH.len() - 5);
        let request = HEALTH.replace("\r\n\r\n", &format!("\r\nA: {padding}\r\n\r\n"));
        assert_eq!(request.len(), bytes);
        let answer = daemon.ask(&request);
        assert_eq!((answer.status, answer.closes()), (status, status != 200));
    }
}

#[test]
fn headers_64_are_served_and_65_are_not() {
    let daemon = Daemon::start();
    for (headers, status) in [(HEADERS_MAX, 200), (HEADERS_MAX + 1, 431)] {
        let more = "\r\nA: b".repeat(headers - 1);
        let request = HEALTH.replace("\r\n\r\n", &(more + "\r\n\r\n"));
        assert_eq!(daemon.ask(&request).status, status);
    }
}

#[test]
fn a_body_of_1_mib_is_read_and_one_byte_more_is_not() {
    let daemon = Daemon::start();
    for (bytes, status) in [(BODY_BYTES_MAX, 202), (BODY_BYTES_MAX + 1, 413)] {
        let body = "{}".to_owned() + &" ".repeat(bytes - 2);
        let answer = daemon.ask(&daemon.request("POST", "/v3/shutdown", &body));
        assert_eq!((answer.status, answer.closes()), (status, status != 202));
    }
}

#[test]
fn a_declared_length_is_never_believed() {
    let daemon = Daemon::start();
    for length in ["1000000000000000", "18446744073709551615", "99999999999999999999999"] {
        let request = daemon.request("POST", "/v3/shutdown", "{}");
        let request = request.replace("Content-Length: 2", &format!("Content-Length: {length}"));
        let answer = daemon.ask(&request);
        assert_eq!(answer.status, 413, "{length}");
        assert!(answer.body.contains(r#""code":"PAYLOAD_TOO_LARGE""#));
    }
    let mut client = daemon.connect();
    let request = daemon.request("POST", "/v3/shutdown", "{}");
    client.send(&request.replace("Content-Length: 2", "Content-Length: 1048576"));
    client.finish_sending();
    assert_eq!(client.answer().status, 400);
    assert!(daemon.shutdowns.try_recv().is_err());
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let daemon = Daemon::start_with(short(), || {});
    let mut fresh = daemon.connect();
    let mut used = daemon.connect();
    used.send(HEALTH);
    assert_eq!(used.answer().status, 200);
    assert!(fresh.is_ended());
    assert!(used.is_ended());
}

/// Sends `text` a byte at a time for ever, and gives back the answer and when it came.
fn dribble(client: &mut Client, text: &[u8]) -> (Answer, Duration) {
    let begun = Instant::now();
    for byte in text.iter().cycle() {
        if client.stream.write_all(&[*byte]).is_err() || !client.is_silent_briefly() {
            break;
        }
    }
    (client.answer(), begun.elapsed())
}

impl Client {
    /// Like [`Client::is_silent_for`], but an answer stays where it is.
    fn is_silent_briefly(&mut self) -> bool {
        let span = Some(Duration::from_millis(20));
        self.stream.set_read_timeout(span).unwrap();
        let outcome = self.stream.peek(&mut [0; 1]);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        outcome.is_err()
    }
}

#[test]
fn dribbling_does_not_stretch_the_deadline_of_a_head() {
    let daemon = Daemon::start_with(short(), || {});
    let mut client = daemon.connect();
    client.send("GET /");
    let (answer, after) = dribble(&mut client, b"a");
    assert_eq!((answer.status, answer.closes()), (408, true));
    assert!(after >= SHORT / 2 && after < PATIENCE / 2, "{after:?}");
}

#[test]
fn dribbling_does_not_stretch_the_deadline_of_a_body() {
    let daemon = Daemon::start_with(short(), || {});
    let mut client = daemon.connect();
    let request = daemon.request("POST", "/v3/shutdown", "{}");
    client.send(&request.replace("Content-Length: 2", "Content-Length: 5000"));
    let (answer, after) = dribble(&mut client, b" ");
    assert_eq!((answer.status, answer.closes()), (408, true));
    assert!(after < PATIENCE / 2, "{after:?}");
    assert!(daemon.shutdowns.try_recv().is_err());
}

#[test]
fn a_slow_request_does_not_shorten_the_patience_with_the_next() {
    let deadlines = Deadlines { idle: PATIENCE, ..short() };
    let daemon = Daemon::start_with(deadlines, || {});
    let mut client = daemon.connect();
    client.send("GET /v3/hea");
    assert!(client.is_silent_briefly());
    client.send("lth HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    assert!(client.is_silent_for(SHORT * 2));
    client.send(HEALTH);
    assert_eq!(client.answer().status, 200);
}

#[test]
fn who_does_not_read_the_answers_is_cut_off() {
    let deadlines = Deadlines { write: SHORT, ..Deadlines::default() };
    let mut daemon = Daemon::start_with(deadlines, || {});
    let client = daemon.connect();
    client.stream.set_write_timeout(Some(SHORT)).unwrap();
    // Until neither side can write any more.
    let many = HEALTH.repeat(1000);
    while (&client.stream).write_all(many.as_bytes()).is_ok() {}
    let (_stopping, all_gone) = daemon.stop();
    all_gone.recv_timeout(PATIENCE).unwrap();
}

/// Handlers wait here until the test lets them go.
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
            drop(self.changed.wait_while(waiting, |waiting| *waiting != Barrier::OPEN));
        }
    }

    fn wait_for(&self, count: usize) {
        let waiting = self.waiting.lock().unwrap();
        let missing = |waiting: &mut usize| *waiting < count;
        let waited = self.changed.wait_timeout_while(waiting, PATIENCE, missing);
        assert!(*waited.unwrap().0 >= count);
    }

    fn open(&self) {
        *self.waiting.lock().unwrap() = Barrier::OPEN;
        self.changed.notify_all();
    }
}

#[test]
fn when_256_are_connected_the_longest_idle_makes_room() {
    if !alone("limits::when_256_are_connected_the_longest_idle_makes_room", 1024) {
        return;
    }
    let daemon = Daemon::start();
    let mut clients: Vec<Client> = (0..CONNECTIONS_MAX).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        client.send(HEALTH);
        assert_eq!(client.answer().status, 200);
    }
    // One has begun a request, one has just had an answer; any of the others may have to go.
    clients[0].send("GET /v3/hea");
    clients[1].send(HEALTH);
    assert_eq!(clients[1].answer().status, 200);
    assert!(daemon.is_healthy());
    clients[0].send("lth HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(clients[0].answer().status, 200);
    let mut served = 0;
    for client in clients.iter_mut().skip(1) {
        // Fails if the server has ended the connection.
        drop(client.stream.write_all(HEALTH.as_bytes()));
        served += usize::from(client.try_answer().is_ok());
    }
    assert_eq!(served, CONNECTIONS_MAX - 2);
}

#[test]
fn when_256_are_busy_the_next_is_told_to_come_back() {
    if !alone("limits::when_256_are_busy_the_next_is_told_to_come_back", 1024) {
        return;
    }
    let barrier = Arc::new(Barrier::default());
    let handlers = Arc::clone(&barrier);
    let daemon = Daemon::start_with(Deadlines::default(), move || handlers.wait());
    let before = Resources::count();
    let mut clients: Vec<Client> = (0..CONNECTIONS_MAX).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        client.send(HEALTH);
    }
    barrier.wait_for(CONNECTIONS_MAX);
    for _ in 0..3 {
        let mut late = daemon.connect();
        let answer = late.answer();
        assert_eq!((answer.status, answer.closes()), (503, true));
        assert_eq!(answer.header("Retry-After"), Some("1"));
    }
    barrier.open();
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    drop(clients);
    before.come_back();
    assert!(daemon.is_healthy());
}

#[test]
fn out_of_descriptors_the_longest_idle_makes_room() {
    if !alone("limits::out_of_descriptors_the_longest_idle_makes_room", 64) {
        return;
    }
    let daemon = Daemon::start();
    let mut idle = daemon.connect();
    idle.send(HEALTH);
    assert_eq!(idle.answer().status, 200);
    let mut files = exhaust_descriptors();
    drop(files.pop());
    // The last descriptor is the client's; none is left for the server's side.
    assert!(daemon.is_healthy());
    assert!(idle.is_ended());
}

#[test]
fn out_of_descriptors_a_connection_waits_until_there_are_some() {
    if !alone("limits::out_of_descriptors_a_connection_waits_until_there_are_some", 65) {
        return;
    }
    let daemon = Daemon::start();
    let mut files = exhaust_descriptors();
    drop(files.pop());
    let mut client = daemon.connect();
    client.send(HEALTH);
    assert!(client.is_silent_for(SHORT));
    drop(files);
    assert_eq!(client.answer().status, 200);
    let log = std::fs::read_to_string(daemon.directory.join("daemon.log")).unwrap();
    assert!(log.matches("cannot accept").count() <= 1, "{log}");
}

fn exhaust_descriptors() -> Vec<std::fs::File> {
    std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect()
}
