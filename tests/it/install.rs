//! `make install` and `make uninstall`: every file is installed, none is left, and no daemon is
//! affected.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::need;

const OPTA: &str = env!("CARGO_BIN_EXE_opta");

/// What `make` builds for `make install`, and the directory in which it is installed.
struct Stage {
    path: PathBuf,
}

impl Stage {
    fn new(name: &str) -> Stage {
        let unique = format!("opta install {} {name}", std::process::id());
        let path = std::env::temp_dir().join(unique);
        let completions = path.join("built");
        fs::create_dir_all(&completions).unwrap();
        for (shell, file) in [("bash", "opta"), ("zsh", "_opta"), ("fish", "opta.fish")] {
            let script = Command::new(OPTA).args(["completions", shell]).output().unwrap().stdout;
            fs::write(completions.join(file), script).unwrap();
        }
        fs::copy(OPTA, completions.join("program")).unwrap();
        Stage { path }
    }

    /// Runs make with its own environment, since another make may run the tests, and without cargo.
    fn make(&self, target: &str, more: &[&str]) -> Output {
        let mut make = Command::new("make");
        make.current_dir(env!("CARGO_MANIFEST_DIR"))
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .arg(target)
            .arg("CARGO=false")
            .arg(format!("COMPLETIONS={}/built", self.path.display()))
            .arg(format!("DESTDIR={}/root dir", self.path.display()))
            .arg("PREFIX=/pre fix");
        if !more.iter().any(|variable| variable.starts_with("OPTA=")) {
            make.arg(format!("OPTA={}/built/program", self.path.display()));
        }
        make.args(more).output().unwrap()
    }

    fn make_successfully(&self, target: &str, more: &[&str]) {
        let output = self.make(target, more);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "make {target}: {errors}");
        assert_eq!(errors, "", "make {target}");
    }

    fn root(&self) -> PathBuf {
        self.path.join("root dir")
    }

    /// Returns the installed files, relative to the root.
    fn installed(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut folders = vec![self.root()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let inside = path.strip_prefix(self.root()).unwrap();
                    files.push(inside.to_str().unwrap().to_owned());
                }
            }
        }
        files.sort();
        files
    }

    fn opta(&self, program: &Path, arguments: &[&str]) -> Output {
        Command::new(program)
            .args(arguments)
            .env_clear()
            .env("OPTA_HOME", self.path.join("home"))
            .env("OPTA_DAEMON_PORT", "0")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let stopped = self.opta(Path::new(OPTA), &["daemon", "stop", "--force"]);
        let removed = fs::remove_dir_all(&self.path);
        if !std::thread::panicking() {
            assert!(stopped.status.success());
            removed.unwrap();
        }
    }
}

#[test]
fn uninstall_removes_every_file_that_install_puts_in_place() {
    need!("make");
    let stage = Stage::new("places");
    stage.make_successfully("install", &[]);
    let expected = [
        ("pre fix/bin/opta", 0o755),
        ("pre fix/share/bash-completion/completions/opta", 0o644),
        ("pre fix/share/fish/vendor_completions.d/opta.fish", 0o644),
        ("pre fix/share/man/man1/opta-chat.1", 0o644),
        ("pre fix/share/man/man1/opta-daemon.1", 0o644),
        ("pre fix/share/man/man1/opta-do.1", 0o644),
        ("pre fix/share/man/man1/opta-doctor.1", 0o644),
        ("pre fix/share/man/man1/opta-sessions.1", 0o644),
        ("pre fix/share/man/man1/opta.1", 0o644),
        ("pre fix/share/zsh/site-functions/_opta", 0o644),
    ];
    assert_eq!(stage.installed(), expected.map(|(file, _)| file));
    for (file, mode) in expected {
        let found = fs::metadata(stage.root().join(file)).unwrap().permissions().mode();
        assert_eq!(found & 0o7777, mode, "{file}");
    }
    stage.make_successfully("uninstall", &[]);
    assert_eq!(stage.installed(), Vec::<String>::new());
}

#[test]
fn bindir_and_mandir_decide_where_programs_and_pages_are_installed() {
    need!("make");
    let stage = Stage::new("directories");
    let directories = ["BINDIR=/else where/sbin", "MANDIR=/else where/man"];
    stage.make_successfully("install", &directories);
    let elsewhere = |files: Vec<String>| {
        files.into_iter().filter(|file| file.starts_with("else where/")).collect::<Vec<_>>()
    };
    assert_eq!(
        elsewhere(stage.installed()),
        [
            "else where/man/man1/opta-chat.1",
            "else where/man/man1/opta-daemon.1",
            "else where/man/man1/opta-do.1",
            "else where/man/man1/opta-doctor.1",
            "else where/man/man1/opta-sessions.1",
            "else where/man/man1/opta.1",
            "else where/sbin/opta"
        ]
    );
    stage.make_successfully("uninstall", &directories);
    assert_eq!(stage.installed(), Vec::<String>::new());
}

#[test]
fn install_without_a_build_fails_and_builds_nothing() {
    need!("make");
    let stage = Stage::new("unbuilt");
    let output = stage.make("install", &["OPTA=no/such/program"]);
    assert!(!output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.starts_with("nothing to install, no no/such/program: run make first\n"),
        "{errors}"
    );
    assert!(!stage.root().exists());
}

#[test]
fn install_replaces_the_program_of_a_running_daemon() {
    need!("make");
    let stage = Stage::new("running");
    stage.make_successfully("install", &[]);
    let program = stage.root().join("pre fix/bin/opta");
    assert!(stage.opta(&program, &["daemon", "start"]).status.success());
    let stale = || {
        let status = stage.opta(&program, &["daemon", "status", "--json"]);
        assert!(status.status.success());
        String::from_utf8(status.stdout).unwrap().contains("\"staleBinary\":true")
    };
    assert!(!stale());
    stage.make_successfully("install", &[]);
    assert!(stale(), "the daemon runs from the file that was replaced");
    assert!(stage.opta(&program, &["daemon", "restart"]).status.success());
    assert!(!stale());
}
