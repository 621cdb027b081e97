//! The daemon's life as a whole: claim → detach → run, and what other processes do about it: look,
//! ensure, stop.

mod claim;
pub mod crashes;
pub mod guardian;
pub mod handover;
pub mod port;
pub mod reach;
pub mod run;
pub mod service;
pub mod status;
pub mod stop;
