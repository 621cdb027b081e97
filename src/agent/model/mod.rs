//! One question to a model server that speaks OpenAI's chat completions, and its streamed answer.
//!
//! Always streamed, because a server stops at once when the connection of a stream is dropped; that
//! is how an answer is cancelled. Nothing is asked twice once a word of the answer has arrived.

mod calls;
mod chunk;
pub mod code;
mod complaint;
mod known;
pub mod list;
mod reply;
pub mod server;
#[cfg(test)]
mod tests;
mod wire;

pub use wire::messages;

use std::time::{Duration, Instant};

use crate::http::Link;
use crate::limits;
use crate::protocol::Endpoint;
use crate::session::rules::ToolCall;
use crate::session::turn::{self, Fault};
use crate::session::wake::Cancel;

use complaint::code_of;
use reply::{Reply, Wrong};
use server::{OF_A_TURN, Patience, Server};
use wire::Extra;

/// What a model is asked.
pub struct Ask<'a> {
    pub endpoint: &'a Endpoint,
    /// A JSON array of chat messages.
    pub messages: &'a str,
    /// A JSON array of tools, `[]` for none.
    pub tools: &'a str,
    /// `auto`, `required` or `none`.
    pub tool_choice: &'a str,
    pub max_tokens: Option<u32>,
}

/// A part of an answer, as it arrives.
pub enum Piece<'a> {
    Text(&'a str),
    Thinking(&'a str),
}

/// A whole answer.
pub struct Answer {
    /// All of its text, byte for byte as it was sent.
    pub text: String,
    /// What the model wants to be run. Empty unless the model itself has ended the answer: a call
    /// that was cut or filtered is not what it wanted.
    pub calls: Vec<ToolCall>,
    pub finish: Finish,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    /// From its first word, spoken or not, to its last.
    pub took: Duration,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    Stop,
    ToolCalls,
    Length,
    /// In the server's own word.
    Other(String),
}

impl Finish {
    /// The model has said all it wanted to.
    pub fn is_the_models_own(&self) -> bool {
        matches!(self, Finish::Stop | Finish::ToolCalls)
    }
}

/// Asks, and hands on what arrives, in the order in which it does. A fault from `on_piece` ends the
/// answer.
///
/// # Faults
///
/// `model-config`, `model-unreachable`, `model-unauthorized`, `model-busy`, `model-error`,
/// `model-malformed`, `model-timeout`, `model-disconnected`, `context-too-long` and `cancelled`.
/// What was handed on before is all there is of the answer; no tool call of it counts.
pub fn ask(
    ask: &Ask<'_>,
    cancel: &Cancel,
    on_piece: &mut dyn FnMut(Piece<'_>) -> Result<(), Fault>,
) -> Result<Answer, Fault> {
    ask_patiently(ask, OF_A_TURN, cancel, on_piece)
}

fn ask_patiently(
    ask: &Ask<'_>,
    patience: Patience,
    cancel: &Cancel,
    on_piece: &mut dyn FnMut(Piece<'_>) -> Result<(), Fault>,
) -> Result<Answer, Fault> {
    let server = Server::at(ask.endpoint, Some(cancel), patience)?;
    let model = match &ask.endpoint.model {
        Some(model) => Some(model.clone()),
        None => first_model(ask.endpoint, cancel, &server)?,
    };
    let url = server.base.url();
    let place = server.place("/chat/completions");
    let mut left_out = known::left_out(&url);
    loop {
        let body = wire::request(ask, model.as_deref(), &left_out);
        let asking = server.asking(&place, "text/event-stream, application/json", &body);
        let (mut link, head) = server.exchange(&asking)?;
        if head.status == 200 {
            let answer = listen(&server, &mut link, cancel, on_piece)?;
            // What there is no room for in this conversation may fit in the next.
            left_out.retain(|extra| *extra != Extra::Limit);
            known::leave_out(&url, &left_out);
            return Ok(answer);
        }
        let said = server.refusal(&mut link);
        match wire::refused_extra(&said, &left_out) {
            Some(extra) if matches!(head.status, 400 | 422) => left_out.push(extra),
            _ if cancel.is_cancelled() => return Err(turn::cancelled()),
            _ => return Err(server.refused(&head, &said)),
        }
    }
}

/// The names of the models that a server offers, told within `limit`; `None` if it does not tell.
/// `GET /v1/models`
///
/// # Faults
/// As for [`ask`].
pub fn models(endpoint: &Endpoint, limit: Duration) -> Result<Option<Vec<String>>, Fault> {
    let until = Instant::now() + limit;
    let patience =
        Patience { retries: 0, loading: Duration::ZERO, until: Some(until), ..OF_A_TURN };
    Server::at(endpoint, None, patience)?.models()
}

/// The model that is meant when none is named; `None` leaves it to the server.
fn first_model(
    endpoint: &Endpoint,
    cancel: &Cancel,
    server: &Server<'_>,
) -> Result<Option<String>, Fault> {
    let url = server.base.url();
    if let Some(model) = known::model(&url) {
        return Ok(Some(model));
    }
    let patience = Patience { first: limits::MODEL_LIST_MAX, ..server.patience };
    let Some(names) = Server::at(endpoint, Some(cancel), patience)?.models()? else {
        return Ok(None);
    };
    let Some(model) = list::first_that_chats(&names) else {
        let what = if names.is_empty() { "has no model" } else { "has no model that chats" };
        return Err(server.fault(code::ERROR, format_args!("{what}: load one, or name one")));
    };
    known::keep_model(&url, model);
    Ok(Some(model.clone()))
}

/// What is said of a server that begins an answer and does not end it.
const WENT: &str = "went away in the middle of its answer";

/// Takes an answer in from its first word to its last.
fn listen(
    server: &Server<'_>,
    link: &mut Link<'_>,
    cancel: &Cancel,
    on_piece: &mut dyn FnMut(Piece<'_>) -> Result<(), Fault>,
) -> Result<Answer, Fault> {
    let mut reply = Reply::default();
    let mut begun = Instant::now();
    while !reply.is_done() {
        let patience = &server.patience;
        let limit = match (reply.is_finished(), reply.has_begun()) {
            (true, _) => patience.tail,
            (false, true) => patience.idle,
            (false, false) => patience.first,
        };
        let taken = match link.body(limit) {
            Ok(Some(bytes)) => {
                if !reply.has_begun() {
                    begun = Instant::now();
                }
                reply.take(&bytes)
            }
            Ok(None) => {
                let ended = reply.end();
                reply.hand_on(on_piece)?;
                ended.map_err(|wrong| in_words(server, wrong, reply.has_spoken()))?;
                break;
            }
            // Whatever happens to the connection behind the last word does not matter.
            Err(_) if reply.is_finished() && !cancel.is_cancelled() => break,
            Err(error) => return Err(server.broken(&error, WENT)),
        };
        reply.hand_on(on_piece)?;
        taken.map_err(|wrong| in_words(server, wrong, reply.has_spoken()))?;
    }
    Ok(Answer { took: begun.elapsed(), ..reply.answer() })
}

fn in_words(server: &Server<'_>, wrong: Wrong, has_spoken: bool) -> Fault {
    match wrong {
        Wrong::Cut => server.fault(code::DISCONNECTED, WENT),
        Wrong::Said(said) => {
            let code = match code_of(&said) {
                // What has been heard must not be asked for again.
                code::TOO_LONG if has_spoken => code::ERROR,
                code => code,
            };
            server.fault(code, format_args!("says: {}", server.quoted(&said)))
        }
        Wrong::Foreign(opening) => server.foreign(&opening),
        Wrong::Unreadable(problem) => {
            server.fault(code::ERROR, format_args!("sent what cannot be read: {problem}"))
        }
        Wrong::TooMuch(what) => server.fault(code::ERROR, format_args!("sent {what}")),
    }
}
