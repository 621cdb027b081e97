//! The bytes of a WebSocket: what is read, what is written, and the deadlines of both.
//!
//! Reads and writes do not block.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sys::Interest;
use crate::sys::socket::is_temporary;
use crate::{limits, sys};

use super::codec::{self, CLOSE_POLICY, CLOSE_TRY_LATER, Decoder, Incoming, Violation};
use crate::server::connections::Connection;

/// Why a WebSocket is no longer served.
pub enum End {
    /// The client disconnected.
    Gone,
    /// The client closed it, with this status code.
    Theirs(Option<u16>),
    /// The client takes nothing.
    Stalled,
    Ours(Ending),
}

/// How the server closes a WebSocket.
pub struct Ending {
    /// A last message.
    pub message: Option<String>,
    pub code: u16,
    pub reason: String,
}

impl Ending {
    /// Returns one without a last message.
    pub fn new(code: u16, reason: &str) -> Ending {
        Ending { message: None, code, reason: reason.to_owned() }
    }
}

impl From<Violation> for End {
    fn from(violation: Violation) -> End {
        End::Ours(Ending::new(violation.code, violation.reason))
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Gone
    }
}

/// What a WebSocket waits for.
pub struct Wait {
    /// What its connection is to be ready for.
    pub interest: Interest,
    /// Whether it waits for events, too.
    pub for_events: bool,
    pub limit: Duration,
}

/// The connection of a WebSocket.
pub struct Socket {
    connection: Arc<Connection>,
    decoder: Decoder,
    output: Vec<u8>,
    /// How much of the output the system has.
    written: usize,
    /// When the last byte was read or written.
    active_at: Instant,
    /// Since when the client has taken nothing of the output.
    stalled_at: Option<Instant>,
    /// When the first byte of a message arrived that is not complete.
    message_at: Option<Instant>,
}

impl Socket {
    /// Sends the client `head`. Its `early` bytes were read before.
    pub fn new(connection: Arc<Connection>, head: &str, early: &[u8]) -> io::Result<Socket> {
        let mut client = &connection.stream;
        client.set_nonblocking(true)?;
        // It fits: nothing was sent before, or it was taken.
        client.write_all(head.as_bytes())?;
        sys::socket::set_send_buffer(client, limits::WEBSOCKET_SEND_BUFFER_BYTES)?;
        let mut decoder = Decoder::default();
        decoder.push(early);
        Ok(Socket {
            connection,
            decoder,
            output: Vec::new(),
            written: 0,
            active_at: Instant::now(),
            stalled_at: None,
            message_at: None,
        })
    }

    /// Returns whether more may be sent.
    pub fn has_room(&self) -> bool {
        self.output.len() - self.written < limits::WEBSOCKET_OUTPUT_BYTES_MAX
    }

    /// Takes the next message or control frame.
    pub fn next(&mut self) -> Result<Option<Incoming>, Violation> {
        let incoming = self.decoder.next()?;
        if !self.decoder.is_incomplete() {
            self.message_at = None;
        } else if incoming.is_none() {
            self.message_at.get_or_insert_with(Instant::now);
        } else if !self.decoder.is_within_message() {
            // What is left began after what is returned.
            self.message_at = None;
        }
        Ok(incoming)
    }

    /// Sends a message.
    pub fn send_text(&mut self, text: &str) {
        codec::write_text(text, &mut self.output);
    }

    /// Answers a ping.
    pub fn send_pong(&mut self, payload: &[u8]) {
        codec::write_pong(payload, &mut self.output);
    }

    /// Writes as much as the system takes.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(rest) = self.output.get(self.written..).filter(|rest| !rest.is_empty()) {
            match (&self.connection.stream).write(rest) {
                Ok(count) => {
                    self.written += count;
                    self.active_at = Instant::now();
                    self.stalled_at = None;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.stalled_at.get_or_insert_with(Instant::now);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        // An idle WebSocket holds little memory.
        self.output.clear();
        self.output.shrink_to(limits::WEBSOCKET_OUTPUT_KEPT_BYTES);
        self.written = 0;
        Ok(())
    }

    /// Returns whether the system has the whole output.
    pub fn is_flushed(&self) -> bool {
        self.output.is_empty()
    }

    /// Returns what is to be waited for, `until` then at the longest.
    pub fn wait(&mut self, for_events: bool, until: Option<Instant>) -> Result<Wait, End> {
        let ping_at = self.active_at + limits::WEBSOCKET_PING_EVERY;
        let stall_ends = self.stalled_at.map(|at| at + limits::WEBSOCKET_STALL_MAX);
        let message_ends = self.message_at.map(|at| at + limits::WEBSOCKET_MESSAGE_MAX);
        let now = Instant::now();
        let is_over = |end: Option<Instant>| end.is_some_and(|end| end <= now);
        if is_over(stall_ends) {
            return Err(End::Stalled);
        }
        if is_over(message_ends) {
            return Err(End::Ours(Ending::new(CLOSE_POLICY, "a message took too long")));
        }
        let deadlines = [until, stall_ends, message_ends].into_iter().flatten();
        let mut deadline = deadlines.fold(ping_at, Instant::min);
        if ping_at <= now {
            codec::write_ping(&mut self.output);
            self.active_at = now;
            deadline = now;
        }
        let interest = match (self.has_room(), self.is_flushed()) {
            (true, true) => Interest::Read,
            (true, false) => Interest::Either,
            (false, _) => Interest::Write,
        };
        Ok(Wait { interest, for_events, limit: deadline.saturating_duration_since(now) })
    }

    /// Reads what the client sent, if there is room for answers.
    pub fn read(&mut self) -> Result<(), End> {
        if !self.has_room() {
            return Ok(());
        }
        let mut chunk = [0; CHUNK_BYTES];
        match (&self.connection.stream).read(&mut chunk) {
            Ok(0) => Err(End::Gone),
            Ok(count) => {
                self.active_at = Instant::now();
                self.decoder.push(chunk.get(..count).unwrap_or_default());
                Ok(())
            }
            Err(error) if is_temporary(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the WebSocket, with a close frame if the client can take one.
    pub fn finish(mut self, end: End) -> io::Result<()> {
        match end {
            End::Gone => return Ok(()),
            End::Stalled => return self.let_go(),
            End::Theirs(code) => codec::write_close(code, "", &mut self.output),
            End::Ours(Ending { message, code, reason }) => {
                if let Some(message) = message {
                    self.send_text(&message);
                }
                codec::write_close(Some(code), &reason, &mut self.output);
            }
        }
        let deadline = Instant::now() + limits::DRAIN_MAX;
        loop {
            self.flush()?;
            if self.output.is_empty() {
                break;
            }
            if !wait(&self.connection.stream, Interest::Write, deadline)? {
                return Ok(());
            }
        }
        self.connection.stream.shutdown(Shutdown::Write)?;
        self.drain(deadline)
    }

    /// Lets go of a client that takes nothing. It finds the reason where it stopped reading.
    fn let_go(mut self) -> io::Result<()> {
        self.output.truncate(codec::frame_end(&self.output, self.written));
        codec::write_close(Some(CLOSE_TRY_LATER), "the client is too slow", &mut self.output);
        // Its buffer is full, but for the system's rounding.
        sys::socket::set_send_buffer(
            &self.connection.stream,
            2 * limits::WEBSOCKET_SEND_BUFFER_BYTES,
        )?;
        self.flush()?;
        self.connection.stream.shutdown(Shutdown::Write)?;
        self.drain(Instant::now())
    }

    /// Discards what the client still sends: closing with unread bytes would reset the connection,
    /// and the reset can overtake the close frame.
    fn drain(&mut self, deadline: Instant) -> io::Result<()> {
        let (mut chunk, mut drained) = ([0; CHUNK_BYTES], 0);
        while drained < limits::DRAIN_BYTES_MAX
            && wait(&self.connection.stream, Interest::Read, deadline)?
        {
            match (&self.connection.stream).read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) => drained += count,
                Err(error) if is_temporary(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The most that one read takes; most messages are smaller.
const CHUNK_BYTES: usize = 2048;

/// Waits until `client` is ready; returns `false` at the deadline.
fn wait(client: &TcpStream, interest: Interest, deadline: Instant) -> io::Result<bool> {
    let left: Duration = deadline.saturating_duration_since(Instant::now());
    let ready = sys::wait_any(&[(client.as_fd(), interest)], Some(left))?;
    Ok(ready.first() == Some(&true))
}
