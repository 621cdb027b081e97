//! Lines from bytes: as they arrive in pieces, and in a file from any place to its end or to its
//! beginning. The memory in use does not depend on how many lines there are.
//!
//! A line feed ends a line and is not part of it.

use std::fs::File;
use std::io::{self, BufRead};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// A buffer that takes in pieces and returns lines.
///
/// A line of more than `bytes_max` bytes is returned as soon as it is known to be longer: its first
/// `bytes_max + 1` bytes. The rest of it is skipped.
pub struct Lines {
    /// What has arrived is before `end`. The rest keeps its bytes, so that it is cleared only once.
    buffer: Vec<u8>,
    end: usize,
    /// The next line begins here; up to `searched` it has no end.
    start: usize,
    searched: usize,
    bytes_max: usize,
    /// Whether the buffer, up to the next line feed, belongs to a line that was too long.
    skips: bool,
}

/// Lines of any length.
impl Default for Lines {
    fn default() -> Lines {
        Lines::new(usize::MAX)
    }
}

impl Lines {
    /// Returns an empty buffer for lines of up to `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Lines {
        Lines { buffer: Vec::new(), end: 0, start: 0, searched: 0, bytes_max, skips: false }
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.compact();
        self.buffer.truncate(self.end);
        self.buffer.extend_from_slice(bytes);
        self.end = self.buffer.len();
    }

    /// Adds up to `count` bytes, which `read` puts into the slice that it is given. Returns what
    /// `read` returns, the number of these bytes.
    pub fn fill(
        &mut self,
        count: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.compact();
        let end = self.end + count;
        let missing = end.saturating_sub(self.buffer.len());
        match self.end {
            // The system's new memory is clear already.
            0 if missing > 0 => self.buffer = vec![0; end],
            _ => self.buffer.append(&mut vec![0; missing]),
        }
        let filled = read(self.buffer.get_mut(self.end..end).unwrap_or_default());
        self.end += filled.as_ref().map_or(0, |filled| *filled);
        filled
    }

    /// Returns the next line that has ended or is too long.
    pub fn next(&mut self) -> Option<&[u8]> {
        self.next_that(|_| true)
    }

    /// Returns the next such line that is `wanted`, and skips the others before it.
    pub fn next_that(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Option<&[u8]> {
        loop {
            let range = self.find()?;
            if wanted(self.buffer.get(range.clone()).unwrap_or_default()) {
                return self.buffer.get(range);
            }
        }
    }

    /// Returns the part of the next line that has arrived, after [`Lines::next`] returned `None`.
    pub fn pending(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Returns the part of the next line that has arrived, unless it is empty, as if it had ended.
    pub fn take_pending(&mut self) -> Option<&[u8]> {
        let range = self.start..self.end;
        (self.start, self.searched, self.skips) = (range.end, range.end, false);
        self.buffer.get(range).filter(|line| !line.is_empty())
    }

    /// Forgets everything that has arrived.
    pub fn clear(&mut self) {
        self.take_pending();
    }

    fn find(&mut self) -> Option<Range<usize>> {
        loop {
            let unsearched = self.buffer.get(self.searched..self.end).unwrap_or_default();
            let feed = line_feed(unsearched).map(|at| self.searched + at);
            let (start, end) = (self.start, feed.unwrap_or(self.end));
            let cut = start.saturating_add(self.bytes_max).saturating_add(1);
            self.searched = end + usize::from(feed.is_some());
            if feed.is_none() && !self.skips && end < cut {
                return None;
            }
            self.start = self.searched;
            match std::mem::replace(&mut self.skips, feed.is_none()) {
                false => return Some(start..end.min(cut)),
                true if feed.is_none() => return None,
                true => {}
            }
        }
    }

    fn compact(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.searched -= self.start;
            self.start = 0;
        }
    }
}

/// Returns the index of the first line feed.
fn line_feed(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    // This is the library's search for a byte, which compares many at a time: long journals are
    // read completely.
    let count = rest.skip_until(b'\n').ok()?;
    count.checked_sub(1).filter(|at| bytes.get(*at) == Some(&b'\n'))
}

/// Reads from `at` until `room` is full or the file ends. Returns the number of bytes read.
pub fn read_at(file: &File, room: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = room.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// How much of a file is read at a time, unless a line is longer.
pub const READ_BYTES: usize = 64 * 1024;

/// The lines of a part of a file.
#[derive(Default)]
pub struct Forwards {
    lines: Lines,
    /// Where the file is read next, and where the part ends.
    at: u64,
    end: u64,
}

impl Forwards {
    /// Returns the lines that begin at `start` or later and whose line feed is before `end`. Of a
    /// line that has more than `bytes_max` bytes, the first `bytes_max + 1` are returned.
    pub fn new(start: u64, end: u64, bytes_max: usize) -> Forwards {
        Forwards { lines: Lines::new(bytes_max), at: start, end }
    }

    /// Continues with another part of a file, in the same memory.
    pub fn restart(&mut self, start: u64, end: u64) {
        self.lines.clear();
        (self.at, self.end) = (start, end);
    }

    /// Returns the next line and where it begins in the file. If there is none, the file may have
    /// grown at the next call.
    pub fn next(&mut self, file: &File) -> io::Result<Option<(&[u8], u64)>> {
        loop {
            if let Some(range) = self.lines.find() {
                let start = self.at - (self.lines.end - range.start) as u64;
                return Ok(Some((self.lines.buffer.get(range).unwrap_or_default(), start)));
            }
            // Twice as much each time, so a long line is not copied often.
            let most = READ_BYTES.max(self.lines.pending().len()) as u64;
            let count = usize::try_from(most.min(self.end.saturating_sub(self.at))).unwrap_or(0);
            match self.lines.fill(count, |room| read_at(file, room, self.at))? {
                0 => return Ok(None),
                count => self.at += count as u64,
            }
        }
    }

    /// Returns the rest without a line feed, unless it is empty.
    pub fn take_pending(&mut self) -> Option<&[u8]> {
        self.lines.take_pending()
    }

    /// Returns up to where the file was read.
    pub fn position(&self) -> u64 {
        self.at
    }
}

/// The lines of a file, from the last to the first.
pub struct Backwards {
    /// The end of the rest of the file.
    end: u64,
    block: Vec<u8>,
    block_start: u64,
    bytes_max: usize,
    /// A line that is not in the block as a whole.
    line: Vec<u8>,
}

impl Backwards {
    /// Returns the lines before `end`; the last one need not have a line feed. Of a line that has
    /// more than `bytes_max` bytes, the first `bytes_max + 1` are returned.
    pub fn new(end: u64, bytes_max: usize) -> Backwards {
        Backwards { end, block: Vec::new(), block_start: end, bytes_max, line: Vec::new() }
    }

    /// Returns the line before the one returned last, and where it begins in the file.
    pub fn next(&mut self, file: &File) -> io::Result<Option<(&[u8], u64)>> {
        if self.end == self.block_start && !self.load(file)? {
            self.end = 0;
            return Ok(None);
        }
        let has_feed = self.last_feed_before(self.end) == self.end.checked_sub(1);
        let end = self.end - u64::from(has_feed);
        let mut searched = end;
        let start = loop {
            if let Some(feed) = self.last_feed_before(searched) {
                self.end = feed + 1;
                break self.end;
            }
            searched = self.block_start;
            if !self.load(file)? {
                self.end = 0;
                break searched;
            }
        };
        let length = usize::try_from(end - start).unwrap_or(usize::MAX);
        let length = length.min(self.bytes_max.saturating_add(1));
        let within = usize::try_from(start - self.block_start).unwrap_or(usize::MAX);
        if let Some(line) = self.block.get(within..within.saturating_add(length)) {
            return Ok(Some((line, start)));
        }
        if self.line.len() < length {
            // Not by `resize`, which fills byte by byte.
            self.line = vec![0; length];
        }
        self.line.truncate(length);
        let count = read_at(file, &mut self.line, start)?;
        self.line.truncate(count);
        Ok(Some((&self.line, start)))
    }

    fn last_feed_before(&self, offset: u64) -> Option<u64> {
        let length = usize::try_from(offset - self.block_start).ok()?;
        let searched = self.block.get(..length)?;
        let feed = searched.iter().rposition(|byte| *byte == b'\n')?;
        Some(self.block_start + feed as u64)
    }

    /// Reads the block before; `false` if there is none, because this is the beginning of the file
    /// or because the file has become shorter.
    fn load(&mut self, file: &File) -> io::Result<bool> {
        let length = usize::try_from(self.block_start).unwrap_or(usize::MAX).min(READ_BYTES);
        if length == 0 {
            return Ok(false);
        }
        self.block_start -= length as u64;
        if self.block.len() != length {
            self.block = vec![0; length];
        }
        if read_at(file, &mut self.block, self.block_start)? == length {
            return Ok(true);
        }
        (self.block_start, self.block) = (0, Vec::new());
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A file without a name that holds `bytes`.
    fn file(bytes: &[u8]) -> File {
        let path = std::env::temp_dir().join(format!("opta lines {:x}", fastrand::u64(..)));
        let mut options = File::options();
        let mut file = options.read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// Some lines, not all with an end, short and long.
    fn random_bytes(random: &mut fastrand::Rng) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..random.usize(..20) {
            let length = *random.choice(&[0, 1, 5, 300, READ_BYTES - 1, READ_BYTES + 1]).unwrap();
            bytes.extend(std::iter::repeat_with(|| random.u8(b' '..)).take(length));
            bytes.push(b'\n');
        }
        if random.bool() {
            bytes.pop();
        }
        bytes
    }

    /// The lines of `bytes`, each with its place: what is behind the last line feed is one as well,
    /// unless it is empty. At most `bytes_max + 1` bytes of each.
    fn split(bytes: &[u8], bytes_max: usize) -> Vec<(Vec<u8>, u64)> {
        let mut at = 0;
        let mut lines = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let bare = line.strip_suffix(b"\n").unwrap_or(line);
            lines.push((bare[..bare.len().min(bytes_max.saturating_add(1))].to_vec(), at));
            at += line.len() as u64;
        }
        lines
    }

    #[test]
    fn pieces_of_any_size_give_the_same_lines() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..50 {
            let bytes = random_bytes(&mut random);
            let bytes_max = *random.choice(&[0, 1, 4, 299, 300, usize::MAX]).unwrap();
            let mut lines = Lines::new(bytes_max);
            let mut found: Vec<Vec<u8>> = Vec::new();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let size = *random.choice(&[1, 7, 1000, rest.len()]).unwrap();
                let (piece, after) = rest.split_at(size.min(rest.len()));
                if random.bool() {
                    lines.push(piece);
                } else {
                    let read = |room: &mut [u8]| {
                        room[..piece.len()].copy_from_slice(piece);
                        Ok(piece.len())
                    };
                    assert_eq!(lines.fill(piece.len() + 3, read).unwrap(), piece.len());
                }
                rest = after;
                while let Some(line) = lines.next() {
                    found.push(line.to_vec());
                }
                assert!(lines.pending().len() <= bytes_max);
            }
            found.extend(lines.take_pending().map(<[u8]>::to_vec));
            let wanted: Vec<Vec<u8>> =
                split(&bytes, bytes_max).into_iter().map(|(line, _)| line).collect();
            assert!(found == wanted, "{} instead of {} lines", found.len(), wanted.len());
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_returned_before_its_end_and_the_next_one_is_whole() {
        let mut lines = Lines::new(3);
        lines.push(b"abc");
        assert_eq!(lines.next(), None);
        lines.push(b"def");
        assert_eq!(lines.next(), Some(&b"abcd"[..]));
        assert_eq!(lines.next(), None);
        assert_eq!(lines.pending(), b"");
        lines.push(b"ghi\nabc\nx");
        assert_eq!(lines.next_that(|line| line != b"ghi"), Some(&b"abc"[..]));
        assert_eq!(lines.next_that(|line| line != b"ghi"), None);
        assert_eq!(lines.pending(), b"x");
        lines.clear();
        lines.push(b"y\n");
        assert_eq!(lines.next(), Some(&b"y"[..]));
        assert_eq!(lines.take_pending(), None);
    }

    #[test]
    fn a_file_is_read_forwards_from_any_line_to_any_place() {
        let mut random = fastrand::Rng::with_seed(8);
        for _ in 0..50 {
            let bytes = random_bytes(&mut random);
            let file = file(&bytes);
            let bytes_max = *random.choice(&[0, 4, 300, usize::MAX]).unwrap();
            let all = split(&bytes, bytes_max);
            let first = random.usize(..=all.len());
            let start = all.get(first).map_or(bytes.len() as u64, |(_, start)| *start);
            let end = random.u64(start..=bytes.len() as u64);
            let mut lines = Forwards::new(start, end, bytes_max);
            for (line, start) in &all[first..] {
                let arrived = usize::try_from(end.saturating_sub(*start)).unwrap();
                let is_too_long = line.len() > bytes_max;
                if arrived + usize::from(is_too_long) <= line.len() {
                    break;
                }
                assert_eq!(lines.next(&file).unwrap(), Some((&line[..], *start)));
            }
            assert_eq!(lines.next(&file).unwrap(), None);
        }
    }

    #[test]
    fn a_file_is_read_backwards_from_its_end_or_from_a_line() {
        let mut random = fastrand::Rng::with_seed(9);
        for _ in 0..50 {
            let bytes = random_bytes(&mut random);
            let file = file(&bytes);
            let bytes_max = *random.choice(&[0, 4, 300, READ_BYTES]).unwrap();
            let mut all = split(&bytes, bytes_max);
            let mut lines = Backwards::new(bytes.len() as u64, bytes_max);
            while let Some((line, start)) = all.pop() {
                let found = lines.next(&file).unwrap();
                assert!(found == Some((&line[..], start)), "the line at {start}");
                if random.usize(..5) == 0 {
                    lines = Backwards::new(start, bytes_max);
                }
            }
            assert_eq!(lines.next(&file).unwrap(), None);
            assert_eq!(lines.next(&file).unwrap(), None);
        }
    }

    #[test]
    fn a_file_that_becomes_shorter_is_read_to_its_end() {
        let bytes = [&b"x".repeat(READ_BYTES)[..], b"\n"].concat().repeat(3);
        let file = file(&bytes);
        let mut lines = Backwards::new(bytes.len() as u64, 10);
        assert!(lines.next(&file).unwrap().is_some());
        file.set_len(5).unwrap();
        // One line may be in memory.
        assert!((0..3).any(|_| lines.next(&file).unwrap().is_none()));
        assert_eq!(lines.next(&file).unwrap(), None);
        let mut lines = Forwards::new(0, bytes.len() as u64, 10);
        assert_eq!(lines.next(&file).unwrap(), None);
    }
}
