//! Settings put over settings: a deserializer that reads one value from two, what is stated and what lies below it.
//!
//! It follows what the types themselves ask for, so that it knows every field of a recipe, those of tomorrow too: the
//! keys of a struct come from both values, a choice among several (a length in epochs or in steps) is replaced where
//! another is stated, and all else is taken from what is stated.

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor,
};
use serde_json::{Map, Value};
use std::fmt;

/// What unsets an optional setting: TOML has no null.
pub(super) const NONE: &str = "none";

/// What is wrong with a setting.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wrong {
    /// The setting, as a dotted path. Empty where it is the whole.
    pub key: String,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    /// A key of a table that does not have it, and those that it has.
    Unknown { key: String, known: &'static [&'static str] },
    /// A key that must be stated.
    Missing(&'static str),
    /// A value that does not fit, in words.
    Value(String),
    /// None, or several, of the kinds that there are to choose from, in words.
    Choice(String),
}

impl Wrong {
    /// This, at a place if it has none yet: the innermost place is the one to name.
    fn at(mut self, path: &str) -> Self {
        if self.key.is_empty() {
            self.key = path.into();
        }
        self
    }
}

impl std::error::Error for Wrong {}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dot, place) = (if self.key.is_empty() { "" } else { "." }, &self.key);
        match &self.what {
            What::Unknown { key, known } => {
                let nearest = nearest(key, known).map(|near| format!("did you mean `{place}{dot}{near}`? "));
                let (nearest, all) = (nearest.unwrap_or_default(), listed(known));
                write!(f, "there is no setting `{place}{dot}{key}`: {nearest}There are {all}")
            }
            What::Missing(key) => write!(f, "`{place}{dot}{key}` is missing"),
            What::Value(what) | What::Choice(what) if place.is_empty() => f.write_str(what),
            What::Value(what) | What::Choice(what) => write!(f, "`{place}`: {what}"),
        }
    }
}

/// The name that was perhaps meant by `name`.
pub(super) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    /// Two thirds of the letters in their order, or the same beginning.
    const ALIKE: f64 = 0.7;
    let alike = |other: &&str| strsim::jaro_winkler(name, other);
    let best = known.iter().copied().max_by(|a, b| alike(a).total_cmp(&alike(b)))?;
    (alike(&best) > ALIKE).then_some(best)
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// A type in words, where serde names Rust's.
fn in_words(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "f32" | "f64" => "a number".into(),
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0 on".into(),
        "i32" | "i64" | "isize" => "a whole number".into(),
        "a boolean" => "true or false".into(),
        _ if text.contains("struct ") || text.contains("enum ") => "a table of settings".into(),
        _ => text,
    }
}

impl Error for Wrong {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self { key: String::new(), what: What::Value(what.to_string()) }
    }

    fn invalid_type(found: Unexpected, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Map => "a table".into(),
            Unexpected::Seq => "a list".into(),
            Unexpected::Float(number) => number.to_string(),
            Unexpected::Unsigned(number) => number.to_string(),
            Unexpected::Signed(number) => number.to_string(),
            Unexpected::Bool(value) => value.to_string(),
            found => found.to_string(),
        };
        Self::custom(format!("expected {}, got {found}", in_words(expected)))
    }

    fn invalid_value(found: Unexpected, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Self { key: String::new(), what: What::Unknown { key: key.into(), known } }
    }

    fn unknown_variant(name: &str, known: &'static [&'static str]) -> Self {
        let nearest = nearest(name, known).map(|near| format!(": did you mean `{near}`?")).unwrap_or_default();
        Self::custom(format!("expected one of {}, got `{name}`{nearest}", listed(known)))
    }

    fn missing_field(key: &'static str) -> Self {
        Self { key: String::new(), what: What::Missing(key) }
    }
}

/// What is stated, over what lies below.
#[derive(Debug, Clone)]
pub(super) struct Over<'a> {
    own: &'a Value,
    below: Option<&'a Value>,
    path: String,
}

impl<'a> Over<'a> {
    pub fn new(own: &'a Value, below: Option<&'a Value>) -> Self {
        Self { own, below, path: String::new() }
    }

    fn part(&self, key: &str, own: &'a Value, below: Option<&'a Value>) -> Self {
        let dot = if self.path.is_empty() || key.starts_with('[') { "" } else { "." };
        Self { own, below, path: format!("{}{dot}{key}", self.path) }
    }

    /// The keys of both, with their values.
    fn entries(&self, own: &'a Map<String, Value>) -> Vec<(&'a str, Over<'a>)> {
        let below = self.below.and_then(Value::as_object);
        let stated = own
            .iter()
            .map(|(key, value)| (key.as_str(), self.part(key, value, below.and_then(|below| below.get(key)))));
        let others = below.into_iter().flatten().filter(|(key, _)| !own.contains_key(*key));
        stated.chain(others.map(|(key, value)| (key.as_str(), self.part(key, value, None)))).collect()
    }
}

impl<'de> Deserializer<'de> for Over<'de> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        let value = match self.own {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(number), ..) => visitor.visit_u64(number),
                (_, Some(number), _) => visitor.visit_i64(number),
                (.., number) => visitor.visit_f64(number.unwrap_or(f64::NAN)),
            },
            Value::Array(values) => {
                let parts = values.iter().enumerate().map(|(i, value)| self.part(&format!("[{i}]"), value, None));
                visitor.visit_seq(Parts(parts.collect::<Vec<_>>().into_iter()))
            }
            Value::Object(own) => {
                let entries = self.entries(own).into_iter();
                visitor.visit_map(Entries { entries, value: None })
            }
        };
        value.map_err(|wrong| wrong.at(&self.path))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        // Whether or not the type denies them: a key that is passed over is a setting that does nothing.
        let unknown = self.own.as_object().and_then(|own| own.keys().find(|key| !fields.contains(&key.as_str())));
        match unknown {
            Some(key) => Err(Wrong::unknown_field(key, fields).at(&self.path)),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.own {
            Value::Null => visitor.visit_none(),
            Value::String(text) if text == NONE => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        let path = self.path.clone();
        let (name, own) = match self.own {
            Value::String(name) => (name.as_str(), None),
            Value::Object(own) if own.len() == 1 => {
                own.iter().map(|(name, value)| (name.as_str(), Some(value))).next().unwrap_or_default()
            }
            _ => return Err(Wrong { key: path, what: What::Choice(format!("expected one of {}", listed(variants))) }),
        };
        let below = self.below.and_then(Value::as_object).and_then(|below| below.get(name));
        visitor.visit_enum(Variant { name, of: self, own, below }).map_err(|wrong| wrong.at(&path))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

struct Parts<'a>(std::vec::IntoIter<Over<'a>>);

impl<'de> SeqAccess<'de> for Parts<'de> {
    type Error = Wrong;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Wrong> {
        self.0.next().map(|part| seed.deserialize(part)).transpose()
    }
}

struct Entries<'a> {
    entries: std::vec::IntoIter<(&'a str, Over<'a>)>,
    value: Option<Over<'a>>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Wrong;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Wrong> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some(value);
        let key: StrDeserializer<Wrong> = key.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Wrong> {
        let value = self.value.take().ok_or_else(|| Wrong::custom("a value without its key"))?;
        let path = value.path.clone();
        seed.deserialize(value).map_err(|wrong| wrong.at(&path))
    }
}

/// One of several kinds: its name, and what is stated of it and lies below, where that is of the same kind.
struct Variant<'a> {
    name: &'a str,
    of: Over<'a>,
    own: Option<&'a Value>,
    below: Option<&'a Value>,
}

impl<'a> Variant<'a> {
    /// What the kind holds.
    fn content(&self) -> Result<Over<'a>, Wrong> {
        match self.own.or(self.below) {
            Some(value) => Ok(self.of.part(self.name, value, self.below)),
            None => Err(Wrong::custom(format!("`{}` alone says too little: it takes a value", self.name))),
        }
    }
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Wrong;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Wrong> {
        let name: StrDeserializer<Wrong> = self.name.into_deserializer();
        let kind = seed.deserialize(name).map_err(|wrong| match wrong.what {
            What::Value(what) => Wrong { what: What::Choice(what), ..wrong },
            what => Wrong { what, ..wrong },
        });
        Ok((kind?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'de> {
    type Error = Wrong;

    fn unit_variant(self) -> Result<(), Wrong> {
        match self.own {
            None => Ok(()),
            Some(_) => Err(Wrong::custom(format!("`{}` takes nothing", self.name))),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Wrong> {
        seed.deserialize(self.content()?)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Wrong> {
        self.content()?.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Wrong> {
        self.content()?.deserialize_struct("", fields, visitor)
    }
}
