//! `opta`: from the arguments to an exit status.

mod clock;
mod error;
mod limits;
mod log;
mod sys;
mod token;

fn main() {}
