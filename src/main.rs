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
mod lines;
mod lock;
mod log;
mod mutex;
mod paths;
mod pattern;
mod protocol;
mod server;
mod session;
mod state;
mod sys;
mod text;
mod token;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use cli::{Command, OutputMode};
use commands::{
    Output, chat, config_file, daemon, doctor, models, operations, service, sessions, task, web,
};
use error::{Error, Kind};
use lifecycle::handover;
use paths::Paths;
use sys::{memory, signal};
use text::escaped;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mode = cli::requested_mode(&arguments);
    run(arguments).unwrap_or_else(|error| report(&error, mode))
}

fn run(arguments: Vec<OsString>) -> Result<ExitCode, Error> {
    signal::restore_faults();
    signal::ignore_file_size_limit();
    memory::use_one_arena();
    if arguments == handover::ARGUMENTS
        && let Some(handed_over) = handover::take_over()
    {
        return Ok(daemon::serve_in_background(handed_over, operations::of));
    }
    let (command, mode) = cli::parse(arguments)?;
    let output = Output::new(mode);
    let status = perform(command, &output)?;
    output.finish()?;
    Ok(status)
}

fn perform(command: Command, output: &Output) -> Result<ExitCode, Error> {
    let paths = Paths::from_environment;
    let text = match command {
        Command::Print(text) => text,
        Command::Version => {
            let protocol = protocol::PROTOCOL_VERSION;
            format!("opta {} (protocol {protocol})\n", env!("CARGO_PKG_VERSION"))
        }
        Command::Completions(shell) => completions::script(shell),
        Command::Start(args) => return daemon::start(&paths()?, &args, operations::of, output),
        Command::Status(args) => return daemon::status(&paths()?, &args, output),
        Command::Logs(args) => return daemon::logs(&paths()?, &args, output),
        Command::Restart(args) => return daemon::restart(&paths()?, &args, output),
        Command::Stop(args) => return daemon::stop(&paths()?, &args, output),
        Command::Install(args) => return service::install(&paths()?, &args, output),
        Command::Uninstall(args) => return service::uninstall(&paths()?, &args, output),
        Command::Sessions(args) => return sessions::run(&paths()?, &args, output),
        Command::Token => return daemon::token(&paths()?, output),
        Command::Do(args) => return task::run(&paths()?, &args, output),
        Command::Chat(args) => return chat::run(&paths()?, &args),
        Command::Models { url } => return models::run(&paths()?, url.as_deref(), output),
        Command::Web { print } => return web::run(&paths()?, print, output),
        Command::Config(args) => return config_file::run(&paths()?, &args, output),
        Command::Doctor => return doctor::run(&paths()?, output),
    };
    io::stdout().write_all(text.as_bytes()).map_err(Error::output)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints one line that says what failed, on what and why, and a second one with the next step, if
/// there is one. Returns the exit status.
fn report(error: &Error, mode: OutputMode) -> ExitCode {
    if error.kind() == Kind::Output && error.io_kind() == Some(io::ErrorKind::BrokenPipe) {
        // The reader needs no more.
        return ExitCode::SUCCESS;
    }
    let message = escaped(&error.to_string());
    // There is no one to report to if these fail.
    if mode == OutputMode::Json && error.kind() != Kind::Output {
        drop(writeln!(io::stdout(), "{}", protocol::error_body(error.code(), &message)));
    } else {
        drop(writeln!(io::stderr(), "opta: {message}"));
        if let Some(next_step) = error.next_step() {
            drop(writeln!(io::stderr(), "{}", escaped(next_step)));
        }
    }
    ExitCode::from(error.status())
}
