//! What an open file or directory is, and where: answers that no change of a name affects.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

/// Returns whether a file has an access control list, which another file in its place would not
/// have. fgetxattr(2).
pub fn has_access_list(file: &File) -> bool {
    #[cfg(target_os = "linux")]
    {
        let name = c"system.posix_acl_access".as_ptr();
        // SAFETY: `name` is NUL-terminated; with a size of zero nothing is written.
        let size = unsafe { libc::fgetxattr(file.as_raw_fd(), name, std::ptr::null_mut(), 0) };
        size > 0
    }
    #[cfg(not(target_os = "linux"))]
    {
        // There it belongs to the metadata that the caller copies as far as it can.
        let _ = file;
        false
    }
}

/// The file systems in which files are the kernel's state, by their magic numbers: procfs, sysfs,
/// cgroup (two versions), debugfs, tracefs, securityfs, selinuxfs, bpf, pstore, efivarfs, configfs,
/// devpts, binfmt_misc, nsfs, fusectl. statfs(2).
#[cfg(target_os = "linux")]
const KERNEL_FILE_SYSTEMS: [u32; 16] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xf97c_ff8c,
    0xcafe_4a11,
    0x6165_676c,
    0xde5e_81e4,
    0x6265_6570,
    0x1cd1,
    0x4249_4e4d,
    0x6e73_6673,
    0x6573_5543,
];

/// Returns whether an open file or directory is the kernel's state in the form of a file, such as
/// in /proc: reading it may reveal secrets of processes, writing it may change the system.
pub fn is_kernel_state(file: BorrowedFd<'_>) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: statfs is a C struct of integers, for which all zeroes is a valid value.
        let mut found: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: `found` is a live statfs.
        super::check(unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut found) })?;
        // The type of the field depends on the C library; the numbers have 32 bits.
        let magic = u32::try_from(found.f_type & 0xffff_ffff).unwrap_or(0);
        Ok(KERNEL_FILE_SYSTEMS.contains(&magic))
    }
    #[cfg(not(target_os = "linux"))]
    {
        // The others have no procfs.
        let _ = file;
        Ok(false)
    }
}

/// Returns the path of an open file or directory, without links.
#[cfg(not(target_os = "macos"))]
pub fn path_of(file: BorrowedFd<'_>) -> io::Result<PathBuf> {
    // proc_pid_fd(5); elsewhere there is none.
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Returns the path of an open file or directory, without links. F_GETPATH, fcntl(2).
#[cfg(target_os = "macos")]
pub fn path_of(file: BorrowedFd<'_>) -> io::Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt;

    let mut buffer = vec![0_u8; libc::PATH_MAX as usize];
    // SAFETY: the descriptor is open, and the buffer has the PATH_MAX bytes that F_GETPATH writes.
    super::check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETPATH, buffer.as_mut_ptr()) })?;
    let length = buffer.iter().position(|byte| *byte == 0).unwrap_or(buffer.len());
    buffer.truncate(length);
    Ok(PathBuf::from(std::ffi::OsString::from_vec(buffer)))
}
