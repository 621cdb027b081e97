//! The variables that other processes inherit: commands of a turn, and the daemon. Pure.

/// The variables, besides `LC_*`, that commands of a turn inherit from the caller: locations and
/// the user's preferences. None may hold a secret.
const TURN_VARIABLES: [&str; 24] = [
    "CARGO_HOME",
    "COLORTERM",
    "CONDA_PREFIX",
    "GOPATH",
    "GOROOT",
    "HOME",
    "JAVA_HOME",
    "LANG",
    "LANGUAGE",
    "LOGNAME",
    "NO_COLOR",
    "NVM_DIR",
    "PATH",
    "PYENV_ROOT",
    "RUSTUP_HOME",
    "SHELL",
    "SSH_AUTH_SOCK",
    "TERM",
    "TMPDIR",
    "TZ",
    "USER",
    "VIRTUAL_ENV",
    "XDG_CACHE_HOME",
    "XDG_RUNTIME_DIR",
];

/// Returns whether commands of a turn inherit a variable of this name.
pub fn by_turns(name: &str) -> bool {
    TURN_VARIABLES.contains(&name) || name.starts_with("LC_")
}

/// The variables, besides `LC_*`, `XDG_*` and `OPTA_*`, that a daemon in the background inherits
/// from its starter: locations, and the model server for clients that name none.
const DAEMON_VARIABLES: [&str; 8] =
    ["HOME", "LANG", "LANGUAGE", "OLLAMA_HOST", "OPENAI_BASE_URL", "PATH", "TMPDIR", "TZ"];

/// Parts of the names of variables that may hold a secret. A turn is submitted with the key that it
/// needs.
const SECRET: [&str; 5] = ["CREDENTIAL", "KEY", "PASS", "SECRET", "TOKEN"];

/// Returns whether a daemon in the background inherits a variable of this name.
pub fn by_daemon(name: &str) -> bool {
    let listed = DAEMON_VARIABLES.contains(&name)
        || ["LC_", "OPTA_", "XDG_"].iter().any(|prefix| name.starts_with(prefix));
    listed && !SECRET.iter().any(|part| name.contains(part))
}
