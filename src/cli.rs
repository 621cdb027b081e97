//! What the user can type: one table, from which come the parser, the help, the completions, and
//! the test that holds the manual to it. Pure: arguments in, [`Command`] out.

use std::ffi::OsString;
use std::time::Duration;

use lexopt::{Arg, Parser};

use crate::error::{Error, one_line};
use crate::log::Level;
use crate::{clock, limits};

/// An option of a command.
pub struct Flag {
    pub long: &'static str,
    pub short: Option<char>,
    pub value: Value,
    pub help: &'static str,
}

/// Whether an option takes a value, and the value's name in the help.
pub enum Value {
    None,
    Required(&'static str),
    /// Only in the form `--option=VALUE`.
    Optional(&'static str),
}

/// The one argument of a command that is no option.
pub struct Operand {
    /// Its name in the help.
    pub name: &'static str,
    pub need: Need,
    /// The words that may stand there; any text if there are none.
    pub choices: &'static [&'static str],
}

/// Whether an operand may be left out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Required,
    Optional,
    /// Required, and of as many words as there are.
    Words,
}

/// A command: its words, its options, its help.
pub struct Verb {
    /// `["daemon", "start"]`
    pub words: &'static [&'static str],
    pub operand: Option<Operand>,
    pub flags: &'static [Flag],
    /// One line, in the imperative, for lists of commands.
    pub summary: &'static str,
    /// What the help says between usage and options.
    pub about: &'static str,
    build: fn(&Given) -> Result<Command, Error>,
}

/// How a command answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// One JSON object a line, on standard output, in every outcome.
    Json,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Print this text.
    Print(String),
    Version,
    Start(Start),
    Status(Status),
    Stop(Stop),
    Restart(Restart),
    Token,
    Install(Install),
    Uninstall(Uninstall),
    Logs(Logs),
    Sessions(Sessions),
    Do(Do),
    Chat(Chat),
    Doctor,
    Completions(Shell),
}

/// A shell that opta knows completions for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// `opta daemon start`
#[derive(Debug, PartialEq)]
pub struct Start {
    pub foreground: bool,
    pub port: Option<u16>,
}

/// `opta daemon status`
#[derive(Debug, PartialEq)]
pub struct Status {
    /// How long to wait for a daemon that runs.
    pub wait: Option<Duration>,
    pub quiet: bool,
}

/// `opta daemon stop`
#[derive(Debug, PartialEq)]
pub struct Stop {
    pub timeout: Duration,
    pub force: bool,
}

/// `opta daemon restart`
#[derive(Debug, PartialEq)]
pub struct Restart {
    pub stop: Stop,
    pub if_idle: bool,
}

/// `opta daemon install`
#[derive(Debug, PartialEq)]
pub struct Install {
    /// Start the service as well.
    pub now: bool,
    /// Replace a file that opta has not written.
    pub force: bool,
}

/// `opta daemon uninstall`
#[derive(Debug, PartialEq)]
pub struct Uninstall {
    /// Remove a file that opta has not written.
    pub force: bool,
}

/// `opta daemon logs`
#[derive(Debug, PartialEq)]
pub struct Logs {
    pub lines: usize,
    pub follow: bool,
    pub level: Level,
    /// Unix milliseconds.
    pub since: Option<i64>,
}

/// `opta do`
#[derive(Debug, PartialEq)]
pub struct Do {
    /// `-` stands for standard input.
    pub task: String,
    pub grant: Grant,
    pub show: Show,
    pub model: Model,
    /// A session to go on with.
    pub resume: Option<String>,
}

/// What a task may do without being asked about, beyond the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    Settings,
    /// Write and edit files.
    Edits,
    All,
}

/// What is shown of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// The answer, and a line for each call of a tool.
    Work,
    /// The answer alone.
    Answer,
    /// One object in the end.
    Object,
    /// The events, as they come.
    Events,
}

/// What the user says of the model.
#[derive(Debug, PartialEq)]
pub struct Model {
    pub name: Option<String>,
    pub url: Option<String>,
}

/// `opta chat`
#[derive(Debug, PartialEq)]
pub struct Chat {
    pub begin: Begin,
    pub model: Model,
    /// The one thing to be said, and no conversation.
    pub once: Option<String>,
}

/// Which session a chat is in.
#[derive(Debug, PartialEq)]
pub enum Begin {
    New,
    Resume(String),
    /// The one that was used last.
    Latest,
}

/// `opta sessions …`. An id is as it was typed: the beginning of one is enough.
#[derive(Debug, PartialEq)]
pub enum Sessions {
    List {
        limit: usize,
    },
    Show {
        id: String,
    },
    Export {
        id: String,
        format: Format,
    },
    /// All of them without an id.
    Verify {
        id: Option<String>,
    },
    Remove {
        id: String,
        /// Without asking.
        force: bool,
    },
}

/// What an exported session is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Markdown,
}

const JSON: Flag = Flag {
    long: "json",
    short: None,
    value: Value::None,
    help: "print one JSON object a line, errors included",
};
const TIMEOUT: Flag = Flag {
    long: "timeout",
    short: None,
    value: Value::Required("SECONDS"),
    help: "how long to wait for the daemon to leave (default 10, with --force 2)",
};
const FORCE: Flag = Flag {
    long: "force",
    short: None,
    value: Value::None,
    help: "kill the daemon if it has not left by then",
};

const MODEL: Flag = Flag {
    long: "model",
    short: None,
    value: Value::Required("NAME"),
    help: "the model to ask (default: as set, else the server's first)",
};
const MODEL_URL: Flag = Flag {
    long: "model-url",
    short: None,
    value: Value::Required("URL"),
    help: "the model server to ask (default: as set, else one on this machine)",
};
const RESUME: Flag = Flag {
    long: "resume",
    short: None,
    value: Value::Required("ID"),
    help: "go on with this session; the beginning of an id is enough",
};

const ID: Operand = Operand { name: "ID", need: Need::Required, choices: &[] };

/// Every command, in the order in which the help lists them.
pub const VERBS: &[Verb] = &[
    Verb {
        words: &["do"],
        operand: Some(Operand { name: "TASK", need: Need::Words, choices: &[] }),
        flags: &[
            Flag {
                long: "auto",
                short: None,
                value: Value::None,
                help: "let it write and edit files without asking",
            },
            Flag {
                long: "yolo",
                short: None,
                value: Value::None,
                help: "let it do everything without asking, commands included",
            },
            Flag {
                long: "json",
                short: None,
                value: Value::None,
                help: "print one JSON object in the end, errors included",
            },
            Flag {
                long: "events",
                short: None,
                value: Value::None,
                help: "print the events as they come, one JSON object a line",
            },
            Flag {
                long: "quiet",
                short: Some('q'),
                value: Value::None,
                help: "print the answer and errors, nothing else",
            },
            MODEL,
            MODEL_URL,
            RESUME,
        ],
        summary: "Have a task done, and print the answer",
        about: "Gives the task to the model in a session of its own. '-' reads it from standard input.",
        build: task,
    },
    Verb {
        words: &["chat"],
        operand: None,
        flags: &[
            RESUME,
            Flag {
                long: "continue",
                short: None,
                value: Value::None,
                help: "go on with the session that was used last",
            },
            MODEL,
            MODEL_URL,
            Flag {
                long: "once",
                short: None,
                value: Value::Required("TEXT"),
                help: "say this, print the answer and leave",
            },
        ],
        summary: "Talk to the model",
        about: "Each line is said to the model. Without a terminal, each line of the input is.",
        build: chat,
    },
    Verb {
        words: &["doctor"],
        operand: None,
        flags: &[Flag {
            long: "json",
            short: None,
            value: Value::None,
            help: "print one JSON object a check",
        }],
        summary: "Check that everything is in order",
        about: "Starts nothing and changes nothing. The exit status is 1 if a check fails.",
        build: |_| Ok(Command::Doctor),
    },
    Verb {
        words: &["daemon", "start"],
        operand: None,
        flags: &[
            Flag {
                long: "foreground",
                short: None,
                value: Value::None,
                help: "serve in this process; Ctrl-C stops it",
            },
            Flag {
                long: "port",
                short: None,
                value: Value::Required("N"),
                help: "listen on this port or fail; 0 takes any (default 9999, else 10000 to 10020)",
            },
            JSON,
        ],
        summary: "Start the daemon in the background",
        about: "Starts the daemon and returns when it serves. If one is running already, says so.",
        build: |given| {
            let port = given.number("port", "a port number", 0, u64::from(u16::MAX))?;
            Ok(Command::Start(Start {
                foreground: given.has("foreground"),
                port: port.and_then(|port| u16::try_from(port).ok()),
            }))
        },
    },
    Verb {
        words: &["daemon", "status"],
        operand: None,
        flags: &[
            JSON,
            Flag {
                long: "wait",
                short: None,
                value: Value::Optional("SECONDS"),
                help: "wait until the daemon is running (default 10)",
            },
            Flag { long: "quiet", short: Some('q'), value: Value::None, help: "print nothing" },
        ],
        summary: "Tell whether the daemon is running",
        about: "Changes nothing. The exit status is 0 running, 3 stopped, 1 crashed, 4 unresponsive.",
        build: |given| {
            let wait = given.seconds("wait", limits::START_MAX)?;
            Ok(Command::Status(Status { wait, quiet: given.has("quiet") }))
        },
    },
    Verb {
        words: &["daemon", "logs"],
        operand: None,
        flags: &[
            Flag {
                long: "lines",
                short: Some('n'),
                value: Value::Required("N"),
                help: "show the last N lines (default 50)",
            },
            Flag {
                long: "follow",
                short: Some('f'),
                value: Value::None,
                help: "go on with new lines as they come",
            },
            Flag {
                long: "level",
                short: None,
                value: Value::Required("LEVEL"),
                help: "only lines of debug, info, warn or error and above (default debug)",
            },
            Flag {
                long: "since",
                short: None,
                value: Value::Required("TIME"),
                help: "only lines since then: 10m, 2h, 2026-03-01, '2026-03-01 10:00'",
            },
            Flag {
                long: "json",
                short: None,
                value: Value::None,
                help: "print the lines as stored",
            },
        ],
        summary: "Show the daemon's log",
        about: "Shows the last lines of the log, oldest first, reaching back into rotated files.",
        build: logs,
    },
    Verb {
        words: &["daemon", "restart"],
        operand: None,
        flags: &[
            TIMEOUT,
            FORCE,
            Flag {
                long: "if-idle",
                short: None,
                value: Value::None,
                help: "refuse while a turn is in progress",
            },
            JSON,
        ],
        summary: "Stop the daemon and start it with a new token",
        about: "Stops the daemon, then starts it afresh; starts one that is stopped.",
        build: |given| {
            if given.has("if-idle") && given.has("force") {
                return Err(given.misuse("--if-idle and --force exclude each other".into()));
            }
            Ok(Command::Restart(Restart { stop: stop(given)?, if_idle: given.has("if-idle") }))
        },
    },
    Verb {
        words: &["daemon", "stop"],
        operand: None,
        flags: &[TIMEOUT, FORCE, JSON],
        summary: "Stop the daemon",
        about: "Sends SIGTERM and waits until the daemon has ended. Sessions stay on disk.",
        build: |given| Ok(Command::Stop(stop(given)?)),
    },
    Verb {
        words: &["daemon", "token"],
        operand: None,
        flags: &[JSON],
        summary: "Print the token of the running daemon",
        about: "For: curl -H \"Authorization: Bearer $(opta daemon token)\" …",
        build: |_| Ok(Command::Token),
    },
    Verb {
        words: &["daemon", "install"],
        operand: None,
        flags: &[
            Flag {
                long: "now",
                short: None,
                value: Value::None,
                help: "enable the service and start it, too",
            },
            Flag {
                long: "force",
                short: None,
                value: Value::None,
                help: "replace a file that opta has not written",
            },
            JSON,
        ],
        summary: "Have the daemon started at every login",
        about: "Describes the daemon to systemd (a user service) or launchd (an agent).",
        build: |given| {
            Ok(Command::Install(Install { now: given.has("now"), force: given.has("force") }))
        },
    },
    Verb {
        words: &["daemon", "uninstall"],
        operand: None,
        flags: &[
            Flag {
                long: "force",
                short: None,
                value: Value::None,
                help: "remove a file that opta has not written",
            },
            JSON,
        ],
        summary: "Undo install, and stop the daemon",
        about: "Stops the daemon, and removes the service. Sessions, settings and logs are kept.",
        build: |given| Ok(Command::Uninstall(Uninstall { force: given.has("force") })),
    },
    Verb {
        words: &["sessions", "list"],
        operand: None,
        flags: &[
            Flag {
                long: "limit",
                short: None,
                value: Value::Required("N"),
                help: "show the N newest sessions (default 50)",
            },
            JSON,
        ],
        summary: "List the sessions, newest first",
        about: "Prints of each session its id, its age, how many turns it has, and its title.",
        build: |given| {
            let limit = given.number("limit", "a number of sessions", 1, u64::from(u32::MAX))?;
            let limit = limit.and_then(|limit| usize::try_from(limit).ok());
            let limit = limit.unwrap_or(limits::SESSIONS_PAGE_DEFAULT);
            Ok(Command::Sessions(Sessions::List { limit }))
        },
    },
    Verb {
        words: &["sessions", "show"],
        operand: Some(ID),
        flags: &[JSON],
        summary: "Show the conversation of a session",
        about: "Shows what was said. The beginning of an id is enough if no other begins so.",
        build: |given| Ok(Command::Sessions(Sessions::Show { id: given.operand()? })),
    },
    Verb {
        words: &["sessions", "export"],
        operand: Some(ID),
        flags: &[Flag {
            long: "format",
            short: None,
            value: Value::Required("FORMAT"),
            help: "json or markdown (default json)",
        }],
        summary: "Write a session to standard output",
        about: "Writes the session with all that was said and done in it, results of tools included.",
        build: |given| {
            let format = match given.value("format").as_deref() {
                None | Some("json") => Format::Json,
                Some("markdown") => Format::Markdown,
                Some(other) => return Err(given.refuse("format", "json or markdown", other)),
            };
            Ok(Command::Sessions(Sessions::Export { id: given.operand()?, format }))
        },
    },
    Verb {
        words: &["sessions", "verify"],
        operand: Some(Operand { need: Need::Optional, ..ID }),
        flags: &[JSON],
        summary: "Check that sessions are whole on disk",
        about: "Reads one journal through, or all of them. The exit status is 1 if one is damaged.",
        build: |given| Ok(Command::Sessions(Sessions::Verify { id: given.operand.clone() })),
    },
    Verb {
        words: &["sessions", "rm"],
        operand: Some(ID),
        flags: &[Flag { long: "force", short: None, value: Value::None, help: "do not ask" }, JSON],
        summary: "Delete a session for ever",
        about: "Asks on a terminal, and needs --force elsewhere. Starts the daemon if need be.",
        build: |given| {
            let force = given.has("force");
            Ok(Command::Sessions(Sessions::Remove { id: given.operand()?, force }))
        },
    },
    Verb {
        words: &["completions"],
        operand: Some(Operand {
            name: "SHELL",
            need: Need::Required,
            choices: &["bash", "zsh", "fish"],
        }),
        flags: &[],
        summary: "Print the completions for a shell",
        about: "Prints a script for bash, zsh or fish. 'make install' puts all three in their places.",
        build: |given| {
            Ok(Command::Completions(match given.operand()?.as_str() {
                "bash" => Shell::Bash,
                "zsh" => Shell::Zsh,
                _ => Shell::Fish,
            }))
        },
    },
];

fn task(given: &Given) -> Result<Command, Error> {
    for (one, other) in [("auto", "yolo"), ("json", "events")] {
        if given.has(one) && given.has(other) {
            return Err(given.misuse(format!("--{one} and --{other} exclude each other")));
        }
    }
    let grant = match (given.has("auto"), given.has("yolo")) {
        (_, true) => Grant::All,
        (true, _) => Grant::Edits,
        _ => Grant::Settings,
    };
    let show = match (given.has("json"), given.has("events"), given.has("quiet")) {
        (true, ..) => Show::Object,
        (_, true, _) => Show::Events,
        (.., true) => Show::Answer,
        _ => Show::Work,
    };
    let task = given.operand()?;
    if task.trim().is_empty() {
        return Err(given.misuse("TASK is empty".to_owned()));
    }
    Ok(Command::Do(Do { task, grant, show, model: model(given), resume: given.value("resume") }))
}

fn chat(given: &Given) -> Result<Command, Error> {
    let begin = match (given.value("resume"), given.has("continue")) {
        (Some(_), true) => {
            let message = "--resume and --continue exclude each other".to_owned();
            return Err(given.misuse(message));
        }
        (Some(id), false) => Begin::Resume(id),
        (None, true) => Begin::Latest,
        (None, false) => Begin::New,
    };
    let once = given.value("once");
    if once.as_ref().is_some_and(|text| text.trim().is_empty()) {
        return Err(given.misuse("--once needs a text".to_owned()));
    }
    Ok(Command::Chat(Chat { begin, model: model(given), once }))
}

fn model(given: &Given) -> Model {
    Model { name: given.value("model"), url: given.value("model-url") }
}

fn stop(given: &Given) -> Result<Stop, Error> {
    let force = given.has("force");
    let default = if force { limits::STOP_WAIT_FORCED } else { limits::STOP_WAIT_DEFAULT };
    Ok(Stop { timeout: given.seconds("timeout", default)?.unwrap_or(default), force })
}

fn logs(given: &Given) -> Result<Command, Error> {
    let lines = given.number("lines", "a number of lines", 0, u64::from(u32::MAX))?;
    let level = match given.value("level") {
        None => Level::Debug,
        Some(text) => Level::parse(&text)
            .ok_or_else(|| given.refuse("level", "debug, info, warn or error", &text))?,
    };
    let since = match given.value("since") {
        None => None,
        Some(text) => {
            let moment = clock::moment(&text, clock::now_millis());
            let takes = "a time such as 10m, 2h, 2026-03-01 or '2026-03-01 10:00'";
            Some(moment.ok_or_else(|| given.refuse("since", takes, &text))?)
        }
    };
    Ok(Command::Logs(Logs {
        lines: lines.and_then(|n| usize::try_from(n).ok()).unwrap_or(limits::LOG_LINES_DEFAULT),
        follow: given.has("follow"),
        level,
        since,
    }))
}

/// What was typed after the words of a command.
struct Given {
    verb: &'static Verb,
    flags: Vec<(&'static str, Option<OsString>)>,
    operand: Option<String>,
}

impl Given {
    fn has(&self, long: &str) -> bool {
        self.flags.iter().any(|(name, _)| *name == long)
    }

    fn value(&self, long: &str) -> Option<String> {
        let value = self.flags.iter().find(|(name, _)| *name == long)?.1.as_ref()?;
        Some(value.to_string_lossy().into_owned())
    }

    /// The operand of a command that cannot do without one.
    fn operand(&self) -> Result<String, Error> {
        let missing = || {
            let name = self.verb.operand.as_ref().map_or("", |operand| operand.name);
            self.misuse(format!("{name} is missing"))
        };
        self.operand.clone().ok_or_else(missing)
    }

    fn number(&self, long: &str, what: &str, min: u64, max: u64) -> Result<Option<u64>, Error> {
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
    fn seconds(&self, long: &str, default: Duration) -> Result<Option<Duration>, Error> {
        let number = self.number(long, "a number of seconds", 0, limits::WAIT_SECONDS_MAX)?;
        Ok(number.map(Duration::from_secs).or(self.has(long).then_some(default)))
    }

    fn refuse(&self, long: &str, takes: &str, text: &str) -> Error {
        self.misuse(format!("--{long} takes {takes}, not '{}'", one_line(text)))
    }

    fn misuse(&self, message: String) -> Error {
        misuse(message, usage(self.verb))
    }
}

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
            Some(Arg::Long("help") | Arg::Short('h')) => return help(&words),
            Some(Arg::Long("version") | Arg::Short('V')) => {
                return Ok((Command::Version, Form::Text));
            }
            Some(Arg::Value(word)) if words.is_empty() && word == "help" => {
                return help(&rest_of_words(&mut parser)?);
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

fn parse_rest(verb: &'static Verb, parser: &mut Parser) -> Result<(Command, Form), Error> {
    let mut given = Given { verb, flags: Vec::new(), operand: None };
    loop {
        let argument = parser.next().map_err(|error| given.misuse(error.to_string()))?;
        let (flag, name) = match argument {
            None => break,
            Some(Arg::Long("help") | Arg::Short('h')) => return print(help_of(verb)),
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

/// The words that may come after `words`.
pub fn following(words: &[String]) -> Vec<&'static str> {
    let mut next: Vec<&'static str> = Vec::new();
    for verb in VERBS {
        let rest = verb.words.iter().zip(words).all(|(word, typed)| word == typed);
        if let Some(word) = verb.words.get(words.len()).filter(|word| rest && !next.contains(word))
        {
            next.push(word);
        }
    }
    next
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

fn misuse(message: String, usage: String) -> Error {
    Error::Usage { message, usage }
}

fn unfinished(words: &[String]) -> Error {
    let choices = following(words).join(", ");
    let message = match words {
        [] => format!("a command is needed: {choices}"),
        _ => format!("'{}' needs a command: {choices}", words.join(" ")),
    };
    misuse(message, general_usage())
}

fn unknown_word(words: &[String], word: &str) -> Error {
    let known: Vec<String> = following(words).into_iter().map(str::to_owned).collect();
    let place = if words.is_empty() { String::new() } else { format!("{} ", words.join(" ")) };
    let shown = one_line(word);
    let message = match nearest(word, &known) {
        Some(meant) => format!("unknown command '{place}{shown}'; did you mean '{place}{meant}'?"),
        None => format!("unknown command '{place}{shown}'"),
    };
    misuse(message, general_usage())
}

fn unknown_option(name: &str, known: &[String], usage: String) -> Error {
    let message = match nearest(name, known) {
        Some(meant) => format!("unknown option '{name}'; did you mean '{meant}'?"),
        None => format!("unknown option '{name}'"),
    };
    misuse(message, usage)
}

/// The word among `known` that `typed` is most likely a slip of.
fn nearest<'k>(typed: &str, known: &'k [String]) -> Option<&'k str> {
    if typed.len() >= 4
        && let Some(word) = known.iter().find(|word| word.starts_with(typed))
    {
        return Some(word);
    }
    let allowed = 1 + typed.chars().count() / 4;
    let by_distance = known.iter().map(|word| (distance(typed, word), word));
    let (least, word) = by_distance.min_by_key(|(distance, _)| *distance)?;
    // One letter is no slip of another: every short option is one letter away from every other.
    (least <= allowed && typed.trim_start_matches('-').chars().count() > 1).then_some(word)
}

/// Letters to insert, remove, change, or swap with their neighbour (optimal string alignment).
fn distance(left: &str, right: &str) -> usize {
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

fn print(text: String) -> Result<(Command, Form), Error> {
    Ok((Command::Print(text), Form::Text))
}

/// The help for the command that `words` name, or for the group of commands that begin so.
fn help(words: &[String]) -> Result<(Command, Form), Error> {
    if let Some(verb) = VERBS.iter().find(|verb| verb.words == words) {
        return print(help_of(verb));
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
    print(text)
}

fn help_of(verb: &Verb) -> String {
    let mut text = format!("{}\n\n{}\n\nOptions:\n", usage(verb), verb.about);
    for flag in verb.flags {
        line(&mut text, &spelling(flag), flag.help);
    }
    line(&mut text, "-h, --help", "show this help");
    text
}

/// One line that shows how a command is called.
fn usage(verb: &Verb) -> String {
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

fn general_usage() -> String {
    "Usage: opta COMMAND [OPTION]...  (opta --help lists the commands)".to_owned()
}

/// An option as the help writes it: `-n, --lines N`.
fn spelling(flag: &Flag) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(Command, Form), Error> {
        parse(line.split_whitespace().map(OsString::from).collect())
    }

    fn refused(line: &str) -> String {
        let error = parsed(line).unwrap_err();
        assert_eq!(error.status(), 2, "{line}");
        error.to_string()
    }

    #[test]
    fn options_stand_in_any_order_and_spelling() {
        let logs = |lines, follow| {
            let level = Level::Debug;
            Command::Logs(Logs { lines, follow, level, since: None })
        };
        for (line, command) in [
            ("daemon logs", logs(50, false)),
            ("daemon logs -n7", logs(7, false)),
            ("daemon logs -n 7 -f", logs(7, true)),
            ("daemon logs -fn7", logs(7, true)),
            ("daemon logs --follow --lines=7", logs(7, true)),
            ("daemon logs --lines 0", logs(0, false)),
        ] {
            assert_eq!(parsed(line).unwrap().0, command, "{line}");
        }
        assert_eq!(parsed("daemon stop --json").unwrap().1, Form::Json);
    }

    #[test]
    fn a_refusal_names_the_argument_and_what_would_be_right() {
        for (line, message) in [
            ("", "a command is needed: do, chat, doctor, daemon, sessions, completions"),
            (
                "daemon",
                "'daemon' needs a command: start, status, logs, restart, stop, token, install, uninstall",
            ),
            ("deamon", "unknown command 'deamon'; did you mean 'daemon'?"),
            ("daemon staus", "unknown command 'daemon staus'; did you mean 'daemon status'?"),
            ("daemon frobnicate", "unknown command 'daemon frobnicate'"),
            ("daemon start --fore", "unknown option '--fore'; did you mean '--foreground'?"),
            (
                "daemon start --foregruond",
                "unknown option '--foregruond'; did you mean '--foreground'?",
            ),
            ("daemon status -x", "unknown option '-x'"),
            (
                "daemon logs --lines -5",
                "--lines takes a number of lines from 0 to 4294967295, not '-5'",
            ),
            (
                "daemon logs --lines x",
                "--lines takes a number of lines from 0 to 4294967295, not 'x'",
            ),
            ("daemon logs --lines", "--lines needs a value: --lines N"),
            (
                "daemon start --port 99999",
                "--port takes a port number from 0 to 65535, not '99999'",
            ),
            ("daemon start --port +5", "--port takes a port number from 0 to 65535, not '+5'"),
            ("daemon start --port 1 --port 2", "--port was given twice"),
            ("daemon start now", "unexpected argument 'now'"),
            (
                "daemon stop --timeout 86401",
                "--timeout takes a number of seconds from 0 to 86400, not '86401'",
            ),
            ("daemon logs --level loud", "--level takes debug, info, warn or error, not 'loud'"),
            ("daemon restart --if-idle --force", "--if-idle and --force exclude each other"),
            ("completions", "SHELL is missing"),
            ("sessions", "'sessions' needs a command: list, show, export, verify, rm"),
            ("sessions show", "ID is missing"),
            ("sessions rm --force", "ID is missing"),
            ("do", "TASK is missing"),
            ("do --auto --yolo x", "--auto and --yolo exclude each other"),
            ("do --json --events x", "--json and --events exclude each other"),
            ("chat --resume a --continue", "--resume and --continue exclude each other"),
            ("chat hello", "unexpected argument 'hello'"),
            ("doctor --fix", "unknown option '--fix'"),
            ("sessions show a b", "one ID is enough: unexpected argument 'b'"),
            ("sessions list a", "unexpected argument 'a'"),
            ("sessions export a --format xml", "--format takes json or markdown, not 'xml'"),
            (
                "sessions list --limit 0",
                "--limit takes a number of sessions from 1 to 4294967295, not '0'",
            ),
            ("completions tcsh", "SHELL is one of bash, zsh, fish, not 'tcsh'"),
            ("--jsn daemon status", "unknown option '--jsn'"),
        ] {
            assert_eq!(refused(line), message, "{line}");
        }
    }

    #[test]
    fn an_operand_stands_anywhere_behind_the_words() {
        let id = || "sess_1".to_owned();
        let markdown = Sessions::Export { id: id(), format: Format::Markdown };
        for (line, asked) in [
            ("sessions list", Sessions::List { limit: limits::SESSIONS_PAGE_DEFAULT }),
            ("sessions list --limit=7 --json", Sessions::List { limit: 7 }),
            ("sessions show sess_1 --json", Sessions::Show { id: id() }),
            ("sessions show -- -sess", Sessions::Show { id: "-sess".to_owned() }),
            ("sessions export sess_1 --format markdown", markdown),
            ("sessions export sess_1", Sessions::Export { id: id(), format: Format::Json }),
            ("sessions verify", Sessions::Verify { id: None }),
            ("sessions verify sess_1", Sessions::Verify { id: Some(id()) }),
            ("sessions rm --force sess_1", Sessions::Remove { id: id(), force: true }),
        ] {
            assert_eq!(parsed(line).unwrap().0, Command::Sessions(asked), "{line}");
        }
    }

    #[test]
    fn a_task_is_all_its_words() {
        let task = |line: &str| match parsed(line).unwrap().0 {
            Command::Do(asked) => (asked.task, asked.grant, asked.show),
            other => panic!("{other:?}"),
        };
        let plain = |text: &str| (text.to_owned(), Grant::Settings, Show::Work);
        assert_eq!(task("do count the lines"), plain("count the lines"));
        assert_eq!(task("do count -- --all"), plain("count --all"));
        assert_eq!(task("do -"), plain("-"));
        assert_eq!(task("do a --auto b -q"), ("a b".to_owned(), Grant::Edits, Show::Answer));
        let lines = parse(["do", "one\n\ttwo"].map(OsString::from).to_vec()).unwrap().0;
        assert!(matches!(lines, Command::Do(Do { task, .. }) if task == "one\n\ttwo"));
    }

    #[test]
    fn the_usage_line_shows_which_operand_may_be_left_out() {
        let usage_of = |line: &str| match parsed(&format!("{line} --help")).unwrap().0 {
            Command::Print(text) => text.lines().next().unwrap().to_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(usage_of("sessions show"), "Usage: opta sessions show [--json] ID");
        assert_eq!(usage_of("sessions verify"), "Usage: opta sessions verify [--json] [ID]");
        assert_eq!(usage_of("completions"), "Usage: opta completions SHELL");
        assert!(usage_of("do").ends_with(" [--resume ID] TASK..."));
    }

    #[test]
    fn a_flag_takes_no_value() {
        assert!(refused("daemon logs --follow=yes").contains("--follow"));
    }

    #[test]
    fn help_is_there_for_everything_and_beats_what_follows() {
        for verb in VERBS {
            let line = verb.words.join(" ");
            for line in [format!("{line} --help"), format!("{line} -h"), format!("help {line}")] {
                let Command::Print(text) = parsed(&line).unwrap().0 else {
                    panic!("{line} printed nothing");
                };
                assert!(text.starts_with(&format!("Usage: opta {}", verb.words.join(" "))));
                for flag in verb.flags {
                    assert!(text.contains(&spelling(flag)), "{line}: {}", flag.long);
                }
            }
        }
        assert!(matches!(parsed("--help").unwrap().0, Command::Print(_)));
        assert!(matches!(parsed("daemon --help").unwrap().0, Command::Print(_)));
        assert_eq!(
            refused("help daemon strat"),
            "unknown command 'daemon strat'; did you mean 'daemon start'?"
        );
    }

    #[test]
    fn waiting_has_a_default_and_a_limit() {
        let wait = |line: &str| match parsed(line).unwrap().0 {
            Command::Status(status) => status.wait,
            other => panic!("{other:?}"),
        };
        assert_eq!(wait("daemon status"), None);
        assert_eq!(wait("daemon status --wait"), Some(limits::START_MAX));
        assert_eq!(wait("daemon status --wait=86400"), Some(Duration::from_secs(86_400)));
        refused("daemon status --wait=86401");
    }
}
