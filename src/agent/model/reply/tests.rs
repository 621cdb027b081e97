//! Streams as servers send them, and what is understood of them.

use super::*;

/// What is handed on, and the answer, of bytes that arrive in pieces of `size`.
fn heard(bytes: &[u8], size: usize) -> (String, Result<Answer, Wrong>) {
    let mut reply = Reply::default();
    let mut pieces = String::new();
    let mut on_piece = |piece: Piece<'_>| -> Result<(), Wrong> {
        match piece {
            Piece::Text(text) => pieces.push_str(text),
            Piece::Thinking(text) => pieces.push_str(&format!("<{text}>")),
        }
        Ok(())
    };
    let mut taken = Ok(());
    for piece in bytes.chunks(size) {
        taken = taken.and_then(|()| reply.take(piece));
        reply.hand_on(&mut on_piece).unwrap();
    }
    let ended = taken.and_then(|()| reply.end());
    reply.hand_on(&mut on_piece).unwrap();
    (pieces, ended.map(|()| reply.answer()))
}

fn answer(stream: &str) -> Result<Answer, Wrong> {
    let (pieces, answer) = heard(stream.as_bytes(), stream.len().max(1));
    if let Ok(answer) = &answer {
        assert_eq!(pieces, answer.text);
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
fn a_stream_is_the_same_however_it_is_cut() {
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
        let (pieces, answer) = heard(stream.as_bytes(), size);
        let answer = answer.unwrap();
        assert_eq!(pieces, "<h\u{fc}m> \ta\u{1f600}\n\r\n ", "{size}");
        assert_eq!(answer.text, " \ta\u{1f600}\n\r\n ", "{size}");
        assert_eq!(answer.finish, Finish::Stop);
        assert_eq!((answer.prompt_tokens, answer.completion_tokens), (Some(33), Some(6)));
        assert!(answer.calls.is_empty());
    }
}

#[test]
fn a_character_that_the_server_has_cut_is_put_together_and_a_lone_part_is_replaced() {
    let said = |deltas: &[&str], end: &str| {
        let stream: String = deltas.iter().copied().map(delta).chain([end.into()]).collect();
        let (pieces, answer) = heard(stream.as_bytes(), 1);
        (pieces, answer.map(|answer| answer.text))
    };
    let done = "data: [DONE]\n";
    let (pieces, text) = said(
        &[
            r#"{"content":"hi \ud83d","reasoning":"\ud83d"}"#,
            r#"{"content":""}"#,
            r#"{"reasoning":"\ude01"}"#,
            r#"{"content":"\uDE00 \\ud83d bye"}"#,
        ],
        done,
    );
    assert_eq!(text.unwrap(), "hi \u{1f600} \\ud83d bye");
    assert_eq!(pieces, "hi <\u{1f601}>\u{1f600} \\ud83d bye");
    for (deltas, whole) in [
        (
            &[r#"{"content":"a\ud83d"}"#, r#"{"content":"b\ude00\ud83d\ud83d\ude00"}"#][..],
            "a\u{fffd}b\u{fffd}\u{fffd}\u{1f600}",
        ),
        (&[r#"{"content":"a\ud83d"}"#], "a\u{fffd}"),
        (&[r#"{"content":[{"text":"a\ud83d"},{"text":"\ude00"}]}"#], "a\u{1f600}"),
        // Characters of anybody's own stay what they are.
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
            let (pieces, text) = said(deltas, &end);
            assert_eq!((pieces.as_str(), text.unwrap().as_str()), (whole, whole));
        }
    }
    assert_eq!(said(&[r#"{"content":"a\ud83d"}"#], ""), ("a\u{fffd}".into(), Err(Wrong::Cut)));
    let bytes =
        b"data: {\"choices\":[{\"delta\":{\"content\":\"a\xff\xe2\x82b\"}}]}\ndata: [DONE]\n";
    assert_eq!(heard(bytes, 3).1.unwrap().text, "a\u{fffd}\u{fffd}b");
    let whole = br#"{"choices":[{"message":{"content":"a\ud83d"},"finish_reason":"stop"}]}"#;
    assert_eq!(heard(whole, 7).0, "a\u{fffd}");
    let wrong = answer("data: {\"error\":\"a\\ud83d\"}\n").err();
    assert_eq!(wrong, Some(Wrong::Said("a\u{fffd}".into())));
}

#[test]
fn a_character_that_is_cut_within_arguments_is_put_together() {
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
fn what_has_arrived_is_handed_on_at_once_and_in_one_piece() {
    let mut reply = Reply::default();
    let mut pieces = Vec::new();
    let stream = delta("{\"content\":\"a\"}") + &delta("{\"content\":\"b\"}");
    reply.take((stream + "data: {\"choi").as_bytes()).unwrap();
    let mut keep = |piece: Piece<'_>| -> Result<(), Wrong> {
        if let Piece::Text(text) = piece {
            pieces.push(text.to_owned());
        }
        Ok(())
    };
    reply.hand_on(&mut keep).unwrap();
    reply.hand_on(&mut keep).unwrap();
    assert_eq!(pieces, ["ab"]);
}

#[test]
fn every_field_may_be_missing_or_null_or_of_another_kind() {
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
fn an_end_is_announced_or_it_is_a_cut() {
    let text = delta("{\"content\":\"a\"}");
    assert_eq!(answer(&format!("{text}data: [DONE]")).unwrap().finish, Finish::Stop);
    assert_eq!(answer(&format!("{text}{}", finish("stop"))).unwrap().finish, Finish::Stop);
    for cut in [text.clone(), format!("{text}data: {{\"cho"), text.trim_end().to_owned()] {
        let (pieces, answer) = heard(cut.as_bytes(), 9);
        assert_eq!(pieces, "a");
        assert_eq!(answer.err(), Some(Wrong::Cut), "{cut}");
    }
    assert_eq!(answer("").err(), Some(Wrong::Cut));
}

#[test]
fn calls_count_more_than_the_reason() {
    let call = delta(
        "{\"tool_calls\":[{\"id\":\"a\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]}",
    );
    for end in [finish("tool_calls"), finish("stop"), "data: [DONE]\n".to_owned()] {
        let answer = answer(&format!("{call}{end}")).unwrap();
        assert_eq!((answer.finish, answer.calls.len()), (Finish::ToolCalls, 1), "{end}");
    }
    assert_eq!(answer(&finish("tool_calls")).unwrap().finish, Finish::Stop);
}

#[test]
fn a_call_of_an_answer_that_was_cut_is_no_call() {
    for arguments in ["{\\\"path\\\": \\\"no", "{\\\"path\\\": \\\"notes.txt\\\"}"] {
        let call = delta(&format!(
            "{{\"tool_calls\":[{{\"id\":\"a\",\"function\":\
             {{\"name\":\"f\",\"arguments\":\"{arguments}\"}}}}]}}"
        ));
        let cut = answer(&(call.clone() + &finish("length"))).unwrap();
        assert_eq!(cut.finish, Finish::Length);
        assert!(cut.calls.is_empty());
        // Nor one of an answer that somebody else has ended.
        let filtered = answer(&(call.clone() + &finish("content_filter"))).unwrap();
        assert_eq!(filtered.finish, Finish::Other("content_filter".to_owned()));
        assert!(filtered.calls.is_empty());
        assert_eq!(heard(call.as_bytes(), 10).1.err(), Some(Wrong::Cut));
    }
    let most = "x".repeat(limits::MODEL_WORD_CHARS_MAX);
    for word in [most.clone(), format!("{most}x")] {
        assert_eq!(answer(&finish(&word)).unwrap().finish, Finish::Other(most.clone()));
    }
}

#[test]
fn an_error_ends_the_answer_in_the_words_of_the_server() {
    let begun = delta("{\"content\":\"a\"}");
    for (error, said) in [
        (
            "{\"code\":500,\"message\":\"bad format\",\"type\":\"server_error\"}",
            "bad format (server_error)",
        ),
        (
            "{\"code\":null,\"message\":\"a server_error\",\"type\":\"server_error\"}",
            "a server_error",
        ),
        ("{\"message\":{\"x\":1},\"type\":7}", "{\"x\":1}"),
        ("{\"reason\":\"odd\"}", "{\"reason\":\"odd\"}"),
        ("\"plain\"", "plain"),
    ] {
        let stream = format!("{begun}data: {{\"error\":{error}}}\n\n");
        let (pieces, answer) = heard(stream.as_bytes(), 1000);
        assert_eq!(answer.err(), Some(Wrong::Said(said.to_owned())));
        assert_eq!(pieces, "a");
        let whole = format!("{{\"error\":{error}}}");
        assert_eq!(heard(whole.as_bytes(), 7).1.err(), Some(Wrong::Said(said.to_owned())));
    }
}

#[test]
fn a_whole_completion_in_place_of_a_stream_is_taken() {
    let whole = "\n {\"choices\":[{\"index\":0,\"finish_reason\":\"tool_calls\",\"message\":\
                 {\"role\":\"assistant\",\"content\":\"a\\tb\",\"tool_calls\":[\
                 {\"function\":{\"name\":\"f\",\"arguments\":{\"x\":\"\\n\"}}},\
                 {\"function\":{\"name\":\"f\",\"arguments\":\"\"}}]}}],\
                 \"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n";
    for size in [1, 10, 10_000] {
        let (pieces, answer) = heard(whole.as_bytes(), size);
        let answer = answer.unwrap();
        assert_eq!((pieces.as_str(), answer.text.as_str()), ("a\tb", "a\tb"));
        assert_eq!(answer.completion_tokens, Some(2));
        let calls: Vec<_> =
            answer.calls.iter().map(|call| (call.id.as_str(), call.arguments.as_str())).collect();
        assert_eq!(calls, [("call_0", "{\"x\":\"\\n\"}"), ("call_1", "{}")]);
    }
}

#[test]
fn what_is_no_answer_is_told_by_how_it_begins() {
    for foreign in ["<!DOCTYPE html>\n<html>", "Not here", "{\"choices\": [", "{\"a\":1}", "{}"] {
        let wrong = heard(foreign.as_bytes(), 4).1.err();
        assert_eq!(wrong, Some(Wrong::Foreign(foreign.into())), "{foreign}");
    }
    let begun = delta("{\"content\":\"a\"}");
    let wrong = heard(format!("{begun}data: oops\n{begun}").as_bytes(), 1000).1.err();
    assert!(matches!(wrong, Some(Wrong::Unreadable(_))), "{wrong:?}");
    let wrong = heard(b"data: \"\xff\"\n", 1000).1.err();
    assert!(matches!(wrong, Some(Wrong::Unreadable(_))), "{wrong:?}");
}

#[test]
fn a_line_an_answer_and_a_stream_have_limits() {
    let max = limits::MODEL_LINE_BYTES_MAX;
    for begin in ["{", ":"] {
        let mut reply = Reply::default();
        reply.take(begin.as_bytes()).unwrap();
        reply.take(&vec![b' '; max - 1]).unwrap();
        assert!(matches!(reply.take(b" "), Err(Wrong::TooMuch(_))));
    }
    let mut reply = Reply::default();
    let piece = delta(&format!("{{\"content\":\"{}\"}}", "x".repeat(1 << 20)));
    for _ in 0..limits::MODEL_ANSWER_BYTES_MAX >> 20 {
        reply.take(piece.as_bytes()).unwrap();
        reply.hand_on(&mut |_| -> Result<(), Wrong> { Ok(()) }).unwrap();
    }
    let one = delta("{\"reasoning\":\"x\"}");
    assert!(matches!(reply.take(one.as_bytes()), Err(Wrong::TooMuch(_))));
    let mut reply = Reply { bytes: limits::MODEL_STREAM_BYTES_MAX - 2, ..Reply::default() };
    reply.take(b":\n").unwrap();
    assert!(matches!(reply.take(b"\n"), Err(Wrong::TooMuch(_))));
}
