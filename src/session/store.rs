//! Where sessions lie on disk, and how they are found without reading them: `sessions/index.jsonl`,
//! a line for each session that was ever created, oldest first, and beside each journal a summary
//! of it.
//!
//! The journals are the truth. A summary that does not fit its journal is ignored, an index that is
//! missing is made again; neither is needed to read a session.

use std::collections::HashSet;
use std::fs::{DirEntry, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nanoserde::{DeJson, SerJson};

use crate::error::{At, Error};
use crate::{disk, json, limits};

use super::journal::{self, Findings, examine, sync_directory};
use super::rules::{Message, SessionId, State};

/// The directory of all sessions.
#[derive(Clone)]
pub struct Store {
    root: PathBuf,
}

/// What a list shows of a session.
#[derive(Clone, Debug, Default, DeJson, SerJson)]
pub struct Summary {
    #[nserde(rename = "sessionId")]
    pub session_id: String,
    /// Empty: whatever the model server offers first.
    pub model: String,
    pub title: Option<String>,
    #[nserde(rename = "createdAt")]
    pub created_at: String,
    #[nserde(rename = "updatedAt")]
    pub updated_at: String,
    #[nserde(rename = "lastActivityAt")]
    pub last_activity_at: String,
    #[nserde(rename = "activeTurnId")]
    pub active_turn_id: Option<String>,
    #[nserde(rename = "queuedTurns")]
    pub queued_turns: u64,
    #[nserde(rename = "toolCallCount")]
    pub tool_call_count: u64,
    #[nserde(rename = "writerCount")]
    pub writer_count: u64,
    pub mode: String,
    /// `idle`, `running` or `queued`.
    pub status: String,
    pub turns: u64,
    pub workspace: Option<String>,
    /// The number of its last event.
    pub seq: u64,
}

/// A summary as it lies beside a journal of `bytes` bytes.
#[derive(DeJson, SerJson)]
struct Kept {
    bytes: u64,
    summary: Summary,
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
        Store { root }
    }

    /// The directory of one session.
    pub fn directory(&self, id: &SessionId) -> PathBuf {
        self.root.join(id.as_str())
    }

    /// Whether there is a session of this name.
    pub fn has(&self, id: &SessionId) -> bool {
        let journal = self.directory(id).join(journal::FILE_NAME).metadata();
        journal.is_ok_and(|journal| journal.len() > 0)
    }

    /// Makes the directory of all sessions.
    pub fn prepare(&self) -> Result<(), Error> {
        disk::private_directory(&self.root)
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
        let path = self.index();
        let is_new = !path.exists();
        if is_new {
            self.rebuild()?;
        }
        let mut file = disk::append(&path, File::options().create(true))?;
        let entry = Entry { session_id: id.as_str().to_owned(), created_at: created_at.to_owned() };
        let line = format!("{}\n", json::text(&entry));
        file.write_all(line.as_bytes()).at("write", &path)?;
        file.sync_data().at("sync", &path)?;
        if is_new { sync_directory(&self.root) } else { Ok(()) }
    }

    /// A page of the list. `before` is where the page before it said that this one begins.
    pub fn page(&self, before: Option<u64>, count: usize) -> Result<Page, Error> {
        let path = self.index();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut ids = self.names()?;
                ids.truncate(count);
                return Ok(Page { ids, next: None });
            }
            Err(cause) => return Err(cause).at("read", &path),
        };
        let length = file.metadata().at("inspect", &path)?.len();
        let mut lines = Backwards::new(before.map_or(length, |before| before.min(length)));
        let mut ids: Vec<SessionId> = Vec::new();
        let mut seen = HashSet::new();
        while let Some((line, start)) = lines.next(&file).at("read", &path)? {
            let entry = json::parse::<Entry>(&line).ok();
            let id = entry.and_then(|entry| SessionId::parse(&entry.session_id));
            // It may have been deleted since, or entered twice because a crash came between.
            if let Some(id) = id.filter(|id| self.has(id))
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

    /// What a list shows of a session; from its summary if that fits its journal, else from the
    /// journal.
    pub fn summary(&self, id: &SessionId) -> Result<Summary, Error> {
        let path = self.directory(id).join(journal::FILE_NAME);
        let bytes = path.metadata().at("inspect", &path)?.len();
        let kept_path = self.directory(id).join(SUMMARY);
        // Whatever is wrong with it, the journal says the same.
        if let Ok(Some(mut file)) = disk::read_private(&kept_path)
            && let Ok(kept) = disk::contents(&mut file, &kept_path, limits::SUMMARY_BYTES_MAX)
            && let Some(kept) = kept.and_then(|kept| json::parse::<Kept>(&kept).ok())
            && kept.bytes == bytes
        {
            return Ok(kept.summary);
        }
        Ok(Summary::of(id, &self.read(id)?.0))
    }

    /// Puts a summary beside a journal of `bytes` bytes.
    pub fn keep(&self, id: &SessionId, state: &State, bytes: u64) -> Result<(), Error> {
        let kept = Kept { bytes, summary: Summary::of(id, state) };
        disk::replace(&self.directory(id).join(SUMMARY), json::text(&kept).as_bytes())
    }

    /// Reads a session through. Changes nothing.
    pub fn read(&self, id: &SessionId) -> Result<(State, Findings), Error> {
        let mut state = State::default();
        let findings = self.examine(id, |record| state.apply(record))?;
        Ok((state, findings))
    }

    /// Reads a journal through and shows each whole record to `visit`. Changes nothing.
    pub fn examine(
        &self,
        id: &SessionId,
        mut visit: impl FnMut(&super::event::Record<'_>),
    ) -> Result<Findings, Error> {
        let path = self.directory(id).join(journal::FILE_NAME);
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let file = disk::read_private(&path)?.ok_or_else(missing).at("read", &path)?;
        examine(&file, &path, |record, _, _| visit(record))
    }

    /// Deletes a session, durably. First its name changes, in one step, to one that is no
    /// session's.
    pub fn delete(&self, id: &SessionId) -> Result<(), Error> {
        let directory = self.directory(id);
        let doomed = self.root.join(format!(".deleted.{}", id.as_str()));
        // What an interrupted deletion has left.
        match std::fs::remove_dir_all(&doomed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).at("remove", &doomed);
            }
            _ => {}
        }
        std::fs::rename(&directory, &doomed).at("remove", &directory)?;
        sync_directory(&self.root)?;
        std::fs::remove_dir_all(&doomed).at("remove", &doomed)
    }

    /// The sessions whose names begin with `beginning`, in the order of their names. Needs no index.
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

    fn index(&self) -> PathBuf {
        self.root.join("index.jsonl")
    }
}

const SUMMARY: &str = "summary.json";

impl Summary {
    /// What `state` says of the session.
    pub fn of(id: &SessionId, state: &State) -> Summary {
        let unfinished = state.unfinished();
        let mut writers: Vec<&str> =
            unfinished.iter().map(|turn| turn.writer_id.as_str()).collect();
        writers.sort_unstable();
        writers.dedup();
        let status = match (&state.active, state.queue.is_empty()) {
            (Some(_), _) => "running",
            (None, false) => "queued",
            (None, true) => "idle",
        };
        Summary {
            session_id: id.as_str().to_owned(),
            model: state.model.clone().unwrap_or_default(),
            title: state.title.clone(),
            created_at: state.created_at.clone(),
            updated_at: state.updated_at.clone(),
            last_activity_at: state.updated_at.clone(),
            active_turn_id: state.active.as_ref().map(|turn| turn.turn_id.clone()),
            queued_turns: state.queue.len() as u64,
            tool_call_count: state.tool_calls,
            writer_count: writers.len() as u64,
            mode: state.mode.clone().unwrap_or_else(|| "chat".to_owned()),
            status: status.to_owned(),
            turns: state.turns,
            workspace: state.workspace.clone(),
            seq: state.seq,
        }
    }

    /// The session as one JSON object: the summary's fields and its messages.
    pub fn with_messages<'m>(&self, messages: impl Iterator<Item = &'m Message>) -> String {
        let mut text = json::text(self);
        // Its last brace makes room for one more field.
        text.pop();
        text.push_str(",\"messages\":[");
        for (index, message) in messages.enumerate() {
            text.push_str(if index == 0 { "" } else { "," });
            message.json(&mut text);
        }
        text.push_str("]}");
        text
    }
}

/// Lines of a file from a place backwards.
struct Backwards {
    /// The file's bytes from `offset` on, up to the place where the next line ends.
    buffer: Vec<u8>,
    offset: u64,
}

impl Backwards {
    fn new(end: u64) -> Backwards {
        Backwards { buffer: Vec::new(), offset: end }
    }

    /// The line before, without its line end, and where it begins.
    fn next(&mut self, file: &File) -> io::Result<Option<(Vec<u8>, u64)>> {
        loop {
            let body = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
            if let Some(before) = body.iter().rposition(|byte| *byte == b'\n') {
                let line = body.get(before + 1..).unwrap_or_default().to_vec();
                self.buffer.truncate(before + 1);
                return Ok(Some((line, self.offset + before as u64 + 1)));
            }
            if self.offset == 0 {
                let line = body.to_vec();
                self.buffer.clear();
                return Ok((!line.is_empty()).then_some((line, 0)));
            }
            let step = self.offset.min(16 * 1024);
            let mut block = vec![0; usize::try_from(step).unwrap_or(0)];
            file.read_exact_at(&mut block, self.offset - step)?;
            block.append(&mut self.buffer);
            self.buffer = block;
            self.offset -= step;
        }
    }
}
