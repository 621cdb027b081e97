//! `run_command`: a shell command in the workspace, with the caller's environment and nothing of
//! the daemon's.
//!
//! Each command has a keeper: a shell that leads its process group and reads from a pipe whose
//! other end only the daemon has. While the keeper has not been waited for, the group's number is
//! nobody else's; and when the daemon ends, however it ends, the pipe ends, and the keeper kills
//! the group. What a command leaves running in its group ends with it; what it has moved to another
//! one, with setsid(1) or a shell's job control, is out of reach and stays.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nanoserde::DeJson;

use crate::error::reason;
use crate::json::Quoted;
use crate::session::wake::Cancel;
use crate::sys::child::{self, End};
use crate::{limits, sys};

use super::Scene;
use super::clip::Clip;

const SHELL: &str = "/bin/sh";
/// At the end of the pipe the whole group gets KILL. Other signals are for the others of the group:
/// the keeper begins with all of them ignored, and a shell leaves it at that.
const KEEPER: &str = "read -r _; kill -KILL 0";
/// For a caller that brings none.
const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";
/// Keys of model servers are the caller's secret, not the model's.
const SECRETS: [&str; 3] = ["OPTA_API_KEY", "OPTA_MODEL_KEY", "OPENAI_API_KEY"];

/// The arguments of `run_command`.
#[derive(DeJson)]
pub struct Run {
    pub command: String,
    timeout_ms: Option<Quoted<u64>>,
}

/// Why a command has been left to itself no longer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    Timeout,
    Cancelled,
}

impl Run {
    /// What the command has written and how it ended. `Err` if it failed, with the same text.
    pub fn run(&self, scene: &Scene<'_>) -> Result<String, String> {
        let left = scene.deadline.saturating_duration_since(Instant::now());
        let limit = limit(self.timeout_ms.map(|Quoted(millis)| millis))?.min(left);
        let deadline = Instant::now() + limit;
        let failed =
            |error: io::Error| format!("the command cannot be started: {}", reason(&error));
        let mut output = Output::default();
        let mut running = Running::start(&self.command, scene).map_err(failed)?;
        let (status, cut) = running.watch(scene, deadline, &mut output).map_err(failed)?;
        drop(running);
        let text = output.text(status, cut, limit);
        if status.success() && cut.is_none() { Ok(text) } else { Err(text) }
    }
}

/// A command and its keeper. Dropping it ends the whole group, and waits for the two.
struct Running {
    keeper: Child,
    command: Child,
    /// Closed, it tells the keeper to end the group.
    _leash: PipeWriter,
}

impl Running {
    fn start(text: &str, scene: &Scene<'_>) -> io::Result<Running> {
        let workspace = scene.workspace().map_err(io::Error::other)?;
        let (end, leash) = io::pipe()?;
        let mut keeper = Command::new(SHELL);
        keeper.args(["-c", KEEPER]).env_clear().current_dir("/").process_group(0);
        keeper.stdin(end).stdout(Stdio::null()).stderr(Stdio::null());
        child::deafen(&mut keeper);
        let mut keeper = keeper.spawn()?;
        let group = i32::try_from(keeper.id()).unwrap_or(0);
        let mut command = Command::new(SHELL);
        command.args(["-c", text]).env_clear().env("PATH", PATH_DEFAULT).process_group(group);
        command.envs(scene.environment.iter().filter(|(name, _)| is_passed_on(name)).cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        child::settle(&mut command, File::from(workspace.root().try_clone_to_owned()?));
        match command.spawn() {
            Ok(command) => Ok(Running { keeper, command, _leash: leash }),
            Err(error) => {
                drop(keeper.kill());
                drop(keeper.wait());
                Err(error)
            }
        }
    }

    /// Reads what the command writes until it has ended, or has been made to.
    fn watch(
        &mut self,
        scene: &Scene<'_>,
        deadline: Instant,
        output: &mut Output,
    ) -> io::Result<(ExitStatus, Option<Cut>)> {
        let group = self.keeper.id();
        let stdout = self.command.stdout.take().map(|end| File::from(OwnedFd::from(end)));
        let stderr = self.command.stderr.take().map(|end| File::from(OwnedFd::from(end)));
        let (ended, tell) = io::pipe()?;
        let (never, _silent) = io::pipe()?;
        let mut watcher =
            Watcher { ended, gone: false, stdout, stderr, never, deadline, cut: None, group };
        let command = &mut self.command;
        thread::scope(|scope| {
            let wait = move || {
                let status = command.wait();
                drop(tell);
                status
            };
            let waiter = thread::Builder::new().name("command".into()).spawn_scoped(scope, wait)?;
            let watched = watcher.read(scene.cancel, output);
            // What is left of the group ends here, so the waiter does as well.
            child::signal_group(group, End::Force);
            let status = waiter.join().unwrap_or_else(|_| Err(io::Error::other("a thread failed")));
            watched?;
            Ok((status?, watcher.cut))
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        child::signal_group(self.keeper.id(), End::Force);
        // Both have got KILL: this does not take long.
        drop(self.command.wait());
        drop(self.keeper.wait());
    }
}

/// What a running command is waited for with.
struct Watcher {
    /// Readable when the command itself has ended.
    ended: PipeReader,
    gone: bool,
    /// `None` when nobody can write to it any more.
    stdout: Option<File>,
    stderr: Option<File>,
    /// Stands in the place of what has ended: it is never readable.
    never: PipeReader,
    deadline: Instant,
    cut: Option<Cut>,
    group: u32,
}

impl Watcher {
    fn read(&mut self, cancel: &Cancel, output: &mut Output) -> io::Result<()> {
        loop {
            let now = Instant::now();
            if now >= self.deadline {
                if self.gone || self.cut.is_some() {
                    return Ok(());
                }
                self.cut(Cut::Timeout);
            }
            // When it has ended, only what it has written is still read: what it has left behind in
            // the background would keep its streams open for ever. After a cut that has time to
            // leave.
            let left = match self.gone && self.cut.is_none() {
                true => Duration::ZERO,
                false => self.deadline.saturating_duration_since(now),
            };
            let [ended, cancelled, out, err] = self.wait(cancel, left)?;
            if cancelled {
                self.cut(Cut::Cancelled);
            }
            if ended {
                self.gone = true;
                self.deadline = self.deadline.min(now + limits::COMMAND_GRACE);
            }
            if out {
                take(&mut self.stdout, &mut output.stdout)?;
            }
            if err {
                take(&mut self.stderr, &mut output.stderr)?;
            }
            let silent = self.stdout.is_none() && self.stderr.is_none();
            let drained = self.cut.is_none() && !(ended || out || err);
            if self.gone && (silent || drained) {
                return Ok(());
            }
        }
    }

    fn wait(&self, cancel: &Cancel, left: Duration) -> io::Result<[bool; 4]> {
        let never = self.never.as_fd();
        let files = [
            if self.gone { never } else { self.ended.as_fd() },
            if self.cut.is_some() { never } else { cancel.as_fd() },
            self.stdout.as_ref().map_or(never, AsFd::as_fd),
            self.stderr.as_ref().map_or(never, AsFd::as_fd),
        ];
        sys::wait_readable(files, Some(left))
    }

    /// Asks the group to end; from now on there is only so much time.
    fn cut(&mut self, cut: Cut) {
        self.cut = Some(cut);
        self.deadline = Instant::now() + limits::COMMAND_GRACE;
        child::signal_group(self.group, End::Ask);
    }
}

/// Reads once; at its end the stream becomes `None`.
fn take(stream: &mut Option<File>, clip: &mut Clip) -> io::Result<()> {
    let mut chunk = [0; 16 * 1024];
    match stream.as_mut().map_or(Ok(0), |stream| stream.read(&mut chunk)) {
        Ok(0) => *stream = None,
        Ok(count) => clip.push(chunk.get(..count).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// What a command has written.
struct Output {
    stdout: Clip,
    stderr: Clip,
}

impl Default for Output {
    fn default() -> Output {
        let clip = || Clip::new(limits::RESULT_BYTES_MAX / 2 - 256);
        Output { stdout: clip(), stderr: clip() }
    }
}

impl Output {
    fn text(self, status: ExitStatus, cut: Option<Cut>, limit: Duration) -> String {
        let mut text = self.stdout.text();
        let on_new_line = |text: &mut String| {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
        };
        let errors = self.stderr.text();
        if !errors.is_empty() {
            on_new_line(&mut text);
            text.push_str("[stderr] ");
            text.push_str(&errors);
        }
        on_new_line(&mut text);
        match cut {
            Some(Cut::Timeout) => {
                text.push_str(&format!("[ended after {} ms: out of time]\n", limit.as_millis()));
            }
            Some(Cut::Cancelled) => text.push_str("[cancelled]\n"),
            None => {}
        }
        match status.code() {
            Some(code) => text.push_str(&format!("[exit code: {code}]")),
            None => {
                let signal = status.signal().unwrap_or(0);
                text.push_str(&format!("[ended by signal {signal}]"));
            }
        }
        text
    }
}

/// How long a command may run, if a call asks for so many milliseconds.
fn limit(asked: Option<u64>) -> Result<Duration, String> {
    match asked {
        None => Ok(limits::COMMAND_DEFAULT),
        Some(0) => Err(format!(
            "timeout_ms must be at least 1; without it a command has {} ms, and never more than {}",
            limits::COMMAND_DEFAULT.as_millis(),
            limits::COMMAND_MAX.as_millis()
        )),
        Some(millis) => Ok(Duration::from_millis(millis).min(limits::COMMAND_MAX)),
    }
}

/// Whether a command gets to see a variable. Some names would not even be accepted.
fn is_passed_on(name: &str) -> bool {
    let well_formed = !name.is_empty() && !name.contains(['=', '\0']);
    well_formed && !SECRETS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::super::Tool;
    use super::super::scratch::Scratch;
    use super::*;
    use crate::json;
    use std::io::{BufRead, BufReader};
    use std::path::Path;

    fn arguments(command: &str) -> String {
        format!(r#"{{"command":{},"timeout_ms":60000}}"#, json::text(&command.to_owned()))
    }

    fn run(scratch: &Scratch, command: &str) -> Result<String, String> {
        scratch.run("run_command", &arguments(command))
    }

    /// The same in a thread that blocks signals, as those of the daemon do. No other test gets it.
    fn run_blocking(scratch: &Scratch, command: &str) -> Result<String, String> {
        let blocking = || {
            sys::signal::block().unwrap();
            run(scratch, command)
        };
        thread::scope(|scope| scope.spawn(blocking).join().unwrap())
    }

    #[test]
    fn output_and_exit_status_are_told() {
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
    fn long_output_keeps_head_and_tail() {
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
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let environment = [
            pair("PATH", "/bin:/usr/bin"),
            pair("MINE", "ü\n"),
            pair("OPENAI_API_KEY", "sk"),
            pair("A=B", "x"),
            pair("", "x"),
            pair("N\0", "x"),
        ];
        let job = Tool::RunCommand.job(&arguments("env | sort")).unwrap();
        let cancel = Cancel::new().unwrap();
        let text = scratch.scene_with(&environment, &cancel, |scene| job.attempt(scene)).unwrap();
        let names: Vec<&str> =
            text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        let own = ["PWD", "OLDPWD", "SHLVL", "_"];
        let names: Vec<&str> = names.into_iter().filter(|name| !own.contains(name)).collect();
        assert_eq!(names, ["MINE", "PATH"], "{text}");
    }

    #[test]
    fn no_descriptor_and_no_signal_disposition_is_handed_on() {
        let scratch = Scratch::new();
        let _open = File::open("/dev/null").unwrap();
        if Path::new("/proc/self/fd").exists() {
            // Of the shell itself: it may do otherwise for programs that it starts.
            let status = "while read -r one; do echo \"$one\"; done < /proc/$$/status";
            let text = run_blocking(&scratch, &format!("ls /proc/$$/fd; {status}")).unwrap();
            assert!(text.starts_with("0\n1\n2\nName:"), "{text}");
            assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
            assert!(text.contains("SigIgn:\t0000000000000000"), "{text}");
        }
    }

    #[test]
    fn what_a_command_starts_can_be_ended_by_signals() {
        let scratch = Scratch::new();
        for (signal, status) in [("TERM", 143), ("HUP", 129)] {
            let command = format!("(sleep 21) & kill -{signal} $!; wait $!; echo rc=$?");
            let text = run_blocking(&scratch, &command).unwrap();
            assert!(text.starts_with(&format!("rc={status}\n")), "{text}");
        }
    }

    #[test]
    fn a_command_that_is_too_slow_is_ended_and_a_busy_one_as_well() {
        let scratch = Scratch::new();
        for command in ["sleep 600", "yes", "exec 1>&- 2>&-; sleep 600", "trap '' TERM; sleep 600"]
        {
            let text = format!(r#"{{"command":"{command}","timeout_ms":200}}"#);
            let began = Instant::now();
            let told = scratch.run("run_command", &text).unwrap_err();
            assert!(told.contains("[ended after 200 ms: out of time]"), "{told}");
            assert!(began.elapsed() < Duration::from_secs(30));
        }
    }

    #[test]
    fn the_time_of_a_command_is_what_its_end_says() {
        let most = u64::try_from(limits::COMMAND_MAX.as_millis()).unwrap();
        assert_eq!(limit(None), Ok(limits::COMMAND_DEFAULT));
        assert_eq!(limit(Some(1)), Ok(Duration::from_millis(1)));
        for asked in [most, most + 1, 99_999_999, u64::MAX] {
            assert_eq!(limit(Some(asked)), Ok(limits::COMMAND_MAX));
        }
        let scratch = Scratch::new();
        let refused = scratch.run("run_command", r#"{"command":"touch ran","timeout_ms":0}"#);
        let because = "timeout_ms must be at least 1; without it a command has 30000 ms, and never \
                       more than 600000";
        assert_eq!(refused.unwrap_err(), because);
        assert!(!scratch.path().join("ran").exists());
        // That of the turn, if it has less.
        let job = Tool::RunCommand.job(&arguments("sleep 600")).unwrap();
        let cancel = Cancel::new().unwrap();
        let deadline = Instant::now() + Duration::from_millis(300);
        let told = job.attempt(&Scene::new(scratch.path().to_str(), &[], &[], &cancel, deadline));
        let told = told.unwrap_err();
        let millis = told.strip_prefix("[ended after ").unwrap().split(' ').next().unwrap();
        assert!(millis.parse::<u64>().unwrap() <= 300, "{told}");
    }

    #[test]
    fn what_is_left_in_the_background_neither_delays_nor_stays() {
        let scratch = Scratch::new();
        let began = Instant::now();
        let text = run(&scratch, "sleep 600 & echo $!; yes >/dev/null & echo $!").unwrap();
        assert!(began.elapsed() < Duration::from_secs(30));
        for pid in text.lines().filter_map(|line| line.parse::<i32>().ok()) {
            wait_until_gone(pid);
        }
        assert!(run(&scratch, "yes & echo done").unwrap().starts_with(['y', 'd']));
    }

    /// Killed, and still to be reaped by whoever has inherited it: there is no event for that.
    fn wait_until_gone(pid: i32) {
        let Some(process) = sys::process::Process::open(pid).unwrap() else {
            return;
        };
        assert!(process.wait(Duration::from_secs(30)).unwrap(), "{pid} is still there");
    }

    /// A command that says the numbers of itself and of a child that ignores TERM into a pipe, then
    /// waits. With the pipe the test knows when.
    fn stubborn(scratch: &Scratch) -> String {
        let pipe = scratch.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        "sh -c 'trap \"\" TERM HUP; echo $$ > pipe; while :; do sleep 600; done' & echo $$ > pipe; wait"
            .to_owned()
    }

    fn two_pids(scratch: &Scratch) -> Vec<i32> {
        // Open for writing as well: between the two writers it must not end, nor lose a line.
        let pipe = File::options().read(true).write(true).open(scratch.path().join("pipe"));
        let lines = BufReader::new(pipe.unwrap()).lines().take(2);
        lines.map(|line| line.unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn a_cancelled_command_ends_with_all_that_it_has_started() {
        let scratch = Scratch::new();
        let command = stubborn(&scratch);
        let cancel = Cancel::new().unwrap();
        let job = Tool::RunCommand.job(&arguments(&command)).unwrap();
        thread::scope(|scope| {
            let running = scope.spawn(|| {
                let told = scratch.scene_with(&[], &cancel, |scene| job.attempt(scene));
                (told, Instant::now())
            });
            let pids = two_pids(&scratch);
            let wished = Instant::now();
            cancel.wish();
            let (told, ended) = running.join().unwrap();
            assert!(told.unwrap_err().contains("[cancelled]"));
            // The one that ignores TERM has its time, and no more.
            assert!(ended - wished >= limits::COMMAND_GRACE);
            assert!(ended - wished < limits::COMMAND_GRACE * 5);
            pids.into_iter().for_each(wait_until_gone);
        });
    }

    #[test]
    fn cancel_reaches_a_command_at_once() {
        let scratch = Scratch::new();
        let pipe = scratch.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let cancel = Cancel::new().unwrap();
        let job = Tool::RunCommand.job(&arguments("echo > pipe; sleep 600")).unwrap();
        thread::scope(|scope| {
            let running =
                scope.spawn(|| scratch.scene_with(&[], &cancel, |scene| job.attempt(scene)));
            assert_eq!(File::open(&pipe).unwrap().read(&mut [0]).unwrap(), 1);
            let wished = Instant::now();
            cancel.wish();
            running.join().unwrap().unwrap_err();
            let elapsed = wished.elapsed();
            assert!(elapsed < limits::COMMAND_GRACE / 2, "nothing was waited for: {elapsed:?}");
        });
    }

    /// The process that runs commands is killed, as a daemon may be; none of them outlives it.
    #[test]
    fn commands_die_with_a_daemon_that_is_killed() {
        const MARK: &str = "OPTA_TEST_COMMAND_IN";
        #[expect(clippy::disallowed_methods, reason = "no setting of the program")]
        let place = std::env::var(MARK);
        if let Ok(place) = place {
            let cancel = Cancel::new().unwrap();
            let deadline = Instant::now() + Duration::from_secs(60);
            let scene = Scene::new(Some(&place), &[], &[], &cancel, deadline);
            let command = "sh -c 'trap \"\" TERM HUP; echo $$ > pipe; while :; do sleep 600; done' & echo $$ > pipe; wait";
            drop(Tool::RunCommand.job(&arguments(command)).unwrap().attempt(&scene));
            return;
        }
        let scratch = Scratch::new();
        stubborn(&scratch);
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
