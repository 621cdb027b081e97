//! Start, status, stop, restart and token: what they print and what they leave.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::model::Model;
use crate::support::{
    ADDRESS_IN_USE, ALREADY, ANYTHING, Daemon, Home, IS_STATIC, NONE, NOT_RUNNING, RESTARTED,
    RESTARTED_AFRESH, RUNNING, STARTED, STOPPED, eventually, freeze, has_ended, http, is_locked,
    is_refused, mode, namespace, need, signal, skip, state_of,
};
use crate::task::task;

const FROZEN: &str = "◐ unresponsive  pid={pid}  port={port}  (no answer in 1s)\n";

#[test]
fn start_prints_the_pid_the_port_and_where_the_token_is() {
    let home = Home::new();
    let started = home.opta("daemon start").stdout(STARTED).run();
    let info = home.daemon_info();
    assert_eq!((info.pid(), info.port()), (started.pid(), started.port()));
    assert_eq!(home.owner(), Some(started.pid()), "the lock names the daemon");
    assert_eq!(fs::read_to_string(home.file("daemon.pid")).unwrap(), format!("{}\n", info.pid()));
}

#[test]
fn second_start_reports_the_first() {
    let home = Home::new();
    let daemon = home.start();
    let before = home.snapshot();
    home.opta("daemon start").stdout(ALREADY).of(daemon).run();
    assert_eq!(home.snapshot(), before);
}

#[test]
fn a_start_on_a_port_does_not_move_a_running_daemon() {
    let home = Home::new();
    let daemon = home.start();
    let keeps = "opta: still on port {port}; to change it: opta daemon stop, then start\n";
    home.opta("daemon start --port 1").stdout(ALREADY).stderr(keeps).of(daemon).run();
}

#[test]
fn status_of_a_running_daemon_is_one_line() {
    let home = Home::new();
    let daemon = home.start();
    let seen = home.opta("daemon status").stdout(RUNNING).of(daemon).run();
    let age = seen.get("age").strip_suffix('s').unwrap();
    assert!(age.parse::<u32>().is_ok(), "{age}");
    home.opta("daemon status --quiet").run();
    home.opta("daemon status --wait").stdout(RUNNING).of(daemon).run();
}

#[test]
fn status_without_a_daemon_exits_with_3_and_creates_nothing() {
    let home = Home::new();
    let before = home.snapshot();
    home.opta("daemon status").stdout(NONE).status(3).run();
    home.opta("daemon status -q").status(3).run();
    home.opta("daemon status --wait=0").stdout(NONE).status(3).run();
    home.opta("daemon stop").stdout(NOT_RUNNING).run();
    assert_eq!(home.snapshot(), before);
}

#[test]
fn status_after_a_crash_exits_with_1_and_removes_nothing() {
    let home = Home::new();
    home.start();
    let pid = home.crash();
    let before = home.snapshot();
    let crashed = "opta: the daemon crashed (pid {old}); its last log entry is {age} old; \
                   to start it: opta daemon start\n";
    home.opta("daemon status").stdout(NONE).stderr(crashed).with("old", pid).status(1).run();
    home.opta("daemon status --json").stdout(ANYTHING).status(1).run();
    home.opta("daemon status --quiet").status(1).run();
    assert_eq!(home.snapshot(), before);
}

#[test]
fn status_can_wait_for_a_daemon() {
    let home = Home::new();
    let waiting = home.opta("daemon status --wait=60").stdout(RUNNING).spawn();
    let daemon = home.start();
    let seen = waiting.finish();
    assert_eq!(Daemon { pid: seen.pid(), port: seen.port() }, daemon);
}

#[test]
fn stop_returns_when_nothing_is_left_of_the_daemon() {
    let home = Home::new();
    let daemon = home.start();
    home.opta("daemon stop").stdout(STOPPED).of(daemon).run();
    home.assert_nothing_left();
    assert!(is_refused(daemon.port));
    assert_eq!(fs::read(home.file("daemon.pid")).unwrap(), b"");
    home.opta("daemon stop").stdout(NOT_RUNNING).run();
    home.opta("daemon status").stdout(NONE).status(3).run();
}

#[test]
fn stop_after_a_crash_removes_the_state_file() {
    let home = Home::new();
    home.start();
    home.crash();
    home.opta("daemon stop").stdout(NOT_RUNNING).run();
    home.assert_nothing_left();
    home.opta("daemon status").stdout(NONE).status(3).run();
}

#[test]
fn restart_keeps_the_port_and_rotates_the_token() {
    let home = Home::new();
    let first = home.start();
    let token = home.daemon_info().token().to_owned();
    let again = home.opta("daemon restart").stdout(RESTARTED).with("old", first.pid).run();
    assert_ne!(again.pid(), first.pid);
    assert_eq!(again.port(), first.port);
    let info = home.daemon_info();
    assert_eq!(info.pid(), again.pid());
    assert_ne!(info.token(), token);
    assert_eq!(http(first.port, "GET", "/v3/metrics", Some(&token)).0, 401);
    assert_eq!(http(first.port, "GET", "/v3/metrics", Some(info.token())).0, 200);
}

#[test]
fn restart_starts_a_stopped_daemon() {
    let home = Home::new();
    let seen = home.opta("daemon restart").stdout(RESTARTED_AFRESH).run();
    assert_eq!(home.owner(), Some(seen.pid()));
}

#[test]
fn an_idle_daemon_is_restarted_if_idle() {
    let home = Home::new();
    let first = home.start();
    let restart = home.opta("daemon restart --if-idle").stdout(RESTARTED);
    let again = restart.with("old", first.pid).with("port", first.port).run();
    assert_eq!(home.owner(), Some(again.pid()));
}

#[test]
fn token_prints_the_token_and_nothing_else() {
    let home = Home::new();
    let unknown = "opta: cannot reach the daemon: it is not running\n\
                   start it: opta daemon start\n";
    home.opta("daemon token").stderr(unknown).status(3).run();
    home.start();
    let token = home.daemon_info().token().to_owned();
    assert_eq!(token.len(), 8 + 64);
    let digits = token.strip_prefix("opta_dk_").unwrap();
    assert!(digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    home.opta("daemon token").stdout("{token}\n").with("token", &token).run();
    home.opta("daemon token --json").stdout(r#"{"token":"{token}"}{*}"#).with("token", token).run();
}

#[test]
fn the_token_reaches_neither_arguments_nor_environment_nor_log() {
    need!("/proc");
    let home = Home::new();
    let daemon = home.start();
    let secret = home.daemon_info().token().to_owned();
    assert_eq!(http(daemon.port, "GET", "/v3/metrics", Some(&secret)).0, 200);
    for place in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{}/{place}", daemon.pid)).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains(&secret[8..]), "{place}");
    }
    home.opta("daemon stop").stdout(STOPPED).of(daemon).run();
    let log = fs::read_to_string(home.file("daemon.log")).unwrap();
    assert!(!log.contains(&secret[8..]));
}

/// Returns the variables of a process.
fn environment(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let variables = bytes.split(|byte| *byte == 0).filter(|variable| !variable.is_empty());
    variables.map(|variable| String::from_utf8(variable.to_vec()).unwrap()).collect()
}

#[test]
fn the_daemon_has_a_short_environment_without_keys() {
    need!("/proc");
    let home = Home::new();
    let kept = [
        ("LANGUAGE", "en"),
        ("LC_TIME", "C.UTF-8"),
        ("OLLAMA_HOST", "127.0.0.1"),
        ("OPENAI_BASE_URL", "http://127.0.0.1:1/v1"),
        ("OPTA_LOG", "debug"),
        ("OPTA_MODEL", "m"),
        ("TMPDIR", "/var/tmp"),
        ("TZ", "Europe/Vienna"),
        ("XDG_RUNTIME_DIR", "/run/user/1"),
    ];
    let left_out = [
        "AWS_SECRET_ACCESS_KEY",
        "DAEMON_TEST",
        "GIT_AUTHOR_NAME",
        "INVOCATION_ID",
        "LC_SECRET",
        "LD_LIBRARY_PATH",
        "NOTIFY_SOCKET",
        "OPENAI_API_KEY",
        "OPTA_API_KEY",
        "OPTA_HUB_TOKEN",
        "SSH_AUTH_SOCK",
        "XDG_PASSWORD",
    ];
    for words in ["daemon start", "daemon restart"] {
        let mut start = home.opta(words).stdout(ANYTHING);
        for (name, value) in kept {
            start = start.env(name, value);
        }
        for name in left_out {
            start = start.env(name, "/a secret");
        }
        start.run();
        let mut found = environment(home.owner().unwrap());
        found.sort();
        let usual = ["HOME", "LANG", "OPTA_DAEMON_PORT", "OPTA_MODEL_URL", "PATH"];
        let names: Vec<&str> = found.iter().map(|one| one.split('=').next().unwrap()).collect();
        let mut expected: Vec<&str> = kept.iter().map(|(name, _)| *name).chain(usual).collect();
        expected.sort_unstable();
        assert_eq!(names, expected, "{words}");
        for (name, value) in kept {
            assert!(found.contains(&format!("{name}={value}")), "{words}: {name}");
        }
    }
}

fn nice_value(pid: i32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The 19th field; the second one may hold anything.
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().to_owned()
}

#[test]
fn the_daemon_has_the_systems_own_priorities() {
    need!("/proc", "nice", "root");
    let home = Home::new();
    let script = "echo 300 >/proc/self/oom_score_adj; exec nice -n 5 opta daemon start";
    let pid = home.sh(script).stdout(STARTED).run().pid();
    assert_eq!(nice_value(pid), "0");
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score, "0\n");
}

#[test]
fn the_daemon_has_the_systems_scheduling_and_the_limits_of_its_starter() {
    need!("/proc", "root", "chrt", "ionice", "taskset", "prlimit");
    let home = Home::new();
    let script = r#"
        first=$(taskset -cp $$ | sed 's/.*: //; s/[-,].*//')
        prlimit --fsize=1073741824 chrt --batch 0 ionice -c 3 taskset -c "$first" \
            opta daemon start >/dev/null
        pid=$(cat ~/.config/opta/daemon/daemon.pid)
        chrt -p "$pid" | sed -n 's/.*policy: //p'
        ionice -p "$pid" | cut -d : -f 1
        taskset -cp 0-1023 $$ >/dev/null
        all=$(grep Cpus_allowed_list /proc/$$/status)
        test "$(grep Cpus_allowed_list "/proc/$pid/status")" = "$all" || echo "not on $all"
        prlimit --noheadings --output SOFT --fsize --pid "$pid" | tr -d ' '
        opta daemon stop >/dev/null
    "#;
    home.sh(script).stdout("SCHED_OTHER\nnone\n1073741824\n").run();
}

#[test]
fn a_user_who_may_not_raise_a_priority_gets_a_daemon() {
    need!("/proc", "nice", "root", "setpriv");
    let home = Home::of_another_user();
    let pid = home.opta("daemon start").within(["nice", "-n", "5"]).stdout(STARTED).run().pid();
    assert_eq!(nice_value(pid), "5");
    home.opta("daemon status").stdout(RUNNING).with("pid", pid).run();
}

#[test]
fn the_daemon_leaves_no_core_file_and_its_commands_may() {
    need!("/proc", "prlimit");
    let (home, model) = (Home::new(), Model::new());
    let start = home.opta("daemon start").within(["prlimit", "--core=4096:8192"]);
    let pid = start.stdout(STARTED).run().pid();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let values: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(values[4..6], ["0", "8192"], "{core}");
    let running = task(&home, &model, "--yolo x").stdout("done\n").stderr(ANYTHING).spawn();
    let command =
        "ulimit -c; ulimit -S -c $(ulimit -H -c); prlimit --noheadings --output SOFT --core";
    let arguments = format!(r#"{{\"command\":\"{command}\"}}"#);
    model.question().call("run_command", &arguments);
    let question = model.question();
    assert!(question.body.contains(r"0\n8192\n"), "{}", question.body);
    question.answer("done");
    running.finish();
    home.opta("daemon stop").stdout(STOPPED).run();
}

#[test]
fn the_daemon_is_called_opta_and_shows_no_other_argument() {
    need!("/proc");
    let home = Home::new();
    let program = home.beside("another-name");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_opta"), &program).unwrap();
    let script = r#"exec "$1" daemon start --port 0"#;
    let pid = home.sh(script).arg("sh").arg(&program).stdout(STARTED).run().pid();
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(line, "opta\0daemon\0");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "opta\n");
}

#[test]
fn a_daemon_starts_from_a_directory_that_was_removed() {
    need!("/proc");
    let home = Home::new();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_opta"), home.beside("another-name")).unwrap();
    let script = "mkdir gone; cd gone; rmdir ../gone; exec ../another-name daemon start";
    let pid = home.sh(script).stdout(STARTED).run().pid();
    assert_eq!(home.owner(), Some(pid));
}

#[test]
fn a_starter_with_several_threads_starts_a_daemon() {
    need!("/proc", "cc");
    let home = Home::new();
    let (source, library) = (home.beside("thread.c"), home.beside("thread.so"));
    let directory = library.parent().unwrap();
    let threads = r#"
        #include <pthread.h>
        #include <stdlib.h>
        #include <unistd.h>
        static void *busy(void *none) { for (;;) free(malloc(64)); return none; }
        static void *idle(void *none) { for (;;) pause(); return none; }
        __attribute__((constructor)) static void begin(void) {
            pthread_t one, other;
            if (pthread_create(&one, NULL, busy, NULL) || pthread_create(&other, NULL, idle, NULL))
                _exit(9);
        }
    "#;
    fs::write(&source, threads).unwrap();
    let compile = home.sh(r#"exec cc -shared -fPIC -pthread -o "$1" "$2""#).arg("sh");
    compile.arg(&library).arg(&source).run();
    for words in ["daemon start", "daemon restart"] {
        let preloaded = home.opta(words).env("LD_PRELOAD", "thread.so");
        preloaded.env("LD_LIBRARY_PATH", directory).stdout(ANYTHING).run();
        let pid = home.owner().unwrap();
        assert!(!environment(pid).iter().any(|variable| variable.starts_with("LD_PRELOAD=")));
        home.opta("daemon status").stdout(RUNNING).with("pid", pid).run();
    }
}

#[test]
fn the_daemons_arguments_are_an_incomplete_command_without_its_descriptors() {
    let home = Home::new();
    let incomplete = "opta: 'daemon' {*}: start, status, {*}\nUsage: opta COMMAND {*}\n";
    home.opta("daemon").stderr(incomplete).status(2).run();
    let script = "opta daemon 3</dev/null 4</dev/null 5</dev/null";
    home.sh(script).stderr(incomplete).status(2).run();
    let script = "exec 3</dev/null 4<&3; opta daemon 5>&1 | cat";
    home.sh(script).stderr(incomplete).run();
    home.assert_nothing_left();
}

#[test]
fn descriptors_of_the_same_kinds_that_no_starter_handed_over_are_not_used() {
    need!("python3");
    // Listens on the address, and executes what follows with the socket as descriptor 4.
    let listening = r#"
import os, socket, sys
kind = socket.AF_UNIX if sys.argv[1].startswith("/") else socket.AF_INET
listener = socket.socket(kind)
listener.bind(sys.argv[1] if kind == socket.AF_UNIX else (sys.argv[1], 0))
listener.listen()
report, pipe = os.pipe()
file = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT, 0o600)
for number, own in ((13, file), (14, listener.fileno()), (15, pipe)):
    os.dup2(own, number)
for number in (3, 4, 5):
    os.dup2(number + 10, number)
os.closerange(6, 64)
os.execvp("opta", ["opta", "daemon"])
"#;
    let home = Home::new();
    let incomplete = "opta: 'daemon' {*}: start, status, {*}\nUsage: opta COMMAND {*}\n";
    let socket = home.beside("socket");
    for address in ["127.0.0.1", "0.0.0.0", socket.to_str().unwrap()] {
        let daemon = home.sh(r#"exec python3 -c "$@""#).arg("sh").arg(listening).arg(address);
        daemon.arg(home.beside("file")).stderr(incomplete).status(2).run();
    }
    home.assert_nothing_left();
}

#[test]
fn a_program_that_the_dynamic_loader_runs_is_started_and_installed_by_its_own_path() {
    let loader = "/lib64/ld-linux-x86-64.so.2";
    if IS_STATIC || !Path::new(loader).exists() {
        skip!("it needs a dynamic program and its loader");
    }
    let home = Home::new();
    let script = r#"
        program=$(command -v opta)
        mkdir ~/../shim; ln -s /bin/false ~/../shim/systemctl; PATH=~/../shim:$PATH
        opta() { "$loader" "$program" "$@"; }
        opta daemon start; opta daemon restart
        opta daemon status --json | grep -o '"staleBinary":[a-z]*'
        opta daemon stop; opta daemon install >/dev/null 2>&1
        grep -c "^ExecStart=\"$program\" " ~/.config/systemd/user/opta-daemon.service
    "#;
    let first = STARTED.replace("{pid}", "{old}");
    let stale = "\"staleBinary\":false\n";
    let expected = format!("{first}{RESTARTED}{stale}{STOPPED}1\n");
    home.sh(script).env("loader", loader).stdout(&expected).run();
    home.assert_nothing_left();
}

#[test]
fn a_daemon_does_not_serve_with_a_lock_that_is_not_its_own() {
    need!("/proc", "python3");
    // Starts the daemon as a starter does, with another file in the lock's place.
    let script = r#"
import fcntl, os, socket, sys
report, pipe = os.pipe()
listener = socket.create_server(("127.0.0.1", 0))
lock = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT, 0o600)
if os.fork() == 0:
    os.write(lock, b"%d\n" % os.getpid())
    files = (lock, listener.fileno(), pipe)
    for file, number in zip([fcntl.fcntl(file, fcntl.F_DUPFD, 10) for file in files], (3, 4, 5)):
        os.dup2(file, number)
    os.closerange(6, 64)
    os.execv(sys.argv[1], ["opta", "daemon"])
os.close(pipe)
sys.stdout.write(os.fdopen(report).read())
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"#;
    let home = Home::new();
    home.start();
    home.opta("daemon stop").stdout(STOPPED).run();
    let refused = "opta {version}\nfailed cannot take over {file}: it was removed or replaced\n";
    let daemon = home.sh(r#"exec python3 -c "$@""#).arg("sh").arg(script);
    let daemon = daemon.arg(env!("CARGO_BIN_EXE_opta")).arg(home.beside("lock"));
    let lock = home.file("daemon.pid");
    daemon.stdout(refused).with("file", lock.display()).status(1).run();
    home.assert_nothing_left();
}

#[test]
fn json_output_is_one_object_per_line() {
    const START: &str = concat!(
        r#"{"started":{new},"alreadyRunning":{old},"pid":{pid},"port":{port},"daemonId":"{id}","#,
        r#""startedAt":"{time}","version":"{version}","#,
        r#""statePath":"{home}/.config/opta/daemon/state.json","#,
        r#""logsPath":"{home}/.config/opta/daemon/daemon.log"}"#,
        "\n"
    );
    let start = START.replace("{old}", "{already}");
    let home = Home::new();
    let seen = home.opta("daemon start --json").stdout(&start).with("new", true).run();
    let daemon = Daemon { pid: seen.pid(), port: seen.port() };
    assert_eq!(seen.get("already"), "false");
    let again = home.opta("daemon start --json").stdout(&start).of(daemon);
    assert_eq!(again.with("new", false).run().get("already"), "true");
    let status = concat!(
        r#"{"state":"running","running":true,"pid":{pid},"port":{port},"uptime":{age},"sessions":0,"#,
        r#""version":"{version}","startedAt":"{time}","#,
        r#""logsPath":"{home}/.config/opta/daemon/daemon.log","#,
        r#""managedBy":null,"staleBinary":false,"trouble":null}"#,
        "\n"
    );
    let running = home.opta("daemon status --json").stdout(status).of(daemon);
    running.with("time", seen.get("time")).with("version", seen.get("version")).run();
    let restarted = r#"{"restarted":true,"pid":{pid},"port":{port},"previousPid":{old}}"#;
    let restart = home.opta("daemon restart --json").stdout(&format!("{restarted}\n"));
    let pid = restart.with("old", daemon.pid).run().pid();
    let stopped = r#"{"stopped":true,"wasRunning":true,"pid":{pid}}"#;
    let afresh = r#"{"restarted":true,"pid":{pid},"port":{port}}"#;
    let none = r#"{"stopped":true,"wasRunning":false}"#;
    home.opta("daemon stop --json").stdout(&format!("{stopped}\n")).with("pid", pid).run();
    home.opta("daemon stop --json").stdout(&format!("{none}\n")).run();
    home.opta("daemon restart --json").stdout(&format!("{afresh}\n")).run();
}

#[test]
fn json_has_the_same_keys_in_every_state() {
    need!("/proc");
    let home = Home::new();
    let keys = |text: &str| {
        let mut parts: Vec<&str> = text.split("\":").collect();
        parts.pop();
        let names = parts.iter().map(|part| part.rsplit('"').next().unwrap().to_owned());
        names.collect::<Vec<String>>()
    };
    let status =
        |code| home.opta("daemon status --json").stdout(ANYTHING).status(code).run().stdout;
    let stopped = status(3);
    assert!(stopped.starts_with(r#"{"state":"stopped","running":false,"pid":null,"#), "{stopped}");
    let daemon = home.start();
    let running = status(0);
    freeze(daemon.pid);
    let frozen = status(4);
    let begin = format!(r#"{{"state":"unresponsive","running":false,"pid":{},"#, daemon.pid);
    assert!(frozen.starts_with(&begin), "{frozen}");
    home.crash();
    let crashed = status(1);
    let begin = format!(r#"{{"state":"crashed","running":false,"pid":{},"#, daemon.pid);
    assert!(crashed.starts_with(&begin), "{crashed}");
    for text in [&stopped, &running, &frozen, &crashed] {
        assert_eq!(keys(text), keys(&running));
        assert_eq!(text.matches('\n').count(), 1);
    }
}

#[test]
fn errors_are_json_as_well() {
    let home = Home::new();
    let error = r#"{"error":{"code":"{code}","message":"{message}"}}"#;
    let error = &format!("{error}\n");
    home.opta("daemon token --json").stdout(error).with("code", "NOT_RUNNING").status(3).run();
    home.opta("daemon --json strat").stdout(error).with("code", "USAGE").status(2).run();
    home.opta("daemon stop --jsn --json").stdout(error).with("code", "USAGE").status(2).run();
    home.write(&home.config(), "{");
    let refused = home.opta("daemon start --json").stdout(error);
    refused.with("code", "INVALID_CONFIG").status(1).run();
}

#[test]
fn the_user_of_a_taken_port_is_named_and_nothing_is_left() {
    need!("/proc");
    let (first, second) = (Home::new(), Home::new());
    let owner = first.start();
    let taken = "opta: cannot start the daemon: cannot listen on 127.0.0.1:{port}: \
                 {inuse} (opta, pid {pid}, uid {uid})\n\
                 choose another port (--port N), or leave it out to try 9999 and others\n";
    let start = second.opta("daemon start").arg("--port").arg(owner.port.to_string());
    start.stderr(taken).of(owner).with("inuse", ADDRESS_IN_USE).status(1).run();
    second.assert_nothing_left();
    second.opta("daemon status").stdout(NONE).status(3).run();
    second.start();
}

#[test]
fn the_variable_overrides_the_settings_and_the_option_overrides_both() {
    need!("/proc");
    let (taken, home) = (Home::new(), Home::new());
    let port = taken.start().port;
    let refused = format!("{{*}}127.0.0.1:{port}: {{*}}");
    home.write(&home.config(), format!(r#"{{"daemon":{{"port":{port}}}}}"#));
    let start = home.opta("daemon start").unset("OPTA_DAEMON_PORT");
    let by = format!("{refused}(daemon.port in config.json){{*}}");
    start.stderr(&by).status(1).run();
    home.start();
    home.opta("daemon stop").stdout(STOPPED).run();
    home.write(&home.config(), r#"{"daemon":{"port":0}}"#);
    let start = home.opta("daemon start").env("OPTA_DAEMON_PORT", port.to_string());
    start.stderr(&format!("{refused}(OPTA_DAEMON_PORT){{*}}")).status(1).run();
    let start = home.opta("daemon start --port 0").env("OPTA_DAEMON_PORT", port.to_string());
    start.stdout(STARTED).run();
    home.opta("daemon stop").stdout(STOPPED).run();
    home.opta("daemon start").unset("OPTA_DAEMON_PORT").stdout(STARTED).run();
}

#[test]
fn each_daemon_uses_the_next_port_until_all_are_in_use() {
    let Some(private) = namespace(&["--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
    else {
        skip!("it needs a private network");
    };
    let home = Home::new();
    let script = r#"
        unset OPTA_DAEMON_PORT
        ip link set lo up
        for number in $(seq 22); do
            OPTA_HOME="$HOME/$number" opta daemon start | head -1
        done
        OPTA_HOME="$HOME/one too many" opta daemon start || echo "status $?"
        ls -A "$HOME/one too many/daemon"
        OPTA_HOME="$HOME/22" opta daemon stop
        OPTA_HOME="$HOME/3" opta daemon restart
        OPTA_HOME="$HOME/one too many" opta daemon start | head -1
    "#;
    let mut expected = String::from("Daemon started (pid {pid}, port 9999)\n");
    for (index, port) in (10_000..=10_020).enumerate() {
        expected.push_str(&format!("Daemon started (pid {{{}}}, port {port})\n", letters(index)));
    }
    expected.push_str("status 1\ndaemon.pid\nstart.lock\n");
    expected.push_str("Stopping daemon (pid {last})...\nDaemon stopped.\n");
    expected.push_str("Stopping daemon (pid {third})...\nDaemon stopped.\n");
    expected.push_str("Daemon started (pid {again}, port 10001)\nToken rotated.\n");
    expected.push_str("Daemon started (pid {more}, port 10020)\n");
    let none = "opta: cannot start the daemon: cannot listen on 127.0.0.1:9999, \
                nor on 10000 to 10020: {inuse}\n\
                choose a free port: opta daemon start --port N\n";
    let run = home.sh(script).within(private).with("inuse", ADDRESS_IN_USE);
    run.stdout(&expected).stderr(none).run();
}

/// Returns a name for a pattern.
fn letters(index: usize) -> String {
    "x".repeat(index + 1)
}

#[test]
fn everything_is_private_whatever_the_umask() {
    for umask in ["000", "077", "777"] {
        // Root ignores the modes, so the test needs another user.
        let home = if crate::support::has("root") && crate::support::has("setpriv") {
            Home::of_another_user()
        } else {
            Home::new()
        };
        let script = format!("umask {umask}; opta daemon start");
        home.sh(&script).stdout(STARTED).run();
        home.opta("daemon status").stdout(RUNNING).run();
        home.sh(&format!("umask {umask}; opta daemon restart")).stdout(RESTARTED).run();
        for directory in [".config", ".config/opta", ".config/opta/daemon"] {
            assert_eq!(mode(&home.path().join(directory)), 0o700, "{umask}: {directory}");
        }
        for entry in fs::read_dir(home.file("")).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{umask}: {}", path.display());
        }
        home.opta("daemon stop").stdout(STOPPED).run();
    }
}

#[test]
fn health_reveals_nothing_without_a_token() {
    let home = Home::new();
    let daemon = home.start();
    let (status, body) = http(daemon.port, "GET", "/v3/health", None);
    assert_eq!(status, 200);
    let uptime = body.trim_end().strip_prefix(r#"{"status":"ok","version":"3.0.0","uptime":"#);
    let uptime = uptime.and_then(|rest| rest.strip_suffix('}')).unwrap_or_else(|| panic!("{body}"));
    assert!(uptime.parse::<u32>().is_ok(), "{body}");
    assert_eq!(http(daemon.port, "GET", "/v3/metrics", None).0, 401);
    assert_eq!(http(daemon.port, "POST", "/v3/shutdown", Some("opta_dk_0")).0, 401);
    home.opta("daemon status").stdout(RUNNING).of(daemon).run();
}

#[test]
fn a_client_with_the_token_can_shut_the_daemon_down() {
    let home = Home::new();
    let daemon = home.start();
    let token = home.daemon_info().token().to_owned();
    assert_eq!(http(daemon.port, "POST", "/v3/shutdown", Some(&token)).0, 202);
    home.wait_for_end();
    home.opta("daemon status").stdout(NONE).status(3).run();
}

#[test]
fn a_daemon_in_the_foreground_serves_until_it_is_signaled() {
    for (name, number) in [("TERM", 15), ("INT", 2)] {
        let home = Home::new();
        let serving = home.opta("daemon start --foreground").spawn();
        let seen = home.opta("daemon status --wait=60").stdout(RUNNING).run();
        assert_eq!(seen.pid(), serving.pid(), "no fork");
        let daemon = Daemon { pid: seen.pid(), port: seen.port() };
        home.opta("daemon start").stdout(ALREADY).of(daemon).run();
        home.opta("daemon start --foreground").stdout(ALREADY).of(daemon).run();
        signal(serving.pid(), name);
        serving.finish();
        home.assert_nothing_left();
        assert!(is_refused(daemon.port), "after signal {number}");
    }
}

#[test]
fn stop_ends_a_daemon_in_the_foreground() {
    let home = Home::new();
    let serving = home.opta("daemon start --foreground").spawn();
    home.opta("daemon status --wait=60 --quiet").run();
    home.opta("daemon stop").stdout(STOPPED).with("pid", serving.pid()).run();
    serving.finish();
    home.assert_nothing_left();
}

#[test]
fn sighup_does_not_end_a_daemon_without_a_terminal() {
    let home = Home::new();
    let serving = home.opta("daemon start --foreground").spawn();
    home.opta("daemon status --wait=60 --quiet").run();
    signal(serving.pid(), "HUP");
    home.opta("daemon status").stdout(RUNNING).with("pid", serving.pid()).run();
    home.opta("daemon stop").stdout(STOPPED).with("pid", serving.pid()).run();
    serving.finish();
}

#[test]
fn sighup_restores_a_lost_state_file() {
    type Damage = fn(&Home);
    let damages: [(&str, Damage); 3] = [
        ("removed", |home| fs::remove_file(home.file("state.json")).unwrap()),
        ("damaged", |home| home.write(&home.file("state.json"), "{\"pid\":")),
        ("of another daemon", |home| home.write(&home.file("state.json"), OTHER_STATE)),
    ];
    for (name, damage) in damages {
        let home = Home::new();
        let daemon = home.start();
        let state = fs::read_to_string(home.file("state.json")).unwrap();
        damage(&home);
        signal(daemon.pid, "HUP");
        home.opta("daemon status --wait=60").stdout(RUNNING).of(daemon).run();
        assert_eq!(fs::read_to_string(home.file("state.json")).unwrap(), state, "{name}");
    }
}

#[test]
fn start_restores_a_lost_state_file() {
    let home = Home::new();
    let daemon = home.start();
    let state = fs::read_to_string(home.file("state.json")).unwrap();
    fs::remove_file(home.file("state.json")).unwrap();
    let lost = "◐ unresponsive  pid={pid}  (its state.json is lost; \
                to have it written again: opta daemon start)\n";
    home.opta("daemon status").stdout(lost).with("pid", daemon.pid).status(4).run();
    let refused = "opta: cannot reach the daemon (pid {pid}): it runs, and its state.json is lost\n\
                   to have it written again: opta daemon start\n";
    for words in ["token", "restart --if-idle"] {
        let run = home.opta(&format!("daemon {words}")).stderr(refused);
        run.with("pid", daemon.pid).status(4).run();
    }
    assert!(!home.file("state.json").exists(), "status changes nothing");
    home.opta("daemon start").stdout(ALREADY).of(daemon).run();
    assert_eq!(fs::read_to_string(home.file("state.json")).unwrap(), state);
    home.write(&home.file("state.json"), OTHER_STATE);
    home.opta("daemon start").stdout(ALREADY).of(daemon).run();
    assert_eq!(fs::read_to_string(home.file("state.json")).unwrap(), state);
}

/// The state file of a daemon that does not exist.
const OTHER_STATE: &str = concat!(
    r#"{"pid":2147483647,"port":1,"token":"opta_dk_0","startedAt":"2026-03-01T10:00:00.000Z","#,
    r#""host":"127.0.0.1","daemonId":"daemon_00000000","version":"0.0.0","logsPath":"/dev/null"}"#
);

#[test]
fn stop_works_without_a_state_file() {
    let home = Home::new();
    let daemon = home.start();
    fs::remove_file(home.file("state.json")).unwrap();
    home.opta("daemon stop").stdout(STOPPED).with("pid", daemon.pid).run();
    home.assert_nothing_left();
}

#[test]
fn a_start_that_is_interrupted_while_it_waits_for_the_lock_leaves_nothing() {
    let home = Home::new();
    home.write(&home.file("start.lock"), "");
    let lock = fs::File::open(home.file("start.lock")).unwrap();
    lock.lock().unwrap();
    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1), ("KILL", 9)] {
        let queueing = home.opta("daemon start").status(-number).spawn();
        signal(queueing.pid(), name);
        queueing.finish();
        home.assert_nothing_left();
    }
    drop(lock);
    home.start();
}

#[test]
fn a_stopped_process_is_reported_and_not_killed_without_force() {
    need!("/proc");
    let home = Home::new();
    let daemon = home.start();
    freeze(daemon.pid);
    let silent = "opta: cannot reach the daemon (pid {pid}): it is alive, no answer in {time}\n\
                  to end it and start afresh: opta daemon restart --force\n";
    let stays = "opta: cannot stop the daemon (pid {pid}): still running after 1s\n\
                 to end it by force: opta daemon stop --force\n";
    let stopping = "Stopping daemon (pid {pid})...\n";
    let commands = [
        home.opta("daemon start").stderr(silent).status(4),
        home.opta("daemon status").stdout(FROZEN).status(4),
        home.opta("daemon token").stderr(silent).status(4),
    ];
    let running = commands.map(|command| command.of(daemon).spawn());
    running.into_iter().for_each(|command| drop(command.finish()));
    assert_eq!(state_of(daemon.pid), Some('T'));
    let stop = home.opta("daemon stop --timeout 1").stdout(stopping).stderr(stays);
    stop.of(daemon).status(1).run();
    assert_eq!(state_of(daemon.pid), Some('T'));
    assert!(is_locked(&home.file("daemon.pid")));
    home.opta("daemon stop --force --timeout 1").stdout(STOPPED).of(daemon).run();
    home.assert_nothing_left();
    home.start();
}

#[test]
fn a_stopped_process_exits_when_it_is_continued() {
    need!("/proc");
    let home = Home::new();
    let daemon = home.start();
    freeze(daemon.pid);
    let stopping = home.opta("daemon stop").stdout(STOPPED).of(daemon).spawn();
    eventually("the stop is announced", || stopping.output().contains("Stopping"));
    signal(daemon.pid, "CONT");
    stopping.finish();
    home.assert_nothing_left();
}

#[test]
fn restart_with_force_replaces_a_stopped_process() {
    need!("/proc");
    let home = Home::new();
    let daemon = home.start();
    freeze(daemon.pid);
    let restart = home.opta("daemon restart --force --timeout 1").stdout(RESTARTED);
    let seen = restart.with("old", daemon.pid).run();
    assert_eq!(home.owner(), Some(seen.pid()));
    assert_eq!(seen.port(), daemon.port);
    assert!(has_ended(daemon.pid));
}

#[test]
fn a_stop_with_force_does_not_count_as_a_crash() {
    need!("/proc");
    let home = Home::new();
    for _ in 0..4 {
        let daemon = home.start();
        freeze(daemon.pid);
        home.opta("daemon stop --force --timeout 0").stdout(STOPPED).of(daemon).run();
    }
    home.start();
}

#[test]
fn the_lock_file_is_never_replaced() {
    let home = Home::new();
    home.start();
    let inode = fs::metadata(home.file("daemon.pid")).unwrap().ino();
    home.opta("daemon restart").stdout(RESTARTED).run();
    home.crash();
    home.opta("daemon start")
        .stdout(STARTED)
        .stderr("opta: the daemon had crashed (pid {old})\n")
        .run();
    home.opta("daemon stop").stdout(STOPPED).run();
    assert_eq!(fs::metadata(home.file("daemon.pid")).unwrap().ino(), inode);
}
