//! Tool calls: understood, allowed, told to the session, carried out.

use std::thread;
use std::time::{Duration, Instant};

use crate::config::{Rule, ToolSettings};
use crate::json::{self, Raw};
use crate::limits;
use crate::log::Log;
use crate::protocol::event::{Event, ToolEnd, ToolStart};
use crate::session::desk::{Patience, Turn};
use crate::session::journal::Durability;
use crate::session::rules::ToolCall;
use crate::session::turn::{Fault, cancelled};

use super::permissions;
use super::tools::{Effect, Job, Outcome, Scene, Tool, short};
use super::turn_loop::{tell, trouble};

/// What the model wants, as far as it is understood.
pub struct Call {
    pub asked: ToolCall,
    tool: Option<Tool>,
    /// The error is for the model.
    job: Result<Job, String>,
    /// It was written as text, which may have been meant as an example.
    spoken: bool,
}

impl Call {
    /// Understands a call; its name becomes the tool's own, and arguments that stand in quotes
    /// as a whole lose them.
    pub fn new(mut asked: ToolCall, spoken: bool) -> Call {
        let quoted: Option<String> = json::parse(asked.arguments.as_bytes()).ok();
        if let Some(inner) = quoted.filter(|inner| Raw::object(inner).is_some()) {
            asked.arguments = inner;
        }
        let tool = Tool::named(&asked.name);
        let job = match tool {
            Some(tool) => tool.job(&asked.arguments),
            None => {
                let names = Tool::ALL.map(Tool::name).join(", ");
                Err(format!("there is no tool {:?}; the tools are {names}", short(&asked.name)))
            }
        };
        if let Some(tool) = tool {
            tool.name().clone_into(&mut asked.name);
        }
        Call { asked, tool, job, spoken }
    }

    /// The arguments without what does not matter.
    pub fn canonical(&self) -> String {
        let raw = Raw::parse(&self.asked.arguments);
        raw.map_or_else(|_| self.asked.arguments.clone(), |raw| raw.as_str().to_owned())
    }

    fn input(&self) -> Raw {
        Raw::object(&self.asked.arguments).unwrap_or_else(Raw::empty)
    }

    /// As the log has it; what the model has made up is not worth a line's length.
    fn logged_name(&self) -> &str {
        self.tool.map_or("unknown", Tool::alias)
    }
}

/// Carries calls out, for one turn.
pub struct Clerk<'a> {
    pub turn: &'a Turn<'a>,
    pub scene: Scene<'a>,
    pub settings: ToolSettings,
    pub log: &'a Log,
}

impl Clerk<'_> {
    /// Whether a call can run beside others: it only reads, and nobody is to be asked.
    pub fn is_free(&self, call: &Call) -> bool {
        let reads = call
            .tool
            .is_some_and(|tool| tool.effect() == Effect::Reads && self.rule(tool) == Rule::Allow);
        reads && call.job.is_ok()
    }

    /// Carries out one call, or several that are free; outcomes come in the order of the calls.
    pub fn carry_out(&self, calls: &[Call]) -> Result<Vec<Outcome>, Fault> {
        let refusals = calls.iter().map(|call| self.refusal(call));
        let refusals = refusals.collect::<Result<Vec<_>, Fault>>()?;
        for call in calls {
            self.start(call)?;
        }
        let run = |call: &Call, refusal: &Option<Outcome>| {
            let began = Instant::now();
            let outcome = match (&call.job, refusal) {
                (Ok(job), None) => job.run(&self.scene),
                (Ok(_), Some(refusal)) => refusal.clone(),
                (Err(because), _) => Outcome::error(because),
            };
            (outcome, began.elapsed())
        };
        let done: Vec<(Outcome, Duration)> = match (calls, refusals.as_slice()) {
            // Where it was called from: a command must not outlive the thread that started it.
            ([call], [refusal]) => vec![run(call, refusal)],
            _ => thread::scope(|scope| {
                let run = &run;
                let each = calls.iter().zip(&refusals).map(|(call, refusal)| {
                    let named = thread::Builder::new().name("tool".to_owned());
                    let started = named.spawn_scoped(scope, move || run(call, refusal));
                    // Without another thread this one does it.
                    started.map_err(|_no_thread| run(call, refusal))
                });
                let each: Vec<_> = each.collect();
                let failed = |_| (Outcome::error("the tool has failed"), Duration::ZERO);
                let ended = each.into_iter().map(|one| match one {
                    Ok(thread) => thread.join().unwrap_or_else(failed),
                    Err(done) => done,
                });
                ended.collect()
            }),
        };
        for (call, (outcome, elapsed)) in calls.iter().zip(&done) {
            self.end(call, outcome, *elapsed)?;
        }
        Ok(done.into_iter().map(|(outcome, _)| outcome).collect())
    }

    fn rule(&self, tool: Tool) -> Rule {
        let (grant, mode) = (self.turn.grant(), self.turn.head.mode.as_str());
        permissions::rule(tool, &self.settings, grant, mode)
    }

    /// Why a call must not run, if so; asks whom it may ask.
    fn refusal(&self, call: &Call) -> Result<Option<Outcome>, Fault> {
        let (Some(tool), Ok(_)) = (call.tool, &call.job) else {
            return Ok(None);
        };
        let because = match self.rule(tool) {
            Rule::Allow if !call.spoken || tool.effect() == Effect::Reads => return Ok(None),
            Rule::Deny if !permissions::fits(tool, &self.turn.head.mode) => {
                self.resolved(tool, "deny", "mode");
                "permission denied: nothing is changed in the mode of this turn; do without it"
            }
            Rule::Deny => {
                self.resolved(tool, "deny", "settings");
                "permission denied: the user's settings forbid this tool"
            }
            _ if !self.can_ask() => {
                self.resolved(tool, "deny", "nobody to ask");
                "permission denied: it needs the user's consent, and nobody is there to be asked; \
                 do without it"
            }
            _ => {
                self.log.info("permission requested", &[("tool", &tool.alias())]);
                let (limit, alone) = (limits::PERMISSION_MAX, limits::ALONE_MAX);
                let asked = self.turn.may(tool.name(), &call.input(), Patience { limit, alone });
                let allowed = asked.map_err(|problem| trouble(&problem))?;
                self.resolved(tool, if allowed { "allow" } else { "deny" }, "answer");
                if self.turn.cancelled() {
                    return Err(cancelled());
                }
                if allowed {
                    return Ok(None);
                }
                "permission denied: the user has not allowed this call"
            }
        };
        Ok(Some(Outcome::error(because)))
    }

    /// Whether there is anybody to answer a question: at the caller's side, or among those who
    /// follow the session.
    fn can_ask(&self) -> bool {
        self.turn.options.attended == Some(true) || self.turn.has_listener()
    }

    fn resolved(&self, tool: Tool, decision: &str, by: &str) {
        let tool = tool.alias();
        self.log
            .info("permission resolved", &[("tool", &tool), ("decision", &decision), ("by", &by)]);
    }

    fn start(&self, call: &Call) -> Result<(), Fault> {
        let name = call.logged_name();
        match call.job.as_ref().ok().and_then(Job::path) {
            Some(path) => self.log.info("tool.start", &[("tool", &name), ("path", &path)]),
            None => self.log.info("tool.start", &[("tool", &name)]),
        }
        let ToolCall { id, name, arguments } = &call.asked;
        let turn_id = &self.turn.head.turn_id;
        let event = ToolStart::new(turn_id, id, name, arguments, call.input());
        tell(self.turn, &Event::ToolStart(event), Durability::Synced)
    }

    fn end(&self, call: &Call, outcome: &Outcome, elapsed: Duration) -> Result<(), Fault> {
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let (name, duration) = (call.logged_name(), format!("{millis}ms"));
        self.log.info("tool.end", &[("tool", &name), ("duration", &duration)]);
        let ToolCall { id, name, .. } = &call.asked;
        let turn_id = &self.turn.head.turn_id;
        let event = ToolEnd::new(turn_id, id, name, &outcome.text, millis, outcome.success);
        tell(self.turn, &Event::ToolEnd(event), Durability::Synced)
    }
}
