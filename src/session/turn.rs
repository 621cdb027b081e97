//! A turn that is running, as the agent sees it, and how turns end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::clock;
use crate::json::Raw;
use crate::mutex::{lock, wait_timeout_while};
use crate::protocol::event::{Event, PermissionRequest, TurnDone, TurnError, TurnHead, TurnStats};
use crate::protocol::{Grant, TurnOptions};

use super::journal::Durability;
use super::session::{Decision, Permission, Session, SessionError, SessionState, new_id};
use super::wake::Cancel;

/// An agent that answers turns.
pub trait Agent: Send + Sync {
    /// Runs one turn to its end, and appends what happens to its session.
    fn run(&self, turn: &Turn<'_>) -> Result<TurnStats, Fault>;

    /// Checks the workspace of a new session. Returns the directory that belongs to it if it is a
    /// label; `Err` is the reason why no turn could work there.
    fn check_workspace(&self, _workspace: &str) -> Result<Option<String>, String> {
        Ok(None)
    }
}

/// The reason why a turn failed: `code` for programs, `message` for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub code: &'static str,
    pub message: String,
}

impl From<SessionError> for Fault {
    fn from(error: SessionError) -> Fault {
        let code = match error {
            SessionError::Storage(_) => "storage-full",
            SessionError::Disk(_) => "storage-error",
            SessionError::Stopping => "interrupted",
            _ => "internal-error",
        };
        Fault { code, message: error.to_string() }
    }
}

/// A turn that is running.
pub struct Turn<'a> {
    pub session: &'a Session,
    pub head: TurnHead,
    pub options: TurnOptions,
    /// Whether the turn should end as soon as it can.
    pub cancel: Arc<Cancel>,
    /// Its number among the session's turns, from 1.
    pub(super) number: u64,
    /// The bytes of the journal that its events take.
    pub(super) bytes: AtomicU64,
}

/// The limits of the wait for the answer to a permission request.
#[derive(Clone, Copy)]
pub struct WaitLimits {
    pub total: Duration,
    /// While no follower can answer.
    pub unattended: Duration,
}

impl Turn<'_> {
    /// Returns the model that the turn asks for, or else its session.
    pub fn model(&self) -> Option<String> {
        let of_session = || Some(self.session.summary().model).filter(|name| !name.is_empty());
        self.options.model.clone().or_else(of_session)
    }

    /// Returns what the turn may do without a permission request.
    pub fn grant(&self) -> Grant {
        self.options.grant().unwrap_or_default()
    }

    /// Appends an event to the session.
    pub fn append(&self, event: &Event, durability: Durability) -> Result<u64, SessionError> {
        let mut state = lock(&self.session.state);
        let before = state.journal.bytes();
        let seq = self.session.append(&mut state, std::slice::from_ref(event), durability)?;
        self.bytes.fetch_add(state.journal.bytes() - before, Ordering::Relaxed);
        Ok(seq)
    }

    /// Returns how many bytes of the journal the events take that were appended.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Requests permission to call a tool and waits for the answer. Returns `false` when the time
    /// is up or the turn is cancelled. The request and the answer are events of the session.
    pub fn request_permission(
        &self,
        tool: &str,
        input: &Raw,
        limits: WaitLimits,
    ) -> Result<bool, SessionError> {
        let request_id = new_id("perm_")?.as_str().to_owned();
        let wait_ms = i64::try_from(limits.total.as_millis()).unwrap_or(0);
        let event = Event::PermissionRequest(PermissionRequest {
            turn_id: self.head.turn_id.clone(),
            request_id: request_id.clone(),
            tool_name: tool.to_owned(),
            args: input.clone(),
            input: input.clone(),
            expires_at: clock::rfc3339(clock::now_millis().saturating_add(wait_ms)),
        });
        let mut state = lock(&self.session.state);
        let turn_id = self.head.turn_id.clone();
        state.permissions.insert(request_id.clone(), Permission { turn_id, allowed: None });
        self.session.append(&mut state, &[event], Durability::Synced)?;
        drop(state);
        if let Some(allowed) = self.wait_for_permission(&request_id, limits) {
            return Ok(allowed);
        }
        // The denial is an event too, so that every client sees it.
        match self.session.decide(&request_id, false, "daemon")? {
            Decision::Won | Decision::Unknown => Ok(false),
            Decision::TooLate => {
                Ok(allowed(&lock(&self.session.state), &request_id).unwrap_or(false))
            }
        }
    }

    fn wait_for_permission(&self, request_id: &str, limits: WaitLimits) -> Option<bool> {
        let deadline = Instant::now() + limits.total;
        let is_open = |state: &SessionState| {
            allowed(state, request_id).is_none() && !self.cancel.is_cancelled()
        };
        let mut state = lock(&self.session.state);
        while is_open(&state) {
            let attended = self.session.has_responder();
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = if attended { left } else { left.min(limits.unattended) };
            let unchanged = |state: &mut SessionState| {
                is_open(state) && self.session.has_responder() == attended
            };
            let waited = wait_timeout_while(&self.session.changed, state, limit, unchanged);
            state = waited.0;
            if waited.1.timed_out() {
                break;
            }
        }
        allowed(&state, request_id)
    }
}

/// Returns how a permission was resolved.
fn allowed(state: &SessionState, request_id: &str) -> Option<bool> {
    state.permissions.get(request_id)?.allowed
}

/// Returns how a cancelled turn ends.
pub fn cancelled() -> Fault {
    Fault { code: "cancelled", message: "the turn was cancelled".to_owned() }
}

/// Returns the last event of a turn.
pub fn end_event(head: &TurnHead, outcome: &Result<TurnStats, Fault>) -> Event {
    let TurnHead { turn_id, writer_id, client_id, .. } = head.clone();
    match outcome {
        Ok(stats) => {
            Event::TurnDone(TurnDone { turn_id, writer_id, client_id, stats: stats.clone() })
        }
        Err(Fault { code, message }) => {
            let (code, message) = ((*code).to_owned(), message.clone());
            Event::TurnError(TurnError { turn_id, writer_id, client_id, code, message })
        }
    }
}
