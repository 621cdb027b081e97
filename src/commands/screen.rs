//! Prints a turn: the answer to standard output as it arrives, a line per tool call to standard
//! error, and on a terminal what the turn is waiting for.
//!
//! The answer is printed byte for byte, except to a terminal, where control characters are escaped.

use std::collections::HashSet;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nanoserde::SerJson;

use crate::cli::TaskOutput;
use crate::commands::interruptible_writer::{InterruptibleWriter, WriteDeadline};
use crate::commands::markdown::Markdown;
use crate::commands::tool_report;
use crate::error::{Doing, Error};
use crate::protocol::event::{ToolEnd, ToolStart, TurnNotice, TurnStats};
use crate::sys::signal::Interrupts;
use crate::sys::terminal;
use crate::text::{Style, escaped, escaped_json, fitting, sanitized, wrapped};
use crate::{config, limits};

/// What moves while a turn is waiting.
const SPINNER: [&str; 8] = ["⠋", "⠙", "⠸", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// A tool call, as `opta do --json` reports it.
#[derive(Clone, SerJson)]
pub struct ToolLine {
    pub id: String,
    pub name: String,
    /// JSON, as the model wrote it.
    pub args: String,
    #[nserde(rename = "durationMs")]
    pub duration_ms: Option<u64>,
    pub success: Option<bool>,
}

/// The output of a turn: where it is printed, and what was printed so far.
pub struct Screen {
    output: TaskOutput,
    stdout: InterruptibleWriter,
    stderr: InterruptibleWriter,
    deadline: WriteDeadline,
    stdout_is_terminal: bool,
    /// Both standard output and standard error are terminals.
    has_progress: bool,
    /// Of standard error.
    style: Style,
    stdout_style: Style,
    /// The whole answer so far.
    pub answer: String,
    pub tool_calls: Vec<ToolLine>,
    /// The answer so far ends within a line.
    mid_line: bool,
    /// The answer so far ends with a carriage return, which is not printed to a terminal before
    /// the next character is known.
    pending_return: bool,
    /// The time since which the turn has produced nothing; `None` if that is not shown.
    waiting_since: Option<Instant>,
    /// Whether it has produced text before, which the progress must not interrupt.
    after_text: bool,
    /// When the request to the model is sent again, if the turn waits for that.
    retry_at: Option<Instant>,
    /// The width of the progress message on the screen.
    progress_width: usize,
    /// Whether that is below the line with the text.
    progress_below: bool,
    thinking: bool,
    /// The notices so far: each is printed once.
    notices: HashSet<String>,
    running_tools: usize,
    /// The result of the last tool call that ended.
    last_result: Option<String>,
    /// Whether to print what each turn took.
    pub shows_statistics: bool,
    markdown: Markdown,
    /// When the first token of an answer and the last one arrived, and how many after the first.
    tokens: Option<(Instant, Instant, u32)>,
}

impl Screen {
    /// Duplicates the descriptors of standard output and standard error.
    pub fn new(output: TaskOutput, interrupts: &Rc<Interrupts>) -> Result<Screen, Error> {
        let (stdout_is_terminal, stderr_is_terminal) =
            (io::stdout().is_terminal(), io::stderr().is_terminal());
        let stdout = io::stdout().as_fd().try_clone_to_owned().doing("use standard output")?;
        let stderr = io::stderr().as_fd().try_clone_to_owned().doing("use standard error")?;
        let deadline = WriteDeadline::default();
        let stdout = InterruptibleWriter::new(stdout, interrupts, &deadline);
        let mut stderr = InterruptibleWriter::new(stderr, interrupts, &deadline);
        stderr.share_lock(&stdout);
        Ok(Screen {
            output,
            stdout,
            stderr,
            deadline,
            stdout_is_terminal,
            has_progress: stdout_is_terminal && stderr_is_terminal,
            style: Style::new(stderr_is_terminal && config::color_allowed()),
            stdout_style: Style::new(stdout_is_terminal && config::color_allowed()),
            answer: String::new(),
            tool_calls: Vec::new(),
            mid_line: false,
            pending_return: false,
            waiting_since: None,
            after_text: false,
            retry_at: None,
            progress_width: 0,
            progress_below: false,
            thinking: false,
            notices: HashSet::new(),
            running_tools: 0,
            last_result: None,
            shows_statistics: false,
            markdown: Markdown::new(),
            tokens: None,
        })
    }

    /// Starts a turn.
    pub fn begin_turn(&mut self) {
        self.answer.clear();
        self.tool_calls.clear();
        self.running_tools = 0;
        self.markdown = Markdown::new();
        self.tokens = None;
        self.reset_deadline();
        self.start_progress();
    }

    /// Removes the limit that a signal put on writes.
    pub fn reset_deadline(&mut self) {
        self.deadline.set(None);
        self.stdout.gave_up = false;
        self.stderr.gave_up = false;
    }

    /// Prints an event, with `--events`.
    pub fn event(&mut self, envelope: &str) -> Result<(), Error> {
        if self.output == TaskOutput::Events { self.print_line(envelope) } else { Ok(()) }
    }

    /// Prints more of the answer.
    pub fn answer_text(&mut self, text: &str) -> Result<(), Error> {
        self.stop_progress();
        self.count_token();
        self.answer.push_str(text);
        self.mid_line = !self.answer.is_empty() && !self.answer.ends_with('\n');
        if self.prints_answer() {
            let text = match self.stdout_is_terminal {
                true => self.for_terminal(text),
                false => text.to_owned(),
            };
            self.print(&text)?;
        }
        self.start_progress();
        self.after_text = true;
        Ok(())
    }

    /// Prints a notice about the turn, once. One that tells of a pause starts a countdown.
    pub fn notice(&mut self, notice: &TurnNotice) {
        if self.output != TaskOutput::Full {
            return;
        }
        if self.notices.insert(notice.text.clone()) {
            self.start_line();
            self.note(&notice.text);
        }
        if let Some(wait_ms) = notice.wait_ms {
            let wait = Duration::from_millis(wait_ms);
            self.start_progress();
            self.retry_at = Instant::now().checked_add(wait);
            if !self.has_progress {
                let seconds = wait.as_secs_f64().ceil();
                self.note(&format!("trying again in {seconds}s"));
            }
        }
    }

    /// Records that the model is thinking.
    pub fn thinking(&mut self) {
        self.thinking = true;
        self.count_token();
    }

    fn count_token(&mut self) {
        let now = Instant::now();
        let (first, _, count) = self.tokens.map_or((now, now, 0), |(f, l, c)| (f, l, c + 1));
        self.tokens = Some((first, now, count));
    }

    /// Returns the tokens per second, when it has been long enough to tell.
    fn speed(&self) -> Option<f64> {
        let (first, last, count) = self.tokens?;
        let elapsed = last - first;
        (elapsed >= Duration::from_secs(1)).then(|| f64::from(count) / elapsed.as_secs_f64())
    }

    /// Prints a tool call.
    pub fn tool_started(&mut self, start: ToolStart) -> Result<(), Error> {
        let ToolStart { id, name, args, .. } = start;
        // The text after a call is another paragraph.
        if self.mid_line {
            self.answer.push('\n');
        }
        self.end_line()?;
        // On a terminal, its end is printed, and until then what is running.
        if self.output == TaskOutput::Full && !self.has_progress {
            let line = self.style.paint("2", &format!("> {}", tool_report::call(&name, &args)));
            self.print_error(&format!("{line}\n"));
        }
        self.tool_calls.push(ToolLine { id, name, args, duration_ms: None, success: None });
        self.running_tools += 1;
        self.start_progress();
        Ok(())
    }

    /// Prints the end of a tool call.
    pub fn tool_ended(&mut self, end: &ToolEnd) {
        self.last_result = Some(end.result.clone());
        if self.output == TaskOutput::Full
            && self.has_progress
            && let Some(call) = self.tool_calls.iter().rev().find(|call| call.id == end.id)
        {
            let (outcome, output) = tool_report::outcome(&call.name, &call.args, end);
            let call = tool_report::call(&call.name, &call.args);
            self.print_call(&call, &outcome);
            for line in output {
                self.dimmed(&format!("    {line}"));
            }
        }
        if let Some(remedy) = tool_report::remedy(end) {
            self.inform(remedy);
        }
        if let Some(call) = self.tool_calls.iter_mut().rev().find(|call| call.id == end.id) {
            call.duration_ms = Some(end.duration_ms);
            call.success = Some(end.success);
        }
        self.running_tools = self.running_tools.saturating_sub(1);
        // Now it waits for the model, unless the user is being asked.
        if self.running_tools == 0 && self.waiting_since.is_some() {
            self.start_progress();
        }
    }

    fn print_call(&mut self, call: &str, outcome: &str) {
        self.clear_progress();
        let call = self.style.paint("2", &format!("• {call}"));
        self.print_error(format!("{call}  {outcome}").trim_end());
        self.print_error("\n");
    }

    /// Ends the turn: the next output starts on a new line.
    pub fn end_turn(&mut self) -> Result<(), Error> {
        self.waiting_since = None;
        if self.output == TaskOutput::Full && self.has_progress {
            let is_open = |call: &&ToolLine| call.success.is_none();
            let open = self.tool_calls.iter().filter(is_open);
            let open: Vec<String> =
                open.map(|call| tool_report::call(&call.name, &call.args)).collect();
            open.iter().for_each(|call| self.print_call(call, "not finished"));
        }
        self.end_line()
    }

    /// Prints what a turn took, if the user wants to know.
    pub fn statistics(&mut self, stats: &TurnStats) {
        if self.shows_statistics && stats.completion_tokens > 0 {
            let line = tool_report::statistics(stats);
            self.dimmed(&wrapped("", line.split(' '), self.columns(), 0));
        }
    }

    /// Moves to the start of a line before something is printed to standard error.
    pub fn start_line(&mut self) {
        self.clear_progress();
        if self.has_progress && self.mid_line && self.prints_answer() {
            self.print_error("\n");
        }
    }

    /// Shows what the turn is waiting for, if it is time. Returns the time until the next call.
    pub fn update_progress(&mut self) -> Option<Duration> {
        let waited = self.waiting_since?.elapsed();
        if !self.has_progress || self.output != TaskOutput::Full {
            return None;
        }
        let begin =
            if self.after_text { limits::SILENCE_SHOWN_AFTER } else { limits::PROGRESS_AFTER };
        if waited < begin {
            return Some(begin.saturating_sub(waited));
        }
        let left = self.retry_at.map(|at| at.saturating_duration_since(Instant::now()));
        let message = match left.filter(|left| !left.is_zero()) {
            Some(left) => format!("… trying again in {}s", left.as_secs() + 1),
            None => self.activity(waited),
        };
        self.draw_progress(&message);
        Some(limits::PROGRESS_EVERY)
    }

    /// Returns what the turn is waiting for, in fewer columns than the terminal has.
    fn activity(&self, waited: Duration) -> String {
        let frame = waited.as_millis() / limits::PROGRESS_EVERY.as_millis();
        let frame = usize::try_from(frame).unwrap_or(0) % SPINNER.len();
        let spinner = SPINNER.get(frame).copied().unwrap_or("…");
        let seconds = waited.as_secs();
        let running = self.tool_calls.iter().rev().find(|call| call.success.is_none());
        let text = match (running, self.thinking) {
            (Some(call), _) if self.running_tools > 0 => {
                let call = tool_report::call(&call.name, &call.args);
                format!("{spinner} running {seconds}s  {call}")
            }
            (_, thinking) => {
                let activity = if thinking { "thinking" } else { "waiting" };
                let speed = self.speed().map(|speed| format!(", {speed:.0} tokens/s"));
                format!("{spinner} {activity} {seconds}s{}", speed.unwrap_or_default())
            }
        };
        fitting(&text, self.columns().saturating_sub(2)).to_owned()
    }

    /// Returns the number of columns of the terminal.
    pub fn columns(&self) -> usize {
        terminal::columns(io::stderr().as_fd()).unwrap_or(usize::MAX)
    }

    /// Stops showing progress: the turn waits for the user.
    pub fn stop_progress(&mut self) {
        self.clear_progress();
        self.waiting_since = None;
    }

    /// Starts showing progress: the turn waits for the model or a tool.
    pub fn start_progress(&mut self) {
        self.waiting_since = Some(Instant::now());
        self.retry_at = None;
        self.after_text = false;
        self.thinking = false;
    }

    fn draw_progress(&mut self, message: &str) {
        let width = message.chars().count();
        let message = self.style.paint("2", message);
        self.progress_below = self.mid_line && self.prints_answer();
        if self.progress_below {
            // Makes room for a line below, and returns to the place in the text.
            self.print_error(&format!("\x1bD\x1b[A\x1b7\r\n{message}\x1b[K\x1b8"));
        } else {
            let blanks = " ".repeat(self.progress_width.saturating_sub(width));
            self.print_error(&format!("\r{message}{blanks}"));
        }
        self.progress_width = self.progress_width.max(width);
    }

    fn clear_progress(&mut self) {
        let width = std::mem::take(&mut self.progress_width);
        if width > 0 && self.progress_below {
            self.print_error("\x1b7\r\n\x1b[K\x1b8");
        } else if width > 0 {
            self.print_error(&format!("\r{}\r", " ".repeat(width)));
        }
    }

    fn end_line(&mut self) -> Result<(), Error> {
        self.clear_progress();
        if !std::mem::take(&mut self.mid_line) || !self.prints_answer() {
            return Ok(());
        }
        let end = if std::mem::take(&mut self.pending_return) { "\r\n" } else { "\n" };
        self.print(&sanitized(end))
    }

    /// Escapes more of the answer for a terminal: control characters other than line ends.
    fn for_terminal(&mut self, text: &str) -> String {
        let before = if std::mem::take(&mut self.pending_return) { "\r" } else { "" };
        let text = format!("{before}{text}");
        let whole = text.strip_suffix('\r');
        self.pending_return = whole.is_some();
        let text = sanitized(&whole.unwrap_or(&text).replace("\r\n", "\n"));
        self.markdown.styled(&text, self.stdout_style)
    }

    fn prints_answer(&self) -> bool {
        matches!(self.output, TaskOutput::Full | TaskOutput::Quiet)
    }

    /// Returns the number of characters that a question may have to remain on the screen.
    pub fn question_room(&self) -> usize {
        let terminal = io::stderr();
        let (columns, rows) =
            (terminal::columns(terminal.as_fd()), terminal::rows(terminal.as_fd()));
        let room = columns.zip(rows).map(|(columns, rows)| columns * rows.saturating_sub(6));
        let most = limits::QUESTION_CHARS_MAX;
        room.map_or(most, |room| room.clamp(limits::QUESTION_CHARS_MIN, most))
    }

    /// Prints what a chat begins with: on one line if there is room.
    pub fn heading(&mut self, parts: &[String]) {
        let line = escaped(&parts.join("  "));
        let text = match line.chars().count() < self.columns() {
            true => line,
            false => parts.iter().map(|part| escaped(part)).collect::<Vec<_>>().join("\n"),
        };
        self.dimmed(&text);
    }

    /// Prints lines to standard error, broken between words where the terminal ends.
    pub fn print_wrapped(&mut self, text: &str) {
        let columns = self.columns();
        for line in text.lines() {
            self.print_error(&(wrapped("", line.split(' '), columns, 2) + "\n"));
        }
    }

    /// Prints lines that are less important to standard error.
    pub fn dimmed(&mut self, text: &str) {
        for line in sanitized(text).lines() {
            let line = self.style.paint("2", line);
            self.print_error(&format!("{line}\n"));
        }
    }

    /// Returns the whole result of the last tool call.
    pub fn last_result(&self) -> Option<String> {
        self.last_result.as_ref().map(|text| {
            let end = if text.ends_with('\n') { "" } else { "\n" };
            sanitized(text) + end
        })
    }

    /// Prints a line of the result: JSON.
    pub fn print_line(&mut self, json: &str) -> Result<(), Error> {
        self.print(&format!("{}\n", escaped_json(json)))
    }

    /// Prints to standard output.
    pub fn print(&mut self, text: &str) -> Result<(), Error> {
        self.stdout.write(text).map_err(Error::output)
    }

    /// Prints a message to standard error.
    pub fn note(&mut self, text: &str) {
        self.print_wrapped(&format!("opta: {}", escaped(text)));
    }

    /// Prints what the user should know before the answer, once, but not with `--quiet`.
    pub fn inform(&mut self, text: &str) {
        if self.output != TaskOutput::Quiet && self.notices.insert(text.to_owned()) {
            self.start_line();
            self.note(text);
        }
    }

    /// Prints to standard error. A failure is ignored: there is no other place to report it.
    pub fn print_error(&mut self, text: &str) {
        drop(self.stderr.write(text));
    }

    /// Limits the time of writes from now on, after a signal.
    pub fn limit_writes(&mut self) {
        self.deadline.set(Some(limits::AFTER_SIGNAL_MAX));
    }

    /// Writes what is pending, unless there is a signal to be taken first.
    pub fn flush(&mut self) -> Result<(), Error> {
        drop(self.stderr.flush());
        self.stdout.flush().map_err(Error::output)
    }

    /// Writes what is pending, unless another process is within a line or there is a signal to be
    /// taken first. Returns the time until the next call if another process is.
    pub fn flush_unblocked(&mut self) -> Result<Option<Duration>, Error> {
        // As in `print_error`, there is no other place to report a failure.
        let errors_written = self.stderr.flush_unblocked().unwrap_or(true);
        let written = self.stdout.flush_unblocked().map_err(Error::output)?;
        Ok((!(errors_written && written)).then_some(limits::PIPE_LOCK_EVERY))
    }

    /// Returns whether output is pending.
    pub fn is_pending(&self) -> bool {
        self.stdout.is_pending() || self.stderr.is_pending()
    }

    /// Returns whether output was dropped because no one read it in time after a signal.
    pub fn gave_up(&self) -> bool {
        self.stdout.gave_up || self.stderr.gave_up
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.clear_progress();
    }
}
