//! What is said of a command line that cannot be understood, and what may have been meant.

use crate::error::{Error, one_line};

use super::following;

/// The usage line where no command was understood.
pub fn general_usage() -> String {
    "Usage: opta COMMAND [OPTION]...  (opta --help lists the commands)".to_owned()
}

/// A refusal that shows how it is called.
pub fn misuse(message: String, usage: String) -> Error {
    Error::Usage { message, usage }
}

/// More words are needed.
pub fn unfinished(words: &[String]) -> Error {
    let choices = following(words).join(", ");
    let message = match words {
        [] => format!("a command is needed: {choices}"),
        _ => format!("'{}' needs a command: {choices}", words.join(" ")),
    };
    misuse(message, general_usage())
}

/// No command begins with `words` and goes on with `word`.
pub fn unknown_word(words: &[String], word: &str) -> Error {
    let known: Vec<String> = following(words).into_iter().map(str::to_owned).collect();
    let place = if words.is_empty() { String::new() } else { format!("{} ", words.join(" ")) };
    let shown = one_line(word);
    let message = match nearest(word, &known) {
        Some(meant) => format!("unknown command '{place}{shown}'; did you mean '{place}{meant}'?"),
        None => format!("unknown command '{place}{shown}'"),
    };
    misuse(message, general_usage())
}

/// `known` are the options as they are typed.
pub fn unknown_option(name: &str, known: &[String], usage: String) -> Error {
    let message = match nearest(name, known) {
        Some(meant) => format!("unknown option '{name}'; did you mean '{meant}'?"),
        None => format!("unknown option '{name}'"),
    };
    misuse(message, usage)
}

/// The word among `known` that `typed` is most likely a slip of.
fn nearest<'k>(typed: &str, known: &'k [String]) -> Option<&'k str> {
    if typed.len() >= 4
        && let Some(word) = known.iter().find(|word| word.starts_with(typed))
    {
        return Some(word);
    }
    let allowed = 1 + typed.chars().count() / 4;
    let by_distance = known.iter().map(|word| (distance(typed, word), word));
    let (least, word) = by_distance.min_by_key(|(distance, _)| *distance)?;
    // One letter is no slip of another: every short option is one letter away from every other.
    (least <= allowed && typed.trim_start_matches('-').chars().count() > 1).then_some(word)
}

/// Letters to insert, remove, change, or swap with their neighbour (optimal string alignment).
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().take(64).collect();
    let right: Vec<char> = right.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
    for (i, a) in left.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let change = at(&row, j) + usize::from(a != b);
            let mut least = change.min(at(&row, j + 1) + 1).min(at(&next, j) + 1);
            let swapped =
                i > 0 && j > 0 && left.get(i - 1) == Some(b) && right.get(j - 1) == Some(a);
            if swapped {
                least = least.min(at(&before, j - 1) + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or(0)
}
