//! What systemd and launchd have in common: what a service's file says, and how a manager sees the
//! service.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{At, Error, Kind};
use crate::paths::Paths;
use crate::sys::spawn;
use crate::{config, disk};

/// In every file that opta writes, and in no other.
pub const MARK: &str = "Written by opta ";
/// The comment in a file that has the mark and the version.
pub const MARK_LINE: &str =
    concat!("Written by opta ", env!("CARGO_PKG_VERSION"), ": opta daemon install");

/// The state of the service in its manager.
pub enum ServiceState {
    /// Not running; systemd may not even know the unit.
    Inactive,
    /// Running, starting, stopping or waiting to be restarted; in launchd: loaded.
    Active { pid: Option<i32> },
    /// Failed, and not restarted by the manager.
    Failed(ServiceFailure),
}

/// Why the manager does not run the service.
pub struct ServiceFailure {
    pub message: String,
    /// The command that shows details.
    pub details: &'static str,
    /// The manager restarted it until it reached a limit.
    pub gave_up: bool,
    /// The cause was outside the service, and may be gone.
    pub transient: bool,
}

/// Whether a manager has loaded a service's file.
pub enum LoadState {
    /// It has not, or it loaded another file, or an earlier version of this one.
    NotLoaded,
    /// It read the file and cannot use it, for this reason.
    Rejected(String),
    /// It has loaded this file.
    Loaded { state: ServiceState, enabled: bool },
}

/// What a service's file says: text that both formats can express.
pub struct UnitFields {
    pub program: String,
    pub search_path: String,
    pub root: String,
}

impl UnitFields {
    /// Returns the fields with which a service runs this program for `paths`. The service searches
    /// programs where this command's shell does.
    ///
    /// # Errors
    /// [`Kind::UnservablePath`] for a path that a file cannot express.
    pub fn of_this_program(paths: &Paths) -> Result<UnitFields, Error> {
        let search_path = config::search_path();
        let program = as_text(&program(&search_path)?)?;
        let search_path = expressible(&search_path);
        Ok(UnitFields { program, search_path, root: as_text(paths.root())? })
    }
}

/// What is in the place of a service's file.
pub enum ServiceFile {
    Missing,
    /// Written by opta: its text.
    Ours(String),
    /// Not written by opta, or not a regular file.
    Foreign,
}

impl ServiceFile {
    pub fn read(path: &Path) -> Result<ServiceFile, Error> {
        let found = disk::if_exists(path.symlink_metadata()).at("inspect", path)?;
        let Some(found) = found else {
            return Ok(ServiceFile::Missing);
        };
        // A symbolic link is the user's: the file is kept somewhere else.
        if !found.is_file() {
            return Ok(ServiceFile::Foreign);
        }
        let text = String::from_utf8(fs::read(path).at("read", path)?).ok();
        let ours = text.filter(|text| text.lines().take(4).any(|line| line.contains(MARK)));
        Ok(ours.map_or(ServiceFile::Foreign, ServiceFile::Ours))
    }
}

fn as_text(path: &Path) -> Result<String, Error> {
    let reason = "a service's file cannot express control characters or what is not UTF-8";
    let text = path.to_str().filter(|text| !text.contains(char::is_control));
    text.map(str::to_owned).ok_or_else(|| unservable(path, reason))
}

/// Returns the error for a path that the manager cannot use.
pub fn unservable(path: &Path, reason: &str) -> Error {
    Error::cannot(Kind::UnservablePath, format!("make a service of {}", path.display()), reason)
}

/// Drops relative directories, which would mean others in the service, and those that a file cannot
/// express.
fn expressible(search_path: &OsStr) -> String {
    let directories = std::env::split_paths(search_path).filter(|path| path.is_absolute());
    let directories: Vec<String> = directories.filter_map(|path| as_text(&path).ok()).collect();
    directories.join(":")
}

/// Returns the absolute path by which this program was called.
///
/// Symbolic links are not resolved: a package or version manager changes the link at every upgrade,
/// and removes its target.
fn program(search_path: &OsStr) -> Result<PathBuf, Error> {
    let running = without_deleted(spawn::program().at("find", Path::new("opta"))?);
    let called = std::env::args_os().next().unwrap_or_default();
    // The caller chooses the name: it counts only if it leads to the running program.
    let same = |path: &PathBuf| {
        let target = fs::canonicalize(path).ok();
        target.is_some() && target == fs::canonicalize(&running).ok()
    };
    Ok(look_up(&called, search_path).filter(same).unwrap_or(running))
}

/// Removes the mark that Linux puts after the path of a running program whose file was replaced.
/// proc(5)
fn without_deleted(path: PathBuf) -> PathBuf {
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(before) => PathBuf::from(OsString::from_vec(before.to_vec())),
        None => path,
    }
}

/// Finds the file that a shell would have run: a name with a slash is a path, others are looked up.
fn look_up(called: &OsStr, search_path: &OsStr) -> Option<PathBuf> {
    if called.as_bytes().contains(&b'/') {
        return std::path::absolute(called).ok();
    }
    let directories = std::env::split_paths(search_path).filter(|path| path.is_absolute());
    directories.map(|directory| directory.join(called)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    impl UnitFields {
        pub fn example(program: &str) -> UnitFields {
            UnitFields {
                program: program.to_owned(),
                search_path: "/home/u/.local/bin:/usr/bin".to_owned(),
                root: "/home/u/.config/opta".to_owned(),
            }
        }
    }

    #[test]
    fn relative_and_inexpressible_directories_are_not_searched() {
        assert_eq!(expressible(OsStr::new("/a b:.::bin:/c\nd:/usr/bin")), "/a b:/usr/bin");
    }

    #[test]
    fn paths_with_control_characters_are_refused() {
        assert!(as_text(Path::new("/opt/a\tb")).is_err());
        assert_eq!(as_text(Path::new("/opt/ö & %")).unwrap(), "/opt/ö & %");
    }

    #[test]
    fn a_name_is_looked_up_and_a_path_is_made_absolute() {
        let called = |name, path| look_up(OsStr::new(name), OsStr::new(path));
        assert_eq!(called("sh", ".:/nowhere:/bin"), Some("/bin/sh".into()));
        assert_eq!(called("no-such-program", "/bin"), None);
        assert_eq!(called("/opt/x/../opta", "/bin"), Some("/opt/x/../opta".into()));
        let here = std::env::current_dir().unwrap();
        assert_eq!(called("./opta", "/bin"), Some(here.join("opta")));
    }

    #[test]
    fn the_mark_of_a_replaced_program_is_removed() {
        assert_eq!(without_deleted("/bin/opta (deleted)".into()), Path::new("/bin/opta"));
        assert_eq!(without_deleted("/bin/opta".into()), Path::new("/bin/opta"));
    }
}
