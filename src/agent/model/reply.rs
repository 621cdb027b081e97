//! A model's answer, understood as it arrives. Pure: bytes in, pieces out.
//!
//! The stream is read by lines, whatever the network made of them; text becomes text only when its
//! line is whole. Every field may be missing or `null`. An answer that is one JSON value although a
//! stream was asked for is taken as well.

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::json::{self, Joiner, Lenient};
use crate::{limits, text};

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
    seam: Joiner,
    thinking_seam: Joiner,
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
            Some(other) => {
                Finish::Other(text::prefix(other, limits::MODEL_WORD_CHARS_MAX).to_owned())
            }
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
        let (data, has_halves) = json::repair(data);
        self.has_halves = has_halves;
        json::parse(data.as_bytes())
    }

    fn take_chunk(&mut self, chunk: Chunk) -> Result<(), Wrong> {
        if let Some(error) = chunk.error {
            return Err(Wrong::Said(Joiner::whole(error_text(error.as_str()), self.has_halves)));
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
        let finish = choice.finish_reason.map(Lenient::into_text);
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
        let text = |loose: Option<Lenient>| loose.and_then(Lenient::text).filter(|s| !s.is_empty());
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

    fn seam(&mut self, voice: Voice) -> &mut Joiner {
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
