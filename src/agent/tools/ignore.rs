//! What git ignores: the rules of `.gitignore` files, of `.git/info/exclude` and of the user's
//! global file, in the order in which git reads them. <https://git-scm.com/docs/gitignore>

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::limits;
use crate::sys::openat;

use super::git::{self, Repository};
use super::workspace::ToolContext;
use super::{command, glob};

/// The file of rules in a directory.
pub const FILE: &str = ".gitignore";

/// The rules that hold in a directory: those of the directories above it, then its own.
#[derive(Default)]
pub struct IgnoreRules {
    /// The path of the workspace from the top of its repository, with a slash at its end.
    prefix: Vec<u8>,
    files: Vec<RuleFile>,
    bytes: usize,
    /// Whether rules were left out because there are too many.
    pub are_cut: bool,
}

/// The rules of a file.
struct RuleFile {
    /// How many bytes of a path from the top of the repository lead to the file's directory.
    base: usize,
    text: Vec<u8>,
    rules: Vec<Rule>,
}

/// A line of a file.
struct Rule {
    glob: Range<u32>,
    /// Without `*` and whatever else is special, but for a `*` at the beginning.
    is_plain: bool,
    /// Matched against the path from the file's directory, not the name alone.
    whole_path: bool,
    directories_only: bool,
    negated: bool,
}

impl IgnoreRules {
    /// Reads the rules that hold in the workspace at `root` from outside of it: the user's global
    /// file, the repository's own exclusions, and the `.gitignore` files above the workspace.
    pub fn above(root: &Path, context: &ToolContext<'_>) -> IgnoreRules {
        let mut rules = IgnoreRules::default();
        let Some(repository) = Repository::of(root) else { return rules };
        let top = repository.top.as_path();
        if let Some(file) = global_file(&repository, context) {
            rules.read(git::open_regular(&file), 0);
        }
        rules.read(git::open_regular(&repository.common().join("info/exclude")), 0);
        let inside = root.strip_prefix(top).unwrap_or(Path::new(""));
        let mut above = top.to_owned();
        for name in inside {
            if let Ok(directory) = File::open(&above) {
                rules.enter(directory.as_fd(), b"");
            }
            above.push(name);
            rules.prefix.extend(name.as_bytes());
            rules.prefix.push(b'/');
        }
        rules
    }

    /// Returns the number of files whose rules hold.
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// Adds the rules of `directory`, which lies at `path` in the workspace; a path ends with a
    /// slash, or is empty.
    pub fn enter(&mut self, directory: BorrowedFd<'_>, path: &[u8]) {
        // Like git, a link is not followed.
        let file = openat::open_entry(directory, OsStr::new(FILE)).ok();
        self.read(file, self.prefix.len() + path.len());
    }

    /// Removes the rules that were added last, up to this number of files.
    pub fn leave(&mut self, count: usize) {
        for file in self.files.drain(count..) {
            self.bytes -= file.text.len();
        }
    }

    /// Returns whether the rules exclude a path of the workspace. The last rule that matches
    /// decides, and the rules of the innermost directory come last.
    pub fn exclude(&self, path: &[u8], is_directory: bool) -> bool {
        if self.files.is_empty() {
            return false;
        }
        let whole;
        let path = match self.prefix.as_slice() {
            [] => path,
            prefix => {
                whole = [prefix, path].concat();
                &whole
            }
        };
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let decision = self.files.iter().rev().find_map(|file| {
            let rest = path.get(file.base..)?;
            file.rules.iter().rev().find(|rule| rule.matches(&file.text, rest, name, is_directory))
        });
        decision.is_some_and(|rule| !rule.negated)
    }

    fn read(&mut self, file: Option<File>, base: usize) {
        let Some(file) = file.filter(|file| file.metadata().is_ok_and(|found| found.is_file()))
        else {
            return;
        };
        let room = limits::IGNORE_BYTES_MAX.min(limits::IGNORE_BYTES_ALL_MAX - self.bytes);
        let mut text = Vec::new();
        if file.take(room as u64 + 1).read_to_end(&mut text).is_err() {
            return;
        }
        if text.len() > room {
            self.are_cut = true;
            // Half a rule could exclude what the whole one does not.
            text.truncate(room);
            text.truncate(text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0));
        }
        self.bytes += text.len();
        let rules = rules(&text);
        self.files.push(RuleFile { base, text, rules });
    }
}

/// Returns the rules in a text.
fn rules(text: &[u8]) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut start = if text.starts_with("\u{feff}".as_bytes()) { 3 } else { 0 };
    for line in text.get(start..).unwrap_or_default().split(|byte| *byte == b'\n') {
        let end = start + line.len();
        rules.extend(Rule::read(line, start));
        start = end + 1;
    }
    rules
}

impl Rule {
    /// Reads the line that begins at byte `start` of its text.
    fn read(line: &[u8], start: usize) -> Option<Rule> {
        if line.starts_with(b"#") {
            return None;
        }
        let mut line = line.strip_suffix(b"\r").unwrap_or(line);
        // Trailing spaces count only after a backslash.
        while let [rest @ .., b' '] = line
            && !glob::is_escaped(rest)
        {
            line = rest;
        }
        let mut begin = start;
        let mut end = start + line.len();
        let negated = line.starts_with(b"!");
        begin += usize::from(negated);
        let directories_only = line.ends_with(b"/");
        end -= usize::from(directories_only);
        let inside = line.get(begin - start..end.checked_sub(start)?)?;
        let whole_path = inside.contains(&b'/');
        let rest = inside.strip_prefix(b"*").filter(|_| !whole_path).unwrap_or(inside);
        let is_plain = !rest.iter().any(|byte| b"*?[\\".contains(byte));
        begin += usize::from(inside.starts_with(b"/"));
        if begin >= end {
            return None;
        }
        let glob = u32::try_from(begin).ok()?..u32::try_from(end).ok()?;
        Some(Rule { glob, is_plain, whole_path, directories_only, negated })
    }

    fn matches(&self, text: &[u8], path: &[u8], name: &[u8], is_directory: bool) -> bool {
        if self.directories_only && !is_directory {
            return false;
        }
        let glob = text.get(self.glob.start as usize..self.glob.end as usize).unwrap_or_default();
        let path = if self.whole_path { path } else { name };
        match glob {
            // Nearly all rules are of these two kinds.
            [b'*', end @ ..] if self.is_plain => path.ends_with(end),
            _ if self.is_plain => path == glob,
            // Git compares the literal beginning by itself. So `/a**` is `/a` and then `**`, as if
            // a slash were between.
            _ if self.whole_path => {
                let is_special = |byte: &u8| b"*?[\\".contains(byte);
                let (begin, rest) =
                    glob.split_at(glob.iter().position(is_special).unwrap_or(glob.len()));
                path.strip_prefix(begin).is_some_and(|path| glob::matches_path(rest, path))
            }
            _ => glob::matches_name(glob, path),
        }
    }
}

/// Where git's settings for all users are, depending on who built it.
const SYSTEM_CONFIGS: [&str; 3] =
    ["/etc/gitconfig", "/usr/local/etc/gitconfig", "/opt/homebrew/etc/gitconfig"];

/// Returns the file of rules that hold in all repositories of the user: the one that git's
/// settings name, else the usual one. git-config(1), core.excludesFile
fn global_file(repository: &Repository, context: &ToolContext<'_>) -> Option<PathBuf> {
    let variable = |name: &str| {
        let found = context.environment.iter().find(|variable| variable.name == name)?;
        (!found.value.is_empty()).then(|| PathBuf::from(&found.value))
    };
    let home = variable("HOME");
    let config_home = variable("XDG_CONFIG_HOME");
    let config_home = config_home.or_else(|| home.as_ref().map(|home| home.join(".config")));
    let own = home.map(|home| home.join(".gitconfig"));
    let usual = config_home.as_ref().map(|config| config.join("git/config"));
    let local = ["config", "config.worktree"].map(|name| repository.common().join(name));
    let configs = SYSTEM_CONFIGS.map(PathBuf::from).into_iter().chain(own).chain(usual);
    // Git takes longer to start than to search many files, and mostly has nothing to say.
    if configs.chain(local).any(|config| may_name_file(&config))
        && let Some(named) =
            command::output("exec git config --path --get core.excludesFile", context)
    {
        return Some(PathBuf::from(named.trim_end_matches('\n')));
    }
    config_home.map(|config| config.join("git/ignore"))
}

/// Returns whether git's settings in a file may name a file of rules, or other settings.
fn may_name_file(config: &Path) -> bool {
    let Some(file) = git::open_regular(config) else { return false };
    let mut text = Vec::new();
    let read = file.take(limits::IGNORE_BYTES_MAX as u64).read_to_end(&mut text);
    let has = |word: &[u8]| text.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
    // Who has more settings has this one as well.
    read.is_ok_and(|count| count == limits::IGNORE_BYTES_MAX)
        || has(b"excludesfile")
        || has(b"include")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::scratch::Scratch;

    #[test]
    fn two_stars_after_a_literal_beginning_match_what_is_inside() {
        for (rule, path, matches) in [
            ("/b**", "b", true),
            ("/b**", "b/x", true),
            ("/b**", "bc/x/y", true),
            ("/b**", "a/b", false),
            ("a/b**/c", "a/bx/y/c", true),
            ("a/b**c", "a/bxc", true),
            ("a/b**c", "a/b/c", false),
            ("a/**", "a", false),
            ("a/**", "a/b/c", true),
        ] {
            let found = Rule::read(rule.as_bytes(), 0).unwrap();
            let name = path.rsplit('/').next().unwrap();
            let found = found.matches(rule.as_bytes(), path.as_bytes(), name.as_bytes(), true);
            assert_eq!(found, matches, "{rule} {path}");
        }
    }

    #[test]
    fn settings_that_may_name_a_file_are_recognized() {
        let scratch = Scratch::new();
        let may_name = |text: &str| {
            scratch.put("config", text);
            may_name_file(&scratch.path().join("config"))
        };
        assert!(may_name("[core]\n\texcludesFile = a\n"));
        assert!(may_name("[CORE] EXCLUDESFILE=a"));
        assert!(may_name("[include]\n\tpath = other\n"));
        assert!(may_name("[includeIf \"gitdir:/\"]\n"));
        assert!(!may_name("[user]\n\tname = a\n"));
        assert!(may_name(&"#\n".repeat(limits::IGNORE_BYTES_MAX)));
        assert!(!may_name_file(&scratch.path().join("none")));
        assert!(!may_name_file(scratch.path()));
    }
}
