//! What every test uses: a temporary home, commands with expectations and deadlines, and a few
//! queries to the system.
//!
//! Nothing here sleeps. Output goes to files, never to pipes: a daemon that kept one open would
//! hang the test instead of failing it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Far more than anything here takes, even on a machine that is busy with something else. It is
/// waited for only when something hangs.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Restores the default disposition of signals that were ignored at start, as a shell does for
/// background jobs and nohup for any command: they stay ignored in all children, and a test that
/// sends one would wait forever.
fn reset_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
            // SAFETY: no handler is installed that could be lost.
            #[expect(unsafe_code, reason = "std has no way to do it")]
            let before = unsafe { libc::signal(signal, libc::SIG_DFL) };
            assert_ne!(before, libc::SIG_ERR, "{signal}");
        }
    });
}

/// Whether the program has the static C library, musl, which makes some system calls by other names
/// and has words of its own for errors.
pub const IS_STATIC: bool = cfg!(target_env = "musl");
/// The system call that starts a thread.
pub const START_THREAD: &str = if IS_STATIC { "clone" } else { "clone3" };
/// How many files the C library itself reads before the program begins.
pub const READS_BEFORE_MAIN: usize = if IS_STATIC { 0 } else { 5 };
/// EADDRINUSE in the words of the C library.
pub const ADDRESS_IN_USE: &str =
    if IS_STATIC { "Address in use" } else { "Address already in use" };
/// EMFILE in the words of the C library.
pub const TOO_MANY_FILES: &str =
    if IS_STATIC { "No file descriptors available" } else { "Too many open files" };
/// A model server at a port where nothing listens.
pub const REFUSED: &str = "http://127.0.0.1:1";

/// What `opta daemon start` prints.
pub const STARTED: &str = "Daemon started (pid {pid}, port {port})\n\
                           Token written to ~/.config/opta/daemon/state.json\n";
/// What it prints if there already is a daemon.
pub const ALREADY: &str = "Daemon already running (pid {pid}, port {port})\n";
/// What `opta daemon stop` prints.
pub const STOPPED: &str = "Stopping daemon (pid {pid})...\nDaemon stopped.\n";
/// What it prints if there is no daemon.
pub const NOT_RUNNING: &str = "Daemon is not running.\n";
/// What `opta daemon restart` prints.
pub const RESTARTED: &str = "Stopping daemon (pid {old})...\nDaemon stopped.\n\
                             Daemon started (pid {pid}, port {port})\nToken rotated.\n";
/// What it prints if there was no daemon to stop.
pub const RESTARTED_AFRESH: &str = "Daemon started (pid {pid}, port {port})\nToken rotated.\n";
/// What `opta daemon status` prints if the daemon is running.
pub const RUNNING: &str = "● running  pid={pid}  port={port}  uptime={age}  sessions=0\n";
/// What it prints if there is no daemon, for any reason.
pub const NONE: &str = "○ stopped  (no daemon process found)\n";
/// What it prints to standard error if the daemon crashed.
pub const HAS_CRASHED: &str = "opta: the daemon crashed{*}; to start it: opta daemon start\n";
/// Anything at all.
pub const ANYTHING: &str = "{*}";

/// Ends the test, saying why it cannot be run here.
macro_rules! skip {
    ($($why:tt)*) => {{
        $crate::support::skipped(format_args!($($why)*));
        return;
    }};
}

/// Skips the test unless this machine has what is named: a tool, or a privilege of
/// [`support::has`].
macro_rules! need {
    ($($what:literal),+) => {
        $(if !$crate::support::has($what) {
            $crate::support::skip!("it needs {}", $what);
        })+
    };
}

pub(crate) use {need, skip};

/// Reports why a test is not run.
pub fn skipped(why: std::fmt::Arguments<'_>) {
    let name = thread::current().name().unwrap_or_default().to_owned();
    // Not `eprintln!`, which the harness keeps to itself when a test passes.
    drop(writeln!(std::io::stderr(), "skipped: {name}: {why}"));
}

/// Returns whether a tool is installed and may do what the tests need.
pub fn has(what: &str) -> bool {
    let works = |words: &str| {
        let mut words = words.split(' ');
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    match what {
        "root" => fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0),
        "strace" => works("strace -f -o /dev/null -e inject=chdir:error=EIO true"),
        "a private network" => namespace(&["--net"]).is_some(),
        "private processes" => namespace(&["--pid", "--fork", "--mount-proc"]).is_some(),
        "private mounts" => namespace(&["--mount"]).is_some(),
        "/proc" => Path::new("/proc/self/fd").is_dir(),
        "script" => cfg!(target_os = "linux") && works("script -qec true /dev/null"),
        "env --block-signal" => works("env --block-signal=TERM true"),
        "setpriv" => works("setpriv --reuid 65534 --regid 65534 --clear-groups true"),
        tool => on_path(tool),
    }
}

fn on_path(tool: &str) -> bool {
    std::env::split_paths(&variable("PATH")).any(|directory| directory.join(tool).is_file())
}

/// Returns the command that runs another one in its own namespaces, also in a user namespace if
/// needed.
pub fn namespace(of: &[&str]) -> Option<Vec<String>> {
    [&["unshare"][..], &["unshare", "-r"]].into_iter().find_map(|start| {
        let words: Vec<String> = start.iter().chain(of).map(ToString::to_string).collect();
        let (program, rest) = words.split_first()?;
        let mut command = Command::new(program);
        command.args(rest).arg("true").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success()).then_some(words)
    })
}

/// Returns the number of rounds: `long` if the long tests were requested.
pub fn rounds(short: usize, long: usize) -> usize {
    if variable("OPTA_TEST_LONG").is_empty() { short } else { long }
}

fn variable(name: &str) -> OsString {
    #[expect(clippy::disallowed_methods, reason = "the harness's own settings")]
    std::env::var_os(name).unwrap_or_default()
}

/// A temporary home. Dropping it kills any daemon that is running there.
///
/// Its path has a space and a letter that is not ASCII. Commands see it as `HOME`, and of the rest
/// of the environment only `PATH`, `LANG`, `OPTA_DAEMON_PORT=0`, so that tests never compete for a
/// port, and [`REFUSED`] as the model server.
pub struct Home {
    place: PathBuf,
    home: PathBuf,
    user: Option<u32>,
    ran: AtomicU32,
}

impl Home {
    /// Creates an empty home.
    pub fn new() -> Home {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        reset_signals();
        let name = format!("opta test ü {}-{number}", std::process::id());
        let place = std::env::temp_dir().join(name);
        let home = place.join("home");
        DirBuilder::new().mode(0o755).create(&place).unwrap();
        DirBuilder::new().mode(0o755).create(&home).unwrap();
        Home { place, home, user: None, ran: AtomicU32::new(0) }
    }

    /// Creates a home of another user, who exists for this test only. Needs root and setpriv.
    pub fn of_another_user() -> Home {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let mut home = Home::new();
        let user = 61_000 + std::process::id() % 1000 * 4 + MADE.fetch_add(1, Ordering::Relaxed);
        std::os::unix::fs::chown(&home.home, Some(user), Some(user)).unwrap();
        // The program may be where other users have no access.
        fs::create_dir(home.bin()).unwrap();
        copy_opta(&home.bin().join("opta"));
        home.user = Some(user);
        home
    }

    /// Returns the path that commands see as `HOME`.
    pub fn path(&self) -> &Path {
        &self.home
    }

    /// Returns a path next to the home, for the test's own files.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// Returns the path of a file of the daemon.
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.join(".config/opta/daemon").join(name)
    }

    /// Returns the path of the user's settings.
    pub fn config(&self) -> PathBuf {
        self.home.join(".config/opta/config.json")
    }

    /// Returns the user to whom the home belongs, if that is not the one who runs the tests.
    pub fn user(&self) -> Option<u32> {
        self.user
    }

    /// Writes a file of this home as its user would: private, with its directories.
    pub fn write(&self, path: &Path, bytes: impl AsRef<[u8]>) {
        let directory = path.parent().unwrap();
        DirBuilder::new().recursive(true).mode(0o700).create(directory).unwrap();
        let mut file = File::create(path).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        file.write_all(bytes.as_ref()).unwrap();
        if let Some(user) = self.user {
            let chown = ["chown", "-R", &format!("{user}:{user}")].map(OsString::from);
            let status = Command::new(&chown[0]).args(&chown[1..]).arg(&self.home).status();
            assert!(status.unwrap().success());
        }
    }

    /// Returns a run of `opta` with these words.
    pub fn opta(&self, words: &str) -> Run<'_> {
        let program = if self.user.is_some() { self.bin().join("opta") } else { OPTA.into() };
        let arguments = words.split_whitespace().map(OsString::from);
        Run::new(self, [program.into_os_string()].into_iter().chain(arguments).collect())
    }

    /// Returns a run of a shell script; `opta` is on its `PATH`.
    pub fn sh(&self, script: &str) -> Run<'_> {
        Run::new(self, ["sh", "-eu", "-c", script].map(OsString::from).to_vec())
    }

    fn bin(&self) -> PathBuf {
        self.place.join("bin")
    }

    fn search_path(&self) -> OsString {
        let ours = if self.user.is_some() { self.bin() } else { program_directory() };
        let usual = variable("PATH");
        std::env::join_paths([ours].into_iter().chain(std::env::split_paths(&usual))).unwrap()
    }

    /// Starts a daemon.
    pub fn start(&self) -> Daemon {
        let seen = self.opta("daemon start").stdout(STARTED).run();
        Daemon { pid: seen.pid(), port: seen.port() }
    }

    /// Ends the daemon as a crash does, and waits until it has ended.
    pub fn crash(&self) -> i32 {
        let pid = self.owner().expect("there is no daemon to crash");
        signal(pid, "KILL");
        self.wait_for_end();
        pid
    }

    /// Reads `state.json`.
    pub fn daemon_info(&self) -> DaemonInfo {
        let text = fs::read_to_string(self.file("state.json")).unwrap();
        DaemonInfo(
            captures(DAEMON_INFO, &text, &self.known())
                .unwrap_or_else(|| panic!("not a state file: {text}")),
        )
    }

    /// Returns the process that has the lock: it is named by `daemon.pid` and, where that can be
    /// seen, has that file open.
    pub fn owner(&self) -> Option<i32> {
        let path = self.file("daemon.pid");
        if !is_locked(&path) {
            return None;
        }
        let pid: i32 = fs::read_to_string(&path).ok()?.trim().parse().ok()?;
        if !has("/proc") {
            return Some(pid);
        }
        let ours = fs::metadata(&path).ok()?;
        let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let holds = open.filter_map(|entry| fs::metadata(entry.ok()?.path()).ok());
        let mut holds =
            holds.filter(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino()));
        holds.next().map(|_| pid)
    }

    /// Waits until no process has the lock.
    pub fn wait_for_end(&self) {
        let path = self.file("daemon.pid");
        let Ok(file) = File::open(&path) else { return };
        let (sender, receiver) = channel();
        let waiter = thread::Builder::new().name("wait for the lock".into());
        let waiting = move || {
            let locked = file.lock_shared();
            // Released before it is reported.
            drop(file);
            drop(sender.send(locked));
        };
        drop(waiter.spawn(waiting).unwrap());
        let locked = receiver.recv_timeout(DEADLINE).expect("the lock is still held");
        locked.unwrap();
    }

    /// Returns every process of this home that runs `opta`.
    pub fn processes(&self) -> Vec<i32> {
        let mut mark = b"HOME=".to_vec();
        mark.extend(self.home.as_os_str().as_encoded_bytes());
        mark.push(0);
        let of_this_home = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            // The daemon has the name of the link by which it was executed until it sets its own.
            matches!(name.as_str(), "opta\n" | "exe\n")
                && environment.windows(mark.len()).any(|window| window == mark)
        };
        let listed = fs::read_dir("/proc").into_iter().flatten();
        let pids = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(of_this_home).collect()
    }

    /// Asserts that no daemon is here, nor anything of one: no state file, no lock, no process.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let daemon = self.home.join(".config/opta/daemon");
        for entry in fs::read_dir(&daemon).into_iter().flatten() {
            let name = entry.unwrap().file_name();
            let kept = ["daemon.pid", "start.lock", "daemon.log", "crashes.json"];
            assert!(kept.iter().any(|kept| name == *kept), "{name:?} was left behind");
        }
        assert!(!is_locked(&self.file("daemon.pid")), "the lock is still held");
        assert_eq!(self.processes(), [0_i32; 0], "there are processes left");
    }

    /// Lists everything in the home: its type, its times and its content.
    pub fn snapshot(&self) -> Vec<String> {
        let mut lines = Vec::new();
        list_into(&self.home, &mut lines);
        lines.sort();
        lines
    }

    fn known(&self) -> HashMap<String, String> {
        let home = self.home.to_str().unwrap().to_owned();
        HashMap::from([("home".to_owned(), home)])
    }
}

fn list_into(path: &Path, lines: &mut Vec<String>) {
    let found = path.symlink_metadata().unwrap();
    let contents = if found.is_file() { fs::read(path).unwrap() } else { Vec::new() };
    let contents = String::from_utf8_lossy(&contents);
    lines.push(format!(
        "{} {} {:o} {} {}.{} {}.{} {contents}",
        path.display(),
        found.ino(),
        found.mode(),
        found.uid(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ));
    if found.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            list_into(&entry.unwrap().path(), lines);
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(self.file("daemon.log")).unwrap_or_default();
            drop(writeln!(std::io::stderr(), "--- daemon.log\n{log}---"));
        }
        // The owner changes while a daemon is starting, a few times at most.
        for _ in 0..100 {
            match self.owner() {
                Some(pid) => signal(pid, "KILL"),
                None if self.processes().is_empty() => break,
                None => thread::yield_now(),
            }
        }
        drop(fs::remove_dir_all(&self.place));
    }
}

/// A daemon that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Daemon {
    pub pid: i32,
    pub port: u16,
}

const DAEMON_INFO: &str = concat!(
    r#"{"pid":{pid},"port":{port},"token":"{token}","startedAt":"{time}","host":"127.0.0.1","#,
    r#""daemonId":"{id}","version":"{version}","logsPath":"{home}/.config/opta/daemon/daemon.log","#,
    "{*}}\n"
);

/// The content of `state.json`.
#[derive(Debug)]
pub struct DaemonInfo(HashMap<String, String>);

impl DaemonInfo {
    pub fn pid(&self) -> i32 {
        self.0["pid"].parse().unwrap()
    }

    pub fn port(&self) -> u16 {
        self.0["port"].parse().unwrap()
    }

    pub fn token(&self) -> &str {
        &self.0["token"]
    }
}

const OPTA: &str = env!("CARGO_BIN_EXE_opta");

fn program_directory() -> PathBuf {
    Path::new(OPTA).parent().unwrap().to_owned()
}

/// A command, and what is expected of it: by default, no output and status 0.
#[must_use = "nothing runs before `run` or `spawn`"]
pub struct Run<'h> {
    home: &'h Home,
    words: Vec<OsString>,
    before: Vec<OsString>,
    environment: Vec<(OsString, Option<OsString>)>,
    input: Option<PathBuf>,
    output: Option<PathBuf>,
    stdout: String,
    stderr: String,
    statuses: Vec<i32>,
    known: HashMap<String, String>,
}

impl<'h> Run<'h> {
    fn new(home: &'h Home, words: Vec<OsString>) -> Run<'h> {
        let mut run = Run {
            home,
            words,
            before: Vec::new(),
            environment: Vec::new(),
            input: None,
            output: None,
            stdout: String::new(),
            stderr: String::new(),
            statuses: vec![0],
            known: home.known(),
        };
        if let Some(user) = home.user {
            let user = user.to_string();
            let setpriv = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--"];
            run.before = setpriv.map(OsString::from).to_vec();
        }
        run
    }

    /// Adds one argument, unchanged.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.words.push(argument.as_ref().to_owned());
        self
    }

    /// Runs it through another command, whose words come first.
    pub fn within<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        let words = words.into_iter().map(|word| word.as_ref().to_owned());
        self.before = words.chain(self.before).collect();
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), Some(value.as_ref().to_owned())));
        self
    }

    /// Unsets a variable.
    pub fn unset(mut self, name: &str) -> Self {
        self.environment.push((name.into(), None));
        self
    }

    /// Reads its input from this file, which may be a pipe.
    pub fn input(mut self, path: &Path) -> Self {
        self.input = Some(path.to_owned());
        self
    }

    /// Writes its output to this file, of any type. No output can be expected then.
    pub fn output(mut self, path: &Path) -> Self {
        self.output = Some(path.to_owned());
        self
    }

    /// Expects this on standard output. See [`captures`].
    pub fn stdout(mut self, pattern: &str) -> Self {
        pattern.clone_into(&mut self.stdout);
        self
    }

    /// Expects this on standard error.
    pub fn stderr(mut self, pattern: &str) -> Self {
        pattern.clone_into(&mut self.stderr);
        self
    }

    /// Expects this exit status; a negative number means that signal.
    pub fn status(mut self, status: i32) -> Self {
        self.statuses = vec![status];
        self
    }

    /// Expects one of these exit statuses.
    pub fn status_in(mut self, statuses: &[i32]) -> Self {
        statuses.clone_into(&mut self.statuses);
        self
    }

    /// Sets the value of a name in the patterns.
    #[expect(clippy::needless_pass_by_value, reason = "numbers read better without a `&`")]
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.known.insert(name.to_owned(), value.to_string());
        self
    }

    /// Sets the names `pid` and `port` in the patterns to those of this daemon.
    pub fn of(self, daemon: Daemon) -> Self {
        self.with("pid", daemon.pid).with("port", daemon.port)
    }

    /// Runs it to its end, and checks the expectations.
    #[track_caller]
    pub fn run(self) -> Finished {
        self.spawn().finish()
    }

    /// Starts it.
    #[track_caller]
    pub fn spawn(self) -> Running {
        let number = self.home.ran.fetch_add(1, Ordering::Relaxed);
        let output = self.home.place.join(format!("{number}.out"));
        let errors = self.home.place.join(format!("{number}.err"));
        let words: Vec<OsString> = self.before.into_iter().chain(self.words).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().current_dir(&self.home.place);
        command.env("PATH", self.home.search_path()).env("HOME", &self.home.home);
        command.env("LANG", "C.UTF-8").env("OPTA_DAEMON_PORT", "0");
        // Refused: a test must not ask a model server that happens to run on this machine.
        command.env("OPTA_MODEL_URL", REFUSED);
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let input = self.input.unwrap_or_else(|| "/dev/null".into());
        // Read and write: opening a pipe for reading alone would wait for a writer.
        command.stdin(File::options().read(true).write(true).open(input).unwrap());
        let written = self.output.as_ref().unwrap_or(&output);
        let (out, err) = (appending(written), appending(&errors));
        command.stdout(out).stderr(err).process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("{words:?}: {error}"));
        if self.output.is_some() {
            drop(appending(&output));
        }
        Running {
            process: Process::watch(child),
            words,
            output,
            errors,
            stdout: self.stdout,
            stderr: self.stderr,
            statuses: self.statuses,
            known: self.known,
        }
    }
}

fn appending(path: &Path) -> File {
    File::options().append(true).create(true).open(path).unwrap()
}

/// A child process, and the channel on which a thread reports its end.
struct Process {
    pid: i32,
    ended: Receiver<ExitStatus>,
    status: Option<ExitStatus>,
}

impl Process {
    fn watch(mut child: Child) -> Process {
        let pid = i32::try_from(child.id()).unwrap();
        let (sender, ended) = channel();
        let waiting = move || {
            // There is no receiver if the test ended before its child.
            sender.send(child.wait().unwrap()).unwrap_or(());
        };
        drop(thread::Builder::new().name("wait for a child".into()).spawn(waiting).unwrap());
        Process { pid, ended, status: None }
    }

    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.ended.recv_timeout(limit).ok();
        }
        self.status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.wait(Duration::ZERO).is_none() {
            // Its whole group: it may be a script.
            signal(-self.pid, "KILL");
            self.wait(DEADLINE);
        }
    }
}

/// A command that runs.
#[must_use = "its end is checked by `finish`"]
pub struct Running {
    process: Process,
    words: Vec<OsString>,
    output: PathBuf,
    errors: PathBuf,
    stdout: String,
    stderr: String,
    statuses: Vec<i32>,
    known: HashMap<String, String>,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.wait(Duration::ZERO).is_some()
    }

    /// Returns what it has written to standard output so far.
    pub fn output(&self) -> String {
        read_text(&self.output)
    }

    /// Returns the length of that in bytes.
    pub fn output_length(&self) -> u64 {
        self.output.metadata().unwrap().len()
    }

    /// Returns what it has written to standard error so far.
    pub fn errors(&self) -> String {
        read_text(&self.errors)
    }

    /// Waits for its end, and checks the expectations.
    #[track_caller]
    pub fn finish(self) -> Finished {
        self.finish_within(DEADLINE)
    }

    /// Does the same, and fails if it has not ended within `limit`.
    #[track_caller]
    pub fn finish_within(mut self, limit: Duration) -> Finished {
        let ended = self.process.wait(limit);
        let (out, err) = (read_text(&self.output), read_text(&self.errors));
        let words = self.words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>();
        let said = format!("{}\n--- stdout\n{out}--- stderr\n{err}---", words.join(" "));
        let status = ended.unwrap_or_else(|| panic!("it does not end: {said}"));
        let status = status.code().unwrap_or_else(|| -status.signal().unwrap_or(0));
        assert!(self.statuses.contains(&status), "the status is {status}, not {:?}: {said}", {
            &self.statuses
        });
        let captured = captures(&self.stdout, &out, &self.known);
        let captured = captured
            .unwrap_or_else(|| panic!("stdout is not\n{}\nbut: {said}", shown(&self.stdout)));
        let captured = captures(&self.stderr, &err, &captured)
            .unwrap_or_else(|| panic!("stderr is not\n{}\nbut: {said}", shown(&self.stderr)));
        Finished { captured, stdout: out, stderr: err, status }
    }
}

fn shown(pattern: &str) -> &str {
    if pattern.is_empty() { "(nothing)" } else { pattern }
}

fn read_text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}

/// A command that has ended, with its output.
#[derive(Debug)]
pub struct Finished {
    captured: HashMap<String, String>,
    pub stdout: String,
    pub stderr: String,
    pub status: i32,
}

impl Finished {
    /// Returns the text at the place of `{name}` in the pattern.
    pub fn get(&self, name: &str) -> &str {
        &self.captured[name]
    }

    pub fn pid(&self) -> i32 {
        self.get("pid").parse().unwrap()
    }

    pub fn port(&self) -> u16 {
        self.get("port").parse().unwrap()
    }
}

/// Matches a text against a pattern, in which `{name}` matches some characters of one line, always
/// the same ones for the same name; for `pid`, `old` and `port` they are digits. `{*}` matches
/// anything.
pub fn captures(
    pattern: &str,
    text: &str,
    known: &HashMap<String, String>,
) -> Option<HashMap<String, String>> {
    let Some((name, rest)) = leading_name(pattern) else {
        return match (pattern.chars().next(), text.chars().next()) {
            (None, None) => Some(known.clone()),
            (Some(expected), Some(found)) if expected == found => {
                captures(&pattern[expected.len_utf8()..], &text[found.len_utf8()..], known)
            }
            _ => None,
        };
    };
    if let Some(value) = known.get(name) {
        return captures(rest, text.strip_prefix(value.as_str())?, known);
    }
    let fits = |c: char| match name {
        "*" => true,
        "pid" | "old" | "port" => c.is_ascii_digit(),
        _ => c != '\n',
    };
    let longest = text.find(|c| !fits(c)).unwrap_or(text.len());
    let shortest = usize::from(name != "*");
    let ends = (shortest..=longest).filter(|end| text.is_char_boundary(*end));
    ends.into_iter().find_map(|end| {
        let mut known = known.clone();
        if name != "*" {
            known.insert(name.to_owned(), text[..end].to_owned());
        }
        captures(rest, &text[end..], &known)
    })
}

fn leading_name(pattern: &str) -> Option<(&str, &str)> {
    let (name, rest) = pattern.strip_prefix('{')?.split_once('}')?;
    let is_name = name == "*" || name.bytes().all(|byte| byte.is_ascii_lowercase());
    (is_name && !name.is_empty()).then_some((name, rest))
}

/// Sends a signal; it is no error if the process has ended. A negative number is a group.
pub fn signal(pid: i32, name: &str) {
    let mut kill = Command::new("sh");
    kill.args(["-c", r#"kill -s "$1" -- "$2""#, "sh", name, &pid.to_string()]);
    kill.stderr(Stdio::null());
    kill.status().unwrap();
}

/// Stops a process and waits until it has stopped.
pub fn freeze(pid: i32) {
    signal(pid, "STOP");
    eventually("the process stops", || state_of(pid) == Some('T'));
}

/// Returns the letter of a process's state; `None` if there is no such process. proc(5).
pub fn state_of(pid: i32) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(") ")?.1.chars().next()
}

/// Returns whether a process has ended; its parent may not know it yet. proc(5).
pub fn has_ended(pid: i32) -> bool {
    matches!(state_of(pid), None | Some('Z' | 'X'))
}

/// Returns the number after a name in a file about a process, such as `VmRSS:` in `status`; `None`
/// if there is no such file. proc(5).
#[track_caller]
pub fn proc_number(pid: i32, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    Some(value.split_whitespace().next().unwrap().parse().unwrap())
}

/// Waits for something of which the system sends no notification: checks every millisecond, until
/// [`DEADLINE`].
#[track_caller]
pub fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    eventually_within(DEADLINE, what, is_so);
}

/// Waits as [`eventually`] does, until `limit`.
#[track_caller]
pub fn eventually_within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < deadline, "still not: {what}");
        thread::park_timeout(Duration::from_millis(1));
    }
}

/// Returns whether a process has this file locked.
pub fn is_locked(path: &Path) -> bool {
    match File::open(path) {
        Ok(file) => file.try_lock_shared().is_err(),
        Err(_) => false,
    }
}

/// A process that does nothing and that any signal would end. Dropping it ends the process.
pub struct Bystander(Child);

impl Bystander {
    pub fn new() -> Bystander {
        let mut command = Command::new("sleep");
        Bystander(command.arg("1000").stdin(Stdio::null()).spawn().unwrap())
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    /// Asserts that the process was sent no signal that ends or stops a process.
    #[track_caller]
    pub fn assert_unharmed(&mut self) {
        assert!(self.0.try_wait().unwrap().is_none(), "another process was ended");
        assert_ne!(state_of(self.pid()), Some('T'), "another process was stopped");
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Sends an HTTP request. Returns the status and the body of the response.
pub fn http(port: u16, method: &str, path: &str, token: Option<&str>) -> (u16, String) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let authorization = token.map_or(String::new(), |t| format!("Authorization: Bearer {t}\r\n"));
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{authorization}\
         Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Returns whether nothing listens there.
pub fn is_refused(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let connected = TcpStream::connect_timeout(&address, DEADLINE);
    connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Copies the program under test.
#[track_caller]
pub fn copy_opta(to: &Path) {
    copy_program(OPTA.as_ref(), to);
}

/// Writes a program.
#[track_caller]
pub fn write_program(path: &Path, text: &str) {
    let source = path.with_extension("source");
    fs::write(&source, text).unwrap();
    copy_program(&source, path);
    fs::remove_file(source).unwrap();
}

/// Copies a program. Another process does it: a descriptor open for writing here would be inherited
/// by the children of other tests for a moment, and a file that is written cannot be executed.
#[track_caller]
fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("install").args(["-m", "755", "--"]).args([from, to]).status();
    assert!(copied.unwrap().success());
}

/// Returns all files in a directory, relative to it and sorted.
pub fn files_in(directory: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let inside = path.strip_prefix(directory).unwrap();
                files.push(inside.to_str().unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

/// Returns the permissions of a file.
pub fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

/// Creates a named pipe.
pub fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Returns the first line that is written to a pipe. The pipe is opened for reading and writing, so
/// that opening it does not wait: no thread hangs after a test that failed early.
pub fn line_of(path: &Path) -> String {
    let path = path.to_owned();
    let (sender, receiver) = channel();
    let reading = move || {
        let mut file = File::options().read(true).write(true).open(path).unwrap();
        let mut line = Vec::new();
        let mut byte = [0];
        while file.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.extend(byte);
        }
        drop(sender.send(String::from_utf8(line).unwrap()));
    };
    drop(thread::Builder::new().name("read a pipe".into()).spawn(reading).unwrap());
    receiver.recv_timeout(DEADLINE).expect("nothing is written to the pipe")
}

#[test]
fn a_pattern_matches_the_whole_text_and_one_value_per_name() {
    let none = HashMap::new();
    let found = captures("pid {pid}, {name}!\n", "pid 12, some ü!\n", &none).unwrap();
    assert_eq!((found["pid"].as_str(), found["name"].as_str()), ("12", "some ü"));
    assert!(captures("pid {pid}", "pid x", &none).is_none());
    assert!(captures("{pid} {pid}", "1 2", &none).is_none());
    assert!(captures("{pid} {pid}", "1 1", &none).is_some());
    assert!(captures("{*}", "a\nb", &none).is_some());
    assert!(captures(r#"{"pid":{pid}}"#, r#"{"pid":7}"#, &none).is_some());
    assert!(captures("", "x", &none).is_none());
}
