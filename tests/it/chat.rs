//! `opta chat`: with a script, with a person at a terminal, and with a daemon that comes and goes.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use crate::model::Model;
use crate::support::{ANYTHING, Home, Run, Running, STOPPED, eventually, fifo, need, signal};

const RESUME: &str = "opta: to resume: opta chat --resume {id}\n";

fn chat<'h>(home: &'h Home, model: &Model, words: &str) -> Run<'h> {
    home.opta(&format!("chat {words}")).env("OPTA_MODEL_URL", model.url())
}

/// A pipe to write lines to, which stays open.
fn lines(home: &Home) -> (PathBuf, File) {
    let path = home.beside("lines");
    fifo(&path);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    (path, file)
}

#[test]
fn each_line_of_a_script_is_a_turn() {
    let (home, model) = (Home::new(), Model::new());
    let script = home.beside("script");
    home.write(&script, "first\n\n  second\twith blanks  \nlast, without an end");
    let running = chat(&home, &model, "").input(&script).stdout("1\n2\n3\n").stderr(RESUME).spawn();
    model.question().answer("1");
    let question = model.question();
    assert!(question.body.contains(r"  second\twith blanks  "), "{}", question.body);
    question.answer("2\\n");
    let question = model.question();
    for said in ["first", "last, without an end"] {
        assert!(question.body.contains(said), "{said}: {}", question.body);
    }
    question.answer("3");
    running.finish();
    home.opta("sessions list").stdout("sess_{x} {*} 3 turns  first\n").run();
}

#[test]
fn nothing_said_leaves_nothing() {
    let (home, model) = (Home::new(), Model::new());
    chat(&home, &model, "").run();
    home.opta("sessions list").stderr("opta: there are no sessions yet\n").run();
    let none = "opta: cannot continue: there is no session yet\nto start one: opta chat\n";
    chat(&home, &model, "--continue").stderr(none).status(1).run();
}

#[test]
fn after_a_restart_it_goes_on_with_all_that_was_said() {
    let (home, model) = (Home::new(), Model::new());
    let once = || chat(&home, &model, "--once").arg("the word is plum");
    let running = once().stdout("noted\n").stderr(RESUME).spawn();
    model.question().answer("noted");
    let seen = running.finish();
    home.opta("daemon stop").stdout(STOPPED).run();
    for words in ["--continue".to_owned(), format!("--resume {}", seen.get("id"))] {
        let running = chat(&home, &model, &format!("{words} --once which?"));
        let running = running.stdout("plum\n").stderr(RESUME).with("id", seen.get("id")).spawn();
        let question = model.question();
        for said in ["the word is plum", "noted", "which?"] {
            assert!(question.body.contains(said), "{said}: {}", question.body);
        }
        question.answer("plum");
        running.finish();
    }
}

#[test]
fn the_session_used_last_is_gone_on_with_not_the_newest() {
    let (home, model) = (Home::new(), Model::new());
    let say = |words: &str| {
        let running = chat(&home, &model, words).stdout("yes\n").stderr(RESUME).spawn();
        model.question().answer("yes");
        running.finish().get("id").to_owned()
    };
    let first = say("--once one");
    let second = say("--once two");
    assert_ne!(first, second);
    assert_eq!(say("--continue --once three"), second);
    assert_eq!(say(&format!("--resume {first} --once four")), first);
    assert_eq!(say("--continue --once five"), first);
}

#[test]
fn a_daemon_killed_between_two_lines_costs_one_line() {
    let (home, model) = (Home::new(), Model::new());
    let (path, mut typed) = lines(&home);
    let said = format!("opta: daemon had crashed (pid {{old}}), restarted (pid {{pid}})\n{RESUME}");
    let running = chat(&home, &model, "").input(&path).stdout("1\n2\n").stderr(&said).spawn();
    writeln!(typed, "one").unwrap();
    model.question().answer("1");
    eventually("the answer is there", || running.output() == "1\n");
    home.crash();
    writeln!(typed, "two").unwrap();
    let question = model.question();
    assert!(question.body.contains("one"), "{}", question.body);
    question.answer("2");
    eventually("the answer is there", || running.output() == "1\n2\n");
    writeln!(typed, "/exit").unwrap();
    running.finish();
}

#[test]
fn a_daemon_killed_during_an_answer_interrupts_it_and_the_chat_goes_on() {
    let (home, model) = (Home::new(), Model::new());
    let (path, mut typed) = lines(&home);
    let said = format!(
        "opta: daemon had crashed (pid {{old}}), restarted (pid {{pid}})\n\
         opta: cannot finish the turn: {{why}} (interrupted)\n{RESUME}"
    );
    let running = chat(&home, &model, "").input(&path).stdout("so far\n2\n").stderr(&said);
    let running = running.status(1).spawn();
    writeln!(typed, "one").unwrap();
    let mut question = model.question();
    question.say("so far");
    eventually("the answer begins", || running.output() == "so far");
    // Not waited for: the next daemon may have the lock at once.
    signal(home.owner().unwrap(), "KILL");
    writeln!(typed, "two").unwrap();
    let second = model.question();
    assert!(second.body.contains("two"), "{}", second.body);
    second.answer("2");
    eventually("the answer is there", || running.output() == "so far\n2\n");
    writeln!(typed, "/exit").unwrap();
    running.finish();
    model.assert_not_asked();
}

/// A person at a terminal. What is written to `keys` is typed.
struct Person {
    keys: File,
    window: Running,
    modes: [PathBuf; 2],
}

impl Person {
    /// One with the prompt of `chat` before them, in a terminal whose modes are looked at before
    /// and after, and its exit status.
    #[track_caller]
    fn talking(home: &Home, model: &Model) -> Person {
        let (path, keys) = lines(home);
        let modes = ["before", "after"].map(|name| home.beside(name));
        let [before, after] = modes.each_ref().map(|path| path.display().to_string());
        let inner = home.beside("inner");
        home.write(
            &inner,
            format!(
                "trap : INT\nstty -g >'{before}'\nopta chat\nstatus=$?\nstty -g >'{after}'\n\
                 echo \"status=$status\"\n"
            ),
        );
        let command = format!("exec sh '{}'", inner.display());
        let window = home.sh(r#"exec script -qec "$COMMAND" /dev/null"#).env("COMMAND", command);
        let window = window.env("SHELL", "/bin/sh").env("TERM", "xterm");
        let window = window.env("OPTA_MODEL_URL", model.url()).input(&path).stdout(ANYTHING);
        let person = Person { keys, window: window.spawn(), modes };
        person.sees("> ");
        person
    }

    fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until this has been shown.
    #[track_caller]
    fn sees(&self, text: &str) {
        eventually(&format!("{text:?} is shown"), || self.window.output().contains(text));
    }

    /// The end: what was shown in all.
    #[track_caller]
    fn leaves(self, status: i32) -> String {
        let seen = self.window.finish();
        assert!(seen.stdout.contains(&format!("status={status}\r\n")), "{}", seen.stdout);
        let [before, after] = self.modes.map(|path| fs::read_to_string(path).unwrap());
        assert_eq!(before, after, "the terminal was changed");
        seen.stdout
    }
}

#[test]
fn at_a_terminal_there_is_a_prompt_and_ctrl_d_leaves() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut person = Person::talking(&home, &model);
    person.types("hello\n");
    let mut question = model.question();
    person.sees("… waiting 0s");
    question.say("Hi \\u001b[31mthere");
    person.sees("Hi \\u{1b}[31mthere");
    question.end();
    person.types("/help\n");
    person.sees("/sessions  list the sessions");
    person.types("/nonsense\n");
    person.sees("unknown command '/nonsense'");
    person.types("\x04");
    let shown = person.leaves(0);
    assert!(shown.contains("opta: to resume: opta chat --resume sess_"), "{shown}");
}

#[test]
fn at_a_terminal_ctrl_c_cancels_and_twice_leaves() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut person = Person::talking(&home, &model);
    person.types("hello\n");
    let mut question = model.question();
    question.say("so far");
    person.sees("so far");
    person.types("\x03");
    person.sees("opta: the turn was cancelled");
    question.assert_dropped();
    // It goes on.
    person.types("again\n");
    model.question().answer("second answer");
    // Before the prompt it would be meant for the turn.
    person.sees("second answer\r\n> ");
    person.types("\x03");
    person.sees("press Ctrl-C again to exit");
    person.types("\x03");
    person.leaves(130);
}

#[test]
fn at_a_terminal_permissions_are_asked_for() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut person = Person::talking(&home, &model);
    person.types("test it\n");
    let asked = |count: usize, person: &Person| {
        let question = r#"Allow run_command "true 1"? [y]es / [n]o / [a]lways "#;
        eventually("it is asked", || person.window.output().matches(question).count() == count);
    };
    let run = |model: &Model| {
        model.question().call("run_command", r#"{\"command\":\"true 1\"}"#);
    };
    run(&model);
    asked(1, &person);
    person.types("perhaps\n");
    asked(2, &person);
    person.types("n\n");
    model.question().call("run_command", r#"{\"command\":\"true 1\"}"#);
    asked(3, &person);
    person.types("always\n");
    // From now on nobody is asked.
    model.question().call("run_command", r#"{\"command\":\"true 2\"}"#);
    model.question().answer("all done");
    person.sees("all done");
    person.types("/exit\n");
    let shown = person.leaves(0);
    assert_eq!(shown.matches("[a]lways").count(), 3, "{shown}");
    assert!(shown.contains("> run_command true 2"), "{shown}");
}

#[test]
fn at_a_terminal_a_change_is_shown_before_it_is_asked_about() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut person = Person::talking(&home, &model);
    person.types("write it\n");
    let lines: Vec<String> = (1..=30).map(|number| format!("line {number}")).collect();
    let content = lines.join("\\\\n");
    let arguments = format!(r#"{{\"path\":\"evil\\u202etxt\",\"content\":\"{content}\"}}"#);
    model.question().call("write_file", &arguments);
    let question = r#"Allow write_file "evil\u{202e}txt"? [y]es / [n]o / [a]lways"#;
    person.sees(&format!("+ line 20\r\n… and 11 more lines\r\n{question} / [s]how all "));
    person.types("s\n");
    person.sees(&format!("+ line 30\r\n\\ no line end\r\n{question} "));
    person.types("n\n");
    // What it is not called on cannot stand in the question, for then it is not asked.
    let odd = r#"{\"path\":\"a\",\"content\":\"x\",\"command\":\"make test\"}"#;
    model.question().call("write_file", odd);
    let told = model.question();
    assert!(told.body.contains(r#"there is no \"command\""#), "{}", told.body);
    told.answer("done");
    person.sees("done");
    person.types("/exit\n");
    let shown = person.leaves(0);
    assert_eq!(shown.matches("line 21").count(), 1, "{shown}");
}

#[test]
fn at_a_terminal_ctrl_c_cancels_what_waits_for_a_permission() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut person = Person::talking(&home, &model);
    person.types("test it\n");
    model.question().call("run_command", r#"{\"command\":\"true\"}"#);
    person.sees("[a]lways");
    person.types("\x03");
    person.sees("opta: the turn was cancelled");
    person.types("\x04");
    person.leaves(0);
    model.assert_not_asked();
}

#[test]
fn a_signal_ends_a_script_with_130_and_its_turn() {
    let (home, model) = (Home::new(), Model::new());
    let (path, mut typed) = lines(&home);
    let running = chat(&home, &model, "").input(&path).stdout("a\n").stderr(ANYTHING).status(130);
    let running = running.spawn();
    writeln!(typed, "one").unwrap();
    let mut question = model.question();
    question.say("a");
    eventually("the answer begins", || running.output() == "a");
    signal(running.pid(), "INT");
    running.finish();
    question.assert_dropped();
}

#[test]
fn a_request_to_end_ends_a_script_between_and_within_its_turns() {
    for (name, status, within) in [("TERM", 143, true), ("TERM", 143, false), ("HUP", 129, true)] {
        let (home, model) = (Home::new(), Model::new());
        let (path, mut typed) = lines(&home);
        let running = chat(&home, &model, "").input(&path).stdout("a\n").stderr(ANYTHING);
        let running = running.status(status).spawn();
        writeln!(typed, "one").unwrap();
        let mut question = model.question();
        question.say("a");
        eventually("the answer begins", || running.output() == "a");
        if within {
            signal(running.pid(), name);
            running.finish();
            question.assert_dropped();
        } else {
            question.end();
            eventually("the answer ends", || running.output() == "a\n");
            signal(running.pid(), name);
            running.finish();
        }
    }
}

#[test]
fn at_a_terminal_a_request_to_end_cancels_and_leaves() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut person = Person::talking(&home, &model);
    person.types("hello\n");
    let mut question = model.question();
    question.say("so far");
    person.sees("so far");
    let daemon = home.owner();
    let client = home.processes().into_iter().find(|pid| Some(*pid) != daemon).unwrap();
    signal(client, "TERM");
    let shown = person.leaves(143);
    question.assert_dropped();
    assert!(shown.contains("opta: to resume: opta chat --resume sess_"), "{shown}");
}

#[test]
fn a_script_may_have_the_line_ends_of_another_system() {
    let (home, model) = (Home::new(), Model::new());
    let script = home.beside("script");
    home.write(&script, "first\r\n\r\nsecond\r\r\n/exit\r\n");
    let running = chat(&home, &model, "").input(&script).stdout("1\n2\n").stderr(RESUME).spawn();
    let question = model.question();
    assert!(question.body.contains(r#""first""#), "{}", question.body);
    question.answer("1");
    let question = model.question();
    assert!(question.body.contains(r#""second\r""#), "{}", question.body);
    question.answer("2");
    running.finish();
}

#[test]
fn a_line_that_cannot_be_said_ends_a_script_and_is_named() {
    for (line, why) in [
        (b"\xff".to_vec(), "it is not UTF-8"),
        (vec![b'x'; (3 << 20) + 1], "it is longer than 3145728 bytes"),
    ] {
        let (home, model) = (Home::new(), Model::new());
        let script = home.beside("script");
        home.write(&script, [&b"first\n\n"[..], &line, b"\nlast\n"].concat());
        let said = format!("opta: cannot send line 3: {why}\n{RESUME}");
        let running = chat(&home, &model, "").input(&script).stdout("1\n").stderr(&said);
        let running = running.status(1).spawn();
        model.question().answer("1");
        running.finish();
        model.assert_not_asked();
    }
}

#[test]
fn at_a_terminal_a_line_that_cannot_be_said_is_no_end() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut person = Person::talking(&home, &model);
    person.keys.write_all(b"\xff\n").unwrap();
    person.sees("opta: cannot send this line: it is not UTF-8\r\n> ");
    person.types("hello\n");
    model.question().answer("Hi");
    person.sees("Hi\r\n> ");
    person.types("\x04");
    person.leaves(0);
}

#[test]
fn at_a_terminal_a_tool_that_runs_is_said_to() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let gate = home.beside("gate");
    fifo(&gate);
    home.write(&home.config(), r#"{"permissions":{"run_command":"allow"}}"#);
    let mut person = Person::talking(&home, &model);
    person.types("hello\n");
    let question = model.question();
    person.sees("… waiting 0s");
    question.call("run_command", r#"{\"command\":\"read x <gate\"}"#);
    person.sees("… running 0s");
    drop(File::options().write(true).open(&gate).unwrap());
    model.question().answer("Hi");
    person.sees("Hi\r\n> ");
    person.types("\x04");
    person.leaves(0);
}

#[test]
fn at_a_terminal_the_line_ends_of_another_system_are_line_ends() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut person = Person::talking(&home, &model);
    person.types("hello\n");
    let mut question = model.question();
    question.say("one\\r");
    question.say("\\ntwo\\r\\nthree\\rfour\\r");
    question.end();
    person.sees("one\r\ntwo\r\nthree\\rfour\\r\r\n> ");
    person.types("\x04");
    person.leaves(0);
}
