//! `run_command`: a shell command in the workspace, with the caller's environment and nothing of
//! the daemon's.

mod group;

use std::io;
use std::iter;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nanoserde::DeJson;

use crate::error::reason;
use crate::json::Quoted;
use crate::limits;
use crate::protocol::Variable;

use super::Scene;
use super::clip::Clip;
use group::{Cut, Running};

/// Keys of model servers are the caller's secret, not the model's.
const SECRETS: [&str; 3] = ["OPTA_API_KEY", "OPTA_MODEL_KEY", "OPENAI_API_KEY"];

/// For a caller that brings none.
const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// The arguments of `run_command`.
#[derive(DeJson)]
pub struct Run {
    pub command: String,
    timeout_ms: Option<Quoted<u64>>,
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
        let workspace = scene.workspace().map_err(io::Error::other).map_err(failed)?;
        let path = ("PATH".to_owned(), PATH_DEFAULT.to_owned());
        let passed_on = scene.environment.iter().filter(|variable| is_passed_on(&variable.name));
        let passed_on = passed_on.map(|Variable { name, value }| (name.clone(), value.clone()));
        let environment = iter::once(path).chain(passed_on);
        let running = Running::start(&self.command, workspace.root(), environment);
        let mut running = running.map_err(failed)?;
        let written = (&mut output.stdout, &mut output.stderr);
        let (status, cut) = running.watch(scene.cancel, deadline, written).map_err(failed)?;
        drop(running);
        let text = output.text(status, cut, limit);
        if status.success() && cut.is_none() { Ok(text) } else { Err(text) }
    }
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
    use crate::session::wake::Cancel;

    pub fn arguments(command: &str) -> String {
        format!(r#"{{"command":{},"timeout_ms":60000}}"#, json::text(&command.to_owned()))
    }

    pub fn run(scratch: &Scratch, command: &str) -> Result<String, String> {
        scratch.run("run_command", &arguments(command))
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
        let pair =
            |name: &str, value: &str| Variable { name: name.to_owned(), value: value.to_owned() };
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
}
