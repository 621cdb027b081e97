//! A session's file of events: durable appends, and recovery after a crash.
//!
//! Nothing is acknowledged before it is synced, and nothing that must be synced is published to
//! readers before it is. A failed write is cut off again, so that the file ends with a whole
//! record. After a failed sync the file is no longer trusted, even if a later sync succeeds. What
//! recovery cuts off is copied to another file first.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::error::{At, Error, reason};
use crate::mutex::lock;
use crate::protocol::SessionId;
use crate::protocol::event::Event;
use crate::{clock, disk, limits};

use super::reader::{FILE_NAME, JournalReport, Published, Reader, scan};
use super::record;
use super::replay::JournalState;
use super::said::Run;

/// Whether an append is on the disk when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It is, and survives a power cut.
    Synced,
    /// It survives the end of the process. The next synced append syncs it too.
    Buffered,
}

/// The writer of a journal. Only the daemon has one, and one per session.
pub struct Journal {
    path: PathBuf,
    id: SessionId,
    daemon_id: String,
    /// Closed while the session is idle.
    file: Option<File>,
    /// The length of the file.
    end: u64,
    /// The length of the synced part.
    synced: u64,
    state: JournalState,
    /// What the model has said since it was last asked.
    run: Run,
    /// The kind of failure and the reason for which the file is no longer trusted.
    failure: Option<(ErrorKind, String)>,
    published: Arc<Mutex<Published>>,
}

impl Journal {
    /// Creates the journal of a new session with its first event. Both are durable when this
    /// returns.
    ///
    /// A crash may have left `directory` before anything was acknowledged.
    pub fn create(
        directory: &Path,
        id: &SessionId,
        daemon_id: &str,
        first: &Event,
        created_at: &str,
    ) -> Result<Journal, Error> {
        disk::ensure_private_directory(directory)?;
        let (mut journal, _) = Journal::open(directory, id, daemon_id)?;
        let first = std::slice::from_ref(first);
        let appended = journal.append_at(created_at, first, Durability::Synced);
        appended.at("write", &journal.path)?;
        sync_names(directory)?;
        // There may be more sessions than descriptors.
        journal.close_file();
        Ok(journal)
    }

    /// Opens a journal for appending: reads it, copies a torn tail to another file and cuts it off.
    pub fn open(
        directory: &Path,
        id: &SessionId,
        daemon_id: &str,
    ) -> Result<(Journal, JournalReport), Error> {
        Journal::open_while(directory, id, daemon_id, || true)
    }

    /// Opens a journal as [`Journal::open`] does, but fails as soon as `goes_on` returns `false`:
    /// reading a long journal takes time.
    pub fn open_while(
        directory: &Path,
        id: &SessionId,
        daemon_id: &str,
        goes_on: impl Fn() -> bool,
    ) -> Result<(Journal, JournalReport), Error> {
        let path = directory.join(FILE_NAME);
        let file = disk::open_or_create(&path)?;
        let mut state = JournalState::default();
        let mut published = Published::default();
        let mut run = Run::default();
        let report = scan(&file, &path, |record, start, end| {
            state.apply_record(record);
            published.add(record.seq, start, end);
            if record.said().is_some_and(|said| run.first.is_some_and(|(seq, _)| seq == said.from))
            {
                published.mark(&run, (record.seq, start));
            }
            record.kind.into_iter().for_each(|kind| run.pass(kind, (record.seq, start)));
            goes_on()
        })?;
        if report.torn_bytes > 0 {
            cut_off_tail(directory, &file, &path, &report)?;
        }
        let mut failure = None;
        if report.records > 0 {
            // What a daemon that crashed had not synced is published now, so it must stay.
            let synced = file.sync_data().at("sync", &path).and_then(|()| sync_names(directory));
            let kind = |error: &Error| error.io_kind().unwrap_or(ErrorKind::Other);
            failure = synced.err().map(|error| (kind(&error), error.to_string()));
        }
        let journal = Journal {
            path,
            id: id.clone(),
            daemon_id: daemon_id.to_owned(),
            file: Some(file),
            end: report.valid_bytes,
            synced: report.valid_bytes,
            state,
            run: Run::default(),
            failure,
            published: Arc::new(Mutex::new(published)),
        };
        Ok((journal, report))
    }

    /// Appends events, all or none, with one sync for all. Returns the number of the last.
    ///
    /// # Errors
    /// The journal is unchanged then.
    pub fn append(&mut self, events: &[Event], durability: Durability) -> io::Result<u64> {
        self.append_at(&clock::rfc3339(clock::now_millis()), events, durability)
    }

    fn append_at(&mut self, ts: &str, events: &[Event], durability: Durability) -> io::Result<u64> {
        if let Some((kind, reason)) = &self.failure {
            return Err(io::Error::new(*kind, reason.clone()));
        }
        if self.state.seq + events.len() as u64 > limits::SEQ_MAX {
            let last = self.state.seq;
            let reason =
                format!("its last event has the number {last}, and there are no larger ones");
            return Err(io::Error::other(reason));
        }
        let mut start = self.end;
        // Only the first one ends what was said in other events than these.
        let mut said = events.first().and_then(|event| self.run.payload_of(event, start));
        let has_said = said.is_some();
        let numbered = (self.state.seq + 1..).zip(events);
        let records: Vec<Vec<u8>> = numbered
            .map(|(seq, event)| {
                let payload = said.take().unwrap_or_else(|| event.payload());
                record::record_of(event.kind().name(), &payload, &self.daemon_id, seq, ts)
            })
            .collect();
        for record in &records {
            self.write(record, start)?;
            self.end += record.len() as u64;
        }
        if durability == Durability::Synced {
            self.sync_from(start)?;
        }
        // Last: this publishes them.
        for (position, (event, record)) in events.iter().zip(&records).enumerate() {
            self.state.apply(event, self.state.seq + 1, ts);
            let end = start + record.len() as u64;
            let place = (self.state.seq, start);
            let mut published = lock(&self.published);
            published.add(self.state.seq, start, end);
            if has_said && position == 0 {
                published.mark(&self.run, place);
            }
            drop(published);
            self.run.add(event, place);
            start = end;
        }
        Ok(self.state.seq)
    }

    /// Syncs what was appended [`Buffered`](Durability::Buffered).
    pub fn sync(&mut self) -> io::Result<()> {
        if self.file.is_some() && self.synced < self.end && self.failure.is_none() {
            self.sync_from(self.end)?;
        }
        Ok(())
    }

    /// Closes the file until the next append.
    pub fn close_file(&mut self) {
        self.file = None;
    }

    /// Returns the length of the file.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Returns the state of the session.
    pub fn state(&self) -> &JournalState {
        &self.state
    }

    /// Returns the state, to be damaged.
    #[cfg(test)]
    pub fn state_mut(&mut self) -> &mut JournalState {
        &mut self.state
    }

    /// Removes a turn from the state whose end cannot be appended now.
    pub fn end_turn(&mut self, turn_id: &str) {
        self.state.end_turn(turn_id);
    }

    /// Returns a reader of the journal.
    pub fn reader(&self) -> Reader {
        Reader::new(self.path.clone(), self.id.clone(), Arc::clone(&self.published))
    }

    /// Writes a record. On failure the file is cut off at `start`.
    fn write(&mut self, record: &[u8], start: u64) -> io::Result<()> {
        let end = self.end;
        self.file()?.write_all_at(record, end).map_err(|cause| {
            self.end = start;
            self.cut_off(start, cause)
        })
    }

    /// Syncs the file. On failure it is cut off at `start`.
    fn sync_from(&mut self, start: u64) -> io::Result<()> {
        let Err(cause) = self.file().and_then(|file| file.sync_data()) else {
            self.synced = self.end;
            return Ok(());
        };
        self.end = start;
        let only_unpublished = self.synced == start;
        let error = self.cut_off(start, cause);
        let is_full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        // A full disk may have room again later.
        if !(only_unpublished && is_full) {
            // The kernel may have dropped what it could not write, and report the next sync as a
            // success.
            let advice = "check the disk, then: opta daemon restart";
            let failure = format!("{}; {advice}", reason(&error));
            self.failure = Some((error.kind(), failure.clone()));
            return Err(io::Error::new(error.kind(), failure));
        }
        Err(error)
    }

    /// Cuts off what a failed append wrote. Returns the cause of the failure.
    fn cut_off(&mut self, end: u64, cause: io::Error) -> io::Error {
        let Err(second) = self.file().and_then(|file| file.set_len(end)) else {
            return cause;
        };
        let failure = format!("{}; it could not be cut back: {second}", reason(&cause));
        self.failure = Some((cause.kind(), failure.clone()));
        io::Error::new(cause.kind(), failure)
    }

    fn file(&mut self) -> io::Result<&File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => File::options()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&self.path)?,
        };
        Ok(self.file.insert(file))
    }
}

/// Makes the names of a session's directory and of the files in it durable.
fn sync_names(directory: &Path) -> Result<(), Error> {
    sync_directory(directory)?;
    directory.parent().map_or(Ok(()), sync_directory)
}

/// Copies what is after the last valid record to `journal.torn-N`, durably, then cuts it off.
fn cut_off_tail(
    directory: &Path,
    mut file: &File,
    path: &Path,
    report: &JournalReport,
) -> Result<(), Error> {
    let (mut copy, copy_path) = create_torn_file(directory)?;
    let copied = file
        .seek(SeekFrom::Start(report.valid_bytes))
        .and_then(|_| io::copy(&mut file, &mut copy))
        .and_then(|_| copy.sync_all());
    copied.at("write", &copy_path).inspect_err(|_| {
        // An incomplete copy is useless, and the next attempt would leave another.
        drop(disk::remove(&copy_path));
    })?;
    sync_directory(directory)?;
    file.set_len(report.valid_bytes).at("repair", path)?;
    file.sync_all().at("sync", path)
}

fn create_torn_file(directory: &Path) -> Result<(File, PathBuf), Error> {
    let mut number = 1_u32;
    loop {
        let path = directory.join(format!("journal.torn-{number}"));
        match File::options().write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            result => return Ok((result.at("create", &path)?, path)),
        }
    }
}

/// Makes the names in a directory durable.
pub fn sync_directory(directory: &Path) -> Result<(), Error> {
    let opened = File::open(directory).at("open", directory)?;
    opened.sync_all().at("sync", directory)
}
