//! From the first connection to the last.

use std::sync::Mutex;
use std::sync::mpsc::Sender;

use super::*;

/// A daemon whose handlers report that they have begun, and wait for a word.
fn slow_daemon() -> (Daemon, Receiver<()>, Sender<()>) {
    let (begun, has_begun) = channel();
    let (word, words) = channel();
    let words: Mutex<Receiver<()>> = Mutex::new(words);
    let daemon = Daemon::start_with(Deadlines::default(), move || {
        begun.send(()).unwrap();
        words.lock().unwrap().recv_timeout(PATIENCE).unwrap();
    });
    (daemon, has_begun, word)
}

#[test]
fn stopping_frees_the_port_and_ends_idle_connections_at_once() {
    let mut daemon = Daemon::start();
    let mut fresh = daemon.connect();
    let mut used = daemon.connect();
    used.send(HEALTH);
    assert_eq!(used.answer().status, 200);
    let (_stopping, all_gone) = daemon.stop();
    drop(TcpListener::bind(("127.0.0.1", daemon.port)).unwrap());
    assert!(fresh.is_ended());
    assert!(used.is_ended());
    all_gone.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn stopping_a_server_that_nobody_talks_to_is_over_at_once() {
    let mut daemon = Daemon::start();
    let (_stopping, all_gone) = daemon.stop();
    assert_eq!(all_gone.try_recv(), Ok(()));
}

#[test]
fn a_request_that_has_begun_is_answered_before_the_end() {
    let (mut daemon, has_begun, word) = slow_daemon();
    let mut client = daemon.connect();
    client.send(HEALTH);
    has_begun.recv_timeout(PATIENCE).unwrap();
    let (_stopping, all_gone) = daemon.stop();
    assert!(all_gone.try_recv().is_err());
    word.send(()).unwrap();
    let answer = client.answer();
    assert_eq!((answer.status, answer.closes()), (200, true));
    assert!(client.is_ended());
    all_gone.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn a_head_that_has_begun_may_be_finished_before_the_end() {
    let mut daemon = Daemon::start();
    let mut client = daemon.connect();
    client.send(HEALTH);
    assert_eq!(client.answer().status, 200);
    client.send("GET /v3/hea");
    let (_stopping, all_gone) = daemon.stop();
    client.send("lth HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status, answer.closes()), (200, true));
    all_gone.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn what_does_not_end_is_cut() {
    let mut daemon = Daemon::start();
    let mut client = daemon.connect();
    // Once it has had an answer, it has surely been accepted.
    client.send(HEALTH);
    assert_eq!(client.answer().status, 200);
    let request = daemon.request("POST", "/v3/shutdown", "{}");
    client.send(request.strip_suffix('}').unwrap());
    let (stopping, all_gone) = daemon.stop();
    assert!(all_gone.try_recv().is_err());
    drop(stopping);
    all_gone.recv_timeout(PATIENCE).unwrap();
    assert!(client.is_ended());
    assert!(daemon.shutdowns.try_recv().is_err());
}

#[test]
fn a_stopped_server_leaves_no_thread_and_no_descriptor() {
    if !alone("life::a_stopped_server_leaves_no_thread_and_no_descriptor", 256) {
        return;
    }
    let before = Resources::count();
    for _ in 0..20 {
        let mut daemon = Daemon::start();
        let clients: Vec<Client> = (0..10).map(|_| daemon.connect()).collect();
        assert!(daemon.is_healthy());
        drop(daemon.stop());
        drop(clients);
        drop(daemon);
    }
    before.come_back_with(0);
}
