//! The thread that sends new events to followers which would otherwise be woken for each.
//!
//! To wake a thread takes longer than to send an event, and an event may have hundreds of
//! followers. So one thread sends them what is short and was just written. What might take longer
//! is left to the follower's own thread: what a slow client has missed, long events, and what needs
//! a lock that is held during writes.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::limits;
use crate::mutex::{lock, wait_timeout_while};

/// A follower that can be served by the [`Dispatcher`].
pub trait Target: Send + Sync {
    /// Sends the new events without waiting. If nothing is left, the follower's waker is armed.
    fn dispatch(&self) -> Left;

    /// Wakes its own thread.
    fn wake_thread(&self);
}

/// What is left to be done for a follower.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Nothing,
    /// Something for its own thread.
    ForThread,
    /// Something that must not be done before this.
    Until(Instant),
}

/// The thread, which starts when it is first needed, and what it has to do.
#[derive(Default)]
pub struct Dispatcher {
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Default)]
struct Queue {
    targets: VecDeque<Weak<dyn Target>>,
    has_thread: bool,
}

impl Dispatcher {
    /// Starts the thread, if there is none.
    pub fn start(self: &Arc<Dispatcher>) -> io::Result<()> {
        let mut queue = lock(&self.queue);
        if !queue.has_thread {
            let dispatcher = Arc::clone(self);
            thread::Builder::new()
                .name("dispatcher".to_owned())
                .stack_size(limits::CONNECTION_STACK_BYTES)
                .spawn(move || dispatcher.run())?;
            queue.has_thread = true;
        }
        Ok(())
    }

    /// Has the thread serve `target`.
    pub fn push(&self, target: &Weak<dyn Target>) {
        let mut queue = lock(&self.queue);
        queue.targets.push_back(Weak::clone(target));
        if queue.targets.len() == 1 {
            self.filled.notify_one();
        }
    }

    fn run(&self) {
        let mut targets = VecDeque::new();
        let mut held: Vec<(Instant, Weak<dyn Target>)> = Vec::new();
        loop {
            let due = held.iter().map(|(until, _)| *until).min();
            let limit =
                due.map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()));
            let queue = lock(&self.queue);
            let is_empty = |queue: &mut Queue| queue.targets.is_empty();
            let (mut queue, _) = wait_timeout_while(&self.filled, queue, limit, is_empty);
            std::mem::swap(&mut targets, &mut queue.targets);
            drop(queue);
            let now = Instant::now();
            targets
                .extend(held.extract_if(.., |(until, _)| *until <= now).map(|(_, target)| target));
            // Woken last: they would compete with this thread.
            let mut left = Vec::new();
            for target in targets.drain(..) {
                let Some(follower) = target.upgrade() else { continue };
                // A panic must not end the events of all others.
                let dispatched = catch_unwind(AssertUnwindSafe(|| follower.dispatch()));
                match dispatched.unwrap_or(Left::ForThread) {
                    Left::Nothing => {}
                    Left::ForThread => left.push(follower),
                    Left::Until(until) => held.push((until, target)),
                }
            }
            left.iter().for_each(|target| target.wake_thread());
        }
    }
}
