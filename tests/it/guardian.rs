//! Whatever state the daemon was left in, the next command makes sure that there is one daemon,
//! never two.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::support::{
    ALREADY, ANYTHING, Daemon, Finished, HAS_CRASHED, Home, NONE, READS_BEFORE_MAIN, RESTARTED,
    RUNNING, Run, Running, START_THREAD, STARTED, STOPPED, copy_opta, eventually, has_ended, http,
    is_locked, namespace, need, rounds, signal, skip, write_program,
};

const CRASHED: &str = "opta: the daemon had crashed (pid {old})\n";
const LOOP: &str = "opta: the daemon had crashed (pid {old})\n\
                    opta: it crashed several times within a minute; see: opta daemon logs\n";

/// The number of parallel starts.
const AT_ONCE: usize = 40;

/// Starts many daemons in parallel, and checks that all starts report the same one.
fn start_together(home: &Home) -> Daemon {
    let either = "Daemon {how} (pid {pid}, port {port}){*}";
    let start = || home.opta("daemon start").stdout(either).stderr(ANYTHING).spawn();
    let starts: Vec<_> = (0..AT_ONCE).map(|_| start()).collect();
    let seen: Vec<Finished> = starts.into_iter().map(Running::finish).collect();
    let daemons = seen.iter().map(|seen| Daemon { pid: seen.pid(), port: seen.port() });
    let mut daemons: Vec<Daemon> = daemons.collect();
    daemons.dedup();
    assert_eq!(daemons.len(), 1, "{daemons:?}");
    let first = |seen: &&Finished| seen.get("how") == "started";
    assert_eq!(seen.iter().filter(first).count(), 1, "one has started it");
    assert_eq!(home.owner(), Some(daemons[0].pid));
    assert_eq!(home.processes(), [daemons[0].pid]);
    daemons[0]
}

#[test]
fn many_starts_at_once_start_one_daemon() {
    need!("/proc");
    for _ in 0..rounds(4, 30) {
        start_together(&Home::new());
    }
}

#[test]
fn many_starts_after_a_crash_start_one_daemon() {
    need!("/proc");
    let home = Home::new();
    home.start();
    for _ in 0..rounds(4, 30) {
        home.crash();
        start_together(&home);
    }
}

#[test]
fn many_starts_during_a_crash_start_one_daemon() {
    need!("/proc");
    let home = Home::new();
    let mut daemon = home.start();
    for _ in 0..rounds(4, 30) {
        // Without waiting: it may still be exiting.
        signal(daemon.pid, "KILL");
        daemon = start_together(&home);
    }
}

#[test]
fn many_starts_during_a_stop_start_one_daemon() {
    need!("/proc");
    let home = Home::new();
    for _ in 0..rounds(4, 30) {
        let daemon = home.start();
        let stop = home.opta("daemon stop").stdout(STOPPED).with("pid", daemon.pid).spawn();
        eventually("the stop is announced", || stop.output().contains("Stopping"));
        let either = "Daemon {how} (pid {pid}, port {port}){*}";
        let start = || home.opta("daemon start").stdout(either).stderr(ANYTHING).spawn();
        let starts: Vec<_> = (0..AT_ONCE).map(|_| start()).collect();
        let seen: Vec<Finished> = starts.into_iter().map(Running::finish).collect();
        stop.finish();
        // Some may have found the old one just before it exited.
        let mut new: Vec<i32> =
            seen.iter().map(Finished::pid).filter(|pid| *pid != daemon.pid).collect();
        new.dedup();
        assert!(new.len() <= 1, "{new:?}");
        assert_eq!(home.processes(), new, "the new daemon is there if a command reported it");
        home.opta("daemon stop").stdout(ANYTHING).run();
    }
}

#[test]
fn starts_stops_and_kills_at_once_leave_one_daemon_or_none() {
    need!("/proc");
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let home = Home::new();
    for _ in 0..rounds(4, 30) {
        let mut running = Vec::new();
        for _ in 0..30 {
            let words = ["daemon start", "daemon start", "daemon stop", "daemon restart", ""];
            let word = words[random.usize(..words.len())];
            match (word, home.owner()) {
                ("", Some(pid)) => signal(pid, "KILL"),
                ("", None) => {}
                _ => {
                    // One that is interrupted by another may fail, but reports why. One that is
                    // killed had the lock.
                    let run = home.opta(word).stdout(ANYTHING).stderr(ANYTHING);
                    running.push(run.status_in(&[0, 1, -9]).spawn());
                }
            }
        }
        for command in running {
            let seen = command.finish();
            let explained = seen.status != 1 || seen.stderr.contains("opta: cannot ");
            assert!(explained, "seed {seed}: {seen:?}");
        }
        let processes = home.processes();
        let owner = home.owner();
        assert!(processes.len() <= 1, "seed {seed}: {processes:?}");
        assert_eq!(processes.first().copied(), owner, "seed {seed}: the lock has its owner");
        let seen = home.opta("daemon start").stdout("{*}(pid {pid}, port {port}){*}");
        let pid = seen.stderr(ANYTHING).run().pid();
        assert_eq!(home.owner(), Some(pid), "seed {seed}");
        home.opta("daemon status").stdout(RUNNING).with("pid", pid).run();
        home.opta("daemon stop").stdout(STOPPED).with("pid", pid).run();
        home.assert_nothing_left();
    }
}

#[test]
fn stop_ends_a_daemon_whose_starter_was_killed() {
    need!("/proc", "strace");
    let home = Home::new();
    let slow = "inject=close_range:delay_enter=2s:when=1";
    let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", slow];
    let start = home.opta("daemon start").within(words).status(-9).spawn();
    eventually("the lock is taken", || home.owner().is_some());
    let children = format!("/proc/{0}/task/{0}/children", start.pid());
    let starter: i32 = fs::read_to_string(children).unwrap().trim().parse().unwrap();
    let has_signed = || home.owner().is_some_and(|owner| owner != starter);
    eventually("the daemon has signed the lock", has_signed);
    signal(starter, "KILL");
    home.opta("daemon stop").stdout(STOPPED).run();
    start.finish();
    home.assert_nothing_left();
}

#[test]
fn stop_ends_a_daemon_whose_starter_hangs() {
    need!("/proc", "strace");
    let home = Home::new();
    // The first poll is that of the runtime, the next two are those of the connection to the
    // listener; the others wait for the daemon.
    let slow = "inject=poll:delay_enter=600s:when=4+";
    let words = ["strace", "-qq", "-o", "/dev/null", "-e", slow];
    let _starter = home.opta("daemon start").within(words).spawn();
    home.opta("daemon status --wait=60").stdout(RUNNING).run();
    home.opta("daemon stop --timeout 2").stdout(STOPPED).run();
    home.opta("daemon status").stdout(NONE).status(3).run();
}

#[test]
fn a_starter_that_waited_for_the_lock_starts_the_daemon_itself() {
    need!("/proc");
    for _ in 0..rounds(20, 200) {
        let home = Home::new();
        home.write(&home.file("start.lock"), "");
        let lock = File::open(home.file("start.lock")).unwrap();
        lock.lock().unwrap();
        let queueing = home.opta("daemon start").stdout(STARTED).spawn();
        let thread = format!("/proc/{}/task", queueing.pid());
        eventually("it waits for the lock", || {
            fs::read_dir(&thread).map_or(0, Iterator::count) != 1
        });
        drop(lock);
        queueing.finish();
    }
}

#[test]
fn a_crash_is_reported_once_by_the_next_start() {
    let home = Home::new();
    let first = home.start();
    home.crash();
    let again = home.opta("daemon start").stdout(STARTED).stderr(CRASHED);
    let again = again.with("old", first.pid).run();
    assert_ne!(again.pid(), first.pid);
    home.opta("daemon start").stdout(ALREADY).with("pid", again.pid()).run();
    home.opta("daemon restart").stdout(RESTARTED).with("old", again.pid()).run();
}

#[test]
fn the_token_of_a_crashed_daemon_is_not_accepted() {
    let home = Home::new();
    home.start();
    let token = home.daemon_info().token().to_owned();
    home.crash();
    let start = home.opta("daemon start").stdout(STARTED).stderr(ANYTHING).run();
    assert_ne!(home.daemon_info().token(), token);
    assert_eq!(http(start.port(), "GET", "/v3/metrics", Some(&token)).0, 401);
}

#[test]
fn restart_after_a_crash_starts_a_new_daemon() {
    let home = Home::new();
    let old = home.start().pid;
    home.crash();
    let afresh = "Daemon started (pid {pid}, port {port})\nToken rotated.\n";
    let seen = home.opta("daemon restart").stdout(afresh).stderr(CRASHED).run();
    assert_ne!(seen.pid(), old);
    assert_eq!(home.owner(), Some(seen.pid()));
}

#[test]
fn three_crashes_within_a_minute_end_automatic_starts_until_the_user_starts_the_daemon() {
    let home = Home::new();
    let task = || home.opta("do hi").status(1);
    let refused = "opta: cannot start the daemon: it has crashed 3 times within a minute{*}";
    home.start();
    home.crash();
    for _ in 0..2 {
        for _ in 0..3 {
            task().stderr("opta: daemon had crashed{*}model-unreachable{*}").run();
            home.crash();
        }
        // A crash is counted by the start that finds it.
        task().stderr(refused).run();
        home.opta("daemon start").stdout(STARTED).stderr(ANYTHING).run();
        home.crash();
    }
}

#[test]
fn a_start_reports_a_crash_loop() {
    let home = Home::new();
    home.write(&home.file("state.json"), "");
    for _ in 0..3 {
        home.opta("do hi").stderr("opta: {*}crashed{*}").status(1).run();
        home.crash();
    }
    let pid = home.daemon_info().pid();
    home.opta("daemon start").stdout(STARTED).stderr(LOOP).with("old", pid).run();
    let old = home.crash();
    home.opta("daemon start").stdout(STARTED).stderr(CRASHED).with("old", old).run();
}

#[test]
fn a_clean_stop_begins_the_count_of_crashes_anew() {
    let home = Home::new();
    for _ in 0..4 {
        home.opta("do hi").stderr("{*}model-unreachable{*}").status(1).run();
        home.crash();
        home.opta("do hi")
            .stderr("opta: daemon had crashed{*}model-unreachable{*}")
            .status(1)
            .run();
        home.opta("daemon stop").stdout(STOPPED).run();
        assert!(!home.file("crashes.json").exists());
    }
}

#[test]
fn the_end_of_a_container_is_no_crash() {
    need!("root");
    let Some(private) = namespace(&["--pid", "--fork", "--kill-child", "--mount-proc"]) else {
        skip!("it needs private processes");
    };
    let home = Home::new();
    // Everything in it ends with the shell.
    let script = r#"opta do hi || echo "status $?""#;
    for _ in 0..5 {
        let task = home.sh(script).within(&private).stdout("status 1\n");
        let seen = task.stderr("opta: {*}model-unreachable{*}\n").run();
        assert!(!seen.stderr.contains("crashed"), "{seen:?}");
        home.wait_for_end();
        assert!(home.file("state.json").exists(), "it was killed");
        home.opta("daemon status").stdout(NONE).status(3).run();
        let not_crashed = "{*}pass  daemon    not running; commands that need it start it\n{*}";
        home.opta("doctor").stdout(not_crashed).status(1).run();
    }
    // The container's end is none here, either.
    home.start();
    home.opta("daemon stop").stdout(STOPPED).run();
}

#[test]
fn the_end_of_the_machine_is_no_crash() {
    need!("/proc");
    let home = Home::new();
    for _ in 0..5 {
        home.start();
        home.crash();
        let path = home.file("state.json");
        let text = fs::read_to_string(&path).unwrap();
        let (before, after) = text.split_once(r#""bootId":""#).unwrap();
        home.write(&path, format!(r#"{before}"bootId":"0{}"#, &after[1..]));
        home.opta("daemon status").stdout(NONE).status(3).run();
        home.opta("do hi").stderr("opta: cannot {*}model-unreachable{*}").status(1).run();
        home.opta("daemon stop").stdout(STOPPED).run();
    }
}

#[test]
fn a_stop_does_not_count_as_a_crash() {
    let home = Home::new();
    for _ in 0..5 {
        home.start();
        home.opta("daemon stop").stdout(STOPPED).run();
    }
}

/// Returns the strace command line with these arguments, to precede a command.
fn traced<'a>(words: &[&'a str]) -> Vec<&'a str> {
    ["strace", "-qq", "-o", "/dev/null"].iter().chain(words).copied().collect()
}

/// System calls that only the daemon makes before it has reported that it serves, or the process
/// between the two forks: the call, and how many of its kind come before it, plus one.
const BEFORE_IT_SERVES: [(&str, u32); 17] = [
    ("setsid", 1),
    ("dup2", 1),
    ("dup2", 6),
    ("close_range", 1),
    ("execve", 1),
    ("getsockopt", 2),
    ("setpriority", 1),
    ("chdir", 1),
    ("getsockname", 2),
    ("rt_sigaction", 20),
    ("rt_sigaction", 50),
    (START_THREAD, 1),
    (START_THREAD, 2),
    ("getrandom", 3),
    ("uname", 1),
    ("socketpair", 1),
    ("readlink", 1),
];

#[test]
fn a_daemon_that_is_killed_while_it_starts_is_noticed_at_once() {
    need!("/proc", "strace");
    let died = "opta: cannot start the daemon: it ended while starting, without a word\n\
                see the log: {home}/.config/opta/daemon/daemon.log\n";
    for (call, number) in BEFORE_IT_SERVES {
        let home = Home::new();
        let kill = format!("inject={call}:signal=KILL:when={number}");
        let start = home.opta("daemon start").within(traced(&["-f", "-e", &kill]));
        start.stderr(died).status(1).run();
        assert!(!is_locked(&home.file("daemon.pid")), "{kill}");
        assert!(!home.file("state.json").exists(), "{kill}");
        assert_eq!(home.processes(), [0_i32; 0], "{kill}");
        home.opta("daemon start").stdout(STARTED).run();
        home.opta("daemon stop").stdout(STOPPED).run();
        home.assert_nothing_left();
    }
}

#[test]
fn a_daemon_that_is_killed_while_it_writes_its_state_file_leaves_none() {
    need!("/proc", "strace");
    let died = "opta: cannot start the daemon: it ended while starting, without a word\n{*}\n";
    let home = Home::new();
    // As it puts the file in its place, and as it logs that it has.
    for (file, call) in [("state.new", "rename"), ("daemon.log", "write")] {
        let (path, kill) = (home.file(file), format!("inject={call}:signal=KILL"));
        let words = ["-f", "-P", path.to_str().unwrap(), "-e", &kill];
        home.opta("daemon start").within(traced(&words)).stderr(died).status(1).run();
        home.assert_nothing_left();
    }
}

#[test]
fn a_daemon_that_hangs_while_it_starts_is_killed_wherever_it_hangs() {
    need!("/proc", "strace");
    // strace prints something as well.
    let late = "{*}opta: cannot start the daemon: it was not ready after 10s\n\
                see the log: {home}/.config/opta/daemon/daemon.log\n";
    let mut starts = Vec::new();
    for (call, number) in [
        ("setsid", 1),
        ("dup2", 1),
        ("dup2", 5),
        ("close_range", 1),
        ("execve", 1),
        ("chdir", 1),
        (START_THREAD, 2),
    ] {
        let home = Home::new();
        let hang = format!("inject={call}:delay_enter=15s:when={number}");
        let start = home.opta("daemon start").within(traced(&["-f", "-e", &hang]));
        let start = start.stderr(late).status(1).spawn();
        starts.push((call, home, start));
    }
    for (call, home, start) in starts {
        start.finish();
        assert!(!is_locked(&home.file("daemon.pid")), "{call}");
        home.assert_nothing_left();
        home.opta("daemon start").stdout(STARTED).run();
        home.opta("daemon stop").stdout(STOPPED).run();
    }
}

#[test]
fn a_starter_that_is_killed_leaves_a_daemon_that_serves_or_none() {
    need!("/proc", "strace");
    // Only the starter is traced. The list of its calls begins where it opens the lock.
    let home = Home::new();
    let list = home.beside("calls");
    let words = ["strace", "-qq", "-o", list.to_str().unwrap()];
    home.opta("daemon start").within(words).stdout(STARTED).run();
    home.opta("daemon stop").stdout(STOPPED).run();
    let calls = fs::read_to_string(&list).unwrap();
    let calls: Vec<&str> = calls.lines().filter(|line| !line.starts_with("---")).collect();
    let first = calls.iter().position(|line| line.contains("/daemon.pid\", O_RDWR")).unwrap();
    assert!(calls.len() - first > 50, "{calls:#?}");
    let step = rounds(5, 1);
    for number in (first + fastrand::usize(1..=step)..calls.len()).step_by(step) {
        let home = Home::new();
        let kill = format!("inject=all:signal=KILL:when={number}");
        let start = home.opta("daemon start").within(traced(&["-e", &kill]));
        start.stdout(ANYTHING).stderr(ANYTHING).status_in(&[0, -9]).run();
        // The file may have been half replaced.
        let either = "Daemon {how} (pid {pid}, port {port}){*}";
        let pid = home.opta("daemon start").stdout(either).stderr(ANYTHING).run().pid();
        assert_eq!(home.owner(), Some(pid), "{kill}");
        assert_eq!(home.processes(), [pid], "{kill}");
        home.opta("daemon stop").stdout(STOPPED).with("pid", pid).run();
        home.assert_nothing_left();
    }
}

#[test]
fn a_start_does_not_fail_because_a_read_is_interrupted() {
    need!("/proc", "strace");
    let home = Home::new();
    for number in READS_BEFORE_MAIN + 1.. {
        let (interrupt, log) =
            (format!("inject=read:error=EINTR:when={number}"), home.beside("calls"));
        let words = ["strace", "-qq", "-o", log.to_str().unwrap(), "-e", "read", "-e", &interrupt];
        home.opta("daemon start").within(words).stdout(STARTED).run();
        home.opta("daemon stop").stdout(STOPPED).run();
        let calls = fs::read_to_string(&log).unwrap();
        if !calls.contains("(INJECTED)") {
            assert!(number > READS_BEFORE_MAIN + 3, "no read of a report was interrupted: {calls}");
            return;
        }
    }
}

#[test]
fn a_start_does_not_fail_because_the_state_file_cannot_be_read_afterwards() {
    need!("/proc", "strace");
    let home = Home::new();
    let (log, state) = (home.beside("calls"), home.file("state.json"));
    let words = ["strace", "-qq", "-o", log.to_str().unwrap(), "-P", state.to_str().unwrap()];
    // Before the start, the file is looked for twice.
    let words = words.into_iter().chain(["-e", "inject=?open,openat:error=EMFILE:when=3+"]);
    home.opta("daemon start").within(words).stdout(STARTED).run();
    let calls = fs::read_to_string(&log).unwrap();
    assert!(calls.contains("(INJECTED)"), "{calls}");
    home.opta("daemon status").stdout(RUNNING).run();
}

#[test]
fn the_daemon_reads_signals_after_a_wait_for_one_has_failed() {
    need!("/proc", "strace");
    let home = Home::new();
    let fail = "inject=rt_sigtimedwait:error=EINVAL:when=1..3";
    let start = home.opta("daemon start").within(traced(&["-f", "-e", fail])).stdout(STARTED);
    let start = start.spawn();
    home.opta("daemon status --wait=60").stdout(RUNNING).run();
    let log = || fs::read_to_string(home.file("daemon.log")).unwrap();
    eventually("it fails", || log().contains("signals cannot be read"));
    home.opta("daemon stop").stdout(STOPPED).run();
    start.finish();
    assert_eq!(log().matches("signals cannot be read").count(), 1, "{}", log());
    home.assert_nothing_left();
}

/// A program that reports another version, writes its pid to a file, and keeps running.
const ANOTHER: &str =
    "#!/bin/sh\necho $$ >\"$HOME/another\"; echo 'opta 9.9.9' >&5; exec sleep 1000\n";

fn copy_of_opta(home: &Home) -> PathBuf {
    home.beside("copy of opta")
}

/// Returns a shell that runs `before`, then starts a daemon with a copy of the program.
fn start_with_a_copy<'h>(home: &'h Home, before: &str) -> Run<'h> {
    let copy = copy_of_opta(home);
    copy_opta(&copy);
    home.sh(&format!("{before}; exec \"$COPY\" daemon start")).env("COPY", copy)
}

/// Runs it, and changes the copy when the starter runs and has not yet executed it again.
fn change_meanwhile(home: &Home, start: Run<'_>, change: impl Fn(&Path)) {
    home.write(&home.file("start.lock"), "");
    let lock = File::open(home.file("start.lock")).unwrap();
    lock.lock().unwrap();
    let starting = start.spawn();
    let threads = format!("/proc/{}/task", starting.pid());
    eventually("it waits for the lock", || fs::read_dir(&threads).map_or(0, Iterator::count) == 2);
    change(&copy_of_opta(home));
    drop(lock);
    starting.finish();
}

fn replace(copy: &Path) {
    let new = copy.with_extension("new");
    write_program(&new, ANOTHER);
    fs::rename(new, copy).unwrap();
}

fn remove(copy: &Path) {
    fs::remove_file(copy).unwrap();
}

#[test]
fn a_program_that_is_replaced_or_removed_during_a_start_runs_as_it_was() {
    need!("/proc");
    for change in [replace, remove] {
        let home = Home::new();
        change_meanwhile(&home, start_with_a_copy(&home, "true").stdout(STARTED), change);
        home.opta("daemon status").stdout(RUNNING).run();
        assert!(!home.path().join("another").exists());
        home.opta("daemon stop").stdout(STOPPED).run();
    }
}

#[test]
fn another_version_is_not_started_where_only_the_name_is_known() {
    need!("/proc");
    let Some(private) = namespace(&["--mount"]) else { skip!("it needs private mounts") };
    let home = Home::new();
    let start = || start_with_a_copy(&home, "mount -t tmpfs none /proc").within(&private);
    let replaced = "opta: cannot start the daemon: its program was replaced: \
                    this is opta {version}, that is opta 9.9.9; try again\nsee the log: {*}\n";
    change_meanwhile(&home, start().stderr(replaced).status(1), replace);
    let pid = fs::read_to_string(home.path().join("another")).unwrap().trim().parse().unwrap();
    eventually("it is ended", || has_ended(pid));
    home.assert_nothing_left();

    let missing = "opta: cannot execute the program of opta: No such file or directory\n";
    change_meanwhile(&home, start().stderr(missing).status(1), remove);
    home.assert_nothing_left();

    change_meanwhile(&home, start().stdout(STARTED), |_copy| ());
    home.opta("daemon status").stdout(RUNNING).run();
}

#[test]
fn a_kill_at_any_system_call_does_not_prevent_the_next_start() {
    need!("/proc", "strace");
    let first = fastrand::usize(1..=10);
    for number in (first..).step_by(rounds(10, 1)) {
        let home = Home::new();
        // In the foreground, where the process that strace begins with is the daemon.
        let kill = format!("inject=all:signal=KILL:when={number}");
        let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &kill];
        let serving = home.opta("daemon start --foreground").within(words).status_in(&[0, -9]);
        let mut serving = serving.stdout(ANYTHING).stderr(ANYTHING).spawn();
        eventually("it serves or dies", || home.file("state.json").exists() || serving.has_ended());
        if !serving.has_ended() {
            home.opta("daemon stop").stdout(ANYTHING).run();
        }
        let unharmed = serving.finish().status == 0;
        assert!(!is_locked(&home.file("daemon.pid")), "{kill}");
        home.opta("daemon start").stdout(STARTED).stderr(ANYTHING).run();
        home.opta("daemon stop").stdout(STOPPED).run();
        home.assert_nothing_left();
        if unharmed {
            return;
        }
    }
}

#[test]
fn status_after_a_kill_is_crashed_or_stopped_and_never_waits_for_it() {
    let home = Home::new();
    home.start();
    home.crash();
    home.opta("daemon status").stdout(NONE).stderr(HAS_CRASHED).status(1).run();
    home.opta("daemon stop").stdout("Daemon is not running.\n").run();
    home.opta("daemon status").stdout(NONE).status(3).run();
}
