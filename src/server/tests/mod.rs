//! The server on real sockets: every limit at the limit and just beyond it, and attacks that are
//! known to have worked on other servers.
//!
//! Nothing sleeps: a test that has to wait reads from a socket or a channel, with a deadline.

mod fuzz;
mod hostile;
mod life;
mod limits;
mod routes;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{self, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::limits::SPARE_THREADS_MAX;
use crate::log::{Level, Log, Rotation};
use crate::protocol::event::TurnStats;
use crate::session::runtime::Runtime;
use crate::session::store::Store;
use crate::session::turn::Turn;
use crate::session::turn::{Agent, Fault};
use crate::sys;
use crate::token::Token;

use super::{App, Deadlines, ModelServerView, Operations, Server, Stopping};

/// Longer than any reply takes on the slowest machine.
const TIMEOUT: Duration = Duration::from_secs(30);

const HEALTH: &str = "GET /v3/health HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Fails every turn, which the server does not depend on.
struct NoAgent;

impl Agent for NoAgent {
    fn run(&self, _turn: &Turn<'_>) -> Result<TurnStats, Fault> {
        Err(Fault { code: "model-unreachable", message: "there is no model".to_owned() })
    }
}

/// Performs nothing: the operations are tested in the whole program. `endless` ends once its reply
/// is not awaited, and reports that.
struct NoOperations(Sender<()>);

impl Operations for NoOperations {
    fn list(&self) -> String {
        "{}".to_owned()
    }

    fn perform(
        &self,
        _sessions: &Arc<Runtime>,
        id: &str,
        _body: &[u8],
        is_awaited: &dyn Fn() -> bool,
    ) -> (u16, String) {
        let deadline = Instant::now() + TIMEOUT;
        while id == "endless" && Instant::now() < deadline {
            if !is_awaited() {
                self.0.send(()).unwrap();
                break;
            }
            thread::yield_now();
        }
        (404, format!("{{\"id\":\"{id}\"}}"))
    }

    fn model_server(&self, _view: ModelServerView) -> Result<String, String> {
        Err("there is none".to_owned())
    }
}

/// A running server with what it needs.
struct Daemon {
    server: Option<Server>,
    app: Arc<App>,
    port: u16,
    token: Token,
    shutdowns: Receiver<()>,
    /// What [`NoOperations`] reports.
    unawaited: Receiver<()>,
    directory: PathBuf,
}

impl Daemon {
    fn start() -> Daemon {
        Daemon::start_with(Deadlines::default(), || {})
    }

    fn start_with(deadlines: Deadlines, activity: impl Fn() + Send + Sync + 'static) -> Daemon {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("opta-server-{}-{count}", process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let rotation = Rotation { bytes: crate::limits::LOG_BYTES_DEFAULT, files: 1 };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let token = Token::generate().unwrap();
        let (shutdown, shutdowns) = channel();
        let (ended, unawaited) = channel();
        let log = Log::open(&directory, rotation, Level::Debug).unwrap();
        let store = Store::new(directory.join("sessions"));
        let app = App {
            sessions: Runtime::new(store, "daemon_12345678", log.clone(), Box::new(NoAgent)),
            operations: Box::new(NoOperations(ended)),
            streams: Arc::default(),
            token: token.clone(),
            daemon_id: "daemon_12345678".into(),
            port,
            started: sys::boot_clock(),
            log,
            deadlines,
            on_shutdown: Box::new(move || shutdown.send(()).unwrap()),
            on_activity: Box::new(activity),
        };
        let app = Arc::new(app);
        Daemon {
            server: Some(Server::start(listener, Arc::clone(&app)).unwrap()),
            app,
            port,
            token,
            shutdowns,
            unawaited,
            directory,
        }
    }

    fn connect(&self) -> Client {
        Client::connect(self.port)
    }

    /// Sends one request on a new connection and returns the reply.
    fn ask(&self, request: &str) -> TestReply {
        let mut client = self.connect();
        client.send(request);
        client.reply()
    }

    fn is_healthy(&self) -> bool {
        self.ask(HEALTH).status == 200
    }

    /// Returns a request with the token, and with a body unless that is empty.
    fn request(&self, method: &str, path: &str, body: &str) -> String {
        let token = self.token.secret();
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n", self.port);
        text += &format!("Authorization: Bearer {token}\r\n");
        if !body.is_empty() {
            text += &format!("Content-Length: {}\r\n", body.len());
            text += "Content-Type: application/json\r\n";
        }
        text + "\r\n" + body
    }

    /// Stops accepting. The channel receives a message after the last connection ended.
    fn stop(&mut self) -> (Stopping, Receiver<()>) {
        let (sender, all_ended) = channel();
        let stopping = self.server.take().unwrap().stop(move || sender.send(()).unwrap());
        (stopping, all_ended)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            drop(server.stop(|| {}));
        }
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

#[derive(Debug)]
struct TestReply {
    status: u16,
    head: String,
    body: String,
}

impl TestReply {
    fn header(&self, name: &str) -> Option<&str> {
        let line = |line: &&str| line.split_once(": ").is_some_and(|(field, _)| field == name);
        Some(self.head.lines().find(line)?.split_once(": ")?.1)
    }

    fn closes(&self) -> bool {
        self.header("Connection") == Some("close")
    }
}

impl Client {
    fn connect(port: u16) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Client { stream, unread: Vec::new() }
    }

    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn reply(&mut self) -> TestReply {
        self.try_reply().unwrap()
    }

    /// Reads the next reply; fails if the connection ends.
    fn try_reply(&mut self) -> io::Result<TestReply> {
        loop {
            if let Some(end) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8(self.unread[..end].to_vec()).unwrap();
                let mut reply =
                    TestReply { status: head[9..12].parse().unwrap(), head, body: String::new() };
                let length = reply.header("Content-Length").map_or(0, |n| n.parse().unwrap());
                if self.unread.len() >= end + 4 + length {
                    let all: Vec<u8> = self.unread.drain(..end + 4 + length).collect();
                    reply.body = String::from_utf8(all[end + 4..].to_vec()).unwrap();
                    return Ok(reply);
                }
            }
            let mut chunk = [0; 64 * 1024];
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.unread.extend(&chunk[..count]),
            }
        }
    }

    /// Waits for more from the server; `true` if it ended the connection instead.
    fn is_ended(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(count) => count == 0 && self.unread.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// Returns whether the server sends nothing and keeps the connection open for this time.
    fn is_silent_for(&mut self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let kind = self.stream.read(&mut [0; 1]).err().map(|error| error.kind());
        self.stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        matches!(kind, Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }

    fn finish_sending(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

/// Runs the test `name` in a new process that may have this many descriptors; returns `true` in
/// that process. Threads, descriptors and memory can be counted only where no other test runs.
fn is_alone(name: &str, descriptors: u32) -> bool {
    const MARK: &str = "OPTA_TEST_ALONE";
    #[expect(clippy::disallowed_methods, reason = "no setting of the program")]
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("server::tests::{name}"), "--nocapture"])
        .env(MARK, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let ran = text.contains("1 passed");
    assert!(ran && output.status.success(), "{text}{}", {
        String::from_utf8_lossy(&output.stderr)
    });
    false
}

/// What a server uses of the system.
#[derive(Debug, PartialEq, Eq)]
struct Resources {
    threads: Option<u64>,
    descriptors: usize,
}

impl Resources {
    fn count() -> Resources {
        Resources {
            threads: std::fs::read_dir("/proc/self/task").ok().map(|tasks| tasks.count() as u64),
            descriptors: std::fs::read_dir("/dev/fd").unwrap().count(),
        }
    }

    /// Waits until no more than this is used, except for the spare threads of a server.
    fn wait_until_released(&self) {
        self.wait_until_released_but(SPARE_THREADS_MAX as u64);
    }

    /// The same, except for this many threads. There is no event to wait for: a thread ends shortly
    /// after its last statement.
    fn wait_until_released_but(&self, spare: u64) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let now = Resources::count();
            let threads = self.threads.map(|threads| threads + spare);
            if now.descriptors == self.descriptors && now.threads <= threads {
                return;
            }
            assert!(Instant::now() < deadline, "{now:?} instead of {self:?}");
            thread::yield_now();
        }
    }
}
