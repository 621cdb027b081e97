//! A chat completion, parsed as it arrives. Pure: bytes in, text and calls out.
//!
//! The stream is split into lines, regardless of how the network split it; text is passed on only
//! when its line is complete. Every field may be missing or `null`. A completion that is one JSON
//! value although a stream was requested is accepted as well.

#[cfg(test)]
mod tests;

use std::time::Duration;

use nanoserde::DeJson;

use crate::json::{self, Joiner, Lenient, Raw};
use crate::lines::Lines;
use crate::session::replay::{ToolCall, answer_of};
use crate::{limits, text};

use super::fault::CompletionError;
use super::text_parts::{Delta, DeltaKind, TextParts};
use super::tool_calls::{Fragment, ToolCallAssembler};

/// A whole completion.
#[derive(Default)]
pub struct Completion {
    /// All of its text, byte for byte as it was sent, but for thinking and `text_calls`. Thinking
    /// whose opening tag is missing was passed on as text.
    pub text: String,
    /// Text that was not passed on, because it begins like tool calls.
    pub text_calls: String,
    /// The tool calls. Empty unless the model itself ended the completion: a call that was cut off
    /// or filtered is not the one that the model wanted to make.
    pub calls: Vec<ToolCall>,
    /// Something else ended the completion, within or after a tool call.
    pub has_cut_call: bool,
    /// What the server wants back with the calls: see `Message::Assistant` in `session::replay`.
    pub extra: String,
    pub has_thinking: bool,
    pub finish: FinishReason,
    /// The model that was asked for.
    pub model: Option<String>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    /// From its first chunk to its last.
    pub took: Duration,
}

/// Why a completion ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FinishReason {
    /// The model itself ended it, with or without tool calls.
    #[default]
    Stop,
    Length,
    /// In the server's own word.
    Other(String),
}

/// An event of a stream, or a whole completion, as servers send it.
#[derive(DeJson)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    error: Option<Lenient>,
    usage: Option<Raw>,
}

/// One of several alternative completions.
#[derive(DeJson)]
struct Choice {
    index: Option<i64>,
    delta: Option<Message>,
    message: Option<Message>,
    finish_reason: Option<Lenient>,
}

/// A message, or what is added to it.
#[derive(DeJson)]
struct Message {
    content: Option<Lenient>,
    reasoning_content: Option<Lenient>,
    reasoning: Option<Lenient>,
    tool_calls: Option<Vec<Raw>>,
}

#[derive(DeJson)]
struct Usage {
    prompt_tokens: Option<i64>,
    completion_tokens: Option<i64>,
}

/// A completion that is still arriving.
#[derive(Default)]
pub struct CompletionParser {
    /// Known as soon as more than white space has arrived.
    form: Option<Form>,
    /// With the line that is not complete yet, or the whole body.
    lines: Lines,
    /// The first bytes, in case it is no completion at all.
    opening: Vec<u8>,
    bytes: usize,
    /// Of text, thinking and calls.
    content_bytes: usize,
    begun: bool,
    deltas: Vec<Delta>,
    joiner: Joiner,
    thinking_joiner: Joiner,
    /// The latest chunk has lone surrogates.
    has_surrogates: bool,
    parts: TextParts,
    /// The name of the field in which thinking arrives, and all of it.
    reasoning: Option<(&'static str, String)>,
    /// What is known of the completion, without its calls.
    completion: Completion,
    calls: ToolCallAssembler,
    finish: Option<String>,
    done: bool,
}

#[derive(Clone, Copy)]
enum Form {
    Lines,
    /// One JSON value.
    Whole,
}

impl CompletionParser {
    /// Parses the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), CompletionError> {
        self.bytes = self.bytes.saturating_add(bytes.len());
        if self.bytes > limits::MODEL_STREAM_BYTES_MAX {
            return Err(CompletionError::TooLarge("a stream without an end"));
        }
        let room = (limits::MODEL_OPENING_CHARS_MAX * 4).saturating_sub(self.opening.len());
        self.opening.extend(bytes.iter().take(room));
        let form_of = |first: &u8| match first {
            b'{' | b'[' => Form::Whole,
            _ => Form::Lines,
        };
        self.form = self.form.or(bytes.trim_ascii_start().first().map(form_of));
        match self.form {
            Some(Form::Whole) => self.lines.push(bytes),
            Some(Form::Lines) if !self.done => self.feed_lines(bytes)?,
            _ => {}
        }
        if self.lines.pending().len() > limits::MODEL_LINE_BYTES_MAX {
            return Err(CompletionError::TooLarge("a line that is too long"));
        }
        Ok(())
    }

    /// Ends the completion: the connection has ended, or the body has as far as HTTP can tell.
    pub fn end(&mut self) -> Result<(), CompletionError> {
        let lines = std::mem::take(&mut self.lines);
        let ended = match self.form {
            Some(Form::Whole) => self.end_whole(lines.pending()),
            _ => self.end_lines(lines.pending()),
        };
        self.flush();
        self.done |= ended.is_ok();
        ended
    }

    fn end_whole(&mut self, body: &[u8]) -> Result<(), CompletionError> {
        let chunk = self.parse(body).map_err(|_problem| match body_error(body) {
            Some(text) => CompletionError::Reported { text, is_final: true },
            None => self.unexpected(),
        })?;
        self.feed_chunk(chunk).map_err(|error| match error {
            // A whole response is no stream that something has interrupted.
            CompletionError::Reported { text, .. } => {
                CompletionError::Reported { text, is_final: true }
            }
            error => error,
        })?;
        if self.begun { Ok(()) } else { Err(self.unexpected()) }
    }

    fn end_lines(&mut self, last: &[u8]) -> Result<(), CompletionError> {
        if !self.done {
            match self.feed_line(last) {
                // A line that is cut off counts as one that never came.
                Err(CompletionError::Malformed(_)) => {}
                fed => fed?,
            }
        }
        if self.done || self.finish.is_some() {
            Ok(())
        } else if self.begun || self.form.is_none() {
            Err(CompletionError::Truncated)
        } else {
            Err(self.unexpected())
        }
    }

    /// Returns whether it has ended, or the server has announced the end; what follows does not
    /// matter.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Returns whether the model has finished; only its usage may follow.
    pub fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// Returns whether the first chunk has arrived.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Returns whether text has arrived.
    pub fn has_text(&self) -> bool {
        !self.completion.text.is_empty()
    }

    /// Returns whether [`take_deltas`](Self::take_deltas) would return something.
    pub fn has_deltas(&self) -> bool {
        !self.deltas.is_empty()
    }

    /// Takes what has arrived since the last call, in as few deltas as possible.
    pub fn take_deltas(&mut self) -> Vec<Delta> {
        std::mem::take(&mut self.deltas)
    }

    /// Returns the whole completion, once it has ended.
    pub fn finish(mut self, took: Duration) -> Completion {
        let finish = match self.finish.as_deref() {
            // Some servers send "stop" with calls, and some send nothing.
            None | Some("stop" | "tool_calls" | "function_call") => FinishReason::Stop,
            Some("length" | "max_tokens") => FinishReason::Length,
            Some(other) => {
                FinishReason::Other(text::prefix(other, limits::MODEL_WORD_CHARS_MAX).to_owned())
            }
        };
        self.completion.text_calls.push_str(self.parts.calls());
        if finish == FinishReason::Stop {
            self.completion.calls = self.calls.finish();
        } else {
            let written = !self.completion.text_calls.is_empty();
            self.completion.has_cut_call = written || self.calls.has_calls();
        }
        let answer = answer_of(&self.completion.text);
        if answer.len() < self.completion.text.len() {
            self.completion.text = answer.to_owned();
            self.completion.has_thinking = true;
        }
        if let Some((name, reasoning)) = self.reasoning {
            self.completion.extra = json::member(name, &Lenient::Text(reasoning));
        }
        Completion { finish, took, ..self.completion }
    }

    fn feed_lines(&mut self, bytes: &[u8]) -> Result<(), CompletionError> {
        // Taken out while its lines are in use.
        let mut lines = std::mem::take(&mut self.lines);
        lines.push(bytes);
        while !self.done
            && let Some(line) = lines.next()
        {
            self.feed_line(line)?;
        }
        self.lines = lines;
        Ok(())
    }

    /// Parses one line. Everything but data is skipped: comments, event names, what proxies add.
    fn feed_line(&mut self, line: &[u8]) -> Result<(), CompletionError> {
        match line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) {
            None | Some(b"") => Ok(()),
            Some(b"[DONE]") => {
                self.done = true;
                self.flush();
                Ok(())
            }
            Some(data) => {
                let chunk = self.parse(data);
                let chunk = chunk.map_err(|error| match body_error(data) {
                    Some(text) => CompletionError::Reported { text, is_final: false },
                    None => CompletionError::Malformed(error.to_string()),
                })?;
                self.begun = true;
                self.feed_chunk(chunk)
            }
        }
    }

    fn parse(&mut self, data: &[u8]) -> Result<Chunk, json::DecodeError> {
        let (data, has_surrogates) = json::repair(data);
        self.has_surrogates = has_surrogates;
        json::parse(data.as_bytes())
    }

    fn feed_chunk(&mut self, chunk: Chunk) -> Result<(), CompletionError> {
        if let Some(error) = chunk.error {
            let is_final = is_final(&error);
            let text = Joiner::whole(error_text(error), self.has_surrogates);
            return Err(CompletionError::Reported { text, is_final });
        }
        // The usage may be anything, and nothing depends on it.
        let usage = chunk.usage.and_then(|raw| json::parse::<Usage>(raw.as_str().as_bytes()).ok());
        if let Some(usage) = usage {
            let count = |tokens: Option<i64>| tokens.and_then(|tokens| u64::try_from(tokens).ok());
            let Completion { prompt_tokens, completion_tokens, .. } = &mut self.completion;
            *prompt_tokens = count(usage.prompt_tokens).or(*prompt_tokens);
            *completion_tokens = count(usage.completion_tokens).or(*completion_tokens);
        }
        let first = |choice: &Choice| matches!(choice.index, None | Some(0));
        let Some(choice) = chunk.choices.and_then(|all| all.into_iter().find(first)) else {
            return Ok(());
        };
        self.begun = true;
        let is_whole = choice.delta.is_none();
        if let Some(message) = choice.delta.or(choice.message) {
            self.feed_message(message, is_whole)?;
        }
        let finish = choice.finish_reason.map(Lenient::into_text);
        if let Some(finish) = finish.filter(|finish| !finish.is_empty()) {
            self.finish = Some(finish);
            self.flush();
        }
        Ok(())
    }

    fn feed_message(&mut self, message: Message, is_whole: bool) -> Result<(), CompletionError> {
        // Some servers end with all that they have sent before.
        if is_whole && (self.has_text() || self.calls.has_calls()) {
            return Ok(());
        }
        let text = |value: Option<Lenient>| value.and_then(Lenient::text).filter(|s| !s.is_empty());
        // Newer servers use the second name, and some send both.
        let thinking = text(message.reasoning_content).map(|text| ("reasoning_content", text));
        let thinking = thinking.or_else(|| text(message.reasoning).map(|text| ("reasoning", text)));
        let thinking = thinking.map(|(name, text)| {
            self.reasoning.get_or_insert_with(|| (name, String::new()));
            text
        });
        let content = message.content.map(content_text);
        for (kind, text) in [(DeltaKind::Thinking, thinking), (DeltaKind::Text, content)] {
            let (text, has_surrogates) = (text.unwrap_or_default(), self.has_surrogates);
            self.count(text.len())?;
            let text = self.joiner(kind).join(text, has_surrogates);
            self.push(kind, &text);
        }
        for fragment in message.tool_calls.unwrap_or_default() {
            let fragment = Fragment::of(&fragment);
            let fragment =
                fragment.map_err(|error| CompletionError::Malformed(error.to_string()))?;
            let bytes = self.calls.add(fragment, is_whole, self.has_surrogates)?;
            self.count(bytes)?;
        }
        Ok(())
    }

    /// Ends the texts: a first half of a character that still waits for its second one is replaced.
    fn flush(&mut self) {
        for kind in [DeltaKind::Thinking, DeltaKind::Text] {
            let rest = self.joiner(kind).end();
            self.push(kind, rest);
        }
        let rest = self.parts.end();
        rest.into_iter().for_each(|rest| self.pass(rest));
    }

    fn push(&mut self, kind: DeltaKind, text: &str) {
        match kind {
            _ if text.is_empty() => {}
            DeltaKind::Text => {
                let parts = self.parts.push(text, &self.completion.text);
                parts.into_iter().for_each(|part| self.pass(part));
            }
            _ => {
                if let Some((_, reasoning)) = &mut self.reasoning {
                    reasoning.push_str(text);
                }
                self.pass(Delta { kind, text: text.to_owned() });
            }
        }
    }

    fn pass(&mut self, delta: Delta) {
        match delta.kind {
            DeltaKind::Text => self.completion.text.push_str(&delta.text),
            _ => self.completion.has_thinking = true,
        }
        // Of what arrived together, the order of thinking and text means nothing: some servers
        // alternate with every letter.
        match self.deltas.iter_mut().find(|before| before.kind == delta.kind) {
            Some(before) => before.text.push_str(&delta.text),
            None => self.deltas.push(delta),
        }
    }

    fn joiner(&mut self, kind: DeltaKind) -> &mut Joiner {
        match kind {
            DeltaKind::Text => &mut self.joiner,
            _ => &mut self.thinking_joiner,
        }
    }

    fn count(&mut self, bytes: usize) -> Result<(), CompletionError> {
        self.content_bytes = self.content_bytes.saturating_add(bytes);
        if self.content_bytes > limits::MODEL_ANSWER_BYTES_MAX {
            return Err(CompletionError::TooLarge("an answer that is too long"));
        }
        Ok(())
    }

    fn unexpected(&self) -> CompletionError {
        CompletionError::Unexpected(self.opening.clone())
    }
}

/// Returns the text of a `content`: a string, or a list of parts with texts.
fn content_text(content: Lenient) -> String {
    #[derive(DeJson)]
    struct Part {
        text: Option<String>,
    }
    match content {
        Lenient::Text(text) => text,
        Lenient::Other(raw) => {
            let parts = json::parse::<Vec<Part>>(raw.as_str().as_bytes()).unwrap_or_default();
            parts.into_iter().filter_map(|part| part.text).collect()
        }
    }
}

/// Returns the error in a body: of an object, or of the first one in a list.
pub fn body_error(body: &[u8]) -> Option<String> {
    #[derive(DeJson)]
    struct ErrorBody {
        error: Option<Lenient>,
        message: Option<Lenient>,
        detail: Option<Lenient>,
    }
    let parsed = json::parse::<ErrorBody>(body).ok();
    let parsed = parsed.or_else(|| json::parse::<Vec<ErrorBody>>(body).ok()?.into_iter().next());
    let ErrorBody { error, message, detail } = parsed?;
    error.map(error_text).or_else(|| message.or(detail).map(Lenient::into_text))
}

/// Returns whether an `error` says that the same request would fail again.
fn is_final(error: &Lenient) -> bool {
    #[derive(DeJson)]
    struct ErrorCode {
        code: Option<Lenient>,
        #[nserde(rename = "type")]
        kind: Option<Lenient>,
    }
    let Lenient::Other(raw) = error else { return false };
    let Ok(ErrorCode { code, kind }) = json::parse(raw.as_str().as_bytes()) else { return false };
    let is_invalid = kind.map(Lenient::into_text).is_some_and(|kind| kind.contains("invalid"));
    let status = code.and_then(|code| code.into_text().parse().ok());
    is_invalid || status.is_some_and(|status: u16| status < 500 && !matches!(status, 408 | 429))
}

/// Returns the message of an `error`, which is an object or a string, with its type if it has one.
pub fn error_text(error: Lenient) -> String {
    #[derive(DeJson)]
    struct ErrorObject {
        message: Option<Lenient>,
        #[nserde(rename = "type")]
        kind: Option<Lenient>,
    }
    let error = match error {
        Lenient::Text(text) => return text,
        Lenient::Other(raw) => raw,
    };
    let object = json::parse(error.as_str().as_bytes());
    let Ok(ErrorObject { message: Some(message), kind }) = object else {
        return error.as_str().to_owned();
    };
    let message = message.into_text();
    match kind.and_then(Lenient::text) {
        Some(kind) if !kind.is_empty() && !message.contains(&kind) => format!("{message} ({kind})"),
        _ => message,
    }
}
