//! What the first process of a pid namespace must do: reap the processes that lose their parent.
//! pid_namespaces(7).

use std::io;
use std::process::Command;

use super::check;
use super::signal::Signal;

/// Returns whether this process is the first of its pid namespace: whatever is in the namespace
/// ends with it, and no signal from there kills it.
pub fn is_first_process() -> bool {
    std::process::id() == 1
}

/// What the first process is woken for.
pub enum Wakeup {
    /// A child has ended.
    Child,
    /// A process has sent this signal.
    Signal(Signal),
    /// The terminal has sent a signal, to all processes in the foreground.
    Terminal,
}

const FORWARDED: [Signal; 3] = [Signal::Terminate, Signal::Interrupt, Signal::Hangup];

fn awaited() -> libc::sigset_t {
    super::signal::set_of(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
}

/// Blocks the signals that [`wait`] reads, in this thread and in those that it starts from now on.
/// pthread_sigmask(3).
pub fn block() -> io::Result<()> {
    let set = awaited();
    // SAFETY: a standard disposition runs none of our code.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // SAFETY: `set` is initialized; the old mask is not asked for.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// Waits for an event. sigwaitinfo(2).
#[cfg(target_os = "linux")]
pub fn wait() -> io::Result<Wakeup> {
    let set = awaited();
    // SAFETY: siginfo_t is a C struct for which all zeroes is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live values of the right type.
        let number = unsafe { libc::sigwaitinfo(&raw const set, &raw mut info) };
        match check(number) {
            Ok(number) => {
                let signal = FORWARDED.into_iter().find(|signal| signal.number() == number);
                return Ok(match signal {
                    None => Wakeup::Child,
                    // The kernel itself has sent it.
                    Some(_) if info.si_code > 0 => Wakeup::Terminal,
                    Some(signal) => Wakeup::Signal(signal),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// There are no pid namespaces.
#[cfg(not(target_os = "linux"))]
pub fn wait() -> io::Result<Wakeup> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Reaps one child that has ended: its pid, and its exit status as a shell reports it. `None` if
/// there is none. waitpid(2).
pub fn reap() -> Option<(u32, u8)> {
    let mut status = 0;
    // SAFETY: `status` is a live integer.
    let pid = check(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) }).ok()?;
    let code = match libc::WIFSIGNALED(status) {
        true => 128 + libc::WTERMSIG(status),
        false => libc::WEXITSTATUS(status),
    };
    let pid = u32::try_from(pid).ok().filter(|pid| *pid != 0)?;
    Some((pid, u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Starts this program again, with the same arguments. Returns its pid.
pub fn start_again() -> io::Result<u32> {
    let program = super::spawn::program()?;
    Ok(Command::new(program).args(std::env::args_os().skip(1)).spawn()?.id())
}

/// Sends a signal to a child that was not reaped yet. kill(2).
pub fn forward(child: u32, signal: Signal) -> io::Result<()> {
    let child = libc::pid_t::try_from(child).map_err(io::Error::other)?;
    // SAFETY: kill touches no memory.
    check(unsafe { libc::kill(child, signal.number()) }).map(drop)
}
