//! From the name of a host to its addresses, as the system finds them.
//!
//! The resolver of a static program reads `/etc/hosts` and asks DNS servers. Names that only the
//! system finds, by multicast DNS, NIS or systemd-resolved (nsswitch.conf(5)), are left to
//! getent(1), where there is one.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::limits;
use crate::sys::{Interest, child};

use super::wait::wait;

/// Resolves a host: a name, or an address with or without brackets. `localhost` is always this
/// machine, without a resolver.
///
/// Fails with `Interrupted` once `wake` is readable, and with `TimedOut` after `limit`.
pub fn addresses(
    host: &str,
    port: u16,
    limit: Duration,
    wake: Option<BorrowedFd<'_>>,
) -> io::Result<Vec<SocketAddr>> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let with_port = |address| SocketAddr::new(address, port);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(vec![with_port(address)]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        let here: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        return Ok(here.map(with_port).to_vec());
    }
    let deadline = Instant::now() + limit;
    let left = || deadline.saturating_duration_since(Instant::now());
    let by_getent = |error: io::Error| match error.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::TimedOut => Err(error),
        _ => match ask_getent(host, left(), wake) {
            Ok(found) if !found.is_empty() => Ok(found.into_iter().map(with_port).collect()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            // Its reason is better than that of a program which may not be there.
            _ => Err(error),
        },
    };
    // No DNS server knows these, but some take long to say so. RFC 6762, section 3
    let domain = host.trim_end_matches('.').rsplit_once('.').map(|(_, domain)| domain);
    if domain.is_some_and(|domain| domain.eq_ignore_ascii_case("local")) {
        return by_getent(io::ErrorKind::NotFound.into()).or_else(|error| match error.kind() {
            io::ErrorKind::Interrupted => Err(error),
            _ => look_up(host, port, left(), wake),
        });
    }
    look_up(host, port, limit, wake).or_else(by_getent)
}

/// Asks the C library, on a thread, because its resolver can neither be interrupted nor take a
/// deadline. After a timeout the thread ends with its lookup.
fn look_up(
    host: &str,
    port: u16,
    limit: Duration,
    wake: Option<BorrowedFd<'_>>,
) -> io::Result<Vec<SocketAddr>> {
    let (done, ended) = UnixStream::pair()?;
    let (sender, found) = mpsc::channel();
    let host = host.to_owned();
    thread::Builder::new().name("resolve".to_owned()).spawn(move || {
        let looked_up = (host.as_str(), port).to_socket_addrs();
        let first = |all: std::vec::IntoIter<SocketAddr>| all.take(limits::ADDRESSES_MAX).collect();
        // The receiver is gone after a timeout.
        drop(sender.send(looked_up.map(first)));
        drop(done);
    })?;
    wait(&ended, Interest::Read, limit, wake)?;
    found.try_recv().unwrap_or_else(|_gone| Err(io::ErrorKind::NotFound.into()))
}

/// Asks getent(1). It is killed if it does not answer in time.
fn ask_getent(
    host: &str,
    limit: Duration,
    wake: Option<BorrowedFd<'_>>,
) -> io::Result<Vec<IpAddr>> {
    if host.starts_with('-') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut command = Command::new("getent");
    command.args(["ahosts", host]).env_clear();
    let answer = output_of(command, limit, wake);
    let mut found: Vec<IpAddr> = Vec::new();
    for line in answer?.lines() {
        // An address is listed once for each type of socket.
        let address = line.split_whitespace().next().and_then(|word| word.parse().ok());
        found.extend(address.filter(|address| !found.contains(address)));
    }
    found.truncate(limits::ADDRESSES_MAX);
    Ok(found)
}

/// Returns the output of a program, which is killed if it does not answer in time.
pub fn output_of(
    mut command: Command,
    limit: Duration,
    wake: Option<BorrowedFd<'_>>,
) -> io::Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    child::prepare_child(&mut command, File::open("/")?);
    let mut program = command.spawn()?;
    let output = program.stdout.take();
    let read = |mut output| read_answer(&mut output, limit, wake);
    let answer = output.map_or(Ok(String::new()), read);
    end(&mut program);
    answer
}

/// Reads what a program writes to a pipe until it closes it, or has written enough.
pub fn read_answer(
    output: &mut (impl Read + AsFd),
    limit: Duration,
    wake: Option<BorrowedFd<'_>>,
) -> io::Result<String> {
    let deadline = Instant::now() + limit;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while answer.len() < limits::PROGRAM_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        wait(output, Interest::Read, left, wake)?;
        match output.read(&mut chunk)? {
            0 => break,
            count => answer.extend_from_slice(chunk.get(..count).unwrap_or_default()),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Ends a child, if it has not ended by itself.
fn end(child: &mut Child) {
    // Both fail only if it is gone.
    drop(child.kill());
    drop(child.wait());
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn addresses_need_no_resolver_and_a_slow_resolver_delays_no_request() {
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
