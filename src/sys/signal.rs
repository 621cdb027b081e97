//! Signals: blocked before the first thread, then read one at a time. There are no handlers.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::check;

/// What the daemon and some commands wait for.
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

    /// The exit status of a command that it has ended: as the shell would report it.
    pub fn status(self) -> u8 {
        match self {
            Signal::Terminate => 143,
            Signal::Interrupt => 130,
            Signal::Hangup => 129,
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

/// Blocks what [`wait`] reads, and nothing else, in this thread and every thread that it starts
/// from now on. pthread_sigmask(3).
pub fn block() -> io::Result<()> {
    mask(libc::SIG_SETMASK, &WAITED_FOR.map(Signal::number))
}

/// As [`block`]; the signals wait for [`wait`] even if they were ignored so far. For the moment
/// between fork and exec: it allocates nothing and takes no lock.
pub(super) fn hold_back() -> io::Result<()> {
    for signal in WAITED_FOR {
        dispose(signal.number(), libc::SIG_DFL)?;
    }
    block()
}

fn mask(how: libc::c_int, signals: &[libc::c_int]) -> io::Result<()> {
    let set = set_of(signals);
    // SAFETY: `set` is initialised; the old mask is not asked for.
    let result = unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
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

/// Gives every signal its default disposition, as a new program expects, but ignores SIGPIPE and
/// SIGXFSZ: a reader that has gone and a file that may not grow are errors of one write, not the
/// end of the process. sigaction(2).
pub fn reset() -> io::Result<()> {
    // The C library keeps some of the numbers to itself.
    #[cfg(target_os = "linux")]
    let its_own = 32..libc::SIGRTMIN();
    #[cfg(not(target_os = "linux"))]
    let its_own = 0..0;
    for number in NUMBERS {
        // The handlers of SIGSEGV and SIGBUS are std's own: they report a stack overflow.
        if number == libc::SIGSEGV || number == libc::SIGBUS || its_own.contains(&number) {
            continue;
        }
        let ignored = number == libc::SIGPIPE || number == libc::SIGXFSZ;
        dispose(number, if ignored { libc::SIG_IGN } else { libc::SIG_DFL })?;
    }
    Ok(())
}

fn unblock_all() -> io::Result<()> {
    let none = set_of(&[]);
    // SAFETY: `none` is initialised; the old mask is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) })
        .map(drop)
}

/// Gives every signal that can have one this standard disposition, and unblocks all. For the moment
/// between fork and exec: it allocates nothing and takes no lock.
pub(super) fn begin_with(disposition: libc::sighandler_t) -> io::Result<()> {
    for number in NUMBERS {
        dispose(number, disposition)?;
    }
    unblock_all()
}

/// The numbers that signals have.
#[cfg(target_os = "linux")]
const NUMBERS: std::ops::RangeInclusive<libc::c_int> = 1..=64;
#[cfg(not(target_os = "linux"))]
const NUMBERS: std::ops::RangeInclusive<libc::c_int> = 1..=31;

/// Gives a signal this standard disposition; the two that can have no other are left as they are.
/// It allocates nothing and takes no lock. sigaction(2).
fn dispose(number: libc::c_int, disposition: libc::sighandler_t) -> io::Result<()> {
    if number == libc::SIGKILL || number == libc::SIGSTOP {
        return Ok(());
    }
    match set_disposition(number, disposition) {
        // An emulated system may have fewer.
        Err(error) if number > 31 && error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    }
}

/// The C library refuses the numbers that it keeps to itself, and anybody can send those; so the
/// kernel is asked where it is known how it wants to be.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn set_disposition(number: libc::c_int, disposition: libc::sighandler_t) -> io::Result<()> {
    // The disposition first, then flags, on x86-64 a function, and the mask: none of them is set.
    let action = [disposition, 0, 0, 0];
    // Arguments of a call with any number of them are as wide as a register.
    let (number, none) = (libc::c_long::from(number), std::ptr::null_mut::<libc::c_void>());
    // The bytes of a mask.
    let length: libc::size_t = 8;
    // SAFETY: the kernel reads no more than `action` holds, and writes nothing; a standard
    // disposition runs none of our code.
    let result =
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, action.as_ptr(), none, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn set_disposition(number: libc::c_int, disposition: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: a standard disposition runs none of our code.
    let before = unsafe { libc::signal(number, disposition) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ctrl-C and what else asks a command to end, as something to be waited for, from when this is
/// made until it is dropped.
///
/// A signal that the process ignores stays ignored. signalfd(2), kqueue(2).
pub struct Interrupts {
    queue: OwnedFd,
    /// Those that were not ignored, and are to be as before in the end.
    taken: Vec<libc::c_int>,
}

impl Interrupts {
    /// From now on no signal that can be waited for ends this process.
    pub fn take() -> io::Result<Interrupts> {
        let mut taken = Vec::new();
        for signal in WAITED_FOR.map(Signal::number) {
            if !is_ignored(signal)? {
                taken.push(signal);
            }
        }
        let interrupts = Interrupts { queue: queue(&taken)?, taken };
        interrupts.hold()?;
        Ok(interrupts)
    }

    /// Until [`Interrupts::hold`], they end the process as if this were not here.
    pub fn let_through(&self) -> io::Result<()> {
        release(&self.taken)
    }

    /// From now on they are to be waited for again.
    pub fn hold(&self) -> io::Result<()> {
        hold(&self.taken)
    }

    /// The next one that has come, if there is one. Does not wait.
    pub fn seen(&self) -> io::Result<Option<Signal>> {
        let [ready] = super::wait_readable([self.queue.as_fd()], Some(Duration::ZERO))?;
        if !ready {
            return Ok(None);
        }
        let number = take_out(&self.queue)?;
        Ok(WAITED_FOR.into_iter().find(|signal| Some(signal.number()) == number))
    }
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // One that nobody has asked for is forgotten, not acted upon late.
        while let Ok(Some(_)) = self.seen() {}
        drop(release(&self.taken));
    }
}

fn is_ignored(signal: libc::c_int) -> io::Result<bool> {
    // SAFETY: sigaction is a C struct for which all zeroes is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: no new action is given, and `action` is a live one to be filled.
    check(unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) })?;
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

#[cfg(target_os = "linux")]
fn queue(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    let set = set_of(signals);
    // SAFETY: `set` is initialised; -1 asks for a new descriptor.
    let raw = check(unsafe {
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Takes one out, and says which it was.
#[cfg(target_os = "linux")]
fn take_out(queue: &OwnedFd) -> io::Result<Option<libc::c_int>> {
    // SAFETY: signalfd_siginfo is a C struct of integers, for which all zeroes is a valid value.
    let mut told: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let length = size_of::<libc::signalfd_siginfo>();
    // SAFETY: `told` is writable for the length passed; the descriptor does not block.
    let got = unsafe { libc::read(queue.as_raw_fd(), (&raw mut told).cast(), length) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(libc::c_int::try_from(told.ssi_signo).ok())
}

/// Blocked signals go to the queue.
#[cfg(target_os = "linux")]
fn hold(signals: &[libc::c_int]) -> io::Result<()> {
    mask(libc::SIG_BLOCK, signals)
}

#[cfg(target_os = "linux")]
fn release(signals: &[libc::c_int]) -> io::Result<()> {
    mask(libc::SIG_UNBLOCK, signals)
}

#[cfg(not(target_os = "linux"))]
fn queue(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    // SAFETY: kqueue takes nothing.
    let raw = check(unsafe { libc::kqueue() })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let queue = unsafe { OwnedFd::from_raw_fd(raw) };
    for signal in signals {
        let event = libc::kevent {
            ident: libc::uintptr_t::try_from(*signal).unwrap_or(0),
            filter: libc::EVFILT_SIGNAL,
            flags: libc::EV_ADD | libc::EV_CLEAR,
            fflags: 0,
            data: 0,
            udata: std::ptr::null_mut(),
        };
        let (raw, none) = (queue.as_raw_fd(), std::ptr::null_mut());
        // SAFETY: one event in, room for none out, no timeout.
        check(unsafe { libc::kevent(raw, &raw const event, 1, none, 0, std::ptr::null()) })?;
    }
    Ok(queue)
}

/// Takes one out, and says which it was.
#[cfg(not(target_os = "linux"))]
fn take_out(queue: &OwnedFd) -> io::Result<Option<libc::c_int>> {
    // SAFETY: kevent is a C struct for which all zeroes is a valid value.
    let mut event: libc::kevent = unsafe { std::mem::zeroed() };
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let (raw, none) = (queue.as_raw_fd(), std::ptr::null());
    // SAFETY: room for one event out; the timeout is a live timespec.
    let count = check(unsafe { libc::kevent(raw, none, 0, &raw mut event, 1, &raw const now) })?;
    Ok(if count == 1 { libc::c_int::try_from(event.ident).ok() } else { None })
}

/// Ignored signals still go to the queue; blocked ones would wait for their release as well.
#[cfg(not(target_os = "linux"))]
fn hold(signals: &[libc::c_int]) -> io::Result<()> {
    signals.iter().try_for_each(|signal| dispose(*signal, libc::SIG_IGN))
}

#[cfg(not(target_os = "linux"))]
fn release(signals: &[libc::c_int]) -> io::Result<()> {
    signals.iter().try_for_each(|signal| dispose(*signal, libc::SIG_DFL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_program_begins_with_no_signal_ignored() {
        use std::os::unix::process::CommandExt;
        for (disposition, ignored) in
            [(libc::SIG_IGN, "fffffffffffbfeff"), (libc::SIG_DFL, "0000000000000000")]
        {
            let mut command = std::process::Command::new("cat");
            command.arg("/proc/self/status");
            // SAFETY: it makes system calls, and no allocation.
            unsafe { command.pre_exec(move || begin_with(disposition)) };
            let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
            let line = said.lines().find_map(|line| line.strip_prefix("SigIgn:\t"));
            assert_eq!(line, Some(ignored));
        }
    }

    #[test]
    fn a_number_that_no_signal_has_is_refused() {
        assert!(dispose(-1, libc::SIG_DFL).is_err());
        assert!(dispose(0, libc::SIG_DFL).is_err());
    }
}
