//! Routes, their replies, and the clients that they answer.

use super::*;

#[test]
fn health_without_a_token_has_three_fields_in_this_order() {
    let daemon = Daemon::start();
    let reply = daemon.ask(HEALTH);
    assert_eq!(reply.status, 200);
    assert_eq!(reply.body, r#"{"status":"ok","version":"3.0.0","uptime":0}"#);
    assert_eq!(reply.header("Content-Type"), Some("application/json"));
    assert_eq!(reply.header("Server"), Some("opta"));
    assert!(!reply.closes());
}

#[test]
fn a_stream_of_health_sends_it_at_once_and_then_at_intervals() {
    let deadlines = Deadlines { health: Duration::from_millis(20), ..Deadlines::default() };
    let mut daemon = Daemon::start_with(deadlines, || {});
    let mut client = daemon.connect();
    let token = daemon.token.secret();
    client.send(&format!(
        "GET /v3/health/stream?token={token} HTTP/1.1\r\nHost: localhost\r\n\
         Origin: http://localhost:5173\r\n\r\n"
    ));
    let mut text = String::new();
    while text.matches("\ndata: ").count() < 3 {
        let mut chunk = [0; 4096];
        let count = client.stream.read(&mut chunk).unwrap();
        assert!(count > 0, "{text}");
        text.push_str(std::str::from_utf8(&chunk[..count]).unwrap());
    }
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.contains("\r\nContent-Type: text/event-stream\r\n"), "{text}");
    assert!(text.contains("\r\nAccess-Control-Allow-Origin: http://localhost:5173\r\n"), "{text}");
    let event = text.split("\ndata: ").nth(1).unwrap();
    assert!(event.starts_with(r#"{"status":"ok","version":"3.0.0","uptime":"#), "{event}");
    assert!(event.contains(r#""daemonId":"daemon_12345678""#), "{event}");
    assert!(event.contains(r#""ts":1"#), "{event}");
    // A client that has left no longer takes a thread, and a stop does not wait for a stream.
    let (_stopping, ended) = daemon.stop();
    ended.recv_timeout(TIMEOUT).unwrap();
}

#[test]
fn a_stream_of_health_needs_the_token() {
    let daemon = Daemon::start();
    for query in ["", "?token=wrong"] {
        let request = HEALTH.replace("health", &format!("health/stream{query}"));
        assert_eq!(daemon.ask(&request).status, 401, "{query}");
    }
    assert_eq!(daemon.ask(&daemon.request("POST", "/v3/health/stream", "{}")).status, 405);
}

#[test]
fn there_are_no_background_jobs() {
    let daemon = Daemon::start();
    for path in ["/v3/background", "/v3/background?sessionId=x"] {
        let reply = daemon.ask(&daemon.request("GET", path, ""));
        assert_eq!((reply.status, reply.body.as_str()), (200, r#"{"processes":[]}"#));
    }
    let body = r#"{"sessionId":"x","command":"ls"}"#;
    let reply = daemon.ask(&daemon.request("POST", "/v3/background/start", body));
    assert_eq!(reply.status, 501);
    assert!(reply.body.contains(r#""code":"NOT_IMPLEMENTED""#), "{}", reply.body);
    assert_eq!(daemon.ask(&daemon.request("GET", "/v3/background/x/status", "")).status, 404);
}

#[test]
fn health_with_the_token_has_more_fields() {
    let daemon = Daemon::start();
    let more = format!(
        "{{\"status\":\"ok\",\"version\":\"3.0.0\",\"uptime\":0,\"daemonId\":\"daemon_12345678\",\
         \"contract\":{{\"name\":\"opta-daemon-v3\",\"version\":1}},\"build\":\"{}\",\
         \"runtime\":{{\"sessionCount\":0,\"activeTurnCount\":0,\"queuedTurnCount\":0,\
         \"subscriberCount\":0}}}}",
        env!("CARGO_PKG_VERSION")
    );
    let reply = daemon.ask(&daemon.request("GET", "/v3/health", ""));
    assert_eq!((reply.status, &reply.body), (200, &more));
    assert_eq!(reply.header("Cache-Control"), Some("no-store"));
    let query = HEALTH.replace("health", &format!("health?x=y&token={}", daemon.token.secret()));
    assert_eq!(daemon.ask(&query).body, more);
}

#[test]
fn a_wrong_token_is_refused_even_where_none_is_required() {
    let daemon = Daemon::start();
    for request in [
        HEALTH.replace("health", "health?token=wrong"),
        HEALTH.replace("health", "health?token="),
        HEALTH.replace("\r\n\r\n", "\r\nAuthorization: Bearer wrong\r\n\r\n"),
        HEALTH.replace("\r\n\r\n", "\r\nAuthorization: Basic b3B0YQ==\r\n\r\n"),
    ] {
        let reply = daemon.ask(&request);
        assert_eq!(reply.status, 401, "{request}");
        assert_eq!(reply.header("WWW-Authenticate"), Some("Bearer"));
        assert!(reply.body.contains(r#""code":"UNAUTHORIZED""#));
    }
}

#[test]
fn without_the_token_all_other_paths_look_the_same() {
    let daemon = Daemon::start();
    let in_query = format!("/v3/metrics?token={}", daemon.token.secret());
    for path in ["//", "/v3/metrics", "/v3/shutdown", "/v3/nothing", "/v3/health/", &in_query] {
        for method in ["GET", "POST", "DELETE", "OPTIONS", "ODD"] {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            assert_eq!(daemon.ask(&request).status, 401, "{method} {path}");
        }
    }
}

#[test]
fn paths_are_exact_and_methods_are_listed() {
    let daemon = Daemon::start();
    for path in [
        "//",
        "/v3",
        "/v3/health/",
        "/V3/health",
        "/v3//health",
        "/v3/%68ealth",
        "/v3/../v3/health",
    ] {
        let reply = daemon.ask(&daemon.request("GET", path, ""));
        assert_eq!(reply.status, 404, "{path}");
        assert!(reply.body.contains(r#""code":"NOT_FOUND""#));
    }
    for (method, path, allowed) in [
        ("POST", "/v3/health", "GET, HEAD"),
        ("get", "/v3/health", "GET, HEAD"),
        ("DELETE", "/v3/metrics", "GET, HEAD"),
        ("GET", "/v3/shutdown", "POST"),
    ] {
        let reply = daemon.ask(&daemon.request(method, path, ""));
        assert_eq!(reply.status, 405, "{method} {path}");
        assert_eq!(reply.header("Allow"), Some(allowed));
    }
}

#[test]
fn metrics_have_both_known_forms() {
    let daemon = Daemon::start();
    let reply = daemon.ask(&daemon.request("GET", "/v3/metrics", ""));
    assert_eq!(reply.status, 200);
    for part in [
        r#""daemonId":"daemon_12345678""#,
        r#""runtime":{"sessionCount":0,"activeTurnCount":0,"queuedTurnCount":0,"subscriberCount":0,"ingressSeq":0,"#,
        r#""toolWorkers":{"workers":0,"busy":0,"queued":0}"#,
        r#""latency":{"p50Ms":0,"p99Ms":0,"samples":0}"#,
        r#""activeSessions":0"#,
        r#""totalTurns":0"#,
        r#""memoryMB":"#,
        r#""toolWorkers":{"active":0,"max":0,"queued":0}"#,
    ] {
        assert!(reply.body.contains(part), "{part} in {}", reply.body);
    }
}

#[test]
fn shutdown_is_accepted_with_and_without_a_body() {
    let daemon = Daemon::start();
    for body in
        ["", "{}", r#"{"ifIdle":true}"#, r#"{"ifIdle":false,"other":[1]}"#, r#"{"ifIdle":null}"#]
    {
        let reply = daemon.ask(&daemon.request("POST", "/v3/shutdown", body));
        assert_eq!((reply.status, reply.body.as_str()), (202, r#"{"ok":true}"#), "{body}");
        daemon.shutdowns.recv_timeout(TIMEOUT).unwrap();
    }
    for body in ["{", "[]", r#"{"ifIdle":1}"#, r#"{"ifIdle":tru}"#] {
        let reply = daemon.ask(&daemon.request("POST", "/v3/shutdown", body));
        assert_eq!(reply.status, 400, "{body}");
        assert!(reply.body.contains("line 1"), "{}", reply.body);
    }
    assert!(daemon.shutdowns.try_recv().is_err());
}

#[test]
fn head_is_get_without_the_body() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    client.send(&HEALTH.replace("GET", "HEAD"));
    client.send("GET /v3/health HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let mut all = String::new();
    client.stream.read_to_string(&mut all).unwrap();
    let heads: Vec<&str> = all.split("\r\n\r\n").collect();
    assert!(heads[0].contains("Content-Length: 44"), "{all}");
    assert!(heads[1].starts_with("HTTP/1.1 200 OK\r\nConnection: close\r\n"), "{all}");
    assert_eq!(heads[2], r#"{"status":"ok","version":"3.0.0","uptime":0}"#);
}

#[test]
fn a_connection_survives_a_refusal_of_a_request_without_a_body() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    for _ in 0..3 {
        client.send("GET /v3/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(client.reply().status, 401);
        client.send("GET / HTTP/1.1\r\nHost: evil.com\r\n\r\n");
        assert_eq!(client.reply().status, 421);
        client.send(HEALTH);
        assert_eq!(client.reply().status, 200);
    }
}

#[test]
fn an_unauthorized_request_is_refused_before_its_body_is_sent() {
    let daemon = Daemon::start();
    let with =
        |lines: &str| format!("POST /v3/shutdown HTTP/1.1\r\nContent-Length: 9\r\n{lines}\r\n");
    let bearer = format!("Authorization: Bearer {}\r\n", daemon.token.secret());
    for (lines, status) in [
        ("Host: evil.com\r\n".to_owned() + &bearer, 421),
        ("Host: localhost\r\nOrigin: http://evil.com\r\n".to_owned() + &bearer, 403),
        ("Host: localhost\r\n".to_owned(), 401),
        ("Host: localhost\r\n".to_owned() + &bearer, 415),
        ("Host: localhost\r\nContent-Type: text/plain\r\n".to_owned() + &bearer, 415),
    ] {
        let mut client = daemon.connect();
        client.send(&with(&lines));
        let reply = client.reply();
        assert_eq!(reply.status, status, "{lines}");
        assert!(reply.closes());
        assert!(client.is_ended());
    }
    assert!(daemon.shutdowns.try_recv().is_err());
}

#[test]
fn a_local_page_can_send_a_preflight_request_and_read_the_reply() {
    let daemon = Daemon::start();
    let asked = "OPTIONS /v3/shutdown HTTP/1.1\r\nHost: localhost\r\nOrigin: tauri://localhost\r\n\
                 Access-Control-Request-Method: POST\r\n\r\n";
    let reply = daemon.ask(asked);
    assert_eq!(reply.status, 204);
    assert_eq!(reply.header("Access-Control-Allow-Origin"), Some("tauri://localhost"));
    assert_eq!(reply.header("Vary"), Some("Origin"));
    assert!(reply.header("Access-Control-Allow-Methods").unwrap().contains("POST"));
    assert!(reply.header("Access-Control-Allow-Headers").unwrap().contains("Authorization"));
    let refused = daemon.ask(&asked.replace("OPTIONS", "POST"));
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("Access-Control-Allow-Origin"), Some("tauri://localhost"));
    let foreign = daemon.ask(&asked.replace("tauri://localhost", "null"));
    assert_eq!(foreign.status, 403);
    assert_eq!(foreign.header("Access-Control-Allow-Origin"), None);
}

#[test]
fn a_body_is_read_only_after_an_interim_response() {
    let daemon = Daemon::start();
    let body = r#"{"ifIdle":true}"#;
    let request = daemon.request("POST", "/v3/shutdown", body);
    let request = request.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    let mut client = daemon.connect();
    client.send(request.strip_suffix(body).unwrap());
    assert_eq!(client.reply().status, 100);
    client.send(body);
    assert_eq!(client.reply().status, 202);
    // None is sent if the body arrives with the head.
    client.send(&request);
    assert_eq!(client.reply().status, 202);
}
