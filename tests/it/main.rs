//! The promises of `opta`, each tested on the real binary in a throw-away home.
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
    reason = "files are prepared as anybody may leave them, and UPDATE is read"
)]

mod api;
mod model;
mod page;
mod support;

/// Turns: a model, its tools, and how what they started ends.
mod agent;
/// A conversation, and a daemon that comes and goes meanwhile.
mod chat;
/// What was acknowledged stays, whatever happens.
mod crash;
/// Start, status, stop, restart, token: what they say, what they leave.
mod daemon;
/// Manual, help and sources say the same.
mod docs;
/// What `opta doctor` finds.
mod doctor;
/// Whatever state the daemon was left in, one command later one daemon runs, and never two.
mod guardian;
/// What is refused, and how.
mod input;
/// What `make install` puts where, and what `make uninstall` leaves.
mod install;
/// Whatever the files say: no stranger is ever signalled.
mod liveness;
/// The log, as the daemon writes it and as people read it.
mod logs;
/// Calls that fail, and resources that run out.
mod robust;
/// What scripts, pipes and terminals may rely on.
mod scripts;
/// As a service of systemd, and of launchd.
mod service;
/// Sessions over HTTP.
mod sessions;
/// What was said in sessions, read without a daemon; and how one is deleted.
mod sessions_cmd;
/// A task, its answer, and how it ends.
mod task;
/// What reaches a terminal of text that is not ours.
mod terminal;
/// The rules of the house.
mod tidy;
/// What is said while nobody reads.
mod unread;
/// Sessions that an earlier version wrote.
mod upgrade;
