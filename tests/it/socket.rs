//! A scripted client of the WebSocket: it sends any bytes, and reads frames strictly.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::api::{Api, Event};
use crate::support::DEADLINE;

/// A WebSocket after its handshake.
pub struct Socket {
    pub stream: TcpStream,
    unread: Vec<u8>,
}

/// What the daemon sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Text(String),
    Ping,
    Pong(Vec<u8>),
    /// The status code and the reason.
    Close(u16, String),
    /// The connection ended.
    End,
}

/// The head of a handshake, without its last line end.
pub fn handshake(port: u16, query: &str) -> String {
    format!(
        "GET /v3/ws?{query} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
}

/// A frame as a client sends it.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 250];
    let mut bytes = vec![first];
    match u16::try_from(payload.len()) {
        Ok(length @ ..=125) => bytes.push(0x80 | length.to_be_bytes()[1]),
        Ok(length) => {
            bytes.push(0xfe);
            bytes.extend(length.to_be_bytes());
        }
        Err(_longer) => {
            bytes.push(0xff);
            bytes.extend((payload.len() as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    bytes
}

/// Part of the event that only a WebSocket sends.
pub const UPDATED: &str = "\"event\":\"session.updated\"";

impl Socket {
    /// Opens a WebSocket with the token in the query.
    #[track_caller]
    pub fn open(api: &Api, query: &str) -> Socket {
        Socket::raw(api.port, &format!("{query}&token={}", api.token), "")
    }

    /// Opens a WebSocket with these headers.
    #[track_caller]
    pub fn raw(port: u16, query: &str, headers: &str) -> Socket {
        let request = format!("{}{headers}\r\n", handshake(port, query));
        let (head, socket) = Socket::ask(port, request.as_bytes());
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        socket
    }

    /// Sends a handshake; returns the head of the reply.
    pub fn ask(port: u16, request: &[u8]) -> (String, Socket) {
        Socket::over(TcpStream::connect(("127.0.0.1", port)).unwrap(), request)
    }

    /// Does the same on a connection.
    #[track_caller]
    pub fn over(mut stream: TcpStream, request: &[u8]) -> (String, Socket) {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(request).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&head));
            head.push(byte[0]);
        }
        (String::from_utf8(head).unwrap(), Socket { stream, unread: Vec::new() })
    }

    #[track_caller]
    pub fn send(&mut self, text: &str) {
        self.send_bytes(&frame(0x81, text.as_bytes()));
    }

    #[track_caller]
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads the next frame or message.
    #[track_caller]
    pub fn frame(&mut self) -> Frame {
        let mut message = Vec::new();
        loop {
            let Some((first, payload)) = self.read_frame() else { return Frame::End };
            match first {
                // A control frame may come between fragments. Then the message is not whole.
                0x89 => return Frame::Ping,
                0x8a => return Frame::Pong(payload),
                0x88 => {
                    let code = u16::from_be_bytes([payload[0], payload[1]]);
                    let reason = String::from_utf8(payload[2..].to_vec()).unwrap();
                    return Frame::Close(code, reason);
                }
                0x01 | 0x81 => assert!(message.is_empty()),
                0x00 | 0x80 => assert!(!message.is_empty()),
                other => panic!("a frame that begins with {other:x}"),
            }
            message.extend(payload);
            if first & 0x80 != 0 {
                return Frame::Text(String::from_utf8(message).unwrap());
            }
        }
    }

    /// Reads the next frame as it is: its first byte, and its payload.
    #[track_caller]
    pub fn read_any(&mut self) -> (u8, Vec<u8>) {
        self.read_frame().expect("the connection has ended")
    }

    fn read_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let [first, short] = self.take(2)?.try_into().unwrap();
        let length = match short {
            126 => u16::from_be_bytes(self.take(2)?.try_into().unwrap()).into(),
            127 => usize::try_from(u64::from_be_bytes(self.take(8)?.try_into().unwrap())).unwrap(),
            length => {
                assert!(length < 126, "a frame of the server is masked");
                usize::from(length)
            }
        };
        Some((first, self.take(length)?))
    }

    fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut chunk = [0; 64 * 1024];
        while self.unread.len() < count {
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => self.unread.extend(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("the daemon sends nothing: {error}"),
            }
        }
        Some(self.unread.drain(..count).collect())
    }

    #[track_caller]
    pub fn text(&mut self) -> String {
        match self.frame() {
            Frame::Text(text) => text,
            other => panic!("not a message: {other:?}"),
        }
    }

    /// Reads the next event that the journal has, too.
    #[track_caller]
    pub fn event(&mut self) -> Event {
        let mut text = self.text();
        while text.contains(UPDATED) {
            text = self.text();
        }
        // The same as over HTTP, but for the code, and the payload once more.
        let (older, own) = ("\"lmx-connection-refused\"", "\"model-unreachable\"");
        match text.rsplit_once(",\"data\":{") {
            Some((envelope, _)) => Event::read(&format!("{}}}", envelope.replace(older, own))),
            None => Event::read(&text),
        }
    }

    /// Reads events up to the one of this name and turn.
    #[track_caller]
    pub fn events_to(&mut self, name: &str, turn: &str) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.event();
            let is_last = event.name == name && event.turn_id == turn;
            events.push(event);
            if is_last {
                return events;
            }
        }
    }

    /// Sends a message and returns its answer.
    #[track_caller]
    pub fn ask_for(&mut self, text: &str) -> String {
        self.send(text);
        self.text()
    }

    /// Asserts that the daemon closes with this status code, answers the close, and waits for the
    /// end of the connection.
    #[track_caller]
    pub fn assert_closed(&mut self, code: u16) -> String {
        let Frame::Close(found, reason) = self.frame() else { panic!("no close frame") };
        assert_eq!(found, code, "{reason}");
        drop(self.stream.write_all(&frame(0x88, &code.to_be_bytes())));
        assert_eq!(self.frame(), Frame::End);
        reason
    }

    /// Returns whether nothing is sent within this time.
    pub fn is_silent_for(&mut self, time: Duration) -> bool {
        assert!(self.unread.is_empty());
        self.stream.set_read_timeout(Some(time)).unwrap();
        let read = self.stream.peek(&mut [0]);
        self.stream.set_read_timeout(Some(DEADLINE)).unwrap();
        read.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }
}
