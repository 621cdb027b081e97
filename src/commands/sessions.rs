//! `opta sessions …`
//!
//! All but `rm` only read the disk: they need no daemon, take no lock and write nothing, even while
//! a daemon is writing.

use std::io::{self, IsTerminal};
use std::ops::{ControlFlow, Range};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use regex::bytes::{Match, Regex};

use crate::cli::{ExportFormat, OutputMode, SessionChoice, SessionsCommand};
use crate::commands::{Output, daemon_notes};
use crate::config::Config;
use crate::error::{At, Doing, Error, Kind};
use crate::json::Object;
use crate::lifecycle::guardian::reach;
use crate::paths::Paths;
use crate::protocol::{SessionId, SessionSummary};
use crate::session::reader::JournalReport;
use crate::session::search::{MatchingLine, search};
use crate::session::store::{Page, Store, no_session};
use crate::session::transcript::{Transcript, turns};
use crate::sys::watch::Watch;
use crate::text::{escaped, escaped_json, prefix, truncated};
use crate::{client, clock, limits, pattern, sys};

/// Runs `opta sessions …`.
pub fn run(paths: &Paths, args: &SessionsCommand, output: &Output) -> Result<ExitCode, Error> {
    let store = Store::new(paths.sessions());
    match args {
        SessionsCommand::List { limit } => list(paths, &store, *limit, output),
        SessionsCommand::Show { id } => print(&store, id, None, output),
        SessionsCommand::Export { id, format } => print(&store, id, Some(*format), output),
        SessionsCommand::Grep { pattern, ignore_case, list } => {
            let regex = pattern::compile(pattern, *ignore_case).map_err(|reason| {
                // The first lines draw where it is.
                let reason = reason.lines().last().unwrap_or_default();
                let reason = reason.trim_start_matches("error: ");
                let next_step = "a backslash makes a character stand for itself: \\(";
                Error::usage(format!("cannot search '{pattern}': {reason}"), next_step)
            })?;
            grep(&store, &regex, *list, output)
        }
        SessionsCommand::Verify { id } => verify(&store, id.as_deref(), output),
        SessionsCommand::Remove { id, force } => remove(paths, &store, id, *force, output),
    }
}

fn list(paths: &Paths, store: &Store, limit: usize, output: &Output) -> Result<ExitCode, Error> {
    // One more id than requested shows whether there are more.
    let Page { mut ids, is_index_damaged, .. } = store.page(None, limit.saturating_add(1))?;
    if is_index_damaged {
        let index = store.index();
        let what = "lacks sessions; they are listed by their directories";
        output.note(&format!("{} {what}", escaped(&index.display().to_string())));
    }
    let more = ids.len() > limit;
    ids.truncate(limit);
    if ids.is_empty() {
        output.note("there are no sessions yet");
    }
    let mut rows = Vec::new();
    let mut status = ExitCode::SUCCESS;
    for id in &ids {
        match store.summary(id) {
            Ok(summary) => {
                output.json(&summary)?;
                rows.push(Row::new(&summary, paths));
            }
            Err(error) if is_deleted(&error) => {}
            // A session that cannot be read must not hide the others.
            Err(error) => {
                output.error(&error)?;
                status = ExitCode::FAILURE;
            }
        }
    }
    Row::print_all(&rows, output)?;
    if more {
        output.note(&format!("there are more than {limit} sessions; to list more: --limit N"));
    }
    Ok(status)
}

/// A line of the list. The title is last, because it may contain anything.
struct Row {
    id: String,
    age: String,
    turns: String,
    model: String,
    directory: String,
    title: String,
}

impl Row {
    fn new(summary: &SessionSummary, paths: &Paths) -> Row {
        let age = clock::parse_rfc3339(&summary.created_at).map(|created| {
            let millis = u64::try_from(clock::now_millis().saturating_sub(created)).unwrap_or(0);
            clock::format_duration(Duration::from_millis(millis))
        });
        let unknown = || "-".to_owned();
        let named = Some(&summary.model).filter(|model| !model.is_empty());
        let model = summary.last_model.as_ref().or(named).map_or_else(unknown, |model| {
            truncated(&escaped(model), limits::MODEL_CHARS_MAX).into_owned()
        });
        let directory = summary.working_directory().map_or_else(unknown, |workspace| {
            let shown = paths.display(Path::new(workspace));
            // Its end says most.
            let excess = shown.chars().count().saturating_sub(limits::DIRECTORY_CHARS_MAX);
            match shown.char_indices().nth(excess) {
                Some((at, _)) if excess > 0 => format!("…{}", shown.get(at..).unwrap_or_default()),
                _ => shown,
            }
        });
        Row {
            id: summary.session_id.clone(),
            age: age.unwrap_or_else(unknown),
            turns: turns(summary.turns),
            model,
            directory,
            title: title(summary),
        }
    }

    fn print_all(rows: &[Row], output: &Output) -> Result<(), Error> {
        let width = |part: fn(&Row) -> &str| rows.iter().map(|row| part(row).chars().count()).max();
        let id_width = width(|row| &row.id).unwrap_or(0);
        let model_width = width(|row| &row.model).unwrap_or(0);
        let directory_width = width(|row| &row.directory).unwrap_or(0);
        for Row { id, age, turns, model, directory, title } in rows {
            let line = format!(
                "{id:<id_width$}  {age:>6}  {turns:>9}  {model:<model_width$}  \
                 {directory:<directory_width$}  {title}"
            );
            output.text(line.trim_end())?;
        }
        Ok(())
    }
}

/// Returns the title of a session for a line of text.
pub fn title(summary: &SessionSummary) -> String {
    escaped(prefix(summary.title.as_deref().unwrap_or_default(), limits::TITLE_CHARS_MAX))
}

/// Runs `opta sessions show`, and with a format `opta sessions export`.
fn print(
    store: &Store,
    typed: &str,
    format: Option<ExportFormat>,
    output: &Output,
) -> Result<ExitCode, Error> {
    let transcript = read(store, typed, output)?;
    let text = match (format, output.mode) {
        (None, OutputMode::Text) => transcript.text(output.style()),
        (Some(ExportFormat::Markdown), _) => transcript.markdown(),
        (None | Some(ExportFormat::Json), _) => escaped_json(&transcript.json()).into_owned(),
    };
    output.line(text.trim_end_matches('\n'))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads a session, and prints notes about what is missing.
fn read(store: &Store, typed: &str, output: &Output) -> Result<Transcript, Error> {
    let id = find(store, typed)?;
    let transcript = Transcript::read(store, &id)?;
    let found = &transcript.report;
    omissions(&id, found.lost(), found.missing_bytes).iter().for_each(|note| output.note(note));
    Ok(transcript)
}

/// Returns notes about what is missing of a session.
pub fn omissions(id: &SessionId, damaged_records: u64, missing_bytes: u64) -> Vec<String> {
    let damaged = match damaged_records {
        0 => None,
        1 => Some("1 damaged record is omitted".to_owned()),
        lost => Some(format!("{lost} damaged records are omitted")),
    };
    let missing =
        (missing_bytes > 0).then(|| format!("{missing_bytes} bytes are missing at the end"));
    let see = |what| format!("{what}; see: opta sessions verify {}", as_argument(id));
    damaged.into_iter().chain(missing).map(see).collect()
}

/// Runs `opta sessions grep`: 1 if no line matches, or a session cannot be read. Stops at an error
/// of the output, and where that is a pipe, soon after it is read no more.
fn grep(store: &Store, regex: &Regex, list: bool, output: &Output) -> Result<ExitCode, Error> {
    let stdout = io::stdout();
    let is_unread = || sys::is_hung_up(stdout.as_fd());
    let (mut found, mut failed) = (false, false);
    for id in store.page(None, usize::MAX)?.ids {
        if is_unread() {
            return Err(Error::output(io::ErrorKind::BrokenPipe.into()));
        }
        let mut printed = Ok(());
        let searched = search(store, &id, regex, &|| !is_unread(), &mut |line| {
            found = true;
            printed = print_match(&id, (!list).then_some(line), regex, output);
            match printed {
                Ok(()) if !list => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        });
        printed?;
        match searched {
            Ok(Some(report)) => {
                let notes = omissions(&id, report.lost(), report.missing_bytes);
                notes.iter().for_each(|note| output.note(note));
            }
            Ok(None) if is_unread() => {
                return Err(Error::output(io::ErrorKind::BrokenPipe.into()));
            }
            Ok(None) => {}
            Err(error) if is_deleted(&error) => {}
            Err(error) => {
                failed = true;
                output.error(&error)?;
            }
        }
    }
    Ok(ExitCode::from(u8::from(failed || !found)))
}

/// Prints a session in which a line matches, and the line, if there is one.
fn print_match(
    id: &SessionId,
    line: Option<&MatchingLine<'_>>,
    regex: &Regex,
    output: &Output,
) -> Result<(), Error> {
    let session_id = id.as_str().to_owned();
    let Some(MatchingLine { ts, role, text }) = line else {
        return output.result(&session_id, &Object(&[("sessionId", &session_id)]));
    };
    let (style, mut marked, mut end) = (output.style(), String::new(), 0);
    let part = |range: Range<usize>| escaped(text.get(range).unwrap_or_default());
    // Part of a character cannot be marked.
    let is_whole = |found: &Match<'_>| text.get(found.range()).is_some();
    for found in regex.find_iter(text.as_bytes()).filter(is_whole) {
        marked += &part(end..found.start());
        marked += &style.paint("1;31", &part(found.range()));
        end = found.end();
    }
    marked += &part(end..text.len());
    let time = sys::local_time(clock::parse_rfc3339(ts).unwrap_or(0).div_euclid(1000));
    let sys::WallClock { year, month, day, hour, minute, .. } = time;
    let time = format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}");
    let (ts, role, text) = ((*ts).to_owned(), (*role).to_owned(), (*text).to_owned());
    output.result(
        &format!("{session_id}: {time} {}: {marked}", escaped(&role)),
        &Object(&[("sessionId", &session_id), ("ts", &ts), ("role", &role), ("text", &text)]),
    )
}

/// Formats an id as an argument of a command.
pub fn as_argument(id: &SessionId) -> String {
    let dashes = if id.as_str().starts_with('-') { "-- " } else { "" };
    format!("{dashes}{}", id.as_str())
}

/// Returns the session that the user chose; `None` for a new one.
pub fn choose(store: &Store, choice: &SessionChoice) -> Result<Option<SessionId>, Error> {
    let latest = match choice {
        SessionChoice::New => return Ok(None),
        SessionChoice::Resume(typed) => return find(store, typed).map(Some),
        SessionChoice::Latest => {
            let directory = std::env::current_dir().doing("find the working directory")?;
            store.latest(Some(&directory))?
        }
        SessionChoice::LatestAnywhere => store.latest(None)?,
    };
    if latest.is_some() {
        return Ok(latest);
    }
    let (reason, next_step) = match store.latest(None)? {
        None => ("there is no session yet", "to start one: opta chat"),
        Some(_) => (
            "there is no session of this directory",
            "to continue the last one of any directory: --continue=any",
        ),
    };
    let error = Error::cannot(Kind::SessionNotFound, "continue", reason);
    Err(error.with_next_step(next_step))
}

/// Returns the session that `typed` names: its id, the beginning of its id alone, either with or
/// without `sess_`, or `last` for the one used last.
pub fn find(store: &Store, typed: &str) -> Result<SessionId, Error> {
    let prefixed = format!("sess_{typed}");
    let exact = [typed, &prefixed].into_iter().filter_map(SessionId::parse);
    if let Some(id) = exact.into_iter().find(|id| store.has(id)) {
        return Ok(id);
    }
    if typed == "last"
        && let Some(id) = store.latest(None)?
    {
        return Ok(id);
    }
    let prefixes = [typed, &prefixed];
    let mut found = if typed.is_empty() { Vec::new() } else { store.with_prefix(&prefixes)? };
    match (found.pop(), found.len()) {
        (None, _) => Err(no_session(typed)),
        (Some(id), 0) => Ok(id),
        (Some(last), others) => {
            found.push(last);
            let some = found.iter().take(limits::CANDIDATES_MAX);
            let some: Vec<&str> = some.map(SessionId::as_str).collect();
            let more = match (others + 1).saturating_sub(some.len()) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let action = format!("select session '{typed}'");
            let reason = format!("it could be {}{more}", some.join(", "));
            Err(Error::cannot(Kind::AmbiguousId, action, reason))
        }
    }
}

/// Runs `opta sessions verify`: 1 if a session is damaged, cannot be read or is not listed.
fn verify(store: &Store, typed: Option<&str>, output: &Output) -> Result<ExitCode, Error> {
    let ids = match typed {
        Some(typed) => vec![find(store, typed)?],
        None => store.with_prefix(&[""])?,
    };
    let (mut checked, mut damaged) = (0_u64, 0_u64);
    let mut failed = false;
    let mut torn = Vec::new();
    for id in &ids {
        match store.scan(id, |_| {}) {
            Ok(found) if found.torn_bytes > 0 || found.missing_bytes > 0 => torn.push((id, found)),
            Ok(found) if found.is_damaged() => {
                damaged += 1;
                print_damage(id, &found, output)?;
            }
            Ok(_) => {}
            // It was deleted in the meantime.
            Err(error) if is_deleted(&error) => continue,
            Err(error) => {
                output.error(&error)?;
                failed = true;
                continue;
            }
        }
        checked += 1;
    }
    for (id, found) in examine_again(store, torn)? {
        damaged += 1;
        print_damage(id, &found, output)?;
    }
    if typed.is_none()
        && let Err(error) = store.check_index()
    {
        output.error(&error)?;
        failed = true;
    }
    let s = if checked == 1 { "" } else { "s" };
    output.result(
        &format!("{checked} session{s} checked, {damaged} damaged"),
        &Object(&[("sessions", &checked), ("damagedSessions", &damaged)]),
    )?;
    Ok(ExitCode::from(u8::from(damaged > 0 || failed)))
}

/// Examines journals with a torn end again, because the end may have been a record that was just
/// being written. Returns those that are still torn or are damaged elsewhere.
fn examine_again<'i>(
    store: &Store,
    torn: Vec<(&'i SessionId, JournalReport)>,
) -> Result<Vec<(&'i SessionId, JournalReport)>, Error> {
    if let Some((last, _)) = torn.last() {
        let directory = store.directory(last);
        // Without a watch, they are examined again immediately.
        if let Ok(watch) = Watch::on(&directory) {
            watch.wait(Some(limits::TORN_WAIT_MAX)).at("watch", &directory)?;
        }
    }
    let mut damaged = Vec::new();
    for (id, before) in torn {
        let mut now = match store.scan(id, |_| {}) {
            Err(error) if is_deleted(&error) => continue,
            now => now?,
        };
        if now.valid_bytes != before.valid_bytes {
            // It is being written; what follows the end is the next record.
            (now.torn_bytes, now.invalid_lines, now.invalid_bytes) = (0, 0, 0);
        }
        if now.torn_bytes > 0 || now.is_damaged() {
            damaged.push((id, now));
        }
    }
    Ok(damaged)
}

fn print_damage(id: &SessionId, found: &JournalReport, output: &Output) -> Result<(), Error> {
    let JournalReport { records, missing_bytes, .. } = *found;
    let (damaged, torn_bytes) = (found.lost(), found.incomplete_bytes());
    let session_id = id.as_str().to_owned();
    let s = if records == 1 { "" } else { "s" };
    let mut line = format!(
        "{session_id}  {records} intact record{s}, {damaged} damaged, {torn_bytes} torn bytes"
    );
    if missing_bytes > 0 {
        line += &format!(", {missing_bytes} bytes missing");
    }
    output.text(&line)?;
    output.json(&Object(&[
        ("sessionId", &session_id),
        ("records", &records),
        ("damaged", &damaged),
        ("tornBytes", &torn_bytes),
        ("missingBytes", &missing_bytes),
    ]))
}

/// Runs `opta sessions rm`.
fn remove(
    paths: &Paths,
    store: &Store,
    typed: &str,
    force: bool,
    output: &Output,
) -> Result<ExitCode, Error> {
    let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
    if !force && !terminal {
        return Err(Error::usage(
            "cannot ask for confirmation: this is not a terminal",
            format!("to delete it without confirmation: opta sessions rm --force {typed}"),
        ));
    }
    let config = Config::load(&paths.config())?;
    let id = find(store, typed)?;
    let session_id = id.as_str().to_owned();
    if !force && !confirmed(&id, store.summary(&id), output)? {
        output.note(&format!("session {session_id} was not deleted"));
        output.json(&Object(&[("deleted", &false), ("sessionId", &session_id)]))?;
        return Ok(ExitCode::FAILURE);
    }
    let mut repeated = false;
    let deleted = reach(
        paths,
        &config,
        |daemon| daemon_notes(daemon).iter().for_each(|note| output.note(note)),
        |info| {
            // If the response to the first request was lost, the session is gone at the second.
            let repeated = std::mem::replace(&mut repeated, true);
            Ok(client::delete_session(info, &id)? || repeated)
        },
    )?;
    if !deleted {
        return Err(no_session(&session_id));
    }
    output.text(&format!("Session {session_id} deleted."))?;
    output.json(&Object(&[("deleted", &true), ("sessionId", &session_id)]))?;
    Ok(ExitCode::SUCCESS)
}

fn confirmed(
    id: &SessionId,
    summary: Result<SessionSummary, Error>,
    output: &Output,
) -> Result<bool, Error> {
    let id = id.as_str();
    let summary = match summary {
        Err(error) if error.kind() == Kind::SessionDamaged => {
            return output.confirm(&format!("Delete session {id} ({})? [y/N] ", error.reason()));
        }
        summary => summary?,
    };
    let (turns, title) = (turns(summary.turns), title(&summary));
    output.confirm(&format!("Delete session {id} ({turns}, \"{title}\")? [y/N] "))
}

fn is_deleted(error: &Error) -> bool {
    error.io_kind() == Some(io::ErrorKind::NotFound)
}
