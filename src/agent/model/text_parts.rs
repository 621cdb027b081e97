//! The parts of an answer's text: thinking in tags at its beginning, then either text for the user
//! or tool calls in tags, which the user never sees. Without its opening tag, thinking is text
//! until its end. Pure.

use std::time::Duration;

use crate::session::replay::{THINK_END_LINE, answer_of};
use crate::session::turn::Fault;

const THINK: &str = "<think>";
const THINK_END: &str = "</think>";
/// What a text begins with that may be calls of tools: the forms of Hermes and Qwen.
const CALLS: [&str; 2] = ["<tool_call>", "<function="];

/// A part of a completion, as it arrives.
pub struct Delta {
    pub kind: DeltaKind,
    pub text: String,
}

/// What a delta is a part of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum DeltaKind {
    Text,
    Thinking,
    /// Not of the completion: what it waits for, and how long if that is known.
    Notice(Option<Duration>),
}

/// A receiver of a completion as it arrives. A fault ends the completion.
pub type OnDelta<'a> = dyn FnMut(&Delta) -> Result<(), Fault> + 'a;

/// A splitter of a text that arrives in pieces.
#[derive(Default)]
pub struct TextParts {
    state: State,
    /// What may still belong to a tag, or the calls.
    pending: String,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Beginning,
    Thinking,
    /// After the thinking, where white space means nothing.
    Thought,
    /// Perhaps thinking without its opening tag.
    Text,
    Answer,
    Calls,
}

impl TextParts {
    /// Adds a piece. Returns what it makes known; `before` is the text that was returned before,
    /// which may turn out to be thinking.
    pub fn push(&mut self, piece: &str, before: &str) -> Vec<Delta> {
        match self.state {
            State::Text => return self.push_text(piece, before),
            State::Answer => return Vec::from_iter(delta(DeltaKind::Text, piece.to_owned())),
            _ => {}
        }
        self.pending.push_str(piece);
        let mut deltas = Vec::new();
        if self.state == State::Beginning {
            let begun = self.pending.trim_start();
            if let Some(rest) = begun.strip_prefix(THINK) {
                self.pending = rest.to_owned();
                self.state = State::Thinking;
            } else if THINK.starts_with(begun) {
                return deltas;
            }
        }
        if self.state == State::Thinking {
            let end = self.pending.find(THINK_END);
            let known =
                end.unwrap_or_else(|| self.pending.len() - partial(&self.pending, THINK_END));
            deltas.extend(delta(DeltaKind::Thinking, self.pending.drain(..known).collect()));
            if end.is_none() {
                return deltas;
            }
            self.pending.drain(..THINK_END.len());
            self.state = State::Thought;
        }
        if self.state != State::Calls {
            let begun = self.pending.trim_start();
            if self.state == State::Thought && begun.len() < self.pending.len() {
                self.pending = begun.to_owned();
            }
            let begun = self.pending.trim_start();
            if CALLS.iter().any(|tag| begun.starts_with(tag)) {
                self.state = State::Calls;
            } else if !CALLS.iter().any(|tag| tag.starts_with(begun)) {
                let is_first = self.state == State::Beginning;
                self.state = if is_first { State::Text } else { State::Answer };
                let text = std::mem::take(&mut self.pending);
                deltas.extend(self.push(&text, before));
            }
        }
        deltas
    }

    /// Adds a piece of a text that ends if it turns out to be thinking.
    fn push_text(&mut self, piece: &str, before: &str) -> Vec<Delta> {
        let tag = THINK_END_LINE.as_bytes();
        let from = before.len().saturating_sub(tag.len() - 1);
        let new = [before.as_bytes().get(from..).unwrap_or_default(), piece.as_bytes()].concat();
        let Some(at) = new.windows(tag.len()).position(|part| part == tag) else {
            return Vec::from_iter(delta(DeltaKind::Text, piece.to_owned()));
        };
        let rest = new.len() - at - tag.len();
        let (thinking, rest) = piece.split_at_checked(piece.len() - rest).unwrap_or((piece, ""));
        let is_thinking = answer_of(&[before, thinking].concat()).is_empty();
        self.state = if is_thinking { State::Thought } else { State::Answer };
        let mut deltas = Vec::from_iter(delta(DeltaKind::Text, thinking.to_owned()));
        deltas.extend(self.push(rest, before));
        deltas
    }

    /// Ends the text. Returns what is left of it, but for the calls.
    pub fn end(&mut self) -> Option<Delta> {
        let kind = match self.state {
            State::Calls => return None,
            State::Thinking => DeltaKind::Thinking,
            State::Beginning | State::Thought | State::Text | State::Answer => DeltaKind::Text,
        };
        delta(kind, std::mem::take(&mut self.pending))
    }

    /// Returns the text that may be calls; empty if there are none.
    pub fn calls(&self) -> &str {
        if self.state == State::Calls { &self.pending } else { "" }
    }
}

fn delta(kind: DeltaKind, text: String) -> Option<Delta> {
    (!text.is_empty()).then_some(Delta { kind, text })
}

/// Returns the length of the longest end of `text` that `tag` begins with.
fn partial(text: &str, tag: &str) -> usize {
    let ends = (1..tag.len()).rev().filter_map(|length| tag.get(..length));
    ends.filter(|part| text.ends_with(part)).map(str::len).next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits a text that arrives in pieces of `size`: the thinking, the text and the calls.
    fn split(text: &str, size: usize) -> (String, String, String) {
        let mut parts = TextParts::default();
        let (mut thinking, mut answer) = (String::new(), String::new());
        let characters: Vec<char> = text.chars().collect();
        let pieces = characters.chunks(size).map(|piece| Some(String::from_iter(piece)));
        for piece in pieces.chain([None]) {
            let deltas = match piece {
                Some(piece) => parts.push(&piece, &answer),
                None => Vec::from_iter(parts.end()),
            };
            for Delta { kind, text } in deltas {
                match kind {
                    DeltaKind::Thinking => thinking.push_str(&text),
                    _ => answer.push_str(&text),
                }
            }
        }
        (thinking, answer, parts.calls().to_owned())
    }

    #[test]
    fn thinking_and_calls_are_told_from_text_however_they_are_split() {
        for (text, thinking, answer, calls) in [
            ("<think>hm</think>\n\nyes", "hm", "yes", ""),
            (" \n<think>a</thin</think>b<think>c", "a</thin", "b<think>c", ""),
            ("<think>hm", "hm", "", ""),
            ("<think></think>", "", "", ""),
            ("<think>hm</think>\n<tool_call>{}", "hm", "", "<tool_call>{}"),
            ("\n<function=f>", "", "", "\n<function=f>"),
            (" <thin", "", " <thin", ""),
            ("  yes <think>no</think> <tool_call>", "", "  yes <think>no</think> <tool_call>", ""),
            ("hm\n</think>\n\nyes</think>\n", "", "hm\n</think>\nyes</think>\n", ""),
            ("hm</think>\n <tool_call>{}", "", "hm</think>\n", "<tool_call>{}"),
            ("a </think> tag\n <tool_call>", "", "a </think> tag\n <tool_call>", ""),
            ("```\n</think>\n``` <tool_call>", "", "```\n</think>\n``` <tool_call>", ""),
            ("<tool>", "", "<tool>", ""),
            (" \n", "", " \n", ""),
        ] {
            for size in 1..12 {
                let wanted = (thinking.into(), answer.into(), calls.into());
                assert_eq!(split(text, size), wanted, "{text} {size}");
            }
        }
    }
}
