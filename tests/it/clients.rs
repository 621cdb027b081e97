//! Clients of the WebSocket that others wrote: Chromium's, `ws` from npm, and `websockets` from
//! PyPI. The last two are installed in the build directory, once, if their registry can be reached.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use crate::api::Api;
use crate::support::{DEADLINE, Home, eventually, need, skip};

/// Installs a package with this script in a directory below the build directory, unless it is
/// there. Returns the directory; `None` if the package cannot be installed within five minutes.
fn installed(name: &str, script: &str) -> Option<PathBuf> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients").join(name);
    let complete = directory.join("complete");
    if !complete.exists() {
        std::fs::create_dir_all(&directory).unwrap();
        let mut install = Command::new("timeout");
        install.args(["300", "sh", "-euc", script]).current_dir(&directory);
        install.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        install.status().ok().filter(ExitStatus::success)?;
        std::fs::write(complete, "").unwrap();
    }
    Some(directory)
}

fn path(source: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients").join(source)
}

/// Runs a client with the port and the token of a daemon that has a session `s` and no model.
/// `start` runs the source of this name in the directory of the package.
fn run(package: &Path, start: &str, source: &str) {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    api.create("s");
    let client = home.sh(&format!("cd \"$1\"; shift; exec {start} \"$@\"")).arg("sh").arg(package);
    client.arg(path(source)).arg(api.port.to_string()).arg(&api.token).run();
}

#[test]
fn the_websocket_of_npm_is_served() {
    need!("timeout", "node", "npm");
    let install = "npm install --silent --no-audit --no-fund --prefix . ws@8";
    let Some(directory) = installed("ws", install) else {
        skip!("ws cannot be installed from npm")
    };
    run(&directory, "env NODE_PATH=node_modules node", "ws.js");
}

#[test]
fn the_websockets_of_pypi_are_served() {
    need!("timeout", "python3");
    let install = "python3 -m venv .; bin/python -m pip install --quiet 'websockets>=13'";
    let Some(directory) = installed("websockets", install) else {
        skip!("websockets cannot be installed from PyPI")
    };
    run(&directory, "bin/python", "websockets.py");
}

/// Answers a request for the page, or for a path that tells a result.
fn serve(mut stream: &TcpStream, page: &str, results: &Sender<String>) {
    let mut head = Vec::new();
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if line.is_empty() {
            break;
        }
        head.push(line);
    }
    let path = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    if let Some(result) = path.strip_prefix("/result/") {
        drop(results.send(result.to_owned()));
    }
    let fields = "Connection: close\r\nContent-Type: text/html; charset=utf-8";
    let length = page.len();
    drop(write!(stream, "HTTP/1.1 200 OK\r\n{fields}\r\nContent-Length: {length}\r\n\r\n{page}"));
}

#[test]
fn the_websocket_of_chromium_is_served() {
    need!("chromium");
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    api.create("s");
    let page = std::fs::read_to_string(path("chromium.html")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, results) = channel();
    let serving = move || {
        for stream in listener.incoming() {
            let (page, sender) = (page.clone(), sender.clone());
            let answering = move || serve(&stream.unwrap(), &page, &sender);
            drop(thread::Builder::new().name("page".into()).spawn(answering).unwrap());
        }
    };
    drop(thread::Builder::new().name("page server".into()).spawn(serving).unwrap());
    let mut chromium = Command::new("chromium");
    chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    // It asks no one but the page and the daemon.
    chromium.args(["--disable-background-networking", "--disable-component-update"]);
    chromium.args(["--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]);
    chromium.arg(format!("--user-data-dir={}", home.beside("chromium").display()));
    chromium.arg(format!("http://127.0.0.1:{port}/#{},{}", api.port, api.token));
    chromium.env("HOME", home.path());
    chromium.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut chromium = chromium.spawn().unwrap();
    let result = results.recv_timeout(DEADLINE);
    let ended = Command::new("kill").arg(chromium.id().to_string()).status().unwrap();
    eventually("chromium has ended", || chromium.try_wait().unwrap().is_some());
    assert!(ended.success());
    assert_eq!(result.as_deref(), Ok("served"));
}
