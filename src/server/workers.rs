//! The threads that serve connections: one each, and a few that wait for the next.
//!
//! Starting a thread takes longer than answering a request. A thread that waits has a channel of
//! its own and is taken off the list before it is given work, so no connection can be left with a
//! thread that has another.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::limits::{CONNECTION_STACK_BYTES, THREADS_SPARE_MAX};
use crate::mutex;

use super::Deadlines;
use super::connection;
use super::connections::ConnectionGuard;
use super::routes::App;

/// See the module.
pub struct Workers {
    app: Arc<App>,
    deadlines: Deadlines,
    /// Those who wait for work; `None` when there will be no more.
    spare: Mutex<Option<Vec<Sender<ConnectionGuard>>>>,
}

impl Workers {
    /// A workers of nobody.
    pub fn new(app: Arc<App>, deadlines: Deadlines) -> Workers {
        Workers { app, deadlines, spare: Mutex::new(Some(Vec::new())) }
    }

    /// Has the connection in `guard` served until it ends. Fails if no thread can be started.
    pub fn serve(self: &Arc<Workers>, guard: ConnectionGuard) -> io::Result<()> {
        let Some(guard) = self.hand_over(guard) else {
            return Ok(());
        };
        let workers = Arc::clone(self);
        thread::Builder::new()
            .name("connection".to_owned())
            .stack_size(CONNECTION_STACK_BYTES)
            .spawn(move || workers.work(guard))
            .map(drop)
    }

    /// Lets those go who wait, and the others after the connection that they are at.
    pub fn dismiss(&self) {
        mutex::lock(&self.spare).take();
    }

    /// Gives `guard` to a thread that waits, or back if none does.
    fn hand_over(&self, guard: ConnectionGuard) -> Option<ConnectionGuard> {
        let waiting = mutex::lock(&self.spare).as_mut().and_then(Vec::pop);
        match waiting {
            Some(thread) => thread.send(guard).err().map(|unsent| unsent.0),
            None => Some(guard),
        }
    }

    fn work(&self, first: ConnectionGuard) {
        let mut next = Some(first);
        while let Some(guard) = next {
            connection::serve(&guard, &self.app, self.deadlines);
            drop(guard);
            next = self.wait();
        }
    }

    /// The next connection for this thread; `None` if enough others wait, or there will be no more.
    fn wait(&self) -> Option<ConnectionGuard> {
        let (thread, seats) = channel();
        let mut spare = mutex::lock(&self.spare);
        spare.as_mut().filter(|spare| spare.len() < THREADS_SPARE_MAX)?.push(thread);
        drop(spare);
        seats.recv().ok()
    }
}
