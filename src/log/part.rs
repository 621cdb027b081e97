//! The files of the log, opened for reading: the one that is being written and the older ones.
//!
//! A file is known by its [`Identity`]; its name says no more than where it was found.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::name;
use crate::disk;
use crate::error::{At, Error};
use crate::limits::LOG_FILES_MAX;
use crate::lines::{READ_BYTES, read_at};

/// Which file it is, whatever its name. A number stays taken as long as the file is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub fn of(found: &Metadata) -> Identity {
        Identity { device: found.dev(), inode: found.ino() }
    }

    /// `None` if there is nothing of that name.
    pub fn named(path: &Path) -> Result<Option<Identity>, Error> {
        match path.symlink_metadata() {
            Ok(found) => Ok(Some(Identity::of(&found))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(cause).at("inspect", path),
        }
    }
}

/// One file of the log.
pub(super) struct Part {
    pub file: File,
    pub identity: Identity,
    /// As it was called when it was opened.
    pub path: PathBuf,
}

impl Part {
    fn open(path: PathBuf) -> Result<Option<Part>, Error> {
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let untrusted = |because| Err(disk::untrusted(&path, because, "move it away"));
        let file = match options.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                return untrusted("it is a symbolic link");
            }
            Err(cause) => return Err(cause).at("open", &path),
        };
        let found = file.metadata().at("inspect", &path)?;
        if !found.is_file() {
            return untrusted("it is not a regular file");
        }
        Ok(Some(Part { file, identity: Identity::of(&found), path }))
    }

    pub fn found(&self) -> Result<Metadata, Error> {
        self.file.metadata().at("inspect", &self.path)
    }

    pub fn length(&self) -> Result<u64, Error> {
        Ok(self.found()?.len())
    }

    /// Passes on what is between `from` and `until`, or the end if that comes first; says where it
    /// stopped.
    pub fn read(
        &self,
        from: u64,
        until: u64,
        mut pass_on: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let mut block = vec![0; READ_BYTES];
        let mut at = from;
        while at < until {
            let room = block.len().min(usize::try_from(until - at).unwrap_or(usize::MAX));
            let room = block.get_mut(..room).unwrap_or_default();
            let count = read_at(&self.file, room, at).at("read", &self.path)?;
            if count == 0 {
                break;
            }
            pass_on(room.get(..count).unwrap_or_default())?;
            at += count as u64;
        }
        Ok(at)
    }
}

/// Looks at something that may change meanwhile. A change at just that moment is rare; so many in a
/// row do not happen.
pub(super) const LOOKS_MAX: usize = 100;

/// Names in a row without a file behind which there is none. A rotation that is under way, or was
/// cut short, leaves one.
const GAP_MAX: u32 = 8;

/// Opens the files of the log from the newest to the oldest, up to the first that is `known`.
///
/// Files only move up, so going up misses none and may meet one twice. It could still meet a newer
/// one behind an older one, if that has moved up by two or more meanwhile. Then the first one has
/// moved as well, and that is checked in the end.
pub(super) fn open(directory: &Path, known: impl Fn(Identity) -> bool) -> Result<Vec<Part>, Error> {
    for _ in 0..LOOKS_MAX {
        let mut parts: Vec<Part> = Vec::new();
        let mut missing = 0;
        for age in 0..=LOG_FILES_MAX {
            let Some(part) = Part::open(name(directory, age))? else {
                missing += 1;
                if missing == GAP_MAX {
                    break;
                }
                continue;
            };
            missing = 0;
            if known(part.identity) {
                break;
            }
            if parts.iter().all(|seen| seen.identity != part.identity) {
                parts.push(part);
            }
        }
        let Some(first) = parts.first() else {
            return Ok(parts);
        };
        if Identity::named(&first.path)? == Some(first.identity) {
            return Ok(parts);
        }
    }
    let path = name(directory, 0);
    Err(io::Error::other("it is rotated faster than it can be read")).at("read", &path)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::scratch::Scratch;
    use super::*;
    use crate::error::Kind;

    #[test]
    fn rotations_in_the_middle_of_looking_do_not_mix_up_the_order() {
        let scratch = Scratch::new();
        for (age, content) in ["c", "b", "a"].into_iter().enumerate() {
            let path = name(scratch.path(), u32::try_from(age).unwrap());
            scratch.append(path.file_name().unwrap().to_str().unwrap(), content.as_bytes());
        }
        let rotate = |content: &str| {
            for age in (0..9).rev() {
                drop(std::fs::rename(name(scratch.path(), age), name(scratch.path(), age + 1)));
            }
            scratch.append("daemon.log", content.as_bytes());
        };
        let looked = Cell::new(0);
        let parts = open(scratch.path(), |_| {
            looked.set(looked.get() + 1);
            match looked.get() {
                1 => ["d", "e"].into_iter().for_each(rotate),
                3 => rotate("f"),
                _ => {}
            }
            false
        });
        let content = |part: Part| io::read_to_string(part.file).unwrap();
        let contents: Vec<String> = parts.unwrap().into_iter().map(content).collect();
        assert_eq!(contents, ["f", "e", "d", "c", "b", "a"]);
    }

    #[test]
    fn a_log_that_never_stands_still_is_given_up() {
        let scratch = Scratch::new();
        scratch.append("daemon.log", b"");
        let parts = open(scratch.path(), |_| {
            scratch.rename("daemon.log", "daemon.log.1");
            scratch.append("daemon.log", b"");
            false
        });
        let said = parts.map(drop).unwrap_err().to_string();
        assert!(said.ends_with("daemon.log: it is rotated faster than it can be read"), "{said}");
    }

    #[test]
    fn only_regular_files_are_read() {
        let scratch = Scratch::new();
        std::fs::create_dir(name(scratch.path(), 0)).unwrap();
        assert!(open(scratch.path(), |_| false).is_err_and(|e| e.kind() == Kind::UntrustedPath));
        std::fs::remove_dir(name(scratch.path(), 0)).unwrap();
        std::os::unix::fs::symlink("elsewhere", name(scratch.path(), 3)).unwrap();
        assert!(open(scratch.path(), |_| false).is_err_and(|e| e.kind() == Kind::UntrustedPath));
    }
}
