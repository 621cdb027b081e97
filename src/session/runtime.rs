//! All sessions of the daemon, and the life of their turns: submitted, queued, run, ended.
//!
//! Turns of one session run one after the other, sessions side by side; none waits for another's
//! disk.

mod work;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::Kind;
use crate::log::Log;
use crate::mutex::lock;
use crate::protocol::event::{
    Event, SessionCancelled, SessionConfig, SessionSnapshot, TurnHead, TurnQueued,
};
use crate::protocol::{
    CancelTurns, RuntimeCounts, SessionSummary, SubmitTurn, TurnAccepted, TurnsCancelled,
};
use crate::{clock, json, limits, sys};

use super::desk::{Desk, Problem, Session, Shut, fresh_id};
use super::journal::{Durability, Journal};
use super::rules::{SessionId, State};
use super::store::Store;
use super::turn::{self, Agent, Fault};

/// All sessions of the daemon.
pub struct Runtime {
    store: Store,
    daemon_id: String,
    log: Log,
    agent: Box<dyn Agent>,
    places: Mutex<HashMap<SessionId, Arc<Place>>>,
    floor: Mutex<Floor>,
    submitted: AtomicU64,
    pub(super) swept: AtomicU64,
    /// Streams have ended and nothing is written any more.
    closed: AtomicBool,
}

/// Where a session is, or is being read from the disk: one at a time for each name.
#[derive(Default)]
struct Place {
    session: Mutex<Option<Arc<Session>>>,
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
            closed: AtomicBool::new(false),
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
        config: &SessionConfig,
    ) -> Result<Arc<Session>, Problem> {
        let id = match id {
            Some(id) => id,
            None => fresh_id("sess_")?,
        };
        let created = self.find_or_make(&id, config);
        if created.is_err() {
            self.forget_empty(&id);
        }
        created
    }

    fn find_or_make(
        &self,
        id: &SessionId,
        config: &SessionConfig,
    ) -> Result<Arc<Session>, Problem> {
        let place = self.place(id);
        let mut found = lock(&place.session);
        if let Some(session) = self.find(id, &mut found)? {
            return Ok(session);
        }
        if lock(&self.floor).leaving {
            return Err(Problem::Leaving);
        }
        let now = clock::rfc3339(clock::now_millis());
        let summary = State::created(config, &now).summary(id);
        let first = Event::SessionSnapshot(SessionSnapshot::new(summary, config.clone()).into());
        if let Err(problem) = json::check(&first.payload()) {
            // What came with it lies a level deeper now than it did in the request.
            return Err(Problem::Invalid(format!("metadata or messages: {}", problem.what)));
        }
        let created_at = clock::rfc3339(clock::now_millis());
        self.store.enter(id, &created_at)?;
        let directory = self.store.directory(id);
        let (journal, state) =
            Journal::create(&directory, id, &self.daemon_id, &first, &created_at)?;
        self.keep(id, &state, journal.bytes());
        self.log.info("session created", &[("id", &id.as_str())]);
        let session = Arc::new(Session::new(id.clone(), journal, state));
        *found = Some(Arc::clone(&session));
        Ok(session)
    }

    /// The session of this name, read from the disk if need be.
    pub fn session(&self, id: &SessionId) -> Result<Arc<Session>, Problem> {
        let place = self.place(id);
        let found = self.find(id, &mut lock(&place.session));
        drop(place);
        let Ok(Some(session)) = found else {
            self.forget_empty(id);
            return Err(found.err().unwrap_or_else(|| no_session(id)));
        };
        let mut desk = lock(&session.desk);
        if !desk.owed.is_empty() && session.pay(&mut desk).is_ok() {
            desk.journal.rest();
        }
        drop(desk);
        Ok(session)
    }

    /// Submits a turn. It is on the disk when this returns `Ok`, and will be run or reported as
    /// interrupted.
    pub fn submit(
        self: &Arc<Runtime>,
        session: &Arc<Session>,
        submission: &SubmitTurn,
    ) -> Result<TurnAccepted, Problem> {
        let mut desk = lock(&session.desk);
        session.check_open(&desk)?;
        let turn_id = match &submission.turn_id {
            Some(turn_id) => turn_id.clone(),
            None => fresh_id("turn_")?.as_str().to_owned(),
        };
        if let Some((_, seq)) = desk.state.stage(&turn_id) {
            return Ok(accepted(turn_id, desk.state.queue.len() as u64, seq));
        }
        session.pay(&mut desk)?;
        desk.check(submission)?;
        // Counted before it is written: from here on the daemon is not idle.
        {
            let mut floor = lock(&self.floor);
            if floor.leaving {
                return Err(Problem::Leaving);
            }
            floor.unfinished += 1;
        }
        let event = queued(&turn_id, submission, desk.state.queue.len() as u64);
        let seq = session.append(&mut desk, &event, Durability::Synced).inspect_err(|_| {
            lock(&self.floor).unfinished -= 1;
        })?;
        desk.options.insert(turn_id.clone(), submission.options.clone().unwrap_or_default());
        self.submitted.fetch_add(1, Ordering::Relaxed);
        let idle = !std::mem::replace(&mut desk.scheduled, true);
        let queued = desk.state.queue.len() as u64 - 1;
        drop(desk);
        if idle {
            self.schedule(Arc::clone(session));
        }
        Ok(accepted(turn_id, queued, seq))
    }

    /// Cancels turns; what was decided is on the disk when this returns.
    pub fn cancel(
        &self,
        session: &Session,
        selector: &CancelTurns,
    ) -> Result<TurnsCancelled, Problem> {
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
            return Ok(TurnsCancelled::new(0, false));
        }
        let count = queued.len() as u64;
        let ended = Err(turn::cancelled());
        let mut events: Vec<Event> = queued.iter().map(|head| turn::end(head, &ended)).collect();
        events.push(Event::SessionCancelled(SessionCancelled {
            cancelled: count + u64::from(active),
            turn_id: selector.turn_id.clone(),
            writer_id: selector.writer_id.clone(),
        }));
        session.append_all(&mut desk, &events, Durability::Synced)?;
        for turn in &queued {
            desk.options.remove(&turn.turn_id);
        }
        lock(&self.floor).unfinished -= count;
        if active {
            desk.cancel_if_idle();
            session.decided.notify_all();
        }
        Ok(TurnsCancelled::new(count, active))
    }

    /// Deletes a session for ever.
    pub fn delete(&self, id: &SessionId) -> Result<(), Problem> {
        let place = self.place(id);
        let mut found = lock(&place.session);
        let is_there = self.store.has(id);
        let session = self.find(id, &mut found);
        let Ok(Some(session)) = session else {
            let deleted = match session {
                // What is left of one that cannot be read.
                Err(Problem::Failed(error)) if is_there && error.kind() == Kind::SessionDamaged => {
                    self.store.delete(id).map_err(Problem::from)
                }
                Ok(_) if is_there => self.store.delete(id).map_err(Problem::from),
                Err(problem) => Err(problem),
                Ok(_) => Err(no_session(id)),
            };
            drop(found);
            drop(place);
            self.forget_empty(id);
            return deleted;
        };
        let mut desk = lock(&session.desk);
        if !desk.state.unfinished().is_empty() {
            return Err(Problem::Busy("a turn of the session is in progress".to_owned()));
        }
        self.store.delete(id)?;
        desk.shut = Some(Shut::Deleted);
        session.close();
        *found = None;
        drop(desk);
        drop(found);
        drop(place);
        // Not before nobody else has the place at hand: there must never be two for one name.
        self.forget_empty(id);
        self.log.info("session deleted", &[("id", &id.as_str())]);
        Ok(())
    }

    /// What a list shows of a session.
    pub fn summary(&self, id: &SessionId) -> Result<SessionSummary, Problem> {
        let place = lock(&self.places).get(id).cloned();
        let session = place.and_then(|place| lock(&place.session).clone());
        match session {
            Some(session) => Ok(session.summary()),
            None => Ok(self.store.summary(id)?),
        }
    }

    /// Returns what the daemon is working on.
    pub fn counts(&self) -> RuntimeCounts {
        // Those that are just being read are not waited for: a long journal takes its time, and
        // whoever asks how the daemon is must not.
        let places: Vec<Arc<Place>> = lock(&self.places).values().cloned().collect();
        let known = places.iter().filter_map(|place| place.session.try_lock().ok()?.clone());
        let sessions: Vec<Arc<Session>> = known.collect();
        let subscribers: usize = sessions.iter().map(|session| session.subscribers()).sum();
        let floor = lock(&self.floor);
        let active = floor.workers as u64;
        RuntimeCounts {
            session_count: sessions.len() as u64,
            active_turn_count: active,
            queued_turn_count: floor.unfinished.saturating_sub(active),
            subscriber_count: subscribers as u64,
            ..RuntimeCounts::default()
        }
    }

    /// Returns the number of turns submitted since the daemon started.
    pub fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::Relaxed)
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
        self.closed.store(true, Ordering::SeqCst);
        for session in self.sessions() {
            let mut desk = lock(&session.desk);
            self.interrupt(&session, &mut desk, "the daemon was stopped");
            if let Err(refused) = desk.journal.settle() {
                self.complain(&session.id, &Problem::from(refused));
            }
            self.keep(&session.id, &desk.state, desk.journal.bytes());
            desk.cancel_if_idle();
            desk.shut = Some(Shut::Left);
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
            // A place or a session that somebody has at hand is in use, however long ago it was
            // asked for: the machine may have slept since.
            let rests =
                |session: &Arc<Session>| Arc::strong_count(session) == 1 && session.is_idle(now);
            Arc::strong_count(place) > 1 || !lock(&place.session).as_ref().is_some_and(rests)
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
        // Asked with the place at hand: `close` finds every session that was opened before.
        if self.closed.load(Ordering::SeqCst) {
            return Err(Problem::Leaving);
        }
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
        let counted = self.store.counted(id);
        let (journal, state, findings) = Journal::open(&directory, id, &self.daemon_id)?;
        let findings = findings.beside(counted);
        let (torn, missing) = (findings.torn_bytes, findings.missing_bytes);
        if findings.damaged > 0 || torn > 0 || missing > 0 {
            let fields: [(&str, &dyn std::fmt::Display); 4] = [
                ("id", &id.as_str()),
                ("damaged", &findings.lost()),
                ("torn_bytes", &torn),
                ("missing_bytes", &missing),
            ];
            let what = if torn > 0 { "session repaired" } else { "session is damaged" };
            self.log.warn(what, &fields);
        }
        if findings.records == 0 {
            // What was never acknowledged has no summary.
            if counted > 0 {
                findings.some(id)?;
            }
            return Ok(None);
        }
        if torn > 0 {
            // What was set aside is not to be missed as well.
            self.keep(id, &state, journal.bytes());
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
        let turns = desk.state.unfinished();
        if turns.is_empty() {
            return;
        }
        let fault = Fault { code: "interrupted", message: message.to_owned() };
        if let Err(problem) = session.fail(desk, &turns, &fault) {
            self.complain(&session.id, &problem);
        }
        for turn in &turns {
            let fields: [(&str, &dyn std::fmt::Display); 2] =
                [("session", &session.id.as_str()), ("id", &turn.turn_id)];
            self.log.warn("turn interrupted", &fields);
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

fn no_session(id: &SessionId) -> Problem {
    Problem::NoSession(id.as_str().to_owned())
}

/// Returns the first event of a turn with `before` turns before it in the queue.
fn queued(turn_id: &str, submission: &SubmitTurn, before: u64) -> Event {
    let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "anonymous".to_owned());
    Event::TurnQueued(TurnQueued {
        turn_id: turn_id.to_owned(),
        writer_id: name(&submission.writer_id),
        client_id: name(&submission.client_id),
        mode: submission.mode.clone(),
        queue_size: before + 1,
        position: before,
        metadata: submission.metadata.clone(),
        content: submission.content.clone(),
    })
}

fn accepted(turn_id: String, queued: u64, seq: u64) -> TurnAccepted {
    TurnAccepted { turn_id, status: "queued".to_owned(), queued, seq }
}
