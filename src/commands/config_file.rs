//! `opta config …`
//!
//! Only `set`, `reset` and `edit` write the file. It may be a link, and keeps its mode, the order
//! of its keys, and keys that this version does not know.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Instant;

use crate::cli::ConfigCommand;
use crate::commands::Output;
use crate::config::{self, ToolSettings, ValueForm};
use crate::error::{At, Doing, Error, Kind};
use crate::json::{self, Object, edit};
use crate::paths::Paths;
use crate::sys::child;
use crate::sys::signal::Interrupts;
use crate::text::escaped;
use crate::{agent, cli, disk, limits};

/// Runs `opta config …`.
pub fn run(paths: &Paths, args: &ConfigCommand, output: &Output) -> Result<ExitCode, Error> {
    let path = paths.config();
    match args {
        ConfigCommand::Path => {
            let shown = path.display().to_string();
            output.result(&escaped(&shown), &Object(&[("path", &shown)]))?;
        }
        ConfigCommand::List => {
            for (key, value) in list(paths)? {
                print(&format!("{key}="), &key, &value, output)?;
            }
            note_unknown(&path, output)?;
        }
        ConfigCommand::Get { key } => print("", key, &get(paths, key)?, output)?,
        ConfigCommand::Set { key, value } => {
            let value = set(paths, key, value)?;
            note_unknown(&path, output)?;
            output.json(&Object(&[("key", key), ("value", &value)]))?;
        }
        ConfigCommand::Reset { key } => {
            reset(paths, key)?;
            note_unknown(&path, output)?;
            output.json(&Object(&[("key", key)]))?;
        }
        ConfigCommand::Edit => return open_in_editor(paths, output),
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the text of the settings; an empty object if there is no file.
fn text_of(path: &Path) -> Result<String, Error> {
    Ok(config::source(path)?.unwrap_or_else(|| "{}\n".to_owned()))
}

/// Returns the text of the settings, which can be used.
fn usable_text_of(path: &Path) -> Result<String, Error> {
    let text = text_of(path)?;
    config::check(&text, path)?;
    Ok(text)
}

fn print(before: &str, key: &str, value: &str, output: &Output) -> Result<(), Error> {
    let raw = json::Raw::parse(value).map_err(|_checked| unknown(key))?;
    let plain = json::parse::<String>(value.as_bytes()).unwrap_or_else(|_| raw.as_str().to_owned());
    let key = key.to_owned();
    output.result(&escaped(&format!("{before}{plain}")), &Object(&[("key", &key), ("value", &raw)]))
}

/// Returns each setting in the file with its value, as it is written.
pub fn list(paths: &Paths) -> Result<Vec<(String, String)>, Error> {
    let text = usable_text_of(&paths.config())?;
    let mut leaves = Vec::new();
    for (name, value) in edit::members(&text).unwrap_or_default() {
        match edit::members(value) {
            Some(inner) if !inner.is_empty() => {
                let inner = inner.into_iter();
                leaves
                    .extend(inner.map(|(key, value)| (format!("{name}.{key}"), value.to_owned())));
            }
            _ => leaves.push((name, value.to_owned())),
        }
    }
    Ok(leaves)
}

/// Returns the value of a setting in the file, as it is written.
pub fn get(paths: &Paths, key: &str) -> Result<String, Error> {
    let text = usable_text_of(&paths.config())?;
    let found = value_of(&text, key);
    if found.is_none() && !is_known(key) {
        return Err(unknown(key));
    }
    let not_set = || Error::cannot(Kind::InvalidConfig, "get the setting", "it is not set");
    found.map(str::to_owned).ok_or_else(not_set)
}

/// Returns the value of a setting, as it is written; of settings with one name, the last one.
fn value_of<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    key.splitn(2, '.')
        .try_fold(text, |object, name| {
            let found = edit::members(object)?.into_iter().rfind(|(member, _)| member == name)?;
            Some(found.1)
        })
        .filter(|value| *value != "null")
}

/// Sets a value, which is as a user types it, if the settings can then be used. Returns it.
pub fn set(paths: &Paths, key: &str, value: &str) -> Result<json::Raw, Error> {
    if !is_known(key) {
        return Err(unknown(key));
    }
    let value = written(key, value)?;
    change(paths, |old, path| {
        edit::set(old, &names(key), &value).ok_or_else(|| {
            let reason = format!("{}: its section is not an object", path.display());
            Error::cannot(Kind::InvalidConfig, format!("set {key}"), reason)
        })
    })?;
    json::Raw::parse(&value).map_err(|_checked| unknown(key))
}

/// Removes a setting from the file, if it is there. It may be one that is unknown.
pub fn reset(paths: &Paths, key: &str) -> Result<(), Error> {
    change(paths, |old, _path| match edit::remove(old, &names(key)) {
        None if !is_known(key) => Err(unknown(key)),
        removed => Ok(removed.unwrap_or_else(|| old.to_owned())),
    })
}

/// Returns the name of a setting's section, if it has one, and its own.
fn names(key: &str) -> Vec<&str> {
    key.splitn(2, '.').collect()
}

/// Replaces the text of the file by what `edited` returns for it, if the settings can then be used.
fn change(
    paths: &Paths,
    edited: impl FnOnce(&str, &Path) -> Result<String, Error>,
) -> Result<(), Error> {
    let path = paths.config();
    disk::ensure_owned_directory(paths.root())?;
    // Of several commands that change the settings, each starts from the result of another.
    let directory = File::open(paths.root()).at("open", paths.root())?;
    lock(&directory, paths.root())?;
    let old = text_of(&path)?;
    let new = edited(&old, &path)?;
    if new == old {
        return Ok(());
    }
    config::check(&new, &path)?;
    disk::replace_user_file(&target(&path)?, new.as_bytes())
}

/// Locks a directory; waits while others have it locked.
fn lock(directory: &File, path: &Path) -> Result<(), Error> {
    let begin = Instant::now();
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(cause)) => return Err(cause).at("lock", path),
            Err(TryLockError::WouldBlock) if begin.elapsed() < limits::SETTINGS_LOCK_MAX => {
                // flock(2) has no timeout.
                thread::park_timeout(limits::LOCK_POLL_INTERVAL);
            }
            Err(TryLockError::WouldBlock) => {
                let (seconds, path) = (limits::SETTINGS_LOCK_MAX.as_secs(), path.display());
                let reason = format!("another process has locked {path} for {seconds}s");
                return Err(Error::cannot(Kind::Busy, "change the settings", reason));
            }
        }
    }
}

/// Returns the file itself, which a link may lead to.
fn target(path: &Path) -> Result<PathBuf, Error> {
    match disk::if_exists(path.canonicalize()).at("find", path)? {
        None if path.is_symlink() => {
            let action = format!("write {}", path.display());
            let reason = "it is a link to a file that does not exist";
            Err(Error::cannot(Kind::InvalidConfig, action, reason))
        }
        target => Ok(target.unwrap_or_else(|| path.to_owned())),
    }
}

/// Returns a value as JSON.
fn written(key: &str, value: &str) -> Result<String, Error> {
    let quoted = || {
        let mut text = String::new();
        json::quote(value, &mut text);
        text
    };
    match config::form_of(key) {
        ValueForm::Text => Ok(quoted()),
        ValueForm::TextOrObject if !value.trim_start().starts_with('{') => Ok(quoted()),
        form => {
            let is_number = value.parse::<i64>().is_ok();
            let refused = |needed: &str| {
                // A URL may contain a password.
                let found = if value.contains('@') { "a URL".into() } else { format!("'{value}'") };
                let reason = format!("it takes {needed}, not {found}");
                Err(Error::cannot(Kind::InvalidConfig, format!("set {key}"), reason))
            };
            match form {
                ValueForm::Number if !is_number => refused("a number"),
                _ => match json::check(value) {
                    Ok(()) => Ok(value.trim().to_owned()),
                    Err(problem) => refused(&format!("JSON ({})", problem.what)),
                },
            }
        }
    }
}

fn open_in_editor(paths: &Paths, output: &Output) -> Result<ExitCode, Error> {
    let path = paths.config();
    disk::ensure_owned_directory(paths.root())?;
    if disk::open_user_file(&path)?.is_none() {
        disk::replace_user_file(&target(&path)?, b"{\n}\n")?;
    }
    let action = format!("edit {}", path.display());
    let interrupts = Interrupts::take(true).doing("wait for signals")?;
    let edited = interrupts.while_lent(|| run_editor(&path, &action)).doing("lend the terminal")?;
    drop(interrupts);
    edited?;
    note_unknown(&path, output)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the user's editor on a file until it ends. `action` is what the user wants to do.
pub fn run_editor(path: &Path, action: &str) -> Result<(), Error> {
    let editor = config::editor().unwrap_or_else(|| "vi".to_owned());
    let mut shell = Command::new("sh");
    // The editor may have arguments; the name of the file is one of its own. Ctrl-C is for the
    // editor, and must not end the shell before it.
    shell.args(["-c", &format!("trap : INT; {editor} \"$1\""), "sh"]).arg(path);
    child::unblock_signals(&mut shell);
    let status = shell.status().doing("run the editor")?;
    if status.success() {
        return Ok(());
    }
    let reason = format!("the editor '{editor}' ended with {status}");
    let error = Error::cannot(Kind::System, action, reason);
    Err(error.with_next_step("to use another: set VISUAL or EDITOR"))
}

fn note_unknown(path: &Path, output: &Output) -> Result<(), Error> {
    for name in unknown_settings(path)? {
        output.note(&format!("unknown setting {name}"));
    }
    Ok(())
}

/// Returns the settings in a file that have no effect, in alphabetical order, each with the known
/// one that may be meant. Fails if the settings cannot be used.
pub fn unknown_settings(path: &Path) -> Result<Vec<String>, Error> {
    usable_text_of(path)?;
    let tools = ToolSettings::load(path)?;
    let mut unknown = config::unknown_settings(path)?;
    // A misspelled name restricts nothing.
    let names =
        tools.permissions.names().filter(|name| agent::tool_names().all(|tool| tool != *name));
    unknown.extend(names.map(of_tool));
    unknown.sort_unstable();
    Ok(unknown.iter().map(|name| suggestion(name)).collect())
}

/// Returns the names of all settings.
fn known() -> Vec<String> {
    let keys = config::KEYS.map(str::to_owned).into_iter();
    keys.chain(agent::tool_names().map(of_tool)).collect()
}

/// Returns whether the name is that of a setting.
pub fn is_known(key: &str) -> bool {
    // A workspace may have any label.
    key.starts_with("workspaces.") || known().iter().any(|known| known == key)
}

/// Returns the name of the setting for a tool.
fn of_tool(name: impl AsRef<str>) -> String {
    format!("permissions.{}", name.as_ref())
}

/// Returns an unknown name with the known one that may be meant: one in another section, or a
/// similar one.
fn suggestion(name: &str) -> String {
    let known = known();
    let last = |name: &str| name.rsplit('.').next().map(str::to_owned);
    let moved = known.iter().find(|known| last(known) == last(name)).map(String::as_str);
    match moved.or_else(|| cli::nearest(name, &known)) {
        Some(meant) => format!("{name} (did you mean {meant}?)"),
        None => name.to_owned(),
    }
}

fn unknown(key: &str) -> Error {
    let message = format!("unknown setting {}", suggestion(key));
    Error::usage(message, "to see all: man opta-daemon, section Configuration")
}
