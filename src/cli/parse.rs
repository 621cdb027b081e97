//! From the arguments to a [`Command`], to the help, or to a usage error that suggests what was
//! meant.

use std::ffi::OsString;

use lexopt::{Arg, Parser};

use crate::error::Error;
use crate::limits;
use crate::text::wrapped;

use super::args::{Arity, OptionSpec, OptionValue, ParsedArgs, Subcommand, utf8};
use super::table::{SUBCOMMANDS, beginning_with, next_words};
use super::{Command, OutputMode};

/// The pages of the manual.
const PAGES: &str = "man opta, man opta-do, man opta-chat, man opta-models, man opta-config, man opta-doctor, \
     man opta-web, man opta-sessions, man opta-daemon";

/// Parses the arguments, without the program's name.
///
/// # Errors
/// `Kind::Usage`: the message names the argument, describes valid ones and suggests what was meant.
pub fn parse(arguments: Vec<OsString>) -> Result<(Command, OutputMode), Error> {
    let mut usage_line =
        "Usage: opta COMMAND [OPTION]...  (opta --help lists the commands)".to_owned();
    parse_words(&mut Parser::from_args(arguments), &mut usage_line)
        .map_err(|message| Error::usage(message, usage_line))
}

/// Parses the words of a command and its arguments; sets `usage_line` to the command's.
fn parse_words(
    parser: &mut Parser,
    usage_line: &mut String,
) -> Result<(Command, OutputMode), String> {
    let mut words: Vec<&str> = Vec::new();
    loop {
        if let Some(subcommand) = SUBCOMMANDS.iter().find(|known| known.words == words) {
            *usage_line = usage(subcommand);
            return parse_arguments(subcommand, parser);
        }
        match parser.next().map_err(|error| error.to_string())? {
            None if words.is_empty() => return help(&words).map(print),
            None => return Err(missing_command(&words)),
            Some(Arg::Long("help") | Arg::Short('h')) => return help(&words).map(print),
            Some(Arg::Long("version") | Arg::Short('V')) => {
                return Ok((Command::Version, OutputMode::Text));
            }
            Some(Arg::Value(word)) if words.is_empty() && word == "help" => {
                let mut topic = remaining_words(parser)?;
                topic.retain(|word| word != "help");
                return help(&topic.iter().map(String::as_str).collect::<Vec<_>>()).map(print);
            }
            Some(Arg::Value(word)) => {
                let word = utf8(&word, "a command")?;
                let known = next_words(&words).into_iter().find(|known| *known == word);
                words.push(known.ok_or_else(|| unknown_command(&words, &word))?);
            }
            Some(option) => {
                let known = ["--help", "--version"].map(String::from);
                return Err(unknown_option(&typed(&option), &known));
            }
        }
    }
}

/// Returns how to report errors of a command line that cannot be parsed.
pub fn requested_mode(arguments: &[OsString]) -> OutputMode {
    let mut options = arguments.iter().take_while(|argument| *argument != "--");
    if options.any(|argument| argument == "--json") { OutputMode::Json } else { OutputMode::Text }
}

/// Returns the command that prints a help text, also with `--json`.
fn print(text: String) -> (Command, OutputMode) {
    (Command::Print(text), OutputMode::Text)
}

fn parse_arguments(
    subcommand: &'static Subcommand,
    parser: &mut Parser,
) -> Result<(Command, OutputMode), String> {
    let mut args = ParsedArgs::new(subcommand);
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        let option = match &argument {
            Arg::Long("help") | Arg::Short('h') => return Ok(print(subcommand_help(subcommand))),
            Arg::Value(value) => {
                args.add_operand(value)?;
                continue;
            }
            Arg::Long(long) => subcommand.options.iter().find(|option| option.long == *long),
            Arg::Short(short) => subcommand.options.iter().find(|o| o.short == Some(*short)),
        };
        let name = typed(&argument);
        let option = option.ok_or_else(|| {
            let known = subcommand.options.iter().flat_map(|option| {
                let short = option.short.map(|short| format!("-{short}"));
                [format!("--{}", option.long)].into_iter().chain(short)
            });
            let known: Vec<String> = known.chain(["--help".to_owned()]).collect();
            unknown_option(&name, &known)
        })?;
        let value = match option.value {
            // A value that the option does not take is an error of the next `Parser::next`.
            OptionValue::None => None,
            OptionValue::Required(what) => {
                let missing = |_| format!("{name} requires a value: {name} {what}");
                Some(parser.value().map_err(missing)?)
            }
            OptionValue::Optional(_) if matches!(argument, Arg::Short(_)) => None,
            OptionValue::Optional(_) => parser.optional_value(),
        };
        args.add_option(option.long, value)?;
    }
    let mode = if args.has("json") { OutputMode::Json } else { OutputMode::Text };
    Ok(((subcommand.build)(&args)?, mode))
}

fn remaining_words(parser: &mut Parser) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Arg::Value(word) => words.push(utf8(&word, "a command")?),
            // `opta help daemon --help`
            Arg::Long("help") | Arg::Short('h') => {}
            option => return Err(unknown_option(&typed(&option), &[])),
        }
    }
    Ok(words)
}

/// Returns an argument as it was typed.
fn typed(argument: &Arg<'_>) -> String {
    match argument {
        Arg::Long(long) => format!("--{long}"),
        Arg::Short(short) => format!("-{short}"),
        Arg::Value(value) => value.to_string_lossy().into_owned(),
    }
}

/// Returns the help for the command that `words` name, or for the commands that begin with them.
fn help(words: &[&str]) -> Result<String, String> {
    let found: Vec<&Subcommand> = beginning_with(words).collect();
    match *found {
        [only] if only.words.len() == words.len() => return Ok(subcommand_help(only)),
        [] => {
            let (last, before) = words.split_last().unwrap_or((&"", words));
            return Err(unknown_command(before, last));
        }
        _ => {}
    }
    let group: String = words.iter().map(|word| format!("{word} ")).collect();
    let mut text = format!("Usage: opta {group}COMMAND [OPTION]...\n\n");
    if group.is_empty() {
        text.push_str("Keeps your AI sessions in a per-user daemon.\n\n");
    }
    text.push_str("Commands:\n");
    for subcommand in found {
        let name = subcommand.words.join(" ") + &operand(subcommand);
        push_row(&mut text, &name, subcommand.summary);
    }
    text.push_str("\nOptions:\n");
    push_row(&mut text, "-h, --help", "show help; with a command, for that command");
    push_row(&mut text, "-V, --version", "print the versions of opta and of its protocol");
    let manual = match words {
        [] => PAGES,
        [noun, ..] => &format!("man opta-{noun}"),
    };
    text.push('\n');
    push_wrapped(&mut text, "Manual: ", manual.split_inclusive(", ").map(str::trim_end), 8);
    Ok(text)
}

fn subcommand_help(subcommand: &Subcommand) -> String {
    let mut text = String::new();
    let usage = usage(subcommand);
    // Not within an option in brackets.
    let mut is_inside = false;
    let parts = usage.split(|character| {
        is_inside = (is_inside || character == '[') && character != ']';
        character == ' ' && !is_inside
    });
    push_wrapped(&mut text, "", parts, 12);
    text.push('\n');
    for paragraph in subcommand.about.lines() {
        push_wrapped(&mut text, "", paragraph.split(' '), 0);
    }
    text.push_str("\nOptions:\n");
    for option in subcommand.options {
        push_row(&mut text, &spelling(option), option.help);
    }
    push_row(&mut text, "-h, --help", "show this help");
    text
}

fn push_row(text: &mut String, name: &str, description: &str) {
    push_wrapped(text, &format!("  {name:<20}  "), description.split(' '), 24);
}

/// Adds `start` and the parts after it, in lines that fit on a terminal.
fn push_wrapped<'t>(
    text: &mut String,
    start: &str,
    parts: impl Iterator<Item = &'t str>,
    indent: usize,
) {
    text.push_str(&wrapped(start, parts, limits::HELP_COLUMNS_MAX, indent));
    text.push('\n');
}

/// Returns the line that shows how a command is called.
fn usage(subcommand: &Subcommand) -> String {
    let options = subcommand.options.iter().map(|option| format!(" [{}]", long_form(option)));
    let options: String = options.collect();
    format!("Usage: opta {}{options}{}", subcommand.words.join(" "), operand(subcommand))
}

/// Returns the operand as the usage shows it: ` ID`, ` [ID]` or ` TASK...`.
fn operand(subcommand: &Subcommand) -> String {
    subcommand.operand.as_ref().map_or(String::new(), |operand| match operand.arity {
        Arity::One | Arity::Two => format!(" {}", operand.name),
        Arity::AtMostOne => format!(" [{}]", operand.name),
        Arity::Many => format!(" {}...", operand.name),
    })
}

/// Returns an option as the help shows it: `-n, --lines N`.
pub(super) fn spelling(option: &OptionSpec) -> String {
    let short = option.short.map_or(String::new(), |short| format!("-{short}, "));
    short + &long_form(option)
}

fn long_form(option: &OptionSpec) -> String {
    match option.value {
        OptionValue::None => format!("--{}", option.long),
        OptionValue::Required(what) => format!("--{} {what}", option.long),
        OptionValue::Optional(what) => format!("--{}[={what}]", option.long),
    }
}

fn missing_command(words: &[&str]) -> String {
    format!("'{}' requires a command: {}", words.join(" "), next_words(words).join(", "))
}

/// Words that other programs use, and our commands.
const SYNONYMS: [(&str, &str); 4] = [
    ("delete", "sessions rm"),
    ("ls", "sessions list"),
    ("remove", "sessions rm"),
    ("search", "sessions grep"),
];

/// Returns the message when no command begins with `words` followed by `word`. Suggests a command
/// that ends with this word, or begins or ends with a similar one.
fn unknown_command(words: &[&str], word: &str) -> String {
    let before: String = words.iter().map(|word| format!("{word} ")).collect();
    let ending_with = |last: &str| -> Vec<String> {
        let found = SUBCOMMANDS.iter().filter(|known| known.words.last() == Some(&last));
        found.map(|known| known.words.join(" ")).collect()
    };
    let synonym = SYNONYMS.iter().find(|(theirs, _)| *theirs == word).map(|(_, ours)| *ours);
    let mut meant = synonym.map_or_else(|| ending_with(word), |ours| vec![ours.to_owned()]);
    meant.sort_by_key(|command| !command.starts_with(&before));
    if !before.is_empty() && meant.first().is_some_and(|command| command.starts_with(&before)) {
        meant.truncate(1);
    }
    if meant.is_empty() {
        let known: Vec<String> = next_words(words).into_iter().map(str::to_owned).collect();
        meant.extend(nearest(word, &known).map(|next| format!("{before}{next}")));
    }
    if meant.is_empty() {
        let last = SUBCOMMANDS.iter().filter_map(|known| known.words.last());
        let last: Vec<String> = last.map(|last| (*last).to_owned()).collect();
        meant = nearest(word, &last).map(ending_with).unwrap_or_default();
    }
    let unknown = format!("unknown command '{before}{word}'");
    match meant.is_empty() {
        true => unknown,
        false => format!("{unknown}; did you mean '{}'?", meant.join("' or '")),
    }
}

/// Returns the message for an option that is not among those `known`. Suggests the one that may be
/// meant.
fn unknown_option(word: &str, known: &[String]) -> String {
    let unknown = format!("unknown option '{word}'");
    match nearest(word, known) {
        Some(meant) => format!("{unknown}; did you mean '{meant}'?"),
        None => unknown,
    }
}

/// Returns the word among `known` that `typed` is most likely a misspelling of.
pub fn nearest<'k>(typed: &str, known: &'k [String]) -> Option<&'k str> {
    if typed.len() >= 4
        && let Some(word) = known.iter().find(|word| word.starts_with(typed))
    {
        return Some(word);
    }
    let allowed = 1 + typed.chars().count() / 4;
    let by_distance = known.iter().map(|word| (edit_distance(typed, word), word));
    let (least, word) = by_distance.min_by_key(|(distance, _)| *distance)?;
    // One letter suggests nothing: every short option differs from every other by one letter.
    (least <= allowed && typed.trim_start_matches('-').chars().count() > 1).then_some(word)
}

/// Returns the number of characters to insert, delete, replace or swap with the next one (optimal
/// string alignment distance).
fn edit_distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().take(64).collect();
    let right: Vec<char> = right.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
    for (i, a) in left.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let change = at(&row, j) + usize::from(a != b);
            let mut least = change.min(at(&row, j + 1) + 1).min(at(&next, j) + 1);
            let swapped =
                i > 0 && j > 0 && left.get(i - 1) == Some(b) && right.get(j - 1) == Some(a);
            if swapped {
                least = least.min(at(&before, j - 1) + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or(0)
}
