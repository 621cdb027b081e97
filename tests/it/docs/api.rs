//! The manual describes the API completely: what the sources define is in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{STATED, between, document, fields, numbers, set};
use crate::model::Model;
use crate::page::Page;
use crate::support::{ANYTHING, Home, Run, need};

const PAGE: &str = "opta-daemon.1";

/// Returns the words of a text that may be names in JSON.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect()
}

#[test]
fn the_page_lists_every_member_of_requests_and_responses() {
    let text = Page::read(PAGE).section("HTTP API").text();
    let described = words(&text);
    for (source, names) in [
        (
            "src/protocol/mod.rs",
            [
                "Health",
                "Liveness",
                "RuntimeCounts",
                "Metrics",
                "ToolWorkers",
                "ToolSlots",
                "Latency",
                "Shutdown",
                "CreateSession",
                "Metadata",
                "SessionPage",
                "SubmitTurn",
                "TurnAccepted",
                "CancelTurns",
                "TurnsCancelled",
                "ResolvePermission",
                "PermissionReply",
                "ErrorDetail",
            ]
            .as_slice(),
        ),
        ("src/protocol/overrides.rs", &["Overrides"]),
        (
            "src/protocol/socket.rs",
            &[
                "SocketMessage",
                "SocketPong",
                "SubmitAck",
                "PermissionAck",
                "PermissionResult",
                "CancelAck",
                "CancelledTurns",
                "SocketError",
                "SessionUpdated",
                "StreamEnd",
            ],
        ),
    ] {
        for name in names {
            for field in fields(source, &format!("pub struct {name} {{")) {
                assert!(described.contains(field.as_str()), "{name}: {field}");
            }
        }
    }
}

#[test]
fn the_page_lists_every_member_of_every_event() {
    const SOURCE: &str = "src/protocol/event.rs";
    let source = document(SOURCE);
    let table = source.split("\nevents! {").nth(1).unwrap().split("\n}").next().unwrap();
    let section = Page::read(PAGE).section("Events");
    let text = section.text();
    let common = text.split("session.snapshot").next().unwrap();
    let items = section.items();
    for row in table.lines().filter(|row| !row.is_empty()) {
        let name = row.split('"').nth(1).unwrap();
        let payload = row.split(['(', ')']).nth(1).unwrap();
        let payload = payload.trim_start_matches("Box<").trim_end_matches('>');
        let mut members = fields(SOURCE, &format!("pub struct {payload} {{"));
        if members.iter().any(|member| member == "stats") {
            members.extend(fields(SOURCE, "pub struct TurnStats {"));
        }
        let body = &items.iter().find(|item| item.head == name).unwrap().body;
        for member in members {
            let is_named = words(body).contains(member.as_str());
            assert!(is_named || words(common).contains(member.as_str()), "{name}: {member}");
        }
    }
}

#[test]
fn the_page_lists_the_status_codes_of_the_websocket() {
    let mut codes = set(["1000"]);
    for path in ["src/server/websocket/codec.rs", "src/server/websocket/mod.rs"] {
        let source = document(path);
        let constants = source.split("const CLOSE_").skip(1);
        codes
            .extend(constants.map(|rest| rest.split(['=', ';']).nth(1).unwrap().trim().to_owned()));
    }
    let text = Page::read(PAGE).section("HTTP API").text();
    let list = text.split("and the status code ").nth(1).unwrap().split("Before 1000").next();
    let listed = numbers(list.unwrap()).into_iter().filter(|number| number.len() == 4);
    assert_eq!(set(listed), codes);
}

#[test]
fn the_page_lists_the_codes_of_operations() {
    let mut codes = BTreeSet::new();
    for path in sources("src/commands/operations") {
        let source = fs::read_to_string(path).unwrap();
        for rest in source.split('(').skip(1) {
            let mut parts = rest.split(',').map(str::trim);
            let (status, code) = (parts.next().unwrap(), parts.next().unwrap_or(""));
            let is_status = status.len() == 3 && status.bytes().all(|byte| byte.is_ascii_digit());
            let code = code.strip_prefix('"').and_then(|code| code.split('"').next());
            codes.extend(code.filter(|_| is_status).map(|code| format!("{code} ({status}")));
        }
    }
    let text = Page::read(PAGE).section("Operations").text();
    let list = text.split(" The codes are ").nth(1).unwrap().split(')');
    let listed = list.filter_map(|one| {
        let (code, status) = one.split_once(" (")?;
        let code = code.trim_start_matches([',', ' ']).trim_start_matches("and ");
        Some(format!("{code} ({}", status.split(':').next().unwrap()))
    });
    assert_eq!(set(listed), codes);
}

/// Limits of the server that clients do not meet: how it works inside.
const INTERNAL: [&str; 14] = [
    "ACCEPT_BATCH",
    "ACCEPT_PAUSE",
    "BACKLOG",
    "CONNECTION_STACK_BYTES",
    "DRAIN_BYTES_MAX",
    "DRAIN_MAX",
    "EVENTS_BYTES_MAX",
    "LOG_REPEAT_EVERY",
    "MEMORY_RESERVE_BYTES",
    "SPARE_THREADS_MAX",
    "WEBSOCKET_FRAME_BYTES_MAX",
    "WEBSOCKET_OUTPUT_BYTES_MAX",
    "WEBSOCKET_OUTPUT_KEPT_BYTES",
    "WEBSOCKET_SEND_BUFFER_BYTES",
];

#[test]
fn the_page_states_every_limit_of_the_server() {
    let stated = STATED.iter().find(|(page, _)| *page == PAGE).unwrap().1;
    let stated = set(stated.iter().map(|(name, _)| name));
    let limits = document("src/limits.rs");
    let limits = between(&limits, "pub const ", ':');
    for path in sources("src/server") {
        let source = fs::read_to_string(&path).unwrap();
        let program = source.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
        for limit in words(program).into_iter().filter(|word| limits.contains(*word)) {
            let is_there = stated.contains(limit) || INTERNAL.contains(&limit);
            assert!(is_there, "{limit} in {}", path.display());
        }
    }
}

/// Returns the sources below a path, and the one of its module, without tests.
fn sources(path: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(path)];
    let module = folders[0].with_extension("rs");
    found.extend(Some(module).filter(|module| module.exists()));
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.file_name().unwrap().to_str().unwrap() {
                "tests" => {}
                _ if path.is_dir() => folders.push(path),
                _ => found.push(path),
            }
        }
    }
    found
}

/// Runs an example client, which is given a task and asks for permission to write a file.
fn run_client(program: &str, file: &str, answer: &str, is_allowed: bool) {
    let home = Home::new();
    let (model, path) = (Model::new(), home.path().join(file));
    let clients = Page::read(PAGE).section("Example clients").literals();
    let source = clients.iter().find(|source| source.contains(&format!("{file}:"))).unwrap();
    assert!(source.lines().count() <= 30, "{source}");
    home.write(&path, source);
    home.write(&home.beside("answer"), answer);
    home.start_with(&model);
    let script = r#"cd ~ && exec "$@""#;
    let client: Run<'_> = home.sh(script).arg("sh").arg(program).arg(&path).arg("say hi");
    let client = client.input(&home.beside("answer")).stdout("{*}It is done.\n").spawn();
    let question = model.gets("say hi");
    question.call("write_file", r#"{\"path\":\"new\",\"content\":\"x\"}"#);
    model.question().answer("It is done.");
    client.finish();
    assert_eq!(home.path().join("new").exists(), is_allowed);
    // A turn that fails.
    home.opta("daemon stop").stdout(ANYTHING).run();
    home.start();
    let failing = home.sh(script).arg("sh").arg(program).arg(&path).arg("say hi");
    failing.stdout(ANYTHING).stderr("{*}cannot reach the model server{*}").status(1).run();
}

#[test]
fn the_example_client_in_python_runs_a_turn() {
    need!("python3");
    run_client("python3", "client.py", "y\n", true);
}

#[test]
fn the_example_client_in_javascript_runs_a_turn() {
    need!("node");
    run_client("node", "client.mjs", "", false);
}
