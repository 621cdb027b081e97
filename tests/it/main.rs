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
#![expect(clippy::print_stderr, reason = "a test that cannot run here says why")]

mod page;
mod support;

/// Turns: a model, its tools, and how what they started ends.
mod agent;
/// Start, status, stop, restart, token: what they say, what they leave.
mod daemon;
/// Manual, help and sources say the same.
mod docs;
/// Whatever state the daemon was left in, one command later one daemon runs, and never two.
mod guardian;
/// What `make install` puts where, and what `make uninstall` leaves.
mod install;
/// Whatever the files say: no stranger is ever signalled.
mod liveness;
/// The log, as the daemon writes it and as people read it.
mod logs;
/// What scripts, pipes and terminals may rely on.
mod scripts;
/// The rules of the house.
mod tidy;
