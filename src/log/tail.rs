//! Reading the log: its files, and the last lines of them, found backwards from the end in constant
//! memory.
//!
//! Every file is opened before anything is read, so a rotation in the meantime neither loses a line
//! nor repeats one. A file is identified by its [`FileId`]: its name may change at any time.
//! Following the log as it grows is the task of [`follow`](super::follow).

use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::line::{Printer, Selection};
use super::{Query, path_of};
use crate::disk;
use crate::error::{At, Error};
use crate::limits::{LOG_FILES_MAX, LOG_LINE_BYTES_MAX};
use crate::lines::{Backwards, Forwards};

/// The identity of a file, whatever its name. The system gives it to no other file as long as this
/// one is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub fn of(metadata: &Metadata) -> FileId {
        FileId { device: metadata.dev(), inode: metadata.ino() }
    }

    /// Returns the id of the file at `path`; `None` if there is none.
    pub fn at(path: &Path) -> Result<Option<FileId>, Error> {
        match path.symlink_metadata() {
            Ok(metadata) => Ok(Some(FileId::of(&metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(cause).at("inspect", path),
        }
    }
}

/// One file of the log.
pub(super) struct LogFile {
    pub file: File,
    pub id: FileId,
    /// Its path when it was opened.
    path: PathBuf,
}

impl LogFile {
    fn open(path: PathBuf) -> Result<Option<LogFile>, Error> {
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let untrusted = |because| Err(disk::untrusted(&path, because, "move it away"));
        let file = match options.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                return untrusted("it is a symbolic link");
            }
            Err(cause) => return Err(cause).at("open", &path),
        };
        let metadata = file.metadata().at("inspect", &path)?;
        if !metadata.is_file() {
            return untrusted("it is not a regular file");
        }
        Ok(Some(LogFile { file, id: FileId::of(&metadata), path }))
    }

    pub fn metadata(&self) -> Result<Metadata, Error> {
        self.file.metadata().at("inspect", &self.path)
    }

    pub fn len(&self) -> Result<u64, Error> {
        Ok(self.metadata()?.len())
    }

    /// Prints the next lines of this file.
    pub fn print<W: Write + ?Sized>(
        &self,
        lines: &mut Forwards,
        printer: &mut Printer<'_, W>,
    ) -> Result<(), Error> {
        while let Some((line, _)) = lines.next(&self.file).at("read", &self.path)? {
            printer.print(line)?;
        }
        Ok(())
    }
}

/// Attempts to read something that may change at the same time. A change at that moment is rare;
/// this many in succession do not occur.
pub(super) const ATTEMPTS_MAX: usize = 100;

/// After this many successive names without a file, there are no older files. A rotation that is in
/// progress or was interrupted leaves one such name.
const GAP_MAX: u32 = 8;

/// Opens the files of the log from the newest to the oldest, up to the first that is `known`.
///
/// A rotation only increases the number of a file, so opening them in this order skips none and may
/// meet one twice. It could still open a newer file after an older one, if that one was rotated
/// twice in the meantime. In that case the first file was rotated as well, which is checked at the
/// end.
pub(super) fn open(
    directory: &Path,
    known: impl Fn(FileId) -> bool,
) -> Result<Vec<LogFile>, Error> {
    for _ in 0..ATTEMPTS_MAX {
        let mut files: Vec<LogFile> = Vec::new();
        let mut missing = 0;
        for age in 0..=LOG_FILES_MAX {
            let Some(file) = LogFile::open(path_of(directory, age))? else {
                missing += 1;
                if missing == GAP_MAX {
                    break;
                }
                continue;
            };
            missing = 0;
            if known(file.id) {
                break;
            }
            if files.iter().all(|newer| newer.id != file.id) {
                files.push(file);
            }
        }
        let Some(first) = files.first() else {
            return Ok(files);
        };
        if FileId::at(&first.path)? == Some(first.id) {
            return Ok(files);
        }
    }
    let path = path_of(directory, 0);
    Err(io::Error::other("it is rotated faster than it can be read")).at("read", &path)
}

/// The log of one daemon, open for reading.
pub struct Tail {
    pub(super) directory: PathBuf,
    /// From the newest to the oldest.
    pub(super) files: Vec<LogFile>,
}

/// The place where printing begins.
pub(super) struct TailStart {
    /// The index of the file.
    pub file: usize,
    pub offset: u64,
}

impl Tail {
    /// Opens the files of the log in `directory`, which need not exist.
    pub fn open(directory: &Path) -> Result<Tail, Error> {
        let files = open(directory, |_| false)?;
        Ok(Tail { directory: directory.to_owned(), files })
    }

    /// Returns whether there is no log yet.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Writes the last lines that the query shows to `out`, oldest first. The last line of a file
    /// counts even if it has no end because it is being written or was cut off by a crash.
    pub fn print(&self, query: &Query, out: &mut dyn Write) -> Result<(), Error> {
        // What is written from now on is not printed, so a busy daemon cannot prolong this.
        let ends = self.lengths()?;
        let start = self.start(query, &ends)?;
        let mut printer = Printer::new(*query, out);
        let files = self.files.iter().zip(ends).enumerate().take(start.file + 1);
        for (index, (file, end)) in files.rev() {
            let begin = if index == start.file { start.offset } else { 0 };
            let mut lines = Forwards::new(begin, end, LOG_LINE_BYTES_MAX);
            file.print(&mut lines, &mut printer)?;
            printer.print(lines.take_pending().unwrap_or_default())?;
        }
        printer.flush()
    }

    pub(super) fn lengths(&self) -> Result<Vec<u64>, Error> {
        self.files.iter().map(LogFile::len).collect()
    }

    /// Returns where the last lines that the query shows begin, if the files end at `ends`.
    pub(super) fn start(&self, query: &Query, ends: &[u64]) -> Result<TailStart, Error> {
        let mut start = TailStart { file: 0, offset: ends.first().copied().unwrap_or(0) };
        let mut missing = query.lines;
        for (index, (log, end)) in self.files.iter().zip(ends).enumerate() {
            let mut lines = Backwards::new(*end, LOG_LINE_BYTES_MAX);
            while missing > 0
                && let Some((line, offset)) = lines.next(&log.file).at("read", &log.path)?
            {
                match query.select(line) {
                    Selection::TooOld => return Ok(start),
                    Selection::Skipped => {}
                    Selection::Shown => {
                        start = TailStart { file: index, offset };
                        missing -= 1;
                    }
                }
            }
        }
        Ok(start)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::line::Line;
    use super::super::scratch::Scratch;
    use super::super::{Level, LineFormat, Style};
    use super::*;
    use crate::error::Kind;
    use crate::json;
    use crate::lines::READ_BYTES;
    use crate::text::sanitized;

    const ALL: Query = Query {
        lines: usize::MAX,
        least: Level::Debug,
        since: None,
        format: LineFormat::Text(Style::Plain),
    };

    fn printed(scratch: &Scratch, query: &Query) -> String {
        let mut out = Vec::new();
        Tail::open(scratch.path()).unwrap().print(query, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn stored(second: u8, level: Level) -> String {
        let level = level.name();
        format!(
            "{{\"ts\":\"2026-03-01T10:00:{second:02}.000Z\",\"level\":\"{level}\",\"msg\":\"m{second}\"}}\n"
        )
    }

    #[test]
    fn no_log_and_an_empty_log_are_two_things() {
        let scratch = Scratch::new();
        assert!(Tail::open(&scratch.path().join("daemon")).unwrap().is_empty());
        assert!(Tail::open(scratch.path()).unwrap().is_empty());
        assert_eq!(printed(&scratch, &ALL), "");
        scratch.append("daemon.log", b"");
        assert!(!Tail::open(scratch.path()).unwrap().is_empty());
        assert_eq!(printed(&scratch, &ALL), "");
    }

    #[test]
    fn the_last_lines_come_from_several_files_in_order_of_time() {
        let scratch = Scratch::new();
        scratch.append("daemon.log.7", b"a\nb\n");
        scratch.append("daemon.log.2", b"c\ntorn");
        scratch.append("daemon.log.1", b"");
        scratch.append("daemon.log", b"\nd\r\n\n\r\ne");
        for (lines, wanted) in
            [(0, ""), (1, "e\n"), (2, "d\ne\n"), (3, "torn\nd\ne\n"), (5, "b\nc\ntorn\nd\ne\n")]
        {
            assert_eq!(printed(&scratch, &Query { lines, ..ALL }), wanted);
        }
        assert_eq!(printed(&scratch, &ALL), "a\nb\nc\ntorn\nd\ne\n");
    }

    #[test]
    fn only_lines_that_are_shown_count() {
        let scratch = Scratch::new();
        for (second, level) in [(1, Level::Error), (2, Level::Info), (3, Level::Warn)] {
            scratch.append("daemon.log.1", stored(second, level).as_bytes());
        }
        scratch.append("daemon.log.1", b"thread 'main' panicked\n");
        for second in 4..60 {
            scratch.append("daemon.log", stored(second, Level::Debug).as_bytes());
        }
        let query = Query { lines: 3, least: Level::Warn, ..ALL };
        let text = printed(&scratch, &query);
        let ends: Vec<&str> = text.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
        assert_eq!(ends, ["m1", "m3", "panicked"]);
        let since = Line::parse(stored(58, Level::Info).trim_end().as_bytes()).unwrap().ts;
        let text = printed(&scratch, &Query { since: Some(since), ..ALL });
        assert_eq!(text.lines().count(), 2, "{text}");
        let text = printed(&scratch, &Query { since: Some(since + 1), ..ALL });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert_eq!(printed(&scratch, &Query { since: Some(since + 1001), ..ALL }), "");
    }

    #[test]
    fn in_json_every_line_is_an_object() {
        let scratch = Scratch::new();
        let ours = stored(1, Level::Info);
        scratch.append("daemon.log", ours.as_bytes());
        let nearly = ours.replace("}", ",\"k\":nonsense}");
        scratch.append("daemon.log", nearly.as_bytes());
        scratch.append("daemon.log", b"at \"main\"\x1b\xff\n");
        let text = printed(&scratch, &Query { format: LineFormat::Json, ..ALL });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], ours.trim_end());
        assert_eq!(
            lines[2],
            r#"{"level":"ERROR","msg":"at \"main\"\u001b\ufffd"}"#.replace("\\ufffd", "\u{fffd}")
        );
        for line in lines {
            assert_eq!(json::check(line), Ok(()), "{line}");
            assert!(line.starts_with('{'));
        }
    }

    #[test]
    fn a_line_is_truncated_beyond_the_limit() {
        for (length, wanted) in
            [(LOG_LINE_BYTES_MAX, ""), (LOG_LINE_BYTES_MAX + 1, "…"), (1 << 20, "…")]
        {
            let scratch = Scratch::new();
            scratch.append("daemon.log", format!("a\n{}\nb\n", "x".repeat(length)).as_bytes());
            let cut = format!("{}{wanted}", "x".repeat(LOG_LINE_BYTES_MAX));
            assert_eq!(printed(&scratch, &Query { lines: 2, ..ALL }), format!("{cut}\nb\n"));
            assert_eq!(printed(&scratch, &ALL), format!("a\n{cut}\nb\n"));
            let json = Query { lines: 2, format: LineFormat::Json, ..ALL };
            let wanted = format!("{{\"level\":\"ERROR\",\"msg\":\"{cut}\"}}");
            assert_eq!(printed(&scratch, &json).lines().next(), Some(wanted.as_str()));
        }
    }

    /// Some lines, not all with an end: of the daemon and of others, some long, some with odd
    /// bytes.
    fn random_file(random: &mut fastrand::Rng) -> Vec<u8> {
        let mut file = Vec::new();
        let typical = *random.choice(&[3, 100, 5_000, 70_000]).unwrap();
        let many = *random.choice(&[1, 5, 300]).unwrap();
        for _ in 0..random.usize(..many) {
            if file.len() > 3 * READ_BYTES {
                break;
            }
            match random.usize(..20) {
                0 => {}
                1 => file.extend_from_slice(b"\0\xff\xfe\xc3"),
                2 => file.extend(std::iter::repeat_n(b'y', random.usize(..2 * READ_BYTES))),
                3..10 => {
                    let level = *random.choice(&Level::ALL).unwrap();
                    file.extend_from_slice(stored(random.u8(..60), level).trim_end().as_bytes());
                }
                _ => file.extend(std::iter::repeat_with(|| random.u8(32..)).take(typical / 2)),
            }
            file.extend_from_slice(random.choice(&[&b"\n"[..], b"\n", b"\r\n"]).unwrap());
        }
        if random.bool() {
            file.pop();
        }
        // Ends at, before and behind a boundary between blocks.
        if random.usize(..4) == 0 && file.len() > READ_BYTES {
            file.truncate(READ_BYTES + 1 - random.usize(..3));
        }
        file
    }

    #[test]
    fn the_last_lines_are_the_end_of_all_lines() {
        for round in 0..50 {
            let seed = fastrand::u64(..);
            let mut random = fastrand::Rng::with_seed(seed);
            let scratch = Scratch::new();
            let files: Vec<Vec<u8>> = (0..random.u32(1..4))
                .map(|age| {
                    let file = random_file(&mut random);
                    let path = path_of(scratch.path(), age);
                    scratch.append(path.file_name().unwrap().to_str().unwrap(), &file);
                    file
                })
                .collect();
            let least = *random.choice(&Level::ALL).unwrap();
            let mut all: Vec<String> = Vec::new();
            for line in files.iter().rev().flat_map(|file| file.split(|byte| *byte == b'\n')) {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                all.push(match Line::parse(line) {
                    _ if line.is_empty() => continue,
                    Some(line) if line.level < least => continue,
                    Some(line) => line.formatted(Style::Plain, crate::clock::now_millis()),
                    None if line.len() > LOG_LINE_BYTES_MAX => {
                        let beginning = String::from_utf8_lossy(&line[..LOG_LINE_BYTES_MAX]);
                        sanitized(&beginning) + "…"
                    }
                    None => sanitized(&String::from_utf8_lossy(line)),
                });
            }
            for lines in [0, 1, random.usize(..=all.len()), all.len(), all.len() + 1] {
                let wanted = &all[all.len().saturating_sub(lines)..];
                let text = printed(&scratch, &Query { lines, least, ..ALL });
                let same = text.split_terminator('\n').eq(wanted);
                assert!(same, "seed {seed}, round {round}, {lines} lines");
            }
        }
    }

    #[test]
    fn rotations_in_the_meantime_do_not_change_the_order() {
        let scratch = Scratch::new();
        for (age, content) in ["c", "b", "a"].into_iter().enumerate() {
            let path = path_of(scratch.path(), u32::try_from(age).unwrap());
            scratch.append(path.file_name().unwrap().to_str().unwrap(), content.as_bytes());
        }
        let rotate = |content: &str| {
            for age in (0..9).rev() {
                drop(std::fs::rename(
                    path_of(scratch.path(), age),
                    path_of(scratch.path(), age + 1),
                ));
            }
            scratch.append("daemon.log", content.as_bytes());
        };
        let looked = Cell::new(0);
        let files = open(scratch.path(), |_| {
            looked.set(looked.get() + 1);
            match looked.get() {
                1 => ["d", "e"].into_iter().for_each(rotate),
                3 => rotate("f"),
                _ => {}
            }
            false
        });
        let content = |file: LogFile| io::read_to_string(file.file).unwrap();
        let contents: Vec<String> = files.unwrap().into_iter().map(content).collect();
        assert_eq!(contents, ["f", "e", "d", "c", "b", "a"]);
    }

    #[test]
    fn a_log_that_is_rotated_without_end_is_an_error() {
        let scratch = Scratch::new();
        scratch.append("daemon.log", b"");
        let files = open(scratch.path(), |_| {
            scratch.rename("daemon.log", "daemon.log.1");
            scratch.append("daemon.log", b"");
            false
        });
        let said = files.map(drop).unwrap_err().to_string();
        assert!(said.ends_with("daemon.log: it is rotated faster than it can be read"), "{said}");
    }

    #[test]
    fn only_regular_files_are_read() {
        let scratch = Scratch::new();
        std::fs::create_dir(path_of(scratch.path(), 0)).unwrap();
        assert!(open(scratch.path(), |_| false).is_err_and(|e| e.kind() == Kind::UntrustedPath));
        std::fs::remove_dir(path_of(scratch.path(), 0)).unwrap();
        std::os::unix::fs::symlink("elsewhere", path_of(scratch.path(), 3)).unwrap();
        assert!(open(scratch.path(), |_| false).is_err_and(|e| e.kind() == Kind::UntrustedPath));
    }
}
