//! The promises of `opta`, each held by driving the real program in a throw-away home.
//!
//! No test needs another one, an order, a free port 9999 or a quiet machine.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should end there"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "files are prepared as anybody may leave them, and UPDATE is read"
)]
#![expect(clippy::print_stderr, reason = "a test that cannot run here says why")]

mod support;

/// Start, status, stop, restart, token: what they say, what they leave.
mod daemon;
mod docs;
/// Whatever state the daemon was left in, one command later one daemon runs, and never two.
mod guardian;
mod install;
mod page;
/// As a service of systemd and of launchd.
mod service;
mod tidy;
