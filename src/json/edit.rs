//! Reads and changes members of an object without touching the rest of its text: the order of the
//! members, unknown ones, white space. Pure; the text must have passed [`check`](super::check).

use std::ops::Range;

use super::{TokenKind, Tokenizer};

/// A member of an object: its name, and where its value is in the text.
struct Member {
    name: String,
    /// The offset of the name.
    start: usize,
    value: Range<usize>,
}

/// The members of an object, and where it ends.
struct Layout {
    members: Vec<Member>,
    /// The offset after the opening bracket.
    inside: usize,
    /// The offset of the closing bracket.
    close: usize,
}

/// Finds the members of the object in `text`; `None` if it is something else.
fn layout(text: &str) -> Option<Layout> {
    let mut tokens = Tokenizer::default();
    let open = tokens.next(text).filter(|token| token.text == "{")?;
    let (mut members, mut name, mut depth) = (Vec::new(), None, 1_usize);
    let mut value_start = None;
    while let Some(token) = tokens.next(text) {
        match token.kind {
            TokenKind::Open => {
                depth += 1;
                value_start = value_start.or(Some(token.start));
            }
            TokenKind::Close => depth -= 1,
            TokenKind::String if depth == 1 && name.is_none() => {
                name = Some((super::parse(token.text.as_bytes()).ok()?, token.start));
                continue;
            }
            TokenKind::String | TokenKind::Scalar => {
                value_start = value_start.or(Some(token.start));
            }
            TokenKind::Colon | TokenKind::Comma => continue,
        }
        if depth == 0 {
            return Some(Layout { members, inside: open.start + 1, close: token.start });
        }
        if depth == 1
            && let (Some((name, start)), Some(from)) = (name.take(), value_start.take())
        {
            let value = from..token.start + token.text.len();
            members.push(Member { name, start, value });
        }
    }
    None
}

/// Returns the names and the values of the members of an object, as they are written; `None` if
/// `text` is something else.
pub fn members(text: &str) -> Option<Vec<(String, &str)>> {
    let members = layout(text)?.members.into_iter();
    Some(members.filter_map(|member| Some((member.name, text.get(member.value)?))).collect())
}

/// Returns the object in `text` with this value for the member that `path` names, one level after
/// another. `None` if the text, or a value on the way, is no object.
pub fn set(text: &str, path: &[&str], value: &str) -> Option<String> {
    let (name, deeper) = path.split_first()?;
    let Layout { members, inside, close } = layout(text)?;
    // Of members with one name, the last one counts.
    let (range, new) = match members.iter().rfind(|member| member.name == *name) {
        Some(Member { value: range, .. }) => {
            let old = text.get(range.clone())?;
            let new = match deeper {
                [] => value.to_owned(),
                _ if old == "null" => nested(deeper, value),
                _ => set(old, deeper, value)?,
            };
            (range.clone(), new)
        }
        None => {
            let mut quoted = String::new();
            super::quote(name, &mut quoted);
            let new = format!("{quoted}: {}", nested(deeper, value));
            match members.last() {
                Some(last) => {
                    // As the last member is set off from what is before it.
                    let before = text.get(inside..last.start)?;
                    let blank = before.rfind(|c: char| !c.is_ascii_whitespace());
                    let blank = before.get(blank.map_or(0, |at| at + 1)..)?;
                    let blank = if members.len() > 1 || blank.contains('\n') { blank } else { " " };
                    (last.value.end..last.value.end, format!(",{blank}{new}"))
                }
                None if deeper.is_empty() => (inside..close, new),
                None => (inside..close, format!("\n  {new}\n")),
            }
        }
    };
    Some([text.get(..range.start)?, &new, text.get(range.end..)?].concat())
}

/// Returns the object in `text` without the member that `path` names, and without an object that
/// would be left empty; `None` if there is no such member.
pub fn remove(text: &str, path: &[&str]) -> Option<String> {
    let (name, deeper) = path.split_first()?;
    let Layout { members: all, inside, close } = layout(text)?;
    let at = all.iter().rposition(|member| member.name == *name)?;
    let Member { start, value, .. } = all.get(at)?;
    if !deeper.is_empty() {
        let rest = remove(text.get(value.clone())?, deeper)?;
        if !members(&rest)?.is_empty() {
            return Some([text.get(..value.start)?, &rest, text.get(value.end..)?].concat());
        }
    }
    let range = match (at.checked_sub(1).and_then(|before| all.get(before)), all.get(at + 1)) {
        (Some(before), _) => before.value.end..value.end,
        (None, Some(next)) => *start..next.start,
        (None, None) => inside..close,
    };
    let rest = [text.get(..range.start)?, text.get(range.end..)?].concat();
    // Another member of this name would count now.
    Some(remove(&rest, path).unwrap_or(rest))
}

/// Returns a value within new objects.
fn nested(path: &[&str], value: &str) -> String {
    path.iter().rev().fold(value.to_owned(), |value, name| {
        let mut object = String::from("{");
        super::quote(name, &mut object);
        object + ": " + &value + "}"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_set_and_the_rest_stays_byte_for_byte() {
        for (text, path, value, expected) in [
            ("{}", "a", "1", "{\"a\": 1}"),
            (" { } \n", "a", "1", " {\"a\": 1} \n"),
            ("{}\n", "a.b", "1", "{\n  \"a\": {\"b\": 1}\n}\n"),
            ("{\"a\":1}", "a", "\"x\"", "{\"a\":\"x\"}"),
            ("{\"a\":1}", "b", "2", "{\"a\":1, \"b\": 2}"),
            ("{\"a\":1,\"b\":2}", "c", "3", "{\"a\":1,\"b\":2,\"c\": 3}"),
            (
                "{\n  \"z\" : [1, {\"a\": 0}] ,\n  \"a\":{\"b\":1,  \"c\":2}\n}\n",
                "a.b",
                "7",
                "{\n  \"z\" : [1, {\"a\": 0}] ,\n  \"a\":{\"b\":7,  \"c\":2}\n}\n",
            ),
            ("{\n\t\"z\": 1\n}", "a.b", "7", "{\n\t\"z\": 1,\n\t\"a\": {\"b\": 7}\n}"),
            ("{\"a\":1,\"a\":2}", "a", "3", "{\"a\":1,\"a\":3}"),
            ("{\"a\":null}", "a.b", "3", "{\"a\":{\"b\": 3}}"),
            ("{\"\\u0061\":1,\"x\":\"a\\\"}\"}", "a", "3", "{\"\\u0061\":3,\"x\":\"a\\\"}\"}"),
        ] {
            let path: Vec<&str> = path.split('.').collect();
            assert_eq!(set(text, &path, value).as_deref(), Some(expected), "{text}");
            super::super::check(expected).unwrap();
        }
        for text in ["[]", "1", "{\"a\":1}", "{\"a\":[]}"] {
            assert_eq!(set(text, &["a", "b"], "1"), None, "{text}");
        }
    }

    #[test]
    fn a_member_is_removed_and_the_rest_stays_byte_for_byte() {
        for (text, path, expected) in [
            ("{\"a\":1}\n", "a", "{}\n"),
            ("{\n  \"a\": {\"b\": 1}\n}\n", "a.b", "{}\n"),
            ("{\"a\":1 , \"b\":2}", "a", "{\"b\":2}"),
            ("{\"a\":1 , \"b\":2 }", "b", "{\"a\":1 }"),
            (
                "{\n\t\"z\": [1],\n\t\"a\": {\"b\": 7},\n\t\"c\": 3\n}",
                "a.b",
                "{\n\t\"z\": [1],\n\t\"c\": 3\n}",
            ),
            ("{\"a\":{\"b\":1,\"c\":2}}", "a.b", "{\"a\":{\"c\":2}}"),
            ("{\"a\":1,\"x\":{},\"a\":2}", "a", "{\"x\":{}}"),
        ] {
            let path: Vec<&str> = path.split('.').collect();
            assert_eq!(remove(text, &path).as_deref(), Some(expected), "{text}");
        }
        for text in ["[]", "{}", "{\"b\":1}", "{\"a\":1}", "{\"a\":{\"c\":1}}"] {
            assert_eq!(remove(text, &["a", "b"]), None, "{text}");
        }
    }

    #[test]
    fn members_are_listed_as_they_are_written() {
        let text = "{\"b\": {\"x\": [1]} , \"a\":\"y\", \"c\": -1.5e3}";
        let expected = [("b", "{\"x\": [1]}"), ("a", "\"y\""), ("c", "-1.5e3")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(members(text).unwrap(), expected);
        assert_eq!(members("{}"), Some(Vec::new()));
        assert_eq!(members("[1]"), None);
    }
}
