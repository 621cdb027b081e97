//! The last lines of the log, found backwards from its end and across rotated files, in constant
//! memory.
//!
//! Every file is opened before anything is read, so that a rotation meanwhile costs no line and
//! repeats none. Following the log as it grows is [`follow`](super::follow)'s.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::Query;
use super::part::{self, Part};
use super::print::{Printer, Verdict};
use crate::error::{At, Error};
use crate::limits::LOG_LINE_BYTES_MAX;
use crate::lines::Backwards;

/// The log of one daemon, open for reading.
pub struct Tail {
    pub(super) directory: PathBuf,
    /// From the newest to the oldest.
    pub(super) parts: Vec<Part>,
}

impl Tail {
    /// Opens what there is of the log in `directory`, which need not exist.
    pub fn open(directory: &Path) -> Result<Tail, Error> {
        let parts = part::open(directory, |_| false)?;
        Ok(Tail { directory: directory.to_owned(), parts })
    }

    /// Whether there is no log yet.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Writes the last lines that are wanted to `out`, oldest first. A line without an end, which
    /// is being written or was cut off by a crash, is a line too.
    pub fn show(&self, query: &Query, out: &mut dyn Write) -> Result<(), Error> {
        // What is written from here on is not part of the answer, so a busy daemon cannot prolong
        // it.
        let ends = self.lengths()?;
        let start = self.start(query, &ends)?;
        let mut printer = Printer::new(*query, out);
        for (age, part) in self.parts.iter().enumerate().take(start.age + 1).rev() {
            let from = if age == start.age { start.offset } else { 0 };
            part.read(from, ends.get(age).copied().unwrap_or(0), |block| printer.add(block))?;
            printer.end_line();
        }
        printer.flush()
    }

    pub(super) fn lengths(&self) -> Result<Vec<u64>, Error> {
        self.parts.iter().map(Part::length).collect()
    }

    /// Where the last lines that are wanted begin, if the parts end at `ends`.
    pub(super) fn start(&self, query: &Query, ends: &[u64]) -> Result<Start, Error> {
        let mut start = Start { age: 0, offset: ends.first().copied().unwrap_or(0) };
        let mut missing = query.lines;
        for (age, (part, end)) in self.parts.iter().zip(ends).enumerate() {
            let mut lines = Backwards::new(*end, LOG_LINE_BYTES_MAX);
            while missing > 0
                && let Some((stored, offset)) = lines.next(&part.file).at("read", &part.path)?
            {
                match query.verdict(stored) {
                    Verdict::TooOld => return Ok(start),
                    Verdict::Passed => {}
                    Verdict::Wanted => {
                        start = Start { age, offset };
                        missing -= 1;
                    }
                }
            }
        }
        Ok(start)
    }
}

/// The first byte to show: in the part of this age, counted in parts.
pub(super) struct Start {
    pub age: usize,
    pub offset: u64,
}

#[cfg(test)]
mod tests {
    use super::super::line::Line;
    use super::super::scratch::Scratch;
    use super::super::{Form, Level, Style};
    use super::*;
    use crate::json;
    use crate::lines::READ_BYTES;
    use crate::text::sanitized;

    const ALL: Query = Query {
        lines: usize::MAX,
        least: Level::Debug,
        since: None,
        form: Form::Text(Style::Plain),
    };

    fn shown(scratch: &Scratch, query: &Query) -> String {
        let mut out = Vec::new();
        Tail::open(scratch.path()).unwrap().show(query, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn stored(second: u8, level: Level) -> String {
        let level = level.name();
        format!(
            "{{\"ts\":\"2026-03-01T10:00:{second:02}.000Z\",\"level\":\"{level}\",\"msg\":\"m{second}\"}}\n"
        )
    }

    #[test]
    fn no_log_is_told_from_an_empty_one() {
        let scratch = Scratch::new();
        assert!(Tail::open(&scratch.path().join("daemon")).unwrap().is_empty());
        assert!(Tail::open(scratch.path()).unwrap().is_empty());
        assert_eq!(shown(&scratch, &ALL), "");
        scratch.append("daemon.log", b"");
        assert!(!Tail::open(scratch.path()).unwrap().is_empty());
        assert_eq!(shown(&scratch, &ALL), "");
    }

    #[test]
    fn the_last_lines_reach_back_over_gaps_in_time_order() {
        let scratch = Scratch::new();
        scratch.append("daemon.log.7", b"a\nb\n");
        scratch.append("daemon.log.2", b"c\ntorn");
        scratch.append("daemon.log.1", b"");
        scratch.append("daemon.log", b"\nd\r\n\n\r\ne");
        for (lines, wanted) in
            [(0, ""), (1, "e\n"), (2, "d\ne\n"), (3, "torn\nd\ne\n"), (5, "b\nc\ntorn\nd\ne\n")]
        {
            assert_eq!(shown(&scratch, &Query { lines, ..ALL }), wanted);
        }
        assert_eq!(shown(&scratch, &ALL), "a\nb\nc\ntorn\nd\ne\n");
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
        let text = shown(&scratch, &query);
        let ends: Vec<&str> = text.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
        assert_eq!(ends, ["m1", "m3", "panicked"]);
        let since = Line::parse(stored(58, Level::Info).trim_end().as_bytes()).unwrap().ts;
        let text = shown(&scratch, &Query { since: Some(since), ..ALL });
        assert_eq!(text.lines().count(), 2, "{text}");
        let text = shown(&scratch, &Query { since: Some(since + 1), ..ALL });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert_eq!(shown(&scratch, &Query { since: Some(since + 1001), ..ALL }), "");
    }

    #[test]
    fn every_line_as_json_is_one_object() {
        let scratch = Scratch::new();
        let ours = stored(1, Level::Info);
        scratch.append("daemon.log", ours.as_bytes());
        let nearly = ours.replace("}", ",\"k\":nonsense}");
        scratch.append("daemon.log", nearly.as_bytes());
        scratch.append("daemon.log", b"at \"main\"\x1b\xff\n");
        let text = shown(&scratch, &Query { form: Form::Json, ..ALL });
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
    fn a_line_is_cut_one_past_the_limit() {
        for (length, wanted) in
            [(LOG_LINE_BYTES_MAX, ""), (LOG_LINE_BYTES_MAX + 1, "…"), (1 << 20, "…")]
        {
            let scratch = Scratch::new();
            scratch.append("daemon.log", format!("a\n{}\nb\n", "x".repeat(length)).as_bytes());
            let cut = format!("{}{wanted}", "x".repeat(LOG_LINE_BYTES_MAX));
            assert_eq!(shown(&scratch, &Query { lines: 2, ..ALL }), format!("{cut}\nb\n"));
            assert_eq!(shown(&scratch, &ALL), format!("a\n{cut}\nb\n"));
            let json = Query { lines: 2, form: Form::Json, ..ALL };
            let wanted = format!("{{\"level\":\"ERROR\",\"msg\":\"{cut}\"}}");
            assert_eq!(shown(&scratch, &json).lines().next(), Some(wanted.as_str()));
        }
    }

    /// Some lines, not all with an end: of the daemon and of others, some long, some with odd
    /// bytes.
    fn random_part(random: &mut fastrand::Rng) -> Vec<u8> {
        let mut part = Vec::new();
        let typical = *random.choice(&[3, 100, 5_000, 70_000]).unwrap();
        let many = *random.choice(&[1, 5, 300]).unwrap();
        for _ in 0..random.usize(..many) {
            if part.len() > 3 * READ_BYTES {
                break;
            }
            match random.usize(..20) {
                0 => {}
                1 => part.extend_from_slice(b"\0\xff\xfe\xc3"),
                2 => part.extend(std::iter::repeat_n(b'y', random.usize(..2 * READ_BYTES))),
                3..10 => {
                    let level = *random.choice(&Level::ALL).unwrap();
                    part.extend_from_slice(stored(random.u8(..60), level).trim_end().as_bytes());
                }
                _ => part.extend(std::iter::repeat_with(|| random.u8(32..)).take(typical / 2)),
            }
            part.extend_from_slice(random.choice(&[&b"\n"[..], b"\n", b"\r\n"]).unwrap());
        }
        if random.bool() {
            part.pop();
        }
        // Ends at, before and behind a boundary between blocks.
        if random.usize(..4) == 0 && part.len() > READ_BYTES {
            part.truncate(READ_BYTES + 1 - random.usize(..3));
        }
        part
    }

    #[test]
    fn reading_backwards_is_reading_everything_and_taking_the_end() {
        for round in 0..50 {
            let seed = fastrand::u64(..);
            let mut random = fastrand::Rng::with_seed(seed);
            let scratch = Scratch::new();
            let parts: Vec<Vec<u8>> = (0..random.u32(1..4))
                .map(|age| {
                    let part = random_part(&mut random);
                    let path = super::super::name(scratch.path(), age);
                    scratch.append(path.file_name().unwrap().to_str().unwrap(), &part);
                    part
                })
                .collect();
            let least = *random.choice(&Level::ALL).unwrap();
            let mut all: Vec<String> = Vec::new();
            for line in parts.iter().rev().flat_map(|part| part.split(|byte| *byte == b'\n')) {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                let mut out = String::new();
                match Line::parse(line) {
                    _ if line.is_empty() => continue,
                    Some(line) if line.level < least => continue,
                    Some(line) => line.show(Style::Plain, &mut out),
                    None if line.len() > LOG_LINE_BYTES_MAX => {
                        let cut = String::from_utf8_lossy(&line[..LOG_LINE_BYTES_MAX]);
                        out = sanitized(&cut) + "…";
                    }
                    None => out = sanitized(&String::from_utf8_lossy(line)),
                }
                all.push(out);
            }
            for lines in [0, 1, random.usize(..=all.len()), all.len(), all.len() + 1] {
                let wanted = &all[all.len().saturating_sub(lines)..];
                let text = shown(&scratch, &Query { lines, least, ..ALL });
                let same = text.split_terminator('\n').eq(wanted);
                assert!(same, "seed {seed}, round {round}, {lines} lines");
            }
        }
    }
}
