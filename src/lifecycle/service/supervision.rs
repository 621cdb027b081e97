//! Who has started this process: a service manager, or somebody by hand. Decided once, at the
//! start.
//!
//! Every variable that could tell is inherited, so none of them is believed alone: a shell in a
//! terminal that systemd has started has an INVOCATION_ID too.

use std::os::unix::process::parent_id;

use super::launchd;
use super::notify::Notify;
use super::systemd;
use crate::config::{self, Handed};
use crate::error::{Doing, Error};
use crate::paths::Manager;

/// Who watches over this process, and how to talk to it.
pub struct Supervision {
    pub manager: Option<Manager>,
    pub notify: Notify,
}

impl Supervision {
    /// Finds out, and takes the manager's variables out of the environment.
    ///
    /// # Errors
    /// The process has more than one thread already, or NOTIFY_SOCKET names no socket.
    pub fn detect() -> Result<Supervision, Error> {
        let handed = config::take_handed()?;
        let cgroup = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let manager = manager(&handed, std::process::id(), parent_id(), &cgroup);
        let notify = match &handed.notify_socket {
            // Whoever has set it waits for the word, be it this service or a unit of the user's
            // own.
            Some(name) => Notify::to(name).doing("use NOTIFY_SOCKET")?,
            None => Notify::NOBODY,
        };
        Ok(Supervision { manager, notify })
    }

    /// For a daemon in the background: nobody watches over it, whatever its starter's environment
    /// says.
    pub fn none() -> Result<Supervision, Error> {
        config::take_handed()?;
        Ok(Supervision { manager: None, notify: Notify::NOBODY })
    }
}

/// Whether this process runs inside the service, as what the daemon starts does: a manager that
/// ends the service ends it too.
pub fn inside_service() -> bool {
    in_unit(&std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
}

fn manager(handed: &Handed, pid: u32, parent: u32, cgroup: &str) -> Option<Manager> {
    let by_systemd = match &handed.service_pid {
        Some(service_pid) => *service_pid == pid.to_string(),
        // Before systemd 248 only the cgroup tells, and that only of the unit: a process below the
        // daemon is in it too, but has no NOTIFY_SOCKET.
        None => handed.notify_socket.is_some() && in_unit(cgroup),
    };
    let by_launchd = || handed.label.as_deref() == Some(launchd::LABEL) && parent == 1;
    if by_systemd { Some(Manager::Systemd) } else { by_launchd().then_some(Manager::Launchd) }
}

/// Whether /proc/self/cgroup (cgroups(7)) names the unit: `0::/user.slice/…/opta-daemon.service`.
fn in_unit(cgroup: &str) -> bool {
    let last = |line: &str| line.rsplit('/').next() == Some(systemd::UNIT);
    cgroup.lines().any(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_UNIT: &str =
        "0::/user.slice/user-1001.slice/user@1001.service/app.slice/opta-daemon.service\n";
    const IN_TERMINAL: &str = "1:name=systemd:/user.slice\n0::/user.slice/session-1.scope\n";

    fn handed(pid: Option<&str>, socket: Option<&str>, label: Option<&str>) -> Handed {
        Handed {
            service_pid: pid.map(str::to_owned),
            notify_socket: socket.map(Into::into),
            label: label.map(str::to_owned),
        }
    }

    #[test]
    fn systemd_names_the_process_it_has_started() {
        let found = |pid, cgroup| manager(&handed(pid, Some("/s"), None), 42, 1, cgroup);
        assert_eq!(found(Some("42"), IN_UNIT), Some(Manager::Systemd));
        assert_eq!(found(Some("41"), IN_UNIT), None, "inherited");
        assert_eq!(found(None, IN_UNIT), Some(Manager::Systemd), "before systemd 248");
        assert_eq!(found(None, IN_TERMINAL), None);
    }

    #[test]
    fn a_process_below_the_service_is_not_the_service() {
        assert_eq!(manager(&handed(None, None, None), 42, 41, IN_UNIT), None);
    }

    #[test]
    fn launchd_names_the_job_to_its_own_child() {
        let found = |label, parent| manager(&handed(None, None, Some(label)), 42, parent, "");
        assert_eq!(found("com.opta.daemon", 1), Some(Manager::Launchd));
        assert_eq!(found("com.opta.daemon", 7), None, "inherited");
        assert_eq!(found("0", 1), None, "a shell");
        assert_eq!(found("com.opta.daemon.other", 1), None);
    }
}
