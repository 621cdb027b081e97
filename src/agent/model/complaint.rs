//! What servers complain about, told from their own words: there is no other sign that all of them
//! give. Pure.

use super::code;

/// What servers say of a question that does not fit into the context, in small letters. No word
/// alone: servers repeat what they were sent, and have fields that are called `context_…`.
const ABOUT_CONTEXT: [&str; 9] = [
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

/// Whether a server says that the context is too short for what it was sent.
pub fn is_about_context(said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    ABOUT_CONTEXT.iter().any(|phrase| said.contains(phrase))
}

/// Whether a server says that it is not ready yet. llama.cpp: "Loading model".
pub fn is_loading(said: &str) -> bool {
    said.to_ascii_lowercase().contains("loading model")
}

/// The code for a server's complaint: `model-malformed` if it is about what its own model has said,
/// `context-too-long` if it is about what the model was to be told.
///
/// llama.cpp: "The model produced output that does not match the expected … format", "Failed to
/// parse tool call arguments"; Ollama: "error parsing tool call".
pub fn code_of(said: &str) -> &'static str {
    let any = |phrases: &[&str]| phrases.iter().any(|phrase| said.contains(phrase));
    if any(&["model produced output that does not match", "parse tool call", "parsing tool call"]) {
        code::MALFORMED
    } else if is_about_context(said) {
        code::TOO_LONG
    } else {
        code::ERROR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_that_is_too_short_is_known_from_what_servers_say() {
        for said in [
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
            assert!(is_about_context(said), "{said}");
            assert_eq!(code_of(said), code::TOO_LONG, "{said}");
        }
        for said in [
            "messages.0.content: field required, got {'text': 'in this context, do it'}",
            "unknown field: context_window_tokens",
            "extra_forbidden: context_length",
            "no context",
            "",
        ] {
            assert!(!is_about_context(said), "{said}");
            assert_eq!(code_of(said), "model-error", "{said}");
        }
    }
}
