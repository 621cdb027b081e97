//! Private directories and files: for the user alone from the first byte, never through a planted
//! link, never half written.
//!
//! It knows nothing of what the files mean.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{At, Error, Kind};
use crate::sys;

/// Mode of every file that is made here.
const FILE_MODE: u32 = 0o600;
/// Mode of a file that other programs of the system read.
const PUBLIC_FILE_MODE: u32 = 0o644;
/// Mode of every directory that is made here.
const DIRECTORY_MODE: u32 = 0o700;
/// Write permission for group and others.
const OTHERS_WRITE: u32 = 0o022;

/// Makes sure that there is a directory at `path`, or behind a link there, that only this user can
/// write to. A new one, and its missing parents, get mode 0700; an old one keeps its mode.
pub fn ensure_owned_directory(path: &Path) -> Result<(), Error> {
    create_directory(path)?;
    let found = path.metadata().at("inspect", path)?;
    if !found.is_dir() {
        return Err(untrusted(path, "it is not a directory", "move it away"));
    }
    check_owner(path, &found)
}

/// Makes sure that `path` is itself a directory of this user with mode 0700, for secrets.
///
/// Refuses one that belongs to somebody else or that others can write to: they may have put things
/// into it already.
pub fn ensure_private_directory(path: &Path) -> Result<(), Error> {
    create_directory(path)?;
    let found = path.symlink_metadata().at("inspect", path)?;
    if found.is_symlink() {
        return Err(untrusted(path, "it is a symbolic link", "put a real directory there"));
    }
    if !found.is_dir() {
        return Err(untrusted(path, "it is not a directory", "move it away"));
    }
    check_owner(path, &found)?;
    if found.mode() & 0o7777 != DIRECTORY_MODE {
        let private = Permissions::from_mode(DIRECTORY_MODE);
        std::fs::set_permissions(path, private).at("make private", path)?;
    }
    Ok(())
}

fn create_directory(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path) {
        // Something that is no directory is there: the caller looks at it and says what it is.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.at("create", path),
    }
}

/// Opens a private file for reading and writing, and makes it if it is not there.
pub fn open_or_create(path: &Path) -> Result<File, Error> {
    own(path, OpenOptions::new().read(true).write(true).create(true))
}

/// Opens a private file for reading and for writing at its end; `options` say whether it is made.
pub fn open_for_append(path: &Path, options: &mut OpenOptions) -> Result<File, Error> {
    own(path, options.read(true).append(true))
}

/// Opens a private file for reading; `None` if it is not there.
pub fn open_if_exists(path: &Path) -> Result<Option<File>, Error> {
    match open(path, OpenOptions::new().read(true)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a file of the user's own making for reading, wherever a link leads; `None` if it is not
/// there. What is no regular file is refused: it might have no end, or keep the reader waiting.
pub fn open_user_file(path: &Path) -> Result<Option<File>, Error> {
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(cause).at("read", path),
    };
    let plain = file.metadata().at("inspect", path)?.is_file();
    let refused = || untrusted(path, "it is not a regular file", "move it away");
    if plain { Ok(Some(file)) } else { Err(refused()) }
}

/// The bytes of a file that is open, up to `bytes_max`; `None` if there are more.
pub fn read_up_to(file: &mut File, path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, Error> {
    let mut bytes = Vec::with_capacity(512);
    file.take(bytes_max + 1).read_to_end(&mut bytes).at("read", path)?;
    Ok(u64::try_from(bytes.len()).is_ok_and(|length| length <= bytes_max).then_some(bytes))
}

/// Puts `bytes` in the place of `path` in one step: a reader sees the old file or the new one.
///
/// For one writer at a time: the new file is prepared under a fixed name beside the old one, so
/// that a crash leaves at most one. Not synced: what is written so describes a living process.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replace_with(path, |mut file, prepared| file.write_all(bytes).at("write", prepared))
}

/// The same for a file without secrets that other programs read and that is to outlive a power cut:
/// mode 0644, synced. Missing directories are made as the user's umask has it.
pub fn replace_public(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).at("create", directory)?;
    }
    replace_with(path, |mut file, prepared| {
        file.write_all(bytes).at("write", prepared)?;
        let public = Permissions::from_mode(PUBLIC_FILE_MODE);
        file.set_permissions(public).at("publish", prepared)?;
        file.sync_all().at("sync", prepared)
    })
}

fn replace_with(
    path: &Path,
    fill: impl Fn(&File, &Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let prepared = unfinished(path);
    remove(&prepared)?;
    let written = open(&prepared, OpenOptions::new().write(true).create_new(true))
        .and_then(|file| fill(&file, &prepared))
        .and_then(|()| std::fs::rename(&prepared, path).at("write", path));
    if written.is_err() {
        // The first failure is the one to report.
        drop(remove(&prepared));
    }
    written
}

/// The file that a process leaves if it is killed while it replaces `path`. The next one that
/// replaces it removes it.
pub fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Removes a file; `Ok(false)` if it was not there.
pub fn remove(path: &Path) -> Result<bool, Error> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(cause).at("remove", path),
    }
}

/// Opens for writing, and takes away what others may do: the file was made under an odd umask, or
/// opened up since.
fn own(path: &Path, options: &OpenOptions) -> Result<File, Error> {
    let file = open(path, options)?;
    let found = file.metadata().at("inspect", path)?;
    if found.mode() & 0o7777 != FILE_MODE {
        file.set_permissions(Permissions::from_mode(FILE_MODE)).at("make private", path)?;
    }
    Ok(file)
}

/// Opens without following a link and without waiting for the other end of a pipe, then checks what
/// was opened, not what the name meant a moment before.
fn open(path: &Path, options: &OpenOptions) -> Result<File, Error> {
    let mut options = options.clone();
    options.mode(FILE_MODE).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(untrusted(path, "it is a symbolic link", "put a real file there"));
        }
        Err(error) if error.raw_os_error() == Some(libc::EISDIR) => {
            return Err(untrusted(path, "it is not a regular file", "move it away"));
        }
        Err(cause) => return Err(cause).at("open", path),
    };
    let found = file.metadata().at("inspect", path)?;
    if !found.is_file() {
        return Err(untrusted(path, "it is not a regular file", "move it away"));
    }
    if found.nlink() > 1 {
        return Err(untrusted(path, "it has a second name (a hard link)", "move it away"));
    }
    check_owner(path, &found)?;
    Ok(file)
}

fn check_owner(path: &Path, found: &Metadata) -> Result<(), Error> {
    let me = sys::effective_user();
    if found.uid() != me {
        let next_step = match me {
            // Root would take it away from its owner.
            0 => format!("run opta as that user (uid {}), without sudo", found.uid()),
            _ => format!("give it to yourself: sudo chown {me} '{}'", path.display()),
        };
        return Err(untrusted(path, "it belongs to another user", next_step));
    }
    if found.mode() & OTHERS_WRITE != 0 {
        let next_step = format!("look what is in it, then: chmod go-w '{}'", path.display());
        return Err(untrusted(path, "other users can write to it", next_step));
    }
    Ok(())
}

/// The refusal of a file or directory that must not be trusted with secrets.
pub fn untrusted(path: &Path, reason: &str, next_step: impl Into<String>) -> Error {
    let action = format!("use {}", path.display());
    Error::cannot(Kind::UntrustedPath, action, reason).with_next_step(next_step)
}
