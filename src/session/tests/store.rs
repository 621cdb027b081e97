//! The list shows every acknowledged session once, whatever happened to the index and the
//! summaries.

use std::fs;
use std::path::Path;
use std::thread;

use crate::protocol::SessionId;
use crate::protocol::event::{Event, SessionConfig, SessionSnapshot};
use crate::session::journal::Journal;
use crate::session::reader::FILE_NAME;
use crate::session::record;
use crate::session::replay::JournalState;
use crate::session::store::{Page, Store};

use super::{Scratch, id, put};

const TIME: &str = "2026-03-01T10:00:00.000Z";

fn first_event(name: &str, config: SessionConfig) -> Event {
    let summary = JournalState::created(&config, TIME).summary(&id(name));
    Event::SessionSnapshot(SessionSnapshot::new(summary, Some(config)).into())
}

fn journal(name: &str, title: &str) -> Vec<u8> {
    let config = SessionConfig { title: Some(title.to_owned()), ..SessionConfig::default() };
    record::record(&first_event(name, config), "daemon_x", 1, TIME)
}

/// Creates a session as the runtime does.
fn create(store: &Store, name: &str) {
    store.complete_index().unwrap();
    store.add_to_index(&id(name), TIME).unwrap();
    let first = first_event(name, SessionConfig::default());
    Journal::create(&store.directory(&id(name)), &id(name), "daemon_x", &first, TIME).unwrap();
}

fn names(page: &Page) -> Vec<&str> {
    page.ids.iter().map(SessionId::as_str).collect()
}

fn pages(store: &Store, count: usize) -> Vec<String> {
    let (mut listed, mut before) = (Vec::new(), None);
    loop {
        let page = store.page(before, count).unwrap();
        assert!(page.ids.len() <= count);
        listed.extend(names(&page).into_iter().map(str::to_owned));
        match page.next {
            Some(next) => before = Some(next),
            None => return listed,
        }
    }
}

fn store(scratch: &Scratch) -> Store {
    Store::new(scratch.path().join("sessions"))
}

#[test]
fn pages_of_any_size_add_up_to_the_same_list() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    assert!(pages(&store, 5).is_empty());
    // Long enough for lines of the index to cross the blocks in which it is read.
    let name = |number: usize| format!("{number:0>64}");
    for number in 0..400 {
        create(&store, &name(number));
    }
    let newest_first: Vec<String> = (0..400).rev().map(name).collect();
    for count in [1, 2, 3, 7, 50, 399, 400, 401] {
        assert_eq!(pages(&store, count), newest_first, "{count} a page");
    }
    for number in (0..400).filter(|number| number % 3 == 0) {
        store.delete(&id(&name(number))).unwrap();
    }
    let left: Vec<String> = (0..400).rev().filter(|number| number % 3 != 0).map(name).collect();
    for count in [1, 10, 300] {
        assert_eq!(pages(&store, count), left, "{count} a page");
    }
    assert_eq!(names(&store.page(Some(u64::MAX), 1).unwrap()), [left[0].as_str()]);
}

/// A short write, a power cut, or an editor.
#[test]
fn a_torn_entry_of_the_index_does_not_hide_later_sessions() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    create(&store, "first");
    let index = scratch.path().join("sessions/index.jsonl");
    for (number, tail) in
        ["{\"sessionId\":\"half", "\0\0\0\0", "{\"sessionId\":\"\u{fc}"].iter().enumerate()
    {
        let mut bytes = fs::read(&index).unwrap();
        bytes.extend(tail.as_bytes());
        put(&index, &bytes);
        create(&store, &format!("after{number}"));
    }
    assert_eq!(pages(&store, 10), ["after2", "after1", "after0", "first"]);
}

/// A bad disk, an editor, an old copy, or a power cut at a filesystem that loses what was synced.
#[test]
fn an_index_that_lost_entries_is_completed_in_order() {
    let scratch = Scratch::new();
    let store = Store::new(scratch.path().join("sessions"));
    assert_eq!(store.complete_index().unwrap(), 0);
    // In another order than their names and, since a deletion is in between, their directories.
    for (number, name) in ["c", "a", "x", "d", "b"].iter().enumerate() {
        make(&store, name, &format!("2026-03-01T10:00:0{number}.000Z"));
    }
    store.delete(&id("x")).unwrap();
    let index = scratch.path().join("sessions/index.jsonl");
    let whole = fs::read_to_string(&index).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let half = &whole[..whole.len() / 2];
    let damages: [(&str, usize); 6] = [
        ("", 4),
        ("\0\0\0\0\n\0\0", 4),
        (&whole.replace("sessionId", "sessionid"), 4),
        (&whole.replacen("\"a\"", "?a?", 1), 1),
        (&format!("{}\n", lines[3..].join("\n")), 2),
        (half, 2),
    ];
    for (damaged, lost) in damages {
        put(&index, damaged.as_bytes());
        // Readers that may not write list everything, too.
        let page = store.page(None, 10).unwrap();
        let mut listed = names(&page);
        listed.sort_unstable();
        assert_eq!((listed, page.is_index_damaged), (vec!["a", "b", "c", "d"], true), "{damaged}");
        assert!(store.check_index().is_err());
        assert_eq!(store.complete_index().unwrap(), lost, "{damaged}");
        assert_eq!(pages(&store, 1), ["b", "d", "a", "c"], "{damaged}");
        assert!(!store.page(None, 10).unwrap().is_index_damaged);
        store.check_index().unwrap();
        assert_eq!(store.complete_index().unwrap(), 0);
    }
    // Nothing is lost with an entry that a crash cut off.
    put(&index, format!("{whole}{{\"sess").as_bytes());
    assert!(!store.page(None, 10).unwrap().is_index_damaged);
    assert_eq!(store.complete_index().unwrap(), 0);
}

#[test]
fn a_missing_index_is_made_again_once_by_concurrent_creators() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    for round in 0..20 {
        drop(fs::remove_file(scratch.path().join("sessions/index.jsonl")));
        thread::scope(|scope| {
            for creator in 0..4 {
                let store = &store;
                scope.spawn(move || create(store, &format!("r{round}_{creator}")));
            }
        });
        let mut listed = pages(&store, 7);
        listed.sort();
        listed.dedup();
        assert_eq!(listed.len(), (round + 1) * 4, "round {round}");
    }
}

#[test]
fn without_an_index_the_list_comes_from_the_directories() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    for name in ["a", "b", "c"] {
        create(&store, name);
    }
    fs::remove_file(scratch.path().join("sessions/index.jsonl")).unwrap();
    scratch.session("sessions/empty", b"");
    put(&scratch.path().join("sessions/file"), b"x");
    let page = store.page(None, 2).unwrap();
    assert_eq!(page.ids.len(), 2);
    let mut all = names(&store.page(None, 9).unwrap()).join(" ");
    // They may have been created within one tick of the clock.
    all = {
        let mut parts: Vec<&str> = all.split(' ').collect();
        parts.sort_unstable();
        parts.join(" ")
    };
    assert_eq!(all, "a b c");
}

#[test]
fn a_summary_that_does_not_match_its_journal_is_ignored() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let directory = scratch.session("sessions/s", &journal("s", "as the journal says"));
    let title = || store.summary(&id("s")).unwrap().title.unwrap();
    assert_eq!(title(), "as the journal says");
    let mut state = JournalState::default();
    let report = store.scan(&id("s"), |record| state.apply_record(record)).unwrap();
    store.save_summary(&id("s"), &state, report.valid_bytes).unwrap();
    let stored = fs::read_to_string(directory.join("summary.json")).unwrap();
    let marked = stored.replace("as the journal says", "as the summary says");
    let summary = directory.join("summary.json");
    put(&summary, marked.as_bytes());
    assert_eq!(title(), "as the summary says");
    // The journal has grown.
    let journal = directory.join(FILE_NAME);
    let bytes = fs::read(&journal).unwrap();
    put(&journal, &[bytes, super::record(2, 3)].concat());
    assert_eq!(title(), "as the journal says");
    for garbage in ["", "{", "\0\0\0", "{\"bytes\":1}", &"x".repeat(70_000)] {
        put(&summary, garbage.as_bytes());
        assert_eq!(title(), "as the journal says");
    }
}

#[test]
fn a_cached_summary_follows_its_journal() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let directory = scratch.session("sessions/s", &journal("s", "the first"));
    let title = || store.cached_summary(&id("s")).unwrap().title.unwrap();
    assert_eq!([title(), title()], ["the first"; 2]);
    // It was replaced by one of the same length.
    let other = directory.join("other");
    put(&other, &journal("s", "the other"));
    fs::rename(&other, directory.join(FILE_NAME)).unwrap();
    assert_eq!([title(), title()], ["the other"; 2]);
    put(&directory.join(FILE_NAME), &journal("s", "a longer one"));
    assert_eq!([title(), title()], ["a longer one"; 2]);
    store.delete(&id("s")).unwrap();
    assert!(store.cached_summary(&id("s")).is_err());
    scratch.session("sessions/s", &journal("s", "a second one"));
    assert_eq!(title(), "a second one");
}

#[test]
fn leftovers_of_an_interrupted_deletion_are_removed_by_the_next() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    for name in ["a", "b"] {
        create(&store, name);
    }
    let left = |name: &str| scratch.session(&format!("sessions/.deleted/{name}"), b"left");
    let (same, other) = (left("a"), left("other"));
    assert_eq!(pages(&store, 9), ["b", "a"]);
    store.delete(&id("a")).unwrap();
    assert!(!same.exists() && !other.exists());
    assert_eq!(pages(&store, 9), ["b"]);
    assert!(store.delete(&id("a")).is_err());
    assert!(!is_there(&store, "a") && is_there(&store, "b"));
}

fn make(store: &Store, name: &str, time: &str) {
    store.add_to_index(&id(name), time).unwrap();
    let first = first_event(name, SessionConfig::default());
    Journal::create(&store.directory(&id(name)), &id(name), "daemon_x", &first, time).unwrap();
}

fn is_there(store: &Store, name: &str) -> bool {
    store.has(&id(name)) && Path::exists(&store.directory(&id(name)))
}

#[test]
fn an_id_that_is_used_again_is_listed_once_as_the_new_session() {
    let scratch = Scratch::new();
    let store = Store::new(scratch.path().join("sessions"));
    make(&store, "x", "2026-03-01T10:00:00.000Z");
    store.delete(&id("x")).unwrap();
    make(&store, "y", "2026-03-01T10:00:01.000Z");
    make(&store, "x", "2026-03-01T10:00:02.000Z");
    let first = store.page(None, 1).unwrap();
    assert_eq!(names(&first), ["x"]);
    let second = store.page(first.next, 1).unwrap();
    assert_eq!(names(&second), ["y"]);
    let third = second.next.map(|next| store.page(Some(next), 1).unwrap());
    assert!(third.is_none_or(|page| page.ids.is_empty()));
}

#[test]
fn without_an_index_there_are_pages_too() {
    let scratch = Scratch::new();
    let store = Store::new(scratch.path().join("sessions"));
    for name in ["a", "b", "c"] {
        create(&store, name);
    }
    fs::remove_file(scratch.path().join("sessions/index.jsonl")).unwrap();
    let mut found = Vec::new();
    let mut before = None;
    loop {
        let page = store.page(before, 1).unwrap();
        found.extend(names(&page).into_iter().map(str::to_owned));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    found.sort();
    assert_eq!(found, ["a", "b", "c"]);
}
