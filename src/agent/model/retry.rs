//! Requests that failed and may succeed when they are sent again, as long as nothing of an answer
//! was passed on.

use std::time::Duration;

use crate::limits;
use crate::session::turn::Fault;

use super::fault::{RequestFailure, Retry};
use super::text_parts::{Delta, DeltaKind, OnDelta};
use crate::agent::model::server::ModelServer;

/// The pauses before the retries of one request.
pub struct Pauses {
    /// The next one, unless the server asks for another.
    next: Duration,
    waited: Duration,
    /// Retries after failures.
    failures: u32,
}

impl Pauses {
    pub fn new(server: &ModelServer<'_>) -> Pauses {
        Pauses { next: server.timeouts.pause, waited: Duration::ZERO, failures: 0 }
    }

    /// Returns whether the request was sent before.
    pub fn have_begun(&self) -> bool {
        !self.waited.is_zero()
    }

    /// Waits until the request may be sent again, and announces the pause.
    ///
    /// # Faults
    /// That of the request, if it must not be sent again; `cancelled`.
    pub fn wait(
        &mut self,
        failure: RequestFailure,
        server: &ModelServer<'_>,
        on_delta: &mut OnDelta<'_>,
    ) -> Result<(), Fault> {
        let RequestFailure { fault, retry } = failure;
        let pause = match retry {
            Retry::No => return Err(fault),
            Retry::Busy(asked) => asked.unwrap_or(self.next),
            Retry::Failed if self.failures >= limits::MODEL_FAILURES_MAX => return Err(fault),
            Retry::Failed => {
                self.failures += 1;
                self.next
            }
        };
        // A server that asks for no pause must not be asked for ever.
        self.waited = self.waited.saturating_add(pause.max(self.next));
        if self.waited > server.timeouts.retrying {
            return Err(fault);
        }
        self.next = self.next.saturating_mul(2).min(limits::MODEL_RETRY_PAUSE_MAX);
        let text = fault.message;
        on_delta(&Delta { kind: DeltaKind::Notice(Some(pause)), text })?;
        server.pause(pause)
    }
}
