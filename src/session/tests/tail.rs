//! The end of a conversation is the same, read back from the journal's end as read from its
//! beginning.

use std::fs::File;
use std::path::Path;

use crate::json;
use crate::protocol::SessionSummary;
use crate::protocol::event::{Event, SessionConfig, SessionSnapshot, ToolEnd, ToolStart};
use crate::protocol::event::{TurnDone, TurnHead, TurnQueued, TurnStats, TurnText};
use crate::session::journal::{Durability, Journal};
use crate::session::reader::{FILE_NAME, scan};
use crate::session::record;
use crate::session::replay::{Conversation, Message};
use crate::session::tail::{self, Bounds};

use super::{Scratch, id};

/// Writes the records of a random session, some of them damaged.
struct Writer {
    random: fastrand::Rng,
    bytes: Vec<u8>,
    seq: u64,
    turns: usize,
    queued: Vec<String>,
    active: Option<String>,
}

impl Writer {
    fn new(seed: u64) -> Writer {
        let random = fastrand::Rng::with_seed(seed);
        let (bytes, queued) = (Vec::new(), Vec::new());
        Writer { random, bytes, seq: 0, turns: 0, queued, active: None }
    }

    /// Returns a text with and without escapes, mostly short, sometimes longer than an index entry.
    fn text(&mut self) -> String {
        let length = *self.random.choice(&[0, 1, 4, 9, 300, 5_000, 20_000, 90_000]).unwrap();
        let length = if self.random.u8(..12) == 0 { length } else { length.min(300) };
        let piece = *self.random.choice(&["x", "ü \"\\\n", "\u{1}😀", "plain "]).unwrap();
        piece.repeat(length / piece.len())
    }

    fn event(&mut self) -> Event {
        let turn_id = self.active.clone().unwrap_or_else(|| "none".to_owned());
        let id = format!("call_{}", self.seq);
        match self.random.u8(..12) {
            0 => {
                self.turns += 1;
                let turn_id = format!("turn_{}", self.turns);
                self.queued.push(turn_id.clone());
                let (queue_size, position) = (1, 0);
                let (content, mode, metadata) = (self.text(), None, None);
                let (writer_id, client_id) = ("w".to_owned(), "c".to_owned());
                Event::TurnQueued(TurnQueued {
                    turn_id,
                    writer_id,
                    client_id,
                    mode,
                    queue_size,
                    position,
                    metadata,
                    content,
                })
            }
            1 if !self.queued.is_empty() => {
                let turn_id = self.queued.remove(0);
                self.active = Some(turn_id.clone());
                let (writer_id, client_id) = ("w".to_owned(), "c".to_owned());
                Event::TurnStart(TurnHead { turn_id, writer_id, client_id, mode: "chat".into() })
            }
            2 => Event::ToolStart(ToolStart::new(
                &turn_id,
                &id,
                "t",
                &self.text(),
                json::Raw::empty(),
            )),
            3 => Event::ToolEnd(ToolEnd::new(&turn_id, &id, "t", &self.text(), 1, true)),
            4 | 5 => Event::TurnThinking(TurnText { turn_id, text: self.text() }),
            _ => Event::TurnToken(TurnText { turn_id, text: self.text() }),
        }
    }

    fn snapshot(&mut self) -> Event {
        let given = r#"{"systemPrompt":"own","messages":[{"role":"system","content":"brief"},
            {"role":"user","content":"hello"},{"role":"assistant","content":"well"}]}"#;
        let config = if self.random.bool() { given } else { "{}" };
        let config: SessionConfig = json::parse(config.as_bytes()).unwrap();
        Event::SessionSnapshot(SessionSnapshot::new(SessionSummary::default(), Some(config)).into())
    }

    /// Appends the record of an event, or what may be found in its place.
    fn write(&mut self, event: &Event) {
        self.seq += 1;
        let mut line = record::record(event, "daemon_x", self.seq, "2026-03-01T10:00:00.000Z");
        match self.random.u8(..60) {
            0 => {
                let position = self.random.usize(..line.len() - 1);
                *line.get_mut(position).unwrap() ^= 1;
            }
            1 => line.extend(line.clone()),
            2 => line = b"\0\0\0\n".to_vec(),
            // The records after it are those of another file.
            3 if self.random.u8(..10) == 0 => {
                line = record::record(event, "daemon_x", self.seq + 20, "then");
            }
            4 => line = record::record_of("of.tomorrow", "{}", "daemon_x", self.seq, "then"),
            _ => {}
        }
        self.bytes.extend(line);
    }
}

/// Returns the end of the conversation, read from the beginning of the journal.
fn read_forwards(path: &Path, bounds: Bounds) -> (Vec<Message>, Option<String>, bool) {
    let mut all = Conversation::default();
    let mut places: Vec<u64> = Vec::new();
    let file = File::open(path).unwrap();
    let report = scan(&file, path, |record, start, _| {
        all.apply_record(record);
        places.resize(all.messages.len(), start);
        true
    });
    let oldest = report.unwrap().valid_bytes.saturating_sub(bounds.journal);
    let is_user = |message: &Message| matches!(message, Message::User(_));
    let task = all.messages.iter().rposition(is_user);
    let begins = |from: usize| {
        let message = &all.messages[from];
        let lengths = all.messages.iter().enumerate().skip(from);
        let lengths = lengths.filter(|(position, _)| Some(*position) != task);
        let is_whole = oldest == 0 || from > 0 && places[from - 1] >= oldest;
        lengths.map(|(_, message)| message.len()).sum::<usize>() <= bounds.messages
            && places[from] >= oldest
            && !matches!(message, Message::Tool { .. })
            && (is_user(message) || is_whole)
    };
    let count = all.messages.len();
    let from = (0..count).find(|from| begins(*from)).unwrap_or(count);
    let given = all.messages[..from].iter().filter(|one| one.is_given_as("system"));
    let messages = given.chain(&all.messages[from..]).cloned().collect();
    (messages, all.system_prompt, from > 0)
}

fn read_back(journal: &Journal, bounds: Bounds) -> Conversation {
    let queued_at = |turn_id: &str| journal.state().queued_at(turn_id);
    tail::read(journal.reader(), journal.reader(), queued_at, bounds).unwrap()
}

#[test]
fn the_end_of_a_conversation_read_back_is_the_one_read_forwards() {
    let (mut cut, mut whole) = (0, 0);
    for seed in 0..14 {
        let scratch = Scratch::new();
        let mut writer = Writer::new(seed);
        let first = writer.snapshot();
        writer.write(&first);
        for _ in 0..writer.random.usize(1..300) {
            let event = writer.event();
            writer.write(&event);
        }
        let torn = writer.random.usize(..40).min(writer.bytes.len());
        writer.bytes.truncate(writer.bytes.len() - torn);
        let directory = scratch.session("s", &writer.bytes);
        let (mut journal, report) = Journal::open(&directory, &id("s"), "daemon_x").unwrap();
        if report.records == 0 {
            continue;
        }
        for round in 0..4 {
            let (of_messages, of_journal) = (writer.random.u8(4..26), writer.random.u8(10..26));
            let (messages, journal_bytes) = (1 << of_messages, 1 << of_journal);
            let bounds = Bounds { messages, journal: journal_bytes };
            let (messages, system_prompt, omitted) =
                read_forwards(&directory.join(FILE_NAME), bounds);
            let read = read_back(&journal, bounds);
            let what = format!(
                "seed {seed}, round {round}, {messages_max} and {journal_bytes}",
                messages_max = bounds.messages
            );
            assert!(
                read.messages == messages,
                "{what}: {:?} and {:?}",
                brief(&read.messages),
                brief(&messages)
            );
            assert_eq!(read.system_prompt, system_prompt, "{what}");
            assert!(read.omitted || !omitted, "{what}");
            *if omitted { &mut cut } else { &mut whole } += 1;
            let events: Vec<Event> = (0..20).map(|_| writer.event()).collect();
            journal.append(&events, Durability::Buffered).unwrap();
            // An answer of many tokens, as the daemon writes it.
            for _ in 0..writer.random.usize(1..120) {
                let turn_id = writer.active.clone().unwrap_or_else(|| "none".to_owned());
                let part = TurnText { turn_id, text: writer.text() };
                let event = match writer.random.u8(..20) {
                    0 => writer.event(),
                    1..6 => Event::TurnThinking(part),
                    _ => Event::TurnToken(part),
                };
                journal.append(&[event], Durability::Buffered).unwrap();
            }
            let turn_id = writer.active.take().unwrap_or_else(|| "none".to_owned());
            journal.append(&[done(&turn_id)], Durability::Buffered).unwrap();
            if writer.random.bool() {
                journal = Journal::open(&directory, &id("s"), "daemon_x").unwrap().0;
            }
        }
    }
    assert!(cut > 10 && whole > 2, "{cut} cut, {whole} whole");
}

fn done(turn_id: &str) -> Event {
    let (writer_id, client_id) = ("w".to_owned(), "c".to_owned());
    let (turn_id, stats) = (turn_id.to_owned(), TurnStats::default());
    Event::TurnDone(TurnDone { turn_id, writer_id, client_id, stats })
}

/// So their records are not read: they are most of a journal.
#[test]
fn the_text_of_many_tokens_is_read_from_the_record_of_the_end_of_their_turn() {
    let scratch = Scratch::new();
    let mut writer = Writer::new(0);
    let first = writer.snapshot();
    let directory = scratch.session("s", b"");
    let (mut journal, _) = Journal::open(&directory, &id("s"), "daemon_x").unwrap();
    journal.append(&[first], Durability::Buffered).unwrap();
    let mut told = String::new();
    for turn in 0..3 {
        for token in 0..200 {
            let text = format!("{token}\n");
            told.push_str(&text);
            let part = TurnText { turn_id: format!("t{turn}"), text };
            journal.append(&[Event::TurnToken(part)], Durability::Buffered).unwrap();
        }
        journal.append(&[done(&format!("t{turn}"))], Durability::Buffered).unwrap();
    }
    let path = directory.join(FILE_NAME);
    let reopened = Journal::open(&directory, &id("s"), "daemon_x").unwrap().0;
    let text = std::fs::read_to_string(&path).unwrap();
    // As long as before, and no records.
    super::put(&path, text.replace("\"turn.token\"", "\"turn.tokem\"").as_bytes());
    for journal in [journal, reopened] {
        let read = read_back(&journal, Bounds { messages: 1 << 20, journal: 1 << 26 });
        assert_eq!(read.messages.last(), Some(&Message::answer(told.clone())));
    }
}

fn brief(messages: &[Message]) -> Vec<(char, usize)> {
    let kind = |message: &Message| format!("{message:?}").chars().next().unwrap();
    messages.iter().map(|message| (kind(message), message.len())).collect()
}
