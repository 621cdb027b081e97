//! Input that is refused: one line says what failed and why, at most one more gives the next step,
//! and nothing is created or changed.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::support::{
    ALREADY, ANYTHING, Finished, Home, NONE, NOT_RUNNING, RUNNING, Run, STARTED, STOPPED,
    TOO_MANY_FILES, copy_opta, namespace, need, skip,
};

/// A function that creates something where it does not belong.
type Plant = fn(&Path);

/// The line with the reason, and perhaps one with the next step.
const REFUSED: &str = "opta: cannot {why}\n{*}";

/// Runs a command that must fail with `why` in one line, and leave nothing.
#[track_caller]
fn refused(home: &Home, run: Run<'_>, why: &str) -> Finished {
    let seen = run.stderr(REFUSED).with("why", why).status(1).run();
    assert!(seen.stderr.lines().count() <= 2, "{seen:?}");
    home.assert_nothing_left();
    seen
}

#[test]
fn a_typing_error_is_reported_with_what_was_probably_meant() {
    let home = Home::new();
    let general = "Usage: opta COMMAND [OPTION]...  (opta --help lists the commands)";
    for (words, message) in [
        ("status", "unknown command 'status'; did you mean 'daemon status'?"),
        ("ls", "unknown command 'ls'; did you mean 'sessions list'?"),
        ("daemon", "'daemon' requires a command: {*}"),
        ("deamon start", "unknown command 'deamon'; did you mean 'daemon'?"),
        ("daemon strat", "unknown command 'daemon strat'; did you mean 'daemon start'?"),
        ("daemon frobnicate", "unknown command 'daemon frobnicate'"),
        ("--verson", "unknown option '--verson'; did you mean '--version'?"),
    ] {
        let expected = format!("opta: {message}\n{general}\n");
        home.opta(words).stderr(&expected).status(2).run();
    }
    for words in ["version", "--version"] {
        home.opta(words).stdout("opta {version} (protocol 3.0.0)\n").run();
    }
    let help = home.opta("--help").stdout(ANYTHING).run().stdout;
    assert_eq!(home.opta("").stdout(ANYTHING).run().stdout, help);
    for (words, message) in [
        (
            "daemon start --foregruond",
            "unknown option '--foregruond'; did you mean '--foreground'?",
        ),
        ("daemon start --port", "--port requires a value: --port N"),
        ("daemon start --port 99999", "--port must be a port number from 0 to 65535, not '99999'"),
        ("daemon start --port -1", "--port must be a port number from 0 to 65535, not '-1'"),
        ("daemon start --port 1 --port 1", "--port was given twice"),
        ("daemon start --json --json", "--json was given twice"),
        ("daemon status now", "unexpected argument 'now'"),
        ("daemon logs --lines -5", "--lines must be {*}, not '-5'"),
        ("daemon logs --lines x", "--lines must be {*}, not 'x'"),
        ("daemon stop --timeout 86401", "--timeout must be {*}, not '86401'"),
        ("daemon restart --if-idle --force", "--if-idle and --force cannot be used together"),
    ] {
        let verb = words.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let expected = format!("opta: {message}\nUsage: opta {verb} {{*}}\n");
        let expected = expected.replace(&format!("{verb} {{*}}"), &format!("{verb}{{*}}"));
        // A usage error is JSON if any of the words is `--json`.
        let run = home.opta(words).status(2);
        let run = if words.contains("--json") {
            run.stdout("{*}twice{*}")
        } else {
            run.stderr(&expected)
        };
        run.run();
    }
    assert!(!home.path().join(".config").exists());
}

#[test]
fn arguments_that_are_not_utf_8_are_escaped() {
    let home = Home::new();
    let bytes = OsStr::from_bytes(b"st\xff\x1b[31m");
    for before in ["", "daemon", "daemon start --port", "daemon stop"] {
        let seen =
            home.opta(before).arg(bytes).stderr("opta: {what}\nUsage: {usage}\n").status(2).run();
        assert!(!seen.stderr.contains('\x1b'), "{seen:?}");
    }
}

#[test]
fn without_home_the_user_database_is_asked() {
    need!("root", "setpriv");
    // A user with an entry there, and a home directory that cannot be created.
    let home = Home::new();
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
    let entry = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entry =
        entry.lines().find(|line| line.split(':').nth(2) == Some("65534")).map(str::to_owned);
    let Some(directory) = entry.as_deref().and_then(|entry| entry.split(':').nth(5)) else {
        skip!("it needs a user with the number 65534");
    };
    if Path::new(directory).exists() {
        skip!("it needs a user without a home");
    }
    let program = home.path().join("opta");
    copy_opta(&program);
    let words = |verb: &str| format!(r#"exec "$PROGRAM" daemon {verb}"#);
    for empty in [false, true] {
        let run = |verb: &str| {
            let run = home.sh(&words(verb)).within(nobody).env("PROGRAM", &program);
            if empty { run.env("HOME", "") } else { run.unset("HOME") }
        };
        run("status").stdout(NONE).status(3).run();
        let expected = format!("opta: cannot create {directory}/.config/opta: {{reason}}\n");
        run("start").stderr(&expected).status(1).run();
    }
    // A user without an entry.
    let unknown = ["setpriv", "--reuid", "64999", "--regid", "64999", "--clear-groups", "--"];
    let run = home.sh(&words("status")).within(unknown).env("PROGRAM", &program).unset("HOME");
    let expected = "opta: cannot find your home directory: HOME is not set and the user database has \
                    none either\nset HOME or OPTA_HOME to the absolute path of a directory of yours\n";
    run.stderr(expected).status(1).run();
}

#[test]
fn a_relative_home_is_refused() {
    let home = Home::new();
    let next_step = "set HOME or OPTA_HOME to the absolute path of a directory of yours";
    for name in ["HOME", "OPTA_HOME"] {
        for value in ["here", "./here", "~"] {
            for words in ["daemon start", "daemon status", "daemon stop"] {
                let expected = format!(
                    "opta: cannot find your home directory: {name} is not an absolute path: \
                     '{value}'\n{next_step}\n"
                );
                home.opta(words).env(name, value).stderr(&expected).status(1).run();
            }
        }
    }
    // The XDG Base Directory Specification says to ignore it.
    home.opta("daemon start").env("XDG_CONFIG_HOME", "here").stdout(STARTED).run();
    home.opta("daemon status").stdout(RUNNING).run();
    assert!(!home.beside("here").exists());
}

#[test]
fn another_directory_can_be_chosen() {
    need!("/proc");
    let home = Home::new();
    let place = home.path().join("a place\nof its own");
    let start = home.opta("daemon start").env("OPTA_HOME", &place);
    let started = "Daemon started (pid {pid}, port {port})\n\
                   Token written to ~/a place\\nof its own/daemon/state.json\n";
    start.stdout(started).run();
    home.opta("daemon status").stdout(NONE).status(3).run();
    home.opta("daemon status").env("OPTA_HOME", &place).stdout(RUNNING).run();
    home.opta("daemon stop").env("OPTA_HOME", &place).stdout(STOPPED).run();
    if cfg!(target_os = "linux") {
        let config = home.path().join("xdg");
        home.opta("daemon start")
            .env("XDG_CONFIG_HOME", &config)
            .stdout("{*}~/xdg/opta/daemon/{*}")
            .run();
        home.opta("daemon stop").env("XDG_CONFIG_HOME", &config).stdout(STOPPED).run();
    }
    assert!(!home.path().join(".config").exists());
}

#[test]
fn a_path_that_cannot_be_the_daemons_directory_is_refused_and_kept() {
    let directory = ".config/opta/daemon";
    // What `start` finds first, when it reads the state file, and the reason of the others.
    let link = "it is a symbolic link";
    let (open, group) =
        ("other users can write to it (mode 0777)", "other users can write to it (mode 0720)");
    let plants: [(&str, &str, Plant); 5] = [
        ("Not a directory", "it is not a directory", |path| drop(File::create(path).unwrap())),
        (link, link, |path| symlink("/tmp", path).unwrap()),
        (link, link, |path| symlink("nowhere", path).unwrap()),
        (open, open, |path| world_writable(path, 0o777)),
        (group, group, |path| world_writable(path, 0o720)),
    ];
    for (first, because, plant) in plants {
        let home = Home::new();
        home.write(&home.config(), "{}");
        plant(&home.path().join(directory));
        let before = home.snapshot();
        for words in ["daemon start", "daemon restart", "daemon start --foreground"] {
            let why = "opta: cannot {*}{home}/.config/opta/daemon{*}: {because}\n{*}";
            let because = if words == "daemon start" { first } else { because };
            home.opta(words).stderr(why).with("because", because).status(1).run();
        }
        assert_eq!(home.snapshot(), before);
    }
}

#[test]
fn settings_that_another_user_can_change_are_refused() {
    let home = Home::new();
    home.write(&home.config(), r#"{"daemon":{"port":0},"permissions":{"shell":"allow"}}"#);
    let real = home.path().join("settings.json");
    let set = |mode| fs::set_permissions(home.config(), Permissions::from_mode(mode)).unwrap();
    for (mode, shown) in [(0o666, "0666"), (0o620, "0620"), (0o602, "0602"), (0o777, "0777")] {
        set(mode);
        let why = "opta: cannot use {home}/.config/opta/config.json: other users can write to it \
                   (mode {mode})\nlook at its contents, then: chmod go-w \
                   '{home}/.config/opta/config.json'\n";
        for words in ["daemon start", "daemon restart", "daemon start --foreground", "do hi"] {
            home.opta(words).stderr(why).with("mode", shown).status(1).run();
        }
        let finding = "fail  settings  cannot use {home}/.config/opta/config.json: other users can \
                       write to it (mode {mode}); fix: {*}";
        home.opta("doctor").stdout(finding).with("mode", shown).status(1).run();
        home.assert_nothing_left();
    }
    for mode in [0o600, 0o644, 0o440] {
        set(mode);
        home.start();
        home.opta("daemon stop").stdout(STOPPED).run();
    }
    // The file itself counts, not the link to it.
    fs::rename(home.config(), &real).unwrap();
    symlink(&real, home.config()).unwrap();
    home.start();
    home.opta("daemon stop").stdout(STOPPED).run();
    fs::set_permissions(&real, Permissions::from_mode(0o666)).unwrap();
    home.opta("daemon start").stderr("opta: cannot use {*}(mode 0666)\n{*}").status(1).run();
}

#[test]
fn settings_of_another_user_are_refused_and_those_of_root_are_not() {
    need!("root", "setpriv");
    let home = Home::of_another_user();
    home.write(&home.config(), "{}");
    let give = |user| std::os::unix::fs::chown(home.config(), Some(user), Some(user)).unwrap();
    fs::set_permissions(home.config(), Permissions::from_mode(0o644)).unwrap();
    give(0);
    home.start();
    home.opta("daemon stop").stdout(STOPPED).run();
    give(65_534);
    let why = "opta: cannot use {home}/.config/opta/config.json: it belongs to another user\n{*}";
    home.opta("daemon start").stderr(why).status(1).run();
}

#[test]
fn a_home_behind_a_link_of_another_user_in_a_shared_directory_is_refused() {
    need!("root", "setpriv");
    let home = Home::of_another_user();
    let user = home.user().unwrap();
    // What the kernel itself forbids where fs.protected_symlinks is set.
    let shared = home.beside("shared");
    DirBuilder::new().create(&shared).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o1777)).unwrap();
    let place = home.path().join("place");
    home.write(&place.join("file"), "");
    let link = shared.join("link");
    symlink(&place, &link).unwrap();
    let give = |user| std::os::unix::fs::lchown(&link, Some(user), Some(user)).unwrap();
    let opta = |words: &str| home.opta(words).env("OPTA_HOME", link.join("opta"));
    give(user);
    opta("daemon start").stdout(ANYTHING).run();
    opta("daemon stop").stdout(STOPPED).run();
    give(65_534);
    let outer = home.beside("outer");
    symlink(&link, &outer).unwrap();
    let why = "opta: cannot use {*}shared/link: it leads through a symbolic link of another user\n\
               use the path of a directory of yours\n";
    for words in ["daemon start", "daemon status", "daemon token", "do hi"] {
        opta(words).stderr(why).status(1).run();
        home.opta(words).env("OPTA_HOME", outer.join("opta")).stderr(why).status(1).run();
    }
}

fn world_writable(path: &Path, mode: u32) {
    DirBuilder::new().create(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_file_in_place_of_a_directory_is_named() {
    for name in [".config", ".config/opta"] {
        let home = Home::new();
        if let Some((parent, _)) = name.split_once('/') {
            fs::create_dir(home.path().join(parent)).unwrap();
        }
        File::create(home.path().join(name)).unwrap();
        let before = home.snapshot();
        let seen = home.opta("daemon start").stderr(REFUSED).status(1).run();
        assert!(seen.stderr.contains(&*home.path().join(name).to_string_lossy()), "{seen:?}");
        assert_eq!(home.snapshot(), before);
    }
}

#[test]
fn a_directory_of_another_user_is_refused_with_the_next_step() {
    need!("root", "setpriv");
    let home = Home::of_another_user();
    home.write(&home.config(), "{}");
    let root = home.path().join(".config/opta");
    fs::create_dir(root.join("daemon")).unwrap();
    let expected = "opta: cannot use {home}/.config/opta/daemon: it belongs to another user\n\
                    give it to yourself: sudo chown {uid} '{home}/.config/opta/daemon'\n";
    let start = home.opta("daemon start").stderr(expected).status(1);
    start.with("uid", home.user().unwrap()).run();
}

#[test]
fn root_is_refused_in_the_home_of_a_user() {
    need!("root", "setpriv");
    let home = Home::of_another_user();
    let before = home.snapshot();
    let as_root = Home::new();
    let expected = "opta: cannot use {directory}: it belongs to another user, and this is root\n\
                    run opta as that user (uid {uid}), without sudo\n";
    for words in ["daemon start", "daemon restart", "daemon start --foreground"] {
        let run = as_root.opta(words).env("HOME", home.path()).stderr(expected).status(1);
        run.with("directory", home.path().display()).with("uid", home.user().unwrap()).run();
    }
    as_root.opta("daemon status").env("HOME", home.path()).stdout(NONE).status(3).run();
    assert_eq!(home.snapshot(), before);
}

#[test]
fn damaged_settings_are_refused_with_their_line_and_kept() {
    for (text, place, because) in [
        ("{", ":1:2", "{*}the text ends"),
        ("", ":1:1", "{*}the text ends"),
        ("{\n  \"daemon\": {\n    \"port\": 1,\n  }\n}\n", ":4:3", "{*}"),
        ("{\"daemon\":{\"port\":\"x\"}}", ":1:19", "\"port\" must be a whole number, not a string"),
        ("{\"daemon\":{\"port\":70000}}", ": daemon.port", "{*}from 0 to 65535, not '70000'"),
        ("{\"daemon\":{\"port\":-1}}", ": daemon.port", "{*}from 0 to 65535, not '-1'"),
        ("{\"log\":{\"level\":\"loud\"}}", ": log.level", "{*}not 'loud'"),
        (
            "{\"log\":{\"maxBytes\":4095}}",
            ": log.maxBytes",
            "at least 4096 bytes are needed, not '4095'",
        ),
        ("{\"log\":{\"files\":100}}", ": log.files", "a number from 0 to 99 is needed, not '100'"),
        ("\u{feff}{}", ":1:1", "{*}"),
        ("[1]", ":1:1", "{*}"),
    ] {
        let home = Home::new();
        home.write(&home.config(), text);
        let before = home.snapshot();
        let expected = format!(
            "opta: cannot use the settings: {{home}}/.config/opta/config.json{place}: {because}\n"
        );
        for words in ["daemon start", "daemon restart", "daemon start --foreground"] {
            home.opta(words).stderr(&expected).status(1).run();
        }
        assert_eq!(home.snapshot(), before, "{text}");
        // Commands that only ask do not read them.
        home.opta("daemon status").stdout(NONE).status(3).run();
        home.opta("daemon stop").stdout(NOT_RUNNING).run();
    }
}

#[test]
fn a_restart_with_damaged_settings_keeps_the_running_daemon() {
    let home = Home::new();
    let daemon = home.start();
    home.write(&home.config(), "{");
    home.opta("daemon restart").stderr(REFUSED).status(1).run();
    home.opta("daemon status").stdout(RUNNING).of(daemon).run();
    home.opta("daemon stop").stdout(STOPPED).of(daemon).run();
}

#[test]
fn unknown_settings_are_ignored() {
    let home = Home::new();
    home.write(
        &home.config(),
        r#"{"model":{"name":"x"},"daemon":{"later":true},"log":{"files":0}}"#,
    );
    home.start();
}

#[test]
fn an_invalid_variable_is_named() {
    let home = Home::new();
    for (name, value) in [
        ("OPTA_DAEMON_PORT", "http"),
        ("OPTA_DAEMON_PORT", "65536"),
        ("OPTA_DAEMON_PORT", "-1"),
        ("OPTA_LOG", "loud"),
    ] {
        let expected = format!("opta: cannot use the settings: {name}: {{*}}, not '{value}'\n");
        home.opta("daemon start").env(name, value).stderr(&expected).status(1).run();
    }
    // An empty one counts as unset.
    home.opta("daemon start").env("OPTA_LOG", "").stdout(STARTED).run();
}

#[test]
fn a_read_only_home_is_named() {
    let Some(private) = namespace(&["--mount"]) else { skip!("it needs private mounts") };
    let home = Home::new();
    let script = r#"
        mount -t tmpfs -o ro none "$HOME"
        opta daemon start || echo "status $?"
        opta daemon status || echo "status $?"
        opta daemon stop || echo "status $?"
    "#;
    let output = format!("status 1\n{NONE}status 3\n{NOT_RUNNING}");
    let why = "opta: cannot create {home}/.config/opta: Read-only file system\n";
    home.sh(script).within(private).stdout(&output).stderr(why).run();
}

#[test]
fn a_daemon_in_a_read_only_directory_can_still_be_asked() {
    let Some(private) = namespace(&["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
    else {
        skip!("it needs private mounts");
    };
    let home = Home::new();
    let script = r#"
        opta daemon start >/dev/null
        mount --bind "$HOME" "$HOME"
        mount -o remount,ro,bind "$HOME"
        opta daemon status
        opta daemon start
        test "$(opta daemon token | wc -c)" = 73
    "#;
    home.sh(script).within(private).stdout(&format!("{RUNNING}{ALREADY}")).run();
}

#[test]
fn a_start_on_a_full_disk_fails_and_leaves_nothing() {
    let Some(private) = namespace(&["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
    else {
        skip!("it needs private mounts");
    };
    // One more free page each time: first no file can be written, then one, then two.
    for free in 0..5 {
        let home = Home::new();
        let script = format!(
            r#"
            mount -t tmpfs -o size=128k none "$HOME"
            cat /dev/zero >"$HOME/ballast" 2>/dev/null || true
            truncate -s -$((4096 * {free})) "$HOME/ballast"
            if opta daemon start >/dev/null; then
                opta daemon status
                opta daemon stop
            else
                test "$?" = 1
                opta daemon status || test "$?" = 3
                flock -n "$HOME/.config/opta/daemon/daemon.pid" true
                test ! -e "$HOME/.config/opta/daemon/state.json"
                test ! -e "$HOME/.config/opta/daemon/state.new"
                rm "$HOME/ballast"
                opta daemon start >/dev/null
                opta daemon stop
            fi
            "#
        );
        let seen = home.sh(&script).within(&private).stdout(ANYTHING).stderr(ANYTHING).run();
        let lines: Vec<&str> = seen.stderr.lines().collect();
        match lines.as_slice() {
            [] => assert_ne!(free, 0, "{seen:?}"),
            [why] | [why, _] => {
                assert!(
                    why.starts_with("opta: cannot ") && why.contains("No space left"),
                    "{seen:?}"
                );
            }
            more => panic!("{more:?}"),
        }
    }
}

#[test]
fn a_start_with_few_descriptors_succeeds_or_says_why() {
    need!("prlimit");
    for limit in 4..=16 {
        let home = Home::new();
        let limited = ["prlimit".to_owned(), format!("--nofile={limit}:{limit}")];
        let start = home.opta("daemon start").within(limited);
        let seen = start.stdout(ANYTHING).stderr(ANYTHING).status_in(&[0, 1, 127]).run();
        match seen.status {
            0 => {
                home.opta("daemon status").stdout(RUNNING).run();
                home.opta("daemon stop").stdout(STOPPED).run();
            }
            // The program could not be loaded.
            127 => {}
            _ => {
                assert!(seen.stderr.starts_with("opta: cannot "), "{seen:?}");
                assert!(seen.stderr.contains(TOO_MANY_FILES), "{seen:?}");
                assert!(seen.stderr.lines().count() <= 2, "{seen:?}");
            }
        }
        home.assert_nothing_left();
        home.opta("daemon start").stdout(STARTED).stderr(ANYTHING).run();
    }
}

#[test]
fn a_start_with_few_processes_succeeds_or_says_why() {
    need!("root", "setpriv", "prlimit");
    // The limit counts threads: none, the first of the daemon, its second, all.
    for limit in 1..=6 {
        let home = Home::of_another_user();
        let limited = ["prlimit".to_owned(), format!("--nproc={limit}:{limit}")];
        let start = home.opta("daemon start").within(limited).stdout(ANYTHING).stderr(ANYTHING);
        let seen = start.status_in(&[0, 1]).run();
        if limit == 1 {
            let why = "opta: cannot start a background process: Resource temporarily unavailable\n";
            assert_eq!(seen.stderr, why);
        }
        if seen.status == 1 {
            assert!(seen.stderr.starts_with("opta: cannot "), "{seen:?}");
            assert!(seen.stderr.contains("Resource temporarily unavailable"), "{seen:?}");
        } else {
            home.opta("daemon stop").stdout(STOPPED).run();
        }
        home.assert_nothing_left();
        home.opta("daemon start").stdout(STARTED).stderr(ANYTHING).run();
    }
}

#[test]
fn a_privileged_port_is_refused_to_users() {
    need!("root", "setpriv");
    let Some(mut private) = namespace(&["--net"]) else { skip!("it needs a private network") };
    private.extend(["sh", "-c", r#"ip link set lo up; exec "$0" "$@""#].map(str::to_owned));
    let home = Home::of_another_user();
    let start = home.opta("daemon start --port 1").within(private);
    refused(&home, start, "start the daemon: cannot listen on 127.0.0.1:1: Permission denied");
}
