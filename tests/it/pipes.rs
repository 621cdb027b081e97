//! `opta do` between pipes: what is piped into it, who is asked then, and what several of them
//! write to one pipe.

use std::fs::{self, File};
use std::io::Read;
use std::thread;

use crate::model::{Model, Question};
use crate::support::{
    ANYTHING, DEADLINE, Home, Run, Running, eventually, fifo, line_of, need, signal,
};
use crate::task::task;
use crate::user::User;

/// Runs a script with a model.
fn script<'h>(home: &'h Home, model: &Model, script: &str) -> Run<'h> {
    home.sh(script).env("OPTA_MODEL_URL", model.url())
}

#[test]
fn what_is_piped_in_joins_the_task() {
    let (home, model) = (Home::new(), Model::new());
    let joined = |input: &str| format!(r"explain this\n\nStandard input:\n\n```\n{input}\n```\n");
    home.write(&home.beside("file"), "a\tb\n\n");
    home.write(&home.beside("empty"), "");
    let plain = || "explain this".to_owned();
    for (line, sent) in [
        ("printf 'line 1\\nline 2\\n' | opta do explain this", joined(r"line 1\nline 2")),
        ("printf 'no end' | opta do explain this", joined("no end")),
        ("opta do explain this <file", joined(r"a\tb\n")),
        ("opta do explain this <empty", plain()),
        (": | opta do explain this", plain()),
        ("opta do explain this </dev/null", plain()),
        ("opta do explain this <&-", plain()),
        ("echo 'the whole task' | opta do -", r"the whole task\n".to_owned()),
    ] {
        let running = script(&home, &model, line).stdout("yes\n").spawn();
        model.gets(&sent).answer("yes");
        running.finish();
    }
}

#[test]
fn the_title_of_a_session_is_the_task_without_its_input() {
    let (home, model) = (Home::new(), Model::new());
    let line = "printf 'some error\\n' | opta do 'explain\n\nthis'";
    let running = script(&home, &model, line).stdout("yes\n").spawn();
    model.question().answer("yes");
    running.finish();
    let list = home.opta("sessions list --json").stdout(ANYTHING).run().stdout;
    assert!(list.contains(r#""title":"explain this","#), "{list}");
}

#[test]
fn input_that_cannot_be_sent_is_named_and_nothing_is_run() {
    let home = Home::new();
    let usage = "Usage: opta do - <FILE, or opta do TASK <FILE\n";
    for (line, refused) in [
        (r"printf 'ab\377' | opta do x", "the input is not UTF-8: its byte 3 is not"),
        (r"printf '\377' | opta do -", "the task is not UTF-8: its byte 1 is not"),
        (
            "head -c 3145729 /dev/zero | tr '\\0' x | opta do x",
            "the input is longer than 3145728 bytes",
        ),
        (
            "head -c 3145728 /dev/zero | tr '\\0' x | opta do x",
            "the task with its input is longer than 3145728 bytes",
        ),
    ] {
        home.sh(line).stderr(&format!("opta: {refused}\n{usage}")).status(2).run();
    }
    home.assert_nothing_left();
}

#[test]
fn input_that_takes_long_is_announced_and_a_socket_without_any_is_ignored() {
    need!("python3");
    let (home, model) = (Home::new(), Model::new());
    let (go, notes) = (home.beside("go"), home.beside("notes"));
    fifo(&go);
    let mut held = File::options().read(true).write(true).open(&go).unwrap();
    let line = r#"{ read -r line <"$GO"; echo "$line"; } | opta do x 2>"$NOTES""#;
    let running = script(&home, &model, line).env("GO", &go).env("NOTES", &notes);
    let running = running.stdout("yes\n").spawn();
    let announced = "opta: waiting for the end of standard input, a part of the task; \
                     without it: </dev/null\n";
    eventually("the wait is announced", || {
        fs::read_to_string(&notes).is_ok_and(|text| text == announced)
    });
    std::io::Write::write_all(&mut held, b"late\n").unwrap();
    model.gets(r"x\n\nStandard input:\n\n```\nlate\n```\n").answer("yes");
    running.finish();

    let program = "import socket, subprocess, sys\na, b = socket.socketpair()\n\
                   sys.exit(subprocess.call(sys.argv[1:], stdin=b))\n";
    home.write(&home.beside("with_socket.py"), program);
    let ignored = "opta: nothing arrives on standard input; the task is run without it\n";
    for (words, note) in [("x", ignored), ("-q x", "")] {
        let line = format!("python3 with_socket.py opta do {words}");
        let running = script(&home, &model, &line).stdout("yes\n").stderr(note).spawn();
        model.gets("x").answer("yes");
        running.finish();
    }
}

#[test]
fn with_input_from_a_pipe_questions_are_answered_on_the_terminal() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    for (answer, is_there) in [("y\n", true), ("n\n", false)] {
        let line = "sh -c 'echo data | opta do change'";
        let mut user = User::before(&home, &model, line, "TERM=xterm");
        model
            .gets(r"change\n\nStandard input:\n\n```\ndata\n```\n")
            .call("write_file", r#"{\"path\":\"new\",\"content\":\"text\"}"#);
        user.sees("Allow write_file \"new\"?");
        user.types(answer);
        model.question().answer("done");
        user.exits(0);
        assert_eq!(home.beside("new").exists(), is_there);
        drop(fs::remove_file(home.beside("new")));
    }
    // What has no input is a script that wants no questions.
    let line = "sh -c 'opta do change </dev/null'";
    let user = User::before(&home, &model, line, "TERM=xterm");
    model.question().call("write_file", r#"{\"path\":\"new\",\"content\":\"text\"}"#);
    let question = model.question();
    assert!(question.body.contains("nobody is there to be asked"), "{}", question.body);
    question.answer("done");
    user.exits(0);
}

#[test]
fn a_denied_call_says_once_how_to_allow_it() {
    let (home, model) = (Home::new(), Model::new());
    let write = r#"{\"path\":\"new\",\"content\":\"text\"}"#;
    let calls = |words: &str, stderr: &str| {
        let running = task(&home, &model, words).stdout("done\n").stderr(stderr).spawn();
        model.question().call("write_file", write);
        model.question().call("write_file", &write.replace("new", "newer"));
        model.question().call("run_command", r#"{\"command\":\"true\"}"#);
        model.question().answer("done");
        running.finish();
    };
    calls(
        "change",
        "> write_file new\n\
         opta: a change was denied, because nobody could be asked; \
         to allow changes to files: opta do --auto\n\
         > write_file newer\n> run_command true\n\
         opta: a command was denied, because nobody could be asked; \
         to allow some: 'permissions' in config.json, to allow all: opta do --yolo\n",
    );
    calls("-q change", "");
    assert!(!home.beside("new").exists());
    calls("-q --yolo change", "");
    assert!(home.beside("new").exists());
}

#[test]
fn quiet_prints_the_answer_and_errors_only() {
    let (home, model) = (Home::new(), Model::new());
    home.start();
    home.crash();
    let running = task(&home, &model, "-q --yolo x").stdout("yes\n").spawn();
    model.question().answer("yes");
    running.finish();
    let failed = "opta: cannot finish the turn: {why} (model-disconnected)\n";
    let running = task(&home, &model, "-q x").stdout("half\n").stderr(failed).status(1).spawn();
    let mut question = model.question();
    question.say("half");
    drop(question);
    running.finish();
}

/// Runs two tasks that write to one pipe. The first one has written `1a `.
fn two_on_one_pipe(home: &Home, model: &Model) -> (Running, Question, Question) {
    let line = "{ opta do one & opta do two & wait; } 2>&1 | cat";
    let running = script(home, model, line).stdout(ANYTHING).spawn();
    let mut questions = [model.question(), model.question()];
    questions.sort_by_key(|question| question.body.contains(r#""content":"two""#));
    let [mut one, two] = questions;
    one.say("1a ");
    eventually("the first piece is not held back", || running.output() == "1a ");
    (running, one, two)
}

#[test]
fn two_tasks_on_one_pipe_do_not_mix_within_a_line() {
    need!("/proc");
    let (home, model) = (Home::new(), Model::new());
    home.start();
    let (running, mut one, mut two) = two_on_one_pipe(&home, &model);
    two.say("2a ");
    wait_for_journals(&home, "2a ");
    one.say(r"1b\n1c ");
    eventually("the line ends", || running.output().starts_with("1a 1b\n"));
    two.answer(r"2b\n2c");
    wait_for_journals(&home, "2b");
    one.answer("1d");
    let seen = running.finish();
    let mut lines: Vec<&str> = seen.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["1a 1b", "1c 1d", "2a 2b", "2c"]);
}

#[test]
fn a_line_that_waited_for_a_pipe_is_written_before_the_next_event() {
    need!("/proc");
    let (home, model) = (Home::new(), Model::new());
    home.start();
    let (running, mut one, mut two) = two_on_one_pipe(&home, &model);
    two.say(r"2a\n");
    wait_for_journals(&home, "2a");
    one.say(r"1b\n");
    // Both models are silent now.
    eventually("both lines are written", || running.output() == "1a 1b\n2a\n");
    one.say(r"1c\n");
    eventually("the lock is free", || running.output() == "1a 1b\n2a\n1c\n");
    two.end();
    one.end();
    running.finish();
}

#[test]
fn a_second_signal_does_not_make_a_client_busy_that_waits_for_a_pipe() {
    need!("/proc");
    let (home, model) = (Home::new(), Model::new());
    home.start();
    let two = "opta do two & echo $! >pid; wait $! || times >times; sed -n 2p times >used";
    fifo(&home.beside("pid"));
    fifo(&home.beside("used"));
    let line = format!("{{ opta do one & ({two}) & wait; }} 2>&1 | cat");
    let running = script(&home, &model, &line).stdout(ANYTHING).spawn();
    let mut questions = [model.question(), model.question()];
    questions.sort_by_key(|question| question.body.contains(r#""content":"two""#));
    let [mut one, mut two] = questions;
    one.say("1a ");
    eventually("the first piece is not held back", || running.output() == "1a ");
    two.say(r"2a\n");
    wait_for_journals(&home, "2a");
    let pid = line_of(&home.beside("pid")).parse().unwrap();
    signal(pid, "TERM");
    wait_for_journals(&home, "cancelled");
    signal(pid, "HUP");
    // It waited two seconds for the pipe.
    let used = line_of(&home.beside("used"));
    one.end();
    assert_eq!(running.finish().stdout, "1a \n");
    let seconds = |time: &str| time.strip_prefix("0m")?.strip_suffix('s')?.parse::<f64>().ok();
    let sum: f64 = used.split(' ').filter_map(seconds).sum();
    assert!(sum < 0.3, "{used}");
}

/// Waits until a text of the model is in a journal.
fn wait_for_journals(home: &Home, text: &str) {
    let sessions = home.path().join(".config/opta/sessions");
    eventually("the text is in a journal", || {
        let folders = fs::read_dir(&sessions).into_iter().flatten();
        let journals = folders.map(|entry| entry.unwrap().path().join("journal.jsonl"));
        journals.into_iter().any(|path| fs::read_to_string(path).is_ok_and(|j| j.contains(text)))
    });
}

#[test]
fn lines_longer_than_a_pipe_holds_are_not_mixed() {
    need!("/proc");
    let (home, model) = (Home::new(), Model::new());
    home.start();
    let pipe = home.beside("pipe");
    fifo(&pipe);
    let held = File::options().read(true).write(true).open(&pipe).unwrap();
    let tasks: Vec<_> = ["--json a", "--json b"]
        .map(|words| task(&home, &model, words).output(&pipe).spawn())
        .into();
    // A model that repeats itself would be asked again.
    let text: String = (0..40_000).map(|number| format!("{number} ")).collect();
    for question in [model.question(), model.question()] {
        question.answer(&text);
    }
    eventually("both turns are done", || {
        let list = home.opta("sessions list --json").stdout(ANYTHING).run().stdout;
        list.matches(r#""status":"idle""#).count() == 2 && list.matches(r#""turns":1"#).count() == 2
    });
    // Only now is anything read.
    let reading = move || {
        let mut all = Vec::new();
        let (mut held, mut chunk) = (held, [0; 4096]);
        while all.iter().filter(|byte| **byte == b'\n').count() < 2 {
            let count = held.read(&mut chunk).unwrap();
            all.extend_from_slice(&chunk[..count]);
        }
        String::from_utf8(all).unwrap()
    };
    let reading = thread::Builder::new().name("read a pipe".into()).spawn(reading).unwrap();
    for running in tasks {
        running.finish_within(DEADLINE);
    }
    for line in reading.join().unwrap().lines() {
        assert!(line.starts_with(r#"{"sessionId""#) && line.ends_with('}'), "a line is mixed");
        assert!(line.contains(&format!("\"{text}\"")), "a line is mixed");
    }
}
