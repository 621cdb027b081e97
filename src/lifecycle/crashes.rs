//! The recent crashes of the daemon, within a sliding window. They are on disk because every
//! command that restarts the daemon is a new process.

use nanoserde::{DeJson, SerJson};

use crate::error::Error;
use crate::paths::Paths;
use crate::{disk, json, limits, sys};

/// Times on the boot clock, in milliseconds: the count starts again when the machine does.
#[derive(DeJson, SerJson, Default)]
struct Crashes {
    crashes: Vec<u64>,
}

/// Adds a crash. The caller has the lock or the start lock.
pub fn add(paths: &Paths) -> Result<(), Error> {
    let now = now_millis();
    let mut crashes = within_window(read(paths)?, now);
    crashes.push(now);
    disk::replace(&paths.crashes(), json::text(&Crashes { crashes }).as_bytes())
}

/// Forgets the crashes. The caller has the lock or the start lock.
pub fn clear(paths: &Paths) -> Result<(), Error> {
    disk::remove(&paths.crashes()).map(drop)
}

/// Returns the number of crashes within [`limits::CRASHES_WINDOW`], at most
/// [`limits::CRASHES_MAX`].
pub fn recent(paths: &Paths) -> Result<usize, Error> {
    Ok(within_window(read(paths)?, now_millis()).len())
}

fn read(paths: &Paths) -> Result<Vec<u64>, Error> {
    let path = paths.crashes();
    let Some(mut file) = disk::open_if_exists(&path)? else {
        return Ok(Vec::new());
    };
    let bytes = disk::read_up_to(&mut file, &path, limits::STATE_BYTES_MAX)?.unwrap_or_default();
    // A damaged file does not prevent a start.
    Ok(json::parse::<Crashes>(&bytes).unwrap_or_default().crashes)
}

fn within_window(mut crashes: Vec<u64>, now: u64) -> Vec<u64> {
    let window = u64::try_from(limits::CRASHES_WINDOW.as_millis()).unwrap_or(u64::MAX);
    // Times in the future are from before the machine was restarted.
    crashes.retain(|time| now.checked_sub(*time).is_some_and(|age| age < window));
    // No more are needed to refuse a restart.
    let surplus = crashes.len().saturating_sub(limits::CRASHES_MAX);
    crashes.drain(..surplus);
    crashes
}

fn now_millis() -> u64 {
    u64::try_from(sys::boot_clock().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_slides() {
        let window = 60_000;
        assert_eq!(within_window(vec![0, 1, 2], window), vec![1, 2], "one is exactly a window old");
        assert_eq!(within_window(vec![5], 5), vec![5]);
        assert!(within_window(vec![0, 1, 2], 3 * window).is_empty());
    }

    #[test]
    fn crashes_before_a_reboot_do_not_count() {
        assert_eq!(within_window(vec![900_000, 1_000], 2_000), vec![1_000]);
    }

    #[test]
    fn no_more_crashes_are_kept_than_are_needed_to_refuse_a_restart() {
        assert_eq!(within_window(vec![1, 2, 3, 4, 5], 10), vec![3, 4, 5]);
    }
}
