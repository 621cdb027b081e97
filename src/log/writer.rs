//! The writing end of the log: appending, repairing, rotating.
//!
//! No failure here is permanent: a line that cannot be written is counted, a rotation that fails
//! leaves the log where it is, and a log that was deleted is created again.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::line::Line;
use super::{Level, Rotation, body, path_of, with_time};
use crate::error::{At, Doing, Error};
use crate::limits::LOG_FILES_MAX;
use crate::text::Style;
use crate::{disk, sys};

/// How the log is connected to standard output and error of the process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StdStreams {
    Unrelated,
    /// They are written to the log.
    Redirected,
    /// The lines of the log are shown on standard error, too.
    Mirror(Style),
}

pub(super) struct Writer {
    directory: PathBuf,
    rotation: Rotation,
    file: Appender<File>,
    /// A line that would make the file larger than this causes a rotation. Raised while rotations
    /// fail, so that one is tried every `rotation.bytes` and not at every line.
    bytes_max: u64,
    streams: StdStreams,
}

impl Writer {
    pub fn open(directory: &Path, rotation: Rotation) -> Result<Writer, Error> {
        Ok(Writer {
            directory: directory.to_owned(),
            rotation,
            file: Appender::open(directory)?,
            bytes_max: rotation.bytes,
            streams: StdStreams::Unrelated,
        })
    }

    /// Stores one line with the current time, and mirrors it if requested.
    pub fn write(&mut self, body: &str) {
        // The time is read while the lock is held, so lines are stored in order of time.
        let line = with_time(body);
        self.rotate_for(line.len());
        self.file.append(&line);
        if let StdStreams::Mirror(style) = self.streams {
            mirror(&line, style);
        }
    }

    /// Rotates if `length` more bytes would make the file too large.
    fn rotate_for(&mut self, length: usize) {
        let Ok(found) = self.file.file.metadata() else {
            return;
        };
        if found.nlink() == 0 {
            // Deleted: no one could read what is written there. If this fails, the next line tries
            // again.
            drop(self.reopen());
            return;
        }
        let length = length + self.file.pending().len();
        let grown = found.len().saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        if found.len() < self.rotation.bytes {
            self.bytes_max = self.rotation.bytes;
        }
        if found.len() == 0 || grown <= self.bytes_max {
            return;
        }
        if let Err(error) = self.rotate() {
            self.bytes_max = found.len().saturating_add(self.rotation.bytes);
            let warning = body(Level::Warn, "log not rotated", &[("cause", &error)]);
            self.file.append(&with_time(&warning));
        }
    }

    /// Replaces the log with a new file. On failure, writing continues in the old one.
    fn rotate(&mut self) -> Result<(), Error> {
        let log = path_of(&self.directory, 0);
        let prepared = self.directory.join("daemon.log.new");
        // A crash may have left one. If it cannot be removed, creating the file fails.
        drop(std::fs::remove_file(&prepared));
        let file = disk::open_for_append(&prepared, File::options().create_new(true))?;
        let rotated =
            self.shift().and_then(|()| std::fs::rename(&prepared, &log).at("rename", &prepared));
        if let Err(error) = rotated {
            drop(std::fs::remove_file(&prepared));
            return Err(error);
        }
        self.switch_to(Appender { file, torn: false, lost: 0 });
        Ok(())
    }

    /// Increases the number of every file, up to the first gap; the oldest is removed.
    fn shift(&self) -> Result<(), Error> {
        let kept = self.rotation.files;
        for age in kept + 1..=LOG_FILES_MAX {
            // From a time when more files were kept.
            if std::fs::remove_file(path_of(&self.directory, age)).is_err() {
                break;
            }
        }
        // A rotation that was interrupted leaves a gap; filling it drops no old lines.
        let is_gap = |age: &u32| path_of(&self.directory, *age).symlink_metadata().is_err();
        let last = (1..kept).find(is_gap).unwrap_or(kept);
        for age in (0..last).rev() {
            let from = path_of(&self.directory, age);
            match std::fs::rename(&from, path_of(&self.directory, age + 1)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result.at("rename", &from)?,
            }
        }
        Ok(())
    }

    pub fn reopen(&mut self) -> Result<(), Error> {
        self.switch_to(Appender::open(&self.directory)?);
        Ok(())
    }

    pub fn capture_stdio(&mut self) -> Result<(), Error> {
        sys::redirect_output(&self.file.file).doing("redirect output to the log")?;
        self.streams = StdStreams::Redirected;
        Ok(())
    }

    pub fn file(&self) -> Result<File, Error> {
        self.file.file.try_clone().doing("share the log")
    }

    pub fn mirror(&mut self, style: Style) {
        self.streams = StdStreams::Mirror(style);
    }

    fn switch_to(&mut self, file: Appender<File>) {
        self.file = Appender { lost: self.file.lost, ..file };
        self.bytes_max = self.rotation.bytes;
        if self.streams == StdStreams::Redirected {
            // On failure, output still goes to the old file, so nothing is lost yet.
            drop(sys::redirect_output(&self.file.file));
        }
    }
}

/// A file to which lines are appended, and what failed writes did not complete.
struct Appender<W> {
    file: W,
    /// Whether the last line has no end, so that the next one must not be joined to it.
    torn: bool,
    /// Lines that could not be written since the last one that was.
    lost: u64,
}

impl Appender<File> {
    /// Opens the log for appending. A crash may have cut off its last line.
    fn open(directory: &Path) -> Result<Appender<File>, Error> {
        let file = disk::open_for_append(&path_of(directory, 0), File::options().create(true))?;
        let length = file.metadata().doing("inspect the log")?.len();
        let mut last = *b"\n";
        if length > 0 {
            file.read_exact_at(&mut last, length - 1).doing("read the end of the log")?;
        }
        Ok(Appender { file, torn: last != *b"\n", lost: 0 })
    }
}

impl<W: Write> Appender<W> {
    fn append(&mut self, line: &str) {
        let mut text = self.pending();
        let pending = text.len();
        text.push_str(line);
        let written = self.file.write(text.as_bytes()).unwrap_or(0);
        if written == text.len() {
            self.torn = false;
            self.lost = 0;
            return;
        }
        if let Some(last) = text.as_bytes().get(..written).and_then(<[u8]>::last) {
            self.torn = *last != b'\n';
        }
        self.lost = if pending > 0 && written >= pending { 1 } else { self.lost + 1 };
    }

    /// Returns what must be written before the next line.
    fn pending(&self) -> String {
        let mut text = if self.torn { "\n".to_owned() } else { String::new() };
        if self.lost > 0 {
            let warning = body(Level::Warn, "log lines lost", &[("count", &self.lost)]);
            text.push_str(&with_time(&warning));
        }
        text
    }
}

/// Shows a line on standard error. A failure is ignored: there is no better place to report it.
fn mirror(line: &str, style: Style) {
    if let Some(line) = Line::parse(line.trim_end().as_bytes()) {
        // In one piece: other lines may be written at the same time.
        let text = line.formatted(style, line.ts) + "\n";
        drop(io::stderr().write_all(text.as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;
    use std::thread;

    use super::super::Log;
    use super::super::scratch::Scratch;
    use super::*;
    use crate::error::Kind;

    const WIDE: Rotation = Rotation { bytes: 1 << 20, files: 3 };

    fn open_log(scratch: &Scratch, rotation: Rotation) -> Log {
        Log::open(scratch.path(), rotation, Level::Info).unwrap()
    }

    fn messages(text: &str) -> Vec<&str> {
        text.lines()
            .map(|line| {
                assert_eq!(crate::json::check(line), Ok(()), "{line}");
                line.split("\"msg\":\"").nth(1).unwrap().split('"').next().unwrap()
            })
            .collect()
    }

    #[test]
    fn a_line_is_one_compact_object() {
        let scratch = Scratch::new();
        let log = open_log(&scratch, WIDE);
        log.info("session created", &[("id", &"sess_abc123")]);
        log.debug("not enabled", &[]);
        let text = scratch.read("daemon.log");
        let (stamp, rest) = text.split_at(32);
        assert!(stamp.starts_with("{\"ts\":\"20") && stamp.ends_with('"'), "{stamp}");
        assert_eq!(
            rest,
            ",\"level\":\"INFO\",\"msg\":\"session created\",\"id\":\"sess_abc123\"}\n"
        );
    }

    #[test]
    fn a_line_that_reaches_the_limit_fits_and_one_beyond_it_rotates() {
        for (over, files) in [(0, 1), (1, 2)] {
            let scratch = Scratch::new();
            let length = with_time(&body(Level::Info, "xx", &[])).len() as u64;
            let log = open_log(&scratch, Rotation { bytes: 2 * length - over, files: 3 });
            log.info("xx", &[]);
            log.info("yy", &[]);
            assert_eq!(scratch.names().len(), files, "{over}");
            assert_eq!(messages(&scratch.read("daemon.log")).last(), Some(&"yy"));
        }
    }

    #[test]
    fn rotation_renames_old_files_and_removes_the_oldest() {
        let scratch = Scratch::new();
        scratch.append("daemon.log.3", b"from a time when more were kept\n");
        let log = open_log(&scratch, Rotation { bytes: 1, files: 2 });
        for message in ["a", "b", "c", "d"] {
            log.info(message, &[]);
        }
        assert_eq!(scratch.names(), ["daemon.log", "daemon.log.1", "daemon.log.2"]);
        for (name, message) in [("daemon.log", "d"), ("daemon.log.1", "c"), ("daemon.log.2", "b")] {
            assert_eq!(messages(&scratch.read(name)), [message]);
        }
        drop(log);
        let log = open_log(&scratch, Rotation { bytes: 1, files: 0 });
        log.info("e", &[]);
        assert_eq!(scratch.names(), ["daemon.log"]);
        assert_eq!(messages(&scratch.read("daemon.log")), ["e"]);
    }

    #[test]
    fn a_gap_is_filled_before_a_file_is_removed() {
        let scratch = Scratch::new();
        for age in [1, 2, 4] {
            scratch.append(&format!("daemon.log.{age}"), age.to_string().as_bytes());
        }
        let log = open_log(&scratch, Rotation { bytes: 1, files: 4 });
        log.info("a", &[]);
        log.info("b", &[]);
        let old: Vec<String> =
            [2, 3, 4].map(|age| scratch.read(&format!("daemon.log.{age}"))).into();
        assert_eq!(old, ["1", "2", "4"]);
    }

    #[test]
    fn a_failed_rotation_loses_nothing_and_is_not_retried_at_every_line() {
        let scratch = Scratch::new();
        std::fs::create_dir(scratch.path().join("daemon.log.1")).unwrap();
        let log = open_log(&scratch, Rotation { bytes: 400, files: 1 });
        for _ in 0..20 {
            log.info("a", &[]);
        }
        let text = scratch.read("daemon.log");
        let messages = messages(&text);
        assert_eq!(messages.iter().filter(|message| **message == "a").count(), 20);
        let warnings = messages.iter().filter(|message| **message == "log not rotated").count();
        assert!((2..=6).contains(&warnings), "{warnings}");
        assert_eq!(scratch.names(), ["daemon.log", "daemon.log.1"]);
        std::fs::remove_dir(scratch.path().join("daemon.log.1")).unwrap();
        for _ in 0..8 {
            log.info("b", &[]);
        }
        assert!(scratch.read("daemon.log").len() <= 400);
    }

    #[test]
    fn a_deleted_log_is_created_again_and_a_moved_one_left_on_request() {
        let scratch = Scratch::new();
        let log = open_log(&scratch, WIDE);
        log.info("a", &[]);
        std::fs::remove_file(scratch.path().join("daemon.log")).unwrap();
        log.info("b", &[]);
        assert_eq!(messages(&scratch.read("daemon.log")), ["b"]);
        scratch.rename("daemon.log", "mine");
        log.info("c", &[]);
        log.reopen().unwrap();
        log.info("d", &[]);
        assert_eq!(messages(&scratch.read("mine")), ["b", "c"]);
        assert_eq!(messages(&scratch.read("daemon.log")), ["d"]);
    }

    #[test]
    fn a_torn_line_is_never_joined_to_the_next() {
        let scratch = Scratch::new();
        scratch.append("daemon.log", b"{\"ts\":\"20");
        open_log(&scratch, WIDE).info("a", &[]);
        let text = scratch.read("daemon.log");
        let (torn, rest) = text.split_once('\n').unwrap();
        assert_eq!(torn, "{\"ts\":\"20");
        assert_eq!(messages(rest), ["a"]);
    }

    #[test]
    fn an_untrusted_file_is_not_opened() {
        let refused =
            |scratch: &Scratch| match Log::open(scratch.path(), WIDE, Level::Info).map(drop) {
                Err(error) if error.kind() == Kind::UntrustedPath => error.reason().to_owned(),
                other => panic!("{other:?}"),
            };
        let scratch = Scratch::new();
        let log = scratch.path().join("daemon.log");
        symlink("elsewhere", &log).unwrap();
        assert_eq!(refused(&scratch), "it is a symbolic link");
        std::fs::remove_file(&log).unwrap();
        std::fs::create_dir(&log).unwrap();
        assert_eq!(refused(&scratch), "it is not a regular file");
        std::fs::remove_dir(&log).unwrap();
        assert!(Command::new("mkfifo").arg(&log).status().unwrap().success());
        assert_eq!(refused(&scratch), "it is not a regular file");
        std::fs::remove_file(&log).unwrap();
        scratch.append("other", b"");
        std::fs::hard_link(scratch.path().join("other"), &log).unwrap();
        assert_eq!(refused(&scratch), "it has a second hard link");
        assert_eq!(scratch.read("other"), "");
    }

    #[test]
    fn every_file_of_the_log_is_private() {
        let scratch = Scratch::new();
        let log = open_log(&scratch, Rotation { bytes: 1, files: 1 });
        log.info("a", &[]);
        log.info("b", &[]);
        for name in ["daemon.log", "daemon.log.1"] {
            let mode = scratch.path().join(name).metadata().unwrap().mode();
            assert_eq!(mode & 0o7777, 0o600, "{name}");
        }
    }

    #[test]
    fn the_mode_does_not_depend_on_the_umask() {
        for umask in ["000", "777"] {
            let script = format!("umask {umask}; exec \"$@\"");
            let test = "log::writer::tests::every_file_of_the_log_is_private";
            let mut command = Command::new("sh");
            command.args(["-c", &script, "sh"]).arg(std::env::current_exe().unwrap());
            let output = command.args(["--exact", test]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{umask}: {said}");
        }
    }

    #[test]
    fn lines_of_many_threads_stay_whole_after_a_panic() {
        let scratch = Scratch::new();
        let log = open_log(&scratch, Rotation { bytes: 20_000, files: 99 });
        let broken = log.clone();
        let panicking = thread::Builder::new().spawn(move || {
            let _held = broken.writer();
            panic!("while holding the lock");
        });
        assert!(panicking.unwrap().join().is_err());
        thread::scope(|scope| {
            for number in 0..8 {
                let log = log.clone();
                scope.spawn(move || {
                    for count in 0..250 {
                        log.info("x", &[("thread", &number), ("count", &count)]);
                    }
                });
            }
        });
        let mut lines = 0;
        for name in scratch.names() {
            let text = scratch.read(&name);
            assert!(text.len() <= 20_000);
            lines += messages(&text).len();
        }
        assert_eq!(lines, 2000);
    }

    /// Accepts this many bytes of each write, as a full disk would; then everything.
    struct FullDisk {
        accepts: Vec<Option<usize>>,
        accepted: Vec<u8>,
    }

    impl Write for FullDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = match self.accepts.is_empty() {
                true => bytes.len(),
                false => self.accepts.remove(0).ok_or(io::ErrorKind::StorageFull)?,
            };
            self.accepted.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_a_full_disk_rejects_are_counted() {
        let file =
            FullDisk { accepts: vec![None, None, Some(5), Some(0), None], accepted: Vec::new() };
        let mut appender = Appender { file, torn: false, lost: 0 };
        for line in ["1\n", "2\n", "three\n", "4\n", "5\n", "6\n", "7\n"] {
            appender.append(line);
        }
        let text = String::from_utf8(appender.file.accepted).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "{\"ts\"");
        assert!(lines[1].ends_with("\"msg\":\"log lines lost\",\"count\":5}"), "{text}");
        assert_eq!(lines[2..], ["6", "7"]);
    }

    #[test]
    fn a_notice_that_was_written_alone_is_not_repeated() {
        let notice = with_time(&body(Level::Warn, "log lines lost", &[("count", &1)])).len();
        let file = FullDisk { accepts: vec![None, Some(notice)], accepted: Vec::new() };
        let mut appender = Appender { file, torn: false, lost: 0 };
        for line in ["1\n", "2\n", "3\n"] {
            appender.append(line);
        }
        let text = String::from_utf8(appender.file.accepted).unwrap();
        assert_eq!(text.matches("\"count\":1}").count(), 2, "{text}");
        assert!(text.ends_with("}\n3\n"));
    }
}
