//! A message that is written in the user's own editor.

use std::path::{Path, PathBuf};

use crate::commands::config_file::run_editor;
use crate::error::{Error, Kind};
use crate::paths::Paths;
use crate::token::random_name;
use crate::{disk, limits};

/// The file of a message that is being written. Dropping it removes the file.
pub struct Draft(PathBuf);

impl Draft {
    /// Writes the beginning of a message.
    pub fn new(paths: &Paths, text: &str) -> Result<Draft, Error> {
        disk::ensure_owned_directory(paths.root())?;
        let draft = Draft(paths.root().join(format!("message-{}.md", random_name(8)?)));
        disk::replace(&draft.0, text.as_bytes())?;
        Ok(draft)
    }

    /// Runs the user's editor until it ends.
    pub fn edit(&self) -> Result<(), Error> {
        run_editor(&self.0, "edit the message")
    }

    /// Returns what was written.
    pub fn read(&self) -> Result<String, Error> {
        let path: &Path = &self.0;
        let Some(mut file) = disk::open_user_file(path)? else {
            return Ok(String::new());
        };
        let refused = |reason: String| Err(Error::cannot(Kind::System, "use the message", reason));
        let max = limits::TASK_BYTES_MAX;
        match disk::read_up_to(&mut file, path, max)?.map(String::from_utf8) {
            Some(Ok(text)) => Ok(text.trim_end().to_owned()),
            Some(Err(_)) => refused("it is not UTF-8".to_owned()),
            None => refused(format!("it is longer than {max} bytes")),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        drop(disk::remove(&self.0));
    }
}
