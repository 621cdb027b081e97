//! `make install`, `make uninstall` and `make dist`: every file is installed, none is left, and no
//! daemon is affected.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::{files_in, need, write_program};

const OPTA: &str = env!("CARGO_BIN_EXE_opta");

/// What `make` builds for `make install`, and the directory in which it is installed.
struct Stage {
    path: PathBuf,
}

impl Stage {
    fn new(name: &str) -> Stage {
        let unique = format!("opta install {} {name}", std::process::id());
        let path = std::env::temp_dir().join(unique);
        fs::create_dir(&path).unwrap();
        let mut tree = Command::new("dist/tree");
        tree.current_dir(env!("CARGO_MANIFEST_DIR")).args([OPTA, OPTA]).arg(path.join("built"));
        assert!(tree.status().unwrap().success());
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
            .arg(format!("DESTDIR={}/root dir", self.path.display()))
            .arg("PREFIX=/pre fix");
        if !more.iter().any(|variable| variable.starts_with("BUILT=")) {
            make.arg(format!("BUILT={}/built", self.path.display()));
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
        files_in(&self.root())
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
        ("pre fix/share/man/man1/opta-config.1", 0o644),
        ("pre fix/share/man/man1/opta-daemon.1", 0o644),
        ("pre fix/share/man/man1/opta-do.1", 0o644),
        ("pre fix/share/man/man1/opta-doctor.1", 0o644),
        ("pre fix/share/man/man1/opta-models.1", 0o644),
        ("pre fix/share/man/man1/opta-sessions.1", 0o644),
        ("pre fix/share/man/man1/opta-web.1", 0o644),
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
            "else where/man/man1/opta-config.1",
            "else where/man/man1/opta-daemon.1",
            "else where/man/man1/opta-do.1",
            "else where/man/man1/opta-doctor.1",
            "else where/man/man1/opta-models.1",
            "else where/man/man1/opta-sessions.1",
            "else where/man/man1/opta-web.1",
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
    let output = stage.make("install", &["BUILT=no/such/tree"]);
    assert!(!output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("there is no no/such/tree/bin/opta; run make first\n"), "{errors}");
    assert!(!stage.root().exists());
}

/// Expects that `make install` fails with this message, and changes nothing.
fn assert_nothing_installed(stage: &Stage, more: &[&str], message: &str) {
    let before = stage.installed();
    let output = stage.make("install", more);
    assert!(!output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains(message), "{errors}");
    assert_eq!(stage.installed(), before);
}

#[test]
fn install_changes_nothing_if_a_directory_is_in_the_place_of_a_file() {
    need!("make");
    let stage = Stage::new("directory");
    let places = ["pre fix/bin/opta", "pre fix/share/fish/vendor_completions.d/opta.fish"];
    for place in places.map(|place| stage.root().join(place)) {
        fs::create_dir_all(&place).unwrap();
        assert_nothing_installed(
            &stage,
            &[],
            &format!("cannot install {}: a directory is in its place\n", place.display()),
        );
        fs::remove_dir(place).unwrap();
    }
}

#[test]
fn install_changes_nothing_if_the_disk_is_full() {
    need!("make", "root", "private mounts");
    let stage = Stage::new("full");
    stage.make_successfully("install", &[]);
    let disk = stage.root().join("pre fix/share/fish");
    let script = r#"
        mount -t tmpfs -o size=4k none "$DISK" && mkdir "$DISK/vendor_completions.d"
        echo old >"$DISK/vendor_completions.d/opta.fish"
        make install CARGO=false "$@" && exit 99
        cat "$DISK/vendor_completions.d/opta.fish"; ls "$DISK/vendor_completions.d"
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("DISK", &disk);
    command.arg(format!("BUILT={}/built", stage.path.display()));
    command.arg(format!("DESTDIR={}", stage.root().display())).arg("PREFIX=/pre fix");
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("opta.fish"), "{errors}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "old\nopta.fish\n", "{errors}");
    assert!(stage.installed().iter().all(|file| !file.ends_with(".new")), "a file is left");
}

#[test]
fn install_refuses_a_tilde_that_no_shell_expanded() {
    need!("make");
    let stage = Stage::new("tilde");
    fs::create_dir(stage.root()).unwrap();
    let message = "no shell expanded the ~ in ~/.local: write $HOME\n";
    assert_nothing_installed(&stage, &["PREFIX=~/.local"], message);
}

#[test]
fn uninstall_removes_the_other_files_if_one_cannot_be_removed() {
    need!("make");
    let stage = Stage::new("stubborn");
    stage.make_successfully("install", &[]);
    let program = stage.root().join("pre fix/bin/opta");
    fs::remove_file(&program).unwrap();
    fs::create_dir(&program).unwrap();
    let output = stage.make("uninstall", &[]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("pre fix/bin/opta"));
    assert_eq!(stage.installed(), Vec::<String>::new());
}

/// Runs `make build` with commands in the place of cargo, rustc and rustup. Returns the arguments
/// of each call of cargo and rustup, and what make wrote to standard error.
fn build(
    stage: &Stage,
    setting: Option<&str>,
    has_library: bool,
    more: &[&str],
) -> (String, String) {
    let bin = stage.path.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let here = stage.path.display();
    let program = |name: &str, script: String| {
        write_program(&bin.join(name), &format!("#!/bin/sh\n{script}"));
    };
    let library = stage.path.join("sysroot/lib/rustlib/riscv64gc-unknown-linux-musl/lib");
    drop(fs::remove_dir_all(&library));
    if has_library {
        fs::create_dir_all(&library).unwrap();
    }
    program("uname", "echo Linux\n".to_owned());
    program(
        "rustc",
        format!(
            "case $1 in -vV) echo 'host: riscv64gc-unknown-linux-gnu';; *) echo '{here}/sysroot';; esac\n"
        ),
    );
    program(
        "rustup",
        format!(
            "echo \"rustup $*\" >>'{here}/calls'; test ! -e '{here}/offline' && mkdir -p '{}'\n",
            library.display()
        ),
    );
    let found = setting.map_or("exit 1".to_owned(), |target| format!("echo '\"{target}\"'"));
    // Where the program is, only the messages tell.
    let message = format!(
        r#"{{"target":{{"kind":["bin"]}},"executable":"{here}/else where/opta","fresh":true}}"#
    );
    let script = format!(
        "case $1 in -Z*) {found}; exit;; esac\necho \"cargo $*\" >>'{here}/calls'\necho '{message}'\n"
    );
    program("cargo", script);
    fs::create_dir_all(stage.path.join("else where")).unwrap();
    fs::copy(OPTA, stage.path.join("else where/opta")).unwrap();
    drop(fs::remove_file(stage.path.join("calls")));
    let mut make = Command::new("make");
    make.current_dir(env!("CARGO_MANIFEST_DIR")).env_clear();
    make.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    make.arg("build").arg(format!("BUILT={here}/made")).args(more);
    let output = make.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    let made = fs::read(stage.path.join("made/bin/opta")).unwrap();
    assert!(made == fs::read(OPTA).unwrap(), "the program is not the one that cargo built");
    (fs::read_to_string(stage.path.join("calls")).unwrap(), errors)
}

#[test]
fn make_builds_the_static_program_where_that_is_possible() {
    need!("make");
    let stage = Stage::new("static");
    let cargo = |target: &str| {
        format!("cargo build --release --locked{target} --message-format=json-render-diagnostics\n")
    };
    let flags = r#"rustflags="-Crelocation-model=static""#;
    let musl = "riscv64gc-unknown-linux-musl";
    let musl = cargo(&format!(" --target {musl} --config target.{musl}.{flags}"));
    assert_eq!(build(&stage, None, true, &[]), (musl.clone(), String::new()));
    let (calls, errors) = build(&stage, None, false, &[]);
    assert_eq!(calls, format!("rustup target add riscv64gc-unknown-linux-musl\n{musl}"));
    assert!(errors.contains("adding riscv64gc-unknown-linux-musl, once"), "{errors}");
    assert_eq!(build(&stage, None, true, &["STATIC=0"]), (cargo(""), String::new()));
    fs::write(stage.path.join("offline"), "").unwrap();
    let (calls, errors) = build(&stage, None, false, &[]);
    assert_eq!(calls, format!("rustup target add riscv64gc-unknown-linux-musl\n{}", cargo("")));
    assert!(errors.contains("no static program"), "{errors}");
    // A target in cargo's own settings is the user's choice.
    let own = Some("wasm32-unknown-unknown");
    assert_eq!(build(&stage, own, true, &[]), (cargo(""), String::new()));
}

#[test]
fn make_replaces_what_it_built_before_or_leaves_nothing_to_install() {
    need!("make");
    let stage = Stage::new("stale");
    let built = stage.path.join("built");
    fs::write(built.join("bin/opta"), "old").unwrap();
    let mut make = Command::new("make");
    make.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "CARGO=false", "STATIC=0"]);
    let output = make.arg(format!("BUILT={}", built.display())).output().unwrap();
    assert!(!output.status.success());
    assert!(!built.join("bin/opta").exists(), "an older program could be installed");
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
    let status = stage.opta(&program, &["daemon", "status"]);
    assert_eq!(
        String::from_utf8(status.stderr).unwrap(),
        "opta: the program was replaced after the daemon started; \
         to run the new one: opta daemon restart\n"
    );
    assert!(stage.opta(&program, &["daemon", "restart"]).status.success());
    assert!(!stale());
}

/// A cargo that builds nothing: in the place of the program, it puts a script that runs it.
const CARGO: &str = r#"#!/bin/sh
case $CARGO_ENCODED_RUSTFLAGS in
--remap-path-prefix=*-Crelocation-model=static) ;;
*) exit 1 ;;
esac
while [ $# -gt 1 ]; do
    case $1 in --target) target=$2 ;; --target-dir) directory=$2 ;; esac
    shift
done
linker=$CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER
case $target in aarch64-*) test "$linker" = rust-lld || exit 1 ;; esac
mkdir -p "$directory/$target/release"
printf '#!/bin/sh\nexec "%s" "$@"\n' "$PROGRAM" >"$directory/$target/release/opta"
chmod +x "$directory/$target/release/opta"
"#;
const RUSTC: &str = r#"#!/bin/sh
case $1 in -vV) echo "host: x86_64-unknown-linux-gnu" ;; *) echo sysroot ;; esac
"#;

/// Runs `make dist` in a copy of the sources. Returns the directory with the packages.
fn package(stage: &Stage, name: &str, umask: &str) -> PathBuf {
    let copy = stage.path.join(name);
    fs::create_dir_all(&copy).unwrap();
    for (name, script) in [("cargo", CARGO), ("rustc", RUSTC)] {
        write_program(&copy.join(name), script);
    }
    for machine in ["x86_64", "aarch64"] {
        let library = format!("sysroot/lib/rustlib/{machine}-unknown-linux-musl/lib");
        fs::create_dir_all(copy.join(library)).unwrap();
    }
    let script = r#"umask "$UMASK"
        cp -R Makefile Cargo.toml CHANGELOG.md LICENSE dist man "$COPY"
        cd "$COPY" && make dist CARGO=./cargo RUSTC=./rustc"#;
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(env!("CARGO_MANIFEST_DIR")).env_clear();
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", &stage.path);
    command.env("PROGRAM", OPTA).env("COPY", &copy).env("UMASK", umask);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    copy.join("target/dist")
}

#[test]
fn packages_are_the_same_bytes_wherever_they_are_made() {
    need!("make", "dpkg-deb");
    let stage = Stage::new("packages");
    let first = package(&stage, "one", "022");
    let second = package(&stage, "somewhere else/two", "077");
    let names = [
        concat!("opta-", env!("CARGO_PKG_VERSION"), "-linux-aarch64.tar.gz"),
        concat!("opta-", env!("CARGO_PKG_VERSION"), "-linux-x86_64.tar.gz"),
        concat!("opta_", env!("CARGO_PKG_VERSION"), "_amd64.deb"),
        concat!("opta_", env!("CARGO_PKG_VERSION"), "_arm64.deb"),
    ];
    let mut made = files_in(&first);
    made.retain(|file| !file.starts_with("build/"));
    assert_eq!(made, names);
    for name in names {
        let read = |directory: &Path| fs::read(directory.join(name)).unwrap();
        assert!(read(&first) == read(&second), "{name} differs");
    }
    let package = first.join(names[2]);
    let contents = Command::new("dpkg-deb").arg("-c").arg(package).output().unwrap();
    let contents = String::from_utf8(contents.stdout).unwrap();
    for line in contents.lines() {
        let is_program = line.ends_with('/') || line.ends_with("/bin/opta");
        let mode = if is_program { "rwxr-xr-x" } else { "rw-r--r--" };
        assert!(line[1..].starts_with(mode) && line.contains(" root/root "), "{line}");
    }
    assert!(contents.contains(" ./usr/share/man/man1/opta-daemon.1.gz\n"), "{contents}");
}

#[test]
fn the_archive_installs_what_make_installs() {
    need!("make", "tar");
    let stage = Stage::new("archive");
    stage.make_successfully("install", &[]);
    let expected = stage.installed();
    stage.make_successfully("uninstall", &[]);
    let name = concat!("opta-", env!("CARGO_PKG_VERSION"), "-linux-x86_64");
    let archive = package(&stage, "sources", "022").join(format!("{name}.tar.gz"));
    let mut unpack = Command::new("tar");
    unpack.arg("-xzf").arg(archive).arg("-C").arg(&stage.path);
    assert!(unpack.status().unwrap().success());
    let tree = stage.path.join(name);
    let installer = |arguments: &[&str]| {
        let mut command = Command::new(tree.join("install.sh"));
        command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
        command.env("DESTDIR", stage.root()).env("PREFIX", "/pre fix");
        command.output().unwrap().status.code()
    };
    assert_eq!(installer(&[]), Some(0));
    assert_eq!(stage.installed(), expected);
    // Nothing that is in the archive is left out.
    let mut packed: Vec<&str> = expected.iter().map(|file| &file["pre fix/".len()..]).collect();
    packed.extend(["LICENSE", "install.sh"]);
    packed.sort_unstable();
    assert_eq!(files_in(&tree), packed);
    assert_eq!(installer(&["remove"]), Some(2));
    assert_eq!(installer(&["uninstall"]), Some(0));
    assert_eq!(stage.installed(), Vec::<String>::new());
}
