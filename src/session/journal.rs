//! A session's file of events: durable appends, and recovery of whatever a crash has left.
//!
//! Invariants. Only whole records are ever read. Nothing is acknowledged before it is synced, and
//! nothing that must be synced is seen by a reader before it is. A write that fails is cut back, so
//! that the file ends with a whole record; a sync that fails ends the journal's trust in the file,
//! and a later sync that succeeds does not restore it. What recovery cuts off is copied aside
//! first.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::error::{At, Error};
use crate::lines::{Forwards, READ_BYTES, read_at};
use crate::mutex::lock;
use crate::protocol::event::Event;
use crate::{clock, disk, limits};

use super::event::{self, Record};
use super::findings::Findings;
use super::rules::{SessionId, State};

/// The file in a session's directory.
pub const FILE_NAME: &str = "journal.jsonl";

/// Whether an append is on the disk when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It is, and survives a power cut.
    Synced,
    /// It survives the end of the process; the next synced append takes it along.
    Cached,
}

/// Why an append was refused. Nothing has changed then.
#[derive(Debug)]
pub enum Refused {
    /// The disk is full. It may work again later.
    Full(io::Error),
    /// The file can no longer be trusted; not before it has been opened anew.
    Broken(String),
}

/// The writing end of a journal: one for each session, in the daemon.
pub struct Journal {
    path: PathBuf,
    id: SessionId,
    daemon_id: String,
    /// Closed while the session rests.
    file: Option<File>,
    end: u64,
    /// Up to here the disk has it.
    synced: u64,
    seq: u64,
    broken: Option<String>,
    view: Arc<Mutex<View>>,
}

/// What readers may see of a journal, and where to find it.
#[derive(Default)]
struct View {
    end: u64,
    seq: u64,
    /// The number and the place of one record in each stretch of the file, in order.
    marks: Vec<(u64, u64)>,
}

impl View {
    fn add(&mut self, seq: u64, start: u64, end: u64) {
        let due = self.marks.last().is_none_or(|(_, at)| start - at >= limits::INDEX_EVERY_BYTES);
        if due {
            self.marks.push((seq, start));
        }
        self.seq = seq;
        self.end = end;
    }
}

impl Journal {
    /// Makes the journal of a new session and its first event, which are durable when this returns.
    ///
    /// `directory` may be there already, left by a crash before anything was acknowledged.
    pub fn create(
        directory: &Path,
        id: &SessionId,
        daemon_id: &str,
        first: &Event,
        created_at: &str,
    ) -> Result<(Journal, State), Error> {
        disk::ensure_private_directory(directory)?;
        let (mut journal, mut state, _) = Journal::open(directory, id, daemon_id)?;
        let first = std::slice::from_ref(first);
        let appended = journal.append_at(created_at, &mut state, first, Durability::Synced);
        let appended = appended.map_err(|refused| match refused {
            Refused::Full(cause) => cause,
            Refused::Broken(because) => io::Error::other(because),
        });
        appended.at("write", &journal.path)?;
        sync_names(directory)?;
        // There may be more sessions than descriptors.
        journal.rest();
        Ok((journal, state))
    }

    /// Opens a journal for appending: reads it through, copies a torn tail aside and cuts it off.
    pub fn open(
        directory: &Path,
        id: &SessionId,
        daemon_id: &str,
    ) -> Result<(Journal, State, Findings), Error> {
        let path = directory.join(FILE_NAME);
        let file = disk::open_or_create(&path)?;
        let mut state = State::default();
        let mut view = View::default();
        let findings = examine(&file, &path, |record, start, end| {
            state.apply_record(record);
            view.add(record.seq, start, end);
        })?;
        if findings.torn_bytes > 0 {
            set_aside(directory, &file, &path, &findings)?;
        }
        // What a process that crashed had not synced is seen from now on, so it must stay.
        let broken = settled(&file, directory, &findings).err().map(|error| error.to_string());
        let journal = Journal {
            path,
            id: id.clone(),
            daemon_id: daemon_id.to_owned(),
            file: Some(file),
            end: findings.sound_bytes,
            synced: findings.sound_bytes,
            seq: state.seq,
            broken,
            view: Arc::new(Mutex::new(view)),
        };
        Ok((journal, state, findings))
    }

    /// Adds the next events, all of them or none, for one sync together; gives the number of the
    /// last. `state` takes them in.
    pub fn append_all(
        &mut self,
        state: &mut State,
        events: &[Event],
        durability: Durability,
    ) -> Result<u64, Refused> {
        let now = clock::rfc3339(clock::now_millis());
        self.append_at(&now, state, events, durability)
    }

    fn append_at(
        &mut self,
        ts: &str,
        state: &mut State,
        events: &[Event],
        durability: Durability,
    ) -> Result<u64, Refused> {
        if let Some(because) = &self.broken {
            return Err(Refused::Broken(because.clone()));
        }
        let numbered = (self.seq + 1..).zip(events);
        let records: Vec<Vec<u8>> =
            numbered.map(|(seq, event)| event::record(event, &self.daemon_id, seq, ts)).collect();
        let mut start = self.end;
        for record in &records {
            self.write(record, start)?;
            self.end += record.len() as u64;
        }
        if durability == Durability::Synced {
            self.sync(start)?;
        }
        // Last: from now on readers see them.
        for (event, record) in events.iter().zip(&records) {
            self.seq += 1;
            state.apply(event, self.seq, ts);
            let end = start + record.len() as u64;
            lock(&self.view).add(self.seq, start, end);
            start = end;
        }
        Ok(self.seq)
    }

    /// Syncs what was appended and is only cached.
    pub fn settle(&mut self) -> Result<(), Refused> {
        if self.file.is_some() && self.synced < self.end && self.broken.is_none() {
            let end = self.end;
            self.sync(end)?;
        }
        Ok(())
    }

    /// Closes the file until the next append.
    pub fn rest(&mut self) {
        self.file = None;
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// A reading end.
    pub fn reader(&self) -> Reader {
        let (path, id, view) = (self.path.clone(), self.id.clone(), Arc::clone(&self.view));
        Reader { path, id, view, file: None, reached: (0, 0) }
    }

    /// On failure the file is cut back to `start`.
    fn write(&mut self, record: &[u8], start: u64) -> Result<(), Refused> {
        let end = self.end;
        // A file that cannot be opened, for want of a descriptor perhaps, has not been touched.
        let file = self.file().map_err(|cause| Refused::Broken(crate::error::reason(&cause)))?;
        file.write_all_at(record, end).map_err(|cause| {
            self.end = start;
            self.cut_back(start, cause)
        })
    }

    /// On failure the file is cut back to `start`.
    fn sync(&mut self, start: u64) -> Result<(), Refused> {
        let synced = self.file().and_then(|file| file.sync_data());
        let Err(cause) = synced else {
            self.synced = self.end;
            return Ok(());
        };
        self.end = start;
        let unseen_only = self.synced == start;
        let refused = self.cut_back(start, cause);
        if !(unseen_only && matches!(refused, Refused::Full(_))) {
            // The kernel may have dropped what it could not write and call the next sync a success.
            self.broken = Some(match &refused {
                Refused::Full(cause) => crate::error::reason(cause),
                Refused::Broken(because) => because.clone(),
            });
        }
        Err(refused)
    }

    /// Removes what a failed append has left of its record.
    fn cut_back(&mut self, end: u64, cause: io::Error) -> Refused {
        if let Err(second) = self.file().and_then(|file| file.set_len(end)) {
            let because =
                format!("{}; it could not be cut back: {second}", crate::error::reason(&cause));
            self.broken = Some(because.clone());
            return Refused::Broken(because);
        }
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Refused::Full(cause),
            _ => Refused::Broken(crate::error::reason(&cause)),
        }
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

/// The reading end of a journal: sees what may be seen, in order, each event once.
pub struct Reader {
    path: PathBuf,
    id: SessionId,
    view: Arc<Mutex<View>>,
    file: Option<File>,
    /// The number of the event that was read last, and where its record ends.
    reached: (u64, u64),
}

/// Some events in a row.
#[derive(Default)]
pub struct Batch {
    /// Each event's number and the end of its envelope in `text`.
    pub events: Vec<(u64, usize)>,
    /// The envelopes, one behind the other.
    pub text: String,
}

impl Batch {
    /// The envelopes with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &str)> {
        let mut start = 0;
        self.events.iter().map(move |(seq, end)| {
            let envelope = self.text.get(start..*end).unwrap_or_default();
            start = *end;
            (*seq, envelope)
        })
    }
}

impl Reader {
    /// The number of the last event that may be seen.
    pub fn last_seq(&self) -> u64 {
        lock(&self.view).seq
    }

    /// The events after number `after`, at most `events_max` of them and about
    /// [`limits::EVENTS_BYTES_MAX`]; at least one if there is one. Reads no more of the file than
    /// what it gives and a stretch of the index, and not even that when it goes on where it was.
    pub fn after(&mut self, after: u64, events_max: usize) -> io::Result<Batch> {
        let (start, end) = self.stretch(after);
        let mut batch = Batch::default();
        if start == end || events_max == 0 {
            return Ok(batch);
        }
        let id = self.id.clone();
        self.each_record(start, end, after, |record| {
            record.envelope(id.as_str(), &mut batch.text);
            batch.events.push((record.seq, batch.text.len()));
            batch.events.len() < events_max && batch.text.len() < limits::EVENTS_BYTES_MAX
        })?;
        Ok(batch)
    }

    /// Returns the event with this number, if it may be seen and its record is whole.
    pub fn event(&mut self, seq: u64) -> io::Result<Option<Event>> {
        let (start, end) = self.stretch(seq - 1);
        let mut found = None;
        self.each_record(start, end, seq - 1, |record| {
            found = record.event().filter(|_| record.seq == seq);
            false
        })?;
        Ok(found)
    }

    /// Shows every event that may be seen to `visit`.
    pub fn all(&mut self, mut visit: impl FnMut(&Record<'_>)) -> io::Result<()> {
        let end = lock(&self.view).end;
        self.each_record(0, end, 0, |record| {
            visit(record);
            true
        })
    }

    fn stretch(&self, after: u64) -> (u64, u64) {
        let view = lock(&self.view);
        if after >= view.seq {
            return (view.end, view.end);
        }
        let beyond = view.marks.partition_point(|(seq, _)| *seq <= after + 1);
        let mark = beyond.checked_sub(1).and_then(|index| view.marks.get(index));
        let mark = mark.map_or(0, |(_, at)| *at);
        let (seq, at) = self.reached;
        // What may be seen is never cut back.
        (if seq <= after { mark.max(at) } else { mark }, view.end)
    }

    /// Shows the records with rising numbers above `after` that are in a stretch of the file, as
    /// long as `visit` wants more.
    fn each_record(
        &mut self,
        start: u64,
        end: u64,
        after: u64,
        mut visit: impl FnMut(&Record<'_>) -> bool,
    ) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => match File::open(&self.path) {
                Ok(file) => self.file.insert(file),
                // It has been deleted: nothing is left to be seen.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            },
        };
        let mut lines = Forwards::new(start, end);
        let mut last = after;
        while let Some((line, place)) = lines.next(file)? {
            let Some(record) = next_record(line, last) else {
                continue;
            };
            last = record.seq;
            self.reached = (last, place + line.len() as u64 + 1);
            if !visit(&record) {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The record in `line`, if it can follow the one with number `last`.
///
/// A number that does not rise belongs to a record that was written twice, or to another file; one
/// that none can follow, to no journal.
fn next_record(line: &[u8], last: u64) -> Option<Record<'_>> {
    Record::read(line).filter(|record| record.seq > last && record.seq < u64::MAX)
}

/// Reads a journal through and shows each whole record with its place. Changes nothing.
pub fn examine(
    file: &File,
    path: &Path,
    mut visit: impl FnMut(&Record<'_>, u64, u64),
) -> Result<Findings, Error> {
    let length = file.metadata().at("inspect", path)?.len();
    let mut findings = Findings::default();
    let mut lines = Forwards::new(0, length);
    let (mut last_seq, mut doubtful, mut ended) = (0, 0, 0);
    while let Some((line, start)) = lines.next(file).at("read", path)? {
        ended = start + line.len() as u64 + 1;
        match next_record(line, last_seq) {
            Some(record) => {
                last_seq = record.seq;
                findings.records += 1;
                findings.damaged += std::mem::take(&mut doubtful);
                findings.sound_bytes = ended;
                visit(&record, start, findings.sound_bytes);
            }
            None => doubtful += 1,
        }
    }
    findings.torn_bytes = length - findings.sound_bytes;
    findings.spoilt_bytes = ended.saturating_sub(findings.sound_bytes);
    findings.spoilt = doubtful;
    Ok(findings)
}

/// Makes what is there durable, with its name.
fn settled(file: &File, directory: &Path, found: &Findings) -> Result<(), Error> {
    if found.records == 0 {
        return Ok(());
    }
    file.sync_data().at("sync", &directory.join(FILE_NAME))?;
    sync_names(directory)
}

/// Makes the names of a session's directory and of what is in it durable.
fn sync_names(directory: &Path) -> Result<(), Error> {
    sync_directory(directory)?;
    directory.parent().map_or(Ok(()), sync_directory)
}

/// Copies what is behind the last whole record to `journal.torn-N`, durably, then cuts it off.
fn set_aside(directory: &Path, file: &File, path: &Path, found: &Findings) -> Result<(), Error> {
    let (copy, copy_path) = torn_file(directory)?;
    copy_tail(file, path, found.sound_bytes, &copy, &copy_path).inspect_err(|_| {
        // Part of a copy is worth nothing, and the next attempt would leave another.
        drop(disk::remove(&copy_path));
    })?;
    sync_directory(directory)?;
    file.set_len(found.sound_bytes).at("repair", path)?;
    file.sync_all().at("sync", path)
}

fn copy_tail(
    file: &File,
    path: &Path,
    start: u64,
    mut copy: &File,
    copy_path: &Path,
) -> Result<(), Error> {
    let mut at = start;
    let mut buffer = vec![0_u8; READ_BYTES];
    loop {
        let count = read_at(file, &mut buffer, at).at("read", path)?;
        if count == 0 {
            break;
        }
        copy.write_all(buffer.get(..count).unwrap_or_default()).at("write", copy_path)?;
        at += count as u64;
    }
    copy.sync_all().at("sync", copy_path)
}

fn torn_file(directory: &Path) -> Result<(File, PathBuf), Error> {
    let mut number = 1_u32;
    loop {
        let path = directory.join(format!("journal.torn-{number}"));
        match File::options().write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            result => return Ok((result.at("create", &path)?, path)),
        }
    }
}

/// Makes the names in a directory durable.
pub fn sync_directory(directory: &Path) -> Result<(), Error> {
    let opened = File::open(directory).at("open", directory)?;
    opened.sync_all().at("sync", directory)
}
