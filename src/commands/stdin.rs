//! Standard input, line by line: read without blocking when poll(2) reports it readable.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use crate::error::{Doing, Error};
use crate::lines::{Lines, READ_BYTES};
use crate::{limits, sys};

/// The lines of standard input: a terminal, a pipe or a file.
pub struct StdinLines {
    input: File,
    lines: Lines,
    /// Lines that were returned.
    count: u64,
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
        Ok(StdinLines::of(File::from(input)))
    }

    fn of(input: File) -> StdinLines {
        // With the carriage return that a line may end with.
        let bytes_max = usize::try_from(limits::TASK_BYTES_MAX + 1).unwrap_or(usize::MAX);
        StdinLines { input, lines: Lines::new(bytes_max), count: 0, ended: false }
    }

    /// Returns the next line without its end, if it was read; at the end of the input, the rest.
    pub fn next(&mut self) -> Option<Result<String, InvalidLine>> {
        let text = match self.lines.next() {
            Some(line) => text_of(line.strip_suffix(b"\r").unwrap_or(line)),
            None if self.ended => text_of(self.lines.take_pending()?),
            None => return None,
        };
        self.count += 1;
        Some(text.map_err(|reason| InvalidLine { number: self.count, reason }))
    }

    /// Reads what is available.
    pub fn read(&mut self) -> Result<(), Error> {
        match self.lines.fill(READ_BYTES, |room| self.input.read(room)) {
            Ok(count) => self.ended |= count == 0,
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
        self.ended && self.lines.pending().is_empty()
    }

    /// Discards what was typed but not yet returned.
    pub fn discard(&mut self) {
        self.lines.clear();
        sys::discard_input(self.input.as_fd());
    }
}

impl AsFd for StdinLines {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }
}

/// The text of a line without its end.
fn text_of(line: &[u8]) -> Result<String, String> {
    if u64::try_from(line.len()).is_ok_and(|length| length > limits::TASK_BYTES_MAX) {
        return Err(format!("it is longer than {} bytes", limits::TASK_BYTES_MAX));
    }
    String::from_utf8(line.to_vec()).map_err(|_bad| "it is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the lines of `text`, read in chunks of this size.
    fn lines(text: &[u8], size: usize) -> Vec<Result<String, InvalidLine>> {
        let mut stdin = StdinLines::of(File::open("/dev/null").unwrap());
        let mut taken = Vec::new();
        for chunk in text.chunks(size) {
            stdin.lines.push(chunk);
            taken.extend(std::iter::from_fn(|| stdin.next()));
        }
        stdin.read().unwrap();
        taken.extend(std::iter::from_fn(|| stdin.next()));
        assert!(stdin.is_finished());
        taken
    }

    #[test]
    fn lf_and_crlf_end_a_line() {
        for size in 1..8 {
            let found = lines("one\ntwo\r\n\n\r\nü\r\r\nlast\r".as_bytes(), size);
            let found: Vec<String> = found.into_iter().map(Result::unwrap).collect();
            assert_eq!(found, ["one", "two", "", "", "ü\r", "last\r"]);
        }
    }

    #[test]
    fn a_line_longer_than_a_task_is_refused_and_the_next_one_is_read() {
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
