//! The turns of all sessions: submitting, queuing, running and cancelling them.
//!
//! The turns of a session run one after the other, those of different sessions at the same time, at
//! most [`limits::ACTIVE_TURNS_MAX`]. Every turn ends with an event: the agent's result, an error,
//! or, if the session cannot be written, an error that is written later. A turn that was started
//! never runs again.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::error::{Doing, Error, reason};
use crate::mutex::lock;
use crate::protocol::event::{Event, SessionCancelled, TurnHead, TurnQueued, TurnStats};
use crate::protocol::{CancelTurns, SubmitTurn, TurnAccepted, TurnsCancelled};
use crate::session::journal::Durability;
use crate::session::session::{Session, SessionError, SessionState, new_id};
use crate::session::turn::{Fault, Turn, cancelled, end_event};
use crate::session::wake::Cancel;
use crate::{limits, sys};

use super::Runtime;

/// The start of an accepted turn. Dropping this starts it, so that the client can have its answer
/// before a thread is started.
pub struct TurnStart {
    runtime: Arc<Runtime>,
    /// `None` if the session has a worker or waits for one.
    session: Option<Arc<Session>>,
}

impl Drop for TurnStart {
    fn drop(&mut self) {
        // A few followers were woken, often on this processor: they send the event before the
        // thread of the turn, which takes longer, can have it. Many are sent it together with what
        // the turn writes first.
        let is_followed_by_few = |session: &Arc<Session>| {
            (1..=limits::TARGETS_OF_ONE_THREAD).contains(&session.subscribers())
        };
        if self.session.as_ref().is_some_and(is_followed_by_few) {
            thread::yield_now();
        }
        self.runtime.schedule(self.session.take());
    }
}

impl Runtime {
    /// Accepts a turn, and starts it at once.
    #[cfg(test)]
    pub fn submit(
        self: &Arc<Runtime>,
        session: &Arc<Session>,
        turn: &SubmitTurn,
    ) -> Result<TurnAccepted, SessionError> {
        Ok(self.accept(session, turn)?.0)
    }

    /// Accepts a turn. It is on the disk when this returns `Ok`, and will be run or reported as
    /// interrupted. The caller starts it.
    pub fn accept(
        self: &Arc<Runtime>,
        session: &Arc<Session>,
        turn: &SubmitTurn,
    ) -> Result<(TurnAccepted, Option<TurnStart>), SessionError> {
        let mut state = lock(&session.state);
        session.check_open(&state)?;
        let turn_id = match &turn.turn_id {
            Some(turn_id) => turn_id.clone(),
            None => new_id("turn_")?.as_str().to_owned(),
        };
        let accepted = |turn_id, queued, seq| TurnAccepted {
            turn_id,
            status: "queued".to_owned(),
            queued,
            seq,
            damaged_records: session.damage.0,
            missing_bytes: session.damage.1,
        };
        let queued = state.journal.state().queue.len() as u64;
        if let Some(seq) = state.journal.state().queued_at(&turn_id) {
            return Ok((accepted(turn_id, queued, seq), None));
        }
        session.flush_pending(&mut state)?;
        check_submission(&state, turn)?;
        // Counted before it is written: from now on the daemon is not idle.
        let counted = Counted::new(self)?;
        let event = queued_event(&turn_id, turn, queued);
        let seq = session.append(&mut state, &[event], Durability::Synced)?;
        counted.keep();
        state.options.insert(turn_id.clone(), turn.options.clone().unwrap_or_default());
        self.submitted.fetch_add(1, Ordering::Relaxed);
        let was_scheduled = std::mem::replace(&mut state.scheduled, true);
        drop(state);
        let session = (!was_scheduled).then(|| Arc::clone(session));
        let start = TurnStart { runtime: Arc::clone(self), session };
        Ok((accepted(turn_id, queued, seq), Some(start)))
    }

    /// Cancels turns. The decision is on the disk when this returns.
    pub fn cancel(
        &self,
        session: &Session,
        selector: &CancelTurns,
    ) -> Result<TurnsCancelled, SessionError> {
        let CancelTurns { turn_id, writer_id } = selector;
        let mut state = lock(&session.state);
        let is_selected = |turn: &&TurnHead| {
            turn_id.as_ref().is_none_or(|id| *id == turn.turn_id)
                && writer_id.as_ref().is_none_or(|id| *id == turn.writer_id)
        };
        let turns = state.journal.state();
        let active = turns.active.as_ref().is_some_and(|turn| is_selected(&turn));
        let queued: Vec<TurnHead> = match (turn_id, writer_id) {
            (None, None) => Vec::new(),
            _ => turns.queue.iter().filter(is_selected).cloned().collect(),
        };
        let count = queued.len() as u64;
        let reply = TurnsCancelled::new(count, active);
        if reply.cancelled == 0 {
            return Ok(reply);
        }
        let mut events: Vec<Event> =
            queued.iter().map(|turn| end_event(turn, &Err(cancelled()))).collect();
        events.push(Event::SessionCancelled(SessionCancelled {
            cancelled: reply.cancelled,
            turn_id: turn_id.clone(),
            writer_id: writer_id.clone(),
        }));
        session.append(&mut state, &events, Durability::Synced)?;
        for turn in &queued {
            state.options.remove(&turn.turn_id);
        }
        self.turns_ended(count);
        if active && let Some(cancel) = &state.cancel {
            cancel.cancel();
            session.changed.notify_all();
        }
        Ok(reply)
    }

    fn turns_ended(&self, count: u64) {
        lock(&self.scheduler).unfinished -= count;
    }

    /// Lets a session wait for a worker, and starts one for the sessions that wait.
    fn schedule(self: &Arc<Runtime>, session: Option<Arc<Session>>) {
        let mut scheduler = lock(&self.scheduler);
        if scheduler.stopping {
            return;
        }
        scheduler.waiting.extend(session);
        if scheduler.waiting.is_empty() || scheduler.workers >= limits::ACTIVE_TURNS_MAX {
            return;
        }
        scheduler.workers += 1;
        drop(scheduler);
        if let Err(error) = self.start_worker() {
            self.log.error("turns cannot run", &[("cause", &error)]);
            self.fail_waiting(&error);
        }
    }

    /// Starts a worker. Tries again after a pause if the system has no resources.
    fn start_worker(self: &Arc<Runtime>) -> Result<(), Error> {
        let mut tries = 1;
        loop {
            let runtime = Arc::clone(self);
            let started = thread::Builder::new().name("turn".into()).spawn(move || runtime.work());
            match started {
                Err(_) if tries < limits::WORKER_TRIES_MAX => tries += 1,
                started => return started.doing("start a thread for the turn").map(drop),
            }
            drop(sys::wait_readable([], Some(limits::WORKER_PAUSE)));
        }
    }

    /// Gives up a worker that could not be started. If there is no other one, ends the turns of
    /// the sessions that wait for one: they could wait for ever.
    fn fail_waiting(&self, error: &Error) {
        while !self.end_worker() {
            let mut scheduler = lock(&self.scheduler);
            if scheduler.workers > 1 {
                scheduler.workers -= 1;
                return;
            }
            let session = scheduler.waiting.pop_front();
            drop(scheduler);
            let Some(session) = session else { continue };
            let fault = Fault { code: "internal-error", message: error.to_string() };
            loop {
                if let Some(head) = first_turn(&session) {
                    self.fail_turn(&session, &head, fault.clone(), None);
                }
                if !has_work(&mut lock(&session.state)) {
                    break;
                }
            }
        }
    }

    /// Runs turns while there are any, alternating between sessions.
    fn work(self: Arc<Runtime>) {
        loop {
            let mut scheduler = lock(&self.scheduler);
            let Some(session) = scheduler.waiting.pop_front() else {
                drop(scheduler);
                if self.end_worker() {
                    return;
                }
                continue;
            };
            scheduler.running += 1;
            drop(scheduler);
            self.run_next(&session);
            let has_more = has_work(&mut lock(&session.state));
            let mut scheduler = lock(&self.scheduler);
            scheduler.running -= 1;
            if has_more && !scheduler.stopping {
                scheduler.waiting.push_back(session);
            }
        }
    }

    /// Ends this worker; returns `false` if there is new work.
    fn end_worker(&self) -> bool {
        let mut scheduler = lock(&self.scheduler);
        if !scheduler.waiting.is_empty() {
            return false;
        }
        scheduler.workers -= 1;
        let on_idle = if scheduler.workers == 0 { scheduler.on_idle.take() } else { None };
        drop(scheduler);
        if let Some(on_idle) = on_idle {
            on_idle();
        }
        true
    }

    /// Runs the first turn in the session's queue. It ends whatever fails or panics: otherwise it
    /// would count as unfinished forever.
    fn run_next(&self, session: &Session) {
        let Some(head) = first_turn(session) else { return };
        let mut counted = None;
        let run = AssertUnwindSafe(|| self.run_turn(session, &head, &mut counted));
        let fault = match catch_unwind(run) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                self.log_write_error(&session.id, &error);
                error.into()
            }
            Err(_panic) => {
                self.log.error("a turn panicked", &[("session", &session.id.as_str())]);
                let message = "the daemon has failed at this turn; its log says more".to_owned();
                Fault { code: "internal-error", message }
            }
        };
        self.fail_turn(session, &head, fault, counted);
    }

    /// Runs a turn, which is counted in `counted` from its start to its end.
    fn run_turn<'a>(
        &'a self,
        session: &Session,
        head: &TurnHead,
        counted: &mut Option<Counted<'a>>,
    ) -> Result<(), SessionError> {
        let Some(turn) = start_turn(session, head)? else { return Ok(()) };
        *counted = Some(Counted(Some(self)));
        let fields: [(&str, &dyn Display); 2] =
            [("session", &session.id.as_str()), ("turn", &turn.number)];
        self.log.info("turn started", &fields);
        let started = sys::boot_clock();
        let outcome = self.agent.run(&turn);
        let elapsed = sys::boot_clock() - started;
        self.end_turn(&turn, outcome, elapsed, counted);
        Ok(())
    }

    fn end_turn(
        &self,
        turn: &Turn<'_>,
        outcome: Result<TurnStats, Fault>,
        elapsed: Duration,
        counted: &mut Option<Counted<'_>>,
    ) {
        let Turn { session, head, .. } = turn;
        let mut state = lock(&session.state);
        // Its descriptors are for a running turn.
        state.cancel = None;
        state.permissions.clear();
        if state.closed.is_some() {
            return;
        }
        // A turn that was cancelled ends as cancelled, even if it was done just before.
        let outcome = if turn.cancel.is_cancelled() { Err(cancelled()) } else { outcome };
        let end = end_event(head, &outcome);
        if let Err(error) = session.append(&mut state, &[end], Durability::Synced) {
            self.log_write_error(&session.id, &error);
            // Not now, but as soon as the disk has space.
            drop(session.end_turns(&mut state, vec![end_event(head, &Err(error.into()))]));
        }
        *counted = None;
        // With a summary, a list need not read the journal, but each new file slows the next sync.
        let now = sys::boot_clock();
        let is_recent = |at: Duration| now.saturating_sub(at) < limits::SUMMARY_EVERY;
        if !state.summarized_at.is_some_and(is_recent) {
            state.summarized_at = Some(now);
            self.save_summary(&session.id, &mut state);
        }
        drop(state);
        let result = outcome.as_ref().map_or_else(|fault| fault.code, |_| "done");
        let ms = format!("{}ms", elapsed.as_millis());
        let fields: [(&str, &dyn Display); 3] =
            [("session", &session.id.as_str()), ("result", &result), ("duration", &ms)];
        self.log.info("turn ended", &fields);
    }

    /// Ends a turn with a fault, unless it has ended. `counted` is `None` if it was not started.
    fn fail_turn<'a>(
        &'a self,
        session: &Session,
        head: &TurnHead,
        fault: Fault,
        counted: Option<Counted<'a>>,
    ) {
        let mut state = lock(&session.state);
        if !state.journal.state().unfinished().any(|turn| turn.turn_id == head.turn_id) {
            return;
        }
        let _counted = counted.unwrap_or_else(|| Counted(Some(self)));
        let cancel = state.cancel.take();
        state.permissions.clear();
        state.options.remove(&head.turn_id);
        let is_cancelled = cancel.is_some_and(|cancel| cancel.is_cancelled());
        let fault = if is_cancelled { cancelled() } else { fault };
        let ends = vec![end_event(head, &Err(fault))];
        // After a panic, the turn has no end in the journal, but does not run again.
        drop(catch_unwind(AssertUnwindSafe(|| session.end_turns(&mut state, ends))));
    }
}

/// A turn that counts as unfinished, until this is dropped.
struct Counted<'a>(Option<&'a Runtime>);

impl<'a> Counted<'a> {
    fn new(runtime: &'a Runtime) -> Result<Counted<'a>, SessionError> {
        let mut scheduler = lock(&runtime.scheduler);
        if scheduler.stopping {
            return Err(SessionError::Stopping);
        }
        scheduler.unfinished += 1;
        Ok(Counted(Some(runtime)))
    }

    /// Leaves it to the end of the turn.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.into_iter().for_each(|runtime| runtime.turns_ended(1));
    }
}

/// Returns whether the session has a turn to run. If not, it no longer needs a worker.
fn has_work(state: &mut SessionState) -> bool {
    if state.journal.state().queue.is_empty() || state.closed.is_some() {
        state.scheduled = false;
        state.journal.close_file();
    }
    state.scheduled
}

/// Returns why a turn cannot be submitted now.
fn check_submission(state: &SessionState, turn: &SubmitTurn) -> Result<(), SessionError> {
    let turns = state.journal.state();
    if turns.queue.len() >= limits::QUEUED_TURNS_MAX {
        let message = format!("{} turns are waiting already", limits::QUEUED_TURNS_MAX);
        return Err(SessionError::Busy(message));
    }
    if let Some(seen) = turn.last_seen_seq.filter(|seen| *seen < turns.seq) {
        let seq = turns.seq;
        let message = format!("Session state conflict: you have seen {seen}, it is at {seq}");
        return Err(SessionError::Conflict(message));
    }
    Ok(())
}

/// Returns the first event of a turn with `before` turns before it in the queue.
fn queued_event(turn_id: &str, turn: &SubmitTurn, before: u64) -> Event {
    let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "anonymous".to_owned());
    Event::TurnQueued(TurnQueued {
        turn_id: turn_id.to_owned(),
        writer_id: name(&turn.writer_id),
        client_id: name(&turn.client_id),
        mode: turn.mode.clone(),
        queue_size: before + 1,
        position: before,
        metadata: turn.metadata.clone(),
        content: turn.content.clone(),
    })
}

fn first_turn(session: &Session) -> Option<TurnHead> {
    lock(&session.state).journal.state().queue.front().cloned()
}

/// Starts a turn, the first in the queue; `None` if it was cancelled.
fn start_turn<'a>(session: &'a Session, head: &TurnHead) -> Result<Option<Turn<'a>>, SessionError> {
    let mut state = lock(&session.state);
    let queue = &state.journal.state().queue;
    let is_first = queue.front().is_some_and(|first| first.turn_id == head.turn_id);
    if !is_first || state.closed.is_some() {
        return Ok(None);
    }
    // Pending ends come before the next start: a daemon that reads the journal after a crash looks
    // for one turn without an end, no more.
    session.flush_pending(&mut state)?;
    check_input(&state, &head.turn_id)?;
    let cancel = Arc::new(Cancel::new().doing("prepare a turn")?);
    session.append(&mut state, &[Event::TurnStart(head.clone())], Durability::Buffered)?;
    state.cancel = Some(Arc::clone(&cancel));
    let options = state.options.remove(&head.turn_id).unwrap_or_default();
    let turns = state.journal.state();
    let number = turns.turns - turns.queue.len() as u64;
    let head = head.clone();
    Ok(Some(Turn { session, head, options, cancel, number, bytes: AtomicU64::new(0) }))
}

/// Checks that the input of a queued turn, which is only on the disk, can be read. The agent reads
/// it with the conversation.
fn check_input(state: &SessionState, turn_id: &str) -> Result<(), SessionError> {
    let queued_at = state.journal.state().queued_at(turn_id);
    let why = match queued_at.map(|seq| state.journal.reader().event(seq)) {
        Some(Ok(Some(Event::TurnQueued(_)))) => return Ok(()),
        Some(Ok(_)) => "its record is damaged".to_owned(),
        Some(Err(error)) => reason(&error),
        None => "it is not in the queue".to_owned(),
    };
    Err(SessionError::Disk(format!("the turn cannot be read: {why}")))
}
