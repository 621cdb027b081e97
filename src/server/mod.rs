//! The HTTP server: one thread a connection, answering in place, under fixed limits.
//!
//! The sockets, the accept loop and the reading of requests are its own; `tiny_http` lends the
//! words of HTTP and prints the answers. Its `Server` is not used: it has no limits and no
//! timeouts, and several ordinary requests leave it with fewer threads than before.
//!
//! It does not bind, and it knows nothing of processes, files and signals: it is given a listener
//! and something to answer from.

mod auth;
mod connection;
mod connections;
mod listener;
mod reply;
mod request;
mod routes;
mod sessions;
mod stream;
#[cfg(test)]
mod tests;
mod workers;

use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::error::{Doing, Error};
use crate::limits;

use connections::Connections;
use listener::Acceptor;
pub use routes::App;
use workers::Workers;

/// A server that accepts connections.
pub struct Server {
    table: Arc<Connections>,
    acceptor: JoinHandle<()>,
    /// Closing it ends the accept loop.
    wake: UnixStream,
}

/// A server that accepts no more, and whose connections are ending. Dropping it ends those that are
/// left in the middle of whatever they are at.
pub struct Stopping(Arc<Connections>);

/// How long a client may take; see [`limits`].
#[derive(Clone, Copy)]
pub struct Deadlines {
    pub idle: Duration,
    pub head: Duration,
    pub body: Duration,
    pub write: Duration,
    pub drain: Duration,
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        Deadlines {
            idle: limits::IDLE_MAX,
            head: limits::HEAD_MAX,
            body: limits::BODY_MAX,
            write: limits::WRITE_MAX,
            drain: limits::DRAIN_MAX,
        }
    }
}

impl Server {
    /// Serves `app` on `listener`. Fails if the system has no descriptor or thread to spare.
    pub fn start(listener: TcpListener, app: Arc<App>) -> Result<Server, Error> {
        Server::start_with(listener, app, Deadlines::default())
    }

    fn start_with(
        listener: TcpListener,
        app: Arc<App>,
        deadlines: Deadlines,
    ) -> Result<Server, Error> {
        const DOING: &str = "start the server";
        listener.set_nonblocking(true).doing(DOING)?;
        let (wake, woken) = UnixStream::pair().doing(DOING)?;
        let table = Arc::new(Connections::new());
        let door = Acceptor {
            listener,
            wake: woken,
            table: Arc::clone(&table),
            log: app.log.clone(),
            workers: Arc::new(Workers::new(app, deadlines)),
            complained: None,
        };
        let acceptor =
            thread::Builder::new().name("accept".to_owned()).spawn(|| door.run()).doing(DOING)?;
        Ok(Server { table, acceptor, wake })
    }

    /// Stops accepting; when this returns, the port is free. Idle connections end now, the others
    /// with the answer that they are at. `gone` is called when the last has ended, perhaps before
    /// this returns.
    #[must_use = "dropping it cuts the connections that are busy"]
    pub fn stop(self, gone: impl FnOnce() + Send + 'static) -> Stopping {
        drop(self.wake);
        // An error would be a panic of the loop, which leaves the listener closed as well.
        drop(self.acceptor.join());
        self.table.close(Box::new(gone));
        Stopping(self.table)
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.cut();
    }
}
