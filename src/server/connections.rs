//! The connections that have a thread: how many there are, and which of them are idle.
//!
//! Each belongs to the thread that serves it. The server keeps it in its list until the socket is
//! closed. Only [`Connections::abort`] ends a request that has begun.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::{mutex, sys};

/// The connections of one server that have a thread.
#[derive(Default)]
pub struct Connections {
    open: Mutex<Open>,
    closing: AtomicBool,
}

#[derive(Default)]
struct Open {
    connections: Vec<Weak<Connection>>,
    /// Whether the event loop runs, which may add connections.
    growing: bool,
    when_empty: Option<Box<dyn FnOnce() + Send>>,
}

impl Open {
    fn connections(&self) -> impl Iterator<Item = Arc<Connection>> {
        self.connections.iter().filter_map(Weak::upgrade)
    }

    fn is_empty(&self) -> bool {
        self.connections.is_empty() && !self.growing
    }
}

/// An open connection. Dropping this closes its socket and removes it from the [`Connections`].
pub struct ConnectionGuard {
    pub connection: Arc<Connection>,
    // Dropped second: one that is no longer counted has no descriptor.
    entry: Entry,
}

struct Entry {
    connections: Arc<Connections>,
    connection: Weak<Connection>,
}

/// The right to add connections. Dropping it allows the server to end.
pub struct Growing(Arc<Connections>);

impl Connections {
    /// Allows connections to be added.
    pub fn grow(self: &Arc<Connections>) -> Growing {
        mutex::lock(&self.open).growing = true;
        Growing(Arc::clone(self))
    }

    /// Returns how many there are.
    pub fn count(&self) -> usize {
        mutex::lock(&self.open).connections.len()
    }

    /// Closes the connection that has been idle for the longest time; its thread ends soon. Returns
    /// `false` if no connection is idle.
    pub fn close_idle(&self) -> bool {
        let open = mutex::lock(&self.open);
        let mut idle: Vec<_> = open
            .connections()
            .filter_map(|connection| Some((connection.idle_since()?, connection)))
            .collect();
        drop(open);
        idle.sort_by_key(|(since, _)| *since);
        idle.iter().any(|(_, connection)| connection.close_if_idle())
    }

    /// Closes the idle connections now, and each other one after its request. Calls `when_empty`
    /// when no connection remains and none can be added.
    pub fn close(&self, when_empty: Box<dyn FnOnce() + Send>) {
        self.closing.store(true, Ordering::SeqCst);
        let mut open = mutex::lock(&self.open);
        if open.is_empty() {
            drop(open);
            return when_empty();
        }
        open.when_empty = Some(when_empty);
        for connection in open.connections() {
            connection.close_if_idle();
        }
    }

    /// Shuts down every connection, whatever it is doing.
    pub fn abort(&self) {
        for connection in mutex::lock(&self.open).connections() {
            // An error means that the peer was faster.
            drop(connection.stream.shutdown(Shutdown::Both));
        }
    }

    fn remove(&self, change: impl FnOnce(&mut Open)) {
        let mut open = mutex::lock(&self.open);
        change(&mut open);
        let when_empty = if open.is_empty() { open.when_empty.take() } else { None };
        drop(open);
        if let Some(when_empty) = when_empty {
            when_empty();
        }
    }
}

impl Growing {
    /// Adds a connection.
    pub fn add(&self, stream: TcpStream) -> ConnectionGuard {
        let connection = Arc::new(Connection { stream, idle_since: Mutex::new(None) });
        let weak = Arc::downgrade(&connection);
        mutex::lock(&self.0.open).connections.push(Weak::clone(&weak));
        let entry = Entry { connections: Arc::clone(&self.0), connection: weak };
        ConnectionGuard { connection, entry }
    }

    pub fn connections(&self) -> &Connections {
        &self.0
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        self.0.remove(|open| open.growing = false);
    }
}

impl ConnectionGuard {
    /// Returns whether this connection has to end after its current request.
    pub fn is_closing(&self) -> bool {
        self.entry.connections.closing.load(Ordering::SeqCst)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let connection = &self.connection;
        self.connections
            .remove(|open| open.connections.retain(|one| !Weak::ptr_eq(one, connection)));
    }
}

/// One open connection.
pub struct Connection {
    pub stream: TcpStream,
    /// `None` while a request is in progress, and once the server has closed it.
    idle_since: Mutex<Option<Instant>>,
}

impl Connection {
    /// Allows the server to close it: every request has its reply.
    pub fn set_idle(&self) {
        *mutex::lock(&self.idle_since) = Some(Instant::now());
    }

    /// Protects a request that has begun, even if the server has just closed the connection.
    pub fn set_busy(&self) {
        *mutex::lock(&self.idle_since) = None;
    }

    fn idle_since(&self) -> Option<Instant> {
        *mutex::lock(&self.idle_since)
    }

    /// Closes it if it is idle. Bytes that have arrived are a request that has begun.
    pub fn close_if_idle(&self) -> bool {
        let mut idle_since = mutex::lock(&self.idle_since);
        let is_idle = idle_since.is_some()
            && sys::wait_readable([self.stream.as_fd()], Some(Duration::ZERO))
                .is_ok_and(|[readable]| !readable);
        if is_idle {
            *idle_since = None;
            // Its thread, which is blocked in a read, finds the end there. An error means that the
            // peer was faster.
            drop(self.stream.shutdown(Shutdown::Read));
        }
        is_idle
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Adds a connection; returns its guard and the client's end.
    fn connect(all: &Arc<Connections>, listener: &TcpListener) -> (ConnectionGuard, TcpStream) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        (all.grow().add(stream), client)
    }

    fn is_closed(guard: &ConnectionGuard) -> bool {
        let readable = sys::wait_readable([guard.connection.stream.as_fd()], Some(Duration::ZERO));
        readable.unwrap() == [true] && (&guard.connection.stream).read(&mut [0; 1]).unwrap() == 0
    }

    #[test]
    fn the_longest_idle_connection_is_closed_first_and_a_busy_one_never() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let all = Arc::<Connections>::default();
        let (busy, _a) = connect(&all, &listener);
        let (asked_again, _b) = connect(&all, &listener);
        let (idle, _c) = connect(&all, &listener);
        let (asking, mut client) = connect(&all, &listener);
        idle.connection.set_idle();
        asked_again.connection.set_idle();
        asking.connection.set_idle();
        client.write_all(b"G").unwrap();
        assert!(all.close_idle());
        assert!(is_closed(&idle) && !is_closed(&asked_again));
        assert!(all.close_idle());
        assert!(is_closed(&asked_again) && !is_closed(&busy));
        assert!(!all.close_idle());
        assert_eq!((&asking.connection.stream).read(&mut [0; 2]).unwrap(), 1);
        assert!(!is_closed(&asking) && !is_closed(&busy));
    }
}
