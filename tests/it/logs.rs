//! The log of a real daemon, and how `opta daemon logs` shows it.

use std::fs;

use crate::support::{ANYTHING, Home, eventually, http, mode, need, signal};

/// The first line of the log, as text.
const FIRST_LINE: &str = "[{time}] INFO  daemon started on 127.0.0.1:{port}\n";

#[test]
fn the_log_looks_as_in_the_manual() {
    let home = Home::new();
    let daemon = home.start();
    let seen = home.opta("daemon logs").stdout(FIRST_LINE).with("port", daemon.port).run();
    let time = seen.get("time");
    assert_eq!(time.len(), 8, "{time}");
    home.opta("daemon stop").stdout(ANYTHING).run();
    let rest = "[{a}] INFO  daemon stopping cause=SIGTERM\n[{b}] INFO  daemon stopped\n";
    home.opta("daemon logs --lines 2").stdout(rest).run();
    home.opta("daemon logs -n1").stdout("[{b}] INFO  daemon stopped\n").run();
    home.opta("daemon logs -n 0").run();
}

#[test]
fn json_prints_the_stored_lines() {
    let home = Home::new();
    let daemon = home.start();
    let stored = fs::read_to_string(home.file("daemon.log")).unwrap();
    let seen = home.opta("daemon logs --json").stdout(ANYTHING).run();
    assert_eq!(seen.stdout, stored);
    let port = daemon.port;
    let end = format!("\"level\":\"INFO\",\"msg\":\"daemon started on 127.0.0.1:{port}\"}}\n");
    assert!(stored.starts_with("{\"ts\":\"") && stored.ends_with(&end), "{stored}");
}

#[test]
fn without_a_log_it_says_so_and_creates_nothing() {
    let home = Home::new();
    let before = home.snapshot();
    let none = "opta: there is no log yet at ~/.config/opta/daemon/daemon.log\n";
    home.opta("daemon logs").stderr(none).run();
    assert_eq!(home.snapshot(), before);
}

#[test]
fn requests_are_logged_only_at_debug_and_without_secrets() {
    let home = Home::new();
    home.write(&home.config(), r#"{"log":{"level":"debug"}}"#);
    let daemon = home.start();
    let token = home.daemon_info().token().to_owned();
    assert_eq!(http(daemon.port, "GET", &format!("/v3/health?token={token}"), None).0, 200);
    assert_eq!(http(daemon.port, "GET", "/v3/metrics", Some(&token)).0, 200);
    let debug = "[{a}] DEBUG request method=GET path=/v3/health status=200\n\
                 [{b}] DEBUG request method=GET path=/v3/metrics status=200\n";
    home.opta("daemon logs -n 2").stdout(debug).run();
    home.opta("daemon logs --level info").stdout(FIRST_LINE).with("port", daemon.port).run();
    let stored = fs::read_to_string(home.file("daemon.log")).unwrap();
    assert!(!stored.contains(&token) && !stored.contains("opta_dk_"), "{stored}");
}

#[test]
fn since_omits_older_lines() {
    let home = Home::new();
    let old = r#"{"ts":"2001-01-01T00:00:00.000Z","level":"INFO","msg":"long ago"}"#;
    home.write(&home.file("daemon.log"), format!("{old}\n"));
    let daemon = home.start();
    home.opta("daemon logs --since 1h").stdout(FIRST_LINE).with("port", daemon.port).run();
    home.opta("daemon logs --since 2000-01-01").stdout("{*}long ago\n{*}").run();
}

#[test]
fn an_hour_that_occurs_twice_is_the_first_one() {
    let home = Home::new();
    let line =
        |ts: &str, msg: &str| format!("{{\"ts\":\"{ts}\",\"level\":\"INFO\",\"msg\":\"{msg}\"}}\n");
    let before = line("2025-10-26T00:29:00.000Z", "before");
    let (first, second) =
        (line("2025-10-26T00:31:00.000Z", "first"), line("2025-10-26T01:31:00.000Z", "second"));
    home.write(&home.file("daemon.log"), before + &first + &second);
    let asked = "daemon logs --since '2025-10-26 02:30'";
    let both = "[2025-10-26 02:31:00] INFO  first\n[2025-10-26 02:31:00] INFO  second\n";
    let zone = "CET-1CEST,M3.5.0,M10.5.0/3";
    home.sh(&format!("opta {asked}")).env("TZ", zone).stdout(both).run();
    // Not a failure of mktime(3).
    let last_second = "opta daemon logs -n 1 --since '1969-12-31 23:59:59'";
    let second = "[2025-10-26 01:31:00] INFO  second\n";
    home.sh(last_second).env("TZ", "UTC0").stdout(second).run();
}

#[test]
fn following_needs_no_watch() {
    need!("strace");
    for refused in ["inotify_init1:error=EMFILE", "inotify_add_watch:error=ENOSPC"] {
        let home = Home::new();
        home.start();
        let words = format!("exec strace -D -o /dev/null -e inject={refused} opta daemon logs -f");
        let following = home.sh(&words).stdout(ANYTHING).status(-15).spawn();
        eventually("the first line is shown", || following.output().ends_with('\n'));
        home.opta("daemon stop").stdout(ANYTHING).run();
        eventually("the last line is shown", || following.output().contains("daemon stopped"));
        signal(following.pid(), "TERM");
        following.finish();
    }
}

#[test]
fn following_continues_through_a_restart_and_a_crash_and_repeats_nothing() {
    let home = Home::new();
    home.start();
    let mut following = home.opta("daemon logs --follow").stdout(ANYTHING).status(-15).spawn();
    home.opta("daemon restart").stdout(ANYTHING).run();
    home.crash();
    home.opta("daemon start").stdout(ANYTHING).stderr(ANYTHING).run();
    home.opta("daemon stop").stdout(ANYTHING).run();
    let stored = home.opta("daemon logs").stdout(ANYTHING).run().stdout;
    assert_eq!(stored.matches("daemon started").count(), 3, "{stored}");
    eventually("everything was shown", || following.output().len() >= stored.len());
    assert_eq!(following.output(), stored);
    assert!(!following.has_ended());
    signal(following.pid(), "TERM");
    following.finish();
}

#[test]
fn following_can_start_before_there_is_a_log() {
    let home = Home::new();
    let none = "opta: there is no log yet at ~/.config/opta/daemon/daemon.log\n";
    let following = home.opta("daemon logs -f").stdout(ANYTHING).stderr(none).status(-15).spawn();
    eventually("it follows", || following.errors() == none);
    home.start();
    eventually("the first line is shown", || following.output().ends_with('\n'));
    signal(following.pid(), "TERM");
    following.finish();
}

#[test]
fn following_ends_when_its_reader_has_gone() {
    let home = Home::new();
    home.start();
    home.sh("opta daemon logs -f | head -n 1").stdout("{*}daemon started{*}").run();
}

#[test]
fn the_log_is_rotated_and_printed_across_files() {
    let home = Home::new();
    home.write(&home.config(), r#"{"log":{"level":"debug","maxBytes":4096,"files":2}}"#);
    let daemon = home.start();
    for _ in 0..150 {
        assert_eq!(http(daemon.port, "GET", "/v3/health", None).0, 200);
    }
    for (name, is_there) in [("daemon.log", true), ("daemon.log.1", true), ("daemon.log.2", true)] {
        assert_eq!(home.file(name).exists(), is_there, "{name}");
        assert!(fs::metadata(home.file(name)).unwrap().len() <= 4096, "{name}");
        assert_eq!(mode(&home.file(name)), 0o600, "{name}");
    }
    assert!(!home.file("daemon.log.3").exists());
    let seen = home.opta("daemon logs -n 60").stdout(ANYTHING).run();
    assert_eq!(seen.stdout.lines().count(), 60);
}

#[test]
fn the_output_of_the_daemon_follows_the_log_when_it_moves() {
    need!("/proc");
    let home = Home::new();
    let daemon = home.start();
    let open_on = |number: u32| fs::read_link(format!("/proc/{}/fd/{number}", daemon.pid)).unwrap();
    assert_eq!(open_on(0), std::path::Path::new("/dev/null"));
    assert_eq!((open_on(1), open_on(2)), (home.file("daemon.log"), home.file("daemon.log")));
    fs::rename(home.file("daemon.log"), home.file("moved")).unwrap();
    signal(daemon.pid, "HUP");
    eventually("the log is opened again", || home.file("daemon.log").exists());
    eventually("output follows it", || open_on(2) == home.file("daemon.log"));
    assert_eq!(open_on(1), home.file("daemon.log"));
}

#[test]
fn the_daemon_keeps_running_when_the_disk_of_the_log_is_full() {
    need!("root", "private mounts");
    let home = Home::new();
    let script = r#"
        mkdir -p "$HOME/.config/opta/daemon"
        mount -t tmpfs -o size=64k,mode=700 none "$HOME/.config/opta/daemon"
        OPTA_LOG=debug opta daemon start >/dev/null
        head -c 100000 /dev/zero >"$HOME/.config/opta/daemon/filler" 2>/dev/null || true
        for i in 1 2 3 4 5; do opta daemon status --quiet; done
        rm "$HOME/.config/opta/daemon/filler"
        opta daemon status --quiet
        opta daemon logs -n 3 | grep -c 'log lines lost\|request'
        opta daemon stop >/dev/null"#;
    home.sh(script).within(["unshare", "--mount"]).stdout("{n}\n").run();
}
