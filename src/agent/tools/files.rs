//! Tools for one file or directory at a time: read, list, write, edit.

use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::os::fd::AsFd;

use nanoserde::DeJson;

use crate::agent::clip::Clip;
use crate::error::reason;
use crate::json::MaybeQuoted;
use crate::limits;
use crate::sys::openat::{self, FileType};
use crate::text::escaped;

use super::walk;
use super::workspace::{FileVersion, ToolContext};

/// A file with a NUL in its first bytes is binary, as for grep and git.
const PROBE_BYTES: usize = 8 * 1024;

/// The arguments of `read_file`.
#[derive(DeJson)]
pub struct ReadFile {
    path: String,
    offset: Option<MaybeQuoted<u64>>,
    limit: Option<MaybeQuoted<u64>>,
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
    /// Returns the requested lines, each after its number.
    pub fn run(&self, context: &ToolContext<'_>) -> Result<String, String> {
        let file = context.workspace()?.file(&self.path)?;
        let path = escaped(&self.path);
        let bytes = file.metadata().map_or(0, |found| found.len());
        let failed = |error: std::io::Error| format!("{path}: {}", reason(&error));
        let mut reader = BufReader::with_capacity(64 * 1024, file.take(limits::READ_BYTES_MAX));
        if is_binary(reader.fill_buf().map_err(failed)?) {
            return Ok(format!("{path} is a binary file of {bytes} bytes"));
        }
        let first = self.offset.map_or(1, |MaybeQuoted(offset)| offset.max(1));
        let last = self
            .limit
            .map_or(u64::MAX, |MaybeQuoted(limit)| first.saturating_add(limit.max(1)) - 1);
        let mut clip = Clip::new(limits::RESULT_BYTES_MAX - 200);
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
                    if at_start {
                        clip.push(format!("{line}\t").as_bytes());
                    }
                    clip.push(piece);
                }
                at_start = piece.ends_with(b"\n");
            }
            reader.consume(used);
        }
        let mut text = clip.text();
        if line > last {
            text.push_str(&format!("[the file goes on; the next offset is {}]", last + 1));
        } else if reader.into_inner().limit() == 0 {
            text.push_str("\n[the file goes on; it is too long to be read further]");
        } else if line == 0 {
            text.push_str("[the file is empty]");
        } else if line < first {
            text.push_str(&format!("[the file has {line} lines]"));
        }
        Ok(text)
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
        let too_many;
        if self.recursive == Some(MaybeQuoted(true)) {
            let end = walk::walk(context, path, |entry| {
                add(&String::from_utf8_lossy(entry.path), entry.kind);
                ControlFlow::Continue(())
            })?;
            too_many = end.too_many_entries;
        } else {
            let directory = context.workspace()?.directory(path)?;
            let entries = openat::entries(directory.as_fd(), limits::DIRECTORY_ENTRIES_MAX + 1);
            let mut entries =
                entries.map_err(|error| format!("{}: {}", escaped(path), reason(&error)))?;
            too_many = entries.len() > limits::DIRECTORY_ENTRIES_MAX;
            entries.sort_unstable_by(|one, other| one.0.cmp(&other.0));
            entries.iter().for_each(|(name, kind)| add(&name.to_string_lossy(), *kind));
        }
        let mut text = clip.text();
        if too_many {
            text.push_str("[there is more than can be listed]");
        } else if text.is_empty() {
            text.push_str("[the directory is empty]");
        }
        Ok(text)
    }
}

impl WriteFile {
    /// Replaces the whole content, or makes the file.
    pub fn run(&self, context: &ToolContext<'_>) -> Result<String, String> {
        let bytes = self.content.as_bytes();
        if bytes.len() as u64 > limits::EDIT_BYTES_MAX {
            return Err(format!("more than {} bytes cannot be written", limits::EDIT_BYTES_MAX));
        }
        let replaced = context.workspace()?.replace(&self.path, bytes, None)?;
        let done = if replaced { "replaced" } else { "created" };
        Ok(format!("{} was {done}: {} bytes", escaped(&self.path), bytes.len()))
    }
}

impl EditFile {
    /// Replaces the only occurrence of the old text.
    pub fn run(&self, context: &ToolContext<'_>) -> Result<String, String> {
        let workspace = context.workspace()?;
        let path = escaped(&self.path);
        if self.old_text.is_empty() {
            return Err("old_text is empty; write_file makes a file".to_owned());
        }
        if self.old_text == self.new_text {
            return Err("old_text and new_text are the same".to_owned());
        }
        let file = workspace.file(&self.path)?;
        let failed = |error: std::io::Error| format!("{path}: {}", reason(&error));
        let version = FileVersion::of(&file).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(limits::EDIT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > limits::EDIT_BYTES_MAX {
            let most = limits::EDIT_BYTES_MAX;
            return Err(format!("{path} is too large to be edited: more than {most} bytes"));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_odd| format!("{path} is not UTF-8 text and cannot be edited"))?;
        let places: Vec<usize> = occurrences(&text, &self.old_text).take(1_000).collect();
        let [at] = *places.as_slice() else {
            return Err(match places.len() {
                0 => format!("old_text does not occur in {path}; read it first"),
                count => format!(
                    "old_text occurs {count} times in {path}, not once; add more of the lines \
                     around it"
                ),
            });
        };
        let new = text.replacen(&self.old_text, &self.new_text, 1);
        workspace.replace(&self.path, new.as_bytes(), Some(version))?;
        let lines_before = text.get(..at).unwrap_or_default().matches('\n').count();
        Ok(format!("{path} was edited at line {}", lines_before + 1))
    }
}

/// Returns where `part` occurs in `text`. Occurrences that overlap count, since it is not clear
/// which one is meant.
fn occurrences<'t>(text: &'t str, part: &'t str) -> impl Iterator<Item = usize> + 't {
    let step = part.chars().next().map_or(1, char::len_utf8);
    let next = move |from: usize| Some(from + text.get(from..)?.find(part)?);
    std::iter::successors(next(0), move |at| next(at + step))
}

/// Returns whether a file that begins with these bytes is binary.
pub fn is_binary(beginning: &[u8]) -> bool {
    beginning.iter().take(PROBE_BYTES).any(|byte| *byte == 0)
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
        assert!(all.starts_with("1\tline 1\n") && all.ends_with("200000\tline 200000\n"));
        let far =
            run(&scratch, "read_file", r#"{"path":"huge","offset":150000,"limit":2}"#).unwrap();
        assert!(far.starts_with("150000\tline 150000\n150001\tline 150001\n["), "{far}");
        scratch.put("wide", &"x".repeat(1 << 20));
        let wide = run(&scratch, "read_file", r#"{"path":"wide"}"#).unwrap();
        assert!(wide.len() <= limits::RESULT_BYTES_MAX && wide.starts_with("1\txxx"));
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
        std::fs::File::create(scratch.path().join("latin"))
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"gr\xfc\xdfe"))
            .unwrap();
        let arguments = r#"{"path":"latin","old_text":"gr","new_text":"x"}"#;
        assert!(run(&scratch, "edit_file", arguments).unwrap_err().contains("not UTF-8"));
    }

    #[test]
    fn writing_reports_whether_it_replaced_a_file() {
        let scratch = Scratch::new();
        let write = |text: &str| run(&scratch, "write_file", text).unwrap();
        assert_eq!(write(r#"{"path":"n/a.txt","content":"é\n"}"#), "n/a.txt was created: 3 bytes");
        assert_eq!(write(r#"{"path":"n/a.txt","content":""}"#), "n/a.txt was replaced: 0 bytes");
    }
}
