//! The daemon from its start to its end: it serves until it is asked to exit, and then undoes what
//! it did at the start, in reverse order.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
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
use crate::lifecycle::crashes;
use crate::lifecycle::handover::Ready;
use crate::lifecycle::service::supervision::Supervision;
use crate::lock::Lock;
use crate::log::Log;
use crate::paths::Paths;
use crate::server::{App, Deadlines, Operations, Server};
use crate::session::runtime::Runtime;
use crate::session::store::Store;
use crate::state::{self, DaemonInfo};
use crate::sys::namespace;
use crate::sys::signal::{self, Signal};
use crate::sys::spawn;
use crate::token::{Token, random_name};
use crate::{clock, limits, sys};

/// What the main thread waits for.
enum Event {
    Signal(Signal),
    /// A client requested a shutdown.
    Shutdown,
    /// A client sent a request, and `state.json` was not checked recently.
    Request,
    /// No turn is running.
    TurnsEnded,
    /// The last connection is closed.
    Disconnected,
}

/// What SIGHUP means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hangup {
    /// Write the state file again if it was removed or changed, and reopen the log.
    Refresh,
    /// The terminal is closed: exit.
    Exit,
}

/// Serves until it is asked to exit. Reports to `ready` that it serves, or why it cannot.
///
/// The lock is released last.
pub fn serve(
    claim: Claim,
    ready: Ready,
    paths: &Paths,
    hangup: Hangup,
    supervision: &Supervision,
    operations: Box<dyn Operations>,
) -> Result<(), Error> {
    let Claim { lock, listener, log } = claim;
    let (events, inbox) = channel();
    let prepared = port_of(&listener).and_then(|port| {
        let mut info = prepare(paths, port, &log, &events)?;
        info.managed_by = supervision.manager.map(|manager| manager.name().to_owned());
        let store = Store::new(paths.sessions());
        let agent = Box::new(Assistant::new(paths, log.clone()));
        let sessions = Runtime::new(store, &info.daemon_id, log.clone(), agent);
        let server =
            Server::start(listener, Arc::new(app(&info, &sessions, operations, &log, &events)))?;
        state::publish(paths, &info)?;
        Ok((info, sessions, server))
    });
    let (info, sessions, server) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            log.error("daemon cannot start", &[("cause", &error)]);
            ready.failed(&error);
            lock.release();
            return Err(error);
        }
    };
    log.info(&format!("daemon started on 127.0.0.1:{}", info.port), &[]);
    ready.serving(&info);
    sys::memory::release_code();
    warn_of(supervision.notify_ready(&format!("serving on 127.0.0.1:{}", info.port)), &log);

    let cause = handle_events(&inbox, paths, &lock, &info, &log, hangup);

    warn_of(supervision.notify_stopping(), &log);
    log.info("daemon stopping", &[("cause", &cause)]);
    drain(server, &sessions, &events, &inbox, &log);
    if let Err(error) = state::withdraw(paths, &info.daemon_id) {
        log.warn("state.json cannot be removed", &[("cause", &error)]);
    }
    if let Err(error) = crashes::clear(paths) {
        log.warn("crashes.json cannot be removed", &[("cause", &error)]);
    }
    log.info("daemon stopped", &[]);
    lock.release();
    Ok(())
}

/// Logs that the manager could not be notified. The daemon serves anyway.
fn warn_of(result: io::Result<()>, log: &Log) {
    if let Err(error) = result {
        log.warn("the service manager cannot be told", &[("cause", &error)]);
    }
}

fn port_of(listener: &TcpListener) -> Result<u16, Error> {
    Ok(listener.local_addr().doing("tell the daemon's port")?.port())
}

/// Sets up signals, and collects what the state file will say.
fn prepare(
    paths: &Paths,
    port: u16,
    log: &Log,
    events: &Sender<Event>,
) -> Result<DaemonInfo, Error> {
    signal::reset().doing("reset signals")?;
    signal::block().doing("block signals")?;
    if let Err(error) = sys::allow_descriptors(limits::DESCRIPTORS_WANTED) {
        log.warn("few descriptors", &[("cause", &error)]);
    }
    if let Err(error) = sys::forbid_core_files() {
        log.warn("core files cannot be forbidden", &[("cause", &error)]);
    }
    listen_for_signals(events.clone(), log.clone())?;
    let executable = spawn::program().ok();
    let executable_id = executable.as_ref().and_then(|path| file_id(path));
    let executable = executable.filter(|_| executable_id.is_some());
    Ok(DaemonInfo {
        pid: i32::try_from(std::process::id()).unwrap_or(0),
        port,
        token: Token::generate()?,
        started_at: clock::rfc3339(clock::now_millis()),
        host: Ipv4Addr::LOCALHOST.to_string(),
        daemon_id: format!("daemon_{}", random_name(8)?),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        logs_path: paths.log().to_string_lossy().into_owned(),
        hostname: Some(sys::hostname()),
        executable: executable.map(|path| path.to_string_lossy().into_owned()),
        executable_id,
        managed_by: None,
        boot_id: namespace::boot_id(),
        net_namespace: namespace::network(),
        net_cookie: namespace::network_cookie(),
        pid_namespace: namespace::processes(),
        pid_namespace_began: namespace::processes_began(),
    })
}

fn app(
    info: &DaemonInfo,
    sessions: &Arc<Runtime>,
    operations: Box<dyn Operations>,
    log: &Log,
    events: &Sender<Event>,
) -> App {
    let (shutdown, requests) = (events.clone(), events.clone());
    let checked = AtomicU64::new(sys::boot_clock().as_secs());
    App {
        token: info.token.clone(),
        daemon_id: info.daemon_id.clone(),
        port: info.port,
        started: sys::boot_clock(),
        log: log.clone(),
        deadlines: Deadlines::default(),
        sessions: Arc::clone(sessions),
        operations,
        streams: Arc::default(),
        // The receiver lives as long as the daemon.
        on_shutdown: Box::new(move || drop(shutdown.send(Event::Shutdown))),
        on_activity: Box::new(move || {
            // Part of every request, so usually it is one load, and no thread is woken.
            let now = sys::boot_clock().as_secs();
            let before = checked.load(Ordering::Relaxed);
            if now.saturating_sub(before) >= limits::STATE_CHECK_EVERY.as_secs() {
                checked.store(now, Ordering::Relaxed);
                drop(requests.send(Event::Request));
            }
        }),
    }
}

/// Handles events until the daemon has to exit; returns the reason.
fn handle_events(
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
            Ok(Event::Signal(Signal::Hangup)) if hangup == Hangup::Exit => return "SIGHUP",
            Ok(Event::Signal(Signal::Hangup)) => {
                if let Err(error) = log.reopen() {
                    log.error("log cannot be opened again", &[("cause", &error)]);
                }
                if !lock.is_in_place(paths) {
                    return "daemon.pid was removed";
                }
                restore_state(paths, info, log);
            }
            // No command can find this daemon now, and there may be another one.
            Ok(Event::Request) if !lock.is_in_place(paths) => return "daemon.pid was removed",
            Ok(Event::Request) => restore_state(paths, info, log),
            Ok(Event::Shutdown) => return "request",
            Ok(Event::TurnsEnded | Event::Disconnected) => {}
            Err(_all_senders_gone) => return "no more events",
        }
    }
}

/// Writes the state file again if it was removed or changed. This daemon has the lock, so it is the
/// one that serves.
fn restore_state(paths: &Paths, info: &DaemonInfo, log: &Log) {
    if state::is_published(paths, info) {
        return;
    }
    match state::publish(paths, info) {
        Ok(()) => log.warn("state.json was lost and has been written again", &[]),
        Err(error) => log.error("state.json cannot be written", &[("cause", &error)]),
    }
}

/// Lets running turns end, for a limited time that a second signal cuts short. Then closes the
/// streams, which still show those ends, and the connections.
fn drain(
    server: Server,
    sessions: &Runtime,
    events: &Sender<Event>,
    inbox: &Receiver<Event>,
    log: &Log,
) {
    let deadline = Instant::now() + limits::GRACE_MAX;
    let (turns, connections) = (events.clone(), events.clone());
    let stopping = server.stop(move || drop(connections.send(Event::Disconnected)));
    sessions.stop(move || drop(turns.send(Event::TurnsEnded)));
    let mut connected = true;
    let mut working = true;
    while working && let Some(event) = next_before(deadline, inbox) {
        match event {
            Event::TurnsEnded => working = false,
            Event::Disconnected => connected = false,
            Event::Signal(Signal::Terminate | Signal::Interrupt) => break,
            _ => {}
        }
    }
    let cut = working;
    sessions.close();
    let deadline = Instant::now() + limits::LAST_REPLIES_MAX;
    // The turns that are still running have been cancelled; their commands end before this process.
    while (connected || working)
        && let Some(event) = next_before(deadline, inbox)
    {
        match event {
            Event::TurnsEnded => working = false,
            Event::Disconnected => connected = false,
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

/// Returns an id that another file of the same name, or another content, does not have: device,
/// inode and modification time.
pub fn file_id(path: &Path) -> Option<String> {
    let file = path.metadata().ok()?;
    Some(format!("{}:{}:{}.{}", file.dev(), file.ino(), file.mtime(), file.mtime_nsec()))
}
