//! One turn as it runs: its events to the screen, cancellation and the user's decisions to the
//! daemon.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::commands::console::{Console, TurnEnd};
use crate::commands::question::Questions;
use crate::commands::screen::ToolLine;
use crate::error::{Doing, Error};
use crate::http::EventStream;
use crate::protocol::SessionId;
use crate::protocol::event::{Envelope, Event};
use crate::protocol::{ErrorDetail, ResolvePermission};
use crate::state::DaemonInfo;
use crate::{client, limits, sys};

/// A turn that was submitted.
pub struct RunningTurn {
    pub daemon: DaemonInfo,
    pub session: SessionId,
    pub id: String,
    /// The sequence number of the last event that was seen.
    pub seq: u64,
    /// How many times the connection was lost since then.
    pub losses: u32,
    cancelled: bool,
}

impl RunningTurn {
    /// A turn of which no event was seen after `seq`.
    pub fn new(daemon: DaemonInfo, session: SessionId, id: String, seq: u64) -> RunningTurn {
        RunningTurn { daemon, session, id, seq, losses: 0, cancelled: false }
    }

    /// Prints the events of the turn until it ends; `None` if the connection was lost before.
    pub fn watch(
        &mut self,
        stream: &mut EventStream,
        questions: &mut Questions,
        console: &mut Console,
    ) -> Result<Option<TurnEnd>, Error> {
        let mut last_read = Instant::now();
        loop {
            while let Some(envelope) = stream.next().ok().flatten() {
                if let Some(end) = self.handle_event(envelope, questions, console)? {
                    return Ok(Some(end));
                }
            }
            let silence_left = limits::STREAM_SILENCE_MAX.saturating_sub(last_read.elapsed());
            if silence_left.is_zero() {
                return Ok(None);
            }
            let time_left = console.time_left();
            if time_left == Some(Duration::ZERO) {
                return console.abandon_turn().map(Some);
            }
            let waits = [console.screen.update_progress(), time_left];
            let wait = waits.into_iter().flatten().fold(silence_left, Ord::min);
            let asking = console.interactive && !questions.is_empty();
            let input = if asking { console.stdin.as_fd() } else { stream.as_fd() };
            let files = [stream.as_fd(), console.signals(), input];
            let [readable, signalled, typed] =
                sys::wait_readable(files, Some(wait)).doing("wait for the daemon")?;
            if signalled && console.take_signal()?.is_some() {
                if std::mem::replace(&mut self.cancelled, true) {
                    return console.abandon_turn().map(Some);
                }
                self.cancel();
                console.screen.flush()?;
            }
            if asking && typed {
                questions.read_answer(console, |id, allow| self.decide(id, allow))?;
            }
            if readable {
                if stream.read().is_err() {
                    return Ok(None);
                }
                last_read = Instant::now();
            }
        }
    }

    fn handle_event(
        &mut self,
        text: &str,
        questions: &mut Questions,
        console: &mut Console,
    ) -> Result<Option<TurnEnd>, Error> {
        // The last message of a stream is not an event of the session.
        let Some(Envelope { seq, event }) = Envelope::read(text) else {
            return Ok(None);
        };
        if seq <= self.seq {
            return Ok(None);
        }
        self.seq = seq;
        self.losses = 0;
        console.screen.event(text)?;
        let Some(event) = event else {
            return Ok(None);
        };
        let own = event.turn_id() == Some(self.id.as_str());
        match event {
            // The user may also decide for another client's turn.
            Event::PermissionRequest(request) if own && questions.is_allowed(&request) => {
                self.decide(&request.request_id, true);
            }
            Event::PermissionRequest(request) => questions.add(request, own, console),
            Event::PermissionResolved(resolved) => {
                questions.resolve(&resolved, self.cancelled, console);
            }
            _ if !own => {}
            Event::TurnToken(token) => console.screen.answer_text(&token.text)?,
            Event::TurnThinking(_) => console.screen.thinking(),
            Event::ToolStart(start) => console.screen.tool_started(ToolLine {
                id: start.id,
                name: start.name,
                args: start.args,
                duration_ms: None,
                success: None,
            })?,
            Event::ToolEnd(end) => console.screen.tool_ended(&end),
            Event::TurnDone(done) => return Ok(Some(TurnEnd::Done(done.stats))),
            Event::TurnError(error) => {
                let detail = ErrorDetail { code: error.code, message: error.message };
                return Ok(Some(TurnEnd::Failed(detail)));
            }
            _ => {}
        }
        Ok(None)
    }

    /// Cancels the turn. An error means that the connection is lost, which the next read reports.
    pub fn cancel(&self) {
        drop(client::cancel_turn(&self.daemon, &self.session, &self.id));
    }

    /// Sends a decision. An error means that another client decided or the connection is lost.
    fn decide(&self, request_id: &str, allow: bool) {
        let decision = ResolvePermission {
            decision: Some(if allow { "allow" } else { "deny" }.to_owned()),
            decided_by: Some(format!("opta-{}", std::process::id())),
            ..ResolvePermission::default()
        };
        drop(client::resolve_permission(&self.daemon, &self.session, request_id, &decision));
    }
}
