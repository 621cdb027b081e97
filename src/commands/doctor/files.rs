//! Who may use the files of opta.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Fail, Finding, Pass, quoted};
use crate::error::reason;
use crate::paths::Paths;
use crate::sys;

/// What holds secrets belongs to this user, and nobody else reads it.
pub fn check(paths: &Paths) -> Finding {
    // The settings may be elsewhere, behind a link.
    let root = paths.root().canonicalize().unwrap_or_else(|_| paths.root().to_owned());
    let private: [(PathBuf, u32); 8] = [
        (root, 0o755),
        (paths.daemon(), 0o700),
        (paths.sessions(), 0o700),
        (paths.state(), 0o600),
        (paths.pid(), 0o600),
        (paths.start_lock(), 0o600),
        (paths.crashes(), 0o600),
        (paths.log(), 0o600),
    ];
    let mut looked = 0;
    for (path, mode) in &private {
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            found => looked += usize::from(found.is_ok()),
        }
        if let Some(finding) = not_private(paths, path, *mode) {
            return finding;
        }
    }
    match looked {
        0 => Pass("nothing is there yet".to_owned()),
        _ => Pass("private, and this user's own".to_owned()),
    }
}

/// What is wrong with who may use a file or, by its `mode`, a directory; nothing if it has gone.
pub fn not_private(paths: &Paths, path: &Path, mode: u32) -> Option<Finding> {
    let shown = paths.display(path);
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            let message = format!("{shown}: {}", reason(&error));
            return Some(Fail(message, format!("ls -ld {}", quoted(path))));
        }
    };
    let directory = mode & 0o100 != 0;
    if found.is_dir() != directory || found.is_file() == directory {
        let what = if directory { "directory" } else { "regular file" };
        return Some(Fail(
            format!("{shown} is no {what}"),
            format!("mv {0} {0}.old", quoted(path)),
        ));
    }
    if found.uid() != sys::effective_user() {
        let message = format!("{shown} belongs to another user");
        return Some(Fail(message, owned(paths, path, found.uid())));
    }
    if !directory && found.nlink() > 1 {
        // Which of its names is the one too many, only the user can tell.
        let fix = format!("find {} -xdev -samefile {}", quoted(paths.root()), quoted(path));
        return Some(Fail(format!("{shown} has a second name (a hard link)"), fix));
    }
    let others = found.mode() & 0o777 & !mode;
    (others != 0).then(|| {
        let message = format!("{shown} has mode {:04o}, not {mode:04o}", found.mode() & 0o7777);
        Fail(message, format!("chmod {mode:o} {}", quoted(path)))
    })
}

/// What mends that a path of ours belongs to another user.
fn owned(paths: &Paths, path: &Path, owner: u32) -> String {
    let of_root = |path: &Path| path.metadata().is_ok_and(|found| found.uid() == 0);
    let roots_own = of_root(paths.root()) || paths.root().parent().is_some_and(of_root);
    match sys::effective_user() {
        // Root would take it away from its owner.
        0 if !roots_own => format!("sudo -u '#{owner}' opta doctor"),
        0 => format!("chown -R 0 {}", quoted(path)),
        _ => format!("sudo chown -R \"$(id -u)\" {}", quoted(path)),
    }
}
