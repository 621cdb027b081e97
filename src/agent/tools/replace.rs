//! Writing files in a workspace: atomically, and so that the new content is the only change. Where
//! a new file in the place of the old one would change more, the old one is written in place.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::disk::FileVersion;
use crate::sys::{descriptor, openat};

use super::protection::LINKS_MAX;
use super::workspace::Workspace;

const FILE_MODE: u32 = 0o666;
const DIRECTORY_MODE: u32 = 0o777;

/// What must be at the place of a file that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Nothing,
    File(FileVersion),
}

/// A file that was written: where it is, without links, and its version.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    pub path: PathBuf,
    pub version: FileVersion,
}

impl Workspace {
    /// Replaces a file's content, or creates the file and missing directories with the modes that
    /// `umask` leaves. Readers see the old content or the new one, if the file has one name and
    /// nothing else prevents that. A link is followed and kept, as are owner, mode and other names.
    /// Fails if not what is `expected` is there. After a failure everything is as before.
    pub fn replace(
        &self,
        given: &str,
        bytes: &[u8],
        expected: Expected,
        umask: u32,
    ) -> Result<Written, String> {
        let failed = |error: io::Error| self.failure(given, &error);
        let target = self.target(given)?;
        let old = self.old_file(&target).map_err(failed)?;
        let found = old.as_ref().map_or(Ok(Expected::Nothing), expected_of).map_err(failed)?;
        if found != expected {
            return Err(failed(changed()));
        }
        match old {
            Some(old) if old.metadata().is_ok_and(|found| found.mode() & 0o222 == 0) => {
                return Err(format!("{given} is read-only"));
            }
            Some(old) => target.rewrite(bytes, &old, expected),
            None => self.create(&target, bytes, umask),
        }
        .map_err(failed)?;
        let path = target.place.join(target.missing.iter().collect::<PathBuf>()).join(&target.name);
        let found = self.file(given)?.metadata().map_err(failed)?;
        Ok(Written { path, version: FileVersion::of(&found) })
    }

    /// Finds where a file is to be written. Creates nothing.
    fn target(&self, given: &str) -> Result<Target, String> {
        let failed = |error: io::Error| self.failure(given, &error);
        let mut path = self.relative(given)?;
        for _ in 0..LINKS_MAX {
            let names_file = path.file_name().filter(|_| !given.ends_with('/'));
            let name = names_file.ok_or_else(|| format!("{given} names no file"))?.to_owned();
            let parent = path.parent().unwrap_or(Path::new("")).to_owned();
            let (directory, missing) = self.existing_part(&parent).map_err(failed)?;
            let place = self.path_of(directory.as_fd(), &parent).map_err(failed)?;
            let link = match openat::link_target(directory.as_fd(), &name) {
                _ if !missing.is_empty() => None,
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                link => link.map_err(failed)?,
            };
            match link {
                None => return Ok(Target { directory, place, missing, name }),
                Some(link) if link.is_absolute() => {
                    path = self.relative(&link.to_string_lossy())?;
                }
                Some(link) => path = parent.join(link),
            }
        }
        Err(format!("{given} is a link to a link to a link"))
    }

    /// Opens the part of a directory's path that exists. Returns the names of the others.
    fn existing_part(&self, path: &Path) -> io::Result<(File, Vec<OsString>)> {
        let (mut part, mut missing) = (path, Vec::new());
        loop {
            match self.open_beneath(part, openat::open_directory) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    // What ends in `..` cannot be created.
                    let Some(name) = part.file_name() else { return Err(error) };
                    missing.insert(0, name.to_owned());
                    part = part.parent().unwrap_or(Path::new(""));
                }
                opened => return Ok((opened?, missing)),
            }
        }
    }

    /// Opens the file that is to be replaced, if there is one.
    fn old_file(&self, target: &Target) -> io::Result<Option<File>> {
        if !target.missing.is_empty() {
            return Ok(None);
        }
        self.check_entry(&target.place, &target.name)?;
        let file = match openat::open_entry(target.directory.as_fd(), &target.name) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        if file.metadata()?.is_dir() {
            return Err(ErrorKind::Unsupported.into());
        }
        self.check(file.as_fd(), &target.place.join(&target.name))?;
        Ok(Some(file))
    }

    /// Creates a file and its missing directories, all or none.
    fn create(&self, target: &Target, bytes: &[u8], umask: u32) -> io::Result<()> {
        let mut created: Vec<(File, &OsStr)> = Vec::new();
        let mut create = || {
            let mut directory = target.directory.try_clone()?;
            let mut place = target.place.clone();
            for name in &target.missing {
                self.check_entry(&place, name)?;
                openat::create_directory(directory.as_fd(), name)?;
                let new = openat::enter(directory.as_fd(), name)?;
                created.push((directory, name));
                new.set_permissions(Permissions::from_mode(DIRECTORY_MODE & !umask))?;
                place.push(name);
                directory = new;
            }
            self.check_entry(&place, &target.name)?;
            let mode = FILE_MODE & !umask;
            let file = Prepared::new(directory.as_fd())?;
            file.fill(bytes, mode)?;
            file.rename(&target.name, Expected::Nothing)
        };
        let result = create();
        if result.is_err() {
            for (directory, name) in created.iter().rev() {
                // The first failure is the one to report.
                drop(openat::remove_directory(directory.as_fd(), name));
            }
        }
        result
    }
}

/// Where a file is to be written.
struct Target {
    /// The part of its directory's path that exists.
    directory: File,
    /// Where that is, without links.
    place: PathBuf,
    /// The rest of that path.
    missing: Vec<OsString>,
    name: OsString,
}

impl Target {
    /// Replaces the content of the file.
    fn rewrite(&self, bytes: &[u8], old: &File, expected: Expected) -> io::Result<()> {
        let found = old.metadata()?;
        if found.nlink() == 1 && !descriptor::has_access_list(old) {
            match self.put_another(bytes, &found, expected) {
                // Its owner cannot be kept, the directory cannot be written to, or something is
                // mounted on the file.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::PermissionDenied
                            | ErrorKind::ReadOnlyFilesystem
                            | ErrorKind::ResourceBusy
                            | ErrorKind::CrossesDevices
                    ) => {}
                result => return result,
            }
        }
        self.write_in_place(bytes, old, expected)
    }

    /// Puts another file in the place of the old one, with the same owner and mode.
    fn put_another(&self, bytes: &[u8], old: &Metadata, expected: Expected) -> io::Result<()> {
        let file = Prepared::new(self.directory.as_fd())?;
        let new = file.file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            fchown(&file.file, Some(old.uid()), Some(old.gid()))?;
        }
        file.fill(bytes, old.mode() & 0o777)?;
        file.rename(&self.name, expected)
    }

    /// Writes into the old file. If that fails, writes back what was there.
    fn write_in_place(&self, bytes: &[u8], old: &File, expected: Expected) -> io::Result<()> {
        let file = openat::open_for_writing(self.directory.as_fd(), &self.name)?;
        if expected_of(&file)? != expected {
            return Err(changed());
        }
        let mut before = Vec::new();
        let mut reader = old;
        reader.read_to_end(&mut before)?;
        let write = |bytes: &[u8]| {
            file.write_all_at(bytes, 0)?;
            file.set_len(bytes.len() as u64)?;
            file.sync_data()
        };
        // What was there fits, whatever the disk is full of.
        write(bytes).inspect_err(|_| drop(write(&before)))
    }
}

/// A file that is written before it gets its name. Without one it is removed.
struct Prepared<'d> {
    directory: BorrowedFd<'d>,
    /// In the same directory, so that it can be renamed; hidden, and not a name that a user
    /// chooses.
    temporary: OsString,
    file: File,
}

impl<'d> Prepared<'d> {
    fn new(directory: BorrowedFd<'d>) -> io::Result<Prepared<'d>> {
        let temporary = OsString::from(format!(".opta-{:016x}", fastrand::u64(..)));
        let file = openat::create_file(directory, &temporary)?;
        Ok(Prepared { directory, temporary, file })
    }

    fn fill(&self, bytes: &[u8], mode: u32) -> io::Result<()> {
        let mut file = &self.file;
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_data()
    }

    /// Gives the file its name, if what is expected is still there.
    fn rename(self, name: &OsStr, expected: Expected) -> io::Result<()> {
        let now = match openat::open_entry(self.directory, name) {
            Err(error) if error.kind() == ErrorKind::NotFound => Expected::Nothing,
            opened => expected_of(&opened?)?,
        };
        if now != expected {
            return Err(changed());
        }
        openat::rename(self.directory, &self.temporary, name)
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        // It is not there if it has its name.
        drop(openat::remove(self.directory, &self.temporary));
    }
}

fn expected_of(file: &File) -> io::Result<Expected> {
    Ok(Expected::File(FileVersion::of(&file.metadata()?)))
}

fn changed() -> io::Error {
    io::Error::other("it was changed by somebody else at the same time; read it again")
}
