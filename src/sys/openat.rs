//! Files below a directory, opened so that no path leads out of it: not by `..`, not by a link, and
//! not by a directory that is replaced with a link at that moment.
//!
//! A path that leads out fails with EXDEV. On Linux the kernel resolves it: openat2(2) with
//! RESOLVE_BENEATH. Where that is missing, [`walk`] does the same, name by name.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
#[cfg(not(target_os = "linux"))]
use std::os::fd::IntoRawFd;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use super::check;

/// The number of links in a path that Linux follows; more count as a loop.
const LINKS_MAX: usize = 40;
/// The flags of every descriptor.
const ALWAYS: libc::c_int = libc::O_CLOEXEC | libc::O_NOCTTY;
/// The flags of the directories in a path, which need not be readable.
#[cfg(target_os = "linux")]
const PASSING: libc::c_int = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
#[cfg(not(target_os = "linux"))]
const PASSING: libc::c_int = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;

/// The type of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    File,
    Directory,
    Link,
    /// A pipe, a socket, a device.
    Other,
}

/// The flags to open a file for reading. Without waiting: it may have become a pipe meanwhile.
const READING: libc::c_int = libc::O_RDONLY | libc::O_NONBLOCK;

/// Opens a file or a directory for reading. Fails with [`io::ErrorKind::Unsupported`] for anything
/// else, without opening it: opening a device may already have an effect.
pub fn open_file(root: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    if let Ok(found) = kernel_open(root, path, libc::O_PATH) {
        let kind = found.metadata()?.file_type();
        refuse_special(if kind.is_file() || kind.is_dir() {
            FileType::File
        } else {
            FileType::Other
        })?;
    }
    open(root, path, READING)
}

/// Opens a directory.
pub fn open_directory(root: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    open(root, path, libc::O_RDONLY | libc::O_DIRECTORY)
}

/// Opens the directory `name` in `directory`, unless it is a link.
pub fn enter(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    open_at(directory, name, flags).map(File::from)
}

/// Opens `name` in `directory` as [`open_file`] does, unless it is a link.
pub fn open_entry(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    refuse_special(kind_of(directory, &c_string(name)?)?)?;
    open_listed(directory, name)
}

/// Opens the file `name` in `directory`, which [`entries`] has just listed as a file.
pub fn open_listed(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    open_at(directory, name, READING | libc::O_NOFOLLOW).map(File::from)
}

/// Opens the file `name` in `directory` for writing, unless it is a link. Its content stays.
pub fn open_for_writing(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    refuse_special(kind_of(directory, &c_string(name)?)?)?;
    open_at(directory, name, libc::O_WRONLY | libc::O_NONBLOCK | libc::O_NOFOLLOW).map(File::from)
}

/// Creates a private file, which must not exist, and opens it for writing.
pub fn create_file(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    open_at(directory, name, flags).map(File::from)
}

/// Creates a private directory. mkdirat(2).
pub fn create_directory(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: `name` is a NUL-terminated string that lives through the call.
    check(unsafe { libc::mkdirat(directory.as_raw_fd(), name.as_ptr(), 0o700) }).map(drop)
}

/// Renames an entry, and replaces the one that has the new name. renameat(2).
pub fn rename(directory: BorrowedFd<'_>, from: &OsStr, to: &OsStr) -> io::Result<()> {
    let (from, to) = (c_string(from)?, c_string(to)?);
    let raw = directory.as_raw_fd();
    // SAFETY: both names are NUL-terminated strings that live through the call.
    check(unsafe { libc::renameat(raw, from.as_ptr(), raw, to.as_ptr()) }).map(drop)
}

/// Removes an entry that is not a directory. unlinkat(2).
pub fn remove(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: `name` is a NUL-terminated string that lives through the call.
    check(unsafe { libc::unlinkat(directory.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

/// Returns whether a directory has an entry of this name, of any type. fstatat(2).
pub fn has_entry(directory: BorrowedFd<'_>, name: &OsStr) -> bool {
    c_string(name).and_then(|name| kind_of(directory, &name)).is_ok()
}

/// Removes an empty directory. unlinkat(2).
pub fn remove_directory(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let name = c_string(name)?;
    let flags = libc::AT_REMOVEDIR;
    // SAFETY: `name` is a NUL-terminated string that lives through the call.
    check(unsafe { libc::unlinkat(directory.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
}

/// Reads a link; `None` if it is not one. readlinkat(2).
pub fn link_target(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<PathBuf>> {
    let name = c_string(name)?;
    let mut buffer = vec![0_u8; 4096];
    let (room, size) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: `name` is NUL-terminated and `room` is writable for `size` bytes.
    let got = unsafe { libc::readlinkat(directory.as_raw_fd(), name.as_ptr(), room, size) };
    let Ok(length) = usize::try_from(got) else {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::EINVAL) { Ok(None) } else { Err(error) };
    };
    buffer.truncate(length);
    Ok(Some(PathBuf::from(OsString::from_vec(buffer))))
}

/// Lists `directory` without `.` and `..`, unsorted; at most `most` entries. Copies of a descriptor
/// share the position that this moves, so it is for a directory that one thread has opened.
/// getdents64(2), which needs no directory stream.
#[cfg(target_os = "linux")]
pub fn entries(directory: BorrowedFd<'_>, most: usize) -> io::Result<Vec<(OsString, FileType)>> {
    rewind(directory)?;
    let mut buffer = [0_u8; 8192];
    let mut found = Vec::new();
    loop {
        let (room, size) = (buffer.as_mut_ptr(), buffer.len());
        // SAFETY: `room` is writable for `size` bytes.
        let got = unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), room, size) };
        let Ok(filled) = usize::try_from(got) else { return Err(io::Error::last_os_error()) };
        let mut records = buffer.get(..filled).unwrap_or_default();
        if records.is_empty() {
            return Ok(found);
        }
        // An inode, an offset, the length of the record, a type, a name.
        while let Some([low, high, kind]) = records.get(16..19) {
            let length = usize::from(u16::from_ne_bytes([*low, *high]));
            let (record, rest) = records.split_at_checked(length.max(19)).unwrap_or_default();
            records = rest;
            let name = record.get(19..).unwrap_or_default();
            if let Ok(name) = CStr::from_bytes_until_nul(name) {
                add_entry(&mut found, directory, name, *kind);
            }
            if found.len() == most {
                return Ok(found);
            }
        }
    }
}

/// Lists `directory` without `.` and `..`, unsorted; at most `most` entries. Copies of a descriptor
/// share the position that this moves, so it is for a directory that one thread has opened.
/// readdir(3).
#[cfg(not(target_os = "linux"))]
pub fn entries(directory: BorrowedFd<'_>, most: usize) -> io::Result<Vec<(OsString, FileType)>> {
    rewind(directory)?;
    let raw = directory.try_clone_to_owned()?.into_raw_fd();
    // SAFETY: nothing else owns `raw`; on success the stream does.
    let stream = unsafe { libc::fdopendir(raw) };
    if stream.is_null() {
        let error = io::Error::last_os_error();
        // SAFETY: there is no stream, so nothing else owns the descriptor.
        drop(unsafe { OwnedFd::from_raw_fd(raw) });
        return Err(error);
    }
    let stream = Stream(stream);
    let mut found = Vec::new();
    while found.len() < most {
        clear_errno();
        // SAFETY: the stream is open, and used by this thread alone.
        let entry = unsafe { libc::readdir(stream.0) };
        if entry.is_null() {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(0) { Ok(found) } else { Err(error) };
        }
        // SAFETY: the entry is valid until the next call on this stream.
        let kind = unsafe { (*entry).d_type };
        // SAFETY: as above.
        let name = unsafe { &raw const (*entry).d_name };
        // SAFETY: as above; a name is NUL-terminated.
        let name = unsafe { CStr::from_ptr(name.cast()) };
        add_entry(&mut found, directory, name, kind);
    }
    Ok(found)
}

/// Moves the position in a directory to its beginning. lseek(2).
fn rewind(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call changes no memory.
    match unsafe { libc::lseek(directory.as_raw_fd(), 0, libc::SEEK_SET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Adds an entry of the type that the system returned with the name, unless it is `.` or `..`.
fn add_entry(
    found: &mut Vec<(OsString, FileType)>,
    directory: BorrowedFd<'_>,
    name: &CStr,
    kind: u8,
) {
    if matches!(name.to_bytes(), b"." | b"..") {
        return;
    }
    let kind = match kind {
        libc::DT_REG => FileType::File,
        libc::DT_DIR => FileType::Directory,
        libc::DT_LNK => FileType::Link,
        libc::DT_UNKNOWN => kind_of(directory, name).unwrap_or(FileType::Other),
        _ => FileType::Other,
    };
    found.push((OsStr::from_bytes(name.to_bytes()).to_owned(), kind));
}

/// An open directory stream.
#[cfg(not(target_os = "linux"))]
struct Stream(*mut libc::DIR);

#[cfg(not(target_os = "linux"))]
impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and nothing uses it after this.
        unsafe { libc::closedir(self.0) };
    }
}

/// Returns the type of an entry, for file systems that do not return it with the name. fstatat(2).
fn kind_of(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<FileType> {
    let mut found = MaybeUninit::<libc::stat>::uninit();
    let (raw, flags) = (directory.as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW);
    // SAFETY: `name` is NUL-terminated, `found` is writable.
    check(unsafe { libc::fstatat(raw, name.as_ptr(), found.as_mut_ptr(), flags) })?;
    // SAFETY: the call has succeeded, so it has filled `found`.
    let mode = unsafe { found.assume_init() }.st_mode;
    Ok(match mode & libc::S_IFMT {
        libc::S_IFREG => FileType::File,
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Link,
        _ => FileType::Other,
    })
}

/// Fails with [`io::ErrorKind::Unsupported`] for a pipe, a socket or a device.
fn refuse_special(kind: FileType) -> io::Result<()> {
    if kind == FileType::Other { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
}

#[cfg(not(target_os = "linux"))]
fn clear_errno() {
    // SAFETY: the address is that of this thread's errno.
    let errno = unsafe { libc::__error() };
    // SAFETY: as above; nothing else writes it.
    unsafe { *errno = 0 };
}

fn open(root: BorrowedFd<'_>, path: &Path, flags: libc::c_int) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    match kernel_open(root, path, flags) {
        // ENOSYS: before Linux 5.6. EPERM: a sandbox that does not know the call.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EAGAIN)) => {}
        result => return result,
    }
    walk(root, path, flags)
}

#[cfg(target_os = "linux")]
fn kernel_open(root: BorrowedFd<'_>, path: &Path, flags: libc::c_int) -> io::Result<File> {
    let name = c_string(if path.as_os_str().is_empty() { OsStr::new(".") } else { path.as_ref() })?;
    // SAFETY: open_how is a struct of integers, for which all zeroes is a valid value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    // The call rejects flags that have no effect together.
    let always = if flags & libc::O_PATH == 0 { ALWAYS } else { libc::O_CLOEXEC };
    how.flags = u64::from((flags | always).unsigned_abs());
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    let (raw, how_at) = (root.as_raw_fd(), &raw const how);
    // SAFETY: `name` is NUL-terminated, `how` is live and of the size passed.
    let got =
        unsafe { libc::syscall(libc::SYS_openat2, raw, name.as_ptr(), how_at, size_of_val(&how)) };
    let opened = check(libc::c_int::try_from(got).unwrap_or(-1))?;
    // SAFETY: the descriptor is new, so nothing else owns it.
    Ok(unsafe { File::from_raw_fd(opened) })
}

/// Opens `path` name by name. The target of a link is walked in the same way. `..` returns to the
/// directory before, which is still open, so that moving a directory leads nowhere else.
fn walk(root: BorrowedFd<'_>, path: &Path, flags: libc::c_int) -> io::Result<File> {
    let mut pending = Vec::new();
    push(path, &mut pending)?;
    let mut entered: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    while let Some(name) = pending.pop() {
        if name == ".." {
            entered.pop().ok_or_else(leads_out)?;
            continue;
        }
        let here = entered.last().map_or(root, AsFd::as_fd);
        let last = pending.is_empty();
        if last {
            refuse_special(kind_of(here, &c_string(&name)?)?)?;
        }
        let opened = open_at(here, &name, if last { flags | libc::O_NOFOLLOW } else { PASSING });
        match opened {
            Ok(opened) if last => return Ok(File::from(opened)),
            Ok(opened) => entered.push(opened),
            Err(error) => match link_target(here, &name) {
                Ok(Some(_)) if links == LINKS_MAX => {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                Ok(Some(target)) => {
                    links += 1;
                    push(&target, &mut pending)?;
                }
                _ => return Err(error),
            },
        }
    }
    let here = entered.last().map_or(root, AsFd::as_fd);
    open_at(here, OsStr::new("."), flags).map(File::from)
}

/// Pushes the names of `path`, the first one last.
fn push(path: &Path, pending: &mut Vec<OsString>) -> io::Result<()> {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => pending.push(name.to_owned()),
            Component::ParentDir => pending.push(OsString::from("..")),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return Err(leads_out()),
        }
    }
    Ok(())
}

fn leads_out() -> io::Error {
    io::Error::from_raw_os_error(libc::EXDEV)
}

/// Opens `name` in a directory. openat(2).
fn open_at(directory: BorrowedFd<'_>, name: &OsStr, flags: libc::c_int) -> io::Result<OwnedFd> {
    let name = c_string(name)?;
    let mode: libc::c_uint = 0o600;
    loop {
        // SAFETY: `name` is a NUL-terminated string that lives through the call.
        let result =
            unsafe { libc::openat(directory.as_raw_fd(), name.as_ptr(), flags | ALWAYS, mode) };
        match check(result) {
            // SAFETY: the descriptor is new, so nothing else owns it.
            Ok(raw) => return Ok(unsafe { OwnedFd::from_raw_fd(raw) }),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn c_string(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Scene(PathBuf);

    impl Scene {
        /// `inside/…` is the root; `outside/secret` is what must never be read.
        fn new() -> Scene {
            let base = std::env::temp_dir();
            let base =
                base.join(format!("opta-beneath-{}-{:x}", std::process::id(), fastrand::u64(..)));
            fs::create_dir_all(base.join("inside/sub/deep")).unwrap();
            fs::create_dir(base.join("outside")).unwrap();
            for (name, text) in [("outside/file", "secret"), ("inside/sub/file", "plain")] {
                File::create(base.join(name))
                    .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
                    .unwrap();
            }
            symlink("../outside", base.join("inside/way_out")).unwrap();
            symlink("../../outside/file", base.join("inside/sub/way_out")).unwrap();
            symlink(base.join("outside/file"), base.join("inside/absolute")).unwrap();
            symlink("sub/../sub/file", base.join("inside/way_in")).unwrap();
            symlink("sub", base.join("inside/folder")).unwrap();
            symlink("nowhere", base.join("inside/dangling")).unwrap();
            symlink("circle", base.join("inside/circle")).unwrap();
            Scene(base)
        }

        fn root(&self) -> File {
            File::open(self.0.join("inside")).unwrap()
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    type Way = fn(BorrowedFd<'_>, &Path, libc::c_int) -> io::Result<File>;

    /// Checks every guarantee, both for the kernel's resolution and for [`walk`].
    const WAYS: [Way; 2] = [open, walk];

    fn read(way: Way, root: &File, path: &str) -> Result<String, i32> {
        let mut text = String::new();
        let file = way(root.as_fd(), Path::new(path), libc::O_RDONLY);
        let mut file = file.map_err(|error| error.raw_os_error().unwrap())?;
        file.read_to_string(&mut text).map_err(|error| error.raw_os_error().unwrap())?;
        Ok(text)
    }

    #[test]
    fn what_is_beneath_is_found_and_what_is_not_is_refused() {
        let scene = Scene::new();
        let root = scene.root();
        for way in WAYS {
            for path in
                ["sub/file", "./sub/deep/../file", "way_in", "folder/file", "sub/deep/../../way_in"]
            {
                assert_eq!(read(way, &root, path), Ok("plain".into()), "{path}");
            }
            let out = [
                "..",
                "../outside/file",
                "sub/../../outside/file",
                "way_out/file",
                "sub/way_out",
                "absolute",
                "/etc/passwd",
                "folder/../../outside/file",
                "folder/way_out",
            ];
            for path in out {
                assert_eq!(read(way, &root, path), Err(libc::EXDEV), "{path}");
            }
            assert_eq!(read(way, &root, "dangling"), Err(libc::ENOENT));
            assert_eq!(read(way, &root, "circle"), Err(libc::ELOOP));
            assert_eq!(read(way, &root, "sub/file/x"), Err(libc::ENOTDIR));
            assert_eq!(read(way, &root, ""), Err(libc::EISDIR));
        }
    }

    #[test]
    fn a_directory_that_is_swapped_for_a_link_leads_nowhere() {
        let scene = Scene::new();
        let root = scene.root();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (place, aside) = (scene.0.join("inside/sub"), scene.0.join("inside/aside"));
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&place, &aside).unwrap();
                    symlink("../outside", &place).unwrap();
                    fs::remove_file(&place).unwrap();
                    fs::rename(&aside, &place).unwrap();
                }
            });
            let mut seen = 0;
            for round in 0..20_000 {
                match read(WAYS[round % 2], &root, "sub/file") {
                    Ok(text) => assert_eq!(text, "plain"),
                    Err(_) => seen += 1,
                }
            }
            done.store(true, Ordering::Relaxed);
            assert!(seen > 0, "the swap was never seen");
        });
    }

    #[test]
    fn entries_are_told_with_their_kinds_as_often_as_asked() {
        let scene = Scene::new();
        let root = scene.root();
        for _ in 0..2 {
            let mut found = entries(root.as_fd(), usize::MAX).unwrap();
            found.sort_by(|a, b| a.0.cmp(&b.0));
            let folders = found.iter().filter(|(_, kind)| *kind == FileType::Directory).count();
            let links = found.iter().filter(|(_, kind)| *kind == FileType::Link).count();
            assert_eq!((found.len(), folders, links), (7, 1, 6));
        }
        assert_eq!(entries(root.as_fd(), 3).unwrap().len(), 3);
        let sub = enter(root.as_fd(), OsStr::new("sub")).unwrap();
        assert!(entries(sub.as_fd(), 9).unwrap().contains(&("file".into(), FileType::File)));
        assert!(enter(root.as_fd(), OsStr::new("folder")).is_err());
        assert!(open_entry(root.as_fd(), OsStr::new("way_in")).is_err());
    }
}
