//! Requests that broke other servers.

use std::sync::atomic::AtomicBool;

use super::*;

#[test]
fn a_burst_of_200_connections_is_served() {
    if !is_alone("hostile::a_burst_of_200_connections_is_served", 1024) {
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
            assert_eq!(client.reply().status, 200);
        }
    }
    before.wait_until_released();
}

#[test]
fn http_2_is_rejected_and_leaks_nothing() {
    if !is_alone("hostile::http_2_is_rejected_and_leaks_nothing", 256) {
        return;
    }
    let daemon = Daemon::start();
    let before = Resources::count();
    for _ in 0..50 {
        for request in ["GET / HTTP/2.0\r\nHost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let reply = daemon.ask(request);
            assert_eq!((reply.status, reply.closes()), (505, true));
        }
    }
    before.wait_until_released();
}

#[test]
fn a_request_smuggled_after_an_ambiguous_one_is_not_served() {
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
        // The body is not read, because the request is not authorized.
        ("POST /v3/metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n", 401),
    ];
    for (request, status) in ambiguous {
        let mut client = daemon.connect();
        client.send(&(request.to_owned() + HEALTH));
        let reply = client.reply();
        assert_eq!((reply.status, reply.closes()), (status, true), "{request}");
        assert!(client.is_ended(), "{request}");
    }
    assert!(daemon.is_healthy());
}

#[test]
fn pipelined_requests_are_answered_in_order_by_one_thread() {
    if !is_alone("hostile::pipelined_requests_are_answered_in_order_by_one_thread", 256) {
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
        assert_eq!(client.reply().status, [200, 405][number % 2], "{number}");
    }
    let threads = Resources::count().threads;
    assert!(threads <= before.threads.map(|threads| threads + 2));
    sending.unwrap().join().unwrap();
    drop(client);
    before.wait_until_released();
}

#[test]
fn an_endless_request_line_is_rejected_in_bounded_memory() {
    if !is_alone("hostile::an_endless_request_line_is_rejected_in_bounded_memory", 256) {
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
fn a_refusal_reaches_a_client_that_is_still_sending() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    client.send(&("GET /".to_owned() + &"a".repeat(200 * 1024)));
    assert_eq!(client.reply().status, 431);
}

#[test]
fn two_hundred_slow_clients_leak_nothing() {
    if !is_alone("hostile::two_hundred_slow_clients_leak_nothing", 1024) {
        return;
    }
    let deadlines = Deadlines { head: Duration::from_secs(2), ..Deadlines::default() };
    let daemon = Daemon::start_with(deadlines, || {});
    let before = Resources::count();
    let mut clients: Vec<Client> = (0..200).map(|_| daemon.connect()).collect();
    for byte in "GET /v3/he".chars() {
        for client in &mut clients {
            // The first clients may have their refusal already.
            drop(client.stream.write_all(&[byte as u8]));
        }
        assert!(daemon.is_healthy());
    }
    for client in &mut clients {
        assert_eq!(client.reply().status, 408);
    }
    drop(clients);
    before.wait_until_released();
}

#[test]
fn a_panic_fails_only_its_own_request() {
    if !is_alone("hostile::a_panic_fails_only_its_own_request", 1024) {
        return;
    }
    let broken = Arc::new(AtomicBool::new(true));
    let fault = Arc::clone(&broken);
    let daemon = Daemon::start_with(Deadlines::default(), move || {
        assert!(!fault.load(Ordering::SeqCst), "broken on purpose");
    });
    let before = Resources::count();
    for _ in 0..300 {
        let reply = daemon.ask(HEALTH);
        assert_eq!(reply.status, 500);
        assert!(reply.body.contains(r#""code":"INTERNAL_ERROR""#));
    }
    broken.store(false, Ordering::SeqCst);
    assert!(daemon.is_healthy());
    before.wait_until_released();
}
