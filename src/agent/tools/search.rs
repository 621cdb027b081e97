//! Tools that find files by name, and lines by content.

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;

use nanoserde::DeJson;

use crate::agent::clip::Clip;
use crate::error::reason;
use crate::limits;
use crate::pattern::compile;
use crate::sys::openat::FileType;
use crate::text::escaped;

use super::glob;
use super::line_search::{Files, Search};
use super::walk::{self, Entry, Walk, WalkEnd, name_of, shown};
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

/// A glob of a call. It is matched against the path from the start of the search if it has a slash,
/// else against the name alone.
struct NameGlob {
    globs: Vec<String>,
    whole_path: bool,
}

impl NameGlob {
    fn new(given: &str) -> Result<NameGlob, String> {
        if given.len() > limits::PATTERN_BYTES_MAX {
            return Err(format!("the glob is longer than {} bytes", limits::PATTERN_BYTES_MAX));
        }
        let inside = given.strip_prefix("./").unwrap_or(given);
        let globs = glob::alternatives(inside.trim_start_matches('/'))?;
        Ok(NameGlob { globs, whole_path: inside.contains('/') })
    }

    fn matches(&self, entry: &Entry<'_>) -> bool {
        self.globs.iter().map(String::as_bytes).any(|glob| {
            if self.whole_path {
                // A path from the workspace is as clear.
                glob::matches_path(glob, entry.inside) || glob::matches_path(glob, entry.path)
            } else {
                glob::matches_name(glob, name_of(entry.path).as_bytes())
            }
        })
    }
}

impl FindFiles {
    /// Returns the paths of the files that match, one per line.
    pub fn run(&self, context: &ToolContext<'_>) -> Result<String, String> {
        let names = NameGlob::new(&self.pattern)?;
        let mut clip = Clip::new(limits::RESULT_BYTES_MAX - 200);
        let mut found = false;
        let end = walk::walk(context, start(self.path.as_deref()), &mut |entry| {
            if entry.kind != FileType::Directory && names.matches(entry) {
                clip.push(shown(entry.path).as_bytes());
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
    /// Returns `file:line:text` of the lines that match, in the order of paths.
    pub fn run(&self, context: &ToolContext<'_>) -> Result<String, String> {
        let regex = compile(&self.pattern, false)?;
        let start = start(self.path.as_deref());
        let names = self.glob.as_deref().map(NameGlob::new).transpose()?;
        let entry = context.workspace()?.entry(start)?;
        let file = entry.filter(|entry| entry.metadata().is_ok_and(|found| found.is_file()));
        let most = limits::SEARCH_BYTES_MAX;
        let files = match file {
            Some(file) if file.metadata().is_ok_and(|found| found.len() > most) => {
                let path = escaped(start);
                return Err(format!("{path} is too large to be searched: more than {most} bytes"));
            }
            Some(file) => Files::one(start, file),
            None => {
                let is_wanted = move |entry: &Entry<'_>| {
                    names.as_ref().is_none_or(|names| names.matches(entry))
                };
                Files::below(Walk::new(context, start)?, Box::new(is_wanted))
            }
        };
        let search = Search::start(regex, files)
            .map_err(|error| format!("the search cannot be started: {}", reason(&error)))?;
        let found = search.wait(context);
        context.check()?;
        let end = search.end();
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
    if end.is_incomplete {
        "\n[not all was looked through: there are too many files, or they lie too deep]"
    } else if end.too_many_rules {
        "\n[not all .gitignore rules were applied: there are too many]"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::scratch::Scratch;
    use std::fs::File;

    #[test]
    fn files_are_found_by_name_or_by_path() {
        let scratch = Scratch::new();
        for name in
            ["a.rs", "src/b.rs", "src/deep/c.rs", "src/c.txt", "target/d.rs", "we ird\u{7f}.rs"]
        {
            scratch.put(name, "x");
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
        let absolute = scratch.path().join("src").to_str().unwrap().to_owned();
        for path in [&absolute, "src/", "./src", "src/.", "src//"] {
            let arguments = format!(r#"{{"pattern":"deep/*","path":"{path}"}}"#);
            assert_eq!(find(&arguments), "src/deep/c.rs\n", "{path}");
            let arguments = format!(r#"{{"pattern":"x","path":"{path}","glob":"*/c.rs"}}"#);
            let found = scratch.run("search_files", &arguments).unwrap();
            assert_eq!(found, "src/deep/c.rs:1:x\n", "{path}");
        }
        let through_parent = find(r#"{"pattern":"deep/*","path":"target/../src"}"#);
        assert_eq!(through_parent, "target/../src/deep/c.rs\n");
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
        assert!(problem.contains("unclosed group"), "{problem}");
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

    #[test]
    fn a_file_that_is_named_and_too_large_is_no_file_without_matches() {
        let scratch = Scratch::new();
        let file = File::create(scratch.path().join("a")).unwrap();
        let search = |size| {
            file.set_len(size).unwrap();
            scratch.run("search_files", r#"{"pattern":"x","path":"a"}"#)
        };
        assert_eq!(search(limits::SEARCH_BYTES_MAX).unwrap(), "[no line matches]");
        let refused = search(limits::SEARCH_BYTES_MAX + 1).unwrap_err();
        assert_eq!(refused, "a is too large to be searched: more than 16777216 bytes");
    }
}
