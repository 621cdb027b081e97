//! The HTTP server: one thread per connection, with fixed limits.
//!
//! The sockets, the accept loop and the parsing of requests are its own. Of `tiny_http` it uses the
//! types of HTTP and the response writer. That crate's `Server` has no limits and no timeouts, and
//! several ordinary requests leave it with fewer threads than before.
//!
//! It binds nothing and knows nothing of processes, files and signals: it is given a listener and
//! an [`App`] to answer from.

mod auth;
mod connections;
mod listener;
mod reply;
mod request;
mod request_loop;
mod routes;
mod sessions;
mod stream;
#[cfg(test)]
mod tests;

use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::error::{Doing, Error};

use connections::Connections;
use listener::Acceptor;
use request_loop::Deadlines;
pub use routes::App;

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
        Server::start_with(listener, app, Deadlines::default())
    }

    fn start_with(
        listener: TcpListener,
        app: Arc<App>,
        deadlines: Deadlines,
    ) -> Result<Server, Error> {
        const DOING: &str = "start the server";
        listener.set_nonblocking(true).doing(DOING)?;
        let (stop, wake) = UnixStream::pair().doing(DOING)?;
        let connections = Arc::new(Connections::new());
        let acceptor = Acceptor::new(listener, wake, Arc::clone(&connections), app, deadlines);
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
