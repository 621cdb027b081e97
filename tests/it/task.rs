//! `opta do`: what it prints and where, how it ends, and what happens to a task when its daemon
//! ends first.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::api::{Api, Event};
use crate::docs::limits;
use crate::model::Model;
use crate::overload::allow_descriptors;
use crate::support::{ANYTHING, Home, Run, STOPPED, eventually, freeze, need, signal, skip};

/// Runs `opta do` with these words and a model.
pub fn task<'h>(home: &'h Home, model: &Model, words: &str) -> Run<'h> {
    home.opta(&format!("do {words}")).env("OPTA_MODEL_URL", model.url())
}

#[test]
fn the_answer_is_streamed_even_if_nothing_was_there_before() {
    let (home, model) = (Home::new(), Model::new());
    let running = task(&home, &model, "say hello").stdout("Hello,\n").spawn();
    let mut question = model.question();
    assert!(question.body.contains("say hello"), "{}", question.body);
    question.say("Hel");
    eventually("the first piece is printed", || running.output() == "Hel");
    question.answer("lo,");
    running.finish();
    home.opta("sessions list").stdout("sess_{id} {*} 1 turn  scripted  {*}  say hello\n").run();
}

#[test]
fn the_answer_is_printed_byte_for_byte() {
    let (home, model) = (Home::new(), Model::new());
    let text = "  a\tb  \n\n\tü 🎉\u{1b}[31m  x ";
    let running = task(&home, &model, "x").stdout(&format!("{text}\n")).spawn();
    model.question().answer("  a\\tb  \\n\\n\\tü 🎉\\u001b[31m  x ");
    running.finish();
    // An answer that ends with a line end gets no second one.
    let running = task(&home, &model, "x").stdout("a line\n").spawn();
    model.question().answer("a line\\n");
    running.finish();
}

#[test]
fn a_task_is_all_words_as_one_text_or_a_file() {
    let (home, model) = (Home::new(), Model::new());
    let running = task(&home, &model, "count the -- --lines").stdout("3\n").spawn();
    let question = model.question();
    assert!(question.body.contains("count the --lines"), "{}", question.body);
    question.answer("3");
    running.finish();

    let file = home.beside("task");
    home.write(&file, "first\n\tsecond\n");
    let running = task(&home, &model, "-").input(&file).stdout("4\n").spawn();
    let question = model.question();
    assert!(question.body.contains(r"first\n\tsecond\n"), "{}", question.body);
    question.answer("4");
    running.finish();

    let empty = "opta: the task is empty\nUsage: opta do - <FILE, or opta do TASK <FILE\n";
    task(&home, &model, "-").stderr(empty).status(2).run();
    home.write(&file, b"\xff");
    let binary = "opta: the task is not UTF-8{*}\nUsage: {*}\n";
    task(&home, &model, "-").input(&file).stderr(binary).status(2).run();
}

#[test]
fn json_is_one_object_in_every_outcome() {
    let (home, model) = (Home::new(), Model::new());
    let done = r#"{"sessionId":"sess_{id}","turnId":"turn_{turn}","result":"yes","toolCalls":[],"stats":{{stats}}}"#;
    let running = task(&home, &model, "--json x").stdout(&format!("{done}\n")).spawn();
    model.question().answer("yes");
    running.finish();

    let failed = r#"{"sessionId":"sess_{id}","turnId":"turn_{turn}","result":"half","toolCalls":[],"error":{"code":"model-disconnected","message":"{why}"}}"#;
    let running = task(&home, &model, "--json x").stdout(&format!("{failed}\n")).status(1).spawn();
    let mut question = model.question();
    question.say("half");
    drop(question);
    running.finish();

    let misused = r#"{"error":{"code":"USAGE","message":"TASK is missing"}}"#;
    home.opta("do --json").stdout(&format!("{misused}\n")).status(2).run();
}

#[test]
fn events_are_printed_as_the_journal_has_them() {
    let (home, model) = (Home::new(), Model::new());
    let running = task(&home, &model, "--events x").stdout(ANYTHING).spawn();
    model.question().answer("yes");
    let seen = running.finish();
    let lines: Vec<&str> = seen.stdout.lines().collect();
    let named = |line: &&str| line.split('"').nth(7).unwrap().to_owned();
    let names: Vec<String> = lines.iter().map(named).collect();
    assert_eq!(names.first().unwrap(), "turn.queued");
    assert_eq!(names.last().unwrap(), "turn.done");
    assert!(names.contains(&"turn.token".to_owned()), "{names:?}");
    // The journal has the same with a checksum, but without the id of its session.
    let sessions = home.path().join(".config/opta/sessions");
    let folder = fs::read_dir(&sessions).unwrap().map(|entry| entry.unwrap().path());
    let folder = folder.into_iter().find(|path| path.is_dir()).unwrap();
    let journal = fs::read_to_string(folder.join("journal.jsonl")).unwrap();
    let id = folder.file_name().unwrap().to_str().unwrap();
    let session = format!(r#","sessionId":"{id}","seq":"#);
    for line in lines {
        assert!(line.contains(&session), "{line}");
        let kept = line.replacen(&session, r#","seq":"#, 1);
        assert!(journal.contains(kept.strip_suffix('}').unwrap()), "{line}");
    }
}

#[test]
fn ctrl_c_cancels_the_turn_and_ends_with_130() {
    let (home, model) = (Home::new(), Model::new());
    let stderr = "opta: the turn was {why}\n";
    let running = task(&home, &model, "x").stdout("so far\n").stderr(stderr).status(130).spawn();
    let mut question = model.question();
    question.say("so far");
    eventually("the answer begins", || running.output() == "so far");
    signal(running.pid(), "INT");
    running.finish();
    question.assert_dropped();
    home.opta("sessions list --json").stdout(r#"{*}"status":"idle"{*}"#).run();
}

#[test]
fn a_terminating_signal_cancels_the_turn_and_sets_the_exit_status() {
    for (name, status) in [("TERM", 143), ("HUP", 129)] {
        let (home, model) = (Home::new(), Model::new());
        let stderr = "opta: the turn was {why}\n";
        let running = task(&home, &model, "x").stdout("so far\n").stderr(stderr).status(status);
        let running = running.spawn();
        let mut question = model.question();
        question.say("so far");
        eventually("the answer begins", || running.output() == "so far");
        signal(running.pid(), name);
        running.finish();
        question.assert_dropped();
        home.opta("sessions list --json").stdout(r#"{*}"status":"idle"{*}"#).run();
    }
}

#[test]
fn a_hangup_that_was_ignored_at_the_start_stays_ignored() {
    let (home, model) = (Home::new(), Model::new());
    let running = home.sh("trap '' HUP; exec opta do x").env("OPTA_MODEL_URL", model.url());
    let running = running.stdout("one, two\n").spawn();
    let mut question = model.question();
    question.say("one");
    eventually("the answer begins", || running.output() == "one");
    signal(running.pid(), "HUP");
    question.answer(", two");
    running.finish();
}

#[test]
fn ctrl_c_cancels_a_turn_whose_connection_was_lost() {
    let (home, model) = (Home::new(), Model::new());
    home.start();
    let relay = Relay::before(&home);
    let stderr = "opta: the turn was {why}\n";
    let running = task(&home, &model, "x").stdout("so far\n").stderr(stderr).status(130).spawn();
    let mut question = model.question();
    question.say("so far");
    eventually("the answer begins", || running.output() == "so far");
    relay.cut();
    signal(running.pid(), "INT");
    relay.resume();
    running.finish();
    question.assert_dropped();
}

/// A relay between a home's commands and its daemon, in which a test can cut connections.
#[derive(Clone)]
struct Relay {
    /// Both ends of all connections so far.
    known: Arc<Mutex<Vec<TcpStream>>>,
    holds: Arc<AtomicBool>,
}

impl Relay {
    fn before(home: &Home) -> Relay {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let ours = listener.local_addr().unwrap().port();
        let port = home.daemon_info().port();
        let state = fs::read_to_string(home.file("state.json")).unwrap();
        let state = state.replace(&format!("\"port\":{port}"), &format!("\"port\":{ours}"));
        home.write(&home.file("state.json"), state);
        let relay = Relay { known: Arc::default(), holds: Arc::default() };
        let accepted = relay.clone();
        let accepting = move || {
            for near in listener.incoming() {
                let (near, relay) = (near.unwrap(), accepted.clone());
                let far = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
                for stream in [&near, &far] {
                    relay.known.lock().unwrap().push(stream.try_clone().unwrap());
                }
                let names = [ours, port].map(|port| format!("Host: 127.0.0.1:{port}\r\n"));
                let pair = (far.try_clone().unwrap(), near.try_clone().unwrap());
                for (mut from, mut to) in [(near, far), pair] {
                    let (relay, [ours, theirs]) = (relay.clone(), names.clone());
                    let copying = move || {
                        let mut chunk = [0; 16 * 1024];
                        while let Ok(count @ 1..) = from.read(&mut chunk) {
                            eventually("the relay continues", || {
                                !relay.holds.load(Ordering::Acquire)
                            });
                            // The daemon accepts only its own address as the host.
                            let text = String::from_utf8_lossy(&chunk[..count]);
                            drop(to.write_all(text.replacen(&ours, &theirs, 1).as_bytes()));
                        }
                        drop(to.shutdown(Shutdown::Write));
                    };
                    drop(thread::Builder::new().name("relay".into()).spawn(copying).unwrap());
                }
            }
        };
        drop(thread::Builder::new().name("relay".into()).spawn(accepting).unwrap());
        relay
    }

    /// Cuts all connections, and waits for the next one, which it holds.
    fn cut(&self) {
        self.holds.store(true, Ordering::Release);
        let known = self.known.lock().unwrap();
        let count = known.len();
        for stream in known.iter() {
            drop(stream.shutdown(Shutdown::Both));
        }
        drop(known);
        eventually("the command connects again", || self.known.lock().unwrap().len() > count);
    }

    fn resume(&self) {
        self.holds.store(false, Ordering::Release);
    }
}

#[test]
fn a_terminating_signal_ends_the_command_even_if_the_daemon_does_not_answer() {
    let (home, model) = (Home::new(), Model::new());
    let stderr = "opta: the turn was cancelled; its end was not awaited\n";
    let running = task(&home, &model, "x").stdout("so far\n").stderr(stderr).status(143).spawn();
    let mut question = model.question();
    question.say("so far");
    eventually("the answer begins", || running.output() == "so far");
    freeze(home.owner().unwrap());
    signal(running.pid(), "TERM");
    running.finish();
}

#[test]
fn a_directory_whose_name_is_not_utf8_is_refused() {
    let home = Home::new();
    let place = home.beside("x").with_file_name(OsStr::from_bytes(b"a\xffb"));
    if fs::create_dir(&place).is_err() {
        skip!("no such name can be had here");
    }
    let refused = "opta: cannot work in the current directory: its name is not UTF-8: \
                   \"{place}/a\\xFFb\"\n";
    for words in ["do x", "chat --once x"] {
        let script = format!("cd a?b; exec opta {words}");
        home.sh(&script).stderr(refused).status(1).run();
    }
    home.assert_nothing_left();
}

#[test]
fn json_output_ends_with_an_error_object_if_there_is_no_turn() {
    let home = Home::new();
    let object =
        |code: &str| format!("{{\"error\":{{\"code\":\"{code}\",\"message\":\"{{why}}\"}}}}\n");
    let url = "ftp://models.example";
    for (words, object) in [
        ("--events", object("model-config")),
        (
            "--json",
            r#"{"result":"","toolCalls":[],"error":{"code":"model-config","message":"{why}"}}"#
                .to_owned()
                + "\n",
        ),
    ] {
        let run = home.opta(&format!("do {words} x")).env("OPTA_MODEL_URL", url);
        let run = run.stdout(&object).status(1);
        if words == "--events" {
            run.stderr("opta: cannot finish the turn: {why} (model-config)\n").run();
        } else {
            run.run();
        }
    }
    home.opta("daemon stop").stdout(STOPPED).run();
    let run =
        home.opta("do --events x").env("OPTA_NO_AUTOSTART", "1").stdout(&object("NOT_RUNNING"));
    run.stderr("opta: {why}\nstart it: opta daemon start\n").status(3).run();
}

#[test]
fn a_lost_connection_to_the_model_fails_the_task_and_keeps_the_text() {
    let (home, model) = (Home::new(), Model::new());
    let stderr = "opta: cannot finish the turn: {why} (model-disconnected)\n";
    let running = task(&home, &model, "x").stdout("half\n").stderr(stderr).status(1).spawn();
    let mut question = model.question();
    question.say("half");
    drop(question);
    running.finish();
}

#[test]
fn an_answer_that_was_cut_off_is_printed_with_a_note() {
    let (home, model) = (Home::new(), Model::new());
    for (reason, stderr) in [
        (
            "length",
            "the answer was cut off at its limit of tokens or at the end of the model's context",
        ),
        ("content_filter", "the model server ended the answer: content_filter"),
    ] {
        for (words, shown) in [
            ("-q", "half\n".to_owned()),
            (
                "--json",
                format!(r#"{{*}}"result":"half"{{*}}"finishReason":"{reason}"{{*}}"#) + "\n",
            ),
        ] {
            let running = task(&home, &model, &format!("{words} x")).stdout(&shown);
            let running = running.stderr(&format!("opta: {stderr}\n")).spawn();
            let mut question = model.question();
            question.say("half");
            question.end_because(reason);
            running.finish();
        }
    }
}

#[test]
fn a_daemon_that_had_crashed_before_is_restarted_with_one_line() {
    let (home, model) = (Home::new(), Model::new());
    home.start();
    let old = home.crash();
    let stderr = "opta: daemon had crashed (pid {old}), restarted (pid {pid})\n";
    let running = task(&home, &model, "x").stdout("yes\n").stderr(stderr).with("old", old).spawn();
    model.question().answer("yes");
    running.finish();
}

#[test]
fn a_daemon_that_is_killed_interrupts_the_turn_and_nothing_runs_twice() {
    let (home, model) = (Home::new(), Model::new());
    let stderr = "opta: daemon had crashed (pid {old}), restarted (pid {pid})\n\
                opta: cannot finish the turn: the daemon ended while the turn was in progress \
                (interrupted)\n";
    home.start();
    let running = task(&home, &model, "x").stdout("so far\n").stderr(stderr).status(1).spawn();
    let mut question = model.question();
    question.say("so far");
    eventually("the answer begins", || running.output() == "so far");
    // Its end is not awaited: the next daemon may take the lock immediately.
    signal(home.owner().unwrap(), "KILL");
    running.finish();
    question.assert_dropped();
    model.assert_not_asked();
}

#[test]
fn a_restart_interrupts_the_turn_with_one_line() {
    let (home, model) = (Home::new(), Model::new());
    home.start();
    let stderr = "opta: cannot finish the turn: the daemon was stopped (interrupted)\n";
    let running = task(&home, &model, "x").stdout("so far\n").stderr(stderr).status(1).spawn();
    let mut question = model.question();
    question.say("so far");
    eventually("the answer begins", || running.output() == "so far");
    home.opta("daemon restart").stdout(ANYTHING).run();
    running.finish();
    model.assert_not_asked();
}

#[test]
fn a_task_that_cannot_be_followed_is_cancelled() {
    need!("prlimit");
    allow_descriptors();
    let (home, model) = (Home::new(), Model::new());
    home.start();
    let api = Api::of(&home);
    api.create("s");
    let most: usize = limits()["STREAMS_MAX"].parse().unwrap();
    let streams: Vec<_> = (0..most).map(|_| api.follow("s", 0, "").unwrap()).collect();
    let full = "opta: cannot follow the session: {*}too many event streams are open{*}\n";
    task(&home, &model, "x --resume s").stderr(full).status(1).run();
    drop(streams);
    let cancelled = |event: &Event| event.text.contains(r#""code":"cancelled""#);
    eventually("the turn is cancelled", || api.events("s", 0).iter().any(cancelled));
}

#[test]
fn a_command_that_waits_in_the_same_session_answers_no_permission_request() {
    let (home, model) = (Home::new(), Model::new());
    home.start();
    let api = Api::of(&home);
    api.create("s");
    let first = task(&home, &model, "first --resume s").stdout("done\n").stderr(ANYTHING).spawn();
    let question = model.question();
    let second = task(&home, &model, "second --resume s").stdout("done\n").spawn();
    eventually("the second turn waits", || api.get("/v3/sessions/s").number("queuedTurns") == 1);
    question.call("run_command", r#"{\"command\":\"true\"}"#);
    let next = model.question();
    assert!(next.body.contains("nobody is there to be asked"), "{}", next.body);
    next.answer("done");
    first.finish();
    model.question().answer("done");
    second.finish();
}

#[test]
fn without_autostart_the_error_says_how_to_start_the_daemon() {
    let (home, model) = (Home::new(), Model::new());
    let none = "opta: cannot reach the daemon: it is not running\nstart it: opta daemon start\n";
    task(&home, &model, "x").env("OPTA_NO_AUTOSTART", "1").stderr(none).status(3).run();
    home.assert_nothing_left();
}

#[test]
fn a_session_is_resumed_by_the_beginning_of_its_id() {
    let (home, model) = (Home::new(), Model::new());
    let first = r#"{"sessionId":"{id}",{*}"#;
    let running =
        task(&home, &model, "--json the word is plum").stdout(&format!("{first}\n")).spawn();
    model.question().answer("noted");
    let seen = running.finish();
    let id = seen.get("id");
    home.opta("daemon stop").stdout(STOPPED).run();
    let beginning = &id[..10];
    let words = format!("which word? --resume {beginning} -q");
    let running = task(&home, &model, &words).stdout("plum\n").spawn();
    let question = model.question();
    for text in ["the word is plum", "noted", "which word?"] {
        assert!(question.body.contains(text), "{text}: {}", question.body);
    }
    question.answer("plum");
    running.finish();
    // Longer than the only id: a single letter might begin it.
    let unknown = format!(
        "opta: cannot find the session: no id begins with '{id}0'\n\
         to see which there are: opta sessions list\n"
    );
    task(&home, &model, &format!("more --resume {id}0")).stderr(&unknown).status(1).run();
}

#[test]
fn yolo_is_announced() {
    let (home, model) = (Home::new(), Model::new());
    let stderr = "opta: everything is allowed in this task, including commands\n";
    let running = task(&home, &model, "--yolo x").stdout("yes\n").stderr(stderr).spawn();
    model.question().answer("yes");
    running.finish();
}

#[test]
fn a_closed_output_cancels_the_turn_without_a_message() {
    let (home, model) = (Home::new(), Model::new());
    let gone = home.beside("gone");
    let script = r#"opta do x | { head -c 3; exec <&-; echo >"$GONE"; }"#;
    let running = home.sh(script).env("GONE", &gone).env("OPTA_MODEL_URL", model.url());
    let running = running.stdout("one").spawn();
    let mut question = model.question();
    question.say("one");
    eventually("the reader is gone", || gone.exists());
    question.say("two");
    running.finish();
    question.assert_dropped();
}

#[test]
fn output_to_a_full_disk_is_an_error() {
    let (home, model) = (Home::new(), Model::new());
    let stderr = "opta: cannot write to standard output: No space left on device\n";
    let running = task(&home, &model, "x").output("/dev/full".as_ref()).stderr(stderr).status(1);
    let running = running.spawn();
    let mut question = model.question();
    question.say("one");
    running.finish();
    question.assert_dropped();
}
