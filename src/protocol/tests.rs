//! The bytes of events, replies and requests: journals and clients keep them.

use super::event::*;
use super::*;

/// The fields of a new session, as a summary has them.
const SUMMARY: &str = concat!(
    r#""sessionId":"s","model":"m","title":"t","createdAt":"c","updatedAt":"u","#,
    r#""lastActivityAt":"l","activeTurnId":"a","queuedTurns":1,"toolCallCount":2,"#,
    r#""writerCount":3,"mode":"chat","status":"idle","turns":4,"workspace":"/w","directory":"/d","#,
    r#""seq":5"#
);

fn summary() -> SessionSummary {
    SessionSummary {
        session_id: "s".into(),
        model: "m".into(),
        last_model: None,
        title: Some("t".into()),
        created_at: "c".into(),
        updated_at: "u".into(),
        last_activity_at: "l".into(),
        active_turn_id: Some("a".into()),
        queued_turns: 1,
        tool_call_count: 2,
        writer_count: 3,
        mode: "chat".into(),
        status: "idle".into(),
        turns: 4,
        workspace: Some("/w".into()),
        directory: Some("/d".into()),
        seq: 5,
        messages: None,
    }
}

fn object(text: &str) -> Raw {
    Raw::parse(text).unwrap()
}

fn head() -> TurnHead {
    let (turn_id, writer_id) = ("t".into(), "w".into());
    TurnHead { turn_id, writer_id, client_id: "c".into(), mode: "do".into() }
}

fn text() -> TurnText {
    TurnText { turn_id: "t".into(), text: "a\tü\n".into() }
}

fn session_config() -> SessionConfig {
    SessionConfig {
        title: Some("t".into()),
        model: Some("m".into()),
        mode: Some("do".into()),
        system_prompt: Some("p".into()),
        workspace: Some("/w".into()),
        directory: Some("/d".into()),
        metadata: Some(object(r#"{"workspace":"/w","k":[1]}"#)),
        messages: Some(vec![object(r#"{"role":"user"}"#)]),
    }
}

fn queued(mode: Option<&str>, metadata: Option<Raw>) -> Event {
    Event::TurnQueued(TurnQueued {
        turn_id: "t".into(),
        writer_id: "w".into(),
        client_id: "c".into(),
        mode: mode.map(str::to_owned),
        queue_size: 2,
        position: 1,
        metadata,
        content: "hi".into(),
    })
}

fn done(stats: TurnStats) -> Event {
    let TurnHead { turn_id, writer_id, client_id, .. } = head();
    Event::TurnDone(TurnDone { turn_id, writer_id, client_id, stats })
}

fn cancelled(turn_id: Option<&str>, writer_id: Option<&str>) -> Event {
    let owned = |name: Option<&str>| name.map(str::to_owned);
    let (turn_id, writer_id) = (owned(turn_id), owned(writer_id));
    Event::SessionCancelled(SessionCancelled { cancelled: 1, turn_id, writer_id })
}

/// An event, its name and its payload.
type Pinned = (Event, &'static str, String);

fn pinned(event: Event, name: &'static str, payload: &str) -> Pinned {
    (event, name, payload.to_owned())
}

fn events() -> Vec<Pinned> {
    [session_events(), turn_events(), tool_events()].into_iter().flatten().collect()
}

fn session_events() -> Vec<Pinned> {
    let snapshot = SessionSnapshot::new(summary(), Some(session_config()));
    let payload = [
        r#"{"snapshot":{"#,
        SUMMARY,
        r#"},"messages":[{"role":"user"}],"sessionId":"s","mode":"chat","model":"m","#,
        r#""status":"idle","turns":4,"founding":{"title":"t","model":"m","mode":"do","#,
        r#""systemPrompt":"p","workspace":"/w","directory":"/d","metadata":{"workspace":"/w","k":[1]},"#,
        r#""messages":[{"role":"user"}]}}"#,
    ];
    vec![
        pinned(Event::SessionSnapshot(snapshot.into()), "session.snapshot", &payload.concat()),
        pinned(
            Event::SessionSnapshot(SessionSnapshot::new(summary(), None).into()),
            "session.snapshot",
            &[
                r#"{"snapshot":{"#,
                SUMMARY,
                r#"},"messages":[],"sessionId":"s","mode":"chat","model":"m","status":"idle","turns":4}"#,
            ]
            .concat(),
        ),
        pinned(
            cancelled(Some("t"), Some("w")),
            "session.cancelled",
            r#"{"cancelled":1,"turnId":"t","writerId":"w"}"#,
        ),
        pinned(cancelled(None, None), "session.cancelled", r#"{"cancelled":1}"#),
    ]
}

fn turn_events() -> Vec<Pinned> {
    let full_stats = TurnStats {
        tokens: 1,
        prompt_tokens: 2,
        completion_tokens: 3,
        tool_calls: 4,
        elapsed: 5,
        speed: 6.0,
        first_token_latency_ms: Some(7),
        finish_reason: Some("length".into()),
        context_tokens: Some(8),
        context_size: Some(9),
        model: None,
    };
    let error = TurnError {
        turn_id: "t".into(),
        writer_id: "w".into(),
        client_id: "c".into(),
        code: "cancelled".into(),
        message: "the \"turn\"".into(),
    };
    vec![
        pinned(
            queued(Some("plan"), Some(object("[1,{}]"))),
            "turn.queued",
            r#"{"turnId":"t","writerId":"w","clientId":"c","mode":"plan","queueSize":2,"position":1,"metadata":[1,{}],"content":"hi"}"#,
        ),
        pinned(
            queued(None, None),
            "turn.queued",
            r#"{"turnId":"t","writerId":"w","clientId":"c","queueSize":2,"position":1,"content":"hi"}"#,
        ),
        pinned(
            Event::TurnStart(head()),
            "turn.start",
            r#"{"turnId":"t","writerId":"w","clientId":"c","mode":"do"}"#,
        ),
        pinned(Event::TurnToken(text()), "turn.token", r#"{"turnId":"t","text":"a\tü\n"}"#),
        pinned(Event::TurnThinking(text()), "turn.thinking", r#"{"turnId":"t","text":"a\tü\n"}"#),
        pinned(
            done(full_stats),
            "turn.done",
            r#"{"turnId":"t","writerId":"w","clientId":"c","stats":{"tokens":1,"promptTokens":2,"completionTokens":3,"toolCalls":4,"elapsed":5,"speed":6.0,"firstTokenLatencyMs":7,"finishReason":"length","contextTokens":8,"contextSize":9}}"#,
        ),
        pinned(
            done(TurnStats::default()),
            "turn.done",
            r#"{"turnId":"t","writerId":"w","clientId":"c","stats":{"tokens":0,"promptTokens":0,"completionTokens":0,"toolCalls":0,"elapsed":0,"speed":0.0}}"#,
        ),
        pinned(
            Event::TurnError(error),
            "turn.error",
            r#"{"turnId":"t","writerId":"w","clientId":"c","code":"cancelled","message":"the \"turn\""}"#,
        ),
    ]
}

fn tool_events() -> Vec<Pinned> {
    let start = ToolStart::new("t", "1", "list_dir", "{ }", Raw::empty());
    let end = ToolEnd::new("t", "1", "list_dir", "a\nb", 9, true);
    let request = PermissionRequest {
        turn_id: "t".into(),
        request_id: "perm_1".into(),
        tool_name: "run_command".into(),
        args: object(r#"{"command":"ls"}"#),
        input: object(r#"{"command":"ls"}"#),
        expires_at: "e".into(),
    };
    let resolved = PermissionResolved {
        turn_id: "t".into(),
        request_id: "perm_1".into(),
        decision: "deny".into(),
        approved: false,
        decided_by: "daemon".into(),
    };
    vec![
        pinned(
            Event::ToolStart(start),
            "tool.start",
            r#"{"turnId":"t","name":"list_dir","id":"1","args":"{ }","toolName":"list_dir","callId":"1","toolCallId":"1","input":{}}"#,
        ),
        pinned(
            Event::ToolEnd(end),
            "tool.end",
            r#"{"turnId":"t","name":"list_dir","id":"1","result":"a\nb","toolName":"list_dir","callId":"1","toolCallId":"1","durationMs":9,"elapsed":9,"success":true}"#,
        ),
        pinned(
            Event::PermissionRequest(request),
            "permission.request",
            r#"{"turnId":"t","requestId":"perm_1","toolName":"run_command","args":{"command":"ls"},"input":{"command":"ls"},"expiresAt":"e"}"#,
        ),
        pinned(
            Event::PermissionResolved(resolved),
            "permission.resolved",
            r#"{"turnId":"t","requestId":"perm_1","decision":"deny","approved":false,"decidedBy":"daemon"}"#,
        ),
    ]
}

#[test]
fn events_keep_their_names_and_bytes() {
    for (event, name, payload) in events() {
        assert_eq!((event.kind().name(), event.payload()), (name, payload));
    }
}

#[test]
fn an_event_that_is_decoded_encodes_to_the_same_bytes() {
    for (event, name, payload) in events() {
        let kind = EventKind::named(name).unwrap();
        let decoded = Event::decode(kind, &payload).unwrap();
        assert_eq!((decoded.kind(), decoded.payload()), (event.kind(), payload.clone()));
        let text = format!(r#"{{"v":"3","event":"{name}","seq":7,"payload":{payload}}}"#);
        let envelope = Envelope::read(&text).unwrap();
        assert_eq!((envelope.seq, envelope.event.map(|event| event.payload())), (7, Some(payload)));
    }
}

#[test]
fn events_of_other_versions_are_read_as_far_as_they_are_known() {
    assert_eq!(EventKind::named("of.tomorrow"), None);
    let unknown = r#"{"event":"of.tomorrow","seq":7,"payload":{}}"#;
    let unreadable = r#"{"event":"turn.done","seq":7,"payload":{}}"#;
    for text in [unknown, unreadable] {
        let envelope = Envelope::read(text).unwrap();
        assert!(envelope.seq == 7 && envelope.event.is_none(), "{text}");
    }
    assert!(Envelope::read(r#"{"event":"stream.end","reason":"closed"}"#).is_none());
    let more = r#"{"turnId":"t","text":"x","later":[1]}"#;
    assert!(Event::decode(EventKind::TurnToken, more).is_some());
}

#[test]
fn statistics_can_be_decoded_whatever_a_model_server_counts() {
    let mut stats = TurnStats::default();
    for _ in 0..3 {
        stats.add_tokens(i64::MAX.unsigned_abs(), 1);
    }
    assert_eq!((stats.prompt_tokens, stats.completion_tokens), (i64::MAX.unsigned_abs(), 3));
    assert!(Event::decode(EventKind::TurnDone, &done(stats).payload()).is_some());
}

#[test]
fn replies_about_the_daemon_keep_their_bytes() {
    let counts = || RuntimeCounts {
        session_count: 1,
        active_turn_count: 2,
        queued_turn_count: 3,
        subscriber_count: 4,
        ..RuntimeCounts::default()
    };
    let health = |full: bool| Health {
        status: "ok".into(),
        version: "3.0.0".into(),
        uptime: 9,
        daemon_id: full.then(|| "d".into()),
        contract: full.then(|| Contract { name: "n".into(), version: 1 }),
        build: full.then(|| "b".into()),
        runtime: full.then(counts),
        ts: None,
    };
    let metrics = Metrics {
        daemon_id: "d".into(),
        runtime: RuntimeCounts {
            ingress_seq: Some(5),
            tool_workers: Some(ToolWorkers::default()),
            latency: Some(Latency::default()),
            ..counts()
        },
        ts: "now".into(),
        active_sessions: 1,
        total_turns: 5,
        memory_mb: 2.5,
        tool_workers: ToolSlots::default(),
    };
    for (text, expected) in [
        (json::text(&health(false)), r#"{"status":"ok","version":"3.0.0","uptime":9}"#),
        (
            json::text(&health(true)),
            r#"{"status":"ok","version":"3.0.0","uptime":9,"daemonId":"d","contract":{"name":"n","version":1},"build":"b","runtime":{"sessionCount":1,"activeTurnCount":2,"queuedTurnCount":3,"subscriberCount":4}}"#,
        ),
        (
            json::text(&metrics),
            r#"{"daemonId":"d","runtime":{"sessionCount":1,"activeTurnCount":2,"queuedTurnCount":3,"subscriberCount":4,"ingressSeq":5,"toolWorkers":{"workers":0,"busy":0,"queued":0},"latency":{"p50Ms":0,"p99Ms":0,"samples":0}},"ts":"now","activeSessions":1,"totalTurns":5,"memoryMB":2.5,"toolWorkers":{"active":0,"max":0,"queued":0}}"#,
        ),
        (json::text(&ShutdownAccepted { ok: true }), r#"{"ok":true}"#),
        (error_body("C", "m\"\n"), r#"{"error":{"code":"C","message":"m\"\n"}}"#),
    ] {
        assert_eq!(text, expected);
    }
}

#[test]
fn sessions_keep_their_bytes() {
    let messages = Some(vec![object("{}"), object("{}")]);
    let mut bare = SessionSummary { title: None, active_turn_id: None, ..summary() };
    (bare.workspace, bare.directory) = (None, None);
    let bare_fields =
        [r#""title":"t","#, r#""activeTurnId":"a","#, r#""workspace":"/w","directory":"/d","#]
            .iter()
            .fold(SUMMARY.to_owned(), |fields, field| fields.replace(field, ""));
    let empty = SessionPage { sessions: Vec::new(), next: None };
    let page = SessionPage { sessions: vec![summary(), summary()], next: Some("7".into()) };
    for (text, expected) in [
        (json::text(&summary()), format!("{{{SUMMARY}}}")),
        (json::text(&bare), format!("{{{bare_fields}}}")),
        (
            json::text(&SessionSummary { messages, ..summary() }),
            format!(r#"{{{SUMMARY},"messages":[{{}},{{}}]}}"#),
        ),
        (json::text(&empty), r#"{"sessions":[],"next":null}"#.to_owned()),
        (json::text(&page), format!(r#"{{"sessions":[{{{SUMMARY}}},{{{SUMMARY}}}],"next":"7"}}"#)),
    ] {
        assert_eq!(text, expected);
    }
}

#[test]
fn replies_about_turns_keep_their_bytes() {
    let (turn_id, status) = ("t".into(), "queued".into());
    let (damaged_records, missing_bytes) = (None, None);
    let accepted =
        TurnAccepted { turn_id, status, queued: 1, seq: 2, damaged_records, missing_bytes };
    let decided = |ok: bool| PermissionReply {
        ok,
        conflict: !ok,
        resolved: ok,
        message: (!ok).then(|| "m".into()),
        error: (!ok).then(|| ErrorDetail::new("CONFLICT", "m")),
    };
    for (text, expected) in [
        (json::text(&accepted), r#"{"turnId":"t","status":"queued","queued":1,"seq":2}"#),
        (
            json::text(&TurnsCancelled::new(2, true)),
            r#"{"ok":true,"cancelled":3,"cancelledQueued":2,"cancelledActive":true}"#,
        ),
        (json::text(&decided(true)), r#"{"ok":true,"conflict":false,"resolved":true}"#),
        (
            json::text(&decided(false)),
            r#"{"ok":false,"conflict":true,"resolved":false,"message":"m","error":{"code":"CONFLICT","message":"m"}}"#,
        ),
    ] {
        assert_eq!(text, expected);
    }
}

#[test]
fn requests_keep_their_bytes() {
    let create = CreateSession {
        session_id: Some("s".into()),
        model: Some("m".into()),
        metadata: Some(Raw::of(&Metadata { workspace: Some("/w".into()) })),
        ..CreateSession::default()
    };
    let endpoint = Endpoint {
        url: "u".into(),
        source: "o".into(),
        key: Some(Key("k".into())),
        model: None,
        tool_choice: Some("auto".into()),
        ..Endpoint::default()
    };
    let options = TurnOptions {
        endpoint: Some(endpoint),
        model: None,
        environment: Some(vec![Variable { name: "N".into(), value: "v".into() }]),
        grant: Some("edits".into()),
        attended: Some(true),
        umask: Some("077".into()),
    };
    let submit = SubmitTurn {
        turn_id: Some("t".into()),
        client_id: Some("c".into()),
        writer_id: Some("w".into()),
        content: "hi".into(),
        options: Some(options),
        ..SubmitTurn::default()
    };
    let resolve = ResolvePermission {
        decision: Some("allow".into()),
        decided_by: Some("b".into()),
        ..ResolvePermission::default()
    };
    for (text, expected) in [
        (json::text(&create), r#"{"sessionId":"s","model":"m","metadata":{"workspace":"/w"}}"#),
        (
            json::text(&submit),
            r#"{"turnId":"t","clientId":"c","writerId":"w","content":"hi","options":{"endpoint":{"url":"u","source":"o","key":"k","toolChoice":"auto"},"environment":[{"name":"N","value":"v"}],"grant":"edits","attended":true,"umask":"077"}}"#,
        ),
        (
            json::text(&CancelTurns { turn_id: Some("t".into()), writer_id: None }),
            r#"{"turnId":"t"}"#,
        ),
        (json::text(&resolve), r#"{"decision":"allow","decidedBy":"b"}"#),
        (json::text(&Shutdown { if_idle: Some(true) }), r#"{"ifIdle":true}"#),
    ] {
        assert_eq!(text, expected);
    }
}

#[test]
fn a_grant_has_one_name_and_other_names_are_none() {
    for grant in [Grant::Settings, Grant::Edits, Grant::All] {
        let options = |name: &str| TurnOptions { grant: Some(name.into()), ..Default::default() };
        assert_eq!(options(grant.name()).grant(), Some(grant));
        assert_eq!(options(&grant.name().to_uppercase()).grant(), None);
    }
    assert_eq!(TurnOptions::default().grant(), Some(Grant::Settings));
}

#[test]
fn a_mask_is_octal() {
    let mask = |text: &str| TurnOptions { umask: Some(text.into()), ..Default::default() }.umask();
    assert_eq!([mask("0077"), mask("22"), mask("0")], [Some(0o077), Some(0o022), Some(0)]);
    for text in ["", "8", "+7", "1000", "0x7", "777777777777"] {
        assert_eq!(mask(text), None, "{text}");
    }
    assert_eq!(TurnOptions::default().umask(), Some(0o022));
}

#[test]
fn a_key_is_not_shown() {
    assert_eq!(format!("{:?}", Key("sk-secret".into())), "Key(…)");
}
