//! The prompt of a chat: keys, pastes, several lines, history, and the terminal afterward.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;

use crate::model::{Model, Question};
use crate::support::{Home, eventually, has, has_ended, mode, need, signal, state_of};
use crate::user::{User, Window, client, signal_client};

#[test]
fn each_key_edits_the_line() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    for (number, (keys, message)) in [
        // Cursor keys, also as in application mode.
        ("acd\x1b[D\x1b[Db\x1b[Ce", "abced"),
        ("ad\x1bODbc", "abcd"),
        // Home and End.
        ("bc\x1b[Ha\x1b[Fd", "abcd"),
        ("bc\x1b[1~a\x1b[4~d", "abcd"),
        ("bc\x01a\x05d", "abcd"),
        // Ctrl-B, Ctrl-F.
        ("ac\x02b\x06d", "abcd"),
        // Ctrl-K, Ctrl-Y; Ctrl-U; Ctrl-W.
        ("two one \x01\x06\x06\x06\x06\x0b\x01\x19", "one two "),
        ("wrong\x15right", "right"),
        ("one wrong\x17two", "one two"),
        // Ctrl-T.
        ("ba\x14", "ab"),
        // Alt-B, Alt-F, Alt-D.
        ("one three\x1bbtwo ", "one two three"),
        ("one two\x01\x1bf!", "one! two"),
        ("one two\x01\x1bd", " two"),
        // Backspace and Delete.
        ("abx\x7fcy\x08", "abc"),
        ("abxc\x1b[D\x1b[D\x1b[3~", "abc"),
        // Ctrl-L draws the line again.
        ("ab\x0cc", "abc"),
        // Keys without a meaning here, such as F5 and one that no terminal has.
        ("a\x1b[15~b\x1b[99~c", "abc"),
        // Up and Down, Ctrl-R.
        ("\x1b[A\x1b[A\x1b[B", "abc"),
        ("\x12three\x1b[F!", "one two three!"),
    ]
    .into_iter()
    .enumerate()
    {
        user.types(keys);
        user.types("\r");
        model.gets(message).answer(&format!("answer {number}"));
        user.sees_prompt_after(&format!("\nanswer {number}\n"));
    }
    // A letter and its accent, an emoji of four characters, and wide letters are deleted as one.
    user.types("e\u{301}x\x7f\x7fa\u{4f60}\u{597d}\x7f\u{1f469}\u{200d}\u{1f4bb}\x7fb\r");
    model.gets("a\u{4f60}b").answer("last");
    user.sees_prompt_after("\nlast\n");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn a_line_of_six_thousand_bytes_is_one_message() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    let line = "0123456789".repeat(600);
    user.types(&line);
    user.types("\x01<\x05>\r");
    model.gets(&format!("<{line}>")).answer("seen");
    user.sees_prompt_after("\nseen\n");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn a_paste_is_one_message_whatever_its_length() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    let lines: Vec<String> = (1..=200).map(|number| format!("line {number}")).collect();
    let mib: Vec<String> = vec!["0123456789abcde".to_owned(); 1 << 16];
    // More lines than the editor can count.
    let short = vec![String::new(); 70_000];
    for (number, lines) in [lines, mib, short].into_iter().enumerate() {
        let begin = format!("begin {number}\n");
        user.types(&format!("\x1b[200~{begin}{}\nend\x1b[201~", lines.join("\n")));
        user.types("\r");
        let text = format!("{begin}{}\nend", lines.join("\n")).replace('\n', "\\n");
        // What was said before may be too long for the model.
        let question = model.question();
        assert!(question.body.contains(&format!("{text}\"}}")), "{number}");
        question.answer(&format!("seen {number}"));
        user.sees_prompt_after(&format!("\nseen {number}\n"));
    }
    // Escape sequences in a paste, and an escape that is typed after Ctrl-V.
    user.types("\x1b[200~a\x1b[31mred\x1b[0m\x07\x1b[201~b\x16\x1bc\r");
    let question = model.question();
    for escape in ["\\u001b", "\\u0007", "\x1b", "\x07"] {
        assert!(!question.body.contains(escape), "{}", question.body);
    }
    question.answer("last");
    user.sees_prompt_after("\nlast\n");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn a_message_longer_than_the_bound_is_named_and_not_sent() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types(&format!("\x1b[200~{}\x1b[201~\r", "x".repeat((3 << 20) + 1)));
    user.sees_prompt_after("opta: cannot send this line: it is longer than 3145728 bytes\n");
    user.types("short\r");
    model.gets("short").answer("seen");
    user.sees_prompt_after("\nseen\n");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn a_paste_that_is_not_utf_8_is_discarded_as_a_whole() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types("\x1b[200~first\n");
    user.keys.write_all(b"caf\xe9\n").unwrap();
    user.types(&"another line\n".repeat(2_000));
    user.types("last\x1b[201~");
    user.sees_prompt_after("opta: cannot send this line: it is not UTF-8\n");
    user.types("hello\r");
    model.gets("hello").answer("seen");
    user.sees_prompt_after("\nseen\n");
    model.assert_not_asked();
    user.types("\x04");
    user.exits(0);
}

#[test]
fn several_lines_are_written_with_backslashes_and_in_blocks() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    let python = "\x1b[200~\"\"\"\nWhat it does.\n\"\"\"\nimport os\x1b[201~\r";
    for (number, (keys, message)) in [
        ("one\\\rtwo\\\rthree\r", "one\\ntwo\\nthree"),
        ("\"\"\"\rone\r\rtwo\r\"\"\"\r", "one\\n\\ntwo"),
        ("a\\\\\r", "a\\\\\\\\"),
        // Ctrl-V Ctrl-J.
        ("one\x16\ntwo\r", "one\\ntwo"),
        // What is pasted stays as it is.
        ("\x1b[200~make \\\n  all\x1b[201~\r", "make \\\\\\n  all"),
        (python, r#"\"\"\"\nWhat it does.\n\"\"\"\nimport os"#),
    ]
    .into_iter()
    .enumerate()
    {
        user.types(keys);
        model.gets(message).answer(&format!("answer {number}"));
        user.sees_prompt_after(&format!("\nanswer {number}\n"));
    }
    user.types("\x04");
    user.exits(0);
}

#[test]
fn what_is_typed_during_a_turn_stands_in_the_next_prompt() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types("first\r");
    let mut question = model.gets("first");
    question.say("one ");
    user.sees("one ");
    user.types_ahead(&home, "next\x1b[Dx");
    question.say("two");
    user.sees("one two");
    question.end();
    // Not shown in the answer.
    user.sees_that("it in the prompt", |shown| {
        shown.contains("\none two\n") && shown.ends_with("\n> nexxt")
    });
    user.types("\r");
    question = model.gets("nexxt");
    question.say("three");
    user.sees("three");
    // A paste stays one message, and more than the kernel keeps does not disable Ctrl-C.
    let lines = "a line of a paste\n".repeat(1_000);
    user.types(&format!("\x1b[200~{lines}end\x1b[201~"));
    user.types("\x03");
    user.sees("opta: the turn was cancelled");
    question.assert_dropped();
    user.sees("a line of a paste\nend");
    user.types("\x15\x03");
    user.sees_prompt_after("press Ctrl-C again");
    user.types("\x04");
    user.exits(0);
    model.assert_not_asked();
}

#[test]
fn what_is_typed_before_a_question_is_no_answer_and_stands_in_the_next_prompt() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types("first\r");
    let question = model.gets("first");
    user.sees("waiting");
    user.types_ahead(&home, "yes, please");
    question.call("run_command", r#"{\"command\":\"true\"}"#);
    user.sees("[y]es / [n]o");
    user.types("n\r");
    model.question().answer("denied");
    user.sees("\ndenied\n");
    user.sees("\n> yes, please");
    user.types(" do\r");
    model.gets("yes, please do").answer("seen");
    user.sees_prompt_after("\nseen\n");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn signals_in_the_middle_of_a_line_end_the_chat_and_leave_the_terminal_as_it_was() {
    need!("script");
    for (name, status) in [("TERM", 143), ("HUP", 129)] {
        let (home, model) = (Home::new(), Model::new());
        let mut user = User::at_prompt(&home, &model);
        user.types("half a li");
        user.sees("half a li");
        signal_client(&home, name);
        user.exits(status);
    }
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    user.types("half a li");
    user.sees("half a li");
    signal_client(&home, "INT");
    user.sees_prompt_after("press Ctrl-C again to exit");
    signal_client(&home, "INT");
    user.exits(130);
}

#[test]
fn a_signal_while_another_program_has_the_terminal_ends_the_chat() {
    need!("script");
    for (name, keys, status) in [
        ("TERM", "!echo wait-$((2 + 2)); read line\r", 143),
        ("HUP", "!echo wait-$((2 + 2)); read line\r", 129),
        ("TERM", "/edit begin\r", 143),
        ("TERM", "/edit begin \r", 143),
    ] {
        let (home, model) = (Home::new(), Model::new());
        let editor = home.beside("ed");
        let saves = keys == "/edit begin \r";
        let save = if saves { "echo more >>\"$1\"; " } else { "" };
        home.write(&editor, format!("{save}echo wait-$((2 + 2)); read line\n"));
        let by = format!("TERM=xterm VISUAL='sh \"{}\"'", editor.display());
        let mut user = User::before(&home, &model, "opta chat", &by);
        user.sees("> ");
        let chat = client(&home);
        user.types(keys);
        user.sees("wait-4");
        signal(chat, name);
        user.types("\r");
        if saves {
            user.sees("opta: cannot use the message: the chat ends");
            user.sees("it is kept in ");
        }
        user.exits(status);
        let kept = kept_messages(&home);
        assert_eq!(kept, if saves { &["beginmore\n"][..] } else { &[] }, "{keys}");
    }
}

/// Returns the messages that were written in an editor and kept in their files.
fn kept_messages(home: &Home) -> Vec<String> {
    let left = fs::read_dir(home.path().join(".config/opta")).unwrap();
    let paths = left.map(|entry| entry.unwrap().path());
    let kept = paths.filter(|path| path.file_name().unwrap().to_str().unwrap().contains("message"));
    kept.map(|path| fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn a_chat_ends_with_its_terminal() {
    need!("script");
    for within in [false, true] {
        let (home, model) = (Home::new(), Model::new());
        let mut user = User::at_prompt(&home, &model);
        user.types(if within { "hello\r" } else { "half a li" });
        let question = within.then(|| model.question());
        let chat = client(&home);
        signal(user.window.pid(), "KILL");
        eventually("the chat ends", || has_ended(chat));
        question.into_iter().for_each(Question::assert_dropped);
    }
}

#[test]
fn messages_are_kept_for_the_next_chat() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::at_prompt(&home, &model);
    for keys in ["one\r", " secret\r", "two\\\rlines\r", "two\\\rlines\r"] {
        user.types(keys);
        let shown = user.shown().matches("\nyes\n").count();
        model.question().answer("yes");
        user.sees_that("the answer", |text| {
            text.matches("\nyes\n").count() > shown && text.ends_with("\n> ")
        });
    }
    user.types("\x04");
    user.exits(0);
    let path = home.path().join(".config/opta/chat_history");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(fs::read_to_string(&path).unwrap(), "\"one\"\n\"two\\nlines\"\n");
    let mut user = User::at_prompt(&home, &model);
    user.types("\x1b[A\x1b[A\x1b[A\r");
    model.gets("one").answer("seen");
    user.sees_prompt_after("\nseen\n");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn the_history_is_bounded_and_keeps_the_newest() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let path = home.path().join(".config/opta/chat_history");
    let old = format!("\"{}\"\n", "x".repeat(1021));
    home.write(&path, old.repeat(1024));
    let mut user = User::at_prompt(&home, &model);
    user.types("newest\r");
    model.gets("newest").answer("seen");
    user.sees_prompt_after("\nseen\n");
    user.types("\x04");
    user.exits(0);
    let kept = fs::read_to_string(&path).unwrap();
    assert!(kept.ends_with("\"newest\"\n") && kept.len() <= 1 << 19, "{}", kept.len());
}

#[test]
fn a_history_that_cannot_be_used_is_reported_once_and_left_alone() {
    need!("script");
    type Plant = fn(&std::path::Path);
    let link: Plant = |path| symlink("/etc/hostname", path).unwrap();
    let other: Plant = |path| {
        File::create(path).unwrap();
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    };
    let damaged: Plant = |path| fs::write(path, b"\"one\"\n\xff\xfe\n\"cut").unwrap();
    let directory: Plant = |path| fs::create_dir(path).unwrap();
    let root = if has("root") { Some((other, "it belongs to another user")) } else { None };
    let plants = [
        (link, "it is a symbolic link"),
        (damaged, "2 lines of "),
        (directory, "it is not a regular file"),
    ];
    for (plant, why) in plants.into_iter().chain(root) {
        let (home, model) = (Home::new(), Model::new());
        let path = home.path().join(".config/opta/chat_history");
        home.write(&home.config(), "{}");
        plant(&path);
        let before = path.symlink_metadata().unwrap();
        let mut user = User::at_prompt(&home, &model);
        for text in ["first", "second"] {
            user.types(&format!("{text}\r"));
            model.gets(text).answer(&format!("{text} answer"));
            user.sees_prompt_after(&format!("\n{text} answer\n"));
        }
        user.types("\x04");
        let shown = user.exits(0);
        assert_eq!(shown.matches(why).count(), 1, "{why}: {shown}");
        let after = path.symlink_metadata().unwrap();
        assert_eq!(before.file_type(), after.file_type());
        if why != "2 lines of " {
            assert_eq!(before.modified().unwrap(), after.modified().unwrap());
        }
    }
}

#[test]
fn a_terminal_without_a_cursor_edits_lines_itself() {
    need!("script");
    for assignments in ["TERM=dumb", "-u TERM"] {
        let (home, model) = (Home::new(), Model::new());
        let mut user = User::before(&home, &model, "opta chat", assignments);
        user.sees("> ");
        user.types("hello\n");
        model.gets("hello").answer("Hi **you**");
        user.sees_prompt_after("Hi **you**\n");
        user.types("\x04");
        user.exits(0);
    }
}

#[test]
fn a_terminal_of_one_column_and_an_output_elsewhere_work() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let mut user = User::before(&home, &model, "sh -c 'stty cols 1 rows 1; opta chat'", "TERM=vt");
    user.sees("> ");
    user.types("ab\u{4f60}c\x1b[D\x1b[Dd\r");
    model.gets("abd\u{4f60}c").answer("x");
    user.sees_that("the prompt again", |shown| {
        shown.split_once("\nx\n").is_some_and(|(_, after)| after.contains('>'))
    });
    user.types("\x04");
    // It was changed on purpose.
    drop(user.window.finish());
    let home = Home::new();
    let answers = home.beside("answers");
    let command = format!("sh -c 'opta chat >\"{}\"'", answers.display());
    let mut user = User::before(&home, &model, &command, "TERM=xterm");
    user.sees("> ");
    user.types("hellp\x7fo\r");
    model.gets("hello").answer("Hi");
    user.sees_prompt_after("1 tokens out");
    assert_eq!(fs::read_to_string(&answers).unwrap(), "Hi\n");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn tab_completes_commands_and_paths() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    fs::create_dir(home.beside("documents")).unwrap();
    home.write(&home.beside("documents/letter.txt"), "");
    home.write(&home.beside("documents/evil\x1b[2J"), "");
    let mut user = User::at_prompt(&home, &model);
    user.types("/ses\t\r");
    user.sees_prompt_after("there are no sessions yet\n");
    user.types("read @doc\t\t\r");
    model.gets("read @documents/letter.txt").answer("seen");
    user.sees_prompt_after("\nseen\n");
    user.types("/\t\t");
    for command in ["/clear", "/edit", "/exit", "/help", "/last", "/model", "/new", "/resume"] {
        user.sees(command);
    }
    user.types("\x15/model \t\r");
    user.sees_prompt_after("model scripted\n");
    user.types("\x04");
    user.exits(0);
}

#[test]
fn a_message_is_written_in_the_users_editor() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let editor = home.beside("ed");
    home.write(&editor, "printf 'and\\nmore' >>\"$1\"\n");
    let by = format!("VISUAL='sh \"{}\"'", editor.display());
    let mut user = User::before(&home, &model, "opta chat", &by);
    user.sees("> ");
    user.types("/edit begin \r");
    user.sees("> beginand\nmore");
    user.types("!\r");
    model.gets("beginand\\nmore!").answer("seen");
    user.sees_prompt_after("\nseen\n");
    user.types("\x04");
    user.exits(0);
    assert_eq!(kept_messages(&home), [""; 0]);
    let mut user = User::before(&home, &model, "opta chat", "VISUAL=false");
    user.sees("> ");
    user.types("/edit kept\r");
    user.sees("opta: cannot edit the message: the editor 'false' ended with exit status: 1");
    user.sees("> kept");
    user.types("\x03");
    user.sees_prompt_after("press Ctrl-C again");
    user.types("\x03");
    user.exits(130);
}

#[test]
fn what_an_editor_saved_before_it_failed_is_in_the_prompt() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let editor = home.beside("ed");
    home.write(&editor, "printf 'and\\nmore' >>\"$1\"; exit 3\n");
    let by = format!("VISUAL='sh \"{}\"'", editor.display());
    let mut user = User::before(&home, &model, "opta chat", &by);
    user.sees("> ");
    user.types("/edit begin\r");
    user.sees("opta: cannot edit the message: the editor ");
    user.sees("> beginand\nmore");
    user.types("\r");
    model.gets("beginand\\nmore").answer("seen");
    user.sees_prompt_after("\nseen\n");
    user.types("\x04");
    user.exits(0);
    assert_eq!(kept_messages(&home), [""; 0]);
}

#[test]
fn a_terminal_without_a_cursor_sends_what_the_editor_saved_unless_it_failed() {
    need!("script");
    let (home, model) = (Home::new(), Model::new());
    let editor = home.beside("ed");
    home.write(&editor, "printf 'and\\nmore' >>\"$1\"; test ! -e failing\n");
    let by = format!("TERM=dumb VISUAL='sh \"{}\"'", editor.display());
    let mut user = User::before(&home, &model, "opta chat", &by);
    user.sees("> ");
    user.types("/edit begin\n");
    model.gets("beginand\\nmore").answer("seen");
    user.sees_prompt_after("\nseen\n");
    assert_eq!(kept_messages(&home), [""; 0]);
    user.types("!touch failing\n");
    user.sees_prompt_after("failing\n");
    user.types("/edit begin\n");
    user.sees("opta: cannot use the message: the editor failed");
    user.sees_prompt_after("it is kept in ");
    user.types("\x04");
    user.exits(0);
    assert_eq!(kept_messages(&home), ["beginand\nmore"]);
}

#[test]
fn a_message_from_the_editor_that_cannot_be_used_is_kept_in_its_file() {
    need!("script");
    for (text, and, error) in [
        (&b"long work \xff"[..], "", "cannot use the message: it is not UTF-8"),
        (b"long work", "; chmod 666 \"$1\"", "other users can write to it"),
    ] {
        let (home, model) = (Home::new(), Model::new());
        let (editor, written) = (home.beside("ed"), home.beside("written"));
        fs::write(&written, text).unwrap();
        home.write(&editor, format!("cat '{}' >\"$1\"{and}\n", written.display()));
        let by = format!("VISUAL='sh \"{}\"'", editor.display());
        let mut user = User::before(&home, &model, "opta chat", &by);
        user.sees("> ");
        user.types("/edit begin\r");
        user.sees(error);
        user.sees("> begin");
        user.types("\x03");
        user.sees_prompt_after("press Ctrl-C again");
        user.types("\x03");
        user.exits(130);
        let left = fs::read_dir(home.path().join(".config/opta")).unwrap();
        let paths = left.map(|entry| entry.unwrap().path());
        let kept: Vec<_> = paths.filter(|path| path.extension() == Some("md".as_ref())).collect();
        assert_eq!(kept.len(), 1, "{error}");
        assert_eq!(fs::read(&kept[0]).unwrap(), text);
    }
}

#[test]
fn notes_break_between_words_on_a_narrow_terminal() {
    need!("tmux");
    let (home, model) = (Home::new(), Model::new());
    let window = Window::new(&home, &model, 20, 40);
    window.types("opta chat");
    window.presses(&["Enter"]);
    window.sees("/help");
    window.sees_last(">");
    window.types("/modle");
    window.presses(&["Enter"]);
    window.sees("\nopta: unknown\n  command '/modle';\n  did you mean\n  '/model'?\n");
}

#[test]
fn the_cursor_stays_where_it_belongs_between_wide_characters_and_after_a_resize() {
    need!("tmux");
    let (home, model) = (Home::new(), Model::new());
    let window = Window::new(&home, &model, 40, 12);
    window.types("opta chat");
    window.presses(&["Enter"]);
    window.sees("/help");
    window.sees_last(">");
    window.types("\u{4f60}\u{597d}e\u{301}\u{1f600}z");
    window.sees_last("> \u{4f60}\u{597d}e\u{301}\u{1f600}z");
    eventually("the cursor is at the end", || window.cursor() == 10);
    for (key, column) in [("Left", 9), ("Left", 7), ("Left", 6), ("Left", 4), ("Left", 2)] {
        window.presses(&[key]);
        eventually(&format!("the cursor is in column {column}"), || window.cursor() == column);
    }
    window.presses(&["Right"]);
    window.types("-");
    window.sees_last("> \u{4f60}-\u{597d}e\u{301}\u{1f600}z");
    window.presses(&["End"]);
    window.types(" and a line that is longer than one row");
    window.sees("row");
    window.tmux(&["resize-window", "-x", "25", "-y", "12"]);
    window.types("!");
    window.presses(&["Home"]);
    window.types("<");
    window.presses(&["Enter"]);
    let message = "<\u{4f60}-\u{597d}e\u{301}\u{1f600}z and a line that is longer than one row!";
    model.gets(message).answer("seen");
    window.sees("seen");
    window.sees_last(">");
    window.presses(&["C-d"]);
    window.sees_last("$");
}

#[test]
fn ctrl_z_gives_the_terminal_back_and_fg_draws_the_prompt_again() {
    need!("tmux");
    let (home, model) = (Home::new(), Model::new());
    let window = Window::new(&home, &model, 80, 40);
    let modes = |name: &str| {
        window.types(&format!("stty -a >{name}; echo {name} saved"));
        window.presses(&["Enter"]);
        window.sees(&format!("\n{name} saved"));
        fs::read_to_string(home.path().join(name)).unwrap()
    };
    // What a shell without a line editor finds.
    window.types("PS1='% ' exec sh -i");
    window.presses(&["Enter"]);
    window.sees_last("%");
    let before = modes("before");
    window.types("opta chat");
    window.presses(&["Enter"]);
    window.sees("/help");
    window.sees_last(">");
    window.types("half");
    window.sees_last("> half");
    window.presses(&["C-z"]);
    window.sees("Stopped");
    assert_eq!(modes("prompt"), before);
    window.types("fg");
    window.presses(&["Enter"]);
    window.sees_last("> half");
    window.types(" a line");
    window.presses(&["Enter"]);
    let mut question = model.gets("half a line");
    question.say("begin");
    window.sees("begin");
    window.presses(&["C-z"]);
    eventually("it is stopped again", || window.screen().matches("Stopped").count() > 1);
    assert_eq!(modes("turn"), before);
    window.types("fg");
    window.presses(&["Enter"]);
    eventually("it continues", || state_of(client(&home)) == Some('S'));
    question.say(" end");
    window.sees(" end");
    question.end();
    window.sees_last(">");
    window.presses(&["C-d"]);
    window.sees("to resume");
    window.sees_last("%");
    assert_eq!(modes("after"), before);
}

#[test]
fn ctrl_z_stops_a_chat_without_a_line_editor_also_after_a_shell_command() {
    need!("tmux");
    let (home, model) = (Home::new(), Model::new());
    let window = Window::new(&home, &model, 80, 40);
    window.types("TERM=dumb opta chat");
    window.presses(&["Enter"]);
    window.sees("/help");
    window.sees_last(">");
    window.types("!echo sea-$((40 + 2))");
    window.presses(&["Enter"]);
    window.sees("\nsea-42\n>");
    window.presses(&["C-z"]);
    window.sees("Stopped");
    window.types("fg");
    window.presses(&["Enter"]);
    eventually("it continues", || state_of(client(&home)) == Some('S'));
    window.presses(&["C-d"]);
    eventually("the chat ends", || home.processes().is_empty());
    window.sees_last("$");
}
