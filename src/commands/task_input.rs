//! The text of a task: what was typed, and what is piped into `opta do`, which becomes part of it.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;

use crate::cli::{DoArgs, TaskOutput};
use crate::commands::Output;
use crate::error::{Doing, Error};
use crate::lines::READ_BYTES;
use crate::{limits, sys};

/// A task.
pub struct Task {
    pub text: String,
    /// What was typed, if standard input was added to it.
    pub typed: Option<String>,
    /// Whether standard input was read to its end, so that it cannot answer questions.
    pub took_input: bool,
}

/// Reads the task. Standard input is a part of it, or with `-` all of it. A terminal is read only
/// with `-`, and a device such as `/dev/null` has nothing to add.
pub fn read(args: &DoArgs, output: &Output) -> Result<Task, Error> {
    let input = io::stdin().as_fd().try_clone_to_owned().doing("read standard input")?;
    let input = File::from(input);
    let kind = input.metadata().doing("read standard input")?.file_type();
    let is_piped = kind.is_fifo() || kind.is_socket() || kind.is_file();
    if args.task == "-" {
        let text = text_of(read_all(input)?, "task")?;
        if text.trim().is_empty() {
            return Err(refused("the task is empty"));
        }
        return Ok(Task { text, typed: None, took_input: is_piped });
    }
    let typed = || Task { text: args.task.clone(), typed: None, took_input: false };
    if !is_piped {
        return Ok(typed());
    }
    let is_ready = wait(&input)?;
    let note = |text: &str| {
        if args.output != TaskOutput::Quiet {
            output.note(text);
        }
    };
    if !is_ready && kind.is_socket() {
        note("nothing arrives on standard input; the task is run without it");
        return Ok(typed());
    }
    if !is_ready {
        note("waiting for the end of standard input, a part of the task; without it: </dev/null");
    }
    let text = text_of(read_all(input)?, "input")?;
    if text.is_empty() {
        return Ok(Task { took_input: true, ..typed() });
    }
    let typed = Some(args.task.clone());
    Ok(Task { text: joined(&args.task, &text)?, typed, took_input: true })
}

/// Returns the task with its input, in a block that the input cannot end. CommonMark, 4.5.
fn joined(task: &str, input: &str) -> Result<String, Error> {
    let longest = input.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let end = if input.ends_with('\n') { "" } else { "\n" };
    let text = format!("{task}\n\nStandard input:\n\n{fence}\n{input}{end}{fence}\n");
    let max = limits::TASK_BYTES_MAX;
    match u64::try_from(text.len()).is_ok_and(|length| length > max) {
        true => Err(refused(&format!("the task with its input is longer than {max} bytes"))),
        false => Ok(text),
    }
}

/// Waits a while for the first byte or the end of the input; `false` if there is none yet.
fn wait(input: &File) -> Result<bool, Error> {
    let files = [input.as_fd()];
    let ready = sys::wait_readable(files, Some(limits::INPUT_EXPECTED_WITHIN));
    Ok(ready.doing("read standard input")?.contains(&true))
}

/// Reads to the end, or to the limit and one byte more.
fn read_all(mut input: File) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; READ_BYTES];
    while u64::try_from(bytes.len()).is_ok_and(|length| length <= limits::TASK_BYTES_MAX) {
        match input.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            // Another process made it nonblocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                sys::wait_readable([input.as_fd()], None).doing("read standard input")?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).doing("read standard input"),
        }
    }
    Ok(bytes)
}

fn text_of(bytes: Vec<u8>, what: &str) -> Result<String, Error> {
    let limit = limits::TASK_BYTES_MAX;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > limit) {
        return Err(refused(&format!("the {what} is longer than {limit} bytes")));
    }
    String::from_utf8(bytes).map_err(|bad| {
        let number = bad.utf8_error().valid_up_to() + 1;
        refused(&format!("the {what} is not UTF-8: its byte {number} is not"))
    })
}

fn refused(message: &str) -> Error {
    Error::usage(message, "Usage: opta do - <FILE, or opta do TASK <FILE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_input_ends_its_block() {
        let text = joined("explain", "a\n```\nb").unwrap();
        assert_eq!(text, "explain\n\nStandard input:\n\n````\na\n```\nb\n````\n");
        assert!(joined("x", "a\n").unwrap().ends_with("\n```\na\n```\n"));
    }

    #[test]
    fn a_task_with_its_input_has_the_limit_of_a_task() {
        let max = usize::try_from(limits::TASK_BYTES_MAX).unwrap();
        let room = max - joined("x", "\n").unwrap().len();
        assert_eq!(joined("x", &("i".repeat(room) + "\n")).unwrap().len(), max);
        let error = joined("x", &("i".repeat(room + 1) + "\n")).unwrap_err();
        assert_eq!(error.to_string(), "the task with its input is longer than 3145728 bytes");
    }
}
