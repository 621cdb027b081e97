//! The user's settings: `config.json` and the variables that override it. With `paths.rs`, the only
//! reader of the environment.
//!
//! A damaged file is refused with its line, never repaired and never replaced by defaults.

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::Path;

use nanoserde::DeJson;

use crate::error::{Error, Kind};
use crate::log::{Level, Rotation};
use crate::{disk, json, limits};

/// Which port the daemon is to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// 9999, else the first free one of the fallback ports.
    Default,
    /// This one if it is free, else as [`Port::Default`].
    Preferred(u16),
    /// This one or none; `by` says who asked. 0: any free one.
    Exactly { port: u16, by: &'static str },
}

/// Who asks for a port in `config.json`.
const BY_FILE: &str = "daemon.port in config.json";

impl Port {
    /// Whether a service would choose the same port: it reads `config.json`, but neither this
    /// command's options nor its environment.
    pub fn reaches_service(self) -> bool {
        match self {
            Port::Default | Port::Preferred(_) => true,
            Port::Exactly { by, .. } => by == BY_FILE,
        }
    }
}

/// What the daemon needs to know before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    pub port: Port,
    pub level: Level,
    pub rotation: Rotation,
    /// Whether commands may start the daemon on their own account.
    pub autostart: bool,
}

impl Config {
    /// What holds where neither file nor variable says otherwise.
    pub const DEFAULT: Config = Config {
        port: Port::Default,
        level: Level::Info,
        rotation: Rotation { bytes: limits::LOG_BYTES_DEFAULT, files: limits::LOG_FILES_DEFAULT },
        autostart: true,
    };

    /// Reads `path`, then the variables, which win. A missing file is an empty one; keys that are
    /// not known here belong to others.
    pub fn load(path: &Path) -> Result<Config, Error> {
        let file = read(path)?;
        let at = |key: &str| format!("{}: {key}", path.display());
        let autostart = variable("OPTA_NO_AUTOSTART").is_none();
        let mut config = Config { autostart, ..Config::DEFAULT };
        if let Some(number) = file.daemon.and_then(|daemon| daemon.port) {
            let port = u16::try_from(number).ok();
            let port = port.ok_or_else(|| port_refused(at("daemon.port"), &number.to_string()))?;
            config.port = Port::Exactly { port, by: BY_FILE };
        }
        if let Some(log) = file.log {
            log.apply(&mut config, at)?;
        }
        if let Some(text) = variable("OPTA_DAEMON_PORT") {
            let refused = || port_refused("OPTA_DAEMON_PORT".into(), &text);
            let port = text.parse().ok().ok_or_else(refused)?;
            config.port = Port::Exactly { port, by: "OPTA_DAEMON_PORT" };
        }
        if let Some(text) = variable("OPTA_LOG") {
            config.level = level("OPTA_LOG".into(), &text)?;
        }
        Ok(config)
    }
}

/// What the user has set about the model. `agent::endpoint` decides what of it counts.
#[derive(Default)]
pub struct ModelSettings {
    /// `OPTA_MODEL_URL`
    pub url_variable: Option<String>,
    /// `connection.url`, or `connection.host` and `connection.port` made into one.
    pub url_config: Option<UrlConfig>,
    /// `OPENAI_BASE_URL`
    pub openai_url: Option<String>,
    /// `OLLAMA_HOST`, as Ollama understands it: not necessarily a URL.
    pub ollama_host: Option<String>,
    /// `OPTA_API_KEY`. A secret.
    pub key: Option<String>,
    /// `OPENAI_API_KEY`. A secret.
    pub openai_key: Option<String>,
    /// `OPTA_MODEL`, else `model.default`.
    pub model: Option<String>,
    /// `OPTA_TOOL_CHOICE`, else `model.toolChoice`: `auto`, `required` or `required-first`.
    pub tool_choice: Option<String>,
}

/// A model server that `config.json` names.
pub struct UrlConfig {
    pub url: String,
    /// The file, and the key that names it.
    pub by: String,
}

impl ModelSettings {
    /// Reads `path` and the variables, which win. A missing file is an empty one.
    pub fn load(path: &Path) -> Result<ModelSettings, Error> {
        let file = read(path)?;
        let at = |key: &str| format!("{}: {key}", path.display());
        let (model, tool_choice) =
            file.model.map_or((None, None), |keys| (keys.default, keys.tool_choice));
        let in_file = |at: String, value| filled(value).map(|value| (at, value));
        let model = in_variable("OPTA_MODEL").or(in_file(at("model.default"), model));
        let choice =
            in_variable("OPTA_TOOL_CHOICE").or(in_file(at("model.toolChoice"), tool_choice));
        Ok(ModelSettings {
            url_variable: variable("OPTA_MODEL_URL"),
            url_config: file.connection.map_or(Ok(None), |keys| keys.url(at))?,
            openai_url: variable("OPENAI_BASE_URL"),
            ollama_host: variable("OLLAMA_HOST"),
            key: variable("OPTA_API_KEY"),
            openai_key: variable("OPENAI_API_KEY"),
            model: model.map(checked_model).transpose()?,
            tool_choice: choice.map(checked_choice).transpose()?,
        })
    }
}

/// What the user has decided about a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, DeJson)]
pub enum Rule {
    #[nserde(rename = "allow")]
    Allow,
    #[nserde(rename = "ask")]
    Ask,
    #[nserde(rename = "deny")]
    Deny,
}

/// What turns may do.
pub struct ToolSettings {
    /// By the names that `permissions` has; some belong to others.
    pub permissions: HashMap<String, Rule>,
    /// Tool calls of one turn: `safety.maxToolCalls`.
    pub calls_max: u64,
}

impl ToolSettings {
    /// Reads `path`. A missing file is an empty one.
    pub fn load(path: &Path) -> Result<ToolSettings, Error> {
        let file = read(path)?;
        let at = |key: &str| format!("{}: {key}", path.display());
        let number = file.safety.and_then(|safety| safety.calls_max);
        let in_range = |number: &i64| (1..=limits::TOOL_CALLS_MAX).contains(&number.unsigned_abs());
        let calls_max = match number {
            None => limits::TOOL_CALLS_DEFAULT,
            Some(number) if number > 0 && in_range(&number) => number.unsigned_abs(),
            Some(number) => {
                let most = limits::TOOL_CALLS_MAX;
                return Err(invalid(
                    at("safety.maxToolCalls"),
                    format!("a number from 1 to {most} is needed, not {number}"),
                ));
            }
        };
        Ok(ToolSettings { permissions: file.permissions.unwrap_or_default(), calls_max })
    }
}

/// What commands that a turn runs see of the caller's environment, beside `LC_*`: where things are,
/// and how people want them. Whatever may hold a secret is not among them.
const HANDED_ON: [&str; 23] = [
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
    "TERM",
    "TMPDIR",
    "TZ",
    "USER",
    "VIRTUAL_ENV",
    "XDG_CACHE_HOME",
    "XDG_RUNTIME_DIR",
];

/// The variables that commands of a turn are given: names and values.
pub fn turn_environment() -> Vec<(String, String)> {
    #[expect(clippy::disallowed_methods, reason = "this room and paths.rs read the environment")]
    let variables = env::vars_os();
    let plain = variables.filter_map(|(name, value)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        (HANDED_ON.contains(&name.as_str()) || name.starts_with("LC_")).then_some((name, value))
    });
    plain.collect()
}

/// Whether output may be coloured when it goes to a terminal. <https://no-color.org>
pub fn color_allowed() -> bool {
    variable("NO_COLOR").is_none() && variable("TERM").is_none_or(|term| term != "dumb")
}

/// What a service manager passes to a process that it starts.
pub struct ManagerVariables {
    /// The process that systemd started as the service (`SYSTEMD_EXEC_PID`, systemd.exec(5)).
    pub service_pid: Option<String>,
    /// Where systemd expects notifications (`NOTIFY_SOCKET`, sd_notify(3)).
    pub notify_socket: Option<OsString>,
    /// The job that launchd started (`XPC_SERVICE_NAME`).
    pub label: Option<String>,
}

/// Reads the manager's variables.
pub fn manager_variables() -> ManagerVariables {
    ManagerVariables {
        service_pid: variable("SYSTEMD_EXEC_PID"),
        notify_socket: raw_variable("NOTIFY_SOCKET"),
        label: variable("XPC_SERVICE_NAME"),
    }
}

/// What the daemon in the background keeps of its starter's environment, beside `LC_*`, `XDG_*` and
/// `OPTA_*`: where things are, and which model server a client means that names none.
const OF_THE_DAEMON: [&str; 8] =
    ["HOME", "LANG", "LANGUAGE", "OLLAMA_HOST", "OPENAI_BASE_URL", "PATH", "TMPDIR", "TZ"];

/// Parts of the names of variables that may hold a secret. A turn brings the key that it needs.
const SECRET: [&str; 5] = ["CREDENTIAL", "KEY", "PASS", "SECRET", "TOKEN"];

/// The environment of the daemon in the background: names and values. The variables of the command
/// that happens to start it must neither last as long as it nor be read out of it.
pub fn of_the_daemon() -> Vec<(OsString, OsString)> {
    #[expect(clippy::disallowed_methods, reason = "this room and paths.rs read the environment")]
    let variables = env::vars_os();
    let is_kept = |(name, _): &(OsString, OsString)| {
        name.to_str().is_some_and(|name| {
            let listed = OF_THE_DAEMON.contains(&name)
                || ["LC_", "OPTA_", "XDG_"].iter().any(|start| name.starts_with(start));
            listed && !SECRET.iter().any(|part| name.contains(part))
        })
    };
    variables.filter(is_kept).collect()
}

/// Where the user's shell finds programs.
pub fn search_path() -> OsString {
    raw_variable("PATH").unwrap_or_default()
}

#[derive(DeJson, Default)]
struct ConfigFile {
    daemon: Option<DaemonKeys>,
    log: Option<LogKeys>,
    connection: Option<ConnectionKeys>,
    model: Option<ModelKeys>,
    permissions: Option<HashMap<String, Rule>>,
    safety: Option<SafetyKeys>,
}

#[derive(DeJson)]
struct SafetyKeys {
    #[nserde(rename = "maxToolCalls")]
    calls_max: Option<i64>,
}

#[derive(DeJson)]
struct ConnectionKeys {
    url: Option<String>,
    host: Option<String>,
    port: Option<i64>,
}

impl ConnectionKeys {
    fn url(self, at: impl Fn(&str) -> String) -> Result<Option<UrlConfig>, Error> {
        if let Some(url) = filled(self.url) {
            return Ok(Some(UrlConfig { url, by: at("connection.url") }));
        }
        let host = filled(self.host);
        let by = match (&host, self.port) {
            (None, None) => return Ok(None),
            (Some(_), _) => at("connection.host"),
            (None, Some(_)) => at("connection.port"),
        };
        let number = self.port.unwrap_or(i64::from(limits::MODEL_PORT_DEFAULT));
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| {
            invalid(
                at("connection.port"),
                format!("a port is a number from 1 to 65535, not '{number}'"),
            )
        })?;
        let host = host.unwrap_or_else(|| "127.0.0.1".to_owned());
        // An IPv6 address has colons of its own.
        let bare = host.contains(':') && !host.starts_with('[');
        let host = if bare { format!("[{host}]") } else { host };
        Ok(Some(UrlConfig { url: format!("http://{host}:{port}"), by }))
    }
}

#[derive(DeJson)]
struct ModelKeys {
    default: Option<String>,
    #[nserde(rename = "toolChoice")]
    tool_choice: Option<String>,
}

#[derive(DeJson)]
struct DaemonKeys {
    port: Option<i64>,
}

#[derive(DeJson)]
struct LogKeys {
    level: Option<String>,
    #[nserde(rename = "maxBytes")]
    bytes_max: Option<i64>,
    files: Option<i64>,
}

impl LogKeys {
    fn apply(self, config: &mut Config, at: impl Fn(&str) -> String) -> Result<(), Error> {
        if let Some(text) = self.level {
            config.level = level(at("log.level"), &text)?;
        }
        if let Some(number) = self.bytes_max {
            let bytes = u64::try_from(number).ok().filter(|bytes| *bytes >= limits::LOG_BYTES_MIN);
            config.rotation.bytes = bytes.ok_or_else(|| {
                invalid(
                    at("log.maxBytes"),
                    format!("at least {} bytes are needed, not {number}", limits::LOG_BYTES_MIN),
                )
            })?;
        }
        if let Some(number) = self.files {
            let files = u32::try_from(number).ok().filter(|files| *files <= limits::LOG_FILES_MAX);
            config.rotation.files = files.ok_or_else(|| {
                invalid(
                    at("log.files"),
                    format!("a number from 0 to {} is needed, not {number}", limits::LOG_FILES_MAX),
                )
            })?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<ConfigFile, Error> {
    // Unlike the daemon's own files it may be a link: people keep their settings in other places.
    let Some(mut file) = disk::open_user_file(path)? else {
        return Ok(ConfigFile::default());
    };
    let bytes = disk::read_up_to(&mut file, path, limits::CONFIG_BYTES_MAX)?;
    let bytes = bytes.ok_or_else(|| {
        invalid(path.display(), format!("it is larger than {} bytes", limits::CONFIG_BYTES_MAX))
    })?;
    json::parse(&bytes).map_err(|problem| {
        invalid(format!("{}:{}:{}", path.display(), problem.line, problem.column), problem.what)
    })
}

fn level(at: String, text: &str) -> Result<Level, Error> {
    Level::parse(text)
        .ok_or_else(|| invalid(at, format!("a level is debug, info, warn or error, not '{text}'")))
}

/// The value of a variable, behind its name.
fn in_variable(name: &str) -> Option<(String, String)> {
    variable(name).map(|value| (name.to_owned(), value))
}

fn checked_model((at, name): (String, String)) -> Result<String, Error> {
    if name.len() <= limits::NAME_BYTES_MAX && !name.contains(char::is_control) {
        return Ok(name);
    }
    let most = limits::NAME_BYTES_MAX;
    let because = format!("a model's name has at most {most} bytes and no control characters");
    Err(invalid(at, because))
}

fn checked_choice((at, choice): (String, String)) -> Result<String, Error> {
    if matches!(choice.as_str(), "auto" | "required" | "required-first") {
        return Ok(choice);
    }
    let because = format!("a choice is auto, required or required-first, not '{choice}'");
    Err(invalid(at, because))
}

/// The refusal of a setting; `at` names the file and the line or the key, or the variable.
fn invalid(at: impl Display, reason: impl Display) -> Error {
    Error::cannot(Kind::InvalidConfig, "use the settings", format!("{at}: {reason}"))
}

/// An empty setting counts as none.
fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn port_refused(at: String, text: &str) -> Error {
    let because = format!("a port is a number from 0 to 65535, not '{text}'");
    invalid(at, because)
}

/// The value of a variable; an empty one counts as unset.
fn variable(name: &str) -> Option<String> {
    raw_variable(name).map(|value| value.to_string_lossy().into_owned())
}

fn raw_variable(name: &str) -> Option<OsString> {
    #[expect(clippy::disallowed_methods, reason = "this room and paths.rs read the environment")]
    env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(text: &str) -> Result<Option<(String, String)>, Error> {
        let keys: ConnectionKeys = json::parse(text.as_bytes()).unwrap();
        let url = keys.url(|key| format!("config.json: {key}"))?;
        Ok(url.map(|set| (set.url, set.by)))
    }

    #[test]
    fn a_connection_is_a_url_or_a_host_and_a_port() {
        for (text, url, key) in [
            (r#"{"url":"http://x/v1","port":7}"#, "http://x/v1", "url"),
            (r#"{"url":"","host":"box","port":7}"#, "http://box:7", "host"),
            (r#"{"host":"::1"}"#, "http://[::1]:1234", "host"),
            (r#"{"port":65535}"#, "http://127.0.0.1:65535", "port"),
        ] {
            let expected = (url.to_owned(), format!("config.json: connection.{key}"));
            assert_eq!(connection(text).unwrap(), Some(expected), "{text}");
        }
        assert_eq!(connection("{}").unwrap(), None);
        for port in [0, -1, 65_536] {
            let error = connection(&format!("{{\"port\":{port}}}")).unwrap_err();
            assert!(error.to_string().contains("config.json: connection.port"), "{error}");
        }
    }

    #[test]
    fn names_and_choices_are_checked() {
        let at = || "OPTA_MODEL".to_owned();
        let longest = "m".repeat(limits::NAME_BYTES_MAX);
        assert_eq!(checked_model((at(), longest.clone())).unwrap(), longest);
        for name in [format!("{longest}m"), "a\nb".to_owned()] {
            assert!(checked_model((at(), name)).is_err());
        }
        for choice in ["auto", "required", "required-first"] {
            assert_eq!(checked_choice((at(), choice.to_owned())).unwrap(), choice);
        }
        let error = checked_choice((at(), "never".to_owned())).unwrap_err().to_string();
        assert!(error.contains("OPTA_MODEL") && error.contains("'never'"), "{error}");
    }
}
