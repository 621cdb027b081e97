//! Visits everything below a directory in the order of names, except for what git ignores. Links
//! are reported and never followed, so a walk neither leaves the workspace nor loops.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::mem;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Component;
use std::sync::Arc;
use std::vec;

use crate::limits;
use crate::sys::openat::{self, FileType};
use crate::text::escaped;

use super::ignore::{self, IgnoreRules};
use super::workspace::{ToolContext, Workspace};

/// An entry of a directory, as it is visited.
pub struct Entry<'a> {
    pub directory: &'a Arc<File>,
    /// From the workspace.
    pub path: &'a [u8],
    /// From where the walk began.
    pub inside: &'a [u8],
    pub kind: FileType,
}

/// What a walk left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkEnd {
    /// There are more entries than [`limits::WALK_ENTRIES_MAX`], in a directory more than
    /// [`limits::DIRECTORY_ENTRIES_MAX`], or some deeper than [`limits::WALK_DEPTH_MAX`].
    pub is_incomplete: bool,
    /// There are more rules of what git ignores than [`limits::IGNORE_BYTES_ALL_MAX`].
    pub too_many_rules: bool,
}

/// The state of a walk between two entries.
pub struct Walk {
    workspace: Arc<Workspace>,
    rules: IgnoreRules,
    /// The directories from the top to where the walk is.
    levels: Vec<Level>,
    /// That of the last entry.
    path: Vec<u8>,
    /// How many bytes of a path lead to where the walk began.
    start: usize,
    /// The last entry was a directory, and its entries come next.
    descends: bool,
    visited: usize,
    /// [`limits::DIRECTORY_ENTRIES_MAX`], less in a test.
    directory_entries_max: usize,
    end: WalkEnd,
}

/// A directory that a walk is in.
struct Level {
    directory: Arc<File>,
    /// Those that are still to be visited.
    entries: vec::IntoIter<(OsString, FileType)>,
    /// The length of its path, with the slash at the end.
    path: usize,
    /// The number of files of rules that hold outside of it.
    rules: usize,
}

/// Visits everything below the directory `given`, until the visitor has seen enough. Fails if the
/// directory cannot be opened, or the turn is over.
pub fn walk(
    context: &ToolContext<'_>,
    given: &str,
    visit: &mut dyn FnMut(&Entry<'_>) -> ControlFlow<()>,
) -> Result<WalkEnd, String> {
    let mut walk = Walk::new(context, given)?;
    while let Some(entry) = walk.next(&|| context.is_over()) {
        if visit(&entry).is_break() {
            break;
        }
    }
    context.check()?;
    Ok(walk.end())
}

/// Returns the last name of a path.
pub fn name_of(path: &[u8]) -> &OsStr {
    OsStr::from_bytes(path.rsplit(|byte| *byte == b'/').next().unwrap_or(path))
}

/// Returns a path as results show it.
pub fn shown(path: &[u8]) -> String {
    escaped(&String::from_utf8_lossy(path))
}

impl Walk {
    /// Begins a walk through everything below the directory `given`.
    pub fn new(context: &ToolContext<'_>, given: &str) -> Result<Walk, String> {
        let workspace = context.workspace()?;
        let top = workspace.directory(given)?;
        let relative = workspace.relative(given)?;
        let mut path = Vec::new();
        let mut rules = IgnoreRules::default();
        if relative.components().any(|name| name == Component::ParentDir) {
            // Which rules of the directories above hold is unknown.
            path.extend(relative.components().as_path().as_os_str().as_bytes());
            path.push(b'/');
            rules.enter(top.as_fd(), &path);
        } else {
            rules = IgnoreRules::above(workspace.path(), context);
            rules.enter(workspace.root(), &path);
            for name in relative.components().filter(|name| *name != Component::CurDir) {
                path.extend(name.as_os_str().as_bytes());
                path.push(b'/');
                let above = OsStr::from_bytes(&path).to_str();
                let above = above.map(|path| path.trim_end_matches('/'));
                if let Some(Ok(above)) = above.map(|path| workspace.directory(path)) {
                    rules.enter(above.as_fd(), &path);
                }
            }
        }
        let workspace = Arc::clone(workspace);
        let mut walk = Walk {
            workspace,
            rules,
            levels: Vec::new(),
            start: path.len(),
            path,
            descends: false,
            visited: 0,
            directory_entries_max: limits::DIRECTORY_ENTRIES_MAX,
            end: WalkEnd::default(),
        };
        walk.enter(top);
        Ok(walk)
    }

    /// Returns the next entry; none after the last one, and once `is_over`.
    pub fn next(&mut self, is_over: &dyn Fn() -> bool) -> Option<Entry<'_>> {
        if mem::take(&mut self.descends) {
            self.descend();
        }
        let kind = loop {
            let level = self.levels.last_mut()?;
            self.path.truncate(level.path);
            let Some((name, kind)) = level.entries.next() else {
                self.rules.leave(level.rules);
                self.levels.pop();
                continue;
            };
            self.path.extend(name.as_bytes());
            if is_over() {
                return None;
            }
            if !self.rules.exclude(&self.path, kind == FileType::Directory) {
                break kind;
            }
        };
        self.visited += 1;
        if self.visited > limits::WALK_ENTRIES_MAX {
            self.levels.clear();
            self.end.is_incomplete = true;
        }
        self.descends = kind == FileType::Directory;
        let directory = &self.levels.last()?.directory;
        let inside = self.path.get(self.start..).unwrap_or_default();
        Some(Entry { directory, path: &self.path, inside, kind })
    }

    /// Returns what was left out so far.
    pub fn end(&self) -> WalkEnd {
        WalkEnd { too_many_rules: self.rules.are_cut, ..self.end }
    }

    /// Enters the directory that is the last entry.
    fn descend(&mut self) {
        let Some(level) = self.levels.last() else { return };
        let name = OsStr::from_bytes(self.path.get(level.path..).unwrap_or_default());
        if self.levels.len() > limits::WALK_DEPTH_MAX {
            self.end.is_incomplete = true;
        } else if let Ok(below) = openat::enter(level.directory.as_fd(), name) {
            self.path.push(b'/');
            self.enter(below);
        }
    }

    /// Makes the entries of a directory the next ones.
    fn enter(&mut self, directory: File) {
        let most = self.directory_entries_max;
        // A directory that may not be read has no entries.
        let mut entries = openat::entries(directory.as_fd(), most + 1).unwrap_or_default();
        let is_cut = entries.len() > most;
        self.end.is_incomplete |= is_cut;
        entries.truncate(most);
        let rules = self.rules.count();
        let is_rules =
            |(name, kind): &(OsString, FileType)| name == ignore::FILE && *kind == FileType::File;
        if !self.levels.is_empty() && (is_cut || entries.iter().any(is_rules)) {
            self.rules.enter(directory.as_fd(), &self.path);
        }
        entries.retain(|(name, _)| name != ".git");
        self.workspace.remove_protected(directory.as_fd(), &mut entries);
        entries.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        let (directory, entries) = (Arc::new(directory), entries.into_iter());
        self.levels.push(Level { directory, entries, path: self.path.len(), rules });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::scratch::Scratch;
    use crate::protocol::Variable;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    fn seen(scratch: &Scratch, given: &str) -> Vec<String> {
        scratch.with_context(|context| {
            let mut seen = Vec::new();
            let end = walk(context, given, &mut |entry| {
                if entry.kind != FileType::Directory {
                    seen.push(String::from_utf8(entry.path.to_owned()).unwrap());
                }
                ControlFlow::Continue(())
            });
            assert_eq!(end, Ok(WalkEnd::default()));
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

    /// What git lists as neither tracked nor ignored below `below`; `None` where there is no git.
    fn listed_by_git(scratch: &Scratch, below: &str) -> Option<Vec<String>> {
        let git = |arguments: &[&str]| {
            let mut command = Command::new("git");
            command.arg("-C").arg(scratch.path().join(below)).args(arguments);
            command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
            let output = command.env("HOME", scratch.path().join("home")).output().ok()?;
            assert!(output.status.success(), "{output:?}");
            Some(String::from_utf8(output.stdout).unwrap())
        };
        if !scratch.path().join(".git").exists() {
            git(&["init", "--quiet", "."])?;
        }
        let listed = git(&["ls-files", "--others", "--exclude-standard", "-z"])?;
        let names = listed.split_terminator('\0').map(str::to_owned);
        Some(names.filter(|name| !name.starts_with("home/")).collect())
    }

    fn random_rules(random: &mut fastrand::Rng) -> String {
        const PARTS: [&str; 18] = [
            "a",
            "b",
            "ab",
            "*",
            "**",
            "?",
            "a*",
            "*b",
            "[ab]",
            "[!a]",
            "[[:alpha:]]",
            "a**b",
            "\\a",
            "c d",
            "*.c",
            "é",
            "[a",
            "b\\",
        ];
        let mut text =
            String::from(*random.choice(["", "\u{feff}", "# a\n", "\n"].iter()).unwrap());
        for _ in 0..random.usize(1..6) {
            text.push_str(random.choice(["", "", "", "!", "\\!", "#"].iter()).unwrap());
            text.push_str(random.choice(["", "", "/", "**/"].iter()).unwrap());
            let parts: Vec<&str> =
                (0..random.usize(1..4)).map(|_| *random.choice(PARTS.iter()).unwrap()).collect();
            text.push_str(&parts.join(random.choice(["/", "/", ""].iter()).unwrap()));
            text.push_str(
                random.choice(["", "", "/", "/**", " ", "\\ ", "\t", "\r"].iter()).unwrap(),
            );
            text.push_str(random.choice(["\n", "\n", "\n\n"].iter()).unwrap());
        }
        text
    }

    #[test]
    fn what_git_ignores_is_not_visited() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        for round in 0..20 {
            let scratch = Scratch::new();
            let names = ["a", "b", "ab", "aab", "c d", "x.c", "é", "!a", "#a", "[a", "b ", "a\\"];
            for _ in 0..40 {
                let parts: Vec<&str> = (0..random.usize(1..4))
                    .map(|_| *random.choice(names.iter()).unwrap())
                    .collect();
                // A file may be where another one needs a directory.
                let path = scratch.path().join(parts.join("/"));
                if fs::create_dir_all(path.parent().unwrap()).is_ok() && !path.exists() {
                    drop(File::create(path));
                }
            }
            scratch.put("home/global", &random_rules(&mut random));
            scratch.put("home/.config/git/ignore", &random_rules(&mut random));
            if random.bool() {
                let file = scratch.path().join("home/global");
                let setting = format!("[core]\n\texcludesFile = {}\n", file.display());
                scratch.put("home/.gitconfig", &setting);
            }
            if listed_by_git(&scratch, ".").is_none() {
                return eprintln!("skipped: what_git_ignores_is_not_visited: it needs git");
            }
            scratch.put(".git/info/exclude", &random_rules(&mut random));
            scratch.put(".gitignore", &random_rules(&mut random));
            for directory in ["a", "a/b", "ab"] {
                if scratch.path().join(directory).is_dir() && random.bool() {
                    scratch.put(&format!("{directory}/.gitignore"), &random_rules(&mut random));
                }
            }
            for below in [".", "a", "a/b"] {
                let workspace = scratch.path().join(below);
                if !workspace.is_dir() {
                    continue;
                }
                let mut wanted = listed_by_git(&scratch, below).unwrap();
                let home = scratch.path().join("home").to_str().unwrap().to_owned();
                let environment = [Variable { name: "HOME".to_owned(), value: home }];
                let mut found = scratch.in_workspace(&workspace, &environment, |context| {
                    let mut seen = Vec::new();
                    let end = walk(context, ".", &mut |entry| {
                        if entry.kind != FileType::Directory && !entry.path.starts_with(b"home/") {
                            seen.push(String::from_utf8(entry.path.to_owned()).unwrap());
                        }
                        ControlFlow::Continue(())
                    });
                    assert_eq!(end, Ok(WalkEnd::default()));
                    seen
                });
                wanted.sort();
                found.sort();
                // A workspace that is ignored as a whole was chosen by the user.
                if !wanted.is_empty() || below == "." {
                    assert_eq!(found, wanted, "seed {seed}, round {round}, in {below}");
                }
            }
        }
    }

    #[test]
    fn rules_beyond_the_limit_are_left_out_and_reported() {
        let scratch = Scratch::new();
        let rule = |number: usize| format!("{number:0>1023}\n");
        let most = limits::IGNORE_BYTES_MAX / 1024;
        let text: String = (0..most).map(rule).collect();
        scratch.put(".gitignore", &text);
        let too_many = |scratch: &Scratch| {
            scratch.with_context(|context| {
                walk(context, ".", &mut |_| ControlFlow::Continue(())).unwrap().too_many_rules
            })
        };
        assert!(!too_many(&scratch));
        scratch.put(".gitignore", &(text + "x"));
        assert!(too_many(&scratch));
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
    fn a_walk_through_a_parent_has_the_paths_that_were_given() {
        let scratch = Scratch::new();
        scratch.put(".gitignore", "x\n");
        scratch.put("a/f", "");
        scratch.put("b/c/x", "");
        scratch.put("b/c/y", "");
        scratch.put("b/c/.gitignore", "y\n");
        // Of the rules, only those in the directory itself are known to hold.
        let wanted = ["a/../b/c/.gitignore", "a/../b/c/x"];
        assert_eq!(seen(&scratch, "a/../b/c"), wanted);
        let absolute = scratch.path().join("a/../b/c/");
        assert_eq!(seen(&scratch, absolute.to_str().unwrap()), wanted);
    }

    /// Returns the number of files that a walk visits, and whether there are more entries.
    fn count(scratch: &Scratch, set: impl FnOnce(&mut Walk)) -> (usize, bool) {
        scratch.with_context(|context| {
            let mut walk = Walk::new(context, ".").unwrap();
            set(&mut walk);
            let mut count = 0;
            while let Some(entry) = walk.next(&|| false) {
                count += usize::from(entry.kind == FileType::File);
            }
            (count, walk.end().is_incomplete)
        })
    }

    #[test]
    fn the_depth_of_a_walk_is_limited() {
        let scratch = Scratch::new();
        scratch.put(&format!("{}f", "d/".repeat(limits::WALK_DEPTH_MAX)), "x");
        assert_eq!(count(&scratch, |_| ()), (1, false));
        scratch.put(&format!("{}g", "d/".repeat(limits::WALK_DEPTH_MAX + 1)), "x");
        assert_eq!(count(&scratch, |_| ()), (1, true));
    }

    #[test]
    fn the_entries_of_a_walk_and_of_a_directory_are_limited() {
        let scratch = Scratch::new();
        ["d/a", "d/b", "d/c"].iter().for_each(|name| scratch.put(name, "x"));
        for (most, wanted) in [(3, (3, false)), (2, (2, true))] {
            assert_eq!(count(&scratch, |walk| walk.directory_entries_max = most), wanted);
            // With the directory itself.
            let visited = limits::WALK_ENTRIES_MAX - most - 1;
            assert_eq!(count(&scratch, |walk| walk.visited = visited), wanted);
        }
    }
}
