//! `opta`: from the arguments to an exit status.

mod api;
mod clock;
mod error;
mod json;
mod limits;
mod log;
mod server;
mod sys;
mod token;

fn main() {}
