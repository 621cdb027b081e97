//! `opta sessions …`: commands that read sessions without a daemon, next to unrelated files in the
//! same directory, and `rm`, which uses the daemon.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;
use std::thread;

use crate::model::Model;
use crate::support::{ANYTHING, DEADLINE, Home, STOPPED, eventually, need};
use crate::task::task;
use crate::user::in_terminal;

const UNANSWERED: &str = "  cannot reach the model server at http://127.0.0.1:1/v1 {why}\n";
const ONE_DAMAGED: &str = "1 session checked, 1 damaged\n";

/// Sends a request to the daemon of `home`. Returns the body of the response, which must be a
/// success.
fn ask(home: &Home, method: &str, path: &str, body: &str) -> String {
    let info = home.daemon_info();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, info.port()));
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let (port, token, length) = (info.port(), info.token(), body.len());
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

/// Submits a turn to a session that has `seq` events, and waits for its end.
fn submit(home: &Home, id: &str, content: &str, seq: u64) {
    ask(
        home,
        "POST",
        &format!("/v3/sessions/{id}/turns"),
        &format!(r#"{{"content":"{content}"}}"#),
    );
    // The events: queued, started, ended.
    let last = seq + 2;
    let path = format!("/v3/sessions/{id}/events?afterSeq={last}&timeout=60000");
    assert!(ask(home, "GET", &path, "").contains("turn.error"));
}

/// Creates a home with sessions of these ids, the newest last, and no daemon.
pub fn with_sessions(ids: &[&str]) -> Home {
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

pub fn journal(home: &Home, id: &str) -> PathBuf {
    sessions(home).join(id).join("journal.jsonl")
}

/// Adds records to a session, each with its last input again, that take minutes to read. The file
/// has holes between them and takes little of the disk.
pub fn make_endless(home: &Home, id: &str) {
    let text = fs::read_to_string(journal(home, id)).unwrap();
    let queued = text.lines().rfind(|line| line.contains("\"turn.queued\"")).unwrap();
    let (before, rest) = queued.split_once("\"seq\":").unwrap();
    let (_, rest) = rest.split_once(',').unwrap();
    let (after, _) = rest.split_once(",\"crc\"").unwrap();
    let file = File::options().write(true).open(journal(home, id)).unwrap();
    for number in 1..=8192_u64 {
        let record = format!("{before}\"seq\":{},{after}", 64 * number);
        let line = format!("\n{record},\"crc\":\"{:08x}\"}}\n", crc32c(record.as_bytes()));
        file.write_all_at(line.as_bytes(), number << 24).unwrap();
    }
}

/// The checksum of a record. RFC 3720, B.4.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

#[test]
fn without_sessions_every_command_says_so_and_writes_nothing() {
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
fn list_prints_the_newest_first_and_notes_that_there_are_more() {
    let home = Home::new();
    home.start();
    create(&home, "a", Some("first"));
    create(&home, "longer-id", None);
    create(&home, "c", Some(&"t".repeat(61)));
    submit(&home, "longer-id", "what\\n  is it?", 1);
    let third = format!("c          {{age}}    0 turns  -  -  {}\n", "t".repeat(60));
    let second = "longer-id  {age}     1 turn  -  -  what is it?\n";
    let first = "a          {age}    0 turns  -  -  first\n";
    home.opta("sessions list").stdout(&format!("{third}{second}{first}")).run();
    let more = "opta: there are more than 2 sessions; to list more: --limit N\n";
    home.opta("sessions list --limit 2").stdout(&format!("{third}{second}")).stderr(more).run();
    home.opta("sessions list --limit 3").stdout(&format!("{third}{second}{first}")).run();
    let objects = "{\"sessionId\":\"c\",{a}}\n{\"sessionId\":\"longer-id\",{b}}\n\
                   {\"sessionId\":\"a\",{c}}\n";
    home.opta("sessions list --json").stdout(objects).run();
}

#[test]
fn show_and_export_print_the_conversation_while_the_daemon_runs() {
    let home = Home::new();
    home.start();
    let request = r#"{"sessionId":"s","title":"T","metadata":{"workspace":"/usr"},"messages":[
        {"role":"system","content":"be brief"},{"role":"assistant","content":"a\tb"}]}"#;
    ask(&home, "POST", "/v3/sessions", request);
    submit(&home, "s", "one\\n\\u001b[2Jtwo", 1);
    let shown = format!(
        "s: T  (1 turn, created {{created}}, in /usr)\n\nsystem\n  be brief\n\nassistant\n  a\tb\n\n\
         user\n  one\n  \\u{{1b}}[2Jtwo\n\nerror\n{UNANSWERED}"
    );
    let seen = home.opta("sessions show s").stdout(&shown).run();
    let created = seen.get("created").to_owned();
    let markdown = "# T\n\n- Session: `s`\n- Created: {created}\n- Turns: 1\n- Workspace: /usr\n\n\
                    ## System\n\nbe brief\n\n## Assistant\n\na\tb\n\n\
                    ## User\n\none\n\\u{1b}[2Jtwo\n\n\
                    ## Error\n\n{why}\n";
    let export = home.opta("sessions export s --format markdown").stdout(markdown);
    export.with("created", &created).run();
    // The same as the response of the daemon.
    let object = ask(&home, "GET", "/v3/sessions/s", "");
    assert!(object.ends_with(r#"{"role":"user","content":"one\n\u001b[2Jtwo"}]}"#), "{object}");
    for words in ["show s --json", "export s", "export s --format=json"] {
        let seen = home.opta(&format!("sessions {words}")).stdout(ANYTHING).run();
        assert_eq!(seen.stdout, format!("{object}\n"), "{words}");
    }
}

#[test]
fn a_unique_prefix_of_an_id_is_enough() {
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
    for typed in ["", "..", "../daemon", "a/b", "index.jsonl", "\u{1b}[2J"] {
        let seen = home.opta("sessions show").arg(typed).stderr(ANYTHING).status(1).run();
        assert!(seen.stderr.starts_with("opta: cannot find the session: "), "{}", seen.stderr);
        assert!(!seen.stderr.contains('\u{1b}'), "{}", seen.stderr);
    }
}

#[test]
fn an_ambiguous_prefix_is_reported_with_some_candidates() {
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
fn verify_finds_damaged_and_torn_records() {
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
    // Intact records can still be read, and a note says that others are missing.
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
fn grep_prints_each_line_that_matches_newest_session_first() {
    let home = Home::new();
    home.start();
    let request = r#"{"sessionId":"old","messages":[
        {"role":"system","content":"be brïef"},{"role":"assistant","content":"a Needle\r\nhay"}]}"#;
    ask(&home, "POST", "/v3/sessions", request);
    create(&home, "new", None);
    // Their turns never start, since there is no model server.
    submit(&home, "new", "hay\\n\\u001b[2Jneedle needle-1", 1);
    home.opta("daemon stop").stdout(STOPPED).run();
    let before = home.snapshot();
    let new = "new: {date} {time} user: \\u{1b}[2Jneedle needle-1\n";
    let old = "old: {date} {time} assistant: a Needle\n";
    let grep = |words: &str| home.opta(&format!("sessions grep {words}"));
    grep("needle").stdout(new).run();
    grep("-i needle").stdout(&format!("{new}{old}")).run();
    grep("--ignore-case ^a.needle$").stdout(old).run();
    grep("-- -[0-9]").stdout(new).run();
    grep("-il needle").stdout("new\nold\n").run();
    grep("-l hay").stdout("new\nold\n").run();
    // The first byte of a character, which cannot be printed alone.
    grep("(?-u:\\xc3)").stdout("old: {date} {time} system: be brïef\n").run();
    grep("NEEDLE").status(1).run();
    let object = r#"{"sessionId":"old","ts":"{ts}","role":"assistant","text":"a Needle"}"#;
    grep("Needle --json").stdout(&format!("{object}\n")).run();
    grep("Needle --json --list").stdout("{\"sessionId\":\"old\"}\n").run();
    for (pattern, reason) in
        [("a(", "unclosed group"), ("[z-a]", "invalid character class range{*}")]
    {
        let refused = format!("opta: cannot search '{pattern}': {reason}\n{{next}}\n");
        grep(pattern).stderr(&refused).status(2).run();
    }
    grep("").stderr("opta: PATTERN is missing\n{usage}\n").status(2).run();
    assert_eq!(home.snapshot(), before);
}

#[test]
fn grep_reads_no_further_than_it_has_to() {
    let home = with_sessions(&[]);
    home.start();
    create(&home, "one", None);
    submit(&home, "one", "a needle", 1);
    submit(&home, "one", "hay", 4);
    home.opta("daemon stop").stdout(STOPPED).run();
    make_endless(&home, "one");
    home.opta("sessions grep --list needle").stdout("one\n").run();
    // Whether or not there is another line to write.
    for (pattern, text) in [("needle", "a needle"), ("hay", "hay")] {
        let first = format!("one: {{date}} {{time}} user: {text}\n");
        home.sh(&format!("opta sessions grep {pattern} | head -n 1")).stdout(&first).run();
    }
    home.sh("opta sessions grep needle >/dev/full").stderr("{why}\n").status(1).run();
}

#[test]
fn grep_finds_answers_tool_calls_and_their_results() {
    let (home, model) = (Home::new(), Model::new());
    home.write(&home.beside("notes"), "first\nthe needle of the file\n");
    let running = task(&home, &model, "look").stdout(ANYTHING).stderr(ANYTHING).spawn();
    model.question().call("read_file", r#"{\"path\":\"notes\"}"#);
    let mut question = model.question();
    question.say("it has a nee");
    question.answer("dle in it");
    running.finish();
    let found = "{id}: {date} {time} tool: {*}the needle of the file\n\
                 {id}: {later} {then} assistant: it has a needle in it\n";
    home.opta("sessions grep needle").stdout(found).run();
    let call = "{id}: {date} {time} assistant: > read_file {\"path\":\"notes\"}\n";
    home.opta("sessions grep read_file").stdout(call).run();
}

#[test]
fn grep_names_a_damaged_session_and_searches_the_others() {
    let home = with_sessions(&["good", "partial", "lost"]);
    home.start();
    submit(&home, "good", "needle", 1);
    submit(&home, "partial", "needle", 1);
    home.opta("daemon stop").stdout(STOPPED).run();
    let partial = fs::read_to_string(journal(&home, "partial")).unwrap();
    let one_bad = partial.replacen("turn.start", "turn.stop!", 1);
    fs::write(journal(&home, "partial"), one_bad).unwrap();
    fs::write(journal(&home, "lost"), "no journal\n").unwrap();
    let found = "partial: {date} {time} user: needle\ngood: {date} {time} user: needle\n";
    let omitted = "opta: 1 damaged record is omitted; see: opta sessions verify partial\n";
    let damaged = format!("opta: cannot read the session lost: {{why}}\n{omitted}");
    home.opta("sessions grep needle").stdout(found).stderr(&damaged).status(1).run();
    home.opta("sessions grep x").stderr(&damaged).status(1).run();
}

#[test]
fn grep_marks_the_matches_on_a_terminal_only() {
    need!("script");
    let home = with_sessions(&[]);
    home.start();
    create(&home, "one", None);
    submit(&home, "one", "a needle and a needle", 1);
    let marked =
        "one: {date} {time} user: a \x1b[1;31mneedle\x1b[0m and a \x1b[1;31mneedle\x1b[0m\r\n";
    let run = |command| in_terminal(&home, command).env("TERM", "xterm");
    run("opta sessions grep needle").stdout(marked).run();
    let plain = marked.replace("\x1b[1;31m", "").replace("\x1b[0m", "");
    run("NO_COLOR=1 opta sessions grep needle").stdout(&plain).run();
    home.opta("sessions grep needle").stdout(&plain.replace('\r', "")).run();
}

#[test]
fn a_damaged_index_hides_no_session_and_is_completed_by_the_daemon() {
    let home = Home::new();
    home.start();
    for name in ["one", "two", "three"] {
        create(&home, name, None);
    }
    let read = "3 sessions checked, 0 damaged\n";
    home.opta("sessions verify").stdout(read).run();
    let index = home.path().join(".config/opta/sessions/index.jsonl");
    let whole = fs::read_to_string(&index).unwrap();
    let (first, rest) = whole.split_once('\n').unwrap();
    let one_bad = format!("{}\n{rest}", first.replace('"', "?"));
    for (damaged, lost) in [("", 3), (one_bad.as_str(), 1)] {
        fs::write(&index, damaged).unwrap();
        let before = home.snapshot();
        let listed = home.opta("sessions list").stdout(ANYTHING);
        let noted = "opta: {index} lacks sessions; they are listed by their directories\n";
        let listed = listed.stderr(noted).run().stdout;
        assert_eq!(listed.lines().count(), 3, "{listed}");
        let reason = format!(
            "opta: cannot find all sessions in the index: {{index}} lacks {lost}; the daemon adds \
             them when it next lists or creates sessions\n"
        );
        home.opta("sessions verify").stdout(read).stderr(&reason).status(1).run();
        home.opta("sessions verify one").stdout("1 session checked, 0 damaged\n").run();
        let printed = "{\"error\":{\"code\":\"SESSIONS_UNLISTED\",\"message\":\"{message}\"}}\n\
                {\"sessions\":3,\"damagedSessions\":0}\n";
        home.opta("sessions verify --json").stdout(printed).status(1).run();
        // There is no model server, which is a failure.
        let checked = "{*}warn  sessions  cannot find all sessions{*}\n";
        home.opta("doctor").stdout(checked).status(1).run();
        assert_eq!(home.snapshot(), before);
        // The daemon needs no restart.
        let listed = ask(&home, "GET", "/v3/sessions", "");
        assert_eq!(listed.matches("\"sessionId\"").count(), 3);
        let listed = "three  {*}\ntwo    {*}\none    {*}\n";
        home.opta("sessions list").stdout(listed).run();
        home.opta("sessions verify").stdout(read).run();
    }
    let log = home.opta("daemon logs --level warn").stdout(ANYTHING).run().stdout;
    let said = log.lines().filter(|line| line.contains("index of the sessions completed"));
    assert_eq!(said.count(), 2, "{log}");

    fs::remove_file(&index).unwrap();
    home.opta("sessions verify").stdout(read).run();
    create(&home, "four", None);
    assert_eq!(fs::read_to_string(&index).unwrap().lines().count(), 4);
    home.opta("sessions list").stdout("four   {*}\n{*}\n{*}\none    {*}\n").run();
    home.opta("sessions verify").stdout("4 sessions checked, 0 damaged\n").run();
}

#[test]
fn resuming_a_damaged_session_says_what_is_omitted() {
    let home = with_sessions(&["hurt", "whole"]);
    home.start();
    submit(&home, "hurt", "x", 1);
    home.opta("daemon stop").stdout(STOPPED).run();
    let path = journal(&home, "hurt");
    let bad = fs::read_to_string(&path).unwrap().replacen("\"seq\":2,", "\"seq\":7,", 1);
    fs::write(&path, bad).unwrap();
    let note = "opta: 1 damaged record is omitted; see: opta sessions verify hurt\n";
    let resume = |words: &str, expected: usize| {
        let run = home.opta(words).env("OPTA_MODEL_URL", "http://127.0.0.1:1");
        let run = run.stdout(ANYTHING).stderr(ANYTHING).status(1);
        let said = run.run().stderr;
        assert_eq!(said.matches(note).count(), expected, "{words}: {said}");
    };
    // Also after the first time, when the daemon has the session in memory.
    for words in ["do x --resume hurt", "chat --once x --resume hurt", "do x --resume hurt"] {
        resume(words, 1);
    }
    resume("do x --resume whole", 0);
}

#[test]
fn a_damaged_last_record_with_its_line_end_is_not_torn() {
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
    // A torn end after it is counted separately.
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
    // The daemon sets aside what follows the last intact record; then nothing is missing.
    ask(&home, "GET", "/v3/sessions/two", "");
    assert!(sessions(&home).join("two/journal.torn-1").exists());
    home.opta("sessions verify").stdout("1 session checked, 0 damaged\n").run();
    let log = home.opta("daemon logs --level warn").stdout(ANYTHING).run();
    let repaired = log.stdout.lines().find(|line| line.contains("session repaired")).unwrap();
    assert!(repaired.contains("damaged=1"), "{repaired}");
}

#[test]
fn a_session_without_its_journal_is_reported() {
    let home = with_sessions(&["cut", "empty", "gone", "never", "whole"]);
    let bytes = fs::metadata(journal(&home, "cut")).unwrap().len();
    // As after a crash before the session was acknowledged.
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
    let report = "{\"sessionId\":\"gone\",{counts},\"missingBytes\":{bytes}}\n\
                {\"sessions\":1,\"damagedSessions\":1}\n";
    home.opta("sessions verify gone --json").stdout(report).status(1).run();
    let lost =
        |id: &str| format!("opta: cannot read the session {id}: its journal is empty or missing\n");
    let listed = "whole  {a}    0 turns  -  -\ncut    {b}    0 turns  -  -\n";
    let both = lost("gone") + &lost("empty");
    home.opta("sessions list").stdout(listed).stderr(&both).status(1).run();
    for id in ["gone", "empty"] {
        let next = format!("to see what is wrong: opta sessions verify {id}\n");
        let refused = lost(id) + &next;
        home.opta(&format!("sessions show {id}")).stderr(&refused).status(1).run();
        home.opta(&format!("sessions export {id}")).stderr(&refused).status(1).run();
    }
    assert_eq!(home.snapshot(), before);
    // A new index has them as well.
    fs::remove_file(sessions(&home).join("index.jsonl")).unwrap();
    home.opta("sessions verify").stdout(&verified).status(1).run();

    // The daemon does not report it as nonexistent.
    for words in ["do x --resume gone", "chat --once x --resume gone"] {
        let run = home.opta(words).env("OPTA_MODEL_URL", "http://127.0.0.1:1");
        let report = run.stderr(ANYTHING).status(1).run().stderr;
        assert!(report.contains(lost("gone").trim_start_matches("opta: ").trim_end()), "{report}");
    }
    let deleted = |id: &str| format!("Session {id} deleted.\n");
    home.opta("sessions rm --force gone").stdout(&deleted("gone")).run();
    home.opta("sessions rm --force empty").stdout(&deleted("empty")).run();
    home.opta("sessions rm --force cut").stdout(&deleted("cut")).run();
    home.opta("sessions verify").stdout("1 session checked, 0 damaged\n").run();
}

#[test]
fn a_record_that_is_being_written_is_not_torn() {
    need!("/proc");
    let home = with_sessions(&["s"]);
    let path = journal(&home, "s");
    let record = fs::read(&path).unwrap();
    // The rest is written once the journal is watched: then it was found torn once.
    let (first, rest) = record.split_at(record.len() / 2);
    let watches = |pid: i32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        let mut open = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        open.any(|path| path.ends_with("anon_inode:inotify"))
    };
    let is_awaited = || {
        fs::write(&path, first).unwrap();
        let mut journal = File::options().append(true).open(&path).unwrap();
        let verify = home.opta("sessions verify").stdout(ANYTHING).stderr(ANYTHING);
        let mut verify = verify.status_in(&[0, 1]).spawn();
        let pid = verify.pid();
        eventually("the journal is watched", || watches(pid) || verify.has_ended());
        journal.write_all(rest).unwrap();
        verify.finish().stdout == "1 session checked, 0 damaged\n"
    };
    // The machine may be busy with something else: one of these is not.
    assert!((0..10).any(|_| is_awaited()));
}

#[test]
fn reading_writes_nothing_and_ignores_unrelated_files() {
    let home = with_sessions(&["one", "two"]);
    let root = sessions(&home);
    // A file, an empty session, links, a directory in place of a journal.
    fs::write(root.join("notes"), "x").unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::create_dir_all(root.join("other name/journal.jsonl")).unwrap();
    fs::write(root.join("index.jsonl.old"), "x").unwrap();
    let mut index = File::options().append(true).open(root.join("index.jsonl")).unwrap();
    index.write_all(b"no json\n{\"sessionId\":\"../x\",\"createdAt\":\"\"}\n{\"sess").unwrap();
    drop(index);
    fs::write(root.join("one/summary.json"), "{\"bytes\":").unwrap();
    fs::remove_file(root.join("two/summary.json")).unwrap();
    symlink("/dev/zero", root.join("two/summary.json")).unwrap();
    let before = home.snapshot();
    let both = "two  {a}    0 turns  -  -\none  {a}    0 turns  -  -\n";
    home.opta("sessions list").stdout(both).run();
    home.opta("sessions show one").stdout(ANYTHING).run();
    home.opta("sessions export two --format markdown").stdout(ANYTHING).run();
    home.opta("sessions verify").stdout("2 sessions checked, 0 damaged\n").run();
    assert_eq!(home.snapshot(), before);
    home.assert_nothing_left();

    // A session that cannot be read is reported, and does not hide the others.
    fs::remove_file(journal(&home, "two")).unwrap();
    fs::create_dir(journal(&home, "two")).unwrap();
    let refused = "opta: cannot use {path}: it is not a regular file\n";
    let one = "one  {a}    0 turns  -  -\n";
    home.opta("sessions list").stdout(one).stderr(refused).status(1).run();
    let one = "1 session checked, 0 damaged\n";
    home.opta("sessions verify").stdout(one).stderr(refused).status(1).run();
    let report = "{\"error\":{\"code\":\"UNTRUSTED_PATH\",\"message\":\"{message}\"}}\n\
                {\"sessions\":1,\"damagedSessions\":0}\n";
    home.opta("sessions verify --json").stdout(report).status(1).run();
}

#[test]
fn a_closed_pipe_is_no_error_and_a_full_disk_is_one() {
    let home = with_sessions(&["one", "two"]);
    home.sh("opta sessions list | head -n 1").stdout("two  {a}    0 turns  -  -\n").run();
    home.sh("opta sessions show one | head -n 0").run();
    let full = "opta: cannot write to standard output: No space left on device\n";
    for words in ["list", "list --json", "show one", "export one", "verify"] {
        let run = home.opta(&format!("sessions {words}")).output("/dev/full".as_ref());
        run.stderr(full).status(1).run();
    }
}

#[test]
fn rm_deletes_through_the_running_daemon() {
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
    home.opta("sessions list").stdout("three  {age}    0 turns  -  -\n").run();
    home.opta("sessions rm --force one").stderr(ANYTHING).status(1).run();
}

#[test]
fn rm_without_a_terminal_requires_force() {
    let home = with_sessions(&["one"]);
    let refused = "opta: cannot ask for confirmation: this is not a terminal\n\
                   to delete it without confirmation: opta sessions rm --force one\n";
    home.opta("sessions rm one").stderr(refused).status(2).run();
    home.opta("sessions list").stdout("one  {age}    0 turns  -  -\n").run();
    home.assert_nothing_left();
}

#[test]
fn rm_asks_for_confirmation_on_a_terminal() {
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
        let printed = answered(answer, 1);
        assert!(
            printed.contains(question) && printed.contains("session one was not deleted"),
            "{printed}"
        );
    }
    assert!(answered("y", 0).contains("Session one deleted."));
}

#[test]
fn rm_starts_the_daemon_and_notes_it_only_after_a_crash() {
    let home = with_sessions(&["one", "two"]);
    home.opta("sessions rm --force one").stdout("Session one deleted.\n").run();
    let pid = home.crash();
    let crashed = "opta: daemon had crashed (pid {old}), restarted (pid {pid})\n";
    let rm = home.opta("sessions rm --force two").stdout("Session two deleted.\n");
    let seen = rm.stderr(crashed).with("old", pid).run();
    assert_eq!(home.owner(), Some(seen.pid()));
}

#[test]
fn rm_starts_no_daemon_with_opta_no_autostart() {
    let home = with_sessions(&["one"]);
    let refused = "opta: cannot reach the daemon: it is not running\nstart it: opta daemon start\n";
    let rm = || home.opta("sessions rm --force one").env("OPTA_NO_AUTOSTART", "1");
    rm().stderr(refused).status(3).run();
    home.assert_nothing_left();
    home.start();
    home.crash();
    rm().stderr(refused).status(3).run();
    // An explicit start still works.
    let seen = home.opta("daemon start").env("OPTA_NO_AUTOSTART", "1");
    seen.stdout(ANYTHING).stderr(ANYTHING).run();
    rm().stdout("Session one deleted.\n").run();
}

#[test]
fn commands_do_not_restart_a_daemon_that_crashes_repeatedly() {
    let home = with_sessions(&["one", "two", "three", "four"]);
    home.start();
    home.crash();
    // Each start counts the crash before it; the one after the third is refused.
    let crashed = "opta: daemon had crashed (pid {old}), restarted (pid {pid})\n";
    for id in ["one", "three", "four"] {
        let rm = home.opta(&format!("sessions rm --force {id}"));
        rm.stdout(&format!("Session {id} deleted.\n")).stderr(crashed).run();
        home.crash();
    }
    let refused = "opta: cannot start the daemon: it has crashed 3 times within a minute{*}\n\
                   see why: opta daemon logs --level warn; then: opta daemon start\n";
    home.opta("sessions rm --force two").stderr(refused).status(1).run();
    home.opta("sessions list").stdout("two  {age}    0 turns  -  -\n").run();
}

#[test]
fn a_daemon_of_another_version_is_noted() {
    let home = Home::new();
    home.start();
    create(&home, "one", None);
    let state = fs::read_to_string(home.file("state.json")).unwrap();
    let ours = format!("\"version\":\"{}\"", env!("CARGO_PKG_VERSION"));
    let theirs = state.replace(&ours, "\"version\":\"0.0.9\"");
    assert_ne!(theirs, state);
    home.write(&home.file("state.json"), theirs);
    let skew = format!(
        "opta: the daemon is opta 0.0.9, this is opta {}; to replace it: opta daemon restart\n",
        env!("CARGO_PKG_VERSION")
    );
    let rm = home.opta("sessions rm --force one").stdout("Session one deleted.\n");
    rm.stderr(&skew).run();
}

/// How the fake daemon answers a request.
#[derive(Clone, Copy)]
enum Answer {
    /// Healthy, with this version of the protocol.
    Health(&'static str),
    /// With this status.
    Status(&'static str),
    /// Not at all: it closes the connection.
    Nothing,
}

/// Imitates the daemon of `home`: its lock, its state file and these answers, until the returned
/// lock is dropped.
fn fake_daemon(home: &Home, version: &str, answers: &'static [Answer]) -> File {
    // The state file of an earlier fake daemon would look like a crash.
    drop(fs::remove_file(home.file("state.json")));
    home.start();
    let pid = home.daemon_info().pid();
    let state = fs::read_to_string(home.file("state.json")).unwrap();
    home.opta("daemon stop").stdout(STOPPED).run();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (own, port) = (std::process::id(), listener.local_addr().unwrap().port());
    let id = state.split("\"daemonId\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let old = state.split("\"port\":").nth(1).unwrap().split(',').next().unwrap();
    let state = state
        .replace(&format!("\"pid\":{pid}"), &format!("\"pid\":{own}"))
        .replace(&format!("\"port\":{old}"), &format!("\"port\":{port}"))
        .replace(env!("CARGO_PKG_VERSION"), version);
    home.write(&home.file("daemon.pid"), format!("{own}\n"));
    home.write(&home.file("state.json"), state);
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
    drop(thread::Builder::new().name("fake daemon".into()).spawn(serve).unwrap());
    lock
}

#[test]
fn a_request_is_repeated_once_if_the_daemon_was_replaced_or_lost() {
    use Answer::{Health, Nothing, Status};
    const WELL: Answer = Health("3.0.0");
    let home = with_sessions(&["one"]);
    let deleted = "Session one deleted.\n";
    for answers in [
        // The token was rotated.
        &[WELL, Status("401 Unauthorized"), WELL, Status("204 No Content")],
        &[WELL, Nothing, WELL, Status("204 No Content")],
        // The session was deleted, and only the response was lost.
        &[WELL, Nothing, WELL, Status("404 Not Found")],
    ] {
        let _lock = fake_daemon(&home, env!("CARGO_PKG_VERSION"), answers);
        home.opta("sessions rm --force one").stdout(deleted).run();
    }
    let lost = &[WELL, Nothing, WELL, Nothing];
    let lock = fake_daemon(&home, env!("CARGO_PKG_VERSION"), lost);
    let failed = "opta: cannot delete the session: {why}\n";
    home.opta("sessions rm --force one").stderr(failed).status(1).run();
    drop(lock);
    let busy = &[WELL, Status("409 Conflict")];
    let _lock = fake_daemon(&home, env!("CARGO_PKG_VERSION"), busy);
    let failed = "opta: cannot delete the session one: a turn of it is in progress\n";
    home.opta("sessions rm --force one").stderr(failed).status(1).run();
}

#[test]
fn a_daemon_of_another_protocol_is_refused() {
    let home = with_sessions(&["one"]);
    let answers = &[Answer::Health("2.0.0"), Answer::Health("2.0.0")];
    let _lock = fake_daemon(&home, "0.0.9", answers);
    let refused = format!(
        "opta: cannot talk to the daemon: it is opta 0.0.9 (protocol 2.0.0), this is opta {} \
         (protocol 3.0.0)\nto replace it: opta daemon restart\n",
        env!("CARGO_PKG_VERSION")
    );
    home.opta("sessions rm --force one").stderr(&refused).status(1).run();
}
