//! One turn after the other in a session, each from its submission to its end, whatever becomes of
//! the daemon meanwhile.
//!
//! Sessions and turns get their names here, so that what is sent again, because an answer was lost,
//! is the same session and the same turn. One thread waits for everything, events, keys and
//! signals, since a process with two could not start a daemon.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::agent::find::{self, Wanted};
use crate::cli::ModelArgs;
use crate::commands::Output;
use crate::commands::console::{Console, End};
use crate::commands::question::{self, Question, Reply};
use crate::commands::screen::Call;
use crate::config::{self, Config, ModelSettings};
use crate::error::{Doing, Error, Kind};
use crate::http::EventStream;
use crate::json::Raw;
use crate::lifecycle::guardian::{Ensured, How};
use crate::lifecycle::reach::reach;
use crate::lifecycle::status::{self, Status};
use crate::paths::Paths;
use crate::protocol::event::{Envelope, Event, PermissionRequest, TurnStats};
use crate::protocol::{
    CreateSession, Endpoint, ErrorDetail, Grant, Metadata, ResolvePermission, SubmitTurn,
    TurnOptions, Variable,
};
use crate::session::rules::SessionId;
use crate::session::turn::Fault;
use crate::state::DaemonInfo;
use crate::token::random_name;
use crate::{client, limits, sys};

/// A session that turns are submitted to.
pub struct Talk<'a> {
    paths: &'a Paths,
    config: Config,
    settings: ModelSettings,
    model: &'a ModelArgs,
    pub session: SessionId,
    /// What the session is to be made with, before it is.
    founding: Option<CreateSession>,
    options: TurnOptions,
    /// The daemon that was spoken to last.
    info: Option<Box<DaemonInfo>>,
    /// Tools that the user always allows.
    always: Vec<String>,
    /// The last turn, if one was submitted.
    pub turn_id: Option<String>,
}

/// What would be lost if a signal ended this process while a daemon is being waited for.
#[derive(Clone, Copy)]
enum Stake {
    /// It does, then.
    Nothing,
    /// A turn that goes on without this process: signals wait, and cancel it.
    Turn,
}

/// A turn that is followed.
struct Followed {
    id: String,
    /// Of the last event that was seen.
    seq: u64,
    /// How often it was lost without anything new.
    losses: u32,
    cancelled: bool,
    /// What the user is asked, the first one on the screen.
    questions: VecDeque<Question>,
}

impl<'a> Talk<'a> {
    /// A talk in `session`, or in a new one that is made with its first turn.
    pub fn new(
        paths: &'a Paths,
        model: &'a ModelArgs,
        session: Option<SessionId>,
    ) -> Result<Talk<'a>, Error> {
        let config = Config::load(&paths.config())?;
        let settings = ModelSettings::load(&paths.config())?;
        let (session, founding) = match session {
            Some(session) => (session, None),
            None => founding(model)?,
        };
        let environment = config::turn_environment().into_iter();
        let environment = environment.map(|(name, value)| Variable { name, value }).collect();
        let options = TurnOptions { environment: Some(environment), ..Default::default() };
        Ok(Talk {
            paths,
            config,
            settings,
            model,
            session,
            founding,
            options,
            info: None,
            always: Vec::new(),
            turn_id: None,
        })
    }

    /// Whether there is such a session already.
    pub fn exists(&self) -> bool {
        self.founding.is_none()
    }

    /// Allows the turns this much without a question.
    pub fn grant(&mut self, grant: Grant) {
        self.options.grant = (grant != Grant::Settings).then(|| grant.name().to_owned());
    }

    /// Has one turn run, to its end.
    ///
    /// # Errors
    /// What keeps it from being submitted, or from being followed.
    pub fn run(&mut self, content: &str, console: &mut Console) -> Result<End, Error> {
        console.begin();
        self.options.attended = Some(console.keyboard.is_some());
        if self.options.endpoint.is_none() {
            // The daemon first: without one there is nothing to have a model for.
            self.reach(console, Stake::Nothing, |_| Ok(()))?;
            match self.endpoint() {
                Ok(endpoint) => self.options.endpoint = Some(endpoint),
                Err(fault) => {
                    console.screen.end()?;
                    return Ok(End::Failed(ErrorDetail::new(fault.code, &fault.message)));
                }
            }
        }
        if console.signal()?.is_some() {
            console.screen.end()?;
            return Ok(End::cancelled("it was cancelled before it began"));
        }
        let id = format!("turn_{}", random_name(12)?);
        let (mut turn, stream) = self.submit(id, content, console)?;
        let end = self.follow(&mut turn, stream, console);
        let shown = console.screen.end().and_then(|()| console.finish());
        if end.as_ref().is_err_and(|error| error.kind() == Kind::Output) {
            // Nobody is left to read what it would say.
            self.cancel(&turn.id);
        }
        shown?;
        if let Ok(End::Done(stats)) = &end {
            warn(stats, console);
        }
        end
    }

    /// Where the model is: looked for once, and meant for every turn.
    fn endpoint(&self) -> Result<Endpoint, Fault> {
        let (name, url) = (self.model.name.as_deref(), self.model.url.as_deref());
        let wanted = Wanted { model_url: url, model: name, settings: &self.settings };
        Ok(find::resolve(&wanted)?)
    }

    fn submit(
        &mut self,
        id: String,
        content: &str,
        console: &mut Console,
    ) -> Result<(Followed, EventStream), Error> {
        let name = format!("opta-{}", std::process::id());
        let new = SubmitTurn {
            turn_id: Some(id.clone()),
            client_id: Some(name.clone()),
            writer_id: Some(name),
            content: content.to_owned(),
            options: Some(self.options.clone()),
            ..SubmitTurn::default()
        };
        let (session, founding) = (self.session.clone(), self.founding.take());
        let answers = console.keyboard.is_some();
        let submitted = self.reach(console, Stake::Nothing, |info| {
            if let Some(founding) = &founding {
                client::create_session(info, founding)?;
            }
            let accepted = client::submit_turn(info, &session, &new)?;
            // Its own first event included.
            let seq = accepted.seq.saturating_sub(1);
            let stream = client::follow(info, &session, seq, answers);
            Ok((seq, stream.inspect_err(|failure| abandon(info, &session, &id, failure))?))
        });
        if submitted.is_err() {
            // Made again if it was made: it is the same one.
            self.founding = founding;
        }
        let (seq, stream) = submitted?;
        self.turn_id = Some(id.clone());
        let questions = VecDeque::new();
        Ok((Followed { id, seq, losses: 0, cancelled: false, questions }, stream))
    }

    /// Calls the daemon, and says so once if it is another one than before.
    fn reach<T>(
        &mut self,
        console: &mut Console,
        stake: Stake,
        call: impl FnMut(&DaemonInfo) -> Result<T, client::Failure>,
    ) -> Result<T, Error> {
        let Talk { paths, config, info, .. } = self;
        if matches!(stake, Stake::Nothing) {
            console.let_through()?;
        }
        let tell = |daemon: &Ensured| {
            drop(console.hold());
            let before = info.replace(daemon.info.clone());
            let met = before.as_ref().map(|info| &info.daemon_id);
            if met == Some(&daemon.info.daemon_id) {
                return;
            }
            console.screen.make_room();
            let output = Output::to_keep();
            output.introduce(daemon);
            let crashed = matches!(&daemon.how, How::Started(past) if past.crashed.is_some());
            if before.is_some() && !crashed {
                output.say(&format!("the daemon was restarted (pid {})", daemon.info.pid));
            }
            console.screen.tell(&output.kept().words);
        };
        let answer = reach(paths, config, tell, call);
        console.hold()?;
        answer
    }

    fn follow(
        &mut self,
        turn: &mut Followed,
        mut stream: EventStream,
        console: &mut Console,
    ) -> Result<End, Error> {
        loop {
            if let Some(end) = self.watch(turn, &mut stream, console)? {
                return Ok(end);
            }
            if console.signal()?.is_some() || console.leaves().is_some() {
                self.cancel(&turn.id);
                return Ok(End::Left);
            }
            turn.losses += 1;
            if turn.losses > limits::FOLLOW_TRIES_MAX {
                let reason = "the connection is lost again and again";
                return Err(client::bad_reply("follow the turn", reason));
            }
            let (session, seq) = (self.session.clone(), turn.seq);
            let stake = self.stake();
            let answers = console.keyboard.is_some();
            let again = self.reach(console, stake, |info| {
                let stream = client::follow(info, &session, seq, answers);
                stream.inspect_err(|failure| abandon(info, &session, &turn.id, failure))
            });
            if again.is_err() && console.signal()?.is_some() {
                self.cancel(&turn.id);
                return Ok(End::Left);
            }
            stream = again?;
        }
    }

    /// What a signal would put an end to while the daemon is looked for, once the turn was lost.
    fn stake(&self) -> Stake {
        match status::look(self.paths) {
            // Interrupted with its daemon; to wait for the next one may take long.
            Ok(Status::Stopped | Status::Crashed { .. }) => Stake::Nothing,
            _ => Stake::Turn,
        }
    }

    /// Watches a turn until it ends; `None` if the daemon was lost before.
    fn watch(
        &mut self,
        turn: &mut Followed,
        stream: &mut EventStream,
        console: &mut Console,
    ) -> Result<Option<End>, Error> {
        let mut heard = Instant::now();
        loop {
            while let Some(envelope) = stream.next().ok().flatten() {
                if let Some(end) = self.event(envelope, turn, console)? {
                    return Ok(Some(end));
                }
            }
            let left = limits::STREAM_SILENCE_MAX.saturating_sub(heard.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            let patience = console.left();
            if patience == Some(Duration::ZERO) {
                return Ok(Some(End::Left));
            }
            let wait = [console.screen.tick(), patience].into_iter().flatten().fold(left, Ord::min);
            let asked = console.keyboard.as_ref().filter(|_| !turn.questions.is_empty());
            let keys = asked.map_or_else(|| stream.as_fd(), |keyboard| keyboard.as_fd());
            let files = [stream.as_fd(), console.signals(), keys];
            let [spoke, signalled, typed] =
                sys::wait_readable(files, Some(wait)).doing("wait for the daemon")?;
            let typed = typed && asked.is_some();
            if signalled && console.signal()?.is_some() {
                if std::mem::replace(&mut turn.cancelled, true) {
                    return Ok(Some(End::Left));
                }
                self.cancel(&turn.id);
                console.screen.flush()?;
            }
            if typed {
                self.read_answers(turn, console)?;
            }
            if spoke {
                if stream.read().is_err() {
                    return Ok(None);
                }
                heard = Instant::now();
            }
        }
    }

    /// If this comes to nothing the daemon is lost, which is noticed soon enough.
    fn cancel(&self, turn_id: &str) {
        if let Some(info) = &self.info {
            drop(client::cancel_turn(info, &self.session, turn_id));
        }
    }

    fn event(
        &mut self,
        text: &str,
        turn: &mut Followed,
        console: &mut Console,
    ) -> Result<Option<End>, Error> {
        // The last word of a stream is no event of the session.
        let Some(Envelope { seq, event }) = Envelope::read(text) else {
            return Ok(None);
        };
        if seq <= turn.seq {
            return Ok(None);
        }
        turn.seq = seq;
        turn.losses = 0;
        console.screen.event(text)?;
        let Some(event) = event else {
            return Ok(None);
        };
        let is_its_own = event.turn_id() == Some(turn.id.as_str());
        match event {
            // Whoever is here may answer for another turn, too.
            Event::PermissionRequest(request) => self.asked(request, is_its_own, turn, console),
            Event::PermissionResolved(resolved) => {
                question::settled(&mut turn.questions, &resolved, turn.cancelled, console);
            }
            _ if !is_its_own => {}
            Event::TurnToken(token) => console.screen.text(&token.text)?,
            Event::TurnThinking(_) => console.screen.thinking(),
            Event::ToolStart(start) => console.screen.call(Call {
                id: start.id,
                name: start.name,
                args: start.args,
                duration_ms: None,
                success: None,
            })?,
            Event::ToolEnd(end) => {
                console.screen.called(&end.id, Some(end.duration_ms), Some(end.success));
            }
            Event::TurnDone(done) => return Ok(Some(End::Done(done.stats))),
            Event::TurnError(error) => {
                let detail = ErrorDetail { code: error.code, message: error.message };
                return Ok(Some(End::Failed(detail)));
            }
            _ => {}
        }
        Ok(None)
    }

    /// A turn waits for a permission; what is always allowed here is so for turns of our own.
    fn asked(
        &mut self,
        request: PermissionRequest,
        own: bool,
        turn: &mut Followed,
        console: &mut Console,
    ) {
        let question = Question::new(request, own);
        if own && self.always.contains(&question.tool) {
            return self.decide(&question.request_id, true);
        }
        turn.questions.push_back(question);
        if turn.questions.len() == 1 {
            question::put(&mut turn.questions, console);
        }
    }

    /// Takes what was typed as the answer to the question on the screen.
    fn read_answers(&mut self, turn: &mut Followed, console: &mut Console) -> Result<(), Error> {
        let (Some(keyboard), Some(question)) = (&mut console.keyboard, turn.questions.front_mut())
        else {
            return Ok(());
        };
        keyboard.read()?;
        let reply = match keyboard.line() {
            Some(line) => question.reply(Some(&line.unwrap_or_default())),
            // Ctrl-D, or the rest of a line is still to come.
            None if keyboard.take_end() => question.reply(None),
            None => return Ok(()),
        };
        if matches!(reply, Reply::Show | Reply::Unclear) {
            let rest = if matches!(reply, Reply::Show) { question.show() } else { String::new() };
            console.screen.tell(&rest);
            question::put(&mut turn.questions, console);
            return Ok(());
        }
        if let Some(question) = turn.questions.pop_front() {
            self.decide(&question.request_id, !matches!(reply, Reply::No));
            if matches!(reply, Reply::Always) {
                self.always.push(question.tool);
            }
        }
        turn.questions.retain(|question| {
            let always = question.own && self.always.contains(&question.tool);
            if always {
                self.decide(&question.request_id, true);
            }
            !always
        });
        console.screen.await_more();
        question::put(&mut turn.questions, console);
        Ok(())
    }

    /// If this comes to nothing, somebody else has decided, or the daemon is lost.
    fn decide(&self, request_id: &str, allow: bool) {
        let decision = ResolvePermission {
            decision: Some(if allow { "allow" } else { "deny" }.to_owned()),
            decided_by: Some(format!("opta-{}", std::process::id())),
            ..ResolvePermission::default()
        };
        if let Some(info) = &self.info {
            drop(client::decide(info, &self.session, request_id, &decision));
        }
    }
}

/// The name of a session that is to be, and what it is to be made with.
fn founding(model: &ModelArgs) -> Result<(SessionId, Option<CreateSession>), Error> {
    let id = format!("sess_{}", random_name(12)?);
    let workspace = std::env::current_dir().doing("find the working directory")?;
    let workspace = workspace.into_os_string().into_string().map_err(|name| {
        // As good as it can be written it may be the name of another directory.
        io::Error::other(format!("its name is not UTF-8: {name:?}"))
    });
    let workspace = workspace.doing("work in the current directory")?;
    let founding = CreateSession {
        session_id: Some(id.clone()),
        model: model.name.clone(),
        metadata: Some(Raw::of(&Metadata { workspace: Some(workspace) })),
        ..CreateSession::default()
    };
    let refused = || client::bad_reply("name a session", &id);
    Ok((SessionId::parse(&id).ok_or_else(refused)?, Some(founding)))
}

/// A turn that cannot be followed must not go on behind the back of who has asked for it.
fn abandon(info: &DaemonInfo, session: &SessionId, turn_id: &str, failure: &client::Failure) {
    if matches!(failure, client::Failure::Final(_)) {
        drop(client::cancel_turn(info, session, turn_id));
    }
}

/// Says so if the answer is not all that the model had to say.
fn warn(stats: &TurnStats, console: &mut Console) {
    match stats.finish_reason.as_deref() {
        None => {}
        Some("length") => console.screen.say(&format!(
            "the answer is cut off: it has reached {} tokens, or the end of the model's context",
            limits::ANSWER_TOKENS_MAX
        )),
        Some(reason) => {
            console.screen.say(&format!("the model server has ended the answer: {reason}"));
        }
    }
}
