//! `opta doctor`: what it finds, and that it changes nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::model::Model;
use crate::support::{ANYTHING, Home, Run, freeze, signal};

fn doctor<'h>(home: &'h Home, model: &Model, words: &str) -> Run<'h> {
    home.opta(&format!("doctor {words}")).env("OPTA_MODEL_URL", model.url())
}

/// The lines of a doctor that must end with `status`, without the blanks.
fn findings(home: &Home, model: &Model, status: i32) -> Vec<String> {
    let seen = doctor(home, model, "").stdout(ANYTHING).status(status).run();
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    seen.stdout.lines().map(line).collect()
}

#[track_caller]
fn assert_found(findings: &[String], beginning: &str, within: &str) {
    let found = findings.iter().find(|line| line.starts_with(beginning));
    let found = found.unwrap_or_else(|| panic!("no '{beginning}': {findings:#?}"));
    assert!(found.contains(within), "{found}");
}

#[test]
fn an_empty_machine_is_in_order_and_stays_empty() {
    let (home, model) = (Home::new(), Model::new());
    let before = home.snapshot();
    for line in findings(&home, &model, 0) {
        assert!(line.starts_with("pass "), "{line}");
    }
    assert_eq!(home.snapshot(), before);
    home.assert_nothing_left();
}

#[test]
fn a_daemon_that_runs_is_in_order() {
    let (home, model) = (Home::new(), Model::new());
    let daemon = home.start();
    let found = findings(&home, &model, 0);
    assert_found(&found, "pass daemon", &format!("runs (pid {})", daemon.pid));
    assert_found(&found, "pass port", &format!("127.0.0.1:{}", daemon.port));
    assert_found(&found, "pass model", &model.url());
}

#[test]
fn json_is_a_line_a_check() {
    let (home, model) = (Home::new(), Model::new());
    let seen = doctor(&home, &model, "--json").stdout(ANYTHING).run();
    for line in seen.stdout.lines() {
        assert!(line.starts_with(r#"{"check":""#) && line.ends_with('}'), "{line}");
        assert!(line.contains(r#""status":"pass""#), "{line}");
    }
}

#[test]
fn what_is_wrong_is_named_with_what_mends_it() {
    let (home, model) = (Home::new(), Model::new());
    home.write(&home.config(), "{\n  \"daemon\": ,\n}");
    let found = findings(&home, &model, 1);
    assert_found(&found, "fail settings", "config.json:2:");
    fs::remove_file(home.config()).unwrap();

    home.start();
    fs::set_permissions(home.file("daemon.log"), Permissions::from_mode(0o644)).unwrap();
    let found = findings(&home, &model, 1);
    assert_found(&found, "fail files", "daemon.log has mode 0644");
    let fix = found.iter().find_map(|line| line.split_once("to mend it: ")).unwrap().1;
    home.sh(fix).run();
    assert_found(&findings(&home, &model, 0), "pass files", "");
}

#[test]
fn without_a_model_server_it_says_what_to_do() {
    let home = Home::new();
    let nothing = home.opta("doctor").env("OPTA_MODEL_URL", "http://127.0.0.1:1");
    let seen = nothing.stdout(ANYTHING).status(1).run();
    let line = seen.stdout.lines().find(|line| line.starts_with("fail  model")).unwrap();
    assert!(line.contains("127.0.0.1:1") && line.contains("OPTA_MODEL_URL"), "{line}");
}

#[test]
fn a_crashed_daemon_is_worth_a_word_and_one_that_hangs_fails() {
    let (home, model) = (Home::new(), Model::new());
    home.start();
    let pid = home.crash();
    let card = fs::read(home.file("state.json")).unwrap();
    let found = findings(&home, &model, 0);
    assert_found(&found, "warn daemon", &format!("has crashed (pid {pid})"));
    assert_eq!(fs::read(home.file("state.json")).unwrap(), card);

    let daemon = Home::new();
    let started = daemon.start();
    freeze(started.pid);
    let found = findings(&daemon, &model, 1);
    assert_found(&found, "fail daemon", "opta daemon restart --force");
    signal(started.pid, "CONT");
}

#[test]
fn a_damaged_session_is_found() {
    let (home, model) = (Home::new(), Model::new());
    let running = home.opta("do hello -q").env("OPTA_MODEL_URL", model.url()).stdout("hi\n");
    let running = running.spawn();
    model.question().answer("hi");
    running.finish();
    assert_found(&findings(&home, &model, 0), "pass sessions", "1 read");
    let sessions = home.path().join(".config/opta/sessions");
    let folders = fs::read_dir(&sessions).unwrap().map(|entry| entry.unwrap().path());
    let journal = folders.into_iter().find(|path| path.is_dir()).unwrap().join("journal.jsonl");
    let mut bytes = fs::read(&journal).unwrap();
    let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 20;
    bytes[second] ^= 1;
    fs::write(&journal, bytes).unwrap();
    let found = findings(&home, &model, 1);
    assert_found(&found, "fail sessions", "opta sessions export sess_");
}
