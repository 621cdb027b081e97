//! Names of model servers, found as the system finds them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Instant;

use crate::model::Model;
use crate::support::{
    ANYTHING, Home, Run, eventually, has_ended, need, signal, skip, write_program,
};

/// Writes a program that answers for getent(1), whose arguments are added to a file.
fn getent(home: &Home, script: &str) -> PathBuf {
    let (path, calls) = (home.beside("getent"), home.beside("calls"));
    write_program(&path, &format!("#!/bin/sh\necho \"$*\" >>'{}'\n{script}\n", calls.display()));
    path
}

/// `opta do` where getent(1) is this program, and there is no DNS server.
fn ask<'h>(home: &'h Home, getent: &Path, url: &str) -> Run<'h> {
    ask_with(home, getent, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n", url)
}

/// `opta do` where getent(1) is this program, with these DNS servers.
fn ask_with<'h>(home: &'h Home, getent: &Path, servers: &str, url: &str) -> Run<'h> {
    let hosts = home.beside("hosts");
    fs::write(&hosts, "127.0.0.1 localhost inhosts.local\n::1 six\n127.0.0.1 six\n").unwrap();
    let resolv = home.beside("resolv.conf");
    fs::write(&resolv, servers).unwrap();
    let script = r#"
        mount --bind "$GETENT" "$(command -v getent)"
        mount --bind "$HOSTS" /etc/hosts
        mount --bind "$RESOLV" "$(readlink -f /etc/resolv.conf)"
        exec opta do -q hello
    "#;
    let run = home.sh(script).within(["unshare", "--mount"]).env("OPTA_MODEL_URL", url);
    run.env("GETENT", getent).env("HOSTS", hosts).env("RESOLV", resolv)
}

/// Expects that the model at this host answers. Returns the arguments of each call of getent(1).
fn answered(script: &str, host: &str) -> Vec<String> {
    let (home, model) = (Home::new(), Model::new());
    let getent = getent(&home, script);
    let url = model.url().replace("127.0.0.1", host);
    let running = ask(&home, &getent, &url).stdout("found\n").spawn();
    model.question().answer("found");
    running.finish();
    let calls = fs::read_to_string(home.beside("calls")).unwrap_or_default();
    // Once for the list of models, and once for the answer.
    let mut calls: Vec<String> = calls.lines().map(str::to_owned).collect();
    calls.dedup();
    calls
}

#[test]
fn a_local_name_is_asked_through_getent() {
    need!("root", "private mounts", "getent");
    let script = "echo '192.0.2.256   STREAM box.local'; echo '127.0.0.1       STREAM box.local'";
    assert_eq!(answered(script, "box.local"), ["ahosts box.local"]);
    assert_eq!(answered(script, "BOX.Local."), ["ahosts BOX.Local."]);
}

#[test]
fn a_name_that_dns_does_not_know_is_asked_through_getent() {
    need!("root", "private mounts", "getent");
    assert_eq!(answered("echo '127.0.0.1 STREAM nas'", "nas"), ["ahosts nas"]);
}

#[test]
fn a_name_in_the_hosts_file_is_found_without_getent() {
    need!("root", "private mounts", "getent");
    // Of its two addresses, the model listens on one.
    assert_eq!(answered("exit 2", "six"), [""; 0]);
    assert_eq!(answered("exit 2", "inhosts.local"), ["ahosts inhosts.local"]);
}

#[test]
fn a_name_that_nothing_knows_is_reported() {
    need!("root", "private mounts", "getent");
    let home = Home::new();
    let getent = getent(&home, "exit 2");
    let seen = ask(&home, &getent, "http://nowhere.local:1").stderr(ANYTHING).status(1).run();
    assert!(seen.stderr.contains("nowhere.local"), "{}", seen.stderr);
}

#[test]
fn ctrl_c_ends_a_task_whose_getent_does_not_answer() {
    need!("root", "private mounts", "getent");
    let home = Home::new();
    let pid = home.beside("pid");
    let getent = getent(&home, &format!("echo $$ >'{}'; exec sleep 1000", pid.display()));
    let running = ask(&home, &getent, "http://box.local:1").stderr(ANYTHING).status(130).spawn();
    eventually("getent is asked", || fs::read_to_string(&pid).is_ok_and(|pid| pid.ends_with('\n')));
    signal(running.pid(), "INT");
    running.finish();
    let pid = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    eventually("getent has ended", || has_ended(pid));
}

/// Starts a DNS server that knows these addresses of every name; without any, it does not answer.
/// Returns its line in resolv.conf. RFC 1035, section 4
fn dns(addresses: &'static [IpAddr]) -> String {
    static MADE: AtomicU8 = AtomicU8::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, 64 + MADE.fetch_add(1, Ordering::Relaxed), high, low);
    let socket = UdpSocket::bind((own, 53)).unwrap();
    let serving = move || {
        let mut query = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut query) {
            if !addresses.is_empty() {
                socket.send_to(&dns_answer(&query[..length], addresses), client).unwrap();
            }
        }
    };
    drop(thread::Builder::new().name("dns".into()).spawn(serving).unwrap());
    format!("nameserver {own}\n")
}

fn dns_answer(query: &[u8], addresses: &[IpAddr]) -> Vec<u8> {
    let name = query[12..].iter().position(|byte| *byte == 0).unwrap();
    let question = &query[12..12 + name + 5];
    let [.., asked, _, _] = *question else { panic!("not a question: {question:?}") };
    let of_type = |address: &&IpAddr| (asked == 28) == address.is_ipv6();
    let found: Vec<&IpAddr> = addresses.iter().filter(of_type).collect();
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::try_from(found.len()).unwrap(), 0, 0, 0, 0]);
    answer.extend(question);
    for address in found {
        let bytes = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        // The name of the question, the type, the class, a time to live.
        answer.extend([0xc0, 12, 0, asked, 0, 1, 0, 0, 0, 60]);
        answer.extend([0, u8::try_from(bytes.len()).unwrap()]);
        answer.extend(bytes);
    }
    answer
}

/// Expects that this model answers under a name that these DNS servers know.
fn answered_through(servers: &str, model: &Model) {
    let home = Home::new();
    let getent = getent(&home, "exit 2");
    let url = model.url();
    let port = url.rsplit(':').next().unwrap();
    let url = format!("http://model.example:{port}");
    let running = ask_with(&home, &getent, servers, &url).stdout("found\n").spawn();
    model.question().answer("found");
    running.finish();
    assert!(!home.beside("calls").exists(), "getent was asked for a name that DNS knows");
}

const NOBODY_LISTENS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);

#[test]
fn of_several_addresses_the_one_that_answers_is_used() {
    need!("root", "private mounts", "getent");
    let servers = dns(&[
        IpAddr::V4(NOBODY_LISTENS),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V4(Ipv4Addr::LOCALHOST),
    ]);
    answered_through(&servers, &Model::new());
}

#[test]
fn a_model_with_an_ipv6_address_is_reached() {
    need!("root", "private mounts", "getent");
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        skip!("it needs IPv6");
    }
    answered_through(
        &dns(&[IpAddr::V6(Ipv6Addr::LOCALHOST)]),
        &Model::at(Ipv6Addr::LOCALHOST.into()),
    );
    // Without a name, too.
    let (home, model) = (Home::new(), Model::at(Ipv6Addr::LOCALHOST.into()));
    let running = home.opta("do -q hello").env("OPTA_MODEL_URL", model.url());
    let running = running.stdout("found\n").spawn();
    model.question().answer("found");
    running.finish();
}

#[test]
fn a_dns_server_that_does_not_answer_is_skipped() {
    need!("root", "private mounts", "getent");
    let (silent, knows) = (dns(&[]), dns(&[IpAddr::V4(Ipv4Addr::LOCALHOST)]));
    let servers = format!("{silent}{knows}options timeout:1\n");
    answered_through(&servers, &Model::new());
}

#[test]
fn a_name_is_given_up_if_no_dns_server_answers() {
    need!("root", "private mounts", "getent");
    let home = Home::new();
    let getent = getent(&home, "exit 2");
    let servers = format!("{}options timeout:30 attempts:5\n", dns(&[]));
    let began = Instant::now();
    let run = ask_with(&home, &getent, &servers, "http://nas.example:1").stderr(ANYTHING);
    let seen = run.status(1).run();
    assert!(seen.stderr.contains("nas.example"), "{}", seen.stderr);
    assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
    // A name in the hosts file needs no server.
    let model = Model::new();
    let url = model.url().replace("127.0.0.1", "six");
    let running = ask_with(&home, &getent, &servers, &url).stdout("found\n").spawn();
    model.question().answer("found");
    running.finish();
}

#[test]
fn ctrl_c_ends_a_task_whose_dns_server_does_not_answer() {
    need!("root", "private mounts", "getent");
    let home = Home::new();
    let getent = getent(&home, "exit 2");
    let servers = format!("{}options timeout:30\n", dns(&[]));
    let run = ask_with(&home, &getent, &servers, "http://nas.example:1").stderr(ANYTHING);
    let running = run.status(130).spawn();
    let log = home.file("daemon.log");
    eventually("the turn starts", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("turn started"))
    });
    signal(running.pid(), "INT");
    running.finish();
}
