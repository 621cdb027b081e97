//! A message that is written in the user's own editor.

use std::io::Write;
use std::path::PathBuf;

use crate::commands::config_file::run_editor;
use crate::error::{At, Error, Kind};
use crate::paths::Paths;
use crate::token::random_name;
use crate::{disk, limits};

/// The file of a message that is being written. Dropping it removes the file, unless it has text
/// that cannot be used.
pub struct Draft<'t> {
    path: PathBuf,
    begin: &'t str,
    is_kept: bool,
}

impl Draft<'_> {
    /// Writes the beginning of a message.
    pub fn new<'t>(paths: &Paths, begin: &'t str) -> Result<Draft<'t>, Error> {
        disk::ensure_owned_directory(paths.root())?;
        let path = paths.root().join(format!("message-{}.md", random_name(8)?));
        let draft = Draft { path, begin, is_kept: false };
        disk::open_or_create(&draft.path)?.write_all(begin.as_bytes()).at("write", &draft.path)?;
        Ok(draft)
    }

    /// Runs the user's editor until it ends.
    pub fn edit(&self) -> Result<(), Error> {
        run_editor(&self.path, "edit the message")
    }

    /// Returns what was written. The file is kept if that cannot be used, or for the reason given
    /// is not.
    pub fn read(mut self, unused: Option<&str>) -> Result<String, Error> {
        self.is_kept = true;
        let Some(mut file) = disk::open_user_file(&self.path)? else {
            return Ok(String::new());
        };
        let max = limits::TASK_BYTES_MAX;
        let read = disk::read_up_to(&mut file, &self.path, max)?.map(String::from_utf8);
        let reason = match read {
            Some(Ok(text)) => match unused.filter(|_| text != self.begin) {
                Some(reason) => reason.to_owned(),
                None => {
                    self.is_kept = false;
                    return Ok(text.trim_end().to_owned());
                }
            },
            Some(Err(_)) => "it is not UTF-8".to_owned(),
            None => format!("it is longer than {max} bytes"),
        };
        let next_step = format!("it is kept in {}", self.path.display());
        Err(Error::cannot(Kind::System, "use the message", reason).with_next_step(next_step))
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            drop(disk::remove(&self.path));
        }
    }
}
