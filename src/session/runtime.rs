//! All sessions of the daemon: creating, opening, listing, deleting and finally closing them.
//!
//! No session waits for the disk of another.

pub mod turns;

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Error, Kind};
use crate::log::Log;
use crate::mutex::lock;
use crate::protocol::event::{Event, SessionConfig, SessionSnapshot, TurnHead};
use crate::protocol::{RuntimeCounts, SessionId, SessionPage, SessionSummary};
use crate::{clock, json, limits, sys};

use super::dispatch::Dispatcher;
use super::journal::Journal;
use super::reader::JournalReport;
use super::replay::JournalState;
use super::session::{
    CloseReason, Session, SessionError, SessionState, new_id, no_session, not_written,
};
use super::store::{Page, Store};
use super::turn::{Agent, Fault, end_event};
use super::watchers::{Watcher, Watchers};

/// All sessions of the daemon.
pub struct Runtime {
    store: Store,
    daemon_id: String,
    log: Log,
    agent: Box<dyn Agent>,
    slots: Mutex<HashMap<SessionId, Arc<Slot>>>,
    /// The followers of all sessions.
    watchers: Arc<Watchers>,
    dispatcher: Arc<Dispatcher>,
    scheduler: Mutex<Scheduler>,
    /// The number of turns submitted since the daemon started.
    submitted: AtomicU64,
    /// When idle sessions were last dropped, in seconds of the boot clock.
    pub(super) swept_at: AtomicU64,
    /// Whether no more sessions are opened.
    closed: AtomicBool,
}

/// The place of a session in memory.
#[derive(Default)]
struct Slot {
    /// The lock is held while the session is created, opened or deleted: there is never more than
    /// one of an id.
    session: Mutex<Option<Arc<Session>>>,
    /// Whether its journal is being read.
    is_opening: AtomicBool,
}

/// The turns of all sessions.
#[derive(Default)]
struct Scheduler {
    /// Turns that were submitted and have not ended.
    unfinished: u64,
    /// Threads that run turns, or are about to.
    workers: usize,
    /// Sessions whose turn a worker runs.
    running: usize,
    /// Sessions that have a turn to run and no worker, oldest first.
    waiting: VecDeque<Arc<Session>>,
    stopping: bool,
    /// Called when the last worker has ended.
    on_idle: Option<Box<dyn FnOnce() + Send>>,
}

impl Runtime {
    /// Returns a runtime for the sessions in `store`. A session is read only when it is requested.
    pub fn new(store: Store, daemon_id: &str, log: Log, agent: Box<dyn Agent>) -> Arc<Runtime> {
        Arc::new(Runtime {
            store,
            daemon_id: daemon_id.to_owned(),
            log,
            agent,
            slots: Mutex::default(),
            watchers: Arc::default(),
            dispatcher: Arc::default(),
            scheduler: Mutex::default(),
            submitted: AtomicU64::new(0),
            swept_at: AtomicU64::new(sys::boot_clock().as_secs()),
            closed: AtomicBool::new(false),
        })
    }

    /// Returns what serves followers.
    pub fn dispatcher(&self) -> &Arc<Dispatcher> {
        &self.dispatcher
    }

    /// Returns the store of the sessions.
    #[cfg(test)]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Creates a session, durably, or returns the one that has this id already, which its followers
    /// are told.
    pub fn create(
        &self,
        id: Option<SessionId>,
        config: &SessionConfig,
    ) -> Result<Arc<Session>, SessionError> {
        let id = id.map_or_else(|| new_id("sess_"), Ok)?;
        self.with_slot(&id, |slot, place| match self.load(&id, slot, place)? {
            Some(session) => {
                if let Err(error) = session.announce(None) {
                    self.log_write_error(&id, &error);
                }
                Ok(session)
            }
            None => Ok(Arc::clone(place.insert(self.create_new(&id, config)?))),
        })
    }

    fn create_new(
        &self,
        id: &SessionId,
        config: &SessionConfig,
    ) -> Result<Arc<Session>, SessionError> {
        if lock(&self.scheduler).stopping {
            return Err(SessionError::Stopping);
        }
        let created_at = clock::rfc3339(clock::now_millis());
        let mut config = config.clone();
        if let Some(workspace) = &config.workspace {
            let checked = self.agent.check_workspace(workspace);
            config.directory = checked.map_err(SessionError::Invalid)?;
        }
        let summary = JournalState::created(&config, &created_at).summary(id);
        let first = Event::SessionSnapshot(SessionSnapshot::new(summary, Some(config)).into());
        if let Err(problem) = json::check(&first.payload()) {
            // Metadata and messages are nested one level deeper than in the request.
            return Err(SessionError::Invalid(format!("metadata or messages: {}", problem.what)));
        }
        self.complete_index();
        self.store.add_to_index(id, &created_at)?;
        let directory = self.store.directory(id);
        let journal = Journal::create(&directory, id, &self.daemon_id, &first, &created_at)?;
        let session = Session::new(
            id.clone(),
            journal,
            Arc::clone(&self.watchers),
            0,
            &JournalReport::default(),
        );
        let mut state = lock(&session.state);
        self.save_summary(id, &mut state);
        self.log.info("session created", &[("id", &id.as_str())]);
        let journal = &state.journal;
        self.watchers.notify(id, 0, journal.state().seq, || journal.reader());
        drop(state);
        Ok(Arc::new(session))
    }

    /// Returns the session with this id, and opens it if it is not in memory.
    pub fn session(&self, id: &SessionId) -> Result<Arc<Session>, SessionError> {
        let session = self.with_slot(id, |slot, place| self.load(id, slot, place))?;
        let session = session.ok_or_else(|| no_session(id))?;
        session.retry_pending();
        Ok(session)
    }

    /// Deletes a session permanently.
    pub fn delete(&self, id: &SessionId) -> Result<(), SessionError> {
        self.with_slot(id, |slot, place| {
            let exists = self.store.has(id);
            let session = match self.load(id, slot, place) {
                // The remains of a session that cannot be read.
                Err(SessionError::Failed(error))
                    if exists && error.kind() == Kind::SessionDamaged =>
                {
                    None
                }
                Ok(None) if !exists => return Err(no_session(id)),
                loaded => loaded?,
            };
            if let Some(session) = session {
                let mut state = lock(&session.state);
                if state.journal.state().unfinished().next().is_some() {
                    let why = "a turn of the session is in progress".to_owned();
                    return Err(SessionError::Busy(why));
                }
                self.store.delete(id)?;
                session.close(&mut state, CloseReason::Deleted);
                *place = None;
            } else {
                self.store.delete(id)?;
            }
            self.watchers.notify_deleted(id);
            self.log.info("session deleted", &[("id", &id.as_str())]);
            Ok(())
        })
    }

    /// Returns the summary of a session, as a list shows it.
    pub fn summary(&self, id: &SessionId) -> Result<SessionSummary, SessionError> {
        let slot = lock(&self.slots).get(id).cloned();
        let session = slot.and_then(|slot| lock(&slot.session).clone());
        match session {
            Some(session) => Ok(session.summary()),
            None => Ok(self.store.cached_summary(id)?),
        }
    }

    /// Returns what the daemon is working on.
    pub fn counts(&self) -> RuntimeCounts {
        // Sessions that are being opened are not waited for: reading a long journal takes time, and
        // this must not.
        let sessions = self.settled();
        let followers: usize = sessions.iter().map(|session| session.subscribers()).sum();
        let subscribers = followers + self.watchers.count();
        let scheduler = lock(&self.scheduler);
        // A worker may have been started for a session that another one runs.
        let active = scheduler.workers.min(scheduler.running + scheduler.waiting.len()) as u64;
        RuntimeCounts {
            session_count: sessions.len() as u64,
            active_turn_count: active,
            queued_turn_count: scheduler.unfinished.saturating_sub(active),
            subscriber_count: subscribers as u64,
            ..RuntimeCounts::default()
        }
    }

    /// Returns the number of turns submitted since the daemon started.
    pub fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::Relaxed)
    }

    /// Stops accepting turns if none is in progress. Checks and stops in one step, so that no turn
    /// can be submitted in between.
    pub fn stop_if_idle(&self) -> Result<(), SessionError> {
        let mut scheduler = lock(&self.scheduler);
        match scheduler.unfinished {
            0 => scheduler.stopping = true,
            turns => return Err(SessionError::Busy(format!("{turns} turns are in progress"))),
        }
        Ok(())
    }

    /// Stops accepting turns. Calls `on_idle` when none is running, possibly before this returns.
    pub fn stop(&self, on_idle: impl FnOnce() + Send + 'static) {
        let mut scheduler = lock(&self.scheduler);
        scheduler.stopping = true;
        scheduler.waiting.clear();
        if scheduler.workers > 0 {
            scheduler.on_idle = Some(Box::new(on_idle));
        } else {
            drop(scheduler);
            on_idle();
        }
    }

    /// Marks unfinished turns as interrupted, syncs everything and ends the streams.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // A journal that is being read is not waited for: `load` then keeps no session.
        let opened = |slot: &Arc<Slot>| {
            let is_opening = slot.is_opening.load(Ordering::SeqCst);
            if is_opening { None } else { lock(&slot.session).clone() }
        };
        for session in self.slots().iter().filter_map(opened) {
            let mut state = lock(&session.state);
            drop(session.flush_pending(&mut state));
            self.interrupt_turns(&session, &mut state, "the daemon was stopped");
            if let Err(cause) = state.journal.sync() {
                self.log_write_error(&session.id, &not_written(&cause));
            }
            if state.journal.bytes() != state.summarized_bytes {
                self.save_summary(&session.id, &mut state);
            }
            if let Some(cancel) = &state.cancel {
                cancel.cancel();
            }
            session.close(&mut state, CloseReason::Stopping);
            session.changed.notify_all();
        }
        self.watchers.close();
    }

    /// Follows all sessions, or `only` the one of this id, which need not exist.
    pub(super) fn watch(&self, only: Option<SessionId>, answers: bool) -> io::Result<Arc<Watcher>> {
        let watcher = self.watchers.add(only, answers)?;
        self.followers_changed();
        Ok(watcher)
    }

    /// Ends what [`watch`](Self::watch) began.
    pub(super) fn unwatch(&self, watcher: &Arc<Watcher>) {
        self.watchers.remove(watcher);
        self.followers_changed();
    }

    /// Wakes the turns that wait for permissions. None waits in a session that is being opened.
    fn followers_changed(&self) {
        self.settled().iter().for_each(|session| session.followers_changed());
    }

    /// Returns whether there will be no more events.
    pub fn is_closed(&self) -> bool {
        self.watchers.is_closed()
    }

    /// Drops sessions from memory that were not used for [`limits::SESSION_IDLE_MAX`]. Cheap if
    /// called often.
    pub fn sweep(&self) {
        let now = sys::boot_clock().as_secs();
        let before = self.swept_at.load(Ordering::Relaxed);
        if now.saturating_sub(before) < limits::STATE_CHECK_EVERY.as_secs() {
            return;
        }
        self.swept_at.store(now, Ordering::Relaxed);
        lock(&self.slots).retain(|_, slot| {
            // A slot or a session that another thread holds is in use, however long ago it was
            // asked for: the machine may have been suspended since.
            let is_idle =
                |session: &Arc<Session>| Arc::strong_count(session) == 1 && session.is_idle(now);
            Arc::strong_count(slot) > 1 || !lock(&slot.session).as_ref().is_some_and(is_idle)
        });
    }

    /// Returns the sessions in memory that no thread is opening or deleting.
    fn settled(&self) -> Vec<Arc<Session>> {
        let slots = self.slots().into_iter();
        slots.filter_map(|slot| slot.session.try_lock().ok()?.clone()).collect()
    }

    fn slots(&self) -> Vec<Arc<Slot>> {
        lock(&self.slots).values().cloned().collect()
    }

    /// Calls `act` with the lock on the slot of a session. Asking for a session that does not exist
    /// leaves nothing in memory.
    fn with_slot<T>(
        &self,
        id: &SessionId,
        act: impl FnOnce(&Slot, &mut Option<Arc<Session>>) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let slot = Arc::clone(lock(&self.slots).entry(id.clone()).or_default());
        let result = act(&slot, &mut lock(&slot.session));
        drop(slot);
        let mut slots = lock(&self.slots);
        // Not while another thread holds the slot: there must never be two of one id.
        let is_unused =
            |slot: &Arc<Slot>| Arc::strong_count(slot) == 1 && lock(&slot.session).is_none();
        if slots.get(id).is_some_and(is_unused) {
            slots.remove(id);
        }
        result
    }

    /// Returns the session of a slot, and opens it if it is only on the disk.
    fn load(
        &self,
        id: &SessionId,
        slot: &Slot,
        place: &mut Option<Arc<Session>>,
    ) -> Result<Option<Arc<Session>>, SessionError> {
        let is_closed = || self.closed.load(Ordering::SeqCst);
        if place.is_none() && !is_closed() && self.store.has(id) {
            slot.is_opening.store(true, Ordering::SeqCst);
            let opened = self.open(id);
            slot.is_opening.store(false, Ordering::SeqCst);
            // Checked again, with the lock on the slot: `close` finds every session that is kept.
            *place = if is_closed() { None } else { opened? };
        }
        if is_closed() {
            return Err(SessionError::Stopping);
        }
        if let Some(session) = place {
            session.used_at.store(sys::boot_clock().as_secs(), Ordering::Relaxed);
        }
        Ok(place.clone())
    }

    /// Opens a session and marks turns that a crash cut off as interrupted. `None` if nothing in
    /// the journal was ever acknowledged.
    fn open(&self, id: &SessionId) -> Result<Option<Arc<Session>>, SessionError> {
        let directory = self.store.directory(id);
        let summarized = self.store.summarized_bytes(id);
        let goes_on = || !self.closed.load(Ordering::Relaxed);
        let (journal, report) = Journal::open_while(&directory, id, &self.daemon_id, goes_on)?;
        let report = report.compared_to(summarized);
        let (torn, missing) = (report.torn_bytes, report.missing_bytes);
        if report.damaged > 0 || torn > 0 || missing > 0 {
            let fields: [(&str, &dyn Display); 4] = [
                ("id", &id.as_str()),
                ("damaged", &report.lost()),
                ("torn_bytes", &torn),
                ("missing_bytes", &missing),
            ];
            let what = if torn > 0 { "session repaired" } else { "session is damaged" };
            self.log.warn(what, &fields);
        }
        if report.records == 0 {
            // What was never acknowledged has no summary.
            if summarized > 0 {
                report.require_records(id)?;
            }
            return Ok(None);
        }
        let watchers = Arc::clone(&self.watchers);
        let session = Arc::new(Session::new(id.clone(), journal, watchers, summarized, &report));
        let mut state = lock(&session.state);
        if torn > 0 {
            // So that what was cut off does not count as missing next time.
            self.save_summary(id, &mut state);
        }
        let message = "the daemon ended while the turn was in progress";
        self.interrupt_turns(&session, &mut state, message);
        state.journal.close_file();
        let seq = state.journal.state().seq;
        drop(state);
        self.log.info("session resumed", &[("id", &id.as_str()), ("seq", &seq)]);
        Ok(Some(session))
    }

    fn interrupt_turns(&self, session: &Session, state: &mut SessionState, message: &str) {
        let turns: Vec<TurnHead> = state.journal.state().unfinished().cloned().collect();
        if turns.is_empty() {
            return;
        }
        let fault = Err(Fault { code: "interrupted", message: message.to_owned() });
        let ends = turns.iter().map(|turn| end_event(turn, &fault)).collect();
        if let Err(error) = session.end_turns(state, ends) {
            self.log_write_error(&session.id, &error);
        }
        for turn in &turns {
            let fields: [(&str, &dyn Display); 2] =
                [("session", &session.id.as_str()), ("id", &turn.turn_id)];
            self.log.warn("turn interrupted", &fields);
        }
    }

    /// Returns a page of the list of sessions, see [`Store::page`].
    pub fn page(&self, before: Option<u64>, count: usize) -> Result<Page, Error> {
        self.complete_index();
        self.store.page(before, count)
    }

    /// Returns the summaries of the sessions on a page.
    pub fn summaries(&self, before: Option<u64>, count: usize) -> Result<SessionPage, Error> {
        let page = self.page(before, count)?;
        // One that cannot be read, or has just been deleted, must not hide the others.
        let mut sessions = Vec::with_capacity(page.ids.len());
        sessions.extend(page.ids.iter().filter_map(|id| self.summary(id).ok()));
        Ok(SessionPage { sessions, next: page.next.map(|next| next.to_string()) })
    }

    /// Adds the sessions to the index that it lacks. If that fails, they are listed without it.
    fn complete_index(&self) {
        match self.store.complete_index() {
            Ok(0) => {}
            Ok(count) => {
                let path = self.store.index();
                let fields: [(&str, &dyn Display); 2] =
                    [("path", &path.display()), ("added", &count)];
                self.log.warn("index of the sessions completed", &fields);
            }
            Err(error) => {
                self.log.error("index of the sessions cannot be completed", &[("cause", &error)]);
            }
        }
    }

    fn save_summary(&self, id: &SessionId, state: &mut SessionState) {
        let (journal, bytes) = (&state.journal, state.journal.bytes());
        match self.store.save_summary(id, journal.state(), bytes) {
            Ok(()) => state.summarized_bytes = bytes,
            Err(error) => {
                self.log.debug("no summary was kept", &[("id", &id.as_str()), ("cause", &error)]);
            }
        }
    }

    fn log_write_error(&self, id: &SessionId, error: &SessionError) {
        self.log.error("session cannot be written", &[("id", &id.as_str()), ("cause", error)]);
    }
}
