//! Whose server is at the other end of a connection, where the system does not say it itself:
//! lsof(8), which lists at least the sockets of the user's own processes.

use std::io;
use std::os::fd::BorrowedFd;
use std::process::Command;
use std::time::Duration;

use crate::sys;

use super::connection::ClientConnection;
use super::resolve::output_of;

/// Returns the user whose process is at the other end of a connection within this machine; `None`
/// if that cannot be told.
pub fn peer_owner(connection: &ClientConnection<'_>, limit: Duration) -> io::Result<Option<u32>> {
    let Some(socket) = connection.socket() else { return Ok(None) };
    match sys::owner::of_peer(socket) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            listener_owner(socket.peer_addr()?.port(), limit, connection.wake())
        }
        owner => owner,
    }
}

/// Returns the user that listens on 127.0.0.1:`port`; `None` if no one does as far as the user can
/// see.
fn listener_owner(
    port: u16,
    limit: Duration,
    wake: Option<BorrowedFd<'_>>,
) -> io::Result<Option<u32>> {
    let mut command = Command::new("lsof");
    // Without a system path, lsof is not found by a service.
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin");
    command.args(["-nP", "-sTCP:LISTEN", "-Fun"]).arg(format!("-iTCP:{port}"));
    Ok(listener(&output_of(command, limit, wake)?, port))
}

/// Finds the listener in the output of lsof: one field per line, `u` before the `n` of its sockets.
/// The one with the nearest address counts.
fn listener(output: &str, port: u16) -> Option<u32> {
    let mut user = None;
    let mut sockets = Vec::new();
    for line in output.lines() {
        match line.split_at_checked(1) {
            Some(("u", id)) => user = id.parse::<u32>().ok(),
            Some(("n", name)) => sockets.extend(user.map(|user| (name, user))),
            _ => {}
        }
    }
    [format!("127.0.0.1:{port}"), format!("*:{port}")].iter().find_map(|place| {
        let mut there = sockets.iter().filter(|(name, _)| name == place).map(|(_, user)| *user);
        let first = there.next()?;
        Some(there.all(|user| user == first).then_some(first))
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_with_the_nearest_address_is_found() {
        let output = "p10\nu501\nf5\nn*:1234\nf6\nn[::1]:1234\np11\nu0\nf3\nn127.0.0.1:1234\n";
        assert_eq!(listener(output, 1234), Some(0));
        assert_eq!(listener("p10\nu501\nf5\nn*:1234\nf6\nn*:1234\n", 1234), Some(501));
        assert_eq!(listener("p1\nu501\nf5\nn*:1234\np2\nu502\nf6\nn*:1234\n", 1234), None);
        for output in ["", "p10\nu501\nf5\nn[::1]:1234\n", "n*:1234\n", "lsof: no pwd\n"] {
            assert_eq!(listener(output, 1234), None, "{output}");
        }
    }
}
