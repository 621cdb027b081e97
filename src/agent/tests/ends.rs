//! How turns end that do not go well, and what they need to begin.

use super::*;

#[test]
fn damaged_settings_end_the_turn_with_their_place_and_count_once_repaired() {
    let stage = Stage::new(|_| Says::Text("done"));
    for (text, place) in [
        ("{\n \"permissions\": {\"shell\": \"perhaps\"}}", "config.json:2:"),
        ("{\n", "config.json:"),
        (r#"{"safety":{"maxToolCalls":0}}"#, "safety.maxToolCalls"),
        (r#"{"safety":{"maxToolCalls":1001}}"#, "safety.maxToolCalls"),
    ] {
        stage.scratch.put("config.json", text);
        let events = stage.run(alone(), "turn.error");
        let error = events.last().unwrap().1.clone();
        assert!(error.contains(r#""code":"config-error""#) && error.contains(place), "{error}");
    }
    stage.scratch.put("config.json", "{}");
    stage.run(alone(), "turn.done");
}

#[test]
fn faults_of_the_model_end_the_turn() {
    let stage = Stage::new(|_| Says::Fault("model-disconnected"));
    let events = stage.run(alone(), "turn.error");
    assert!(of(&events, "turn.error")[0].contains(r#""code":"model-disconnected""#));

    let stage = Stage::new(|_| Says::Fault("context-too-long"));
    let events = stage.run(alone(), "turn.error");
    assert!(of(&events, "turn.error")[0].contains(r#""code":"context-too-long""#));
    assert_eq!(stage.asked().len(), 1);
}

#[test]
fn a_result_that_is_too_long_for_the_model_ends_neither_its_turn_nor_the_session() {
    let stage = Stage::new(|round| match round {
        0 => call("read_file", r#"{"path":"long.txt"}"#),
        1 => Says::Text("done"),
        _ => Says::Text("hello"),
    });
    let long: String = (0..10_000).map(|line| format!("{line:07}\n")).collect();
    stage.scratch.put("work/long.txt", &long);
    stage.context.store(8 * 1024, Ordering::SeqCst);
    let events = stage.run(alone(), "turn.done");
    assert!(of(&events, "tool.end")[0].len() > 32 * 1024);
    let asked = stage.asked();
    assert!(asked[asked.len() - 2].messages.len() > 16 * 1024);
    let heard = &asked.last().unwrap().messages;
    assert!(heard.contains("0000001") && heard.contains("0009999"), "{heard}");
    assert!(heard.contains("bytes are left out here"), "{heard}");
    // Neither the next turn, which does not try again what was too long, nor one for which there is
    // less room.
    let before = stage.asked().len();
    stage.run(alone(), "turn.done");
    assert_eq!(stage.asked().len(), before + 1);
    stage.context.store(1024, Ordering::SeqCst);
    stage.run(alone(), "turn.done");
}

#[test]
fn a_chat_may_become_longer_than_the_context_of_its_model() {
    let stage = Stage::new(|_| Says::Text("one two three four five six seven eight nine ten"));
    stage.context.store(2048, Ordering::SeqCst);
    for _ in 0..40 {
        stage.run(alone(), "turn.done");
    }
    let asked = stage.asked();
    assert!(asked.len() < 50, "{} requests for 40 turns", asked.len());
    let heard = asked.last().unwrap().messages.clone();
    assert!(heard.contains("is left out") && heard.matches("do it").count() > 5, "{heard}");
}

#[test]
fn a_first_call_that_is_bungled_is_demanded_once() {
    let bungled: [fn() -> Says; 2] = [|| Says::Fault("model-malformed"), || Says::Cut("")];
    for bungle in bungled {
        let stage = Stage::new(move |round| match round {
            0 => bungle(),
            1 => call("read_file", r#"{"path":"notes.txt"}"#),
            _ => Says::Text("done"),
        });
        stage.run(alone(), "turn.done");
        let asked = stage.asked();
        let choices: Vec<&str> = asked.iter().map(|asked| asked.tool_choice.as_str()).collect();
        assert_eq!(choices, ["auto", "required", "auto"]);
        assert_eq!(asked[0].messages, asked[1].messages);
    }
    // Once, and not behind a call that went well.
    let stage = Stage::new(|_| Says::Fault("model-malformed"));
    let events = stage.run(alone(), "turn.error");
    assert!(of(&events, "turn.error")[0].contains(r#""code":"model-malformed""#));
    assert_eq!(stage.asked().len(), 2);
    let stage = Stage::new(|round| match round {
        0 => call("read_file", r#"{"path":"notes.txt"}"#),
        _ => Says::Fault("model-malformed"),
    });
    stage.run(alone(), "turn.error");
    assert_eq!(stage.asked().len(), 2);
}

#[test]
fn an_answer_that_is_cut_off_before_a_word_is_an_error_and_one_with_words_is_not() {
    let stage = Stage::new(|_| Says::Cut(""));
    let events = stage.run(alone(), "turn.error");
    assert!(of(&events, "turn.error")[0].contains(r#""code":"model-cut-off""#));
    let stage = Stage::new(|_| Says::Filtered(""));
    let events = stage.run(alone(), "turn.error");
    let error = of(&events, "turn.error")[0];
    assert!(error.contains(r#""code":"model-cut-off""#), "{error}");
    assert!(error.contains("(content_filter)") && stage.asked().len() == 1, "{error}");
    // Not even if the words look like a call.
    for says in [Says::Cut, Says::Filtered] {
        let stage = Stage::new(move |_| says(r#"{"name":"list_dir","arguments":{}}"#));
        let events = stage.run(alone(), "turn.done");
        assert!(of(&events, "tool.start").is_empty());
    }
}

#[test]
fn a_call_that_is_written_as_text_is_a_call() {
    let stage = Stage::new(|round| match round {
        0 => Says::Text(r#"{"name":"read_file","arguments":{"path":"notes.txt"}}"#),
        _ => Says::Text("done"),
    });
    let events = stage.run(alone(), "turn.done");
    assert!(of(&events, "tool.end")[0].contains("buy milk"));
}

#[test]
fn a_call_that_is_written_as_text_may_be_an_example_and_does_nothing_without_a_question() {
    let said = r#"{"name":"run_command","arguments":{"command":"touch ran"}}"#;
    let stage = Stage::new(move |round| match round {
        0 => Says::Text(said),
        _ => Says::Text("done"),
    });
    let events = stage.run(granted(Grant::All), "turn.done");
    assert!(of(&events, "tool.end")[0].contains("nobody is there to be asked"), "{events:?}");
    assert!(!stage.scratch.path().join("work/ran").exists());
    // Between other words it is not even that.
    let stage = Stage::new(|_| {
        Says::Text("So: ```{\"name\":\"run_command\",\"arguments\":{\"command\":\"touch ran\"}}```")
    });
    let events = stage.run(granted(Grant::All), "turn.done");
    assert!(of(&events, "tool.start").is_empty(), "{events:?}");
    assert_eq!(stage.asked().len(), 1);
}

#[test]
fn without_a_workspace_there_are_no_tools() {
    let stage = Stage::in_workspace(false, |_| Says::Text("hello"));
    stage.run(granted(Grant::All), "turn.done");
    let asked = stage.asked();
    assert_eq!((asked[0].tools.as_str(), asked[0].tool_choice.as_str()), ("[]", "none"));
    // One that has gone is told to the model when it matters.
    let stage = Stage::new(|round| match round {
        0 => call("list_dir", "{}"),
        _ => Says::Text("gone"),
    });
    std::fs::remove_dir_all(stage.scratch.path().join("work")).unwrap();
    let events = stage.run(alone(), "turn.done");
    assert!(of(&events, "tool.end")[0].contains("cannot be opened: No such file"));
}

#[test]
fn commands_have_the_callers_environment() {
    let stage = Stage::new(|round| match round {
        0 => call("run_command", r#"{"command":"echo $MINE; echo $HOME"}"#),
        _ => Says::Text("done"),
    });
    let environment = vec![Variable { name: "MINE".to_owned(), value: "of the caller".to_owned() }];
    let events = stage
        .run(TurnOptions { environment: Some(environment), ..granted(Grant::All) }, "turn.done");
    let end = of(&events, "tool.end")[0];
    assert!(end.contains(r#""result":"of the caller\n\n[exit code: 0]""#), "{end}");
    assert!(!format!("{events:?}").contains("MINE=") && !stage.log().contains("of the caller"));
}
