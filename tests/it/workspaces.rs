//! The workspaces of sessions: paths, and labels with directories of their own.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use crate::api::Api;
use crate::model::Model;
use crate::support::{ANYTHING, Home, mode, need};

const TOUCH: &str = r#"{\"command\":\"echo here > made\"}"#;

fn create(api: &Api, id: &str, workspace: &str) -> crate::api::Reply {
    let body = format!(r#"{{"sessionId":"{id}","metadata":{{"workspace":"{workspace}"}}}}"#);
    api.post("/v3/sessions", &body)
}

/// Submits a turn that may do everything.
fn submit(api: &Api, id: &str, turn: &str) {
    let body = format!(r#"{{"turnId":"{turn}","content":"x","options":{{"grant":"all"}}}}"#);
    api.post(&format!("/v3/sessions/{id}/turns"), &body).expect(202);
}

/// Runs a turn in which the model creates a file.
fn make_file(api: &Api, model: &Model, id: &str, turn: &str) {
    submit(api, id, turn);
    model.question().call("run_command", TOUCH);
    model.question().answer("done");
    api.wait_for(id, "turn.done", turn);
}

fn started(home: &Home, model: &Model) -> Api {
    home.start_with(model);
    Api::of(home)
}

#[test]
fn a_label_has_a_directory_of_its_own_from_the_first_tool_call_on() {
    let (home, model) = (Home::new(), Model::new());
    let api = started(&home, &model);
    let labels = home.path().join(".local/share/opta/workspaces");
    let directory = labels.join("default");
    let created = create(&api, "s", "default").expect(201);
    assert_eq!(created.field("workspace"), "default");
    assert_eq!(created.field("directory"), directory.to_str().unwrap());
    let listed = api.get("/v3/sessions").expect(200);
    assert!(listed.body.contains(r#""workspace":"default","directory":""#), "{}", listed.body);
    let first = api.events("s", 0).remove(0);
    assert!(first.text.contains(&format!(r#""directory":"{}""#, directory.display())));
    // A turn without a tool call creates nothing.
    submit(&api, "s", "t1");
    let question = model.question();
    assert!(question.body.contains(&format!("Directory: {}.", directory.display())));
    question.answer("hello");
    api.wait_for("s", "turn.done", "t1");
    assert!(!home.path().join(".local").exists());
    make_file(&api, &model, "s", "t2");
    assert_eq!(fs::read_to_string(directory.join("made")).unwrap(), "here\n");
    assert_eq!((mode(&directory), mode(&labels)), (0o700, 0o700));
    // Sessions with the same label share it, others do not.
    create(&api, "same", "default").expect(201);
    submit(&api, "same", "t");
    model.question().call("read_file", r#"{\"path\":\"made\"}"#);
    let question = model.question();
    assert!(question.body.contains("here"), "{}", question.body);
    question.answer("done");
    create(&api, "other", "My project").expect(201);
    make_file(&api, &model, "other", "t");
    assert!(labels.join("My project/made").exists());
    // The directory is part of the session.
    home.opta("daemon stop").stdout(ANYTHING).run();
    let data = home.beside("data");
    let restarted = home.opta("daemon start").env("XDG_DATA_HOME", &data);
    restarted.env("OPTA_MODEL_URL", model.url()).stdout(ANYTHING).run();
    let api = Api::of(&home);
    fs::remove_dir_all(&directory).unwrap();
    make_file(&api, &model, "s", "t3");
    assert!(directory.join("made").exists() && !data.exists());
    create(&api, "new", "default").expect(201);
    make_file(&api, &model, "new", "t");
    assert!(data.join("opta/workspaces/default/made").exists());
    let shown = "# x\n\n- Session: `new`\n{*}- Workspace: default\n- Directory: {*}/default\n{*}";
    home.opta("sessions export new --format markdown").stdout(shown).run();
    home.opta("daemon stop").stdout(ANYTHING).run();
}

#[test]
fn a_workspace_in_which_no_tool_could_work_is_refused() {
    let (home, model) = (Home::new(), Model::new());
    let api = started(&home, &model);
    let path = |name: &str| home.beside(name).display().to_string();
    fs::create_dir(home.beside("work")).unwrap();
    home.write(&home.beside("file"), "");
    let own = home.file("state.json").parent().unwrap().display().to_string();
    let (longest, too_long) = ("l".repeat(255), "l".repeat(256));
    for (workspace, reason) in [
        ("~", "is neither an absolute path nor a label"),
        (".", "is neither an absolute path nor a label"),
        ("..", "is neither an absolute path nor a label"),
        ("", "the workspace is empty"),
        ("~/work", "is not an absolute path"),
        ("work/here", "is not an absolute path"),
        (&path("gone"), "cannot be opened: No such file or directory"),
        (&path("file"), "cannot be opened: Not a directory"),
        (&own, "belongs to opta itself"),
        (&too_long, "is longer than 255 bytes"),
    ] {
        let refused = create(&api, "s", workspace).expect(400);
        assert_eq!(refused.field("code"), "INVALID_REQUEST");
        assert!(refused.field("message").contains(reason), "{workspace}: {}", refused.body);
        api.get("/v3/sessions/s").expect(404);
    }
    create(&api, "longest", &longest).expect(201);
    // One that exists is returned, whatever became of its directory.
    create(&api, "s", &path("work")).expect(201);
    fs::remove_dir(home.beside("work")).unwrap();
    assert_eq!(create(&api, "s", &path("work")).expect(201).field("workspace"), path("work"));
    home.opta("daemon stop").stdout(ANYTHING).run();
}

#[test]
fn the_directory_of_another_user_is_refused_unless_the_settings_name_it() {
    need!("root");
    let (home, model) = (Home::new(), Model::new());
    let api = started(&home, &model);
    let theirs: PathBuf = home.beside("theirs");
    fs::create_dir(&theirs).unwrap();
    chown(&theirs, Some(4711), None).unwrap();
    let refused = create(&api, "s", theirs.to_str().unwrap()).expect(400);
    assert!(refused.field("message").contains("belongs to another user"), "{}", refused.body);
    let labels = home.path().join(".local/share/opta/workspaces");
    fs::create_dir_all(labels.join("default")).unwrap();
    chown(labels.join("default"), Some(4711), None).unwrap();
    let refused = create(&api, "s", "default").expect(400);
    assert!(refused.field("message").contains("belongs to another user"), "{}", refused.body);
    let settings = format!(r#"{{"workspaces":{{"default":"{}"}}}}"#, theirs.display());
    home.write(&home.config(), settings);
    create(&api, "s", theirs.to_str().unwrap()).expect(201);
    create(&api, "label", "default").expect(201);
    make_file(&api, &model, "label", "t");
    assert!(theirs.join("made").exists());
    home.opta("daemon stop").stdout(ANYTHING).run();
}

#[test]
fn the_settings_name_the_directory_of_a_label() {
    let (home, model) = (Home::new(), Model::new());
    let api = started(&home, &model);
    let work = home.beside("work");
    fs::create_dir(&work).unwrap();
    let write = |directory: &str| {
        home.write(&home.config(), format!(r#"{{"workspaces":{{"default":"{directory}"}}}}"#));
    };
    write(work.to_str().unwrap());
    let created = create(&api, "s", "default").expect(201);
    assert_eq!(created.field("workspace"), "default");
    assert_eq!(created.field("directory"), work.to_str().unwrap());
    make_file(&api, &model, "s", "t");
    assert!(work.join("made").exists() && !home.path().join(".local").exists());
    // It was chosen for this session when the session was created.
    write("/gone");
    make_file(&api, &model, "s", "t2");
    let refused = create(&api, "new", "default").expect(400);
    let reason = "the workspace /gone cannot be opened: No such file or directory; \
                  workspaces.default in config.json names it";
    assert_eq!(refused.field("message"), reason);
    write("work");
    let refused = create(&api, "new", "default").expect(400);
    assert!(refused.field("message").contains("config.json: workspaces.default"));
    let found = "{*}fail  settings {*}workspaces.default{*}an absolute path is needed{*}";
    home.opta("doctor").stdout(found).status(1).run();
    home.opta("daemon stop").stdout(ANYTHING).run();
}
