//! The input of an operation: its schema, and the check of an input against it.

use crate::json::{self, Lenient, Members, Object, Raw};

/// A member of an input.
pub struct InputField {
    name: &'static str,
    /// Another name, which some clients use.
    alias: Option<&'static str>,
    values: Values,
    is_required: bool,
    description: &'static str,
}

/// The values that a member may have.
enum Values {
    Any,
    Text,
    OneOf(&'static [&'static str]),
    /// A whole number from 1.
    UpTo(usize),
}

impl InputField {
    const fn new(name: &'static str, values: Values, description: &'static str) -> InputField {
        InputField { name, alias: None, values, is_required: false, description }
    }

    /// Returns a member of any type.
    pub const fn any(name: &'static str, description: &'static str) -> InputField {
        InputField::new(name, Values::Any, description)
    }

    /// Returns a member that is a text.
    pub const fn text(name: &'static str, description: &'static str) -> InputField {
        InputField::new(name, Values::Text, description)
    }

    /// Returns a member that is one of these words.
    pub const fn one_of(
        name: &'static str,
        words: &'static [&'static str],
        description: &'static str,
    ) -> InputField {
        InputField::new(name, Values::OneOf(words), description)
    }

    /// Returns a member that is a number from 1 to `max`.
    pub const fn up_to(name: &'static str, max: usize, description: &'static str) -> InputField {
        InputField::new(name, Values::UpTo(max), description)
    }

    /// Makes it required.
    pub const fn required(self) -> InputField {
        InputField { is_required: true, ..self }
    }

    /// Adds another name.
    pub const fn or(self, alias: &'static str) -> InputField {
        InputField { alias: Some(alias), ..self }
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.name].into_iter().chain(self.alias)
    }

    /// Returns its part of the schema.
    fn schema(&self) -> Raw {
        let description = self.description.to_owned();
        let (kind, limit): (&str, Option<(&str, Raw)>) = match &self.values {
            Values::Any | Values::Text => ("string", None),
            Values::OneOf(words) => ("string", Some(("enum", Raw::of(&owned(words))))),
            Values::UpTo(max) => ("integer", Some(("maximum", Raw::of(max)))),
        };
        let kind = kind.to_owned();
        let mut members: Vec<json::Field<'_>> = vec![("description", &description)];
        if !matches!(self.values, Values::Any) {
            members.insert(0, ("type", &kind));
        }
        if let Values::UpTo(_) = self.values {
            members.push(("minimum", &1_u64));
        }
        members.extend(limit.as_ref().map(|(name, limit)| -> json::Field<'_> { (name, limit) }));
        Raw::of(&Object(&members))
    }

    /// Returns what is wrong with a value, after "input.name is".
    fn needs(&self, value: &Lenient) -> Option<String> {
        let is_word =
            |words: &[&str]| matches!(value, Lenient::Text(text) if words.contains(&text.as_str()));
        let (fits, needed) = match &self.values {
            Values::Any => (true, String::new()),
            Values::Text => (matches!(value, Lenient::Text(_)), "a text".to_owned()),
            Values::OneOf(words) => (is_word(words), words.join(" or ")),
            Values::UpTo(max) => {
                let number = number(value);
                let fits = number.is_some_and(|number| (1..=*max).contains(&number));
                (fits, format!("a whole number from 1 to {max}"))
            }
        };
        (!fits).then_some(needed)
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn number(value: &Lenient) -> Option<usize> {
    match value {
        Lenient::Other(raw) => raw.as_str().parse().ok(),
        Lenient::Text(_) => None,
    }
}

/// Returns the JSON Schema of an input with these members. Others are ignored.
pub fn schema(fields: &[InputField]) -> Raw {
    let mut properties: Vec<(&str, Raw)> = Vec::new();
    let (mut required, mut either) = (Vec::new(), Vec::new());
    for field in fields {
        properties.extend(field.names().map(|name| (name, field.schema())));
        match field.alias {
            Some(alias) if field.is_required => {
                let needs = |name| Raw::of(&Object(&[("required", &owned(&[name]))]));
                either.extend([needs(field.name), needs(alias)]);
            }
            None if field.is_required => required.push(field.name.to_owned()),
            _ => {}
        }
    }
    let members: Vec<json::Field<'_>> =
        properties.iter().map(|(name, schema)| -> json::Field<'_> { (name, schema) }).collect();
    let (kind, properties) = ("object".to_owned(), Object(&members));
    let mut schema: Vec<json::Field<'_>> = vec![("type", &kind), ("properties", &properties)];
    if !required.is_empty() {
        schema.push(("required", &required));
    }
    if !either.is_empty() {
        schema.push(("anyOf", &either));
    }
    Raw::of(&Object(&schema))
}

/// An input that fits its schema.
pub struct Input(Vec<(&'static str, Lenient)>);

impl Input {
    /// Checks an input. Fails with what is wrong with it.
    pub fn check(fields: &[InputField], members: &Members) -> Result<Input, String> {
        let mut checked = Vec::new();
        for field in fields {
            let given = members.0.iter().rev().find(|(name, value)| {
                let is_null = matches!(value, Lenient::Other(raw) if raw.as_str() == "null");
                field.names().any(|known| known == name) && !is_null
            });
            match given {
                Some((name, value)) => {
                    if let Some(needed) = field.needs(value) {
                        return Err(format!("input.{name} is {needed}"));
                    }
                    checked.push((field.name, value.clone()));
                }
                None if field.is_required => {
                    return Err(format!("input.{} is missing", field.name));
                }
                None => {}
            }
        }
        Ok(Input(checked))
    }

    /// Returns a member, if it was given.
    pub fn value(&self, name: &str) -> Option<&Lenient> {
        self.0.iter().find(|(given, _)| *given == name).map(|(_, value)| value)
    }

    /// Returns a text, if it was given.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.value(name)? {
            Lenient::Text(text) => Some(text),
            Lenient::Other(_) => None,
        }
    }

    /// Returns a number, if it was given.
    pub fn number(&self, name: &str) -> Option<usize> {
        self.value(name).and_then(number)
    }
}
