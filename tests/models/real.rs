//! A small real model. It is fluent and often wrong, so nothing depends on its words, and an answer
//! may continue until the model's context is full. Turns run one test at a time: two in parallel
//! are slower than two in sequence.

use std::fs;
use std::sync::{LazyLock, Mutex, MutexGuard};

use crate::server::{DEADLINE, Server};
use crate::support::{
    ANYTHING, Finished, Home, Run, Running, eventually_within, is_refused, signal,
};

/// The smaller the context, the sooner an answer ends that repeats itself.
const CONTEXT: [&str; 2] = ["--ctx", "1536"];
/// Messages that the model is known to answer with one line.
const GREETINGS: [&str; 3] = ["Say hello.", "Say hello!", "say hello."];
/// A message with a long answer.
const STORY: &str = "Tell a long story about a ship, an island and all the people who live there.";
/// Denies all tools, so that none is in a request.
const NO_TOOLS: &str = r#"{"permissions":{"read_file":"deny","list_dir":"deny","find_files":"deny",
    "search_files":"deny","write_file":"deny","edit_file":"deny","run_command":"deny"}}"#;
/// Ends answers before the model, which is small, can repeat itself for longer than opta allows.
const SHORT_ANSWERS: &str = r#"{"model":{"maxTokens":200},"permissions":{"read_file":"deny",
    "list_dir":"deny","find_files":"deny","search_files":"deny","write_file":"deny",
    "edit_file":"deny","run_command":"deny"}}"#;
const OBJECT: &str = "{\"sessionId\":\"{id}\",\"turnId\":\"{turn}\",\"result\":\"{*}}\n";

/// Locks the server that most tests share.
fn model() -> MutexGuard<'static, Server> {
    static MODEL: LazyLock<Mutex<Server>> = LazyLock::new(|| Mutex::new(Server::real(&CONTEXT)));
    // A test that failed did not harm the server.
    MODEL.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Makes a home without tools, unless a test says otherwise.
fn home() -> Home {
    let home = Home::new();
    home.write(&home.config(), NO_TOOLS);
    home
}

fn asking<'h>(home: &'h Home, model: &Server, words: &str) -> Run<'h> {
    home.opta(words).env("OPTA_MODEL_URL", model.url())
}

/// Runs a turn that must succeed, and allows no tools. Gives its object.
#[track_caller]
fn done(home: &Home, model: &Server, words: &str, task: &str) -> Finished {
    home.write(&home.config(), SHORT_ANSWERS);
    let run = asking(home, model, &format!("do --json {words}")).arg(task).stdout(OBJECT);
    // There is a note if it filled the context.
    run.stderr(ANYTHING).spawn().finish_within(DEADLINE)
}

/// Returns the last number with this name in a report.
#[track_caller]
fn number(text: &str, name: &str) -> u64 {
    let named = text.rsplit_once(&format!("\"{name}\":"));
    let (_, after) = named.unwrap_or_else(|| panic!("no {name}: {text}"));
    after.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// Returns the result in a report, escaped as in JSON.
fn result(seen: &Finished) -> String {
    let (_, after) = seen.stdout.split_once("\"result\":\"").unwrap();
    after.split("\",\"toolCalls\":").next().unwrap().to_owned()
}

fn export(home: &Home, id: &str) -> String {
    let export = home.opta(&format!("sessions export {id} --format json"));
    export.stdout(ANYTHING).run().stdout
}

/// Waits for the beginning of an answer.
#[track_caller]
fn wait_for_answer(running: &Running) {
    eventually_within(DEADLINE, "the answer begins", || !running.output().is_empty());
}

fn is_busy(model: &Server) -> bool {
    model.get("/slots").contains("\"is_processing\":true")
}

/// Runs a task that begins with its only call. Gives its report.
///
/// The model may write an argument until its context is full, or repeat itself. Then it gets
/// another try.
#[track_caller]
fn forced(home: &Home, model: &Server, words: &str, task: &str) -> Finished {
    for _ in 0..5 {
        let run = asking(home, model, words).arg(task).stdout(ANYTHING).stderr(ANYTHING);
        let run = run.env("OPTA_TOOL_CHOICE", "required-first").status_in(&[0, 1]);
        let seen = run.spawn().finish_within(DEADLINE);
        if seen.status == 0 {
            return seen;
        }
        let is_weakness = |code| seen.stdout.contains(&format!("\"code\":\"{code}\""));
        assert!(is_weakness("model-cut-off") || is_weakness("tool-loop"), "{seen:?}");
    }
    panic!("the model makes no complete call");
}

#[test]
fn a_task_calls_a_tool_and_ends_with_an_answer() {
    let (model, home) = (model(), Home::new());
    home.write(&home.beside("notes.txt"), "The meeting is on Tuesday at ten.\n");
    // After one call the model can only answer.
    home.write(&home.config(), r#"{"safety":{"maxToolCalls":1}}"#);
    let task = "Read the file notes.txt and tell me when the meeting is.";
    let seen = forced(&home, &model, "do --events", task);
    let named = |line: &str| line.split('"').nth(7).unwrap().to_owned();
    let mut names: Vec<String> = seen.stdout.lines().map(named).collect();
    names.retain(|name| name.starts_with("tool.") || name.starts_with("turn."));
    names.dedup();
    let expected = "turn.queued turn.start tool.start tool.end turn.token turn.done";
    assert_eq!(names.join(" "), expected, "{}", seen.stdout);
    let log = fs::read_to_string(home.file("daemon.log")).unwrap();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("\"msg\":\"tool.")).collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(lines[0].contains("\"msg\":\"tool.start\",\"tool\":\""), "{log}");
    assert!(lines[1].contains("\"msg\":\"tool.end\",\"tool\":\""), "{log}");
}

#[test]
fn a_required_call_has_valid_arguments_and_runs() {
    let (model, home) = (model(), Home::new());
    home.write(&home.beside("notes.txt"), "The meeting is on Tuesday at ten.\n");
    // The model must call the only tool that is left.
    let settings = NO_TOOLS.replace(r#""read_file":"deny","#, "");
    let settings =
        settings.replace(r#"{"permissions""#, r#"{"safety":{"maxToolCalls":1},"permissions""#);
    home.write(&home.config(), settings);
    let seen = forced(&home, &model, "do --json", "Read the file notes.txt");
    assert_eq!(number(&seen.stdout, "toolCalls"), 1, "{}", seen.stdout);
    assert_eq!(seen.stdout.matches("\"name\":\"read_file\"").count(), 1, "{}", seen.stdout);
    assert!(!result(&seen).is_empty(), "{}", seen.stdout);
    // An invalid call would have no path in the log.
    let log = fs::read_to_string(home.file("daemon.log")).unwrap();
    let begun = "\"msg\":\"tool.start\",\"tool\":\"file_read\",\"path\":\"";
    assert_eq!(log.matches(begun).count(), 1, "{log}");
    assert_eq!(log.matches("\"msg\":\"tool.end\",\"tool\":\"file_read\"").count(), 1, "{log}");
}

/// Runs a chat of two turns. Gives its session, if the context has room for another turn.
fn brief_chat(home: &Home, model: &Server) -> Option<String> {
    let script = home.beside("script");
    home.write(&home.config(), SHORT_ANSWERS);
    home.write(&script, format!("{}\n{}\n", GREETINGS[0], GREETINGS[1]));
    let resume = "{*}opta: to resume: opta chat --resume {id}\n";
    let chat = asking(home, model, "chat").input(&script).stdout(ANYTHING).stderr(resume);
    let seen = chat.status_in(&[0, 1]).spawn().finish_within(DEADLINE);
    let ends = ended_turns(home, seen.get("id"));
    let last = ends.last()?;
    let used = number(last, "promptTokens") + number(last, "completionTokens");
    (ends.len() == 2 && used < 700).then(|| seen.get("id").to_owned())
}

/// Returns the `turn.done` events of a session.
fn ended_turns(home: &Home, id: &str) -> Vec<String> {
    let path = home.path().join(format!(".config/opta/sessions/{id}/journal.jsonl"));
    let journal = fs::read_to_string(path).unwrap();
    let ends = journal.lines().filter(|line| line.contains("\"event\":\"turn.done\""));
    ends.map(str::to_owned).collect()
}

#[test]
fn a_conversation_continues_across_commands_and_restarts() {
    let (model, home) = (model(), home());
    // An answer that fills the model's context leaves no room for another turn.
    let id =
        (0..3).find_map(|_| brief_chat(&home, &model)).expect("the model always fills its context");
    let id = id.as_str();
    home.opta("daemon restart").stdout(ANYTHING).run();
    let last = done(&home, &model, &format!("--resume {id}"), GREETINGS[2]);
    assert_eq!(last.get("id"), id);
    home.opta("daemon stop").stdout(ANYTHING).run();

    let export = export(&home, id);
    let roles: Vec<&str> = export.split("{\"role\":\"").skip(1).collect();
    assert_eq!(roles.len(), 6, "{export}");
    for (pair, greeting) in roles.chunks(2).zip(GREETINGS) {
        assert!(pair[0].starts_with(&format!("user\",\"content\":\"{greeting}\"")), "{export}");
        assert!(pair[1].starts_with("assistant\",\"content\":\""), "{export}");
        assert!(!pair[1].starts_with("assistant\",\"content\":\"\""), "{export}");
    }
    assert!(roles[5].contains(&result(&last)), "{export}");
    // Each request has all that was stderr before.
    let ends = ended_turns(&home, id);
    let read: Vec<u64> = ends.iter().map(|end| number(end, "promptTokens")).collect();
    assert!(read.len() == 3 && read.is_sorted_by(|one, next| one < next), "{read:?}");
}

#[test]
fn a_cancelled_turn_frees_the_servers_slot() {
    // A server without other requests.
    let (_quiet, home) = (model(), home());
    let model = Server::real(&CONTEXT);
    let script = home.beside("script");
    home.write(&script, format!("{STORY}\n"));
    let stderr = "{*}opta: the turn was cancelled\n{*}";
    for words in ["do", "chat"] {
        let run = asking(&home, &model, words).stdout(ANYTHING).stderr(stderr).status(130);
        let run = if words == "do" { run.arg(STORY) } else { run.input(&script) };
        let running = run.spawn();
        wait_for_answer(&running);
        assert!(is_busy(&model), "the answer was too short for this test");
        signal(running.pid(), "INT");
        running.finish();
        eventually_within(DEADLINE, "the slot is free", || !is_busy(&model));
    }
    // The answer did not continue to its end: there is room in every slot.
    let slots = model.get("/slots");
    let used = slots.split("\"n_prompt_tokens\":").skip(1);
    let used = used.map(|text| text.split(',').next().unwrap().parse().unwrap());
    let used: Vec<u64> = used.collect();
    assert!(!used.is_empty() && used.iter().all(|tokens| *tokens < 768), "{slots}");
    home.opta("sessions list --json").stdout(ANYTHING).run();
    done(&home, &model, "", GREETINGS[0]);
}

#[test]
fn a_prompt_that_is_too_long_fails_only_its_own_turn() {
    let (model, home) = (model(), home());
    let daemon = home.start();
    let long = home.beside("long");
    home.write(&long, "one two three four five ".repeat(2_000));
    let stderr = "opta: cannot finish the turn: the model server at {url} (from OPTA_MODEL_URL) \
                answered 400: {why} (context-too-long)\n";
    let run = asking(&home, &model, "do -").input(&long).stderr(stderr).status(1);
    let failed = run.spawn().finish_within(DEADLINE);
    assert!(failed.get("why").contains("context"), "{failed:?}");
    assert_eq!(home.owner(), Some(daemon.pid));
    done(&home, &model, "", GREETINGS[0]);
}

#[test]
fn the_text_of_a_server_that_is_killed_is_kept() {
    let (running_model, home) = (model(), home());
    for name in ["KILL", "TERM"] {
        home.write(&home.config(), NO_TOOLS);
        let model = Server::real(&CONTEXT);
        let stderr = "opta: cannot finish the turn: {why} (model-disconnected)\n";
        let run = asking(&home, &model, "do").arg(STORY).stdout(ANYTHING).stderr(stderr).status(1);
        let running = run.spawn();
        wait_for_answer(&running);
        signal(model.pid(), name);
        let seen = running.finish_within(DEADLINE);
        // The newest session.
        let list = home.opta("sessions list --json --limit 1");
        let list = list.stdout("{\"sessionId\":\"{id}\",{*}").stderr(ANYTHING).run();
        let id = list.get("id");
        let shown = export(&home, id);
        let kept = shown.split("\"role\":\"assistant\",\"content\":\"").nth(1).unwrap();
        let first = seen.stdout.split(['\\', '"', '\n']).next().unwrap();
        assert!(!first.is_empty() && kept.starts_with(first), "{shown}");
        // Now nothing listens, which is another failure.
        eventually_within(DEADLINE, "the server has ended", || is_refused(model.port()));
        let gone = "opta: cannot finish the turn: {why} (model-unreachable)\n";
        let run = asking(&home, &model, "do x").stderr(gone).status(1);
        run.spawn().finish_within(DEADLINE);
        done(&home, &running_model, "", GREETINGS[0]);
    }
}

#[test]
fn concurrent_tasks_do_not_mix_and_one_without_a_slot_waits() {
    let (model, home) = (model(), home());
    home.write(&home.config(), SHORT_ANSWERS);
    home.start();
    let begin = |greeting: &&str| {
        let run = asking(&home, &model, "do --json").arg(greeting).stdout(OBJECT);
        run.stderr(ANYTHING).spawn()
    };
    let running: Vec<Running> = GREETINGS.iter().map(begin).collect();
    let seen: Vec<Finished> = running.into_iter().map(|one| one.finish_within(DEADLINE)).collect();
    for (one, greeting) in seen.iter().zip(GREETINGS) {
        let export = export(&home, one.get("id"));
        let whole = format!(
            "\"messages\":[{{\"role\":\"user\",\"content\":\"{greeting}\"}},\
             {{\"role\":\"assistant\",\"content\":\"{}\"}}]}}",
            result(one)
        );
        assert!(export.contains(&whole), "{export}");
    }
    assert!(seen[0].get("id") != seen[1].get("id") && seen[1].get("id") != seen[2].get("id"));
}

/// Returns whether the command line of any process has this text.
fn is_on_a_command_line(secret: &str) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten();
    let mut commands = processes.map(|entry| {
        let command = fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).into_owned()
    });
    commands.any(|command| command.contains(secret))
}

#[test]
fn a_wrong_key_is_reported_and_never_shown() {
    let (_quiet, home) = (model(), home());
    let options = [&CONTEXT[..], &["--api-key", "the-right-key"]].concat();
    let model = Server::real(&options);
    let asking = |key: &str| {
        let run = asking(&home, &model, "do").arg(GREETINGS[0]);
        if key.is_empty() { run } else { run.env("OPTA_API_KEY", key) }
    };
    let refused = "opta: cannot finish the turn: the model server at {url} (from OPTA_MODEL_URL) \
                   rejects the key that is set: {why} (model-unauthorized)\n";
    let running = asking("a-wrong-key").stderr(refused).status(1).spawn();
    assert!(!is_on_a_command_line("a-wrong-key"));
    running.finish();
    let none = "opta: cannot finish the turn: the model server at {url} (from OPTA_MODEL_URL) \
                requires a key, and none is set (OPTA_API_KEY): {why} (model-unauthorized)\n";
    asking("").stderr(none).status(1).run();
    home.write(&home.config(), SHORT_ANSWERS);
    asking("the-right-key").stdout(ANYTHING).stderr(ANYTHING).spawn().finish_within(DEADLINE);
    assert!(!is_on_a_command_line("a-wrong-key"));
    // No file has them, neither journal nor log.
    let files = home.snapshot().concat();
    assert!(files.contains("journal.jsonl") && files.contains("daemon.log"), "{files}");
    assert!(!files.contains("the-right-key") && !files.contains("a-wrong-key"), "{files}");
}
