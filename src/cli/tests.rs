//! Command lines that are accepted, and the messages about those that are not.

use std::ffi::OsString;
use std::time::Duration;

use crate::error::Error;
use crate::limits;
use crate::log::Level;

use super::parse::spelling;
use super::*;

fn parsed(line: &str) -> Result<(Command, OutputMode), Error> {
    parse(line.split_whitespace().map(OsString::from).collect())
}

fn refused(line: &str) -> String {
    let error = parsed(line).unwrap_err();
    assert_eq!(error.status(), 2, "{line}");
    error.to_string()
}

#[test]
fn options_are_accepted_in_any_order_and_spelling() {
    let logs = |lines, follow| {
        let level = Level::Debug;
        Command::Logs(LogsArgs { lines, follow, level, since: None })
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
    assert_eq!(parsed("daemon stop --json").unwrap().1, OutputMode::Json);
}

#[test]
fn a_usage_error_names_the_argument_and_what_is_accepted() {
    for (line, message) in [
        (
            "daemon",
            "'daemon' requires a command: start, status, logs, restart, stop, token, install, uninstall",
        ),
        ("deamon", "unknown command 'deamon'; did you mean 'daemon'?"),
        ("status", "unknown command 'status'; did you mean 'daemon status'?"),
        ("stauts", "unknown command 'stauts'; did you mean 'daemon status'?"),
        ("ls --limit 3", "unknown command 'ls'; did you mean 'sessions list'?"),
        ("sessions ls", "unknown command 'sessions ls'; did you mean 'sessions list'?"),
        ("sessions delete a", "unknown command 'sessions delete'; did you mean 'sessions rm'?"),
        ("list", "unknown command 'list'; did you mean 'config list' or 'sessions list'?"),
        ("daemon set", "unknown command 'daemon set'; did you mean 'config set'?"),
        ("config set a", "VALUE is missing"),
        ("config set a b c", "only one KEY VALUE is accepted: unexpected argument 'c'"),
        ("sessions start", "unknown command 'sessions start'; did you mean 'daemon start'?"),
        ("help stop", "unknown command 'stop'; did you mean 'daemon stop'?"),
        ("version x", "unexpected argument 'x'"),
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
            "--lines must be a number of lines from 0 to 4294967295, not '-5'",
        ),
        (
            "daemon logs --lines x",
            "--lines must be a number of lines from 0 to 4294967295, not 'x'",
        ),
        ("daemon logs --lines", "--lines requires a value: --lines N"),
        ("daemon start --port 99999", "--port must be a port number from 0 to 65535, not '99999'"),
        ("daemon start --port +5", "--port must be a port number from 0 to 65535, not '+5'"),
        ("daemon start --port 1 --port 2", "--port was given twice"),
        ("daemon start now", "unexpected argument 'now'"),
        (
            "daemon stop --timeout 86401",
            "--timeout must be a number of seconds from 0 to 86400, not '86401'",
        ),
        ("daemon logs --level loud", "--level must be debug, info, warn or error, not 'loud'"),
        ("daemon restart --if-idle --force", "--if-idle and --force cannot be used together"),
        ("completions", "SHELL is missing"),
        ("sessions", "'sessions' requires a command: list, show, export, grep, verify, rm"),
        ("sessions show", "ID is missing"),
        ("sessions rm --force", "ID is missing"),
        ("do", "TASK is missing"),
        ("do --auto --yolo x", "--auto and --yolo cannot be used together"),
        ("do --json --events x", "--json and --events cannot be used together"),
        ("chat --resume a --continue", "--resume and --continue cannot be used together"),
        ("do -c -r a x", "--resume and --continue cannot be used together"),
        ("do --continue=all x", "--continue must be any, or have no value, not 'all'"),
        ("chat hello", "unexpected argument 'hello'"),
        ("doctor --fix", "unknown option '--fix'"),
        ("sessions show a b", "only one ID is accepted: unexpected argument 'b'"),
        ("sessions list a", "unexpected argument 'a'"),
        ("sessions export a --format xml", "--format must be json or markdown, not 'xml'"),
        (
            "sessions list --limit 0",
            "--limit must be a number of sessions from 1 to 4294967295, not '0'",
        ),
        ("completions tcsh", "SHELL must be one of bash, zsh, fish, not 'tcsh'"),
        ("--jsn daemon status", "unknown option '--jsn'"),
    ] {
        assert_eq!(refused(line), message, "{line}");
    }
}

#[test]
fn an_operand_is_accepted_anywhere_after_the_words() {
    let id = || "sess_1".to_owned();
    let markdown = SessionsCommand::Export { id: id(), format: ExportFormat::Markdown };
    for (line, asked) in [
        ("sessions list", SessionsCommand::List { limit: limits::SESSIONS_PAGE_DEFAULT }),
        ("sessions list --limit=7 --json", SessionsCommand::List { limit: 7 }),
        ("sessions show sess_1 --json", SessionsCommand::Show { id: id() }),
        ("sessions show -- -sess", SessionsCommand::Show { id: "-sess".to_owned() }),
        ("sessions export sess_1 --format markdown", markdown),
        (
            "sessions export sess_1",
            SessionsCommand::Export { id: id(), format: ExportFormat::Json },
        ),
        ("sessions verify", SessionsCommand::Verify { id: None }),
        ("sessions verify sess_1", SessionsCommand::Verify { id: Some(id()) }),
        ("sessions rm --force sess_1", SessionsCommand::Remove { id: id(), force: true }),
    ] {
        assert_eq!(parsed(line).unwrap().0, Command::Sessions(asked), "{line}");
    }
}

#[test]
fn a_task_is_all_of_its_words() {
    let task = |line: &str| match parsed(line).unwrap().0 {
        Command::Do(asked) => (asked.task, asked.grant, asked.output),
        other => panic!("{other:?}"),
    };
    let plain = |text: &str| (text.to_owned(), Grant::Settings, TaskOutput::Full);
    assert_eq!(task("do count the lines"), plain("count the lines"));
    assert_eq!(task("do count -- --all"), plain("count --all"));
    assert_eq!(task("do -"), plain("-"));
    assert_eq!(task("do a --auto b -q"), ("a b".to_owned(), Grant::Edits, TaskOutput::Quiet));
    let lines = parse(["do", "one\n\ttwo"].map(OsString::from).to_vec()).unwrap().0;
    assert!(matches!(lines, Command::Do(DoArgs { task, .. }) if task == "one\n\ttwo"));
}

#[test]
fn a_session_is_chosen_with_long_and_short_options() {
    let chosen = |line: &str| match parsed(line).unwrap().0 {
        Command::Do(DoArgs { session, .. }) | Command::Chat(ChatArgs { session, .. }) => session,
        other => panic!("{other:?}"),
    };
    assert_eq!(chosen("do x"), SessionChoice::New);
    for (line, choice) in [
        ("chat -c", SessionChoice::Latest),
        ("do -cq -mname x", SessionChoice::Latest),
        ("do --continue x", SessionChoice::Latest),
        ("do --continue=any x", SessionChoice::LatestAnywhere),
        ("chat --continue=any", SessionChoice::LatestAnywhere),
        ("chat -r last", SessionChoice::Resume("last".to_owned())),
        ("do -r ab x", SessionChoice::Resume("ab".to_owned())),
    ] {
        assert_eq!(chosen(line), choice, "{line}");
    }
}

#[test]
fn the_usage_line_shows_which_operand_is_optional() {
    let usage_of = |line: &str| match parsed(&format!("{line} --help")).unwrap().0 {
        Command::Print(text) => text.split("\n\n").next().unwrap().replace("\n            ", " "),
        other => panic!("{other:?}"),
    };
    assert_eq!(usage_of("sessions show"), "Usage: opta sessions show [--json] ID");
    assert_eq!(usage_of("sessions verify"), "Usage: opta sessions verify [--json] [ID]");
    assert_eq!(usage_of("completions"), "Usage: opta completions SHELL");
    assert!(usage_of("do").ends_with(" [--continue[=any]] [--resume ID] TASK..."));
}

#[test]
fn an_option_without_a_value_refuses_one() {
    assert!(refused("daemon logs --follow=yes").contains("--follow"));
}

#[test]
fn every_command_has_help_however_it_is_asked_for() {
    for subcommand in SUBCOMMANDS {
        let line = subcommand.words.join(" ");
        for line in [format!("{line} --help"), format!("{line} -h"), format!("help {line}")] {
            let Command::Print(text) = parsed(&line).unwrap().0 else {
                panic!("{line} is not help");
            };
            assert!(text.starts_with(&format!("Usage: opta {}", subcommand.words.join(" "))));
            for option in subcommand.options {
                assert!(text.contains(&spelling(option)), "{line}: {}", option.long);
            }
        }
    }
    let usage_of = |line: &str| match parsed(line).unwrap().0 {
        Command::Print(text) => text.lines().next().unwrap().to_owned(),
        other => panic!("{other:?}"),
    };
    for line in ["", "--help", "help", "help --help", "help -h", "help help"] {
        assert_eq!(usage_of(line), "Usage: opta COMMAND [OPTION]...", "{line}");
    }
    for line in ["daemon --help", "help daemon", "help daemon --help"] {
        assert_eq!(usage_of(line), "Usage: opta daemon COMMAND [OPTION]...", "{line}");
    }
    assert_eq!(
        refused("help daemon strat"),
        "unknown command 'daemon strat'; did you mean 'daemon start'?"
    );
}

#[test]
fn the_seconds_to_wait_have_a_default_and_a_limit() {
    let wait = |line: &str| match parsed(line).unwrap().0 {
        Command::Status(status) => status.wait,
        other => panic!("{other:?}"),
    };
    assert_eq!(wait("daemon status"), None);
    assert_eq!(wait("daemon status --wait"), Some(limits::START_MAX));
    assert_eq!(wait("daemon status --wait=86400"), Some(Duration::from_secs(86_400)));
    refused("daemon status --wait=86401");
}

#[test]
fn no_word_is_offered_twice() {
    for words in [&[][..], &["daemon"], &["sessions"]] {
        let mut next = next_words(words);
        let count = next.len();
        next.sort_unstable();
        next.dedup();
        assert_eq!(next.len(), count, "{words:?}");
    }
}
