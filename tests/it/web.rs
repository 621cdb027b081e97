//! `opta web`, and the files of the local page that the daemon serves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::api::{Api, Reply};
use crate::support::{ANYTHING, Home};

/// Sends a request without the token.
fn ask(api: &Api, method: &str, path: &str, headers: &str) -> Reply {
    let stranger = Api { port: api.port, token: String::new() };
    crate::api::answer(stranger.send(method, path, headers, b"").unwrap()).unwrap()
}

fn header<'r>(reply: &'r Reply, name: &str) -> Option<&'r str> {
    let mut lines = reply.head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Returns the files of the page and their sizes.
fn files() -> Vec<(String, u64)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server/page");
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()))
        .collect()
}

fn url(home: &Home) -> String {
    let info = home.daemon_info();
    format!("http://127.0.0.1:{}/#token={}", info.port(), info.token())
}

#[test]
fn the_page_is_served_to_anyone_with_headers_that_confine_it() {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    for (name, size) in files() {
        let is_page = name == "index.html";
        let path = if is_page { "/".to_owned() } else { format!("/page/{name}") };
        let reply = ask(&api, "GET", &path, "").expect(200);
        assert_eq!(reply.body.len() as u64, size, "{path}");
        let media_type = match name.rsplit_once('.').unwrap().1 {
            "html" => "text/html; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            _ => "text/javascript; charset=utf-8",
        };
        for (field, value) in [
            ("Content-Type", media_type),
            (
                "Content-Security-Policy",
                "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                 img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            ),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Cache-Control", "no-cache"),
        ] {
            assert_eq!(header(&reply, field), Some(value), "{path}");
        }
        let tag = header(&reply, "ETag").unwrap();
        let known = ask(&api, "GET", &path, &format!("If-None-Match: \"x\", {tag}\r\n"));
        assert_eq!((known.status, known.body.as_str()), (304, ""), "{path}");
        // Of the file, or none (RFC 9110, 8.6).
        assert!(!known.head.contains("Content-Length: 0\r\n"), "{}", known.head);
        assert_eq!(header(&known, "ETag"), Some(tag));
        assert_eq!(ask(&api, "GET", &path, "If-None-Match: \"x\"\r\n").status, 200);
        assert_eq!(ask(&api, "POST", &path, "").status, 405);
        assert_eq!(ask(&api, "GET", &path, "Origin: http://evil.com\r\n").status, 403);
    }
    for path in ["/page/", "/page/index.html", "/page/../main.js", "/page/x.js", "/favicon.ico"] {
        assert_eq!(ask(&api, "GET", path, "").status, 401, "{path}");
    }
}

#[test]
fn the_files_of_the_page_are_small() {
    assert!(files().iter().map(|(_, size)| size).sum::<u64>() <= 100 * 1024);
    for (name, _) in files() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server/page").join(&name);
        let text = fs::read_to_string(path).unwrap();
        assert!(text.lines().count() <= 300, "{name}");
        let begins = text.starts_with("// ") || text.starts_with("/* ");
        assert!(begins || name == "index.html", "{name} does not begin with a word about itself");
        for forbidden in ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("] {
            assert!(!text.contains(forbidden), "{name}: {forbidden}");
        }
    }
}

#[test]
fn without_a_display_the_url_is_printed() {
    let home = Home::new();
    let seen = home.opta("web").stdout(ANYTHING).stderr(ANYTHING).run();
    assert_eq!(seen.stdout, format!("{}\n", url(&home)));
    let (port, note) = (home.daemon_info().port(), "to see the page, open this URL in a browser");
    let forward = format!("ssh -L {port}:127.0.0.1:{port} HOST");
    assert!(seen.stderr.contains(&format!("opta: there is no display; {note}")), "{}", seen.stderr);
    assert!(seen.stderr.contains(&forward), "{}", seen.stderr);
    let ssh = home.opta("web").env("DISPLAY", ":0").env("SSH_CONNECTION", "1.2.3.4 1 5.6.7.8 22");
    let seen = ssh.stdout(ANYTHING).stderr(ANYTHING).run();
    assert!(seen.stderr.contains(&format!("opta: this is an ssh session; {note}")));
    assert!(!home.file("open.html").exists());
    let printed = home.opta("web --print").stdout(ANYTHING).run();
    assert_eq!(printed.stdout, format!("{}\n", url(&home)));
}

#[test]
fn the_browser_gets_a_private_file_that_is_removed_when_the_daemon_stops() {
    let home = Home::new();
    let opened = home.beside("opened");
    for (browser, end) in [(">\"$OPENED\" echo", "\n"), ("echo %s x >\"$OPENED\"", " x\n")] {
        let run = home.opta("web").env("BROWSER", browser).env("OPENED", &opened);
        let seen = run.stdout(ANYTHING).stderr(ANYTHING).run();
        let info = home.daemon_info();
        let expected = format!("Opened http://127.0.0.1:{}/ with {browser}\n", info.port());
        assert_eq!(seen.stdout, expected);
        let argument = fs::read_to_string(&opened).unwrap();
        assert!(argument.starts_with("file:///"), "{argument}");
        let name = format!("/.config/opta/daemon/open.html{end}");
        assert!(argument.ends_with(&name), "{argument}");
        assert!(argument.contains("%20") && argument.contains("%C3%BC"), "{argument}");
    }
    let file = home.file("open.html");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    let page = fs::read_to_string(&file).unwrap();
    assert!(page.contains(&format!("content=\"0; url={}\"", url(&home))), "{page}");
    home.opta("daemon stop").stdout(ANYTHING).run();
    assert!(!file.exists());
}

#[test]
fn a_crash_does_not_leave_the_private_file_to_the_next_daemon() {
    let home = Home::new();
    let open = || home.opta("web").env("BROWSER", "true").stdout(ANYTHING).stderr(ANYTHING).run();
    open();
    let old = url(&home);
    home.crash();
    home.opta("daemon start").stdout(ANYTHING).stderr(ANYTHING).run();
    assert!(!home.file("open.html").exists());
    open();
    let page = fs::read_to_string(home.file("open.html")).unwrap();
    assert!(page.contains(&url(&home)) && !page.contains(&old), "{page}");
}

#[test]
fn a_browser_that_cannot_be_opened_leaves_the_url() {
    let home = Home::new();
    let run = home.opta("web").env("BROWSER", "false");
    let seen = run.stdout(ANYTHING).stderr(ANYTHING).run();
    assert_eq!(seen.stdout, format!("{}\n", url(&home)));
    let expected = "opta: no browser could be opened with false; ";
    assert!(seen.stderr.starts_with(expected), "{}", seen.stderr);
}

#[test]
fn the_browsers_between_colons_are_tried_in_order() {
    let home = Home::new();
    let (opened, noted) = (home.beside("opened"), home.beside("noted"));
    let script = home.beside("browser");
    home.write(&script, "printf '%s\\n' \"$@\" >\"$OPENED\"\n");
    for (browser, used, arguments) in [
        ("false:no-such-program: :sh \"$BY\":echo >\"$NOTED\"", 3, "URL\n"),
        (
            "false --new %s:sh \"$BY\" a %s '%s' \"b=%s\" 5%% 5%%s",
            1,
            "a\nURL\nURL\nb=URL\n5%\n5%s\n",
        ),
        ("sh \"$BY\" 5%%s:false", 0, "5%s\nURL\n"),
        (":sh \"$BY\"", 1, "URL\n"),
    ] {
        let run = home.opta("web").env("BROWSER", browser).env("OPENED", &opened);
        let run = run.env("BY", &script).env("NOTED", &noted);
        let seen = run.stdout(ANYTHING).stderr(ANYTHING).run();
        let used = browser.split(':').nth(used).unwrap();
        assert!(seen.stdout.ends_with(&format!(" with {used}\n")), "{browser}: {}", seen.stdout);
        let found = fs::read_to_string(&opened).unwrap();
        let url = found.split_whitespace().find_map(|word| word.strip_prefix("file://"));
        let url = format!("file://{}", url.unwrap());
        assert!(url.ends_with("/open.html"), "{url}");
        assert_eq!(found, arguments.replace("URL", &url), "{browser}");
        assert!(!noted.exists());
    }
    let seen = home.opta("web").env("BROWSER", "false:exit 3").stdout(ANYTHING).stderr(ANYTHING);
    let expected = "opta: no browser could be opened with false or exit 3; ";
    assert!(seen.run().stderr.starts_with(expected));
    // A list of nothing is none.
    let seen = home.opta("web").env("BROWSER", "::").stdout(ANYTHING).stderr(ANYTHING).run();
    assert!(seen.stderr.starts_with("opta: there is no display; "), "{}", seen.stderr);
}

#[test]
fn a_session_gets_another_title() {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    api.create("s");
    let rename = |title: &str| {
        let body = format!(r#"{{"input":{{"sessionId":"s","title":"{title}"}}}}"#);
        api.ask("POST", "/v3/operations/sessions.rename", &body)
    };
    assert_eq!(rename(" Another title ").expect(200).field("title"), "Another title");
    assert_eq!(rename(" ").expect(400).field("code"), "validation_error");
    rename(&"x".repeat(10_000)).expect(400);
    let events = api.ask("GET", "/v3/sessions/s/events", "").events();
    assert!(events.last().unwrap().text.contains(r#""title":"Another title""#));
    // Also after the session was read from the disk.
    home.opta("daemon stop").stdout(ANYTHING).run();
    home.start();
    let list = Api::of(&home).ask("GET", "/v3/sessions", "");
    assert_eq!(list.field("title"), "Another title");
}
