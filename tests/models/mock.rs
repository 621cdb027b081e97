//! The twelve fixtures of the mock, each through `opta do`. It hears what a strict server hears,
//! and tells it afterwards.

use crate::server::Server;
use crate::support::{ANYTHING, Home, Run, Seen};

/// A home with notes in its workspace, and a mock.
struct Stage {
    home: Home,
    mock: Server,
}

/// One object of `opta do --json` on one line, as far as all have it.
const OBJECT: &str = "{\"sessionId\":\"{id}\",\"turnId\":\"{turn}\",\"result\":\"{*}}\n";

impl Stage {
    fn new() -> Stage {
        let stage = Stage { home: Home::new(), mock: Server::mock() };
        stage.home.write(&stage.home.beside("notes.txt"), "buy milk\n");
        stage
    }

    fn opta(&self, words: &str) -> Run<'_> {
        self.home.opta(words).env("OPTA_MODEL_URL", self.mock.url())
    }

    /// A task to its end, which is this exit status: its object.
    #[track_caller]
    fn task(&self, task: &str, status: i32) -> Seen {
        let run = self.opta("do --json").arg(task).stdout(OBJECT);
        run.stderr(ANYTHING).status(status).run()
    }

    /// A session in which a task has failed goes on with a greeting.
    #[track_caller]
    fn assert_goes_on(&self, failed: &Seen) {
        let words = format!("do -q --resume {} say hello", failed.get("id"));
        self.opta(&words).stdout("Hello from the mock.\n").run();
        assert!(self.asked().last().unwrap().contains("say hello"));
    }

    /// What the mock was asked, each with what it has answered.
    fn asked(&self) -> Vec<String> {
        let journal = self.mock.get("/__aimock/journal");
        let asked = journal.split("\"path\":\"/v1/chat/completions\"").skip(1);
        asked.map(str::to_owned).collect()
    }

    /// What the daemon tells of it.
    fn log(&self) -> String {
        std::fs::read_to_string(self.home.file("daemon.log")).unwrap()
    }
}

/// These stand in the text, in this order.
#[track_caller]
fn assert_in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some((_, behind)) = rest.split_once(part) else {
            panic!("{part} is not where it should be: {text}");
        };
        rest = behind;
    }
}

/// A call of the notes whose id is `ID`, in a history.
const CALLED: &str = r#"{"role":"assistant","content":"","tool_calls":[{"id":"ID","type":"function","function":{"name":"read_file","arguments":"{\"path\":\"notes.txt\"}"}}]},{"role":"tool","tool_call_id":"ID","content":"1\tbuy milk\n"}"#;

/// The ids of the calls that a task reports.
fn ids(seen: &Seen) -> Vec<&str> {
    let calls = seen.stdout.split("\"id\":\"").skip(1);
    calls.map(|call| call.split('"').next().unwrap()).collect()
}

#[test]
fn a_greeting_is_asked_for_once_and_in_full() {
    let stage = Stage::new();
    stage.opta("do say hello").stdout("Hello from the mock.\n").run();
    let asked = stage.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    // The first one that it offers.
    for part in [
        r#""model":"gpt-4""#,
        r#""stream":true"#,
        r#""stream_options":{"include_usage":true}"#,
        r#""tool_choice":"auto""#,
        r#""name":"read_file""#,
        r#"{"role":"user","content":"say hello"}"#,
    ] {
        assert!(asked[0].contains(part), "{part}: {}", asked[0]);
    }
}

#[test]
fn a_call_is_run_and_its_result_is_what_the_model_hears_next() {
    let stage = Stage::new();
    let seen = stage.task("read notes", 0);
    assert!(seen.stdout.contains(r#""result":"The notes say: buy milk.""#), "{}", seen.stdout);
    let ids = ids(&seen);
    assert_eq!(ids.len(), 1, "{}", seen.stdout);
    let asked = stage.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    let called = CALLED.replace("ID", ids[0]);
    let user = r#"{"role":"user","content":"read notes"},"#;
    assert!(asked[1].contains(&format!("{user}{called}]")), "{}", asked[1]);
    assert!(!asked[0].contains(r#""role":"tool""#), "{}", asked[0]);
    assert_in_order(
        &stage.log(),
        &[
            r#""msg":"tool.start","tool":"file_read","path":"notes.txt""#,
            r#""msg":"tool.end","tool":"file_read""#,
            r#""result":"done""#,
        ],
    );
    // The next turn hears of it all, and calls once more.
    let words = format!("do --json --resume {} read notes", seen.get("id"));
    let again = stage.opta(&words).stdout(OBJECT).run();
    let again = self::ids(&again).concat();
    let said = r#"{"role":"assistant","content":"The notes say: buy milk."}"#;
    let called_again = CALLED.replace("ID", &again);
    let whole = format!("{user}{called},{said},{user}{called_again}]");
    let asked = stage.asked();
    assert!(asked.len() == 4 && asked[3].contains(&whole), "{asked:?}");
}

#[test]
fn an_answer_that_breaks_off_keeps_what_was_said() {
    for task in ["break midway", "drop later"] {
        let stage = Stage::new();
        let failed = stage.task(task, 1);
        let error = r#"","toolCalls":[],"error":{"code":"model-disconnected""#;
        let (said, _) = failed.stdout.split_once(error).unwrap();
        let (_, said) = said.split_once(r#""result":""#).unwrap();
        assert!(said.starts_with("This "), "{}", failed.stdout);
        assert!(!said.ends_with('.'), "{}", failed.stdout);
        // Nothing is asked twice once a word has arrived.
        assert_eq!(stage.asked().len(), 1);
        let export = stage.home.opta(&format!("sessions export {}", failed.get("id")));
        let kept = format!(r#"{{"role":"assistant","content":"{said}"}}"#);
        let export = export.arg("--format").arg("json").stdout(ANYTHING).run();
        assert!(export.stdout.contains(&kept), "{}", export.stdout);
        stage.assert_goes_on(&failed);
        let last = stage.asked().pop().unwrap();
        assert!(last.contains(&kept), "{last}");
    }
}

#[test]
fn a_slow_answer_comes_in_pieces() {
    let stage = Stage::new();
    let seen = stage.opta("do --events slow").stdout(ANYTHING).run();
    let pieces = seen.stdout.matches("\"event\":\"turn.token\"").count();
    assert!(pieces > 1, "{}", seen.stdout);
    assert_in_order(&seen.stdout, &["turn.start", "turn.token", "turn.token", "turn.done"]);
    let texts = seen.stdout.split("\"text\":\"").skip(1);
    let said: String = texts.map(|text| text.split('"').next().unwrap()).collect();
    assert_eq!(said, "one two three four");
}

#[test]
fn a_server_that_stays_busy_is_asked_three_times() {
    let stage = Stage::new();
    let failed = stage.task("rate limit", 1);
    let error = r#""error":{"code":"model-busy","message":"the model server at "#;
    assert_in_order(&failed.stdout, &[r#""result":"""#, error, "Rate limit reached"]);
    let asked = stage.asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked.iter().all(|one| one.contains(r#""response":{"status":429"#)), "{asked:?}");
    stage.assert_goes_on(&failed);
}

#[test]
fn a_server_that_is_busy_once_is_not_noticed() {
    let stage = Stage::new();
    stage.opta("do flaky").stdout("ok now\n").run();
    let asked = stage.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[0].contains(r#""response":{"status":503"#), "{}", asked[0]);
}

#[test]
fn a_call_with_bad_arguments_is_not_run_and_the_model_hears_why() {
    let stage = Stage::new();
    let failed = stage.task("bad arguments", 1);
    assert!(failed.stdout.contains(r#""error":{"code":"tool-loop""#), "{}", failed.stdout);
    let ids = ids(&failed);
    assert_eq!(ids.len(), 2, "{}", failed.stdout);
    assert_eq!(failed.stdout.matches("\"success\":false").count(), 2, "{}", failed.stdout);
    let asked = stage.asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    for (number, id) in (1..).zip(&ids) {
        let call = format!(
            r#"{{"id":"{id}","type":"function","function":{{"name":"read_file","arguments":"{{}}"}}}}"#
        );
        let answer = format!(
            r#"{{"role":"tool","tool_call_id":"{id}","content":"error: read_file needs {{\"path\": string"#
        );
        assert_in_order(&asked[number], &[&call, &answer, "line 1, column 10: "]);
    }
    let log = stage.log();
    assert!(!log.contains(r#""path":"#), "{log}");
    stage.assert_goes_on(&failed);
}

#[test]
fn a_call_that_is_cut_off_is_never_run() {
    let stage = Stage::new();
    let failed = stage.task("cut tool", 1);
    assert!(failed.stdout.contains(r#""error":{"code":"model-cut-off""#), "{}", failed.stdout);
    assert!(failed.stdout.contains(r#""toolCalls":[]"#), "{}", failed.stdout);
    assert!(!stage.log().contains("tool.start"));
    // It is demanded once more.
    let asked = stage.asked();
    let demanded = |asked: &String| asked.contains(r#""tool_choice":"required""#);
    assert_eq!(asked.iter().map(demanded).collect::<Vec<_>>(), [false, true], "{asked:?}");
    stage.assert_goes_on(&failed);
}

#[test]
fn a_model_that_goes_in_circles_is_stopped_at_the_third_call() {
    let stage = Stage::new();
    let failed = stage.task("loop forever", 1);
    let error = r#""error":{"code":"tool-loop""#;
    assert!(failed.stdout.contains(error), "{}", failed.stdout);
    let ids = ids(&failed);
    assert_eq!(ids.len(), 2, "{}", failed.stdout);
    let asked = stage.asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    let called: Vec<String> = ids.iter().map(|id| CALLED.replace("ID", id)).collect();
    assert!(asked[2].contains(&called.join(",")), "{}", asked[2]);
    assert_eq!(stage.log().matches("tool.start").count(), 2);
    stage.assert_goes_on(&failed);
}
