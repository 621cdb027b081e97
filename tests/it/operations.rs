//! The operations of the API: what a client may ask the daemon for by name.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use crate::api::{Api, Reply, answer};
use crate::model::Model;
use crate::sessions_cmd::make_endless;
use crate::support::{Home, STARTED, eventually, http, mode};

fn perform(api: &Api, id: &str, input: &str) -> Reply {
    api.post(&format!("/v3/operations/{id}"), &format!(r#"{{"input":{input}}}"#))
}

/// Returns the ids in the list of operations, with the safety of each.
fn listed(api: &Api) -> Vec<(String, String)> {
    let list = api.get("/v3/operations").expect(200).body;
    let entries = list.split(r#"{"id":""#).skip(1);
    let safety = |entry: &str| {
        let rest = entry.split_once(r#""safety":""#).unwrap().1;
        rest.split('"').next().unwrap().to_owned()
    };
    entries.map(|entry| (entry.split('"').next().unwrap().to_owned(), safety(entry))).collect()
}

#[test]
fn every_reading_operation_is_performed_and_says_what_it_needs() {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    let listed = listed(&api);
    assert!(listed.len() > 20, "{listed:?}");
    for (id, safety) in listed {
        assert!(["read", "write", "dangerous"].contains(&safety.as_str()), "{id}: {safety}");
        if safety != "read" {
            continue;
        }
        let reply = perform(&api, &id, r#"{"sessionId":"none"}"#);
        let expected = match id.as_str() {
            "sessions.get" => 404,
            "config.get" | "sessions.search" => 400,
            _ => 200,
        };
        let reply = reply.expect(expected);
        assert_eq!(reply.field("ok"), if expected == 200 { "true" } else { "false" }, "{id}");
        assert_eq!((reply.field("id"), reply.field("safety")), (id.as_str(), "read"));
    }
    assert_eq!(http(api.port, "GET", "/v3/operations", None).0, 401);
    assert_eq!(http(api.port, "POST", "/v3/operations/doctor", None).0, 401);
}

#[test]
fn the_list_of_sessions_has_what_the_desktop_app_shows() {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    for id in ["first", "second"] {
        let body = r#"{"sessionId":"ID","title":"T-ID","metadata":{"workspace":"/tmp"}}"#;
        api.post("/v3/sessions", &body.replace("ID", id)).expect(201);
    }
    let all = perform(&api, "sessions.list", r#"{"limit":250}"#).expect(200);
    let second = all.body.find(r#""sessionId":"second""#).unwrap();
    assert!(second < all.body.find(r#""sessionId":"first""#).unwrap(), "{}", all.body);
    assert!(all.body.contains(r#""result":{"sessions":[{"#), "{}", all.body);
    assert_eq!((all.field("title"), all.field("workspace")), ("T-second", "/tmp"));
    assert!(all.field("updatedAt").ends_with('Z'));
    let one = perform(&api, "sessions.list", r#"{"limit":1,"tag":null,"unknown":{}}"#);
    assert!(!one.expect(200).body.contains("first"));
    assert_eq!(perform(&api, "browser.host", r#"{"action":"status"}"#).field("running"), "false");
}

#[test]
fn sessions_are_found_by_their_title_and_their_text() {
    let (home, model) = (Home::new(), Model::new());
    home.start_with(&model);
    let api = Api::of(&home);
    for (id, title) in [("a", "Fix the Makefile (2)"), ("b", "Other"), ("c", "c"), ("d", "d")] {
        let body = format!(r#"{{"sessionId":"{id}","title":"{title}"}}"#);
        api.post("/v3/sessions", &body).expect(201);
    }
    for (id, text, answer) in [("b", "x", "It is in the MAKEFILE."), ("c", "a makefile?", "x")] {
        let body = format!(r#"{{"turnId":"t","content":"{text}"}}"#);
        api.post(&format!("/v3/sessions/{id}/turns"), &body).expect(202);
        model.question().answer(answer);
        api.wait_for(id, "turn.done", "t");
    }
    let found = |input: &str| {
        let reply = perform(&api, "sessions.search", input).expect(200);
        let ids = reply.body.split(r#"{"sessionId":""#).skip(1);
        let ids: String = ids.map(|rest| &rest[..1]).collect();
        (ids, reply.number("total"))
    };
    assert_eq!(found(r#"{"query":"makefile"}"#), ("cba".to_owned(), 3));
    assert_eq!(found(r#"{"query":"makefile","limit":2}"#), ("cb".to_owned(), 3));
    assert_eq!(found(r#"{"query":"Makefile (2)"}"#), ("a".to_owned(), 1));
    assert_eq!(found(r#"{"query":"make.*"}"#), (String::new(), 0));
    assert_eq!(found(r#"{"query":""}"#), ("dcba".to_owned(), 4));
    let long = format!(r#"{{"query":"{}"}}"#, "x".repeat(1001));
    perform(&api, "sessions.search", &long).expect(400);
    let listed = perform(&api, "sessions.list", "{}").expect(200);
    let all = perform(&api, "sessions.search", r#"{"query":""}"#).expect(200);
    let sessions = |reply: &Reply| {
        reply.body.split_once("\"sessions\":[").unwrap().1.split(']').next().unwrap().to_owned()
    };
    assert_eq!(sessions(&all), sessions(&listed));
}

#[test]
fn a_search_that_takes_too_long_returns_what_it_has_found() {
    let (home, model) = (Home::new(), Model::new());
    home.start_with(&model);
    let api = Api::of(&home);
    for id in ["old", "endless", "new"] {
        api.create(id).expect(201);
        api.post(&format!("/v3/sessions/{id}/turns"), r#"{"turnId":"t","content":"x"}"#);
        model.question().answer(if id == "endless" { "hay" } else { "a needle" });
        api.wait_for(id, "turn.done", "t");
    }
    let found = |query: &str| {
        let input = format!(r#"{{"query":"{query}"}}"#);
        let reply = perform(&api, "sessions.search", &input).expect(200);
        (reply.number("total"), reply.field("complete").to_owned())
    };
    assert_eq!(found("needle"), (2, "true".to_owned()));
    make_endless(&home, "endless");
    assert_eq!(found("needle"), (1, "false".to_owned()));
    // Of a session in which one line matches, no more is read.
    assert_eq!(found("x"), (3, "true".to_owned()));
}

#[test]
fn an_input_is_checked_against_the_schema_in_the_list() {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    let list = api.get("/v3/operations").body;
    let limit = concat!(
        r#""limit":{"type":"integer","description":"The number of sessions.","#,
        r#""minimum":1,"maximum":250}"#
    );
    assert!(list.contains(limit), "{list}");
    let session = r#""anyOf":[{"required":["sessionId"]},{"required":["id"]}]"#;
    assert!(list.contains(session), "{list}");
    for (id, body, what) in [
        (
            "sessions.list",
            r#"{"input":{"limit":0}}"#,
            "input.limit is a whole number from 1 to 250",
        ),
        ("sessions.list", r#"{"input":{"limit":251}}"#, "from 1 to 250"),
        ("sessions.list", r#"{"input":{"limit":"5"}}"#, "from 1 to 250"),
        ("sessions.list", r#"{"input":{"limit":1.5}}"#, "from 1 to 250"),
        ("sessions.list", r#"{"input":[]}"#, "input is an object"),
        ("sessions.list", r#"{"input":"x"}"#, "input is an object"),
        ("sessions.list", "[]", "line 1, column 1"),
        ("sessions.list", "{", "the text ends"),
        ("sessions.get", "{}", "input.sessionId is missing"),
        ("sessions.get", r#"{"input":{"id":null}}"#, "input.sessionId is missing"),
        ("sessions.get", r#"{"input":{"id":7}}"#, "input.id is a text"),
        ("sessions.export", r#"{"input":{"id":"x","format":"pdf"}}"#, "json or markdown or text"),
        ("daemon.logs", r#"{"input":{"lines":1001}}"#, "from 1 to 1000"),
        ("config.get", "{}", "input.key is missing"),
        ("config.set", r#"{"input":{"key":"log.files","value":null}}"#, "input.value is missing"),
    ] {
        let reply = api.post(&format!("/v3/operations/{id}"), body).expect(400);
        assert_eq!(reply.field("code"), "validation_error", "{body}");
        assert!(reply.field("message").contains(what), "{body}: {}", reply.body);
    }
    for body in ["", "{}", r#"{"limit":250}"#, r#"{"params":{"limit":1}}"#, r#"{"input":null}"#] {
        api.post("/v3/operations/sessions.list", body).expect(200);
    }
    perform(&api, "daemon.logs", r#"{"lines":1000}"#).expect(200);
}

#[test]
fn an_unknown_operation_is_not_found() {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    for id in ["nothing", "sessions", "sessions.list.x", "%00", "Doctor"] {
        let reply = perform(&api, id, "{}").expect(404);
        assert_eq!((reply.field("ok"), reply.field("code")), ("false", "not_found"), "{id}");
    }
    for id in ["env.save", "env.show", "env.use", "env.delete", "models.aliases.set", "vault.pull"]
    {
        let reply = perform(&api, id, r#"{"name":"x"}"#).expect(501);
        assert_eq!((reply.field("ok"), reply.field("code")), ("false", "not_implemented"), "{id}");
    }
    api.get("/v3/operations/doctor").expect(405);
    api.post("/v3/operations", "{}").expect(405);
}

#[test]
fn operations_report_what_the_commands_of_the_same_name_do() {
    let (home, model) = (Home::new(), Model::new());
    let daemon = home.start_with(&model);
    let api = Api::of(&home);

    let status = perform(&api, "daemon.status", "{}").expect(200);
    let printed = home.opta("daemon status --json").stdout("{*}").run().stdout;
    let common = printed.split_once(r#""uptime""#).unwrap().0;
    assert!(status.body.contains(common), "{} {printed}", status.body);
    assert_eq!((status.field("running"), status.field("state")), ("true", "running"));
    assert_eq!(status.number("pid"), u64::try_from(daemon.pid).unwrap());
    assert_eq!(status.field("installedAs"), "manual");
    assert_eq!(status.field("logPath"), home.file("daemon.log").to_str().unwrap());

    let doctor = perform(&api, "doctor", r#"{"fix":true}"#).expect(200);
    assert_eq!(doctor.number("passed") + doctor.number("warnings"), 10, "{}", doctor.body);
    let found = home.opta("doctor --json").env("OPTA_MODEL_URL", model.url()).stdout("{*}").run();
    // Free space and the size of the log change in between.
    let changes = |line: &&str| line.contains(r#":"disk""#) || line.contains(r#":"log""#);
    for line in found.stdout.lines().filter(|line| !changes(line)) {
        let line = line.trim_end_matches('}');
        assert!(doctor.body.contains(line), "{line} is not in {}", doctor.body);
    }

    let logs = perform(&api, "daemon.logs", r#"{"lines":1000}"#).expect(200);
    assert!(logs.body.contains(r#""level":"info","message":"daemon started on 127.0.0.1:"#));
    let one = perform(&api, "daemon.logs", r#"{"lines":1}"#).expect(200);
    assert_eq!(one.body.matches("timestamp").count(), 1, "{}", one.body);

    let version = perform(&api, "version.check", "{}").expect(200);
    assert_eq!(version.field("current"), env!("CARGO_PKG_VERSION"));
    assert_eq!(version.field("latest"), "null");
    let start = perform(&api, "daemon.start", "{}").expect(200);
    assert_eq!(start.field("alreadyRunning"), "true");
}

#[test]
fn settings_are_read_and_changed_as_by_opta_config() {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    assert!(perform(&api, "config.list", "{}").expect(200).body.contains(r#""config":{}"#));
    for (key, value, printed) in [
        ("log.files", "2", "2"),
        ("log.maxBytes", r#""4096""#, "4096"),
        ("model.default", r#""qwen3""#, "qwen3"),
        ("permissions.run_command", r#"{"allow":["make"]}"#, r#"{"allow":["make"]}"#),
        ("environment", r#"["LANG"]"#, r#"["LANG"]"#),
    ] {
        let input = format!(r#"{{"key":"{key}","value":{value}}}"#);
        perform(&api, "config.set", &input).expect(200);
        home.opta(&format!("config get {key}")).stdout(&format!("{printed}\n")).run();
        let member =
            format!(r#""result":{{"key":"{key}","value":{}"#, value.replace("\"4096\"", "4096"));
        let got = perform(&api, "config.get", &format!(r#"{{"key":"{key}"}}"#)).expect(200);
        assert!(got.body.contains(&member), "{}", got.body);
    }
    let listed = perform(&api, "config.list", "{}").expect(200).body;
    let begin = r#""config":{"log.files":2,"log.maxBytes":4096,"model.default":"qwen3","#;
    assert!(listed.contains(begin), "{listed}");

    let before = fs::read(home.config()).unwrap();
    for (id, input, status, what) in [
        ("config.get", r#"{"key":"log.level"}"#, 400, "it is not set"),
        ("config.get", r#"{"key":"background.maxConcurrent"}"#, 404, "no setting 'background."),
        ("config.set", r#"{"key":"model.defualt","value":"x"}"#, 404, "no setting 'model.defualt'"),
        (
            "config.set",
            r#"{"key":"log.files","value":100}"#,
            400,
            "log.files: a number from 0 to 99",
        ),
        ("config.set", r#"{"key":"log.files","value":"x"}"#, 400, "it takes a number"),
        ("config.reset", r#"{"key":"x"}"#, 404, "no setting 'x'"),
    ] {
        let refused = perform(&api, id, input).expect(status);
        assert!(refused.field("message").contains(what), "{input}: {}", refused.body);
    }
    assert_eq!(fs::read(home.config()).unwrap(), before);

    for key in ["permissions.run_command", "environment", "log.files", "log.maxBytes"] {
        perform(&api, "config.reset", &format!(r#"{{"key":"{key}"}}"#)).expect(200);
        perform(&api, "config.get", &format!(r#"{{"key":"{key}"}}"#)).expect(400);
    }
    home.opta("config list").stdout("model.default=qwen3\n").run();
}

#[test]
fn no_secret_of_the_settings_is_told() {
    let home = Home::new();
    home.start();
    let file = r#"{"connection":{"proxy":"http://me:s3cr\"@et@box:3128","adminKey":"s3cret",
        "host":"box"},"auth":{"token":"s3cret"},"s3cret":"s3cret",
        "permissions":{"web_search":"deny"}}"#;
    home.write(&home.config(), file);
    let api = Api::of(&home);
    let listed = perform(&api, "config.list", "{}").expect(200).body;
    let proxy = "http://…@box:3128";
    let shown = r#""config":{"connection.proxy":"PROXY","connection.host":"box"}"#;
    assert!(listed.contains(&shown.replace("PROXY", proxy)), "{listed}");
    for key in ["proxy", "adminKey"] {
        let got = perform(&api, "config.get", &format!(r#"{{"key":"connection.{key}"}}"#));
        assert!(!got.body.contains("s3cr") && !got.body.contains("@et"), "{}", got.body);
    }
    perform(&api, "config.get", r#"{"key":"auth.token"}"#).expect(404);
    // What a client got and gives back is no proxy.
    let back = format!(r#"{{"key":"connection.proxy","value":"{proxy}"}}"#);
    perform(&api, "config.set", &back).expect(400);
    assert_eq!(fs::read_to_string(home.config()).unwrap(), file);
    // A URL that cannot be used is not quoted.
    home.write(&home.config(), file.replace("\"host\":\"", "\"url\":\"https://s3cret\\u0040"));
    for (id, input) in [
        ("config.list", "{}"),
        ("config.get", r#"{"key":"connection.url"}"#),
        ("config.set", r#"{"key":"log.files","value":1}"#),
    ] {
        let refused = perform(&api, id, input).expect(400);
        let message = refused.field("message");
        assert!(message.contains("connection.url: it has a user name or a password"), "{message}");
        assert!(!refused.body.contains("s3cret"), "{message}");
    }
    perform(&api, "config.reset", r#"{"key":"connection.url"}"#).expect(200);
    perform(&api, "config.list", "{}").expect(200);
    // Beside a URL, the host is not used.
    let both = r#"{"connection":{"url":"http://a:1/v1","host":"me:s3cret@box"}}"#;
    home.write(&home.config(), both);
    for (id, input) in [("config.list", "{}"), ("config.get", r#"{"key":"connection.host"}"#)] {
        let told = perform(&api, id, input).expect(200).body;
        assert!(told.contains("…@box") && !told.contains("s3cret"), "{told}");
    }
}

#[test]
fn a_session_is_shown_exported_and_deleted_by_name() {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    let body =
        r#"{"sessionId":"kept","title":"A title","messages":[{"role":"user","content":"hi"}]}"#;
    api.post("/v3/sessions", body).expect(201);
    for input in [r#"{"id":"kept"}"#, r#"{"sessionId":"kept"}"#, r#"{"id":"ke"}"#] {
        let shown = perform(&api, "sessions.get", input).expect(200);
        assert_eq!((shown.field("sessionId"), shown.number("messageCount")), ("kept", 1));
        assert!(shown.body.contains(r#""tags":[]"#), "{}", shown.body);
    }

    for (format, command, extension) in [
        ("json", "export", "json"),
        ("markdown", "export --format markdown", "md"),
        ("text", "show", "txt"),
    ] {
        let input = format!(r#"{{"sessionId":"kept","format":"{format}"}}"#);
        let written = perform(&api, "sessions.export", &input).expect(200);
        let path = home.path().join(format!(".config/opta/exports/kept.{extension}"));
        assert_eq!(written.field("path"), path.to_str().unwrap());
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(written.number("sizeBytes"), text.len() as u64);
        assert_eq!(mode(&path), 0o600);
        let printed = home.opta(&format!("sessions {command} kept")).stdout("{*}").run().stdout;
        assert_eq!(text.trim_end(), printed.trim_end());
    }
    let own = home.beside("own.json");
    let input = format!(r#"{{"sessionId":"kept","outputPath":"{}"}}"#, own.display());
    perform(&api, "sessions.export", &input).expect(200);
    let before = fs::read(&own).unwrap();
    let again = perform(&api, "sessions.export", &input).expect(400);
    assert!(again.field("message").starts_with("outputPath exists: "), "{}", again.body);
    assert_eq!(fs::read(&own).unwrap(), before);
    let relative = r#"{"sessionId":"kept","outputPath":"x.json"}"#;
    perform(&api, "sessions.export", relative).expect(400);

    // A prefix is not enough to delete it.
    perform(&api, "sessions.delete", r#"{"sessionId":"ke"}"#).expect(404);
    perform(&api, "sessions.delete", r#"{"sessionId":"kept"}"#).expect(200);
    let gone = perform(&api, "sessions.delete", r#"{"sessionId":"kept"}"#).expect(404);
    assert_eq!(gone.field("code"), "not_found");
    api.get("/v3/sessions/kept").expect(404);
    perform(&api, "sessions.delete", r#"{"sessionId":"../x"}"#).expect(400);
}

#[test]
fn no_result_has_the_token() {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    for (id, safety) in listed(&api) {
        if safety == "read" || id == "daemon.start" {
            let reply = perform(&api, &id, r#"{"sessionId":"x"}"#);
            assert!(!reply.body.contains(&api.token), "{id}");
        }
    }
    assert!(!api.get("/v3/operations").body.contains(&api.token));
}

#[test]
fn a_dangerous_operation_needs_a_confirmation() {
    let home = Home::new();
    let daemon = home.start();
    let api = Api::of(&home);
    let path = "/v3/operations/daemon.restart";
    for body in [
        "",
        "{}",
        r#"{"input":{}}"#,
        r#"{"confirmDangerous":false}"#,
        r#"{"confirmDangerous":"true"}"#,
    ] {
        let reply = api.post(path, body).expect(403);
        assert_eq!(reply.field("code"), "dangerous_confirmation_required", "{body}");
    }
    assert_eq!(home.owner(), Some(daemon.pid));
    let reply = api.post(path, r#"{"input":{},"confirmDangerous":true}"#).expect(200);
    assert_eq!(reply.field("ok"), "true");
    eventually("the daemon is replaced", || {
        home.owner().is_some_and(|pid| pid != daemon.pid) && home.file("state.json").exists()
    });
    let next = Api::of(&home);
    assert_ne!(next.token, api.token);
    next.get("/v3/metrics").expect(200);
}

#[test]
fn a_daemon_that_is_asked_to_stop_answers_first() {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    let reply = perform(&api, "daemon.stop", "{}").expect(200);
    assert_eq!(reply.field("started"), "opta daemon stop");
    home.wait_for_end();
    eventually("the command has ended", || home.processes().is_empty());
    home.assert_nothing_left();
    // Its child knows it as the owner of the lock.
    let log = home.opta("daemon logs").stdout("{*}").run().stdout;
    assert!(log.contains("daemon stopping cause=SIGTERM"), "{log}");
}

#[test]
fn a_file_has_the_token_alone_while_the_daemon_runs() {
    let home = Home::new();
    home.start();
    let file = home.file("token");
    assert_eq!(fs::read_to_string(&file).unwrap(), Api::of(&home).token);
    assert_eq!(mode(&file), 0o600);
    home.opta("daemon restart").stdout("{*}").run();
    assert_eq!(fs::read_to_string(&file).unwrap(), Api::of(&home).token);
    home.crash();
    home.opta("daemon start").stdout("{*}").stderr("{*}").run();
    assert_eq!(fs::read_to_string(&file).unwrap(), Api::of(&home).token);
    home.opta("daemon stop").stdout("{*}").run();
    assert!(!file.exists());
}

#[test]
fn the_model_server_is_shown_as_the_desktop_app_asks_for_it() {
    let home = Home::new();
    let model = Model::listing(
        r#"[{"id":"a","meta":{"n_ctx":4096}},{"id":"b","max_model_len":null,"object":"model"}]"#,
    );
    let start = home.opta("daemon start").env("OPTA_MODEL_URL", model.url());
    start.env("OPTA_API_KEY", "s3cret").stdout(STARTED).run();
    let api = Api::of(&home);
    let models = concat!(
        r#""models":[{"model_id":"a","status":"loaded","context_length":4096},"#,
        r#"{"model_id":"b","status":"loaded"}]}"#
    );
    let discovery = concat!(
        r#"{"ready":true,"endpoints":{"openai_base_url":"URL","preferred_base_url":"URL","#,
        r#""base_urls":["URL"]},"target":{"host":"127.0.0.1","port":PORT,"#,
        r#""fallbackHosts":[],"autoDiscover":false}}"#
    );
    let (url, port) = (format!("{}/v1", model.url()), model.url().split_off(17));
    let discovery = discovery.replace("URL", &url).replace("PORT", &port);
    let memory = r#"{"total_unified_memory_gb":0,"used_gb":0,"available_gb":0,"models":{}}"#;
    for (view, expected) in [
        ("status", format!(r#"{{"status":"ok",{models}"#)),
        ("models", format!("{{{models}")),
        ("models/available", "[]".to_owned()),
        ("memory", memory.to_owned()),
        ("discovery", discovery),
    ] {
        let path = format!("/v3/lmx/{view}");
        let shown = api.get(&path).expect(200);
        assert_eq!(shown.body, expected);
        let (_, tag) = shown.head.split_once("ETag: ").unwrap();
        let tag = tag.lines().next().unwrap();
        for known in [tag.to_owned(), format!("\"x\", W/{tag}"), "*".to_owned()] {
            let header = format!("If-None-Match: {known}\r\n");
            let same = answer(api.send("GET", &path, &header, b"").unwrap()).unwrap().expect(304);
            assert!(same.body.is_empty() && same.head.contains(tag), "{same:?}");
        }
        let other = api.send("GET", &path, "If-None-Match: \"x\"\r\n", b"").unwrap();
        assert_eq!(answer(other).unwrap().expect(200).body, expected);
        api.post(&path, "{}").expect(405);
        assert_eq!(http(api.port, "GET", &path, None).0, 401);
    }
    api.post("/v3/lmx/models/load", "{}").expect(404);
}

#[test]
fn without_a_model_server_every_view_of_it_fails() {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    for view in ["status", "models", "models/available", "memory", "discovery"] {
        let refused = api.get(&format!("/v3/lmx/{view}")).expect(502);
        assert_eq!(refused.field("code"), "LMX_UNREACHABLE");
        assert!(refused.field("message").starts_with("cannot reach the model server"));
    }
}

/// The desktop app would take the server's own words for those of a daemon with another token.
#[test]
fn a_model_server_that_needs_a_key_is_no_refusal_of_the_token() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let refusing = move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        let refusal = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 12\r\n\r\nUnauthorized";
        stream.write_all(refusal.as_bytes()).unwrap();
    };
    let server = thread::Builder::new().name("model".into()).spawn(refusing).unwrap();
    let home = Home::new();
    home.opta("daemon start").env("OPTA_MODEL_URL", url).stdout(STARTED).run();
    let refused = Api::of(&home).get("/v3/lmx/status").expect(502);
    assert!(!refused.body.contains("401") && !refused.body.contains("nauthorized"), "{refused:?}");
    assert!(refused.field("message").contains("needs a key"));
    server.join().unwrap();
}

#[test]
fn overrides_of_a_turn_hold_or_are_refused() {
    let (home, model) = (Home::new(), Model::new());
    home.write(&home.config(), r#"{"permissions":{"write_file":"allow"}}"#);
    home.start_with(&model);
    let api = Api::of(&home);
    let workspace = home.path().display();
    let session = format!(r#"{{"sessionId":"s","metadata":{{"workspace":"{workspace}"}}}}"#);
    api.post("/v3/sessions", &session).expect(201);
    let submit = |overrides: &str| {
        let body = format!(r#"{{"content":"hi","overrides":{overrides}}}"#);
        api.post("/v3/sessions/s/turns", &body)
    };
    for (overrides, what) in [
        (r#"{"provider":"anthropic"}"#, "overrides.provider cannot be anthropic"),
        (r#"{"format":"json"}"#, "overrides.format cannot be json"),
        (r#"{"autonomyMode":"ceo"}"#, "overrides.autonomyMode cannot be ceo"),
        (r#"{"autonomyLevel":0}"#, "it is a number from 1 to 5"),
        (r#"{"autonomyLevel":6}"#, "it is a number from 1 to 5"),
        (r#"{"autonomyLevel":1.5}"#, "autonomyLevel"),
        (r#"{"dangerous":"yes"}"#, "dangerous"),
        (r#"{"dangeruos":false}"#, "overrides.dangeruos is unknown"),
        (r#"{"model":"x","modle":{}}"#, "overrides.modle is unknown"),
        ("[]", "overrides: "),
    ] {
        let refused = submit(overrides).expect(400);
        assert!(refused.body.contains(what), "{overrides}: {}", refused.body);
    }
    for overrides in [
        "null",
        r#"{"autonomyMode":"execution","autonomyLevel":5,"noCommit":true,"noCheckpoints":false,
            "unknown":null}"#,
    ] {
        submit(overrides).expect(202);
        model.question().answer("done");
    }
    submit(r#"{"model":"another","provider":"lmx","format":"markdown"}"#).expect(202);
    let question = model.question();
    assert!(question.body.contains(r#""model":"another""#), "{}", question.body);
    question.answer("done");

    // The settings allow it, and the level does not.
    submit(r#"{"autonomyLevel":2}"#).expect(202);
    model.question().call("write_file", r#"{\"path\":\"a\",\"content\":\"a\"}"#);
    // No one follows the session, so it is denied.
    let question = model.question();
    assert!(!home.path().join("a").exists(), "{}", question.body);
    question.answer("done");

    for (overrides, tool, arguments) in [
        (r#"{"dangerous":true}"#, "run_command", r#"{\"command\":\"true\"}"#),
        (r#"{"auto":true}"#, "write_file", r#"{\"path\":\"b\",\"content\":\"b\"}"#),
    ] {
        submit(overrides).expect(202);
        model.question().call(tool, arguments);
        model.question().answer("done");
    }
    assert!(home.path().join("b").exists());
}
