//! All that is below a directory, in order of names, without what `.gitignore` leaves out. Links
//! are named and never followed, so a walk neither leaves the workspace nor goes in circles.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Component, Path};

use crate::limits;
use crate::sys::openat::{self, Kind};

use super::Scene;
use super::regex::{Budget, Pattern};
use super::workspace::Workspace;

/// An entry that the walk has come to.
pub struct Entry<'a> {
    pub directory: BorrowedFd<'a>,
    pub name: &'a OsStr,
    /// From the workspace.
    pub path: &'a str,
    pub kind: Kind,
}

/// Why a walk has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All has been seen.
    Complete,
    /// The visitor has seen enough.
    Enough,
    /// There is more than [`limits::WALK_ENTRIES_MAX`] entries.
    TooMuch,
    Cancelled,
}

/// A line of a `.gitignore`. <https://git-scm.com/docs/gitignore>
struct Rule {
    pattern: Pattern,
    /// Against the path from the file's directory, not the name alone.
    whole_path: bool,
    directories_only: bool,
    takes_back: bool,
}

/// A `.gitignore`, and how many bytes of a path are its directory's.
struct Ignore {
    base: usize,
    rules: Vec<Rule>,
}

struct Walk<'a, V> {
    scene: &'a Scene<'a>,
    workspace: &'a Workspace,
    visit: V,
    ignores: Vec<Ignore>,
    budget: Budget<'a>,
    seen: usize,
}

/// Shows everything below the directory `given` to `visit`, until that has seen enough.
pub fn walk(
    scene: &Scene<'_>,
    workspace: &Workspace,
    given: &str,
    visit: impl FnMut(&Entry<'_>) -> ControlFlow<()>,
) -> Result<Ended, String> {
    let top = workspace.directory(given)?;
    let mut ignores = Vec::new();
    let mut path = String::new();
    // What the directories above the first one say holds in it as well.
    ignores.extend(Ignore::read(scene, workspace.root(), 0));
    for component in workspace.relative(given)?.components() {
        if component == Component::CurDir {
            continue;
        }
        if let Component::Normal(name) = component {
            path.push_str(&name.to_string_lossy());
            path.push('/');
        } else {
            // By a way that comes from elsewhere no rule can be told.
            path = format!("{}/", given.trim_end_matches('/'));
            ignores.clear();
            break;
        }
        let above = workspace.directory(path.trim_end_matches('/'));
        ignores.extend(above.ok().and_then(|above| Ignore::read(scene, above.as_fd(), path.len())));
    }
    let is_over = || scene.is_over();
    let budget = Budget::until(&is_over);
    let mut walk = Walk { scene, workspace, visit, ignores, budget, seen: 0 };
    let ended = walk.through(&top, &mut path, 0);
    Ok(ended.break_value().unwrap_or(Ended::Complete))
}

impl<V: FnMut(&Entry<'_>) -> ControlFlow<()>> Walk<'_, V> {
    fn through(&mut self, directory: &File, path: &mut String, depth: usize) -> ControlFlow<Ended> {
        if self.scene.is_over() {
            return ControlFlow::Break(Ended::Cancelled);
        }
        let Ok(closed) = self.workspace.closed_in(directory.as_fd()) else {
            return ControlFlow::Continue(());
        };
        let entries = openat::entries(directory.as_fd(), limits::DIRECTORY_ENTRIES_MAX);
        // One that may not be read has nothing to show.
        let mut entries = entries.unwrap_or_default();
        entries.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        let base = path.len();
        for (name, kind) in entries {
            path.truncate(base);
            path.push_str(&name.to_string_lossy());
            if self.scene.is_over() {
                return ControlFlow::Break(Ended::Cancelled);
            }
            let skipped = name == ".git" || closed.contains(&name.as_os_str());
            if skipped || self.ignored(path, kind == Kind::Directory) {
                continue;
            }
            self.seen += 1;
            if self.seen > limits::WALK_ENTRIES_MAX {
                return ControlFlow::Break(Ended::TooMuch);
            }
            let entry = Entry { directory: directory.as_fd(), name: &name, path, kind };
            if (self.visit)(&entry).is_break() {
                return ControlFlow::Break(Ended::Enough);
            }
            if kind == Kind::Directory
                && depth < limits::WALK_DEPTH_MAX
                && let Ok(below) = openat::enter(directory.as_fd(), &name)
            {
                path.push('/');
                let ignore = Ignore::read(self.scene, below.as_fd(), path.len());
                let more = usize::from(ignore.is_some());
                self.ignores.extend(ignore);
                self.through(&below, path, depth + 1)?;
                self.ignores.truncate(self.ignores.len() - more);
            }
        }
        path.truncate(base);
        ControlFlow::Continue(())
    }

    /// The last rule that speaks of a path decides, those of the innermost directory first.
    fn ignored(&mut self, path: &str, directory: bool) -> bool {
        let budget = &mut self.budget;
        let decided = self.ignores.iter().rev().find_map(|ignore| {
            let rest = path.get(ignore.base..)?;
            let mut rules = ignore.rules.iter().rev();
            let rule = rules.find(|rule| rule.speaks_of(rest, directory, budget))?;
            Some(!rule.takes_back)
        });
        decided.unwrap_or(false)
    }
}

impl Ignore {
    fn read(scene: &Scene<'_>, directory: BorrowedFd<'_>, base: usize) -> Option<Ignore> {
        let file = openat::open_entry(directory, OsStr::new(".gitignore")).ok()?;
        file.metadata().ok().filter(|found| found.is_file())?;
        let mut bytes = Vec::new();
        file.take(limits::IGNORE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().take_while(|_| !scene.is_over());
        let rules: Vec<Rule> = lines.filter_map(Rule::parse).collect();
        (!rules.is_empty()).then_some(Ignore { base, rules })
    }
}

impl Rule {
    fn parse(line: &str) -> Option<Rule> {
        // Blanks at the end count only behind a backslash.
        let line = match line.trim_end() {
            bare if bare.ends_with('\\') && bare.len() < line.len() => line,
            bare => bare,
        };
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let (takes_back, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest));
        let (directories_only, line) =
            line.strip_suffix('/').map_or((false, line), |rest| (true, rest));
        let whole_path = line.contains('/');
        // A brace means itself here.
        let line = line.trim_start_matches('/').replace('{', "\\{").replace('}', "\\}");
        let pattern = Pattern::glob(&line).ok()?;
        Some(Rule { pattern, whole_path, directories_only, takes_back })
    }

    fn speaks_of(&self, path: &str, directory: bool, budget: &mut Budget<'_>) -> bool {
        if self.directories_only && !directory {
            return false;
        }
        let name = Path::new(path).file_name().and_then(OsStr::to_str).unwrap_or(path);
        let fits = self.pattern.matches(if self.whole_path { path } else { name }, budget);
        fits.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Scratch;
    use super::*;
    use std::os::unix::fs::symlink;

    fn seen(scratch: &Scratch, given: &str) -> Vec<String> {
        scratch.scene(|scene| {
            let mut seen = Vec::new();
            let ended = walk(scene, scene.workspace().unwrap(), given, |entry| {
                if entry.kind != Kind::Directory {
                    seen.push(entry.path.to_owned());
                }
                ControlFlow::Continue(())
            });
            assert_eq!(ended, Ok(Ended::Complete));
            seen
        })
    }

    #[test]
    fn gitignore_is_respected_as_git_does() {
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
        // The rules from above hold in a directory that is asked for by name.
        assert_eq!(seen(&scratch, "doc"), ["doc/deep/a.txt"]);
        assert_eq!(seen(&scratch, "sub/"), ["sub/.gitignore", "sub/sub.log"]);
        assert_eq!(seen(&scratch, "build"), ["build/f"]);
    }

    #[test]
    fn links_are_named_and_not_followed() {
        let scratch = Scratch::new();
        scratch.put("a/f", "x");
        symlink("..", scratch.path().join("a/up")).unwrap();
        symlink("/", scratch.path().join("root")).unwrap();
        assert_eq!(seen(&scratch, "."), ["a/f", "a/up", "root"]);
    }

    #[test]
    fn depth_is_bounded() {
        let scratch = Scratch::new();
        scratch.put(&format!("{}f", "d/".repeat(limits::WALK_DEPTH_MAX)), "x");
        assert_eq!(seen(&scratch, ".").len(), 1);
        scratch.put(&format!("{}g", "d/".repeat(limits::WALK_DEPTH_MAX + 1)), "x");
        assert_eq!(seen(&scratch, ".").len(), 1);
    }
}
