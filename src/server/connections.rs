//! Who is connected: how many, who is idle, and who has to go.
//!
//! A connection belongs to the thread that serves it. The table only knows of it, and forgets it
//! when its socket has been closed, whatever the reason. A request that has begun is cut by
//! [`Connections::cut`] and by nothing else.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::limits::{ACCEPT_PAUSE, CONNECTIONS_MAX};
use crate::{mutex, sys};

/// The open connections of one server.
pub struct Connections {
    open: Mutex<Open>,
    one_ended: Condvar,
    closing: AtomicBool,
    born: Instant,
}

#[derive(Default)]
struct Open {
    connections: Vec<Weak<Connection>>,
    when_empty: Option<Box<dyn FnOnce() + Send>>,
}

impl Open {
    fn connections(&self) -> impl Iterator<Item = Arc<Connection>> {
        self.connections.iter().filter_map(Weak::upgrade)
    }
}

/// A connection and its place in the table, which is free when the socket has been closed.
pub struct ConnectionGuard {
    pub connection: Arc<Connection>,
    // Dropped second: who waits for room must find the descriptor free.
    place: Place,
}

struct Place {
    table: Arc<Connections>,
    connection: Weak<Connection>,
}

impl Connections {
    /// A table with nobody in it.
    pub fn new() -> Connections {
        Connections {
            open: Mutex::default(),
            one_ended: Condvar::new(),
            closing: AtomicBool::new(false),
            born: Instant::now(),
        }
    }

    /// A place for `stream`, or `stream` back if all are taken.
    pub fn guard(self: &Arc<Connections>, stream: TcpStream) -> Result<ConnectionGuard, TcpStream> {
        let mut open = mutex::lock(&self.open);
        if open.connections.len() >= CONNECTIONS_MAX {
            return Err(stream);
        }
        let connection =
            Arc::new(Connection { stream, born: self.born, idle_since: AtomicU64::new(0) });
        connection.rest();
        let place = Place { table: Arc::clone(self), connection: Arc::downgrade(&connection) };
        open.connections.push(Weak::clone(&place.connection));
        Ok(ConnectionGuard { connection, place })
    }

    /// Ends the connection that has been idle longest and waits until it has gone. `false` if
    /// nobody is idle.
    pub fn make_room(&self) -> bool {
        let open = mutex::lock(&self.open);
        let before = open.connections.len();
        let mut idle: Vec<_> = open
            .connections()
            .filter_map(|connection| Some((connection.idle_since()?, connection)))
            .collect();
        idle.sort_by_key(|(since, _)| *since);
        let evicted = idle.iter().any(|(_, connection)| connection.evict());
        drop(idle);
        if !evicted {
            return false;
        }
        let (open, _) = mutex::wait_timeout_while(&self.one_ended, open, ACCEPT_PAUSE, |open| {
            open.connections.len() >= before
        });
        open.connections.len() < before
    }

    /// From now on no connection outlives the request that it is busy with, and the idle ones end
    /// at once. `when_empty` is called when the last has gone. To be called when nobody is seated
    /// any more.
    pub fn close(&self, when_empty: Box<dyn FnOnce() + Send>) {
        self.closing.store(true, Ordering::SeqCst);
        let mut open = mutex::lock(&self.open);
        if open.connections.is_empty() {
            drop(open);
            return when_empty();
        }
        open.when_empty = Some(when_empty);
        for connection in open.connections() {
            connection.evict();
        }
    }

    /// Whether [`Connections::close`] was called.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Ends every connection in the middle of whatever it is at.
    pub fn cut(&self) {
        for connection in mutex::lock(&self.open).connections() {
            // An error means that the peer was faster.
            drop(connection.stream.shutdown(Shutdown::Both));
        }
    }
}

impl ConnectionGuard {
    /// Whether this connection should end after the request that it is at.
    pub fn is_closing(&self) -> bool {
        self.place.table.is_closing()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = mutex::lock(&self.table.open);
        open.connections.retain(|one| !Weak::ptr_eq(one, &self.connection));
        let when_empty = if open.connections.is_empty() { open.when_empty.take() } else { None };
        drop(open);
        self.table.one_ended.notify_all();
        if let Some(when_empty) = when_empty {
            when_empty();
        }
    }
}

/// One open connection.
pub struct Connection {
    pub stream: TcpStream,
    born: Instant,
    /// Nanoseconds from the birth of the table; or [`BUSY`] or [`EVICTED`].
    idle_since: AtomicU64,
}

const BUSY: u64 = u64::MAX;
const EVICTED: u64 = u64::MAX - 1;

impl Connection {
    /// Nothing has been asked that is not answered: from now on it may be ended.
    pub fn rest(&self) {
        let now = u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(0);
        self.idle_since.store(now, Ordering::SeqCst);
    }

    /// A request has begun: it will not be cut, even if it was faster by a hair than an eviction.
    pub fn wake(&self) {
        self.idle_since.store(BUSY, Ordering::SeqCst);
    }

    fn idle_since(&self) -> Option<u64> {
        let since = self.idle_since.load(Ordering::SeqCst);
        (since < EVICTED).then_some(since)
    }

    /// Ends it if it is idle. What has arrived and is not read yet is a request that has begun.
    pub fn evict(&self) -> bool {
        let Some(since) = self.idle_since() else {
            return false;
        };
        let silent = sys::wait_readable([self.stream.as_fd()], Some(Duration::ZERO))
            .is_ok_and(|[readable]| !readable);
        let evicted = silent
            && self
                .idle_since
                .compare_exchange(since, EVICTED, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok();
        if evicted {
            // Its thread, blocked in a read, finds the end there. An error means that it has
            // already.
            drop(self.stream.shutdown(Shutdown::Read));
        }
        evicted
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// A guard, and the client's end of its connection.
    fn seated(table: &Arc<Connections>, listener: &TcpListener) -> (ConnectionGuard, TcpStream) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        (table.guard(stream).ok().unwrap(), client)
    }

    fn is_evicted(guard: &ConnectionGuard) -> bool {
        let readable = sys::wait_readable([guard.connection.stream.as_fd()], Some(Duration::ZERO));
        readable.unwrap() == [true] && (&guard.connection.stream).read(&mut [0; 1]).unwrap() == 0
    }

    #[test]
    fn the_longest_idle_goes_first_and_who_is_busy_never() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let table = Arc::new(Connections::new());
        let (busy, _a) = seated(&table, &listener);
        let (asked_again, _b) = seated(&table, &listener);
        let (idle, _c) = seated(&table, &listener);
        let (asking, mut client) = seated(&table, &listener);
        busy.connection.wake();
        asked_again.connection.wake();
        asked_again.connection.rest();
        client.write_all(b"G").unwrap();
        // Nobody serves these, so nobody ends.
        assert!(!table.make_room());
        assert!(is_evicted(&idle) && !is_evicted(&asked_again));
        assert!(!table.make_room());
        assert!(is_evicted(&asked_again) && !is_evicted(&busy));
        assert!(!table.make_room());
        assert_eq!((&asking.connection.stream).read(&mut [0; 2]).unwrap(), 1);
        assert!(!is_evicted(&asking) && !is_evicted(&busy));
    }
}
