//! `opta models`

use std::process::ExitCode;

use crate::agent::endpoint::{self, ModelChoice};
use crate::agent::model;
use crate::commands::Output;
use crate::config::ModelSettings;
use crate::error::{Error, Kind};
use crate::json::Object;
use crate::limits;
use crate::paths::Paths;
use crate::session::turn::Fault;

/// Prints the models of the server that a task would use, and which of them it would use.
pub fn run(paths: &Paths, url: Option<&str>, output: &Output) -> Result<ExitCode, Error> {
    let settings = ModelSettings::load(&paths.config())?;
    let failed = |reason: String| {
        Error::cannot(Kind::ModelServer, "list the models", reason)
            .with_next_step("to check the setup: opta doctor")
    };
    let endpoint = endpoint::resolve(&ModelChoice { url, ..ModelChoice::default() }, &settings);
    let endpoint = endpoint.map_err(|error| failed(Fault::from(error).message))?;
    let listed = model::models(&endpoint, limits::MODEL_LIST_MAX);
    let listed = listed.map_err(|fault| failed(fault.message))?;
    let listed = listed.ok_or_else(|| failed(format!("{} has no list", endpoint.url)))?;
    let default = endpoint.model.as_ref().or_else(|| model::first_chat_model(&listed));
    for name in &listed {
        let is_used = default == Some(name);
        output.text(name)?;
        output.json(&Object(&[("model", name), ("used", &is_used), ("server", &endpoint.url)]))?;
    }
    let url = match endpoint.was_found() {
        true => format!("{}, {}", endpoint.url, endpoint.source),
        false => endpoint.url.clone(),
    };
    output.note(&match default {
        Some(name) if listed.contains(name) => format!("the default is {name}, at {url}"),
        Some(name) => format!("the default is {name}, which is not in the list of {url}"),
        None => format!("no model of {url} chats"),
    });
    Ok(ExitCode::SUCCESS)
}
