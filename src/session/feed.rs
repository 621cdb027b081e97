//! The events of one session, or of all, as one client follows them: each once, and those of a
//! session in order.
//!
//! A feed reads journals when its client is ready for more, so a slow client holds no events in
//! memory and delays no other.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use crate::error::{Doing, Error};
use crate::protocol::{SessionId, SessionSummary};

use super::reader::{Envelopes, EventText, Reader};
use super::runtime::Runtime;
use super::session::{CloseReason, Session, SessionError, Subscription};
use super::wake::Waker;
use super::watchers::{Range, Watcher};

/// The events of one session after a number.
pub struct SessionFeed {
    subscription: Subscription,
    reader: Reader,
    after: u64,
}

impl SessionFeed {
    /// Follows `session` after event number `after`. `answers`: this client can answer questions.
    pub fn new(session: &Arc<Session>, after: u64, answers: bool) -> Result<SessionFeed, Error> {
        // Before the reader, so that no event falls in between.
        let subscription = session.subscribe(answers)?;
        let reader = session.reader();
        Ok(SessionFeed { subscription, reader, after })
    }

    /// Takes the next events. Fails if there are some and none can be read; otherwise the caller
    /// would try again forever.
    pub fn next(&mut self, events_max: usize, bytes_max: usize) -> io::Result<Envelopes> {
        let last = self.reader.last_seq();
        let envelopes = self.reader.after(self.after, events_max, bytes_max)?;
        match envelopes.last() {
            Some(newest) => self.after = newest.seq,
            None if last > self.after => {
                let message = format!("events after number {} cannot be read", self.after);
                return Err(io::Error::new(ErrorKind::InvalidData, message));
            }
            None => {}
        }
        Ok(envelopes)
    }

    /// Returns the number of the session's last event.
    pub fn last_seq(&self) -> u64 {
        self.reader.last_seq()
    }

    /// Returns why there will be no more events than can be taken now.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.subscription.session.close_reason()
    }

    /// Arms the waker. Returns whether there is no need to wait for it.
    pub fn arm(&self) -> bool {
        self.subscription.waker.arm();
        self.last_seq() > self.after || self.subscription.session.is_closed()
    }

    /// Returns the waker that is woken when there is more.
    pub fn waker(&self) -> &Arc<Waker> {
        &self.subscription.waker
    }
}

/// The events of all sessions, or of one that does not exist yet.
pub struct WideFeed {
    runtime: Arc<Runtime>,
    watcher: Arc<Watcher>,
    /// The sessions whose earlier events are still to be read, and the number after which.
    replay: (VecDeque<SessionId>, u64),
    /// The sessions in the replay, and the last event that was read of each.
    replayed: HashMap<SessionId, (Arc<Session>, u64)>,
    /// What is being read.
    ranges: VecDeque<Range>,
}

impl Drop for WideFeed {
    fn drop(&mut self) {
        self.runtime.unwatch(&self.watcher);
    }
}

impl WideFeed {
    /// Follows all sessions from now on, or with their events after number `after`.
    pub fn of_all(
        runtime: &Arc<Runtime>,
        after: Option<u64>,
        answers: bool,
    ) -> Result<WideFeed, Error> {
        let mut feed = WideFeed::new(runtime, None, answers)?;
        if let Some(after) = after {
            let newest_first = runtime.page(None, usize::MAX)?.ids;
            feed.replay = (newest_first.into_iter().rev().collect(), after);
        }
        Ok(feed)
    }

    /// Follows the session of this id from its creation on.
    pub fn of_future(
        runtime: &Arc<Runtime>,
        id: SessionId,
        answers: bool,
    ) -> Result<WideFeed, Error> {
        WideFeed::new(runtime, Some(id), answers)
    }

    fn new(
        runtime: &Arc<Runtime>,
        only: Option<SessionId>,
        answers: bool,
    ) -> Result<WideFeed, Error> {
        let watcher = runtime.watch(only, answers).doing("watch the sessions")?;
        Ok(WideFeed {
            runtime: Arc::clone(runtime),
            watcher,
            replay: (VecDeque::new(), 0),
            replayed: HashMap::new(),
            ranges: VecDeque::new(),
        })
    }

    /// Takes the next events. Fails if there are no descriptors to read them.
    fn next(&mut self, events_max: usize, bytes_max: usize) -> io::Result<Envelopes> {
        while let Some(range) = self.next_range()? {
            if std::mem::take(&mut range.deleted) {
                return Ok(vec![Arc::new(EventText::deleted(&range.session))]);
            }
            let Some(reader) = &mut range.reader else {
                self.ranges.pop_front();
                continue;
            };
            let mut envelopes = match reader.after(range.after, events_max, bytes_max) {
                Err(error) if is_lack_of_descriptors(&error) => return Err(error),
                // A session that was deleted, or cannot be read, must not hide the others.
                read => read.unwrap_or_default(),
            };
            envelopes.retain(|envelope| envelope.seq <= range.last);
            let newest = envelopes.last().map_or(range.last, |newest| newest.seq);
            range.after = newest;
            if newest == range.last {
                self.ranges.pop_front();
            }
            if !envelopes.is_empty() {
                return Ok(envelopes);
            }
        }
        Ok(Envelopes::new())
    }

    fn next_range(&mut self) -> io::Result<Option<&mut Range>> {
        while self.ranges.is_empty() {
            if let Some(range) = self.next_replay()? {
                self.ranges.push_back(range);
                continue;
            }
            // Only what was noted during the replay can overlap it.
            let replayed = std::mem::take(&mut self.replayed);
            self.ranges.extend(self.watcher.take().filter_map(|mut range| {
                let replayed = replayed.get(&range.session);
                // After a deletion, the range is that of a new session of the same id.
                let same = replayed
                    .filter(|(session, _)| session.close_reason() != Some(CloseReason::Deleted));
                range.after = range.after.max(same.map_or(0, |(_, seen)| *seen));
                (range.after < range.last).then_some(range)
            }));
            if self.ranges.is_empty() {
                return Ok(None);
            }
        }
        Ok(self.ranges.front_mut())
    }

    /// Returns the earlier events of the next session in the replay.
    fn next_replay(&mut self) -> io::Result<Option<Range>> {
        let after = self.replay.1;
        while let Some(id) = self.replay.0.pop_front() {
            let Ok(session) = self.runtime.session(&id) else {
                // As above, but if nothing can be opened, there are no descriptors.
                File::open("/")?;
                continue;
            };
            let (reader, last) = session.position();
            self.replayed.insert(id.clone(), (session, last));
            if last > after {
                return Ok(Some(Range {
                    session: id,
                    deleted: false,
                    reader: Some(reader),
                    after,
                    last,
                }));
            }
        }
        Ok(None)
    }

    fn arm(&self) -> bool {
        self.watcher.waker.arm();
        let is_reading = !self.ranges.is_empty() || !self.replay.0.is_empty();
        is_reading || self.watcher.has_more() || self.runtime.is_closed()
    }
}

fn is_lack_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// What a client follows.
pub enum Feed {
    Session(SessionFeed),
    Wide(Box<WideFeed>),
}

impl Feed {
    /// Follows the session of this id after event number `after`, or from its creation on if it
    /// does not exist.
    pub fn of_id(
        runtime: &Arc<Runtime>,
        id: &SessionId,
        after: u64,
        answers: bool,
    ) -> Result<Feed, SessionError> {
        let existing = || match runtime.session(id) {
            Ok(session) => Ok(Some(Feed::Session(SessionFeed::new(&session, after, answers)?))),
            Err(SessionError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        };
        if let Some(feed) = existing()? {
            return Ok(feed);
        }
        let future = WideFeed::of_future(runtime, id.clone(), answers)?;
        // It may have been created just before it was watched.
        Ok(existing()?.unwrap_or_else(|| Feed::Wide(Box::new(future))))
    }

    /// Takes the next events.
    pub fn next(&mut self, events_max: usize, bytes_max: usize) -> io::Result<Envelopes> {
        match self {
            Feed::Session(feed) => feed.next(events_max, bytes_max),
            Feed::Wide(feed) => feed.next(events_max, bytes_max),
        }
    }

    /// Returns the summary of the session that an event is about.
    pub fn summary(&self, event: &EventText) -> Option<SessionSummary> {
        match self {
            Feed::Session(feed) => Some(feed.subscription.session.summary()),
            Feed::Wide(feed) => feed.runtime.summary(&SessionId::parse(event.session_id()?)?).ok(),
        }
    }

    /// Returns why there will be no more events than can be taken now.
    pub fn close_reason(&self) -> Option<CloseReason> {
        match self {
            Feed::Session(feed) => feed.close_reason(),
            Feed::Wide(feed) => feed.runtime.is_closed().then_some(CloseReason::Stopping),
        }
    }

    /// Arms the waker. Returns whether there is no need to wait for it.
    pub fn arm(&self) -> bool {
        match self {
            Feed::Session(feed) => feed.arm(),
            Feed::Wide(feed) => feed.arm(),
        }
    }

    /// Returns whether the next events take no time to read: they are short, new ones of sessions
    /// that are open.
    pub fn is_quick(&self) -> bool {
        match self {
            Feed::Session(feed) => feed.reader.is_short_after(feed.after),
            Feed::Wide(feed) => {
                let is_quick = feed.ranges.iter().all(Range::is_short);
                is_quick && feed.replay.0.is_empty() && feed.watcher.has_only_short()
            }
        }
    }

    /// Returns the waker that is woken when there is more.
    pub fn waker(&self) -> &Arc<Waker> {
        match self {
            Feed::Session(feed) => feed.waker(),
            Feed::Wide(feed) => &feed.watcher.waker,
        }
    }
}
