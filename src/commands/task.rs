//! `opta do`

use std::io::{self, Read};
use std::process::ExitCode;

use nanoserde::SerJson;

use crate::cli::{DoArgs, TaskOutput};
use crate::commands::console::{Console, End};
use crate::commands::screen::Call;
use crate::commands::talk::Talk;
use crate::commands::{Output, sessions};
use crate::error::{Doing, Error, Kind};
use crate::json;
use crate::paths::Paths;
use crate::protocol::Grant;
use crate::protocol::event::TurnStats;
use crate::session::store::Store;
use crate::text::escaped;
use crate::{limits, protocol};

#[derive(SerJson)]
struct Report {
    #[nserde(rename = "sessionId")]
    session_id: Option<String>,
    #[nserde(rename = "turnId")]
    turn_id: Option<String>,
    result: String,
    #[nserde(rename = "toolCalls")]
    tool_calls: Vec<Call>,
    stats: Option<TurnStats>,
    error: Option<protocol::ErrorDetail>,
}

/// `opta do`: 0 if the turn was done, 1 if not, 130 after Ctrl-C, 129 and 143 after other signals.
pub fn run(paths: &Paths, args: &DoArgs, output: &Output) -> Result<ExitCode, Error> {
    let done = perform(paths, args, output);
    if let Err(error) = &done
        && args.output == TaskOutput::Events
        && error.kind() != Kind::Output
    {
        output.line(&protocol::error_body(error.code(), &escaped(&error.to_string())))?;
    }
    done
}

fn perform(paths: &Paths, args: &DoArgs, output: &Output) -> Result<ExitCode, Error> {
    let task = if args.task == "-" { input()? } else { args.task.clone() };
    let store = Store::new(paths.sessions());
    let resumed = args.resume.as_deref().map(|typed| sessions::find(&store, typed)).transpose()?;
    let mut talk = Talk::new(paths, &args.model, resumed)?;
    talk.grant(args.grant);
    if args.grant == Grant::All {
        output.say("everything is allowed in this task, commands included");
    }
    let mut console = Console::new(args.output)?;
    let done =
        talk.run(&task, &mut console).and_then(|end| tell(end, args.output, talk, &mut console));
    // A terminal that is closed fails, and sends a signal.
    if done.is_err() {
        console.settle();
    }
    console.leaves().map_or(done, Ok).map(ExitCode::from)
}

/// Says how it has ended; the exit status.
fn tell(end: End, mode: TaskOutput, talk: Talk<'_>, console: &mut Console) -> Result<u8, Error> {
    let status = console.status(&end);
    // The last event says it, if that has been seen.
    let told = matches!(end, End::Failed(_)) && talk.turn_id.is_some();
    let end = match end {
        End::Left => End::cancelled("the turn was told to end, and its end not waited for"),
        end => end,
    };
    let reason = end.reason();
    let (stats, error) = match end {
        End::Done(stats) => (Some(stats), None),
        End::Failed(fault) => (None, Some(fault)),
        End::Left => (None, None),
    };
    if mode == TaskOutput::Json {
        let report = Report {
            session_id: talk.exists().then(|| talk.session.as_str().to_owned()),
            turn_id: talk.turn_id,
            result: std::mem::take(&mut console.screen.answer),
            tool_calls: std::mem::take(&mut console.screen.calls),
            stats,
            error,
        };
        console.screen.line(&json::text(&report))?;
    } else {
        if let Some(fault) = error.filter(|_| mode == TaskOutput::Events && !told) {
            console.screen.line(&protocol::error_body(&fault.code, &fault.message))?;
        }
        if let Some(reason) = reason {
            console.screen.say(&reason);
        }
    }
    console.finish()?;
    // Nobody may have read the last of it.
    Ok(if console.screen.is_stuck() { console.status(&End::Left) } else { status })
}

/// The task, from standard input.
fn input() -> Result<String, Error> {
    let refused = |message: &str| Error::usage(message, "Usage: opta do - <FILE");
    let mut bytes = Vec::new();
    let limit = limits::TASK_BYTES_MAX;
    io::stdin().take(limit + 1).read_to_end(&mut bytes).doing("read standard input")?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > limit) {
        return Err(refused(&format!("the task is longer than {limit} bytes")));
    }
    let text = String::from_utf8(bytes);
    let text = text.map_err(|_bad| refused("the task is not UTF-8"))?;
    if text.trim().is_empty() {
        return Err(refused("the task is empty"));
    }
    Ok(text)
}
