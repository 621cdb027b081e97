//! Sessions that an earlier version wrote: read the same, and continued.
//!
//! `tests/data/sessions-0.1.0` holds what the daemon of that version left on disk after a crash,
//! with every kind of event, and the output of its commands and its API about it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::model::Model;
use crate::support::{ANYTHING, Home, STOPPED, files_in, http};

/// Has a journal with an incomplete last record, and a turn that the crash interrupted: opening it
/// appends to it.
const CRASHED: &str = "sess_crashed";

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sessions-0.1.0").join(name)
}

fn expected(name: &str) -> String {
    fs::read_to_string(data("expected").join(name)).unwrap()
}

/// Creates a home with these sessions and no daemon.
fn home() -> Home {
    let home = Home::new();
    let sessions = data("sessions");
    for name in files_in(&sessions) {
        home.write(&ours(&home, Path::new(&name)), fs::read(sessions.join(&name)).unwrap());
    }
    home
}

fn ours(home: &Home, name: &Path) -> PathBuf {
    home.path().join(".config/opta/sessions").join(name)
}

/// Returns the ids of the sessions, without [`CRASHED`].
fn whole() -> Vec<String> {
    let entries = fs::read_dir(data("sessions")).unwrap().map(Result::unwrap);
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let ids: Vec<String> =
        names.filter(|name| name.starts_with("sess_") && name != CRASHED).collect();
    assert_eq!(ids.len(), 5);
    ids
}

#[test]
fn commands_read_the_sessions_of_an_earlier_version() {
    let home = home();
    let all = home.opta("sessions list --json").stdout(ANYTHING).run();
    assert_eq!(all.stdout, expected("list.jsonl"));
    let verified = home.opta("sessions verify --json").stdout(ANYTHING).status(1).run();
    assert_eq!(verified.stdout, expected("verify.jsonl"));
    for id in whole().iter().map(String::as_str).chain([CRASHED]) {
        let exported = home.opta(&format!("sessions export {id}")).stdout(ANYTHING).run();
        assert_eq!(exported.stdout, expected(&format!("{id}.export.json")), "{id}");
    }
}

#[test]
fn the_api_answers_about_the_sessions_of_an_earlier_version_as_that_version_did() {
    let home = home();
    let daemon = home.start();
    let info = home.daemon_info();
    for id in whole() {
        let get = |path: &str| http(daemon.port, "GET", path, Some(info.token()));
        let (status, session) = get(&format!("/v3/sessions/{id}"));
        assert_eq!((status, session), (200, expected(&format!("{id}.session.json"))));
        let (status, events) = get(&format!("/v3/sessions/{id}/events?afterSeq=0"));
        assert_eq!((status, events), (200, expected(&format!("{id}.events.json"))));
    }
    home.opta("daemon stop").stdout(STOPPED).of(daemon).run();
}

#[test]
fn a_conversation_of_an_earlier_version_is_continued_at_its_end() {
    let home = home();
    let id =
        whole().into_iter().find(|id| expected(&format!("{id}.export.json")).contains("\"hi\""));
    let id = id.unwrap();
    let journal = ours(&home, Path::new(&format!("{id}/journal.jsonl")));
    let before = fs::read(&journal).unwrap();
    let model = Model::new();
    let task = format!("do --resume {id} continue");
    let running = home
        .opta(&task)
        .env("OPTA_MODEL_URL", model.url())
        .stdout(ANYTHING)
        .stderr(ANYTHING)
        .spawn();
    let question = model.question();
    for text in ["\"hi\"", "Hello!", "what now?", "I was about to ", "continue"] {
        assert!(question.body.contains(text), "{text} is missing in {}", question.body);
    }
    question.answer("continued");
    running.finish();
    let after = fs::read(&journal).unwrap();
    assert!(after.starts_with(&before), "events of the earlier version were changed");
    assert!(String::from_utf8_lossy(&after[before.len()..]).contains("continued"));
}
