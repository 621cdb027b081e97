//! The entry of a command in the table, and the arguments that were typed for it.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use crate::limits;

use super::Command;

/// A command: its words, its options, its help.
pub struct Subcommand {
    /// `["daemon", "start"]`
    pub words: &'static [&'static str],
    pub operand: Option<Operand>,
    pub options: &'static [OptionSpec],
    /// One line, in the imperative, for lists of commands.
    pub summary: &'static str,
    /// The text of the help between usage and options.
    pub about: &'static str,
    /// Creates the command from its arguments, or reports what is wrong with them.
    pub build: fn(&ParsedArgs) -> Result<Command, String>,
}

/// An option of a command.
pub struct OptionSpec {
    pub long: &'static str,
    pub short: Option<char>,
    pub value: OptionValue,
    /// The accepted values; any if there are none.
    pub choices: &'static [&'static str],
    pub help: &'static str,
}

/// The value of an option, if it takes one, and its name in the help.
pub enum OptionValue {
    None,
    Required(&'static str),
    /// Only in the form `--option=VALUE`.
    Optional(&'static str),
}

/// The argument of a command that is not an option.
pub struct Operand {
    /// Its name in the help.
    pub name: &'static str,
    pub arity: Arity,
    /// The accepted words; any text if there are none.
    pub choices: &'static [&'static str],
}

/// The number of words that an operand takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Arity {
    One,
    AtMostOne,
    /// Two, joined with a blank; the first has none.
    Two,
    /// One or more, joined with blanks.
    Many,
}

/// The arguments after the words of a command.
pub struct ParsedArgs {
    subcommand: &'static Subcommand,
    options: Vec<(&'static str, Option<OsString>)>,
    pub operand: Option<String>,
}

impl ParsedArgs {
    /// Starts with no arguments.
    pub fn new(subcommand: &'static Subcommand) -> ParsedArgs {
        ParsedArgs { subcommand, options: Vec::new(), operand: None }
    }

    /// Adds an option; fails if it was given before.
    pub fn add_option(
        &mut self,
        long: &'static str,
        value: Option<OsString>,
    ) -> Result<(), String> {
        if self.has(long) {
            return Err(format!("--{long} was given twice"));
        }
        self.options.push((long, value));
        Ok(())
    }

    /// Adds a word of the operand.
    pub fn add_operand(&mut self, value: &OsStr) -> Result<(), String> {
        let shown = value.to_string_lossy();
        let Some(Operand { name, choices, arity }) = &self.subcommand.operand else {
            return Err(format!("unexpected argument '{shown}'"));
        };
        let text = utf8(value, name)?;
        if !choices.is_empty() && !choices.contains(&text.as_str()) {
            return Err(format!("{name} must be one of {}, not '{shown}'", choices.join(", ")));
        }
        match &mut self.operand {
            None => self.operand = Some(text),
            Some(words)
                if *arity == Arity::Many || (*arity == Arity::Two && !words.contains(' ')) =>
            {
                words.push(' ');
                words.push_str(&text);
            }
            Some(_) => {
                return Err(format!("only one {name} is accepted: unexpected argument '{shown}'"));
            }
        }
        Ok(())
    }

    /// Returns whether an option was given.
    pub fn has(&self, long: &str) -> bool {
        self.options.iter().any(|(name, _)| *name == long)
    }

    /// Fails if both options were given.
    pub fn exclusive(&self, one: &str, other: &str) -> Result<(), String> {
        if self.has(one) && self.has(other) {
            return Err(format!("--{one} and --{other} cannot be used together"));
        }
        Ok(())
    }

    /// Returns the value of an option, if it was given one.
    pub fn value(&self, long: &str) -> Option<String> {
        let value = self.options.iter().find(|(name, _)| *name == long)?.1.as_ref()?;
        Some(value.to_string_lossy().into_owned())
    }

    /// Returns the operand; fails if it was not given.
    pub fn operand(&self) -> Result<String, String> {
        let name = self.subcommand.operand.as_ref().map_or("", |operand| operand.name);
        self.operand.clone().ok_or_else(|| format!("{name} is missing"))
    }

    /// Returns the value of an option after `parse`; `accepted` describes the accepted values.
    pub fn parsed<T>(
        &self,
        long: &str,
        accepted: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(text) = self.value(long) else { return Ok(None) };
        let invalid = || format!("--{long} must be {accepted}, not '{text}'");
        parse(&text).map(Some).ok_or_else(invalid)
    }

    /// Returns the value of an option that takes a number in `range`.
    pub fn number<T: FromStr + PartialOrd + Display>(
        &self,
        long: &str,
        what: &str,
        range: RangeInclusive<T>,
    ) -> Result<Option<T>, String> {
        let accepted = format!("{what} from {} to {}", range.start(), range.end());
        self.parsed(long, &accepted, |text| {
            // Digits only: "+5" and " 5" are typing errors here.
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|number| digits && range.contains(number))
        })
    }

    /// Returns a number of seconds; `default` if the option was given without a value.
    pub fn seconds(&self, long: &str, default: Duration) -> Result<Option<Duration>, String> {
        let number = self.number(long, "a number of seconds", 0..=limits::WAIT_SECONDS_MAX)?;
        Ok(number.map(Duration::from_secs).or(self.has(long).then_some(default)))
    }
}

/// Returns the text of an argument, which `what` names in the message.
pub fn utf8(text: &OsStr, what: &str) -> Result<String, String> {
    let invalid = || format!("{what} is not valid UTF-8: '{}'", text.to_string_lossy());
    text.to_str().map(str::to_owned).ok_or_else(invalid)
}
