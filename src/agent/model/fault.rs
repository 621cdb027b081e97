//! The faults of a model server: their codes, the meaning of the server's own messages, and the
//! reasons why a completion cannot be used. Pure.
//!
//! Other parts act on some of the codes: a turn asks again, `opta doctor` names a fix.

use std::time::Duration;

use crate::session::turn::Fault;

/// A setting names no server that can be used.
pub const CONFIG: &str = "model-config";
/// Nothing answers at the address.
pub const UNREACHABLE: &str = "model-unreachable";
/// The key is missing or wrong.
pub const UNAUTHORIZED: &str = "model-unauthorized";
/// The server was still busy after all retries.
pub const BUSY: &str = "model-busy";
/// Any other failure of the server.
pub const ERROR: &str = "model-error";
/// The server refuses the request, perhaps because it is too long. A turn tries again with less
/// if the conversation is long; for users it is [`ERROR`].
pub const REFUSED: &str = "refused";
/// The server cannot parse the output of its own model. A turn may require the call once more.
pub const MALFORMED: &str = "model-malformed";
/// The server was silent for too long.
pub const TIMEOUT: &str = "model-timeout";
/// The connection ended too soon.
pub const DISCONNECTED: &str = "model-disconnected";
/// The request does not fit into the model's context. A turn tries again with less.
pub const TOO_LONG: &str = "context-too-long";

/// Why a request failed.
pub struct RequestFailure {
    pub fault: Fault,
    pub retry: Retry,
}

/// Whether a request may be sent again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    No,
    /// The server is busy. It may say for how long.
    Busy(Option<Duration>),
    /// The server has failed, for a while or for ever.
    Failed,
}

impl From<Fault> for RequestFailure {
    fn from(fault: Fault) -> RequestFailure {
        RequestFailure { fault, retry: Retry::No }
    }
}

/// The reason why a completion cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompletionError {
    /// The connection ended before the completion did.
    Truncated,
    /// The server reports an error, in these words. If it is final, the same request fails again.
    Reported { text: String, is_final: bool },
    /// This is not the response of a model server; it begins with these bytes.
    Unexpected(Vec<u8>),
    /// A part of it cannot be parsed.
    Malformed(String),
    /// It exceeds a limit.
    TooLarge(&'static str),
}

/// What servers say, in lower case, if a request does not fit into the context. No single words:
/// servers repeat what they were sent, and have fields that are named `context_…`.
const CONTEXT_PHRASES: [&str; 18] = [
    // OpenAI: "This model's maximum context length is …", and vLLM, SGLang, LM Studio, Ollama.
    "context length",
    "context_length_exceeded",
    // OpenAI: "Your input exceeds the context window of this model".
    "context window",
    // llama.cpp: "the request exceeds the available context size", "Context size has been
    // exceeded".
    "context size",
    "available context",
    "exceed_context_size_error",
    // Anthropic: "exceed context limit", "prompt is too long: … tokens > … maximum".
    "exceed context limit",
    "prompt is too long",
    // vLLM: "The decoder prompt is longer than the maximum model length of …".
    "maximum model length",
    // TGI: "`inputs` must have less than 4096 tokens", "tokens + `max_new_tokens` must be <= …".
    "must have less than",
    "`max_new_tokens` must be",
    // Mistral, Groq, Bedrock, Cohere, Gemini.
    "too large for model with",
    "reduce the length of the messages",
    "input is too long",
    "too many tokens",
    "maximum number of tokens",
    "exceeds the maximum number",
    "token limit",
];

/// What servers say if they cannot parse the output of their own model. llama.cpp: "The model
/// produced output that does not match the expected … format", "Failed to parse tool call
/// arguments"; Ollama: "error parsing tool call".
const MALFORMED_PHRASES: [&str; 3] =
    ["model produced output that does not match", "parse tool call", "parsing tool call"];

/// Returns whether a server says that the request does not fit into the context.
pub fn is_about_context(error: &str) -> bool {
    let error = error.to_ascii_lowercase();
    CONTEXT_PHRASES.iter().any(|phrase| error.contains(phrase))
}

/// What servers call what they lack, and how they say that they lack it.
const TOOL_WORDS: [&str; 3] = ["tool", "function call", "function-call"];
const LACK_WORDS: [&str; 10] = [
    // Ollama: "… does not support tools"; OpenRouter: "No endpoints found that support tool use".
    "not support",
    "n't support",
    "no endpoints found that support",
    "unsupported",
    "not enabled",
    "not available",
    "not implemented",
    // llama.cpp: "tools param requires --jinja flag"; vLLM: "\"auto\" tool choice requires
    // --enable-auto-tool-choice and --tool-call-parser to be set".
    "requires --",
    "not permitted",
    "without tool",
];

/// Returns whether a server says that it, or its model, has no tool calls.
pub fn is_about_tools(error: &str) -> bool {
    let error = error.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| error.contains(word));
    has(&TOOL_WORDS) && has(&LACK_WORDS)
}

/// Returns the code for an error in a server's own words, the only sign that all servers give:
/// [`MALFORMED`], [`TOO_LONG`] or [`ERROR`].
pub fn code_of(error: &str) -> &'static str {
    if MALFORMED_PHRASES.iter().any(|phrase| error.contains(phrase)) {
        MALFORMED
    } else if is_about_context(error) {
        TOO_LONG
    } else {
        ERROR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_recognized_by_the_words_of_each_server() {
        for error in [
            "request (5120 tokens) exceeds the available context size (4096 tokens)",
            "Context size has been exceeded.",
            "too long (exceed_context_size_error)",
            "This model's maximum context length is 4096 tokens. However, you requested 4100",
            "The model is loaded with context length of only 4096 tokens",
            "context_length_exceeded",
            "Your input exceeds the context window of this model. Please adjust your input",
            "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000",
            "prompt is too long: 215000 tokens > 200000 maximum",
            "The decoder prompt (length 8357) is longer than the maximum model length of 8192.",
            "Input validation error: `inputs` must have less than 4096 tokens. Given: 5000",
            "Prompt contains 40000 tokens, too large for model with 32768 maximum context",
            "Please reduce the length of the messages or completion.",
            "Input is too long for requested model.",
            "too many tokens: total number of tokens cannot exceed 4081",
            "The input token count (1200000) exceeds the maximum number of tokens allowed",
        ] {
            assert!(is_about_context(error), "{error}");
            assert_eq!(code_of(error), TOO_LONG, "{error}");
        }
        for error in [
            "registry.ollama.ai/library/gemma:2b does not support tools",
            "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser",
            "tools param requires --jinja flag",
            "No endpoints found that support tool use.",
            "This model doesn't support function calling",
            "Function calling is not enabled for models/x",
        ] {
            assert!(is_about_tools(error) && code_of(error) == ERROR, "{error}");
        }
        for error in [
            "messages.0.content: field required, got {'text': 'in this context, do it'}",
            "unknown field: context_window_tokens",
            "extra_forbidden: context_length",
            "no context",
            "",
        ] {
            assert!(!is_about_context(error) && !is_about_tools(error), "{error}");
            assert_eq!(code_of(error), ERROR, "{error}");
        }
    }
}
