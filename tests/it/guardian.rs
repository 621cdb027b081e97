//! Whatever state the daemon was left in, one command later one daemon runs, and never two.

use std::fs;

use crate::support::{
    ALREADY, ANYTHING, Daemon, Home, NONE, RESTARTED, RUNNING, Running, STARTED, STOPPED, Seen,
    eventually, http, is_locked, need, rounds, signal,
};

const CRASHED: &str = "opta: the daemon had crashed (pid {old})\n";
const LOOP: &str = "opta: the daemon had crashed (pid {old})\n\
                    opta: it has crashed several times within a minute; see: opta daemon logs\n";

/// So many starts at once.
const AT_ONCE: usize = 40;

/// Starts many at once, and sees that they all report the same daemon.
fn start_together(home: &Home) -> Daemon {
    let either = "Daemon {how} (pid {pid}, port {port}){*}";
    let start = || home.opta("daemon start").stdout(either).stderr(ANYTHING).spawn();
    let starts: Vec<_> = (0..AT_ONCE).map(|_| start()).collect();
    let seen: Vec<Seen> = starts.into_iter().map(Running::finish).collect();
    let daemons = seen.iter().map(|seen| Daemon { pid: seen.pid(), port: seen.port() });
    let mut daemons: Vec<Daemon> = daemons.collect();
    daemons.dedup();
    assert_eq!(daemons.len(), 1, "{daemons:?}");
    let first = |seen: &&Seen| seen.get("how") == "started";
    assert_eq!(seen.iter().filter(first).count(), 1, "one has started it");
    assert_eq!(home.owner(), Some(daemons[0].pid));
    assert_eq!(home.processes(), [daemons[0].pid]);
    daemons[0]
}

#[test]
fn many_cold_starts_make_one_daemon() {
    need!("/proc");
    for _ in 0..rounds(4, 30) {
        start_together(&Home::new());
    }
}

#[test]
fn many_starts_after_a_crash_make_one_daemon() {
    need!("/proc");
    let home = Home::new();
    home.start();
    for _ in 0..rounds(4, 30) {
        home.crash();
        start_together(&home);
    }
}

#[test]
fn many_starts_in_the_moment_of_a_crash_make_one_daemon() {
    need!("/proc");
    let home = Home::new();
    let mut daemon = home.start();
    for _ in 0..rounds(4, 30) {
        // Not waited for: it may still be dying.
        signal(daemon.pid, "KILL");
        daemon = start_together(&home);
    }
}

#[test]
fn many_starts_in_the_moment_of_a_stop_make_one_daemon() {
    need!("/proc");
    let home = Home::new();
    for _ in 0..rounds(4, 30) {
        let daemon = home.start();
        let stop = home.opta("daemon stop").stdout(STOPPED).with("pid", daemon.pid).spawn();
        eventually("it is announced", || stop.output().contains("Stopping"));
        let either = "Daemon {how} (pid {pid}, port {port}){*}";
        let start = || home.opta("daemon start").stdout(either).stderr(ANYTHING).spawn();
        let starts: Vec<_> = (0..AT_ONCE).map(|_| start()).collect();
        let seen: Vec<Seen> = starts.into_iter().map(Running::finish).collect();
        stop.finish();
        // Some may have met the old one in its last moment.
        let mut new: Vec<i32> =
            seen.iter().map(Seen::pid).filter(|pid| *pid != daemon.pid).collect();
        new.dedup();
        assert!(new.len() <= 1, "{new:?}");
        assert_eq!(home.processes(), new, "there is the new one if anybody saw it");
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
                    // What another one interrupts may fail, but it ends and says why; what is
                    // killed was about to become the daemon.
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
    let slow = "inject=close_range:delay_enter=500000:when=1";
    let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", slow];
    let start = home.opta("daemon start").within(words).status(-9).spawn();
    let pid = || fs::read_to_string(home.file("daemon.pid")).unwrap_or_default();
    eventually("the lock is signed", || pid().ends_with('\n'));
    let starter = pid().trim().parse().unwrap();
    let forked = || fs::read_dir(format!("/proc/{starter}/fd")).map_or(0, Iterator::count);
    eventually("the daemon alone has the lock", || home.owner() != Some(starter) && forked() > 0);
    signal(starter, "KILL");
    home.opta("daemon stop").stdout(STOPPED).run();
    start.finish();
    home.assert_nothing_left();
}

#[test]
fn a_start_that_had_to_queue_starts_the_daemon_itself() {
    need!("/proc");
    for _ in 0..rounds(20, 200) {
        let home = Home::new();
        home.write(&home.file("start.lock"), "");
        let door = fs::File::open(home.file("start.lock")).unwrap();
        door.lock().unwrap();
        let queueing = home.opta("daemon start").stdout(STARTED).spawn();
        let thread = format!("/proc/{}/task", queueing.pid());
        eventually("it queues", || fs::read_dir(&thread).map_or(0, Iterator::count) != 1);
        drop(door);
        queueing.finish();
    }
}

#[test]
fn the_next_start_tells_of_a_crash_once() {
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
fn the_token_of_a_crashed_daemon_opens_nothing() {
    let home = Home::new();
    home.start();
    let token = home.card().token().to_owned();
    home.crash();
    let start = home.opta("daemon start").stdout(STARTED).stderr(ANYTHING).run();
    assert_ne!(home.card().token(), token);
    assert_eq!(http(start.port(), "GET", "/v3/metrics", Some(&token)).0, 401);
}

#[test]
fn restart_after_a_crash_starts_afresh() {
    let home = Home::new();
    let old = home.start().pid;
    home.crash();
    let afresh = "Daemon started (pid {pid}, port {port})\nToken rotated.\n";
    let seen = home.opta("daemon restart").stdout(afresh).stderr(CRASHED).run();
    assert_ne!(seen.pid(), old);
    assert_eq!(home.owner(), Some(seen.pid()));
}

#[test]
fn three_crashes_within_a_minute_are_called_a_loop() {
    let home = Home::new();
    home.start();
    for told in [CRASHED, CRASHED, LOOP, LOOP] {
        let old = home.crash();
        home.opta("daemon start").stdout(STARTED).stderr(told).with("old", old).run();
    }
}

#[test]
fn a_stop_is_no_crash() {
    let home = Home::new();
    for _ in 0..5 {
        home.start();
        home.opta("daemon stop").stdout(STOPPED).run();
    }
}

/// Calls that only the daemon makes, and neither the command that starts it nor the process in
/// between: which call, and the how-manieth of its kind. All before the daemon has said that it
/// serves.
const OF_THE_DAEMON: [(&str, u32); 13] = [
    ("dup2", 1),
    ("dup2", 3),
    ("close_range", 1),
    ("chdir", 1),
    ("getsockname", 1),
    ("rt_sigaction", 10),
    ("rt_sigaction", 27),
    ("clone3", 1),
    ("clone3", 2),
    ("getrandom", 2),
    ("uname", 1),
    ("socketpair", 1),
    ("readlink", 1),
];

#[test]
fn a_daemon_that_is_killed_while_it_starts_is_noticed_at_once() {
    need!("/proc", "strace");
    let died = "opta: cannot start the daemon: it ended while starting, without a word\n\
                see the log: {home}/.config/opta/daemon/daemon.log\n";
    for (call, number) in OF_THE_DAEMON {
        let home = Home::new();
        let kill = format!("inject={call}:signal=KILL:when={number}");
        let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &kill];
        home.opta("daemon start").within(words).stderr(died).status(1).run();
        assert!(!is_locked(&home.file("daemon.pid")), "{kill}");
        assert!(!home.file("state.json").exists(), "{kill}");
        assert_eq!(home.processes(), [0_i32; 0], "{kill}");
        home.opta("daemon start").stdout(STARTED).run();
        home.opta("daemon stop").stdout(STOPPED).run();
        home.assert_nothing_left();
    }
}

#[test]
fn a_kill_at_any_moment_leaves_nothing_in_the_way() {
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
    home.opta("daemon status").stdout(NONE).status(1).run();
    home.opta("daemon stop").stdout("Daemon is not running.\n").run();
    home.opta("daemon status").stdout(NONE).status(3).run();
}
