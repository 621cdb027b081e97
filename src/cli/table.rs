//! The table: every command, its options, its help, and how its arguments become a [`Command`].

use crate::log::Level;
use crate::protocol::Grant;
use crate::{clock, limits};

use super::args::{Arity, Operand, OptionSpec, OptionValue, ParsedArgs, Subcommand};
use super::{
    ChatArgs, Command, ConfigCommand, DoArgs, ExportFormat, InstallArgs, LogsArgs, ModelArgs,
    RestartArgs, SessionChoice, SessionsCommand, Shell, StartArgs, StatusArgs, StopArgs,
    TaskOutput, UninstallArgs,
};

/// Returns an option without a value.
const fn switch(long: &'static str, help: &'static str) -> OptionSpec {
    OptionSpec { long, short: None, value: OptionValue::None, choices: &[], help }
}

/// Returns an option with a value.
const fn valued(long: &'static str, value: &'static str, help: &'static str) -> OptionSpec {
    OptionSpec { long, short: None, value: OptionValue::Required(value), choices: &[], help }
}

impl OptionSpec {
    /// Adds a second name of one letter.
    const fn short(self, short: char) -> OptionSpec {
        OptionSpec { short: Some(short), ..self }
    }

    /// Lists the accepted values.
    const fn choices(self, choices: &'static [&'static str]) -> OptionSpec {
        OptionSpec { choices, ..self }
    }
}

const JSON: OptionSpec = switch("json", "print one JSON object per line, errors included");
const TIMEOUT: OptionSpec = valued(
    "timeout",
    "SECONDS",
    "how long to wait for the daemon to exit (default 10, with --force 2)",
);
const FORCE: OptionSpec = switch("force", "kill the daemon if it has not exited by then");

const MODEL: OptionSpec =
    valued("model", "NAME", "the model to use (default: as configured, else the server's first)")
        .short('m');
const MODEL_URL: OptionSpec = valued(
    "model-url",
    "URL",
    "the model server to use (default: as configured, else one on this machine)",
);
const MAX_TOKENS: OptionSpec = valued(
    "max-tokens",
    "N",
    "the limit of each answer, thinking included (default: as configured, else the server's)",
);
const CONTINUE: OptionSpec = OptionSpec {
    value: OptionValue::Optional("any"),
    ..switch("continue", "resume the last session of this directory, or with =any the last of all")
        .short('c')
        .choices(&["any"])
};
const RESUME: OptionSpec =
    valued("resume", "ID", "resume this session; the beginning of its id, or 'last', is enough")
        .short('r');

/// The greatest number of lines or sessions that can be requested.
const COUNT_MAX: usize = 0xffff_ffff;

const ID: Operand = Operand { name: "ID", arity: Arity::One, choices: &[] };

/// Every command, in the order in which the help lists them.
pub const SUBCOMMANDS: &[Subcommand] = &[
    Subcommand {
        words: &["do"],
        operand: Some(Operand { name: "TASK", arity: Arity::Many, choices: &[] }),
        options: &[
            switch("auto", "allow writing and editing files without asking"),
            switch("yolo", "allow everything without asking, commands included"),
            switch("json", "print one JSON object at the end, errors included"),
            switch("events", "print events as they arrive, one JSON object per line"),
            switch("quiet", "print only the answer and errors").short('q'),
            MODEL,
            MODEL_URL,
            MAX_TOKENS,
            CONTINUE,
            RESUME,
        ],
        summary: "Run a task and print the answer",
        about: "Runs the task in a new session. What is piped in becomes part of it; '-' reads all of it from standard input.",
        build: task,
    },
    Subcommand {
        words: &["chat"],
        operand: None,
        options: &[
            CONTINUE,
            RESUME,
            MODEL,
            MODEL_URL,
            MAX_TOKENS,
            valued("once", "TEXT", "send this text, print the answer and exit"),
            switch("quiet", "do not print the tokens and the time of each turn").short('q'),
        ],
        summary: "Chat with a model",
        about: "Sends each line to the model. Without a terminal, lines are read from standard input.",
        build: chat,
    },
    Subcommand {
        words: &["web"],
        operand: None,
        options: &[switch("print", "only print the URL, which contains the token")],
        summary: "Open your sessions in a browser",
        about: "Opens the page that the daemon serves, and starts the daemon if needed.",
        build: |args| Ok(Command::Web { print: args.has("print") }),
    },
    Subcommand {
        words: &["models"],
        operand: None,
        options: &[MODEL_URL, JSON],
        summary: "List the models of the server",
        about: "Prints their names. Standard error says which one is used by default.",
        build: |args| Ok(Command::Models { url: args.value("model-url") }),
    },
    Subcommand {
        words: &["config", "list"],
        operand: None,
        options: &[JSON],
        summary: "List the settings in config.json",
        about: "Prints each setting with its value, and names those that are unknown.",
        build: |_| Ok(Command::Config(ConfigCommand::List)),
    },
    Subcommand {
        words: &["config", "get"],
        operand: Some(Operand { name: "KEY", arity: Arity::One, choices: &[] }),
        options: &[JSON],
        summary: "Print the value of a setting",
        about: "Prints the value in config.json. The exit status is 1 if it is not set.",
        build: |args| Ok(Command::Config(ConfigCommand::Get { key: args.operand()? })),
    },
    Subcommand {
        words: &["config", "set"],
        operand: Some(Operand { name: "KEY VALUE", arity: Arity::Two, choices: &[] }),
        options: &[JSON],
        summary: "Change a setting",
        about: "Changes one value in config.json if the result can be used. A list or an object is JSON.",
        build: |args| {
            let typed = args.operand()?;
            let (key, value) = typed.split_once(' ').ok_or("VALUE is missing")?;
            let (key, value) = (key.to_owned(), value.to_owned());
            Ok(Command::Config(ConfigCommand::Set { key, value }))
        },
    },
    Subcommand {
        words: &["config", "reset"],
        operand: Some(Operand { name: "KEY", arity: Arity::One, choices: &[] }),
        options: &[JSON],
        summary: "Remove a setting",
        about: "Removes one value from config.json, so that its default applies again.",
        build: |args| Ok(Command::Config(ConfigCommand::Reset { key: args.operand()? })),
    },
    Subcommand {
        words: &["config", "path"],
        operand: None,
        options: &[JSON],
        summary: "Print where config.json is",
        about: "Prints the path, also if there is no such file.",
        build: |_| Ok(Command::Config(ConfigCommand::Path)),
    },
    Subcommand {
        words: &["config", "edit"],
        operand: None,
        options: &[],
        summary: "Open config.json in your editor",
        about: "Runs $VISUAL or $EDITOR, or else vi, then checks the settings.",
        build: |_| Ok(Command::Config(ConfigCommand::Edit)),
    },
    Subcommand {
        words: &["doctor"],
        operand: None,
        options: &[switch("json", "print one JSON object per check")],
        summary: "Check the setup and report problems",
        about: "Starts nothing and changes nothing. The exit status is 1 if a check fails.",
        build: |_| Ok(Command::Doctor),
    },
    Subcommand {
        words: &["daemon", "start"],
        operand: None,
        options: &[
            switch("foreground", "serve in this process; Ctrl-C stops it"),
            valued(
                "port",
                "N",
                "listen on this port or fail; 0 takes any (default 9999, else 10000 to 10020)",
            ),
            JSON,
        ],
        summary: "Start the daemon in the background",
        about: "Starts the daemon and returns when it is ready. If one is already running, says so.",
        build: |args| {
            let port = args.number("port", "a port number", 0..=u16::MAX)?;
            Ok(Command::Start(StartArgs { foreground: args.has("foreground"), port }))
        },
    },
    Subcommand {
        words: &["daemon", "status"],
        operand: None,
        options: &[
            JSON,
            OptionSpec {
                value: OptionValue::Optional("SECONDS"),
                ..switch("wait", "wait until the daemon is running (default 10)")
            },
            switch("quiet", "print nothing").short('q'),
        ],
        summary: "Show whether the daemon is running",
        about: "Changes nothing. Exit status: 0 running, 3 stopped, 1 crashed, 4 unresponsive.",
        build: |args| {
            let wait = args.seconds("wait", limits::START_MAX)?;
            Ok(Command::Status(StatusArgs { wait, quiet: args.has("quiet") }))
        },
    },
    Subcommand {
        words: &["daemon", "logs"],
        operand: None,
        options: &[
            valued("lines", "N", "show the last N lines (default 50)").short('n'),
            switch("follow", "keep showing new lines as they arrive").short('f'),
            valued(
                "level",
                "LEVEL",
                "only lines at this level and above: debug, info, warn, error (default debug)",
            )
            .choices(&["debug", "info", "warn", "error"]),
            valued(
                "since",
                "TIME",
                "only lines since this time: 10m, 1w, 09:00, yesterday, '2026-03-01 10:00'",
            ),
            switch("json", "print the lines as stored"),
        ],
        summary: "Show the daemon's log",
        about: "Shows the last lines of the log, oldest first, including rotated files.",
        build: logs,
    },
    Subcommand {
        words: &["daemon", "restart"],
        operand: None,
        options: &[TIMEOUT, FORCE, switch("if-idle", "refuse while a turn is in progress"), JSON],
        summary: "Stop the daemon and start it with a new token",
        about: "Stops the daemon if it is running, then starts it.",
        build: |args| {
            args.exclusive("if-idle", "force")?;
            Ok(Command::Restart(RestartArgs { stop: stop(args)?, if_idle: args.has("if-idle") }))
        },
    },
    Subcommand {
        words: &["daemon", "stop"],
        operand: None,
        options: &[TIMEOUT, FORCE, JSON],
        summary: "Stop the daemon",
        about: "Sends SIGTERM and waits until the daemon has exited. Sessions stay on disk.",
        build: |args| Ok(Command::Stop(stop(args)?)),
    },
    Subcommand {
        words: &["daemon", "token"],
        operand: None,
        options: &[JSON],
        summary: "Print the token of the running daemon",
        about: "To use it without exposing it to other users:\n  opta daemon token | sed 's/^/Authorization: Bearer /' | curl -H @- URL",
        build: |_| Ok(Command::Token),
    },
    Subcommand {
        words: &["daemon", "install"],
        operand: None,
        options: &[
            switch("now", "also enable and start the service"),
            switch("force", "replace a file that opta did not write"),
            JSON,
        ],
        summary: "Start the daemon at every login",
        about: "Registers the daemon with systemd (as a user service) or launchd (as an agent).",
        build: |args| {
            Ok(Command::Install(InstallArgs { now: args.has("now"), force: args.has("force") }))
        },
    },
    Subcommand {
        words: &["daemon", "uninstall"],
        operand: None,
        options: &[switch("force", "remove a file that opta did not write"), JSON],
        summary: "Undo install and stop the daemon",
        about: "Stops the daemon and removes the service. Sessions, settings and logs are kept.",
        build: |args| Ok(Command::Uninstall(UninstallArgs { force: args.has("force") })),
    },
    Subcommand {
        words: &["sessions", "list"],
        operand: None,
        options: &[valued("limit", "N", "show the N newest sessions (default 50)"), JSON],
        summary: "List the sessions, newest first",
        about: "Prints each session's id, age, number of turns, model, directory and title.",
        build: |args| {
            let limit = args.number("limit", "a number of sessions", 1..=COUNT_MAX)?;
            let limit = limit.unwrap_or(limits::SESSIONS_PAGE_DEFAULT);
            Ok(Command::Sessions(SessionsCommand::List { limit }))
        },
    },
    Subcommand {
        words: &["sessions", "show"],
        operand: Some(ID),
        options: &[JSON],
        summary: "Show the conversation of a session",
        about: "Shows messages and tool calls. The beginning of the id, or 'last', is enough.",
        build: |args| Ok(Command::Sessions(SessionsCommand::Show { id: args.operand()? })),
    },
    Subcommand {
        words: &["sessions", "export"],
        operand: Some(ID),
        options: &[valued("format", "FORMAT", "json or markdown (default json)")
            .choices(&["json", "markdown"])],
        summary: "Write a session to standard output",
        about: "Writes the whole session, tool calls and their results included.",
        build: |args| {
            let format = args.parsed("format", "json or markdown", |text| match text {
                "json" => Some(ExportFormat::Json),
                "markdown" => Some(ExportFormat::Markdown),
                _ => None,
            })?;
            let format = format.unwrap_or(ExportFormat::Json);
            Ok(Command::Sessions(SessionsCommand::Export { id: args.operand()?, format }))
        },
    },
    Subcommand {
        words: &["sessions", "grep"],
        operand: Some(Operand { name: "PATTERN", arity: Arity::One, choices: &[] }),
        options: &[
            switch("ignore-case", "do not distinguish upper and lower case").short('i'),
            switch("list", "print only the ids of the sessions").short('l'),
            JSON,
        ],
        summary: "Search the text of all sessions",
        about: "Prints each line of messages, answers and tools that matches a regular expression.\nExit status: 0 if a line matches, 1 if none does.",
        build: |args| {
            let (ignore_case, list) = (args.has("ignore-case"), args.has("list"));
            let pattern = args.operand()?;
            Ok(Command::Sessions(SessionsCommand::Grep { pattern, ignore_case, list }))
        },
    },
    Subcommand {
        words: &["sessions", "verify"],
        operand: Some(Operand { arity: Arity::AtMostOne, ..ID }),
        options: &[JSON],
        summary: "Check sessions on disk for damage",
        about: "Reads one journal, or all of them. The exit status is 1 if one is damaged.",
        build: |args| Ok(Command::Sessions(SessionsCommand::Verify { id: args.operand.clone() })),
    },
    Subcommand {
        words: &["sessions", "rm"],
        operand: Some(ID),
        options: &[switch("force", "delete without asking"), JSON],
        summary: "Permanently delete a session",
        about: "Asks first on a terminal; elsewhere it needs --force. Starts the daemon if needed.",
        build: |args| {
            let force = args.has("force");
            Ok(Command::Sessions(SessionsCommand::Remove { id: args.operand()?, force }))
        },
    },
    Subcommand {
        words: &["completions"],
        operand: Some(Operand {
            name: "SHELL",
            arity: Arity::One,
            choices: &["bash", "zsh", "fish"],
        }),
        options: &[],
        summary: "Print a completion script for a shell",
        about: "Prints a script for bash, zsh or fish. 'make install' installs all three.",
        build: |args| {
            Ok(Command::Completions(match args.operand()?.as_str() {
                "bash" => Shell::Bash,
                "zsh" => Shell::Zsh,
                _ => Shell::Fish,
            }))
        },
    },
    Subcommand {
        words: &["version"],
        operand: None,
        options: &[],
        summary: "Print the versions of opta and of its protocol",
        about: "Prints the same as 'opta --version'.",
        build: |_| Ok(Command::Version),
    },
];

/// Returns the commands that begin with `words`, or are these words.
pub fn beginning_with(words: &[&str]) -> impl Iterator<Item = &'static Subcommand> {
    SUBCOMMANDS.iter().filter(|subcommand| subcommand.words.starts_with(words))
}

/// Returns the words that may follow `words`.
pub fn next_words(words: &[&str]) -> Vec<&'static str> {
    let next = beginning_with(words).filter_map(|subcommand| subcommand.words.get(words.len()));
    let mut next: Vec<&str> = next.copied().collect();
    // The table lists the commands that share a word one after another.
    next.dedup();
    next
}

fn task(args: &ParsedArgs) -> Result<Command, String> {
    args.exclusive("auto", "yolo")?;
    args.exclusive("json", "events")?;
    let grant = match (args.has("auto"), args.has("yolo")) {
        (_, true) => Grant::All,
        (true, _) => Grant::Edits,
        _ => Grant::Settings,
    };
    let output = match (args.has("json"), args.has("events"), args.has("quiet")) {
        (true, ..) => TaskOutput::Json,
        (_, true, _) => TaskOutput::Events,
        (.., true) => TaskOutput::Quiet,
        _ => TaskOutput::Full,
    };
    let task = args.operand()?;
    if task.trim().is_empty() {
        return Err("TASK is empty".to_owned());
    }
    Ok(Command::Do(DoArgs { task, grant, output, model: model(args)?, session: session(args)? }))
}

fn chat(args: &ParsedArgs) -> Result<Command, String> {
    let once = args.value("once");
    if once.as_ref().is_some_and(|text| text.trim().is_empty()) {
        return Err("--once requires a text".to_owned());
    }
    let (session, quiet) = (session(args)?, args.has("quiet"));
    Ok(Command::Chat(ChatArgs { session, model: model(args)?, once, quiet }))
}

fn session(args: &ParsedArgs) -> Result<SessionChoice, String> {
    args.exclusive("resume", "continue")?;
    let anywhere = args.parsed("continue", "any, or have no value", |text| {
        (text == "any").then_some(SessionChoice::LatestAnywhere)
    })?;
    Ok(match args.value("resume") {
        Some(id) => SessionChoice::Resume(id),
        None if args.has("continue") => anywhere.unwrap_or(SessionChoice::Latest),
        None => SessionChoice::New,
    })
}

fn model(args: &ParsedArgs) -> Result<ModelArgs, String> {
    let max_tokens =
        args.number("max-tokens", "a number of tokens", 1..=limits::ANSWER_TOKENS_MAX)?;
    Ok(ModelArgs { name: args.value("model"), url: args.value("model-url"), max_tokens })
}

fn stop(args: &ParsedArgs) -> Result<StopArgs, String> {
    let force = args.has("force");
    let default = if force { limits::STOP_WAIT_FORCED } else { limits::STOP_WAIT_DEFAULT };
    Ok(StopArgs { timeout: args.seconds("timeout", default)?.unwrap_or(default), force })
}

fn logs(args: &ParsedArgs) -> Result<Command, String> {
    let lines = args.number("lines", "a number of lines", 0..=COUNT_MAX)?;
    let level = args.parsed("level", "debug, info, warn or error", Level::parse)?;
    let since = "a time such as 10m, 1w, 09:00, today, 2026-03-01 or '2026-03-01 10:00'";
    let since =
        args.parsed("since", since, |text| clock::parse_timestamp(text, clock::now_millis()))?;
    Ok(Command::Logs(LogsArgs {
        lines: lines.unwrap_or(limits::LOG_LINES_DEFAULT),
        follow: args.has("follow"),
        level: level.unwrap_or(Level::Debug),
        since,
    }))
}
