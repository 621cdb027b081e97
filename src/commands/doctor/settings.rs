//! Whether the settings can be used, and all of them are known.

use std::path::Path;

use super::finding::{Check, fail, failed, first_installed, pass, quoted, warn};
use crate::config::{self, Config, ModelSettings, ToolSettings};
use crate::error::{Error, Kind};
use crate::paths::Paths;
use crate::{agent, cli};

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
    Config::load(&path).map_err(invalid)?;
    ModelSettings::load(&path).map_err(invalid)?;
    config::workspaces(&path).map_err(invalid)?;
    let tools = ToolSettings::load(&path).map_err(invalid)?;
    let mut unknown = config::unknown_settings(&path).map_err(invalid)?;
    // A misspelled name restricts nothing.
    let names =
        tools.permissions.names().filter(|name| agent::tool_names().all(|tool| tool != *name));
    unknown.extend(names.map(of_tool));
    if !unknown.is_empty() {
        unknown.sort_unstable();
        let known = config::KEYS.map(str::to_owned).into_iter();
        let known: Vec<String> = known.chain(agent::tool_names().map(of_tool)).collect();
        let list: Vec<String> = unknown.iter().map(|name| suggestion(name, &known)).collect();
        let message = format!("{shown} has unknown settings: {}", list.join(", "));
        return Ok(warn(message).with_fix(edit(&path)));
    }
    if path.is_symlink() && !path.exists() {
        let message = format!("{shown} is a link to a file that does not exist");
        return Ok(warn(message).with_fix(format!("ls -l {}", quoted(&path))));
    }
    Ok(pass(if path.exists() { shown } else { format!("no {shown} (optional)") }))
}

/// Returns the name of the setting for a tool.
fn of_tool(name: impl AsRef<str>) -> String {
    format!("permissions.{}", name.as_ref())
}

/// Returns an unknown name with the known one that may be meant: one in another section, or a
/// similar one.
fn suggestion(name: &str, known: &[String]) -> String {
    let last = |name: &str| name.rsplit('.').next().map(str::to_owned);
    let moved = known.iter().find(|known| last(known) == last(name)).map(String::as_str);
    match moved.or_else(|| cli::nearest(name, known)) {
        Some(meant) => format!("{name} (did you mean {meant}?)"),
        None => name.to_owned(),
    }
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
