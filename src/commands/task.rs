//! `opta do`

use std::process::ExitCode;

use nanoserde::SerJson;

use crate::cli::{DoArgs, TaskOutput};
use crate::commands::client_session::ClientSession;
use crate::commands::console::{Console, TurnEnd};
use crate::commands::screen::ToolLine;
use crate::commands::{Output, sessions, task_input};
use crate::error::{Error, Kind};
use crate::json;
use crate::paths::Paths;
use crate::protocol::{ErrorDetail, Grant, error_body, event::TurnStats};
use crate::session::replay::answer_of;
use crate::session::store::Store;
use crate::text::escaped;

#[derive(SerJson)]
struct TaskReport {
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

/// Runs `opta do`: 0 if the turn is done, 1 if it failed, 130 after Ctrl-C, 129 and 143 after other
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
    let task = task_input::read(args, output)?;
    let store = Store::new(paths.sessions());
    let resumed = sessions::choose(&store, &args.session)?;
    let mut session = ClientSession::new(paths, &args.model, args.grant, resumed)?;
    if let Some(typed) = &task.typed {
        session.set_title(typed);
    }
    if args.grant == Grant::All && args.output != TaskOutput::Quiet {
        output.note("everything is allowed in this task, including commands");
    }
    let mut console = Console::new(args.output, false)?;
    if task.took_input {
        console.ask_on_terminal();
    }
    let result = session
        .run_turn(&task.text, &mut console)
        .and_then(|end| print_end(&end, args.output, session, &mut console));
    console.finish(result)
}

/// Prints how the turn ended. Returns the exit status.
fn print_end(
    end: &TurnEnd,
    output: TaskOutput,
    session: ClientSession<'_>,
    console: &mut Console,
) -> Result<u8, Error> {
    let (stats, error) = match end {
        TurnEnd::Done(stats) => (Some(stats.clone()), None),
        TurnEnd::Failed(error) => (None, Some(error.clone())),
    };
    if output == TaskOutput::Json {
        let report = TaskReport {
            session_id: session.is_created().then(|| session.id.as_str().to_owned()),
            turn_id: session.turn_id,
            result: answer_of(&console.screen.answer).to_owned(),
            tool_calls: std::mem::take(&mut console.screen.tool_calls),
            stats,
            error,
        };
        console.screen.print_line(&json::text(&report))?;
    } else if let Some(failure) = end.failure() {
        console.screen.note(&failure);
    }
    console.flush()?;
    Ok(console.status_of(end))
}
