//! Where this process runs: its network, its numbering of processes, and this boot of the machine.
//! Each identity is `None` where the system cannot tell it.

#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;

/// Returns the network namespace: within this boot, a process with another one has another
/// 127.0.0.1. namespaces(7).
pub fn network() -> Option<u64> {
    inode_of("/proc/self/ns/net")
}

/// Returns the pid namespace: in another one, the same number is another process.
/// pid_namespaces(7).
pub fn processes() -> Option<u64> {
    inode_of("/proc/self/ns/pid")
}

#[cfg(target_os = "linux")]
fn inode_of(link: &str) -> Option<u64> {
    // This follows the link to the namespace.
    std::fs::metadata(link).ok().map(|found| std::os::unix::fs::MetadataExt::ino(&found))
}

#[cfg(not(target_os = "linux"))]
fn inode_of(_link: &str) -> Option<u64> {
    None
}

/// Returns when process 1 of the pid namespace started, in clock ticks. The number of a namespace
/// that has ended is used again; this is not. proc(5).
pub fn processes_began() -> Option<u64> {
    // Field 22. The name, field 2, may contain anything.
    let text = std::fs::read_to_string("/proc/1/stat").ok()?;
    text.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Returns the cookie of the network namespace, which can be told without /proc: Linux 5.14,
/// SO_NETNS_COOKIE.
pub fn network_cookie() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        const SO_NETNS_COOKIE: libc::c_int = 71;
        let socket = super::socket::unconnected().ok()?;
        let mut cookie = 0_u64;
        let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).ok()?;
        let (raw, place) = (socket.as_raw_fd(), (&raw mut cookie).cast());
        // SAFETY: `place` is writable for `length` bytes.
        let result = unsafe {
            libc::getsockopt(raw, libc::SOL_SOCKET, SO_NETNS_COOKIE, place, &raw mut length)
        };
        (result == 0 && cookie != 0).then_some(cookie)
    }
    #[cfg(not(target_os = "linux"))]
    {
        None
    }
}

/// Returns the id of this boot: another machine, or this one after a restart, has another.
/// random(4).
pub fn boot_id() -> Option<String> {
    // Few system calls: each command that asks the daemon compares it.
    let mut bytes = [0_u8; 64];
    let mut file = std::fs::File::open("/proc/sys/kernel/random/boot_id").ok()?;
    let count = std::io::Read::read(&mut file, &mut bytes).ok()?;
    let text = std::str::from_utf8(bytes.get(..count)?).ok()?;
    Some(text.trim_end().to_owned()).filter(|id| !id.is_empty())
}
