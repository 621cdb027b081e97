//! Model servers over `https://`: a model behind TLS on this machine, with certificates of a CA
//! that only these tests trust.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::model::{Model, Question};
use crate::support::{ANYTHING, DEADLINE, Home, Run, eventually, has_ended, line_of, need, signal};
use crate::task::task;

/// A server with TLS that relays the bytes of each connection to another server.
const RELAY: &str = r#"
import select, socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
open(sys.argv[3], "w").write("%d\n" % listener.getsockname()[1])
def pump(tls, plain):
    while True:
        for source in [tls] if tls.pending() else select.select([tls, plain], [], [])[0]:
            data = source.recv(65536)
            if not data:
                return
            (plain if source is tls else tls).sendall(data)
def relay(raw):
    try:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(raw, server_side=True) as tls:
            with socket.create_connection(("127.0.0.1", int(sys.argv[2]))) as plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pump(tls, plain)
    except OSError:
        pass
while True:
    threading.Thread(target=relay, args=(listener.accept()[0],), daemon=True).start()
"#;

/// Returns where a certificate is. `ca.pem` is valid until 2126; `server.pem`, for localhost and
/// model.test, until 2120; `other.pem` is for other.test; `expired.pem`, for localhost, was valid
/// on one day of 2020. The key of the CA was thrown away.
fn certificate(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls").join(name)
}

/// A relay in front of a model. Dropping it ends it.
struct Relay {
    process: Child,
    port: u16,
}

impl Relay {
    fn new(home: &Home, model: &Model) -> Relay {
        Relay::with(home, model, "server.pem")
    }

    /// Starts a relay with this certificate.
    fn with(home: &Home, model: &Model, name: &str) -> Relay {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let pipe = home.beside(&format!("relay {number}"));
        crate::support::fifo(&pipe);
        let model_port = model.url().rsplit_once(':').unwrap().1.to_owned();
        let mut python = Command::new("python3");
        python.args(["-c", RELAY]).arg(certificate(name)).arg(model_port).arg(&pipe);
        let process = python.stdin(Stdio::null()).spawn().unwrap();
        let port = line_of(&pipe).parse().unwrap();
        Relay { process, port }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/v1", self.port)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Trusts the CA of the tests, and sets the other members of `connection` in this JSON.
fn trust(home: &Home, members: &str) {
    let ca = certificate("ca.pem");
    let connection = format!(r#"{{"caFile":"{}"{members}}}"#, ca.display());
    home.write(&home.config(), format!(r#"{{"connection":{connection}}}"#));
}

/// Returns a run of a task by the model at this URL.
fn ask<'h>(home: &'h Home, url: &str, words: &str) -> Run<'h> {
    let run = home.opta(&format!("do -q {words}")).env("OPTA_MODEL_URL", url);
    run.env("OPTA_API_KEY", KEY).env("OPTA_MODEL", "large")
}

const KEY: &str = "s3cret-key";

/// Returns the processes in which the daemon of this home runs curl.
fn curls(home: &Home) -> Vec<i32> {
    let daemon = home.owner().unwrap_or(-1);
    children(daemon)
}

fn children(parent: i32) -> Vec<i32> {
    let listed = fs::read_dir("/proc").unwrap();
    let pids = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields.to_owned());
        let fields = fields.unwrap_or_default();
        stat.contains("(curl)") && fields.split(' ').nth(1) == Some(&parent.to_string())
    };
    pids.filter(|pid| is_child(pid) && !has_ended(*pid)).collect()
}

#[test]
fn a_hosted_model_answers_and_its_key_is_in_no_argument_or_variable() {
    need!("python3", "curl", "/proc");
    let (home, model) = (Home::new(), Model::new());
    let relay = Relay::new(&home, &model);
    trust(&home, "");
    let running = ask(&home, &relay.url(), "hi").stdout("hello there\n").spawn();
    let mut question = model.question();
    assert!(question.head.contains(&format!("Authorization: Bearer {KEY}\r\n")));
    assert!(question.head.contains(&format!("\r\nHost: localhost:{}\r\n", relay.port)));
    assert!(!question.head.contains("Expect"), "{}", question.head);
    let [curl] = curls(&home)[..] else { panic!("{:?}", curls(&home)) };
    let of_curl = |name: &str| fs::read(format!("/proc/{curl}/{name}")).unwrap();
    assert!(of_curl("cmdline").ends_with(b"curl\0-q\0--config\0-\0"));
    assert_eq!(of_curl("environ"), b"");
    for pid in home.processes() {
        let daemon = [of_curl("cmdline"), fs::read(format!("/proc/{pid}/cmdline")).unwrap()];
        assert!(!String::from_utf8_lossy(&daemon.concat()).contains(KEY));
    }
    let variables = fs::read(format!("/proc/{}/environ", home.owner().unwrap())).unwrap();
    let variables = String::from_utf8_lossy(&variables);
    assert!(variables.contains("HOME=") && !variables.contains(KEY));
    // Each piece is shown when it arrives.
    question.say("hello");
    eventually("the first word is shown", || running.output() == "hello");
    question.answer(" there");
    running.finish();
    eventually("curl has ended", || has_ended(curl));
}

#[test]
fn a_certificate_is_checked_against_the_name_the_date_and_the_trusted_cas() {
    need!("python3", "curl");
    let (home, model) = (Home::new(), Model::new());
    let begin = "opta: cannot finish the turn: no secure connection to the model server at {url} \
        (from OPTA_MODEL_URL): ";
    let expect = |name: &str, why: &str, hint: &str| {
        let relay = Relay::with(&home, &model, name);
        let stderr = format!("{begin}{{*}}{why}{{*}}{hint} (model-config)\n");
        ask(&home, &relay.url(), "hi").status(1).stderr(&stderr).run();
    };
    trust(&home, "");
    expect("other.pem", "localhost", "");
    expect("expired.pem", "expired", "");
    home.write(&home.config(), "{}");
    expect("server.pem", "certificate", "name that CA's certificate in connection.caFile");
    model.assert_not_asked();
    let (url, stderr) = (plain_server(), format!("{begin}{{*}} (model-config)\n"));
    ask(&home, &url, "hi").status(1).stderr(&stderr).run();
    let relay = Relay::new(&home, &model);
    home.write(&home.config(), r#"{"connection":{"caFile":"/no such file"}}"#);
    let stderr = format!("{begin}{{*}}/no such file (model-config)\n");
    ask(&home, &relay.url(), "hi").status(1).stderr(&stderr).run();
    home.write(&home.config(), r#"{"connection":{"caFile":"ca.pem"}}"#);
    let needed = "opta: cannot use the settings: {file}: connection.caFile: an absolute path is \
        needed, not 'ca.pem'\n{*}";
    ask(&home, "https://localhost:1", "hi").status(1).stderr(needed).run();
}

/// Starts a server without TLS; returns a URL for it that is wrong.
fn plain_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = move || {
        let (mut client, _) = listener.accept().unwrap();
        assert_ne!(client.read(&mut [0; 1024]).unwrap(), 0);
        client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").unwrap();
    };
    drop(thread::Builder::new().name("plain server".into()).spawn(serving).unwrap());
    format!("https://127.0.0.1:{port}")
}

#[test]
fn the_certificates_of_the_callers_environment_are_trusted() {
    need!("python3", "curl");
    let (home, model) = (Home::new(), Model::new());
    let relay = Relay::new(&home, &model);
    let running = ask(&home, &relay.url(), "hi").env("SSL_CERT_FILE", certificate("ca.pem"));
    let running = running.stdout("hello\n").spawn();
    model.question().answer("hello");
    running.finish();
}

#[test]
fn a_server_that_cannot_be_reached_or_found_is_named_with_the_reason() {
    need!("curl");
    let home = Home::new();
    for (url, why) in [
        ("https://127.0.0.1:1", "connect"),
        ("https://no-such-host.invalid/v1", "no-such-host.invalid"),
    ] {
        let stderr = format!(
            "opta: cannot finish the turn: cannot reach the model server at {{url}} (from \
             OPTA_MODEL_URL): {{*}}{why}{{*}} (model-unreachable)\n"
        );
        ask(&home, url, "hi").status(1).stderr(&stderr).run();
    }
}

#[test]
fn without_curl_the_error_says_that_it_is_needed() {
    let home = Home::new();
    let stderr = "opta: cannot finish the turn: the model server at https://x.test/v1 (from \
        OPTA_MODEL_URL) cannot be used: https:// needs curl, and there is none in PATH; install it \
        with the package manager of the system (model-config)\n";
    let path = home.beside("no programs");
    ask(&home, "https://x.test", "hi").env("PATH", &path).status(1).stderr(stderr).run();
    let doctor = home.opta("doctor").env("OPTA_MODEL_URL", "https://x.test").env("PATH", &path);
    doctor.status(1).stdout("{*}fail  model {*}needs curl{*}fix: unset OPTA_MODEL_URL\n{*}").run();
}

#[test]
fn doctor_says_which_curl_is_used() {
    need!("python3", "curl");
    let (home, model) = (Home::new(), Model::new());
    let relay = Relay::new(&home, &model);
    trust(&home, "");
    let doctor = home.opta("doctor").env("OPTA_MODEL_URL", relay.url());
    let line =
        "{*}pass  model     scripted at {url} (OPTA_MODEL_URL) (curl {version}, {path})\n{*}";
    let seen = doctor.stdout(line).run();
    assert!(Path::new(seen.get("path")).is_file() && seen.get("version").contains('.'));
    let doctor = home.opta("doctor").env("OPTA_MODEL_URL", "https://localhost:1");
    doctor.status(1).stdout("{*}fail  model {*} (curl {version}, {path}); start it{*}").run();
}

#[test]
fn a_rejected_key_is_not_shown() {
    need!("python3", "curl");
    let home = Home::new();
    let rejection = format!("HTTP/1.1 401 No\r\nContent-Length: 21\r\n\r\nbad key: {KEY}\r\n");
    let model = Model::refusing(&[&rejection]);
    let relay = Relay::new(&home, &model);
    trust(&home, "");
    let stderr = "opta: cannot finish the turn: the model server at {url} (from OPTA_MODEL_URL) \
        rejects the key that is set: bad key: … (model-unauthorized)\n";
    ask(&home, &relay.url(), "hi").status(1).stderr(stderr).run();
}

/// The beginning of an answer whose chunk is longer than what follows.
const CUT: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
    Transfer-Encoding: chunked\r\n\r\n400\r\ndata: {\"choices\":[";

#[test]
fn an_answer_that_is_cut_in_a_chunk_is_requested_again() {
    need!("python3", "curl");
    let home = Home::new();
    let model = Model::refusing(&[CUT]);
    let relay = Relay::new(&home, &model);
    trust(&home, "");
    let stderr = "opta: the model server at {url} (from OPTA_MODEL_URL) stopped in the middle of \
        its answer: {why}\nopta: trying again in 1s\n";
    let running = task(&home, &model, "x").env("OPTA_MODEL_URL", relay.url()).stdout("hello\n");
    let running = running.stderr(stderr).spawn();
    model.question().answer("hello");
    running.finish();
}

#[test]
fn a_hosted_server_that_is_silent_fails_the_task_and_leaves_no_curl() {
    need!("python3", "curl", "/proc");
    let (home, model) = (Home::new(), Model::new());
    let relay = Relay::new(&home, &model);
    trust(&home, r#","silenceSeconds":2"#);
    let stderr =
        "opta: cannot finish the turn: {why} has been silent for too long (model-timeout)\n";
    let running = ask(&home, &relay.url(), "hi").stdout("half\n").stderr(stderr).status(1).spawn();
    let mut question = model.question();
    question.say("half");
    running.finish();
    question.assert_dropped();
    eventually("no curl is left", || curls(&home).is_empty());
}

#[test]
fn a_body_of_more_than_1_mib_is_sent_without_delay() {
    need!("python3", "curl");
    let (home, model) = (Home::new(), Model::new());
    let relay = Relay::new(&home, &model);
    trust(&home, "");
    let input = home.beside("long");
    // Before it sends so much, curl would ask whether the server wants it.
    let length = (1 << 20) + 1;
    home.write(&input, "x".repeat(length));
    let running = ask(&home, &relay.url(), "-").input(&input).stdout("hello\n").spawn();
    let question = model.question();
    assert!(question.body.len() > length && !question.head.contains("Expect"));
    question.answer("hello");
    running.finish();
}

#[test]
fn cancelling_ends_curl_within_100_ms() {
    need!("python3", "curl", "/proc");
    let (home, model) = (Home::new(), Model::new());
    let relay = Relay::new(&home, &model);
    trust(&home, "");
    // The machine may be busy with something else: one of these is not.
    let cancel = || {
        let running = ask(&home, &relay.url(), "hi").stdout(ANYTHING).stderr(ANYTHING).status(130);
        let running = running.spawn();
        let mut question = model.question();
        question.say("half");
        eventually("it is shown", || !running.output().is_empty());
        let [curl] = curls(&home)[..] else { panic!("{:?}", curls(&home)) };
        signal(running.pid(), "INT");
        let begun = Instant::now();
        eventually("curl has ended", || has_ended(curl));
        let took = begun.elapsed();
        running.finish();
        question.assert_dropped();
        took
    };
    let took: Vec<Duration> = (0..5).map(|_| cancel()).collect();
    assert!(took.iter().min().unwrap() < &Duration::from_millis(100), "{took:?}");
}

#[test]
fn a_daemon_that_is_killed_leaves_no_curl() {
    need!("python3", "curl", "/proc");
    let (home, model) = (Home::new(), Model::new());
    let relay = Relay::new(&home, &model);
    trust(&home, "");
    let running = ask(&home, &relay.url(), "hi").stdout(ANYTHING).stderr(ANYTHING);
    let running = running.status_in(&[0, 1]).spawn();
    let question = model.question();
    let [curl] = curls(&home)[..] else { panic!("{:?}", curls(&home)) };
    signal(home.owner().unwrap(), "KILL");
    eventually("curl has ended", || has_ended(curl));
    question.assert_dropped();
    running.finish();
}

#[test]
fn sixteen_hosted_turns_run_at_once() {
    need!("python3", "curl", "/proc");
    let (home, model) = (Home::new(), Model::new());
    let relay = Relay::new(&home, &model);
    trust(&home, "");
    home.start();
    let url = relay.url();
    let running: Vec<_> =
        (0..16).map(|_| ask(&home, &url, "hi").stdout("hello\n").spawn()).collect();
    let questions: Vec<Question> = running.iter().map(|_| model.question()).collect();
    assert_eq!(curls(&home).len(), 16);
    questions.into_iter().for_each(|question| question.answer("hello"));
    running.into_iter().for_each(|running| drop(running.finish()));
    eventually("every curl has ended", || curls(&home).is_empty());
}

/// A proxy that takes every host for this machine. It sends the heads of the requests.
struct Proxy {
    port: u16,
    heads: Receiver<String>,
}

impl Proxy {
    /// Starts a proxy that connects to this port, or else refuses with this response.
    fn new(accept: impl Fn(&str) -> Result<u16, &'static str> + Send + Sync + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, heads) = channel();
        let proxying = move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).unwrap() == 1 {
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap();
                let accepted = accept(&head);
                drop(sender.send(head));
                match accepted {
                    Ok(port) => tunnel(client, port),
                    Err(response) => client.write_all(response.as_bytes()).unwrap(),
                }
            }
        };
        drop(thread::Builder::new().name("proxy".into()).spawn(proxying).unwrap());
        Proxy { port, heads }
    }

    fn head(&self) -> String {
        self.heads.recv_timeout(DEADLINE).expect("the proxy gets no request")
    }
}

fn tunnel(mut client: TcpStream, port: u16) {
    let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n").unwrap();
    let ends = [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)];
    for (mut from, mut to) in ends {
        let copying = move || {
            drop(std::io::copy(&mut from, &mut to));
            drop(to.shutdown(Shutdown::Write));
        };
        drop(thread::Builder::new().name("tunnel".into()).spawn(copying).unwrap());
    }
}

#[test]
fn the_proxies_of_the_caller_and_of_the_settings_are_used() {
    need!("python3", "curl");
    let (home, model) = (Home::new(), Model::new());
    let relay = Relay::new(&home, &model);
    let port = relay.port;
    let proxy = Proxy::new(move |_head| Ok(port));
    let open = format!("http://127.0.0.1:{}", proxy.port);
    // me:s3cret
    let with_password = format!("http://me:s3cret@127.0.0.1:{}", proxy.port);
    let password = "\r\nProxy-Authorization: Basic bWU6czNjcmV0\r\n";
    let answered = |run: Run<'_>, has_password: bool| {
        let running = run.stdout("hello\n").spawn();
        let head = proxy.head();
        assert!(head.starts_with("CONNECT model.test:443 HTTP/1.1\r\n"), "{head}");
        assert_eq!(head.contains(password), has_password, "{head}");
        assert!(!head.contains(KEY), "{head}");
        let question = model.question();
        assert!(!question.head.contains("Proxy-"), "{}", question.head);
        question.answer("hello");
        running.finish();
    };
    trust(&home, "");
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        answered(ask(&home, "https://model.test", "hi").env(name, &open), false);
    }
    answered(ask(&home, "https://model.test", "hi").env("HTTPS_PROXY", &with_password), true);
    // No proxy for these.
    let direct = |run: Run<'_>| {
        let running = run.stdout("hello\n").spawn();
        model.question().answer("hello");
        running.finish();
    };
    direct(ask(&home, &relay.url(), "hi").env("HTTPS_PROXY", &open));
    let direct_only = ask(&home, "https://model.test", "hi").env("HTTPS_PROXY", &open);
    let unreachable = "{*}model.test{*} (model-unreachable)\n";
    direct_only.env("NO_PROXY", "x.test,model.test").status(1).stderr(unreachable).run();
    trust(&home, &format!(r#","proxy":"{with_password}""#));
    answered(ask(&home, "https://model.test", "hi").env("HTTPS_PROXY", "http://127.0.0.1:1"), true);
}

#[test]
fn a_proxy_that_refuses_is_an_error_without_its_password() {
    need!("python3", "curl");
    let home = Home::new();
    let refusal = "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\
        Content-Length: 2\r\n\r\nno";
    let proxy = Proxy::new(move |_head| Err(refusal));
    let stderr = "opta: cannot finish the turn: no secure connection to the model server at \
        https://model.test/v1 (from OPTA_MODEL_URL): {*}407{*} (model-config)\n";
    let url = format!("http://me:s3cret@127.0.0.1:{}", proxy.port);
    ask(&home, "https://model.test", "hi").env("HTTPS_PROXY", url).status(1).stderr(stderr).run();
    assert!(proxy.head().contains("Proxy-Authorization"));
    let odd = "what://me:s3cret@127.0.0.1:1";
    let run = ask(&home, "https://model.test", "hi").env("HTTPS_PROXY", odd).status(1);
    let seen = run.stderr(ANYTHING).run();
    assert!(seen.stderr.contains("(model-") && !seen.stderr.contains("s3cret"), "{}", seen.stderr);
}
