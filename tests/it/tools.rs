//! Files and commands as a model uses them, through `opta do`.

use std::fs;
use std::path::PathBuf;

use crate::model::Model;
use crate::support::{ANYTHING, Home, eventually, fifo, line_of, need, signal, state_of};

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
fn a_command_may_have_a_timeout_in_seconds() {
    let workspace = Workspace::new();
    let arguments = r#"{"command":"sleep 600","timeout":1}"#;
    let results = workspace.run("", &[("run_command", arguments)]);
    assert!(results[0].contains("[ended after 1000 ms: out of time]"), "{results:?}");
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
    let is_gone = || matches!(state_of(child), None | Some('Z' | 'X'));
    eventually("the group ends with its leader", is_gone);
    let question = workspace.model.question();
    let ended = result(&question.body).unwrap();
    assert!(ended.contains("the process that guards the command was killed"), "{ended}");
    workspace.home.crash();
    drop(question);
    running.finish();
    assert!(is_gone());
}
