//! The syntax of patterns: parses regular expressions and globs into trees. Pure.

use crate::limits;

/// A set of characters.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    ranges: Vec<(char, char)>,
    negated: bool,
    any_case: bool,
}

impl Class {
    /// Makes a class of these inclusive ranges.
    pub fn of(ranges: &[(char, char)]) -> Class {
        Class { ranges: ranges.to_vec(), negated: false, any_case: false }
    }

    fn not(ranges: &[(char, char)]) -> Class {
        Class { negated: true, ..Class::of(ranges) }
    }

    /// Returns whether it contains a character.
    pub fn has(&self, c: char) -> bool {
        let in_ranges = |c: char| self.ranges.iter().any(|(from, to)| (*from..=*to).contains(&c));
        let found = in_ranges(c)
            || self.any_case
                && (c.to_lowercase().any(in_ranges) || c.to_uppercase().any(in_ranges));
        found != self.negated
    }

    /// Returns the cost of [`Class::has`], relative to other classes.
    pub fn steps(&self) -> u64 {
        let looks = if self.any_case { 4 } else { 1 };
        1 + looks * self.ranges.len() as u64 / 2
    }

    /// Returns its only character, if it has just one and case matters.
    pub fn single(&self) -> Option<char> {
        match self.ranges.as_slice() {
            [(from, to)] if from == to && !self.negated && !self.any_case => Some(*from),
            _ => None,
        }
    }
}

/// A part of a pattern.
pub enum Node {
    One(Class),
    Row(Vec<Node>),
    Either(Vec<Node>),
    Repeat { node: Box<Node>, least: u32, most: Option<u32> },
    Start,
    End,
    Edge(bool),
}

const DIGITS: &[(char, char)] = &[('0', '9')];
/// The characters of words.
pub const WORD: &[(char, char)] = &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')];
const SPACE: &[(char, char)] = &[('\t', '\r'), (' ', ' '), ('\u{a0}', '\u{a0}')];

/// Parses a regular expression. The error says what is wrong and where.
pub fn regex(text: &str) -> Result<Node, String> {
    let (rest, any_case) = match text.strip_prefix("(?i)") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let mut parser = Parser::new(rest, any_case)?;
    let node = parser.either(0)?;
    match parser.peek() {
        Some(_) => Err(parser.wrong("this ')' closes nothing")),
        None => Ok(node),
    }
}

/// Parses a glob.
pub fn glob(text: &str) -> Result<Node, String> {
    let mut parser = Parser::new(text, false)?;
    let node = parser.glob(0)?;
    match parser.peek() {
        Some(_) => Err(parser.wrong("this '}' closes nothing")),
        None => Ok(node),
    }
}

/// A pattern that is being parsed from left to right.
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
            // Laziness does not change whether there is a match.
            self.take("?");
            let twice = matches!(node, Node::Repeat { .. } | Node::Start | Node::End);
            if most.is_some_and(|most| most < least) || twice && most.is_some_and(|most| most > 1) {
                return Err(self.wrong("this cannot be repeated so"));
            }
            node = Node::Repeat { node: Box::new(node), least, most };
        }
    }

    /// Parses `{2}`, `{2,}` or `{2,5}` up to the last brace; anything else is text.
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

    /// Parses a set after its `[`.
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
