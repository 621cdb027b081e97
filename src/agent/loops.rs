//! Signs that a model repeats itself: the same calls with the same results, or the same text. Pure.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::limits;

/// Calls that are repeated in turns of this many count as repeated: A B A B A B.
const CALLS_MAX: usize = 3;

/// The latest calls of a turn, with their results.
#[derive(Default)]
pub struct CallLoop(VecDeque<u64>);

impl CallLoop {
    /// Adds a call and its result. Returns whether the latest calls only repeat each other. The
    /// same call with another result waits for something.
    pub fn push(&mut self, call: &(String, String), result: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        (call, result).hash(&mut hasher);
        self.0.push_front(hasher.finish());
        self.0.truncate(CALLS_MAX * limits::SAME_CALLS_MAX);
        (1..=CALLS_MAX).any(|period| {
            let latest = || self.0.iter().take(period * limits::SAME_CALLS_MAX);
            latest().count() == period * limits::SAME_CALLS_MAX
                && latest().zip(latest().skip(period)).all(|(one, other)| one == other)
        })
    }
}

/// The latest text of an answer.
#[derive(Default)]
pub struct TextLoop {
    latest: Vec<u8>,
    /// Bytes since the last check.
    unchecked: usize,
}

impl TextLoop {
    /// Adds text. Returns whether the latest text only repeats the same.
    pub fn push(&mut self, text: &str) -> bool {
        self.latest.extend_from_slice(text.as_bytes());
        self.unchecked += text.len();
        if self.unchecked < limits::SAME_TEXT_BYTES {
            return false;
        }
        self.unchecked = 0;
        let excess = self.latest.len().saturating_sub(limits::SAME_TEXT_WINDOW);
        self.latest.drain(..excess);
        let Some(period) = self.period() else { return false };
        let (mut ends, mut earlier) =
            (self.latest.iter().rev(), self.latest.iter().rev().skip(period));
        let pairs = std::iter::from_fn(|| Some((ends.next()?, earlier.next()?)));
        let repeated = pairs.take_while(|(one, other)| one == other).count();
        repeated + period >= limits::SAME_TEXT_BYTES_ALL.max(period * limits::SAME_TEXTS_MAX)
    }

    /// Returns how long ago the latest bytes were there before.
    fn period(&self) -> Option<usize> {
        let (_, last) = self.latest.split_last_chunk::<{ limits::SAME_TEXT_BYTES }>()?;
        let (_newest, before) = self.latest.split_last()?;
        let at = before.windows(last.len()).rposition(|window| window == last)?;
        Some(self.latest.len() - last.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the number of calls after which a loop is found.
    fn calls_until_found(steps: &[(&str, &str)]) -> Option<usize> {
        let mut calls = CallLoop::default();
        let push = |(name, result): &(&str, &str)| {
            calls.push(&((*name).to_owned(), "{}".to_owned()), result)
        };
        steps.iter().map(push).position(|found| found).map(|at| at + 1)
    }

    #[test]
    fn equal_calls_with_equal_results_are_a_loop_and_polling_is_not() {
        assert_eq!(calls_until_found(&[("a", "1"); 5]), Some(limits::SAME_CALLS_MAX));
        assert_eq!(calls_until_found(&[("a", "1"), ("a", "2"), ("a", "3"), ("a", "4")]), None);
        assert_eq!(calls_until_found(&[("a", "1"), ("a", "1"), ("b", "1"), ("a", "1")]), None);
        let turns = [("a", "1"), ("b", "2")].repeat(limits::SAME_CALLS_MAX);
        assert_eq!(calls_until_found(&turns), Some(turns.len()));
        let turns = [("a", "1"), ("b", "2"), ("c", "2")].repeat(limits::SAME_CALLS_MAX);
        assert_eq!(calls_until_found(&turns), Some(turns.len()));
    }

    /// Returns whether a loop is found in a text that arrives in pieces of `size` bytes.
    fn is_loop(text: &str, size: usize) -> bool {
        let mut texts = TextLoop::default();
        text.as_bytes().chunks(size).any(|piece| texts.push(std::str::from_utf8(piece).unwrap()))
    }

    #[test]
    fn the_same_text_over_and_over_is_a_loop_and_a_list_is_not() {
        let sentence = "The quick brown fox jumps over the lazy dog, and then it rests a while. ";
        let paragraph: String = (0..40).map(|number| format!("{number}: {sentence}")).collect();
        for size in [1, 7, 4096] {
            assert!(is_loop(&sentence.repeat(40), size));
            assert!(is_loop(&paragraph.repeat(5), size));
            assert!(is_loop(&format!("{paragraph}{}", "ha".repeat(2000)), size));
            let list: String = (0..500).map(|number| format!("{number}: {sentence}")).collect();
            assert!(!is_loop(&list, size));
            assert!(!is_loop(&paragraph.repeat(2), size));
            assert!(!is_loop(&"-".repeat(1000), size));
        }
    }
}
