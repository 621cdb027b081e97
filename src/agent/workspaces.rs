//! The workspaces of sessions: a workspace is an absolute path, or a label that has a directory of
//! its own.
//!
//! It is checked when a session is created, so that no session is accepted whose tools would all
//! fail. The directory of a label is only created when a tool first needs it.

use std::path::{Path, PathBuf};

use crate::paths::Paths;
use crate::protocol::SessionSummary;
use crate::text::escaped;
use crate::{config, disk, limits, sys};

use super::tools::{LazyWorkspace, Workspace};

/// Where workspaces may be.
pub struct Workspaces {
    /// The user's settings, which may name the directory of a label.
    pub config: PathBuf,
    /// The directory with those of the other labels; `None`: there is no home directory.
    pub labels: Option<PathBuf>,
    /// opta's own files, which no file tool may touch: the token, sessions and permissions.
    pub protected: Vec<PathBuf>,
}

impl Workspaces {
    /// Returns those of a user.
    pub fn new(paths: &Paths) -> Workspaces {
        let (labels, protected) = (paths.workspaces().ok(), paths.of_all_homes());
        Workspaces { config: paths.config(), labels, protected }
    }

    /// Checks the workspace of a new session. Returns the directory of a label; `Err` is the reason
    /// why no tool could work there.
    pub fn check(&self, workspace: &str) -> Result<Option<String>, String> {
        if workspace.contains('/') {
            self.check_path(workspace)?;
            return Ok(None);
        }
        check_label(workspace)?;
        let named = config::workspaces(&self.config).map_err(|error| error.to_string())?;
        if let Some(directory) = named.get(workspace) {
            let by = |reason| format!("{reason}; workspaces.{workspace} in config.json names it");
            Workspace::open(directory, &self.protected).map_err(by)?;
            return Ok(Some(directory.clone()));
        }
        let directory = self.labels.as_ref().map(|labels| labels.join(workspace));
        let text = directory.as_ref().and_then(|path| path.to_str());
        let (directory, text) = directory.as_ref().zip(text).ok_or_else(|| {
            format!("the workspace {workspace} has no directory: there is no home directory for it")
        })?;
        let existing = directory.ancestors().find(|path| path.exists()).and_then(Path::to_str);
        match existing {
            Some(existing) if existing == text => self.check_path(text)?,
            Some(existing) => drop(Workspace::open(existing, &self.protected)?),
            None => {}
        }
        Ok(Some(text.to_owned()))
    }

    /// Checks that a directory can be used, and that it belongs to this user or to root. One of
    /// another user is used only if the settings name it: its files tell a model what to do.
    fn check_path(&self, path: &str) -> Result<(), String> {
        let owner = Workspace::open(path, &self.protected)?.owner();
        let is_own = owner.is_ok_and(|owner| owner == 0 || owner == sys::effective_user());
        let is_named = || {
            let named = config::workspaces(&self.config).map_err(|error| error.to_string())?;
            Ok::<bool, String>(named.values().any(|directory| directory == path))
        };
        match is_own || is_named()? {
            true => Ok(()),
            false => Err(format!(
                "the workspace {} belongs to another user; to use it, name it in workspaces in \
                 config.json",
                escaped(path)
            )),
        }
    }

    /// Returns the directory that the tools of a session work in, which need not exist.
    pub fn directory(&self, summary: &SessionSummary) -> Option<String> {
        let stored = summary.working_directory()?;
        // An older version did not choose one for a label.
        let chosen = if stored.contains('/') { None } else { self.check(stored).ok().flatten() };
        Some(chosen.unwrap_or_else(|| stored.to_owned()))
    }

    /// Returns the workspace of a session, to be opened when a tool first needs it. The directory
    /// of a label is created then.
    pub fn of(&self, summary: &SessionSummary) -> LazyWorkspace {
        let (label, directory) = (summary.workspace.clone(), self.directory(summary));
        let protected = self.protected.clone();
        LazyWorkspace::new(Box::new(move || {
            let directory = directory.ok_or("the session has no workspace")?;
            let path = Path::new(&directory);
            if label.is_some_and(|label| Paths::is_workspace_of(&label, path)) {
                disk::ensure_owned_directory(path).map_err(|error| error.to_string())?;
            }
            Workspace::open(&directory, &protected)
        }))
    }
}

/// Checks that a label can be the name of a directory, and could not be meant as a path.
fn check_label(label: &str) -> Result<(), String> {
    let max = limits::LABEL_BYTES_MAX;
    if label.trim().is_empty() {
        return Err("the workspace is empty".to_owned());
    }
    if label.len() > max {
        return Err(format!("the label of the workspace is longer than {max} bytes"));
    }
    if matches!(label, "." | "..") || label.starts_with('~') || label.contains(char::is_control) {
        let label = escaped(label);
        return Err(format!("the workspace {label} is neither an absolute path nor a label"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::scratch::Scratch;

    #[test]
    fn a_workspace_is_an_absolute_path_or_a_label() {
        let scratch = Scratch::new();
        let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
        scratch.put("work/file", "");
        scratch.put("own/daemon/daemon.pid", "");
        scratch.put("own/daemon/start.lock", "");
        let mut workspaces = Workspaces {
            config: path("config.json").into(),
            labels: Some(path("share/opta/workspaces").into()),
            protected: vec![path("own").into()],
        };
        let longest = "l".repeat(limits::LABEL_BYTES_MAX);
        for label in ["default", "Workspace", "My project", "été", ".hidden", &longest] {
            let directory = Some(path("share/opta/workspaces") + "/" + label);
            assert_eq!(workspaces.check(label), Ok(directory), "{label}");
        }
        assert_eq!(workspaces.check(&path("work")), Ok(None));
        let too_long = format!("{longest}l");
        for (workspace, reason) in [
            ("", "the workspace is empty"),
            (" ", "the workspace is empty"),
            (".", "the workspace . is neither an absolute path nor a label"),
            ("..", "the workspace .. is neither an absolute path nor a label"),
            ("~", "the workspace ~ is neither an absolute path nor a label"),
            ("~root", "the workspace ~root is neither an absolute path nor a label"),
            ("a\nb", "the workspace a\\nb is neither an absolute path nor a label"),
            ("~/work", "the workspace ~/work is not an absolute path"),
            ("./work", "the workspace ./work is not an absolute path"),
            (&too_long, "the label of the workspace is longer than 255 bytes"),
        ] {
            assert_eq!(workspaces.check(workspace), Err(reason.to_owned()), "{workspace}");
        }
        for (name, reason) in [
            ("gone", "cannot be opened: No such file or directory"),
            ("work/file", "cannot be opened: Not a directory"),
            ("own", "belongs to opta itself"),
            ("own/new/..", "cannot be opened: No such file or directory"),
        ] {
            let wanted = format!("the workspace {} {reason}", path(name));
            assert_eq!(workspaces.check(&path(name)), Err(wanted));
        }
        assert!(!scratch.path().join("share").exists());
        // A path is never created.
        let gone = SessionSummary { workspace: Some(path("gone")), ..SessionSummary::default() };
        let problem = workspaces.of(&gone).as_ref().err().cloned().unwrap();
        assert!(problem.ends_with("No such file or directory"), "{problem}");
        workspaces.labels = Some(path("own/workspaces").into());
        assert!(workspaces.check("default").unwrap_err().ends_with("belongs to opta itself"));
        workspaces.labels = None;
        assert!(workspaces.check("default").unwrap_err().contains("no home directory"));
    }

    #[test]
    fn the_settings_may_name_the_directory_of_a_label() {
        let scratch = Scratch::new();
        let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
        let workspaces = Workspaces {
            config: path("config.json").into(),
            labels: Some(path("share").into()),
            protected: Vec::new(),
        };
        scratch.put("work/file", "");
        let settings = |directory: &str| {
            let settings = format!(r#"{{"workspaces":{{"default":"{directory}"}}}}"#);
            scratch.put("config.json", &settings);
            workspaces.check("default")
        };
        assert_eq!(settings(&path("work")), Ok(Some(path("work"))));
        assert_eq!(workspaces.check("other"), Ok(Some(path("share/other"))));
        let gone = settings(&path("gone")).unwrap_err();
        let reason = "No such file or directory; workspaces.default in config.json names it";
        assert!(gone.ends_with(reason), "{gone}");
        let relative = settings("~/work").unwrap_err();
        assert!(relative.contains("workspaces.default") && relative.contains("absolute"));
        // Other sessions do not depend on it.
        assert_eq!(workspaces.check(&path("work")), Ok(None));
    }
}
