//! A minimal client of the daemon's API: one connection per request, and streams of events.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use crate::support::{DEADLINE, Home};

/// A daemon's address and its token.
#[derive(Clone, Debug)]
pub struct Api {
    pub port: u16,
    pub token: String,
}

/// A response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    /// Returns the first value of a field at any level: a number, or a string without its quotes.
    pub fn field(&self, name: &str) -> &str {
        field(&self.body, name).unwrap_or_else(|| panic!("there is no {name} in {}", self.body))
    }

    pub fn number(&self, name: &str) -> u64 {
        self.field(name).parse().unwrap()
    }

    /// Returns the events in the response to a poll.
    pub fn events(&self) -> Vec<Event> {
        let (list, _) = self.body.rsplit_once("],\"lastSeq\":").unwrap();
        let envelopes = list.split("{\"v\":\"3\",").skip(1);
        envelopes.map(|envelope| Event::read(envelope.trim_end_matches(','))).collect()
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Reply {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }
}

/// Returns the text after `"name":`, without quotes if it is a string.
pub fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let rest = text.split_once(&format!("\"{name}\":"))?.1;
    match rest.strip_prefix('"') {
        Some(rest) => Some(rest.split_once('"')?.0),
        None => rest.split([',', '}', ']']).next(),
    }
}

/// An event, as far as tests check it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub seq: u64,
    pub name: String,
    /// Empty if it is not about a turn.
    pub turn_id: String,
    pub text: String,
}

impl Event {
    /// Reads an envelope, or a record of a journal.
    pub fn read(text: &str) -> Event {
        let text = text.trim_start_matches("{\"v\":\"3\",");
        let payload = text.split_once("\"payload\":").map_or("", |(_, rest)| rest);
        Event {
            seq: field(text, "seq").unwrap().parse().unwrap(),
            name: field(text, "event").unwrap().to_owned(),
            turn_id: field(payload, "turnId").unwrap_or_default().to_owned(),
            text: text.to_owned(),
        }
    }
}

impl Api {
    /// Returns the client of the daemon in `home`.
    pub fn of(home: &Home) -> Api {
        let info = home.daemon_info();
        Api { port: info.port(), token: info.token().to_owned() }
    }

    /// Sends a request without reading the response; `None` if there is no daemon.
    pub fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Option<TcpStream> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let mut stream = TcpStream::connect_timeout(&address, DEADLINE).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let (port, token) = (self.port, &self.token);
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\
             Authorization: Bearer {token}\r\n{headers}"
        );
        if !body.is_empty() && !headers.contains("Content-Type") {
            request += "Content-Type: application/json\r\n";
        }
        request += &format!("Content-Length: {}\r\n\r\n", body.len());
        let sent = stream.write_all(&[request.as_bytes(), body].concat());
        // A daemon that refuses before the body may have closed already: the response is there.
        drop(sent);
        Some(stream)
    }

    /// Returns the response to a request; `None` if the daemon ended before it was complete.
    pub fn try_ask(&self, method: &str, path: &str, body: &str) -> Option<Reply> {
        answer(self.send(method, path, "", body.as_bytes())?)
    }

    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Reply {
        self.try_ask(method, path, body).unwrap_or_else(|| panic!("no answer: {method} {path}"))
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, "")
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: &str) -> Reply {
        self.ask("POST", path, body)
    }

    /// Creates a session with this id.
    #[track_caller]
    pub fn create(&self, id: &str) -> Reply {
        self.post("/v3/sessions", &format!(r#"{{"sessionId":"{id}"}}"#)).expect(201)
    }

    /// Submits a turn with this id.
    #[track_caller]
    pub fn submit(&self, session: &str, turn: &str) -> Reply {
        let body = format!(r#"{{"turnId":"{turn}","content":"says {turn}"}}"#);
        self.post(&format!("/v3/sessions/{session}/turns"), &body)
    }

    /// Returns all events after this number.
    #[track_caller]
    pub fn events(&self, session: &str, after: u64) -> Vec<Event> {
        let (mut events, mut after) = (Vec::new(), after);
        loop {
            let reply = self.get(&format!("/v3/sessions/{session}/events?afterSeq={after}"));
            let more = reply.expect(200).events();
            let Some(last) = more.last() else {
                return events;
            };
            after = last.seq;
            events.extend(more);
        }
    }

    /// Waits for an event of this name and turn; returns all events up to it.
    #[track_caller]
    pub fn wait_for(&self, session: &str, name: &str, turn: &str) -> Vec<Event> {
        let (mut events, mut after): (Vec<Event>, u64) = (Vec::new(), 0);
        loop {
            let path = format!("/v3/sessions/{session}/events?afterSeq={after}&timeout=20000");
            let more = self.get(&path).expect(200).events();
            assert!(!more.is_empty(), "there is no {name} of {turn} in {events:?}");
            after = more.last().unwrap().seq;
            events.extend(more);
            if events.iter().any(|event| event.name == name && event.turn_id == turn) {
                return events;
            }
        }
    }

    /// Follows a session; `None` if there is no daemon.
    pub fn follow(&self, session: &str, after: u64, headers: &str) -> Option<Stream> {
        let path = format!("/v3/sse/events?sessionId={session}&afterSeq={after}");
        Stream::read(self.send("GET", &path, headers, b"")?)
    }
}

/// Reads a response to its end.
pub fn answer(mut stream: TcpStream) -> Option<Reply> {
    let mut bytes = Vec::new();
    // A reset after a whole response does no harm.
    drop(stream.read_to_end(&mut bytes));
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length: Option<usize> =
        head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
    let status = head.split(' ').nth(1)?.parse().ok()?;
    // That of what the client has already (RFC 9110, 8.6).
    if status != 304 && length.is_some_and(|length| length > body.len()) {
        return None;
    }
    Some(Reply { status, head: head.to_owned(), body: body.to_owned() })
}

/// What a stream delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    Event(Event),
    /// The message with which a daemon that stops, or a session that is deleted, ends its streams.
    StreamEnd,
    /// The connection was closed.
    Closed,
}

/// A stream of events, read by its own thread.
pub struct Stream {
    pub socket: TcpStream,
    pub head: String,
    deliveries: Receiver<Delivery>,
}

impl Stream {
    fn read(socket: TcpStream) -> Option<Stream> {
        let mut lines = BufReader::new(socket.try_clone().unwrap());
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if lines.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let (sender, deliveries) = channel();
        let reading = move || {
            let (mut id, mut kind) = (None, String::new());
            // A line that is cut off does not count.
            while let Some(line) = line(&mut lines) {
                if let Some(value) = line.strip_prefix("id: ") {
                    id = value.parse::<u64>().ok();
                } else if let Some(value) = line.strip_prefix("event: ") {
                    value.clone_into(&mut kind);
                } else if line.strip_prefix("data: ").is_some() && kind == "stream.end" {
                    drop(sender.send(Delivery::StreamEnd));
                } else if let Some(data) = line.strip_prefix("data: ") {
                    let event = Event::read(data);
                    assert_eq!(id.take(), Some(event.seq));
                    drop(sender.send(Delivery::Event(event)));
                }
            }
            drop(sender.send(Delivery::Closed));
        };
        drop(thread::Builder::new().name("read a stream".into()).spawn(reading).unwrap());
        Some(Stream { socket, head, deliveries })
    }

    /// Waits for the next delivery.
    #[track_caller]
    pub fn next(&self) -> Delivery {
        self.deliveries.recv_timeout(DEADLINE).expect("nothing was delivered")
    }

    /// Waits for the next event.
    #[track_caller]
    pub fn event(&self) -> Event {
        match self.next() {
            Delivery::Event(event) => event,
            other => panic!("not an event: {other:?}"),
        }
    }
}

fn line(lines: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    lines.read_line(&mut line).ok()?;
    line.strip_suffix('\n').map(str::to_owned)
}
