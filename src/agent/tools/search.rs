//! Tools that find files by name, and lines by content.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::mem;
use std::ops::{ControlFlow, Range};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use nanoserde::DeJson;
use regex::bytes::Regex;

use crate::agent::clip::Clip;
use crate::error::reason;
use crate::session::search::compile;
use crate::session::wake::Waker;
use crate::sys::openat::{self, FileType};
use crate::sys::{self, Interest};
use crate::text::escaped;
use crate::{limits, mutex};

use super::file_text::{excerpt, is_binary};
use super::glob;
use super::walk::{self, Entry, Walk, WalkEnd};
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
            Some(file) => {
                Files { named: Some((start.into(), Source::Open(file))), ..Files::default() }
            }
            None => Files { names, walk: Some(Walk::new(context, start)?), ..Files::default() },
        };
        let search = Search::start(regex, files)
            .map_err(|error| format!("the search cannot be started: {}", reason(&error)))?;
        let found = search.wait(context);
        context.check()?;
        let walk = mutex::lock(&search.shared.files).walk.take();
        let end = walk.map_or(WalkEnd::default(), |walk| walk.end());
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

fn name_of(path: &[u8]) -> &OsStr {
    OsStr::from_bytes(path.rsplit(|byte| *byte == b'/').next().unwrap_or(path))
}

fn shown(path: &[u8]) -> String {
    escaped(&String::from_utf8_lossy(path))
}

fn note(end: WalkEnd) -> &'static str {
    if end.too_many_entries {
        "\n[not all was looked through: there are too many files, or they lie too deep]"
    } else if end.too_many_rules {
        "\n[not all .gitignore rules were applied: there are too many]"
    } else {
        ""
    }
}

/// A file that is to be searched.
enum Source {
    Open(File),
    /// The one with the last name of its path in a directory.
    In(Arc<File>),
}

/// The files that are still to be searched. The threads of a search take turns to find the next.
#[derive(Default)]
struct Files {
    /// A file that the call named, and its path.
    named: Option<(Vec<u8>, Source)>,
    walk: Option<Walk>,
    /// All of them, if there is none.
    names: Option<NameGlob>,
    /// The number of jobs that were taken.
    jobs: usize,
}

/// Files that one thread searches, and their place in the order of paths.
struct Job {
    index: usize,
    files: Vec<(Vec<u8>, Source)>,
}

/// A search that threads of its own do. They outlive a caller that does not wait for them, by the
/// piece of a file that each of them is in.
struct Search {
    shared: Arc<Shared>,
}

/// What a search and its threads share.
struct Shared {
    regex: Regex,
    files: Mutex<Files>,
    progress: Mutex<Progress>,
    /// Wakes the caller when the search is done.
    waker: Waker,
    /// Nothing more is wanted.
    over: AtomicBool,
    /// Held while a large file is in memory.
    large: Mutex<()>,
}

/// The lines that were found.
#[derive(Default)]
struct Progress {
    /// By the index of the job.
    found: BTreeMap<usize, Vec<String>>,
    /// All jobs before this one are done, and have this many lines.
    done: usize,
    done_lines: usize,
    /// The number of jobs, once it is known.
    jobs: Option<usize>,
}

impl Search {
    fn start(regex: Regex, files: Files) -> io::Result<Search> {
        let shared = Arc::new(Shared {
            regex,
            files: Mutex::new(files),
            progress: Mutex::default(),
            waker: Waker::new()?,
            over: AtomicBool::new(false),
            large: Mutex::new(()),
        });
        let search = Search { shared };
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

    /// Returns the lines that were found, once all files are done, enough was found, or the turn is
    /// over.
    fn wait(&self, context: &ToolContext<'_>) -> Vec<String> {
        let shared = &self.shared;
        while !shared.is_done() {
            shared.waker.arm();
            if shared.is_done() {
                break;
            }
            let files =
                [(context.cancel.as_fd(), Interest::Read), (shared.waker.as_fd(), Interest::Read)];
            let left = context.deadline.saturating_duration_since(Instant::now());
            if sys::wait_any(&files, Some(left)).is_err() || context.is_over() {
                break;
            }
            shared.waker.drain();
        }
        let found = mem::take(&mut mutex::lock(&shared.progress).found);
        found.into_values().flatten().collect()
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn is_done(&self) -> bool {
        self.is_over() || mutex::lock(&self.progress).is_done()
    }

    /// Does jobs until there are no more.
    fn work(&self) {
        // A copy has caches of its own, for which threads need not wait.
        let regex = self.regex.clone();
        let mut buffer = Vec::new();
        loop {
            let Job { index, files } = self.next();
            let is_end = files.is_empty();
            let mut lines = Vec::new();
            for (path, source) in files {
                let found = self.search(&regex, source, &path, &mut buffer);
                lines.extend(found.unwrap_or_default());
                if self.is_over() || lines.len() > limits::MATCHES_MAX {
                    break;
                }
            }
            let mut progress = mutex::lock(&self.progress);
            progress.add(index, (!is_end).then_some(lines));
            if progress.done_lines > limits::MATCHES_MAX {
                self.over.store(true, Ordering::Relaxed);
            }
            if progress.is_done() || self.is_over() {
                self.waker.wake();
            }
            if is_end || self.is_over() {
                return;
            }
        }
    }

    /// Returns the next files to search; without files if there are no more.
    fn next(&self) -> Job {
        let mut queue = mutex::lock(&self.files);
        let mut files: Vec<_> = queue.named.take().into_iter().collect();
        let Files { walk, names, jobs, .. } = &mut *queue;
        while files.len() < limits::SEARCH_JOB_FILES
            && let Some(entry) = walk.as_mut().and_then(|walk| walk.next(&|| self.is_over()))
        {
            if entry.kind == FileType::File
                && names.as_ref().is_none_or(|names| names.matches(&entry))
            {
                files.push((entry.path.to_owned(), Source::In(Arc::clone(entry.directory))));
            }
        }
        *jobs += 1;
        Job { index: *jobs - 1, files }
    }

    /// Returns the lines of a file that match; one more than is shown, if there are as many.
    fn search(
        &self,
        regex: &Regex,
        source: Source,
        path: &[u8],
        buffer: &mut Vec<u8>,
    ) -> io::Result<Vec<String>> {
        let file = match source {
            Source::Open(file) => file,
            Source::In(directory) => openat::open_listed(directory.as_fd(), name_of(path))?,
        };
        let metadata = file.metadata()?;
        let mut lines = Vec::new();
        if !metadata.is_file() || metadata.len() > limits::SEARCH_BYTES_MAX {
            return Ok(lines);
        }
        let is_large = metadata.len() > limits::SEARCH_LARGE_BYTES;
        let large = is_large.then(|| mutex::lock(&self.large));
        let size = usize::try_from(metadata.len()).unwrap_or(0);
        let length = read(file, size, buffer)?;
        let bytes = buffer.get(..length).unwrap_or_default();
        let (is_binary, path) = (LazyCell::new(|| is_binary(bytes)), LazyCell::new(|| shown(path)));
        self.visit_lines(regex, bytes, |number, line, found| {
            if *is_binary {
                lines.push(format!("{}: the binary file matches\n", *path));
                return ControlFlow::Break(());
            }
            lines.push(format!("{}:{number}:{}\n", *path, excerpt(line, found)));
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
        regex: &Regex,
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
            let visited = visit_piece(regex, piece, |line, found| {
                visit(start + line.start..start + line.end, found)
            });
            if visited.is_break() {
                return;
            }
            start = end;
        }
    }
}

impl Progress {
    /// Returns whether all files are done.
    fn is_done(&self) -> bool {
        self.jobs == Some(self.done)
    }

    /// Adds the lines of a job; none if there are no more jobs from it on.
    fn add(&mut self, index: usize, lines: Option<Vec<String>>) {
        let Some(lines) = lines else {
            // Whichever of the threads comes first has seen the end.
            self.jobs = Some(self.jobs.map_or(index, |jobs| jobs.min(index)));
            return;
        };
        self.found.insert(index, lines);
        while let Some(lines) = self.found.get(&self.done) {
            self.done_lines += lines.len();
            self.done += 1;
        }
    }
}

/// Reads a file into the beginning of a buffer, which becomes as long as needed. Returns the length
/// of what was read.
fn read(mut file: File, size: usize, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let mut length = 0;
    loop {
        let needed = length.max(size) + 1;
        if buffer.len() < needed {
            buffer.resize(needed.next_multiple_of(limits::SEARCH_BUFFER_BYTES), 0);
        }
        match file.read(buffer.get_mut(length..).unwrap_or_default()) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Ok(0) => return Ok(length),
            got => length += got?,
        }
        // The file has rarely grown meanwhile; to ask for its end would cost as much again.
        if length == size || length as u64 >= limits::SEARCH_BYTES_MAX {
            return Ok(length);
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

    #[test]
    fn the_first_lines_are_returned_in_the_order_of_paths() {
        let scratch = Scratch::new();
        let mut wanted = String::new();
        for number in 0..200 {
            let path = format!("d{:02}/e{}/f{number:03}", number / 20, number / 5 % 4);
            // The first files take the longest.
            let before = (200 - number) * 50;
            scratch.put(&path, &format!("{}hit\n", "miss\n".repeat(before)));
            if number < limits::MATCHES_MAX {
                wanted.push_str(&format!("{path}:{}:hit\n", before + 1));
            }
        }
        wanted.push_str("[there are more than these 50]");
        for _ in 0..10 {
            assert_eq!(scratch.run("search_files", r#"{"pattern":"hit"}"#).unwrap(), wanted);
        }
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
