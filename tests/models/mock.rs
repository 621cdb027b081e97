//! The twelve fixtures of the mock, each with `opta do`. The mock parses requests as strictly as a
//! server does, and lists them afterward.

use crate::server::Server;
use crate::support::{ANYTHING, Finished, Home, Run};

/// A home with notes in its workspace, and a mock.
struct Fixture {
    home: Home,
    mock: Server,
}

/// The object of `opta do --json`: the part that all have, on one line.
const OBJECT: &str = "{\"sessionId\":\"{id}\",\"turnId\":\"{turn}\",\"result\":\"{*}}\n";

impl Fixture {
    fn new() -> Fixture {
        let fixture = Fixture { home: Home::new(), mock: Server::mock() };
        fixture.home.write(&fixture.home.beside("notes.txt"), "buy milk\n");
        fixture
    }

    fn opta(&self, words: &str) -> Run<'_> {
        self.home.opta(words).env("OPTA_MODEL_URL", self.mock.url())
    }

    /// Runs a task to its end, which must have this exit status. Gives its object.
    #[track_caller]
    fn task(&self, task: &str, status: i32) -> Finished {
        let run = self.opta("do --json").arg(task).stdout(OBJECT);
        run.stderr(ANYTHING).status(status).run()
    }

    /// Asserts that a session works after a failed task.
    #[track_caller]
    fn assert_works_after(&self, failed: &Finished) {
        let words = format!("do -q --resume {} say hello", failed.get("id"));
        self.opta(&words).stdout("Hello from the mock.\n").run();
        assert!(self.requests().last().unwrap().contains("say hello"));
    }

    /// Returns the requests of the mock, each with its response.
    fn requests(&self) -> Vec<String> {
        let journal = self.mock.get("/__aimock/journal");
        let requests = journal.split("\"path\":\"/v1/chat/completions\"").skip(1);
        requests.map(str::to_owned).collect()
    }

    /// Returns the daemon's log.
    fn log(&self) -> String {
        std::fs::read_to_string(self.home.file("daemon.log")).unwrap()
    }
}

/// Asserts that the text has these parts in this order.
#[track_caller]
fn assert_in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else {
            panic!("{part} is missing or out of order: {text}");
        };
        rest = after;
    }
}

/// A call that reads the notes, with the id `ID`, and its result, as in a request.
const CALLED: &str = r#"{"role":"assistant","content":"","tool_calls":[{"id":"ID","type":"function","function":{"name":"read_file","arguments":"{\"path\":\"notes.txt\"}"}}]},{"role":"tool","tool_call_id":"ID","content":"1\tbuy milk\n"}"#;

/// Returns the ids of the calls that a task reports.
fn ids(seen: &Finished) -> Vec<&str> {
    let calls = seen.stdout.split("\"id\":\"").skip(1);
    calls.map(|call| call.split('"').next().unwrap()).collect()
}

#[test]
fn a_greeting_is_one_complete_request() {
    let fixture = Fixture::new();
    fixture.opta("do say hello").stdout("Hello from the mock.\n").run();
    let requests = fixture.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    // The first model that the mock offers.
    for part in [
        r#""model":"gpt-4""#,
        r#""stream":true"#,
        r#""stream_options":{"include_usage":true}"#,
        r#""tool_choice":"auto""#,
        r#""name":"read_file""#,
        r#"{"role":"user","content":"say hello"}"#,
    ] {
        assert!(requests[0].contains(part), "{part}: {}", requests[0]);
    }
}

#[test]
fn a_call_is_run_and_its_result_is_in_the_next_request() {
    let fixture = Fixture::new();
    let seen = fixture.task("read notes", 0);
    assert!(seen.stdout.contains(r#""result":"The notes say: buy milk.""#), "{}", seen.stdout);
    let ids = ids(&seen);
    assert_eq!(ids.len(), 1, "{}", seen.stdout);
    let requests = fixture.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    let called = CALLED.replace("ID", ids[0]);
    let user = r#"{"role":"user","content":"read notes"},"#;
    assert!(requests[1].contains(&format!("{user}{called}]")), "{}", requests[1]);
    assert!(!requests[0].contains(r#""role":"tool""#), "{}", requests[0]);
    assert_in_order(
        &fixture.log(),
        &[
            r#""msg":"tool.start","tool":"file_read","path":"notes.txt""#,
            r#""msg":"tool.end","tool":"file_read""#,
            r#""result":"done""#,
        ],
    );
    // The next turn has all of it in its request, and calls once more.
    let words = format!("do --json --resume {} read notes", seen.get("id"));
    let again = fixture.opta(&words).stdout(OBJECT).run();
    let again = self::ids(&again).concat();
    let answer = r#"{"role":"assistant","content":"The notes say: buy milk."}"#;
    let called_again = CALLED.replace("ID", &again);
    let whole = format!("{user}{called},{answer},{user}{called_again}]");
    let requests = fixture.requests();
    assert!(requests.len() == 4 && requests[3].contains(&whole), "{requests:?}");
}

#[test]
fn the_text_of_an_answer_that_is_cut_off_is_kept() {
    for task in ["break midway", "drop later"] {
        let fixture = Fixture::new();
        let failed = fixture.task(task, 1);
        let error = r#"","toolCalls":[],"error":{"code":"model-disconnected""#;
        let (answer, _) = failed.stdout.split_once(error).unwrap();
        let (_, answer) = answer.split_once(r#""result":""#).unwrap();
        assert!(answer.starts_with("This "), "{}", failed.stdout);
        assert!(!answer.ends_with('.'), "{}", failed.stdout);
        // There is no second request after the first text.
        assert_eq!(fixture.requests().len(), 1);
        let export = fixture.home.opta(&format!("sessions export {}", failed.get("id")));
        let kept = format!(r#"{{"role":"assistant","content":"{answer}"}}"#);
        let export = export.arg("--format").arg("json").stdout(ANYTHING).run();
        assert!(export.stdout.contains(&kept), "{}", export.stdout);
        fixture.assert_works_after(&failed);
        let last = fixture.requests().pop().unwrap();
        assert!(last.contains(&kept), "{last}");
    }
}

#[test]
fn a_slow_answer_is_streamed_in_pieces() {
    let fixture = Fixture::new();
    let seen = fixture.opta("do --events slow").stdout(ANYTHING).run();
    let pieces = seen.stdout.matches("\"event\":\"turn.token\"").count();
    assert!(pieces > 1, "{}", seen.stdout);
    assert_in_order(&seen.stdout, &["turn.start", "turn.token", "turn.token", "turn.done"]);
    let texts = seen.stdout.split("\"text\":\"").skip(1);
    let answer: String = texts.map(|text| text.split('"').next().unwrap()).collect();
    assert_eq!(answer, "one two three four");
}

#[test]
fn a_server_that_stays_busy_is_asked_for_a_limited_time() {
    let fixture = Fixture::new();
    let failed = fixture.task("rate limit", 1);
    let error = r#""error":{"code":"model-busy","message":"the model server at "#;
    assert_in_order(&failed.stdout, &[r#""result":"""#, error, "Rate limit reached"]);
    let requests = fixture.requests();
    assert!(requests.len() > 3, "{requests:?}");
    assert!(requests.iter().all(|one| one.contains(r#""response":{"status":429"#)), "{requests:?}");
    fixture.assert_works_after(&failed);
}

#[test]
fn a_server_that_is_busy_once_is_asked_again() {
    let fixture = Fixture::new();
    let note = "opta: the model server at {*} is busy (503): {*}\n";
    fixture.opta("do flaky").stdout("ok now\n").stderr(note).run();
    let requests = fixture.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert!(requests[0].contains(r#""response":{"status":503"#), "{}", requests[0]);
}

#[test]
fn a_call_with_invalid_arguments_is_not_run_and_the_model_gets_the_error() {
    let fixture = Fixture::new();
    let failed = fixture.task("bad arguments", 1);
    assert!(failed.stdout.contains(r#""error":{"code":"tool-loop""#), "{}", failed.stdout);
    let ids = ids(&failed);
    assert_eq!(ids.len(), 4, "{}", failed.stdout);
    assert_eq!(failed.stdout.matches("\"success\":false").count(), 4, "{}", failed.stdout);
    let requests = fixture.requests();
    assert_eq!(requests.len(), 4, "{requests:?}");
    for (number, id) in (1..requests.len()).zip(&ids) {
        let call = format!(
            r#"{{"id":"{id}","type":"function","function":{{"name":"read_file","arguments":"{{}}"}}}}"#
        );
        let answer = format!(
            r#"{{"role":"tool","tool_call_id":"{id}","content":"error: read_file needs {{\"path\": string"#
        );
        assert_in_order(&requests[number], &[&call, &answer, "line 1, column 10: "]);
    }
    let log = fixture.log();
    assert!(!log.contains(r#""path":"#), "{log}");
    fixture.assert_works_after(&failed);
}

#[test]
fn a_call_that_is_cut_off_is_never_run() {
    let fixture = Fixture::new();
    let failed = fixture.task("cut tool", 1);
    assert!(failed.stdout.contains(r#""error":{"code":"model-cut-off""#), "{}", failed.stdout);
    assert!(failed.stdout.contains(r#""toolCalls":[]"#), "{}", failed.stdout);
    assert!(!fixture.log().contains("tool.start"));
    // The model is told once.
    let requests = fixture.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    fixture.assert_works_after(&failed);
}

#[test]
fn a_model_that_repeats_a_call_is_stopped() {
    let fixture = Fixture::new();
    let failed = fixture.task("loop forever", 1);
    let error = r#""error":{"code":"tool-loop""#;
    assert!(failed.stdout.contains(error), "{}", failed.stdout);
    let ids = ids(&failed);
    assert_eq!(ids.len(), 4, "{}", failed.stdout);
    let requests = fixture.requests();
    assert_eq!(requests.len(), 4, "{requests:?}");
    let called: Vec<String> = ids.iter().take(2).map(|id| CALLED.replace("ID", id)).collect();
    assert!(requests[2].contains(&called.join(",")), "{}", requests[2]);
    assert_eq!(fixture.log().matches("tool.start").count(), 4);
    fixture.assert_works_after(&failed);
}
