//! The messages that were typed at the prompt, kept between chats: a private file with one JSON
//! string per line, oldest first.
//!
//! A file that cannot be used is reported once and left alone; the chat works without it.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{At, Error};
use crate::paths::Paths;
use crate::{disk, json, limits};

/// The file, until it cannot be used.
pub struct InputHistory {
    root: PathBuf,
    path: PathBuf,
    usable: bool,
}

impl InputHistory {
    /// Reads the file. Returns its messages and a note if some or all of them cannot be read.
    pub fn load(paths: &Paths) -> (InputHistory, Vec<String>, Option<String>) {
        let (root, path) = (paths.root().to_owned(), paths.history());
        let (messages, usable, note) = match read(&path) {
            Ok((messages, 0)) => (messages, true, None),
            Ok((messages, damaged)) => {
                let lines = if damaged == 1 { "1 line".into() } else { format!("{damaged} lines") };
                let note = format!("{lines} of {} cannot be read", path.display());
                (messages, true, Some(note))
            }
            Err(error) => (Vec::new(), false, Some(note_of(&error))),
        };
        (InputHistory { root, path, usable }, messages, note)
    }

    /// Adds a message. Returns a note if that fails for the first time.
    pub fn add(&mut self, message: &str) -> Option<String> {
        if !self.usable {
            return None;
        }
        let added = disk::ensure_owned_directory(&self.root).and_then(|()| self.append(message));
        self.usable = added.is_ok();
        added.err().map(|error| note_of(&error))
    }

    fn append(&self, message: &str) -> Result<(), Error> {
        let path = &self.path;
        let line = json::text(&message.to_owned()) + "\n";
        let mut file = disk::open_for_append(path, OpenOptions::new().create(true))?;
        let length = file.metadata().at("inspect", path)?.len() + line.len() as u64;
        if length > limits::INPUT_HISTORY_BYTES_MAX {
            let (mut messages, _damaged) = read(path)?;
            messages.push(message.to_owned());
            return disk::replace(path, newest(&messages).as_bytes());
        }
        file.write_all(line.as_bytes()).at("write", path)
    }
}

fn note_of(error: &Error) -> String {
    format!("what you type is not kept for the next chat: {error}")
}

/// Returns the messages in the file, and the number of lines that are damaged.
fn read(path: &Path) -> Result<(Vec<String>, usize), Error> {
    let Some(mut file) = disk::open_if_exists(path)? else {
        return Ok((Vec::new(), 0));
    };
    let Some(bytes) = disk::read_up_to(&mut file, path, limits::INPUT_HISTORY_BYTES_MAX)? else {
        let reason = format!("it is larger than {} bytes", limits::INPUT_HISTORY_BYTES_MAX);
        return Err(disk::untrusted(path, &reason, "move it away"));
    };
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let parsed: Vec<Option<String>> = lines.map(|line| json::parse(line).ok()).collect();
    let damaged = parsed.iter().filter(|message| message.is_none()).count();
    let mut messages: Vec<String> = parsed.into_iter().flatten().collect();
    messages.drain(..messages.len().saturating_sub(limits::INPUT_HISTORY_MAX));
    Ok((messages, damaged))
}

/// Returns the lines of the newest messages: half of what the file may hold.
fn newest(messages: &[String]) -> String {
    let mut room = usize::try_from(limits::INPUT_HISTORY_BYTES_MAX / 2).unwrap_or(0);
    let mut lines: Vec<String> = Vec::new();
    for message in messages.iter().rev() {
        let line = json::text(message) + "\n";
        let Some(left) = room.checked_sub(line.len()) else { break };
        room = left;
        lines.push(line);
    }
    lines.reverse();
    lines.concat()
}
