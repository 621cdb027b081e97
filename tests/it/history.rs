//! What long sessions cost.

use std::fs;
use std::thread;

use crate::api::Api;
use crate::crash::Strace;
use crate::model::Model;
use crate::sessions_cmd::journal;
use crate::support::{Home, STOPPED, eventually, need, proc_number};

/// A long message of a user.
const MESSAGE_BYTES: usize = 300_000;

/// A session on a daemon.
struct Session<'h> {
    home: &'h Home,
    model: &'h Model,
    api: Api,
}

impl<'h> Session<'h> {
    fn new(home: &'h Home, model: &'h Model) -> Session<'h> {
        home.start();
        let api = Api::of(home);
        api.post("/v3/sessions", r#"{"sessionId":"s"}"#).expect(201);
        Session { home, model, api }
    }

    fn submit(&self, content: &str) {
        let url = self.model.url();
        let endpoint = format!(r#"{{"url":"{url}/v1","source":"a test","model":"m"}}"#);
        let body = format!(r#"{{"content":"{content}","options":{{"endpoint":{endpoint}}}}}"#);
        self.api.post("/v3/sessions/s/turns", &body).expect(202);
    }

    /// Runs a turn. Returns the length of what the model was sent.
    fn turn(&self, content: &str) -> usize {
        self.submit(content);
        let question = self.model.question();
        let length = question.body.len();
        question.answer("well");
        let status = || self.api.get("/v3/sessions?limit=1").field("status") == "idle";
        eventually("the end of the turn", status);
        length
    }

    /// Returns a number from a file about the daemon's process.
    fn number(&self, file: &str, name: &str) -> u64 {
        proc_number(self.home.owner().unwrap(), file, name).unwrap()
    }
}

#[test]
fn a_turn_reads_as_much_of_a_long_journal_as_of_a_short_one() {
    need!("/proc");
    let (home, model) = (Home::new(), Model::new());
    let session = Session::new(&home, &model);
    let long = "x".repeat(MESSAGE_BYTES);
    let mut read = Vec::new();
    for _ in 0..9 {
        let before = session.number("io", "rchar:");
        let sent = session.turn(&long);
        assert!(sent > MESSAGE_BYTES);
        read.push(session.number("io", "rchar:") - before);
    }
    let (first, last) = (read[4..6].iter().max().unwrap(), read[7..].iter().max().unwrap());
    assert!(last - last / 4 < *first, "{read:?}");
}

#[test]
fn a_list_of_unchanged_sessions_reads_no_journal() {
    need!("/proc");
    let (home, model) = (Home::new(), Model::new());
    let session = Session::new(&home, &model);
    session.turn(&"x".repeat(1_000_000));
    home.opta("daemon stop").stdout(STOPPED).run();
    fs::remove_file(journal(&home, "s").with_file_name("summary.json")).unwrap();
    home.start();
    let (api, owner) = (Api::of(&home), home.owner().unwrap());
    let read = || proc_number(owner, "io", "rchar:").unwrap();
    let list = || {
        let before = read();
        let list = api.get("/v3/sessions").expect(200).body;
        (read() - before, list)
    };
    let (first, second) = (list(), list());
    assert!(first.0 > 1_000_000 && second.0 < 100_000, "{} and {} bytes", first.0, second.0);
    assert_eq!(first.1, second.1);
}

#[test]
fn turns_that_wait_take_no_memory_of_the_one_that_runs() {
    need!("/proc");
    let (home, model) = (Home::new(), Model::new());
    let session = Session::new(&home, &model);
    let long = "x".repeat(3_300_000);
    session.submit("first");
    let mut question = model.question();
    (0..6).for_each(|_| session.submit(&long));
    let peak = || session.number("status", "VmHWM:") * 1024;
    let before = peak();
    for _ in 0..6 {
        question.answer("well");
        question = model.question();
        assert!(question.body.len() > long.len());
    }
    let grown = peak() - before;
    assert!(grown < 16 << 20, "{grown} bytes");
}

#[test]
fn a_stop_does_not_wait_for_a_journal_that_is_being_read() {
    need!("/proc", "strace");
    let (home, model) = (Home::new(), Model::new());
    let session = Session::new(&home, &model);
    let long = "x".repeat(3_300_000);
    for _ in 0..3 {
        session.turn(&long);
    }
    home.opta("daemon stop").stdout(STOPPED).run();
    home.start();
    // The journal has at least 150 blocks of 64 KiB: reading it would take longer than a stop may.
    let slow = "inject=pread64:delay_enter=300ms";
    let journal = journal(&home, "s").canonicalize().unwrap();
    let strace = Strace::attach(&home, &["-e", "trace=pread64", "-e", slow], Some(&journal));
    let api = Api::of(&home);
    thread::scope(|scope| {
        let reader = scope.spawn(|| api.try_ask("GET", "/v3/sessions/s", ""));
        let open = format!("/proc/{}/fd", home.owner().unwrap());
        eventually("the journal is being read", || {
            let open = fs::read_dir(&open).unwrap();
            open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).any(|to| to == journal)
        });
        home.opta("daemon stop").stdout(STOPPED).run();
        // The daemon need not wait until the answer is sent.
        if let Some(reply) = reader.join().unwrap() {
            assert_eq!((reply.status, reply.field("message")), (503, "the daemon is stopping"));
        }
    });
    drop(strace);
}
