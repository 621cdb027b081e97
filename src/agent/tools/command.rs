//! `run_command`: a shell command in the workspace, with the caller's environment instead of the
//! daemon's.
//!
//! Each command has a process group with a leader of its own: a shell that reads from a pipe, the
//! lifeline, whose other end only the daemon has. While the leader has not been waited for, no
//! other group has its number; and when the daemon ends, however it ends, the pipe ends, and the
//! leader kills the group. If a signal ends the leader first, the daemon kills the group at once.
//! Processes that a command leaves in its group end with it; those that it moves to another group,
//! with setsid(1) or a shell's job control, continue.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nanoserde::DeJson;

use crate::agent::clip::Clip;
use crate::error::reason;
use crate::json::MaybeQuoted;
use crate::session::wake::Cancel;
use crate::sys::Interest;
use crate::sys::child::{self, Termination};
use crate::{limits, sys};

use super::workspace::ToolContext;

/// Keys of model servers are the caller's secret, not the model's.
const SECRETS: [&str; 3] = ["OPTA_API_KEY", "OPTA_MODEL_KEY", "OPENAI_API_KEY"];

/// What replaces the caller's variables: there is no person who could use an editor, a pager or a
/// prompt, and no terminal.
const UNATTENDED: [(&str, &str); 8] = [
    ("EDITOR", "true"),
    ("GIT_EDITOR", "true"),
    ("GIT_PAGER", "cat"),
    ("GIT_SEQUENCE_EDITOR", "true"),
    ("GIT_TERMINAL_PROMPT", "0"),
    ("PAGER", "cat"),
    ("TERM", "dumb"),
    ("VISUAL", "true"),
];

/// For a caller that sends none.
const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

const SHELL: &str = "/bin/sh";
/// Kills the whole group at the end of the pipe. Other signals are for the rest of the group: the
/// leader starts with all of them ignored, and a shell does not change that.
const LEADER: &str = "read -r _; kill -KILL 0";

/// The arguments of `run_command`.
#[derive(DeJson)]
pub struct RunCommand {
    command: String,
    timeout_ms: Option<MaybeQuoted<u64>>,
    /// The same under the name that other agents use.
    timeout: Option<MaybeQuoted<u64>>,
}

impl RunCommand {
    /// Returns what the command wrote and how it ended. `Err` if it failed, with the same text.
    pub fn run(&self, context: &ToolContext<'_>) -> Result<String, String> {
        let left = context.deadline.saturating_duration_since(Instant::now());
        let limit = self.limit()?.min(left);
        let (status, watcher) = run(&self.command, context, limit)
            .map_err(|error| format!("the command cannot be started: {}", reason(&error)))?;
        let succeeded = status.success() && watcher.interruption.is_none();
        let text = watcher.text(status);
        if succeeded { Ok(text) } else { Err(text) }
    }

    /// Returns how long the command may run.
    fn limit(&self) -> Result<Duration, String> {
        let Some(&MaybeQuoted(asked_ms)) = self.timeout_ms.as_ref().or(self.timeout.as_ref())
        else {
            return Ok(limits::COMMAND_DEFAULT);
        };
        if asked_ms == 0 {
            return Err(format!(
                "timeout_ms must be at least 1; without it a command has {} s, and never more than {} s",
                limits::COMMAND_DEFAULT.as_secs(),
                limits::COMMAND_MAX.as_secs()
            ));
        }
        Ok(Duration::from_millis(asked_ms).min(limits::COMMAND_MAX))
    }
}

/// Returns what a command wrote to standard output, if it succeeded within
/// [`limits::QUESTION_MAX`].
pub fn output(command: &str, context: &ToolContext<'_>) -> Option<String> {
    let (status, watcher) = run(command, context, limits::QUESTION_MAX).ok()?;
    (status.success() && watcher.interruption.is_none()).then(|| watcher.stdout.clip.text())
}

fn run(
    command: &str,
    context: &ToolContext<'_>,
    limit: Duration,
) -> io::Result<(ExitStatus, Watcher)> {
    let workspace = context.workspace().map_err(io::Error::other)?;
    CommandGroup::start(command, workspace.root(), context)?.wait(context.cancel, limit)
}

/// Returns whether a command gets a variable. Some names would not even be accepted.
fn is_passed_on(name: &str) -> bool {
    let well_formed = !name.is_empty() && !name.contains(['=', '\0']);
    well_formed && !SECRETS.contains(&name)
}

/// A command and the leader of its group. Dropping it kills the whole group, and waits for the two.
struct CommandGroup {
    leader: Child,
    command: Child,
    /// When it is closed, the leader kills the group.
    _lifeline: PipeWriter,
}

impl CommandGroup {
    /// Starts `text` in `directory`, with the variables that a command gets and no others.
    fn start(
        text: &str,
        directory: BorrowedFd<'_>,
        context: &ToolContext<'_>,
    ) -> io::Result<CommandGroup> {
        let directory = File::from(directory.try_clone_to_owned()?);
        let (end, lifeline) = io::pipe()?;
        let mut leader = Command::new(SHELL);
        leader.args(["-c", LEADER]).env_clear().current_dir("/").process_group(0);
        leader.stdin(end).stdout(Stdio::piped()).stderr(Stdio::null());
        child::ignore_signals(&mut leader);
        let mut leader = leader.spawn()?;
        let group = i32::try_from(leader.id()).unwrap_or(0);
        let mut command = Command::new(SHELL);
        command.args(["-c", text]).env_clear().env("PATH", PATH_DEFAULT).process_group(group);
        let passed_on = context.environment.iter();
        let passed_on = passed_on.filter(|variable| is_passed_on(&variable.name));
        command.envs(passed_on.map(|variable| (&variable.name, &variable.value)));
        command.envs(UNATTENDED);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        child::prepare_child(&mut command, directory);
        child::detach_from_terminal(&mut command, context.umask);
        let command = command.spawn().inspect_err(|_| {
            drop(leader.kill());
            drop(leader.wait());
        })?;
        Ok(CommandGroup { leader, command, _lifeline: lifeline })
    }

    /// Reads what the command writes to its standard output and standard error until it has ended,
    /// or was made to end.
    fn wait(mut self, cancel: &Cancel, limit: Duration) -> io::Result<(ExitStatus, Watcher)> {
        let group = self.leader.id();
        let stdout = self.command.stdout.take().map(OwnedFd::from);
        let stderr = self.command.stderr.take().map(OwnedFd::from);
        let (exited, exit) = io::pipe()?;
        let mut watcher = Watcher {
            group,
            leader: self.leader.stdout.take(),
            exited: Some(exited),
            stdout: Output::new(stdout),
            stderr: Output::new(stderr),
            limit,
            deadline: Instant::now() + limit,
            interruption: None,
        };
        let command = &mut self.command;
        let status = thread::scope(|scope| {
            let wait = move || {
                let status = command.wait();
                drop(exit);
                status
            };
            let waiter = thread::Builder::new().name("command".into()).spawn_scoped(scope, wait)?;
            let watched = watcher.watch(cancel);
            // Ends the rest of the group, and thus the wait.
            child::signal_group(group, Termination::Force);
            let status = waiter.join().unwrap_or_else(|_| Err(io::Error::other("a thread failed")));
            watched.and(status)
        })?;
        Ok((status, watcher))
    }
}

impl Drop for CommandGroup {
    fn drop(&mut self) {
        child::signal_group(self.leader.id(), Termination::Force);
        // Both have received SIGKILL: this does not take long.
        drop(self.command.wait());
        drop(self.leader.wait());
    }
}

/// One of a command's two streams.
struct Output {
    /// `None` after its end.
    file: Option<File>,
    clip: Clip,
}

impl Output {
    fn new(file: Option<OwnedFd>) -> Output {
        let clip = Clip::new(limits::RESULT_BYTES_MAX / 2 - 256);
        Output { file: file.map(File::from), clip }
    }

    /// Reads once.
    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        match self.file.as_mut().map_or(Ok(0), |file| file.read(&mut chunk)) {
            Ok(0) => self.file = None,
            Ok(count) => self.clip.push(chunk.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// A command that is waited for: what it wrote so far, and why it was made to end.
struct Watcher {
    group: u32,
    /// Readable when the leader has ended; `None` once it has.
    leader: Option<ChildStdout>,
    /// Readable when the command itself has exited; `None` once it has.
    exited: Option<PipeReader>,
    stdout: Output,
    stderr: Output,
    limit: Duration,
    deadline: Instant,
    /// Why the command was made to end, for the result.
    interruption: Option<String>,
}

impl Watcher {
    fn watch(&mut self, cancel: &Cancel) -> io::Result<()> {
        loop {
            let now = Instant::now();
            if now >= self.deadline {
                if self.exited.is_none() || self.interruption.is_some() {
                    return Ok(());
                }
                let millis = self.limit.as_millis();
                self.interrupt(format!("[ended after {millis} ms: out of time]"));
            }
            // After the exit, only what was already written is read: background processes would
            // keep the streams open forever. After an interruption it has time to end.
            let left = match self.exited.is_none() && self.interruption.is_none() {
                true => Duration::ZERO,
                false => self.deadline.saturating_duration_since(now),
            };
            let ready @ [unled, cancelled, exited, stdout, stderr] = self.wait(cancel, left)?;
            if unled {
                // Nothing else would end the group if the daemon were killed now.
                self.leader = None;
                let by_whom = "[ended: the process that guards the command was killed]";
                self.interruption.get_or_insert(by_whom.to_owned());
                child::signal_group(self.group, Termination::Force);
            }
            if cancelled {
                self.interrupt("[cancelled]".to_owned());
            }
            if exited {
                self.exited = None;
                self.deadline = self.deadline.min(now + limits::COMMAND_GRACE);
            }
            if stdout {
                self.stdout.read()?;
            }
            if stderr {
                self.stderr.read()?;
            }
            let closed = self.stdout.file.is_none() && self.stderr.file.is_none();
            let drained = self.interruption.is_none() && ready == [false; 5];
            if self.exited.is_none() && (closed || drained) {
                return Ok(());
            }
        }
    }

    /// Waits until something is ready: the leader's end, the cancel, the exit, the two streams.
    fn wait(&self, cancel: &Cancel, limit: Duration) -> io::Result<[bool; 5]> {
        let files = [
            self.leader.as_ref().map(AsFd::as_fd),
            self.interruption.is_none().then(|| cancel.as_fd()),
            self.exited.as_ref().map(AsFd::as_fd),
            self.stdout.file.as_ref().map(AsFd::as_fd),
            self.stderr.file.as_ref().map(AsFd::as_fd),
        ];
        let open: Vec<_> = files.iter().flatten().map(|file| (*file, Interest::Read)).collect();
        let mut ready = sys::wait_any(&open, Some(limit))?.into_iter();
        Ok(files.map(|file| file.is_some() && ready.next() == Some(true)))
    }

    /// Asks the group to end, within the grace period.
    fn interrupt(&mut self, interruption: String) {
        self.interruption = Some(interruption);
        self.deadline = Instant::now() + limits::COMMAND_GRACE;
        child::signal_group(self.group, Termination::Ask);
    }

    /// Returns what the command wrote, and then how it ended.
    fn text(self, status: ExitStatus) -> String {
        let errors = self.stderr.clip.text();
        let errors = if errors.is_empty() { errors } else { format!("[stderr] {errors}") };
        let mut text = String::new();
        for part in [self.stdout.clip.text(), errors, self.interruption.unwrap_or_default()] {
            text.push_str(&part);
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
        }
        text.push_str(&match status.code() {
            Some(code) => format!("[exit code: {code}]"),
            None => format!("[ended by signal {}]", status.signal().unwrap_or(0)),
        });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::scratch::{Scratch, context};
    use crate::agent::tools::{Operation, Tool};
    use crate::json;
    use crate::protocol::Variable;
    use std::io::{BufRead, BufReader};
    use std::path::Path;

    fn arguments(command: &str) -> String {
        format!(r#"{{"command":{},"timeout_ms":60000}}"#, json::text(&command.to_owned()))
    }

    fn operation(command: &str) -> Operation {
        Tool::named("run_command").unwrap().parse(&arguments(command)).unwrap()
    }

    fn run(scratch: &Scratch, command: &str) -> Result<String, String> {
        scratch.run("run_command", &arguments(command))
    }

    #[test]
    fn the_result_has_output_and_exit_status() {
        let scratch = Scratch::new();
        assert_eq!(
            run(&scratch, "echo one; pwd -P").unwrap(),
            format!("one\n{}\n[exit code: 0]", scratch.path().display())
        );
        assert_eq!(
            run(&scratch, "printf x; printf y >&2; exit 7").unwrap_err(),
            "x\n[stderr] y\n[exit code: 7]"
        );
        assert_eq!(run(&scratch, "kill -9 $$").unwrap_err(), "[ended by signal 9]");
        assert_eq!(run(&scratch, "cat").unwrap(), "[exit code: 0]");
        assert_eq!(run(&scratch, "printf '\\377'").unwrap(), "\u{fffd}\n[exit code: 0]");
        assert_eq!(run(&scratch, "umask").unwrap(), "0022\n[exit code: 0]");
    }

    #[test]
    fn long_output_keeps_its_beginning_and_its_end() {
        let scratch = Scratch::new();
        let text = run(&scratch, "i=0; while [ $i -lt 30000 ]; do echo line $i; i=$((i+1)); done")
            .unwrap();
        assert!(text.len() <= limits::RESULT_BYTES_MAX);
        assert!(
            text.starts_with("line 0\n") && text.ends_with("line 29999\n[exit code: 0]"),
            "{text}"
        );
    }

    #[test]
    fn the_environment_is_the_callers_without_keys() {
        let scratch = Scratch::new();
        let pair =
            |name: &str, value: &str| Variable { name: name.to_owned(), value: value.to_owned() };
        let environment = [
            pair("PATH", "/bin:/usr/bin"),
            pair("MINE", "ü\n"),
            pair("TERM", "xterm"),
            pair("OPENAI_API_KEY", "sk"),
            pair("A=B", "x"),
            pair("", "x"),
            pair("N\0", "x"),
        ];
        let operation = operation("env | sort");
        let cancel = Cancel::new().unwrap();
        let text = scratch
            .with_context_of(&environment, &cancel, |context| (operation.attempt)(context))
            .unwrap();
        let names: Vec<&str> =
            text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        let own = ["PWD", "OLDPWD", "SHLVL", "_"];
        let names: Vec<&str> = names.into_iter().filter(|name| !own.contains(name)).collect();
        let unattended = UNATTENDED.iter().map(|(name, _)| *name);
        let mut wanted: Vec<&str> = unattended.chain(["MINE", "PATH"]).collect();
        wanted.sort_unstable();
        assert_eq!(names, wanted, "{text}");
        assert!(text.contains("TERM=dumb\n") && !text.contains("xterm"), "{text}");
    }

    #[test]
    fn a_timeout_is_what_the_result_says() {
        let limit = |timeout: &str| {
            let text = format!(r#"{{"command":"true"{timeout}}}"#);
            json::parse::<RunCommand>(text.as_bytes()).unwrap().limit()
        };
        assert_eq!(limit(""), Ok(limits::COMMAND_DEFAULT));
        assert_eq!(limit(r#","timeout_ms":1"#), Ok(Duration::from_millis(1)));
        assert_eq!(limit(r#","timeout":"2""#), Ok(Duration::from_millis(2)));
        assert_eq!(limit(r#","timeout":2,"timeout_ms":1"#), Ok(Duration::from_millis(1)));
        for most in [r#""timeout_ms":600000"#, r#""timeout_ms":600001"#, r#""timeout":600001"#] {
            assert_eq!(limit(&format!(",{most}")), Ok(limits::COMMAND_MAX));
        }
        assert!(
            limit(r#","timeout":0"#).unwrap_err().starts_with("timeout_ms must be at least 1;")
        );
        let scratch = Scratch::new();
        let refused = scratch.run("run_command", r#"{"command":"touch ran","timeout_ms":0}"#);
        let because = "timeout_ms must be at least 1; without it a command has 30 s, and never \
                       more than 600 s";
        assert_eq!(refused.unwrap_err(), because);
        assert!(!scratch.path().join("ran").exists());
        // The time that is left for the turn, if that is less.
        let operation = operation("sleep 600");
        let cancel = Cancel::new().unwrap();
        let deadline = Instant::now() + Duration::from_millis(300);
        let context = ToolContext { deadline, ..context(scratch.path(), &[], &cancel) };
        let result = (operation.attempt)(&context).unwrap_err();
        let millis = result.strip_prefix("[ended after ").unwrap().split(' ').next().unwrap();
        assert!(millis.parse::<u64>().unwrap() <= 300, "{result}");
    }

    /// Runs a command on a thread that blocks signals, like those of the daemon. No other test uses
    /// the thread.
    fn run_blocking(scratch: &Scratch, command: &str) -> Result<String, String> {
        let blocking = || {
            sys::signal::block().unwrap();
            run(scratch, command)
        };
        thread::scope(|scope| scope.spawn(blocking).join().unwrap())
    }

    #[test]
    fn a_command_inherits_no_descriptor_and_no_signal_disposition() {
        let scratch = Scratch::new();
        let _open = File::open("/dev/null").unwrap();
        if Path::new("/proc/self/fd").exists() {
            // The state of the shell itself: it may change it for programs that it starts.
            let status = "while read -r one; do echo \"$one\"; done < /proc/$$/status";
            let text = run_blocking(&scratch, &format!("ls /proc/$$/fd; {status}")).unwrap();
            assert!(text.starts_with("0\n1\n2\nName:"), "{text}");
            assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
            assert!(text.contains("SigIgn:\t0000000000000000"), "{text}");
        }
    }

    #[test]
    fn processes_of_a_command_can_be_ended_by_signals() {
        let scratch = Scratch::new();
        for (signal, status) in [("TERM", 143), ("HUP", 129)] {
            let command = format!("(sleep 21) & kill -{signal} $!; wait $!; echo rc=$?");
            let text = run_blocking(&scratch, &command).unwrap();
            assert!(text.starts_with(&format!("rc={status}\n")), "{text}");
        }
    }

    #[test]
    fn a_command_is_ended_at_its_timeout_whether_it_waits_or_is_busy() {
        let scratch = Scratch::new();
        for command in ["sleep 600", "yes", "exec 1>&- 2>&-; sleep 600", "trap '' TERM; sleep 600"]
        {
            let text = format!(r#"{{"command":"{command}","timeout_ms":200}}"#);
            let began = Instant::now();
            let result = scratch.run("run_command", &text).unwrap_err();
            assert!(result.contains("[ended after 200 ms: out of time]"), "{result}");
            assert!(began.elapsed() < Duration::from_secs(30));
        }
    }

    #[test]
    fn processes_in_the_background_neither_delay_the_result_nor_stay() {
        let scratch = Scratch::new();
        let began = Instant::now();
        let text = run(&scratch, &format!("sleep 600 & echo $!; ({BUSY}) & echo $!")).unwrap();
        assert!(began.elapsed() < Duration::from_secs(30));
        for pid in text.lines().filter_map(|line| line.parse::<i32>().ok()) {
            wait_until_gone(pid);
        }
        assert!(run(&scratch, "yes & echo done").unwrap().starts_with(['y', 'd']));
    }

    /// Keeps a processor busy, but for a minute at most.
    const BUSY: &str = "end=$(($(date +%s) + 60)); while [ $(date +%s) -lt $end ]; do :; done";

    /// Waits until a killed process was reaped by its new parent, for which there is no event.
    fn wait_until_gone(pid: i32) {
        let Some(process) = sys::process::Process::open(pid).unwrap() else {
            return;
        };
        assert!(
            process.wait(Duration::from_secs(30), Duration::from_millis(10)).unwrap(),
            "{pid} still exists"
        );
    }

    /// A command that writes its own pid and that of a child that ignores TERM to a pipe, then
    /// waits. The pipe tells the test when.
    const STUBBORN: &str = "sh -c 'trap \"\" TERM HUP; echo $$ > pipe; for one in 1 2 3 4 5 6 7 8 9 10; do sleep 60; done' \
        & echo $$ > pipe; wait";

    /// A scratch with that pipe.
    fn with_pipe() -> Scratch {
        let scratch = Scratch::new();
        let pipe = scratch.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        scratch
    }

    fn two_pids(scratch: &Scratch) -> Vec<i32> {
        // Open for writing as well, so that it neither ends nor loses a line between the two
        // writers.
        let pipe = File::options().read(true).write(true).open(scratch.path().join("pipe"));
        let lines = BufReader::new(pipe.unwrap()).lines().take(2);
        lines.map(|line| line.unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn a_cancelled_command_ends_with_all_processes_that_it_started() {
        let scratch = with_pipe();
        let cancel = Cancel::new().unwrap();
        let operation = operation(STUBBORN);
        thread::scope(|scope| {
            let running = scope.spawn(|| {
                let result =
                    scratch.with_context_of(&[], &cancel, |context| (operation.attempt)(context));
                (result, Instant::now())
            });
            let pids = two_pids(&scratch);
            let cancelled = Instant::now();
            cancel.cancel();
            let (result, ended) = running.join().unwrap();
            assert!(result.unwrap_err().contains("[cancelled]"));
            // The child that ignores TERM has the grace period, and no more.
            assert!(ended - cancelled >= limits::COMMAND_GRACE);
            assert!(ended - cancelled < limits::COMMAND_GRACE * 5);
            pids.into_iter().for_each(wait_until_gone);
        });
    }

    #[test]
    fn a_command_is_cancelled_at_once() {
        let scratch = with_pipe();
        let pipe = scratch.path().join("pipe");
        let cancel = Cancel::new().unwrap();
        let operation = operation("echo > pipe; sleep 600");
        thread::scope(|scope| {
            let running = scope.spawn(|| {
                scratch.with_context_of(&[], &cancel, |context| (operation.attempt)(context))
            });
            assert_eq!(File::open(&pipe).unwrap().read(&mut [0]).unwrap(), 1);
            let cancelled = Instant::now();
            cancel.cancel();
            running.join().unwrap().unwrap_err();
            let elapsed = cancelled.elapsed();
            assert!(elapsed < limits::COMMAND_GRACE / 2, "nothing ignores TERM: {elapsed:?}");
        });
    }

    /// Kills the process that runs commands, as a daemon may be killed: no command outlives it.
    #[test]
    fn commands_die_with_a_daemon_that_is_killed() {
        const MARK: &str = "OPTA_TEST_COMMAND_IN";
        #[expect(clippy::disallowed_methods, reason = "no setting of the program")]
        let place = std::env::var(MARK);
        if let Ok(place) = place {
            let cancel = Cancel::new().unwrap();
            let context = context(Path::new(&place), &[], &cancel);
            drop((operation(STUBBORN).attempt)(&context));
            return;
        }
        let scratch = with_pipe();
        let name = "agent::tools::command::tests::commands_die_with_a_daemon_that_is_killed";
        let mut daemon = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(MARK, scratch.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pids = two_pids(&scratch);
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        pids.into_iter().for_each(wait_until_gone);
    }
}
