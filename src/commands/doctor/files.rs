//! Whether files that may hold secrets belong to this user, and whether others can access them.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::finding::{Check, Finding, fail, first_installed, pass, quoted};
use crate::error::reason;
use crate::paths::Paths;
use crate::sys;

/// Checks the files and directories of the daemon.
pub fn files(paths: &Paths) -> Check {
    // The home itself may be a link.
    let root = paths.root().canonicalize().unwrap_or_else(|_| paths.root().to_owned());
    let directories = [(root, 0o755), (paths.daemon(), 0o700), (paths.sessions(), 0o700)];
    let files = [
        paths.state(),
        paths.pid(),
        paths.start_lock(),
        paths.crashes(),
        paths.log(),
        paths.history(),
    ];
    let files = files.map(|file| (file, 0o600));
    let mut any = false;
    let mut problems = Problems::default();
    for (path, mode) in directories.into_iter().chain(files) {
        any |= path.symlink_metadata().is_ok();
        problems.check(paths, &path, mode);
    }
    problems.result()?;
    Ok(pass(if any { "private to this user" } else { "no files yet" }))
}

/// What is wrong with several files.
#[derive(Default)]
pub struct Problems {
    messages: Vec<String>,
    /// Commands, and the words after each.
    fixes: Vec<(String, Vec<String>)>,
    /// Directories whose fix comes first, or changes what is in them as well.
    covering: Vec<PathBuf>,
}

/// A problem with a file, and a command to run. Those with equal commands are run as one, with all
/// their operands.
struct Problem {
    message: String,
    command: String,
    operand: Option<String>,
    /// The problem, or its fix, extends to everything in the directory.
    covers: bool,
}

impl Problems {
    /// Checks who may use a file or, judging by `mode`, a directory. One that does not exist
    /// passes, and so does one in a directory that has to be fixed first.
    pub fn check(&mut self, paths: &Paths, path: &Path, mode: u32) {
        if self.covering.iter().any(|directory| path.starts_with(directory)) {
            return;
        }
        let Some(found) = problem(paths, path, mode) else { return };
        if found.covers {
            self.covering.push(path.to_owned());
        }
        self.messages.push(found.message);
        match self.fixes.iter_mut().find(|(command, _)| *command == found.command) {
            Some((_, operands)) => operands.extend(found.operand),
            None => self.fixes.push((found.command, found.operand.into_iter().collect())),
        }
    }

    /// Fails if there is a problem.
    pub fn result(self) -> Result<(), Finding> {
        if self.messages.is_empty() {
            return Ok(());
        }
        let fixes = self.fixes.into_iter().map(|(command, operands)| {
            [command].into_iter().chain(operands).collect::<Vec<_>>().join(" ")
        });
        Err(fail(self.messages.join(", "), fixes.collect::<Vec<_>>().join(" && ")))
    }
}

fn problem(paths: &Paths, path: &Path, mode: u32) -> Option<Problem> {
    let (shown, word) = (paths.display(path), quoted(path));
    let whole = |message, command| Problem { message, command, operand: None, covers: true };
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            return Some(whole(format!("{shown}: {}", reason(&error)), format!("ls -ld {word}")));
        }
    };
    let directory = mode & 0o100 != 0;
    if found.is_dir() != directory || found.is_file() == directory {
        let kind = if directory { "directory" } else { "regular file" };
        return Some(whole(format!("{shown} is not a {kind}"), format!("mv {word} {word}.old")));
    }
    if found.uid() != sys::effective_user() {
        let message = format!("{shown} belongs to another user");
        let (command, operand) = take_ownership(paths, path, found.uid());
        return Some(Problem { message, command, operand, covers: directory });
    }
    if !directory && found.nlink() > 1 {
        // Only the user can tell which of its names to remove.
        let command = format!("find {} -xdev -samefile {word}", quoted(paths.root()));
        return Some(whole(format!("{shown} has a second hard link"), command));
    }
    let surplus = found.mode() & 0o777 & !mode;
    (surplus != 0).then(|| Problem {
        message: format!("{shown} has mode {:04o}, not {mode:04o}", found.mode() & 0o7777),
        command: format!("chmod {mode:o}"),
        operand: Some(word),
        covers: false,
    })
}

/// Returns the command that gives `path` of another user to this one, and its operand.
fn take_ownership(paths: &Paths, path: &Path, owner: u32) -> (String, Option<String>) {
    let of_root = |path: &Path| path.metadata().is_ok_and(|found| found.uid() == 0);
    let roots_own = of_root(paths.root()) || paths.root().parent().is_some_and(of_root);
    let look = || ("ls -ld".to_owned(), Some(quoted(path)));
    match sys::effective_user() {
        0 if roots_own => ("chown -R 0".to_owned(), Some(quoted(path))),
        // Root would take it from its owner.
        0 => match first_installed(&["sudo", "setpriv"]) {
            Some("sudo") => (format!("sudo -u '#{owner}' opta doctor"), None),
            Some(_) => (format!("setpriv --reuid={owner} --clear-groups opta doctor"), None),
            None => look(),
        },
        _ => match first_installed(&["sudo", "doas"]) {
            Some(tool) => (format!("{tool} chown -R \"$(id -u)\""), Some(quoted(path))),
            None => look(),
        },
    }
}
