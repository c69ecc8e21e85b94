//! The walk over a JSON value that applies a [`Rule`] to it.
//!
//! It is a strict visitor over `serde_json`'s own deserializer. It refuses values that consumers'
//! parsers refuse: unpaired surrogates and numbers beyond a 64-bit float. A raw scan accepts both,
//! and one such event would make an entire message unreadable.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// The message to the client about a broken rule: a predicate such as "must be a string".
pub(crate) type Message = Cow<'static, str>;

/// A rule for one JSON value, with a method for each kind of value. By default, each method reports
/// that the value is of the wrong kind. `None` means that the value satisfies the rule.
pub(crate) trait Rule: Sized {
    const MUST_BE: &'static str;

    /// Checks the length of the value's JSON text. Called only if the length is known.
    fn length(_bytes: usize) -> Option<Message> {
        None
    }

    fn scalar(self) -> Option<Message> {
        Some(Self::MUST_BE.into())
    }

    fn null(self) -> Option<Message> {
        self.scalar()
    }

    fn string(self, _text: &str) -> Option<Message> {
        self.scalar()
    }

    fn array<'de, A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<Message>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(self.scalar())
    }

    fn object<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Message>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(self.scalar())
    }
}

/// Applies `rule` to JSON text.
///
/// # Errors
/// If a strict parser refuses the text; [`refusal_message`] says why.
pub(crate) fn check(text: &str, rule: impl Rule) -> Result<Option<Message>, serde_json::Error> {
    Check(rule).deserialize(&mut serde_json::Deserializer::from_str(text))
}

/// Why a strict parser refuses text whose syntax is valid.
pub(crate) fn refusal_message(refusal: &serde_json::Error) -> Message {
    if refusal.to_string().starts_with("number out of range") {
        "must contain no number beyond a 64-bit float".into()
    } else {
        "must contain no unpaired surrogate escape".into()
    }
}

/// Passes a value from serde to a rule.
pub(crate) struct Check<R>(pub R);

impl<'de, R: Rule> DeserializeSeed<'de> for Check<R> {
    type Value = Option<Message>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, R: Rule> Visitor<'de> for Check<R> {
    type Value = Option<Message>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(self.0.scalar())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(self.0.scalar())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(self.0.scalar())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(self.0.scalar())
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(self.0.null())
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.0.string(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        self.0.array(seq)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        self.0.object(map)
    }
}

/// How the members of an object are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// In one pass. A value that a strict parser refuses ends the walk.
    Straight,
    /// Member by member: a scan finds each member, which is then walked separately. A value that a
    /// strict parser refuses ends only the walk of its member.
    ByMember,
}

impl Reading {
    /// Reads the next key with `read`, or returns why a strict parser refuses it.
    pub(crate) fn next_key<'de, A: MapAccess<'de>, T>(
        self,
        map: &mut A,
        read: fn(&str) -> T,
    ) -> Result<Option<Result<T, Message>>, A::Error> {
        match self {
            Self::Straight => Ok(map.next_key_seed(Key(read))?.map(Ok)),
            Self::ByMember => {
                let raw: Option<&RawValue> = map.next_key()?;
                Ok(raw.map(|raw| {
                    let key = Key(read).deserialize(&mut serde_json::Deserializer::from_str(raw.get()));
                    key.map_err(|refusal| refusal_message(&refusal))
                }))
            }
        }
    }

    /// Applies `rule` to the value of the current member.
    pub(crate) fn check<'de, A: MapAccess<'de>, R: Rule>(
        self,
        map: &mut A,
        rule: R,
    ) -> Result<Option<Message>, A::Error> {
        match self {
            Self::Straight => map.next_value_seed(Check(rule)),
            Self::ByMember => {
                let raw: &RawValue = map.next_value()?;
                if let Some(too_long) = R::length(raw.get().len()) {
                    return Ok(Some(too_long));
                }
                Ok(check(raw.get(), rule).unwrap_or_else(|refusal| Some(refusal_message(&refusal))))
            }
        }
    }
}

/// Reads a key with a function.
struct Key<T>(fn(&str) -> T);

impl<'de, T> DeserializeSeed<'de> for Key<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<T> Visitor<'_> for Key<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<T, E> {
        Ok((self.0)(key))
    }
}
