//! Where sessions lie on disk, and how they are found without reading them: `sessions/index.jsonl`,
//! a line for each session that was ever created, oldest first, and beside each journal a summary
//! of it.
//!
//! The journals are the truth. A summary that does not fit its journal is ignored, an index that is
//! missing is made again; neither is needed to read a session.

use std::collections::HashSet;
use std::fs::{DirEntry, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nanoserde::{DeJson, SerJson};

use crate::error::{At, Error, Kind};
use crate::lines::{Backwards, read_at};
use crate::protocol::SessionSummary;
use crate::sys::effective_user;
use crate::{disk, json, limits, mutex};

use super::event;
use super::findings::Findings;
use super::journal::{self, examine, sync_directory};
use super::rules::{SessionId, State};

/// The directory of all sessions.
pub struct Store {
    root: PathBuf,
    /// Held while the index is made.
    making: Mutex<()>,
}

/// A summary as it lies beside a journal of `bytes` bytes.
#[derive(DeJson, SerJson)]
struct Kept {
    bytes: u64,
    summary: SessionSummary,
}

/// A line of the index.
#[derive(DeJson, SerJson)]
struct Entry {
    #[nserde(rename = "sessionId")]
    session_id: String,
    #[nserde(rename = "createdAt")]
    created_at: String,
}

/// Some sessions, newest first, and where the next page begins.
pub struct Page {
    pub ids: Vec<SessionId>,
    pub next: Option<u64>,
}

impl Store {
    /// The sessions below `root`, which need not exist yet.
    pub fn new(root: PathBuf) -> Store {
        Store { root, making: Mutex::default() }
    }

    /// The directory of one session.
    pub fn directory(&self, id: &SessionId) -> PathBuf {
        self.root.join(id.as_str())
    }

    /// Whether there is a session of this name, be it one that has lost its journal. What a crash
    /// has left before anything was acknowledged has no summary, and is none.
    pub fn has(&self, id: &SessionId) -> bool {
        let directory = self.directory(id);
        // Not behind a link: what is there belongs to somebody else.
        let is_own = directory.symlink_metadata().is_ok_and(|found| found.is_dir());
        let journal = directory.join(journal::FILE_NAME).metadata();
        is_own && (journal.is_ok_and(|journal| journal.len() > 0) || self.counted(id) > 0)
    }

    /// Whether an entry of the index is about the session that has this name now, and not about one
    /// that was deleted before it. An index that was made anew does not tell.
    fn is_of(&self, entry: &Entry, id: &SessionId) -> bool {
        // One that cannot be read is not hidden: who reads it says why.
        let same = |created_at: String| created_at == entry.created_at;
        entry.created_at.is_empty() || self.created_at(id).is_none_or(same)
    }

    /// When a session was created, from the beginning of its first event.
    fn created_at(&self, id: &SessionId) -> Option<String> {
        let path = self.directory(id).join(journal::FILE_NAME);
        let file = disk::open_if_exists(&path).ok()??;
        let mut bytes = [0_u8; 512];
        let length = read_at(&file, &mut bytes, 0).ok()?;
        let ts = event::ts_of(bytes.get(..length)?)?;
        Some(ts.to_owned())
    }

    /// Makes the directory of all sessions, durable with the directories that it is in.
    fn prepare(&self) -> Result<(), Error> {
        let is_new = !self.root.exists();
        disk::ensure_private_directory(&self.root)?;
        if is_new {
            // As far up as it is ours; what is above was there before.
            let ours =
                |path: &&Path| path.metadata().is_ok_and(|found| found.uid() == effective_user());
            for directory in self.root.ancestors().skip(1).take_while(ours) {
                sync_directory(directory)?;
            }
        }
        Ok(())
    }

    /// The session whose journal was written last.
    pub fn latest(&self) -> Result<Option<SessionId>, Error> {
        let written = |id: &SessionId| {
            let journal = self.directory(id).join(journal::FILE_NAME).metadata().ok()?;
            (journal.len() > 0).then_some(journal.modified().ok()?)
        };
        let dated = self.names()?.into_iter().filter_map(|id| Some((written(&id)?, id)));
        Ok(dated.max().map(|(_, id)| id))
    }

    /// Adds a session to the index, durably; before its journal is made, so that no session that
    /// was acknowledged can be missing from it.
    pub fn enter(&self, id: &SessionId, created_at: &str) -> Result<(), Error> {
        let mut file = self.open_index()?;
        let entry = Entry { session_id: id.as_str().to_owned(), created_at: created_at.to_owned() };
        // A crash or a full disk may have left a part of an entry; it must not take this one with
        // it.
        let length = file.metadata().at("inspect", &self.index())?.len();
        let mut last = *b"\n";
        if let Some(before) = length.checked_sub(1) {
            read_at(&file, &mut last, before).at("read", &self.index())?;
        }
        let apart = if last == *b"\n" { "" } else { "\n" };
        let line = format!("{apart}{}\n", json::text(&entry));
        file.write_all(line.as_bytes()).at("write", &self.index())?;
        file.sync_data().at("sync", &self.index())
    }

    /// The index for appending. A new one gets the sessions that are there.
    fn open_index(&self) -> Result<File, Error> {
        let making = mutex::lock(&self.making);
        let path = self.index();
        let is_new = !path.exists();
        if is_new {
            self.prepare()?;
            self.rebuild()?;
        }
        let file = disk::open_for_append(&path, File::options().create(true))?;
        if is_new {
            sync_directory(&self.root)?;
        }
        drop(making);
        Ok(file)
    }

    /// A page of the list. `before` is where the page before it said that this one begins.
    pub fn page(&self, before: Option<u64>, count: usize) -> Result<Page, Error> {
        let path = self.index();
        let Some(file) = disk::open_if_exists(&path)? else {
            return self.page_without_index(before, count);
        };
        let length = file.metadata().at("inspect", &path)?.len();
        let end = before.map_or(length, |before| before.min(length));
        let mut lines = Backwards::new(end, limits::INDEX_LINE_BYTES_MAX);
        let mut ids: Vec<SessionId> = Vec::new();
        let mut seen = HashSet::new();
        while let Some((line, start)) = lines.next(&file).at("read", &path)? {
            // It may have been deleted since, or entered twice because a crash came between.
            if let Ok(entry) = json::parse::<Entry>(line)
                && let Some(id) = SessionId::parse(&entry.session_id)
                && self.has(&id)
                && self.is_of(&entry, &id)
                && seen.insert(id.clone())
            {
                ids.push(id);
            }
            if ids.len() == count {
                return Ok(Page { ids, next: (start > 0).then_some(start) });
            }
        }
        Ok(Page { ids, next: None })
    }

    /// Fails if some of these sessions, and they are there, are on no page: the index was damaged,
    /// or they were put back from elsewhere.
    ///
    /// # Errors
    /// [`Kind::SessionsUnlisted`].
    pub fn all_listed(&self, ids: &[SessionId]) -> Result<(), Error> {
        // Read after the names: an entry is made before what it names.
        let listed: HashSet<SessionId> = self.page(None, usize::MAX)?.ids.into_iter().collect();
        match ids.iter().filter(|id| !listed.contains(id) && self.has(id)).count() {
            0 => Ok(()),
            count => {
                let (index, hint) = (self.index(), "removed, it is made again");
                let reason = format!("{} lacks {count}; {hint}", index.display());
                Err(Error::cannot(Kind::SessionsUnlisted, "list all sessions", reason))
            }
        }
    }

    /// A page for want of an index: then one begins behind so many sessions.
    fn page_without_index(&self, before: Option<u64>, count: usize) -> Result<Page, Error> {
        let skipped = before.and_then(|before| usize::try_from(before).ok()).unwrap_or(0);
        let mut ids = self.names()?;
        ids.drain(..skipped.min(ids.len()));
        let more = ids.len() > count;
        ids.truncate(count);
        let next = more.then(|| skipped.saturating_add(count) as u64);
        Ok(Page { ids, next })
    }

    /// What a list shows of a session; from its summary if that fits its journal, else from the
    /// journal.
    pub fn summary(&self, id: &SessionId) -> Result<SessionSummary, Error> {
        let path = self.directory(id).join(journal::FILE_NAME);
        let bytes = path.metadata().map_or(0, |found| found.len());
        if let Some(kept) = self.kept(id)
            && kept.bytes == bytes
        {
            return Ok(kept.summary);
        }
        Ok(self.read(id)?.0.summary(id))
    }

    /// The summary beside a journal. Whatever is wrong with it, the journal says the same.
    fn kept(&self, id: &SessionId) -> Option<Kept> {
        let path = self.directory(id).join(SUMMARY);
        let mut file = disk::open_if_exists(&path).ok()??;
        let kept = disk::read_up_to(&mut file, &path, limits::SUMMARY_BYTES_MAX).ok()??;
        json::parse(&kept).ok()
    }

    /// How many bytes the journal had when its summary was made; 0 without one.
    pub fn counted(&self, id: &SessionId) -> u64 {
        self.kept(id).map_or(0, |kept| kept.bytes)
    }

    /// Puts a summary beside a journal of `bytes` bytes.
    pub fn keep(&self, id: &SessionId, state: &State, bytes: u64) -> Result<(), Error> {
        let kept = Kept { bytes, summary: state.summary(id) };
        disk::replace(&self.directory(id).join(SUMMARY), json::text(&kept).as_bytes())
    }

    /// Reads a session through. Changes nothing.
    ///
    /// # Errors
    /// [`Kind::SessionDamaged`]: nothing of it is whole.
    pub fn read(&self, id: &SessionId) -> Result<(State, Findings), Error> {
        let mut state = State::default();
        let findings = self.examine_some(id, |record| state.apply_record(record))?;
        Ok((state, findings))
    }

    /// As [`Store::examine`], but fails where there is nothing to show.
    ///
    /// # Errors
    /// [`Kind::SessionDamaged`].
    pub fn examine_some(
        &self,
        id: &SessionId,
        visit: impl FnMut(&event::Record<'_>),
    ) -> Result<Findings, Error> {
        self.examine(id, visit)?.some(id)
    }

    /// Reads a journal through and shows each whole record to `visit`. Changes nothing.
    pub fn examine(
        &self,
        id: &SessionId,
        mut visit: impl FnMut(&event::Record<'_>),
    ) -> Result<Findings, Error> {
        let path = self.directory(id).join(journal::FILE_NAME);
        // First: the journal may have grown by the time that it is read.
        let counted = self.counted(id);
        let findings = match disk::open_if_exists(&path)? {
            Some(file) => examine(&file, &path, |record, _, _| visit(record))?,
            // Unless all of it has just been deleted.
            None if counted > 0 && self.counted(id) > 0 => Findings::default(),
            None => return Err(io::Error::from(io::ErrorKind::NotFound)).at("read", &path),
        };
        Ok(findings.beside(counted))
    }

    /// Deletes a session, durably. First it is moved, in one step, to where no session is; what an
    /// interrupted deletion has left there goes with it.
    pub fn delete(&self, id: &SessionId) -> Result<(), Error> {
        let directory = self.directory(id);
        let grave = self.root.join(GRAVE);
        disk::ensure_private_directory(&grave)?;
        let doomed = grave.join(id.as_str());
        clear(&doomed)?;
        std::fs::rename(&directory, &doomed).at("remove", &directory)?;
        sync_directory(&self.root)?;
        // It is deleted. What cannot be cleared away now is cleared away with the next one.
        for left in std::fs::read_dir(&grave).into_iter().flatten().flatten() {
            drop(clear(&left.path()));
        }
        Ok(())
    }

    /// The sessions whose names begin with `beginning`, in the order of their names. Needs no
    /// index.
    pub fn beginning_with(&self, beginning: &str) -> Result<Vec<SessionId>, Error> {
        let mut ids = Vec::new();
        for entry in self.entries()? {
            let name = entry.at("read", &self.root)?.file_name();
            let name = name.to_str().filter(|name| name.starts_with(beginning));
            ids.extend(name.and_then(SessionId::parse).filter(|id| self.has(id)));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Every session's name, newest first by the time of its directory: for want of an index.
    pub fn names(&self) -> Result<Vec<SessionId>, Error> {
        let mut found: Vec<_> = self
            .entries()?
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let id = SessionId::parse(entry.file_name().to_str()?)?;
                let made = entry.metadata().ok().filter(|found| found.is_dir())?.modified().ok()?;
                self.has(&id).then_some((made, id))
            })
            .collect();
        found.sort_by(|left, right| right.cmp(left));
        Ok(found.into_iter().map(|(_, id)| id).collect())
    }

    /// What lies in the directory; nothing if there is none.
    fn entries(&self) -> Result<impl Iterator<Item = io::Result<DirEntry>>, Error> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            entries => Some(entries.at("read", &self.root)?),
        };
        Ok(entries.into_iter().flatten())
    }

    fn rebuild(&self) -> Result<(), Error> {
        let mut text = String::new();
        for id in self.names()?.into_iter().rev() {
            let entry = Entry { session_id: id.as_str().to_owned(), created_at: String::new() };
            text.push_str(&json::text(&entry));
            text.push('\n');
        }
        if text.is_empty() { Ok(()) } else { disk::replace(&self.index(), text.as_bytes()) }
    }

    pub fn index(&self) -> PathBuf {
        self.root.join("index.jsonl")
    }
}

const SUMMARY: &str = "summary.json";

/// Below the directory of all sessions: what is being deleted.
const GRAVE: &str = ".deleted";

fn clear(directory: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.at("remove", directory),
    }
}

/// The failure to find a session: no session's id begins with `typed`.
pub fn no_session(typed: &str) -> Error {
    let reason = format!("no id begins with '{typed}'");
    Error::cannot(Kind::SessionNotFound, "find the session", reason)
        .with_next_step("to see which there are: opta sessions list")
}
