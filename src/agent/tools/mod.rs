//! What a model can do besides talking: seven tools that work in one directory.
//!
//! The text of a result is for the model: `Ok` is the result of a tool, `Err` the
//! reason why there is none.

mod command;
mod file_text;
mod files;
mod git;
mod glob;
mod ignore;
mod line_search;
mod protection;
mod replace;
mod search;
mod seen;
mod walk;
mod workspace;

use std::io::Read as _;

use nanoserde::DeJson;

use super::clip::clip;
use crate::json::{self, Members};
use crate::limits;
use crate::text::prefix;

pub use git::Repository;
pub use seen::SeenBySession;
pub use workspace::{LazyWorkspace, ToolContext, Workspace};

/// A tool, and its description for the model.
pub struct Tool {
    /// The name for the model.
    pub name: &'static str,
    /// The name in the log, and another one for the settings.
    pub alias: &'static str,
    pub effect: Effect,
    description: &'static str,
    arguments: &'static [Argument],
    parse: fn(&[u8]) -> Result<Attempt, json::DecodeError>,
}

/// What a tool does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Reads,
    Edits,
    Runs,
}

/// An argument of a tool. Its schema is plain, for small models and for the grammars that servers
/// make of it.
struct Argument {
    name: &'static str,
    /// The JSON type.
    kind: &'static str,
    required: bool,
    /// May be empty.
    description: &'static str,
}

const fn required(name: &'static str, description: &'static str) -> Argument {
    Argument { name, kind: "string", required: true, description }
}

const fn optional(name: &'static str, kind: &'static str, description: &'static str) -> Argument {
    Argument { name, kind, required: false, description }
}

/// All tools.
pub static TOOLS: [Tool; 7] = [
    Tool {
        name: "read_file",
        alias: "file_read",
        effect: Effect::Reads,
        description: "Read a text file. Lines come with their numbers.",
        arguments: &[
            required("path", ""),
            optional("offset", "integer", "first line, from 1"),
            optional("limit", "integer", "number of lines"),
            optional("byte_offset", "integer", "first byte, from 0: instead of lines"),
        ],
        parse: |bytes| attempt(bytes, files::ReadFile::run),
    },
    Tool {
        name: "list_dir",
        alias: "file_list",
        effect: Effect::Reads,
        description: "List a directory. Without a path: the workspace.",
        arguments: &[optional("path", "string", ""), optional("recursive", "boolean", "")],
        parse: |bytes| attempt(bytes, files::ListDir::run),
    },
    Tool {
        name: "find_files",
        alias: "find_files",
        effect: Effect::Reads,
        description: "Find files by name with a glob such as *.rs or src/**/*.ts.",
        arguments: &[
            required("pattern", "glob"),
            optional("path", "string", "directory to look in"),
        ],
        parse: |bytes| attempt(bytes, search::FindFiles::run),
    },
    Tool {
        name: "search_files",
        alias: "search_files",
        effect: Effect::Reads,
        description: "Search the lines of files with a regular expression.",
        arguments: &[
            required("pattern", "regular expression"),
            optional("path", "string", "directory or file to look in"),
            optional("glob", "string", "only files with such names"),
        ],
        parse: |bytes| attempt(bytes, search::SearchFiles::run),
    },
    Tool {
        name: "write_file",
        alias: "file_write",
        effect: Effect::Edits,
        description: "Write a whole file, new or in the place of an old one.",
        arguments: &[required("path", ""), required("content", "")],
        parse: |bytes| attempt(bytes, files::WriteFile::run),
    },
    Tool {
        name: "edit_file",
        alias: "file_edit",
        effect: Effect::Edits,
        description: "Replace a text in a file. old_text must occur exactly once.",
        arguments: &[required("path", ""), required("old_text", ""), required("new_text", "")],
        parse: |bytes| attempt(bytes, files::EditFile::run),
    },
    Tool {
        name: "run_command",
        alias: "shell",
        effect: Effect::Runs,
        description: "Run a shell command in the workspace. When it ends, its process group is killed.",
        arguments: &[
            required("command", ""),
            optional("timeout_ms", "integer", "default 30000, at most 600000"),
            optional("timeout", "integer", "the same as timeout_ms"),
        ],
        parse: |bytes| attempt(bytes, command::RunCommand::run),
    },
];

impl Argument {
    /// Returns the argument as an error message shows it.
    fn form(&self) -> String {
        let mark = if self.required { "" } else { "?" };
        format!("\"{}\"{mark}: {}", self.name, self.kind)
    }

    /// Returns its entry in the JSON Schema of a tool.
    fn property(&self) -> String {
        let description = match self.description {
            "" => String::new(),
            text => format!(",\"description\":\"{text}\""),
        };
        format!("\"{}\":{{\"type\":\"{}\"{description}}}", self.name, self.kind)
    }
}

impl Tool {
    /// Returns the tool with this name or alias.
    pub fn named(name: &str) -> Option<&'static Tool> {
        TOOLS.iter().find(|tool| tool.name == name || tool.alias == name)
    }

    /// Parses the arguments of a call: JSON with the fields of this tool. The error says what is
    /// wrong, and what the fields are.
    pub fn parse(&self, arguments: &str) -> Result<Operation, String> {
        let refused = |problem: String| {
            let forms: Vec<String> = self.arguments.iter().map(Argument::form).collect();
            format!("{} needs {{{}}}; {problem}", self.name, forms.join(", "))
        };
        let bytes = arguments.as_bytes();
        let attempt = (self.parse)(bytes).map_err(|problem| refused(problem.to_string()))?;
        // A field that the tool does not have is not ignored: the model relies on it.
        let given = json::parse(bytes).map_or(Vec::new(), |Members(given)| given);
        let is_known = |name: &str| self.arguments.iter().any(|argument| argument.name == name);
        match given.iter().find(|(name, _)| !is_known(name)) {
            Some((name, _)) => Err(refused(format!("there is no {:?}", truncated(name)))),
            None => {
                let subjects = json::parse(bytes).unwrap_or_default();
                Ok(Operation { effect: self.effect, subjects, attempt })
            }
        }
    }

    /// Returns its entry in the `tools` of a request.
    fn definition(&self) -> String {
        let properties: Vec<String> = self.arguments.iter().map(Argument::property).collect();
        let required = self.arguments.iter().filter(|argument| argument.required);
        let required: Vec<String> =
            required.map(|argument| format!("{:?}", argument.name)).collect();
        format!(
            r#"{{"type":"function","function":{{"name":"{}","description":"{}","parameters":{{"type":"object","properties":{{{}}},"required":[{}],"additionalProperties":false}}}}}}"#,
            self.name,
            self.description,
            properties.join(","),
            required.join(",")
        )
    }
}

/// Returns the `tools` of a request to a model: a JSON list.
pub fn definitions(tools: &[&Tool]) -> String {
    let all: Vec<String> = tools.iter().map(|tool| tool.definition()).collect();
    format!("[{}]", all.join(","))
}

/// Returns at most [`limits::MODEL_WORD_CHARS_MAX`] characters of a name that a model made up.
pub fn truncated(name: &str) -> &str {
    prefix(name, limits::MODEL_WORD_CHARS_MAX)
}

/// Returns a call for people to read, parsed in the same way as for running it: the command, the
/// pattern or the path, and the lines that it would remove from a file, after `-`, and add to it,
/// after `+`. `None` if it would not run.
pub fn preview(name: &str, arguments: &str) -> Option<(String, Vec<String>)> {
    let Subjects { path, pattern, command, content, old_text, new_text } =
        Tool::named(name)?.parse(arguments).ok()?.subjects;
    let mut change = diff_lines(&old_text.unwrap_or_default(), '-');
    if content.as_deref() == Some("") {
        change.push("+ (nothing: the file will be empty)".to_owned());
    }
    change.extend(diff_lines(&content.or(new_text).unwrap_or_default(), '+'));
    Some((command.or(pattern).or(path).unwrap_or_else(|| ".".to_owned()), change))
}

/// Returns the text of the file that a call would change, and what it would become. `None` if there
/// is no such file, or the call would fail.
pub fn proposal(workspace: &str, name: &str, arguments: &str) -> Option<(String, String)> {
    let subjects = Tool::named(name)?.parse(arguments).ok()?.subjects;
    let Subjects { path, content, old_text, new_text, .. } = subjects;
    if content.is_none() && old_text.is_none() {
        return None;
    }
    let mut old = Vec::new();
    let file = Workspace::open(workspace, &[]).ok()?.file(&path?).ok()?;
    file.take(limits::EDIT_BYTES_MAX + 1).read_to_end(&mut old).ok()?;
    let is_whole = old.len() as u64 <= limits::EDIT_BYTES_MAX;
    let old = String::from_utf8(old).ok().filter(|text| is_whole && !text.contains('\0'))?;
    let new = match (content, old_text, new_text) {
        (Some(content), _, _) => file_text::rewrite(&old, &content),
        (None, Some(from), Some(to)) if !from.is_empty() && !file_text::is_same(&from, &to) => {
            file_text::edit(&old, &from, &to).ok()?.0
        }
        _ => return None,
    };
    Some((old, new))
}

/// Returns the command that a call would run.
pub fn command(name: &str, arguments: &str) -> Option<String> {
    let tool = Tool::named(name).filter(|tool| tool.effect == Effect::Runs)?;
    tool.parse(arguments).ok()?.subjects.command
}

/// Returns all lines of a text after a mark, as `diff` prints them.
fn diff_lines(text: &str, mark: char) -> Vec<String> {
    let each = text.split_inclusive('\n').map(|line| line.strip_suffix('\n').unwrap_or(line));
    let mut lines: Vec<String> = each.map(|line| format!("{mark} {line}")).collect();
    if !text.is_empty() && !text.ends_with('\n') {
        lines.push("\\ no line end".to_owned());
    }
    lines
}

/// An operation that carries out a call. The text is its result, or the reason why there is none.
type Attempt = Box<dyn Fn(&ToolContext<'_>) -> Result<String, String> + Send + Sync>;

/// Parses the arguments for `run`.
fn attempt<T: DeJson + Send + Sync + 'static>(
    arguments: &[u8],
    run: fn(&T, &ToolContext<'_>) -> Result<String, String>,
) -> Result<Attempt, json::DecodeError> {
    let arguments = json::parse(arguments)?;
    Ok(Box::new(move |context| run(&arguments, context)))
}

/// What a call does.
pub struct Operation {
    effect: Effect,
    pub subjects: Subjects,
    pub(super) attempt: Attempt,
}

/// The texts that a call is about, if it has them.
#[derive(Default, DeJson)]
pub struct Subjects {
    pub path: Option<String>,
    pattern: Option<String>,
    pub command: Option<String>,
    content: Option<String>,
    old_text: Option<String>,
    new_text: Option<String>,
}

/// The result of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// At most [`limits::RESULT_BYTES_MAX`], and a mark where more was left out.
    pub text: String,
    pub success: bool,
}

impl Outcome {
    /// Makes the outcome of a call that has no result.
    pub fn error(because: &str) -> Outcome {
        let text = clip(format!("error: {because}"), limits::RESULT_BYTES_MAX);
        Outcome { text, success: false }
    }
}

impl Operation {
    /// Runs it.
    pub fn run(&self, context: &ToolContext<'_>) -> Outcome {
        let (text, success) = match (self.attempt)(context) {
            Ok(text) => (text, true),
            // The output of a command is not a message of opta.
            Err(text) if self.effect == Effect::Runs => (text, false),
            Err(because) => return Outcome::error(&because),
        };
        Outcome { text: clip(text, limits::RESULT_BYTES_MAX), success }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::scratch::Scratch;
    use std::fs;
    use std::os::unix::fs::FileExt;

    #[test]
    fn definitions_are_json_and_names_are_found() {
        let all = definitions(&TOOLS.iter().collect::<Vec<_>>());
        json::check(&all).unwrap();
        for tool in &TOOLS {
            for name in [tool.name, tool.alias] {
                assert_eq!(Tool::named(name).unwrap().name, tool.name);
            }
            assert!(all.contains(&format!("\"name\":\"{}\"", tool.name)));
        }
        assert!(Tool::named("rm").is_none());
    }

    #[test]
    fn a_definition_names_each_argument_and_those_that_are_required() {
        let definition = definitions(&[Tool::named("search_files").unwrap()]);
        let wanted = concat!(
            r#"[{"type":"function","function":{"name":"search_files","description":"#,
            r#""Search the lines of files with a regular expression.","parameters":"#,
            r#"{"type":"object","properties":{"pattern":{"type":"string","description":"#,
            r#""regular expression"},"path":{"type":"string","description":"#,
            r#""directory or file to look in"},"glob":{"type":"string","description":"#,
            r#""only files with such names"}},"required":["pattern"],"#,
            r#""additionalProperties":false}}}]"#
        );
        assert_eq!(definition, wanted);
    }

    #[test]
    fn a_name_that_a_model_made_up_is_truncated() {
        let longest = "é".repeat(limits::MODEL_WORD_CHARS_MAX);
        assert_eq!(truncated(&longest), longest);
        assert_eq!(truncated(&format!("{longest}x")), longest);
    }

    #[test]
    fn a_preview_shows_what_would_run() {
        let plain = |subject: &str| Some((subject.to_owned(), Vec::new()));
        assert_eq!(preview("shell", r#"{"command":"make\ntest"}"#), plain("make\ntest"));
        assert_eq!(preview("search_files", r#"{"pattern":"x","path":"a"}"#), plain("x"));
        assert_eq!(preview("list_dir", "{}"), plain("."));
        let change = |name: &str, arguments: &str| preview(name, arguments).unwrap().1.join("|");
        let written = change("write_file", r#"{"path":"a","content":"one\n\ntwo\r\n"}"#);
        assert_eq!(written, "+ one|+ |+ two\r");
        let emptied = change("write_file", r#"{"path":"a","content":""}"#);
        assert_eq!(emptied, "+ (nothing: the file will be empty)");
        let edited = r#"{"path":"a","old_text":"x\n","new_text":"y\nz"}"#;
        assert_eq!(change("edit_file", edited), "- x|+ y|+ z|\\ no line end");
        let cut = r#"{"path":"a","old_text":"x\n","new_text":""}"#;
        assert_eq!(change("edit_file", cut), "- x");
        // A call with a field that the tool does not have would not run.
        let odd = r#"{"path":"Makefile","content":"x","command":"make test"}"#;
        assert_eq!(preview("write_file", odd), None);
        // The first one is named.
        let odd = odd.replace('}', r#","a":1,"b":1,"c":1}"#);
        let refused = Tool::named("write_file").unwrap().parse(&odd).err().unwrap();
        assert!(refused.ends_with("; there is no \"command\""), "{refused}");
    }

    #[test]
    fn a_proposal_is_what_the_call_makes_of_the_file() {
        let scratch = Scratch::new();
        let workspace = scratch.path().to_str().unwrap().to_owned();
        let proposed = |tool: &str, arguments: &str| proposal(&workspace, tool, arguments);
        let cases = [
            ("a\r\nb\r\n", "write_file", r#"{"path":"f","content":"1\n2\n"}"#),
            ("\u{feff}a\n", "write_file", r#"{"path":"f","content":"b\n"}"#),
            ("a\r\nb\r\n", "edit_file", r#"{"path":"f","old_text":"a\nb","new_text":"1\n2"}"#),
            ("a\n", "edit_file", r#"{"path":"f","old_text":"a","new_text":"b"}"#),
            ("aaa\n", "edit_file", r#"{"path":"f","old_text":"aa","new_text":"b"}"#),
            ("a\n", "edit_file", r#"{"path":"f","old_text":"","new_text":"b"}"#),
            ("", "edit_file", r#"{"path":"f","old_text":"","new_text":"b"}"#),
            ("a\0", "write_file", r#"{"path":"f","content":"b\n"}"#),
        ];
        for (old, tool, arguments) in cases {
            scratch.put("f", old);
            let proposed = proposed(tool, arguments);
            scratch.run("read_file", r#"{"path":"f"}"#).unwrap();
            let changed = scratch.run(tool, arguments).ok();
            let made = changed.map(|_| (old.to_owned(), scratch.read("f")));
            assert_eq!(proposed, made, "{old:?} {arguments}");
        }
        let write = r#"{"path":"f","content":"b"}"#;
        let file = fs::File::create(scratch.path().join("f")).unwrap();
        for (more, is_proposed) in [(0, true), (1, false)] {
            let spaces = vec![b' '; usize::try_from(limits::EDIT_BYTES_MAX).unwrap() + more];
            file.write_all_at(&spaces, 0).unwrap();
            assert_eq!(proposed("write_file", write).is_some(), is_proposed);
        }
    }

    #[test]
    fn errors_in_arguments_are_reported_with_their_position() {
        let refused =
            |tool: &str, text: &str| Tool::named(tool).unwrap().parse(text).err().unwrap();
        assert_eq!(
            refused("read_file", "{\"path\":\n \"no"),
            "read_file needs {\"path\": string, \"offset\"?: integer, \"limit\"?: integer, \
             \"byte_offset\"?: integer}; \
             line 2, column 2: this string has no closing quote"
        );
        let missing = refused("write_file", r#"{"path":"a"}"#);
        assert!(
            missing.ends_with("line 1, column 1: the field \"content\" is missing"),
            "{missing}"
        );
        let wrong = refused("run_command", r#"{"command":["ls"]}"#);
        assert!(wrong.ends_with("\"command\" must be a string, not a list"), "{wrong}");
        for text in ["", "[]", "null", "\"x\"", "{\"path\":null}"] {
            assert!(!refused("read_file", text).is_empty(), "{text}");
        }
        assert!(Tool::named("list_dir").unwrap().parse("{}").is_ok());
    }
}
