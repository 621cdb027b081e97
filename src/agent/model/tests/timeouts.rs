//! How long each step may take, and how it can be cancelled.

use super::*;

#[test]
fn a_busy_server_is_asked_again_when_it_says_and_a_limited_number_of_times() {
    const NOW: &str = "HTTP/1.1 429 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n";
    const LOADING: &str = "HTTP/1.1 503 Loading\r\nRetry-After: 0\r\n\r\n";
    const SOON: &str =
        "HTTP/1.1 429 Busy\r\nRetry-After: 0.1\r\n\r\n{\"error\":{\"message\":\"slow down\"}}";
    const LATER: &str = "HTTP/1.1 429 Busy\r\nRetry-After: 3600\r\n\r\n";
    let server = Scripted::sending(&[NOW, LOADING, HELLO]);
    assert_eq!(server.ask(Timeouts::TURN).1.unwrap().text, "hello");
    assert_eq!(server.requests().len(), 3);
    let server = Scripted::sending(&[SOON, NOW, SOON]);
    let begun = Instant::now();
    let busy = fault(server.ask(Timeouts::TURN).1);
    assert!(begun.elapsed() >= Duration::from_millis(100));
    assert_eq!(busy.code, "model-busy");
    assert!(busy.message.ends_with("is busy (429): slow down"), "{}", busy.message);
    server.requests();
    let server = Scripted::sending(&[LATER]);
    let busy = fault(server.ask(Timeouts::TURN).1);
    assert!(busy.message.ends_with("is busy for 3600s (429)"), "{}", busy.message);
    server.requests();
}

#[test]
fn a_server_that_loads_its_model_is_waited_for_within_a_limit() {
    const LOADING: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 49\r\n\r\n\
        {\"error\":{\"code\":503,\"message\":\"Loading model\"}}";
    assert_eq!(Timeouts::TURN.pause, limits::MODEL_RETRY_WAIT);
    let pause = Duration::from_millis(20);
    let timeouts = Timeouts { pause, loading: pause * 3, ..Timeouts::TURN };
    let server = Scripted::sending(&[LOADING, LOADING, LOADING, HELLO]);
    assert_eq!(server.ask(timeouts).1.unwrap().text, "hello");
    server.requests();
    let server = Scripted::sending(&[LOADING; 4]);
    let busy = fault(server.ask(timeouts).1);
    assert_eq!(busy.code, "model-busy");
    assert!(busy.message.ends_with("is busy (503): Loading model"), "{}", busy.message);
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn a_connection_that_ends_before_the_first_byte_is_tried_once_more() {
    let server = Scripted::sending(&["", HELLO]);
    assert_eq!(server.ask(Timeouts::TURN).1.unwrap().text, "hello");
    server.requests();
    for texts in [["", ""].as_slice(), &["HTTP/1.1 2"]] {
        let server = Scripted::sending(texts);
        assert_eq!(fault(server.ask(Timeouts::TURN).1).code, "model-disconnected");
        assert_eq!(server.requests().len(), texts.len());
    }
}

#[test]
fn a_silent_server_times_out_and_comments_are_no_silence() {
    let (closed, seen) = mpsc::channel();
    let begun = "data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\n";
    let server = Scripted::new(vec![
        vec![Step::AwaitClose(closed.clone())],
        vec![Step::Send(SSE), Step::Send(begun), Step::AwaitClose(closed)],
    ]);
    for (received, at_least) in [("", SHORT.first), ("half", SHORT.idle)] {
        let begun = Instant::now();
        let (text, answer) = server.ask(SHORT);
        assert_eq!((text.as_str(), fault(answer).code), (received, "model-timeout"));
        assert!(begun.elapsed() >= at_least);
        seen.recv().unwrap();
    }
    server.requests();
    // Comments arrive five times as often as needed, for longer than the timeout.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint {
        url: format!("http://{}/comments", listener.local_addr().unwrap()),
        source: String::new(),
        key: None,
        model: Some("m".to_owned()),
        tool_choice: None,
    };
    let serve = move || {
        let (mut socket, _) = listener.accept().unwrap();
        request(&mut socket);
        socket.write_all(SSE.as_bytes()).unwrap();
        socket.write_all(begun.as_bytes()).unwrap();
        let (_never, message) = mpsc::channel::<()>();
        for _ in 0..6 {
            assert!(message.recv_timeout(Duration::from_millis(300)).is_err());
            socket.write_all(b":\n\n").unwrap();
        }
        socket.write_all(b"data: [DONE]\n\n").unwrap();
    };
    let serving = Builder::new().spawn(serve).unwrap();
    let timeouts = Timeouts { idle: Duration::from_millis(1500), ..SHORT };
    let (memory, cancel) = (ServerMemory::default(), Cancel::new().unwrap());
    let completion = ask(&endpoint, &memory, timeouts, &cancel, &mut |_| {});
    assert_eq!(completion.unwrap().text, "half");
    serving.join().unwrap();
}

#[test]
fn a_cancel_closes_the_connection_at_once_in_every_phase() {
    const BUSY: &str = "HTTP/1.1 429 Busy\r\nRetry-After: 20\r\nContent-Length: 0\r\n\r\n";
    const LOADING: &str =
        "HTTP/1.1 503 Busy\r\nRetry-After: 20\r\nContent-Length: 13\r\n\r\nLoading model";
    let begun = "data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\n";
    for texts in [&[][..], &[SSE], &[SSE, begun], &[BUSY], &[LOADING]] {
        let ((reached, message), (closed, seen)) = (mpsc::channel(), mpsc::channel());
        let mut steps: Vec<Step> = texts.iter().map(|text| Step::Send(text)).collect();
        steps.extend([Step::Report(reached), Step::AwaitClose(closed)]);
        let server = Scripted::new(vec![steps]);
        let cancel = Cancel::new().unwrap();
        std::thread::scope(|scope| {
            let asking =
                scope.spawn(|| fault(server.ask_with(Timeouts::TURN, &cancel, &mut |_| {})));
            message.recv().unwrap();
            // Long enough to reach the phase of the script; the result is the same if it is not.
            let (_never, message) = mpsc::channel::<()>();
            assert!(message.recv_timeout(Duration::from_millis(100)).is_err());
            let cancelled = Instant::now();
            cancel.cancel();
            assert_eq!(asking.join().unwrap(), turn::cancelled());
            assert!(cancelled.elapsed() < AT_ONCE, "{:?}", cancelled.elapsed());
            let seen = seen.recv().unwrap();
            assert!(seen.saturating_duration_since(cancelled) < AT_ONCE);
        });
        server.requests();
    }
}
