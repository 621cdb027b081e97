//! The servers. A pipe ties each to its test: it ends when the test drops it, and also when the
//! process of the tests is killed.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use crate::support::http;

/// Far more than a start takes, or a turn of a real model on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// A server that runs until this is dropped.
pub struct Server {
    port: u16,
    /// The lines that it printed until it was ready.
    lines: Vec<String>,
    holder: Child,
    /// When it is closed, the server ends.
    lifeline: Option<ChildStdin>,
    /// Kept open, so that a server that prints something does not end.
    _output: BufReader<ChildStdout>,
}

/// Starts a real model, and stops it when standard input ends.
const HOLD: &str = r#"
    tool=$1
    shift
    started=$("$tool" start "$@")
    port=${started%%/v1*}
    port=${port##*:}
    trap '"$tool" stop --port "$port" >/dev/null 2>&1' EXIT
    trap 'exit 1' HUP INT TERM
    # There may be no reader.
    trap '' PIPE
    printf '%s\n' "$started"
    exec >/dev/null
    cat
"#;

fn tool(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tools").join(name)
}

impl Server {
    /// Starts a real model with these options.
    pub fn real(options: &[&str]) -> Server {
        let mut command = Command::new("sh");
        command.args(["-eu", "-c", HOLD, "sh"]).arg(tool("model-server")).args(options);
        // The second line has its pid.
        Server::start(command, "pid ")
    }

    /// Starts a mock.
    pub fn mock() -> Server {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/fixtures.json");
        let mut command = Command::new(tool("mock-server"));
        command.args(["serve", fixtures]);
        Server::start(command, "http://127.0.0.1:")
    }

    /// Starts a command, and waits for a line with `ready`.
    fn start(mut command: Command, ready: &'static str) -> Server {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().unwrap();
        let lifeline = holder.stdin.take();
        let output = BufReader::new(holder.stdout.take().unwrap());
        let (sender, receiver) = channel();
        let reading = move || {
            let mut output = output;
            let mut lines = Vec::new();
            let mut line = String::new();
            while output.read_line(&mut line).unwrap() > 0 {
                let is_ready = line.contains(ready);
                lines.push(std::mem::take(&mut line));
                if is_ready {
                    drop(sender.send((output, lines)));
                    return;
                }
            }
        };
        drop(thread::Builder::new().name("wait for a server".into()).spawn(reading).unwrap());
        let started = receiver.recv_timeout(DEADLINE);
        let (output, lines) = started.expect("the server does not start: try `make test-model`");
        let port = lines.iter().find_map(|line| {
            let after = line.split("http://127.0.0.1:").nth(1)?;
            after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        });
        Server { port: port.unwrap(), lines, holder, lifeline, _output: output }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// Returns the pid of a real model.
    pub fn pid(&self) -> i32 {
        let line = self.lines.iter().find_map(|line| line.strip_prefix("pid "));
        line.unwrap().trim().parse().unwrap()
    }

    /// Returns the body of the response to `GET path`.
    pub fn get(&self, path: &str) -> String {
        let (status, body) = http(self.port, "GET", path, None);
        assert_eq!(status, 200, "{path}: {body}");
        body
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        drop(self.holder.wait());
    }
}
