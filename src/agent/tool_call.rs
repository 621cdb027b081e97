//! A tool call that a model requested, as far as it can be parsed. Pure.

use nanoserde::DeJson;

use crate::json::{self, Raw};
use crate::session::replay::ToolCall;

use super::tools::{Operation, TOOLS, Tool, truncated};

/// A parsed call.
pub struct Call {
    pub request: ToolCall,
    pub tool: Option<&'static Tool>,
    /// The error is for the model.
    pub operation: Result<Operation, String>,
    /// The model wrote it as text, which may have been meant as an example.
    pub is_text: bool,
}

impl Call {
    /// Parses a call. Replaces an alias by the tool's name, and arguments that are quoted as a
    /// whole by what is quoted.
    pub fn parse(mut request: ToolCall, is_text: bool) -> Call {
        let quoted: Option<String> = json::parse(request.arguments.as_bytes()).ok();
        if let Some(inner) = quoted.filter(|inner| Raw::object(inner).is_some()) {
            request.arguments = inner;
        }
        let tool = Tool::named(&request.name);
        let operation = match tool {
            Some(tool) => {
                tool.name.clone_into(&mut request.name);
                tool.parse(&request.arguments)
            }
            None => {
                let name = truncated(&request.name);
                let names = TOOLS.each_ref().map(|tool| tool.name).join(", ");
                Err(format!("there is no tool {name:?}; the tools are {names}"))
            }
        };
        Call { request, tool, operation, is_text }
    }

    /// Returns the name and the arguments, without differences that do not matter.
    pub fn canonical(&self) -> (String, String) {
        let ToolCall { name, arguments, .. } = &self.request;
        let parsed = Raw::parse(arguments);
        let arguments = parsed.as_ref().map_or(arguments.as_str(), Raw::as_str);
        (name.clone(), arguments.to_owned())
    }

    /// Returns the arguments as a JSON object, which is empty if they are not an object, or nested
    /// so deeply that an event with them could not be decoded. No tool has such arguments.
    pub fn input(&self) -> Raw {
        // More levels than any message has around them.
        let in_message = |raw: &Raw| json::check(&format!("[[[[[[{}]]]]]]", raw.as_str())).is_ok();
        let input = Raw::object(&self.request.arguments).filter(in_message);
        input.unwrap_or_else(Raw::empty)
    }
}

/// Returns the call that a small model wrote as text. The whole text must be one call of a tool
/// that exists: a call within prose might be an example.
pub fn from_text(text: &str) -> Option<ToolCall> {
    #[derive(DeJson)]
    struct Written {
        name: String,
        arguments: Raw,
    }
    let text = text.trim();
    let tagged = text
        .strip_prefix("<tool_call>")
        .map(|rest| rest.strip_suffix("</tool_call>").unwrap_or(rest));
    let fenced = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    let fenced = fenced.map(|inner| inner.strip_prefix("json").unwrap_or(inner));
    let bare = tagged.or(fenced).unwrap_or(text).trim();
    let written: Written = json::parse(bare.as_bytes()).ok()?;
    let name = Tool::named(&written.name)?.name.to_owned();
    let arguments = Raw::object(written.arguments.as_str())?.as_str().to_owned();
    Some(ToolCall { id: String::new(), name, arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_a_call_only_if_it_is_nothing_else() {
        let bare = r#"{"name":"file_read","arguments":{"path":"a"}}"#;
        let calls = [
            bare.to_owned(),
            format!("\n<tool_call>\n{bare}\n</tool_call>\n"),
            format!("<tool_call>{bare}"),
            format!("```json\n{bare}\n```"),
            format!("```\n{bare}\n```"),
        ];
        for text in calls {
            let call = from_text(&text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(
                (call.name.as_str(), call.arguments.as_str()),
                ("read_file", r#"{"path":"a"}"#)
            );
        }
        let others = [
            format!("I would say {bare}"),
            format!("{bare} or so"),
            bare.replace("file_read", "rm"),
            r#"{"name":"read_file"}"#.to_owned(),
            r#"{"name":"read_file","arguments":"a"}"#.to_owned(),
            String::new(),
        ];
        for text in others {
            assert_eq!(from_text(&text), None, "{text}");
        }
    }
}
