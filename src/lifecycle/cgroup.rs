//! The control group of a process: a systemd unit or a container, which ends all its processes when
//! it ends. cgroups(7).

/// Returns the name of the group; `None` if there is none, or the system does not tell.
pub fn of_process(pid: i32) -> Option<String> {
    name(&std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
}

/// Returns the name of the innermost unit of systemd or, without one, of the innermost group.
fn name(table: &str) -> Option<String> {
    // The only hierarchy in version 2, and what systemd uses in version 1.
    let path = |of: &str| table.lines().find_map(|line| line.split_once(of)).map(|(_, path)| path);
    let mut paths = [path("0::"), path(":name=systemd:")].into_iter().flatten();
    let path = paths.find(|path| *path != "/")?;
    let is_unit = |name: &&str| name.ends_with(".service") || name.ends_with(".scope");
    let mut names = path.rsplit('/');
    let last = names.clone().next()?;
    Some(names.find(is_unit).unwrap_or(last).to_owned())
}

/// Returns whether the group is a service: unlike a scope or a user's manager, it ends while the
/// user's processes elsewhere continue.
pub fn is_service(name: &str) -> bool {
    name.ends_with(".service") && !name.starts_with("user@")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_the_innermost_unit_or_container() {
        for (table, expected) in [
            ("0::/user.slice/user-0.slice/session-3.scope\n", Some("session-3.scope")),
            ("0::/system.slice/cron.service\n", Some("cron.service")),
            ("0::/system.slice/docker-1f.scope/inner/part\n", Some("docker-1f.scope")),
            ("4:memory:/x\n1:name=systemd:/user.slice/a.scope\n0::/\n", Some("a.scope")),
            ("0::/docker/1f\n", Some("1f")),
            ("0::/\n", None),
            ("1:name=systemd:/\n", None),
            ("", None),
        ] {
            assert_eq!(name(table).as_deref(), expected, "{table}");
        }
    }

    #[test]
    fn a_scope_and_the_users_manager_are_no_services() {
        assert!(is_service("cron.service"));
        assert!(!is_service("session-3.scope") && !is_service("user@1000.service"));
    }
}
