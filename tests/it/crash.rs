//! Acknowledged data is not lost: not by a kill at any moment, by a disk that fails or is full, or
//! by a power cut.
//!
//! A kill does not drop the kernel's caches, so it tests the order of writes and their repair. The
//! order of system calls proves that acknowledged data is synced, and so does a simulated power cut
//! of a file system, next to a control writer that does not sync and must lose data.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::api::{Api, Event, answer};
use crate::support::{ANYTHING, Home, eventually, need, rounds, signal, skip};

fn journal(home: &Home, session: &str) -> PathBuf {
    home.file("../sessions").join(session).join("journal.jsonl")
}

fn start_again(home: &Home) -> Api {
    home.opta("daemon start").stdout(ANYTHING).stderr(ANYTHING).run();
    Api::of(home)
}

fn submit(api: &Api, session: &str, turn: &str, bytes: usize) -> Option<u16> {
    let body = format!(r#"{{"turnId":"{turn}","content":"{}"}}"#, "x".repeat(bytes));
    let path = format!("/v3/sessions/{session}/turns");
    Some(api.try_ask("POST", &path, &body)?.status)
}

#[track_caller]
fn assert_whole(events: &[Event]) {
    for (event, seq) in events.iter().zip(1..) {
        assert_eq!(event.seq, seq, "{event:?}");
    }
}

/// A client with numbered turns. It submits each turn after the response to the previous one.
struct Client {
    session: String,
    name: String,
    sent: usize,
    acknowledged: usize,
}

impl Client {
    /// Submits turns until the daemon ends. A turn without a response is submitted again the next
    /// time, with the same id.
    fn run(&mut self, api: &Api, answers: &AtomicUsize) {
        loop {
            self.sent = self.acknowledged + 1;
            let turn = format!("{}_{}", self.name, self.sent);
            match submit(api, &self.session, &turn, fastrand::usize(1..5000)) {
                Some(202) => self.acknowledged = self.sent,
                // The daemon was killed.
                None => return,
                Some(status) => panic!("{turn}: {status}"),
            }
            answers.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Returns the numbers of its turns in the session, in order.
    fn found(&self, events: &[Event]) -> Vec<usize> {
        let mark = format!("{}_", self.name);
        let queued = events.iter().filter(|event| event.name == "turn.queued");
        queued.filter_map(|event| event.turn_id.strip_prefix(&mark)?.parse().ok()).collect()
    }
}

/// Checks the oracle: what was acknowledged is recovered; what is recovered is a prefix of what was
/// sent, without duplicates, reordering or gaps.
#[test]
fn whatever_the_moment_of_the_kill_what_was_acknowledged_is_there() {
    const SESSIONS: usize = 3;
    let home = Home::new();
    home.start();
    let mut api = Api::of(&home);
    for session in 0..SESSIONS {
        api.create(&format!("s{session}"));
    }
    let mut clients: Vec<Client> = (0..5)
        .map(|number| Client {
            session: format!("s{}", number % SESSIONS),
            name: format!("c{number}"),
            sent: 0,
            acknowledged: 0,
        })
        .collect();
    for round in 0..rounds(12, 300) {
        let answers = AtomicUsize::new(0);
        thread::scope(|scope| {
            for client in &mut clients {
                let (api, answers) = (&api, &answers);
                scope.spawn(move || client.run(api, answers));
            }
            // At any time from the daemon's first write on, and at any interval after an answer.
            let enough = fastrand::usize(0..100);
            eventually("turns are submitted", || answers.load(Ordering::SeqCst) >= enough);
            let later = Instant::now() + Duration::from_micros(fastrand::u64(0..3000));
            while Instant::now() < later {
                std::hint::spin_loop();
            }
            home.crash();
        });
        api = start_again(&home);
        let sessions: Vec<Vec<Event>> =
            (0..SESSIONS).map(|session| api.events(&format!("s{session}"), 0)).collect();
        for events in &sessions {
            assert_whole(events);
            let ends = |event: &&Event| event.name == "turn.error";
            let queued = |event: &&Event| event.name == "turn.queued";
            assert_eq!(events.iter().filter(ends).count(), events.iter().filter(queued).count());
        }
        for client in &clients {
            let session: usize = client.session[1..].parse().unwrap();
            let found = client.found(&sessions[session]);
            assert_eq!(found, (1..=found.len()).collect::<Vec<_>>(), "round {round}");
            assert!(
                found.len() >= client.acknowledged,
                "round {round}: an acknowledged turn is lost"
            );
            assert!(
                found.len() <= client.sent,
                "round {round}: a turn is there that was never sent"
            );
        }
    }
    let acknowledged: usize = clients.iter().map(|client| client.acknowledged).sum();
    assert!(acknowledged > 20, "{acknowledged} turns prove nothing");
    home.opta("sessions verify").stdout(ANYTHING).run();
}

/// An strace that is attached to a running daemon. Dropping it detaches it.
pub struct Strace {
    child: Child,
    output: PathBuf,
}

impl Strace {
    /// Attaches strace with these arguments, and `-P` if only one file is to be traced.
    pub fn attach(home: &Home, words: &[&str], only: Option<&Path>) -> Strace {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let output = home.beside(&format!("strace{number}"));
        let said = home.beside(&format!("strace{number}.said"));
        let mut command = Command::new("strace");
        command.args(["-ff", "-s", "64", "-y", "-o"]).arg(&output).args(words);
        if let Some(path) = only {
            command.arg("-P").arg(path.canonicalize().unwrap());
        }
        let pid = home.daemon_info().pid();
        command.args(["-p", &pid.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&said).unwrap());
        let child = command.spawn().unwrap();
        let strace = Strace { child, output };
        eventually("strace is attached", || {
            let attached = fs::read_to_string(&said).unwrap().contains(" attached");
            let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            attached
                && tasks
                    .filter_map(|task| of(task.unwrap()))
                    .all(|s| !s.contains("TracerPid:\t0\n"))
        });
        strace
    }

    /// Returns the system calls of each thread.
    fn detach(mut self) -> Vec<Vec<String>> {
        self.end();
        let beginning = format!("{}.", self.output.file_name().unwrap().to_str().unwrap());
        let files = fs::read_dir(self.output.parent().unwrap()).unwrap();
        let ours = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with(&beginning) && !name.ends_with(".said")
        };
        let files = files.map(|entry| entry.unwrap().path()).filter(ours);
        let lines = |path: PathBuf| -> Vec<String> {
            String::from_utf8_lossy(&fs::read(path).unwrap()).lines().map(str::to_owned).collect()
        };
        files.map(lines).collect()
    }

    fn end(&mut self) {
        signal(i32::try_from(self.child.id()).unwrap(), "INT");
        drop(self.child.wait());
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        self.end();
    }
}

/// Injects the failures of a disk into an append. Some sessions recover without a restart.
#[test]
fn an_append_that_fails_is_refused_and_leaves_no_trace() {
    need!("/proc", "strace");
    for (faults, recovers) in [
        (&["pwrite64:error=ENOSPC"][..], true),
        (&["pwrite64:error=EIO"], true),
        (&["pwrite64:error=EDQUOT"], true),
        (&["fdatasync:error=ENOSPC"], true),
        (&["fdatasync:error=EIO"], false),
        (&["pwrite64:error=ENOSPC", "ftruncate:error=EIO"], false),
        (&["fdatasync:error=EIO", "ftruncate:error=EIO"], false),
    ] {
        let home = Home::new();
        home.start();
        let api = Api::of(&home);
        api.create("s");
        api.create("other");
        api.submit("s", "before").expect(202);
        let events = api.wait_for("s", "turn.error", "before");
        let path = journal(&home, "s");
        let bytes = fs::read(&path).unwrap();
        let mut words = vec!["-e", "trace=pwrite64,fdatasync,ftruncate"];
        let injections: Vec<String> =
            faults.iter().map(|fault| format!("inject={fault}")).collect();
        words.extend(injections.iter().flat_map(|injection| ["-e", injection]));
        let strace = Strace::attach(&home, &words, Some(&path));
        let is_full = !faults[0].ends_with("EIO");
        let (status, code) = if is_full { (507, "STORAGE_FULL") } else { (500, "STORAGE_ERROR") };
        for turn in ["refused", "refused", "refused_too"] {
            let refused = api.submit("s", turn).expect(status);
            assert_eq!(refused.field("code"), code, "{faults:?}");
            assert_eq!(refused.body.contains("check the disk"), status == 500, "{}", refused.body);
        }
        assert_eq!(
            api.events("s", 0),
            events,
            "{faults:?}: events that were not written are visible"
        );
        // The failure affects this session and not the daemon.
        api.submit("other", "t").expect(202);
        api.wait_for("other", "turn.error", "t");
        drop(strace);
        if !faults.iter().any(|fault| fault.starts_with("ftruncate")) {
            assert!(fs::read(&path).unwrap() == bytes, "{faults:?}: the journal has changed");
        }
        let after = api.submit("s", "after");
        assert_eq!(after.status, if recovers { 202 } else { status }, "{faults:?}");
        let mut api = api;
        if !recovers {
            assert_eq!(api.events("s", 0), events, "{faults:?}");
            home.opta("daemon restart").stdout(ANYTHING).run();
            api = Api::of(&home);
            api.submit("s", "after").expect(202);
        }
        let events_after = api.wait_for("s", "turn.error", "after");
        assert_whole(&events_after);
        let turns: Vec<&str> = events_after
            .iter()
            .filter(|event| event.name == "turn.queued" && !event.turn_id.starts_with("refused"))
            .map(|event| event.turn_id.as_str())
            .collect();
        assert_eq!(turns, ["before", "after"], "{faults:?}");
        assert_eq!(events_after[..events.len()], events);
        // A record that could neither be synced nor cut off may reappear: its request got no final
        // refusal.
        let came_back = events_after.iter().any(|event| event.turn_id.starts_with("refused"));
        assert!(!came_back || faults[0].starts_with("fdatasync"), "{faults:?}");
        assert!(fs::read(&path).unwrap().starts_with(&bytes), "{faults:?}");
        assert!(api.get("/v3/health").status == 200);
    }
}

/// Checks the order in the thread that answers: the record, its sync, then the response.
#[test]
fn nothing_is_acknowledged_before_it_is_synced() {
    need!("/proc", "strace");
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    let trace = "trace=pwrite64,write,fdatasync,fsync,sendto,rename,mkdir";
    let strace = Strace::attach(&home, &["-e", trace], None);
    api.create("s");
    api.submit("s", "t").expect(202);
    api.wait_for("s", "turn.error", "t");
    let threads = strace.detach();
    let position = |lines: &[String], call: &str, of: &str| {
        lines.iter().position(|line| {
            let name = line.split('(').next().unwrap();
            let whole = line.ends_with(" = 0") || name != call || !call.contains("sync");
            name == call && line.contains(of) && whole
        })
    };
    let find = |status: &str| {
        let is_it = |line: &String| line.contains(&format!("\"HTTP/1.1 {status}"));
        let lines = threads.iter().find(|lines| lines.iter().any(is_it)).unwrap();
        let end = lines.iter().position(is_it).unwrap();
        // A thread may have answered another request before.
        let before = lines[..end].iter().rposition(|line| line.contains("\"HTTP/1.1 "));
        lines[before.map_or(0, |before| before + 1)..end].to_vec()
    };
    let created = find("201");
    let index = position(&created, "fdatasync", "sessions/index.jsonl>)").unwrap();
    let written = position(&created, "pwrite64", "sessions/s/journal.jsonl>").unwrap();
    let synced = position(&created, "fdatasync", "sessions/s/journal.jsonl>)").unwrap();
    let named = position(&created, "fsync", "sessions/s>)").unwrap();
    let listed = created.iter().rposition(|line| {
        line.starts_with("fsync(") && line.contains("sessions>)") && line.ends_with(" = 0")
    });
    assert!(index < written && written < synced, "{created:#?}");
    assert!(synced < named && Some(named) < listed, "{created:#?}");
    // The directory of sessions was new as well.
    assert!(position(&created, "fsync", ".config/opta>)").is_some(), "{created:#?}");
    let accepted = find("202");
    let written = position(&accepted, "pwrite64", "sessions/s/journal.jsonl>").unwrap();
    let synced = position(&accepted, "fdatasync", "sessions/s/journal.jsonl>)").unwrap();
    assert!(written < synced, "{accepted:#?}");
    assert_eq!(accepted.len(), synced + 1, "one write, one sync, the answer: {accepted:#?}");
}

/// Delays the sync of one journal: requests about other sessions do not wait for it.
#[test]
fn no_session_waits_for_the_sync_of_another() {
    need!("/proc", "strace");
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    api.create("slow");
    api.create("quick");
    let slow = "inject=fdatasync:delay_enter=600s";
    let words = ["-e", "trace=fdatasync", "-e", slow];
    let strace = Strace::attach(&home, &words, Some(&journal(&home, "slow")));
    let waiting = api.send(
        "POST",
        "/v3/sessions/slow/turns",
        "Content-Type: application/json\r\n",
        br#"{"turnId":"t","content":"x"}"#,
    );
    api.submit("quick", "t").expect(202);
    api.wait_for("quick", "turn.error", "t");
    api.create("another");
    api.get("/v3/health").expect(200);
    api.get("/v3/metrics").expect(200);
    api.ask("DELETE", "/v3/sessions/another", "").expect(204);
    let waiting = waiting.unwrap();
    waiting.set_nonblocking(true).unwrap();
    let answered = waiting.peek(&mut [0]);
    assert!(answered.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "it was not slow");
    waiting.set_nonblocking(false).unwrap();
    drop(strace);
    answer(waiting).unwrap().expect(202);
}

/// A file system that is mounted for this test.
struct Mount(PathBuf);

impl Mount {
    fn new(words: &[&str], place: &Path) -> Option<Mount> {
        fs::create_dir_all(place).unwrap();
        let mut mount = Command::new("mount");
        mount.args(words).arg(place).stderr(Stdio::null());
        if !mount.status().ok()?.success() {
            return None;
        }
        let mounted = Mount(place.to_owned());
        let chmod = Command::new("chmod").arg("700").arg(place).status();
        assert!(chmod.unwrap().success());
        Some(mounted)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status());
    }
}

#[test]
fn a_full_disk_refuses_new_turns_keeps_the_old_and_goes_on_when_there_is_room() {
    need!("root");
    let home = Home::new();
    let config = home.config().parent().unwrap().to_owned();
    home.write(&home.config(), "{}");
    let place = config.join("sessions");
    let Some(_mount) = Mount::new(&["-t", "tmpfs", "-o", "size=400k", "none"], &place) else {
        skip!("no tmpfs can be mounted");
    };
    home.start();
    let mut api = Api::of(&home);
    api.create("s");
    let ballast = place.join("ballast");
    let (mut accepted, mut refused) = (Vec::new(), 0);
    for round in 0..rounds(6, 40) {
        // The daemon may still be closing the journal of the session that was deleted.
        eventually("there is room", || fs::write(&ballast, vec![0; 60_000]).is_ok());
        // Whatever its size, until nothing fits at all.
        for size in [30_000, 9_000, 3_000, 700, 100, 1, 1, 1, 1, 1, 1] {
            for turn in 0..400 {
                let turn = format!("r{round}_{size}_{turn}_{}", accepted.len());
                let before = fs::read(journal(&home, "s")).unwrap();
                match submit(&api, "s", &turn, size).unwrap() {
                    202 => accepted.push(turn),
                    507 => {
                        let now = fs::read(journal(&home, "s")).unwrap();
                        assert!(now.starts_with(acknowledged(&before)), "the journal has changed");
                        refused += 1;
                        break;
                    }
                    status => panic!("{status}"),
                }
            }
        }
        api.get("/v3/health").expect(200);
        api.get("/v3/sessions/s").expect(200);
        let full = api.events("s", 0);
        assert_whole(&full);
        if round % 2 == 1 {
            home.crash();
            api = start_again(&home);
            // Readable on a full disk as well.
            assert_eq!(api.events("s", 0)[..full.len()], full);
        }
        fs::remove_file(&ballast).unwrap();
        let last = format!("r{round}_last");
        assert_eq!(submit(&api, "s", &last, 1), Some(202), "there is room again");
        api.wait_for("s", "turn.error", &last);
        accepted.push(last);
        let events = api.events("s", 0);
        assert_whole(&events);
        assert_eq!(events[..full.len()], full);
        let of = |name: &str| -> Vec<&str> {
            let named = events.iter().filter(|event| event.name == name);
            named.map(|event| event.turn_id.as_str()).collect()
        };
        assert_eq!(of("turn.queued"), accepted);
        // Each turn has one end, and none began twice.
        for (name, exactly) in [("turn.error", true), ("turn.start", false)] {
            let mut turns = of(name);
            turns.sort_unstable();
            let all = turns.len();
            turns.dedup();
            assert_eq!(turns.len(), all, "{name} is there twice");
            assert!(!exactly || all == accepted.len());
        }
        // Free space for the next round.
        api.ask("DELETE", "/v3/sessions/s", "").expect(204);
        api.create("s");
        accepted.clear();
    }
    assert!(refused > 10);
}

/// Returns a journal up to the end of the last accepted turn: what follows may be a write that is
/// in progress, and is undone if the disk is full.
fn acknowledged(journal: &[u8]) -> &[u8] {
    let queued = b"\"event\":\"turn.queued\"";
    let last = journal.windows(queued.len()).rposition(|bytes| bytes == queued);
    let end = last.map(|at| at + journal[at..].iter().position(|byte| *byte == b'\n').unwrap());
    &journal[..end.map_or(0, |end| end + 1)]
}

/// Returns what was acknowledged and is not in `recovered`.
fn lost<'a>(acknowledged: &'a [String], recovered: &str) -> Vec<&'a String> {
    acknowledged.iter().filter(|turn| !recovered.contains(&format!("\"{turn}\""))).collect()
}

/// EXT4_IOC_SHUTDOWN with NOLOGFLUSH: from now on nothing reaches the disk, as after a power cut.
///
/// First it leaves a mark. Acknowledgments after that do not count: a machine without power sends
/// no responses, but here a sync that is in progress at the cut may report success (when the
/// aborted transaction was committed for another thread, jbd2_complete_transaction finds nothing to
/// wait for).
const CUT: &str = "import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
open(sys.argv[2], 'w').close()
fcntl.ioctl(fd, 0x8004587d, struct.pack('I', 2))
";

/// Acknowledges lines that it wrote and did not sync, until it is killed.
const CARELESS: &str = "import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
for n in range(100):
    os.write(file, b'{\"turnId\":\"careless_%d\"}\\n' % n)
";

#[test]
fn after_a_power_cut_what_was_acknowledged_is_there() {
    need!("root", "python3", "mkfs.ext4");
    for round in 0..rounds(3, 30) {
        let home = Home::new();
        home.write(&home.config(), "{}");
        let image = home.beside("disk");
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let mut mkfs = Command::new("mkfs.ext4");
        assert!(mkfs.args(["-q", "-F"]).arg(&image).status().unwrap().success());
        let place = home.config().parent().unwrap().join("sessions");
        let mounted = |image: &Path| Mount::new(&["-o", "loop", image.to_str().unwrap()], &place);
        let Some(mount) = mounted(&image) else {
            skip!("no loop device can be mounted");
        };
        home.start();
        let Some(clients) = until_the_cut(&home, &place) else {
            skip!("this ext4 cannot be shut down");
        };
        // What had reached the disk when the power was cut. A copy: the kernel keeps the file
        // system in that state as long as it is mounted in any namespace.
        home.crash();
        drop(mount);
        let disk = home.beside("disk after the cut");
        assert!(Command::new("cp").arg(&image).arg(&disk).status().unwrap().success());
        let _mount = mounted(&disk).unwrap();
        // The same check for both: unless the writer that does not sync lost data, there was no
        // cut.
        let careless: Vec<String> = (0..100).map(|n| format!("careless_{n}")).collect();
        let left = fs::read(place.join("careless")).unwrap_or_default();
        let lost_by_careless = lost(&careless, &String::from_utf8_lossy(&left));
        assert!(!lost_by_careless.is_empty(), "round {round}: the power was not cut");
        let api = start_again(&home);
        let listed = api.get("/v3/sessions").body;
        for (session, acknowledged) in clients {
            assert!(!acknowledged.is_empty() && listed.contains(&format!("\"{session}\"")));
            let events = api.events(&session, 0);
            assert_whole(&events);
            let text: String = events.iter().map(|event| event.text.as_str()).collect();
            assert!(lost(&acknowledged, &text).is_empty(), "round {round}: {acknowledged:?}");
            api.submit(&session, "after").expect(202);
            assert_whole(&api.wait_for(&session, "turn.error", "after"));
        }
        home.crash();
    }
}

/// Submits turns to three sessions in parallel until the power is cut. Returns what was
/// acknowledged in each before that; `None` if the power cannot be cut.
fn until_the_cut(home: &Home, place: &Path) -> Option<Vec<(String, Vec<String>)>> {
    let api = Api::of(home);
    let mark = home.beside("cut");
    thread::scope(|scope| {
        let client = |number: usize| {
            let (api, mark) = (&api, &mark);
            move || {
                let session = format!("s{number}");
                api.create(&session);
                let mut acknowledged = vec![session.clone()];
                for turn in 0.. {
                    let turn = format!("t{number}_{turn}");
                    match submit(api, &session, &turn, fastrand::usize(1..3000)) {
                        Some(202) if !mark.exists() => acknowledged.push(turn),
                        _ => break,
                    }
                }
                (session, acknowledged)
            }
        };
        let threads: Vec<_> = (0..3).map(|number| scope.spawn(client(number))).collect();
        let enough = fastrand::u64(20..150);
        let submitted = || api.get("/v3/metrics").number("totalTurns") >= enough;
        eventually("turns are submitted", submitted);
        let python = |script: &str, path: &Path| {
            let mut python = Command::new("python3");
            python.args(["-c", script]).arg(path).arg(&mark).status().unwrap().success()
        };
        assert!(python(CARELESS, &place.join("careless")));
        let cut = python(CUT, place);
        let clients = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        cut.then_some(clients)
    })
}

/// Damages a journal as a crash, a power cut and a careless copy may do, and checks everything that
/// the real daemon reports about it.
#[test]
fn a_damaged_journal_is_repaired_once_reported_once_and_continues() {
    let home = Home::new();
    home.start();
    let api = Api::of(&home);
    api.create("s");
    for turn in ["a", "b", "c"] {
        api.submit("s", turn).expect(202);
        api.wait_for("s", "turn.error", turn);
    }
    let events = api.events("s", 0);
    home.opta("daemon stop").stdout(ANYTHING).run();
    let path = journal(&home, "s");
    let mut bytes = fs::read(&path).unwrap();
    let line = bytes.iter().position(|byte| *byte == b'\n').unwrap();
    // In the middle: the second record. At the end: a part of one, and zeros.
    bytes[line + 40] ^= 4;
    bytes.extend(b"{\"v\":\"3\",\"event\":\"turn.qu\0\0\0\0");
    home.write(&path, &bytes);
    home.opta("sessions verify").stdout(ANYTHING).stderr(ANYTHING).status(1).run();
    assert!(fs::read(&path).unwrap() == bytes, "asking has changed something");
    home.start();
    let api = Api::of(&home);
    let found = api.events("s", 0);
    let expected: Vec<Event> = events.iter().filter(|event| event.seq != 2).cloned().collect();
    assert_eq!(found, expected);
    api.submit("s", "d").expect(202);
    let last = api.wait_for("s", "turn.error", "d");
    assert_eq!(last.last().unwrap().seq, events.len() as u64 + 3);
    let log = || fs::read_to_string(home.file("daemon.log")).unwrap();
    assert_eq!(log().matches("session repaired").count(), 1);
    assert!(log().contains(r#""damaged":1,"torn_bytes":29"#), "{}", log());
    let torn = fs::read(path.with_file_name("journal.torn-1")).unwrap();
    assert_eq!(torn, b"{\"v\":\"3\",\"event\":\"turn.qu\0\0\0\0");
}
