//! What a model said before an event, repeated as a whole in the record of that event.
//!
//! A token takes about 200 bytes in a journal, so that most bytes of it are records of tokens. A
//! reader that goes back from the end of a journal reads this text instead of them. It is the first
//! member of the payload; clients get the payload without it, since they have the tokens.

use crate::protocol::event::{Event, EventKind};
use crate::{json, limits};

/// What a payload begins with that has such a text.
const OPENING: &str = "{\"said\":{\"from\":";

/// The number of an event, and the offset of its record.
pub(super) type Place = (u64, u64);

/// The records of text and thinking since the model was last asked.
#[derive(Default)]
pub(super) struct Run {
    /// The first of them.
    pub(super) first: Option<Place>,
    /// The first one of text.
    pub(super) text_first: Option<Place>,
    turn_id: String,
    text: String,
}

impl Run {
    /// Adds the event at `place`, or begins anew after it.
    pub(super) fn add(&mut self, event: &Event, place: Place) {
        self.pass(event.kind(), place);
        match event {
            Event::TurnToken(part) | Event::TurnThinking(part) => {
                if self.turn_id != part.turn_id {
                    self.turn_id.clone_from(&part.turn_id);
                }
                // More is not used.
                if event.kind() == EventKind::TurnToken
                    && self.text.len() <= limits::HISTORY_BYTES_MAX
                {
                    self.text.push_str(&part.text);
                }
            }
            // Its turn may still be in the queue.
            Event::TurnError(end) if end.turn_id == self.turn_id => *self = Run::default(),
            _ => {}
        }
    }

    /// The same without the text.
    pub(super) fn pass(&mut self, kind: EventKind, place: Place) {
        match kind {
            EventKind::TurnToken | EventKind::TurnThinking => {
                self.first.get_or_insert(place);
                if kind == EventKind::TurnToken {
                    self.text_first.get_or_insert(place);
                }
            }
            EventKind::TurnStart
            | EventKind::ToolStart
            | EventKind::ToolEnd
            | EventKind::TurnDone => *self = Run::default(),
            _ => {}
        }
    }

    /// Returns the payload of `event` with what was said before it, if the records of that, which
    /// end at `end`, are many and the event ends it.
    pub(super) fn payload_of(&self, event: &Event, end: u64) -> Option<String> {
        let ends = matches!(event, Event::ToolStart(_) | Event::TurnDone(_) | Event::TurnError(_));
        let (seq, start) = self.first?;
        if !ends
            || event.turn_id() != Some(&self.turn_id)
            || end - start < limits::SAID_RECORDS_BYTES_MIN
            || self.text.len() > limits::HISTORY_BYTES_MAX
        {
            return None;
        }
        let mut out = format!("{OPENING}{seq}");
        if let Some((seq, _)) = self.text_first {
            out.push_str(&format!(",\"begin\":{seq}"));
        }
        out.push_str(",\"text\":");
        json::quote(&self.text, &mut out);
        out.push_str("},");
        out.push_str(event.payload().strip_prefix('{')?);
        Some(out)
    }
}

/// What was said before an event, as its record has it.
pub(super) struct Said<'a> {
    /// The number of the first event of text or thinking.
    pub(super) from: u64,
    /// The number of the first one of text.
    pub(super) begin: Option<u64>,
    /// With escapes.
    text: &'a str,
}

impl Said<'_> {
    /// Reads it from the beginning of a payload. Returns the members after it, too.
    pub(super) fn read(payload: &str) -> Option<(Said<'_>, &str)> {
        let (numbers, rest) = payload.strip_prefix(OPENING)?.split_once(",\"text\":\"")?;
        let (from, begin) = match numbers.split_once(",\"begin\":") {
            Some((from, begin)) => (from, Some(begin.parse().ok()?)),
            None => (numbers, None),
        };
        let is_escaped = |quote: usize| {
            let before = rest.as_bytes().get(..quote).unwrap_or_default();
            before.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
        };
        let (end, _) = rest.match_indices('"').find(|(quote, _)| !is_escaped(*quote))?;
        let (text, rest) = rest.split_at_checked(end)?;
        let said = Said { from: from.parse().ok()?, begin, text };
        Some((said, rest.strip_prefix("\"},")?))
    }

    /// Appends the text to `out`. Returns `false`, and appends nothing, if it is not escaped as
    /// [`json::quote`] does.
    pub(super) fn append_to(&self, out: &mut String) -> bool {
        let before = out.len();
        let is_read = self.unescape(out).is_some();
        if !is_read {
            out.truncate(before);
        }
        is_read
    }

    fn unescape(&self, out: &mut String) -> Option<()> {
        out.reserve(self.text.len());
        let mut rest = self.text;
        while let Some((plain, escape)) = rest.split_once('\\') {
            out.push_str(plain);
            let mut after = escape.chars();
            match after.next()? {
                'n' => out.push('\n'),
                'r' => out.push('\r'),
                't' => out.push('\t'),
                'u' => {
                    let (digits, tail) = after.as_str().split_at_checked(4)?;
                    out.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
                    after = tail.chars();
                }
                same @ ('"' | '\\') => out.push(same),
                _ => return None,
            }
            rest = after.as_str();
        }
        out.push_str(rest);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::event::{TurnDone, TurnError, TurnStats, TurnText};

    fn said(payload: &str) -> Option<(u64, Option<u64>, String, String)> {
        let (said, rest) = Said::read(payload)?;
        let mut text = String::new();
        said.append_to(&mut text).then(|| (said.from, said.begin, text, rest.to_owned()))
    }

    fn done(turn_id: &str) -> Event {
        let (writer_id, client_id) = ("w".to_owned(), "c".to_owned());
        let (turn_id, stats) = (turn_id.to_owned(), TurnStats::default());
        Event::TurnDone(TurnDone { turn_id, writer_id, client_id, stats })
    }

    #[test]
    fn what_is_written_is_read_whatever_the_text() {
        for text in ["", "a", "\"", "\\", "\\\"},", "\n\t\r\u{1}\u{85}\u{2028}ü😀", "},\"text\":\""]
        {
            let mut run = Run::default();
            let part = TurnText { turn_id: "t".into(), text: text.to_owned() };
            run.add(&Event::TurnThinking(part.clone()), (7, 100));
            run.add(&Event::TurnToken(part.clone()), (8, 200));
            run.add(&Event::TurnToken(part), (9, 300));
            let end = 100 + limits::SAID_RECORDS_BYTES_MIN;
            assert!(run.payload_of(&done("t"), end - 1).is_none());
            assert!(run.payload_of(&done("other"), end).is_none());
            let payload = run.payload_of(&done("t"), end).unwrap();
            json::check(&payload).unwrap();
            let (from, begin, read, rest) = said(&payload).unwrap();
            assert_eq!((from, begin, read), (7, Some(8), text.repeat(2)));
            assert_eq!(format!("{{{rest}"), done("t").payload());
            run.add(&done("t"), (10, end));
            assert!(run.payload_of(&done("t"), u64::MAX).is_none());
        }
    }

    #[test]
    fn the_end_of_a_queued_turn_ends_nothing() {
        let mut run = Run::default();
        let part = TurnText { turn_id: "t".into(), text: "x".to_owned() };
        run.add(&Event::TurnThinking(part), (1, 0));
        let (writer_id, client_id) = ("w".to_owned(), "c".to_owned());
        let (code, message) = ("cancelled".to_owned(), String::new());
        let turn_id = "queued".to_owned();
        let end = TurnError { turn_id, writer_id, client_id, code, message };
        run.add(&Event::TurnError(end), (2, 200));
        let payload = run.payload_of(&done("t"), 1 << 20).unwrap();
        assert_eq!(said(&payload).unwrap().1, None);
    }

    #[test]
    fn other_payloads_have_none() {
        for payload in [
            "{}",
            r#"{"turnId":"t","said":{"from":1,"text":"x"},"a":1}"#,
            r#"{"said":{"from":-1,"text":"x"},"a":1}"#,
            r#"{"said":{"from":1,"text":"x\"},"a":1}"#,
            r#"{"said":{"from":1,"text":"\x"},"a":1}"#,
            r#"{"said":{"from":1,"text":"\ud83d"},"a":1}"#,
            r#"{"said":{"from":1,"text":"x"}}"#,
        ] {
            assert_eq!(said(payload), None, "{payload}");
        }
    }
}
