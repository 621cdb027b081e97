//! Signals. They are blocked before the first thread starts, and read one at a time. There are no
//! handlers, except the ones of the line editor while it reads.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use super::check;

/// A signal that the daemon and some commands wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGINT: Ctrl-C in the foreground.
    Interrupt,
    /// SIGHUP: write `state.json` again and reopen the log, or, in the foreground, exit.
    Hangup,
}

/// What a signal asks a command to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To end what it does.
    End(Signal),
    /// To stop until it is continued: SIGTSTP, Ctrl-Z.
    Stop,
}

impl Signal {
    pub fn number(self) -> libc::c_int {
        match self {
            Signal::Terminate => libc::SIGTERM,
            Signal::Interrupt => libc::SIGINT,
            Signal::Hangup => libc::SIGHUP,
        }
    }

    /// Returns the exit status that a shell reports for a command that the signal ended.
    pub fn status(self) -> u8 {
        match self {
            Signal::Terminate => 143,
            Signal::Interrupt => 130,
            Signal::Hangup => 129,
        }
    }
}

const WAITED_FOR: [Signal; 3] = [Signal::Terminate, Signal::Interrupt, Signal::Hangup];

pub(super) fn set_of(signals: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain bits; sigemptyset below gives it its value.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a live sigset_t.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in signals {
        // SAFETY: `set` is initialized and the numbers are valid signals.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    set
}

/// Blocks exactly the signals that [`wait`] reads, in this thread and in those that it starts from
/// now on. pthread_sigmask(3).
pub fn block() -> io::Result<()> {
    mask(libc::SIG_SETMASK, &WAITED_FOR.map(Signal::number))
}

/// Does the same, and gives these signals their default dispositions: an ignored one would be lost.
/// For use between fork and exec: allocates nothing and takes no lock.
pub(super) fn block_for_exec() -> io::Result<()> {
    for signal in WAITED_FOR {
        set_disposition(signal.number(), libc::SIG_DFL)?;
    }
    block()
}

fn mask(how: libc::c_int, signals: &[libc::c_int]) -> io::Result<()> {
    let set = set_of(signals);
    // SAFETY: `set` is initialized; the old mask is not asked for.
    let result = unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// Waits for a signal that [`block`] blocked. sigwait(3).
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

/// Ignores SIGXFSZ: a file size limit makes a write fail and does not end the process.
pub fn ignore_file_size_limit() {
    // SAFETY: a standard disposition runs none of our code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// The signals that report a stack overflow.
pub(super) const FAULTS: [libc::c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// Gives SIGSEGV and SIGBUS their default disposition if `memory` has them ignored, so that no
/// child inherits that.
pub fn restore_faults() {
    #[cfg(target_os = "linux")]
    for signal in FAULTS {
        // SAFETY: a standard disposition runs none of our code.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Gives every signal its default disposition, except that SIGPIPE and SIGXFSZ are ignored: a
/// closed pipe and a file size limit make a write fail and do not end the process. sigaction(2).
pub fn reset() -> io::Result<()> {
    // The C library reserves some of the numbers.
    #[cfg(target_os = "linux")]
    let reserved = 32..libc::SIGRTMIN();
    #[cfg(not(target_os = "linux"))]
    let reserved = 0..0;
    for number in NUMBERS {
        // `std` may have handlers for those, which report a stack overflow.
        if FAULTS.contains(&number) || reserved.contains(&number) {
            continue;
        }
        let ignored = number == libc::SIGPIPE || number == libc::SIGXFSZ;
        set_disposition(number, if ignored { libc::SIG_IGN } else { libc::SIG_DFL })?;
    }
    Ok(())
}

/// Unblocks every signal. For use between fork and exec: allocates nothing and takes no lock.
pub(super) fn unblock_all() -> io::Result<()> {
    let none = set_of(&[]);
    // SAFETY: `none` is initialized; the old mask is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) })
        .map(drop)
}

/// Gives every signal this disposition, and unblocks all. For use between fork and exec: allocates
/// nothing and takes no lock.
pub(super) fn reset_for_exec(disposition: libc::sighandler_t) -> io::Result<()> {
    for number in NUMBERS {
        set_disposition(number, disposition)?;
    }
    unblock_all()
}

/// The numbers of the signals.
#[cfg(target_os = "linux")]
const NUMBERS: std::ops::RangeInclusive<libc::c_int> = 1..=64;
#[cfg(not(target_os = "linux"))]
const NUMBERS: std::ops::RangeInclusive<libc::c_int> = 1..=31;

/// Sets the disposition of a signal, except of SIGKILL and SIGSTOP, which have only one. Allocates
/// nothing and takes no lock. sigaction(2).
fn set_disposition(number: libc::c_int, disposition: libc::sighandler_t) -> io::Result<()> {
    if number == libc::SIGKILL || number == libc::SIGSTOP {
        return Ok(());
    }
    match sigaction(number, disposition) {
        // An emulated system may have fewer signals.
        Err(error) if number > 31 && error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    }
}

/// Calls the kernel where its interface is known: the C library refuses the numbers that it
/// reserves, but any process can send those signals.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn sigaction(number: libc::c_int, disposition: libc::sighandler_t) -> io::Result<()> {
    // The kernel's struct: disposition, flags, on x86-64 a restorer, and the mask.
    let action = [disposition, 0, 0, 0];
    // Variadic arguments must have the width of a register.
    let (number, none) = (libc::c_long::from(number), std::ptr::null_mut::<libc::c_void>());
    // The size of the mask in bytes.
    let length: libc::size_t = 8;
    // SAFETY: the kernel reads no more than `action` holds, and writes nothing; a standard
    // disposition runs none of our code.
    let result =
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, action.as_ptr(), none, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn sigaction(number: libc::c_int, disposition: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: a standard disposition runs none of our code.
    let before = unsafe { libc::signal(number, disposition) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A descriptor that is readable when Ctrl-C or another signal asks a command to end, until this is
/// dropped.
///
/// A signal that the process ignores stays ignored. signalfd(2), kqueue(2).
pub struct Interrupts {
    queue: OwnedFd,
    /// The signals that were not ignored.
    taken: Vec<libc::c_int>,
}

impl Interrupts {
    /// Blocks the signals, so that they no longer end this process; with `stop`, also the one of
    /// Ctrl-Z, so that it does not stop it.
    pub fn take(stop: bool) -> io::Result<Interrupts> {
        let mut taken = Vec::new();
        let stop = stop.then_some(libc::SIGTSTP);
        for signal in WAITED_FOR.map(Signal::number).into_iter().chain(stop) {
            if !is_ignored(signal)? {
                taken.push(signal);
            }
        }
        let interrupts = Interrupts { queue: queue(&taken)?, taken };
        interrupts.block()?;
        Ok(interrupts)
    }

    /// Unblocks the signals until [`Interrupts::block`]: they end the process as usual.
    pub fn unblock(&self) -> io::Result<()> {
        release(&self.taken)
    }

    /// Blocks the signals again.
    pub fn block(&self) -> io::Result<()> {
        hold(&self.taken)
    }

    /// Returns the next signal that has arrived, without waiting.
    pub fn pending(&self) -> io::Result<Option<Asked>> {
        let [ready] = super::wait_readable([self.queue.as_fd()], Some(Duration::ZERO))?;
        if !ready {
            return Ok(None);
        }
        let number = dequeue(&self.queue)?;
        if number == Some(libc::SIGTSTP) {
            return Ok(Some(Asked::Stop));
        }
        let signal = WAITED_FOR.into_iter().find(|signal| Some(signal.number()) == number);
        Ok(signal.map(Asked::End))
    }

    /// Runs `read`, which waits for the user in this thread with a handler for SIGINT that makes it
    /// return. Every other signal but SIGTSTP, which stops the process as usual, has the same
    /// effect and stays pending.
    ///
    /// If `read` does not return within `limit` after a signal, because no one reads its output,
    /// calls `give_up`; then the signal ends the process.
    pub fn while_reading<T>(
        &self,
        limit: Duration,
        give_up: impl FnOnce() + Send,
        read: impl FnOnce() -> T,
    ) -> io::Result<T> {
        let (done, end) = io::pipe()?;
        let reader = ThreadHandle::current();
        // Without SIGTSTP, which is pending for a moment before it stops the process.
        let ends = self.taken.iter().copied().filter(|signal| *signal != libc::SIGTSTP);
        let arrivals = queue(&ends.collect::<Vec<_>>())?;
        let watch = move || {
            // An error ends the watch: `read` still returns for every key.
            let ready = super::wait_readable([arrivals.as_fd(), done.as_fd()], None);
            if !matches!(ready, Ok([true, false])) {
                return;
            }
            let deadline = Instant::now() + limit;
            while Instant::now() < deadline {
                // Again, because it has no effect where `read` is about to wait.
                reader.interrupt();
                let Ok([false]) = super::wait_readable([done.as_fd()], Some(WAKE_EVERY)) else {
                    return;
                };
            }
            give_up();
            drop(release(&self.taken));
        };
        thread::scope(|scope| {
            thread::Builder::new().name("signals".to_owned()).spawn_scoped(scope, watch)?;
            // Between the end of the handler and that of the watch, it must do nothing.
            set_disposition(libc::SIGINT, libc::SIG_IGN)?;
            mask(libc::SIG_UNBLOCK, &[libc::SIGINT])?;
            release(self.taken(libc::SIGTSTP).as_slice())?;
            let result = read();
            drop(end);
            Ok(result)
        })
        .and_then(|result| {
            hold(self.taken(libc::SIGTSTP).as_slice())?;
            hold(self.taken(libc::SIGINT).as_slice())?;
            // Where held signals are ignored ones, it stays so.
            if cfg!(target_os = "linux") && self.taken(libc::SIGINT).is_some() {
                set_disposition(libc::SIGINT, libc::SIG_DFL)?;
            }
            Ok(result)
        })
    }

    /// Runs `call`, during which another process has the terminal: Ctrl-Z stops this one, too.
    pub fn while_lent<T>(&self, call: impl FnOnce() -> T) -> io::Result<T> {
        let stop = self.taken(libc::SIGTSTP);
        release(stop.as_slice())?;
        let result = call();
        hold(stop.as_slice())?;
        Ok(result)
    }

    /// Returns `signal` if it was taken.
    fn taken(&self, signal: libc::c_int) -> Option<libc::c_int> {
        self.taken.contains(&signal).then_some(signal)
    }
}

/// How often a thread that waits for the user is woken to see a signal.
const WAKE_EVERY: Duration = Duration::from_millis(50);

/// Stops this process until it is continued. signal(7).
pub fn stop() -> io::Result<()> {
    // SAFETY: the call takes a constant.
    check(unsafe { libc::raise(libc::SIGSTOP) }).map(drop)
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // Discarded: they would end the process now, although what they were meant for has ended.
        while let Ok(Some(_)) = self.pending() {}
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
    // SAFETY: `set` is initialized; -1 asks for a new descriptor.
    let raw = check(unsafe {
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    })?;
    // SAFETY: the descriptor is new, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Reads the number of one signal.
#[cfg(target_os = "linux")]
fn dequeue(queue: &OwnedFd) -> io::Result<Option<libc::c_int>> {
    // SAFETY: signalfd_siginfo is a C struct of integers, for which all zeroes is a valid value.
    let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let length = size_of::<libc::signalfd_siginfo>();
    // SAFETY: `info` is writable for the length passed; the descriptor does not block.
    let got = unsafe { libc::read(queue.as_raw_fd(), (&raw mut info).cast(), length) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(libc::c_int::try_from(info.ssi_signo).ok())
}

/// Blocks the signals: a signalfd reads blocked ones.
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
    // SAFETY: the descriptor is new, so nothing else owns it.
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

/// Reads the number of one signal.
#[cfg(not(target_os = "linux"))]
fn dequeue(queue: &OwnedFd) -> io::Result<Option<libc::c_int>> {
    // SAFETY: kevent is a C struct for which all zeroes is a valid value.
    let mut event: libc::kevent = unsafe { std::mem::zeroed() };
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let (raw, none) = (queue.as_raw_fd(), std::ptr::null());
    // SAFETY: room for one event out; the timeout is a live timespec.
    let count = check(unsafe { libc::kevent(raw, none, 0, &raw mut event, 1, &raw const now) })?;
    Ok(if count == 1 { libc::c_int::try_from(event.ident).ok() } else { None })
}

/// Ignores the signals: a kqueue reports ignored ones, too. Blocked ones would still be pending
/// afterward.
#[cfg(not(target_os = "linux"))]
fn hold(signals: &[libc::c_int]) -> io::Result<()> {
    signals.iter().try_for_each(|signal| set_disposition(*signal, libc::SIG_IGN))
}

#[cfg(not(target_os = "linux"))]
fn release(signals: &[libc::c_int]) -> io::Result<()> {
    signals.iter().try_for_each(|signal| set_disposition(*signal, libc::SIG_DFL))
}

/// A thread that waits for the one that has its handle.
struct ThreadHandle(libc::pthread_t);

// SAFETY: in some C libraries it is an address, but here nothing reads what is there.
unsafe impl Send for ThreadHandle {}

impl ThreadHandle {
    fn current() -> ThreadHandle {
        // SAFETY: the call takes nothing and cannot fail.
        ThreadHandle(unsafe { libc::pthread_self() })
    }

    /// Sends SIGINT to the thread. pthread_kill(3).
    fn interrupt(&self) {
        // SAFETY: the thread waits for this one, so it lives.
        unsafe { libc::pthread_kill(self.0, libc::SIGINT) };
    }
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
            unsafe { command.pre_exec(move || reset_for_exec(disposition)) };
            let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
            let line = said.lines().find_map(|line| line.strip_prefix("SigIgn:\t"));
            assert_eq!(line, Some(ignored));
        }
    }

    #[test]
    fn a_number_that_no_signal_has_is_refused() {
        assert!(set_disposition(-1, libc::SIG_DFL).is_err());
        assert!(set_disposition(0, libc::SIG_DFL).is_err());
    }
}
