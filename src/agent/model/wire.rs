//! What is sent to a model server: the request body, and a conversation that every server accepts.
//! Pure.

use std::borrow::{Borrow, Cow};
use std::collections::HashSet;
use std::iter;
use std::time::Instant;

use crate::json::{self, Quoted, Raw};
use crate::protocol::Endpoint;
use crate::session::replay::{Message, ToolCall, answer_json, answer_of, result_json};

use super::fault::is_about_context;

/// A low temperature, because small models call tools more reliably with less randomness.
const TEMPERATURE: &str = "0.2";
/// The result of a call that has none in the history. Every call in a session was begun:
/// the daemon ended while this one ran.
const INTERRUPTED: &str = "error: this call was started and then interrupted; it may have done all \
    of its work, a part of it or nothing: check which before you repeat it";

/// The answer to a message whose turn ended before it had one.
const NO_ANSWER: &str = "[no answer: this was cancelled or has failed]";

/// A request for a completion.
pub struct ChatRequest<'a> {
    pub endpoint: &'a Endpoint,
    /// A JSON array of chat messages.
    pub messages: &'a str,
    /// A JSON array of tools, `[]` for none.
    pub tools: &'a str,
    /// `auto`, `required` or `none`.
    pub tool_choice: &'a str,
    /// When the completion must have ended.
    pub deadline: Option<Instant>,
}

/// The limit for the answer, in its older form, which some servers reject.
const OLDER_TOKEN_LIMIT: &str = "max_tokens";
/// The limit for the answer. If it is omitted, so is the older form. Servers that reserve space
/// for all of it refuse what would otherwise fit; then the context itself is the limit.
pub const TOKEN_LIMIT: &str = "max_completion_tokens";
/// The tools, for servers and models that have no tool calls.
pub const TOOLS: &str = "tools";
/// Fields that some servers reject and that can be omitted.
const OPTIONAL_FIELDS: [&str; 5] =
    ["stream_options", "tool_choice", "temperature", OLDER_TOKEN_LIMIT, TOKEN_LIMIT];

/// Returns the field that an error complains about, if it can be omitted and was not yet. An error
/// about the length of the context may mean the space for the answer.
pub fn rejected_field(
    error: &str,
    omitted: &[&str],
    max_tokens: Option<u64>,
) -> Option<&'static str> {
    // llama.cpp says this of messages that are too long by themselves.
    let no_room = max_tokens.is_some()
        && is_about_context(error)
        && !error.contains("exceed_context_size_error");
    let named = OPTIONAL_FIELDS.into_iter().filter(|field| error.contains(field));
    // Another name for the limit does not save space.
    let named = named.filter(|field| !(no_room && *field == OLDER_TOKEN_LIMIT));
    named.chain(no_room.then_some(TOKEN_LIMIT)).find(|field| !omitted.contains(field))
}

/// The thinking of earlier answers, which some servers need back and others refuse.
const THINKING_FIELDS: [&str; 2] = ["reasoning_content", "reasoning"];

/// Returns the field of the messages that an error complains about, if it can be omitted and was
/// not yet.
pub fn rejected_thinking(error: &str, messages: &str, omitted: &[&str]) -> Option<&'static str> {
    let named = THINKING_FIELDS.into_iter().filter(|field| error.contains(field));
    named.filter(|field| !omitted.contains(field)).find(|field| messages.contains(&begin(field)))
}

/// Returns how a member with a text begins. Nothing else in JSON does: within a string, the quotes
/// are escaped.
fn begin(field: &str) -> String {
    format!(",\"{field}\":\"")
}

/// Returns the messages without this field, which contains a text wherever it is.
fn without(messages: &str, field: &str) -> String {
    let begin = begin(field);
    let mut parts = messages.split(&begin);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut escaped = false;
        let end = part.find(|character| {
            let ends = character == '"' && !escaped;
            escaped = character == '\\' && !escaped;
            ends
        });
        out.push_str(end.and_then(|end| part.get(end + 1..)).unwrap_or_default());
    }
    out
}

/// The body of a request for a completion. The messages are not copied: they are long.
pub struct RequestBody<'a> {
    before: String,
    messages: Cow<'a, str>,
    after: String,
}

impl<'a> RequestBody<'a> {
    /// Returns the body of a request for a streamed completion. Without a model, the server
    /// chooses.
    pub fn new(
        request: &ChatRequest<'a>,
        model: Option<&str>,
        omitted: &[&str],
    ) -> RequestBody<'a> {
        let model = model.map(|model| format!("\"model\":{},", quoted(model)));
        let before = format!("{{{}\"messages\":", model.unwrap_or_default());
        let rejected = THINKING_FIELDS.into_iter().filter(|field| omitted.contains(field));
        let messages = rejected
            .fold(Cow::Borrowed(request.messages), |all, field| without(&all, field).into());
        let mut after = String::new();
        let mut add = |name: &str, value: &str| {
            if !omitted.contains(&name) {
                after.push_str(&format!(",\"{name}\":{value}"));
            }
        };
        // Some servers reject an empty list.
        let says_none = request.tool_choice == "none" && omitted.contains(&"tool_choice");
        if request.tools.trim() != "[]" && !omitted.contains(&TOOLS) && !says_none {
            add("tools", request.tools);
            add("tool_choice", &quoted(request.tool_choice));
        }
        if let Some(tokens) = request.endpoint.max_tokens
            && !omitted.contains(&TOKEN_LIMIT)
        {
            let older = !omitted.contains(&OLDER_TOKEN_LIMIT);
            let name = if older { OLDER_TOKEN_LIMIT } else { TOKEN_LIMIT };
            add(name, &tokens.to_string());
        }
        add("temperature", TEMPERATURE);
        add("stream", "true");
        add("stream_options", "{\"include_usage\":true}");
        after.push('}');
        RequestBody { before, messages, after }
    }

    /// Returns its parts in their order.
    pub fn parts(&self) -> [&str; 3] {
        [&self.before, &self.messages, &self.after]
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    json::quote(text, &mut quoted);
    quoted
}

/// Returns a conversation as a JSON array of chat messages that every server accepts, after the
/// system prompt if there is one.
///
/// Arguments are valid JSON, `{}` where they were not. Every call is followed by exactly one
/// result, in the order of the calls; results of no call are omitted.
pub fn messages<M: Borrow<Message>>(system: Option<&str>, conversation: &[M]) -> String {
    let mut out = String::from("[");
    if let Some(system) = system {
        out.push_str(&format!("{{\"role\":\"system\",\"content\":{}}}", quoted(system)));
    }
    let interrupted = Quoted::new(INTERRUPTED);
    let mut ids = HashSet::new();
    for (position, message) in conversation.iter().map(Borrow::borrow).enumerate() {
        let following = conversation.get(position + 1..).unwrap_or_default();
        match message {
            Message::Assistant { text, calls, extra } => {
                let answer = answer_of(text);
                if answer.is_empty() && calls.is_empty() {
                    continue;
                }
                let sent: Vec<ToolCall> = calls.iter().map(|call| valid(call, &mut ids)).collect();
                answer_json(answer, &sent, extra, next(&mut out));
                for (call, sent) in calls.iter().zip(&sent) {
                    let result = result_of(call, following).unwrap_or(&interrupted);
                    result_json(&sent.id, result, next(&mut out));
                }
            }
            Message::Tool { .. } => {}
            Message::Given(_) => message.json(next(&mut out)),
            Message::User(_) => {
                message.json(next(&mut out));
                // Some models reject two successive user messages.
                if matches!(following.first().map(Borrow::borrow), Some(Message::User(_))) {
                    answer_json(NO_ANSWER, &[], "", next(&mut out));
                }
            }
        }
    }
    out.push(']');
    out
}

/// Begins the next element of an array.
fn next(out: &mut String) -> &mut String {
    if out.len() > 1 {
        out.push(',');
    }
    out
}

/// Returns a call with valid arguments and an id that no earlier one has: in some sessions, calls
/// have the ids of a server that numbers them anew in each answer.
fn valid(call: &ToolCall, ids: &mut HashSet<String>) -> ToolCall {
    let arguments = Raw::object(&call.arguments).unwrap_or_else(Raw::empty);
    let others = (2..).map(|number| format!("{}_{number}", call.id));
    let mut candidates = iter::once(call.id.clone()).chain(others);
    let id = candidates.find(|id| ids.insert(id.clone())).unwrap_or_default();
    ToolCall { id, arguments: arguments.as_str().to_owned(), ..call.clone() }
}

/// Returns the result of a call, which is first among what follows its answer.
fn result_of<'m, M: Borrow<Message>>(call: &ToolCall, following: &'m [M]) -> Option<&'m Quoted> {
    let mut results = following.iter().map_while(|message| match message.borrow() {
        Message::Tool { call_id, result } => Some((call_id, result)),
        _ => None,
    });
    results.find(|(call_id, _)| **call_id == call.id).map(|(_, result)| result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        let (url, source) = ("http://h:1".to_owned(), "a test".to_owned());
        Endpoint { url, source, max_tokens: Some(4096), ..Endpoint::default() }
    }

    fn call(id: &str, arguments: &str) -> ToolCall {
        ToolCall {
            id: id.into(),
            name: "f".into(),
            arguments: arguments.into(),
            extra: String::new(),
        }
    }

    fn result(id: &str, result: &str) -> Message {
        Message::result(id.into(), result)
    }

    #[test]
    fn a_request_has_what_servers_need_and_omits_the_rejected_fields() {
        let endpoint = endpoint();
        let mut chat = ChatRequest {
            endpoint: &endpoint,
            messages: "[{\"role\":\"user\",\"content\":\"hi\"}]",
            tools: "[]",
            tool_choice: "auto",
            deadline: None,
        };
        assert_eq!(
            RequestBody::new(&chat, None, &[]).parts().concat(),
            "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"max_tokens\":4096,\
             \"temperature\":0.2,\"stream\":true,\"stream_options\":{\"include_usage\":true}}"
        );
        chat.tools = "[{\"type\":\"function\"}]";
        let full = RequestBody::new(&chat, Some("a\"b"), &[]).parts().concat();
        assert!(full.starts_with("{\"model\":\"a\\\"b\",\"messages\":["), "{full}");
        let choice = "\"tools\":[{\"type\":\"function\"}],\"tool_choice\":\"auto\"";
        assert!(full.contains(choice) && full.contains("\"max_tokens\":4096,"), "{full}");
        assert_eq!(json::check(&full), Ok(()));
        let renamed = RequestBody::new(&chat, None, &["max_tokens"]).parts().concat();
        assert!(renamed.contains("\"max_completion_tokens\":4096"), "{renamed}");
        let bare = RequestBody::new(&chat, None, &OPTIONAL_FIELDS).parts().concat();
        assert_eq!(json::check(&bare), Ok(()));
        for name in OPTIONAL_FIELDS {
            assert!(!bare.contains(name), "{bare}");
        }
    }

    #[test]
    fn a_rejected_field_is_omitted_once() {
        let error = "Unsupported parameter: 'stream_options'";
        assert_eq!(rejected_field(error, &[], Some(1)), Some("stream_options"));
        assert_eq!(rejected_field(error, &["stream_options"], Some(1)), None);
        assert_eq!(rejected_field("messages is missing", &[], Some(1)), None);
        let too_large = "'max_tokens' or 'max_completion_tokens' is too large: 4096";
        assert_eq!(rejected_field(too_large, &[], Some(1)), Some("max_tokens"));
        assert_eq!(rejected_field(too_large, &["max_tokens"], Some(1)), Some(TOKEN_LIMIT));
        let no_room = "the maximum context length is 4096, you requested 4100";
        assert_eq!(rejected_field(no_room, &[], Some(1)), Some(TOKEN_LIMIT));
        assert_eq!(rejected_field(no_room, &[TOKEN_LIMIT], Some(1)), None);
        // vLLM says the same and names the field: another name for it would not help.
        let no_room =
            "'max_tokens' is too large: 4096. This model's maximum context length is 4096";
        assert_eq!(rejected_field(no_room, &[], Some(1)), Some(TOKEN_LIMIT));
        // llama.cpp counts the messages alone.
        let messages = "the request exceeds the available context (exceed_context_size_error)";
        assert_eq!(rejected_field(messages, &[], Some(1)), None);
        // Nor does a word that the server only repeats count.
        let echo = "content: field required, got 'in this context'";
        assert_eq!(rejected_field(echo, &[], Some(1)), None);
    }

    #[test]
    fn thinking_that_a_server_refuses_is_omitted_and_nothing_else() {
        let extra = json::member("reasoning_content", &json::Lenient::Text("a\\\"b\\".into()));
        let text = r#"x","reasoning_content":"y"#.to_owned();
        let answer = |extra: &str| Message::Assistant {
            text: text.clone(),
            calls: Vec::new(),
            extra: extra.to_owned(),
        };
        let (with, bare) = (messages(None, &[answer(&extra), answer(&extra)]), answer(""));
        assert_eq!(without(&with, "reasoning_content"), messages(None, &[bare.clone(), bare]));
        let error = "reasoning_content is not allowed in input messages";
        assert_eq!(rejected_thinking(error, &with, &[]), Some("reasoning_content"));
        assert_eq!(rejected_thinking(error, &with, &["reasoning_content"]), None);
        assert_eq!(rejected_thinking("bad field", &with, &[]), None);
        // It was not sent.
        assert_eq!(rejected_thinking(error, &without(&with, "reasoning_content"), &[]), None);
    }

    #[test]
    fn every_call_of_the_history_has_valid_arguments_and_one_result() {
        let history = [
            Message::User("go".into()),
            result("lost", "of no call"),
            Message::Assistant {
                text: String::new(),
                calls: vec![call("a", "{\"p\": 1}"), call("b", "{\"p\": "), call("c", "[1]")],
                extra: String::new(),
            },
            result("c", "three"),
            result("a", "one"),
            result("a", "one again"),
            Message::answer(String::new()),
            Message::Given("{\"role\":\"user\",\"content\":\"x\"}".into()),
            Message::answer("cut off".into()),
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
        assert_eq!(messages::<Message>(None, &[]), "[]");
        // A call that was begun is not reported as one that never was.
        assert!(text.contains("was started") && text.contains("check which before"), "{text}");
    }

    #[test]
    fn two_user_messages_in_a_row_have_an_answer_between_them() {
        let conversation = [Message::User("a".into()), Message::User("b".into())];
        let user = |text: &str| format!("{{\"role\":\"user\",\"content\":\"{text}\"}}");
        let answer = format!("{{\"role\":\"assistant\",\"content\":\"{NO_ANSWER}\"}}");
        assert_eq!(
            messages(None, &conversation),
            format!("[{},{answer},{}]", user("a"), user("b"))
        );
    }
}
