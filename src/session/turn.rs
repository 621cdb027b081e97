//! Turns: what answers them, and how they end.

use crate::protocol::event::{Event, TurnDone, TurnError, TurnHead, TurnStats};

use super::desk::Turn;

/// What answers turns.
pub trait Agent: Send + Sync {
    /// Runs one turn to its end, and appends what happens to its session.
    fn run(&self, turn: &Turn<'_>) -> Result<TurnStats, Fault>;
}

/// Why a turn failed: `code` for programs, `message` for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub code: &'static str,
    pub message: String,
}

/// Returns how a cancelled turn ends.
pub fn cancelled() -> Fault {
    Fault { code: "cancelled", message: "the turn was cancelled".to_owned() }
}

/// Returns the last event of a turn.
pub fn end(head: &TurnHead, outcome: &Result<TurnStats, Fault>) -> Event {
    let TurnHead { turn_id, writer_id, client_id, .. } = head.clone();
    match outcome {
        Ok(stats) => {
            Event::TurnDone(TurnDone { turn_id, writer_id, client_id, stats: stats.clone() })
        }
        Err(fault) => Event::TurnError(TurnError {
            turn_id,
            writer_id,
            client_id,
            code: fault.code.to_owned(),
            message: fault.message.clone(),
        }),
    }
}
