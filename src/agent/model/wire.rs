//! What is sent to a model server: the request, and a history that every server accepts. Pure.

use std::collections::HashMap;

use crate::json::{self, Raw};
use crate::session::rules::{Message, ToolCall};

use super::Ask;
use super::complaint::is_about_context;

/// Small models call tools the better the less they are left to chance.
const TEMPERATURE: &str = "0.2";
/// The result of a call that has none in the history. Every call that a session knows was begun:
/// the daemon ended in the middle of this one.
const INTERRUPTED: &str = "error: this call was started and then interrupted; it may have done all \
    of its work, a part of it or nothing: check which before you repeat it";

/// The answer to what was said in a turn that ended before it had one.
const NO_ANSWER: &str = "[no answer: this was cancelled or has failed]";

/// A field that some servers do not know and can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    StreamOptions,
    ToolChoice,
    Temperature,
    /// The older name of `max_completion_tokens`, which takes its place.
    MaxTokens,
    /// A limit for the answer under either name. Servers that reserve room for the whole of it
    /// refuse what would fit without; the end of the context is limit enough then.
    Limit,
}

const EXTRAS: [(Extra, &str); 5] = [
    (Extra::StreamOptions, "stream_options"),
    (Extra::ToolChoice, "tool_choice"),
    (Extra::Temperature, "temperature"),
    (Extra::MaxTokens, "max_tokens"),
    (Extra::Limit, "max_completion_tokens"),
];

/// The field that a refusal complains about, if it can be left out and has not been yet. One that
/// complains about the length of the context may mean the room for the answer.
pub fn refused_extra(said: &str, left_out: &[Extra]) -> Option<Extra> {
    // llama.cpp says this of a question that is too long by itself.
    let room = is_about_context(said) && !said.contains("exceed_context_size_error");
    let named = EXTRAS.iter().filter(|(_, name)| said.contains(name)).map(|(extra, _)| *extra);
    let named = named.filter(|extra| !(room && *extra == Extra::MaxTokens));
    named.chain(room.then_some(Extra::Limit)).find(|extra| !left_out.contains(extra))
}

/// The body of a request for a streamed answer. Without a model, the server takes what it has.
pub fn request(ask: &Ask<'_>, model: Option<&str>, left_out: &[Extra]) -> String {
    let sent = |extra: Extra| !left_out.contains(&extra);
    let mut body = String::with_capacity(ask.messages.len() + ask.tools.len() + 256);
    body.push('{');
    if let Some(model) = model {
        body.push_str("\"model\":");
        json::quote(model, &mut body);
        body.push(',');
    }
    body.push_str("\"messages\":");
    body.push_str(ask.messages);
    // An empty list is an error to some.
    if ask.tools.trim() != "[]" {
        body.push_str(",\"tools\":");
        body.push_str(ask.tools);
        if sent(Extra::ToolChoice) {
            body.push_str(",\"tool_choice\":");
            json::quote(ask.tool_choice, &mut body);
        }
    }
    if let Some(most) = ask.max_tokens.filter(|_| sent(Extra::Limit)) {
        let name = if sent(Extra::MaxTokens) { "max_tokens" } else { "max_completion_tokens" };
        body.push_str(&format!(",\"{name}\":{most}"));
    }
    if sent(Extra::Temperature) {
        body.push_str(",\"temperature\":");
        body.push_str(TEMPERATURE);
    }
    body.push_str(",\"stream\":true");
    if sent(Extra::StreamOptions) {
        body.push_str(",\"stream_options\":{\"include_usage\":true}");
    }
    body.push('}');
    body
}

/// A conversation as a JSON array of chat messages that every server accepts, behind `system` if
/// there is one.
///
/// Arguments are valid JSON, `{}` where they were not. Every call is followed by exactly one
/// result, in the order of the calls; results of no call are left out.
pub fn messages(system: Option<&str>, conversation: &[Message]) -> String {
    let mut out = String::from("[");
    if let Some(system) = system {
        out.push_str("{\"role\":\"system\",\"content\":");
        json::quote(system, &mut out);
        out.push('}');
    }
    let mut rest = conversation;
    while let Some((message, behind)) = rest.split_first() {
        rest = behind;
        match message {
            Message::Assistant { text, calls } => {
                let results = rest.iter().take_while(|one| matches!(one, Message::Tool { .. }));
                let count = results.count();
                let (results, behind) = rest.split_at(count);
                rest = behind;
                if !text.is_empty() || !calls.is_empty() {
                    let calls = calls.iter().map(with_valid_arguments).collect();
                    add_assistant(
                        Message::Assistant { text: text.clone(), calls },
                        results,
                        &mut out,
                    );
                }
            }
            Message::Tool { .. } => {}
            Message::Given(_) => add(message, &mut out),
            Message::User(_) => {
                add(message, &mut out);
                // Some models refuse to be spoken to twice without an answer.
                if matches!(rest.first(), Some(Message::User(_))) {
                    let (text, calls) = (NO_ANSWER.to_owned(), Vec::new());
                    add(&Message::Assistant { text, calls }, &mut out);
                }
            }
        }
    }
    out.push(']');
    out
}

fn add(message: &Message, out: &mut String) {
    if !out.ends_with('[') {
        out.push(',');
    }
    message.json(out);
}

fn add_assistant(message: Message, results: &[Message], out: &mut String) {
    add(&message, out);
    let Message::Assistant { calls, .. } = message else { return };
    let mut by_id: HashMap<&str, &str> = HashMap::new();
    for one in results {
        if let Message::Tool { call_id, result } = one {
            by_id.entry(call_id).or_insert(result);
        }
    }
    for call in calls {
        let result = by_id.get(call.id.as_str()).copied().unwrap_or(INTERRUPTED).to_owned();
        add(&Message::Tool { call_id: call.id, result }, out);
    }
}

fn with_valid_arguments(call: &ToolCall) -> ToolCall {
    let arguments = Raw::object(&call.arguments).unwrap_or_else(Raw::empty).as_str().to_owned();
    ToolCall { id: call.id.clone(), name: call.name.clone(), arguments }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Endpoint;

    fn endpoint() -> Endpoint {
        let (url, source) = ("http://h:1".to_owned(), "a test".to_owned());
        Endpoint { url, source, key: None, model: None, tool_choice: None }
    }

    fn call(id: &str, arguments: &str) -> ToolCall {
        ToolCall { id: id.into(), name: "f".into(), arguments: arguments.into() }
    }

    fn result(id: &str, result: &str) -> Message {
        Message::Tool { call_id: id.into(), result: result.into() }
    }

    #[test]
    fn a_request_has_what_servers_want_and_nothing_that_one_refused() {
        let endpoint = endpoint();
        let mut ask = Ask {
            endpoint: &endpoint,
            messages: "[{\"role\":\"user\",\"content\":\"hi\"}]",
            tools: "[]",
            tool_choice: "auto",
            max_tokens: None,
        };
        assert_eq!(
            request(&ask, None, &[]),
            "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"temperature\":0.2,\
             \"stream\":true,\"stream_options\":{\"include_usage\":true}}"
        );
        ask.tools = "[{\"type\":\"function\"}]";
        ask.max_tokens = Some(7);
        let full = request(&ask, Some("a\"b"), &[]);
        assert!(full.starts_with("{\"model\":\"a\\\"b\",\"messages\":["), "{full}");
        let choice = "\"tools\":[{\"type\":\"function\"}],\"tool_choice\":\"auto\"";
        assert!(full.contains(choice) && full.contains("\"max_tokens\":7,"), "{full}");
        assert_eq!(json::check(&full), Ok(()));
        let renamed = request(&ask, None, &[Extra::MaxTokens]);
        assert!(renamed.contains("\"max_completion_tokens\":7"), "{renamed}");
        let bare = request(&ask, None, &EXTRAS.map(|(extra, _)| extra));
        assert_eq!(json::check(&bare), Ok(()));
        for (_, name) in EXTRAS {
            assert!(!bare.contains(name), "{bare}");
        }
    }

    #[test]
    fn a_refused_field_is_left_out_once() {
        let said = "Unsupported parameter: 'stream_options'";
        assert_eq!(refused_extra(said, &[]), Some(Extra::StreamOptions));
        assert_eq!(refused_extra(said, &[Extra::StreamOptions]), None);
        assert_eq!(refused_extra("messages is missing", &[]), None);
        let too_large = "'max_tokens' or 'max_completion_tokens' is too large: 4096";
        assert_eq!(refused_extra(too_large, &[]), Some(Extra::MaxTokens));
        assert_eq!(refused_extra(too_large, &[Extra::MaxTokens]), Some(Extra::Limit));
        let no_room = "the maximum context length is 4096, you requested 4100";
        assert_eq!(refused_extra(no_room, &[]), Some(Extra::Limit));
        assert_eq!(refused_extra(no_room, &[Extra::Limit]), None);
        // The same in vLLM's words, which name the field: another name for it would not help.
        let no_room =
            "'max_tokens' is too large: 4096. This model's maximum context length is 4096";
        assert_eq!(refused_extra(no_room, &[]), Some(Extra::Limit));
        // llama.cpp counts the question alone.
        let question = "the request exceeds the available context (exceed_context_size_error)";
        assert_eq!(refused_extra(question, &[]), None);
        // Neither is a word that happens to be in what the server was sent.
        let echo = "content: field required, got 'in this context'";
        assert_eq!(refused_extra(echo, &[]), None);
    }

    #[test]
    fn every_call_of_the_history_has_valid_arguments_and_one_result() {
        let history = [
            Message::User("go".into()),
            result("lost", "of no call"),
            Message::Assistant {
                text: String::new(),
                calls: vec![call("a", "{\"p\": 1}"), call("b", "{\"p\": "), call("c", "[1]")],
            },
            result("c", "three"),
            result("a", "one"),
            result("a", "one again"),
            Message::Assistant { text: String::new(), calls: Vec::new() },
            Message::Given("{\"role\":\"user\",\"content\":\"x\"}".into()),
            Message::Assistant { text: "cut off".into(), calls: Vec::new() },
        ];
        let text = messages(Some("be\tbrief"), &history);
        assert_eq!(json::check(&text), Ok(()));
        let called = |id: &str, arguments: &str| {
            format!(
                "{{\"id\":\"{id}\",\"type\":\"function\",\"function\":\
                 {{\"name\":\"f\",\"arguments\":\"{arguments}\"}}}}"
            )
        };
        let answered = |id: &str, result: &str| {
            format!("{{\"role\":\"tool\",\"tool_call_id\":\"{id}\",\"content\":\"{result}\"}}")
        };
        let expected = [
            "{\"role\":\"system\",\"content\":\"be\\tbrief\"}".to_owned(),
            "{\"role\":\"user\",\"content\":\"go\"}".to_owned(),
            format!(
                "{{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{},{},{}]}}",
                called("a", "{\\\"p\\\":1}"),
                called("b", "{}"),
                called("c", "{}")
            ),
            answered("a", "one"),
            answered("b", INTERRUPTED),
            answered("c", "three"),
            "{\"role\":\"user\",\"content\":\"x\"}".to_owned(),
            "{\"role\":\"assistant\",\"content\":\"cut off\"}".to_owned(),
        ];
        assert_eq!(text, format!("[{}]", expected.join(",")));
        assert_eq!(messages(None, &[]), "[]");
        // What was begun is not told as if it had not been.
        assert!(text.contains("was started") && text.contains("check which before"), "{text}");
    }

    #[test]
    fn nothing_is_said_twice_without_an_answer() {
        let said = [Message::User("a".into()), Message::User("b".into())];
        let user = |text: &str| format!("{{\"role\":\"user\",\"content\":\"{text}\"}}");
        let answer = format!("{{\"role\":\"assistant\",\"content\":\"{NO_ANSWER}\"}}");
        assert_eq!(messages(None, &said), format!("[{},{answer},{}]", user("a"), user("b")));
    }
}
