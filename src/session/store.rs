//! The sessions on disk: a directory for each, and an index that finds them without reading them.
//!
//! `sessions/index.jsonl` has a line for each session that was ever created, oldest first; next to
//! each journal is a summary of the session. The journals are authoritative: a summary that does
//! not match its journal is ignored, and an index that lacks sessions is completed by the daemon.
//! Until then, readers list the directories.

use std::collections::HashSet;
use std::fs::{DirEntry, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nanoserde::{DeJson, SerJson};

use crate::disk::FileVersion;
use crate::error::{At, Error, Kind};
use crate::lines::{Backwards, Forwards, read_at};
use crate::mutex::lock;
use crate::protocol::{SessionId, SessionSummary};
use crate::sys::effective_user;
use crate::{disk, json, limits};

use super::journal::sync_directory;
use super::reader::{self, JournalReport, scan};
use super::record::{self, Record};
use super::replay::JournalState;
use super::summaries::SummaryCache;

/// The summary of a session, in its directory.
const SUMMARY: &str = "summary.json";

/// The place, in the directory of all sessions, of sessions that are being deleted.
const TRASH: &str = ".deleted";

/// The directory of all sessions.
pub struct Store {
    root: PathBuf,
    /// The index as this store last checked or wrote it. Held while the index is written.
    index: Mutex<Option<FileVersion>>,
    summaries: SummaryCache,
}

/// A summary, with the length of the journal when it was made.
#[derive(DeJson, SerJson)]
struct StoredSummary {
    bytes: u64,
    summary: SessionSummary,
}

/// A line of the index.
#[derive(DeJson, SerJson)]
struct Entry {
    #[nserde(rename = "sessionId")]
    session_id: String,
    /// Empty if the journal does not say it.
    #[nserde(rename = "createdAt")]
    created_at: String,
}

impl Entry {
    /// Reads a line of the index; `None` if it is damaged.
    fn read(line: &[u8]) -> Option<(Entry, SessionId)> {
        let entry: Entry = json::parse(line).ok()?;
        let id = SessionId::parse(&entry.session_id)?;
        Some((entry, id))
    }
}

/// Some sessions, newest first, and where the next page begins.
pub struct Page {
    pub ids: Vec<SessionId>,
    pub next: Option<u64>,
    /// Whether the sessions were listed by their directories, because the index lacks some.
    pub is_index_damaged: bool,
}

impl Store {
    /// Returns the store in `root`, which need not exist yet.
    pub fn new(root: PathBuf) -> Store {
        Store { root, index: Mutex::default(), summaries: SummaryCache::default() }
    }

    /// Returns the path of the index.
    pub fn index(&self) -> PathBuf {
        self.root.join("index.jsonl")
    }

    /// Returns the directory of a session.
    pub fn directory(&self, id: &SessionId) -> PathBuf {
        self.root.join(id.as_str())
    }

    fn journal(&self, id: &SessionId) -> PathBuf {
        self.path_of(id, reader::FILE_NAME)
    }

    fn path_of(&self, id: &SessionId, name: &str) -> PathBuf {
        // Lists need several paths for each session.
        let length = self.root.as_os_str().len() + id.as_str().len() + name.len() + 2;
        let mut path = PathBuf::with_capacity(length);
        path.extend([self.root.as_path(), id.as_str().as_ref(), name.as_ref()]);
        path
    }

    /// Returns whether there is a session of this id, even if it has lost its journal. What a crash
    /// left before anything was acknowledged has no summary and is not a session.
    pub fn has(&self, id: &SessionId) -> bool {
        // A symbolic link may lead outside.
        let directory = self.directory(id).symlink_metadata();
        let journal = self.journal(id).metadata();
        directory.is_ok_and(|found| found.is_dir())
            && (journal.is_ok_and(|found| found.len() > 0) || self.summarized_bytes(id) > 0)
    }

    /// Returns whether an entry of the index is about the session that has its id now, not one that
    /// was deleted before.
    fn is_current(&self, entry: &Entry, id: &SessionId) -> bool {
        // A session that cannot be read is listed: reading it says why.
        let is_same = |created_at: String| created_at == entry.created_at;
        entry.created_at.is_empty() || self.created_at(id).is_none_or(is_same)
    }

    /// Reads from the first record when a session was created.
    fn created_at(&self, id: &SessionId) -> Option<String> {
        let file = disk::open_if_exists(&self.journal(id)).ok()??;
        let mut bytes = [0_u8; 512];
        let length = read_at(&file, &mut bytes, 0).ok()?;
        record::ts_of(bytes.get(..length)?).map(str::to_owned)
    }

    /// Adds a session to the index, durably. This happens before its journal is created, so that
    /// every session that was acknowledged is in the index.
    pub fn add_to_index(&self, id: &SessionId, created_at: &str) -> Result<(), Error> {
        let path = self.index();
        let mut version = lock(&self.index);
        let is_complete = version.is_some() && *version == version_of(&path);
        let is_new = !path.exists();
        if is_new {
            self.create_root()?;
        }
        let mut file = disk::open_for_append(&path, File::options().create(true))?;
        let entry = Entry { session_id: id.as_str().to_owned(), created_at: created_at.to_owned() };
        // A crash or a full disk may have left part of an entry, which must not spoil this one.
        let length = file.metadata().at("inspect", &path)?.len();
        let mut last = *b"\n";
        if let Some(before) = length.checked_sub(1) {
            read_at(&file, &mut last, before).at("read", &path)?;
        }
        let line_end = if last == *b"\n" { "" } else { "\n" };
        let line = format!("{line_end}{}\n", json::text(&entry));
        file.write_all(line.as_bytes()).at("write", &path)?;
        if is_complete {
            *version = version_of(&path);
        }
        drop(version);
        if is_new {
            sync_directory(&self.root)?;
        }
        file.sync_data().at("sync", &path)
    }

    /// Adds to the index the sessions that it lacks, durably: it was damaged or removed, or they
    /// were copied from elsewhere. Returns how many there were. Reads nothing if the index is as
    /// this store left it.
    pub fn complete_index(&self) -> Result<usize, Error> {
        let path = self.index();
        let mut version = lock(&self.index);
        if version.is_some() && *version == version_of(&path) {
            return Ok(0);
        }
        let mut entries = self.index_entries()?;
        let missing = self.missing_from(&entries)?;
        let count = missing.len();
        if count > 0 {
            entries.extend(missing.into_iter().map(|id| Entry {
                created_at: self.created_at(&id).unwrap_or_default(),
                session_id: id.as_str().to_owned(),
            }));
            entries.sort_by(|left, right| left.created_at.cmp(&right.created_at));
            let lines = entries.iter().map(|entry| format!("{}\n", json::text(entry)));
            disk::replace(&path, lines.collect::<String>().as_bytes())?;
            File::open(&path).and_then(|file| file.sync_all()).at("sync", &path)?;
            sync_directory(&self.root)?;
        }
        *version = version_of(&path);
        Ok(count)
    }

    /// Returns the intact entries of the index, oldest first.
    fn index_entries(&self) -> Result<Vec<Entry>, Error> {
        let path = self.index();
        let Some(file) = disk::open_if_exists(&path)? else { return Ok(Vec::new()) };
        let length = file.metadata().at("inspect", &path)?.len();
        let mut lines = Forwards::new(0, length, limits::INDEX_LINE_BYTES_MAX);
        let mut entries = Vec::new();
        while let Some((line, _)) = lines.next(&file).at("read", &path)? {
            entries.extend(Entry::read(line).map(|(entry, _)| entry));
        }
        Ok(entries)
    }

    /// Returns the sessions that none of the entries names, which were read before.
    fn missing_from(&self, entries: &[Entry]) -> Result<Vec<SessionId>, Error> {
        let named: HashSet<&str> = entries.iter().map(|entry| entry.session_id.as_str()).collect();
        let ids = self.entries()?.filter_map(|entry| {
            let name = entry.ok()?.file_name();
            SessionId::parse(name.to_str().filter(|name| !named.contains(name))?)
        });
        Ok(ids.filter(|id| self.has(id)).collect())
    }

    /// Creates the directory of all sessions, durably with its parents.
    fn create_root(&self) -> Result<(), Error> {
        let is_new = !self.root.exists();
        disk::ensure_private_directory(&self.root)?;
        if is_new {
            // Parents of other users existed before.
            let is_own =
                |path: &&Path| path.metadata().is_ok_and(|found| found.uid() == effective_user());
            for directory in self.root.ancestors().skip(1).take_while(is_own) {
                sync_directory(directory)?;
            }
        }
        Ok(())
    }

    /// Returns a page of the list, which begins where the page before it said (`before`).
    pub fn page(&self, before: Option<u64>, count: usize) -> Result<Page, Error> {
        let path = self.index();
        let Some(file) = disk::open_if_exists(&path)? else {
            return self.page_without_index(before, count, false);
        };
        let length = file.metadata().at("inspect", &path)?.len();
        let end = before.map_or(length, |before| before.min(length));
        let mut lines = Backwards::new(end, limits::INDEX_LINE_BYTES_MAX);
        let mut page = Page { ids: Vec::new(), next: None, is_index_damaged: false };
        let mut seen = HashSet::new();
        // The rest of the index need not be read if this part of it is intact.
        let mut is_intact = true;
        while let Some((line, start)) = lines.next(&file).at("read", &path)? {
            // It may have been deleted since, or added twice because of a crash.
            let entry = Entry::read(line);
            is_intact &= entry.is_some();
            if let Some((entry, id)) = entry
                && self.has(&id)
                && self.is_current(&entry, &id)
                && seen.insert(id.clone())
            {
                page.ids.push(id);
            }
            if page.ids.len() == count {
                page.next = (start > 0).then_some(start);
                break;
            }
        }
        let is_checked = before.is_some() || (is_intact && page.next.is_some());
        if is_checked || self.missing_from(&self.index_entries()?)?.is_empty() {
            return Ok(page);
        }
        self.page_without_index(before, count, true)
    }

    /// Returns a page of a list without an index: it begins after `before` sessions.
    fn page_without_index(
        &self,
        before: Option<u64>,
        count: usize,
        is_index_damaged: bool,
    ) -> Result<Page, Error> {
        let skipped = before.and_then(|before| usize::try_from(before).ok()).unwrap_or(0);
        let mut ids = self.newest_first()?;
        ids.drain(..skipped.min(ids.len()));
        let more = ids.len() > count;
        ids.truncate(count);
        let next = more.then(|| skipped.saturating_add(count) as u64);
        Ok(Page { ids, next, is_index_damaged })
    }

    /// Fails if the index lacks a session: it was damaged, or the session was copied from
    /// elsewhere.
    ///
    /// # Errors
    /// [`Kind::SessionsUnlisted`].
    pub fn check_index(&self) -> Result<(), Error> {
        let path = self.index();
        // A missing one is none that lacks sessions.
        if !path.exists() {
            return Ok(());
        }
        match self.missing_from(&self.index_entries()?)?.len() {
            0 => Ok(()),
            count => {
                let hint = "the daemon adds them when it next lists or creates sessions";
                let reason = format!("{} lacks {count}; {hint}", path.display());
                let action = "find all sessions in the index";
                Err(Error::cannot(Kind::SessionsUnlisted, action, reason))
            }
        }
    }

    /// Returns the session whose journal was written last; with `directory`, of those that work
    /// there.
    pub fn latest(&self, directory: Option<&Path>) -> Result<Option<SessionId>, Error> {
        let written_at = |id: &SessionId| {
            let journal = self.journal(id).metadata().ok()?;
            (journal.len() > 0).then_some(journal.modified().ok()?)
        };
        let dated = self.newest_first()?.into_iter().filter_map(|id| Some((written_at(&id)?, id)));
        let mut dated: Vec<_> = dated.collect();
        dated.sort_unstable();
        let is_there = |id: &SessionId| {
            let works_in =
                |directory: &Path| self.workspace(id).is_some_and(|path| path == directory);
            directory.is_none_or(works_in)
        };
        Ok(dated.into_iter().rev().map(|(_, id)| id).find(is_there))
    }

    /// Returns the directory that a session works in, which never changes.
    fn workspace(&self, id: &SessionId) -> Option<PathBuf> {
        let stored = self.stored_summary(id).map(|stored| stored.summary);
        let summary = stored.or_else(|| self.summary(id).ok())?;
        summary.working_directory().map(PathBuf::from)
    }

    /// Returns the sessions whose ids begin with one of `prefixes`, in the order of their ids.
    /// Needs no index.
    pub fn with_prefix(&self, prefixes: &[&str]) -> Result<Vec<SessionId>, Error> {
        let mut ids = Vec::new();
        for entry in self.entries()? {
            let name = entry.at("read", &self.root)?.file_name();
            let begins = |name: &&str| prefixes.iter().any(|prefix| name.starts_with(prefix));
            let name = name.to_str().filter(begins);
            ids.extend(name.and_then(SessionId::parse).filter(|id| self.has(id)));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Returns all sessions, newest first by the times of their directories. Needs no index.
    pub fn newest_first(&self) -> Result<Vec<SessionId>, Error> {
        let dated = self.entries()?.filter_map(|entry| {
            let entry = entry.ok()?;
            let id = SessionId::parse(entry.file_name().to_str()?)?;
            let directory = entry.metadata().ok().filter(|found| found.is_dir())?;
            self.has(&id).then_some((directory.modified().ok()?, id))
        });
        let mut dated: Vec<_> = dated.collect();
        dated.sort_by(|left, right| right.cmp(left));
        Ok(dated.into_iter().map(|(_, id)| id).collect())
    }

    fn entries(&self) -> Result<impl Iterator<Item = io::Result<DirEntry>>, Error> {
        let entries = disk::if_exists(std::fs::read_dir(&self.root)).at("read", &self.root)?;
        Ok(entries.into_iter().flatten())
    }

    /// Returns what a list shows of a session: its summary if that matches its journal, else what
    /// the journal says.
    ///
    /// # Errors
    /// [`Kind::SessionDamaged`] if no record of the journal is valid.
    pub fn summary(&self, id: &SessionId) -> Result<SessionSummary, Error> {
        let bytes = self.journal(id).metadata().map_or(0, |found| found.len());
        self.summary_of(id, bytes)
    }

    /// Returns the summary of a session whose journal has `bytes` bytes.
    fn summary_of(&self, id: &SessionId, bytes: u64) -> Result<SessionSummary, Error> {
        let summarized = match self.stored_summary(id) {
            Some(stored) if stored.bytes == bytes => return Ok(stored.summary),
            stored => stored.map_or(0, |stored| stored.bytes),
        };
        let mut state = JournalState::default();
        let visit = |record: &Record<'_>| {
            state.apply_record(record);
            true
        };
        self.scan_compared(id, summarized, visit)?.require_records(id)?;
        Ok(state.summary(id))
    }

    /// Returns the same as [`Store::summary`], from memory if the journal has not changed since.
    pub fn cached_summary(&self, id: &SessionId) -> Result<SessionSummary, Error> {
        let Some(version) = version_of(&self.journal(id)) else {
            return self.summary_of(id, 0);
        };
        if let Some(summary) = self.summaries.get(id, version) {
            return Ok(summary);
        }
        let summary = self.summary_of(id, version.length)?;
        self.summaries.insert(id, version, summary.clone());
        Ok(summary)
    }

    /// Reads a summary. One that cannot be read is not needed: the journal says the same.
    fn stored_summary(&self, id: &SessionId) -> Option<StoredSummary> {
        let path = self.path_of(id, SUMMARY);
        let mut file = disk::open_if_exists(&path).ok()??;
        let bytes = disk::read_up_to(&mut file, &path, limits::SUMMARY_BYTES_MAX).ok()??;
        json::parse(&bytes).ok()
    }

    /// Returns the length that the journal had when its summary was made; 0 without a summary.
    pub fn summarized_bytes(&self, id: &SessionId) -> u64 {
        self.stored_summary(id).map_or(0, |stored| stored.bytes)
    }

    /// Writes the summary of a journal of `bytes` bytes.
    pub fn save_summary(
        &self,
        id: &SessionId,
        state: &JournalState,
        bytes: u64,
    ) -> Result<(), Error> {
        let stored = StoredSummary { bytes, summary: state.summary(id) };
        disk::replace(&self.path_of(id, SUMMARY), json::text(&stored).as_bytes())
    }

    /// Reads a journal and passes each valid record to `visit`. Changes nothing.
    pub fn scan(
        &self,
        id: &SessionId,
        mut visit: impl FnMut(&Record<'_>),
    ) -> Result<JournalReport, Error> {
        self.scan_while(id, |record| {
            visit(record);
            true
        })
    }

    /// Reads a journal as [`Store::scan`] does, but fails as soon as `visit` returns `false`.
    pub fn scan_while(
        &self,
        id: &SessionId,
        visit: impl FnMut(&Record<'_>) -> bool,
    ) -> Result<JournalReport, Error> {
        // First: the journal may grow while it is read.
        self.scan_compared(id, self.summarized_bytes(id), visit)
    }

    fn scan_compared(
        &self,
        id: &SessionId,
        summarized: u64,
        mut visit: impl FnMut(&Record<'_>) -> bool,
    ) -> Result<JournalReport, Error> {
        let path = self.journal(id);
        let report = match disk::open_if_exists(&path)? {
            Some(file) => scan(&file, &path, |record, _, _| visit(record))?,
            // Unless the session has just been deleted.
            None if summarized > 0 && self.summarized_bytes(id) > 0 => JournalReport::default(),
            None => return Err(io::Error::from(io::ErrorKind::NotFound)).at("read", &path),
        };
        Ok(report.compared_to(summarized))
    }

    /// Deletes a session, durably: moves it, in one step, to where there are no sessions, then
    /// removes it and what interrupted deletions left.
    pub fn delete(&self, id: &SessionId) -> Result<(), Error> {
        let directory = self.directory(id);
        let trash = self.root.join(TRASH);
        disk::ensure_private_directory(&trash)?;
        let trashed = trash.join(id.as_str());
        remove_all(&trashed)?;
        std::fs::rename(&directory, &trashed).at("remove", &directory)?;
        self.summaries.remove(id);
        sync_directory(&self.root)?;
        // It is deleted. What cannot be removed now is removed by the next deletion.
        for entry in std::fs::read_dir(&trash).into_iter().flatten().flatten() {
            drop(remove_all(&entry.path()));
        }
        Ok(())
    }
}

fn version_of(path: &Path) -> Option<FileVersion> {
    path.metadata().ok().map(|found| FileVersion::of(&found))
}

fn remove_all(directory: &Path) -> Result<(), Error> {
    disk::if_exists(std::fs::remove_dir_all(directory)).at("remove", directory).map(drop)
}

/// Returns the failure to find a session whose id begins with `typed`.
pub fn no_session(typed: &str) -> Error {
    let reason = format!("no id begins with '{typed}'");
    Error::cannot(Kind::SessionNotFound, "find the session", reason)
        .with_next_step("to see which there are: opta sessions list")
}
