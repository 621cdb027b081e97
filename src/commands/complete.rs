//! What Tab completes at the prompt: the commands of the chat, ids of sessions, names of models,
//! and paths after `@`.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::commands::slash;
use crate::limits;
use crate::session::store::Store;
use crate::text::escaped;

/// A text that the word before the cursor could become.
#[derive(Debug, PartialEq, Eq)]
pub struct Candidate {
    pub display: String,
    pub replacement: String,
}

/// Where the candidates come from.
pub struct Candidates {
    pub sessions: PathBuf,
    /// The names of the models that the chat has listed.
    pub models: Rc<RefCell<Vec<String>>>,
}

impl Candidates {
    /// Returns the place in `line` where the word before its end begins, and what it could become.
    pub fn of(&self, line: &str) -> (usize, Vec<Candidate>) {
        let start = line.rfind(char::is_whitespace).map_or(0, |at| {
            at + line.get(at..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8)
        });
        let word = line.get(start..).unwrap_or_default();
        let all = match line.get(..start).unwrap_or_default().trim_end() {
            "" if word.starts_with('/') => slash::names().collect(),
            "/model" => self.models.borrow().clone(),
            "/resume" => self.session_ids(),
            _ if word.starts_with('@') => return (start, paths(word)),
            _ => Vec::new(),
        };
        let fits = |name: &String| name.starts_with(word) && is_harmless(name);
        let candidate = |name: String| Candidate { display: name.clone(), replacement: name };
        (start, all.into_iter().filter(fits).map(candidate).collect())
    }

    fn session_ids(&self) -> Vec<String> {
        let page = Store::new(self.sessions.clone()).page(None, limits::SESSIONS_PAGE_DEFAULT);
        let ids = page.map(|page| page.ids).unwrap_or_default();
        ids.into_iter().map(|id| id.as_str().to_owned()).collect()
    }
}

/// Returns the paths that begin like `word`, which is one after `@`.
fn paths(word: &str) -> Vec<Candidate> {
    let typed = word.strip_prefix('@').unwrap_or_default();
    let (directory, beginning) = match typed.rfind('/') {
        Some(at) => typed.split_at(at + 1),
        None => ("", typed),
    };
    let read = if directory.is_empty() { Path::new(".") } else { Path::new(directory) };
    let entries = fs::read_dir(read).into_iter().flatten().flatten();
    let mut found: Vec<Candidate> = entries
        .take(limits::DIRECTORY_ENTRIES_MAX)
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let is_hidden = name.starts_with('.') && !beginning.starts_with('.');
            let fits = name.starts_with(beginning) && !is_hidden && is_harmless(&name);
            let is_directory = fits && entry.path().is_dir();
            let end = if is_directory { "/" } else { "" };
            let display = format!("{name}{end}");
            fits.then(|| Candidate { replacement: format!("@{directory}{display}"), display })
        })
        .collect();
    found.sort_by(|a, b| a.display.cmp(&b.display));
    found.truncate(limits::COMPLETIONS_MAX);
    found
}

/// Returns whether a name can be shown as it is, and is one word.
fn is_harmless(name: &str) -> bool {
    escaped(name) == name && !name.contains(char::is_whitespace)
}
