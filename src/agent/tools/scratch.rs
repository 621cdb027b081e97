//! A workspace for tests, removed with everything in it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::protocol::Variable;
use crate::session::wake::Cancel;

use super::{Scene, Tool};

pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        let name = format!("opta tools {} {:x}", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Scratch(path.canonicalize().unwrap())
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

    pub fn scene<T>(&self, act: impl FnOnce(&Scene<'_>) -> T) -> T {
        self.scene_with(&[], &Cancel::new().unwrap(), act)
    }

    pub fn scene_with<T>(
        &self,
        environment: &[Variable],
        cancel: &Cancel,
        act: impl FnOnce(&Scene<'_>) -> T,
    ) -> T {
        let deadline = Instant::now() + Duration::from_secs(120);
        act(&Scene::new(self.0.to_str(), &[], environment, cancel, deadline))
    }

    pub fn run(&self, tool: &str, arguments: &str) -> Result<String, String> {
        let job = Tool::named(tool).unwrap().job(arguments).unwrap();
        self.scene(|scene| job.attempt(scene))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}
