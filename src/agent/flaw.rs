//! What is wrong with an answer that the model may improve once. Pure.

use crate::limits;
use crate::session::turn::Fault;

use super::model::{Completion, FinishReason};

/// A flaw of an answer without calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It ended within a tool call, which did not run.
    CutCall,
    /// Something else than the model ended it before it had any text.
    CutOff(FinishReason),
    /// It has neither text nor calls.
    Empty,
    /// It repeats itself.
    Repeats,
}

impl Flaw {
    /// Returns the flaw of an answer, if it has one.
    pub fn of(completion: &Completion) -> Option<Flaw> {
        match (&completion.finish, completion.text.trim().is_empty()) {
            (FinishReason::Length, _) if completion.has_cut_call => Some(Flaw::CutCall),
            (FinishReason::Stop, true) => Some(Flaw::Empty),
            (FinishReason::Stop, false) => None,
            (finish, is_empty) if is_empty || completion.has_cut_call => {
                Some(Flaw::CutOff(finish.clone()))
            }
            _ => None,
        }
    }

    /// Returns what the model is told when it is asked once more; `None` if that is of no use.
    pub fn note(&self) -> Option<&'static str> {
        match self {
            Flaw::CutCall => Some(
                "[your last answer was cut off within a tool call, which did not run: make smaller \
                 calls, for example write a long file in several parts]",
            ),
            Flaw::CutOff(_) => None,
            Flaw::Empty => Some("[your last answer was empty: answer, or call a tool]"),
            Flaw::Repeats => Some(
                "[your last answer repeated the same text over and over, and was stopped: do not \
                 repeat yourself]",
            ),
        }
    }

    /// Returns what the user is told when the model is asked once more.
    pub fn notice(&self) -> &'static str {
        match self {
            Flaw::CutCall | Flaw::CutOff(_) => "a tool call was cut off; asking for smaller ones",
            Flaw::Empty => "the answer was empty; asking once more",
            Flaw::Repeats => "the model repeats itself; asking once more",
        }
    }

    /// Returns the fault that ends the turn. `max_tokens` is the limit of the answer, if one is
    /// set.
    pub fn fault(&self, max_tokens: Option<u64>) -> Fault {
        let limit = match max_tokens {
            Some(tokens) => format!("{tokens} tokens (model.maxTokens)"),
            None => "the limit of its server".to_owned(),
        };
        let (code, message) = match self {
            Flaw::CutCall => (
                "model-cut-off",
                format!(
                    "the model's answer was cut off within a tool call, and again after it was told \
                     to make smaller ones: it reached {limit} or the end of the model's context; a \
                     tool call that is cut off does not run"
                ),
            ),
            Flaw::CutOff(FinishReason::Other(word)) => (
                "model-cut-off",
                format!(
                    "the model server ended the answer before it was complete ({word}); tool calls \
                     of such an answer do not run"
                ),
            ),
            Flaw::CutOff(_) => (
                "model-cut-off",
                format!(
                    "the model's answer was cut off before it had any text: it reached {limit} or \
                     the end of the model's context, thinking included"
                ),
            ),
            Flaw::Empty => ("model-empty", "the model gave an empty answer twice".to_owned()),
            Flaw::Repeats => (
                "tool-loop",
                format!(
                    "the model repeated the same text over and over, for {} characters or more",
                    limits::SAME_TEXT_BYTES_ALL
                ),
            ),
        };
        Fault { code, message }
    }
}
