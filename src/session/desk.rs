//! One session in memory, and its serial writer.
//!
//! Whoever holds the desk assigns the number, appends and lets readers see, in this order. Readers
//! read the journal and are only told that there is more, so none can see a gap, an order or an
//! event that the disk does not have.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::error::{Doing, Error, reason};
use crate::json::Raw;
use crate::mutex::{lock, wait_timeout_while};
use crate::protocol::event::{Event, PermissionRequest, PermissionResolved, TurnHead, TurnQueued};
use crate::protocol::{Grant, SessionSummary, SubmitTurn, TurnOptions};
use crate::{clock, limits, sys};

use super::journal::{Durability, Journal, Reader, Refused};
use super::rules::{Conversation, SessionId, Stage, State};
use super::turn::{self, Fault};
use super::wake::{Cancel, Waker};

/// One session in memory.
pub struct Session {
    pub id: SessionId,
    pub(super) desk: Mutex<Desk>,
    /// Notified, with the desk, when a permission was decided, the turn was cancelled, or somebody
    /// began or ceased to follow.
    pub(super) decided: Condvar,
    /// Of everybody who follows, and whether they answer.
    pub(super) wakers: Mutex<Vec<(Arc<Waker>, bool)>>,
    /// Its streams are to end.
    pub(super) closed: AtomicBool,
    /// Seconds of the boot clock when it was last asked for.
    pub(super) used: AtomicU64,
}

/// Somebody who follows a session, as long as this lives.
pub struct Subscription {
    session: Arc<Session>,
    waker: Arc<Waker>,
}

impl Deref for Subscription {
    type Target = Waker;

    fn deref(&self) -> &Waker {
        &self.waker
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        lock(&self.session.wakers).retain(|(waker, _)| !Arc::ptr_eq(waker, &self.waker));
        self.session.reconsider();
    }
}

/// What came of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It counts.
    Won,
    /// Another one was faster.
    TooLate,
    /// Nothing waits for it, or no longer.
    Unknown,
}

/// Something that a turn must not do before somebody allows it.
pub(super) struct Permission {
    turn_id: String,
    decided: Option<bool>,
}

/// The serial writer.
pub(super) struct Desk {
    pub(super) journal: Journal,
    pub(super) state: State,
    /// A worker has it, or it waits for one.
    pub(super) scheduled: bool,
    pub(super) cancel: Option<Arc<Cancel>>,
    /// Of the turns that have not begun, by their ids.
    pub(super) options: HashMap<String, TurnOptions>,
    /// Asked for by the active turn, by the request's id; forgotten when it ends.
    pub(super) permissions: HashMap<String, Permission>,
    /// Ends of turns that could not be written when they ended; written as soon as there is room.
    pub(super) owed: VecDeque<(TurnHead, Fault)>,
    pub(super) shut: Option<Shut>,
    /// When a summary was last put beside the journal, on the boot clock.
    pub(super) kept: Option<Duration>,
}

/// Why nothing more is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shut {
    /// The session was deleted.
    Deleted,
    /// The daemon has left.
    Left,
}

/// A turn that is being run: what was asked, and where to tell what happens.
pub struct Turn<'a> {
    pub(super) session: &'a Session,
    pub head: &'a TurnHead,
    /// What it was asked; also the last message of [`Turn::conversation`].
    #[cfg_attr(not(test), expect(dead_code, reason = "an agent reads the conversation"))]
    pub content: &'a str,
    pub(super) cancel: &'a Cancel,
    pub options: &'a TurnOptions,
}

/// How long an answer is waited for.
#[derive(Clone, Copy)]
pub struct Patience {
    pub limit: Duration,
    /// While nobody follows the session.
    pub alone: Duration,
}

impl Turn<'_> {
    /// Whether it should end as soon as it can.
    pub fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Can be waited for, and is set once the turn is to end.
    pub fn cancel(&self) -> &Cancel {
        self.cancel
    }

    /// The conversation so far, with what this turn was asked as its last message.
    pub fn conversation(&self) -> Result<Conversation, Error> {
        self.session.conversation()
    }

    /// What the session was created with.
    pub fn summary(&self) -> SessionSummary {
        self.session.summary()
    }

    /// Whether anybody follows the session at this moment who can answer a question.
    pub fn has_listener(&self) -> bool {
        lock(&self.session.wakers).iter().any(|(_, answers)| *answers)
    }

    /// Asks whether the turn may do something, and waits for the answer: `false` when patience
    /// ends, or the turn is cancelled. The request and the answer are events of the session.
    pub fn may(&self, tool: &str, input: &Raw, patience: Patience) -> Result<bool, Problem> {
        let request_id = fresh_id("perm_")?.as_str().to_owned();
        let event = Event::PermissionRequest(PermissionRequest {
            turn_id: self.head.turn_id.clone(),
            request_id: request_id.clone(),
            tool_name: tool.to_owned(),
            args: input.clone(),
            input: input.clone(),
            expires_at: clock::rfc3339(
                clock::now_millis()
                    .saturating_add(i64::try_from(patience.limit.as_millis()).unwrap_or(0)),
            ),
        });
        let mut desk = lock(&self.session.desk);
        let turn_id = self.head.turn_id.clone();
        desk.permissions.insert(request_id.clone(), Permission { turn_id, decided: None });
        self.session.append(&mut desk, &event, Durability::Synced)?;
        let undecided = |desk: &mut Desk| {
            let permission = desk.permissions.get(&request_id);
            permission.is_some_and(|permission| permission.decided.is_none()) && !self.cancelled()
        };
        let deadline = Instant::now() + patience.limit;
        while undecided(&mut desk) {
            let is_alone = !self.has_listener();
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = if is_alone { left.min(patience.alone) } else { left };
            let as_before = |desk: &mut Desk| undecided(desk) && self.has_listener() != is_alone;
            let (woken, waited) = wait_timeout_while(&self.session.decided, desk, limit, as_before);
            desk = woken;
            if waited.timed_out() {
                break;
            }
        }
        let decided = desk.permissions.get(&request_id).and_then(|permission| permission.decided);
        drop(desk);
        match decided {
            Some(allowed) => Ok(allowed),
            // Nobody has decided: it is decided now, so that every client learns of it.
            None => match self.session.decide(&request_id, false, "daemon")? {
                Decision::Won | Decision::Unknown => Ok(false),
                Decision::TooLate => {
                    let desk = lock(&self.session.desk);
                    let permission = desk.permissions.get(&request_id);
                    Ok(permission.is_some_and(|permission| permission.decided == Some(true)))
                }
            },
        }
    }

    /// Returns what the turn may do without a permission request.
    pub fn grant(&self) -> Grant {
        self.options.grant().unwrap_or_default()
    }

    /// Appends an event to the session.
    pub fn append(&self, event: &Event, durability: Durability) -> Result<u64, Problem> {
        self.session.append(&mut lock(&self.session.desk), event, durability)
    }
}

impl Session {
    pub(super) fn new(id: SessionId, journal: Journal, state: State) -> Session {
        Session {
            id,
            desk: Mutex::new(Desk {
                journal,
                state,
                scheduled: false,
                cancel: None,
                options: HashMap::new(),
                permissions: HashMap::new(),
                owed: VecDeque::new(),
                shut: None,
                kept: None,
            }),
            decided: Condvar::new(),
            wakers: Mutex::default(),
            closed: AtomicBool::new(false),
            used: AtomicU64::new(sys::boot_clock().as_secs()),
        }
    }

    /// What a list shows of it.
    pub fn summary(&self) -> SessionSummary {
        lock(&self.desk).state.summary(&self.id)
    }

    /// Its events, from any place.
    pub fn reader(&self) -> Reader {
        lock(&self.desk).journal.reader()
    }

    /// What has been said in it, read from its journal.
    pub fn conversation(&self) -> Result<Conversation, Error> {
        let mut conversation = Conversation::default();
        let mut reader = self.reader();
        reader.all(|record| conversation.apply_record(record)).doing("read a session")?;
        Ok(conversation)
    }

    /// Decides about something that a turn waits for; exactly one decision wins. It is on the disk
    /// when this returns, and not acted on before.
    pub fn decide(&self, request: &str, allow: bool, by: &str) -> Result<Decision, Problem> {
        let mut desk = lock(&self.desk);
        let Some(permission) = desk.permissions.get(request) else {
            return Ok(Decision::Unknown);
        };
        if permission.decided.is_some() {
            return Ok(Decision::TooLate);
        }
        let event = Event::PermissionResolved(PermissionResolved {
            turn_id: permission.turn_id.clone(),
            request_id: request.to_owned(),
            decision: if allow { "allow" } else { "deny" }.to_owned(),
            approved: allow,
            decided_by: by.to_owned(),
        });
        self.append(&mut desk, &event, Durability::Synced)?;
        if let Some(permission) = desk.permissions.get_mut(request) {
            permission.decided = Some(allow);
        }
        drop(desk);
        self.decided.notify_all();
        Ok(Decision::Won)
    }

    /// A waker that rings when there are more events, or when there will be none. Whether it is for
    /// somebody who `answers` the questions of turns is known to nobody else.
    pub fn subscribe(self: &Arc<Session>, answers: bool) -> Result<Subscription, Error> {
        let waker = Arc::new(Waker::new().doing("watch a session")?);
        lock(&self.wakers).push((Arc::clone(&waker), answers));
        self.reconsider();
        Ok(Subscription { session: Arc::clone(self), waker })
    }

    /// Wakes a turn that waits for a decision: who follows the session is not the same as before.
    fn reconsider(&self) {
        // Whoever is between looking and waiting has the desk.
        drop(lock(&self.desk));
        self.decided.notify_all();
    }

    /// Whether there will be no more events: streams end.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(super) fn append(
        &self,
        desk: &mut Desk,
        event: &Event,
        durability: Durability,
    ) -> Result<u64, Problem> {
        self.append_all(desk, std::slice::from_ref(event), durability)
    }

    /// All of them or none; gives the number of the last.
    pub(super) fn append_all(
        &self,
        desk: &mut Desk,
        events: &[Event],
        durability: Durability,
    ) -> Result<u64, Problem> {
        self.check_open(desk)?;
        let Desk { journal, state, .. } = desk;
        let seq = journal.append_all(state, events, durability)?;
        self.wake();
        Ok(seq)
    }

    pub(super) fn check_open(&self, desk: &Desk) -> Result<(), Problem> {
        match desk.shut {
            None => Ok(()),
            Some(Shut::Deleted) => Err(Problem::NoSession(self.id.as_str().to_owned())),
            Some(Shut::Left) => Err(Problem::Leaving),
        }
    }

    /// Ends turns by an error, now or, when it cannot be written now, later: they are never run
    /// again.
    pub(super) fn fail(
        &self,
        desk: &mut Desk,
        heads: &[TurnHead],
        fault: &Fault,
    ) -> Result<(), Problem> {
        for head in heads {
            desk.state.forget(&head.turn_id);
            desk.owed.push_back((head.clone(), fault.clone()));
        }
        self.pay(desk)
    }

    /// Writes the ends of turns that are owed.
    pub(super) fn pay(&self, desk: &mut Desk) -> Result<(), Problem> {
        if desk.owed.is_empty() {
            return Ok(());
        }
        let ends = desk.owed.iter().map(|(head, fault)| turn::end(head, &Err(fault.clone())));
        let ends: Vec<Event> = ends.collect();
        self.append_all(desk, &ends, Durability::Synced)?;
        desk.owed.clear();
        Ok(())
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub(super) fn wake(&self) {
        lock(&self.wakers).iter().for_each(|(waker, _)| waker.wake());
    }

    pub(super) fn subscribers(&self) -> usize {
        lock(&self.wakers).len()
    }

    pub(super) fn is_idle(&self, now: u64) -> bool {
        let unused = now.saturating_sub(self.used.load(Ordering::Relaxed));
        unused >= limits::SESSION_IDLE_MAX.as_secs()
            && self.subscribers() == 0
            && lock(&self.desk).state.unfinished().is_empty()
    }
}

impl Desk {
    /// Tells the active turn, if there is one, that it is to end.
    pub(super) fn cancel_if_idle(&self) {
        if let Some(cancel) = &self.cancel {
            cancel.cancel();
        }
    }

    /// Whether a turn may be submitted now.
    pub(super) fn check(&self, submission: &SubmitTurn) -> Result<(), Problem> {
        if self.state.queue.len() >= limits::QUEUE_MAX {
            return Err(Problem::Busy(format!("{} turns are waiting already", limits::QUEUE_MAX)));
        }
        if let Some(seen) = submission.last_seen_seq.filter(|seen| *seen < self.state.seq) {
            let seq = self.state.seq;
            let message = format!("Session state conflict: you have seen {seen}, it is at {seq}");
            return Err(Problem::Conflict(message));
        }
        Ok(())
    }

    /// What the user said; it stays on the disk until it is wanted.
    pub(super) fn content_of(&self, turn_id: &str) -> Result<String, Problem> {
        let unreadable =
            |because: &str| Problem::Storage(format!("the turn cannot be read: {because}"));
        let Some((Stage::Queued, seq)) = self.state.stage(turn_id) else {
            return Err(unreadable("it is not in the queue"));
        };
        match self.journal.reader().event(seq).map_err(|error| unreadable(&reason(&error)))? {
            Some(Event::TurnQueued(TurnQueued { content, .. })) => Ok(content),
            _ => Err(unreadable("its record is damaged")),
        }
    }
}

/// Why a request about sessions is refused.
#[derive(Debug)]
pub enum Problem {
    NoSession(String),
    Invalid(String),
    /// It was right once and is not any more.
    Conflict(String),
    /// A turn stands in the way.
    Busy(String),
    /// The daemon is leaving.
    Leaving,
    /// The disk is full, or cannot be trusted.
    Storage(String),
    Failed(Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        let full = matches!(error.io_kind(), Some(StorageFull | QuotaExceeded));
        if full { Problem::Storage(error.to_string()) } else { Problem::Failed(error) }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Problem {
        Problem::Storage(match refused {
            Refused::Full(cause) => format!("the session cannot be written: {}", reason(&cause)),
            Refused::Broken(because) => format!("the session cannot be written: {because}"),
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::NoSession(id) => write!(f, "No session with id '{id}'"),
            Problem::Invalid(message)
            | Problem::Conflict(message)
            | Problem::Busy(message)
            | Problem::Storage(message) => write!(f, "{message}"),
            Problem::Leaving => write!(f, "the daemon is stopping"),
            Problem::Failed(error) => write!(f, "{error}"),
        }
    }
}

/// `prefix` and twelve letters that may stand in a URL, too many to guess.
pub(super) fn fresh_id(prefix: &str) -> Result<SessionId, Problem> {
    let text = format!("{prefix}{}", crate::token::random_name(12)?);
    SessionId::parse(&text).ok_or(Problem::Invalid(text))
}
