//! How long is waited for whom, and what ends it.

use super::*;

#[test]
fn a_busy_server_is_asked_again_when_it_says_and_not_for_ever() {
    const NOW: &str = "HTTP/1.1 429 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n";
    const LOADING: &str = "HTTP/1.1 503 Loading\r\nRetry-After: 0\r\n\r\n";
    const SOON: &str =
        "HTTP/1.1 429 Busy\r\nRetry-After: 0.1\r\n\r\n{\"error\":{\"message\":\"slow down\"}}";
    const LATER: &str = "HTTP/1.1 429 Busy\r\nRetry-After: 3600\r\n\r\n";
    let server = Scripted::sending(&[NOW, LOADING, HELLO]);
    assert_eq!(server.ask(OF_A_TURN).1.unwrap().text, "hello");
    assert_eq!(server.requests().len(), 3);
    let server = Scripted::sending(&[SOON, NOW, SOON]);
    let begun = Instant::now();
    let busy = fault(server.ask(OF_A_TURN).1);
    assert!(begun.elapsed() >= Duration::from_millis(100));
    assert_eq!(busy.code, "model-busy");
    assert!(busy.message.ends_with("is busy (429): slow down"), "{}", busy.message);
    server.requests();
    let server = Scripted::sending(&[LATER]);
    let busy = fault(server.ask(OF_A_TURN).1);
    assert!(busy.message.ends_with("is busy for 3600s (429)"), "{}", busy.message);
    server.requests();
}

#[test]
fn a_server_that_loads_its_model_is_waited_for_but_not_for_ever() {
    const LOADING: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 49\r\n\r\n\
        {\"error\":{\"code\":503,\"message\":\"Loading model\"}}";
    assert_eq!(OF_A_TURN.pause, limits::MODEL_RETRY_WAIT);
    let pause = Duration::from_millis(20);
    let patience = Patience { pause, loading: pause * 3, ..OF_A_TURN };
    let server = Scripted::sending(&[LOADING, LOADING, LOADING, HELLO]);
    assert_eq!(server.ask(patience).1.unwrap().text, "hello");
    server.requests();
    let server = Scripted::sending(&[LOADING; 4]);
    let busy = fault(server.ask(patience).1);
    assert_eq!(busy.code, "model-busy");
    assert!(busy.message.ends_with("is busy (503): Loading model"), "{}", busy.message);
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn a_connection_that_ends_before_a_byte_is_tried_once_more() {
    let server = Scripted::sending(&["", HELLO]);
    assert_eq!(server.ask(OF_A_TURN).1.unwrap().text, "hello");
    server.requests();
    for texts in [["", ""].as_slice(), &["HTTP/1.1 2"]] {
        let server = Scripted::sending(texts);
        assert_eq!(fault(server.ask(OF_A_TURN).1).code, "model-disconnected");
        assert_eq!(server.requests().len(), texts.len());
    }
}

#[test]
fn silence_ends_and_comments_are_no_silence() {
    let (gone, seen) = mpsc::channel();
    let begun = "data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\n";
    let server = Scripted::new(vec![
        vec![Step::SeeOff(gone.clone())],
        vec![Step::Send(SSE), Step::Send(begun), Step::SeeOff(gone)],
    ]);
    for (said, at_least) in [("", QUICK.first), ("half", QUICK.idle)] {
        let asked = Instant::now();
        let (heard, answer) = server.ask(QUICK);
        assert_eq!((heard.as_str(), fault(answer).code), (said, "model-timeout"));
        assert!(asked.elapsed() >= at_least);
        seen.recv().unwrap();
    }
    server.requests();
    // Comments that come five times as often as they must, for longer than silence may last.
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
        let (_never, word) = mpsc::channel::<()>();
        for _ in 0..6 {
            assert!(word.recv_timeout(Duration::from_millis(300)).is_err());
            socket.write_all(b":\n\n").unwrap();
        }
        socket.write_all(b"data: [DONE]\n\n").unwrap();
    };
    let serving = Builder::new().spawn(serve).unwrap();
    let patience = Patience { idle: Duration::from_millis(1500), ..QUICK };
    assert_eq!(ask_at(&endpoint, patience, &Cancel::new().unwrap()).1.unwrap().text, "half");
    serving.join().unwrap();
}

#[test]
fn a_cancel_reaches_the_server_at_once_wherever_the_answer_is() {
    const BUSY: &str = "HTTP/1.1 429 Busy\r\nRetry-After: 20\r\nContent-Length: 0\r\n\r\n";
    const LOADING: &str =
        "HTTP/1.1 503 Busy\r\nRetry-After: 20\r\nContent-Length: 13\r\n\r\nLoading model";
    let begun = "data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\n";
    for texts in [&[][..], &[SSE], &[SSE, begun], &[BUSY], &[LOADING]] {
        let ((arrived, word), (gone, seen)) = (mpsc::channel(), mpsc::channel());
        let mut steps: Vec<Step> = texts.iter().map(|text| Step::Send(text)).collect();
        steps.extend([Step::Tell(arrived), Step::SeeOff(gone)]);
        let server = Scripted::new(vec![steps]);
        let cancel = std::sync::Arc::new(Cancel::new().unwrap());
        let (endpoint, wish) = (server.endpoint.clone(), std::sync::Arc::clone(&cancel));
        let asking = move || fault(ask_at(&endpoint, OF_A_TURN, &cancel).1);
        let asking = Builder::new().spawn(asking).unwrap();
        word.recv().unwrap();
        // Long enough to be where the script leaves it; the result is the same if it is not.
        let (_never, word) = mpsc::channel::<()>();
        assert!(word.recv_timeout(Duration::from_millis(100)).is_err());
        let wished = Instant::now();
        wish.cancel();
        assert_eq!(asking.join().unwrap(), turn::cancelled());
        assert!(wished.elapsed() < AT_ONCE, "{:?}", wished.elapsed());
        let seen = seen.recv().unwrap();
        assert!(seen.saturating_duration_since(wished) < AT_ONCE);
        server.requests();
    }
}
