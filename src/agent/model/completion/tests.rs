//! Streams as servers send them, and how they are parsed.

use super::*;

/// Parses bytes that arrive in pieces of `size`; gives the deltas and the completion.
fn parse(bytes: &[u8], size: usize) -> (String, Result<Completion, CompletionError>) {
    let mut parser = CompletionParser::default();
    let mut deltas = String::new();
    let mut collect = |parser: &mut CompletionParser| {
        for Delta { kind, text } in parser.take_deltas() {
            deltas += &match kind {
                DeltaKind::Text => text,
                _ => format!("<{text}>"),
            };
        }
    };
    let mut fed = Ok(());
    for piece in bytes.chunks(size) {
        fed = fed.and_then(|()| parser.feed(piece));
        collect(&mut parser);
    }
    let ended = fed.and_then(|()| parser.end());
    collect(&mut parser);
    (deltas, ended.map(|()| parser.finish(Duration::ZERO)))
}

fn answer(stream: &str) -> Result<Completion, CompletionError> {
    let (deltas, answer) = parse(stream.as_bytes(), stream.len().max(1));
    if let Ok(answer) = &answer {
        assert_eq!(deltas, answer.text);
    }
    answer
}

fn delta(delta: &str) -> String {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{delta}}}]}}\n\n")
}

fn finish(reason: &str) -> String {
    format!("data: {{\"choices\":[{{\"delta\":{{}},\"finish_reason\":\"{reason}\"}}]}}\n\n")
}

#[test]
fn a_stream_gives_the_same_completion_however_it_is_split() {
    let stream = concat!(
        ": welcome\r\nevent: message\r\nid: 7\r\nretry: 100\r\nnonsense\r\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\r\n",
        "\r\n:\n\n",
        "data:{\"choices\":[{\"delta\":{\"reasoning_content\":\"h\u{fc}m\"}}]}\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\" \\ta\u{1f600}\"}}],\"usage\":null}\n\n",
        "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"other\"}},",
        "{\"index\":0,\"delta\":{\"content\":\"\\n\\r\\n \"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":33,\"completion_tokens\":6}}\n\n",
        "data: [DONE]\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"behind\"}}]}\n",
    );
    for size in [1, 2, 3, 5, 64, 10_000] {
        let (deltas, answer) = parse(stream.as_bytes(), size);
        let answer = answer.unwrap();
        assert_eq!(deltas, "<h\u{fc}m> \ta\u{1f600}\n\r\n ", "{size}");
        assert_eq!(answer.text, " \ta\u{1f600}\n\r\n ", "{size}");
        assert_eq!(answer.finish, FinishReason::Stop);
        assert_eq!((answer.prompt_tokens, answer.completion_tokens), (Some(33), Some(6)));
        assert!(answer.calls.is_empty());
    }
}

#[test]
fn a_character_that_the_server_splits_is_joined_and_a_lone_surrogate_is_replaced() {
    let parse_all = |deltas: &[&str], end: &str| {
        let stream: String = deltas.iter().copied().map(delta).chain([end.into()]).collect();
        let (deltas, answer) = parse(stream.as_bytes(), 1);
        (deltas, answer.map(|answer| answer.text + &answer.extra))
    };
    let done = "data: [DONE]\n";
    let (deltas, text) = parse_all(
        &[
            r#"{"content":"hi \ud83d","reasoning":"\ud83d"}"#,
            r#"{"content":""}"#,
            r#"{"reasoning":"\ude01"}"#,
            r#"{"content":"\uDE00 \\ud83d bye"}"#,
        ],
        done,
    );
    assert_eq!(text.unwrap(), "hi \u{1f600} \\ud83d bye,\"reasoning\":\"\u{1f601}\"");
    assert_eq!(deltas, "hi <\u{1f601}>\u{1f600} \\ud83d bye");
    for (deltas, whole) in [
        (
            &[r#"{"content":"a\ud83d"}"#, r#"{"content":"b\ude00\ud83d\ud83d\ude00"}"#][..],
            "a\u{fffd}b\u{fffd}\u{fffd}\u{1f600}",
        ),
        (&[r#"{"content":"a\ud83d"}"#], "a\u{fffd}"),
        (&[r#"{"content":[{"text":"a\ud83d"},{"text":"\ude00"}]}"#], "a\u{1f600}"),
        // Private-use characters that the server sends stay as they are.
        (
            &["{\"content\":\"a\u{10f83d}\"}", "{\"content\":\"\u{10fe00}\"}"],
            "a\u{10f83d}\u{10fe00}",
        ),
        (
            &["{\"content\":\"\u{10f83d}\\ud83d\"}", "{\"content\":\"\\udbfe\\udc3d\"}"],
            "\u{10f83d}\u{fffd}\u{10f83d}",
        ),
    ] {
        for end in [done.to_owned(), finish("stop")] {
            let (deltas, text) = parse_all(deltas, &end);
            assert_eq!((deltas.as_str(), text.unwrap().as_str()), (whole, whole));
        }
    }
    assert_eq!(
        parse_all(&[r#"{"content":"a\ud83d"}"#], ""),
        ("a\u{fffd}".into(), Err(CompletionError::Truncated))
    );
    let bytes =
        b"data: {\"choices\":[{\"delta\":{\"content\":\"a\xff\xe2\x82b\"}}]}\ndata: [DONE]\n";
    assert_eq!(parse(bytes, 3).1.unwrap().text, "a\u{fffd}\u{fffd}b");
    let whole = br#"{"choices":[{"message":{"content":"a\ud83d"},"finish_reason":"stop"}]}"#;
    assert_eq!(parse(whole, 7).0, "a\u{fffd}");
    let error = answer("data: {\"error\":\"a\\ud83d\"}\n").err();
    assert_eq!(
        error,
        Some(CompletionError::Reported { text: "a\u{fffd}".into(), is_final: false })
    );
}

#[test]
fn a_character_that_is_split_within_arguments_is_joined() {
    let part = |index: u32, arguments: &str| {
        let function = format!("{{\"name\":\"f\",\"arguments\":\"{arguments}\"}}");
        delta(&format!("{{\"tool_calls\":[{{\"index\":{index},\"function\":{function}}}]}}"))
    };
    let stream = [
        part(0, "[\\\"a\\ud83d"),
        part(1, "[\\\"b\\ud83d"),
        part(0, "\\ude00\\\"]"),
        part(1, "\\\"]"),
        part(2, "[1]\\ud83d"),
        finish("tool_calls"),
    ];
    let answer = answer(&stream.concat()).unwrap();
    let arguments: Vec<_> = answer.calls.iter().map(|call| call.arguments.as_str()).collect();
    assert_eq!(arguments, ["[\"a\u{1f600}\"]", "[\"b\u{fffd}\"]", "[1]\u{fffd}"]);
}

#[test]
fn text_that_has_arrived_is_one_delta_at_once() {
    let mut parser = CompletionParser::default();
    let stream = delta("{\"content\":\"a\"}") + &delta("{\"content\":\"b\"}");
    parser.feed((stream + "data: {\"choi").as_bytes()).unwrap();
    let deltas = parser.take_deltas();
    assert_eq!(deltas.iter().map(|delta| delta.text.as_str()).collect::<Vec<_>>(), ["ab"]);
    assert!(parser.take_deltas().is_empty());
}

/// Each of the two is a record in a journal, which takes about 200 bytes.
#[test]
fn thinking_and_text_that_alternate_letter_by_letter_are_two_deltas_at_once() {
    let mut parser = CompletionParser::default();
    let letter = "{\"reasoning_content\":\"a\",\"content\":\"b\"}";
    parser.feed(delta(letter).repeat(100).as_bytes()).unwrap();
    let deltas: Vec<String> = parser.take_deltas().into_iter().map(|delta| delta.text).collect();
    assert_eq!(deltas, ["a".repeat(100), "b".repeat(100)]);
}

#[test]
fn every_field_may_be_missing_or_null_or_of_another_type() {
    let stream = [
        "data: {}\n".to_owned(),
        "data: {\"choices\":null,\"error\":null,\"usage\":\"none\"}\n".to_owned(),
        "data: {\"choices\":[{\"index\":null,\"delta\":null,\"finish_reason\":null}]}\n".into(),
        "data: {\"choices\":[{}],\"timings\":{\"x\":[1.5]},\"usage\":{}}\n".into(),
        delta(
            "{\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}",
        ),
        delta("{\"reasoning\":{\"x\":1},\"tool_calls\":null,\"content\":\"\"}"),
        finish("stop"),
    ];
    assert_eq!(answer(&stream.concat()).unwrap().text, "ab");
}

#[test]
fn a_stream_that_ends_without_announcing_it_is_truncated() {
    let text = delta("{\"content\":\"a\"}");
    assert_eq!(answer(&format!("{text}data: [DONE]")).unwrap().finish, FinishReason::Stop);
    assert_eq!(answer(&format!("{text}{}", finish("stop"))).unwrap().finish, FinishReason::Stop);
    for truncated in [text.clone(), format!("{text}data: {{\"cho"), text.trim_end().to_owned()] {
        let (deltas, answer) = parse(truncated.as_bytes(), 9);
        assert_eq!(deltas, "a");
        assert_eq!(answer.err(), Some(CompletionError::Truncated), "{truncated}");
    }
    assert_eq!(answer("").err(), Some(CompletionError::Truncated));
}

#[test]
fn tool_calls_override_the_finish_reason() {
    let call = delta(
        "{\"tool_calls\":[{\"id\":\"a\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]}",
    );
    for end in [finish("tool_calls"), finish("stop"), "data: [DONE]\n".to_owned()] {
        let answer = answer(&format!("{call}{end}")).unwrap();
        assert_eq!((answer.finish, answer.calls.len()), (FinishReason::Stop, 1), "{end}");
    }
    assert_eq!(answer(&finish("tool_calls")).unwrap().finish, FinishReason::Stop);
}

#[test]
fn calls_of_a_completion_that_was_cut_off_or_filtered_are_dropped() {
    for arguments in ["{\\\"path\\\": \\\"no", "{\\\"path\\\": \\\"notes.txt\\\"}"] {
        let call = delta(&format!(
            "{{\"tool_calls\":[{{\"id\":\"a\",\"function\":\
             {{\"name\":\"f\",\"arguments\":\"{arguments}\"}}}}]}}"
        ));
        let cut = answer(&(call.clone() + &finish("length"))).unwrap();
        assert_eq!(cut.finish, FinishReason::Length);
        assert!(cut.calls.is_empty());
        // Nor one of a completion that the model did not end itself.
        let filtered = answer(&(call.clone() + &finish("content_filter"))).unwrap();
        assert_eq!(filtered.finish, FinishReason::Other("content_filter".to_owned()));
        assert!(filtered.calls.is_empty());
        assert_eq!(parse(call.as_bytes(), 10).1.err(), Some(CompletionError::Truncated));
    }
    let most = "x".repeat(limits::MODEL_WORD_CHARS_MAX);
    for word in [most.clone(), format!("{most}x")] {
        assert_eq!(answer(&finish(&word)).unwrap().finish, FinishReason::Other(most.clone()));
    }
}

#[test]
fn an_error_ends_the_completion_in_the_words_of_the_server() {
    let begun = delta("{\"content\":\"a\"}");
    for (error, text, is_final) in [
        (
            "{\"code\":500,\"message\":\"bad format\",\"type\":\"server_error\"}",
            "bad format (server_error)",
            false,
        ),
        (
            "{\"code\":null,\"message\":\"a server_error\",\"type\":\"server_error\"}",
            "a server_error",
            false,
        ),
        ("{\"message\":{\"x\":1},\"type\":7}", "{\"x\":1}", false),
        ("{\"message\":\"x\",\"code\":\"404\"}", "x", true),
        ("{\"message\":\"x\",\"code\":429}", "x", false),
        ("{\"message\":\"x\",\"type\":\"invalid_request\"}", "x (invalid_request)", true),
        ("{\"reason\":\"odd\"}", "{\"reason\":\"odd\"}", false),
        ("\"plain\"", "plain", false),
    ] {
        let stream = format!("{begun}data: {{\"error\":{error}}}\n\n");
        let (deltas, answer) = parse(stream.as_bytes(), 1000);
        let reported = |is_final| CompletionError::Reported { text: text.to_owned(), is_final };
        assert_eq!(answer.err(), Some(reported(is_final)));
        assert_eq!(deltas, "a");
        let whole = format!("{{\"error\":{error}}}");
        assert_eq!(parse(whole.as_bytes(), 7).1.err(), Some(reported(true)));
    }
}

#[test]
fn a_whole_completion_is_accepted_in_place_of_a_stream() {
    let whole = "\n {\"choices\":[{\"index\":0,\"finish_reason\":\"tool_calls\",\"message\":\
                 {\"role\":\"assistant\",\"content\":\"a\\tb\",\"tool_calls\":[\
                 {\"function\":{\"name\":\"f\",\"arguments\":{\"x\":\"\\n\"}}},\
                 {\"function\":{\"name\":\"f\",\"arguments\":\"\"}}]}}],\
                 \"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n";
    for size in [1, 10, 10_000] {
        let (deltas, answer) = parse(whole.as_bytes(), size);
        let answer = answer.unwrap();
        assert_eq!((deltas.as_str(), answer.text.as_str()), ("a\tb", "a\tb"));
        assert_eq!(answer.completion_tokens, Some(2));
        let calls: Vec<_> =
            answer.calls.iter().map(|call| (call.id.as_str(), call.arguments.as_str())).collect();
        assert_eq!(calls, [("call_0", "{\"x\":\"\\n\"}"), ("call_1", "{}")]);
    }
}

#[test]
fn a_body_that_is_no_completion_is_reported_with_its_beginning() {
    for body in ["<!DOCTYPE html>\n<html>", "Not here", "{\"choices\": [", "{\"a\":1}", "{}"] {
        let error = parse(body.as_bytes(), 4).1.err();
        assert_eq!(error, Some(CompletionError::Unexpected(body.into())), "{body}");
    }
    let begun = delta("{\"content\":\"a\"}");
    let error = parse(format!("{begun}data: oops\n{begun}").as_bytes(), 1000).1.err();
    assert!(matches!(error, Some(CompletionError::Malformed(_))), "{error:?}");
    let error = parse(b"data: \"\xff\"\n", 1000).1.err();
    assert!(matches!(error, Some(CompletionError::Malformed(_))), "{error:?}");
}

#[test]
fn lines_completions_and_streams_are_limited() {
    let max = limits::MODEL_LINE_BYTES_MAX;
    for begin in ["{", ":"] {
        let mut parser = CompletionParser::default();
        parser.feed(begin.as_bytes()).unwrap();
        parser.feed(&vec![b' '; max - 1]).unwrap();
        assert!(matches!(parser.feed(b" "), Err(CompletionError::TooLarge(_))));
    }
    let mut parser = CompletionParser::default();
    let piece = delta(&format!("{{\"content\":\"{}\"}}", "x".repeat(1 << 20)));
    for _ in 0..limits::MODEL_ANSWER_BYTES_MAX >> 20 {
        parser.feed(piece.as_bytes()).unwrap();
        parser.take_deltas();
    }
    let one = delta("{\"reasoning\":\"x\"}");
    assert!(matches!(parser.feed(one.as_bytes()), Err(CompletionError::TooLarge(_))));
    let mut parser = CompletionParser {
        bytes: limits::MODEL_STREAM_BYTES_MAX - 2,
        ..CompletionParser::default()
    };
    parser.feed(b":\n").unwrap();
    assert!(matches!(parser.feed(b"\n"), Err(CompletionError::TooLarge(_))));
}

#[test]
fn an_error_in_a_list_is_its_message() {
    let list = "[{\"error\":{\"code\":400,\"message\":\"bad\",\"status\":\"INVALID\"}}]";
    assert_eq!(body_error(list.as_bytes()).unwrap(), "bad");
    let reported = |is_final| Some(CompletionError::Reported { text: "bad".into(), is_final });
    assert_eq!(parse(list.as_bytes(), 7).1.err(), reported(true));
    assert_eq!(answer(&format!("data: {list}\n\n")).err(), reported(false));
}

#[test]
fn thinking_and_calls_in_tags_are_no_text() {
    let words = ["<th", "ink>h", "m</think>\\n", "<tool_call>{}", "</tool_call>"];
    let stream: String = words.map(|word| delta(&format!("{{\"content\":\"{word}\"}}"))).concat();
    let (deltas, answer) = parse((stream.clone() + &finish("stop")).as_bytes(), 9);
    let answer = answer.unwrap();
    assert_eq!((deltas.as_str(), answer.text.as_str()), ("<h><m>", ""));
    assert_eq!(answer.text_calls, "<tool_call>{}</tool_call>");
    assert!(answer.has_thinking && answer.extra.is_empty() && !answer.has_cut_call);
    let (_, cut) = parse((stream + &finish("length")).as_bytes(), 1000);
    assert!(cut.unwrap().has_cut_call);
}

#[test]
fn thinking_goes_back_with_the_calls_under_its_own_name() {
    for (name, value) in [("reasoning_content", "a\\nb"), ("reasoning", "a\\nb")] {
        let (first, second) = value.split_at(1);
        let half = |half: &str| delta(&format!("{{\"{name}\":\"{half}\"}}"));
        let (_, answer) = parse((half(first) + &half(second) + &finish("stop")).as_bytes(), 1000);
        assert_eq!(answer.unwrap().extra, format!(",\"{name}\":\"{value}\""));
    }
}

#[test]
fn a_message_that_repeats_the_whole_stream_is_skipped() {
    let whole = "data: {\"choices\":[{\"message\":{\"content\":\"hi\"},\
        \"finish_reason\":\"stop\"}]}\n\n";
    let stream = delta("{\"content\":\"hi\"}") + whole;
    assert_eq!(answer(&stream).unwrap().text, "hi");
}
