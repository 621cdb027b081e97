//! The summaries of sessions that were listed, in memory: clients list sessions every few seconds.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::disk::FileVersion;
use crate::limits;
use crate::mutex::lock;
use crate::protocol::{SessionId, SessionSummary};

/// A cache of summaries. Each belongs to one version of a journal.
#[derive(Default)]
pub struct SummaryCache {
    entries: Mutex<HashMap<SessionId, (FileVersion, SessionSummary)>>,
}

impl SummaryCache {
    /// Returns the summary of a session whose journal has this version.
    pub fn get(&self, id: &SessionId, version: FileVersion) -> Option<SessionSummary> {
        let entries = lock(&self.entries);
        let (cached, summary) = entries.get(id)?;
        (*cached == version).then(|| summary.clone())
    }

    /// Keeps a summary, in place of any other one if there are too many.
    pub fn insert(&self, id: &SessionId, version: FileVersion, summary: SessionSummary) {
        let mut entries = lock(&self.entries);
        if entries.len() >= limits::SUMMARIES_CACHED_MAX && !entries.contains_key(id) {
            let any = entries.keys().next().cloned();
            any.and_then(|any| entries.remove(&any));
        }
        entries.insert(id.clone(), (version, summary));
    }

    /// Removes the summary of a session that is deleted.
    pub fn remove(&self, id: &SessionId) {
        lock(&self.entries).remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> SessionId {
        SessionId::parse(&format!("s{number}")).unwrap()
    }

    #[test]
    fn a_full_cache_makes_room_by_one() {
        let version = FileVersion::default();
        let cache = SummaryCache::default();
        let insert = |number| cache.insert(&id(number), version, SessionSummary::default());
        let count = |numbers: usize| {
            (0..numbers).filter(|number| cache.get(&id(*number), version).is_some()).count()
        };
        const MAX: usize = limits::SUMMARIES_CACHED_MAX;
        (0..MAX).for_each(insert);
        assert_eq!(count(MAX), MAX);
        insert(0);
        assert_eq!(count(MAX), MAX);
        insert(MAX);
        assert!(cache.get(&id(MAX), version).is_some());
        assert_eq!(count(MAX + 1), MAX);
        cache.remove(&id(MAX));
        assert_eq!(count(MAX + 1), MAX - 1);
    }
}
