//! A workspace for tests, removed with everything in it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::agent::tools::{LazyWorkspace, SeenBySession, Tool, ToolContext, Workspace};
use crate::protocol::Variable;
use crate::session::wake::Cancel;

pub struct Scratch(PathBuf, SeenBySession);

impl Scratch {
    pub fn new() -> Scratch {
        let name = format!("opta tools {} {:x}", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Scratch(path.canonicalize().unwrap(), SeenBySession::default())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn put(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }

    pub fn with_context<T>(&self, act: impl FnOnce(&ToolContext<'_>) -> T) -> T {
        self.with_context_of(&[], &Cancel::new().unwrap(), act)
    }

    pub fn with_context_of<T>(
        &self,
        environment: &[Variable],
        cancel: &Cancel,
        act: impl FnOnce(&ToolContext<'_>) -> T,
    ) -> T {
        let seen = self.1.of("scratch");
        act(&ToolContext { seen, ..context(&self.0, environment, cancel) })
    }

    /// As [`Scratch::with_context`], with a workspace inside of it and an environment.
    pub fn in_workspace<T>(
        &self,
        workspace: &Path,
        environment: &[Variable],
        act: impl FnOnce(&ToolContext<'_>) -> T,
    ) -> T {
        act(&context(workspace, environment, &Cancel::new().unwrap()))
    }

    /// Runs a tool. Gives its result as the tool returns it.
    pub fn run(&self, tool: &str, arguments: &str) -> Result<String, String> {
        let operation = Tool::named(tool).unwrap().parse(arguments).unwrap();
        self.with_context(|context| (operation.attempt)(context))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Makes a context with a workspace in which nothing is protected by its path or was seen.
pub fn context<'a>(
    workspace: &Path,
    environment: &'a [Variable],
    cancel: &'a Cancel,
) -> ToolContext<'a> {
    let path = workspace.to_str().unwrap().to_owned();
    ToolContext {
        workspace: LazyWorkspace::new(Box::new(move || Workspace::open(&path, &[]))),
        environment,
        umask: 0o022,
        seen: Arc::default(),
        cancel,
        deadline: Instant::now() + Duration::from_secs(120),
    }
}
