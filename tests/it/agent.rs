//! Turns on the real daemon with a scripted model: a small server that answers each request with
//! the next of its streams.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

use crate::model;
use crate::support::{Home, eventually, fifo, has_ended, line_of, need, signal, state_of};

/// A model server. Its threads end with the test's process.
struct Model {
    port: u16,
}

impl Model {
    fn with(streams: Vec<String>) -> Model {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = move || {
            for stream in streams {
                let (mut client, _) = listener.accept().unwrap();
                read_request(&mut client);
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                            Connection: close\r\n\r\n";
                client.write_all(head.as_bytes()).unwrap();
                // One write per event, as servers do.
                for event in stream.split_inclusive("\n\n") {
                    client.write_all(event.as_bytes()).unwrap();
                }
            }
        };
        thread::Builder::new().name("model".into()).spawn(serve).unwrap();
        Model { port }
    }
}

fn read_request(client: &mut TcpStream) {
    let mut text = Vec::new();
    let mut chunk = [0; 64 * 1024];
    loop {
        let count = client.read(&mut chunk).unwrap();
        text.extend(&chunk[..count]);
        let known = String::from_utf8_lossy(&text).to_ascii_lowercase();
        let Some((head, body)) = known.split_once("\r\n\r\n") else { continue };
        let length = head.split("content-length: ").nth(1).unwrap();
        if body.len() >= length.lines().next().unwrap().parse().unwrap() {
            return;
        }
    }
}

fn event(delta: &str, finish: &str) -> String {
    format!(
        "data: {{\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish}}}]}}\n\n"
    )
}

fn calls(name: &str, arguments: &str) -> String {
    let arguments = arguments.replace('\\', "\\\\").replace('"', "\\\"");
    let call = format!(
        "{{\"tool_calls\":[{{\"index\":0,\"id\":\"c1\",\"function\":{{\"name\":\"{name}\",\
         \"arguments\":\"{arguments}\"}}}}]}}"
    );
    event(&call, "null") + &event("{}", "\"tool_calls\"") + "data: [DONE]\n\n"
}

fn text(words: &[String]) -> String {
    let words = words.iter().map(|word| event(&format!("{{\"content\":\"{word}\"}}"), "null"));
    words.collect::<String>() + &event("{}", "\"stop\"") + "data: [DONE]\n\n"
}

/// A session on a daemon, with its own workspace.
struct Session {
    port: u16,
    token: String,
    id: String,
    workspace: PathBuf,
}

impl Session {
    fn new(home: &Home) -> Session {
        let info = home.daemon_info();
        let workspace = home.path().join("work");
        fs::create_dir_all(&workspace).unwrap();
        let (port, token) = (info.port(), info.token().to_owned());
        let id = "sess_agent".to_owned();
        let session = Session { port, token, id, workspace };
        let place = session.workspace.display();
        let body = format!(
            "{{\"sessionId\":\"{}\",\"metadata\":{{\"workspace\":\"{place}\"}}}}",
            session.id
        );
        session.post("/v3/sessions", &body);
        session
    }

    fn post(&self, path: &str, body: &str) -> String {
        let mut stream =
            TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))).unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.port,
            self.token,
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 20"), "{reply}");
        reply
    }

    fn submit(&self, model: &Model) {
        let body = format!(
            "{{\"content\":\"do it\",\"options\":{{\"grant\":\"all\",\"attended\":false,\
             \"endpoint\":{{\"url\":\"http://127.0.0.1:{}/v1\",\"source\":\"a test\",\
             \"model\":\"m\",\"key\":\"sk-secret\"}}}}}}",
            model.port
        );
        self.post(&format!("/v3/sessions/{}/turns", self.id), &body);
    }

    fn journal(&self, home: &Home) -> String {
        let daemon = home.file("state.json");
        let root = daemon.parent().and_then(Path::parent).unwrap();
        let path = root.join("sessions").join(&self.id).join("journal.jsonl");
        fs::read_to_string(path).unwrap()
    }

    /// Waits for an event. Returns the journal.
    fn wait_for(&self, home: &Home, event: &str) -> String {
        let mark = format!("\"event\":\"{event}\"");
        eventually(event, || self.journal(home).contains(&mark));
        self.journal(home)
    }
}

/// Waits in a shell for at most ten minutes, even if a signal ends a sleep.
const WAIT: &str = "for one in 1 2 3 4 5 6 7 8 9 10; do sleep 60; done";

/// Runs a command that writes the pids of its processes to a pipe: its own, and that of a child
/// that survives TERM.
fn run_stubborn(home: &Home, session: &Session) -> Vec<i32> {
    let command = format!("sh -c 'trap : TERM HUP; {WAIT}' & echo $$ $! > pipe; wait");
    run_until_piped(home, session, &command)
}

/// Runs a command until it has written pids to the pipe. Returns them.
fn run_until_piped(home: &Home, session: &Session, command: &str) -> Vec<i32> {
    let pipe = session.workspace.join("pipe");
    fifo(&pipe);
    let model = Model::with(vec![calls("run_command", &format!("{{\"command\":\"{command}\"}}"))]);
    session.submit(&model);
    let line = line_of(&pipe);
    assert!(home.owner().is_some());
    line.split(' ').map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn a_turn_reads_a_file_and_answers_and_the_log_reports_it() {
    let home = Home::new();
    home.start();
    let session = Session::new(&home);
    home.write(&session.workspace.join("notes.txt"), "buy milk\n");
    let model = Model::with(vec![
        calls("file_read", "{\"path\":\"notes.txt\"}"),
        text(&["Buy ".into(), "milk.".into()]),
    ]);
    session.submit(&model);
    let journal = session.wait_for(&home, "turn.done");
    assert!(journal.contains("\"result\":\"1\\tbuy milk\\n\""), "{journal}");
    let log = fs::read_to_string(home.file("daemon.log")).unwrap();
    assert!(log.contains("\"msg\":\"tool.start\",\"tool\":\"file_read\",\"path\":\"notes.txt\"}"));
    assert!(log.contains("\"msg\":\"tool.end\",\"tool\":\"file_read\",\"duration\":\""));
    for text in [&log, &journal] {
        assert!(!text.contains("sk-secret"));
    }
    home.opta("daemon stop").stdout("{*}").run();
}

#[test]
fn commands_inherit_no_descriptor_of_the_daemon() {
    let home = Home::new();
    home.start();
    let session = Session::new(&home);
    let command = "ls -l /proc/$$/fd; while read -r one; do echo $one; done < /proc/$$/status; cat /proc/$$/environ | tr '\\\\0' '\\\\n'";
    let arguments = format!("{{\"command\":\"{command}\"}}");
    session.submit(&Model::with(vec![calls("run_command", &arguments), text(&["ok".into()])]));
    let journal = session.wait_for(&home, "turn.done");
    let end = journal.lines().find(|line| line.contains("\"event\":\"tool.end\"")).unwrap();
    assert!(end.contains("0 -> /dev/null") && end.contains("1 -> pipe"), "{end}");
    for other in ["socket:", "daemon.pid", "daemon.log", "journal", "3 ->"] {
        assert!(!end.contains(other), "{other}: {end}");
    }
    assert!(end.contains("SigBlk: 0000000000000000"), "{end}");
    // The command gets no variable of the environment in which the daemon was started.
    assert!(!end.contains("HOME=") && end.contains("PATH=/"), "{end}");
    home.opta("daemon stop").stdout("{*}").run();
}

#[test]
fn processes_of_a_command_can_be_ended_by_signals() {
    let home = Home::new();
    home.start();
    let session = Session::new(&home);
    let command = "(sleep 21) & kill $!; wait $!; echo rc=$?";
    let arguments = format!("{{\"command\":\"{command}\"}}");
    session.submit(&Model::with(vec![calls("run_command", &arguments), text(&["ok".into()])]));
    let journal = session.wait_for(&home, "turn.done");
    let end = journal.lines().find(|line| line.contains("\"event\":\"tool.end\"")).unwrap();
    assert!(end.contains("rc=143"), "{end}");
    home.opta("daemon stop").stdout("{*}").run();
}

#[test]
fn commands_end_with_a_daemon_that_is_killed() {
    let home = Home::new();
    home.start();
    let session = Session::new(&home);
    let pids = run_stubborn(&home, &session);
    home.crash();
    for pid in pids {
        eventually("the command ends with its daemon", || has_ended(pid));
    }
    let crashed = "opta: the daemon had crashed (pid {*})\n";
    home.opta("daemon start").stdout("{*}").stderr(crashed).run();
    let session = Session {
        port: home.daemon_info().port(),
        token: home.daemon_info().token().into(),
        ..session
    };
    session.post(&format!("/v3/sessions/{}/cancel", session.id), "{}");
    assert!(session.journal(&home).contains("\"code\":\"interrupted\""));
    home.opta("daemon stop").stdout("{*}").run();
}

#[test]
fn a_group_that_gets_every_signal_still_ends_with_a_daemon_that_is_killed() {
    let home = Home::new();
    home.start();
    let session = Session::new(&home);
    let signals = "HUP INT QUIT ILL TRAP ABRT BUS FPE USR1 SEGV USR2 PIPE ALRM TERM TSTP TTIN TTOU \
                   XCPU XFSZ VTALRM PROF SYS";
    let command = format!(
        "trap '' {signals}; sh -c '{WAIT}' & for one in {signals}; do \
         kill -$one 0; done; echo $$ $! > pipe; wait"
    );
    let pids = run_until_piped(&home, &session, &command);
    home.crash();
    for pid in pids {
        eventually("the command ends with its daemon", || has_ended(pid));
    }
}

/// Checks that stopped processes end, too: the kernel continues them when their daemon ends.
#[test]
fn a_group_that_is_stopped_still_ends_with_a_daemon_that_is_killed() {
    let home = Home::new();
    home.start();
    let session = Session::new(&home);
    // The process that starts last stops them all: a shell that is stopped while it forks does not
    // appear as stopped.
    let command = format!("sh -c 'trap : HUP; echo $PPID $$ > pipe; kill -STOP 0; {WAIT}'; :");
    let pids = run_until_piped(&home, &session, &command);
    eventually("the group is stopped", || pids.iter().all(|pid| state_of(*pid) == Some('T')));
    home.crash();
    for pid in pids {
        eventually("the command ends with its daemon", || has_ended(pid));
    }
}

#[test]
fn stop_ends_running_commands() {
    let home = Home::new();
    home.start();
    let session = Session::new(&home);
    let pids = run_stubborn(&home, &session);
    home.opta("daemon stop").stdout("{*}").run();
    for pid in pids {
        eventually("the command ends with its daemon", || has_ended(pid));
    }
    assert!(session.journal(&home).contains("\"code\":\"interrupted\""));
}

#[test]
fn a_cancel_ends_a_command_that_survives_a_request_to_end() {
    let home = Home::new();
    home.start();
    let session = Session::new(&home);
    let pids = run_stubborn(&home, &session);
    session.post(&format!("/v3/sessions/{}/cancel", session.id), "{}");
    let journal = session.wait_for(&home, "turn.error");
    assert!(journal.contains("\"code\":\"cancelled\""), "{journal}");
    for pid in pids {
        eventually("the command ends with its turn", || has_ended(pid));
    }
    // The daemon still works.
    signal(home.owner().unwrap(), "HUP");
    session.submit(&Model::with(vec![text(&["ok".into()])]));
    session.wait_for(&home, "turn.done");
    home.opta("daemon stop").stdout("{*}").run();
}

#[test]
fn a_search_is_cancelled_within_a_long_line() {
    let home = Home::new();
    home.start();
    let session = Session::new(&home);
    home.write(&session.workspace.join("line"), "a".repeat(15 << 20));
    let pattern = "{\"pattern\":\"(a|b)(a|c)(a|d){300}[xyz]\"}";
    session.submit(&Model::with(vec![calls("search_files", pattern)]));
    let begun = || session.journal(&home).contains("\"event\":\"tool.start\"");
    eventually("the search begins", begun);
    session.post(&format!("/v3/sessions/{}/cancel", session.id), "{}");
    let journal = session.wait_for(&home, "turn.error");
    assert!(journal.contains("\"code\":\"cancelled\""), "{journal}");
    home.opta("daemon stop").stdout("{*}").run();
}

#[test]
fn a_long_answer_takes_little_space_on_the_disk() {
    const TOKENS: usize = 10_000;
    let home = Home::new();
    home.start();
    let session = Session::new(&home);
    let words: Vec<String> = (0..TOKENS).map(|n| format!("w{n} ")).collect();
    session.submit(&Model::with(vec![text(&words)]));
    let journal = session.wait_for(&home, "turn.done");
    let cost = journal.len() / TOKENS;
    assert!(cost <= 200, "{cost} bytes per token");
    let parts = journal.lines().filter(|line| line.contains("\"event\":\"turn.token\""));
    let text = parts.filter_map(|line| line.split("\"text\":\"").nth(1)?.split('"').next());
    assert_eq!(text.collect::<String>(), words.concat());
    home.opta("daemon stop").stdout("{*}").run();
}

#[test]
fn events_of_a_fast_answer_are_milliseconds_apart() {
    let home = Home::new();
    home.start();
    let session = Session::new(&home);
    let words: Vec<String> = (0..5_000).map(|n| format!("w{n} ")).collect();
    session.submit(&Model::with(vec![text(&words)]));
    let journal = session.wait_for(&home, "turn.done");
    let tokens = journal.lines().filter(|line| line.contains("\"event\":\"turn.token\""));
    let written_at = tokens.map(|line| {
        let ts = line.split("\"ts\":\"").nth(1).unwrap();
        // Seconds and milliseconds of "2026-11-28T10:32:32.081Z".
        ts[17..19].parse::<u32>().unwrap() * 1000 + ts[20..23].parse::<u32>().unwrap()
    });
    let mut written_at = written_at.collect::<Vec<u32>>();
    // The last one does not wait.
    written_at.pop();
    assert!(written_at.len() > 1, "{journal}");
    for pair in written_at.windows(2) {
        let apart = (pair[1] + 60_000 - pair[0]) % 60_000;
        assert!(apart >= 3, "{apart} ms: {journal}");
    }
    home.opta("daemon stop").stdout("{*}").run();
}

#[test]
fn the_daemon_does_not_show_the_words_of_its_starter() {
    need!("/proc");
    let (home, model) = (Home::new(), model::Model::new());
    let task = home.opta("do my secret salary is marked").env("OPTA_MODEL_URL", model.url());
    let client = task.stdout("Yes.\n").spawn();
    let question = model.question();
    let daemon = home.owner().unwrap();
    let line = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(line(daemon).trim_end_matches('\0'), "opta\0daemon");
    let processes = home.processes();
    assert!(processes.contains(&daemon));
    let marked: Vec<i32> =
        processes.into_iter().filter(|pid| line(*pid).contains("salary")).collect();
    assert_eq!(marked, [client.pid()]);
    question.answer("Yes.");
    client.finish();
    home.opta("daemon stop").stdout("{*}").run();
}
