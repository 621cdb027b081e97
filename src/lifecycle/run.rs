//! The daemon's life in order: from the claim to the last lock.

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use crate::agent::Assistant;
use crate::error::{Doing, Error};
use crate::lifecycle::claim::Claim;
use crate::lifecycle::handover::Ready;
use crate::lifecycle::service::supervision::Supervision;
use crate::lock::Lock;
use crate::log::Log;
use crate::paths::Paths;
use crate::server::{App, Server};
use crate::session::runtime::Runtime;
use crate::session::store::Store;
use crate::state::{self, DaemonInfo};
use crate::sys::signal::{self, Signal};
use crate::token::{Token, random_name};
use crate::{clock, limits, sys};

/// Why the daemon is awake.
enum Event {
    Signal(Signal),
    /// A client has asked it to leave.
    Shutdown,
    /// A client has asked anything at all.
    Activity,
    /// No turn is running any more.
    Rested,
    /// The last connection has gone.
    Drained,
}

/// What SIGHUP means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hangup {
    /// Publish the state file and open the log again.
    Refresh,
    /// The terminal has gone: leave.
    Leave,
}

/// Serves until it is told to leave. Ready, or the reason why not, goes to `ready`.
///
/// Leaving runs the beginning backwards; the lock is the last thing to go.
pub fn serve(
    claim: Claim,
    ready: Ready,
    paths: &Paths,
    hangup: Hangup,
    supervision: &Supervision,
) -> Result<(), Error> {
    let Claim { lock, listener, log, .. } = claim;
    let (events, inbox) = channel();
    let begun = port_of(&listener).and_then(|port| {
        let mut info = begin(paths, port, &log, &events)?;
        info.managed_by = supervision.manager;
        let store = Store::new(paths.sessions());
        let agent = Box::new(Assistant::new(paths, log.clone()));
        let sessions = Runtime::new(store, &info.daemon_id, log.clone(), agent);
        let server = Server::start(listener, Arc::new(app(&info, &sessions, &log, &events)))?;
        state::publish(paths, &info)?;
        Ok((info, sessions, server))
    });
    let (info, sessions, server) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            log.error("daemon cannot start", &[("cause", &error)]);
            ready.failed(&error);
            lock.release();
            return Err(error);
        }
    };
    log.info(&format!("daemon started on 127.0.0.1:{}", info.port), &[]);
    ready.serving(&info);
    told(supervision.notify_ready(&format!("serving on 127.0.0.1:{}", info.port)), &log);

    let cause = live(&inbox, paths, &lock, &info, &log, hangup);

    told(supervision.notify_stopping(), &log);
    log.info("daemon stopping", &[("cause", &cause)]);
    drain(server, &sessions, &events, &inbox, &log);
    if let Err(error) = state::withdraw(paths, &info.daemon_id) {
        log.warn("state.json cannot be removed", &[("cause", &error)]);
    }
    log.info("daemon stopped", &[]);
    lock.release();
    Ok(())
}

/// A manager that cannot be told is no reason not to serve; it will draw its own conclusions.
fn told(result: io::Result<()>, log: &Log) {
    if let Err(error) = result {
        log.warn("the service manager cannot be told", &[("cause", &error)]);
    }
}

fn port_of(listener: &TcpListener) -> Result<u16, Error> {
    Ok(listener.local_addr().doing("tell the daemon's port")?.port())
}

/// Everything before the first request: signals, and what the state file will say.
fn begin(paths: &Paths, port: u16, log: &Log, events: &Sender<Event>) -> Result<DaemonInfo, Error> {
    signal::reset().doing("reset signals")?;
    signal::block().doing("block signals")?;
    if let Err(error) = sys::allow_descriptors(limits::DESCRIPTORS_WANTED) {
        log.warn("few descriptors", &[("cause", &error)]);
    }
    listen_for_signals(events.clone(), log.clone())?;
    Ok(DaemonInfo {
        pid: i32::try_from(std::process::id()).unwrap_or(0),
        port,
        token: Token::generate()?,
        started_at: clock::rfc3339(clock::now_millis()),
        daemon_id: format!("daemon_{}", random_name(8)?),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        logs_path: paths.log().to_string_lossy().into_owned(),
        hostname: Some(sys::hostname()),
        executable: executable(),
        managed_by: None,
    })
}

fn app(info: &DaemonInfo, sessions: &Arc<Runtime>, log: &Log, events: &Sender<Event>) -> App {
    let (shutdown, activity) = (events.clone(), events.clone());
    let looked_after = AtomicU64::new(sys::boot_clock().as_secs());
    App {
        token: info.token.clone(),
        daemon_id: info.daemon_id.clone(),
        port: info.port,
        started: sys::boot_clock(),
        log: log.clone(),
        sessions: Arc::clone(sessions),
        streams: Arc::default(),
        // The receiver lives as long as the daemon.
        on_shutdown: Box::new(move || drop(shutdown.send(Event::Shutdown))),
        on_activity: Box::new(move || {
            // In the path of every request: as a rule one load, and nobody is woken.
            let now = sys::boot_clock().as_secs();
            let before = looked_after.load(Ordering::Relaxed);
            if now.saturating_sub(before) >= limits::STATE_CHECK_EVERY.as_secs() {
                looked_after.store(now, Ordering::Relaxed);
                drop(activity.send(Event::Activity));
            }
        }),
    }
}

/// Waits for what happens, and does what it asks for, until it is time to leave; then says why.
fn live(
    inbox: &Receiver<Event>,
    paths: &Paths,
    lock: &Lock,
    info: &DaemonInfo,
    log: &Log,
    hangup: Hangup,
) -> &'static str {
    loop {
        match inbox.recv() {
            Ok(Event::Signal(Signal::Terminate)) => return "SIGTERM",
            Ok(Event::Signal(Signal::Interrupt)) => return "SIGINT",
            Ok(Event::Signal(Signal::Hangup)) if hangup == Hangup::Leave => return "SIGHUP",
            Ok(Event::Signal(Signal::Hangup)) => {
                if let Err(error) = log.reopen() {
                    log.error("log cannot be opened again", &[("cause", &error)]);
                }
                if !lock.is_in_place(paths) {
                    return "daemon.pid was removed";
                }
                restore_state(paths, info, log);
            }
            // A daemon that nobody can find any more has no reason to stay, and another may have
            // come.
            Ok(Event::Activity) if !lock.is_in_place(paths) => return "daemon.pid was removed",
            Ok(Event::Activity) => restore_state(paths, info, log),
            Ok(Event::Shutdown) => return "request",
            Ok(Event::Rested | Event::Drained) => {}
            Err(_all_senders_gone) => return "no more events",
        }
    }
}

/// Puts the state file back if it has been removed or changed: this daemon has the lock, so no
/// other serves.
fn restore_state(paths: &Paths, info: &DaemonInfo, log: &Log) {
    if state::shows(paths, info) {
        return;
    }
    match state::publish(paths, info) {
        Ok(()) => log.warn("state.json was lost and has been written again", &[]),
        Err(error) => log.error("state.json cannot be written", &[("cause", &error)]),
    }
}

/// Lets work in flight finish, but not for ever; a second signal cuts it short. First the turns,
/// then the streams that show their end, then the connections.
fn drain(
    server: Server,
    sessions: &Runtime,
    events: &Sender<Event>,
    inbox: &Receiver<Event>,
    log: &Log,
) {
    let deadline = Instant::now() + limits::GRACE_MAX;
    let (rested, drained) = (events.clone(), events.clone());
    let stopping = server.stop(move || drop(drained.send(Event::Drained)));
    sessions.stop(move || drop(rested.send(Event::Rested)));
    let mut connected = true;
    let mut working = true;
    while working && let Some(event) = next_before(deadline, inbox) {
        match event {
            Event::Rested => working = false,
            Event::Drained => connected = false,
            Event::Signal(Signal::Terminate | Signal::Interrupt) => break,
            _ => {}
        }
    }
    let cut = working;
    sessions.close();
    let deadline = Instant::now() + limits::LAST_REPLIES_MAX;
    // Turns that were cut have been told, and their commands end before this process does.
    while (connected || working)
        && let Some(event) = next_before(deadline, inbox)
    {
        match event {
            Event::Rested => working = false,
            Event::Drained => connected = false,
            _ => {}
        }
    }
    if cut || connected {
        log.warn("what was in flight was cut", &[("turns", &cut), ("connections", &connected)]);
    }
    drop(stopping);
}

fn next_before(deadline: Instant, inbox: &Receiver<Event>) -> Option<Event> {
    inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
}

/// Starts the thread that reads signals. No failure ends it: a daemon that reads no signals can
/// only be killed.
fn listen_for_signals(events: Sender<Event>, log: Log) -> Result<(), Error> {
    let listen = move || {
        let mut complained: Option<Instant> = None;
        loop {
            let error = match signal::wait() {
                Ok(signal) => {
                    drop(events.send(Event::Signal(signal)));
                    continue;
                }
                Err(error) => error,
            };
            if complained.is_none_or(|before| before.elapsed() >= limits::LOG_REPEAT_EVERY) {
                complained = Some(Instant::now());
                log.error("signals cannot be read", &[("cause", &error)]);
            }
            drop(sys::wait_readable([], Some(limits::SIGNAL_PAUSE)));
        }
    };
    let named = thread::Builder::new().name("signals".into());
    named.spawn(listen).doing("start a thread").map(drop)
}

/// The program that this process runs, and what tells that file from a later one of the same name.
fn executable() -> Option<(String, String)> {
    let path = std::env::current_exe().ok()?;
    let id = file_id(&path)?;
    Some((path.to_string_lossy().into_owned(), id))
}

/// Device, inode and time of change: another file, or another content, has another id.
pub fn file_id(path: &Path) -> Option<String> {
    let file = path.metadata().ok()?;
    Some(format!("{}:{}:{}.{}", file.dev(), file.ino(), file.mtime(), file.mtime_nsec()))
}
