//! Sessions on a real disk and with scripted agents: crashes, faults and races.
//!
//! Nothing sleeps: every wait is for an event, with a deadline.

mod journal;
mod lifetimes;
mod replay;
mod store;
mod support;
mod tail;
mod turns;

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::limits;
use crate::protocol::SessionId;
use crate::protocol::event::{Event, TurnText};

use super::journal::{Durability, Journal};
use super::reader::FILE_NAME;
use super::record;

/// Longer than anything here takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory that is removed with its contents.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        let name = format!("opta session {} {:x}", std::process::id(), fastrand::u64(..));
        // Thousands of syncs: in memory, where that can be had.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let path = place.join(name);
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        Scratch(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    /// Creates the directory of a session, and its journal with these bytes.
    fn session(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let directory = self.0.join(name);
        DirBuilder::new().mode(0o700).recursive(true).create(&directory).unwrap();
        put(&directory.join(FILE_NAME), bytes);
        directory
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn id(text: &str) -> SessionId {
    SessionId::parse(text).unwrap()
}

fn put(path: &Path, bytes: &[u8]) {
    #[expect(clippy::disallowed_methods, reason = "files as a crash may leave them")]
    fs::write(path, bytes).unwrap();
}

fn token(text: &str) -> Event {
    Event::TurnToken(TurnText { turn_id: "t".to_owned(), text: text.to_owned() })
}

/// Returns a record with this number and a payload of about `size` bytes.
fn record(seq: u64, size: usize) -> Vec<u8> {
    record::record(&token(&"x".repeat(size)), "daemon_x", seq, "2026-03-01T10:00:00.000Z")
}

fn append(journal: &mut Journal) -> u64 {
    journal.append(&[token("y")], Durability::Buffered).unwrap()
}

/// Returns the numbers of all events after `after`, read in batches of `most`.
fn seen(journal: &Journal, after: u64, most: usize) -> Vec<u64> {
    let mut reader = journal.reader();
    let (mut seen, mut after) = (Vec::new(), after);
    loop {
        let batch = reader.after(after, most, limits::EVENTS_BYTES_MAX).unwrap();
        let Some(last) = batch.last() else {
            return seen;
        };
        after = last.seq;
        seen.extend(batch.iter().map(|event| event.seq));
    }
}
