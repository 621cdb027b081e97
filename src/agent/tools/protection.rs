//! What file tools never touch: the directories of opta, of this daemon and of any other, and the
//! kernel's state in the form of files.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::sys::descriptor;
use crate::sys::openat::{self, FileType};

/// How many links in succession are followed at the end of a path.
pub const LINKS_MAX: usize = 8;
/// The daemon's directory in one of opta.
const DAEMON: &str = "daemon";

/// The paths that belong to opta, without links.
pub struct Protection(Vec<PathBuf>);

impl Protection {
    /// Protects these paths. If one of them is a link, its target is protected.
    pub fn new(paths: &[PathBuf]) -> Protection {
        Protection(paths.iter().map(|path| real_path(path)).collect())
    }

    /// Returns whether a path without links is protected, or lies in a protected directory.
    pub fn covers(&self, path: &Path) -> bool {
        self.0.iter().any(|protected| path.starts_with(protected))
            || path
                .ancestors()
                .map(|above| above.join(DAEMON))
                .any(|daemon| is_of_opta(|name| daemon.join(name).symlink_metadata().is_ok()))
    }

    /// Fails if an open file or directory, which is at `path`, is protected: what is opened counts,
    /// not its name.
    pub fn check(&self, file: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        if descriptor::is_kernel_state(file)? {
            return Err(denied("it is the kernel's state, not a file on a disk"));
        }
        let found = File::from(file.try_clone_to_owned()?).metadata()?;
        let is_same = |protected: &PathBuf| {
            let protected = fs::metadata(protected);
            protected.is_ok_and(|other| (other.dev(), other.ino()) == (found.dev(), found.ino()))
        };
        match self.covers(path) || self.0.iter().any(is_same) {
            true => Err(belongs_to_opta()),
            false => Ok(()),
        }
    }

    /// Fails if the entry `name` of a directory that passed [`Protection::check`], which need not
    /// exist, is protected. Some file systems do not distinguish upper case from lower case.
    pub fn check_entry(&self, directory: &Path, name: &OsStr) -> io::Result<()> {
        let is_it = |protected: &PathBuf| {
            protected.parent() == Some(directory)
                && protected.file_name().is_some_and(|other| lowercase(other) == lowercase(name))
        };
        if self.0.iter().any(is_it) { Err(belongs_to_opta()) } else { Ok(()) }
    }

    /// Removes from the entries of an open directory those that are protected: all, if it belongs
    /// to opta or the kernel as a whole, or if that is unknown.
    pub fn remove_from(
        &self,
        directory: BorrowedFd<'_>,
        base: &Path,
        entries: &mut Vec<(OsString, FileType)>,
    ) {
        let has_daemon = entries.iter().any(|(name, kind)| {
            name == DAEMON && matches!(kind, FileType::Directory | FileType::Link)
        });
        let is_whole = descriptor::is_kernel_state(directory).unwrap_or(true)
            || (has_daemon
                && openat::open_directory(directory, Path::new(DAEMON)).is_ok_and(|daemon| {
                    is_of_opta(|name| openat::has_entry(daemon.as_fd(), OsStr::new(name)))
                }));
        if !is_whole && !self.0.iter().any(|protected| protected.starts_with(base)) {
            return;
        }
        match descriptor::path_of(directory) {
            Ok(path) if !is_whole => {
                entries.retain(|(name, _)| self.check_entry(&path, name).is_ok());
            }
            _ => entries.clear(),
        }
    }
}

fn lowercase(name: &OsStr) -> String {
    name.to_string_lossy().to_lowercase()
}

fn denied(because: &str) -> io::Error {
    io::Error::new(ErrorKind::PermissionDenied, because)
}

fn belongs_to_opta() -> io::Error {
    denied("it belongs to opta itself")
}

/// Returns whether a directory is one of opta's, whichever user or home it is for: a daemon is
/// running in it, or was. `has` returns whether a file is in its directory for the daemon.
fn is_of_opta(has: impl Fn(&str) -> bool) -> bool {
    has("daemon.pid") && (has("state.json") || has("start.lock"))
}

/// Resolves all links in a path, whether or not it exists.
fn real_path(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        if let Ok(real) = path.canonicalize() {
            return real;
        }
        let Some((directory, name)) = path.parent().zip(path.file_name()) else { break };
        let directory = directory.canonicalize().unwrap_or_else(|_missing| directory.to_owned());
        match path.read_link() {
            Ok(target) => path = directory.join(target),
            Err(_) => return directory.join(name),
        }
    }
    path
}
