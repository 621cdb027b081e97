//! `opta daemon logs -f`: follows the log by name as it grows, through rotation, deletion,
//! truncation and restarts of the daemon.
//!
//! No line is lost and none is repeated, as long as the files with the lines are found before they
//! are deleted. It sleeps until something changes. Where the system has no watch left, or refuses
//! them, it looks every second, as tail(1) does.
//!
//! The files that were found stay open, so the system cannot give their identities to new files.
//! The reader moves on from a file only when a newer one has lines: the daemon never returns to an
//! older file, so this one is complete then.

use std::fs::Metadata;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::line::Printer;
use super::tail::{self, ATTEMPTS_MAX, FileId, LogFile, Tail};
use super::{Query, path_of};
use crate::error::{At, Doing, Error};
use crate::limits::{LOG_LINE_BYTES_MAX, LOG_POLL_EVERY};
use crate::lines::Forwards;
use crate::sys;
use crate::sys::watch::Watch;

impl Tail {
    /// Writes the last lines that the query shows to `out`, then every new one as it arrives. The
    /// log need not exist yet. A line without an end is held back until it has one, or until the
    /// daemon writes to another file.
    ///
    /// Returns when the reader of `out` is closed, with the error if a write noticed it.
    pub fn follow(self, query: &Query, out: &mut (impl Write + AsFd)) -> Result<(), Error> {
        Follower::new(self, query, out)?.run()
    }
}

struct Follower<'a, W: Write> {
    directory: PathBuf,
    /// From the newest to the oldest.
    files: Vec<LogFile>,
    /// The index of the file that is being read, and its next lines.
    current: usize,
    lines: Forwards,
    printer: Printer<'a, W>,
}

impl<'a, W: Write> Follower<'a, W> {
    fn new(tail: Tail, query: &Query, out: &'a mut W) -> Result<Follower<'a, W>, Error> {
        let start = tail.start(query, &tail.lengths()?)?;
        Ok(Follower {
            directory: tail.directory,
            files: tail.files,
            current: start.file,
            lines: lines_from(start.offset),
            printer: Printer::new(*query, out),
        })
    }

    /// Prints new lines as long as the output has a reader.
    fn run(&mut self) -> Result<(), Error>
    where
        W: AsFd,
    {
        self.catch_up()?;
        // All further lines are new, whatever their time.
        self.printer.query.since = None;
        loop {
            // The watch begins before the look, so that a change after the look ends the wait.
            let watch = LogWatch::new(&self.directory, self.unfinished())?;
            while watch.is_current(&self.directory)? {
                self.catch_up()?;
                if !watch.covers(self.unfinished()) {
                    break;
                }
                if let sys::Woken::Hangup = watch.wait(self.printer.out)? {
                    return Ok(());
                }
            }
        }
    }

    /// Prints everything that is there.
    fn catch_up(&mut self) -> Result<(), Error> {
        self.open_new_files()?;
        loop {
            // Before reading: what is in a newer file was written after all that is in this one.
            let is_finished = self.has_newer_lines()?;
            self.read()?;
            if !is_finished {
                return self.printer.flush();
            }
            self.printer.print(self.lines.take_pending().unwrap_or_default())?;
            self.current -= 1;
            self.lines = lines_from(0);
        }
    }

    fn open_new_files(&mut self) -> Result<(), Error> {
        let newest = FileId::at(&path_of(&self.directory, 0))?;
        if newest.is_some() && newest == self.files.first().map(|file| file.id) {
            return Ok(());
        }
        let is_known = |id| self.files.iter().any(|file| file.id == id);
        let mut files = tail::open(&self.directory, is_known)?;
        if self.files.is_empty() {
            self.current = files.len().saturating_sub(1);
        } else {
            self.current += files.len();
        }
        files.append(&mut self.files);
        // Files that were read and are deleted need no watch; closing them frees their space.
        let mut index = 0;
        files.retain(|file| {
            index += 1;
            index <= self.current + 1 || file.metadata().is_ok_and(|found| found.nlink() > 0)
        });
        self.files = files;
        Ok(())
    }

    fn has_newer_lines(&self) -> Result<bool, Error> {
        for file in self.files.iter().take(self.current) {
            if file.len()? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn read(&mut self) -> Result<(), Error> {
        let Some(file) = self.files.get(self.current) else {
            return Ok(());
        };
        if file.len()? < self.lines.position() {
            // Truncated: what it contains now is new.
            self.printer.print(self.lines.take_pending().unwrap_or_default())?;
            self.lines = lines_from(0);
        }
        file.print(&mut self.lines, &mut self.printer)
    }

    /// Returns the file that is being read and the newer ones.
    fn unfinished(&self) -> &[LogFile] {
        self.files.get(..=self.current).unwrap_or_default()
    }
}

fn lines_from(start: u64) -> Forwards {
    Forwards::new(start, u64::MAX, LOG_LINE_BYTES_MAX)
}

/// A watch on the log's directory or, as long as it does not exist, on its nearest ancestor.
struct LogWatch {
    /// `None`: the system refuses it.
    watch: Option<Watch>,
    place: PathBuf,
    id: FileId,
    /// Watched separately, for systems where a watch on a directory does not report writes to its
    /// files.
    files: Vec<FileId>,
}

impl LogWatch {
    fn new(directory: &Path, files: &[LogFile]) -> Result<LogWatch, Error> {
        let mut attempts = 0;
        let (watch, place, id) = loop {
            let (place, id) = nearest(directory)?;
            match Watch::on(&place) {
                // Removed since it was found.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && attempts < ATTEMPTS_MAX =>
                {
                    attempts += 1;
                }
                watch => break (watch.ok(), place, id),
            }
        };
        let watch = watch.and_then(|mut watch| {
            files.iter().try_for_each(|file| watch.add_file(&file.file)).ok()?;
            Some(watch)
        });
        Ok(LogWatch { watch, place, id, files: files.iter().map(|file| file.id).collect() })
    }

    /// Returns whether what it watches is still the nearest directory.
    fn is_current(&self, directory: &Path) -> Result<bool, Error> {
        let (place, id) = nearest(directory)?;
        Ok(place == self.place && id == self.id)
    }

    fn covers(&self, files: &[LogFile]) -> bool {
        files.iter().map(|file| file.id).eq(self.files.iter().copied())
    }

    /// Sleeps until something changes or the reader of `out` is closed.
    fn wait(&self, out: &impl AsFd) -> Result<sys::Woken, Error> {
        let changes = self.watch.as_ref().map(AsFd::as_fd);
        let timeout = if changes.is_some() { None } else { Some(LOG_POLL_EVERY) };
        let woken = sys::wait_while_read(changes, out.as_fd(), timeout).doing("wait for lines")?;
        if let Some(watch) = &self.watch {
            // Consumes the events that ended the wait.
            watch.wait(Some(Duration::ZERO)).at("watch", &self.place)?;
        }
        Ok(woken)
    }
}

/// Returns the directory if it exists, otherwise its nearest ancestor that does.
fn nearest(directory: &Path) -> Result<(PathBuf, FileId), Error> {
    let found = directory.ancestors().find_map(|place| {
        let found = place.metadata().ok().filter(Metadata::is_dir)?;
        Some((place.to_owned(), FileId::of(&found)))
    });
    found.ok_or(io::ErrorKind::NotFound.into()).at("watch", directory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{PipeReader, Read};
    use std::sync::mpsc::{self, Receiver};
    use std::thread;

    use super::super::scratch::Scratch;
    use super::super::{Level, LineFormat, Log, Rotation, Style};
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    const ALL: Query = Query {
        lines: usize::MAX,
        least: Level::Debug,
        since: None,
        format: LineFormat::Text(Style::Plain),
    };

    /// Compares what a follower prints after each step, without threads or waiting.
    fn steps(scratch: &Scratch, query: &Query, steps: &[(&dyn Fn(), &str)]) {
        let mut out = Vec::new();
        let mut shown = 0;
        let tail = Tail::open(scratch.path()).unwrap();
        let mut follower = Follower::new(tail, query, &mut out).unwrap();
        for (number, (step, wanted)) in steps.iter().enumerate() {
            step();
            follower.catch_up().unwrap();
            let text = String::from_utf8_lossy(&follower.printer.out[shown..]).into_owned();
            assert_eq!(text, *wanted, "step {number}");
            shown = follower.printer.out.len();
            follower.catch_up().unwrap();
            assert_eq!(shown, follower.printer.out.len(), "nothing is repeated");
        }
    }

    fn nothing() {}

    #[test]
    fn it_continues_after_the_last_lines() {
        let scratch = Scratch::new();
        scratch.append("daemon.log.1", b"a\nb\n");
        scratch.append("daemon.log", b"c\n");
        steps(
            &scratch,
            &Query { lines: 2, ..ALL },
            &[(&nothing, "b\nc\n"), (&|| scratch.append("daemon.log", b"d\ne\n"), "d\ne\n")],
        );
        steps(
            &scratch,
            &Query { lines: 0, ..ALL },
            &[(&nothing, ""), (&|| scratch.append("daemon.log", b"f\n"), "f\n")],
        );
    }

    #[test]
    fn a_line_without_an_end_is_held_back_until_it_cannot_grow() {
        let scratch = Scratch::new();
        scratch.append("daemon.log", b"a\nb");
        steps(
            &scratch,
            &ALL,
            &[
                (&nothing, "a\n"),
                (&|| scratch.append("daemon.log", b"b\nc"), "bb\n"),
                (&|| scratch.rename("daemon.log", "daemon.log.1"), ""),
                (&|| scratch.append("daemon.log", b""), ""),
                (&|| scratch.append("daemon.log.1", b"c"), ""),
                (&|| scratch.append("daemon.log", b"d"), "cc\n"),
                (&|| scratch.append("daemon.log", b"\n"), "d\n"),
            ],
        );
    }

    #[test]
    fn several_rotations_at_once_lose_nothing_while_the_files_exist() {
        let scratch = Scratch::new();
        scratch.append("daemon.log.1", b"old\n");
        scratch.append("daemon.log", b"a\n");
        let rotate = |line: &str| {
            for age in (0..5).rev() {
                let from = path_of(scratch.path(), age);
                drop(fs::rename(from, path_of(scratch.path(), age + 1)));
            }
            scratch.append("daemon.log", line.as_bytes());
        };
        steps(
            &scratch,
            &Query { lines: 1, ..ALL },
            &[
                (&nothing, "a\n"),
                (&|| ["b\n", "c\n", "d\n"].into_iter().for_each(rotate), "b\nc\nd\n"),
                (&|| scratch.append("daemon.log", b"e\n"), "e\n"),
                (&|| (0..9).for_each(|_| rotate("f\n")), "f\nf\nf\nf\nf\nf\n"),
            ],
        );
    }

    #[test]
    fn after_a_deletion_the_new_log_is_read_and_no_older_one_repeated() {
        let scratch = Scratch::new();
        scratch.append("daemon.log.2", b"a\n");
        scratch.append("daemon.log.1", b"b\n");
        scratch.append("daemon.log", b"c\n");
        let remove = |name: &str| fs::remove_file(scratch.path().join(name)).unwrap();
        steps(
            &scratch,
            &Query { lines: 1, ..ALL },
            &[
                (&nothing, "c\n"),
                (&|| remove("daemon.log"), ""),
                (&|| scratch.append("daemon.log", b"d\n"), "d\n"),
                (
                    &|| {
                        remove("daemon.log");
                        remove("daemon.log.1");
                        scratch.append("daemon.log", b"e\n");
                    },
                    "e\n",
                ),
            ],
        );
    }

    #[test]
    fn a_truncated_log_is_read_from_its_beginning() {
        let scratch = Scratch::new();
        scratch.append("daemon.log", b"a\nb\nc");
        let copy_and_truncate = || {
            let log = scratch.path().join("daemon.log");
            fs::copy(&log, scratch.path().join("daemon.log.1")).unwrap();
            fs::File::options().write(true).open(log).unwrap().set_len(0).unwrap();
        };
        steps(
            &scratch,
            &Query { lines: 1, ..ALL },
            &[
                (&nothing, ""),
                (&copy_and_truncate, "c\n"),
                (&|| scratch.append("daemon.log", b"d\n"), "d\n"),
            ],
        );
    }

    #[test]
    fn deleted_files_that_were_read_are_closed() {
        let scratch = Scratch::new();
        let log = Log::open(scratch.path(), Rotation { bytes: 1, files: 2 }, Level::Info).unwrap();
        let mut out = Vec::new();
        let tail = Tail::open(scratch.path()).unwrap();
        let mut follower = Follower::new(tail, &ALL, &mut out).unwrap();
        for count in 0..50 {
            log.info("a", &[("count", &count)]);
            follower.catch_up().unwrap();
            assert!(follower.files.len() <= 4, "{}", follower.files.len());
        }
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 50);
    }

    /// A follower in its own thread, and what it prints.
    struct Following {
        printed: PipeReader,
        begun: Vec<u8>,
        ended: Receiver<Result<(), Error>>,
    }

    impl Following {
        fn of(directory: PathBuf, query: Query) -> Following {
            let (printed, mut out) = io::pipe().unwrap();
            let (tell, ended) = mpsc::channel();
            let follow = move || {
                let followed =
                    Tail::open(&directory).and_then(|tail| tail.follow(&query, &mut out));
                tell.send(followed).unwrap();
            };
            thread::Builder::new().spawn(follow).unwrap();
            Following { printed, begun: Vec::new(), ended }
        }

        fn line(&mut self) -> String {
            loop {
                if let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
                    let line = self.begun.drain(..=end).collect();
                    return String::from_utf8(line).unwrap().trim_end().to_owned();
                }
                let [ready] = sys::wait_readable([self.printed.as_fd()], Some(LONG)).unwrap();
                assert!(ready, "no line in {LONG:?}");
                let mut more = [0; 4096];
                let count = self.printed.read(&mut more).unwrap();
                assert!(count > 0, "it has ended: {:?}", self.ended.try_recv());
                self.begun.extend_from_slice(&more[..count]);
            }
        }

        /// Closes the reader, which must end the follower although nothing more is logged.
        fn end(self) {
            drop(self.printed);
            let ended = self.ended.recv_timeout(LONG).unwrap();
            let kind = ended.err().and_then(|error| error.io_kind());
            assert!(matches!(kind, None | Some(io::ErrorKind::BrokenPipe)), "{kind:?}");
        }
    }

    #[test]
    fn it_ends_when_its_reader_has_gone() {
        let scratch = Scratch::new();
        Following::of(scratch.path().to_owned(), ALL).end();
        scratch.append("daemon.log", b"a\n");
        let mut following = Following::of(scratch.path().to_owned(), ALL);
        assert_eq!(following.line(), "a");
        following.end();
    }

    #[test]
    fn it_waits_for_a_log_whose_directory_does_not_exist_yet() {
        let scratch = Scratch::new();
        let directory = scratch.path().join("a/b/daemon");
        let mut following = Following::of(directory.clone(), ALL);
        for round in 0..3 {
            for place in ["a", "a/b", "a/b/daemon"] {
                fs::create_dir(scratch.path().join(place)).unwrap();
            }
            let log = Log::open(&directory, Rotation { bytes: 1 << 20, files: 1 }, Level::Info);
            let log = log.unwrap();
            log.info("started", &[("round", &round)]);
            assert!(following.line().ends_with(&format!("started round={round}")));
            log.info("more", &[("round", &round)]);
            assert!(following.line().ends_with(&format!("more round={round}")));
            fs::remove_dir_all(scratch.path().join("a")).unwrap();
        }
        following.end();
    }

    #[test]
    fn every_line_is_printed_once_and_in_order_whatever_happens_to_the_files() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        let scratch = Scratch::new();
        let rotation = Rotation { bytes: 4096, files: 60 };
        let open = || Log::open(scratch.path(), rotation, Level::Info).unwrap();
        let mut log = open();
        let mut following = Following::of(scratch.path().to_owned(), ALL);
        let (mut written, mut seen) = (0_u32, 0_u32);
        let mut moved = 0;
        while seen < 2000 {
            for _ in 0..random.u32(1..120) {
                let length = *random.choice(&[10, 200, 3000]).unwrap();
                let filling = "x".repeat(random.usize(..length));
                log.info("line", &[("number", &written), ("filling", &filling)]);
                written += 1;
            }
            // The follower may be this far behind, but must have found what is moved or deleted.
            let behind = random.choice(&[0, 0, 50]).unwrap();
            while seen + behind < written {
                let line = following.line();
                let number = format!(" line number={seen} filling=");
                assert!(line.contains(&number), "seed {seed}: {line} instead of{number}");
                seen += 1;
            }
            let path = path_of(scratch.path(), 0);
            match random.u32(..5) {
                0 if *behind == 0 => fs::remove_file(path).unwrap(),
                1 if *behind == 0 => {
                    moved += 1;
                    scratch.rename("daemon.log", &format!("moved.{moved}"));
                    log.info("line", &[("number", &written), ("filling", &"moved")]);
                    written += 1;
                    log.reopen().unwrap();
                }
                2 => log.reopen().unwrap(),
                3 => log = open(),
                _ => {}
            }
        }
        following.end();
    }
}
