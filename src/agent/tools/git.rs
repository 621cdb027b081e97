//! What the files of a git repository say without git: running it in a directory of unknown origin
//! could run any command that the repository configures. gitrepository-layout(5)

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::sys;
use crate::text::{escaped, truncated};

/// More of a file of the repository is not read.
const FILE_BYTES_MAX: u64 = 4096;
/// Characters of a name or subject that are shown.
const NAME_CHARS_MAX: usize = 100;
/// The files that exist while something is in progress.
const IN_PROGRESS: [(&str, &str); 6] = [
    ("rebase-merge", "a rebase"),
    ("rebase-apply", "a rebase or git am"),
    ("MERGE_HEAD", "a merge"),
    ("CHERRY_PICK_HEAD", "a cherry-pick"),
    ("REVERT_HEAD", "a revert"),
    ("BISECT_LOG", "a bisection"),
];

/// The repository that a directory is in.
pub struct Repository {
    /// The top of its working tree.
    pub top: PathBuf,
    /// `.git`, or in a worktree or a submodule the directory that it names.
    own: PathBuf,
}

impl Repository {
    /// Finds the repository of `directory`, which is a path without links.
    pub fn of(directory: &Path) -> Option<Repository> {
        let top = directory.ancestors().find(|path| path.join(".git").exists())?;
        let git = top.join(".git");
        let own = named_in(&git, "gitdir: ").map_or(git, |own| top.join(own));
        Some(Repository { top: top.to_owned(), own })
    }

    /// Returns the directory that all worktrees share.
    pub fn common(&self) -> PathBuf {
        let common = named_in(&self.own.join("commondir"), "");
        common.map_or(self.own.clone(), |common| self.own.join(common))
    }

    /// Returns whether it belongs to this user or to root. git(1) trusts no other, safe.directory.
    pub fn is_trusted(&self) -> bool {
        let owner = self.top.join(".git").symlink_metadata().map(|found| found.uid());
        owner.is_ok_and(|owner| owner == 0 || owner == sys::effective_user())
    }

    /// Returns the branch, the latest change to it, and what is in progress, in words.
    pub fn state(&self) -> Option<String> {
        let head = beginning(&self.own.join("HEAD"))?;
        let head = match head.trim_end().strip_prefix("ref: ") {
            Some(reference) => {
                let name = reference.strip_prefix("refs/heads/").unwrap_or(reference);
                format!("branch {}", shown(name))
            }
            None => format!("no branch, at {}", shown(head.get(..12)?)),
        };
        let latest = latest_change(&self.own.join("logs/HEAD"));
        let latest = latest.map_or(String::new(), |latest| format!(", latest: {}", shown(&latest)));
        let progress = IN_PROGRESS.iter().find(|(name, _)| self.own.join(name).exists());
        let progress =
            progress.map_or(String::new(), |(_, what)| format!("; {what} is in progress"));
        Some(format!("{head}{latest}{progress}"))
    }
}

fn shown(text: &str) -> String {
    truncated(&escaped(text), NAME_CHARS_MAX).into_owned()
}

/// Opens a regular file for reading. Of a pipe, opening could wait for the other end.
pub fn open_regular(path: &Path) -> Option<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    file.metadata().is_ok_and(|found| found.is_file()).then_some(file)
}

fn beginning(path: &Path) -> Option<String> {
    let mut text = String::new();
    open_regular(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Returns the path that a file names after `key`.
fn named_in(file: &Path, key: &str) -> Option<PathBuf> {
    let text = beginning(file)?;
    Some(PathBuf::from(text.strip_prefix(key)?.trim_end()))
}

/// Returns the message of the last entry of a reflog.
fn latest_change(log: &Path) -> Option<String> {
    let mut file = open_regular(log)?;
    let start = file.metadata().ok()?.len().saturating_sub(FILE_BYTES_MAX);
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let (_, message) = text.lines().last()?.split_once('\t')?;
    Some(message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::scratch::Scratch;
    use std::fs;
    use std::process::Command;
    use std::sync::mpsc;
    use std::thread::Builder;
    use std::time::Duration;

    #[test]
    fn the_state_of_a_repository_is_read_from_its_files() {
        let scratch = Scratch::new();
        assert!(Repository::of(&scratch.path().join("a")).is_none());
        scratch.put(".git/HEAD", "ref: refs/heads/a/b\n");
        scratch.put("sub/deep/x", "");
        let state = |below: &str| Repository::of(&scratch.path().join(below))?.state();
        assert_eq!(state("sub/deep").unwrap(), "branch a/b");
        scratch.put(
            ".git/logs/HEAD",
            "0 1 A <a> 1 +0\tcommit (initial): one\n1 2 A <a> 2 +0\tcommit: \u{1b}two\n",
        );
        scratch.put(".git/MERGE_HEAD", "1\n");
        let wanted = "branch a/b, latest: commit: \\u{1b}two; a merge is in progress";
        assert_eq!(state(".").unwrap(), wanted);
        scratch.put("sub/.git", "gitdir: ../.git/worktrees/sub\n");
        scratch.put(".git/worktrees/sub/HEAD", "0123456789abcdef0123\n");
        scratch.put(".git/worktrees/sub/commondir", "../..\n");
        assert_eq!(state("sub").unwrap(), "no branch, at 0123456789ab");
        let worktree = Repository::of(&scratch.path().join("sub")).unwrap();
        assert!(worktree.common().join("HEAD").metadata().unwrap().len() > 16);
        assert!(worktree.is_trusted());
    }

    #[test]
    fn a_pipe_in_a_repository_is_not_waited_for() {
        for name in [".git", ".git/HEAD", ".git/logs/HEAD", ".git/info/exclude", ".git/config"] {
            let scratch = Scratch::new();
            let pipe = scratch.path().join(name);
            if name != ".git" {
                scratch.put(".git/HEAD", "ref: refs/heads/main\n");
                scratch.put(".git/logs/x", "");
                scratch.put(".git/info/x", "");
                drop(fs::remove_file(&pipe));
            }
            assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
            let (done, end) = mpsc::channel();
            // Not joined: it would never end.
            let read = move || {
                let state = Repository::of(scratch.path()).and_then(|found| found.state());
                let listed = scratch.run("list_dir", r#"{"recursive":true}"#);
                done.send((state.is_some(), listed.is_ok()))
            };
            drop(Builder::new().spawn(read).unwrap());
            let (has_state, listed) = end.recv_timeout(Duration::from_secs(20)).expect(name);
            assert_eq!(
                (has_state, listed),
                (!matches!(name, ".git" | ".git/HEAD"), true),
                "{name}"
            );
        }
    }
}
