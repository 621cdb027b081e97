//! Regular expressions and globs, matched in time that grows with the text and the pattern and never
//! with their powers: the pattern comes from a model, the text from anywhere. Pure.
//!
//! What is understood: `.`, `[a-z]`, `[^…]`, `\d \w \s \b` and their opposites, `^`, `$`, `( | )`, `(?: )`,
//! `(?i)` at the beginning, `* + ? {m,n}`, lazy or not. No captures are kept. Back references and
//! looking around are refused: they are what makes other engines slow.

use crate::limits;

/// A pattern that is ready to match.
pub struct Pattern {
    program: Vec<Step>,
    /// A text that every match contains, perhaps empty: far quicker to look for.
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
    /// At the edge of a word, or (`false`) not.
    Edge(bool),
    Match,
}

/// A set of characters.
#[derive(Clone, Debug, PartialEq)]
struct Class {
    ranges: Vec<(char, char)>,
    negated: bool,
    any_case: bool,
}

impl Class {
    fn of(ranges: &[(char, char)]) -> Class {
        Class { ranges: ranges.to_vec(), negated: false, any_case: false }
    }

    fn not(ranges: &[(char, char)]) -> Class {
        Class { negated: true, ..Class::of(ranges) }
    }

    fn has(&self, c: char) -> bool {
        let in_ranges = |c: char| self.ranges.iter().any(|(from, to)| (*from..=*to).contains(&c));
        let found = in_ranges(c)
            || self.any_case
                && (c.to_lowercase().any(in_ranges) || c.to_uppercase().any(in_ranges));
        found != self.negated
    }

    fn single(&self) -> Option<char> {
        match self.ranges.as_slice() {
            [(from, to)] if from == to && !self.negated && !self.any_case => Some(*from),
            _ => None,
        }
    }
}

enum Node {
    One(Class),
    Row(Vec<Node>),
    Either(Vec<Node>),
    Repeat { node: Box<Node>, least: u32, most: Option<u32> },
    Start,
    End,
    Edge(bool),
}

const DIGITS: &[(char, char)] = &[('0', '9')];
const WORD: &[(char, char)] = &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')];
const SPACE: &[(char, char)] = &[('\t', '\r'), (' ', ' '), ('\u{a0}', '\u{a0}')];

impl Pattern {
    /// The regular expression `text`; the error says what is wrong with it and where.
    pub fn regex(text: &str) -> Result<Pattern, String> {
        let (rest, any_case) = match text.strip_prefix("(?i)") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let mut parser = Parser::new(rest, any_case)?;
        let node = parser.either(0)?;
        if parser.peek().is_some() {
            return Err(parser.wrong("this ')' closes nothing"));
        }
        Pattern::compile(&node, false)
    }

    /// The glob `text`, which must match a whole path: `*`, `**`, `?`, `[…]`, `{a,b}`.
    pub fn glob(text: &str) -> Result<Pattern, String> {
        let mut parser = Parser::new(text, false)?;
        let node = parser.glob(0)?;
        if parser.peek().is_some() {
            return Err(parser.wrong("this '}' closes nothing"));
        }
        Pattern::compile(&node, true)
    }

    fn compile(node: &Node, anchored: bool) -> Result<Pattern, String> {
        let mut program = Vec::new();
        emit(node, &mut program)?;
        program.push(Step::Match);
        Ok(Pattern { program, needle: needle(node), anchored })
    }

    /// A text that is in everything that matches; it may be empty.
    pub fn needle(&self) -> &str {
        &self.needle
    }

    /// Whether `line` has a match: anywhere for a regular expression, as a whole for a glob.
    pub fn matches(&self, line: &str) -> bool {
        if !line.contains(&self.needle) {
            return false;
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
                return true;
            }
            let Some(c) = rest.next() else {
                return false;
            };
            let ahead = rest.clone().next();
            for at in &now.list {
                if let Some(Step::One(class)) = self.program.get(*at)
                    && class.has(c)
                {
                    next.add(&self.program, at + 1, Some(c), ahead);
                }
            }
            std::mem::swap(&mut now, &mut next);
            next.clear();
            before = Some(c);
        }
    }
}

/// The places in the program where a match may stand.
struct States {
    list: Vec<usize>,
    seen: Vec<bool>,
    matched: bool,
}

impl States {
    fn new(program: &[Step]) -> States {
        States { list: Vec::new(), seen: vec![false; program.len()], matched: false }
    }

    fn clear(&mut self) {
        self.list.clear();
        self.seen.fill(false);
        self.matched = false;
    }

    /// Takes in `at` and all that can be reached from it without a character.
    fn add(&mut self, program: &[Step], at: usize, before: Option<char>, after: Option<char>) {
        let mut pending = vec![at];
        while let Some(at) = pending.pop() {
            let Some(seen) = self.seen.get_mut(at).filter(|seen| !**seen) else {
                continue;
            };
            *seen = true;
            let is_word = |c: Option<char>| c.is_some_and(|c| Class::of(WORD).has(c));
            match program.get(at) {
                Some(Step::One(_)) => self.list.push(at),
                Some(Step::Fork(one, other)) => pending.extend([*other, *one]),
                Some(Step::Go(to)) => pending.push(*to),
                Some(Step::Start) if before.is_none() => pending.push(at + 1),
                Some(Step::End) if after.is_none() => pending.push(at + 1),
                Some(Step::Edge(wanted)) if (is_word(before) != is_word(after)) == *wanted => {
                    pending.push(at + 1);
                }
                Some(Step::Match) => self.matched = true,
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

/// The longest text that stands in every match as it is written.
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

/// What is left of a pattern that is read from the left.
struct Parser {
    text: Vec<char>,
    at: usize,
    any_case: bool,
}

impl Parser {
    fn new(text: &str, any_case: bool) -> Result<Parser, String> {
        if text.len() > limits::PATTERN_BYTES_MAX {
            let most = limits::PATTERN_BYTES_MAX;
            return Err(format!("the pattern is longer than {most} bytes"));
        }
        Ok(Parser { text: text.chars().collect(), at: 0, any_case })
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.at += usize::from(next.is_some());
        next
    }

    fn take(&mut self, wanted: &str) -> bool {
        let found = wanted.chars().enumerate().all(|(i, c)| self.text.get(self.at + i) == Some(&c));
        if found {
            self.at += wanted.chars().count();
        }
        found
    }

    fn wrong(&self, what: &str) -> String {
        format!("character {} of the pattern: {what}", self.at + 1)
    }

    fn class(&self, ranges: &[(char, char)]) -> Class {
        Class { any_case: self.any_case, ..Class::of(ranges) }
    }

    fn either(&mut self, depth: usize) -> Result<Node, String> {
        if depth > limits::JSON_DEPTH_MAX {
            return Err(self.wrong("nested too deeply"));
        }
        let mut rows = vec![self.row(depth)?];
        while self.take("|") {
            rows.push(self.row(depth)?);
        }
        Ok(if rows.len() == 1 { rows.remove(0) } else { Node::Either(rows) })
    }

    fn row(&mut self, depth: usize) -> Result<Node, String> {
        let mut nodes = Vec::new();
        while let Some(c) = self.peek().filter(|c| !matches!(c, '|' | ')')) {
            let node = self.atom(c, depth)?;
            nodes.push(self.repeated(node)?);
        }
        Ok(Node::Row(nodes))
    }

    fn atom(&mut self, c: char, depth: usize) -> Result<Node, String> {
        self.at += 1;
        Ok(match c {
            '.' => Node::One(Class::not(&[])),
            '^' => Node::Start,
            '$' => Node::End,
            '[' => Node::One(self.set('^')?),
            '\\' => self.escape()?,
            '(' => {
                if self.peek() == Some('?') && !self.take("?:") {
                    return Err(self.wrong("of the groups with '?' only (?:…) is understood"));
                }
                let inside = self.either(depth + 1)?;
                if !self.take(")") {
                    return Err(self.wrong("a ')' is missing"));
                }
                inside
            }
            '*' | '+' | '?' => return Err(self.wrong("there is nothing to repeat")),
            c => Node::One(self.class(&[(c, c)])),
        })
    }

    fn repeated(&mut self, mut node: Node) -> Result<Node, String> {
        loop {
            let (least, most) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => match self.counts() {
                    Some(counts) => counts,
                    None => return Ok(node),
                },
                _ => return Ok(node),
            };
            self.at += 1;
            // Lazy or not is the same for the question whether there is a match.
            self.take("?");
            let twice = matches!(node, Node::Repeat { .. } | Node::Start | Node::End);
            if most.is_some_and(|most| most < least) || twice && most.is_some_and(|most| most > 1) {
                return Err(self.wrong("this cannot be repeated so"));
            }
            node = Node::Repeat { node: Box::new(node), least, most };
        }
    }

    /// `{2}`, `{2,}`, `{2,5}`, up to before the last brace; anything else is text.
    fn counts(&mut self) -> Option<(u32, Option<u32>)> {
        let rest = self.text.get(self.at + 1..)?;
        let length = rest.iter().position(|c| *c == '}')?;
        let inside: String = rest.get(..length)?.iter().collect();
        let number = |text: &str| text.parse().ok().filter(|count| *count <= 1000);
        let counts = match inside.split_once(',') {
            None => (number(&inside)?, Some(number(&inside)?)),
            Some((least, "")) => (number(least)?, None),
            Some((least, most)) => (number(least)?, Some(number(most)?)),
        };
        self.at += length + 1;
        Some(counts)
    }

    fn escape(&mut self) -> Result<Node, String> {
        let c = self.next().ok_or_else(|| self.wrong("nothing follows the '\\'"))?;
        Ok(match c {
            'b' => Node::Edge(true),
            'B' => Node::Edge(false),
            'A' => Node::Start,
            'z' | 'Z' => Node::End,
            '1'..='9' => return Err(self.wrong("back references are not understood")),
            c => match shorthand(c) {
                Some(class) => Node::One(class),
                None => Node::One(self.class(&[(control(c), control(c))])),
            },
        })
    }

    /// A set, behind its `[`.
    fn set(&mut self, negation: char) -> Result<Class, String> {
        let mut class = self.class(&[]);
        class.negated = self.take(&negation.to_string());
        let begin = self.at;
        loop {
            let c = self.next().ok_or_else(|| self.wrong("a ']' is missing"))?;
            let from = match c {
                ']' if self.at > begin + 1 => return Ok(class),
                '\\' => {
                    let c = self.next().ok_or_else(|| self.wrong("a ']' is missing"))?;
                    match shorthand(c) {
                        Some(short) if !short.negated => {
                            class.ranges.extend(short.ranges);
                            continue;
                        }
                        Some(_) => return Err(self.wrong("not understood within […]")),
                        None => control(c),
                    }
                }
                c => c,
            };
            let ranges = self.peek() == Some('-')
                && self.text.get(self.at + 1).is_some_and(|after| *after != ']');
            let mut to = from;
            if ranges {
                self.at += 1;
                to = self.next().unwrap_or(from);
                if to == '\\' {
                    to = self.next().map_or(to, control);
                }
            }
            if to < from {
                return Err(self.wrong("this range is the wrong way round"));
            }
            class.ranges.push((from, to));
        }
    }

    fn glob(&mut self, depth: usize) -> Result<Node, String> {
        let no_slash = || Class::not(&[('/', '/')]);
        let any =
            |class: Class| Node::Repeat { node: Box::new(Node::One(class)), least: 0, most: None };
        let mut nodes = Vec::new();
        while let Some(c) = self.peek().filter(|c| depth == 0 || !matches!(c, ',' | '}')) {
            let first = self.at == 0 || self.text.get(self.at - 1) == Some(&'/');
            if first && self.take("**/") {
                let folders =
                    Node::Row(vec![any(Class::not(&[])), Node::One(Class::of(&[('/', '/')]))]);
                nodes.push(Node::Repeat { node: Box::new(folders), least: 0, most: Some(1) });
                continue;
            }
            if self.take("**") {
                nodes.push(any(Class::not(&[])));
                continue;
            }
            self.at += 1;
            nodes.push(match c {
                '*' => any(no_slash()),
                '?' => Node::One(no_slash()),
                '[' => Node::One(self.set(if self.peek() == Some('^') { '^' } else { '!' })?),
                '\\' => {
                    let c = self.next().unwrap_or('\\');
                    Node::One(Class::of(&[(c, c)]))
                }
                '{' if depth < limits::JSON_DEPTH_MAX => {
                    let mut choices = vec![self.glob(depth + 1)?];
                    while self.take(",") {
                        choices.push(self.glob(depth + 1)?);
                    }
                    if !self.take("}") {
                        return Err(self.wrong("a '}' is missing"));
                    }
                    Node::Either(choices)
                }
                c => Node::One(Class::of(&[(c, c)])),
            });
        }
        Ok(Node::Row(nodes))
    }
}

fn shorthand(c: char) -> Option<Class> {
    Some(match c {
        'd' => Class::of(DIGITS),
        'D' => Class::not(DIGITS),
        'w' => Class::of(WORD),
        'W' => Class::not(WORD),
        's' => Class::of(SPACE),
        'S' => Class::not(SPACE),
        _ => return None,
    })
}

fn control(c: char) -> char {
    match c {
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_expressions_match_what_they_should() {
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
            assert_eq!(Pattern::regex(pattern).unwrap().matches(text), wanted, "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_said_with_its_place() {
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
    fn evil_patterns_take_no_evil_time() {
        let text = "a".repeat(5_000);
        for pattern in ["(a*)*b", "(a|a)*b", "(a|aa)+$b", "(.*)(.*)(.*)(.*)(.*)b", "(x+x+)+y"] {
            assert!(!Pattern::regex(pattern).unwrap().matches(&text), "{pattern}");
        }
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
            assert_eq!(Pattern::glob(pattern).unwrap().matches(path), wanted, "{pattern} {path}");
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
