//! How turns end, above all those that fail.

use super::*;

#[test]
fn invalid_settings_fail_the_turn_with_their_position_until_they_are_repaired() {
    let fixture = Fixture::new(|_| Answer::Text("done"));
    for (text, at) in [
        ("{\n \"permissions\": {\"shell\": \"perhaps\"}}", "config.json: permissions.shell: "),
        ("{\n \"permissions\": {\"shell\": perhaps}}", "config.json:2:"),
        ("{\n", "config.json:"),
        (r#"{"safety":{"maxToolCalls":0}}"#, "safety.maxToolCalls"),
        (r#"{"safety":{"maxToolCalls":1001}}"#, "safety.maxToolCalls"),
    ] {
        fixture.scratch.put("config.json", text);
        let events = fixture.run(unattended(), "turn.error");
        let error = events.last().unwrap().1.clone();
        assert!(error.contains(r#""code":"config-error""#) && error.contains(at), "{error}");
    }
    fixture.scratch.put("config.json", "{}");
    fixture.run(unattended(), "turn.done");
}

#[test]
fn faults_of_the_model_end_the_turn() {
    let fixture = Fixture::new(|_| Answer::Fault("model-disconnected"));
    let events = fixture.run(unattended(), "turn.error");
    assert!(payloads(&events, "turn.error")[0].contains(r#""code":"model-disconnected""#));

    let fixture = Fixture::new(|_| Answer::Fault("context-too-long"));
    let events = fixture.run(unattended(), "turn.error");
    assert!(payloads(&events, "turn.error")[0].contains(r#""code":"context-too-long""#));
    assert_eq!(fixture.requests().len(), 1);
}

#[test]
fn a_turn_that_fills_its_part_of_the_journal_ends() {
    let begin = |events: &[Event]| events.iter().rposition(|(name, _)| name == "turn.start");
    let tokens = |events: &[Event]| payloads(&events[begin(events).unwrap()..], "turn.token").len();
    // Without repetitions nearby, which would be a loop.
    let word: String = (0..1 << 14).map(|number| format!("{number:07}-")).collect();
    let fixture = Fixture::new(move |round| {
        let text = format!("{word} ").repeat(if round == 0 { 8 } else { 9 });
        Answer::Whole(Completion { text, ..Completion::default() })
    });
    // Each of these tokens takes an eighth of what a turn may write, and some bytes.
    let events = fixture.run(unattended(), "turn.done");
    assert_eq!(tokens(&events), 8);
    let events = fixture.run(unattended(), "turn.error");
    assert_eq!(tokens(&events), 8);
    let error = payloads(&events, "turn.error")[0];
    assert!(error.contains(r#""code":"turn-too-long""#) && error.contains("1 MiB"), "{error}");
}

#[test]
fn a_result_that_is_too_long_for_the_model_is_shortened() {
    let fixture = Fixture::new(|round| match round {
        0 => call("read_file", r#"{"path":"long.txt"}"#),
        1 => Answer::Text("done"),
        _ => Answer::Text("hello"),
    });
    let long: String = (0..10_000).map(|line| format!("{line:07}\n")).collect();
    fixture.scratch.put("work/long.txt", &long);
    fixture.context.store(8 * 1024, Ordering::SeqCst);
    let events = fixture.run(unattended(), "turn.done");
    assert!(payloads(&events, "tool.end")[0].len() > 32 * 1024);
    let requests = fixture.requests();
    assert!(requests[requests.len() - 2].messages.len() > 16 * 1024);
    let sent = &requests.last().unwrap().messages;
    assert!(sent.contains("0000001") && sent.contains("0009999"), "{sent}");
    assert!(sent.contains("bytes are left out here"), "{sent}");
    // The next turn does not try again what was too long, and one with less room shortens it more.
    let before = fixture.requests().len();
    fixture.run(unattended(), "turn.done");
    assert_eq!(fixture.requests().len(), before + 1);
    fixture.context.store(1024, Ordering::SeqCst);
    fixture.run(unattended(), "turn.done");
}

#[test]
fn a_conversation_may_become_longer_than_the_context_of_its_model() {
    let fixture =
        Fixture::new(|_| Answer::Text("one two three four five six seven eight nine ten"));
    fixture.context.store(2048, Ordering::SeqCst);
    for _ in 0..40 {
        fixture.run(unattended(), "turn.done");
    }
    let requests = fixture.requests();
    assert!(requests.len() < 50, "{} requests for 40 turns", requests.len());
    let sent = requests.last().unwrap().messages.clone();
    assert!(sent.contains("is left out") && sent.matches("do it").count() > 5, "{sent}");
}

#[test]
fn a_first_call_that_fails_is_required_once() {
    let failures: [fn() -> Answer; 2] = [|| Answer::Fault("model-malformed"), || Answer::Cut("")];
    for failure in failures {
        let fixture = Fixture::new(move |round| match round {
            0 => failure(),
            1 => call("read_file", r#"{"path":"notes.txt"}"#),
            _ => Answer::Text("done"),
        });
        fixture.run(unattended(), "turn.done");
        let requests = fixture.requests();
        let choices: Vec<&str> =
            requests.iter().map(|request| request.tool_choice.as_str()).collect();
        assert_eq!(choices, ["auto", "required", "auto"]);
        assert_eq!(requests[0].messages, requests[1].messages);
    }
    // Once, and not after a call that succeeded.
    let fixture = Fixture::new(|_| Answer::Fault("model-malformed"));
    let events = fixture.run(unattended(), "turn.error");
    assert!(payloads(&events, "turn.error")[0].contains(r#""code":"model-malformed""#));
    assert_eq!(fixture.requests().len(), 2);
    let fixture = Fixture::new(|round| match round {
        0 => call("read_file", r#"{"path":"notes.txt"}"#),
        _ => Answer::Fault("model-malformed"),
    });
    fixture.run(unattended(), "turn.error");
    assert_eq!(fixture.requests().len(), 2);
}

#[test]
fn an_answer_that_is_cut_off_is_an_error_only_if_it_has_no_text() {
    let fixture = Fixture::new(|_| Answer::Cut(""));
    let events = fixture.run(unattended(), "turn.error");
    assert!(payloads(&events, "turn.error")[0].contains(r#""code":"model-cut-off""#));
    let fixture = Fixture::new(|_| Answer::Filtered(""));
    let events = fixture.run(unattended(), "turn.error");
    let error = payloads(&events, "turn.error")[0];
    assert!(error.contains(r#""code":"model-cut-off""#), "{error}");
    assert!(error.contains("(content_filter)") && fixture.requests().len() == 1, "{error}");
    // Not even if the text looks like a call.
    for answer in [Answer::Cut, Answer::Filtered] {
        let fixture = Fixture::new(move |_| answer(r#"{"name":"list_dir","arguments":{}}"#));
        let events = fixture.run(unattended(), "turn.done");
        assert!(payloads(&events, "tool.start").is_empty());
    }
}

#[test]
fn a_call_that_is_written_as_text_is_run() {
    let fixture = Fixture::new(|round| match round {
        0 => Answer::Text(r#"{"name":"read_file","arguments":{"path":"notes.txt"}}"#),
        _ => Answer::Text("done"),
    });
    let events = fixture.run(unattended(), "turn.done");
    assert!(payloads(&events, "tool.end")[0].contains("buy milk"));
}

#[test]
fn a_call_that_is_written_as_text_may_be_an_example_and_changes_nothing_without_permission() {
    let text = r#"{"name":"run_command","arguments":{"command":"touch ran"}}"#;
    let fixture = Fixture::new(move |round| match round {
        0 => Answer::Text(text),
        _ => Answer::Text("done"),
    });
    let events = fixture.run(granted(Grant::All), "turn.done");
    assert!(payloads(&events, "tool.end")[0].contains("nobody is there to be asked"), "{events:?}");
    assert!(!fixture.scratch.path().join("work/ran").exists());
    // Within other text it is no call at all.
    let fixture = Fixture::new(|_| {
        Answer::Text(
            "So: ```{\"name\":\"run_command\",\"arguments\":{\"command\":\"touch ran\"}}```",
        )
    });
    let events = fixture.run(granted(Grant::All), "turn.done");
    assert!(payloads(&events, "tool.start").is_empty(), "{events:?}");
    assert_eq!(fixture.requests().len(), 1);
}

#[test]
fn without_a_workspace_there_are_no_tools() {
    let fixture = Fixture::with(false, None, |_| Answer::Text("hello"));
    fixture.run(granted(Grant::All), "turn.done");
    let requests = fixture.requests();
    assert_eq!((requests[0].tools.as_str(), requests[0].tool_choice.as_str()), ("[]", "none"));
    // The model learns that a workspace was removed when it uses a tool.
    let fixture = Fixture::new(|round| match round {
        0 => call("list_dir", "{}"),
        _ => Answer::Text("gone"),
    });
    std::fs::remove_dir_all(fixture.scratch.path().join("work")).unwrap();
    let events = fixture.run(unattended(), "turn.done");
    assert!(payloads(&events, "tool.end")[0].contains("cannot be opened: No such file"));
}

#[test]
fn commands_have_the_callers_environment() {
    let fixture = Fixture::new(|round| match round {
        0 => call("run_command", r#"{"command":"echo $MINE; echo $HOME"}"#),
        _ => Answer::Text("done"),
    });
    let environment = vec![Variable { name: "MINE".to_owned(), value: "of the caller".to_owned() }];
    let events = fixture
        .run(TurnOptions { environment: Some(environment), ..granted(Grant::All) }, "turn.done");
    let end = payloads(&events, "tool.end")[0];
    assert!(end.contains(r#""result":"of the caller\n\n[exit code: 0]""#), "{end}");
    assert!(!format!("{events:?}").contains("MINE=") && !fixture.log().contains("of the caller"));
}
