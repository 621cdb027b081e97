//! One connection for one request, with an end to every wait.
//!
//! Whoever has given a descriptor to wake it by is obeyed at once: the call fails, and dropping the
//! link closes the connection.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::limits;
use crate::sys::{self, Interest};

use super::{Asking, Head, Incoming};

/// A connection to a server.
///
/// Every call fails with `Interrupted` once `wake` can be read, and with `TimedOut` when its limit
/// is over.
pub struct Link<'w> {
    socket: TcpStream,
    wake: Option<BorrowedFd<'w>>,
    incoming: Incoming,
}

impl<'w> Link<'w> {
    /// Connects to the first of `addresses` that can be reached, each within `limit`.
    pub fn connect(
        addresses: &[SocketAddr],
        limit: Duration,
        wake: Option<BorrowedFd<'w>>,
    ) -> io::Result<Link<'w>> {
        let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match connect_to(address, limit, wake) {
                Ok(socket) => return Ok(Link { socket, wake, incoming: Incoming::new() }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Sends the request, with at most `limit` between two steps forward. A server may answer
    /// before it has read everything; then the rest is not sent.
    pub fn send(&mut self, asking: &Asking<'_>, limit: Duration) -> io::Result<()> {
        let text = asking.text()?;
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match self.socket.write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(&self.socket, Interest::Either, limit, self.wake)?;
                    if self.receive()? {
                        return Ok(());
                    }
                }
                // It has closed its end. What it said before that counts.
                Err(error) => {
                    return if matches!(self.receive(), Ok(true)) { Ok(()) } else { Err(error) };
                }
            }
        }
        Ok(())
    }

    /// Waits for the head of the answer.
    pub fn head(&mut self, limit: Duration) -> io::Result<Head> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(head) = self.incoming.head() {
                return Ok(head.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            wait(&self.socket, Interest::Read, left, self.wake)?;
            self.receive()?;
        }
    }

    /// Waits for more of the body; `None` at its end.
    pub fn body(&mut self, limit: Duration) -> io::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + limit;
        loop {
            let bytes = self.incoming.take_body();
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
            if self.incoming.is_whole() {
                return Ok(None);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            wait(&self.socket, Interest::Read, left, self.wake)?;
            self.receive()?;
        }
    }

    /// Whether a byte of the answer has arrived.
    pub fn is_answering(&self) -> bool {
        self.incoming.is_begun()
    }

    /// Takes in what has arrived; `false` if nothing has.
    fn receive(&mut self) -> io::Result<bool> {
        let mut bytes = [0_u8; 16 * 1024];
        match self.socket.read(&mut bytes) {
            Ok(0) => self.incoming.end()?,
            Ok(count) => self.incoming.feed(bytes.get(..count).unwrap_or_default())?,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(false),
                    _ => Err(error),
                };
            }
        }
        Ok(true)
    }
}

fn connect_to(
    address: &SocketAddr,
    limit: Duration,
    wake: Option<BorrowedFd<'_>>,
) -> io::Result<TcpStream> {
    let socket = sys::socket::connect(address)?;
    wait(&socket, Interest::Write, limit, wake)?;
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Waits for `file`, and fails if `wake` comes first.
fn wait(
    file: &impl AsFd,
    wish: Interest,
    limit: Duration,
    wake: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let file = (file.as_fd(), wish);
    let ready = match wake {
        Some(wake) => sys::wait_any(&[file, (wake, Interest::Read)], Some(limit))?,
        None => sys::wait_any(&[file], Some(limit))?,
    };
    match ready.as_slice() {
        [_, true] => Err(io::ErrorKind::Interrupted.into()),
        [true, ..] => Ok(()),
        _ => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The addresses of a host: a name, or an address with or without brackets.
///
/// `localhost` is this machine, whatever a resolver says. Any other name is looked up on a thread
/// of its own, because the system's resolver can be neither interrupted nor given a limit; a thread
/// that nobody waits for any more ends with its lookup.
pub fn addresses(
    host: &str,
    port: u16,
    limit: Duration,
    wake: Option<BorrowedFd<'_>>,
) -> io::Result<Vec<SocketAddr>> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        let here: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        return Ok(here.map(|address| SocketAddr::new(address, port)).to_vec());
    }
    let (done, ended) = UnixStream::pair()?;
    let (sender, found) = mpsc::channel();
    let host = host.to_owned();
    thread::Builder::new().name("resolve".to_owned()).spawn(move || {
        let looked_up = (host.as_str(), port).to_socket_addrs();
        let first = |all: std::vec::IntoIter<SocketAddr>| all.take(limits::ADDRESSES_MAX).collect();
        // Nobody may wait for it any more.
        drop(sender.send(looked_up.map(first)));
        drop(done);
    })?;
    wait(&ended, Interest::Read, limit, wake)?;
    found.try_recv().unwrap_or_else(|_gone| Err(io::ErrorKind::NotFound.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Reply, Request, call};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    const LONG: Duration = Duration::from_secs(10);

    /// A server for one connection, which it gets when the head of the request is there.
    fn serve<T: Send + 'static>(
        then: impl FnOnce(TcpStream) -> T + Send + 'static,
    ) -> (SocketAddr, JoinHandle<T>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = thread::Builder::new().spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") {
                socket.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            then(socket)
        });
        (address, serving.unwrap())
    }

    fn asked(answer: String, bytes_max: usize) -> io::Result<Reply> {
        let (address, serving) = serve(move |mut socket| {
            // Whoever does not like the head may have gone.
            drop(socket.write_all(answer.as_bytes()));
        });
        let request = Request { method: "GET", target: "/v3/health", token: "t", body: "" };
        let reply = call(address.port(), &request, LONG, bytes_max);
        serving.join().unwrap();
        reply
    }

    fn posting(body: &str) -> Asking<'_> {
        Asking {
            method: "POST",
            authority: "h",
            target: "/",
            bearer: None,
            accept: "text/plain",
            body,
        }
    }

    #[test]
    fn a_call_takes_a_whole_answer_of_a_length_within_its_limit() {
        let with = |length: usize, body: &str| {
            asked(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"), 100)
        };
        assert_eq!(with(100, &"x".repeat(100)).unwrap().body.len(), 100);
        let kind = |reply: io::Result<Reply>| reply.err().map(|error| error.kind());
        let invalid = Some(io::ErrorKind::InvalidData);
        assert_eq!(kind(with(101, &"x".repeat(101))), invalid);
        assert_eq!(kind(with(3, "ok")), Some(io::ErrorKind::UnexpectedEof));
        assert_eq!(kind(asked("HTTP/1.1 200 OK\r\n\r\nok".to_owned(), 100)), invalid);
        assert_eq!(asked("HTTP/1.1 204 No\r\n\r\n".to_owned(), 0).unwrap().status, 204);
    }

    #[test]
    fn an_answer_counts_although_the_request_was_not_read() {
        let (go, word) = mpsc::channel::<()>();
        let (address, serving) = serve(move |mut socket| {
            socket.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").unwrap();
            word.recv().unwrap();
        });
        let body = "x".repeat(32 << 20);
        let mut link = Link::connect(&[address], LONG, None).unwrap();
        link.send(&posting(&body), LONG).unwrap();
        assert_eq!(link.head(LONG).unwrap().status, 413);
        assert_eq!(link.body(LONG).unwrap(), Some(b"no".to_vec()));
        assert_eq!(link.body(LONG).unwrap(), None);
        go.send(()).unwrap();
        serving.join().unwrap();
    }

    #[test]
    fn every_wait_ends_when_it_is_woken_and_when_its_time_is_over() {
        let short = Duration::from_millis(20);
        for text in ["", "HTTP/1.1 200 OK\r\n\r\n"] {
            let (go, word) = mpsc::channel::<()>();
            let (address, serving) = serve(move |mut socket| {
                socket.write_all(text.as_bytes()).unwrap();
                assert!(word.recv().is_err());
            });
            let (wake, waker) = UnixStream::pair().unwrap();
            let mut link = Link::connect(&[address], LONG, Some(wake.as_fd())).unwrap();
            link.send(&posting(""), LONG).unwrap();
            let mut wait = |limit: Duration| -> io::ErrorKind {
                let waited = link.head(limit).and_then(|_| link.body(limit));
                waited.err().unwrap().kind()
            };
            assert_eq!(wait(short), io::ErrorKind::TimedOut);
            drop(waker);
            assert_eq!(wait(LONG), io::ErrorKind::Interrupted);
            let connected = Link::connect(&[address], LONG, Some(wake.as_fd()));
            assert_eq!(connected.err().unwrap().kind(), io::ErrorKind::Interrupted);
            drop(go);
            serving.join().unwrap();
        }
    }

    #[test]
    fn a_request_that_is_not_taken_ends_too() {
        let (go, word) = mpsc::channel::<()>();
        let (address, serving) = serve(move |_socket| assert!(word.recv().is_err()));
        let body = "x".repeat(32 << 20);
        let mut link = Link::connect(&[address], LONG, None).unwrap();
        let sent = link.send(&posting(&body), Duration::from_millis(50));
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(go);
        serving.join().unwrap();
    }

    #[test]
    fn the_next_address_is_tried() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        assert!(Link::connect(&[closed, open], LONG, None).is_ok());
        let refused = Link::connect(&[closed], LONG, None).err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(Link::connect(&[], LONG, None).is_err());
    }

    #[test]
    fn addresses_need_no_resolver_and_names_do_not_hold_anybody_up() {
        let found = |host: &str| addresses(host, 7, LONG, None).unwrap();
        assert_eq!(found("127.0.0.1"), ["127.0.0.1:7".parse().unwrap()]);
        assert_eq!(found("[::1]"), ["[::1]:7".parse().unwrap()]);
        let here: [SocketAddr; 2] = ["127.0.0.1:7".parse().unwrap(), "[::1]:7".parse().unwrap()];
        assert_eq!(found("LOCALHOST"), here);
        let begun = Instant::now();
        let (wake, waker) = UnixStream::pair().unwrap();
        drop(waker);
        let name = "no.such.host.invalid";
        let woken = addresses(name, 7, LONG, Some(wake.as_fd())).unwrap_err();
        assert_eq!(woken.kind(), io::ErrorKind::Interrupted);
        assert!(addresses(name, 7, Duration::from_millis(50), None).is_err());
        assert!(begun.elapsed() < LONG / 2);
    }
}
