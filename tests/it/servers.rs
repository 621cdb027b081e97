//! What model servers do to their clients, and what users see of it. The unit tests of the model
//! client have more servers.

use std::fs;

use crate::model::{Model, Question};
use crate::support::{ANYTHING, Home, Run, eventually, namespace, need, skip};
use crate::task::task;
use crate::user::task_in_terminal;

/// Half of a call, and the end of the answer.
fn cut_call(mut question: Question) {
    question.say("I will write it. ");
    let call =
        r#"{"index":0,"id":"a","function":{"name":"write_file","arguments":"{\"path\":\"x"}}"#;
    question.send(&format!(r#"{{"delta":{{"tool_calls":[{call}]}}}}"#));
    question.end_because("length");
}

#[test]
fn a_call_that_is_cut_off_twice_fails_the_task() {
    let (home, model) = (Home::new(), Model::new());
    let json = r#"{{*}"error":{"code":"model-cut-off"{*}}}"#.to_owned() + "\n";
    for (words, stdout) in
        [("-q", "I will write it. I will write it. \n"), ("--json", json.as_str())]
    {
        let running = task(&home, &model, &format!("{words} x")).status(1).stdout(stdout);
        let running = running.stderr(ANYTHING).spawn();
        cut_call(model.question());
        let again = model.question();
        assert!(again.body.contains("make smaller calls"), "{}", again.body);
        cut_call(again);
        running.finish();
    }
}

#[test]
fn an_empty_answer_fails_the_task_after_the_second_one() {
    let (home, model) = (Home::new(), Model::new());
    let stderr = "opta: the answer was empty; asking once more\n\
        opta: cannot finish the turn: the model gave an empty answer twice (model-empty)\n";
    let running = task(&home, &model, "x").stderr(stderr).status(1).spawn();
    model.question().end();
    let mut thinking = model.question();
    thinking.send(r#"{"delta":{"reasoning_content":"hm"}}"#);
    thinking.end();
    running.finish();
}

#[test]
fn thinking_and_calls_in_tags_are_not_shown_and_the_calls_run() {
    let (home, model) = (Home::new(), Model::new());
    let running = task(&home, &model, "x").stdout("done\n").stderr("> read_file no\n").spawn();
    let call = r#"<tool_call>{\"name\":\"read_file\",\"arguments\":{\"path\":\"no\"}}</tool_call>"#;
    model.question().answer(&format!("<think>hm</think>\\n{call}"));
    let question = model.question();
    assert!(!question.body.contains("<t") && question.body.contains("tool_call_id"));
    question.answer("<think>so</think>done");
    running.finish();
    let sessions = home.config().with_file_name("sessions");
    let journals = fs::read_dir(sessions)
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("journal.jsonl")).ok());
    let journal: String = journals.collect();
    assert!(!journal.contains("<think>") && journal.contains("\"turn.thinking\""), "{journal}");
}

#[test]
fn thinking_without_its_opening_tag_is_shown_but_is_no_part_of_the_answer() {
    let (home, model) = (Home::new(), Model::new());
    let report = r#"{"sessionId":"{*}","turnId":"{*}","result":"done","toolCalls":[{{call}}],{*}"#;
    let running = task(&home, &model, "--json x").stdout(&format!("{report}\n")).spawn();
    let call = r#"<tool_call>{\"name\":\"read_file\",\"arguments\":{\"path\":\"no\"}}</tool_call>"#;
    model.question().answer(&format!("Pondering.\\n</think>\\n\\n{call}"));
    let question = model.question();
    assert!(!question.body.contains("Pondering") && question.body.contains("tool_call_id"));
    question.answer("Musing.</think>\\n\\ndone");
    running.finish();
    let streamed = "Again.\n</think>\nyes\n";
    let running = task(&home, &model, "--continue y").stdout(streamed).stderr(ANYTHING).spawn();
    let question = model.question();
    assert!(!question.body.contains("</think>") && question.body.contains(r#""content":"done""#));
    question.answer("Again.\\n</think>\\n\\nyes");
    running.finish();
    let shown = home.opta("sessions show last").stdout(ANYTHING).run().stdout;
    assert!(!shown.contains("</think>") && shown.contains("done") && shown.contains("yes"));
}

#[test]
fn a_busy_server_is_asked_again_and_the_pause_is_announced() {
    let home = Home::new();
    let model = Model::refusing(&["HTTP/1.1 503 Busy\r\nRetry-After: 1\r\n\r\nno room"]);
    let stderr = "opta: the model server at {url} (from OPTA_MODEL_URL) is busy (503): no room\n\
        opta: trying again in 1s\n";
    let running = task(&home, &model, "x").stdout("hello\n").stderr(stderr).spawn();
    model.question().answer("hello");
    running.finish();
}

#[test]
fn a_model_without_tool_calls_answers_and_that_is_said_once() {
    let home = Home::new();
    let model =
        Model::refusing(&["HTTP/1.1 400 Bad\r\n\r\n{\"error\":\"m does not support tools\"}"]);
    let script = home.beside("script");
    home.write(&script, "one\ntwo\n");
    let chat = home.opta("chat").env("OPTA_MODEL_URL", model.url()).input(&script);
    let stderr = "opta: the model has no tool calls: it answers without them\n\
        opta: to resume: opta chat --resume {id}\n";
    let running = chat.stdout("hello\nhello\n").stderr(stderr).spawn();
    for _ in 0..2 {
        let question = model.question();
        assert!(!question.body.contains("\"tools\""), "{}", question.body);
        question.answer("hello");
    }
    running.finish();
}

#[test]
fn an_answer_has_a_limit_only_if_one_is_set() {
    let (home, model) = (Home::new(), Model::new());
    for (words, config, limit) in [
        ("x", "{}", None),
        ("x", r#"{"model":{"maxTokens":77}}"#, Some(r#""max_tokens":77,"#)),
        ("--max-tokens 5 x", r#"{"model":{"maxTokens":77}}"#, Some(r#""max_tokens":5,"#)),
    ] {
        home.write(&home.config(), config);
        let running = task(&home, &model, words).stdout("hello\n").spawn();
        let question = model.question();
        let has_limit = question.body.contains("_tokens");
        assert_eq!(has_limit, limit.is_some(), "{}", question.body);
        assert!(limit.is_none_or(|limit| question.body.contains(limit)), "{}", question.body);
        question.answer("hello");
        running.finish();
    }
    let needed = "opta: cannot use the settings: {*}: model.maxTokens: {*}\n{*}";
    home.write(&home.config(), r#"{"model":{"maxTokens":0}}"#);
    task(&home, &model, "x").stderr(needed).status(1).run();
}

#[test]
fn a_server_that_is_silent_for_longer_than_is_set_fails_the_task() {
    let (home, model) = (Home::new(), Model::new());
    home.write(&home.config(), r#"{"connection":{"silenceSeconds":2}}"#);
    let stderr = "opta: cannot finish the turn: {why} (model-timeout)\n";
    let running = task(&home, &model, "x").stdout("half\n").stderr(stderr).status(1).spawn();
    let mut question = model.question();
    question.say("half");
    running.finish();
    question.assert_dropped();
}

#[test]
fn a_terminal_counts_the_seconds_of_a_silence_within_an_answer() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let window = task_in_terminal(&home, &model).spawn();
    let mut question = model.question();
    question.say("half");
    // One may be missing, if the machine is busy.
    let is_shown = |seconds: u64| window.output().contains(&format!("waiting {seconds}s"));
    eventually("the seconds are shown", || (2..60).filter(|count| is_shown(*count)).count() > 1);
    question.answer(" and half");
    // The line below the text is removed again.
    let shown = window.finish().stdout;
    let (_, rest) = shown.split_once("half").unwrap();
    assert!(rest.contains("\n\u{1b}[K\u{1b}8 and half\r\n"), "{shown:?}");
}

#[test]
fn a_terminal_counts_down_to_the_next_request() {
    need!("script");
    let home = Home::new();
    let model = Model::refusing(&["HTTP/1.1 503 Busy\r\nRetry-After: 3\r\n\r\nno room"]);
    let window = task_in_terminal(&home, &model).spawn();
    // One may be missing, if the machine is busy.
    let is_shown = |left: u64| window.output().contains(&format!("… trying again in {left}s"));
    eventually("the seconds are shown", || (1..=3).filter(|left| is_shown(*left)).count() > 1);
    model.question().answer("hello");
    let shown = window.finish().stdout;
    assert!(shown.contains("is busy (503): no room\r\n"), "{shown:?}");
    assert!(shown.ends_with("\rhello\r\n"), "{shown:?}");
}

/// A model server on port 1234. It writes what it is asked to the file.
const SERVER: &str = r#"
import http.server, os, socketserver, sys
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
class Server(http.server.BaseHTTPRequestHandler):
    def reply(self, body):
        sys.stdout.write(self.path + "\n")
        sys.stdout.flush()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.reply(b'{"data":[{"id":"found-model"}]}')
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(b'{"choices":[{"message":{"content":"hello"},"finish_reason":"stop"}]}')
    def log_message(self, *_):
        pass
socketserver.TCPServer.allow_reuse_address = True
server = socketserver.ThreadingTCPServer(("127.0.0.1", 1234), Server)
sys.stdout.write("ready\n")
sys.stdout.flush()
server.serve_forever()
"#;

/// Runs a shell script beside a model server of another user, in a network of their own.
fn beside_server_of<'h>(home: &'h Home, user: &str, script: &str) -> Option<Run<'h>> {
    let private = namespace(&["--net", "--pid", "--fork", "--kill-child", "--mount-proc"])?;
    let script = format!(
        r#"ip link set lo up
        rm -f "$HOME/asked"
        python3 -c "$1" {user} >"$HOME/asked" &
        until grep -qs ready "$HOME/asked"; do :; done
        unset OPTA_MODEL_URL
        {script}
        grep -c / "$HOME/asked" || :"#
    );
    Some(home.sh(&script).arg("sh").arg(SERVER).within(private))
}

#[test]
fn a_server_of_another_user_is_named_and_told_nothing() {
    need!("root", "python3", "ip");
    let home = Home::new();
    let none = "opta: cannot finish the turn: no model server is set, and none was found: \
        127.0.0.1:1234 (LM Studio): the server belongs to another user, nobody, {*}\
        OPTA_MODEL_URL=http://HOST:PORT/v1 (model-unreachable)\n";
    let Some(run) = beside_server_of(&home, "65534", "opta do x || opta doctor | grep model")
    else {
        skip!("it needs a private network");
    };
    run.stdout("fail  model {*}belongs to another user, nobody{*}\n0\n").stderr(none).run();
    // Who sets it, trusts it.
    let script = "OPTA_MODEL_URL=http://127.0.0.1:1234 opta do x";
    let run = beside_server_of(&home, "65534", script).unwrap();
    run.stdout("hello\n2\n").stderr(ANYTHING).run();
}

#[test]
fn a_server_that_was_found_is_named_with_its_user() {
    need!("root", "python3", "ip");
    let home = Home::new();
    let script = "opta do x; opta do -q x; opta doctor | grep model";
    let Some(run) = beside_server_of(&home, "2", script) else {
        skip!("it needs a private network");
    };
    let found = "found on port 1234, run by bin";
    let doctor = format!("pass  model{{*}} found-model at http://127.0.0.1:1234/v1 ({found})\n");
    run.stdout(&format!("hello\nhello\n{doctor}{{count}}\n"))
        .stderr(&format!("opta: using found-model at http://127.0.0.1:1234/v1, {found}\n"))
        .run();
}

#[test]
fn a_chat_begins_with_the_server_that_was_found() {
    need!("root", "python3", "ip", "script");
    let home = Home::new();
    let script = r#"echo /exit | SHELL=/bin/sh script -qec "exec opta chat" /dev/null"#;
    let Some(run) = beside_server_of(&home, "2", script) else {
        skip!("it needs a private network");
    };
    let server = "http://127.0.0.1:1234/v1, found on port 1234, run by bin";
    run.env("NO_COLOR", "1").stdout(&format!("{{*}}found-model{{*}}{server}{{*}}")).run();
}

#[test]
fn a_port_that_another_user_has_taken_since_it_was_found_is_told_nothing() {
    need!("root", "python3", "ip");
    let home = Home::new();
    let script = r#"server=$!
        mkfifo "$HOME/in"
        opta chat <"$HOME/in" >"$HOME/out" & chat=$!
        exec 3>"$HOME/in"
        echo one >&3
        until grep -qs hello "$HOME/out"; do :; done
        kill $server; wait $server || :
        python3 -c "$1" 65534 >"$HOME/asked by another" 3>&- &
        until grep -qs ready "$HOME/asked by another"; do :; done
        echo two >&3; exec 3>&-
        wait $chat || echo failed
        cat "$HOME/out" "$HOME/asked by another""#;
    let Some(run) = beside_server_of(&home, "2", script) else {
        skip!("it needs a private network");
    };
    let stderr = "opta: using found-model at {url}, found on port 1234, run by bin\n\
        {*}the model server at {url} (found on port 1234, run by bin) cannot be used: the server \
        belongs to another user, nobody; to use it nevertheless, set OPTA_MODEL_URL \
        (model-config)\n{*}";
    run.stdout("failed\nhello\nready\n{count}\n").stderr(stderr).run();
}
