//! What is allowed, by whom, and when it is asked.

use super::*;
use crate::json::Raw;
use crate::session::desk::Decision;

#[test]
fn without_anybody_to_ask_what_must_be_asked_is_refused_at_once_and_said() {
    let stage = Stage::new(|round| match round {
        0 => call("write_file", r#"{"path":"new","content":"x"}"#),
        1 => call("run_command", r#"{"command":"touch ran"}"#),
        _ => Says::Text("then not"),
    });
    let events = stage.run(alone(), "turn.done");
    assert!(of(&events, "permission.request").is_empty());
    let ends = of(&events, "tool.end");
    assert!(
        ends.iter().all(|end| end.contains("error: permission denied") && end.contains("nobody"))
    );
    assert!(stage.asked()[1].messages.contains("permission denied"));
    assert!(!stage.scratch.path().join("work/new").exists());
    assert!(!stage.scratch.path().join("work/ran").exists());
    assert!(
        stage
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
        let stage = Stage::new(|round| match round {
            0 => call("write_file", r#"{"path":"new","content":"x"}"#),
            1 => call("run_command", r#"{"command":"touch ran"}"#),
            _ => Says::Text("done"),
        });
        stage.scratch.put("config.json", config);
        stage.run(granted(grant), "turn.done");
        let there = |name: &str| stage.scratch.path().join("work").join(name).exists();
        assert_eq!((there("new"), there("ran")), (writes, runs), "{config}");
        let offered = &stage.asked()[0].tools;
        assert_eq!(offered.contains("write_file"), writes, "{config}");
    }
}

#[test]
fn a_session_for_planning_changes_nothing_whatever_is_granted() {
    let stage = Stage::founded(true, Some("plan"), |round| match round {
        0 => call("write_file", r#"{"path":"new","content":"x"}"#),
        1 => call("read_file", r#"{"path":"notes.txt"}"#),
        _ => Says::Text("planned"),
    });
    let events = stage.run(granted(Grant::All), "turn.done");
    assert!(of(&events, "turn.start")[0].contains(r#""mode":"plan""#), "{events:?}");
    let ends = of(&events, "tool.end");
    assert!(ends[0].contains("error: permission denied") && ends[0].contains("mode"), "{ends:?}");
    assert!(ends[1].contains("buy milk"), "{ends:?}");
    assert!(!stage.scratch.path().join("work/new").exists());
    let offered = &stage.asked()[0].tools;
    assert!(!offered.contains("write_file") && offered.contains("read_file"), "{offered}");
    assert!(stage.log().contains(r#""decision":"deny","by":"mode""#), "{}", stage.log());
}

#[test]
fn optas_own_files_are_closed_to_tools_whatever_is_granted() {
    let stage = Stage::new(|round| match round {
        0 => call("read_file", r#"{"path":"own/state"}"#),
        1 => call("search_files", r#"{"pattern":"secret"}"#),
        2 => call("find_files", r#"{"pattern":"state"}"#),
        3 => call("list_dir", r#"{"recursive":true}"#),
        4 => call("write_file", r#"{"path":"own/state","content":"x"}"#),
        5 => call("edit_file", r#"{"path":"own/state","old_text":"secret","new_text":"x"}"#),
        _ => Says::Text("done"),
    });
    stage.scratch.put("work/own/state", "secret");
    let events = stage.run(granted(Grant::All), "turn.done");
    let ends = of(&events, "tool.end").join("\n");
    assert_eq!(ends.matches("it belongs to opta itself").count(), 3, "{ends}");
    assert!(!ends.contains("own/state\\n") && !ends.contains(":1:"), "{ends}");
    assert!(!stage.asked().iter().any(|asked| asked.messages.contains(r#"1\tsecret"#)));
    assert_eq!(stage.scratch.read("work/own/state"), "secret");
}

/// Answers the question that the turn asks.
fn answer(stage: &Stage, allow: bool) -> Raw {
    let events = stage.wait_for("permission.request", 1);
    let request = of(&events, "permission.request")[0];
    assert!(request.contains(r#""toolName":"run_command""#), "{request}");
    assert!(request.contains(r#""input":{"command":"touch ran"}"#), "{request}");
    let id = request.split("\"requestId\":\"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(stage.session.decide(id, allow, "me").unwrap(), Decision::Won);
    // Too late, or the turn has gone on and nobody asks any more.
    assert_ne!(stage.session.decide(id, !allow, "late").unwrap(), Decision::Won);
    Raw::parse(request).unwrap()
}

#[test]
fn the_first_answer_counts_and_nothing_runs_before_it() {
    for allow in [true, false] {
        let stage = Stage::new(|round| match round {
            0 => call("run_command", r#"{"command":"touch ran"}"#),
            _ => Says::Text("done"),
        });
        stage.submit("do it", attended());
        stage.wait_for("permission.request", 1);
        assert!(!stage.scratch.path().join("work/ran").exists());
        answer(&stage, allow);
        let events = stage.ended("turn.done");
        assert_eq!(stage.scratch.path().join("work/ran").exists(), allow);
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
        let log = stage.log();
        assert!(log.contains(r#""msg":"permission requested","tool":"shell"}"#), "{log}");
        let decision = if allow { "allow" } else { "deny" };
        assert!(log.contains(&format!(r#""tool":"shell","decision":"{decision}""#)), "{log}");
        assert!(!log.contains("touch"), "{log}");
    }
}

#[test]
fn another_listener_can_be_asked() {
    let stage = Stage::new(|round| match round {
        0 | 2 => call("run_command", r#"{"command":"touch ran"}"#),
        _ => Says::Text("done"),
    });
    let _deaf = stage.session.subscribe(false).unwrap();
    let events = stage.run(alone(), "turn.done");
    assert!(of(&events, "permission.request").is_empty(), "{events:?}");
    let _other = stage.session.subscribe(true).unwrap();
    stage.submit("do it", alone());
    answer(&stage, true);
    stage.ended("turn.done");
    assert!(stage.scratch.path().join("work/ran").exists());
}
