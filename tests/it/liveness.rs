//! Whatever the files contain, no other process is signaled, and no file that was left behind
//! prevents a start.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::{
    ALREADY, ANYTHING, Bystander, HAS_CRASHED, Home, NONE, NOT_RUNNING, RESTARTED_AFRESH, RUNNING,
    Run, Running, STARTED, STOPPED, eventually, fifo, line_of, namespace, need, proc_number,
    signal, skip, state_of,
};

/// A function that replaces a file with something else.
type Plant = fn(&Path);

/// Returns the state file of a daemon with this pid.
fn state_with(pid: i32) -> String {
    format!(
        r#"{{"pid":{pid},"port":1,"token":"opta_dk_0","startedAt":"2026-03-01T10:00:00.000Z","host":"127.0.0.1","daemonId":"daemon_00000000","version":"0.1.0","logsPath":"/dev/null","hostname":"elsewhere"}}"#
    )
}

/// Runs every command in a home where the files of a dead daemon name `pid`.
fn survives_the_files_of(pid: i32) {
    let leave = |home: &Home| {
        home.write(&home.file("daemon.pid"), format!("{pid}\n"));
        home.write(&home.file("state.json"), state_with(pid));
    };
    let crashed = format!("opta: the daemon had crashed (pid {pid})\n");
    let home = Home::new();
    leave(&home);
    home.opta("daemon status").stdout(NONE).stderr(HAS_CRASHED).status(1).run();
    home.opta("daemon token").stderr(ANYTHING).status(3).run();
    home.opta("daemon start").stdout(STARTED).stderr(&crashed).run();
    home.opta("daemon status").stdout(RUNNING).run();
    home.opta("daemon stop").stdout(STOPPED).run();
    leave(&home);
    home.opta("daemon stop --force --timeout 0").stdout(NOT_RUNNING).run();
    home.assert_nothing_left();
    leave(&home);
    home.opta("daemon restart --force --timeout 0").stdout(RESTARTED_AFRESH).stderr(ANYTHING).run();
    home.opta("daemon stop").stdout(STOPPED).run();
    home.assert_nothing_left();
}

#[test]
fn the_pid_of_another_process_is_not_signaled() {
    let mut other = Bystander::new();
    survives_the_files_of(other.pid());
    other.assert_unharmed();
}

#[test]
fn the_pid_of_the_parent_is_not_signaled() {
    survives_the_files_of(i32::try_from(std::process::id()).unwrap());
}

#[test]
fn a_dead_or_impossible_pid_does_not_prevent_a_start() {
    for pid in [1, 2, 99_999_999, i32::MAX] {
        survives_the_files_of(pid);
    }
}

#[test]
fn the_number_of_a_thread_is_not_taken_for_a_daemon() {
    need!("/proc");
    let other = Home::new();
    let daemon = other.start();
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid)).unwrap();
    let threads =
        threads.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap());
    let thread = threads.into_iter().find(|thread: &i32| *thread != daemon.pid).unwrap();
    survives_the_files_of(thread);
    other.opta("daemon status").stdout(RUNNING).of(daemon).run();
}

#[test]
fn a_reused_pid_is_not_signaled() {
    need!("root");
    let Some(private) = namespace(&["--pid", "--fork", "--kill-child", "--mount-proc"]) else {
        skip!("it needs private processes");
    };
    let home = Home::new();
    // The next process gets the number after the last one. The shell itself reaps what it inherits.
    let script = r#"
        cd "$HOME"
        daemon="$HOME/.config/opta/daemon"
        other=
        end=$(($(date +%s) + 50))
        in_time() { test "$(date +%s)" -lt "$end" || exit 8; }
        crash() {
            opta daemon start 2>&1 | grep -c started
            pid=$(cat "$daemon/daemon.pid")
            kill -9 "$pid"
            flock "$daemon/daemon.pid" true
            while test "$other" != "$pid"; do
                while test -e "/proc/$pid"; do in_time; done
                in_time
                echo $((pid - 1)) >/proc/sys/kernel/ns_last_pid
                sleep 1000 & other=$!
            done
        }
        unharmed() { case $(cut -d' ' -f3 "/proc/$other/stat") in [TZ]) exit 9; esac; }
        crash; opta daemon status || echo "status $?"; unharmed
        opta daemon stop --force --timeout 0; unharmed
        crash; opta daemon start; unharmed
        opta daemon status -q; opta daemon stop; unharmed
        crash; opta daemon restart --force --timeout 0; unharmed
        opta daemon status -q; opta daemon stop; unharmed
    "#;
    let expected = "1\n○ stopped  (no daemon process found)\nstatus 1\nDaemon is not running.\n\
                    1\nDaemon started (pid {a}, port {b})\n\
                    Token written to ~/.config/opta/daemon/state.json\n\
                    Stopping daemon (pid {a})...\nDaemon stopped.\n\
                    1\nDaemon started (pid {c}, port {d})\nToken rotated.\n\
                    Stopping daemon (pid {c})...\nDaemon stopped.\n";
    home.sh(script).within(private).stdout(expected).stderr(ANYTHING).run();
}

#[test]
fn a_zombie_is_not_taken_for_a_daemon() {
    need!("root", "nsenter");
    let Some(private) = namespace(&["--pid", "--fork", "--kill-child", "--mount-proc"]) else {
        skip!("it needs private processes");
    };
    let home = Home::new();
    // The first process of a container, which reaps no other.
    let container = home.sh("exec sleep 1000").within(private).status(-9).spawn();
    let children = format!("/proc/{0}/task/{0}/children", container.pid());
    let first = || fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
    let is_sleep = || {
        let name = fs::read_to_string(format!("/proc/{}/comm", first())).unwrap_or_default();
        name == "sleep\n"
    };
    eventually("the container runs", is_sleep);
    let target = first();
    let inside = ["nsenter", "--target", &target, "--pid", "--mount", "--"];
    let opta = |words: &str| home.opta(words).within(inside);
    let old = opta("daemon start").stdout(STARTED).run().pid();
    let kill = r#"kill -9 "$PID"; until test "$(cut -d' ' -f3 "/proc/$PID/stat")" = Z; do :; done"#;
    home.sh(kill).within(inside).env("PID", old.to_string()).run();
    opta("daemon status").stdout(NONE).stderr(HAS_CRASHED).status(1).run();
    let crashed = "opta: the daemon had crashed (pid {old})\n";
    opta("daemon start").stdout(STARTED).stderr(crashed).with("old", old).run();
    opta("daemon status").stdout(RUNNING).run();
    opta("daemon restart").stdout("{*}Token rotated.\n").run();
    opta("daemon stop").stdout(STOPPED).run();
    opta("daemon status").stdout(NONE).status(3).run();
    signal(container.pid(), "KILL");
    container.finish();
}

#[test]
fn the_pid_of_another_users_process_does_not_prevent_a_start() {
    need!("root", "setpriv");
    let home = Home::of_another_user();
    let mut other = Bystander::new();
    let leave = || {
        home.write(&home.file("daemon.pid"), format!("{}\n", other.pid()));
        home.write(&home.file("state.json"), state_with(other.pid()));
    };
    leave();
    home.opta("daemon status").stdout(NONE).stderr(HAS_CRASHED).status(1).run();
    home.opta("daemon start").stdout(STARTED).stderr(ANYTHING).run();
    home.opta("daemon stop").stdout(STOPPED).run();
    leave();
    home.opta("daemon stop").stdout(NOT_RUNNING).run();
    home.assert_nothing_left();
    other.assert_unharmed();
}

#[test]
fn a_damaged_state_file_is_replaced() {
    let huge = "x".repeat(1 << 20);
    let deep = "[".repeat(100_000);
    let damages: &[&[u8]] = &[
        b"",
        b"{\"pid\":123,\"port\":99",
        b"\x7fELF\x02\x01\x01\x00\xff\xfe",
        b"\0\0\0\0\0\0\0\0",
        b"null",
        b"[]",
        b"{\"pid\":\"123\",\"port\":9999,\"token\":7}",
        b"{\"pid\":-1,\"port\":0,\"token\":\"\"}",
        b"{\"pid\":99999999999999999999,\"port\":9999}",
        huge.as_bytes(),
        deep.as_bytes(),
    ];
    let home = Home::new();
    let daemon = home.start();
    let state = fs::read(home.file("state.json")).unwrap();
    for damage in damages {
        let shown = String::from_utf8_lossy(&damage[..damage.len().min(40)]).into_owned();
        home.write(&home.file("state.json"), damage);
        home.opta("daemon start").stdout(ALREADY).of(daemon).run();
        assert_eq!(fs::read(home.file("state.json")).unwrap(), state, "{shown}");
    }
    home.opta("daemon stop").stdout(STOPPED).run();
    for damage in damages {
        home.write(&home.file("state.json"), damage);
        home.opta("daemon status").stdout(NONE).stderr(HAS_CRASHED).status(1).run();
        assert_eq!(fs::read(home.file("state.json")).unwrap(), *damage);
        let start =
            home.opta("daemon start").stdout(STARTED).stderr("opta: the daemon had crashed{*}\n");
        start.run();
        home.opta("daemon stop").stdout(STOPPED).run();
        home.write(&home.file("state.json"), damage);
        home.opta("daemon stop").stdout(NOT_RUNNING).run();
        home.assert_nothing_left();
    }
}

#[test]
fn a_daemon_that_stops_removes_a_damaged_state_file() {
    let home = Home::new();
    for damage in ["", "{\"pid\":"] {
        let daemon = home.start();
        home.write(&home.file("state.json"), damage);
        signal(daemon.pid, "TERM");
        home.wait_for_end();
        assert!(!home.file("state.json").exists(), "{damage}");
        // It did not crash.
        home.opta("daemon status").stdout(NONE).status(3).run();
    }
}

#[test]
fn a_state_file_that_is_no_regular_file_is_refused_and_kept() {
    let plants: [(&str, Plant); 4] = [
        ("it is not a regular file", |path| fs::create_dir(path).unwrap()),
        ("it is not a regular file", fifo),
        ("it is a symbolic link", |path| symlink("/etc/passwd", path).unwrap()),
        ("it has a second hard link", |path| {
            let other = path.with_extension("other");
            drop(File::create(&other).unwrap());
            fs::hard_link(other, path).unwrap();
        }),
    ];
    for (because, plant) in plants {
        let home = Home::new();
        home.write(&home.file("start.lock"), "");
        plant(&home.file("state.json"));
        let before = home.snapshot();
        let refusal = "opta: cannot use {home}/.config/opta/daemon/state.json: {because}\n{what}\n";
        for words in ["daemon start", "daemon status", "daemon restart", "daemon token"] {
            home.opta(words).stderr(refusal).with("because", because).status(1).run();
        }
        let after = home.snapshot();
        let kept = |line: &&String| before.contains(line);
        let changed: Vec<_> = after.iter().filter(|line| !kept(line)).collect();
        let only_the_lock =
            |line: &&&String| line.contains("daemon.pid") || line.contains("/daemon ");
        assert!(changed.iter().all(|line| only_the_lock(&line)), "{changed:?}");
    }
}

#[test]
fn a_file_of_another_user_is_refused() {
    need!("root", "setpriv");
    for name in ["state.json", "daemon.pid", "start.lock"] {
        let home = Home::of_another_user();
        home.write(&home.file(name), "");
        std::os::unix::fs::chown(home.file(name), Some(0), Some(0)).unwrap();
        fs::set_permissions(home.file(name), mode_of(0o666)).unwrap();
        let refusal = "opta: cannot use {home}/.config/opta/daemon/{name}: it belongs to another user\n\
                       give it to yourself: sudo chown {uid} '{home}/.config/opta/daemon/{name}'\n";
        let start = home.opta("daemon start").stderr(refusal).status(1);
        start.with("name", name).with("uid", home.user().unwrap()).run();
    }
}

fn mode_of(bits: u32) -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(bits)
}

/// Returns possible contents of `daemon.pid`.
fn contents_of_the_lock(other: &Bystander) -> Vec<String> {
    let own = std::process::id();
    let fixed = ["", "\n", "garbage\n", "-1\n", "0\n", "1\n", "+7\n", "99999999999\n", "12 34\n"];
    let fixed = fixed.into_iter().map(str::to_owned);
    fixed.chain([format!("{}\n", other.pid()), format!("-{own}\n"), "9".repeat(100)]).collect()
}

#[test]
fn the_contents_of_a_free_lock_do_not_matter() {
    let mut other = Bystander::new();
    for text in contents_of_the_lock(&other) {
        let home = Home::new();
        home.write(&home.file("daemon.pid"), &text);
        home.opta("daemon status").stdout(NONE).status(3).run();
        home.opta("daemon stop").stdout(NOT_RUNNING).run();
        let daemon = home.start();
        assert_eq!(home.owner(), Some(daemon.pid), "{text:?}");
    }
    other.assert_unharmed();
}

#[test]
fn a_lock_held_by_another_program_is_reported_and_no_process_is_signaled() {
    let mut other = Bystander::new();
    let homes: Vec<(Home, String)> =
        contents_of_the_lock(&other).into_iter().map(|text| (Home::new(), text)).collect();
    let mut locks = Vec::new();
    let mut running: Vec<Running> = Vec::new();
    for (home, text) in &homes {
        home.write(&home.file("daemon.pid"), text);
        // Held by this process, whose number is not in it.
        let lock = File::open(home.file("daemon.pid")).unwrap();
        lock.lock().unwrap();
        locks.push(lock);
        let refusal = "opta: cannot reach the daemon{*}\n{what}\n";
        running.push(home.opta("daemon start").stderr(refusal).status(4).spawn());
        running.push(home.opta("daemon status").stdout("◐ unresponsive{*}").status(4).spawn());
        let stop = home.opta("daemon stop --force --timeout 1").stderr(refusal);
        running.push(stop.status(4).spawn());
    }
    running.into_iter().for_each(|command| drop(command.finish()));
    for (home, text) in &homes {
        assert_eq!(fs::read_to_string(home.file("daemon.pid")).unwrap(), *text);
    }
    other.assert_unharmed();
    drop(locks);
    homes[0].0.start();
}

#[test]
fn a_command_that_tests_the_lock_is_not_taken_for_a_daemon() {
    need!("/proc");
    let test_lock = |home: &Home| {
        home.write(&home.file("daemon.pid"), "");
        home.write(&home.file("state.json"), state_with(99_999_999));
        let lock = File::open(home.file("daemon.pid")).unwrap();
        lock.lock_shared().unwrap();
        lock
    };
    let crashed = "opta: the daemon had crashed (pid 99999999)\n";
    for (words, stdout, stderr) in [
        ("daemon stop", NOT_RUNNING, ""),
        ("daemon start", STARTED, crashed),
        ("daemon restart", RESTARTED_AFRESH, crashed),
    ] {
        let home = Home::new();
        let lock = test_lock(&home);
        let waiting = home.opta(words).stdout(stdout).stderr(stderr).spawn();
        let open = format!("/proc/{}/fd", waiting.pid());
        let slept = || proc_number(waiting.pid(), "status", "voluntary_ctxt_switches:");
        let before = slept();
        eventually("it waits", || {
            // There may be too many watches: then it looks again after each pause.
            let polls = slept() > before.map(|count| count + 10);
            let open = fs::read_dir(&open).into_iter().flatten();
            let mut links = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
            polls || links.any(|link| link.to_string_lossy().contains("inotify"))
        });
        drop(lock);
        waiting.finish();
        home.opta("daemon stop").stdout(ANYTHING).run();
        home.assert_nothing_left();
    }
}

#[test]
fn a_lock_held_on_another_machine_is_reported_as_such() {
    let home = Home::new();
    home.write(&home.file("daemon.pid"), "99999999\n");
    home.write(&home.file("state.json"), state_with(99_999_999));
    let lock = File::open(home.file("daemon.pid")).unwrap();
    lock.lock().unwrap();
    let far = "opta: cannot reach the daemon: a process on elsewhere that cannot be seen from here \
               has locked {home}/.config/opta/daemon/daemon.pid\n\
               stop it where it runs, or give this machine a place of its own: OPTA_HOME\n";
    let commands = [
        home.opta("daemon start").stderr(far).status(4),
        home.opta("daemon stop").stderr(far).status(4),
    ];
    commands.map(Run::spawn).into_iter().for_each(|command| drop(command.finish()));
    home.opta("daemon restart").stderr(far).status(4).run();
    assert_eq!(fs::read_to_string(home.file("state.json")).unwrap(), state_with(99_999_999));
}

#[test]
fn a_daemon_in_a_container_is_used_and_stopped_from_outside() {
    need!("root");
    let Some(private) = namespace(&["--pid", "--fork", "--kill-child", "--mount-proc"]) else {
        skip!("it needs private processes");
    };
    let home = Home::new();
    let word = home.beside("word");
    fifo(&word);
    let script = r#"opta daemon start >/dev/null; echo up >"$WORD"; exec sleep 1000"#;
    let container = home.sh(script).env("WORD", &word).within(private).status(-9).spawn();
    assert_eq!(line_of(&word), "up");
    // Its number means another process out here, or none.
    let (pid, port) = (home.daemon_info().pid(), home.daemon_info().port());
    home.opta("daemon status").stdout(RUNNING).with("pid", pid).with("port", port).run();
    home.opta("daemon stop").stdout(STOPPED).with("pid", pid).run();
    signal(container.pid(), "KILL");
    container.finish();
    home.wait_for_end();
}

#[test]
fn files_from_before_a_reboot_do_not_prevent_a_start() {
    // After a reboot, the pid probably belongs to another process, and the crashes do not count.
    let mut other = Bystander::new();
    let home = Home::new();
    home.write(
        &home.file("crashes.json"),
        r#"{"crashes":[9999999999999,9999999999998,9999999999997]}"#,
    );
    home.write(&home.file("daemon.pid"), format!("{}\n", other.pid()));
    home.write(&home.file("state.json"), state_with(other.pid()));
    home.write(&home.file("state.new"), "half a st");
    let start = home
        .opta("daemon start")
        .stdout(STARTED)
        .stderr("opta: the daemon had crashed (pid {old})\n");
    start.with("old", other.pid()).run();
    home.opta("daemon stop").stdout(STOPPED).run();
    home.assert_nothing_left();
    other.assert_unharmed();
    assert_ne!(state_of(other.pid()), None);
}
