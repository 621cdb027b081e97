//! A session and its turns, each from its submission to its end, even if the daemon restarts in the
//! meantime. Events go to the screen; cancellation and the user's decisions go to the daemon.
//!
//! The ids of sessions and turns are chosen here, so that a request that is sent again because its
//! response was lost is about the same session and turn.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::agent::endpoint::{self, ModelChoice};
use crate::cli::ModelArgs;
use crate::commands::console::{CANCELLED, Console, TurnEnd};
use crate::commands::daemon_notes;
use crate::commands::question::Questions;
use crate::commands::sessions::omissions as omitted;
use crate::config::{self, Config, ModelSettings};
use crate::error::{Doing, Error, Kind};
use crate::http::EventStream;
use crate::json::Raw;
use crate::lifecycle::guardian::{Ensured, reach};
use crate::lifecycle::status::{self, Status};
use crate::paths::Paths;
use crate::protocol::event::{Envelope, Event, TurnStats};
use crate::protocol::{
    CreateSession, Endpoint, ErrorDetail, Grant, Metadata, ResolvePermission, SessionId,
    SubmitTurn, TurnOptions, Variable,
};
use crate::session::replay;
use crate::session::store::Store;
use crate::session::turn::Fault;
use crate::state::DaemonInfo;
use crate::token::random_name;
use crate::{client, limits, sys};

/// A session to which turns are submitted.
pub struct ClientSession<'a> {
    paths: &'a Paths,
    config: Config,
    settings: ModelSettings,
    model: ModelArgs,
    pub id: SessionId,
    /// The request that creates the session, until it was created.
    new_session: Option<CreateSession>,
    options: TurnOptions,
    /// The id of the daemon that was called last.
    daemon_id: Option<String>,
    questions: Questions,
    /// The directory that tools work in.
    workspace: Option<String>,
    /// The last turn, if one was submitted.
    pub turn_id: Option<String>,
    /// The notes about what is missing of the session, as they were last printed.
    omissions: Vec<String>,
}

impl<'a> ClientSession<'a> {
    /// Uses the session `id`, or a new one that is created with its first turn.
    pub fn new(
        paths: &'a Paths,
        model: &ModelArgs,
        grant: Grant,
        id: Option<SessionId>,
    ) -> Result<ClientSession<'a>, Error> {
        let config = Config::load(&paths.config())?;
        let settings = ModelSettings::load(&paths.config())?;
        let (id, new_session) = match id {
            Some(id) => (id, None),
            None => new_session(model)?,
        };
        let workspace = match &new_session {
            Some(_) => {
                std::env::current_dir().ok().and_then(|path| path.to_str().map(str::to_owned))
            }
            None => {
                let summary = Store::new(paths.sessions()).summary(&id).ok();
                summary.and_then(|found| found.working_directory().map(str::to_owned))
            }
        };
        let environment = config::turn_environment(&paths.config())?.into_iter();
        let environment = environment.map(|(name, value)| Variable { name, value }).collect();
        let options = TurnOptions {
            environment: Some(environment),
            grant: (grant != Grant::Settings).then(|| grant.name().to_owned()),
            umask: Some(format!("{:04o}", sys::umask())),
            ..TurnOptions::default()
        };
        Ok(ClientSession {
            paths,
            config,
            settings,
            model: model.clone(),
            id,
            new_session,
            options,
            daemon_id: None,
            questions: Questions::default(),
            workspace,
            turn_id: None,
            omissions: Vec::new(),
        })
    }

    /// Makes a title of `text` for the session, unless it was created.
    pub fn set_title(&mut self, text: &str) {
        if let Some(new_session) = &mut self.new_session {
            new_session.title = Some(replay::title_of(text));
        }
    }

    /// Returns whether the session was created.
    pub fn is_created(&self) -> bool {
        self.new_session.is_none()
    }

    /// Returns the model and its server, which are the same for all turns.
    pub fn endpoint(&mut self) -> Result<&Endpoint, Fault> {
        if self.options.endpoint.is_none() {
            let (url, model) = (self.model.url.as_deref(), self.model.name.as_deref());
            let max_tokens = self.model.max_tokens;
            let choice = ModelChoice { url, model, max_tokens };
            let endpoint = endpoint::resolve(&choice, &self.settings);
            self.options.endpoint = Some(endpoint?);
        }
        Ok(self.options.endpoint.get_or_insert_with(|| unreachable!()))
    }

    /// Uses another model from the next turn on.
    pub fn set_model(&mut self, name: &str) {
        self.model.name = Some(name.to_owned());
        self.options.endpoint = None;
    }

    /// Returns the choice of the user.
    pub fn model(&self) -> &ModelArgs {
        &self.model
    }

    /// Runs one turn to its end.
    ///
    /// # Errors
    /// The reason why it cannot be submitted or followed.
    pub fn run_turn(&mut self, content: &str, console: &mut Console) -> Result<TurnEnd, Error> {
        console.begin_turn();
        self.questions.clear();
        self.options.attended = Some(console.interactive);
        if self.options.endpoint.is_none() {
            // The daemon first: without one, no model is needed.
            console.unblock_signals()?;
            self.reach(console, |_| Ok(()))?;
            if let Err(fault) = self.find_model(console) {
                return console.fail_turn(fault.code, &fault.message);
            }
        }
        if console.take_signal()?.is_some() {
            return console.fail_turn(CANCELLED, "the turn was cancelled before it started");
        }
        let (mut turn, stream) = self.submit(content, console)?;
        let end = self.follow(&mut turn, stream, console);
        let written = console.screen.end_turn().and_then(|()| console.flush());
        if end.as_ref().is_err_and(|error| error.kind() == Kind::Output) {
            // No one reads its output.
            turn.cancel();
        }
        written?;
        if let Ok(TurnEnd::Done(stats)) = &end {
            console.screen.statistics(stats);
            note_incomplete(stats, console);
        }
        end
    }

    /// Finds the model server. Prints which one it is, if no setting names it.
    fn find_model(&mut self, console: &mut Console) -> Result<(), Fault> {
        let endpoint = self.endpoint()?;
        if endpoint.was_found() {
            let model = endpoint.model.as_deref().unwrap_or("a model");
            let (url, source) = (&endpoint.url, &endpoint.source);
            console.screen.inform(&format!("using {model} at {url}, {source}"));
        }
        Ok(())
    }

    fn submit(
        &mut self,
        content: &str,
        console: &mut Console,
    ) -> Result<(RunningTurn, EventStream), Error> {
        let id = format!("turn_{}", random_name(12)?);
        let name = format!("opta-{}", std::process::id());
        let turn = SubmitTurn {
            turn_id: Some(id.clone()),
            client_id: Some(name.clone()),
            writer_id: Some(name),
            content: content.to_owned(),
            options: Some(self.options.clone()),
            ..SubmitTurn::default()
        };
        let (session, new_session) = (self.id.clone(), self.new_session.take());
        let attended = console.interactive;
        let workspace = self.workspace.clone();
        console.unblock_signals()?;
        let mut omissions = Vec::new();
        let submitted = self.reach(console, |info| {
            if let Some(new_session) = &new_session {
                client::create_session(info, new_session)?;
            }
            // Its own first event is after this one.
            let accepted = client::submit_turn(info, &session, &turn)?;
            let seq = accepted.seq.saturating_sub(1);
            let damaged = accepted.damaged_records.unwrap_or(0);
            omissions = omitted(&session, damaged, accepted.missing_bytes.unwrap_or(0));
            let (daemon, session, id) = (info.clone(), session.clone(), id.clone());
            let running = RunningTurn {
                daemon,
                session,
                id,
                seq,
                losses: 0,
                cancelled: false,
                workspace: workspace.clone(),
            };
            let stream = open_stream(&running, attended)?;
            Ok((running, stream))
        });
        match submitted {
            Ok(_) => self.turn_id = Some(id),
            // Whether it was created is unknown. To create it again is harmless.
            Err(_) => self.new_session = new_session,
        }
        if self.omissions != omissions {
            omissions.iter().for_each(|note| console.screen.note(note));
            self.omissions = omissions;
        }
        submitted
    }

    /// Calls the daemon. Prints a note if it is not the same as before. While it is being started,
    /// a signal ends this process, unless signals are already blocked; afterward they are blocked.
    fn reach<T>(
        &mut self,
        console: &mut Console,
        call: impl FnMut(&DaemonInfo) -> Result<T, client::Failure>,
    ) -> Result<T, Error> {
        let last_id = &mut self.daemon_id;
        let note = |daemon: &Ensured| {
            drop(console.block_signals());
            let id = &daemon.info.daemon_id;
            let before = last_id.replace(id.clone());
            if before.as_ref() == Some(id) {
                return;
            }
            let mut notes = daemon_notes(daemon);
            let crashed = daemon.start.as_ref().is_some_and(|start| start.crashed.is_some());
            if before.is_some() && !crashed {
                notes.push(format!("the daemon was restarted (pid {})", daemon.info.pid));
            }
            console.screen.start_line();
            notes.iter().for_each(|note| console.screen.inform(note));
        };
        let answer = reach(self.paths, &self.config, note, call);
        console.block_signals()?;
        answer
    }

    /// Watches the turn until it ends, and connects again when the connection is lost.
    fn follow(
        &mut self,
        turn: &mut RunningTurn,
        mut stream: EventStream,
        console: &mut Console,
    ) -> Result<TurnEnd, Error> {
        loop {
            if let Some(end) = turn.watch(&mut stream, &mut self.questions, console)? {
                return Ok(end);
            }
            if console.take_signal()?.is_some() || console.exit_status().is_some() {
                turn.cancel();
                return console.abandon_turn();
            }
            turn.losses += 1;
            if turn.losses > limits::FOLLOW_TRIES_MAX {
                let reason = "the connection was lost repeatedly";
                return Err(client::bad_reply("follow the turn", reason));
            }
            // If the turn ended with its daemon, there is nothing to cancel.
            if let Ok(Status::Stopped | Status::Crashed { .. }) = status::look(self.paths) {
                console.unblock_signals()?;
            }
            let attended = console.interactive;
            let connected = self.reach(console, |info| {
                turn.daemon = info.clone();
                open_stream(turn, attended)
            });
            if connected.is_err() && console.take_signal()?.is_some() {
                turn.cancel();
                return console.abandon_turn();
            }
            stream = connected?;
        }
    }
}

/// A turn that was submitted.
struct RunningTurn {
    daemon: DaemonInfo,
    session: SessionId,
    id: String,
    /// The sequence number of the last event that was seen.
    seq: u64,
    /// The number of times that the connection was lost since then.
    losses: u32,
    cancelled: bool,
    /// The directory of the session.
    workspace: Option<String>,
}

impl RunningTurn {
    /// Prints the events of the turn until it ends; `None` if the connection was lost before.
    fn watch(
        &mut self,
        stream: &mut EventStream,
        questions: &mut Questions,
        console: &mut Console,
    ) -> Result<Option<TurnEnd>, Error> {
        let mut last_read = Instant::now();
        loop {
            while let Some(envelope) = stream.next().ok().flatten() {
                if let Some(end) = self.handle_event(envelope, questions, console)? {
                    return Ok(Some(end));
                }
            }
            let silence_left = limits::STREAM_SILENCE_MAX.saturating_sub(last_read.elapsed());
            if silence_left.is_zero() {
                return Ok(None);
            }
            let time_left = console.time_left();
            if time_left == Some(Duration::ZERO) {
                return console.abandon_turn().map(Some);
            }
            let blocked = console.screen.flush_unblocked()?;
            let waits = [blocked, console.screen.update_progress(), console.make_room(), time_left];
            let wait = waits.into_iter().flatten().fold(silence_left, Ord::min);
            let asking = console.interactive && !questions.is_empty();
            let input = if asking { console.stdin.as_fd() } else { stream.as_fd() };
            let files = [stream.as_fd(), console.signals(), input];
            let [readable, signaled, typed] =
                sys::wait_readable(files, Some(wait)).doing("wait for the daemon")?;
            if signaled && console.take_signal()?.is_some() {
                if std::mem::replace(&mut self.cancelled, true) {
                    return console.abandon_turn().map(Some);
                }
                self.cancel();
                console.screen.flush()?;
            }
            if std::mem::take(&mut console.was_stopped) && asking {
                questions.repeat(console);
            }
            if asking && typed {
                questions.read_answer(console, |id, allow| self.decide(id, allow))?;
            }
            if readable {
                if stream.read().is_err() {
                    return Ok(None);
                }
                last_read = Instant::now();
            }
        }
    }

    fn handle_event(
        &mut self,
        text: &str,
        questions: &mut Questions,
        console: &mut Console,
    ) -> Result<Option<TurnEnd>, Error> {
        // The last message of a stream is not an event of the session.
        let Some(Envelope { seq, event }) = Envelope::read(text) else {
            return Ok(None);
        };
        if seq <= self.seq {
            return Ok(None);
        }
        self.seq = seq;
        self.losses = 0;
        console.screen.event(text)?;
        let Some(event) = event else {
            return Ok(None);
        };
        let own = event.turn_id() == Some(self.id.as_str());
        match event {
            // The user may also decide for another client's turn.
            Event::PermissionRequest(request) if own && questions.is_allowed(&request) => {
                self.decide(&request.request_id, true);
            }
            Event::PermissionRequest(request) => {
                questions.add(request, own, self.workspace.as_deref(), console);
            }
            Event::PermissionResolved(resolved) => {
                questions.resolve(&resolved, self.cancelled, console);
            }
            _ if !own => {}
            Event::TurnToken(token) => console.screen.answer_text(&token.text)?,
            Event::TurnThinking(_) => console.screen.thinking(),
            Event::TurnNotice(notice) => console.screen.notice(&notice),
            Event::ToolStart(start) => console.screen.tool_started(start)?,
            Event::ToolEnd(end) => console.screen.tool_ended(&end),
            Event::TurnDone(done) => return Ok(Some(TurnEnd::Done(done.stats))),
            Event::TurnError(error) => {
                let detail = ErrorDetail { code: error.code, message: error.message };
                return Ok(Some(TurnEnd::Failed(detail)));
            }
            _ => {}
        }
        Ok(None)
    }

    /// Cancels the turn. An error means that the connection is lost, which the next read reports.
    fn cancel(&self) {
        drop(client::cancel_turn(&self.daemon, &self.session, &self.id));
    }

    /// Sends a decision. An error means that another client decided or the connection is lost.
    fn decide(&self, request_id: &str, allow: bool) {
        let decision = ResolvePermission {
            decision: Some(if allow { "allow" } else { "deny" }.to_owned()),
            decided_by: Some(format!("opta-{}", std::process::id())),
            ..ResolvePermission::default()
        };
        drop(client::resolve_permission(&self.daemon, &self.session, request_id, &decision));
    }
}

/// Opens the event stream of a turn. A turn that cannot be followed is cancelled: it must not
/// continue without the user's knowledge.
fn open_stream(turn: &RunningTurn, attended: bool) -> Result<EventStream, client::Failure> {
    client::follow(&turn.daemon, &turn.session, turn.seq, attended).inspect_err(|failure| {
        if matches!(failure, client::Failure::Final(_)) {
            turn.cancel();
        }
    })
}

/// Chooses the id of a new session, and makes the request that creates it.
fn new_session(model: &ModelArgs) -> Result<(SessionId, Option<CreateSession>), Error> {
    let id = format!("sess_{}", random_name(12)?);
    let workspace = std::env::current_dir().doing("find the working directory")?;
    let workspace = workspace.into_os_string().into_string().map_err(|name| {
        // With its invalid bytes replaced, it could be the name of another directory.
        io::Error::other(format!("its name is not UTF-8: {name:?}"))
    });
    let workspace = workspace.doing("work in the current directory")?;
    let request = CreateSession {
        session_id: Some(id.clone()),
        model: model.name.clone(),
        metadata: Some(Raw::of(&Metadata { workspace: Some(workspace) })),
        ..CreateSession::default()
    };
    let refused = || client::bad_reply("name a session", &id);
    Ok((SessionId::parse(&id).ok_or_else(refused)?, Some(request)))
}

/// Prints a note if the answer is not all that the model would have said.
fn note_incomplete(stats: &TurnStats, console: &mut Console) {
    match stats.finish_reason.as_deref() {
        None => {}
        Some("length") => console.screen.note(
            "the answer was cut off at its limit of tokens or at the end of the model's context",
        ),
        Some(reason) => {
            console.screen.note(&format!("the model server ended the answer: {reason}"));
        }
    }
}
