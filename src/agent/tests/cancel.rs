//! A cancel ends a turn immediately in every phase.

use std::fs::File;
use std::io::Read;

use super::*;

/// Far less than anything here would take by itself, and enough for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

fn cancel_at_once(fixture: &Fixture) -> Vec<Event> {
    let cancelled = fixture.cancel();
    let events = fixture.wait_for_end("turn.error");
    assert!(cancelled.elapsed() < AT_ONCE, "{:?}", cancelled.elapsed());
    assert!(payloads(&events, "turn.error")[0].contains(r#""code":"cancelled""#));
    events
}

#[test]
fn a_permission_request_can_be_cancelled() {
    let fixture = Fixture::new(|_| call("run_command", r#"{"command":"touch ran"}"#));
    fixture.submit("do it", attended());
    fixture.wait_for("permission.request");
    let events = cancel_at_once(&fixture);
    assert!(payloads(&events, "permission.resolved")[0].contains(r#""approved":false"#));
    assert!(payloads(&events, "tool.start").is_empty());
}

#[test]
fn a_completion_can_be_cancelled() {
    let fixture = Fixture::new(|_| Answer::Hangs);
    fixture.submit("do it", unattended());
    fixture.wait_for("turn.token");
    cancel_at_once(&fixture);
}

#[test]
fn a_command_can_be_cancelled_and_its_call_has_a_result() {
    let fixture = Fixture::new(|_| call("run_command", r#"{"command":"echo > pipe; sleep 600"}"#));
    let pipe = fixture.scratch.path().join("work/pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    fixture.submit("do it", granted(Grant::All));
    assert_eq!(File::open(&pipe).unwrap().read(&mut [0]).unwrap(), 1);
    let events = cancel_at_once(&fixture);
    assert!(payloads(&events, "tool.end")[0].contains("[cancelled]"));
}
