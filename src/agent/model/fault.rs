//! The faults of a model server: their codes, the meaning of the server's own messages, and the
//! reasons why a completion cannot be used. Pure.
//!
//! Other parts act on some of the codes: a turn asks again, `opta doctor` names a fix.

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
/// The server cannot parse the output of its own model. A turn may require the call once more.
pub const MALFORMED: &str = "model-malformed";
/// The server was silent for too long.
pub const TIMEOUT: &str = "model-timeout";
/// The connection ended too soon.
pub const DISCONNECTED: &str = "model-disconnected";
/// The request does not fit into the model's context. A turn tries again with less.
pub const TOO_LONG: &str = "context-too-long";

/// The reason why a completion cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompletionError {
    /// The connection ended before the completion did.
    Truncated,
    /// The server reports an error, in these words.
    Reported(String),
    /// This is not the response of a model server; it begins with these bytes.
    Unexpected(Vec<u8>),
    /// A part of it cannot be parsed.
    Malformed(String),
    /// It exceeds a limit.
    TooLarge(&'static str),
}

/// What servers say, in lower case, if a request does not fit into the context. No single words:
/// servers repeat what they were sent, and have fields that are named `context_…`.
const CONTEXT_PHRASES: [&str; 9] = [
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

/// Returns whether a server says that it is still loading its model. llama.cpp: "Loading model".
pub fn is_loading(error: &str) -> bool {
    error.to_ascii_lowercase().contains("loading model")
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
    fn errors_about_the_context_are_recognized_by_the_words_of_each_server() {
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
        ] {
            assert!(is_about_context(error), "{error}");
            assert_eq!(code_of(error), TOO_LONG, "{error}");
        }
        for error in [
            "messages.0.content: field required, got {'text': 'in this context, do it'}",
            "unknown field: context_window_tokens",
            "extra_forbidden: context_length",
            "no context",
            "",
        ] {
            assert!(!is_about_context(error), "{error}");
            assert_eq!(code_of(error), ERROR, "{error}");
        }
    }
}
