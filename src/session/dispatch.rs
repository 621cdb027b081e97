//! The threads that send new events to followers which would otherwise be woken for each.
//!
//! To wake a thread takes longer than to send an event, and an event may have hundreds of
//! followers. So a few threads send them what is short and was just written. What might take longer
//! is left to the follower's own thread: what a slow client has missed, long events, and what needs
//! a lock that is held during writes.

use std::collections::VecDeque;
use std::io;
use std::iter;
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

/// The threads, which start when they are first needed, and what they have to do.
#[derive(Default)]
pub struct Dispatcher {
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Those that are being served.
    round: VecDeque<Weak<dyn Target>>,
    /// Those that are served after them.
    next: VecDeque<Weak<dyn Target>>,
    /// The number of threads.
    threads: usize,
    /// How many of them wait.
    waiting: usize,
}

impl Dispatcher {
    /// Starts the missing threads. Fails if none is running.
    pub fn start(self: &Arc<Dispatcher>) -> io::Result<()> {
        let mut queue = lock(&self.queue);
        while queue.threads < limits::DISPATCHER_THREADS {
            let dispatcher = Arc::clone(self);
            let started = thread::Builder::new()
                .name("dispatcher".to_owned())
                .stack_size(limits::CONNECTION_STACK_BYTES)
                .spawn(move || dispatcher.run());
            match started {
                Ok(_) => queue.threads += 1,
                Err(error) if queue.threads == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Queues targets.
    pub fn push(&self, targets: Vec<Weak<dyn Target>>) {
        let mut queue = lock(&self.queue);
        queue.next.extend(targets);
        let is_long = queue.next.len() > limits::TARGETS_OF_ONE_THREAD;
        let wanted = if is_long { limits::DISPATCHER_THREADS } else { 1 };
        // Those that are awake look again before they wait.
        let awake = queue.threads - queue.waiting;
        drop(queue);
        (awake..wanted).for_each(|_| self.filled.notify_one());
    }

    fn run(&self) {
        let mut held: Vec<(Instant, Weak<dyn Target>)> = Vec::new();
        loop {
            let length = self.wait(held.iter().map(|(until, _)| *until).min());
            let is_long = length > limits::TARGETS_OF_ONE_THREAD;
            if is_long {
                // Lets the thread that wrote the event continue: it may be on the same processor.
                thread::yield_now();
            }
            let began = Instant::now();
            let due: Vec<_> = held.extract_if(.., |(until, _)| *until <= began).collect();
            let due = due.into_iter().map(|(_, target)| target);
            let round = iter::repeat_with(|| lock(&self.queue).round.pop_front());
            let round = round.take(length).map_while(|target| target);
            let mut left = Vec::new();
            for target in due.chain(round) {
                let Some(follower) = target.upgrade() else { continue };
                // A panic must not end the events of all others.
                let dispatched = catch_unwind(AssertUnwindSafe(|| follower.dispatch()));
                match dispatched.unwrap_or(Left::ForThread) {
                    Left::Nothing => {}
                    Left::ForThread => left.push(follower),
                    Left::Until(until) => held.push((until, target)),
                }
            }
            let took = began.elapsed();
            // Last: these threads compete with this one.
            left.into_iter().for_each(|target| target.wake_thread());
            if is_long {
                self.rest(took.min(limits::DISPATCHER_REST_MAX));
            }
        }
    }

    /// Waits for targets, at the longest until `due`. Begins a round, if none is left of the last
    /// one. Returns how many there are.
    fn wait(&self, due: Option<Instant>) -> usize {
        let limit = due.map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()));
        let mut queue = lock(&self.queue);
        queue.waiting += 1;
        let is_empty = |queue: &mut Queue| queue.round.is_empty() && queue.next.is_empty();
        let (mut queue, _) = wait_timeout_while(&self.filled, queue, limit, is_empty);
        queue.waiting -= 1;
        if queue.round.is_empty() {
            let Queue { round, next, .. } = &mut *queue;
            std::mem::swap(round, next);
        }
        queue.round.len()
    }

    /// Gives many clients time to read. What is written meanwhile is sent in one piece.
    fn rest(&self, pause: Duration) {
        // Another thread is woken for what cannot wait.
        lock(&self.queue).waiting += 1;
        thread::park_timeout(pause);
        lock(&self.queue).waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A target that tells the test when it is called.
    struct Scripted {
        dispatched: Sender<Instant>,
        woken: Sender<Instant>,
        answer: fn(usize) -> Left,
        calls: Mutex<usize>,
    }

    impl Target for Scripted {
        fn dispatch(&self) -> Left {
            self.dispatched.send(Instant::now()).unwrap();
            let calls = {
                let mut calls = lock(&self.calls);
                *calls += 1;
                *calls
            };
            (self.answer)(calls)
        }

        fn wake_thread(&self) {
            self.woken.send(Instant::now()).unwrap();
        }
    }

    /// Returns a target that answers its calls by their number, and the times of its calls and of
    /// its wakeups.
    fn target(
        answer: fn(usize) -> Left,
    ) -> (Arc<dyn Target>, Receiver<Instant>, Receiver<Instant>) {
        let ((dispatched, calls), (woken, wakes)) = (channel(), channel());
        (Arc::new(Scripted { dispatched, woken, answer, calls: Mutex::default() }), calls, wakes)
    }

    fn started() -> Arc<Dispatcher> {
        let dispatcher = Arc::new(Dispatcher::default());
        dispatcher.start().unwrap();
        dispatcher
    }

    /// Waits until all threads wait for targets.
    fn settle(dispatcher: &Dispatcher) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let is_busy = || {
            let queue = lock(&dispatcher.queue);
            queue.waiting < queue.threads || !(queue.round.is_empty() && queue.next.is_empty())
        };
        while is_busy() {
            assert!(Instant::now() < deadline, "a thread is still busy");
            thread::park_timeout(Duration::from_millis(1));
        }
    }

    fn next(events: &Receiver<Instant>) -> Instant {
        events.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    #[test]
    fn each_of_many_is_served_once_for_each_push() {
        let dispatcher = started();
        let targets: Vec<_> = (0..300).map(|_| target(|_| Left::Nothing)).collect();
        let pushed = || targets.iter().map(|(target, ..)| Arc::downgrade(target)).collect();
        for _ in 0..50 {
            dispatcher.push(pushed());
            for (_, calls, _) in &targets {
                next(calls);
            }
        }
        settle(&dispatcher);
        for (_, calls, wakes) in &targets {
            assert!(calls.try_recv().is_err() && wakes.try_recv().is_err());
        }
    }

    /// A target that returns when as many threads serve it as there are.
    #[derive(Default)]
    struct Barrier {
        count: Mutex<usize>,
        changed: Condvar,
    }

    impl Barrier {
        /// Waits for the threads; returns whether all came.
        fn is_reached(&self) -> bool {
            let are_some_missing = |count: &mut usize| *count < limits::DISPATCHER_THREADS;
            let (count, limit) = (lock(&self.count), Duration::from_secs(60));
            !wait_timeout_while(&self.changed, count, limit, are_some_missing).1.timed_out()
        }
    }

    impl Target for Barrier {
        fn dispatch(&self) -> Left {
            *lock(&self.count) += 1;
            self.changed.notify_all();
            self.is_reached();
            Left::Nothing
        }

        fn wake_thread(&self) {}
    }

    #[test]
    fn many_are_served_by_all_threads() {
        let dispatcher = started();
        let barrier = Arc::new(Barrier::default());
        let target = Arc::clone(&barrier) as Arc<dyn Target>;
        let pushed = iter::repeat_with(|| Arc::downgrade(&target));
        dispatcher.push(pushed.take(limits::TARGETS_OF_ONE_THREAD + 1).collect());
        assert!(barrier.is_reached());
    }

    /// A target that remembers which threads serve it.
    #[derive(Default)]
    struct Threads(Mutex<Vec<thread::ThreadId>>);

    impl Target for Threads {
        fn dispatch(&self) -> Left {
            lock(&self.0).push(thread::current().id());
            (0..100).for_each(|_| thread::yield_now());
            Left::Nothing
        }

        fn wake_thread(&self) {}
    }

    #[test]
    fn a_few_are_served_by_one_thread() {
        let dispatcher = started();
        for _ in 0..20 {
            let threads = Arc::new(Threads::default());
            let target = Arc::clone(&threads) as Arc<dyn Target>;
            let pushed = iter::repeat_with(|| Arc::downgrade(&target));
            settle(&dispatcher);
            dispatcher.push(pushed.take(limits::TARGETS_OF_ONE_THREAD).collect());
            settle(&dispatcher);
            let mut seen = lock(&threads.0).clone();
            assert_eq!(seen.len(), limits::TARGETS_OF_ONE_THREAD);
            seen.dedup();
            assert_eq!(seen.len(), 1);
        }
    }

    #[test]
    fn a_panic_leaves_one_to_its_thread_and_ends_no_other() {
        let dispatcher = started();
        let failing = target(|_| panic!("of a test"));
        let other = target(|_| Left::Nothing);
        for _ in 0..limits::DISPATCHER_THREADS + 1 {
            dispatcher.push(vec![Arc::downgrade(&failing.0), Arc::downgrade(&other.0)]);
            next(&failing.1);
            next(&failing.2);
            next(&other.1);
        }
    }

    #[test]
    fn one_that_must_wait_is_served_again_in_time() {
        const HELD: Duration = Duration::from_millis(30);
        let dispatcher = started();
        let held = target(|call| match call {
            1 => Left::Until(Instant::now() + HELD),
            _ => Left::ForThread,
        });
        dispatcher.push(vec![Arc::downgrade(&held.0)]);
        let first = next(&held.1);
        assert!(next(&held.1) - first >= HELD);
        next(&held.2);
        assert!(held.1.try_recv().is_err());
    }

    #[test]
    fn one_that_is_gone_does_not_hinder_others() {
        let dispatcher = started();
        let (gone, other) = (target(|_| Left::Nothing), target(|_| Left::Nothing));
        let pushed = vec![Arc::downgrade(&gone.0), Arc::downgrade(&other.0)];
        drop(gone);
        dispatcher.push(pushed);
        next(&other.1);
    }
}
