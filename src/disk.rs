//! Private directories and files: only the user can read them, from the first byte on; they are not
//! opened through links; they are replaced atomically. The callers decide on their content.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use crate::error::{At, Error, Kind};
use crate::{limits, sys};

/// The mode of private files.
const FILE_MODE: u32 = 0o600;
/// The mode of files that other programs read.
const PUBLIC_FILE_MODE: u32 = 0o644;
/// The mode of private directories.
const DIRECTORY_MODE: u32 = 0o700;
/// Write permission for group and others.
const OTHERS_WRITE: u32 = 0o022;

/// The version of a file's content, as far as its metadata tells: device, inode, length, and time
/// of modification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileVersion {
    device: u64,
    inode: u64,
    /// In bytes.
    pub length: u64,
    /// In seconds and nanoseconds.
    modified_at: (i64, i64),
}

impl FileVersion {
    /// Returns the version of the file that `found` is about.
    pub fn of(found: &Metadata) -> FileVersion {
        let (device, inode, length) = (found.dev(), found.ino(), found.len());
        FileVersion { device, inode, length, modified_at: (found.mtime(), found.mtime_nsec()) }
    }
}

/// Creates a directory at `path`, or at the target of a link there, unless there is one already to
/// which only this user can write. A new one and its missing parents get mode 0700.
pub fn ensure_owned_directory(path: &Path) -> Result<(), Error> {
    create_directory(path)?;
    check_directory(path, &path.metadata().at("inspect", path)?)
}

/// Creates a directory with mode 0700 at `path`, for secrets, or gives that mode to the one there.
///
/// Refuses a directory of another user, or one that others can write to: they may have put files
/// into it.
pub fn ensure_private_directory(path: &Path) -> Result<(), Error> {
    create_directory(path)?;
    let found = path.symlink_metadata().at("inspect", path)?;
    if found.is_symlink() {
        return Err(untrusted(path, "it is a symbolic link", "put a real directory there"));
    }
    check_directory(path, &found)?;
    if found.mode() & 0o7777 != DIRECTORY_MODE {
        let private = Permissions::from_mode(DIRECTORY_MODE);
        fs::set_permissions(path, private).at("make private", path)?;
    }
    Ok(())
}

fn create_directory(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path) {
        // It is not a directory: the caller inspects and reports it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.at("create", path),
    }
}

fn check_directory(path: &Path, found: &Metadata) -> Result<(), Error> {
    if !found.is_dir() {
        return Err(untrusted(path, "it is not a directory", "move it away"));
    }
    check_owner(path, found)?;
    check_writers(path, found)
}

/// Opens a private file for reading and writing, and creates it if it does not exist.
pub fn open_or_create(path: &Path) -> Result<File, Error> {
    open_for_writing(path, OpenOptions::new().read(true).write(true).create(true))
}

/// Opens a private file for reading and appending; `options` decide whether it is created.
pub fn open_for_append(path: &Path, options: &mut OpenOptions) -> Result<File, Error> {
    open_for_writing(path, options.read(true).append(true))
}

/// Opens a private file for reading; returns `None` if it does not exist.
pub fn open_if_exists(path: &Path) -> Result<Option<File>, Error> {
    match open_unchecked(path, OpenOptions::new().read(true)) {
        // No sentence is made for a file that often does not exist.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => checked(path, opened).map(Some),
    }
}

/// Opens a file of the user's own for reading, also through links; returns `None` if it does not
/// exist. Refuses what is not a regular file: it may be endless, or block the reader. Refuses one
/// that another user, except root, owns or can write to.
pub fn open_user_file(path: &Path) -> Result<Option<File>, Error> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let Some(file) = if_exists(opened).at("read", path)? else {
        return Ok(None);
    };
    let found = file.metadata().at("inspect", path)?;
    if !found.is_file() {
        return Err(untrusted(path, "it is not a regular file", "move it away"));
    }
    if found.uid() != 0 {
        check_owner(path, &found)?;
    }
    check_writers(path, &found)?;
    Ok(Some(file))
}

/// Reads a whole file; returns `None` if it has more than `bytes_max` bytes.
pub fn read_up_to(file: &mut File, path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, Error> {
    let mut bytes = Vec::with_capacity(1024);
    file.take(bytes_max + 1).read_to_end(&mut bytes).at("read", path)?;
    Ok(u64::try_from(bytes.len()).is_ok_and(|length| length <= bytes_max).then_some(bytes))
}

/// Replaces the file at `path` atomically: a reader sees the old file or the new one.
///
/// For one writer at a time: the new file is prepared under a fixed name in the same directory, so
/// that a crash leaves at most one. It is not synced: it describes a running process.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replace_with(path, &unfinished(path), |mut file, prepared| {
        file.write_all(bytes).at("write", prepared)
    })
}

/// Replaces, in the same way, a file without secrets that other programs read and that must survive
/// a power failure: mode 0644, synced. Missing directories get the modes of the user's umask.
pub fn replace_public(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).at("create", directory)?;
    }
    replace_with(path, &unfinished(path), |mut file, prepared| {
        file.write_all(bytes).at("write", prepared)?;
        let public = Permissions::from_mode(PUBLIC_FILE_MODE);
        file.set_permissions(public).at("publish", prepared)?;
        file.sync_all().at("sync", prepared)
    })
}

/// Replaces a file of the user's own atomically: it keeps its mode, and survives a power failure. A
/// new one is private. The files next to it are the user's, too: the new file is prepared under a
/// random name. One that a killed process left is removed by a later replacement.
pub fn replace_user_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    remove_abandoned(path);
    let old = if_exists(path.metadata()).at("inspect", path)?;
    let mode = old.map_or(FILE_MODE, |found| found.mode() & 0o777);
    let prepared = path.with_extension(format!("{:016x}.new", fastrand::u64(..)));
    replace_with(path, &prepared, |mut file, prepared| {
        file.write_all(bytes).at("write", prepared)?;
        file.set_permissions(Permissions::from_mode(mode)).at("change the mode of", prepared)?;
        file.sync_all().at("sync", prepared)
    })
}

/// Removes the new files that killed processes prepared for `path` under random names.
fn remove_abandoned(path: &Path) {
    let stem = path.file_stem().unwrap_or_default().as_bytes();
    for entry in path.parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten() {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        let rest = name.as_bytes().strip_prefix(stem).and_then(|rest| rest.strip_prefix(b"."));
        let number = rest.and_then(|rest| rest.strip_suffix(b".new"));
        let is_prepared = number.is_some_and(|number| {
            number.len() == 16 && number.iter().all(|byte| b"0123456789abcdef".contains(byte))
        });
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if is_prepared && age().is_some_and(|age| age > limits::ABANDONED_AFTER) {
            // It is in no one's way.
            drop(fs::remove_file(entry.path()));
        }
    }
}

fn replace_with(
    path: &Path,
    prepared: &Path,
    fill: impl Fn(&File, &Path) -> Result<(), Error>,
) -> Result<(), Error> {
    if prepared == unfinished(path) {
        remove(prepared)?;
    }
    let file = open(prepared, OpenOptions::new().write(true).create_new(true))?;
    let written = fill(&file, prepared).and_then(|()| fs::rename(prepared, path).at("write", path));
    if written.is_err() {
        // The first failure is the one to report.
        drop(remove(prepared));
    }
    written
}

/// Returns the path at which the next file is prepared: a process that is killed while it replaces
/// `path` leaves a file there, and the next replacement removes it.
pub fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Removes a file; returns false if it did not exist.
pub fn remove(path: &Path) -> Result<bool, Error> {
    Ok(if_exists(fs::remove_file(path)).at("remove", path)?.is_some())
}

/// Turns the failure that a file does not exist into `None`.
pub fn if_exists<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens for writing, and removes the permissions of others: the file was created under an unusual
/// umask, or its mode was changed.
fn open_for_writing(path: &Path, options: &OpenOptions) -> Result<File, Error> {
    let file = open(path, options)?;
    let found = file.metadata().at("inspect", path)?;
    if found.mode() & 0o7777 != FILE_MODE {
        file.set_permissions(Permissions::from_mode(FILE_MODE)).at("make private", path)?;
    }
    Ok(file)
}

/// Opens without following a link and without waiting for the other end of a pipe, then checks the
/// open file, since its name may have meant another one before.
fn open(path: &Path, options: &OpenOptions) -> Result<File, Error> {
    checked(path, open_unchecked(path, options))
}

fn open_unchecked(path: &Path, options: &OpenOptions) -> io::Result<File> {
    let mut options = options.clone();
    options.mode(FILE_MODE).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

fn checked(path: &Path, opened: io::Result<File>) -> Result<File, Error> {
    const NOT_REGULAR: &str = "it is not a regular file";
    let file = opened.or_else(|cause| match cause.raw_os_error() {
        Some(libc::ELOOP) => Err(untrusted(path, "it is a symbolic link", "put a real file there")),
        Some(libc::EISDIR) => Err(untrusted(path, NOT_REGULAR, "move it away")),
        _ => Err(cause).at("open", path),
    })?;
    let found = file.metadata().at("inspect", path)?;
    if !found.is_file() {
        return Err(untrusted(path, NOT_REGULAR, "move it away"));
    }
    if found.nlink() > 1 {
        return Err(untrusted(path, "it has a second hard link", "move it away"));
    }
    check_owner(path, &found)?;
    check_writers(path, &found)?;
    Ok(file)
}

/// Checks that a file or directory belongs to this user.
fn check_owner(path: &Path, found: &Metadata) -> Result<(), Error> {
    let me = sys::effective_user();
    if found.uid() != me {
        let next_step = match me {
            // Root would take it from its owner.
            0 => format!("run opta as that user (uid {}), without sudo", found.uid()),
            _ => format!("give it to yourself: sudo chown {me} '{}'", path.display()),
        };
        return Err(untrusted(path, "it belongs to another user", next_step));
    }
    Ok(())
}

/// Checks that only its owner can write to a file or directory.
fn check_writers(path: &Path, found: &Metadata) -> Result<(), Error> {
    if found.mode() & OTHERS_WRITE != 0 {
        let mode = found.mode() & 0o7777;
        let next_step = format!("look at its contents, then: chmod go-w '{}'", path.display());
        let reason = format!("other users can write to it (mode {mode:04o})");
        return Err(untrusted(path, &reason, next_step));
    }
    Ok(())
}

/// Refuses a path that leads through a symbolic link which another user made in a directory where
/// all users can make some, such as /tmp: that user decides where it leads. Linux does the same if
/// `fs.protected_symlinks` is set, proc_sys_fs(5).
pub fn refuse_links_of_others(path: &Path) -> Result<(), Error> {
    const LINKS_MAX: usize = 40;
    const STICKY: u32 = 0o1000;
    const ALL_WRITE: u32 = 0o002;
    let mut links = 0;
    let mut reached = PathBuf::from("/");
    let mut rest: Vec<OsString> = parts(path);
    while let Some(part) = rest.pop() {
        if part == ".." {
            reached.pop();
            continue;
        }
        let next = reached.join(&part);
        let Some(found) = if_exists(next.symlink_metadata()).at("inspect", &next)? else {
            return Ok(());
        };
        if !found.is_symlink() {
            reached = next;
            continue;
        }
        let parent = reached.metadata().at("inspect", &reached)?;
        let is_shared = parent.mode() & (STICKY | ALL_WRITE) == STICKY | ALL_WRITE;
        if is_shared && found.uid() != sys::effective_user() && found.uid() != parent.uid() {
            let reason = "it leads through a symbolic link of another user";
            return Err(untrusted(&next, reason, "use the path of a directory of yours"));
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(untrusted(path, "it has too many symbolic links", "use a shorter path"));
        }
        let target = fs::read_link(&next).at("read", &next)?;
        if target.is_absolute() {
            reached = PathBuf::from("/");
        }
        rest.extend(parts(&target));
    }
    Ok(())
}

/// Returns the names in a path, the last one first.
fn parts(path: &Path) -> Vec<OsString> {
    let named = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    });
    named.rev().collect()
}

/// Returns the error for a file or directory that must not be trusted with secrets.
pub fn untrusted(path: &Path, reason: &str, next_step: impl Into<String>) -> Error {
    let action = format!("use {}", path.display());
    Error::cannot(Kind::UntrustedPath, action, reason).with_next_step(next_step)
}
