//! A message that is written in the user's own editor.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Doing, Error, Kind};
use crate::paths::Paths;
use crate::token::random_name;
use crate::{config, disk, limits};

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
        let editor = config::editor().unwrap_or_else(|| "vi".to_owned());
        let mut shell = Command::new("sh");
        // The editor may have arguments; the name of the file is one of its own.
        shell.args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(&self.0);
        let status = shell.status().doing("run the editor")?;
        match status.success() {
            true => Ok(()),
            false => {
                let reason = format!("the editor '{editor}' ended with {status}");
                Err(Error::cannot(Kind::System, "edit the message", reason)
                    .with_next_step("to use another: set VISUAL or EDITOR"))
            }
        }
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
