//! The values of settings: what is accepted, and the error for what is not. Pure.

use std::fmt::Display;
use std::ops::RangeBounds;

use crate::error::{Error, Kind};
use crate::limits;
use crate::log::Level;

use super::base_url;

/// Converts a number in `range`; `needed` begins the error for others.
pub fn in_range<T: TryFrom<i64> + PartialOrd>(
    at: String,
    number: i64,
    range: impl RangeBounds<T>,
    needed: &str,
) -> Result<T, Error> {
    let value = T::try_from(number).ok().filter(|value| range.contains(value));
    value.ok_or_else(|| invalid(at, needed, &number.to_string()))
}

/// Checks the name of a model.
pub fn checked_model((at, name): (String, String)) -> Result<String, Error> {
    let max = limits::NAME_BYTES_MAX;
    if name.len() <= max && !name.contains(char::is_control) {
        return Ok(name);
    }
    Err(refused(at, format!("a model's name has at most {max} bytes and no control characters")))
}

/// Checks a proxy, which is not quoted: it may contain a password.
pub fn checked_proxy((at, proxy): (String, String)) -> Result<String, Error> {
    base_url::check_proxy(&proxy).map_err(|because| refused(at, because))?;
    Ok(proxy)
}

/// Checks the path of a file with certificates, which need not exist.
pub fn checked_ca_file((at, path): (String, String)) -> Result<String, Error> {
    if path.starts_with('/') && !path.contains(char::is_control) {
        return Ok(path);
    }
    Err(invalid(at, "an absolute path is needed", &path))
}

/// Checks a choice of tools.
pub fn checked_choice((at, choice): (String, String)) -> Result<String, Error> {
    match choice.as_str() {
        "auto" | "required" | "required-first" => Ok(choice),
        _ => Err(invalid(at, "a choice is auto, required or required-first", &choice)),
    }
}

/// Converts the name of a level.
pub fn level(at: impl Display, text: &str) -> Result<Level, Error> {
    let needed = "a level is debug, info, warn or error";
    Level::parse(text).ok_or_else(|| invalid(at, needed, text))
}

/// Returns the error for the value of a setting; see [`refused`].
pub fn invalid(at: impl Display, needed: &str, found: &str) -> Error {
    refused(at, format!("{needed}, not '{}'", found.escape_debug()))
}

/// Returns the error for a setting; `at` names the file and the line or key, or the variable.
pub fn refused(at: impl Display, reason: impl Display) -> Error {
    Error::cannot(Kind::InvalidConfig, "use the settings", format!("{at}: {reason}"))
}

/// Returns a setting; an empty one counts as none.
pub fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names_and_tool_choices_are_checked() {
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
