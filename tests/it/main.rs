//! The promises, each held by driving the real program: a file for each kind.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should end there"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "files are prepared as anybody may leave them, and UPDATE is read"
)]
#![expect(clippy::print_stderr, reason = "a test that cannot run here says why")]

mod docs;
mod install;
mod page;
mod tidy;
