//! Clients of the WebSocket that others wrote: `ws` from npm, and `websockets` from PyPI. They are
//! installed in the build directory, once, if their registry can be reached.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use crate::api::Api;
use crate::support::{Home, need, skip};

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

/// Runs a client with the port and the token of a daemon that has a session `s` and no model.
/// `start` runs the source of this name in the directory of the package.
fn run(package: &Path, start: &str, source: &str) {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    api.create("s");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients").join(source);
    let client = home.sh(&format!("cd \"$1\"; shift; exec {start} \"$@\"")).arg("sh").arg(package);
    client.arg(source).arg(api.port.to_string()).arg(&api.token).run();
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
