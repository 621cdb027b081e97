//! Turns with agents of all kinds, and many threads at once.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::json::Raw;
use crate::log::{Level, Log, Rotation};
use crate::session::desk::{self, Decision, Problem, Session, Turn};
use crate::session::event::Draft;
use crate::session::journal::Durability;
use crate::session::rules::Founding;
use crate::session::runtime::Runtime;
use crate::session::store::Store;
use crate::session::turn::{Agent, Fault, Options, Selector, Stats, Submission};
use crate::{limits, sys};

use super::{PATIENCE, Scratch, id};

/// An agent that does what a function says.
struct Play<F>(F);

impl<F: Fn(&Turn<'_>) -> Result<Stats, Fault> + Send + Sync> Agent for Play<F> {
    fn run(&self, turn: &Turn<'_>) -> Result<Stats, Fault> {
        (self.0)(turn)
    }
}

fn runtime(
    scratch: &Scratch,
    agent: impl Fn(&Turn<'_>) -> Result<Stats, Fault> + Send + Sync + 'static,
) -> Arc<Runtime> {
    let rotation = Rotation { bytes: limits::LOG_BYTES_DEFAULT, files: 1 };
    let log = Log::open(scratch.path(), rotation, Level::Debug).unwrap();
    let store = Store::new(scratch.path().join("sessions"));
    Runtime::new(store, "daemon_x", log, Box::new(Play(agent)))
}

fn done() -> Result<Stats, Fault> {
    Ok(Stats::default())
}

/// An agent that says when it begins, and is done when it is told so or cancelled.
struct Held {
    begun: Receiver<String>,
    go: Arc<(Mutex<bool>, Condvar)>,
}

impl Held {
    fn new() -> (Held, impl Fn(&Turn<'_>) -> Result<Stats, Fault> + Send + Sync + 'static) {
        let (begin, begun): (Sender<String>, _) = channel();
        let go: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let gate = Arc::clone(&go);
        let agent = move |turn: &Turn<'_>| {
            begin.send(turn.content.to_owned()).unwrap();
            let mut open = gate.0.lock().unwrap();
            let deadline = Instant::now() + PATIENCE;
            while !*open && !turn.cancelled() {
                assert!(Instant::now() < deadline);
                // A cancelled turn is told by a flag alone.
                open = gate.1.wait_timeout(open, Duration::from_millis(1)).unwrap().0;
            }
            done()
        };
        (Held { begun, go }, agent)
    }

    fn begun(&self) -> String {
        self.begun.recv_timeout(PATIENCE).unwrap()
    }

    fn release(&self) {
        *self.go.0.lock().unwrap() = true;
        self.go.1.notify_all();
    }
}

fn turn(content: &str) -> Submission {
    Submission {
        turn_id: Some(content.to_owned()),
        client_id: "client".to_owned(),
        writer_id: "writer".to_owned(),
        content: content.to_owned(),
        mode: None,
        last_seen_seq: None,
        metadata: None,
        options: Options::default(),
    }
}

fn create(runtime: &Runtime, name: &str) -> Arc<Session> {
    runtime.create(Some(id(name)), &Founding::default()).unwrap()
}

/// All events so far: `name` of what, and of which turn.
fn events(session: &Session) -> Vec<String> {
    let mut events = Vec::new();
    session
        .reader()
        .all(|record| {
            let field = |name: &str| {
                let rest = record.payload.split_once(&format!("\"{name}\":\""))?.1;
                Some(rest.split_once('"')?.0.to_owned())
            };
            assert_eq!(record.seq, events.len() as u64 + 1);
            let mut text = record.event.to_owned();
            if record.event != "session.snapshot" {
                for part in [field("turnId"), field("code")].into_iter().flatten() {
                    text = format!("{text} {part}");
                }
            }
            events.push(text);
        })
        .unwrap();
    events
}

/// Waits until there is this event.
#[track_caller]
fn wait_for(session: &Arc<Session>, event: &str) {
    let bell = session.subscribe().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        bell.await_next();
        let events = events(session);
        if events.iter().any(|found| found == event) {
            return;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "there is no {event} in {events:?}");
        sys::wait_readable([std::os::fd::AsFd::as_fd(&*bell)], Some(left)).unwrap();
        bell.silence();
    }
}

/// Waits until nothing is in progress: then `leave_if_idle` succeeds, so a runtime's last act.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::park_timeout(Duration::from_millis(1));
    }
}

#[test]
fn turns_of_a_session_run_one_by_one_in_the_order_in_which_they_came() {
    let scratch = Scratch::new();
    let (held, agent) = Held::new();
    let runtime = runtime(&scratch, agent);
    let session = create(&runtime, "s");
    for number in 0..50_u64 {
        let accepted = runtime.submit(&session, &turn(&format!("t{number}"))).unwrap();
        // The first one may have begun already, or not.
        assert!(accepted.queued == number || accepted.queued + 1 == number);
    }
    assert_eq!(held.begun(), "t0");
    assert_eq!((runtime.counts().active_turns, runtime.counts().queued_turns), (1, 49));
    held.release();
    for number in 1..50 {
        assert_eq!(held.begun(), format!("t{number}"));
    }
    wait_for(&session, "turn.done t49");
    let ran: Vec<String> = events(&session)
        .into_iter()
        .filter(|event| event.starts_with("turn.start") || event.starts_with("turn.done"))
        .collect();
    let expected: Vec<String> =
        (0..50).flat_map(|n| [format!("turn.start t{n}"), format!("turn.done t{n}")]).collect();
    assert_eq!(ran, expected);
    assert_eq!(runtime.counts().turns, 50);
}

#[test]
fn sixteen_sessions_are_active_and_the_others_wait() {
    let scratch = Scratch::new();
    let active = Arc::new(AtomicUsize::new(0));
    let (held, held_agent) = Held::new();
    let counted = Arc::clone(&active);
    let runtime = runtime(&scratch, move |turn| {
        assert!(counted.fetch_add(1, Ordering::SeqCst) < limits::ACTIVE_TURNS_MAX);
        let outcome = held_agent(turn);
        counted.fetch_sub(1, Ordering::SeqCst);
        outcome
    });
    let sessions: Vec<_> = (0..40).map(|n| create(&runtime, &format!("s{n}"))).collect();
    for (number, session) in sessions.iter().enumerate() {
        runtime.submit(session, &turn(&format!("t{number}"))).unwrap();
    }
    for _ in 0..limits::ACTIVE_TURNS_MAX {
        held.begun();
    }
    assert_eq!(active.load(Ordering::SeqCst), 16);
    let counts = runtime.counts();
    assert_eq!((counts.active_turns, counts.queued_turns, counts.sessions), (16, 24, 40));
    held.release();
    for (number, session) in sessions.iter().enumerate() {
        wait_for(session, &format!("turn.done t{number}"));
    }
    wait_until("all workers have gone", || runtime.counts().active_turns == 0);
    assert_eq!(runtime.counts().queued_turns, 0);
}

#[test]
fn the_same_id_from_many_clients_at_once_is_one_turn() {
    let scratch = Scratch::new();
    let ran = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ran);
    let runtime = runtime(&scratch, move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        done()
    });
    let session = create(&runtime, "s");
    for round in 0..20 {
        let name = format!("t{round}");
        let barrier = Barrier::new(8);
        let seqs: Vec<u64> = thread::scope(|scope| {
            let submit = || {
                barrier.wait();
                runtime.submit(&session, &turn(&name)).unwrap().seq
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(submit)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(seqs.iter().all(|seq| *seq == seqs[0]), "{seqs:?}");
        wait_for(&session, &format!("turn.done {name}"));
        assert_eq!(runtime.submit(&session, &turn(&name)).unwrap().seq, seqs[0]);
    }
    assert_eq!(ran.load(Ordering::SeqCst), 20);
    assert_eq!(session.summary().turns, 20);
}

#[test]
fn cancel_reaches_what_it_names_and_nothing_else() {
    let scratch = Scratch::new();
    let (held, agent) = Held::new();
    let runtime = runtime(&scratch, agent);
    let session = create(&runtime, "s");
    for (name, writer) in
        [("t0", "ann"), ("t1", "ann"), ("t2", "bob"), ("t3", "ann"), ("t4", "bob")]
    {
        let submission = Submission { writer_id: writer.to_owned(), ..turn(name) };
        runtime.submit(&session, &submission).unwrap();
    }
    assert_eq!(held.begun(), "t0");
    assert_eq!(session.summary().writer_count, 2);
    let cancel = |turn_id: Option<&str>, writer_id: Option<&str>| {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let selector = Selector { turn_id: owned(turn_id), writer_id: owned(writer_id) };
        let cancelled = runtime.cancel(&session, &selector).unwrap();
        (cancelled.queued, cancelled.active)
    };
    assert_eq!(cancel(Some("nothing"), None), (0, false));
    assert_eq!(cancel(None, Some("nobody")), (0, false));
    assert_eq!(cancel(Some("t1"), Some("bob")), (0, false));
    let before = session.reader().last_seq();
    assert_eq!(cancel(Some("t4"), None), (1, false));
    assert_eq!(session.reader().last_seq(), before + 2);
    assert_eq!(cancel(None, Some("bob")), (1, false));
    // Done is what the agent says when it is cancelled; cancelled is how the turn ends.
    assert_eq!(cancel(None, None), (0, true));
    assert_eq!(held.begun(), "t1");
    assert_eq!(cancel(None, Some("ann")), (1, true));
    wait_for(&session, "turn.error t1 cancelled");
    let ends: Vec<String> = events(&session)
        .into_iter()
        .filter(|event| event.starts_with("turn.error") || event.starts_with("turn.done"))
        .collect();
    assert_eq!(
        ends,
        [
            "turn.error t4 cancelled",
            "turn.error t2 cancelled",
            "turn.error t0 cancelled",
            "turn.error t3 cancelled",
            "turn.error t1 cancelled",
        ]
    );
    assert_eq!(cancel(None, None), (0, false));
    wait_until("it is idle", || runtime.leave_if_idle().is_ok());
}

const FOR_LONG: desk::Patience = {
    let limit = Duration::from_secs(600);
    desk::Patience { limit, alone: limit }
};

#[test]
fn of_many_decisions_one_wins_and_the_turn_acts_on_it() {
    let scratch = Scratch::new();
    let (told, allowed) = channel();
    let runtime = runtime(&scratch, move |turn| {
        let input = Raw::parse(r#"{"command":"true"}"#).unwrap();
        told.send(turn.may("run_command", &input, FOR_LONG).unwrap()).unwrap();
        done()
    });
    let (session, other) = (create(&runtime, "s"), create(&runtime, "other"));
    for round in 0..20 {
        let name = format!("t{round}");
        runtime.submit(&session, &turn(&name)).unwrap();
        wait_for(&session, &format!("permission.request {name}"));
        let mut request = String::new();
        session
            .reader()
            .all(|record| {
                if record.event == "permission.request" {
                    let rest = record.payload.split_once("\"requestId\":\"").unwrap().1;
                    rest.split_once('"').unwrap().0.clone_into(&mut request);
                }
            })
            .unwrap();
        assert_eq!(other.decide(&request, true, "x").unwrap(), Decision::Unknown);
        assert_eq!(session.decide("perm_none", true, "x").unwrap(), Decision::Unknown);
        let barrier = Barrier::new(8);
        let decide = |allow: bool| {
            barrier.wait();
            (allow, session.decide(&request, allow, "x").unwrap())
        };
        let decisions: Vec<(bool, Decision)> = thread::scope(|scope| {
            let decide = &decide;
            let threads: Vec<_> =
                (0..8).map(|number| scope.spawn(move || decide(number % 2 == 0))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let winners: Vec<bool> = decisions
            .iter()
            .filter(|(_, decision)| *decision == Decision::Won)
            .map(|(allow, _)| *allow)
            .collect();
        assert_eq!(winners.len(), 1, "{decisions:?}");
        assert_eq!(allowed.recv_timeout(PATIENCE).unwrap(), winners[0]);
        wait_for(&session, &format!("turn.done {name}"));
        let resolved = format!("permission.resolved {name}");
        assert_eq!(events(&session).iter().filter(|event| **event == resolved).count(), 1);
        assert_eq!(session.decide(&request, true, "late").unwrap(), Decision::Unknown);
    }
}

#[test]
fn nobody_deciding_and_a_cancelled_turn_both_mean_no() {
    let scratch = Scratch::new();
    let (told, allowed) = channel();
    let runtime = runtime(&scratch, move |turn| {
        let short = Duration::from_millis(20);
        let patience = match turn.content {
            "short" => desk::Patience { limit: short, ..FOR_LONG },
            "alone" => desk::Patience { alone: short, ..FOR_LONG },
            _ => FOR_LONG,
        };
        let input = Raw::parse("{}").unwrap();
        told.send(turn.may("write_file", &input, patience).unwrap()).unwrap();
        done()
    });
    let session = create(&runtime, "s");
    runtime.submit(&session, &turn("short")).unwrap();
    assert!(!allowed.recv_timeout(PATIENCE).unwrap());
    wait_for(&session, "turn.done short");
    // As long as somebody follows the session there is hope.
    let follower = session.subscribe().unwrap();
    runtime.submit(&session, &turn("alone")).unwrap();
    wait_for(&session, "permission.request alone");
    assert!(allowed.recv_timeout(Duration::from_millis(200)).is_err());
    drop(follower);
    assert!(!allowed.recv_timeout(PATIENCE).unwrap());
    wait_for(&session, "turn.done alone");
    runtime.submit(&session, &turn("long")).unwrap();
    wait_for(&session, "permission.request long");
    assert!(runtime.cancel(&session, &Selector::default()).unwrap().active);
    assert!(!allowed.recv_timeout(PATIENCE).unwrap());
    wait_for(&session, "turn.error long cancelled");
    let events = events(&session);
    for name in ["short", "alone", "long"] {
        assert!(events.contains(&format!("permission.resolved {name}")), "{events:?}");
    }
}

#[test]
fn an_agent_that_panics_costs_its_turn_only() {
    let scratch = Scratch::new();
    let runtime = runtime(&scratch, |turn| match turn.content {
        "bad" => panic!("as asked for"),
        _ => done(),
    });
    let session = create(&runtime, "s");
    for name in ["good", "bad", "better"] {
        runtime.submit(&session, &turn(name)).unwrap();
    }
    wait_for(&session, "turn.done better");
    let events = events(&session);
    assert!(events.contains(&"turn.error bad internal-error".to_owned()), "{events:?}");
    assert!(events.contains(&"turn.done good".to_owned()));
    wait_until("it is idle", || runtime.leave_if_idle().is_ok());
}

#[test]
fn a_session_with_a_turn_is_not_deleted_and_a_deleted_one_is_not_there() {
    let scratch = Scratch::new();
    let (held, agent) = Held::new();
    let runtime = runtime(&scratch, agent);
    let session = create(&runtime, "s");
    runtime.submit(&session, &turn("t")).unwrap();
    held.begun();
    assert!(matches!(runtime.delete(&id("s")), Err(Problem::Busy(_))));
    held.release();
    wait_for(&session, "turn.done t");
    wait_until("it is deleted", || runtime.delete(&id("s")).is_ok());
    assert!(session.is_closed());
    let gone = |outcome: Result<(), Problem>| matches!(outcome, Err(Problem::NoSession(_)));
    assert!(gone(runtime.session(&id("s")).map(drop)));
    assert!(gone(runtime.delete(&id("s"))));
    // By somebody who has found it a moment before.
    assert!(gone(runtime.submit(&session, &turn("late")).map(drop)));
    assert!(gone(runtime.submit(&session, &turn("t")).map(drop)));
    assert_eq!(runtime.counts().sessions, 0);
    let again = create(&runtime, "s");
    assert_eq!(again.reader().last_seq(), 1);
    wait_until("it is idle", || runtime.leave_if_idle().is_ok());
}

#[test]
fn leaving_when_idle_and_a_turn_that_comes_then_exclude_each_other() {
    let (mut left, mut refused) = (0, 0);
    for round in 0..60 {
        let scratch = Scratch::new();
        let runtime = runtime(&scratch, |_| done());
        let session = create(&runtime, "s");
        let barrier = Barrier::new(2);
        let (submitted, leaves) = thread::scope(|scope| {
            let submit = scope.spawn(|| {
                barrier.wait();
                runtime.submit(&session, &turn("t"))
            });
            barrier.wait();
            // Sooner and later.
            for _ in 0..round * 20 {
                std::hint::spin_loop();
            }
            let leaves = runtime.leave_if_idle();
            (submit.join().unwrap(), leaves)
        });
        match (submitted, leaves) {
            // It has run before the daemon was asked.
            (Ok(_), Ok(())) => assert!(events(&session).contains(&"turn.done t".to_owned())),
            (Ok(_), Err(Problem::Busy(_))) => refused += 1,
            (Err(Problem::Leaving), Ok(())) => left += 1,
            _ => panic!("neither is done"),
        }
    }
    assert!(left + refused > 0);
}

#[test]
fn what_the_end_of_the_daemon_cuts_off_is_interrupted_and_never_run_again() {
    let scratch = Scratch::new();
    let (held, agent) = Held::new();
    let first = runtime(&scratch, agent);
    let session = create(&first, "s");
    let submit = |name| first.submit(&session, &turn(name)).unwrap().seq;
    let [_, second, _] = ["t0", "t1", "t2"].map(submit);
    assert_eq!(held.begun(), "t0");
    let (rested, rest) = channel();
    first.leave(move || rested.send(()).unwrap());
    assert!(matches!(first.submit(&session, &turn("late")), Err(Problem::Leaving)));
    first.close();
    assert!(session.is_closed());
    rest.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(first.session(&id("s")), Err(Problem::Leaving)));
    assert!(matches!(first.create(None, &Founding::default()), Err(Problem::Leaving)));
    let before = events(&session);
    assert_eq!(
        before[before.len() - 3..],
        ["turn.error t0 interrupted", "turn.error t1 interrupted", "turn.error t2 interrupted",]
    );
    let summary = format!("{:?}", session.summary());
    let again = runtime(&scratch, |turn| panic!("{} is run again", turn.content));
    let listed = format!("{:?}", again.summary(&id("s")).unwrap());
    assert_eq!(listed, summary);
    let session = again.session(&id("s")).unwrap();
    assert_eq!(events(&session), before);
    assert_eq!(format!("{:?}", session.summary()), summary);
    assert_eq!(again.submit(&session, &turn("t1")).unwrap().seq, second);
    assert!(held.begun.try_recv().is_err());
}

/// The journal as a killed daemon leaves it.
#[test]
fn after_a_crash_what_was_running_or_waiting_is_interrupted_once() {
    let scratch = Scratch::new();
    let (held, agent) = Held::new();
    let crashed = runtime(&scratch, agent);
    let session = create(&crashed, "s");
    for name in ["t0", "t1"] {
        crashed.submit(&session, &turn(name)).unwrap();
    }
    assert_eq!(held.begun(), "t0");
    let directory = scratch.path().join("sessions/s");
    let journal = std::fs::read(directory.join("journal.jsonl")).unwrap();
    let after = Scratch::new();
    after.session("sessions/s", &journal);
    for _ in 0..3 {
        let runtime = runtime(&after, |turn| panic!("{} is run again", turn.content));
        let session = runtime.session(&id("s")).unwrap();
        let events = events(&session);
        let expected = ["turn.error t0 interrupted", "turn.error t1 interrupted"];
        assert_eq!(events[events.len() - 2..], expected);
        assert_eq!(events.len(), 6);
        assert_eq!(session.summary().status, "idle");
    }
    held.release();
}

#[test]
fn a_session_that_nobody_uses_leaves_memory_and_comes_back_the_same() {
    let scratch = Scratch::new();
    let runtime = runtime(&scratch, |_| done());
    let session = create(&runtime, "s");
    runtime.submit(&session, &turn("t")).unwrap();
    wait_for(&session, "turn.done t");
    wait_until("the worker has gone", || runtime.counts().active_turns == 0);
    let before = format!("{:?}", session.summary());
    let sweep = |session: &Session| {
        session.used.store(0, Ordering::Relaxed);
        runtime.swept.store(0, Ordering::Relaxed);
        runtime.sweep();
        runtime.counts().sessions
    };
    if sys::boot_clock() < limits::SESSION_IDLE_MAX {
        // The clock began with the machine, and nothing can be half an hour old yet.
        return;
    }
    let bell = session.subscribe().unwrap();
    assert_eq!(sweep(&session), 1, "it is watched");
    drop(bell);
    assert_eq!(sweep(&session), 1, "somebody has it at hand and may write to it");
    session.used.store(0, Ordering::Relaxed);
    drop(session);
    runtime.swept.store(0, Ordering::Relaxed);
    runtime.sweep();
    assert_eq!(runtime.counts().sessions, 0);
    let session = runtime.session(&id("s")).unwrap();
    assert_eq!(format!("{:?}", session.summary()), before);
    assert_eq!(runtime.submit(&session, &turn("t")).unwrap().seq, 2);
}

#[test]
fn the_same_name_created_by_many_at_once_is_one_session() {
    let scratch = Scratch::new();
    let runtime = runtime(&scratch, |_| done());
    for round in 0..20 {
        let name = format!("s{round}");
        let barrier = Barrier::new(8);
        let sessions: Vec<Arc<Session>> = thread::scope(|scope| {
            let make = || {
                barrier.wait();
                create(&runtime, &name)
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(sessions.iter().all(|session| Arc::ptr_eq(session, &sessions[0])));
        assert_eq!(events(&sessions[0]), ["session.snapshot"]);
    }
    assert_eq!(runtime.store().page(None, 100).unwrap().ids.len(), 20);
}

/// Created, written to, deleted by everybody at once: whoever was told "yes" was right, and there
/// were never two writers for one file.
#[test]
fn deleting_and_creating_the_same_name_never_makes_two_writers() {
    let scratch = Scratch::new();
    let runtime = runtime(&scratch, |_| done());
    let number = AtomicU64::new(0);
    thread::scope(|scope| {
        for worker in 0..6 {
            let (runtime, number) = (&runtime, &number);
            scope.spawn(move || {
                for _ in 0..25 {
                    if worker < 2 {
                        drop(runtime.delete(&id("s")));
                        continue;
                    }
                    let session = create(runtime, "s");
                    let name = format!("t{}", number.fetch_add(1, Ordering::Relaxed));
                    match runtime.submit(&session, &turn(&name)) {
                        Ok(_) => wait_until("it has run", || {
                            let found = events(&session);
                            found.contains(&format!("turn.done {name}")) || session.is_closed()
                        }),
                        Err(Problem::NoSession(_)) => {}
                        Err(problem) => panic!("{problem}"),
                    }
                }
            });
        }
    });
    let session = create(&runtime, "s");
    let (state, findings) = runtime.store().read(&id("s")).unwrap();
    assert_eq!((findings.damaged, findings.torn_bytes), (0, 0));
    assert_eq!(findings.records, events(&session).len() as u64);
    assert_eq!(state.seq, session.summary().seq);
    assert_eq!(runtime.store().page(None, 10).unwrap().ids, [id("s")]);
}

#[test]
fn a_full_queue_and_an_old_view_are_refused_without_a_trace() {
    let scratch = Scratch::new();
    let (held, agent) = Held::new();
    let runtime = runtime(&scratch, agent);
    let session = create(&runtime, "s");
    runtime.submit(&session, &turn("first")).unwrap();
    held.begun();
    let stale = Submission { last_seen_seq: Some(1), ..turn("stale") };
    assert!(matches!(runtime.submit(&session, &stale), Err(Problem::Conflict(_))));
    for number in 0..limits::QUEUE_MAX {
        runtime.submit(&session, &turn(&format!("t{number}"))).unwrap();
    }
    assert!(matches!(runtime.submit(&session, &turn("more")), Err(Problem::Busy(_))));
    assert_eq!(session.summary().turns, limits::QUEUE_MAX as u64 + 1);
    let all = Selector { writer_id: Some("writer".to_owned()), turn_id: None };
    let cancelled = runtime.cancel(&session, &all).unwrap();
    assert_eq!((cancelled.queued, cancelled.active), (limits::QUEUE_MAX as u64, true));
    wait_until("it is idle", || runtime.leave_if_idle().is_ok());
}

#[test]
fn what_an_agent_tells_is_in_the_session_in_its_order() {
    let scratch = Scratch::new();
    let runtime = runtime(&scratch, |turn| {
        for number in 0..300 {
            let payload = format!(r#"{{"turnId":"{}","text":"{number} \t\n"}}"#, turn.head.turn_id);
            let draft = Draft { event: "turn.token", payload: &payload };
            turn.tell(&draft, Durability::Cached).unwrap();
        }
        done()
    });
    let session = create(&runtime, "s");
    for name in ["a", "b"] {
        runtime.submit(&session, &turn(name)).unwrap();
    }
    wait_for(&session, "turn.done b");
    let conversation = session.conversation().unwrap().messages();
    let said = (0..300).map(|number| format!("{number} \t\n")).collect::<String>();
    let mut text = String::new();
    for message in &conversation {
        message.json(&mut text);
        text.push('\n');
    }
    let escaped = said.replace('\t', "\\t").replace('\n', "\\n");
    let turn = |name: &str| {
        format!(
            "{{\"role\":\"user\",\"content\":\"{name}\"}}\n\
             {{\"role\":\"assistant\",\"content\":\"{escaped}\"}}\n"
        )
    };
    assert_eq!(text, turn("a") + &turn("b"));
}
