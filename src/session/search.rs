//! The search for a regular expression in the text of a session: messages, answers, tool calls and
//! their results, line by line.
//!
//! At any time, one message is in memory.

use std::ops::ControlFlow;

use regex::bytes::Regex;

use crate::error::Error;
use crate::limits;
use crate::protocol::SessionId;
use crate::protocol::event::{Event, EventKind};

use super::reader::JournalReport;
use super::record::Record;
use super::replay::{Conversation, Message};
use super::store::Store;
use super::transcript::content_of;

/// A line that matches.
pub struct MatchingLine<'a> {
    /// When its message began, as the journal has it.
    pub ts: &'a str,
    /// The role of its author; `tool` for a result.
    pub role: &'a str,
    /// Without its end.
    pub text: &'a str,
}

/// Searches a session, without the daemon: calls `visit` with each line that matches, until it
/// returns a break. Stops soon after `goes_on` returns `false`, too. Returns what is missing of the
/// session; `None` if it was not searched to its end.
pub fn search(
    store: &Store,
    id: &SessionId,
    regex: &Regex,
    goes_on: &dyn Fn() -> bool,
    visit: &mut dyn FnMut(&MatchingLine<'_>) -> ControlFlow<()>,
) -> Result<Option<JournalReport>, Error> {
    let mut messages = Messages::default();
    let visit = &mut |line: MatchingLine<'_>| match regex.is_match(line.text.as_bytes()) {
        true => visit(&line),
        false => ControlFlow::Continue(()),
    };
    let mut flow = ControlFlow::Continue(());
    let scanned = store.scan_while(id, |record| {
        flow = messages.read(record, visit);
        if record.seq.is_multiple_of(limits::SEARCH_RECORDS) && !goes_on() {
            flow = ControlFlow::Break(());
        }
        flow.is_continue()
    });
    if flow.is_break() {
        return Ok(None);
    }
    let report = scanned?.require_records(id)?;
    let mut rest = messages.conversation.messages.iter();
    let flow = rest.try_for_each(|message| visit_message(message, &messages.last_ts, visit));
    Ok(flow.is_continue().then_some(report))
}

/// The messages of a session that are not complete.
#[derive(Default)]
struct Messages {
    conversation: Conversation,
    /// When the last one began.
    last_ts: String,
}

impl Messages {
    /// Reads a record, and passes the lines of the messages that it completes to `visit`.
    fn read(
        &mut self,
        record: &Record<'_>,
        visit: &mut dyn FnMut(MatchingLine<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if record.kind == Some(EventKind::TurnQueued)
            && let Some(Event::TurnQueued(queued)) = record.event()
        {
            // Not when its turn starts: up to then it would be kept in memory.
            return visit_message(&Message::User(queued.content), record.ts, visit);
        }
        let known = self.conversation.messages.len();
        self.conversation.apply_record(record);
        let messages = self.conversation.messages.len();
        let complete = match record.kind {
            Some(EventKind::TurnDone | EventKind::TurnError) => messages,
            _ if messages > known => messages - 1,
            _ => 0,
        };
        let mut completed = self.conversation.messages.drain(..complete).enumerate();
        completed.try_for_each(|(index, message)| {
            let ts = if index < known { &self.last_ts } else { record.ts };
            visit_message(&message, ts, visit)
        })?;
        drop(completed);
        if messages > known {
            record.ts.clone_into(&mut self.last_ts);
        }
        ControlFlow::Continue(())
    }
}

fn visit_message(
    message: &Message,
    ts: &str,
    visit: &mut dyn FnMut(MatchingLine<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let (role, text, calls) = content_of(message);
    text.lines().try_for_each(|text| visit(MatchingLine { ts, role: &role, text }))?;
    calls.iter().try_for_each(|call| {
        let text = &format!("> {} {}", call.name, call.arguments);
        visit(MatchingLine { ts, role: &role, text })
    })
}
