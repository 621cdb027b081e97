//! The state of a session as its events describe it.

use crate::limits;
use crate::protocol::SessionId;
use crate::session::record::{self, Record};
use crate::session::replay::JournalState;

fn apply(state: &mut JournalState, event: &str, payload: &str) {
    let ts = "2026-03-01T10:00:00.000Z";
    let bytes = record::record_of(event, payload, "daemon_x", state.seq + 1, ts);
    state.apply_record(&Record::read(bytes.strip_suffix(b"\n").unwrap()).unwrap());
}

fn queued(turn_id: &str, content: &str) -> String {
    format!(
        r#"{{"turnId":"{turn_id}","writerId":"w","clientId":"c","queueSize":1,"position":0,"content":"{content}"}}"#
    )
}

fn of(turn_id: &str) -> String {
    let names = format!(r#""turnId":"{turn_id}","writerId":"w","clientId":"c","mode":"chat""#);
    format!(r#"{{{names},"code":"","message":"","stats":{{}}}}"#)
}

#[test]
fn any_sequence_of_events_yields_the_queue_and_the_active_turn_of_a_model() {
    for _ in 0..200 {
        let mut state = JournalState::default();
        let (mut waiting, mut active, mut ended): (Vec<String>, Option<String>, Vec<String>) =
            (Vec::new(), None, Vec::new());
        for number in 0..40 {
            match fastrand::u8(..5) {
                0 | 1 => {
                    let turn_id = format!("t{number}");
                    apply(&mut state, "turn.queued", &queued(&turn_id, "x"));
                    waiting.push(turn_id);
                }
                2 if active.is_none() && !waiting.is_empty() => {
                    let turn_id = waiting.remove(0);
                    apply(&mut state, "turn.start", &of(&turn_id));
                    active = Some(turn_id);
                }
                3 if active.is_some() => {
                    let turn_id = active.take().unwrap();
                    apply(&mut state, "turn.done", &of(&turn_id));
                    ended.push(turn_id);
                }
                4 if !waiting.is_empty() => {
                    let turn_id = waiting.remove(fastrand::usize(..waiting.len()));
                    apply(&mut state, "turn.error", &of(&turn_id));
                    ended.push(turn_id);
                }
                _ => apply(&mut state, "turn.token", r#"{"text":"x"}"#),
            }
            assert_eq!(state.seq, number + 1);
            let names = |turn_id: &String| turn_id.clone();
            let queue: Vec<String> = state.queue.iter().map(|turn| names(&turn.turn_id)).collect();
            assert_eq!(queue, waiting);
            assert_eq!(state.active.as_ref().map(|turn| names(&turn.turn_id)), active);
            for turn_id in waiting.iter().chain(&ended).chain(&active) {
                assert!(state.queued_at(turn_id).is_some());
            }
        }
        let turns = waiting.len() + ended.len() + usize::from(active.is_some());
        assert_eq!(state.turns, turns as u64);
        assert_eq!(state.queued_at("never"), None);
    }
}

#[test]
fn unknown_and_unreadable_events_change_the_number_only() {
    let mut state = JournalState::default();
    apply(&mut state, "turn.queued", &queued("t", "x"));
    let before = format!("{:?}", (&state.active, &state.queue));
    for (event, payload) in [
        ("of.tomorrow", "{}"),
        ("turn.queued", "{}"),
        ("turn.queued", "[1]"),
        ("turn.start", r#"{"turnId":7}"#),
        ("turn.start", r#"{"turnId":"another"}"#),
        ("turn.done", r#"{"turnId":"another"}"#),
        ("session.snapshot", "{}"),
    ] {
        apply(&mut state, event, payload);
    }
    assert_eq!((state.seq, format!("{:?}", (&state.active, &state.queue))), (8, before));
    assert_eq!(state.turns, 1);
}

#[test]
fn the_oldest_turn_ids_are_forgotten_beyond_the_limit() {
    let mut state = JournalState::default();
    for number in 0..=limits::TURN_IDS_MAX {
        let turn_id = format!("t{number}");
        apply(&mut state, "turn.queued", &queued(&turn_id, "x"));
        apply(&mut state, "turn.error", &of(&turn_id));
    }
    assert_eq!(state.queued_at("t0"), None);
    assert!(state.queued_at("t1").is_some());
    assert!(state.queued_at(&format!("t{}", limits::TURN_IDS_MAX)).is_some());
}

#[test]
fn a_title_is_one_short_line_of_the_first_input() {
    let mut state = JournalState::default();
    apply(&mut state, "turn.queued", &queued("t", r"  one\n\ttwo  ü "));
    apply(&mut state, "turn.queued", &queued("u", "later"));
    assert_eq!(state.title.as_deref(), Some("one two ü"));
    let mut state = JournalState::default();
    apply(&mut state, "turn.queued", &queued("t", &"ü".repeat(limits::TITLE_CHARS_MAX + 1)));
    assert_eq!(state.title, Some("ü".repeat(limits::TITLE_CHARS_MAX)));
}

#[test]
fn an_id_can_be_part_of_a_path() {
    let longest = "x".repeat(limits::ID_BYTES_MAX);
    for good in ["a", "A-Z_09", "-", longest.as_str()] {
        assert_eq!(SessionId::parse(good).unwrap().as_str(), good);
    }
    let too_long = "x".repeat(limits::ID_BYTES_MAX + 1);
    for bad in ["", ".", "..", "a/b", "a.b", "a b", "ü", "a\0", "%2e", "a\n", too_long.as_str()] {
        assert_eq!(SessionId::parse(bad), None, "{bad:?}");
    }
}
