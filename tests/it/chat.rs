//! `opta chat`: with a script, with a user at a terminal, and with a daemon that crashes.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use crate::model::Model;
use crate::support::{ANYTHING, Home, Run, STOPPED, eventually, fifo, http, need, signal};
use crate::user::{User, signal_client};

const RESUME: &str = "opta: to resume: opta chat --resume {id}\n";

fn chat<'h>(home: &'h Home, model: &Model, words: &str) -> Run<'h> {
    home.opta(&format!("chat {words}")).env("OPTA_MODEL_URL", model.url())
}

/// Creates a pipe for lines, which stays open.
fn line_pipe(home: &Home) -> (PathBuf, File) {
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
    for text in ["first", "last, without an end"] {
        assert!(question.body.contains(text), "{text}: {}", question.body);
    }
    question.answer("3");
    running.finish();
    home.opta("sessions list").stdout("sess_{x} {*} 3 turns  scripted  {*}  first\n").run();
}

#[test]
fn a_chat_without_messages_creates_no_session() {
    let (home, model) = (Home::new(), Model::new());
    chat(&home, &model, "").run();
    home.opta("sessions list").stderr("opta: there are no sessions yet\n").run();
    let none = "opta: cannot continue: there is no session yet\nto start one: opta chat\n";
    chat(&home, &model, "--continue").stderr(none).status(1).run();
}

#[test]
fn a_resumed_chat_includes_all_earlier_messages_after_a_restart() {
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
        for text in ["the word is plum", "noted", "which?"] {
            assert!(question.body.contains(text), "{text}: {}", question.body);
        }
        question.answer("plum");
        running.finish();
    }
}

#[test]
fn continue_resumes_the_most_recently_used_session() {
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
fn a_daemon_killed_between_two_lines_loses_no_turn() {
    let (home, model) = (Home::new(), Model::new());
    let (path, mut typed) = line_pipe(&home);
    let notes =
        format!("opta: daemon had crashed (pid {{old}}), restarted (pid {{pid}})\n{RESUME}");
    let running = chat(&home, &model, "").input(&path).stdout("1\n2\n").stderr(&notes).spawn();
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
fn a_daemon_killed_during_an_answer_interrupts_only_that_turn() {
    let (home, model) = (Home::new(), Model::new());
    let (path, mut typed) = line_pipe(&home);
    let notes = format!(
        "opta: daemon had crashed (pid {{old}}), restarted (pid {{pid}})\n\
         opta: cannot finish the turn: {{why}} (interrupted)\n{RESUME}"
    );
    let running = chat(&home, &model, "").input(&path).stdout("so far\n2\n").stderr(&notes);
    let running = running.status(1).spawn();
    writeln!(typed, "one").unwrap();
    let mut question = model.question();
    question.say("so far");
    eventually("the answer begins", || running.output() == "so far");
    // Its end is not awaited: the next daemon may take the lock immediately.
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

#[test]
fn at_a_terminal_there_is_a_prompt_and_ctrl_d_exits() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types("hello\n");
    let mut question = model.question();
    user.sees("waiting ");
    question.say("Hi \\u001b[31mthere");
    user.sees("Hi \\u{1b}[31mthere");
    question.end();
    user.sees_prompt_after("Hi \\u{1b}[31mthere\n");
    user.types("/help\n");
    user.sees_prompt_after("/sessions       list the sessions");
    user.types("/nonsense\n");
    user.sees_prompt_after("unknown command '/nonsense'; see /help\n");
    user.types("\x04");
    let shown = user.exits(0);
    assert!(shown.contains("opta: to resume: opta chat --resume sess_"), "{shown}");
}

#[test]
fn at_a_terminal_ctrl_c_cancels_a_turn_and_pressed_twice_exits() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types("hello\n");
    let mut question = model.question();
    question.say("so far");
    user.sees("so far");
    user.types("\x03");
    user.sees_prompt_after("opta: the turn was cancelled\n");
    question.assert_dropped();
    // The chat is still there.
    user.types("again\n");
    model.question().answer("second answer");
    // Pressed before the prompt, it would be for the turn.
    user.sees_prompt_after("second answer\n");
    user.types("\x03");
    user.sees_prompt_after("press Ctrl-C again to exit (or Ctrl-D, /exit)\n");
    user.types("\x03");
    user.exits(130);
}

#[test]
fn at_a_terminal_the_user_is_asked_for_permissions() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types("test it\n");
    let asked = |count: usize, user: &User| {
        let question = "Allow run_command \"true 1\"?\n[y]es / [n]o / [a]lways every \
                        \"true 1 …\" until opta exits ";
        user.sees_that("the question", |shown| shown.matches(question).count() == count);
    };
    let run = |model: &Model| {
        model.question().call("run_command", r#"{\"command\":\"true 1\"}"#);
    };
    run(&model);
    asked(1, &user);
    user.types("perhaps\n");
    asked(2, &user);
    user.types("n\n");
    model.question().call("run_command", r#"{\"command\":\"true 1\"}"#);
    asked(3, &user);
    user.types("always\n");
    // From now on there is no question.
    model.question().call("run_command", r#"{\"command\":\"true 1 2\"}"#);
    // Only what was said is allowed.
    model.question().call("run_command", r#"{\"command\":\"true 1; true 2\"}"#);
    user.sees("Allow run_command \"true 1; true 2\"?\n[y]es / [n]o / [a]lways this command");
    user.types("n\n");
    model.question().answer("all done");
    user.sees_prompt_after("\nall done\n");
    user.types("/exit\n");
    let shown = user.exits(0);
    assert_eq!(shown.matches("[a]lways").count(), 4, "{shown}");
    assert_eq!(shown.matches("to be asked less: 'permissions' in config.json").count(), 1);
    assert!(shown.contains("• run_command true 1 2  exit 0, "), "{shown}");
    assert!(shown.contains("• run_command true 1; true 2  denied\n"), "{shown}");
}

#[test]
fn at_a_terminal_a_change_is_shown_before_the_question() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types("write it\n");
    let lines: Vec<String> = (1..=30).map(|number| format!("line {number}")).collect();
    let content = lines.join("\\\\n");
    let arguments = format!(r#"{{\"path\":\"evil\\u202etxt\",\"content\":\"{content}\"}}"#);
    model.question().call("write_file", &arguments);
    let question = "Allow write_file \"evil\\u{202e}txt\"?\n[y]es / [n]o / [a]lways every \
                    write_file until opta exits";
    user.sees(&format!("+ line 20\n… and 11 more lines\n{question} / [s]how all "));
    // What is typed before the question is asked again is no answer to it.
    let asked_after = |user: &User, note: &str, end: &str| {
        let text = format!("{question}{end}");
        user.sees_that("the question again", |shown| {
            shown.split_once(note).is_some_and(|(_, after)| after.ends_with(&text))
        });
    };
    user.types("y\n");
    asked_after(&user, "opta: not all of it was shown: press s first\n", " / [s]how all ");
    user.types("s\n");
    asked_after(&user, "+ line 30\n\\ no line end\n", " ");
    user.types("n\n");
    // An argument that the tool does not have cannot appear in a question: the call is refused.
    let unknown = r#"{\"path\":\"a\",\"content\":\"x\",\"command\":\"make test\"}"#;
    model.question().call("write_file", unknown);
    let refusal = model.question();
    assert!(refusal.body.contains(r#"there is no \"command\""#), "{}", refusal.body);
    refusal.answer("done");
    user.sees_prompt_after("\ndone\n");
    user.types("/exit\n");
    let shown = user.exits(0);
    assert_eq!(shown.matches("line 21").count(), 1, "{shown}");
    assert!(shown.contains("• write_file evil\\u{202e}txt  denied\n"), "{shown}");
}

#[test]
fn at_a_terminal_ctrl_c_cancels_a_turn_that_waits_for_permission() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types("test it\n");
    model.question().call("run_command", r#"{\"command\":\"true\"}"#);
    user.sees("[a]lways");
    user.types("\x03");
    user.sees_prompt_after("opta: the turn was cancelled\n");
    user.types("\x04");
    user.exits(0);
    model.assert_not_asked();
}

#[test]
fn sigint_ends_a_script_with_130_and_cancels_its_turn() {
    let (home, model) = (Home::new(), Model::new());
    let (path, mut typed) = line_pipe(&home);
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
fn a_turn_cancelled_by_another_client_ends_a_script_with_130() {
    let (home, model) = (Home::new(), Model::new());
    let script = home.beside("script");
    home.write(&script, "first\nsecond\n");
    let notes = format!("opta: the turn was cancelled\n{RESUME}");
    let running = chat(&home, &model, "").input(&script).stdout("so far\n").stderr(&notes);
    let running = running.status(130).spawn();
    let mut question = model.question();
    question.say("so far");
    eventually("the answer begins", || running.output() == "so far");
    let listed = home.opta("sessions list").stdout("{session}  {*}\n").run();
    let path = format!("/v3/sessions/{}/cancel", listed.get("session"));
    let state = home.daemon_info();
    assert_eq!(http(state.port(), "POST", &path, Some(state.token())).0, 200);
    running.finish();
    question.assert_dropped();
    model.assert_not_asked();
}

#[test]
fn sigterm_and_sighup_end_a_script_between_and_during_turns() {
    for (name, status, within) in [("TERM", 143, true), ("TERM", 143, false), ("HUP", 129, true)] {
        let (home, model) = (Home::new(), Model::new());
        let (path, mut typed) = line_pipe(&home);
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
fn at_a_terminal_sigterm_cancels_the_turn_and_exits() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types("hello\n");
    let mut question = model.question();
    question.say("so far");
    user.sees("so far");
    signal_client(&home, "TERM");
    let shown = user.exits(143);
    question.assert_dropped();
    assert!(shown.contains("opta: to resume: opta chat --resume sess_"), "{shown}");
}

#[test]
fn a_script_may_have_crlf_line_ends() {
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
fn a_line_that_cannot_be_sent_ends_a_script_and_is_numbered() {
    for (line, why) in [
        (b"\xff".to_vec(), "it is not UTF-8"),
        (vec![b'x'; (3 << 20) + 1], "it is longer than 3145728 bytes"),
    ] {
        let (home, model) = (Home::new(), Model::new());
        let script = home.beside("script");
        home.write(&script, [&b"first\n\n"[..], &line, b"\nlast\n"].concat());
        let notes = format!("opta: cannot send line 3: {why}\n{RESUME}");
        let running = chat(&home, &model, "").input(&script).stdout("1\n").stderr(&notes);
        let running = running.status(1).spawn();
        model.question().answer("1");
        running.finish();
        model.assert_not_asked();
    }
}

#[test]
fn at_a_terminal_a_line_that_cannot_be_sent_does_not_end_the_chat() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.keys.write_all(b"\xff\n").unwrap();
    user.sees_prompt_after("opta: cannot send this line: it is not UTF-8\n");
    user.types("hello\n");
    model.question().answer("Hi");
    user.sees_prompt_after("Hi\n");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn at_a_terminal_a_running_tool_is_reported() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let gate = home.beside("gate");
    fifo(&gate);
    home.write(&home.config(), r#"{"permissions":{"run_command":"allow"}}"#);
    let mut user = User::at_prompt(&home, &model);
    user.types("hello\n");
    let question = model.question();
    user.sees("waiting ");
    question.call("run_command", r#"{\"command\":\"read x <gate\"}"#);
    user.sees("running ");
    drop(File::options().write(true).open(&gate).unwrap());
    model.question().answer("Hi");
    user.sees_prompt_after("Hi\n");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn at_a_terminal_crlf_in_an_answer_is_a_line_end() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types("hello\n");
    let mut question = model.question();
    question.say("one\\r");
    question.say("\\ntwo\\r\\nthree\\rfour\\r");
    question.end();
    user.sees_prompt_after("one\ntwo\nthree\\rfour\\r\n");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn at_a_terminal_a_write_over_a_file_shows_the_difference() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let old: String = (1..=9).map(|number| format!("line {number}\n")).collect();
    home.write(&home.beside("notes.txt"), &old);
    let mut user = User::at_prompt(&home, &model);
    user.types("write it\n");
    model.question().call("read_file", r#"{\"path\":\"notes.txt\"}"#);
    let content = old.replace("line 5", "five").replace('\n', "\\\\n");
    let arguments = format!(r#"{{\"path\":\"notes.txt\",\"content\":\"{content}\"}}"#);
    model.question().call("write_file", &arguments);
    user.sees(
        "   2   line 2\n   3   line 3\n   4   line 4\n   5 - line 5\n   5 + five\n   6   line 6\n\
         \x20  7   line 7\n   8   line 8\nAllow write_file \"notes.txt\"?\n",
    );
    user.types("y\n");
    model.question().answer("done");
    user.sees("• write_file notes.txt");
    user.sees_prompt_after("\ndone\n");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn at_a_terminal_a_command_cannot_push_its_question_off_the_screen() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types("run it\n");
    let blanks = format!(r#"{{\"command\":\"true{}; touch made\"}}"#, " ".repeat(4_000));
    model.question().call("run_command", &blanks);
    user.sees(
        "Allow run_command \"true␣×4000; touch made\"?\n[y]es / [n]o / [a]lways this command",
    );
    user.types("n\n");
    let long = format!(r#"{{\"command\":\"true {}; touch made\"}}"#, "x".repeat(4_000));
    model.question().call("run_command", &long);
    user.sees(" more characters … xxx");
    for (refused, count) in [("y\n", 1), ("a\n", 2)] {
        user.types(refused);
        user.sees_that("the refusal and the question again", |shown| {
            let parts: Vec<&str> = shown.split("not all of it was shown: press s first").collect();
            parts.len() == count + 1 && parts.last().unwrap().contains("[s]how all ")
        });
    }
    assert!(!home.beside("made").exists());
    user.types("s\n");
    user.sees(&format!("true {}; touch made\"?\n", "x".repeat(4_000)));
    user.sees_that("the question again", |shown| shown.ends_with("until opta exits "));
    user.types("y\n");
    model.question().answer("done");
    user.sees_prompt_after("\ndone\n");
    assert!(home.beside("made").exists());
    user.types("\x04");
    user.exits(0);
}

#[test]
fn at_a_terminal_the_line_of_a_tool_says_what_became_of_it() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    home.write(&home.config(), r#"{"permissions":{"run_command":"allow","edit_file":"allow"}}"#);
    home.write(&home.beside("a.txt"), "one\n");
    let mut user = User::at_prompt(&home, &model);
    user.types("work\n");
    model.question().call("read_file", r#"{\"path\":\"a.txt\"}"#);
    let edit = r#"{\"path\":\"a.txt\",\"old_text\":\"one\",\"new_text\":\"two\"}"#;
    model.question().call("edit_file", edit);
    model.question().call("list_dir", r#"{\"path\":\"Paris\"}"#);
    model.question().call("run_command", r#"{\"command\":\"seq 9; exit 2\"}"#);
    let question = model.question();
    for line in [
        "\n• read_file a.txt\n",
        "\n• edit_file a.txt  1 line changed\n",
        "\n• list_dir Paris  failed: there is no Paris\n",
        "\n• run_command seq 9; exit 2  exit 2, ",
        " s\n    7\n    8\n    9\n",
    ] {
        user.sees(line);
    }
    question.answer("# Title\\n**all** `done`");
    user.sees_prompt_after("# Title\n**all** `done`\n");
    assert!(user.window.output().contains("\x1b[1m Title\x1b[0m"), "{}", user.window.output());
    user.types("/last\r");
    user.sees_prompt_after("\n1\n2\n3\n4\n5\n6\n7\n8\n9\n[exit code: 2]\n");
    user.types("\x04");
    user.exits(0);
}
