//! Turns with model servers of other projects: a small real model in llama.cpp's server, and a mock
//! with scripted faults. `make test-model` fetches and runs both.
//!
//! The tests assert calls and outcomes, never the words of a model.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![expect(clippy::disallowed_methods, reason = "files are prepared as any program may leave them")]

#[path = "../it/support.rs"]
#[expect(dead_code, unused_imports, unused_macros, reason = "the other tests use the rest of it")]
mod support;

/// The servers, which end with their test.
mod server;

/// Tests with scripted faults.
mod mock;
/// Tests with a real model.
mod real;
