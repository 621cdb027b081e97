//! Commands whose output is not read: a signal still reaches them, and a reader that continues gets
//! everything.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;

use crate::model::Model;
use crate::support::{
    ANYTHING, DEADLINE, Home, eventually, fifo, freeze, has_ended, need, signal, state_of,
};
use crate::task::task;
use crate::user::task_in_terminal;

#[test]
fn a_signal_reaches_a_command_whose_output_is_not_read() {
    for (words, name, status) in [("x", "INT", 130), ("x", "TERM", 143), ("--events x", "INT", 130)]
    {
        let (home, model) = (Home::new(), Model::new());
        let (pipe, _held) = full_pipe(&home);
        let running = task(&home, &model, words).output(&pipe).stderr(ANYTHING).status(status);
        let running = running.spawn();
        let mut question = model.question();
        question.say("so far");
        wait_for_journal(&home, "so far");
        signal(running.pid(), name);
        running.finish();
        question.assert_dropped();
    }
}

#[test]
fn a_signal_reaches_a_command_whose_json_is_not_read() {
    let (home, model) = (Home::new(), Model::new());
    let (pipe, _held) = full_pipe(&home);
    let running = task(&home, &model, "--json x").output(&pipe).stderr(ANYTHING).status(130);
    let running = running.spawn();
    model.question().answer("all of it");
    eventually("the turn is done", || {
        let list = home.opta("sessions list --json").stdout(ANYTHING).run().stdout;
        list.contains(r#""status":"idle""#) && list.contains(r#""turns":1"#)
    });
    signal(running.pid(), "INT");
    running.finish();
}

#[test]
fn a_reader_that_continues_after_a_signal_gets_everything() {
    for (words, name, status) in [("x", "TERM", 143), ("x", "INT", 130), ("--json x", "TERM", 143)]
    {
        let (home, model) = (Home::new(), Model::new());
        let pipe = home.beside("pipe");
        fifo(&pipe);
        // Held open, so the pipe has a reader.
        let _held = File::options().read(true).write(true).open(&pipe).unwrap();
        let running = task(&home, &model, words).output(&pipe).stderr(ANYTHING).status(status);
        let running = running.spawn();
        let mut question = model.question();
        let whole: String = (0..20).map(|number| numbers(number, 2_000) + " ").collect();
        for number in 0..20 {
            question.say(&(numbers(number, 2_000) + " "));
        }
        question.say("the end");
        wait_for_journal(&home, "the end\"");
        signal(running.pid(), name);
        let whole = whole + "the end";
        let last = if words == "x" { "end\n" } else { "}}\n" };
        eventually("the signal is taken", || !has_pending_signals(running.pid()));
        let read = read_until(&pipe, last);
        assert!(read.contains(&whole), "{} bytes came", read.len());
        running.finish();
        question.assert_dropped();
    }
}

/// Returns numbers that follow each other: a text that repeats itself would be stopped.
fn numbers(part: usize, count: usize) -> String {
    let numbers = part * count..(part + 1) * count;
    numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
}

/// Returns whether a signal is pending for a process. proc(5)
fn has_pending_signals(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = status.lines().filter_map(|line| line.strip_prefix("ShdPnd:"));
    pending.into_iter().any(|set| set.trim().bytes().any(|digit| digit != b'0'))
}

/// Reads from a pipe until `last` was read.
fn read_until(pipe: &Path, last: &str) -> String {
    let (path, last) = (pipe.to_owned(), last.as_bytes().to_vec());
    let (sender, receiver) = channel();
    let reading = move || {
        let mut pipe = File::options().read(true).write(true).open(path).unwrap();
        let mut chunk = [0; 4096];
        let mut all = Vec::new();
        while !all.ends_with(&last) {
            let count = pipe.read(&mut chunk).unwrap();
            all.extend(&chunk[..count]);
            // Fails if the test has ended.
            sender.send(all.len()).unwrap_or(());
        }
        String::from_utf8(all).unwrap()
    };
    let reading = thread::Builder::new().name("read a pipe".into()).spawn(reading).unwrap();
    let mut count = 0;
    loop {
        match receiver.recv_timeout(DEADLINE) {
            Ok(more) => count = more,
            Err(RecvTimeoutError::Disconnected) => return reading.join().unwrap(),
            Err(RecvTimeoutError::Timeout) => panic!("only {count} bytes were read"),
        }
    }
}

#[test]
fn a_signal_reaches_a_command_whose_messages_are_not_read() {
    need!("/proc");
    let (home, model) = (Home::new(), Model::new());
    let (pipe, _held) = full_pipe(&home);
    let run = |words: &str| {
        let script = format!("exec opta {words} 2>\"$PIPE\"");
        home.sh(&script).env("PIPE", &pipe).env("OPTA_MODEL_URL", model.url()).stdout(ANYTHING)
    };
    // The message: the answer is cut off.
    let running = run("do x").status(143).spawn();
    let mut question = model.question();
    question.say("half");
    question.end_because("length");
    eventually("the turn is done", || running.output() == "half\n");
    signal(running.pid(), "TERM");
    running.finish();
    // The message: the daemon was restarted.
    home.crash();
    let running = run("do x").status(143).spawn();
    eventually("the daemon runs", || home.owner().is_some());
    eventually("the message waits", || waits_with_sigterm_blocked(running.pid()));
    signal(running.pid(), "TERM");
    running.finish();
    // The message: the command is unknown.
    let input = home.beside("input");
    home.write(&input, "/nonsense\n");
    let running = run("chat").input(&input).status(143).spawn();
    eventually("the message waits", || waits_with_sigterm_blocked(running.pid()));
    signal(running.pid(), "TERM");
    running.finish();
}

/// Returns whether a process sleeps and blocks SIGTERM. While it forks, it blocks every signal for
/// a moment, but does not sleep. proc(5)
fn waits_with_sigterm_blocked(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let held = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let held = held.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    held.is_some_and(|set| set & (1 << (libc::SIGTERM - 1)) != 0) && state_of(pid) == Some('S')
}

#[test]
fn a_signal_reaches_a_command_whose_terminal_is_not_read() {
    need!("/proc", "script");
    for name in ["TERM", "INT"] {
        let (home, model) = (Home::new(), Model::new());
        home.start();
        let window = task_in_terminal(&home, &model).status_in(&[130, 143]).spawn();
        let mut question = model.question();
        question.say("begun\\n");
        eventually("the answer begins", || window.output().contains("begun"));
        let known = [Some(window.pid()), home.owner()];
        let client = home.processes().into_iter().find(|pid| !known.contains(&Some(*pid)));
        let client = client.unwrap();
        freeze(window.pid());
        for number in 0..32 {
            question.say(&(numbers(number, 1_600) + "\\n"));
        }
        question.say("the end");
        wait_for_journal(&home, "the end\"");
        signal(client, name);
        eventually("it ends", || has_ended(client));
        question.assert_dropped();
        signal(window.pid(), "CONT");
        window.finish();
    }
}

/// Creates a full pipe, which is not read as long as the file is held.
fn full_pipe(home: &Home) -> (PathBuf, File) {
    let pipe = home.beside("pipe");
    fifo(&pipe);
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let mut both = options.open(&pipe).unwrap();
    // A large write first: the capacity may be counted in bytes or in pages.
    for piece in [&[b'.'; 64 * 1024][..], b"."] {
        let full = loop {
            if let Err(error) = both.write_all(piece) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock, "{full}");
    }
    (pipe, both)
}

/// Waits until the model's text is in the journal.
fn wait_for_journal(home: &Home, text: &str) {
    let sessions = home.path().join(".config/opta/sessions");
    eventually("the text is in the journal", || {
        let folders = fs::read_dir(&sessions).into_iter().flatten();
        let journals = folders.map(|entry| entry.unwrap().path().join("journal.jsonl"));
        journals.into_iter().any(|path| fs::read_to_string(path).is_ok_and(|j| j.contains(text)))
    });
}
