//! The lines of a file, forwards and backwards, in memory that does not grow with the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Lines of a stretch of a file, through a buffer that grows only for a long line.
pub struct Window {
    buffer: Vec<u8>,
    /// Where in the file the buffer begins, and where the stretch ends.
    offset: u64,
    end: u64,
    /// The line that is next begins here in the buffer; up to `searched` it has no end.
    start: usize,
    searched: usize,
}

/// One read of a file takes up to this much, unless a line is longer.
pub const READ_BYTES: usize = 128 * 1024;

impl Window {
    /// The lines that begin at or behind `start` and end before `end`.
    pub fn new(start: u64, end: u64) -> Window {
        Window { buffer: Vec::new(), offset: start, end, start: 0, searched: 0 }
    }

    /// The next line that has a line end, without it, and where it begins in the file.
    pub fn next(&mut self, file: &File) -> io::Result<Option<(&[u8], u64)>> {
        loop {
            let rest = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(length) = line_end(rest) {
                let (start, stop) = (self.start, self.searched + length);
                self.start = stop + 1;
                self.searched = self.start;
                let line = self.buffer.get(start..stop).unwrap_or_default();
                return Ok(Some((line, self.offset + start as u64)));
            }
            self.searched = self.buffer.len();
            if !self.fill(file)? {
                return Ok(None);
            }
        }
    }

    /// Reads on; `false` at the end.
    fn fill(&mut self, file: &File) -> io::Result<bool> {
        self.buffer.drain(..self.start);
        self.offset += self.start as u64;
        self.searched -= self.start;
        self.start = 0;
        let at = self.offset + self.buffer.len() as u64;
        let want = usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX);
        let want = want.min(READ_BYTES.max(self.buffer.len()));
        let old = self.buffer.len();
        self.buffer.resize(old + want, 0);
        let got = match self.buffer.get_mut(old..) {
            Some(room) if !room.is_empty() => read_at(file, room, at)?,
            _ => 0,
        };
        self.buffer.truncate(old + got);
        Ok(got > 0)
    }
}

/// The place of the first line end. In strides: `contains` looks at many bytes at once, and long
/// journals are read through.
fn line_end(bytes: &[u8]) -> Option<usize> {
    let (index, stride) =
        bytes.chunks(STRIDE_BYTES).enumerate().find(|(_, stride)| stride.contains(&b'\n'))?;
    let within = stride.iter().position(|byte| *byte == b'\n')?;
    Some(index * STRIDE_BYTES + within)
}

const STRIDE_BYTES: usize = 64;

/// One read, whatever interrupts it.
pub fn read_at(file: &File, room: &mut [u8], at: u64) -> io::Result<usize> {
    loop {
        match file.read_at(room, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Lines of a file from a place backwards.
pub struct Backwards {
    /// The file's bytes from `offset` on, up to the place where the next line ends.
    buffer: Vec<u8>,
    offset: u64,
}

/// Far longer than any line that is read backwards.
const LINE_BYTES_MAX: usize = 64 * 1024;

impl Backwards {
    /// The lines that end before `end`, the last one first.
    pub fn new(end: u64) -> Backwards {
        Backwards { buffer: Vec::new(), offset: end }
    }

    /// The line before, without its line end, and where it begins.
    pub fn next(&mut self, file: &File) -> io::Result<Option<(Vec<u8>, u64)>> {
        loop {
            let body = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
            if let Some(before) = body.iter().rposition(|byte| *byte == b'\n') {
                let line = body.get(before + 1..).unwrap_or_default().to_vec();
                self.buffer.truncate(before + 1);
                return Ok(Some((line, self.offset + before as u64 + 1)));
            }
            if self.offset == 0 {
                let line = body.to_vec();
                self.buffer.clear();
                return Ok((!line.is_empty()).then_some((line, 0)));
            }
            let step = self.offset.min(16 * 1024);
            let mut block = vec![0; usize::try_from(step).unwrap_or(0)];
            file.read_exact_at(&mut block, self.offset - step)?;
            if self.buffer.len() <= LINE_BYTES_MAX {
                block.append(&mut self.buffer);
            }
            // Else it is no line of ours, whatever it begins with, and its end is let go.
            self.buffer = block;
            self.offset -= step;
        }
    }
}
