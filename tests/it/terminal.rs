//! Characters from users, models and files that could control a terminal, or mislead its reader,
//! are never printed. A model's answer is data: a pipe gets it unchanged.

use crate::model::Model;
use crate::support::{ANYTHING, Finished, Home, need};
use crate::task::task;
use crate::user::task_in_terminal;

/// Escape, delete, a C1 control, a zero-width space, an override and an isolate of direction, and a
/// tag.
const HOSTILE: &str = "\u{1b}[2J\u{7f}\u{9b}\u{200b}\u{202e}\u{2066}\u{e0041}";
/// As people read it.
const ESCAPED: &str = r"\u{1b}[2J\u{7f}\u{9b}\u{200b}\u{202e}\u{2066}\u{e0041}";
/// As a string of JSON has it.
const IN_JSON: &str = r"\u001b[2J\u007f\u009b\u200b\u202e\u2066\udb40\udc41";

/// Asserts that `seen` shows the hostile text in this spelling, and is harmless.
#[track_caller]
fn assert_escaped(seen: &Finished, spelling: &str) {
    let all = format!("{}{}", seen.stdout, seen.stderr);
    assert!(all.contains(spelling), "{seen:?}");
    let is_harmful = |c: char| HOSTILE.contains(c) && !c.is_ascii_graphic();
    assert!(!all.contains(is_harmful), "{seen:?}");
}

#[test]
fn sessions_are_shown_without_a_character_that_controls_a_terminal() {
    let (home, model) = (Home::new(), Model::new());
    for (option, spelling) in [("--json", IN_JSON), ("--events", IN_JSON)] {
        let running = task(&home, &model, option).arg(HOSTILE).stdout(ANYTHING).spawn();
        // The arguments are JSON in a string, so each backslash is written twice.
        let path = format!(r#"{{\"path\":\"{}\"}}"#, IN_JSON.replace('\\', r"\\"));
        model.question().call("read_file", &path);
        model.question().answer(IN_JSON);
        assert_escaped(&running.finish(), spelling);
    }
    let running = task(&home, &model, "").arg(HOSTILE).stdout(&format!("{HOSTILE}\n")).spawn();
    model.question().answer(IN_JSON);
    running.finish();
    let list = home.opta("sessions list --json").stdout(ANYTHING).run();
    assert_escaped(&list, &format!(r#""title":"{IN_JSON}""#));
    let id = list.stdout.split('"').nth(3).unwrap().to_owned();
    assert_escaped(&home.opta("sessions list").stdout(ANYTHING).run(), ESCAPED);
    for (command, spelling) in [
        (format!("sessions show {id}"), ESCAPED),
        (format!("sessions show {id} --json"), IN_JSON),
        (format!("sessions export {id}"), IN_JSON),
        (format!("sessions export {id} --format markdown"), ESCAPED),
    ] {
        assert_escaped(&home.opta(&command).stdout(ANYTHING).run(), spelling);
    }
}

#[test]
fn a_terminal_is_shown_an_answer_without_a_character_that_controls_it() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let window = task_in_terminal(&home, &model).spawn();
    let path = format!(r#"{{\"path\":\"{}\"}}"#, IN_JSON.replace('\\', r"\\"));
    model.question().call("read_file", &path);
    model.question().answer(IN_JSON);
    let seen = window.finish();
    assert_escaped(&seen, &format!("• read_file {ESCAPED}  failed: "));
    assert_escaped(&seen, &format!("{ESCAPED}\r\n"));
}

#[test]
fn errors_quote_without_a_character_that_controls_a_terminal() {
    let home = Home::new();
    let unknown = home.opta("").arg(HOSTILE).stderr(ANYTHING).status(2).run();
    assert_escaped(&unknown, ESCAPED);
    for words in ["daemon start --port", "daemon logs --level", "sessions show"] {
        let run = || home.opta(words).arg(HOSTILE).stdout(ANYTHING).stderr(ANYTHING);
        assert_escaped(&run().status_in(&[1, 2]).run(), ESCAPED);
        // The message is one for people, in JSON.
        let in_message = ESCAPED.replace('\\', r"\\");
        assert_escaped(&run().arg("--json").status_in(&[1, 2]).run(), &in_message);
    }
}

#[test]
fn doctor_quotes_settings_without_a_character_that_controls_a_terminal() {
    let home = Home::new();
    home.write(&home.config(), format!(r#"{{"permissions":{{"{IN_JSON}":"deny"}}}}"#));
    let doctor = |words| home.opta(words).stdout(ANYTHING).status_in(&[0, 1]).run();
    assert_escaped(&doctor("doctor"), ESCAPED);
    assert_escaped(&doctor("doctor --json"), IN_JSON);
}

#[test]
fn the_log_is_shown_without_a_character_that_controls_a_terminal() {
    let home = Home::new();
    let line = |text: &str| {
        format!(r#"{{"ts":"2026-03-01T10:00:00.000Z","level":"INFO","msg":"{text}","k":"{text}"}}"#)
    };
    // A line of opta, one in the spelling of another program, and a line of something else.
    let as_it_is = HOSTILE.replace('\u{1b}', "");
    let lines = format!("{}\n{}\nat {HOSTILE}\n", line(IN_JSON), line(&as_it_is));
    home.write(&home.file("daemon.log"), lines);
    let text = home.opta("daemon logs").stdout(ANYTHING).run();
    let visible = ESCAPED.replace(r"\u{1b}", "");
    assert_escaped(&text, &format!("] INFO  {ESCAPED} k={ESCAPED}\n"));
    assert_escaped(&text, &format!("] INFO  {visible} k={visible}\n"));
    assert_escaped(&text, &format!("\nat {ESCAPED}\n"));
    let json = home.opta("daemon logs --json").stdout(ANYTHING).run();
    let lines = [line(IN_JSON), line(&IN_JSON.replace(r"\u001b", ""))];
    let foreign = format!(r#"{{"level":"ERROR","msg":"at {IN_JSON}"}}"#);
    assert_eq!(json.stdout, format!("{}\n{}\n{foreign}\n", lines[0], lines[1]));
}
