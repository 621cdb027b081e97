//! Tool calls of one turn: permitted, recorded in the session, run.

use std::thread;
use std::time::{Duration, Instant};

use crate::config::{Rule, ToolSettings};
use crate::limits;
use crate::log::Log;
use crate::protocol::event::{Event, ToolEnd, ToolStart};
use crate::session::journal::Durability;
use crate::session::replay::ToolCall;
use crate::session::turn::{Fault, Turn, WaitLimits, cancelled};

use super::permissions;
use super::tool_call::Call;
use super::tools::{Effect, Operation, Outcome, Tool, ToolContext};

/// The runner of the tool calls of one turn.
pub struct ToolRunner<'a> {
    pub turn: &'a Turn<'a>,
    pub context: ToolContext<'a>,
    pub settings: ToolSettings,
    pub log: &'a Log,
}

impl ToolRunner<'_> {
    /// Returns the rule for a tool in this turn.
    pub fn rule(&self, tool: &Tool) -> Rule {
        let (grant, mode) = (self.turn.grant(), self.turn.head.mode.as_str());
        permissions::rule(tool, &self.settings, grant, mode)
    }

    /// Returns the rule for a call: the settings may allow its command.
    fn rule_of_call(&self, tool: &Tool, operation: &Operation) -> Rule {
        let command = operation.subjects.command.as_deref().unwrap_or_default();
        let grant = self.turn.grant();
        match self.rule(tool) {
            Rule::Ask if permissions::allow_command(tool, &self.settings, grant, command) => {
                Rule::Allow
            }
            rule => rule,
        }
    }

    /// Returns whether a call may run in parallel with others: it only reads, and needs no answer.
    pub fn is_parallel(&self, call: &Call) -> bool {
        let reads = |tool: &Tool| tool.effect == Effect::Reads && self.rule(tool) == Rule::Allow;
        call.operation.is_ok() && call.tool.is_some_and(reads)
    }

    /// Runs one call, or several parallel ones. Returns the outcomes in the order of the calls.
    pub fn run(&self, calls: &[Call]) -> Result<Vec<Outcome>, Fault> {
        let permitted = calls.iter().map(|call| self.permitted(call));
        let permitted = permitted.collect::<Result<Vec<_>, Fault>>()?;
        for call in calls {
            self.record_start(call)?;
        }
        let run = |operation: &Result<&Operation, String>| {
            let began = Instant::now();
            let outcome = match operation {
                Ok(operation) => operation.run(&self.context),
                Err(because) => Outcome::error(because),
            };
            (outcome, began.elapsed())
        };
        let done: Vec<(Outcome, Duration)> = thread::scope(|scope| {
            let run = &run;
            let start = |operation| {
                let thread = thread::Builder::new().name("tool".to_owned());
                let started = thread.spawn_scoped(scope, move || run(operation));
                // If no thread can be started, this one runs it.
                started.map_err(|_no_thread| run(operation))
            };
            let panicked = |_| (Outcome::error("the tool has failed"), Duration::ZERO);
            let join = |started: Result<thread::ScopedJoinHandle<'_, _>, _>| match started {
                Ok(thread) => thread.join().unwrap_or_else(panicked),
                Err(done) => done,
            };
            let mut work = permitted.iter();
            // On this thread: a command ends with the thread that started it.
            let first = work.next();
            let others: Vec<_> = work.map(start).collect();
            let first = first.map(run);
            first.into_iter().chain(others.into_iter().map(join)).collect()
        });
        for (call, (outcome, elapsed)) in calls.iter().zip(&done) {
            self.record_end(call, outcome, *elapsed)?;
        }
        Ok(done.into_iter().map(|(outcome, _)| outcome).collect())
    }

    /// Returns what a call does, or why it must not run. Requests permission if that is needed and
    /// possible.
    fn permitted<'c>(&self, call: &'c Call) -> Result<Result<&'c Operation, String>, Fault> {
        let (Some(tool), Ok(operation)) = (call.tool, &call.operation) else {
            return Ok(call.operation.as_ref().map_err(String::clone));
        };
        let (by, because) = match self.rule_of_call(tool, operation) {
            Rule::Allow if !call.is_text || tool.effect == Effect::Reads => {
                return Ok(Ok(operation));
            }
            Rule::Deny if !permissions::fits(tool, &self.turn.head.mode) => {
                ("mode", "nothing is changed in the mode of this turn; do without it")
            }
            Rule::Deny => ("settings", "the user's settings forbid this tool"),
            _ if !self.can_ask() => (
                "nobody to ask",
                "it needs the user's consent, and nobody is there to be asked; do without it",
            ),
            _ if self.is_permitted(tool, call)? => return Ok(Ok(operation)),
            _ => ("answer", "the user has not allowed this call"),
        };
        self.log_decision(tool, "deny", by);
        Ok(Err(format!("permission denied: {because}")))
    }

    /// Requests permission for a call.
    fn is_permitted(&self, tool: &Tool, call: &Call) -> Result<bool, Fault> {
        self.log.info("permission requested", &[("tool", &tool.alias)]);
        let limits =
            WaitLimits { total: limits::PERMISSION_MAX, unattended: limits::UNFOLLOWED_MAX };
        let allowed = self.turn.request_permission(tool.name, &call.input(), limits)?;
        if allowed {
            self.log_decision(tool, "allow", "answer");
        }
        if self.turn.cancel.is_cancelled() { Err(cancelled()) } else { Ok(allowed) }
    }

    /// Returns whether a question would be seen: by the caller, or by a client that follows the
    /// session and answers.
    fn can_ask(&self) -> bool {
        self.turn.options.attended == Some(true) || self.turn.session.has_responder()
    }

    fn log_decision(&self, tool: &Tool, decision: &str, by: &str) {
        let tool = tool.alias;
        self.log
            .info("permission resolved", &[("tool", &tool), ("decision", &decision), ("by", &by)]);
    }

    fn record_start(&self, call: &Call) -> Result<(), Fault> {
        let name = logged_name(call);
        match call.operation.as_ref().ok().and_then(|operation| operation.subjects.path.as_ref()) {
            Some(path) => self.log.info("tool.start", &[("tool", &name), ("path", &path)]),
            None => self.log.info("tool.start", &[("tool", &name)]),
        }
        let ToolCall { id, name, arguments, .. } = &call.request;
        let turn_id = &self.turn.head.turn_id;
        let event = ToolStart::new(turn_id, id, name, arguments, call.input());
        self.turn.append(&Event::ToolStart(event), Durability::Synced)?;
        Ok(())
    }

    fn record_end(&self, call: &Call, outcome: &Outcome, elapsed: Duration) -> Result<(), Fault> {
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let duration = format!("{millis}ms");
        self.log.info("tool.end", &[("tool", &logged_name(call)), ("duration", &duration)]);
        let ToolCall { id, name, .. } = &call.request;
        let turn_id = &self.turn.head.turn_id;
        let Outcome { text, success } = outcome;
        let event = ToolEnd::new(turn_id, id, name, text, millis, *success);
        self.turn.append(&Event::ToolEnd(event), Durability::Synced)?;
        Ok(())
    }
}

/// Returns the name for the log. A name that a model made up could be anything and is not logged.
fn logged_name(call: &Call) -> &'static str {
    call.tool.map_or("unknown", |tool| tool.alias)
}
