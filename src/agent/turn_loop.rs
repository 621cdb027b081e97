//! One turn: asks the model, runs the tools that it calls, and asks again with their results, until
//! it answers without a call.
//!
//! Every call that the session recorded gets a result, whatever happens. A call is on the disk
//! before it runs, and its result before the model receives it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::{ModelSettings, Rule, ToolSettings};
use crate::error::Error;
use crate::limits;
use crate::log::Log;
use crate::paths::Paths;
use crate::protocol::Endpoint;
use crate::protocol::event::{Event, TurnNotice, TurnStats, TurnText};
use crate::session::journal::Durability;
use crate::session::replay::{Message, ToolCall};
use crate::session::session::SessionError;
use crate::session::turn::{Agent, Fault, Turn, cancelled};

use super::endpoint::{self, ModelChoice};
use super::flaw::Flaw;
use super::history::History;
use super::loops::{CallLoop, TextLoop};
use super::model::fault::{ERROR, MALFORMED, REFUSED, TOO_LONG};
use super::model::{
    ChatModel, ChatRequest, Completion, Delta, DeltaKind, FinishReason, ServedModel, ServerMemory,
    Timeouts,
};
use super::progress::Progress;
use super::prompt::{Surroundings, SystemPrompt};
use super::tool_call::{self, Call};
use super::tool_runner::ToolRunner;
use super::tools::{self, SeenBySession, TOOLS, Tool, ToolContext};
use super::workspaces::Workspaces;

/// Follows the result of a call that the model has repeated too often.
const SAME_RESULT: &str = "\n\n[you have made this call several times with the same result: do \
    something else, or answer]";

/// An agent that answers turns with a model and its tools.
pub struct Assistant {
    /// Read again for each turn, so that an edit takes effect with the next one.
    pub(super) config: PathBuf,
    pub(super) workspaces: Workspaces,
    pub(super) log: Log,
    pub(super) model: Box<dyn ChatModel>,
    pub(super) memory: ServerMemory,
    pub(super) seen: SeenBySession,
    /// What a turn may write to the journal of its session.
    pub(super) journal_bytes_max: u64,
}

impl Assistant {
    /// Makes an assistant. The user's `config.json` need not exist.
    pub fn new(paths: &Paths, log: Log) -> Assistant {
        let (config, model) = (paths.config(), Box::new(ServedModel(Timeouts::TURN)));
        let workspaces = Workspaces::new(paths);
        let (memory, seen) = (ServerMemory::default(), SeenBySession::default());
        let journal_bytes_max = limits::TURN_JOURNAL_BYTES_MAX;
        Assistant { config, workspaces, log, model, memory, seen, journal_bytes_max }
    }

    fn endpoint(&self, turn: &Turn<'_>) -> Result<Endpoint, Fault> {
        let session_model = turn.model();
        if let Some(given) = &turn.options.endpoint {
            let model = given.model.clone().or(session_model);
            return Ok(Endpoint { model, ..given.clone() });
        }
        let settings = load(ModelSettings::load, &self.config)?;
        let choice = ModelChoice { model: session_model.as_deref(), ..ModelChoice::default() };
        Ok(endpoint::resolve(&choice, &settings)?)
    }
}

impl Agent for Assistant {
    fn run(&self, turn: &Turn<'_>) -> Result<TurnStats, Fault> {
        let settings = load(ToolSettings::load, &self.config)?;
        TurnLoop::new(turn, self, self.endpoint(turn)?, settings)?.run()
    }

    fn check_workspace(&self, workspace: &str) -> Result<Option<String>, String> {
        self.workspaces.check(workspace)
    }
}

fn load<T>(load: fn(&Path) -> Result<T, Error>, config: &Path) -> Result<T, Fault> {
    load(config).map_err(|error| Fault { code: "config-error", message: error.to_string() })
}

/// A turn that is being answered.
struct TurnLoop<'a> {
    assistant: &'a Assistant,
    endpoint: Endpoint,
    history: History,
    /// The tools that the model may call.
    tools: Vec<&'static Tool>,
    runner: ToolRunner<'a>,
    /// The ids of the session's latest calls, which are unique even if the model repeats one.
    ids: HashSet<String>,
    /// The number of calls in the session.
    call_count: u64,
    call_loop: CallLoop,
    /// Whether the model was told that it repeats a call.
    was_nudged: bool,
    /// The flaws of answers for which the model was asked once more.
    flaws: Vec<Flaw>,
    /// Whether the model failed to make its first call, and is now required to make one.
    requires_call: bool,
    /// The notices so far: each is given once.
    notices: HashSet<String>,
    progress: Progress,
}

impl<'a> TurnLoop<'a> {
    /// Reads the conversation and opens the workspace.
    fn new(
        turn: &'a Turn<'a>,
        assistant: &'a Assistant,
        endpoint: Endpoint,
        settings: ToolSettings,
    ) -> Result<TurnLoop<'a>, Fault> {
        let began = Instant::now();
        let summary = turn.session.summary();
        let directory = assistant.workspaces.directory(&summary);
        let conversation = turn.session.recent_conversation().map_err(SessionError::Failed)?;
        let context = ToolContext {
            workspace: assistant.workspaces.of(&summary),
            environment: turn.options.environment.as_deref().unwrap_or_default(),
            seen: assistant.seen.of(turn.session.id.as_str()),
            umask: turn.options.umask().unwrap_or(0o077),
            cancel: &turn.cancel,
            deadline: began + limits::TURN_MAX,
        };
        let runner = ToolRunner { turn, context, settings, log: &assistant.log };
        let may_use = |tool: &&'static Tool| directory.is_some() && runner.rule(tool) != Rule::Deny;
        let tools: Vec<&'static Tool> = TOOLS.iter().filter(may_use).collect();
        let surroundings = Surroundings {
            workspace: directory.as_deref(),
            tools: &tools,
            home: assistant.config.parent().unwrap_or(&assistant.config),
            protected: &assistant.workspaces.protected,
        };
        let SystemPrompt { text: prompt, instructions } = surroundings.prompt();
        if !instructions.is_empty() {
            let text = format!("following {}", instructions.join(", "));
            turn.append(&notice(turn, &text, None), Durability::Buffered)?;
        }
        let history = History::new(conversation, &prompt);
        let ids = history.call_ids().map(str::to_owned).collect();
        Ok(TurnLoop {
            assistant,
            endpoint,
            history,
            tools,
            runner,
            ids,
            call_count: summary.tool_call_count,
            call_loop: CallLoop::default(),
            was_nudged: false,
            flaws: Vec::new(),
            requires_call: false,
            notices: HashSet::new(),
            progress: Progress::new(began, assistant.journal_bytes_max),
        })
    }

    /// Runs the loop until the model answers without a call.
    fn run(mut self) -> Result<TurnStats, Fault> {
        loop {
            let mut completion = match self.complete() {
                Err(fault) if fault == self.repeats() => {
                    self.ask_again(Flaw::Repeats)?;
                    continue;
                }
                completion => completion?,
            };
            let calls = self.calls_of(&mut completion)?;
            if !calls.is_empty() {
                let Completion { text, extra, .. } = completion;
                let calls_sent = calls.iter().map(|call| call.request.clone()).collect();
                self.history.push(Message::Assistant { text, calls: calls_sent, extra });
                self.run_calls(&calls)?;
            } else if let Some(flaw) = Flaw::of(&completion) {
                self.ask_again(flaw)?;
            } else {
                return Ok(self.progress.finish(completion.finish));
            }
        }
    }

    /// Tells the model what is wrong with its answer; fails if it was told before, or that is of no
    /// use.
    fn ask_again(&mut self, flaw: Flaw) -> Result<(), Fault> {
        let Some(note) = flaw.note().filter(|_| !self.flaws.contains(&flaw)) else {
            return Err(flaw.fault(self.endpoint.max_tokens));
        };
        self.history.note(note);
        self.notices.insert(flaw.notice().to_owned());
        let notice = notice(self.runner.turn, flaw.notice(), None);
        self.runner.turn.append(&notice, Durability::Buffered)?;
        self.flaws.push(flaw);
        Ok(())
    }

    fn repeats(&self) -> Fault {
        Flaw::Repeats.fault(self.endpoint.max_tokens)
    }

    /// Sends a request to the model. Sends a shorter one if that was too long, and repeats it once
    /// if the model failed to make its first call and sent nothing else.
    fn complete(&mut self) -> Result<Completion, Fault> {
        let (mut refused, mut was_halved) = (None, false);
        loop {
            self.check()?;
            let messages = self.messages();
            let mut has_text = false;
            match self.complete_once(&messages, &mut has_text) {
                Err(fault) if fault.code == TOO_LONG && self.history.shorten() => {
                    refused = Some(messages.len());
                }
                // It may be too long, whatever the server says.
                Err(fault) if fault.code == REFUSED && !was_halved && self.halve(&messages) => {
                    (refused, was_halved) = (Some(messages.len()), true);
                }
                Err(fault) if fault.code == MALFORMED && !has_text && self.require_call() => {}
                Ok(completion) if is_babble(&completion) && self.require_call() => {}
                Ok(completion) => {
                    let (memory, now) = (&self.assistant.memory, Instant::now());
                    memory.learn_context(&self.endpoint, messages.len(), refused, now);
                    self.progress.stats.context_size =
                        memory.context(&self.endpoint, now).flatten();
                    return Ok(completion);
                }
                Err(fault) => {
                    self.check()?;
                    let code = if fault.code == REFUSED { ERROR } else { fault.code };
                    return Err(Fault { code, ..fault });
                }
            }
        }
    }

    /// Shortens a long history to half of what was sent; `false` if it is short, or nothing can be
    /// omitted.
    fn halve(&mut self, sent: &str) -> bool {
        let mut shortened = false;
        while sent.len() > limits::SHORT_REQUEST_BYTES
            && self.history.json().len() > sent.len() / 2
            && self.history.shorten()
        {
            shortened = true;
        }
        shortened
    }

    /// Returns the messages for the model, if possible shorter than those known to be too long.
    fn messages(&mut self) -> String {
        let mut messages = self.history.json();
        let Assistant { model, memory, .. } = self.assistant;
        if messages.len() > limits::SHORT_REQUEST_BYTES {
            model.learn_context(&self.endpoint, memory, &self.runner.turn.cancel);
        }
        let learned = memory.too_long(&self.endpoint, Instant::now());
        let too_long = learned.into_iter().chain(self.context_bytes()).min();
        while too_long.is_some_and(|too_long| messages.len() >= too_long) && self.history.shorten()
        {
            messages = self.history.json();
        }
        messages
    }

    /// Returns the bytes of messages that fill the context of the model, by an estimate, beside the
    /// tools and an answer.
    fn context_bytes(&self) -> Option<usize> {
        let tokens = self.assistant.memory.context(&self.endpoint, Instant::now()).flatten()?;
        let answer = (tokens / 4).min(limits::CONTEXT_ANSWER_TOKENS_MAX);
        let bytes = tokens.saturating_sub(answer).saturating_mul(limits::TOKEN_BYTES);
        let tools = tools::definitions(&self.tools).len();
        Some(usize::try_from(bytes).unwrap_or(usize::MAX).saturating_sub(tools))
    }

    /// Requires the first call of the turn, which makes servers enforce its syntax. Returns `false`
    /// if that was done before or makes no sense.
    fn require_call(&mut self) -> bool {
        let makes_sense = self.is_first() && self.tool_choice() == "auto";
        self.requires_call |= makes_sense;
        makes_sense
    }

    fn is_first(&self) -> bool {
        self.progress.stats.tool_calls == 0
    }

    fn calls_left(&self) -> u64 {
        self.runner.settings.calls_max.saturating_sub(self.progress.stats.tool_calls)
    }

    fn tool_choice(&self) -> &'static str {
        match self.endpoint.tool_choice.as_deref() {
            // Without a call, the model has to finish.
            _ if self.tools.is_empty() || self.calls_left() == 0 => "none",
            Some("required") => "required",
            Some("required-first") if self.is_first() => "required",
            _ if self.is_first() && self.requires_call => "required",
            _ => "auto",
        }
    }

    /// Sends one request. Sets `has_text` when the first text arrives.
    fn complete_once(&mut self, messages: &str, has_text: &mut bool) -> Result<Completion, Fault> {
        let request = ChatRequest {
            endpoint: &self.endpoint,
            messages,
            tools: &tools::definitions(&self.tools),
            tool_choice: self.tool_choice(),
            deadline: Some(self.progress.began + limits::TURN_MAX),
        };
        let repeats = self.repeats();
        let (turn, progress, notices) = (self.runner.turn, &mut self.progress, &mut self.notices);
        let mut text_loop = TextLoop::default();
        let mut on_delta = |delta: &Delta| {
            progress.check(turn)?;
            if let DeltaKind::Notice(wait) = delta.kind {
                if wait.is_some() || notices.insert(delta.text.clone()) {
                    turn.append(&notice(turn, &delta.text, wait), Durability::Buffered)?;
                }
                return Ok(());
            }
            progress.first.get_or_insert_with(Instant::now);
            *has_text |= delta.kind == DeltaKind::Text;
            let text = TurnText { turn_id: turn.head.turn_id.clone(), text: delta.text.clone() };
            let event = match delta.kind {
                DeltaKind::Text => Event::TurnToken(text),
                _ => Event::TurnThinking(text),
            };
            turn.append(&event, Durability::Buffered)?;
            if text_loop.push(&delta.text) { Err(repeats.clone()) } else { Ok(()) }
        };
        let Assistant { model, memory, .. } = self.assistant;
        let completion = model.complete(&request, memory, &turn.cancel, &mut on_delta)?;
        self.progress.add(&completion);
        Ok(completion)
    }

    /// Returns the calls that the model requested, up to the number that it may still make. What it
    /// wrote in tags, and is no call, becomes text.
    fn calls_of(&mut self, completion: &mut Completion) -> Result<Vec<Call>, Fault> {
        let left = self.calls_left();
        let mut requests = std::mem::take(&mut completion.calls);
        let written = std::mem::take(&mut completion.text_calls);
        let mut is_text = false;
        if requests.is_empty() && completion.finish == FinishReason::Stop && !self.tools.is_empty()
        {
            requests = tool_call::from_tags(&written);
            is_text = requests.is_empty();
        }
        if is_text {
            requests.extend(tool_call::from_text(&completion.text));
        }
        if requests.is_empty() && !completion.has_cut_call && !written.is_empty() {
            // No calls after all.
            let text = TurnText { turn_id: self.turn_id(), text: written.clone() };
            self.runner.turn.append(&Event::TurnToken(text), Durability::Buffered)?;
            completion.text.push_str(&written);
        }
        if left == 0 && !requests.is_empty() {
            let message = format!(
                "the turn made {} tool calls, and the model wants more; \
                 safety.maxToolCalls in config.json is the limit",
                self.runner.settings.calls_max
            );
            return Err(Fault { code: "tool-limit", message });
        }
        let mut calls: Vec<Call> = Vec::new();
        for request in requests {
            let call = Call::parse(request, is_text);
            // Equal calls side by side run once.
            if calls.last().is_none_or(|other| other.canonical() != call.canonical()) {
                calls.push(call);
            }
        }
        calls.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        calls.iter_mut().for_each(|call| self.make_id_unique(&mut call.request));
        Ok(calls)
    }

    fn turn_id(&self) -> String {
        self.runner.turn.head.turn_id.clone()
    }

    /// Makes the id of a call unique: some models omit ids, and some use one for every call.
    fn make_id_unique(&mut self, call: &mut ToolCall) {
        self.call_count += 1;
        let mut number = self.call_count;
        while call.id.is_empty() || self.ids.contains(&call.id) {
            call.id = format!("call_{number}");
            number += 1;
        }
        self.ids.insert(call.id.clone());
    }

    /// Runs the calls, and adds their results to the history.
    fn run_calls(&mut self, calls: &[Call]) -> Result<(), Fault> {
        let mut rest = calls;
        while !rest.is_empty() {
            self.check()?;
            let parallel = rest.iter().take(limits::PARALLEL_TOOLS_MAX);
            let parallel = parallel.take_while(|call| self.runner.is_parallel(call)).count();
            let (now, later) = rest.split_at(parallel.max(1));
            for (call, outcome) in now.iter().zip(self.runner.run(now)?) {
                self.progress.stats.tool_calls += 1;
                let call_id = call.request.id.clone();
                let mut result = outcome.text;
                if self.call_loop.push(&call.canonical(), &result) {
                    if self.was_nudged {
                        return Err(repeated_call(&call.request.name));
                    }
                    self.was_nudged = true;
                    result.push_str(SAME_RESULT);
                }
                self.history.push(Message::result(call_id, &result));
            }
            rest = later;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Fault> {
        if self.runner.turn.cancel.is_cancelled() {
            return Err(cancelled());
        }
        self.progress.check(self.runner.turn)
    }
}

/// Returns whether the model wrote without an end instead of its first call.
fn is_babble(completion: &Completion) -> bool {
    let is_empty = completion.text.is_empty() && !completion.has_thinking;
    completion.finish == FinishReason::Length && is_empty && !completion.has_cut_call
}

fn notice(turn: &Turn<'_>, text: &str, wait: Option<Duration>) -> Event {
    let millis = |wait: Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let (turn_id, text) = (turn.head.turn_id.clone(), text.to_owned());
    Event::TurnNotice(TurnNotice { turn_id, text, wait_ms: wait.map(millis) })
}

fn repeated_call(name: &str) -> Fault {
    let times = limits::SAME_CALLS_MAX;
    let message = format!(
        "the model repeated the same calls with the same results more than {times} times, the last \
         one of {name}"
    );
    Fault { code: "tool-loop", message }
}
