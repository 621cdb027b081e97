//! A user at a terminal: types keys, and sees what is shown.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::model::Model;
use crate::support::{
    ANYTHING, DEADLINE, Home, Run, Running, eventually, eventually_within, fifo, signal,
};

/// Returns a run of a shell's command in a terminal.
pub fn in_terminal<'h>(home: &'h Home, command: &str) -> Run<'h> {
    let run = home.sh(r#"exec script -qec "$COMMAND" /dev/null"#).env("COMMAND", command);
    run.env("SHELL", "/bin/sh")
}

/// Returns a run of a task in a terminal without colors, with any output.
pub fn task_in_terminal<'h>(home: &'h Home, model: &Model) -> Run<'h> {
    let run = in_terminal(home, "exec opta do x").env("NO_COLOR", "1");
    run.env("OPTA_MODEL_URL", model.url()).stdout(ANYTHING)
}

/// A user in front of `opta chat`, or of another command. What is written to `keys` is typed.
pub struct User {
    pub keys: File,
    pub window: Running,
    modes: [PathBuf; 2],
}

impl User {
    /// Starts `opta chat` in a terminal and waits for the prompt.
    #[track_caller]
    pub fn at_prompt(home: &Home, model: &Model) -> User {
        let user = User::before(home, model, "opta chat", "TERM=xterm");
        user.sees("> ");
        user
    }

    /// Runs a command in a terminal with these assignments. The modes of the terminal are saved
    /// before and after it, and so is the exit status.
    #[track_caller]
    pub fn before(home: &Home, model: &Model, command: &str, assignments: &str) -> User {
        // In one home, one after the other.
        let number = (0..).find(|number| !home.beside(&format!("keys{number}")).exists()).unwrap();
        let path = home.beside(&format!("keys{number}"));
        fifo(&path);
        let keys = File::options().read(true).write(true).open(&path).unwrap();
        let modes = ["before", "after"].map(|name| home.beside(&format!("{name}{number}")));
        let [before, after] = modes.each_ref().map(|path| path.display().to_string());
        let inner = home.beside(&format!("inner{number}"));
        let script = format!(
            "trap : INT\nstty -a >'{before}'\nenv {assignments} {command}\nstatus=$?\n\
             stty -a >'{after}'\necho \"status=$status\"\n"
        );
        fs::write(&inner, script).unwrap();
        // The home may belong to another user.
        for path in &modes {
            File::create(path).unwrap().set_permissions(Permissions::from_mode(0o666)).unwrap();
        }
        let command = format!("exec sh '{}'", inner.display());
        let window = in_terminal(home, &command).env("TERM", "xterm");
        let window = window.env("OPTA_MODEL_URL", model.url()).input(&path).stdout(ANYTHING);
        User { keys, window: window.spawn(), modes }
    }

    pub fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Types while the terminal hides it, and waits until it is there to be read.
    #[track_caller]
    pub fn types_ahead(&mut self, home: &Home, keys: &str) {
        let input = format!("/proc/{}/fd/0", client(home));
        let terminal = File::open(input).unwrap();
        let unread = || {
            let mut count: libc::c_int = 0;
            // SAFETY: the descriptor lives, and FIONREAD writes an int, which `count` is.
            #[expect(unsafe_code, reason = "std has no way to do it")]
            let got = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::FIONREAD, &raw mut count) };
            assert_eq!(got, 0);
            usize::try_from(count).unwrap()
        };
        let before = unread();
        self.types(keys);
        eventually("the keys are there", || unread() == before + keys.len());
    }

    /// Returns what was shown so far, without control sequences and carriage returns.
    pub fn shown(&self) -> String {
        plain(&self.window.output())
    }

    /// Waits until this is shown.
    #[track_caller]
    pub fn sees(&self, text: &str) {
        self.sees_that(&format!("{text:?}"), |shown| shown.contains(text));
    }

    /// Waits until a prompt is shown last, after the text.
    #[track_caller]
    pub fn sees_prompt_after(&self, text: &str) {
        self.sees_that(&format!("a prompt after {text:?}"), |shown| {
            shown.ends_with("\n> ") && shown.contains(text)
        });
    }

    /// Waits until this is so of what is shown. It is looked at again only when there is more: with
    /// a long paste, that takes time which the editor needs.
    #[track_caller]
    pub fn sees_that(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        let mut length = None;
        eventually(&format!("{what} is shown"), || {
            let before = length.replace(self.window.output_length());
            before != length && is_so(&self.shown())
        });
    }

    /// Waits for the exit. Returns all that was shown.
    #[track_caller]
    pub fn exits(self, status: i32) -> String {
        let seen = self.window.finish();
        let shown = plain(&seen.stdout);
        assert!(shown.contains(&format!("status={status}\n")), "{shown}");
        let [before, after] = self.modes.map(|path| fs::read_to_string(path).unwrap());
        assert_eq!(before, after, "the terminal was changed");
        shown
    }
}

/// Returns the lines as a terminal shows them: without control sequences (ECMA-48), and what is
/// written after a carriage return in place of what was there.
pub fn plain(shown: &str) -> String {
    let mut text = String::new();
    let mut returned = false;
    let mut rest = shown.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\x1b' if rest.next_if_eq(&'[').is_some() => {
                while rest.next_if(|next| !('@'..='~').contains(next)).is_some() {}
                // To the right, past what is there.
                returned &= rest.next() != Some('C');
            }
            '\r' => returned = true,
            '\n' => {
                text.push('\n');
                returned = false;
            }
            '\x07' => {}
            _ => {
                if std::mem::take(&mut returned) {
                    text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
                }
                text.push(c);
            }
        }
    }
    text
}

/// A screen: a window of a private tmux(1) with a shell. Dropping it ends the shell.
pub struct Window {
    name: String,
}

impl Window {
    /// Opens a window of this size, whose shell has the home's environment and a bare prompt.
    #[track_caller]
    pub fn new(home: &Home, model: &Model, columns: u16, rows: u16) -> Window {
        let name = home.path().parent().unwrap().file_name().unwrap().to_string_lossy();
        let window = Window { name: name.replace([' ', 'ü'], "") };
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let program = PathBuf::from(env!("CARGO_BIN_EXE_opta"));
        let path = format!("{}:/usr/bin:/bin", program.parent().unwrap().display());
        let shell = format!(
            "cd '{0}' && exec env -i HOME='{0}' PATH='{path}' OPTA_DAEMON_PORT=0 LANG=C.UTF-8 \
             TERM=screen OPTA_MODEL_URL={1} PS1='$ ' bash --norc --noprofile",
            home.path().display(),
            model.url()
        );
        window.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", &columns, "-y", &rows, &shell]);
        window.sees("$");
        window
    }

    /// Calls tmux(1) for this window. Returns its output.
    #[track_caller]
    pub fn tmux(&self, words: &[&str]) -> String {
        let output = self.call(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn call(&self, words: &[&str]) -> Command {
        let mut command = Command::new("tmux");
        command.args(["-u", "-L", &self.name]).args(words).stdin(Stdio::null());
        command.env("LANG", "C.UTF-8").env_remove("TMUX");
        command
    }

    /// Presses keys by their names in tmux(1).
    pub fn presses(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Types a text.
    pub fn types(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    /// Returns what is on the screen, and the lines above it.
    pub fn screen(&self) -> String {
        let screen = self.tmux(&["capture-pane", "-p", "-S", "-"]);
        screen.trim_end().to_owned()
    }

    #[track_caller]
    pub fn sees(&self, text: &str) {
        eventually(&format!("{text:?} is on the screen"), || self.screen().contains(text));
    }

    /// Waits until the last line on the screen is this one.
    #[track_caller]
    pub fn sees_last(&self, line: &str) {
        let is_last = || self.screen().lines().last().is_some_and(|last| last.trim_end() == line);
        eventually_within(DEADLINE, &format!("{line:?} is last: {}", self.screen()), is_last);
    }

    /// Returns the column of the cursor, counted from 0.
    pub fn cursor(&self) -> usize {
        self.tmux(&["display-message", "-p", "#{cursor_x}"]).trim().parse().unwrap()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // The shell may have ended.
        drop(self.call(&["kill-server"]).output());
    }
}

/// Returns the processes of `opta chat` in a home: all but the daemon.
pub fn client(home: &Home) -> i32 {
    let daemon = home.owner();
    home.processes().into_iter().find(|pid| Some(*pid) != daemon).unwrap()
}

/// Sends a signal to `opta chat`.
pub fn signal_client(home: &Home, name: &str) {
    signal(client(home), name);
}
