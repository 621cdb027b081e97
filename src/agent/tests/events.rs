//! The events and requests of a turn.

use super::*;

#[test]
fn a_call_is_recorded_and_run_and_the_answer_is_streamed() {
    let fixture = Fixture::new(|round| match round {
        0 => call("file_read", r#"{ "path": "notes.txt" }"#),
        _ => Answer::Text("Buy milk \tnow.\n"),
    });
    let events = fixture.run(unattended(), "turn.done");
    let wanted = [
        "session.snapshot",
        "turn.queued",
        "turn.start",
        "turn.thinking",
        "tool.start",
        "tool.end",
        "turn.token",
        "turn.token",
        "turn.token",
        "turn.done",
    ];
    assert_eq!(names(&events), wanted);
    let start = payloads(&events, "tool.start")[0];
    assert!(
        start.contains(r#""name":"read_file","id":"same","args":"{ \"path\": \"notes.txt\" }","#)
    );
    assert!(start.contains(r#""toolName":"read_file","callId":"same","toolCallId":"same","#));
    assert!(start.ends_with(r#""input":{"path":"notes.txt"}}"#), "{start}");
    let end = payloads(&events, "tool.end")[0];
    assert!(end.contains(r#""result":"1\tbuy milk\n""#) && end.contains(r#""success":true"#));
    let texts: String = payloads(&events, "turn.token").join("");
    assert!(texts.contains(r#""text":"\tnow.\n""#), "{texts}");
    let done = payloads(&events, "turn.done")[0];
    assert!(done.contains(r#""tokens":10,"promptTokens":20,"completionTokens":10,"toolCalls":1"#));
    // The time for the completion with the call counts as well.
    assert!(done.contains(r#""speed":5"#), "{done}");

    let requests = fixture.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests[0].messages.starts_with(r#"[{"role":"system","content":"You are opta"#));
    assert!(requests[0].messages.ends_with(r#"{"role":"user","content":"do it"}]"#));
    let sent = r#""tool_calls":[{"id":"same","type":"function","function":{"name":"read_file","arguments":"{\"path\":\"notes.txt\"}"}}]},{"role":"tool","tool_call_id":"same","content":"1\tbuy milk\n"}]"#;
    assert!(requests[1].messages.ends_with(sent), "{}", requests[1].messages);
    assert_eq!(requests[0].tools.matches("\"function\":{").count(), 7);

    let log = fixture.log();
    assert!(log.contains(r#""msg":"tool.start","tool":"file_read","path":"notes.txt"}"#), "{log}");
    assert!(log.contains(r#""msg":"tool.end","tool":"file_read","duration":""#), "{log}");
    for secret in ["sk-very-secret", "buy milk", "do it"] {
        assert!(!log.contains(secret), "{secret}");
    }
    let journal = format!("{events:?}");
    assert!(!journal.contains("sk-very-secret"));
}

#[test]
fn arguments_that_are_quoted_twice_are_unquoted() {
    let fixture = Fixture::new(|round| match round {
        0 => call("read_file", r#""{\"path\":\"notes.txt\",\"limit\":\"1\"}""#),
        _ => Answer::Text("done"),
    });
    let events = fixture.run(unattended(), "turn.done");
    let start = payloads(&events, "tool.start")[0];
    assert!(start.contains(r#""input":{"path":"notes.txt","limit":"1"}"#), "{start}");
    assert!(payloads(&events, "tool.end")[0].contains("buy milk"));
    let sent = r#""arguments":"{\"path\":\"notes.txt\",\"limit\":\"1\"}""#;
    assert!(fixture.requests()[1].messages.contains(sent), "{}", fixture.requests()[1].messages);
}

#[test]
fn the_next_turn_has_the_conversation_so_far() {
    let fixture = Fixture::new(|round| match round {
        0 => call("read_file", r#"{"path":"notes.txt"}"#),
        1 => Answer::Text("Milk."),
        _ => Answer::Text("As I said."),
    });
    fixture.run(unattended(), "turn.done");
    let before = fixture.requests()[1].messages.clone();
    fixture.run(unattended(), "turn.done");
    let begun = before.strip_suffix(']').unwrap();
    let requests = fixture.requests()[2].messages.clone();
    let rest = requests.strip_prefix(begun).unwrap();
    let wanted = r#",{"role":"assistant","content":"Milk."},{"role":"user","content":"do it"}]"#;
    assert_eq!(rest, wanted);
}

#[test]
fn calls_that_only_read_run_in_parallel_and_their_results_are_in_order() {
    let fixture = Fixture::new(|round| match round {
        0 => Answer::Calls(vec![
            ("search_files", r#"{"pattern":"milk"}"#.into()),
            ("read_file", r#"{"path":"none"}"#.into()),
            ("list_dir", "{}".into()),
        ]),
        _ => Answer::Text("done"),
    });
    let events = fixture.run(unattended(), "turn.done");
    let wanted = ["tool.start", "tool.start", "tool.start", "tool.end", "tool.end", "tool.end"];
    assert_eq!(names(&events)[4..10], wanted);
    let ends = payloads(&events, "tool.end");
    for (end, (id, text)) in ends.iter().zip([
        ("same", "notes.txt:1:buy milk"),
        ("call_2", "error: there is no none"),
        ("call_3", "notes.txt"),
    ]) {
        assert!(end.contains(&format!("\"id\":\"{id}\"")) && end.contains(text), "{end}");
    }
    let sent = &fixture.requests()[1].messages;
    let order: Vec<usize> =
        ["\"same\",\"content\"", "\"call_2\",\"content\"", "\"call_3\",\"content\""]
            .iter()
            .map(|id| sent.find(id).unwrap())
            .collect();
    assert!(order.is_sorted(), "{sent}");
}

#[test]
fn errors_in_calls_are_returned_to_the_model_with_their_position() {
    let fixture = Fixture::new(|round| match round {
        0 => Answer::Calls(vec![
            ("read_file", "{\"path\":\n\"no".into()),
            ("read_file", r#"{"file":"x"}"#.into()),
            ("rm", "{}".into()),
        ]),
        _ => Answer::Text("sorry"),
    });
    let events = fixture.run(granted(Grant::All), "turn.done");
    let ends = payloads(&events, "tool.end");
    assert!(ends[0].contains("error: read_file needs {\\\"path\\\": string"), "{}", ends[0]);
    assert!(ends[0].contains("line 2, column 1"), "{}", ends[0]);
    assert!(ends[1].contains("the field \\\"path\\\" is missing"), "{}", ends[1]);
    assert!(ends[2].contains("error: there is no tool \\\"rm\\\"; the tools are read_file,"));
    assert!(ends.iter().all(|end| end.contains(r#""success":false"#)));
    assert!(payloads(&events, "tool.start")[0].ends_with(r#""input":{}}"#));
    assert_eq!(fixture.requests()[1].messages.matches(r#""arguments":"{}""#).count(), 2);
}

#[test]
fn the_same_call_with_the_same_result_is_pointed_out_once_and_then_ends_the_turn() {
    let fixture = Fixture::new(|round| {
        let blanks = " ".repeat(round);
        call("read_file", &format!(r#"{{{blanks}"path":"notes.txt"}}"#))
    });
    let events = fixture.run(unattended(), "turn.error");
    let error = payloads(&events, "turn.error")[0];
    assert!(error.contains(r#""code":"tool-loop""#) && error.contains("read_file"), "{error}");
    let (nudge, requests) = ("with the same result: do", fixture.requests());
    let nudges: Vec<usize> =
        requests.iter().map(|request| request.messages.matches(nudge).count()).collect();
    assert_eq!(nudges, [0, 0, 0, 1]);
    assert_eq!(payloads(&events, "tool.end").len(), 4);
    assert!(!format!("{events:?}").contains(nudge));

    // Polling: the same call with other results.
    let fixture = Fixture::new(|round| match round {
        9 => Answer::Text("done"),
        _ => call("run_command", r#"{"command":"echo >>polls; wc -l polls"}"#),
    });
    let events = fixture.run(granted(Grant::All), "turn.done");
    assert_eq!(payloads(&events, "tool.end").len(), 9);
    assert!(!fixture.requests().iter().any(|request| request.messages.contains(nudge)));

    let fixture = Fixture::new(|round| match round {
        6 => Answer::Text("done"),
        _ => call("read_file", &format!(r#"{{"path":"notes.txt","offset":{}}}"#, round % 2)),
    });
    assert_eq!(payloads(&fixture.run(unattended(), "turn.done"), "tool.end").len(), 6);
}

#[test]
fn the_number_of_calls_is_limited_and_the_last_request_allows_none() {
    let next =
        |round: usize| call("list_dir", &format!(r#"{{"path":"{}"}}"#, "./".repeat(round + 1)));
    let fixture =
        Fixture::new(move |round| if round < 3 { next(round) } else { Answer::Text("enough") });
    fixture.scratch.put("config.json", r#"{"safety":{"maxToolCalls":3}}"#);
    let events = fixture.run(unattended(), "turn.done");
    assert_eq!(payloads(&events, "tool.start").len(), 3);
    let requests = fixture.requests();
    // Strict servers reject a conversation with calls and without tools.
    assert!(requests.iter().all(|request| request.tools == requests[0].tools));
    let choices: Vec<&str> = requests.iter().map(|one| one.tool_choice.as_str()).collect();
    assert_eq!(choices, ["auto", "auto", "auto", "none"]);

    let fixture = Fixture::new(next);
    fixture.scratch.put("config.json", r#"{"safety":{"maxToolCalls":3}}"#);
    let events = fixture.run(unattended(), "turn.error");
    assert_eq!(payloads(&events, "tool.start").len(), 3);
    assert!(payloads(&events, "turn.error")[0].contains(r#""code":"tool-limit""#));

    // Of a completion with too many calls, the first ones run.
    let many = |count: usize| {
        (0..count)
            .map(|n| ("list_dir", format!(r#"{{"path":"{}"}}"#, "./".repeat(n + 1))))
            .collect()
    };
    let fixture = Fixture::new(move |round| match round {
        0 => Answer::Calls(many(101)),
        _ => Answer::Text("done"),
    });
    assert_eq!(payloads(&fixture.run(unattended(), "turn.done"), "tool.start").len(), 100);
}

#[test]
fn a_call_is_required_as_often_as_the_endpoint_says() {
    for (choice, wanted) in [
        (None, ["auto", "auto"]),
        (Some("auto"), ["auto", "auto"]),
        (Some("required-first"), ["required", "auto"]),
        (Some("required"), ["required", "required"]),
    ] {
        let fixture = Fixture::new(|round| match round {
            0 => call("list_dir", "{}"),
            _ => Answer::Text("done"),
        });
        let options = TurnOptions { endpoint: Some(endpoint(choice)), ..unattended() };
        fixture.run(options, "turn.done");
        let requests: Vec<String> =
            fixture.requests().into_iter().map(|request| request.tool_choice).collect();
        assert_eq!(requests, wanted, "{choice:?}");
    }
}

#[test]
fn equal_calls_side_by_side_run_once() {
    let command = r#"{"command":"echo x >>runs"}"#;
    let fixture = Fixture::new(move |round| match round {
        0 => Answer::Calls(vec![
            ("run_command", command.into()),
            ("run_command", format!(" {command}")),
            ("list_dir", "{}".into()),
        ]),
        _ => Answer::Text("done"),
    });
    let events = fixture.run(granted(Grant::All), "turn.done");
    assert_eq!(payloads(&events, "tool.start").len(), 2);
    assert_eq!(fixture.scratch.read("work/runs"), "x\n");
    assert_eq!(fixture.requests()[1].messages.matches("tool_call_id").count(), 2);
}

#[test]
fn a_call_runs_again_after_another_one() {
    let append = |text: &str| format!(r#"{{"command":"echo {text} >>runs"}}"#);
    let fixture = Fixture::new(move |round| match round {
        0 => Answer::Calls(["a", "b", "a"].map(|text| ("run_command", append(text))).into()),
        _ => Answer::Text("done"),
    });
    fixture.run(granted(Grant::All), "turn.done");
    assert_eq!(fixture.scratch.read("work/runs"), "a\nb\na\n");
}

#[test]
fn ids_of_calls_are_unique_within_a_session() {
    // The scripted model gives every call the same id.
    let fixture = Fixture::new(|round| match round % 2 {
        0 => call("read_file", r#"{"path":"notes.txt"}"#),
        _ => Answer::Text("done"),
    });
    fixture.run(unattended(), "turn.done");
    let events = fixture.run(unattended(), "turn.done");
    let ends = payloads(&events, "tool.end");
    assert!(ends[0].contains(r#""id":"same""#) && ends[1].contains(r#""id":"call_2""#), "{ends:?}");
    let messages = &fixture.requests()[3].messages;
    assert_eq!(messages.matches(r#""tool_call_id":"same""#).count(), 1);
    assert_eq!(messages.matches(r#""tool_call_id":"call_2""#).count(), 1);
}
