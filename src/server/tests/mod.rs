//! The server on real sockets: every limit at the limit and one past it, every attack that is known
//! to have worked on something else.
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
use std::sync::mpsc::{Receiver, channel};
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

use super::{App, Deadlines, Server, Stopping};

/// No answer takes this long on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);

const HEALTH: &str = "GET /v3/health HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Answers no turn: the server does not mind.
struct Nobody;

impl Agent for Nobody {
    fn run(&self, _turn: &Turn<'_>) -> Result<TurnStats, Fault> {
        Err(Fault { code: "model-unreachable", message: "there is no model".to_owned() })
    }
}

/// A running server, with everything that it needs around it.
struct Daemon {
    server: Option<Server>,
    port: u16,
    token: Token,
    shutdowns: Receiver<()>,
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
        let log = Log::open(&directory, rotation, Level::Debug).unwrap();
        let store = Store::new(directory.join("sessions"));
        let app = App {
            sessions: Runtime::new(store, "daemon_12345678", log.clone(), Box::new(Nobody)),
            streams: Arc::default(),
            token: token.clone(),
            daemon_id: "daemon_12345678".into(),
            port,
            started: sys::boot_clock(),
            log,
            on_shutdown: Box::new(move || shutdown.send(()).unwrap()),
            on_activity: Box::new(activity),
        };
        Daemon {
            server: Some(Server::start_with(listener, Arc::new(app), deadlines).unwrap()),
            port,
            token,
            shutdowns,
            directory,
        }
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream, unread: Vec::new() }
    }

    /// The answer to one request on a connection of its own.
    fn ask(&self, request: &str) -> Answer {
        let mut client = self.connect();
        client.send(request);
        client.answer()
    }

    fn is_healthy(&self) -> bool {
        self.ask(HEALTH).status == 200
    }

    /// A request with the token, and with a body if there is one.
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

    /// Stops accepting. The channel tells when the last connection has gone.
    fn stop(&mut self) -> (Stopping, Receiver<()>) {
        let (gone, all_gone) = channel();
        let stopping = self.server.take().unwrap().stop(move || gone.send(()).unwrap());
        (stopping, all_gone)
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
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let line = |line: &&str| line.split_once(": ").is_some_and(|(field, _)| field == name);
        Some(self.head.lines().find(line)?.split_once(": ")?.1)
    }

    fn closes(&self) -> bool {
        self.header("Connection") == Some("close")
    }
}

impl Client {
    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn answer(&mut self) -> Answer {
        self.try_answer().unwrap()
    }

    /// The next answer, or how the connection ended.
    fn try_answer(&mut self) -> io::Result<Answer> {
        loop {
            if let Some(end) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8(self.unread[..end].to_vec()).unwrap();
                let mut answer =
                    Answer { status: head[9..12].parse().unwrap(), head, body: String::new() };
                let length = answer.header("Content-Length").map_or(0, |n| n.parse().unwrap());
                if self.unread.len() >= end + 4 + length {
                    let all: Vec<u8> = self.unread.drain(..end + 4 + length).collect();
                    answer.body = String::from_utf8(all[end + 4..].to_vec()).unwrap();
                    return Ok(answer);
                }
            }
            let mut chunk = [0; 64 * 1024];
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.unread.extend(&chunk[..count]),
            }
        }
    }

    /// Whether the server has ended the connection and said nothing more. Waits for it.
    fn is_ended(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(count) => count == 0 && self.unread.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// Whether the server stays silent, and the connection open, for `span`.
    fn is_silent_for(&mut self, span: Duration) -> bool {
        self.stream.set_read_timeout(Some(span)).unwrap();
        let kind = self.stream.read(&mut [0; 1]).err().map(|error| error.kind());
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        matches!(kind, Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }

    fn finish_sending(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

/// Runs the test `name` again in a process of its own that may have so many descriptors; `true` in
/// that process. Threads, descriptors and memory can only be counted where no other test runs.
fn alone(name: &str, descriptors: u32) -> bool {
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

/// What must come back to where it was.
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

    /// Waits until everything is as it was, but for the threads that a server keeps.
    fn come_back(&self) {
        self.come_back_with(SPARE_THREADS_MAX as u64);
    }

    /// Waits until everything is as it was, but for so many threads. There is no event to wait for:
    /// a thread ends a little after the last that it can tell.
    fn come_back_with(&self, spare: u64) {
        let deadline = Instant::now() + PATIENCE;
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
