//! `opta config …` and `opta models`.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, SystemTime};

use crate::model::Model;
use crate::support::{ANYTHING, Home, mode, need};
use crate::user::User;

/// Settings in an unusual form, with a key that another program knows.
const FILE: &str = "{\n\t\"other\": {\"deep\" :[1,  2]},\n\t\"log\":{ \"level\" : \"info\" },\n\t\"daemon\": \
                    {\"prot\": 1}\n}\n";

fn text(home: &Home) -> String {
    fs::read_to_string(home.config()).unwrap()
}

#[test]
fn set_changes_one_value_and_nothing_else() {
    let home = Home::new();
    home.write(&home.config(), FILE);
    fs::set_permissions(home.config(), fs::Permissions::from_mode(0o640)).unwrap();
    let unknown = "opta: unknown setting daemon.prot (did you mean daemon.port?)\n\
                   opta: unknown setting other\n";
    let set = |words: &str| home.opta(&format!("config set {words}")).stderr(unknown).run();
    set("log.level debug");
    let expected = FILE.replace("\"info\"", "\"debug\"");
    assert_eq!(text(&home), expected);
    set("daemon.port 8123");
    let expected = expected.replace("\"prot\": 1", "\"prot\": 1, \"port\": 8123");
    assert_eq!(text(&home), expected);
    set("model.default qwen3");
    let expected = expected.replace("8123}\n", "8123},\n\t\"model\": {\"default\": \"qwen3\"}\n");
    assert_eq!(text(&home), expected);
    assert_eq!(mode(&home.config()), 0o640);

    let list = "other.deep=[1,2]\nlog.level=debug\ndaemon.prot=1\ndaemon.port=8123\n\
                model.default=qwen3\n";
    home.opta("config list").stdout(list).stderr(unknown).run();
    let objects = "{\"key\":\"other.deep\",\"value\":[1,2]}\n\
                   {\"key\":\"log.level\",\"value\":\"debug\"}\n{*}";
    home.opta("config list --json").stdout(objects).stderr(unknown).run();
    home.opta("config get log.level").stdout("debug\n").run();
    home.opta("config get daemon.port --json")
        .stdout("{\"key\":\"daemon.port\",\"value\":8123}\n")
        .run();
    home.opta("config get other.deep").stdout("[1,2]\n").run();
}

#[test]
fn reset_removes_one_setting_and_nothing_else() {
    let home = Home::new();
    home.write(&home.config(), FILE);
    let reset = |key: &str| home.opta(&format!("config reset {key}"));
    let other = "opta: unknown setting other\n";
    let unknown = format!("opta: unknown setting daemon.prot (did you mean daemon.port?)\n{other}");
    reset("log.level").stderr(&unknown).run();
    let expected = FILE.replace("\n\t\"log\":{ \"level\" : \"info\" },", "");
    assert_eq!(text(&home), expected);
    // One that is not set is no error, and one that opta does not know can be removed.
    reset("model.default").stderr(&unknown).run();
    assert_eq!(text(&home), expected);
    reset("daemon.prot --json").stdout("{\"key\":\"daemon.prot\"}\n").stderr(other).run();
    assert_eq!(text(&home), "{\n\t\"other\": {\"deep\" :[1,  2]}\n}\n");
    let error = "opta: unknown setting daemon.prot (did you mean daemon.port?)\n\
                 to see all: man opta-daemon, section Configuration\n";
    reset("daemon.prot").stderr(error).status(2).run();
}

#[test]
fn the_first_set_creates_a_private_file() {
    let home = Home::new();
    let path = home.config().display().to_string();
    home.opta("config path").stdout(&format!("{path}\n")).run();
    home.opta("config list").run();
    let unset = "opta: cannot get the setting: it is not set\n";
    home.opta("config get daemon.port").stderr(unset).status(1).run();
    assert!(!home.config().exists());
    home.opta("config set permissions.run_command").arg(r#"{"allow":["make test"]}"#).run();
    assert_eq!(mode(&home.config()), 0o600);
    let object = "{\n  \"permissions\": {\"run_command\": {\"allow\":[\"make test\"]}}\n}\n";
    assert_eq!(text(&home), object);
}

#[test]
fn each_setting_takes_its_value_as_it_is_typed() {
    let home = Home::new();
    let values = [
        ("connection.caFile", "/etc/ssl/ca.pem"),
        ("connection.firstWordSeconds", "60"),
        ("connection.host", "box"),
        ("connection.port", "1234"),
        ("connection.proxy", "http://user:secret@proxy.example:3128"),
        ("connection.silenceSeconds", "60"),
        ("connection.url", "https://api.example.com/v1"),
        ("daemon.port", "8123"),
        ("environment", "[\"LANG\"]"),
        ("log.files", "2"),
        ("log.level", "debug"),
        ("log.maxBytes", "1048576"),
        ("model.default", "7"),
        ("model.maxTokens", "100"),
        ("model.toolChoice", "auto"),
        ("permissions", "{}"),
        ("permissions.write_file", "deny"),
        ("safety.maxToolCalls", "10"),
        ("workspaces", "{}"),
        ("workspaces.site", "/srv/site"),
    ];
    let source = include_str!("../../src/config/keys.rs");
    let keys = source.split_once("KEYS").and_then(|(_, rest)| rest.split_once("];")).unwrap().0;
    let keys = keys.lines().filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix("\","));
    for key in keys {
        assert!(values.iter().any(|(name, _)| *name == key), "{key} has no value here");
    }
    for (key, value) in values {
        home.opta(&format!("config set {key}")).arg(value).run();
        home.opta(&format!("config get {key}")).stdout(&format!("{value}\n")).run();
    }
    let hidden = "opta: cannot set daemon.port: it takes a number, not a URL\n";
    let url = "config set daemon.port http://user:secret@proxy.example";
    home.opta(url).stderr(hidden).status(1).run();
}

#[test]
fn what_could_not_be_used_is_refused_and_changes_nothing() {
    let home = Home::new();
    home.write(&home.config(), "{}");
    let at = format!("{}: ", home.config().display());
    let unusable = |why: &str| format!("cannot use the settings: {at}{why}\n");
    let usage = "\nto see all: man opta-daemon, section Configuration\n";
    for (words, status, message) in [
        (
            "daemon.port 65536",
            1,
            format!("cannot use the settings: {at}daemon.port: {{*}}'65536'\n"),
        ),
        ("daemon.port x", 1, "cannot set daemon.port: it takes a number, not 'x'\n".to_owned()),
        ("log.level loud", 1, format!("cannot use the settings: {at}log.level: {{*}}'loud'\n")),
        ("log.files 100", 1, format!("cannot use the settings: {at}log.files: {{*}}'100'\n")),
        (
            "model.toolChoice no",
            1,
            format!("cannot use the settings: {at}model.toolChoice: {{*}}\n"),
        ),
        (
            "permissions.write_file yes",
            1,
            format!("cannot use the settings: {at}permissions.write_file: {{*}}'yes'\n"),
        ),
        ("connection.url ftp://box", 1, unusable("connection.url: {*} http:// nor https://")),
        ("connection.url http://me:s3cret@box", 1, unusable("connection.url: {*}OPTA_API_KEY")),
        ("connection.host box:8080", 1, unusable("connection.host: it names no host")),
        ("connection.proxy ftp://box", 1, unusable("connection.proxy: {*}socks5://")),
        ("connection.caFile ca.pem", 1, unusable("connection.caFile: {*}'ca.pem'")),
        ("model.default a\u{7f}b", 1, unusable("model.default: {*}no control characters")),
        ("environment [\"A=\"]", 1, format!("cannot use the settings: {at}environment: {{*}}\n")),
        ("environment A", 1, "cannot set environment: it takes JSON ({*}), not 'A'\n".to_owned()),
        (
            "daemon.prot 1",
            2,
            format!("unknown setting daemon.prot (did you mean daemon.port?){usage}"),
        ),
        ("level debug", 2, format!("unknown setting level (did you mean log.level?){usage}")),
        (
            "permissions.shel deny",
            2,
            format!("unknown setting permissions.shel (did you mean permissions.shell?){usage}"),
        ),
    ] {
        let run = home.opta(&format!("config set {words}"));
        run.stderr(&format!("opta: {message}")).status(status).run();
        assert_eq!(text(&home), "{}", "{words}");
    }
    // A variable that is used instead makes it no better.
    let run = home.opta("config set model.toolChoice no").env("OPTA_TOOL_CHOICE", "auto");
    run.stderr("opta: cannot use the settings: {*}config.json: {*}\n").status(1).run();
    // What was written by hand is checked, too, whichever setting it is.
    home.write(&home.config(), r#"{"log":{"level":"info"},"connection":{"url":"box:x"}}"#);
    let refused = format!("opta: {}", unusable("connection.url: its port is {*}"));
    for words in ["list", "get connection.url", "get log.level", "set daemon.port 1"] {
        home.opta(&format!("config {words}")).stderr(&refused).status(1).run();
    }
    home.opta("do x").stderr("{*}connection.url: its port is {*}").status(1).run();
    home.opta("config set connection.url http://box").run();
    home.opta("config get log.level").stdout("info\n").run();
    let damaged = "{\n\"a\": }\n";
    home.write(&home.config(), damaged);
    let refused =
        format!("opta: cannot use the settings: {}:2:6: {{why}}\n", home.config().display());
    for words in ["list", "get daemon.port", "set daemon.port 1"] {
        home.opta(&format!("config {words}")).stderr(&refused).status(1).run();
    }
    assert_eq!(text(&home), damaged);
}

#[test]
fn a_file_that_others_can_write_is_refused_as_the_daemon_refuses_it() {
    let home = Home::new();
    home.write(&home.config(), "{}");
    fs::set_permissions(home.config(), fs::Permissions::from_mode(0o620)).unwrap();
    let refused = "opta: cannot use {path}: other users can write to it (mode 0620)\n{next}\n";
    for words in ["list", "get daemon.port", "set daemon.port 1", "edit"] {
        let run = home.opta(&format!("config {words}")).env("EDITOR", "true");
        run.stderr(refused).status(1).run();
    }
    assert_eq!(text(&home), "{}");
}

#[test]
fn a_workspace_may_have_any_label() {
    let home = Home::new();
    home.opta("config set workspaces.my.site /srv/site").run();
    home.opta("config get workspaces.my.site").stdout("/srv/site\n").run();
    home.opta("config list").stdout("workspaces.my.site=/srv/site\n").run();
    let relative = "opta: cannot use the settings: {*}: workspaces.a: {*}'b'\n";
    home.opta("config set workspaces.a b").stderr(relative).status(1).run();
}

#[test]
fn a_link_stays_a_link() {
    let home = Home::new();
    let target = home.beside("dotfiles");
    home.write(&target, "{}");
    fs::create_dir_all(home.config().parent().unwrap()).unwrap();
    symlink(&target, home.config()).unwrap();
    home.opta("config set daemon.port 7").run();
    assert!(home.config().is_symlink());
    assert!(fs::read_to_string(&target).unwrap().contains("\"port\": 7"));
}

#[test]
fn files_next_to_the_settings_are_kept() {
    let home = Home::new();
    let target = home.beside("dotfiles/opta.json");
    home.write(&target, "{}");
    let others = ["opta.new", "opta.json.new", "opta"].map(|name| target.with_file_name(name));
    others.iter().for_each(|path| home.write(path, "mine"));
    fs::create_dir_all(home.config().parent().unwrap()).unwrap();
    symlink(&target, home.config()).unwrap();
    home.opta("config set daemon.port 7").run();
    assert!(others.iter().all(|path| fs::read(path).unwrap() == b"mine"));
    assert_eq!(fs::read_dir(home.beside("dotfiles")).unwrap().count(), 4);
}

#[test]
fn a_change_removes_what_killed_ones_left() {
    let home = Home::new();
    let target = home.beside("dotfiles/opta.json");
    home.write(&target, "{}");
    fs::create_dir_all(home.config().parent().unwrap()).unwrap();
    symlink(&target, home.config()).unwrap();
    let put = |name: &str, age: u64| {
        let path = target.with_file_name(name);
        home.write(&path, "{");
        let when = SystemTime::now() - Duration::from_secs(age);
        File::options().write(true).open(&path).unwrap().set_modified(when).unwrap();
        path
    };
    let left = [put("opta.0123456789abcdef.new", 61), put("opta.ffffffffffffffff.new", 10_000)];
    let kept = [
        // Another change may be about to give it its name.
        put("opta.0000000000000000.new", 0),
        put("opta.0123456789abcdeg.new", 61),
        put("opta.0123456789abcde.new", 61),
        put("opta.0123456789abcdef0.new", 61),
        put("opta.0123456789abcdef", 61),
        put("other.0123456789abcdef.new", 61),
    ];
    home.opta("config set daemon.port 7").run();
    assert!(left.iter().all(|path| !path.exists()));
    assert!(kept.iter().all(|path| path.exists()));
}

#[test]
fn a_link_that_leads_nowhere_is_kept() {
    let home = Home::new();
    fs::create_dir_all(home.config().parent().unwrap()).unwrap();
    symlink(home.beside("nothing"), home.config()).unwrap();
    let refused = "opta: cannot write {*}config.json: it is a link to a file that does not exist\n";
    home.opta("config set daemon.port 7").stderr(refused).status(1).run();
    home.opta("config edit").env("EDITOR", "true").stderr(refused).status(1).run();
    assert!(home.config().is_symlink() && !home.beside("nothing").exists());
}

#[test]
fn simultaneous_changes_are_all_kept() {
    let home = Home::new();
    let keys = ["daemon.port", "log.files", "model.maxTokens", "safety.maxToolCalls"];
    let start = Barrier::new(keys.len());
    thread::scope(|scope| {
        for key in keys {
            let (home, start) = (&home, &start);
            let set = move || {
                start.wait();
                home.opta(&format!("config set {key} 7")).run();
            };
            drop(thread::Builder::new().name(key.to_owned()).spawn_scoped(scope, set).unwrap());
        }
    });
    for key in keys {
        home.opta(&format!("config get {key}")).stdout("7\n").run();
    }
}

#[test]
fn edit_opens_the_editor_and_checks_what_it_wrote() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let edit = |editor: &str| home.opta("config edit").env("EDITOR", editor);
    let wrong = "opta: cannot use the settings: {*}: daemon.port: {*}'70000'\n";
    edit(r#"printf '{"daemon":{"port":70000}}' >"#).stderr(wrong).status(1).run();
    let unknown = "opta: unknown setting daemon.prot (did you mean daemon.port?)\n";
    edit(r#"printf '{"daemon":{"prot":7}}' >"#).stderr(unknown).run();
    let failed = "opta: cannot edit {*}: the editor 'false' ended with exit status: 1\n\
                  to use another: set VISUAL or EDITOR\n";
    edit("false").stderr(failed).status(1).run();
    // On a terminal, Ctrl-C is for the editor.
    let script = home.beside("editor");
    home.write(
        &script,
        "trap 'echo trapped' INT; echo ready; until read -r line; do :; done; echo \"got $line\"\n",
    );
    let mut user = User::before(
        &home,
        &model,
        "opta config edit",
        &format!("EDITOR=\"sh '{}'\"", script.display()),
    );
    user.sees("ready\n");
    user.types("\x03");
    user.sees("trapped\n");
    user.types("text\n");
    user.sees("got text\n");
    user.exits(0);
}

#[test]
fn models_lists_names_and_says_which_is_used() {
    let (home, model) = (Home::new(), Model::new());
    let url = format!("{}/v1", model.url());
    let run = |words: &str| home.opta(words).env("OPTA_MODEL_URL", model.url());
    let note = format!("opta: the default is scripted, at {url}\n");
    run("models").stdout("scripted\n").stderr(&note).run();
    let object = format!("{{\"model\":\"scripted\",\"used\":true,\"server\":\"{url}\"}}\n");
    run("models --json").stdout(&object).stderr(&note).run();
    let other = format!("opta: the default is other, which is not in the list of {url}\n");
    run("models").env("OPTA_MODEL", "other").stdout("scripted\n").stderr(&other).run();
    let none = "opta: cannot list the models: cannot reach the model server at \
                http://127.0.0.1:1/v1 (from --model-url): {why}\nto check the setup: opta doctor\n";
    run("models --model-url http://127.0.0.1:1").stderr(none).status(1).run();
    let object = "{\"error\":{\"code\":\"MODEL_SERVER\",\"message\":\"{why}\"}}\n";
    run("models --json --model-url http://127.0.0.1:1").stdout(object).status(1).run();
    // Nothing was started.
    home.assert_nothing_left();
    let file = "opta: cannot use the settings: {*}\n";
    home.write(&home.config(), "{");
    run("models").stderr(file).status(1).stdout(ANYTHING).run();
}

#[test]
fn a_lock_that_stays_on_the_settings_is_reported() {
    let home = Home::new();
    home.opta("config set daemon.port 1234").stdout(ANYTHING).run();
    let directory = File::open(home.config().parent().unwrap()).unwrap();
    directory.lock().unwrap();
    let busy = "opta: cannot change the settings: another process has locked {*} for 5s{*}";
    home.opta("config reset daemon.port").stderr(busy).status(1).run();
    directory.unlock().unwrap();
    home.opta("config reset daemon.port").stdout(ANYTHING).run();
}
