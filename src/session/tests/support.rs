//! Runtimes with scripted agents, and what the tests of them wait for.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::log::{Level, Log, Rotation};
use crate::protocol::SubmitTurn;
use crate::protocol::event::{Event, SessionConfig, TurnStats};
use crate::session::runtime::Runtime;
use crate::session::session::Session;
use crate::session::store::Store;
use crate::session::turn::Turn;
use crate::session::turn::{Agent, Fault};
use crate::{limits, sys};

use super::{PATIENCE, Scratch, id};

/// An agent that calls a function.
struct FnAgent<F>(F);

impl<F: Fn(&Turn<'_>) -> Result<TurnStats, Fault> + Send + Sync> Agent for FnAgent<F> {
    fn run(&self, turn: &Turn<'_>) -> Result<TurnStats, Fault> {
        (self.0)(turn)
    }
}

pub fn runtime(
    scratch: &Scratch,
    agent: impl Fn(&Turn<'_>) -> Result<TurnStats, Fault> + Send + Sync + 'static,
) -> Arc<Runtime> {
    let rotation = Rotation { bytes: limits::LOG_BYTES_DEFAULT, files: 1 };
    let log = Log::open(scratch.path(), rotation, Level::Debug).unwrap();
    let store = Store::new(scratch.path().join("sessions"));
    Runtime::new(store, "daemon_x", log, Box::new(FnAgent(agent)))
}

pub fn done() -> Result<TurnStats, Fault> {
    Ok(TurnStats::default())
}

/// An agent that reports each turn that starts, and ends it when it is released or cancelled.
pub struct HeldAgent {
    started: Receiver<String>,
    released: Arc<(Mutex<bool>, Condvar)>,
}

impl HeldAgent {
    pub fn new()
    -> (HeldAgent, impl Fn(&Turn<'_>) -> Result<TurnStats, Fault> + Send + Sync + 'static) {
        let (start, started): (Sender<String>, _) = channel();
        let released: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let gate = Arc::clone(&released);
        let agent = move |turn: &Turn<'_>| {
            start.send(turn.head.turn_id.clone()).unwrap();
            let mut open = gate.0.lock().unwrap();
            let deadline = Instant::now() + PATIENCE;
            while !*open && !turn.cancel.is_cancelled() {
                assert!(Instant::now() < deadline);
                // A cancelled turn sends no notification: its flag is set.
                open = gate.1.wait_timeout(open, Duration::from_millis(1)).unwrap().0;
            }
            done()
        };
        (HeldAgent { started, released }, agent)
    }

    /// Waits for the next turn to start; returns its input.
    pub fn next(&self) -> String {
        self.started.recv_timeout(PATIENCE).unwrap()
    }

    /// Returns whether no turn has started that [`HeldAgent::next`] has not returned.
    pub fn is_idle(&self) -> bool {
        self.started.try_recv().is_err()
    }

    pub fn release(&self) {
        *self.released.0.lock().unwrap() = true;
        self.released.1.notify_all();
    }
}

pub fn turn(content: &str) -> SubmitTurn {
    SubmitTurn {
        turn_id: Some(content.to_owned()),
        client_id: Some("client".to_owned()),
        writer_id: Some("writer".to_owned()),
        content: content.to_owned(),
        ..SubmitTurn::default()
    }
}

pub fn create(runtime: &Runtime, name: &str) -> Arc<Session> {
    runtime.create(Some(id(name)), &SessionConfig::default()).unwrap()
}

/// Returns all events so far: the name, the turn, and the code of an error.
pub fn events(session: &Session) -> Vec<String> {
    let mut events = Vec::new();
    session
        .reader()
        .all(|record| {
            assert_eq!(record.seq, events.len() as u64 + 1);
            let event = record.event().unwrap();
            let mut text = event.kind().name().to_owned();
            text.extend(event.turn_id().map(|turn_id| format!(" {turn_id}")));
            if let Event::TurnError(error) = event {
                text += &format!(" {}", error.code);
            }
            events.push(text);
        })
        .unwrap();
    events
}

/// Waits for this event.
#[track_caller]
pub fn wait_for(session: &Arc<Session>, event: &str) {
    let subscription = session.subscribe(false).unwrap();
    let waker = &subscription.waker;
    let deadline = Instant::now() + PATIENCE;
    loop {
        waker.arm();
        let events = events(session);
        if events.iter().any(|found| found == event) {
            return;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "there is no {event} in {events:?}");
        sys::wait_readable([std::os::fd::AsFd::as_fd(waker)], Some(left)).unwrap();
        waker.drain();
    }
}

/// Waits until `is_so`; `what` is for the failure.
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::park_timeout(Duration::from_millis(1));
    }
}
