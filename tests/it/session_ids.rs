//! Which session is meant: beginnings of ids, `last`, the directory, and what Tab offers.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use crate::docs::in_shell_of;
use crate::model::Model;
use crate::sessions_cmd::{journal, with_sessions};
use crate::support::{ANYTHING, Home, need};

/// Makes the journals of these sessions look as if they were written one after another.
fn written_in_order(home: &Home, ids: &[&str]) {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for (id, hours) in ids.iter().zip(1..) {
        let file = File::options().append(true).open(journal(home, id)).unwrap();
        file.set_modified(start + Duration::from_secs(hours * 3600)).unwrap();
    }
}

/// Returns the id of the session that `typed` selects.
fn selected(home: &Home, typed: &str) -> String {
    let seen = home.opta(&format!("sessions export {typed}")).stdout(ANYTHING).run();
    seen.stdout.split('"').nth(3).unwrap().to_owned()
}

#[test]
fn the_beginning_of_an_id_is_enough_with_or_without_its_prefix() {
    let home = with_sessions(&["sess_abc1", "sess_abd", "sess_abd2", "plain", "sess_pl"]);
    for (typed, id) in [
        ("sess_abc", "sess_abc1"),
        ("abc", "sess_abc1"),
        ("abc1", "sess_abc1"),
        // A whole id, although another one begins with it.
        ("abd", "sess_abd"),
        ("abd2", "sess_abd2"),
        ("pla", "plain"),
        // With its prefix it is a whole id.
        ("pl", "sess_pl"),
    ] {
        assert_eq!(selected(&home, typed), id, "{typed}");
    }
    let ambiguous =
        "opta: cannot select session 'ab': it could be sess_abc1, sess_abd, sess_abd2\n";
    home.opta("sessions show ab").stderr(ambiguous).status(1).run();
    let unknown = "opta: cannot find the session: no id begins with 'bc'\n\
                   to see which there are: opta sessions list\n";
    home.opta("sessions show bc").stderr(unknown).status(1).run();
}

#[test]
fn last_is_the_session_that_was_used_last_unless_an_id_is_so() {
    let home = with_sessions(&["sess_1", "sess_2", "sess_3"]);
    written_in_order(&home, &["sess_1", "sess_3", "sess_2"]);
    assert_eq!(selected(&home, "last"), "sess_2");
    written_in_order(&home, &["sess_2", "sess_3", "sess_1"]);
    assert_eq!(selected(&home, "last"), "sess_1");
    let home = with_sessions(&["last", "sess_2"]);
    written_in_order(&home, &["last", "sess_2"]);
    assert_eq!(selected(&home, "last"), "last");
    let none = "opta: cannot find the session: no id begins with 'last'\n{next}\n";
    Home::new().opta("sessions show last").stderr(none).status(1).run();
}

#[test]
fn a_session_continues_in_its_directory_or_anywhere_if_asked() {
    let (home, model) = (Home::new(), Model::new());
    let run = |script: &str, sees: &[&str], not: &str| {
        let running = home.sh(script).env("OPTA_MODEL_URL", model.url());
        let running = running.stdout("yes\n").stderr(ANYTHING).spawn();
        let question = model.question();
        for text in sees {
            assert!(question.body.contains(text), "{script}: {}", question.body);
        }
        assert!(!question.body.contains(not), "{script}: {}", question.body);
        question.answer("yes");
        running.finish();
    };
    fs::create_dir(home.beside("one")).unwrap();
    fs::create_dir(home.beside("two")).unwrap();
    run("cd one && opta do apricot", &["apricot"], "banana");
    run("cd two && opta do banana", &["banana"], "apricot");
    run("cd one && opta do -c cherry", &["apricot", "cherry"], "banana");
    run("cd two && opta chat --continue --once damson", &["banana", "damson"], "apricot");
    run(
        "cd one && opta do --continue=any elderberry",
        &["banana", "damson", "elderberry"],
        "apricot",
    );
    run("cd one && opta do -r last fig-tree", &["banana", "elderberry", "fig-tree"], "apricot");
    for command in ["do -c x", "chat -c --once x"] {
        let none = "opta: cannot continue: there is no session of this directory\n\
                    to continue the last one of any directory: --continue=any\n";
        home.opta(command).stderr(none).status(1).run();
    }
    let rows = "{*} 4 turns  scripted  {*}/two  banana\n{*} 2 turns  scripted  {*}/one  apricot\n";
    home.opta("sessions list").stdout(rows).run();
    let objects = "{*}\"lastModel\":\"scripted\"{*}\n{*}\"lastModel\":\"scripted\"{*}\n";
    home.opta("sessions list --json").stdout(objects).run();
}

/// The ids in [`tab_offers_sessions_in_bash`] and the others, and what follows each typed line.
const IDS: [&str; 3] = ["sess_one", "sess_two", "other"];
const TYPED: [(&str, &str); 7] = [
    ("opta sessions show sess_o", "sess_one"),
    ("opta sessions show o", "other"),
    ("opta sessions rm tw", "sess_two"),
    ("opta chat --resume sess_t", "sess_two"),
    ("opta do -r on", "sess_one"),
    ("opta sessions verify l", "last"),
    ("opta sessions export x", ""),
];

#[test]
fn tab_offers_sessions_in_bash() {
    need!("bash");
    let home = with_sessions(&IDS);
    let script = r#"
        source "$1"
        compopt() { :; }
        while IFS= read -r line; do
            read -ra COMP_WORDS <<<"$line"
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _opta opta "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            echo "${COMPREPLY[*]-}"
        done
    "#;
    let lines: String = TYPED.iter().map(|(line, _)| format!("{line}\n")).collect();
    let answers =
        in_shell_of(&home, "bash", &format!("{}<<'END'\n{lines}END\n", script.trim_end()));
    let expected: Vec<&str> = TYPED.iter().map(|(_, words)| *words).collect();
    assert_eq!(answers.lines().collect::<Vec<_>>(), expected);
    let none = in_shell_of(&Home::new(), "bash", "source \"$1\"; _opta_sessions");
    assert_eq!(none, "");
}

#[test]
fn tab_offers_sessions_in_zsh() {
    need!("zsh");
    let home = with_sessions(&IDS);
    // zsh itself chooses among the candidates.
    let script = r#"
        _describe() { print -r -- $1 ${${(P)2}%%:*} }
        compadd() { print -r -- $@ }
        compdef() { : }
        source "$1"
        words=(opta chat --resume s) CURRENT=4
        _opta
        words=(opta sessions show "") CURRENT=4
        _opta
    "#;
    let answers = in_shell_of(&home, "zsh", script);
    let ids = "session last other sess_two sess_one";
    assert_eq!(answers, format!("{ids}\n{ids}\noption --json --help\n"));
}

#[test]
fn tab_offers_sessions_in_fish() {
    need!("fish");
    let home = with_sessions(&IDS);
    for (typed, expected) in TYPED.iter().filter(|(_, expected)| !expected.is_empty()) {
        let script = format!("source $argv[1]; complete -C '{typed}'");
        let answers = in_shell_of(&home, "fish", &script);
        let ids: Vec<&str> = answers.lines().filter_map(|line| line.split('\t').next()).collect();
        // fish also offers what contains the letters elsewhere.
        assert!(ids.contains(expected), "{typed}: {ids:?}");
    }
    let all = in_shell_of(&home, "fish", "source $argv[1]; complete -C 'opta sessions show '");
    let ids: Vec<&str> = all.lines().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(ids[..4], ["last", "other", "sess_two", "sess_one"]);
}
