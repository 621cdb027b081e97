//! One session in memory: who may append to it, and who follows it.
//!
//! Only the holder of the lock on its state appends: it assigns the number, writes, then publishes.
//! Followers are woken and read the journal, so none can see a gap, another order or an event that
//! the disk does not have.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use crate::error::{Doing, Error, reason};
use crate::mutex::lock;
use crate::protocol::event::{Event, PermissionResolved, SessionSnapshot};
use crate::protocol::{SessionId, SessionSummary, TurnOptions};
use crate::{limits, sys, token};

use super::journal::{Durability, Journal};
use super::reader::{JournalReport, Reader};
use super::replay::Conversation;
use super::tail::{self, Bounds};
use super::wake::{Cancel, Waker};
use super::watchers::Watchers;

/// One session in memory.
pub struct Session {
    pub id: SessionId,
    pub(super) state: Mutex<SessionState>,
    /// Notified, with the lock on the state, when a permission is resolved, the turn is cancelled,
    /// or the followers change.
    pub(super) changed: Condvar,
    /// The waker of each follower, and whether it answers permission requests.
    wakers: Mutex<Vec<(Arc<Waker>, bool)>>,
    /// The followers of all sessions.
    watchers: Arc<Watchers>,
    /// Why its streams must end.
    closed: OnceLock<CloseReason>,
    /// The damaged records and the missing bytes that were found when it was opened.
    pub(super) damage: (Option<u64>, Option<u64>),
    /// When it was last used, in seconds of the boot clock.
    pub(super) used_at: AtomicU64,
}

/// The part of a session that the holder of the lock may change.
pub(super) struct SessionState {
    pub(super) journal: Journal,
    /// Whether a worker has the session, or the session is waiting for one.
    pub(super) scheduled: bool,
    /// The cancel of the active turn.
    pub(super) cancel: Option<Arc<Cancel>>,
    /// The options of the queued turns, by turn id.
    pub(super) options: HashMap<String, TurnOptions>,
    /// The permissions that the active turn requested, by request id.
    pub(super) permissions: HashMap<String, Permission>,
    /// The ends of turns that could not be written when the turns ended.
    pending_ends: Vec<Event>,
    pub(super) closed: Option<CloseReason>,
    /// When a summary was last written, on the boot clock.
    pub(super) summarized_at: Option<Duration>,
    /// The length of the journal of which the summary on the disk was made; 0 without one.
    pub(super) summarized_bytes: u64,
}

/// A permission that a turn waits for.
pub(super) struct Permission {
    pub(super) turn_id: String,
    pub(super) allowed: Option<bool>,
}

/// The reason why nothing more is appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The session was deleted.
    Deleted,
    /// The daemon is stopping.
    Stopping,
}

/// The result of a decision about a permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It counts.
    Won,
    /// An earlier one counts.
    TooLate,
    /// No turn is waiting for it.
    Unknown,
}

/// A follower of a session, until it is dropped.
pub struct Subscription {
    pub session: Arc<Session>,
    pub waker: Arc<Waker>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        lock(&self.session.wakers).retain(|(waker, _)| !Arc::ptr_eq(waker, &self.waker));
        self.session.followers_changed();
    }
}

impl Session {
    pub(super) fn new(
        id: SessionId,
        journal: Journal,
        watchers: Arc<Watchers>,
        summarized_bytes: u64,
        report: &JournalReport,
    ) -> Session {
        let found = |count: u64| (count > 0).then_some(count);
        Session {
            id,
            state: Mutex::new(SessionState {
                journal,
                scheduled: false,
                cancel: None,
                options: HashMap::new(),
                permissions: HashMap::new(),
                pending_ends: Vec::new(),
                closed: None,
                summarized_at: None,
                summarized_bytes,
            }),
            changed: Condvar::new(),
            wakers: Mutex::default(),
            watchers,
            closed: OnceLock::new(),
            damage: (found(report.lost()), found(report.missing_bytes)),
            used_at: AtomicU64::new(sys::boot_clock().as_secs()),
        }
    }

    /// Returns its summary, as a list shows it.
    pub fn summary(&self) -> SessionSummary {
        lock(&self.state).journal.state().summary(&self.id)
    }

    /// Tells the followers that the session was created again, which changes nothing, or has a new
    /// title.
    pub fn announce(&self, title: Option<&str>) -> Result<(), SessionError> {
        let mut state = lock(&self.state);
        let mut snapshot = state.journal.state().summary(&self.id);
        snapshot.seq += 1;
        snapshot.title = title.map(str::to_owned).or(snapshot.title);
        let event = Event::SessionSnapshot(SessionSnapshot::new(snapshot, None).into());
        let is_active = state.journal.state().unfinished().next().is_some();
        let appended = self.append(&mut state, &[event], Durability::Synced);
        if !is_active {
            state.journal.close_file();
        }
        appended.map(drop)
    }

    /// Returns a reader of its events.
    pub fn reader(&self) -> Reader {
        lock(&self.state).journal.reader()
    }

    /// Returns a reader of its events, and the number of the last event. The followers of all
    /// sessions know about these events.
    pub(super) fn position(&self) -> (Reader, u64) {
        let state = lock(&self.state);
        (state.journal.reader(), state.journal.state().seq)
    }

    /// Reads the end of its conversation, as much as a model is sent, from the journal's end: the
    /// cost does not depend on the length of the journal.
    pub fn recent_conversation(&self) -> Result<Conversation, Error> {
        let queued_at = |turn_id: &str| lock(&self.state).journal.state().queued_at(turn_id);
        let read = tail::read(self.reader(), self.reader(), queued_at, Bounds::HISTORY);
        read.doing("read a session")
    }

    /// Reads its whole conversation from the journal.
    pub fn conversation(&self) -> Result<Conversation, Error> {
        let mut conversation = Conversation::default();
        let mut reader = self.reader();
        reader.all(|record| conversation.apply_record(record)).doing("read a session")?;
        Ok(conversation)
    }

    /// Resolves a permission that a turn is waiting for. Of several decisions, exactly one counts:
    /// it is on the disk before it takes effect and before this returns.
    pub fn decide(&self, request: &str, allow: bool, by: &str) -> Result<Decision, SessionError> {
        let mut state = lock(&self.state);
        let Some(permission) = state.permissions.get(request) else {
            return Ok(Decision::Unknown);
        };
        if permission.allowed.is_some() {
            return Ok(Decision::TooLate);
        }
        let event = Event::PermissionResolved(PermissionResolved {
            turn_id: permission.turn_id.clone(),
            request_id: request.to_owned(),
            decision: if allow { "allow" } else { "deny" }.to_owned(),
            approved: allow,
            decided_by: by.to_owned(),
        });
        self.append(&mut state, &[event], Durability::Synced)?;
        if let Some(permission) = state.permissions.get_mut(request) {
            permission.allowed = Some(allow);
        }
        drop(state);
        self.changed.notify_all();
        Ok(Decision::Won)
    }

    /// Returns a waker that is woken when there are more events, or when there will be none.
    /// `answers` says whether the follower can answer permission requests.
    pub fn subscribe(self: &Arc<Session>, answers: bool) -> Result<Subscription, Error> {
        let waker = Arc::new(Waker::new().doing("watch a session")?);
        lock(&self.wakers).push((Arc::clone(&waker), answers));
        self.followers_changed();
        Ok(Subscription { session: Arc::clone(self), waker })
    }

    /// Wakes a turn that waits for a permission: who can answer it has changed.
    pub(super) fn followers_changed(&self) {
        // A turn between its check and its wait has the lock.
        drop(lock(&self.state));
        self.changed.notify_all();
    }

    /// Returns whether a follower can answer permission requests.
    pub fn has_responder(&self) -> bool {
        lock(&self.wakers).iter().any(|(_, answers)| *answers)
            || self.watchers.has_responder(&self.id)
    }

    /// Returns whether there will be no more events.
    pub fn is_closed(&self) -> bool {
        self.closed.get().is_some()
    }

    /// Returns why there will be no more events.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.closed.get().copied()
    }

    /// Appends events, all or none. Returns the number of the last.
    pub(super) fn append(
        &self,
        state: &mut SessionState,
        events: &[Event],
        durability: Durability,
    ) -> Result<u64, SessionError> {
        self.check_open(state)?;
        let before = state.journal.state().seq;
        let seq = state.journal.append(events, durability).map_err(|cause| not_written(&cause))?;
        self.wake();
        self.watchers.notify(&self.id, before, seq, || state.journal.reader());
        Ok(seq)
    }

    pub(super) fn check_open(&self, state: &SessionState) -> Result<(), SessionError> {
        match state.closed {
            None => Ok(()),
            Some(CloseReason::Deleted) => Err(no_session(&self.id)),
            Some(CloseReason::Stopping) => Err(SessionError::Stopping),
        }
    }

    /// Ends turns with these events. If they cannot be written now, they are written later: the
    /// turns never run again.
    pub(super) fn end_turns(
        &self,
        state: &mut SessionState,
        ends: Vec<Event>,
    ) -> Result<(), SessionError> {
        for turn_id in ends.iter().filter_map(Event::turn_id) {
            state.journal.end_turn(turn_id);
        }
        state.pending_ends.extend(ends);
        self.flush_pending(state)
    }

    /// Writes the pending ends of turns.
    pub(super) fn flush_pending(&self, state: &mut SessionState) -> Result<(), SessionError> {
        if state.pending_ends.is_empty() {
            return Ok(());
        }
        let ends = std::mem::take(&mut state.pending_ends);
        let written = self.append(state, &ends, Durability::Synced);
        written.map(drop).inspect_err(|_| state.pending_ends = ends)
    }

    /// Writes the pending ends of turns if that is possible again.
    pub(super) fn retry_pending(&self) {
        let mut state = lock(&self.state);
        if !state.pending_ends.is_empty() && self.flush_pending(&mut state).is_ok() {
            state.journal.close_file();
        }
    }

    /// Ends the streams, and makes further appends fail.
    pub(super) fn close(&self, state: &mut SessionState, reason: CloseReason) {
        state.closed = Some(reason);
        self.closed.get_or_init(|| reason);
        self.wake();
    }

    fn wake(&self) {
        Waker::wake_all(lock(&self.wakers).iter().map(|(waker, _)| &**waker));
    }

    pub(super) fn subscribers(&self) -> usize {
        lock(&self.wakers).len()
    }

    pub(super) fn is_idle(&self, now: u64) -> bool {
        let unused = now.saturating_sub(self.used_at.load(Ordering::Relaxed));
        let is_used = unused < limits::SESSION_IDLE_MAX.as_secs() || self.subscribers() > 0;
        let state = lock(&self.state);
        // The end of a turn that could not be written is only in memory.
        !is_used
            && state.pending_ends.is_empty()
            && state.journal.state().unfinished().next().is_none()
    }
}

/// The reason why a request about sessions is refused.
#[derive(Debug)]
pub enum SessionError {
    /// There is no session with this id.
    NotFound(String),
    Invalid(String),
    /// The client's view of the session is out of date.
    Conflict(String),
    /// A turn is in progress, or there are too many.
    Busy(String),
    /// The daemon is stopping.
    Stopping,
    /// The disk is full.
    Storage(String),
    /// The disk has failed, or a session on it cannot be read or written for another reason.
    Disk(String),
    Failed(Error),
}

impl From<Error> for SessionError {
    fn from(error: Error) -> SessionError {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        match error.io_kind() {
            Some(StorageFull | QuotaExceeded) => SessionError::Storage(error.to_string()),
            _ => SessionError::Failed(error),
        }
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionError::NotFound(id) => write!(f, "No session with id '{id}'"),
            SessionError::Invalid(message)
            | SessionError::Conflict(message)
            | SessionError::Busy(message)
            | SessionError::Storage(message)
            | SessionError::Disk(message) => write!(f, "{message}"),
            SessionError::Stopping => write!(f, "the daemon is stopping"),
            SessionError::Failed(error) => write!(f, "{error}"),
        }
    }
}

pub(super) fn no_session(id: &SessionId) -> SessionError {
    SessionError::NotFound(id.as_str().to_owned())
}

pub(super) fn not_written(cause: &io::Error) -> SessionError {
    let message = format!("the session cannot be written: {}", reason(cause));
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SessionError::Storage(message),
        _ if cause.raw_os_error() == Some(libc::EIO) => {
            SessionError::Disk(format!("{message}; check the disk and the kernel's log"))
        }
        _ => SessionError::Disk(message),
    }
}

/// Returns `prefix` and twelve random characters that need no escapes in a URL.
pub(super) fn new_id(prefix: &str) -> Result<SessionId, SessionError> {
    let text = format!("{prefix}{}", token::random_name(12)?);
    SessionId::parse(&text).ok_or(SessionError::Invalid(text))
}
