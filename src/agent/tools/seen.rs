//! The versions of files that the model of a session has seen, so that it never overwrites what
//! somebody else has changed since.

use std::collections::VecDeque;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::{limits, mutex};

/// The version of a file's content, as far as its metadata tells: device, inode, size, and time of
/// modification in seconds and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileVersion(u64, u64, u64, i64, i64);

impl FileVersion {
    /// Returns the version of an open file.
    pub fn of(file: &File) -> io::Result<FileVersion> {
        let found = file.metadata()?;
        let (seconds, nanoseconds) = (found.mtime(), found.mtime_nsec());
        Ok(FileVersion(found.dev(), found.ino(), found.len(), seconds, nanoseconds))
    }
}

/// What a model knows of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// It has not seen the file, or too long ago.
    Unknown,
    /// It has seen another content.
    Outdated,
    Current,
}

/// What was seen of a file: the version, and a hash of the content if it is small enough.
struct SeenFile {
    version: FileVersion,
    hash: Option<u64>,
}

/// The files that the model of one session has seen, the latest last.
#[derive(Default)]
pub struct SeenFiles(Mutex<VecDeque<(PathBuf, SeenFile)>>);

impl SeenFiles {
    /// Records that the model has seen a file with this content; `None` if it is too long.
    pub fn record(&self, path: &Path, version: FileVersion, content: Option<&[u8]>) {
        let file = SeenFile { version, hash: content.map(hash) };
        let mut files = mutex::lock(&self.0);
        files.retain(|(known, _)| known != path);
        if files.len() >= limits::FILES_SEEN_MAX {
            files.pop_front();
        }
        files.push_back((path.to_owned(), file));
    }

    /// Returns what the model knows of a file in this version with this content. A file that was
    /// written again with the same content is the same.
    pub fn knowledge(&self, path: &Path, version: FileVersion, content: &[u8]) -> Knowledge {
        let files = mutex::lock(&self.0);
        match files.iter().find(|(known, _)| known == path) {
            None => Knowledge::Unknown,
            Some((_, SeenFile { hash: Some(seen), .. })) if *seen == hash(content) => {
                Knowledge::Current
            }
            Some((_, SeenFile { hash: None, version: seen })) if *seen == version => {
                Knowledge::Current
            }
            Some(_) => Knowledge::Outdated,
        }
    }
}

fn hash(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    hasher.finish()
}

/// The files that the models of all sessions have seen. Not on the disk: after a restart of the
/// daemon, a model reads a file again before it replaces it.
#[derive(Default)]
pub struct SeenBySession(Mutex<VecDeque<(String, Arc<SeenFiles>)>>);

impl SeenBySession {
    /// Returns the files of a session.
    pub fn of(&self, session_id: &str) -> Arc<SeenFiles> {
        let mut sessions = mutex::lock(&self.0);
        let known = sessions.iter().position(|(id, _)| id == session_id);
        let session = known.and_then(|at| sessions.remove(at));
        let session = session.unwrap_or_else(|| (session_id.to_owned(), Arc::default()));
        if sessions.len() >= limits::SESSIONS_SEEN_MAX {
            sessions.pop_front();
        }
        let files = Arc::clone(&session.1);
        sessions.push_back(session);
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_seen_last_are_remembered() {
        let files = SeenFiles::default();
        let version = FileVersion(0, 0, 0, 0, 0);
        let path = |number: usize| PathBuf::from(format!("/{number}"));
        for number in 0..=limits::FILES_SEEN_MAX {
            files.record(&path(number), version, Some(b"x"));
        }
        let known = |number, content| files.knowledge(&path(number), version, content);
        assert_eq!(known(0, b"x"), Knowledge::Unknown);
        assert_eq!(known(1, b"x"), Knowledge::Current);
        assert_eq!(known(1, b"y"), Knowledge::Outdated);
        // A file that is too long to be compared is the same in the same version.
        files.record(&path(1), version, None);
        assert_eq!(known(1, b"y"), Knowledge::Current);
        let newer = FileVersion(0, 0, 1, 0, 0);
        assert_eq!(files.knowledge(&path(1), newer, b"y"), Knowledge::Outdated);
    }

    #[test]
    fn the_sessions_used_last_are_remembered() {
        let sessions = SeenBySession::default();
        let version = FileVersion(0, 0, 0, 0, 0);
        let knows = |id: usize| {
            let files = sessions.of(&id.to_string());
            files.knowledge(Path::new("/a"), version, b"") == Knowledge::Current
        };
        for id in 0..limits::SESSIONS_SEEN_MAX {
            sessions.of(&id.to_string()).record(Path::new("/a"), version, Some(b""));
        }
        assert!(knows(0));
        assert!(!knows(limits::SESSIONS_SEEN_MAX));
        assert!(knows(0) && !knows(1));
    }
}
