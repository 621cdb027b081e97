//! JSON: a strict check, then nanoserde decodes; encoding. No other module uses nanoserde's parser.
//!
//! nanoserde is small and fast, but must never see unchecked text: some cut-off texts make it spin
//! or panic, deep nesting overflows the stack, large integers wrap. [`parse`] therefore checks the
//! whole text against RFC 8259 first, and turns what nanoserde reports afterward into a sentence
//! for the user. Nothing here knows what the values mean.
//!
//! Callers must keep three promises: a struct to decode has at least one field; whatever a peer may
//! omit or send as `null` is an `Option` or has a default; floats to encode are finite.

mod decode_error;
pub mod edit;
#[cfg(test)]
mod fuzz;
mod grammar;
mod members;
mod quoted;
mod special;
mod surrogates;

use std::fmt;
use std::str::{Chars, FromStr};

pub use grammar::{TokenKind, Tokenizer};
pub use members::{Member, members};
pub use quoted::{Quoted, quote};
pub use surrogates::{Joiner, repair};

use nanoserde::{DeJson, DeJsonErr, DeJsonState, DeJsonTok, SerJson, SerJsonState};

/// Why a text cannot be decoded, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// A clause in our own words. It quotes, truncated, only names, numbers, and a string where one
    /// of a few words is expected: any other string could be a secret.
    pub what: String,
}

impl DecodeError {
    fn at(text: &str, offset: usize, what: String) -> DecodeError {
        let before = text.get(..offset).unwrap_or(text);
        let last_line = before.rsplit('\n').next().unwrap_or(before);
        DecodeError {
            line: before.matches('\n').count() + 1,
            column: last_line.chars().count() + 1,
            what,
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.what)
    }
}

/// Decodes a text that is exactly one JSON value of the form of `T`.
///
/// Unknown fields are skipped; of fields that occur twice, the last one counts. Integers outside
/// the range of `i64` count as floats, so no integer type accepts them. A number too large for
/// `f64`, a lone surrogate and more than [`JSON_DEPTH_MAX`](crate::limits::JSON_DEPTH_MAX) levels
/// are rejected anywhere in the text. RFC 8259.
pub fn parse<T: DeJson>(bytes: &[u8]) -> Result<T, DecodeError> {
    let text = utf8(bytes)?;
    let readable = grammar::strict(text)?;
    let mut rest = readable.chars();
    let mut state = DeJsonState::default();
    state.next(&mut rest);
    state
        .next_tok(&mut rest)
        .and_then(|()| T::de_json(&mut state, &mut rest))
        .map_err(|cause| decode_error::describe(text, &readable, rest.as_str(), &state, &cause.msg))
}

/// Checks that `text` is exactly one JSON value that [`parse`] would decode.
pub fn check(text: &str) -> Result<(), DecodeError> {
    grammar::strict(text).map(drop)
}

fn utf8(bytes: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let text = std::str::from_utf8(valid).unwrap_or_default();
        DecodeError::at(text, text.len(), "this byte is not UTF-8".to_owned())
    })
}

/// Encodes without white space. The result is valid JSON if every float is finite and every map key
/// is a string.
pub fn text<T: SerJson>(value: &T) -> String {
    value.serialize_json()
}

/// An object to encode: the names of its members, which need no escapes, and their values.
pub struct Object<'a>(pub &'a [Field<'a>]);

/// A name and its value.
pub type Field<'a> = (&'a str, &'a dyn SerJson);

impl SerJson for Object<'_> {
    fn ser_json(&self, depth: usize, state: &mut SerJsonState) {
        state.st_pre();
        for (index, (name, value)) in self.0.iter().enumerate() {
            if index > 0 {
                state.conl();
            }
            state.field(depth, name);
            value.ser_json(depth, state);
        }
        state.st_post(depth);
    }
}

/// Returns a member of an object after a comma: `,"name":value`.
pub fn member(name: &str, value: &Lenient) -> String {
    let mut out = String::from(",");
    quote(name, &mut out);
    out.push(':');
    match value {
        Lenient::Text(text) => quote(text, &mut out),
        Lenient::Other(raw) => out.push_str(raw.as_str()),
    }
    out
}

/// Any JSON value, as text: one line, without white space between its tokens.
///
/// The order of fields, repeated fields and the digits of numbers stay as they were; the `+` of an
/// exponent is removed, and strings are escaped as [`quote`] does. As an `Option<Raw>`, `null` is
/// `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw(String);

impl Raw {
    /// Decodes any value. Fails as [`check`] does.
    pub fn parse(text: &str) -> Result<Raw, DecodeError> {
        parse(text.as_bytes())
    }

    /// Returns the value if it is an object.
    pub fn object(text: &str) -> Option<Raw> {
        Raw::parse(text).ok().filter(|raw| raw.0.starts_with('{'))
    }

    /// Encodes `value`, on the conditions of [`text`].
    pub fn of<T: SerJson>(value: &T) -> Raw {
        Raw(text(value))
    }

    /// Returns an object without fields.
    pub fn empty() -> Raw {
        Raw("{}".to_owned())
    }

    /// Returns this object with more members at its end.
    pub fn with(&self, members: &[Field<'_>]) -> Raw {
        let (own, more) = (self.0.strip_suffix('}').unwrap_or(&self.0), text(&Object(members)));
        let comma = if own.ends_with('{') || members.is_empty() { "" } else { "," };
        Raw(format!("{own}{comma}{}", more.strip_prefix('{').unwrap_or(&more)))
    }

    /// Returns the text of the value.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl DeJson for Raw {
    // Iterates over tokens: recursion would tie the depth of foreign values to the size of our
    // stack.
    fn de_json(state: &mut DeJsonState, input: &mut Chars<'_>) -> Result<Raw, DeJsonErr> {
        let mut out = String::new();
        let mut depth = 0_usize;
        loop {
            match state.tok {
                DeJsonTok::Str => quote(&state.strbuf, &mut out),
                DeJsonTok::U64(_) | DeJsonTok::I64(_) | DeJsonTok::F64(_) => {
                    out.push_str(grammar::as_written(&state.numbuf));
                }
                DeJsonTok::Bool(true) => out.push_str("true"),
                DeJsonTok::Bool(false) => out.push_str("false"),
                DeJsonTok::Null => out.push_str("null"),
                DeJsonTok::Colon => out.push(':'),
                DeJsonTok::Comma => out.push(','),
                DeJsonTok::CurlyOpen => out.push('{'),
                DeJsonTok::CurlyClose => out.push('}'),
                DeJsonTok::BlockOpen => out.push('['),
                DeJsonTok::BlockClose => out.push(']'),
                _ => return Err(state.err_parse("a value")),
            }
            depth = match state.tok {
                DeJsonTok::CurlyOpen | DeJsonTok::BlockOpen => depth + 1,
                DeJsonTok::CurlyClose | DeJsonTok::BlockClose => depth.saturating_sub(1),
                _ => depth,
            };
            state.next_tok(input)?;
            if depth == 0 {
                return Ok(Raw(out));
            }
        }
    }
}

impl SerJson for Raw {
    fn ser_json(&self, _depth: usize, state: &mut SerJsonState) {
        state.out.push_str(&self.0);
    }
}

/// A string, or any other value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lenient {
    Text(String),
    Other(Raw),
}

impl Lenient {
    /// Returns the string itself, and the JSON of any other value.
    pub fn into_text(self) -> String {
        match self {
            Lenient::Text(text) => text,
            Lenient::Other(raw) => raw.0,
        }
    }

    /// Returns the string, if it is one.
    pub fn text(self) -> Option<String> {
        match self {
            Lenient::Text(text) => Some(text),
            Lenient::Other(_) => None,
        }
    }
}

impl DeJson for Lenient {
    fn de_json(state: &mut DeJsonState, input: &mut Chars<'_>) -> Result<Lenient, DeJsonErr> {
        if state.tok != DeJsonTok::Str {
            return Raw::de_json(state, input).map(Lenient::Other);
        }
        let text = std::mem::take(&mut state.strbuf);
        state.next_tok(input)?;
        Ok(Lenient::Text(text))
    }
}

/// A value that may be in quotes: `"5"` for `5`, `"True"` for `true`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaybeQuoted<T>(pub T);

impl<T: DeJson + FromStr> DeJson for MaybeQuoted<T> {
    fn de_json(state: &mut DeJsonState, input: &mut Chars<'_>) -> Result<Self, DeJsonErr> {
        if state.tok == DeJsonTok::Str
            && let Ok(value) = state.strbuf.trim().to_ascii_lowercase().parse()
        {
            state.next_tok(input)?;
            return Ok(MaybeQuoted(value));
        }
        T::de_json(state, input).map(MaybeQuoted)
    }
}

/// The members of an object, in their order and with repeated ones.
#[derive(Debug, PartialEq, Eq)]
pub struct Members(pub Vec<(String, Lenient)>);

impl DeJson for Members {
    fn de_json(state: &mut DeJsonState, input: &mut Chars<'_>) -> Result<Members, DeJsonErr> {
        let mut members = Vec::new();
        state.curly_open(input)?;
        while state.tok != DeJsonTok::CurlyClose {
            let name = String::de_json(state, input)?;
            state.colon(input)?;
            members.push((name, Lenient::de_json(state, input)?));
            state.eat_comma_curly(input)?;
        }
        state.curly_close(input)?;
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::JSON_DEPTH_MAX;

    #[expect(dead_code, reason = "only whether it can be decoded")]
    #[derive(DeJson)]
    struct Part {
        parts: Vec<Part>,
    }

    #[derive(Debug, DeJson, PartialEq)]
    struct Count {
        q: Option<u64>,
    }

    fn rejected<T: DeJson + fmt::Debug>(text: &str) -> String {
        parse::<T>(text.as_bytes()).unwrap_err().to_string()
    }

    fn nested(depth: usize) -> String {
        format!("{{\"zz\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1))
    }

    #[test]
    fn what_breaks_nanoserde_is_rejected_with_its_place() {
        let cases = [
            ("{\"q\":1,\"zz\":[", "column 14: expected a value or ']', but the text ends"),
            ("{\"q\":1,\"q\":}", "column 12: expected a value"),
            ("{\"q\":}", "column 6: expected a value"),
            ("{\"q\":,", "column 6: expected a value"),
            ("{\"q\":", "column 6: expected a value, but the text ends"),
            ("{\"q\":1}]", "column 8: nothing may follow the value"),
            ("{\"q\":1}{\"q\":2}", "column 8: nothing may follow the value"),
            ("{\"q\":1}\0", "column 8: nothing may follow the value"),
            ("{\"q\":1,\"z\":\"\0\"}", "column 13: control characters in a string must be escaped"),
            ("{\"z\":\"\\ud83d\"}", "column 7: half of a surrogate pair is no character"),
            ("{\"z\":[1 2 : : ,,]}", "column 9: expected ',' or ']'"),
            ("{\"z\":1e400}", "column 6: this number is too large"),
            ("\u{feff}{}", "column 1: the text begins with a byte order mark; it must not"),
        ];
        for (text, error) in cases {
            assert_eq!(rejected::<Count>(text), format!("line 1, {error}"), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded_and_costs_no_stack() {
        assert_eq!(parse(nested(JSON_DEPTH_MAX).as_bytes()), Ok(Count { q: None }));
        // The bracket that is too deep comes after `{"zz":` and 31 others.
        for depth in [JSON_DEPTH_MAX + 1, 100_000] {
            let error = rejected::<Count>(&nested(depth));
            assert_eq!(error, "line 1, column 38: nested too deeply");
        }
        assert!(check(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn the_deepest_type_fits_a_small_stack() {
        let levels = JSON_DEPTH_MAX / 2;
        let open = "{\"parts\":[".repeat(levels);
        let text = open + &"]}".repeat(levels);
        let thread = std::thread::Builder::new().stack_size(256 * 1024);
        let parsed = thread.spawn(move || parse::<Part>(text.as_bytes()).map(drop)).unwrap();
        assert_eq!(parsed.join().unwrap(), Ok(()));
    }

    #[test]
    fn numbers_do_not_wrap_and_fail_only_if_too_large() {
        let largest = i64::MAX.to_string();
        assert_eq!(parse::<i64>(largest.as_bytes()), Ok(i64::MAX));
        assert_eq!(parse::<u64>(largest.as_bytes()), Ok(9_223_372_036_854_775_807));
        assert_eq!(parse::<i64>(b"-9223372036854775808"), Ok(i64::MIN));
        for wide in ["9223372036854775808", "18446744073709551615", "-9223372036854775809"] {
            let error = format!("line 1, column 1: this value is out of range: {wide}");
            assert_eq!(rejected::<i64>(wide), error);
            assert_eq!(rejected::<u64>(wide), error);
            assert_eq!(parse::<f64>(wide.as_bytes()), Ok(wide.parse().unwrap()));
            let skipped = format!("{{\"z\":{wide},\"q\":7}}");
            assert_eq!(parse(skipped.as_bytes()), Ok(Count { q: Some(7) }));
        }
        for (text, value) in [("1E+5", 1e5), ("1e5", 1e5), ("-0", 0.0), ("1.5e-3", 0.0015)] {
            assert_eq!(parse::<f64>(text.as_bytes()), Ok(value), "{text}");
        }
        assert_eq!(parse::<i64>(b"-0"), Ok(0));
        assert_eq!(parse::<u16>(b"65535"), Ok(65_535));
        assert!(parse::<u16>(b"65536").is_err());
        assert!(parse::<i64>(b"1e3").is_err());
    }

    #[test]
    fn the_last_of_equal_fields_counts_and_unknown_ones_are_skipped() {
        let text = " {\"q\":1,\"x\":{\"q\":[{}]},\"q\":null,\"q\":\t3}\r\n";
        assert_eq!(parse(text.as_bytes()), Ok(Count { q: Some(3) }));
        assert_eq!(parse(b"{\"z\":\"\\u0000\",\"q\":1}"), Ok(Count { q: Some(1) }));
    }

    #[test]
    fn places_count_lines_and_characters() {
        let error = parse::<Count>("{\n \"ü\": 1,\r\n \"öö\" 2}".as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "line 3, column 7: expected ':'");
        let error = parse::<Count>(b"{\"\xc3\xbc\":\n\"\xff\"}").unwrap_err();
        assert_eq!(error.to_string(), "line 2, column 2: this byte is not UTF-8");
    }

    #[test]
    fn raw_values_keep_their_order_and_digits() {
        let wide = "1".repeat(300);
        let cases = [
            (" { \"x\" : [ 1.50 , -0 , 1e5 , 1E+5 ] } ", "{\"x\":[1.50,-0,1e5,1E5]}"),
            ("18446744073709551616", "18446744073709551616"),
            ("[-9223372036854775809,5e0]", "[-9223372036854775809,5e0]"),
            ("{\"a\":1,\"a\":{},\"\":[]}", "{\"a\":1,\"a\":{},\"\":[]}"),
            ("[true,\nfalse,\tnull]", "[true,false,null]"),
            ("\"\\u00e4\\/\\n\"", "\"ä/\\n\""),
            (&wide, &wide),
        ];
        for (given, kept) in cases {
            let raw = Raw::parse(given).unwrap();
            assert_eq!(raw.as_str(), kept);
            assert_eq!(text(&raw), kept);
            assert_eq!(Raw::parse(kept).as_ref(), Ok(&raw));
        }
        let kept = |text: &str| parse::<Vec<Option<Raw>>>(text.as_bytes());
        assert_eq!(kept("[null,[null]]"), Ok(vec![None, Some(Raw("[null]".into()))]));
        assert!(Raw::parse("{\"cut\":").is_err());
        assert_eq!(Raw::object(" { } ").as_ref(), Some(&Raw::empty()));
        assert!(["[{}]", "\"{}\"", "null", "{"].iter().all(|text| Raw::object(text).is_none()));
        // Even unchecked text neither makes it panic nor spin.
        for unchecked in ["", "]", "[", "{\"a\":", "[}", ":", "}{"] {
            drop(Raw::deserialize_json(unchecked));
        }
    }

    #[test]
    fn a_lenient_string_is_itself_and_any_other_value_its_json() {
        let text = "[\"a\\n\\u00e4\\t\", \"\", 1.50, {\"b\": [null, \"c\"]}, true, null]";
        let values: Vec<Option<Lenient>> = parse(text.as_bytes()).unwrap();
        let texts: Vec<_> = values.into_iter().map(|value| value.map(Lenient::into_text)).collect();
        let some = |text: &str| Some(text.to_owned());
        let expected = ["a\nä\t", "", "1.50", "{\"b\":[null,\"c\"]}", "true"]
            .map(some)
            .into_iter()
            .chain([None]);
        assert_eq!(texts, expected.collect::<Vec<_>>());
        assert_eq!(parse::<Lenient>(b"1").unwrap().text(), None);
    }

    #[test]
    fn a_number_and_a_boolean_may_be_in_quotes() {
        let numbers = |text: &str| parse::<Vec<MaybeQuoted<u64>>>(text.as_bytes());
        assert_eq!(numbers(r#"[5, "5", " 7 "]"#).unwrap(), [5, 5, 7].map(MaybeQuoted));
        assert_eq!(
            numbers(r#"["five"]"#).unwrap_err().what,
            "this value must be a whole number, 0 or more, not a string"
        );
        let booleans = parse::<Vec<MaybeQuoted<bool>>>(br#"[true, "True", "false"]"#);
        assert_eq!(booleans.unwrap(), [true, true, false].map(MaybeQuoted));
        assert!(parse::<MaybeQuoted<bool>>(br#""yes""#).is_err());
    }

    #[test]
    fn members_keep_their_order() {
        let parsed: Members = parse(br#" {"b":"x","a":{"c": [1]},"b":null} "#).unwrap();
        let other = |text: &str| Lenient::Other(Raw(text.to_owned()));
        let members = [
            ("b", Lenient::Text("x".to_owned())),
            ("a", other("{\"c\":[1]}")),
            ("b", other("null")),
        ];
        assert_eq!(parsed, Members(members.map(|(name, value)| (name.to_owned(), value)).into()));
        assert_eq!(parse(b"{}"), Ok(Members(Vec::new())));
        assert!(parse::<Members>(b"[]").is_err());
    }
    #[test]
    fn the_members_of_an_object_are_encoded_in_their_order() {
        assert_eq!(text(&Object(&[])), "{}");
        let object = Object(&[("b", &1), ("a", &"x\"".to_owned()), ("c", &None::<u64>)]);
        assert_eq!(text(&object), r#"{"b":1,"a":"x\"","c":null}"#);
        let more = Raw::of(&object).with(&[("d", &true)]);
        assert_eq!(more.as_str(), r#"{"b":1,"a":"x\"","c":null,"d":true}"#);
        assert_eq!(Raw::empty().with(&[("d", &1)]).as_str(), r#"{"d":1}"#);
        assert_eq!(Raw::empty().with(&[]), Raw::empty());
    }
}
