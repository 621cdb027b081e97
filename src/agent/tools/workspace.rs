//! The directory that a session works in. Models reach files only through it: nothing outside is
//! opened, whatever the paths and links are and whatever other processes do.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::error::reason;
use crate::protocol::Variable;
use crate::session::wake::Cancel;
use crate::sys::openat;

/// How many links in succession are followed at the end of a path.
const LINKS_MAX: usize = 8;
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;

/// The context that tools work in: the same for all calls of a turn.
pub struct ToolContext<'a> {
    /// If it cannot be opened, each tool returns the error.
    pub workspace: Result<Workspace, String>,
    /// The variables for commands.
    pub environment: &'a [Variable],
    /// The file mode creation mask for commands and new files.
    pub umask: u32,
    pub cancel: &'a Cancel,
    pub deadline: Instant,
}

impl ToolContext<'_> {
    /// Returns the workspace, or the reason why it cannot be used.
    pub fn workspace(&self) -> Result<&Workspace, String> {
        self.workspace.as_ref().map_err(String::clone)
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
    /// The paths inside that must not be accessed, without links.
    protected: Vec<PathBuf>,
}

/// The version of a file's content, as far as its metadata tells: device, inode, size, and time of
/// modification in seconds and nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FileVersion(u64, u64, u64, i64, i64);

impl FileVersion {
    /// Returns the version of an open file.
    pub fn of(file: &File) -> io::Result<FileVersion> {
        let found = file.metadata()?;
        let (seconds, nanoseconds) = (found.mtime(), found.mtime_nsec());
        Ok(FileVersion(found.dev(), found.ino(), found.len(), seconds, nanoseconds))
    }
}

impl Workspace {
    /// Opens the directory at `path` without the `protected` paths in it. If one of those is a
    /// link, its target is protected. Errors are for the model.
    pub fn open(path: &str, protected: &[PathBuf]) -> Result<Workspace, String> {
        let given = PathBuf::from(path);
        let failed =
            |error: io::Error| format!("the workspace {path} cannot be opened: {}", reason(&error));
        if !given.is_absolute() {
            return Err(format!("the workspace {path} is not an absolute path"));
        }
        let real = given.canonicalize().map_err(failed)?;
        let root = File::open(&real).map_err(failed)?;
        if !root.metadata().is_ok_and(|found| found.is_dir()) {
            return Err(format!("the workspace {} is not a directory", given.display()));
        }
        let mut protected: Vec<PathBuf> = protected.iter().map(|path| real_path(path)).collect();
        if protected.iter().any(|protected| real.starts_with(protected)) {
            return Err(format!("the workspace {} belongs to opta itself", given.display()));
        }
        protected.retain(|protected| protected.starts_with(&real));
        Ok(Workspace { root, given, path: real, protected })
    }

    /// Returns where it was when it was opened, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fails if an open file or directory, or `name` in it, is protected or in a protected
    /// directory.
    fn check(&self, file: BorrowedFd<'_>, name: Option<&OsStr>) -> io::Result<()> {
        if self.protected.is_empty() {
            return Ok(());
        }
        let mut path = openat::path_of(file)?;
        path.extend(name);
        if self.protected.iter().any(|protected| path.starts_with(protected)) {
            return Err(io::Error::new(ErrorKind::PermissionDenied, "it belongs to opta itself"));
        }
        Ok(())
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

    /// Returns the names in an open directory that are protected.
    pub fn protected_in(&self, directory: BorrowedFd<'_>) -> io::Result<Vec<&OsStr>> {
        if self.protected.is_empty() {
            return Ok(Vec::new());
        }
        let path = openat::path_of(directory)?;
        let here = self.protected.iter().filter(|protected| protected.parent() == Some(&path));
        Ok(here.filter_map(|protected| protected.file_name()).collect())
    }

    /// Opens a regular file for reading.
    pub fn file(&self, given: &str) -> Result<File, String> {
        let failed = |error: io::Error| self.failure(given, &error);
        let path = self.relative(given)?;
        let file = self.open_beneath(&path, openat::open_file).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if found.is_dir() {
            return Err(format!("{given} is a directory"));
        }
        if !found.is_file() {
            return Err(format!("{given} is not a regular file"));
        }
        Ok(file)
    }

    /// Opens a directory.
    pub fn directory(&self, given: &str) -> Result<File, String> {
        let path = self.relative(given)?;
        let directory = self.open_beneath(&path, openat::open_directory);
        directory.map_err(|error| self.failure(given, &error))
    }

    /// Replaces a file's content atomically, or creates the file: readers see the old content or
    /// the new one. Creates missing directories. A link is followed and kept. Fails if the file is
    /// not in the `expected` version, if one is given. Returns whether there was a file before.
    pub fn replace(
        &self,
        given: &str,
        bytes: &[u8],
        expected: Option<FileVersion>,
    ) -> Result<bool, String> {
        let failed = |error: io::Error| self.failure(given, &error);
        let (directory, name) = self.target(given)?;
        let directory = directory.as_fd();
        self.check(directory, Some(&name)).map_err(failed)?;
        let old = match openat::open_entry(directory, &name) {
            Ok(file) => Some(file.metadata().map_err(failed)?),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        if old.as_ref().is_some_and(|old| !old.is_file()) {
            return Err(format!("{given} is not a regular file"));
        }
        let mode = old.as_ref().map_or(FILE_MODE, |old| old.mode() & 0o777);
        if mode & 0o222 == 0 {
            return Err(format!("{given} is read-only"));
        }
        // In the same directory, so that it can be renamed; hidden, and not a name that a user
        // chooses.
        let temporary = OsString::from(format!(".opta-{:016x}", fastrand::u64(..)));
        let is_current = |expected| {
            let now = openat::open_entry(directory, &name).and_then(|file| FileVersion::of(&file));
            now.is_ok_and(|now| now == expected)
        };
        let written = write(directory, &temporary, bytes, mode).and_then(|()| {
            if !expected.is_none_or(is_current) {
                return Err(io::Error::other("it was changed by somebody else at the same time"));
            }
            openat::rename(directory, &temporary, &name)
        });
        if let Err(error) = written {
            // The first failure is the one to report.
            drop(openat::remove(directory, &temporary));
            return Err(failed(error));
        }
        Ok(old.is_some())
    }

    /// Returns the directory of a file to be written, which is created if missing, and the file's
    /// name in it.
    fn target(&self, given: &str) -> Result<(File, OsString), String> {
        let failed = |error: io::Error| self.failure(given, &error);
        let mut path = self.relative(given)?;
        for _ in 0..LINKS_MAX {
            let names_file = path.file_name().filter(|_| !given.ends_with('/'));
            let name = names_file.ok_or_else(|| format!("{given} names no file"))?.to_owned();
            let parent = path.parent().unwrap_or(Path::new("")).to_owned();
            let directory = self.make_directory(&parent).map_err(failed)?;
            match openat::link_target(directory.as_fd(), &name) {
                Ok(Some(target)) if target.is_absolute() => {
                    path = self.relative(&target.to_string_lossy())?;
                }
                Ok(Some(target)) => path = parent.join(target),
                Ok(None) => return Ok((directory, name)),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok((directory, name)),
                Err(error) => return Err(failed(error)),
            }
        }
        Err(format!("{given} is a link to a link to a link"))
    }

    /// Opens a directory, and creates the missing part of its path.
    fn make_directory(&self, path: &Path) -> io::Result<File> {
        let opened = self.open_beneath(path, openat::open_directory);
        let is_missing = opened.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
        let Some(parent) = path.parent().filter(|_| is_missing) else { return opened };
        let parent = self.make_directory(parent)?;
        // What ends in `..` exists now.
        let Some(name) = path.file_name() else {
            return self.open_beneath(path, openat::open_directory);
        };
        openat::create_directory(parent.as_fd(), name)?;
        let new = openat::enter(parent.as_fd(), name)?;
        new.set_permissions(Permissions::from_mode(DIRECTORY_MODE))?;
        Ok(new)
    }

    /// Opens a path beneath the workspace. The kernel refuses every absolute link; a link to a path
    /// in the workspace is resolved here, and its target opened with the same checks.
    fn open_beneath(
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
        self.check(opened.as_fd(), None)?;
        Ok(opened)
    }

    fn outside(&self, given: &str) -> String {
        let workspace = self.given.display();
        format!("{given} is outside the workspace {workspace}; paths are relative to it")
    }

    fn failure(&self, given: &str, error: &io::Error) -> String {
        match error.kind() {
            ErrorKind::CrossesDevices => self.outside(given),
            ErrorKind::NotFound => format!("there is no {given}"),
            _ => format!("{given}: {}", reason(error)),
        }
    }
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

fn write(directory: BorrowedFd<'_>, name: &OsStr, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = openat::create_file(directory, name)?;
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::scratch::Scratch;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;

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
            assert!(workspace.replace(path, b"mine", None).is_err(), "{path}");
        }
        assert_eq!(scratch.read("secret"), "secret");
        for path in ["", "no\0name", ".", "..", "a/"] {
            assert!(workspace.replace(path, b"x", None).is_err(), "{path}");
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
            assert!(workspace.replace(path, b"mine", None).is_err(), "{path}");
        }
        for path in [
            ".config/opta/config.json",
            ".config/opta/config.json/a",
            ".config/opta/new/a",
            "new",
            "link/new",
            "link/a/b",
        ] {
            let problem = workspace.replace(path, b"mine", None).unwrap_err();
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
            assert!(open().replace(path, b"mine", None).is_err(), "{path}");
        }
        scratch.put("dot/opta.json", "{}");
        for path in ["opta.json", "link.json"] {
            assert!(open().replace(path, b"mine", None).is_err(), "{path}");
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
        let put = |path: &str| workspace.replace(path, b"new", None);
        assert_eq!(put("link"), Ok(true));
        assert_eq!((scratch.read("run.sh").as_str(), mode("run.sh")), ("new", 0o755));
        assert!(scratch.path().join("link").is_symlink());
        assert_eq!(put("a/b/c.txt"), Ok(false));
        assert_eq!((mode("a/b/c.txt"), mode("a/b")), (0o644, 0o755));
        assert_eq!(put("dangling"), Ok(false));
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
        let version = FileVersion::of(&workspace.file("a").unwrap()).unwrap();
        scratch.put("a", "another");
        let problem = workspace.replace("a", b"mine", Some(version));
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
                written += usize::from(workspace.replace("sub/file", b"mine", None).is_ok());
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
