//! Standard input, line by line: read without blocking when poll(2) reports it readable.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use crate::error::{Doing, Error};
use crate::{limits, sys};

/// The lines of standard input: a terminal, a pipe or a file.
pub struct StdinLines {
    input: File,
    lines: Lines,
    ended: bool,
}

/// A line that cannot be sent.
#[derive(Debug, PartialEq)]
pub struct InvalidLine {
    /// Counted from 1.
    pub number: u64,
    pub reason: String,
}

impl StdinLines {
    /// Duplicates the descriptor of standard input.
    pub fn new() -> Result<StdinLines, Error> {
        let input = io::stdin().as_fd().try_clone_to_owned().doing("read standard input")?;
        Ok(StdinLines { input: File::from(input), lines: Lines::default(), ended: false })
    }

    /// Returns the next line without its end, if it was read; at the end of the input, the rest.
    pub fn next(&mut self) -> Option<Result<String, InvalidLine>> {
        self.lines.next(self.ended)
    }

    /// Reads what is available.
    pub fn read(&mut self) -> Result<(), Error> {
        let mut chunk = [0_u8; 16 * 1024];
        match self.input.read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(count) => self.lines.add(chunk.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).doing("read standard input"),
        }
        Ok(())
    }

    /// Returns whether the input ended, and forgets it: a terminal can be read again after Ctrl-D.
    pub fn take_end(&mut self) -> bool {
        std::mem::take(&mut self.ended)
    }

    /// Whether the input ended and every line was returned.
    pub fn is_finished(&self) -> bool {
        self.ended && self.lines.is_empty()
    }

    /// Discards what was typed but not yet returned.
    pub fn discard(&mut self) {
        self.lines.discard();
        sys::forget_typed(self.input.as_fd());
    }
}

impl AsFd for StdinLines {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }
}

/// Bytes that become lines. It holds a line of the greatest length and a chunk, whatever comes.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Where the next line begins.
    begin: usize,
    /// So far there is no end of it.
    searched: usize,
    /// Lines that were taken.
    count: u64,
    /// The line was too long, and what is still to come of it is of no use.
    skipping: bool,
}

impl Lines {
    fn add(&mut self, chunk: &[u8]) {
        self.bytes.drain(..self.begin);
        self.searched = self.searched.saturating_sub(self.begin);
        self.begin = 0;
        let end = chunk.iter().position(|byte| *byte == b'\n').unwrap_or(chunk.len());
        let useless = if self.skipping { end } else { 0 };
        self.bytes.extend_from_slice(chunk.get(useless..).unwrap_or_default());
    }

    /// The next line; one without an end only if `all` has come.
    fn next(&mut self, all: bool) -> Option<Result<String, InvalidLine>> {
        loop {
            let new = self.bytes.get(self.searched..).unwrap_or_default();
            let found = new.iter().position(|byte| *byte == b'\n').map(|at| self.searched + at);
            let end = found.unwrap_or(self.bytes.len());
            let line = self.bytes.get(self.begin..end).unwrap_or_default();
            if found.is_none() && (!all || line.is_empty()) {
                self.searched = end;
                // It may be a carriage return that is one too many.
                let too_long = self.skipping || is_too_long(line.get(1..).unwrap_or_default());
                if !too_long {
                    return None;
                }
                self.begin = end;
                if std::mem::replace(&mut self.skipping, true) {
                    return None;
                }
                self.count += 1;
                return Some(Err(InvalidLine { number: self.count, reason: too_long_reason() }));
            }
            let bare = if found.is_some() { line.strip_suffix(b"\r") } else { None };
            let line = bare.unwrap_or(line);
            let taken = if is_too_long(line) {
                Err(too_long_reason())
            } else {
                let text = String::from_utf8(line.to_vec());
                text.map_err(|_bad| "it is not UTF-8".to_owned())
            };
            self.begin = end + usize::from(found.is_some());
            self.searched = self.begin;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            self.count += 1;
            return Some(taken.map_err(|reason| InvalidLine { number: self.count, reason }));
        }
    }

    fn is_empty(&self) -> bool {
        self.begin == self.bytes.len()
    }

    fn discard(&mut self) {
        *self = Lines { count: self.count, ..Lines::default() };
    }
}

fn is_too_long(line: &[u8]) -> bool {
    u64::try_from(line.len()).is_ok_and(|length| length > limits::TASK_BYTES_MAX)
}

fn too_long_reason() -> String {
    format!("it is longer than {} bytes", limits::TASK_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of `text` that comes in chunks of this size.
    fn lines(text: &[u8], size: usize) -> Vec<Result<String, InvalidLine>> {
        let mut lines = Lines::default();
        let mut taken = Vec::new();
        for chunk in text.chunks(size) {
            lines.add(chunk);
            while let Some(line) = lines.next(false) {
                taken.push(line);
            }
        }
        while let Some(line) = lines.next(true) {
            taken.push(line);
        }
        assert!(lines.is_empty());
        taken
    }

    #[test]
    fn line_ends_of_all_systems_end_a_line() {
        for size in 1..8 {
            let found = lines("one\ntwo\r\n\n\r\nü\r\r\nlast\r".as_bytes(), size);
            let found: Vec<String> = found.into_iter().map(Result::unwrap).collect();
            assert_eq!(found, ["one", "two", "", "", "ü\r", "last\r"]);
        }
    }

    #[test]
    fn a_line_is_as_long_as_a_task_at_most_and_the_next_one_is_whole() {
        let most = usize::try_from(limits::TASK_BYTES_MAX).unwrap();
        let refused =
            |number| InvalidLine { number, reason: "it is longer than 3145728 bytes".into() };
        for (length, end, fits) in [
            (most, "\n", true),
            (most, "\r\n", true),
            (most, "", true),
            (most + 1, "\n", false),
            (most + 1, "\r\n", false),
            (most + 1, "", false),
            (3 * most, "\n", false),
        ] {
            let mut text = b"first\n".to_vec();
            text.resize(text.len() + length, b'x');
            text.extend_from_slice(end.as_bytes());
            if !end.is_empty() {
                text.extend_from_slice(b"\xff\nlast");
            }
            let found = lines(&text, 16 * 1024);
            assert_eq!(found.first().unwrap().as_deref(), Ok("first"));
            let line = found.get(1).unwrap();
            if fits {
                assert_eq!(line.as_ref().map(String::len), Ok(length), "{end:?}");
            } else {
                assert_eq!(line.as_ref(), Err(&refused(2)), "{length} {end:?}");
            }
            if !end.is_empty() {
                let bad = InvalidLine { number: 3, reason: "it is not UTF-8".to_owned() };
                assert_eq!(found.get(2), Some(&Err(bad)));
                assert_eq!(found.get(3).unwrap().as_deref(), Ok("last"));
            }
            assert_eq!(found.len(), if end.is_empty() { 2 } else { 4 });
        }
    }
}
