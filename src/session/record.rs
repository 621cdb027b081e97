//! The records of a journal, and the envelopes that clients get instead: one event per line.
//!
//! A record is the envelope with a checksum as its last field, and `jq` can read it:
//! `{"v":"3","event":…,"daemonId":…,"seq":42,"ts":…,"payload":{…},"crc":"xxxxxxxx"}`. The checksum
//! is CRC-32C over the bytes before `,"crc"`. The fields are in this order, without white space.
//! The id of the session is not among them, since a journal belongs to one session: most events
//! are tokens, and their records consist mostly of field names.

use std::borrow::Cow;

use crate::protocol::event::{Event, EventKind};
use crate::{json, limits, sys};

use super::said::Said;

/// The length of `,"crc":"xxxxxxxx"}`, which a record has in place of the envelope's last brace.
const SEAL_BYTES: usize = 18;

/// Returns the record of an event that the daemon `daemon_id` writes, with its line end.
#[cfg(test)]
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

/// A record that was read and has the right checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The envelope before and after the place of the session's id, without the last brace.
    parts: (&'a str, &'a str),
    /// `None`: this version does not know the event.
    pub kind: Option<EventKind>,
    pub seq: u64,
    pub ts: &'a str,
    /// A JSON object.
    pub payload: &'a str,
}

impl<'a> Record<'a> {
    /// Reads the record in `line`, which has no line end; `None` if it is damaged.
    pub fn read(line: &'a [u8]) -> Option<Record<'a>> {
        let (body, seal) = line.split_at_checked(line.len().checked_sub(SEAL_BYTES)?)?;
        let digits = seal.strip_prefix(b",\"crc\":\"")?.strip_suffix(b"\"}")?;
        // Compared as text: a checksum has one spelling.
        let crc = crc32c(body);
        let spelled = (0..8).rev().map(|place| char::from_digit(crc >> (4 * place) & 15, 16));
        if !spelled.eq(digits.iter().map(|digit| Some(char::from(*digit)))) {
            return None;
        }
        Record::fields(std::str::from_utf8(body).ok()?)
    }

    /// Finds the fields where [`record_of`] puts them.
    fn fields(text: &'a str) -> Option<Record<'a>> {
        const SEQ: &str = ",\"seq\":";
        let (name, rest) = text.strip_prefix("{\"v\":\"3\",\"event\":\"")?.split_once('"')?;
        let (_, rest) = rest.strip_prefix(",\"daemonId\":\"")?.split_once('"')?;
        // The first journals had the session's id before it.
        let at = if rest.starts_with(SEQ) { 0 } else { rest.find(SEQ)? };
        let parts = text.split_at(text.len() - rest.len() + at);
        let (seq, rest) = parts.1.strip_prefix(SEQ)?.split_once(',')?;
        let (ts, rest) = rest.strip_prefix("\"ts\":\"")?.split_once('"')?;
        let payload = rest.strip_prefix(",\"payload\":")?;
        let kind = EventKind::named(name);
        Some(Record { parts, kind, seq: seq.parse().ok()?, ts, payload })
    }

    /// Decodes the event; `None` if this version does not know it.
    pub fn event(&self) -> Option<Event> {
        match self.parts_of_payload() {
            (Some(_), rest) => Event::decode(self.kind?, &format!("{{{rest}")),
            (None, payload) => Event::decode(self.kind?, payload),
        }
    }

    /// Returns the texts of these members of the payload; `None` if one of them is no text or
    /// missing. Decoding the whole event takes several times as long.
    pub(super) fn texts<const N: usize>(&self, names: [&str; N]) -> Option<[String; N]> {
        let members = json::members(self.payload)?;
        let mut texts = [const { String::new() }; N];
        for (text, name) in texts.iter_mut().zip(names) {
            let member = members.iter().rfind(|member| member.name == name)?;
            *text = member.string()?.into_owned();
        }
        Some(texts)
    }

    /// Returns what was said before the event, if the record has it.
    pub(super) fn said(&self) -> Option<Said<'a>> {
        self.parts_of_payload().0
    }

    /// Returns what was said, and the payload; or only its other members, without the first brace.
    fn parts_of_payload(&self) -> (Option<Said<'a>>, &'a str) {
        let ends = matches!(
            self.kind,
            Some(EventKind::ToolStart | EventKind::TurnDone | EventKind::TurnError)
        );
        match Said::read(self.payload).filter(|_| ends) {
            Some((said, rest)) => (Some(said), rest),
            None => (None, self.payload),
        }
    }

    /// Returns the envelope as clients of the session get it.
    pub fn envelope(&self, session_id: &str) -> String {
        let (names, rest) = self.parts;
        let mut out = String::with_capacity(names.len() + session_id.len() + rest.len() + 32);
        out.push_str(names);
        // The first journals had it in every record.
        if !names.contains(",\"sessionId\":") {
            out.push_str(",\"sessionId\":");
            json::quote(session_id, &mut out);
        }
        match self.parts_of_payload() {
            (Some(_), others) => {
                let before = rest.strip_suffix(self.payload).unwrap_or_default();
                out.push_str(before);
                out.push('{');
                out.push_str(others);
            }
            (None, _) => out.push_str(rest),
        }
        out.push('}');
        out
    }
}

/// Returns the envelope of an event with the names that older clients know: the payload as `data`,
/// with the id of the session, the text of a token as `token`, and the code of an error as they
/// name it. A copy of a long payload would cost more than it is worth.
pub fn with_aliases(envelope: &str, kind: Option<EventKind>) -> String {
    let parts = envelope.split_once(",\"payload\":");
    let Some((head, payload)) =
        parts.and_then(|(head, rest)| Some((head, rest.strip_suffix('}')?)))
    else {
        return envelope.to_owned();
    };
    let (_, rest) = head.split_once(",\"sessionId\":").unwrap_or_default();
    let id = rest.split(',').next().unwrap_or_default();
    let members = payload.strip_suffix('}').unwrap_or_default();
    let older = match kind {
        Some(EventKind::TurnError) => with_older_code(members).into(),
        _ => Cow::Borrowed(members),
    };
    let token = match members.split_once(",\"text\":") {
        Some((_, token)) if kind == Some(EventKind::TurnToken) => [",\"token\":", token],
        _ => ["", ""],
    };
    let mut out = String::with_capacity(envelope.len() + payload.len() + 2 * token[1].len() + 64);
    let mut push = |parts: &[&str]| parts.iter().for_each(|part| out.push_str(part));
    push(&[head, ",\"payload\":", &older, token[0], token[1], "}"]);
    if payload.len() <= limits::DATA_BYTES_MAX {
        push(&[",\"data\":", members, token[0], token[1]]);
        // The snapshot of a session has the id already.
        if kind != Some(EventKind::SessionSnapshot) {
            push(&[if members == "{" { "" } else { "," }, "\"sessionId\":", id]);
        }
        push(&["}"]);
    }
    out.push('}');
    out
}

/// The codes of failed turns that older clients know, under their names.
const OLDER_CODES: [(&str, &str); 3] = [
    ("model-disconnected", "lmx-ws-closed"),
    ("model-timeout", "lmx-timeout"),
    ("model-unreachable", "lmx-connection-refused"),
];

/// Returns the members of an error with the code that older clients know. For them, a turn that was
/// cancelled has none.
fn with_older_code(members: &str) -> String {
    const CODE: &str = ",\"code\":\"";
    let Some((before, (code, rest))) =
        members.split_once(CODE).and_then(|(before, rest)| Some((before, rest.split_once('"')?)))
    else {
        return members.to_owned();
    };
    match OLDER_CODES.iter().find(|(own, _)| *own == code) {
        Some((_, older)) => format!("{before}{CODE}{older}\"{rest}"),
        None if code == "cancelled" => format!("{before}{rest}"),
        None => members.to_owned(),
    }
}

/// Returns the time of the event whose record begins with `bytes`, which may end within the
/// payload.
pub fn ts_of(bytes: &[u8]) -> Option<&str> {
    Some(Record::fields(bytes.utf8_chunks().next()?.valid())?.ts)
}

/// The polynomial 0x1EDC6F41 (Castagnoli), reflected, as in RFC 3720 (iSCSI), B.4.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The checksum of each byte, for processors without an instruction and for the last bytes.
const TABLE: [u32; 256] = table();

#[expect(
    clippy::indexing_slicing,
    reason = "runs in the compiler, which would stop at a bad index"
)]
#[expect(clippy::cast_possible_truncation, reason = "the index is below 256")]
const fn table() -> [u32; 256] {
    let mut table = [0_u32; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// Returns the CRC-32C of `bytes`.
fn crc32c(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks();
    !match sys::crc32c::crc32c(!0, words) {
        Some(crc) => by_table(crc, rest),
        None => by_table(!0, bytes),
    }
}

/// Continues a checksum with `bytes`.
#[expect(clippy::indexing_slicing, reason = "a byte is below 256")]
fn by_table(mut crc: u32, bytes: &[u8]) -> u32 {
    for byte in bytes {
        let [low, ..] = crc.to_le_bytes();
        crc = (crc >> 8) ^ TABLE[usize::from(low ^ byte)];
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Vec<u8> {
        let payload = r#"{"turnId":"t","text":"\",\"seq\":9"}"#;
        record_of("turn.token", payload, "daemon_x", 42, "2026-03-01T10:00:00.000Z")
    }

    #[test]
    fn a_written_record_is_read() {
        let line = written();
        let record = Record::read(line.strip_suffix(b"\n").unwrap()).unwrap();
        assert_eq!((record.kind, record.seq), (Some(EventKind::TurnToken), 42));
        assert_eq!(record.ts, "2026-03-01T10:00:00.000Z");
        assert_eq!(record.payload, r#"{"turnId":"t","text":"\",\"seq\":9"}"#);
        let envelope = record.envelope("sess_1");
        json::check(&envelope).unwrap();
        let names = r#"{"v":"3","event":"turn.token","daemonId":"daemon_x","sessionId":"sess_1","#;
        assert!(envelope.starts_with(&format!("{names}\"seq\":42,")), "{envelope}");
        json::check(std::str::from_utf8(&line).unwrap().trim_end()).unwrap();
    }

    #[test]
    fn a_record_that_names_its_session_is_still_read() {
        let text = r#"{"v":"3","event":"turn.done","daemonId":"d","sessionId":"s","seq":7,"ts":"t","payload":{}"#;
        let line = format!("{text},\"crc\":\"{:08x}\"}}", crc32c(text.as_bytes()));
        let envelope = Record::read(line.as_bytes()).unwrap().envelope("s");
        assert_eq!(envelope, format!("{text}}}"));
    }

    #[test]
    fn an_envelope_can_have_the_names_that_older_clients_know() {
        let envelope = |name: &str, payload: &str| {
            let line = record_of(name, payload, "d", 1, "t");
            let record = Record::read(line.strip_suffix(b"\n").unwrap()).unwrap();
            let text = with_aliases(&record.envelope("s"), record.kind);
            json::check(&text).unwrap();
            text.split_once(",\"payload\":").unwrap().1.to_owned()
        };
        assert_eq!(
            envelope("turn.token", r#"{"turnId":"t","text":"\",\"text\":}"}"#),
            r#"{"turnId":"t","text":"\",\"text\":}","token":"\",\"text\":}"},"data":{"turnId":"t","text":"\",\"text\":}","token":"\",\"text\":}","sessionId":"s"}}"#
        );
        assert_eq!(
            envelope("turn.thinking", r#"{"turnId":"t","text":"x"}"#),
            r#"{"turnId":"t","text":"x"},"data":{"turnId":"t","text":"x","sessionId":"s"}}"#
        );
        for (own, older) in [
            ("model-unreachable", ",\"code\":\"lmx-connection-refused\""),
            ("model-timeout", ",\"code\":\"lmx-timeout\""),
            ("model-disconnected", ",\"code\":\"lmx-ws-closed\""),
            ("storage-full", ",\"code\":\"storage-full\""),
            ("cancelled", ""),
        ] {
            let payload = format!(r#"{{"turnId":"t","code":"{own}","message":"x"}}"#);
            let data = format!(r#"{{"turnId":"t","code":"{own}","message":"x","sessionId":"s"}}"#);
            let expected = format!(r#"{{"turnId":"t"{older},"message":"x"}},"data":{data}}}"#);
            assert_eq!(envelope("turn.error", &payload), expected);
        }
        assert_eq!(envelope("x", "{}"), r#"{},"data":{"sessionId":"s"}}"#);
        let first = r#"{"sessionId":"s"}"#;
        assert_eq!(envelope("session.snapshot", first), format!("{first},\"data\":{first}}}"));
        for (length, has_data) in
            [(limits::DATA_BYTES_MAX, true), (limits::DATA_BYTES_MAX + 1, false)]
        {
            let payload = format!("{{\"result\":\"{}\"}}", "x".repeat(length - 13));
            assert_eq!(payload.len(), length);
            assert_eq!(envelope("tool.end", &payload).contains("\"data\""), has_data);
        }
    }

    #[test]
    fn a_token_takes_at_most_200_bytes() {
        let payload = r#"{"turnId":"turn_abcdefghijkl","text":" understand"}"#;
        let ts = "2026-03-01T10:00:00.000Z";
        let line = record_of("turn.token", payload, "daemon_abcdefgh", 100_000, ts);
        assert!(line.len() <= 200, "{} bytes", line.len());
    }

    #[test]
    fn clients_do_not_get_what_was_said_a_second_time() {
        let said = r#"{"said":{"from":3,"begin":4,"text":"\"},{"},"turnId":"t","stats":{}}"#;
        let line = record_of("turn.done", said, "d", 9, "then");
        let record = Record::read(
            line.strip_suffix(
                b"
",
            )
            .unwrap(),
        )
        .unwrap();
        assert!(record.envelope("s").ends_with(r#""payload":{"turnId":"t","stats":{}}}"#));
        // Another event may be called with anything.
        let line = record_of("of.tomorrow", said, "d", 9, "then");
        let record = Record::read(
            line.strip_suffix(
                b"
",
            )
            .unwrap(),
        )
        .unwrap();
        assert!(record.envelope("s").contains("said"));
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

    #[test]
    fn the_time_is_found_in_the_beginning_of_a_record() {
        let line = record_of("session.snapshot", r#"{"title":"ü"}"#, "daemon_x", 1, "then");
        let payload = line.windows(8).position(|bytes| bytes == b"payload\"").unwrap();
        for length in 0..line.len() {
            let found = ts_of(&line[..length]);
            assert_eq!(found, (length >= payload + 9).then_some("then"), "{length} bytes");
        }
    }

    /// The examples of RFC 3720, B.4, and the usual check value.
    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b""), 0);
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(!by_table(!0, &bytes), crc32c(&bytes));
    }
}
