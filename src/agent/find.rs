//! Where the model is: what the user has set, else what answers on this machine.

use crate::config::ModelSettings;
use crate::session::turn::{Endpoint, Fault};

/// What the user says about the model: with the command, and in the settings.
pub struct Wanted<'a> {
    /// `--model-url`
    pub model_url: Option<&'a str>,
    /// `--model`
    pub model: Option<&'a str>,
    pub settings: &'a ModelSettings,
}

/// The endpoint that is meant.
pub fn resolve(_given: &Wanted<'_>) -> Result<Endpoint, Fault> {
    Err(Fault { code: "model-unreachable", message: "no model is asked yet".to_owned() })
}
