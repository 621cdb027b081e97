//! Signals: blocked before the first thread, then read one at a time. There are no handlers.

use std::io;

use super::check;

/// What the daemon waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGINT: Ctrl-C in the foreground.
    Interrupt,
    /// SIGHUP: publish `state.json` and open the log again; in the foreground the terminal has
    /// gone.
    Hangup,
}

impl Signal {
    /// The number that the system knows it by.
    pub fn number(self) -> libc::c_int {
        match self {
            Signal::Terminate => libc::SIGTERM,
            Signal::Interrupt => libc::SIGINT,
            Signal::Hangup => libc::SIGHUP,
        }
    }
}

const WAITED_FOR: [Signal; 3] = [Signal::Terminate, Signal::Interrupt, Signal::Hangup];

fn set_of(signals: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain bits; sigemptyset below gives it its value.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a live sigset_t.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in signals {
        // SAFETY: `set` is initialised and the numbers are valid signals.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    set
}

/// Blocks what [`wait`] reads, in this thread and every thread that it starts from now on.
/// pthread_sigmask(3).
pub fn block() -> io::Result<()> {
    let set = set_of(&WAITED_FOR.map(Signal::number));
    // SAFETY: `set` is initialised; the old mask is not asked for.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// Waits for the next of the signals that [`block`] blocked. sigwait(3).
pub fn wait() -> io::Result<Signal> {
    let set = set_of(&WAITED_FOR.map(Signal::number));
    loop {
        let mut number = 0;
        // SAFETY: both pointers are to live values of the right type.
        let result = unsafe { libc::sigwait(&raw const set, &raw mut number) };
        if result == libc::EINTR {
            continue;
        }
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        if let Some(signal) = WAITED_FOR.into_iter().find(|signal| signal.number() == number) {
            return Ok(signal);
        }
    }
}

/// Makes a limit on the size of files the failure of a write, and not the end of the process:
/// SIGXFSZ.
pub fn ignore_file_size_limit() {
    // SAFETY: a standard disposition runs none of our code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Gives every signal its default disposition and unblocks all, as a new program expects, but
/// ignores SIGPIPE and SIGXFSZ: a reader that has gone and a file that may not grow are errors of
/// one write, not the end of the process. sigaction(2).
pub fn reset() -> io::Result<()> {
    for number in 1..32 {
        if number == libc::SIGKILL || number == libc::SIGSTOP {
            continue;
        }
        // The handlers of SIGSEGV and SIGBUS are std's own: they report a stack overflow.
        if number == libc::SIGSEGV || number == libc::SIGBUS {
            continue;
        }
        let ignored = number == libc::SIGPIPE || number == libc::SIGXFSZ;
        let disposition = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: a standard disposition runs none of our code.
        unsafe { libc::signal(number, disposition) };
    }
    let none = set_of(&[]);
    // SAFETY: `none` is initialised; the old mask is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) })
        .map(drop)
}
