//! Whose process is at the other end of a connection within this machine. proc(5).

use std::io;
use std::net::TcpStream;

/// The first user id that belongs to a person. login.defs(5), `SYS_UID_MAX`.
#[cfg(not(target_os = "macos"))]
pub const FIRST_PERSON: u32 = 1000;
/// The first user id that belongs to a person.
#[cfg(target_os = "macos")]
pub const FIRST_PERSON: u32 = 500;

/// Returns the user whose process has, or will accept, the other end of an IPv4 connection; `None`
/// if that cannot be told.
///
/// # Errors
/// `Unsupported` if the system does not say.
#[cfg(target_os = "linux")]
pub fn of_peer(stream: &TcpStream) -> io::Result<Option<u32>> {
    let ends = (stream.local_addr()?, stream.peer_addr()?);
    let (std::net::SocketAddr::V4(ours), std::net::SocketAddr::V4(theirs)) = ends else {
        return Ok(None);
    };
    let (tcp, tcp6) = tables()?;
    Ok(table::owner(&tcp, &tcp6, ours, theirs))
}

/// Reads the tables of the sockets of IPv4 and of IPv6.
#[cfg(target_os = "linux")]
pub(super) fn tables() -> io::Result<(String, String)> {
    let tcp = std::fs::read_to_string("/proc/net/tcp")?;
    // A machine may have no IPv6.
    Ok((tcp, std::fs::read_to_string("/proc/net/tcp6").unwrap_or_default()))
}

/// Fails: the system does not say.
#[cfg(not(target_os = "linux"))]
pub fn of_peer(_stream: &TcpStream) -> io::Result<Option<u32>> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
pub(super) mod table {
    use std::net::{Ipv4Addr, SocketAddrV4};

    /// A listening socket, in the column `st`.
    const LISTENING: &str = "0A";

    /// Returns the owner of the socket at `theirs` that is connected to `ours`. Before it is
    /// accepted, and after it is closed, no process has it; then the socket that listens there
    /// decides.
    pub fn owner(tcp: &str, tcp6: &str, ours: SocketAddrV4, theirs: SocketAddrV4) -> Option<u32> {
        let sockets = || tcp.lines().chain(tcp6.lines()).filter_map(SocketRow::parse);
        let (ours, remote) = (written(ours), written(theirs));
        let is_it = |one: &SocketRow<'_>| {
            remote.iter().any(|end| end == one.local) && ours.iter().any(|end| end == one.remote)
        };
        if let Some(accepted) = sockets().find(|one| is_it(one) && one.inode != "0") {
            return Some(accepted.user);
        }
        let found = listening(tcp, tcp6, theirs);
        let user = found.first()?.user;
        found.iter().all(|one| one.user == user).then_some(user)
    }

    /// Returns the sockets that listen where connections to `address` arrive: the kernel prefers
    /// those with the nearest address.
    pub fn listening<'t>(tcp: &'t str, tcp6: &'t str, address: SocketAddrV4) -> Vec<SocketRow<'t>> {
        let sockets = || tcp.lines().chain(tcp6.lines()).filter_map(SocketRow::parse);
        let [own, mapped] = written(address);
        let [any, _] = written(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, address.port()));
        let all = format!("{}:{:04X}", "0".repeat(32), address.port());
        let at = |place: String| {
            let is_there = |one: &SocketRow<'_>| one.local == place && one.state == LISTENING;
            sockets().filter(is_there).collect::<Vec<_>>()
        };
        let found = [own, mapped, any, all].into_iter().map(at).find(|found| !found.is_empty());
        found.unwrap_or_default()
    }

    /// Returns an address as the table writes it, and as it writes it for a socket that accepts
    /// IPv6 as well.
    fn written(address: SocketAddrV4) -> [String; 2] {
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let (ip, port) = (word(address.ip().octets()), address.port());
        let mapped = word([0, 0, 0xFF, 0xFF]);
        let zeros = word([0; 4]);
        [format!("{ip}:{port:04X}"), format!("{zeros}{zeros}{mapped}{ip}:{port:04X}")]
    }

    /// A row of the table: a socket.
    pub struct SocketRow<'t> {
        local: &'t str,
        remote: &'t str,
        state: &'t str,
        pub user: u32,
        /// `0` if no process has it.
        pub inode: &'t str,
    }

    impl<'t> SocketRow<'t> {
        /// Returns whether its own address is the unspecified one.
        pub fn is_on_all_addresses(&self) -> bool {
            self.local.split(':').next().is_some_and(|ip| ip.bytes().all(|digit| digit == b'0'))
        }

        fn parse(line: &'t str) -> Option<SocketRow<'t>> {
            let mut words = line.split_ascii_whitespace().skip(1);
            let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
            let mut words = words.skip(3);
            let user = words.next()?.parse().ok()?;
            let inode = words.nth(1)?;
            Some(SocketRow { local, remote, state, user, inode })
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn line(local: &str, remote: &str, state: &str, user: u32, inode: u32) -> String {
            format!(
                "   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000 {user:>5} \
                 0 {inode} 1 00000000116a2b4c 100 0 0 10 0\n"
            )
        }

        const LOCAL: &str = "0100007F:04D2";
        const OURS: &str = "0100007F:C442";

        fn found(tcp: &[String], tcp6: &[String]) -> Option<u32> {
            let [ours, theirs] = ["127.0.0.1:50242", "127.0.0.1:1234"].map(|a| a.parse().unwrap());
            let header = "  sl  local_address rem_address   st uid\n".to_owned();
            let table = |lines: &[String]| header.clone() + &lines.concat();
            owner(&table(tcp), &table(tcp6), ours, theirs)
        }

        #[test]
        #[cfg(target_endian = "little")]
        fn the_socket_that_was_accepted_decides_and_else_the_one_that_listens() {
            let none = "00000000:0000";
            let listening = line(LOCAL, none, "0A", 7, 5);
            let own = line(OURS, LOCAL, "01", 1, 9);
            let accepted = line(LOCAL, OURS, "01", 8, 6);
            assert_eq!(found(&[own.clone(), listening.clone(), accepted], &[]), Some(8));
            // Not accepted yet, or closed already: the user in the line means nothing.
            for state in ["01", "05"] {
                let lines = [own.clone(), line(LOCAL, OURS, state, 0, 0), listening.clone()];
                assert_eq!(found(&lines, &[]), Some(7));
            }
            assert_eq!(found(&[own], &[]), None);
            // Another port, another address.
            let other = line("0100007F:04D3", none, "0A", 7, 5);
            assert_eq!(found(&[other, line("0200007F:04D2", none, "0A", 7, 5)], &[]), None);
            // The nearest address, and one user for all sockets there.
            let any = line("00000000:04D2", none, "0A", 3, 5);
            let any6 = line("00000000000000000000000000000000:04D2", none, "0A", 4, 5);
            let mapped = line("0000000000000000FFFF00000100007F:04D2", none, "0A", 5, 5);
            let six = [any6, mapped];
            assert_eq!(found(&[any.clone(), listening.clone()], &six), Some(7));
            assert_eq!(found(std::slice::from_ref(&any), &six), Some(5));
            assert_eq!(found(&[any], &six[..1]), Some(3));
            assert_eq!(found(&[], &six[..1]), Some(4));
            assert_eq!(found(&[listening, line(LOCAL, none, "0A", 9, 5)], &[]), None);
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::sys::effective_user;
    use std::net::TcpListener;

    #[test]
    fn the_owner_of_a_server_is_known_before_and_after_it_accepts() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(of_peer(&stream).unwrap(), Some(effective_user()));
        let accepted = listener.accept().unwrap();
        assert_eq!(of_peer(&stream).unwrap(), Some(effective_user()));
        drop((accepted, listener));
        assert_eq!(of_peer(&stream).unwrap(), None);
    }
}
