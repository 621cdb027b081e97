//! `opta chat`

use std::process::ExitCode;

use crate::cli::{ChatArgs, SessionChoice, SessionsCommand, TaskOutput};
use crate::commands::client_session::ClientSession;
use crate::commands::console::{Console, TurnEnd, UserInput};
use crate::commands::{Captured, Output, sessions};
use crate::error::{Error, Kind};
use crate::limits;
use crate::paths::Paths;
use crate::protocol::{Grant, SessionId};
use crate::session::store::Store;
use crate::session::transcript::turns;
use crate::sys::signal::Signal;
use crate::text::escaped;

const HELP: &str = "Each line is sent to the model. Ctrl-C cancels its turn.\n\
                    /help      show this help\n\
                    /sessions  list the sessions\n\
                    /exit      exit, like Ctrl-D\n";

/// Runs `opta chat`: 130 after Ctrl-C, 129 and 143 after other signals; without a terminal, and
/// with `--once`, 1 if a turn failed.
pub fn run(paths: &Paths, args: &ChatArgs) -> Result<ExitCode, Error> {
    let store = Store::new(paths.sessions());
    let resumed = match &args.session {
        SessionChoice::New => None,
        SessionChoice::Resume(typed) => Some(sessions::find(&store, typed)?),
        SessionChoice::Latest => Some(store.latest()?.ok_or_else(no_sessions)?),
    };
    let mut console = Console::new(TaskOutput::Full)?;
    let mut session = ClientSession::new(paths, &args.model, Grant::Settings, resumed.clone())?;
    let result = if let Some(text) = &args.once {
        send(&mut session, text, &mut console).map(|end| console.status_of(&end))
    } else {
        if let Some(id) = resumed.filter(|_| console.interactive) {
            note_session(&store, &id, &mut console);
        }
        send_lines(paths, &mut session, &mut console)
    };
    if session.is_created() {
        let id = session.id.as_str();
        console.screen.note(&format!("to resume: opta chat --resume {id}"));
    }
    console.finish(result)
}

/// Sends each line of the input. At a prompt, an error is printed and the next line is read. In a
/// script, a line that is cancelled or cannot be sent is the last one: the lines after it may make
/// no sense without it.
fn send_lines(
    paths: &Paths,
    session: &mut ClientSession<'_>,
    console: &mut Console,
) -> Result<u8, Error> {
    let prompt = console.interactive;
    let mut worst = 0;
    let mut interrupted = false;
    loop {
        if prompt {
            console.screen.reset_deadline();
            console.screen.print_error("> ");
        }
        let input = console.next_input()?;
        if prompt && matches!(input, UserInput::Signal(_) | UserInput::End) {
            console.screen.print_error("\n");
        }
        let line = match input {
            UserInput::Line(line) => line,
            UserInput::Invalid(line) if prompt => {
                console.screen.note(&format!("cannot send this line: {}", line.reason));
                continue;
            }
            UserInput::Invalid(line) => {
                console.screen.note(&format!("cannot send line {}: {}", line.number, line.reason));
                return Ok(1);
            }
            UserInput::Signal(Signal::Interrupt) if prompt && !interrupted => {
                interrupted = true;
                console.screen.note("press Ctrl-C again to exit (or Ctrl-D, /exit)");
                continue;
            }
            UserInput::Signal(signal) => return Ok(signal.status()),
            UserInput::End => return Ok(worst),
        };
        interrupted = false;
        match line.trim() {
            "" => continue,
            "/exit" => return Ok(worst),
            command if is_command(command) => {
                run_command(paths, command, console)?;
                continue;
            }
            _ => {}
        }
        match send(session, &line, console) {
            // The user may be able to fix it and send the line again.
            Err(error) if prompt && error.kind() != Kind::Output => {
                console.screen.note(&error.to_string());
                if let Some(next_step) = error.next_step() {
                    console.screen.print_error(&format!("{}\n", escaped(next_step)));
                }
            }
            result => {
                let status = console.status_of(&result?);
                let cancelled = console.interrupted || status > 1;
                match console.exit_status() {
                    Some(status) => return Ok(status),
                    None if prompt => {}
                    None if cancelled => return Ok(Signal::Interrupt.status()),
                    None => worst = worst.max(status),
                }
            }
        }
    }
}

/// Sends a message and prints the turn.
fn send(
    session: &mut ClientSession<'_>,
    text: &str,
    console: &mut Console,
) -> Result<TurnEnd, Error> {
    let end = session.run_turn(text, console)?;
    if let Some(failure) = end.failure() {
        console.screen.note(&failure);
    }
    Ok(end)
}

/// Returns whether a line is `/word` alone: `/etc/hosts` is for the model, and so is a sentence.
fn is_command(line: &str) -> bool {
    let word = line.strip_prefix('/');
    word.is_some_and(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase()))
}

fn run_command(paths: &Paths, command: &str, console: &mut Console) -> Result<(), Error> {
    match command {
        "/help" => console.screen.print_error(HELP),
        "/sessions" => {
            let list = SessionsCommand::List { limit: limits::SESSIONS_PAGE_DEFAULT };
            let output = Output::capturing();
            sessions::run(paths, &list, &output)?;
            let Captured { stdout, stderr } = output.into_captured();
            console.screen.print(&stdout)?;
            console.screen.print_error(&stderr);
        }
        _ => console.screen.note(&format!("unknown command '{command}'; see /help")),
    }
    Ok(())
}

/// Prints which session is resumed.
fn note_session(store: &Store, id: &SessionId, console: &mut Console) {
    if let Ok(summary) = store.summary(id) {
        let title = sessions::title(&summary);
        let workspace = summary.workspace.map_or(String::new(), |path| format!(", in {path}"));
        let line = format!("{}: {title}  ({}{workspace})", id.as_str(), turns(summary.turns));
        console.screen.note(&line);
    }
}

fn no_sessions() -> Error {
    Error::cannot(Kind::SessionNotFound, "continue", "there is no session yet")
        .with_next_step("to start one: opta chat")
}
