//! Requests that have broken other servers.

use std::sync::atomic::AtomicBool;

use super::*;

#[test]
fn a_burst_of_200_connections_is_answered() {
    if !alone("hostile::a_burst_of_200_connections_is_answered", 1024) {
        return;
    }
    let daemon = Daemon::start();
    let before = Resources::count();
    for _ in 0..5 {
        let mut clients: Vec<Client> = (0..200).map(|_| daemon.connect()).collect();
        for client in &mut clients {
            client.send(HEALTH);
        }
        for client in &mut clients {
            assert_eq!(client.answer().status, 200);
        }
    }
    before.come_back();
}

#[test]
fn http_2_is_refused_and_leaves_nothing_behind() {
    if !alone("hostile::http_2_is_refused_and_leaves_nothing_behind", 256) {
        return;
    }
    let daemon = Daemon::start();
    let before = Resources::count();
    for _ in 0..50 {
        for request in ["GET / HTTP/2.0\r\nHost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let answer = daemon.ask(request);
            assert_eq!((answer.status, answer.closes()), (505, true));
        }
    }
    before.come_back();
}

#[test]
fn what_is_hidden_behind_an_ambiguous_request_is_not_served() {
    let daemon = Daemon::start();
    let ambiguous = [
        ("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\
             Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            411,
        ),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\nHELLO", 400),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5, 5\r\n\r\nHELLO", 400),
        (
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\
             Content-Length: 5\r\n\r\nHELLO",
            400,
        ),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\n folded: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: localhost\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nA: b\0\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nA: b\rContent-Length: 9\r\n\r\n", 400),
        ("GET http://localhost/v3/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        ("GET //localhost/v3/health HTTP/1.1\r\nHost: evil.com\r\nContent-Length: 1\r\n\r\n", 421),
        // A body that was not read, because nobody may send it.
        ("POST /v3/metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n", 401),
    ];
    for (request, status) in ambiguous {
        let mut client = daemon.connect();
        client.send(&(request.to_owned() + HEALTH));
        let answer = client.answer();
        assert_eq!((answer.status, answer.closes()), (status, true), "{request}");
        assert!(client.is_ended(), "{request}");
    }
    assert!(daemon.is_healthy());
}

#[test]
fn pipelined_requests_are_answered_in_turn_by_one_thread() {
    if !alone("hostile::pipelined_requests_are_answered_in_turn_by_one_thread", 256) {
        return;
    }
    const COUNT: usize = 5000;
    let daemon = Daemon::start();
    let before = Resources::count();
    let mut client = daemon.connect();
    let mut writer = client.stream.try_clone().unwrap();
    let sending = thread::Builder::new().spawn(move || {
        for number in 0..COUNT {
            let request = HEALTH.replace("GET", ["GET", "PUT"][number % 2]);
            writer.write_all(request.as_bytes()).unwrap();
        }
    });
    for number in 0..COUNT {
        assert_eq!(client.answer().status, [200, 405][number % 2], "{number}");
    }
    let threads = Resources::count().threads;
    assert!(threads <= before.threads.map(|threads| threads + 2));
    sending.unwrap().join().unwrap();
    drop(client);
    before.come_back();
}

#[test]
fn a_request_line_without_end_is_refused_in_bounded_memory() {
    if !alone("hostile::a_request_line_without_end_is_refused_in_bounded_memory", 256) {
        return;
    }
    let daemon = Daemon::start();
    let before = sys::resident_bytes();
    let mut client = daemon.connect();
    client.send("GET /");
    let piece = [b'a'; 64 * 1024];
    let mut sent: u64 = 0;
    while sent < 1 << 30 && client.stream.write_all(&piece).is_ok() {
        sent += piece.len() as u64;
    }
    assert!(sent < 1 << 28, "{sent} bytes were taken");
    let more = sys::resident_bytes().saturating_sub(before);
    assert!(more < 4 << 20, "{more} bytes more");
    assert!(daemon.is_healthy());
}

#[test]
fn the_refusal_reaches_who_is_still_sending() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    client.send(&("GET /".to_owned() + &"a".repeat(200 * 1024)));
    assert_eq!(client.answer().status, 431);
}

#[test]
fn when_200_dribblers_have_left_nothing_is_left_of_them() {
    if !alone("hostile::when_200_dribblers_have_left_nothing_is_left_of_them", 1024) {
        return;
    }
    let deadlines = Deadlines { head: Duration::from_secs(2), ..Deadlines::default() };
    let daemon = Daemon::start_with(deadlines, || {});
    let before = Resources::count();
    let mut clients: Vec<Client> = (0..200).map(|_| daemon.connect()).collect();
    for byte in "GET /v3/he".chars() {
        for client in &mut clients {
            // The first may be told already that it is too slow.
            drop(client.stream.write_all(&[byte as u8]));
        }
        assert!(daemon.is_healthy());
    }
    for client in &mut clients {
        assert_eq!(client.answer().status, 408);
    }
    drop(clients);
    before.come_back();
}

#[test]
fn a_panic_is_one_request_s_misfortune() {
    if !alone("hostile::a_panic_is_one_request_s_misfortune", 1024) {
        return;
    }
    let broken = Arc::new(AtomicBool::new(true));
    let fault = Arc::clone(&broken);
    let daemon = Daemon::start_with(Deadlines::default(), move || {
        assert!(!fault.load(Ordering::SeqCst), "broken on purpose");
    });
    let before = Resources::count();
    for _ in 0..300 {
        let answer = daemon.ask(HEALTH);
        assert_eq!(answer.status, 500);
        assert!(answer.body.contains(r#""code":"INTERNAL_ERROR""#));
    }
    broken.store(false, Ordering::SeqCst);
    assert!(daemon.is_healthy());
    before.come_back();
}
