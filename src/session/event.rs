//! One numbered fact of a session: the envelope that every channel carries, and the record that the
//! journal keeps of it. Pure.
//!
//! A record is the envelope with its checksum as the last field, one line, so that `jq` reads it:
//! `{"v":"3","event":…,"seq":42,…,"payload":{…},"crc":"xxxxxxxx"}`. The checksum is CRC-32C over
//! the bytes before `,"crc"`. The fields stand in this order and without blanks, as they are
//! written here. The session's name is not among them, since all of a journal is of one session:
//! most events are tokens, and their records little else than names.

use crate::json;
use crate::protocol::event::{Event, EventKind};

use super::crc::crc32c;

/// `,"crc":"xxxxxxxx"}`: what a record has in place of the envelope's last brace.
const SEAL_BYTES: usize = 18;

/// Returns the record of an event that the daemon `daemon_id` writes, with its line end.
pub fn record(event: &Event, daemon_id: &str, seq: u64, ts: &str) -> Vec<u8> {
    record_of(event.kind().name(), &event.payload(), daemon_id, seq, ts)
}

/// Returns the record of any event. `payload` is a JSON object.
pub fn record_of(name: &str, payload: &str, daemon_id: &str, seq: u64, ts: &str) -> Vec<u8> {
    let mut text = String::with_capacity(payload.len() + 256);
    text.push_str("{\"v\":\"3\",\"event\":");
    json::quote(name, &mut text);
    text.push_str(",\"daemonId\":");
    json::quote(daemon_id, &mut text);
    text.push_str(&format!(",\"seq\":{seq},\"ts\":\"{ts}\",\"payload\":"));
    text.push_str(payload);
    let crc = crc32c(text.as_bytes());
    text.push_str(&format!(",\"crc\":\"{crc:08x}\"}}\n"));
    text.into_bytes()
}

/// A record that has been read and found whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The envelope up to the name of the session, and behind it but for the closing brace.
    parts: (&'a str, &'a str),
    /// `None`: this version does not know the event.
    pub kind: Option<EventKind>,
    pub seq: u64,
    pub ts: &'a str,
    /// A JSON object.
    pub payload: &'a str,
}

impl<'a> Record<'a> {
    /// The record in `line`, which has no line end; `None` if it is not whole.
    pub fn read(line: &'a [u8]) -> Option<Record<'a>> {
        let (body, seal) = line.split_at_checked(line.len().checked_sub(SEAL_BYTES)?)?;
        let digits = seal.strip_prefix(b",\"crc\":\"")?.strip_suffix(b"\"}")?;
        // Compared as written: there is one spelling of a checksum.
        if format!("{:08x}", crc32c(body)).as_bytes() != digits {
            return None;
        }
        // Whole, so written by `record`: its fields are where that function puts them.
        Record::fields(std::str::from_utf8(body).ok()?)
    }

    fn fields(text: &'a str) -> Option<Record<'a>> {
        let parts = text.split_at(text.find(",\"seq\":")?);
        let names = parts.0.strip_prefix("{\"v\":\"3\",\"event\":\"")?;
        let (name, _) = names.split_once("\",\"daemonId\":\"")?;
        let (seq, rest) = parts.1.strip_prefix(",\"seq\":")?.split_once(",\"ts\":\"")?;
        let (ts, payload) = rest.split_once("\",\"payload\":")?;
        let kind = EventKind::named(name);
        Some(Record { parts, kind, seq: seq.parse().ok()?, ts, payload })
    }

    /// Decodes the event; `None` if this version does not know it.
    pub fn event(&self) -> Option<Event> {
        Event::decode(self.kind?, self.payload)
    }

    /// Appends the envelope as clients of the session get it.
    pub fn envelope(&self, session_id: &str, out: &mut String) {
        let (names, rest) = self.parts;
        out.push_str(names);
        // The first journals had it in every record.
        if !names.contains(",\"sessionId\":") {
            out.push_str(",\"sessionId\":");
            json::quote(session_id, out);
        }
        out.push_str(rest);
        out.push('}');
    }
}

/// Returns the time of the event whose record begins with `bytes`, which may be cut off within the
/// payload.
pub fn ts_of(bytes: &[u8]) -> Option<&str> {
    let valid = bytes.utf8_chunks().next()?.valid();
    Some(Record::fields(valid)?.ts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Vec<u8> {
        let payload = r#"{"turnId":"t","text":"\",\"seq\":9"}"#;
        record_of("turn.token", payload, "daemon_x", 42, "2026-03-01T10:00:00.000Z")
    }

    #[test]
    fn what_is_written_is_read() {
        let line = written();
        let record = Record::read(line.strip_suffix(b"\n").unwrap()).unwrap();
        assert_eq!((record.kind, record.seq), (Some(EventKind::TurnToken), 42));
        assert_eq!(record.ts, "2026-03-01T10:00:00.000Z");
        assert_eq!(record.payload, r#"{"turnId":"t","text":"\",\"seq\":9"}"#);
        let mut envelope = String::new();
        record.envelope("sess_1", &mut envelope);
        json::check(&envelope).unwrap();
        let names = r#"{"v":"3","event":"turn.token","daemonId":"daemon_x","sessionId":"sess_1","#;
        assert!(envelope.starts_with(&format!("{names}\"seq\":42,")), "{envelope}");
        json::check(std::str::from_utf8(&line).unwrap().trim_end()).unwrap();
    }

    #[test]
    fn a_record_that_names_its_session_is_still_read() {
        let text = r#"{"v":"3","event":"turn.done","daemonId":"d","sessionId":"s","seq":7,"ts":"t","payload":{}"#;
        let line = format!("{text},\"crc\":\"{:08x}\"}}", crc32c(text.as_bytes()));
        let mut envelope = String::new();
        Record::read(line.as_bytes()).unwrap().envelope("s", &mut envelope);
        assert_eq!(envelope, format!("{text}}}"));
    }

    #[test]
    fn a_token_takes_at_most_200_bytes() {
        let payload = r#"{"turnId":"turn_abcdefghijkl","text":" understand"}"#;
        let ts = "2026-03-01T10:00:00.000Z";
        let line = record_of("turn.token", payload, "daemon_abcdefgh", 100_000, ts);
        assert!(line.len() <= 200, "{} bytes", line.len());
    }

    #[test]
    fn no_part_of_a_record_is_a_record() {
        let line = written();
        let line = line.strip_suffix(b"\n").unwrap();
        for length in 0..line.len() {
            assert_eq!(Record::read(&line[..length]), None, "{length} bytes");
            assert_eq!(Record::read(&line[length + 1..]), None, "from byte {length}");
        }
        let mut flipped = line.to_vec();
        for bit in 0..line.len() * 8 {
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::read(&flipped), None, "bit {bit}");
            flipped[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
