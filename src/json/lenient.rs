//! Values of peers that do not agree on their types.

use std::str::{Chars, FromStr};

use nanoserde::{DeJson, DeJsonErr, DeJsonState, DeJsonTok};

use super::Raw;

/// A string, or else whatever stands in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lenient {
    Text(String),
    Other(Raw),
}

impl Lenient {
    /// The string itself, of anything else its JSON.
    pub fn into_text(self) -> String {
        match self {
            Lenient::Text(text) => text,
            Lenient::Other(raw) => raw.0,
        }
    }

    /// The string, if it is one.
    pub fn text(self) -> Option<String> {
        match self {
            Lenient::Text(text) => Some(text),
            Lenient::Other(_) => None,
        }
    }
}

impl DeJson for Lenient {
    fn de_json(state: &mut DeJsonState, input: &mut Chars<'_>) -> Result<Lenient, DeJsonErr> {
        if !matches!(state.tok, DeJsonTok::Str) {
            return Raw::de_json(state, input).map(Lenient::Other);
        }
        let text = std::mem::take(&mut state.strbuf);
        state.next_tok(input)?;
        Ok(Lenient::Text(text))
    }
}

/// A value that may stand in quotes: `"5"` for `5`, `"True"` for `true`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted<T>(pub T);

impl<T: DeJson + FromStr> DeJson for Quoted<T> {
    fn de_json(state: &mut DeJsonState, input: &mut Chars<'_>) -> Result<Quoted<T>, DeJsonErr> {
        if matches!(state.tok, DeJsonTok::Str)
            && let Ok(value) = state.strbuf.trim().to_ascii_lowercase().parse()
        {
            state.next_tok(input)?;
            return Ok(Quoted(value));
        }
        T::de_json(state, input).map(Quoted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn a_string_is_itself_and_all_else_is_its_json() {
        let text = "[\"a\\n\\u00e4\\t\", \"\", 1.50, {\"b\": [null, \"c\"]}, true, null]";
        let values: Vec<Option<Lenient>> = json::parse(text.as_bytes()).unwrap();
        let texts: Vec<_> = values.into_iter().map(|value| value.map(Lenient::into_text)).collect();
        let some = |text: &str| Some(text.to_owned());
        let expected = ["a\nä\t", "", "1.50", "{\"b\":[null,\"c\"]}", "true"]
            .map(some)
            .into_iter()
            .chain([None]);
        assert_eq!(texts, expected.collect::<Vec<_>>());
        assert_eq!(json::parse::<Lenient>(b"1").unwrap().text(), None);
    }

    #[test]
    fn what_stands_in_quotes_counts_as_what_it_says() {
        let numbers = |text: &str| json::parse::<Vec<Quoted<u64>>>(text.as_bytes());
        assert_eq!(numbers(r#"[5, "5", " 7 "]"#).unwrap(), [5, 5, 7].map(Quoted));
        assert_eq!(
            numbers(r#"["five"]"#).unwrap_err().what,
            "this value must be a whole number, 0 or more, not a string"
        );
        let truths = json::parse::<Vec<Quoted<bool>>>(br#"[true, "True", "false"]"#);
        assert_eq!(truths.unwrap(), [true, true, false].map(Quoted));
        assert!(json::parse::<Quoted<bool>>(br#""yes""#).is_err());
    }
}
