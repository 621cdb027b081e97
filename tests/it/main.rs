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

mod support;

/// Start, status, stop, restart, token: what they say, what they leave.
mod daemon;
/// Whatever state the daemon was left in, one command later one daemon runs, and never two.
mod guardian;
/// What scripts, pipes and terminals may rely on.
mod scripts;
