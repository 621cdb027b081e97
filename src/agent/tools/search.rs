//! Tools that find files by name, and lines by content.

use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;

use nanoserde::DeJson;

use crate::agent::clip::Clip;
use crate::limits;
use crate::sys::openat::{self, FileType};
use crate::text::{escaped, truncated};

use super::files::is_binary;
use super::regex::{Budget, Pattern};
use super::walk::{self, Entry, WalkEnd};
use super::workspace::ToolContext;

/// The arguments of `find_files`.
#[derive(DeJson)]
pub struct FindFiles {
    pub pattern: String,
    pub path: Option<String>,
}

/// The arguments of `search_files`.
#[derive(DeJson)]
pub struct SearchFiles {
    pub pattern: String,
    pub path: Option<String>,
    glob: Option<String>,
}

/// A glob. It is matched against the path from the start of the search if it has a slash, else
/// against the name alone.
struct NameGlob {
    pattern: Pattern,
    whole_path: bool,
    /// How many bytes of a path lead to the start of the search.
    base: usize,
}

impl NameGlob {
    fn new(glob: &str, start: &str) -> Result<NameGlob, String> {
        let glob = glob.strip_prefix("./").unwrap_or(glob);
        let start = start.trim_start_matches("./").trim_end_matches('/');
        let base = if matches!(start, "" | ".") { 0 } else { start.len() + 1 };
        let pattern = Pattern::glob(glob.trim_start_matches('/'))?;
        Ok(NameGlob { pattern, whole_path: glob.contains('/'), base })
    }

    fn matches(&self, path: &str, budget: &mut Budget<'_>) -> bool {
        let mut matches = |text: &str| self.pattern.matches(text, budget).unwrap_or(false);
        if self.whole_path {
            // A path relative to the workspace is just as clear.
            path.get(self.base..).is_some_and(&mut matches) || matches(path)
        } else {
            matches(path.rsplit('/').next().unwrap_or(path))
        }
    }
}

impl FindFiles {
    /// Returns the paths of the files that match, one per line.
    pub fn run(&self, context: &ToolContext<'_>) -> Result<String, String> {
        let start = start(self.path.as_deref());
        let names = NameGlob::new(&self.pattern, start)?;
        let mut clip = Clip::new(limits::RESULT_BYTES_MAX - 200);
        let mut found = false;
        let is_over = || context.is_over();
        let mut budget = Budget::until(&is_over);
        let end = walk::walk(context, start, |entry| {
            if entry.kind != FileType::Directory && names.matches(entry.path, &mut budget) {
                clip.push(escaped(entry.path).as_bytes());
                clip.push(b"\n");
                found = true;
            }
            ControlFlow::Continue(())
        })?;
        let mut text = clip.text();
        if !found {
            text.push_str("[no file matches]");
        }
        text.push_str(note(end));
        Ok(text)
    }
}

impl SearchFiles {
    /// Returns `file:line:text` of the lines that match.
    pub fn run(&self, context: &ToolContext<'_>) -> Result<String, String> {
        let pattern = Pattern::regex(&self.pattern)?;
        let start = start(self.path.as_deref());
        let names = self.glob.as_deref().map(|glob| NameGlob::new(glob, start)).transpose()?;
        let is_over = || context.is_over();
        let mut search = LineSearch { pattern, budget: Budget::until(&is_over), found: Vec::new() };
        let mut end = WalkEnd::Done;
        if let Ok(file) = context.workspace()?.file(start) {
            let _enough = search.read(&file, start);
        } else {
            end = walk::walk(context, start, |entry| {
                let mut matches = |names: &NameGlob| names.matches(entry.path, &mut search.budget);
                if entry.kind != FileType::File || !names.as_ref().is_none_or(&mut matches) {
                    return ControlFlow::Continue(());
                }
                let file = open(entry);
                file.map_or(ControlFlow::Continue(()), |file| search.read(&file, entry.path))
            })?;
        }
        context.check()?;
        let found = search.found;
        let mut text = found.get(..limits::MATCHES_MAX).unwrap_or(&found).concat();
        if found.is_empty() {
            text.push_str("[no line matches]");
        } else if found.len() > limits::MATCHES_MAX {
            text.push_str(&format!("[there are more than these {}]", limits::MATCHES_MAX));
        }
        text.push_str(note(end));
        Ok(text)
    }
}

fn start(path: Option<&str>) -> &str {
    path.filter(|path| !path.is_empty()).unwrap_or(".")
}

fn note(end: WalkEnd) -> &'static str {
    match end {
        WalkEnd::Done => "",
        WalkEnd::TooMany => "\n[not all was looked through: there are too many files]",
    }
}

fn open(entry: &Entry<'_>) -> Option<File> {
    let file = openat::open_entry(entry.directory, entry.name).ok()?;
    let found = file.metadata().ok()?;
    (found.is_file() && found.len() <= limits::SEARCH_BYTES_MAX).then_some(file)
}

/// A search for lines, with its results.
struct LineSearch<'a> {
    pattern: Pattern,
    budget: Budget<'a>,
    found: Vec<String>,
}

impl LineSearch<'_> {
    /// Adds the lines of a file that match. Breaks when there is one more than is shown, or when
    /// the budget is over.
    fn read(&mut self, file: &File, path: &str) -> ControlFlow<()> {
        let mut bytes = Vec::new();
        if file.take(limits::SEARCH_BYTES_MAX).read_to_end(&mut bytes).is_err() {
            return ControlFlow::Continue(());
        }
        let binary = is_binary(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        if !text.contains(self.pattern.needle()) {
            return ControlFlow::Continue(());
        }
        let path = escaped(path);
        for (line, number) in text.lines().zip(1..) {
            let matches = self.pattern.matches(line, &mut self.budget);
            if self.budget.is_over() {
                return ControlFlow::Break(());
            }
            self.found.push(match matches {
                Some(false) => continue,
                None => format!(
                    "{path}:{number}: [given up: this line is too long for so costly a pattern]\n"
                ),
                Some(true) if binary => format!("{path}: the binary file matches\n"),
                Some(true) => {
                    format!("{path}:{number}:{}\n", truncated(line, limits::MATCH_CHARS_MAX))
                }
            });
            if self.found.len() > limits::MATCHES_MAX {
                return ControlFlow::Break(());
            }
            if binary {
                break;
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::scratch::Scratch;
    use crate::session::wake::Cancel;
    use std::cell::Cell;

    #[test]
    fn files_are_found_by_name_or_by_path() {
        let scratch = Scratch::new();
        for name in
            ["a.rs", "src/b.rs", "src/deep/c.rs", "src/c.txt", "target/d.rs", "we ird\u{7f}.rs"]
        {
            scratch.put(name, "");
        }
        scratch.put(".gitignore", "target\n");
        let find = |arguments: &str| scratch.run("find_files", arguments).unwrap();
        assert_eq!(
            find(r#"{"pattern":"*.rs"}"#),
            "a.rs\nsrc/b.rs\nsrc/deep/c.rs\nwe ird\\u{7f}.rs\n"
        );
        assert_eq!(find(r#"{"pattern":"src/*.rs"}"#), "src/b.rs\n");
        assert_eq!(find(r#"{"pattern":"**/c.*"}"#), "src/c.txt\nsrc/deep/c.rs\n");
        assert_eq!(find(r#"{"pattern":"*.rs","path":"src"}"#), "src/b.rs\nsrc/deep/c.rs\n");
        assert_eq!(find(r#"{"pattern":"deep/*","path":"src"}"#), "src/deep/c.rs\n");
        assert_eq!(find(r#"{"pattern":"src/deep/*","path":"src"}"#), "src/deep/c.rs\n");
        assert_eq!(find(r#"{"pattern":"nothing"}"#), "[no file matches]");
        for path in ["..", "/", "src/../../"] {
            let arguments = format!(r#"{{"pattern":"*","path":"{path}"}}"#);
            assert!(
                scratch.run("find_files", &arguments).unwrap_err().contains("outside"),
                "{path}"
            );
            assert!(scratch.run("search_files", &arguments.replace("*", "x")).is_err(), "{path}");
        }
    }

    #[test]
    fn matching_lines_have_file_and_number() {
        let scratch = Scratch::new();
        scratch.put("a.rs", "fn one() {}\nlet x = fn_two;\n");
        scratch.put("b/c.txt", "FN three\n\nfn four");
        scratch.put("picture", "\0\0fn five\n fn six");
        scratch.put("target/x", "fn seven");
        scratch.put(".gitignore", "/target\n");
        let search = |arguments: &str| scratch.run("search_files", arguments).unwrap();
        assert_eq!(
            search(r#"{"pattern":"fn \\w+"}"#),
            "a.rs:1:fn one() {}\nb/c.txt:3:fn four\npicture: the binary file matches\n"
        );
        assert_eq!(search(r#"{"pattern":"(?i)^fn t"}"#), "b/c.txt:1:FN three\n");
        assert_eq!(
            search(r#"{"pattern":"fn","glob":"*.rs"}"#),
            "a.rs:1:fn one() {}\na.rs:2:let x = fn_two;\n"
        );
        assert_eq!(search(r#"{"pattern":"fn","path":"b"}"#), "b/c.txt:3:fn four\n");
        assert_eq!(search(r#"{"pattern":"fn","path":"b/c.txt"}"#), "b/c.txt:3:fn four\n");
        assert_eq!(search(r#"{"pattern":"zzz"}"#), "[no line matches]");
        let problem = scratch.run("search_files", r#"{"pattern":"a("}"#).unwrap_err();
        assert!(problem.contains("character 3"), "{problem}");
    }

    #[test]
    fn a_search_can_be_cancelled_within_a_line() {
        let scratch = Scratch::new();
        scratch.put("line", &"a".repeat(15 << 20));
        let cancel = Cancel::new().unwrap();
        let calls = Cell::new(0);
        // Cancels right after the third call.
        let is_over = || {
            let over = cancel.is_cancelled();
            if calls.replace(calls.get() + 1) == 2 {
                cancel.cancel();
            }
            over
        };
        let pattern = Pattern::regex("(a|b)(a|c)(a|d){300}[xyz]").unwrap();
        let budget = Budget::until(&is_over);
        let mut search = LineSearch { pattern, budget, found: Vec::new() };
        let file = File::open(scratch.path().join("line")).unwrap();
        assert!(search.read(&file, "line").is_break());
        assert_eq!(calls.get(), 4, "the next call is the last");
    }

    #[test]
    fn a_line_that_costs_too_much_is_reported_and_the_others_are_searched() {
        let scratch = Scratch::new();
        scratch.put("a", &format!("{}\n{}x\n", "a".repeat(40_000), "a".repeat(302)));
        let pattern = Pattern::regex("(a|b)(a|c)(a|d){300}[xyz]").unwrap();
        let budget = Budget::until(&|| false).with_steps(1 << 20);
        let mut search = LineSearch { pattern, budget, found: Vec::new() };
        let file = File::open(scratch.path().join("a")).unwrap();
        assert!(search.read(&file, "a").is_continue());
        let [given_up, rest] = search.found.as_slice() else { panic!("{:?}", search.found) };
        assert_eq!(given_up, "a:1: [given up: this line is too long for so costly a pattern]\n");
        assert!(rest.starts_with("a:2:aaa"), "{rest}");
    }

    #[test]
    fn matches_and_their_lengths_are_limited() {
        let scratch = Scratch::new();
        scratch.put("fits", &"hit\n".repeat(limits::MATCHES_MAX));
        let search = |pattern: &str| {
            scratch.run("search_files", &format!(r#"{{"pattern":"{pattern}"}}"#)).unwrap()
        };
        assert_eq!(search("hit").lines().count(), limits::MATCHES_MAX);
        scratch.put("more", "hit\n");
        let found = search("hit");
        assert_eq!(found.lines().count(), limits::MATCHES_MAX + 1);
        assert!(found.ends_with("[there are more than these 50]"), "{found}");
        scratch.put("wide", &format!("wide{}", "é".repeat(limits::MATCH_CHARS_MAX)));
        assert!(search("wide").ends_with("é…\n"));
    }
}
