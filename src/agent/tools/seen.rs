//! The versions of files that the model of a session has seen, so that it never overwrites what
//! somebody else has changed since.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::disk::FileVersion;
use crate::{limits, mutex};

/// What a model knows of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// It has not seen the file, or too long ago.
    Unknown,
    /// It has seen another content.
    Outdated,
    /// It has seen a part of the content, which begins with this many bytes, and perhaps others.
    Part(u64),
    Current,
}

/// What was seen of a file: the version, a hash of the content if it is small enough, and the parts
/// in bytes, in order and with gaps between them.
struct SeenFile {
    version: FileVersion,
    hash: Option<u64>,
    parts: Vec<Range<u64>>,
}

impl SeenFile {
    /// Returns whether it had this content. A file that was written again with the same content is
    /// the same.
    fn had(&self, version: FileVersion, hash: Option<u64>) -> bool {
        self.hash == hash && (hash.is_some() || self.version == version)
    }
}

/// The files that the model of one session has seen, the latest last.
#[derive(Default)]
pub struct SeenFiles(Mutex<VecDeque<(PathBuf, SeenFile)>>);

impl SeenFiles {
    /// Records that the model has seen a part of a file with this content; `None` if it is too
    /// long.
    pub fn record(
        &self,
        path: &Path,
        version: FileVersion,
        content: Option<&[u8]>,
        part: Range<u64>,
    ) {
        let hash = content.map(hash);
        let mut files = mutex::lock(&self.0);
        let known = files.iter().position(|(known, _)| known == path);
        let known = known.and_then(|at| files.remove(at)).map(|(_, file)| file);
        let known = known.filter(|file| file.had(version, hash));
        let mut parts = known.map_or_else(Vec::new, |file| file.parts);
        parts.push(part);
        parts.sort_unstable_by_key(|part| part.start);
        parts.dedup_by(|next, part| {
            let adjoins = next.start <= part.end;
            if adjoins {
                part.end = part.end.max(next.end);
            }
            adjoins
        });
        if files.len() >= limits::FILES_SEEN_MAX {
            files.pop_front();
        }
        files.push_back((path.to_owned(), SeenFile { version, hash, parts }));
    }

    /// Returns what the model knows of a file in this version with this content; `None` if it is
    /// too long.
    pub fn knowledge(
        &self,
        path: &Path,
        version: FileVersion,
        content: Option<&[u8]>,
    ) -> Knowledge {
        let files = mutex::lock(&self.0);
        let Some((_, file)) = files.iter().find(|(known, _)| known == path) else {
            return Knowledge::Unknown;
        };
        let first = file.parts.first().filter(|part| part.start == 0).map_or(0, |part| part.end);
        match file.had(version, content.map(hash)) {
            false => Knowledge::Outdated,
            true if first < version.length => Knowledge::Part(first),
            true => Knowledge::Current,
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
        let version = FileVersion::default();
        let path = |number: usize| PathBuf::from(format!("/{number}"));
        for number in 0..=limits::FILES_SEEN_MAX {
            files.record(&path(number), version, Some(b"x"), 0..1);
        }
        let known = |number, content: &[u8]| files.knowledge(&path(number), version, Some(content));
        assert_eq!(known(0, b"x"), Knowledge::Unknown);
        assert_eq!(known(1, b"x"), Knowledge::Current);
        assert_eq!(known(1, b"y"), Knowledge::Outdated);
        // A file that is too long to be compared is the same in the same version.
        files.record(&path(1), version, None, 0..1);
        assert_eq!(files.knowledge(&path(1), version, None), Knowledge::Current);
        let newer = version_of_length(1);
        assert_eq!(files.knowledge(&path(1), newer, None), Knowledge::Outdated);
    }

    fn version_of_length(length: u64) -> FileVersion {
        let mut version = FileVersion::default();
        version.length = length;
        version
    }

    #[test]
    fn parts_that_adjoin_are_one() {
        let files = SeenFiles::default();
        let version = version_of_length(10);
        for (part, knowledge) in [
            (8..10, Knowledge::Part(0)),
            (0..3, Knowledge::Part(3)),
            (4..6, Knowledge::Part(3)),
            (2..4, Knowledge::Part(6)),
            (1..2, Knowledge::Part(6)),
            (5..8, Knowledge::Current),
        ] {
            files.record(Path::new("/a"), version, Some(b"x"), part);
            assert_eq!(files.knowledge(Path::new("/a"), version, Some(b"x")), knowledge);
        }
        // Of another content, nothing was seen before.
        files.record(Path::new("/a"), version, Some(b"y"), 0..3);
        assert_eq!(files.knowledge(Path::new("/a"), version, Some(b"y")), Knowledge::Part(3));
    }

    #[test]
    fn the_sessions_used_last_are_remembered() {
        let sessions = SeenBySession::default();
        let version = FileVersion::default();
        let knows = |id: usize| {
            let files = sessions.of(&id.to_string());
            files.knowledge(Path::new("/a"), version, Some(b"")) == Knowledge::Current
        };
        for id in 0..limits::SESSIONS_SEEN_MAX {
            sessions.of(&id.to_string()).record(Path::new("/a"), version, Some(b""), 0..0);
        }
        assert!(knows(0));
        assert!(!knows(limits::SESSIONS_SEEN_MAX));
        assert!(knows(0) && !knows(1));
    }
}
