//! The permissions of tools in `config.json`: a rule for a tool, or the commands that it may run.
//! Pure.

use std::collections::HashMap;

use nanoserde::DeJson;

use crate::json::{self, Lenient};

/// The permission of a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    Allow,
    Ask,
    Deny,
}

/// The permissions by tool name. Names of unknown tools are possible.
#[derive(Clone, Debug, Default)]
pub struct Permissions {
    rules: HashMap<String, Rule>,
    /// The first words of the commands that are allowed.
    commands: HashMap<String, Vec<Vec<String>>>,
}

/// The names of the tool that runs commands.
pub const COMMAND_TOOL: [&str; 2] = ["run_command", "shell"];

/// A value of `permissions` that is not a rule.
#[derive(DeJson)]
struct Commands {
    allow: Option<Vec<String>>,
}

impl Permissions {
    /// Returns permissions with these rules.
    #[cfg(test)]
    pub fn of(rules: &[(&str, Rule)]) -> Permissions {
        let rules = rules.iter().map(|(name, rule)| ((*name).to_owned(), *rule)).collect();
        Permissions { rules, ..Permissions::default() }
    }

    /// Reads the value of `permissions`. The error has the key below it, and a reason.
    pub fn read(keys: HashMap<String, Lenient>) -> Result<Permissions, (String, String)> {
        let mut permissions = Permissions::default();
        for (name, value) in keys {
            match value {
                Lenient::Text(word) => {
                    let rule = rule_named(&word).map_err(|reason| (name.clone(), reason))?;
                    permissions.rules.insert(name, rule);
                }
                // It would have no effect.
                Lenient::Other(value)
                    if value.as_str().starts_with('{')
                        && !COMMAND_TOOL.contains(&name.as_str()) =>
                {
                    let [tool, _] = COMMAND_TOOL;
                    let reason = format!("{WORDS}; only {tool} has commands that are allowed");
                    return Err((name, reason));
                }
                Lenient::Other(value) => {
                    let commands = read_commands(value.as_str());
                    let commands = commands.map_err(|reason| (name.clone(), reason))?;
                    permissions.commands.insert(name, commands);
                }
            }
        }
        Ok(permissions)
    }

    /// Returns the names of the tools.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.rules.keys().chain(self.commands.keys())
    }

    /// Returns the rule for a tool of this name.
    pub fn rule(&self, name: &str) -> Option<Rule> {
        self.rules.get(name).copied()
    }

    /// Returns whether a shell command is allowed for a tool of this name: it begins with the words
    /// of an allowed one, and nothing in it begins another command or opens a file.
    pub fn allow_command(&self, name: &str, command: &str) -> bool {
        let allowed = self.commands.get(name);
        allowed.is_some_and(|allowed| allowed.iter().any(|first| begins_with(command, first)))
    }
}

/// Returns whether a shell command begins with these words, and nothing in it begins another
/// command or opens a file.
pub fn begins_with(command: &str, first: &[String]) -> bool {
    let mut words = command.split([' ', '\t']).filter(|word| !word.is_empty());
    is_one_command(command) && first.iter().all(|word| words.next() == Some(word))
}

/// Returns the first two words of a shell command, for [`begins_with`]; `None` if that could never
/// be true, or the words have a meaning for the shell.
pub fn first_words(command: &str) -> Option<Vec<String>> {
    let words = command.split([' ', '\t']).filter(|word| !word.is_empty()).take(2);
    let words: Vec<String> = words.map(str::to_owned).collect();
    let is_plain =
        |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '+' | '@' | ',');
    let plain = words.iter().all(|word| word.chars().all(is_plain));
    (is_one_command(command) && plain && !words.is_empty()).then_some(words)
}

const WORDS: &str = "a permission is allow, ask or deny";

fn rule_named(word: &str) -> Result<Rule, String> {
    match word {
        "allow" => Ok(Rule::Allow),
        "ask" => Ok(Rule::Ask),
        "deny" => Ok(Rule::Deny),
        _ => Err(format!("{WORDS}, not '{}'", word.escape_debug())),
    }
}

fn read_commands(value: &str) -> Result<Vec<Vec<String>>, String> {
    let form = format!(
        "{WORDS}, or has the commands that are allowed, such as {{\"allow\":[\"git status\"]}}"
    );
    let keys: HashMap<String, json::Raw> =
        json::parse(value.as_bytes()).map_err(|_other| form.clone())?;
    // A key that had no effect could be one that the user relies on.
    if let Some(other) = keys.keys().find(|key| *key != "allow") {
        return Err(format!("{form}; it has no '{}'", other.escape_debug()));
    }
    let commands: Commands = json::parse(value.as_bytes()).map_err(|_other| form)?;
    let words = |command: String| {
        let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        if !words.is_empty() && is_one_command(&command) && !command.contains(['\'', '"', '\\']) {
            return Ok(words);
        }
        Err(format!("'{}' is not the beginning of one plain command", command.escape_debug()))
    };
    commands.allow.unwrap_or_default().into_iter().map(words).collect()
}

/// Returns whether a shell would run a text as one command, and open no file for it. Quotes do not
/// count: what they contain may be harmless, but is asked about.
fn is_one_command(command: &str) -> bool {
    !command.contains([';', '|', '&', '`', '<', '>', '\n', '\r', '\0']) && !command.contains("$(")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Permissions, (String, String)> {
        Permissions::read(json::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn only_plain_words_of_one_command_stand_for_others() {
        for (command, words) in [
            ("cargo test --all", Some("cargo test")),
            (" ls\t-la x", Some("ls -la")),
            ("make", Some("make")),
            ("cargo test; rm x", None),
            ("cargo $X", None),
            ("'a b' c", None),
            ("X=1 make", None),
            ("cargo test\nrm x", None),
            ("", None),
        ] {
            let found = first_words(command).map(|words| words.join(" "));
            assert_eq!(found.as_deref(), words, "{command:?}");
            assert!(first_words(command).is_none_or(|words| begins_with(command, &words)));
        }
        let words = first_words("cargo test").unwrap();
        for other in ["cargo", "cargo testx", "cargo test && ls", "cargo test >x", "xcargo test"] {
            assert!(!begins_with(other, &words), "{other}");
        }
    }

    #[test]
    fn a_command_is_allowed_by_its_first_words() {
        let text = r#"{"run_command":{"allow":["cargo test","git  status"]},"edit_file":"deny"}"#;
        let permissions = read(text).unwrap();
        for command in
            ["cargo test", "cargo  test --all", " git status\t-s", "cargo test $HOME 'a b'"]
        {
            assert!(permissions.allow_command("run_command", command), "{command}");
            assert!(!permissions.allow_command("shell", command), "{command}");
        }
        for command in [
            "",
            "cargo",
            "cargo tests",
            "cargo build",
            "cargo\u{a0}test",
            "'cargo' test",
            "X=1 cargo test",
            "cargo test; rm a",
            "cargo test|sh",
            "cargo test && rm a",
            "cargo test & rm a",
            "cargo test $(rm a)",
            "cargo test \"$(rm a)\"",
            "cargo test `rm a`",
            "cargo test > a",
            "cargo test < a",
            "cargo test\nrm a",
            "cargo test\r\nrm a",
            "cargo test ';'",
        ] {
            assert!(!permissions.allow_command("run_command", command), "{command:?}");
        }
        assert_eq!(permissions.rule("edit_file"), Some(Rule::Deny));
        assert_eq!(permissions.rule("run_command"), None);
        assert_eq!(permissions.names().count(), 2);
    }

    #[test]
    fn what_is_no_permission_is_refused_with_its_key() {
        for (value, reason) in [
            (r#""never""#, "not 'never'"),
            ("true", "allow, ask or deny"),
            (r#"["cargo test"]"#, "allow, ask or deny"),
            (r#"{"deny":["rm"]}"#, "it has no 'deny'"),
            (r#"{"allow":"cargo"}"#, "allow, ask or deny"),
            (r#"{"allow":[""]}"#, "'' is not the beginning of one plain command"),
            (r#"{"allow":["a; b"]}"#, "'a; b' is not"),
            (r#"{"allow":["a 'b c'"]}"#, "is not the beginning"),
        ] {
            let (key, found) = read(&format!(r#"{{"shell":{value}}}"#)).unwrap_err();
            assert!(key == "shell" && found.contains(reason), "{value}: {found}");
        }
        assert!(read(r#"{"shell":{"allow":[]}}"#).is_ok());
        for tool in ["edit_file", "unknown"] {
            let (key, found) = read(&format!(r#"{{"{tool}":{{"allow":["cargo"]}}}}"#)).unwrap_err();
            assert_eq!(key, tool);
            assert!(found.ends_with("only run_command has commands that are allowed"), "{found}");
        }
    }
}
