//! Turns against model servers that others have written: a small real model behind llama.cpp's
//! server, and a mock with scripted faults. `make test-model` fetches and runs both.
//!
//! What a model says is up to the model: asserted is what was called and how it ended.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../it/support.rs"]
#[expect(dead_code, unused_imports, unused_macros, reason = "the other tests use the rest of it")]
mod support;

/// The servers, which end with whoever asked for them.
mod server;

/// With scripted faults.
mod mock;
/// With a real model.
mod real;
