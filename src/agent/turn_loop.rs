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
use crate::protocol::event::{Event, TurnStats, TurnText};
use crate::session::journal::Durability;
use crate::session::replay::{Message, ToolCall};
use crate::session::session::SessionError;
use crate::session::turn::{Agent, Fault, Turn, cancelled};

use super::endpoint::{self, ModelChoice};
use super::history::History;
use super::model::fault::{MALFORMED, TOO_LONG};
use super::model::{
    ChatModel, ChatRequest, Completion, Delta, DeltaKind, FinishReason, ServedModel, ServerMemory,
    Timeouts,
};
use super::prompt::{Surroundings, SystemPrompt};
use super::tool_call::{self, Call};
use super::tool_runner::ToolRunner;
use super::tools::{self, SeenBySession, TOOLS, Tool, ToolContext, Workspace};

/// An agent that answers turns with a model and its tools.
pub struct Assistant {
    /// Read again for each turn, so that an edit takes effect with the next one.
    pub(super) config: PathBuf,
    /// opta's own files, which no file tool may touch: the token, sessions and permissions.
    pub(super) protected: Vec<PathBuf>,
    pub(super) log: Log,
    pub(super) model: Box<dyn ChatModel>,
    pub(super) memory: ServerMemory,
    pub(super) seen: SeenBySession,
}

impl Assistant {
    /// Makes an assistant. The user's `config.json` need not exist.
    pub fn new(paths: &Paths, log: Log) -> Assistant {
        let (config, model) = (paths.config(), Box::new(ServedModel(Timeouts::TURN)));
        let protected = paths.of_all_homes();
        let (memory, seen) = (ServerMemory::default(), SeenBySession::default());
        Assistant { config, protected, log, model, memory, seen }
    }

    fn endpoint(&self, turn: &Turn<'_>) -> Result<Endpoint, Fault> {
        let session_model = Some(turn.session.summary().model).filter(|model| !model.is_empty());
        if let Some(given) = &turn.options.endpoint {
            let model = given.model.clone().or(session_model);
            return Ok(Endpoint { model, ..given.clone() });
        }
        let settings = load(ModelSettings::load, &self.config)?;
        let choice = ModelChoice { url: None, model: session_model.as_deref() };
        Ok(endpoint::resolve(&choice, &settings)?)
    }
}

impl Agent for Assistant {
    fn run(&self, turn: &Turn<'_>) -> Result<TurnStats, Fault> {
        let settings = load(ToolSettings::load, &self.config)?;
        TurnLoop::new(turn, self, self.endpoint(turn)?, settings)?.run()
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
    /// The ids of the calls so far, which are unique within a turn even if the model repeats one.
    ids: HashSet<String>,
    /// The last call, and how often it was repeated in succession.
    last: Option<((String, String), u64)>,
    /// Whether the model failed to make its first call, and is now required to make one.
    requires_call: bool,
    progress: Progress,
}

/// The data from which the statistics are computed.
struct Progress {
    began: Instant,
    first: Option<Instant>,
    generating: Duration,
    stats: TurnStats,
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
        let workspace = turn.session.summary().workspace;
        let conversation = turn.session.recent_conversation().map_err(SessionError::Failed)?;
        let path = workspace.as_deref().ok_or_else(|| "the session has no workspace".to_owned());
        let context = ToolContext {
            workspace: path.and_then(|path| Workspace::open(path, &assistant.protected)),
            environment: turn.options.environment.as_deref().unwrap_or_default(),
            seen: assistant.seen.of(turn.session.id.as_str()),
            umask: turn.options.umask().unwrap_or(0o077),
            cancel: &turn.cancel,
            deadline: began + limits::TURN_MAX,
        };
        let runner = ToolRunner { turn, context, settings, log: &assistant.log };
        let may_use = |tool: &&'static Tool| workspace.is_some() && runner.rule(tool) != Rule::Deny;
        let tools: Vec<&'static Tool> = TOOLS.iter().filter(may_use).collect();
        let surroundings = Surroundings {
            workspace: workspace.as_deref(),
            tools: &tools,
            home: assistant.config.parent().unwrap_or(&assistant.config),
            protected: &assistant.protected,
        };
        let SystemPrompt { text: prompt, instructions } = surroundings.prompt();
        if !instructions.is_empty() {
            assistant.log.info("instructions", &[("files", &instructions.join(", "))]);
        }
        let history = History::new(conversation, &prompt);
        let (generating, stats) = (Duration::ZERO, TurnStats::default());
        Ok(TurnLoop {
            assistant,
            endpoint,
            history,
            tools,
            runner,
            ids: HashSet::new(),
            last: None,
            requires_call: false,
            progress: Progress { began, first: None, generating, stats },
        })
    }

    /// Runs the loop until the model answers without a call.
    fn run(mut self) -> Result<TurnStats, Fault> {
        loop {
            let completion = self.complete()?;
            let calls = self.calls_of(&completion)?;
            if calls.is_empty() {
                if is_cut_off(&completion) {
                    return Err(cut_off(&completion.finish));
                }
                return Ok(self.progress.finish(completion.finish));
            }
            let requests = calls.iter().map(|call| call.request.clone()).collect();
            self.history.push(Message::Assistant { text: completion.text, calls: requests });
            self.run_calls(&calls)?;
        }
    }

    /// Sends a request to the model. Sends a shorter one if that was too long, and repeats it once
    /// if the model failed to make its first call and sent nothing else.
    fn complete(&mut self) -> Result<Completion, Fault> {
        let mut refused = None;
        loop {
            self.check()?;
            let messages = self.messages();
            let mut has_text = false;
            match self.complete_once(&messages, &mut has_text) {
                Err(fault) if fault.code == TOO_LONG && self.history.shorten() => {
                    refused = Some(messages.len());
                }
                Err(fault) if fault.code == MALFORMED && !has_text && self.require_call() => {}
                Ok(completion)
                    if is_cut_off(&completion)
                        && completion.finish == FinishReason::Length
                        && self.require_call() => {}
                Ok(completion) => {
                    let (memory, now) = (&self.assistant.memory, Instant::now());
                    memory.learn_context(&self.endpoint, messages.len(), refused, now);
                    return Ok(completion);
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Returns the messages for the model, if possible shorter than those known to be too long.
    fn messages(&mut self) -> String {
        let too_long = self.assistant.memory.too_long(&self.endpoint, Instant::now());
        loop {
            let messages = self.history.json();
            let fits = too_long.is_none_or(|too_long| messages.len() < too_long);
            if fits || !self.history.shorten() {
                return messages;
            }
        }
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

    /// Returns the tools for the next request: without tools the model has to finish.
    fn tools(&self) -> &[&'static Tool] {
        if self.calls_left() > 0 { &self.tools } else { &[] }
    }

    fn tool_choice(&self) -> &'static str {
        match self.endpoint.tool_choice.as_deref() {
            _ if self.tools().is_empty() => "none",
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
            tools: &tools::definitions(self.tools()),
            tool_choice: self.tool_choice(),
        };
        let (turn, progress) = (self.runner.turn, &mut self.progress);
        let mut on_delta = |delta: &Delta| {
            progress.first.get_or_insert_with(Instant::now);
            progress.check()?;
            *has_text |= delta.kind == DeltaKind::Text;
            let text = TurnText { turn_id: turn.head.turn_id.clone(), text: delta.text.clone() };
            let event = match delta.kind {
                DeltaKind::Text => Event::TurnToken(text),
                DeltaKind::Thinking => Event::TurnThinking(text),
            };
            turn.append(&event, Durability::Buffered)?;
            Ok(())
        };
        let Assistant { model, memory, .. } = self.assistant;
        let completion = model.complete(&request, memory, &turn.cancel, &mut on_delta)?;
        self.progress.add(&completion);
        Ok(completion)
    }

    /// Returns the calls that the model requested, up to the number that it may still make.
    fn calls_of(&mut self, completion: &Completion) -> Result<Vec<Call>, Fault> {
        let left = self.calls_left();
        let mut requests = completion.calls.clone();
        let is_text = requests.is_empty();
        if is_text && completion.finish == FinishReason::Stop && !self.tools.is_empty() {
            requests.extend(tool_call::from_text(&completion.text));
        }
        if left == 0 && !requests.is_empty() {
            let message = format!(
                "the turn made {} tool calls, and the model wants more; \
                 safety.maxToolCalls in config.json is the limit",
                self.runner.settings.calls_max
            );
            return Err(Fault { code: "tool-limit", message });
        }
        requests.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let calls = requests.into_iter().map(|call| Call::parse(self.with_own_id(call), is_text));
        Ok(calls.collect())
    }

    /// Makes the id of a call unique: some models omit ids, and some use one for every call.
    fn with_own_id(&mut self, mut call: ToolCall) -> ToolCall {
        let mut number = self.ids.len() + 1;
        while call.id.is_empty() || self.ids.contains(&call.id) {
            call.id = format!("call_{number}");
            number += 1;
        }
        self.ids.insert(call.id.clone());
        call
    }

    /// Runs the calls, and adds their results to the history.
    fn run_calls(&mut self, calls: &[Call]) -> Result<(), Fault> {
        let mut rest = calls;
        while !rest.is_empty() {
            self.check()?;
            let parallel = rest.iter().take(limits::PARALLEL_TOOLS_MAX);
            let parallel = parallel.take_while(|call| self.runner.is_parallel(call)).count();
            let (now, later) = rest.split_at(parallel.max(1));
            // A repeated call does not run; the calls before it do.
            let repeated = now.iter().position(|call| self.is_repeated(call));
            let (now, repeated) = now.split_at(repeated.unwrap_or(now.len()));
            for (call, outcome) in now.iter().zip(self.runner.run(now)?) {
                self.progress.stats.tool_calls += 1;
                let call_id = call.request.id.clone();
                self.history.push(Message::Tool { call_id, result: outcome.text });
            }
            if let Some(call) = repeated.first() {
                return Err(repeated_call(&call.request.name));
            }
            rest = later;
        }
        Ok(())
    }

    fn is_repeated(&mut self, call: &Call) -> bool {
        let call = call.canonical();
        let count = match self.last.take() {
            Some((last, count)) if last == call => count + 1,
            _ => 1,
        };
        self.last = Some((call, count));
        count >= limits::SAME_CALLS_MAX
    }

    fn check(&self) -> Result<(), Fault> {
        if self.runner.turn.cancel.is_cancelled() {
            return Err(cancelled());
        }
        self.progress.check()
    }
}

impl Progress {
    /// Fails if the turn has taken too long.
    fn check(&self) -> Result<(), Fault> {
        if self.began.elapsed() < limits::TURN_MAX {
            return Ok(());
        }
        let minutes = limits::TURN_MAX.as_secs() / 60;
        let message = format!("the turn did not end within {minutes} minutes");
        Err(Fault { code: "turn-timeout", message })
    }

    fn add(&mut self, completion: &Completion) {
        // For a server that does not count: a token has about four characters.
        let estimate = (completion.text.len() as u64).div_ceil(4);
        let tokens = completion.completion_tokens.unwrap_or(estimate);
        self.stats.add_tokens(completion.prompt_tokens.unwrap_or(0), tokens);
        self.generating += completion.took;
    }

    fn finish(mut self, finish: FinishReason) -> TurnStats {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let seconds = self.generating.as_secs_f64();
        let tokens = self.stats.completion_tokens;
        self.stats.tokens = tokens;
        // Tokens that arrive at the same time have no speed. The cast is exact up to 2^53 tokens.
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let speed = if seconds >= 0.001 { tokens as f64 / seconds } else { 0.0 };
        self.stats.speed = (speed * 10.0).round() / 10.0;
        self.stats.elapsed = millis(self.began.elapsed());
        self.stats.first_token_latency_ms = self.first.map(|first| millis(first - self.began));
        self.stats.finish_reason = match finish {
            FinishReason::Stop => None,
            FinishReason::Length => Some("length".to_owned()),
            FinishReason::Other(word) => Some(word),
        };
        self.stats
    }
}

/// Returns whether there is no result: a call that was cut off does not count.
fn is_cut_off(completion: &Completion) -> bool {
    completion.text.is_empty() && completion.finish != FinishReason::Stop
}

fn cut_off(finish: &FinishReason) -> Fault {
    let message = match finish {
        FinishReason::Other(word) => format!(
            "the model server ended the answer before it had any text ({word}); tool calls of such an \
             answer do not run"
        ),
        _ => format!(
            "the model's answer was cut off before it had any text: it reached {} tokens, or the \
             end of the model's context; a tool call that is cut off does not run",
            limits::ANSWER_TOKENS_MAX
        ),
    };
    Fault { code: "model-cut-off", message }
}

fn repeated_call(name: &str) -> Fault {
    let times = limits::SAME_CALLS_MAX;
    let message = format!(
        "the model repeated the same call: {name} with the same arguments {times} times in a row"
    );
    Fault { code: "tool-loop", message }
}
