//! A client for OpenAI's chat completions API: one request, and its streamed completion.
//!
//! Completions are always streamed, because a server stops immediately when the connection of a
//! stream is closed, which is how a completion is cancelled. No request is sent again once a part
//! of its completion has arrived.

mod completion;
pub mod fault;
mod server;
mod server_memory;
#[cfg(test)]
mod tests;
mod tool_calls;
mod wire;

pub use completion::{Completion, Delta, DeltaKind, FinishReason};
pub use server::{Timeouts, first_chat_model, invalid_setting, model_names};
pub use server_memory::ServerMemory;
pub use wire::{ChatRequest, messages};

use std::time::{Duration, Instant};

use crate::http::ClientConnection;
use crate::limits;
use crate::protocol::Endpoint;
use crate::session::turn::{self, Fault};
use crate::session::wake::Cancel;

use completion::CompletionParser;
use fault::CompletionError;
use server::ModelServer;

/// What the server did if its completion is truncated.
const TRUNCATED: &str = "stopped in the middle of its answer";

/// A receiver of a completion as it arrives. A fault ends the completion.
pub type OnDelta<'a> = dyn FnMut(&Delta) -> Result<(), Fault> + 'a;

/// A model, or a script in a test.
pub trait ChatModel: Send + Sync {
    /// Requests a completion, and passes on each part of it as it arrives.
    ///
    /// # Faults
    ///
    /// `model-config`, `model-unreachable`, `model-unauthorized`, `model-busy`, `model-error`,
    /// `model-malformed`, `model-timeout`, `model-disconnected`, `context-too-long` and
    /// `cancelled`. What was passed on before is all there is of the completion; its tool calls do
    /// not count.
    fn complete(
        &self,
        request: &ChatRequest<'_>,
        memory: &ServerMemory,
        cancel: &Cancel,
        on_delta: &mut OnDelta<'_>,
    ) -> Result<Completion, Fault>;
}

/// The model at the endpoint of each request.
pub struct ServedModel(pub Timeouts);

impl ChatModel for ServedModel {
    fn complete(
        &self,
        request: &ChatRequest<'_>,
        memory: &ServerMemory,
        cancel: &Cancel,
        on_delta: &mut OnDelta<'_>,
    ) -> Result<Completion, Fault> {
        let endpoint = request.endpoint;
        let server = ModelServer::new(endpoint, Some(cancel), self.0)?;
        let model = match &endpoint.model {
            Some(model) => Some(model.clone()),
            None => first_model(&server, memory)?,
        };
        let mut omitted = memory.rejected(endpoint);
        loop {
            let body = wire::request_body(request, model.as_deref(), &omitted);
            let (mut connection, head) = server.send("/chat/completions", &body, self.0.first)?;
            if head.status == 200 {
                let completion = receive(&server, &mut connection, on_delta)?;
                // The limit did not fit into this conversation; it may fit into the next one.
                omitted.retain(|field| *field != wire::TOKEN_LIMIT);
                memory.learn_rejected(endpoint, omitted);
                return Ok(completion);
            }
            let error = server.read_error(&mut connection);
            match wire::rejected_field(&error, &omitted) {
                Some(field) if matches!(head.status, 400 | 422) => omitted.push(field),
                _ if server.is_cancelled() => return Err(turn::cancelled()),
                _ => return Err(server.status_fault(&head, &error)),
            }
        }
    }
}

/// Returns the names of a server's models, or `None` if it has no such list, within `limit`.
/// `GET /v1/models`
///
/// # Faults
/// As for [`ChatModel::complete`].
pub fn models(endpoint: &Endpoint, limit: Duration) -> Result<Option<Vec<String>>, Fault> {
    let deadline = Some(Instant::now() + limit);
    let timeouts = Timeouts { retries: 0, loading: Duration::ZERO, deadline, ..Timeouts::TURN };
    ModelServer::new(endpoint, None, timeouts)?.models(limit)
}

/// Returns the model to use when none is named; `None` leaves the choice to the server.
fn first_model(server: &ModelServer<'_>, memory: &ServerMemory) -> Result<Option<String>, Fault> {
    if let Some(model) = memory.first_model(server.endpoint) {
        return Ok(Some(model));
    }
    let Some(names) = server.models(limits::MODEL_LIST_MAX)? else {
        return Ok(None);
    };
    let Some(model) = first_chat_model(&names) else {
        let what = if names.is_empty() { "has no model" } else { "has no model that chats" };
        return Err(server.fault(fault::ERROR, format_args!("{what}: load one, or name one")));
    };
    memory.learn_first_model(server.endpoint, model);
    Ok(Some(model.clone()))
}

/// Receives a completion from its first chunk to its last.
fn receive(
    server: &ModelServer<'_>,
    connection: &mut ClientConnection<'_>,
    on_delta: &mut OnDelta<'_>,
) -> Result<Completion, Fault> {
    let mut parser = CompletionParser::default();
    let mut begun = Instant::now();
    while !parser.is_done() {
        let timeouts = &server.timeouts;
        let limit = match (parser.is_finished(), parser.has_begun()) {
            (true, _) => timeouts.tail,
            (false, true) => timeouts.idle,
            (false, false) => timeouts.first,
        };
        let parsed = match connection.body(limit) {
            Ok(Some(bytes)) => {
                if !parser.has_begun() {
                    begun = Instant::now();
                }
                parser.feed(&bytes)
            }
            Ok(None) => parser.end(),
            // What happens to the connection after the last chunk does not matter.
            Err(_) if parser.is_finished() && !server.is_cancelled() => break,
            Err(error) => return Err(server.connection_fault(&error, TRUNCATED)),
        };
        for delta in parser.take_deltas() {
            on_delta(&delta)?;
        }
        parsed.map_err(|error| completion_fault(server, error, parser.has_text()))?;
    }
    Ok(parser.finish(begun.elapsed()))
}

fn completion_fault(server: &ModelServer<'_>, error: CompletionError, has_text: bool) -> Fault {
    match error {
        CompletionError::Truncated => server.fault(fault::DISCONNECTED, TRUNCATED),
        CompletionError::Reported(text) => {
            let code = match fault::code_of(&text) {
                // A turn must not ask again for text that was passed on.
                fault::TOO_LONG if has_text => fault::ERROR,
                code => code,
            };
            server.fault(code, format_args!("says: {}", server.quote(&text)))
        }
        CompletionError::Unexpected(opening) => server.unexpected(&opening),
        CompletionError::Malformed(problem) => {
            server.fault(fault::ERROR, format_args!("sent what cannot be read: {problem}"))
        }
        CompletionError::TooLarge(what) => server.fault(fault::ERROR, format_args!("sent {what}")),
    }
}
