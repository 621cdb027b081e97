//! Followers of all sessions, and of sessions that do not exist yet.
//!
//! Each has, per session, the range of events that it has not taken, and whether the session was
//! deleted before them. A range grows with each append and is never split, so a follower that is
//! slow takes no more memory than there are sessions.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::mutex::lock;
use crate::protocol::SessionId;

use super::reader::Reader;
use super::wake::Waker;

/// All followers of this kind.
#[derive(Default)]
pub struct Watchers {
    all: Mutex<Vec<Arc<Watcher>>>,
    closed: AtomicBool,
}

/// One of the [`Watchers`].
pub struct Watcher {
    pub waker: Arc<Waker>,
    /// Whether it can answer permission requests.
    answers: bool,
    /// Only the session of this id.
    only: Option<SessionId>,
    untaken: Mutex<HashMap<SessionId, Range>>,
}

/// Consecutive events of a session.
pub struct Range {
    pub session: SessionId,
    /// A session of this id was deleted before these events.
    pub deleted: bool,
    /// `None`: there are no events.
    pub reader: Option<Reader>,
    /// The number before the first.
    pub after: u64,
    /// The number of the last.
    pub last: u64,
}

impl Watchers {
    /// Adds a follower.
    pub fn add(&self, only: Option<SessionId>, answers: bool) -> io::Result<Arc<Watcher>> {
        let (waker, untaken) = (Arc::new(Waker::new()?), Mutex::default());
        let watcher = Arc::new(Watcher { waker, answers, only, untaken });
        lock(&self.all).push(Arc::clone(&watcher));
        Ok(watcher)
    }

    /// Removes a follower.
    pub fn remove(&self, watcher: &Arc<Watcher>) {
        lock(&self.all).retain(|one| !Arc::ptr_eq(one, watcher));
    }

    /// Tells the followers about the events after number `after`, of which `last` is the last.
    pub fn notify(&self, id: &SessionId, after: u64, last: u64, reader: impl Fn() -> Reader) {
        let all = lock(&self.all);
        for watcher in all.iter().filter(|watcher| watcher.follows(id)) {
            let mut untaken = lock(&watcher.untaken);
            match untaken.get_mut(id) {
                Some(range) if range.last == after => range.last = last,
                // There is none, or that of a session of this id that was deleted.
                before => {
                    let deleted = before.is_some_and(|range| range.deleted);
                    let (session, reader) = (id.clone(), Some(reader()));
                    let range = Range { session, deleted, reader, after, last };
                    untaken.insert(id.clone(), range);
                }
            }
        }
        wake(all.iter().filter(|watcher| watcher.follows(id)));
    }

    /// Tells the followers of all sessions that one was deleted: its events can no longer be read.
    pub fn notify_deleted(&self, id: &SessionId) {
        let all = lock(&self.all);
        for watcher in all.iter().filter(|watcher| watcher.only.is_none()) {
            let (session, last) = (id.clone(), u64::MAX);
            let range = Range { session, deleted: true, reader: None, after: 0, last };
            lock(&watcher.untaken).insert(id.clone(), range);
        }
        wake(all.iter().filter(|watcher| watcher.only.is_none()));
    }

    /// Returns whether a follower can answer the permission requests of a session.
    pub fn has_responder(&self, id: &SessionId) -> bool {
        lock(&self.all).iter().any(|watcher| watcher.answers && watcher.follows(id))
    }

    /// Returns the number of followers.
    pub fn count(&self) -> usize {
        lock(&self.all).len()
    }

    /// Tells the followers that there will be no more events.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        wake(lock(&self.all).iter());
    }

    /// Returns whether there will be no more events.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

fn wake<'a>(watchers: impl Iterator<Item = &'a Arc<Watcher>>) {
    Waker::wake_all(watchers.map(|watcher| &*watcher.waker));
}

impl Range {
    /// Returns whether its events are short enough to be shared by followers.
    pub fn is_short(&self) -> bool {
        self.reader.as_ref().is_none_or(|reader| reader.is_short_after(self.after))
    }
}

impl Watcher {
    fn follows(&self, id: &SessionId) -> bool {
        self.only.as_ref().is_none_or(|only| only == id)
    }

    /// Takes what was not taken before.
    pub fn take(&self) -> impl Iterator<Item = Range> + use<> {
        std::mem::take(&mut *lock(&self.untaken)).into_values()
    }

    /// Returns whether what was not taken before [is short](Range::is_short).
    pub fn has_only_short(&self) -> bool {
        lock(&self.untaken).values().all(Range::is_short)
    }

    /// Returns whether [`take`](Self::take) would return something.
    pub fn has_more(&self) -> bool {
        !lock(&self.untaken).is_empty()
    }
}
