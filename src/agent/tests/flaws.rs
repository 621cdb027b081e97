//! Answers that are no good: cut off, empty, repeated; and calls that a model writes in tags.

use super::*;

fn cut_call() -> Answer {
    Answer::Whole(Completion {
        text: "I will write it.".to_owned(),
        finish: FinishReason::Length,
        has_cut_call: true,
        ..Completion::default()
    })
}

/// Returns the requests in which the model is told something.
fn told(fixture: &Fixture, words: &str) -> Vec<bool> {
    fixture.requests().iter().map(|request| request.messages.contains(words)).collect()
}

#[test]
fn a_call_that_is_cut_off_is_never_a_success() {
    let fixture = Fixture::new(|_| cut_call());
    let events = fixture.run(unattended(), "turn.error");
    let error = payloads(&events, "turn.error")[0];
    assert!(error.contains(r#""code":"model-cut-off""#), "{error}");
    assert!(payloads(&events, "tool.start").is_empty());
    assert_eq!(told(&fixture, "make smaller calls"), [false, true]);
    // The model may do better.
    let fixture = Fixture::new(|round| match round {
        0 => cut_call(),
        1 => call("read_file", r#"{"path":"notes.txt"}"#),
        _ => Answer::Text("done"),
    });
    let events = fixture.run(unattended(), "turn.done");
    let notice = payloads(&events, "turn.notice")[0];
    assert!(notice.contains("a tool call was cut off") && !notice.contains("waitMs"), "{notice}");
    assert_eq!(told(&fixture, "make smaller calls"), [false, true, true]);
    // One that a filter has removed is gone.
    let fixture = Fixture::new(|_| {
        Answer::Whole(Completion {
            text: "I will write it.".to_owned(),
            finish: FinishReason::Other("content_filter".to_owned()),
            has_cut_call: true,
            ..Completion::default()
        })
    });
    let events = fixture.run(unattended(), "turn.error");
    assert!(payloads(&events, "turn.error")[0].contains("(content_filter)"));
    assert_eq!(fixture.requests().len(), 1);
}

#[test]
fn thinking_that_reaches_the_limit_is_cut_off_at_once() {
    let thought =
        || Completion { finish: FinishReason::Length, has_thinking: true, ..Completion::default() };
    let fixture = Fixture::new(move |_| Answer::Whole(thought()));
    let events = fixture.run(unattended(), "turn.error");
    let error = payloads(&events, "turn.error")[0];
    assert!(error.contains(r#""code":"model-cut-off""#), "{error}");
    assert!(error.contains("thinking included") && fixture.requests().len() == 1, "{error}");
}

#[test]
fn an_empty_answer_is_asked_for_once_more() {
    for empty in ["", " \n"] {
        let fixture = Fixture::new(move |_| Answer::Text(empty));
        let events = fixture.run(unattended(), "turn.error");
        let error = payloads(&events, "turn.error")[0];
        assert!(error.contains(r#""code":"model-empty""#), "{error}");
        assert_eq!(fixture.requests().len(), 2);
    }
    let fixture = Fixture::new(|round| Answer::Text(if round == 0 { "" } else { "hello" }));
    fixture.run(unattended(), "turn.done");
}

#[test]
fn a_model_that_repeats_itself_is_stopped_and_asked_once_more() {
    const PARAGRAPH: &str = "I will now read the file and then I will tell you what is in it. It is \
        a good file, and I am sure that it has all that you want to know about the matter. ";
    fn circles() -> Answer {
        Answer::Whole(Completion { text: PARAGRAPH.repeat(10_000), ..Completion::default() })
    }
    let fixture = Fixture::new(|_| circles());
    let events = fixture.run(unattended(), "turn.error");
    let error = payloads(&events, "turn.error")[0];
    assert!(error.contains(r#""code":"tool-loop""#) && error.contains("the same text"), "{error}");
    assert_eq!(told(&fixture, "do not repeat yourself"), [false, true]);
    let text: usize = payloads(&events, "turn.token").iter().map(|token| token.len()).sum();
    assert!(text < 200 * 1024, "{text}");
    let fixture = Fixture::new(|round| if round == 0 { circles() } else { Answer::Text("done") });
    fixture.run(unattended(), "turn.done");
}

#[test]
fn calls_in_tags_are_run_and_never_shown() {
    let tagged = |text: &str| {
        Answer::Whole(Completion { text_calls: text.to_owned(), ..Completion::default() })
    };
    let fixture = Fixture::new(move |round| match round {
        0 => tagged(
            "<tool_call>{\"name\":\"read_file\",\"arguments\":{\"path\":\"notes.txt\"}}\
             </tool_call>\n<tool_call>{\"name\":\"list_dir\",\"arguments\":{}}</tool_call>",
        ),
        1 => tagged(
            "<tool_call>\n<function=run_command>\n<parameter=command>\ntouch ran\n</parameter>\n\
             </function>\n</tool_call>",
        ),
        2 => tagged("<tool_call> is a tag"),
        _ => unreachable!(),
    });
    let events = fixture.run(granted(Grant::All), "turn.done");
    assert_eq!(payloads(&events, "tool.end").len(), 3);
    assert!(fixture.scratch.path().join("work/ran").exists());
    // What turns out to be no call is text.
    let tokens = payloads(&events, "turn.token");
    assert!(tokens.len() == 1 && tokens[0].contains("<tool_call> is a tag"), "{tokens:?}");
    assert!(!fixture.requests()[2].messages.contains("<tool_call>"));
}

#[test]
fn what_the_server_needs_back_is_sent_for_the_rest_of_the_turn() {
    let fixture = Fixture::new(|round| match round {
        0 => {
            let (name, arguments) = ("read_file".to_owned(), r#"{"path":"notes.txt"}"#.to_owned());
            let extra = r#","extra_content":{"s":"x"}"#.to_owned();
            let calls = vec![ToolCall { id: "a".to_owned(), name, arguments, extra }];
            let extra = r#","reasoning_content":"hm""#.to_owned();
            Answer::Whole(Completion { calls, extra, ..Completion::default() })
        }
        _ => Answer::Text("done"),
    });
    fixture.run(unattended(), "turn.done");
    let events = fixture.run(unattended(), "turn.done");
    let requests = fixture.requests();
    let sent = r#"{"role":"assistant","content":"","reasoning_content":"hm","tool_calls":[{"id":"a","type":"function","function":{"name":"read_file","arguments":"{\"path\":\"notes.txt\"}"},"extra_content":{"s":"x"}}]}"#;
    assert!(requests[1].messages.contains(sent), "{}", requests[1].messages);
    assert!(!requests[2].messages.contains("reasoning_content"));
    assert!(!format!("{events:?}").contains("extra_content"));
}

#[test]
fn a_request_that_is_refused_is_sent_once_more_with_half_of_a_long_conversation() {
    let long: String = (0..3_000).map(|line| format!("{line:07}\n")).collect();
    let fixture = Fixture::new(|round| match round {
        0 => call("read_file", r#"{"path":"long.txt"}"#),
        1 => Answer::Fault("refused"),
        _ => Answer::Text("done"),
    });
    fixture.scratch.put("work/long.txt", &long);
    fixture.run(unattended(), "turn.done");
    let sizes: Vec<usize> = fixture.requests().iter().map(|one| one.messages.len()).collect();
    assert!(sizes[1] > 24 * 1024 && sizes[2] <= sizes[1] / 2, "{sizes:?}");
    // Once, and not a short one.
    let fixture = Fixture::new(|round| match round {
        0 => call("read_file", r#"{"path":"long.txt"}"#),
        _ => Answer::Fault("refused"),
    });
    fixture.scratch.put("work/long.txt", &long);
    let events = fixture.run(unattended(), "turn.error");
    assert!(payloads(&events, "turn.error")[0].contains(r#""code":"model-error""#));
    assert_eq!(fixture.requests().len(), 3);
    let fixture = Fixture::new(|_| Answer::Fault("refused"));
    fixture.run(unattended(), "turn.error");
    assert_eq!(fixture.requests().len(), 1);
}

#[test]
fn the_first_request_fits_into_a_context_whose_size_is_known() {
    let fixture = Fixture::new(|round| match round {
        0 => call("read_file", r#"{"path":"long.txt"}"#),
        _ => Answer::Text("done"),
    });
    let long: String = (0..10_000).map(|line| format!("{line:07}\n")).collect();
    fixture.scratch.put("work/long.txt", &long);
    *fixture.context_tokens.lock().unwrap() = Some(8192);
    fixture.run(unattended(), "turn.done");
    let sizes: Vec<usize> = fixture.requests().iter().map(|one| one.messages.len()).collect();
    assert_eq!(sizes.len(), 2);
    assert!(sizes[1] < 8192 * 3, "{sizes:?}");
}
