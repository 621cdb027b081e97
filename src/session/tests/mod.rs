//! Sessions on a real disk and with agents of all kinds: whatever a crash, a fault or a race can do
//! to them.
//!
//! Nothing sleeps: what has to wait, waits for an event, with a deadline.

mod journal;
mod lifetimes;
mod rules;
mod stage;
mod store;
mod turns;

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::protocol::event::{Event, TurnText};

use super::event;
use super::journal::{Durability, FILE_NAME, Journal};
use super::rules::{SessionId, State};

/// Nothing here takes so long on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory that is removed with everything in it.
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

    /// The directory of a session, and its journal with these bytes.
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

/// A record with this number and a payload of about `size` bytes.
fn record(seq: u64, size: usize) -> Vec<u8> {
    event::record(&token(&"x".repeat(size)), "daemon_x", seq, "2026-03-01T10:00:00.000Z")
}

fn append(journal: &mut Journal, state: &mut State) -> u64 {
    journal.append_all(state, &[token("y")], Durability::Cached).unwrap()
}

/// The numbers of all events after `after` that a reader sees, in batches of `most`.
fn seen(journal: &Journal, after: u64, most: usize) -> Vec<u64> {
    let mut reader = journal.reader();
    let (mut seen, mut after) = (Vec::new(), after);
    loop {
        let batch = reader.after(after, most).unwrap();
        let Some((last, _)) = batch.events.last() else {
            return seen;
        };
        after = *last;
        seen.extend(batch.events.iter().map(|(seq, _)| *seq));
    }
}
