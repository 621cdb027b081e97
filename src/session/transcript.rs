//! A session as text for a terminal, as Markdown, and as JSON.
//!
//! Text and Markdown contain no control characters but line feeds and tabs, whatever models and
//! tools wrote.

use crate::error::Error;
use crate::json::{self, Lenient, Raw};
use crate::limits;
use crate::protocol::event::{Event, EventKind};
use crate::protocol::{ChatMessage, SessionId, SessionSummary};
use crate::text::{Style, escaped, sanitized, truncated};

use super::reader::JournalReport;
use super::replay::{Conversation, JournalState, Message, ToolCall, answer_of};
use super::store::Store;

/// A session, read from its journal.
pub struct Transcript {
    summary: SessionSummary,
    parts: Vec<Part>,
    /// Reports what is omitted.
    pub report: JournalReport,
}

enum Part {
    Message(Message),
    /// The input of a turn that never started, which is no part of the conversation.
    NotStarted(String),
    /// The end of a turn that failed.
    Failed {
        code: String,
        message: String,
    },
}

impl Transcript {
    /// Reads a session up to its last valid record. Changes nothing.
    ///
    /// # Errors
    /// [`Kind::SessionDamaged`](crate::error::Kind::SessionDamaged) if no record is valid.
    pub fn read(store: &Store, id: &SessionId) -> Result<Transcript, Error> {
        let mut state = JournalState::default();
        let mut conversation = Conversation::default();
        let mut parts = Vec::new();
        let report = store.scan(id, |record| {
            state.apply_record(record);
            conversation.apply_record(record);
            if record.kind == Some(EventKind::TurnError)
                && let Some(Event::TurnError(error)) = record.event()
            {
                parts.extend(conversation.messages.drain(..).map(Part::Message));
                parts.extend(conversation.take_queued(&error.turn_id).map(Part::NotStarted));
                parts.push(Part::Failed { code: error.code, message: error.message });
            }
        })?;
        let report = report.require_records(id)?;
        parts.extend(conversation.messages.into_iter().map(Part::Message));
        Ok(Transcript { summary: state.summary(id), parts, report })
    }

    /// Returns one object: the fields of the summary, and `messages`.
    pub fn json(&self) -> String {
        let messages = self.parts.iter().filter_map(|part| match part {
            Part::Message(message) => Some(Raw::of(message)),
            Part::NotStarted(_) | Part::Failed { .. } => None,
        });
        let messages = Some(messages.collect());
        json::text(&SessionSummary { messages, ..self.summary.clone() })
    }

    /// Returns the messages for a terminal, with a line per tool call.
    pub fn text(&self, style: Style) -> String {
        let mut out = format!("{}\n", self.heading());
        let mut speaker = String::new();
        for part in &self.parts {
            let (role, text, calls) = part.content();
            // The results of tools are for the model; the export has them.
            if role == "tool" {
                continue;
            }
            if role != speaker {
                out.push_str(&format!("\n{}\n", style.paint("1", &escaped(&role))));
                speaker = role;
            }
            for line in sanitized(&text).lines() {
                out.push_str(format!("  {line}").trim_end());
                out.push('\n');
            }
            for call in calls {
                out.push_str(&style.paint("2", &format!("  > {}", call_line(call))));
                out.push('\n');
            }
        }
        out
    }

    /// Returns the last input, and what the model answered.
    pub fn last_exchange(&self) -> Option<(String, String)> {
        let asked = self.parts.iter().rposition(|part| part.content().0 == "user")?;
        let (_, question, _) = self.parts.get(asked)?.content();
        let after = self.parts.get(asked + 1..).unwrap_or_default().iter().map(Part::content);
        let answers = after.filter(|(role, text, _)| role == "assistant" && !text.is_empty());
        let answers: Vec<String> = answers.map(|(_, text, _)| text).collect();
        Some((question, answers.join("\n")))
    }

    /// Returns everything as Markdown.
    pub fn markdown(&self) -> String {
        let summary = &self.summary;
        let title = escaped(summary.title.as_deref().unwrap_or("Session"));
        let mut out = format!("# {title}\n\n- Session: `{}`\n", summary.session_id);
        out.push_str(&format!("- Created: {}\n- Turns: {}\n", summary.created_at, summary.turns));
        if !summary.model.is_empty() {
            out.push_str(&format!("- Model: {}\n", escaped(&summary.model)));
        }
        if let Some(workspace) = &summary.workspace {
            out.push_str(&format!("- Workspace: {}\n", escaped(workspace)));
        }
        if let Some(directory) = &summary.directory {
            out.push_str(&format!("- Directory: {}\n", escaped(directory)));
        }
        let mut speaker = String::new();
        for part in &self.parts {
            let (role, text, calls) = part.content();
            if role != speaker {
                out.push_str(&format!("\n## {}\n", capital(&escaped(&role))));
                speaker.clone_from(&role);
            }
            match role.as_str() {
                _ if text.is_empty() => {}
                "tool" => fenced(&mut out, "", &text),
                _ => out.push_str(&format!("\n{}\n", sanitized(&text).trim_end_matches('\n'))),
            }
            for call in calls {
                out.push_str(&format!("\nCall of `{}`:\n", escaped(&call.name)));
                fenced(&mut out, "json", &call.arguments);
            }
        }
        out
    }

    fn heading(&self) -> String {
        let summary = &self.summary;
        let title = summary.title.as_ref().filter(|title| !title.is_empty());
        let title = title.map_or(String::new(), |title| format!(": {title}"));
        let place = summary.workspace.as_ref().map(|path| format!(", in {path}"));
        let turns = turns(summary.turns);
        escaped(&format!(
            "{}{title}  ({turns}, created {}{})",
            summary.session_id,
            summary.created_at,
            place.unwrap_or_default()
        ))
    }
}

/// Returns `1 turn`, `2 turns`.
pub fn turns(count: u64) -> String {
    format!("{count} turn{}", if count == 1 { "" } else { "s" })
}

impl Part {
    /// Returns the role of its author, its text and its tool calls.
    fn content(&self) -> (String, String, &[ToolCall]) {
        match self {
            Part::Message(message) => content_of(message),
            Part::NotStarted(text) => ("user".to_owned(), text.clone(), &[]),
            Part::Failed { code, message } => {
                ("error".to_owned(), format!("{message} ({code})"), &[])
            }
        }
    }
}

/// Returns the role of a message's author, its text and its tool calls.
pub(super) fn content_of(message: &Message) -> (String, String, &[ToolCall]) {
    let (role, text, calls): (&str, &str, &[ToolCall]) = match message {
        Message::Given(message) => {
            let (role, text) = given(message);
            return (role, text, &[]);
        }
        Message::Assistant { text, calls, .. } => ("assistant", answer_of(text), calls),
        Message::User(text) => ("user", text, &[]),
        Message::Tool { result, .. } => return ("tool".to_owned(), result.text(), &[]),
    };
    (role.to_owned(), text.to_owned(), calls)
}

/// Returns the role and the text of a message that the session was created with.
fn given(message: &str) -> (String, String) {
    match json::parse(message.as_bytes()) {
        Ok(ChatMessage { role, content }) => {
            (role, content.map_or(String::new(), Lenient::into_text))
        }
        Err(_) => ("message".to_owned(), message.to_owned()),
    }
}

/// Returns a tool call on one line, cut at a limit.
fn call_line(call: &ToolCall) -> String {
    let line = escaped(&format!("{} {}", call.name, call.arguments));
    truncated(&line, limits::CALL_CHARS_MAX).into_owned()
}

/// Appends a block that `text` cannot end: its fence is longer than any in the text. CommonMark,
/// 4.5.
fn fenced(out: &mut String, language: &str, text: &str) {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let text = sanitized(text);
    let text = text.trim_end_matches('\n');
    out.push_str(&format!("\n{fence}{language}\n{text}\n{fence}\n"));
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(parts: Vec<Part>) -> Transcript {
        let summary = SessionSummary {
            session_id: "sess_1".to_owned(),
            title: Some("a \x1b[31m title".to_owned()),
            created_at: "2026-03-01T10:00:00.000Z".to_owned(),
            turns: 1,
            ..SessionSummary::default()
        };
        Transcript { summary, parts, report: JournalReport::default() }
    }

    fn call(arguments: &str) -> ToolCall {
        let (id, name) = ("c1".to_owned(), "run_command".to_owned());
        ToolCall { id, name, arguments: arguments.to_owned(), extra: String::new() }
    }

    #[test]
    fn a_terminal_gets_text_and_nothing_that_drives_it() {
        let shown = transcript(vec![
            Part::Message(Message::Given(r#"{"role":"system","content":"be brief"}"#.to_owned())),
            Part::Message(Message::User("one\n\n\ttwo\x07".to_owned())),
            Part::Message(Message::Assistant {
                text: "yes\r\u{9b}2J".to_owned(),
                calls: vec![call("{\"command\":\"ls\n\"}")],
                extra: String::new(),
            }),
            Part::Message(Message::result("c1".to_owned(), "left out")),
            Part::Message(Message::answer("done".to_owned())),
            Part::NotStarted("and?".to_owned()),
            Part::Failed { code: "cancelled".to_owned(), message: "no\x1b".to_owned() },
        ]);
        let expected = concat!(
            "sess_1: a \\u{1b}[31m title  (1 turn, created 2026-03-01T10:00:00.000Z)\n",
            "\nsystem\n  be brief\n",
            "\nuser\n  one\n\n  \ttwo\\u{7}\n",
            "\nassistant\n  yes\\r\\u{9b}2J\n  > run_command {\"command\":\"ls\\n\"}\n  done\n",
            "\nuser\n  and?\n",
            "\nerror\n  no\\u{1b} (cancelled)\n",
        );
        assert_eq!(shown.text(Style::Plain), expected);
        assert!(shown.text(Style::Color).contains("\n\x1b[1muser\x1b[0m\n"));
    }

    #[test]
    fn a_call_is_cut_at_the_bound_and_not_before() {
        let of = |length: usize| call_line(&call(&"ä".repeat(length - "run_command ".len())));
        assert!(!of(limits::CALL_CHARS_MAX).ends_with('…'));
        let cut = of(limits::CALL_CHARS_MAX + 1);
        assert_eq!(cut.chars().count(), limits::CALL_CHARS_MAX + 1);
        assert!(cut.ends_with('…'));
    }

    #[test]
    fn no_text_ends_its_block() {
        let result = "```\n# not a heading\n````\n".to_owned();
        let shown = transcript(vec![
            Part::Message(Message::Assistant {
                text: String::new(),
                calls: vec![call("{}")],
                extra: String::new(),
            }),
            Part::Message(Message::result("c1".to_owned(), &result)),
        ]);
        let expected = concat!(
            "# a \\u{1b}[31m title\n\n- Session: `sess_1`\n",
            "- Created: 2026-03-01T10:00:00.000Z\n- Turns: 1\n",
            "\n## Assistant\n\nCall of `run_command`:\n\n```json\n{}\n```\n",
            "\n## Tool\n\n`````\n```\n# not a heading\n````\n`````\n",
        );
        assert_eq!(shown.markdown(), expected);
    }

    #[test]
    fn messages_of_any_form_are_shown() {
        assert_eq!(given(r#"{"role":"user","content":"x\ny"}"#), ("user".into(), "x\ny".into()));
        let parts = r#"{"role":"user","content":[{"type":"text","text":"x"}]}"#;
        assert_eq!(given(parts).1, r#"[{"type":"text","text":"x"}]"#);
        assert_eq!(given(r#"{"role":"user"}"#), ("user".into(), String::new()));
        assert_eq!(given("7"), ("message".into(), "7".into()));
    }
}
