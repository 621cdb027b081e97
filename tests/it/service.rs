//! `opta daemon install` and `uninstall`, and the daemon as a service: under a private, real
//! systemd, and under a script that imitates launchd.
//!
//! Each test is a shell script and its expected output.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{ANYTHING, Home, NONE, Run, STARTED, copy_opta, namespace, need, skip};

/// The beginning of each script. `try` prints the exit status of a command, and `wait_until` runs
/// one until it succeeds.
const PREAMBLE: &str = r#"
    export PATH="$TOOLS:$BIN:$PATH"
    unit=~/.config/systemd/user/opta-daemon.service
    mkdir -p -m 700 ~/.config/opta
    echo '{"daemon":{"port":0}}' >~/.config/opta/config.json
    try() { "$@" 2>&1 && echo "= 0" || echo "= $?"; }
    wait_until() {
        deadline=$(($(date +%s) + 30))
        until "$@"; do
            [ "$(date +%s)" -lt "$deadline" ] || { echo "still not: $*"; exit 1; }
        done
    }
    owner() { cat ~/.config/opta/daemon/daemon.pid; }
    managed() { opta daemon status --json | sed 's/.*"managedBy":\([^,]*\),.*/\1/'; }
    state() { [ "$(systemctl --user is-active opta-daemon)" = "$1" ]; }
    variable() { tr '\0' '\n' <"/proc/$(owner)/environ" | grep "^$1="; }
"#;

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools")
}

/// Returns a home next to a copy of the program that every user can run.
pub fn machine() -> Home {
    let home = Home::new();
    let bin = home.beside("bin");
    std::fs::create_dir(&bin).unwrap();
    copy_opta(&bin.join("opta"));
    home
}

fn session<'h>(home: &'h Home, tools: &Path, script: &str) -> Run<'h> {
    home.sh(&format!("{PREAMBLE}{script}"))
        .env("TOOLS", tools)
        .env("BIN", home.beside("bin"))
        .unset("OPTA_DAEMON_PORT")
}

/// Runs a script with a private systemd of `user`. No test may use the machine's own.
pub fn under_systemd<'h>(home: &'h Home, user: &str, script: &str) -> Run<'h> {
    let tool = tools().join("with-user-systemd");
    // Without the tools of the tests in PATH: systemctl is the real one.
    let run = session(home, &home.beside("bin"), script);
    run.within([tool.as_os_str(), "--as".as_ref(), user.as_ref()])
}

/// Returns the reason why no private systemd can run here, if any.
pub fn no_systemd() -> Option<String> {
    let output = Command::new(tools().join("with-user-systemd")).arg("true").output().unwrap();
    match output.status.code() {
        Some(77) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        _ => None,
    }
}

/// Root and an unprivileged user.
pub const USERS: [&str; 2] = ["root", "nobody"];

macro_rules! need_systemd {
    () => {
        if let Some(why) = $crate::service::no_systemd() {
            skip!("{why}");
        }
    };
}
pub(crate) use need_systemd;

const INSTALLED: &str = "Installed systemd user service: opta-daemon\n\
                         Run: systemctl --user enable --now opta-daemon\n";
const LINGER: &str =
    "opta: it runs while you are logged in; to keep it running: loginctl enable-linger\n";
const SHORT_LIVED: &str = "opta: the service runs {program}, which may be removed soon\n";

#[test]
fn a_systemd_service_is_installed_run_and_removed() {
    need_systemd!();
    need!("curl");
    for user in USERS {
        let home = machine();
        let script = r#"
            opta daemon install
            systemd-analyze verify --user "$unit"
            try opta daemon status
            systemctl --user enable --now --quiet opta-daemon
            opta daemon status --wait=30
            managed
            systemctl --user show --property=MainPID,StatusText opta-daemon
            curl --silent "http://127.0.0.1:$(opta daemon status --json |
                sed 's/.*"port":\([0-9]*\).*/\1/')/v3/health" | cut -c 1-33
            opta daemon install
            opta daemon uninstall
            find ~ -type f -o -type l | sort
            try opta daemon uninstall
            systemctl --user show --property=LoadState,ActiveState opta-daemon
        "#;
        let expected = format!(
            "{INSTALLED}{NONE}= 3\n\
             ● running  pid={{pid}}  port={{port}}  uptime={{age}}  sessions=0\n\
             \"systemd\"\n\
             MainPID={{pid}}\nStatusText=serving on 127.0.0.1:{{port}}\n\
             {{\"status\":\"ok\",\"version\":\"3.0.0\",\n\
             {INSTALLED}\
             Removed systemd user service: opta-daemon\nDaemon stopped.\n\
             {{place}}/.config/opta/config.json\n\
             {{place}}/.config/opta/daemon/daemon.log\n\
             {{place}}/.config/opta/daemon/daemon.pid\n\
             {{place}}/.config/opta/daemon/start.lock\n\
             No systemd user service is installed.\n= 0\n\
             LoadState=not-found\nActiveState=inactive\n"
        );
        let said = format!(
            "{SHORT_LIVED}{LINGER}{SHORT_LIVED}\
             opta: sessions, settings and logs are kept in ~/.config/opta\n"
        );
        under_systemd(&home, user, script).stdout(&expected).stderr(&said).run();
    }
}

#[test]
fn requests_to_the_daemon_install_and_remove_the_service() {
    need_systemd!();
    need!("curl");
    let home = machine();
    let script = r#"
        opta daemon start
        port=$(opta daemon status --json | sed 's/.*"port":\([0-9]*\).*/\1/')
        perform() {
            curl --silent --fail --json '{}' --oauth2-bearer "$(opta daemon token)" \
                "http://127.0.0.1:$port/v3/operations/daemon.$1"
            echo
        }
        perform install
        systemd-analyze verify --user "$unit"
        # The daemon holds it until its end; the command first removes the service.
        perform uninstall
        try flock ~/.config/opta/daemon/daemon.pid ls "$unit"
        try opta daemon uninstall
        try opta daemon status
    "#;
    let expected = format!(
        r#"{STARTED}{{"ok":true,"id":"daemon.install","safety":"write","result":{{"installed":true,"#
    ) + "{*}}\n{\"ok\":true,\"id\":\"daemon.uninstall\",\"safety\":\"write\",\"result\":\
         {\"started\":\"opta daemon uninstall\",\"pid\":{pid}}}\n\
         {*}No such file or directory\n= 2\n\
         No systemd user service is installed.\n= 0\n"
        + NONE
        + "= 3\n";
    under_systemd(&home, "nobody", script).stdout(&expected).run();
}

#[test]
fn start_stop_and_restart_of_a_service_go_through_systemd() {
    need_systemd!();
    need!("curl");
    for user in USERS {
        let home = machine();
        let script = r#"
            opta daemon install --now 2>&1
            token=$(opta daemon token)
            opta daemon start 2>&1
            opta daemon restart
            [ "$token" != "$(opta daemon token)" ]
            managed
            port=$(opta daemon status --json | sed 's/.*"port":\([0-9]*\).*/\1/')
            curl --silent --output /dev/null --json '{"sessionId":"s"}' \
                --oauth2-bearer "$(opta daemon token)" "http://127.0.0.1:$port/v3/sessions"
            opta daemon stop
            systemctl --user is-active opta-daemon || :
            try opta daemon status
            # A command that needs a daemon starts the service.
            opta sessions rm s --force
            managed
            opta daemon restart --force
            opta daemon stop --force
            opta daemon restart
            opta daemon restart --if-idle
            # More often than StartLimitBurst allows.
            for again in 1 2 3 4 5 6; do opta daemon restart >/dev/null; done
            managed
            opta daemon stop >/dev/null
            opta daemon stop
        "#;
        let restarted = |old: &str, pid: &str| {
            format!(
                "Stopping daemon (pid {{{old}}})...\nDaemon stopped.\n\
                 Daemon started (pid {{{pid}}}, port {{*}})\nToken rotated.\n"
            )
        };
        let started = |pid: &str| {
            format!(
                "Daemon started (pid {{{pid}}}, port {{*}})\n\
                 Token written to ~/.config/opta/daemon/state.json\n"
            )
        };
        let expected = [
            "Installed systemd user service: opta-daemon\nDaemon will start automatically on login.\n",
            SHORT_LIVED,
            LINGER,
            &started("a"),
            "Daemon already running (pid {a}, port {*})\nopta: it is a service, managed by systemd\n",
            &restarted("a", "b"),
            "\"systemd\"\nStopping daemon (pid {b})...\nDaemon stopped.\ninactive\n",
            NONE,
            "= 3\nSession s deleted.\n\"systemd\"\n",
            &restarted("c", "d"),
            "Stopping daemon (pid {d})...\nDaemon stopped.\n",
            "Daemon started (pid {e}, port {*})\nToken rotated.\n",
            &restarted("e", "f"),
            "\"systemd\"\nDaemon is not running.\n",
        ];
        under_systemd(&home, user, script).stdout(&expected.concat()).run();
    }
}

#[test]
fn a_hanging_service_is_stopped_only_by_force() {
    need_systemd!();
    let home = machine();
    // SIGSTOP does not work: systemd sends SIGCONT after each of its signals.
    let script = r#"
        freeze() { echo 1 >"/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$(owner)/cgroup")/cgroup.freeze"; }
        opta daemon install --now >/dev/null 2>&1
        freeze
        try opta daemon stop --timeout 1
        opta daemon stop --force --timeout 1
        systemctl --user is-active opta-daemon || :
        try opta daemon status
        opta daemon start >/dev/null
        freeze
        opta daemon restart --force --timeout 1 | tail -n 1
        managed
    "#;
    let expected = format!(
        "Stopping daemon (pid {{pid}})...\n\
         opta: cannot stop the daemon (pid {{pid}}): still running after 1s\n\
         to end it by force: opta daemon stop --force\n= 1\n\
         Stopping daemon (pid {{pid}})...\nDaemon stopped.\ninactive\n{NONE}= 3\n\
         Token rotated.\n\"systemd\"\n"
    );
    under_systemd(&home, "root", script).stdout(&expected).run();
}

#[test]
fn systemd_restarts_a_crashed_daemon_with_a_new_token() {
    need_systemd!();
    for user in USERS {
        let home = machine();
        let script = r#"
            opta daemon install --now >/dev/null 2>&1
            old=$(owner) token=$(opta daemon token)
            kill -9 "$old"
            opta daemon status --wait=30 --quiet
            [ "$old" != "$(owner)" ]
            [ "$token" != "$(opta daemon token)" ]
            managed
            # A service that waits for its restart is stopped, too.
            mkdir "$unit.d"
            printf '[Service]\nRestartSec=1h\n' >"$unit.d/slow.conf"
            systemctl --user daemon-reload
            kill -9 "$(owner)"
            wait_until state activating
            opta daemon stop
            systemctl --user is-active opta-daemon || :
            try opta daemon status
        "#;
        let expected = format!("\"systemd\"\nDaemon is not running.\ninactive\n{NONE}= 3\n");
        under_systemd(&home, user, script).stdout(&expected).run();
    }
}

#[test]
fn status_reports_that_systemd_gave_up() {
    need_systemd!();
    let home = machine();
    let script = r#"
        opta daemon install >/dev/null 2>&1
        mkdir "$unit.d"
        printf '[Service]\nRestartSec=50ms\n' >"$unit.d/fast.conf"
        systemctl --user daemon-reload
        opta daemon start >/dev/null
        kill_until_failed() {
            pid=$(systemctl --user show --value --property=MainPID opta-daemon)
            [ "$pid" = 0 ] || kill -9 "$pid" 2>/dev/null || :
            systemctl --user --quiet is-failed opta-daemon
        }
        wait_until kill_until_failed
        try opta daemon status
        opta daemon status --json || :
        try opta daemon status --quiet
        opta doctor | grep '  daemon '
        # As if the last daemon had been killed before it wrote a file.
        rm -f ~/.config/opta/daemon/state.json ~/.config/opta/daemon/daemon.pid
        opta daemon status --json | cut -d , -f 1
        opta doctor | grep '  daemon '
        opta daemon start 2>&1
        managed
        opta daemon stop
        try opta daemon status
    "#;
    let gave_up = "systemd gave up on the service after {n} restarts (signal)";
    let expected = format!(
        "{NONE}opta: {gave_up}; see: opta daemon logs\n= 1\n\
         {{\"state\":\"crashed\",\"running\":false,{{*}},\"trouble\":\"{gave_up}\"}}\n= 1\n\
         warn  daemon    crashed{{*}}; only opta daemon start restarts it\n\
         {{\"state\":\"crashed\"\n\
         warn  daemon    crashed; only opta daemon start restarts it\n\
         {{*}}Daemon started (pid {{pid}}, port {{*}})\n\
         Token written to ~/.config/opta/daemon/state.json\n\
         \"systemd\"\nStopping daemon (pid {{pid}})...\nDaemon stopped.\n{NONE}= 3\n"
    );
    under_systemd(&home, "nobody", script).stdout(&expected).run();
}

#[test]
fn a_service_and_a_daemon_started_by_hand_do_not_interfere() {
    need_systemd!();
    for user in USERS {
        let home = machine();
        let script = r#"
            opta daemon start >/dev/null
            echo "pid $(owner)"
            opta daemon install >/dev/null 2>&1
            mkdir "$unit.d"
            printf '[Service]\nStandardError=file:%%h/said\n' >"$unit.d/said.conf"
            systemctl --user daemon-reload
            systemctl --user start opta-daemon 2>/dev/null || echo "not started"
            systemctl --user show --property=ExecMainStatus,NRestarts,ActiveState opta-daemon | sort
            cat ~/said
            managed
            opta daemon install --now 2>&1 | tail -n 2
            opta daemon restart
            managed
            try opta daemon start --foreground
            opta daemon stop >/dev/null
            # The failure was transient: the other daemon is gone.
            opta daemon start --port 0 >/dev/null
            systemctl --user start opta-daemon 2>/dev/null || echo "not started"
            managed
            opta daemon uninstall 2>/dev/null
            try opta daemon status
        "#;
        let expected = format!(
            "pid {{pid}}\nnot started\nActiveState=failed\nExecMainStatus=75\nNRestarts=0\n\
             opta: cannot start the daemon: one is running already (pid {{pid}}, port {{port}})\n\
             null\n\
             Daemon already running (pid {{pid}}, port {{port}})\n\
             opta: it was started by hand; to run it as a service: opta daemon restart\n\
             Stopping daemon (pid {{pid}})...\nDaemon stopped.\n\
             Daemon started (pid {{new}}, port {{*}})\nToken rotated.\n\"systemd\"\n\
             Daemon already running (pid {{new}}, port {{*}})\n\
             opta: it is a service, managed by systemd\n= 0\n\
             not started\nnull\n\
             Removed systemd user service: opta-daemon\nDaemon stopped.\n{NONE}= 3\n"
        );
        under_systemd(&home, user, script).stdout(&expected).run();
    }
}

#[test]
fn a_restart_leaves_the_daemon_alone_if_systemd_rejects_the_unit() {
    need_systemd!();
    let home = machine();
    let script = r#"
        opta daemon install --now 2>/dev/null
        mkdir "$unit.d"
        printf '[Service]\nExecStart=/bin/true\n' >"$unit.d/override.conf"
        systemctl --user daemon-reload
        echo "pid $(owner)"
        try opta daemon restart
        echo "pid $(owner)"
        opta daemon stop >/dev/null
        try opta daemon start
        rm -r "$unit.d"; systemctl --user daemon-reload
        opta daemon start
    "#;
    let refused = "opta: cannot start the daemon: systemd cannot use its service (bad-setting)\n\
                   to see what is wrong: opta doctor\n= 1\n";
    let expected = format!(
        "Installed systemd user service: opta-daemon\n{{*}}\
         pid {{pid}}\n{refused}pid {{pid}}\n{refused}Daemon started{{*}}\n"
    );
    under_systemd(&home, "nobody", script).stdout(&expected).run();
}

#[test]
fn restart_finds_systemd_where_no_variable_names_it() {
    need_systemd!();
    let home = machine();
    // In the private mounts of `under_systemd`.
    let script = r#"
        mkdir -p /run/user
        mount -t tmpfs none /run/user
        mkdir -m 700 /run/user/0
        mount --bind "$XDG_RUNTIME_DIR" /run/user/0
        opta daemon install --now >/dev/null 2>&1
        unset XDG_RUNTIME_DIR
        opta daemon restart >/dev/null
        managed
        # As after su(1).
        mkdir -m 700 /run/user/65534
        chown 65534 /run/user/65534
        XDG_RUNTIME_DIR=/run/user/65534 opta daemon restart >/dev/null
        managed
        umount /run/user/0
        try opta daemon restart
        managed
    "#;
    let expected = "\"systemd\"\n\"systemd\"\n\
         Stopping daemon (pid {pid})...\nDaemon stopped.\n\
         Daemon started (pid {new}, port {port})\nToken rotated.\n\
         opta: the daemon is no longer a service: cannot run systemctl --user {*}; \
         to make it one again, from a login session: opta daemon restart\n= 0\nnull\n";
    under_systemd(&home, "root", script).stdout(expected).run();
}

#[test]
fn install_and_uninstall_complete_even_if_their_output_is_lost() {
    need_systemd!();
    let home = machine();
    let script = r#"
        for form in "" --json; do
            opta daemon install --now $form >/dev/full 2>&1 || echo "= $?"
            opta daemon status --quiet && echo "runs"
            opta daemon uninstall >/dev/null 2>&1
            opta daemon start >/dev/null
            opta daemon install >/dev/null 2>&1
            opta daemon uninstall $form >/dev/full 2>&1 || echo "= $?"
            try opta daemon status
        done
    "#;
    let once = format!("= 1\nruns\n= 1\n{NONE}= 3\n");
    under_systemd(&home, "nobody", script).stdout(&once.repeat(2)).run();
}

#[test]
fn systemd_does_not_restart_a_service_with_invalid_settings() {
    need_systemd!();
    let home = machine();
    let script = r#"
        opta daemon install >/dev/null 2>&1
        echo '{"daemon":{"port":"x"}}' >~/.config/opta/config.json
        systemctl --user start opta-daemon 2>/dev/null || echo "not started"
        systemctl --user show --property=ExecMainStatus,NRestarts opta-daemon | sort
        try opta daemon status
        try opta daemon start --foreground | tail -n 1
    "#;
    let expected = format!(
        "not started\nExecMainStatus=78\nNRestarts=0\n\
         {NONE}opta: the service stopped: its settings are invalid (status 78); see: opta doctor\n= 1\n= 1\n"
    );
    under_systemd(&home, "nobody", script).stdout(&expected).run();
}

#[test]
fn special_characters_in_paths_reach_the_daemon_unchanged() {
    need_systemd!();
    for user in USERS {
        let home = machine();
        let script = r#"
            odd="$HOME/50% öff \$HOME; @x %h"
            mkdir -p "$odd/bin" "$odd/a\"b\\c"
            cp "$BIN/opta" "$odd/bin/o pta%%ü"
            # The service must find the same settings.
            export OPTA_HOME="$odd/a\"b\\c"
            cp ~/.config/opta/config.json "$OPTA_HOME"
            export PATH="$odd/bin:$PATH:relative:"
            "o pta%%ü" daemon install --now >/dev/null 2>&1
            systemd-analyze verify --user "$unit"
            pid=$(cat "$OPTA_HOME/daemon/daemon.pid")
            printf '%s\0' "$odd/bin/o pta%%ü" daemon start --foreground | cmp - "/proc/$pid/cmdline"
            tr '\0' '\n' <"/proc/$pid/environ" >environ
            grep -qxF "OPTA_HOME=$OPTA_HOME" environ
            grep -qxF "PATH=${PATH%:relative:}" environ
            echo "$pid"
            opta daemon status | cut -d ' ' -f 1-4
            # The service does not serve another home.
            unset OPTA_HOME
            opta daemon start >/dev/null
            managed
            opta daemon stop >/dev/null
        "#;
        let script = format!("cd \"$HOME\"{script}");
        let expected = "{pid}\n● running  pid={pid}\nnull\n";
        under_systemd(&home, user, &script).stdout(expected).run();
    }
}

#[test]
fn a_unit_that_systemd_cannot_run_or_find_is_not_installed() {
    need_systemd!();
    let home = machine();
    let script = r#"
        cp "$BIN/opta" "$HOME/o'pta"
        try "$HOME/o'pta" daemon install
        XDG_CONFIG_HOME=$HOME/elsewhere
        export XDG_CONFIG_HOME
        try opta daemon install
        find ~ -name '*.service*'
    "#;
    let expected = "opta: cannot make a service of {program}: systemd runs no program with a quote or a \
                    backslash in its path\n= 1\n\
                    opta: cannot make a service of {unit}: systemd looks for it elsewhere: it has \
                    another XDG_CONFIG_HOME or HOME\n= 1\n";
    under_systemd(&home, "nobody", script).stdout(expected).run();
}

#[test]
fn stop_and_restart_inside_the_service_do_not_wait_for_its_end() {
    need_systemd!();
    let home = machine();
    // Root may move itself into the service's cgroup, in which commands of a turn start.
    let script = r#"
        opta daemon install --now >/dev/null 2>&1
        group=/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$(owner)/cgroup")
        old=$(owner)
        inside() { (sh -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group" "$@") || :; }
        inside opta daemon restart
        replaced() { opta daemon status --wait=30 --quiet && [ "$old" != "$(owner)" ]; }
        wait_until replaced
        managed
        inside opta daemon stop
        wait_until state inactive
        try opta daemon status
    "#;
    let expected = format!(
        "Stopping daemon (pid {{old}})...\n{{*}}\"systemd\"\n\
         Stopping daemon (pid {{new}})...\n{{*}}{NONE}= 3\n"
    );
    under_systemd(&home, "root", script).stdout(&expected).stderr(ANYTHING).run();
}

/// Runs a script with a `systemctl` that is the given shell script.
pub fn with_systemctl<'h>(home: &'h Home, systemctl: &str, script: &str) -> Run<'h> {
    let fake = home.beside("fake");
    std::fs::create_dir(&fake).unwrap();
    let program = fake.join("systemctl");
    home.write(&program, format!("#!/bin/sh\n{systemctl}\n"));
    assert!(Command::new("chmod").arg("755").arg(&program).status().unwrap().success());
    session(home, &fake, script)
}

#[test]
fn without_a_manager_install_explains_and_start_works() {
    let home = machine();
    let systemctl = "echo 'Failed to connect to bus: No medium found' >&2; exit 1";
    let script = r#"
        try opta daemon install
        [ -s "$unit" ]
        stat -c %a "$unit"
        try opta daemon install --now | tail -n 2
        opta daemon start
        managed
        opta daemon restart >/dev/null
        mkdir "${unit%/*}/default.target.wants"
        ln -s "$unit" "${unit%/*}/default.target.wants/"
        try opta daemon uninstall
        find "${unit%/*}" | wc -l
    "#;
    let no_bus = "opta: cannot run systemctl --user show opta-daemon.service: \
                  Failed to connect to bus: No medium found\n";
    let expected = format!(
        "{INSTALLED}{SHORT_LIVED}{no_bus}\
         opta: the service will be loaded at the next login; opta daemon start works already\n\
         {LINGER}= 0\n644\n{no_bus}= 1\n\
         Daemon started (pid {{pid}}, port {{port}})\n\
         Token written to ~/.config/opta/daemon/state.json\nnull\n\
         Removed systemd user service: opta-daemon\nDaemon stopped.\n\
         opta: sessions, settings and logs are kept in ~/.config/opta\n= 0\n1\n"
    );
    with_systemctl(&home, systemctl, script).stdout(&expected).run();
}

#[test]
fn a_failure_of_systemctl_is_reported_and_leaves_no_file() {
    let home = machine();
    let systemctl = r#"
        case $2 in
        show) ;;
        *) echo "Access denied" >&2; echo "by policy" >&2; exit 4 ;;
        esac"#;
    let script = r#"
        try opta daemon install
        find "${unit%/*}" -type f
        try opta daemon install --json
    "#;
    let said = "cannot run systemctl --user daemon-reload: Access denied by policy";
    let expected = format!(
        "opta: {said}\n= 1\n\
         {{\"error\":{{\"code\":\"SERVICE_MANAGER\",\"message\":\"{said}\"}}}}\n= 1\n"
    );
    with_systemctl(&home, systemctl, script).stdout(&expected).run();
}

#[test]
fn files_that_opta_did_not_write_are_left_alone() {
    let home = machine();
    let script = r#"
        mkdir -p "${unit%/*}"
        echo '[Service]' >"$unit"
        try opta daemon install
        try opta daemon uninstall
        cat "$unit"
        opta daemon install --force >/dev/null 2>&1
        head -n 1 "$unit" | cut -c 1-17
        ln -sf /dev/null "$unit"
        try opta daemon install
        opta daemon uninstall --force 2>/dev/null
        find "${unit%/*}" | wc -l
    "#;
    let refused = "opta: cannot change {unit}: opta did not write it\n\
                   to replace or remove it anyway: the same command with --force\n= 1\n";
    let expected = format!(
        "{refused}{refused}[Service]\n# Written by opta\n{refused}\
         Removed systemd user service: opta-daemon\n1\n"
    );
    with_systemctl(&home, "exit 1", script).stdout(&expected).run();
}

/// Runs a script with an imitation of launchctl, under a process 1 that adopts its job.
pub fn under_launchd<'h>(home: &'h Home, script: &str) -> Option<Run<'h>> {
    let alone = namespace(&["--pid", "--fork", "--mount-proc"])?;
    let script = format!(
        r#"
        plist=~/Library/LaunchAgents/com.opta.daemon.plist
        calls() {{ sed "s|gui/$(id -u)|gui/UID|; s|$plist|PLIST|" "$LAUNCHD/calls"; : >"$LAUNCHD/calls"; }}
        {script}
        true"#
    );
    let run = session(home, &tools(), &script).within(alone);
    Some(run.env("OPTA_SERVICE_MANAGER", "launchd").env("LAUNCHD", home.beside("launchd")))
}

macro_rules! need_launchd {
    () => {
        need!("/proc", "private processes", "python3");
    };
}
pub(crate) use need_launchd;

const INSTALLED_AGENT: &str = "Installed launchd service: com.opta.daemon\n\
                               Daemon will start automatically on login.\n";

#[test]
fn a_launchd_agent_is_installed_run_and_removed() {
    need_launchd!();
    let home = machine();
    let script = r#"
        opta daemon install 2>/dev/null
        calls
        stat -c %a "$plist"
        opta daemon status --wait=30
        managed
        echo again; opta daemon install 2>/dev/null
        calls
        echo changed; sed -i s/Interactive/Standard/ "$plist"
        opta daemon install 2>/dev/null
        calls
        opta daemon status --wait=30 --quiet
        echo uninstall; opta daemon uninstall
        # Once more for a daemon that takes a moment to exit.
        calls | uniq
        find ~ -type f | sort
        opta daemon uninstall
        calls
    "#;
    let job = "gui/UID/com.opta.daemon";
    let loaded = format!("enable {job}\nbootstrap gui/UID PLIST\n");
    let expected = format!(
        "{INSTALLED_AGENT}print {job}\n{loaded}644\n\
         ● running  pid={{pid}}  port={{port}}  uptime={{age}}  sessions=0\n\"launchd\"\n\
         again\n{INSTALLED_AGENT}print {job}\n\
         changed\n{INSTALLED_AGENT}print {job}\nbootout {job}\nprint {job}\n{loaded}\
         bootstrap gui/UID PLIST\nbootstrap gui/UID PLIST\n\
         uninstall\nRemoved launchd service: com.opta.daemon\nDaemon stopped.\n\
         print {job}\nbootout {job}\nprint {job}\n\
         {{home}}/.config/opta/config.json\n\
         {{home}}/.config/opta/daemon/daemon.err.log\n\
         {{home}}/.config/opta/daemon/daemon.log\n\
         {{home}}/.config/opta/daemon/daemon.out.log\n\
         {{home}}/.config/opta/daemon/daemon.pid\n\
         {{home}}/.config/opta/daemon/start.lock\n\
         No launchd service is installed.\nprint {job}\n"
    );
    let kept = "opta: sessions, settings and logs are kept in ~/.config/opta\n";
    under_launchd(&home, script).unwrap().stdout(&expected).stderr(kept).run();
}

#[test]
fn start_stop_and_restart_of_an_agent_go_through_launchd() {
    need_launchd!();
    let home = machine();
    let script = r#"
        opta daemon install --now 2>/dev/null
        calls >/dev/null
        echo restart; token=$(opta daemon token)
        opta daemon restart
        [ "$token" != "$(opta daemon token)" ]
        calls
        echo stop; opta daemon stop 2>&1
        calls
        try opta daemon status
        calls
        echo start; opta daemon start
        calls
        managed
        opta daemon restart --if-idle
        managed
    "#;
    let job = "gui/UID/com.opta.daemon";
    let expected = format!(
        "{INSTALLED_AGENT}Daemon started (pid {{a}}, port {{p}})\n\
         Token written to ~/.config/opta/daemon/state.json\n\
         restart\nStopping daemon (pid {{a}})...\nDaemon stopped.\n\
         Daemon started (pid {{b}}, port {{q}})\nToken rotated.\n\
         print {job}\nprint {job}\nprint {job}\nkickstart {job}\n\
         stop\nStopping daemon (pid {{b}})...\nDaemon stopped.\n\
         opta: it starts again at the next login; to prevent that: opta daemon uninstall\n\
         print {job}\nbootout {job}\nprint {job}\n\
         {NONE}= 3\nprint {job}\n\
         start\nDaemon started (pid {{c}}, port {{r}})\n\
         Token written to ~/.config/opta/daemon/state.json\n\
         print {job}\nprint {job}\nenable {job}\nbootstrap gui/UID PLIST\n\
         bootstrap gui/UID PLIST\nbootstrap gui/UID PLIST\nkickstart {job}\n\
         \"launchd\"\nStopping daemon (pid {{c}})...\nDaemon stopped.\n\
         Daemon started (pid {{d}}, port {{s}})\nToken rotated.\n\"launchd\"\n"
    );
    under_launchd(&home, script).unwrap().stdout(&expected).run();
}

#[test]
fn an_agent_waits_idle_while_another_daemon_runs() {
    need_launchd!();
    let home = machine();
    let script = r#"
        opta daemon start >/dev/null
        hand=$(owner)
        echo "pid $hand"
        opta daemon install >/dev/null 2>&1
        errors=~/.config/opta/daemon/daemon.err.log
        wait_until test -s "$errors"
        cat "$errors"
        job=$(cat "$LAUNCHD/pid")
        asleep() { [ "$(sed 's/.*) \(.\).*/\1/' "/proc/$job/stat")" = S ]; }
        wait_until asleep
        # It uses no CPU time while it waits, in user mode or in the kernel.
        ticks() { sed 's/.*) //' "/proc/$job/stat" | cut -d ' ' -f 12,13; }
        before=$(ticks)
        for look in 1 2 3 4 5 6 7 8 9 10; do opta daemon status >/dev/null; done
        [ "$before" = "$(ticks)" ]
        kill "$hand"
        took_over() { [ "$(owner)" = "$job" ]; }
        wait_until took_over
        opta daemon status --wait=30 --quiet
        managed
        opta daemon stop 2>/dev/null | tail -n 1
        try opta daemon status
    "#;
    let expected = format!(
        "pid {{pid}}\n\
         opta: cannot start the daemon: one is running already (pid {{pid}}, port {{port}}); \
         waiting until it exits\n\"launchd\"\nDaemon stopped.\n{NONE}= 3\n"
    );
    under_launchd(&home, script).unwrap().stdout(&expected).run();
}

#[test]
fn an_agent_with_invalid_settings_logs_why_and_exits_with_0() {
    need_launchd!();
    let home = machine();
    let script = r#"
        echo '{"daemon":{"port":"x"}}' >~/.config/opta/config.json
        export XPC_SERVICE_NAME=com.opta.daemon
        try opta daemon start --foreground
        opta daemon logs | cut -d ' ' -f 2-
    "#;
    let expected = "= 0\nERROR daemon cannot start cause=\"cannot use the settings: {*}";
    under_launchd(&home, script).unwrap().stdout(expected).run();
}

#[test]
fn without_a_desktop_session_install_explains_and_start_works() {
    need_launchd!();
    let home = machine();
    let script = r#"
        mkdir "$LAUNCHD"; : >"$LAUNCHD/nodesktop"
        try opta daemon install
        [ -s "$plist" ]
        opta daemon start >/dev/null
        managed
        opta daemon stop
        opta daemon uninstall 2>/dev/null
    "#;
    let expected = format!(
        "{INSTALLED_AGENT}{SHORT_LIVED}\
         opta: cannot run launchctl print gui/{{uid}}/com.opta.daemon: \
         Bootstrap failed: 125: Domain does not support specified action\n\
         opta: the service will be loaded at the next login; opta daemon start works already\n\
         = 0\nnull\nStopping daemon (pid {{pid}})...\nDaemon stopped.\n\
         Removed launchd service: com.opta.daemon\n"
    );
    under_launchd(&home, script).unwrap().stdout(&expected).run();
}

#[test]
fn the_plist_parses_to_the_keys_in_the_manual() {
    need_launchd!();
    let home = machine();
    let script = r#"
        odd="$HOME/a & b <c>"
        mkdir -p "$odd/bin" "$LAUNCHD"
        : >"$LAUNCHD/nodesktop"
        cp "$BIN/opta" "$odd/bin"
        OPTA_HOME="$odd/home" PATH="$odd/bin:$PATH" opta daemon install >/dev/null 2>&1
        head -n 3 "$plist"
        python3 - "$plist" <<'EOF'
import plistlib, sys
with open(sys.argv[1], "rb") as file:
    job = plistlib.load(file)
job["EnvironmentVariables"]["PATH"] = job["EnvironmentVariables"]["PATH"].split(":")[0]
for key in sorted(job):
    print(key, job[key])
EOF
    "#;
    let odd = "{home}/a & b <c>";
    let expected = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\"\n\
         \u{20}\u{20}\"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
         EnvironmentVariables {{'PATH': '{odd}/bin', 'OPTA_HOME': '{odd}/home'}}\n\
         KeepAlive True\n\
         Label com.opta.daemon\n\
         ProcessType Interactive\n\
         ProgramArguments ['{odd}/bin/opta', 'daemon', 'start', '--foreground']\n\
         RunAtLoad True\n\
         StandardErrorPath {odd}/home/daemon/daemon.err.log\n\
         StandardOutPath {odd}/home/daemon/daemon.out.log\n"
    );
    under_launchd(&home, script).unwrap().stdout(&expected).run();
}
