//! One question to a model server that speaks OpenAI's chat completions, and its streamed answer.

use std::time::Duration;

use crate::session::rules::ToolCall;
use crate::session::turn::{Endpoint, Fault, Key};
use crate::session::wake::Cancel;

/// What a model is asked.
pub struct Ask<'a> {
    pub endpoint: &'a Endpoint,
    /// A JSON array of chat messages.
    pub messages: &'a str,
    /// A JSON array of tools, `[]` for none.
    pub tools: &'a str,
    /// `auto`, `required` or `none`.
    pub tool_choice: &'a str,
    pub max_tokens: Option<u32>,
}

/// A part of an answer, as it arrives.
pub enum Piece<'a> {
    Text(&'a str),
    Thinking(&'a str),
}

/// A whole answer.
pub struct Answer {
    /// All of its text, byte for byte as it was sent.
    pub text: String,
    /// What the model wants to be run. Empty if the answer was cut by its length: such a call is not
    /// what the model wanted.
    pub calls: Vec<ToolCall>,
    pub finish: Finish,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    Stop,
    ToolCalls,
    Length,
    /// In the server's own word.
    Other(String),
}

/// Asks, and hands on what arrives.
pub fn ask(
    _ask: &Ask<'_>,
    _cancel: &Cancel,
    _on_piece: &mut dyn FnMut(Piece<'_>) -> Result<(), Fault>,
) -> Result<Answer, Fault> {
    Err(Fault { code: "model-unreachable", message: "no model is asked yet".to_owned() })
}

/// The names of the models that a server offers. `GET /v1/models`
pub fn models(_url: &str, _key: Option<&Key>, _limit: Duration) -> Result<Vec<String>, Fault> {
    Err(Fault { code: "model-unreachable", message: "no model is asked yet".to_owned() })
}
