//! Visits everything below a directory in the order of names, except for what `.gitignore`
//! excludes. Links are reported and never followed, so a walk neither leaves the workspace nor
//! loops.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Component, Path};

use crate::limits;
use crate::sys::openat::{self, FileType};

use super::regex::{Budget, Pattern};
use super::workspace::{ToolContext, Workspace};

/// An entry of a directory, as it is visited.
pub struct Entry<'a> {
    pub directory: BorrowedFd<'a>,
    pub name: &'a OsStr,
    /// From the workspace.
    pub path: &'a str,
    pub kind: FileType,
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkEnd {
    /// Everything was visited, or the visitor ended the walk.
    Done,
    /// There are more than [`limits::WALK_ENTRIES_MAX`] entries.
    TooMany,
}

/// A line of a `.gitignore`. <https://git-scm.com/docs/gitignore>
struct Rule {
    pattern: Pattern,
    /// Matched against the path from the file's directory, not the name alone.
    whole_path: bool,
    directories_only: bool,
    negated: bool,
}

/// A `.gitignore`, and how many bytes of a path are its directory's.
struct Ignore {
    base: usize,
    rules: Vec<Rule>,
}

struct Walk<'a, V> {
    context: &'a ToolContext<'a>,
    workspace: &'a Workspace,
    visit: V,
    ignores: Vec<Ignore>,
    budget: Budget<'a>,
    visited: usize,
}

/// Visits everything below the directory `given`, until the visitor ends the walk. Fails if the
/// directory cannot be opened, or the turn is over.
pub fn walk(
    context: &ToolContext<'_>,
    given: &str,
    visit: impl FnMut(&Entry<'_>) -> ControlFlow<()>,
) -> Result<WalkEnd, String> {
    let workspace = context.workspace()?;
    let top = workspace.directory(given)?;
    let mut ignores = Vec::new();
    let mut path = String::new();
    // The rules of the directories above apply here as well.
    ignores.extend(Ignore::read(context, workspace.root(), 0));
    for component in workspace.relative(given)?.components() {
        if component == Component::CurDir {
            continue;
        }
        if let Component::Normal(name) = component {
            path.push_str(&name.to_string_lossy());
            path.push('/');
        } else {
            // The path leads through a parent: it is unknown which rules apply.
            path = format!("{}/", given.trim_end_matches('/'));
            ignores.clear();
            break;
        }
        if let Ok(above) = workspace.directory(path.trim_end_matches('/')) {
            ignores.extend(Ignore::read(context, above.as_fd(), path.len()));
        }
    }
    let is_over = || context.is_over();
    let budget = Budget::until(&is_over);
    let mut walk = Walk { context, workspace, visit, ignores, budget, visited: 0 };
    let end = walk.visit_all(&top, &mut path, 0);
    context.check()?;
    Ok(end.break_value().unwrap_or(WalkEnd::Done))
}

impl<V: FnMut(&Entry<'_>) -> ControlFlow<()>> Walk<'_, V> {
    fn visit_all(
        &mut self,
        directory: &File,
        path: &mut String,
        depth: usize,
    ) -> ControlFlow<WalkEnd> {
        let Ok(protected) = self.workspace.protected_in(directory.as_fd()) else {
            return ControlFlow::Continue(());
        };
        // A directory that may not be read has no entries.
        let entries = openat::entries(directory.as_fd(), limits::DIRECTORY_ENTRIES_MAX);
        let mut entries = entries.unwrap_or_default();
        entries.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        let base = path.len();
        for (name, kind) in entries {
            if self.context.is_over() {
                return ControlFlow::Break(WalkEnd::Done);
            }
            path.truncate(base);
            path.push_str(&name.to_string_lossy());
            let skipped = name == ".git" || protected.contains(&name.as_os_str());
            if skipped || self.is_ignored(path, kind == FileType::Directory) {
                continue;
            }
            self.visited += 1;
            if self.visited > limits::WALK_ENTRIES_MAX {
                return ControlFlow::Break(WalkEnd::TooMany);
            }
            let entry = Entry { directory: directory.as_fd(), name: &name, path, kind };
            if (self.visit)(&entry).is_break() {
                return ControlFlow::Break(WalkEnd::Done);
            }
            if kind == FileType::Directory
                && depth < limits::WALK_DEPTH_MAX
                && let Ok(below) = openat::enter(directory.as_fd(), &name)
            {
                path.push('/');
                let above = self.ignores.len();
                self.ignores.extend(Ignore::read(self.context, below.as_fd(), path.len()));
                self.visit_all(&below, path, depth + 1)?;
                self.ignores.truncate(above);
            }
        }
        path.truncate(base);
        ControlFlow::Continue(())
    }

    /// Returns whether the rules exclude a path. The last rule that matches decides, and the rules
    /// of the innermost directory come last.
    fn is_ignored(&mut self, path: &str, directory: bool) -> bool {
        let budget = &mut self.budget;
        let decision = self.ignores.iter().rev().find_map(|ignore| {
            let rest = path.get(ignore.base..)?;
            ignore.rules.iter().rev().find(|rule| rule.matches(rest, directory, budget))
        });
        decision.is_some_and(|rule| !rule.negated)
    }
}

impl Ignore {
    fn read(context: &ToolContext<'_>, directory: BorrowedFd<'_>, base: usize) -> Option<Ignore> {
        let file = openat::open_entry(directory, OsStr::new(".gitignore")).ok()?;
        file.metadata().ok().filter(|found| found.is_file())?;
        let mut bytes = Vec::new();
        file.take(limits::IGNORE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().take_while(|_| !context.is_over());
        Some(Ignore { base, rules: lines.filter_map(Rule::parse).collect() })
    }
}

impl Rule {
    fn parse(line: &str) -> Option<Rule> {
        // Trailing spaces count only after a backslash.
        let line = match line.trim_end() {
            bare if bare.ends_with('\\') && bare.len() < line.len() => line,
            bare => bare,
        };
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let (negated, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest));
        let (directories_only, line) =
            line.strip_suffix('/').map_or((false, line), |rest| (true, rest));
        let whole_path = line.contains('/');
        // Here a brace is a plain character.
        let line = line.trim_start_matches('/').replace('{', "\\{").replace('}', "\\}");
        let pattern = Pattern::glob(&line).ok()?;
        Some(Rule { pattern, whole_path, directories_only, negated })
    }

    fn matches(&self, path: &str, directory: bool, budget: &mut Budget<'_>) -> bool {
        if self.directories_only && !directory {
            return false;
        }
        let name = Path::new(path).file_name().and_then(OsStr::to_str).unwrap_or(path);
        let text = if self.whole_path { path } else { name };
        self.pattern.matches(text, budget).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::scratch::Scratch;
    use std::os::unix::fs::symlink;

    fn seen(scratch: &Scratch, given: &str) -> Vec<String> {
        scratch.with_context(|context| {
            let mut seen = Vec::new();
            let end = walk(context, given, |entry| {
                if entry.kind != FileType::Directory {
                    seen.push(entry.path.to_owned());
                }
                ControlFlow::Continue(())
            });
            assert_eq!(end, Ok(WalkEnd::Done));
            seen
        })
    }

    #[test]
    fn gitignore_excludes_what_git_excludes() {
        let scratch = Scratch::new();
        let ignore =
            "# comment\n*.log\n!keep.log\n/top\nbuild/\ndoc/*.txt\n**/gen/x\na/**/z\n{x}\n";
        scratch.put(".gitignore", ignore);
        scratch.put("sub/.gitignore", "!sub.log\nlocal\n");
        let shown = [
            "a/y",
            "build_not/f",
            "doc/deep/a.txt",
            "keep.log",
            "src/build",
            "src/top",
            "sub/sub.log",
            "x",
        ];
        let hidden = [
            "a.log",
            "src/b.log",
            "top",
            "build/f",
            "src/deep/build/f",
            "doc/a.txt",
            "gen/x",
            "src/gen/x",
            "a/z",
            "a/b/c/z",
            "sub/local",
            ".git/config",
            "{x}",
        ];
        shown.iter().chain(&hidden).for_each(|name| scratch.put(name, "x"));
        let mut wanted: Vec<&str> = shown.to_vec();
        wanted.extend([".gitignore", "sub/.gitignore"]);
        wanted.sort_unstable();
        let mut found = seen(&scratch, ".");
        found.sort_unstable();
        assert_eq!(found, wanted);
        // The rules of the directories above hold if a walk begins below them.
        assert_eq!(seen(&scratch, "doc"), ["doc/deep/a.txt"]);
        assert_eq!(seen(&scratch, "sub/"), ["sub/.gitignore", "sub/sub.log"]);
        assert_eq!(seen(&scratch, "build"), ["build/f"]);
    }

    #[test]
    fn links_are_reported_and_not_followed() {
        let scratch = Scratch::new();
        scratch.put("a/f", "x");
        symlink("..", scratch.path().join("a/up")).unwrap();
        symlink("/", scratch.path().join("root")).unwrap();
        assert_eq!(seen(&scratch, "."), ["a/f", "a/up", "root"]);
    }

    #[test]
    fn the_depth_of_a_walk_is_limited() {
        let scratch = Scratch::new();
        scratch.put(&format!("{}f", "d/".repeat(limits::WALK_DEPTH_MAX)), "x");
        assert_eq!(seen(&scratch, ".").len(), 1);
        scratch.put(&format!("{}g", "d/".repeat(limits::WALK_DEPTH_MAX + 1)), "x");
        assert_eq!(seen(&scratch, ".").len(), 1);
    }
}
