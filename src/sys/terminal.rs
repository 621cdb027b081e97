//! Terminals: their modes, their size, and what was typed and not read yet.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// The modes of a terminal. termios(3).
#[derive(Clone)]
pub struct TerminalModes(libc::termios);

impl TerminalModes {
    /// Reads the modes of `terminal`.
    pub fn of(terminal: BorrowedFd<'_>) -> io::Result<TerminalModes> {
        // SAFETY: termios is a C struct of integers, for which all zeroes is a valid value.
        let mut modes: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor lives, and `modes` is a live termios.
        check(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut modes) })?;
        Ok(TerminalModes(modes))
    }

    /// Gives the terminal these modes.
    pub fn apply(&self, terminal: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: the descriptor lives, and the termios is initialized.
        check(unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const self.0) })
            .map(drop)
    }

    /// Returns the same modes, except that what is typed is not shown and is available at once.
    /// Ctrl-C and Ctrl-Z still send their signals; Ctrl-\ does not, since it would end the process
    /// with these modes.
    pub fn without_echo(&self) -> TerminalModes {
        let mut modes = self.0;
        modes.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ECHONL | libc::IEXTEN);
        // A signal discards nothing of it.
        modes.c_lflag |= libc::NOFLSH;
        modes.c_iflag &= !libc::IXON;
        // One byte is enough for a read to return.
        for (index, value) in [(libc::VMIN, 1), (libc::VTIME, 0), (libc::VQUIT, DISABLED)] {
            if let Some(place) = modes.c_cc.get_mut(index) {
                *place = value;
            }
        }
        TerminalModes(modes)
    }
}

/// The value of a control character that no key has: `_POSIX_VDISABLE`.
#[cfg(target_os = "linux")]
const DISABLED: libc::cc_t = 0;
#[cfg(not(target_os = "linux"))]
const DISABLED: libc::cc_t = 0xff;

/// Opens the terminal that controls this process, for reading; `None` if there is none, or this
/// process is in the background. tty(4), tcgetpgrp(3).
pub fn controlling() -> Option<File> {
    let terminal = File::open("/dev/tty").ok()?;
    // SAFETY: the descriptor is open during the call, which only reads.
    let foreground = unsafe { libc::tcgetpgrp(terminal.as_raw_fd()) };
    // SAFETY: the call has no preconditions.
    let own = unsafe { libc::getpgrp() };
    (foreground == own).then_some(terminal)
}

/// Returns the number of columns of a terminal; `None` if it is unknown.
pub fn columns(terminal: BorrowedFd<'_>) -> Option<usize> {
    size(terminal).map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Returns the number of rows of a terminal; `None` if it is unknown.
pub fn rows(terminal: BorrowedFd<'_>) -> Option<usize> {
    size(terminal).map(|size| usize::from(size.ws_row)).filter(|rows| *rows > 0)
}

fn size(terminal: BorrowedFd<'_>) -> Option<libc::winsize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor lives, and TIOCGWINSZ writes a winsize, which `size` is.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }).ok()?;
    Some(size)
}

/// Returns the number of bytes that were typed and can be read. ioctl_tty(2).
pub fn typed_bytes(terminal: BorrowedFd<'_>) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: the descriptor lives, and FIONREAD writes an int, which `count` is.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    check(result).map_or(0, |_| usize::try_from(count).unwrap_or(0))
}
