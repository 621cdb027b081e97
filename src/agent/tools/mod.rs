//! What a model can do besides talking: seven tools, in one directory.
//!
//! What a tool says is for the model to read: `Ok` is its result, `Err` why there is none.

pub mod clip;
mod command;
mod files;
mod regex;
mod search;
mod syntax;
mod walk;
mod workspace;

use std::collections::HashMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Instant;

use crate::json::Raw;
use crate::protocol::Variable;
use crate::session::wake::Cancel;
use crate::text::{escaped, prefix};
use crate::{json, limits};

use workspace::Workspace;

/// A tool, by the name that the model knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    ReadFile,
    ListDir,
    FindFiles,
    SearchFiles,
    WriteFile,
    EditFile,
    RunCommand,
}

/// What a tool does to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Reads,
    Edits,
    Runs,
}

/// What a model is told of a tool.
struct Offer {
    description: &'static str,
    /// The properties of its arguments, a JSON Schema; kept plain, for small models and for the
    /// grammars that servers make of it.
    properties: &'static str,
    required: &'static str,
    /// The same in short, for whoever got it wrong.
    shape: &'static str,
}

impl Tool {
    pub const ALL: [Tool; 7] = [
        Tool::ReadFile,
        Tool::ListDir,
        Tool::FindFiles,
        Tool::SearchFiles,
        Tool::WriteFile,
        Tool::EditFile,
        Tool::RunCommand,
    ];

    /// The tool that has this name, or this other name.
    pub fn named(name: &str) -> Option<Tool> {
        Tool::ALL.into_iter().find(|tool| tool.name() == name || tool.alias() == name)
    }

    /// As the model knows it.
    pub fn name(self) -> &'static str {
        match self {
            Tool::ReadFile => "read_file",
            Tool::ListDir => "list_dir",
            Tool::FindFiles => "find_files",
            Tool::SearchFiles => "search_files",
            Tool::WriteFile => "write_file",
            Tool::EditFile => "edit_file",
            Tool::RunCommand => "run_command",
        }
    }

    /// As the log has it, and the settings may.
    pub fn alias(self) -> &'static str {
        match self {
            Tool::ReadFile => "file_read",
            Tool::ListDir => "file_list",
            Tool::WriteFile => "file_write",
            Tool::EditFile => "file_edit",
            Tool::RunCommand => "shell",
            Tool::FindFiles | Tool::SearchFiles => self.name(),
        }
    }

    /// What it does to the world.
    pub fn effect(self) -> Effect {
        match self {
            Tool::ReadFile | Tool::ListDir | Tool::FindFiles | Tool::SearchFiles => Effect::Reads,
            Tool::WriteFile | Tool::EditFile => Effect::Edits,
            Tool::RunCommand => Effect::Runs,
        }
    }

    fn offer(self) -> Offer {
        match self {
            Tool::ReadFile => Offer {
                description: "Read a text file. Lines come with their numbers.",
                properties: r#""path":{"type":"string"},"offset":{"type":"integer","description":"first line, from 1"},"limit":{"type":"integer","description":"number of lines"}"#,
                required: r#""path""#,
                shape: r#"{"path": string, "offset"?: integer, "limit"?: integer}"#,
            },
            Tool::ListDir => Offer {
                description: "List a directory. Without a path: the workspace.",
                properties: r#""path":{"type":"string"},"recursive":{"type":"boolean"}"#,
                required: "",
                shape: r#"{"path"?: string, "recursive"?: boolean}"#,
            },
            Tool::FindFiles => Offer {
                description: "Find files by name with a glob such as *.rs or src/**/*.ts.",
                properties: r#""pattern":{"type":"string","description":"glob"},"path":{"type":"string","description":"directory to look in"}"#,
                required: r#""pattern""#,
                shape: r#"{"pattern": string, "path"?: string}"#,
            },
            Tool::SearchFiles => Offer {
                description: "Search the lines of files with a regular expression.",
                properties: r#""pattern":{"type":"string","description":"regular expression"},"path":{"type":"string","description":"directory or file to look in"},"glob":{"type":"string","description":"only files with such names"}"#,
                required: r#""pattern""#,
                shape: r#"{"pattern": string, "path"?: string, "glob"?: string}"#,
            },
            Tool::WriteFile => Offer {
                description: "Write a whole file, new or in the place of an old one.",
                properties: r#""path":{"type":"string"},"content":{"type":"string"}"#,
                required: r#""path","content""#,
                shape: r#"{"path": string, "content": string}"#,
            },
            Tool::EditFile => Offer {
                description: "Replace a text in a file. old_text must occur exactly once.",
                properties: r#""path":{"type":"string"},"old_text":{"type":"string"},"new_text":{"type":"string"}"#,
                required: r#""path","old_text","new_text""#,
                shape: r#"{"path": string, "old_text": string, "new_text": string}"#,
            },
            Tool::RunCommand => Offer {
                description: "Run a shell command in the workspace. When it ends, its process group is killed.",
                properties: r#""command":{"type":"string"},"timeout_ms":{"type":"integer","description":"default 30000, at most 600000"}"#,
                required: r#""command""#,
                shape: r#"{"command": string, "timeout_ms"?: integer}"#,
            },
        }
    }

    /// Its entry in the `tools` of a request to a model.
    fn definition(self) -> String {
        let Offer { description, properties, required, .. } = self.offer();
        format!(
            r#"{{"type":"function","function":{{"name":"{}","description":"{description}","parameters":{{"type":"object","properties":{{{properties}}},"required":[{required}],"additionalProperties":false}}}}}}"#,
            self.name()
        )
    }

    /// What `arguments` ask of it, if they are right: JSON, and of the tool's own form. The error
    /// says where they are not, and what they should be.
    pub fn job(self, arguments: &str) -> Result<Job, String> {
        let bytes = arguments.as_bytes();
        let wrong =
            |what: &dyn Display| format!("{} needs {}; {what}", self.name(), self.offer().shape);
        let job = match self {
            Tool::ReadFile => json::parse(bytes).map(Job::Read),
            Tool::ListDir => json::parse(bytes).map(Job::List),
            Tool::FindFiles => json::parse(bytes).map(Job::Find),
            Tool::SearchFiles => json::parse(bytes).map(Job::Search),
            Tool::WriteFile => json::parse(bytes).map(Job::Write),
            Tool::EditFile => json::parse(bytes).map(Job::Edit),
            Tool::RunCommand => json::parse(bytes).map(Job::Run),
        };
        let job = job.map_err(|problem| wrong(&problem))?;
        match self.unknown(bytes) {
            Some(name) => Err(wrong(&format_args!("there is no {name:?}"))),
            None => Ok(job),
        }
    }

    /// The name of an argument that the tool does not have. Passed over, it would be something that
    /// the model has said and nobody has done.
    fn unknown(self, arguments: &[u8]) -> Option<String> {
        let given: HashMap<String, Raw> = json::parse(arguments).ok()?;
        let properties = format!("{{{}}}", self.offer().properties);
        let known: HashMap<String, Raw> = json::parse(properties.as_bytes()).ok()?;
        given.into_keys().find(|name| !known.contains_key(name)).map(|name| short(&name).to_owned())
    }
}

/// A call as people see it, read in the same way as it is run.
pub struct Shown {
    /// What it is called on: the command, the pattern or the path.
    pub subject: String,
    /// The lines that it would take out of a file, behind `-`, and put into it, behind `+`.
    pub change: Vec<String>,
}

/// What a call is to be shown as; `None` if it would not be run.
pub fn shown(name: &str, arguments: &str) -> Option<Shown> {
    let job = Tool::named(name)?.job(arguments).ok()?;
    let (old, new) = job.change().unwrap_or_default();
    let mut change = lines(old, '-');
    change.extend(lines(new, '+'));
    if matches!(job, Job::Write(_)) && new.is_empty() {
        change.push("+ (nothing: the file will be empty)".to_owned());
    }
    Some(Shown { subject: job.subject().to_owned(), change })
}

/// The lines of a text behind a mark, as `diff` has them: nothing of them is left out.
fn lines(text: &str, mark: char) -> Vec<String> {
    let whole = text.strip_suffix('\n');
    let each = whole.unwrap_or(text).split('\n');
    let mut lines: Vec<String> = each.map(|line| format!("{mark} {line}")).collect();
    match (text, whole) {
        ("", _) => lines.clear(),
        (_, None) => lines.push("\\ no line end".to_owned()),
        (_, Some(_)) => {}
    }
    lines
}

/// The `tools` of a request to a model: a JSON list.
pub fn definitions(tools: &[Tool]) -> String {
    let all: Vec<String> = tools.iter().map(|tool| tool.definition()).collect();
    format!("[{}]", all.join(","))
}

/// A call whose arguments are understood.
pub enum Job {
    Read(files::ReadLines),
    List(files::List),
    Find(search::Find),
    Search(search::Search),
    Write(files::Write),
    Edit(files::Edit),
    Run(command::Run),
}

/// What a tool has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Never longer than [`limits::RESULT_BYTES_MAX`].
    pub text: String,
    pub success: bool,
}

impl Outcome {
    /// Why there is no result.
    pub fn error(because: &str) -> Outcome {
        Outcome {
            text: clip::clip(format!("error: {because}"), limits::RESULT_BYTES_MAX),
            success: false,
        }
    }
}

impl Job {
    /// Does it.
    pub fn run(&self, scene: &Scene<'_>) -> Outcome {
        let (text, success) = match self.attempt(scene) {
            Ok(text) => (text, true),
            // What a command says speaks for itself.
            Err(text) if matches!(self, Job::Run(_)) => (text, false),
            Err(because) => return Outcome::error(&because),
        };
        Outcome { text: clip::clip(text, limits::RESULT_BYTES_MAX), success }
    }

    fn attempt(&self, scene: &Scene<'_>) -> Result<String, String> {
        match self {
            Job::Read(read) => read.run(scene),
            Job::List(list) => list.run(scene),
            Job::Find(find) => find.run(scene),
            Job::Search(search) => search.run(scene),
            Job::Write(write) => write.run(scene),
            Job::Edit(edit) => edit.run(scene),
            Job::Run(run) => run.run(scene),
        }
    }

    /// What it is called on: the command, the pattern or the path.
    pub fn subject(&self) -> &str {
        match self {
            Job::Run(run) => &run.command,
            Job::Find(find) => &find.pattern,
            Job::Search(search) => &search.pattern,
            _ => self.path().unwrap_or("."),
        }
    }

    /// What it would take out of a file and put into it.
    fn change(&self) -> Option<(&str, &str)> {
        match self {
            Job::Write(write) => Some(("", &write.content)),
            Job::Edit(edit) => Some((&edit.old_text, &edit.new_text)),
            _ => None,
        }
    }

    /// The path that it is about, if it names one.
    pub fn path(&self) -> Option<&str> {
        match self {
            Job::Read(read) => Some(&read.path),
            Job::List(list) => list.path.as_deref(),
            Job::Find(find) => find.path.as_deref(),
            Job::Search(search) => search.path.as_deref(),
            Job::Write(write) => Some(&write.path),
            Job::Edit(edit) => Some(&edit.path),
            Job::Run(_) => None,
        }
    }
}

/// Where tools run: the same for all calls of a turn.
pub struct Scene<'a> {
    workspace: Result<Workspace, String>,
    /// For commands.
    environment: &'a [Variable],
    cancel: &'a Cancel,
    deadline: Instant,
}

impl<'a> Scene<'a> {
    /// A workspace that cannot be opened is what each tool will say. Tools for files touch nothing
    /// of what is `closed`.
    pub fn new(
        workspace: Option<&str>,
        closed: &[PathBuf],
        environment: &'a [Variable],
        cancel: &'a Cancel,
        deadline: Instant,
    ) -> Scene<'a> {
        let missing = || "the session has no workspace".to_owned();
        let workspace = workspace.ok_or_else(missing);
        let workspace = workspace.and_then(|path| Workspace::open(path, closed));
        Scene { workspace, environment, cancel, deadline }
    }

    fn workspace(&self) -> Result<&Workspace, String> {
        self.workspace.as_ref().map_err(String::clone)
    }

    /// Whether there is no point in going on.
    fn is_over(&self) -> bool {
        self.cancel.is_cancelled() || Instant::now() >= self.deadline
    }

    fn ended(&self) -> String {
        let why = if self.cancel.is_cancelled() { "cancelled" } else { "the turn is out of time" };
        why.to_owned()
    }
}

/// A path on one line, whatever is in the name: results are made of lines.
fn shown_path(path: &str) -> String {
    escaped(path)
}

/// What a model has made up, as far as it is worth a place in a sentence.
pub fn short(text: &str) -> &str {
    prefix(text, limits::MODEL_WORD_CHARS_MAX)
}

#[cfg(test)]
pub mod scratch;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_is_offered_as_json_with_a_shape_that_is_its_own() {
        let all = definitions(&Tool::ALL);
        json::check(&all).unwrap();
        for tool in Tool::ALL {
            assert_eq!(Tool::named(tool.name()), Some(tool));
            assert_eq!(Tool::named(tool.alias()), Some(tool));
            assert!(all.contains(&format!("\"name\":\"{}\"", tool.name())));
            for name in tool.offer().required.split(',').filter(|name| !name.is_empty()) {
                assert!(tool.offer().properties.contains(&format!("{name}:")), "{name}");
                assert!(tool.offer().shape.contains(&format!("{name}:")), "{name}");
            }
        }
        assert_eq!(Tool::named("rm"), None);
    }

    #[test]
    fn what_a_model_has_made_up_is_quoted_in_part() {
        let most = "é".repeat(limits::MODEL_WORD_CHARS_MAX);
        assert_eq!(short(&most), most);
        assert_eq!(short(&format!("{most}x")), most);
    }

    #[test]
    fn a_call_is_shown_as_it_would_be_run() {
        let shown = |name: &str, arguments: &str| {
            shown(name, arguments).map(|Shown { subject, change }| (subject, change))
        };
        let plain = |subject: &str| Some((subject.to_owned(), Vec::new()));
        assert_eq!(shown("shell", r#"{"command":"make\ntest"}"#), plain("make\ntest"));
        assert_eq!(shown("search_files", r#"{"pattern":"x","path":"a"}"#), plain("x"));
        assert_eq!(shown("list_dir", "{}"), plain("."));
        let change = |name: &str, arguments: &str| shown(name, arguments).unwrap().1.join("|");
        let written = change("write_file", r#"{"path":"a","content":"one\n\ntwo\r\n"}"#);
        assert_eq!(written, "+ one|+ |+ two\r");
        let emptied = change("write_file", r#"{"path":"a","content":""}"#);
        assert_eq!(emptied, "+ (nothing: the file will be empty)");
        let edited = r#"{"path":"a","old_text":"x\n","new_text":"y\nz"}"#;
        assert_eq!(change("edit_file", edited), "- x|+ y|+ z|\\ no line end");
        let cut = r#"{"path":"a","old_text":"x\n","new_text":""}"#;
        assert_eq!(change("edit_file", cut), "- x");
        // Another word for what it is called on changes nothing: it would not be run.
        let odd = r#"{"path":"Makefile","content":"x","command":"make test"}"#;
        assert_eq!(shown("write_file", odd), None);
        let refused = Tool::WriteFile.job(odd).err().unwrap();
        assert!(refused.ends_with("; there is no \"command\""), "{refused}");
    }

    #[test]
    fn arguments_that_are_wrong_are_explained_with_their_place() {
        let refused = |tool: Tool, text: &str| tool.job(text).err().unwrap();
        assert_eq!(
            refused(Tool::ReadFile, "{\"path\":\n \"no"),
            "read_file needs {\"path\": string, \"offset\"?: integer, \"limit\"?: integer}; \
             line 2, column 2: this string has no closing quote"
        );
        let missing = refused(Tool::WriteFile, r#"{"path":"a"}"#);
        assert!(
            missing.ends_with("line 1, column 1: the field \"content\" is missing"),
            "{missing}"
        );
        let wrong = refused(Tool::RunCommand, r#"{"command":["ls"]}"#);
        assert!(wrong.ends_with("\"command\" must be a string, not a list"), "{wrong}");
        for text in ["", "[]", "null", "\"x\"", "{\"path\":null}"] {
            assert!(Tool::ReadFile.job(text).is_err(), "{text}");
        }
        assert!(Tool::ListDir.job("{}").is_ok());
    }
}
