//! The threads that run turns: at most [`limits::ACTIVE_TURNS_MAX`], one turn of each session in
//! its turn.
//!
//! Whatever becomes of a turn, it is told: by an end that the agent gives, by an error, or, if the
//! session cannot be written, by an error later. A turn that has begun is never run again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::error::Doing;
use crate::mutex::lock;
use crate::protocol::TurnOptions;
use crate::protocol::event::{Event, TurnHead, TurnStats};
use crate::session::desk::{Desk, Problem, Session, Turn};
use crate::session::journal::Durability;
use crate::session::rules::SessionId;
use crate::session::turn::{self, Fault};
use crate::session::wake::Cancel;
use crate::{limits, sys};

use super::Runtime;

/// A turn that has begun.
struct Begun {
    head: TurnHead,
    content: String,
    options: TurnOptions,
    cancel: Arc<Cancel>,
    /// Among the session's turns, from 1.
    number: u64,
}

impl Runtime {
    pub(super) fn schedule(self: &Arc<Runtime>, session: Arc<Session>) {
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
            // Other workers, or the next one, will run it.
            self.log.error("turns cannot run", &[("cause", &error)]);
            lock(&self.floor).workers -= 1;
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
            if desk.state.queue.is_empty() || desk.shut.is_some() {
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
        let Begun { head, content, options, cancel, number } = match begun {
            Ok(Some(begun)) => begun,
            Ok(None) => return,
            Err(problem) => return self.abandon(session, &problem),
        };
        let fields: [(&str, &dyn std::fmt::Display); 2] =
            [("session", &session.id.as_str()), ("turn", &number)];
        self.log.info("turn started", &fields);
        let began = sys::boot_clock();
        let turn =
            Turn { session, head: &head, content: &content, options: &options, cancel: &cancel };
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
        let Some(head) = desk.state.queue.front().cloned().filter(|_| desk.shut.is_none()) else {
            return Ok(None);
        };
        // An end that is owed comes before the next beginning: a daemon that reads the journal
        // after a crash looks for one turn without an end, and no more.
        session.pay(&mut desk)?;
        let content = desk.content_of(&head.turn_id)?;
        let cancel = Arc::new(Cancel::new().doing("prepare a turn")?);
        session.append(&mut desk, &Event::TurnStart(head.clone()), Durability::Cached)?;
        desk.cancel = Some(Arc::clone(&cancel));
        let options = desk.options.remove(&head.turn_id).unwrap_or_default();
        let number = desk.state.turns - desk.state.queue.len() as u64;
        Ok(Some(Begun { head, content, options, cancel, number }))
    }

    fn end_turn(
        &self,
        session: &Session,
        head: &TurnHead,
        outcome: Result<TurnStats, Fault>,
        cancel: &Cancel,
        elapsed: Duration,
    ) {
        let mut desk = lock(&session.desk);
        // Its descriptors are for turns that run.
        desk.cancel = None;
        desk.permissions.clear();
        if desk.shut.is_some() {
            lock(&self.floor).unfinished -= 1;
            return;
        }
        // A turn that was cancelled ends as cancelled, even if it was done a moment before.
        let outcome = if cancel.is_cancelled() { Err(turn::cancelled()) } else { outcome };
        let appended = session.append(&mut desk, &turn::end(head, &outcome), Durability::Synced);
        if let Err(problem) = appended {
            self.complain(&session.id, &problem);
            // Owed, and paid when there is room: not now.
            drop(session.fail(&mut desk, std::slice::from_ref(head), &unwritten(&problem)));
        }
        self.keep_sometimes(&session.id, &mut desk);
        drop(desk);
        lock(&self.floor).unfinished -= 1;
        let result = outcome.as_ref().map_or_else(|fault| fault.code, |_| "done");
        let ms = format!("{}ms", elapsed.as_millis());
        let fields: [(&str, &dyn std::fmt::Display); 3] =
            [("session", &session.id.as_str()), ("result", &result), ("duration", &ms)];
        self.log.info("turn ended", &fields);
    }

    /// Puts a summary beside the journal, unless that was done a moment ago: it only spares whoever
    /// lists sessions the reading of journals, and each new file weighs on the next sync.
    fn keep_sometimes(&self, id: &SessionId, desk: &mut Desk) {
        let now = sys::boot_clock();
        let recently = |kept: Duration| now.saturating_sub(kept) < limits::SUMMARY_EVERY;
        if !desk.kept.is_some_and(recently) {
            desk.kept = Some(now);
            self.keep(id, &desk.state, desk.journal.bytes());
        }
    }

    /// A turn that cannot even begin, because its session cannot be written or read.
    fn abandon(&self, session: &Session, problem: &Problem) {
        self.complain(&session.id, problem);
        let mut desk = lock(&session.desk);
        if let Some(head) = desk.state.queue.front().cloned() {
            desk.options.remove(&head.turn_id);
            drop(session.fail(&mut desk, std::slice::from_ref(&head), &unwritten(problem)));
            lock(&self.floor).unfinished -= 1;
        }
    }
}

/// How a turn ends whose session cannot be written or read.
fn unwritten(problem: &Problem) -> Fault {
    let code =
        if matches!(problem, Problem::Storage(_)) { "storage-full" } else { "internal-error" };
    Fault { code, message: problem.to_string() }
}
