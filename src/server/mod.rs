//! The HTTP server: an event loop that reads requests, and one thread for each connection that has
//! shown the token; with fixed limits.
//!
//! The sockets, the event loop and the parsing of requests are its own. Of `tiny_http` it uses the
//! types of HTTP and the response writer. That crate's `Server` has no limits and no timeouts, and
//! several ordinary requests reduce the number of its threads permanently.
//!
//! It binds no socket and does not deal with processes, files and signals: it gets a listener, and
//! an [`App`] that answers requests.

mod auth;
mod connections;
mod event_loop;
mod held;
mod page;
mod reply;
mod request;
mod request_loop;
mod routes;
mod session_handlers;
mod stream;
#[cfg(test)]
mod tests;
mod websocket;
mod workers;

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use crate::error::{Doing, Error};
use crate::limits;
use crate::sys::socket;

use connections::Connections;
use event_loop::EventLoop;
pub use routes::{App, Deadlines, ModelServerView, Operations};

/// A server that accepts connections.
pub struct Server {
    connections: Arc<Connections>,
    /// A byte stops the event loop, closing it ends it.
    stop: UnixStream,
    /// Ends when the listener is closed.
    closed: Receiver<()>,
}

/// A server that accepts no more connections and whose connections are ending. Dropping it shuts
/// down those that are left.
pub struct Stopping {
    connections: Arc<Connections>,
    _stop: UnixStream,
}

impl Server {
    /// Serves `app` on `listener`. Fails if the system has no descriptor or thread to spare.
    pub fn start(listener: TcpListener, app: Arc<App>) -> Result<Server, Error> {
        const DOING: &str = "start the server";
        listener.set_nonblocking(true).doing(DOING)?;
        socket::set_backlog(&listener, limits::BACKLOG).doing(DOING)?;
        let (stop, wake) = UnixStream::pair().doing(DOING)?;
        let (closing, closed) = channel();
        let connections = Arc::<Connections>::default();
        let event_loop = EventLoop::new(listener, closing, wake, &connections, app);
        let thread = thread::Builder::new().name("accept".to_owned());
        thread.spawn(|| event_loop.run()).doing(DOING)?;
        Ok(Server { connections, stop, closed })
    }

    /// Stops accepting; when this returns, the port is free. Idle connections end now, each other
    /// one after its request. Calls `when_empty` after the last has ended, perhaps before this
    /// returns.
    #[must_use = "dropping it shuts down the connections that are busy"]
    pub fn stop(mut self, when_empty: impl FnOnce() + Send + 'static) -> Stopping {
        // Errors would mean a panic of the event loop, which closes the listener as well.
        drop(self.stop.write_all(b"."));
        for () in &self.closed {}
        self.connections.close(Box::new(when_empty));
        Stopping { connections: self.connections, _stop: self.stop }
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        self.connections.abort();
    }
}
