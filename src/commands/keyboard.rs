//! The terminal of a chat while no line is edited: what is typed is not shown, and waits for the
//! next prompt.
//!
//! It stays in the kernel, which keeps its order, unless there is so much that the kernel would
//! stop reading the terminal, and with it Ctrl-C, or a question needs the terminal.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::Instant;

use crate::lines::READ_BYTES;
use crate::sys::terminal::{TerminalModes, typed_bytes};
use crate::{limits, sys};

/// The terminal that is typed on.
pub struct Keyboard {
    input: File,
    /// The modes in which the chat found the terminal, and leaves it.
    original: TerminalModes,
    /// What was typed before a question, or is too much for the kernel.
    typed: Vec<u8>,
}

impl Keyboard {
    /// Uses the terminal of standard input.
    pub fn new() -> io::Result<Keyboard> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let original = TerminalModes::of(input.as_fd())?;
        Ok(Keyboard { input: File::from(input), original, typed: Vec::new() })
    }

    /// Hides what is typed. A failure means that the terminal is gone, which the next read reports.
    pub fn hide(&self) {
        drop(self.original.without_echo().apply(self.input.as_fd()));
    }

    /// Gives the terminal the modes in which it was found.
    pub fn restore(&self) {
        drop(self.original.apply(self.input.as_fd()));
    }

    /// Returns a function that does the same.
    pub fn restorer(&self) -> io::Result<impl FnOnce() + Send + use<>> {
        let (input, original) = (self.input.try_clone()?, self.original.clone());
        Ok(move || drop(original.apply(input.as_fd())))
    }

    /// Keeps what was typed apart if it is so much that Ctrl-C would soon have no effect.
    pub fn make_room(&mut self) {
        if typed_bytes(self.input.as_fd()) > limits::TYPED_BYTES_MAX {
            self.set_aside();
        }
    }

    /// Keeps what was typed so far apart: it is for the next prompt.
    pub fn set_aside(&mut self) {
        let room = usize::try_from(limits::TASK_BYTES_MAX).unwrap_or(usize::MAX);
        while let Some(bytes) = self.read() {
            self.typed.extend_from_slice(&bytes);
            self.typed.truncate(room);
        }
    }

    /// Waits for the rest of a paste whose beginning was kept apart. Its lines would be messages of
    /// their own, or answers.
    pub fn finish_paste(&mut self) {
        let deadline = Instant::now() + limits::PASTE_MAX;
        while self.is_in_paste() && Instant::now() < deadline && self.wait() {
            self.set_aside();
        }
    }

    fn is_in_paste(&self) -> bool {
        let last = |mark: &[u8]| self.typed.windows(mark.len()).rposition(|part| part == mark);
        last(b"\x1b[200~") > last(b"\x1b[201~")
    }

    /// Waits until more is typed; `false` if that takes too long for a paste.
    fn wait(&self) -> bool {
        let ready = sys::wait_readable([self.input.as_fd()], Some(limits::PASTE_PAUSE_MAX));
        matches!(ready, Ok([true]))
    }

    /// Discards what arrives, until nothing has arrived for a moment: the rest of a paste.
    pub fn discard(&mut self) {
        self.hide();
        let deadline = Instant::now() + limits::PASTE_MAX;
        while Instant::now() < deadline && self.wait() && self.read().is_some() {}
        self.restore();
    }

    /// Returns the text that was kept apart.
    pub fn take_text(&mut self) -> String {
        text_of_keys(&String::from_utf8_lossy(&std::mem::take(&mut self.typed)))
    }

    /// Reads what is available; `None` if that is nothing.
    fn read(&self) -> Option<Vec<u8>> {
        let count = typed_bytes(self.input.as_fd()).min(READ_BYTES);
        let mut bytes = vec![0; count];
        let count = if count > 0 { (&self.input).read(&mut bytes).ok()? } else { 0 };
        bytes.truncate(count);
        (count > 0).then_some(bytes)
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Returns the text that these keys leave in a line: characters, less those that were deleted.
/// Other keys have no effect.
fn text_of_keys(keys: &str) -> String {
    let mut text = String::new();
    let mut rest = keys.chars().peekable();
    while let Some(key) = rest.next() {
        match key {
            '\r' | '\n' => text.push('\n'),
            '\t' => text.push(key),
            '\x7f' | '\x08' => drop(text.pop()),
            // Ctrl-U
            '\x15' => text.truncate(text.rfind('\n').map_or(0, |end| end + 1)),
            '\x1b' => {
                if rest.next_if(|next| matches!(next, '[' | 'O')).is_some() {
                    let is_inner = |next: &char| matches!(next, '\x20'..='\x3f');
                    while rest.next_if(is_inner).is_some() {}
                }
                rest.next();
            }
            _ if key.is_control() => {}
            _ => text.push(key),
        }
    }
    text.truncate(text.trim_end_matches('\n').len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_were_typed_ahead_become_the_text_that_they_mean() {
        for (keys, text) in [
            ("hello", "hello"),
            ("hellp\x7fo", "hello"),
            ("one\rtwo\n", "one\ntwo"),
            ("a\x1b[Db\x1b[1;5Cc\x1bOHd", "abcd"),
            ("\x1b[200~x\ny\x1b[201~z", "x\nyz"),
            ("one\ntwo\x15three", "one\nthree"),
            ("\x1bf\x07ü\u{fffd}", "ü\u{fffd}"),
        ] {
            assert_eq!(text_of_keys(keys), text, "{keys:?}");
        }
    }
}
