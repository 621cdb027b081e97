//! Who lives: `daemon.pid`, locked by the daemon for its whole life, and `start.lock`, the start
//! lock at which starters queue.
//!
//! The kernel drops a lock at any death of its holder, so a lock that is held is proof of life and
//! a lock that is free is proof of death. The number in the file is a name for the holder, to be
//! believed only while the lock is held and only after [`Process::holds`] has confirmed it. The
//! files are never unlinked: two processes could otherwise lock two files of one name.

use std::fs::{File, TryLockError};
use std::io::{self, Seek};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::error::{At, Doing, Error, Kind};
use crate::paths::Paths;
use crate::sys::process::Process;
use crate::{disk, limits};

/// The lock on `daemon.pid`: whoever has it is the daemon.
///
/// Dropping it closes this process's descriptor; a process to which it was handed over keeps it.
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock if it is free; `None` if another process has it. The file then names this
    /// process.
    pub fn take(paths: &Paths) -> Result<Option<Lock>, Error> {
        let path = paths.pid();
        let file = disk::open_or_create(&path)?;
        if !lock(&file, &path, File::try_lock)? {
            return Ok(None);
        }
        // Emptied first: a longer number must not shine through a shorter one.
        file.set_len(0).at("write", &path)?;
        file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0).at("write", &path)?;
        Ok(Some(Lock { file }))
    }

    /// The lock that the starter of this process has taken and handed over as `file`.
    ///
    /// # Errors
    /// It is not that, or `daemon.pid` was removed in the meantime.
    pub fn handed_over(file: File, paths: &Paths) -> Result<Lock, Error> {
        let lock = Lock { file };
        // To take a lock that one has changes nothing.
        if lock.is_in_place(paths) && lock.file.try_lock().is_ok() {
            return Ok(lock);
        }
        Err(io::Error::other("it was removed or replaced")).at("take over", &paths.pid())
    }

    /// Gives the lock back and wipes the number: at the clean end of a daemon's life.
    pub fn release(self) {
        // A number left behind is harmless: nobody believes it without the lock.
        drop(self.file.set_len(0));
    }

    /// Whether the file that is locked is still the one that has the name. If it is not, somebody
    /// has removed it, and another daemon may have the new one.
    pub fn is_in_place(&self, paths: &Paths) -> bool {
        let id = |found: std::fs::Metadata| (found.dev(), found.ino());
        let locked = self.file.metadata().map(id).ok();
        locked.is_some() && locked == paths.pid().symlink_metadata().map(id).ok()
    }

    /// For handing it over.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// What the lock says of the daemon.
pub enum Owner {
    /// Nobody has the lock: there is no daemon.
    Nobody,
    /// This process has it, verified; signals to it cannot reach another.
    Is(Process),
    /// Somebody has it who has not signed yet, or is just leaving: look again in a moment.
    Changing,
    /// Whoever has it cannot be seen from here: another host, or another pid namespace.
    Elsewhere,
}

/// Finds the process that has the lock. Changes nothing.
pub fn owner(paths: &Paths) -> Result<Owner, Error> {
    let path = paths.pid();
    let Some(mut file) = disk::open_if_exists(&path)? else {
        return Ok(Owner::Nobody);
    };
    if !held(&file, &path)? {
        return Ok(Owner::Nobody);
    }
    let Some(pid) = signature(&mut file, &path)? else {
        return Ok(Owner::Changing);
    };
    let process = Process::open(pid).doing("look at the daemon's process")?;
    let inode = file.metadata().at("inspect", &path)?;
    let process = process.filter(|process| process.holds(&inode));
    // Read again now that the process cannot slip away: a fork or a new owner may have come
    // between.
    let unchanged = held(&file, &path)? && signature(&mut file, &path)? == Some(pid);
    Ok(match process {
        Some(process) if unchanged => Owner::Is(process),
        None if unchanged => Owner::Elsewhere,
        _ => Owner::Changing,
    })
}

/// Blocks until nobody has the lock, without using the CPU. Takes nothing: others may come first.
pub fn wait_until_free(paths: &Paths) -> Result<(), Error> {
    let path = paths.pid();
    let Some(file) = disk::open_if_exists(&path)? else {
        return Ok(());
    };
    // A shared one, so that the new owner does not stumble over it; closing the file gives it back.
    wait_for(&file, File::lock_shared).at("lock", &path)
}

/// Waits for a lock, however often a signal interrupts that.
fn wait_for(file: &File, take: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
    loop {
        match take(file) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Whether somebody has the lock, and the number that the file shows. Changes nothing; made for the
/// shortest way to an answer.
pub fn look(paths: &Paths) -> Result<(bool, Option<i32>), Error> {
    let path = paths.pid();
    let Some(mut file) = disk::open_if_exists(&path)? else {
        return Ok((false, None));
    };
    Ok((held(&file, &path)?, signature(&mut file, &path)?))
}

/// The exclusive right to start a daemon. Starters queue for it, so that each finds either no
/// daemon or one that is ready.
pub struct StartLock {
    _file: File,
}

impl StartLock {
    /// Waits until the starters before this one are done.
    ///
    /// # Errors
    /// [`Kind::StartLocked`] after `limit`.
    pub fn acquire(paths: &Paths, limit: Duration) -> Result<StartLock, Error> {
        let path = paths.start_lock();
        let file = disk::open_or_create(&path)?;
        if lock(&file, &path, File::try_lock)? {
            return Ok(StartLock { _file: file });
        }
        // flock(2) knows no deadline, so another thread waits.
        let (sender, receiver) = channel();
        let waiting = move || {
            let result = wait_for(&file, File::lock).map(|()| file);
            // Nobody listens any more once the deadline is over.
            drop(sender.send(result));
        };
        let named = thread::Builder::new().name("queue".into());
        drop(named.spawn(waiting).doing("start a thread")?);
        match receiver.recv_timeout(limit) {
            Ok(result) => Ok(StartLock { _file: result.at("lock", &path)? }),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let reason =
                    format!("another start has held {} for {}s", path.display(), limit.as_secs());
                Err(Error::cannot(Kind::StartLocked, "start the daemon", reason))
            }
        }
    }
}

/// Whether somebody has the file locked. The question is asked with a shared lock, given back at
/// once: askers do not see each other, and a starter that meets one looks again.
fn held(file: &File, path: &Path) -> Result<bool, Error> {
    if !lock(file, path, File::try_lock_shared)? {
        return Ok(true);
    }
    file.unlock().at("unlock", path)?;
    Ok(false)
}

fn lock(
    file: &File,
    path: &Path,
    take: impl Fn(&File) -> Result<(), TryLockError>,
) -> Result<bool, Error> {
    match take(file) {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(cause)) => Err(cause).at("lock", path),
    }
}

fn signature(file: &mut File, path: &Path) -> Result<Option<i32>, Error> {
    file.rewind().at("read", path)?;
    // A longer text is no number.
    let text = disk::read_up_to(file, path, limits::PID_BYTES_MAX)?;
    let text = text.and_then(|text| String::from_utf8(text).ok());
    Ok(text.and_then(|text| text.trim_end().parse().ok()).filter(|pid| *pid > 0))
}
