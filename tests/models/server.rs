//! The servers. Each is held by a pipe: it ends when the test drops it, and also when the whole
//! process of the tests is killed.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use crate::support::http;

/// Far more than a start takes, and than a turn of a real model on a machine that is busy with
/// something else.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// A server that runs until this is dropped.
pub struct Server {
    port: u16,
    /// The last lines that it has said when it was ready.
    said: Vec<String>,
    holder: Child,
    /// Its end is the end of the server.
    hold: Option<ChildStdin>,
    /// A server that has something to say is not to be ended by it.
    _output: BufReader<ChildStdout>,
}

/// Starts a real model, holds it until standard input ends, and ends it.
const HOLD: &str = r#"
    tool=$1
    shift
    started=$("$tool" start "$@")
    port=${started%%/v1*}
    port=${port##*:}
    trap '"$tool" stop --port "$port" >/dev/null 2>&1' EXIT
    trap 'exit 1' HUP INT TERM
    # Nobody may be left to be told.
    trap '' PIPE
    printf '%s\n' "$started"
    exec >/dev/null
    cat
"#;

fn tool(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tools").join(name)
}

impl Server {
    /// A real model, with these options.
    pub fn real(options: &[&str]) -> Server {
        let mut command = Command::new("sh");
        command.args(["-eu", "-c", HOLD, "sh"]).arg(tool("model-server")).args(options);
        // The second line is its pid.
        Server::held(command, "pid ")
    }

    /// The mock, which has heard nothing yet.
    pub fn mock() -> Server {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/fixtures.json");
        let mut command = Command::new(tool("mock-server"));
        command.args(["serve", fixtures]);
        Server::held(command, "http://127.0.0.1:")
    }

    /// Waits for a line with `ready`.
    fn held(mut command: Command, ready: &'static str) -> Server {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().unwrap();
        let hold = holder.stdin.take();
        let output = BufReader::new(holder.stdout.take().unwrap());
        let (sender, receiver) = channel();
        let reading = move || {
            let mut output = output;
            let mut said = Vec::new();
            let mut line = String::new();
            while output.read_line(&mut line).unwrap() > 0 {
                let is_ready = line.contains(ready);
                said.push(std::mem::take(&mut line));
                if is_ready {
                    drop(sender.send((output, said)));
                    return;
                }
            }
        };
        drop(thread::Builder::new().name("wait for a server".into()).spawn(reading).unwrap());
        let started = receiver.recv_timeout(PATIENCE);
        let (output, said) = started.expect("the server does not start: try `make test-model`");
        let port = said.iter().find_map(|line| {
            let behind = line.split("http://127.0.0.1:").nth(1)?;
            behind.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        });
        Server { port: port.unwrap(), said, holder, hold, _output: output }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// The process of a real model.
    pub fn pid(&self) -> i32 {
        let line = self.said.iter().find_map(|line| line.strip_prefix("pid "));
        line.unwrap().trim().parse().unwrap()
    }

    /// What it answers to a `GET` of `path`.
    pub fn get(&self, path: &str) -> String {
        let (status, body) = http(self.port, "GET", path, None);
        assert_eq!(status, 200, "{path}: {body}");
        body
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.hold.take());
        drop(self.holder.wait());
    }
}
