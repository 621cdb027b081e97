//! The help, made from the table.

use crate::error::Error;

use super::mistake::unknown_word;
use super::table::{Flag, Need, Operand, VERBS, Value, Verb};

/// The help for the command that `words` name, or for the group of commands that begin so.
///
/// # Errors
/// [`Error::Usage`] if there is no such command.
pub fn help(words: &[String]) -> Result<String, Error> {
    if let Some(verb) = VERBS.iter().find(|verb| verb.words == words) {
        return Ok(help_of(verb));
    }
    let begins = |verb: &&Verb| verb.words.iter().zip(words).all(|(word, typed)| word == typed);
    let verbs: Vec<&Verb> = VERBS.iter().filter(begins).collect();
    if verbs.is_empty() || verbs.iter().any(|verb| verb.words.len() < words.len()) {
        let (last, before) = words.split_last().map_or(("", words), |(l, b)| (l.as_str(), b));
        return Err(unknown_word(before, last));
    }
    let mut text = String::from("Usage: opta COMMAND [OPTION]...\n\n");
    text.push_str("Keeps AI sessions in a small daemon of your own.\n\nCommands:\n");
    for verb in verbs {
        line(&mut text, &(verb.words.join(" ") + &operand_of(verb)), verb.summary);
    }
    text.push_str("\nOptions:\n");
    line(&mut text, "-h, --help", "show help, also for each command");
    line(&mut text, "-V, --version", "show the versions of opta and of its protocol");
    text.push_str("\nManual: man opta, man opta-do, man opta-chat, man opta-doctor, man opta-sessions, man opta-daemon\n");
    Ok(text)
}

/// The help for one command.
pub fn help_of(verb: &Verb) -> String {
    let mut text = format!("{}\n\n{}\n\nOptions:\n", usage(verb), verb.about);
    for flag in verb.flags {
        line(&mut text, &spelling(flag), flag.help);
    }
    line(&mut text, "-h, --help", "show this help");
    text
}

/// One line that shows how a command is called.
pub fn usage(verb: &Verb) -> String {
    let mut text = format!("Usage: opta {}", verb.words.join(" "));
    for flag in verb.flags {
        let spelled = match flag.value {
            Value::None => format!(" [--{}]", flag.long),
            Value::Required(what) => format!(" [--{} {what}]", flag.long),
            Value::Optional(what) => format!(" [--{}[={what}]]", flag.long),
        };
        text.push_str(&spelled);
    }
    text + &operand_of(verb)
}

/// The operand as the help writes it behind the rest: ` ID` or ` [ID]`.
fn operand_of(verb: &Verb) -> String {
    match &verb.operand {
        None => String::new(),
        Some(Operand { name, need: Need::Required, .. }) => format!(" {name}"),
        Some(Operand { name, need: Need::Optional, .. }) => format!(" [{name}]"),
        Some(Operand { name, need: Need::Words, .. }) => format!(" {name}..."),
    }
}

/// An option as the help writes it: `-n, --lines N`.
pub fn spelling(flag: &Flag) -> String {
    let short = flag.short.map_or(String::new(), |short| format!("-{short}, "));
    match flag.value {
        Value::None => format!("{short}--{}", flag.long),
        Value::Required(what) => format!("{short}--{} {what}", flag.long),
        Value::Optional(what) => format!("{short}--{}[={what}]", flag.long),
    }
}

fn line(text: &mut String, name: &str, says: &str) {
    text.push_str(&format!("  {name:<20}  {says}\n"));
}
