//! The system prompt: where the model is, how it should work, and the instructions in `AGENTS.md`
//! files.
//!
//! It is the same in all turns of a session as long as nothing in it changes: model servers keep
//! what they have computed for the beginning of a conversation.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::text::escaped;
use crate::{clock, disk, limits};

use super::tools::{Effect, Repository, Tool, Workspace};

/// The names of files with instructions, in the order of preference.
const NAMES: [&str; 2] = ["AGENTS.md", "CLAUDE.md"];

/// What a prompt is about.
pub struct Surroundings<'a> {
    /// The directory that tools work in, which need not exist.
    pub workspace: Option<&'a str>,
    pub tools: &'a [&'static Tool],
    /// The directory of opta.
    pub home: &'a Path,
    /// What must not be read.
    pub protected: &'a [PathBuf],
}

/// A system prompt, and where the instructions in it are from.
pub struct SystemPrompt {
    pub text: String,
    pub instructions: Vec<String>,
}

impl Surroundings<'_> {
    /// Returns the prompt.
    pub fn prompt(&self) -> SystemPrompt {
        let mut text = "You are opta, an agent that helps a user on their computer.".to_owned();
        text.push_str(&format!("\nSystem: {}. Date: {}.", system(), today()));
        let path = self.workspace.and_then(|path| Path::new(path).canonicalize().ok());
        let repository = path.as_deref().and_then(Repository::of);
        if let Some(path) = self.workspace {
            let path = escaped(path);
            text.push_str(&format!("\nDirectory: {path}. Paths are relative to it."));
            let state = repository.as_ref().and_then(Repository::state);
            state.iter().for_each(|state| text.push_str(&format!("\nGit: {state}.")));
        }
        text.push_str(&self.advice());
        let found = self.instructions(path.as_deref(), repository.as_ref());
        let mut room = limits::INSTRUCTIONS_BYTES_MAX;
        for (name, content) in &found {
            // Never within a character.
            let end =
                (0..=room.min(content.len())).rev().find(|end| content.is_char_boundary(*end));
            let shown = content.get(..end.unwrap_or(0)).unwrap_or_default();
            room -= shown.len();
            text.push_str(&format!("\n\nInstructions in {name}:\n{}", shown.trim_end()));
            if shown.len() < content.len() {
                text.push_str("\n[the rest is left out]");
            }
        }
        let instructions = found.into_iter().map(|(name, _)| name).collect();
        SystemPrompt { text, instructions }
    }

    /// Returns how to work with the tools that there are.
    fn advice(&self) -> String {
        let has = |effect| self.tools.iter().any(|tool| tool.effect == effect);
        let mut advice = String::new();
        if has(Effect::Reads) {
            advice
                .push_str("\n- Look before you answer or change anything: search, and read files.");
        }
        if has(Effect::Edits) {
            advice.push_str(
                "\n- Change existing files with small edits, in their style; read a file before \
                 you change it.",
            );
        }
        if has(Effect::Runs) {
            advice.push_str(
                "\n- Commands run in /bin/sh, without a terminal: no editors, pagers or prompts, \
                 and no programs that wait for input. After a change, run the tests that there are.",
            );
        }
        if !advice.is_empty() {
            advice.push_str(
                "\n- When the task is done, or you need the user, answer without a tool call: \
                 briefly, with what you did and what is left.",
            );
        }
        advice
    }

    /// Returns the names and contents of the files with instructions: of opta's directory, then of
    /// each directory from the top of the repository to the workspace.
    fn instructions(
        &self,
        path: Option<&Path>,
        repository: Option<&Repository>,
    ) -> Vec<(String, String)> {
        let mut found: Vec<(String, String)> = Vec::new();
        let own = NAMES.iter().find_map(|name| {
            let path = self.home.join(name);
            // The user's own, which may be a link to anywhere.
            let file = disk::open_user_file(&path).ok().flatten()?;
            Some((path.display().to_string(), read(file)?))
        });
        found.extend(own);
        let Some(path) = path else { return found };
        // Nobody else's directory above the workspace is asked for instructions.
        let top = repository.filter(|repository| repository.is_trusted());
        let top = top.map_or(path, |repository| repository.top.as_path());
        let Some(top_name) = top.to_str() else { return found };
        let Ok(tree) = Workspace::open(top_name, self.protected) else { return found };
        let mut directory = PathBuf::new();
        let inside = path.strip_prefix(top).unwrap_or(Path::new(""));
        for part in [Path::new("")].into_iter().chain(inside.iter().map(Path::new)) {
            directory.push(part);
            found.extend(NAMES.iter().find_map(|name| {
                let name = directory.join(name);
                let name = name.to_str()?;
                Some((name.to_owned(), read(tree.file(name).ok()?)?))
            }));
        }
        found.retain(|(_, content)| !content.trim().is_empty());
        found
    }
}

fn read(file: fs::File) -> Option<String> {
    let mut bytes = Vec::new();
    // One byte more shows that there is more.
    let most = limits::INSTRUCTIONS_BYTES_MAX as u64 + 1;
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the name of the system, of the distribution if there is one, and the architecture.
fn system() -> String {
    let system = match std::env::consts::OS {
        "macos" => "macOS",
        "linux" => "Linux",
        other => other,
    };
    // os-release(5)
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = name.map(|name| name.trim_matches('"')).filter(|name| !name.is_empty());
    let name = name.map_or(String::new(), |name| format!("{}, ", escaped(name)));
    format!("{system} ({name}{})", std::env::consts::ARCH)
}

fn today() -> String {
    clock::rfc3339(clock::now_millis()).chars().take(10).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::scratch::Scratch;
    use crate::agent::tools::TOOLS;
    use std::os::unix::fs::symlink;

    fn prompt(scratch: &Scratch, below: &str) -> SystemPrompt {
        let workspace = scratch.path().join(below);
        let surroundings = Surroundings {
            workspace: workspace.to_str(),
            tools: &[],
            home: &scratch.path().join("home/opta"),
            protected: &[scratch.path().join("home/opta")],
        };
        surroundings.prompt()
    }

    #[test]
    fn instructions_are_those_from_the_top_of_the_repository_to_the_workspace() {
        let scratch = Scratch::new();
        scratch.put("AGENTS.md", "above");
        scratch.put("home/opta/AGENTS.md", "own");
        scratch.put("repo/.git/HEAD", "ref: refs/heads/main\n");
        scratch.put("repo/CLAUDE.md", "top\n");
        scratch.put("repo/a/AGENTS.md", "middle");
        scratch.put("repo/a/CLAUDE.md", "not this");
        scratch.put("repo/a/b/AGENTS.md", " \n");
        scratch.put("repo/a/c/AGENTS.md", "elsewhere");
        let SystemPrompt { text, instructions } = prompt(&scratch, "repo/a/b");
        let own = scratch.path().join("home/opta/AGENTS.md").display().to_string();
        assert_eq!(instructions, [own.as_str(), "CLAUDE.md", "a/AGENTS.md"]);
        let wanted = format!(
            "\n\nInstructions in {own}:\nown\n\nInstructions in CLAUDE.md:\ntop\n\n\
             Instructions in a/AGENTS.md:\nmiddle"
        );
        assert!(text.ends_with(&wanted), "{text}");
        assert!(text.contains("\nGit: branch main."), "{text}");
    }

    #[test]
    fn instructions_cannot_lead_out_of_the_repository_or_into_opta() {
        let scratch = Scratch::new();
        scratch.put("home/opta/daemon/state.json", "secret");
        scratch.put("outside", "secret");
        scratch.put("repo/real.md", "good");
        symlink("real.md", scratch.path().join("repo/CLAUDE.md")).unwrap();
        for target in ["../outside", "../home/opta/daemon/state.json", "/etc/passwd"] {
            let link = scratch.path().join("repo/AGENTS.md");
            symlink(target, &link).unwrap();
            let SystemPrompt { text, instructions } = prompt(&scratch, "repo");
            assert_eq!(instructions, ["CLAUDE.md"], "{target}");
            assert!(text.ends_with("Instructions in CLAUDE.md:\ngood"), "{text}");
            fs::remove_file(link).unwrap();
        }
        // A whole home that is a repository.
        scratch.put("home/.git/HEAD", "ref: refs/heads/main\n");
        symlink("opta/daemon/state.json", scratch.path().join("home/AGENTS.md")).unwrap();
        assert!(!prompt(&scratch, "home").text.contains("secret"));
    }

    #[test]
    fn instructions_beyond_the_limit_are_left_out() {
        let scratch = Scratch::new();
        scratch.put("repo/AGENTS.md", &"é".repeat(limits::INSTRUCTIONS_BYTES_MAX / 2));
        assert!(prompt(&scratch, "repo").text.ends_with("éé"));
        scratch.put("repo/AGENTS.md", &"é".repeat(limits::INSTRUCTIONS_BYTES_MAX / 2 + 1));
        assert!(prompt(&scratch, "repo").text.ends_with("é\n[the rest is left out]"));
        scratch.put("home/opta/CLAUDE.md", "own");
        let both = prompt(&scratch, "repo").text;
        assert!(both.contains("own\n") && both.ends_with("[the rest is left out]"));
        assert!(both.len() < limits::INSTRUCTIONS_BYTES_MAX + 2_000, "{}", both.len());
    }

    #[test]
    fn the_advice_is_about_the_tools_that_there_are() {
        let with = |tools: &[&'static Tool]| {
            let home = Path::new("/nowhere");
            Surroundings { workspace: None, tools, home, protected: &[] }.prompt().text
        };
        let all: Vec<&'static Tool> = TOOLS.iter().collect();
        assert!(with(&all).contains("small edits") && with(&all).contains("/bin/sh"));
        assert!(with(&all).len() < 1_000, "{}", with(&all).len());
        let reading: Vec<&'static Tool> =
            all.into_iter().filter(|tool| tool.effect == Effect::Reads).collect();
        assert!(!with(&reading).contains("edits") && !with(&reading).contains("/bin/sh"));
        assert!(!with(&[]).contains("tool"));
    }
}
