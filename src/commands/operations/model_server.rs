//! The model server in the form in which the desktop app asks for it, made of the list of models.
//!
//! A server that only speaks OpenAI's API tells nothing about memory and other models.

use crate::agent::endpoint::{self, ModelChoice};
use crate::agent::model::{ListedModel, fault, listed_models};
use crate::config::ModelSettings;
use crate::json::{Object, Raw};
use crate::limits;
use crate::paths::Paths;
use crate::protocol::Endpoint;
use crate::server::ModelServerView;
use crate::session::turn::Fault;

const MEMORY: &str = r#"{"total_unified_memory_gb":0,"used_gb":0,"available_gb":0,"models":{}}"#;

/// Returns a view of the server that a turn would ask. Fails if it does not answer, whatever the
/// view, because the app takes any other answer as a sign that it does.
pub fn show(paths: &Paths, view: ModelServerView) -> Result<Raw, String> {
    let settings = ModelSettings::load(&paths.config()).map_err(|error| error.to_string())?;
    let endpoint = endpoint::resolve(&ModelChoice::default(), &settings);
    let endpoint = endpoint.map_err(|error| Fault::from(error).message)?;
    let models = listed_models(&endpoint, limits::MODEL_LIST_MAX).map_err(reason)?;
    let models: Vec<Raw> = models.unwrap_or_default().iter().map(model).collect();
    let constant = |text| Raw::parse(text).map_err(|error| error.to_string());
    match view {
        ModelServerView::Status => {
            Ok(Raw::of(&Object(&[("status", &"ok".to_owned()), ("models", &models)])))
        }
        ModelServerView::Models => Ok(Raw::of(&Object(&[("models", &models)]))),
        ModelServerView::Available => constant("[]"),
        ModelServerView::Memory => constant(MEMORY),
        ModelServerView::Discovery => Ok(discovery(&endpoint)),
    }
}

fn reason(fault: Fault) -> String {
    match fault.code {
        // The server's own words may be those by which the app finds out that its token is old.
        fault::UNAUTHORIZED => "the model server needs a key, or another one".to_owned(),
        _ => fault.message,
    }
}

fn model(model: &ListedModel) -> Raw {
    let status = "loaded".to_owned();
    let shown = Raw::of(&Object(&[("model_id", &model.name), ("status", &status)]));
    match &model.context {
        Some(context) => shown.with(&[("context_length", context)]),
        None => shown,
    }
}

fn discovery(endpoint: &Endpoint) -> Raw {
    let url = &endpoint.url;
    let (host, port) = endpoint::address(endpoint).unzip();
    let (urls, fallback, is_found) =
        (vec![url.clone()], Vec::<String>::new(), endpoint.was_found());
    let endpoints =
        Object(&[("openai_base_url", url), ("preferred_base_url", url), ("base_urls", &urls)]);
    let target = Object(&[
        ("host", &host),
        ("port", &port),
        ("fallbackHosts", &fallback),
        ("autoDiscover", &is_found),
    ]);
    Raw::of(&Object(&[("ready", &true), ("endpoints", &endpoints), ("target", &target)]))
}
