//! Turns that are submitted, run, asked about and cancelled, from many threads in parallel.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use crate::json::Raw;
use crate::limits;
use crate::mutex::lock;
use crate::protocol::event::{Event, TurnText};
use crate::protocol::{CancelTurns, SubmitTurn};
use crate::session::journal::Durability;
use crate::session::session::{Decision, SessionError};
use crate::session::turn::WaitLimits;

use super::support::{HeldAgent, create, done, events, runtime, turn, wait_for, wait_until};
use super::{PATIENCE, Scratch, id, record};

#[test]
fn turns_of_a_session_run_one_after_the_other_in_order() {
    let scratch = Scratch::new();
    let (held, agent) = HeldAgent::new();
    let runtime = runtime(&scratch, agent);
    let session = create(&runtime, "s");
    for number in 0..50_u64 {
        let accepted = runtime.submit(&session, &turn(&format!("t{number}"))).unwrap();
        // The first one may have started already.
        assert!(accepted.queued == number || accepted.queued + 1 == number);
    }
    assert_eq!(held.next(), "t0");
    assert_eq!((runtime.counts().active_turn_count, runtime.counts().queued_turn_count), (1, 49));
    held.release();
    for number in 1..50 {
        assert_eq!(held.next(), format!("t{number}"));
    }
    wait_for(&session, "turn.done t49");
    let ran: Vec<String> = events(&session)
        .into_iter()
        .filter(|event| event.starts_with("turn.start") || event.starts_with("turn.done"))
        .collect();
    let expected: Vec<String> =
        (0..50).flat_map(|n| [format!("turn.start t{n}"), format!("turn.done t{n}")]).collect();
    assert_eq!(ran, expected);
    assert_eq!(runtime.submitted(), 50);
}

#[test]
fn at_most_sixteen_sessions_are_active() {
    let scratch = Scratch::new();
    let active = Arc::new(AtomicUsize::new(0));
    let (held, held_agent) = HeldAgent::new();
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
        held.next();
    }
    assert_eq!(active.load(Ordering::SeqCst), 16);
    let counts = runtime.counts();
    assert_eq!(
        (counts.active_turn_count, counts.queued_turn_count, counts.session_count),
        (16, 24, 40)
    );
    held.release();
    for (number, session) in sessions.iter().enumerate() {
        wait_for(session, &format!("turn.done t{number}"));
    }
    wait_until("all workers have ended", || runtime.counts().active_turn_count == 0);
    assert_eq!(runtime.counts().queued_turn_count, 0);
}

#[test]
fn the_same_id_from_many_clients_is_one_turn() {
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
fn cancel_reaches_the_selected_turns_only() {
    let scratch = Scratch::new();
    let (held, agent) = HeldAgent::new();
    let runtime = runtime(&scratch, agent);
    let session = create(&runtime, "s");
    for (name, writer) in
        [("t0", "ann"), ("t1", "ann"), ("t2", "bob"), ("t3", "ann"), ("t4", "bob")]
    {
        let submission = SubmitTurn { writer_id: Some(writer.to_owned()), ..turn(name) };
        runtime.submit(&session, &submission).unwrap();
    }
    assert_eq!(held.next(), "t0");
    assert_eq!(session.summary().writer_count, 2);
    let cancel = |turn_id: Option<&str>, writer_id: Option<&str>| {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let selector = CancelTurns { turn_id: owned(turn_id), writer_id: owned(writer_id) };
        let cancelled = runtime.cancel(&session, &selector).unwrap();
        (cancelled.cancelled_queued, cancelled.cancelled_active)
    };
    assert_eq!(cancel(Some("nothing"), None), (0, false));
    assert_eq!(cancel(None, Some("nobody")), (0, false));
    assert_eq!(cancel(Some("t1"), Some("bob")), (0, false));
    let before = session.reader().last_seq();
    assert_eq!(cancel(Some("t4"), None), (1, false));
    assert_eq!(session.reader().last_seq(), before + 2);
    assert_eq!(cancel(None, Some("bob")), (1, false));
    // The agent returns success when it is cancelled; the turn still ends as cancelled.
    assert_eq!(cancel(None, None), (0, true));
    assert_eq!(held.next(), "t1");
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
    wait_until("it is idle", || runtime.stop_if_idle().is_ok());
}

const LONG: WaitLimits =
    WaitLimits { total: Duration::from_secs(600), unattended: Duration::from_secs(600) };

#[test]
fn exactly_one_of_many_decisions_wins() {
    let scratch = Scratch::new();
    let (told, allowed) = channel();
    let runtime = runtime(&scratch, move |turn| {
        let input = Raw::parse(r#"{"command":"true"}"#).unwrap();
        told.send(turn.request_permission("run_command", &input, LONG).unwrap()).unwrap();
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
                if let Some(Event::PermissionRequest(asked)) = record.event() {
                    request = asked.request_id;
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
fn a_permission_is_denied_when_the_time_is_up_or_the_turn_is_cancelled() {
    let scratch = Scratch::new();
    let (told, allowed) = channel();
    let runtime = runtime(&scratch, move |turn| {
        let short = Duration::from_millis(20);
        let limits = match turn.head.turn_id.as_str() {
            "short" => WaitLimits { total: short, ..LONG },
            "alone" => WaitLimits { unattended: short, ..LONG },
            _ => LONG,
        };
        let input = Raw::parse("{}").unwrap();
        let answer = turn.request_permission("write_file", &input, limits).unwrap();
        told.send(answer).unwrap();
        done()
    });
    let session = create(&runtime, "s");
    runtime.submit(&session, &turn("short")).unwrap();
    assert!(!allowed.recv_timeout(PATIENCE).unwrap());
    wait_for(&session, "turn.done short");
    // A follower can still answer.
    let follower = session.subscribe(true).unwrap();
    runtime.submit(&session, &turn("alone")).unwrap();
    wait_for(&session, "permission.request alone");
    assert!(allowed.recv_timeout(Duration::from_millis(200)).is_err());
    drop(follower);
    assert!(!allowed.recv_timeout(PATIENCE).unwrap());
    wait_for(&session, "turn.done alone");
    runtime.submit(&session, &turn("long")).unwrap();
    wait_for(&session, "permission.request long");
    assert!(runtime.cancel(&session, &CancelTurns::default()).unwrap().cancelled_active);
    assert!(!allowed.recv_timeout(PATIENCE).unwrap());
    wait_for(&session, "turn.error long cancelled");
    let events = events(&session);
    for name in ["short", "alone", "long"] {
        assert!(events.contains(&format!("permission.resolved {name}")), "{events:?}");
    }
}

#[test]
fn a_panic_of_the_agent_fails_its_turn_only() {
    let scratch = Scratch::new();
    let runtime = runtime(&scratch, |turn| match turn.head.turn_id.as_str() {
        "bad" => panic!("as scripted"),
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
    wait_until("it is idle", || runtime.stop_if_idle().is_ok());
}

#[test]
fn a_panic_at_the_start_or_the_end_of_a_turn_ends_that_turn_only() {
    let scratch = Scratch::new();
    let (held, held_agent) = HeldAgent::new();
    let runtime = runtime(&scratch, move |turn| {
        if turn.head.turn_id == "unended" {
            // There is no next number for its end.
            lock(&turn.session.state).journal.state_mut().seq = u64::MAX;
        }
        held_agent(turn)
    });
    let (session, other) = (create(&runtime, "s"), create(&runtime, "other"));
    for name in ["first", "unstarted", "last"] {
        runtime.submit(&session, &turn(name)).unwrap();
    }
    assert_eq!(held.next(), "first");
    // The number of a turn is that of all turns, minus those in the queue.
    lock(&session.state).journal.state_mut().turns = 0;
    held.release();
    wait_for(&session, "turn.done last");
    let found = events(&session);
    assert!(found.contains(&"turn.error unstarted internal-error".to_owned()), "{found:?}");
    let is_idle = || {
        let counts = runtime.counts();
        counts.active_turn_count + counts.queued_turn_count == 0
    };
    wait_until("it is idle", is_idle);
    runtime.submit(&session, &turn("unended")).unwrap();
    wait_until("it has ended", is_idle);
    runtime.submit(&other, &turn("good")).unwrap();
    wait_for(&other, "turn.done good");
    wait_until("it is idle", || runtime.stop_if_idle().is_ok());
}

#[test]
fn a_full_queue_and_an_outdated_view_are_refused_without_an_event() {
    let scratch = Scratch::new();
    let (held, agent) = HeldAgent::new();
    let runtime = runtime(&scratch, agent);
    let session = create(&runtime, "s");
    runtime.submit(&session, &turn("first")).unwrap();
    held.next();
    let stale = SubmitTurn { last_seen_seq: Some(1), ..turn("stale") };
    assert!(matches!(runtime.submit(&session, &stale), Err(SessionError::Conflict(_))));
    for number in 0..limits::QUEUED_TURNS_MAX {
        runtime.submit(&session, &turn(&format!("t{number}"))).unwrap();
    }
    assert!(matches!(runtime.submit(&session, &turn("more")), Err(SessionError::Busy(_))));
    assert_eq!(session.summary().turns, limits::QUEUED_TURNS_MAX as u64 + 1);
    let all = CancelTurns { writer_id: Some("writer".to_owned()), turn_id: None };
    let cancelled = runtime.cancel(&session, &all).unwrap();
    assert_eq!(
        (cancelled.cancelled_queued, cancelled.cancelled_active),
        (limits::QUEUED_TURNS_MAX as u64, true)
    );
    wait_until("it is idle", || runtime.stop_if_idle().is_ok());
}

#[test]
fn what_an_agent_appends_is_in_the_conversation_in_order() {
    let scratch = Scratch::new();
    let runtime = runtime(&scratch, |turn| {
        for number in 0..300 {
            let text =
                TurnText { turn_id: turn.head.turn_id.clone(), text: format!("{number} \t\n") };
            turn.append(&Event::TurnToken(text), Durability::Buffered).unwrap();
        }
        done()
    });
    let session = create(&runtime, "s");
    for name in ["a", "b"] {
        runtime.submit(&session, &turn(name)).unwrap();
    }
    wait_for(&session, "turn.done b");
    let conversation = session.conversation().unwrap().messages;
    let answer = (0..300).map(|number| format!("{number} \t\n")).collect::<String>();
    let mut text = String::new();
    for message in &conversation {
        message.json(&mut text);
        text.push('\n');
    }
    let escaped = answer.replace('\t', "\\t").replace('\n', "\\n");
    let turn = |name: &str| {
        format!(
            "{{\"role\":\"user\",\"content\":\"{name}\"}}\n\
             {{\"role\":\"assistant\",\"content\":\"{escaped}\"}}\n"
        )
    };
    assert_eq!(text, turn("a") + &turn("b"));
}

#[test]
fn a_turn_beyond_the_last_number_is_refused_and_does_not_count() {
    let scratch = Scratch::new();
    let bytes = [record(1, 10), record(limits::SEQ_MAX - 1, 10)].concat();
    scratch.session("sessions/s", &bytes);
    let runtime = runtime(&scratch, |_| done());
    let session = runtime.session(&id("s")).unwrap();
    let refused = |turn_id: &str| {
        let error = runtime.submit(&session, &turn(turn_id)).map(drop).unwrap_err();
        assert!(matches!(error, SessionError::Disk(_)), "{error}");
        assert!(error.to_string().contains("there are no larger ones"), "{error}");
    };
    // The last number is that of a turn, which then can neither start nor end.
    runtime.submit(&session, &turn("last")).unwrap();
    wait_until("it has ended", || runtime.counts().active_turn_count == 0);
    refused("t");
    refused("u");
    assert_eq!(runtime.counts().queued_turn_count, 0);
    runtime.stop_if_idle().unwrap();
}
