//! A model's answer, understood as it arrives. Pure: bytes in, pieces out.
//!
//! The stream is read by lines, whatever the network made of them; text becomes text only when its
//! line is whole. Every field may be missing or `null`. An answer that is one JSON value although a
//! stream was asked for is taken as well.

use std::time::Duration;

use crate::json::{self, Loose, Seam};
use crate::limits;

use super::calls::{Calls, Fragment};
use super::chunk::{Chunk, Delta, Usage, content, error_text, first};
use super::{Answer, Finish, Piece};

/// Why an answer is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It ends before its end.
    Cut,
    /// The server says that something went wrong.
    Said(String),
    /// Not the answer of a model server; how it begins.
    Foreign(Vec<u8>),
    /// A part of it cannot be understood.
    Unreadable(String),
    /// It has more of something than can be taken.
    TooMuch(&'static str),
}

/// An answer that is arriving.
#[derive(Default)]
pub struct Reply {
    form: Form,
    /// The line that is not whole yet, or the whole answer.
    line: Vec<u8>,
    /// The first bytes, for the case that it is no answer at all.
    opening: Vec<u8>,
    bytes: usize,
    /// Of what was said.
    said_bytes: usize,
    begun: bool,
    pieces: Vec<(Voice, String)>,
    seam: Seam,
    thinking_seam: Seam,
    /// The latest chunk has halves of characters in it.
    has_halves: bool,
    text: String,
    calls: Calls,
    finish: Option<String>,
    done: bool,
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Form {
    /// Nothing has arrived but blanks.
    #[default]
    Unknown,
    Lines,
    /// One JSON value.
    Whole,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Voice {
    Text,
    Thinking,
}

impl Reply {
    /// Takes in what has arrived.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        self.bytes = self.bytes.saturating_add(bytes.len());
        if self.bytes > limits::MODEL_STREAM_BYTES_MAX {
            return Err(Wrong::TooMuch("a stream without an end"));
        }
        let room = (limits::MODEL_OPENING_CHARS_MAX * 4).saturating_sub(self.opening.len());
        self.opening.extend(bytes.iter().take(room));
        if self.form == Form::Unknown {
            self.form = match bytes.trim_ascii_start().first() {
                None => Form::Unknown,
                Some(b'{') => Form::Whole,
                Some(_) => Form::Lines,
            };
        }
        match self.form {
            Form::Unknown => Ok(()),
            Form::Whole => self.keep(bytes),
            Form::Lines => self.take_lines(bytes),
        }
    }

    /// The connection has ended, or the answer has as far as HTTP can tell.
    pub fn end(&mut self) -> Result<(), Wrong> {
        let ended = self.end_form();
        self.settle();
        ended
    }

    fn end_form(&mut self) -> Result<(), Wrong> {
        match self.form {
            Form::Whole => {
                let text = std::mem::take(&mut self.line);
                let chunk = self.read(&text).map_err(|_problem| self.foreign())?;
                self.take_chunk(chunk)?;
                self.done = true;
                if self.begun { Ok(()) } else { Err(self.foreign()) }
            }
            Form::Lines if !self.line.is_empty() && !self.done => {
                let line = std::mem::take(&mut self.line);
                // A line that is cut is as good as one that never came.
                match self.take_line(&line) {
                    Err(Wrong::Unreadable(_)) | Ok(()) => self.lines_end(),
                    Err(wrong) => Err(wrong),
                }
            }
            Form::Lines | Form::Unknown => self.lines_end(),
        }
    }

    fn lines_end(&self) -> Result<(), Wrong> {
        if self.done || self.finish.is_some() {
            Ok(())
        } else if self.begun || self.form == Form::Unknown {
            Err(Wrong::Cut)
        } else {
            Err(self.foreign())
        }
    }

    /// The end was announced; what follows does not matter.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The model has ended; only how much it has used may follow.
    pub fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// The first chunk has come.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// It has text.
    pub fn has_spoken(&self) -> bool {
        !self.text.is_empty()
    }

    /// Hands on what was said since this was last asked, in as few pieces as can be.
    pub fn hand_on<E>(
        &mut self,
        on_piece: &mut dyn FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (voice, text) in self.pieces.drain(..) {
            on_piece(match voice {
                Voice::Text => Piece::Text(&text),
                Voice::Thinking => Piece::Thinking(&text),
            })?;
        }
        Ok(())
    }

    /// The whole answer, once it has ended. How long it took is for others to say.
    pub fn answer(self) -> Answer {
        let called = !self.calls.is_empty();
        let finish = match self.finish.as_deref() {
            // Some say "stop" beside their calls, and some say nothing.
            None | Some("stop" | "tool_calls" | "function_call") if called => Finish::ToolCalls,
            None | Some("stop" | "tool_calls" | "function_call") => Finish::Stop,
            Some("length" | "max_tokens") => Finish::Length,
            Some(other) => Finish::Other(other.chars().take(64).collect()),
        };
        let whole = finish.is_the_models_own();
        Answer {
            text: self.text,
            calls: if whole { self.calls.finish() } else { Vec::new() },
            finish,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            took: Duration::ZERO,
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        if self.line.len() + bytes.len() > limits::MODEL_LINE_BYTES_MAX {
            return Err(Wrong::TooMuch("a line that is too long"));
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn take_lines(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.done {
                return Ok(());
            }
            self.keep(part)?;
            if part.ends_with(b"\n") {
                let mut line = std::mem::take(&mut self.line);
                self.take_line(&line)?;
                line.clear();
                self.line = line;
            }
        }
        Ok(())
    }

    /// One line; all but data is passed over: comments, names of events, what proxies add.
    fn take_line(&mut self, line: &[u8]) -> Result<(), Wrong> {
        let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else {
            return Ok(());
        };
        match data {
            b"" => {}
            b"[DONE]" => {
                self.done = true;
                self.settle();
            }
            _ => {
                let unreadable = |problem: json::Problem| Wrong::Unreadable(problem.to_string());
                let chunk = self.read(data).map_err(unreadable)?;
                self.begun = true;
                self.take_chunk(chunk)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, data: &[u8]) -> Result<Chunk, json::Problem> {
        let (data, has_halves) = json::mend(data);
        self.has_halves = has_halves;
        json::parse(data.as_bytes())
    }

    fn take_chunk(&mut self, chunk: Chunk) -> Result<(), Wrong> {
        if let Some(error) = chunk.error {
            return Err(Wrong::Said(Seam::whole(error_text(error.as_str()), self.has_halves)));
        }
        if let Some(used) = chunk.usage.as_ref().and_then(Usage::of) {
            let count = |tokens: Option<i64>| tokens.and_then(|tokens| u64::try_from(tokens).ok());
            self.prompt_tokens = count(used.prompt_tokens).or(self.prompt_tokens);
            self.completion_tokens = count(used.completion_tokens).or(self.completion_tokens);
        }
        let Some(choice) = chunk.choices.and_then(first) else { return Ok(()) };
        self.begun = true;
        if let Some(delta) = choice.delta {
            self.take_delta(delta, Calls::add)?;
        } else if let Some(message) = choice.message {
            self.take_delta(message, Calls::add_whole)?;
        }
        let finish = choice.finish_reason.map(Loose::into_text);
        if let Some(finish) = finish.filter(|finish| !finish.is_empty()) {
            self.finish = Some(finish);
            self.settle();
        }
        Ok(())
    }

    fn take_delta(
        &mut self,
        delta: Delta,
        add: fn(&mut Calls, Fragment, bool) -> Result<usize, Wrong>,
    ) -> Result<(), Wrong> {
        let text = |loose: Option<Loose>| loose.and_then(Loose::text).filter(|s| !s.is_empty());
        // Newer servers have the second name, and some send both.
        let thinking = text(delta.reasoning_content).or_else(|| text(delta.reasoning));
        self.say(Voice::Thinking, thinking)?;
        self.say(Voice::Text, delta.content.map(content).filter(|text| !text.is_empty()))?;
        for fragment in delta.tool_calls.unwrap_or_default() {
            let bytes = add(&mut self.calls, fragment, self.has_halves)?;
            self.count(bytes)?;
        }
        Ok(())
    }

    fn say(&mut self, voice: Voice, text: Option<String>) -> Result<(), Wrong> {
        let Some(text) = text else { return Ok(()) };
        self.count(text.len())?;
        let has_halves = self.has_halves;
        let text = self.seam(voice).join(text, has_halves);
        self.put(voice, text);
        Ok(())
    }

    /// Nothing follows on what was said.
    fn settle(&mut self) {
        for voice in [Voice::Thinking, Voice::Text] {
            let rest = self.seam(voice).end();
            self.put(voice, rest.to_owned());
        }
    }

    fn put(&mut self, voice: Voice, text: String) {
        if text.is_empty() {
            return;
        }
        if voice == Voice::Text {
            self.text.push_str(&text);
        }
        match self.pieces.last_mut() {
            Some((last, said)) if *last == voice => said.push_str(&text),
            _ => self.pieces.push((voice, text)),
        }
    }

    fn seam(&mut self, voice: Voice) -> &mut Seam {
        match voice {
            Voice::Text => &mut self.seam,
            Voice::Thinking => &mut self.thinking_seam,
        }
    }

    fn count(&mut self, bytes: usize) -> Result<(), Wrong> {
        self.said_bytes = self.said_bytes.saturating_add(bytes);
        if self.said_bytes > limits::MODEL_ANSWER_BYTES_MAX {
            return Err(Wrong::TooMuch("an answer that is too long"));
        }
        Ok(())
    }

    fn foreign(&self) -> Wrong {
        Wrong::Foreign(self.opening.clone())
    }
}

#[cfg(test)]
mod tests {
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
            let calls: Vec<_> = answer
                .calls
                .iter()
                .map(|call| (call.id.as_str(), call.arguments.as_str()))
                .collect();
            assert_eq!(calls, [("call_0", "{\"x\":\"\\n\"}"), ("call_1", "{}")]);
        }
    }

    #[test]
    fn what_is_no_answer_is_told_by_how_it_begins() {
        for foreign in ["<!DOCTYPE html>\n<html>", "Not here", "{\"choices\": [", "{\"a\":1}", "{}"]
        {
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
}
