//! The loop with a model that is a script, on real sessions: what the session hears, what the model
//! hears, and how it ends. Nothing sleeps; what has to be waited for is an event, with a deadline.

mod allowed;
mod cancel;
mod ends;
mod talk;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::tools::scratch::Scratch;
use super::*;
use crate::json;
use crate::log::{Level, Rotation};
use crate::protocol::event::SessionConfig;
use crate::protocol::{CancelTurns, Endpoint, Grant, Key, SubmitTurn, TurnOptions, Variable};
use crate::session::desk::Session;
use crate::session::rules::ToolCall;
use crate::session::runtime::Runtime;
use crate::session::store::Store;
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
    /// The same, ended by neither itself nor its length.
    Filtered(&'static str),
    Fault(&'static str),
    /// Something, then nothing more.
    Hangs,
}

struct Scripted {
    script: Box<dyn Fn(usize) -> Says + Send + Sync>,
    asked: Arc<Mutex<Vec<Asked>>>,
    count: AtomicUsize,
    /// More bytes of messages than that are too many for it.
    context: Arc<AtomicUsize>,
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
        if ask.messages.len() > self.context.load(Ordering::SeqCst) {
            return Err(Fault { code: "context-too-long", message: "as measured".into() });
        }
        let says = (self.script)(self.count.fetch_add(1, Ordering::SeqCst));
        let mut answer = Answer {
            text: String::new(),
            calls: Vec::new(),
            finish: Finish::Stop,
            prompt_tokens: Some(10),
            completion_tokens: Some(5),
            took: Duration::from_secs(1),
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
            Says::Filtered(text) => {
                answer.text = text.to_owned();
                answer.finish = Finish::Other("content_filter".into());
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
    /// See [`Scripted::context`].
    context: Arc<AtomicUsize>,
}

/// An event: its name and its payload.
type Heard = (String, String);

impl Stage {
    fn new(script: impl Fn(usize) -> Says + Send + Sync + 'static) -> Stage {
        Stage::in_workspace(true, script)
    }

    fn in_workspace(there: bool, script: impl Fn(usize) -> Says + Send + Sync + 'static) -> Stage {
        Stage::founded(there, None, script)
    }

    fn founded(
        there: bool,
        mode: Option<&str>,
        script: impl Fn(usize) -> Says + Send + Sync + 'static,
    ) -> Stage {
        let scratch = Scratch::new();
        scratch.put("work/notes.txt", "buy milk\n");
        let rotation = Rotation { bytes: crate::limits::LOG_BYTES_DEFAULT, files: 1 };
        let log = Log::open(scratch.path(), rotation, Level::Debug).unwrap();
        let asked = Arc::default();
        let context = Arc::new(AtomicUsize::new(usize::MAX));
        let model = Scripted {
            script: Box::new(script),
            asked: Arc::clone(&asked),
            count: AtomicUsize::new(0),
            context: Arc::clone(&context),
        };
        let config = scratch.path().join("config.json");
        let closed = vec![scratch.path().join("work/own")];
        let (model, contexts) = (Box::new(model), Contexts::default());
        let agent = Assistant { config, closed, log: log.clone(), model, contexts };
        let store = Store::new(scratch.path().join("sessions"));
        let runtime = Runtime::new(store, "daemon_test", log, Box::new(agent));
        let work = scratch.path().join("work").to_str().unwrap().to_owned();
        let (workspace, mode) = (there.then_some(work), mode.map(str::to_owned));
        let config = SessionConfig { workspace, mode, ..SessionConfig::default() };
        let session = runtime.create(None, &config).unwrap();
        Stage { scratch, runtime, session, asked, context }
    }

    fn submit(&self, content: &str, options: TurnOptions) {
        let submission = SubmitTurn {
            client_id: Some("c".into()),
            writer_id: Some("w".into()),
            content: content.into(),
            options: Some(options),
            ..SubmitTurn::default()
        };
        self.runtime.submit(&self.session, &submission).unwrap();
    }

    fn events(&self) -> Vec<Heard> {
        let mut events = Vec::new();
        self.session
            .reader()
            .all(|record| {
                events.push((record.kind.unwrap().name().to_owned(), record.payload.to_owned()));
            })
            .unwrap();
        events
    }

    /// Waits until there are so many events of one name.
    fn wait_for(&self, name: &str, count: usize) -> Vec<Heard> {
        let waker = self.session.subscribe(false).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            waker.arm();
            let events = self.events();
            if events.iter().filter(|(event, _)| event == name).count() >= count {
                return events;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let [rung] = sys::wait_readable([waker.as_fd()], Some(left)).unwrap();
            assert!(rung, "no {name}: {events:#?}");
            waker.drain();
        }
    }

    /// Runs a turn to its end, which is `event`.
    fn run(&self, options: TurnOptions, event: &str) -> Vec<Heard> {
        self.submit("do it", options);
        self.ended(event)
    }

    fn ended(&self, event: &str) -> Vec<Heard> {
        let waker = self.session.subscribe(false).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            waker.arm();
            let events = self.events();
            let last = events.last().unwrap();
            if matches!(last.0.as_str(), "turn.done" | "turn.error") {
                assert_eq!(last.0, event, "{events:#?}");
                return events;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let [rung] = sys::wait_readable([waker.as_fd()], Some(left)).unwrap();
            assert!(rung, "no end: {events:#?}");
            waker.drain();
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
        self.runtime.cancel(&self.session, &CancelTurns::default()).unwrap();
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

fn attended() -> TurnOptions {
    TurnOptions { attended: Some(true), ..TurnOptions::default() }
}

fn alone() -> TurnOptions {
    TurnOptions { attended: Some(false), ..TurnOptions::default() }
}

fn granted(grant: Grant) -> TurnOptions {
    TurnOptions { grant: Some(grant.name().to_owned()), ..alone() }
}
