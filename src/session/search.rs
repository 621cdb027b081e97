//! The search for a regular expression in the text of all sessions: messages, answers, tool calls
//! and their results, line by line.
//!
//! At any time, one message of one session is in memory.

use std::ops::ControlFlow;

use regex::bytes::{Regex, RegexBuilder};

use crate::error::Error;
use crate::limits;
use crate::protocol::SessionId;
use crate::protocol::event::{Event, EventKind};

use super::reader::JournalReport;
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

/// What a search comes upon in a session.
pub enum SearchResult<'a> {
    Line(MatchingLine<'a>),
    /// The end of the session, with what is missing of it, or why it cannot be read.
    End(Result<JournalReport, Error>),
}

/// Compiles a regular expression that is matched against lines. Fails with the reason.
pub fn compile(pattern: &str, ignore_case: bool) -> Result<Regex, String> {
    if pattern.len() > limits::PATTERN_BYTES_MAX {
        return Err(format!("the pattern is longer than {} bytes", limits::PATTERN_BYTES_MAX));
    }
    let mut builder = RegexBuilder::new(pattern);
    builder.multi_line(true).crlf(true).case_insensitive(ignore_case);
    builder.size_limit(limits::REGEX_BYTES_MAX).dfa_size_limit(limits::REGEX_BYTES_MAX);
    builder.build().map_err(|error| error.to_string())
}

/// Searches all sessions, newest first, without the daemon: calls `visit` with each line that
/// matches and with the end of each session, until it returns a break.
pub fn search<B>(
    store: &Store,
    regex: &Regex,
    mut visit: impl FnMut(&SessionId, SearchResult<'_>) -> ControlFlow<B>,
) -> Result<ControlFlow<B>, Error> {
    for id in store.page(None, usize::MAX)?.ids {
        let mut flow = ControlFlow::Continue(());
        let end = visit_lines(store, &id, &mut |line| {
            if flow.is_continue() && regex.is_match(line.text.as_bytes()) {
                flow = visit(&id, SearchResult::Line(line));
            }
        });
        if flow.is_continue() {
            flow = visit(&id, SearchResult::End(end));
        }
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Calls `visit` with every line of a session.
fn visit_lines(
    store: &Store,
    id: &SessionId,
    visit: &mut impl FnMut(MatchingLine<'_>),
) -> Result<JournalReport, Error> {
    let mut conversation = Conversation::default();
    // When the last message began.
    let mut last_ts = String::new();
    let report = store.scan(id, |record| {
        if record.kind == Some(EventKind::TurnQueued)
            && let Some(Event::TurnQueued(queued)) = record.event()
        {
            // Not when its turn starts: up to then it would be kept in memory.
            visit_message(&Message::User(queued.content), record.ts, visit);
            return;
        }
        let known = conversation.messages.len();
        conversation.apply_record(record);
        let messages = conversation.messages.len();
        let complete = match record.kind {
            Some(EventKind::TurnDone | EventKind::TurnError) => messages,
            _ if messages > known => messages - 1,
            _ => 0,
        };
        for (index, message) in conversation.messages.drain(..complete).enumerate() {
            let ts = if index < known { &last_ts } else { record.ts };
            visit_message(&message, ts, visit);
        }
        if messages > known {
            record.ts.clone_into(&mut last_ts);
        }
    })?;
    conversation.messages.iter().for_each(|message| visit_message(message, &last_ts, visit));
    report.require_records(id)
}

fn visit_message(message: &Message, ts: &str, visit: &mut impl FnMut(MatchingLine<'_>)) {
    let (role, text, calls) = content_of(message);
    text.lines().for_each(|text| visit(MatchingLine { ts, role: &role, text }));
    for call in calls {
        visit(MatchingLine {
            ts,
            role: &role,
            text: &format!("> {} {}", call.name, call.arguments),
        });
    }
}
