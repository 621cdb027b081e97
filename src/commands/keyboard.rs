//! What is typed, or comes through a pipe: read when there is something, taken line by line.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, BorrowedFd};

use crate::error::{Doing, Error};
use crate::sys;

/// The keys of a terminal, line by line as it hands them over; or any other input.
pub struct Keyboard {
    input: File,
    bytes: Vec<u8>,
    ended: bool,
}

impl Keyboard {
    /// Standard input, whatever it is.
    pub fn any() -> Result<Keyboard, Error> {
        let input = io::stdin().as_fd().try_clone_to_owned().doing("read standard input")?;
        Ok(Keyboard { input: File::from(input), bytes: Vec::new(), ended: false })
    }

    /// Standard input, if somebody sits there who also sees what is asked.
    pub fn of_terminal() -> Result<Option<Keyboard>, Error> {
        let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
        if terminal { Keyboard::any().map(Some) } else { Ok(None) }
    }

    /// The next line without its end, if it has been read; at the end of the input, what is left.
    pub fn line(&mut self) -> Result<Option<String>, Error> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n');
        let mut line: Vec<u8> = match end {
            Some(end) => self.bytes.drain(..=end).collect(),
            None if self.ended && !self.bytes.is_empty() => std::mem::take(&mut self.bytes),
            None => return Ok(None),
        };
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        let text = String::from_utf8(line);
        text.map(Some).map_err(|_bad| Error::Usage {
            message: "the input is not UTF-8".to_owned(),
            usage: "to convert it: iconv -t UTF-8".to_owned(),
        })
    }

    /// Reads what has been typed.
    pub fn read(&mut self) -> Result<(), Error> {
        let mut chunk = [0_u8; 4096];
        match self.input.read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(count) => self.bytes.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).doing("read standard input"),
        }
        Ok(())
    }

    /// Whether the input has ended; said once.
    pub fn take_end(&mut self) -> bool {
        std::mem::take(&mut self.ended)
    }

    /// Whether there will be no more.
    pub fn has_ended(&self) -> bool {
        self.ended && self.bytes.is_empty()
    }

    /// Forgets what was typed and not yet taken.
    pub fn forget(&mut self) {
        self.bytes.clear();
        sys::forget_typed(self.input.as_fd());
    }
}

impl AsFd for Keyboard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }
}
