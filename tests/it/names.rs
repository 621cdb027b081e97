//! Names of model servers, found as the system finds them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::model::Model;
use crate::support::{ANYTHING, Home, Run, eventually, need, signal};

/// Writes a program that answers for getent(1), whose arguments are added to a file.
fn getent(home: &Home, script: &str) -> PathBuf {
    let (path, calls) = (home.beside("getent"), home.beside("calls"));
    fs::write(&path, format!("#!/bin/sh\necho \"$*\" >>'{}'\n{script}\n", calls.display()))
        .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// `opta do` where getent(1) is this program, and no DNS server answers.
fn ask<'h>(home: &'h Home, getent: &Path, url: &str) -> Run<'h> {
    let hosts = home.beside("hosts");
    fs::write(&hosts, "127.0.0.1 localhost inhosts.local\n::1 six\n127.0.0.1 six\n").unwrap();
    let resolv = home.beside("resolv.conf");
    fs::write(&resolv, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n").unwrap();
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
    let pid = fs::read_to_string(&pid).unwrap();
    eventually("getent has ended", || !PathBuf::from(format!("/proc/{}", pid.trim())).exists());
}
