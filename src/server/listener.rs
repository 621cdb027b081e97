//! The door: accepts connections, gives each a thread, and says so when there is no room.
//!
//! Nothing that `accept` can fail with ends the loop. It has no timer: a server that nobody talks
//! to does not run.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use crate::error::reason;
use crate::limits::{ACCEPT_PAUSE, HEAD_BYTES_MAX, LOG_REPEAT_EVERY};
use crate::log::Log;
use crate::sys;

use super::connections::{ConnectionGuard, Connections};
use super::reply::Reply;
use super::workers::Workers;

/// The accept loop's own things.
pub struct Acceptor {
    /// In non-blocking mode: a client may have left between `poll` and `accept`.
    pub listener: TcpListener,
    /// Becomes readable when the other end is closed, and that ends the loop.
    pub wake: UnixStream,
    pub table: Arc<Connections>,
    pub workers: Arc<Workers>,
    pub log: Log,
    /// When trouble was last logged.
    pub complained: Option<Instant>,
}

impl Acceptor {
    /// Accepts until woken. The listener is closed at the end.
    pub fn run(mut self) {
        loop {
            match sys::wait_readable([self.wake.as_fd(), self.listener.as_fd()], None) {
                Ok([true, _]) => break,
                Ok(_) => self.accept(),
                Err(error) => self.starve("cannot wait for connections", &error),
            }
        }
        self.workers.dismiss();
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) => self.admit(stream),
            Err(error) => match error.kind() {
                // The client has left again.
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                _ => self.starve("cannot accept a connection", &error),
            },
        }
    }

    fn admit(&mut self, stream: TcpStream) {
        let seated = self.table.guard(stream).or_else(|stream| {
            self.table.make_room();
            self.table.guard(stream)
        });
        match seated {
            Ok(guard) => self.serve(guard),
            Err(stream) => refuse(&stream),
        }
    }

    fn serve(&mut self, guard: ConnectionGuard) {
        let connection = Arc::clone(&guard.connection);
        if let Err(error) = self.workers.serve(guard) {
            refuse(&connection.stream);
            drop(connection);
            self.starve("cannot start a thread for a connection", &error);
        }
    }

    /// The system has run out of something. Ends an idle connection if there is one, else waits a
    /// little: the client stays in the queue.
    fn starve(&mut self, message: &str, cause: &io::Error) {
        let now = Instant::now();
        let recently = |complained: Instant| now.duration_since(complained) < LOG_REPEAT_EVERY;
        if !self.complained.is_some_and(recently) {
            self.complained = Some(now);
            self.log.error(message, &[("cause", &reason(cause))]);
        }
        if !self.table.make_room() {
            drop(sys::wait_readable([self.wake.as_fd()], Some(ACCEPT_PAUSE)));
        }
    }
}

/// Tells a client that there is no room, without ever waiting for it.
fn refuse(stream: &TcpStream) {
    let reply = Reply::problem(503, "BUSY", "too many connections are open")
        .with("Retry-After", "1")
        .closing();
    drop(say(stream, reply));
}

fn say(mut stream: &TcpStream, reply: Reply) -> io::Result<()> {
    let mut text = Vec::new();
    reply.print(&mut text)?;
    stream.set_nonblocking(true)?;
    stream.write_all(&text)?;
    stream.shutdown(Shutdown::Write)?;
    // A request that is left unread would turn the end into a reset, which can overtake the answer.
    stream.read(&mut [0; HEAD_BYTES_MAX]).map(drop)
}
