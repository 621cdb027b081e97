//! A cancel reaches whatever a turn is at.

use std::fs::File;
use std::io::Read;

use super::*;

/// Far less than anything here would take by itself, and enough for a machine that has other things
/// to do.
const AT_ONCE: Duration = Duration::from_secs(5);

fn cancelled_at_once(stage: &Stage) -> Vec<Heard> {
    let wished = stage.cancel();
    let events = stage.ended("turn.error");
    assert!(wished.elapsed() < AT_ONCE, "{:?}", wished.elapsed());
    assert!(of(&events, "turn.error")[0].contains(r#""code":"cancelled""#));
    events
}

#[test]
fn cancel_reaches_a_question() {
    let stage = Stage::new(|_| call("run_command", r#"{"command":"touch ran"}"#));
    stage.submit("do it", attended());
    stage.wait_for("permission.request", 1);
    let events = cancelled_at_once(&stage);
    assert!(of(&events, "permission.resolved")[0].contains(r#""approved":false"#));
    assert!(of(&events, "tool.start").is_empty());
}

#[test]
fn cancel_reaches_the_model() {
    let stage = Stage::new(|_| Says::Hangs);
    stage.submit("do it", alone());
    stage.wait_for("turn.token", 1);
    cancelled_at_once(&stage);
}

#[test]
fn cancel_reaches_a_command_and_its_call_is_answered() {
    let stage = Stage::new(|_| call("run_command", r#"{"command":"echo > pipe; sleep 600"}"#));
    let pipe = stage.scratch.path().join("work/pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    stage.submit("do it", granted(Grant::All));
    assert_eq!(File::open(&pipe).unwrap().read(&mut [0]).unwrap(), 1);
    let events = cancelled_at_once(&stage);
    assert!(of(&events, "tool.end")[0].contains("[cancelled]"));
}
