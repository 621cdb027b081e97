//! A client for OpenAI's chat completions API: one request, and its streamed completion.
//!
//! Completions are always streamed, because a server stops immediately when the connection of a
//! stream is closed, which is how a completion is cancelled. No request is sent again once a part
//! of its completion was passed on.

mod completion;
pub mod fault;
mod retry;
mod server;
mod server_facts;
mod server_memory;
#[cfg(test)]
mod tests;
mod text_parts;
mod tool_calls;
mod trust;
mod wire;

pub use completion::{Completion, FinishReason};
pub use server::{Timeouts, invalid_setting};
pub use server_facts::{ListedModel, first_chat_model, model_names};
pub use server_memory::ServerMemory;
pub use text_parts::{Delta, DeltaKind, OnDelta};
pub use trust::owner_of;
pub use wire::{ChatRequest, messages};

use std::io;
use std::time::{Duration, Instant};

use crate::http::ClientConnection;
use crate::limits;
use crate::protocol::Endpoint;
use crate::session::turn::{self, Fault};
use crate::session::wake::Cancel;

use completion::CompletionParser;
use fault::{CompletionError, RequestFailure, Retry};
use retry::Pauses;
use server::ModelServer;
use server_facts::names;
use wire::RequestBody;

/// What the server did if its completion is truncated.
const TRUNCATED: &str = "stopped in the middle of its answer";

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

    /// Learns the size of the model's context, if that is not known and the server tells it.
    fn learn_context(&self, _endpoint: &Endpoint, _memory: &ServerMemory, _cancel: &Cancel) {}
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
        let timeouts = Timeouts { deadline: request.deadline, ..self.0.set_by(endpoint) };
        let server = ModelServer::new(endpoint, Some(cancel), timeouts)?;
        let mut pauses = Pauses::new(&server);
        let known = memory.rejected(endpoint, Instant::now());
        let mut omitted = known.clone();
        loop {
            match attempt(&server, request, memory, &mut omitted, on_delta) {
                Ok(completion) => {
                    // The limit did not fit into this conversation; it may fit into the next one.
                    omitted.retain(|field| *field != wire::TOKEN_LIMIT);
                    // What was omitted from the beginning was not tried, and stays as old.
                    if omitted != known {
                        memory.learn_rejected(endpoint, omitted, Instant::now());
                    }
                    return Ok(completion);
                }
                // It was there a moment ago.
                Err(RequestFailure { fault, .. })
                    if fault.code == fault::UNREACHABLE && pauses.have_begun() =>
                {
                    let failure = RequestFailure { fault, retry: Retry::Failed };
                    pauses.wait(failure, &server, on_delta)?;
                }
                Err(failure) => pauses.wait(failure, &server, on_delta)?,
            }
        }
    }

    fn learn_context(&self, endpoint: &Endpoint, memory: &ServerMemory, cancel: &Cancel) {
        let deadline = Some(Instant::now() + limits::MODEL_CONTEXT_MAX * 2);
        let timeouts = Timeouts { retrying: Duration::ZERO, deadline, ..self.0.set_by(endpoint) };
        if memory.context(endpoint, Instant::now()).is_none()
            && let Ok(server) = ModelServer::new(endpoint, Some(cancel), timeouts)
        {
            let tokens = server.context(endpoint.model.as_deref());
            if !server.is_cancelled() {
                memory.learn_context_size(endpoint, tokens, Instant::now());
            }
        }
    }
}

/// Sends a request, without the fields that the server rejects, and receives its completion.
fn attempt(
    server: &ModelServer<'_>,
    request: &ChatRequest<'_>,
    memory: &ServerMemory,
    omitted: &mut Vec<&'static str>,
    on_delta: &mut OnDelta<'_>,
) -> Result<Completion, RequestFailure> {
    let model = match &server.endpoint.model {
        Some(model) => Some(model.clone()),
        None => first_model(server, memory)?,
    };
    loop {
        if omitted.contains(&wire::TOOLS) && request.tools != "[]" {
            let text = "the model has no tool calls: it answers without them".to_owned();
            on_delta(&Delta { kind: DeltaKind::Notice(None), text })?;
        }
        let body = RequestBody::new(request, model.as_deref(), omitted);
        let first = server.timeouts.first;
        let (mut connection, head) = server.send("/chat/completions", body.parts(), first)?;
        if head.status == 200 {
            let completion = receive(server, &mut connection, on_delta)?;
            return Ok(Completion { model, ..completion });
        }
        let error = server.read_error(&mut connection);
        let has_tools = request.tools != "[]" && !omitted.contains(&wire::TOOLS);
        let rejected = wire::rejected_field(&error, omitted, server.endpoint.max_tokens)
            .or_else(|| wire::rejected_thinking(&error, request.messages, omitted));
        match rejected {
            Some(field) if matches!(head.status, 400 | 422) => omitted.push(field),
            _ if server.is_cancelled() => return Err(turn::cancelled().into()),
            _ if has_tools && fault::is_about_tools(&error) => omitted.push(wire::TOOLS),
            _ => return Err(server.status_failure(&head, &error)),
        }
    }
}

/// Returns the names of a server's models, or `None` if it has no such list, within `limit`.
/// `GET /v1/models`
///
/// # Faults
/// As for [`ChatModel::complete`].
pub fn models(endpoint: &Endpoint, limit: Duration) -> Result<Option<Vec<String>>, Fault> {
    Ok(listed_models(endpoint, limit)?.map(names))
}

/// Returns the same with what else the list tells about each model.
///
/// # Faults
/// As for [`ChatModel::complete`].
pub fn listed_models(
    endpoint: &Endpoint,
    limit: Duration,
) -> Result<Option<Vec<ListedModel>>, Fault> {
    let deadline = Some(Instant::now() + limit);
    let timeouts = Timeouts { retrying: Duration::ZERO, deadline, ..Timeouts::TURN };
    let models = ModelServer::new(endpoint, None, timeouts)?.models(limit);
    models.map_err(|failure| failure.fault)
}

/// Returns the model to use when none is named; `None` leaves the choice to the server.
fn first_model(
    server: &ModelServer<'_>,
    memory: &ServerMemory,
) -> Result<Option<String>, RequestFailure> {
    if let Some(model) = memory.first_model(server.endpoint) {
        return Ok(Some(model));
    }
    let Some(names) = server.models(limits::MODEL_LIST_MAX)?.map(names) else {
        return Ok(None);
    };
    let Some(model) = first_chat_model(&names) else {
        let what = if names.is_empty() { "has no model" } else { "has no model that chats" };
        let fault = server.fault(fault::ERROR, format_args!("{what}: load one, or name one"));
        return Err(fault.into());
    };
    memory.learn_first_model(server.endpoint, model);
    Ok(Some(model.clone()))
}

/// Receives a completion from its first chunk to its last. It may be requested again until a part
/// of it was passed on.
///
/// What arrives shortly after a part that was passed on is held, and passed on together: a model
/// that writes faster than a screen can show needs no event for each token.
fn receive(
    server: &ModelServer<'_>,
    connection: &mut ClientConnection<'_>,
    on_delta: &mut OnDelta<'_>,
) -> Result<Completion, RequestFailure> {
    let mut parser = CompletionParser::default();
    let (mut begun, mut finished) = (Instant::now(), None);
    // When a part was last passed on.
    let mut passed_at: Option<Instant> = None;
    while !parser.is_done() {
        let timeouts = &server.timeouts;
        let held_for = passed_at
            .filter(|_| parser.has_deltas())
            .map(|at| limits::TOKEN_EVENT_EVERY.saturating_sub(at.elapsed()));
        let limit = match (parser.is_finished(), parser.has_begun()) {
            (true, _) => {
                let finished = *finished.get_or_insert_with(Instant::now);
                (finished + timeouts.tail).saturating_duration_since(Instant::now())
            }
            (false, true) => held_for.unwrap_or(timeouts.idle),
            (false, false) => timeouts.first,
        };
        let is_over = finished.is_some() && limit.is_zero();
        let waited = Instant::now();
        let received = match connection.body(server.within(limit)) {
            // What follows the last chunk does not matter.
            Ok(Some(_)) if is_over => break,
            Ok(Some(_)) if server.is_late() => {
                let error = io::ErrorKind::TimedOut.into();
                Err(server.connection_fault(&error, TRUNCATED).into())
            }
            Ok(Some(bytes)) => {
                if !parser.has_begun() {
                    begun = Instant::now();
                }
                let fed = parser.feed(&bytes);
                fed.map_err(|error| completion_failure(server, error, parser.has_text()))
            }
            Ok(None) => {
                let ended = parser.end();
                ended.map_err(|error| completion_failure(server, error, parser.has_text()))
            }
            Err(error)
                if error.kind() == io::ErrorKind::TimedOut
                    && held_for.is_some_and(|held_for| waited.elapsed() >= held_for)
                    && !server.is_late() =>
            {
                Ok(())
            }
            Err(_) if parser.is_finished() && !server.is_cancelled() => break,
            Err(error) => Err(server.lost(&error, TRUNCATED)),
        };
        let is_early = passed_at.is_some_and(|at| at.elapsed() < limits::TOKEN_EVENT_EVERY);
        let is_held = is_early && received.is_ok() && !parser.is_finished() && !parser.is_done();
        if !is_held {
            for delta in parser.take_deltas() {
                on_delta(&delta)?;
                passed_at = Some(Instant::now());
            }
        }
        // Nothing that was passed on is requested again.
        let is_final = passed_at.is_some();
        received.map_err(|failure| if is_final { failure.fault.into() } else { failure })?;
    }
    Ok(parser.finish(begun.elapsed()))
}

fn completion_failure(
    server: &ModelServer<'_>,
    error: CompletionError,
    has_text: bool,
) -> RequestFailure {
    let mut retry = Retry::No;
    let fault = match error {
        CompletionError::Truncated => {
            retry = Retry::Failed;
            server.fault(fault::DISCONNECTED, TRUNCATED)
        }
        CompletionError::Reported { text, is_final } => {
            let code = match fault::code_of(&text) {
                // A turn must not ask again for text that was passed on.
                fault::TOO_LONG if has_text => fault::ERROR,
                code => code,
            };
            if code == fault::ERROR && !is_final {
                retry = Retry::Failed;
            }
            server.fault(code, format_args!("says: {}", server.quote(&text)))
        }
        CompletionError::Unexpected(opening) => server.unexpected(&opening),
        CompletionError::Malformed(problem) => {
            server.fault(fault::ERROR, format_args!("sent what cannot be read: {problem}"))
        }
        CompletionError::TooLarge(what) => server.fault(fault::ERROR, format_args!("sent {what}")),
    };
    RequestFailure { fault, retry }
}
