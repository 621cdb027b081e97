//! Reads our manual pages: the part of mdoc(7) that they use.

use std::path::Path;

/// A page or a part of one.
pub struct Page {
    source: String,
}

/// An item of a list: what it describes and the description, as a reader sees them.
pub struct Item {
    pub head: String,
    pub body: String,
}

impl Page {
    /// Reads `man/NAME`.
    pub fn read(name: &str) -> Page {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("man").join(name);
        Page { source: std::fs::read_to_string(path).unwrap() }
    }

    /// Returns the content of `.Sh TITLE` or `.Ss TITLE`, including subsections.
    pub fn section(&self, title: &str) -> Page {
        let lines: Vec<&str> = self.source.lines().collect();
        let ends = |line: &str, macros: &[&str]| {
            macros.iter().any(|name| line.split(' ').next() == Some(name))
        };
        let begin = lines
            .iter()
            .position(|line| *line == format!(".Sh {title}") || *line == format!(".Ss {title}"))
            .unwrap_or_else(|| panic!("no section {title}"));
        let closing: &[&str] =
            if lines[begin].starts_with(".Sh") { &[".Sh"] } else { &[".Sh", ".Ss"] };
        let rest = lines[begin + 1..].iter().take_while(|line| !ends(line, closing));
        Page { source: rest.map(|line| format!("{line}\n")).collect() }
    }

    /// Returns the page as text on one line.
    pub fn text(&self) -> String {
        let shown = self.source.lines().map(shown).filter(|line| !line.is_empty());
        shown.collect::<Vec<_>>().join(" ")
    }

    /// Returns the items of all lists.
    pub fn items(&self) -> Vec<Item> {
        let mut items: Vec<Item> = Vec::new();
        let mut inside = false;
        for line in self.source.lines() {
            match line.split(' ').next() {
                Some(".It") => {
                    inside = true;
                    items.push(Item { head: shown(line), body: String::new() });
                }
                Some(".El") => inside = false,
                _ if inside => {
                    let body = &mut items.last_mut().unwrap().body;
                    body.push_str(&shown(line));
                    body.push(' ');
                }
                _ => {}
            }
        }
        items
    }

    /// Returns the argument after every macro NAME.
    pub fn marked(&self, name: &str) -> Vec<String> {
        let lines = self.source.lines().filter_map(|line| line.strip_prefix('.'));
        let mut found = Vec::new();
        for line in lines {
            let words: Vec<&str> = line.split_whitespace().collect();
            for pair in words.windows(2).filter(|pair| pair[0] == name) {
                found.push(pair[1].to_owned());
            }
        }
        found
    }

    /// Returns each `.Nm` of the synopsis with its arguments.
    pub fn synopsis(&self) -> Vec<String> {
        let mut calls: Vec<String> = Vec::new();
        for line in self.section("SYNOPSIS").source.lines() {
            match line.strip_prefix(".Nm ") {
                Some(name) => calls.push(name.to_owned()),
                None => *calls.last_mut().unwrap() += &format!(" {}", shown(line)),
            }
        }
        calls
    }

    /// Returns the literal blocks as a reader would paste them.
    pub fn literals(&self) -> Vec<String> {
        let mut blocks: Vec<String> = Vec::new();
        let mut inside = false;
        for line in self.source.lines() {
            if line.starts_with(".Bd -literal") {
                inside = true;
                blocks.push(String::new());
            } else if line == ".Ed" {
                inside = false;
            } else if inside {
                *blocks.last_mut().unwrap() += &format!("{}\n", line.replace("\\e", "\\"));
            }
        }
        blocks
    }
}

/// Returns what a reader sees of a line: nothing of one that only controls the layout.
fn shown(line: &str) -> String {
    const STYLES: [&str; 17] = [
        "It", "Ar", "Cm", "Pa", "Ev", "Va", "Er", "Dv", "Nm", "Li", "Xr", "Dq", "Qq", "Sq", "Ql",
        "Nd", "Sy",
    ];
    const LAYOUT: [&str; 10] =
        [".Sh", ".Ss", ".Pp", ".Bl", ".El", ".Bd", ".Ed", ".Dd", ".Dt", ".Os"];
    let Some(macros) = line.strip_prefix('.') else {
        return line.to_owned();
    };
    if LAYOUT.iter().any(|layout| line.split(' ').next() == Some(layout)) {
        return String::new();
    }
    let mut text = String::new();
    let mut glued = true;
    let mut dashes = 0;
    let mut open = 0;
    for word in macros.split_whitespace() {
        match word {
            "Fl" => dashes += 1,
            "Ns" => glued = true,
            "Op" => {
                push(&mut text, "[", glued);
                (glued, open) = (true, open + 1);
            }
            _ if STYLES.contains(&word) => {}
            "," | "." | ";" | ":" | ")" => push(&mut text, word, true),
            _ => {
                push(&mut text, &format!("{}{word}", "-".repeat(dashes)), glued);
                (glued, dashes) = (word == "(", 0);
            }
        }
    }
    text + &"]".repeat(open)
}

fn push(text: &mut String, word: &str, glued: bool) {
    if !glued {
        text.push(' ');
    }
    text.push_str(word);
}
