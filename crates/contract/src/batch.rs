//! The bodies of the endpoints → a [`Batch`] (docs/contract.md, "Requests").
//!
//! Nothing is copied: an [`Event`] is a slice of the body. One scan of the whole body checks its
//! syntax and finds each event; each event is then scanned once.

use crate::event::{Event, Violation};
use crate::limits::{MAX_BULK_EVENTS, MAX_EVENTS, MAX_VIOLATIONS};
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// The valid events of a request, by their index in the request.
///
/// A batch has 1 to [`MAX_EVENTS`] events, all of them valid. A bulk request has up to
/// [`MAX_BULK_EVENTS`], and any of them can be invalid.
#[derive(Debug)]
pub struct Batch<'body> {
    /// An invalid event is `None`.
    events: Vec<Option<Event<'body>>>,
}

/// A bulk request: its valid events, and the violations of the others.
#[derive(Debug)]
pub struct Bulk<'body> {
    /// The valid events.
    pub batch: Batch<'body>,
    /// Every violation, in order of event index. Each event that is not in `batch` has at least one.
    pub violations: Vec<Violation>,
}

/// Why a body is not a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum BatchError {
    /// The body is not JSON or not UTF-8. The text says what is wrong, with line and column.
    Malformed(String),
    /// The body is JSON but breaks rules: 1 to [`MAX_VIOLATIONS`] violations, in order of event index.
    Invalid(Vec<Violation>),
}

impl<'body> Batch<'body> {
    /// Parses and validates the decoded body of `POST /api/v1/events/batch`.
    ///
    /// # Errors
    /// If the syntax is invalid, or else if the body breaks a rule.
    pub fn parse(body: &'body [u8]) -> Result<Self, BatchError> {
        let Outline { events, count, violation, .. } = outline(text(body)?, MAX_EVENTS)?;
        let mut violations: Vec<Violation> = violation.into_iter().collect();
        if count > MAX_EVENTS {
            violations.push(too_many_events(MAX_EVENTS, count));
        }
        let mut valid = Vec::with_capacity(events.len());
        for (index, raw) in events.iter().enumerate() {
            match Event::parse(raw.get()) {
                Ok(event) => valid.push(Some(event)),
                Err(found) => violations.extend(found.of_event(Some(index))),
            }
            if violations.len() >= MAX_VIOLATIONS {
                violations.truncate(MAX_VIOLATIONS);
                break;
            }
        }
        if violations.is_empty() { Ok(Self { events: valid }) } else { Err(BatchError::Invalid(violations)) }
    }

    /// Parses and validates the decoded body of `POST /api/v1/events`, which is one event. The rules are
    /// those of a batch of one event.
    ///
    /// # Errors
    /// As for [`Self::parse`]. The violations have no event index.
    pub fn parse_single(body: &'body [u8]) -> Result<Self, BatchError> {
        let text = text(body)?;
        check_syntax(text)?;
        match Event::parse(text.trim_ascii()) {
            Ok(event) => Ok(Self { events: vec![Some(event)] }),
            Err(found) => Err(BatchError::Invalid(found.of_event(None).collect())),
        }
    }

    /// The number of events in the request, valid or not.
    #[must_use]
    pub fn received(&self) -> usize {
        self.events.len()
    }

    /// The valid events and their indexes, in the order sent.
    pub fn events(&self) -> impl Iterator<Item = (usize, Event<'body>)> {
        self.events.iter().enumerate().filter_map(|(index, event)| Some((index, (*event)?)))
    }
}

impl<'body> Bulk<'body> {
    /// Parses the decoded body of `POST /api/v1/events/bulk` and validates each of its events.
    ///
    /// # Errors
    /// If the syntax is invalid, or else if the body is not an object with an array `events` of 1 to
    /// [`MAX_BULK_EVENTS`] elements. Invalid events are not an error.
    pub fn parse(body: &'body [u8]) -> Result<Self, BatchError> {
        let Outline { events, count, violation, .. } = outline(text(body)?, MAX_BULK_EVENTS)?;
        let too_many = (count > MAX_BULK_EVENTS).then(|| too_many_events(MAX_BULK_EVENTS, count));
        if let Some(violation) = violation.or(too_many) {
            return Err(BatchError::Invalid(vec![violation]));
        }
        let mut violations = Vec::new();
        let validate = |(index, raw): (usize, &&'body RawValue)| match Event::parse(raw.get()) {
            Ok(event) => Some(event),
            Err(found) => {
                violations.extend(found.of_event(Some(index)));
                None
            }
        };
        let events = events.iter().enumerate().map(validate).collect();
        Ok(Self { batch: Batch { events }, violations })
    }
}

fn text(body: &[u8]) -> Result<&str, BatchError> {
    std::str::from_utf8(body).map_err(|error| not_utf8(body, error.valid_up_to()))
}

fn check_syntax(text: &str) -> Result<(), BatchError> {
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| BatchError::Malformed(error.to_string()))?;
    Ok(())
}

fn too_many_events(most: usize, count: usize) -> Violation {
    violation_of_events(format!("must contain at most {most} events, contains {count}"))
}

fn violation_of_events(message: impl Into<Cow<'static, str>>) -> Violation {
    Violation { event: None, member: Some("events"), message: message.into() }
}

fn not_utf8(body: &[u8], valid_up_to: usize) -> BatchError {
    let line_start = memchr::memrchr(b'\n', &body[..valid_up_to]).map_or(0, |newline| newline + 1);
    let line = 1 + memchr::memchr_iter(b'\n', &body[..valid_up_to]).count();
    let column = 1 + valid_up_to - line_start;
    BatchError::Malformed(format!("invalid UTF-8 at line {line} column {column}"))
}

/// The result of the scan of the whole body: the text of each event.
struct Outline<'body> {
    /// At most `most`, so that a body of a million tiny events costs little.
    events: Vec<&'body RawValue>,
    most: usize,
    count: usize,
    violation: Option<Violation>,
}

fn outline(text: &str, most: usize) -> Result<Outline<'_>, BatchError> {
    let mut outline = Outline { events: Vec::new(), most, count: 0, violation: None };
    let parsed = {
        let mut json = serde_json::Deserializer::from_str(text);
        json.deserialize_any(TopLevel(&mut outline)).and_then(|()| json.end())
    };
    if let Err(error) = parsed {
        // A body of the wrong shape stops the scan early. Its syntax is still reported first.
        if !may_have_valid_syntax(&error) {
            return Err(BatchError::Malformed(error.to_string()));
        }
        check_syntax(text)?;
        let is_object = text.trim_ascii_start().starts_with('{');
        let message = if is_object { "must be an array" } else { "the body must be an object with an array `events`" };
        outline.violation = Some(violation_of_events(message));
    }
    if outline.violation.is_some() {
        outline.events.clear();
    }
    Ok(outline)
}

/// Whether the scan may have stopped at something other than a syntax error: a value of the wrong type, or a
/// number or string that a parser refuses although its syntax is valid.
fn may_have_valid_syntax(error: &serde_json::Error) -> bool {
    let message = error.to_string();
    let refusals = ["number out of range", "lone leading surrogate", "unexpected end of hex escape"];
    error.is_data() || refusals.iter().any(|refusal| message.starts_with(refusal))
}

/// The error for a string instead of an object or array. The default error contains the string and takes up to seven
/// times as many bytes.
fn a_string<E: de::Error>() -> E {
    E::custom("a string")
}

struct TopLevel<'out, 'body>(&'out mut Outline<'body>);

impl<'body> Visitor<'body> for TopLevel<'_, 'body> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        Err(a_string())
    }

    fn visit_map<A: MapAccess<'body>>(self, mut map: A) -> Result<(), A::Error> {
        let outline = self.0;
        let mut seen = false;
        // Keys are read raw, because ignored members may have keys that serde_json refuses.
        while let Some(key) = map.next_key::<&RawValue>()? {
            if !is_events(key.get()) {
                map.next_value::<IgnoredAny>()?;
            } else if seen {
                map.next_value::<IgnoredAny>()?;
                outline.violation = Some(violation_of_events("duplicate field `events`"));
            } else {
                seen = true;
                map.next_value_seed(EventsArray(outline))?;
            }
        }
        if !seen {
            outline.violation = Some(violation_of_events("is required"));
        } else if outline.count == 0 && outline.violation.is_none() {
            outline.violation = Some(violation_of_events("must contain at least 1 event"));
        }
        Ok(())
    }
}

/// Whether a key is `events`, which may be written with escapes.
fn is_events(key: &str) -> bool {
    const LONGEST: usize = r#""\u0065\u0076\u0065\u006e\u0074\u0073""#.len();
    let is_escaped = key.len() <= LONGEST && key.contains('\\');
    key == r#""events""# || (is_escaped && serde_json::from_str::<String>(key).is_ok_and(|key| key == "events"))
}

struct EventsArray<'out, 'body>(&'out mut Outline<'body>);

impl<'body> DeserializeSeed<'body> for EventsArray<'_, 'body> {
    type Value = ();

    fn deserialize<D: Deserializer<'body>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'body> Visitor<'body> for EventsArray<'_, 'body> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        Err(a_string())
    }

    fn visit_seq<A: SeqAccess<'body>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self(outline) = self;
        while outline.count < outline.most {
            let Some(event) = seq.next_element()? else { return Ok(()) };
            outline.events.push(event);
            outline.count += 1;
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {
            outline.count += 1;
        }
        Ok(())
    }
}
