//! Files and commands as a model uses them, through `opta do`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::model::Model;
use crate::support::{
    ANYTHING, Home, eventually, fifo, has_ended, line_of, mode, namespace, need, proc_number,
    signal, skip,
};

/// A directory that tasks work in.
struct Workspace {
    home: Home,
    model: Model,
}

impl Workspace {
    fn new() -> Workspace {
        let workspace = Workspace { home: Home::new(), model: Model::new() };
        fs::create_dir(workspace.path("")).unwrap();
        workspace
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.beside("work").join(name)
    }

    /// Runs a task in which the model makes these calls one after another, with JSON arguments.
    /// Returns the results as JSON strings without quotes. `before` is a part of the shell's
    /// command.
    fn run(&self, before: &str, calls: &[(&str, &str)]) -> Vec<String> {
        let script = format!("cd work; {before} opta do --yolo x");
        let running = self.home.sh(&script).env("OPTA_MODEL_URL", self.model.url());
        let running = running.stdout("done\n").stderr(ANYTHING).spawn();
        let mut results = Vec::new();
        for (name, arguments) in calls {
            let question = self.model.question();
            results.extend(result(&question.body));
            question.call(name, &arguments.replace('\\', r"\\").replace('"', "\\\""));
        }
        let question = self.model.question();
        results.extend(result(&question.body));
        question.answer("done");
        running.finish();
        results
    }

    /// Runs one command.
    fn command(&self, before: &str, command: &str) -> String {
        let arguments = format!(r#"{{"command":"{command}"}}"#);
        self.run(before, &[("run_command", &arguments)]).remove(0)
    }
}

/// Returns the last result in a request.
fn result(body: &str) -> Option<String> {
    let (_, last) = body.rsplit_once(r#""role":"tool""#)?;
    let (_, content) = last.split_once(r#""content":""#)?;
    let mut escaped = false;
    let end = content.find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    Some(content[..end?].to_owned())
}

#[test]
fn a_command_cannot_wait_for_an_editor_a_pager_or_a_terminal() {
    need!("git", "script");
    let workspace = Workspace::new();
    let setup = "git init -q . && git config user.email a@b && git config user.name n && \
                 git config core.editor 'sleep 600;' && touch a && git add a";
    let committed = workspace.command("", &format!("{setup} && git commit"));
    assert!(committed.contains("empty commit message"), "{committed}");
    // Neither does it get the terminal of a daemon in the foreground.
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
    let window =
        workspace.home.sh("exec script -qec 'exec opta daemon start --foreground' /dev/null");
    let window = window.env("SHELL", "/bin/sh").stdout(ANYTHING).stderr(ANYTHING).spawn();
    eventually("the daemon serves", || workspace.home.file("state.json").exists());
    let asked = workspace.command("", "read -r answer </dev/tty; echo rc=$?");
    assert!(asked.contains("/dev/tty") && !asked.contains("rc=0"), "{asked}");
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
    window.finish();
}

#[test]
fn a_call_is_shown_however_deeply_its_arguments_are_nested() {
    let workspace = Workspace::new();
    for depth in 28..34 {
        let arguments = format!("{{\"path\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        let running = workspace.home.sh("cd work; opta do x").stdout("done\n");
        let running = running.env("OPTA_MODEL_URL", workspace.model.url());
        let running = running.stderr(&format!("> read_file {arguments}\n")).spawn();
        workspace.model.question().call("read_file", &arguments.replace('"', "\\\""));
        let question = workspace.model.question();
        assert!(question.body.contains(r#""tool_calls":[{"#), "{}", question.body);
        question.answer("done");
        running.finish();
        // The next turn reads the call from the journal.
        let id = workspace.home.opta("sessions list --json").stdout(ANYTHING).run().stdout;
        let id = id.split('"').nth(3).unwrap().to_owned();
        let resumed = workspace.home.opta(&format!("do --resume {id} y")).stdout("done\n");
        let resumed = resumed.env("OPTA_MODEL_URL", workspace.model.url()).spawn();
        let question = workspace.model.question();
        assert!(question.body.contains(r#""tool_calls":[{"#), "{depth}: {}", question.body);
        question.answer("done");
        resumed.finish();
    }
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
}

#[test]
fn commands_have_the_umask_of_the_caller() {
    let workspace = Workspace::new();
    for (mask, shown) in [("077", "0077"), ("002", "0002")] {
        let result = workspace.command(&format!("umask {mask};"), "umask");
        assert_eq!(result, format!(r"{shown}\n[exit code: 0]"));
    }
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
}

#[test]
fn a_command_may_have_a_timeout_by_its_other_name() {
    let workspace = Workspace::new();
    let arguments = r#"{"command":"sleep 600","timeout":100}"#;
    let results = workspace.run("", &[("run_command", arguments)]);
    assert!(results[0].contains("[ended after 100 ms: out of time]"), "{results:?}");
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
}

#[test]
fn processes_end_with_a_daemon_that_is_killed_after_the_leader_of_their_group() {
    need!("/proc");
    let workspace = Workspace::new();
    fifo(&workspace.path("pipe"));
    let running = workspace.home.sh("cd work; opta do --yolo x").status(1);
    let running = running.env("OPTA_MODEL_URL", workspace.model.url());
    let running = running.stdout(ANYTHING).stderr(ANYTHING).spawn();
    let sleeper = "for one in 1 2 3 4 5 6 7 8 9 10; do sleep 60; done";
    let command = format!("sh -c '{sleeper}' & echo $! > pipe; wait");
    let arguments = format!(r#"{{\"command\":\"{command}\"}}"#);
    workspace.model.question().call("run_command", &arguments);
    let child: i32 = line_of(&workspace.path("pipe")).parse().unwrap();
    let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let leader: i32 = fields.split(' ').nth(2).unwrap().parse().unwrap();
    signal(leader, "KILL");
    eventually("the group ends with its leader", || has_ended(child));
    let question = workspace.model.question();
    let ended = result(&question.body).unwrap();
    assert!(ended.contains("the process that guards the command was killed"), "{ended}");
    // The client starts another daemon at once, so it is not the lock that shows the end.
    let daemon = workspace.home.owner().unwrap();
    signal(daemon, "KILL");
    eventually("the daemon ends", || has_ended(daemon));
    drop(question);
    running.finish();
    assert!(has_ended(child));
}

/// Returns the owner, the mode, and the number of names of a file.
fn attributes(path: &Path) -> (u32, u32, u64) {
    let found = fs::metadata(path).unwrap();
    (found.uid(), found.mode() & 0o7777, found.nlink())
}

const EDIT: &str = r#"{"path":"a","old_text":"one","new_text":"two"}"#;

#[test]
fn new_files_have_the_umask_of_the_caller() {
    let workspace = Workspace::new();
    for (mask, file, directory) in [("077", 0o600, 0o700), ("002", 0o664, 0o775)] {
        let arguments = format!(r#"{{"path":"{mask}/a","content":"x"}}"#);
        workspace.run(&format!("umask {mask};"), &[("write_file", &arguments)]);
        assert_eq!(mode(&workspace.path(mask).join("a")), file, "{mask}");
        assert_eq!(mode(&workspace.path(mask)), directory, "{mask}");
    }
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
}

#[test]
fn an_edit_keeps_owner_mode_and_other_names() {
    need!("root");
    let workspace = Workspace::new();
    let (file, other) = (workspace.path("a"), workspace.path("b"));
    let content = || fs::read_to_string(&file).unwrap();
    fs::write(&file, "one\n").unwrap();
    std::os::unix::fs::chown(&file, Some(1000), Some(1001)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    workspace.run("", &[("edit_file", EDIT)]);
    assert_eq!((content().as_str(), attributes(&file)), ("two\n", (1000, 0o640, 1)));
    assert_eq!(fs::metadata(&file).unwrap().gid(), 1001);
    fs::write(&file, "one or more\n").unwrap();
    fs::hard_link(&file, &other).unwrap();
    workspace.run("", &[("edit_file", EDIT)]);
    assert_eq!((content().as_str(), attributes(&file)), ("two or more\n", (1000, 0o640, 2)));
    assert_eq!(fs::read_to_string(&other).unwrap(), "two or more\n");
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
}

#[test]
fn a_file_of_another_user_is_written_in_place() {
    need!("root", "setpriv");
    let home = Home::of_another_user();
    let model = Model::new();
    let user = home.user().unwrap();
    let work = home.path().join("work");
    home.write(&work.join("a"), "one, two, three\n");
    std::os::unix::fs::chown(work.join("a"), Some(0), Some(user)).unwrap();
    fs::set_permissions(work.join("a"), fs::Permissions::from_mode(0o660)).unwrap();
    let running = home.sh("cd home/work; opta do --yolo x").env("OPTA_MODEL_URL", model.url());
    let running = running.stdout("done\n").stderr(ANYTHING).spawn();
    model.question().call("edit_file", &EDIT.replace("one", "one, two").replace('"', "\\\""));
    let question = model.question();
    assert_eq!(result(&question.body).unwrap(), "a was edited at line 1");
    question.answer("done");
    running.finish();
    assert_eq!(fs::read_to_string(work.join("a")).unwrap(), "two, three\n");
    assert_eq!(attributes(&work.join("a")), (0, 0o660, 1));
    home.opta("daemon stop").stdout(ANYTHING).run();
}

#[test]
fn a_file_that_something_is_mounted_on_is_written_in_place() {
    need!("private mounts");
    let workspace = Workspace::new();
    fs::write(workspace.path("a"), "").unwrap();
    fs::write(workspace.home.beside("mounted"), "one\n").unwrap();
    let script = "mount --bind mounted work/a; cd work; opta do --yolo x; opta daemon stop";
    let running = workspace.home.sh(script).within(namespace(&["--mount"]).unwrap());
    let running = running.env("OPTA_MODEL_URL", workspace.model.url());
    let running = running.stdout(ANYTHING).stderr(ANYTHING).spawn();
    workspace.model.question().call("edit_file", &EDIT.replace('"', "\\\""));
    let question = workspace.model.question();
    assert_eq!(result(&question.body).unwrap(), "a was edited at line 1");
    question.answer("done");
    running.finish();
    assert_eq!(fs::read_to_string(workspace.home.beside("mounted")).unwrap(), "two\n");
}

#[test]
fn a_refused_write_leaves_nothing_behind() {
    let workspace = Workspace::new();
    let long = "x".repeat(300);
    for path in ["made/../../x", "made/../x", &format!("made/deep/{long}"), "made/x/"] {
        let arguments = format!(r#"{{"path":"{path}","content":"x"}}"#);
        let refused = workspace.run("", &[("write_file", &arguments)]).remove(0);
        assert!(refused.starts_with("error: "), "{path}: {refused}");
        assert_eq!(fs::read_dir(workspace.path("")).unwrap().count(), 0, "{path}");
    }
    assert!(!workspace.home.beside("x").exists());
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
}

#[test]
fn no_directory_of_opta_is_read_or_written() {
    let workspace = Workspace::new();
    // The daemon of the usual directory, and in the workspace one of another directory.
    workspace.home.start();
    let stray = workspace.path("stray");
    workspace.home.opta("daemon start").env("OPTA_HOME", &stray).stdout(ANYTHING).run();
    let other = workspace.home.beside("other");
    let secret = fs::read_to_string(stray.join("daemon/state.json")).unwrap();
    let secret = secret.split("\"token\":\"").nth(1).unwrap()[..20].to_owned();
    std::os::unix::fs::symlink("../home", workspace.path("home")).unwrap();
    std::os::unix::fs::symlink("stray/daemon/state.json", workspace.path("link")).unwrap();
    // Of a daemon that was stopped, the sessions are still there.
    workspace.home.opta("daemon stop").env("OPTA_HOME", &stray).stdout(ANYTHING).run();
    home_write(&workspace, "stray/sessions/x", &secret);
    home_write(&workspace, "stray/daemon/state.json", &secret);
    let run = |name: &str, arguments: &str| {
        let running = workspace.home.sh("cd work; opta do --auto x").env("OPTA_HOME", &other);
        let running = running.env("OPTA_MODEL_URL", workspace.model.url());
        let running = running.stdout(ANYTHING).stderr(ANYTHING).spawn();
        workspace.model.question().call(name, &arguments.replace('"', "\\\""));
        let question = workspace.model.question();
        let result = result(&question.body).unwrap();
        question.answer("done");
        running.finish();
        result
    };
    for path in ["stray/daemon/state.json", "link", "stray/sessions/x", "stray/config.json"] {
        let read = run("read_file", &format!(r#"{{"path":"{path}"}}"#));
        assert!(read.starts_with("error: "), "{path}: {read}");
        let written = run("write_file", &format!(r#"{{"path":"{path}","content":"x"}}"#));
        assert!(written.contains("it belongs to opta itself"), "{path}: {written}");
    }
    let found = run("search_files", &format!(r#"{{"pattern":"{secret}"}}"#));
    assert_eq!(found, "[no line matches]");
    let listed = run("list_dir", r#"{"path":".","recursive":true}"#);
    assert!(!listed.contains("state.json"), "{listed}");
    assert!(!run("list_dir", r#"{"path":"stray/daemon"}"#).contains("daemon.pid"));
    workspace.home.opta("daemon stop").env("OPTA_HOME", &other).stdout(ANYTHING).run();
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
}

fn home_write(workspace: &Workspace, name: &str, text: &str) {
    let path = workspace.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("{text}\n")).unwrap();
}

#[test]
fn the_usual_directory_is_protected_from_a_daemon_of_another_one() {
    let home = Home::new();
    let model = Model::new();
    home.start();
    let other = home.beside("other");
    let run = |name: &str, arguments: &str| {
        let running = home.sh("cd home; opta do --auto x").env("OPTA_HOME", &other);
        let running = running.env("OPTA_MODEL_URL", model.url()).stdout("done\n");
        let running = running.stderr(ANYTHING).spawn();
        model.question().call(name, &arguments.replace('"', "\\\""));
        let question = model.question();
        let result = result(&question.body).unwrap();
        question.answer("done");
        running.finish();
        result
    };
    let state = r#"{"path":".config/opta/daemon/state.json"}"#;
    assert!(run("read_file", state).contains("it belongs to opta itself"));
    let settings = r#"{"path":".config/opta/config.json","content":"{}"}"#;
    assert!(run("write_file", settings).contains("it belongs to opta itself"));
    assert_eq!(run("search_files", r#"{"pattern":"token"}"#), "[no line matches]");
    home.opta("daemon stop").env("OPTA_HOME", &other).stdout(ANYTHING).run();
    home.opta("daemon stop").stdout(ANYTHING).run();
}

#[test]
fn settings_are_protected_by_what_is_opened_and_not_by_its_name() {
    let workspace = Workspace::new();
    home_write(&workspace, "dots/config.json", "{}");
    let config = workspace.home.config();
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(workspace.path("dots/config.json"), &config).unwrap();
    // As on a file system that does not distinguish upper case: one file, whatever its name.
    fs::hard_link(workspace.path("dots/config.json"), workspace.path("dots/CONFIG.JSON")).unwrap();
    for path in ["dots/CONFIG.JSON", "dots/config.json"] {
        let read = format!(r#"{{"path":"{path}"}}"#);
        let write = format!(r#"{{"path":"{path}","content":"{{\"permissions\":{{}}}}"}}"#);
        let results = workspace.run("", &[("read_file", &read), ("write_file", &write)]);
        for result in results {
            assert!(result.contains("it belongs to opta itself"), "{path}: {result}");
        }
    }
    assert_eq!(fs::read_to_string(workspace.path("dots/config.json")).unwrap(), "{}\n");
    // Nor is the file created under such a name.
    fs::remove_file(workspace.path("dots/CONFIG.JSON")).unwrap();
    fs::remove_file(workspace.path("dots/config.json")).unwrap();
    let write = r#"{"path":"dots/Config.json","content":"{}"}"#;
    let result = workspace.run("", &[("write_file", write)]).remove(0);
    assert!(result.contains("it belongs to opta itself"), "{result}");
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
}

#[test]
fn nothing_of_the_kernel_is_read_and_no_device_is_opened() {
    need!("root", "/proc");
    let workspace = Workspace::new();
    // No driver has this number: opening it fails in another way than not opening it.
    let mut mknod = Command::new("mknod");
    mknod.arg(workspace.path("device")).args(["c", "240", "77"]);
    if !mknod.status().is_ok_and(|status| status.success()) {
        skip!("devices cannot be created here");
    }
    let device = r#"{"path":"device"}"#;
    let write = r#"{"path":"device","content":"x"}"#;
    let results = workspace.run("", &[("read_file", device), ("write_file", write)]);
    assert_eq!(results, ["error: device is not a regular file"; 2]);
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
    let calls = [
        ("read_file", r#"{"path":"proc/self/environ"}"#),
        ("read_file", r#"{"path":"/proc/self/status"}"#),
        ("search_files", r#"{"pattern":"HOME","path":"proc/self/environ"}"#),
        ("search_files", r#"{"pattern":"HOME","path":"proc/self"}"#),
        ("list_dir", r#"{"path":"sys/kernel"}"#),
        ("write_file", r#"{"path":"proc/sys/kernel/hostname","content":"x"}"#),
        ("write_file", r#"{"path":"proc/sys/kernel/new","content":"x"}"#),
    ];
    let results = workspace.run("cd /;", &calls);
    for ((name, arguments), result) in calls.iter().zip(&results) {
        assert!(result.contains("the kernel's state"), "{name} {arguments}: {result}");
    }
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
}

#[test]
fn commands_get_the_variables_that_the_settings_name() {
    let workspace = Workspace::new();
    workspace.home.write(&workspace.home.config(), r#"{"environment":["MINE","OPTA_API_KEY"]}"#);
    let variables = "MINE=a OTHER=b OPTA_API_KEY=c SSH_AUTH_SOCK=/d";
    let seen = workspace.command(variables, "echo $MINE,$OTHER,$OPTA_API_KEY,$SSH_AUTH_SOCK");
    assert_eq!(seen, r"a,,,/d\n[exit code: 0]");
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
    workspace.home.write(&workspace.home.config(), r#"{"environment":["A=B"]}"#);
    let refused = "opta: cannot use the settings: {*}: environment: it is a list of names of \
                   variables, not 'A=B'\n";
    workspace.home.opta("do x").stderr(refused).status(1).run();
}

#[test]
fn commands_are_allowed_by_their_first_words() {
    let workspace = Workspace::new();
    let settings = r#"{"permissions":{"run_command":{"allow":["echo one","touch"]}}}"#;
    workspace.home.write(&workspace.home.config(), settings);
    let running = workspace.home.sh("cd work; opta do x").stdout("done\n").stderr(ANYTHING);
    let running = running.env("OPTA_MODEL_URL", workspace.model.url()).spawn();
    for (command, result_of_it) in [
        ("echo one two", r"one two\n[exit code: 0]"),
        ("echo two", "error: permission denied: "),
        ("echo one; touch made", "error: permission denied: "),
        ("echo one > made", "error: permission denied: "),
    ] {
        let question = workspace.model.question();
        question.call("run_command", &format!(r#"{{\"command\":\"{command}\"}}"#));
        let question = workspace.model.question();
        let found = result(&question.body).unwrap();
        assert!(found.starts_with(result_of_it), "{command}: {found}");
        question.call("list_dir", "{}");
    }
    workspace.model.question().answer("done");
    running.finish();
    assert!(!workspace.path("made").exists());
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
}

#[test]
fn instructions_and_the_state_of_the_repository_are_in_the_prompt() {
    let workspace = Workspace::new();
    home_write(&workspace, ".git/HEAD", "ref: refs/heads/topic");
    home_write(&workspace, "AGENTS.md", "Say it in verse.");
    home_write(&workspace, "deep/er/CLAUDE.md", "Be brief.");
    workspace.home.write(&workspace.home.config().with_file_name("AGENTS.md"), "Use SI units.");
    let running = workspace.home.sh("cd work/deep/er; opta do x").stdout("done\n");
    let named = "opta: following {*}/.config/opta/AGENTS.md, AGENTS.md, deep/er/CLAUDE.md\n";
    let running = running.env("OPTA_MODEL_URL", workspace.model.url()).stderr(named).spawn();
    let question = workspace.model.question();
    let (_, prompt) = question.body.split_once(r#"{"role":"system","content":""#).unwrap();
    let prompt = prompt.split(r#""},{"role":"user""#).next().unwrap();
    let parts = ["You are opta", "/deep/er", "branch topic", "Use SI", "in verse", "Be brief."];
    let places = parts.map(|part| prompt.find(part).unwrap_or_else(|| panic!("{part}: {prompt}")));
    assert!(places.is_sorted(), "{prompt}");
    question.answer("done");
    running.finish();
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
}

#[test]
fn rules_of_what_git_ignores_take_little_memory() {
    need!("/proc");
    let workspace = Workspace::new();
    home_write(&workspace, ".git/HEAD", "ref: refs/heads/main");
    let rules = "zz\n".repeat(256 * 1024 / 3);
    let mut directory = workspace.path("");
    for _ in 0..46 {
        fs::write(directory.join(".gitignore"), &rules).unwrap();
        directory.push("d");
        fs::create_dir(&directory).unwrap();
    }
    workspace.home.start();
    let daemon = workspace.home.owner().unwrap();
    let peak = || proc_number(daemon, "status", "VmHWM:").unwrap();
    let before = peak();
    let listed = workspace.run("", &[("list_dir", r#"{"recursive":true}"#)]).remove(0);
    assert!(listed.contains(&"d/".repeat(46)), "{listed}");
    let taken = peak() - before;
    assert!(taken < 32 * 1024, "{taken} KiB");
    workspace.home.opta("daemon stop").stdout(ANYTHING).run();
}
