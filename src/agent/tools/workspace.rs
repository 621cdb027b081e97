//! The directory that a session works in. Models reach files only through it: nothing outside is
//! opened, whatever the paths and links are and whatever other processes do.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use crate::error::reason;
use crate::protocol::Variable;
use crate::session::wake::Cancel;
use crate::sys::descriptor;
use crate::sys::openat::{self, FileType};

use super::protection::Protection;
use super::seen::SeenFiles;

/// A workspace that is opened when a tool first needs it; otherwise, each tool returns the error.
pub type LazyWorkspace = LazyLock<OpenedWorkspace, Box<dyn FnOnce() -> OpenedWorkspace + Send>>;
type OpenedWorkspace = Result<Arc<Workspace>, String>;

/// The context that tools work in: the same for all calls of a turn.
pub struct ToolContext<'a> {
    pub workspace: LazyWorkspace,
    /// The variables for commands.
    pub environment: &'a [Variable],
    /// The file mode creation mask for commands and new files.
    pub umask: u32,
    /// What the model has seen of files, in all turns of the session.
    pub seen: Arc<SeenFiles>,
    pub cancel: &'a Cancel,
    pub deadline: Instant,
}

impl ToolContext<'_> {
    /// Returns the workspace, or the reason why it cannot be used.
    pub fn workspace(&self) -> Result<&Arc<Workspace>, String> {
        LazyLock::force(&self.workspace).as_ref().map_err(String::clone)
    }

    /// Returns whether the call should end: the turn was cancelled or is out of time.
    pub fn is_over(&self) -> bool {
        self.cancel.is_cancelled() || Instant::now() >= self.deadline
    }

    /// Fails with the reason if [`ToolContext::is_over`].
    pub fn check(&self) -> Result<(), String> {
        match self.is_over() {
            true if self.cancel.is_cancelled() => Err("cancelled".to_owned()),
            true => Err("the turn is out of time".to_owned()),
            false => Ok(()),
        }
    }
}

/// An open directory. It remains the same directory if it is moved.
pub struct Workspace {
    root: File,
    /// The path as the session has it.
    given: PathBuf,
    /// The same path without links.
    path: PathBuf,
    protection: Protection,
}

impl Workspace {
    /// Opens the directory at `path` without what is protected in it: the `protected` paths, and
    /// what belongs to any daemon of opta or to the kernel. Errors are for the model.
    pub fn open(path: &str, protected: &[PathBuf]) -> Result<Arc<Workspace>, String> {
        let given = PathBuf::from(path);
        let failed =
            |error: io::Error| format!("the workspace {path} cannot be opened: {}", reason(&error));
        if !given.is_absolute() {
            return Err(format!("the workspace {path} is not an absolute path"));
        }
        let real = given.canonicalize().map_err(failed)?;
        // Of a pipe, opening could wait for the other end.
        let mut directory = OpenOptions::new();
        directory.read(true).custom_flags(libc::O_DIRECTORY);
        let root = directory.open(&real).map_err(failed)?;
        let protection = Protection::new(protected);
        if protection.covers(&real) {
            return Err(format!("the workspace {} belongs to opta itself", given.display()));
        }
        Ok(Arc::new(Workspace { root, given, path: real, protection }))
    }

    /// Returns where it was when it was opened, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the id of the user to whom it belongs.
    pub fn owner(&self) -> io::Result<u32> {
        Ok(self.root.metadata()?.uid())
    }

    /// Returns where an open file or directory is, without links. It was opened as `path`, which
    /// only counts if the system does not say.
    pub fn path_of(&self, file: BorrowedFd<'_>, path: &Path) -> io::Result<PathBuf> {
        descriptor::path_of(file).or_else(|_unknown| self.path.join(path).canonicalize())
    }

    /// Fails if the entry `name` of a directory, which need not exist, is protected.
    pub(super) fn check_entry(&self, directory: &Path, name: &OsStr) -> io::Result<()> {
        self.protection.check_entry(directory, name)
    }

    /// Fails if an open file or directory at `path` is protected.
    pub(super) fn check(&self, file: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        self.protection.check(file, path)
    }

    /// Returns the directory itself.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Returns `given` as a path from the workspace. It is resolved only when it is opened.
    pub fn relative(&self, given: &str) -> Result<PathBuf, String> {
        let path = Path::new(given);
        if given.is_empty() {
            return Err("the path is empty".to_owned());
        }
        if !path.is_absolute() {
            return Ok(path.to_owned());
        }
        let inside = path.strip_prefix(&self.given).or_else(|_| path.strip_prefix(&self.path));
        inside.map(Path::to_owned).map_err(|_outside| self.outside(given))
    }

    /// Removes from the entries of an open directory those that are protected.
    pub fn remove_protected(
        &self,
        directory: BorrowedFd<'_>,
        entries: &mut Vec<(OsString, FileType)>,
    ) {
        self.protection.remove_from(directory, &self.path, entries);
    }

    /// Opens a regular file or a directory for reading; `None` if there is nothing.
    pub fn entry(&self, given: &str) -> Result<Option<File>, String> {
        match self.open_beneath(&self.relative(given)?, openat::open_file) {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failure(given, &error)),
        }
    }

    /// Opens a regular file for reading.
    pub fn file(&self, given: &str) -> Result<File, String> {
        let file = self.entry(given)?.ok_or_else(|| format!("there is no {given}"))?;
        let is_directory = file.metadata().is_ok_and(|found| found.is_dir());
        if is_directory { Err(format!("{given} is a directory")) } else { Ok(file) }
    }

    /// Opens a directory.
    pub fn directory(&self, given: &str) -> Result<File, String> {
        let path = self.relative(given)?;
        let directory = self.open_beneath(&path, openat::open_directory);
        directory.map_err(|error| self.failure(given, &error))
    }

    /// Opens a path beneath the workspace. The kernel refuses every absolute link; a link to a path
    /// in the workspace is resolved here, and its target opened with the same checks.
    pub(super) fn open_beneath(
        &self,
        path: &Path,
        open: fn(BorrowedFd<'_>, &Path) -> io::Result<File>,
    ) -> io::Result<File> {
        let root = self.root.as_fd();
        let opened = match open(root, path) {
            Err(error) if error.kind() == ErrorKind::CrossesDevices => {
                let real = self.path.join(path).canonicalize().unwrap_or_default();
                let inside = real.strip_prefix(&self.path);
                inside.map_or(Err(error), |inside| open(root, inside))
            }
            result => result,
        }?;
        let place = self.path_of(opened.as_fd(), path)?;
        self.check(opened.as_fd(), &place)?;
        Ok(opened)
    }

    fn outside(&self, given: &str) -> String {
        let workspace = self.given.display();
        format!("{given} is outside the workspace {workspace}; paths are relative to it")
    }

    /// Returns what a failure means for the model.
    pub(super) fn failure(&self, given: &str, error: &io::Error) -> String {
        match error.kind() {
            ErrorKind::CrossesDevices => self.outside(given),
            ErrorKind::NotFound => format!("there is no {given}"),
            ErrorKind::Unsupported => format!("{given} is not a regular file"),
            _ => format!("{given}: {}", reason(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::scratch::Scratch;
    use crate::agent::tools::replace::{Expected, Written};
    use crate::disk::FileVersion;
    use std::fs::{self, Permissions};
    use std::io::Read;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;

    /// Replaces a file in the version that it has, or creates it.
    fn replace(workspace: &Workspace, given: &str, text: &str) -> Result<Written, String> {
        let found = workspace.file(given).ok().and_then(|file| file.metadata().ok());
        let version = found.map(|found| FileVersion::of(&found));
        let expected = version.map_or(Expected::Nothing, Expected::File);
        workspace.replace(given, text.as_bytes(), expected, 0o022)
    }

    fn text(mut file: File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn absolute_paths_and_links_are_judged_by_their_targets() {
        let scratch = Scratch::new();
        scratch.put("inside/a", "plain");
        scratch.put("secret", "secret");
        symlink(scratch.path().join("inside/a"), scratch.path().join("inside/back_in")).unwrap();
        symlink(scratch.path().join("secret"), scratch.path().join("inside/out")).unwrap();
        let inside = scratch.path().join("inside");
        let workspace = Workspace::open(inside.to_str().unwrap(), &[]).unwrap();
        for path in ["a", "./a", "back_in", inside.join("a").to_str().unwrap()] {
            assert_eq!(text(workspace.file(path).unwrap()), "plain", "{path}");
        }
        let secret = scratch.path().join("secret");
        for path in
            ["../secret", "out", secret.to_str().unwrap(), "/etc/passwd", "../inside/../secret"]
        {
            let problem = workspace.file(path).unwrap_err();
            assert!(problem.contains("is outside the workspace"), "{path}: {problem}");
            assert!(replace(&workspace, path, "mine").is_err(), "{path}");
        }
        assert_eq!(scratch.read("secret"), "secret");
        for path in ["", "no\0name", ".", "..", "a/"] {
            assert!(replace(&workspace, path, "x").is_err(), "{path}");
        }
    }

    #[test]
    fn protected_files_are_neither_read_nor_written_by_any_path() {
        let scratch = Scratch::new();
        let own = scratch.path().join(".config/opta");
        let protected = [own.clone(), own.join("config.json")];
        scratch.put(".config/opta/daemon/state.json", "token");
        scratch.put(".config/other", "plain");
        symlink(".config/opta/daemon", scratch.path().join("link")).unwrap();
        symlink(own.join("daemon/state.json"), scratch.path().join("file")).unwrap();
        symlink(own.join("config.json"), scratch.path().join("new")).unwrap();
        let workspace = Workspace::open(scratch.path().to_str().unwrap(), &protected).unwrap();
        for path in [
            ".config/opta/daemon/state.json",
            "link/state.json",
            "file",
            "link/../daemon/state.json",
        ] {
            let problem = workspace.file(path).unwrap_err();
            assert!(problem.ends_with("it belongs to opta itself"), "{path}: {problem}");
            assert!(replace(&workspace, path, "mine").is_err(), "{path}");
        }
        for path in [
            ".config/opta/config.json",
            ".config/opta/config.json/a",
            ".config/opta/new/a",
            "new",
            "link/new",
            "link/a/b",
        ] {
            let problem = replace(&workspace, path, "mine").unwrap_err();
            assert!(problem.ends_with("it belongs to opta itself"), "{path}: {problem}");
        }
        assert!(workspace.directory("link").is_err());
        assert_eq!(scratch.read(".config/opta/daemon/state.json"), "token");
        // No directory was made for a path that was refused.
        assert_eq!(fs::read_dir(&own).unwrap().count(), 1);
        assert_eq!(fs::read_dir(own.join("daemon")).unwrap().count(), 1);
        assert_eq!(text(workspace.file(".config/other").unwrap()), "plain");
        let inside = own.join("daemon");
        let problem = Workspace::open(inside.to_str().unwrap(), &protected).err().unwrap();
        assert!(problem.ends_with("belongs to opta itself"), "{problem}");
    }

    #[test]
    fn settings_that_a_link_leads_to_are_protected_even_before_they_exist() {
        let scratch = Scratch::new();
        let own = scratch.path().join(".config/opta");
        fs::create_dir_all(&own).unwrap();
        scratch.put("dot/other", "plain");
        symlink("../../dot/link.json", own.join("config.json")).unwrap();
        symlink("opta.json", scratch.path().join("dot/link.json")).unwrap();
        let open = || {
            let protected = [own.clone(), own.join("config.json")];
            Workspace::open(scratch.path().join("dot").to_str().unwrap(), &protected).unwrap()
        };
        for path in ["opta.json", "link.json"] {
            assert!(replace(&open(), path, "mine").is_err(), "{path}");
        }
        scratch.put("dot/opta.json", "{}");
        for path in ["opta.json", "link.json"] {
            assert!(replace(&open(), path, "mine").is_err(), "{path}");
            assert!(open().file(path).is_err(), "{path}");
        }
        assert_eq!(scratch.read("dot/opta.json"), "{}");
        assert_eq!(text(open().file("other").unwrap()), "plain");
    }

    #[test]
    fn writing_keeps_modes_and_links_and_makes_directories() {
        let scratch = Scratch::new();
        scratch.put("run.sh", "old");
        let mode = |name: &str| fs::metadata(scratch.path().join(name)).unwrap().mode() & 0o777;
        fs::set_permissions(scratch.path().join("run.sh"), Permissions::from_mode(0o755)).unwrap();
        symlink("run.sh", scratch.path().join("link")).unwrap();
        symlink("new/by_link", scratch.path().join("dangling")).unwrap();
        symlink("../elsewhere", scratch.path().join("dangling_out")).unwrap();
        let workspace = Workspace::open(scratch.path().to_str().unwrap(), &[]).unwrap();
        let put = |path: &str| replace(&workspace, path, "new").map(drop);
        assert_eq!(put("link"), Ok(()));
        assert_eq!((scratch.read("run.sh").as_str(), mode("run.sh")), ("new", 0o755));
        assert!(scratch.path().join("link").is_symlink());
        assert_eq!(put("a/b/c.txt"), Ok(()));
        assert_eq!((mode("a/b/c.txt"), mode("a/b")), (0o644, 0o755));
        assert_eq!(put("dangling"), Ok(()));
        assert_eq!(scratch.read("new/by_link"), "new");
        assert!(put("dangling_out").is_err());
        assert!(put("a").unwrap_err().contains("not a regular file"));
        fs::set_permissions(scratch.path().join("run.sh"), Permissions::from_mode(0o444)).unwrap();
        assert!(put("run.sh").unwrap_err().contains("read-only"));
        let left: Vec<_> =
            fs::read_dir(scratch.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_str().unwrap().starts_with(".opta-")), "{left:?}");
    }

    #[test]
    fn a_file_that_was_changed_meanwhile_is_not_overwritten() {
        let scratch = Scratch::new();
        scratch.put("a", "one");
        let workspace = Workspace::open(scratch.path().to_str().unwrap(), &[]).unwrap();
        let version = FileVersion::of(&workspace.file("a").unwrap().metadata().unwrap());
        scratch.put("a", "another");
        let problem = workspace.replace("a", b"mine", Expected::File(version), 0o022);
        assert!(problem.unwrap_err().contains("somebody else"));
        assert_eq!(scratch.read("a"), "another");
    }

    #[test]
    fn writing_stays_inside_while_a_directory_is_swapped_for_a_link() {
        const ROUNDS: usize = 100;
        let scratch = Scratch::new();
        scratch.put("inside/sub/file", "plain");
        scratch.put("outside/file", "precious");
        let inside = scratch.path().join("inside");
        let workspace = Workspace::open(inside.to_str().unwrap(), &[]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let (swaps, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        let written = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (place, aside) = (inside.join("sub"), inside.join("aside"));
                while !done.load(Ordering::Relaxed) {
                    // A writer makes a directory that it finds missing, so any of these may fail.
                    drop(fs::rename(&place, &aside));
                    swaps
                        .fetch_add(symlink("../outside", &place).is_ok().into(), Ordering::Relaxed);
                    drop(fs::remove_file(&place));
                    drop(fs::remove_dir_all(&place));
                    drop(fs::rename(&aside, &place));
                }
            });
            let mut written = 0;
            while written < ROUNDS || swaps.load(Ordering::Relaxed) < ROUNDS {
                // A write may be refused, or find its directory gone.
                written += usize::from(replace(&workspace, "sub/file", "mine").is_ok());
                if Instant::now() >= deadline {
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
            written
        });
        let swaps = swaps.into_inner();
        assert!(written >= ROUNDS && swaps >= ROUNDS, "{written} writes, {swaps} swaps");
        assert_eq!(scratch.read("outside/file"), "precious");
        assert_eq!(fs::read_dir(scratch.path().join("outside")).unwrap().count(), 1);
    }
}
