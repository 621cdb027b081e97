//! The two locks: `daemon.pid`, which the daemon holds as long as it runs, and `start.lock`, which
//! serializes starts. flock(2).
//!
//! The kernel releases a lock when its owner ends, whatever the reason. So a held lock proves that
//! its owner is running, and a free one that there is none. The pid in `daemon.pid` names the
//! owner, and counts only while the lock is held and [`Process::holds`] confirms it. The files are
//! never unlinked: two processes could otherwise lock two files of the same name.

use std::fs::{File, TryLockError};
use std::io::{self, Seek};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use crate::error::{At, Doing, Error, Kind};
use crate::paths::Paths;
use crate::sys::process::Process;
use crate::{disk, limits};

/// The lock on `daemon.pid`. Its owner is the daemon.
///
/// Dropping it closes the descriptor of this process. A process that it was handed over to keeps
/// the lock.
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock and writes the pid of this process; `None` if the lock is held.
    pub fn take(paths: &Paths) -> Result<Option<Lock>, Error> {
        let path = paths.pid();
        let file = disk::open_or_create(&path)?;
        if !try_lock(&file, &path, File::try_lock)? {
            return Ok(None);
        }
        // A shorter pid does not overwrite all of a longer one.
        file.set_len(0).at("write", &path)?;
        file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0).at("write", &path)?;
        Ok(Some(Lock { file }))
    }

    /// Accepts the lock that the starter of this process handed over.
    ///
    /// # Errors
    /// `file` is not that lock, or `daemon.pid` was removed in the meantime.
    pub fn handed_over(file: File, paths: &Paths) -> Result<Lock, Error> {
        let lock = Lock { file };
        // Locking a file again has no effect for the process that has locked it.
        if lock.is_in_place(paths) && lock.file.try_lock().is_ok() {
            return Ok(lock);
        }
        Err(io::Error::other("it was removed or replaced")).at("take over", &paths.pid())
    }

    /// Releases the lock and removes the pid.
    pub fn release(self) {
        // A pid that remains does no harm: it does not count without the lock.
        drop(self.file.set_len(0));
        // A starter that hangs may still have the descriptor.
        drop(self.file.unlock());
    }

    /// Returns whether the locked file still has its name. If not, the file was removed, and
    /// another daemon may have locked a new one.
    pub fn is_in_place(&self, paths: &Paths) -> bool {
        let id = |found: std::fs::Metadata| (found.dev(), found.ino());
        let locked = self.file.metadata().map(id).ok();
        locked.is_some() && locked == paths.pid().symlink_metadata().map(id).ok()
    }

    /// Returns the file, to hand it over.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// The owner of the lock on `daemon.pid`.
pub enum Owner {
    /// The lock is free: there is no daemon.
    None,
    /// This process has the lock. A signal to it cannot reach another process.
    Process(Process),
    /// The owner has not written its pid yet, or is just exiting.
    Changing,
    /// The owner runs on another host or in another pid namespace.
    Elsewhere,
}

/// Finds the owner of the lock. Changes nothing.
pub fn owner(paths: &Paths) -> Result<Owner, Error> {
    let path = paths.pid();
    let Some(mut file) = disk::open_if_exists(&path)? else {
        return Ok(Owner::None);
    };
    if !is_held(&file, &path)? {
        return Ok(Owner::None);
    }
    let Some(pid) = read_pid(&mut file, &path)? else {
        return Ok(Owner::Changing);
    };
    let process = Process::open(pid).doing("look at the daemon's process")?;
    let inode = file.metadata().at("inspect", &path)?;
    let process = process.filter(|process| process.holds(&inode));
    // Read again now that the pid cannot be reused: there may be a new owner.
    let is_unchanged = is_held(&file, &path)? && read_pid(&mut file, &path)? == Some(pid);
    Ok(match process {
        Some(process) if is_unchanged => Owner::Process(process),
        None if is_unchanged => Owner::Elsewhere,
        _ => Owner::Changing,
    })
}

/// Returns whether the lock is held, and the pid in the file. Changes nothing, and makes as few
/// system calls as possible.
pub fn look(paths: &Paths) -> Result<(bool, Option<i32>), Error> {
    let path = paths.pid();
    let Some(mut file) = disk::open_if_exists(&path)? else {
        return Ok((false, None));
    };
    Ok((is_held(&file, &path)?, read_pid(&mut file, &path)?))
}

/// Waits until the lock is free, without taking it. Blocks in the kernel.
pub fn wait_until_free(paths: &Paths) -> Result<(), Error> {
    let path = paths.pid();
    let Some(file) = disk::open_if_exists(&path)? else {
        return Ok(());
    };
    // A shared lock, released when the file is closed, does not keep the next owner waiting.
    wait_for(&file, File::lock_shared).at("lock", &path)
}

/// The lock on `start.lock`. The process that holds it is the only one that starts a daemon, and
/// finds either none or one that is ready.
pub struct StartLock {
    file: File,
}

impl StartLock {
    /// Holds the lock until this process has ended, and with it all that it still prints.
    pub fn hold_until_exit(self) {
        let _open = self.file.into_raw_fd();
    }

    /// Waits until no other process holds the lock.
    ///
    /// # Errors
    /// [`Kind::StartLocked`] after `limit`.
    pub fn acquire(paths: &Paths, limit: Duration) -> Result<StartLock, Error> {
        let path = paths.start_lock();
        let file = disk::open_or_create(&path)?;
        if try_lock(&file, &path, File::try_lock)? {
            return Ok(StartLock { file });
        }
        // flock(2) has no timeout, so another thread waits. After the timeout, it ends with its
        // process.
        let (sender, receiver) = channel();
        let wait = move || drop(sender.send(wait_for(&file, File::lock).map(|()| file)));
        let thread = thread::Builder::new().name("start lock".into());
        drop(thread.spawn(wait).doing("start a thread")?);
        match receiver.recv_timeout(limit) {
            Ok(locked) => Ok(StartLock { file: locked.at("lock", &path)? }),
            Err(_timeout) => {
                let reason =
                    format!("another start has held {} for {}s", path.display(), limit.as_secs());
                Err(Error::cannot(Kind::StartLocked, "start the daemon", reason))
            }
        }
    }
}

/// Returns whether a process has locked the file exclusively. For the test, the file is locked with
/// a shared lock for a moment: tests do not see each other, and a starter that sees one tries
/// again.
fn is_held(file: &File, path: &Path) -> Result<bool, Error> {
    if !try_lock(file, path, File::try_lock_shared)? {
        return Ok(true);
    }
    file.unlock().at("unlock", path)?;
    Ok(false)
}

fn try_lock(
    file: &File,
    path: &Path,
    lock: impl Fn(&File) -> Result<(), TryLockError>,
) -> Result<bool, Error> {
    match lock(file) {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(cause)) => Err(cause).at("lock", path),
    }
}

/// Waits for a lock. A signal that interrupts the wait has no effect.
fn wait_for(file: &File, lock: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
    loop {
        match lock(file) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn read_pid(file: &mut File, path: &Path) -> Result<Option<i32>, Error> {
    file.rewind().at("read", path)?;
    let text = disk::read_up_to(file, path, limits::PID_BYTES_MAX)?;
    let text = text.and_then(|text| String::from_utf8(text).ok());
    Ok(text.and_then(|text| text.trim_end().parse().ok()).filter(|pid| *pid > 0))
}
