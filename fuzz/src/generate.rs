//! Batches of valid events, and what happens to their messages, generated from random bytes.

use super::KIB;
use super::checks::hash;
use super::reference::{MAX_BODY_BYTES, MAX_EVENT_BYTES, in_message};
use arbitrary::{Result as Generated, Unstructured};
use contract::tenant::Mode;
use event_ingest::delivery::SendResult;
use std::fmt::Write;
use std::num::NonZeroU16;
use std::rc::Rc;

/// The maximum size of a batch. It depends on a hash of the input, so that a fuzzer that prefers large batches does not
/// generate many of them: they take up to a thousand times as long.
#[derive(Clone, Copy)]
pub struct Size {
    bytes: usize,
    /// How often an event is repeated.
    times: usize,
}

impl Size {
    /// The size of the batch that is generated from an input.
    pub fn of(input: &[u8]) -> Self {
        match hash(input) % 512 {
            0 => Self { bytes: MAX_BODY_BYTES - 16, times: 100 },
            1..=16 => Self { bytes: 16 * KIB, times: 100 },
            _ => Self { bytes: KIB, times: 3 },
        }
    }
}

const TIMES: [&str; 4] =
    ["null", r#""2026-11-23T09:14:03.127Z""#, r#""0000-02-29t23:59:60-00:00""#, r#""9999-12-31T00:00:00z""#];

/// A batch and the conditions of its delivery.
pub struct Plan {
    /// The project.
    pub project: String,
    /// The mode.
    pub mode: Mode,
    /// The most events in one message.
    pub max_events_per_message: NonZeroU16,
    /// The events. Some of them are equal.
    pub events: Vec<Rc<str>>,
    /// The events that an earlier attempt delivered.
    pub delivered: Vec<usize>,
    /// The results of the first messages, in reverse order; the queue acknowledges all others.
    pub results: Vec<SendResult>,
}

impl Plan {
    /// Generates a batch.
    pub fn generate(mut input: Unstructured<'_>, size: Size) -> Generated<Self> {
        let input = &mut input;
        let most_events = if input.ratio(3, 4)? { 9 } else { 499 };
        let max_events_per_message = NonZeroU16::MIN.saturating_add(input.int_in_range(0..=most_events)?);
        let project = "p".repeat(input.int_in_range(1..=64)?);
        let mode = if input.arbitrary()? { Mode::Live } else { Mode::Test };
        let results = (0..input.int_in_range(0..=12)?).map(|_| {
            input
                .choose(&[SendResult::Acknowledged, SendResult::Retryable, SendResult::Unknown, SendResult::Permanent])
                .copied()
        });
        let results = results.collect::<Generated<Vec<_>>>()?;
        let delivered_bits: u8 = input.arbitrary()?;

        let mut events: Vec<Rc<str>> = Vec::new();
        let mut bytes = 0;
        while events.is_empty() || (!input.is_empty() && events.len() < 500) {
            let room = size.bytes - bytes;
            let event: Rc<str> = event(input, room)?.into();
            let times = input.int_in_range(1..=size.times)?.min(500 - events.len()).min(room / (event.len() + 1));
            if times == 0 {
                break;
            }
            bytes += times * (event.len() + 1);
            events.extend(std::iter::repeat_n(event, times));
        }
        if events.is_empty() {
            // The first event alone is larger than the batch may be.
            return Err(arbitrary::Error::IncorrectFormat);
        }
        let is_delivered = |index: &usize| delivered_bits >> (index % 8) & 1 == 1;
        let delivered = (0..events.len()).filter(is_delivered).collect();
        Ok(Self { project, mode, max_events_per_message, events, delivered, results })
    }
}

/// The body of a batch with these events.
pub fn body_of<T: AsRef<str>>(events: &[T]) -> String {
    let mut body = "{\"events\":[".to_owned();
    for (index, event) in events.iter().enumerate() {
        body.push_str(if index > 0 { "," } else { "" });
        body.push_str(event.as_ref());
    }
    body.push_str("]}");
    body
}

/// The text of a valid event of at most `room` bytes. Padding takes it to every size up to the limit.
fn event(input: &mut Unstructured<'_>, room: usize) -> Generated<String> {
    let mut event = "{".to_owned();
    event.push_str(space(input)?);
    for name in ["external_user_id", "name"] {
        let _ = write!(event, "\"{name}\"{}:{},", space(input)?, string(input, 1)?);
    }
    if input.arbitrary()? {
        let _ = write!(event, "\"timestamp\":{},", input.choose(&TIMES)?);
    }
    if input.arbitrary()? {
        let _ = write!(event, "\"properties\":{{{}:{}}},", string(input, 0)?, value(input, 3)?);
    }
    let _ = write!(event, "\"other\":{},\"pad\":\"", value(input, 2)?);
    let padding = match input.int_in_range(0..=15)? {
        0 => input.int_in_range(0..=MAX_EVENT_BYTES)?,
        1..=3 => input.int_in_range(0..=3000)?,
        _ => 0,
    };
    let room = room.saturating_sub(",".len()).min(MAX_EVENT_BYTES);
    let room = room.saturating_sub(in_message(&event).len() + "\"}".len());
    event.push_str(&"x".repeat(padding.min(room)));
    event.push_str("\"}");
    Ok(event)
}

fn space(input: &mut Unstructured<'_>) -> Generated<&'static str> {
    input.choose(&["", " ", "\t", "\r\n"]).copied()
}

/// A valid value, which is at level `depth` if it is an array or an object.
fn value(input: &mut Unstructured<'_>, depth: usize) -> Generated<String> {
    const SCALARS: [&str; 8] =
        ["null", "true", "false", "0", "-0.0", "1.50e+3", "123456789012345678901", "1.7976931348623157e308"];
    let kinds = if depth > 32 { 1 } else { 4 };
    Ok(match input.int_in_range(0..=kinds)? {
        0 => input.choose(&SCALARS)?.to_string(),
        1 => string(input, 0)?,
        2 => format!("[{}{}]", space(input)?, value(input, depth + 1)?),
        3 => format!("[{},{}{}]", value(input, depth + 1)?, space(input)?, value(input, depth + 1)?),
        _ => format!("{{{}:{}}}", string(input, 0)?, value(input, depth + 1)?),
    })
}

/// The text of a string with at least `least` characters.
fn string(input: &mut Unstructured<'_>, least: usize) -> Generated<String> {
    const PIECES: [&str; 16] = [
        "a",
        "}",
        "]",
        ",",
        "\\\"",
        "\\\\",
        "\\/",
        "\\n",
        "\\u0041",
        "\\ud83d\\ude00",
        "\u{FFFE}",
        "\u{FFFF}",
        "\u{FFFD}",
        "\u{7f}",
        "é",
        "😀",
    ];
    let pieces = input.int_in_range(least..=least + 7)?;
    let mut text = "\"".to_owned();
    for _ in 0..pieces {
        text.push_str(input.choose(&PIECES)?);
    }
    text.push('"');
    Ok(text)
}
