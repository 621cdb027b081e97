//! Listening on 127.0.0.1, and who is in the way.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use crate::config::Port;
use crate::error::{Error, Kind, reason};
use crate::limits;

/// Listens on the port that is wanted. Only 127.0.0.1 is ever bound; `std` sets SO_REUSEADDR, so
/// that a connection of a daemon that has just left is not in the way, and never SO_REUSEPORT.
///
/// # Errors
/// [`Kind::PortInUse`] names the port and, where it can be known, its owner; or says that none of
/// the default ports is free.
pub fn listen(wanted: Port) -> Result<TcpListener, Error> {
    match wanted {
        Port::Exactly { port, by } => bind(port).map_err(|cause| {
            let taken = cause.kind() == io::ErrorKind::AddrInUse;
            let owner = if taken { owner_of(port) } else { None };
            let owner = owner.map_or(String::new(), |owner| format!(" ({owner})"));
            let reason = reason(&cause);
            cannot_listen(&format!("{port}: {reason}{owner}")).with_next_step(format!(
                "choose another port ({by}), or leave it out to try 9999 and others"
            ))
        }),
        Port::Preferred(port) => bind(port).or_else(|_taken| listen(Port::Default)),
        Port::Default => {
            let first = bind(limits::PORT_DEFAULT);
            let fallback = || limits::PORTS_FALLBACK.map(bind).find_map(Result::ok);
            first.or_else(|cause| {
                fallback().ok_or_else(|| {
                    let (port, others) = (limits::PORT_DEFAULT, limits::PORTS_FALLBACK);
                    let (first, last, reason) = (others.start(), others.end(), reason(&cause));
                    cannot_listen(&format!("{port}, nor on {first} to {last}: {reason}"))
                        .with_next_step("choose a free port: opta daemon start --port N")
                })
            })
        }
    }
}

fn cannot_listen(on: &str) -> Error {
    let reason = format!("cannot listen on 127.0.0.1:{on}");
    Error::cannot(Kind::PortInUse, "start the daemon", reason)
}

fn bind(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
}

/// The process that listens on `port`, as a person would name it: `nginx, pid 812, uid 33`. Only
/// where the system shows its tables as files, as Linux does (proc(5)).
pub fn owner_of(port: u16) -> Option<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let (uid, inode) = table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, local_port) = fields.get(1)?.split_once(':')?;
        // Ours, or all addresses; in state LISTEN.
        let here = matches!(address, "0100007F" | "00000000") && *fields.get(3)? == "0A";
        let same = u16::from_str_radix(local_port, 16).ok()? == port;
        (here && same).then_some(())?;
        Some(((*fields.get(7)?).to_owned(), (*fields.get(9)?).to_owned()))
    })?;
    let process = process_with(&format!("socket:[{inode}]"));
    Some(match process {
        Some((name, pid)) => format!("{name}, pid {pid}, uid {uid}"),
        None => format!("a process of uid {uid}"),
    })
}

/// Only the user's own processes can be looked into.
fn process_with(socket: &str) -> Option<(String, String)> {
    let has_it = |process: &Path| {
        let open = std::fs::read_dir(process.join("fd")).ok()?;
        let mut links = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.any(|link| link == Path::new(socket)).then_some(())
    };
    std::fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|entry| {
        let pid = entry.file_name().to_str().filter(|name| name.parse::<u32>().is_ok())?.to_owned();
        has_it(&entry.path())?;
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        Some((name.trim_end().to_owned(), pid))
    })
}
