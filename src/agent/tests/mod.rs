//! The turn loop with a scripted model, on real sessions: the events of the session, the requests
//! to the model, and how the turn ends. Nothing sleeps: tests wait for events, with a deadline.

mod cancel;
mod ends;
mod events;
mod flaws;
mod permissions;
pub mod scratch;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::json;
use crate::log::{Level, Log, Rotation};
use crate::protocol::event::SessionConfig;
use crate::protocol::{CancelTurns, Endpoint, Grant, Key, SubmitTurn, TurnOptions, Variable};
use crate::session::replay::ToolCall;
use crate::session::runtime::Runtime;
use crate::session::session::Session;
use crate::session::store::Store;
use crate::session::turn::Fault;
use crate::session::wake::Cancel;
use crate::sys;

use super::Assistant;
use super::model::{
    ChatModel, ChatRequest, Completion, Delta, DeltaKind, FinishReason, OnDelta, ServerMemory,
};
use super::tools::SeenBySession;
use super::workspaces::Workspaces;
use scratch::Scratch;

const DEADLINE: Duration = Duration::from_secs(60);

/// A request that the model received.
#[derive(Clone, Debug)]
struct Request {
    messages: String,
    tools: String,
    tool_choice: String,
}

/// What the model answers.
enum Answer {
    Text(&'static str),
    /// Names and arguments; the ids are the same.
    Calls(Vec<(&'static str, String)>),
    /// Cut off by its length.
    Cut(&'static str),
    /// Cut off by a filter.
    Filtered(&'static str),
    Fault(&'static str),
    /// With its text as deltas.
    Whole(Completion),
    /// A delta, then nothing more.
    Hangs,
}

struct ScriptedModel {
    script: Box<dyn Fn(usize) -> Answer + Send + Sync>,
    requests: Arc<Mutex<Vec<Request>>>,
    count: AtomicUsize,
    /// More bytes of messages do not fit into its context.
    context: Arc<AtomicUsize>,
    /// The size of the context that its server tells.
    context_tokens: Arc<Mutex<Option<u64>>>,
}

impl ChatModel for ScriptedModel {
    fn complete(
        &self,
        request: &ChatRequest<'_>,
        _memory: &ServerMemory,
        cancel: &Cancel,
        on_delta: &mut OnDelta<'_>,
    ) -> Result<Completion, Fault> {
        json::check(request.messages).unwrap();
        json::check(request.tools).unwrap();
        self.requests.lock().unwrap().push(Request {
            messages: request.messages.to_owned(),
            tools: request.tools.to_owned(),
            tool_choice: request.tool_choice.to_owned(),
        });
        if request.messages.len() > self.context.load(Ordering::SeqCst) {
            return Err(Fault { code: "context-too-long", message: "as measured".into() });
        }
        let mut completion = Completion {
            prompt_tokens: Some(10),
            completion_tokens: Some(5),
            took: Duration::from_secs(1),
            ..Completion::default()
        };
        match (self.script)(self.count.fetch_add(1, Ordering::SeqCst)) {
            Answer::Text(text) => {
                for word in text.split_inclusive(' ') {
                    on_delta(&delta(DeltaKind::Text, word))?;
                }
                completion.text = text.to_owned();
            }
            Answer::Calls(calls) => {
                on_delta(&delta(DeltaKind::Thinking, "hm"))?;
                let call = |(name, arguments): (&str, String)| ToolCall {
                    id: "same".into(),
                    name: name.into(),
                    arguments,
                    extra: String::new(),
                };
                completion.calls = calls.into_iter().map(call).collect();
            }
            Answer::Cut(text) => {
                completion.text = text.to_owned();
                completion.finish = FinishReason::Length;
            }
            Answer::Filtered(text) => {
                completion.text = text.to_owned();
                completion.finish = FinishReason::Other("content_filter".into());
            }
            Answer::Fault(code) => return Err(Fault { code, message: "as scripted".into() }),
            Answer::Whole(whole) => {
                for word in whole.text.split_inclusive(' ') {
                    on_delta(&delta(DeltaKind::Text, word))?;
                }
                completion = whole;
            }
            Answer::Hangs => {
                on_delta(&delta(DeltaKind::Text, "wait "))?;
                sys::wait_readable([cancel.as_fd()], Some(DEADLINE)).unwrap();
                return Err(crate::session::turn::cancelled());
            }
        }
        Ok(completion)
    }

    fn learn_context(&self, endpoint: &Endpoint, memory: &ServerMemory, _cancel: &Cancel) {
        let tokens = *self.context_tokens.lock().unwrap();
        memory.learn_context_size(endpoint, tokens, Instant::now());
    }
}

fn endpoint(tool_choice: Option<&str>) -> Endpoint {
    Endpoint {
        url: "http://127.0.0.1:1".into(),
        source: "a test".into(),
        key: Some(Key("sk-very-secret".into())),
        model: None,
        tool_choice: tool_choice.map(str::to_owned),
        ..Endpoint::default()
    }
}

fn delta(kind: DeltaKind, text: &str) -> Delta {
    Delta { kind, text: text.to_owned() }
}

fn call(name: &'static str, arguments: &str) -> Answer {
    Answer::Calls(vec![(name, arguments.to_owned())])
}

/// A daemon's sessions, with one of them.
struct Fixture {
    scratch: Scratch,
    runtime: Arc<Runtime>,
    session: Arc<Session>,
    requests: Arc<Mutex<Vec<Request>>>,
    /// See [`ScriptedModel::context`].
    context: Arc<AtomicUsize>,
    /// See [`ScriptedModel::context_tokens`].
    context_tokens: Arc<Mutex<Option<u64>>>,
}

/// An event: its name and its payload.
type Event = (String, String);

impl Fixture {
    fn new(script: impl Fn(usize) -> Answer + Send + Sync + 'static) -> Fixture {
        Fixture::with(true, None, script)
    }

    fn with(
        has_workspace: bool,
        mode: Option<&str>,
        script: impl Fn(usize) -> Answer + Send + Sync + 'static,
    ) -> Fixture {
        let scratch = Scratch::new();
        scratch.put("work/notes.txt", "buy milk\n");
        let rotation = Rotation { bytes: crate::limits::LOG_BYTES_DEFAULT, files: 1 };
        let log = Log::open(scratch.path(), rotation, Level::Debug).unwrap();
        let requests = Arc::default();
        let context = Arc::new(AtomicUsize::new(usize::MAX));
        let context_tokens: Arc<Mutex<Option<u64>>> = Arc::default();
        let model = ScriptedModel {
            script: Box::new(script),
            requests: Arc::clone(&requests),
            count: AtomicUsize::new(0),
            context: Arc::clone(&context),
            context_tokens: Arc::clone(&context_tokens),
        };
        let agent = Assistant {
            config: scratch.path().join("config.json"),
            workspaces: Workspaces {
                config: scratch.path().join("config.json"),
                labels: Some(scratch.path().join("opta/workspaces")),
                protected: vec![scratch.path().join("work/own")],
            },
            log: log.clone(),
            model: Box::new(model),
            memory: ServerMemory::default(),
            seen: SeenBySession::default(),
            journal_bytes_max: 1 << 20,
        };
        let store = Store::new(scratch.path().join("sessions"));
        let runtime = Runtime::new(store, "daemon_test", log, Box::new(agent));
        let work = scratch.path().join("work").to_str().unwrap().to_owned();
        let (workspace, mode) = (has_workspace.then_some(work), mode.map(str::to_owned));
        let config = SessionConfig { workspace, mode, ..SessionConfig::default() };
        let session = runtime.create(None, &config).unwrap();
        Fixture { scratch, runtime, session, requests, context, context_tokens }
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

    fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        self.session
            .reader()
            .all(|record| {
                events.push((record.kind.unwrap().name().to_owned(), record.payload.to_owned()));
            })
            .unwrap();
        events
    }

    /// Waits until the events are as wanted.
    fn wait_until(&self, wanted: impl Fn(&[Event]) -> bool) -> Vec<Event> {
        let subscription = self.session.subscribe(false).unwrap();
        let waker = &subscription.waker;
        let deadline = Instant::now() + DEADLINE;
        loop {
            waker.arm();
            let events = self.events();
            if wanted(&events) {
                return events;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let [woken] = sys::wait_readable([waker.as_fd()], Some(left)).unwrap();
            assert!(woken, "{events:#?}");
            waker.drain();
        }
    }

    /// Waits for an event with this name.
    fn wait_for(&self, name: &str) -> Vec<Event> {
        self.wait_until(|events| events.iter().any(|(event, _)| event == name))
    }

    /// Runs a turn to its end, which must be `event`.
    fn run(&self, options: TurnOptions, event: &str) -> Vec<Event> {
        self.submit("do it", options);
        self.wait_for_end(event)
    }

    fn wait_for_end(&self, event: &str) -> Vec<Event> {
        let is_end = |(event, _): &Event| matches!(event.as_str(), "turn.done" | "turn.error");
        let events = self.wait_until(|events| events.last().is_some_and(is_end));
        assert_eq!(events.last().unwrap().0, event, "{events:#?}");
        events
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
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

fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(|(event, _)| event.as_str()).collect()
}

/// The payloads of the events with one name.
fn payloads<'e>(events: &'e [Event], name: &str) -> Vec<&'e str> {
    let these = events.iter().filter(|(event, _)| event == name);
    these.map(|(_, payload)| payload.as_str()).collect()
}

/// Options of a caller that answers questions. All name a model, so that no server is looked
/// for.
fn attended() -> TurnOptions {
    let endpoint = Some(endpoint(None));
    TurnOptions { endpoint, attended: Some(true), ..TurnOptions::default() }
}

fn unattended() -> TurnOptions {
    TurnOptions { attended: Some(false), ..attended() }
}

fn granted(grant: Grant) -> TurnOptions {
    TurnOptions { grant: Some(grant.name().to_owned()), ..unattended() }
}
