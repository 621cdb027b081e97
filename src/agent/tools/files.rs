//! Tools for one file or directory at a time: read, list, write, edit.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::{ControlFlow, Range};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nanoserde::DeJson;

use crate::agent::clip::Clip;
use crate::disk::FileVersion;
use crate::error::reason;
use crate::json::MaybeQuoted;
use crate::limits;
use crate::sys::openat::{self, FileType};
use crate::text::escaped;

use super::file_text::{self, describe_other, is_binary};
use super::replace::Expected;
use super::seen::Knowledge;
use super::walk;
use super::workspace::ToolContext;

/// The arguments of `read_file`.
#[derive(DeJson)]
pub struct ReadFile {
    path: String,
    offset: Option<MaybeQuoted<u64>>,
    limit: Option<MaybeQuoted<u64>>,
    byte_offset: Option<MaybeQuoted<u64>>,
}

/// The arguments of `list_dir`.
#[derive(DeJson)]
pub struct ListDir {
    path: Option<String>,
    recursive: Option<MaybeQuoted<bool>>,
}

/// The arguments of `write_file`.
#[derive(DeJson)]
pub struct WriteFile {
    path: String,
    content: String,
}

/// The arguments of `edit_file`.
#[derive(DeJson)]
pub struct EditFile {
    path: String,
    old_text: String,
    new_text: String,
}

impl ReadFile {
    /// Returns the requested lines, each after its number, or the requested bytes.
    pub fn run(&self, context: &ToolContext<'_>) -> Result<String, String> {
        let path = escaped(&self.path);
        let file = OpenFile::open(context, &self.path)?;
        let bytes = file.version.length;
        if let Some(other) = describe_other(&file.content).filter(|_| is_binary(&file.content)) {
            return Ok(format!("{path} is {other} of {bytes} bytes"));
        }
        let note = match describe_other(&file.content) {
            Some(other) => format!(
                "\n[{path} is {other}: what is not UTF-8 is shown as \u{fffd}, and it cannot be \
                 written or edited]"
            ),
            None => String::new(),
        };
        let (text, part) = match self.byte_offset {
            Some(MaybeQuoted(start)) => file.bytes_from(start)?,
            None => self.lines(&file, context)?,
        };
        context.seen.record(&file.path, file.version, file.whole(), part);
        Ok(text + &note)
    }

    /// Returns the lines, and which bytes of the file are in them from the first one on.
    fn lines(
        &self,
        file: &OpenFile,
        context: &ToolContext<'_>,
    ) -> Result<(String, Range<u64>), String> {
        let first = self.offset.map_or(1, |MaybeQuoted(offset)| offset.max(1));
        let last = self
            .limit
            .map_or(u64::MAX, |MaybeQuoted(limit)| first.saturating_add(limit.max(1)) - 1);
        let failed = |error: io::Error| format!("{}: {}", escaped(&self.path), reason(&error));
        let mut reader = file.reader(limits::READ_BYTES_MAX);
        let mut clip = Clip::new(limits::RESULT_BYTES_MAX - 300);
        // Where the first of the lines is, and the first byte that is left out, if one is.
        let (mut place, mut begin, mut left_out) = (0_u64, None, None);
        let (mut line, mut at_start) = (0_u64, true);
        while line <= last {
            context.check()?;
            let chunk = reader.fill_buf().map_err(failed)?;
            if chunk.is_empty() {
                break;
            }
            let used = chunk.len();
            for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
                line += u64::from(at_start);
                if line > last {
                    break;
                }
                if line >= first {
                    begin = begin.or(Some(place));
                    if at_start {
                        clip.push(format!("{line}\t").as_bytes());
                    }
                    let room = clip.room();
                    if room < piece.len() {
                        left_out = left_out.or(Some(place + room as u64));
                    }
                    clip.push(piece);
                }
                at_start = piece.ends_with(b"\n");
                place += piece.len() as u64;
            }
            reader.consume(used);
        }
        let at_limit = place >= limits::READ_BYTES_MAX;
        let is_clipped = clip.is_clipped();
        let mut text = clip.text();
        left_out = left_out.filter(|_| is_clipped);
        if let Some(place) = left_out {
            text.push_str(&format!("\n[what is left out begins at byte_offset {place}]"));
        }
        if line > last {
            text.push_str(&format!("[the file goes on; the next offset is {}]", last + 1));
        } else if at_limit {
            text.push_str(&format!("\n[the file goes on at byte_offset {place}]"));
        } else if line == 0 {
            text.push_str("[the file is empty]");
        } else if line < first {
            text.push_str(&format!("[the file has {line} lines]"));
        }
        Ok((text, begin.unwrap_or(place)..left_out.unwrap_or(place)))
    }
}

/// A file that was opened for a tool, and its beginning.
struct OpenFile {
    file: File,
    /// As the model calls it.
    given: String,
    /// Without links.
    path: PathBuf,
    version: FileVersion,
    /// The whole content, unless it is longer than [`limits::EDIT_BYTES_MAX`].
    content: Vec<u8>,
    is_whole: bool,
}

impl OpenFile {
    fn open(context: &ToolContext<'_>, given: &str) -> Result<OpenFile, String> {
        let workspace = context.workspace()?;
        let file = workspace.file(given)?;
        let failed = |error: io::Error| format!("{}: {}", escaped(given), reason(&error));
        let path = workspace.path_of(file.as_fd(), &workspace.relative(given)?).map_err(failed)?;
        let version = FileVersion::of(&file.metadata().map_err(failed)?);
        let mut content = Vec::new();
        let mut reader = (&file).take(limits::EDIT_BYTES_MAX + 1);
        reader.read_to_end(&mut content).map_err(failed)?;
        let is_whole = content.len() as u64 <= limits::EDIT_BYTES_MAX;
        Ok(OpenFile { file, given: given.to_owned(), path, version, content, is_whole })
    }

    /// Returns the whole content, unless it is too long.
    fn whole(&self) -> Option<&[u8]> {
        self.is_whole.then_some(self.content.as_slice())
    }

    fn knowledge(&self, context: &ToolContext<'_>) -> Knowledge {
        context.seen.knowledge(&self.path, self.version, self.whole())
    }

    /// Returns the text, if it can be replaced: `action` says what would be done.
    fn text(&self, action: &str) -> Result<&str, String> {
        let path = escaped(&self.given);
        if !self.is_whole {
            let most = limits::EDIT_BYTES_MAX;
            return Err(format!("{path} is too large to be {action}: more than {most} bytes"));
        }
        let text = std::str::from_utf8(&self.content).ok().filter(|text| !text.contains('\0'));
        text.ok_or_else(|| {
            let other = describe_other(&self.content).unwrap_or("not UTF-8 text");
            format!("{path} is {other} and cannot be {action}")
        })
    }

    fn reader(&self, bytes_max: u64) -> impl BufRead {
        let rest = (&self.file).take(bytes_max.saturating_sub(self.content.len() as u64));
        BufReader::with_capacity(64 * 1024, self.content.chain(rest))
    }

    /// Returns the text from a byte on, without a part of a character at either end, and which
    /// bytes it has.
    fn bytes_from(&self, start: u64) -> Result<(String, Range<u64>), String> {
        if start > self.version.length {
            return Ok((format!("[the file has {} bytes]", self.version.length), 0..0));
        }
        let failed = |error: io::Error| format!("{}: {}", escaped(&self.given), reason(&error));
        let mut bytes = vec![0; limits::RESULT_BYTES_MAX - 300];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, start + filled as u64).map_err(failed)? {
                0 => break,
                count => filled += count,
            }
        }
        bytes.truncate(filled);
        let end = start + filled as u64;
        // The next part begins with the character that is cut off.
        let cut = match std::str::from_utf8(&bytes) {
            Err(error) if error.error_len().is_none() && end < self.version.length => {
                filled - error.valid_up_to()
            }
            _ => 0,
        };
        bytes.truncate(filled - cut);
        let is_inside = |byte: &&u8| **byte & 0b1100_0000 == 0b1000_0000;
        let skipped = bytes.iter().take(3).take_while(is_inside).count();
        let text = String::from_utf8_lossy(bytes.get(skipped..).unwrap_or_default());
        let end = end - cut as u64;
        let text = match end < self.version.length {
            true => format!("{text}\n[the file goes on; the next byte_offset is {end}]"),
            false => text.into_owned(),
        };
        Ok((text, start..end))
    }
}

impl ListDir {
    /// Returns the names, one per line: `/` follows a directory, `@` a link.
    pub fn run(&self, context: &ToolContext<'_>) -> Result<String, String> {
        let path = self.path.as_deref().filter(|path| !path.is_empty()).unwrap_or(".");
        let mut clip = Clip::new(limits::RESULT_BYTES_MAX - 200);
        let mut add = |name: &str, kind: FileType| {
            clip.push(escaped(name).as_bytes());
            clip.push(match kind {
                FileType::Directory => b"/\n",
                FileType::Link => b"@\n",
                FileType::File | FileType::Other => b"\n",
            });
        };
        let is_incomplete;
        if self.recursive == Some(MaybeQuoted(true)) {
            let end = walk::walk(context, path, &mut |entry| {
                add(&String::from_utf8_lossy(entry.path), entry.kind);
                ControlFlow::Continue(())
            })?;
            is_incomplete = end.is_incomplete;
        } else {
            let directory = context.workspace()?.directory(path)?;
            let entries = openat::entries(directory.as_fd(), limits::DIRECTORY_ENTRIES_MAX + 1);
            let mut entries =
                entries.map_err(|error| format!("{}: {}", escaped(path), reason(&error)))?;
            is_incomplete = entries.len() > limits::DIRECTORY_ENTRIES_MAX;
            entries.sort_unstable_by(|one, other| one.0.cmp(&other.0));
            entries.iter().for_each(|(name, kind)| add(&name.to_string_lossy(), *kind));
        }
        let mut text = clip.text();
        if is_incomplete {
            text.push_str("[there is more than can be listed]");
        } else if text.is_empty() {
            text.push_str("[the directory is empty]");
        }
        Ok(text)
    }
}

impl WriteFile {
    /// Replaces the whole content of a file that the model has seen, or creates the file.
    pub fn run(&self, context: &ToolContext<'_>) -> Result<String, String> {
        let path = escaped(&self.path);
        if self.content.len() as u64 > limits::EDIT_BYTES_MAX {
            return Err(format!("more than {} bytes cannot be written", limits::EDIT_BYTES_MAX));
        }
        let workspace = context.workspace()?;
        let exists = workspace.entry(&self.path)?.is_some();
        let old = exists.then(|| OpenFile::open(context, &self.path)).transpose()?;
        let (content, expected) = match &old {
            None => (self.content.clone(), Expected::Nothing),
            Some(old) => {
                match old.knowledge(context) {
                    // There is nothing to lose.
                    _ if old.version.length == 0 => {}
                    Knowledge::Current => {}
                    Knowledge::Part(_) => {
                        return Err(format!(
                            "{path} exists, and you have read only a part of it: read the rest \
                             first, or use edit_file"
                        ));
                    }
                    Knowledge::Outdated => return Err(changed_since(&path)),
                    Knowledge::Unknown => {
                        return Err(format!(
                            "{path} exists, and you have not read it: read it first"
                        ));
                    }
                }
                let content = file_text::rewrite(old.text("written")?, &self.content);
                (content, Expected::File(old.version))
            }
        };
        let bytes = content.as_bytes();
        let written = workspace.replace(&self.path, bytes, expected, context.umask)?;
        let all = 0..bytes.len() as u64;
        context.seen.record(&written.path, written.version, Some(bytes), all);
        let done = if old.is_some() { "replaced" } else { "created" };
        Ok(format!("{path} was {done}: {} bytes", bytes.len()))
    }
}

impl EditFile {
    /// Replaces the only occurrence of the old text.
    pub fn run(&self, context: &ToolContext<'_>) -> Result<String, String> {
        let path = escaped(&self.path);
        if self.old_text.is_empty() {
            return Err("old_text is empty; write_file makes a file".to_owned());
        }
        if file_text::is_same(&self.old_text, &self.new_text) {
            return Err("old_text and new_text are the same".to_owned());
        }
        let file = OpenFile::open(context, &self.path)?;
        let knowledge = file.knowledge(context);
        if knowledge == Knowledge::Outdated {
            return Err(changed_since(&path));
        }
        let edited = file_text::edit(file.text("edited")?, &self.old_text, &self.new_text);
        let (new, line) = edited.map_err(|count| match count {
            0 => format!("old_text does not occur in {path}; read it first"),
            count => format!(
                "old_text occurs {count} times in {path}, not once; add more of the lines around it"
            ),
        })?;
        let (bytes, expected) = (new.as_bytes(), Expected::File(file.version));
        let written = context.workspace()?.replace(&self.path, bytes, expected, context.umask)?;
        let done = format!("{path} was edited at line {line}");
        let seen = match knowledge {
            Knowledge::Current => bytes.len() as u64,
            // Up to the change.
            Knowledge::Part(seen) => {
                let same = file.content.iter().zip(bytes).take_while(|(old, new)| old == new);
                seen.min(same.count() as u64)
            }
            // It still knows only the text that it quoted.
            Knowledge::Unknown | Knowledge::Outdated => return Ok(done),
        };
        context.seen.record(&written.path, written.version, Some(bytes), 0..seen);
        Ok(done)
    }
}

fn changed_since(path: &str) -> String {
    format!("{path} has changed since you read it: read it again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::scratch::Scratch;
    use crate::json;
    use std::os::unix::fs::symlink;

    fn run(scratch: &Scratch, tool: &str, arguments: &str) -> Result<String, String> {
        scratch.run(tool, arguments)
    }

    #[test]
    fn lines_are_numbered_from_one() {
        let scratch = Scratch::new();
        scratch.put("a", "one\ntwo\r\nthree");
        assert_eq!(
            run(&scratch, "read_file", r#"{"path":"a"}"#).unwrap(),
            "1\tone\n2\ttwo\r\n3\tthree"
        );
        let part = run(&scratch, "read_file", r#"{"path":"a","offset":2,"limit":1}"#).unwrap();
        assert_eq!(part, "2\ttwo\r\n[the file goes on; the next offset is 3]");
        let last = run(&scratch, "read_file", r#"{"path":"a","offset":3,"limit":1}"#).unwrap();
        assert_eq!(last, "3\tthree");
        let past = run(&scratch, "read_file", r#"{"path":"a","offset":9}"#).unwrap();
        assert_eq!(past, "[the file has 3 lines]");
        let zero = run(&scratch, "read_file", r#"{"path":"a","offset":0,"limit":0}"#).unwrap();
        assert_eq!(zero, "1\tone\n[the file goes on; the next offset is 2]");
        scratch.put("empty", "");
        assert_eq!(
            run(&scratch, "read_file", r#"{"path":"empty"}"#).unwrap(),
            "[the file is empty]"
        );
    }

    #[test]
    fn a_huge_file_is_clipped_and_any_of_its_lines_can_be_read() {
        let scratch = Scratch::new();
        let lines: String = (1..=200_000).map(|n| format!("line {n}\n")).collect();
        scratch.put("huge", &lines);
        let all = run(&scratch, "read_file", r#"{"path":"huge"}"#).unwrap();
        assert!(all.len() <= limits::RESULT_BYTES_MAX, "{}", all.len());
        assert!(all.starts_with("1\tline 1\n") && all.contains("200000\tline 200000\n\n["));
        let far =
            run(&scratch, "read_file", r#"{"path":"huge","offset":150000,"limit":2}"#).unwrap();
        assert!(far.starts_with("150000\tline 150000\n150001\tline 150001\n["), "{far}");
    }

    #[test]
    fn a_long_line_can_be_read_in_parts() {
        let scratch = Scratch::new();
        let line: String = (0..600_000).map(|n| format!("{n}é")).collect();
        scratch.put("wide", &line);
        let read = |arguments: &str| {
            let text =
                run(&scratch, "read_file", &format!(r#"{{"path":"wide"{arguments}}}"#)).unwrap();
            assert!(text.len() <= limits::RESULT_BYTES_MAX, "{}", text.len());
            text
        };
        let first = read("");
        let (head, next) = first.rsplit_once("[what is left out begins at byte_offset ").unwrap();
        let mut at: usize = next.trim_end_matches(']').parse().unwrap();
        let mut text = head.split("\n[… ").next().unwrap().strip_prefix("1\t").unwrap().to_owned();
        assert!(text.len() <= at && at - text.len() < 4);
        at = text.len();
        while let Some((part, next)) = read(&format!(r#","byte_offset":{at}"#))
            .split_once("\n[the file goes on; the next byte_offset is ")
        {
            text.push_str(part);
            at = next.trim_end_matches(']').parse().unwrap();
            assert_eq!(text.len(), at);
        }
        text.push_str(&read(&format!(r#","byte_offset":{at}"#)));
        assert!(text == line, "{} bytes of {}", text.len(), line.len());
        let past = read(r#","byte_offset":99999999"#);
        assert_eq!(past, format!("[the file has {} bytes]", line.len()));
    }

    #[test]
    fn anything_but_a_text_file_is_named_for_what_it_is() {
        let scratch = Scratch::new();
        scratch.put("picture", "PNG\0\0\0");
        let result = run(&scratch, "read_file", r#"{"path":"picture"}"#).unwrap();
        assert_eq!(result, "picture is a binary file of 6 bytes");
        scratch.put("dir/x", "");
        assert_eq!(
            run(&scratch, "read_file", r#"{"path":"dir"}"#).unwrap_err(),
            "dir is a directory"
        );
        let pipe = std::process::Command::new("mkfifo").arg(scratch.path().join("pipe")).status();
        assert!(pipe.unwrap().success());
        let result = run(&scratch, "read_file", r#"{"path":"pipe"}"#).unwrap_err();
        assert_eq!(result, "pipe is not a regular file");
        assert_eq!(
            run(&scratch, "read_file", r#"{"path":"none"}"#).unwrap_err(),
            "there is no none"
        );
    }

    #[test]
    fn a_directory_is_listed_with_kinds_and_one_name_per_line() {
        let scratch = Scratch::new();
        scratch.put("b/c", "");
        scratch.put("a\nb", "");
        scratch.put("\u{1b}[31m", "");
        symlink("b", scratch.path().join("l")).unwrap();
        let listed = run(&scratch, "list_dir", "{}").unwrap();
        assert_eq!(listed, "\\u{1b}[31m\na\\nb\nb/\nl@\n");
        let deep = run(&scratch, "list_dir", r#"{"path":".","recursive":true}"#).unwrap();
        assert!(deep.contains("b/\nb/c\n"), "{deep}");
        scratch.put("e/x", "");
        std::fs::remove_file(scratch.path().join("e/x")).unwrap();
        assert_eq!(
            run(&scratch, "list_dir", r#"{"path":"e"}"#).unwrap(),
            "[the directory is empty]"
        );
        assert!(run(&scratch, "list_dir", r#"{"path":"l/../.."}"#).is_err());
    }

    #[test]
    fn an_edit_needs_exactly_one_occurrence() {
        let scratch = Scratch::new();
        scratch.put("a", "one two\ntwo aaa\n");
        let edit = |old: &str, new: &str| {
            let arguments = |text: &str| json::text(&text.to_owned());
            let (old, new) = (arguments(old), arguments(new));
            let text = format!(r#"{{"path":"a","old_text":{old},"new_text":{new}}}"#);
            run(&scratch, "edit_file", &text)
        };
        assert!(edit("two", "x").unwrap_err().contains("occurs 2 times"));
        assert!(edit("aa", "x").unwrap_err().contains("occurs 2 times"));
        assert!(edit("three", "x").unwrap_err().contains("does not occur"));
        assert!(edit("", "x").is_err() && edit("one", "one").is_err());
        assert_eq!(scratch.read("a"), "one two\ntwo aaa\n");
        assert_eq!(edit("two\ntwo", "2\n\n2").unwrap(), "a was edited at line 1");
        assert_eq!(scratch.read("a"), "one 2\n\n2 aaa\n");
        scratch.put("latin", "");
        File::create(scratch.path().join("latin"))
            .and_then(|mut file| io::Write::write_all(&mut file, b"gr\xfc\xdfe"))
            .unwrap();
        let arguments = r#"{"path":"latin","old_text":"gr","new_text":"x"}"#;
        assert!(run(&scratch, "edit_file", arguments).unwrap_err().contains("than UTF-8"));
    }

    #[test]
    fn writing_reports_whether_it_replaced_a_file() {
        let scratch = Scratch::new();
        let write = |text: &str| run(&scratch, "write_file", text).unwrap();
        assert_eq!(write(r#"{"path":"n/a.txt","content":"é\n"}"#), "n/a.txt was created: 3 bytes");
        assert_eq!(write(r#"{"path":"n/a.txt","content":""}"#), "n/a.txt was replaced: 0 bytes");
    }

    #[test]
    fn what_changed_since_it_was_read_is_not_overwritten() {
        let scratch = Scratch::new();
        let do_it = |tool: &str, arguments: &str| run(&scratch, tool, arguments);
        let write = r#"{"path":"a","content":"mine\n"}"#;
        let edit = r#"{"path":"a","old_text":"o","new_text":"0"}"#;
        scratch.put("a", "one\n");
        let unread = do_it("write_file", write).unwrap_err();
        assert_eq!(unread, "a exists, and you have not read it: read it first");
        do_it("read_file", r#"{"path":"a"}"#).unwrap();
        // Of the same size, and possibly at the same time.
        scratch.put("a", "two\n");
        for (tool, arguments) in [("write_file", write), ("edit_file", edit)] {
            let refused = do_it(tool, arguments).unwrap_err();
            assert_eq!(refused, "a has changed since you read it: read it again");
        }
        assert_eq!(scratch.read("a"), "two\n");
        do_it("read_file", r#"{"path":"./a"}"#).unwrap();
        // Written again with the same content.
        scratch.put("a", "two\n");
        do_it("edit_file", edit).unwrap();
        assert_eq!(scratch.read("a"), "tw0\n");
        // What it wrote itself is known, and what it edits without reading is at least quoted: the
        // rest of that file is still unknown.
        do_it("write_file", write).unwrap();
        do_it("write_file", r#"{"path":"a","content":"one\n"}"#).unwrap();
        scratch.put("b", "one\ntwo\n");
        for (old, new) in [("one", "1"), ("1", "one")] {
            let edit = format!(r#"{{"path":"b","old_text":"{old}","new_text":"{new}"}}"#);
            do_it("edit_file", &edit).unwrap();
        }
        let unread = do_it("write_file", r#"{"path":"b","content":"one\n"}"#).unwrap_err();
        assert_eq!(unread, "b exists, and you have not read it: read it first");
        scratch.put("empty", "");
        do_it("write_file", r#"{"path":"empty","content":"x"}"#).unwrap();
    }

    #[test]
    fn a_file_is_overwritten_only_if_all_parts_of_it_were_read() {
        let scratch = Scratch::new();
        let part = |part: &str| {
            let arguments = format!("{{\"path\":\"a\",{part}}}");
            run(&scratch, "read_file", &arguments).unwrap()
        };
        let write = || {
            let written = run(&scratch, "write_file", r#"{"path":"a","content":"mine\n"}"#);
            written.map_err(|error| assert!(error.contains("only a part"), "{error}")).is_ok()
        };
        let all: String = (1..=1000).map(|line| format!("line {line}\n")).collect();
        scratch.put("a", &all);
        part(r#""offset":501"#);
        assert!(!write());
        part(r#""offset":2000"#);
        part(r#""limit":499"#);
        assert!(!write());
        part(r#""offset":500,"limit":1"#);
        assert!(write());
        // Up to a change, the parts are still known.
        scratch.put("a", &all);
        part(r#""limit":10"#);
        run(&scratch, "edit_file", r#"{"path":"a","old_text":"ne 8\n","new_text":"n"}"#).unwrap();
        part(r#""offset":9"#);
        assert!(!write());
        part(r#""offset":8"#);
        assert!(write());
        // What is left out of a long result was not read.
        scratch.put("a", &all.repeat(10));
        part(r#""offset":1"#);
        assert!(!write());
        let mut offset = 0;
        while offset < all.len() * 10 {
            assert!(!write());
            let text = part(&format!("\"byte_offset\":{offset}"));
            let next = text.rsplit_once("the next byte_offset is ");
            offset =
                next.map_or(usize::MAX, |(_, next)| next.trim_end_matches(']').parse().unwrap());
        }
        assert!(write());
    }

    #[test]
    fn files_keep_their_line_ends_and_other_encodings_are_left_alone() {
        let scratch = Scratch::new();
        let do_it = |tool: &str, arguments: &str| run(&scratch, tool, arguments);
        scratch.put("dos", "one\r\ntwo\r\n");
        do_it("edit_file", r#"{"path":"dos","old_text":"one\ntwo\n","new_text":"1\n2\n3\n"}"#)
            .unwrap();
        assert_eq!(scratch.read("dos"), "1\r\n2\r\n3\r\n");
        do_it("read_file", r#"{"path":"dos"}"#).unwrap();
        do_it("write_file", r#"{"path":"dos","content":"x\ny\n"}"#).unwrap();
        assert_eq!(scratch.read("dos"), "x\r\ny\r\n");
        let latin = scratch.path().join("latin");
        File::create(&latin)
            .and_then(|mut file| io::Write::write_all(&mut file, b"caf\xe9\n"))
            .unwrap();
        let shown = do_it("read_file", r#"{"path":"latin"}"#).unwrap();
        assert!(
            shown.starts_with("1\tcaf\u{fffd}\n\n[latin is text in another encoding"),
            "{shown}"
        );
        let refused = do_it("write_file", r#"{"path":"latin","content":"cafe\n"}"#).unwrap_err();
        assert!(refused.ends_with("such as Latin-1 and cannot be written"), "{refused}");
        assert_eq!(std::fs::read(&latin).unwrap(), b"caf\xe9\n");
    }
}
