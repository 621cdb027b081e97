//! Completion scripts for bash, zsh and fish, made from the table of commands. Pure.

use crate::cli::{OptionSpec, OptionValue, SUBCOMMANDS, Shell, Subcommand, next_words};
use crate::config::KEYS;

/// Returns the script for a shell.
pub fn script(shell: Shell) -> String {
    match shell {
        Shell::Bash => bash(),
        Shell::Zsh => zsh(),
        Shell::Fish => fish(),
    }
}

/// The words of a command line so far, and what may follow.
struct Position {
    words: String,
    /// Whether the words are a whole command, which other arguments may follow first.
    is_command: bool,
    candidates: Vec<Candidate>,
}

enum Candidate {
    /// A word and its description, which may be empty.
    Word(&'static str, String),
    Option(&'static OptionSpec),
    /// The sessions that there are.
    Sessions,
}

/// Returns every position, first those before a command is complete.
fn positions() -> Vec<Position> {
    let mut positions: Vec<Position> = Vec::new();
    let beginnings = |command: &'static Subcommand| {
        (0..command.words.len()).filter_map(|length| command.words.get(..length))
    };
    for typed in SUBCOMMANDS.iter().flat_map(beginnings) {
        let words = typed.join(" ");
        if positions.iter().any(|position| position.words == words) {
            continue;
        }
        let candidates = next_words(typed).into_iter().map(|word| {
            let path = [typed, &[word]].concat();
            let found = SUBCOMMANDS.iter().find(|known| known.words == path);
            let group = || format!("Manage the {word}");
            Candidate::Word(word, found.map_or_else(group, |found| found.summary.into()))
        });
        let candidates = candidates.collect();
        positions.push(Position { words, is_command: false, candidates });
    }
    // The first argument, before the values that may follow it.
    let takes_key = |subcommand: &&Subcommand| {
        subcommand.operand.as_ref().is_some_and(|operand| operand.name.starts_with(SETTING_KEY))
    };
    positions.extend(SUBCOMMANDS.iter().filter(takes_key).map(|subcommand| {
        let keys = KEYS.iter().map(|key| Candidate::Word(key, String::new()));
        let help = Candidate::Word("--help", "show help".to_owned());
        let options = subcommand.options.iter().map(Candidate::Option).chain([help]);
        let candidates = keys.chain(options).collect();
        Position { words: subcommand.words.join(" "), is_command: false, candidates }
    }));
    positions.extend(SUBCOMMANDS.iter().map(|subcommand| {
        let choices = subcommand.operand.as_ref().map_or(&[][..], |operand| operand.choices);
        let choices = choices.iter().map(|word| Candidate::Word(word, String::new()));
        let takes_session =
            subcommand.operand.as_ref().is_some_and(|operand| operand.name == SESSION_ID);
        let sessions = takes_session.then_some(Candidate::Sessions);
        let options = subcommand.options.iter().map(Candidate::Option);
        let candidates = sessions.into_iter().chain(choices).chain(options).collect();
        Position { words: subcommand.words.join(" "), is_command: true, candidates }
    }));
    positions
}

/// The name of an operand or a value that is the id of a session.
const SESSION_ID: &str = "ID";

/// What the name of an operand begins with that begins with the name of a setting.
const SETTING_KEY: &str = "KEY";

/// The options that require a value.
#[derive(Default)]
struct ValuedOptions {
    /// Those with accepted values, each with its values.
    closed: Vec<(String, String)>,
    /// Those that take the id of a session.
    sessions: Vec<String>,
    /// The others.
    open: Vec<String>,
}

fn valued_options() -> ValuedOptions {
    let mut found = ValuedOptions::default();
    for option in SUBCOMMANDS.iter().flat_map(|subcommand| subcommand.options) {
        let long = format!("--{}", option.long);
        let OptionValue::Required(value) = option.value else { continue };
        if found.open.contains(&long) || found.sessions.contains(&long) {
            continue;
        }
        if !option.choices.is_empty() {
            found.closed.push((long, option.choices.join(" ")));
            continue;
        }
        let list = if value == SESSION_ID { &mut found.sessions } else { &mut found.open };
        list.push(long);
        list.extend(option.short.map(|short| format!("-{short}")));
    }
    found
}

fn bash() -> String {
    let ValuedOptions { closed, sessions, open } = valued_options();
    let closed = closed.into_iter();
    let values = closed.map(|(name, values)| format!("        {name}) candidates='{values}' ;;"));
    let values = values.chain([
        format!("        {}) candidates=$(_opta_sessions) ;;", sessions.join(" | ")),
        format!("        {}) return ;;", open.join(" | ")),
    ]);
    let commands = positions().into_iter().map(|Position { words, is_command, candidates }| {
        let names: Vec<String> = candidates.iter().map(bash_name).collect();
        let (rest, general) = match words.as_str() {
            "" => (String::new(), " help --help --version"),
            _ if is_command => (format!(" | '{words} '*"), " --help"),
            _ => (String::new(), ""),
        };
        let names = names.join(" ");
        format!("                '{words}'{rest}) candidates=\"{names}{general}\" ;;")
    });
    filled(include_str!("completions/opta.bash"), values, commands)
}

fn bash_name(candidate: &Candidate) -> String {
    match candidate {
        Candidate::Word(word, _) => (*word).to_owned(),
        Candidate::Option(OptionSpec {
            long, value: OptionValue::Optional(_), choices, ..
        }) => match choices {
            [] => format!("--{long}="),
            choices => format!("--{long} --{long}={}", choices.join(&format!(" --{long}="))),
        },
        Candidate::Option(option) => format!("--{}", option.long),
        Candidate::Sessions => "$(_opta_sessions)".to_owned(),
    }
}

fn zsh() -> String {
    let ValuedOptions { closed, sessions, open } = valued_options();
    let closed = closed.into_iter();
    let values = closed.map(|(name, values)| format!("    {name}) compadd {values}; return ;;"));
    let values = values.chain([
        format!("    {}) _opta_sessions; return ;;", sessions.join("|")),
        format!("    {}) return ;;", open.join("|")),
    ]);
    let commands = positions().into_iter().map(|Position { words, is_command, candidates }| {
        let is_list = |candidate: &Candidate| matches!(candidate, Candidate::Sessions);
        let takes_session = candidates.iter().any(is_list);
        let sessions = if takes_session { "\n      _opta_sessions" } else { "" };
        let mut names: Vec<String> = candidates.iter().filter_map(zsh_name).collect();
        let (rest, tag) = match is_command {
            true => (format!("|'{words} '*"), "option"),
            false => (String::new(), "command"),
        };
        if is_command {
            names.push("'--help:show help'".to_owned());
        }
        let names = names.join("\n        ");
        format!("    '{words}'{rest}){sessions}\n      candidates=(\n        {names}\n      )\n      _describe {tag} candidates ;;")
    });
    filled(include_str!("completions/opta.zsh"), values, commands)
}

/// Returns an element of the array of candidates; sessions are no part of it.
fn zsh_name(candidate: &Candidate) -> Option<String> {
    Some(match candidate {
        Candidate::Word(word, help) if help.is_empty() => format!("'{word}'"),
        Candidate::Word(word, help) => format!("'{word}:{}'", single_quoted(help)),
        Candidate::Option(OptionSpec { long, help, .. }) => {
            format!("'--{long}:{}'", single_quoted(help).replace(':', "\\:"))
        }
        Candidate::Sessions => return None,
    })
}

fn fish() -> String {
    let lines = positions().into_iter().flat_map(|Position { words, is_command, candidates }| {
        let function = if is_command { "__opta_in" } else { "__opta_at" };
        let condition = format!("{function} {words}").trim_end().to_owned();
        let names = candidates.iter().map(fish_name);
        let lines = names.map(|name| format!("complete -c opta -n '{condition}' {name}"));
        lines.collect::<Vec<_>>()
    });
    filled(include_str!("completions/opta.fish"), std::iter::empty(), lines)
}

fn fish_name(candidate: &Candidate) -> String {
    match candidate {
        Candidate::Word(word, help) if help.is_empty() => format!("-a {word}"),
        Candidate::Word(word, help) => format!("-a {word} -d '{}'", single_quoted(help)),
        Candidate::Option(option) => {
            let short = option.short.map_or(String::new(), |short| format!("-s {short} "));
            let value = match option.value {
                OptionValue::Required(SESSION_ID) => " -x -a '(__opta_sessions)'".to_owned(),
                OptionValue::Required(_) if option.choices.is_empty() => " -x".to_owned(),
                OptionValue::Required(_) => format!(" -x -a '{}'", option.choices.join(" ")),
                OptionValue::None | OptionValue::Optional(_) => String::new(),
            };
            let help = single_quoted(option.help);
            format!("{short}-l {}{value} -d '{help}'", option.long)
        }
        Candidate::Sessions => "-k -a '(__opta_sessions)'".to_owned(),
    }
}

/// Fills the lines into a template.
fn filled(
    template: &str,
    values: impl Iterator<Item = String>,
    commands: impl Iterator<Item = String>,
) -> String {
    let [values, commands] = [values.collect::<Vec<_>>(), commands.collect()];
    template.replace("@values@", &values.join("\n")).replace("@commands@", &commands.join("\n"))
}

/// Escapes the inside of a string in single quotes, for all three shells.
fn single_quoted(text: &str) -> String {
    text.replace('\'', "'\\''")
}
