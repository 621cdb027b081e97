//! Permissions: what is allowed, by whom, and when a turn asks.

use super::*;
use crate::json::Raw;
use crate::session::session::Decision;

#[test]
fn a_call_that_needs_permission_is_denied_immediately_if_no_one_can_answer() {
    let fixture = Fixture::new(|round| match round {
        0 => call("write_file", r#"{"path":"new","content":"x"}"#),
        1 => call("run_command", r#"{"command":"touch ran"}"#),
        _ => Answer::Text("then not"),
    });
    let events = fixture.run(unattended(), "turn.done");
    assert!(payloads(&events, "permission.request").is_empty());
    let ends = payloads(&events, "tool.end");
    assert!(
        ends.iter().all(|end| end.contains("error: permission denied") && end.contains("nobody"))
    );
    assert!(fixture.requests()[1].messages.contains("permission denied"));
    assert!(!fixture.scratch.path().join("work/new").exists());
    assert!(!fixture.scratch.path().join("work/ran").exists());
    assert!(
        fixture
            .log()
            .contains(r#""msg":"permission resolved","tool":"file_write","decision":"deny""#)
    );
}

#[test]
fn grants_and_settings_decide_together() {
    let cases = [
        (Grant::Edits, "{}", true, false),
        (Grant::All, "{}", true, true),
        (Grant::All, r#"{"permissions":{"shell":"deny"}}"#, true, false),
        (Grant::All, r#"{"permissions":{"write_file":"deny","run_command":"allow"}}"#, false, true),
        (Grant::Settings, r#"{"permissions":{"file_write":"allow","shell":"allow"}}"#, true, true),
    ];
    for (grant, config, writes, runs) in cases {
        let fixture = Fixture::new(|round| match round {
            0 => call("write_file", r#"{"path":"new","content":"x"}"#),
            1 => call("run_command", r#"{"command":"touch ran"}"#),
            _ => Answer::Text("done"),
        });
        fixture.scratch.put("config.json", config);
        fixture.run(granted(grant), "turn.done");
        let there = |name: &str| fixture.scratch.path().join("work").join(name).exists();
        assert_eq!((there("new"), there("ran")), (writes, runs), "{config}");
        let offered = &fixture.requests()[0].tools;
        assert_eq!(offered.contains("write_file"), writes, "{config}");
    }
}

#[test]
fn a_session_in_plan_mode_changes_nothing_whatever_is_granted() {
    let fixture = Fixture::with(true, Some("plan"), |round| match round {
        0 => call("write_file", r#"{"path":"new","content":"x"}"#),
        1 => call("read_file", r#"{"path":"notes.txt"}"#),
        _ => Answer::Text("planned"),
    });
    let events = fixture.run(granted(Grant::All), "turn.done");
    assert!(payloads(&events, "turn.start")[0].contains(r#""mode":"plan""#), "{events:?}");
    let ends = payloads(&events, "tool.end");
    assert!(ends[0].contains("error: permission denied") && ends[0].contains("mode"), "{ends:?}");
    assert!(ends[1].contains("buy milk"), "{ends:?}");
    assert!(!fixture.scratch.path().join("work/new").exists());
    let offered = &fixture.requests()[0].tools;
    assert!(!offered.contains("write_file") && offered.contains("read_file"), "{offered}");
    assert!(fixture.log().contains(r#""decision":"deny","by":"mode""#), "{}", fixture.log());
}

#[test]
fn optas_own_files_are_protected_whatever_is_granted() {
    let fixture = Fixture::new(|round| match round {
        0 => call("read_file", r#"{"path":"own/state"}"#),
        1 => call("search_files", r#"{"pattern":"secret"}"#),
        2 => call("find_files", r#"{"pattern":"state"}"#),
        3 => call("list_dir", r#"{"recursive":true}"#),
        4 => call("write_file", r#"{"path":"own/state","content":"x"}"#),
        5 => call("edit_file", r#"{"path":"own/state","old_text":"secret","new_text":"x"}"#),
        _ => Answer::Text("done"),
    });
    fixture.scratch.put("work/own/state", "secret");
    let events = fixture.run(granted(Grant::All), "turn.done");
    let ends = payloads(&events, "tool.end").join("\n");
    assert_eq!(ends.matches("it belongs to opta itself").count(), 3, "{ends}");
    assert!(!ends.contains("own/state\\n") && !ends.contains(":1:"), "{ends}");
    assert!(!fixture.requests().iter().any(|request| request.messages.contains(r#"1\tsecret"#)));
    assert_eq!(fixture.scratch.read("work/own/state"), "secret");
}

/// Answers the permission request of the turn.
fn answer(fixture: &Fixture, allow: bool) -> Raw {
    let events = fixture.wait_for("permission.request");
    let request = payloads(&events, "permission.request")[0];
    assert!(request.contains(r#""toolName":"run_command""#), "{request}");
    assert!(request.contains(r#""input":{"command":"touch ran"}"#), "{request}");
    let id = request.split("\"requestId\":\"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(fixture.session.decide(id, allow, "me").unwrap(), Decision::Won);
    // Too late, or the turn has already continued.
    assert_ne!(fixture.session.decide(id, !allow, "late").unwrap(), Decision::Won);
    Raw::parse(request).unwrap()
}

#[test]
fn the_first_answer_counts_and_nothing_runs_before_it() {
    for allow in [true, false] {
        let fixture = Fixture::new(|round| match round {
            0 => call("run_command", r#"{"command":"touch ran"}"#),
            _ => Answer::Text("done"),
        });
        fixture.submit("do it", attended());
        fixture.wait_for("permission.request");
        assert!(!fixture.scratch.path().join("work/ran").exists());
        answer(&fixture, allow);
        let events = fixture.wait_for_end("turn.done");
        assert_eq!(fixture.scratch.path().join("work/ran").exists(), allow);
        let order: Vec<&str> =
            names(&events).into_iter().filter(|n| !n.starts_with("turn")).collect();
        let wanted = [
            "session.snapshot",
            "permission.request",
            "permission.resolved",
            "tool.start",
            "tool.end",
        ];
        assert_eq!(order, wanted);
        let log = fixture.log();
        assert!(log.contains(r#""msg":"permission requested","tool":"shell"}"#), "{log}");
        let decision = if allow { "allow" } else { "deny" };
        assert!(log.contains(&format!(r#""tool":"shell","decision":"{decision}""#)), "{log}");
        assert!(!log.contains("touch"), "{log}");
    }
}

#[test]
fn another_client_that_follows_the_session_can_answer() {
    let fixture = Fixture::new(|round| match round {
        0 | 2 => call("run_command", r#"{"command":"touch ran"}"#),
        _ => Answer::Text("done"),
    });
    let _silent = fixture.session.subscribe(false).unwrap();
    let events = fixture.run(unattended(), "turn.done");
    assert!(payloads(&events, "permission.request").is_empty(), "{events:?}");
    let _other = fixture.session.subscribe(true).unwrap();
    fixture.submit("do it", unattended());
    answer(&fixture, true);
    fixture.wait_for_end("turn.done");
    assert!(fixture.scratch.path().join("work/ran").exists());
}
