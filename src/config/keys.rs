//! The names of the settings in `config.json`. Pure.

use std::collections::HashMap;

use crate::json::{self, Lenient};

/// The settings that are read, those of a section with its name.
pub const KEYS: [&str; 18] = [
    "connection.caFile",
    "connection.firstWordSeconds",
    "connection.host",
    "connection.port",
    "connection.proxy",
    "connection.silenceSeconds",
    "connection.url",
    "daemon.port",
    "environment",
    "log.files",
    "log.level",
    "log.maxBytes",
    "model.default",
    "model.maxTokens",
    "model.toolChoice",
    "permissions",
    "safety.maxToolCalls",
    "workspaces",
];

/// The form of a setting's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueForm {
    Number,
    Text,
    /// A word, or an object.
    TextOrObject,
    /// A list or an object.
    Structure,
}

/// Returns the form of the value of a setting, which may be that of a tool.
pub fn form_of(key: &str) -> ValueForm {
    match key {
        "connection.firstWordSeconds"
        | "connection.port"
        | "connection.silenceSeconds"
        | "daemon.port"
        | "log.files"
        | "log.maxBytes"
        | "model.maxTokens"
        | "safety.maxToolCalls" => ValueForm::Number,
        "environment" | "permissions" | "workspaces" => ValueForm::Structure,
        _ if key.starts_with("permissions.") => ValueForm::TextOrObject,
        _ => ValueForm::Text,
    }
}

/// The value of an object, by name.
pub type Values = HashMap<String, Lenient>;

/// Returns the names of the settings that are not read, in alphabetical order.
pub fn unknown(settings: Values) -> Vec<String> {
    let is_known = |name: &str| KEYS.contains(&name);
    let mut unknown = Vec::new();
    for (name, value) in settings {
        let within = format!("{name}.");
        if is_known(&name) {
            continue;
        }
        if !KEYS.iter().any(|key| key.starts_with(&within)) {
            unknown.push(name);
            continue;
        }
        // Anything but an object has no effect, or is an error elsewhere.
        let section: Values = json::parse(value.into_text().as_bytes()).unwrap_or_default();
        let names = section.into_keys().map(|key| within.clone() + &key);
        unknown.extend(names.filter(|name| !is_known(name)));
    }
    unknown.sort_unstable();
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_not_read_are_named_with_their_section() {
        let text = r#"{"daemon":{"port":1,"prot":2},"log":null,"modle":{"default":"x"},"port":3,
            "permissions":{"any":"deny"},"environment":[],"connection":{"url":"","uri":""}}"#;
        let found = unknown(json::parse(text.as_bytes()).unwrap());
        assert_eq!(found, ["connection.uri", "daemon.prot", "modle", "port"]);
    }
}
