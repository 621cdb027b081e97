//! `opta do`

use std::io::{self, Read};
use std::process::ExitCode;

use nanoserde::SerJson;

use crate::cli::{DoArgs, TaskOutput};
use crate::commands::console::{Console, TurnEnd};
use crate::commands::conversation::Conversation;
use crate::commands::screen::ToolLine;
use crate::commands::{Output, sessions};
use crate::error::{Doing, Error, Kind};
use crate::json;
use crate::limits;
use crate::paths::Paths;
use crate::protocol::{ErrorDetail, Grant, error_body, event::TurnStats};
use crate::session::store::Store;
use crate::text::escaped;

#[derive(SerJson)]
struct Report {
    #[nserde(rename = "sessionId")]
    session_id: Option<String>,
    #[nserde(rename = "turnId")]
    turn_id: Option<String>,
    result: String,
    #[nserde(rename = "toolCalls")]
    tool_calls: Vec<ToolLine>,
    stats: Option<TurnStats>,
    error: Option<ErrorDetail>,
}

/// `opta do`: 0 if the turn is done, 1 if it failed, 130 after Ctrl-C, 129 and 143 after other
/// signals.
pub fn run(paths: &Paths, args: &DoArgs, output: &Output) -> Result<ExitCode, Error> {
    let result = run_task(paths, args, output);
    if let Err(error) = &result
        && args.output == TaskOutput::Events
        && error.kind() != Kind::Output
    {
        output.line(&error_body(error.code(), &escaped(&error.to_string())))?;
    }
    result
}

fn run_task(paths: &Paths, args: &DoArgs, output: &Output) -> Result<ExitCode, Error> {
    let task = if args.task == "-" { read_task()? } else { args.task.clone() };
    let store = Store::new(paths.sessions());
    let resumed = args.resume.as_deref().map(|typed| sessions::find(&store, typed)).transpose()?;
    let mut conversation = Conversation::new(paths, &args.model, resumed)?;
    conversation.grant(args.grant);
    if args.grant == Grant::All {
        output.note("everything is allowed in this task, including commands");
    }
    let mut console = Console::new(args.output)?;
    let result = conversation
        .run_turn(&task, &mut console)
        .and_then(|end| print_end(end, args.output, conversation, &mut console));
    // When a terminal is closed, reads and writes fail and a signal is sent.
    if result.is_err() {
        console.drain_signals();
    }
    console.exit_status().map_or(result, Ok).map(ExitCode::from)
}

/// Prints how the turn ended. Returns the exit status.
fn print_end(
    end: TurnEnd,
    output: TaskOutput,
    conversation: Conversation<'_>,
    console: &mut Console,
) -> Result<u8, Error> {
    let status = console.status_of(&end);
    // Then it was the last event.
    let printed = matches!(end, TurnEnd::Failed(_)) && conversation.turn_id.is_some();
    let end = match end {
        TurnEnd::Abandoned => TurnEnd::cancelled("the turn was cancelled; its end was not awaited"),
        end => end,
    };
    let failure = end.failure();
    let (stats, error) = match end {
        TurnEnd::Done(stats) => (Some(stats), None),
        TurnEnd::Failed(fault) => (None, Some(fault)),
        TurnEnd::Abandoned => (None, None),
    };
    if output == TaskOutput::Json {
        let session = conversation.is_created().then_some(&conversation.session);
        let report = Report {
            session_id: session.map(|id| id.as_str().to_owned()),
            turn_id: conversation.turn_id,
            result: std::mem::take(&mut console.screen.answer),
            tool_calls: std::mem::take(&mut console.screen.tool_calls),
            stats,
            error,
        };
        console.screen.print_line(&json::text(&report))?;
    } else {
        if let Some(fault) = error.filter(|_| output == TaskOutput::Events && !printed) {
            console.screen.print_line(&error_body(&fault.code, &fault.message))?;
        }
        if let Some(failure) = failure {
            console.screen.note(&failure);
        }
    }
    console.flush()?;
    // The end may not have been written.
    Ok(if console.screen.gave_up() { console.status_of(&TurnEnd::Abandoned) } else { status })
}

/// Reads the task from standard input.
fn read_task() -> Result<String, Error> {
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
