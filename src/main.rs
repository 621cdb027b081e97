//! `opta`: from the arguments to an exit status.

mod clock;
mod error;
mod json;
mod limits;
mod log;
mod sys;
mod token;

fn main() {}
