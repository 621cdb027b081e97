//! Whether the settings can be used, and all of them are known.

use std::path::Path;

use super::finding::{Check, fail, failed, first_installed, pass, quoted, warn};
use crate::commands::config_file::unknown_settings;
use crate::config::{Config, ModelSettings};
use crate::error::{Error, Kind};
use crate::paths::Paths;

/// Checks `config.json` and the variables.
pub fn settings(paths: &Paths) -> Check {
    let path = paths.config();
    let shown = paths.display(&path);
    let invalid = |error: Error| match error.reason().split_once(": ") {
        Some((name, _)) if error.kind() == Kind::InvalidConfig && is_variable(name) => {
            fail(error.to_string(), format!("unset {name}"))
        }
        _ => failed(&error, edit(&path)),
    };
    let unknown = unknown_settings(&path).map_err(invalid)?;
    Config::load(&path).and_then(|_| ModelSettings::load(&path)).map_err(invalid)?;
    if !unknown.is_empty() {
        let message = format!("{shown} has unknown settings: {}", unknown.join(", "));
        return Ok(warn(message).with_fix(edit(&path)));
    }
    if path.is_symlink() && !path.exists() {
        let message = format!("{shown} is a link to a file that does not exist");
        return Ok(warn(message).with_fix(format!("ls -l {}", quoted(&path))));
    }
    Ok(pass(if path.exists() { shown } else { format!("no {shown} (optional)") }))
}

/// Returns whether the source of a setting is a variable, and not a place in a file.
pub fn is_variable(source: &str) -> bool {
    source.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// Returns the command that opens a file of settings in the user's editor, or else shows it.
pub fn edit(config: &Path) -> String {
    let usual = first_installed(&["vi", "nano"]).unwrap_or("cat");
    format!("${{EDITOR:-{usual}}} {}", quoted(config))
}
