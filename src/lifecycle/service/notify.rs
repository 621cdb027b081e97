//! What a daemon tells systemd of itself: sd_notify(3), a datagram of lines to a socket that
//! systemd has named. Where none is named, nothing is told.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::sys;

/// Where to tell it, if anywhere.
pub struct Notify {
    socket: Option<SocketAddr>,
}

impl Notify {
    /// Nobody wants to know.
    pub const NOBODY: Notify = Notify { socket: None };

    /// `name` is a path, or `@` and the name of an abstract socket (unix(7)).
    ///
    /// # Errors
    /// No socket can have that name.
    pub fn to(name: &OsStr) -> io::Result<Notify> {
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => sys::abstract_address(rest)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => return Err(io::Error::other("it names no socket that is known here")),
        };
        Ok(Notify { socket: Some(address) })
    }

    /// Clients are answered from now on; `status` is a line for people.
    pub fn ready(&self, status: &str) -> io::Result<()> {
        self.tell(&format!("READY=1\nSTATUS={status}\n"))
    }

    /// The daemon is about to leave.
    pub fn stopping(&self) -> io::Result<()> {
        self.tell("STOPPING=1\nSTATUS=stopping\n")
    }

    fn tell(&self, lines: &str) -> io::Result<()> {
        let Some(address) = &self.socket else {
            return Ok(());
        };
        UnixDatagram::unbound()?.send_to_addr(lines.as_bytes(), address).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0_u8; 256];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_socket_with_a_path_hears_both_words() {
        let path = std::env::temp_dir().join(format!("opta-notify-{}", std::process::id()));
        let socket = UnixDatagram::bind(&path).unwrap();
        let notify = Notify::to(path.as_os_str()).unwrap();
        notify.ready("serving").unwrap();
        assert_eq!(heard(&socket), "READY=1\nSTATUS=serving\n");
        notify.stopping().unwrap();
        assert!(heard(&socket).starts_with("STOPPING=1\n"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn so_does_an_abstract_one() {
        let name = format!("opta-notify-{}", std::process::id());
        let Ok(address) = sys::abstract_address(name.as_bytes()) else {
            return; // Only Linux has them.
        };
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Notify::to(OsStr::new(&format!("@{name}"))).unwrap().ready("serving").unwrap();
        assert_eq!(heard(&socket), "READY=1\nSTATUS=serving\n");
    }

    #[test]
    fn other_names_are_refused_and_nobody_is_told_nothing() {
        assert!(Notify::to(OsStr::new("vsock:2:1")).is_err());
        assert!(Notify::to(OsStr::new("relative")).is_err());
        assert!(Notify::NOBODY.ready("serving").is_ok());
    }
}
