//! The table: every command, its options, its help, and how what was typed becomes a [`Command`].

use crate::error::Error;
use crate::log::Level;
use crate::{clock, limits};

use super::parse::Given;
use super::{
    Begin, Chat, Command, Do, Format, Grant, Install, Logs, Model, Restart, Sessions, Shell, Show,
    Start, Status, Stop, Uninstall,
};

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
    pub build: fn(&Given) -> Result<Command, Error>,
}

/// An option that is there or not.
const fn switch(long: &'static str, help: &'static str) -> Flag {
    Flag { long, short: None, value: Value::None, help }
}

/// An option with a value.
const fn taking(long: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { long, short: None, value: Value::Required(value), help }
}

impl Flag {
    /// With a second name of one letter.
    const fn or(self, short: char) -> Flag {
        Flag { short: Some(short), ..self }
    }
}

const JSON: Flag = switch("json", "print one JSON object per line, errors included");
const TIMEOUT: Flag = taking(
    "timeout",
    "SECONDS",
    "how long to wait for the daemon to exit (default 10, with --force 2)",
);
const FORCE: Flag = switch("force", "kill the daemon if it has not exited by then");

const MODEL: Flag =
    taking("model", "NAME", "the model to use (default: as configured, else the server's first)");
const MODEL_URL: Flag = taking(
    "model-url",
    "URL",
    "the model server to use (default: as configured, else one on this machine)",
);
const RESUME: Flag =
    taking("resume", "ID", "resume this session; a unique prefix of its id is enough");

const ID: Operand = Operand { name: "ID", need: Need::Required, choices: &[] };

/// Every command, in the order in which the help lists them.
pub const VERBS: &[Verb] = &[
    Verb {
        words: &["do"],
        operand: Some(Operand { name: "TASK", need: Need::Words, choices: &[] }),
        flags: &[
            switch("auto", "allow writing and editing files without asking"),
            switch("yolo", "allow everything without asking, commands included"),
            switch("json", "print one JSON object at the end, errors included"),
            switch("events", "print events as they arrive, one JSON object per line"),
            switch("quiet", "print only the answer and errors").or('q'),
            MODEL,
            MODEL_URL,
            RESUME,
        ],
        summary: "Run a task and print the answer",
        about: "Runs the task in a new session. '-' reads it from standard input.",
        build: task,
    },
    Verb {
        words: &["chat"],
        operand: None,
        flags: &[
            RESUME,
            switch("continue", "resume the most recently used session"),
            MODEL,
            MODEL_URL,
            taking("once", "TEXT", "send this text, print the answer and exit"),
        ],
        summary: "Chat with a model",
        about: "Sends each line to the model. Without a terminal, lines are read from standard input.",
        build: chat,
    },
    Verb {
        words: &["doctor"],
        operand: None,
        flags: &[switch("json", "print one JSON object per check")],
        summary: "Check the setup and report problems",
        about: "Starts nothing and changes nothing. The exit status is 1 if a check fails.",
        build: |_| Ok(Command::Doctor),
    },
    Verb {
        words: &["daemon", "start"],
        operand: None,
        flags: &[
            switch("foreground", "serve in this process; Ctrl-C stops it"),
            taking(
                "port",
                "N",
                "listen on this port or fail; 0 takes any (default 9999, else 10000 to 10020)",
            ),
            JSON,
        ],
        summary: "Start the daemon in the background",
        about: "Starts the daemon and returns when it is ready. If one is already running, says so.",
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
                value: Value::Optional("SECONDS"),
                ..switch("wait", "wait until the daemon is running (default 10)")
            },
            switch("quiet", "print nothing").or('q'),
        ],
        summary: "Show whether the daemon is running",
        about: "Changes nothing. Exit status: 0 running, 3 stopped, 1 crashed, 4 unresponsive.",
        build: |given| {
            let wait = given.seconds("wait", limits::START_MAX)?;
            Ok(Command::Status(Status { wait, quiet: given.has("quiet") }))
        },
    },
    Verb {
        words: &["daemon", "logs"],
        operand: None,
        flags: &[
            taking("lines", "N", "show the last N lines (default 50)").or('n'),
            switch("follow", "keep showing new lines as they arrive").or('f'),
            taking(
                "level",
                "LEVEL",
                "only lines at this level and above: debug, info, warn, error (default debug)",
            ),
            taking(
                "since",
                "TIME",
                "only lines since this time: 10m, 2h, 2026-03-01, '2026-03-01 10:00'",
            ),
            switch("json", "print the lines as stored"),
        ],
        summary: "Show the daemon's log",
        about: "Shows the last lines of the log, oldest first, including rotated files.",
        build: logs,
    },
    Verb {
        words: &["daemon", "restart"],
        operand: None,
        flags: &[TIMEOUT, FORCE, switch("if-idle", "refuse while a turn is in progress"), JSON],
        summary: "Stop the daemon and start it with a new token",
        about: "Stops the daemon if it is running, then starts it.",
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
        about: "Sends SIGTERM and waits until the daemon has exited. Sessions stay on disk.",
        build: |given| Ok(Command::Stop(stop(given)?)),
    },
    Verb {
        words: &["daemon", "token"],
        operand: None,
        flags: &[JSON],
        summary: "Print the token of the running daemon",
        about: "To use it without exposing it to other users:\n  opta daemon token | sed 's/^/Authorization: Bearer /' | curl -H @- URL",
        build: |_| Ok(Command::Token),
    },
    Verb {
        words: &["daemon", "install"],
        operand: None,
        flags: &[
            switch("now", "also enable and start the service"),
            switch("force", "replace a file that opta did not write"),
            JSON,
        ],
        summary: "Start the daemon at every login",
        about: "Registers the daemon with systemd (as a user service) or launchd (as an agent).",
        build: |given| {
            Ok(Command::Install(Install { now: given.has("now"), force: given.has("force") }))
        },
    },
    Verb {
        words: &["daemon", "uninstall"],
        operand: None,
        flags: &[switch("force", "remove a file that opta did not write"), JSON],
        summary: "Undo install and stop the daemon",
        about: "Stops the daemon and removes the service. Sessions, settings and logs are kept.",
        build: |given| Ok(Command::Uninstall(Uninstall { force: given.has("force") })),
    },
    Verb {
        words: &["sessions", "list"],
        operand: None,
        flags: &[taking("limit", "N", "show the N newest sessions (default 50)"), JSON],
        summary: "List the sessions, newest first",
        about: "Prints each session's id, age, number of turns and title.",
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
        about: "Shows messages and tool calls. A unique prefix of the id is enough.",
        build: |given| Ok(Command::Sessions(Sessions::Show { id: given.operand()? })),
    },
    Verb {
        words: &["sessions", "export"],
        operand: Some(ID),
        flags: &[taking("format", "FORMAT", "json or markdown (default json)")],
        summary: "Write a session to standard output",
        about: "Writes the whole session, tool calls and their results included.",
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
        summary: "Check sessions on disk for damage",
        about: "Reads one journal, or all of them. The exit status is 1 if one is damaged.",
        build: |given| Ok(Command::Sessions(Sessions::Verify { id: given.operand.clone() })),
    },
    Verb {
        words: &["sessions", "rm"],
        operand: Some(ID),
        flags: &[switch("force", "delete without asking"), JSON],
        summary: "Permanently delete a session",
        about: "Asks first on a terminal; elsewhere it needs --force. Starts the daemon if needed.",
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
        summary: "Print a completion script for a shell",
        about: "Prints a script for bash, zsh or fish. 'make install' installs all three.",
        build: |given| {
            Ok(Command::Completions(match given.operand()?.as_str() {
                "bash" => Shell::Bash,
                "zsh" => Shell::Zsh,
                _ => Shell::Fish,
            }))
        },
    },
];

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
            let moment = clock::parse_timestamp(&text, clock::now_millis());
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
