//! Reading journals: one that may be written to at the same time, and a whole file.
//!
//! Only valid records are ever read. Readers see what the writer has published, in order, each
//! event once.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use crate::error::{At, Error, Kind};
use crate::lines::Forwards;
use crate::mutex::lock;
use crate::protocol::SessionId;
use crate::protocol::event::{Event, EventKind};
use crate::protocol::socket::SessionDeleted;
use crate::{clock, disk, json, limits};

use super::record::{self, Record};
use super::said::{Place, Run};

/// The file in a session's directory.
pub const FILE_NAME: &str = "journal.jsonl";

/// The part of a journal that readers may see, and where it is in the file.
#[derive(Default)]
pub(super) struct Published {
    end: u64,
    seq: u64,
    /// The number and the offset of one record in each stretch of the file, in order.
    index: Vec<(u64, u64)>,
    /// The newest events, if they were read: each of many followers takes the same ones.
    recent: VecDeque<Arc<EventText>>,
    /// The number of the newest event that is too long for that.
    long: u64,
}

impl Published {
    /// Publishes the record that is in the file from `start` to `end`.
    pub(super) fn add(&mut self, seq: u64, start: u64, end: u64) {
        let last = self.index.last();
        if last.is_none_or(|(_, at)| start - at >= limits::INDEX_EVERY_BYTES) {
            self.index.push((seq, start));
        }
        if end - start > limits::RECENT_EVENT_BYTES_MAX as u64 {
            self.long = seq;
        }
        self.seq = seq;
        self.end = end;
    }

    /// Makes it possible to read from the beginnings of a run, and of the record at `after` with
    /// what was said in it.
    pub(super) fn mark(&mut self, run: &Run, after: Place) {
        for (seq, at) in [run.first, run.text_first, Some(after)].into_iter().flatten() {
            let position = self.index.partition_point(|(_, before)| *before < at);
            if self.index.get(position).is_none_or(|(_, found)| *found != at) {
                self.index.insert(position, (seq, at));
            }
        }
    }
}

/// A reader of a journal that the daemon may be writing.
pub struct Reader {
    path: PathBuf,
    id: Arc<SessionId>,
    published: Arc<Mutex<Published>>,
    file: Option<File>,
    /// The number of the event that was read last, and the offset of the end of its record.
    position: (u64, u64),
}

/// A part of a journal that begins with a record.
pub(super) struct Stretch {
    /// A number below that of the first event, and not below that of the event before it.
    after: u64,
    pub(super) start: u64,
    end: u64,
}

/// The envelope of an event, and what is derived from it once for all followers.
#[derive(Debug)]
pub struct EventText {
    pub seq: u64,
    /// `None`: this version does not know the event.
    pub kind: Option<EventKind>,
    pub text: String,
    with_aliases: OnceLock<String>,
    written_at: OnceLock<Option<i64>>,
    turn_id: OnceLock<Option<String>>,
    /// The `session.updated` that WebSockets send after it.
    pub update: OnceLock<String>,
}

impl EventText {
    fn new(seq: u64, kind: Option<EventKind>, text: String) -> EventText {
        EventText {
            seq,
            kind,
            text,
            with_aliases: OnceLock::new(),
            written_at: OnceLock::new(),
            turn_id: OnceLock::new(),
            update: OnceLock::new(),
        }
    }

    /// Returns what tells followers of all sessions that one was deleted. It is no event of the
    /// session, so it has no number.
    pub fn deleted(id: &SessionId) -> EventText {
        let (event, session_id) = ("session.deleted".to_owned(), id.as_str().to_owned());
        let text = json::text(&SessionDeleted { event, session_id });
        EventText::new(0, None, text)
    }

    /// Returns the envelope with the names that older clients know.
    pub fn with_aliases(&self) -> &str {
        self.with_aliases.get_or_init(|| record::with_aliases(&self.text, self.kind))
    }

    /// Returns when the event was written, in milliseconds since 1970.
    pub fn written_at(&self) -> Option<i64> {
        *self.written_at.get_or_init(|| {
            let (_, rest) = self.text.split_once(",\"ts\":\"")?;
            clock::parse_rfc3339(rest.split_once('"')?.0)
        })
    }

    /// Returns the id of the turn that the event is about.
    pub fn turn_id(&self) -> Option<&str> {
        let find = || {
            let (_, payload) = self.text.split_once(",\"payload\":")?;
            // Most payloads begin with it, and long ones are not shared.
            let first =
                payload.strip_prefix("{\"turnId\":\"").and_then(|rest| rest.split_once('"'));
            if let Some((id, _)) = first.filter(|(id, _)| !id.contains('\\')) {
                return Some(id.to_owned());
            }
            let members = json::members(payload.strip_suffix('}')?)?;
            let member = members.iter().rev().find(|member| member.name == "turnId")?;
            member.string().map(Cow::into_owned)
        };
        self.turn_id.get_or_init(find).as_deref()
    }

    /// Returns the id of its session.
    pub fn session_id(&self) -> Option<&str> {
        let (_, rest) = self.text.split_once(",\"sessionId\":\"")?;
        rest.split_once('"').map(|(id, _)| id)
    }
}

/// The envelopes of consecutive events.
pub type Envelopes = Vec<Arc<EventText>>;

impl Reader {
    pub(super) fn new(path: PathBuf, id: SessionId, published: Arc<Mutex<Published>>) -> Reader {
        Reader { path, id: Arc::new(id), published, file: None, position: (0, 0) }
    }

    /// Returns the number of the last published event.
    pub fn last_seq(&self) -> u64 {
        lock(&self.published).seq
    }

    /// Returns whether each event after number `after` is short enough to be shared by followers.
    pub fn is_short_after(&self, after: u64) -> bool {
        lock(&self.published).long <= after
    }

    /// Returns the events after number `after`: at most `events_max` of them and about `bytes_max`
    /// bytes, at least one if there is one. Reads no more of the file than
    /// these and part of one stretch of the index; not even that if it continues where it was.
    pub fn after(
        &mut self,
        after: u64,
        events_max: usize,
        bytes_max: usize,
    ) -> io::Result<Envelopes> {
        let (mut envelopes, mut bytes) = (self.recent_after(after, events_max), 0);
        if events_max == 0 || !envelopes.is_empty() {
            return Ok(envelopes);
        }
        let id = Arc::clone(&self.id);
        self.visit_after(after, |record| {
            let text = record.envelope(id.as_str());
            bytes += text.len();
            envelopes.push(Arc::new(EventText::new(record.seq, record.kind, text)));
            envelopes.len() < events_max && bytes < bytes_max
        })?;
        self.share(&envelopes);
        Ok(envelopes)
    }

    /// Returns the events after number `after`, if another follower has read all of them.
    fn recent_after(&self, after: u64, events_max: usize) -> Envelopes {
        let published = lock(&self.published);
        if published.recent.back().is_none_or(|newest| newest.seq != published.seq) {
            return Vec::new();
        }
        let recent = published.recent.iter().skip_while(|event| event.seq <= after);
        match recent.clone().next() {
            Some(next) if next.seq == after + 1 => recent.take(events_max).cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// Keeps the newest events for other followers, if there are some.
    fn share(&self, envelopes: &[Arc<EventText>]) {
        // One belongs to the journal, and one to this reader.
        if Arc::strong_count(&self.published) <= 2 {
            return;
        }
        let mut published = lock(&self.published);
        let newest = envelopes.len().saturating_sub(limits::RECENT_EVENTS_MAX);
        for event in envelopes.iter().skip(newest) {
            if published.recent.back().is_some_and(|last| last.seq + 1 != event.seq) {
                published.recent.clear();
            }
            if event.text.len() <= limits::RECENT_EVENT_BYTES_MAX {
                published.recent.push_back(Arc::clone(event));
            }
        }
        let excess = published.recent.len().saturating_sub(limits::RECENT_EVENTS_MAX);
        published.recent.drain(..excess);
    }

    /// Returns event number `seq`; `None` if its record is damaged or this version does not know
    /// it.
    pub fn event(&mut self, seq: u64) -> io::Result<Option<Event>> {
        let mut event = None;
        self.visit_after(seq - 1, |record| {
            event = record.event().filter(|_| record.seq == seq);
            false
        })?;
        Ok(event)
    }

    /// Returns the end of the published part of the file.
    pub(super) fn end(&self) -> u64 {
        lock(&self.published).end
    }

    /// Returns a function that returns the offset of the record of an event, if reading can begin
    /// there.
    pub(super) fn marks(&self) -> impl Fn(u64) -> Option<u64> + use<> {
        let published = Arc::clone(&self.published);
        move |seq| {
            let published = lock(&published);
            let position = published.index.partition_point(|(before, _)| *before < seq);
            published.index.get(position).filter(|(found, _)| *found == seq).map(|(_, at)| *at)
        }
    }

    /// Passes the first event to `visit`.
    pub(super) fn first(&mut self, mut visit: impl FnMut(&Record<'_>)) -> io::Result<()> {
        self.visit_after(0, |record| {
            visit(record);
            false
        })
    }

    /// Passes every published event to `visit`.
    pub fn all(&mut self, mut visit: impl FnMut(&Record<'_>)) -> io::Result<()> {
        self.visit_after(0, |record| {
            visit(record);
            true
        })
    }

    /// Passes the events after number `after` to `visit` until it returns `false`.
    fn visit_after(
        &mut self,
        after: u64,
        mut visit: impl FnMut(&Record<'_>) -> bool,
    ) -> io::Result<()> {
        let (start, end) = self.range_after(after);
        let stretch = Stretch { after, start, end };
        self.visit(&stretch, &mut Forwards::default(), |record, _| visit(record))
    }

    /// Returns the stretch of the journal that ends where the one that starts at `before` does: the
    /// last one, if `before` is beyond the end.
    pub(super) fn stretch_before(&self, before: u64) -> Option<Stretch> {
        let published = lock(&self.published);
        let later = published.index.partition_point(|(_, at)| *at < before);
        let (seq, start) = *published.index.get(later.checked_sub(1)?)?;
        Some(Stretch { after: seq - 1, start, end: before.min(published.end) })
    }

    /// Passes the events in a stretch, each with the offset of its record, to `visit` until it
    /// returns `false`. Reads into the memory of `lines`.
    pub(super) fn visit(
        &mut self,
        stretch: &Stretch,
        lines: &mut Forwards,
        mut visit: impl FnMut(&Record<'_>, u64) -> bool,
    ) -> io::Result<()> {
        let Stretch { after, start, end } = *stretch;
        if start == end {
            return Ok(());
        }
        let file = match &self.file {
            Some(file) => file,
            None => match disk::if_exists(File::open(&self.path))? {
                Some(file) => self.file.insert(file),
                // The session was deleted.
                None => return Ok(()),
            },
        };
        lines.restart(start, end);
        let mut last = after;
        while let Some((line, offset)) = lines.next(file)? {
            let Some(record) = next_record(line, last) else {
                continue;
            };
            last = record.seq;
            self.position = (last, offset + line.len() as u64 + 1);
            if !visit(&record, offset) {
                break;
            }
        }
        Ok(())
    }

    /// Returns a range of the file in which all published events after number `after` are.
    fn range_after(&self, after: u64) -> (u64, u64) {
        let published = lock(&self.published);
        if after >= published.seq {
            return (published.end, published.end);
        }
        let later = published.index.partition_point(|(seq, _)| *seq <= after + 1);
        let indexed = later.checked_sub(1).and_then(|entry| published.index.get(entry));
        let indexed = indexed.map_or(0, |(_, at)| *at);
        let (seq, at) = self.position;
        // Published events are never cut off.
        (if seq <= after { indexed.max(at) } else { indexed }, published.end)
    }
}

/// Reads the record in `line` if it can follow the one with number `last`.
///
/// A number that does not increase belongs to a record that was written twice, or to another file;
/// one that clients cannot read, to no journal. An editor may have changed the ends of the lines.
fn next_record(line: &[u8], last: u64) -> Option<Record<'_>> {
    let record = Record::read(line.strip_suffix(b"\r").unwrap_or(line));
    record.filter(|record| record.seq > last && record.seq <= limits::SEQ_MAX)
}

/// The parts of a whole journal.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct JournalReport {
    /// Valid records.
    pub records: u64,
    /// Lines before the last valid record that are not records.
    pub damaged: u64,
    /// Bytes after the last valid record.
    pub torn_bytes: u64,
    /// Lines among the torn bytes that have a line end. A crash cuts the end of a line off, so
    /// these were complete once, and may have been acknowledged.
    pub invalid_lines: u64,
    /// The bytes of these lines.
    pub invalid_bytes: u64,
    /// Bytes up to the end of the last valid record.
    pub valid_bytes: u64,
    /// Bytes that the session's summary counted and that the journal no longer has.
    pub missing_bytes: u64,
}

impl JournalReport {
    /// Adds what is missing if the session's summary was made of a journal of `bytes` bytes.
    /// Summaries are older than their journals, never newer.
    #[must_use]
    pub fn compared_to(mut self, bytes: u64) -> JournalReport {
        self.missing_bytes = bytes.saturating_sub(self.valid_bytes + self.torn_bytes);
        self
    }

    /// Returns the report if there is a valid record.
    ///
    /// # Errors
    /// [`Kind::SessionDamaged`].
    pub fn require_records(self, id: &SessionId) -> Result<JournalReport, Error> {
        let reason = match (self.records, self.torn_bytes) {
            (0, 0) => "its journal is empty or missing",
            (0, _) => "no record of its journal is whole",
            _ => return Ok(self),
        };
        let action = format!("read the session {}", id.as_str());
        let next_step = format!("to see what is wrong: opta sessions verify {}", id.as_str());
        Err(Error::cannot(Kind::SessionDamaged, action, reason).with_next_step(next_step))
    }

    /// Returns the number of lines that were records once.
    pub fn lost(&self) -> u64 {
        self.damaged + self.invalid_lines
    }

    /// Returns the length of the record that was not written completely.
    pub fn incomplete_bytes(&self) -> u64 {
        self.torn_bytes - self.invalid_bytes
    }

    /// Returns whether something is lost, even if the daemon is writing the journal now.
    pub fn is_damaged(&self) -> bool {
        self.lost() > 0 || self.missing_bytes > 0
    }
}

/// Reads a whole journal and passes each valid record with its range in the file to `visit`. Fails
/// if that returns `false`. Changes nothing.
pub fn scan(
    file: &File,
    path: &Path,
    mut visit: impl FnMut(&Record<'_>, u64, u64) -> bool,
) -> Result<JournalReport, Error> {
    let length = file.metadata().at("inspect", path)?.len();
    let mut report = JournalReport::default();
    let mut lines = Forwards::new(0, length, usize::MAX);
    let (mut last_seq, mut invalid_lines, mut lines_end) = (0, 0, 0);
    while let Some((line, start)) = lines.next(file).at("read", path)? {
        lines_end = start + line.len() as u64 + 1;
        match next_record(line, last_seq) {
            Some(record) => {
                last_seq = record.seq;
                report.records += 1;
                report.damaged += std::mem::take(&mut invalid_lines);
                report.valid_bytes = lines_end;
                if !visit(&record, start, lines_end) {
                    return Err(io::Error::from(io::ErrorKind::Interrupted)).at("read", path);
                }
            }
            None => invalid_lines += 1,
        }
    }
    report.torn_bytes = length - report.valid_bytes;
    report.invalid_bytes = lines_end.saturating_sub(report.valid_bytes);
    report.invalid_lines = invalid_lines;
    Ok(report)
}
