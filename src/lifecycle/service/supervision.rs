//! Which service manager started this process, if any, and the notifications to systemd
//! (sd_notify(3)).
//!
//! Child processes inherit every variable that a manager sets, so no variable alone is proof: a
//! shell in a terminal that systemd started has an INVOCATION_ID too.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::parent_id;

use super::{launchd, systemd};
use crate::config::{self, ManagerVariables};
use crate::error::{Doing, Error};
use crate::paths::Manager;
use crate::sys;

/// The manager that supervises this process, and where to send it notifications.
pub struct Supervision {
    pub manager: Option<Manager>,
    /// `None`: notifications are not sent.
    socket: Option<SocketAddr>,
}

impl Supervision {
    /// The supervision of a daemon in the background: none.
    pub const NONE: Supervision = Supervision { manager: None, socket: None };

    /// Detects the manager.
    ///
    /// # Errors
    /// NOTIFY_SOCKET is not a socket address.
    pub fn detect() -> Result<Supervision, Error> {
        let variables = config::manager_variables();
        let manager = manager(&variables, std::process::id(), parent_id(), &systemd::cgroup());
        // Notified even without a manager: a unit of the user's own may have set the variable.
        let socket = variables.notify_socket.as_deref().map(socket_address).transpose();
        Ok(Supervision { manager, socket: socket.doing("use NOTIFY_SOCKET")? })
    }

    /// Notifies the manager that clients are answered from now on; `status` is for people.
    pub fn notify_ready(&self, status: &str) -> io::Result<()> {
        self.notify(&format!("READY=1\nSTATUS={status}\n"))
    }

    /// Notifies the manager that the daemon is about to exit.
    pub fn notify_stopping(&self) -> io::Result<()> {
        self.notify("STOPPING=1\nSTATUS=stopping\n")
    }

    fn notify(&self, lines: &str) -> io::Result<()> {
        let Some(address) = &self.socket else { return Ok(()) };
        UnixDatagram::unbound()?.send_to_addr(lines.as_bytes(), address).map(drop)
    }
}

/// Parses a NOTIFY_SOCKET: a path, or `@` and the name of an abstract socket (unix(7)).
fn socket_address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', rest @ ..] => sys::abstract_address(rest),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::other("it is not a Unix socket")),
    }
}

fn manager(variables: &ManagerVariables, pid: u32, parent: u32, cgroup: &str) -> Option<Manager> {
    let by_systemd = match &variables.service_pid {
        Some(service_pid) => *service_pid == pid.to_string(),
        // Before systemd 248 only the cgroup shows it, and a process that the daemon started is in
        // the same cgroup, but has no NOTIFY_SOCKET.
        None => variables.notify_socket.is_some() && systemd::names_unit(cgroup),
    };
    let by_launchd = || variables.label.as_deref() == Some(launchd::LABEL) && parent == 1;
    if by_systemd { Some(Manager::Systemd) } else { by_launchd().then_some(Manager::Launchd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_UNIT: &str =
        "0::/user.slice/user-1001.slice/user@1001.service/app.slice/opta-daemon.service\n";
    const IN_TERMINAL: &str = "1:name=systemd:/user.slice\n0::/user.slice/session-1.scope\n";

    fn variables(pid: Option<&str>, socket: Option<&str>, label: Option<&str>) -> ManagerVariables {
        ManagerVariables {
            service_pid: pid.map(str::to_owned),
            notify_socket: socket.map(Into::into),
            label: label.map(str::to_owned),
        }
    }

    #[test]
    fn systemd_names_the_process_that_it_started() {
        let found = |pid, cgroup| manager(&variables(pid, Some("/s"), None), 42, 1, cgroup);
        assert_eq!(found(Some("42"), IN_UNIT), Some(Manager::Systemd));
        assert_eq!(found(Some("41"), IN_UNIT), None, "inherited");
        assert_eq!(found(None, IN_UNIT), Some(Manager::Systemd), "before systemd 248");
        assert_eq!(found(None, IN_TERMINAL), None);
    }

    #[test]
    fn a_child_of_the_service_is_not_the_service() {
        assert_eq!(manager(&variables(None, None, None), 42, 41, IN_UNIT), None);
    }

    #[test]
    fn launchd_names_the_job_to_its_own_child_only() {
        let found = |label, parent| manager(&variables(None, None, Some(label)), 42, parent, "");
        assert_eq!(found("com.opta.daemon", 1), Some(Manager::Launchd));
        assert_eq!(found("com.opta.daemon", 7), None, "inherited");
        assert_eq!(found("0", 1), None, "a shell");
        assert_eq!(found("com.opta.daemon.other", 1), None);
    }

    fn notifying(socket: &str) -> Supervision {
        let socket = socket_address(OsStr::new(socket)).unwrap();
        Supervision { manager: None, socket: Some(socket) }
    }

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0_u8; 256];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn notifications_reach_a_socket_with_a_path() {
        let path = std::env::temp_dir().join(format!("opta-notify-{}", std::process::id()));
        let socket = UnixDatagram::bind(&path).unwrap();
        let supervision = notifying(path.to_str().unwrap());
        supervision.notify_ready("serving").unwrap();
        assert_eq!(received(&socket), "READY=1\nSTATUS=serving\n");
        supervision.notify_stopping().unwrap();
        assert!(received(&socket).starts_with("STOPPING=1\n"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn notifications_reach_an_abstract_socket() {
        let name = format!("opta-notify-{}", std::process::id());
        let Ok(address) = sys::abstract_address(name.as_bytes()) else {
            return; // Only Linux has them.
        };
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        notifying(&format!("@{name}")).notify_ready("serving").unwrap();
        assert_eq!(received(&socket), "READY=1\nSTATUS=serving\n");
    }

    #[test]
    fn other_addresses_are_refused_and_without_one_nothing_is_sent() {
        assert!(socket_address(OsStr::new("vsock:2:1")).is_err());
        assert!(socket_address(OsStr::new("relative")).is_err());
        assert!(Supervision { manager: None, socket: None }.notify_ready("serving").is_ok());
    }
}
