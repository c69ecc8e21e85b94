//! The rules for one event (docs/contract.md, "Requests").

use crate::limits::{MAX_DEPTH, MAX_EVENT_BYTES, MAX_PROPERTIES_BYTES, MAX_PROPERTIES_KEYS, MAX_TEXT_CHARS};
use crate::walk::{self, Check, Message, Reading, Rule};
use serde::de::{IgnoredAny, MapAccess, SeqAccess};
use std::borrow::Cow;
use std::ops::Range;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// One valid event, as the client wrote it.
#[derive(Clone, Copy, Debug)]
pub struct Event<'body> {
    text: &'body str,
    /// The number of characters U+FFFE and U+FFFF in `text`.
    refused_characters: usize,
}

impl<'body> Event<'body> {
    /// Applies every rule to an event's JSON text. The text's syntax must be valid.
    ///
    /// # Errors
    /// The first violation at each place.
    pub(crate) fn parse(text: &'body str) -> Result<Self, EventViolations> {
        // Properties can exceed their limit only in an event that is longer than that limit. Only then
        // are they measured, because measuring takes a scan.
        let reading = if text.len() > MAX_PROPERTIES_BYTES { Reading::ByMember } else { Reading::Straight };
        let mut violations = EventViolations::find(text, reading)
            // A strict parser stops at the first value that it refuses. Reading member by member
            // finds the other violations.
            .or_else(|_| EventViolations::find(text, Reading::ByMember))
            .unwrap_or_else(|refusal| EventViolations::event_as_a_whole(walk::refusal_message(&refusal)));
        let event = Self { text, refused_characters: refused_characters(text).count() };
        if event.message_len() > MAX_EVENT_BYTES {
            violations.add(Place::Event, Some(format!("must be at most {MAX_EVENT_BYTES} bytes of JSON text").into()));
        }
        if violations.is_empty() { Ok(event) } else { Err(violations) }
    }

    /// The bytes that this event takes in a message.
    #[must_use]
    pub fn message_len(&self) -> usize {
        // Three bytes of UTF-8 become the six of `\ufffe`.
        self.text.len() + 3 * self.refused_characters
    }

    /// Appends the client's text to `message` byte for byte, except that the characters that SQS
    /// refuses are written as escapes.
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

/// A rule that the body breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The index of the event in the request. `None` if the body is a single event, or if the violation
    /// is about `events` itself.
    pub event: Option<usize>,
    /// The invalid member, such as `name`; never one of the client's own keys. `None` if the event as a
    /// whole breaks the rule.
    pub member: Option<&'static str>,
    /// The broken rule; never a value.
    pub message: Cow<'static, str>,
}

impl Violation {
    /// The path to the invalid member, such as `events[3].name`. `None` if the body is a single event
    /// that breaks a rule as a whole.
    #[must_use]
    pub fn field(&self) -> Option<String> {
        match (self.event, self.member) {
            (Some(index), None) => Some(format!("events[{index}]")),
            (Some(index), Some(member)) => Some(format!("events[{index}].{member}")),
            (None, member) => member.map(str::to_owned),
        }
    }
}

/// The positions of U+FFFE and U+FFFF in `text`. Both are valid in JSON, and SQS refuses both. In
/// JSON they occur only in strings, where an escape means the same.
fn refused_characters(text: &str) -> impl Iterator<Item = Range<usize>> {
    let bytes = text.as_bytes();
    memchr::memchr_iter(0xEF, bytes)
        .filter(|&at| bytes.get(at + 1) == Some(&0xBF) && matches!(bytes.get(at + 2), Some(0xBE | 0xBF)))
        .map(|at| at..at + 3)
}

/// The part of an event that breaks a rule, in the order in which violations are listed.
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
}

/// The first violation at each place of one event.
#[derive(Default)]
pub(crate) struct EventViolations([Option<Message>; Place::COUNT]);

impl EventViolations {
    fn find(text: &str, reading: Reading) -> Result<Self, serde_json::Error> {
        let mut violations = Self::default();
        let of_event = walk::check(text, EventRule { violations: &mut violations, reading })?;
        violations.add(Place::Event, of_event);
        Ok(violations)
    }

    fn event_as_a_whole(message: Message) -> Self {
        let mut violations = Self::default();
        violations.add(Place::Event, Some(message));
        violations
    }

    fn add(&mut self, place: Place, message: Option<Message>) {
        let first = &mut self.0[place as usize];
        *first = first.take().or(message);
    }

    /// Reports that a member occurs twice, instead of any other violation of that member.
    fn add_duplicate(&mut self, place: Place) {
        let member = place.member().unwrap_or_default();
        self.0[place as usize] = Some(format!("duplicate field `{member}`").into());
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// The violations of the event at index `event` of the request, or of a body that is a single event.
    pub(crate) fn of_event(self, event: Option<usize>) -> impl Iterator<Item = Violation> {
        let places = Place::ALL.into_iter().zip(self.0);
        places.filter_map(move |(place, message)| Some(Violation { event, member: place.member(), message: message? }))
    }
}

/// The rule for an event. The violations of its members go to `violations`.
struct EventRule<'out> {
    violations: &'out mut EventViolations,
    reading: Reading,
}

impl Rule for EventRule<'_> {
    const MUST_BE: &'static str = "must be an object";

    fn object<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Message>, A::Error> {
        let Self { violations, reading } = self;
        let mut seen = [false; Place::COUNT];
        while let Some(key) = reading.next_key(&mut map, Place::of_key)? {
            let place = key.unwrap_or_else(|refused| {
                violations.add(Place::Event, Some(refused));
                Place::Event
            });
            let seen_before = std::mem::replace(&mut seen[place as usize], true);
            let violation = match place {
                Place::Event => reading.check(&mut map, Nested { depth: 2 })?,
                _ if seen_before => {
                    map.next_value::<IgnoredAny>()?;
                    violations.add_duplicate(place);
                    None
                }
                Place::UserId | Place::Name => reading.check(&mut map, ShortText)?,
                Place::Properties => reading.check(&mut map, Properties)?,
                Place::Timestamp => reading.check(&mut map, EventTime)?,
            };
            violations.add(place, violation);
        }
        for required in [Place::UserId, Place::Name] {
            if !seen[required as usize] {
                violations.add(required, Some("is required".into()));
            }
        }
        Ok(None)
    }
}

/// The rule for `external_user_id` and `name`.
struct ShortText;

impl Rule for ShortText {
    const MUST_BE: &'static str = "must be a string";

    fn string(self, text: &str) -> Option<Message> {
        // A text never has more characters than bytes, so most texts need no counting.
        if text.is_empty() || (text.len() > MAX_TEXT_CHARS && text.chars().count() > MAX_TEXT_CHARS) {
            return Some(format!("must be 1 to {MAX_TEXT_CHARS} characters long").into());
        }
        None
    }
}

/// The rule for `timestamp`.
struct EventTime;

impl Rule for EventTime {
    const MUST_BE: &'static str = "must be an RFC 3339 time such as 2026-11-23T09:14:03Z";

    fn null(self) -> Option<Message> {
        None
    }

    fn string(self, text: &str) -> Option<Message> {
        // The parser accepts any separator; the contract requires `T`.
        let has_t = matches!(text.as_bytes().get(10), Some(b'T' | b't'));
        let is_time = has_t && OffsetDateTime::parse(text, &Rfc3339).is_ok();
        if is_time { None } else { self.scalar() }
    }
}

/// The rule for `properties`.
struct Properties;

impl Rule for Properties {
    const MUST_BE: &'static str = "must be an object";

    fn length(bytes: usize) -> Option<Message> {
        (bytes > MAX_PROPERTIES_BYTES)
            .then(|| format!("must be at most {MAX_PROPERTIES_BYTES} bytes of JSON text").into())
    }

    fn null(self) -> Option<Message> {
        None
    }

    fn object<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Message>, A::Error> {
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

/// The rule for the client's own keys: any string. Keys are walked because they may contain an
/// unpaired surrogate.
struct AnyText;

impl Rule for AnyText {
    const MUST_BE: &'static str = "must be a string";

    fn string(self, _: &str) -> Option<Message> {
        None
    }
}

/// The rule for the client's own values. If the value is an array or object, `depth` is its level in the
/// event.
struct Nested {
    depth: usize,
}

impl Nested {
    fn too_deep(&self) -> Option<Message> {
        (self.depth > MAX_DEPTH).then_some(Self::MUST_BE.into())
    }
}

impl Rule for Nested {
    const MUST_BE: &'static str = "must be nested at most 32 levels deep, the event itself being the first";

    fn scalar(self) -> Option<Message> {
        None
    }

    fn array<'de, A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<Message>, A::Error> {
        let mut first = self.too_deep();
        if first.is_some() {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
        }
        while let Some(violation) = seq.next_element_seed(Check(Self { depth: self.depth + 1 }))? {
            first = first.or(violation);
        }
        Ok(first)
    }

    fn object<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Message>, A::Error> {
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
