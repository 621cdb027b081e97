//! Text that is clipped in the middle to fit a limit: its beginning and its end are kept.

use std::collections::VecDeque;

/// A buffer that keeps the first and the last of its bytes.
pub struct Clip {
    head: Vec<u8>,
    head_max: usize,
    tail: VecDeque<u8>,
    tail_max: usize,
    dropped: u64,
}

impl Clip {
    /// Makes room for `bytes_max` bytes, three quarters of them for the beginning.
    pub fn new(bytes_max: usize) -> Clip {
        let tail_max = bytes_max / 4;
        let head_max = bytes_max - tail_max;
        Clip { head: Vec::new(), head_max, tail: VecDeque::new(), tail_max, dropped: 0 }
    }

    /// Returns how many more bytes belong to the beginning, which is kept.
    pub fn room(&self) -> usize {
        self.head_max - self.head.len()
    }

    /// Returns whether bytes were dropped.
    pub fn is_clipped(&self) -> bool {
        self.dropped > 0
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        let room = self.head_max - self.head.len();
        let (head, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        self.head.extend_from_slice(head);
        // Only the end of a long piece can remain.
        let skipped = rest.len().saturating_sub(self.tail_max);
        self.tail.extend(rest.get(skipped..).unwrap_or_default());
        let over = self.tail.len().saturating_sub(self.tail_max);
        self.tail.drain(..over);
        self.dropped += (skipped + over) as u64;
    }

    /// Returns the text, with a mark where bytes were dropped. What is not UTF-8 becomes `�`.
    pub fn text(mut self) -> String {
        if self.dropped == 0 {
            self.head.extend(self.tail);
            return String::from_utf8_lossy(&self.head).into_owned();
        }
        // Neither cut may split a character.
        while let Err(error) = std::str::from_utf8(&self.head)
            && error.error_len().is_none()
        {
            self.head.truncate(error.valid_up_to());
        }
        while self.tail.front().is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000) {
            self.tail.pop_front();
        }
        let mut text = String::from_utf8_lossy(&self.head).into_owned();
        text.push_str(&format!("\n[… {} bytes are left out here …]\n", self.dropped));
        text.push_str(&String::from_utf8_lossy(self.tail.make_contiguous()));
        text
    }
}

/// Returns `text`, clipped if it has more than `bytes_max` bytes.
pub fn clip(text: String, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text;
    }
    let mut clip = Clip::new(bytes_max);
    clip.push(text.as_bytes());
    clip.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_at_the_limit_is_kept_and_one_byte_more_is_dropped() {
        assert_eq!(clip("x".repeat(100), 100), "x".repeat(100));
        let cut = clip(format!("{}y", "x".repeat(100)), 100);
        assert!(cut.starts_with(&"x".repeat(75)), "{cut}");
        assert!(cut.contains("[… 1 bytes are left out here …]"), "{cut}");
        assert!(cut.ends_with("xxxy"), "{cut}");
    }

    #[test]
    fn pieces_clip_like_the_whole_text_and_no_character_is_split() {
        let text: String = (0..5_000).map(|i| format!("{i}é")).collect();
        for size in [1, 7, 100, 5_000] {
            let mut pieces = Clip::new(1_000);
            text.as_bytes().chunks(size).for_each(|piece| pieces.push(piece));
            let cut = pieces.text();
            assert_eq!(cut, clip(text.clone(), 1_000));
            assert!(!cut.contains('\u{fffd}') && cut.ends_with("4999é"));
        }
        let mut odd = Clip::new(10);
        odd.push(b"\xff\xfe");
        assert_eq!(odd.text(), "\u{fffd}\u{fffd}");
    }
}
