//! A root directory with nothing but the program: no shell, no C library, no time zones, no /proc.

use std::fs;

use crate::model::Model;
use crate::support::{
    ANYTHING, Home, NONE, NOT_RUNNING, RESTARTED, RUNNING, Run, STARTED, STOPPED, copy_opta, need,
    skip,
};

/// The root: the home of a test, which also has the program and /dev/null.
struct Root {
    home: Home,
    /// Whether /proc is mounted.
    proc: bool,
}

impl Root {
    fn new(proc: bool) -> Root {
        let home = Home::new();
        for directory in ["dev", "proc"] {
            fs::create_dir(home.path().join(directory)).unwrap();
        }
        fs::write(home.path().join("dev/null"), "").unwrap();
        copy_opta(&home.path().join("opta"));
        Root { home, proc }
    }

    /// Returns a run of `opta` with the root changed, and an environment of what it needs.
    fn opta(&self, words: &str) -> Run<'_> {
        let proc = if self.proc { r#"mount -t proc none "$ROOT/proc""# } else { "" };
        let script = format!(
            r#"mount --bind /dev/null "$ROOT/dev/null"
            {proc}
            exec env -i HOME=/ OPTA_DAEMON_PORT=0 OPTA_MODEL_URL="$OPTA_MODEL_URL" \
                "$(command -v chroot)" "$ROOT" /opta {words}"#
        );
        let run = self.home.sh(&script).within(["unshare", "--mount"]);
        run.env("ROOT", self.home.path())
    }
}

/// Starts a daemon there, uses it and stops it.
fn use_in(root: &Root) {
    let logged = "[{time}] INFO  daemon started on 127.0.0.1:{port}\n{*}";
    root.opta("daemon status").stdout(NONE).status(3).run();
    let started = root.opta("daemon start").stdout(STARTED).run();
    let (pid, port) = (started.pid(), started.port());
    root.opta("daemon status").stdout(RUNNING).with("pid", pid).with("port", port).run();
    root.opta("daemon logs").stdout(logged).with("port", port).run();
    root.opta("sessions list").stdout(ANYTHING).stderr(ANYTHING).run();
    let model = Model::new();
    let task = root.opta("do -q hello").env("OPTA_MODEL_URL", model.url());
    let task = task.stdout("found\n").spawn();
    model.question().answer("found");
    task.finish();
    root.opta("sessions list").stdout("{id} {*} 1 turn  {*}  hello\n").run();
    let restarted = root.opta("daemon restart").stdout(RESTARTED).with("old", pid).run();
    root.opta("daemon stop").stdout(STOPPED).with("pid", restarted.pid()).run();
    root.opta("daemon stop").stdout(NOT_RUNNING).run();
}

#[test]
fn the_program_runs_in_an_empty_root() {
    need!("root", "private mounts");
    if cfg!(not(target_env = "musl")) {
        skip!("it needs the static program");
    }
    use_in(&Root::new(true));
}

#[test]
fn the_program_runs_in_an_empty_root_without_proc() {
    need!("root", "private mounts");
    if cfg!(not(target_env = "musl")) {
        skip!("it needs the static program");
    }
    use_in(&Root::new(false));
}
