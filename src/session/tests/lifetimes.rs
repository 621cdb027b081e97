//! Sessions that are created and deleted, and daemons that stop, from many threads in parallel.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::thread;

use crate::mutex::lock;
use crate::protocol::event::SessionConfig;
use crate::session::feed::{Feed, WideFeed};
use crate::session::session::{Session, SessionError};
use crate::{limits, sys};

use super::support::{HeldAgent, create, done, events, runtime, turn, wait_for, wait_until};
use super::{PATIENCE, Scratch, id, record};

#[test]
fn a_session_with_a_turn_in_progress_cannot_be_deleted() {
    let scratch = Scratch::new();
    let (held, agent) = HeldAgent::new();
    let runtime = runtime(&scratch, agent);
    let session = create(&runtime, "s");
    runtime.submit(&session, &turn("t")).unwrap();
    held.next();
    assert!(matches!(runtime.delete(&id("s")), Err(SessionError::Busy(_))));
    held.release();
    wait_for(&session, "turn.done t");
    wait_until("it is deleted", || runtime.delete(&id("s")).is_ok());
    assert!(session.is_closed());
    let gone =
        |outcome: Result<(), SessionError>| matches!(outcome, Err(SessionError::NotFound(_)));
    assert!(gone(runtime.session(&id("s")).map(drop)));
    assert!(gone(runtime.delete(&id("s"))));
    // By a thread that found it before.
    assert!(gone(runtime.submit(&session, &turn("late")).map(drop)));
    assert!(gone(runtime.submit(&session, &turn("t")).map(drop)));
    assert_eq!(runtime.counts().session_count, 0);
    let again = create(&runtime, "s");
    assert_eq!(again.reader().last_seq(), 1);
    wait_until("it is idle", || runtime.stop_if_idle().is_ok());
}

#[test]
fn stopping_when_idle_and_a_new_turn_exclude_each_other() {
    let (mut stopped, mut refused) = (0, 0);
    for round in 0..60 {
        let scratch = Scratch::new();
        let runtime = runtime(&scratch, |_| done());
        let session = create(&runtime, "s");
        let barrier = Barrier::new(2);
        let (submitted, stops) = thread::scope(|scope| {
            let submit = scope.spawn(|| {
                barrier.wait();
                runtime.submit(&session, &turn("t"))
            });
            barrier.wait();
            // Later in each round.
            for _ in 0..round * 20 {
                std::hint::spin_loop();
            }
            let stops = runtime.stop_if_idle();
            (submit.join().unwrap(), stops)
        });
        match (submitted, stops) {
            // It ran before the daemon was asked.
            (Ok(_), Ok(())) => assert!(events(&session).contains(&"turn.done t".to_owned())),
            (Ok(_), Err(SessionError::Busy(_))) => refused += 1,
            (Err(SessionError::Stopping), Ok(())) => stopped += 1,
            _ => panic!("neither succeeded"),
        }
    }
    assert!(stopped + refused > 0);
}

#[test]
fn turns_that_the_end_of_the_daemon_cuts_off_are_interrupted_and_never_run_again() {
    let scratch = Scratch::new();
    let (held, agent) = HeldAgent::new();
    let first = runtime(&scratch, agent);
    let session = create(&first, "s");
    let submit = |name| first.submit(&session, &turn(name)).unwrap().seq;
    let [_, second, _] = ["t0", "t1", "t2"].map(submit);
    assert_eq!(held.next(), "t0");
    let (idle, became_idle) = channel();
    first.stop(move || idle.send(()).unwrap());
    assert!(matches!(first.submit(&session, &turn("late")), Err(SessionError::Stopping)));
    first.close();
    assert!(session.is_closed());
    became_idle.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(first.session(&id("s")), Err(SessionError::Stopping)));
    assert!(matches!(first.create(None, &SessionConfig::default()), Err(SessionError::Stopping)));
    let before = events(&session);
    assert_eq!(
        before[before.len() - 3..],
        ["turn.error t0 interrupted", "turn.error t1 interrupted", "turn.error t2 interrupted",]
    );
    let summary = format!("{:?}", session.summary());
    let again = runtime(&scratch, |turn| panic!("{} is run again", turn.head.turn_id));
    let listed = format!("{:?}", again.summary(&id("s")).unwrap());
    assert_eq!(listed, summary);
    let session = again.session(&id("s")).unwrap();
    assert_eq!(events(&session), before);
    assert_eq!(format!("{:?}", session.summary()), summary);
    assert_eq!(again.submit(&session, &turn("t1")).unwrap().seq, second);
    assert!(held.is_idle());
}

#[test]
fn after_a_crash_active_and_queued_turns_are_interrupted_once() {
    let scratch = Scratch::new();
    let (held, agent) = HeldAgent::new();
    let crashed = runtime(&scratch, agent);
    let session = create(&crashed, "s");
    for name in ["t0", "t1"] {
        crashed.submit(&session, &turn(name)).unwrap();
    }
    assert_eq!(held.next(), "t0");
    let directory = scratch.path().join("sessions/s");
    let journal = std::fs::read(directory.join("journal.jsonl")).unwrap();
    let after = Scratch::new();
    after.session("sessions/s", &journal);
    for _ in 0..3 {
        let runtime = runtime(&after, |turn| panic!("{} is run again", turn.head.turn_id));
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
fn an_unused_session_is_dropped_from_memory_and_opened_again_unchanged() {
    let scratch = Scratch::new();
    let runtime = runtime(&scratch, |_| done());
    let session = create(&runtime, "s");
    runtime.submit(&session, &turn("t")).unwrap();
    wait_for(&session, "turn.done t");
    wait_until("the worker has ended", || runtime.counts().active_turn_count == 0);
    let before = format!("{:?}", session.summary());
    let sweep = |session: &Session| {
        session.used_at.store(0, Ordering::Relaxed);
        runtime.swept_at.store(0, Ordering::Relaxed);
        runtime.sweep();
        runtime.counts().session_count
    };
    if sys::boot_clock() < limits::SESSION_IDLE_MAX {
        // The clock started with the machine: nothing can be half an hour old yet.
        return;
    }
    let waker = session.subscribe(false).unwrap();
    assert_eq!(sweep(&session), 1, "it is followed");
    drop(waker);
    assert_eq!(sweep(&session), 1, "this thread holds it and may write to it");
    session.used_at.store(0, Ordering::Relaxed);
    drop(session);
    runtime.swept_at.store(0, Ordering::Relaxed);
    runtime.sweep();
    assert_eq!(runtime.counts().session_count, 0);
    let session = runtime.session(&id("s")).unwrap();
    assert_eq!(format!("{:?}", session.summary()), before);
    assert_eq!(runtime.submit(&session, &turn("t")).unwrap().seq, 2);
}

#[test]
fn an_end_that_could_not_be_written_is_kept_and_written_when_the_daemon_stops() {
    let scratch = Scratch::new();
    let path = scratch.path().join("sessions/s/journal.jsonl");
    let away = path.with_extension("away");
    let first = {
        let (path, away) = (path.clone(), away.clone());
        runtime(&scratch, move |turn| {
            lock(&turn.session.state).journal.close_file();
            std::fs::rename(&path, &away).unwrap();
            done()
        })
    };
    let session = create(&first, "s");
    first.submit(&session, &turn("t")).unwrap();
    wait_until("the turn has ended", || {
        let counts = first.counts();
        counts.active_turn_count + counts.queued_turn_count == 0
    });
    std::fs::rename(&away, &path).unwrap();
    session.used_at.store(0, Ordering::Relaxed);
    drop(session);
    first.swept_at.store(0, Ordering::Relaxed);
    first.sweep();
    assert_eq!(first.counts().session_count, 1);
    first.close();
    let second = runtime(&scratch, |_| done());
    let found = events(&second.session(&id("s")).unwrap());
    assert_eq!(found.last().unwrap(), "turn.error t storage-error", "{found:?}");
}

#[test]
fn followers_of_all_sessions_get_the_events_of_one_that_is_created_again() {
    let scratch = Scratch::new();
    let runtime = runtime(&scratch, |_| done());
    let next = |feed: &mut Feed| -> Vec<String> {
        let read = feed.next(limits::EVENTS_MAX, limits::EVENTS_BYTES_MAX).unwrap();
        read.iter().map(|event| format!("{} {}", event.session_id().unwrap(), event.seq)).collect()
    };
    let follow = |after| Feed::Wide(Box::new(WideFeed::of_all(&runtime, after, false).unwrap()));
    let mut live = follow(None);
    // Twice: the second time, only its followers are told.
    for name in ["a", "a", "b"] {
        create(&runtime, name);
    }
    assert_eq!(next(&mut live).len() + next(&mut live).len(), 3);
    let mut replay = follow(Some(0));
    assert_eq!(next(&mut replay), ["a 1", "a 2"]);
    // The third one is not read before the session is deleted.
    create(&runtime, "a");
    runtime.delete(&id("a")).unwrap();
    create(&runtime, "a");
    // The deletion has no number.
    assert_eq!(next(&mut live), ["a 0"]);
    assert_eq!(next(&mut live), ["a 1"]);
    assert_eq!(next(&mut replay), ["b 1"]);
    assert_eq!(next(&mut replay), ["a 0"]);
    assert_eq!(next(&mut replay), ["a 1"]);
    assert!(next(&mut live).is_empty() && next(&mut replay).is_empty());
}

#[test]
fn the_same_id_created_by_many_threads_is_one_session() {
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
        // Each that found it there has told so.
        assert_eq!(events(&sessions[0]), ["session.snapshot"; 8]);
    }
    assert_eq!(runtime.store().page(None, 100).unwrap().ids.len(), 20);
}

/// A turn that was accepted runs, unless its session was deleted.
#[test]
fn deleting_and_creating_the_same_id_never_yields_two_writers() {
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
                        Err(SessionError::NotFound(_)) => {}
                        Err(problem) => panic!("{problem}"),
                    }
                }
            });
        }
    });
    let session = create(&runtime, "s");
    let report = runtime.store().scan(&id("s"), |_| {}).unwrap();
    assert_eq!((report.damaged, report.torn_bytes), (0, 0));
    assert_eq!(report.records, events(&session).len() as u64);
    assert_eq!(report.records, session.summary().seq);
    assert_eq!(runtime.store().page(None, 10).unwrap().ids, [id("s")]);
}

#[test]
fn a_daemon_that_stops_writes_only_summaries_that_have_changed() {
    let scratch = Scratch::new();
    let summary = |name: &str| {
        let path = scratch.path().join("sessions").join(name).join("summary.json");
        path.metadata().unwrap().ino()
    };
    let first = runtime(&scratch, |_| done());
    for name in ["idle", "used"] {
        create(&first, name);
    }
    first.close();
    let before = ["idle", "used"].map(summary);
    let second = runtime(&scratch, |_| done());
    let [_, used] = ["idle", "used"].map(|name| second.session(&id(name)).unwrap());
    assert_eq!(["idle", "used"].map(summary), before);
    for turn_id in ["t", "u"] {
        second.submit(&used, &turn(turn_id)).unwrap();
        wait_for(&used, &format!("turn.done {turn_id}"));
    }
    wait_until("it is idle", || second.stop_if_idle().is_ok());
    // The second turn ended too soon after the first for another summary.
    second.close();
    assert_eq!(summary("idle"), before[0]);
    assert_ne!(summary("used"), before[1]);
    assert_eq!(second.store().summary(&id("used")).unwrap().turns, 2);
    assert_eq!(second.store().summarized_bytes(&id("used")), {
        let path = scratch.path().join("sessions/used/journal.jsonl");
        path.metadata().unwrap().len()
    });
}

#[test]
fn a_daemon_that_stops_does_not_wait_for_a_journal_that_is_being_read() {
    let scratch = Scratch::new();
    let bytes: Vec<u8> = (1..=400).flat_map(|seq| record(seq, 100_000)).collect();
    let directory = scratch.session("sessions/s", &bytes);
    let runtime = runtime(&scratch, |_| done());
    let is_open = || {
        let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        files
            .filter_map(|file| file.path().read_link().ok())
            .any(|path| path.starts_with(&directory))
    };
    if !Path::new("/proc/self/fd").exists() {
        return;
    }
    let opened = thread::scope(|scope| {
        let opening = scope.spawn(|| runtime.session(&id("s")).map(drop));
        wait_until("the journal is open", is_open);
        runtime.close();
        opening.join().unwrap()
    });
    assert!(matches!(opened, Err(SessionError::Stopping)), "{opened:?}");
    assert_eq!(runtime.counts().session_count, 0);
}
