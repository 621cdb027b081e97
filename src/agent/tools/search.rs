//! Looking for files by their names, and for lines by what they say.

use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;

use nanoserde::DeJson;

use crate::sys::openat::{self, Kind};
use crate::{limits, text};

use super::clip::Clip;
use super::files::is_binary;
use super::regex::{Budget, Pattern};
use super::walk::{self, Ended, Entry};
use super::{Scene, shown_path};

/// The arguments of `find_files`.
#[derive(DeJson)]
pub struct Find {
    pub pattern: String,
    pub path: Option<String>,
}

/// The arguments of `search_files`.
#[derive(DeJson)]
pub struct Search {
    pub pattern: String,
    pub path: Option<String>,
    glob: Option<String>,
}

/// A glob that is matched against a path from where the search begins, or against the name alone if
/// there is no slash in it.
struct Names {
    pattern: Pattern,
    whole_path: bool,
    /// Bytes of a path that lie before the beginning of the search.
    base: usize,
}

impl Names {
    fn new(glob: &str, start: &str) -> Result<Names, String> {
        let glob = glob.strip_prefix("./").unwrap_or(glob);
        let start = start.trim_start_matches("./").trim_end_matches('/');
        let base = if matches!(start, "" | ".") { 0 } else { start.len() + 1 };
        let pattern = Pattern::glob(glob.trim_start_matches('/'))?;
        Ok(Names { pattern, whole_path: glob.contains('/'), base })
    }

    fn has(&self, path: &str, budget: &mut Budget<'_>) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        let mut fits = |text: &str| self.pattern.matches(text, budget).unwrap_or(false);
        // With the way from the workspace it is as clear what is meant.
        if self.whole_path {
            path.get(self.base..).is_some_and(&mut fits) || fits(path)
        } else {
            fits(name)
        }
    }
}

impl Find {
    /// The paths of the files that match, one a line.
    pub fn run(&self, scene: &Scene<'_>) -> Result<String, String> {
        let workspace = scene.workspace()?;
        let start = start(self.path.as_deref());
        let names = Names::new(&self.pattern, start)?;
        let mut clip = Clip::new(limits::RESULT_BYTES_MAX - 200);
        let mut count = 0_u64;
        let is_over = || scene.is_over();
        let mut budget = Budget::until(&is_over);
        let ended = walk::walk(scene, workspace, start, |entry| {
            if entry.kind != Kind::Directory && names.has(entry.path, &mut budget) {
                clip.push(shown_path(entry.path).as_bytes());
                clip.push(b"\n");
                count += 1;
            }
            ControlFlow::Continue(())
        })?;
        let mut text = clip.text();
        if count == 0 {
            text.push_str("[no file matches]");
        }
        finish(scene, ended, text)
    }
}

impl Search {
    /// `file:line:text` of the lines that match.
    pub fn run(&self, scene: &Scene<'_>) -> Result<String, String> {
        let workspace = scene.workspace()?;
        let pattern = Pattern::regex(&self.pattern)?;
        let start = start(self.path.as_deref());
        let names = self.glob.as_deref().map(|glob| Names::new(glob, start)).transpose()?;
        let is_over = || scene.is_over();
        let mut looking = Looking { pattern, budget: Budget::until(&is_over), found: Vec::new() };
        let ended = match workspace.file(start) {
            Ok(file) => looking.through(&file, start, scene),
            Err(_) => walk::walk(scene, workspace, start, |entry| {
                let mut fits = |names: &Names| names.has(entry.path, &mut looking.budget);
                let wanted = names.as_ref().is_none_or(&mut fits);
                if entry.kind != Kind::File || !wanted {
                    return ControlFlow::Continue(());
                }
                match open(entry) {
                    Some(file) => match looking.through(&file, entry.path, scene) {
                        Ended::Complete => ControlFlow::Continue(()),
                        _ => ControlFlow::Break(()),
                    },
                    None => ControlFlow::Continue(()),
                }
            })?,
        };
        let found = looking.found;
        let mut text = found.concat();
        if found.is_empty() {
            text.push_str("[no line matches]");
        }
        if found.len() > limits::MATCHES_MAX {
            text = found.get(..limits::MATCHES_MAX).unwrap_or_default().concat();
            text.push_str(&format!("[there are more than these {}]", limits::MATCHES_MAX));
        }
        finish(scene, ended, text)
    }
}

fn start(path: Option<&str>) -> &str {
    path.filter(|path| !path.is_empty()).unwrap_or(".")
}

fn finish(scene: &Scene<'_>, ended: Ended, mut text: String) -> Result<String, String> {
    match ended {
        _ if scene.is_over() => return Err(scene.ended()),
        Ended::TooMuch => text.push_str("\n[not all was looked through: there are too many files]"),
        Ended::Complete | Ended::Enough | Ended::Cancelled => {}
    }
    Ok(text)
}

fn open(entry: &Entry<'_>) -> Option<File> {
    let file = openat::open_entry(entry.directory, entry.name).ok()?;
    let found = file.metadata().ok()?;
    (found.is_file() && found.len() <= limits::SEARCH_BYTES_MAX).then_some(file)
}

/// A search, and what it has found.
struct Looking<'a> {
    pattern: Pattern,
    budget: Budget<'a>,
    found: Vec<String>,
}

impl Looking<'_> {
    /// Adds the lines of a file that match, up to one more than are shown.
    fn through(&mut self, file: &File, path: &str, scene: &Scene<'_>) -> Ended {
        if scene.is_over() {
            return Ended::Cancelled;
        }
        let mut bytes = Vec::new();
        if file.take(limits::SEARCH_BYTES_MAX).read_to_end(&mut bytes).is_err() {
            return Ended::Complete;
        }
        let binary = is_binary(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        if !text.contains(self.pattern.needle()) {
            return Ended::Complete;
        }
        for (line, number) in text.lines().zip(1..) {
            let matches = self.pattern.matches(line, &mut self.budget);
            if self.budget.is_over() {
                return Ended::Cancelled;
            }
            if matches == Some(false) {
                continue;
            }
            let path = shown_path(path);
            match matches {
                None => self.found.push(format!(
                    "{path}:{number}: [given up: this line is too long for so costly a pattern]\n"
                )),
                Some(_) if binary => {
                    self.found.push(format!("{path}: the binary file matches\n"));
                }
                Some(_) => {
                    let line = text::truncated(line, limits::MATCH_CHARS_MAX);
                    self.found.push(format!("{path}:{number}:{line}\n"));
                }
            }
            if self.found.len() > limits::MATCHES_MAX {
                return Ended::Enough;
            }
            if binary {
                break;
            }
        }
        Ended::Complete
    }
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Scratch;
    use super::*;
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
    fn lines_are_found_with_file_and_number() {
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
    fn cancel_reaches_a_search_within_a_line() {
        let scratch = Scratch::new();
        scratch.put("line", &"a".repeat(15 << 20));
        let cancel = Cancel::new().unwrap();
        let asked = Cell::new(0);
        // Somebody wishes it just behind the third look.
        let is_over = || {
            let over = cancel.is_cancelled();
            if asked.replace(asked.get() + 1) == 2 {
                cancel.cancel();
            }
            over
        };
        let pattern = Pattern::regex("(a|b)(a|c)(a|d){300}[xyz]").unwrap();
        let budget = Budget::until(&is_over);
        let mut looking = Looking { pattern, budget, found: Vec::new() };
        let file = File::open(scratch.path().join("line")).unwrap();
        let ended = scratch.scene(|scene| looking.through(&file, "line", scene));
        assert_eq!(ended, Ended::Cancelled);
        assert_eq!(asked.get(), 4, "the next look is the last");
    }

    #[test]
    fn a_line_that_is_too_costly_is_named_and_the_others_are_searched() {
        let scratch = Scratch::new();
        scratch.put("a", &format!("{}\n{}x\n", "a".repeat(40_000), "a".repeat(302)));
        let pattern = Pattern::regex("(a|b)(a|c)(a|d){300}[xyz]").unwrap();
        let budget = Budget::until(&|| false).with_steps(1 << 20);
        let mut looking = Looking { pattern, budget, found: Vec::new() };
        let file = File::open(scratch.path().join("a")).unwrap();
        let ended = scratch.scene(|scene| looking.through(&file, "a", scene));
        assert_eq!(ended, Ended::Complete);
        let [given_up, rest] = looking.found.as_slice() else { panic!("{:?}", looking.found) };
        assert_eq!(given_up, "a:1: [given up: this line is too long for so costly a pattern]\n");
        assert!(rest.starts_with("a:2:aaa"), "{rest}");
    }

    #[test]
    fn at_most_fifty_lines_are_shown_and_long_ones_are_cut() {
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
