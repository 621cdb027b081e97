//! The members of an object, as parts of its text.

use std::borrow::Cow;
use std::ops::Range;

use super::grammar::{self, Allowed, code_unit};

/// A member of an object, with its value as it is written.
pub struct Member<'t> {
    pub name: Cow<'t, str>,
    pub value: &'t str,
}

impl<'t> Member<'t> {
    /// Returns the value if it is a string.
    pub fn string(&self) -> Option<Cow<'t, str>> {
        unquoted(self.value)
    }
}

/// Returns the members of an object in their order, with repeated ones; `None` if `text` is not
/// exactly one object that [`parse`](super::parse) would decode.
pub fn members(text: &str) -> Option<Vec<Member<'_>>> {
    // As many as most objects have. For twice as many, musl maps and unmaps a page each time.
    let mut members = Vec::with_capacity(8);
    let (mut start, mut colon) = (0, 0);
    grammar::scan(text, |expected, at| match expected {
        Allowed::Name | Allowed::NameOrClose => start = at,
        Allowed::Colon => colon = at,
        Allowed::Next => {
            let part = |range| text.get::<Range<usize>>(range).unwrap_or_default().trim();
            let name = unquoted(part(start..colon));
            members.extend(name.map(|name| Member { name, value: part(colon + 1..at) }));
        }
        Allowed::Value | Allowed::ValueOrClose => {}
    })
    .ok()?;
    text.trim_start().starts_with('{').then_some(members)
}

/// Returns the text of a string in quotes; `None` of any other value.
pub fn unquoted(token: &str) -> Option<Cow<'_, str>> {
    let inner = token.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { unescaped(inner).map(Cow::Owned) } else { Some(inner.into()) }
}

/// Returns the text that a string stands for, if its escapes are valid. RFC 8259, section 7.
fn unescaped(inner: &str) -> Option<String> {
    let mut out = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        out.push_str(rest.get(..at)?);
        let (c, end) = match *rest.as_bytes().get(at + 1)? {
            b'u' => {
                let (first, second) = (code_unit(rest, at), code_unit(rest, at + 6));
                let is_pair = matches!(first, Some(0xd800..=0xdbff));
                let units = first.into_iter().chain(second.filter(|_| is_pair));
                let c = char::decode_utf16(units).next()?.ok()?;
                (c, at + if is_pair { 12 } else { 6 })
            }
            b'n' => ('\n', at + 2),
            b't' => ('\t', at + 2),
            b'r' => ('\r', at + 2),
            b'b' => ('\x08', at + 2),
            b'f' => ('\x0c', at + 2),
            itself => (char::from(itself), at + 2),
        };
        out.push(c);
        rest = rest.get(end..)?;
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::super::{Lenient, Members, parse};
    use super::*;

    #[test]
    fn members_are_those_that_are_decoded() {
        for text in [
            "{}",
            r#" { "a" : "b\n" , "\u0061":[1, {"x":"]"}],"c":null,"d":{},"e":"" } "#,
            r#"{"a":"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00\uD83D\uDE00\\u0041€"}"#,
            r#"{"a":1}}"#,
            "[]",
            "\"a\"",
            "",
        ] {
            let whole = parse::<Members>(text.as_bytes()).ok();
            let decoded = whole.map(|Members(members)| members);
            let found = members(text).map(|members| {
                let value = |member: &Member<'_>| match member.string() {
                    Some(text) => Lenient::Text(text.into_owned()),
                    None => parse(member.value.as_bytes()).unwrap(),
                };
                members.iter().map(|member| (member.name.to_string(), value(member))).collect()
            });
            assert_eq!(found, decoded, "{text}");
        }
    }
}
