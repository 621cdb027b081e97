//! A command in a process group of its own, which ends as a whole.
//!
//! Each command has a keeper: a shell that leads its process group and reads from a pipe whose
//! other end only the daemon has. While the keeper has not been waited for, the group's number is
//! nobody else's; and when the daemon ends, however it ends, the pipe ends, and the keeper kills
//! the group. What a command leaves running in its group ends with it; what it has moved to another
//! one, with setsid(1) or a shell's job control, is out of reach and stays.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::Clip;
use crate::session::wake::Cancel;
use crate::sys::child::{self, End};
use crate::{limits, sys};

const SHELL: &str = "/bin/sh";
/// At the end of the pipe the whole group gets KILL. Other signals are for the others of the group:
/// the keeper begins with all of them ignored, and a shell leaves it at that.
const KEEPER: &str = "read -r _; kill -KILL 0";

/// Why a command has been left to itself no longer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    Timeout,
    Cancelled,
}

/// A command and its keeper. Dropping it ends the whole group, and waits for the two.
pub struct Running {
    keeper: Child,
    command: Child,
    /// Closed, it tells the keeper to end the group.
    _leash: PipeWriter,
}

impl Running {
    /// Starts `text` in the directory `place`, with these variables and no others.
    pub fn start(
        text: &str,
        place: BorrowedFd<'_>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> io::Result<Running> {
        let place = File::from(place.try_clone_to_owned()?);
        let (end, leash) = io::pipe()?;
        let mut keeper = Command::new(SHELL);
        keeper.args(["-c", KEEPER]).env_clear().current_dir("/").process_group(0);
        keeper.stdin(end).stdout(Stdio::null()).stderr(Stdio::null());
        child::deafen(&mut keeper);
        let mut keeper = keeper.spawn()?;
        let group = i32::try_from(keeper.id()).unwrap_or(0);
        let mut command = Command::new(SHELL);
        command.args(["-c", text]).env_clear().envs(environment).process_group(group);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        child::settle(&mut command, place);
        match command.spawn() {
            Ok(command) => Ok(Running { keeper, command, _leash: leash }),
            Err(error) => {
                drop(keeper.kill());
                drop(keeper.wait());
                Err(error)
            }
        }
    }

    /// Reads what the command writes to its standard output and standard error until it has ended,
    /// or has been made to.
    pub fn watch(
        &mut self,
        cancel: &Cancel,
        deadline: Instant,
        (written, errors): (&mut Clip, &mut Clip),
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
            let watched = watcher.read(cancel, written, errors);
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
    fn read(&mut self, cancel: &Cancel, written: &mut Clip, errors: &mut Clip) -> io::Result<()> {
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
                take(&mut self.stdout, written)?;
            }
            if err {
                take(&mut self.stderr, errors)?;
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

#[cfg(test)]
mod tests {
    use super::super::super::scratch::Scratch;
    use super::super::super::{Scene, Tool};
    use super::super::tests::{arguments, run};
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::path::Path;

    /// Runs it from a thread that blocks signals, as those of the daemon do. No other test gets it.
    fn run_blocking(scratch: &Scratch, command: &str) -> Result<String, String> {
        let blocking = || {
            sys::signal::block().unwrap();
            run(scratch, command)
        };
        thread::scope(|scope| scope.spawn(blocking).join().unwrap())
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
    const STUBBORN: &str = "sh -c 'trap \"\" TERM HUP; echo $$ > pipe; while :; do sleep 600; done' \
        & echo $$ > pipe; wait";

    /// A scratch with that pipe.
    fn with_pipe() -> Scratch {
        let scratch = Scratch::new();
        let pipe = scratch.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        scratch
    }

    fn two_pids(scratch: &Scratch) -> Vec<i32> {
        // Open for writing as well: between the two writers it must not end, nor lose a line.
        let pipe = File::options().read(true).write(true).open(scratch.path().join("pipe"));
        let lines = BufReader::new(pipe.unwrap()).lines().take(2);
        lines.map(|line| line.unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn a_cancelled_command_ends_with_all_that_it_has_started() {
        let scratch = with_pipe();
        let cancel = Cancel::new().unwrap();
        let job = Tool::RunCommand.job(&arguments(STUBBORN)).unwrap();
        thread::scope(|scope| {
            let running = scope.spawn(|| {
                let told = scratch.scene_with(&[], &cancel, |scene| job.attempt(scene));
                (told, Instant::now())
            });
            let pids = two_pids(&scratch);
            let wished = Instant::now();
            cancel.cancel();
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
        let scratch = with_pipe();
        let pipe = scratch.path().join("pipe");
        let cancel = Cancel::new().unwrap();
        let job = Tool::RunCommand.job(&arguments("echo > pipe; sleep 600")).unwrap();
        thread::scope(|scope| {
            let running =
                scope.spawn(|| scratch.scene_with(&[], &cancel, |scene| job.attempt(scene)));
            assert_eq!(File::open(&pipe).unwrap().read(&mut [0]).unwrap(), 1);
            let wished = Instant::now();
            cancel.cancel();
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
            drop(Tool::RunCommand.job(&arguments(STUBBORN)).unwrap().attempt(&scene));
            return;
        }
        let scratch = with_pipe();
        let name = "agent::tools::command::group::tests::commands_die_with_a_daemon_that_is_killed";
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
