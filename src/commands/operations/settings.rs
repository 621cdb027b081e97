//! The operations on the settings, which `opta config` has as commands.
//!
//! A client gets no secret: no password in a URL, and no setting that only other programs know,
//! since it may be a key of theirs.

use crate::commands::config_file;
use crate::json::{Field, Lenient, Object, Raw};

use super::host::{Host, Refusal};
use super::input::Input;

pub fn list(host: &Host<'_>, _input: &Input) -> Result<Raw, Refusal> {
    let mut settings = config_file::list(host.paths)?;
    settings.retain(|(key, _)| config_file::is_known(key));
    let values: Vec<Raw> = settings.iter().map(|(key, value)| without_secret(key, value)).collect();
    let keys = settings.iter().map(|(key, _)| key.as_str());
    let config: Vec<Field<'_>> =
        keys.zip(&values).map(|(key, value)| -> Field<'_> { (key, value) }).collect();
    Ok(Raw::of(&Object(&[("config", &Object(&config))])))
}

pub fn get(host: &Host<'_>, input: &Input) -> Result<Raw, Refusal> {
    let key = key(input)?;
    let value = without_secret(&key, &config_file::get(host.paths, &key)?);
    Ok(Raw::of(&Object(&[("key", &key), ("value", &value)])))
}

pub fn set(host: &Host<'_>, input: &Input) -> Result<Raw, Refusal> {
    let key = key(input)?;
    let value = input.value("value").cloned().map_or_else(String::new, Lenient::into_text);
    let value = without_secret(&key, config_file::set(host.paths, &key, &value)?.as_str());
    Ok(Raw::of(&Object(&[("key", &key), ("value", &value)])))
}

pub fn reset(host: &Host<'_>, input: &Input) -> Result<Raw, Refusal> {
    let key = key(input)?;
    config_file::reset(host.paths, &key)?;
    Ok(Raw::of(&Object(&[("key", &key)])))
}

/// Returns the name of a setting that opta knows.
fn key(input: &Input) -> Result<String, Refusal> {
    let key = input.text("key").unwrap_or_default();
    if config_file::is_known(key) {
        return Ok(key.to_owned());
    }
    Err(Refusal::new(404, "not_found", format!("there is no setting '{key}'")))
}

/// The settings that are, or are part of, a URL.
const URLS: [&str; 3] = ["connection.url", "connection.host", "connection.proxy"];

/// Returns the value of a setting without the password of a URL. A proxy may have one, and a host
/// that is not used was not checked.
fn without_secret(key: &str, value: &str) -> Raw {
    // It was checked.
    let raw = Raw::parse(value).unwrap_or_else(|_| Raw::empty());
    match raw.as_str().rsplit_once('@') {
        Some((before, host)) if URLS.contains(&key) => {
            let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
            let scheme = scheme.trim_start_matches('"');
            let separator = if scheme.is_empty() { "" } else { "://" };
            Raw::parse(&format!("\"{scheme}{separator}…@{host}")).unwrap_or_else(|_| Raw::empty())
        }
        _ => raw,
    }
}
