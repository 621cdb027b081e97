//! Runtimes with agents of all kinds, and what the tests of them wait for.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::log::{Level, Log, Rotation};
use crate::protocol::SubmitTurn;
use crate::protocol::event::{Event, SessionConfig, TurnStats};
use crate::session::desk::{Session, Turn};
use crate::session::runtime::Runtime;
use crate::session::store::Store;
use crate::session::turn::{Agent, Fault};
use crate::{limits, sys};

use super::{PATIENCE, Scratch, id};

/// An agent that does what a function says.
struct Play<F>(F);

impl<F: Fn(&Turn<'_>) -> Result<TurnStats, Fault> + Send + Sync> Agent for Play<F> {
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
    Runtime::new(store, "daemon_x", log, Box::new(Play(agent)))
}

pub fn done() -> Result<TurnStats, Fault> {
    Ok(TurnStats::default())
}

/// An agent that says when it begins, and is done when it is told so or cancelled.
pub struct Held {
    begun: Receiver<String>,
    go: Arc<(Mutex<bool>, Condvar)>,
}

impl Held {
    pub fn new() -> (Held, impl Fn(&Turn<'_>) -> Result<TurnStats, Fault> + Send + Sync + 'static) {
        let (begin, begun): (Sender<String>, _) = channel();
        let go: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let gate = Arc::clone(&go);
        let agent = move |turn: &Turn<'_>| {
            begin.send(turn.content.to_owned()).unwrap();
            let mut open = gate.0.lock().unwrap();
            let deadline = Instant::now() + PATIENCE;
            while !*open && !turn.cancelled() {
                assert!(Instant::now() < deadline);
                // A cancelled turn is told by a flag alone.
                open = gate.1.wait_timeout(open, Duration::from_millis(1)).unwrap().0;
            }
            done()
        };
        (Held { begun, go }, agent)
    }

    /// The words of the turn that begins next.
    pub fn begun(&self) -> String {
        self.begun.recv_timeout(PATIENCE).unwrap()
    }

    /// No turn has begun of which [`Held::begun`] has not told.
    pub fn has_begun_nothing(&self) -> bool {
        self.begun.try_recv().is_err()
    }

    pub fn release(&self) {
        *self.go.0.lock().unwrap() = true;
        self.go.1.notify_all();
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

/// All events so far: `name` of what, and of which turn.
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

/// Waits until there is this event.
#[track_caller]
pub fn wait_for(session: &Arc<Session>, event: &str) {
    let waker = session.subscribe(false).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        waker.arm();
        let events = events(session);
        if events.iter().any(|found| found == event) {
            return;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "there is no {event} in {events:?}");
        sys::wait_readable([std::os::fd::AsFd::as_fd(&*waker)], Some(left)).unwrap();
        waker.drain();
    }
}

/// Waits until nothing is in progress: then `leave_if_idle` succeeds, so a runtime's last act.
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::park_timeout(Duration::from_millis(1));
    }
}
