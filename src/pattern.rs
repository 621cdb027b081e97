//! The regular expressions that users, clients and models search for.

use regex::bytes::{Regex, RegexBuilder};

use crate::limits;

/// Compiles a regular expression that is matched against lines. Fails with the reason.
pub fn compile(pattern: &str, ignore_case: bool) -> Result<Regex, String> {
    if pattern.len() > limits::PATTERN_BYTES_MAX {
        return Err(format!("the pattern is longer than {} bytes", limits::PATTERN_BYTES_MAX));
    }
    let mut builder = RegexBuilder::new(pattern);
    builder.multi_line(true).crlf(true).case_insensitive(ignore_case);
    builder.size_limit(limits::REGEX_BYTES_MAX).dfa_size_limit(limits::REGEX_BYTES_MAX);
    builder.build().map_err(|error| error.to_string())
}
