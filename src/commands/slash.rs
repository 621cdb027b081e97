//! The commands of a chat: lines that begin with a slash, and `!COMMAND`.

use std::path::Path;

use crate::cli::nearest;

/// A command of the chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slash {
    Clear,
    Edit,
    Exit,
    Help,
    Last,
    Model,
    New,
    Resume,
    Sessions,
    Status,
}

/// A row of the help.
struct Row {
    name: &'static str,
    argument: &'static str,
    command: Slash,
    does: &'static str,
}

const fn row(
    name: &'static str,
    argument: &'static str,
    command: Slash,
    does: &'static str,
) -> Row {
    Row { name, argument, command, does }
}

const ROWS: [Row; 10] = [
    row("help", "", Slash::Help, "show this help; also /?"),
    row("model", "[NAME]", Slash::Model, "list the models of the server, or switch to one"),
    row("new", "", Slash::New, "start a new session"),
    row("clear", "", Slash::Clear, "clear the screen"),
    row("status", "", Slash::Status, "show the model, the session and the daemon"),
    row("sessions", "", Slash::Sessions, "list the sessions"),
    row("resume", "[ID]", Slash::Resume, "resume a session, or list them"),
    row("last", "", Slash::Last, "show the whole result of the last tool call"),
    row("edit", "[TEXT]", Slash::Edit, "write the message in $VISUAL or $EDITOR"),
    row("exit", "", Slash::Exit, "exit, like Ctrl-D"),
];

/// What a line means.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning<'t> {
    Message,
    Command(Slash, &'t str),
    /// `!COMMAND`
    Shell(&'t str),
    /// What to answer.
    Mistake(String),
}

impl Meaning<'_> {
    /// Returns what a line of a script means: a command is a word alone.
    pub fn of_script(text: &str) -> Meaning<'_> {
        match text.strip_prefix('/') {
            Some(word) if is_word(word) => Meaning::of_word(word, ""),
            _ => Meaning::Message,
        }
    }

    /// Returns what a line of a user means. A path is for the model.
    pub fn of_user(text: &str) -> Meaning<'_> {
        if let Some(command) = text.strip_prefix('!') {
            return match command.trim() {
                "" => Meaning::Mistake("'!' requires a command: !COMMAND".to_owned()),
                command => Meaning::Shell(command),
            };
        }
        let Some(line) = text.strip_prefix('/').filter(|line| !line.contains('\n')) else {
            return Meaning::Message;
        };
        let (word, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if !is_word(word) && word != "?" {
            return Meaning::Message;
        }
        let command = Meaning::of_word(word, argument.trim());
        let is_path = || Path::new("/").join(word).exists();
        if matches!(command, Meaning::Mistake(_)) && is_path() { Meaning::Message } else { command }
    }

    fn of_word<'t>(word: &str, argument: &'t str) -> Meaning<'t> {
        let word = if word == "?" { "help" } else { word };
        match ROWS.iter().find(|row| row.name == word) {
            Some(row) if argument.is_empty() || !row.argument.is_empty() => {
                Meaning::Command(row.command, argument)
            }
            Some(row) => Meaning::Mistake(format!("/{} takes no argument", row.name)),
            None => {
                let known = ROWS.map(|row| row.name.to_owned());
                let near = nearest(word, &known).map(|name| format!("did you mean '/{name}'?"));
                let hint = near.unwrap_or_else(|| "see /help".to_owned());
                Meaning::Mistake(format!("unknown command '/{word}'; {hint}"))
            }
        }
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase())
}

/// Returns the names of the commands, each after its slash.
pub fn names() -> impl Iterator<Item = String> {
    ROWS.iter().map(|row| format!("/{}", row.name))
}

/// Returns the help; `at_prompt` for a user who edits lines.
pub fn help(at_prompt: bool) -> String {
    let mut text = "Each message is sent to the model. Ctrl-C cancels its turn.\n".to_owned();
    for row in &ROWS {
        let name = format!("/{} {}", row.name, row.argument);
        text += &format!("{:<15} {}\n", name.trim_end(), row.does);
    }
    if at_prompt {
        text += "!COMMAND        run a command in the shell, outside the conversation\n\
                 Several lines: end a line with \\, enclose them in lines of \"\"\", or press Ctrl-V \
                 Ctrl-J.\n\
                 Tab completes commands, and paths after @. Up, Down and Ctrl-R recall messages.\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_command_only_if_it_cannot_be_a_path_or_a_sentence() {
        let mistake = |text: &str| matches!(Meaning::of_user(text), Meaning::Mistake(_));
        assert_eq!(Meaning::of_user("/help"), Meaning::Command(Slash::Help, ""));
        assert_eq!(Meaning::of_user("/?"), Meaning::Command(Slash::Help, ""));
        assert_eq!(Meaning::of_user("/model  a b "), Meaning::Command(Slash::Model, "a b"));
        assert_eq!(Meaning::of_user("!ls -l"), Meaning::Shell("ls -l"));
        for text in
            ["/etc/hosts", "/tmp", "/tmp is full", "hello", "/", "/help\nme", "/Help", "a/b"]
        {
            assert_eq!(Meaning::of_user(text), Meaning::Message, "{text}");
        }
        assert!(mistake("/exit now") && mistake("/nonsense") && mistake("!"));
        assert_eq!(
            Meaning::of_user("/sesions"),
            Meaning::Mistake("unknown command '/sesions'; did you mean '/sessions'?".into())
        );
        for text in ["/model a", "!ls", "/?", "/tmp/x"] {
            assert_eq!(Meaning::of_script(text), Meaning::Message, "{text}");
        }
        assert_eq!(Meaning::of_script("/exit"), Meaning::Command(Slash::Exit, ""));
    }
}
