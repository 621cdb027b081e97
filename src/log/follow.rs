//! `opta daemon logs -f`: the log as it grows, by name, through rotation, deletion, truncation and
//! the daemon's restart.
//!
//! No line is lost and none repeated, as long as the files that hold them are found before they are
//! deleted. It sleeps until something changes; nothing is looked at in between.
//!
//! The files that were seen stay open, so that their identities cannot be given to new ones. The
//! one that is being read is left only when there is something in a newer one: the daemon never
//! goes back, so what is there then is all that there will be.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::part::{self, Identity, LOOKS_MAX, Part};
use super::print::Printer;
use super::{Query, Tail, name};
use crate::error::{At, Doing, Error, Kind};
use crate::sys;
use crate::sys::watch::Watch;

impl Tail {
    /// Writes the last lines that are wanted to `out`, then every new one as it comes; also if
    /// there is no log yet. A line that has no end is held back until it has one, or until the
    /// daemon has gone on to another file.
    ///
    /// Returns when nobody reads `out` any more.
    pub fn follow(self, query: &Query, out: &mut (impl Write + AsFd)) -> Result<(), Error> {
        let mut follower = Follower::new(self, query, out)?;
        match follower.keep_up() {
            Err(error)
                if error.kind() == Kind::Output
                    && error.io_kind() == Some(io::ErrorKind::BrokenPipe) =>
            {
                Ok(())
            }
            result => result,
        }
    }
}

struct Follower<'a, W: Write> {
    directory: PathBuf,
    /// From the newest to the oldest.
    parts: Vec<Part>,
    /// Which part is being read, and up to where it has been.
    age: usize,
    offset: u64,
    printer: Printer<'a, W>,
}

impl<'a, W: Write> Follower<'a, W> {
    fn new(tail: Tail, query: &Query, out: &'a mut W) -> Result<Follower<'a, W>, Error> {
        let start = tail.start(query, &tail.lengths()?)?;
        Ok(Follower {
            directory: tail.directory,
            parts: tail.parts,
            age: start.age,
            offset: start.offset,
            printer: Printer::new(*query, out),
        })
    }

    /// Shows what comes, as long as somebody reads it.
    fn keep_up(&mut self) -> Result<(), Error>
    where
        W: AsFd,
    {
        self.catch_up()?;
        self.printer.forget_since();
        loop {
            // First the watch, then the look: what changes after the look wakes the wait.
            let lookout = Lookout::on(&self.directory, self.unfinished())?;
            while lookout.stands(&self.directory)? {
                self.catch_up()?;
                if !lookout.covers(self.unfinished()) {
                    break;
                }
                if let sys::Woken::Unwanted = lookout.wait(self.printer.out)? {
                    return Ok(());
                }
            }
        }
    }

    /// Shows everything that is there.
    fn catch_up(&mut self) -> Result<(), Error> {
        self.look_for_new_parts()?;
        loop {
            // Before the reading: what is in a newer part was written after all that is in this
            // one.
            let left = self.has_newer_lines()?;
            self.read_on()?;
            if !left {
                return self.printer.flush();
            }
            self.printer.end_line();
            self.age -= 1;
            self.offset = 0;
        }
    }

    fn look_for_new_parts(&mut self) -> Result<(), Error> {
        let newest = Identity::named(&name(&self.directory, 0))?;
        if newest.is_some() && newest == self.parts.first().map(|part| part.identity) {
            return Ok(());
        }
        let is_known = |identity| self.parts.iter().any(|part| part.identity == identity);
        let mut parts = part::open(&self.directory, is_known)?;
        if self.parts.is_empty() {
            self.age = parts.len().saturating_sub(1);
        } else {
            self.age += parts.len();
        }
        parts.append(&mut self.parts);
        // Those that were read and are deleted need no watching; their space is given back.
        let mut age = 0;
        parts.retain(|part| {
            age += 1;
            age <= self.age + 1 || part.found().is_ok_and(|found| found.nlink() > 0)
        });
        self.parts = parts;
        Ok(())
    }

    fn has_newer_lines(&self) -> Result<bool, Error> {
        for part in self.parts.iter().take(self.age) {
            if part.length()? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn read_on(&mut self) -> Result<(), Error> {
        let Some(part) = self.parts.get(self.age) else {
            return Ok(());
        };
        if part.length()? < self.offset {
            // Cut down: what it holds now is new.
            self.printer.end_line();
            self.offset = 0;
        }
        self.offset = part.read(self.offset, u64::MAX, |block| self.printer.add(block))?;
        Ok(())
    }

    /// The part that is being read and the newer ones.
    fn unfinished(&self) -> &[Part] {
        self.parts.get(..=self.age).unwrap_or_default()
    }
}

/// A watch on the log's directory or, as long as there is none, on the nearest one above it.
struct Lookout {
    watch: Watch,
    place: PathBuf,
    identity: Identity,
    /// Watched by themselves, for systems where a directory does not tell of writing to its files.
    files: Vec<Identity>,
}

impl Lookout {
    fn on(directory: &Path, parts: &[Part]) -> Result<Lookout, Error> {
        let mut looks = 0;
        let (mut watch, place, identity) = loop {
            let (place, identity) = nearest(directory)?;
            match Watch::on(&place) {
                // Removed since it was looked at.
                Err(error) if error.kind() == io::ErrorKind::NotFound && looks < LOOKS_MAX => {
                    looks += 1;
                }
                watch => break (watch.at("watch", &place)?, place, identity),
            }
        };
        for part in parts {
            watch.add_file(&part.file).at("watch", &place)?;
        }
        let files = parts.iter().map(|part| part.identity).collect();
        Ok(Lookout { watch, place, identity, files })
    }

    /// Whether it is still the right place to watch.
    fn stands(&self, directory: &Path) -> Result<bool, Error> {
        let (place, identity) = nearest(directory)?;
        Ok(place == self.place && identity == self.identity)
    }

    fn covers(&self, parts: &[Part]) -> bool {
        parts.iter().map(|part| part.identity).eq(self.files.iter().copied())
    }

    /// Sleeps until something changes or nobody reads `out` any more.
    fn wait(&self, out: &impl AsFd) -> Result<sys::Woken, Error> {
        let woken =
            sys::wait_while_wanted(self.watch.as_fd(), out.as_fd()).doing("wait for lines")?;
        // Takes away what has woken it.
        self.watch.wait(Some(Duration::ZERO)).at("watch", &self.place)?;
        Ok(woken)
    }
}

/// The directory itself if it exists, else the nearest above it that does.
fn nearest(directory: &Path) -> Result<(PathBuf, Identity), Error> {
    for place in directory.ancestors() {
        match place.metadata() {
            Ok(found) if found.is_dir() => return Ok((place.to_owned(), Identity::of(&found))),
            _ => {}
        }
    }
    Err(io::Error::from(io::ErrorKind::NotFound)).at("watch", directory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{PipeReader, Read};
    use std::sync::mpsc::{self, Receiver};
    use std::thread;

    use super::super::scratch::Scratch;
    use super::super::{Form, Level, Log, Rotation, Style};
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    const ALL: Query = Query {
        lines: usize::MAX,
        least: Level::Debug,
        since: None,
        form: Form::Text(Style::Plain),
    };

    /// What a follower shows after each step, without threads and without waiting.
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
    fn it_goes_on_where_the_last_lines_end() {
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
                let from = name(scratch.path(), age);
                drop(fs::rename(from, name(scratch.path(), age + 1)));
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
    fn a_deleted_log_is_left_for_the_new_one_and_older_ones_are_not_repeated() {
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
    fn a_log_that_is_cut_down_is_read_from_its_beginning() {
        let scratch = Scratch::new();
        scratch.append("daemon.log", b"a\nb\nc");
        let copy_and_cut = || {
            let log = scratch.path().join("daemon.log");
            fs::copy(&log, scratch.path().join("daemon.log.1")).unwrap();
            fs::File::options().write(true).open(log).unwrap().set_len(0).unwrap();
        };
        steps(
            &scratch,
            &Query { lines: 1, ..ALL },
            &[
                (&nothing, ""),
                (&copy_and_cut, "c\n"),
                (&|| scratch.append("daemon.log", b"d\n"), "d\n"),
            ],
        );
    }

    #[test]
    fn deleted_files_that_were_read_are_let_go() {
        let scratch = Scratch::new();
        let log = Log::open(scratch.path(), Rotation { bytes: 1, files: 2 }, Level::Info).unwrap();
        let mut out = Vec::new();
        let tail = Tail::open(scratch.path()).unwrap();
        let mut follower = Follower::new(tail, &ALL, &mut out).unwrap();
        for count in 0..50 {
            log.info("a", &[("count", &count)]);
            follower.catch_up().unwrap();
            assert!(follower.parts.len() <= 4, "{}", follower.parts.len());
        }
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 50);
    }

    /// A follower in a thread of its own, and what it shows.
    struct Following {
        shown: PipeReader,
        begun: Vec<u8>,
        ended: Receiver<Result<(), Error>>,
    }

    impl Following {
        fn of(directory: PathBuf, query: Query) -> Following {
            let (shown, mut out) = io::pipe().unwrap();
            let (tell, ended) = mpsc::channel();
            let follow = move || {
                let followed =
                    Tail::open(&directory).and_then(|tail| tail.follow(&query, &mut out));
                tell.send(followed).unwrap();
            };
            thread::Builder::new().spawn(follow).unwrap();
            Following { shown, begun: Vec::new(), ended }
        }

        fn line(&mut self) -> String {
            loop {
                if let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
                    let line = self.begun.drain(..=end).collect();
                    return String::from_utf8(line).unwrap().trim_end().to_owned();
                }
                let [ready] = sys::wait_readable([self.shown.as_fd()], Some(LONG)).unwrap();
                assert!(ready, "no line in {LONG:?}");
                let mut more = [0; 4096];
                let count = self.shown.read(&mut more).unwrap();
                assert!(count > 0, "it has ended: {:?}", self.ended.try_recv());
                self.begun.extend_from_slice(&more[..count]);
            }
        }

        /// Stops reading, which must end it although nothing more is logged.
        fn end(self) {
            drop(self.shown);
            self.ended.recv_timeout(LONG).unwrap().unwrap();
        }
    }

    #[test]
    fn it_ends_when_nobody_reads_any_more() {
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
    fn every_line_comes_once_and_in_order_whatever_happens_to_the_files() {
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
            // Up to here it may lie behind; what is moved away or deleted, it must have found.
            let behind = random.choice(&[0, 0, 50]).unwrap();
            while seen + behind < written {
                let line = following.line();
                let number = format!(" line number={seen} filling=");
                assert!(line.contains(&number), "seed {seed}: {line} instead of{number}");
                seen += 1;
            }
            let path = name(scratch.path(), 0);
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
