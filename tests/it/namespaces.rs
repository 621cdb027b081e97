//! One home in several namespaces: networks, pids, users; and what the kernel refuses there.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use crate::api::Api;
use crate::support::{
    ALREADY, ANYTHING, DEADLINE, Home, NONE, NOT_RUNNING, RESTARTED, RUNNING, Run, Running,
    STARTED, STOPPED, eventually, fifo, freeze, has, http, namespace, need, signal, skip,
};

/// Runs `act` in a thread with its own network, as root. Only the loopback interface is there, and
/// `set_up` is run as a shell script first. The commands that the thread runs are in that network,
/// too.
pub fn in_another_network(set_up: &str, act: impl FnOnce() + Send) {
    let inside = || {
        // SAFETY: integers only; it changes this thread alone.
        #[expect(unsafe_code, reason = "std has no way to do it")]
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "a network of its own");
        let status = std::process::Command::new("sh").args(["-ec", set_up]).status();
        assert!(status.unwrap().success(), "{set_up}");
        act();
    };
    let ended = thread::scope(|scope| {
        let name = thread::current().name().unwrap_or_default().to_owned();
        let thread = thread::Builder::new().name(name);
        thread.spawn_scoped(scope, inside).unwrap().join()
    });
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

/// What makes the loopback interface usable.
pub const UP: &str = "ip link set lo up";

/// Listens on a port of this thread's network as another user, and reports what each connection
/// sends.
pub fn stranger(port: u16) -> Receiver<Vec<u8>> {
    const NOBODY: libc::uid_t = 65_534;
    // SAFETY: integers only; it changes this thread alone.
    #[expect(unsafe_code, reason = "std has no way to do it")]
    let become_user = |user| unsafe { libc::setfsuid(user) };
    become_user(NOBODY);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    become_user(0);
    let (sender, received) = channel();
    let listening = move || {
        for stream in listener.incoming() {
            let mut bytes = vec![0; 4096];
            let mut stream = stream.unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let count = stream.read(&mut bytes).unwrap_or(0);
            bytes.truncate(count);
            if sender.send(bytes).is_err() {
                return;
            }
        }
    };
    drop(thread::Builder::new().name("a stranger".into()).spawn(listening).unwrap());
    received
}

#[test]
fn a_program_that_answers_for_the_daemon_is_asked_once() {
    let home = Home::new();
    let daemon = home.start();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, received) = channel();
    let answering = move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                assert_eq!(stream.read(&mut byte).unwrap(), 1);
                head.push(byte[0]);
            }
            // Before the client can end.
            sender.send(()).unwrap_or(());
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap();
        }
    };
    drop(thread::Builder::new().name("another server".into()).spawn(answering).unwrap());
    let path = home.file("state.json");
    let own = fs::read_to_string(&path).unwrap();
    let (from, to) = (format!(r#""port":{}"#, daemon.port), format!(r#""port":{port}"#));
    home.write(&path, own.replace(&from, &to));
    let foreign = "◐ unresponsive  pid={pid}  port={port}  \
                   (what answers on 127.0.0.1:{port} is not this daemon)\n";
    let status = home.opta("daemon status").stdout(foreign).with("pid", daemon.pid);
    status.with("port", port).status(4).run();
    assert_eq!(received.try_iter().count(), 1);
    home.opta("daemon start").stdout(ALREADY).of(daemon).run();
    // Once without the lock of starters, and once with it: then the daemon is signaled, and writes
    // its state file again.
    assert_eq!(received.try_iter().count(), 2);
    assert_eq!(fs::read_to_string(&path).unwrap(), own);
}

/// Removes what the program of the version before did not write.
fn forget_namespaces(home: &Home) {
    let path = home.file("state.json");
    let text = fs::read_to_string(&path).unwrap();
    let (kept, new) = text.split_once(r#","bootId":"#).unwrap();
    assert!(new.contains("netNamespace") && new.contains("pidNamespace"), "{new}");
    home.write(&path, format!("{kept}}}\n"));
}

#[test]
fn the_token_is_not_sent_to_a_stranger_in_another_network() {
    need!("root", "a private network", "ip");
    let home = Home::new();
    let daemon = home.start();
    let there = "opta: cannot reach the daemon (pid {pid}): it listens in another network \
                 namespace\nrun opta where it runs, or give this place a home of its own: \
                 OPTA_HOME\n";
    let unresponsive =
        "◐ unresponsive  pid={pid}  port={port}  (it listens in another network namespace)\n";
    in_another_network(UP, || {
        let received = stranger(daemon.port);
        home.opta("daemon status").stdout(unresponsive).of(daemon).status(4).run();
        for words in ["daemon start", "daemon token", "do hi", "daemon restart --if-idle"] {
            home.opta(words).stderr(there).of(daemon).status(4).run();
        }
        let doctor = "{*}fail  daemon    holds its lock (pid {pid}), but it listens in another \
                      network namespace; fix: run opta where it runs{*}";
        home.opta("doctor").stdout(doctor).of(daemon).status(1).run();
        // Not even a connection.
        assert_eq!(received.try_recv(), Err(TryRecvError::Empty));
        // Its process can be signaled.
        home.opta("daemon stop").stdout(STOPPED).of(daemon).run();
        assert_eq!(received.try_recv(), Err(TryRecvError::Empty));
    });
    home.assert_nothing_left();
}

#[test]
fn a_state_file_without_namespaces_is_used_unless_another_user_listens() {
    need!("root", "a private network", "ip");
    let home = Home::new();
    let daemon = home.start();
    forget_namespaces(&home);
    home.opta("daemon status").stdout(RUNNING).of(daemon).run();
    let unresponsive = "◐ unresponsive  pid={pid}  port={port}  \
                        (127.0.0.1:{port} is a socket of another user, 65534)\n";
    in_another_network(UP, || {
        let received = stranger(daemon.port);
        home.opta("daemon status").stdout(unresponsive).of(daemon).status(4).run();
        home.opta("daemon start").stderr(ANYTHING).status(4).run();
        assert_eq!(received.try_recv(), Err(TryRecvError::Empty));
    });
    home.opta("daemon stop").stdout(STOPPED).of(daemon).run();
}

#[test]
fn the_token_is_not_sent_if_the_state_file_is_of_another_machine() {
    need!("/proc");
    let home = Home::new();
    let daemon = home.start();
    let path = home.file("state.json");
    let text = fs::read_to_string(&path).unwrap();
    let (before, after) = text.split_once(r#""bootId":""#).unwrap();
    home.write(&path, format!(r#"{before}"bootId":"0{}"#, &after[1..]));
    let unresponsive = "◐ unresponsive  pid={pid}  port={port}  (it runs on another machine)\n";
    home.opta("daemon status").stdout(unresponsive).of(daemon).status(4).run();
    home.opta("daemon stop").stdout(STOPPED).of(daemon).run();
}

/// Returns the words that run a command where pids are counted anew.
fn other_pids() -> Option<Vec<String>> {
    namespace(&["--pid", "--fork", "--kill-child", "--mount-proc"])
}

#[test]
fn a_daemon_in_another_pid_namespace_is_used_and_stopped() {
    need!("root");
    let Some(private) = other_pids() else { skip!("it needs private processes") };
    let home = Home::new();
    let daemon = home.start();
    let opta = |words: &str| home.opta(words).within(&private).of(daemon);
    opta("daemon status").stdout(RUNNING).run();
    opta("daemon token").stdout("opta_dk_{token}\n").run();
    opta("doctor").stdout("{*}pass  daemon    running (pid {pid}){*}").status(1).run();
    opta("do hi").stderr("{*}model-unreachable{*}").status(1).run();
    opta("daemon stop").stdout(STOPPED).run();
    home.assert_nothing_left();
    opta("daemon stop").stdout(NOT_RUNNING).run();
}

#[test]
fn a_daemon_in_another_pid_namespace_is_restarted() {
    need!("root");
    let Some(private) = other_pids() else { skip!("it needs private processes") };
    let home = Home::new();
    let daemon = home.start();
    let restart = "opta daemon restart; opta daemon status -q; opta daemon restart --if-idle";
    let twice = format!("{RESTARTED}Stopping daemon{{*}}Token rotated.\n");
    let run = home.sh(restart).within(&private).stdout(&twice);
    run.with("old", daemon.pid).run();
    home.wait_for_end();
}

#[test]
fn a_daemon_that_hangs_in_another_pid_namespace_is_not_signaled() {
    need!("root");
    let Some(private) = other_pids() else { skip!("it needs private processes") };
    let home = Home::new();
    let daemon = home.start();
    freeze(daemon.pid);
    let unresponsive = "◐ unresponsive  pid={pid}  port={port}  (no answer in 1s)\n";
    let status = home.opta("daemon status").within(&private).stdout(unresponsive);
    status.of(daemon).status(4).run();
    let far = "opta: cannot reach the daemon: a process on {host} that cannot be seen from here \
               has locked {*}";
    let stop = home.opta("daemon stop --force --timeout 1").within(&private);
    stop.stderr(far).status(4).run();
    signal(daemon.pid, "CONT");
    home.opta("daemon stop").stdout(STOPPED).of(daemon).run();
}

#[test]
fn a_lost_state_file_is_called_lost_in_another_pid_namespace_as_well() {
    need!("root");
    let Some(private) = other_pids() else { skip!("it needs private processes") };
    let home = Home::new();
    let daemon = home.start();
    fs::remove_file(home.file("state.json")).unwrap();
    let lost = "◐ unresponsive  pid={pid}  (its state.json is lost{*}\n";
    home.opta("daemon status").within(&private).stdout(lost).of(daemon).status(4).run();
    home.opta("daemon stop").stdout(STOPPED).of(daemon).run();
}

/// Runs a command with some system calls failing in it, but not in the daemon that it starts.
fn without<'h>(home: &'h Home, calls: &str, error: &str, words: &str) -> Run<'h> {
    let inject = format!("inject={calls}:error={error}");
    home.opta(words).within(["strace", "-qq", "-o", "/dev/null", "-e", &inject])
}

#[test]
fn without_pidfd_a_daemon_is_stopped_and_restarted() {
    need!("strace");
    let home = Home::new();
    for error in ["EPERM", "ENOSYS"] {
        for calls in ["pidfd_open,pidfd_send_signal", "pidfd_send_signal", "pidfd_open"] {
            let daemon = home.start();
            let restart = without(&home, calls, error, "daemon restart").stdout(RESTARTED);
            let pid = restart.with("old", daemon.pid).run().pid();
            let stop = without(&home, calls, error, "daemon stop").stdout(STOPPED);
            stop.with("pid", pid).run();
            home.assert_nothing_left();
        }
        let daemon = home.start();
        freeze(daemon.pid);
        let calls = "pidfd_open,pidfd_send_signal";
        let kill = without(&home, calls, error, "daemon stop --force --timeout 0");
        kill.stdout(STOPPED).of(daemon).run();
        home.assert_nothing_left();
    }
}

#[test]
fn a_daemon_that_cannot_be_signaled_is_stopped_by_a_request() {
    need!("strace");
    let home = Home::new();
    let daemon = home.start();
    let calls = "pidfd_open,pidfd_send_signal,kill";
    let restart = without(&home, calls, "EPERM", "daemon restart").stdout(RESTARTED);
    let pid = restart.with("old", daemon.pid).run().pid();
    let stop = without(&home, calls, "EPERM", "daemon stop").stdout(STOPPED);
    stop.with("pid", pid).run();
    home.assert_nothing_left();
    let daemon = home.start();
    freeze(daemon.pid);
    let refused = "opta: cannot signal the daemon: Operation not permitted\n";
    let stop = without(&home, calls, "EPERM", "daemon stop --timeout 0").stderr(refused);
    stop.stdout("Stopping daemon (pid {pid})...\n").of(daemon).status(1).run();
}

#[test]
fn without_proc_a_daemon_is_used_stopped_and_restarted() {
    need!("root", "private mounts");
    let Some(private) = namespace(&["--mount"]) else { skip!("it needs private mounts") };
    let home = Home::new();
    let daemon = home.start();
    let script = "mount -t tmpfs none /proc; opta daemon status; opta daemon restart; \
                  opta daemon status -q; opta daemon stop; opta daemon status || echo $?";
    let running = RUNNING.replace("{pid}", "{old}");
    let expected = format!(
        "{running}{RESTARTED}Stopping daemon (pid {{pid}})...\n\
                            Daemon stopped.\n{NONE}3\n"
    );
    let run = home.sh(script).within(private).stdout(&expected);
    run.with("old", daemon.pid).with("port", daemon.port).run();
    home.assert_nothing_left();
}

#[test]
fn without_proc_a_hanging_daemon_is_not_called_one_of_elsewhere() {
    need!("root", "private mounts");
    let Some(private) = namespace(&["--mount"]) else { skip!("it needs private mounts") };
    let home = Home::new();
    let daemon = home.start();
    freeze(daemon.pid);
    let script = "mount -t tmpfs none /proc; opta daemon stop --force --timeout 1";
    let untold = "opta: cannot reach the daemon: whether process {pid} has locked {file} cannot be \
                  told without /proc\nmount it: mount -t proc proc /proc\n";
    let run = home.sh(script).within(private).stderr(untold).of(daemon);
    run.with("file", home.file("daemon.pid").display()).status(4).run();
    signal(daemon.pid, "CONT");
    home.opta("daemon stop").stdout(STOPPED).of(daemon).run();
}

#[test]
fn in_a_user_namespace_a_daemon_is_used_stopped_and_restarted() {
    let private = ["unshare", "-r"];
    if !has("unshare") || namespace(&["-r"]).is_none() {
        skip!("it needs user namespaces");
    }
    let home = Home::new();
    let daemon = home.start();
    home.opta("daemon status").within(private).stdout(RUNNING).of(daemon).run();
    let script = "opta daemon restart; opta daemon status -q; opta daemon stop";
    let expected = format!("{RESTARTED}Stopping daemon (pid {{pid}})...\nDaemon stopped.\n");
    home.sh(script).within(private).stdout(&expected).with("old", daemon.pid).run();
    let daemon = home.start();
    home.opta("daemon stop").within(private).stdout(STOPPED).of(daemon).run();
    home.sh("opta daemon start").within(private).stdout(STARTED).run();
    home.opta("daemon restart").stdout(ANYTHING).run();
    home.opta("daemon stop").stdout(ANYTHING).run();
    home.assert_nothing_left();
}

#[test]
fn each_cause_of_a_daemon_that_cannot_be_asked_has_its_own_sentence() {
    need!("strace");
    let home = Home::new();
    let daemon = home.start();
    for (error, cause) in [
        ("EPERM", "cannot connect to 127.0.0.1:{port}: Operation not permitted"),
        ("EACCES", "cannot connect to 127.0.0.1:{port}: Permission denied"),
        ("ENETUNREACH", "cannot connect to 127.0.0.1:{port}: Network {*}unreachable"),
        ("ECONNREFUSED", "nothing listens on 127.0.0.1:{port}"),
    ] {
        let status = without(&home, "connect", error, "daemon status").of(daemon);
        let line = format!("◐ unresponsive  pid={{pid}}  port={{port}}  ({cause})\n");
        status.stdout(&line).status(4).run();
    }
    home.opta("daemon stop").stdout(STOPPED).of(daemon).run();
}

#[test]
fn a_daemon_without_a_thread_for_a_connection_answers_or_says_so() {
    need!("root", "setpriv", "prlimit");
    let home = Home::of_another_user();
    let daemon = home.start();
    let limit = |of: &str| home.sh(&format!("prlimit --pid {} --nproc={of}", daemon.pid)).run();
    limit("1:");
    // Its state needs no thread.
    home.opta("daemon status").stdout(RUNNING).of(daemon).run();
    let sessions = || http(daemon.port, "GET", "/v3/sessions", Some(home.daemon_info().token()));
    let (status, reply) = sessions();
    let message = "\"message\":\"no thread can be started for the connection\"";
    assert!(status == 503 && reply.contains(message), "{status} {reply}");
    // The reply to an earlier request is not lost.
    let api = Api::of(&home);
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = format!("HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n", api.token);
    let both = format!("GET /v3/health {head}\r\nGET /v3/sessions {head}\r\n");
    stream.write_all(both.as_bytes()).unwrap();
    let mut replies = String::new();
    stream.read_to_string(&mut replies).unwrap();
    let (first, second) = replies.split_at(replies.rfind("HTTP/1.1 ").unwrap());
    assert!(first.starts_with("HTTP/1.1 200 ") && second.contains(message), "{replies}");
    limit("1000:");
    assert_eq!(sessions().0, 200);
    home.opta("daemon stop").stdout(STOPPED).of(daemon).run();
}

#[test]
fn a_start_without_a_usable_loopback_says_why_and_leaves_nothing() {
    need!("root", "a private network", "ip");
    let home = Home::new();
    let next = "bring up the loopback interface with 127.0.0.1: ip link set lo up\n";
    let down = format!(
        "opta: cannot start the daemon: cannot connect to 127.0.0.1:{{port}}: Network {{*}}, so no \
         command could reach it\n{next}"
    );
    let gone = format!(
        "opta: cannot start the daemon: cannot listen on 127.0.0.1:{{ports}}: {{why}}\n{next}"
    );
    for (set_up, why) in
        [("true", &down), ("ip link set lo up; ip addr del 127.0.0.1/8 dev lo", &gone)]
    {
        in_another_network(set_up, || {
            for words in ["daemon start", "daemon start --foreground", "do hi", "daemon restart"] {
                home.opta(words).stderr(why).status(1).run();
                home.opta(words).unset("OPTA_DAEMON_PORT").stderr(why).status(1).run();
                home.assert_nothing_left();
            }
            let code = r#"{"error":{"code":"NO_LOOPBACK",{*}}}"#;
            home.opta("daemon start --json").stdout(&format!("{code}\n")).status(1).run();
        });
    }
}

#[test]
fn a_start_whose_connection_is_refused_by_the_kernel_says_so() {
    need!("strace");
    let home = Home::new();
    let why = "opta: cannot start the daemon: cannot connect to 127.0.0.1:{port}: Operation not \
               permitted, so no command could reach it\n{next}\n";
    without(&home, "connect", "EPERM", "daemon start").stderr(why).status(1).run();
    home.assert_nothing_left();
}

/// Starts a daemon in the foreground as the first command of a container. Returns the command and
/// the words that run another one inside.
fn container(home: &Home, statuses: &[i32]) -> (Running, [String; 6]) {
    let private = other_pids().unwrap();
    let container = home.opta("daemon start --foreground").within(private);
    let container = container.stdout(ANYTHING).stderr(ANYTHING).status_in(statuses).spawn();
    eventually("it serves", || home.file("state.json").exists());
    let children = format!("/proc/{0}/task/{0}/children", container.pid());
    let first = fs::read_to_string(children).unwrap().trim().to_owned();
    let inside = ["nsenter", "--target", &first, "--pid", "--mount", "--"].map(str::to_owned);
    (container, inside)
}

#[test]
fn a_daemon_that_is_the_first_command_of_a_container_is_stopped_from_inside() {
    need!("root", "nsenter", "private processes");
    for words in ["daemon stop", "daemon stop --force", "daemon stop --force --timeout 0"] {
        let home = Home::new();
        let (container, inside) = container(&home, &[0, 137]);
        home.opta("daemon status").within(&inside).stdout(RUNNING).run();
        home.opta(words).within(&inside).stdout(STOPPED).run();
        container.finish();
        home.assert_nothing_left();
    }
}

#[test]
fn a_daemon_that_hangs_as_the_first_command_of_a_container_is_killed_from_inside() {
    need!("root", "nsenter", "private processes");
    let home = Home::new();
    let (container, inside) = container(&home, &[137]);
    let freeze = r#"kill -STOP "$(cat "$HOME/.config/opta/daemon/daemon.pid")""#;
    home.sh(freeze).within(&inside).run();
    let stop = home.opta("daemon stop --force --timeout 0").within(&inside);
    stop.stdout(STOPPED).run();
    container.finish();
    home.assert_nothing_left();
}

#[test]
fn a_daemon_that_is_the_first_command_of_a_container_is_restarted_from_inside() {
    need!("root", "nsenter", "private processes");
    let home = Home::new();
    let (mut container, inside) = container(&home, &[0]);
    for words in ["daemon restart", "daemon restart --force", "daemon restart --if-idle"] {
        home.opta(words).within(&inside).stdout(RESTARTED).run();
        home.opta("daemon status").within(&inside).stdout(RUNNING).run();
        assert!(!container.has_ended());
    }
    // As `docker stop` does.
    let children = format!("/proc/{0}/task/{0}/children", container.pid());
    signal(fs::read_to_string(children).unwrap().trim().parse().unwrap(), "TERM");
    container.finish();
    home.assert_nothing_left();
}

#[test]
fn the_first_process_of_a_container_reaps_orphans_and_passes_signals_on() {
    need!("root", "nsenter", "private processes");
    let home = Home::new();
    let (container, inside) = container(&home, &[0]);
    let children = format!("/proc/{0}/task/{0}/children", container.pid());
    let first: i32 = fs::read_to_string(children).unwrap().trim().parse().unwrap();
    let orphan = r#"(sh -c 'read line <"$HOME/../go"' & echo $!)"#;
    let go = home.beside("go");
    fifo(&go);
    home.sh(orphan).within(&inside).stdout("{pid}\n").run();
    let all = format!("/proc/{first}/task/{first}/children");
    let count = || fs::read_to_string(&all).unwrap().split_whitespace().count();
    eventually("the orphan is adopted", || count() == 2);
    fs::write(go, "\n").unwrap();
    eventually("the orphan is reaped", || count() == 1);
    signal(first, "INT");
    container.finish();
    home.assert_nothing_left();
}
