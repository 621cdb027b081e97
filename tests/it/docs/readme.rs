//! The README is true: its transcript is what a terminal shows, and its settings load.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::model::Model;
use crate::page::Page;
use crate::support::{ANYTHING, Home, Running, eventually, fifo, need};

const NOTES: &str = "The meeting with Ada is on Tuesday at ten.\n";

/// Returns the README's first code block in this language, or in none.
fn block(language: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(path).unwrap();
    let fence = format!("\n```{language}\n");
    let (_, rest) = readme.split_once(&fence).unwrap_or_else(|| panic!("no block {language:?}"));
    rest.split_once("```\n").unwrap().0.to_owned()
}

/// A shell on a terminal, and the keys typed there.
struct Terminal {
    window: Running,
    keys: File,
}

impl Terminal {
    fn new(home: &Home, model: &Model) -> Terminal {
        let path = home.beside("keys");
        fifo(&path);
        let keys = File::options().read(true).write(true).open(&path).unwrap();
        let window = home.sh(r#"cd "$HOME"; exec script -qec "sh -i" /dev/null"#);
        let window = window.env("PS1", "$ ").env("SHELL", "/bin/sh").env("TERM", "dumb");
        let window = window
            .env("OPTA_MODEL_URL", model.url())
            .env("OPTA_MODEL", "qwen3")
            .input(&path)
            .stdout(ANYTHING);
        Terminal { window: window.spawn(), keys }
    }

    fn types(&mut self, line: &str) {
        self.keys.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Returns what the screen shows: text after a carriage return overwrites the line.
    fn screen(&self) -> String {
        let line = |line: &str| {
            let mut cells: Vec<char> = Vec::new();
            for part in line.trim_end_matches('\r').split('\r') {
                let rest = cells.split_off(cells.len().min(part.chars().count()));
                cells = part.chars().chain(rest).collect();
            }
            cells.into_iter().collect::<String>()
        };
        self.window.output().split('\n').map(line).collect::<Vec<_>>().join("\n")
    }

    /// Waits until the screen ends with `end`, and compares it with what the README shows.
    #[track_caller]
    fn shows(&self, expected: &str, end: &str) {
        let lines = expected.lines().count();
        eventually(&format!("line {lines} ends with {end:?}:\n{}", self.screen()), || {
            let screen = self.screen();
            screen.lines().count() >= lines && screen.ends_with(end)
        });
        assert_eq!(plain(&self.screen()), plain(expected));
    }
}

/// Replaces what differs from run to run by an ellipsis: pids, ports, times and ids.
pub fn plain(text: &str) -> String {
    let mut plain = text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    for before in ["pid=", "pid ", "port=", "port ", "uptime=", "entry is ", "sess_", "sess_… "] {
        let mut parts = plain.split(before);
        let mut replaced = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let value = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
            replaced += &format!("{before}…{}", part.trim_start_matches(value));
        }
        plain = replaced;
    }
    plain
}

/// Answers as the model after the user typed `line`.
fn answer(model: &Model, line: &str) {
    if line.starts_with("opta do ") {
        model.question().call("read_file", r#"{\"path\":\"notes.txt\"}"#);
        let edit = concat!(
            r#"{\"path\":\"notes.txt\","#,
            r#"\"old_text\":\"The meeting with Ada is on Tuesday at ten.\\n\","#,
            r#"\"new_text\":\"The meeting with Ada is on Wednesday at ten.\\n\"}"#
        );
        model.question().call("edit_file", edit);
    } else if line == "y" {
        model.question().answer("I moved the meeting to Wednesday.");
    } else if line.starts_with("opta chat ") {
        let question = model.question();
        // The session survived the crash.
        assert!(question.body.contains("I moved the meeting"), "{}", question.body);
        question.answer("With Ada, at ten.");
    }
}

#[test]
fn the_transcript_is_what_a_terminal_shows() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    home.write(&home.path().join("notes.txt"), NOTES);
    let mut terminal = Terminal::new(&home, &model);
    let mut expected = String::new();
    for line in block("").lines() {
        let (shown, typed) = match line.split_once("opta exits ") {
            Some((question, typed)) => (format!("{question}opta exits "), typed),
            None => match line.strip_prefix("$ ") {
                Some(command) => ("$ ".to_owned(), command),
                None => (format!("{line}\n"), ""),
            },
        };
        expected += &shown;
        if !typed.is_empty() {
            terminal.shows(&expected, &shown);
            terminal.types(typed);
            answer(&model, typed);
            expected += &format!("{typed}\n");
        }
        if typed.starts_with("kill -9 ") {
            home.wait_for_end();
        }
    }
    terminal.shows(&format!("{expected}$ "), "$ ");
    terminal.types("exit");
    let Terminal { window, .. } = terminal;
    window.finish();
    model.assert_not_asked();
}

#[test]
fn the_settings_of_the_examples_are_known_and_load() {
    let home = Home::new();
    let page = Page::read("opta-daemon.1").section("Configuration");
    let keys: Vec<String> = page.items().into_iter().map(|item| item.head).collect();
    let tools = page.marked("Cm");
    let is_known = |name: &str| {
        tools.iter().any(|tool| tool == name)
            || keys.iter().any(|key| key.split('.').any(|part| part == name))
    };
    for settings in [block("json"), page.literals().concat()] {
        // Every name before a colon: the program ignores unknown ones.
        for (name, after) in settings.split('"').zip(settings.split('"').skip(1)) {
            assert!(!after.starts_with(':') || is_known(name), "{name}: {settings}");
        }
        home.write(&home.config(), &settings);
        // Other checks may fail, such as that of the model.
        let seen = home.opta("doctor --json").status_in(&[0, 1]).stdout(ANYTHING).run();
        let check = seen.stdout.lines().find(|line| line.starts_with(r#"{"check":"settings","#));
        assert!(check.unwrap().contains(r#""status":"pass""#), "{check:?}: {settings}");
    }
}
