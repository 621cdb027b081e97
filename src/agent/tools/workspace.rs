//! The directory that a session works in, and the only way from a model's words to a file: nothing
//! outside is opened, whatever the words, the links and other processes do.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use crate::error::reason;
use crate::sys::openat;

/// Links that lead from one to the next at the end of a path.
const LINKS_MAX: usize = 8;
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;

/// An open directory. It stays this one if it is moved.
pub struct Workspace {
    root: File,
    /// As the session has it.
    given: PathBuf,
    /// Without links.
    path: PathBuf,
    /// What is not to be touched though it lies inside, without links.
    closed: Vec<PathBuf>,
}

/// What tells one content of a file from another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// Of a file as it is now.
    pub fn of(file: &File) -> io::Result<Stamp> {
        let found = file.metadata()?;
        Ok(Stamp {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.len(),
            changed: (found.mtime(), found.mtime_nsec()),
        })
    }
}

/// What a file is to be replaced with, and what it must be until then.
pub struct Change<'a> {
    pub bytes: &'a [u8],
    /// `None`: whatever is there, or nothing.
    pub over: Option<Stamp>,
}

impl Workspace {
    /// Opens the directory at `path`, but for what of `closed` lies in it: directories, and files
    /// that links among them lead to. The error is for the model to read, like all of this room.
    pub fn open(path: &str, closed: &[PathBuf]) -> Result<Workspace, String> {
        let given = PathBuf::from(path);
        let failed =
            |error: io::Error| format!("the workspace {path} cannot be opened: {}", reason(&error));
        if !given.is_absolute() {
            return Err(format!("the workspace {path} is not an absolute path"));
        }
        let path = given.canonicalize().map_err(failed)?;
        let root = File::open(&path).map_err(failed)?;
        let is_directory = root.metadata().is_ok_and(|found| found.is_dir());
        if !is_directory {
            return Err(format!("the workspace {} is not a directory", given.display()));
        }
        let mut closed: Vec<PathBuf> = closed.iter().map(|closed| real(closed)).collect();
        if closed.iter().any(|closed| path.starts_with(closed)) {
            return Err(format!("the workspace {} belongs to opta itself", given.display()));
        }
        closed.retain(|closed| closed.starts_with(&path));
        Ok(Workspace { root, given, path, closed })
    }

    /// Fails if an open file or directory, or `name` in it, is closed or lies in what is.
    fn check(&self, file: BorrowedFd<'_>, name: Option<&OsStr>) -> io::Result<()> {
        if self.closed.is_empty() {
            return Ok(());
        }
        let mut path = openat::path_of(file)?;
        path.extend(name);
        if self.closed.iter().any(|closed| path.starts_with(closed)) {
            return Err(io::Error::new(ErrorKind::PermissionDenied, "it belongs to opta itself"));
        }
        Ok(())
    }

    /// The directory itself.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// `given` as a path from the workspace. Where it leads is decided when it is opened.
    pub fn relative(&self, given: &str) -> Result<PathBuf, String> {
        let path = Path::new(given);
        if given.is_empty() {
            return Err("the path is empty".to_owned());
        }
        if !path.is_absolute() {
            return Ok(path.to_owned());
        }
        let inside = path.strip_prefix(&self.given).or_else(|_| path.strip_prefix(&self.path));
        inside.map(Path::to_owned).ok().ok_or_else(|| self.outside(given))
    }

    /// The names in an open directory that are closed.
    pub fn closed_in(&self, directory: BorrowedFd<'_>) -> io::Result<Vec<&OsStr>> {
        if self.closed.is_empty() {
            return Ok(Vec::new());
        }
        let path = openat::path_of(directory)?;
        let here = self.closed.iter().filter(|closed| closed.parent() == Some(&path));
        Ok(here.filter_map(|closed| closed.file_name()).collect())
    }

    /// Opens a file for reading, if it is one.
    pub fn file(&self, given: &str) -> Result<File, String> {
        let path = self.relative(given)?;
        let file = self.reach(&path, openat::open_file);
        let file = file.map_err(|error| self.refused(given, &error))?;
        let found = file.metadata().map_err(|error| self.refused(given, &error))?;
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
        let directory = self.reach(&path, openat::open_directory);
        directory.map_err(|error| self.refused(given, &error))
    }

    /// Puts a file's new content in its place in one step: whoever reads it sees the old one or the
    /// new one. Missing directories are made. A link is followed, and stays. `Ok(true)`: there was
    /// a file before.
    pub fn replace(&self, given: &str, change: &Change<'_>) -> Result<bool, String> {
        let failed = |error: &io::Error| self.refused(given, error);
        let (directory, name) = self.target(given)?;
        let directory = directory.as_fd();
        self.check(directory, Some(&name)).map_err(|error| failed(&error))?;
        let old = match openat::open_entry(directory, &name) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed(&error)),
        };
        let mut mode = FILE_MODE;
        if let Some(old) = &old {
            let found = old.metadata().map_err(|error| failed(&error))?;
            if !found.is_file() {
                return Err(format!("{given} is not a regular file"));
            }
            if found.mode() & 0o222 == 0 {
                return Err(format!("{given} is read-only"));
            }
            mode = found.mode() & 0o777;
        }
        // In the same directory, so that it can be renamed; hidden, and no name of a user's.
        let prepared = OsString::from(format!(".opta-{:016x}", fastrand::u64(..)));
        let written = write(directory, &prepared, change.bytes, mode).and_then(|()| {
            let now = openat::open_entry(directory, &name).ok().map(|file| Stamp::of(&file));
            let now = now.transpose()?;
            if change.over.is_some() && now != change.over {
                return Err(io::Error::other("it was changed by somebody else at the same time"));
            }
            openat::rename(directory, &prepared, &name)
        });
        if let Err(error) = written {
            // The first failure is the one to report.
            drop(openat::remove(directory, &prepared));
            return Err(failed(&error));
        }
        Ok(old.is_some())
    }

    /// Where a file lies that is to be written: its directory, made if need be, and its name there.
    fn target(&self, given: &str) -> Result<(File, OsString), String> {
        let mut path = self.relative(given)?;
        for _ in 0..LINKS_MAX {
            let names_file = path.file_name().filter(|_| !given.ends_with('/'));
            let name = names_file.ok_or_else(|| format!("{given} names no file"))?.to_owned();
            let parent = path.parent().unwrap_or(Path::new("")).to_owned();
            let directory = self.make(&parent).map_err(|error| self.refused(given, &error))?;
            match openat::link_target(directory.as_fd(), &name) {
                Ok(Some(target)) if target.is_absolute() => {
                    path = self.relative(&target.to_string_lossy())?;
                }
                Ok(Some(target)) => path = parent.join(target),
                Ok(None) => return Ok((directory, name)),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok((directory, name)),
                Err(error) => return Err(self.refused(given, &error)),
            }
        }
        Err(format!("{given} is a link to a link to a link"))
    }

    /// Opens a directory and makes what is missing of it.
    fn make(&self, path: &Path) -> io::Result<File> {
        match self.reach(path, openat::open_directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => return result,
        }
        let mut made = PathBuf::new();
        let mut directory = self.root.try_clone()?;
        for component in path.components() {
            made.push(component);
            directory = match (self.reach(&made, openat::open_directory), component) {
                (Err(error), Component::Normal(name)) if error.kind() == ErrorKind::NotFound => {
                    openat::create_directory(directory.as_fd(), name)?;
                    let new = openat::enter(directory.as_fd(), name)?;
                    new.set_permissions(Permissions::from_mode(DIRECTORY_MODE))?;
                    new
                }
                (result, _) => result?,
            };
        }
        Ok(directory)
    }

    /// Opens something beneath. The kernel calls every absolute link one that leads out; those that
    /// lead back in are followed by hand, and what they lead to is opened as carefully.
    fn reach(
        &self,
        path: &Path,
        open: fn(BorrowedFd<'_>, &Path) -> io::Result<File>,
    ) -> io::Result<File> {
        let root = self.root.as_fd();
        let opened = match open(root, path) {
            Err(error) if error.kind() == ErrorKind::CrossesDevices => {
                let real = self.path.join(path).canonicalize();
                let inside = real
                    .ok()
                    .and_then(|real| real.strip_prefix(&self.path).map(Path::to_owned).ok());
                inside.map_or(Err(error), |inside| open(root, &inside))
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

    fn refused(&self, given: &str, error: &io::Error) -> String {
        match error.kind() {
            ErrorKind::CrossesDevices => self.outside(given),
            ErrorKind::NotFound => format!("there is no {given}"),
            _ => format!("{given}: {}", reason(error)),
        }
    }
}

/// Where `path` leads, whether anything is there or not.
fn real(path: &Path) -> PathBuf {
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
    use super::super::scratch::Scratch;
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn text(mut file: File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn absolute_paths_and_links_count_by_where_they_lead() {
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
            let change = Change { bytes: b"x", over: None };
            assert!(workspace.replace(path, &change).is_err(), "{path}");
        }
        assert_eq!(scratch.read("secret"), "secret");
        for path in ["", "no\0name", ".", "..", "a/"] {
            assert!(
                workspace.replace(path, &Change { bytes: b"x", over: None }).is_err(),
                "{path}"
            );
        }
    }

    #[test]
    fn what_is_closed_is_neither_read_nor_written_by_any_way() {
        let scratch = Scratch::new();
        let own = scratch.path().join(".config/opta");
        let closed = [own.clone(), own.join("config.json")];
        scratch.put(".config/opta/daemon/state.json", "token");
        scratch.put(".config/other", "plain");
        symlink(".config/opta/daemon", scratch.path().join("link")).unwrap();
        symlink(own.join("daemon/state.json"), scratch.path().join("file")).unwrap();
        symlink(own.join("config.json"), scratch.path().join("new")).unwrap();
        let workspace = Workspace::open(scratch.path().to_str().unwrap(), &closed).unwrap();
        let change = Change { bytes: b"mine", over: None };
        for path in [
            ".config/opta/daemon/state.json",
            "link/state.json",
            "file",
            "link/../daemon/state.json",
        ] {
            let problem = workspace.file(path).unwrap_err();
            assert!(problem.ends_with("it belongs to opta itself"), "{path}: {problem}");
            assert!(workspace.replace(path, &change).is_err(), "{path}");
        }
        for path in [
            ".config/opta/config.json",
            ".config/opta/config.json/a",
            ".config/opta/new/a",
            "new",
            "link/new",
            "link/a/b",
        ] {
            let problem = workspace.replace(path, &change).unwrap_err();
            assert!(problem.ends_with("it belongs to opta itself"), "{path}: {problem}");
        }
        assert!(workspace.directory("link").is_err());
        assert_eq!(scratch.read(".config/opta/daemon/state.json"), "token");
        // Nothing was made on the way.
        assert_eq!(fs::read_dir(&own).unwrap().count(), 1);
        assert_eq!(fs::read_dir(own.join("daemon")).unwrap().count(), 1);
        assert_eq!(text(workspace.file(".config/other").unwrap()), "plain");
        let inside = own.join("daemon");
        let problem = Workspace::open(inside.to_str().unwrap(), &closed).err().unwrap();
        assert!(problem.ends_with("belongs to opta itself"), "{problem}");
    }

    #[test]
    fn settings_that_lie_elsewhere_are_closed_there_before_they_are_there() {
        let scratch = Scratch::new();
        let own = scratch.path().join(".config/opta");
        fs::create_dir_all(&own).unwrap();
        scratch.put("dot/other", "plain");
        symlink("../../dot/link.json", own.join("config.json")).unwrap();
        symlink("opta.json", scratch.path().join("dot/link.json")).unwrap();
        let open = || {
            let closed = [own.clone(), own.join("config.json")];
            Workspace::open(scratch.path().join("dot").to_str().unwrap(), &closed).unwrap()
        };
        let change = Change { bytes: b"mine", over: None };
        for path in ["opta.json", "link.json"] {
            assert!(open().replace(path, &change).is_err(), "{path}");
        }
        scratch.put("dot/opta.json", "{}");
        for path in ["opta.json", "link.json"] {
            assert!(open().replace(path, &change).is_err(), "{path}");
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
        let put = |path: &str| workspace.replace(path, &Change { bytes: b"new", over: None });
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
    fn what_somebody_else_changes_meanwhile_is_not_overwritten() {
        let scratch = Scratch::new();
        scratch.put("a", "one");
        let workspace = Workspace::open(scratch.path().to_str().unwrap(), &[]).unwrap();
        let stamp = Stamp::of(&workspace.file("a").unwrap()).unwrap();
        scratch.put("a", "another");
        let problem = workspace.replace("a", &Change { bytes: b"mine", over: Some(stamp) });
        assert!(problem.unwrap_err().contains("somebody else"));
        assert_eq!(scratch.read("a"), "another");
    }

    #[test]
    fn writing_stays_inside_while_a_directory_is_swapped_for_a_link() {
        let scratch = Scratch::new();
        scratch.put("inside/sub/file", "plain");
        scratch.put("outside/file", "precious");
        let inside = scratch.path().join("inside");
        let workspace = Workspace::open(inside.to_str().unwrap(), &[]).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (place, aside) = (inside.join("sub"), inside.join("aside"));
                while !done.load(Ordering::Relaxed) {
                    // A writer makes what it finds missing, so any of these may fail.
                    drop(fs::rename(&place, &aside));
                    drop(symlink("../outside", &place));
                    drop(fs::remove_file(&place));
                    drop(fs::remove_dir_all(&place));
                    drop(fs::rename(&aside, &place));
                }
            });
            for _ in 0..2_000 {
                drop(workspace.replace("sub/file", &Change { bytes: b"mine", over: None }));
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(scratch.read("outside/file"), "precious");
        assert_eq!(fs::read_dir(scratch.path().join("outside")).unwrap().count(), 1);
    }
}
