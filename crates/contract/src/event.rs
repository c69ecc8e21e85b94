//! The rules for one event (docs/contract.md, "Requests").

use crate::limits::{MAX_EVENT_BYTES, MAX_PROPERTIES_BYTES, MAX_PROPERTIES_KEYS, MAX_TEXT_CHARS};
use crate::scan::{Scanner, Value};
use serde::Deserialize;
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
        let mut violations = EventViolations::find(text);
        let event = Self { text, refused_characters: refused_characters(text).count() };
        if event.message_len() > MAX_EVENT_BYTES {
            violations.add(Place::Event, Some(format!("must be at most {MAX_EVENT_BYTES} bytes of JSON text").into()));
        }
        if violations.is_empty() { Ok(event) } else { Err(violations) }
    }

    /// The value of `external_user_id`, with escapes resolved.
    #[must_use]
    pub fn external_user_id(&self) -> Cow<'body, str> {
        #[derive(Deserialize)]
        struct User<'a> {
            #[serde(borrow)]
            external_user_id: Cow<'a, str>,
        }
        // The event is valid, so it has the member.
        serde_json::from_str(self.text).map_or(Cow::Borrowed(""), |User { external_user_id }| external_user_id)
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

/// The level of an event, the outermost one.
const EVENT_LEVEL: usize = 1;

/// The length of the longest name of a member that has rules.
const LONGEST_MEMBER: usize = "external_user_id".len();

/// The rule that a value breaks: a predicate such as "must be a string".
type Message = Cow<'static, str>;

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

    fn of_key(key: &Value<'_>) -> Self {
        let name = match key.plain_string() {
            Some(name) => Text(name.into()),
            // The key contains escapes. A key with more characters cannot be one of the members.
            _ if key.chars <= LONGEST_MEMBER => serde_json::from_str(key.text).unwrap_or_default(),
            _ => return Self::Event,
        };
        Self::ALL.into_iter().find(|place| place.member() == Some(&*name.0)).unwrap_or(Self::Event)
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
    fn find(text: &str) -> Self {
        let mut violations = Self::default();
        let mut scanner = Scanner::new(text);
        if !scanner.skip(b'{') {
            violations.add(Place::Event, Some("must be an object".into()));
            return violations;
        }
        let mut seen = [false; Place::COUNT];
        while !scanner.skip(b'}') && !scanner.is_at_end() {
            let key = scanner.value(EVENT_LEVEL);
            scanner.skip(b':');
            scanner.skip_space();
            let value = scanner.value(EVENT_LEVEL + 1);
            scanner.skip(b',');
            let place = Place::of_key(&key);
            violations.add(Place::Event, refusal(&key));
            if std::mem::replace(&mut seen[place as usize], true) && place != Place::Event {
                violations.add_duplicate(place);
            }
            let violation = match place {
                Place::Event => refusal(&value),
                Place::UserId | Place::Name => short_text(&value),
                Place::Properties => properties(&value),
                Place::Timestamp => event_time(&value),
            };
            violations.add(place, violation);
        }
        for required in [Place::UserId, Place::Name] {
            if !seen[required as usize] {
                violations.add(required, Some("is required".into()));
            }
        }
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

/// Checks the text of `external_user_id` or `name`.
fn short_text(value: &Value<'_>) -> Option<Message> {
    if !is_string(value) {
        return Some("must be a string".into());
    }
    let is_short = (1..=MAX_TEXT_CHARS).contains(&value.chars);
    refusal(value).or_else(|| (!is_short).then(|| format!("must be 1 to {MAX_TEXT_CHARS} characters long").into()))
}

fn event_time(value: &Value<'_>) -> Option<Message> {
    if value.text == "null" {
        return None;
    }
    if is_string(value) && value.refusal.is_some() {
        return refusal(value);
    }
    let text = match value.plain_string() {
        Some(text) => Text(text.into()),
        None => serde_json::from_str(value.text).unwrap_or_default(),
    };
    let text = text.0;
    // The parser accepts any separator; the contract requires `T`.
    let has_t = matches!(text.as_bytes().get(10), Some(b'T' | b't'));
    let is_time = has_t && OffsetDateTime::parse(&text, &Rfc3339).is_ok();
    (!is_time).then_some("must be an RFC 3339 time such as 2026-11-23T09:14:03Z".into())
}

fn properties(value: &Value<'_>) -> Option<Message> {
    let (bytes, keys) = (value.text.len(), value.keys);
    if value.text == "null" {
        None
    } else if !value.text.starts_with('{') {
        Some("must be an object".into())
    } else if bytes > MAX_PROPERTIES_BYTES {
        Some(format!("must be at most {MAX_PROPERTIES_BYTES} bytes of JSON text").into())
    } else if keys > MAX_PROPERTIES_KEYS {
        Some(format!("must have at most {MAX_PROPERTIES_KEYS} keys, has {keys}").into())
    } else {
        refusal(value)
    }
}

fn refusal(value: &Value<'_>) -> Option<Message> {
    value.refusal.map(|refusal| refusal.message().into())
}

fn is_string(value: &Value<'_>) -> bool {
    value.text.starts_with('"')
}

/// A string that borrows from the JSON text if it contains no escape. A plain `Cow` would always copy.
#[derive(Default, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    /// The function parses only valid syntax. Invalid syntax must not cause a panic or an endless loop.
    #[test]
    fn an_event_of_invalid_syntax_is_parsed_to_an_end() {
        for text in ["", "{", "{\"", "{\"a", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":1,", "{,", "{]", "{:"] {
            let _ = Event::parse(text);
        }
    }
}
