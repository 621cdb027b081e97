//! `opta sessions …`: what it shows of sessions that a daemon has made, without that daemon, and
//! whatever else lies in their directory.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::thread;

use crate::support::{ANYTHING, DEADLINE, Home, STOPPED, eventually, need};

const UNANSWERED: &str = "  cannot reach the model server at http://127.0.0.1:1/v1 {why}
";
const ONE_DAMAGED: &str = "1 session checked, 1 damaged
";

/// Asks the daemon that runs in `home`; the body of what must be a success.
fn ask(home: &Home, method: &str, path: &str, body: &str) -> String {
    let card = home.card();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, card.port()));
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let (port, token, length) = (card.port(), card.token(), body.len());
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 2"), "{method} {path}: {reply}");
    reply.split_once("\r\n\r\n").unwrap().1.to_owned()
}

fn create(home: &Home, id: &str, title: Option<&str>) {
    let title = title.map_or("null".to_owned(), |title| format!("\"{title}\""));
    ask(home, "POST", "/v3/sessions", &format!(r#"{{"sessionId":"{id}","title":{title}}}"#));
}

/// Submits a turn to a session that has `seq` events, and waits until it has ended.
fn submit(home: &Home, id: &str, content: &str, seq: u64) {
    ask(
        home,
        "POST",
        &format!("/v3/sessions/{id}/turns"),
        &format!(r#"{{"content":"{content}"}}"#),
    );
    // Queued, started, ended.
    let last = seq + 2;
    let path = format!("/v3/sessions/{id}/events?afterSeq={last}&timeout=60000");
    assert!(ask(home, "GET", &path, "").contains("turn.error"));
}

/// A home with sessions of these ids, the newest last, and no daemon.
fn with_sessions(ids: &[&str]) -> Home {
    let home = Home::new();
    home.start();
    for id in ids {
        create(&home, id, None);
    }
    home.opta("daemon stop").stdout(STOPPED).run();
    home
}

fn sessions(home: &Home) -> PathBuf {
    home.path().join(".config/opta/sessions")
}

fn journal(home: &Home, id: &str) -> PathBuf {
    sessions(home).join(id).join("journal.jsonl")
}

#[test]
fn without_sessions_everything_says_so_and_makes_nothing() {
    let home = Home::new();
    let before = home.snapshot();
    let none = "opta: there are no sessions yet\n";
    home.opta("sessions list").stderr(none).run();
    home.opta("sessions list --json").stderr(none).run();
    home.opta("sessions verify").stdout("0 sessions checked, 0 damaged\n").run();
    let unknown = "opta: cannot find the session: no id begins with 'x'\n\
                   to see which there are: opta sessions list\n";
    for words in ["show x", "export x", "verify x", "rm --force x"] {
        home.opta(&format!("sessions {words}")).stderr(unknown).status(1).run();
    }
    assert_eq!(home.snapshot(), before);
}

#[test]
fn list_shows_the_newest_first_and_says_when_there_are_more() {
    let home = Home::new();
    home.start();
    create(&home, "a", Some("first"));
    create(&home, "longer-id", None);
    create(&home, "c", Some(&"t".repeat(61)));
    submit(&home, "longer-id", "what\\n  is it?", 1);
    let third = format!("c          {{age}}    0 turns  {}\n", "t".repeat(60));
    let second = "longer-id  {age}     1 turn  what is it?\n";
    let first = "a          {age}    0 turns  first\n";
    home.opta("sessions list").stdout(&format!("{third}{second}{first}")).run();
    let more = "opta: there are more than 2 sessions; to list more: --limit N\n";
    home.opta("sessions list --limit 2").stdout(&format!("{third}{second}")).stderr(more).run();
    home.opta("sessions list --limit 3").stdout(&format!("{third}{second}{first}")).run();
    let objects = "{\"sessionId\":\"c\",{a}}\n{\"sessionId\":\"longer-id\",{b}}\n\
                   {\"sessionId\":\"a\",{c}}\n";
    home.opta("sessions list --json").stdout(objects).run();
}

#[test]
fn show_and_export_tell_what_was_said_while_the_daemon_runs() {
    let home = Home::new();
    home.start();
    let brought = r#"{"sessionId":"s","title":"T","metadata":{"workspace":"/w"},"messages":[
        {"role":"system","content":"be brief"},{"role":"assistant","content":"a\tb"}]}"#;
    ask(&home, "POST", "/v3/sessions", brought);
    submit(&home, "s", "one\\n\\u001b[2Jtwo", 1);
    let shown = format!(
        "s: T  (1 turn, created {{created}}, in /w)\n\nsystem\n  be brief\n\nassistant\n  a\tb\n\n\
         user\n  one\n  \\u{{1b}}[2Jtwo\n\nerror\n{UNANSWERED}"
    );
    let seen = home.opta("sessions show s").stdout(&shown).run();
    let created = seen.get("created").to_owned();
    let markdown = "# T\n\n- Session: `s`\n- Created: {created}\n- Turns: 1\n- Workspace: /w\n\n\
                    ## System\n\nbe brief\n\n## Assistant\n\na\tb\n\n\
                    ## User\n\none\n\\u{1b}[2Jtwo\n\n\
                    ## Error\n\n{why}\n";
    let export = home.opta("sessions export s --format markdown").stdout(markdown);
    export.with("created", &created).run();
    // The same as the daemon's own answer.
    let object = ask(&home, "GET", "/v3/sessions/s", "");
    assert!(object.ends_with(r#"{"role":"user","content":"one\n\u001b[2Jtwo"}]}"#), "{object}");
    for words in ["show s --json", "export s", "export s --format=json"] {
        let seen = home.opta(&format!("sessions {words}")).stdout(ANYTHING).run();
        assert_eq!(seen.stdout, format!("{object}\n"), "{words}");
    }
}

#[test]
fn an_id_may_be_cut_short_as_long_as_it_is_the_only_one() {
    let home = with_sessions(&["ab1", "ab2", "ab", "-x"]);
    home.opta("sessions show ab1").stdout("ab1  (0 turns, created {when})\n").run();
    home.opta("sessions show -- -").stdout("-x  (0 turns, created {when})\n").run();
    home.opta("sessions show ab").stdout("ab  (0 turns, created {when})\n").run();
    let which = "opta: cannot select session 'a': it could be ab, ab1, ab2\n";
    home.opta("sessions show a").stderr(which).status(1).run();
    let code = "{\"error\":{\"code\":\"AMBIGUOUS_ID\",\"message\":\"{message}\"}}\n";
    home.opta("sessions show a --json").stdout(code).status(1).run();
    let code = "{\"error\":{\"code\":\"SESSION_NOT_FOUND\",\"message\":\"{message}\"}}\n";
    home.opta("sessions verify abc --json").stdout(code).status(1).run();
    for odd in ["", "..", "../daemon", "a/b", "index.jsonl", "\u{1b}[2J"] {
        let seen = home.opta("sessions show").arg(odd).stderr(ANYTHING).status(1).run();
        assert!(seen.stderr.starts_with("opta: cannot find the session: "), "{}", seen.stderr);
        assert!(!seen.stderr.contains('\u{1b}'), "{}", seen.stderr);
    }
}

#[test]
fn of_many_candidates_some_are_named() {
    let home = with_sessions(&["a1", "a2", "a3", "a4", "a5"]);
    let all = "opta: cannot select session 'a': it could be a1, a2, a3, a4, a5\n";
    home.opta("sessions show a").stderr(all).status(1).run();
    fs::rename(sessions(&home).join("a1"), sessions(&home).join("a6")).unwrap();
    fs::create_dir(sessions(&home).join("a0")).unwrap();
    fs::copy(journal(&home, "a2"), sessions(&home).join("a0/journal.jsonl")).unwrap();
    let some = "opta: cannot select session 'a': it could be a0, a2, a3, a4, a5 and 1 more\n";
    home.opta("sessions show a").stderr(some).status(1).run();
}

#[test]
fn verify_finds_what_is_damaged_and_what_is_torn() {
    let home = Home::new();
    home.start();
    create(&home, "whole", None);
    create(&home, "hurt", None);
    submit(&home, "hurt", "x", 1);
    home.opta("daemon stop").stdout(STOPPED).run();
    home.opta("sessions verify").stdout("2 sessions checked, 0 damaged\n").run();
    home.opta("sessions verify hurt").stdout("1 session checked, 0 damaged\n").run();

    let path = journal(&home, "hurt");
    let good = fs::read_to_string(&path).unwrap();
    let bad = good.replacen("\"seq\":2,", "\"seq\":7,", 1);
    assert_ne!(bad, good);
    fs::write(&path, &bad).unwrap();
    let damaged =
        "hurt  3 intact records, 1 damaged, 0 torn bytes\n2 sessions checked, 1 damaged\n";
    home.opta("sessions verify").stdout(damaged).status(1).run();
    home.opta("sessions verify whole").stdout("1 session checked, 0 damaged\n").run();

    fs::write(&path, format!("{good}{{\"v\":\"3\"")).unwrap();
    let torn = format!("hurt  4 intact records, 0 damaged, 8 torn bytes\n{ONE_DAMAGED}");
    home.opta("sessions verify h").stdout(&torn).status(1).run();
    let torn = "{\"sessionId\":\"hurt\",\"records\":4,\"damaged\":0,\"tornBytes\":8,\"missingBytes\":0}\n\
                {\"sessions\":1,\"damagedSessions\":1}\n";
    home.opta("sessions verify hurt --json").stdout(torn).status(1).run();
    // What is whole can still be read, and it is said that there was more.
    home.opta("sessions show hurt").stdout(ANYTHING).run();
    let lost = |what: &str| format!("opta: {what}; see: opta sessions verify hurt\n");
    fs::write(&path, &bad).unwrap();
    for words in ["show h", "show h --json", "export h", "export h --format markdown"] {
        let run = home.opta(&format!("sessions {words}")).stdout(ANYTHING);
        run.stderr(&lost("1 damaged record is omitted")).run();
    }
    fs::write(&path, bad.replacen("\"seq\":3,", "\"seq\":8,", 1)).unwrap();
    let run = home.opta("sessions show h").stdout(ANYTHING);
    run.stderr(&lost("2 damaged records are omitted")).run();
    let first = &good[..=good.find('\n').unwrap()];
    fs::write(&path, first).unwrap();
    let missing = format!(
        "opta: {} bytes are missing at the end; see: opta sessions verify hurt\n",
        good.len() - first.len()
    );
    home.opta("sessions show h").stdout(ANYTHING).stderr(&missing).run();
}

#[test]
fn sessions_that_are_in_no_list_are_counted_and_come_back() {
    let home = Home::new();
    home.start();
    for name in ["one", "two", "three"] {
        create(&home, name, None);
    }
    home.opta("sessions verify").stdout("3 sessions checked, 0 damaged\n").run();
    let index = home.path().join(".config/opta/sessions/index.jsonl");
    let whole = fs::read_to_string(&index).unwrap();
    let (first, rest) = whole.split_once('\n').unwrap();
    fs::write(&index, format!("{}\n{rest}", first.replace('"', "?"))).unwrap();

    let read = "3 sessions checked, 0 damaged\n";
    let said = "opta: cannot list all sessions: {index} lacks 1; removed, it is made again\n";
    let listed = "three  {*}\ntwo    {*}\n";
    home.opta("sessions list").stdout(listed).run();
    home.opta("sessions verify").stdout(read).stderr(said).status(1).run();
    home.opta("sessions verify one").stdout("1 session checked, 0 damaged\n").run();
    let said = "{\"error\":{\"code\":\"SESSIONS_UNLISTED\",\"message\":\"{message}\"}}\n\
                {\"sessions\":3,\"damagedSessions\":0}\n";
    home.opta("sessions verify --json").stdout(said).status(1).run();
    let found = "{*}fail  sessions  cannot list all sessions: {*}; fix: rm {*}\n";
    home.opta("doctor").stdout(found).status(1).run();

    fs::remove_file(&index).unwrap();
    home.opta("sessions verify").stdout(read).run();
    // With the next session, also in the daemon that runs.
    create(&home, "four", None);
    assert_eq!(fs::read_to_string(&index).unwrap().lines().count(), 4);
    let listed = "four   {*}\n{*}\n{*}\none    {*}\n";
    home.opta("sessions list").stdout(listed).run();
    home.opta("sessions verify").stdout("4 sessions checked, 0 damaged\n").run();
}

#[test]
fn a_last_record_with_its_line_end_is_damaged_and_not_torn() {
    let home = Home::new();
    home.start();
    create(&home, "one", None);
    create(&home, "two", None);
    submit(&home, "two", "x", 1);
    home.opta("daemon stop").stdout(STOPPED).run();
    for id in ["one", "two"] {
        let mut bytes = fs::read(journal(&home, id)).unwrap();
        let at = bytes.len() - 20;
        bytes[at] ^= 1;
        fs::write(journal(&home, id), bytes).unwrap();
    }
    let verified = "one  0 intact records, 1 damaged, 0 torn bytes\n\
                    two  3 intact records, 1 damaged, 0 torn bytes\n\
                    2 sessions checked, 2 damaged\n";
    home.opta("sessions verify").stdout(verified).status(1).run();
    // What is torn as well is told apart from it.
    let mut file = File::options().append(true).open(journal(&home, "two")).unwrap();
    file.write_all(b"{\"v\":\"3\"").unwrap();
    let verified = format!("two  3 intact records, 1 damaged, 8 torn bytes\n{ONE_DAMAGED}");
    home.opta("sessions verify two").stdout(&verified).status(1).run();
    let refused = "opta: cannot read the session one: no record of its journal is whole\n";
    let refused = format!("{refused}to see what is wrong: opta sessions verify one\n");
    for words in ["show one", "export one", "export one --format markdown"] {
        home.opta(&format!("sessions {words}")).stderr(&refused).status(1).run();
    }
    let refused = "{\"error\":{\"code\":\"SESSION_DAMAGED\",\"message\":\"{message}\"}}\n";
    home.opta("sessions show one --json").stdout(refused).status(1).run();
    home.opta("sessions rm --force one").stdout("Session one deleted.\n").run();
    // The daemon sets aside what is behind the last intact record, and misses nothing then.
    ask(&home, "GET", "/v3/sessions/two", "");
    assert!(sessions(&home).join("two/journal.torn-1").exists());
    home.opta("sessions verify").stdout("1 session checked, 0 damaged\n").run();
    let log = home.opta("daemon logs --level warn").stdout(ANYTHING).run();
    let repaired = log.stdout.lines().find(|line| line.contains("session repaired")).unwrap();
    assert!(repaired.contains("damaged=1"), "{repaired}");
}

#[test]
fn a_session_that_has_lost_its_journal_is_named() {
    let home = with_sessions(&["cut", "empty", "gone", "never", "whole"]);
    let bytes = fs::metadata(journal(&home, "cut")).unwrap().len();
    // As a crash leaves it before the session is acknowledged.
    File::create(journal(&home, "never")).unwrap();
    fs::remove_file(sessions(&home).join("never/summary.json")).unwrap();
    File::create(journal(&home, "empty")).unwrap();
    fs::remove_file(journal(&home, "gone")).unwrap();
    let kept = sessions(&home).join("cut/summary.json");
    let longer = fs::read_to_string(&kept).unwrap();
    let longer = longer.replace(&format!("\"bytes\":{bytes},"), "\"bytes\":5000,");
    home.write(&kept, longer);

    let missing = 5000 - bytes;
    let verified = format!(
        "cut  1 intact record, 0 damaged, 0 torn bytes, {missing} bytes missing\n\
         empty  0 intact records, 0 damaged, 0 torn bytes, {{empty}} bytes missing\n\
         gone  0 intact records, 0 damaged, 0 torn bytes, {{gone}} bytes missing\n\
         4 sessions checked, 3 damaged\n",
    );
    let before = home.snapshot();
    home.opta("sessions verify").stdout(&verified).status(1).run();
    let told = "{\"sessionId\":\"gone\",{counts},\"missingBytes\":{bytes}}\n\
                {\"sessions\":1,\"damagedSessions\":1}\n";
    home.opta("sessions verify gone --json").stdout(told).status(1).run();
    let lost =
        |id: &str| format!("opta: cannot read the session {id}: its journal is empty or missing\n");
    let listed = "whole  {a}    0 turns\ncut    {b}    0 turns\n";
    let both = lost("gone") + &lost("empty");
    home.opta("sessions list").stdout(listed).stderr(&both).status(1).run();
    for id in ["gone", "empty"] {
        let next = format!("to see what is wrong: opta sessions verify {id}\n");
        let refused = lost(id) + &next;
        home.opta(&format!("sessions show {id}")).stderr(&refused).status(1).run();
        home.opta(&format!("sessions export {id}")).stderr(&refused).status(1).run();
    }
    assert_eq!(home.snapshot(), before);
    // An index that is made anew has them as well.
    fs::remove_file(sessions(&home).join("index.jsonl")).unwrap();
    home.opta("sessions verify").stdout(&verified).status(1).run();

    // The daemon does not deny that there was one.
    for words in ["do x --resume gone", "chat --once x --resume gone"] {
        let run = home.opta(words).env("OPTA_MODEL_URL", "http://127.0.0.1:1");
        let told = run.stderr(ANYTHING).status(1).run().stderr;
        assert!(told.contains(lost("gone").trim_start_matches("opta: ").trim_end()), "{told}");
    }
    let deleted = |id: &str| format!("Session {id} deleted.\n");
    home.opta("sessions rm --force gone").stdout(&deleted("gone")).run();
    home.opta("sessions rm --force empty").stdout(&deleted("empty")).run();
    home.opta("sessions rm --force cut").stdout(&deleted("cut")).run();
    home.opta("sessions verify").stdout("1 session checked, 0 damaged\n").run();
}

#[test]
fn a_record_that_is_just_being_written_is_not_torn() {
    need!("/proc");
    let home = with_sessions(&["s"]);
    let path = journal(&home, "s");
    let record = fs::read(&path).unwrap();
    // The rest comes when the journal is watched, and so has looked torn once.
    let (first, rest) = record.split_at(record.len() / 2);
    fs::write(&path, first).unwrap();
    let mut verify = home.opta("sessions verify").stdout("1 session checked, 0 damaged\n").spawn();
    let watches = |pid: i32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        let mut open = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        open.any(|path| path.ends_with("anon_inode:inotify"))
    };
    let pid = verify.pid();
    eventually("it watches the journal", || watches(pid) || verify.has_ended());
    let mut journal = File::options().append(true).open(&path).unwrap();
    journal.write_all(rest).unwrap();
    verify.finish();
}

#[test]
fn reading_writes_nothing_and_strangers_do_not_disturb_it() {
    let home = with_sessions(&["one", "two"]);
    let root = sessions(&home);
    // Left by others: a file, an empty session, links, a directory where a journal should be.
    fs::write(root.join("notes"), "x").unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::create_dir_all(root.join("odd name/journal.jsonl")).unwrap();
    fs::write(root.join("index.jsonl.old"), "x").unwrap();
    let mut index = File::options().append(true).open(root.join("index.jsonl")).unwrap();
    index.write_all(b"no json\n{\"sessionId\":\"../x\",\"createdAt\":\"\"}\n{\"sess").unwrap();
    drop(index);
    fs::write(root.join("one/summary.json"), "{\"bytes\":").unwrap();
    fs::remove_file(root.join("two/summary.json")).unwrap();
    symlink("/dev/zero", root.join("two/summary.json")).unwrap();
    let before = home.snapshot();
    let both = "two  {a}    0 turns\none  {a}    0 turns\n";
    home.opta("sessions list").stdout(both).run();
    home.opta("sessions show one").stdout(ANYTHING).run();
    home.opta("sessions export two --format markdown").stdout(ANYTHING).run();
    home.opta("sessions verify").stdout("2 sessions checked, 0 damaged\n").run();
    assert_eq!(home.snapshot(), before);
    home.assert_nothing_left();

    // One that cannot be read is named, and does not hide the others.
    fs::remove_file(journal(&home, "two")).unwrap();
    fs::create_dir(journal(&home, "two")).unwrap();
    let refused = "opta: cannot use {path}: it is not a regular file\n";
    let one = "one  {a}    0 turns\n";
    home.opta("sessions list").stdout(one).stderr(refused).status(1).run();
    let one = "1 session checked, 0 damaged\n";
    home.opta("sessions verify").stdout(one).stderr(refused).status(1).run();
    let told = "{\"error\":{\"code\":\"UNTRUSTED_PATH\",\"message\":\"{message}\"}}\n\
                {\"sessions\":1,\"damagedSessions\":0}\n";
    home.opta("sessions verify --json").stdout(told).status(1).run();
}

#[test]
fn readers_may_leave_and_disks_may_be_full() {
    let home = with_sessions(&["one", "two"]);
    home.sh("opta sessions list | head -n 1").stdout("two  {a}    0 turns\n").run();
    home.sh("opta sessions show one | head -n 0").run();
    let full = "opta: cannot write to standard output: No space left on device\n";
    for words in ["list", "list --json", "show one", "export one", "verify"] {
        let run = home.opta(&format!("sessions {words}")).output("/dev/full".as_ref());
        run.stderr(full).status(1).run();
    }
}

#[test]
fn rm_goes_through_the_daemon_that_runs() {
    let home = Home::new();
    home.start();
    for id in ["one", "two", "three"] {
        create(&home, id, None);
    }
    let deleted = "Session one deleted.\n";
    home.opta("sessions rm --force on").stdout(deleted).run();
    assert!(!sessions(&home).join("one").exists());
    let deleted = "{\"deleted\":true,\"sessionId\":\"two\"}\n";
    home.opta("sessions rm two --force --json").stdout(deleted).run();
    home.opta("sessions list").stdout("three  {age}    0 turns\n").run();
    home.opta("sessions rm --force one").stderr(ANYTHING).status(1).run();
}

#[test]
fn rm_does_not_ask_where_nobody_can_answer() {
    let home = with_sessions(&["one"]);
    let refused = "opta: cannot ask for confirmation: this is not a terminal\n\
                   to delete it without confirmation: opta sessions rm --force one\n";
    home.opta("sessions rm one").stderr(refused).status(2).run();
    home.opta("sessions list").stdout("one  {age}    0 turns\n").run();
    home.assert_nothing_left();
}

#[test]
fn rm_asks_on_a_terminal() {
    need!("script");
    let home = Home::new();
    home.start();
    create(&home, "one", Some("a \\u001b[31m title"));
    let answered = |answer: &str, status: i32| {
        let command = "printf '%s\\n' \"$ANSWER\" | script -qec 'opta sessions rm one' /dev/null";
        let run = home.sh(command).env("ANSWER", answer).stdout(ANYTHING).status(status).run();
        run.stdout
    };
    let question = "Delete session one (0 turns, \"a \\u{1b}[31m title\")? [y/N] ";
    for answer in ["n", "", "yikes"] {
        let said = answered(answer, 1);
        assert!(said.contains(question) && said.contains("session one was not deleted"), "{said}");
    }
    assert!(answered("y", 0).contains("Session one deleted."));
}

#[test]
fn rm_starts_the_daemon_and_says_so_only_after_a_crash() {
    let home = with_sessions(&["one", "two"]);
    home.opta("sessions rm --force one").stdout("Session one deleted.\n").run();
    let pid = home.crash();
    let crashed = "opta: daemon had crashed (pid {old}), restarted (pid {pid})\n";
    let rm = home.opta("sessions rm --force two").stdout("Session two deleted.\n");
    let seen = rm.stderr(crashed).with("old", pid).run();
    assert_eq!(home.owner(), Some(seen.pid()));
}

#[test]
fn rm_starts_no_daemon_if_that_is_forbidden() {
    let home = with_sessions(&["one"]);
    let refused = "opta: cannot reach the daemon: it is not running\nstart it: opta daemon start\n";
    let rm = || home.opta("sessions rm --force one").env("OPTA_NO_AUTOSTART", "1");
    rm().stderr(refused).status(3).run();
    home.assert_nothing_left();
    home.start();
    home.crash();
    rm().stderr(refused).status(3).run();
    // The user's own word counts.
    let seen = home.opta("daemon start").env("OPTA_NO_AUTOSTART", "1");
    seen.stdout(ANYTHING).stderr(ANYTHING).run();
    rm().stdout("Session one deleted.\n").run();
}

#[test]
fn a_daemon_that_crashes_again_and_again_is_not_restarted_by_commands() {
    let home = with_sessions(&["one", "two"]);
    for _ in 0..3 {
        home.opta("daemon start").stdout(ANYTHING).stderr(ANYTHING).run();
        home.crash();
    }
    // This one counts the third crash, and finds the fourth too many.
    let crashed = "opta: daemon had crashed (pid {old}), restarted (pid {pid})\n";
    let rm = home.opta("sessions rm --force one").stdout("Session one deleted.\n");
    rm.stderr(crashed).run();
    home.crash();
    let refused = "opta: cannot start the daemon: it has crashed 3 times within a minute{*}\n\
                   see why: opta daemon logs --level warn; then: opta daemon start\n";
    home.opta("sessions rm --force two").stderr(refused).status(1).run();
    home.opta("sessions list").stdout("two  {age}    0 turns\n").run();
}

#[test]
fn a_daemon_of_another_version_is_named() {
    let home = Home::new();
    home.start();
    create(&home, "one", None);
    let card = fs::read_to_string(home.file("state.json")).unwrap();
    let ours = format!("\"version\":\"{}\"", env!("CARGO_PKG_VERSION"));
    let theirs = card.replace(&ours, "\"version\":\"0.0.9\"");
    assert_ne!(theirs, card);
    home.write(&home.file("state.json"), theirs);
    let skew = format!(
        "opta: the daemon is opta 0.0.9, this is opta {}; to replace it: opta daemon restart\n",
        env!("CARGO_PKG_VERSION")
    );
    let rm = home.opta("sessions rm --force one").stdout("Session one deleted.\n");
    rm.stderr(&skew).run();
}

/// What the false daemon answers to one request.
#[derive(Clone, Copy)]
enum Answer {
    /// It is well, and speaks this version of the protocol.
    Health(&'static str),
    /// This status.
    Status(&'static str),
    /// Nothing: it closes the connection.
    Nothing,
}

/// Plays the daemon of `home`, as far as its lock, its card and these answers go, while the lock
/// that is given back is held.
fn false_daemon(home: &Home, version: &str, answers: &'static [Answer]) -> File {
    // What the false daemon before this one has left is no crash.
    drop(fs::remove_file(home.file("state.json")));
    home.start();
    let pid = home.card().pid();
    let card = fs::read_to_string(home.file("state.json")).unwrap();
    home.opta("daemon stop").stdout(STOPPED).run();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (own, port) = (std::process::id(), listener.local_addr().unwrap().port());
    let id = card.split("\"daemonId\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let old = card.split("\"port\":").nth(1).unwrap().split(',').next().unwrap();
    let card = card
        .replace(&format!("\"pid\":{pid}"), &format!("\"pid\":{own}"))
        .replace(&format!("\"port\":{old}"), &format!("\"port\":{port}"))
        .replace(env!("CARGO_PKG_VERSION"), version);
    home.write(&home.file("daemon.pid"), format!("{own}\n"));
    home.write(&home.file("state.json"), card);
    let lock = File::options().read(true).write(true).open(home.file("daemon.pid")).unwrap();
    lock.lock().unwrap();
    let serve = move || {
        for (answer, stream) in answers.iter().zip(listener.incoming()) {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                head.push(byte[0]);
            }
            let (status, body) = match answer {
                Answer::Nothing => continue,
                Answer::Status(status) => (*status, String::new()),
                Answer::Health(version) => {
                    let runtime = r#""runtime":{"sessionCount":0}"#;
                    let rest = format!(r#""uptime":1,"daemonId":"{id}",{runtime}"#);
                    ("200 OK", format!(r#"{{"status":"ok","version":"{version}",{rest}}}"#))
                }
            };
            let length = body.len();
            let reply = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
            stream.write_all(reply.as_bytes()).unwrap();
        }
    };
    drop(thread::Builder::new().name("false daemon".into()).spawn(serve).unwrap());
    lock
}

#[test]
fn a_daemon_that_was_replaced_or_lost_is_asked_once_more() {
    use Answer::{Health, Nothing, Status};
    const WELL: Answer = Health("3.0.0");
    let home = with_sessions(&["one"]);
    let deleted = "Session one deleted.\n";
    for answers in [
        // The token was rotated.
        &[WELL, Status("401 Unauthorized"), WELL, Status("204 No Content")],
        &[WELL, Nothing, WELL, Status("204 No Content")],
        // It had been deleted, and only the answer was lost.
        &[WELL, Nothing, WELL, Status("404 Not Found")],
    ] {
        let _lock = false_daemon(&home, env!("CARGO_PKG_VERSION"), answers);
        home.opta("sessions rm --force one").stdout(deleted).run();
    }
    let lost = &[WELL, Nothing, WELL, Nothing];
    let lock = false_daemon(&home, env!("CARGO_PKG_VERSION"), lost);
    let failed = "opta: cannot delete the session: {why}\n";
    home.opta("sessions rm --force one").stderr(failed).status(1).run();
    drop(lock);
    let busy = &[WELL, Status("409 Conflict")];
    let _lock = false_daemon(&home, env!("CARGO_PKG_VERSION"), busy);
    let failed = "opta: cannot delete the session one: a turn of it is in progress\n";
    home.opta("sessions rm --force one").stderr(failed).status(1).run();
}

#[test]
fn a_daemon_of_another_protocol_is_not_talked_to() {
    let home = with_sessions(&["one"]);
    let answers = &[Answer::Health("2.0.0"), Answer::Health("2.0.0")];
    let _lock = false_daemon(&home, "0.0.9", answers);
    let refused = format!(
        "opta: cannot talk to the daemon: it is opta 0.0.9 (protocol 2.0.0), this is opta {} \
         (protocol 3.0.0)\nto move it to this version: opta daemon restart\n",
        env!("CARGO_PKG_VERSION")
    );
    home.opta("sessions rm --force one").stderr(&refused).status(1).run();
}
