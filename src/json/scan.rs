//! The grammar of RFC 8259: whether a text is one JSON value, and where it stops being one.
//!
//! One pass over the whole text, without recursion. It decodes nothing; it only respells the few
//! numbers that are valid and that nanoserde would refuse or misread.

use std::borrow::Cow;

use crate::limits::JSON_DEPTH_MAX;

/// Where a text stops being JSON, in bytes, and why.
///
/// At the end of the text, `what` is something that was expected there.
#[derive(Debug)]
pub struct Fault {
    pub at: usize,
    pub what: &'static str,
}

/// What the grammar lets come next.
#[derive(Clone, Copy)]
enum Due {
    Value,
    FirstItem,
    FirstName,
    Name,
    /// A comma, a closing bracket, or the end: a value is complete.
    Next,
}

/// Makes nanoserde read an integer outside the range of `i64` as a float, instead of wrapping it.
const FLOAT_MARK: &str = "e0";

/// `text`, if it is exactly one JSON value, in a spelling that nanoserde reads as it is meant.
///
/// A respelled text has the same tokens in the same order. Numbers that are infinite as `f64`,
/// halves of surrogate pairs and nesting beyond [`JSON_DEPTH_MAX`] are faults, as RFC 8259
/// (sections 6, 8.2 and 9) permits.
pub fn strict(text: &str) -> Result<Cow<'_, str>, Fault> {
    let mut scan = Scan::new(text);
    let mut due = Due::Value;
    loop {
        scan.skip_space();
        let Some(byte) = scan.peek() else { break };
        due = match (due, byte) {
            (Due::Value | Due::FirstItem, b'{') => scan.open(b'}', Due::FirstName)?,
            (Due::Value | Due::FirstItem, b'[') => scan.open(b']', Due::FirstItem)?,
            (Due::FirstItem, b']') | (Due::FirstName, b'}') => scan.close(),
            (Due::Next, _) if scan.closing.last() == Some(&byte) => scan.close(),
            (Due::Next, b',') if !scan.closing.is_empty() => scan.comma(),
            (Due::FirstName | Due::Name, b'"') => scan.name()?,
            (Due::Value | Due::FirstItem, b'"') => scan.string()?,
            (Due::Value | Due::FirstItem, b'-' | b'0'..=b'9') => scan.number()?,
            (Due::Value | Due::FirstItem, b'a'..=b'z') => scan.word()?,
            _ => return Err(scan.fault(scan.at, scan.expected(due))),
        };
    }
    match due {
        Due::Next if scan.closing.is_empty() => Ok(scan.respelled()),
        _ => Err(scan.fault(scan.at, scan.expected(due))),
    }
}

/// A number as the text had it, given as [`strict`] spells it, but for the `+` of an exponent.
pub fn as_written(number: &str) -> &str {
    match number.strip_suffix(FLOAT_MARK) {
        Some(digits) if is_wide(digits) => digits,
        _ => number,
    }
}

/// Whether a valid number is an integer outside the range of `i64`.
pub fn is_wide(number: &str) -> bool {
    let integer = number.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit());
    integer && number.parse::<i64>().is_err()
}

/// The UTF-16 unit that a `\uXXXX` at `at` stands for.
pub fn unit(text: &str, at: usize) -> Option<u16> {
    let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
    // `from_str_radix` alone would take a sign.
    let all_hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u16::from_str_radix(digits, 16).ok().filter(|_| all_hexadecimal)
}

struct Scan<'t> {
    text: &'t str,
    at: usize,
    /// The closing brackets that are due, outermost first.
    closing: Vec<u8>,
    /// The text before `copied`, respelled.
    respelled: String,
    /// 0 as long as nothing had to be respelled.
    copied: usize,
}

impl<'t> Scan<'t> {
    fn new(text: &'t str) -> Scan<'t> {
        Scan { text, at: 0, closing: Vec::new(), respelled: String::new(), copied: 0 }
    }

    fn fault(&self, at: usize, what: &'static str) -> Fault {
        let marked = at == 0 && self.text.starts_with('\u{feff}');
        Fault {
            at,
            what: if marked { "the text begins with a byte order mark; it must not" } else { what },
        }
    }

    fn expected(&self, due: Due) -> &'static str {
        match (due, self.closing.last()) {
            (Due::Value, _) => "expected a value",
            (Due::FirstItem, _) => "expected a value or ']'",
            (Due::FirstName, _) => "expected a name in double quotes or '}'",
            (Due::Name, _) => "expected a name in double quotes after the comma",
            (Due::Next, Some(b'}')) => "expected ',' or '}'",
            (Due::Next, Some(_)) => "expected ',' or ']'",
            (Due::Next, None) => "nothing may follow the value",
        }
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    fn peek(&self) -> Option<u8> {
        self.byte(self.at)
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn open(&mut self, closing: u8, then: Due) -> Result<Due, Fault> {
        if self.closing.len() == JSON_DEPTH_MAX {
            return Err(self.fault(self.at, "nested too deeply"));
        }
        self.closing.push(closing);
        self.at += 1;
        Ok(then)
    }

    fn close(&mut self) -> Due {
        self.closing.pop();
        self.at += 1;
        Due::Next
    }

    fn comma(&mut self) -> Due {
        self.at += 1;
        match self.closing.last() {
            Some(b'}') => Due::Name,
            _ => Due::Value,
        }
    }

    fn name(&mut self) -> Result<Due, Fault> {
        self.string()?;
        self.skip_space();
        match self.peek() {
            Some(b':') => {
                self.at += 1;
                Ok(Due::Value)
            }
            _ => Err(self.fault(self.at, "expected ':'")),
        }
    }

    fn word(&mut self) -> Result<Due, Fault> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        match ["true", "false", "null"].into_iter().find(|word| rest.starts_with(word)) {
            Some(word) => {
                self.at += word.len();
                Ok(Due::Next)
            }
            None => Err(self.fault(self.at, "expected a value")),
        }
    }

    fn string(&mut self) -> Result<Due, Fault> {
        let start = self.at;
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Due::Next);
                }
                Some(b'\\') => self.escape()?,
                Some(..b' ') => {
                    let what = "control characters in a string must be escaped";
                    return Err(self.fault(self.at, what));
                }
                Some(_) => self.at += 1,
                None => return Err(self.fault(start, "this string has no closing quote")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        let known = b"\"\\/bfnrt";
        match self.byte(self.at + 1) {
            Some(b'u') => {}
            Some(letter) if known.contains(&letter) => {
                self.at += 2;
                return Ok(());
            }
            _ => return Err(self.fault(self.at, "there is no such escape")),
        }
        match (unit(self.text, self.at), unit(self.text, self.at + 6)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => self.at += 12,
            (Some(0xD800..=0xDFFF), _) => {
                return Err(self.fault(self.at, "half of a surrogate pair is no character"));
            }
            (Some(_), _) => self.at += 6,
            (None, _) => {
                return Err(self.fault(self.at, "expected four hexadecimal digits after \\u"));
            }
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Due, Fault> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let zero = self.peek() == Some(b'0');
        if self.digits()? > 1 && zero {
            return Err(self.fault(start, "a number must not begin with 0"));
        }
        let whole_end = self.at;
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            match self.peek() {
                Some(b'+') => self.respell(self.at, 1, ""),
                Some(b'-') => self.at += 1,
                _ => {}
            }
            self.digits()?;
        }
        let number = self.text.get(start..self.at).unwrap_or_default();
        // Nothing shorter is too large, unless it has an exponent.
        let suspect = self.at > whole_end || number.len() > 300;
        if suspect && number.parse::<f64>().is_ok_and(f64::is_infinite) {
            return Err(self.fault(start, "this number is too large"));
        }
        if is_wide(number) {
            self.respell(self.at, 0, FLOAT_MARK);
        }
        Ok(Due::Next)
    }

    /// Passes one digit or more, and says how many.
    fn digits(&mut self) -> Result<usize, Fault> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        match self.at - start {
            0 => Err(self.fault(start, "expected a digit")),
            count => Ok(count),
        }
    }

    /// Passes `skipped` bytes at `at` and spells them as `spelling`.
    fn respell(&mut self, at: usize, skipped: usize, spelling: &str) {
        self.respelled.push_str(self.text.get(self.copied..at).unwrap_or_default());
        self.respelled.push_str(spelling);
        self.copied = at + skipped;
        self.at = self.copied;
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
