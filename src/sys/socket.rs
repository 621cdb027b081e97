//! Sockets: connecting without blocking, and the queue of a listener. socket(2), connect(2).

use std::io;
#[cfg(target_os = "linux")]
use std::net::{Ipv4Addr, SocketAddrV4};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::check;
#[cfg(target_os = "linux")]
use super::owner;

/// Starts a connection to `address`. The stream does not block. It becomes writable when it is
/// connected or the connection has failed; `take_error` returns the failure.
#[expect(clippy::cast_possible_truncation, reason = "families and sizes of names are below 256")]
pub fn connect(address: &SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let stream = TcpStream::from(socket(family)?);
    stream.set_nonblocking(true)?;
    let raw = stream.as_raw_fd();
    let started = match address {
        SocketAddr::V4(address) => {
            // SAFETY: sockaddr_in is a C struct of integers, for which all zeroes is a valid value.
            let mut name: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            name.sin_family = libc::AF_INET as libc::sa_family_t;
            name.sin_port = address.port().to_be();
            name.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
            // SAFETY: `name` is a live sockaddr_in, and its size is the length passed.
            unsafe { libc::connect(raw, (&raw const name).cast(), size_of_val(&name) as u32) }
        }
        SocketAddr::V6(address) => {
            // SAFETY: sockaddr_in6 is a C struct of integers, as above.
            let mut name: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
            name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            name.sin6_port = address.port().to_be();
            name.sin6_addr.s6_addr = address.ip().octets();
            name.sin6_scope_id = address.scope_id();
            // SAFETY: `name` is a live sockaddr_in6, and its size is the length passed.
            unsafe { libc::connect(raw, (&raw const name).cast(), size_of_val(&name) as u32) }
        }
    };
    match check(started) {
        Err(error) if !is_in_progress(&error) => Err(error),
        _ => Ok(stream),
    }
}

fn is_in_progress(error: &io::Error) -> bool {
    // An interrupted connect(2) continues in the background.
    matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EINTR))
}

/// Returns whether a read or a write that failed may succeed later.
pub fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Returns a TCP socket without an address. socket(2).
#[cfg(target_os = "linux")]
pub(super) fn unconnected() -> io::Result<OwnedFd> {
    socket(libc::AF_INET)
}

/// A socket that listens on 127.0.0.1.
pub struct Listening {
    pub uid: u32,
    /// Its number among the open files of its process.
    pub inode: u64,
    /// It listens on every address, and not on 127.0.0.1 alone.
    pub on_all_addresses: bool,
}

/// Returns the socket that gets the connections to 127.0.0.1:`port`; `None` if there is none, and
/// on systems that do not tell. proc(5).
///
/// # Errors
/// The system's table of sockets cannot be read.
#[cfg(target_os = "linux")]
pub fn listening_on(port: u16) -> io::Result<Option<Listening>> {
    let (tcp, tcp6) = owner::tables()?;
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    let found = owner::table::listening(&tcp, &tcp6, address);
    Ok(found.first().map(|one| Listening {
        uid: one.user,
        inode: one.inode.parse().unwrap_or(0),
        on_all_addresses: one.is_on_all_addresses(),
    }))
}

#[cfg(not(target_os = "linux"))]
pub fn listening_on(_port: u16) -> io::Result<Option<Listening>> {
    Ok(None)
}

/// Lets this many connections wait to be accepted, or as many as the system permits. listen(2).
pub fn set_backlog(listener: &TcpListener, connections: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open; the call takes integers.
    check(unsafe { libc::listen(listener.as_raw_fd(), connections) }).map(drop)
}

/// Returns whether the socket is listening. socket(7).
pub fn is_listening(socket: &TcpListener) -> bool {
    let mut value: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    let (option, raw) = (libc::SO_ACCEPTCONN, socket.as_raw_fd());
    let place = (&raw mut value).cast();
    // SAFETY: `place` is writable for `length` bytes.
    check(unsafe { libc::getsockopt(raw, libc::SOL_SOCKET, option, place, &raw mut length) })
        .is_ok_and(|_| value != 0)
}

/// Sets how much the system holds of what was written and not sent, or as much as is permitted.
/// Linux doubles it, for its own records. socket(7).
pub fn set_send_buffer(socket: &TcpStream, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    let length = libc::socklen_t::try_from(size_of_val(&bytes)).unwrap_or(0);
    let (option, raw) = (libc::SO_SNDBUF, socket.as_raw_fd());
    let place = (&raw const bytes).cast();
    // SAFETY: `place` is readable for `length` bytes.
    check(unsafe { libc::setsockopt(raw, libc::SOL_SOCKET, option, place, length) }).map(drop)
}

#[cfg(target_os = "linux")]
fn socket(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers.
    let raw = check(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[cfg(not(target_os = "linux"))]
fn socket(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers.
    let raw = check(unsafe { libc::socket(family, libc::SOCK_STREAM, 0) })?;
    // SAFETY: the descriptor is new, so nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: the descriptor is open; the call takes integers.
    check(unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Interest, wait_any};
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::time::Duration;

    const LONG: Option<Duration> = Some(Duration::from_secs(5));

    #[cfg(target_os = "linux")]
    #[test]
    fn a_listener_on_all_addresses_of_ipv6_gets_connections_to_127_0_0_1() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
            // A machine may have no IPv6.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let found = listening_on(listener.local_addr().unwrap().port()).unwrap().unwrap();
            assert_eq!(found.uid, crate::sys::effective_user());
            assert_eq!(found.on_all_addresses, address != "127.0.0.1:0", "{address}");
            assert_ne!(found.inode, 0);
        }
    }

    #[test]
    fn a_connection_that_was_begun_becomes_one_or_says_why_not() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A machine may have no IPv6.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let address = listener.local_addr().unwrap();
            let mut stream = connect(&address).unwrap();
            assert_eq!(wait_any(&[(stream.as_fd(), Interest::Write)], LONG).unwrap(), [true]);
            assert!(stream.take_error().unwrap().is_none());
            stream.write_all(b"x").unwrap();
            let mut byte = [0];
            listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"x");
            drop(listener);
            // Refused at once, or a little later.
            if let Ok(stream) = connect(&address) {
                assert_eq!(wait_any(&[(stream.as_fd(), Interest::Write)], LONG).unwrap(), [true]);
                assert!(stream.take_error().unwrap().is_some());
            }
        }
    }
}
