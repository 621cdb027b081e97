//! What nanoserde reports about a text that is JSON but not of the requested form, as a sentence
//! for the user.
//!
//! nanoserde knows neither the exact place nor, except for a missing field, the name. Both are
//! found again by counting tokens. This runs only after a failure, so it may be slow.

use nanoserde::{DeJsonErrReason, DeJsonState, DeJsonTok};

use crate::text::{escaped, truncated};

use super::DecodeError;
use super::grammar::{self, JsonToken, TokenKind, Tokenizer};

/// The most characters of the text that are quoted.
const QUOTED_CHARS_MAX: usize = 40;

/// Returns the sentence for `reason`, placed in `text`.
///
/// nanoserde read `readable`, the same tokens in another spelling, and has not read `rest` of it. A
/// missing field is placed at the object, and has the name that it has in the program: a field that
/// users write and that is renamed should be an `Option`. A hand-written decoder says what it
/// expects with `err_parse("a session id")` before it passes the token.
pub fn describe(
    text: &str,
    readable: &str,
    rest: &str,
    state: &DeJsonState,
    reason: &DeJsonErrReason,
) -> DecodeError {
    let tokens = tokens(text);
    let current = current(readable, rest, state);
    let (index, what) = match reason {
        DeJsonErrReason::MissingKey(name) => {
            // Reported after the closing brace.
            let closing = current.saturating_sub(1);
            let object = opening(&tokens, closing).unwrap_or(closing);
            (object, format!("the field \"{}\" is missing", excerpt(name)))
        }
        DeJsonErrReason::NoSuchEnum(word) => {
            // Reported after the word.
            let index = current.saturating_sub(1);
            let subject = subject(&tokens, index);
            (index, format!("{subject} cannot be \"{}\"", excerpt(word)))
        }
        _ => (current, wrong_value(&tokens, current, reason)),
    };
    let offset = tokens.get(index).map_or(text.len(), |token| token.start);
    DecodeError::at(text, offset, what)
}

fn wrong_value(tokens: &[JsonToken<'_>], index: usize, reason: &DeJsonErrReason) -> String {
    let subject = subject(tokens, index);
    let found = tokens.get(index).map_or("", |token| token.text);
    match reason {
        DeJsonErrReason::UnexpectedToken(_, expected)
            if expected.ends_with("integer") && grammar::is_wide(found) =>
        {
            format!("{subject} is out of range: {}", excerpt(found))
        }
        DeJsonErrReason::UnexpectedToken(_, expected) => {
            format!("{subject} must be {}, not {}", in_english(expected), description(found))
        }
        DeJsonErrReason::OutOfRange(comparison) => {
            let limit = match (comparison.split_once('>'), comparison.split_once('<')) {
                (Some((_, most)), _) => format!("at most {most}"),
                (_, Some((_, least))) => format!("at least {least}"),
                (None, None) => "within its range".to_owned(),
            };
            format!("{subject} must be {limit}, not {}", excerpt(found))
        }
        DeJsonErrReason::CannotParse(expected) => format!("{subject} must be {expected}"),
        _ => format!("{subject} has the wrong form"),
    }
}

/// Returns nanoserde's name of what it expected, in English.
fn in_english(expected: &str) -> &'static str {
    match expected {
        "unsigned integer" => "a whole number, 0 or more",
        "signed integer" => "a whole number",
        "floating point" => "a number",
        "boolean" => "true or false",
        "string" | "String" | "String or {" => "a string",
        "[" => "a list",
        "{" => "an object",
        "null" => "null",
        _ => "of another form",
    }
}

/// Returns what a token is. Only numbers and words are quoted: a string could be a secret.
fn description(token: &str) -> String {
    match token.bytes().next() {
        Some(b'"') => "a string".to_owned(),
        Some(b'{') => "an object".to_owned(),
        Some(b'[') => "a list".to_owned(),
        Some(b']') => "the end of the list".to_owned(),
        _ => excerpt(token),
    }
}

fn excerpt(text: &str) -> String {
    escaped(&truncated(text, QUOTED_CHARS_MAX))
}

/// Returns the value at `index` as the subject of a sentence.
fn subject(tokens: &[JsonToken<'_>], index: usize) -> String {
    let list = || opening(tokens, index).and_then(|opening| name(tokens, opening));
    match name(tokens, index) {
        Some(name) => name,
        None => list().map_or("this value".to_owned(), |name| format!("an item of {name}")),
    }
}

/// Returns the name of the field whose value begins at `index`, in quotes.
fn name(tokens: &[JsonToken<'_>], index: usize) -> Option<String> {
    let colon = tokens.get(index.checked_sub(1)?)?;
    let name = tokens.get(index.checked_sub(2)?)?.text;
    let name = name.get(1..name.len().checked_sub(1)?)?;
    (colon.kind == TokenKind::Colon).then(|| format!("\"{}\"", excerpt(name)))
}

/// Returns the bracket that encloses the token at `index`, or that this token closes.
fn opening(tokens: &[JsonToken<'_>], index: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (before, token) in tokens.iter().enumerate().take(index).rev() {
        match token.kind {
            TokenKind::Close => depth += 1,
            TokenKind::Open if depth == 0 => return Some(before),
            TokenKind::Open => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Returns the number of tokens before the one that nanoserde holds.
fn current(readable: &str, rest: &str, state: &DeJsonState) -> usize {
    let all = tokens(readable);
    if state.tok == DeJsonTok::Eof {
        return all.len();
    }
    // One character after the token is read ahead, but there is none after the last token.
    let ahead = if state.cur == '\0' { 0 } else { state.cur.len_utf8() };
    let end = readable.len().saturating_sub(rest.len() + ahead);
    let begun = all.iter().filter(|token| token.start < end).count();
    begun.saturating_sub(1)
}

fn tokens(text: &str) -> Vec<JsonToken<'_>> {
    let mut tokenizer = Tokenizer::default();
    std::iter::from_fn(|| tokenizer.next(text)).collect()
}

#[cfg(test)]
mod tests {
    use nanoserde::DeJson;

    use crate::json::parse;

    #[derive(Debug, DeJson)]
    enum Level {
        #[nserde(rename = "info")]
        Info,
    }

    #[expect(dead_code, reason = "only whether it can be decoded")]
    #[derive(Debug, DeJson)]
    struct Log {
        level: Option<Level>,
        files: Option<u8>,
        shift: Option<i8>,
        names: Option<Vec<String>>,
        ratio: Option<f64>,
    }

    #[expect(dead_code, reason = "only whether it can be decoded")]
    #[derive(Debug, DeJson)]
    struct Settings {
        port: u16,
        log: Option<Log>,
        logs: Option<Vec<Log>>,
        on: Option<bool>,
    }

    const CASES: &[(&str, &str)] = &[
        ("7", "1, column 1: this value must be an object, not 7"),
        ("[]", "1, column 1: this value must be an object, not a list"),
        ("{}", "1, column 1: the field \"port\" is missing"),
        ("\n {\"x\":{}} ", "2, column 2: the field \"port\" is missing"),
        (
            "{\n \"port\": \"x\"}",
            "2, column 10: \"port\" must be a whole number, 0 or more, not a string",
        ),
        ("{\"port\":-1}", "1, column 9: \"port\" must be a whole number, 0 or more, not -1"),
        ("{\"port\":1.5}", "1, column 9: \"port\" must be a whole number, 0 or more, not 1.5"),
        ("{\"port\":null}", "1, column 9: \"port\" must be a whole number, 0 or more, not null"),
        ("{\"port\":65536}", "1, column 9: \"port\" must be at most 65535, not 65536"),
        (
            "{\"a\":[1E+5,9223372036854775808],\"port\":18446744073709551615}",
            "1, column 40: \"port\" is out of range: 18446744073709551615",
        ),
        ("{\"port\":1,\"on\":0}", "1, column 16: \"on\" must be true or false, not 0"),
        ("{\"port\":1,\"log\":[1]}", "1, column 17: \"log\" must be an object, not a list"),
        ("{\"port\":1,\"logs\":{}}", "1, column 18: \"logs\" must be a list, not an object"),
        (
            "{\"port\":1,\"logs\":[{},5]}",
            "1, column 22: an item of \"logs\" must be an object, not 5",
        ),
        (
            "{\"port\":1,\n\"log\":{\"level\":\"loud\"}}",
            "2, column 16: \"level\" cannot be \"loud\"",
        ),
        ("{\"log\":{\"level\":1},\"port\":1}", "1, column 17: \"level\" must be a string, not 1"),
        (
            "{\"log\":{\"shift\":-129},\"port\":1}",
            "1, column 17: \"shift\" must be at least -128, not -129",
        ),
        (
            "{\"log\":{\"files\":256},\"port\":1}",
            "1, column 17: \"files\" must be at most 255, not 256",
        ),
        (
            "{\"log\":{\"names\":[\"\\\\\",\"ü\\\"\", {}]},\"port\":1}",
            "1, column 30: an item of \"names\" must be a string, not an object",
        ),
        (
            "{\"log\":{\"ratio\":\"1\"},\"port\":1}",
            "1, column 17: \"ratio\" must be a number, not a string",
        ),
    ];

    #[test]
    fn each_wrong_value_is_described_at_its_place() {
        for (text, description) in CASES {
            let error = parse::<Settings>(text.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), format!("line {description}"), "{text}");
        }
    }

    #[test]
    fn a_missing_field_is_placed_at_its_own_object() {
        let text = "[{\"port\":1},\n {\"logs\":[{}],\"x\":[[],{}]},{\"port\":2}]";
        let error = parse::<Vec<Settings>>(text.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "line 2, column 2: the field \"port\" is missing");
    }

    #[test]
    fn a_long_word_is_truncated() {
        let text = format!("{{\"port\":1,\"log\":{{\"level\":\"{}\"}}}}", "é".repeat(1_000));
        let error = parse::<Settings>(text.as_bytes()).unwrap_err();
        assert_eq!(error.what, format!("\"level\" cannot be \"{}…\"", "é".repeat(40)));
    }
}
