//! What the session and the model hear of a turn.

use super::*;

#[test]
fn a_call_is_told_run_and_answered_and_the_answer_streamed() {
    let stage = Stage::new(|round| match round {
        0 => call("file_read", r#"{ "path": "notes.txt" }"#),
        _ => Says::Text("Buy milk \tnow.\n"),
    });
    let events = stage.run(alone(), "turn.done");
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
    let start = of(&events, "tool.start")[0];
    assert!(
        start.contains(r#""name":"read_file","id":"same","args":"{ \"path\": \"notes.txt\" }","#)
    );
    assert!(start.contains(r#""toolName":"read_file","callId":"same","toolCallId":"same","#));
    assert!(start.ends_with(r#""input":{"path":"notes.txt"}}"#), "{start}");
    let end = of(&events, "tool.end")[0];
    assert!(end.contains(r#""result":"1\tbuy milk\n""#) && end.contains(r#""success":true"#));
    let texts: String = of(&events, "turn.token").join("");
    assert!(texts.contains(r#""text":"\tnow.\n""#), "{texts}");
    let done = of(&events, "turn.done")[0];
    assert!(done.contains(r#""tokens":10,"promptTokens":20,"completionTokens":10,"toolCalls":1"#));
    // The time for a call counts as well.
    assert!(done.contains(r#""speed":5"#), "{done}");

    let asked = stage.asked();
    assert_eq!(asked.len(), 2);
    assert!(asked[0].messages.starts_with(r#"[{"role":"system","content":"You are opta"#));
    assert!(asked[0].messages.ends_with(r#"{"role":"user","content":"do it"}]"#));
    let told = r#""tool_calls":[{"id":"same","type":"function","function":{"name":"read_file","arguments":"{\"path\":\"notes.txt\"}"}}]},{"role":"tool","tool_call_id":"same","content":"1\tbuy milk\n"}]"#;
    assert!(asked[1].messages.ends_with(told), "{}", asked[1].messages);
    assert_eq!(asked[0].tools.matches("\"function\":{").count(), 7);

    let log = stage.log();
    assert!(log.contains(r#""msg":"tool.start","tool":"file_read","path":"notes.txt"}"#), "{log}");
    assert!(log.contains(r#""msg":"tool.end","tool":"file_read","duration":""#), "{log}");
    for secret in ["sk-very-secret", "buy milk", "do it"] {
        assert!(!log.contains(secret), "{secret}");
    }
    let journal = format!("{events:?}");
    assert!(!journal.contains("sk-very-secret"));
}

#[test]
fn arguments_in_quotes_too_many_are_understood_and_shown_without() {
    let stage = Stage::new(|round| match round {
        0 => call("read_file", r#""{\"path\":\"notes.txt\",\"limit\":\"1\"}""#),
        _ => Says::Text("done"),
    });
    let events = stage.run(alone(), "turn.done");
    let start = of(&events, "tool.start")[0];
    assert!(start.contains(r#""input":{"path":"notes.txt","limit":"1"}"#), "{start}");
    assert!(of(&events, "tool.end")[0].contains("buy milk"));
    let told = r#""arguments":"{\"path\":\"notes.txt\",\"limit\":\"1\"}""#;
    assert!(stage.asked()[1].messages.contains(told), "{}", stage.asked()[1].messages);
}

#[test]
fn the_next_turn_knows_what_was_said_and_done() {
    let stage = Stage::new(|round| match round {
        0 => call("read_file", r#"{"path":"notes.txt"}"#),
        1 => Says::Text("Milk."),
        _ => Says::Text("As I said."),
    });
    stage.run(alone(), "turn.done");
    let before = stage.asked()[1].messages.clone();
    stage.run(alone(), "turn.done");
    let begun = before.strip_suffix(']').unwrap();
    let asked = stage.asked()[2].messages.clone();
    let rest = asked.strip_prefix(begun).unwrap();
    let wanted = r#",{"role":"assistant","content":"Milk."},{"role":"user","content":"do it"}]"#;
    assert_eq!(rest, wanted);
}

#[test]
fn what_only_reads_runs_side_by_side_and_answers_in_order() {
    let stage = Stage::new(|round| match round {
        0 => Says::Calls(vec![
            ("search_files", r#"{"pattern":"milk"}"#.into()),
            ("read_file", r#"{"path":"none"}"#.into()),
            ("list_dir", "{}".into()),
        ]),
        _ => Says::Text("done"),
    });
    let events = stage.run(alone(), "turn.done");
    let wanted = ["tool.start", "tool.start", "tool.start", "tool.end", "tool.end", "tool.end"];
    assert_eq!(names(&events)[4..10], wanted);
    let ends = of(&events, "tool.end");
    for (end, (id, text)) in ends.iter().zip([
        ("same", "notes.txt:1:buy milk"),
        ("call_2", "error: there is no none"),
        ("call_3", "notes.txt"),
    ]) {
        assert!(end.contains(&format!("\"id\":\"{id}\"")) && end.contains(text), "{end}");
    }
    let told = &stage.asked()[1].messages;
    let order: Vec<usize> =
        ["\"same\",\"content\"", "\"call_2\",\"content\"", "\"call_3\",\"content\""]
            .iter()
            .map(|id| told.find(id).unwrap())
            .collect();
    assert!(order.is_sorted(), "{told}");
}

#[test]
fn wrong_calls_go_back_to_the_model_with_their_place() {
    let stage = Stage::new(|round| match round {
        0 => Says::Calls(vec![
            ("read_file", "{\"path\":\n\"no".into()),
            ("read_file", r#"{"file":"x"}"#.into()),
            ("rm", "{}".into()),
        ]),
        _ => Says::Text("sorry"),
    });
    let events = stage.run(granted(Grant::All), "turn.done");
    let ends = of(&events, "tool.end");
    assert!(ends[0].contains("error: read_file needs {\\\"path\\\": string"), "{}", ends[0]);
    assert!(ends[0].contains("line 2, column 1"), "{}", ends[0]);
    assert!(ends[1].contains("the field \\\"path\\\" is missing"), "{}", ends[1]);
    assert!(ends[2].contains("error: there is no tool \\\"rm\\\"; the tools are read_file,"));
    assert!(ends.iter().all(|end| end.contains(r#""success":false"#)));
    assert!(of(&events, "tool.start")[0].ends_with(r#""input":{}}"#));
    assert_eq!(stage.asked()[1].messages.matches(r#""arguments":"{}""#).count(), 2);
}

#[test]
fn the_same_call_three_times_in_a_row_ends_the_turn() {
    let stage = Stage::new(|round| {
        let blanks = " ".repeat(round);
        call("read_file", &format!(r#"{{{blanks}"path":"notes.txt"}}"#))
    });
    let events = stage.run(alone(), "turn.error");
    let error = of(&events, "turn.error")[0];
    assert!(error.contains(r#""code":"tool-loop""#) && error.contains("read_file"), "{error}");
    assert_eq!(of(&events, "tool.start").len(), 2);
    assert_eq!(of(&events, "tool.end").len(), 2);

    let stage = Stage::new(|round| match round {
        6 => Says::Text("done"),
        _ => call("read_file", &format!(r#"{{"path":"notes.txt","offset":{}}}"#, round % 2)),
    });
    assert_eq!(of(&stage.run(alone(), "turn.done"), "tool.end").len(), 6);
}

#[test]
fn calls_are_counted_and_the_last_question_is_asked_without_tools() {
    let next =
        |round: usize| call("list_dir", &format!(r#"{{"path":"{}"}}"#, "./".repeat(round + 1)));
    let stage = Stage::new(move |round| if round < 3 { next(round) } else { Says::Text("enough") });
    stage.scratch.put("config.json", r#"{"safety":{"maxToolCalls":3}}"#);
    let events = stage.run(alone(), "turn.done");
    assert_eq!(of(&events, "tool.start").len(), 3);
    let asked = stage.asked();
    assert_ne!(asked[2].tools, "[]");
    assert_eq!((asked[3].tools.as_str(), asked[3].tool_choice.as_str()), ("[]", "none"));

    let stage = Stage::new(next);
    let events = stage.run(alone(), "turn.error");
    assert_eq!(of(&events, "tool.start").len(), 30);
    assert!(of(&events, "turn.error")[0].contains(r#""code":"tool-limit""#));

    // Of one reply with too many, those that fit are run.
    let many = |count: usize| {
        (0..count)
            .map(|n| ("list_dir", format!(r#"{{"path":"{}"}}"#, "./".repeat(n + 1))))
            .collect()
    };
    let stage = Stage::new(move |round| match round {
        0 => Says::Calls(many(31)),
        _ => Says::Text("done"),
    });
    assert_eq!(of(&stage.run(alone(), "turn.done"), "tool.start").len(), 30);
}

#[test]
fn a_tool_is_required_as_often_as_was_asked_for() {
    for (choice, wanted) in [
        (None, ["auto", "auto"]),
        (Some("auto"), ["auto", "auto"]),
        (Some("required-first"), ["required", "auto"]),
        (Some("required"), ["required", "required"]),
    ] {
        let stage = Stage::new(|round| match round {
            0 => call("list_dir", "{}"),
            _ => Says::Text("done"),
        });
        let options = TurnOptions { endpoint: Some(endpoint(choice, None)), ..alone() };
        stage.run(options, "turn.done");
        let asked: Vec<String> = stage.asked().into_iter().map(|asked| asked.tool_choice).collect();
        assert_eq!(asked, wanted, "{choice:?}");
    }
}
