//! `opta chat`

use std::os::fd::AsFd;
use std::process::ExitCode;

use crate::cli::{ChatArgs, SessionChoice, SessionsCommand, TaskOutput};
use crate::commands::console::{Console, End};
use crate::commands::keyboard::{Keyboard, Unsayable};
use crate::commands::talk::Talk;
use crate::commands::{Kept, Output, sessions};
use crate::error::{Doing, Error, Kind};
use crate::paths::Paths;
use crate::session::rules::SessionId;
use crate::session::store::Store;
use crate::session::transcript::turns;
use crate::sys::signal::Signal;
use crate::text::{escaped, prefix};
use crate::{limits, sys};

const HELP: &str = "Each line is said to the model. Ctrl-C cancels what it does, twice leaves.\n\
                    /help      this\n\
                    /sessions  the sessions\n\
                    /exit      leave, as Ctrl-D does\n";

/// What the user has given next.
enum Given {
    Line(String),
    /// A line that is none.
    Unsayable(Unsayable),
    Signal(Signal),
    End,
}

/// `opta chat`: 130 after Ctrl-C, 129 and 143 after other signals; without a terminal, and with
/// `--once`, 1 if a turn has failed.
pub fn run(paths: &Paths, args: &ChatArgs) -> Result<ExitCode, Error> {
    let store = Store::new(paths.sessions());
    let resumed = match &args.session {
        SessionChoice::New => None,
        SessionChoice::Resume(typed) => Some(sessions::find(&store, typed)?),
        SessionChoice::Latest => Some(store.latest()?.ok_or_else(no_sessions)?),
    };
    let mut console = Console::new(TaskOutput::Full)?;
    let mut talk = Talk::new(paths, &args.model, resumed.clone())?;
    let ended = match (&args.once, console.keyboard.is_some()) {
        (Some(text), _) => say(&mut talk, text, &mut console).map(|end| console.status(&end)),
        (None, true) => {
            if let Some(id) = &resumed {
                introduce(&store, id, &mut console);
            }
            with_a_person(paths, &mut talk, &mut console)
        }
        (None, false) => with_a_script(paths, &mut talk, &mut console),
    };
    if talk.exists() {
        console.screen.say(&format!("to go on: opta chat --resume {}", talk.session.as_str()));
    }
    let ended = console.finish().and(ended);
    // A terminal that is closed fails, and sends a signal.
    console.settle();
    console.leaves().map_or(ended, Ok).map(ExitCode::from)
}

/// Lines from a terminal, until its user leaves.
fn with_a_person(paths: &Paths, talk: &mut Talk<'_>, console: &mut Console) -> Result<u8, Error> {
    let mut interrupted = false;
    loop {
        console.screen.renew();
        console.screen.tell("> ");
        let Some(mut keyboard) = console.keyboard.take() else {
            return Ok(0);
        };
        let given = next(&mut keyboard, console);
        console.keyboard = Some(keyboard);
        let line = match given? {
            Given::Line(line) => line,
            Given::Unsayable(line) => {
                console.screen.say(&format!("cannot say this: {}", line.because));
                continue;
            }
            Given::End => {
                console.screen.tell("\n");
                return Ok(0);
            }
            Given::Signal(signal) => {
                console.screen.tell("\n");
                if interrupted || signal != Signal::Interrupt {
                    return Ok(signal.status());
                }
                interrupted = true;
                console.screen.say("once more Ctrl-C leaves, as Ctrl-D and /exit do");
                continue;
            }
        };
        interrupted = false;
        match line.trim() {
            "" => {}
            "/exit" => return Ok(0),
            command if is_command(command) => answer(paths, command, console)?,
            _ => match say(talk, &line, console) {
                Ok(end) => {
                    let left = matches!(end, End::Left) || console.leaves().is_some();
                    if left {
                        return Ok(console.status(&end));
                    }
                }
                Err(error) if error.kind() == Kind::Output => return Err(error),
                // The user may know what to do about it, and say it again.
                Err(error) => {
                    console.screen.say(&error.to_string());
                    if let Some(next_step) = error.next_step() {
                        console.screen.tell(&format!("{}\n", escaped(next_step)));
                    }
                }
            },
        }
    }
}

/// Lines of a file or a pipe, each a turn, until there are no more, one is cancelled or cannot be
/// said: what follows may have no sense without it.
fn with_a_script(paths: &Paths, talk: &mut Talk<'_>, console: &mut Console) -> Result<u8, Error> {
    let mut input = Keyboard::any()?;
    let mut worst = 0;
    loop {
        let line = match next(&mut input, console)? {
            Given::Line(line) => line,
            Given::Unsayable(Unsayable { line, because }) => {
                console.screen.say(&format!("cannot say line {line}: {because}"));
                return Ok(1);
            }
            Given::End => return Ok(worst),
            Given::Signal(signal) => return Ok(signal.status()),
        };
        match line.trim() {
            "" => {}
            "/exit" => return Ok(worst),
            command if is_command(command) => answer(paths, command, console)?,
            _ => {
                let end = say(talk, &line, console)?;
                match console.status(&end) {
                    0 | 1 if console.interrupted => return Ok(Signal::Interrupt.status()),
                    status @ (0 | 1) => worst = worst.max(status),
                    signal => return Ok(signal),
                }
            }
        }
    }
}

/// Says something, and shows what comes of it.
fn say(talk: &mut Talk<'_>, text: &str, console: &mut Console) -> Result<End, Error> {
    let end = talk.run(text, console)?;
    if let Some(reason) = end.reason() {
        console.screen.say(&reason);
    }
    Ok(end)
}

/// Waits for the next line.
fn next(input: &mut Keyboard, console: &mut Console) -> Result<Given, Error> {
    loop {
        if let Some(line) = input.line() {
            return Ok(line.map_or_else(Given::Unsayable, Given::Line));
        }
        if input.has_ended() {
            return Ok(Given::End);
        }
        let files = [input.as_fd(), console.signals()];
        let [typed, signalled] = sys::wait_readable(files, None).doing("wait for a line")?;
        if signalled && let Some(signal) = console.signal()? {
            return Ok(Given::Signal(signal));
        }
        if typed {
            input.read()?;
        }
    }
}

/// `/word`, and nothing behind it: `/etc/hosts` is for the model, and so is a sentence.
fn is_command(line: &str) -> bool {
    let word = line.strip_prefix('/');
    word.is_some_and(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase()))
}

fn answer(paths: &Paths, command: &str, console: &mut Console) -> Result<(), Error> {
    match command {
        "/help" => console.screen.tell(HELP),
        "/sessions" => {
            let list = SessionsCommand::List { limit: limits::SESSIONS_PAGE_DEFAULT };
            let output = Output::to_keep();
            sessions::run(paths, &list, &output)?;
            let Kept { results, words } = output.kept();
            console.screen.write(&results)?;
            console.screen.tell(&words);
        }
        unknown => console.screen.say(&format!("unknown command '{unknown}'; /help lists them")),
    }
    Ok(())
}

/// Says which session this is.
fn introduce(store: &Store, id: &SessionId, console: &mut Console) {
    if let Ok(summary) = store.summary(id) {
        let title: String = summary.title.unwrap_or_default();
        let title = prefix(&title, limits::TITLE_CHARS_MAX);
        let place = summary.workspace.map_or(String::new(), |place| format!(", in {place}"));
        let line = format!("{}: {title}  ({}{place})", id.as_str(), turns(summary.turns));
        console.screen.say(&line);
    }
}

fn no_sessions() -> Error {
    Error::cannot(Kind::SessionNotFound, "go on", "there are no sessions yet")
        .with_next_step("to begin one: opta chat")
}
