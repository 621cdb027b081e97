//! The event loop: accepts connections, and holds them until they need a thread.
//!
//! No error of `accept` ends it. Its only timers are the deadlines of the connections that it
//! holds: an idle server does not run.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use crate::error::reason;
use crate::limits::{
    ACCEPT_BATCH, ACCEPT_PAUSE, CONNECTIONS_MAX, HEAD_BYTES_MAX, LOG_REPEAT_EVERY,
    MEMORY_RESERVE_BYTES,
};
use crate::sys::poll::PollSet;
use crate::sys::{self, Interest, memory};

use super::connections::{Connections, Growing};
use super::held::{HeldConnection, Next, Responder};
use super::reply::Reply;
use super::routes::App;
use super::workers::{Job, Workers};

/// The event loop. [`EventLoop::run`] is its thread.
pub struct EventLoop {
    /// Non-blocking: a client may leave between `poll` and `accept`. The sender is dropped after
    /// it.
    accepting: Option<(TcpListener, Sender<()>)>,
    /// A byte means to accept no more connections, its end to close those that are held.
    wake: UnixStream,
    connections: Option<Growing>,
    workers: Arc<Workers>,
    responder: Responder,
    held: Vec<HeldConnection>,
    files: PollSet,
    /// Until then, no connection is accepted.
    paused_until: Option<Instant>,
    /// When an error was last logged.
    logged: Option<Instant>,
}

impl EventLoop {
    /// Makes the event loop of a server.
    pub fn new(
        listener: TcpListener,
        closing: Sender<()>,
        wake: UnixStream,
        connections: &Arc<Connections>,
        app: Arc<App>,
    ) -> EventLoop {
        EventLoop {
            accepting: Some((listener, closing)),
            wake,
            connections: Some(connections.grow()),
            workers: Arc::new(Workers::new(Arc::clone(&app))),
            responder: Responder::new(app),
            held: Vec::new(),
            files: PollSet::default(),
            paused_until: None,
            logged: None,
        }
    }

    /// Serves until it is stopped and holds no connection.
    pub fn run(mut self) {
        while self.accepting.is_some() || !self.held.is_empty() {
            if let Err(error) = self.wait() {
                self.log("cannot wait for connections", &error);
                drop(sys::wait_readable([self.wake.as_fd()], Some(ACCEPT_PAUSE)));
            }
            if self.files.is_ready(0) {
                match self.wake.read(&mut [0]) {
                    Ok(1..) => self.stop(),
                    _ => break,
                }
            } else {
                self.serve();
            }
        }
        self.workers.dismiss();
    }

    /// Waits for a file that is ready, or for the first deadline.
    fn wait(&mut self) -> io::Result<()> {
        self.files.clear();
        self.files.add(self.wake.as_fd(), Interest::Read);
        for held in &self.held {
            let (file, interest) = held.interest();
            self.files.add(file, interest);
        }
        let mut first = self.held.iter().map(|held| held.deadline).min();
        if let Some((listener, _)) = &self.accepting {
            match self.paused_until {
                Some(until) => first = Some(first.map_or(until, |first| first.min(until))),
                None => self.files.add(listener.as_fd(), Interest::Read),
            }
        }
        let left = |first: Instant| first.saturating_duration_since(Instant::now());
        self.files.wait(first.map(left))
    }

    /// Serves the files that are ready.
    fn serve(&mut self) {
        let now = Instant::now();
        let accepts = self.files.is_ready(self.held.len() + 1);
        // From the last to the first: taking one out moves only those that have been seen.
        for index in (0..self.held.len()).rev() {
            let Some(held) = self.held.get_mut(index) else { continue };
            let next = if self.files.is_ready(index + 1) {
                guarded(|| self.responder.advance(held))
            } else if held.deadline <= now {
                guarded(|| self.responder.expire(held))
            } else {
                continue;
            };
            if next != Next::Hold {
                let held = self.held.swap_remove(index);
                self.follow(held, next);
            }
        }
        if accepts || self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            self.accept();
        }
    }

    fn follow(&mut self, held: HeldConnection, next: Next) {
        match next {
            Next::Hold => self.held.push(held),
            Next::Close => {}
            Next::HandOver => self.hand_over(held),
        }
    }

    /// Has a thread serve the connection.
    fn hand_over(&mut self, held: HeldConnection) {
        let Some(connections) = &self.connections else { return };
        let (stream, unread, output) = held.into_parts();
        let is_replied = output.is_empty();
        let guard = connections.add(stream);
        let connection = Arc::clone(&guard.connection);
        let started = memory::reserve(MEMORY_RESERVE_BYTES)
            .and_then(|()| self.workers.serve(Job { guard, unread, output }));
        if let Err(error) = started {
            // It would be taken for the rest of an earlier reply.
            if is_replied {
                refuse(&connection.stream, "no thread can be started for the connection");
            }
            drop(connection);
            self.close_idle();
            self.log("cannot serve a connection", &error);
        }
    }

    fn accept(&mut self) {
        for count in 0..ACCEPT_BATCH {
            let Some((listener, _)) = &self.accepting else { return };
            match listener.accept() {
                Ok((stream, _)) => self.add(stream),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    // The client left.
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    // Without descriptors, it fails before it looks for a connection.
                    _ if count > 0 => return,
                    _ => {
                        self.log("cannot accept a connection", &error);
                        if !self.make_room() {
                            self.close_idle();
                            self.paused_until = Some(Instant::now() + ACCEPT_PAUSE);
                        }
                        return;
                    }
                },
            }
        }
    }

    fn add(&mut self, stream: TcpStream) {
        let served = self.connections.as_ref().map_or(0, |all| all.connections().count());
        let is_full = self.held.len() + served >= CONNECTIONS_MAX;
        if is_full && !self.make_room() && !self.close_idle() {
            return refuse(&stream, "too many connections are open");
        }
        let idle = self.responder.app.deadlines.idle;
        // Fails if the client has left.
        if let Ok(mut held) = HeldConnection::new(stream, idle) {
            // The request has usually arrived.
            let next = guarded(|| self.responder.advance(&mut held));
            self.follow(held, next);
        }
    }

    /// Closes the connection that has waited for a request for the longest time, one without the
    /// token first. Returns `false` if none can be closed at once.
    fn make_room(&mut self) -> bool {
        let expendable = self.held.iter().enumerate();
        let oldest = expendable.filter_map(|(index, held)| Some((held.expendable()?, index))).min();
        if let Some((_, index)) = oldest {
            drop(self.held.swap_remove(index));
        }
        oldest.is_some()
    }

    /// Closes the connection with a thread that has been idle for the longest time.
    fn close_idle(&self) -> bool {
        self.connections.as_ref().is_some_and(|all| all.connections().close_idle())
    }

    /// Closes the listener, then the connections that have not begun a request.
    fn stop(&mut self) {
        let Some((listener, _closed)) = self.accepting.take() else { return };
        drop(listener);
        self.responder.stopping = true;
        for mut held in std::mem::take(&mut self.held) {
            let next = guarded(|| self.responder.advance(&mut held));
            self.follow(held, next);
        }
        if self.held.is_empty() {
            self.connections = None;
        }
    }

    fn log(&mut self, message: &str, cause: &io::Error) {
        let now = Instant::now();
        if self.logged.is_none_or(|logged| now.duration_since(logged) >= LOG_REPEAT_EVERY) {
            self.logged = Some(now);
            self.responder.app.log.error(message, &[("cause", &reason(cause))]);
        }
    }
}

/// Serves a connection. A panic costs this connection and no other.
fn guarded(serve: impl FnOnce() -> Next) -> Next {
    catch_unwind(AssertUnwindSafe(serve)).unwrap_or(Next::Close)
}

/// Tells a client why it is not served, without waiting for it.
fn refuse(stream: &TcpStream, reason: &str) {
    let reply = Reply::error(503, "BUSY", reason).with("Retry-After", "1").closing();
    // An error means that the client left.
    drop(send_last(stream, reply));
}

fn send_last(mut stream: &TcpStream, reply: Reply) -> io::Result<()> {
    let mut text = Vec::new();
    reply.print(&mut text)?;
    stream.set_nonblocking(true)?;
    stream.write_all(&text)?;
    stream.shutdown(Shutdown::Write)?;
    // Closing with an unread request would reset the connection; the reset can overtake the reply.
    stream.read(&mut [0; HEAD_BYTES_MAX]).map(drop)
}
