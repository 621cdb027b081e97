//! What answers turns: a model, the tools it may use, and who allows what.

mod address;
mod calls;
mod contexts;
pub mod find;
mod history;
pub mod model;
mod permissions;
mod text_tool_call;
mod tools;
mod turn_loop;

use std::path::{Path, PathBuf};

use crate::config::{ModelSettings, ToolSettings};
use crate::error::Error;
use crate::log::Log;
use crate::paths::Paths;
use crate::protocol::Endpoint;
use crate::protocol::event::TurnStats;
use crate::session::desk::Turn;
use crate::session::turn::{Agent, Fault};
use crate::session::wake::Cancel;

use contexts::Contexts;
use find::Wanted;
use model::{Answer, Ask, Piece};
pub use tools::shown;
use turn_loop::TurnLoop;

/// What can be asked: a model server, or what a test has in its place.
trait Model: Send + Sync {
    /// Where it is, for a turn that does not say; `model` is the session's, if it has one.
    fn endpoint(&self, settings: &ModelSettings, model: Option<&str>) -> Result<Endpoint, Fault>;

    /// See [`model::ask`].
    fn ask(
        &self,
        ask: &Ask<'_>,
        cancel: &Cancel,
        on_piece: &mut dyn FnMut(Piece<'_>) -> Result<(), Fault>,
    ) -> Result<Answer, Fault>;
}

/// Whether a tool has this name, or this other name.
pub fn has_tool(name: &str) -> bool {
    tools::Tool::named(name).is_some()
}

/// The model of a real server.
struct RealModel;

impl Model for RealModel {
    fn endpoint(&self, settings: &ModelSettings, model: Option<&str>) -> Result<Endpoint, Fault> {
        Ok(find::resolve(&Wanted { model_url: None, model, settings })?)
    }

    fn ask(
        &self,
        ask: &Ask<'_>,
        cancel: &Cancel,
        on_piece: &mut dyn FnMut(Piece<'_>) -> Result<(), Fault>,
    ) -> Result<Answer, Fault> {
        model::ask(ask, cancel, on_piece)
    }
}

/// Answers turns with a model and its tools.
pub struct Assistant {
    /// Read anew for each turn, so that an edit counts from the next one on.
    config: PathBuf,
    /// What no tool for files may touch: opta's own, where token, sessions and permissions are.
    closed: Vec<PathBuf>,
    log: Log,
    model: Box<dyn Model>,
    contexts: Contexts,
}

impl Assistant {
    /// The user's `config.json` need not be there.
    pub fn new(paths: &Paths, log: Log) -> Assistant {
        let (config, contexts) = (paths.config(), Contexts::default());
        // The settings may be a link that leads elsewhere.
        let closed = vec![paths.root().to_owned(), config.clone()];
        Assistant { config, closed, log, model: Box::new(RealModel), contexts }
    }

    fn endpoint(&self, turn: &Turn<'_>) -> Result<Endpoint, Fault> {
        let session_model = Some(turn.summary().model).filter(|model| !model.is_empty());
        match &turn.options.endpoint {
            Some(given) => {
                Ok(Endpoint { model: given.model.clone().or(session_model), ..given.clone() })
            }
            None => {
                let settings = settings(ModelSettings::load, &self.config)?;
                self.model.endpoint(&settings, session_model.as_deref())
            }
        }
    }
}

impl Agent for Assistant {
    fn run(&self, turn: &Turn<'_>) -> Result<TurnStats, Fault> {
        let settings = settings(ToolSettings::load, &self.config)?;
        let endpoint = self.endpoint(turn)?;
        TurnLoop::begin(turn, self, endpoint, settings)?.run()
    }
}

fn settings<T>(load: fn(&Path) -> Result<T, Error>, config: &Path) -> Result<T, Fault> {
    load(config).map_err(|error| Fault { code: "config-error", message: error.to_string() })
}

#[cfg(test)]
mod tests;
