//! The threads that serve connections: one for each, and a few spare ones, because starting a
//! thread takes longer than answering a request.
//!
//! A spare thread has its own channel and is removed from the list before it is given a connection,
//! so no connection waits for a thread that is busy.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::limits::{CONNECTION_STACK_BYTES, SPARE_THREADS_MAX};
use crate::mutex;

use super::connections::ConnectionGuard;
use super::request_loop;
use super::routes::App;

/// The threads that serve connections.
pub struct Workers {
    app: Arc<App>,
    /// The spare threads; `None` after [`Workers::dismiss`].
    spare: Mutex<Option<Vec<Sender<Job>>>>,
}

/// A connection for a thread.
pub struct Job {
    pub guard: ConnectionGuard,
    /// What the client has sent: at least a head.
    pub unread: Vec<u8>,
    /// What is still to be written.
    pub output: Vec<u8>,
}

impl Workers {
    pub fn new(app: Arc<App>) -> Workers {
        Workers { app, spare: Mutex::new(Some(Vec::new())) }
    }

    /// Has a thread serve the connection until it ends. Fails if none can be started.
    pub fn serve(self: &Arc<Workers>, job: Job) -> io::Result<()> {
        let thread = mutex::lock(&self.spare).as_mut().and_then(Vec::pop);
        let job = match thread {
            Some(thread) => match thread.send(job) {
                Ok(()) => return Ok(()),
                Err(unsent) => unsent.0,
            },
            None => job,
        };
        let workers = Arc::clone(self);
        thread::Builder::new()
            .name("connection".to_owned())
            .stack_size(CONNECTION_STACK_BYTES)
            .spawn(move || workers.work(job))
            .map(drop)
    }

    /// Ends the spare threads now, and the others after their connections.
    pub fn dismiss(&self) {
        mutex::lock(&self.spare).take();
    }

    fn work(&self, first: Job) {
        let mut next = Some(first);
        while let Some(Job { guard, unread, output }) = next {
            request_loop::serve(&guard, &self.app, unread, output);
            drop(guard);
            next = self.wait();
        }
    }

    /// Waits for this thread's next connection; `None` if there are enough spare threads.
    fn wait(&self) -> Option<Job> {
        let (thread, connections) = channel();
        let mut spare = mutex::lock(&self.spare);
        spare.as_mut().filter(|spare| spare.len() < SPARE_THREADS_MAX)?.push(thread);
        drop(spare);
        connections.recv().ok()
    }
}
