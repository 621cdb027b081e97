//! The HTTP server: one thread per connection, with fixed limits.
//!
//! The sockets, the accept loop and the parsing of requests are its own. Of `tiny_http` it uses the
//! types of HTTP and the response writer. That crate's `Server` has no limits and no timeouts, and
//! several ordinary requests reduce the number of its threads permanently.
//!
//! It binds no socket and does not deal with processes, files and signals: it gets a listener, and
//! an [`App`] that answers requests.

mod auth;
mod connections;
mod reply;
mod request;
mod request_loop;
mod routes;
mod session_handlers;
mod stream;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::error::{Doing, Error, reason};
use crate::limits::{
    ACCEPT_PAUSE, CONNECTION_STACK_BYTES, HEAD_BYTES_MAX, LOG_REPEAT_EVERY, SPARE_THREADS_MAX,
};
use crate::{mutex, sys};

use connections::{ConnectionGuard, Connections};
use reply::Reply;
pub use routes::{App, Deadlines};

/// A server that accepts connections.
pub struct Server {
    connections: Arc<Connections>,
    accepting: JoinHandle<()>,
    /// Closing it ends the accept loop.
    stop: UnixStream,
}

/// A server that accepts no more connections and whose connections are ending. Dropping it shuts
/// down those that are left.
pub struct Stopping(Arc<Connections>);

impl Server {
    /// Serves `app` on `listener`. Fails if the system has no descriptor or thread to spare.
    pub fn start(listener: TcpListener, app: Arc<App>) -> Result<Server, Error> {
        const DOING: &str = "start the server";
        listener.set_nonblocking(true).doing(DOING)?;
        let (stop, wake) = UnixStream::pair().doing(DOING)?;
        let connections = Arc::<Connections>::default();
        let workers = Arc::new(Workers { app, spare: Mutex::new(Some(Vec::new())) });
        let acceptor = Acceptor {
            listener,
            wake,
            connections: Arc::clone(&connections),
            workers,
            logged: None,
        };
        let thread = thread::Builder::new().name("accept".to_owned());
        let accepting = thread.spawn(|| acceptor.run()).doing(DOING)?;
        Ok(Server { connections, accepting, stop })
    }

    /// Stops accepting; when this returns, the port is free. Idle connections end now, each other
    /// one after its request. Calls `when_empty` after the last has ended, perhaps before this
    /// returns.
    #[must_use = "dropping it shuts down the connections that are busy"]
    pub fn stop(self, when_empty: impl FnOnce() + Send + 'static) -> Stopping {
        drop(self.stop);
        // An error would be a panic of the accept loop, which closes the listener as well.
        drop(self.accepting.join());
        self.connections.close(Box::new(when_empty));
        Stopping(self.connections)
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The accept loop. No error of `accept` ends it. It has no timer: an idle server does not run.
struct Acceptor {
    /// Non-blocking: a client may leave between `poll` and `accept`.
    listener: TcpListener,
    /// Becomes readable when the other end is closed; that ends the loop.
    wake: UnixStream,
    connections: Arc<Connections>,
    workers: Arc<Workers>,
    /// When an error was last logged.
    logged: Option<Instant>,
}

impl Acceptor {
    /// Accepts connections until it is woken, then closes the listener.
    fn run(mut self) {
        loop {
            match sys::wait_readable([self.wake.as_fd(), self.listener.as_fd()], None) {
                Ok([true, _]) => break,
                Ok(_) => self.accept(),
                Err(error) => self.back_off("cannot wait for connections", &error),
            }
        }
        self.workers.dismiss();
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) => self.serve(stream),
            Err(error) => match error.kind() {
                // The client left.
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                _ => self.back_off("cannot accept a connection", &error),
            },
        }
    }

    fn serve(&mut self, stream: TcpStream) {
        let added = self.connections.add(stream).or_else(|stream| {
            self.connections.make_room();
            self.connections.add(stream)
        });
        let guard = match added {
            Ok(guard) => guard,
            Err(stream) => return refuse(&stream, "too many connections are open"),
        };
        let connection = Arc::clone(&guard.connection);
        if let Err(error) = self.workers.serve(guard) {
            refuse(&connection.stream, "no thread can be started for the connection");
            drop(connection);
            self.back_off("cannot start a thread for a connection", &error);
        }
    }

    /// Makes up for a resource that the system has run out of: closes an idle connection, or else
    /// waits a little. The client stays in the queue.
    fn back_off(&mut self, message: &str, cause: &io::Error) {
        let now = Instant::now();
        if self.logged.is_none_or(|logged| now.duration_since(logged) >= LOG_REPEAT_EVERY) {
            self.logged = Some(now);
            self.workers.app.log.error(message, &[("cause", &reason(cause))]);
        }
        if !self.connections.make_room() {
            drop(sys::wait_readable([self.wake.as_fd()], Some(ACCEPT_PAUSE)));
        }
    }
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

/// The threads that serve connections: one for each, and a few spare ones, because starting a
/// thread takes longer than answering a request.
///
/// A spare thread has its own channel and is removed from the list before it is given a connection,
/// so no connection waits for a thread that is busy.
struct Workers {
    app: Arc<App>,
    /// The spare threads; `None` after [`Workers::dismiss`].
    spare: Mutex<Option<Vec<Sender<ConnectionGuard>>>>,
}

impl Workers {
    /// Has a thread serve the connection until it ends. Fails if none can be started.
    fn serve(self: &Arc<Workers>, guard: ConnectionGuard) -> io::Result<()> {
        let thread = mutex::lock(&self.spare).as_mut().and_then(Vec::pop);
        let guard = match thread {
            Some(thread) => match thread.send(guard) {
                Ok(()) => return Ok(()),
                Err(unsent) => unsent.0,
            },
            None => guard,
        };
        let workers = Arc::clone(self);
        thread::Builder::new()
            .name("connection".to_owned())
            .stack_size(CONNECTION_STACK_BYTES)
            .spawn(move || workers.work(guard))
            .map(drop)
    }

    /// Ends the spare threads now, and the others after their connections.
    fn dismiss(&self) {
        mutex::lock(&self.spare).take();
    }

    fn work(&self, first: ConnectionGuard) {
        let mut next = Some(first);
        while let Some(guard) = next {
            request_loop::serve(&guard, &self.app);
            drop(guard);
            next = self.wait();
        }
    }

    /// Waits for this thread's next connection; `None` if there are enough spare threads.
    fn wait(&self) -> Option<ConnectionGuard> {
        let (thread, connections) = channel();
        let mut spare = mutex::lock(&self.spare);
        spare.as_mut().filter(|spare| spare.len() < SPARE_THREADS_MAX)?.push(thread);
        drop(spare);
        connections.recv().ok()
    }
}
