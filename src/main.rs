//! `opta`: from the arguments to an exit status. The only place that prints an error and ends the
//! process.

mod agent;
mod cli;
mod client;
mod clock;
mod commands;
mod completions;
mod config;
mod disk;
mod error;
mod http;
mod json;
mod lifecycle;
mod limits;
mod lock;
mod log;
mod mutex;
mod paths;
mod protocol;
mod server;
mod session;
mod state;
mod sys;
mod token;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use cli::{Command, Form};
use commands::{Output, chat, daemon, doctor, service, sessions, task};
use error::{Error, one_line};
use paths::Paths;
use sys::signal;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let form = cli::form_wanted(&arguments);
    run(arguments).unwrap_or_else(|error| report(&error, form))
}

fn run(arguments: Vec<OsString>) -> Result<ExitCode, Error> {
    signal::ignore_file_size_limit();
    let (command, form) = cli::parse(arguments)?;
    let output = Output::new(form);
    let status = perform(command, &output)?;
    output.finish()?;
    Ok(status)
}

fn perform(command: Command, output: &Output) -> Result<ExitCode, Error> {
    let text = match command {
        Command::Print(text) => text,
        Command::Version => {
            format!(
                "opta {} (protocol {})\n",
                env!("CARGO_PKG_VERSION"),
                protocol::PROTOCOL_VERSION
            )
        }
        Command::Completions(shell) => completions::script(shell),
        Command::Start(asked) => return daemon::start(&paths()?, &asked, output),
        Command::Status(asked) => return daemon::status(&paths()?, &asked, output),
        Command::Logs(asked) => return daemon::logs(&paths()?, &asked, output),
        Command::Restart(asked) => return daemon::restart(&paths()?, &asked, output),
        Command::Stop(asked) => return daemon::stop(&paths()?, &asked, output),
        Command::Install(asked) => return service::install(&paths()?, &asked, output),
        Command::Uninstall(asked) => return service::uninstall(&paths()?, &asked, output),
        Command::Sessions(asked) => return sessions::run(&paths()?, &asked, output),
        Command::Token => return daemon::token(&paths()?, output),
        Command::Do(asked) => return task::run(&paths()?, &asked, output),
        Command::Chat(asked) => return chat::run(&paths()?, &asked),
        Command::Doctor => return doctor::run(&paths()?, output),
    };
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)?;
    Ok(ExitCode::SUCCESS)
}

fn paths() -> Result<Paths, Error> {
    Paths::from_environment()
}

/// One line that says what failed, on what and why; a second one with the next step, where there is
/// one.
fn report(error: &Error, form: Form) -> ExitCode {
    if let Error::Output(cause) = error
        && cause.kind() == io::ErrorKind::BrokenPipe
    {
        // The reader has seen enough.
        return ExitCode::SUCCESS;
    }
    let message = one_line(&error.to_string());
    // Nobody is left to tell if these fail.
    if form == Form::Json && !matches!(error, Error::Output(_)) {
        drop(writeln!(io::stdout(), "{}", protocol::problem(error.code(), &message)));
    } else {
        drop(writeln!(io::stderr(), "opta: {message}"));
        if let Some(remedy) = error.remedy() {
            drop(writeln!(io::stderr(), "{}", one_line(&remedy)));
        }
    }
    ExitCode::from(error.status())
}
