//! All sessions of the daemon, and the life of their turns: submitted, queued, run, ended.
//!
//! Turns of one session run one after the other, sessions side by side; none waits for another's disk.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::error::Doing;
use crate::json;
use crate::log::Log;
use crate::{clock, limits, sys};

use super::desk::{Desk, Problem, Session, Turn, fresh_id, lock};
use super::event::Draft;
use super::journal::{Durability, Journal};
use super::rules::{Founding, SessionId, State, TurnHead};
use super::store::{Store, Summary};
use super::turn::{
    Accepted, Agent, Cancelled, Fault, Options, Selector, SessionCancelled, Stats, Submission,
    cancelled, done_payload, error_payload, founding_payload, queued_payload,
};
use super::wake::Cancel;

/// What the daemon is busy with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sessions in memory: used since the daemon began, and within the last half hour.
    pub sessions: u64,
    pub active_turns: u64,
    pub queued_turns: u64,
    pub subscribers: u64,
    /// Turns submitted since the daemon began.
    pub turns: u64,
}

/// All sessions of the daemon.
pub struct Runtime {
    store: Store,
    daemon_id: String,
    log: Log,
    agent: Box<dyn Agent>,
    places: Mutex<HashMap<SessionId, Arc<Place>>>,
    floor: Mutex<Floor>,
    submitted: AtomicU64,
    swept: AtomicU64,
}

/// Where a session is, or is being read from the disk: one at a time for each name.
#[derive(Default)]
struct Place {
    session: Mutex<Option<Arc<Session>>>,
}

/// A turn that has begun.
struct Begun {
    head: TurnHead,
    options: Options,
    cancel: Arc<Cancel>,
    /// Among the session's turns, from 1.
    number: u64,
}

/// The turns of all sessions.
#[derive(Default)]
struct Floor {
    /// Turns that are submitted and not ended.
    unfinished: u64,
    /// Threads that run turns.
    workers: usize,
    /// Sessions with a turn to run and no worker, in the order in which they came.
    waiting: VecDeque<Arc<Session>>,
    leaving: bool,
    /// Called when the last worker has ended.
    on_rest: Option<Box<dyn FnOnce() + Send>>,
}

impl Runtime {
    /// The sessions in `store`; none is read before it is asked for.
    pub fn new(store: Store, daemon_id: &str, log: Log, agent: Box<dyn Agent>) -> Arc<Runtime> {
        Arc::new(Runtime {
            store,
            daemon_id: daemon_id.to_owned(),
            log,
            agent,
            places: Mutex::default(),
            floor: Mutex::default(),
            submitted: AtomicU64::new(0),
            swept: AtomicU64::new(sys::boot_clock().as_secs()),
        })
    }

    /// Where the sessions lie.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Makes a session, durable when this returns; or gives the one that has this id already.
    pub fn create(
        &self,
        id: Option<SessionId>,
        founding: &Founding,
    ) -> Result<Arc<Session>, Problem> {
        let id = match id {
            Some(id) => id,
            None => fresh_id("sess_")?,
        };
        let place = self.place(&id);
        let mut found = lock(&place.session);
        if let Some(session) = self.find(&id, &mut found)? {
            return Ok(session);
        }
        if lock(&self.floor).leaving {
            return Err(Problem::Leaving);
        }
        self.store.prepare()?;
        self.store.enter(&id, &clock::rfc3339(clock::now_millis()))?;
        let payload = founding_payload(&id, founding);
        let first = Draft { event: "session.snapshot", payload: &payload };
        let directory = self.store.directory(&id);
        let (journal, state) = Journal::create(&directory, &id, &self.daemon_id, &first)?;
        self.keep(&id, &state, journal.bytes());
        self.log.info("session created", &[("id", &id.as_str())]);
        let session = Arc::new(Session::new(id, journal, state));
        *found = Some(Arc::clone(&session));
        Ok(session)
    }

    /// The session of this name, read from the disk if need be.
    pub fn session(&self, id: &SessionId) -> Result<Arc<Session>, Problem> {
        let place = self.place(id);
        let mut found = lock(&place.session);
        let session = self.find(id, &mut found)?;
        if session.is_none() {
            drop(found);
            drop(place);
            self.forget_empty(id);
        }
        session.ok_or_else(|| Problem::NoSession(id.as_str().to_owned()))
    }

    /// Submits a turn. It is on the disk when this returns `Ok`, and will be run or reported as
    /// interrupted.
    pub fn submit(
        self: &Arc<Runtime>,
        session: &Arc<Session>,
        submission: &Submission,
    ) -> Result<Accepted, Problem> {
        let mut desk = lock(&session.desk);
        let turn_id = match &submission.turn_id {
            Some(turn_id) => turn_id.clone(),
            None => fresh_id("turn_")?.as_str().to_owned(),
        };
        if let Some((_, seq)) = desk.state.stage(&turn_id) {
            return Ok(Accepted { turn_id, queued: desk.state.queue.len() as u64, seq });
        }
        desk.check(submission)?;
        // Counted before it is written: from here on the daemon is not idle.
        {
            let mut floor = lock(&self.floor);
            if floor.leaving {
                return Err(Problem::Leaving);
            }
            floor.unfinished += 1;
        }
        let payload = queued_payload(&turn_id, submission, desk.state.queue.len() as u64);
        let draft = Draft { event: "turn.queued", payload: &payload };
        let seq = session.append(&mut desk, &draft, Durability::Synced).inspect_err(|_| {
            lock(&self.floor).unfinished -= 1;
        })?;
        desk.options.insert(turn_id.clone(), submission.options.clone());
        self.submitted.fetch_add(1, Ordering::Relaxed);
        let idle = !std::mem::replace(&mut desk.scheduled, true);
        let queued = desk.state.queue.len() as u64 - 1;
        drop(desk);
        if idle {
            self.schedule(Arc::clone(session));
        }
        Ok(Accepted { turn_id, queued, seq })
    }

    /// Cancels turns; what was decided is on the disk when this returns.
    pub fn cancel(&self, session: &Session, selector: &Selector) -> Result<Cancelled, Problem> {
        let mut desk = lock(&session.desk);
        let none = selector.turn_id.is_none() && selector.writer_id.is_none();
        let chosen = |turn: &TurnHead| {
            let by_turn = selector.turn_id.as_ref().is_none_or(|id| *id == turn.turn_id);
            by_turn && selector.writer_id.as_ref().is_none_or(|id| *id == turn.writer_id)
        };
        let active = desk.state.active.as_ref().is_some_and(chosen);
        let queued: Vec<TurnHead> = match none {
            true => Vec::new(),
            false => desk.state.queue.iter().filter(|turn| chosen(turn)).cloned().collect(),
        };
        if !active && queued.is_empty() {
            return Ok(Cancelled { queued: 0, active: false });
        }
        for turn in &queued {
            let payload = error_payload(turn, &cancelled());
            let draft = Draft { event: "turn.error", payload: &payload };
            session.append(&mut desk, &draft, Durability::Cached)?;
            desk.options.remove(&turn.turn_id);
            lock(&self.floor).unfinished -= 1;
        }
        let count = queued.len() as u64;
        let payload = json::text(&SessionCancelled {
            cancelled: count + u64::from(active),
            turn_id: selector.turn_id.clone(),
            writer_id: selector.writer_id.clone(),
        });
        let draft = Draft { event: "session.cancelled", payload: &payload };
        session.append(&mut desk, &draft, Durability::Synced)?;
        if active {
            desk.wish_end();
            session.decided.notify_all();
        }
        Ok(Cancelled { queued: count, active })
    }

    /// Deletes a session for ever.
    pub fn delete(&self, id: &SessionId) -> Result<(), Problem> {
        let session = self.session(id)?;
        let place = self.place(id);
        let mut found = lock(&place.session);
        let mut desk = lock(&session.desk);
        if !desk.state.unfinished().is_empty() {
            return Err(Problem::Busy("a turn of the session is in progress".to_owned()));
        }
        self.store.delete(id)?;
        desk.shut = true;
        session.close();
        *found = None;
        drop(found);
        drop(place);
        // Not before nobody else has the place at hand: there must never be two for one name.
        self.forget_empty(id);
        self.log.info("session deleted", &[("id", &id.as_str())]);
        Ok(())
    }

    /// What a list shows of a session.
    pub fn summary(&self, id: &SessionId) -> Result<Summary, Problem> {
        let place = lock(&self.places).get(id).cloned();
        let session = place.and_then(|place| lock(&place.session).clone());
        match session {
            Some(session) => Ok(session.summary()),
            None => Ok(self.store.summary(id)?),
        }
    }

    /// What the daemon is busy with.
    pub fn counts(&self) -> Counts {
        // Those that are just being read are not waited for: a long journal takes its time, and
        // whoever asks how the daemon is must not.
        let places: Vec<Arc<Place>> = lock(&self.places).values().cloned().collect();
        let known = places.iter().filter_map(|place| place.session.try_lock().ok()?.clone());
        let sessions: Vec<Arc<Session>> = known.collect();
        let subscribers: usize = sessions.iter().map(|session| session.subscribers()).sum();
        let floor = lock(&self.floor);
        let active = floor.workers as u64;
        Counts {
            sessions: sessions.len() as u64,
            active_turns: active,
            queued_turns: floor.unfinished.saturating_sub(active),
            subscribers: subscribers as u64,
            turns: self.submitted.load(Ordering::Relaxed),
        }
    }

    /// Decides to leave, if nothing is in progress; in one step, so that no turn can slip in.
    pub fn leave_if_idle(&self) -> Result<(), Problem> {
        let mut floor = lock(&self.floor);
        if floor.unfinished > 0 {
            let turns = floor.unfinished;
            return Err(Problem::Busy(format!("{turns} turns are in progress")));
        }
        floor.leaving = true;
        Ok(())
    }

    /// Takes no more turns. `on_rest` is called when none is running any more, perhaps at once.
    pub fn leave(&self, on_rest: impl FnOnce() + Send + 'static) {
        let mut floor = lock(&self.floor);
        floor.leaving = true;
        floor.waiting.clear();
        if floor.workers > 0 {
            floor.on_rest = Some(Box::new(on_rest));
        } else {
            drop(floor);
            on_rest();
        }
    }

    /// The end: what has not finished is marked as interrupted, everything is synced, streams end.
    pub fn close(&self) {
        for session in self.sessions() {
            let mut desk = lock(&session.desk);
            self.interrupt(&session, &mut desk, "the daemon was stopped");
            if let Err(refused) = desk.journal.settle() {
                self.complain(&session.id, &Problem::from(refused));
            }
            self.keep(&session.id, &desk.state, desk.journal.bytes());
            desk.wish_end();
            desk.shut = true;
            session.decided.notify_all();
            session.close();
        }
    }

    /// Lets sessions that nobody has used for long leave memory. Cheap to call often.
    pub fn sweep(&self) {
        let now = sys::boot_clock().as_secs();
        let before = self.swept.load(Ordering::Relaxed);
        if now.saturating_sub(before) < limits::STATE_CHECK_EVERY.as_secs() {
            return;
        }
        self.swept.store(now, Ordering::Relaxed);
        let mut places = lock(&self.places);
        places.retain(|_, place| {
            // A place that somebody else has at hand is in use.
            Arc::strong_count(place) > 1
                || !lock(&place.session).as_ref().is_some_and(|session| session.is_idle(now))
        });
    }

    fn sessions(&self) -> Vec<Arc<Session>> {
        let places: Vec<Arc<Place>> = lock(&self.places).values().cloned().collect();
        places.iter().filter_map(|place| lock(&place.session).clone()).collect()
    }

    fn place(&self, id: &SessionId) -> Arc<Place> {
        Arc::clone(lock(&self.places).entry(id.clone()).or_default())
    }

    /// Asking for a session that does not exist must leave nothing in memory.
    fn forget_empty(&self, id: &SessionId) {
        let mut places = lock(&self.places);
        let empty = places
            .get(id)
            .is_some_and(|place| Arc::strong_count(place) == 1 && lock(&place.session).is_none());
        if empty {
            places.remove(id);
        }
    }

    fn find(
        &self,
        id: &SessionId,
        found: &mut Option<Arc<Session>>,
    ) -> Result<Option<Arc<Session>>, Problem> {
        if found.is_none() && self.store.has(id) {
            *found = self.open(id)?;
        }
        if let Some(session) = found {
            session.used.store(sys::boot_clock().as_secs(), Ordering::Relaxed);
        }
        Ok(found.clone())
    }

    /// Reads a session from the disk; what a crash has cut off is marked as interrupted. `None` if
    /// nothing in the journal was ever acknowledged.
    fn open(&self, id: &SessionId) -> Result<Option<Arc<Session>>, Problem> {
        let directory = self.store.directory(id);
        let (journal, state, findings) = Journal::open(&directory, id, &self.daemon_id)?;
        if findings.damaged > 0 || findings.torn_bytes > 0 {
            let (damaged, torn) = (findings.damaged, findings.torn_bytes);
            let fields: [(&str, &dyn std::fmt::Display); 3] =
                [("id", &id.as_str()), ("damaged", &damaged), ("torn_bytes", &torn)];
            self.log.warn("session repaired", &fields);
        }
        if findings.records == 0 {
            return Ok(None);
        }
        let session = Arc::new(Session::new(id.clone(), journal, state));
        let mut desk = lock(&session.desk);
        self.interrupt(&session, &mut desk, "the daemon ended while the turn was in progress");
        desk.journal.rest();
        drop(desk);
        let seq = session.summary().seq;
        self.log.info("session resumed", &[("id", &id.as_str()), ("seq", &seq)]);
        Ok(Some(session))
    }

    fn interrupt(&self, session: &Session, desk: &mut Desk, message: &str) {
        for turn in desk.state.unfinished() {
            let fault = Fault { code: "interrupted", message: message.to_owned() };
            let payload = error_payload(&turn, &fault);
            let draft = Draft { event: "turn.error", payload: &payload };
            if let Err(problem) = session.append(desk, &draft, Durability::Synced) {
                // It will be marked when the session is opened next.
                return self.complain(&session.id, &problem);
            }
            let fields: [(&str, &dyn std::fmt::Display); 2] =
                [("session", &session.id.as_str()), ("id", &turn.turn_id)];
            self.log.warn("turn interrupted", &fields);
        }
    }

    fn schedule(self: &Arc<Runtime>, session: Arc<Session>) {
        let mut floor = lock(&self.floor);
        if floor.leaving {
            return;
        }
        floor.waiting.push_back(session);
        if floor.workers >= limits::ACTIVE_TURNS_MAX {
            return;
        }
        floor.workers += 1;
        drop(floor);
        let runtime = Arc::clone(self);
        let started = thread::Builder::new().name("turn".into()).spawn(move || runtime.work());
        if let Err(error) = started.doing("start a thread") {
            self.log.error("turns cannot run", &[("cause", &error)]);
            self.retire();
        }
    }

    /// Runs turns as long as there are any: one of each session in its turn.
    fn work(self: Arc<Runtime>) {
        loop {
            let next = lock(&self.floor).waiting.pop_front();
            let Some(session) = next else {
                if self.retire() {
                    return;
                }
                continue;
            };
            self.run_next(&session);
            let mut desk = lock(&session.desk);
            if desk.state.queue.is_empty() || desk.shut {
                desk.scheduled = false;
                desk.journal.rest();
                continue;
            }
            drop(desk);
            let mut floor = lock(&self.floor);
            if !floor.leaving {
                floor.waiting.push_back(session);
            }
        }
    }

    /// Ends this worker, unless work has come in the meantime.
    fn retire(&self) -> bool {
        let mut floor = lock(&self.floor);
        if !floor.waiting.is_empty() {
            return false;
        }
        floor.workers -= 1;
        let on_rest = if floor.workers == 0 { floor.on_rest.take() } else { None };
        drop(floor);
        if let Some(on_rest) = on_rest {
            on_rest();
        }
        true
    }

    /// Runs the turn that is first in the session's queue.
    fn run_next(&self, session: &Arc<Session>) {
        let begun = self.begin_turn(session);
        let Begun { head, options, cancel, number } = match begun {
            Ok(Some(begun)) => begun,
            Ok(None) => return,
            Err(problem) => return self.abandon(session, &problem),
        };
        let fields: [(&str, &dyn std::fmt::Display); 2] =
            [("session", &session.id.as_str()), ("turn", &number)];
        self.log.info("turn started", &fields);
        let began = sys::boot_clock();
        let turn = Turn { session, head: &head, options: &options, cancel: &cancel };
        let ran = catch_unwind(AssertUnwindSafe(|| self.agent.run(&turn)));
        let outcome = ran.unwrap_or_else(|_panic| {
            self.log.error("a turn panicked", &fields);
            let message = "the daemon has failed at this turn; its log says more".to_owned();
            Err(Fault { code: "internal-error", message })
        });
        self.end_turn(session, &head, outcome, &cancel, sys::boot_clock() - began);
    }

    fn begin_turn(&self, session: &Session) -> Result<Option<Begun>, Problem> {
        let mut desk = lock(&session.desk);
        let Some(head) = desk.state.queue.front().cloned().filter(|_| !desk.shut) else {
            return Ok(None);
        };
        let payload = json::text(&head);
        let draft = Draft { event: "turn.start", payload: &payload };
        session.append(&mut desk, &draft, Durability::Cached)?;
        let cancel = Arc::new(Cancel::new().doing("prepare a turn")?);
        desk.cancel = Some(Arc::clone(&cancel));
        let options = desk.options.remove(&head.turn_id).unwrap_or_default();
        let number = desk.state.turns - desk.state.queue.len() as u64;
        Ok(Some(Begun { head, options, cancel, number }))
    }

    fn end_turn(
        &self,
        session: &Session,
        head: &TurnHead,
        outcome: Result<Stats, Fault>,
        cancel: &Cancel,
        elapsed: Duration,
    ) {
        let mut desk = lock(&session.desk);
        desk.permissions.clear();
        if desk.shut {
            lock(&self.floor).unfinished -= 1;
            return;
        }
        // A turn that was cancelled ends as cancelled, even if it was done a moment before.
        let outcome = if cancel.is_wished() { Err(cancelled()) } else { outcome };
        let (event, payload) = match &outcome {
            Ok(stats) => ("turn.done", done_payload(head, stats)),
            Err(fault) => ("turn.error", error_payload(head, fault)),
        };
        let appended =
            session.append(&mut desk, &Draft { event, payload: &payload }, Durability::Synced);
        if let Err(problem) = appended {
            self.complain(&session.id, &problem);
            desk.state.forget(&head.turn_id);
        }
        self.keep(&session.id, &desk.state, desk.journal.bytes());
        drop(desk);
        lock(&self.floor).unfinished -= 1;
        let result = outcome.as_ref().map_or_else(|fault| fault.code, |_| "done");
        let ms = format!("{}ms", elapsed.as_millis());
        let fields: [(&str, &dyn std::fmt::Display); 3] =
            [("session", &session.id.as_str()), ("result", &result), ("duration", &ms)];
        self.log.info("turn ended", &fields);
    }

    /// A turn that cannot even begin, because its session cannot be written or read.
    fn abandon(&self, session: &Session, problem: &Problem) {
        self.complain(&session.id, problem);
        let mut desk = lock(&session.desk);
        if let Some(head) = desk.state.queue.front().cloned() {
            desk.state.forget(&head.turn_id);
            desk.options.remove(&head.turn_id);
            lock(&self.floor).unfinished -= 1;
        }
    }

    fn keep(&self, id: &SessionId, state: &State, bytes: u64) {
        if let Err(error) = self.store.keep(id, state, bytes) {
            self.log.debug("no summary was kept", &[("id", &id.as_str()), ("cause", &error)]);
        }
    }

    fn complain(&self, id: &SessionId, problem: &Problem) {
        let cause = problem.to_string();
        self.log.error("session cannot be written", &[("id", &id.as_str()), ("cause", &cause)]);
    }
}
