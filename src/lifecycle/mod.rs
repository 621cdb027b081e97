//! The life of the daemon: claim, hand over, run. And what commands do about it: status, stop, and
//! the guardian, which starts it.

pub mod cgroup;
pub mod claim;
pub mod crashes;
pub mod guardian;
pub mod handover;
pub mod init;
pub mod run;
pub mod service;
pub mod status;
pub mod stop;
