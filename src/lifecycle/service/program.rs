//! The program that the service is to run: this one, by the name under which the user calls it.
//!
//! Not by what that name leads to: a package or version manager changes the link at every upgrade,
//! and the place behind it goes away.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use crate::config;
use crate::error::{At, Error};

/// The absolute path by which this program was called.
pub fn path() -> Result<PathBuf, Error> {
    let running = std::env::current_exe().at("find", Path::new("opta"))?;
    let running = without_deleted(running);
    let called = std::env::args_os().next().unwrap_or_default();
    let named = as_called(&called, &config::search_path());
    // The name is the caller's to choose: it is believed if it leads to the program that runs.
    let same = |path: &PathBuf| {
        let leads_to = std::fs::canonicalize(path).ok();
        leads_to.is_some() && leads_to == std::fs::canonicalize(&running).ok()
    };
    Ok(named.filter(same).unwrap_or(running))
}

/// Whether the program is in a place from which files go away by themselves.
pub fn temporary(path: &Path) -> bool {
    let passing = ["/tmp", "/var/tmp", "/private/tmp", "/private/var", "/dev/shm"];
    passing.iter().any(|place| path.starts_with(place))
        || path.components().any(|part| part == Component::Normal(OsStr::new("target")))
}

/// Linux marks the program of a running process that has been replaced on disk. proc(5)
fn without_deleted(path: PathBuf) -> PathBuf {
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(before) => PathBuf::from(OsString::from_vec(before.to_vec())),
        None => path,
    }
}

/// What a shell would have run: a name with a slash is a path, any other is looked up.
fn as_called(called: &OsStr, search_path: &OsStr) -> Option<PathBuf> {
    if called.as_bytes().contains(&b'/') {
        return std::path::absolute(called).ok();
    }
    let places = std::env::split_paths(search_path);
    let candidates = places.filter(|place| place.is_absolute()).map(|place| place.join(called));
    candidates.into_iter().find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_and_a_path_is_made_absolute() {
        let called = |name, places| as_called(OsStr::new(name), OsStr::new(places));
        assert_eq!(called("sh", ".:/nowhere:/bin"), Some("/bin/sh".into()));
        assert_eq!(called("no-such-program", "/bin"), None);
        assert_eq!(called("/opt/x/../opta", "/bin"), Some("/opt/x/../opta".into()));
        let here = std::env::current_dir().unwrap();
        assert_eq!(called("./opta", "/bin"), Some(here.join("opta")));
    }

    #[test]
    fn the_mark_of_a_replaced_program_is_no_part_of_its_name() {
        assert_eq!(without_deleted("/bin/opta (deleted)".into()), Path::new("/bin/opta"));
        assert_eq!(without_deleted("/bin/opta".into()), Path::new("/bin/opta"));
    }

    #[test]
    fn places_that_are_swept_are_known() {
        for path in ["/tmp/opta", "/home/u/opta/target/release/opta", "/private/var/folders/x/opta"]
        {
            assert!(temporary(Path::new(path)), "{path}");
        }
        for path in ["/usr/local/bin/opta", "/home/u/targets/opta", "/home/tmp/opta"] {
            assert!(!temporary(Path::new(path)), "{path}");
        }
    }
}
