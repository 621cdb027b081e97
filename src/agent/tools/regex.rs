//! Regular expressions and globs, matched in time linear in the text and in the pattern: the
//! pattern comes from a model, the text from anywhere. Pure.
//!
//! The syntax: `.`, `[a-z]`, `[^…]`, `\d \w \s \b` and their opposites, `^`, `$`, `( | )`,
//! `(?: )`, `(?i)` at the beginning, `* + ? {m,n}`, lazy or not. Groups do not capture. Back
//! references and look-around are refused, because they make other engines slow.

use crate::limits;

use super::syntax::{self, Class, Node, WORD};

/// A limit on the cost of matching: a number of steps per line, and time until the search is
/// cancelled.
///
/// One budget serves a whole search, so that many short lines are interrupted like one long line.
pub struct Budget<'a> {
    is_over: &'a dyn Fn() -> bool,
    over: bool,
    /// Steps until `is_over` is called again.
    unasked: u64,
    /// Steps per line.
    most: u64,
    /// Steps that remain for the line.
    left: u64,
}

impl<'a> Budget<'a> {
    /// Makes a budget that lasts until `is_over`, which is called every few milliseconds.
    pub fn until(is_over: &'a dyn Fn() -> bool) -> Budget<'a> {
        let unasked = limits::PATTERN_STEPS_PER_CHECK;
        let most = limits::PATTERN_LINE_STEPS_MAX;
        Budget { is_over, over: false, unasked, most, left: most }
    }

    /// Sets the steps per line.
    #[cfg(test)]
    pub fn with_steps(self, most: u64) -> Budget<'a> {
        Budget { most, ..self }
    }

    /// Returns whether the search was cancelled.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Takes `steps`; returns `false` if the budget is exceeded.
    fn allows(&mut self, steps: u64) -> bool {
        self.left = self.left.saturating_sub(steps);
        self.unasked = self.unasked.saturating_sub(steps);
        if self.unasked == 0 {
            self.unasked = limits::PATTERN_STEPS_PER_CHECK;
            self.over = (self.is_over)();
        }
        self.left > 0 && !self.over
    }
}

/// A compiled pattern.
pub struct Pattern {
    program: Vec<Step>,
    /// A text that every match contains, possibly empty: far quicker to search for.
    needle: String,
    anchored: bool,
}

#[derive(Clone)]
enum Step {
    One(Class),
    Fork(usize, usize),
    Go(usize),
    Start,
    End,
    /// At a word boundary, or (`false`) not at one.
    Edge(bool),
    Match,
}

impl Pattern {
    /// Compiles a regular expression. The error says what is wrong and where.
    pub fn regex(text: &str) -> Result<Pattern, String> {
        Pattern::compile(&syntax::regex(text)?, false)
    }

    /// Compiles a glob, which must match a whole path: `*`, `**`, `?`, `[…]`, `{a,b}`.
    pub fn glob(text: &str) -> Result<Pattern, String> {
        Pattern::compile(&syntax::glob(text)?, true)
    }

    fn compile(node: &Node, anchored: bool) -> Result<Pattern, String> {
        let mut program = Vec::new();
        emit(node, &mut program)?;
        program.push(Step::Match);
        Ok(Pattern { program, needle: needle(node), anchored })
    }

    /// Returns a text that every match contains; it may be empty.
    pub fn needle(&self) -> &str {
        &self.needle
    }

    /// Returns whether `line` matches: a part of it for a regular expression, all of it for a glob.
    /// `None` if that takes more than [`limits::PATTERN_LINE_STEPS_MAX`], or was cancelled.
    pub fn matches(&self, line: &str, budget: &mut Budget<'_>) -> Option<bool> {
        budget.left = budget.most;
        // Even a short line costs something.
        if !budget.allows(1 + line.len() as u64 / 64) {
            return None;
        }
        if !line.contains(&self.needle) {
            return Some(false);
        }
        let (mut now, mut next) = (States::new(&self.program), States::new(&self.program));
        let mut before = None;
        let mut rest = line.chars();
        loop {
            let after = rest.clone().next();
            if before.is_none() || !self.anchored {
                now.add(&self.program, 0, before, after);
            }
            let done = !self.anchored || after.is_none();
            if done && now.matched {
                return Some(true);
            }
            let Some(c) = rest.next() else {
                return Some(false);
            };
            let ahead = rest.clone().next();
            for at in &now.list {
                if let Some(Step::One(class)) = self.program.get(*at)
                    && class.has(c)
                {
                    next.add(&self.program, at + 1, Some(c), ahead);
                }
            }
            if !budget.allows(now.steps) {
                return None;
            }
            std::mem::swap(&mut now, &mut next);
            next.clear();
            before = Some(c);
        }
    }
}

/// The positions in the program that a match may have reached.
struct States {
    list: Vec<usize>,
    seen: Vec<bool>,
    pending: Vec<usize>,
    matched: bool,
    /// The cost of finding and leaving them.
    steps: u64,
}

impl States {
    fn new(program: &[Step]) -> States {
        let seen = vec![false; program.len()];
        let mut new =
            States { list: Vec::new(), seen, pending: Vec::new(), matched: false, steps: 0 };
        new.clear();
        new
    }

    fn clear(&mut self) {
        self.list.clear();
        self.seen.fill(false);
        self.matched = false;
        // Clearing is quick, and is done for every character.
        self.steps = 1 + self.seen.len() as u64 / 64;
    }

    /// Adds `at` and all positions that can be reached from it without a character.
    fn add(&mut self, program: &[Step], at: usize, before: Option<char>, after: Option<char>) {
        let States { list, seen, pending, matched, steps } = self;
        pending.push(at);
        while let Some(at) = pending.pop() {
            *steps += 1;
            let Some(seen) = seen.get_mut(at).filter(|seen| !**seen) else {
                continue;
            };
            *seen = true;
            let is_word = |c: Option<char>| c.is_some_and(|c| Class::of(WORD).has(c));
            match program.get(at) {
                Some(Step::One(class)) => {
                    *steps += class.steps();
                    list.push(at);
                }
                Some(Step::Fork(one, other)) => pending.extend([*other, *one]),
                Some(Step::Go(to)) => pending.push(*to),
                Some(Step::Start) if before.is_none() => pending.push(at + 1),
                Some(Step::End) if after.is_none() => pending.push(at + 1),
                Some(Step::Edge(wanted)) if (is_word(before) != is_word(after)) == *wanted => {
                    pending.push(at + 1);
                }
                Some(Step::Match) => *matched = true,
                _ => {}
            }
        }
    }
}

fn emit(node: &Node, program: &mut Vec<Step>) -> Result<(), String> {
    if program.len() > limits::PATTERN_STEPS_MAX {
        return Err("the pattern repeats too much".to_owned());
    }
    match node {
        Node::One(class) => program.push(Step::One(class.clone())),
        Node::Start => program.push(Step::Start),
        Node::End => program.push(Step::End),
        Node::Edge(wanted) => program.push(Step::Edge(*wanted)),
        Node::Row(nodes) => nodes.iter().try_for_each(|node| emit(node, program))?,
        Node::Either(nodes) => {
            let mut exits = Vec::new();
            for (index, node) in nodes.iter().enumerate() {
                let fork = program.len();
                if index + 1 < nodes.len() {
                    program.push(Step::Fork(fork + 1, 0));
                }
                emit(node, program)?;
                if index + 1 < nodes.len() {
                    exits.push(program.len());
                    program.push(Step::Go(0));
                    let next = program.len();
                    put(program, fork, Step::Fork(fork + 1, next));
                }
            }
            let end = program.len();
            exits.into_iter().for_each(|exit| put(program, exit, Step::Go(end)));
        }
        Node::Repeat { node, least, most } => {
            (0..*least).try_for_each(|_| emit(node, program))?;
            let Some(most) = most else {
                let fork = program.len();
                program.push(Step::Fork(fork + 1, 0));
                emit(node, program)?;
                program.push(Step::Go(fork));
                let end = program.len();
                put(program, fork, Step::Fork(fork + 1, end));
                return Ok(());
            };
            let mut forks = Vec::new();
            for _ in *least..*most {
                forks.push(program.len());
                program.push(Step::Go(0));
                emit(node, program)?;
            }
            let end = program.len();
            forks.into_iter().for_each(|fork| put(program, fork, Step::Fork(fork + 1, end)));
        }
    }
    Ok(())
}

fn put(program: &mut [Step], at: usize, step: Step) {
    if let Some(place) = program.get_mut(at) {
        *place = step;
    }
}

/// Returns the longest literal text that every match contains.
fn needle(node: &Node) -> String {
    let nodes = match node {
        Node::Row(nodes) => nodes.as_slice(),
        node => std::slice::from_ref(node),
    };
    let (mut longest, mut current) = (String::new(), String::new());
    for node in nodes {
        match node {
            Node::One(class) if class.single().is_some() => current.extend(class.single()),
            _ => current.clear(),
        }
        if current.len() > longest.len() {
            longest.clone_from(&current);
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &Pattern, text: &str) -> bool {
        pattern.matches(text, &mut Budget::until(&|| false)).unwrap()
    }

    #[test]
    fn regular_expressions_match_what_they_describe() {
        let cases = [
            ("fn main", "pub fn main() {", true),
            ("fn  main", "pub fn main() {", false),
            ("^fn", "fn x", true),
            ("^fn", " fn x", false),
            ("x$", "ax", true),
            ("x$", "xa", false),
            ("^$", "", true),
            ("", "anything", true),
            ("a.c", "xxabcxx", true),
            ("a|b|cd", "xxcd", true),
            ("(foo|ba[rz])+!", "foobarbaz!", true),
            ("(foo|ba[rz])+!", "fooba!", false),
            ("(?:ab){2,3}c", "ababc", true),
            ("^(?:ab){2,3}c", "abc", false),
            ("^a{3}$", "aaa", true),
            ("^a{3}$", "aaaa", false),
            ("^a{2,}$", "aaaa", true),
            ("a{,2}", "a{,2}", true),
            (r"\d+\.\d", "v1.2", true),
            (r"\bfoo\b", "a foo b", true),
            (r"\bfoo\b", "afoob", false),
            (r"[^a-z]", "abc", false),
            (r"[^a-z]", "abC", true),
            (r"[]x]", "]", true),
            (r"[a\]-]", "-", true),
            (r"[\w.]+@", "me.you@", true),
            ("(?i)todo", "ToDo", true),
            ("(?i)[A-F]x", "bX", true),
            (r"a\tb", "a\tb", true),
            (r"\(x\)", "(x)", true),
            ("ü+", "süüß", true),
            ("a*?b", "aab", true),
            ("(a*)*b", "aaab", true),
        ];
        for (pattern, text, wanted) in cases {
            assert_eq!(
                matches(&Pattern::regex(pattern).unwrap(), text),
                wanted,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn syntax_errors_are_reported_with_their_position() {
        let refused = [
            "(",
            ")",
            "(a",
            "[a",
            "[",
            "*",
            "a|*",
            r"\",
            r"(a)\1",
            "(?=a)",
            "(?<!a)b",
            "[z-a]",
            "a{3,2}",
            r"[\D]",
            "((((((((((((((((((((((((((((((((((((((((((a))))))))))))))))))))))))))))))))))))))))))",
            "((a{1000}){1000})",
        ];
        for pattern in refused {
            assert!(Pattern::regex(pattern).is_err(), "{pattern}");
        }
        let problem = Pattern::regex("ab(c").err().unwrap();
        assert_eq!(problem, "character 5 of the pattern: a ')' is missing");
        assert!(Pattern::regex(&"x".repeat(limits::PATTERN_BYTES_MAX)).is_ok());
        assert!(Pattern::regex(&"x".repeat(limits::PATTERN_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn patterns_with_nested_repetitions_take_linear_time() {
        let text = "a".repeat(5_000);
        for pattern in ["(a*)*b", "(a|a)*b", "(a|aa)+$b", "(.*)(.*)(.*)(.*)(.*)b", "(x+x+)+y"] {
            assert!(!matches(&Pattern::regex(pattern).unwrap(), &text), "{pattern}");
        }
    }

    #[test]
    fn matching_ends_when_it_is_cancelled() {
        let pattern = Pattern::regex("(a|b)(a|c)(a|d){300}[xyz]").unwrap();
        let line = "a".repeat(2 << 20);
        let calls = std::cell::Cell::new(0);
        let is_over = || calls.replace(calls.get() + 1) == 3;
        let mut budget = Budget::until(&is_over);
        assert_eq!(pattern.matches(&line, &mut budget), None);
        assert!(budget.is_over());
        assert_eq!(calls.get(), 4, "the call that says so is the last");
    }

    #[test]
    fn a_line_that_takes_too_many_steps_is_given_up() {
        let pattern = Pattern::regex("z$").unwrap();
        let mut budget = Budget::until(&|| false);
        let mut takes = |line: &str| {
            assert_eq!(pattern.matches(line, &mut budget), Some(true));
            budget.most - budget.left
        };
        let (one, line) = (takes("-z"), "-".repeat(10_000) + "z");
        let most = takes(&line);
        assert!(one < most);
        assert_eq!(takes("-z"), one, "each line has the same steps");
        for (most, found) in [(most + 1, Some(true)), (most, None)] {
            budget = budget.with_steps(most);
            assert_eq!(pattern.matches(&line, &mut budget), found);
        }
        assert!(!budget.is_over());
        assert_eq!(pattern.matches("-z", &mut budget), Some(true));
    }

    #[test]
    fn globs_match_whole_paths() {
        let cases = [
            ("*.rs", "main.rs", true),
            ("*.rs", "src/main.rs", false),
            ("**/*.rs", "main.rs", true),
            ("**/*.rs", "src/a/main.rs", true),
            ("src/**", "src/a/b", true),
            ("src/**/b", "src/b", true),
            ("src/**/b", "src/x/y/b", true),
            ("src/**/b", "srcb", false),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("*.{js,ts}", "x.ts", true),
            ("*.{js,ts{,x}}", "x.tsx", true),
            ("[!a]*", "b", true),
            ("[!a]*", "a", false),
            ("[0-9].txt", "7.txt", true),
            (r"\*", "*", true),
            (r"\*", "x", false),
            ("a.c", "abc", false),
        ];
        for (pattern, path, wanted) in cases {
            assert_eq!(matches(&Pattern::glob(pattern).unwrap(), path), wanted, "{pattern} {path}");
        }
        assert!(Pattern::glob("{a,b").is_err());
        assert!(Pattern::glob("[a").is_err());
    }

    #[test]
    fn a_needle_is_in_every_match() {
        for (pattern, needle) in
            [("fn +main", "main"), ("a|b", ""), ("(?i)todo", ""), ("ab*c", "a")]
        {
            assert_eq!(Pattern::regex(pattern).unwrap().needle(), needle, "{pattern}");
        }
    }
}
