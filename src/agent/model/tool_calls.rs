//! Tool calls, assembled from the fragments of servers that number and name them in different ways.
//! Pure.

use nanoserde::DeJson;

use crate::json::{self, DecodeError, Joiner, Lenient, Members, Raw, TokenKind, Tokenizer};
use crate::limits;
use crate::session::replay::ToolCall;

use super::fault::CompletionError;

/// A part of a call, or a whole one.
#[derive(DeJson)]
pub struct Fragment {
    index: Option<Lenient>,
    id: Option<Lenient>,
    function: Option<Function>,
    /// The members that are unknown here, each after a comma. Some servers need them back.
    #[nserde(skip)]
    extra: String,
}

/// The members of a call that are understood.
const KNOWN_MEMBERS: [&str; 4] = ["index", "id", "type", "function"];

impl Fragment {
    /// Decodes a fragment.
    pub fn of(raw: &Raw) -> Result<Fragment, DecodeError> {
        let mut fragment: Fragment = json::parse(raw.as_str().as_bytes())?;
        let Members(members) = json::parse(raw.as_str().as_bytes())?;
        for (name, value) in members {
            if !KNOWN_MEMBERS.contains(&name.as_str()) {
                fragment.extra.push_str(&json::member(&name, &value));
            }
        }
        Ok(fragment)
    }
}

#[derive(DeJson)]
struct Function {
    name: Option<Lenient>,
    arguments: Option<Lenient>,
}

/// The calls of a completion that is still arriving.
#[derive(Default)]
pub struct ToolCallAssembler {
    calls: Vec<PartialCall>,
    /// The call that the last fragment belonged to.
    current: usize,
}

#[derive(Default)]
struct PartialCall {
    index: Option<String>,
    /// The server's.
    id: Option<String>,
    name: String,
    arguments: String,
    extra: String,
    nesting: Nesting,
    joiner: Joiner,
}

/// A check from the brackets and quotes alone whether a JSON value that arrives in pieces is
/// complete. Reads each byte once, however many pieces there are.
#[derive(Default)]
struct Nesting {
    tokenizer: Tokenizer,
    depth: usize,
    /// Something was opened, and everything is closed again.
    complete: bool,
}

impl Nesting {
    /// Reads what has been added to `arguments`.
    fn read(&mut self, arguments: &str) {
        while let Some(token) = self.tokenizer.next(arguments) {
            match token.kind {
                TokenKind::Open => self.depth += 1,
                TokenKind::Close => self.depth = self.depth.saturating_sub(1),
                TokenKind::String => {}
                _ => continue,
            }
            self.complete = self.depth == 0;
        }
        self.complete &= !self.tokenizer.is_in_string();
    }
}

/// A fragment with its fields as plain text.
struct Part {
    index: Option<String>,
    id: Option<String>,
    name: String,
    arguments: String,
    /// The arguments are a JSON value, not a part of a text.
    is_value: bool,
    extra: String,
}

impl Part {
    fn of(fragment: Fragment, has_surrogates: bool) -> Part {
        let whole = |text: Lenient| Joiner::whole(text.into_text(), has_surrogates);
        let (name, arguments) = fragment.function.map_or((None, None), |f| (f.name, f.arguments));
        let is_value = matches!(arguments, Some(Lenient::Other(_)));
        let text = |text| if is_value { whole(text) } else { text.into_text() };
        Part {
            index: fragment.index.map(Lenient::into_text),
            id: fragment.id.map(whole).filter(|id| !id.is_empty()),
            name: name.map(whole).unwrap_or_default(),
            is_value,
            arguments: arguments.map(text).unwrap_or_default(),
            extra: fragment.extra,
        }
    }
}

impl ToolCallAssembler {
    /// Adds a whole call, or a fragment that may belong to an earlier one. It may contain lone
    /// surrogates. Returns the length of its text in bytes.
    pub fn add(
        &mut self,
        fragment: Fragment,
        is_whole: bool,
        has_surrogates: bool,
    ) -> Result<usize, CompletionError> {
        let part = Part::of(fragment, has_surrogates);
        let at = if is_whole { self.calls.len() } else { self.position_of(&part) };
        if at >= limits::MODEL_CALLS_MAX {
            let what = "more tool calls than an answer may have";
            return Err(CompletionError::TooLarge(what));
        }
        if at >= self.calls.len() {
            self.calls.push(PartialCall { index: part.index.clone(), ..PartialCall::default() });
        }
        self.current = at;
        let bytes =
            part.name.len() + part.arguments.len() + part.id.as_ref().map_or(0, String::len);
        match self.calls.get_mut(at) {
            // Some servers end with the whole of a call that they sent in fragments before.
            Some(call) if call.is_repeated_by(&part) => {}
            Some(call) => call.append(part, has_surrogates),
            None => {}
        }
        Ok(bytes)
    }

    /// Returns whether a call has begun.
    pub fn has_calls(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Returns the calls, each with a unique id and with arguments.
    pub fn finish(mut self) -> Vec<ToolCall> {
        for call in &mut self.calls {
            call.arguments.push_str(call.joiner.end());
        }
        let mut finished: Vec<ToolCall> = Vec::new();
        let given: Vec<String> = self.calls.iter().filter_map(|call| call.id.clone()).collect();
        let is_named =
            |call: &PartialCall| !call.name.is_empty() || !call.arguments.trim().is_empty();
        for (number, call) in (0..).zip(self.calls.into_iter().filter(is_named)) {
            let is_used = |id: &String| finished.iter().any(|other| other.id == *id);
            let id = call.id.filter(|id| !is_used(id)).unwrap_or_else(|| new_id(number, &given));
            let blank = call.arguments.trim().is_empty();
            let arguments = if blank { "{}".to_owned() } else { call.arguments };
            finished.push(ToolCall { id, name: call.name, arguments, extra: call.extra });
        }
        finished
    }

    /// Returns the position of the call that a part belongs to: one past the last for a new call.
    fn position_of(&self, part: &Part) -> usize {
        let new = self.calls.len();
        let has_id = |call: &PartialCall| call.id.is_some() && call.id == part.id;
        let has_both = |call: &PartialCall| has_id(call) && call.index == part.index;
        let same_id = self.calls.iter().rposition(has_both);
        let same_id = same_id.or_else(|| self.calls.iter().rposition(has_id));
        if let Some((at, call)) = same_id.and_then(|at| Some((at, self.calls.get(at)?))) {
            // Some servers give every call the same id.
            let is_other = call.has_other_index(part) || call.precedes(part);
            return if is_other && !call.is_repeated_by(part) { new } else { at };
        }
        let at = match &part.index {
            Some(_) => self.calls.iter().rposition(|call| call.index == part.index),
            None => (new > 0).then_some(self.current),
        };
        let Some((at, call)) = at.and_then(|at| Some((at, self.calls.get(at)?))) else {
            return new;
        };
        // The id may come later than the call, but not in place of another id.
        let other_id = part.id.is_some() && call.id.is_some();
        if other_id || call.precedes(part) { new } else { at }
    }
}

impl PartialCall {
    fn append(&mut self, part: Part, has_surrogates: bool) {
        self.id = self.id.take().or(part.id);
        if self.name.is_empty() {
            self.name = part.name;
        } else if self.name != part.name && self.arguments.is_empty() {
            self.name.push_str(&part.name);
        }
        if part.is_value {
            self.nesting = Nesting::default();
            self.arguments = part.arguments;
        } else {
            self.arguments.push_str(&self.joiner.join(part.arguments, has_surrogates));
        }
        // Some servers repeat them with each fragment.
        if !self.extra.contains(&part.extra) {
            self.extra.push_str(&part.extra);
        }
        self.nesting.read(&self.arguments);
    }

    /// Returns whether a part with the same id begins another call, with a name and an index.
    fn has_other_index(&self, part: &Part) -> bool {
        self.index.is_some()
            && part.index.is_some()
            && self.index != part.index
            && !part.name.is_empty()
    }

    /// Returns whether a part is this whole call once more.
    fn is_repeated_by(&self, part: &Part) -> bool {
        self.id.is_some()
            && self.id == part.id
            && self.name == part.name
            && !self.has_other_index(part)
            && self.precedes(part)
            && Raw::parse(&self.arguments).is_ok_and(|own| Raw::parse(&part.arguments) == Ok(own))
    }

    /// Returns whether a part begins the next call although its index and its id do not say so. A
    /// server that sends neither sends whole calls: with a name and arguments, after complete
    /// arguments.
    fn precedes(&self, part: &Part) -> bool {
        let whole = !part.name.is_empty() && !part.arguments.trim().is_empty();
        whole && !self.name.is_empty() && self.nesting.complete
    }
}

/// Returns an id for a call that has none.
fn new_id(number: usize, given: &[String]) -> String {
    let id = |number: usize| format!("call_{number}");
    (number..).map(id).find(|id| !given.contains(id)).unwrap_or_else(|| id(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    /// Assembles fragments; gives each call as `id name arguments`.
    fn calls(fragments: &[&str]) -> Vec<String> {
        let mut calls = ToolCallAssembler::default();
        for text in fragments {
            calls.add(json::parse(text.as_bytes()).unwrap(), false, false).unwrap();
        }
        let shown = |call: ToolCall| format!("{} {} {}", call.id, call.name, call.arguments);
        calls.finish().into_iter().map(shown).collect()
    }

    #[test]
    fn fragments_are_joined_by_index() {
        let found = calls(&[
            r#"{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}"#,
            r#"{"index":1,"id":"b","function":{"name":"g","arguments":"{\"y\""}}"#,
            r#"{"index":0,"function":{"arguments":"{\"x\": "}}"#,
            r#"{"index":1,"function":{"arguments":":2}"}}"#,
            r#"{"index":0,"id":null,"function":{"name":null,"arguments":"\"\ta\"}"}}"#,
        ]);
        assert_eq!(found, ["a f {\"x\": \"\ta\"}", "b g {\"y\":2}"]);
    }

    #[test]
    fn a_new_id_with_a_used_index_begins_a_new_call() {
        let found = calls(&[
            r#"{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}}"#,
            r#"{"index":0,"id":"b","function":{"name":"f","arguments":"{\"x\":2"}}"#,
            r#"{"index":0,"function":{"arguments":"}"}}"#,
            r#"{"index":0,"id":"a","function":{"arguments":" "}}"#,
        ]);
        assert_eq!(found, ["a f {\"x\":1} ", "b f {\"x\":2}"]);
    }

    #[test]
    fn calls_without_ids_and_indexes_are_kept_apart() {
        let whole = r#"{"function":{"name":"f","arguments":"{}"}}"#;
        assert_eq!(calls(&[whole, whole]), ["call_0 f {}", "call_1 f {}"]);
        let zero = r#"{"index":0,"function":{"name":"f","arguments":{"x": [1, 2.50]}}}"#;
        let found = calls(&[zero, zero]);
        assert_eq!(found, ["call_0 f {\"x\":[1,2.50]}", "call_1 f {\"x\":[1,2.50]}"]);
        let found = calls(&[
            r#"{"id":"","function":{"name":"f"}}"#,
            r#"{"function":{"arguments":"{\"x\""}}"#,
            r#"{"function":{"name":"f","arguments":":1}"}}"#,
        ]);
        assert_eq!(found, ["call_0 f {\"x\":1}"]);
        let found = calls(&[
            r#"{"function":{"name":"f"}}"#,
            r#"{"id":"call_0","index":7,"function":{"name":"g"}}"#,
        ]);
        assert_eq!(found, ["call_1 f {}", "call_0 g {}"]);
    }

    #[test]
    fn two_calls_with_one_id_stay_two() {
        // With indexes of their own, in fragments.
        let found = calls(&[
            r#"{"index":0,"id":"c","function":{"name":"f","arguments":""}}"#,
            r#"{"index":0,"function":{"arguments":"{\"x\":1}"}}"#,
            r#"{"index":1,"id":"c","function":{"name":"f","arguments":"{\"x\""}}"#,
            r#"{"index":1,"id":"c","function":{"arguments":":2}"}}"#,
        ]);
        assert_eq!(found, ["c f {\"x\":1}", "call_1 f {\"x\":2}"]);
        // Whole, with one index.
        let found = calls(&[
            r#"{"index":0,"id":"c","function":{"name":"f","arguments":"{\"x\":1}"}}"#,
            r#"{"index":0,"id":"c","function":{"name":"f","arguments":"{\"x\":2}"}}"#,
        ]);
        assert_eq!(found, ["c f {\"x\":1}", "call_1 f {\"x\":2}"]);
    }

    #[test]
    fn a_call_that_is_repeated_whole_at_the_end_is_one() {
        let found = calls(&[
            r#"{"index":0,"id":"c","function":{"name":"f","arguments":""}}"#,
            r#"{"index":0,"function":{"arguments":"{\"x\": "}}"#,
            r#"{"index":0,"function":{"arguments":"1}"}}"#,
            r#"{"index":0,"id":"c","function":{"name":"f","arguments":"{\"x\":1}"}}"#,
        ]);
        assert_eq!(found, ["c f {\"x\": 1}"]);
    }

    #[test]
    fn unknown_members_of_a_call_are_kept() {
        let raw = r#"{"id":"a","type":"function","extra_content":{"google": {"s":"x"}},
            "function":{"name":"f","arguments":"{}"}}"#;
        let more = r#"{"extra_content":{"google":{"s":"x"}},"function":{"arguments":" "}}"#;
        let mut calls = ToolCallAssembler::default();
        for raw in [raw, more] {
            let fragment = Fragment::of(&Raw::parse(raw).unwrap()).unwrap();
            calls.add(fragment, false, false).unwrap();
        }
        let extra = calls.finish().pop().unwrap().extra;
        assert_eq!(extra, r#","extra_content":{"google":{"s":"x"}}"#);
    }

    #[test]
    fn a_name_may_be_repeated_with_every_fragment_of_long_arguments() {
        // Each ends like a complete value, and is none.
        let part = r#"{"function":{"name":"f","arguments":"}"}}"#;
        let mut parts = vec![r#"{"function":{"name":"f","arguments":"{\"x\":\"\\\""}}"#];
        parts.extend(std::iter::repeat_n(part, 50_000));
        parts.push(r#"{"function":{"name":"f","arguments":"\"}"}}"#);
        let wanted = format!("call_0 f {{\"x\":\"\\\"{}\"}}", "}".repeat(50_000));
        assert_eq!(calls(&parts), [wanted]);
    }

    #[test]
    fn arguments_with_closed_brackets_are_complete_even_if_they_are_not_json() {
        let part = r#"{"function":{"name":"f","arguments":"{x: [1]} "}}"#;
        assert_eq!(calls(&[part, part]), ["call_0 f {x: [1]} ", "call_1 f {x: [1]} "]);
        let part = r#"{"function":{"name":"f","arguments":"\"{\\\"x\\\":1}\""}}"#;
        assert_eq!(calls(&[part, part]).len(), 2);
    }

    #[test]
    fn an_id_may_come_late_and_a_name_in_pieces_or_twice() {
        let found = calls(&[
            r#"{"index":0,"function":{"name":"read_"}}"#,
            r#"{"index":0,"id":"a","function":{"name":"file"}}"#,
            r#"{"index":0,"function":{"name":"read_file","arguments":"{"}}"#,
            r#"{"index":0,"function":{"name":"read_file","arguments":"}"}}"#,
        ]);
        assert_eq!(found, ["a read_file {}"]);
        assert!(calls(&[r#"{"index":0}"#, r#"{"index":null,"function":null}"#]).is_empty());
    }

    #[test]
    fn whole_calls_with_equal_ids_stay_apart() {
        let mut calls = ToolCallAssembler::default();
        let same = r#"{"id":"a","function":{"name":"f","arguments":"{"}}"#;
        for _ in 0..2 {
            calls.add(json::parse(same.as_bytes()).unwrap(), true, false).unwrap();
        }
        let ids: Vec<String> = calls.finish().into_iter().map(|call| call.id).collect();
        assert_eq!(ids, ["a", "call_1"]);
    }

    #[test]
    fn the_number_of_calls_is_limited() {
        let mut calls = ToolCallAssembler::default();
        let mut add = |index: usize| {
            let text = format!("{{\"index\":{index},\"function\":{{\"name\":\"f\"}}}}");
            calls.add(json::parse(text.as_bytes()).unwrap(), false, false)
        };
        assert!((0..limits::MODEL_CALLS_MAX).all(|index| add(index).is_ok()));
        assert!(add(0).is_ok());
        assert!(add(limits::MODEL_CALLS_MAX).is_err());
    }
}
