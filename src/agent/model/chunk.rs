//! What a model server sends, in its own words: everything may be missing or `null`. Pure.

use nanoserde::DeJson;

use crate::json::{self, Lenient, Raw};

use super::calls::Fragment;

/// One event of a stream, or a whole completion.
#[derive(DeJson)]
pub struct Chunk {
    pub choices: Option<Vec<Choice>>,
    pub error: Option<Raw>,
    pub usage: Option<Raw>,
}

/// One of the answers that a model may give side by side.
#[derive(DeJson)]
pub struct Choice {
    pub index: Option<i64>,
    pub delta: Option<Delta>,
    pub message: Option<Delta>,
    pub finish_reason: Option<Lenient>,
}

/// What has been added to an answer.
#[derive(DeJson)]
pub struct Delta {
    pub content: Option<Lenient>,
    pub reasoning_content: Option<Lenient>,
    pub reasoning: Option<Lenient>,
    pub tool_calls: Option<Vec<Fragment>>,
}

/// What an answer has cost.
#[derive(DeJson)]
pub struct Usage {
    pub prompt_tokens: Option<i64>,
    pub completion_tokens: Option<i64>,
}

impl Usage {
    /// It may be anything, and nothing depends on it.
    pub fn of(raw: &Raw) -> Option<Usage> {
        json::parse(raw.as_str().as_bytes()).ok()
    }
}

/// The answer that counts.
pub fn first(choices: Vec<Choice>) -> Option<Choice> {
    choices.into_iter().find(|choice| matches!(choice.index, None | Some(0)))
}

/// A string, or the texts of a list of parts.
pub fn content(loose: Lenient) -> String {
    #[derive(DeJson)]
    struct Part {
        text: Option<String>,
    }
    match loose {
        Lenient::Text(text) => text,
        Lenient::Other(raw) => {
            let parts = json::parse::<Vec<Part>>(raw.as_str().as_bytes()).unwrap_or_default();
            parts.into_iter().filter_map(|part| part.text).collect()
        }
    }
}

/// What an `error` says, which is an object or a string, with its type for those who know it.
pub fn error_text(error: &str) -> String {
    #[derive(DeJson)]
    struct Object {
        message: Option<Lenient>,
        #[nserde(rename = "type")]
        kind: Option<Lenient>,
    }
    if let Ok(text) = json::parse::<String>(error.as_bytes()) {
        return text;
    }
    let object = json::parse::<Object>(error.as_bytes()).ok();
    let Some(Object { message: Some(message), kind }) = object else { return error.to_owned() };
    let message = message.into_text();
    match kind.and_then(Lenient::text) {
        Some(kind) if !kind.is_empty() && !message.contains(&kind) => format!("{message} ({kind})"),
        _ => message,
    }
}
