//! What a chat shows of its turns on a terminal, and its commands.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::model::Model;
use crate::support::{ANYTHING, Home, eventually, mode, need};
use crate::user::{User, Window};

/// Has a conversation of one turn before the chat. Returns its id.
fn earlier(home: &Home, model: &Model, question: &str, answer: &str) -> String {
    let running = home.opta("chat --once").arg(question).env("OPTA_MODEL_URL", model.url());
    let running = running.stdout(&format!("{answer}\n"));
    let running = running.stderr("opta: to resume: opta chat --resume {id}\n").spawn();
    model.question().answer(answer);
    running.finish().get("id").to_owned()
}

#[test]
fn the_speed_is_shown_while_the_model_works() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types("hello\r");
    let mut question = model.question();
    user.sees("waiting ");
    // Tokens without an end: text that does not repeat itself.
    let mut number = 0;
    eventually("the speed is shown", || {
        number += 1;
        question.send(&format!(r#"{{"delta":{{"reasoning_content":"{number} "}}}}"#));
        let shown = user.shown();
        let speed = shown.split_once("s, ").and_then(|(_, rest)| rest.split_once(" tokens/s"));
        shown.contains("thinking ")
            && speed.is_some_and(|(speed, _)| speed.parse().is_ok_and(|speed: u32| speed > 0))
    });
    question.answer("Hi");
    user.sees_prompt_after("Hi\n");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn a_turn_ends_with_its_tokens_its_speed_and_its_time_unless_quiet() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    for (command, shows) in [("opta chat", true), ("opta chat --quiet", false)] {
        let mut user = User::before(&home, &model, command, "TERM=xterm");
        user.sees("> ");
        user.types("hello\r");
        let mut question = model.question();
        question.say("Hi");
        question.end_with_usage(1200, 34);
        user.sees_prompt_after("\nHi\n");
        user.types("\x04");
        let raw = user.window.output();
        let shown = user.exits(0);
        assert_eq!(shown.contains("\n1200 tokens in, 34 out, "), shows, "{shown}");
        // Dimmed.
        assert_eq!(raw.contains("\x1b[2m1200 tokens in"), shows, "{raw}");
        assert!(!shown.contains("context"), "{shown}");
    }
}

#[test]
fn a_turn_ends_with_the_part_of_the_context_that_is_used_if_the_server_tells_its_size() {
    need!("script");
    let home = Home::new();
    let model = Model::listing(r#"[{"id":"scripted","object":"model","max_model_len":100000}]"#);
    let mut user = User::at_prompt(&home, &model);
    // The server is not asked for the sake of a short request.
    user.types(&format!("\x1b[200~{}\x1b[201~\r", "a long text\n".repeat(1_000)));
    let mut question = model.question();
    question.say("Hi");
    question.end_with_usage(25_000, 30);
    user.sees_prompt_after("\nHi\n25000 tokens in, 30 out, ");
    user.types("\x04");
    let shown = user.exits(0);
    assert!(shown.contains(" s, 26% of the context used\n"), "{shown}");
}

#[test]
fn a_resumed_chat_begins_with_its_last_exchange_dimmed() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let id = earlier(&home, &model, "the word is plum", "noted");
    for command in ["opta chat --continue".to_owned(), format!("opta chat --resume {id}")] {
        let mut user = User::before(&home, &model, &command, "TERM=xterm");
        user.sees_prompt_after("\n> the word is plum\nnoted\n");
        user.types("\x04");
        let raw = user.window.output();
        assert!(raw.contains("\x1b[2m> the word is plum\x1b[0m"), "{raw}");
        assert!(raw.contains("\x1b[2mnoted\x1b[0m"), "{raw}");
        user.exits(0);
    }
}

#[test]
fn a_shell_command_runs_outside_the_conversation() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types("!echo sea-$((40 + 2)); test -t 0 && echo at-$((1 + 1))\r");
    user.sees_prompt_after("\nsea-42\nat-2\n");
    user.types("!exit 3\r");
    user.sees_prompt_after("opta: the command ended with exit status: 3\n");
    // Ctrl-C is for the command.
    user.types("!echo wait-$((2 + 2)); read line\r");
    user.sees("wait-4");
    user.types("\x03");
    user.sees_prompt_after("opta: the command ended with signal: 2 (SIGINT)\n");
    user.types("hello\r");
    let question = model.question();
    assert!(!question.body.contains("sea-"), "{}", question.body);
    question.answer("Hi");
    user.sees_prompt_after("\nHi\n");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn new_begins_another_session_and_resume_returns_to_the_first() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let first = earlier(&home, &model, "the word is plum", "noted");
    let mut user = User::at_prompt(&home, &model);
    let turn = |user: &mut User, text: &str, answer: &str| {
        user.types(&format!("{text}\r"));
        let question = model.question();
        let body = question.body.clone();
        question.answer(answer);
        user.sees_prompt_after(&format!("\n{answer}\n"));
        body
    };
    assert!(!turn(&mut user, "second session", "answer 2").contains("plum"));
    user.types("/new\r");
    user.sees_prompt_after("\nnew session\n");
    let body = turn(&mut user, "third session", "answer 3");
    assert!(!body.contains("second session"), "{body}");
    user.types("/resume\r");
    user.sees_prompt_after("to resume one: /resume ID\n");
    let shown = user.shown();
    for title in ["the word is plum", "second session", "third session"] {
        assert!(shown.contains(&format!("  {title}\n")), "{shown}");
    }
    let beginning = &first[.."sess_".len() + 8];
    user.types(&format!("/resume {beginning}\r"));
    user.sees_prompt_after("\n> the word is plum\nnoted\n");
    let body = turn(&mut user, "which word?", "plum");
    assert!(body.contains("the word is plum") && !body.contains("third session"), "{body}");
    user.types("/resume nonsense\r");
    user.sees_prompt_after("opta: cannot find the session: no id begins with 'nonsense'");
    user.types("\x04");
    let shown = user.exits(0);
    assert!(shown.contains(&format!("opta: to resume: opta chat --resume {first}\n")), "{shown}");
}

#[test]
fn clear_clears_the_screen() {
    need!("tmux");
    let (home, model) = (Home::new(), Model::new());
    let window = Window::new(&home, &model, 80, 10);
    window.types("opta chat");
    window.presses(&["Enter"]);
    window.sees("/help");
    window.sees_last(">");
    window.types("/clear");
    window.presses(&["Enter"]);
    eventually("the screen is clear", || {
        let screen = window.tmux(&["capture-pane", "-p"]);
        screen.trim_end() == ">"
    });
}

#[test]
fn status_shows_the_model_the_session_and_the_daemon() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types("/status\r");
    let server = format!("model      scripted\nserver     {}/v1\nsession    new\n", model.url());
    user.sees_prompt_after(&server);
    user.types("hello\r");
    model.question().answer("Hi");
    user.sees_prompt_after("\nHi\n");
    user.types("/status\r");
    let daemon = home.daemon_info();
    let running = format!("daemon     running (pid {}, port {})\n", daemon.pid(), daemon.port());
    user.sees_prompt_after(&running);
    let shown = user.shown();
    assert!(shown.contains("\nsession    sess_"), "{shown}");
    assert!(shown.contains("\ndirectory  /"), "{shown}");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn another_model_is_used_from_the_next_turn_on() {
    need!("script");
    let home = Home::new();
    let model = Model::listing(r#"[{"id":"small-1"},{"id":"large-1"}]"#);
    let mut user = User::at_prompt(&home, &model);
    let uses = |user: &mut User, name: &str| {
        user.types("hello\r");
        let question = model.question();
        assert!(question.body.contains(&format!(r#""model":"{name}""#)), "{}", question.body);
        let answer = format!("I am {name}");
        question.answer(&answer);
        user.sees_prompt_after(&format!("\n{answer}\n"));
    };
    uses(&mut user, "small-1");
    user.types("/model large-1\r");
    user.sees_prompt_after("\nmodel large-1\n");
    uses(&mut user, "large-1");
    user.types("/model\r");
    user.sees_prompt_after("\n  small-1\n* large-1\nto use another: /model NAME\n");
    // The server may have it all the same.
    user.types("/model smal-1\r");
    let note = "opta: the server does not list the model 'smal-1'; did you mean 'small-1'?\n";
    user.sees_prompt_after(&format!("\nmodel smal-1\n{note}"));
    uses(&mut user, "smal-1");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn a_history_that_cannot_be_written_is_reported_once_and_recalled() {
    need!("script", "root", "setpriv");
    let (home, model) = (Home::of_another_user(), Model::new());
    let path = home.path().join(".config/opta/chat_history");
    home.write(&path, "\"from before\"\n");
    fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
    let mut user = User::at_prompt(&home, &model);
    for (keys, message) in [("\x1b[A\r", "from before"), ("second\r", "second")] {
        user.types(keys);
        model.gets(message).answer(&format!("answer to {message}"));
        user.sees_prompt_after(&format!("\nanswer to {message}\n"));
    }
    user.types("\x04");
    let shown = user.exits(0);
    assert_eq!(shown.matches("what you type is not kept for the next chat: ").count(), 1);
    assert!(shown.contains("chat_history: Permission denied"), "{shown}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "\"from before\"\n");
    assert_eq!(mode(&path), 0o400);
}

#[test]
fn a_question_is_broken_between_words_on_a_narrow_terminal() {
    need!("tmux");
    let (home, model) = (Home::new(), Model::new());
    let window = Window::new(&home, &model, 20, 30);
    window.types("opta chat");
    window.presses(&["Enter"]);
    window.sees("/help");
    window.sees_last(">");
    window.types("hello");
    window.presses(&["Enter"]);
    model.question().call("run_command", r#"{\"command\":\"true 1 2\"}"#);
    window.sees("[y]es / [n]o /\n[a]lways every\n\"true 1 …\" until\nopta exits");
    window.types("n");
    window.presses(&["Enter"]);
    model.question().answer("done");
    window.sees("done");
    window.sees_last(">");
    let list = home.opta("sessions list").stdout(ANYTHING).run().stdout;
    assert!(list.contains("1 turn"), "{list}");
}
