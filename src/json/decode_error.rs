//! What nanoserde says of a text that is JSON and not of the form asked for, put in words for the
//! user.
//!
//! nanoserde knows neither the exact place nor, but for a missing field, the name; both are found
//! again by counting tokens. This runs only after a failure, so it may be slow.

use nanoserde::{DeJsonErrReason, DeJsonState, DeJsonTok};

use super::{Problem, scan};

/// The most characters of the text that are quoted.
const QUOTED_MAX: usize = 40;

/// The words for `reason`, placed in `text`.
///
/// nanoserde read `readable`, the same tokens in another spelling, and left `rest` of it. A missing
/// field is placed at the object, and has the name that it has in the program: one that users write
/// and that is renamed should be an `Option`. A hand-written decoder says what it wants with
/// `err_parse("a session id")` before it passes the token.
pub fn problem(
    text: &str,
    readable: &str,
    rest: &str,
    state: &DeJsonState,
    reason: &DeJsonErrReason,
) -> Problem {
    let tokens = tokens(text);
    let current = current(readable, rest, state);
    let (index, what) = match reason {
        DeJsonErrReason::MissingKey(name) => {
            // Found out behind the closing brace.
            let closing = current.saturating_sub(1);
            let object = opening(&tokens, closing).unwrap_or(closing);
            (object, format!("the field \"{}\" is missing", shown(name)))
        }
        DeJsonErrReason::NoSuchEnum(word) => {
            // Found out behind the word.
            let index = current.saturating_sub(1);
            let subject = subject(&tokens, index);
            (index, format!("{subject} cannot be \"{}\"", shown(word)))
        }
        _ => (current, wrong_value(&tokens, current, reason)),
    };
    let offset = tokens.get(index).map_or(text.len(), |token| token.at);
    Problem::at(text, offset, what)
}

fn wrong_value(tokens: &[Token<'_>], index: usize, reason: &DeJsonErrReason) -> String {
    let subject = subject(tokens, index);
    let found = tokens.get(index).map_or("", |token| token.text);
    match reason {
        DeJsonErrReason::UnexpectedToken(_, wanted)
            if wanted.ends_with("integer") && scan::is_wide(found) =>
        {
            format!("{subject} is out of range: {}", shown(found))
        }
        DeJsonErrReason::UnexpectedToken(_, wanted) => {
            format!("{subject} must be {}, not {}", form(wanted), kind(found))
        }
        DeJsonErrReason::OutOfRange(comparison) => {
            let limit = match (comparison.split_once('>'), comparison.split_once('<')) {
                (Some((_, most)), _) => format!("at most {most}"),
                (_, Some((_, least))) => format!("at least {least}"),
                (None, None) => "within its range".to_owned(),
            };
            format!("{subject} must be {limit}, not {}", shown(found))
        }
        DeJsonErrReason::CannotParse(wanted) => format!("{subject} must be {wanted}"),
        _ => format!("{subject} has the wrong form"),
    }
}

/// nanoserde's name of what it wanted, in English.
fn form(wanted: &str) -> &'static str {
    match wanted {
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

/// What a token is. Only numbers are quoted: a string could be a secret.
fn kind(token: &str) -> String {
    match token.bytes().next() {
        Some(b'"') => "a string".to_owned(),
        Some(b'{') => "an object".to_owned(),
        Some(b'[') => "a list".to_owned(),
        Some(b']') => "the end of the list".to_owned(),
        _ => shown(token),
    }
}

fn shown(text: &str) -> String {
    let visible = text.chars().filter(|character| !character.is_control());
    let mut shown: String = visible.take(QUOTED_MAX).collect();
    if text.chars().nth(QUOTED_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// The value at `index` as the subject of a sentence.
fn subject(tokens: &[Token<'_>], index: usize) -> String {
    let list = || opening(tokens, index).and_then(|opening| name(tokens, opening));
    match name(tokens, index) {
        Some(name) => name,
        None => list().map_or("this value".to_owned(), |name| format!("an item of {name}")),
    }
}

/// The name of the field whose value begins at `index`, in quotes.
fn name(tokens: &[Token<'_>], index: usize) -> Option<String> {
    let colon = tokens.get(index.checked_sub(1)?)?;
    let name = tokens.get(index.checked_sub(2)?)?.text;
    let bare = name.get(1..name.len().checked_sub(1)?)?;
    (colon.text == ":").then(|| format!("\"{}\"", shown(bare)))
}

/// The bracket that encloses the token at `index`, or that this token closes.
fn opening(tokens: &[Token<'_>], index: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (before, token) in tokens.iter().enumerate().take(index).rev() {
        match token.text {
            "}" | "]" => depth += 1,
            "{" | "[" if depth == 0 => return Some(before),
            "{" | "[" => depth -= 1,
            _ => {}
        }
    }
    None
}

/// How many tokens come before the one that nanoserde holds.
fn current(readable: &str, rest: &str, state: &DeJsonState) -> usize {
    let all = tokens(readable);
    if state.tok == DeJsonTok::Eof {
        return all.len();
    }
    // One character behind the token is read ahead, but there is none behind the last.
    let ahead = if state.cur == '\0' { 0 } else { state.cur.len_utf8() };
    let end = readable.len().saturating_sub(rest.len() + ahead);
    let begun = all.iter().filter(|token| token.at < end).count();
    begun.saturating_sub(1)
}

#[derive(Clone, Copy)]
struct Token<'t> {
    at: usize,
    text: &'t str,
}

/// The tokens of a text that is JSON.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\n', '\r']);
        let length = match rest.bytes().next() {
            Some(b'"') => string_length(rest),
            Some(b'{' | b'}' | b'[' | b']' | b',' | b':') => 1,
            _ => rest.find([' ', '\t', '\n', '\r', '}', ']', ',']).unwrap_or(rest.len()),
        };
        match rest.split_at_checked(length) {
            Some((token, after)) if length > 0 => {
                let at = text.len() - rest.len();
                tokens.push(Token { at, text: token });
                rest = after;
            }
            _ => return tokens,
        }
    }
}

/// The length of the string that `text` begins with, both quotes included.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    let inner = text.bytes().skip(1).position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    });
    inner.map_or(text.len(), |inner| inner + 2)
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

    const MISFITS: &[(&str, &str)] = &[
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
    fn each_misfit_is_one_clause_at_its_place() {
        for (text, problem) in MISFITS {
            let found = parse::<Settings>(text.as_bytes()).unwrap_err();
            assert_eq!(found.to_string(), format!("line {problem}"), "{text}");
        }
    }

    #[test]
    fn a_missing_field_is_placed_at_its_own_object() {
        let text = "[{\"port\":1},\n {\"logs\":[{}],\"x\":[[],{}]},{\"port\":2}]";
        let found = parse::<Vec<Settings>>(text.as_bytes()).unwrap_err();
        assert_eq!(found.to_string(), "line 2, column 2: the field \"port\" is missing");
    }

    #[test]
    fn long_quotations_are_cut() {
        let text = format!("{{\"port\":1,\"log\":{{\"level\":\"{}\"}}}}", "é".repeat(1_000));
        let found = parse::<Settings>(text.as_bytes()).unwrap_err();
        assert_eq!(found.what, format!("\"level\" cannot be \"{}…\"", "é".repeat(40)));
    }
}
