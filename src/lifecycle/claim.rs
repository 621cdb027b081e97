//! Claiming the role of the daemon: the lock first, then the port, both in the process that the
//! user started, so that what fails for the user's reasons fails on the user's terminal.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use crate::client::{self, NoHealth};
use crate::config::{Config, Port};
use crate::error::{At, Doing, Error, Kind, reason};
use crate::lifecycle::crashes;
use crate::lifecycle::status::{self, Observer, Status};
use crate::lock::{self, Lock, Owner, StartLock};
use crate::log::Log;
use crate::paths::Paths;
use crate::state::{self, DaemonInfo, Found};
use crate::sys::process;
use crate::sys::signal::Signal;
use crate::sys::socket::{self, Listening};
use crate::{disk, http, limits, sys};

/// What a process needs to be the daemon.
pub struct Claim {
    pub lock: Lock,
    pub listener: TcpListener,
    pub log: Log,
}

/// A daemon that ended without removing its state file.
#[derive(Clone, Copy)]
pub struct Crashed {
    /// `None` if the state file could not be read.
    pub pid: Option<i32>,
}

impl Crashed {
    /// Logs the crash.
    pub fn log(self, log: &Log) {
        let pid = self.pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
        log.warn("the daemon before this one had crashed", &[("pid", &pid)]);
    }
}

/// The result of [`claim`].
pub enum Claimed {
    /// The claim, and the crash of the previous daemon, whose state file was removed.
    Ours(Claim, Option<Crashed>),
    /// Another daemon is serving.
    Taken(Box<DaemonInfo>),
}

/// Takes the lock, removes the state file of a crashed daemon, binds the port and opens the log.
/// The start lock excludes other starters.
///
/// # Errors
/// [`Kind::Unresponsive`] and [`Kind::HeldElsewhere`]: the lock is held, and its owner does not
/// answer. [`Kind::PortInUse`]. The lock is free again then.
pub fn claim(
    paths: &Paths,
    config: &Config,
    wanted: Port,
    _start_lock: &StartLock,
) -> Result<Claimed, Error> {
    let lock = match Lock::take(paths)? {
        Some(lock) => lock,
        None => match wait_for_owner(paths)? {
            Waited::Running(info) => return Ok(Claimed::Taken(info)),
            Waited::Gone(lock) => lock,
        },
    };
    match prepare(paths, config, wanted) {
        Ok((listener, log, crashed)) => Ok(Claimed::Ours(Claim { lock, listener, log }, crashed)),
        Err(error) => {
            lock.release();
            Err(error)
        }
    }
}

fn prepare(
    paths: &Paths,
    config: &Config,
    wanted: Port,
) -> Result<(TcpListener, Log, Option<Crashed>), Error> {
    let crashed = remove_stale(paths)?;
    // A starter that was killed may have left it.
    disk::remove(&disk::unfinished(&paths.crashes()))?;
    let listener = listen(wanted)?;
    check_reachable(&listener)?;
    let log = Log::open(&paths.daemon(), config.rotation, config.level)?;
    Ok((listener, log, crashed))
}

/// Removes the state file of a daemon that crashed, and counts the crash. The caller has the lock,
/// which proves that the daemon has ended. That a machine or a container ended is no crash.
pub fn remove_stale(paths: &Paths) -> Result<Option<Crashed>, Error> {
    let pid = match state::read(paths)? {
        Found::Nothing => return Ok(None),
        Found::Damaged => None,
        Found::Info(info) if info.ended_with_its_machine() => {
            state::remove(paths)?;
            crashes::clear(paths)?;
            return Ok(None);
        }
        Found::Info(info) => Some(info.pid),
    };
    state::remove(paths)?;
    crashes::add(paths)?;
    Ok(Some(Crashed { pid }))
}

enum Waited {
    Running(Box<DaemonInfo>),
    /// The owner ended, and this process took the lock.
    Gone(Lock),
}

/// Waits until the owner of the lock answers or ends. No other starter is active, so the owner is
/// either a command that tests the lock or a daemon. A daemon may be serving, exiting or hung; if
/// its state file is lost, it is signaled to write the file again.
fn wait_for_owner(paths: &Paths) -> Result<Waited, Error> {
    let deadline = Instant::now() + limits::UNRESPONSIVE_MAX;
    let mut observer = Observer::new(paths);
    let mut seen = (None, None, NoHealth::TimedOut);
    let mut elsewhere = false;
    let mut signaled = false;
    let waited = status::watched(paths, deadline, limits::LOCK_POLL_INTERVAL, || {
        match observer.look()? {
            Status::Running { info, .. } => return Ok(Some(Waited::Running(info))),
            Status::Unresponsive { pid, port, why: why @ NoHealth::Untrusted(_) } => {
                return Err(status::unresponsive(pid, port, &why));
            }
            Status::Unresponsive { pid, port, why } => seen = (pid, port, why),
            // Only a free lock is worth a try, which the watch would notice.
            Status::Stopped | Status::Crashed { .. } => {
                return Ok(Lock::take(paths)?.map(Waited::Gone));
            }
        }
        let owner = lock::owner(paths)?;
        elsewhere = matches!(owner, Owner::Elsewhere);
        if let Owner::Process(process) = owner
            && matches!(seen.2, NoHealth::StateLost | NoHealth::NotOurDaemon)
            && !signaled
        {
            process.signal(Signal::Hangup).at("signal the owner of", &paths.pid())?;
            signaled = true;
        }
        Ok(None)
    })?;
    let (pid, port, why) = seen;
    waited.ok_or_else(|| match why {
        NoHealth::StateLost if elsewhere => held_elsewhere(paths),
        why => client::unreachable(pid, port, &why, limits::UNRESPONSIVE_MAX),
    })
}

/// Returns the error for an owner of the lock that is invisible from here. The state file, if there
/// is one, names the owner's machine.
pub fn held_elsewhere(paths: &Paths) -> Error {
    const ACTION: &str = "reach the daemon";
    let path = paths.pid();
    if !process::can_be_inspected() {
        let owner = lock::look(paths).ok().and_then(|(_, pid)| pid);
        let owner = owner.map_or("its process".to_owned(), |pid| format!("process {pid}"));
        let reason = format!("whether {owner} has locked {} cannot be told", path.display());
        return Error::cannot(Kind::HeldElsewhere, ACTION, format!("{reason} without /proc"))
            .with_next_step("mount it: mount -t proc proc /proc");
    }
    let hostname = match state::read(paths) {
        Ok(Found::Info(info)) => info.hostname,
        _ => None,
    };
    let on = hostname.map_or(String::new(), |name| format!(" on {name}"));
    let unseen = format!("a process{on} that cannot be seen from here");
    let reason = format!("{unseen} has locked {}", path.display());
    Error::cannot(Kind::HeldElsewhere, ACTION, reason)
        .with_next_step("stop it where it runs, or give this machine a place of its own: OPTA_HOME")
}

/// Binds the port, on 127.0.0.1 only. `std` sets SO_REUSEADDR, so that the connections of a daemon
/// that has just exited do not block it, and does not set SO_REUSEPORT.
///
/// # Errors
/// [`Kind::NoLoopback`]; [`Kind::PortInUse`] names the port and, if it is known, the process that
/// uses it.
fn listen(wanted: Port) -> Result<TcpListener, Error> {
    match wanted {
        Port::Exactly { port, by } => bind(port).map_err(|cause| {
            let taken = cause.kind() == io::ErrorKind::AddrInUse;
            let owner = if taken { port_user(port) } else { None };
            let owner = owner.map_or(String::new(), |owner| format!(" ({owner})"));
            let on = format!("{port}: {}{owner}", reason(&cause));
            cannot_listen(&cause, &on, || {
                format!("choose another port ({by}), or leave it out to try 9999 and others")
            })
        }),
        Port::Preferred(port) => bind(port).or_else(|_taken| listen(Port::Default)),
        Port::Default => {
            let (port, others) = (limits::PORT_DEFAULT, limits::PORTS_FALLBACK);
            let fallback = || limits::PORTS_FALLBACK.map(bind).find_map(Result::ok);
            bind(port).or_else(|cause| {
                fallback().ok_or_else(|| {
                    let (first, last, reason) = (others.start(), others.end(), reason(&cause));
                    let on = format!("{port}, nor on {first} to {last}: {reason}");
                    let next = "choose a free port: opta daemon start --port N";
                    cannot_listen(&cause, &on, || next.to_owned())
                })
            })
        }
    }
}

fn cannot_listen(cause: &io::Error, on: &str, next_step: impl Fn() -> String) -> Error {
    let reason = format!("cannot listen on 127.0.0.1:{on}");
    match cause.kind() {
        io::ErrorKind::AddrNotAvailable => no_loopback(reason),
        _ => Error::cannot(Kind::PortInUse, "start the daemon", reason).with_next_step(next_step()),
    }
}

/// Checks that the listener can be reached: the loopback interface may be down, and a packet filter
/// may forbid it.
fn check_reachable(listener: &TcpListener) -> Result<(), Error> {
    let port = listener.local_addr().doing("tell the daemon's port")?.port();
    let connected = http::connect(port, Instant::now() + limits::HEALTH_MAX, None);
    let unreachable = |cause: io::Error| {
        let reason = format!("cannot connect to 127.0.0.1:{port}: {}", reason(&cause));
        no_loopback(format!("{reason}, so no command could reach it"))
    };
    let _open = connected.map_err(unreachable)?;
    let arrived = sys::wait_readable([listener.as_fd()], Some(limits::HEALTH_MAX));
    if arrived.doing("accept a connection")? == [false] {
        return Err(unreachable(io::ErrorKind::TimedOut.into()));
    }
    // The daemon would take it for a client.
    drop(listener.accept().doing("accept a connection")?);
    Ok(())
}

fn no_loopback(reason: String) -> Error {
    Error::cannot(Kind::NoLoopback, "start the daemon", reason)
        .with_next_step("bring up the loopback interface with 127.0.0.1: ip link set lo up")
}

fn bind(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
}

/// Describes the process that listens on `port`, for example `nginx, pid 812, uid 33`. Linux only:
/// proc(5).
pub fn port_user(port: u16) -> Option<String> {
    let Listening { uid, inode, .. } = socket::listening_on(port).ok()??;
    let process = process_with(&format!("socket:[{inode}]"));
    Some(match process {
        Some((name, pid)) => format!("{name}, pid {pid}, uid {uid}"),
        None => format!("a process of uid {uid}"),
    })
}

/// Returns the name and the pid of the process that has this socket. Only the user's own processes
/// can be inspected.
fn process_with(socket: &str) -> Option<(String, String)> {
    let has_socket = |process: &Path| {
        let open = std::fs::read_dir(process.join("fd")).ok()?;
        let mut links = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.any(|link| link == Path::new(socket)).then_some(())
    };
    std::fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|entry| {
        let pid = entry.file_name().to_str().filter(|name| name.parse::<u32>().is_ok())?.to_owned();
        has_socket(&entry.path())?;
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        Some((name.trim_end().to_owned(), pid))
    })
}
