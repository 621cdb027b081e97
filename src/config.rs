//! The user's settings: `config.json` and the variables that override it. With `paths.rs`, the only
//! reader of the environment.
//!
//! A damaged file is refused with its line, never repaired and never replaced by defaults.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;

use nanoserde::DeJson;

use crate::error::Error;
use crate::json::Lenient;
use crate::log::{Level, Rotation};
use crate::{disk, json, limits};

mod base_url;
mod inherited;
mod keys;
mod permissions;
mod values;
mod variables;

pub use base_url::BaseUrl;
pub use keys::{KEYS, ValueForm, form_of};
#[cfg(test)]
pub use permissions::COMMAND_TOOL;
pub use permissions::{Permissions, Rule, begins_with, first_words};
use values::{
    checked_ca_file, checked_choice, checked_model, checked_proxy, filled, in_range, invalid,
    level, refused,
};
pub use variables::{
    ManagerVariables, browsers, color_allowed, cursor_can_move, editor, manager_variables,
    search_path,
};
use variables::{in_variable, proxy_variable, variable, variables};

/// The port on which the daemon listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// 9999, or if that is not free the first fallback port that is.
    Default,
    /// This one if it is free, or else as [`Port::Default`].
    Preferred(u16),
    /// This one or none; 0 is any free one. `by` names what requires it.
    Exactly { port: u16, by: &'static str },
}

/// Names a port in `config.json`.
const BY_FILE: &str = "daemon.port in config.json";

impl Port {
    /// Returns whether a service would use the same port: it reads `config.json`, but neither this
    /// command's options nor its environment.
    pub fn reaches_service(self) -> bool {
        match self {
            Port::Default | Port::Preferred(_) => true,
            Port::Exactly { by, .. } => by == BY_FILE,
        }
    }
}

/// The settings with which the daemon starts.
#[derive(Clone, Debug)]
pub struct Config {
    pub port: Port,
    pub level: Level,
    pub rotation: Rotation,
    /// Whether commands that need the daemon may start it.
    pub autostart: bool,
}

impl Config {
    /// The settings without a file and variables.
    pub const DEFAULT: Config = Config {
        port: Port::Default,
        level: Level::Info,
        rotation: Rotation { bytes: limits::LOG_BYTES_DEFAULT, files: limits::LOG_FILES_DEFAULT },
        autostart: true,
    };

    /// Reads the settings in `path` and the variables, which take precedence. A missing file counts
    /// as an empty one, and unknown keys are ignored.
    pub fn load(path: &Path) -> Result<Config, Error> {
        let (mut file, at) = read(path)?;
        let mut config = Config::of(&mut file, at)?;
        config.autostart = variable("OPTA_NO_AUTOSTART").is_none();
        if let Some(text) = variable("OPTA_DAEMON_PORT") {
            let port = text.parse().ok().ok_or_else(|| invalid("OPTA_DAEMON_PORT", PORT, &text))?;
            config.port = Port::Exactly { port, by: "OPTA_DAEMON_PORT" };
        }
        if let Some(text) = variable("OPTA_LOG") {
            config.level = level("OPTA_LOG", &text)?;
        }
        Ok(config)
    }

    fn of(file: &mut ConfigFile, at: impl Fn(&str) -> String) -> Result<Config, Error> {
        let mut config = Config::DEFAULT;
        if let Some(port) = file.daemon.take().and_then(|daemon| daemon.port) {
            let port = in_range(at("daemon.port"), port, .., PORT)?;
            config.port = Port::Exactly { port, by: BY_FILE };
        }
        let log = file.log.take().unwrap_or_default();
        if let Some(text) = log.level {
            config.level = level(at("log.level"), &text)?;
        }
        if let Some(bytes) = log.bytes_max {
            let min = limits::LOG_BYTES_MIN;
            let needed = format!("at least {min} bytes are needed");
            config.rotation.bytes = in_range(at("log.maxBytes"), bytes, min.., &needed)?;
        }
        if let Some(files) = log.files {
            let max = limits::LOG_FILES_MAX;
            let needed = format!("a number from 0 to {max} is needed");
            config.rotation.files = in_range(at("log.files"), files, ..=max, &needed)?;
        }
        Ok(config)
    }
}

/// The settings of the model. `agent::endpoint` decides which of them apply.
#[derive(Default)]
pub struct ModelSettings {
    /// `OPTA_MODEL_URL`
    pub url_variable: Option<String>,
    /// `connection.url`, or one made of `connection.host` and `connection.port`.
    pub url_config: Option<UrlConfig>,
    /// `OPENAI_BASE_URL`
    pub openai_url: Option<String>,
    /// `OLLAMA_HOST`, in the form that Ollama defines, which need not be a URL.
    pub ollama_host: Option<String>,
    /// `OPTA_API_KEY`. A secret.
    pub key: Option<String>,
    /// `OPENAI_API_KEY`. A secret.
    pub openai_key: Option<String>,
    /// `OPTA_MODEL`, or `model.default`.
    pub model: Option<String>,
    /// `OPTA_TOOL_CHOICE`, or `model.toolChoice`: `auto`, `required` or `required-first`.
    pub tool_choice: Option<String>,
    /// `model.maxTokens`
    pub max_tokens: Option<u64>,
    /// `connection.firstWordSeconds`
    pub first_word_seconds: Option<u64>,
    /// `connection.silenceSeconds`
    pub silence_seconds: Option<u64>,
    /// `connection.proxy`. May contain a secret.
    pub proxy: Option<String>,
    /// The proxy in `HTTPS_PROXY` or `ALL_PROXY`, which is not for this machine. As `proxy`.
    pub proxy_variable: Option<String>,
    /// `NO_PROXY`
    pub no_proxy: Option<String>,
    /// `connection.caFile`, or `SSL_CERT_FILE`. An absolute path.
    pub ca_file: Option<String>,
}

/// A model server in `config.json`.
pub struct UrlConfig {
    pub url: String,
    /// The file and the key.
    pub by: String,
}

impl ModelSettings {
    /// Reads the settings in `path` and the variables, which take precedence. A missing file counts
    /// as an empty one.
    pub fn load(path: &Path) -> Result<ModelSettings, Error> {
        let (mut file, at) = read(path)?;
        let set = ModelSettings::of(&mut file, at)?;
        let model = in_variable("OPTA_MODEL").map(checked_model).transpose()?;
        let choice = in_variable("OPTA_TOOL_CHOICE").map(checked_choice).transpose()?;
        // Relative to the caller's directory, which is not the daemon's.
        let absolute = |path: String| Some(std::path::absolute(path).ok()?.to_str()?.to_owned());
        Ok(ModelSettings {
            url_variable: variable("OPTA_MODEL_URL"),
            proxy_variable: proxy_variable("HTTPS_PROXY").or_else(|| proxy_variable("ALL_PROXY")),
            no_proxy: proxy_variable("NO_PROXY"),
            ca_file: set.ca_file.or_else(|| variable("SSL_CERT_FILE").and_then(absolute)),
            openai_url: variable("OPENAI_BASE_URL"),
            ollama_host: variable("OLLAMA_HOST"),
            key: variable("OPTA_API_KEY"),
            openai_key: variable("OPENAI_API_KEY"),
            model: model.or(set.model),
            tool_choice: choice.or(set.tool_choice),
            ..set
        })
    }

    fn of(file: &mut ConfigFile, at: impl Fn(&str) -> String) -> Result<ModelSettings, Error> {
        let ModelKeys { default, tool_choice, max_tokens } = file.model.take().unwrap_or_default();
        let mut connection = file.connection.take().unwrap_or_default();
        let up_to = |max: u64, at: String, number: Option<i64>| {
            let needed = format!("a number from 1 to {max} is needed");
            number.map(|number| in_range(at, number, 1..=max, &needed)).transpose()
        };
        let (first_word, silence) = (connection.first_word_seconds, connection.silence_seconds);
        let max = limits::MODEL_SECONDS_MAX;
        let first_word_seconds = up_to(max, at("connection.firstWordSeconds"), first_word)?;
        let silence_seconds = up_to(max, at("connection.silenceSeconds"), silence)?;
        let max_tokens = up_to(limits::ANSWER_TOKENS_MAX, at("model.maxTokens"), max_tokens)?;
        let in_file = |at: String, value| filled(value).map(|value| (at, value));
        let (proxy, ca_file) = (connection.proxy.take(), connection.ca_file.take());
        let proxy = in_file(at("connection.proxy"), proxy);
        let ca_file = in_file(at("connection.caFile"), ca_file);
        let model = in_file(at("model.default"), default);
        let choice = in_file(at("model.toolChoice"), tool_choice);
        Ok(ModelSettings {
            proxy: proxy.map(checked_proxy).transpose()?,
            ca_file: ca_file.map(checked_ca_file).transpose()?,
            url_config: connection.url(&at)?,
            model: model.map(checked_model).transpose()?,
            tool_choice: choice.map(checked_choice).transpose()?,
            max_tokens,
            first_word_seconds,
            silence_seconds,
            ..ModelSettings::default()
        })
    }
}

/// The limits of what turns may do.
pub struct ToolSettings {
    pub permissions: Permissions,
    /// The tool calls that a turn may make: `safety.maxToolCalls`.
    pub calls_max: u64,
}

impl ToolSettings {
    /// Reads the settings in `path`. A missing file counts as an empty one.
    pub fn load(path: &Path) -> Result<ToolSettings, Error> {
        let (mut file, at) = read(path)?;
        ToolSettings::of(&mut file, at)
    }

    fn of(file: &mut ConfigFile, at: impl Fn(&str) -> String) -> Result<ToolSettings, Error> {
        let max = limits::TOOL_CALLS_MAX;
        let calls_max = match file.safety.take().and_then(|safety| safety.calls_max) {
            None => limits::TOOL_CALLS_DEFAULT,
            Some(calls) => {
                let needed = format!("a number from 1 to {max} is needed");
                in_range(at("safety.maxToolCalls"), calls, 1..=max, &needed)?
            }
        };
        let permissions = Permissions::read(file.permissions.take().unwrap_or_default());
        let permissions = permissions
            .map_err(|(name, reason)| refused(at(&format!("permissions.{name}")), reason))?;
        Ok(ToolSettings { permissions, calls_max })
    }
}

/// Returns the directories that `workspaces` in the settings in `path` names, by their labels. A
/// missing file counts as an empty one.
pub fn workspaces(path: &Path) -> Result<HashMap<String, String>, Error> {
    let (file, at) = read(path)?;
    check_workspaces(file.workspaces.unwrap_or_default(), at)
}

/// Returns the names and values of the variables that commands of a turn inherit: the usual ones,
/// and those that `environment` names in the settings in `path`.
pub fn turn_environment(path: &Path) -> Result<Vec<(String, String)>, Error> {
    let (file, at) = read(path)?;
    let named = check_names(file.environment.unwrap_or_default(), at)?;
    let inherited =
        variables(|name| inherited::by_turns(name) || named.iter().any(|named| named == name));
    let pair = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    Ok(inherited.filter_map(pair).collect())
}

/// Returns the names and values of the variables that a daemon in the background inherits. The
/// others must not outlive the command that starts it, or be readable in the daemon's environment.
pub fn daemon_environment() -> Vec<(OsString, OsString)> {
    variables(inherited::by_daemon).collect()
}

#[derive(DeJson, Default)]
struct ConfigFile {
    daemon: Option<DaemonKeys>,
    log: Option<LogKeys>,
    connection: Option<ConnectionKeys>,
    model: Option<ModelKeys>,
    permissions: Option<HashMap<String, Lenient>>,
    environment: Option<Vec<String>>,
    safety: Option<SafetyKeys>,
    workspaces: Option<HashMap<String, String>>,
}

#[derive(DeJson)]
struct SafetyKeys {
    #[nserde(rename = "maxToolCalls")]
    calls_max: Option<i64>,
}

#[derive(DeJson, Default)]
struct ConnectionKeys {
    url: Option<String>,
    host: Option<String>,
    port: Option<i64>,
    #[nserde(rename = "firstWordSeconds")]
    first_word_seconds: Option<i64>,
    #[nserde(rename = "silenceSeconds")]
    silence_seconds: Option<i64>,
    proxy: Option<String>,
    #[nserde(rename = "caFile")]
    ca_file: Option<String>,
}

impl ConnectionKeys {
    fn url(self, at: impl Fn(&str) -> String) -> Result<Option<UrlConfig>, Error> {
        let checked = |url: String, by: String| match BaseUrl::parse(&url) {
            Ok(_) => Ok(Some(UrlConfig { url, by })),
            Err(because) => Err(refused(by, because)),
        };
        if let Some(url) = filled(self.url) {
            return checked(url, at("connection.url"));
        }
        let host = filled(self.host);
        let by = match (&host, self.port) {
            (None, None) => return Ok(None),
            (Some(_), _) => at("connection.host"),
            (None, Some(_)) => at("connection.port"),
        };
        let number = self.port.unwrap_or(i64::from(limits::MODEL_PORT_DEFAULT));
        let needed = "a port is a number from 1 to 65535";
        let port: u16 = in_range(at("connection.port"), number, 1.., needed)?;
        let host = host.unwrap_or_else(|| "127.0.0.1".to_owned());
        // An IPv6 address without brackets.
        let bare = host.contains(':') && !host.starts_with('[');
        let host = if bare { format!("[{host}]") } else { host };
        checked(format!("http://{host}:{port}"), by)
    }
}

#[derive(DeJson, Default)]
struct ModelKeys {
    default: Option<String>,
    #[nserde(rename = "toolChoice")]
    tool_choice: Option<String>,
    #[nserde(rename = "maxTokens")]
    max_tokens: Option<i64>,
}

#[derive(DeJson)]
struct DaemonKeys {
    port: Option<i64>,
}

#[derive(DeJson, Default)]
struct LogKeys {
    level: Option<String>,
    #[nserde(rename = "maxBytes")]
    bytes_max: Option<i64>,
    files: Option<i64>,
}

/// Reads `path`; also returns the function that names a key in it.
fn read(path: &Path) -> Result<(ConfigFile, impl Fn(&str) -> String), Error> {
    let shown = path.display().to_string();
    Ok((read_as(path)?, move |key: &str| format!("{shown}: {key}")))
}

/// Returns the names of the settings in `path` that are not read.
pub fn unknown_settings(path: &Path) -> Result<Vec<String>, Error> {
    read_as(path).map(keys::unknown)
}

fn read_as<T: DeJson + Default>(path: &Path) -> Result<T, Error> {
    read_bytes(path)?.map_or_else(|| Ok(T::default()), |bytes| decode(&bytes, path))
}

/// Reads a file of settings; `None` if there is none.
fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    // Unlike the daemon's own files, it may be a link: some users keep their settings elsewhere.
    let Some(mut file) = disk::open_user_file(path)? else { return Ok(None) };
    let max = limits::CONFIG_BYTES_MAX;
    let bytes = disk::read_up_to(&mut file, path, max)?;
    let too_large = || refused(path.display(), format!("it is larger than {max} bytes"));
    bytes.ok_or_else(too_large).map(Some)
}

fn decode<T: DeJson>(bytes: &[u8], path: &Path) -> Result<T, Error> {
    json::parse(bytes).map_err(|problem| {
        let json::DecodeError { line, column, what } = problem;
        refused(format!("{}:{line}:{column}", path.display()), what)
    })
}

/// Returns the text of a file of settings, which is an object; `None` if there is no file.
pub fn source(path: &Path) -> Result<Option<String>, Error> {
    let Some(bytes) = read_bytes(path)? else { return Ok(None) };
    decode::<json::Members>(&bytes, path)?;
    Ok(String::from_utf8(bytes).ok())
}

/// Fails if the settings in `text` could not be used, whatever the variables are; `path` is where
/// they are, or will be.
pub fn check(text: &str, path: &Path) -> Result<(), Error> {
    let mut file: ConfigFile = decode(text.as_bytes(), path)?;
    let at = |key: &str| format!("{}: {key}", path.display());
    Config::of(&mut file, at)?;
    ModelSettings::of(&mut file, at)?;
    ToolSettings::of(&mut file, at)?;
    check_workspaces(file.workspaces.unwrap_or_default(), at)?;
    check_names(file.environment.unwrap_or_default(), at).map(drop)
}

/// Returns directories by their labels, unless one is no absolute path.
fn check_workspaces(
    named: HashMap<String, String>,
    at: impl Fn(&str) -> String,
) -> Result<HashMap<String, String>, Error> {
    match named.iter().find(|(_, directory)| !Path::new(directory).is_absolute()) {
        None => Ok(named),
        Some((label, directory)) => Err(invalid(
            at(&format!("workspaces.{label}")),
            "an absolute path is needed",
            directory,
        )),
    }
}

/// Returns names of variables, unless one is none.
fn check_names(names: Vec<String>, at: impl Fn(&str) -> String) -> Result<Vec<String>, Error> {
    match names.iter().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        Some(name) => Err(invalid(at("environment"), "it is a list of names of variables", name)),
        None => Ok(names),
    }
}

const PORT: &str = "a port is a number from 0 to 65535";

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
}
