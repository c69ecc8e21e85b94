//! Body bytes → [`Batch`]: every rule of contract section 1 that concerns the body.
//!
//! Nothing is copied: an [`Event`] is a slice of the body. The whole body is scanned once for
//! its syntax, which finds where each event lies, and each event is then walked once.

use crate::event::Event;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// The most events in a batch (contract section 1).
pub const MAX_EVENTS: usize = 500;
/// The most bytes of a decoded body: 5 MB (contract section 1).
pub const MAX_BODY_BYTES: usize = 5 * 1024 * 1024;
/// The most faults one answer lists (contract section 2).
pub const MAX_FAULTS: usize = 100;

/// 1 to 500 events that keep every rule.
#[derive(Debug)]
pub struct Batch<'body> {
    events: Vec<Event<'body>>,
}

/// Why a body is no batch.
#[derive(Debug, PartialEq, Eq)]
pub enum BatchError {
    /// Not JSON, or not UTF-8: what, and where.
    Malformed(String),
    /// JSON, but against the rules: 1 to [`MAX_FAULTS`] faults by event index.
    Invalid(Vec<Fault>),
}

/// One rule that the body breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The member at fault, such as `events[3].name`; never a client's own key. `None` where
    /// the whole body is the event at fault.
    pub field: Option<String>,
    /// What the rule is; never a value.
    pub message: Cow<'static, str>,
}

impl<'body> Batch<'body> {
    /// Parses and validates a decoded body.
    ///
    /// # Errors
    /// [`BatchError::Malformed`] before any [`BatchError::Invalid`].
    pub fn parse(body: &'body [u8]) -> Result<Self, BatchError> {
        let text = std::str::from_utf8(body).map_err(|error| not_utf8(body, error.valid_up_to()))?;
        let Outline { events, count, fault } = outline(text)?;
        let mut faults: Vec<Fault> = fault.into_iter().collect();
        if count > MAX_EVENTS {
            faults.push(Fault::on_batch(format!("must hold at most {MAX_EVENTS} events, holds {count}")));
        }
        let mut valid = Vec::with_capacity(events.len());
        for (index, raw) in events.iter().enumerate() {
            match Event::parse(raw.get()) {
                Ok(event) => valid.push(event),
                Err(found) => faults.extend(found.at(Some(index))),
            }
            if faults.len() >= MAX_FAULTS {
                faults.truncate(MAX_FAULTS);
                break;
            }
        }
        if faults.is_empty() { Ok(Self { events: valid }) } else { Err(BatchError::Invalid(faults)) }
    }

    /// Parses and validates a decoded body that is one event, by the rules of a batch of one.
    ///
    /// # Errors
    /// As [`Self::parse`]; fields are those of the event itself.
    pub fn parse_single(body: &'body [u8]) -> Result<Self, BatchError> {
        let text = std::str::from_utf8(body).map_err(|error| not_utf8(body, error.valid_up_to()))?;
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| BatchError::Malformed(error.to_string()))?;
        match Event::parse(text.trim_ascii()) {
            Ok(event) => Ok(Self { events: vec![event] }),
            Err(found) => Err(BatchError::Invalid(found.at(None).collect())),
        }
    }

    /// The events in the order sent, 1 to [`MAX_EVENTS`].
    #[must_use]
    pub fn events(&self) -> &[Event<'body>] {
        &self.events
    }
}

impl Fault {
    fn on_batch(message: impl Into<Cow<'static, str>>) -> Self {
        Self { field: Some("events".to_owned()), message: message.into() }
    }
}

fn not_utf8(body: &[u8], valid_up_to: usize) -> BatchError {
    let line_start = memchr::memrchr(b'\n', &body[..valid_up_to]).map_or(0, |newline| newline + 1);
    let line = 1 + memchr::memchr_iter(b'\n', &body[..valid_up_to]).count();
    let column = 1 + valid_up_to - line_start;
    BatchError::Malformed(format!("invalid UTF-8 at line {line} column {column}"))
}

/// What the scan of the whole body finds: where the events are.
#[derive(Default)]
struct Outline<'body> {
    /// At most [`MAX_EVENTS`] of them, so that a body of a million tiny ones costs nothing.
    events: Vec<&'body RawValue>,
    count: usize,
    fault: Option<Fault>,
}

fn outline(text: &str) -> Result<Outline<'_>, BatchError> {
    let mut outline = Outline::default();
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed = json.deserialize_map(TopLevel(&mut outline)).and_then(|()| json.end());
    if parsed.is_err() {
        // A body of the wrong shape stops the scan early; its syntax still comes first.
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| BatchError::Malformed(error.to_string()))?;
        let is_object = text.trim_ascii_start().starts_with('{');
        let message = if is_object { "must be an array" } else { "the body must be an object with an array `events`" };
        outline.fault = Some(Fault::on_batch(message));
    }
    if outline.fault.is_some() {
        outline.events.clear();
    }
    Ok(outline)
}

struct TopLevel<'out, 'body>(&'out mut Outline<'body>);

impl<'body> Visitor<'body> for TopLevel<'_, 'body> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'body>>(self, mut map: A) -> Result<(), A::Error> {
        let outline = self.0;
        let mut seen = false;
        // Keys are taken raw: a client's own, which is ignored, may hold what serde_json refuses.
        while let Some(key) = map.next_key::<&RawValue>()? {
            let is_events = serde_json::from_str::<Cow<str>>(key.get()).is_ok_and(|key| key == "events");
            if !is_events {
                map.next_value::<IgnoredAny>()?;
            } else if seen {
                map.next_value::<IgnoredAny>()?;
                outline.fault = Some(Fault::on_batch("duplicate field `events`"));
            } else {
                seen = true;
                map.next_value_seed(EventsArray(outline))?;
            }
        }
        if !seen {
            outline.fault = Some(Fault::on_batch("is required"));
        } else if outline.count == 0 && outline.fault.is_none() {
            outline.fault = Some(Fault::on_batch("must hold at least 1 event"));
        }
        Ok(())
    }
}

struct EventsArray<'out, 'body>(&'out mut Outline<'body>);

impl<'body> DeserializeSeed<'body> for EventsArray<'_, 'body> {
    type Value = ();

    fn deserialize<D: Deserializer<'body>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'body> Visitor<'body> for EventsArray<'_, 'body> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'body>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self(outline) = self;
        while outline.count < MAX_EVENTS {
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
