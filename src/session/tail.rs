//! The end of a conversation, read back from the end of the journal.
//!
//! The messages are the last ones of the whole conversation. What they cost is bounded by what a
//! model is sent, not by the length of the journal or by the turns that wait in the queue.

use std::{io, mem};

use crate::limits;
use crate::lines::Forwards;
use crate::protocol::event::{Event, EventKind};

use super::reader::{Reader, Stretch};
use super::record::Record;
use super::replay::{Conversation, Message};
use super::said::Said;

/// How much is read.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes of the messages, except for the task, which is the last one of the user.
    pub(super) messages: usize,
    /// Bytes of the journal.
    pub(super) journal: u64,
}

impl Bounds {
    /// The part of a conversation that a model is sent.
    pub(super) const HISTORY: Bounds =
        Bounds { messages: limits::HISTORY_BYTES_MAX, journal: limits::HISTORY_JOURNAL_BYTES_MAX };
}

/// A longer input of a turn is read only if the turn has started.
const INPUT_BYTES_MAX: usize = 64 * 1024;

/// A message, or the part of one that is in one stretch of the journal.
struct Placed {
    message: Message,
    /// The offset of its first record.
    at: u64,
    /// The number of the event that has the input of the turn, if it is not in the message yet.
    input: Option<u64>,
}

/// The messages that were read, the last one first.
struct Tail<Q> {
    messages: Vec<Placed>,
    /// The bytes of all messages but the task.
    bytes: usize,
    bytes_max: usize,
    has_task: bool,
    /// The session's own system prompt, if its event was read.
    system_prompt: Option<Option<String>>,
    /// The memory that the journal is read into.
    lines: Forwards,
    /// Reads the inputs of turns that were queued in another stretch.
    inputs: Reader,
    /// Returns the number of the `turn.queued` event of a turn.
    queued_at: Q,
}

/// Reads the last messages of a conversation within `bounds`.
///
/// They begin with an answer or with a message of the user, and with the beginning of a turn if it
/// is the journal's bound that ends them. Of what was before, only system messages are returned.
pub(super) fn read(
    mut reader: Reader,
    inputs: Reader,
    queued_at: impl Fn(&str) -> Option<u64>,
    bounds: Bounds,
) -> io::Result<Conversation> {
    let mut tail = Tail {
        messages: Vec::new(),
        bytes: 0,
        bytes_max: bounds.messages,
        has_task: false,
        system_prompt: None,
        lines: Forwards::default(),
        inputs,
        queued_at,
    };
    let oldest = reader.end().saturating_sub(bounds.journal);
    let mut before = u64::MAX;
    while tail.bytes <= bounds.messages
        && before >= oldest
        && let Some(stretch) = reader.stretch_before(before)
    {
        before = tail.read_stretch(&mut reader, &stretch)?;
    }
    let is_whole = reader.stretch_before(before).is_none();
    let mut conversation = if is_whole { Conversation::default() } else { beginning(&mut reader)? };
    if let Some(system_prompt) = tail.system_prompt.take() {
        conversation.system_prompt = system_prompt;
    }
    let messages = merged(tail.messages);
    let cut = cut(&messages, bounds.messages, oldest);
    conversation.omitted = !is_whole || cut > 0;
    let messages = messages.into_iter().enumerate();
    let kept = messages
        .filter(|(position, placed)| *position >= cut || placed.message.is_given_as("system"));
    conversation.messages.extend(kept.map(|(_, placed)| placed.message));
    Ok(conversation)
}

impl<Q: Fn(&str) -> Option<u64>> Tail<Q> {
    /// Adds the messages of a stretch of the journal. Returns the offset of its beginning, or of
    /// the beginning of the records whose text the first record of the stretch repeats.
    fn read_stretch(&mut self, reader: &mut Reader, stretch: &Stretch) -> io::Result<u64> {
        let mut part = Conversation::default();
        let mut places: Vec<(u64, Option<u64>)> = Vec::new();
        let mut before = stretch.start;
        let marked = reader.marks();
        let mut lines = mem::take(&mut self.lines);
        reader.visit(stretch, &mut lines, |record, at| {
            let said = if at == stretch.start { record.said() } else { None };
            if let Some(from) = said.and_then(|said| say(&said, &marked, &mut part, &mut places)) {
                before = from;
            }
            let input = self.apply(&mut part, record);
            places.resize(part.messages.len(), (at, input));
            true
        })?;
        self.lines = lines;
        let messages = part.messages.into_iter().zip(places);
        for (message, (at, input)) in messages.rev() {
            self.add(Placed { message, at, input })?;
        }
        Ok(before)
    }

    /// Applies the event in a record. Returns the number of the event with the input of the turn
    /// that it starts, if that is not in this stretch: then the new message is empty.
    fn apply(&mut self, part: &mut Conversation, record: &Record<'_>) -> Option<u64> {
        match record.kind {
            // A turn that still waits: there may be many, and long ones.
            Some(EventKind::TurnQueued) if record.payload.len() > INPUT_BYTES_MAX => None,
            Some(EventKind::TurnStart) => {
                let [turn_id] = record.texts(["turnId"])?;
                let input = part.take_queued(&turn_id);
                let is_missing = input.is_none();
                let queued_at = is_missing.then(|| (self.queued_at)(&turn_id)).flatten();
                let queued_at = queued_at.filter(|seq| *seq < record.seq);
                part.start(input.or_else(|| queued_at.map(|_| String::new())));
                queued_at
            }
            Some(EventKind::SessionSnapshot) if record.seq == 1 => {
                part.apply_record(record);
                self.system_prompt.get_or_insert_with(|| part.system_prompt.clone());
                None
            }
            _ => {
                part.apply_record(record);
                None
            }
        }
    }

    /// Adds the message before those that were added. Reads the input of its turn, unless there
    /// are more messages already than are returned.
    fn add(&mut self, mut placed: Placed) -> io::Result<()> {
        if let Some(seq) = placed.input.filter(|_| self.bytes <= self.bytes_max) {
            let Some(Event::TurnQueued(queued)) = self.inputs.event(seq)? else { return Ok(()) };
            placed.message = Message::User(queued.content);
        }
        let is_task = !self.has_task && matches!(placed.message, Message::User(_));
        self.has_task |= is_task;
        self.bytes += if is_task { 0 } else { placed.message.len() };
        self.messages.push(placed);
        Ok(())
    }
}

/// Adds what was said to the messages and their places. Returns the offset of its first record;
/// `None`, and adds nothing, if the records have to be read.
fn say(
    said: &Said<'_>,
    marked: impl Fn(u64) -> Option<u64>,
    part: &mut Conversation,
    places: &mut Vec<(u64, Option<u64>)>,
) -> Option<u64> {
    let from = marked(said.from)?;
    if let Some(begin) = said.begin {
        let begin = marked(begin)?;
        let mut text = String::new();
        said.append_to(&mut text).then(|| part.messages.push(Message::answer(text)))?;
        places.push((begin, None));
    }
    Some(from)
}

/// Returns what is always sent of the beginning of a conversation.
fn beginning(reader: &mut Reader) -> io::Result<Conversation> {
    let mut conversation = Conversation::default();
    reader.first(|record| {
        if record.kind == Some(EventKind::SessionSnapshot) {
            conversation.apply_record(record);
        }
    })?;
    conversation.messages.retain(|message| message.is_given_as("system"));
    Ok(conversation)
}

/// Returns whole messages, the last one last.
fn merged(parts: Vec<Placed>) -> Vec<Placed> {
    let mut messages: Vec<Placed> = Vec::new();
    for mut next in parts.into_iter().rev() {
        if let Message::Assistant { text, calls, .. } = &mut next.message
            && let Some(Message::Assistant { text: before, calls: calls_before, .. }) =
                messages.last_mut().map(|last| &mut last.message)
        {
            before.push_str(text);
            calls_before.append(calls);
        } else {
            messages.push(next);
        }
    }
    messages
}

/// Returns the position of the first message that is returned.
fn cut(messages: &[Placed], bytes_max: usize, oldest: u64) -> usize {
    let is_user = |placed: &Placed| matches!(placed.message, Message::User(_));
    let task = messages.iter().rposition(is_user);
    let mut bytes = 0;
    let too_many = messages.iter().enumerate().rposition(|(position, placed)| {
        bytes += if task == Some(position) { 0 } else { placed.message.len() };
        bytes > bytes_max
    });
    let fitting = too_many.map_or(0, |position| position + 1);
    // In front of it is a whole message, so that it is whole itself.
    let is_whole = |position: usize| {
        let before = position.checked_sub(1).and_then(|before| messages.get(before));
        oldest == 0 || before.is_some_and(|before| before.at >= oldest)
    };
    let begins = messages.iter().enumerate().skip(fitting).position(|(position, placed)| {
        let is_result = matches!(placed.message, Message::Tool { .. });
        placed.at >= oldest && !is_result && (is_user(placed) || is_whole(position))
    });
    begins.map_or(messages.len(), |skipped| fitting + skipped)
}
