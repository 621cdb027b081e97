//! Whether there is a model.

use std::io::ErrorKind;

use super::finding::{Check, fail, is_installed, pass, warn};
use super::settings::{edit, is_variable};
use crate::agent::endpoint::{
    self, EndpointError, FoundThere, LM_STUDIO, ModelChoice, OLLAMA_PROGRAM, TriedPort,
};
use crate::agent::model::{fault, first_chat_model, models};
use crate::config::{ModelSettings, search_path};
use crate::http::curl;
use crate::limits;
use crate::paths::Paths;
use crate::session::turn::Fault;

/// Checks that there is a model, and that its server answers.
pub fn model(paths: &Paths) -> Check {
    let config = paths.config();
    let settings = ModelSettings::load(&config)
        .map_err(|_invalid| warn("not checked: the settings are invalid"))?;
    let change = |source: &str| match is_variable(source) {
        true => format!("unset {source}"),
        false => edit(&config),
    };
    let endpoint = endpoint::resolve(&ModelChoice::default(), &settings).map_err(|error| {
        let fix = match &error {
            EndpointError::InvalidSetting { source, .. } => change(source),
            EndpointError::NotFound { tried, .. } => {
                let start = tried.iter().find_map(start);
                start.map_or_else(|| edit(&config), str::to_owned)
            }
        };
        fail(Fault::from(error).message, fix)
    })?;
    let curl = endpoint.url.starts_with("https:").then(|| curl::description(&search_path()));
    let curl = curl.flatten().map_or(String::new(), |curl| format!(" ({curl})"));
    let source = &endpoint.source;
    let server = format!("{} ({source}){curl}", endpoint.url);
    let names = models(&endpoint, limits::DOCTOR_MODEL_MAX).map_err(|fault| {
        let message = fault.message + &curl;
        match fault.code {
            // Neither shown nor kept in the shell's history.
            fault::UNAUTHORIZED => fail(message, "read -rs OPTA_API_KEY; export OPTA_API_KEY"),
            fault::UNREACHABLE => {
                fail(format!("{message}; start it, or remove the setting"), change(source))
            }
            _ => fail(message, change(source)),
        }
    })?;
    let names = names.ok_or_else(|| warn(format!("{server} does not list its models")))?;
    let model = endpoint.model.as_ref().or_else(|| first_chat_model(&names));
    let model = model.ok_or_else(|| {
        let message = format!("{server} has no model that chats: load one, or remove the setting");
        fail(message, change(source))
    })?;
    let is_it = |name: &String| name == model || name.strip_suffix(":latest") == Some(model);
    Ok(match names.iter().any(is_it) {
        true => pass(format!("{model} at {server}")),
        false => warn(format!("{server} does not list the model {model}")),
    })
}

/// Returns the command with which an installed program offers a model at its port, if there is one.
/// What another user's server, or another program, has taken is not free for it.
fn start(port: &TriedPort) -> Option<&'static str> {
    let (program, command) = match (port.program, &port.found) {
        (OLLAMA_PROGRAM, FoundThere::NoModel) => ("ollama", "ollama pull qwen3"),
        (OLLAMA_PROGRAM, FoundThere::Failure(error))
            if error.kind() == ErrorKind::ConnectionRefused =>
        {
            ("ollama", "ollama serve")
        }
        (LM_STUDIO, FoundThere::NoModel) => ("lms", "lms load"),
        _ => return None,
    };
    is_installed(program).then_some(command)
}
