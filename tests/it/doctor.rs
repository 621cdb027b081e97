//! `opta doctor`: what it reports, and that it changes nothing.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::thread;

use crate::model::Model;
use crate::namespaces::{UP, in_another_network, stranger};
use crate::service::{
    USERS, machine, need_launchd, need_systemd, under_launchd, under_systemd, with_systemctl,
};
use crate::support::{ANYTHING, Home, REFUSED, Run, STOPPED, fifo, freeze, need, signal, skip};
use crate::user::in_terminal;

fn doctor<'h>(home: &'h Home, model: &Model, words: &str) -> Run<'h> {
    home.opta(&format!("doctor {words}")).env("OPTA_MODEL_URL", model.url())
}

/// Returns the lines of a doctor that must exit with `status`, each with single spaces.
fn findings(home: &Home, model: &Model, status: i32) -> Vec<String> {
    let seen = doctor(home, model, "").stdout(ANYTHING).status(status).run();
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    seen.stdout.lines().map(line).collect()
}

#[track_caller]
fn assert_found(findings: &[String], beginning: &str, within: &str) {
    let found = findings.iter().find(|line| line.starts_with(beginning));
    let found = found.unwrap_or_else(|| panic!("no '{beginning}': {findings:#?}"));
    assert!(found.contains(within), "{found}");
}

#[test]
fn a_new_machine_passes_and_nothing_is_created() {
    let (home, model) = (Home::new(), Model::new());
    let before = home.snapshot();
    for line in findings(&home, &model, 0) {
        assert!(line.starts_with("pass "), "{line}");
    }
    assert_eq!(home.snapshot(), before);
    home.assert_nothing_left();
}

#[test]
fn a_running_daemon_passes() {
    let (home, model) = (Home::new(), Model::new());
    let daemon = home.start();
    let found = findings(&home, &model, 0);
    assert_found(&found, "pass daemon", &format!("running (pid {})", daemon.pid));
    assert_found(&found, "pass port", &format!("127.0.0.1:{}", daemon.port));
    assert_found(&found, "pass model", &model.url());
}

#[test]
fn json_has_one_line_per_check() {
    let (home, model) = (Home::new(), Model::new());
    let seen = doctor(&home, &model, "--json").stdout(ANYTHING).run();
    for line in seen.stdout.lines() {
        assert!(line.starts_with(r#"{"check":""#) && line.ends_with('}'), "{line}");
        assert!(line.contains(r#""status":"pass""#), "{line}");
    }
}

#[test]
fn problems_are_reported_with_their_fixes() {
    let (home, model) = (Home::new(), Model::new());
    home.write(&home.config(), "{\n  \"daemon\": ,\n}");
    let found = findings(&home, &model, 1);
    assert_found(&found, "fail settings", "config.json:2:");
    home.write(&home.config(), r#"{"permissions":{"shell":"deny","read_files":"deny"}}"#);
    let found = findings(&home, &model, 0);
    assert_found(
        &found,
        "warn settings",
        "config.json has unknown settings: permissions.read_files (",
    );
    fs::remove_file(home.config()).unwrap();

    home.start();
    fs::set_permissions(home.file("daemon.log"), Permissions::from_mode(0o644)).unwrap();
    let found = findings(&home, &model, 1);
    assert_found(&found, "fail files", "daemon.log has mode 0644");
    let fix = found.iter().find_map(|line| line.split_once("fix: ")).unwrap().1;
    home.sh(fix).run();
    assert_found(&findings(&home, &model, 0), "pass files", "");
}

#[test]
fn an_unreachable_model_server_is_reported_with_the_setting() {
    let home = Home::new();
    let nothing = home.opta("doctor").env("OPTA_MODEL_URL", "http://127.0.0.1:1");
    let seen = nothing.stdout(ANYTHING).status(1).run();
    let line = seen.stdout.lines().find(|line| line.starts_with("fail  model")).unwrap();
    assert!(line.contains("127.0.0.1:1") && line.contains("OPTA_MODEL_URL"), "{line}");
}

#[test]
fn a_crashed_daemon_is_a_warning_and_a_hanging_one_a_failure() {
    let (home, model) = (Home::new(), Model::new());
    home.start();
    let pid = home.crash();
    let state = fs::read(home.file("state.json")).unwrap();
    let found = findings(&home, &model, 0);
    assert_found(&found, "warn daemon", &format!("crashed (pid {pid})"));
    assert_eq!(fs::read(home.file("state.json")).unwrap(), state);

    let daemon = Home::new();
    let started = daemon.start();
    freeze(started.pid);
    let found = findings(&daemon, &model, 1);
    assert_found(&found, "fail daemon", "opta daemon restart --force");
    signal(started.pid, "CONT");
}

#[test]
fn a_damaged_session_is_reported_and_its_fix_keeps_a_copy() {
    let (home, model) = (Home::new(), Model::new());
    greet(&home, &model);
    assert_found(&findings(&home, &model, 0), "pass sessions", "1 read");
    let sessions = home.path().join(".config/opta/sessions");
    let folders = fs::read_dir(&sessions).unwrap().map(|entry| entry.unwrap().path());
    let journal = folders.into_iter().find(|path| path.is_dir()).unwrap().join("journal.jsonl");
    let mut bytes = fs::read(&journal).unwrap();
    let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 20;
    let last = bytes.len() - 20;
    for at in [last, second] {
        bytes[at] ^= 1;
        fs::write(&journal, &bytes).unwrap();
        assert_found(&findings(&home, &model, 1), "fail sessions", "opta sessions export sess_");
        bytes[at] ^= 1;
    }
    bytes[second] ^= 1;
    fs::write(&journal, bytes).unwrap();
    let found = findings(&home, &model, 1);
    let fix = found.iter().find_map(|line| line.split_once("fix: ")).unwrap().1;
    // Without --force it asks, on a terminal.
    let fix = fix.replace("sessions rm", "sessions rm --force");
    let journal = fs::read(&journal).unwrap();
    home.sh(&format!("cd \"$HOME\"; {fix}; cat sess_*.json"))
        .stdout("{*}:\"hi\"{*}")
        .stderr("opta: 1 damaged record is omitted; see: opta sessions verify {id}\n")
        .run();
    // The copy keeps what the export leaves out.
    let kept = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().path());
    let kept = kept.into_iter().find(|path| path.extension().is_some_and(|end| end == "damaged"));
    assert_eq!(fs::read(kept.unwrap().join("journal.jsonl")).unwrap(), journal);
    assert_found(&findings(&home, &model, 0), "pass sessions", "no sessions");
}

#[test]
fn a_session_with_an_empty_journal_is_reported() {
    let (home, model) = (Home::new(), Model::new());
    greet(&home, &model);
    home.opta("daemon stop").stdout(STOPPED).run();
    let script = r#"
        : >"$(echo ~/.config/opta/sessions/sess_*/journal.jsonl)"
        found sessions; cd; opta() { case $1 in sessions) set -- "$@" --force ;; esac
            command opta "$@"; }
        mend sessions; found sessions; ls -d sess_*.damaged/summary.json
    "#;
    let expected = "fail sessions 1 of the newest 1 is damaged; fix: cp -Rp {*} && \
                    opta sessions rm {id}\npass sessions no sessions yet\n{kept}.json\n";
    care(&home, &model, script).stdout(expected).run();
}

/// Creates a session with an answer of the model.
fn greet(home: &Home, model: &Model) {
    let running = home.opta("do hello -q").env("OPTA_MODEL_URL", model.url()).stdout("hi\n");
    let running = running.spawn();
    model.question().answer("hi");
    running.finish();
}

/// `found CHECK` prints the line of a check, `amiss` all checks that do not pass, and `mend CHECK`
/// runs the fix of a check.
const CARE: &str = r#"
    found() { opta doctor | tr -s ' ' | grep "^[a-z]* $1 "; }
    amiss() { opta doctor | tr -s ' ' | grep -v ^pass | cut -d ' ' -f 1,2 | paste -s -d , -; }
    mend() { eval "$(found "$1" | sed -n 's/.*fix: //p')" >/dev/null 2>&1; }
    place=~/.config/opta/daemon
"#;

fn care<'h>(home: &'h Home, model: &Model, script: &str) -> Run<'h> {
    home.sh(&format!("{CARE}{script}")).env("OPTA_MODEL_URL", model.url())
}

#[test]
fn modes_that_let_others_in_are_reported_and_fixed() {
    let (home, model) = (Home::new(), Model::new());
    home.start();
    let script = r#"
        cd "$place"
        for file in 777:.. 755:. 644:daemon.pid 666:start.lock; do
            chmod "${file%%:*}" "${file#*:}"
            found files; mend files; found files
        done
    "#;
    let pass = "pass files private to this user\n";
    let fail = |file: &str, mode: &str, fit: &str, path: &str| {
        format!(
            "fail files ~/.config/opta{file} has mode 0{mode}, not 0{fit}; \
             fix: chmod {fit} '{{home}}/.config/opta{path}'\n{pass}"
        )
    };
    let expected = [
        fail("", "777", "755", ""),
        fail("/daemon", "755", "700", "/daemon"),
        fail("/daemon/daemon.pid", "644", "600", "/daemon/daemon.pid"),
        fail("/daemon/start.lock", "666", "600", "/daemon/start.lock"),
    ];
    care(&home, &model, script).stdout(&expected.concat()).run();
}

fn root_of(home: &Home) -> String {
    home.config().parent().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn all_bad_modes_are_reported_and_fixed_at_once() {
    let (home, model) = (Home::new(), Model::new());
    home.start();
    greet(&home, &model);
    let script = r#"
        cd "$place"
        chmod 777 ..; chmod 755 . ../sessions; chmod 644 daemon.pid; chmod 666 start.lock
        found files; mend files; found files
        cd ../sessions/sess_*; chmod 750 .; chmod 604 journal.jsonl
        found sessions; mend sessions; found sessions
    "#;
    let expected = "fail files ~/.config/opta has mode 0777, not 0755, \
        ~/.config/opta/daemon has mode 0755, not 0700, \
        ~/.config/opta/sessions has mode 0755, not 0700, \
        ~/.config/opta/daemon/daemon.pid has mode 0644, not 0600, \
        ~/.config/opta/daemon/start.lock has mode 0666, not 0600; \
        fix: chmod 755 '{root}' && chmod 700 '{root}/daemon' '{root}/sessions' && \
        chmod 600 '{root}/daemon/daemon.pid' '{root}/daemon/start.lock'\n\
        pass files private to this user\n\
        fail sessions ~/.config/opta/sessions/{id} has mode 0750, not 0700, \
        ~/.config/opta/sessions/{id}/journal.jsonl has mode 0604, not 0600; \
        fix: chmod 700 '{root}/sessions/{id}' && chmod 600 '{root}/sessions/{id}/journal.jsonl'\n\
        pass sessions the newest are intact (1 read)\n";
    let root = root_of(&home);
    care(&home, &model, script).stdout(expected).with("root", root).run();
}

#[test]
fn what_is_in_a_directory_of_another_user_is_not_reported_as_well() {
    need!("root");
    let (home, model) = (Home::new(), Model::new());
    home.start();
    let script = r#"
        chown -R 1000 "$place"; mkdir -m 755 ~/.config/opta/sessions
        found files; mend files; found files
    "#;
    let expected = "fail files ~/.config/opta/daemon belongs to another user, \
        ~/.config/opta/sessions has mode 0755, not 0700; \
        fix: chown -R 0 '{root}/daemon' && chmod 700 '{root}/sessions'\n\
        pass files private to this user\n";
    let root = root_of(&home);
    care(&home, &model, script).stdout(expected).with("root", root).run();
}

#[test]
fn unknown_settings_are_named_with_the_nearest_known_one() {
    let (home, model) = (Home::new(), Model::new());
    let text = r#"{"deamon":{"port":1}, "log":{"levle":"debug","files":1}, "maxToolCalls":5,
        "permissions":{"run_comand":"deny"}, "theme":"dark", "environment":[]}"#;
    home.write(&home.config(), text);
    let expected = "warn settings ~/.config/opta/config.json has unknown settings: \
        deamon, log.levle (did you mean log.level?), maxToolCalls (did you mean \
        safety.maxToolCalls?), permissions.run_comand (did you mean permissions.run_command?), \
        theme; fix: ${EDITOR:-{editor}} '{home}/.config/opta/config.json'\n";
    care(&home, &model, "found settings").stdout(expected).run();
}

#[test]
fn settings_that_turns_refuse_fail() {
    let (home, model) = (Home::new(), Model::new());
    for (settings, key) in [
        (r#"{"environment":["A=B"]}"#, "environment"),
        (r#"{"workspaces":{"a":"b"}}"#, "workspaces.a"),
        (r#"{"safety":{"maxToolCalls":0}}"#, "safety.maxToolCalls"),
        (r#"{"model":{"toolChoice":"x"}}"#, "model.toolChoice"),
        (r#"{"log":{"files":-1}}"#, "log.files"),
    ] {
        home.write(&home.config(), settings);
        let expected = format!("fail settings cannot use the settings: {{path}}: {key}: {{*}}");
        care(&home, &model, "found settings").stdout(&expected).run();
    }
}

#[test]
fn allowed_commands_of_a_tool_that_runs_none_are_refused_with_their_key() {
    let (home, model) = (Home::new(), Model::new());
    home.write(&home.config(), r#"{"permissions":{"edit_file":{"allow":["cargo test"]}}}"#);
    let expected = "fail settings cannot use the settings: {path}: permissions.edit_file: \
        a permission is allow, ask or deny; only run_command has commands that are allowed; {*}";
    care(&home, &model, "found settings").stdout(expected).run();
}

#[test]
fn lines_are_wrapped_at_the_width_of_a_terminal_and_not_in_a_pipe() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    home.write(&home.config(), r#"{"a":1,"unknown":2,"settings":3,"are":4,"listed":5}"#);
    let list = "warn  settings  ~/.config/opta/config.json has unknown settings: a, are, listed, \
                settings, unknown; fix: ${EDITOR:-{editor}} '{home}/.config/opta/config.json'\n";
    doctor(&home, &model, "").stdout(&format!("{list}{{*}}")).run();
    let wrapped = "warn  settings  ~/.config/opta/config.json has\r\n                unknown \
                   settings: a, are, listed,\r\n                settings, unknown\r\n\
                   \u{20}               fix: ${EDITOR:-{editor}} '{home}/{*}";
    let window = in_terminal(&home, "stty cols 50; exec opta doctor").env("NO_COLOR", "1");
    window.env("OPTA_MODEL_URL", model.url()).stdout(wrapped).run();
}

#[test]
fn a_fix_names_only_programs_that_are_installed_and_can_work() {
    need!("root", "a private network", "ip");
    let home = Home::new();
    let tools = home.beside("tools");
    home.write(&tools.join("ollama"), "");
    let expected = |fix: &str| format!("fail  model {{*}}; fix: {fix}\n");
    let check = |path: &str, fix: &str| {
        let script = format!("opta=$(command -v opta); PATH={path} $opta doctor | grep model");
        let script = script.replace("$opta", "\"$opta\"");
        let run = home.sh(&script.replace("| grep model", "| /bin/grep model"));
        run.env("tools", &tools).unset("OPTA_MODEL_URL").stdout(&expected(fix)).run();
    };
    let edit = |editor: &str| format!("${{EDITOR:-{editor}}} '{{home}}/.config/opta/config.json'");
    in_another_network(UP, || {
        check("/nowhere", &edit("cat"));
        // It cannot be executed yet.
        check("\"$tools\"", &edit("cat"));
        for program in ["ollama", "nano"] {
            home.write(&tools.join(program), "");
            let mode = Permissions::from_mode(0o755);
            fs::set_permissions(tools.join(program), mode).unwrap();
        }
        check("\"$tools\"", "ollama serve");
        // Its port is taken by another user's server.
        let _received = stranger(11_434);
        check("\"$tools\"", &edit("nano"));
    });
}

#[test]
fn the_service_with_which_a_daemon_ends_is_named() {
    need_systemd!();
    let home = machine();
    let script = r#"
        daemon() { opta doctor | sed -n 's/  daemon    /: /p'; }
        systemd-run --user --quiet --unit=other --setenv=PATH="$PATH" \
            sh -c 'opta daemon start; exec sleep 1000'
        opta daemon status --wait=30 --quiet
        daemon
        opta daemon stop >/dev/null
        opta daemon install --now >/dev/null 2>&1
        daemon
    "#;
    let expected = "warn: running (pid {pid}), but it ends when other.service does; \
                    fix: opta daemon restart\n\
                    pass: running (pid {second}) in opta-daemon.service\n";
    under_systemd(&home, "nobody", script).stdout(expected).run();
}

#[test]
fn a_hard_link_and_a_dangling_symbolic_link_are_reported() {
    let (home, model) = (Home::new(), Model::new());
    home.start();
    let script = r#"
        for file in daemon.log daemon.pid; do
            ln "$place/$file" "$place/second"; found files
            eval "$(found files | sed -n 's/.*fix: //p')" | sort
            rm "$place/second"; found files
        done
        ln -s "$HOME/nowhere" ~/.config/opta/config.json; found settings
    "#;
    let root = "{home}/.config/opta";
    let second = |file: &str| {
        format!(
            "fail files ~/.config/opta/daemon/{file} has a second hard link; \
             fix: find '{root}' -xdev -samefile '{root}/daemon/{file}'\n\
             {root}/daemon/{file}\n{root}/daemon/second\n\
             pass files private to this user\n"
        )
    };
    let link = "warn settings ~/.config/opta/config.json is a link to a file that does not exist; \
                fix: ls -l '{home}/.config/opta/config.json'\n";
    let expected = second("daemon.log") + &second("daemon.pid") + link;
    care(&home, &model, script).stdout(&expected).run();
}

#[test]
fn a_session_that_others_can_read_is_reported_and_fixed() {
    let (home, model) = (Home::new(), Model::new());
    greet(&home, &model);
    let script = r#"
        cd ~/.config/opta/sessions/sess_*
        chmod 755 .; found sessions; mend sessions
        chmod 644 journal.jsonl; found sessions; mend sessions; found sessions
    "#;
    let expected = "fail sessions ~/.config/opta/sessions/{id} has mode 0755, not 0700; {*}\n\
        fail sessions ~/.config/opta/sessions/{id}/journal.jsonl has mode 0644, not 0600; {*}\n\
        pass sessions the newest are intact (1 read)\n";
    care(&home, &model, script).stdout(expected).run();
}

#[test]
fn root_takes_ownership_only_in_its_own_home() {
    need!("root");
    let (home, model) = (Home::new(), Model::new());
    home.start();
    let script = r#"
        chown 1000 "$place/daemon.log"; found files; mend files; found files
        chown -R 1000 ~/.config/opta; found files; mend files; found files
        chown -R 1000 ~; opta=$(command -v opta)
        for tool in sudo setpriv; do
            mkdir ~/../$tool; cp /bin/true ~/../$tool/$tool
            (PATH=~/../$tool "$opta" doctor) | grep ' files '
        done
    "#;
    let pass = "pass files private to this user\n";
    let expected = format!(
        "fail files ~/.config/opta/daemon/daemon.log belongs to another user; \
         fix: chown -R 0 '{{home}}/.config/opta/daemon/daemon.log'\n{pass}\
         fail files ~/.config/opta belongs to another user; \
         fix: chown -R 0 '{{home}}/.config/opta'\n{pass}\
          fail  files     ~/.config/opta belongs to another user; \
         fix: sudo -u '#1000' opta doctor\n\
         fail  files     ~/.config/opta belongs to another user; \
         fix: setpriv --reuid=1000 --clear-groups opta doctor\n"
    );
    care(&home, &model, script).stdout(&expected).run();
    care(&home, &model, "chown -R 0 ~").run();
}

#[test]
fn a_lost_state_file_is_written_again_by_the_same_daemon() {
    let (home, model) = (Home::new(), Model::new());
    let daemon = home.start();
    let script = r#"
        mv "$place/state.json" "$HOME/state"
        amiss; mend daemon; found daemon
        ln -sf "$HOME/state" "$place/state.json"
        amiss; mend files; amiss; mend daemon; found daemon
    "#;
    let runs = format!("pass daemon running (pid {}){{*}}\n", daemon.pid);
    let lost = "fail daemon,warn port\n";
    let expected = format!("{lost}{runs}fail files,warn daemon,warn port\n{lost}{runs}");
    care(&home, &model, script).stdout(&expected).run();
}

#[test]
fn a_hanging_daemon_is_restarted_and_its_port_is_not_reported_as_in_use() {
    let (home, model) = (Home::new(), Model::new());
    let daemon = home.start();
    freeze(daemon.pid);
    let script = "amiss; mend daemon; amiss; found daemon";
    let expected = "fail daemon,warn port\n\npass daemon running (pid {pid}){*}\n";
    care(&home, &model, script).stdout(expected).run();
}

#[test]
fn a_log_that_is_a_pipe_is_not_opened() {
    let (home, model) = (Home::new(), Model::new());
    home.write(&home.file("daemon.pid"), "");
    fifo(&home.file("daemon.log"));
    let script = "amiss; mend files; amiss; rm -f $place/daemon.log";
    care(&home, &model, script).stdout("fail files,warn log\n\n").run();
}

#[test]
fn repeated_crashes_fail_until_the_user_starts_the_daemon() {
    let (home, model) = (Home::new(), Model::new());
    // A crash is counted by the start that finds it: the last one counts the third.
    for _ in 0..4 {
        home.opta("do hi").stdout(ANYTHING).stderr(ANYTHING).status(1).run();
        home.crash();
    }
    let script = r#"
        amiss; found daemon
        mend() { eval "$(found "$1" | sed -n 's/.*fix: //p')" 2>/dev/null; }
        mend log | grep -c 'WARN.*had crashed'; amiss
    "#;
    let expected = "warn daemon,fail log\n\
        warn daemon crashed (pid {pid}); only opta daemon start restarts it\n\
        {count}\n\n";
    care(&home, &model, script).stdout(expected).run();
}

#[test]
fn the_fix_for_an_invalid_variable_unsets_it() {
    let (home, model) = (Home::new(), Model::new());
    let script = r#"
        export OPTA_DAEMON_PORT=x; found settings; mend settings; found settings
        export OPTA_MODEL_URL=ftp://x; found model; mend model
        echo "${OPTA_MODEL_URL-unset}"; export OPTA_MODEL_URL="$refused"
        mkdir -p -m 700 ~/.config/opta
        echo '{"safety":{"maxToolCalls":-1}}' >~/.config/opta/config.json; found settings
    "#;
    let expected = "fail settings cannot use the settings: OPTA_DAEMON_PORT: {*}; \
         fix: unset OPTA_DAEMON_PORT\n\
         pass settings no ~/.config/opta/config.json (optional)\n\
         fail model cannot use OPTA_MODEL_URL: {*}; fix: unset OPTA_MODEL_URL\nunset\n\
         fail settings {*}safety.maxToolCalls{*}";
    care(&home, &model, script).env("refused", REFUSED).stdout(expected).run();
}

#[test]
fn a_required_port_in_use_is_a_failure() {
    let (home, model) = (Home::new(), Model::new());
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let script = format!(
        "export OPTA_DAEMON_PORT={port}; found port; mend port; found port; opta daemon stop"
    );
    let expected = format!(
        "fail port another program{{*}} uses {port}, which OPTA_DAEMON_PORT requires; \
         fix: opta daemon start --port 0\n\
         pass port the daemon answers on 127.0.0.1:{{other}}\n{STOPPED}"
    );
    care(&home, &model, &script).stdout(&expected).run();
}

/// Starts a server that gives this answer to every request; returns its URL.
fn answering(status: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let length = body.len();
    let answer = move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            drop(stream.read(&mut head));
            drop(write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}"));
        }
    };
    drop(thread::Builder::new().name("answer".into()).spawn(answer).unwrap());
    format!("http://127.0.0.1:{port}/v1")
}

#[test]
fn the_model_check_names_the_model_that_turns_would_use() {
    let home = Home::new();
    let list = r#"{"data":[{"id":"nomic-embed-text"},{"id":"qwen3:latest"}]}"#;
    let check = |url: &str, model: &str, expected: &str| {
        let script = "export OPTA_MODEL_URL OPTA_MODEL; found model";
        let run = home.sh(&format!("{CARE}{script}")).env("OPTA_MODEL_URL", url);
        run.env("OPTA_MODEL", model).stdout(&format!("{expected}\n")).run();
    };
    let url = answering("200 OK", list);
    let pass = |model: &str| format!("pass model {model} at {url} (OPTA_MODEL_URL)");
    check(&url, "", &pass("qwen3:latest"));
    check(&url, "qwen3", &pass("qwen3"));
    let missing = format!("warn model {url} (OPTA_MODEL_URL) does not list the model gpt");
    check(&url, "gpt", &missing);
    let silent = answering("404 Not Found", "");
    check(&silent, "", &format!("warn model {silent} (OPTA_MODEL_URL) does not list its models"));
    let none = answering("200 OK", r#"{"data":[]}"#);
    check(
        &none,
        "",
        "fail model {*} has no model that chats: load one, or remove the setting; \
         fix: unset OPTA_MODEL_URL",
    );
    let locked = answering("401 Unauthorized", "");
    check(
        &locked,
        "",
        "fail model {*} requires a key, and none is set (OPTA_API_KEY); \
         fix: read -rs OPTA_API_KEY; export OPTA_API_KEY",
    );
}

/// `service` prints the check of the service, `mend` runs its fix, `home` lists all files.
const SERVICE: &str = r#"
    service() { opta doctor | sed -n 's/  service   /: /p'; }
    mend() { eval "$(service | sed -n 's/.*fix: //p')" >/dev/null 2>&1; }
    home() { find ~ -printf '%p %i %m %s %T@ %C@\n' | sort; }
"#;
const NOT_INSTALLED: &str = "pass: the daemon is not installed as a service\n";

#[test]
fn a_systemd_unit_that_differs_is_reported_and_fixed() {
    need_systemd!();
    for user in USERS {
        let home = machine();
        let script = r#"
            service
            opta daemon install >/dev/null 2>&1
            service
            systemctl --user enable --quiet opta-daemon
            service
            echo edited; echo '# by me' >>"$unit"; service; mend; service
            echo older; sed -i '1s/opta [0-9.]*/opta 0.0.1/; s/RestartSec=2/RestartSec=3/' "$unit"
            service; mend; service
            echo unread; touch -d tomorrow "$unit"; service; mend; service
            echo lost; rm "$unit"; service
        "#;
        let current = "pass: systemd has loaded it, and runs {program} at every login\n";
        let expected = [
            NOT_INSTALLED,
            "pass: systemd has loaded it, and runs {program}; \
             to run it at every login: systemctl --user enable opta-daemon\n",
            current,
            "edited\nwarn: {unit} was written by opta {version} and differs from what opta would write; \
             fix: opta daemon install\n",
            current,
            "older\nwarn: {unit} was written by opta 0.0.1 and differs from what opta would write; \
             fix: opta daemon install\n",
            current,
            "unread\nwarn: systemd has not loaded the current {unit}; \
             fix: opta daemon install\n",
            current,
            "lost\n",
            NOT_INSTALLED,
        ];
        let script = format!("{SERVICE}{script}");
        under_systemd(&home, user, &script).stdout(&expected.concat()).run();
    }
}

#[test]
fn an_equal_unit_of_another_version_passes() {
    need_systemd!();
    let home = machine();
    let script = r#"
        opta daemon install >/dev/null 2>&1
        sed -i '1s/opta [0-9.]*/opta 0.0.1/' "$unit"
        systemctl --user daemon-reload
        # The search path of the unit is not compared with this one.
        PATH="$PATH:/nowhere" service
    "#;
    let expected = "pass: systemd has loaded it, and runs {*}";
    under_systemd(&home, "nobody", &format!("{SERVICE}{script}")).stdout(expected).run();
}

#[test]
fn a_systemd_service_that_cannot_run_fails() {
    need_systemd!();
    let home = machine();
    let script = r#"
        mkdir "$HOME/old bin%"
        cp "$BIN/opta" "$HOME/old bin%"
        "$HOME/old bin%/opta" daemon install >/dev/null 2>&1
        chmod -x "$HOME/old bin%/opta"; service
        rm "$HOME/old bin%/opta"; service
        mend; service
        OPTA_HOME=/nowhere service
        echo refused; mkdir "$unit.d"
        printf '[Service]\nExecStart=/bin/true\n' >"$unit.d/override.conf"
        systemctl --user daemon-reload; service
        rm -r "$unit.d"; systemctl --user daemon-reload; service
        echo failed; echo '{"daemon":{"port":"x"}}' >~/.config/opta/config.json
        systemctl --user start opta-daemon 2>/dev/null || service
        echo '{"daemon":{"port":0}}' >~/.config/opta/config.json
        mend; service
        opta daemon stop >/dev/null
        echo masked; ln -sf /dev/null "$unit"; service; mend; service
    "#;
    let runs = "pass: systemd has loaded it, and runs {program}; \
             to run it at every login: systemctl --user enable opta-daemon\n";
    let expected = [
        "fail: {unit} runs ~/old bin%/opta, which is not executable; \
         fix: opta daemon install\n\
         fail: {unit} runs ~/old bin%/opta, which does not exist; \
         fix: opta daemon install\n",
        runs,
        "warn: {unit} serves another home, ~/.config/opta\n",
        "refused\nfail: systemd cannot use {unit} with its drop-in files (bad-setting); \
         fix: systemctl --user cat opta-daemon\n",
        runs,
        "failed\nfail: the service stopped: its settings are invalid (status 78) ({unit}); \
         fix: opta daemon start\n",
        runs,
        "masked\nwarn: opta did not write {unit}; \
         fix: opta daemon install --force\n",
        runs,
    ];
    let script = format!("{SERVICE}{script}");
    under_systemd(&home, "nobody", &script).stdout(&expected.concat()).run();
}

#[test]
fn the_check_of_a_service_changes_nothing() {
    need_systemd!();
    let home = machine();
    let script = r#"
        told=LoadState,UnitFileState,NeedDaemonReload,ActiveState,MainPID,NRestarts
        seen() { home; systemctl --user show --property=$told opta-daemon; }
        for state in idle active unread; do
            case $state in
            idle) opta daemon install >/dev/null 2>&1 ;;
            unread) touch -d tomorrow "$unit" ;;
            active) opta daemon install --now >/dev/null 2>&1 ;;
            esac
            before=$(seen)
            service | cut -d : -f 1
            [ "$before" = "$(seen)" ]
        done
    "#;
    let expected = "pass\npass\nwarn\n";
    under_systemd(&home, "nobody", &format!("{SERVICE}{script}")).stdout(expected).run();
}

#[test]
fn an_unreachable_manager_is_a_warning() {
    let home = machine();
    let systemctl = "echo 'Failed to connect to bus: No medium found' >&2; exit 1";
    let script = r#"
        service
        opta daemon install >/dev/null 2>&1
        service
    "#;
    let expected = format!(
        "{NOT_INSTALLED}warn: {{unit}} is current; whether it is loaded is unknown: \
         cannot run systemctl --user show opta-daemon.service: \
         Failed to connect to bus: No medium found\n"
    );
    with_systemctl(&home, systemctl, &format!("{SERVICE}{script}")).stdout(&expected).run();
}

#[test]
fn a_launchd_agent_that_differs_is_reported_and_fixed() {
    need_launchd!();
    let home = machine();
    let script = r#"
        service
        opta daemon install >/dev/null 2>&1
        opta daemon status --wait=30 --quiet
        calls >/dev/null
        before=$(home); service; [ "$before" = "$(home)" ]
        calls
        echo edited; sed -i s/Interactive/Standard/ "$plist"; service; mend; service
        echo older; sed -i 's/by opta [0-9.]*/by opta 0.0.1/; s/Interactive/Standard/' "$plist"
        service; mend; service
        echo stopped; opta daemon stop >/dev/null 2>&1; service; mend; service
        mkdir "$HOME/a & b"; cp "$BIN/opta" "$HOME/a & b"
        "$HOME/a & b/opta" daemon install >/dev/null 2>&1
        echo gone; rm "$HOME/a & b/opta"; service; mend; service
        echo elsewhere; OPTA_HOME=/nowhere service
        echo foreign; sed -i '/Written by/d' "$plist"; service; mend; service
        : >"$LAUNCHD/nodesktop"; service
    "#;
    let current = "pass: launchd has loaded it, and runs {program} at every login\n";
    let expected = [
        NOT_INSTALLED,
        current,
        "print gui/UID/com.opta.daemon\n",
        "edited\nwarn: {plist} was written by opta {version} and differs from what opta would write; \
         fix: opta daemon install\n",
        current,
        "older\nwarn: {plist} was written by opta 0.0.1 and differs from what opta would write; \
         fix: opta daemon install\n",
        current,
        "stopped\nwarn: launchd has not loaded {plist}; fix: opta daemon start\n",
        current,
        "gone\nfail: {plist} runs ~/a & b/opta, which does not exist; \
         fix: opta daemon install\n",
        current,
        "elsewhere\n\
         warn: {plist} serves another home, ~/.config/opta\n",
        "foreign\nwarn: opta did not write {plist}; fix: opta daemon install --force\n",
        current,
        "warn: {plist} is current; whether it is loaded is unknown: \
         cannot run launchctl print gui/{*}: \
         Bootstrap failed: 125: Domain does not support specified action\n",
    ];
    let script = format!("{SERVICE}{script}");
    under_launchd(&home, &script).unwrap().stdout(&expected.concat()).run();
}
