//! Tool calls that small models write as text. Taken only if the whole answer is one call of a tool
//! that there is: fished out of prose it might be an example.

use nanoserde::DeJson;

use crate::json::{self, Raw};
use crate::session::rules::ToolCall;

use super::tools::Tool;

#[derive(DeJson)]
struct Spoken {
    name: String,
    arguments: Raw,
}

/// The call that `text` is.
pub fn call(text: &str) -> Option<ToolCall> {
    let text = text.trim();
    let tagged = text
        .strip_prefix("<tool_call>")
        .map(|rest| rest.strip_suffix("</tool_call>").unwrap_or(rest));
    let fenced = text.strip_prefix("```").and_then(|rest| {
        let rest = rest.strip_suffix("```")?;
        Some(rest.strip_prefix("json").unwrap_or(rest))
    });
    let bare = tagged.or(fenced).unwrap_or(text).trim();
    let spoken: Spoken = json::parse(bare.as_bytes()).ok()?;
    let tool = Tool::named(&spoken.name)?;
    let arguments = spoken.arguments.as_str();
    arguments.starts_with('{').then(|| ToolCall {
        id: String::new(),
        name: tool.name().to_owned(),
        arguments: arguments.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_taken_only_if_it_is_all_that_was_said() {
        let bare = r#"{"name":"file_read","arguments":{"path":"a"}}"#;
        let taken = [
            bare.to_owned(),
            format!("\n<tool_call>\n{bare}\n</tool_call>\n"),
            format!("<tool_call>{bare}"),
            format!("```json\n{bare}\n```"),
            format!("```\n{bare}\n```"),
        ];
        for text in taken {
            let call = call(&text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(
                (call.name.as_str(), call.arguments.as_str()),
                ("read_file", r#"{"path":"a"}"#)
            );
        }
        let left = [
            format!("I would say {bare}"),
            format!("{bare} or so"),
            bare.replace("file_read", "rm"),
            r#"{"name":"read_file"}"#.to_owned(),
            r#"{"name":"read_file","arguments":"a"}"#.to_owned(),
            String::new(),
        ];
        for text in left {
            assert_eq!(call(&text), None, "{text}");
        }
    }
}
