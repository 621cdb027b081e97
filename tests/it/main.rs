//! The promises of `opta`, each tested on the real binary in a temporary home.
//!
//! No test needs another one, an order, a free port 9999 or a quiet machine.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "files are prepared as any program may leave them, and UPDATE is read"
)]

mod api;
mod model;
mod page;
mod socket;
mod support;

/// Turns: a model, its tools, and how what they started ends.
mod agent;
/// A conversation, also while the daemon ends and starts.
mod chat;
/// Clients of the WebSocket that others wrote.
mod clients;
/// Crashes and full disks: what was acknowledged is kept.
mod config;
mod crash;
/// Start, status, stop, restart, token: their output and their effects.
mod daemon;
/// Consistency of the manual, the help and the sources.
mod docs;
/// What `opta doctor` finds.
mod doctor;
/// A root directory with nothing but the program.
mod empty_root;
/// Crash recovery: whatever state the daemon was left in, the next command starts one daemon, never
/// two.
mod guardian;
/// Turns in long sessions.
mod history;
/// Model servers over `https://`.
mod hosted;
/// Invalid input: what is refused, and how.
mod input;
/// What `make install` installs, and what `make uninstall` leaves.
mod install;
/// Liveness: whatever the files contain, no other process is signaled.
mod liveness;
/// The log, as the daemon writes it and as `opta daemon logs` shows it.
mod logs;
/// Names of model servers.
mod names;
mod namespaces;
/// What a client may ask the daemon for by name.
mod operations;
/// Many clients, slow clients, and memory that runs out.
mod overload;
/// The prompt of a chat: keys, pastes, several lines, history, and the terminal afterward.
mod pipes;
mod prompt;
/// Calls that fail, and resources that run out.
mod robust;
/// What a chat shows of its turns, and its commands.
mod screen;
/// What scripts, pipes and terminals may rely on.
mod scripts;
/// Model servers as they are: busy, silent, wrong.
mod servers;
/// The daemon as a service of systemd and launchd.
mod service;
/// Sessions over HTTP.
mod session_ids;
mod sessions;
/// `opta sessions`: reading sessions without a daemon, and deleting them.
mod sessions_cmd;
/// A task, its answer, and how it ends.
mod task;
/// Text from models and files on a terminal.
mod terminal;
/// The rules for the sources.
mod tidy;
/// What tools do with files and commands.
mod tools;
/// Output that no one reads.
mod unread;
/// Sessions that an earlier version wrote.
mod upgrade;
/// A user at a terminal.
mod user;
/// The local page: how it is opened and served.
mod web;
/// The WebSocket: events, messages, and how it ends.
mod websocket;
/// The workspaces of sessions.
mod workspaces;
