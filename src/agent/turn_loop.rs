//! One turn: the model is asked, what it wants done is done, and it is asked again with what came
//! of it, until it answers without a call.
//!
//! Every call that the session has heard of is answered, whatever happens. A call is on the disk
//! before it runs, and its result before the model hears of it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::config::{Rule, ToolSettings};
use crate::limits;
use crate::protocol::Endpoint;
use crate::protocol::event::{Event, TurnStats, TurnText};
use crate::session::desk::{Problem, Turn};
use crate::session::journal::Durability;
use crate::session::rules::{Message, ToolCall};
use crate::session::turn::{Fault, cancelled};

use super::calls::{Call, Clerk};
use super::contexts::Contexts;
use super::history::History;
use super::model::{Answer, Ask, Finish, Piece, code};
use super::tools::{self, Scene, Tool};
use super::{Assistant, Model, permissions, text_tool_call};

/// A turn that is being answered.
pub struct TurnLoop<'a> {
    turn: &'a Turn<'a>,
    model: &'a dyn Model,
    endpoint: Endpoint,
    history: History,
    contexts: &'a Contexts,
    /// What the model is offered.
    offered: Vec<Tool>,
    clerk: Clerk<'a>,
    calls_max: u64,
    /// Ids of calls: those of a turn differ, whatever the model calls them.
    ids: HashSet<String>,
    /// The last call and how often it came in a row.
    last: Option<((String, String), u64)>,
    /// The model has bungled its first call, and is held to one.
    insists: bool,
    progress: Progress,
}

/// What the statistics are made of.
struct Progress {
    began: Instant,
    first: Option<Instant>,
    generating: Duration,
    stats: TurnStats,
}

impl<'a> TurnLoop<'a> {
    /// Reads the conversation and opens the workspace.
    pub fn begin(
        turn: &'a Turn<'a>,
        assistant: &'a Assistant,
        endpoint: Endpoint,
        settings: ToolSettings,
    ) -> Result<TurnLoop<'a>, Fault> {
        let began = Instant::now();
        let workspace = turn.summary().workspace;
        let conversation = turn.conversation().map_err(|error| trouble(&Problem::Failed(error)))?;
        let history = History::new(conversation, &prompt(workspace.as_deref()));
        let deadline = began + limits::TURN_MAX;
        let environment = turn.options.environment.as_deref().unwrap_or_default();
        let Assistant { closed, model, log, contexts, .. } = assistant;
        let scene = Scene::new(workspace.as_deref(), closed, environment, turn.cancel(), deadline);
        let (grant, mode) = (turn.grant(), turn.head.mode.as_str());
        let allowed = |tool: &Tool| permissions::rule(*tool, &settings, grant, mode) != Rule::Deny;
        let offered = match workspace {
            Some(_) => Tool::ALL.into_iter().filter(allowed).collect(),
            // There is nothing that tools could be used on.
            None => Vec::new(),
        };
        let calls_max = settings.calls_max;
        Ok(TurnLoop {
            turn,
            model: &**model,
            endpoint,
            history,
            contexts,
            offered,
            clerk: Clerk { turn, scene, settings, log },
            calls_max,
            ids: HashSet::new(),
            last: None,
            insists: false,
            progress: Progress {
                began,
                first: None,
                generating: Duration::ZERO,
                stats: TurnStats::default(),
            },
        })
    }

    /// Goes round until the model has nothing more to be done.
    pub fn run(mut self) -> Result<TurnStats, Fault> {
        loop {
            let answer = self.ask()?;
            let calls = self.calls_of(&answer)?;
            if calls.is_empty() {
                if is_cut_off(&answer) {
                    return Err(cut_off(&answer.finish));
                }
                return Ok(self.progress.done(answer.finish));
            }
            let heard = calls.iter().map(|call| call.asked.clone()).collect();
            self.history.push(Message::Assistant { text: answer.text, calls: heard });
            self.act(&calls)?;
        }
    }

    /// Asks the model: again with less if it was told too much, and once more if it has bungled
    /// its first call and said nothing else.
    fn ask(&mut self) -> Result<Answer, Fault> {
        let mut refused = None;
        loop {
            self.check()?;
            let messages = self.messages();
            let mut spoke = false;
            match self.ask_once(&messages, &mut spoke) {
                Err(fault) if fault.code == code::TOO_LONG && self.history.shorten() => {
                    refused = Some(messages.len());
                }
                Err(fault) if fault.code == code::MALFORMED && !spoke && self.insist() => {}
                Ok(answer)
                    if is_cut_off(&answer) && answer.finish == Finish::Length && self.insist() => {}
                Ok(answer) => {
                    let now = Instant::now();
                    self.contexts.learn(&self.endpoint, messages.len(), refused, now);
                    return Ok(answer);
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// What the model is told: less than is known to be too long, if that can be.
    fn messages(&mut self) -> String {
        let too_many = self.contexts.too_many(&self.endpoint, Instant::now());
        loop {
            let messages = self.history.json();
            let fits = too_many.is_none_or(|too_many| messages.len() < too_many);
            if fits || !self.history.shorten() {
                return messages;
            }
        }
    }

    /// Demands the first call of the turn, which servers then hold to its form. `false` if that was
    /// done before, or makes no sense.
    fn insist(&mut self) -> bool {
        let sensible = self.is_first() && self.tool_choice() == "auto";
        self.insists |= sensible;
        sensible
    }

    fn is_first(&self) -> bool {
        self.progress.stats.tool_calls == 0
    }

    /// What the model may use now: without tools it has to come to an end.
    fn offered(&self) -> &[Tool] {
        let left = self.progress.stats.tool_calls < self.calls_max;
        if left { &self.offered } else { &[] }
    }

    fn tool_choice(&self) -> &'static str {
        match self.endpoint.tool_choice.as_deref() {
            _ if self.offered().is_empty() => "none",
            Some("required") => "required",
            Some("required-first") if self.is_first() => "required",
            _ if self.is_first() && self.insists => "required",
            _ => "auto",
        }
    }

    /// `spoke` becomes true with the first word of text.
    fn ask_once(&mut self, messages: &str, spoke: &mut bool) -> Result<Answer, Fault> {
        let ask = Ask {
            endpoint: &self.endpoint,
            messages,
            tools: &tools::definitions(self.offered()),
            tool_choice: self.tool_choice(),
            max_tokens: Some(limits::ANSWER_TOKENS_MAX),
        };
        let (turn, progress) = (self.turn, &mut self.progress);
        let deadline = progress.began + limits::TURN_MAX;
        let mut on_piece = |piece: Piece<'_>| {
            let now = Instant::now();
            progress.first.get_or_insert(now);
            if now >= deadline {
                return Err(out_of_time());
            }
            *spoke |= matches!(piece, Piece::Text(_));
            tell_piece(turn, &piece)
        };
        let answer = self.model.ask(&ask, turn.cancel(), &mut on_piece)?;
        self.progress.add(&answer);
        Ok(answer)
    }

    /// What the model wants done, no more than it may.
    fn calls_of(&mut self, answer: &Answer) -> Result<Vec<Call>, Fault> {
        let left = self.calls_max.saturating_sub(self.progress.stats.tool_calls);
        let mut wanted = answer.calls.clone();
        let spoken = wanted.is_empty();
        let whole = answer.finish.is_the_models_own();
        if spoken && whole && !self.offered.is_empty() {
            wanted.extend(text_tool_call::call(&answer.text));
        }
        if left == 0 && !wanted.is_empty() {
            let message = format!(
                "the turn has made {} tool calls, and the model wants more; \
                 safety.maxToolCalls in config.json is the limit",
                self.calls_max
            );
            return Err(Fault { code: "tool-limit", message });
        }
        wanted.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let calls = wanted.into_iter().map(|call| Call::new(self.with_own_id(call), spoken));
        Ok(calls.collect())
    }

    /// Some models leave ids out, and some use one for every call.
    fn with_own_id(&mut self, mut call: ToolCall) -> ToolCall {
        let mut number = self.ids.len() + 1;
        while call.id.is_empty() || self.ids.contains(&call.id) {
            call.id = format!("call_{number}");
            number += 1;
        }
        self.ids.insert(call.id.clone());
        call
    }

    /// Does what the model wants, and tells it what came of it.
    fn act(&mut self, calls: &[Call]) -> Result<(), Fault> {
        let mut rest = calls;
        while !rest.is_empty() {
            self.check()?;
            let together = rest.iter().take(limits::PARALLEL_TOOLS_MAX);
            let together = together.take_while(|call| self.clerk.is_free(call)).count().max(1);
            let (mut now, later) = rest.split_at(together);
            // What goes in circles is not begun, what came before it is.
            let circle = now.iter().position(|call| self.is_repeated(call));
            let repeated = circle.and_then(|circle| now.get(circle));
            now = now.get(..circle.unwrap_or(now.len())).unwrap_or_default();
            for (call, outcome) in now.iter().zip(self.clerk.carry_out(now)?) {
                self.progress.stats.tool_calls += 1;
                let call_id = call.asked.id.clone();
                self.history.push(Message::Tool { call_id, result: outcome.text });
            }
            if let Some(repeated) = repeated {
                return Err(in_circles(&repeated.asked.name));
            }
            rest = later;
        }
        Ok(())
    }

    fn is_repeated(&mut self, call: &Call) -> bool {
        let key = (call.asked.name.clone(), call.canonical());
        let count = match self.last.take() {
            Some((last, count)) if last == key => count + 1,
            _ => 1,
        };
        self.last = Some((key, count));
        count >= limits::SAME_CALLS_MAX
    }

    fn check(&self) -> Result<(), Fault> {
        if self.turn.cancelled() {
            return Err(cancelled());
        }
        if self.progress.began.elapsed() >= limits::TURN_MAX {
            return Err(out_of_time());
        }
        Ok(())
    }
}

impl Progress {
    fn add(&mut self, answer: &Answer) {
        // A server that does not count: about four characters make a token.
        let guessed = (answer.text.len() as u64).div_ceil(4);
        let completion = answer.completion_tokens.unwrap_or(guessed);
        self.stats.add_tokens(answer.prompt_tokens.unwrap_or(0), completion);
        self.generating += answer.took;
    }

    fn done(mut self, finish: Finish) -> TurnStats {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let seconds = self.generating.as_secs_f64();
        let tokens = self.stats.completion_tokens;
        self.stats.tokens = tokens;
        // What came all at once says nothing about its speed. Precise for any number of tokens that
        // anybody will wait for.
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let speed = if seconds >= 0.001 { tokens as f64 / seconds } else { 0.0 };
        self.stats.speed = (speed * 10.0).round() / 10.0;
        self.stats.elapsed = millis(self.began.elapsed());
        self.stats.first_token_latency_ms = self.first.map(|first| millis(first - self.began));
        self.stats.finish_reason = match finish {
            Finish::Stop | Finish::ToolCalls => None,
            Finish::Length => Some("length".to_owned()),
            Finish::Other(word) => Some(word),
        };
        self.stats
    }
}

/// Text that has arrived becomes an event at once: nothing waits for more.
fn tell_piece(turn: &Turn<'_>, piece: &Piece<'_>) -> Result<(), Fault> {
    let (event, text): (fn(TurnText) -> Event, _) = match piece {
        Piece::Text(text) => (Event::TurnToken, *text),
        Piece::Thinking(text) => (Event::TurnThinking, *text),
    };
    if text.is_empty() {
        return Ok(());
    }
    let text = TurnText { turn_id: turn.head.turn_id.clone(), text: text.to_owned() };
    tell(turn, &event(text), Durability::Cached)
}

/// Adds an event to the session of a turn.
pub fn tell(turn: &Turn<'_>, event: &Event, durability: Durability) -> Result<(), Fault> {
    turn.append(event, durability).map(drop).map_err(|problem| trouble(&problem))
}

/// A problem of the session as the end of its turn.
pub fn trouble(problem: &Problem) -> Fault {
    let code = match problem {
        Problem::Storage(_) => "storage-full",
        Problem::Leaving => "interrupted",
        _ => "internal-error",
    };
    Fault { code, message: problem.to_string() }
}

fn out_of_time() -> Fault {
    let minutes = limits::TURN_MAX.as_secs() / 60;
    let message = format!("the turn was not done after {minutes} minutes");
    Fault { code: "turn-timeout", message }
}

/// Nothing has come of it: a call that is cut is not one.
fn is_cut_off(answer: &Answer) -> bool {
    answer.text.is_empty() && !answer.finish.is_the_models_own()
}

fn cut_off(finish: &Finish) -> Fault {
    if let Finish::Other(word) = finish {
        let message = format!(
            "the model server has ended the answer before it said anything ({word}); a tool call \
             beside that is not run"
        );
        return Fault { code: "model-cut-off", message };
    }
    let tokens = limits::ANSWER_TOKENS_MAX;
    let message = format!(
        "the model's answer was cut off before it said anything: it reached {tokens} tokens, or the end \
         of the model's context; a tool call that is cut off is not run"
    );
    Fault { code: "model-cut-off", message }
}

fn in_circles(name: &str) -> Fault {
    let times = limits::SAME_CALLS_MAX;
    let message = format!(
        "the model goes in circles: it has called {name} with the same arguments {times} times in a row"
    );
    Fault { code: "tool-loop", message }
}

fn prompt(workspace: Option<&str>) -> String {
    let system = match std::env::consts::OS {
        "macos" => "macOS",
        "linux" => "Linux",
        other => other,
    };
    match workspace {
        Some(path) => format!(
            "You are opta, an assistant on {system}. You work in the directory {path}. Use the tools to \
             look at it and to change it; paths are relative to it. When the task is done, answer \
             without a tool call."
        ),
        None => format!("You are opta, an assistant on {system}."),
    }
}
