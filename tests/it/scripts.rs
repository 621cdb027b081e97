//! Guarantees for scripts, pipes and terminals: the command returns, and the daemon inherits
//! nothing from them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::support::{
    ANYTHING, Daemon, Home, NONE, RUNNING, Running, STARTED, STOPPED, eventually, fifo, has_ended,
    line_of, need, signal,
};
use crate::user::in_terminal;

#[test]
fn a_command_substitution_returns_at_once() {
    let home = Home::new();
    let seen = home.sh(r#"output=$(opta daemon start 2>&1); echo "$output""#).stdout(STARTED).run();
    home.opta("daemon status").stdout(RUNNING).with("pid", seen.pid()).run();
}

#[test]
fn pipes_on_every_descriptor_end_with_the_command() {
    let home = Home::new();
    let script = "( ( opta daemon start ) | cat ) 3>&1 1>&2 2>&3 | cat";
    home.sh(script).stdout(ANYTHING).stderr(ANYTHING).run();
    home.opta("daemon status").stdout(RUNNING).run();
}

#[test]
fn the_daemon_keeps_no_descriptor_of_its_caller() {
    need!("/proc", "bash");
    let home = Home::new();
    let pipe = home.beside("pipe");
    fifo(&pipe);
    let script = r#"exec 3<>"$PIPE"; for n in {4..20}; do eval "exec $n>&3"; done; exec "$0" "$@""#;
    let start = home.opta("daemon start").within(["bash", "-c", script]).env("PIPE", &pipe);
    let seen = start.stdout(STARTED).run();
    let open = |number: &str| fs::read_link(format!("/proc/{}/fd/{number}", seen.pid())).unwrap();
    assert_eq!(open("0"), Path::new("/dev/null"));
    assert_eq!(open("1"), home.file("daemon.log"));
    assert_eq!(open("2"), home.file("daemon.log"));
    let kinds = || {
        let listed = fs::read_dir(format!("/proc/{}/fd", seen.pid())).unwrap();
        let targets = listed.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        let text = targets.map(|target| target.into_os_string().into_string().unwrap());
        let kind = text.map(|text| text.split(":[").next().unwrap().to_owned());
        kind.collect::<BTreeSet<String>>()
    };
    // It closes its own pipe just after it reported there that it is ready.
    eventually("it has no pipe", || !kinds().contains("pipe"));
    let (log, lock) = (home.file("daemon.log"), home.file("daemon.pid"));
    let own = ["/dev/null", log.to_str().unwrap(), lock.to_str().unwrap(), "socket"];
    assert_eq!(kinds(), own.map(str::to_owned).into());
}

#[test]
fn the_daemon_leaves_session_terminal_directory_and_umask_of_its_caller() {
    need!("/proc");
    let home = Home::new();
    let daemon = home.start();
    let of = |pid: i32, field: usize| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let rest = stat.rsplit_once(") ").unwrap().1.to_owned();
        rest.split(' ').nth(field - 3).unwrap().parse::<i32>().unwrap()
    };
    let (session, terminal) = (of(daemon.pid, 6), of(daemon.pid, 7));
    assert_eq!(terminal, 0, "it has no terminal");
    assert_ne!(session, daemon.pid, "and can never get one: it leads no session");
    assert_ne!(session, of(i32::try_from(std::process::id()).unwrap(), 6), "it is not in ours");
    let place = fs::read_link(format!("/proc/{}/cwd", daemon.pid)).unwrap();
    assert_eq!(place, Path::new("/"), "it keeps no file system busy");
    assert_eq!(status_field(daemon.pid, "Umask"), "0077");
}

fn status_field(pid: i32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

#[test]
fn the_signal_masks_of_the_daemon_do_not_depend_on_its_caller() {
    need!("/proc", "env --block-signal");
    let callers = [
        "opta daemon start",
        "nohup opta daemon start",
        "trap '' HUP INT QUIT TERM PIPE CHLD XFSZ; opta daemon start",
        "env --block-signal=TERM,HUP,INT,CHLD,USR1,PIPE opta daemon start",
        "env --ignore-signal=TERM --default-signal=PIPE opta daemon start",
    ];
    for caller in callers {
        let home = Home::new();
        let pid = home.sh(caller).stdout(STARTED).stderr(ANYTHING).run().pid();
        // Only the standard signals: the C library reserves two others.
        let set =
            |name: &str| u64::from_str_radix(&status_field(pid, name), 16).unwrap() & 0x7fff_ffff;
        let bits =
            |signals: &[u32]| signals.iter().map(|signal| 1_u64 << (signal - 1)).sum::<u64>();
        // HUP, INT and TERM are read with sigwait(3); PIPE and XFSZ become errors of a write.
        assert_eq!(set("SigBlk"), bits(&[1, 2, 15]), "{caller}");
        assert_eq!(set("SigIgn"), bits(&[13, 25]), "{caller}");
        home.opta("daemon stop").stdout(STOPPED).with("pid", pid).run();
    }
}

/// A shell in its own terminal, which starts a daemon and then waits in the foreground.
///
/// The keyboard is a pipe: what is written to it is typed.
struct Terminal<'h> {
    home: &'h Home,
    keyboard: File,
    window: Running,
    /// The process in the terminal.
    shell: i32,
    daemon: Daemon,
}

impl<'h> Terminal<'h> {
    fn new(home: &'h Home, before: &str) -> Terminal<'h> {
        let (keys, word) = (home.beside("keyboard"), home.beside("word"));
        fifo(&keys);
        fifo(&word);
        let keyboard = File::options().read(true).write(true).open(&keys).unwrap();
        let inner = format!("{before} opta daemon start; echo $$ >'{}'; exec cat", word.display());
        let script = home.beside("script");
        home.write(&script, inner);
        let command = format!("exec sh '{}'", script.display());
        let window = in_terminal(home, &command).input(&keys).spawn();
        let shell = line_of(&word).parse().unwrap();
        let info = home.daemon_info();
        let daemon = Daemon { pid: info.pid(), port: info.port() };
        Terminal { home, keyboard, window, shell, daemon }
    }

    fn wait_for_shell(&self) {
        eventually("the shell ends", || has_ended(self.shell));
    }

    fn assert_daemon_runs(&self) {
        self.home.opta("daemon status").stdout(RUNNING).of(self.daemon).run();
    }
}

#[test]
fn ctrl_c_and_ctrl_backslash_do_not_reach_the_daemon() {
    need!("/proc", "script");
    for key in [b"\x03", b"\x1c"] {
        let home = Home::new();
        let mut terminal = Terminal::new(&home, "");
        terminal.keyboard.write_all(key).unwrap();
        terminal.wait_for_shell();
        terminal.assert_daemon_runs();
    }
}

#[test]
fn a_closed_terminal_does_not_end_the_daemon() {
    need!("/proc", "script");
    for before in ["", "nohup"] {
        let home = Home::new();
        let terminal = Terminal::new(&home, before);
        signal(terminal.window.pid(), "KILL");
        terminal.wait_for_shell();
        terminal.assert_daemon_runs();
        home.opta("daemon stop").stdout(STOPPED).of(terminal.daemon).run();
    }
}

#[test]
fn a_daemon_in_the_foreground_ends_with_its_terminal() {
    need!("/proc", "script");
    let keys: [Option<&[u8]>; 2] = [None, Some(b"\x03")];
    for key in keys {
        let home = Home::new();
        let keyboard = home.beside("keyboard");
        fifo(&keyboard);
        let mut typed = File::options().read(true).write(true).open(&keyboard).unwrap();
        let window = in_terminal(&home, "exec opta daemon start --foreground");
        let window = window.input(&keyboard).spawn();
        home.opta("daemon status --wait=60 -q").run();
        match key {
            Some(key) => typed.write_all(key).unwrap(),
            None => signal(window.pid(), "KILL"),
        }
        home.wait_for_end();
        home.opta("daemon status").stdout(NONE).status(3).run();
    }
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let home = Home::new();
    home.start();
    fifo(&home.beside("closed"));
    for command in
        ["daemon status", "--help", "daemon token", "daemon status --json", "daemon start"]
    {
        // It is called only after its reader closed the other end.
        let script = format!(
            r#"{{ read -r word <closed; opta {command}; echo "status $?" >&2; }} |
               {{ exec <&-; echo closed >closed; }}"#
        );
        home.sh(&script).stderr("status 0\n").run();
    }
}

#[test]
fn output_to_a_full_disk_is_an_error() {
    let full = Path::new("/dev/full");
    if !full.exists() {
        crate::support::skip!("it needs /dev/full");
    }
    let home = Home::new();
    home.start();
    let error = "opta: cannot write to standard output: No space left on device\n";
    for words in ["daemon status", "daemon status --json", "daemon token", "daemon start", "--help"]
    {
        home.opta(words).output(full).stderr(error).status(1).run();
    }
    home.opta("daemon status -q").output(full).run();
    home.opta("daemon status").stdout(RUNNING).run();
}

#[test]
fn commands_work_with_closed_standard_streams() {
    need!("/proc");
    for closed in ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"] {
        let home = Home::new();
        home.sh(&format!("opta daemon start {closed}")).stdout(ANYTHING).run();
        let seen = home.opta("daemon status").stdout(RUNNING).run();
        let open = |number| fs::read_link(format!("/proc/{}/fd/{number}", seen.pid())).unwrap();
        assert_eq!(open(0), Path::new("/dev/null"), "{closed}");
        assert_eq!(open(1), home.file("daemon.log"), "{closed}");
        assert_eq!(open(2), home.file("daemon.log"), "{closed}");
    }
}

#[test]
fn read_only_commands_change_nothing() {
    let home = Home::new();
    let ask = |status: i32| {
        let before = home.snapshot();
        for words in ["daemon status", "daemon status --json", "daemon status -q", "daemon token"] {
            let expected = if words == "daemon token" && status == 1 { 3 } else { status };
            let run = home.opta(words).stdout(ANYTHING).stderr(ANYTHING);
            run.status(expected).run();
        }
        for _ in 0..20 {
            home.opta("daemon status -q").status(status).run();
        }
        assert_eq!(home.snapshot(), before, "status {status}");
    };
    ask(3);
    home.start();
    // Once the daemon has answered, it writes no more to its log.
    home.opta("daemon status -q").run();
    ask(0);
    home.crash();
    ask(1);
    home.opta("daemon stop").stdout(ANYTHING).run();
    ask(3);
}

#[test]
fn output_is_colored_only_on_a_terminal() {
    need!("script");
    let home = Home::new();
    home.start();
    assert!(!home.opta("daemon status").stdout(RUNNING).run().stdout.contains('\x1b'));
    let on_terminal = |environment: &[(&str, &str)]| {
        let mut run = home.sh(r#"exec script -qec "opta daemon status" /dev/null"#);
        for (name, value) in environment {
            run = run.env(name, value);
        }
        let run = run.env("SHELL", "/bin/sh").stdout(ANYTHING).stderr(ANYTHING);
        run.run().stdout
    };
    let colored = on_terminal(&[("TERM", "xterm")]);
    assert!(colored.starts_with("\x1b[32m●\x1b[0m running  pid="), "{colored:?}");
    for plain in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let text = on_terminal(&[plain]);
        assert!(text.starts_with("● running"), "{plain:?}: {text:?}");
    }
}

#[test]
fn proxy_and_locale_variables_are_ignored() {
    let home = Home::new();
    let proxies = ["http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let mut start = home.opta("daemon start").stdout(STARTED).env("LANG", "nonsense");
    for name in proxies {
        start = start.env(name, "http://127.0.0.1:1");
    }
    start.run();
    let mut status = home.opta("daemon status").stdout(RUNNING).env("LC_ALL", "nonsense");
    for name in proxies {
        status = status.env(name, "http://127.0.0.1:1");
    }
    status.run();
}
