//! From the arguments to what was given to a command of the table.

use std::ffi::OsString;
use std::time::Duration;

use lexopt::{Arg, Parser};

use crate::error::{Error, one_line};
use crate::limits;

use super::help::{help, help_of, usage};
use super::mistake::{general_usage, misuse, unfinished, unknown_option, unknown_word};
use super::table::{Need, Operand, VERBS, Value, Verb, following};
use super::{Command, Form};

/// Arguments, without the program's name, to what is to be done and how to answer.
///
/// # Errors
/// [`Error::Usage`] names the argument, says what would be right and suggests what was meant.
pub fn parse(arguments: Vec<OsString>) -> Result<(Command, Form), Error> {
    let mut parser = Parser::from_args(arguments);
    let mut words: Vec<String> = Vec::new();
    loop {
        if let Some(verb) = VERBS.iter().find(|verb| verb.words == words) {
            return parse_rest(verb, &mut parser);
        }
        let argument = parser.next().map_err(|error| misuse(error.to_string(), general_usage()))?;
        match argument {
            None => return Err(unfinished(&words)),
            Some(Arg::Long("help") | Arg::Short('h')) => return help(&words).map(print),
            Some(Arg::Long("version") | Arg::Short('V')) => {
                return Ok((Command::Version, Form::Text));
            }
            Some(Arg::Value(word)) if words.is_empty() && word == "help" => {
                return help(&rest_of_words(&mut parser)?).map(print);
            }
            Some(Arg::Value(word)) => {
                let word = in_utf8(&word, "a command", general_usage())?;
                if !following(&words).contains(&word.as_str()) {
                    return Err(unknown_word(&words, &word));
                }
                words.push(word);
            }
            Some(option) => {
                let known = ["--help", "--version"].map(String::from);
                return Err(unknown_option(&shown(&option), &known, general_usage()));
            }
        }
    }
}

/// Whether errors are to be reported as JSON, for a command line that cannot be parsed.
pub fn form_wanted(arguments: &[OsString]) -> Form {
    let options = arguments.iter().take_while(|argument| *argument != "--");
    if options.into_iter().any(|argument| argument == "--json") { Form::Json } else { Form::Text }
}

/// Help is for people, even beside `--json`.
fn print(text: String) -> (Command, Form) {
    (Command::Print(text), Form::Text)
}

fn parse_rest(verb: &'static Verb, parser: &mut Parser) -> Result<(Command, Form), Error> {
    let mut given = Given { verb, flags: Vec::new(), operand: None };
    loop {
        let argument = parser.next().map_err(|error| given.misuse(error.to_string()))?;
        let (flag, name) = match argument {
            None => break,
            Some(Arg::Long("help") | Arg::Short('h')) => {
                return Ok(print(help_of(verb)));
            }
            Some(Arg::Value(value)) => {
                given.accept_operand(&value)?;
                continue;
            }
            Some(option) => {
                let name = shown(&option);
                let flag = verb.flags.iter().find(|flag| match option {
                    Arg::Long(long) => flag.long == long,
                    Arg::Short(short) => flag.short == Some(short),
                    Arg::Value(_) => false,
                });
                (flag.ok_or_else(|| given.unknown(&name))?, name)
            }
        };
        let value = match flag.value {
            // A value that is not wanted is refused by the next call of `next`.
            Value::None => None,
            Value::Required(what) => Some(parser.value().map_err(|_missing| {
                given.misuse(format!("{name} needs a value: {name} {what}"))
            })?),
            Value::Optional(_) => parser.optional_value(),
        };
        if given.has(flag.long) {
            return Err(given.misuse(format!("--{} was given twice", flag.long)));
        }
        given.flags.push((flag.long, value));
    }
    let form = if given.has("json") { Form::Json } else { Form::Text };
    Ok(((verb.build)(&given)?, form))
}

/// What was typed after the words of a command.
pub struct Given {
    pub verb: &'static Verb,
    flags: Vec<(&'static str, Option<OsString>)>,
    pub operand: Option<String>,
}

impl Given {
    /// Whether an option was given.
    pub fn has(&self, long: &str) -> bool {
        self.flags.iter().any(|(name, _)| *name == long)
    }

    /// The value of an option, if it was given one.
    pub fn value(&self, long: &str) -> Option<String> {
        let value = self.flags.iter().find(|(name, _)| *name == long)?.1.as_ref()?;
        Some(value.to_string_lossy().into_owned())
    }

    /// The operand of a command that cannot do without one.
    pub fn operand(&self) -> Result<String, Error> {
        let missing = || {
            let name = self.verb.operand.as_ref().map_or("", |operand| operand.name);
            self.misuse(format!("{name} is missing"))
        };
        self.operand.clone().ok_or_else(missing)
    }

    /// The value of an option, which is a number from `min` to `max`.
    pub fn number(&self, long: &str, what: &str, min: u64, max: u64) -> Result<Option<u64>, Error> {
        let Some(text) = self.value(long) else {
            return Ok(None);
        };
        // Digits only: "+5" and " 5" are typing errors here.
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|number| plain && (min..=max).contains(number));
        let number = number
            .ok_or_else(|| self.refuse(long, &format!("{what} from {min} to {max}"), &text))?;
        Ok(Some(number))
    }

    /// A number of seconds; `default` if the option stands without a value.
    pub fn seconds(&self, long: &str, default: Duration) -> Result<Option<Duration>, Error> {
        let number = self.number(long, "a number of seconds", 0, limits::WAIT_SECONDS_MAX)?;
        Ok(number.map(Duration::from_secs).or(self.has(long).then_some(default)))
    }

    /// The refusal of a value; `takes` says which would be right.
    pub fn refuse(&self, long: &str, takes: &str, text: &str) -> Error {
        self.misuse(format!("--{long} takes {takes}, not '{}'", one_line(text)))
    }

    /// A refusal that shows how this command is called.
    pub fn misuse(&self, message: String) -> Error {
        misuse(message, usage(self.verb))
    }
}

impl Given {
    fn accept_operand(&mut self, value: &OsString) -> Result<(), Error> {
        let shown = one_line(&value.to_string_lossy());
        let Some(Operand { name, choices, need }) = &self.verb.operand else {
            return Err(self.misuse(format!("unexpected argument '{shown}'")));
        };
        let text = in_utf8(value, name, usage(self.verb))?;
        if !choices.is_empty() && !choices.contains(&text.as_str()) {
            let message = format!("{name} is one of {}, not '{shown}'", choices.join(", "));
            return Err(self.misuse(message));
        }
        match &mut self.operand {
            None => self.operand = Some(text),
            Some(words) if *need == Need::Words => {
                words.push(' ');
                words.push_str(&text);
            }
            Some(_) => {
                let message = format!("one {name} is enough: unexpected argument '{shown}'");
                return Err(self.misuse(message));
            }
        }
        Ok(())
    }

    fn unknown(&self, name: &str) -> Error {
        let known = self.verb.flags.iter().flat_map(|flag| {
            [Some(format!("--{}", flag.long)), flag.short.map(|short| format!("-{short}"))]
        });
        let known: Vec<String> = known.flatten().chain(["--help".to_owned()]).collect();
        unknown_option(name, &known, usage(self.verb))
    }
}

fn rest_of_words(parser: &mut Parser) -> Result<Vec<String>, Error> {
    let mut words = Vec::new();
    while let Some(argument) = parser.next().map_err(|e| misuse(e.to_string(), general_usage()))? {
        match argument {
            Arg::Value(word) => words.push(in_utf8(&word, "a command", general_usage())?),
            option => return Err(unknown_option(&shown(&option), &[], general_usage())),
        }
    }
    Ok(words)
}

fn in_utf8(text: &OsString, what: &str, usage: String) -> Result<String, Error> {
    let valid = text.to_str().map(str::to_owned);
    valid.ok_or_else(|| {
        let shown = one_line(&text.to_string_lossy());
        misuse(format!("{what} is plain text, not '{shown}'"), usage)
    })
}

fn shown(option: &Arg<'_>) -> String {
    match option {
        Arg::Long(long) => format!("--{}", one_line(long)),
        Arg::Short(short) => format!("-{}", one_line(&short.to_string())),
        Arg::Value(value) => one_line(&value.to_string_lossy()),
    }
}
