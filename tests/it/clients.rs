//! Clients of the WebSocket that others wrote: `ws` from npm, and `websockets` from PyPI. They are
//! installed in the build directory, once, if their registry can be reached.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::api::Api;
use crate::support::{Home, need, skip};

/// Installs a package below the build directory unless it is there. Returns the directory; `None`
/// if it cannot be had.
fn installed(name: &str, command: &[&str], product: &str) -> Option<PathBuf> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients").join(name);
    if !directory.join(product).exists() {
        std::fs::create_dir_all(&directory).unwrap();
        let mut install = Command::new(command[0]);
        install.args(&command[1..]).current_dir(&directory);
        install.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        install.status().ok().filter(std::process::ExitStatus::success)?;
    }
    Some(directory)
}

/// Runs a client with the port and the token of a daemon that has a session `s` and no model.
fn run(command: &mut Command) {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    api.create("s");
    let output = command.arg(api.port.to_string()).arg(&api.token).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients").join(name)
}

#[test]
fn the_websocket_of_npm_is_served() {
    need!("node", "npm");
    let install =
        ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", ".", "ws@8"];
    let Some(directory) = installed("ws", &install, "node_modules/ws/package.json") else {
        skip!("ws cannot be installed from npm")
    };
    run(Command::new("node").env("NODE_PATH", directory.join("node_modules")).arg(source("ws.js")));
}

#[test]
fn the_websockets_of_pypi_are_served() {
    need!("python3");
    let install = ["python3", "-m", "pip", "install", "--quiet", "--target", ".", "websockets>=13"];
    let Some(directory) = installed("websockets", &install, "websockets/sync/client.py") else {
        skip!("websockets cannot be installed from PyPI")
    };
    run(Command::new("python3").env("PYTHONPATH", directory).arg(source("websockets.py")));
}
