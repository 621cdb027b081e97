//! The difference between two texts, for people: changed lines with their numbers, and a few lines
//! around them. Pure.

use crate::limits;

/// Returns the lines that differ, after `-` and `+`, and up to three lines before and after them.
/// The number is that of the line in the old text, or for `+` in the new one.
pub fn lines(old: &str, new: &str) -> Vec<String> {
    let (old, new) = (split(old), split(new));
    let steps = steps(&old, &new);
    let is_change = |step: &Step| !matches!(step, Step::Same(..));
    let mut out = Vec::new();
    let mut shown_to = 0;
    for (at, step) in steps.iter().enumerate() {
        let around = at.saturating_sub(CONTEXT)..(at + CONTEXT + 1).min(steps.len());
        let is_near = steps.get(around).unwrap_or_default().iter().any(is_change);
        if !is_near {
            continue;
        }
        if at > shown_to && !out.is_empty() {
            out.push("…".to_owned());
        }
        shown_to = at + 1;
        let (number, mark, line) = match *step {
            Step::Same(index) => (index, ' ', old.get(index)),
            Step::Removed(index) => (index, '-', old.get(index)),
            Step::Added(index) => (index, '+', new.get(index)),
        };
        let line = line.copied().unwrap_or_default();
        match line.strip_suffix('\n') {
            Some(line) => out.push(format!("{:>4} {mark} {line}", number + 1)),
            None => {
                out.push(format!("{:>4} {mark} {line}", number + 1));
                out.push("     \\ no line end".to_owned());
            }
        }
    }
    out
}

/// Lines that are shown before and after a change.
const CONTEXT: usize = 3;

/// A line with its index, that in the old text if it is in both.
enum Step {
    Same(usize),
    Removed(usize),
    Added(usize),
}

fn split(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').collect()
}

fn steps(old: &[&str], new: &[&str]) -> Vec<Step> {
    let same = |(a, b): &(&&str, &&str)| a == b;
    let begin = old.iter().zip(new).take_while(same).count();
    let (old_rest, new_rest) = (tail(old, begin), tail(new, begin));
    let end = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(same).count();
    let (old_end, new_end) = (old.len() - end, new.len() - end);
    let mut steps: Vec<Step> = (0..begin).map(Step::Same).collect();
    let old_middle = old.get(begin..old_end).unwrap_or_default();
    let new_middle = new.get(begin..new_end).unwrap_or_default();
    middle(old_middle, new_middle, begin, &mut steps);
    steps.extend((0..end).map(|index| Step::Same(old_end + index)));
    steps
}

fn tail<'t, 's>(lines: &'t [&'s str], begin: usize) -> &'t [&'s str] {
    lines.get(begin..).unwrap_or_default()
}

/// Adds the steps between two parts that begin at the same index: a longest common subsequence, or
/// if they are too long for that, all of one and then all of the other.
fn middle(old: &[&str], new: &[&str], begin: usize, steps: &mut Vec<Step>) {
    let width = new.len() + 1;
    let cells = width.saturating_mul(old.len() + 1);
    let is_short = cells <= limits::DIFF_CELLS_MAX;
    let mut table = vec![0_u32; if is_short { cells } else { 0 }];
    let cell = |table: &[u32], i: usize, j: usize| table.get(i * width + j).copied().unwrap_or(0);
    for (i, a) in old.iter().enumerate().rev().take_while(|_| is_short) {
        for (j, b) in new.iter().enumerate().rev() {
            let length = match a == b {
                true => cell(&table, i + 1, j + 1) + 1,
                false => cell(&table, i + 1, j).max(cell(&table, i, j + 1)),
            };
            if let Some(place) = table.get_mut(i * width + j) {
                *place = length;
            }
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        let is_same = is_short && i < old.len() && j < new.len() && old.get(i) == new.get(j);
        if is_same {
            steps.push(Step::Same(begin + i));
            (i, j) = (i + 1, j + 1);
        } else if i < old.len()
            && (j == new.len() || cell(&table, i + 1, j) >= cell(&table, i, j + 1))
        {
            steps.push(Step::Removed(begin + i));
            i += 1;
        } else {
            steps.push(Step::Added(begin + j));
            j += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_lines_are_shown_with_numbers_and_their_neighbors() {
        let old: String = (1..=20).map(|number| format!("line {number}\n")).collect();
        let new = old.replace("line 5\n", "five\nand more\n").replace("line 18\n", "");
        let expected = "   2   line 2\n   3   line 3\n   4   line 4\n   5 - line 5\n   5 + five\n\
                        \x20  6 + and more\n   6   line 6\n   7   line 7\n   8   line 8\n…\n\
                        \x20 15   line 15\n  16   line 16\n  17   line 17\n  18 - line 18\n\
                        \x20 19   line 19\n  20   line 20";
        assert_eq!(lines(&old, &new).join("\n"), expected);
        assert_eq!(lines("", "a\n"), ["   1 + a"]);
        assert_eq!(lines("a", "a\n"), ["   1 - a", "     \\ no line end", "   1 + a"]);
        assert_eq!(lines("a\n", "a\n"), [""; 0]);
        assert_eq!(
            lines("a\nb\nc\n", "b\nc\nd\n"),
            ["   1 - a", "   2   b", "   3   c", "   3 + d"]
        );
    }

    #[test]
    fn texts_that_are_too_long_to_compare_are_shown_one_after_the_other() {
        let text = |word: &str| format!("{word}\n").repeat(2_000);
        assert_eq!(lines(&text("a"), &text("b")).len(), 4_000);
    }
}
