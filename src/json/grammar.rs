//! The tokens of JSON with their places, and the grammar of RFC 8259.
//!
//! [`Tokenizer`] finds tokens and checks nothing. [`strict`] checks that a text is one JSON value,
//! and finds where it stops being one. It does not recurse and decodes nothing; it only changes the
//! spelling of the few valid numbers that nanoserde would reject or misread.

use std::borrow::Cow;

use crate::limits::JSON_DEPTH_MAX;

use super::DecodeError;
use super::special::find_special;

/// The kind of a token, which its first byte determines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// `{` or `[`
    Open,
    /// `}` or `]`
    Close,
    Colon,
    Comma,
    String,
    /// A number, a word, or anything else between the others.
    Scalar,
}

/// A token of a text.
#[derive(Clone, Copy, Debug)]
pub struct JsonToken<'t> {
    pub kind: TokenKind,
    /// The offset of its first byte.
    pub start: usize,
    /// With its quotes.
    pub text: &'t str,
}

/// A scanner that finds the tokens of a text, which may arrive in pieces.
#[derive(Default)]
pub struct Tokenizer {
    at: usize,
    /// The start of a string whose closing quote was not found before `at`.
    unclosed: Option<usize>,
}

impl Tokenizer {
    /// Returns the next token of `text`; `None` if none is complete. The text of the next call must
    /// begin with this one, and may be longer.
    pub fn next<'t>(&mut self, text: &'t str) -> Option<JsonToken<'t>> {
        let bytes = text.as_bytes();
        let (kind, start) = match self.unclosed {
            Some(start) => (TokenKind::String, start),
            None => (kind_of(self.first(bytes)?), self.at),
        };
        match kind {
            TokenKind::String => {
                self.at += usize::from(self.unclosed.is_none());
                self.unclosed = Some(start);
                // An escaped character does not end the string, whatever it is.
                let skip =
                    |at| Ok::<usize, ()>(at + if bytes.get(at) == Some(&b'\\') { 2 } else { 1 });
                if self.string(bytes, skip) != Ok(true) {
                    return None;
                }
                self.unclosed = None;
            }
            TokenKind::Scalar => {
                let rest = bytes.get(start..)?;
                let ends = |byte: &u8| is_blank(*byte) || kind_of(*byte) != TokenKind::Scalar;
                self.at += rest.iter().position(ends).unwrap_or(rest.len());
            }
            _ => self.at += 1,
        }
        Some(JsonToken { kind, start, text: text.get(start..self.at)? })
    }

    /// Returns whether the text ends within a string.
    pub fn is_in_string(&self) -> bool {
        self.unclosed.is_some()
    }

    /// Skips white space. Returns the first byte of the next token.
    fn first(&mut self, bytes: &[u8]) -> Option<u8> {
        loop {
            let byte = *bytes.get(self.at)?;
            if !is_blank(byte) {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    /// Skips the rest of a string and its closing quote; returns `false` if there is no quote. At a
    /// backslash or a control character, `special` returns where the string continues.
    fn string<E>(
        &mut self,
        bytes: &[u8],
        mut special: impl FnMut(usize) -> Result<usize, E>,
    ) -> Result<bool, E> {
        let start = self.at;
        let mut next = start;
        let end = find_special(bytes.get(start..).unwrap_or_default(), |at| {
            let at = start + at;
            match bytes.get(at)? {
                _ if at < next => {}
                b'"' => return Some(Ok(at + 1)),
                b'\\' | ..b' ' => match special(at) {
                    Ok(end) => next = end,
                    Err(error) => return Some(Err(error)),
                },
                _ => {}
            }
            None
        });
        let end = end.transpose()?;
        self.at = end.unwrap_or(next.max(bytes.len()));
        Ok(end.is_some())
    }
}

fn kind_of(first: u8) -> TokenKind {
    match first {
        b'{' | b'[' => TokenKind::Open,
        b'}' | b']' => TokenKind::Close,
        b':' => TokenKind::Colon,
        b',' => TokenKind::Comma,
        b'"' => TokenKind::String,
        _ => TokenKind::Scalar,
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// The next tokens that the grammar allows.
#[derive(Clone, Copy)]
pub(super) enum Allowed {
    Value,
    ValueOrClose,
    NameOrClose,
    Name,
    Colon,
    /// A value is complete: a comma, a closing bracket, or the end.
    Next,
}

/// Makes nanoserde read an integer outside the range of `i64` as a float, instead of wrapping it.
const FLOAT_MARK: &str = "e0";

/// Returns `text`, if it is exactly one JSON value, in a spelling that nanoserde reads correctly.
///
/// A respelled text has the same tokens in the same order. Numbers that are infinite as `f64`, lone
/// surrogates and nesting beyond [`JSON_DEPTH_MAX`] are errors, as RFC 8259 (sections 6, 8.2 and 9)
/// permits.
pub fn strict(text: &str) -> Result<Cow<'_, str>, DecodeError> {
    scan(text, |_, _| {})
}

/// Does the same as [`strict`]. Within the outermost object, but in no value of it, passes to
/// `visit` where the next token begins, and what may be there.
pub(super) fn scan(
    text: &str,
    mut visit: impl FnMut(Allowed, usize),
) -> Result<Cow<'_, str>, DecodeError> {
    use Allowed::{Colon, Name, NameOrClose, Next, Value, ValueOrClose};
    let mut check = Check { text, ..Check::default() };
    let mut expected = Value;
    while let Some(first) = check.tokens.first(text.as_bytes()) {
        if check.closing == b"}" {
            visit(expected, check.tokens.at);
        }
        expected = match (expected, first) {
            (Value | ValueOrClose, b'{') => check.open(b'}', NameOrClose)?,
            (Value | ValueOrClose, b'[') => check.open(b']', ValueOrClose)?,
            (ValueOrClose, b']') | (NameOrClose, b'}') => check.close(),
            (Next, _) if check.closing.last() == Some(&first) => check.close(),
            (Next, b',') if !check.closing.is_empty() => check.comma(),
            (NameOrClose | Name, b'"') => check.string(Colon)?,
            (Colon, b':') => check.pass(Value),
            (Value | ValueOrClose, b'"') => check.string(Next)?,
            (Value | ValueOrClose, b'-' | b'0'..=b'9') => check.number()?,
            (Value | ValueOrClose, b'a'..=b'z') => check.word()?,
            _ => return Err(check.unexpected(expected)),
        };
    }
    match expected {
        Next if check.closing.is_empty() => Ok(check.respelled()),
        _ => Err(check.unexpected(expected)),
    }
}

/// Returns the original spelling of a number that [`strict`] may have respelled, except for the `+`
/// of an exponent.
pub fn as_written(number: &str) -> &str {
    match number.strip_suffix(FLOAT_MARK) {
        Some(digits) if is_wide(digits) => digits,
        _ => number,
    }
}

/// Returns whether a valid number is an integer outside the range of `i64`.
pub fn is_wide(number: &str) -> bool {
    let integer = number.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit());
    integer && number.parse::<i64>().is_err()
}

/// Returns the UTF-16 code unit that an escape `\uXXXX` at `at` stands for.
pub fn code_unit(text: &str, at: usize) -> Option<u16> {
    let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
    // `from_str_radix` alone would accept a sign.
    let all_hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u16::from_str_radix(digits, 16).ok().filter(|_| all_hexadecimal)
}

/// The state of [`strict`].
#[derive(Default)]
struct Check<'t> {
    text: &'t str,
    tokens: Tokenizer,
    /// The closing brackets that are expected, outermost first.
    closing: Vec<u8>,
    /// The text before `copied`, respelled.
    respelled: String,
    /// 0 as long as nothing was respelled.
    copied: usize,
}

impl<'t> Check<'t> {
    fn error(&self, at: usize, what: &'static str) -> DecodeError {
        let marked = at == 0 && self.text.starts_with('\u{feff}');
        let what =
            if marked { "the text begins with a byte order mark; it must not" } else { what };
        let end = if at < self.text.len() { "" } else { ", but the text ends" };
        DecodeError::at(self.text, at, format!("{what}{end}"))
    }

    /// Returns the error for a next token that the grammar does not allow.
    fn unexpected(&self, expected: Allowed) -> DecodeError {
        let what = match (expected, self.closing.last()) {
            (Allowed::Value, _) => "expected a value",
            (Allowed::ValueOrClose, _) => "expected a value or ']'",
            (Allowed::NameOrClose, _) => "expected a name in double quotes or '}'",
            (Allowed::Name, _) => "expected a name in double quotes after the comma",
            (Allowed::Colon, _) => "expected ':'",
            (Allowed::Next, Some(b'}')) => "expected ',' or '}'",
            (Allowed::Next, Some(_)) => "expected ',' or ']'",
            (Allowed::Next, None) => "nothing may follow the value",
        };
        self.error(self.tokens.at, what)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.tokens.at).copied()
    }

    fn pass(&mut self, then: Allowed) -> Allowed {
        self.tokens.at += 1;
        then
    }

    fn open(&mut self, closing: u8, then: Allowed) -> Result<Allowed, DecodeError> {
        if self.closing.len() == JSON_DEPTH_MAX {
            return Err(self.error(self.tokens.at, "nested too deeply"));
        }
        self.closing.push(closing);
        Ok(self.pass(then))
    }

    fn close(&mut self) -> Allowed {
        self.closing.pop();
        self.pass(Allowed::Next)
    }

    fn comma(&mut self) -> Allowed {
        let in_object = self.closing.last() == Some(&b'}');
        self.pass(if in_object { Allowed::Name } else { Allowed::Value })
    }

    fn word(&mut self) -> Result<Allowed, DecodeError> {
        let rest = self.text.get(self.tokens.at..).unwrap_or_default();
        let word = ["true", "false", "null"].into_iter().find(|word| rest.starts_with(word));
        self.tokens.at += word.ok_or_else(|| self.unexpected(Allowed::Value))?.len();
        Ok(Allowed::Next)
    }

    fn string(&mut self, then: Allowed) -> Result<Allowed, DecodeError> {
        let start = self.tokens.at;
        let mut tokens = Tokenizer { at: start + 1, unclosed: None };
        let is_closed = tokens.string(self.text.as_bytes(), |at| self.special(at))?;
        self.tokens = tokens;
        if is_closed {
            Ok(then)
        } else {
            Err(self.error(start, "this string has no closing quote"))
        }
    }

    /// Returns where the escape at `at` ends; a control character there is an error.
    fn special(&self, at: usize) -> Result<usize, DecodeError> {
        let bytes = self.text.as_bytes();
        if bytes.get(at) != Some(&b'\\') {
            return Err(self.error(at, "control characters in a string must be escaped"));
        }
        match bytes.get(at + 1) {
            Some(b'u') => {}
            Some(letter) if b"\"\\/bfnrt".contains(letter) => return Ok(at + 2),
            _ => return Err(self.error(at, "there is no such escape")),
        }
        match (code_unit(self.text, at), code_unit(self.text, at + 6)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => Ok(at + 12),
            (Some(0xD800..=0xDFFF), _) => {
                Err(self.error(at, "half of a surrogate pair is no character"))
            }
            (Some(_), _) => Ok(at + 6),
            (None, _) => Err(self.error(at, "expected four hexadecimal digits after \\u")),
        }
    }

    fn number(&mut self) -> Result<Allowed, DecodeError> {
        let start = self.tokens.at;
        if self.peek() == Some(b'-') {
            self.tokens.at += 1;
        }
        let zero = self.peek() == Some(b'0');
        if self.digits()? > 1 && zero {
            return Err(self.error(start, "a number must not begin with 0"));
        }
        let integer_end = self.tokens.at;
        if self.peek() == Some(b'.') {
            self.tokens.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.tokens.at += 1;
            match self.peek() {
                Some(b'+') => self.respell(self.tokens.at, 1, ""),
                Some(b'-') => self.tokens.at += 1,
                _ => {}
            }
            self.digits()?;
        }
        let number = self.text.get(start..self.tokens.at).unwrap_or_default();
        // Nothing shorter is too large, unless it has an exponent.
        let suspect = self.tokens.at > integer_end || number.len() > 300;
        if suspect && number.parse::<f64>().is_ok_and(f64::is_infinite) {
            return Err(self.error(start, "this number is too large"));
        }
        if is_wide(number) {
            self.respell(self.tokens.at, 0, FLOAT_MARK);
        }
        Ok(Allowed::Next)
    }

    /// Skips one or more digits. Returns how many.
    fn digits(&mut self) -> Result<usize, DecodeError> {
        let start = self.tokens.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.tokens.at += 1;
        }
        match self.tokens.at - start {
            0 => Err(self.error(start, "expected a digit")),
            count => Ok(count),
        }
    }

    /// Skips `skipped` bytes at `at` and spells them as `spelling`.
    fn respell(&mut self, at: usize, skipped: usize, spelling: &str) {
        self.respelled.push_str(self.text.get(self.copied..at).unwrap_or_default());
        self.respelled.push_str(spelling);
        self.copied = at + skipped;
        self.tokens.at = self.copied;
    }

    fn respelled(mut self) -> Cow<'t, str> {
        if self.copied == 0 {
            return Cow::Borrowed(self.text);
        }
        self.respelled.push_str(self.text.get(self.copied..).unwrap_or_default());
        Cow::Owned(self.respelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts without white space; those with some follow in the arrays.
    const VALID: &str = r#"
        {} [] null true false 0 -0 -1 "" 10 0.0 -0.5 1.25e2 1e0 1E5 1E-05 0e00 1e308 1e-400 [1] [[]]
        [{}] [null,true,false] {"a":1} {"a":1,"a":2} {"":{"":{}}} "\"\\\/\b\f\n\r\t" "\u0000" "\\"
        "\uABCD\uabcd" "\ud83d\ude00" "\ud7ff\ue000" "\uDBFF\uDFFF" "ä€😀" "//" ["]","}"] ["[","{"]
        9223372036854775807 -9223372036854775808 0.1234567890123456789012345678901234567890
    "#;
    const VALID_SPACED: [&str; 6] = [
        " \t\r\n1 \t\r\n",
        "[ 1 , 2 ]",
        "{ \"a\" : 1 ,\n\"b\" : [ ] }",
        "\"a /* b */\"",
        "\"\u{7f}\u{80}\u{2028}\"",
        "\"\u{feff}\"",
    ];
    const RESPELLED: [(&str, &str); 4] = [
        ("[1E+5,2,1.5e+00]", "[1E5,2,1.5e00]"),
        ("9223372036854775808", "9223372036854775808e0"),
        ("[-9223372036854775809,{\"\\n\":1e+1}]", "[-9223372036854775809e0,{\"\\n\":1e1}]"),
        ("[\"1E+5\",1E+5]", "[\"1E+5\",1E5]"),
    ];

    const INVALID: &str = r#"
        { } [ ] , : " ' [1 [1, [1,] [,1] [,] [1,,2] [1:2] [1} {] {"a"} {"a":} {"a":1,} {,} {"a",1}
        {"a"::1} {"a":1] {a:1} {'a':1} {1:2} {null:1} {"a":1 {"a":1, {"a" {"a 1, {}{} []] {}} []"
        nullnull null, nul nulll NULL True NaN Infinity -Infinity - + +1 --1 -+1 00 007 -01 01.5 1.
        .5 -.5 1.e5 1e 1E 1e+ 1e- 1e++1 1e1.5 1.2.3 0x10 1_000 1e400 -1e400 "\ "\" "\q" "\'" "\0"
        "\U0041" "\u" "\u1" "\u12" "\u123" "\u123g" "\u+123" "\u12é" "\ud800" "\udc00" "\ud800\n"
        "\ude00\ud83d" "\ud800\u0041" "\ud800x" "\ud83d\ud83d\ude00" /**/1 //1 1/**/ {"\u":1}
    "#;
    const INVALID_SPACED: [&str; 17] = [
        "",
        " ",
        "\n",
        "1 2",
        "[1 2]",
        "{\"a\" 1}",
        "{\"a\":1 \"b\":2}",
        "- 1",
        "\"\t\"",
        "\"\n\"",
        "\"\0\"",
        "\"\u{1f}\"",
        "\"\\u 123\"",
        "// comment\n1",
        "\u{feff}1",
        "\u{a0}1",
        "\u{c}1",
    ];

    #[test]
    fn tokens_have_places_and_may_arrive_in_pieces() {
        let text = " {\"a\\\"\\u00e4ü\" :[1.5,true,\"\\\\\"\n], x: ]\"";
        let found = |mut tokenizer: Tokenizer, text| {
            let tokens = std::iter::from_fn(|| tokenizer.next(text));
            tokens.map(|token| (token.start, token.text)).collect::<Vec<_>>()
        };
        let all = found(Tokenizer::default(), text);
        let texts: Vec<&str> = all.iter().map(|(_, text)| *text).collect();
        let string = "\"a\\\"\\u00e4ü\"";
        let rest = [":", "[", "1.5", ",", "true", ",", "\"\\\\\"", "]", ",", "x", ":", "]"];
        assert_eq!(texts, [&["{", string], &rest[..]].concat());
        assert!(all.iter().all(|(start, token)| text[*start..].starts_with(token)));
        let mut tokenizer = Tokenizer::default();
        let mut pieces = Vec::new();
        for (at, c) in text.char_indices() {
            let arrived = &text[..at + c.len_utf8()];
            pieces.extend(std::iter::from_fn(|| tokenizer.next(arrived)));
        }
        // Only what has no end of its own is cut where a piece ends.
        let is_whole = |token: &JsonToken<'_>| token.kind != TokenKind::Scalar;
        let pieces: Vec<&str> =
            pieces.iter().filter(|token| is_whole(token)).map(|token| token.text).collect();
        let scalars = ["1.5", "true", "x"];
        texts.iter().filter(|text| !scalars.contains(text)).zip(&pieces).for_each(|(a, b)| {
            assert_eq!(a, b);
        });
        assert_eq!(pieces.len() + scalars.len(), texts.len());
        assert!(tokenizer.is_in_string());
    }

    #[test]
    fn valid_texts_pass_unchanged() {
        for text in VALID.split_whitespace().chain(VALID_SPACED) {
            let passed = strict(text).unwrap_or_else(|fault| panic!("{text:?}: {fault:?}"));
            assert!(matches!(passed, Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn only_what_nanoserde_misreads_is_respelled() {
        for (text, respelled) in RESPELLED {
            assert_eq!(strict(text).unwrap(), respelled);
        }
        assert_eq!(as_written("9223372036854775808e0"), "9223372036854775808");
        assert_eq!(as_written("5e0"), "5e0");
        assert_eq!(as_written("1.5e0"), "1.5e0");
    }

    #[test]
    fn invalid_texts_are_refused() {
        for text in INVALID.split_whitespace().chain(INVALID_SPACED) {
            assert!(strict(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_cut_of_a_text_is_refused() {
        let text = "{\"a\":[1,-2.5e+3,\"\\u00e4\\ud83d\\ude00ü\",true,null],\"b\":{\"c\":{}}}";
        assert!(strict(text).is_ok());
        for (end, _) in text.char_indices() {
            assert!(strict(&text[..end]).is_err(), "{}", &text[..end]);
        }
    }

    #[test]
    fn depth_counts_lists_and_objects_alike() {
        let nested = |depth: usize| {
            let pairs = "{\"a\":[".repeat(depth / 2) + &"[".repeat(depth % 2);
            pairs + &"]".repeat(depth % 2) + &"]}".repeat(depth / 2)
        };
        assert!(strict(&nested(JSON_DEPTH_MAX)).is_ok());
        let fault = strict(&nested(JSON_DEPTH_MAX + 1)).unwrap_err();
        assert_eq!(fault.what, "nested too deeply");
        // Wide is not deep.
        assert!(strict(&format!("[{}1]", "[],".repeat(JSON_DEPTH_MAX * 2))).is_ok());
    }

    #[test]
    fn a_number_is_too_large_exactly_when_no_float_holds_it() {
        let widest = format!("1{}", "0".repeat(308));
        assert!(strict(&widest).is_ok());
        assert!(strict(&format!("{widest}0")).is_err());
        assert!(strict("1.7976931348623157e308").is_ok());
        assert!(strict("1.7976931348623159e308").is_err());
    }
}
