//! Tool calls, put together from fragments of servers that do not agree on how to name them. Pure.

use nanoserde::DeJson;

use crate::json::{Joiner, Lenient};
use crate::limits;
use crate::session::rules::ToolCall;

use super::reply::Wrong;

/// A part of a call, or a whole one.
#[derive(DeJson)]
pub struct Fragment {
    index: Option<Lenient>,
    id: Option<Lenient>,
    function: Option<Function>,
}

#[derive(DeJson)]
struct Function {
    name: Option<Lenient>,
    arguments: Option<Lenient>,
}

/// The calls of an answer so far.
#[derive(Default)]
pub struct Calls {
    filling: Vec<Filling>,
    /// The call that the last fragment belonged to.
    current: usize,
}

#[derive(Default)]
struct Filling {
    index: Option<String>,
    /// The server's.
    id: Option<String>,
    name: String,
    arguments: String,
    nesting: Nesting,
    seam: Joiner,
}

/// Whether a JSON value that comes in pieces has come to its end, told from its brackets and quotes
/// alone: each byte is looked at once, however many pieces there are.
#[derive(Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Something was open, and is not any more.
    whole: bool,
}

impl Nesting {
    fn follow(&mut self, text: &str) {
        for byte in text.bytes() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => continue,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => continue,
            }
            self.whole = self.depth == 0 && !self.in_string;
        }
    }
}

/// A fragment in plain terms.
struct Part {
    index: Option<String>,
    id: Option<String>,
    name: String,
    arguments: String,
    /// The arguments are a value of their own and not a part of a text.
    is_value: bool,
}

impl Part {
    fn of(fragment: Fragment, has_halves: bool) -> Part {
        let whole = |loose: Lenient| Joiner::whole(loose.into_text(), has_halves);
        let function = fragment.function.unwrap_or(Function { name: None, arguments: None });
        let is_value = matches!(function.arguments, Some(Lenient::Other(_)));
        let arguments = if is_value {
            function.arguments.map(whole)
        } else {
            function.arguments.map(Lenient::into_text)
        };
        Part {
            index: fragment.index.map(Lenient::into_text),
            id: fragment.id.map(whole).filter(|id| !id.is_empty()),
            name: function.name.map(whole).unwrap_or_default(),
            is_value,
            arguments: arguments.unwrap_or_default(),
        }
    }
}

impl Calls {
    /// Takes in a fragment, which may have halves of characters in it, and says how many bytes of
    /// text it held.
    pub fn add(&mut self, fragment: Fragment, has_halves: bool) -> Result<usize, Wrong> {
        let part = Part::of(fragment, has_halves);
        let at = self.place(&part);
        self.fill(at, part, has_halves)
    }

    /// Takes in a whole call.
    pub fn add_whole(&mut self, fragment: Fragment, has_halves: bool) -> Result<usize, Wrong> {
        self.fill(self.filling.len(), Part::of(fragment, has_halves), has_halves)
    }

    /// No call has been begun.
    pub fn is_empty(&self) -> bool {
        self.filling.is_empty()
    }

    /// The calls, each with a name of its own and with arguments.
    pub fn finish(mut self) -> Vec<ToolCall> {
        for call in &mut self.filling {
            call.arguments.push_str(call.seam.end());
        }
        let mut calls: Vec<ToolCall> = Vec::new();
        let given: Vec<String> = self.filling.iter().filter_map(|call| call.id.clone()).collect();
        let named = self
            .filling
            .into_iter()
            .filter(|call| !call.name.is_empty() || !call.arguments.trim().is_empty());
        for (number, call) in (0..).zip(named) {
            let taken = |id: &String| calls.iter().any(|other| other.id == *id);
            let id = call.id.filter(|id| !taken(id)).unwrap_or_else(|| fresh(number, &given));
            let blank = call.arguments.trim().is_empty();
            let arguments = if blank { "{}".to_owned() } else { call.arguments };
            calls.push(ToolCall { id, name: call.name, arguments });
        }
        calls
    }

    /// Which call a part belongs to; one behind the last for a new one.
    fn place(&self, part: &Part) -> usize {
        let new = self.filling.len();
        let known = self.filling.iter().rposition(|call| call.id.is_some() && call.id == part.id);
        if let Some(at) = known {
            return at;
        }
        let at = match &part.index {
            Some(_) => self.filling.iter().rposition(|call| call.index == part.index),
            None => (new > 0).then_some(self.current),
        };
        let Some((at, call)) = at.and_then(|at| Some((at, self.filling.get(at)?))) else {
            return new;
        };
        let another = match part.id {
            // The id may come later than the call, but not in place of another id.
            Some(_) => call.id.is_some() || begins_anew(call, part),
            None => begins_anew(call, part),
        };
        if another { new } else { at }
    }

    fn fill(&mut self, at: usize, part: Part, has_halves: bool) -> Result<usize, Wrong> {
        if at >= limits::MODEL_CALLS_MAX {
            return Err(Wrong::TooMuch("more tool calls than an answer may have"));
        }
        if at >= self.filling.len() {
            self.filling.push(Filling { index: part.index.clone(), ..Filling::default() });
        }
        self.current = at;
        let Some(call) = self.filling.get_mut(at) else { return Ok(0) };
        let bytes =
            part.name.len() + part.arguments.len() + part.id.as_ref().map_or(0, String::len);
        if call.id.is_none() {
            call.id = part.id;
        }
        if call.name.is_empty() {
            call.name = part.name;
        } else if call.name != part.name && call.arguments.is_empty() {
            call.name.push_str(&part.name);
        }
        if part.is_value {
            call.nesting = Nesting::default();
            call.nesting.follow(&part.arguments);
            call.arguments = part.arguments;
        } else {
            let joined = call.seam.join(part.arguments, has_halves);
            call.nesting.follow(&joined);
            call.arguments.push_str(&joined);
        }
        Ok(bytes)
    }
}

/// A server that numbers nothing sends whole calls: one that has a name and arguments, behind a
/// call whose arguments are complete, is the next one.
fn begins_anew(call: &Filling, part: &Part) -> bool {
    let whole = !part.name.is_empty() && !part.arguments.trim().is_empty();
    whole && !call.name.is_empty() && call.nesting.whole
}

/// A name for a call that has none.
fn fresh(number: usize, given: &[String]) -> String {
    let id = |number: usize| format!("call_{number}");
    (number..).map(id).find(|id| !given.contains(id)).unwrap_or_else(|| id(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    /// The calls that come of fragments, as `id name arguments`.
    fn calls(fragments: &[&str]) -> Vec<String> {
        let mut calls = Calls::default();
        for text in fragments {
            calls.add(json::parse(text.as_bytes()).unwrap(), false).unwrap();
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
    fn a_new_id_under_a_used_index_is_a_new_call() {
        let found = calls(&[
            r#"{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}}"#,
            r#"{"index":0,"id":"b","function":{"name":"f","arguments":"{\"x\":2"}}"#,
            r#"{"index":0,"function":{"arguments":"}"}}"#,
            r#"{"index":0,"id":"a","function":{"arguments":" "}}"#,
        ]);
        assert_eq!(found, ["a f {\"x\":1} ", "b f {\"x\":2}"]);
    }

    #[test]
    fn calls_without_ids_and_numbers_are_told_apart() {
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
    fn a_name_may_be_repeated_however_long_the_arguments_are() {
        // What ends as a whole value does, and is none.
        let part = r#"{"function":{"name":"f","arguments":"}"}}"#;
        let mut parts = vec![r#"{"function":{"name":"f","arguments":"{\"x\":\"\\\""}}"#];
        parts.extend(std::iter::repeat_n(part, 50_000));
        parts.push(r#"{"function":{"name":"f","arguments":"\"}"}}"#);
        let wanted = format!("call_0 f {{\"x\":\"\\\"{}\"}}", "}".repeat(50_000));
        assert_eq!(calls(&parts), [wanted]);
    }

    #[test]
    fn what_closes_is_whole_even_if_it_is_no_json() {
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
    fn whole_calls_stay_apart_whatever_they_are_called() {
        let mut calls = Calls::default();
        let same = r#"{"id":"a","function":{"name":"f","arguments":"{"}}"#;
        for _ in 0..2 {
            calls.add_whole(json::parse(same.as_bytes()).unwrap(), false).unwrap();
        }
        let ids: Vec<String> = calls.finish().into_iter().map(|call| call.id).collect();
        assert_eq!(ids, ["a", "call_1"]);
    }

    #[test]
    fn calls_are_counted() {
        let mut calls = Calls::default();
        let mut add = |index: usize| {
            let text = format!("{{\"index\":{index},\"function\":{{\"name\":\"f\"}}}}");
            calls.add(json::parse(text.as_bytes()).unwrap(), false)
        };
        assert!((0..limits::MODEL_CALLS_MAX).all(|index| add(index).is_ok()));
        assert!(add(0).is_ok());
        assert!(add(limits::MODEL_CALLS_MAX).is_err());
    }
}
