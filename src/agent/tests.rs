//! The loop with a model that is a script, on real sessions: what the session hears, what the model
//! hears, and how it ends. Nothing sleeps; what has to be waited for is an event, with a deadline.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::tools::scratch::Scratch;
use super::*;
use crate::json::{self, Raw};
use crate::log::{Level, Rotation};
use crate::session::desk::{Decision, Session};
use crate::session::rules::{Founding, ToolCall};
use crate::session::runtime::Runtime;
use crate::session::store::Store;
use crate::session::turn::{Grant, Key, Options, Selector, Submission};
use crate::sys;
use model::Finish;

const PATIENCE: Duration = Duration::from_secs(60);

/// What the model was asked.
#[derive(Clone, Debug)]
struct Asked {
    messages: String,
    tools: String,
    tool_choice: String,
}

/// What it says.
enum Says {
    Text(&'static str),
    /// Names and arguments; the ids are left out.
    Calls(Vec<(&'static str, String)>),
    Cut(&'static str),
    Fault(&'static str),
    /// Something, then nothing more.
    Hangs,
}

struct Scripted {
    script: Box<dyn Fn(usize) -> Says + Send + Sync>,
    asked: Arc<Mutex<Vec<Asked>>>,
    count: AtomicUsize,
}

impl Model for Scripted {
    fn endpoint(&self, _settings: &ModelSettings, model: Option<&str>) -> Result<Endpoint, Fault> {
        Ok(endpoint(None, model))
    }

    fn ask(
        &self,
        ask: &Ask<'_>,
        cancel: &Cancel,
        on_piece: &mut dyn FnMut(Piece<'_>) -> Result<(), Fault>,
    ) -> Result<Answer, Fault> {
        json::check(ask.messages).unwrap();
        json::check(ask.tools).unwrap();
        self.asked.lock().unwrap().push(Asked {
            messages: ask.messages.to_owned(),
            tools: ask.tools.to_owned(),
            tool_choice: ask.tool_choice.to_owned(),
        });
        let says = (self.script)(self.count.fetch_add(1, Ordering::SeqCst));
        let mut answer = Answer {
            text: String::new(),
            calls: Vec::new(),
            finish: Finish::Stop,
            prompt_tokens: Some(10),
            completion_tokens: Some(5),
        };
        match says {
            Says::Text(text) => {
                for word in text.split_inclusive(' ') {
                    on_piece(Piece::Text(word))?;
                }
                answer.text = text.to_owned();
            }
            Says::Calls(calls) => {
                on_piece(Piece::Thinking("hm"))?;
                answer.finish = Finish::ToolCalls;
                answer.calls = calls
                    .into_iter()
                    .map(|(name, arguments)| ToolCall {
                        id: "same".into(),
                        name: name.into(),
                        arguments,
                    })
                    .collect();
            }
            Says::Cut(text) => {
                answer.text = text.to_owned();
                answer.finish = Finish::Length;
            }
            Says::Fault(code) => return Err(Fault { code, message: "as scripted".into() }),
            Says::Hangs => {
                on_piece(Piece::Text("wait "))?;
                sys::wait_readable([cancel.as_fd()], Some(PATIENCE)).unwrap();
                return Err(crate::session::turn::cancelled());
            }
        }
        Ok(answer)
    }
}

fn endpoint(tool_choice: Option<&str>, model: Option<&str>) -> Endpoint {
    Endpoint {
        url: "http://127.0.0.1:1".into(),
        source: "a test".into(),
        key: Some(Key("sk-very-secret".into())),
        model: model.map(str::to_owned),
        tool_choice: tool_choice.map(str::to_owned),
    }
}

fn call(name: &'static str, arguments: &str) -> Says {
    Says::Calls(vec![(name, arguments.to_owned())])
}

/// A daemon's sessions, with one of them.
struct Stage {
    scratch: Scratch,
    runtime: Arc<Runtime>,
    session: Arc<Session>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// An event: its name and its payload.
type Heard = (String, String);

impl Stage {
    fn new(script: impl Fn(usize) -> Says + Send + Sync + 'static) -> Stage {
        Stage::in_workspace(true, script)
    }

    fn in_workspace(there: bool, script: impl Fn(usize) -> Says + Send + Sync + 'static) -> Stage {
        let scratch = Scratch::new();
        scratch.put("work/notes.txt", "buy milk\n");
        let rotation = Rotation { bytes: crate::limits::LOG_BYTES_DEFAULT, files: 1 };
        let log = Log::open(scratch.path(), rotation, Level::Debug).unwrap();
        let asked = Arc::default();
        let model = Scripted {
            script: Box::new(script),
            asked: Arc::clone(&asked),
            count: AtomicUsize::new(0),
        };
        let config = scratch.path().join("config.json");
        let agent = Assistant { config, log: log.clone(), model: Box::new(model) };
        let store = Store::new(scratch.path().join("sessions"));
        let runtime = Runtime::new(store, "daemon_test", log, Box::new(agent));
        let work = scratch.path().join("work").to_str().unwrap().to_owned();
        let founding = Founding { workspace: there.then_some(work), ..Founding::default() };
        let session = runtime.create(None, &founding).unwrap();
        Stage { scratch, runtime, session, asked }
    }

    fn submit(&self, content: &str, options: Options) {
        let submission = Submission {
            turn_id: None,
            client_id: "c".into(),
            writer_id: "w".into(),
            content: content.into(),
            mode: None,
            last_seen_seq: None,
            metadata: None,
            options,
        };
        self.runtime.submit(&self.session, &submission).unwrap();
    }

    fn events(&self) -> Vec<Heard> {
        let mut events = Vec::new();
        self.session
            .reader()
            .all(|record| events.push((record.event.to_owned(), record.payload.to_owned())))
            .unwrap();
        events
    }

    /// Waits until there are so many events of one name.
    fn wait_for(&self, name: &str, count: usize) -> Vec<Heard> {
        let bell = self.session.subscribe().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            bell.await_next();
            let events = self.events();
            if events.iter().filter(|(event, _)| event == name).count() >= count {
                return events;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let [rung] = sys::wait_readable([bell.as_fd()], Some(left)).unwrap();
            assert!(rung, "no {name}: {events:#?}");
            bell.silence();
        }
    }

    /// Runs a turn to its end, which is `event`.
    fn run(&self, options: Options, event: &str) -> Vec<Heard> {
        self.submit("do it", options);
        self.ended(event)
    }

    fn ended(&self, event: &str) -> Vec<Heard> {
        let bell = self.session.subscribe().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            bell.await_next();
            let events = self.events();
            let last = events.last().unwrap();
            if matches!(last.0.as_str(), "turn.done" | "turn.error") {
                assert_eq!(last.0, event, "{events:#?}");
                return events;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let [rung] = sys::wait_readable([bell.as_fd()], Some(left)).unwrap();
            assert!(rung, "no end: {events:#?}");
            bell.silence();
        }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn log(&self) -> String {
        self.scratch.read("daemon.log")
    }

    fn cancel(&self) -> Instant {
        let now = Instant::now();
        self.runtime.cancel(&self.session, &Selector::default()).unwrap();
        now
    }
}

fn names(events: &[Heard]) -> Vec<&str> {
    events.iter().map(|(event, _)| event.as_str()).collect()
}

/// The payloads of one kind of event.
fn of<'e>(events: &'e [Heard], name: &str) -> Vec<&'e str> {
    let these = events.iter().filter(|(event, _)| event == name);
    these.map(|(_, payload)| payload.as_str()).collect()
}

fn attended() -> Options {
    Options { attended: Some(true), ..Options::default() }
}

fn alone() -> Options {
    Options { attended: Some(false), ..Options::default() }
}

fn granted(grant: Grant) -> Options {
    Options { grant, ..alone() }
}

#[test]
fn a_call_is_told_run_and_answered_and_the_answer_streamed() {
    let stage = Stage::new(|round| match round {
        0 => call("file_read", r#"{ "path": "notes.txt" }"#),
        _ => Says::Text("Buy milk \tnow.\n"),
    });
    let events = stage.run(alone(), "turn.done");
    let wanted = [
        "session.snapshot",
        "turn.queued",
        "turn.start",
        "turn.thinking",
        "tool.start",
        "tool.end",
        "turn.token",
        "turn.token",
        "turn.token",
        "turn.done",
    ];
    assert_eq!(names(&events), wanted);
    let start = of(&events, "tool.start")[0];
    assert!(
        start.contains(r#""name":"read_file","id":"same","args":"{ \"path\": \"notes.txt\" }","#)
    );
    assert!(start.contains(r#""toolName":"read_file","callId":"same","toolCallId":"same","#));
    assert!(start.ends_with(r#""input":{"path":"notes.txt"}}"#), "{start}");
    let end = of(&events, "tool.end")[0];
    assert!(end.contains(r#""result":"1\tbuy milk\n""#) && end.contains(r#""success":true"#));
    let texts: String = of(&events, "turn.token").join("");
    assert!(texts.contains(r#""text":"\tnow.\n""#), "{texts}");
    let done = of(&events, "turn.done")[0];
    assert!(done.contains(r#""tokens":10,"promptTokens":20,"completionTokens":10,"toolCalls":1"#));

    let asked = stage.asked();
    assert_eq!(asked.len(), 2);
    assert!(asked[0].messages.starts_with(r#"[{"role":"system","content":"You are opta"#));
    assert!(asked[0].messages.ends_with(r#"{"role":"user","content":"do it"}]"#));
    let told = r#""tool_calls":[{"id":"same","type":"function","function":{"name":"read_file","arguments":"{\"path\":\"notes.txt\"}"}}]},{"role":"tool","tool_call_id":"same","content":"1\tbuy milk\n"}]"#;
    assert!(asked[1].messages.ends_with(told), "{}", asked[1].messages);
    assert_eq!(asked[0].tools.matches("\"function\":{").count(), 7);

    let log = stage.log();
    assert!(log.contains(r#""msg":"tool.start","tool":"file_read","path":"notes.txt"}"#), "{log}");
    assert!(log.contains(r#""msg":"tool.end","tool":"file_read","duration":""#), "{log}");
    for secret in ["sk-very-secret", "buy milk", "do it"] {
        assert!(!log.contains(secret), "{secret}");
    }
    let journal = format!("{events:?}");
    assert!(!journal.contains("sk-very-secret"));
}

#[test]
fn the_next_turn_knows_what_was_said_and_done() {
    let stage = Stage::new(|round| match round {
        0 => call("read_file", r#"{"path":"notes.txt"}"#),
        1 => Says::Text("Milk."),
        _ => Says::Text("As I said."),
    });
    stage.run(alone(), "turn.done");
    let before = stage.asked()[1].messages.clone();
    stage.run(alone(), "turn.done");
    let begun = before.strip_suffix(']').unwrap();
    let asked = stage.asked()[2].messages.clone();
    let rest = asked.strip_prefix(begun).unwrap();
    let wanted = r#",{"role":"assistant","content":"Milk."},{"role":"user","content":"do it"}]"#;
    assert_eq!(rest, wanted);
}

#[test]
fn what_only_reads_runs_side_by_side_and_answers_in_order() {
    let stage = Stage::new(|round| match round {
        0 => Says::Calls(vec![
            ("search_files", r#"{"pattern":"milk"}"#.into()),
            ("read_file", r#"{"path":"none"}"#.into()),
            ("list_dir", "{}".into()),
        ]),
        _ => Says::Text("done"),
    });
    let events = stage.run(alone(), "turn.done");
    let wanted = ["tool.start", "tool.start", "tool.start", "tool.end", "tool.end", "tool.end"];
    assert_eq!(names(&events)[4..10], wanted);
    let ends = of(&events, "tool.end");
    for (end, (id, text)) in ends.iter().zip([
        ("same", "notes.txt:1:buy milk"),
        ("call_2", "error: there is no none"),
        ("call_3", "notes.txt"),
    ]) {
        assert!(end.contains(&format!("\"id\":\"{id}\"")) && end.contains(text), "{end}");
    }
    let told = &stage.asked()[1].messages;
    let order: Vec<usize> =
        ["\"same\",\"content\"", "\"call_2\",\"content\"", "\"call_3\",\"content\""]
            .iter()
            .map(|id| told.find(id).unwrap())
            .collect();
    assert!(order.is_sorted(), "{told}");
}

#[test]
fn wrong_calls_go_back_to_the_model_with_their_place() {
    let stage = Stage::new(|round| match round {
        0 => Says::Calls(vec![
            ("read_file", "{\"path\":\n\"no".into()),
            ("read_file", r#"{"file":"x"}"#.into()),
            ("rm", "{}".into()),
        ]),
        _ => Says::Text("sorry"),
    });
    let events = stage.run(granted(Grant::All), "turn.done");
    let ends = of(&events, "tool.end");
    assert!(ends[0].contains("error: read_file needs {\\\"path\\\": string"), "{}", ends[0]);
    assert!(ends[0].contains("line 2, column 1"), "{}", ends[0]);
    assert!(ends[1].contains("the field \\\"path\\\" is missing"), "{}", ends[1]);
    assert!(ends[2].contains("error: there is no tool \\\"rm\\\"; the tools are read_file,"));
    assert!(ends.iter().all(|end| end.contains(r#""success":false"#)));
    assert!(of(&events, "tool.start")[0].ends_with(r#""input":{}}"#));
    assert_eq!(stage.asked()[1].messages.matches(r#""arguments":"{}""#).count(), 2);
}

#[test]
fn the_same_call_three_times_in_a_row_ends_the_turn() {
    let stage = Stage::new(|round| {
        let blanks = " ".repeat(round);
        call("read_file", &format!(r#"{{{blanks}"path":"notes.txt"}}"#))
    });
    let events = stage.run(alone(), "turn.error");
    let error = of(&events, "turn.error")[0];
    assert!(error.contains(r#""code":"tool-loop""#) && error.contains("read_file"), "{error}");
    assert_eq!(of(&events, "tool.start").len(), 2);
    assert_eq!(of(&events, "tool.end").len(), 2);

    let stage = Stage::new(|round| match round {
        6 => Says::Text("done"),
        _ => call("read_file", &format!(r#"{{"path":"notes.txt","offset":{}}}"#, round % 2)),
    });
    assert_eq!(of(&stage.run(alone(), "turn.done"), "tool.end").len(), 6);
}

#[test]
fn calls_are_counted_and_the_last_question_is_asked_without_tools() {
    let next =
        |round: usize| call("list_dir", &format!(r#"{{"path":"{}"}}"#, "./".repeat(round + 1)));
    let stage = Stage::new(move |round| if round < 3 { next(round) } else { Says::Text("enough") });
    stage.scratch.put("config.json", r#"{"safety":{"maxToolCalls":3}}"#);
    let events = stage.run(alone(), "turn.done");
    assert_eq!(of(&events, "tool.start").len(), 3);
    let asked = stage.asked();
    assert_ne!(asked[2].tools, "[]");
    assert_eq!((asked[3].tools.as_str(), asked[3].tool_choice.as_str()), ("[]", "none"));

    let stage = Stage::new(next);
    let events = stage.run(alone(), "turn.error");
    assert_eq!(of(&events, "tool.start").len(), 30);
    assert!(of(&events, "turn.error")[0].contains(r#""code":"tool-limit""#));

    // Of one reply with too many, those that fit are run.
    let many = |count: usize| {
        (0..count)
            .map(|n| ("list_dir", format!(r#"{{"path":"{}"}}"#, "./".repeat(n + 1))))
            .collect()
    };
    let stage = Stage::new(move |round| match round {
        0 => Says::Calls(many(31)),
        _ => Says::Text("done"),
    });
    assert_eq!(of(&stage.run(alone(), "turn.done"), "tool.start").len(), 30);
}

#[test]
fn a_tool_is_required_as_often_as_was_asked_for() {
    for (choice, wanted) in [
        (None, ["auto", "auto"]),
        (Some("auto"), ["auto", "auto"]),
        (Some("required-first"), ["required", "auto"]),
        (Some("required"), ["required", "required"]),
    ] {
        let stage = Stage::new(|round| match round {
            0 => call("list_dir", "{}"),
            _ => Says::Text("done"),
        });
        let options = Options { endpoint: Some(endpoint(choice, None)), ..alone() };
        stage.run(options, "turn.done");
        let asked: Vec<String> = stage.asked().into_iter().map(|asked| asked.tool_choice).collect();
        assert_eq!(asked, wanted, "{choice:?}");
    }
}

#[test]
fn without_anybody_to_ask_what_must_be_asked_is_refused_at_once_and_said() {
    let stage = Stage::new(|round| match round {
        0 => call("write_file", r#"{"path":"new","content":"x"}"#),
        1 => call("run_command", r#"{"command":"touch ran"}"#),
        _ => Says::Text("then not"),
    });
    let events = stage.run(alone(), "turn.done");
    assert!(of(&events, "permission.request").is_empty());
    let ends = of(&events, "tool.end");
    assert!(
        ends.iter().all(|end| end.contains("error: permission denied") && end.contains("nobody"))
    );
    assert!(stage.asked()[1].messages.contains("permission denied"));
    assert!(!stage.scratch.path().join("work/new").exists());
    assert!(!stage.scratch.path().join("work/ran").exists());
    assert!(
        stage
            .log()
            .contains(r#""msg":"permission resolved","tool":"file_write","decision":"deny""#)
    );
}

#[test]
fn grants_and_settings_decide_together() {
    let cases = [
        (Grant::Edits, "{}", true, false),
        (Grant::All, "{}", true, true),
        (Grant::All, r#"{"permissions":{"shell":"deny"}}"#, true, false),
        (Grant::All, r#"{"permissions":{"write_file":"deny","run_command":"allow"}}"#, false, true),
        (Grant::Settings, r#"{"permissions":{"file_write":"allow","shell":"allow"}}"#, true, true),
    ];
    for (grant, config, writes, runs) in cases {
        let stage = Stage::new(|round| match round {
            0 => call("write_file", r#"{"path":"new","content":"x"}"#),
            1 => call("run_command", r#"{"command":"touch ran"}"#),
            _ => Says::Text("done"),
        });
        stage.scratch.put("config.json", config);
        stage.run(granted(grant), "turn.done");
        let there = |name: &str| stage.scratch.path().join("work").join(name).exists();
        assert_eq!((there("new"), there("ran")), (writes, runs), "{config}");
        let offered = &stage.asked()[0].tools;
        assert_eq!(offered.contains("write_file"), writes, "{config}");
    }
}

/// Answers the question that the turn asks.
fn answer(stage: &Stage, allow: bool) -> Raw {
    let events = stage.wait_for("permission.request", 1);
    let request = of(&events, "permission.request")[0];
    assert!(request.contains(r#""toolName":"run_command""#), "{request}");
    assert!(request.contains(r#""input":{"command":"touch ran"}"#), "{request}");
    let id = request.split("\"requestId\":\"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(stage.session.decide(id, allow, "me").unwrap(), Decision::Won);
    assert_eq!(stage.session.decide(id, !allow, "late").unwrap(), Decision::TooLate);
    Raw::parse(request).unwrap()
}

#[test]
fn the_first_answer_counts_and_nothing_runs_before_it() {
    for allow in [true, false] {
        let stage = Stage::new(|round| match round {
            0 => call("run_command", r#"{"command":"touch ran"}"#),
            _ => Says::Text("done"),
        });
        stage.submit("do it", attended());
        stage.wait_for("permission.request", 1);
        assert!(!stage.scratch.path().join("work/ran").exists());
        answer(&stage, allow);
        let events = stage.ended("turn.done");
        assert_eq!(stage.scratch.path().join("work/ran").exists(), allow);
        let order: Vec<&str> =
            names(&events).into_iter().filter(|n| !n.starts_with("turn")).collect();
        let wanted = [
            "session.snapshot",
            "permission.request",
            "permission.resolved",
            "tool.start",
            "tool.end",
        ];
        assert_eq!(order, wanted);
        let log = stage.log();
        assert!(log.contains(r#""msg":"permission requested","tool":"shell"}"#), "{log}");
        let decision = if allow { "allow" } else { "deny" };
        assert!(log.contains(&format!(r#""tool":"shell","decision":"{decision}""#)), "{log}");
        assert!(!log.contains("touch"), "{log}");
    }
}

#[test]
fn another_listener_can_be_asked() {
    let stage = Stage::new(|round| match round {
        0 => call("run_command", r#"{"command":"touch ran"}"#),
        _ => Says::Text("done"),
    });
    let _own = stage.session.subscribe().unwrap();
    let _other = stage.session.subscribe().unwrap();
    stage.submit("do it", alone());
    answer(&stage, true);
    stage.ended("turn.done");
    assert!(stage.scratch.path().join("work/ran").exists());
}

/// What a cancel may take, on a machine that has other things to do.
const AT_ONCE: Duration = Duration::from_millis(100);

fn cancelled_at_once(stage: &Stage) -> Vec<Heard> {
    let wished = stage.cancel();
    let events = stage.ended("turn.error");
    assert!(wished.elapsed() < AT_ONCE, "{:?}", wished.elapsed());
    assert!(of(&events, "turn.error")[0].contains(r#""code":"cancelled""#));
    events
}

#[test]
fn cancel_reaches_a_question() {
    let stage = Stage::new(|_| call("run_command", r#"{"command":"touch ran"}"#));
    stage.submit("do it", attended());
    stage.wait_for("permission.request", 1);
    let events = cancelled_at_once(&stage);
    assert!(of(&events, "permission.resolved")[0].contains(r#""approved":false"#));
    assert!(of(&events, "tool.start").is_empty());
}

#[test]
fn cancel_reaches_the_model() {
    let stage = Stage::new(|_| Says::Hangs);
    stage.submit("do it", alone());
    stage.wait_for("turn.token", 1);
    cancelled_at_once(&stage);
}

#[test]
fn cancel_reaches_a_command_and_its_call_is_answered() {
    let stage = Stage::new(|_| call("run_command", r#"{"command":"echo > pipe; sleep 600"}"#));
    let pipe = stage.scratch.path().join("work/pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    stage.submit("do it", granted(Grant::All));
    assert_eq!(File::open(&pipe).unwrap().read(&mut [0]).unwrap(), 1);
    let events = cancelled_at_once(&stage);
    assert!(of(&events, "tool.end")[0].contains("[cancelled]"));
}

#[test]
fn damaged_settings_end_the_turn_with_their_place_and_count_once_repaired() {
    let stage = Stage::new(|_| Says::Text("done"));
    for (text, place) in [
        ("{\n \"permissions\": {\"shell\": \"perhaps\"}}", "config.json:2:"),
        ("{\n", "config.json:"),
        (r#"{"safety":{"maxToolCalls":0}}"#, "safety.maxToolCalls"),
        (r#"{"safety":{"maxToolCalls":1001}}"#, "safety.maxToolCalls"),
    ] {
        stage.scratch.put("config.json", text);
        let events = stage.run(alone(), "turn.error");
        let error = events.last().unwrap().1.clone();
        assert!(error.contains(r#""code":"config-error""#) && error.contains(place), "{error}");
    }
    stage.scratch.put("config.json", "{}");
    stage.run(alone(), "turn.done");
}

#[test]
fn faults_of_the_model_end_the_turn_and_a_full_context_is_tried_again_with_less() {
    let stage = Stage::new(|_| Says::Fault("model-disconnected"));
    let events = stage.run(alone(), "turn.error");
    assert!(of(&events, "turn.error")[0].contains(r#""code":"model-disconnected""#));

    let stage = Stage::new(|round| match round {
        0 | 1 => call("read_file", &format!(r#"{{"path":"notes.txt","limit":{}}}"#, round + 1)),
        3 => Says::Text("done"),
        _ => Says::Fault("context-too-long"),
    });
    stage.run(alone(), "turn.done");
    let asked = stage.asked();
    assert!(
        !asked[2].messages.contains("is left out") && asked[3].messages.contains("is left out")
    );
    let events = stage.run(alone(), "turn.error");
    assert!(of(&events, "turn.error")[0].contains(r#""code":"context-too-long""#));
}

#[test]
fn an_answer_that_is_cut_off_before_a_word_is_an_error_and_one_with_words_is_not() {
    let stage = Stage::new(|_| Says::Cut(""));
    let events = stage.run(alone(), "turn.error");
    assert!(of(&events, "turn.error")[0].contains(r#""code":"model-cut-off""#));
    // Not even if the words look like a call.
    let stage = Stage::new(|_| Says::Cut(r#"{"name":"list_dir","arguments":{}}"#));
    let events = stage.run(alone(), "turn.done");
    assert!(of(&events, "tool.start").is_empty());
}

#[test]
fn a_call_that_is_written_as_text_is_a_call() {
    let stage = Stage::new(|round| match round {
        0 => Says::Text(r#"{"name":"read_file","arguments":{"path":"notes.txt"}}"#),
        _ => Says::Text("done"),
    });
    let events = stage.run(alone(), "turn.done");
    assert!(of(&events, "tool.end")[0].contains("buy milk"));
}

#[test]
fn without_a_workspace_there_are_no_tools() {
    let stage = Stage::in_workspace(false, |_| Says::Text("hello"));
    stage.run(granted(Grant::All), "turn.done");
    let asked = stage.asked();
    assert_eq!((asked[0].tools.as_str(), asked[0].tool_choice.as_str()), ("[]", "none"));
    // One that has gone is told to the model when it matters.
    let stage = Stage::new(|round| match round {
        0 => call("list_dir", "{}"),
        _ => Says::Text("gone"),
    });
    std::fs::remove_dir_all(stage.scratch.path().join("work")).unwrap();
    let events = stage.run(alone(), "turn.done");
    assert!(of(&events, "tool.end")[0].contains("cannot be opened: No such file"));
}

#[test]
fn commands_have_the_callers_environment() {
    let stage = Stage::new(|round| match round {
        0 => call("run_command", r#"{"command":"echo $MINE; echo $HOME"}"#),
        _ => Says::Text("done"),
    });
    let environment = vec![("MINE".to_owned(), "of the caller".to_owned())];
    let events = stage.run(Options { environment, ..granted(Grant::All) }, "turn.done");
    let end = of(&events, "tool.end")[0];
    assert!(end.contains(r#""result":"of the caller\n\n[exit code: 0]""#), "{end}");
    assert!(!format!("{events:?}").contains("MINE=") && !stage.log().contains("of the caller"));
}
