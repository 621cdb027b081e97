//! `opta chat`

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::rc::Rc;

use crate::agent::model;
use crate::cli::{ChatArgs, OutputMode, SessionsCommand, TaskOutput, nearest};
use crate::commands::client_session::ClientSession;
use crate::commands::complete::Candidates;
use crate::commands::console::{Console, TurnEnd, UserInput};
use crate::commands::draft::Draft;
use crate::commands::line_editor::{LineEditor, PROMPT};
use crate::commands::slash::{self, Meaning, Slash};
use crate::commands::{Captured, Output, sessions};
use crate::config;
use crate::error::{Error, Kind};
use crate::lifecycle::status::{self, Status};
use crate::limits;
use crate::paths::Paths;
use crate::protocol::{Grant, SessionId};
use crate::session::store::Store;
use crate::session::transcript::{Transcript, turns};
use crate::sys::child;
use crate::sys::signal::Signal;
use crate::text::escaped;

/// Runs `opta chat`: 130 after Ctrl-C, 129 and 143 after other signals; without a terminal, and
/// with `--once`, 1 if a turn failed.
pub fn run(paths: &Paths, args: &ChatArgs) -> Result<ExitCode, Error> {
    let store = Store::new(paths.sessions());
    let resumed = sessions::choose(&store, &args.session)?;
    let edits_lines = args.once.is_none() && config::cursor_can_move();
    let console = Console::new(TaskOutput::Full, edits_lines)?;
    let session = ClientSession::new(paths, &args.model, Grant::Settings, resumed.clone())?;
    let mut chat = Chat {
        paths,
        store,
        session,
        console,
        editor: None,
        models: Rc::default(),
        draft: String::new(),
        worst: 0,
        quiet: args.quiet,
    };
    let result = match &args.once {
        Some(text) => chat.send(text).map(|end| chat.console.status_of(&end)),
        None => chat.converse(resumed.as_ref()),
    };
    if chat.session.is_created() {
        let id = chat.session.id.as_str();
        chat.console.screen.note(&format!("to resume: opta chat --resume {id}"));
    }
    chat.console.finish(result)
}

/// A chat: its session, which the user can change, and its user.
struct Chat<'a> {
    paths: &'a Paths,
    store: Store,
    session: ClientSession<'a>,
    console: Console,
    /// `None`: the terminal edits lines itself, or there is none.
    editor: Option<LineEditor>,
    /// The models that the server has listed, for completion.
    models: Rc<RefCell<Vec<String>>>,
    /// The beginning of the next message.
    draft: String,
    /// The exit status so far.
    worst: u8,
    quiet: bool,
}

impl Chat<'_> {
    /// Sends each message of the input. At a prompt, an error is printed and the next message is
    /// read. In a script, a line that is cancelled or cannot be sent is the last one: the lines
    /// after it may make no sense without it.
    fn converse(&mut self, resumed: Option<&SessionId>) -> Result<u8, Error> {
        if self.console.interactive {
            self.greet(resumed)?;
        }
        let prompt = self.console.interactive;
        let mut interrupted = false;
        loop {
            let input = self.next_input()?;
            let line = match input {
                UserInput::Line(line) => line,
                UserInput::Invalid(line) if prompt => {
                    self.note(&format!("cannot send this line: {}", line.reason));
                    continue;
                }
                UserInput::Invalid(line) => {
                    self.note(&format!("cannot send line {}: {}", line.number, line.reason));
                    return Ok(1);
                }
                UserInput::Signal(Signal::Interrupt) if prompt && !interrupted => {
                    interrupted = true;
                    self.note("press Ctrl-C again to exit (or Ctrl-D, /exit)");
                    continue;
                }
                UserInput::Signal(signal) => return Ok(signal.status()),
                UserInput::End => return Ok(self.worst),
            };
            interrupted = false;
            let ended = match line.trim() {
                "" => None,
                text if prompt => self.handle(Meaning::of_user(text), &line)?,
                text => self.handle(Meaning::of_script(text), &line)?,
            };
            // A signal may have arrived while another process had the terminal.
            if let Some(status) = ended.or_else(|| self.console.exit_status()) {
                return Ok(status);
            }
        }
    }

    /// Prompts the user, if there is one, and waits for a line.
    fn next_input(&mut self) -> Result<UserInput, Error> {
        let draft = std::mem::take(&mut self.draft);
        if let Some(editor) = &mut self.editor {
            self.console.screen.reset_deadline();
            return self.console.edit(editor, &draft);
        }
        let prompt = self.console.interactive;
        if prompt {
            self.console.screen.reset_deadline();
            self.console.screen.print_error(PROMPT);
        }
        let input = self.console.next_input()?;
        if prompt && matches!(input, UserInput::Signal(_) | UserInput::End) {
            self.console.screen.print_error("\n");
        }
        Ok(input)
    }

    /// Does what a line means. Returns the exit status if that ends the chat.
    fn handle(&mut self, meaning: Meaning<'_>, line: &str) -> Result<Option<u8>, Error> {
        match meaning {
            Meaning::Message => return self.answer(line),
            Meaning::Command(Slash::Exit, _) => return Ok(Some(self.worst)),
            Meaning::Command(command, argument) => {
                let done = match command {
                    Slash::Edit => self.write_elsewhere(argument),
                    _ => self.run(command, argument).map(|()| None),
                };
                match done {
                    Err(error) if self.console.interactive && error.kind() != Kind::Output => {
                        self.report(&error);
                    }
                    done => return done,
                }
            }
            Meaning::Shell(command) => {
                let mut shell = Command::new("sh");
                child::unblock_signals(shell.args(["-c", command]));
                let ran = self.console.lend(|| shell.status())?;
                match ran {
                    Ok(status) if status.success() => {}
                    Ok(status) => self.note(&format!("the command ended with {status}")),
                    Err(error) => self.note(&format!("cannot run the command: {error}")),
                }
            }
            Meaning::Mistake(mistake) => self.note(&mistake),
        }
        Ok(None)
    }

    /// Sends a message. Returns the exit status if the chat ends with its turn.
    fn answer(&mut self, message: &str) -> Result<Option<u8>, Error> {
        let prompt = self.console.interactive;
        match self.send(message) {
            // The user may be able to fix it and send the line again.
            Err(error) if prompt && error.kind() != Kind::Output => {
                self.report(&error);
                Ok(self.console.exit_status())
            }
            result => {
                let status = self.console.status_of(&result?);
                let cancelled = self.console.interrupted || status > 1;
                let exit = self.console.exit_status();
                if exit.is_none() && !prompt {
                    if cancelled {
                        return Ok(Some(Signal::Interrupt.status()));
                    }
                    self.worst = self.worst.max(status);
                }
                Ok(exit)
            }
        }
    }

    /// Sends a message and prints the turn.
    fn send(&mut self, text: &str) -> Result<TurnEnd, Error> {
        let end = self.session.run_turn(text, &mut self.console)?;
        if let Some(failure) = end.failure() {
            self.note(&failure);
        }
        Ok(end)
    }

    fn run(&mut self, command: Slash, argument: &str) -> Result<(), Error> {
        match command {
            // Handled by the caller.
            Slash::Exit | Slash::Edit => {}
            Slash::Help => {
                let help = slash::help(self.editor.is_some());
                self.console.screen.print_wrapped(&help);
            }
            Slash::Clear => self.console.screen.print_error("\x1b[H\x1b[2J"),
            Slash::Sessions => self.list_sessions()?,
            Slash::Resume if argument.is_empty() => {
                self.list_sessions()?;
                self.console.screen.print_error("to resume one: /resume ID\n");
            }
            Slash::Resume => {
                let id = sessions::find(&self.store, argument)?;
                self.change_session(Some(id.clone()))?;
                self.show_resumed(&id);
            }
            Slash::New => {
                self.change_session(None)?;
                self.console.screen.print_error("new session\n");
            }
            Slash::Model if argument.is_empty() => self.list_models(),
            Slash::Model => self.use_model(argument),
            Slash::Status => self.show_status(),
            Slash::Last => match self.console.screen.last_result() {
                Some(text) => self.console.screen.print_error(&text),
                None => self.note("no tool was called yet"),
            },
        }
        Ok(())
    }

    fn note(&mut self, text: &str) {
        self.console.screen.note(text);
    }

    fn report(&mut self, error: &Error) {
        self.note(&error.to_string());
        if let Some(next_step) = error.next_step() {
            self.console.screen.print_wrapped(&escaped(next_step));
        }
    }

    fn list_sessions(&mut self) -> Result<(), Error> {
        let list = SessionsCommand::List { limit: limits::SESSIONS_PAGE_DEFAULT };
        let output = Output::capturing(OutputMode::Text);
        sessions::run(self.paths, &list, &output)?;
        let Captured { stdout, stderr } = output.into_captured();
        self.console.screen.print(&stdout)?;
        self.console.screen.print_error(&stderr);
        Ok(())
    }

    /// Uses another session, or a new one, with the same model.
    fn change_session(&mut self, id: Option<SessionId>) -> Result<(), Error> {
        let chosen = self.session.model().clone();
        self.session = ClientSession::new(self.paths, &chosen, Grant::Settings, id)?;
        Ok(())
    }

    /// Asks the model server for its models. Returns the one in use and the server.
    fn find_models(&mut self) -> Result<(Option<String>, String), String> {
        let endpoint = self.session.endpoint().map_err(|fault| fault.message)?;
        let named = endpoint.model.clone();
        let url = match endpoint.was_found() {
            true => format!("{}, {}", endpoint.url, endpoint.source),
            false => endpoint.url.clone(),
        };
        let listed = model::models(endpoint, limits::CHAT_MODEL_MAX);
        let listed = listed.map_err(|fault| fault.message)?.unwrap_or_default();
        let first = model::first_chat_model(&listed).cloned();
        self.models.replace(listed);
        Ok((named.or(first), url))
    }

    fn list_models(&mut self) {
        match self.find_models() {
            Ok((current, url)) => {
                let mut text = format!("models of {}:\n", escaped(&url));
                for name in self.models.borrow().iter() {
                    let mark = if current.as_ref() == Some(name) { '*' } else { ' ' };
                    text += &format!("{mark} {}\n", escaped(name));
                }
                text += "to use another: /model NAME\n";
                self.console.screen.print_error(&text);
            }
            Err(reason) => self.note(&format!("cannot list the models: {reason}")),
        }
    }

    /// Uses another model. Prints a note if the server does not list it: it may have it by a name
    /// of another form.
    fn use_model(&mut self, name: &str) {
        self.session.set_model(name);
        self.console.screen.print_error(&format!("model {}\n", escaped(name)));
        let found = self.find_models();
        let known = self.models.borrow().clone();
        if found.is_ok() && !known.is_empty() && !known.iter().any(|model| model == name) {
            let near = nearest(name, &known).map(|near| format!("did you mean '{near}'?"));
            let hint = near.unwrap_or_else(|| "to list those that it has: /model".to_owned());
            self.note(&format!("the server does not list the model '{name}'; {hint}"));
        }
    }

    fn show_status(&mut self) {
        let (model, server) = match self.find_models() {
            Ok((model, url)) => (model.unwrap_or_else(|| "chosen by the server".into()), url),
            Err(reason) => ("unknown".to_owned(), reason),
        };
        let session = match self.session.is_created() {
            true => self.session.id.as_str().to_owned(),
            false => "new".to_owned(),
        };
        let daemon = match status::look(self.paths) {
            Ok(Status::Running { info, .. }) => {
                format!("running (pid {}, port {})", info.pid, info.port)
            }
            Ok(_) => "not running".to_owned(),
            Err(error) => error.to_string(),
        };
        let directory = self.directory();
        for (name, value) in [
            ("model", model),
            ("server", server),
            ("session", session),
            ("directory", directory),
            ("daemon", daemon),
        ] {
            self.console.screen.print_error(&format!("{name:<9}  {}\n", escaped(&value)));
        }
    }

    /// Returns the directory that tools work in.
    fn directory(&self) -> String {
        let summary = match self.session.is_created() {
            true => self.store.summary(&self.session.id).ok(),
            false => None,
        };
        let directory = summary.and_then(|found| found.working_directory().map(PathBuf::from));
        let directory = directory.or_else(|| std::env::current_dir().ok());
        directory.map_or_else(|| "unknown".to_owned(), |path| self.paths.display(&path))
    }

    /// Lets the user write a message in an editor. What was saved begins the next prompt, whether
    /// the editor failed or not. Where lines are not edited, it is sent instead, unless it did.
    fn write_elsewhere(&mut self, begin: &str) -> Result<Option<u8>, Error> {
        self.draft = begin.to_owned();
        let file = Draft::new(self.paths, begin)?;
        let edited = self.console.lend(|| file.edit()).and_then(|edited| edited);
        edited.as_ref().err().into_iter().for_each(|error| self.report(error));
        let has_prompt = self.editor.is_some();
        let unused = match self.console.exit_status() {
            Some(_) => Some("the chat ends"),
            None => (edited.is_err() && !has_prompt).then_some("the editor failed"),
        };
        self.draft = file.read(unused)?;
        if has_prompt || edited.is_err() || self.draft.is_empty() {
            return Ok(None);
        }
        let message = std::mem::take(&mut self.draft);
        self.answer(&message)
    }

    /// Prepares the prompt, and prints what the user needs to know before it.
    fn greet(&mut self, resumed: Option<&SessionId>) -> Result<(), Error> {
        let candidates =
            Candidates { sessions: self.paths.sessions(), models: Rc::clone(&self.models) };
        if let Some((editor, note)) = LineEditor::new(self.paths, candidates)? {
            self.editor = Some(editor);
            self.console.screen.shows_statistics = !self.quiet;
            note.into_iter().for_each(|note| self.note(&note));
        }
        self.console.unblock_signals()?;
        let found = self.find_models();
        self.console.block_signals()?;
        let directory = self.directory();
        let help = "/help for help".to_owned();
        match found {
            Ok((model, url)) => {
                let model = model.unwrap_or_else(|| "the server's model".to_owned());
                self.console.screen.heading(&[model, url, directory, help]);
            }
            Err(reason) => {
                self.console.screen.heading(&["no model".to_owned(), directory, help]);
                self.note(&reason);
            }
        }
        resumed.into_iter().for_each(|id| self.show_resumed(id));
        Ok(())
    }

    /// Prints which session is resumed, and its last exchange.
    fn show_resumed(&mut self, id: &SessionId) {
        if let Ok(summary) = self.store.summary(id) {
            let title = sessions::title(&summary);
            let workspace = summary.workspace.map_or(String::new(), |path| format!(", in {path}"));
            let line = format!("{}: {title}  ({}{workspace})", id.as_str(), turns(summary.turns));
            self.note(&line);
        }
        if self.editor.is_some()
            && let Ok(transcript) = Transcript::read(&self.store, id)
            && let Some((question, answer)) = transcript.last_exchange()
        {
            let answer = if answer.is_empty() { "(no answer)" } else { answer.as_str() };
            self.console.screen.dimmed(&format!("{PROMPT}{question}\n{answer}"));
        }
    }
}
