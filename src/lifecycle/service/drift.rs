//! Whether the service's file is the one that `install` would write, and whether its manager has
//! loaded it. Reads only.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Service;
use super::unit::{LoadState, MARK, ServiceFailure, ServiceFile, ServiceState, UnitFields};
use crate::error::{Error, reason};
use crate::paths::Paths;

/// How the service differs from a fresh installation: the first of these that applies.
pub enum Drift {
    /// There is no file.
    NotInstalled,
    /// Opta did not write the file.
    Foreign,
    /// It serves another home.
    OtherHome(PathBuf),
    /// Its program cannot be run.
    Broken { program: PathBuf, because: String },
    /// It is not what `install` would write: this version wrote it, and it was edited, or another
    /// version wrote it.
    Different { version: String },
    /// The manager cannot be reached.
    Unreachable(Error),
    /// The manager has not loaded it, or not since it changed.
    NotLoaded,
    /// The manager read it and cannot use it, for this reason.
    Rejected(String),
    /// The manager no longer runs it.
    Failed(ServiceFailure),
    /// No difference.
    None { program: PathBuf, enabled: bool },
}

/// Compares the service's file with what `install` would write for the program and the search path
/// in it.
///
/// # Errors
/// The file cannot be read.
pub fn detect(service: &Service, paths: &Paths) -> Result<Drift, Error> {
    let text = match ServiceFile::read(&service.file)? {
        ServiceFile::Missing => return Ok(Drift::NotInstalled),
        ServiceFile::Foreign => return Ok(Drift::Foreign),
        ServiceFile::Ours(text) => text,
    };
    let Some(fields) = service.fields(&text) else {
        return Ok(different(&text));
    };
    if Path::new(&fields.root) != paths.root() {
        return Ok(Drift::OtherHome(fields.root.into()));
    }
    let program = PathBuf::from(&fields.program);
    if let Some(because) = why_not_executable(&program) {
        return Ok(Drift::Broken { program, because });
    }
    let root = paths.root().display().to_string();
    let expected = service.text(&UnitFields { root, ..fields });
    // A file that differs only in its version needs no change.
    if !expected.is_ok_and(|expected| without_mark(&expected).eq(without_mark(&text))) {
        return Ok(different(&text));
    }
    Ok(match service.load_state() {
        Err(error) => Drift::Unreachable(error),
        Ok(LoadState::NotLoaded) => Drift::NotLoaded,
        Ok(LoadState::Rejected(reason)) => Drift::Rejected(reason),
        Ok(LoadState::Loaded { state: ServiceState::Failed(failure), .. })
            if !failure.transient =>
        {
            Drift::Failed(failure)
        }
        Ok(LoadState::Loaded { enabled, .. }) => Drift::None { program, enabled },
    })
}

/// Returns the lines without the one that names the version.
fn without_mark(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.contains(MARK))
}

fn different(text: &str) -> Drift {
    let version = text.split_once(MARK).and_then(|(_, rest)| rest.split([':', '\n']).next());
    Drift::Different { version: version.unwrap_or_default().to_owned() }
}

/// Returns why `program` cannot be executed, if it cannot.
fn why_not_executable(program: &Path) -> Option<String> {
    match fs::metadata(program) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some("does not exist".to_owned()),
        Err(error) => Some(format!("cannot be inspected: {}", reason(&error))),
        Ok(found) if found.is_file() && found.mode() & 0o111 != 0 => None,
        Ok(_) => Some("is not executable".to_owned()),
    }
}
