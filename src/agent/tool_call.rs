//! A tool call that a model requested, as far as it can be parsed. Pure.

use nanoserde::DeJson;

use crate::json::{self, Lenient, Raw};
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

#[derive(DeJson)]
struct WrittenCall {
    name: String,
    arguments: Raw,
}

/// Returns the call that a small model wrote as text. The whole text must be one call of a tool
/// that exists: a call within prose might be an example.
pub fn from_text(text: &str) -> Option<ToolCall> {
    let text = text.trim();
    let fenced = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    let bare = fenced.map_or(text, |inner| inner.strip_prefix("json").unwrap_or(inner)).trim();
    let written: WrittenCall = json::parse(bare.as_bytes()).ok()?;
    let tool = Tool::named(&written.name)?;
    Some(written_call(tool.name, Raw::object(written.arguments.as_str())?.as_str()))
}

/// Returns the calls that a model wrote as text in its own tags, which its server should have
/// parsed; none if there is anything else in the text.
///
/// The forms are those of Hermes, `<tool_call>{"name":…,"arguments":{…}}</tool_call>`, and of Qwen,
/// `<function=NAME><parameter=KEY>VALUE</parameter></function>` with or without the same tags.
pub fn from_tags(text: &str) -> Vec<ToolCall> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let Some((call, after)) = first_tagged(rest) else { return Vec::new() };
        calls.push(call);
        rest = after.trim_start();
    }
    calls
}

fn first_tagged(text: &str) -> Option<(ToolCall, &str)> {
    let Some(inner) = text.strip_prefix("<tool_call>") else { return function(text) };
    // The last end may be missing.
    let (inner, rest) = inner.split_once("</tool_call>").unwrap_or((inner, ""));
    let inner = inner.trim();
    if inner.starts_with('<') {
        let (call, after) = function(inner)?;
        return after.trim().is_empty().then_some((call, rest));
    }
    let written: WrittenCall = json::parse(inner.as_bytes()).ok()?;
    Some((written_call(&written.name, written.arguments.as_str()), rest))
}

fn function(text: &str) -> Option<(ToolCall, &str)> {
    let (name, mut rest) = text.strip_prefix("<function=")?.split_once('>')?;
    let mut members = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(rest) = rest.strip_prefix("</function>") {
            let arguments: String = members.concat();
            let arguments = format!("{{{}}}", arguments.strip_prefix(',').unwrap_or_default());
            return Some((written_call(name.trim(), &arguments), rest));
        }
        let (key, after) = rest.strip_prefix("<parameter=")?.split_once('>')?;
        let (value, after) = after.split_once("</parameter>")?;
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        members.push(json::member(key.trim(), &Lenient::Text(value.to_owned())));
        rest = after;
    }
}

fn written_call(name: &str, arguments: &str) -> ToolCall {
    let (name, arguments) = (name.to_owned(), arguments.to_owned());
    ToolCall { id: String::new(), name, arguments, extra: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_a_call_only_if_it_is_nothing_else() {
        let bare = r#"{"name":"file_read","arguments":{"path":"a"}}"#;
        let calls = [bare.to_owned(), format!("```json\n{bare}\n```"), format!("```\n{bare}\n```")];
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

    /// Gives each call as `name arguments`.
    fn tagged(text: &str) -> Vec<String> {
        let shown = |call: ToolCall| format!("{} {}", call.name, call.arguments);
        from_tags(text).into_iter().map(shown).collect()
    }

    #[test]
    fn calls_in_the_tags_of_a_model_are_calls() {
        let hermes = r#"{"name": "read_file", "arguments": {"path": "a"}}"#;
        let read = r#"read_file {"path":"a"}"#;
        for text in [
            format!("<tool_call>{hermes}</tool_call>"),
            format!("\n<tool_call>\n{hermes}\n</tool_call>\n"),
            format!("<tool_call>{hermes}"),
            "<tool_call>\n<function=read_file>\n<parameter=path>\na\n</parameter>\n</function>\n\
             </tool_call>"
                .to_owned(),
            "<function=read_file><parameter=path>a</parameter></function>".to_owned(),
        ] {
            assert_eq!(tagged(&text), [read], "{text}");
            assert_eq!(tagged(&text.repeat(2)).len(), if text.contains("</") { 2 } else { 0 });
        }
        let text = "<function=write_file>\n<parameter=path>\nb</parameter><parameter=content>\n\
                    \n{\"x\": <1>}\n\n</parameter></function>";
        let written = r#"write_file {"path":"b","content":"\n{\"x\": <1>}\n"}"#;
        assert_eq!(tagged(text), [written]);
        assert_eq!(tagged("<function=list_dir>\n</function>"), ["list_dir {}"]);
        for text in [
            format!("<tool_call>{hermes}</tool_call> So I read it."),
            format!("<tool_call>{}", &hermes[..20]),
            "<function=read_file><parameter=path>a".to_owned(),
            "<tool_call></tool_call>".to_owned(),
        ] {
            assert!(tagged(&text).is_empty(), "{text}");
        }
    }
}
