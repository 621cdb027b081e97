//! The end of a server and of its connections.

use std::sync::Mutex;

use crate::server::held::{HeldConnection, Next, Responder};
use crate::sys::Interest;

use super::*;

/// Starts a daemon whose handlers report that they have begun, then wait for a message.
fn slow_daemon() -> (Daemon, Receiver<()>, Sender<()>) {
    let (begun, has_begun) = channel();
    let (resume, resumed) = channel();
    let resumed: Mutex<Receiver<()>> = Mutex::new(resumed);
    let daemon = Daemon::start_with(Deadlines::default(), move || {
        begun.send(()).unwrap();
        resumed.lock().unwrap().recv_timeout(TIMEOUT).unwrap();
    });
    (daemon, has_begun, resume)
}

#[test]
fn stopping_frees_the_port_and_ends_idle_connections_at_once() {
    let mut daemon = Daemon::start();
    let mut fresh = daemon.connect();
    let mut used = daemon.connect();
    used.send(HEALTH);
    assert_eq!(used.reply().status, 200);
    let (_stopping, all_ended) = daemon.stop();
    drop(TcpListener::bind(("127.0.0.1", daemon.port)).unwrap());
    assert!(fresh.is_ended());
    assert!(used.is_ended());
    all_ended.recv_timeout(TIMEOUT).unwrap();
}

#[test]
fn a_server_without_connections_stops_at_once() {
    let mut daemon = Daemon::start();
    let (_stopping, all_ended) = daemon.stop();
    assert_eq!(all_ended.try_recv(), Ok(()));
}

#[test]
fn a_request_in_progress_is_answered_before_the_server_ends() {
    let (mut daemon, has_begun, resume) = slow_daemon();
    let mut client = daemon.connect();
    client.send(&daemon.request("GET", "/v3/metrics", ""));
    has_begun.recv_timeout(TIMEOUT).unwrap();
    let (_stopping, all_ended) = daemon.stop();
    assert!(all_ended.try_recv().is_err());
    resume.send(()).unwrap();
    let reply = client.reply();
    assert_eq!((reply.status, reply.closes()), (200, true));
    assert!(client.is_ended());
    all_ended.recv_timeout(TIMEOUT).unwrap();
}

#[test]
fn a_request_whose_client_has_left_is_given_up_and_so_is_one_of_a_server_that_stops() {
    let (begun, has_begun) = channel();
    let mut daemon = Daemon::start_with(Deadlines::default(), move || begun.send(()).unwrap());
    let request = daemon.request("POST", "/v3/operations/endless", "{}");
    let mut client = daemon.connect();
    client.send(&request);
    has_begun.recv_timeout(TIMEOUT).unwrap();
    assert!(daemon.unawaited.try_recv().is_err());
    drop(client);
    daemon.unawaited.recv_timeout(TIMEOUT).unwrap();
    // One that has sent its next request waits for both replies.
    let mut client = daemon.connect();
    client.send(&request.repeat(2));
    has_begun.recv_timeout(TIMEOUT).unwrap();
    assert!(daemon.unawaited.try_recv().is_err());
    let (_stopping, all_ended) = daemon.stop();
    assert_eq!(client.reply().status, 404);
    daemon.unawaited.recv_timeout(TIMEOUT).unwrap();
    all_ended.recv_timeout(TIMEOUT).unwrap();
}

#[test]
fn a_partial_head_can_be_completed_while_the_server_stops() {
    let mut daemon = Daemon::start();
    let mut client = daemon.connect();
    client.send(HEALTH);
    assert_eq!(client.reply().status, 200);
    client.send("GET /v3/hea");
    let (_stopping, all_ended) = daemon.stop();
    client.send("lth HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let reply = client.reply();
    assert_eq!((reply.status, reply.closes()), (200, true));
    all_ended.recv_timeout(TIMEOUT).unwrap();
}

#[test]
fn a_client_that_takes_its_replies_late_does_not_delay_the_stop() {
    let daemon = Daemon::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = Client::connect(listener.local_addr().unwrap().port());
    let mut held = HeldConnection::new(listener.accept().unwrap().0, TIMEOUT).unwrap();
    let mut responder = Responder::new(Arc::clone(&daemon.app));
    // Until the client has to read before the last reply can be written. Each time, all that it has
    // sent arrives in one piece.
    client.stream.set_nodelay(true).unwrap();
    let wait = |held: &HeldConnection| {
        let ready = sys::wait_any(&[held.interest()], Some(TIMEOUT)).unwrap();
        assert!(ready[0], "it waits for another request");
    };
    let mut asked = 0;
    while !matches!(held.interest().1, Interest::Write) {
        client.send(&HEALTH.repeat(50));
        asked += 50;
        wait(&held);
        assert!(responder.advance(&mut held) == Next::Hold);
    }
    responder.stopping = true;
    thread::scope(|scope| {
        scope.spawn(|| (0..asked).for_each(|_| assert_eq!(client.reply().status, 200)));
        while responder.advance(&mut held) == Next::Hold {
            wait(&held);
        }
    });
}

#[test]
fn dropping_a_stopping_server_shuts_down_its_connections() {
    let mut daemon = Daemon::start();
    let mut client = daemon.connect();
    // After a reply, its connection has been accepted.
    client.send(HEALTH);
    assert_eq!(client.reply().status, 200);
    let request = daemon.request("POST", "/v3/shutdown", "{}");
    client.send(request.strip_suffix('}').unwrap());
    let (stopping, all_ended) = daemon.stop();
    assert!(all_ended.try_recv().is_err());
    drop(stopping);
    all_ended.recv_timeout(TIMEOUT).unwrap();
    assert!(client.is_ended());
    assert!(daemon.shutdowns.try_recv().is_err());
}

#[test]
fn a_stopped_server_leaks_no_thread_and_no_descriptor() {
    if !is_alone("life::a_stopped_server_leaks_no_thread_and_no_descriptor", 256) {
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
    before.wait_until_released_but(0);
}
