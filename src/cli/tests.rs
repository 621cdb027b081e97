//! What can be typed, and what is said of what cannot.

use std::ffi::OsString;
use std::time::Duration;

use crate::error::Error;
use crate::limits;
use crate::log::Level;

use super::help::spelling;
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
        ("daemon logs --lines x", "--lines takes a number of lines from 0 to 4294967295, not 'x'"),
        ("daemon logs --lines", "--lines needs a value: --lines N"),
        ("daemon start --port 99999", "--port takes a port number from 0 to 65535, not '99999'"),
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
