//! The events that a WebSocket sends, and when.
//!
//! The end of a fast turn is held here for a moment. A client that submits a turn over HTTP, and
//! marks its session as busy when it has the reply, must not get the end before that.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Instant;

use crate::error::reason;
use crate::protocol::event::EventKind;
use crate::protocol::socket::{SessionUpdated, StreamEnd};
use crate::session::dispatch::Left;
use crate::session::feed::Feed;
use crate::session::reader::EventText;
use crate::session::record;
use crate::session::session::CloseReason;
use crate::{clock, json, limits};

use super::codec::{CLOSE_GOING_AWAY, CLOSE_INTERNAL, CLOSE_NORMAL};
use super::socket::{End, Ending, Socket, Wait};

/// Who sends events.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The thread of the WebSocket.
    Thread,
    /// A thread of the dispatcher, which must not wait for a client.
    Dispatcher,
}

/// The events of a feed on their way to a client.
pub struct Events {
    feed: Feed,
    /// What was read and not sent.
    batch: VecDeque<Arc<EventText>>,
    /// The turns that began a moment ago, and until when their ends are held.
    fresh: Vec<(String, Instant)>,
    /// Until when the first event in the batch is held.
    held: Option<Instant>,
    /// When the client began to follow, in milliseconds since 1970.
    since: i64,
}

impl Events {
    /// Returns the events of `feed`.
    pub fn new(feed: Feed) -> Events {
        let since = clock::now_millis();
        Events { feed, batch: VecDeque::new(), fresh: Vec::new(), held: None, since }
    }

    /// Sends the events that there is room for; the dispatcher, up to the end of a turn.
    pub fn send(&mut self, socket: &mut Socket, sender: Sender) -> Result<(), End> {
        self.held = None;
        while socket.has_room() {
            let Some(event) = self.batch.front() else {
                if self.read()? { continue } else { break }
            };
            self.held = self.held_until(event).filter(|until| Instant::now() < *until);
            // The session is asked for what follows the end, and may be busy.
            let is_left = sender == Sender::Dispatcher && event.kind.is_some_and(is_end);
            if self.held.is_some() || is_left {
                break;
            }
            socket.send_text(event.with_aliases());
            if let Some(event) = self.batch.pop_front() {
                if let Some(update) = self.update_after(&event) {
                    socket.send_text(update);
                }
                self.remember(&event);
            }
        }
        Ok(())
    }

    /// Returns the `session.updated` that follows the end of a turn, but none of long ago. Clients
    /// expect it among the events. It is made for the first follower that gets there, of what the
    /// session is then, and is not in the journal; its number is that of the end, so that a client
    /// that has both missed nothing.
    fn update_after<'a>(&self, end: &'a EventText) -> Option<&'a str> {
        let kind = end.kind.filter(|kind| is_end(*kind))?;
        if end.written_at()? < self.since {
            return None;
        }
        if let Some(update) = end.update.get() {
            return Some(update);
        }
        let payload = json::text(&SessionUpdated { snapshot: self.feed.summary(end)? });
        let (head, _) = end.text.split_once(",\"payload\":")?;
        let head = head.replacen(kind.name(), "session.updated", 1);
        let update = record::with_aliases(&format!("{head},\"payload\":{payload}}}"), None);
        Some(end.update.get_or_init(|| update))
    }

    /// Reads more events; returns whether there are some.
    fn read(&mut self) -> Result<bool, End> {
        let close_reason = self.feed.close_reason();
        let events = self.feed.next(limits::EVENTS_MAX, limits::WEBSOCKET_OUTPUT_BYTES_MAX);
        self.batch = match events {
            Ok(events) => events.into(),
            // The file of a session that was deleted is gone.
            Err(error) if error.kind() == ErrorKind::InvalidData && close_reason.is_some() => {
                VecDeque::new()
            }
            Err(error) => return Err(End::Ours(Ending::new(CLOSE_INTERNAL, &reason(&error)))),
        };
        match close_reason {
            Some(close_reason) if self.batch.is_empty() => Err(End::Ours(ending(close_reason))),
            _ => Ok(!self.batch.is_empty()),
        }
    }

    /// Returns what is to be waited for: the client, more events, or that the next event is no
    /// longer held. There is no wait if there are events to send and room for them.
    pub fn wait(&mut self, socket: &mut Socket) -> Result<Wait, End> {
        let can_send = self.held.is_none() && socket.has_room();
        let has_more = can_send && self.arm() != Left::Nothing;
        // What the client has sent is read in any case, or else it would wait for the last event.
        let until = if has_more { Some(Instant::now()) } else { self.held };
        socket.wait(can_send, until)
    }

    /// Returns whether reading the next ones takes no time.
    pub fn are_quick(&self) -> bool {
        self.feed.is_quick()
    }

    /// Arms the waker, if there is nothing more to be sent.
    pub fn arm(&self) -> Left {
        match self.held {
            Some(until) => Left::Until(until),
            None if !self.batch.is_empty() || self.feed.arm() => Left::ForThread,
            None => Left::Nothing,
        }
    }

    /// Returns until when an event is held, if it ends a turn that began a moment ago.
    fn held_until(&self, event: &EventText) -> Option<Instant> {
        let is_held = |kind| is_end(kind) || kind == EventKind::SessionCancelled;
        if self.fresh.is_empty() || !event.kind.is_some_and(is_held) {
            return None;
        }
        let ended = event.turn_id();
        // Without an id, it may be about any turn.
        let is_meant = |id: &str| ended.is_none_or(|ended| ended == id);
        self.fresh.iter().filter(|(id, _)| is_meant(id)).map(|(_, until)| *until).max()
    }

    /// Remembers a turn that began a moment ago, but none of long ago that is only sent now.
    fn remember(&mut self, event: &EventText) {
        if event.kind != Some(EventKind::TurnQueued) {
            return;
        }
        let now = Instant::now();
        self.fresh.retain(|(_, until)| now < *until);
        let age_ms = event.written_at().map(|written_at| clock::now_millis() - written_at);
        let held_ms = i64::try_from(limits::TURN_END_HELD.as_millis()).unwrap_or(0);
        if age_ms.is_some_and(|age| (0..held_ms).contains(&age))
            && let Some(id) = event.turn_id()
        {
            self.fresh.push((id.to_owned(), now + limits::TURN_END_HELD));
        }
    }
}

fn is_end(kind: EventKind) -> bool {
    matches!(kind, EventKind::TurnDone | EventKind::TurnError)
}

fn ending(close_reason: CloseReason) -> Ending {
    let (code, reason, why) = match close_reason {
        CloseReason::Deleted => (CLOSE_NORMAL, "deleted", "the session was deleted"),
        CloseReason::Stopping => (CLOSE_GOING_AWAY, "stopping", "the daemon is stopping"),
    };
    let end = StreamEnd { event: "stream.end".to_owned(), reason: reason.to_owned() };
    Ending { message: Some(json::text(&end)), code, reason: why.to_owned() }
}
