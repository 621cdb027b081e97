//! One connection for one request. Every wait has a deadline and can be interrupted.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::sys::socket::is_temporary;
use crate::sys::{self, Interest};

use super::curl::{Curl, Tls};
use super::message::{Request, ResponseHead, ResponseParser, invalid};
use super::wait::wait;

/// A connection to a server. Dropping it closes it.
///
/// Every call fails with `Interrupted` once `wake` is readable, and with `TimedOut` after its
/// limit. Only the end of curl is always waited for, if it takes no longer than
/// [`CURL_END_MAX`](crate::limits::CURL_END_MAX).
pub struct ClientConnection<'w> {
    transport: Transport<'w>,
    wake: Option<BorrowedFd<'w>>,
    response: ResponseParser,
}

/// What carries the request and the response.
enum Transport<'w> {
    Socket(TcpStream),
    /// A connection with TLS.
    Curl(Box<Curl<'w>>),
}

impl<'w> ClientConnection<'w> {
    /// Makes a connection to an `https://` server by means of curl, at this path, which connects
    /// when the request is sent.
    pub fn by_curl(
        program: &Path,
        tls: Tls<'w>,
        wake: Option<BorrowedFd<'w>>,
    ) -> io::Result<ClientConnection<'w>> {
        let transport = Transport::Curl(Box::new(Curl::start(program, tls)?));
        Ok(ClientConnection { transport, wake, response: ResponseParser::default() })
    }

    /// Connects to the first of `addresses` that can be reached, each within `limit`.
    pub fn connect(
        addresses: &[SocketAddr],
        limit: Duration,
        wake: Option<BorrowedFd<'w>>,
    ) -> io::Result<ClientConnection<'w>> {
        let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match connect_to(address, limit, wake) {
                Ok(socket) => {
                    let (transport, response) =
                        (Transport::Socket(socket), ResponseParser::default());
                    return Ok(ClientConnection { transport, wake, response });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Sends the request. `limit` is for each wait until the server reads more of it. A server may
    /// respond before it has read the whole request; then the rest is not sent.
    pub fn send(&mut self, request: &Request<'_>, limit: Duration) -> io::Result<()> {
        let socket = match &mut self.transport {
            Transport::Socket(socket) => socket,
            Transport::Curl(curl) => return curl.send(request, limit, self.wake),
        };
        let head = request.head()?;
        let [first, second, third] = request.body;
        let mut parts = [&head, first, second, third].map(|part| IoSlice::new(part.as_bytes()));
        let mut rest = parts.as_mut_slice();
        while !rest.is_empty() {
            match socket.write_vectored(rest) {
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(socket, Interest::Either, limit, self.wake)?;
                    if receive(socket, &mut self.response)? {
                        return Ok(());
                    }
                }
                // The server closed its end. What it sent before that counts.
                Err(error) => {
                    let received = receive(socket, &mut self.response);
                    return if matches!(received, Ok(true)) { Ok(()) } else { Err(error) };
                }
            }
        }
        Ok(())
    }

    /// Waits for the head of the response.
    pub fn head(&mut self, limit: Duration) -> io::Result<ResponseHead> {
        self.wait_for(limit, |response| response.head().cloned())
    }

    /// Waits for more of the body; returns `None` at its end.
    pub fn body(&mut self, limit: Duration) -> io::Result<Option<Vec<u8>>> {
        self.wait_for(limit, |response| match response.take_body() {
            bytes if !bytes.is_empty() => Some(Some(bytes)),
            _ => response.is_complete().then_some(None),
        })
    }

    /// Appends the rest of the body to `body`, up to `bytes_max` bytes, even if it fails before the
    /// end. `limit` is asked before each wait.
    ///
    /// # Errors
    /// `InvalidData` for a longer body.
    pub fn read_body(
        &mut self,
        body: &mut Vec<u8>,
        bytes_max: usize,
        limit: impl Fn() -> Duration,
    ) -> io::Result<()> {
        while let Some(bytes) = self.body(limit())? {
            body.extend_from_slice(&bytes);
            if body.len() > bytes_max {
                body.truncate(bytes_max);
                return Err(invalid("the response is too long"));
            }
        }
        Ok(())
    }

    /// Returns its socket, unless curl has it.
    pub fn socket(&self) -> Option<&TcpStream> {
        match &self.transport {
            Transport::Socket(socket) => Some(socket),
            Transport::Curl(_) => None,
        }
    }

    /// Returns what interrupts its waits.
    pub fn wake(&self) -> Option<BorrowedFd<'w>> {
        self.wake
    }

    /// Returns whether a byte of the response has arrived.
    pub fn is_responding(&self) -> bool {
        self.response.has_begun()
    }

    /// Takes the part of the body that has arrived; `None` at its end. Does not wait.
    pub fn receive_body(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.receive()?;
        let bytes = self.response.take_body();
        Ok((!bytes.is_empty() || !self.response.is_complete()).then_some(bytes))
    }

    fn wait_for<T>(
        &mut self,
        limit: Duration,
        take: impl Fn(&mut ResponseParser) -> Option<T>,
    ) -> io::Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = take(&mut self.response) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            wait(self, Interest::Read, left, self.wake)?;
            self.receive()?;
        }
    }

    /// Parses what has arrived.
    fn receive(&mut self) -> io::Result<()> {
        match &mut self.transport {
            Transport::Socket(socket) => receive(socket, &mut self.response).map(drop),
            Transport::Curl(curl) => receive(curl, &mut self.response).map(drop),
        }
    }
}

/// Parses what has arrived; returns `false` if nothing has.
fn receive(source: &mut impl Read, response: &mut ResponseParser) -> io::Result<bool> {
    let mut bytes = [0_u8; 16 * 1024];
    match source.read(&mut bytes) {
        Ok(0) => response.end()?,
        Ok(count) => response.feed(bytes.get(..count).unwrap_or_default())?,
        Err(error) if is_temporary(&error) => return Ok(false),
        Err(error) => return Err(error),
    }
    Ok(true)
}

impl AsFd for ClientConnection<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.transport {
            Transport::Socket(socket) => socket.as_fd(),
            Transport::Curl(curl) => curl.as_fd(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::thread;
    use std::thread::JoinHandle;

    const LONG: Duration = Duration::from_secs(10);

    /// Accepts one connection and calls `then` once the head of the request has arrived.
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

    fn request<'a>(method: &'static str, body: &'a str) -> Request<'a> {
        let authority = "h".to_owned();
        Request {
            method,
            authority,
            target: "/",
            bearer: None,
            accept: "text/plain",
            body: [body, "", ""],
        }
    }

    #[test]
    fn a_response_counts_although_the_request_was_not_read() {
        let (go, word) = mpsc::channel::<()>();
        let (address, serving) = serve(move |mut socket| {
            socket.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").unwrap();
            word.recv().unwrap();
        });
        let body = "x".repeat(32 << 20);
        let mut connection = ClientConnection::connect(&[address], LONG, None).unwrap();
        connection.send(&request("POST", &body), LONG).unwrap();
        assert_eq!(connection.head(LONG).unwrap().status, 413);
        assert_eq!(connection.body(LONG).unwrap(), Some(b"no".to_vec()));
        assert_eq!(connection.body(LONG).unwrap(), None);
        go.send(()).unwrap();
        serving.join().unwrap();
    }

    #[test]
    fn every_wait_ends_at_its_deadline_and_when_it_is_interrupted() {
        let short = Duration::from_millis(20);
        for text in ["", "HTTP/1.1 200 OK\r\n\r\n"] {
            let (go, word) = mpsc::channel::<()>();
            let (address, serving) = serve(move |mut socket| {
                socket.write_all(text.as_bytes()).unwrap();
                assert!(word.recv().is_err());
            });
            let (wake, waker) = UnixStream::pair().unwrap();
            let mut connection =
                ClientConnection::connect(&[address], LONG, Some(wake.as_fd())).unwrap();
            connection.send(&request("POST", ""), LONG).unwrap();
            let mut wait = |limit: Duration| -> io::ErrorKind {
                let waited = connection.head(limit).and_then(|_| connection.body(limit));
                waited.err().unwrap().kind()
            };
            assert_eq!(wait(short), io::ErrorKind::TimedOut);
            drop(waker);
            assert_eq!(wait(LONG), io::ErrorKind::Interrupted);
            let connected = ClientConnection::connect(&[address], LONG, Some(wake.as_fd()));
            assert_eq!(connected.err().unwrap().kind(), io::ErrorKind::Interrupted);
            drop(go);
            serving.join().unwrap();
        }
    }

    #[test]
    fn a_request_that_is_not_read_times_out() {
        let (go, word) = mpsc::channel::<()>();
        let (address, serving) = serve(move |_socket| assert!(word.recv().is_err()));
        let body = "x".repeat(32 << 20);
        let mut connection = ClientConnection::connect(&[address], LONG, None).unwrap();
        let sent = connection.send(&request("POST", &body), Duration::from_millis(50));
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(go);
        serving.join().unwrap();
    }

    #[test]
    fn the_next_address_is_tried_after_a_refusal() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        assert!(ClientConnection::connect(&[closed, open], LONG, None).is_ok());
        let refused = ClientConnection::connect(&[closed], LONG, None).err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(ClientConnection::connect(&[], LONG, None).is_err());
    }
}
