//! What became of a tool call or a turn, in a few words. Pure.

use std::time::Duration;

use crate::protocol::event::{ToolEnd, TurnStats};
use crate::text::{escaped, truncated};
use crate::{agent, clock, limits};

/// Returns the call on one line: the tool and what it is about.
pub fn call(name: &str, args: &str) -> String {
    let shown = agent::preview(name, args);
    let subject = shown.map_or_else(|| args.to_owned(), |(subject, _)| subject);
    let line = escaped(&format!("{name} {subject}"));
    truncated(&line, limits::CALL_CHARS_MAX).into_owned()
}

/// Returns what became of a call, and the last lines of a command's output.
pub fn outcome(name: &str, args: &str, end: &ToolEnd) -> (String, Vec<String>) {
    let result = end.result.as_str();
    if let Some(reason) = result.strip_prefix("error: permission denied: ") {
        return (denial(reason), Vec::new());
    }
    if let Some((output, status)) = exit_of(result) {
        let lines: Vec<&str> = output.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines.get(lines.len().saturating_sub(limits::OUTPUT_LINES_SHOWN)..);
        let last = last.unwrap_or_default().iter();
        let last = last.map(|line| truncated(&escaped(line), limits::CALL_CHARS_MAX).into_owned());
        return (format!("{status}, {}", duration(end)), last.collect());
    }
    if !end.success {
        let reason = result.strip_prefix("error: ").unwrap_or(result);
        let reason = reason.lines().next().unwrap_or_default();
        let reason = escaped(reason);
        return (format!("failed: {}", truncated(&reason, limits::CALL_CHARS_MAX)), Vec::new());
    }
    let change = agent::preview(name, args).map_or_else(Vec::new, |(_, change)| change);
    let count = |mark: char| change.iter().filter(|line| line.starts_with(mark)).count();
    let text = match (change.is_empty(), count('-').max(count('+'))) {
        (true, _) if end.duration_ms < 1_000 => String::new(),
        (true, _) => duration(end),
        (false, 1) => "1 line changed".to_owned(),
        (false, lines) => format!("{lines} lines changed"),
    };
    // A new file has only lines that were added.
    let is_new = !change.is_empty() && result.contains(" was created");
    (if is_new { text.replace("changed", "written") } else { text }, Vec::new())
}

/// Returns how to allow a call that was denied because there was nobody to ask.
pub fn remedy(end: &ToolEnd) -> Option<&'static str> {
    let reason = end.result.strip_prefix("error: permission denied: ")?;
    if !reason.contains("nobody is there to be asked") {
        return None;
    }
    Some(match agent::runs_commands(&end.name) {
        true => {
            "a command was denied, because nobody could be asked; \
             to allow some: 'permissions' in config.json, to allow all: opta do --yolo"
        }
        false => {
            "a change was denied, because nobody could be asked; \
             to allow changes to files: opta do --auto"
        }
    })
}

/// Returns what a turn took, on one line.
pub fn statistics(stats: &TurnStats) -> String {
    let TurnStats { prompt_tokens, completion_tokens, speed, elapsed, .. } = stats;
    let speed = if *speed > 0.0 { format!(", {speed:.0} tokens/s") } else { String::new() };
    let context = stats.context_tokens.zip(stats.context_size).filter(|(_, size)| *size > 0);
    let context = context.map(|(used, size)| {
        format!(", {}% of the context used", used.saturating_mul(100).div_ceil(size))
    });
    let (seconds, context) = (elapsed / 1_000, context.unwrap_or_default());
    let tokens = match prompt_tokens {
        // The server does not count them.
        0 => format!("{completion_tokens} tokens out"),
        _ => format!("{prompt_tokens} tokens in, {completion_tokens} out"),
    };
    format!("{tokens}{speed}, {seconds} s{context}")
}

fn denial(reason: &str) -> String {
    match reason.contains("has not allowed") {
        true => "denied".to_owned(),
        false => format!("denied: {}", escaped(reason.split(';').next().unwrap_or(reason))),
    }
}

/// Splits the result of a command into its output and its end, in the words of its last line.
fn exit_of(result: &str) -> Option<(&str, String)> {
    let (output, last) = result.trim_end().rsplit_once('\n').unwrap_or(("", result.trim_end()));
    let last = last.strip_prefix('[')?.strip_suffix(']')?;
    let status = match last.strip_prefix("exit code: ") {
        Some(code) => format!("exit {code}"),
        None if last.starts_with("ended by signal") => last.to_owned(),
        None => return None,
    };
    Some((output, status))
}

fn duration(end: &ToolEnd) -> String {
    match end.duration_ms {
        millis @ ..10_000 => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        millis => clock::format_duration(Duration::from_millis(millis)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_tell_the_context_where_its_size_is_known() {
        let mut stats = TurnStats { elapsed: 2_900, speed: 12.5, ..TurnStats::default() };
        stats.add_tokens(1_000, 10);
        stats.add_tokens(1_100, 20);
        assert_eq!(statistics(&stats), "2100 tokens in, 30 out, 12 tokens/s, 2 s");
        stats.context_size = Some(4_096);
        let told = "2100 tokens in, 30 out, 12 tokens/s, 2 s, 28% of the context used";
        assert_eq!(statistics(&stats), told);
        stats.add_tokens(0, 5);
        assert!(!statistics(&stats).contains("context"));
        stats.prompt_tokens = 0;
        assert_eq!(statistics(&stats), "35 tokens out, 12 tokens/s, 2 s");
    }

    #[test]
    fn an_outcome_says_what_became_of_a_call() {
        let write = r#"{"path":"a","content":"x\ny\n"}"#;
        let edit = r#"{"path":"a","old_text":"x","new_text":"y"}"#;
        let run = r#"{"command":"make"}"#;
        let denied = "error: permission denied: the user has not allowed this call";
        let forbidden = "error: permission denied: the user's settings forbid this tool";
        for (name, args, result, success, expected) in [
            ("read_file", r#"{"path":"a"}"#, "text", true, ""),
            ("write_file", write, "a was created: 4 bytes", true, "2 lines written"),
            ("write_file", write, "a was replaced: 4 bytes", true, "2 lines changed"),
            ("edit_file", edit, "a was edited at line 1", true, "1 line changed"),
            ("edit_file", edit, denied, false, "denied"),
            ("edit_file", edit, forbidden, false, "denied: the user's settings forbid this tool"),
            ("list_dir", "{}", "error: no such\ndirectory", false, "failed: no such"),
            ("run_command", run, "a\nb\n[exit code: 2]", false, "exit 2, 1.4 s"),
            ("run_command", run, "[exit code: 0]", true, "exit 0, 1.4 s"),
        ] {
            let mut end = ToolEnd::new("t", "c", name, result, 900, success);
            if name == "run_command" {
                end.duration_ms = 1_450;
            }
            assert_eq!(outcome(name, args, &end).0, expected, "{result}");
        }
        let end =
            ToolEnd::new("t", "c", "run_command", "a\n\nb\nc\u{1b}\nd\n[exit code: 0]", 1, true);
        assert_eq!(outcome("run_command", run, &end).1, ["b", "c\\u{1b}", "d"]);
    }
}
