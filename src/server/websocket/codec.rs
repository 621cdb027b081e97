//! WebSocket frames: reads those of a client, writes those of a server. Pure. RFC 6455, 5.
//!
//! A frame is judged by its header, before its payload arrives, and no memory is reserved for an
//! announced length. There are no extensions, so every reserved bit is an error.

use crate::limits;

/// Data that a client sent, or a control frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    Text(String),
    Binary,
    Ping(Vec<u8>),
    Pong,
    /// The status code, if there is one.
    Close(Option<u16>),
}

/// A breach of the protocol, or of a limit: the status code and the reason for the close frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    pub code: u16,
    pub reason: &'static str,
}

/// Status codes of close frames. RFC 6455, 7.4.1.
pub const CLOSE_NORMAL: u16 = 1000;
pub const CLOSE_GOING_AWAY: u16 = 1001;
pub const CLOSE_PROTOCOL: u16 = 1002;
pub const CLOSE_NOT_TEXT: u16 = 1003;
pub const CLOSE_NOT_UTF8: u16 = 1007;
pub const CLOSE_POLICY: u16 = 1008;
pub const CLOSE_TOO_BIG: u16 = 1009;
pub const CLOSE_INTERNAL: u16 = 1011;
pub const CLOSE_TRY_LATER: u16 = 1013;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
/// The longest payload of a control frame.
const CONTROL_BYTES_MAX: usize = 125;

/// The bytes of a client, of which whole messages are taken.
#[derive(Default)]
pub struct Decoder {
    unread: Vec<u8>,
    /// The kind of the message whose first fragments arrived, and their payloads.
    fragments: Option<(u8, Vec<u8>)>,
}

struct Header {
    is_final: bool,
    opcode: u8,
    mask: [u8; 4],
    /// Where the payload begins.
    start: usize,
    length: usize,
}

impl Decoder {
    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.unread.extend(bytes);
    }

    /// Returns whether a frame or a message has begun and not ended.
    pub fn is_incomplete(&self) -> bool {
        !self.unread.is_empty() || self.fragments.is_some()
    }

    /// Returns whether fragments of a message arrived, and not the last.
    pub fn is_within_message(&self) -> bool {
        self.fragments.is_some()
    }

    /// Takes the next message or control frame; `None` if none is complete. After a failure,
    /// nothing more can be read.
    pub fn next(&mut self) -> Result<Option<Incoming>, Violation> {
        while let Some(header) = parse_header(&self.unread)? {
            self.check(&header)?;
            let end = header.start + header.length;
            let Some(payload) = self.unread.get(header.start..end) else { break };
            let masks = header.mask.iter().cycle();
            let payload: Vec<u8> =
                payload.iter().zip(masks).map(|(byte, mask)| byte ^ mask).collect();
            self.unread.drain(..end);
            if self.unread.is_empty() {
                // An idle connection holds no memory.
                self.unread = Vec::new();
            }
            if let Some(incoming) = self.take(&header, payload)? {
                return Ok(Some(incoming));
            }
        }
        Ok(None)
    }

    /// Checks what a header says against what came before it.
    fn check(&self, header: &Header) -> Result<(), Violation> {
        let before = match (header.opcode, &self.fragments) {
            (CONTINUATION, None) => return Err(protocol("a fragment continues no message")),
            (TEXT | BINARY, Some(_)) => {
                return Err(protocol("a message begins within the fragments of another"));
            }
            (CONTINUATION, Some((_, before))) => before.len(),
            _ => 0,
        };
        if header.length > limits::WEBSOCKET_MESSAGE_BYTES_MAX - before {
            return Err(Violation {
                code: CLOSE_TOO_BIG,
                reason: "a message is longer than 1 MiB",
            });
        }
        Ok(())
    }

    /// Takes a frame; returns what is complete with it.
    fn take(&mut self, header: &Header, payload: Vec<u8>) -> Result<Option<Incoming>, Violation> {
        match header.opcode {
            CLOSE => return parse_close(&payload).map(|code| Some(Incoming::Close(code))),
            PING => return Ok(Some(Incoming::Ping(payload))),
            PONG => return Ok(Some(Incoming::Pong)),
            _ => {}
        }
        let (kind, message) = match self.fragments.take() {
            Some((kind, mut before)) => {
                before.extend(payload);
                (kind, before)
            }
            None => (header.opcode, payload),
        };
        if !header.is_final {
            self.fragments = Some((kind, message));
            return Ok(None);
        }
        if kind == BINARY {
            return Ok(Some(Incoming::Binary));
        }
        utf8(message).map(|text| Some(Incoming::Text(text)))
    }
}

fn protocol(reason: &'static str) -> Violation {
    Violation { code: CLOSE_PROTOCOL, reason }
}

fn utf8(bytes: Vec<u8>) -> Result<String, Violation> {
    let reason = "a text is not UTF-8";
    String::from_utf8(bytes).map_err(|_bad| Violation { code: CLOSE_NOT_UTF8, reason })
}

/// Parses the header of a client's frame; `None` if it is incomplete.
fn parse_header(bytes: &[u8]) -> Result<Option<Header>, Violation> {
    let [first, second, ..] = *bytes else { return Ok(None) };
    let (is_final, opcode) = (first & FIN != 0, first & !(FIN | RESERVED));
    if first & RESERVED != 0 {
        return Err(protocol("a reserved bit of a frame is set"));
    }
    if second & MASKED == 0 {
        return Err(protocol("a frame of the client is not masked"));
    }
    let short = usize::from(second & !MASKED);
    match opcode {
        CLOSE | PING | PONG if !is_final => return Err(protocol("a control frame is fragmented")),
        CLOSE | PING | PONG if short > CONTROL_BYTES_MAX => {
            return Err(protocol("a control frame is longer than 125 bytes"));
        }
        CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG => {}
        _ => return Err(protocol("the opcode of a frame is unknown")),
    }
    let (length_bytes, shortest) = match short {
        127 => (8, 0x1_0000),
        126 => (2, 126),
        _ => (0, 0),
    };
    let (Some(length), Some(mask)) =
        (bytes.get(2..2 + length_bytes), bytes.get(2 + length_bytes..6 + length_bytes))
    else {
        return Ok(None);
    };
    let number = length.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    if number < shortest || number > u64::MAX / 2 {
        return Err(protocol("the length of a frame is not in its shortest form"));
    }
    let length =
        if length_bytes == 0 { short } else { usize::try_from(number).unwrap_or(usize::MAX) };
    let mask = mask.try_into().unwrap_or_default();
    Ok(Some(Header { is_final, opcode, mask, start: 6 + length_bytes, length }))
}

/// Parses the payload of a close frame. RFC 6455, 5.5.1.
fn parse_close(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let (code, reason) = match *payload {
        [] => return Ok(None),
        [high, low, ref reason @ ..] => (u16::from_be_bytes([high, low]), reason),
        _ => return Err(protocol("the payload of a close frame is one byte")),
    };
    match code {
        1000..=1003 | 1007..=1014 | 3000..=4999 => {}
        _ => return Err(protocol("the status code of a close frame may not be sent")),
    }
    utf8(reason.to_vec())?;
    Ok(Some(code))
}

/// Appends a text, in fragments if it is long.
///
/// Control frames may come between fragments, so a client that is slow to take a long message can
/// still get one.
pub fn write_text(text: &str, out: &mut Vec<u8>) {
    let mut opcode = TEXT;
    let mut rest = text.as_bytes();
    out.reserve(rest.len() + HEAD_BYTES_MAX);
    loop {
        let (fragment, after) = rest.split_at(rest.len().min(limits::WEBSOCKET_FRAME_BYTES_MAX));
        let end = if after.is_empty() { FIN } else { 0 };
        write_frame(end | opcode, fragment, out);
        if after.is_empty() {
            return;
        }
        (rest, opcode) = (after, CONTINUATION);
    }
}

/// The longest head of a frame that this side sends.
const HEAD_BYTES_MAX: usize = 10;

/// Appends a ping.
pub fn write_ping(out: &mut Vec<u8>) {
    write_frame(FIN | PING, &[], out);
}

/// Appends the answer to a ping with this payload.
pub fn write_pong(payload: &[u8], out: &mut Vec<u8>) {
    write_frame(FIN | PONG, payload, out);
}

/// Appends a close frame. `code`: as the client sent it, or one of the constants. A reason that is
/// too long is cut.
pub fn write_close(code: Option<u16>, reason: &str, out: &mut Vec<u8>) {
    let mut payload = Vec::new();
    if let Some(code) = code {
        payload.extend(code.to_be_bytes());
        let mut end = reason.len().min(CONTROL_BYTES_MAX - 2);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        payload.extend(reason.as_bytes().iter().take(end));
    }
    write_frame(FIN | CLOSE, &payload, out);
}

fn write_frame(first: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(first);
    match u16::try_from(payload.len()) {
        #[expect(clippy::cast_possible_truncation, reason = "it is at most 125")]
        Ok(length @ ..=125) => out.push(length as u8),
        Ok(length) => {
            out.push(126);
            out.extend(length.to_be_bytes());
        }
        Err(_longer) => {
            out.push(127);
            out.extend((payload.len() as u64).to_be_bytes());
        }
    }
    out.extend(payload);
}

/// Returns the end of the frame that is written when the first `written` bytes of `frames`, which
/// this module wrote, are.
pub fn frame_end(frames: &[u8], written: usize) -> usize {
    let mut end = 0;
    while end < written {
        let rest = frames.get(end..).unwrap_or_default();
        let length = match *rest {
            [_, 126, high, low, ..] => 4 + usize::from(u16::from_be_bytes([high, low])),
            [_, 127, a, b, c, d, e, f, g, h, ..] => {
                let length = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
                usize::try_from(length).map_or(usize::MAX, |length| length.saturating_add(10))
            }
            [_, length, ..] => 2 + usize::from(length),
            _ => return frames.len(),
        };
        end = end.saturating_add(length);
    }
    end.min(frames.len())
}

#[cfg(test)]
mod tests;
