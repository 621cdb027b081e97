//! Tools that find files by name, and lines by content.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::ops::{ControlFlow, Range};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Instant;

use nanoserde::DeJson;
use regex::bytes::{Regex, RegexBuilder};

use crate::agent::clip::Clip;
use crate::error::reason;
use crate::session::wake::Waker;
use crate::sys::openat::{self, FileType};
use crate::sys::{self, Interest};
use crate::text::{escaped, prefix, truncated};
use crate::{limits, mutex};

use super::file_text::is_binary;
use super::glob;
use super::walk::{self, WalkEnd};
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
    /// How many bytes of a path lead to the start of the search.
    base: usize,
}

impl NameGlob {
    fn new(given: &str, start: &str) -> Result<NameGlob, String> {
        if given.len() > limits::PATTERN_BYTES_MAX {
            return Err(too_long("glob"));
        }
        let inside = given.strip_prefix("./").unwrap_or(given);
        let start = start.trim_start_matches("./").trim_end_matches('/');
        let base = if matches!(start, "" | ".") { 0 } else { start.len() + 1 };
        let globs = glob::alternatives(inside.trim_start_matches('/'))?;
        Ok(NameGlob { globs, whole_path: inside.contains('/'), base })
    }

    fn matches(&self, path: &[u8]) -> bool {
        self.globs.iter().map(String::as_bytes).any(|glob| {
            if self.whole_path {
                // A path from the workspace is as clear.
                let inside = path.get(self.base..).unwrap_or_default();
                glob::matches_path(glob, inside) || glob::matches_path(glob, path)
            } else {
                let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
                glob::matches_name(glob, name)
            }
        })
    }
}

impl FindFiles {
    /// Returns the paths of the files that match, one per line.
    pub fn run(&self, context: &ToolContext<'_>) -> Result<String, String> {
        let start = start(self.path.as_deref());
        let names = NameGlob::new(&self.pattern, start)?;
        let mut clip = Clip::new(limits::RESULT_BYTES_MAX - 200);
        let mut found = false;
        let end = walk::walk(context, start, |entry| {
            if entry.kind != FileType::Directory && names.matches(entry.path) {
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
        let regex = compile(&self.pattern)?;
        let start = start(self.path.as_deref());
        let names = self.glob.as_deref().map(|glob| NameGlob::new(glob, start)).transpose()?;
        let workspace = context.workspace()?;
        let mut search = Search::start(regex)
            .map_err(|error| format!("the search cannot be started: {}", reason(&error)))?;
        let mut end = WalkEnd::default();
        let entry = workspace.entry(start)?;
        let file = entry.filter(|entry| entry.metadata().is_ok_and(|found| found.is_file()));
        if let Some(file) = file {
            let _enough = search.add(Source::Open(file), start.as_bytes(), context);
        } else {
            end = walk::walk(context, start, |entry| {
                if entry.kind != FileType::File
                    || !names.as_ref().is_none_or(|names| names.matches(entry.path))
                {
                    return ControlFlow::Continue(());
                }
                let source = Source::In(Arc::clone(entry.directory), entry.name.to_owned());
                search.add(source, entry.path, context)
            })?;
        }
        let found = search.finish(context);
        context.check()?;
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

/// Compiles a regular expression that is matched against lines.
fn compile(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > limits::PATTERN_BYTES_MAX {
        return Err(too_long("pattern"));
    }
    let mut builder = RegexBuilder::new(pattern);
    builder.multi_line(true).crlf(true);
    builder.size_limit(limits::REGEX_BYTES_MAX).dfa_size_limit(limits::REGEX_BYTES_MAX);
    builder.build().map_err(|error| error.to_string())
}

fn too_long(what: &str) -> String {
    format!("the {what} is longer than {} bytes", limits::PATTERN_BYTES_MAX)
}

fn start(path: Option<&str>) -> &str {
    path.filter(|path| !path.is_empty()).unwrap_or(".")
}

fn shown(path: &[u8]) -> String {
    escaped(&String::from_utf8_lossy(path))
}

fn note(end: WalkEnd) -> &'static str {
    if end.too_many_entries {
        "\n[not all was looked through: there are too many files]"
    } else if end.too_many_rules {
        "\n[not all .gitignore rules were applied: there are too many]"
    } else {
        ""
    }
}

/// A file that is to be searched.
enum Source {
    Open(File),
    /// The one of this name in a directory.
    In(Arc<File>, OsString),
}

/// Files that one thread searches, and their place in the order of paths.
#[derive(Default)]
struct Job {
    index: usize,
    files: Vec<(Vec<u8>, Source)>,
}

/// A search that threads of its own do. They outlive a caller that does not wait for them, by the
/// piece of a file that each of them is in.
struct Search {
    shared: Arc<Shared>,
    /// The files of the next job.
    next: Job,
}

/// What a search and its threads share.
struct Shared {
    regex: Regex,
    progress: Mutex<Progress>,
    /// There are more jobs, or none will come.
    changed: Condvar,
    /// Wakes the caller when a job is done.
    waker: Waker,
    /// Nothing more is wanted.
    over: AtomicBool,
    /// Held while a large file is in memory.
    large: Mutex<()>,
}

/// The jobs that wait, and the lines that were found.
#[derive(Default)]
struct Progress {
    jobs: VecDeque<Job>,
    closed: bool,
    /// By the index of the job.
    found: BTreeMap<usize, Vec<String>>,
    /// All jobs before this one are done, and have this many lines.
    done: usize,
    done_lines: usize,
}

impl Search {
    fn start(regex: Regex) -> io::Result<Search> {
        let shared = Arc::new(Shared {
            regex,
            progress: Mutex::default(),
            changed: Condvar::new(),
            waker: Waker::new()?,
            over: AtomicBool::new(false),
            large: Mutex::new(()),
        });
        let search = Search { shared, next: Job::default() };
        let cores = thread::available_parallelism().map_or(1, usize::from);
        for count in 0..cores.min(limits::SEARCH_THREADS_MAX) {
            let shared = Arc::clone(&search.shared);
            match thread::Builder::new().name("search".into()).spawn(move || shared.work()) {
                Err(error) if count == 0 => return Err(error),
                // Fewer do as well.
                Err(_) => break,
                Ok(_) => {}
            }
        }
        Ok(search)
    }

    /// Adds a file. Breaks when enough was found or the turn is over.
    fn add(&mut self, source: Source, path: &[u8], context: &ToolContext<'_>) -> ControlFlow<()> {
        self.next.files.push((path.to_owned(), source));
        if self.next.files.len() >= limits::SEARCH_JOB_FILES {
            self.submit();
            self.wait(context, |progress| progress.jobs.len() < limits::SEARCH_QUEUE_MAX);
        }
        if self.shared.is_over() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Gives the files that were added to the threads.
    fn submit(&mut self) {
        let next = Job { index: self.next.index + 1, files: Vec::new() };
        let job = std::mem::replace(&mut self.next, next);
        mutex::lock(&self.shared.progress).jobs.push_back(job);
        self.shared.changed.notify_one();
    }

    /// Returns the lines that were found, once all files are done or the turn is over.
    fn finish(mut self, context: &ToolContext<'_>) -> Vec<String> {
        self.submit();
        mutex::lock(&self.shared.progress).closed = true;
        self.shared.changed.notify_all();
        self.wait(context, |progress| progress.done == self.next.index);
        let found = std::mem::take(&mut mutex::lock(&self.shared.progress).found);
        found.into_values().flatten().collect()
    }

    /// Waits until `is_so`, or enough was found, or the turn is over.
    fn wait(&self, context: &ToolContext<'_>, is_so: impl Fn(&Progress) -> bool) {
        let shared = &self.shared;
        let is_enough = || shared.is_over() || is_so(&mutex::lock(&shared.progress));
        while !is_enough() {
            shared.waker.arm();
            if is_enough() {
                return;
            }
            let files =
                [(context.cancel.as_fd(), Interest::Read), (shared.waker.as_fd(), Interest::Read)];
            let left = context.deadline.saturating_duration_since(Instant::now());
            if sys::wait_any(&files, Some(left)).is_err() || context.is_over() {
                return shared.end();
            }
            shared.waker.drain();
        }
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        // Under the lock, so that no thread is between its look and its wait.
        let progress = mutex::lock(&self.progress);
        self.changed.notify_all();
        drop(progress);
    }

    /// Does jobs until there are no more.
    fn work(&self) {
        let mut buffer = Vec::new();
        while let Some(Job { index, files }) = self.next() {
            let mut lines = Vec::new();
            for (path, source) in files {
                lines.extend(self.search(source, &path, &mut buffer).unwrap_or_default());
                if self.is_over() || lines.len() > limits::MATCHES_MAX {
                    break;
                }
            }
            let mut progress = mutex::lock(&self.progress);
            progress.found.insert(index, lines);
            while let Some(lines) = progress.found.get(&progress.done) {
                progress.done_lines += lines.len();
                progress.done += 1;
            }
            let enough = progress.done_lines > limits::MATCHES_MAX;
            drop(progress);
            if enough {
                self.end();
            }
            self.waker.wake();
        }
    }

    fn next(&self) -> Option<Job> {
        let waits = |progress: &mut Progress| {
            progress.jobs.is_empty() && !progress.closed && !self.is_over()
        };
        let progress = mutex::lock(&self.progress);
        let mut progress = mutex::wait_while(&self.changed, progress, waits);
        if self.is_over() { None } else { progress.jobs.pop_front() }
    }

    /// Returns the lines of a file that match; one more than is shown, if there are as many.
    fn search(&self, source: Source, path: &[u8], buffer: &mut Vec<u8>) -> io::Result<Vec<String>> {
        let file = match source {
            Source::Open(file) => file,
            Source::In(directory, name) => openat::open_listed(directory.as_fd(), &name)?,
        };
        let metadata = file.metadata()?;
        let mut lines = Vec::new();
        if !metadata.is_file() || metadata.len() > limits::SEARCH_BYTES_MAX {
            return Ok(lines);
        }
        let is_large = metadata.len() > limits::SEARCH_LARGE_BYTES;
        let large = is_large.then(|| mutex::lock(&self.large));
        buffer.clear();
        // One byte more, so that a whole file is read at once.
        buffer.reserve(usize::try_from(metadata.len()).unwrap_or(0) + 1);
        file.take(limits::SEARCH_BYTES_MAX).read_to_end(buffer)?;
        let is_binary = is_binary(buffer);
        let path = shown(path);
        self.visit_lines(buffer, |number, line, found| {
            if is_binary {
                lines.push(format!("{path}: the binary file matches\n"));
                return ControlFlow::Break(());
            }
            lines.push(format!("{path}:{number}:{}\n", excerpt(line, found)));
            match lines.len() {
                count if count > limits::MATCHES_MAX => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        if is_large {
            *buffer = Vec::new();
        }
        drop(large);
        Ok(lines)
    }

    /// Calls `visit` with each line that matches, its number and the match in it.
    fn visit_lines(
        &self,
        bytes: &[u8],
        mut visit: impl FnMut(usize, &[u8], Range<usize>) -> ControlFlow<()>,
    ) {
        // Most files have no match, so lines are counted only up to one.
        let (mut number, mut counted) = (1, 0);
        let mut visit = |line: Range<usize>, found: Range<usize>| {
            let before = bytes.get(counted..line.start).unwrap_or_default();
            number += before.iter().filter(|byte| **byte == b'\n').count();
            counted = line.start;
            visit(number, bytes.get(line).unwrap_or_default(), found)
        };
        let mut start = 0;
        // In pieces of whole lines, between which a search ends that is no longer wanted.
        while start < bytes.len() && !self.is_over() {
            let least = (start + limits::SEARCH_PIECE_BYTES).min(bytes.len());
            let end = (line_end(bytes, least) + 1).min(bytes.len());
            let piece = bytes.get(start..end).unwrap_or_default();
            let visited = visit_piece(&self.regex, piece, |line, found| {
                visit(start + line.start..start + line.end, found)
            });
            if visited.is_break() {
                return;
            }
            start = end;
        }
    }
}

/// Calls `visit` with the place of each line that matches, and that of the match in the line.
fn visit_piece(
    regex: &Regex,
    piece: &[u8],
    mut visit: impl FnMut(Range<usize>, Range<usize>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut at = 0;
    let mut line_by_line = false;
    while at < piece.len() {
        let end = if line_by_line { line_end(piece, at) } else { piece.len() };
        let Some(found) = regex.find_at(piece.get(..end).unwrap_or_default(), at) else {
            at = end + 1;
            continue;
        };
        let before = piece.get(at..found.start()).unwrap_or_default();
        let start =
            before.iter().rposition(|byte| *byte == b'\n').map_or(at, |place| at + place + 1);
        let end = line_end(piece, found.start());
        if start == piece.len() {
            // After the last line.
            break;
        }
        if found.end() > end {
            // What matches across lines need not match in one, and could be found over and over.
            (line_by_line, at) = (true, start);
            continue;
        }
        visit(start..end, found.start() - start..found.end() - start)?;
        at = end + 1;
    }
    ControlFlow::Continue(())
}

/// Returns where the line that holds byte `at` ends.
fn line_end(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    rest.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |place| at + place)
}

/// Returns a line, or as much of a long one as is shown, with the match in it.
fn excerpt(line: &[u8], found: Range<usize>) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let text = String::from_utf8_lossy(line);
    let before = String::from_utf8_lossy(line.get(..found.start).unwrap_or(line)).chars().count();
    let skipped = if prefix(&text, limits::MATCH_CHARS_MAX).len() == text.len() {
        0
    } else {
        before.saturating_sub(limits::MATCH_CHARS_MAX / 4)
    };
    let start = text.char_indices().nth(skipped).map_or(text.len(), |(start, _)| start);
    let rest = text.get(start..).unwrap_or_default();
    let more = if skipped > 0 { "…" } else { "" };
    format!("{more}{}", truncated(rest, limits::MATCH_CHARS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::scratch::Scratch;
    use crate::agent::tools::Tool;
    use crate::protocol::Variable;
    use crate::session::wake::Cancel;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;
    use std::time::Duration;

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

    /// Puts a program in the place of git that writes to a pipe, so that the test knows that the
    /// search has begun.
    fn with_gate(scratch: &Scratch) -> [Variable; 2] {
        scratch.put(".git/HEAD", "ref: refs/heads/main\n");
        scratch.put("home/.gitconfig", "[include]\n");
        scratch.put("bin/git", "#!/bin/sh\necho >>\"$HOME/pipe\"\n");
        let program = scratch.path().join("bin/git");
        fs::set_permissions(program, PermissionsExt::from_mode(0o755)).unwrap();
        let pipe = scratch.path().join("home/pipe");
        assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
        let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
        [("HOME", path("home")), ("PATH", format!("{}:/bin:/usr/bin", path("bin")))]
            .map(|(name, value)| Variable { name: name.to_owned(), value })
    }

    #[test]
    fn a_cancel_ends_a_search_within_50_ms() {
        let scratch = Scratch::new();
        let environment = with_gate(&scratch);
        for number in 0..8 {
            scratch.put(&format!("line{number}"), &"a".repeat(8 << 20));
        }
        let arguments = r#"{"pattern":"(a|b)(a|c)(a|d){300}[xyz]"}"#;
        let operation = Tool::named("search_files").unwrap().parse(arguments).unwrap();
        let attempt = || {
            let cancel = Cancel::new().unwrap();
            let pipe = scratch.path().join("home/pipe");
            let mut pipe = File::options().read(true).write(true).open(pipe).unwrap();
            thread::scope(|scope| {
                let searching = scope.spawn(|| {
                    let search = |context: &ToolContext<'_>| (operation.attempt)(context);
                    (scratch.with_context_of(&environment, &cancel, search), Instant::now())
                });
                assert_eq!(pipe.read(&mut [0]).unwrap(), 1);
                let cancelled = Instant::now();
                cancel.cancel();
                let (result, ended) = searching.join().unwrap();
                assert_eq!(result.unwrap_err(), "cancelled");
                ended - cancelled
            })
        };
        // The machine may be busy with something else.
        let fastest = (0..10).map(|_| attempt()).min().unwrap();
        assert!(fastest < Duration::from_millis(50), "{fastest:?}");
    }
}
