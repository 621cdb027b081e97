//! How long each step may take, and how it can be cancelled.

use super::*;

/// Pauses that no test notices.
const PAUSE: Duration = Duration::from_millis(10);
const QUICK: Timeouts =
    Timeouts { pause: PAUSE, retrying: Duration::from_millis(200), ..Timeouts::TURN };

const ROLE_AND_END: &str = "HTTP/1.1 200 OK\r\n\r\n\
    data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n";

#[test]
fn a_busy_server_is_asked_again_when_it_says_and_for_a_limited_time() {
    const NOW: &str = "HTTP/1.1 429 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n";
    const SOON: &str =
        "HTTP/1.1 429 Busy\r\nRetry-After: 0.1\r\n\r\n{\"error\":{\"message\":\"slow down\"}}";
    const LATER: &str = "HTTP/1.1 429 Busy\r\nRetry-After: 301\r\n\r\n";
    assert_eq!(Timeouts::TURN.pause, limits::MODEL_RETRY_PAUSE);
    assert_eq!(Timeouts::TURN.retrying, Duration::from_secs(300));
    let server = Scripted::sending(&[NOW, SOON, HELLO]);
    let begun = Instant::now();
    assert_eq!(server.ask(QUICK).1.unwrap().text, "hello");
    assert!(begun.elapsed() >= Duration::from_millis(100));
    assert_eq!(server.requests().len(), 3);
    // The pauses count even if the server asks for none: 10, 20, 40 and 80 ms.
    let server = Scripted::sending(&[NOW, NOW, NOW, NOW, NOW]);
    let busy = fault(server.ask(QUICK).1);
    assert_eq!(busy.code, "model-busy");
    assert!(busy.message.ends_with("is busy (429)"), "{}", busy.message);
    assert_eq!(server.requests().len(), 5);
    let server = Scripted::sending(&[LATER]);
    let busy = fault(server.ask(Timeouts::TURN).1);
    assert!(busy.message.ends_with("is busy for 301s (429)"), "{}", busy.message);
    server.requests();
}

#[test]
fn a_failure_before_the_first_word_is_retried_and_announced() {
    for answer in [
        "HTTP/1.1 408 Late\r\n\r\n",
        "HTTP/1.1 500 Oops\r\n\r\nsomething",
        "HTTP/1.1 502 Bad\r\n\r\n",
        "HTTP/1.1 503 Busy\r\n\r\n{\"error\":{\"code\":503,\"message\":\"Loading model\"}}",
        "HTTP/1.1 504 Late\r\n\r\n",
        "HTTP/1.1 529 Overloaded\r\n\r\n",
        "HTTP/1.1 2",
        SSE,
        "HTTP/1.1 200 OK\r\n\r\ndata: {\"error\":{\"code\":503,\"message\":\"overloaded\"}}\n\n",
        ROLE_AND_END,
    ] {
        let server = Scripted::sending(&[answer, answer, HELLO]);
        let (mut waits, mut text) = (Vec::new(), String::new());
        let cancel = Cancel::new().unwrap();
        let completion = complete(&server.endpoint, &server.memory, QUICK, &cancel, &mut |delta| {
            match delta.kind {
                DeltaKind::Notice(wait) => waits.push(wait.unwrap()),
                _ => text.push_str(&delta.text),
            }
            Ok(())
        });
        assert_eq!(completion.unwrap().text, "hello", "{answer}");
        assert_eq!((text.as_str(), waits.as_slice()), ("hello", &[PAUSE, PAUSE * 2][..]));
        assert_eq!(server.requests().len(), 3);
    }
}

#[test]
fn a_failure_that_lasts_or_comes_after_a_word_is_final() {
    const OOPS: &str = "HTTP/1.1 500 Oops\r\n\r\nsomething";
    let timeouts = Timeouts { pause: Duration::from_millis(1), ..Timeouts::TURN };
    let count = limits::MODEL_FAILURES_MAX as usize + 1;
    let server = Scripted::sending(&[OOPS; 7]);
    assert_eq!(count, 7);
    assert_eq!(fault(server.ask(timeouts).1).code, "model-error");
    assert_eq!(server.requests().len(), count);
    for answer in [
        "data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"reasoning\":\"half\"}}]}\n\n",
        "data: {\"error\":{\"code\":400,\"message\":\"no such thing\"}}\n\n",
    ] {
        let server = Scripted::new(vec![vec![Step::Send(SSE), Step::Send(answer)]]);
        fault(server.ask(timeouts).1);
        assert_eq!(server.requests().len(), 1, "{answer}");
    }
}

#[test]
fn a_server_that_restarts_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let url = format!("http://{address}");
    let endpoint = Endpoint { url, model: Some("m".to_owned()), ..Endpoint::default() };
    let serve = move || {
        play(&listener, vec![Step::Send("HTTP/1.1 503 Bye\r\n\r\n")]);
        drop(listener);
    };
    let serving = Builder::new().spawn(serve).unwrap();
    let (memory, cancel) = (ServerMemory::default(), Cancel::new().unwrap());
    let mut restarted = None;
    let mut pauses = 0;
    let timeouts = Timeouts { pause: PAUSE, ..Timeouts::TURN };
    let completion = complete(&endpoint, &memory, timeouts, &cancel, &mut |delta| {
        if matches!(delta.kind, DeltaKind::Notice(_)) {
            pauses += 1;
            // After the second one, the port refuses.
            if pauses == 2 {
                let listener = TcpListener::bind(address).unwrap();
                let serve = move || play(&listener, vec![Step::Send(HELLO)]);
                restarted = Some(Builder::new().spawn(serve).unwrap());
            }
        }
        Ok(())
    });
    assert_eq!(completion.unwrap().text, "hello");
    serving.join().unwrap();
    restarted.unwrap().join().unwrap();
}

#[test]
fn a_connection_that_ends_before_the_first_byte_is_tried_once_more() {
    let server = Scripted::sending(&["", HELLO]);
    assert_eq!(server.ask(NO_RETRIES).1.unwrap().text, "hello");
    server.requests();
    for texts in [["", ""].as_slice(), &["HTTP/1.1 2"]] {
        let server = Scripted::sending(texts);
        assert_eq!(fault(server.ask(NO_RETRIES).1).code, "model-disconnected");
        assert_eq!(server.requests().len(), texts.len());
    }
}

#[test]
fn a_server_that_sends_and_says_nothing_is_left_at_the_deadline() {
    // Comments, empty deltas, parts of arguments; and anything after the end of the answer.
    let finished = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    for (first, again, code) in [
        ("", ":\n\n", Some("model-timeout")),
        ("", "data: {\"choices\":[{\"delta\":{}}]}\n\n", Some("model-timeout")),
        (
            "",
            "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":\
             {\"name\":\"f\",\"arguments\":\" \"}}]}}]}\n\n",
            Some("model-timeout"),
        ),
        (finished, ":\n\n", None),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let endpoint = Endpoint { url, model: Some("m".to_owned()), ..Endpoint::default() };
        let serve = move || {
            let (mut socket, _) = listener.accept().unwrap();
            request(&mut socket);
            socket.write_all(SSE.as_bytes()).unwrap();
            socket.write_all(first.as_bytes()).unwrap();
            let (_never, message) = mpsc::channel::<()>();
            while socket.write_all(again.as_bytes()).is_ok() {
                assert!(message.recv_timeout(Duration::from_millis(5)).is_err());
            }
        };
        let serving = Builder::new().spawn(serve).unwrap();
        let timeouts = Timeouts { tail: Duration::from_millis(50), ..Timeouts::TURN };
        let (memory, cancel) = (ServerMemory::default(), Cancel::new().unwrap());
        let request = ChatRequest {
            endpoint: &endpoint,
            messages: "[]",
            tools: "[]",
            tool_choice: "auto",
            deadline: Some(Instant::now() + Duration::from_millis(300)),
        };
        let begun = Instant::now();
        let answer = ServedModel(timeouts).complete(&request, &memory, &cancel, &mut |_| Ok(()));
        assert_eq!(answer.err().map(|fault| fault.code), code, "{again}");
        assert!(begun.elapsed() < AT_ONCE);
        serving.join().unwrap();
    }
}

#[test]
fn the_settings_of_an_endpoint_replace_the_timeouts() {
    let set =
        Endpoint { first_word_seconds: Some(7), silence_seconds: Some(8), ..Endpoint::default() };
    let timeouts = Timeouts::TURN.set_by(&set);
    assert_eq!((timeouts.first.as_secs(), timeouts.idle.as_secs()), (7, 8));
    let timeouts = Timeouts::TURN.set_by(&Endpoint::default());
    assert_eq!((timeouts.first.as_secs(), timeouts.idle.as_secs()), (600, 600));
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
        ..Endpoint::default()
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
