//! Whether the service's file is what `install` would write, and whether its manager has taken it
//! in. Asks, and changes nothing.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{
    MARK, Plan, Present, Service, ServiceFailure, ServiceState, launchd, present, systemd,
};
use crate::error::{Error, reason};
use crate::paths::{Manager, Paths};

/// What there is of the service: the first of these that is true.
pub enum Drift {
    /// There is no file.
    NotInstalled,
    /// There is one that opta has not written.
    Foreign,
    /// It serves another home.
    OfAnotherHome(PathBuf),
    /// It runs a program that cannot be run.
    Broken { program: PathBuf, because: String },
    /// It says that this version has written it, and is not what `install` would write.
    Edited,
    /// It is not what `install` would write, and another version has written it.
    Outdated { by: String },
    /// The manager cannot be asked.
    Unreachable(Error),
    /// The manager does not have it, or not as it is now.
    NotLoaded,
    /// The manager has read it, and cannot use it: in its own word, why.
    Refused(String),
    /// The manager has it, and does not run it any more.
    Failed(ServiceFailure),
    /// As it should be.
    Sound {
        program: PathBuf,
        /// It is started at every login.
        enabled: bool,
    },
}

/// What a service's file of ours names.
pub struct UnitFields {
    pub program: String,
    pub search_path: String,
    pub root: String,
}

/// How a manager has taken in a service's file.
pub enum LoadState {
    /// Not at all, or another file, or this one as it was before.
    Not,
    /// It has, and cannot use it, for this reason.
    Refused(String),
    In {
        state: ServiceState,
        enabled: bool,
    },
}

impl Service {
    /// Compares the file with what `install` would write for the program that it names; the
    /// directories in which programs are searched are those of whoever has installed it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn condition(&self, paths: &Paths) -> Result<Drift, Error> {
        let text = match present(&self.file)? {
            Present::Nothing => return Ok(Drift::NotInstalled),
            Present::Foreign => return Ok(Drift::Foreign),
            Present::Ours(text) => text,
        };
        let named = match self.manager {
            Manager::Systemd => systemd::named(&text),
            Manager::Launchd => launchd::named(&text),
        };
        let Some(UnitFields { program, search_path, root }) = named else {
            return Ok(not_as_written(&text));
        };
        if Path::new(&root) != paths.root() {
            return Ok(Drift::OfAnotherHome(root.into()));
        }
        let place = PathBuf::from(&program);
        if let Some(because) = why_not_run(&place) {
            return Ok(Drift::Broken { program: place, because });
        }
        let expected = self.text(&Plan::with(paths, program, search_path)?);
        // That another version would have written the same is no reason to write it again.
        if !expected.is_ok_and(|expected| unmarked(&expected).eq(unmarked(&text))) {
            return Ok(not_as_written(&text));
        }
        let taken = match self.manager {
            Manager::Systemd => systemd::taken(&self.file),
            Manager::Launchd => launchd::taken(),
        };
        Ok(match taken {
            Err(error) => Drift::Unreachable(error),
            Ok(LoadState::Not) => Drift::NotLoaded,
            Ok(LoadState::Refused(word)) => Drift::Refused(word),
            Ok(LoadState::In { state: ServiceState::Failed(trouble), .. })
                if !trouble.transient =>
            {
                Drift::Failed(trouble)
            }
            Ok(LoadState::In { enabled, .. }) => Drift::Sound { program: place, enabled },
        })
    }
}

/// Its lines but for the one that names the version.
fn unmarked(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.contains(MARK))
}

fn not_as_written(text: &str) -> Drift {
    let by = text.split_once(MARK).and_then(|(_, rest)| rest.split([':', '\n']).next());
    match by.unwrap_or_default() {
        env!("CARGO_PKG_VERSION") => Drift::Edited,
        by => Drift::Outdated { by: by.to_owned() },
    }
}

/// Why the file there cannot be run, if so.
fn why_not_run(program: &Path) -> Option<String> {
    match fs::metadata(program) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some("is not there".to_owned()),
        Err(error) => Some(format!("cannot be looked at: {}", reason(&error))),
        Ok(found) if found.is_file() && found.mode() & 0o111 != 0 => None,
        Ok(_) => Some("is not executable".to_owned()),
    }
}
