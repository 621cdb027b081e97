//! System calls that fail, and resources that run out: a clear error or no effect, never
//! anything else.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::api::Api;
use crate::crash::Strace;
use crate::support::{
    ADDRESS_IN_USE, ALREADY, DEADLINE, Daemon, Home, NONE, RUNNING, START_THREAD, STARTED, STOPPED,
    TOO_MANY_FILES, eventually, http, is_locked, need, signal,
};

/// Starts a daemon while this system call fails. The start must report `why` and leave nothing.
#[track_caller]
fn fails(inject: &str, why: &str) {
    let home = Home::new();
    let inject = format!("inject={inject}");
    let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject];
    let start = home.opta("daemon start").within(words).stderr("opta: cannot {*}\n").status(1);
    let mut start = start.spawn();
    let serves = || home.file("state.json").exists();
    eventually("it fails", || start.has_ended() || serves());
    assert!(!serves(), "{inject} does not fail the start");
    let seen = start.finish();
    assert!(seen.stderr.starts_with(&format!("opta: {why}")), "{inject}: {seen:?}");
    assert!(seen.stderr.lines().count() <= 2, "{inject}: {seen:?}");
    home.assert_nothing_left();
    home.opta("daemon start").stdout(STARTED).run();
    home.opta("daemon stop").stdout(STOPPED).run();
    home.assert_nothing_left();
}

#[test]
fn a_start_reports_a_failed_system_call_of_its_own() {
    need!("/proc", "strace");
    fails("mkdir:error=EROFS", "cannot create ");
    fails("flock:error=ENOLCK", "cannot lock ");
    fails("ftruncate:error=EIO", "cannot write ");
    let listen = "cannot start the daemon: cannot listen on 127.0.0.1:0:";
    fails("socket:error=EMFILE", &format!("{listen} {TOO_MANY_FILES}"));
    fails("bind:error=EADDRINUSE", &format!("{listen} {ADDRESS_IN_USE}"));
    fails("listen:error=EADDRINUSE", &format!("{listen} {ADDRESS_IN_USE}"));
    fails("pipe2:error=EMFILE", &format!("cannot make a pipe: {TOO_MANY_FILES}"));
    fails("clone,fork,vfork:error=EAGAIN", "cannot start a background process: Resource");
}

#[test]
fn a_start_reports_a_failed_system_call_of_the_daemon() {
    need!("/proc", "strace");
    let start = "cannot start the daemon: cannot ";
    fails("setsid:error=EPERM", "cannot start a background process: Operation not permitted");
    fails("dup2:error=EBADF:when=1", "cannot hand descriptors over to the daemon: Bad file");
    fails("execve:error=ENOEXEC", "cannot execute the program of opta: Exec format");
    fails("dup2:error=EBADF:when=7", &format!("{start}redirect output to the log"));
    fails("chdir:error=EACCES", &format!("{start}change to /: Permission denied"));
    fails("getsockname:error=ENOBUFS:when=2", &format!("{start}tell the daemon's port: No buffer"));
    fails("getrandom:error=ENOSYS", &format!("{start}get random bytes"));
    fails("getrandom:error=ENOSYS:when=2+", &format!("{start}get random bytes"));
    fails(
        &format!("{START_THREAD}:error=EAGAIN:when=1"),
        &format!("{start}start a thread: Resource temporarily"),
    );
    fails(&format!("{START_THREAD}:error=EAGAIN:when=2"), start);
    fails("socketpair:error=EMFILE", start);
    fails("rename:error=EIO", &format!("{start}write "));
    fails("rename:error=ENOSPC", &format!("{start}write "));
}

#[test]
fn a_start_that_times_out_leaves_nothing() {
    need!("/proc", "strace");
    let home = Home::new();
    let slow = "inject=socketpair:delay_enter=15s";
    let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", slow];
    let late = "{*}opta: cannot start the daemon: it was not ready after 10s\n\
                see the log: {home}/.config/opta/daemon/daemon.log\n";
    home.opta("daemon start").within(words).stderr(late).status(1).run();
    home.assert_nothing_left();
    home.opta("daemon start").stdout(STARTED).run();
}

#[test]
fn without_close_range_the_daemon_inherits_no_descriptor() {
    need!("/proc", "strace", "bash");
    let home = Home::new();
    // Each possible descriptor takes a call, which strace slows down.
    let script = r#"ulimit -n 1024; exec 7</etc/passwd 200</etc/passwd; exec "$0" "$@""#;
    let inject = "inject=close_range:error=ENOSYS";
    let words = ["bash", "-c", script, "strace", "-f", "-qq", "-o", "/dev/null", "-e", inject];
    let start = home.opta("daemon start").within(words).stdout(STARTED).spawn();
    let pid = home.opta("daemon status --wait=60").stdout(RUNNING).run().pid();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap();
        assert_ne!(target.to_str().unwrap(), "/etc/passwd");
    }
    home.opta("daemon stop").stdout(STOPPED).run();
    start.finish();
}

#[test]
fn a_log_that_cannot_be_written_does_not_affect_requests() {
    need!("/proc", "prlimit");
    let home = Home::new();
    // No file may grow beyond a page: the state file fits, the log soon does not.
    let limited = ["prlimit", "--fsize=4096:4096"];
    let daemon =
        home.opta("daemon start").within(limited).env("OPTA_LOG", "debug").stdout(STARTED).run();
    for _ in 0..100 {
        assert_eq!(http(daemon.port(), "GET", "/v3/health", None).0, 200);
    }
    home.opta("daemon status").stdout(RUNNING).with("pid", daemon.pid()).run();
    home.opta("daemon stop").stdout(STOPPED).with("pid", daemon.pid()).run();
    home.assert_nothing_left();
}

/// Opens more connections than the daemon has descriptors for, then closes them.
fn exhaust_connections(limit: &str) {
    let home = Home::new();
    let limited = ["prlimit".to_owned(), format!("--nofile={limit}")];
    let seen = home.opta("daemon start").within(limited).stdout(STARTED).run();
    let daemon = Daemon { pid: seen.pid(), port: seen.port() };
    let connect = |_| TcpStream::connect((Ipv4Addr::LOCALHOST, daemon.port)).unwrap();
    let clients: Vec<TcpStream> = (0..100).map(connect).collect();
    // Each has sent half a request.
    for mut stream in &clients {
        stream.write_all(b"GET /v3/health HTTP/1.1\r\nHost: ").unwrap();
    }
    drop(clients);
    assert_eq!(http(daemon.port, "GET", "/v3/health", None).0, 200);
    home.opta("daemon status").stdout(RUNNING).of(daemon).run();
    // Idle connections are closed for one with a request.
    let clients: Vec<TcpStream> = (0..100).map(connect).collect();
    assert_eq!(http(daemon.port, "GET", "/v3/health", None).0, 200);
    drop(clients);
    home.opta("daemon status").stdout(RUNNING).of(daemon).run();
    home.opta("daemon stop").stdout(STOPPED).of(daemon).run();
    home.assert_nothing_left();
}

#[test]
fn a_daemon_without_descriptors_recovers_when_clients_leave() {
    need!("/proc", "prlimit");
    exhaust_connections("64:64");
    exhaust_connections("65:65");
}

#[test]
fn an_idle_connection_does_not_delay_a_stop() {
    let home = Home::new();
    let daemon = home.start();
    let mut silent = TcpStream::connect((Ipv4Addr::LOCALHOST, daemon.port)).unwrap();
    let mut half = TcpStream::connect((Ipv4Addr::LOCALHOST, daemon.port)).unwrap();
    half.write_all(b"POST /v3/shutdown HTTP/1.1\r\n").unwrap();
    assert_eq!(http(daemon.port, "GET", "/v3/health", None).0, 200);
    // The daemon waits the grace period for half a request, and no longer.
    home.opta("daemon stop --timeout 9").stdout(STOPPED).of(daemon).run();
    home.assert_nothing_left();
    silent.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap_or(0), 0, "it is closed");
}

#[test]
fn a_second_signal_ends_the_grace_period() {
    let home = Home::new();
    let daemon = home.start();
    let mut half = TcpStream::connect((Ipv4Addr::LOCALHOST, daemon.port)).unwrap();
    half.write_all(b"POST /v3/shutdown HTTP/1.1\r\n").unwrap();
    assert_eq!(http(daemon.port, "GET", "/v3/health", None).0, 200);
    signal(daemon.pid, "TERM");
    signal(daemon.pid, "INT");
    home.wait_for_end();
    home.opta("daemon status").stdout(NONE).status(3).run();
}

#[test]
fn the_port_can_be_bound_again_at_once() {
    let home = Home::new();
    let daemon = home.start();
    // Connections that the daemon closes first stay in TIME_WAIT at its port.
    for _ in 0..10 {
        assert_eq!(http(daemon.port, "GET", "/v3/health", None).0, 200);
    }
    let open = TcpStream::connect((Ipv4Addr::LOCALHOST, daemon.port)).unwrap();
    open.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    home.opta("daemon stop").stdout(STOPPED).of(daemon).run();
    let start = home.opta("daemon start").arg("--port").arg(daemon.port.to_string());
    start.stdout(STARTED).with("port", daemon.port).run();
}

#[test]
fn a_daemon_whose_directory_was_removed_is_neither_found_nor_touched() {
    need!("/proc");
    let home = Home::new();
    let daemon = home.start();
    fs::remove_dir_all(home.path().join(".config")).unwrap();
    assert_eq!(http(daemon.port, "GET", "/v3/health", None).0, 200);
    // Nothing proves that it belongs to this home.
    home.opta("daemon stop").stdout("Daemon is not running.\n").run();
    assert_eq!(http(daemon.port, "GET", "/v3/health", None).0, 200);
    signal(daemon.pid, "TERM");
    eventually("it exits", || home.processes().is_empty());
}

#[test]
fn a_start_restores_the_state_file_of_a_running_daemon() {
    let home = Home::new();
    let daemon = home.start();
    fs::remove_file(home.file("state.json")).unwrap();
    assert!(is_locked(&home.file("daemon.pid")));
    home.opta("daemon start").stdout(ALREADY).of(daemon).run();
    home.opta("daemon status").stdout(RUNNING).of(daemon).run();
}

/// Submits a turn on a connection whose thread was there before, with `inject` for new threads.
fn submit_without_threads(home: &Home, api: &Api, turn: &str, inject: &str) -> String {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, api.port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = format!("Host: 127.0.0.1\r\nAuthorization: Bearer {}\r\n", api.token);
    write!(stream, "GET /v3/health HTTP/1.1\r\n{head}\r\n").unwrap();
    assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
    let inject = format!("inject={START_THREAD}:error=EAGAIN:{inject}");
    let strace =
        Strace::attach(home, &["-e", &format!("trace={START_THREAD}"), "-e", &inject], None);
    let body = format!(r#"{{"turnId":"{turn}","content":"x"}}"#);
    let length = body.len();
    write!(
        stream,
        "POST /v3/sessions/s/turns HTTP/1.1\r\n{head}Content-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    drop(strace);
    reply
}

#[test]
fn a_turn_whose_thread_cannot_be_started_is_tried_again_or_ends() {
    need!("/proc", "strace");
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    api.create("s");
    let code = |turn: &str| {
        let events = api.wait_for("s", "turn.error", turn);
        let names: Vec<String> = events.iter().map(|event| event.name.clone()).collect();
        (names, api.get("/v3/sessions/s/events?afterSeq=0").body)
    };
    let reply = submit_without_threads(&home, &api, "once", "when=1");
    assert!(reply.starts_with("HTTP/1.1 202 "), "{reply}");
    // It runs: there is no model server.
    assert!(code("once").0.contains(&"turn.start".to_owned()));
    let reply = submit_without_threads(&home, &api, "never", "when=1+");
    assert!(reply.starts_with("HTTP/1.1 202 "), "{reply}");
    let (_, events) = code("never");
    assert!(
        events.contains("cannot start a thread for the turn: Resource temporarily"),
        "{events}"
    );
    api.submit("s", "after").expect(202);
    assert_eq!(code("after").0.iter().filter(|name| *name == "turn.start").count(), 2);
    home.opta("daemon stop").stdout(STOPPED).run();
}
