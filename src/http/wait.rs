//! Waiting for a file with a limit, and with what interrupts it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::sys::{self, Interest};

/// Waits for `file`; fails with `Interrupted` if `wake` is readable.
pub fn wait(
    file: &impl AsFd,
    interest: Interest,
    limit: Duration,
    wake: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let file = (file.as_fd(), interest);
    let ready = match wake {
        Some(wake) => sys::wait_any(&[file, (wake, Interest::Read)], Some(limit))?,
        None => sys::wait_any(&[file], Some(limit))?,
    };
    match ready.as_slice() {
        [_, true] => Err(io::ErrorKind::Interrupted.into()),
        [true, ..] => Ok(()),
        _ => Err(io::ErrorKind::TimedOut.into()),
    }
}
