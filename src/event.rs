//! One event: its text, and every rule it must keep (contract section 1).
//!
//! Each event is walked once by a strict visitor over `serde_json`'s own deserializer, which
//! refuses what consumers' parsers refuse, unpaired surrogates and numbers beyond a 64-bit
//! float; a raw scan alone lets those through, and one such event would poison a message.

use crate::batch::Fault;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The most bytes of one event as it will stand in a message (contract section 1).
pub const MAX_EVENT_BYTES: usize = 1_047_552;
/// The most bytes of one event's properties as sent: 1 MB (contract section 1).
pub const MAX_PROPERTIES_BYTES: usize = 1_000_000;
/// The most keys at the top level of one event's properties (contract section 1).
pub const MAX_PROPERTIES_KEYS: usize = 100;
/// The most levels of nesting in an event, itself being the first (contract section 1).
pub const MAX_DEPTH: usize = 32;
/// The most characters of an `external_user_id` or a `name` (contract section 1).
pub const MAX_TEXT_CHARS: usize = 1024;

/// One valid event, as the client wrote it.
#[derive(Clone, Copy, Debug)]
pub struct Event<'body> {
    text: &'body str,
    /// How many U+FFFE and U+FFFF it holds.
    refused_characters: usize,
}

impl<'body> Event<'body> {
    /// Checks every rule against an event's JSON text, whose syntax is known to be right.
    ///
    /// # Errors
    /// The first fault at each place.
    pub(crate) fn parse(text: &'body str) -> Result<Self, EventFaults> {
        // Only an event beyond the limit for properties can hold properties beyond it, so only
        // then are they measured, which takes a scan of its own.
        let reading = if text.len() > MAX_PROPERTIES_BYTES { Reading::ByMember } else { Reading::Straight };
        let mut faults = walk(text, reading)
            // A strict parser stops at what it refuses; going member by member finds the rest.
            .or_else(|_| walk(text, Reading::ByMember))
            .unwrap_or_else(|refusal| EventFaults::of_event(refusal_message(&refusal)));
        let event = Self { text, refused_characters: refused_characters(text).count() };
        if event.message_len() > MAX_EVENT_BYTES {
            faults.note(Place::Event, Some(format!("must be at most {MAX_EVENT_BYTES} bytes of JSON text").into()));
        }
        if faults.is_empty() { Ok(event) } else { Err(faults) }
    }

    /// The bytes this event takes in a message.
    #[must_use]
    pub fn message_len(&self) -> usize {
        // Three bytes of UTF-8 become the six of `\ufffe`.
        self.text.len() + 3 * self.refused_characters
    }

    /// Appends the client's own text, byte for byte but for what SQS refuses in a message.
    pub fn write_to(&self, message: &mut String) {
        if self.refused_characters == 0 {
            return message.push_str(self.text);
        }
        let mut written = 0;
        for position in refused_characters(self.text) {
            message.push_str(&self.text[written..position.start]);
            message.push_str(if self.text[position.clone()] == *"\u{FFFE}" { "\\ufffe" } else { "\\uffff" });
            written = position.end;
        }
        message.push_str(&self.text[written..]);
    }
}

/// Where `text` holds U+FFFE or U+FFFF: legal in JSON, refused by SQS. In JSON they can only
/// stand inside a string, where an escape means the same.
fn refused_characters(text: &str) -> impl Iterator<Item = Range<usize>> {
    let bytes = text.as_bytes();
    memchr::memchr_iter(0xEF, bytes)
        .filter(|&at| bytes.get(at + 1) == Some(&0xBF) && matches!(bytes.get(at + 2), Some(0xBE | 0xBF)))
        .map(|at| at..at + 3)
}

/// Where in an event a fault can lie, in the order in which faults are listed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Event,
    UserId,
    Name,
    Properties,
    Timestamp,
}

impl Place {
    const COUNT: usize = 5;
    const ALL: [Self; Self::COUNT] = [Self::Event, Self::UserId, Self::Name, Self::Properties, Self::Timestamp];

    fn of_key(key: &str) -> Self {
        Self::ALL.into_iter().find(|place| place.member() == Some(key)).unwrap_or(Self::Event)
    }

    fn member(self) -> Option<&'static str> {
        match self {
            Self::Event => None,
            Self::UserId => Some("external_user_id"),
            Self::Name => Some("name"),
            Self::Properties => Some("properties"),
            Self::Timestamp => Some("timestamp"),
        }
    }

    fn field(self, index: Option<usize>) -> Option<String> {
        match (index, self.member()) {
            (Some(index), None) => Some(format!("events[{index}]")),
            (Some(index), Some(member)) => Some(format!("events[{index}].{member}")),
            (None, member) => member.map(str::to_owned),
        }
    }
}

/// The first fault found at each place of one event.
#[derive(Default)]
pub(crate) struct EventFaults([Verdict; Place::COUNT]);

impl EventFaults {
    fn of_event(message: Cow<'static, str>) -> Self {
        let mut faults = Self::default();
        faults.note(Place::Event, Some(message));
        faults
    }

    fn note(&mut self, place: Place, verdict: Verdict) {
        let first = &mut self.0[place as usize];
        *first = first.take().or(verdict);
    }

    /// Says of a member that it is given twice, whatever else is wrong with it.
    fn note_duplicate(&mut self, place: Place) {
        let member = place.member().unwrap_or_default();
        self.0[place as usize] = Some(format!("duplicate field `{member}`").into());
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// The faults of the event at `index`, or of the one that is the whole body.
    pub(crate) fn at(self, index: Option<usize>) -> impl Iterator<Item = Fault> {
        let places = Place::ALL.into_iter().zip(self.0);
        places.filter_map(move |(place, message)| Some(Fault { field: place.field(index), message: message? }))
    }
}

fn walk(text: &str, reading: Reading) -> Result<EventFaults, serde_json::Error> {
    let mut faults = EventFaults::default();
    let verdict =
        Check(EventRule { faults: &mut faults, reading }).deserialize(&mut serde_json::Deserializer::from_str(text))?;
    faults.note(Place::Event, verdict);
    Ok(faults)
}

/// What a strict parser refuses in text whose syntax is known to be right.
fn refusal_message(refusal: &serde_json::Error) -> Cow<'static, str> {
    if refusal.to_string().starts_with("number out of range") {
        "must hold no number beyond a 64-bit float".into()
    } else {
        "must hold no unpaired surrogate escape".into()
    }
}

/// How an event's members are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// In one go; what a strict parser refuses ends it.
    Straight,
    /// Each found by a scan first and then walked, so that a refusal ends only that member.
    ByMember,
}

/// What a rule says of a value: nothing, or which rule it breaks.
type Verdict = Option<Cow<'static, str>>;

/// A rule for one JSON value. Each method takes the value in one of its shapes, and by default
/// finds it to be of the wrong one.
trait Rule: Sized {
    const MUST_BE: &'static str;

    /// What the bytes of its text say, where they are known.
    fn length(_bytes: usize) -> Verdict {
        None
    }

    fn scalar(self) -> Verdict {
        Some(Self::MUST_BE.into())
    }

    fn null(self) -> Verdict {
        self.scalar()
    }

    fn string(self, _text: &str) -> Verdict {
        self.scalar()
    }

    fn array<'de, A: SeqAccess<'de>>(self, mut seq: A) -> Result<Verdict, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(self.scalar())
    }

    fn object<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Verdict, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(self.scalar())
    }
}

/// Lets serde hand a value to a rule.
struct Check<R>(R);

impl<'de, R: Rule> DeserializeSeed<'de> for Check<R> {
    type Value = Verdict;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Verdict, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, R: Rule> Visitor<'de> for Check<R> {
    type Value = Verdict;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Verdict, E> {
        Ok(self.0.scalar())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Verdict, E> {
        Ok(self.0.scalar())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Verdict, E> {
        Ok(self.0.scalar())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Verdict, E> {
        Ok(self.0.scalar())
    }

    fn visit_unit<E>(self) -> Result<Verdict, E> {
        Ok(self.0.null())
    }

    fn visit_str<E>(self, text: &str) -> Result<Verdict, E> {
        Ok(self.0.string(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Verdict, A::Error> {
        self.0.array(seq)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Verdict, A::Error> {
        self.0.object(map)
    }
}

/// An event: what is wrong with its members goes to `faults`.
struct EventRule<'out> {
    faults: &'out mut EventFaults,
    reading: Reading,
}

impl Rule for EventRule<'_> {
    const MUST_BE: &'static str = "must be an object";

    fn object<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Verdict, A::Error> {
        let Self { faults, reading } = self;
        let mut seen = [false; Place::COUNT];
        while let Some((place, refused)) = reading.next_key(&mut map)? {
            faults.note(place, refused);
            let seen_before = std::mem::replace(&mut seen[place as usize], true);
            let verdict = match place {
                Place::Event => reading.check(&mut map, Nested { depth: 2 })?,
                _ if seen_before => {
                    map.next_value::<IgnoredAny>()?;
                    faults.note_duplicate(place);
                    None
                }
                Place::UserId | Place::Name => reading.check(&mut map, ShortText)?,
                Place::Properties => reading.check(&mut map, Properties)?,
                Place::Timestamp => reading.check(&mut map, EventTime)?,
            };
            faults.note(place, verdict);
        }
        for required in [Place::UserId, Place::Name] {
            if !seen[required as usize] {
                faults.note(required, Some("is required".into()));
            }
        }
        Ok(None)
    }
}

impl Reading {
    /// The place of the next member, and what a strict parser refuses in its key.
    fn next_key<'de, A: MapAccess<'de>>(self, map: &mut A) -> Result<Option<(Place, Verdict)>, A::Error> {
        match self {
            Self::Straight => Ok(map.next_key_seed(MemberKey)?.map(|place| (place, None))),
            Self::ByMember => {
                let raw: Option<&RawValue> = map.next_key()?;
                Ok(raw.map(|raw| {
                    let place = MemberKey.deserialize(&mut serde_json::Deserializer::from_str(raw.get()));
                    place.map_or_else(|refusal| (Place::Event, Some(refusal_message(&refusal))), |place| (place, None))
                }))
            }
        }
    }

    fn check<'de, A: MapAccess<'de>, R: Rule>(self, map: &mut A, rule: R) -> Result<Verdict, A::Error> {
        match self {
            Self::Straight => map.next_value_seed(Check(rule)),
            Self::ByMember => {
                let raw: &RawValue = map.next_value()?;
                if let Some(too_long) = R::length(raw.get().len()) {
                    return Ok(Some(too_long));
                }
                let verdict = Check(rule).deserialize(&mut serde_json::Deserializer::from_str(raw.get()));
                Ok(verdict.unwrap_or_else(|refusal| Some(refusal_message(&refusal))))
            }
        }
    }
}

/// The key of an event's member.
struct MemberKey;

impl<'de> DeserializeSeed<'de> for MemberKey {
    type Value = Place;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Place, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for MemberKey {
    type Value = Place;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Place, E> {
        Ok(Place::of_key(key))
    }
}

/// `external_user_id` and `name`.
struct ShortText;

impl Rule for ShortText {
    const MUST_BE: &'static str = "must be a string";

    fn string(self, text: &str) -> Verdict {
        // No text has more characters than bytes, so most need no counting.
        if text.is_empty() || (text.len() > MAX_TEXT_CHARS && text.chars().count() > MAX_TEXT_CHARS) {
            return Some(format!("must be 1 to {MAX_TEXT_CHARS} characters long").into());
        }
        None
    }
}

/// `timestamp`.
struct EventTime;

impl Rule for EventTime {
    const MUST_BE: &'static str = "must be an RFC 3339 time such as 2026-11-23T09:14:03Z";

    fn null(self) -> Verdict {
        None
    }

    fn string(self, text: &str) -> Verdict {
        // The parser takes any separator; the contract wants `T`.
        let has_t = matches!(text.as_bytes().get(10), Some(b'T' | b't'));
        let is_time = has_t && OffsetDateTime::parse(text, &Rfc3339).is_ok();
        if is_time { None } else { self.scalar() }
    }
}

/// `properties`.
struct Properties;

impl Rule for Properties {
    const MUST_BE: &'static str = "must be an object";

    fn length(bytes: usize) -> Verdict {
        (bytes > MAX_PROPERTIES_BYTES)
            .then(|| format!("must be at most {MAX_PROPERTIES_BYTES} bytes of JSON text").into())
    }

    fn null(self) -> Verdict {
        None
    }

    fn object<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Verdict, A::Error> {
        let mut keys = 0;
        let mut first = None;
        while map.next_key_seed(Check(AnyText))?.is_some() {
            keys += 1;
            first = first.or(map.next_value_seed(Check(Nested { depth: 3 }))?);
        }
        if keys > MAX_PROPERTIES_KEYS {
            return Ok(Some(format!("must have at most {MAX_PROPERTIES_KEYS} keys, has {keys}").into()));
        }
        Ok(first)
    }
}

/// A key of the client's own: walked, as it may hold an unpaired surrogate.
struct AnyText;

impl Rule for AnyText {
    const MUST_BE: &'static str = "must be a string";

    fn string(self, _: &str) -> Verdict {
        None
    }
}

/// Any value of the client's own, standing at `depth` if it is an array or an object.
struct Nested {
    depth: usize,
}

impl Nested {
    fn too_deep(&self) -> Verdict {
        (self.depth > MAX_DEPTH).then_some(Self::MUST_BE.into())
    }
}

impl Rule for Nested {
    const MUST_BE: &'static str = "must be nested at most 32 levels deep, the event itself being the first";

    fn scalar(self) -> Verdict {
        None
    }

    fn array<'de, A: SeqAccess<'de>>(self, mut seq: A) -> Result<Verdict, A::Error> {
        let mut first = self.too_deep();
        if first.is_some() {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
        }
        while let Some(verdict) = seq.next_element_seed(Check(Self { depth: self.depth + 1 }))? {
            first = first.or(verdict);
        }
        Ok(first)
    }

    fn object<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Verdict, A::Error> {
        let mut first = self.too_deep();
        if first.is_some() {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        }
        while map.next_key_seed(Check(AnyText))?.is_some() {
            first = first.or(map.next_value_seed(Check(Self { depth: self.depth + 1 }))?);
        }
        Ok(first)
    }
}
