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
use crate::sys::{self, Wish};

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

    /// Sends the request, with at most `limit` between two steps forward. A server may answer before
    /// it has read everything; then the rest is not sent.
    pub fn send(&mut self, asking: &Asking<'_>, limit: Duration) -> io::Result<()> {
        let text = asking.text()?;
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match self.socket.write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(&self.socket, Wish::Either, limit, self.wake)?;
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
            wait(&self.socket, Wish::Read, left, self.wake)?;
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
            wait(&self.socket, Wish::Read, left, self.wake)?;
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
    wait(&socket, Wish::Write, limit, wake)?;
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Waits for `file`, and fails if `wake` comes first.
fn wait(
    file: &impl AsFd,
    wish: Wish,
    limit: Duration,
    wake: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let file = (file.as_fd(), wish);
    let ready = match wake {
        Some(wake) => sys::wait_any(&[file, (wake, Wish::Read)], Some(limit))?,
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
/// `localhost` is this machine, whatever a resolver says. Any other name is looked up on a thread of
/// its own, because the system's resolver can be neither interrupted nor given a limit; a thread
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
    wait(&ended, Wish::Read, limit, wake)?;
    found.try_recv().unwrap_or_else(|_gone| Err(io::ErrorKind::NotFound.into()))
}
