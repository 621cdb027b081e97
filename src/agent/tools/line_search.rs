//! A search for the lines that match a regular expression, in many files at once: several threads
//! take turns to find the next files and search them.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::mem;
use std::ops::{ControlFlow, Range};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use regex::bytes::Regex;

use crate::session::wake::Waker;
use crate::sys::openat::{self, FileType};
use crate::sys::{self, Interest};
use crate::{limits, mutex};

use super::file_text::{excerpt, is_binary};
use super::walk::{Entry, Walk, WalkEnd, name_of, shown};
use super::workspace::ToolContext;

/// A file that is to be searched.
enum Source {
    Open(File),
    /// The one with the last name of its path in a directory.
    In(Arc<File>),
}

/// Returns whether a file that a walk visits is to be searched.
type Filter = Box<dyn Fn(&Entry<'_>) -> bool + Send>;

/// The files that are still to be searched.
#[derive(Default)]
pub struct Files {
    /// The only one, and its path.
    one: Option<(Vec<u8>, Source)>,
    walk: Option<(Walk, Filter)>,
    /// The number of jobs that were taken.
    jobs: usize,
}

impl Files {
    /// Makes a list of one file, which has this path.
    pub fn one(path: &str, file: File) -> Files {
        Files { one: Some((path.into(), Source::Open(file))), ..Files::default() }
    }

    /// Makes a list of the files that a walk visits, as far as they are wanted.
    pub fn below(walk: Walk, is_wanted: Filter) -> Files {
        Files { walk: Some((walk, is_wanted)), ..Files::default() }
    }
}

/// Files that one thread searches, and their place in the order of paths.
struct Job {
    index: usize,
    files: Vec<(Vec<u8>, Source)>,
}

/// A search that threads of its own do. They outlive a caller that does not wait for them, by the
/// piece of a file that each of them is in.
pub struct Search {
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
    /// Starts the threads.
    pub fn start(regex: Regex, files: Files) -> io::Result<Search> {
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
    pub fn wait(&self, context: &ToolContext<'_>) -> Vec<String> {
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

    /// Returns what the walk left out so far.
    pub fn end(&self) -> WalkEnd {
        let files = mutex::lock(&self.shared.files);
        files.walk.as_ref().map_or(WalkEnd::default(), |(walk, _)| walk.end())
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
        let Files { one, walk, jobs } = &mut *queue;
        let mut files: Vec<_> = one.take().into_iter().collect();
        if let Some((walk, is_wanted)) = walk {
            while files.len() < limits::SEARCH_JOB_FILES
                && let Some(entry) = walk.next(&|| self.is_over())
            {
                if entry.kind == FileType::File && is_wanted(&entry) {
                    files.push((entry.path.to_owned(), Source::In(Arc::clone(entry.directory))));
                }
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
